"""Restart one workload, and verify that it works again (runbook 5.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.actions.action import Authorization
from runbook_lib.book import pack
from runbook_lib.checks.context import Context, Progress
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Reason, Text, say
from runbook_lib.model.outcome import Precondition
from runbook_lib.model.times import duration
from runbook_lib.model.usage import UsageError, did_you_mean
from runbook_lib.packs.entitlement.evidence import logins, services, sessions
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import (
    Activity,
    Application,
    DatabaseIdentity,
    HeldRow,
    Notifications,
    Outbox,
    QueueCounts,
)
from runbook_lib.packs.jetstream import clients
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.sources.postgres import Snapshot

#: Seconds between two samples of an action's effect.
SAMPLE_EVERY_S = 1.0
#: The queue of each workload's worker.
_QUEUES: dict[str, type[Notifications] | type[Outbox]] = {"notification": Notifications, "entitlement": Outbox}
#: The defaults of notification for its durable consumer; it does not start if the consumer differs.
DURABLE = {
    "NOTIFICATION_NATS_ACK_WAIT": ("ack_wait", "broker.ack_wait"),
    "NOTIFICATION_NATS_MAX_DELIVER": ("max_deliver", "broker.max_deliver"),
}
#: Whether a server accepts the logins of a service; None: not known.
_LOGIN_KEYS = {
    (logins.Server.DATABASE, True): "action.restart.database_accepts",
    (logins.Server.DATABASE, False): "action.restart.database_refuses",
    (logins.Server.DATABASE, None): "action.restart.database_unseen",
    (logins.Server.BROKER, True): "action.restart.broker_accepts",
    (logins.Server.BROKER, False): "action.restart.broker_refuses",
    (logins.Server.BROKER, None): "action.restart.broker_unseen",
}


class Restart:
    """Restart `notification` or `entitlement`, and only that one."""

    name = "restart"

    def __init__(self, rb: Context, *, workload: str = "notification") -> None:
        if workload not in _QUEUES:
            raise UsageError(f"'{workload}' cannot be restarted: {did_you_mean(workload, [*_QUEUES])}")
        self.which = workload
        self.rb = rb
        self.program = rb.facts.workloads.program(workload)

    def what(self) -> dict[str, Any]:
        """Return the workload, by role and by name."""
        return {"workload": self.which, "name": self.program}

    def command(self) -> str:
        """Return the command of the target's runner."""
        return proposals.restart(self.rb, self.which).command

    def preconditions(self, rb: Context) -> list[Precondition]:
        """Check both servers, which a start needs, and that notification has no second instance."""
        found = [*check_cluster(rb), *check_restart(rb, self.which, lambda: check_start(rb, self.program))]
        return [*found, _check_not_starting(rb, self.program), *check_cooldown(rb, self.program)]

    def state(self, rb: Context) -> dict[str, Any]:
        """Return the instances, and the rows that are due, leased, or under an expired lease."""
        pods = rb.workloads.pods(self.program)
        with rb.snapshot() as db:
            queue = self._read_queue(db)
        return {
            "pods": ", ".join(f"{p['name']} ({'ready' if p['ready'] else 'not ready'})" for p in pods),
            "due": int(queue.due),
            "leased": int(queue.leased),
            "lease_expired": int(queue.expired),
        }

    def run(self, rb: Context, word: Authorization, progress: Progress) -> dict[str, Any]:
        """Restart and wait until the workload is ready."""
        progress(0.0, say("action.restart.restarting", name=self.program))
        output = [rb.workloads.restart(self.program), rb.workloads.wait_ready(self.program, rb.number("action.ready"))]
        # Until now the old instance may have claimed.
        return {"output": "\n".join(s for s in output if s), "since": rb.now().isoformat()}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Check that the worker has claimed or published since, and that notification's consumer is bound."""
        since = pd.Timestamp(did["since"])

        return sample_until_settled(rb, progress, lambda spent_s: self._check_at_work(rb, since))

    def _check_at_work(self, rb: Context, since: pd.Timestamp) -> tuple[bool, bool, Text]:
        """Return whether the result is final, whether the workload works or has nothing to do, and a text."""
        if self.which == "notification":
            streams = facts_of(rb).streams
            try:
                bound = rb.source("jetstream").consumer(streams.events, streams.consumer).bound
            except SourceError as e:
                return False, False, say("action.restart.not_bound", detail=e.detail)
            if not bound:
                return False, False, say("action.restart.not_bound", detail=streams.consumer)
        with rb.snapshot() as db:
            queue = self._read_queue(db)
            last = self._last_at_work(db, queue)
        if last is not None and last > since:
            return True, True, say("action.restart.works", name=self.program)
        if not queue.ready:
            # Rows that are leased, or wait for a retry, will show whether it works.
            return not (queue.leased or queue.waiting_retry), True, say("action.restart.idle", name=self.program)
        return False, False, say("action.restart.not_at_work", name=self.program, due=queue.due)

    def _read_queue(self, db: Snapshot) -> QueueCounts:
        kind = _QUEUES[self.which]
        return rows.one(db.ask(kind.QUERY), kind)

    def _last_at_work(self, db: Snapshot, queue: QueueCounts) -> pd.Timestamp | None:
        if isinstance(queue, Outbox):
            seen = [queue.last_published, queue.last_claim]
        else:
            activity = rows.one(db.ask(Activity.QUERY), Activity)
            seen = [activity.last_claim, activity.last_sent]
        return max((at for at in seen if at is not None), default=None)


