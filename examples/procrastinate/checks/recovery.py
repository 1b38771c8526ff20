"""Section 6: recovery, judged by the present flow; 6.2 to 6.4 repeat steps of section 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import stats
from runbook_lib.model.finding import LOOK_AGAIN, Finding, Frames, Hop, Status, Value, judged, replace, say

from . import held, sample, waiting
from .waiting import NO_SAMPLE

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


def collect_backlog(rb: Context) -> Frames:
    """Collect 6.1: the shared sample."""
    return sample.shared_frames(rb, "6.1")


def judge_backlog(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 6.1: the oldest waiting job is young, or more jobs begin than arrive."""
    seen = sample.read_sample(frames, given)
    if seen is None:
        return NO_SAMPLE
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


CHECKS: tuple[Check, ...] = (
    Check("6.1", collect_backlog, judge_backlog, (waiting.chart_flow,)),
    Check("6.2", waiting.collect_errors, waiting.judge_errors),
    Check("6.3", held.collect_orphans, held.judge_orphans),
    Check("6.4", waiting.collect_workers, waiting.judge_workers),
)
