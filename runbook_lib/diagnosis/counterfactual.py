"""The smallest change of the evidence that would change the verdict; pure functions.

A change is of one observation: it would have to be seen, or not. Its size is the weight that is enough: a part of an
observation has that part of each of its weights, and neither excludes nor readmits a failure mode. Two observations
are changed together only if no single one changes the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from runbook_lib.book.catalog import Catalog
from runbook_lib.diagnosis.verdict import (
    combine_weights,
    drop_contradicted,
    find_rivals,
    find_standing,
    find_stuck_hop,
    score,
    score_elsewhere,
)
from runbook_lib.model.finding import EvidenceChange, Finding, Value, Verdict, replace

if TYPE_CHECKING:
    import pandas as pd

#: How precisely the least weight is searched, as a part of it.
PRECISION = 0.01


def explain(verdict: Verdict, findings: Sequence[Finding], book: Catalog) -> Verdict:
    """Return the verdict with its places, and with the smallest change for each of them and of its failure modes."""
    evidence = _Evidence(findings, book)
    findings, _ = drop_contradicted(findings, book)
    named = (verdict.stuck_at,) if verdict.stuck_at else verdict.undecided
    places, modes = (
        tuple(replace(c, changes=evidence.smallest_change(c.id)) for c in candidates)
        for candidates in ((score(findings, place, book) for place in named), verdict.failure_modes)
    )
    return replace(verdict, places=places, failure_modes=modes)


@dataclass(frozen=True)
class _Move:
    """One observation to be seen, or not, with its weights."""

    observation: str
    seen: bool
    steps: tuple[str, ...]
    weights: Mapping[str, float] = field(compare=False)
    made_from: tuple[Value, float] | tuple[()] = field(default=(), compare=False)
    """The value that it was made from, and the limit that this passed, if it was made from one."""

    @property
    def weight(self) -> float:
        """The largest weight; 1 if the observation only excludes."""
        return max((abs(weight) for weight in self.weights.values() if weight), default=1.0)


class _Named(NamedTuple):
    """The stuck hop, and the failure modes that stand: one, or several that need different remedies."""

    stuck_at: str | None
    modes: tuple[str, ...]

    def names(self, id_: str) -> bool:
        """Return whether this place or mode is named, and no other beside it."""
        return id_ == self.stuck_at or self.modes == (id_,)

    def of(self, id_: str, book: Catalog) -> tuple[str, ...]:
        """Return what is named of the same kind: the place, or the modes."""
        return self.modes if id_ in book.failure_modes else (self.stuck_at,) if self.stuck_at else ()


class _Evidence:
    """The weights of the observations by what they are about, and what the verdict names if they change."""

    def __init__(self, findings: Sequence[Finding], book: Catalog) -> None:
        self._book = book
        self._weights: dict[str, dict[object, float]] = {}
        self._steps: dict[str, list[str]] = {}
        self._times: dict[str, pd.Timestamp | None] = {}
        self._made_from: dict[str, dict[tuple[str, float] | None, Value | None]] = {}
        for n, (f, s) in enumerate((finding, s) for finding in findings for s in finding.signals):
            self._steps.setdefault(s.observation, []).append(f.step)
            at = self._times.setdefault(s.observation, f.at)
            self._times[s.observation] = f.at if at is None or f.at is None else max(at, f.at)
            limit = f.made_from.get(s.observation)
            value = next((v for v in f.values if limit and v.name == limit[0]), None)
            self._made_from.setdefault(s.observation, {})[limit] = value
            about, name = self._weights.setdefault(s.about, {}), s.observation or n
            about[name] = max(about.get(name, 0.0), s.weight, key=abs)
        self._contradicted = frozenset(book.find_contradicted(self._times))
        self._scores = {about: self._score_with_moves(about, 1.0, self._contradicted) for about in self._weights}
        self._moves = [*self._list_removals(), *self._list_additions()]
        self._changed = cache(lambda *moves: self._name_with_moves(moves))
        self._score = cache(self._score_with_moves)

    def _list_removals(self) -> Iterator[_Move]:
        for name, steps in self._steps.items():
            weights = {about: w[name] for about, w in self._weights.items() if name in w}
            if name:
                # A limit counts only if each step that saw the observation made it from that one.
                (limit, value), *others = self._made_from[name].items()
                made_from = (value, limit[1]) if limit and value and not others else ()
                yield _Move(name, False, tuple(dict.fromkeys(steps)), weights, made_from)

    def _list_additions(self) -> Iterator[_Move]:
        for name, signals in self._book.observations.items():
            if name not in self._steps and (step := self._book.step_of(name)):
                yield _Move(name, True, (step,), {s.about: s.weight for s in signals})

    def smallest_change(self, id_: str) -> tuple[EvidenceChange, ...]:
        """Return the smallest change with which the verdict names this place or mode, or no longer names it."""
        now = self._changed()
        flipping: list[tuple[_Move, ...]] = []
        for together in (((m,) for m in self._moves), combinations(self._find_helpful_moves(id_, now), 2)):
            flipping = flipping or [ms for ms in together if self._changed(*ms).names(id_) is not now.names(id_)]
        smallest: tuple[EvidenceChange, ...] = ()
        least = math.inf
        for moves in flipping:
            whole = sum(m.weight for m in moves)
            if share := self._find_share(id_, moves, min(least * (1 - PRECISION) / whole, 1.0)):
                then = self._changed(*moves).of(id_, self._book)
                smallest = tuple(
                    EvidenceChange(m.observation, m.seen, m.weight * share, m.weight, m.steps, then, *m.made_from)
                    for m in moves
                )
                least = whole * share
        return smallest

    def _find_helpful_moves(self, id_: str, now: _Named) -> Iterator[_Move]:
        """Yield the moves that support or readmit a place or mode, or contradict what is named now."""
        mode = self._book.failure_modes.get(id_)
        own = {id_, *(mode.hops if mode else ())}
        against = {now.stuck_at, *now.modes} - (set() if now.names(id_) else own)
        excluded_by = mode.excluded_by if mode else ()
        for m in self._moves:
            more = {about for about, weight in m.weights.items() if (weight > 0) is m.seen}
            less = m.weights.keys() - more
            if m.observation in excluded_by or more & own - against or less & against:
                yield m

    def _find_share(self, id_: str, moves: Sequence[_Move], high: float) -> float | None:
        """Return the least share of the moves that is enough, at most `high`; None if that is not enough."""
        named = self._changed().names(id_)

        def flips(share: float) -> bool:
            return self._name_with_moves(moves, share).names(id_) is not named

        if not flips(high):
            return None
        while flips(high / 2):
            high /= 2
        low = high / 2
        while high - low > high * PRECISION:
            middle = (low + high) / 2
            low, high = (low, middle) if flips(middle) else (middle, high)
        return high

    def _score_with_moves(self, about: str, share: float, contradicted: frozenset[str], *moves: _Move) -> float:
        """Return the score of a place or mode with a share of the moves made, without the observations that fall."""
        part: dict[object, float] = {m.observation: m.weights[about] * (share if m.seen else 1 - share) for m in moves}
        weights = (self._weights.get(about, {}) | part).items()
        return combine_weights(((str(name), w) for name, w in weights if name not in contradicted), about, self._book)

    def _name_with_moves(self, moves: Sequence[_Move], share: float = 1.0) -> _Named:
        """Return what the verdict names with a share of the moves made."""
        seen = {*self._steps}
        if share == 1.0:
            seen.symmetric_difference_update(m.observation for m in moves)
        scores = {**self._scores}
        contradicted = frozenset(self._book.find_contradicted({name: self._times.get(name) for name in seen}))
        changed = [about for m in moves for about in m.weights]
        changed += [s.about for name in contradicted ^ self._contradicted for s in self._book.observations[name]]
        for about in dict.fromkeys(changed):
            scores[about] = self._score(about, share, contradicted, *(m for m in moves if about in m.weights))
        stuck_at = find_stuck_hop({place: scores.get(place, 0.0) for place in self._book.places}, self._book)
        modes: dict[str, float] = {}
        for mode in (mode for id_, mode in self._book.failure_modes.items() if id_ in scores):
            elsewhere = stuck_at is not None and stuck_at not in mode.hops
            if seen.isdisjoint(mode.excluded_by):
                modes[mode.id] = score_elsewhere(scores[mode.id]) if elsewhere else scores[mode.id]
        stand = find_standing(dict(sorted(modes.items(), key=lambda m: -m[1])), self._book)
        return _Named(stuck_at, tuple(m.id for m in find_rivals(stand) or stand[:1]))
