"""The sample of queues, workers and running jobs that most steps share, and what follows from it alone.

procrastinate keeps no link between a worker's row and its sessions, and a worker that stops, also by itself when a
heartbeat fails, ends its heartbeat before its jobs. So a silent worker is not yet a dead one, and a job that is put
back too early runs twice: `Sample.whereabouts` says what is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.checks.check import Check, Collect, Judge
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Status
from runbook_lib.packs.queues.checks.database import HoldingSession
from runbook_lib.packs.queues.queue import Queue as Table

from ..facts import Facts, facts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: The table of jobs. When a job was begun or ended is in the table of events.
JOBS = Table(
    "procrastinate_jobs",
    id="id",
    state="status",
    waiting=("todo",),
    working=("doing",),
    done=("succeeded",),
    failed=("failed",),
    due="scheduled_at",
    attempts="attempts",
)


class Queue(rows.Row, query="jobs/queues"):
    """The jobs of one queue. `served` are run by a worker with a heartbeat; `begun_s` None is long ago."""

    queue: str = ""
    due: int = 0
    oldest_due_s: float | None = None
    behind: int = 0
    oldest_behind_s: float | None = None
    later: int = 0
    tried: int = 0
    doing: int = 0
    served: int = 0
    begun_s: float | None = None
    taken_by_living: bool = False


class Worker(rows.Row, query="workers/heartbeats"):
    """A row of procrastinate_workers; a worker that shuts down cleanly deletes its row."""

    worker: int = 0
    silent_s: float | None = None
    doing: int = 0


class Job(rows.Row, query="jobs/doing"):
    """A job in `doing`. Without a `worker` its worker's row is gone, and without `silent_s` too."""

    job: int = 0
    queue: str = ""
    task: str = ""
    attempts: int = 0
    abort_requested: bool = False
    worker: int | None = None
    silent_s: float | None = None
    running_s: float | None = None
    behind: int = 0


class Sessions(rows.Row, query="workers/sessions"):
    """The sessions of this database that may be those by which workers listen, and those that surely are.

    Unless we see those of others, only `used` and `usable` mean something. A standby has sessions of its own, and rows
    of a while ago.
    """

    standby: bool = False
    sees_others: bool = False
    may_listen: int = 0
    listens: int = 0
    used: int = 0
    usable: int = 0


class TenSeconds(rows.Row, query="events/flow"):
    """The events of ten seconds; `tens_ago` 0 are the last ten."""

    tens_ago: int = 0
    deferred: int = 0
    begun: int = 0
    succeeded: int = 0
    retried: int = 0
    failed: int = 0


class Instance(rows.Row):
    """A process, or pod, of the worker, as its runner reports it."""

    name: str = ""
    ready: bool = False
    started: pd.Timestamp | None = None


class Whereabouts(StrEnum):
    """What is known of the workers without a heartbeat."""

    GONE = "gone"
    """Their process has ended: nobody will finish what they had."""
    LIKELY_GONE = "likely_gone"
    """They do not listen and their grace is over; one that stopped by itself may still run a job."""
    CONNECTED = "connected"
    """One of them still listens: it hangs, or a job keeps its event loop."""
    ENDING = "ending"
    """They may have been told to stop and be finishing their jobs, as long as their grace lasts."""
    UNSEEN = "unseen"
    """It can not be told from the database."""


