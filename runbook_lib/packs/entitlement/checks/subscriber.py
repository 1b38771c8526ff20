"""4.1.2: check that the subscriber is bound to its consumer, its lag, and why it is not bound."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runbook_lib.actions import proposals
from runbook_lib.checks.cases import Case, Cases
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
from runbook_lib.diagnosis.evidence import evidence_from_error
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Finding,
    Frames,
    Hop,
    Proposal,
    Reason,
    Status,
    Text,
    Value,
    judged,
    say,
    unknown,
    worst,
)
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import missing, stream
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import program
from runbook_lib.packs.entitlement.checks.loop import look_again_s
from runbook_lib.packs.entitlement.checks.program import ProcessState
from runbook_lib.packs.entitlement.checks.series import ask_since
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.missing import MissingEvents
from runbook_lib.packs.entitlement.rows import Letters, Registered
from runbook_lib.packs.jetstream import balance, clients, quorum
from runbook_lib.packs.jetstream.balance import StreamProblem
from runbook_lib.packs.jetstream.consumer import (
    ConsumerPosition,
    ConsumerRow,
    handled_between,
    option_without_limit,
    read_consumer,
)
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: The process of notification is not at work, and so neither is its subscriber.
PROCESS_NOT_RUNNING = (ProcessState.DOWN, ProcessState.STARTING, ProcessState.NOT_UP, ProcessState.HANGS)
#: Error codes of a broker that reports what it lacks.
MISSING_AT_BROKER = ("stream_not_found", "consumer_not_found", "no_jetstream", "no_leader")
_BROKER_STATES = {
    "stream_not_found": "alive.no_stream",
    "no_jetstream": "alive.no_stream",
}


@dataclass(frozen=True)
class SubscriberReading:
    """The values that the judge of 4.1.2 reads from the frames; None means unknown.

    oldest_s: age of the oldest unprocessed message.
    late: the lag or that age is over its threshold in docs/slo.md.
    missing: events that were published and not processed; none if they were not counted.
    given_up: messages that the subscriber gave up in the window.
    refused, reason: logins that the broker refused within the last minute, and the most frequent reason.
    client: the bound client, or "?".
    switched_off: notification's own settings switch NATS off.
    stands: the state of notification's process, read if no client is bound.
    silent: no event was processed for as long as the threshold of the oldest message.
    loop: refused logins show a client in a reconnect loop; `locked_out`: and no client is connected at all.
    broken: Raft groups that cannot be written, or for which that is unknown; `thin`: groups that lack a node.
    handled: a message was acknowledged between two samples.
    expires: a limit of the stream deletes messages before their deliveries may be over.
    deleted: lost events that the stream has deleted by such a limit, or by one that it has no more, or a purge.
    others: what is wrong with the other streams.
    """

    consumer: ConsumerRow
    activity: Registered
    oldest_s: float | None
    late: bool | None
    missing: MissingEvents
    given_up: float | None
    refused: float | None
    reason: str
    client: str
    clients_seen: bool
    switched_off: bool
    stands: program.LoopState
    silent: bool
    loop: bool
    locked_out: bool
    broken: tuple[quorum.RaftGroup, ...]
    thin: tuple[quorum.RaftGroup, ...]
    handled: bool
    expires: bool = False
    deleted: int | None = None
    others: tuple[StreamProblem, ...] = ()

    @property
    def others_late(self) -> tuple[StreamProblem, ...]:
        """The same of streams of events whose messages are not registered in time."""
        return tuple(of for of in self.others if of.late and not of.records)

    @property
    def losing(self) -> bool:
        """Whether events are still being lost, other than by the consumer's filter."""
        return self.missing.lately and bool(self.missing.ended) and self.consumer.bound is not False

    @property
    def is_stalled(self) -> bool:
        """Whether, by the tables alone, events are published and none is processed."""
        newest, last = self.missing.newest, self.activity.last_processed
        passed = newest is not None and last is not None and newest < last  # later ones were processed
        return bool(self.missing.found) and self.activity.processed_1m == 0 and not passed

    @property
    def behind(self) -> bool:
        """Whether it holds too many messages, or one for too long."""
        return bool(self.consumer.lag and self.late)

    @property
    def may_hang(self) -> bool:
        """Whether no fault shows, but the samples do not show that it processes the messages that it holds."""
        seen = self.consumer
        wrong = not seen.bound or self.late or self.loop or seen.paused or seen.full or bool(self.broken)
        return bool(seen.lag) and not (wrong or self.handled)

    @property
    def holds(self) -> bool:
        """Whether it has received messages and processes none of them.

        One that skips messages that are registered already, such as a replay, registers nothing and acknowledges.
        """
        return self.behind and self.silent and bool(self.consumer.num_ack_pending) and not self.handled

    @property
    def waits(self) -> bool:
        """Whether messages wait for the subscriber, by the tables if the broker does not say; lost ones do not."""
        return bool(self.missing.found if self.consumer.lag is None else self.consumer.lag)


