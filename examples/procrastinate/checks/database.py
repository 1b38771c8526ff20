"""Step 4.1.4: lock waits in the database, and free connections.

It asks catalogs only, which answer while the jobs' table is locked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runbook_lib.actions import proposals
from runbook_lib.checks.check import Check, unknown_from_error
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Status, Value, judged, say
from runbook_lib.sources.source import SourceError

from .sample import Holder, Sessions

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


class Blocked(rows.Row, query="database/blocked"):
    """A session that waits for a lock."""

    pid: int = 0
    wait_s: float | None = None
    blocked_by: str = ""
    mode: str = ""
    object: str = ""
    application: str = ""
    query: str = ""


class Blocker(rows.Row, query="database/blockers"):
    """A session that blocks others and waits for no lock itself."""

    pid: int = 0
    application: str = "-"
    role: str = ""
    state: str = ""
    blocks: int = 0
    transaction_s: float | None = None
    query: str = ""


def collect(rb: Context) -> Frames:
    """Read catalog views only, so that the step answers while the jobs' table is locked."""
    with rb.snapshot() as db:
        return {
            "blocked": db.ask("database/blocked"),
            "blockers": db.ask("database/blockers"),
            "holders": db.ask("database/holders"),
            "sessions": db.ask("workers/sessions", application=""),
        }


def _longest(seconds: list[float | None]) -> float | None:
    """Return the longest known time; 0 for no sessions, None if no time is known."""
    known = [s for s in seconds if s is not None]
    return max(known) if known else None if seconds else 0.0


def judge(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 4.1.4: long lock waits, rows locked for too long, or no free connection."""
    blocked, blockers = rows.each(frames["blocked"], Blocked), rows.each(frames["blockers"], Blocker)
    holders, seen = rows.each(frames["holders"], Holder), rows.one(frames["sessions"], Sessions)
    limits = given.limits
    wait = limits.value("locks.wait", _longest([b.wait_s for b in blocked]))
    held = limits.value("transactions.held", _longest([h.transaction_s for h in holders]))
    used = limits.value("connections.used", 100 * seen.used / seen.usable if seen.usable else None)
    first = blockers[0] if blockers else Blocker()
    keeper = next((h for h in holders if h.transaction_s == held.value), Holder())
    waits, keeps = (v.status in (Status.WARNING, Status.CRITICAL) for v in (wait, held))
    observation = (
        "database.waits_critical"
        if wait.status is Status.CRITICAL
        else "database.waits_warning"
        if waits
        else "database.full"
        if used.status is Status.CRITICAL
        else "database.held"
        if keeps
        else "database.free"
        if wait.status is held.status is Status.OK
        else ""
    )
    offered = []
    if waits and first.pid:
        idle = first.state.startswith("idle")
        offered.append(proposals.end_blocker(given, first.pid, first.application, idle=idle))
    if used.status is Status.CRITICAL:
        offered.append(proposals.list_sessions(given))
    return judged(
        say(
            HEADLINES.get(observation, observation or "database.denied"),
            blocked=len(blocked),
            wait=wait.value,
            pid=first.pid or None,
            application=first.application,
            state=first.state,
            used=seen.used,
            usable=seen.usable,
            keeper=keeper.pid,
            keeps=keeper.transaction_s,
        ),
        [wait, used, held, Value("locks.blocked_sessions", len(blocked), "sessions")],
        notes=() if seen.sees_others else (say("database.denied"),),
        signals=given.evidence(observation) if observation else (),
        proposals=tuple(offered),
        show=tuple(n for n in ("blockers", "blocked", "holders") if n in frames and len(frames[n])),
    )


HEADLINES = dict.fromkeys(("database.waits_warning", "database.waits_critical"), "database.waits")


def on_error(e: SourceError, given: JudgeInput) -> Finding:
    """Return CRITICAL if the server has no connection left: this error is itself the result of the step."""
    if e.code != "too_many_clients":
        return unknown_from_error(e, given.catalog)
    return judged(
        say("database.no_connection", detail=e.detail),
        at_least=Status.CRITICAL,
        proposals=(proposals.list_sessions(given),),
    )


CHECKS: tuple[Check, ...] = (
    Check("4.1.4", collect, judge, (), on_error, needs=("blocked", "blockers", "holders", "sessions")),
)
