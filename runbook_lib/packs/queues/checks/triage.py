"""Section 3: who is affected, and what would count as recovered; the engine finds where it is stuck."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.triage import format_utc
from runbook_lib.model.finding import Finding, Status, Text, Value, judged, say

from .sample import QueueSample

#: The facts of the impact in the record, and its values.
RECORDED = {
    "detected_by": "detected_by",
    "onset": "impact.onset",
    "rows_waiting": "impact.waiting",
    "rows_failed": "impact.failed",
    "objectives_missed": "impact.missed",
}


def judge_impact(seen: QueueSample) -> Finding:
    """Judge the impact: the objectives missed now, and how many rows wait since when."""
    given, failed, succeeded = seen.given, seen.lately("failed"), seen.lately("succeeded")
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
            Value("impact.missed", ", ".join(missed) or None),
            Value("impact.onset", None if since is None else format_utc(since)),
            Value("detected_by", given.detected_by or None),
        ],
        at_least=Status.CRITICAL if missed else Status.OK,
        notes=(say("impact.note", minutes=given.number("lately") / 60),),
        show=("backlog",),
    )


def targets_of(steps: Mapping[str, str | None], given: JudgeInput) -> dict[str, Text]:
    """Return what would meet each criterion of recovery, by its step; `steps` has their ids."""
    limits = given.limits
    told = {
        "over": say("criteria.over", oldest=limits["queue.oldest"].warning),
        "errors_now": say("criteria.errors_now", failed=limits["errors.failed"].warning),
        "takers_now": say("criteria.takers_now", overdue=limits["queue.overdue"].warning),
    }
    return {step: told[name] for name, step in steps.items() if step and name in told}