def collect(rb: Context) -> Frames:
    """Query the consumer, then the broker's clients, then the tables; each may fail on its own.

    Frames: those of `jetstream.consumer.read_consumer`, and consumer_now (as consumer) if it has messages; those of
    `clients.list_clients`, `clients.count_closed` and `quorum.nodes`; others (that of `balance.read`); if no client is
    bound, own_settings (listens: flag) and those of `program.ask`; unprocessed, and that of `missing.locate`; nats_dlq
    and activity if their queries are cheap.
    """
    parts, before = ask_broker_and_tables(rb)
    consumer = rows.first(parts.answers.get("consumer"), ConsumerRow)
    if consumer is not None and not consumer.bound:
        with parts.part("own_settings") as frames:
            environment = rb.workloads.environment(rb.facts.workloads.program("notification"))
            off = any(k.endswith("NATS_ENABLED") and v.lower() == "false" for k, v in environment.items())
            frames["own_settings"] = row(listens=not off)
        program.ask(rb, "4.1.2", parts, "delivery", late=True)
    if consumer is not None:
        with parts.part("others") as frames:
            frames["others"] = balance.read(rb, stream.ledgers(rb))
    missing.locate(rb, parts, before)
    if consumer is not None and consumer.num_ack_pending:
        with parts.part("consumer_now") as frames:
            frames |= rb.shared("4.1.2", read_consumer_now)
    return parts.frames()


def ask_broker_and_tables(rb: Context) -> tuple[FrameCollector, ConsumerPosition | None]:
    """Ask for the consumer and the broker's clients, then the tables; return the consumer's position before these."""
    parts, before = FrameCollector(), None
    with parts.part("consumer") as frames:
        found, before = _read_consumer(rb)
        frames |= found
    with parts.part("clients") as frames:
        frames |= _read_clients(rb, rows.one(frames.get("consumer"), ConsumerRow).deliver_subject)
    with parts.part("events") as frames, rb.snapshot() as db:
        ask_since(rb, db, parts, Letters.QUERY, nats_dlq="window")
        parts.ask(db, {"activity": "notifications/registered"})
        frames["unprocessed"] = db.ask(missing.Unprocessed.QUERY, settled_s=missing.settled_s(rb, before))
    return parts, before


def read_consumer_now(rb: Context) -> Frames:
    """Read the consumer again: a message takes milliseconds. Frame consumer_now, as consumer. Raises SourceError."""
    if rb.sample is None and rb.answers.step:  # else the sample's two moments are apart
        time.sleep(program.cycle_s(rb))
    return {"consumer_now": _read_consumer(rb.of(""))[0]["consumer"]}


def _read_consumer(rb: Context) -> tuple[Frames, ConsumerPosition]:
    names = facts_of(rb).streams
    return read_consumer(rb, names.events, names.consumer)


