"""What the steps propose beside what every system can: statements that show the queue's rows or columns."""

from __future__ import annotations

from runbook_lib.actions import proposals
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Proposal

from .queue import Queue


def see(given: JudgeInput, queue: Queue, name: str) -> Proposal:
    """Show rows by a query of this room ("see_held", "see_failing"), or the columns ("see_table")."""
    sql = f"\\d {queue.regclass}" if name == "see_table" else " ".join(queue.query(name).sql.split())
    return Proposal(name, proposals.psql(given, sql), "", {"table": queue.table})
