"""4.1.4: lock waits and free connections, from the system catalogs only: these answer while a table is locked."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.book import patterns
from runbook_lib.checks.check import Check, failures, unknown_from_error
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Proposal,
    Reason,
    Signal,
    Status,
    Text,
    Value,
    judged,
    replace,
    say,
    unknown,
)
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.evidence.sessions import Sessions, pools_are_full
from runbook_lib.packs.entitlement.facts import EntitlementFacts, facts_of
from runbook_lib.packs.entitlement.rows import Application
from runbook_lib.sources.source import SourceError
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

QUERIES = ("connections", "sessions", "table_locks", "long_transactions")
#: Those that are about the services' role.
QUERIES_OF_ROLE = ("blocked", "blockers", "application")
#: The wait event of a commit until a synchronous standby has confirmed it.
_WAITS_FOR_STANDBY = "IPC: SyncRep"
_APPLICATION_NAME = patterns.source(PACK, "application name")


class Connections(rows.Row, query="database/connections"):
    """The number of connections, and whether this role may see other roles' sessions."""

    max_connections: int = 0
    superuser_reserved: int = 0
    reserved: int = 0
    sees_others: bool = False
    keeps_statements: bool = False
    standbys: str = ""
    used: float = 0.0

    @property
    def usable(self) -> int:
        """Return how many connections an ordinary role can use."""
        return self.max_connections - self.superuser_reserved - self.reserved


class ApplicationSessions(rows.Row, query="database/sessions"):
    """The number of sessions of an application in one state."""

    application: str | None = None
    n: float = 0.0


class Blocked(rows.Row, query="database/blocked"):
    """A session that waits for a lock, and the pids that block it."""

    pid: int | None = None
    wait_s: float = 0.0
    blocked_by: str = ""
    object: str = ""
    application: str | None = None


class Blocker(rows.Row, query="database/blockers"):
    """A session that blocks others."""

    pid: int | None = None
    application: str | None = None
    state: str | None = None
    transaction_s: float | None = None


class RowHolder(Blocker, query="database/row_locks"):
    """A session whose open transaction has locked due rows: the workers skip these rows, so no session waits."""

    n: float = 0.0


class TableHolder(Blocker, query="database/table_locks"):
    """A session that holds a table lock which blocks writes, whether or not a session waits for it yet."""

    tables: str = ""
    mode: str = ""


class Transaction(rows.Row, query="database/long_transactions"):
    """A long transaction, and the wait event of its session."""

    transaction_s: float = 0.0
    waits_for: str = ""


class Statement(rows.Row, query="database/statements"):
    """A normalised statement of the services, with its calls and mean time since the statistics were reset."""

    statement: str = ""
    calls: float = 0.0
    mean_s: float = 0.0
    since: pd.Timestamp | None = None


class ServerInfo(rows.Row):
    """Whether a pooler or a replica answers at the address, and the replica's delay; None on a primary."""

    pooled: bool | None = None
    behind_s: float | None = None


class Pool(rows.Row):
    """A PgBouncer pool: the clients of a role, and the server connections that they share."""

    pooler: str = ""
    role: str = ""
    mode: str = ""
    waiting: int = 0
    servers_active: int = 0
    servers_idle: int = 0
    longest_wait_s: float = 0.0


def collect_server_info(rb: Context, db: Snapshot) -> Frames:
    """Collect whether a pooler or a replica is in use, and the pooler's queues.

    Frames: place (fields of `ServerInfo`), pools (`sources.postgres.Postgres.pools`) if the pooler's console answers.
    """
    frames = {"place": row(pooled=db.place.pooled, behind_s=db.place.behind_s)}
    if db.place.pooled:
        with suppress(SourceError):
            frames["pools"] = rb.postgres.pools()
    return frames


def collect(rb: Context) -> Frames:
    """Collect locks, sessions and connections from catalog views; these answer under an ACCESS EXCLUSIVE lock too.

    Frames: `QUERIES`, `QUERIES_OF_ROLE`, row_locks, those of `collect_server_info`; service_sessions if the role is
    at its limit; statements if pg_stat_statements has them; only pools if every client waits in the pooler's queue.
    """
    parts = FrameCollector()
    try:
        with rb.snapshot() as db:
            role = facts_of(rb).database_role
            parts.answers |= {name: db.ask(f"database/{name}") for name in QUERIES}
            parts.answers |= {name: db.ask(f"database/{name}", role=role) for name in QUERIES_OF_ROLE}
            if rows.one(parts.answers["application"], Application).at_limit:
                with suppress(SourceError):
                    parts.answers["service_sessions"] = db.ask_apart(Sessions.QUERY, role=role)
            if rows.one(parts.answers["connections"], Connections).keeps_statements:
                parts.answers["statements"] = db.ask(Statement.QUERY, role=role)
            parts.answers |= collect_server_info(rb, db)
    except SourceError as e:
        if e.code == "queued":
            with suppress(SourceError):
                pools = rb.postgres.pools()
                if any(p.waiting for p in _filter_service_pools(pools, facts_of(rb).database_role)):
                    return {"pools": pools}
        raise
    with parts.part("row_locks") as answers, rb.snapshot() as db:
        answers["row_locks"] = db.ask(RowHolder.QUERY)
    return parts.frames()


