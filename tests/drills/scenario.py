"""The scenario of a drill: a pure function of the seed and of the kinds of faults."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

#: Requests per second before the incident begins, and shortly before that until its end. No load is more than the
#: workers can take: without a fault there is nothing to find.
LOADS = {"quiet": (0.5, 0.5), "steady": (5.0, 5.0), "spike": (5.0, 20.0), "resumed": (0.0, 5.0)}
#: What goes on in any system, and is nobody's incident: a pod is replaced, a dump reads everything in one transaction,
#: a person's query takes long, a person changes a setting or publishes events again.
NOISES = ("deploy", "backup", "analyst", "setting", "replay")

#: So many drills without a fault for each one with.
_WITHOUT = 0.18
#: The share of incidents with a second fault, and of those with noise.
_TWO, _NOISY = 0.15, 0.4
#: The share of single faults that have ended before the first look, and how long at most they lasted.
_ENDED, _LASTS_S = 0.15, 60.0
_SOONEST_S = 2.0


@dataclass(frozen=True)
class Scenario:
    """One drill. `faults` are names of the sandbox's catalogue, `load` and `noise` those above ("" is none).

    `intensity` is how strongly the faults hit, 1 as usual; `look_after_s` the seconds from the onset to the first look.
    """

    seed: int
    faults: tuple[str, ...]
    intensity: float
    load: str
    noise: str
    look_after_s: float
    ended_s: float = 0.0
    """Seconds between the end of the faults and the first look, which is then so much later; 0: they have not ended."""


def draw(seed: int, kinds: Iterable[str], longest_s: float = 180.0, undone: Collection[str] = ()) -> Scenario:
    """Draw the drill of that seed; the first triage is at most `longest_s` after the onset.

    Kinds are dealt like cards: of any 2 n - 1 seeds in a row, n = `round_of(kinds)`, each kind has one. Those of
    `undone` may have ended by then.
    """
    kinds = sorted(kinds)
    deck: list[str] = [*kinds, *[""] * (round_of(kinds) - len(kinds))]
    number, place = divmod(seed, len(deck))
    random.Random(f"round {number}").shuffle(deck)
    dice = random.Random(f"drill {seed}")
    first = deck[place]
    others = [kind for kind in kinds if kind != first]
    second = [dice.choice(others)] if dice.random() < _TWO and first and others else []
    noise = dice.choice(NOISES) if dice.random() < _NOISY or not first else ""
    later = math.exp(dice.uniform(0.0, math.log(max(longest_s / _SOONEST_S, 1.0))))
    drawn = Scenario(
        seed,
        faults=(first, *second) if first else (),
        intensity=dice.choice((0.5, 1.0, 2.0)),
        load=dice.choice(sorted(LOADS)),
        noise=noise,
        look_after_s=round(_SOONEST_S * later, 1),
    )
    if len(drawn.faults) == 1 and first in undone and dice.random() < _ENDED:
        lasts_s = min(drawn.look_after_s, _LASTS_S)
        return replace(drawn, look_after_s=lasts_s, ended_s=dice.choice((5.0, 20.0, 60.0)))
    return drawn


def round_of(kinds: Iterable[str]) -> int:
    """Return how many seeds play each kind once, including those without a fault.

    >>> round_of(["a", "b", "c", "d", "e", "f"])
    7
    """
    n = len(list(kinds))
    return n + max(round(n * _WITHOUT), 1)
