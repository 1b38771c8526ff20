"""Where answers come from: one module per source. I/O only; what an answer means is the checks' business."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from runbook_lib.masking import Masker
from runbook_lib.model.finding import Question, Reason


class SourceError(Exception):
    """A source did not answer.

    `source` is "postgres", "jetstream", "nats_monitor", "redis", "prometheus", "workloads" or a service's name;
    `code` is the source's own name for what happened where it has one ("too_many_clients", "stream_not_found", ...).
    """

    def __init__(self, source: str, reason: Reason, detail: str, code: str = "") -> None:
        super().__init__(f"{source}: {detail}")
        self.source, self.reason, self.detail, self.code = source, reason, detail, code


@dataclass
class ReadCost:
    """Every question of a run as it was sent and what it cost; printed at the end of the notebook."""

    masker: Masker
    questions: list[Question] = field(default_factory=list)

    @contextmanager
    def question(self, source: str, name: str, text: str) -> Iterator[Asked]:
        """Time one question and keep it, also when it fails."""
        asked, start, error, refused = Asked(), perf_counter(), "", False
        try:
            yield asked
        except SourceError as e:
            error = f"{e.reason}: {self.masker.scrub(e.detail)}"
            refused = e.code == "cost_gate"
            raise
        finally:
            self.questions.append(
                Question(
                    source, name, self.masker.scrub(text), (perf_counter() - start) * 1000, asked.rows,
                    asked.plan_cost, error, refused,
                )
            )  # fmt: skip


@dataclass
class Asked:
    """What becomes known of a question while it is answered."""

    rows: int = 0
    plan_cost: float | None = None
