"""Decide whether a service's process and its loop work, and if not, why. Shared by 4.1.1 and 4.1.3.

By its rows alone, a loop that is switched off, that fails, or whose process cannot start looks like one that hangs,
and a restart helps none of these. While nothing can be written, hardly any row is due. So the services and the
database are queried whenever the loop has finished no row lately, whether rows are due or not.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions.proposals import logs, pods, restart, start, undo_settings
from runbook_lib.book import patterns
from runbook_lib.checks import samples
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Proposal, Status, Text, Threshold, say
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.actions.restart import is_starting, newest_start
from runbook_lib.packs.entitlement.evidence import services, sessions
from runbook_lib.packs.entitlement.evidence.services import LoopActivity, RequestResult
from runbook_lib.packs.entitlement.evidence.sessions import SessionState
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.first_look import sample_processes
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: The observations, by the side ("delivery" or "relay") whose loop it is.
RUNS = {"delivery": "delivery.runs", "relay": "relay.runs"}
PASSES_OVER = {"delivery": "delivery.passes_over", "relay": "relay.passes_over"}
SWITCHED_OFF = {"delivery": "delivery.switched_off", "relay": "relay.switched_off"}
HELD = {"delivery": "delivery.held", "relay": "relay.held"}
TAKEN_DOWN = {"delivery": "delivery.taken_down", "relay": "relay.taken_down"}
ELSEWHERE = {"delivery": "delivery.elsewhere", "relay": "relay.elsewhere"}
STARTING = {"delivery": "delivery.starting", "relay": "relay.starting"}
NOT_UP = {"delivery": "delivery.not_up", "relay": "relay.not_up"}
FROZEN = {"delivery": "delivery.frozen", "relay": "relay.frozen"}
SEEMS_FROZEN = {"delivery": "delivery.seems_frozen", "relay": "relay.seems_frozen"}
HANGS = {"delivery": "delivery.hangs", "relay": "relay.hangs"}
SILENT = {"delivery": "delivery.silent", "relay": "relay.silent"}
KEPT_OUT = {"delivery": "delivery.kept_out", "relay": "relay.kept_out"}
REJECTED = {"delivery": "delivery.rejected", "relay": "relay.rejected"}
DENIED = {"delivery": "delivery.denied", "relay": "relay.denied"}
HELD_UP = {"delivery": "delivery.held_up", "relay": "relay.held_up"}
FAILS = {"delivery": "delivery.fails", "relay": "relay.fails"}
#: Observations that are the same for both sides count once.
NO_SESSION, ROLLS_BACK = "database.no_session", "database.rolls_back"
#: The frame and its columns in which a loop's claims and marks stand.
SIGNS = {"delivery": ("activity", ("last_claim", "last_sent")), "relay": ("backlog", ("last_claim", "last_published"))}
#: The observations that a restart helps against: a process or a loop that hangs.
RESTART_HELPS = (FROZEN, SEEMS_FROZEN, HANGS)
#: The observation for a loop whose runs end in an exception of this kind; for any other exception it is FAILS.
EXCEPTIONS = {"kept_out": KEPT_OUT, "rejected": REJECTED, "denied": DENIED, "held_up": HELD_UP}
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


@dataclass(frozen=True)
class LoopState:
    """The state of a loop: an observation, the exception that its runs end in, and the seconds without a sign of it.

    `others` is the number of database sessions that do its work and belong to no instance known to the runner,
    `elsewhere` the observation that there are such sessions.
    """

    observation: str = ""
    exception: str = ""
    silent_s: float | None = None
    others: int | None = None
    elsewhere: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the observation explains why the loop does not work."""
        return bool(self.observation) and self.observation not in RUNS.values()

    @property
    def status(self) -> Status:
        """The status that the observation alone gives a step, whether rows are due or not."""
        if not self.wrong:
            return Status.OK
        doubtful = (STARTING, SWITCHED_OFF, HELD, SEEMS_FROZEN, SILENT)
        return Status.WARNING if any(self.observation in d.values() for d in doubtful) else Status.CRITICAL

    @property
    def observations(self) -> tuple[str, ...]:
        """The observation, and the one that an unknown instance does the loop's work."""
        return tuple(filter(None, (self.observation, self.elsewhere)))

    def headline(self, due: float | None, **facts: Any) -> Text:
        """Return the headline for the observation, with the number of rows that are `due`."""
        side, _, what = self.observation.partition(".")
        if self.exception and what != "kept_out":
            what = "fails"  # the headline names the exception
        why = {"exception": self.exception, "quiet": self.silent_s, "others": self.others}
        return say(f"program.{side}_{what}", **facts | why, due=due or None)


