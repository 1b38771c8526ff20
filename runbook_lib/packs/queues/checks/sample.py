"""How steps collect, and the sample of the table that most of them read, with what follows from it alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from runbook_lib.checks.check import unknown_from_error
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, say, unknown
from runbook_lib.model.frames import row
from runbook_lib.packs.postmortem.incident import collect_runs, window_of
from runbook_lib.sources.source import SourceError

from .. import remedies
from ..facts import Facts, facts
from ..queue import Queue

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: How the name of a part begins that is too costly for this table: it stays so, and the other parts say what they can.
TOO_COSTLY = "too costly: "
#: The errors of a table that is not as the pack describes it.
_OTHER = ("column_missing", "table_missing", "schema_missing")


class Open(rows.Row, query="queues/backlog"):
    """The rows that have not ended. `undated` rows are in work since an unknown time, `at_most_s` at most."""

    due: int = 0
    later: int = 0
    tried: int = 0
    oldest_s: float | None = None
    working: int = 0
    held: int = 0
    overdue_s: float | None = None
    undated: int = 0
    at_most_s: float | None = None
    claimed_s: float | None = None


class FlowStep(rows.Row, query="queues/flow"):
    """What happened in ten seconds; `tens_ago` 0 are the last ten."""

    tens_ago: int = 0
    arrived: int = 0
    succeeded: int = 0
    failed: int = 0


class Owner(rows.Row, query="queues/owners"):
    """A worker that holds rows, as the table names it."""

    worker: str = ""
    expired: int = 0


class Group(rows.Row, query="queues/groups"):
    """A queue of a table that has many; `quiet_s` is since when none of its rows was taken or ended, None for long."""

    name: str = ""
    due: int = 0
    oldest_s: float | None = None
    working: int = 0
    quiet_s: float | None = None


class Failing(rows.Row, query="queues/errors"):
    """The rows with one error text: failed lately, failed at an unknown time, and those that wait for another try."""

    text: str = ""
    failed: int = 0
    undated: int = 0
    tried: int = 0
    tries: int | None = None
    last_s: float | None = None


@dataclass(frozen=True)
class Collector:
    """Collects frames by queries of this room, each as a part of its own and with the name of its query."""

    queue: Queue
    names: tuple[str, ...]

    def __call__(self, rb: Context) -> Frames:
        """Collect the frames. Raises SourceError."""
        parts = FrameCollector()
        values: dict[str, Any] = {
            "table": self.queue.regclass,
            "columns": self.queue.names,
            "state": self.queue.state or "",
        }
        if isinstance(rb.facts, Facts):
            overdue_s = rb.catalog.limits["queue.overdue"].warning
            values |= {"within_s": rb.number("lately"), "longest_s": rb.facts.longest_s, "overdue_s": overdue_s}
        if "history" in self.names:
            span = vars(window_of(rb, collect_runs(rb)))
            values |= span
            parts.answers["span"] = row(**span)
        with rb.snapshot() as db:
            parts.ask(db, {name: self.queue.query(name) for name in self.names}, **values)
        gated = {name for name, e in parts.failures.items() if e.code == "cost_gate" and name != "backlog"}
        parts.failures = {f"{TOO_COSTLY}{n}" if n in gated else n: e for n, e in parts.failures.items()}
        return parts.frames()


@dataclass(frozen=True)
class QueueSample:
    """All values of one moment. What the table cannot tell, or was not read, is None."""

    queue: Queue
    open: Open
    flow: list[FlowStep] | None
    owners: list[Owner] | None
    groups: list[Group]
    failing: list[Failing]
    given: JudgeInput

    @cached_property
    def oldest_s(self) -> float | None:
        """How long the oldest due row waits; 0 if none is due."""
        return self.open.oldest_s if self.open.due else 0.0

    @cached_property
    def late(self) -> bool:
        """Whether a row waits for too long."""
        return self.given.limits["queue.oldest"].reached(self.oldest_s)

    def lately(self, what: str, within_s: float = math.inf) -> int | None:
        """Return how many rows arrived, succeeded or failed lately."""
        if self.flow is None or not self.queue.tells(what):
            return None
        return sum(int(getattr(ten, what)) for ten in self.flow if 10 * ten.tens_ago < within_s)

    @cached_property
    def arrived(self) -> float | None:
        """Rows that arrived in the last minute."""
        return self.lately("arrived", 60.0)

    @cached_property
    def ended(self) -> float | None:
        """Rows that ended in the last minute, well or not."""
        succeeded, failed = self.lately("succeeded", 60.0), self.lately("failed", 60.0)
        return None if succeeded is None else succeeded + (failed or 0)

    @cached_property
    def quiet_s(self) -> float | None:
        """For how long no row has ended, or been taken and is in work still; infinity for long, None if not known."""
        if self.flow is None or not self.queue.finished:
            return self.open.claimed_s
        ends = [10.0 * t.tens_ago for t in self.flow if t.succeeded or t.failed]
        return min([*ends, *([] if self.open.claimed_s is None else [self.open.claimed_s])], default=math.inf)

    @cached_property
    def passed_over(self) -> Group | None:
        """The queue of the table whose rows are late while only those of others are taken; None if there is none."""
        limit, quiet_s = self.given.limits["queue.oldest"], self.given.number("quiet")
        left = [g for g in self.groups if limit.reached(g.oldest_s) and not g.working]
        left = [g for g in left if g.quiet_s is None or g.quiet_s >= quiet_s]
        return left[0] if left and len(left) < len(self.groups) else None

    @cached_property
    def overdue_s(self) -> float | None:
        """For how long the row is held that is held for longest, beyond its time; None if it is not known."""
        limit, found = self.given.limits["queue.overdue"], max(self.open.overdue_s or 0.0, 0.0)
        may_be = self.open.at_most_s is None or limit.reached(self._beyond(0.0))
        return None if self.open.undated and may_be and not limit.reached(found) else found

    @cached_property
    def likely_overdue_s(self) -> float | None:
        """The same for rows of an unknown start, if rows are taken in their order; None if nothing tells."""
        return None if self.oldest_s is None else self._beyond(self.oldest_s)

    def _beyond(self, waits_s: float) -> float | None:
        at_most = self.open.at_most_s
        return None if at_most is None else at_most - waits_s - facts(self.given).longest_s

    @property
    def shown(self) -> dict[str, float | None]:
        """The numbers of headlines; what no row has is None."""
        seen, oldest = self.open, self.oldest_s if self.open.due else None
        numbers = {"due": seen.due, "later": seen.later, "working": seen.working, "held": seen.held, "oldest": oldest}
        return numbers | {"arrived": self.arrived, "ended": self.ended}


def read_sample(frames: Frames, given: JudgeInput, queue: Queue) -> QueueSample:
    """Return the sample of these frames."""
    return QueueSample(
        queue,
        rows.one(frames.get("backlog"), Open),
        rows.each(frames["flow"], FlowStep) if "flow" in frames else None,
        rows.each(frames["owners"], Owner) if "owners" in frames else None,
        rows.each(frames.get("groups"), Group),
        rows.each(frames.get("errors"), Failing),
        given,
    )


def on_error(queue: Queue, e: SourceError, given: JudgeInput) -> Finding:
    """Return UNKNOWN; if the table is another than described, with the section that compares the two."""
    if e.code not in _OTHER:
        return unknown_from_error(e, given.catalog)
    said, reach = say("reach.other", table=queue.table, detail=e.detail), given.catalog.section_with("reach")
    shown = (remedies.see(given, queue, "see_table"),)
    return unknown("", Reason.NO_DATA, said, next_sections=(reach,) if reach else (), proposals=shown)
