"""Judge whether a service can log in to the servers that its start needs.

A running service that loses its database or its broker recovers by itself; restarted without them, it does not start
(docs/failure-modes.md, FM-DB-05 and FM-NATS-05). No source predicts the next login, so the last known one decides: from
the service's log, its database sessions, its own metrics or Prometheus, and the broker's connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd

from runbook_lib.book import patterns
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.model.frames import row
from runbook_lib.model.rows import each
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.evidence import services, sessions
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
_SERVER_VARIABLE = patterns.source(PACK, "server variable")
#: What shows logins in a service's log, in order.
SIGNS = (
    LoginSign(tuple(Server), False, patterns.source(PACK, "start line")),
    LoginSign((Server.DATABASE,), False, patterns.source(PACK, "database pool line")),
    LoginSign((Server.DATABASE,), True, patterns.source(PACK, "database login error")),
    LoginSign((Server.BROKER,), False, patterns.source(PACK, "broker line")),
    LoginSign((Server.BROKER,), True, patterns.source(PACK, "broker login error")),
)


#: The parts of `collect_without_log`.
PARTS = ("instances", "own", "services", "sessions", "at_work", "done", "broker")


class Instances(rows.Row):
    """A workload's instances: the number that is ready, whether all started recently, and when the newest did."""

    ready: int = 0
    young: bool = False
    started: pd.Timestamp | None = None


class Node(rows.Row):
    """When the broker started, and when it last read its configuration."""

    started: pd.Timestamp | None = None
    loaded: pd.Timestamp | None = None


class Connected(rows.Row):
    """A connection to the broker, not the runbook's: its start and its user."""

    start: pd.Timestamp | None = None
    user: str = ""


class BrokerActivity(rows.Row):
    """Signs that the service's own connection to the broker works: its consumer is bound, or it has published."""

    bound: bool | None = None
    last_published: pd.Timestamp | None = None


class LastDone(rows.Row):
    """When the service last wrote that an event is published or registered, or a notification sent; `sent` of these."""

    at: pd.Timestamp | None = None
    sent: pd.Timestamp | None = None


