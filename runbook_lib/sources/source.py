"""What every source shares: its opening, its errors, the cost of what it reads and its clock.

A source is a class that a pack names in its `sources`. `declared` opens it for a target, or returns None if the target
does not declare it; a source whose answers carry its server's time may have a `clock` (see `HasClock`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from runbook_lib.model.finding import Reason, SentQuery
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.settings import Budget, Target, TargetFacts


class SourceError(Exception):
    """A source did not answer.

    `source` is "postgres", "jetstream", "nats_monitor", "redis", "prometheus", "workloads" or a service's name;
    `code` is the source's own name for what happened where it has one ("too_many_clients", "stream_not_found", ...).
    `holders` are the sessions for whose locks the query waited, if it did (database/lock_holders).
    """

    holders: pd.DataFrame | None = None

    def __init__(self, source: str, reason: Reason, detail: str, code: str = "") -> None:
        super().__init__(f"{source}: {detail}")
        self.source, self.reason, self.detail, self.code = source, reason, detail, code

    def __reduce__(self) -> tuple[Any, ...]:  # or a process would receive another error in its place
        return type(self), (self.source, self.reason, self.detail, self.code), vars(self)


@dataclass
class ReadCost:
    """Every query of a run as it was sent, and its cost; shown at the end of the notebook."""

    masker: Masker
    queries: list[SentQuery] = field(default_factory=list)

    @contextmanager
    def query(
        self,
        source: str,
        name: str,
        text: str,
        values: Mapping[str, object] | None = None,
        *,
        optional: bool = False,
    ) -> Iterator[QueryStats]:
        """Time one query and store it, even if it fails; nothing is missing where an `optional` one does.

        With `values`, those bound to its parameters, `text` is the runbook's own and stored as it is sent; the values
        are masked. Without, `text` may hold anything and is scrubbed.
        """
        asked, start, error, refused = QueryStats(), perf_counter(), "", False
        started = pd.Timestamp.now("UTC").isoformat()
        sent = self.masker.scrub(text) if values is None else text
        if values:
            sent += "\n-- " + ", ".join(f"{k}={self.masker.bound(k, v)}" for k, v in values.items())
        try:
            yield asked
        except SourceError as e:
            e.detail = self.masker.scrub(e.detail)
            error = f"{e.reason}: {e.detail}"
            refused = optional or e.code == "cost_gate"
            raise
        finally:
            self.queries.append(
                SentQuery(
                    source, name, sent, (perf_counter() - start) * 1000, asked.rows,
                    asked.plan_cost, error, refused, started,
                )
            )  # fmt: skip


@dataclass
class QueryStats:
    """The numbers of a query that are known once it is answered."""

    rows: int = 0
    plan_cost: float | None = None


@dataclass(frozen=True)
class Opening:
    """The arguments that a source is opened with.

    `run` names the run to the servers, `budget` has the limits, and `read_cost` records each query.
    """

    target: Target
    run: str
    budget: Budget
    read_cost: ReadCost


@dataclass(frozen=True)
class ClockOffset:
    """The offset of a server's clock to this machine's, in seconds, and its error bound.

    `behind_s` is how far what it shows is behind its own clock: a replica's lag.
    """

    offset_s: float
    error_s: float
    behind_s: float = 0.0

    def now(self) -> pd.Timestamp:
        """Return the moment that the server shows."""
        return pd.Timestamp.now("UTC") + pd.Timedelta(seconds=self.offset_s - self.behind_s)


@runtime_checkable
class HasClock(Protocol):
    """A source whose answers carry its server's time."""

    def clock(self, facts: TargetFacts) -> dict[str, ClockOffset]:
        """Measure its clock; return the offset by name, {} if the system has nothing to measure it with."""
