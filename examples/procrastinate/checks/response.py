"""Section 3: the first response. Who is affected, where it is stuck, and the smallest safe step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import collect_each, judge_each
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.model import rows
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

from ..facts import facts
from . import database, held, sample, waiting
from .waiting import Task

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: All that 4.1 and 4.2 ask, in the order in which a job passes them.
PLACES = {check.step: check for check in (*waiting.CHECKS, *database.CHECKS, *held.CHECKS)}


class Waits(rows.Row, query="events/waits"):
    """The waiting time of recently begun jobs, in seconds: 95 % waited less."""

    p95_s: float | None = None


# 3.1 Impact -------------------------------------------------------------------------------------------------


def collect_impact(rb: Context) -> Frames:
    """Collect 3.1: waiting times and ends of the last minutes."""
    with rb.snapshot() as db:
        return {
            "waits": db.ask("events/waits", within_s=rb.number("lately")),
            "tasks": db.ask("events/tasks", most=sample.row_limit(rb), within_s=rb.number("lately")),
        }


def judge_impact(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 3.1: the objectives missed now, and how many jobs wait since when."""
    seen = sample.read_sample(frames, given)
    waits, tasks = rows.one(frames.get("waits"), Waits), rows.each(frames.get("tasks"), Task)
    ended, failures = sum(t.succeeded + t.failed for t in tasks), sum(t.failed for t in tasks)
    # What still waits is in no percentile of what was begun.
    waited = max((s for s in (waits.p95_s, seen.oldest_due_s if seen.due else None) if s is not None), default=None)
    success = 100 * (ended - failures) / ended if ended and facts(given).delete_jobs == "never" else None
    orphans = sum(q.doing - q.served for q in seen.queues)
    waiting = sum(q.due + q.behind for q in seen.queues)
    now = {"JOB-A": waited, "JOB-B": success, "JOB-C": orphans}
    missed = [name for name, value in now.items() if value is not None and not given.slos[name].met(value)]
    oldest = given.limits.value("queue.oldest_due", seen.oldest_due_s)
    return judged(
        say(
            "impact.missed" if missed else "impact.well" if oldest.status is Status.OK else "impact.begins",
            missed=", ".join(missed),
            n=len(missed),
            due=waiting,
            oldest=seen.oldest_due_s if seen.due else None,
            tried=sum(q.tried for q in seen.queues),
            failures=failures,
            orphans=orphans,
        ),
        [
            oldest,
            Value("impact.waiting", waiting, "rows"),
            Value("impact.failed", failures, "rows"),
            Value("impact.without_a_sign", orphans, "rows"),
            Value("impact.waited_p95", waits.p95_s, "s"),
            Value("impact.succeeded", success, "%"),
            Value("detected_by", given.detected_by or None),
        ],
        at_least=Status.CRITICAL if missed else Status.OK,
        notes=(say("impact.note", minutes=given.number("lately") / 60),),
        show=("queues",),
    )


# 3.2 Where it is stuck --------------------------------------------------------------------------------------


def collect_place(rb: Context) -> Frames:
    """Collect 3.2: the frames of 4.1 and 4.2; each part may fail alone."""
    return collect_each(rb, PLACES)


def judge_place(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 3.2: the hop that the evidence of 4.1 and 4.2 supports."""
    found = judge_each(frames, given, PLACES)
    verdict = diagnosis.conclude(found.values(), given.catalog)
    loudest = max(found.values(), key=lambda f: (_weight(f, verdict.stuck_at), f.status.rank))
    place = verdict.stuck_at
    key = "place.stuck" if place else "place.undecided" if verdict.undecided else "place.well"
    if key == "place.well" and loudest.status is not Status.OK:
        key = "place.unseen" if loudest.status is Status.UNKNOWN else "place.unclear"
    return judged(
        say(
            key,
            place=hop_text(place) if place else None,
            either=" / ".join(verdict.undecided),
            why=loudest.headline,
        ),
        [Value("stuck_at", place), *(Value(f"status.{step}", f.status.name) for step, f in found.items())],
        at_least=verdict.status,
        reason=next((f.reason for f in found.values() if f.counts and f.reason), None),
        notes=tuple(say("place.part", step=step, answer=f.headline) for step, f in found.items()),
        signals=tuple(s for f in found.values() for s in f.signals),
        hops=tuple(h for f in found.values() for h in f.hops),
        proposals=verdict.proposals,
        next_sections=_next(found),
        unseen=tuple(dict.fromkeys(u for f in found.values() for u in f.unseen)),
    )


def _weight(f: Finding, place: str | None) -> float:
    return max((s.weight for s in f.signals if s.about == place), default=0.0)


def _next(found: dict[str, Finding]) -> tuple[str, ...]:
    """Return the sections whose steps are not OK; section 2 if a source could not be read."""
    wrong = dict.fromkeys(step[:3] for step, f in found.items() if f.status in (Status.WARNING, Status.CRITICAL))
    silent = any("2" in f.next_sections for f in found.values())
    return (*wrong, *(["2"] if silent else []))


# 3.3 The smallest safe step ---------------------------------------------------------------------------------


def _place(given: JudgeInput) -> Finding | None:
    return next((f for f in given.earlier if f.step == "3.2"), None)


def collect_step(rb: Context) -> Frames:
    """Collect 3.3: nothing, since it judges the frames of 3.2."""
    place = _place(rb.given("3.3"))
    offered = [{"command": p.command, "section": p.section} for p in place.proposals] if place else []
    return {"proposed": pd.DataFrame(offered, columns=["command", "section"])}


def judge_step(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 3.3: the first proposal that 3.2 justifies; nothing is run."""
    place = _place(given)
    if place is None:
        return unknown("", Reason.SKIPPED, say("step.needs_place"))
    if not place.proposals:
        well = place.status is Status.OK
        section = next(iter(place.next_sections), "4.1")
        return judged(
            say("step.nothing" if well else "step.look", section=section),
            at_least=Status.OK if well else Status.WARNING,
        )
    first = place.proposals[0]
    return judged(
        say("step.do", title=proposal_text(first, "title"), section=first.section),
        [Value("proposals", len(place.proposals))],
        at_least=Status.WARNING,
        proposals=place.proposals,
        show=("proposed",),
    )


CHECKS: tuple[Check, ...] = (
    sample.check("3.1", judge_impact, collect_impact, charts=(waiting.chart_flow,)),
    Check("3.2", collect_place, judge_place),
    Check("3.3", collect_step, judge_step),
)
