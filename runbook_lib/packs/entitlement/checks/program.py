"""Decide whether a service's process and its loop work, and if not, why. Shared by 4.1.1 and 4.1.3.

By its rows alone, a loop that is switched off, that fails, or whose process cannot start looks like one that hangs,
and a restart helps none of these. While nothing can be written, hardly any row is due. So the services and the
database are queried whenever the loop has finished no row lately, whether rows are due or not.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions.proposals import logs, pods, restart, start, undo_settings
from runbook_lib.book import patterns
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.checks.sample import FIRST
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Proposal, Status, Text, say
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.actions.restart import is_starting
from runbook_lib.packs.entitlement.evidence import logins, services, sessions
from runbook_lib.packs.entitlement.evidence.services import LoopActivity, RequestResult
from runbook_lib.packs.entitlement.evidence.sessions import SessionState
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: The frame and its columns in which a loop's claims and marks stand.
SIGNS = {"delivery": ("activity", ("last_claim", "last_sent")), "relay": ("backlog", ("last_claim", "last_published"))}
_RUN_EXCEPTION, _SERVICE_LOG = patterns.source(PACK, "run exception"), patterns.source(PACK, "service log")


class Program(rows.Row):
    """A workload's instances and its loop's settings; a field is None if it could not be read.

    `enabled` is the loop's switch, `poll_s` the pause between two runs in seconds, `batch` the rows of a run. `young`:
    all instances came up a moment ago. `failed`: an earlier instance ended at its start. `wanted` is the number of
    instances that should run, `started` the start of the newest one.
    """

    enabled: bool | None = None
    poll_s: float | None = None
    batch: int | None = None
    ready: int | None = None
    young: bool | None = None
    failed: bool | None = None
    wanted: int | None = None
    started: pd.Timestamp | None = None


class ProcessState(StrEnum):
    """The state of a loop and its process. The observation of a loop of a side is `SIDE.STATE`."""

    RUNS = "runs"
    OFF = "off"  # by its settings: switched off, or in a long pause
    DOWN = "down"  # no instance should run
    STARTING = "starting"
    NOT_UP = "not_up"
    HANGS = "hangs"
    MAY_HANG = "may_hang"  # its process has been silent, but not for long enough
    SILENT = "silent"  # it hangs or is off: its settings are unknown
    BLOCKED = "blocked"  # by the database
    FAILS = "fails"


_DOUBTFUL = (ProcessState.OFF, ProcessState.STARTING, ProcessState.MAY_HANG, ProcessState.SILENT)


@dataclass(frozen=True)
class LoopState:
    """The state of a side's loop; None if not known.

    `database` is the observation of the database that explains it; it is the same for both sides.
    `exception` is the one that its runs end in, `silent_s` the seconds without a sign of its process, `pause_s` a long
    pause between its runs by its settings, `others` the number of database sessions that do its work and belong to no
    instance known to the runner. `locked`: the loop was not seen running, and its service waits for a lock.
    """

    side: str
    state: ProcessState | None = None
    database: str = ""
    exception: str = ""
    silent_s: float | None = None
    pause_s: float | None = None
    others: int | None = None
    locked: bool = False

    @property
    def wrong(self) -> bool:
        """Whether the state explains why the loop does not work."""
        return bool(self.database) or self.state not in (None, ProcessState.RUNS)

    @property
    def status(self) -> Status:
        """The status that the state alone gives a step, whether rows are due or not."""
        if not self.wrong:
            return Status.OK
        return Status.WARNING if self.state in _DOUBTFUL else Status.CRITICAL

    @property
    def observations(self) -> tuple[str, ...]:
        """The observations: the state, the database's part in it, an unknown instance at the loop's work, a lock."""
        state = f"{self.side}.{self.state}" if self.state else ""
        shown = {"elsewhere": self.others, "locked": self.locked}
        return (*filter(None, (state, self.database)), *(f"{self.side}.{name}" for name, seen in shown.items() if seen))

    def headline(self, due: float | None, **facts: Any) -> Text:
        """Return the headline for the state, with the number of rows that are `due`."""
        named = self.exception and self.database != "database.keeps_out"
        shown = ProcessState.FAILS if named else self.database.removeprefix("database.") or self.state
        facts |= {"exception": self.exception, "quiet": self.silent_s, "pause": self.pause_s, "others": self.others}
        who = {"service": change.SIDES[self.side][0], "loop": say(f"program.loop_{self.side}")}
        return say(f"program.{shown}", **facts | who, due=due or None)


def ask(rb: Context, step: str, parts: FrameCollector, side: str, late: bool, at_work: bool = False) -> None:
    """Query the services and the database for what each process does, in two samples that the steps of a run share.

    If rows are `late`, or the samples show that the loop does not work, the runner is queried for the workload too, and
    for the log of an instance that has just been started. If neither the services nor the database know the process,
    the runner is queried as well: both services may be stopped. If the loop was `at_work` a moment ago, the samples are
    kept only if they show it running, or another process that does its work: a row that was just finished is better
    evidence than a process that was not seen.
    Frames: those of `evidence.services.look` and `evidence.sessions.look`; program (one row, see `Program`).
    """
    looked = look_twice(rb, step)
    samples = looked.answers
    if "service_sessions" not in samples:
        parts.failures |= looked.failures
    others = bool(sessions.sessions_beyond_pool(samples, rb.given(), change.SIDES[side][0]))
    if at_work and not late and not others:
        if seen_running(samples, rb.given(), side):
            parts.answers |= samples
        return
    parts.answers |= samples
    seen = loop_state(parts.answers, rb.given(), side)
    if late or seen.wrong or others:
        with parts.part("program") as answers:
            answers["program"] = _read_program(rb, side)
    elif not seen.observations:
        parts.answers |= collect_settings(rb, side)


def collect_settings(rb: Context, side: str) -> Frames:
    """Return the frame program; {} if the runner does not answer."""
    with suppress(SourceError):
        return {"program": _read_program(rb, side)}
    return {}


def is_throttled(frames: Frames, given: JudgeInput) -> bool:
    """Return whether the settings of delivery already let through no more than `remedies.throttle`; False if unread."""
    known = rows.one(frames.get("program"), Program)
    return remedies.is_throttled(given, "delivery", known.batch, known.poll_s)


def _read_program(rb: Context, side: str) -> pd.DataFrame:
    name = rb.facts.workloads.program(change.SIDES[side][0])
    settings = change.current_settings(rb.catalog.settings, side, rb.workloads.environment(name))
    pods, young, failed = _read_instances(rb, name)
    return row(
        enabled=settings[f"{side}.enabled"],
        poll_s=settings[f"{side}.poll_interval"],
        batch=settings[f"{side}.batch_size"],
        ready=sum(pod["ready"] for pod in pods),
        wanted=rb.workloads.replicas(name),
        young=young,
        failed=failed,
        started=logins.newest_start(pods),
    )


def _read_instances(rb: Context, name: str) -> tuple[list[dict[str, Any]], bool, bool]:
    """Return a workload's instances, whether all came up a moment ago for the first time, and whether a start failed.

    If the runner does not count an instance's restarts, the failed starts are read from the log of a young instance.
    """

    pods = rb.workloads.pods(name)
    if not is_starting(pods, rb.now(), rb.number("program.young")):
        return pods, False, False
    failed = False
    if any(pod["restarts"] is None for pod in pods):
        with suppress(SourceError):
            log = rb.workloads.logs(name, rb.number("program.log"))
            failed = any(_SERVICE_LOG.says("failed_start", entry.message) for entry in log.entries)
    return pods, not failed and not any(pod["restarts"] for pod in pods), failed


def look_twice(rb: Context, step: str) -> FrameCollector:
    """Return what each process does, by itself and by its sessions, at both moments; the failure of the latter."""
    names = ("service_samples", "service_asked", "service_sessions", "transactions")
    first = rb.first(step)
    now = FrameCollector(dict(rb.shared(step, services.collect)))
    with now.part("sessions") as answers, rb.snapshot() as db:
        answers |= sessions.collect(db, facts_of(rb).database_role)
    before = {name: first[f"{FIRST}{name}"] for name in names if f"{FIRST}{name}" in first}
    watched = {name: first[name] for name in ("worker_samples",) if name in first}
    return FrameCollector(services.concat_samples(before, now.answers) | watched, now.failures)


def cycle_s(rb: Context) -> float:
    """Return the seconds within which a working loop begins its next run; at most `looks.apart`."""
    return min(rb.number("looks.cycle") * facts_of(rb).poll_interval_s, rb.number("looks.apart"))


def seen_running(frames: Frames, given: JudgeInput, side: str) -> bool:
    """Return whether the loop ran between two samples: by its service's run counter, or by its newest statement."""
    which = change.SIDES[side][0]
    service = services.read(frames, given)[which]
    own = sessions.read(frames, given)[which]
    counted = service.by == "service" and service.loops[side].doing is LoopActivity.RUNS
    return counted or (own.says is SessionState.ALIVE and own.sure)