def _read_clients(rb: Context, inbox: str) -> Frames:
    monitor = rb.source("nats_monitor")
    connections, closed = monitor.connections(), monitor.closed()
    return {
        "clients": clients.list_clients(connections, inbox),
        "closed": clients.count_closed(closed),
        "nodes": quorum.nodes(monitor.cluster()),
    }


def judge(frames: Frames, given: JudgeInput) -> Finding:
    """Judge the first case of `CASES` that holds."""
    failed = failures(frames).get("consumer")
    if failed is not None and failed.code in MISSING_AT_BROKER:
        return _judge_broker_error(failed, rows.one(frames.get("activity"), Registered), given)
    seen = _read_subscriber(frames, given)
    consumer, events = seen.consumer, failures(frames).get("events")
    facts: dict[str, Any] = {
        "lag": consumer.lag,
        "oldest": seen.oldest_s,
        "lost": seen.missing.surely_lost,
        "refused": seen.refused,
        "reason": seen.reason,
        "client": seen.client,
        "processed": seen.activity.processed_1m,
        "limit": consumer.limit or None,
        "kept": consumer.kept_s,
        "longest": _deliveries_s(given),
        "deleted": seen.deleted,
    }
    counts = {
        "missed": seen.missing.found,
        "passed": seen.missing.passed_by,
        "doubtful": seen.missing.doubtful,
        "unregistered": len(seen.missing.notified),
    }
    facts |= counts if "unprocessed" in frames else dict.fromkeys(counts)
    # Without a database the broker decides alone; a database that does not answer makes the step UNKNOWN.
    counted = events is None or events.reason is not Reason.NOT_CONFIGURED
    values, notes = (
        _build_values(frames, seen, given, counted=counted),
        [*_build_notes(frames, seen, facts), *_note_manual_steps(seen, given)],
    )
    if seen.may_hang:
        again = look_again_s(given, given.limits["subscriber.oldest_unprocessed"], seen.oldest_s, in_hand=0)
        values.append(Value(f"subscriber.{LOOK_AGAIN}", again, "s"))
        notes.append(say("subscriber.may_hang", again=again, **facts))
    found, lost = CASES.of(seen), seen.missing
    after_loss = ("5.3",) if lost.surely_lost or lost.doubtful or lost.notified else ()
    return judged(
        found.headline(**facts),
        values,
        at_least=worst([found.status, Status.WARNING if consumer.stalled or seen.loop or seen.thin else Status.OK]),
        reason=failed and failed.reason,
        notes=tuple(notes),
        signals=(
            *found.signals(given),
            *given.evidence_of(_observe_losses(seen)),
        ),
        hops=_build_hops(seen),
        proposals=found.proposals(given),
        next_sections=("2",) if seen.refused or failed is not None else found.sections or after_loss,
        decision=found.decision,
        show=tuple(n for n in ("clients", "closed", "unprocessed") if n in frames and not frames[n].empty),
    )


def _judge_broker_error(e: SourceError, activity: Registered, given: JudgeInput) -> Finding:
    """Judge a broker without its stream or consumer: CRITICAL, or UNKNOWN if events were processed recently."""
    last = seconds_between(activity.last_processed, activity.now)
    if last is not None and last < given.number("processed.lately"):
        key = "subscriber.election" if e.code == "no_leader" else "subscriber.another_broker"
        return unknown("", Reason.ERROR, say(key, detail=e.detail, ago=last), next_sections=("2",))
    lost = e.code in ("stream_not_found", "consumer_not_found")
    if e.code == "stream_not_found":
        proposed = remedies.make_stream(given)
    elif e.code == "consumer_not_found":
        proposed = (proposals.restart(given, "notification"),)
    elif e.code == "no_leader":
        proposed = _propose_cluster_checks(given)
    else:
        proposed = (proposals.logs(given, "nats"),)
    # Without a stream the relay cannot publish, so a stuck outbox is a consequence.
    outbox = () if e.code == "consumer_not_found" else given.evidence("subscriber.broker_gone")
    return judged(
        say("broker.no_leader" if e.code == "no_leader" else f"subscriber.{e.code}", detail=e.detail),
        at_least=Status.CRITICAL,
        signals=(*evidence_from_error(e, given.catalog), *outbox),
        hops=(
            Hop("jetstream", alive=say(_BROKER_STATES.get(e.code, "alive.answers"))),
            Hop("subscriber", alive=say("alive.not_bound") if lost else None),
        ),
        proposals=proposed,
        next_sections=("2", "5.1") if lost else ("2",),
    )