def sample_until_settled(
    rb: Context, progress: Progress, sample: Callable[[float], tuple[bool, bool, Text]]
) -> tuple[bool, Text]:
    """Sample an action's effect until the result is final or `wait_s` of the parameters is over.

    `sample` takes the seconds since the start, and returns whether the result is final, whether the effect is there,
    and a text. Returns the last two.
    """
    begun = time.monotonic()
    while True:
        spent = time.monotonic() - begun
        settled, effective, text = sample(spent)
        if settled or spent >= rb.parameters.wait_s:
            return effective, text
        progress(spent / rb.parameters.wait_s, text)
        time.sleep(SAMPLE_EVERY_S)


def check_cluster(rb: Context) -> list[Precondition]:
    """Name the cluster that kubectl acts in, so that an approval holds for that one alone; [] for another tool.

    Behind a tunnel on this machine two clusters may have one context and one address: its own id tells them apart.
    """
    (context, server), own, unseen = rb.workloads.cluster(), "", None
    try:
        own = rb.workloads.cluster_id()
    except SourceError as e:
        unseen = e.detail
    text = say("action.restart.cluster", context=context or None, unseen=unseen)
    identity = " ".join(filter(None, (context, server, own)))
    return [Precondition(text, ok=True, identity=identity)] if identity or unseen else []


def check_restart(rb: Context, workload: str, start: Callable[[], Precondition]) -> list[Precondition]:
    """Check what a restart needs: servers, logins, and for notification its `start` and that nobody else works."""
    name, frames = rb.facts.workloads.program(workload), logins.collect(rb, workload)
    found, replicas = [*check_servers(rb), *check_logins(rb, workload, frames)], rb.workloads.replicas(name)
    if workload != "notification":
        return [*found, Precondition(say("change.replicas", name=name, n=replicas), replicas >= 1)]
    found.append(Precondition(say("action.restart.one_replica", n=replicas), replicas == 1))
    return [*found, check_recreate(rb, name), start(), check_only_worker(rb, name, frames | services.collect(rb))]


def check_servers(rb: Context) -> list[Precondition]:
    """Check that both servers answer and accept the services.

    A pod that does not reach them at its start aborts, and so does one that cannot create its streams, which a cluster
    without a leader refuses.
    """
    return [
        check_answers("postgres", lambda: _identify_database(rb)),
        check_answers("jetstream", lambda: identify_broker(rb)),
        _check_database_role(rb),
        *_check_broker_refusals(rb),
    ]