def loop_state(frames: Frames, given: JudgeInput, side: str) -> LoopState:
    """Return the loop's state by the frames of `ask`, its service's own report first."""
    seen = _decide_state(frames, given, side)
    if not seen.wrong and sessions.wait_for_clients(frames, given):
        seen = replace(seen, database="database.slow_way")
    locked = sessions.read(frames, given)[change.SIDES[side][0]].locked
    seen = replace(seen, locked=locked and seen.state is not ProcessState.RUNS)
    program = rows.one(frames.get("program"), Program)
    if seen.others or program.young or not program.ready:
        return seen
    others = sessions.sessions_beyond_pool(frames, given, change.SIDES[side][0], instances=program.ready)
    return replace(seen, others=others or None)


def _decide_state(frames: Frames, given: JudgeInput, side: str) -> LoopState:
    which = change.SIDES[side][0]
    program = rows.one(frames.get("program"), Program)
    pause_s = facts_of(given).poll_interval_s
    if program.poll_s is not None:
        pause_s = max(pause_s, program.poll_s)
    paced = replace(given, facts=given.facts.model_copy(update={"poll_interval_s": pause_s}))
    service = services.read(frames, paced)[which]
    held = sessions.read(frames, paced)
    loop, own = service.loops[side], held[which]
    quiet = own.says is SessionState.LOOP_SILENT and loop.doing is not LoopActivity.BEHIND
    now = partial(LoopState, side)
    if program.failed:
        return now(ProcessState.NOT_UP)  # whatever its loops do until it ends again
    if loop.doing is LoopActivity.RUNS:
        return now(ProcessState.RUNS)
    if service.locked_out:
        return now(ProcessState.BLOCKED, "database.keeps_out")
    if loop.doing is LoopActivity.FAILS and loop.share == 1:
        cause = _RUN_EXCEPTION.find(loop.exception).observation
        return now(ProcessState.BLOCKED if cause else ProcessState.FAILS, cause, loop.exception)
    if program.wanted == 0:
        # A workload's sessions end with it, so these belong to an unknown instance.
        return now(ProcessState.DOWN, others=own.sessions or None)
    if loop.doing is LoopActivity.OFF or program.enabled is False:
        return now(ProcessState.OFF)
    if given.limits["delivery.silence"].reached(program.poll_s, Status.CRITICAL):
        return now(ProcessState.OFF, pause_s=program.poll_s)
    if program.young and not _has_worked(frames, given, side, program.started):
        return now(ProcessState.STARTING)
    # The service accepted the connection and sent nothing, and its database sessions are silent too.
    hung = service.answers is RequestResult.HUNG and own.sessions and own.says is SessionState.NOT_SEEN
    if hung or (own.says is SessionState.FROZEN and service.answers is not RequestResult.YES):
        sure = service.answers is RequestResult.HUNG or own.sure
        return now(ProcessState.HANGS if sure else ProcessState.MAY_HANG, silent_s=own.newest_s)
    if program.ready == 0:
        return now(ProcessState.NOT_UP)
    if own.says is SessionState.NONE:
        if service.answers is RequestResult.YES:
            return now(ProcessState.BLOCKED, "database.keeps_out")
        if not sessions.no_service_has_sessions(held):
            return now(ProcessState.NOT_UP)
        # Neither service has a session: the database refuses them only if their processes run. Otherwise their
        # sessions may have other names.
        return now(database="database.no_session" if program.ready else "")
    if loop.doing is LoopActivity.LONG and own.says is SessionState.BLOCKED:
        return now(ProcessState.BLOCKED, "database.holds_up")
    if loop.doing is LoopActivity.STILL or (quiet and (loop.doing is LoopActivity.LONG or program.enabled)):
        return now(ProcessState.HANGS)
    if quiet:
        return now(ProcessState.SILENT)
    if own.says is SessionState.FAILING:
        return now(database="database.rolls_back")
    if own.says is SessionState.ALIVE and own.sure and loop.doing is LoopActivity.NOT_SEEN:
        return now(ProcessState.RUNS)
    return now()