def _propose_cluster_checks(given: JudgeInput) -> tuple[Proposal, ...]:
    """Propose to list the nodes that run, and to read their logs."""
    return (proposals.pods(given, "nats"), proposals.logs(given, "nats"))


def _read_subscriber(frames: Frames, given: JudgeInput) -> SubscriberReading:
    limits, consumer = given.limits, rows.first(frames.get("consumer"), ConsumerRow) or ConsumerRow()
    # Without waiting messages the age is 0; the age of a waiting message that could not be read is unknown.
    waits = consumer.lag != 0
    oldest_s = rows.value(frames.get("oldest"), "age_s", float) if waits else 0.0
    too_old = None if oldest_s is None else limits["subscriber.oldest_unprocessed"].reached(oldest_s)
    refused, reason = clients.count_refused(frames, given)
    loop = refused is not None and refused >= given.number("refused.loop")
    activity = rows.one(frames.get("activity"), Registered)
    given_up = rows.first(frames.get("nats_dlq"), Letters)
    last_s = seconds_between(activity.last_processed, activity.now)
    clients_seen = "clients" in frames and not rows.one(frames.get("nodes"), quorum.Nodes).partly
    groups = quorum.groups(frames, given)
    kept_s, lag = consumer.kept_s, consumer.lag
    expires = kept_s is not None and kept_s < _deliveries_s(given)
    missed = missing.judge_missing(frames, given, lag) if "unprocessed" in frames else MissingEvents()
    # Of events that may have been processed, the stream has deleted what it need not keep.
    known = consumer.bound is not None and not missed.doubtful
    limited = consumer if known and (expires or kept_s is None) else None
    return SubscriberReading(
        consumer=consumer,
        activity=activity,
        oldest_s=oldest_s,
        late=limits["subscriber.lag"].reached(lag) or too_old,
        missing=missed,
        given_up=None if given_up is None else given_up.n,
        refused=refused,
        reason=reason,
        client=clients.name_bound_client(frames),
        clients_seen=clients_seen,
        switched_off=rows.value(frames.get("own_settings"), "listens", bool) is False,
        stands=program.loop_state(frames, given, "delivery"),
        silent=limits["subscriber.oldest_unprocessed"].reached(last_s),
        loop=loop,
        # The monitoring port shows this even if the broker refuses the runbook's own login.
        locked_out=loop and clients_seen and frames["clients"].empty,
        broken=tuple(g for g in groups if not g.writes),
        thin=tuple(g for g in groups if g.writes and g.away),
        expires=expires,
        deleted=None if limited is None else _count_deleted(frames, limited),
        handled=handled_between(consumer, rows.first(frames.get("consumer_now"), ConsumerRow)),
        others=balance.find_problems(frames, given, "others"),
    )


def _count_deleted(frames: Frames, consumer: ConsumerRow) -> int:
    """Return how many unprocessed events are no longer in the stream and older than its oldest message."""
    first = consumer.first_message
    gone = {e.event_id for e in rows.each(frames.get("broker"), missing.Located) if e.place == "gone"}
    events = [e for e in rows.each(frames.get("unprocessed"), missing.Unprocessed) if e.event_id in gone]
    return sum(first is not None and e.published_at is not None and e.published_at < first for e in events)


def _deliveries_s(given: JudgeInput) -> float:
    """Return the seconds that all deliveries of a message take if none is acknowledged."""
    return given.number("broker.ack_wait") * given.number("broker.max_deliver")


