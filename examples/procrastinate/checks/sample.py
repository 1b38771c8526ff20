"""The sample of queues, workers and running jobs that most steps share, and what follows from it alone.

procrastinate keeps no link between a worker's row and its sessions, and a worker that stops, also by itself when a
heartbeat fails, ends its heartbeat before its jobs. So a silent worker is not yet a dead one, and a job that is put
back too early runs twice: `Sample.whereabouts` says what is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.check import Check, DescribeChart
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Status
from runbook_lib.packs.queues.checks.database import HoldingSession
from runbook_lib.packs.queues.checks.sample import FlowStep, Open, QueueSample
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
    aside=("cancelled", "aborting", "aborted"),
    due="scheduled_at",
    attempts="attempts",
)


class Queue(rows.Row, query="jobs/queues"):
    """The jobs of one queue. `served` are run by a worker with a heartbeat; `begun_s` None is long ago."""

    queue: str = ""
    due: int = 0
    oldest_due_s: float | None = None
    behind: int = 0
    later: int = 0
    tried: int = 0
    doing: int = 0
    served: int = 0
    begun_s: float | None = None
    taken_by_living: bool = False


class Worker(rows.Row, query="workers/heartbeats"):
    """A row of procrastinate_workers; a worker that shuts down cleanly deletes its row."""

    silent_s: float | None = None


class Job(rows.Row, query="jobs/doing"):
    """A job in `doing`. Without `silent_s` its worker's row is gone."""

    job: int = 0
    task: str = ""
    abort_requested: bool = False
    silent_s: float | None = None
    running_s: float | None = None


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

    started: pd.Timestamp | None = None


class Whereabouts(StrEnum):
    """What is known of the workers without a heartbeat."""

    GONE = "gone"  # their process has ended: nobody will finish what they had
    LIKELY_GONE = "likely_gone"  # they do not listen and their grace is over; one may still run a job
    CONNECTED = "connected"  # one of them still listens: it hangs, or a job keeps its event loop
    ENDING = "ending"  # they may have been told to stop and be finishing their jobs, as long as their grace lasts
    UNSEEN = "unseen"  # it can not be told from the database


@dataclass(frozen=True)
class Sample:
    """All values of one moment, and the conditions of the tables of cases."""

    queues: list[Queue]
    workers: list[Worker]
    doing: list[Job]
    sessions: Sessions
    holders: list[HoldingSession]
    flow: list[TenSeconds]
    instances: list[Instance] | None
    given: JudgeInput

    @property
    def settings(self) -> Facts:
        """The workers' settings."""
        return facts(self.given)

    def count(self, what: str) -> int:
        """Return the jobs of all queues that are due, behind, later, tried, doing or served."""
        return sum(int(getattr(q, what)) for q in self.queues)

    def per_minute(self, what: str) -> float:
        """Return the events of a kind in the last minute."""
        return float(sum(getattr(ten, what) for ten in self.flow if ten.tens_ago < 6))

    @property
    def due(self) -> int:
        """Jobs that a worker may take now."""
        return self.count("due")

    @property
    def left(self) -> int:
        """Jobs in `doing` whose worker has no heartbeat."""
        return self.count("doing") - self.count("served")

    @property
    def oldest_due_s(self) -> float | None:
        """How long the oldest due job waits; 0 where there is none, None where it is not known."""
        if not self.due:
            return 0.0
        return max((q.oldest_due_s for q in self.queues if q.oldest_due_s is not None), default=None)

    @property
    def late(self) -> bool:
        """Whether a job waits for too long, as far as is known."""
        return self.given.limits["queue.oldest"].status(self.oldest_due_s) is not Status.OK

    @property
    def alive(self) -> list[Worker]:
        """The workers whose heartbeat is not overdue."""
        return [w for w in self.workers if self._is_sign(w.silent_s)]

    @property
    def silent(self) -> list[Worker]:
        """The registered workers whose heartbeat is overdue."""
        return [w for w in self.workers if not self._is_sign(w.silent_s)]

    @property
    def running(self) -> list[Job]:
        """The jobs run by workers with a heartbeat; the longest 200 are known."""
        return [j for j in self.doing if self._is_sign(j.silent_s)]

    @property
    def orphans(self) -> list[Job]:
        """The jobs in `doing` whose worker has no heartbeat, or is no longer registered."""
        return [j for j in self.doing if not self._is_sign(j.silent_s)]

    def _is_sign(self, silent_s: float | None) -> bool:
        return silent_s is not None and silent_s < self.settings.stalled_after_s

    def as_rows(self) -> QueueSample:
        """Return the sample as the room's judges take it: what the events tell, and jobs without a worker as held."""
        done = JOBS.done if self.settings.delete_jobs == "never" else ()
        told = replace(JOBS, created="at", finished="at", done=done)
        counted = {name: self.count(name) for name in ("due", "later", "tried")}
        rest = Open(oldest_s=self.oldest_due_s, working=self.count("doing"), held=self.left, **counted)
        flow = [FlowStep(t.tens_ago, t.deferred, t.succeeded, t.failed) for t in self.flow]
        return QueueSample(told, rest, flow, None, [], [], self.given)

    @property
    def works(self) -> bool:
        """Whether a job is run, or was begun in the last minute."""
        return bool(self.running or self.per_minute("begun"))

    @property
    def spare(self) -> int:
        """How many jobs more the workers could run."""
        return max(len(self.alive) * self.settings.concurrency - self.count("served"), 0)

    @property
    def passed_over(self) -> Queue | None:
        """The queue with the oldest late job of which none runs and none was begun since this job became due."""
        limit = self.given.limits["queue.oldest"]
        late = [q for q in self.queues if q.due and not q.served and limit.reached(q.oldest_due_s)]
        passed = [q for q in late if q.begun_s is None or q.begun_s >= (q.oldest_due_s or 0.0)]
        return max(passed, key=lambda q: q.oldest_due_s or 0.0, default=None)

    @property
    def unheard(self) -> bool:
        """Whether no living worker is known to take from the queue that is passed over."""
        return self.passed_over is not None and not self.passed_over.taken_by_living

    @property
    def row_holders(self) -> list[HoldingSession]:
        """The sessions that have locked rows of the jobs' table for too long."""
        limit = self.given.limits["transactions.held"]
        return [h for h in self.holders if limit.reached(h.transaction_s)]

    @property
    def connections_full(self) -> bool:
        """Whether so few connections are left that a new worker may get none."""
        used = 100 * self.sessions.used / self.sessions.usable if self.sessions.usable else None
        return self.given.limits["connections.used"].status(used) is not Status.OK

    @property
    def absent_s(self) -> float:
        """For how long at least those who hold the orphans have given no sign; a row that is gone was overdue."""
        silence_s = min((w.silent_s for w in self.silent if w.silent_s is not None), default=0.0)
        overdue = self.settings.stalled_after_s
        return min((overdue if j.silent_s is None else j.silent_s for j in self.orphans), default=silence_s)

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
        skew_s = self.given.limits["clock.offset"].critical or 0.0
        ago_s = min((s for s in began if s is not None), default=0.0) - skew_s
        latest = self.given.as_of - pd.Timedelta(seconds=ago_s)
        return all(i.started is not None and i.started > latest for i in self.instances)

    @property
    def look_again_s(self) -> float | None:
        """When the grace of those that may be ending is over."""
        left = self.settings.grace_s - self.absent_s
        return max(left, self.settings.poll_interval_s) if self.whereabouts is Whereabouts.ENDING else None


