"""Step 4.1.4: lock waits and connections. It asks catalogs only, which answer while the table is locked."""

from __future__ import annotations

from collections.abc import Iterable

from runbook_lib.actions import proposals
from runbook_lib.checks.check import unknown_from_error
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Proposal, Status, Value, judged, say
from runbook_lib.sources.source import SourceError

from ..queue import Queue

#: The queries of the step.
PARTS = "blocked blockers holders connections"
_BAD = (Status.WARNING, Status.CRITICAL)
#: The mode of a lock that keeps out even who only reads.
_EXCLUSIVE = "AccessExclusiveLock"


class WaitingSession(rows.Row, query="queues/blocked"):
    """A session that waits for a lock."""

    wait_s: float | None = None


class BlockingSession(rows.Row, query="queues/blockers"):
    """A session that blocks others and waits for no lock itself."""

    pid: int = 0
    application: str = "-"
    state: str = ""


class HoldingSession(rows.Row, query="queues/holders"):
    """A session whose open transaction has locks of the table."""

    pid: int = 0
    application: str = ""
    state: str = ""
    mode: str = ""
    transaction_s: float | None = None


class ConnectionUse(rows.Row, query="queues/connections"):
    """The connections that are taken, of those that an ordinary role can get."""

    sees_others: bool = False
    used: int = 0
    usable: int = 0


def _longest(seconds: Iterable[float | None]) -> float | None:
    """Return the longest known time; 0 for no sessions, None if no time is known."""
    every = list(seconds)
    known = [s for s in every if s is not None]
    return max(known) if known else None if every else 0.0


def judge(queue: Queue, frames: Frames, given: JudgeInput) -> Finding:
    """Judge 4.1.4: long lock waits, a lock of the whole table, rows locked for too long, or no free connection."""
    blocked, holders = rows.each(frames["blocked"], WaitingSession), rows.each(frames["holders"], HoldingSession)
    seen, limits = rows.one(frames["connections"], ConnectionUse), given.limits
    alone = [h for h in holders if h.mode == _EXCLUSIVE]
    # Who waits cancels and tries again where it has a lock_timeout, so a lock of the whole table counts by itself.
    wait = limits.value("locks.wait", _longest([*(b.wait_s for b in blocked), *(h.transaction_s for h in alone)]))
    held = limits.value("transactions.held", _longest(h.transaction_s for h in holders))
    used = limits.value("connections.used", 100 * seen.used / seen.usable if seen.usable else None)
    keeper = next((h for h in holders if h.transaction_s == held.value), HoldingSession())
    ways: list[BlockingSession | HoldingSession] = [*rows.each(frames["blockers"], BlockingSession), *alone]
    first = next(iter(ways), None)
    waits = wait.status in _BAD
    observation = (
        "database.waits_critical"
        if wait.status is Status.CRITICAL
        else "database.waits_warning"
        if waits
        else "database.full"
        if used.status is Status.CRITICAL
        else "database.held"
        if held.status in _BAD
        else "database.free"
        if wait.status is held.status is Status.OK
        else ""
    )
    offered: list[Proposal] = []
    if waits and first:
        idle = first.state.startswith("idle")
        offered.append(proposals.end_blocker(given, first.pid, first.application, idle=idle))
    if used.status is Status.CRITICAL:
        offered.append(proposals.list_sessions(given))
    return judged(
        say(
            "database.waits" if waits else observation or "database.denied",
            blocked=len(blocked),
            wait=wait.value,
            pid=first and first.pid,
            application=first and first.application,
            state=first and first.state,
            used=seen.used,
            usable=seen.usable,
            keeper=keeper.pid,
            keeps=keeper.transaction_s,
            table=queue.table,
        ),
        [wait, used, held, Value("locks.blocked_sessions", len(blocked), "sessions")],
        notes=() if seen.sees_others else (say("database.denied"),),
        signals=given.evidence(observation) if observation else (),
        proposals=tuple(offered),
        show=tuple(n for n in ("blockers", "blocked", "holders") if len(frames[n])),
    )


def on_error(e: SourceError, given: JudgeInput) -> Finding:
    """Return CRITICAL if the server has no connection left: this error is itself the result of the step."""
    if e.code != "too_many_clients":
        return unknown_from_error(e, given.catalog)
    said = say("database.no_connection", detail=e.detail)
    return judged(said, at_least=Status.CRITICAL, proposals=(proposals.list_sessions(given),))
