"""Messages of the stream, found by the event that they carry: the broker itself knows only sequences and times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.packs.entitlement.actions.stores import AT_A_TIME, advised, read_event
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.jetstream import Message

#: Around the time that its row says a message is looked for first.
SOON = pd.Timedelta(seconds=1), pd.Timedelta(seconds=5)
#: Each costs a search for both of its ends.
SPANS = 16
Span = tuple[pd.Timestamp, pd.Timestamp]


@dataclass(frozen=True)
class Held:
    """What the subscriber's consumer held before the tables were looked at. `delivered` and `answered` are sequences:
    up to the first everything was delivered at least once, up to the second everything has its answer, or was given
    up. `there` is False where the broker has no such consumer.
    """

    delivered: int = 0
    answered: int = 0
    unanswered: int = 0
    there: bool = True

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Held:
        """What CONSUMER.INFO says."""
        delivered, floor = int(info["delivered"]["stream_seq"]), int(info["ack_floor"]["stream_seq"])
        return cls(delivered, floor, int(info["num_ack_pending"]))


@dataclass
class Found:
    """Messages by event: sequence and time of the newest. `complete` are the events whose whole span was read."""

    messages: dict[str, tuple[int, pd.Timestamp]] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)


def held(rb: Context) -> Held:
    """Ask the consumer. Raises SourceError, but not for a consumer that is not there: nobody has taken anything."""
    names = facts_of(rb).streams
    try:
        return Held.of(rb.jetstream.consumer(names.events, names.consumer))
    except SourceError as e:
        if e.code != "consumer_not_found":
            raise
        return Held(there=False)


def find(rb: Context, spans: Mapping[str, Sequence[Span]], most: int) -> Found:
    """Look for these events among the messages that were stored in their spans, the first span of each first.

    At most so many messages are read. Raises SourceError.
    """
    found, left, stream = Found(), most, facts_of(rb).streams.events
    for nth in range(max((len(s) for s in spans.values()), default=0)):
        missing = {e: s[nth] for e, s in spans.items() if e not in found.messages and nth < len(s)}
        merged = _merged(missing.values())
        bounds = rb.jetstream.positions(stream, [t.floor("us").to_pydatetime() for s in merged for t in s])
        for (since, until), first, end in zip(merged, bounds[::2], bounds[1::2], strict=True):
            for message in _read(rb, stream, range(first, min(end, first + left))):
                for event in _events_of(message):
                    found.messages[event] = (message.seq, pd.Timestamp(message.time))
            if end - first <= left:
                inside = {e for e, (a, b) in missing.items() if since <= a and b <= until}
                found.complete |= {e for e in inside if nth == len(spans[e]) - 1}
            left -= min(end - first, left)
    return found


def places(rb: Context, published: pd.DataFrame, before: Held) -> pd.DataFrame:
    """Where the broker has what was published and not processed (event_id, created_at, published_at): event_id, place.

    The place is that of `State.broker`; what could not be told is left out. Raises SourceError.
    """
    rows = published.to_dict("records")
    spans = {str(r["event_id"]): spans_of(rb, r["created_at"], r["published_at"]) for r in rows}
    most = int(rb.number("ledger.messages"))
    told = whereabouts(rb, find(rb, spans, most), before, spans, most) if spans else {}
    return pd.DataFrame(told.items(), columns=["event_id", "place"])


def whereabouts(rb: Context, seen: Found, before: Held, events: Iterable[str], most: int) -> dict[str, str]:
    """Where the messages of events are that were published and not processed: `State.broker` by event.

    They were not processed at a moment after `before`. Left out is what could not be told. Raises SourceError.
    """
    places: dict[str, str] = {}
    doubtful: dict[int, str] = {}
    for event in events:
        if event in seen.messages:
            seq = seen.messages[event][0]
            if seq > before.delivered or not before.there:
                places[event] = "waits"
            else:
                doubtful[seq] = event
        elif event in seen.complete:
            places[event] = "gone"
    if "gone" in places.values() and not _is_ours(rb):
        places = {event: place for event, place in places.items() if place != "gone"}
    if doubtful:
        dead = _given_up(rb, {seq: seen.messages[event][1] for seq, event in doubtful.items()}, most)
        for seq, event in doubtful.items():
            # What was answered before the tables were looked at would be in them.
            nobodys = seq <= before.answered or not before.unanswered
            places[event] = "given_up" if seq in dead else "gone" if nobodys else "delivered"
    return places


def _is_ours(rb: Context) -> bool:
    """Whether this is the broker that the database's events go to: it has one of those that were published last."""
    with rb.snapshot() as db:
        newest = db.ask("journey/newest")
    spans = {
        str(r["event_id"]): [spans_of(rb, r["created_at"], r["published_at"])[0]] for r in newest.to_dict("records")
    }
    return bool(find(rb, spans, int(rb.number("ledger.messages"))).messages)


def spans_of(rb: Context, created: pd.Timestamp, published: pd.Timestamp) -> list[Span]:
    """When the broker may have stored what was created, and marked as published, then: most likely, and at all."""
    apart, batch = (pd.Timedelta(seconds=rb.number(n)) for n in ("dead_letters.clocks_apart", "ledger.batch"))
    soon = min(created, published)
    return [(soon - SOON[0], published + SOON[1]), (soon - apart, published + batch)]


def _given_up(rb: Context, stored: Mapping[int, pd.Timestamp], most: int) -> set[int]:
    """Which of these sequences, stored at these times, the broker or the subscriber says to have given up."""
    # Of an earlier life of the stream, whose sequences began at 1 as well, a word may be older than the message.
    apart = pd.Timedelta(seconds=rb.number("dead_letters.clocks_apart"))
    with rb.snapshot() as db:
        recorded = db.ask("dead_letters/recorded", seqs=sorted(stored))
    said = [(int(r["stream_seq"]), r["created_at"]) for r in recorded.to_dict("records")]
    names = facts_of(rb).streams
    for stream in (names.advisory, names.terminated):
        with _missing_is_empty():
            last = int(rb.jetstream.stream(stream)["state"]["last_seq"])
            (first,) = rb.jetstream.positions(stream, [(min(stored.values()) - apart).floor("us").to_pydatetime()])
            newest = range(max(first, last - most + 1), last + 1)
            said += [(seq, pd.Timestamp(m.time)) for m in _read(rb, stream, newest) if (seq := advised(m)) is not None]
    return {seq for seq, at in said if seq in stored and stored[seq] <= at + apart}


@contextmanager
def _missing_is_empty() -> Iterator[None]:
    """A stream that is not there holds nothing."""
    try:
        yield
    except SourceError as e:
        if e.code != "stream_not_found":
            raise


def _read(rb: Context, stream: str, seqs: range) -> Iterable[Message]:
    for first in range(seqs.start, seqs.stop, AT_A_TIME):
        yield from rb.jetstream.messages(stream, range(first, min(first + AT_A_TIME, seqs.stop)))


def _events_of(message: Message) -> set[str]:
    """The event by the relay's name for the message, and by what it holds: a second copy has another name."""
    events = {message.headers.get("Nats-Msg-Id", "")}
    with suppress(TypeError):
        event = read_event(message)
        events |= {str(event[0])} if event else set()
    return events - {""}


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The spans without what overlaps, and no more than `SPANS`: those with the least between them become one."""
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
