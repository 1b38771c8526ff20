"""Answers of a source that several steps of a run use: each is asked for once.

How long an answer serves other steps stands in its query's header (`reuse`). The step that asked for it gets a new one
if it asks again: that is its second sample, or a person who runs the step again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from runbook_lib.model.finding import SentQuery
from runbook_lib.sources.source import ReadCost

T = TypeVar("T")


@dataclass
class KeptAnswer:
    """An answer, how it was asked for, and the steps that have received it."""

    value: Any
    sent: SentQuery
    until: float
    served: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Answers:
    """The answers of a run, as one `step` sees them; "" for who needs the present, such as an action."""

    kept: dict[tuple[object, ...], KeptAnswer] = field(default_factory=dict)
    step: str = ""

    def once(self, key: tuple[object, ...], seconds: float, cost: ReadCost, ask: Callable[[], T]) -> T:
        """Return another step's answer of the last `seconds`, counted as this step's query too; else ask for it.

        Whoever receives an answer does not change it.
        """
        known = self.kept.get(key) if self.step and seconds else None
        if known is not None and self.step not in known.served and time.monotonic() <= known.until:
            known.served.add(self.step)
            cost.queries.append(known.sent)
            return cast(T, known.value)
        value = ask()
        if self.step and seconds:
            self.kept[key] = KeptAnswer(value, cost.queries[-1], time.monotonic() + seconds, {self.step})
        return value
