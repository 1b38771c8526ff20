"""The work of a loop as its table shows it: the relay on the outbox, the delivery worker on the notifications."""

from __future__ import annotations

from dataclasses import dataclass

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import LOOK_AGAIN, Text, Threshold, Value, say
from runbook_lib.packs.entitlement.rows import QueueCounts

#: The limit of each side's silence while rows are due.
_LIMITS = {"relay": "outbox.oldest_due", "delivery": "delivery.silence"}


@dataclass(frozen=True)
class TableLoop:
    """The queue of a side's loop, and the seconds since it last claimed or finished a row, and since it finished one.

    None: never. `moved` tells whether it claimed or finished a row between two samples; None after one sample.
    """

    side: str
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

    def stop(self, given: JudgeInput, batch_s: float | None) -> str:
        """Return "stopped", or "seems_stopped" within a batch of at most `batch_s` seconds; "" if the loop works."""
        if not given.limits[_LIMITS[self.side]].reached(self.silence_s):
            return ""
        sure = not self.queue.leased or (batch_s is not None and self.silence_s >= batch_s)
        return "stopped" if sure else "seems_stopped"

    def may_hang(self, given: JudgeInput) -> tuple[Value, Text]:
        """Return when to look again at a loop that was not seen running, and a note."""
        again_s = look_again_s(given, given.limits[_LIMITS[self.side]], self.sign_s, self.queue.leased)
        note = say("program.unproven", loop=say(f"program.loop_{self.side}"), ago=self.sign_s, again=again_s)
        return Value(f"{self.side}.{LOOK_AGAIN}", again_s, "s"), note


def look_again_s(given: JudgeInput, limit: Threshold, sign_s: float | None, in_hand: float) -> float:
    """Return the seconds until a loop that was not seen running can be called hanging.

    `sign_s` is the age of its last sign of life. If it holds rows (`in_hand`), only the critical limit counts, since a
    batch may take long.
    """
    shows_s = limit.critical if in_hand else limit.warning
    if sign_s is None or shows_s is None or sign_s >= shows_s:
        # No row has come for it: only another event, or its process, can show it.
        return given.number("look_again.most")
    return float(max(round(shows_s - sign_s), given.number("look_again.least")))