def _check_broker_refusals(rb: Context) -> Iterator[Precondition]:
    """Check that the broker refuses no client, if its monitoring port is known; a refused pod aborts at its start."""
    n, why = None, ""
    try:
        n, why = clients.count_refused({"closed": clients.count_closed(rb.source("nats_monitor").closed())}, rb.given())
    except SourceError as e:
        if e.reason is Reason.NOT_CONFIGURED:
            return
    ok = None if n is None else n < rb.number("refused.loop")
    yield Precondition(say("action.restart.lets_in", n=None if ok else n, why=why), ok)


def check_logins(rb: Context, workload: str, frames: Frames) -> list[Precondition]:
    """Check that the service can log in to both servers, from the frames of `logins.collect`; unknown is a warning."""
    name = rb.facts.workloads.program(workload)
    found = []
    for server, seen in logins.judge(frames, rb.given(), workload).items():
        text = say(_LOGIN_KEYS[server, seen.ok], name=name, at=seen.at, why=seen.why or None)
        found.append(Precondition(text, seen.ok, warns=True))
    return found


def _check_database_role(rb: Context) -> Precondition:
    """Check that the database lets the services' role log in and write; otherwise a restart does not help."""
    name = facts_of(rb).database_role
    try:
        with rb.snapshot() as db:
            role = rows.one(db.ask(Application.QUERY, role=name), Application)
    except SourceError:
        return Precondition(say("action.restart.may_work", role=name), ok=None)
    if not role.write_blocker:
        return Precondition(say("action.restart.may_work", role=name), ok=True)
    return Precondition(say(f"database.{role.write_blocker}", role=role.role, lacks=role.lacks), ok=False)


def is_starting(pods: Sequence[Mapping[str, Any]], now: pd.Timestamp, young_s: float) -> bool:
    """Return whether all instances of a workload, from `Runner.pods`, end or are younger than `young_s`.

    False without any.
    """
    ages = (
        (now - pd.Timestamp(pod["started"])).total_seconds() if pod["started"] else 0.0
        for pod in pods
        if not pod["ending"]
    )
    return bool(pods) and all(age < young_s for age in ages)


def find_competing_workers(started: pd.Timestamp | None, *samples: pd.DataFrame | None) -> tuple[str, ...]:
    """Return the workers that claimed rows since the newest instance started, if there are several; else ()."""
    held = (h for sample in samples for h in rows.each(sample, HeldRow))
    names = {h.locked_by for h in held if h.locked_by and h.locked_at and started and h.locked_at > started}
    return tuple(sorted(names)) if len(names) > 1 else ()


def check_recreate(rb: Context, name: str) -> Precondition:
    """Check that a restart stops the old pod first: while it is bound, a second one cannot start."""
    strategy = rb.workloads.strategy(name)
    return Precondition(say("change.recreate", strategy=strategy), strategy == "Recreate" if strategy else None)


def check_start(rb: Context, name: str) -> Precondition:
    """Check that the durable consumer does not keep notification from starting; warn where that is not known."""
    try:
        environment = rb.workloads.environment(name)
        found = check_durable(rb, environment)
    except SourceError:
        return Precondition(say("change.durable_agrees"), ok=None, warns=True)
    # A variable that is not seen there may come from a file or a ConfigMap.
    known = found.ok or found.text.params.get("name") in environment
    return replace(found, ok=found.ok if known else None, warns=True)


def check_durable(rb: Context, environment: Mapping[str, str]) -> Precondition:
    """Check that the durable consumer has the values that notification expects; otherwise its next start fails."""
    try:
        config = rb.source("jetstream").consumer(facts_of(rb).streams.events, facts_of(rb).streams.consumer).config
    except SourceError as e:
        made = e.code in ("stream_not_found", "consumer_not_found")  # the start creates it
        return Precondition(say("change.durable_agrees"), ok=True if made else None)
    # First what was read: a default proves less.
    for variable, (field, default) in sorted(DURABLE.items(), key=lambda known: known[0] not in environment):
        wanted = environment.get(variable, f"{rb.number(default):g}" + ("s" if field == "ack_wait" else ""))
        number = duration(wanted) if field == "ack_wait" else float(wanted) if wanted.isdecimal() else None
        if (configured := config.get(field)) is None or number is None:
            return Precondition(say("change.durable_agrees"), ok=None)
        there = float(configured) / (1e9 if field == "ack_wait" else 1)
        if number != there:
            return Precondition(say("change.durable_differs", name=variable, value=wanted, there=there), ok=False)
    return Precondition(say("change.durable_agrees"), ok=True)


