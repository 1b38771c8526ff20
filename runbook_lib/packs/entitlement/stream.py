"""Find the stream's messages by the event that they carry; the broker itself indexes only sequences and times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from runbook_lib.packs.entitlement.actions.stores import FETCH_SIZE, advised_sequence, read_event
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.jetstream import Consumer, Message

#: A message is searched first within this time before and after the times in its row.
SOON = pd.Timedelta(seconds=1), pd.Timedelta(seconds=5)
#: The largest number of spans that are searched; the broker is asked for the sequences at both ends of each.
SPANS = 16
Span = tuple[pd.Timestamp, pd.Timestamp]


@dataclass(frozen=True)
class ConsumerPosition:
    """The position of the subscriber's consumer before the tables were read.

    Every message up to the sequence `delivered` was delivered at least once; every message up to `answered` was
    acknowledged or given up. `unanswered` counts the delivered messages without acknowledgement. `there` is False if
    the broker has no such consumer. `subjects` are the subjects of its filter; without any it takes all subjects.
    `held_s` is the age of the oldest message that it holds in seconds, 0 if it holds none; None if it was not read.
    """

    delivered: int = 0
    answered: int = 0
    unanswered: int = 0
    there: bool = True
    subjects: tuple[str, ...] = ()
    held_s: float | None = None

    @classmethod
    def of(cls, consumer: Consumer, held_s: float | None = None) -> ConsumerPosition:
        """Return the position of a consumer as the broker reports it now."""
        delivered, answered, unanswered = consumer.delivered_seq, consumer.ack_floor_seq, consumer.num_ack_pending
        return cls(delivered, answered, unanswered, subjects=consumer.subjects, held_s=held_s)

    def takes(self, subject: str) -> bool:
        """Return whether the consumer's filter includes this subject; it never delivers the others."""
        return not self.subjects or any(matches(subject, wanted) for wanted in self.subjects)


def matches(subject: str, wanted: str) -> bool:
    """Return whether a subject matches a pattern: `*` stands for one token, `>` for one or more tokens at the end.

    >>> matches("a.b", "a.*"), matches("a.b.c", "a.>"), matches("a", "a.>"), matches("a.b", "a")
    (True, True, False, False)
    """
    tokens, patterns = subject.split("."), wanted.split(".")
    if patterns[-1] == ">":
        patterns, tokens = [*patterns[:-1], "*"], tokens[: len(patterns)]
    return len(tokens) == len(patterns) and all(p in ("*", t) for t, p in zip(tokens, patterns, strict=True))


class MessagePosition(NamedTuple):
    """The position of an event's message: its sequence, its time of storage, and its subject."""

    seq: int
    time: pd.Timestamp
    subject: str


@dataclass
class FoundMessages:
    """The newest message of each event; `complete` has the events whose spans were read completely."""

    messages: dict[str, MessagePosition] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)


def read_oldest_held(rb: Context, consumer: Consumer) -> tuple[Message | None, float | None]:
    """Return the oldest message that the consumer holds and its age in seconds; (None, 0) if it holds none.

    Both are None if the stream no longer has the message. Raises SourceError.
    """
    if not (consumer.num_pending or consumer.num_ack_pending):
        return None, 0.0
    events, first = facts_of(rb).streams.events, consumer.ack_floor_seq + 1
    found = [rb.jetstream.message(events, first, subject) for subject in consumer.subjects or (">",)]
    message = min((m for m in found if m), key=lambda m: m.seq, default=None)
    if message is None:
        return None, None
    now = pd.Timestamp(ts) if (ts := consumer.info.get("ts")) else rb.now()
    return message, max((now - pd.Timestamp(message.time)).total_seconds(), 0.0)


def read_consumer_position(rb: Context) -> ConsumerPosition:
    """Return the consumer's position. Raises SourceError, except for a missing consumer, which has no messages."""
    names = facts_of(rb).streams
    try:
        return ConsumerPosition.of(rb.jetstream.consumer(names.events, names.consumer))
    except SourceError as e:
        if e.code != "consumer_not_found":
            raise
        return ConsumerPosition(there=False)


def find_messages(rb: Context, spans: Mapping[str, Sequence[Span]], most: int) -> FoundMessages:
    """Find the messages of these events within their spans of time, beginning with the first span of each.

    Reads at most `most` messages. Raises SourceError.
    """
    found, left, stream = FoundMessages(), most, facts_of(rb).streams.events
    for nth in range(max((len(s) for s in spans.values()), default=0)):
        missing = {e: s[nth] for e, s in spans.items() if e not in found.messages and nth < len(s)}
        merged = _merge_spans(missing.values())
        bounds = rb.jetstream.positions(stream, [t.floor("us").to_pydatetime() for s in merged for t in s])
        for (since, until), first, end in zip(merged, bounds[::2], bounds[1::2], strict=True):
            for message in _read_messages(rb, stream, range(first, min(end, first + left))):
                for event in _read_event_ids(message):
                    found.messages[event] = MessagePosition(message.seq, pd.Timestamp(message.time), message.subject)
            if end - first <= left:
                inside = {e for e, (a, b) in missing.items() if since <= a and b <= until}
                found.complete |= {e for e in inside if nth == len(spans[e]) - 1}
            left -= min(end - first, left)
    return found