def _filter_service_pools(pools: pd.DataFrame | None, role: str) -> list[Pool]:
    """Return the pools of the services' role; a wait of the runbook's own role does not delay the services."""
    return [p for p in rows.each(pools, Pool) if p.role == role]


def judge(frames: Frames, given: JudgeInput) -> Finding:
    """4.1.4: judge lock waits and free connections; both delay every hop at the same time."""
    connections = rows.one(frames.get("connections"), Connections)
    blocker, holder = rows.one(frames.get("blockers"), Blocker), rows.one(frames.get("row_locks"), RowHolder)
    blocked = rows.each(frames.get("blocked"), Blocked)
    table_holder = rows.one(frames.get("table_locks"), TableHolder)
    transactions = rows.each(frames.get("long_transactions"), Transaction)
    longest = max((t.transaction_s for t in transactions), default=None)
    commits = [t.transaction_s for t in transactions if t.waits_for == _WAITS_FOR_STANDBY]
    limits, place = given.limits, rows.one(frames.get("place"), ServerInfo)
    pools = _filter_service_pools(frames.get("pools"), facts_of(given).database_role)
    pool = max(pools, key=lambda p: p.longest_wait_s, default=Pool())
    queue = limits.value("pool.wait", pool.longest_wait_s)
    if "connections" not in frames and pool.waiting:
        # The pooler gave the runbook no connection within its timeout either.
        exhausted = given.evidence("database.pool_exhausted")
        return judged(_format_pool_wait(pool), [queue], at_least=Status.CRITICAL, signals=exhausted, show=("pools",))
    used, usable = connections.used, connections.usable
    if place.behind_s is not None:
        return _report_replica(used, usable, len(blocked))
    most, share_of_most = _find_largest_application(frames, used)
    # The query for row locks may fail alone: then only a session that waits is proven.
    waited = [b.wait_s for b in blocked]
    held_s = [holder.transaction_s] if holder.transaction_s is not None else []
    wait = limits.value("locks.wait", max(waited + held_s, default=0.0))
    if "row_locks" not in frames and wait.status is Status.OK:
        wait = limits.value("locks.wait", None)
    share = limits.value("connections.used", 100 * used / usable if usable > 0 else None)
    waits, full = (v.status in (Status.WARNING, Status.CRITICAL) for v in (wait, share))
    held_for = table_holder.transaction_s
    held = [limits.value("locks.held", held_for)] if held_for is not None else []
    table_held = not waits and any(v.status is not Status.OK for v in held)
    confirmed = [limits.value("commits.wait", max(commits))] if commits else []
    unconfirmed = any(v.status is not Status.OK for v in confirmed)
    if table_held:
        blocker = table_holder
    elif (
        waits and holder.pid is not None and (blocker.pid is None or not any(map(limits["locks.wait"].reached, waited)))
    ):
        # A wait of a moment is no reason for that of the rows which it holds.
        blocker = holder
    is_service = blocker.state == "active" and _is_service(blocker.application or "-")
    own_work = waits and blocker is holder and is_service
    if unconfirmed:
        key = "database.waits_for_standby"
    elif own_work:
        key = "database.own_work"
    elif waits and blocker is holder:
        key = "database.rows_held"
    elif table_held:
        key = "database.table_held"
    elif waits:
        key = "database.blocked" if blocker.pid is not None else "database.waits"
    elif full:
        key = "database.full"
    elif wait.status is Status.UNKNOWN:
        key = "database.rows_unread"
    else:
        key = "database.free"
    application = rows.first(frames.get("application"), Application)
    if application and application.at_limit and pools_are_full(frames, given):
        application = replace(application, connection_limit=None)  # the limit allows what the services need
    write_blocker = application.write_blocker if application else ""
    unread = failures(frames).get("row_locks")
    blamed = any(s.about == "database" and s.weight > 0 for f in given.earlier for s in f.signals)
    may_end = (waits or table_held) and not (own_work or unconfirmed) and not (table_held and is_service)
    in_front = None if blocker is holder else _find_waiting_blocker(blocked)
    proposed = _propose_remedies(given, may_end, full, blocker, in_front, most, share_of_most)
    pool_waits = queue.status is not Status.OK
    tables = (
        *("pools", "blockers", "blocked", "table_locks", "row_locks"),
        *("sessions", "long_transactions", "statements"),
    )
    shown = [n for n in tables if len(table(frames, n))]
    notes = [] if connections.sees_others else [say("database.denied")]
    queue_unread = place.pooled and "pools" not in frames
    if queue_unread:
        notes.append(say("database.pool_closed"))
    if slowest := rows.each(frames.get("statements"), Statement):
        notes.append(_format_slowest(max(slowest, key=lambda s: s.mean_s)))
    if longest is not None and longest >= facts_of(given).lease_s:
        notes.append(say("database.long_transaction", longest=longest))
    return judged(
        _format_pool_wait(pool)
        if pool_waits and key in ("database.free", "database.rows_unread") and not write_blocker
        else say(
            f"database.{write_blocker}" if write_blocker else key,
            blocked=len(blocked),
            wait=wait.value,
            commits=len(commits),
            commit=max(commits, default=None),
            standbys=connections.standbys or None,
            pid=blocker.pid,
            application=blocker.application,
            state=blocker.state,
            transaction=blocker.transaction_s,
            rows=holder.n,
            tables=table_holder.tables,
            mode=table_holder.mode,
            used=used,
            usable=usable,
            share=share.value,
            most=most,
            share_of_most=share_of_most,
            role=application.role if application else None,
            lacks=application.lacks if application else None,
        ),
        [
            wait,
            share,
            *((queue,) if pools else ()),
            *held,
            *confirmed,
            Value("locks.blocked_sessions", len(blocked), "sessions"),
            Value("connections.used_of_usable", f"{used:.0f} / {usable:.0f}"),
            Value("transactions.longest", longest, "s"),
        ],
        at_least=Status.CRITICAL if write_blocker else Status.OK,
        reason=unread and unread.reason,
        notes=tuple(notes),
        signals=tuple(
            _weigh_waits(
                wait,
                share,
                queue,
                table_held,
                unconfirmed,
                write_blocker,
                blamed or "application" not in frames,
                connections.sees_others and not queue_unread,
                given,
            )
        ),
        proposals=(remedies.look_at_role(given),)
        if write_blocker
        else proposed or (_propose_logs(given) if (blamed or own_work or table_held) and not unconfirmed else ()),
        next_sections=("2",)
        if write_blocker
        else ("5.2",)
        if (full or waits or table_held) and not unconfirmed
        else (),
        show=(*(["application"] if write_blocker else []), *shown),
    )