def _has_worked(frames: Frames, given: JudgeInput, side: str, started: pd.Timestamp | None) -> bool:
    """Return whether the loop has worked since its process `started`: by the process itself, or by a claim or mark."""
    if sessions.loop_has_worked(frames, given, side, started):
        return True
    name, columns = SIGNS[side]
    now = rows.value(frames.get(name), "now", pd.Timestamp)
    if started is None or now is None:
        return False
    signs = (rows.value(frames.get(name), column, pd.Timestamp) for column in columns)
    # A pod's clock that is ahead proves nothing.
    return any(sign is not None and started < sign <= now for sign in signs)


def with_due_rows(seen: LoopState, stopped: bool) -> LoopState:
    """Return the state with the due rows considered.

    A loop that runs and claims no due row skips locked rows; one whose state is not known may wait for the lock.
    """
    if stopped and seen.locked and seen.state is None and not seen.database:
        return replace(seen, state=ProcessState.BLOCKED, database="database.holds_up")
    return replace(seen, database="database.locks_rows") if stopped and seen.state is ProcessState.RUNS else seen


def proposals(given: JudgeInput, seen: LoopState) -> tuple[Proposal, ...]:
    """Return the action that helps: the switch, the settings or a restart; otherwise the log, which shows the cause.

    Empty if the cause is the database: 4.1.4 shows which session blocks or excludes the loop.
    """
    service = change.SIDES[seen.side][0]
    if seen.database:
        return ()
    if seen.others:
        return (pods(given, service),)
    if seen.pause_s:
        return (undo_settings(given, [f"{seen.side}.batch_size", f"{seen.side}.poll_interval"]),)
    match seen.state:
        case ProcessState.DOWN:
            return (start(given, service),)
        case ProcessState.OFF:
            return (remedies.switch_on(given, seen.side),)
        case ProcessState.HANGS | ProcessState.MAY_HANG:
            return (restart(given, service),)
    return (logs(given, service),)
