"""Answers of sources that several steps of a run use: each is asked for once.

A run's sample (`checks.sample`) is one for all of its sections. Without one, as in JupyterLab, an answer serves the
other steps for some seconds. A step that asks for the same again gets a new answer: a person runs it again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from runbook_lib.model.finding import SentQuery
from runbook_lib.sources.source import ReadCost, SourceError

T = TypeVar("T")

#: Seconds for which what one step has read is shared with the steps after it.
SHARED_S = 15.0


@dataclass
class KeptAnswer:
    """An answer or a failure, how it was asked for, and the steps that have received it."""

    value: Any
    sent: tuple[SentQuery, ...]
    until: float = math.inf
    served: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Answers:
    """The answers of a run, as one `step` sees them; "" for who needs the present, such as an action."""

    kept: dict[tuple[object, ...], KeptAnswer] = field(default_factory=dict)
    step: str = ""

    def once(self, key: tuple[object, ...], cost: ReadCost, ask: Callable[[], T]) -> T:
        """Return another step's answer, counted as this step's query too; else ask for it. Raises SourceError.

        A failure is an answer: what was not read in time is unread for all. Whoever receives one does not change it.
        """
        known = self.kept.get(key) if self.step else None
        if known is not None and self.step not in known.served and time.monotonic() <= known.until:
            known.served.add(self.step)
            cost.queries.extend(known.sent)
        else:
            known = _ask(cost, ask)
            if self.step:
                known.served.add(self.step)
                self.kept[key] = known
        if isinstance(known.value, SourceError):
            raise known.value
        return cast(T, known.value)

    def forget(self, sent: Iterable[SentQuery]) -> None:
        """Drop what these queries, and others of their names, have answered: it is asked anew."""
        names = {q.name for q in sent}
        for key, kept in [*self.kept.items()]:
            if any(q.name in names for q in kept.sent):
                del self.kept[key]


def _ask(cost: ReadCost, ask: Callable[[], object]) -> KeptAnswer:
    first, value = len(cost.queries), object()
    try:
        value = ask()
    except SourceError as e:
        value = e
    return KeptAnswer(value, tuple(cost.queries[first:]), time.monotonic() + SHARED_S)
