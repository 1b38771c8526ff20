"""Locate events at the broker by their messages, and in the database those of the other streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import pandas as pd

from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.actions.stores import read_event
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.jetstream import search
from runbook_lib.packs.jetstream.balance import Ledger
from runbook_lib.packs.jetstream.consumer import ConsumerPosition, none_if_missing
from runbook_lib.packs.jetstream.search import FoundMessages, Span

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.jetstream import Message

#: A message is searched first within this time before and after the times in its row.
SOON = pd.Timedelta(seconds=1), pd.Timedelta(seconds=5)


def read_consumer_position(rb: Context) -> ConsumerPosition:
    """Return the position of the subscriber's consumer; a missing one has no messages. Raises SourceError."""
    names = facts_of(rb).streams
    found = none_if_missing(partial(rb.source("jetstream").consumer, names.events, names.consumer))
    return ConsumerPosition.of(found) if found else ConsumerPosition(there=False)


def find_messages(rb: Context, spans: Mapping[str, Sequence[Span]], most: int) -> FoundMessages:
    """Find the messages of these events within their spans of time. Raises SourceError."""
    return search.find_messages(rb.source("jetstream"), facts_of(rb).streams.events, spans, most, _read_event_ids)


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
    names, jetstream = facts_of(rb).streams, rb.source("jetstream")
    for stream in (names.advisory, names.terminated):
        if (info := none_if_missing(partial(jetstream.stream, stream))) is None:
            continue
        last = int(info["state"]["last_seq"])
        (first,) = jetstream.positions(stream, [(min(stored.values()) - apart).floor("us").to_pydatetime()])
        newest = range(max(first, last - most + 1, 1), last + 1)
        given_up += [
            (seq, pd.Timestamp(m.time))
            for m in search.read_messages(jetstream, stream, newest)
            if (seq := search.advised_sequence(m)) is not None
        ]
    return {seq for seq, at in given_up if seq in stored and stored[seq] <= at + apart}


def _read_event_ids(message: Message) -> set[str]:
    """Return the event ids in the message id of the relay and in the body: a redriven message has another id."""
    events = {message.headers.get("Nats-Msg-Id", "")}
    with suppress(TypeError):
        event = read_event(message)
        events |= {str(event[0])} if event else set()
    return events - {""}


def ledgers(rb: Context) -> dict[str, Ledger]:
    """Return of each stream beside that of the outbox's events where its messages are registered."""
    names = facts_of(rb).streams
    matches = {names.matches: Ledger(names.matches_consumer, _read_match_id, _find_processed)} if names.matches else {}
    records = {
        stream: Ledger(durable, search.advised_sequence, _find_recorded, records=True)
        for stream, durable in names.records.items()
    }
    return matches | records


def _read_match_id(message: Message) -> UUID | None:
    with suppress(wire.WireError, ValueError):
        return UUID(wire.decode(message.body, wire.MatchmakingEvent).event_id)
    return None


def _find_processed(rb: Context, event_ids: list[UUID]) -> set[str]:
    with rb.snapshot() as db:
        return {*db.ask("dead_letters/processed", event_ids=[str(e) for e in event_ids])["event_id"].astype(str)}


def _find_recorded(rb: Context, seqs: list[int]) -> set[str]:
    with rb.snapshot() as db:
        return {*db.ask("dead_letters/recorded", seqs=seqs)["stream_seq"].astype(str)}
