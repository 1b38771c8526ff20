"""Section 3: who is affected, and what has to be true before it is over; where it is stuck is the engine's to tell."""

from __future__ import annotations

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Finding, Frames, Status, Value, judged, say

from ..queue import Queue
from .sample import read_sample


def judge_impact(queue: Queue, frames: Frames, given: JudgeInput) -> Finding:
    """Judge the impact: the objectives missed now, and how many rows wait since when."""
    seen = read_sample(frames, given, queue)
    failed, succeeded = seen.lately("failed"), seen.lately("succeeded")
    ended = None if failed is None or succeeded is None else failed + succeeded
    # A few failures are no share.
    counts = bool(ended) and given.limits["errors.failed"].reached(failed)
    success = 100.0 * (succeeded or 0) / ended if ended and counts else None
    held = seen.open.held if seen.overdue_s is not None else None
    now = {"QUE-A": seen.oldest_s, "QUE-B": success, "QUE-C": held}
    missed = [name for name, value in now.items() if value is not None and not given.slos[name].met(value)]
    oldest = given.limits.value("queue.oldest", seen.oldest_s)
    since = None if not seen.open.due or seen.oldest_s is None else given.as_of - pd.Timedelta(seconds=seen.oldest_s)
    return judged(
        say(
            "impact.missed" if missed else "impact.well" if oldest.status is Status.OK else "impact.begins",
            missed=", ".join(missed),
            n=len(missed),
            since=since,
            failed=failed or None,
            **seen.shown | {"held": held or None},
        ),
        [
            oldest,
            Value("impact.waiting", seen.open.due, "rows"),
            Value("impact.failed", failed, "rows"),
            Value("impact.held", held, "rows"),
            Value("impact.succeeded", success, "%"),
            Value("detected_by", given.detected_by or None),
        ],
        at_least=Status.CRITICAL if missed else Status.OK,
        notes=(say("impact.note", minutes=given.number("lately") / 60),),
        show=("backlog",),
    )


def judge_criteria(queue: Queue, frames: Frames, given: JudgeInput) -> Finding:
    """Judge the criteria of recovery: what has to be true before the incident is over, with what is true now."""
    seen, limits = read_sample(frames, given, queue), given.limits
    failing = sum(f.failed + f.tried for f in seen.failing)
    now = {"queue.oldest": seen.oldest_s, "queue.overdue": seen.overdue_s, "errors.failed": failing}
    left = [name for name, value in now.items() if limits[name].status(value) is not Status.OK]
    return judged(
        say(
            "criteria.left" if left else "criteria.met",
            left=", ".join(left),
            oldest=limits["queue.oldest"].warning,
            overdue=limits["queue.overdue"].warning,
            failed=limits["errors.failed"].warning,
        ),
        [Value(name, value, limits[name].unit) for name, value in now.items()],
        at_least=Status.WARNING if left else Status.OK,
    )
