"""4.1.2: is the subscriber bound to its consumer, how far behind is it, and why did it go?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.analysis.diagnosis import signals_of_silence
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    Proposal,
    Reason,
    Signal,
    Status,
    Text,
    Value,
    judged,
    say,
    unknown,
)
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import program, quorum
from runbook_lib.packs.entitlement.evidence import logins
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Letters
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: The process of notification is not at work, and so neither is its subscriber.
NOT_THERE = tuple(d["delivery"] for d in (program.TAKEN_DOWN, program.STARTING, program.NOT_UP, program.FROZEN))
#: What the broker itself says it does not have.
GONE = ("stream_not_found", "consumer_not_found", "no_jetstream", "no_leader")
#: What it does not say: nothing at all, or nothing of its cluster.
SILENT = ("hung", "unanswered")
_BROKER = {
    "hung": "alive.no_answer",
    "unanswered": "alive.no_answer",
    "stream_not_found": "alive.no_stream",
    "no_jetstream": "alive.no_stream",
}


@dataclass(frozen=True)
class Consumer:
    """The consumer's own account of itself: messages, and whether somebody listens."""

    bound: bool = False
    num_pending: float | None = None
    num_ack_pending: float | None = None
    max_ack_pending: float | None = None
    num_redelivered: float | None = None
    deliver_subject: str = ""
    paused: bool = False
    full: bool = False

    @property
    def lag(self) -> float | None:
        """What it holds, delivered or not; None where the server does not say."""
        if self.num_pending is None or self.num_ack_pending is None:
            return None
        return self.num_pending + self.num_ack_pending

    @property
    def stalled(self) -> bool:
        """Whether it delivers no more until something is acknowledged."""
        return 0 < (self.max_ack_pending or 0) <= (self.num_ack_pending or 0) and bool(self.num_pending)


@dataclass(frozen=True)
class OldestMessage:
    """The oldest message that is not acknowledged."""

    age_s: float = 0.0


@dataclass(frozen=True)
class Activity:
    """When an event was last processed."""

    QUESTION: ClassVar[str] = "processed/activity"

    now: pd.Timestamp | None = None
    last_processed: pd.Timestamp | None = None
    processed_1m: float | None = None


@dataclass(frozen=True)
class Unprocessed:
    """An event that was published and never processed."""

    QUESTION: ClassVar[str] = "outbox/unprocessed"

    published_at: pd.Timestamp | None = None


@dataclass(frozen=True)
class Client:
    """Who is connected to the broker."""

    name: str = ""
    user: str = ""
    ip: str = ""
    port: int = 0
    bound: bool = False


@dataclass(frozen=True)
class OwnSettings:
    """Whether notification's own settings let it connect to the broker; None for what could not be read."""

    listens: bool | None = None


@dataclass(frozen=True)
class Seen:
    """What 4.1.2 reads; None is what could not be seen.

    `missed` events were published and never processed, `lately` tells of the newest; `lost` are those that the consumer
    does not hold any more. `late` is what it holds by docs/slo.md, `silent` tells that for so long nothing was
    processed, `switched_off` that its own settings keep notification from the broker, `stands` how its process stands
    where nobody is bound. `refused` counts logins refused within the last minute, `loop` tells that a client is kept
    out, `locked_out` that everybody is. `broken` are the groups of the cluster that cannot be written, or of which
    that cannot be told; `thin` those that lack a node.
    """

    consumer: Consumer | None
    activity: Activity
    oldest_s: float | None
    late: bool
    missed: int | None
    lately: bool
    given_up: float
    refused: float
    reason: str
    client: str
    clients_seen: bool
    switched_off: bool
    stands: program.Stands
    silent: bool
    loop: bool
    locked_out: bool
    broken: tuple[quorum.Group, ...]
    thin: tuple[quorum.Group, ...]

    @property
    def bound(self) -> bool | None:
        """Whether somebody listens."""
        return None if self.consumer is None else self.consumer.bound

    @property
    def not_there(self) -> bool:
        """Whether nobody listens because the process that should is not at work."""
        return self.bound is False and self.stands.observation in NOT_THERE

    @property
    def kept_out(self) -> bool:
        """Whether it is not bound because it is refused."""
        return self.loop and not self.bound

    @property
    def lag(self) -> float | None:
        """Messages that the consumer holds."""
        return None if self.consumer is None else self.consumer.lag

    @property
    def lost(self) -> float | None:
        """What the consumer still holds is late; what it does not hold any more is lost."""
        if self.missed is None or (self.consumer is not None and self.lag is None):
            return None
        return max(self.missed - (self.lag or 0), 0)

    @property
    def losing(self) -> bool:
        """Whether events are being lost still."""
        return bool(self.lost) and self.lately and self.bound is not False

    @property
    def behind(self) -> bool:
        """Whether it holds too much, or for too long."""
        return bool(self.lag) and self.late

    @property
    def paused(self) -> bool:
        """Whether somebody has paused the consumer at the broker."""
        return self.consumer is not None and self.consumer.paused

    @property
    def full(self) -> bool:
        """Whether the stream takes no more."""
        return self.consumer is not None and self.consumer.full

    @property
    def holds(self) -> bool:
        """Whether it took messages, and has done nothing with them since."""
        return self.behind and self.silent and self.consumer is not None and bool(self.consumer.num_ack_pending)

    @property
    def unwritable(self) -> bool:
        """Whether the cluster cannot write the stream, or what becomes of its messages."""
        return any(group.writes is False for group in self.broken)

    @property
    def stalled(self) -> bool:
        """Whether the consumer waits for acknowledgements."""
        return self.consumer is not None and self.consumer.stalled