def _build_values(frames: Frames, seen: SubscriberReading, given: JudgeInput, *, counted: bool) -> list[Value]:
    limits, consumer, events, values = given.limits, seen.consumer, seen.missing, []
    known = consumer.bound is not None
    if known:
        values.append(limits.value("subscriber.lag", consumer.lag))
        values.append(limits.value("subscriber.oldest_unprocessed", seen.oldest_s))
    if counted:
        values.append(limits.value("outbox.unprocessed", events.surely_lost))
    if known:
        values += [
            Value("consumer.bound", "yes" if consumer.bound else "no"),
            Value("consumer.num_pending", consumer.num_pending, "messages"),
            Value("consumer.num_ack_pending", consumer.num_ack_pending, "messages"),
            Value("consumer.num_redelivered", consumer.num_redelivered, "messages"),
        ]
    if "unprocessed" in frames:
        values.append(Value("outbox.published_not_processed", events.found, "rows"))
        values.append(Value("subscriber.passed_by", events.passed_by, "rows"))
        values.append(Value("outbox.not_registered", len(events.notified), "rows"))
        values.append(Value("outbox.lost_or_deleted", events.doubtful, "rows"))
    if seen.refused:
        values.append(Value("connections.refused_last_minute", seen.refused, "1/min"))
    if "others" in frames:
        values.append(Value("balance.unregistered", sum(of.late for of in seen.others), "messages"))
    return values


def _build_notes(frames: Frames, seen: SubscriberReading, facts: dict[str, Any]) -> list[Text]:
    notes = []
    if seen.refused:
        notes.append(say("subscriber.reason_of_server", **facts))
    if (known := rows.one(frames.get("nodes"), quorum.Nodes)).partly:
        notes.append(say("broker.nodes_unseen", seen=known.seen, of=known.of))
    notes += [group.text for group in seen.thin]
    if seen.consumer.stalled:
        notes.append(say("subscriber.stalled", **facts))
    if seen.missing.waiting:
        notes.append(say("subscriber.still_held", held=seen.missing.waiting))
    notes += [of.text for of in seen.others]
    notes += seen.missing.notes
    if "unprocessed" in frames and frames["unprocessed"].attrs.get("capped"):
        notes.append(say("subscriber.capped", n=seen.missing.found))
    if seen.given_up:
        notes.append(say("subscriber.given_up", n=seen.given_up))
    return notes


def _note_manual_steps(seen: SubscriberReading, given: JudgeInput) -> Iterator[Text]:
    """Note the commands for a consumer or a stream with a wrong setting, which only its owner may decide to run."""
    names = facts_of(given).streams
    if seen.consumer.paused:
        yield say("subscriber.resume", stream=names.events, consumer=names.consumer)
    if seen.consumer.full:
        yield say("subscriber.raise_limit", stream=names.events, option=option_without_limit(seen.consumer.limit))
    if seen.expires:
        yield say("subscriber.keep_longer", stream=names.events, option=option_without_limit(seen.consumer.limit))


def _observe_losses(seen: SubscriberReading) -> Iterator[str]:
    """List the observations of lost events and of deleted rows, which hold in any case."""
    yield from seen.missing.observations
    if seen.missing.passed_by:
        yield "subscriber.passed_by"
    if seen.deleted:
        yield "subscriber.expired" if seen.expires else "subscriber.deleted"
        return
    if seen.expires:
        yield "subscriber.expires"
    if seen.losing:
        yield "subscriber.losing"
    if seen.missing.ended and seen.consumer.bound is not False:
        yield from ("subscriber.lost", *(["subscriber.gave_up"] if seen.given_up else []))


def _build_hops(seen: SubscriberReading) -> tuple[Hop, ...]:
    there: Text | str = say("alive.bound") if seen.client == "?" else seen.client
    answers = Hop("jetstream")
    if seen.consumer.bound is not None:
        answers = Hop("jetstream", waiting=seen.consumer.num_pending, alive=say("alive.answers"))
    return (
        answers,
        Hop(
            "subscriber",
            rate_out=seen.activity.processed_1m,
            waiting=seen.consumer.lag,
            oldest_s=seen.oldest_s,
            alive={None: None, True: there, False: say("alive.not_bound")}[seen.consumer.bound],
            late=seen.behind or bool(seen.others_late),
        ),
    )


