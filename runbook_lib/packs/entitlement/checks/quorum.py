"""Could a cluster's stream, consumer or catalogue be written? A leader answers from memory for long after it cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from runbook_lib import rows
from runbook_lib.checks.check import failures
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.model.frames import row

#: The name of the group that keeps which streams and consumers there are.
META = "_meta_"


@dataclass(frozen=True)
class Member:
    """A node of a group (a stream, a durable, META), as the group's leader or the node that was asked sees it.

    `active_s` is how long ago it was heard of; None where that is not known, also for the leader itself.
    """

    group: str = ""
    node: str = ""
    leader: bool = False
    current: bool = False
    offline: bool = False
    active_s: float | None = None
    lag: float | None = None


@dataclass(frozen=True)
class Nodes:
    """How many nodes show their clients, and of how many it is known that they are there; None where it is not."""

    seen: int = 0
    of: int | None = None

    @property
    def partly(self) -> bool:
        """Whether there are nodes whose clients nobody sees."""
        return self.of is not None and self.seen < self.of


@dataclass(frozen=True)
class Group:
    """Whether a group could be written: True, False, or None where it cannot be told; and who is not there."""

    name: str
    of: int
    leader: str
    writes: bool | None
    away: tuple[str, ...]

    @property
    def text(self) -> Text:
        """What is wrong with it."""
        key = "without_leader" if not self.leader else {True: "away", False: "lost", None: "unclear"}[self.writes]
        return say(
            f"quorum.{key}",
            name=self.name,
            leader=self.leader,
            n=len(self.away),
            of=self.of,
            names=", ".join(self.away),
        )


def members(group: str, info: dict[str, Any]) -> list[Member]:
    """Who a group consists of, out of STREAM.INFO or CONSUMER.INFO; nobody where the server is no cluster's."""
    cluster = info.get("cluster") or {}
    leader = cluster.get("leader") or ""
    replicas = [
        Member(
            group,
            str(r.get("name", "")),
            leader=r.get("name") == leader,
            current=bool(r.get("current")),
            offline=bool(r.get("offline")),
            # 0 and not current is a node that was not heard of since this one has started.
            active_s=r["active"] / 1e9 if r.get("active") or (r.get("current") and "active" in r) else None,
            lag=r.get("lag"),
        )
        for r in cluster.get("replicas") or []
    ]
    own = [Member(group, leader, leader=True, current=True)] if leader and not any(r.leader for r in replicas) else []
    return [*own, *replicas]


def nodes(answers: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """How many nodes of the cluster show their clients. Frame nodes (seen, of: number)."""
    answers = list(answers)
    sizes = [a["meta_cluster"].get("cluster_size") for a in answers if a.get("meta_cluster")]
    return row(seen=len(answers), of=max((s for s in sizes if s), default=None))


def meta(answers: Iterable[dict[str, Any]]) -> list[Member]:
    """The group META out of what nodes say: the leader's own account, else what another one knows of the leader."""
    views = [members(META, {"cluster": a["meta_cluster"]}) for a in answers if a.get("meta_cluster")]
    own = [v for v in views if v and v[0].leader and v[0].active_s is None and len(v) > 1]
    led = [[m for m in v if m.leader] for v in views if any(m.leader for m in v)]
    return next(iter([*own, *led, *views]), [])


def groups(frames: Frames, given: Given) -> list[Group]:
    """Every group of the frame replicas (fields of `Member`)."""
    found: dict[str, list[Member]] = {}
    for member in rows.each(frames.get("replicas"), Member):
        found.setdefault(member.group, []).append(member)
    return [_group(name, each, given) for name, each in found.items()]


def writes(frames: Frames, given: Given, group: str, part: str) -> bool | None:
    """Whether that group could be written; where it could not be asked, what the failure of this part tells of it."""
    failed = failures(frames).get(part)
    if failed is not None and failed.code in ("no_leader", "unanswered"):
        return False if failed.code == "no_leader" else None
    return next((g.writes for g in groups(frames, given) if g.name == group), True)


def _group(name: str, members: list[Member], given: Given) -> Group:
    heard, gone = given.number("quorum.heard"), given.number("quorum.gone")
    leader = next((m for m in members if m.leader), None)
    there = {m.node for m in members if m.leader or (m.current and not m.offline and _since(m) < heard)}
    lost = {m.node for m in members if not m.leader and (m.offline or (not m.current and _since(m) >= gone))}
    need = len(members) // 2 + 1
    could: bool | None = None
    if leader is None or len(members) - len(lost) < need:
        could = False
    elif len(there) >= need and (leader.active_s is None or leader.active_s < heard):
        could = True
    away = tuple(m.node for m in members if m.node not in there)
    return Group(name, len(members), leader.node if leader else "", could, away)


def _since(member: Member) -> float:
    return float("inf") if member.active_s is None else member.active_s