def collect(rb: Context) -> Frames:
    """The consumer's own account first, then who is connected, then what the tables say; each may be missing.

    Frames: consumer (ts: time, bound: flag, push: flag, num_waiting: number, num_pending, num_ack_pending,
    max_ack_pending, num_redelivered: messages, delivered_seq, ack_floor_seq, last_seq: number, last_message: time,
    stream_created: time, deliver_subject: text, paused, full: flag); replicas (fields of `quorum.Member`) in a cluster;
    oldest (seq: number, stored: time, age_s: s) where something waits; those of `clients_of`, `logins.closed_of` and
    `quorum.nodes`; where nobody is bound own_settings (listens: flag) and those of `program.ask`; unprocessed;
    nats_dlq and activity where cheap.
    """
    parts = Parts()
    with parts.part("consumer") as frames:
        frames |= _consumer(rb)
    if not rb.past:
        with parts.part("clients") as frames:
            frames |= _clients(rb, rows.one(frames.get("consumer"), Consumer).deliver_subject)
        consumer = rows.first(frames.get("consumer"), Consumer)
        if consumer is not None and not consumer.bound:
            with parts.part("own_settings") as frames:
                environment = rb.workloads.environment(rb.facts.workloads.program("notification"))
                off = any(k.endswith("NATS_ENABLED") and v.lower() == "false" for k, v in environment.items())
                frames["own_settings"] = row(listens=not off)
            program.ask(rb, "4.1.2", parts, "delivery", late=True)
    with parts.part("events") as frames, rb.snapshot() as db:
        frames["unprocessed"] = db.ask("outbox/unprocessed")
        others = {
            "nats_dlq": db.try_ask("processed/nats_dlq"),
            "activity": db.try_ask("processed/activity"),
        }
        frames |= {name: frame for name, frame in others.items() if frame is not None}
    return parts.frames()


def _consumer(rb: Context) -> Frames:
    if rb.past:
        raise SourceError("jetstream", Reason.NO_DATA, "the broker knows only the present")
    names = facts_of(rb).streams
    stream = rb.jetstream.stream(names.events)
    consumer = rb.jetstream.consumer(names.events, names.consumer)
    config, state, kept = consumer.get("config", {}), stream.get("state", {}), stream.get("config", {})
    seen = {
        "ts": consumer.get("ts"),
        "bound": bool(consumer.get("push_bound")),
        "push": bool(config.get("deliver_subject")),
        "num_waiting": consumer.get("num_waiting"),
        "num_pending": consumer.get("num_pending"),
        "num_ack_pending": consumer.get("num_ack_pending"),
        "max_ack_pending": config.get("max_ack_pending"),
        "num_redelivered": consumer.get("num_redelivered"),
        "delivered_seq": consumer.get("delivered", {}).get("stream_seq"),
        "ack_floor_seq": consumer.get("ack_floor", {}).get("stream_seq"),
        "last_seq": state.get("last_seq"),
        "last_message": state.get("last_ts"),
        "stream_created": stream.get("created"),
        "deliver_subject": config.get("deliver_subject"),
        "paused": bool(consumer.get("paused")),
        # It refuses what is new, instead of dropping what is old.
        "full": kept.get("discard") == "new" and 0 < kept.get("max_msgs", 0) <= state.get("messages", 0),
    }
    members = [*quorum.members(names.events, stream), *quorum.members(names.consumer, consumer)]
    frames = {"consumer": row(**seen), "replicas": rows.frame(members, quorum.Member)}
    if (seen["num_pending"] or seen["num_ack_pending"]) and seen["ack_floor_seq"] is not None:
        subject = config.get("filter_subject") or ">"
        message = rb.jetstream.message(names.events, seen["ack_floor_seq"] + 1, subject)
        if message is not None:
            now = pd.Timestamp(seen["ts"]) if seen["ts"] else rb.now()
            age = (now - pd.Timestamp(message.time)).total_seconds()
            frames["oldest"] = row(seq=message.seq, stored=message.time, age_s=max(age, 0.0))
    return frames