@dataclass(frozen=True)
class LoginState:
    """Whether a service can log in to a server (`ok`); None if no source shows it.

    `at` is the time of the deciding login, `why` the server's text or the sign that decided, `came` the login's result.
    """

    ok: bool | None = None
    at: pd.Timestamp | None = None
    why: str | Text = ""
    came: str = ""

    @property
    def for_want_of_a_slot(self) -> bool:
        """Return whether the database refuses because it has no free connection, not because of the role."""
        return isinstance(self.why, str) and _DATABASE_REFUSAL.says("full", self.why)


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

    Frames: looked, instances, node, connected, at_work, done, own (fields of the classes of these names; user, and
    differs: see `find_other_servers`); those of `services.collect` and `sessions.collect`.
    """
    name = rb.facts.workloads.program(workload)
    parts.answers["looked"] = row(at=rb.now())
    with parts.part("instances") as found:
        pods = rb.workloads.pods(name)
        ages = [(rb.now() - pd.Timestamp(pod["started"])).total_seconds() for pod in pods if pod["started"]]
        young = bool(ages) and max(ages) < rb.number("program.young")
        found["instances"] = row(ready=sum(pod["ready"] for pod in pods), young=young, started=newest_start(pods))
    with parts.part("own") as found:
        own = own_variables(rb.workloads.environment(name), workload)
        found["own"] = row(user=_find_user(own.values()))
        (other,) = (s for s in facts_of(rb).services if s != workload)
        others = own_variables(rb.workloads.environment(rb.facts.workloads.program(other)), other)
        ours = [url for url in (rb.target.url(s) for s in ("database_url", "nats_url")) if url]
        found["own"]["differs"] = ", ".join(sorted(find_other_servers(own, others, ours)))
    with parts.part("services") as found:
        found |= services.collect(rb)
    with parts.part("sessions") as found, rb.snapshot() as db:
        found |= sessions.collect(db, facts_of(rb).database_role)
    with parts.part("at_work") as found:
        found["at_work"] = _read_activity(rb, workload)
    with parts.part("done") as found, rb.snapshot() as db:
        found["done"] = _read_last_done(db, workload)
    with parts.part("broker") as found:
        found |= _read_broker(rb)


def newest_start(pods: Sequence[Mapping[str, Any]]) -> pd.Timestamp | None:
    """Return the start of the newest instance; None without any, or if the runner does not report it."""
    return max((pd.Timestamp(pod["started"]) for pod in pods if pod["started"]), default=None)


def own_variables(environment: Mapping[str, str], workload: str) -> dict[str, str]:
    """Return the variables as the program sees them: in a file of both programs, its own have its name in front."""
    own = f"{workload.upper()}__"
    return {**environment, **{name.removeprefix(own): v for name, v in environment.items() if name.startswith(own)}}


def find_other_servers(own: Mapping[str, str], others: Mapping[str, str], ours: Iterable[str] = ()) -> list[str]:
    """Return the variables that name another server than the other program's, unless the runbook uses it (`ours`).

    >>> find_other_servers({"NATS_URL": "nats://a:pw@nats:4222"}, {"NATS_URL": "nats://b:pw@nats.prod.svc:4222"})
    []
    """
    named = [v for v in own.keys() & others.keys() if _SERVER_VARIABLE.says("address", v)]
    known = {name for url in ours for server in _read_servers(url) for name in (server, server.partition(":")[0] + ":")}
    named = [v for v in named if own[v] and others[v] and known.isdisjoint(_read_servers(own[v]))]
    return [v for v in named if _read_servers(own[v]).isdisjoint(_read_servers(others[v]))]


def _read_servers(value: str) -> set[str]:
    """Return the servers of an address, or of several, as HOST:PORT without the host's domain.

    >>> sorted(_read_servers("postgresql://u:pw@a.prod,b:5432/x")), sorted(_read_servers("nats://a:4222,nats://b:4222"))
    (['a:', 'b:5432'], ['a:4222', 'b:4222'])
    """
    places = value.split(",") if value.count("://") > 1 else [value]
    servers = (urlsplit(a.removeprefix("jdbc:")).netloc.rpartition("@")[2] or a for a in places)
    parts = (server.partition(":") for several in servers for server in several.split(","))
    return {f"{host if host[:1].isdigit() else host.partition('.')[0]}:{port}" for host, _, port in parts}


def _find_user(values: Iterable[str]) -> str:
    addresses = (urlsplit(v) for v in values if v.startswith(("nats://", "tls://")))
    return next((a.username for a in addresses if a.username and a.password), "")


def _read_activity(rb: Context, workload: str) -> pd.DataFrame:
    if workload == "notification":
        streams = facts_of(rb).streams
        return row(bound=rb.source("jetstream").consumer(streams.events, streams.consumer).bound)
    with rb.snapshot() as db:
        return row(last_published=rows.one(db.ask(Outbox.QUERY), Outbox).last_published)


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
    """Judge whether the service can log in to each server, from the frames of `collect`; pure."""
    given = replace(given, as_of=rows.value(frames.get("looked"), "at", pd.Timestamp) or given.as_of)
    return {
        Server.DATABASE: _judge_database_login(frames, given, workload),
        Server.BROKER: _judge_broker_login(frames, given),
    }


def _judge_database_login(frames: Frames, given: JudgeInput, workload: str) -> LoginState:
    seen = services.read(frames, given).get(workload, services.ServiceSeen())
    held = {s.service: s for s in each(frames.get("service_sessions"), sessions.Sessions)}
    own = held.get(workload, sessions.Sessions(workload))
    attempts = _read_server_attempts(frames, Server.DATABASE)
    accepted = _find_latest(_find_last(attempts, LoginResult.ACCEPTED), _moment_ago(given, own.newest_login))
    others = _find_latest(*(_moment_ago(given, s.newest_login) for s in held.values() if s.service != workload))
    bad, proved_s = _find_last_failure(attempts, accepted), given.number("login.proved")
    if bad is not None and _is_recent(bad.last, given, given.number("log.gap")):
        return LoginState(False, bad.last, bad.detail, bad.came)
    old = seen.age_s is not None and seen.age_s >= given.number("service.young")
    if seen.connections == 0 and not own.sessions and old:
        return LoginState(False, None, say("action.restart.pool_empty"))
    # No refusal since. A pool without connections may just not have tried; connections may be older than a refusal.
    if bad is not None and (not seen.connections or bad.came == LoginResult.REFUSED):
        opened = bool(seen.connections) or bad.came == LoginResult.UNREACHED or _is_after(others, bad.last)
        return LoginState(None if opened else False, bad.last, bad.detail, bad.came)
    if _is_recent(accepted, given, proved_s):
        return LoginState(True, accepted)
    if seen.connections:  # a working pool replaces its sessions by age, so it logs in regularly
        return LoginState(True)
    if _process_has_no_session(frames, given, workload, seen):
        return LoginState(False, None, say("action.restart.no_session"))
    # Both services log in as one role.
    return LoginState(True, others) if _is_recent(others, given, proved_s) else LoginState(None, accepted)


def _process_has_no_session(frames: Frames, given: JudgeInput, workload: str, seen: services.ServiceSeen) -> bool:
    """Return whether the process runs without a session; if the other service has sessions, it must also answer."""
    instances = rows.first(frames.get("instances"), Instances)
    found = sessions.read(frames, given)
    if instances is None or not instances.ready or instances.young or workload not in found:
        return False
    if found[workload].says is not sessions.SessionState.NONE:
        return False
    return seen.answers is services.RequestResult.YES or sessions.no_service_has_sessions(found)


def _judge_broker_login(frames: Frames, given: JudgeInput) -> LoginState:
    at_work, node = rows.one(frames.get("at_work"), BrokerActivity), rows.one(frames.get("node"), Node)
    if at_work.bound:
        return LoginState(True, given.as_of)
    attempts, connected = _read_server_attempts(frames, Server.BROKER), each(frames.get("connected"), Connected)
    accepted, user = _find_last(attempts, LoginResult.ACCEPTED), rows.value(frames.get("own"), "user", str)
    published, gap_s = at_work.last_published, given.number("log.gap")
    bad = _find_last_failure(attempts, _find_latest(accepted, published))
    same = _find_latest(*(c.start for c in connected if c.user == user)) if user else None
    if bad is not None and bad.came == LoginResult.REFUSED:
        # A client that has given up does not try again, even when the cause is removed.
        opened = _is_after(node.loaded, bad.last) or _is_after(node.started, bad.last) or _is_after(same, bad.last)
        return LoginState(None if opened else False, bad.last, bad.detail, bad.came)
    if bad is not None:
        again = _is_recent(bad.last, given, gap_s) and not _is_after(node.started, bad.last)
        return LoginState(False if again else None, bad.last, bad.detail, bad.came)
    open_to_all = bool(connected) and not any(c.user for c in connected)
    seen = accepted or same or open_to_all or _is_recent(published, given, gap_s)
    return LoginState(True if seen else None, _find_latest(accepted, published, same))


def refused_servers(seen: Mapping[Server, LoginState]) -> dict[Server, LoginState]:
    """Return the servers, of the result of `judge`, that refused the service's login."""
    return {server: login for server, login in seen.items() if login.ok is False and login.came == LoginResult.REFUSED}


