"""Find when an incident began and ended from the tables' timestamps, and choose it among those of a span."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import stats
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.checks import past
from runbook_lib.packs.entitlement.retention import Oldest
from runbook_lib.packs.postmortem.incident import Moment, Span, onset_kept, span_of


@dataclass(frozen=True)
class IncidentTimes:
    """The incident by the tables: its start, when all queues were back to usual, and the span's other incidents."""

    began: Moment = field(default_factory=Moment)
    recovered: Moment = field(default_factory=Moment)
    incident: past.PastIncident | None = None
    others: tuple[past.PastIncident, ...] = ()


def course(frames: Frames, given: JudgeInput, detected: Moment) -> IncidentTimes:
    """Choose the incident of the span: the last one that began before `detected`, else the one with the largest queue.

    What was detected outside of the span is another incident. The start is the moment when a queue left its usual
    range, or the first event that was lost or given up; if there is neither, the onset that section 3 found.
    """
    span, gap = span_of(frames), pd.Timedelta(seconds=given.number("past.gap"))
    if span is not None and detected.at is not None and not span.since <= detected.at <= span.until:
        detected = Moment()
    found, harmed = past.incidents(past.episodes(frames, given), gap), _find_first_harm(frames, given, detected)
    known = [i for i in found if detected.at is None or i.since <= detected.at + gap]
    chosen = max(known, key=lambda i: i.since if detected.at is not None else i.waited, default=None)
    over = chosen.until if chosen and detected.at is not None else None
    # Harm after the end of the chosen one belongs to another incident, which was detected.
    if harmed.at is not None and (chosen is None or (over is not None and harmed.at > over + gap)):
        return IncidentTimes(harmed, others=tuple(found))
    if chosen is None:
        return IncidentTimes(onset_kept(frames), others=tuple(found))
    first = chosen.episodes[0]
    began = Moment(chosen.since, "before" if first.from_before else first.queue)
    if harmed.at is not None and harmed.at < chosen.since:
        began = harmed
    recovered = Moment(chosen.until, "returned") if chosen.until is not None else Moment()
    return IncidentTimes(began, recovered, chosen, tuple(i for i in found if i is not chosen))


def _find_first_harm(frames: Frames, given: JudgeInput, detected: Moment) -> Moment:
    """Return the first event of the first rise in lost or given-up events, not later than `detected`."""
    span = span_of(frames)
    if span is None:
        return Moment()
    last = min(span.of(detected.at) + 2, span.buckets) if detected.at is not None else span.buckets
    found: list[tuple[pd.Timestamp, str]] = []
    letters = span.counts(frames, "letters", "delivery", "subscriber")
    for name, counts, column, first, how in (
        ("unprocessed", count_never_notified(frames, given, span), "surely", "first_late", "lost"),
        ("letters", letters, "delivery", "first_letter", "letters"),
        ("letters", letters, "subscriber", "first_letter", "letters"),
    ):
        at = None if counts is None else find_rise(counts[column].loc[0 : last - 1].to_numpy())
        if at is not None:
            found.append((_read_first_time(frames, name, at, first) or span.at(at), how))
    return Moment(*min(found)) if found else Moment()


def count_never_notified(frames: Frames, given: JudgeInput, span: Span) -> pd.DataFrame | None:
    """Return the events of each bucket from -1 on that never became a notification; None if they were not read.

    Columns: surely, doubtful (published ones that may have been processed: their rows may be deleted).
    """
    counts = span.counts(frames, "unprocessed", "n", "published")
    if counts is None:
        return None
    oldest, now = rows.first(frames.get("deletions"), Oldest), rows.one(frames.get("reach"), past.OldestRows).now
    n, keep_d = int(counts["published"].sum()), given.number("retention.notifications")
    until = oldest.doubtful_until(n, now or given.as_of, keep_d) if oldest else None
    may_be = pd.Series([until is not None and span.at(int(bucket)) <= until for bucket in counts.index], counts.index)
    doubtful = counts["published"] * may_be
    return pd.DataFrame({"surely": counts["n"] - doubtful, "doubtful": doubtful})


def find_strongest_change(counts: Any, *, up: bool) -> int | None:
    """Return the bucket of the strongest change upwards or downwards; None if there is none.

    Buckets after a stronger change in the other direction are ignored.
    """
    change = stats.change_point(counts)
    if change.index is None:
        return None
    return (
        change.index if (change.after > change.before) == up else find_strongest_change(counts[: change.index], up=up)
    )


def find_rise(counts: Any) -> int | None:
    """Return the bucket in which the strongest rise begins, its build-up included; None if there is none."""
    at = find_strongest_change(counts, up=True)
    usual = float(np.median(counts[:at])) if at else 0.0
    while at and counts[at - 1] > 2 * usual:
        at -= 1
    return at


def _read_first_time(frames: Frames, name: str, bucket: int, column: str) -> pd.Timestamp | None:
    found = table(frames, name, "bucket", column)
    times = pd.to_datetime(found.loc[found["bucket"] == bucket, column], utc=True).dropna()
    return pd.Timestamp(times.min()) if len(times) else None
