"""4.1.4: lock waits and free connections, from the system catalogs only: these answer while a table is locked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.book import messages, queries
from runbook_lib.checks.check import failures, unknown_from_error
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Proposal,
    Reason,
    Status,
    Text,
    Value,
    judged,
    replace,
    say,
    unknown,
)
from runbook_lib.model.frames import row, table
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

QUERIES = ("connections", "sessions", "table_locks", "long_transactions", "blocked")
#: The wait event of a commit until a synchronous standby has confirmed it.
_WAITS_FOR_STANDBY = "IPC: SyncRep"
_BAD = (Status.WARNING, Status.CRITICAL)


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


class Blocked(rows.Row, query="database/blocked"):
    """A session that waits for a lock, and the pids that block it."""

    pid: int | None = None
    wait_s: float | None = None
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
    """A session whose open transaction has locked due rows: the workers skip these rows, so no session waits.

    The query is a system's own, as the rows are.
    """

    n: float = 0.0


class TableHolder(Blocker, query="database/table_locks"):
    """A session that holds a table lock which blocks writes, whether or not a session waits for it yet."""

    tables: str = ""
    mode: str = ""


class LockHolder(Blocker, query="database/lock_holders"):
    """A session, or a prepared transaction, that keeps a query of the runbook out of its tables.

    Those that wait themselves come last. `waiting` sessions of others wait there too.
    """

    gid: str | None = None
    address: str | None = None
    role: str | None = None
    kind: str | None = None
    since: pd.Timestamp | None = None
    tables: str | None = None
    mode: str | None = None
    waits: bool = False
    waiting: int = 0
    longest_wait_s: float | None = None


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


@dataclass(frozen=True)
class System:
    """What a system adds to the locks and connections of its database.

    `refused` is the observation of what keeps the system's role from its work, whatever the locks are, with its
    `proposals` and the frames to `show`; headlines get the parameters `told`. Locks of due rows decide with `row_locks`
    only. `doubted` if another step blames the database, so that free locks do not clear it.
    """

    role: str = ""
    is_service: Callable[[str], bool] = lambda application: False
    long_s: float = math.inf
    row_locks: bool = False
    doubted: bool = False
    refused: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    show: tuple[str, ...] = ()


def collect_server_info(rb: Context, db: Snapshot) -> Frames:
    """Collect whether a pooler or a replica is in use, and the pooler's queues.

    Frames: place (fields of `ServerInfo`), pools (`sources.postgres.Postgres.pools`) if the pooler's console answers.
    """
    frames = {"place": row(pooled=db.place.pooled, behind_s=db.place.behind_s)}
    if db.place.pooled:
        with suppress(SourceError):
            frames["pools"] = rb.postgres.pools()
    return frames


def collect(
    rb: Context,
    schemas: list[str] | None,
    role: str = "",
    more: Callable[[Snapshot, FrameCollector], None] = lambda db, parts: None,
) -> Frames:
    """Collect locks, sessions and connections from catalog views; these answer under an ACCESS EXCLUSIVE lock too.

    Frames: `QUERIES`, those of `collect_server_info`; blockers if a session is blocked; statements if
    pg_stat_statements has them; only pools if every client waits in the pooler's queue. Locks are those on tables of
    the `schemas` (None: of the search path), and of sessions of the role. `more` asks what the system adds.
    """
    parts = FrameCollector()
    try:
        with rb.snapshot() as db:
            parts.answers |= {name: db.ask(f"database/{name}", role=role, schemas=schemas) for name in QUERIES}
            if len(parts.answers["blocked"]):
                parts.answers["blockers"] = db.ask(Blocker.QUERY, role=role, schemas=schemas)
            more(db, parts)
            if role and rows.one(parts.answers["connections"], Connections).keeps_statements:
                parts.answers["statements"] = db.ask(Statement.QUERY, role=role)
            parts.answers |= collect_server_info(rb, db)
    except SourceError as e:
        if e.code == "queued":
            with suppress(SourceError):
                pools = rb.postgres.pools()
                if any(p.waiting for p in _filter_pools(pools, role)):
                    return {"pools": pools}
        raise
    return parts.frames()


@cache
def list_queries(
    names: tuple[str, ...] = (*(f"database/{name}" for name in QUERIES), Blocker.QUERY),
) -> tuple[queries.Query, ...]:
    """Return queries of this room, by default those of `collect`, for a check that queries.toml does not name."""
    folder = Path(__file__).parent / "sql"
    return tuple(queries.read(name, folder / f"{name}.sql") for name in names)


def _filter_pools(pools: pd.DataFrame | None, role: str) -> list[Pool]:
    """Return the pools of the services' role; a wait of the runbook's own role does not delay the services."""
    return [p for p in rows.each(pools, Pool) if p.role == role or not role]


def longest(seconds: Iterable[float | None]) -> float | None:
    """Return the longest known time; 0 for no sessions, None if no time is known."""
    every = list(seconds)
    return max((s for s in every if s is not None), default=None if every else 0.0)


def judge(frames: Frames, given: JudgeInput, system: System) -> Finding:
    """Judge lock waits and free connections; both delay every hop at the same time."""
    connections = rows.one(frames.get("connections"), Connections)
    blocker, row_holder = rows.one(frames.get("blockers"), Blocker), rows.one(frames.get("row_locks"), RowHolder)
    blocked = rows.each(frames.get("blocked"), Blocked)
    table_holder = rows.one(frames.get("table_locks"), TableHolder)
    transactions = rows.each(frames.get("long_transactions"), Transaction)
    oldest = max((t.transaction_s for t in transactions), default=None)
    commits = sorted((t.transaction_s for t in transactions if t.waits_for == _WAITS_FOR_STANDBY), reverse=True)
    limits, place = given.limits, rows.one(frames.get("place"), ServerInfo)
    pools = _filter_pools(frames.get("pools"), system.role)
    pool = max(pools, key=lambda p: p.longest_wait_s, default=Pool())
    queue = limits.value("pool.wait", pool.longest_wait_s)
    if "connections" not in frames and pool.waiting:
        # The pooler gave the runbook no connection within its timeout either.
        exhausted = given.evidence("database.pool_exhausted")
        return judged(_format_pool_wait(pool), [queue], at_least=Status.CRITICAL, signals=exhausted, show=("pools",))
    used, usable = connections.used, connections.usable
    if place.behind_s is not None:
        # A replica shows no writers, and the target declares no primary.
        said = say("database.replica", used=used, usable=usable, blocked=len(blocked))
        return unknown("", Reason.NOT_CONFIGURED, said, show=("blockers", "blocked", "sessions", "long_transactions"))
    most, share_of_most = _find_largest_application(frames, used)
    # The query for row locks may fail alone: then only a session that waits is proven.
    waited = [b.wait_s for b in blocked]
    held_s = [row_holder.transaction_s] if row_holder.transaction_s is not None else []
    wait = limits.value("locks.wait", longest([*waited, *held_s]))
    if system.row_locks and "row_locks" not in frames and wait.status is Status.OK:
        wait = limits.value("locks.wait", None)
    share = limits.value("connections.used", 100 * used / usable if usable > 0 else None)
    waits, full = wait.status in _BAD, share.status in _BAD
    held = [limits.value("locks.held", s) for s in (table_holder.transaction_s,) if s is not None]
    table_held = not waits and any(v.status is not Status.OK for v in held)
    confirmed = [limits.value("commits.wait", s) for s in commits[:1]]
    unconfirmed = any(v.status is not Status.OK for v in confirmed)
    # A wait of a moment is no reason for that of the rows which the blocker holds.
    waits_long = any(map(limits["locks.wait"].reached, waited))
    by_rows = waits and row_holder.pid is not None and (blocker.pid is None or not waits_long)
    if table_held or by_rows:
        blocker = table_holder if table_held else row_holder
    is_service = blocker.state == "active" and system.is_service(blocker.application or "-")
    cases = {
        "waits_for_standby": unconfirmed,
        "own_work": by_rows and is_service,
        "rows_held": by_rows,
        "table_held": table_held,
        "blocked": waits and blocker.pid is not None,
        "waits": waits,
        "full": full,
        "rows_unread": wait.status is Status.UNKNOWN,
    }
    case = next((name for name, holds in cases.items() if holds), "free")
    # Who sees no other role's transactions does not see what they hold, nor does the server show the pooler's queue.
    queue_unread = bool(place.pooled) and "pools" not in frames
    known = connections.sees_others and not queue_unread
    free = known and wait.status is share.status is queue.status is Status.OK and not (table_held or unconfirmed)
    observed = {
        system.refused: bool(system.refused),
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
        "database.takes_all": free and not system.refused and not system.doubted,
    }
    ends = (waits or table_held) and case not in ("own_work", "waits_for_standby") and not (table_held and is_service)
    in_front = None if by_rows else _find_waiting_blocker(blocked)
    offered = _propose_end(given, blocker, in_front) if ends and blocker.pid is not None else ()
    if not offered and full and share_of_most > given.number("connections.one_holder") and not system.is_service(most):
        # No action if a service has them: throttling restarts it, and it might not get a connection again.
        offered = (proposals.end_sessions(given, most),)
    pool_waits = queue.status is not Status.OK and case in ("free", "rows_unread") and not system.refused
    unread = failures(frames).get("row_locks")
    delays = (full or waits or table_held) and not unconfirmed
    section = given.catalog.section_with("reach" if system.refused else "throttle")
    tables = ["pools", "blockers", "blocked", "table_locks", "row_locks", "sessions", "long_transactions", "statements"]
    return judged(
        _format_pool_wait(pool)
        if pool_waits
        else say(
            system.refused or f"database.{case}",
            blocked=len(blocked),
            wait=wait.value,
            commits=len(commits),
            commit=next(iter(commits), None),
            standbys=connections.standbys or None,
            pid=blocker.pid,
            application=blocker.application,
            state=blocker.state,
            transaction=blocker.transaction_s,
            rows=row_holder.n,
            tables=table_holder.tables,
            mode=table_holder.mode,
            used=used,
            usable=usable,
            share=share.value,
            most=most,
            share_of_most=share_of_most,
            **system.told,
        ),
        [
            wait,
            share,
            *((queue,) if pools else ()),
            *held,
            *confirmed,
            Value("locks.blocked_sessions", len(blocked), "sessions"),
            Value("connections.used_of_usable", f"{used:.0f} / {usable:.0f}"),
            Value("transactions.longest", oldest, "s"),
        ],
        at_least=Status.CRITICAL if system.refused else Status.OK,
        reason=unread and unread.reason,
        notes=(
            *([] if connections.sees_others else [say("database.denied")]),
            *([say("database.pool_closed")] if queue_unread else []),
            *_note_slowest(frames),
            *([say("database.long_transaction", longest=oldest)] if (oldest or 0.0) >= system.long_s else []),
        ),
        signals=tuple(s for name, holds in observed.items() if holds for s in given.evidence(name)),
        proposals=system.proposals if system.refused else offered,
        next_sections=(section,) if section and (delays or system.refused) else (),
        show=(*system.show, *(n for n in tables if len(table(frames, n)))),
    )


def on_error(e: SourceError, given: JudgeInput) -> Finding:
    """Judge a refusal for lack of a free connection as CRITICAL; any other error is UNKNOWN."""
    if e.code != "too_many_clients":
        return unknown_from_error(e, given.catalog)
    section = given.catalog.section_with("throttle")
    return judged(
        say("database.no_connection", detail=e.detail),
        at_least=Status.CRITICAL,
        proposals=(proposals.list_sessions(given),),
        next_sections=(section,) if section else (),
    )


def name_holder(found: Finding, holders: pd.DataFrame, given: JudgeInput) -> Finding:
    """Return a finding with the session whose lock the runbook's own query ran into.

    It is CRITICAL instead of UNKNOWN if sessions of others wait there as well.
    """
    first, *others = rows.each(holders, LockHolder)
    shown = say(
        "database.query_blocked_prepared" if first.gid else "database.query_blocked",
        **vars(first) | {"since": first.since and f"{first.since:%H:%M:%SZ}", "waiting": first.waiting or None},
    )
    unread, named = found.status is Status.UNKNOWN, first.pid and first.pid in messages.shown(found.headline)
    leads = not named and (unread or found.headline.key == "database.waits")
    critical = unread and first.waiting
    in_front = next((Blocked(o.pid, application=o.application) for o in others if o.waits and not o.mode), None)
    ends = first.kind == "client backend" and not first.waits and not found.proposals
    return replace(
        found,
        status=Status.CRITICAL if critical else found.status,
        reason=None if critical else found.reason,
        headline=say("database.query_blocked_by", holder=shown, headline=found.headline) if leads else found.headline,
        notes=found.notes if leads else (*found.notes, shown),
        proposals=_propose_end(given, first, in_front) if ends else found.proposals,
        show=(*found.show, "lock_holders"),
    )


def _find_largest_application(frames: Frames, used: float) -> tuple[str, float]:
    """Return the application with the most connections, and its share of all used connections, 0 to 1."""
    sessions = table(frames, "sessions", "application", "n")
    if sessions.empty or not used:
        return "-", 0.0
    held = sessions.groupby(sessions["application"].fillna("-"))["n"].sum()
    return str(held.idxmax()), min(float(held.max()) / used, 1.0)


def _note_slowest(frames: Frames) -> list[Text]:
    statements = rows.each(frames.get("statements"), Statement)
    if not statements:
        return []
    s = max(statements, key=lambda s: s.mean_s)
    since = f"{s.since:%Y-%m-%d %H:%MZ}" if s.since is not None else None
    return [say("database.slowest", statement=s.statement[:80], mean=1000 * s.mean_s, calls=s.calls, since=since)]


def _format_pool_wait(pool: Pool) -> Text:
    servers, wait = pool.servers_active + pool.servers_idle, pool.longest_wait_s
    told = {"waiting": pool.waiting, "role": pool.role, "pooler": pool.pooler}
    return say("database.pool_waits", wait=wait, servers=servers, **told)


def _find_waiting_blocker(blocked: list[Blocked]) -> Blocked | None:
    """Return a waiting session that alone blocks another: its stronger lock is ahead in the lock queue.

    Others than those that wait for the same table want what it has done, and would not go on without it.
    """
    queued = (b for b in blocked if b.pid is not None and b.object not in ("transactionid", "advisory"))
    behind = {(o.blocked_by, o.object) for o in blocked}
    return next((b for b in queued if (str(b.pid), b.object) in behind), None)


def _propose_end(given: JudgeInput, blocker: Blocker, in_front: Blocked | None) -> tuple[Proposal, ...]:
    """Propose to end the blocker, and before that the milder action: a statement that waits has done no work."""
    idle = (blocker.state or "").startswith("idle")
    end = proposals.end_blocker(given, blocker.pid or 0, str(blocker.application), idle=idle)
    if in_front is None or in_front.pid is None:
        return (end,)
    return (proposals.cancel_waiting(given, in_front.pid, str(in_front.application)), end)
