"""When an incident began and when it was over, by the tables' own timestamps, and which one of a span it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from runbook_lib.analysis import stats
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.checks import past
from runbook_lib.packs.entitlement.checks.incident import Moment, onset_kept
from runbook_lib.packs.entitlement.checks.past import span_of


@dataclass(frozen=True)
class Course:
    """How the incident went by the tables: when it began, when all queues were as usual again, which incident it is."""

    began: Moment = field(default_factory=Moment)
    recovered: Moment = field(default_factory=Moment)
    incident: past.Incident | None = None
    others: tuple[past.Incident, ...] = ()


def course(frames: Frames, given: Given, detected: Moment) -> Course:
    """The incident of the span: the last that had begun when it was noticed, else the one in which most waited.

    It begins where a queue leaves its ordinary range, or with the first event that was lost or given up; otherwise it
    began as section 3 saw it.
    """
    gap = pd.Timedelta(seconds=given.number("past.gap"))
    found, harmed = past.incidents(past.spells(frames, given), gap), _harmed(frames, given, detected)
    known = [i for i in found if detected.at is None or i.since <= detected.at + gap]
    chosen = max(known, key=lambda i: i.since if detected.at is not None else i.waited, default=None)
    if harmed.at is not None and (chosen is None or _apart(chosen, harmed.at, detected, gap)):
        return Course(harmed, others=tuple(found))
    if chosen is None:
        return Course(onset_kept(frames), others=tuple(found))
    first = chosen.spells[0]
    began = Moment(chosen.since, "before" if first.from_before else first.queue)
    if harmed.at is not None and harmed.at < chosen.since:
        began = harmed
    recovered = Moment(chosen.until, "returned") if chosen.until is not None else Moment()
    return Course(began, recovered, chosen, tuple(i for i in found if i is not chosen))


def _apart(incident: past.Incident, harmed: pd.Timestamp, detected: Moment, gap: pd.Timedelta) -> bool:
    """Whether what was harmed is of another incident, and that the one that was noticed."""
    if detected.at is None:
        return False
    return incident.until is not None and harmed > incident.until + gap


def _harmed(frames: Frames, given: Given, detected: Moment) -> Moment:
    """The first event of the first rise of those that were lost or given up, at the latest when it was noticed."""
    span = span_of(frames)
    if span is None:
        return Moment()
    last = min(span.of(detected.at) + 2, span.buckets) if detected.at is not None else span.buckets
    found: list[tuple[pd.Timestamp, str]] = []
    for name, column, first, how in (
        ("unprocessed", "n", "first_late", "lost"),
        ("letters", "delivery", "first_letter", "letters"),
        ("letters", "subscriber", "first_letter", "letters"),
    ):
        counts = span.counts(frames, name, column)
        at = None if counts is None else rise(counts[column].loc[0 : last - 1].to_numpy())
        if at is not None:
            found.append((_first(frames, name, at, first) or span.at(at), how))
    return Moment(*min(found)) if found else Moment()


def strongest(counts: Any, *, up: bool) -> int | None:
    """The bucket of the strongest change in that direction; what came after a change in the other one is left out."""
    change = stats.change_point(counts)
    if change.index is None:
        return None
    return change.index if (change.after > change.before) == up else strongest(counts[: change.index], up=up)


def rise(counts: Any) -> int | None:
    """The bucket in which a rise begins: the strongest one, and what leads up to it."""
    at = strongest(counts, up=True)
    usual = float(np.median(counts[:at])) if at else 0.0
    while at and counts[at - 1] > 2 * usual:
        at -= 1
    return at


def _first(frames: Frames, name: str, bucket: int, column: str) -> pd.Timestamp | None:
    found = table(frames, name, "bucket", column)
    times = pd.to_datetime(found.loc[found["bucket"] == bucket, column], utc=True).dropna()
    return pd.Timestamp(times.min()) if len(times) else None
