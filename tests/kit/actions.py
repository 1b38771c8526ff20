"""An action of the tests, and what its log says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from runbook_lib.actions.action import ActionError, Authorization
from runbook_lib.checks.context import Context, Progress
from runbook_lib.governance.ledger import Ledger
from runbook_lib.model.finding import Reason, Text, say
from runbook_lib.model.outcome import Precondition
from runbook_lib.sources.source import SourceError
from runbook_lib.store.archive import ACTION, Archive
from tests.kit.dossiers import LINES

WORD: Any = {"approved_by": "Aoki", "reason": "the worker hangs"}


class Counter:
    """An action on a number, which fails where it is told to."""

    name = "restart"

    def __init__(self, fails: str = "", holds: bool | None = True, works: bool = True, *, warns: bool = False) -> None:
        self.n, self.fails, self.holds, self.works, self.warns = 0, fails, holds, works, warns

    def what(self) -> dict[str, Any]:
        return {"workload": "counter"}

    def command(self) -> str:
        return "count"

    def preconditions(self, rb: Context) -> list[Precondition]:
        self._fail("preconditions")
        return [Precondition(say("action.restart.answers", source="postgres"), self.holds, warns=self.warns)]

    def state(self, rb: Context) -> dict[str, Any]:
        self._fail("state")
        return {"n": self.n}

    def run(self, rb: Context, word: Authorization, progress: Progress) -> dict[str, Any]:
        self._fail("run")
        if self.fails == "halfway":
            self.n += 1
            raise ActionError("stopped at user_id=alice")
        if self.fails == "interrupted":
            raise KeyboardInterrupt
        self.n += 1
        self._fail("halfway")
        return {"counted": 1}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        self._fail("verify")
        assert did == {"counted": 1}
        return self.works, say("action.restart.idle", name="counter")

    def _fail(self, where: str) -> None:
        if self.fails == f"{where}-interrupted":
            raise KeyboardInterrupt
        if self.fails == f"{where}-broken":
            raise TypeError("unexpected for user_id=alice")
        if self.fails == where:
            raise SourceError("workloads", Reason.UNREACHABLE, "no route to password=hunter2")


def was_done(rb: Context, minutes_ago: float, result: str = "done", incident: str = "A-1", **line: Any) -> None:
    """A line of an action log, and where something was begun of the ledger, some minutes ago by the clock of then."""
    time = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    about = {"id": f"{incident}-{minutes_ago}", "result": result, "time": time.isoformat(), "target": "default"}
    entry = LINES[ACTION] | about | line
    logs = [Archive(rb.archive.output, incident)]
    if result not in ("dry", "refused"):
        of_target = replace(rb, parameters=rb.parameters.model_copy(update={"target": entry["target"]}))
        logs.append(Ledger(of_target).archive)
    for archive in logs:
        archive.prepare()
        archive.add_line(ACTION, entry, lambda _: None)
