"""4.1.4: who waits for whom in the database, and how many connections are left.

It asks catalogs only, which answer while the jobs' table is locked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.checks.check import Check, could_not_ask
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Status, Value, judged, say
from runbook_lib.sources import SourceError

from . import remedies
from .look import Holder, Sessions

if TYPE_CHECKING:
    from runbook_lib.context import Context


@dataclass(frozen=True)
class Blocked:
    """A session that waits for a lock."""

    QUESTION: ClassVar = "database/blocked"
    pid: int = 0
    wait_s: float | None = None
    blocked_by: str = ""
    mode: str = ""
    object: str = ""
    application: str = ""
    query: str = ""


@dataclass(frozen=True)
class Blocker:
    """A session in the way of others that waits for nobody."""

    QUESTION: ClassVar = "database/blockers"
    pid: int = 0
    application: str = "-"
    role: str = ""
    state: str = ""
    blocks: int = 0
    transaction_s: float | None = None
    query: str = ""


def collect(rb: Context) -> Frames:
    """Catalog views only, so that it answers while the jobs' table is locked."""
    with rb.snapshot() as db:
        return {
            "blocked": db.ask("database/blocked"),
            "blockers": db.ask("database/blockers"),
            "holders": db.ask("database/holders"),
            "sessions": db.ask("workers/sessions", application=""),
        }


def judge(frames: Frames, given: Given) -> Finding:
    """A lock wait that lasts, rows that somebody keeps, or no connection left."""
    blocked, blockers = rows.each(frames.get("blocked"), Blocked), rows.each(frames.get("blockers"), Blocker)
    holders, seen = rows.each(frames.get("holders"), Holder), rows.one(frames.get("sessions"), Sessions)
    limits = given.limits
    wait = limits.value("locks.wait", max((b.wait_s or 0.0 for b in blocked), default=0.0))
    held = limits.value("transactions.held", max((h.transaction_s or 0.0 for h in holders), default=0.0))
    used = limits.value("connections.used", 100 * seen.used / seen.usable if seen.usable else None)
    first = blockers[0] if blockers else Blocker()
    keeper = max(holders, key=lambda h: h.transaction_s or 0.0, default=Holder())
    observation = (
        "database.waits_critical"
        if wait.status is Status.CRITICAL
        else "database.waits_warning"
        if wait.status is not Status.OK
        else "database.full"
        if used.status is Status.CRITICAL
        else "database.held"
        if held.status is not Status.OK
        else "database.free"
    )
    offered = []
    if wait.status is not Status.OK and first.pid:
        idle = first.state.startswith("idle")
        offered.append(remedies.end_blocker(given, first.pid, first.application, idle=idle))
    if used.status is Status.CRITICAL:
        offered.append(proposals.list_sessions(given))
    return judged(
        say(
            HEADLINES.get(observation, observation),
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
        signals=given.speaks(observation),
        proposals=tuple(offered),
        show=tuple(n for n in ("blockers", "blocked", "holders") if n in frames and len(frames[n])),
    )


HEADLINES = dict.fromkeys(("database.waits_warning", "database.waits_critical"), "database.waits")


def on_error(e: SourceError, given: Given) -> Finding:
    """Being turned away for want of a connection is the answer to this step."""
    if e.code != "too_many_clients":
        return could_not_ask(e)
    return judged(
        say("database.no_connection", detail=e.detail),
        at_least=Status.CRITICAL,
        proposals=(proposals.list_sessions(given),),
    )


CHECKS: tuple[Check, ...] = (Check("4.1.4", collect, judge, (), on_error),)