def is_away(login: LoginState) -> bool:
    """Return whether no server answered the service's last login."""
    return login.ok is False and login.came == LoginResult.UNREACHED


def _read_server_attempts(frames: Frames, server: Server) -> Sequence[Attempt]:
    return [a for a in each(frames.get("logins"), Attempt) if a.server == server and a.last is not None]


def _find_last(attempts: Iterable[Attempt], came: LoginResult) -> pd.Timestamp | None:
    return _find_latest(*(a.last for a in attempts if a.came == came))


def _find_last_failure(attempts: Iterable[Attempt], accepted: pd.Timestamp | None) -> Attempt | None:
    """Return the last login that was refused or reached no server, unless a later one was accepted."""
    bad = [a for a in attempts if a.came != LoginResult.ACCEPTED and not _is_after(accepted, a.last)]
    return max(bad, key=lambda a: a.last, default=None)  # type: ignore[arg-type,return-value]  # each has one


def _find_latest(*moments: pd.Timestamp | None) -> pd.Timestamp | None:
    return max((m for m in moments if m is not None), default=None)


def _is_after(moment: pd.Timestamp | None, other: pd.Timestamp | None) -> bool:
    return moment is not None and (other is None or moment > other)


def _moment_ago(given: JudgeInput, seconds: float | None) -> pd.Timestamp | None:
    return None if seconds is None else given.as_of - pd.Timedelta(seconds=seconds)


def _is_recent(moment: pd.Timestamp | None, given: JudgeInput, seconds: float) -> bool:
    return moment is not None and (given.as_of - moment).total_seconds() < seconds
