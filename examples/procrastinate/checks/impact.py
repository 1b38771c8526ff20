"""Step 3.1: which objectives are missed, and how many jobs wait since when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Status, Value, judged, say

from ..facts import facts
from . import sample, waiting
from .waiting import Task

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


class Waits(rows.Row, query="events/waits"):
    """The waiting time of recently begun jobs, in seconds: 95 % waited less."""

    p95_s: float | None = None


def collect_impact(rb: Context) -> Frames:
    """Collect 3.1: waiting times and ends of the last minutes."""
    with rb.snapshot() as db:
        return {
            "waits": db.ask("events/waits", within_s=rb.number("lately")),
            "tasks": db.ask("events/tasks", most=sample.row_limit(rb), within_s=rb.number("lately")),
        }


def judge_impact(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 3.1: the objectives missed now, and how many jobs wait since when."""
    seen = sample.read_sample(frames, given)
    waits, tasks = rows.one(frames.get("waits"), Waits), rows.each(frames.get("tasks"), Task)
    ended, failures = sum(t.succeeded + t.failed for t in tasks), sum(t.failed for t in tasks)
    # What still waits is in no percentile of what was begun.
    waited = max((s for s in (waits.p95_s, seen.oldest_due_s if seen.due else None) if s is not None), default=None)
    success = 100 * (ended - failures) / ended if ended and facts(given).delete_jobs == "never" else None
    orphans = sum(q.doing - q.served for q in seen.queues)
    waiting = sum(q.due + q.behind for q in seen.queues)
    now = {"JOB-A": waited, "JOB-B": success, "JOB-C": orphans}
    missed = [name for name, value in now.items() if value is not None and not given.slos[name].met(value)]
    oldest = given.limits.value("queue.oldest_due", seen.oldest_due_s)
    return judged(
        say(
            "impact.missed" if missed else "impact.well" if oldest.status is Status.OK else "impact.begins",
            missed=", ".join(missed),
            n=len(missed),
            due=waiting,
            oldest=seen.oldest_due_s if seen.due else None,
            tried=sum(q.tried for q in seen.queues),
            failures=failures,
            orphans=orphans,
        ),
        [
            oldest,
            Value("impact.waiting", waiting, "rows"),
            Value("impact.failed", failures, "rows"),
            Value("impact.without_a_sign", orphans, "rows"),
            Value("impact.waited_p95", waits.p95_s, "s"),
            Value("impact.succeeded", success, "%"),
            Value("detected_by", given.detected_by or None),
        ],
        at_least=Status.CRITICAL if missed else Status.OK,
        notes=(say("impact.note", minutes=given.number("lately") / 60),),
        show=("queues",),
    )


IMPACT = sample.check("3.1", judge_impact, collect_impact, charts=(waiting.chart_flow,))
