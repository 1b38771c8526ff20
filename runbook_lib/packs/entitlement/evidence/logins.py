"""Read what a server said when it refused a service's login, before a restart.

A running service that loses its database or its broker recovers by itself; restarted without them, it does not start
(docs/failure-modes.md, FM-DB-05 and FM-NATS-05). The service's log has the server's words. A refusal is over when the
service was let in again; it is unknown whether it is over once the server lets in somebody else, or was started again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book import patterns
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row
from runbook_lib.model.rows import each
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.evidence import addresses, sessions
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Activity, Outbox, Registered
from runbook_lib.packs.logs.logs import Attempt, LoginResult, LoginSign, read_attempts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot


class Server(StrEnum):
    """A server that a service logs in to at its start."""

    DATABASE = "database"
    BROKER = "broker"


_DATABASE_REFUSAL = patterns.source(PACK, "database refusal")
#: What shows logins in a service's log, in order.
SIGNS = (
    LoginSign(tuple(Server), False, patterns.source(PACK, "start line")),
    LoginSign((Server.DATABASE,), False, patterns.source(PACK, "database pool line")),
    LoginSign((Server.DATABASE,), True, patterns.source(PACK, "database login error")),
    LoginSign((Server.BROKER,), False, patterns.source(PACK, "broker line")),
    LoginSign((Server.BROKER,), True, patterns.source(PACK, "broker login error")),
)


#: The parts of `collect_without_log`.
PARTS = ("instances", "own", "sessions", "at_work", "done", "broker")


class Instances(rows.Row):
    """When the newest of a workload's instances started."""

    started: pd.Timestamp | None = None


class Node(rows.Row):
    """When the broker started, and when it last read its configuration."""

    started: pd.Timestamp | None = None
    loaded: pd.Timestamp | None = None


class Connected(rows.Row):
    """A connection to the broker, not the runbook's: its start and its user."""

    start: pd.Timestamp | None = None
    user: str = ""


class LastDone(rows.Row):
    """When the service last wrote that an event is published or registered, or a notification sent; `sent` of these."""

    at: pd.Timestamp | None = None
    sent: pd.Timestamp | None = None


@dataclass(frozen=True)
class LoginState:
    """Whether a server lets the service in (`ok`); None if it is not known.

    `at` is the time of the deciding login, `why` the server's text, `came` the login's result.
    """

    ok: bool | None = None
    at: pd.Timestamp | None = None
    why: str = ""
    came: str = ""

    @property
    def for_want_of_a_slot(self) -> bool:
        """Return whether the database refuses because it has no free connection, not because of the role."""
        return _DATABASE_REFUSAL.says("full", self.why)


def collect(rb: Context, workload: str) -> Frames:
    """Query every source on a service's logins; each source may fail on its own.

    Frames: logins (see `logs.read_attempts`) and those of `collect_without_log`.
    """
    parts, name = FrameCollector(), rb.facts.workloads.program(workload)
    with parts.part("log") as found:
        found["logins"] = read_attempts(rb.workloads.logs(name, rb.number("login.log")).entries, SIGNS)
    collect_without_log(rb, parts, workload)
    return parts.answers


def collect_without_log(rb: Context, parts: FrameCollector, workload: str) -> None:
    """Query every source but the log, each as a part of `PARTS`.

    Frames: looked, instances, node, connected, done (fields of the classes of these names), at_work (bound: whether the
    events' consumer is), own (see `addresses.collect`); those of `sessions.collect`.
    """
    name = rb.facts.workloads.program(workload)
    parts.answers["looked"] = row(at=rb.now())
    with parts.part("instances") as found:
        found["instances"] = row(started=newest_start(rb.workloads.pods(name)))
    with parts.part("own") as found:
        found["own"] = addresses.collect(rb, workload)
    with parts.part("sessions") as found, rb.snapshot() as db:
        found |= sessions.collect(db, facts_of(rb).database_role)
    with parts.part("done") as found, rb.snapshot() as db:
        found["done"] = _read_last_done(db, workload)
    if workload == "notification":
        with parts.part("at_work") as found:
            streams = facts_of(rb).streams
            found["at_work"] = row(bound=rb.source("jetstream").consumer(streams.events, streams.consumer).bound)
    with parts.part("broker") as found:
        found |= _read_broker(rb)


def newest_start(pods: Sequence[Mapping[str, Any]]) -> pd.Timestamp | None:
    """Return the start of the newest instance; None without any, or if the runner does not report it."""
    return max((pd.Timestamp(pod["started"]) for pod in pods if pod["started"]), default=None)