def _clients(rb: Context, inbox: str) -> Frames:
    monitor = rb.nats_monitor
    clients, closed = monitor.connections(), monitor.closed()
    return {
        "clients": clients_of(clients, inbox),
        "closed": logins.closed_of(closed),
        "nodes": quorum.nodes(monitor.cluster()),
    }


def clients_of(connections: pd.DataFrame, inbox: str) -> pd.DataFrame:
    """Who is connected beside runbooks, and which of them listens where the consumer delivers to.

    Frame clients (cid: number, name: text, ip: text, port: number, start: time, user: text, pending_bytes: bytes,
    bound: flag).
    """
    others = connections[~connections["name"].fillna("").str.startswith("runbook/")]
    listens = [bool(inbox) and inbox in str(subjects).split() for subjects in others["subjects"]]
    return others[["cid", "name", "ip", "port", "start", "user", "pending_bytes"]].assign(bound=listens)


def judge(frames: Frames, given: Given) -> Finding:
    """Unbound is deaf; bound and behind is slow; published, not behind and not processed is lost."""
    failed = failures(frames).get("consumer")
    if failed is not None and failed.code in (*GONE, *SILENT):
        return _gone(failed, rows.one(frames.get("activity"), Activity), given)
    seen = _seen(frames, given)
    facts: dict[str, Any] = {
        "lag": seen.lag,
        "oldest": seen.oldest_s,
        "lost": seen.lost,
        "missed": seen.missed,
        "refused": seen.refused,
        "reason": seen.reason,
        "client": seen.client,
        "processed": seen.activity.processed_1m,
    }
    section = "2" if seen.refused or seen.broken or failed is not None else ""
    if seen.bound is False and not seen.refused and not seen.broken:
        section = "5.1"
    elif seen.lost:
        section = "5.3"
    return judged(
        _headline(seen, facts),
        _values(seen, given),
        at_least=_at_least(seen),
        reason=failed.reason if failed is not None else None,
        notes=(*_notes(frames, seen, facts), *_ways_out(seen, given)),
        signals=tuple(_signals(seen, given)),
        hops=_hops(seen),
        proposals=_proposals(given, seen),
        next_sections=(section,) if section else (),
        show=tuple(n for n in ("clients", "closed", "unprocessed") if n in frames and not frames[n].empty),
    )


def _gone(e: SourceError, activity: Activity, given: Given) -> Finding:
    """A broker that has lost its stream or consumer is the answer itself, unless events flow all the same."""
    last = seconds_between(activity.last_processed, activity.now)
    if last is not None and last < given.number("processed.lately"):
        reason = Reason.TIMEOUT if e.code in SILENT else Reason.ERROR
        key = "election" if e.code in ("no_leader", "unanswered") else "another_broker"
        return unknown("", reason, say(f"subscriber.{key}", detail=e.detail, ago=last), next_sections=("2",))
    lost = e.code in ("stream_not_found", "consumer_not_found")
    restarts = [proposals.restart(given, "notification")] if lost else []
    if e.code == "stream_not_found":
        restarts.append(proposals.restart(given, "entitlement"))
    # What the outbox is stuck for is not its own doing, though it looks like it.
    outbox = () if e.code == "consumer_not_found" else given.speaks("subscriber.broker_gone")
    return judged(
        say(f"subscriber.{e.code}", detail=e.detail),
        at_least=Status.CRITICAL,
        signals=(*signals_of_silence(e, given.catalog), *outbox),
        hops=(
            Hop("jetstream", alive=say(_BROKER.get(e.code, "alive.answers"))),
            Hop("subscriber", alive=say("alive.not_bound") if lost else None),
        ),
        proposals=tuple(restarts) or (_looks(given) if e.code in ("no_leader", "unanswered") else _logs(given)),
        next_sections=("2", "5.1") if lost else ("2",),
    )


def _looks(given: Given) -> tuple[Proposal, ...]:
    """A cluster that has lost nodes needs them back: which of them run, and what they say."""
    return (proposals.pods(given, "nats"), *_logs(given))


