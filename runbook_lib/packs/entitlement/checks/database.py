"""4.1.4: who waits for whom, and how many connections are left. From the catalogs alone, so that it answers
while a table is locked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.checks.check import Check, could_not_ask
from runbook_lib.checks.parts import Parts
from runbook_lib.context import Given
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
    say,
    unknown,
)
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.facts import Facts, facts_of
from runbook_lib.packs.entitlement.rows import Application
from runbook_lib.sources import SourceError
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

QUESTIONS = ("connections", "sessions", "blocked", "blockers", "long_transactions")


@dataclass(frozen=True)
class Connections:
    """How many connections there are, and whether we may see whose."""

    QUESTION: ClassVar[str] = "database/connections"

    max_connections: int = 0
    superuser_reserved: int = 0
    reserved: int = 0
    sees_others: bool = False
    keeps_statements: bool = False
    used: float = 0.0

    @property
    def usable(self) -> int:
        """Those that an ordinary role can get."""
        return self.max_connections - self.superuser_reserved - self.reserved


@dataclass(frozen=True)
class Sessions:
    """Sessions of an application in one state."""

    QUESTION: ClassVar[str] = "database/sessions"

    application: str | None = None
    n: float = 0.0


@dataclass(frozen=True)
class Blocked:
    """A session that waits for a lock, and the pids in its way."""

    QUESTION: ClassVar[str] = "database/blocked"

    pid: int | None = None
    wait_s: float = 0.0
    blocked_by: str = ""
    application: str | None = None


@dataclass(frozen=True)
class Blocker:
    """A session that others wait for."""

    QUESTION: ClassVar[str] = "database/blockers"

    pid: int | None = None
    application: str | None = None
    state: str | None = None
    transaction_s: float | None = None


@dataclass(frozen=True)
class RowHolder(Blocker):
    """A session whose open transaction holds due rows: nobody waits for it, all step over them."""

    QUESTION: ClassVar[str] = "database/row_locks"

    n: float = 0.0


@dataclass(frozen=True)
class Transaction:
    """A transaction that has been open for long."""

    QUESTION: ClassVar[str] = "database/long_transactions"

    transaction_s: float = 0.0


@dataclass(frozen=True)
class Statement:
    """What the services ask the database, without its values, and how long that took since the statistics began."""

    QUESTION: ClassVar[str] = "database/statements"

    statement: str = ""
    calls: float = 0.0
    total_s: float = 0.0
    mean_s: float = 0.0
    since: pd.Timestamp | None = None


@dataclass(frozen=True)
class Place:
    """Who answers at the address: through a pooler, and on a replica how far behind it is."""

    pooled: bool = False
    behind_s: float | None = None


@dataclass(frozen=True)
class Pool:
    """A pool of PgBouncer: the clients of a role, and the server's connections that they share."""

    pooler: str = ""
    role: str = ""
    mode: str = ""
    waiting: int = 0
    servers_active: int = 0
    servers_idle: int = 0
    longest_wait_s: float = 0.0


def surroundings(rb: Context, db: Snapshot) -> Frames:
    """What stands between, and which server it is.

    Frames: place (fields of `Place`), pools (`sources.postgres.Postgres.pools`) where a pooler's console answers.
    """
    frames = {"place": row(pooled=db.place.pooled, behind_s=db.place.behind_s)}
    if db.place.pooled:
        with suppress(SourceError):
            frames["pools"] = rb.postgres.pools()
    return frames


def collect(rb: Context) -> Frames:
    """Catalog views: they answer under an ACCESS EXCLUSIVE lock too.

    Frames: `QUESTIONS`, application, row_locks, those of `surroundings`; statements where pg_stat_statements keeps
    them; pools alone where all wait in its queue.
    """
    parts = Parts()
    try:
        with rb.snapshot() as db:
            parts.answers |= {name: db.ask(f"database/{name}") for name in QUESTIONS}
            parts.answers["application"] = db.ask("database/application", role=facts_of(rb).database_role)
            if rows.one(parts.answers["connections"], Connections).keeps_statements:
                parts.answers["statements"] = db.ask(Statement.QUESTION, role=facts_of(rb).database_role)
            parts.answers |= surroundings(rb, db)
    except SourceError as e:
        if e.code == "queued":
            with suppress(SourceError):
                pools = rb.postgres.pools()
                if any(p.waiting for p in _of_the_services(pools, facts_of(rb).database_role)):
                    return {"pools": pools}
        raise
    with parts.part("rows") as answers, rb.snapshot() as db:
        answers["row_locks"] = db.ask(RowHolder.QUESTION)
    return parts.frames()


def _of_the_services(pools: pd.DataFrame | None, role: str) -> list[Pool]:
    """Only who waits for the services' connections holds them up; the runbook may wait for its own."""
    return [p for p in rows.each(pools, Pool) if p.role == role]


