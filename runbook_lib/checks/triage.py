"""The steps of a first response that are alike for every system, from the findings of other steps.

Where it is stuck, the smallest safe action, what would count as recovered, and the record. A system names the checks
that each one asks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import collect_each, judge_each
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.evidence import unique
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Finding,
    Frames,
    Reason,
    Status,
    Text,
    Value,
    Verdict,
    hop_text,
    judged,
    proposal_text,
    replace,
    say,
    unknown,
    worst,
)

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

Sections = Callable[[Verdict, Mapping[str, Finding]], tuple[str, ...]]
_BAD = (Status.WARNING, Status.CRITICAL)
#: Instead of a fact that could not be read.
UNREAD = "unknown"


def compound_check(step: str, parts: Mapping[str, Check], judge: Callable[..., Finding], **more: Any) -> Check:
    """Return the check that runs all queries of these checks; `judge` gets their findings by step, and `more`."""

    def collect(rb: Context) -> Frames:
        return collect_each(rb, parts)

    def judge_parts(frames: Frames, given: JudgeInput) -> Finding:
        return judge(judge_each(frames, given, parts), given, **more)

    queries = dict.fromkeys(q for check in parts.values() for q in check.queries)
    return Check(step, collect, judge_parts, queries=tuple(queries))


# Where it is stuck ------------------------------------------------------------------------------------------


def judge_place(
    found: Mapping[str, Finding],
    given: JudgeInput,
    names: Mapping[str, str] | None = None,
    further: Sections = lambda *_: (),
) -> Finding:
    """Judge the hop that the evidence of these findings supports; they are by step.

    `names` are the parts whose failure delays the flow, by step: the others may be broken while everything flows.
    `further` are sections to read next beside those of the parts that are not OK.
    """
    # What waits by an earlier step counts, even if no part of this step is late.
    waits = [replace(f, status=Status.OK, values=()) for f in given.earlier]
    verdict = diagnosis.conclude([*waits, *found.values()], given.catalog)
    first = deciding_finding(found.values(), verdict.stuck_at)
    unseen = unique(u for f in found.values() for u in f.unseen)
    key = _place_key(verdict, first, bool(unseen), any(found[step].status in _BAD for step in names or ()))
    by_waits = verdict.undecided and first.status is Status.OK and waits
    return judged(
        say(
            key,
            place=_format_hops(*([verdict.stuck_at] if verdict.stuck_at else verdict.undecided)),
            names=", ".join(name for step, name in (names or {}).items() if found[step].status is Status.OK),
            unseen=", ".join(unique(u.source for u in unseen)),
            why=(waits[0] if by_waits else first).headline,
        ),
        [
            Value("stuck_at", verdict.stuck_at),
            *(Value(f"status.{step}", f.status.name) for step, f in found.items()),
            *{
                v.name: v for f in found.values() for v in f.values if v.threshold or v.name.endswith(LOOK_AGAIN)
            }.values(),
        ],
        at_least=verdict.status,
        reason=next((f.reason for f in found.values() if f.counts and f.reason), None),
        notes=tuple(say("response.part", step=step, answer=f.headline) for step, f in found.items()),
        signals=tuple(s for f in found.values() for s in f.signals),
        hops=tuple(h for f in found.values() for h in f.hops),
        proposals=verdict.proposals,
        next_sections=_next_sections(verdict, found, names or found, further(verdict, found), given),
        ended=verdict.ended,
    )


def _place_key(verdict: Verdict, first: Finding, unseen: bool, delayed: bool) -> str:
    if verdict.stuck_at:
        return "response.stuck"
    if verdict.undecided:
        return "response.undecided" if len(verdict.undecided) > 1 else "response.perhaps"
    if first.status is Status.OK:
        return "response.not_stuck_of_seen" if unseen else "response.not_stuck"
    if first.status is Status.UNKNOWN:
        return "response.not_seen"
    if verdict.ended:
        return "response.over"
    if first.decision and first.decision.case.endswith(".passed"):
        return "response.passed"
    return "response.unclear" if delayed else "response.flows_but"


def _format_hops(*hops: str) -> Text | None:
    """Return the name of one hop, or of several possible ones; None without a hop."""
    words: list[Text] = [hop_text(hop) for hop in hops]
    return reduce(lambda a, b: say("response.either", a=a, b=b), words) if words else None


def deciding_finding(found: Iterable[Finding], place: str | None) -> Finding:
    """Return the finding with the most evidence for the place, else the worst one that counts."""
    found = list(found)
    counting = [f for f in found if f.counts] or found
    return max(counting, key=lambda f: (sum(max(s.weight, 0) for s in f.signals if s.about == place), f.status.rank))


def _next_sections(
    verdict: Verdict, found: Mapping[str, Finding], flow: Collection[str], further: tuple[str, ...], given: JudgeInput
) -> tuple[str, ...]:
    """Return the sections to read next: of what is not OK; of reachability if a source could not be read."""
    reach = given.catalog.section_with("reach")
    if verdict.ended:
        return (given.catalog.section_with("recover"),)
    wrong = [step for step, f in found.items() if f.status in _BAD]
    away = [reach] if any(reach in f.next_sections for f in found.values()) else []
    if away and not (wrong or verdict.undecided):
        return (reach,)
    delayed, broken = [s for s in wrong if s in flow], [s for s in wrong if s not in flow]
    if verdict.status is not Status.OK and not wrong:
        delayed = [*flow]
    sections = diagnosis.sections_of
    return unique((*sections(delayed), *further, *sections(broken), *away))


# The smallest safe action -----------------------------------------------------------------------------------


def find_earlier(given: JudgeInput, step: str) -> Finding | None:
    """Return the finding of an earlier step of this run."""
    return next((f for f in given.earlier if f.step == step), None)


def action_check(step: str, place: str, read_on: Mapping[str, str] | None = None) -> Check:
    """Return the check that names the first proposal of the step `place`; nothing is run.

    If no command is justified, `read_on` names the section to read next, by hop.
    """

    def collect(rb: Context) -> Frames:
        found = find_earlier(rb.given(step), place)
        offered = [{"command": p.offered, "section": p.section} for p in found.proposals] if found else []
        return {"proposed": pd.DataFrame(offered, columns=["command", "section"])}

    def judge(frames: Frames, given: JudgeInput) -> Finding:
        return judge_action(find_earlier(given, place), given, read_on or {})

    return Check(step, collect, judge)


def judge_action(place: Finding | None, given: JudgeInput, read_on: Mapping[str, str]) -> Finding:
    """Judge the smallest safe action: the first proposal that the place justifies."""
    if place is None:
        return unknown("", Reason.SKIPPED, say("response.needs_place"))
    if place.proposals:
        first, *others = place.proposals
        also = (say("response.also", title=proposal_text(p, "title"), command=p.offered) for p in others)
        title = proposal_text(first, "title")
        return judged(
            say("response.do", title=title, command=first.offered, section=first.section),
            [Value("proposals", len(place.proposals))],
            at_least=Status.WARNING,
            notes=(say("response.nothing_run"), *also),
            proposals=(first,),
            show=("proposed",) if others else (),
        )
    none = [Value("proposals", 0)]
    if place.status is Status.OK or place.ended:
        key = "response.do_confirm" if place.ended else "response.do_nothing"
        return judged(say(key, section=given.catalog.section_with("recover")), none)
    hop = place.value("stuck_at")
    section = read_on.get(str(hop), next(iter(place.next_sections), given.catalog.section_with("flow")))
    return judged(
        say("response.do_look", place=_format_hops(str(hop)) if hop else None, section=section),
        none,
        at_least=Status.WARNING,
        notes=(say("response.nothing_run"),),
    )


# What would count as recovered ------------------------------------------------------------------------------


def judge_criteria(
    found: Mapping[str, Finding],
    given: JudgeInput,
    targets: Callable[[JudgeInput], Mapping[str, Text]],
    next_sections: Callable[[Mapping[str, Finding], JudgeInput], tuple[str, ...]] = lambda *_: (),
) -> Finding:
    """Judge which criteria of recovery hold at this moment; `targets` says of each step what would meet it."""
    unmet = [step for step, f in found.items() if f.status is not Status.OK]
    met = (say("response.criterion_met", step=s, answer=f.headline) for s, f in found.items() if s not in unmet)
    wanted = targets(given)
    return judged(
        say("response.criteria_unmet", n=len(unmet), steps=", ".join(unmet)) if unmet else say("response.criteria_met"),
        [Value(step, f.status.name) for step, f in found.items()],
        at_least=worst(f.status for f in found.values()),
        reason=next((f.reason for f in found.values() if f.reason), None),
        notes=(
            *(say("response.criterion_unmet", step=s, answer=found[s].headline, target=wanted[s]) for s in unmet),
            *met,
        ),
        next_sections=next_sections(found, given),
    )


# The record -------------------------------------------------------------------------------------------------


def record_check(step: str, impact: str, place: str, told: Mapping[str, str]) -> Check:
    """Return the check that lists what this run has found, with a line to paste: the text `response.paste`.

    `told` are the facts of the step `impact`: their names, and those of its values.
    """

    def collect(rb: Context) -> Frames:
        return {"record": record_rows(rb.given(step), impact, place, told)}

    return Check(step, collect, judge_record)


def record_rows(given: JudgeInput, impact: str, place: str, told: Mapping[str, str]) -> pd.DataFrame:
    """Return the facts of this moment to record, one row each: what, value."""
    verdict = diagnosis.conclude(given.earlier, given.catalog) if given.earlier else None
    facts: dict[str, Any] = {"looked_at": format_utc(given.as_of)}
    if counted := find_earlier(given, impact):
        facts |= {what: counted.value(name) for what, name in told.items()}
        if not facts.get("objectives_missed") and counted.status is Status.UNKNOWN:
            facts["objectives_missed"] = UNREAD
    if placed := find_earlier(given, place):
        ranked = [mode.id for mode in verdict.failure_modes if mode.score > 0] if verdict else []
        facts |= {"stuck_at": placed.value("stuck_at"), "failure_modes": ", ".join(ranked[:3])}
        facts["proposed"] = next((p.offered for p in placed.proposals), None)
    if verdict is not None:
        facts["status"] = verdict.status.name
    shown = [(what, "-" if value in (None, "") else _format_value(value)) for what, value in facts.items()]
    return pd.DataFrame(shown, columns=["what", "value"])


def _format_value(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def judge_record(frames: Frames, given: JudgeInput) -> Finding:
    """Show the recorded facts as a table, and as one line to paste; durations (`*_s`) are in the table only."""
    facts = frames.get("record")
    if facts is None or not {"what", "value"} <= set(facts.columns):
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="record"))
    line = dict(zip(facts["what"].astype(str), facts["value"].astype(str), strict=True))
    if "stuck_at" not in line or "objectives_missed" not in line:
        return unknown("", Reason.SKIPPED, say("response.needs_place"))
    words = {UNREAD: say("response.not_read"), "-": None}
    pasted = {what: words.get(value, value) for what, value in line.items() if not what.endswith("_s")}
    return judged(
        say("response.recorded", n=len(facts)),
        [Value("record.lines", len(facts))],
        notes=(say("response.paste", **pasted), say("response.decide")),
        show=("record",),
    )


def format_utc(moment: pd.Timestamp) -> str:
    """Return a moment to the second, in UTC."""
    return f"{moment.tz_convert('UTC'):%Y-%m-%dT%H:%M:%SZ}"