def _logs(given: Given) -> tuple[Proposal, ...]:
    return (proposals.logs(given, "nats"),)


def _seen(frames: Frames, given: Given) -> Seen:
    limits, consumer = given.limits, rows.first(frames.get("consumer"), Consumer)
    oldest_s = rows.one(frames.get("oldest"), OldestMessage).age_s if consumer is not None else None
    late = (
        limits["subscriber.lag"].status(None if consumer is None else consumer.lag),
        limits["subscriber.oldest_unprocessed"].status(oldest_s),
    )
    missed = rows.each(frames.get("unprocessed"), Unprocessed)
    since = given.as_of - pd.Timedelta(seconds=given.number("subscriber.losing"))
    refused, reason = logins.refused(frames, given)
    loop = refused >= given.number("refused.loop")
    activity = rows.one(frames.get("activity"), Activity)
    last_s = seconds_between(activity.last_processed, activity.now)
    clients_seen = "clients" in frames and not rows.one(frames.get("nodes"), quorum.Nodes).partly
    groups = quorum.groups(frames, given)
    return Seen(
        consumer=consumer,
        activity=activity,
        oldest_s=oldest_s,
        late=any(status in (Status.WARNING, Status.CRITICAL) for status in late),
        missed=len(missed) if "unprocessed" in frames else None,
        lately=any(event.published_at is not None and event.published_at > since for event in missed),
        given_up=rows.one(frames.get("nats_dlq"), Letters).n,
        refused=refused,
        reason=reason,
        client=_bound_client(frames),
        clients_seen=clients_seen,
        switched_off=rows.one(frames.get("own_settings"), OwnSettings).listens is False,
        stands=program.stands(frames, given, "delivery"),
        silent=last_s is not None and last_s >= (limits["subscriber.oldest_unprocessed"].warning or 0),
        loop=loop,
        # The monitoring port also shows what the consumer's own account is refused to us for.
        locked_out=loop and clients_seen and frames["clients"].empty,
        broken=tuple(g for g in groups if not g.writes),
        thin=tuple(g for g in groups if g.writes and g.away),
    )


def _values(seen: Seen, given: Given) -> list[Value]:
    limits, values = given.limits, []
    if seen.consumer is not None:
        values += [
            limits.value("subscriber.lag", seen.lag),
            limits.value("subscriber.oldest_unprocessed", seen.oldest_s),
            Value("consumer.bound", "yes" if seen.bound else "no"),
            Value("consumer.num_pending", seen.consumer.num_pending, "messages"),
            Value("consumer.num_ack_pending", seen.consumer.num_ack_pending, "messages"),
            Value("consumer.num_redelivered", seen.consumer.num_redelivered, "messages"),
        ]
    if seen.lost is not None:
        values.append(limits.value("outbox.unprocessed", seen.lost))
        values.append(Value("outbox.published_not_processed", seen.missed, "rows"))
    if seen.refused:
        values.append(Value("connections.refused_last_minute", seen.refused, "1/min"))
    return values


def _at_least(seen: Seen) -> Status:
    if seen.not_there and not seen.kept_out and not seen.unwritable:
        return seen.stands.status
    if seen.bound is False or seen.kept_out or seen.paused or seen.full or seen.unwritable:
        return Status.CRITICAL
    if seen.bound is None or seen.broken:
        return Status.UNKNOWN
    return Status.WARNING if seen.stalled or seen.loop or seen.thin else Status.OK


def _bound_client(frames: Frames) -> str:
    bound = next((c for c in rows.each(frames.get("clients"), Client) if c.bound), None)
    return "?" if bound is None else f"{bound.name or bound.user} {bound.ip}:{bound.port}".strip()


def _headline(seen: Seen, facts: dict[str, Any]) -> Text:
    if seen.kept_out:
        key = "refused"
    elif seen.broken:
        first = min(seen.broken, key=lambda g: g.writes is None)
        return say("subscriber.cluster", group=first.text)
    elif seen.bound is None:
        key = "unseen"
    elif seen.paused or seen.full:
        key = "paused" if seen.paused else "full"
    elif not seen.bound and seen.switched_off:
        key = "switched_off"
    elif seen.not_there:
        return seen.stands.headline(**facts | {"due": None})
    elif not seen.bound:
        key = "deaf" if seen.lag else "deaf_idle"
    elif seen.holds:
        key = "holds"
    elif seen.lost:
        key = "lost"
    elif seen.stalled:
        key = "stalled"
    else:
        key = "behind" if seen.behind else "bound"
    return say(f"subscriber.{key}", **facts)


