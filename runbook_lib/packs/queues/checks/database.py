"""Step 4.1.4: lock waits and connections, and who keeps rows of the table. It asks catalogs only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, replace, say, worst
from runbook_lib.packs.postgres import locks

from ..facts import Facts
from ..queue import Queue

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


class HoldingSession(locks.Blocker, query="queues/holders"):
    """A session whose open transaction has locks of the table."""


def collect(queue: Queue, rb: Context) -> Frames:
    """Collect what `locks.collect` does, and the frame holders."""
    frames = locks.collect(rb, queue.schemas)
    with rb.snapshot() as db:
        return frames | {"holders": db.ask(queue.query("holders"), table=queue.regclass)}


def judge(queue: Queue, frames: Frames, given: JudgeInput) -> Finding:
    """Judge 4.1.4: long waits, a lock of a whole table, no free connection, or rows locked for too long."""
    long_s = given.facts.longest_s if isinstance(given.facts, Facts) else locks.System.long_s
    found = locks.judge(frames, given, locks.System(long_s=long_s))
    holders = rows.each(frames["holders"], HoldingSession)
    held = given.limits.value("transactions.held", locks.longest(h.transaction_s for h in holders))
    found = replace(found, values=(*found.values, held), show=(*found.show, *(("holders",) if holders else ())))
    status = worst([found.status, held.status or Status.UNKNOWN])
    if status is found.status:
        return found
    keeper = next((h for h in holders if h.transaction_s == held.value), HoldingSession())
    hidden = status is Status.UNKNOWN
    return replace(
        found,
        status=status,
        reason=Reason.NO_DATA if hidden else None,
        headline=say(
            "database.denied" if hidden else "database.held",
            keeper=keeper.pid,
            keeps=keeper.transaction_s,
            table=queue.table,
        ),
        signals=() if hidden else given.evidence("database.held"),
    )
