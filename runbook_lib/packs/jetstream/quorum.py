"""Decide whether a stream, a consumer or the metadata of a NATS cluster can be written.

A leader answers requests from its memory long after it has lost its quorum, so its answer alone proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from runbook_lib.checks.check import failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.model.frames import row

#: The name of the Raft group that stores the list of streams and consumers.
META = "_meta_"
#: The text of a group with a leader, by whether it can be written.
_STATE_KEYS = {True: "quorum.away", False: "quorum.lost", None: "quorum.unclear"}


class Member(rows.Row):
    """A node of a Raft group (a stream, a durable consumer or META), as reported by the leader or the queried node.

    `active_s` is the time since its last contact in seconds; None if that is not known, and for the leader itself.
    """

    group: str = ""
    node: str = ""
    leader: bool = False
    current: bool = False
    offline: bool = False
    active_s: float | None = None
    lag: float | None = None


class Nodes(rows.Row):
    """The number of nodes that reported their clients, and the size of the cluster (None if not known)."""

    seen: int = 0
    of: int | None = None

    @property
    def partly(self) -> bool:
        """Whether the clients of some nodes were not reported."""
        return self.of is not None and self.seen < self.of


@dataclass(frozen=True)
class RaftGroup:
    """Whether a group can be written (True, False, None if not known), and its unavailable nodes (`away`)."""

    name: str
    of: int
    leader: str
    writes: bool | None
    away: tuple[str, ...]

    @property
    def text(self) -> Text:
        """The description of the group's state."""
        return say(
            _STATE_KEYS[self.writes] if self.leader else "quorum.without_leader",
            name=self.name,
            leader=self.leader,
            n=len(self.away),
            of=self.of,
            names=", ".join(self.away),
        )


def members(group: str, info: dict[str, Any]) -> list[Member]:
    """Return the members of a group from its STREAM.INFO or CONSUMER.INFO; empty if the server runs no cluster."""
    cluster = info.get("cluster") or {}
    leader = cluster.get("leader") or ""
    replicas = [
        Member(
            group,
            str(r.get("name", "")),
            leader=r.get("name") == leader,
            current=bool(r.get("current")),
            offline=bool(r.get("offline")),
            # 0 and not current: no contact with the node since the reporting node has started.
            active_s=r["active"] / 1e9 if r.get("active") or (r.get("current") and "active" in r) else None,
            lag=r.get("lag"),
        )
        for r in cluster.get("replicas") or []
    ]
    own = [Member(group, leader, leader=True, current=True)] if leader and not any(r.leader for r in replicas) else []
    return [*own, *replicas]


def nodes(answers: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return how many nodes of the cluster reported their clients. Frame nodes (seen, of: number)."""
    answers = list(answers)
    sizes = [a["meta_cluster"].get("cluster_size") for a in answers if a.get("meta_cluster")]
    return row(seen=len(answers), of=max((s for s in sizes if s), default=None))


def meta(answers: Iterable[dict[str, Any]]) -> list[Member]:
    """Return the members of META: the leader's own report, else the report of another node on the leader."""
    views = [members(META, {"cluster": a["meta_cluster"]}) for a in answers if a.get("meta_cluster")]
    own = [v for v in views if v and v[0].leader and v[0].active_s is None and len(v) > 1]
    led = [[m for m in v if m.leader] for v in views if any(m.leader for m in v)]
    return next(iter([*own, *led, *views]), [])


def groups(frames: Frames, given: JudgeInput) -> list[RaftGroup]:
    """Return every group of the frame replicas (fields of `Member`)."""
    found: dict[str, list[Member]] = {}
    for member in rows.each(frames.get("replicas"), Member):
        found.setdefault(member.group, []).append(member)
    return [_judge_group(name, each, given) for name, each in found.items()]


def find_problems(frames: Frames, given: JudgeInput, nodes: Nodes) -> tuple[list[RaftGroup], list[RaftGroup]]:
    """Return the groups that cannot be written (certain ones first, META last), and those that lack a node."""
    found = groups(frames, given)
    if nodes.partly and nodes.of and nodes.seen * 2 <= nodes.of:
        # The other nodes may have elected a leader that the visible minority does not see.
        found = [replace(g, writes=g.writes or None) if g.name == META else g for g in found]
    broken = sorted((g for g in found if not g.writes), key=lambda g: (g.writes is None, g.name == META))
    return broken, [g for g in found if g.writes and g.away]


def writes(frames: Frames, given: JudgeInput, group: str, part: str) -> bool | None:
    """Return whether the group can be written; None if not known.

    If the group could not be queried, the failure of `part` decides.
    """
    failed = failures(frames).get(part)
    if failed is not None and failed.code in ("no_leader", "unanswered"):
        return False if failed.code == "no_leader" else None
    return next((g.writes for g in groups(frames, given) if g.name == group), True)


def _judge_group(name: str, members: list[Member], given: JudgeInput) -> RaftGroup:
    heard, gone = given.number("quorum.heard"), given.number("quorum.gone")
    leader = next((m for m in members if m.leader), None)
    available = {m.node for m in members if m.leader or (m.current and not m.offline and _silent_s(m) < heard)}
    lost = {m.node for m in members if not m.leader and (m.offline or (not m.current and _silent_s(m) >= gone))}
    need = len(members) // 2 + 1
    writable: bool | None = None
    if leader is None or len(members) - len(lost) < need:
        writable = False
    elif len(available) >= need and (leader.active_s is None or leader.active_s < heard):
        writable = True
    away = tuple(m.node for m in members if m.node not in available)
    return RaftGroup(name, len(members), leader.node if leader else "", writable, away)


def _silent_s(member: Member) -> float:
    return float("inf") if member.active_s is None else member.active_s
