"""The work of a loop as its table shows it: the relay on the outbox, the delivery worker on the notifications."""

from __future__ import annotations

from dataclasses import dataclass

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Threshold
from runbook_lib.packs.entitlement.rows import QueueCounts


@dataclass(frozen=True)
class Loop:
    """A loop's queue, and the seconds since it last claimed or finished a row, and since it finished one.

    None: never. `moved` tells whether it claimed or finished a row between two samples; None after one sample.
    """

    queue: QueueCounts
    sign_s: float | None
    finished_s: float | None
    moved: bool | None

    @property
    def silence_s(self) -> float:
        """The seconds without a claim or a finished row while rows were due."""
        oldest_s = self.queue.oldest_s
        return 0.0 if self.moved else oldest_s if self.sign_s is None else min(self.sign_s, oldest_s)

    def finishes(self, given: JudgeInput) -> bool:
        """Return whether the loop finished a row within `success.lately`."""
        return self.finished_s is not None and self.finished_s < given.number("success.lately")

    def stop(self, limit: Threshold, batch_s: float | None) -> str:
        """Return "stopped", or "seems_stopped" within a batch of at most `batch_s` seconds; "" if the loop works."""
        if not limit.reached(self.silence_s):
            return ""
        sure = not self.queue.leased or (batch_s is not None and self.silence_s >= batch_s)
        return "stopped" if sure else "seems_stopped"
