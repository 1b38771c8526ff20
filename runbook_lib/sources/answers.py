"""Answers of the database that several steps of a run use: each is asked for once.

How long an answer serves other steps stands in its query's header (`reuse`). The step that asked for it gets a new one
if it asks again: that is its second sample, or a person who runs the step again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pandas as pd

from runbook_lib.book.queries import Query
from runbook_lib.model.finding import SentQuery, Window
from runbook_lib.sources.source import ReadCost


@dataclass
class KeptAnswer:
    """An answer, how it was asked for, and the steps that have received it."""

    frame: pd.DataFrame
    sent: SentQuery
    until: float
    served: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Answers:
    """The answers of a run, as one `step` sees them; "" for who needs the present, such as an action."""

    kept: dict[tuple[object, ...], KeptAnswer] = field(default_factory=dict)
    step: str = ""

    def find(self, q: Query, params: dict[str, object], window: Window | None, cost: ReadCost) -> pd.DataFrame | None:
        """Return another step's answer, and count it as this step's query too; None if it has to be asked for."""
        found = self.kept.get(_key(q, params, window)) if self.step and q.reuse_s else None
        if found is None or self.step in found.served or time.monotonic() > found.until:
            return None
        found.served.add(self.step)
        cost.queries.append(found.sent)
        return found.frame.copy()

    def keep(
        self, q: Query, params: dict[str, object], window: Window | None, frame: pd.DataFrame, cost: ReadCost
    ) -> None:
        """Keep the answer to the query that was sent last, for other steps."""
        if self.step and q.reuse_s:
            until = time.monotonic() + q.reuse_s
            self.kept[_key(q, params, window)] = KeptAnswer(frame.copy(), cost.queries[-1], until, {self.step})


def _key(q: Query, params: dict[str, object], window: Window | None) -> tuple[object, ...]:
    return (q.name, q.sql, repr(sorted(params.items())), window)
