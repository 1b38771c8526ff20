"""Judge whether expired registrations are removed (FM-DB-02), for 2.4 and 4.2.2."""

from __future__ import annotations

from dataclasses import dataclass

from runbook_lib import rows
from runbook_lib.context import JudgeInput
from runbook_lib.model.finding import Frames, Signal, Status, Text, Value, say


class Oldest(rows.Row, query="processed/oldest"):
    """The age of the oldest registration; those older than the retention are removed every hour."""

    age_d: float | None = None


@dataclass(frozen=True)
class CleanUp:
    """The part of a finding for the age of the oldest registration; empty if none is registered or it was not read."""

    values: tuple[Value, ...] = ()
    notes: tuple[Text, ...] = ()
    signals: tuple[Signal, ...] = ()


def judge_clean_up(frames: Frames, given: JudgeInput) -> CleanUp:
    """Judge from the frame oldest whether the hourly clean-up keeps up."""
    age_d = rows.one(frames.get("oldest"), Oldest).age_d
    if age_d is None:
        return CleanUp()
    value = given.limits.value("processed.oldest", age_d)
    if value.status is Status.OK:
        return CleanUp((value,))
    return CleanUp((value,), (say("scope.not_cleaned_up"),), given.evidence("scope.not_cleaned_up"))