UNKNOWN_STATE = LoopState()


def ask(rb: Context, step: str, parts: FrameCollector, side: str, late: bool, at_work: bool = False) -> None:
    """Query the services and the database for what each process does, in two samples that the steps of a run share.

    If rows are `late`, or the samples show that the loop does not work, the runner is queried for the workload too, and
    for the log of an instance that has just been started. If neither the services nor the database know the process,
    the runner is queried as well: both services may be stopped. If the loop was `at_work` a moment ago, the samples are
    kept only if they show it running, or another process that does its work: a row that was just finished is better
    evidence than a process that was not seen.
    Frames: those of `evidence.services.look` and `evidence.sessions.look`; program (one row, see `Program`).
    """
    samples = rb.shared(step, take_two_samples)
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
    elif seen == UNKNOWN_STATE:
        with suppress(SourceError):
            parts.answers["program"] = _read_program(rb, side)


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
        started=newest_start(pods),
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


def take_two_samples(rb: Context) -> Frames:
    """Take two samples of the processes; only one if it shows no process.

    The first may be an earlier step's. The second follows after one cycle of the loops; if it does not show each loop
    running, it is taken again `looks.apart` seconds after the first. The delivery worker is watched in the pauses.
    """
    soon_s, apart_s = cycle_s(rb), rb.number("looks.apart")
    at, first = samples.earlier("processes", rb.now(), apart_s, rb.number("looks.shared"))
    if at is None or not _shows_a_process(first):
        at, first = rb.now(), sample_processes(rb)
    if not _shows_a_process(first):
        return first
    first |= sessions.watch_worker(rb, max(soon_s - (rb.now() - at).total_seconds(), 0.0), first)
    both = services.concat_samples(first, sample_processes(rb))
    left_s = apart_s - (rb.now() - at).total_seconds()
    if left_s <= 0 or all(seen_running(both, rb.given(), side) for side in RUNS):
        return both
    first |= sessions.watch_worker(rb, left_s, first)
    return services.concat_samples(first, sample_processes(rb))


def _shows_a_process(sample: Frames) -> bool:
    seen = rows.each(sample.get("service_sessions"), sessions.Sessions)
    return not sample["service_samples"].empty or any(s.sessions for s in seen)


def cycle_s(rb: Context) -> float:
    """Return the seconds within which a working loop begins its next run; at most `looks.apart`."""
    return min(rb.number("looks.cycle") * facts_of(rb).poll_interval_s, rb.number("looks.apart"))


def seen_running(frames: Frames, given: JudgeInput, side: str) -> bool:
    """Return whether the loop ran between two samples: by its service's run counter, or by its newest statement."""
    which = change.SIDES[side][0]
    service = services.read(frames, given)[which]
    own = sessions.read(frames, given)[which]
    counted = service.by == "service" and service.loops[side].doing is LoopActivity.RUNS
    return counted or (own.says is SessionState.ALIVE and own.confidence == "high")


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


