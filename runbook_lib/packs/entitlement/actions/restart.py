"""Restart one workload and see that it works again (runbook 5.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.actions.action import Word
from runbook_lib.context import Context, Progress
from runbook_lib.model.finding import Text, say
from runbook_lib.model.frames import one
from runbook_lib.outcome import Precondition
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources import SourceError
from runbook_lib.store import ACTIONS
from runbook_lib.usage import UsageError, did_you_mean

Which = Literal["notification", "entitlement"]
WORKLOADS: tuple[Which, ...] = ("notification", "entitlement")
#: Seconds that a pod is given to come up.
READY_S = 180.0
#: A second restart within this time would cut into the first one's leases and its start.
COOLDOWN_S = 60.0
LOOK_EVERY_S = 1.0


class Restart:
    """Restart `notification` or `entitlement`, and only that one."""

    name = "restart"

    def __init__(self, rb: Context, *, workload: str = "notification") -> None:
        if workload not in WORKLOADS:
            raise UsageError(f"'{workload}' can not be restarted: {did_you_mean(workload, [*WORKLOADS])}")
        self.which = workload
        self.rb = rb
        self.program = rb.facts.workloads.program(workload)

    def what(self) -> dict[str, Any]:
        """The workload, by its role and by its name."""
        return {"workload": self.which, "name": self.program}

    def command(self) -> str:
        """The command of the target's own runner."""
        return proposals.restart(self.rb, self.which).command

    def preconditions(self, rb: Context) -> list[Precondition]:
        """A pod that starts needs both servers; a second replica of notification dies at its start."""
        found = [*servers_answer(rb)]
        if self.which == "notification":
            replicas = rb.workloads.replicas(self.program)
            found.append(Precondition(say("action.restart.one_replica", n=replicas), replicas == 1))
        found.append(not_just_changed(rb, self.program))
        return found

    def state(self, rb: Context) -> dict[str, Any]:
        """The instances, and how much waits or is leased: leased rows stay so until their lease is over."""
        pods = rb.workloads.pods(self.program)
        with rb.snapshot() as db:
            queue = one(db.ask(_backlog(self.which)))
        return {
            "pods": ", ".join(f"{p['name']} ({'ready' if p['ready'] else 'not ready'})" for p in pods),
            "due": queue.get("due"),
            "leased": queue.get("leased"),
            "lease_expired": queue.get("expired"),
        }

    def run(self, rb: Context, word: Word, progress: Progress) -> dict[str, Any]:
        """Restart and wait until the workload is ready."""
        progress(0.0, say("action.restart.restarting", name=self.program))
        since = rb.now()
        said = [rb.workloads.restart(self.program), rb.workloads.wait_ready(self.program, READY_S)]
        return {"output": "\n".join(s for s in said if s), "since": since.isoformat()}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """The worker has claimed or published since, and notification's consumer is bound."""
        since, begun = pd.Timestamp(did["since"]), time.monotonic()
        while True:
            works, text = self._works(rb, since)
            spent = time.monotonic() - begun
            if works or spent >= rb.parameters.wait_s:
                return works, text
            progress(spent / rb.parameters.wait_s, text)
            time.sleep(LOOK_EVERY_S)

    def _works(self, rb: Context, since: pd.Timestamp) -> tuple[bool, Text]:
        if self.which == "notification":
            streams = facts_of(rb).streams
            try:
                bound = bool(rb.jetstream.consumer(streams.events, streams.consumer).get("push_bound"))
            except SourceError as e:
                return False, say("action.restart.not_bound", detail=e.detail)
            if not bound:
                return False, say("action.restart.not_bound", detail=streams.consumer)
        with rb.snapshot() as db:
            queue = one(db.ask(_backlog(self.which)))
            last = self._last_at_work(db, queue)
        if last is not None and pd.Timestamp(last) > since:
            return True, say("action.restart.works", name=self.program)
        if not (queue.get("due") or 0) and not (queue.get("expired") or 0):
            return True, say("action.restart.idle", name=self.program)
        return False, say("action.restart.not_at_work", name=self.program, due=queue.get("due"))

    def _last_at_work(self, db: Any, queue: Mapping[str, Any]) -> Any:
        if self.which == "entitlement":
            seen = [queue.get("last_published"), queue.get("last_claim")]
        else:
            activity = one(db.ask("notifications/activity"))
            seen = [activity.get(k) for k in ("last_claim", "last_sent")]
        return max((pd.Timestamp(t) for t in seen if t is not None), default=None)


def servers_answer(rb: Context) -> list[Precondition]:
    """Both servers answer: a pod that does not reach them at its start aborts."""
    return [
        _answers("postgres", lambda: _ask_database(rb)),
        _answers("jetstream", lambda: rb.jetstream.server()),
    ]


def _ask_database(rb: Context) -> None:
    with rb.snapshot() as db:
        db.clock_offset(rounds=1)


def not_just_changed(rb: Context, program: str) -> Precondition:
    """No action of this incident restarted the workload moments ago."""
    now, last = pd.Timestamp.now("UTC"), None
    for line in rb.archive.lines(ACTIONS):
        if line["result"] in ("begun", "done", "failed") and line["what"].get("name") == program:
            last = pd.Timestamp(line["time"])
    ago = None if last is None else (now - last).total_seconds()
    text = say("action.restart.not_just_changed", name=program, s=COOLDOWN_S)
    return Precondition(text, ago is None or ago >= COOLDOWN_S)


def _answers(source: str, ask: Callable[[], object]) -> Precondition:
    text = say("action.restart.answers", source=source)
    try:
        ask()
    except SourceError as e:
        return Precondition(say("action.restart.answers_not", source=source, detail=e.detail), ok=False)
    return Precondition(text, ok=True)


def _backlog(which: str) -> str:
    return "notifications/backlog" if which == "notification" else "outbox/backlog"