def locate_events(rb: Context, published: pd.DataFrame, before: ConsumerPosition) -> dict[str, str]:
    """Return the places at the broker of published, unprocessed events: `State.broker` by event.

    `published` has event_id, created_at, published_at. Events that could not be located are left out. Raises
    SourceError.
    """
    rows = published.to_dict("records")
    spans = {str(r["event_id"]): search_spans(rb, r["created_at"], r["published_at"]) for r in rows}
    most = int(rb.number("ledger.messages"))
    return locate_messages(rb, find_messages(rb, spans, most), before, spans, most) if spans else {}


def locate_messages(
    rb: Context, seen: FoundMessages, before: ConsumerPosition, events: Iterable[str], most: int
) -> dict[str, str]:
    """Return the places of the messages of published, unprocessed events: `State.broker` by event.

    The tables must have been read after the consumer's position `before`. Events that could not be located are left
    out. Raises SourceError.
    """
    located: dict[str, str] = {}
    doubtful: dict[int, str] = {}
    for event in events:
        if event in seen.messages:
            message = seen.messages[event]
            if message.seq > before.delivered or not before.there:
                located[event] = "waits" if before.takes(message.subject) else "passed"
            else:
                doubtful[message.seq] = event
        elif event in seen.complete:
            located[event] = "gone"
    if "gone" in located.values() and not _broker_matches_database(rb):
        located = {event: place for event, place in located.items() if place != "gone"}
    if doubtful:
        dead = _find_given_up(rb, {seq: seen.messages[event].time for seq, event in doubtful.items()}, most)
        for seq, event in doubtful.items():
            # A message that was acknowledged before the tables were read would be registered in them.
            not_held = seq <= before.answered or not before.unanswered
            if seq in dead:
                located[event] = "given_up"
            elif not before.takes(seen.messages[event].subject):
                located[event] = "passed"
            else:
                located[event] = "gone" if not_held else "delivered"
    return located


def _broker_matches_database(rb: Context) -> bool:
    """Return whether this broker has one of the events that the database says were published last."""
    with rb.snapshot() as db:
        newest = db.ask("journey/newest")
    spans = {
        str(r["event_id"]): [search_spans(rb, r["created_at"], r["published_at"])[0]] for r in newest.to_dict("records")
    }
    return bool(find_messages(rb, spans, int(rb.number("ledger.messages"))).messages)


def search_spans(rb: Context, created: pd.Timestamp, published: pd.Timestamp) -> list[Span]:
    """Return the spans in which the broker may have stored an event, by its row's times: the likely one, the widest."""
    apart, batch = (pd.Timedelta(seconds=rb.number(n)) for n in ("dead_letters.clocks_apart", "ledger.batch"))
    soon = min(created, published)
    return [(soon - SOON[0], published + SOON[1]), (soon - apart, published + batch)]


def _find_given_up(rb: Context, stored: Mapping[int, pd.Timestamp], most: int) -> set[int]:
    """Return the sequences, of those stored at these times, that the broker or the subscriber has given up."""
    # A stream that was made anew began at sequence 1 too: a record older than the message is about another one.
    apart = pd.Timedelta(seconds=rb.number("dead_letters.clocks_apart"))
    with rb.snapshot() as db:
        recorded = db.ask("dead_letters/recorded", seqs=sorted(stored))
    given_up = [(int(r["stream_seq"]), r["created_at"]) for r in recorded.to_dict("records")]
    names = facts_of(rb).streams
    for stream in (names.advisory, names.terminated):
        with _ignore_missing_stream():
            last = int(rb.jetstream.stream(stream)["state"]["last_seq"])
            (first,) = rb.jetstream.positions(stream, [(min(stored.values()) - apart).floor("us").to_pydatetime()])
            newest = range(max(first, last - most + 1, 1), last + 1)
            given_up += [
                (seq, pd.Timestamp(m.time))
                for m in _read_messages(rb, stream, newest)
                if (seq := advised_sequence(m)) is not None
            ]
    return {seq for seq, at in given_up if seq in stored and stored[seq] <= at + apart}


@contextmanager
def _ignore_missing_stream() -> Iterator[None]:
    """Treat a missing stream as an empty one."""
    try:
        yield
    except SourceError as e:
        if e.code != "stream_not_found":
            raise


def _read_messages(rb: Context, stream: str, seqs: range) -> Iterable[Message]:
    for first in range(seqs.start, seqs.stop, FETCH_SIZE):
        yield from rb.jetstream.messages(stream, range(first, min(first + FETCH_SIZE, seqs.stop)))


def _read_event_ids(message: Message) -> set[str]:
    """Return the event ids in the message id of the relay and in the body: a redriven message has another id."""
    events = {message.headers.get("Nats-Msg-Id", "")}
    with suppress(TypeError):
        event = read_event(message)
        events |= {str(event[0])} if event else set()
    return events - {""}


def _merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Merge overlapping spans, then the nearest ones until there are at most `SPANS`."""
    merged: list[Span] = []
    for since, until in sorted(spans):
        if merged and since <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], until))
        else:
            merged.append((since, until))
    while len(merged) > SPANS:
        nearest = min(range(1, len(merged)), key=lambda n: merged[n][0] - merged[n - 1][1])
        merged[nearest - 1 : nearest + 1] = [(merged[nearest - 1][0], merged[nearest][1])]
    return merged
