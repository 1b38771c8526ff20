"""Section 6: recovery, judged by the present flow; 6.2 to 6.4 repeat steps of section 4."""

from __future__ import annotations

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Finding, Frames, replace
from runbook_lib.packs.queues.checks.work import recovery

from . import held, sample, waiting


def judge_backlog(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 6.1: the oldest waiting job is young, or more jobs begin than arrive."""
    seen = sample.read_sample(frames, given)
    rates = (seen.per_minute("deferred"), seen.per_minute("begun"))
    found = recovery(given, seen.due, seen.oldest_due_s, *rates, limit="queue.oldest_due")
    return replace(found, show=("queues",))


CHECKS = (
    sample.check("6.1", judge_backlog, charts=(waiting.chart_flow,)),
    replace(waiting.ERRORS, step="6.2"),
    replace(held.ORPHANS, step="6.3"),
    replace(waiting.WORKERS, step="6.4"),
)
