"""Snapshots of runs and the differences between two of them; pure functions.

A snapshot is the result of a run, or of a run that was judged again. A number differs if its status is another, or if
the difference is larger than `SPREADS` spreads of a Poisson count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from runbook_lib.model.finding import Finding, Reason, Status, Verdict

Key = tuple[str, str]
Kind = Literal["verdict", "mode", "step", "hop", "value", "setting"]

#: The numbers of a hop on the strip, with their units.
_HOP_UNITS = {"rate_in": "1/min", "rate_out": "1/min", "waiting": "rows", "oldest_s": "s"}
#: The frame of a finding that holds a configuration, its columns, and the only setting of an item that was locked.
CONFIGURATION = "configuration"
SETTING_COLUMNS = ["source", "item", "setting", "value"]
LOCKED = "(locked)"
#: The columns of `drift`.
DRIFT_COLUMNS = ["item", "setting", "before", "now"]
#: Units that are no counts and have no Poisson spread.
_SHARES = ("ratio", "share")
#: A difference of more spreads is not chance: it happens once in 30,000 samples of a Poisson count.
SPREADS = 4.0


@dataclass(frozen=True)
class Measurement:
    """A number of a step or a hop, and its status where it was compared with limits."""

    value: float
    unit: str = ""
    status: Status | None = None


@dataclass(frozen=True)
class RunSnapshot:
    """The result of a run, to compare: numbers by step or hop and name, and the status of each step that was run."""

    name: str
    numbers: Mapping[Key, Measurement]
    steps: Mapping[str, Status]
    verdict: Verdict
    window_minutes: int | None = None
    """The length of its window; None if it is not known."""
    configuration: pd.DataFrame | None = field(default=None, compare=False)
    """The configuration that it read (`SETTING_COLUMNS`); None if it read none."""

    @property
    def status(self) -> Status:
        """The status of its verdict."""
        return self.verdict.status


@dataclass(frozen=True)
class Difference:
    """One difference. `where` is a step, a hop or a failure mode, `name` a number of it; what was not there is None."""

    kind: Kind
    where: str
    before: Any
    after: Any
    name: str = ""
    unit: str = ""


def take_snapshot(
    name: str, findings: Iterable[Finding], verdict: Verdict, window_minutes: int | None = None
) -> RunSnapshot:
    """Return the snapshot of a run. `name` is for people."""
    findings = tuple(findings)
    numbers = {
        (f.step, v.name): Measurement(float(v.value), v.unit, v.status)
        for f in findings
        for v in f.values
        if not isinstance(v.value, bool | str) and v.value is not None and v.value == v.value
    }
    for hop in verdict.hops:
        seen = ((name, getattr(hop, name), unit) for name, unit in _HOP_UNITS.items())
        numbers |= {
            (hop.name, name): Measurement(float(value), unit) for name, value, unit in seen if value is not None
        }
    steps = {f.step: f.status for f in findings if f.reason is not Reason.NOT_RUN}
    configuration = next((f.frames[CONFIGURATION] for f in findings if CONFIGURATION in f.frames), None)
    return RunSnapshot(name, numbers, steps, verdict, window_minutes, configuration)


def difference(before: RunSnapshot, after: RunSnapshot, *, same_evidence: bool = False) -> tuple[Difference, ...]:
    """Return the differences between two snapshots: first the window, then the verdict, steps, numbers and settings.

    For two moments, a step that was UNKNOWN before has not changed, and verdicts are compared by status and hop. With
    `same_evidence`, every step with another status has changed, and verdicts are compared by their `conclusion`.
    """
    return (
        *_verdict_differences(before, after, same_evidence),
        *_number_differences(before, after),
        *_changed_settings(before, after),
    )


def conclusion(verdict: Verdict) -> str:
    """Return a verdict in one line: status, hop, first failure mode, confidence."""
    mode = next((m.id for m in verdict.failure_modes if m.score > 0), "")
    place = verdict.stuck_at or " / ".join(verdict.undecided)
    return ", ".join(filter(None, (verdict.status.name, place, mode, verdict.confidence)))


def _verdict_differences(before: RunSnapshot, after: RunSnapshot, same_evidence: bool) -> Iterator[Difference]:
    was, now = before.verdict, after.verdict
    windows = before.window_minutes, after.window_minutes
    if None not in windows and windows[0] != windows[1]:
        yield Difference("value", "", *windows, "window_minutes", "min")
    same_place = (was.status, was.stuck_at) == (now.status, now.stuck_at)
    if not same_place or (same_evidence and conclusion(was) != conclusion(now)):
        yield Difference("verdict", "", was, now)
    old, new = ({m.id: m.score for m in v.failure_modes if m.score} for v in (was, now))
    for mode in {**old, **new}:
        if (mode in old) != (mode in new):
            yield Difference("mode", mode, old.get(mode), new.get(mode))
    for step, status in after.steps.items():
        known = before.steps.get(step, status)
        if known is not status and (same_evidence or known is not Status.UNKNOWN):
            yield Difference("step", step, known, status)


def _number_differences(before: RunSnapshot, after: RunSnapshot) -> Iterator[Difference]:
    for key, now in after.numbers.items():
        if (was := before.numbers.get(key)) is None:
            continue
        chance = 0.0 if now.unit in _SHARES else math.sqrt(max(was.value, now.value, 1.0))
        if was.status is not now.status or abs(now.value - was.value) > SPREADS * chance:
            where, name = key
            yield Difference("hop" if name in _HOP_UNITS else "value", where, was.value, now.value, name, now.unit)


def drift(before: pd.DataFrame, now: pd.DataFrame) -> pd.DataFrame:
    """Return each setting that differs (item, setting, before, now: text, "" where it is absent).

    A source that answered only one of the two is left out, and so is an item that was locked.

    >>> then = pd.DataFrame([("jetstream", "stream s", "max_age", "90 s")], columns=SETTING_COLUMNS)
    >>> drift(then, then.assign(value="5 s")).values.tolist()
    [['stream s', 'max_age', '90 s', '5 s']]
    """
    answered = {*before["source"]} & {*now["source"]}
    was, is_ = (
        {(str(r.item), str(r.setting)): str(r.value) for r in frame.itertuples() if r.source in answered}
        for frame in (before, now)
    )
    locked = {item for item, setting in {**was, **is_} if setting == LOCKED}
    keys = [key for key in {**was, **is_} if key[0] not in locked and was.get(key) != is_.get(key)]
    differing = [(*key, was.get(key, ""), is_.get(key, "")) for key in keys]
    return pd.DataFrame(differing, columns=DRIFT_COLUMNS)


def _changed_settings(before: RunSnapshot, after: RunSnapshot) -> Iterator[Difference]:
    if before.configuration is None or after.configuration is None:
        return
    for item, setting, was, now in drift(before.configuration, after.configuration).itertuples(index=False):
        yield Difference("setting", item, was or None, now or None, setting)