def check_only_worker(rb: Context, name: str, frames: Frames) -> Precondition:
    """Check that no worker claims rows that the runner does not know: two workers would send the same rows.

    Without sessions beyond the pools of the known instances there is no other worker. Otherwise the claims are sampled
    for longer than a batch takes: the later of two workers takes over the rows of the earlier one, so one sample shows
    only one of them. `frames` are those of `logins.collect` and `services.collect`.
    """
    pods, pool = rb.workloads.pods(name), rb.number("sessions.most")
    ready = sum(pod["ready"] for pod in pods)
    others = sessions.sessions_beyond_pool(frames, rb.given(), "notification", instances=ready, assumed=pool)
    alone = Precondition(say("action.restart.claims_alone", name=name), ok=True)
    if others == 0:
        return alone
    if others and not pods:
        return replace(alone, ok=False)
    started, samples = logins.newest_start(pods), list[pd.DataFrame]()
    until = time.monotonic() + rb.number("claims.watch")
    while True:
        with rb.snapshot() as db:
            samples.append(db.ask(HeldRow.QUERY))
        if find_competing_workers(started, *samples):
            return replace(alone, ok=False)
        if len(_list_claims(samples)) >= rb.number("claims.seen") and others is None and ready:
            return alone
        if time.monotonic() > until:
            return Precondition(say("action.restart.claims_unseen", name=name, n=others), ok=None, warns=True)
        time.sleep(rb.number("claims.apart"))


def _list_claims(samples: Iterable[pd.DataFrame]) -> set[pd.Timestamp]:
    return {held.locked_at for sample in samples for held in rows.each(sample, HeldRow) if held.locked_at is not None}


def _check_not_starting(rb: Context, name: str) -> Precondition:
    """Check that no rollout or restart is under way; another one would only prolong it."""
    young_s = rb.number("program.young")
    text = say("action.restart.not_coming_up", name=name, s=young_s)
    return Precondition(text, not is_starting(rb.workloads.pods(name), rb.now(), young_s))


def _identify_database(rb: Context) -> str:
    with rb.snapshot() as db:
        db.clock_offset(rounds=1)
        found = db.try_ask(DatabaseIdentity.QUERY)  # a server may keep its identifier to itself
    return "" if found is None else rows.one(found, DatabaseIdentity).identity


def identify_broker(rb: Context) -> str:
    """Return the events' stream and the time at which it was made; "" if it cannot be read. Raises SourceError."""
    rb.source("jetstream").ready()
    name = facts_of(rb).streams.events
    with suppress(SourceError):
        return f"{name} of {rb.source('jetstream').stream(name).get('created', '')}"
    return ""


def check_cooldown(rb: Context, program: str | None = None) -> list[Precondition]:
    """Check that no incident ran an action on this target within the cooldown, on `program` or at all.

    Without a ledger that can be read no action is executed: `perform` says so.
    """
    cooldown_s = rb.number("action.cooldown")
    text = say("change.nothing_just_changed", s=cooldown_s)
    if program:
        text = say("action.restart.not_just_changed", name=program, s=cooldown_s)
    try:
        past = pack.hook("ledger")(rb).read()
    except UsageError:
        return []
    times = [line.time for line in past if program in (None, line.name)]
    return [Precondition(text, all((pd.Timestamp.now("UTC") - at).total_seconds() >= cooldown_s for at in times))]


def check_answers(source: str, identify: Callable[[], str]) -> Precondition:
    """Check that a source answers; `identify` returns the identity of what answers, or ""."""
    try:
        identity = identify()
    except SourceError as e:
        return Precondition(say("action.restart.answers_not", source=source, detail=e.detail), ok=False)
    return Precondition(say("action.restart.answers", source=source), ok=True, identity=identity)