def judge(frames: Frames, given: Given) -> Finding:
    """A lock wait that lasts, or connections that run out, hold up every hop at once."""
    connections, blocker = rows.one(frames.get("connections"), Connections), rows.one(frames.get("blockers"), Blocker)
    blocked = rows.each(frames.get("blocked"), Blocked)
    holder = rows.one(frames.get("row_locks"), RowHolder)
    open_s = [t.transaction_s for t in rows.each(frames.get("long_transactions"), Transaction)]
    longest = max(open_s, default=0.0)
    used, usable, limits = connections.used, connections.usable, given.limits
    most, share_of_most = _biggest(frames, used)
    held_s = holder.transaction_s or 0.0
    place = rows.one(frames.get("place"), Place)
    if place.behind_s is not None:
        return _of_a_replica(used, usable, len(blocked))
    pools = _of_the_services(frames.get("pools"), facts_of(given).database_role)
    pool = max(pools, key=lambda p: p.longest_wait_s, default=Pool())
    queue = limits.value("pool.wait", pool.longest_wait_s)
    if "connections" not in frames and pool.waiting:
        # Nobody gets through, the runbook included, which has waited for its whole time.
        exhausted = given.speaks("database.pool_exhausted")
        return judged(_waits_in(pool), [queue], at_least=Status.CRITICAL, signals=exhausted, show=("pools",))
    wait = limits.value("locks.wait", max([held_s, *(b.wait_s for b in blocked)]))
    share = limits.value("connections.used", 100 * used / usable if usable > 0 else None)
    waits, full = wait.status is not Status.OK, share.status in (Status.WARNING, Status.CRITICAL)
    if waits and blocker.pid is None and holder.pid is not None:
        blocker = holder
    key = "blocked" if waits and blocker.pid is not None else "waits" if waits else "full" if full else "free"
    own_work = waits and blocker is holder and holder.state == "active" and _is_ours(holder.application or "-")
    key = "own_work" if own_work else "rows_held" if waits and blocker is holder else key
    application = rows.one(frames.get("application"), Application)
    kept_from = application.kept_from
    kept = Status.CRITICAL if kept_from else Status.OK
    blamed = any(s.about == "database" and s.weight > 0 for f in given.earlier for s in f.signals)
    held = _proposals(given, waits and not own_work, full, blocker, _in_front(blocked), most, share_of_most)
    queues = queue.status is not Status.OK
    tables = ("pools", "blockers", "blocked", "row_locks", "sessions", "long_transactions", "statements")
    shown = [n for n in tables if len(table(frames, n))]
    notes = [] if connections.sees_others else [say("database.denied")]
    if place.pooled and "pools" not in frames:
        notes.append(say("database.pool_closed"))
    if slowest := rows.each(frames.get("statements"), Statement):
        notes.append(_slowest(max(slowest, key=lambda s: s.mean_s)))
    if longest >= facts_of(given).lease_s:
        notes.append(say("database.long_transaction", longest=longest))
    return judged(
        _waits_in(pool)
        if queues and key == "free" and not kept_from
        else say(
            f"database.{kept_from or key}",
            blocked=len(blocked),
            wait=wait.value,
            pid=blocker.pid,
            application=blocker.application,
            state=blocker.state,
            transaction=blocker.transaction_s,
            rows=holder.n,
            used=used,
            usable=usable,
            share=share.value,
            most=most,
            share_of_most=share_of_most,
            role=application.role,
            lacks=application.lacks,
        ),
        [
            wait,
            share,
            *((queue,) if pools else ()),
            Value("locks.blocked_sessions", len(blocked), "sessions"),
            Value("connections.used_of_usable", f"{used:.0f} / {usable:.0f}"),
            Value("transactions.longest", longest, "s"),
        ],
        at_least=kept,
        notes=tuple(notes),
        signals=tuple(_signals(wait, share, queue, kept_from, blamed, given)),
        proposals=(remedies.look_at_role(given),)
        if kept_from
        else held or (_logs(given) if blamed or own_work else ()),
        next_sections=("2",) if kept_from else ("5.2",) if full or waits else (),
        show=(*(["application"] if kept_from else []), *shown),
    )


def on_error(e: SourceError, given: Given) -> Finding:
    """Being turned away for want of a connection is the answer to this step."""
    if e.code != "too_many_clients":
        return could_not_ask(e)
    return judged(
        say("database.no_connection", detail=e.detail),
        at_least=Status.CRITICAL,
        proposals=(proposals.list_sessions(given),),
        next_sections=("5.2",),
    )


def _biggest(frames: Frames, used: float) -> tuple[str, float]:
    """The application with most connections, and its share of all that are used, 0 to 1."""
    held: dict[str, float] = defaultdict(float)
    for sessions in rows.each(frames.get("sessions"), Sessions):
        held[sessions.application or "-"] += sessions.n
    if not held or not used:
        return "-", 0.0
    application, n = max(sorted(held.items()), key=lambda item: item[1])
    return application, min(n / used, 1.0)


