"""Judge whether expired registrations are removed (FM-DB-02), for 2.4 and 4.2.2, and whether others may be.

`missing.py`, 3.1 and 7.1 ask the latter before they call an event lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Signal, Status, Text, Value, say


class Oldest(rows.Row, query="processed/oldest"):
    """The age of the oldest registration, and how many were made and deleted since `counted_since` (None: ever).

    Those older than the retention are deleted every hour.
    """

    age_d: float | None = None
    inserted: float | None = None
    deleted: float | None = None
    counted_since: pd.Timestamp | None = None

    def find_doubtful(self, published: Mapping[str, pd.Timestamp | None], now: pd.Timestamp, keep_d: float) -> set[str]:
        """Return which of these unregistered events may have been registered: their rows may be deleted."""
        until = self.doubtful_until(len(published), now, keep_d)
        return {event for event, at in published.items() if until is not None and (at or now) <= until}

    def doubtful_until(self, n: int, now: pd.Timestamp, keep_d: float) -> pd.Timestamp | None:
        """Return when the last of n unregistered events was published that may have been registered; None for none.

        Either `may_lack` so many, and all may, or no registration is left from before the oldest one.
        """
        if self.may_lack(n, keep_d):
            return now
        return None if self.age_d is None else now - pd.Timedelta(days=self.age_d)

    def may_lack(self, n: int, keep_d: float) -> bool:
        """Return whether so many registrations were deleted that the retention of `keep_d` days would have left.

        The retention deletes the oldest first, so the oldest that it leaves is nearly as old as it allows.
        """
        if self.age_d is None:
            return bool(self.inserted)  # a TRUNCATE counts as no deletion
        return self.deleted is not None and 0 < n <= self.deleted and self.age_d < keep_d - 1


@dataclass(frozen=True)
class FindingPart:
    """What is added to a finding; empty if there is nothing to report or it was not read."""

    values: tuple[Value, ...] = ()
    notes: tuple[Text, ...] = ()
    signals: tuple[Signal, ...] = ()


def judge_clean_up(frames: Frames, given: JudgeInput) -> FindingPart:
    """Judge from the frame oldest whether the hourly clean-up keeps up."""
    age_d = rows.one(frames.get("oldest"), Oldest).age_d
    if age_d is None:
        return FindingPart()
    value = given.limits.value("processed.oldest", age_d)
    if value.status is Status.OK:
        return FindingPart((value,))
    return FindingPart((value,), (say("scope.not_cleaned_up"),), given.evidence("scope.not_cleaned_up"))
