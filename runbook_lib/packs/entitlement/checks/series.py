"""Count what came, left, was late or failed by steps of time, and ask each table for it once in a run.

A table is read for all the windows and all the counts that steps of a run use, so that they share one answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model.unread import UnreadError
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The queries of the flows by queue, each with the objective whose limit decides what is late.
FLOWS = {
    "outbox": ("recovery/outbox_flows", "ENT-C"),
    "notifications": ("recovery/notification_flows", "NOTI-B"),
}


@dataclass(frozen=True)
class FlowCounts:
    """Counts in steps of `step_s` seconds: a row a step, by the number of steps ago; the newest is 0."""

    steps: pd.DataFrame
    step_s: float

    @classmethod
    def of(cls, frame: pd.DataFrame | None, given: JudgeInput) -> FlowCounts:
        """Return the series of a frame with the column `tens_ago`; without columns if it was not read."""
        step_s = given.number("recovery.step")
        if frame is None or "tens_ago" not in frame:
            return cls(pd.DataFrame(), step_s)
        counts = frame.select_dtypes(exclude="datetimetz").apply(pd.to_numeric, errors="coerce")
        return cls(counts.groupby("tens_ago").sum(), step_s)

    def has(self, *columns: str) -> bool:
        """Return whether these columns were counted."""
        return {*columns} <= {*self.steps.columns}

    def count(self, column: str, seconds: float = math.inf, skip_s: float = 0.0) -> float:
        """Return the count of the last `seconds`, in whole steps, without the newest `skip_s` seconds.

        Raises UnreadError if the column was not counted.
        """
        if not self.has(column):
            raise UnreadError(column)
        ago_s = self.steps.index * self.step_s
        return float(self.steps.loc[(ago_s >= skip_s) & (ago_s < skip_s + seconds), column].sum())

    def now(self, column: str) -> float | None:
        """Return the count of the last `recovery.now` seconds; None if it was not counted."""
        return self.count(f"{column}_now", self.step_s) if self.has(f"{column}_now") else None


def ask_flows(rb: Context, db: Snapshot, queue: str) -> pd.DataFrame:
    """Return what came into a queue and left it in steps of ten seconds, and how many late. Raises SourceError.

    Sent notifications are counted if they were created in the last `recovery.created_before` hours; if that read is too
    expensive, in the last hour.
    """
    name, objective = FLOWS[queue]
    since = max(rb.since, rb.as_of - pd.Timedelta(minutes=rb.number("recovery.lookback")))
    ask = partial(db.ask_apart, name, since=since, limit_s=rb.catalog.slos[objective].number)
    if queue == "notifications":
        try:
            return ask(created_since=since - pd.Timedelta(hours=rb.number("recovery.created_before")))
        except SourceError as e:
            if e.code != "cost_gate":
                raise
    return ask(created_since=since - pd.Timedelta(hours=1))


def ask_per_minute(
    rb: Context, db: Snapshot, parts: FrameCollector, queue: str, since: pd.Timestamp | None = None, **wanted: str
) -> None:
    """Ask what came into a queue ("arrived") or left it ("n") in each minute; `wanted` has the column of each frame.

    What left is counted since `since`, by default the window's start; what came into the notifications, in the window.
    Frames: minute (time), n; of notifications also slow, first_slow, last_slow of those that were sent.
    """
    given = {"limit_s": rb.catalog.slos["NOTI-B"].number, "slow_s": rb.catalog.limits["backlog.oldest_due"].warning}
    begins = {"since": rb.since if since is None else since, "arrived_since": rb.since}
    try:
        every = db.ask_apart(f"{queue}/per_minute", **begins, **given)
    except SourceError as e:
        parts.failures |= dict.fromkeys(wanted, e)
        return
    for frame, column in wanted.items():
        own = every[every[column] > 0].reset_index(drop=True)
        left_out = "arrived" if column == "n" else [name for name in own if name not in ("minute", "arrived")]
        parts.answers[frame] = own.drop(columns=left_out).rename(columns={column: "n"})


def ask_given_up(rb: Context, db: Snapshot, parts: FrameCollector, frame: str, since: pd.Timestamp) -> None:
    """Ask for the notifications that were given up in each minute from `since` on. Frame: minute (time), n."""
    with parts.part(frame) as answers:
        every = db.ask_apart("notifications/failed_per_minute", since=longest_start(rb))
        answers[frame] = every[every["minute"] >= since.floor("min")] if len(every) else every


def longest_start(rb: Context) -> pd.Timestamp:
    """Return the start of the window or of the longest burn rate, whichever is earlier."""
    return min(rb.since, rb.as_of - pd.Timedelta(minutes=rb.number("burn.slow_long")))


def ask_since(rb: Context, db: Snapshot, parts: FrameCollector, query: str, **wanted: str) -> pd.DataFrame:
    """Ask a query for the rows since each of the usual moments; `wanted` has the moment of each frame.

    Return what it tells minute by minute, if it does.
    """
    spans = {name: (begin, rb.as_of) for name, begin in _begins(rb).items()}
    return ask_spans(db, parts, query, wanted, spans)


def ask_spans(
    db: Snapshot,
    parts: FrameCollector,
    query: str,
    wanted: Mapping[str, str],
    spans: Mapping[str, tuple[pd.Timestamp, pd.Timestamp]],
) -> pd.DataFrame:
    """Ask a query for all `spans` at once, which other steps share; `wanted` has the span of each frame.

    If all are too expensive, ask for those that are wanted. Return the rows of no span; empty if there are none.
    """
    for names in ([*spans], [*dict.fromkeys(wanted.values())]):
        begins, ends = ([spans[name][end] for name in names] for end in (0, 1))
        try:
            every = db.ask_apart(query, since=min(begins), begins=begins, ends=ends)
        except SourceError as e:
            parts.failures |= dict.fromkeys(wanted, e)
            if e.code != "cost_gate":
                break
            continue
        for frame, name in wanted.items():
            parts.failures.pop(frame, None)
            own = every["nth"] == names.index(name) + 1
            parts.answers[frame] = every[own].drop(columns=["nth", "minute"], errors="ignore").reset_index(drop=True)
        return every[every["nth"].isna()].drop(columns="nth")
    return pd.DataFrame()


def _begins(rb: Context) -> dict[str, pd.Timestamp]:
    """Return the beginnings of the usual periods: the last seconds, the last minute, now, and the run's window."""
    return {
        "lately": rb.as_of - pd.Timedelta(seconds=rb.number("publish.cohort_from")),
        "minute": rb.as_of - pd.Timedelta(minutes=rb.number("publish.now")),
        "now": rb.as_of - pd.Timedelta(minutes=rb.number("sli.now")),
        "window": rb.since,
    }
