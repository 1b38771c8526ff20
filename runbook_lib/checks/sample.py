"""What a run reads once for all of its sections: of each part of a system, at two moments.

A pack says what it reads (its hook `sampling`); `runs.sampler` reads it, each part in a thread, before the sections
start. A section that runs alone, as in JupyterLab, reads its own first moment, waits, and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.book import pack
from runbook_lib.model.finding import Frames, Hop, SentQuery
from runbook_lib.sources.answers import KeptAnswer
from runbook_lib.sources.source import ClockOffset, SourceError

if TYPE_CHECKING:
    from runbook_lib.book.catalog import Catalog
    from runbook_lib.checks.context import Context

Collect = Callable[["Context"], Frames]
#: A frame of the first moment has this before its name.
FIRST = "first."


def no_frames(rb: Context) -> Frames:
    """Return no frames."""
    return {}


@dataclass
class SecondMoment:
    """The time of `time.monotonic` at which all parts are read again: `at`, or as the first moment shows."""

    at: float
    known: Event = field(default_factory=Event)

    def set(self, at: float) -> None:
        """Set it by what the first moment shows."""
        self.at = at
        self.known.set()

    def wait(self) -> None:
        """Wait until it has come."""
        self.known.wait(max(self.at - time.monotonic(), 0.0))
        time.sleep(max(self.at - time.monotonic(), 0.0))


def wait(rb: Context, first: Frames, second: SecondMoment) -> Frames:
    """Wait for the second moment."""
    second.wait()
    return {}


@dataclass(frozen=True)
class Part:
    """What is read of one part of a system. What a source does not answer is left out.

    `first` returns the frames of the first moment, for who compares two. `once` asks in between what steps ask of it,
    by what the first moment shows.
    `watch` waits for the second moment and returns further frames of the time until then. `again` asks at the second
    moment what the steps take as the present; frames that steps share by a function are in its result.
    """

    first: Collect = no_frames
    once: Callable[[Context, Frames], None] = lambda rb, first: None
    watch: Callable[[Context, Frames, SecondMoment], Frames] = wait
    again: Callable[[Context], Mapping[Collect, Frames]] = lambda rb: {}


@dataclass(frozen=True)
class Sampling:
    """What a pack samples: its parts, and how their first moment is shown.

    `numbers` returns the database's time and the hops, as far as the frames of the first moment show them. `sections`
    returns the sections to which these point: they start with the others. `shown` is the part that they are of. The
    function `apart` returns the seconds between the two moments, as that part's first moment shows; the numbers `most`
    and `longest` are those that they are at most, and for which all of it may take.
    """

    parts: Mapping[str, Part]
    shown: str
    numbers: Callable[[Frames], tuple[pd.Timestamp | None, tuple[Hop, ...]]]
    sections: Callable[[tuple[Hop, ...], Catalog], tuple[str, ...]]
    apart: Callable[[Context, Frames], float]
    most: str
    longest: str

    def second(self, rb: Context, first: Frames) -> float:
        """Return the time of `time.monotonic` of the second moment, by the database's time of the first one."""
        at, _ = self.numbers(first)
        spent_s = (rb.now() - at).total_seconds() if at is not None else 0.0
        return time.monotonic() + self.apart(rb, first) - max(spent_s, 0.0)


@dataclass
class Sample:
    """What was read for a run: of the first moment, since then, and the answers that its steps take as the present.

    `section` is the one that counts the queries as its own; `tokens` are those in the answers; `down` are the sources
    that did not answer.
    """

    section: str
    as_of: pd.Timestamp
    clocks: dict[str, ClockOffset]
    down: dict[str, tuple[float, SourceError]] = field(default_factory=dict)
    first: Frames = field(default_factory=dict)
    shared: dict[Collect, Frames] = field(default_factory=dict)
    answers: dict[tuple[object, ...], KeptAnswer] = field(default_factory=dict)
    queries: list[SentQuery] = field(default_factory=list)
    tokens: str = ""
    sections: tuple[str, ...] = ()


def read_first(rb: Context) -> Frames:
    """Return the frames of the first moment, named "first.NAME", and of the time since: the second moment is now."""
    sampling: Sampling = pack.hook("sampling")
    rb, sent = rb.of(""), len(rb.read_cost.queries)
    first = {name: part.first(rb) for name, part in sampling.parts.items()}
    found = {f"{FIRST}{name}": frame for own in first.values() for name, frame in own.items()}
    second = SecondMoment(0.0)
    second.set(sampling.second(rb, first[sampling.shown]))
    for name, part in sampling.parts.items():
        found |= part.watch(rb, first[name], second)
    rb.answers.forget(
        rb.read_cost.queries[sent:]
    )  # what other steps have read of the same was not at the second moment
    return found