def loop_state(frames: Frames, given: JudgeInput, side: str) -> LoopState:
    """Return the loop's state by the frames of `ask`, its service's own report first; `UNKNOWN_STATE` if not known."""
    seen = _decide_state(frames, given, side)
    program = rows.one(frames.get("program"), Program)
    if seen.others or program.young or not program.ready:
        return seen
    others = sessions.sessions_beyond_pool(frames, given, change.SIDES[side][0], instances=program.ready)
    return replace(seen, others=others, elsewhere=ELSEWHERE[side]) if others else seen


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
    if program.failed:
        return LoopState(NOT_UP[side])  # whatever its loops do until it ends again
    if loop.doing is LoopActivity.RUNS:
        return LoopState(RUNS[side])
    if service.locked_out:
        return LoopState(KEPT_OUT[side])
    if loop.doing is LoopActivity.FAILS and loop.share == 1:
        meant = EXCEPTIONS.get(_RUN_EXCEPTION.find(loop.exception).kind, FAILS)
        return LoopState(meant[side], loop.exception)
    if program.wanted == 0:
        # A workload's sessions end with it, so these belong to an unknown instance.
        return LoopState(
            TAKEN_DOWN[side], others=own.sessions or None, elsewhere=ELSEWHERE[side] if own.sessions else ""
        )
    if loop.doing is LoopActivity.OFF or program.enabled is False:
        return LoopState(SWITCHED_OFF[side])
    if given.limits["delivery.silence"].reached(program.poll_s, Status.CRITICAL):
        return LoopState(HELD[side])
    if program.young and not _has_worked(frames, given, side, program.started):
        return LoopState(STARTING[side])
    # The service accepted the connection and sent nothing, and its database sessions are silent too.
    if (
        service.answers is RequestResult.HUNG
        and own.sessions
        and own.says in (SessionState.FROZEN, SessionState.NOT_SEEN)
    ):
        return LoopState(FROZEN[side], silent_s=own.newest_s)
    if own.says is SessionState.FROZEN and service.answers is not RequestResult.YES:
        sure = own.confidence == "high"
        return LoopState((FROZEN if sure else SEEMS_FROZEN)[side], silent_s=own.newest_s)
    if program.ready == 0:
        return LoopState(NOT_UP[side])
    if own.says is SessionState.NONE:
        if service.answers is RequestResult.YES:
            return LoopState(KEPT_OUT[side])
        if not sessions.no_service_has_sessions(held):
            return LoopState(NOT_UP[side])
        # Neither service has a session: the database refuses them only if their processes run. Otherwise their
        # sessions may have other names.
        return LoopState(NO_SESSION) if program.ready else UNKNOWN_STATE
    if loop.doing is LoopActivity.LONG and own.says is SessionState.BLOCKED:
        return LoopState(HELD_UP[side])
    if loop.doing is LoopActivity.STILL or (quiet and (loop.doing is LoopActivity.LONG or program.enabled)):
        return LoopState(HANGS[side])
    if quiet:
        return LoopState(SILENT[side])
    if own.says is SessionState.FAILING:
        return LoopState(ROLLS_BACK)
    if own.says is SessionState.ALIVE and own.confidence == "high" and loop.doing is LoopActivity.NOT_SEEN:
        return LoopState(RUNS[side])
    return UNKNOWN_STATE


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


def with_due_rows(seen: LoopState, stopped: bool, side: str) -> LoopState:
    """Return the state with the due rows considered: a loop that runs and claims no due row skips locked rows."""
    return LoopState(PASSES_OVER[side]) if stopped and seen.observation == RUNS[side] else seen


def proposals(given: JudgeInput, seen: LoopState, side: str) -> tuple[Proposal, ...]:
    """Return the action that helps: the switch, the settings or a restart; otherwise the log, which shows the cause.

    Empty if the cause is the database: 4.1.4 shows which session blocks or excludes the loop.
    """
    known = given.evidence(seen.observation) if seen.observation else ()
    if any(s.about == "database" and s.weight > 0 for s in known):
        return ()
    if seen.others:
        return (pods(given, change.SIDES[side][0]),)
    if seen.observation == TAKEN_DOWN[side]:
        return (start(given, change.SIDES[side][0]),)
    if seen.observation == SWITCHED_OFF[side]:
        return (remedies.switch_on(given, side),)
    if seen.observation == HELD[side]:
        return (undo_settings(given, [f"{side}.batch_size", f"{side}.poll_interval"]),)
    if seen.observation in [helped[side] for helped in RESTART_HELPS]:
        return (restart(given, change.SIDES[side][0]),)
    return (logs(given, change.SIDES[side][0]),)
