"""Section 7: what the table still tells of the time of the incident, for the postmortem."""

from __future__ import annotations

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import stats
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Value, judged, say, unknown
from runbook_lib.view.charts import Chart

from ..queue import COUNTED, Queue
from .work import describe_flow


class Minute(rows.Row, query="queues/history"):
    """What happened in a minute of the window; 0 is its first."""

    minute: int = 0
    arrived: int = 0
    succeeded: int = 0
    failed: int = 0


def _minutes(queue: Queue, frames: Frames, given: JudgeInput) -> dict[str, list[int]]:
    by_minute = {m.minute: m for m in rows.each(frames.get("history"), Minute)}
    every = [by_minute.get(n, Minute()) for n in range(given.window_minutes)]
    return {what: [getattr(m, what) for m in every] for what in COUNTED if queue.tells(what)}


def judge_history(queue: Queue, frames: Frames, given: JudgeInput) -> Finding:
    """Judge 7.1: how the flow went in the window, and the minute from which it was another."""
    counted = _minutes(queue, frames, given)
    if not counted:
        return unknown("", Reason.NO_DATA, say("history.no_times", table=queue.table))
    began = given.as_of - pd.Timedelta(minutes=given.window_minutes)
    changes = {what: stats.change_point(counts).index for what, counts in counted.items()}
    changed = {what: began + pd.Timedelta(minutes=n) for what, n in changes.items() if n is not None}
    totals = {what: sum(counted[what]) if what in counted else None for what in COUNTED}
    return judged(
        say("history.flow", minutes=given.window_minutes, **totals),
        [Value(f"history.{what}", total, "rows") for what, total in totals.items()],
        notes=(
            *(say(f"history.changed_{what}", at=at) for what, at in changed.items()),
            *([] if changed else [say("history.steady")]),
            say("history.blind"),
        ),
        show=("history",),
    )


def chart_history(queue: Queue, frames: Frames, given: JudgeInput) -> Chart | None:
    """Return the chart of the rows that arrived, succeeded and failed in each minute of the window."""
    return describe_flow(_minutes(queue, frames, given), "1 min", given.window_minutes)