def _propose_restart(given: JudgeInput, seen: SubscriberReading) -> tuple[Proposal, ...]:
    return (proposals.restart(given, "notification"),)


def _propose_credentials_check(given: JudgeInput, seen: SubscriberReading) -> tuple[Proposal, ...]:
    return (remedies.check_nats_credentials(given),)


def _propose_own_logs(given: JudgeInput, seen: SubscriberReading) -> tuple[Proposal, ...]:
    """Propose to read the log of a subscriber that loses events or processes none."""
    is_stalled = seen.consumer.bound is None and seen.is_stalled
    return (proposals.logs(given, "notification"),) if seen.losing or is_stalled else ()


def _propose_for_other(given: JudgeInput, seen: SubscriberReading) -> tuple[Proposal, ...]:
    """Propose a restart where it creates what is missing or binds again; else to read the log."""
    observed = seen.others_late[0].observation
    if observed in ("balance.stream_missing", "balance.consumer_missing", "balance.unbound"):
        return (proposals.restart(given, "notification"),)
    return (proposals.logs(given, "notification"),) if observed in ("balance.behind", "balance.lost") else ()


def _observe_unrecorded(seen: SubscriberReading) -> tuple[str, ...]:
    return ("broker.record_missing",) if any(of.records for of in seen.others) else ()


def _is_unwritable(seen: SubscriberReading) -> bool:
    """Return whether the cluster certainly cannot write the stream or the consumer's state."""
    return any(group.writes is False for group in seen.broken)


def _rate_cluster(seen: SubscriberReading) -> Status:
    unbound = seen.consumer.bound is False and seen.stands.state not in PROCESS_NOT_RUNNING
    stopped = unbound or seen.consumer.paused or seen.consumer.full
    return Status.CRITICAL if _is_unwritable(seen) or stopped else Status.UNKNOWN


def _observe_unbound(seen: SubscriberReading) -> tuple[str, ...]:
    # The monitoring port tells a refused client from one that does not subscribe, and the state of the process shows
    # whether it runs; without both the observation is weaker.
    sure = seen.clients_seen and seen.stands.observations
    return ("subscriber.deaf" if sure else "subscriber.seems_deaf",)


def _observe_flow(seen: SubscriberReading) -> tuple[str, ...]:
    if seen.behind:
        return ("subscriber.behind",)
    if seen.late is None:
        return ()
    none_lost = seen.missing.surely_lost == 0 and not seen.missing.doubtful
    return ("subscriber.bound", "subscriber.nothing_lost") if none_lost else ("subscriber.bound",)


