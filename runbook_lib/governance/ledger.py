"""A target's ledger: every action that was begun on the target, for every output.

    <ledger>/<target>/log.jsonl      two lines per action, hash-chained like an incident's log

Its folder is a setting of the target (`Target.ledger`). What rests on past actions (that the same action was not done
minutes ago, that an approval is used once) reads the ledger and the incident's own log.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pandas as pd

from runbook_lib.checks.context import Context
from runbook_lib.model.finding import Text, say
from runbook_lib.model.usage import UsageError, error_line
from runbook_lib.store.archive import ACTION, Archive
from runbook_lib.store.lines import ActionLine, read_actions

#: Names that are valid as a folder and as an argument of `runbook verify`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Clocks of machines that share a ledger may differ by this much.
CLOCK_TOLERANCE = pd.Timedelta(minutes=1)


class Ledger:
    """The ledger of the target of one action."""

    def __init__(self, rb: Context) -> None:
        name = rb.parameters.target
        fits = _NAME.fullmatch(name) and ".." not in name
        folder = name if fits else f"target-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        self.archive, self._own = Archive(rb.target.ledger, folder, people=False), rb.archive
        self._since = pd.Timestamp.now("UTC")  # before the preconditions are checked

    def read(self) -> list[ActionLine]:
        """Return the actions that were begun on the target, also of the incident's log, which may know more.

        Raises UsageError, one line, if not all of them can be read, or if this machine's clock is behind them.
        """
        try:
            lines = [*read_actions(self.archive), *read_actions(self._own)]
        except OSError as e:
            raise UsageError(f"{error_line(e)}; verify that log, move it away, then make a new dry run") from None
        newest = max((line.time for line in lines), default=self._since)
        if newest > pd.Timestamp.now("UTC") + CLOCK_TOLERANCE:
            places = f"{self.archive.place} or {self._own.place}"
            behind = f"this machine's clock is behind a line of {newest.isoformat()} in {places}"
            raise UsageError(f"{behind}: correct the clock, or move that log away if the line is wrong")
        return began(lines)

    def begin(self, entry: dict[str, Any]) -> Text | None:
        """Add an action before it begins; return the refusal, if any, and then nothing is added.

        It is decided by the lines at the moment of the write: of two concurrent actions the second sees the first.
        """
        refusal = list[Text]()

        def stops(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
            past = began(read_actions(self.archive, entries))
            name = entry["what"].get("name")
            if entry.get("job") and any(line.job == entry["job"] for line in past):
                refusal[:] = [say("action.approval.used", by=entry["approved_by"])]
            elif name and any(line.name == name and line.time > self._since for line in past):
                refusal[:] = [say("action.refused.meanwhile", name=name)]
            return entry if refusal else None

        try:
            self.archive.make()
            self.archive.add_line(ACTION, entry, stops)
        except (OSError, UsageError) as e:
            return say("action.refused.ledger", detail=error_line(e))
        return next(iter(refusal), None)

    def end(self, entry: dict[str, Any]) -> str:
        """Add the end of an action, or that it did not begin; return the error or ""."""
        try:
            self.archive.add_line(ACTION, {name: value for name, value in entry.items() if name != "job"})
        except (OSError, UsageError) as e:
            return error_line(e)
        return ""


def began(lines: list[ActionLine]) -> list[ActionLine]:
    """Return the lines of actions that were begun: no dry runs, approvals, and refusals, also after the first line."""
    refused = {line.id for line in lines if line.result == "refused"}
    return [line for line in lines if line.result in ("begun", "done", "failed") and line.id not in refused]
