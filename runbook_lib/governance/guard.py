"""Apply a target's rules to an action: freeze windows, the limit of actions per hour, and approvals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from runbook_lib.checks.context import Context
from runbook_lib.governance import approval, freeze, ledger
from runbook_lib.model.finding import Text, say
from runbook_lib.model.outcome import Precondition
from runbook_lib.model.usage import UsageError
from runbook_lib.view.render import when

_HOUR = pd.Timedelta(hours=1)
#: Clocks of machines that share a ledger may differ by this much.
CLOCK_TOLERANCE = pd.Timedelta(minutes=1)
_COUNTED = ("begun", "done", "failed")


class Guard:
    """The rules of a target for one action: `actions.action.Rules`."""

    def __init__(self, rb: Context, given: str | None, *, waive: bool) -> None:
        self._rb, self._given, self._waive = rb, given, waive
        self._approval = approval.parse_approval(given)
        self._since = pd.Timestamp.now("UTC")  # before the preconditions are checked
        self.word, self.by, self.job = str(self._approval or ""), "", ""

    def standing(self) -> tuple[Precondition, ...]:
        """Return the clock, and the target's freeze and hourly limit, as preconditions."""
        target, name = self._rb.target, self._rb.parameters.target
        try:
            log = ledger.read_actions(self._rb)
            found = list(check_clock(self._rb, log))
        except (OSError, UsageError) as e:
            if not (target.freeze or target.actions_per_hour):
                return ()
            return (Precondition(say("action.rule.unseen", detail=str(e)), None, waived=self._waive),)
        if target.freeze:
            ends = freeze.frozen_until(target.freeze, pd.Timestamp.now("UTC").to_pydatetime(warn=False))
            frozen = say("action.rule.frozen", target=name, until=when(pd.Timestamp(ends))) if ends else None
            found.append(Precondition(frozen or say("action.rule.not_frozen", target=name), ends is None))
        if target.actions_per_hour:
            found.append(check_hourly_limit(self._rb, log))
        return tuple(replace(p, waived=self._waive and not p.ok) for p in found)

    def approval(self, id_: str, asked: Mapping[str, Any]) -> Precondition | None:
        """Check the approval of the action `asked`; None if the target requires none and none was given."""
        if not self._rb.target.approval and not self._given:
            return None
        rule = approval.check_approval(self._rb, id_, asked, self._given, self._approval, break_glass=self._waive)
        if self._approval and rule.ok:
            self.by, self.job = self._approval.by, self._approval.job
        return rule

    def begin(self, entry: dict[str, Any]) -> tuple[Text | None, str]:
        """Add an action to the target's ledger before it begins.

        Returns (refusal, ""), or (None, error) if the action may begin without a ledger line: only if neither an
        approval nor a rule depends on the ledger. (None, "") is success.
        """
        target = self._rb.target

        def stops(log: pd.DataFrame) -> Text | None:
            if self.job and self.job in set(log["job"]):
                return self.used()
            name = entry["what"].get("name")
            if name and ((log["name"] == name) & (log["time"] > self._since) & (log["result"] == "begun")).any():
                return say("action.refused.meanwhile", name=name)
            if not target.actions_per_hour or self._waive or (fits := check_hourly_limit(self._rb, log)).holds:
                return None
            return say("action.refused.precondition", text=fits.text)

        try:
            return ledger.begin(self._rb, entry, stops), ""
        except (OSError, UsageError) as e:
            rests_on_it = target.freeze or target.actions_per_hour or target.approval
            if self.job or (rests_on_it and not self._waive):
                return say("action.refused.ledger", detail=str(e)), ""
            return None, str(e)

    def end(self, entry: dict[str, Any]) -> str:
        """Add the end of an action, or that it did not begin, to the ledger; return the error or ""."""
        try:
            ledger.end(self._rb, entry)
        except (OSError, UsageError) as e:
            return str(e)
        return ""

    def used(self) -> Text:
        """Return the refusal for an approval that was used before."""
        return approval.used_already(self._approval)


def check_clock(rb: Context, log: pd.DataFrame) -> Iterator[Precondition]:
    """Yield a precondition that does not hold if the ledger or the incident's log has lines of the future.

    Expiry of approvals, freezes, the hourly limit and the cooldown depend on the clock: one that was set back would
    extend an approval and end a freeze. Raises OSError.
    """
    newest = ledger.latest_time(rb, log)
    if newest > pd.Timestamp.now("UTC") + CLOCK_TOLERANCE:
        place = ledger.ledger_of(rb).place
        yield Precondition(say("action.rule.clock", newest=when(newest), place=place, log=rb.archive.place), ok=False)


def check_hourly_limit(rb: Context, log: pd.DataFrame) -> Precondition:
    """Check by the ledger whether another action is within the limit per hour; an action counts from its last line."""
    most, name = rb.target.actions_per_hour, rb.parameters.target
    acted = log[log["result"].isin(_COUNTED)].groupby("id")["time"].max().sort_values()
    acted = acted[acted > pd.Timestamp.now("UTC") - _HOUR]
    free = (acted.iloc[-most] + _HOUR).ceil("s") if most and len(acted) >= most else None
    text = say("action.rule.limit", target=name, n=len(acted), limit=most, free=free and when(free))
    return Precondition(text, free is None)