CASES = Cases[SubscriberReading](
    Case(
        "subscriber.refused",
        lambda seen: seen.loop and not seen.consumer.bound,
        Status.CRITICAL,
        # If no client is connected at all, the broker refuses everyone, not one client.
        evidence=lambda seen: ("subscriber.locked_out" if seen.locked_out else "subscriber.kept_out",),
        propose=_propose_credentials_check,
        read="2",
    ),
    Case(
        "subscriber.cluster",
        lambda seen: seen.broken,
        _rate_cluster,
        evidence=lambda seen: ("subscriber.no_quorum" if _is_unwritable(seen) else "subscriber.quorum_unclear",),
        propose=lambda given, seen: _propose_cluster_checks(given),
        read="2",
        says=lambda seen, facts: say("subscriber.cluster", group=min(seen.broken, key=lambda g: g.writes is None).text),
    ),
    Case(
        "subscriber.unseen",
        lambda seen: seen.consumer.bound is None,
        Status.UNKNOWN,
        evidence=lambda seen: ("subscriber.stands_still",) if seen.is_stalled else (),
        propose=_propose_own_logs,
    ),
    # Only the person who paused it can decide to resume it.
    Case("subscriber.paused", lambda seen: seen.consumer.paused, Status.CRITICAL, evidence="subscriber.paused"),
    Case(
        "subscriber.switched_off",
        lambda seen: not seen.consumer.bound and seen.switched_off,
        Status.CRITICAL,
        evidence="subscriber.switched_off",
        propose=_propose_credentials_check,
        read="5.1",
    ),
    Case(
        "subscriber.not_there",
        lambda seen: not seen.consumer.bound and seen.stands.state in PROCESS_NOT_RUNNING,
        lambda seen: seen.stands.status,
        # A process that hangs is a subscriber that stands still.
        evidence=lambda seen: (
            *seen.stands.observations,
            *(("subscriber.stands_still",) if seen.stands.state is ProcessState.HANGS else ()),
        ),
        propose=lambda given, seen: program.proposals(given, seen.stands),
        read="5.1",
        says=lambda seen, facts: seen.stands.headline(**facts | {"due": None}),
    ),
    Case(
        "subscriber.deaf",
        lambda seen: not seen.consumer.bound and seen.waits,
        Status.CRITICAL,
        evidence=_observe_unbound,
        propose=_propose_restart,
        read="5.1",
    ),
    # If nothing waits for the subscriber, a present delay has its cause at another hop.
    Case(
        "subscriber.deaf_idle",
        lambda seen: not seen.consumer.bound,
        Status.CRITICAL,
        evidence="subscriber.deaf_idle",
        propose=_propose_restart,
        read="5.1",
    ),
    Case("subscriber.full", lambda seen: seen.consumer.full, Status.CRITICAL, evidence="subscriber.full"),
    Case(
        "subscriber.holds",
        lambda seen: seen.holds,
        evidence="subscriber.holds",
        propose=_propose_restart,
    ),
    Case(
        "subscriber.passed_by",
        lambda seen: seen.missing.surely_lost and not seen.missing.ended,
        evidence=_observe_flow,
        propose=_propose_own_logs,
    ),
    Case("subscriber.expired", lambda seen: seen.deleted),
    Case("subscriber.lost", lambda seen: seen.missing.surely_lost, evidence=_observe_flow, propose=_propose_own_logs),
    Case(
        "subscriber.lost_or_deleted",
        lambda seen: seen.missing.doubtful,
        lambda seen: seen.missing.status_of_doubt,
        _observe_flow,
        _propose_own_logs,
    ),
    # Nothing stops a second notification of these events.
    Case("subscriber.not_registered", lambda seen: seen.missing.notified, Status.CRITICAL, _observe_flow),
    Case(
        "balance.late",
        lambda seen: seen.others_late,
        Status.CRITICAL,
        evidence=lambda seen: (seen.others_late[0].observation,),
        propose=_propose_for_other,
        read="5.1",
        says=lambda seen, facts: seen.others_late[0].text,
    ),
    Case("subscriber.expires", lambda seen: seen.expires, Status.WARNING),
    Case("subscriber.stalled", lambda seen: seen.consumer.stalled, evidence=_observe_flow, propose=_propose_own_logs),
    Case("subscriber.behind", lambda seen: seen.behind, evidence=_observe_flow, propose=_propose_own_logs),
    # Nothing of it is late, or it only records: no place is stuck.
    Case(
        "balance.differs",
        lambda seen: seen.others,
        Status.WARNING,
        evidence=lambda seen: (*_observe_flow(seen), *_observe_unrecorded(seen)),
        read="2",
        says=lambda seen, facts: seen.others[0].text,
    ),
    Case(
        "subscriber.bound",
        evidence=_observe_flow,
        propose=_propose_own_logs,
    ),
)

CHECKS: tuple[Check, ...] = (
    Check(
        "4.1.2",
        collect,
        judge,
        # What is not known of the consumer is a case of the table.
        optional=(
            "consumer",
            "clients",
            "nats_dlq",
            "activity",
            "own_settings",
            "consumer_now",
            *missing.TRACES,
            "program",
        ),
    ),
)