def _logs(given: Given) -> tuple[Proposal, ...]:
    """Nothing here says why the services are refused: their logs do, in the database's own words."""
    return tuple(proposals.logs(given, service) for service in Facts.services)


def _slowest(s: Statement) -> Text:
    since = f"{s.since:%Y-%m-%d %H:%MZ}" if s.since is not None else None
    return say("database.slowest", statement=s.statement[:80], mean=1000 * s.mean_s, calls=s.calls, since=since)


def _waits_in(pool: Pool) -> Text:
    servers = pool.servers_active + pool.servers_idle
    return say(
        "database.pool_waits",
        waiting=pool.waiting,
        role=pool.role,
        pooler=pool.pooler,
        wait=pool.longest_wait_s,
        servers=servers,
    )


def _of_a_replica(used: float, usable: float, blocked: int) -> Finding:
    """Nobody who writes is there: it says nothing of the primary, which the target does not declare."""
    return unknown(
        "",
        Reason.NOT_CONFIGURED,
        say("database.replica", used=used, usable=usable, blocked=blocked),
        show=("blockers", "blocked", "sessions", "long_transactions"),
    )


def _signals(wait: Value, share: Value, queue: Value, kept_from: str, blamed: bool, given: Given) -> list[Signal]:
    free = wait.status is share.status is queue.status is Status.OK
    observed = {
        "database.read_only": kept_from == "read_only",
        "database.shut_out": kept_from == "shut_out",
        "database.lacks_rights": kept_from == "lacks_rights",
        "database.blocked_for_long": wait.status is Status.CRITICAL,
        "database.blocked": wait.status is Status.WARNING,
        # Many connections are a warning; none left is an outage.
        "database.no_connections": share.status is Status.CRITICAL,
        "database.few_connections": share.status is Status.WARNING,
        "database.pool_exhausted": queue.status is Status.CRITICAL,
        "database.pool_waits": queue.status is Status.WARNING,
        "database.free": free,
        # It may be free and refuse all the same: what the services themselves were told counts more.
        "database.takes_all": free and not kept_from and not blamed,
    }
    return [signal for name, seen in observed.items() if seen for signal in given.speaks(name)]


def _in_front(blocked: list[Blocked]) -> Blocked | None:
    """Who waits itself and is all that others wait for: its strong lock stands before theirs in the queue."""
    return next((b for b in blocked if b.pid is not None and any(o.blocked_by == str(b.pid) for o in blocked)), None)


def _proposals(
    given: Given,
    waits: bool,
    full: bool,
    blocker: Blocker,
    in_front: Blocked | None,
    most: str,
    share_of_most: float,
) -> tuple[Proposal, ...]:
    if waits and blocker.pid is not None:
        idle = (blocker.state or "").startswith("idle")
        end = proposals.end_blocker(given, blocker.pid, str(blocker.application), idle=idle)
        if in_front is None:
            return (end,)
        # The milder first: what has not begun loses nothing.
        return (proposals.cancel_waiting(given, in_front.pid or 0, str(in_front.application)), end)
    if full and share_of_most > given.number("connections.one_holder") and not _is_ours(most):
        # Slowing down our own workers restarts them, and where none is left they would not come in again.
        return (proposals.end_sessions(given, most),)
    return ()


def _is_ours(application: str) -> bool:
    """Whether that is how the pods, which give no name, appear: by their driver or their address."""
    return application == "PostgreSQL JDBC Driver" or bool(re.fullmatch(r"-|[0-9a-f.:]+", application))


def draw_sessions(frames: Frames, given: Given) -> charts.Chart | None:
    """Connections by application and state, against what an ordinary role can get."""
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
    figure, ax = charts.axes("Connections by application", "", f"connections, of {usable:.0f} usable")
    left = pd.Series(0.0, index=matrix.index)
    looks = zip(matrix.columns, (charts.BLUE, charts.ORANGE, charts.GREEN, charts.GREY, charts.RED), strict=False)
    for (state, colour), hatch in zip(looks, ("", "//", "..", "xx", "\\\\"), strict=False):
        ax.barh(
            matrix.index,
            matrix[state],
            left=left,
            color=colour,
            hatch=hatch,
            height=0.6,
            edgecolor="white",
            label=state,
        )
        left += matrix[state]
    ax.axvline(usable, color=charts.RED, linestyle=":", label=f"usable {usable:.0f}")
    ax.set_ylim(-0.8, max(len(matrix), 3) - 0.2)
    charts.legend(figure)
    most, n = str(matrix.index[-1]), float(left.iloc[-1])
    return charts.Chart(
        figure,
        say("database.alt_sessions", used=connections.used, usable=usable, most=most, n=n),
        () if connections.sees_others else (say("database.denied"),),
    )


CHECKS: tuple[Check, ...] = (Check("4.1.4", collect, judge, (draw_sessions,), on_error),)