@dataclass(frozen=True)
class Sample:
    """All values of one moment."""

    queues: list[Queue]
    workers: list[Worker]
    doing: list[Job]
    sessions: Sessions
    holders: list[HoldingSession]
    flow: list[TenSeconds]
    instances: list[Instance] | None
    settings: Facts
    as_of: pd.Timestamp
    skew_s: float

    @cached_property
    def alive(self) -> list[Worker]:
        """The workers whose heartbeat is not overdue."""
        return [w for w in self.workers if w.silent_s is not None and w.silent_s < self.settings.stalled_after_s]

    @cached_property
    def silent(self) -> list[Worker]:
        """The registered workers whose heartbeat is overdue."""
        return [w for w in self.workers if w not in self.alive]

    @cached_property
    def running(self) -> list[Job]:
        """The jobs run by workers with a heartbeat; the longest 200 are known."""
        return [j for j in self.doing if j.silent_s is not None and j.silent_s < self.settings.stalled_after_s]

    @cached_property
    def orphans(self) -> list[Job]:
        """The jobs in `doing` whose worker has no heartbeat, or is no longer registered."""
        running = {j.job for j in self.running}
        return [j for j in self.doing if j.job not in running]

    @property
    def spare(self) -> int:
        """How many jobs more the workers could run; below 0 the target's `concurrency` is not theirs."""
        return len(self.alive) * self.settings.concurrency - sum(q.served for q in self.queues)

    def per_minute(self, what: str) -> float:
        """Events of a kind in the last minute."""
        return float(sum(getattr(ten, what) for ten in self.flow if ten.tens_ago < 6))

    @cached_property
    def due(self) -> int:
        """Jobs that a worker may take now."""
        return sum(q.due for q in self.queues)

    @cached_property
    def oldest_due_s(self) -> float | None:
        """How long the oldest of them waits; 0 where there is none, None where it is not known."""
        if not self.due:
            return 0.0
        return max((q.oldest_due_s for q in self.queues if q.oldest_due_s is not None), default=None)

    @property
    def absent_s(self) -> float:
        """For how long at least those who hold the orphans have given no sign; a row that is gone was overdue."""
        overdue = self.settings.stalled_after_s
        return min((overdue if j.silent_s is None else j.silent_s for j in self.orphans), default=self._silence_s)

    @property
    def _silence_s(self) -> float:
        return min((w.silent_s for w in self.silent if w.silent_s is not None), default=0.0)

    @property
    def whereabouts(self) -> Whereabouts:
        """What is known of the workers without a sign; of all of them together, since no session tells whose it is."""
        seen, own = self.sessions, self.settings
        if self._none_is_theirs():
            return Whereabouts.GONE
        if seen.standby or not seen.sees_others or not own.listens:
            return Whereabouts.UNSEEN
        if seen.listens > len(self.alive) or (own.application and seen.may_listen > len(self.alive)):
            return Whereabouts.CONNECTED
        if seen.may_listen > len(self.alive):
            return Whereabouts.UNSEEN  # it may be somebody else's
        if self.absent_s < own.grace_s:
            return Whereabouts.ENDING
        # Nobody that is well would still be at such a job.
        over = all(j.running_s is not None and j.running_s > own.longest_job_s for j in self.orphans)
        return Whereabouts.GONE if self.orphans and over else Whereabouts.LIKELY_GONE

    def _none_is_theirs(self) -> bool:
        """Whether each process of the worker that runs was started later than the one that has fallen silent."""
        began = [j.running_s for j in self.orphans] or [w.silent_s for w in self.silent]
        if self.instances is None or None in began:
            return False
        latest = self.as_of - pd.Timedelta(seconds=min((s for s in began if s is not None), default=0.0) - self.skew_s)
        return all(i.started is not None and i.started > latest for i in self.instances)

    @property
    def look_again_s(self) -> float | None:
        """When the grace of those that may be ending is over."""
        left = self.settings.grace_s - self.absent_s
        return max(left, self.settings.poll_interval_s) if self.whereabouts is Whereabouts.ENDING else None


def collect_sample(rb: Context) -> Frames:
    """Collect the sample in one snapshot; if a worker is missing, also its processes. Raises SourceError."""
    overdue = facts(rb).stalled_after_s
    with rb.snapshot() as db:
        frames = {
            "queues": db.ask("jobs/queues", most=row_limit(rb), stalled_after_s=overdue),
            "workers": db.ask("workers/heartbeats"),
            "doing": db.ask("jobs/doing", most=row_limit(rb)),
            "sessions": db.ask("workers/sessions", application=facts(rb).application),
            "holders": db.ask(JOBS.query("holders"), table=JOBS.regclass),
            "flow": db.ask("events/flow", most=row_limit(rb), within_s=rb.number("lately")),
        }
    parts = FrameCollector(frames)
    silences = [math.inf if w.silent_s is None else w.silent_s for w in rows.each(frames["workers"], Worker)]
    left = sum(q.doing - q.served for q in rows.each(frames["queues"], Queue))
    if left or not silences or max(silences) >= overdue:
        with parts.part("workloads") as answers:
            found = rb.workloads.pods(facts(rb).workloads.worker)
            answers["instances"] = pd.DataFrame(found, columns=["name", "ready", "started"])
    return parts.frames()


def row_limit(rb: Context) -> int:
    """Return how many waiting jobs, or newest events, a query reads at most."""
    return int(rb.number("looked_at"))


def check(step: str, judge: Judge, collect: Collect | None = None, **more: Any) -> Check:
    """Return a check whose judge reads the sample; the runner's word only adds to it."""
    needs = ("queues", "workers", "doing", "sessions", *more.pop("needs", ()))
    return Check(step, collect, judge, shared=collect_sample, needs=needs, optional=("workloads",), **more)


def read_sample(frames: Frames, given: JudgeInput) -> Sample:
    """Return the sample of these frames."""
    return Sample(
        queues=rows.each(frames["queues"], Queue),
        workers=rows.each(frames["workers"], Worker),
        doing=rows.each(frames["doing"], Job),
        sessions=rows.one(frames["sessions"], Sessions),
        holders=rows.each(frames.get("holders"), HoldingSession),
        flow=rows.each(frames.get("flow"), TenSeconds),
        instances=rows.each(frames["instances"], Instance) if "instances" in frames else None,
        settings=facts(given),
        as_of=given.as_of,
        skew_s=given.limits["clock.offset"].critical or 0.0,
    )


def connections_full(sample: Sample, given: JudgeInput) -> bool:
    """Return whether so few connections are left that a new worker may get none."""
    used = 100 * sample.sessions.used / sample.sessions.usable if sample.sessions.usable else None
    return given.limits["connections.used"].status(used) is not Status.OK