def collect_sample(rb: Context) -> Frames:
    """Collect the sample in one snapshot; if a worker is missing, also its processes. Raises SourceError."""
    own = facts(rb)
    asked = {"stalled_after_s": own.stalled_after_s, "application": own.application, **_bounds(rb)}
    queries = ("jobs/queues", "workers/heartbeats", "jobs/doing", "workers/sessions", "events/flow")
    frames = ("queues", "workers", "doing", "sessions", "flow")
    with rb.snapshot() as db:
        answers = {frame: db.ask(query, **asked) for frame, query in zip(frames, queries, strict=True)}
        parts = FrameCollector(answers | {"holders": db.ask(JOBS.query("holders"), table=JOBS.regclass)})
    seen = read_sample(parts.answers, rb.given())
    if seen.left or not seen.workers or seen.silent:
        with parts.part("workloads") as found:
            pods = rb.workloads.pods(own.workloads.worker)
            found["instances"] = pd.DataFrame(pods, columns=["name", "ready", "started"])
    return parts.frames()


def _bounds(rb: Context) -> dict[str, float]:
    """Return how many waiting jobs, or newest events, a query reads at most, and of which time."""
    return {"most": int(rb.number("looked_at")), "within_s": rb.number("lately")}


def check(
    step: str, judge: Callable[[Sample, Frames], Finding], *queries: str, charts: tuple[DescribeChart, ...] = ()
) -> Check:
    """Return a check whose judge reads the sample, and a frame of each query; the runner's word only adds to it."""
    names = tuple(query.partition("/")[2] for query in queries)

    def collect(rb: Context) -> Frames:
        with rb.snapshot() as db:
            return {name: db.ask(query, **_bounds(rb)) for name, query in zip(names, queries, strict=True)}

    return Check(
        step,
        collect if queries else None,
        lambda frames, given: judge(read_sample(frames, given), frames),
        charts,
        needs=("queues", "workers", "doing", "sessions", *names),
        optional=("workloads",),
        shared=collect_sample,
    )


def read_sample(frames: Frames, given: JudgeInput) -> Sample:
    """Return the sample of these frames."""
    return Sample(
        rows.each(frames.get("queues"), Queue),
        rows.each(frames.get("workers"), Worker),
        rows.each(frames.get("doing"), Job),
        rows.one(frames.get("sessions"), Sessions),
        rows.each(frames.get("holders"), HoldingSession),
        rows.each(frames.get("flow"), TenSeconds),
        rows.each(frames["instances"], Instance) if "instances" in frames else None,
        given,
    )
