"""Decide whether an outage is over, by the events that were published or sent since the last late or failed one.

An outage leaves late events and dead letters in every window that contains it. A pause of the outage looks like its end
at first. So the outage is over when the time since the last late or failed event is longer than each pause before, and
events were published or sent in time since then.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
from runbook_lib.model.finding import Frames, OutageEnd, Text, say
from runbook_lib.packs.entitlement.checks.series import FlowCounts, ask_flows

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The flows, upstream first.
FLOWS = ("published", "sent")
#: The queue that the events of a flow leave.
QUEUES = {"published": "outbox", "sent": "notifications"}


@dataclass(frozen=True)
class TimeSinceLate:
    """A flow since its last late or failed event.

    `for_s` seconds have passed since then, `needed_s` are needed to prove the end; `in_time` events were in time since;
    `tried` is True if a try had failed.
    """

    since: pd.Timestamp
    for_s: float
    needed_s: float
    in_time: float
    tried: bool


def ask(rb: Context, db: Snapshot, parts: FrameCollector, *flows: str) -> None:
    """Count the events of each flow in steps of ten seconds. Frames: published_steps, sent_steps where cheap.

    Columns: tens_ago: steps before the run; n: events that were published, sent or given up; late: those that were not
    in time or had failed before; tried: those that had failed before; last_late: time.
    """
    columns = ["tens_ago", "n", "late", "tried", "last_late"]
    for flow in flows:
        with parts.part(f"{flow}_steps") as answers:
            found = ask_flows(rb, db, QUEUES[flow]).rename(columns={"gone": "n"})[columns]
            if flow == "sent":
                letters = db.ask_apart("recovery/dead_letters")
                letters = letters[letters["kind"] == "delivery"].rename(columns={"last": "last_late"})
                given_up = letters.assign(late=letters["n"], tried=letters["n"])[columns]
                found = pd.concat([each for each in (found, given_up) if len(each)] or [found])
            newest = found["tens_ago"] * rb.number("recovery.step") < 60 * rb.number("sli.now")
            answers[f"{flow}_steps"] = found[newest & (found["n"] > 0)].reset_index(drop=True)


def find_end(frames: Frames, given: JudgeInput, *flows: str) -> OutageEnd | None:
    """Return since when the flows are in time again, and the proof; None if it is not proven or nothing was late.

    It is proven if each flow `has_passed` its last late event for long enough.
    """
    late = _measure_late_flows(frames, given, *flows)
    if not has_passed(frames, given, *flows) or any(q.for_s < q.needed_s for q in late.values()):
        return None
    since, gap = max(q.since for q in late.values()), pd.Timedelta(seconds=given.number("past.gap"))
    # A delay upstream delays every flow after it. One that ended long before belongs to another outage.
    flow, first = next((flow, q) for flow, q in late.items() if since - q.since <= gap)
    return OutageEnd(since, _format_proof(flow, first))


def all_in_time(frames: Frames, given: JudgeInput, *flows: str) -> bool:
    """Return whether each flow is in time at this moment, and no event was late or failed for `outage.quiet` s."""
    flowing = all(_steps_in_time(frames.get(f"{flow}_steps"), given).get(0, 0) > 0 for flow in flows)
    late = _measure_late_flows(frames, given, *flows).values()
    return flowing and all(q.for_s >= given.number("outage.quiet") for q in late)


def has_passed(frames: Frames, given: JudgeInput, *flows: str) -> bool:
    """Return whether events were late, but each flow is in time at this moment, and has been for some events.

    That may still be a pause of the outage.
    """
    late, enough = _measure_late_flows(frames, given, *flows), given.number("tries.pattern")
    flowing = all(_steps_in_time(frames.get(f"{flow}_steps"), given).get(0, 0) > 0 for flow in flows)
    return bool(late) and flowing and all(q.in_time >= enough for q in late.values())


def _measure_late_flows(frames: Frames, given: JudgeInput, *flows: str) -> dict[str, TimeSinceLate]:
    """Return the flows in which events were late, upstream first, and how long ago."""
    seen = {flow: measure_quiet(frames.get(f"{flow}_steps"), given) for flow in flows}
    return {flow: quiet for flow, quiet in seen.items() if quiet is not None}


def look_again_s(frames: Frames, given: JudgeInput, *flows: str) -> float | None:
    """Return the seconds until the end of the outage can be proven; None if enough time has passed."""
    late = _measure_late_flows(frames, given, *flows).values()
    return max((q.needed_s - q.for_s for q in late if q.for_s < q.needed_s), default=None)


def measure_quiet(frame: pd.DataFrame | None, given: JudgeInput) -> TimeSinceLate | None:
    """Measure a flow since its last late, failed or given-up event; None if there was none."""
    in_time, series = _steps_in_time(frame, given), FlowCounts.of(frame, given)
    if frame is None or in_time.empty:
        return None
    last = pd.to_datetime(frame.loc[frame["late"] > 0, "last_late"], utc=True).max()
    for_s = seconds_between(last, given.as_of)
    if for_s is None:
        return None
    late = series.steps["late"][series.steps["late"] > 0]
    # Only the steps with this share of late events belong to an outage; a pause has steps with events in time.
    outage = late.index[late >= given.number("outage.share") * series.steps["n"][late.index]]
    flowing = in_time.index[in_time > 0]
    between = [((flowing > newer) & (flowing < older)).sum() for newer, older in pairwise(outage)]
    pauses = [(n + 2) * series.step_s for n in between if n]
    needed_s = max([given.number("outage.quiet"), *(p for p in pauses if p <= given.number("past.gap"))])
    since = float(in_time[in_time.index < late.index[0]].sum())
    return TimeSinceLate(last, for_s, needed_s, since, series.count("tried") > 0)


def _steps_in_time(frame: pd.DataFrame | None, given: JudgeInput) -> pd.Series[float]:
    """Return the events in time by step; empty if the flow was not read."""
    steps = FlowCounts.of(frame, given).steps
    return steps["n"] - steps["late"] if {"n", "late"} <= {*steps.columns} else pd.Series(dtype=float)


def _format_proof(flow: str, since: TimeSinceLate) -> Text:
    """Return the proof that the outage is over: the flow that was late first is in time again."""
    if flow == "published":
        return say("outage.published", n=since.in_time)
    return say("outage.sent_again" if since.tried else "outage.sent_in_time", n=since.in_time)
