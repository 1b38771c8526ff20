"""The steps of a first response that are alike for every system: where it is stuck, and the smallest safe step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import collect_each, judge_each
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Reason,
    Status,
    Value,
    hop_text,
    judged,
    proposal_text,
    say,
    unknown,
)

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


def place_check(step: str, places: Mapping[str, Check]) -> Check:
    """Return the check that asks all that these ask, and names the hop that their evidence supports."""

    def collect(rb: Context) -> Frames:
        return collect_each(rb, places)

    def judge(frames: Frames, given: JudgeInput) -> Finding:
        return judge_place(judge_each(frames, given, places), given)

    queries = dict.fromkeys(q for check in places.values() for q in check.queries)
    return Check(step, collect, judge, queries=tuple(queries))


def judge_place(found: Mapping[str, Finding], given: JudgeInput) -> Finding:
    """Judge the hop that the evidence of these findings supports; they are by step."""
    verdict = diagnosis.conclude(found.values(), given.catalog)
    place = verdict.stuck_at
    loudest = deciding_finding(found.values(), place)
    key = "place.stuck" if place else "place.undecided" if verdict.undecided else "place.well"
    if key == "place.well" and loudest.status is not Status.OK:
        key = "place.unseen" if loudest.status is Status.UNKNOWN else "place.unclear"
    return judged(
        say(key, place=place and hop_text(place), either=" / ".join(verdict.undecided), why=loudest.headline),
        [Value("stuck_at", place), *(Value(f"status.{step}", f.status.name) for step, f in found.items())],
        at_least=verdict.status,
        reason=next((f.reason for f in found.values() if f.counts and f.reason), None),
        notes=tuple(say("place.part", step=step, answer=f.headline) for step, f in found.items()),
        signals=tuple(s for f in found.values() for s in f.signals),
        hops=tuple(h for f in found.values() for h in f.hops),
        proposals=verdict.proposals,
        next_sections=_next(found, given.catalog.section_with("reach")),
        unseen=diagnosis.unique(u for f in found.values() for u in f.unseen),
    )


def deciding_finding(found: Iterable[Finding], place: str | None) -> Finding:
    """Return the finding with the most evidence for the place, else the worst one that counts."""
    found = list(found)
    counting = [f for f in found if f.counts] or found
    return max(counting, key=lambda f: (sum(s.weight for s in f.signals if s.about == place), f.status.rank))


def _next(found: Mapping[str, Finding], reach: str) -> tuple[str, ...]:
    """Return the sections whose steps are not OK; that of reachability if a source could not be read."""
    wrong = [step for step, f in found.items() if f.status in (Status.WARNING, Status.CRITICAL)]
    away = any(reach in f.next_sections for f in found.values())
    return (*diagnosis.sections_of(wrong), *([reach] if away else []))


def step_check(step: str, place: str) -> Check:
    """Return the check that names the first proposal of the step `place`; nothing is run."""

    def earlier(given: JudgeInput) -> Finding | None:
        return next((f for f in given.earlier if f.step == place), None)

    def collect(rb: Context) -> Frames:
        found = earlier(rb.given(step))
        offered = [{"command": p.offered, "section": p.section} for p in found.proposals] if found else []
        return {"proposed": pd.DataFrame(offered, columns=["command", "section"])}

    def judge(frames: Frames, given: JudgeInput) -> Finding:
        found = earlier(given)
        if found is None:
            return unknown("", Reason.SKIPPED, say("step.needs_place", step=place))
        return judge_smallest(found)

    return Check(step, collect, judge)


def judge_smallest(place: Finding) -> Finding:
    """Judge the smallest safe step: the first proposal that the place justifies."""
    if not place.proposals:
        well = place.status is Status.OK
        section = next(iter(place.next_sections), None)
        at_least = Status.OK if well else Status.WARNING
        return judged(say("step.nothing" if well else "step.look", section=section), at_least=at_least)
    first = place.proposals[0]
    return judged(
        say("step.do", title=proposal_text(first, "title"), section=first.section),
        [Value("proposals", len(place.proposals))],
        at_least=Status.WARNING,
        proposals=place.proposals,
        show=("proposed",),
    )