def _read_last_done(db: Snapshot, workload: str) -> pd.DataFrame:
    if workload == "entitlement":
        return row(at=rows.one(db.ask(Outbox.QUERY), Outbox).last_published)
    registered, sent = rows.one(db.ask(Registered.QUERY), Registered), rows.one(db.ask(Activity.QUERY), Activity)
    return row(at=_find_latest(registered.last_processed, sent.last_sent), sent=sent.last_sent)


def _read_broker(rb: Context) -> Frames:
    nodes = rb.source("nats_monitor").servers()
    moments = {name: [pd.Timestamp(n[key]) for n in nodes if n.get(key)] for name, key in _NODE_TIMES.items()}
    clients = rb.source("nats_monitor").connections()
    others = clients[~clients["name"].fillna("").str.startswith("runbook/")]
    return {
        "node": row(**{name: max(found, default=None) for name, found in moments.items()}),
        "connected": others[["start", "user"]].reset_index(drop=True),
    }


_NODE_TIMES = {"started": "start", "loaded": "config_load_time"}


def judge(frames: Frames, given: JudgeInput, workload: str) -> dict[Server, LoginState]:
    """Judge whether each server lets the service in, from the frames of `collect`; pure."""
    at = rows.value(frames.get("looked"), "at", pd.Timestamp) or pd.Timestamp(given.as_of)
    given = replace(given, as_of=at)
    held = each(frames.get("service_sessions"), sessions.Sessions)
    logged_in = {s.service: at - pd.Timedelta(seconds=s.newest_login) for s in held if s.newest_login is not None}
    done = rows.one(frames.get("done"), LastDone).at
    # Both services log in as one role. Work that was done since shows a session, not that it would get another one.
    database = _judge_login(
        frames, given, Server.DATABASE, accepted=logged_in.get(workload), others=_find_latest(done, *logged_in.values())
    )
    published = done if workload == "entitlement" else None
    worked = at if rows.value(frames.get("at_work"), "bound", bool) else published
    node, user = rows.one(frames.get("node"), Node), rows.value(frames.get("own"), "user", str)
    same = (c.start for c in each(frames.get("connected"), Connected) if user and c.user == user)
    changed = _find_latest(node.started, node.loaded, *same)
    broker = _judge_login(frames, given, Server.BROKER, accepted=worked, changed=changed)
    return {Server.DATABASE: database, Server.BROKER: broker}


def _judge_login(
    frames: Frames,
    given: JudgeInput,
    server: Server,
    *,
    accepted: pd.Timestamp | None,
    others: pd.Timestamp | None = None,
    changed: pd.Timestamp | None = None,
) -> LoginState:
    """Judge one server by the last login in the log, and by those after it.

    `accepted` is when it let the service in by another source, `others` when somebody of this role was in, `changed`
    when it may have become another one: who is turned away does not always try again.
    """
    attempts = [a for a in each(frames.get("logins"), Attempt) if a.server == server and a.last is not None]
    accepted = _find_latest(accepted, *(a.last for a in attempts if a.came == LoginResult.ACCEPTED))
    failed = [a for a in attempts if a.came != LoginResult.ACCEPTED and not _is_after(accepted, a.last)]
    bad = max(failed, key=lambda a: a.last, default=None)  # type: ignore[arg-type,return-value]  # each has one
    if bad is None or bad.last is None:
        proved = accepted is not None and _age_s(given, accepted) < given.number("login.proved")
        return LoginState(True if proved else None, accepted)
    recent = _age_s(given, bad.last) < given.number("log.gap")
    opened = _is_after(changed, bad.last) or (
        not recent and (bad.came == LoginResult.UNREACHED or _is_after(others, bad.last))
    )
    return LoginState(None if opened else False, bad.last, bad.detail, bad.came)


def _age_s(given: JudgeInput, moment: pd.Timestamp) -> float:
    return float((given.as_of - moment).total_seconds())


def refused_servers(seen: Mapping[Server, LoginState]) -> dict[Server, LoginState]:
    """Return the servers, of the result of `judge`, that refused the service's login."""
    return {server: login for server, login in seen.items() if login.ok is False and login.came == LoginResult.REFUSED}


def is_away(login: LoginState) -> bool:
    """Return whether no server answered the service's last login."""
    return login.ok is False and login.came == LoginResult.UNREACHED


def _find_latest(*moments: pd.Timestamp | None) -> pd.Timestamp | None:
    return max((m for m in moments if m is not None), default=None)


def _is_after(moment: pd.Timestamp | None, other: pd.Timestamp | None) -> bool:
    return moment is not None and (other is None or moment > other)
