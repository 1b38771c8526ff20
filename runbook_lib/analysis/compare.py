"""Two looks at the same system, or one beside what is usual: what appeared, what went, what moved. Pure.

A number has moved if it has another status than before, or if chance does not explain the difference: it is more than
so many spreads away, the spread being that of healthy looks where there are such, and at least that of a Poisson count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from runbook_lib.model.finding import Finding, Reason, Status, Value, Verdict

Key = tuple[str, str]
Kind = Literal["verdict", "mode", "step", "hop", "value"]

#: What the strip knows of a hop, with units.
_HOP = {"rate_in": "1/min", "rate_out": "1/min", "waiting": "rows", "oldest_s": "s"}
#: What is counted by nobody has no Poisson spread.
_SHARES = ("ratio",)
#: Beyond so many spreads a difference is not chance: once in 30,000 looks of a Poisson count.
SPREADS = 4.0
#: From the median absolute deviation to the standard deviation of what is normally distributed.
_OF_NORMAL = 1.4826


@dataclass(frozen=True)
class Look:
    """What was seen at a moment: each step's finding, and the verdict over them. `name` is for people."""

    name: str
    at: pd.Timestamp | None
    findings: tuple[Finding, ...]
    verdict: Verdict
    window_minutes: int = 60


@dataclass(frozen=True)
class Number:
    """A number of a step or a hop, with its status where it was compared with limits."""

    value: float
    unit: str
    status: Status | None = None


@dataclass(frozen=True)
class Usual:
    """What a number is in healthy looks: its median, its spread, and of how many looks."""

    median: float
    spread: float
    n: int


@dataclass(frozen=True)
class Change:
    """One difference. `where` is a step, a hop or a failure mode, `name` a number of it; what was not there is None."""

    kind: Kind
    where: str
    before: Any
    after: Any
    name: str = ""
    unit: str = ""


def numbers(findings: Iterable[Finding], verdict: Verdict) -> dict[Key, Number]:
    """Every number of a look, by step or hop and name."""
    found = {(f.step, v.name): n for f in findings for v in f.values if (n := _number(v)) is not None}
    for hop in verdict.hops:
        seen = ((name, getattr(hop, name), unit) for name, unit in _HOP.items())
        found |= {(hop.name, name): Number(float(value), unit) for name, value, unit in seen if value is not None}
    return found


def usual(looks: Sequence[Mapping[Key, float]]) -> dict[Key, Usual]:
    """What each number usually is, of the looks that have it.

    >>> usual([{("4.1.1", "due"): n} for n in (1.0, 2.0, 9.0)])
    {('4.1.1', 'due'): Usual(median=2.0, spread=1.4826, n=3)}
    """
    found: dict[Key, list[float]] = {}
    for look in looks:
        for key, value in look.items():
            found.setdefault(key, []).append(value)
    return {key: _usual(values) for key, values in found.items()}


def _usual(values: Sequence[float]) -> Usual:
    median = statistics.median(values)
    return Usual(median, _OF_NORMAL * statistics.median(abs(v - median) for v in values), len(values))


def compare(before: Look, after: Look) -> tuple[Change, ...]:
    """What differs between two looks, the verdict first; that one looks back further explains much of the rest."""
    was, now = before.verdict, after.verdict
    found = []
    if before.window_minutes != after.window_minutes:
        found.append(Change("value", "", before.window_minutes, after.window_minutes, "window_minutes", "min"))
    if (was.status, was.stuck_at) != (now.status, now.stuck_at):
        found.append(Change("verdict", "", _place(was), _place(now)))
    old, new = ({m.id: m.score for m in v.failure_modes if m.score} for v in (was, now))
    found += [Change("mode", id_, old.get(id_), new.get(id_)) for id_ in {**old, **new} if (id_ in old) != (id_ in new)]
    known = {f.step: f.status for f in before.findings if f.status is not Status.UNKNOWN}
    steps = ((f, known[f.step]) for f in after.findings if f.step in known and f.reason is not Reason.NOT_RUN)
    found += [Change("step", f.step, status, f.status) for f, status in steps if status is not f.status]
    first, second = (numbers(look.findings, look.verdict) for look in (before, after))
    levels = {key: Usual(number.value, 0.0, 1) for key, number in first.items()}
    return (*found, *_moved(levels, first, second))


def beside(levels: Mapping[Key, Usual], after: Look) -> tuple[Change, ...]:
    """The numbers of a look that are not what they are in healthy ones."""
    return tuple(_moved(levels, {}, numbers(after.findings, after.verdict)))


def _moved(levels: Mapping[Key, Usual], before: Mapping[Key, Number], after: Mapping[Key, Number]) -> Iterator[Change]:
    for key, number in after.items():
        if key not in levels:
            continue
        where, name = key
        level = levels[key]
        other = key in before and before[key].status is not number.status
        chance = 0.0 if number.unit in _SHARES else math.sqrt(max(level.median, number.value, 1.0))
        if other or abs(number.value - level.median) > SPREADS * max(level.spread, chance):
            yield Change("hop" if name in _HOP else "value", where, level.median, number.value, name, number.unit)


def _number(v: Value) -> Number | None:
    if isinstance(v.value, bool | str) or v.value is None or v.value != v.value:
        return None
    return Number(float(v.value), v.unit, v.status)


def _place(v: Verdict) -> tuple[Status, str | None]:
    return v.status, v.stuck_at