def on_error(e: SourceError, given: JudgeInput) -> Finding:
    """Judge a refusal for lack of a free connection as CRITICAL; any other error is UNKNOWN."""
    if e.code != "too_many_clients":
        return unknown_from_error(e, given.catalog)
    return judged(
        say("database.no_connection", detail=e.detail),
        at_least=Status.CRITICAL,
        proposals=(proposals.list_sessions(given),),
        next_sections=("5.2",),
    )


def _find_largest_application(frames: Frames, used: float) -> tuple[str, float]:
    """Return the application with the most connections, and its share of all used connections, 0 to 1."""
    held: dict[str, float] = defaultdict(float)
    for sessions in rows.each(frames.get("sessions"), ApplicationSessions):
        held[sessions.application or "-"] += sessions.n
    if not held or not used:
        return "-", 0.0
    application, n = max(sorted(held.items()), key=lambda item: item[1])
    return application, min(n / used, 1.0)


def _propose_logs(given: JudgeInput) -> tuple[Proposal, ...]:
    """Propose the logs of both services, first that of the service whose loop fails."""
    blaming = [s.observation for f in given.earlier for s in f.signals if s.about == "database" and s.weight > 0]
    sides = {observation.partition(".")[0] for observation in blaming}
    failing = [service for side, (service, _) in change.SIDES.items() if side in sides]
    return tuple(
        proposals.logs(given, service) for service in sorted(EntitlementFacts.services, key=lambda s: s not in failing)
    )


def _format_slowest(s: Statement) -> Text:
    since = f"{s.since:%Y-%m-%d %H:%MZ}" if s.since is not None else None
    return say("database.slowest", statement=s.statement[:80], mean=1000 * s.mean_s, calls=s.calls, since=since)


def _format_pool_wait(pool: Pool) -> Text:
    servers = pool.servers_active + pool.servers_idle
    return say(
        "database.pool_waits",
        waiting=pool.waiting,
        role=pool.role,
        pooler=pool.pooler,
        wait=pool.longest_wait_s,
        servers=servers,
    )


