"""Section 6: recovery, judged by the present flow; 6.2 to 6.4 repeat steps of section 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import stats
from runbook_lib.model.finding import LOOK_AGAIN, Finding, Frames, Hop, Status, Value, judged, replace, say

from . import held, sample, waiting

if TYPE_CHECKING:
    pass


def judge_backlog(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 6.1: the oldest waiting job is young, or more jobs begin than arrive."""
    seen = sample.read_sample(frames, given)
    oldest = given.limits["queue.oldest_due"]
    waits = sum(q.due + q.behind for q in seen.queues)
    flow = stats.flow_test(seen.per_minute("deferred"), seen.per_minute("begun"), 1.0, seen.due)
    small = oldest.status(seen.oldest_due_s) is Status.OK
    falls = flow.verdict == "draining"
    again = None if small else max(min(60 * (flow.eta_min or 1.0), 60.0), seen.settings.poll_interval_s)
    age = given.limits.value("queue.oldest_due", seen.oldest_due_s)
    values = [
        replace(age, threshold=None) if falls else age,  # what falls is on its way, however old its oldest is
        Value("queue.waiting", waits, "rows"),
        Value("flow.deferred", seen.per_minute("deferred"), "per_min"),
        Value("flow.begun", seen.per_minute("begun"), "per_min"),
    ]
    if again:
        values.append(Value(f"queue.{LOOK_AGAIN}", again, "s"))
    return judged(
        say(
            "over.young" if small else "over.falls" if falls else "over.waits",
            due=seen.due,
            oldest=seen.oldest_due_s,
            eta=flow.eta_min,
            z=flow.z,
        ),
        values,
        at_least=Status.OK if small else Status.WARNING,
        hops=(
            Hop(
                "queue",
                rate_in=seen.per_minute("deferred"),
                rate_out=seen.per_minute("begun"),
                waiting=seen.due,
                oldest_s=seen.oldest_due_s,
                late=not small and not falls,
            ),
        ),
        show=("queues",),
    )


CHECKS = (
    sample.check("6.1", judge_backlog, charts=(waiting.chart_flow,)),
    replace(waiting.ERRORS, step="6.2"),
    replace(held.ORPHANS, step="6.3"),
    replace(waiting.WORKERS, step="6.4"),
)
