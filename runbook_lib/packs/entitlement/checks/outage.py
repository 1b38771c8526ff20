"""Decide whether an outage is over, by the events that were published or sent since the last late or failed one.

An outage leaves late events and dead letters in every window that contains it. A pause of the outage looks like its end
at first. So the outage is over when the time since the last late or failed event is longer than each pause before, and
events were published or sent in time since then.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, OutageEnd, Text, say

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The flows, upstream first, each with the objective whose limit decides what is late.
FLOWS = {"published": "ENT-C", "sent": "NOTI-B"}


class SentStep(rows.Row, query="recovery/sent_steps"):
    """The events that were published, sent or given up in one step of ten seconds, `tens_ago` steps before the run.

    `late` of them were not in time or had failed before; `tried` had failed before.
    """

    what: str = ""
    tens_ago: int = 0
    n: float = 0.0
    late: float = 0.0
    tried: float = 0.0
    last_late: pd.Timestamp | None = None


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
    """Count the events of each flow in steps of ten seconds. Frames: published_steps, sent_steps where cheap."""
    since = rb.as_of - pd.Timedelta(minutes=rb.number("sli.now"))
    for flow in flows:
        limit_s = rb.catalog.slos[FLOWS[flow]].number
        parts.ask(db, {f"{flow}_steps": f"recovery/{flow}_steps"}, since=since, limit_s=limit_s)


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


def has_passed(frames: Frames, given: JudgeInput, *flows: str) -> bool:
    """Return whether events were late, but each flow is in time at this moment, and has been for some events.

    That may still be a pause of the outage.
    """
    late, enough = _measure_late_flows(frames, given, *flows), given.number("tries.pattern")
    flowing = all(_flows_now(rows.each(frames.get(f"{flow}_steps"), SentStep)) for flow in flows)
    return bool(late) and flowing and all(q.in_time >= enough for q in late.values())


def _measure_late_flows(frames: Frames, given: JudgeInput, *flows: str) -> dict[str, TimeSinceLate]:
    """Return the flows in which events were late, upstream first, and how long ago."""
    seen = {flow: measure_quiet(rows.each(frames.get(f"{flow}_steps"), SentStep), given) for flow in flows}
    return {flow: quiet for flow, quiet in seen.items() if quiet is not None}


def look_again_s(frames: Frames, given: JudgeInput, *flows: str) -> float | None:
    """Return the seconds until the end of the outage can be proven; None if enough time has passed."""
    late = _measure_late_flows(frames, given, *flows).values()
    return max((q.needed_s - q.for_s for q in late if q.for_s < q.needed_s), default=None)


def measure_quiet(steps: list[SentStep], given: JudgeInput) -> TimeSinceLate | None:
    """Measure a flow since its last late, failed or given-up event; None if there was none."""
    step_s, gap_s = given.number("recovery.step"), given.number("past.gap")
    late = sorted({s.tens_ago for s in steps if s.late})
    last = max((s.last_late for s in steps if s.late and s.last_late is not None), default=None)
    for_s = seconds_between(last, given.as_of)
    if last is None or for_s is None:
        return None
    pauses = [_pause_s(steps, a, b, step_s) for a, b in pairwise(_outage_steps(steps, given.number("outage.share")))]
    needed_s = max([given.number("outage.quiet"), *(p for p in pauses if p <= gap_s)])
    in_time = sum(s.n - s.late for s in steps if s.tens_ago < late[0])
    return TimeSinceLate(last, for_s, needed_s, in_time, any(s.tried for s in steps))


def _outage_steps(steps: list[SentStep], share: float) -> list[int]:
    """Return the steps, newest first, with at least `share` of late events: only these belong to an outage."""
    n, late = defaultdict[int, float](float), defaultdict[int, float](float)
    for step in steps:
        n[step.tens_ago] += step.n
        late[step.tens_ago] += step.late
    return sorted(ago for ago, each in late.items() if each and each >= share * n[ago])


def _pause_s(steps: list[SentStep], newer: int, older: int, step_s: float) -> float:
    """Return the length of the pause between two late steps; 0 if no event was in time between them."""
    between = sum(s.n > s.late for s in steps if newer < s.tens_ago < older)
    return (between + 2) * step_s if between else 0.0


def _flows_now(steps: list[SentStep]) -> bool:
    """Return whether an event was in time in the newest step."""
    return any(s.n > s.late for s in steps if s.tens_ago == 0)


def _format_proof(flow: str, since: TimeSinceLate) -> Text:
    """Return the proof that the outage is over: the flow that was late first is in time again."""
    if flow == "published":
        return say("outage.published", n=since.in_time)
    return say("outage.sent_again" if since.tried else "outage.sent_in_time", n=since.in_time)
