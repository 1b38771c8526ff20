"""Is the process alive, is its loop, and if it does not work, why? Shared by 4.1.1 and 4.1.3.

Who looks at rows alone takes a loop that is switched off, or fails, or whose process can not start, for one that hangs:
a restart helps none of these. And while nothing can be written hardly anything is due, so this is asked wherever no row
has left the loop's hands lately, whether something waits or not.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib import rows
from runbook_lib.actions.proposals import logs, pods, restart, start, undo_settings
from runbook_lib.checks.parts import Parts
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Proposal, Status, Text, say
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.actions.restart import coming_up, newest_start
from runbook_lib.packs.entitlement.evidence import services, sessions
from runbook_lib.packs.entitlement.evidence.services import Answers, Doing
from runbook_lib.packs.entitlement.evidence.sessions import Says
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: The observations, by the side whose loop it is.
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
#: What both sides say alike counts once.
NO_SESSION, ROLLS_BACK = "database.no_session", "database.rolls_back"
#: What an application writes whose start has failed, whatever the cause.
FAILED_START = "Application run failed"
#: Where a restart helps: a process or a loop that hangs.
HELPED = (FROZEN, SEEMS_FROZEN, HANGS)
#: What it means that a loop's runs end in an exception of that name; any other may come from anywhere.
EXCEPTIONS = {
    "CannotCreateTransactionException": KEPT_OUT,
    "CannotGetJdbcConnectionException": KEPT_OUT,
    "UncategorizedSQLException": REJECTED,
    "BadSqlGrammarException": DENIED,
    "CannotAcquireLockException": HELD_UP,
    "DataAccessResourceFailureException": HELD_UP,
    "QueryTimeoutException": HELD_UP,
}


@dataclass(frozen=True)
class Program:
    """A workload, its loop's switch, and the pause between two of its runs; None for what could not be read.

    `young` tells that its instances came up a moment ago, `failed` that one before them ended at its start; `wanted`
    how many there should be, `started` when the newest came up.
    """

    enabled: bool | None = None
    poll_s: float | None = None
    ready: int | None = None
    young: bool | None = None
    failed: bool | None = None
    wanted: int | None = None
    started: pd.Timestamp | None = None


@dataclass(frozen=True)
class Stands:
    """How a loop stands: an observation, the exception that its runs end in, and since when its process is silent.

    `others` is how many of its sessions work on where the runner knows of no instance.
    """

    observation: str = ""
    exception: str = ""
    silent_s: float | None = None
    others: int | None = None

    @property
    def wrong(self) -> bool:
        """Whether it says why the loop does not work."""
        return bool(self.observation) and self.observation not in RUNS.values()

    @property
    def status(self) -> Status:
        """What that is for a step by itself, whether something waits or not."""
        if not self.wrong:
            return Status.OK
        doubtful = (STARTING, SWITCHED_OFF, HELD, SEEMS_FROZEN, SILENT)
        return Status.WARNING if any(self.observation in d.values() for d in doubtful) else Status.CRITICAL

    @property
    def observations(self) -> tuple[str, ...]:
        """What is seen; that somebody else works in its place is one of its own."""
        side = self.observation.partition(".")[0]
        return (*filter(None, (self.observation,)), *((ELSEWHERE[side],) if self.others else ()))

    def headline(self, due: float | None, **facts: Any) -> Text:
        """The sentence that says so, beside what is `due`."""
        side, _, what = self.observation.partition(".")
        key = f"program.{side}_{'fails' if self.exception and what != 'kept_out' else what}"
        why = {"exception": self.exception, "quiet": self.silent_s, "others": self.others}
        return say(key, **facts | why, due=due or None)


NOTHING = Stands()


def ask(rb: Context, step: str, parts: Parts, side: str, late: bool) -> None:
    """Ask the services and the database what each process does, at two looks that the steps of a run share.

    Where something is `late`, or that says that the loop does not work, the runner is asked about its workload as well,
    and where that has just been started, its log. Where neither has a word of it the runner may: nobody is asked for
    anything while both services are stopped.
    Frames: those of `evidence.services.look` and `evidence.sessions.look`; program (one row, see `Program`).
    """
    parts.answers |= rb.shared(step, look_twice)
    seen = stands(parts.answers, rb.given(), side)
    if late or seen.wrong:
        with parts.part("program") as answers:
            answers["program"] = _program(rb, side)
    elif seen == NOTHING:
        with suppress(SourceError):
            parts.answers["program"] = _program(rb, side)


def _program(rb: Context, side: str) -> pd.DataFrame:
    name = rb.facts.workloads.program(change.SIDES[side][0])
    settings = change.in_force(rb.catalog.settings, side, rb.workloads.environment(name))
    pods, young, failed = _instances(rb, name)
    return row(
        enabled=settings[f"{side}.enabled"],
        poll_s=settings[f"{side}.poll_interval"],
        ready=sum(pod["ready"] for pod in pods),
        wanted=rb.workloads.replicas(name),
        young=young,
        failed=failed,
        started=newest_start(pods),
    )


def _instances(rb: Context, name: str) -> tuple[list[dict[str, Any]], bool, bool]:
    """The instances of a workload, whether all came up a moment ago for the first time, and whether a start has failed.

    Where the runner does not count the ends of an instance, the log of one that is young has the starts that failed.
    """

    pods = rb.workloads.pods(name)
    if not coming_up(pods, rb.now(), rb.number("program.young")):
        return pods, False, False
    failed = False
    if any(pod["restarts"] is None for pod in pods):
        with suppress(SourceError):
            failed = any(FAILED_START in line for line in rb.workloads.logs(name, rb.number("program.log")))
    return pods, not failed and not any(pod["restarts"] for pod in pods), failed


def look_twice(rb: Context) -> Frames:
    """Two looks at the processes; one where it has seen none, since there is nothing to compare."""
    first = _look(rb)
    seen = rows.each(first.get("service_sessions"), sessions.Sessions)
    if first["service_samples"].empty and not any(s.sessions for s in seen):
        return first
    time.sleep(rb.number("looks.apart"))
    return services.together(first, _look(rb))


def _look(rb: Context) -> Frames:
    frames = services.look(rb)
    with suppress(SourceError), rb.snapshot() as db:  # who asks has just had an answer from it, or it says nothing
        frames |= sessions.look(db, facts_of(rb).database_role)
    return frames


def stands(frames: Frames, given: Given, side: str) -> Stands:
    """What `ask` has left says of the loop, its own word first. What could not be seen says nothing."""
    which = change.SIDES[side][0]
    program = rows.one(frames.get("program"), Program)
    pause_s = max(program.poll_s or 0, facts_of(given).poll_interval_s)
    service = services.read(frames, replace(services.Numbers.of(given), poll_s=pause_s))[which]
    held = sessions.read(frames, replace(sessions.Numbers.of(given), poll_s=pause_s))
    loop, own = service.loops[side], held[which]
    quiet = own.says is Says.LOOP_SILENT and loop.doing is not Doing.BEHIND
    if program.failed:
        return Stands(NOT_UP[side])  # whatever its loops do until it ends again
    if loop.doing is Doing.RUNS:
        return Stands(RUNS[side])
    if service.locked_out:
        return Stands(KEPT_OUT[side])
    if loop.doing is Doing.FAILS and loop.share == 1:
        meant = next((what for name, what in EXCEPTIONS.items() if loop.exception.endswith(name)), FAILS)
        return Stands(meant[side], loop.exception)
    if program.wanted == 0:
        # Its sessions end with it: whose are these, then?
        return Stands(TAKEN_DOWN[side], others=own.sessions or None)
    if loop.doing is Doing.OFF or program.enabled is False:
        return Stands(SWITCHED_OFF[side])
    if (program.poll_s or 0) >= (given.limits["delivery.silence"].critical or 0):
        return Stands(HELD[side])
    if program.young:
        return Stands(STARTING[side])
    # It took the connection and said nothing, and the database has not heard of it either.
    if service.answers is Answers.HUNG and own.sessions and own.says in (Says.FROZEN, Says.NOT_SEEN):
        return Stands(FROZEN[side], silent_s=own.newest_s)
    if own.says is Says.FROZEN and service.answers is not Answers.YES:
        sure = own.confidence == "high"
        return Stands((FROZEN if sure else SEEMS_FROZEN)[side], silent_s=own.newest_s)
    if program.ready == 0:
        return Stands(NOT_UP[side])
    if own.says is Says.NONE:
        if service.answers is Answers.YES:
            return Stands(KEPT_OUT[side])
        if not sessions.door_is_shut(held):
            return Stands(NOT_UP[side])
        # With none of either it is the door only if their processes are there; else they may be known by other names.
        return Stands(NO_SESSION) if program.ready else NOTHING
    if loop.doing is Doing.LONG and own.says is Says.BLOCKED:
        return Stands(HELD_UP[side])
    if loop.doing is Doing.STILL or (quiet and (loop.doing is Doing.LONG or program.enabled)):
        return Stands(HANGS[side])
    if quiet:
        return Stands(SILENT[side])
    if own.says is Says.FAILING:
        return Stands(ROLLS_BACK)
    if own.says is Says.ALIVE and own.confidence == "high" and loop.doing is Doing.NOT_SEEN:
        return Stands(RUNS[side])
    return NOTHING


def beside(seen: Stands, stopped: bool, side: str) -> Stands:
    """The same beside what waits: a loop that runs and takes nothing of what is due steps over rows that are locked."""
    return Stands(PASSES_OVER[side]) if stopped and seen.observation == RUNS[side] else seen


def proposals(given: Given, seen: Stands, side: str) -> tuple[Proposal, ...]:
    """What helps against it: the switch, or a restart; else only the log tells why it fails, or does not come up.

    What the database does to it is not its own, and 4.1.4 has who holds it up, or keeps it out.
    """
    if any(s.about == "database" and s.weight > 0 for s in given.speaks(seen.observation)):
        return ()
    if seen.others:
        return (pods(given, change.SIDES[side][0]),)
    if seen.observation == TAKEN_DOWN[side]:
        return (start(given, change.SIDES[side][0]),)
    if seen.observation == SWITCHED_OFF[side]:
        return (remedies.switch_on(given, side),)
    if seen.observation == HELD[side]:
        return (undo_settings(given, [f"{side}.batch_size", f"{side}.poll_interval"]),)
    if seen.observation in [helped[side] for helped in HELPED]:
        return (restart(given, change.SIDES[side][0]),)
    return (logs(given, change.SIDES[side][0]),)