def _report_replica(used: float, usable: float, blocked: int) -> Finding:
    """Return UNKNOWN: a replica shows no writers, and the target declares no primary."""
    return unknown(
        "",
        Reason.NOT_CONFIGURED,
        say("database.replica", used=used, usable=usable, blocked=blocked),
        show=("blockers", "blocked", "sessions", "long_transactions"),
    )


def _weigh_waits(
    wait: Value,
    share: Value,
    queue: Value,
    table_held: bool,
    unconfirmed: bool,
    write_blocker: str,
    doubted: bool,
    sees_all: bool,
    given: JudgeInput,
) -> list[Signal]:
    # Who sees no other role's transactions does not see what they hold, nor does the server show the pooler's queue.
    free = sees_all and wait.status is share.status is queue.status is Status.OK and not (table_held or unconfirmed)
    observed = {
        "database.read_only": write_blocker == "read_only",
        "database.shut_out": write_blocker == "shut_out",
        "database.lacks_rights": write_blocker == "lacks_rights",
        "database.blocked_for_long": wait.status is Status.CRITICAL,
        "database.blocked": wait.status is Status.WARNING,
        "database.table_held": table_held,
        "database.waits_for_standby": unconfirmed,
        "database.no_connections": share.status is Status.CRITICAL,
        "database.few_connections": share.status is Status.WARNING,
        "database.pool_exhausted": queue.status is Status.CRITICAL,
        "database.pool_waits": queue.status is Status.WARNING,
        "database.free": free,
        # A service that reports an error of the database outweighs these free locks and connections.
        "database.takes_all": free and not write_blocker and not doubted,
    }
    return [signal for name, holds in observed.items() if holds for signal in given.evidence(name)]


def _find_waiting_blocker(blocked: list[Blocked]) -> Blocked | None:
    """Return a waiting session that alone blocks another: its stronger lock is ahead in the lock queue.

    Others than those that wait for the same table want what it has done, and would not go on without it.
    """
    queued = (b for b in blocked if b.pid is not None and b.object not in ("transactionid", "advisory"))
    behind = {(o.blocked_by, o.object) for o in blocked}
    return next((b for b in queued if (str(b.pid), b.object) in behind), None)


def _propose_remedies(
    given: JudgeInput,
    may_end: bool,
    full: bool,
    blocker: Blocker,
    in_front: Blocked | None,
    most: str,
    share_of_most: float,
) -> tuple[Proposal, ...]:
    if may_end and blocker.pid is not None:
        idle = (blocker.state or "").startswith("idle")
        end = proposals.end_blocker(given, blocker.pid, str(blocker.application), idle=idle)
        if in_front is None or in_front.pid is None:
            return (end,)
        # The milder action first: a statement that still waits has done no work.
        return (proposals.cancel_waiting(given, in_front.pid, str(in_front.application)), end)
    if full and share_of_most > given.number("connections.one_holder") and not _is_service(most):
        # No action if a service has them: throttling restarts it, and it might not get a connection again.
        return (proposals.end_sessions(given, most),)
    return ()


def _is_service(application: str) -> bool:
    """Return whether the name is that of a service: its driver or its address, as the pods set no name."""
    return _APPLICATION_NAME.says("service", application)


def chart_sessions(frames: Frames, given: JudgeInput) -> charts.Chart | None:
    """Return the chart of connections by application and state, with the number that an ordinary role can use."""
    sessions = table(frames, "sessions", "application", "state", "n")
    connections = rows.first(frames.get("connections"), Connections)
    if sessions.empty or connections is None:
        return None
    usable = connections.usable
    matrix = (
        sessions.assign(state=sessions["state"].fillna("not visible"))
        .pivot_table(index="application", columns="state", values="n", aggfunc="sum", fill_value=0)
        .pipe(lambda t: t.loc[t.sum(axis=1).sort_values().index])
        .tail(8)
    )
    most, n = str(matrix.index[-1]), float(matrix.iloc[-1].sum())
    return charts.Chart(
        "Connections by application",
        "",
        charts.stack(range(len(matrix)), matrix, "rows"),
        limits_of_x=[charts.Line(usable, f"usable {usable:.0f}", charts.Role.CRITICAL)],
        alt=say("database.alt_sessions", used=connections.used, usable=usable, most=most, n=n),
        caption=() if connections.sees_others else (say("database.denied"),),
        xlabel=f"connections, of {usable:.0f} usable",
        names=[*matrix.index],
    )


CHECKS: tuple[Check, ...] = (Check("4.1.4", collect, judge, (chart_sessions,), on_error),)