def _notes(frames: Frames, seen: Seen, facts: dict[str, Any]) -> list[Text]:
    notes = []
    for e in failures(frames).values():
        why = say(f"unknown.{e.reason}", source=e.source, detail=e.detail)
        notes.append(say("subscriber.without", source=e.source, why=why))
    if seen.refused:
        notes.append(say("subscriber.reason_of_server", **facts))
    if (known := rows.one(frames.get("nodes"), quorum.Nodes)).partly:
        notes.append(say("subscriber.nodes_unseen", seen=known.seen, of=known.of))
    notes += [group.text for group in seen.thin]
    if seen.stalled:
        notes.append(say("subscriber.stalled", **facts))
    if seen.missed and seen.lost is not None and seen.missed > seen.lost:
        notes.append(say("subscriber.still_held", held=seen.missed - seen.lost))
    if seen.missed is not None and frames["unprocessed"].attrs.get("capped"):
        notes.append(say("subscriber.capped", n=seen.missed))
    if seen.given_up:
        notes.append(say("subscriber.given_up", n=seen.given_up))
    return notes


def _ways_out(seen: Seen, given: Given) -> Iterator[Text]:
    """What only whoever paused or limited it may do, in words: the runbook has no button for it."""
    names = facts_of(given).streams
    if seen.paused:
        yield say("subscriber.resume", stream=names.events, consumer=names.consumer)
    if seen.full:
        yield say("subscriber.raise_limit", stream=names.events)


def _signals(seen: Seen, given: Given) -> list[Signal]:
    observed = [*_connection(seen)]
    if seen.losing:
        observed.append("subscriber.losing")
    if seen.lost and seen.bound is not False:
        observed += ["subscriber.lost", *(["subscriber.gave_up"] if seen.given_up else [])]
    return [signal for name in observed for signal in given.speaks(name)]


def _connection(seen: Seen) -> Iterator[str]:
    """What the connection comes to."""
    if seen.kept_out:
        # Nobody at all is let in: the broker's door, not one client of it.
        yield "subscriber.locked_out" if seen.locked_out else "subscriber.kept_out"
    elif seen.broken:
        yield "subscriber.no_quorum" if seen.unwritable else "subscriber.quorum_unclear"
    elif seen.paused:
        yield "subscriber.paused"
    elif seen.full and seen.bound:
        yield "subscriber.full"
    elif seen.bound is False and seen.switched_off:
        yield "subscriber.switched_off"
    elif seen.not_there:
        yield from seen.stands.observations
    elif seen.bound is False:
        # Without the monitoring port nobody knows whether it is kept out or just does not listen, without a word of
        # its process not whether it is there; and while nothing waits for it, what is late now is late somewhere else.
        waits = bool(seen.lag or seen.missed)
        sure = seen.clients_seen and seen.stands != program.NOTHING
        seen_out = "subscriber.deaf" if sure else "subscriber.seems_deaf"
        yield seen_out if waits else "subscriber.deaf_idle"
    elif seen.holds:
        yield "subscriber.holds"
    elif seen.behind:
        yield "subscriber.behind"
    elif seen.bound:
        yield "subscriber.bound"
        if not seen.lost:
            yield "subscriber.nothing_lost"
    elif seen.lost and seen.activity != Activity() and not seen.activity.processed_1m:
        yield "subscriber.stands_still"  # the broker could not be asked; events go in and nothing comes out


def _hops(seen: Seen) -> tuple[Hop, ...]:
    there: Text | str = say("alive.bound") if seen.client == "?" else seen.client
    answers = Hop("jetstream")
    if seen.consumer is not None:
        answers = Hop("jetstream", waiting=seen.consumer.num_pending, alive=say("alive.answers"))
    return (
        answers,
        Hop(
            "subscriber",
            rate_out=seen.activity.processed_1m,
            waiting=seen.lag,
            oldest_s=seen.oldest_s,
            alive={None: None, True: there, False: say("alive.not_bound")}[seen.bound],
            late=seen.behind,
        ),
    )


def _proposals(given: Given, seen: Seen) -> tuple[Proposal, ...]:
    if seen.paused:
        return ()  # only whoever paused it can say whether it may go on
    if seen.kept_out or seen.switched_off:
        return (remedies.check_nats_credentials(given),)
    if seen.broken:
        return _looks(given)
    if seen.not_there:
        return program.proposals(given, seen.stands, "delivery")
    if seen.bound is False or seen.holds:
        return (proposals.restart(given, "notification"),)
    return (proposals.logs(given, "notification"),) if seen.losing else ()


CHECKS: tuple[Check, ...] = (Check("4.1.2", collect, judge),)
