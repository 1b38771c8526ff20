"""Section 7: what the table still tells of the time of the incident, for the postmortem."""

from __future__ import annotations

from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import stats
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Value, judged, say, unknown
from runbook_lib.packs.postmortem.incident import Span, span_of
from runbook_lib.view.charts import Chart

from ..queue import COUNTED, Queue
from .work import describe_flow


class Bucket(rows.Row, query="queues/history"):
    """What happened in a bucket of the window; 0 is its first."""

    bucket: int = 0
    arrived: int = 0
    succeeded: int = 0
    failed: int = 0


def _count(queue: Queue, frames: Frames, span: Span) -> dict[str, list[int]]:
    known = {b.bucket: b for b in rows.each(frames.get("history"), Bucket)}
    every = [known.get(n, Bucket()) for n in range(span.buckets)]
    return {what: [getattr(b, what) for b in every] for what in COUNTED if queue.tells(what)}


def judge_history(queue: Queue, frames: Frames, given: JudgeInput) -> Finding:
    """Judge 7.1: how the flow went in the window, and from when on it was another."""
    span = span_of(frames)
    counted = {} if span is None else _count(queue, frames, span)
    if span is None or not counted:
        return unknown("", Reason.NO_DATA, say("history.no_times", table=queue.table))
    changes = {what: stats.change_point(counts).index for what, counts in counted.items()}
    changed = {what: span.at(n) for what, n in changes.items() if n is not None}
    totals = {what: sum(counted[what]) if what in counted else None for what in COUNTED}
    return judged(
        say("history.flow", since=f"{span.since:%Y-%m-%d %H:%M}", until=f"{span.until:%Y-%m-%d %H:%M}", **totals),
        [Value(f"history.{what}", total, "rows") for what, total in totals.items()],
        notes=(
            *(say(f"history.changed_{what}", at=at) for what, at in changed.items()),
            *([] if changed else [say("history.steady")]),
            say("history.blind"),
        ),
        show=("history",),
    )


def chart_history(queue: Queue, frames: Frames, given: JudgeInput) -> Chart | None:
    """Return the chart of the rows that arrived, succeeded and failed in each bucket of the window."""
    span = span_of(frames)
    if span is None:
        return None
    return describe_flow(_count(queue, frames, span), span.bucket_s // 60, "min", "the end of the window")
