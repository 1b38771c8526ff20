"""Restart one workload and see that it works again (runbook 5.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.actions.action import Word
from runbook_lib.context import Context, Progress
from runbook_lib.model.finding import Reason, Text, say
from runbook_lib.outcome import Precondition
from runbook_lib.packs.entitlement.evidence import logins
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Activity, Application, Held, Notifications, Outbox, Queue
from runbook_lib.sources import SourceError
from runbook_lib.store import ACTION_LOG
from runbook_lib.usage import UsageError, did_you_mean

if TYPE_CHECKING:
    from runbook_lib.sources.postgres import Snapshot

Which = Literal["notification", "entitlement"]
WORKLOADS: tuple[Which, ...] = ("notification", "entitlement")
#: Between two looks at what an action has done.
LOOK_EVERY_S = 1.0
#: The queue of the worker in each of them.
_QUEUES: dict[str, type[Notifications] | type[Outbox]] = {"notification": Notifications, "entitlement": Outbox}


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
            found.append(claims_alone(rb, self.program))
        found += [_not_coming_up(rb, self.program), not_just_acted(rb, self.program)]
        return found

    def state(self, rb: Context) -> dict[str, Any]:
        """The instances, and how much waits or is leased: leased rows stay so until their lease is over."""
        pods = rb.workloads.pods(self.program)
        with rb.snapshot() as db:
            queue = self._queue(db)
        return {
            "pods": ", ".join(f"{p['name']} ({'ready' if p['ready'] else 'not ready'})" for p in pods),
            "due": int(queue.due),
            "leased": int(queue.leased),
            "lease_expired": int(queue.expired),
        }

    def run(self, rb: Context, word: Word, progress: Progress) -> dict[str, Any]:
        """Restart and wait until the workload is ready."""
        progress(0.0, say("action.restart.restarting", name=self.program))
        since = rb.now()
        said = [rb.workloads.restart(self.program), rb.workloads.wait_ready(self.program, rb.number("action.ready"))]
        return {"output": "\n".join(s for s in said if s), "since": since.isoformat()}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """The worker has claimed or published since, and notification's consumer is bound."""
        since = pd.Timestamp(did["since"])

        def look(spent_s: float) -> tuple[bool, bool, Text]:
            works, text = self._works(rb, since)
            return works, works, text

        return look_until_settled(rb, progress, look)

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
            queue = self._queue(db)
            last = self._last_at_work(db, queue)
        if last is not None and last > since:
            return True, say("action.restart.works", name=self.program)
        if not queue.ready:
            return True, say("action.restart.idle", name=self.program)
        return False, say("action.restart.not_at_work", name=self.program, due=queue.due)

    def _queue(self, db: Snapshot) -> Queue:
        kind = _QUEUES[self.which]
        return rows.one(db.ask(kind.QUESTION), kind)

    def _last_at_work(self, db: Snapshot, queue: Queue) -> pd.Timestamp | None:
        if isinstance(queue, Outbox):
            seen = [queue.last_published, queue.last_claim]
        else:
            activity = rows.one(db.ask(Activity.QUESTION), Activity)
            seen = [activity.last_claim, activity.last_sent]
        return max((at for at in seen if at is not None), default=None)


def look_until_settled(
    rb: Context, progress: Progress, look: Callable[[float], tuple[bool, bool, Text]]
) -> tuple[bool, Text]:
    """What was seen of an action's effect, once that is settled or the session's patience is over.

    `look` is told how many seconds have gone by, and tells whether it is settled, what was seen, and a sentence.
    """
    begun = time.monotonic()
    while True:
        spent = time.monotonic() - begun
        settled, seen, text = look(spent)
        if settled or spent >= rb.parameters.wait_s:
            return seen, text
        progress(spent / rb.parameters.wait_s, text)
        time.sleep(LOOK_EVERY_S)


def servers_answer(rb: Context) -> list[Precondition]:
    """Both servers answer and let the services work: a pod that does not reach them at its start aborts.

    So does one that cannot make its streams, which a cluster without a leader refuses.
    """
    return [
        answers("postgres", lambda: _ask_database(rb)),
        answers("jetstream", rb.jetstream.ready),
        _may_work(rb),
        *_lets_in(rb),
    ]


