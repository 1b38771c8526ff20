"""Section 5.1: check the preconditions of a restart, its outcome and its effect; 5.1.1 is in `exceptions`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions.action import frames_of, perform
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import OutcomeRow, collect_each, judge_each, preconditions_hold, warnings
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, judged, overall, replace, say
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.actions import ACTIONS
from runbook_lib.packs.entitlement.checks import recovery
from runbook_lib.packs.entitlement.facts import facts_of, parameters_of

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

_EFFECT = {
    "backlog": recovery.BACKLOG,
    "errors": recovery.ERRORS,
}


# 5.1.2 ------------------------------------------------------------------------------------------------------


class RestartTarget(rows.Row):
    """The workload, and the rows that wait during its restart."""

    workload: str = ""
    name: str = "?"
    leased: float | None = None
    stream: str | None = None


def collect_restart(rb: Context) -> Frames:
    """5.1.2: read the preconditions, and the outcome of this run's restart.

    Frames: those of `action.frames_of`; about (workload, name, stream: text; leased: rows).
    """
    outcome = rb.outcomes.get("restart")
    if outcome is None:
        one = rb.of("").in_one_cluster()
        outcome = rb.outcomes["restart"] = perform(ACTIONS["restart"](one, workload=parameters_of(rb).workload), one)
    about = row(**outcome.what, leased=outcome.before.get("leased"), stream=facts_of(rb).streams.events)
    return {**frames_of(outcome), "about": about}


def judge_restart(frames: Frames, given: JudgeInput) -> Finding:
    """5.1.2: judge whether a restart is possible, was refused, has failed, or was done and verified."""
    outcome, about = rows.one(frames.get("outcome"), OutcomeRow), rows.one(frames.get("about"), RestartTarget)
    may, reason = preconditions_hold(frames), None
    if outcome.result == "done":
        status = Status.OK if outcome.verified else Status.CRITICAL
        key = "restart.done" if outcome.verified else "restart.done_not_seen"
    elif outcome.result == "failed":
        status, key = Status.CRITICAL, "restart.failed"
    elif outcome.result == "refused":
        status, key = Status.WARNING, "restart.refused"
    elif may and warnings(frames):
        status, key = Status.WARNING, "restart.warned"
    elif may:
        status, key = Status.OK, "restart.possible"
    else:
        status, key = Status.WARNING, "restart.not_advised"
        if may is None:
            status, reason = Status.UNKNOWN, Reason.UNREACHABLE
    headline = say(key, name=about.name, why=outcome.why, effect=outcome.effect)
    notes = [say("restart.leased_note", lease=facts_of(given).lease_s, leased=about.leased)]
    if about.workload == "notification":
        notes.append(say("restart.outage_note"))
    notes += [say("restart.start_note", name=about.name), say("restart.stream_note", stream=about.stream)]
    return judged(
        headline,
        at_least=status,
        reason=reason,
        notes=tuple(notes),
        next_sections=("6",) if outcome.result == "done" else (),
        show=("preconditions", "changes"),
    )


# 5.1.3 ------------------------------------------------------------------------------------------------------


def collect_effect(rb: Context) -> Frames:
    """5.1.3: read both flows; after a restart repeatedly, until they are healthy or the time is up.

    Frames: those of 6.1 and 6.2 as "part.frame"; look (at: time; waited_s: s; restarted: flag).
    """
    outcome = rb.outcomes.get("restart")
    patience = rb.parameters.wait_s if outcome and outcome.result == "done" else 0.0
    begun = time.monotonic()
    with rb.progress() as progress:
        while True:
            now = rb.present()
            frames = collect_each(now, _EFFECT)
            waited = time.monotonic() - begun
            frames["look"] = row(at=now.as_of, waited_s=waited, restarted=patience > 0)
            well = judge_effect(rb.masker.frames(frames), now.given()).status is Status.OK
            if well or waited >= patience:
                return frames
            progress(waited / patience, say("restart.waiting"))
            time.sleep(rb.number("looks.effect"))


class RestartSample(rows.Row):
    """The time of the sample, and how long after a restart it was taken."""

    at: pd.Timestamp | None = None
    waited_s: float = 0.0
    restarted: bool = False


def judge_effect(frames: Frames, given: JudgeInput) -> Finding:
    """5.1.3: judge whether the backlog and the error rate go down."""
    look = rows.first(frames.get("look"), RestartSample) or RestartSample()  # without one nothing was restarted either
    now = replace(given, as_of=look.at or given.as_of)
    found = judge_each({k: f for k, f in frames.items() if k != "look"}, now, _EFFECT)
    headlines = {name: f.headline for name, f in found.items()}
    status = overall(found.values())
    well = status is Status.OK or not look.restarted
    return judged(
        say("restart.recovered", **headlines) if well else say("restart.not_yet", waited=look.waited_s, **headlines),
        [replace(v, name=f"{name}.{v.name}") for name, f in found.items() for v in f.values],
        at_least=status,
        reason=next((f.reason for f in found.values() if f.reason), None),
        notes=tuple(n for f in found.values() for n in f.notes),
        hops=found["backlog"].hops,
        signals=tuple(s for f in found.values() for s in f.signals),
        next_sections=("6",),
    )


def chart_effect(frames: Frames, given: JudgeInput) -> Any:
    """Return the chart of arrivals and departures around the restart, in steps of ten seconds."""
    own = {k.removeprefix("backlog."): f for k, f in frames.items() if k.startswith("backlog.")}
    return recovery.chart_flows(own, given)


CHECKS = (
    Check("5.1.2", collect_restart, judge_restart),
    Check("5.1.3", collect_effect, judge_effect, charts=(chart_effect,)),
)