def _lets_in(rb: Context) -> Iterator[Precondition]:
    """The broker turns no client away, where its port is known: a pod that it keeps out ends at its start."""
    n, why = None, ""
    try:
        n, why = logins.refused({"closed": logins.closed_of(rb.nats_monitor.closed())}, rb.given())
    except SourceError as e:
        if e.reason is Reason.NOT_CONFIGURED:
            return
    ok = None if n is None else n < rb.number("refused.loop")
    yield Precondition(say("action.restart.lets_in", n=None if ok else n, why=why), ok)


def _may_work(rb: Context) -> Precondition:
    """The database lets the services' role in, and write: a pod that it keeps out is not helped by a start."""
    name = facts_of(rb).database_role
    try:
        with rb.snapshot() as db:
            role = rows.one(db.ask(Application.QUESTION, role=name), Application)
    except SourceError:
        return Precondition(say("action.restart.may_work", role=name), ok=None)
    if not role.kept_from:
        return Precondition(say("action.restart.may_work", role=name), ok=True)
    return Precondition(say(f"database.{role.kept_from}", role=role.role, lacks=role.lacks), ok=False)


def coming_up(pods: Sequence[Mapping[str, Any]], now: pd.Timestamp, young_s: float) -> bool:
    """Whether all of a workload's instances, as `Runner.pods` gives them, were started a moment ago; none are not."""
    ages = ((now - pd.Timestamp(pod["started"])).total_seconds() if pod["started"] else 0.0 for pod in pods)
    return bool(pods) and all(age < young_s for age in ages)


def newest_start(pods: Sequence[Mapping[str, Any]]) -> pd.Timestamp | None:
    """When the newest of these instances came up; None where there is none, or the runner does not say."""
    return max((pd.Timestamp(pod["started"]) for pod in pods if pod["started"]), default=None)


def two_claim(started: pd.Timestamp | None, *looks: pd.DataFrame | None) -> tuple[str, ...]:
    """Who claims, by the rows claimed since the newest instance came up, where several do: at most one is its own.

    Of two workers each takes what the other holds, so that one look may show all rows in one hand.
    """
    held = (h for look in looks for h in rows.each(look, Held))
    names = {h.locked_by for h in held if h.locked_by and h.locked_at and started and h.locked_at > started}
    return tuple(sorted(names)) if len(names) > 1 else ()


def claims_alone(rb: Context, name: str) -> Precondition:
    """Nobody claims whom the runner does not know: of two workers each sends what the other does."""
    looks = []
    for pause_s in (rb.number("looks.apart"), 0.0):
        with rb.snapshot() as db:
            looks.append(db.ask(Held.QUESTION))
        time.sleep(pause_s)
    beside = two_claim(newest_start(rb.workloads.pods(name)), *looks)
    return Precondition(say("action.restart.claims_alone", name=name), not beside)


def _not_coming_up(rb: Context, name: str) -> Precondition:
    """No rollout or restart is under way: another one would only prolong it, whoever began it."""
    young_s = rb.number("program.young")
    text = say("action.restart.not_coming_up", name=name, s=young_s)
    return Precondition(text, not coming_up(rb.workloads.pods(name), rb.now(), young_s))


def _ask_database(rb: Context) -> None:
    with rb.snapshot() as db:
        db.clock_offset(rounds=1)


def not_just_acted(rb: Context, program: str | None = None) -> Precondition:
    """Nothing of this incident was carried out moments ago, on that workload or at all: each change is looked at."""
    cooldown_s = rb.number("action.cooldown")
    times = [
        pd.Timestamp(line["time"])
        for line in rb.archive.lines(ACTION_LOG)
        if line["result"] in ("begun", "done", "failed") and program in (None, line["what"].get("name"))
    ]
    recent = bool(times) and (pd.Timestamp.now("UTC") - max(times)).total_seconds() < cooldown_s
    text = say("change.nothing_just_changed", s=cooldown_s)
    if program:
        text = say("action.restart.not_just_changed", name=program, s=cooldown_s)
    return Precondition(text, not recent)


def answers(source: str, ask: Callable[[], object]) -> Precondition:
    """A source answers a question."""
    text = say("action.restart.answers", source=source)
    try:
        ask()
    except SourceError as e:
        return Precondition(say("action.restart.answers_not", source=source, detail=e.detail), ok=False)
    return Precondition(text, ok=True)
