"""The way of one event, hop by hop, from the rows and the message that are left of it. Pure: `of` asks nobody."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.checks.parts import seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Status, Text, say
from runbook_lib.packs.entitlement.ledger import PLACES, State
from runbook_lib.packs.entitlement.wire import REVOKED


@dataclass(frozen=True)
class Change:
    """A row of the audit."""

    QUESTION: ClassVar[str] = "journey/audit"
    audit_id: str = ""
    occurred_at: pd.Timestamp | None = None
    user_id: str = ""
    stock_keeping_unit: str = ""
    action: str = ""


@dataclass(frozen=True)
class Leased:
    """What both queues have of a row."""

    event_id: str = ""
    user_id: str = ""
    stock_keeping_unit: str = ""
    trace_id: str = ""
    status: str = ""
    attempt_count: int = 0
    next_retry_at: pd.Timestamp | None = None
    created_at: pd.Timestamp | None = None
    locked_by: str = ""
    locked_at: pd.Timestamp | None = None
    lease_until: pd.Timestamp | None = None
    lacks: int = 0

    def wait(self, now: pd.Timestamp) -> str:
        """As in `ledger.State`; "due" for what has come to an end."""
        if self.status in ("IN_FLIGHT", "PROCESSING"):
            return "held" if self.lease_until is not None and self.lease_until > now else "due"
        return "retry" if self.next_retry_at is not None and self.next_retry_at > now else "due"


@dataclass(frozen=True)
class Outbox(Leased):
    """A row of the outbox."""

    QUESTION: ClassVar[str] = "journey/outbox"
    event_type: str = ""
    published_at: pd.Timestamp | None = None
    last_error: str = ""

    @property
    def permanent(self) -> bool:
        """Whether another try would fail again, by the publisher's own words for what is wrong with an event."""
        words = ("", "outbox payload parse failure", "text", "unknown error")
        return self.lacks > 0 or self.last_error in words or self.last_error.startswith("unknown event type: ")


@dataclass(frozen=True)
class Notification(Leased):
    """A notification."""

    QUESTION: ClassVar[str] = "journey/notifications"
    notification_id: str = ""
    type: str = ""
    occurred_at: pd.Timestamp | None = None
    sent_at: pd.Timestamp | None = None


@dataclass(frozen=True)
class Registration:
    """That an event was processed."""

    QUESTION: ClassVar[str] = "journey/processed"
    event_id: str = ""
    processed_at: pd.Timestamp | None = None


@dataclass(frozen=True)
class Letter:
    """A dead letter of a delivery."""

    QUESTION: ClassVar[str] = "journey/letters"
    event_id: str = ""
    notification_id: str = ""
    created_at: pd.Timestamp | None = None
    error_message: str = ""


@dataclass(frozen=True)
class Redriven:
    """That an event was sent again, or shall not be."""

    QUESTION: ClassVar[str] = "journey/redriven"
    event_id: str = ""
    store: str = ""
    decision: str = ""
    state: str = ""
    at: pd.Timestamp | None = None


@dataclass(frozen=True)
class Stored:
    """The event's message, and where the broker has it: see `ledger.State`."""

    event_id: str = ""
    stream_seq: int | None = None
    stored_at: pd.Timestamp | None = None
    broker: str = ""


@dataclass(frozen=True)
class Stop:
    """One stage of the way: when it was reached (None where nothing keeps that), and what happened there.

    `mark` is "passed", "here" (it waits), "failed" or "unseen". `wait_s` is the time since the stage before, in s.
    """

    hop: str
    at: pd.Timestamp | None
    text: Text
    mark: str = "passed"
    wait_s: float | None = None


@dataclass(frozen=True)
class Journey:
    """One event: who and what, its way, where it is, what comes next. People are tokens."""

    event_id: str
    type: str
    user: str
    sku: str
    trace_id: str
    stops: tuple[Stop, ...]
    place: str
    status: Status
    headline: Text
    next: Text
    notes: tuple[Text, ...] = ()
    now: pd.Timestamp | None = None

    @property
    def title(self) -> Text:
        """What it is."""
        return say("journey.title", type=self.type, user=self.user, sku=self.sku, event=self.event_id)

    def frame(self) -> pd.DataFrame:
        """Its stages: hop, mark (text), at (UTC), wait_s (s)."""
        return pd.DataFrame(
            [(s.hop, s.mark, s.at, s.wait_s) for s in self.stops], columns=["hop", "mark", "at", "wait_s"]
        )


def of(event_id: str, frames: Frames, given: Given, now: pd.Timestamp) -> Journey | None:
    """The journey of one event as of the database's `now`; None where nothing is left of it.

    Frames: outbox, processed, notifications, letters, stored (event_id, stream_seq: id; stored_at: time; broker: text),
    and audit, redriven where they could be read. All are masked.
    """
    box = next(iter(_own(frames, "outbox", Outbox, event_id)), None)
    queued = _own(frames, "notifications", Notification, event_id)
    registered = _own(frames, "processed", Registration, event_id)
    letters = _own(frames, "letters", Letter, event_id)
    stored = next(iter(_own(frames, "stored", Stored, event_id)), Stored())
    again = _own(frames, "redriven", Redriven, event_id)
    if box is None and not queued and not registered and not letters:
        return None
    first = box or (queued[0] if queued else Leased())
    letter = letters[-1] if letters else None
    # Of several copies the one that got furthest; a doubled event is a finding of its own.
    order = ("SENT", "PROCESSING", "PENDING", "FAILED")
    main = min(queued, key=lambda n: order.index(n.status) if n.status in order else len(order), default=None)
    state = State(
        outbox=box.status if box else "",
        outbox_wait=box.wait(now) if box else "due",
        processed=bool(registered),
        # Registration and notification are deleted at the same age, and the letter never.
        notification=main.status if main else "FAILED" if letter and not registered else "",
        notification_wait=main.wait(now) if main else "due",
        broker=stored.broker,
    )
    place = state.place
    most = int(given.number("tries.last")) + 1
    began = box.created_at if box else main.occurred_at if main else None
    kind = box.event_type if box else main.type if main else ""
    held = box if place.startswith("outbox") else main
    facts = {
        "by": held.locked_by if held else None,
        "until": held.lease_until if held else None,
        "at": held.next_retry_at if held else None,
        "n": held.attempt_count if held else None,
        "try": held.attempt_count + 1 if held else None,
        "most": most,
        "seq": stored.stream_seq,
        "sent": main.sent_at if main else None,
        "s": seconds_between(began, main.sent_at) if main else None,
        "day": int(given.number("retention.outbox")),
        "days": int(given.number("retention.notifications")),
    }
    change = next(
        (
            c
            for c in rows.each(frames.get("audit"), Change)
            if c.occurred_at == began and (c.user_id, c.stock_keeping_unit) == (first.user_id, first.stock_keeping_unit)
        ),
        None,
    )
    stops = [
        Stop("producer", began, say(f"journey.api_{_action(kind)}", audit=change.audit_id if change else None)),
        *_again(again, "outbox", "relay"),
        *_relay(box, state, facts),
        *_again(again, "broker", "jetstream"),
        *_broker(stored, state, facts),
        *_subscriber(registered, queued, state),
        *_again(again, "delivery", "delivery_worker"),
        *_delivery(main, letter, state, facts),
    ]
    discarded = any(r.decision == "discard" for r in again)
    permanent = box.permanent if box and place == "outbox_failed" else bool(main and main.lacks)
    age = seconds_between(began, now)
    return Journey(
        event_id=event_id,
        type=kind,
        user=first.user_id,
        sku=first.stock_keeping_unit,
        trace_id=first.trace_id,
        stops=tuple(_waited(stops)),
        place=place,
        status=_status(place, len(queued), discarded, age, given),
        headline=say(f"journey.at.{place}", **facts),
        next=_next(place, event_id, facts, given, permanent=permanent, discarded=discarded),
        notes=tuple(_notes(box, queued, registered, letters, frames, facts)),
        now=now,
    )


def of_change(frames: Frames, given: Given, now: pd.Timestamp) -> Journey | None:
    """The journey of a change of a right that has no event: it ended before it began. Frame: change."""
    change = rows.first(frames.get("change"), Change)
    if change is None:
        return None
    old = (seconds_between(change.occurred_at, now) or 0.0) / 3600 > given.number("retention.outbox")
    key = "journey.at.deleted" if old else "journey.at.no_event"
    facts = {"day": int(given.number("retention.outbox")), "days": int(given.number("retention.notifications"))}
    return Journey(
        event_id="",
        type=change.action,
        user=change.user_id,
        sku=change.stock_keeping_unit,
        trace_id="",
        stops=(
            Stop("producer", change.occurred_at, say("journey.api_changed", audit=change.audit_id)),
            Stop("relay", None, say("journey.nothing_left", **facts), "unseen" if old else "failed"),
        ),
        place="" if old else "no_event",
        status=Status.UNKNOWN if old else Status.CRITICAL,
        headline=say(key, **facts),
        next=say("journey.next.unseen" if old else "journey.next.no_event"),
        now=now,
    )


# Stages -----------------------------------------------------------------------------------------------------------


def _relay(box: Outbox | None, state: State, facts: Mapping[str, object]) -> Iterable[Stop]:
    if box is None:
        if state.processed or state.notification:
            yield Stop("relay", None, say("journey.relay_gone", **facts), "unseen")
        return
    seen = dict(facts) | {"n": box.attempt_count or None, "error": box.last_error, "by": box.locked_by}
    if box.status == "PUBLISHED":
        yield Stop("relay", box.published_at, say("journey.relay_published", **seen))
    elif box.status == "FAILED":
        yield Stop("relay", None, say("journey.relay_failed", **seen), "failed")
    else:
        yield Stop("relay", box.locked_at, say(f"journey.relay_{state.outbox_wait}", **seen), "here")


def _broker(stored: Stored, state: State, facts: Mapping[str, object]) -> Iterable[Stop]:
    if stored.stream_seq is None and state.outbox != "PUBLISHED":
        return
    passed = state.processed or bool(state.notification)
    if stored.stream_seq is None:
        mark = "unseen" if passed or state.broker != "gone" else "failed"
        yield Stop("jetstream", None, say(f"journey.stream_{'lost' if mark == 'failed' else 'unseen'}"), mark)
        return
    yield Stop("jetstream", stored.stored_at, say("journey.stream_stored", **facts))
    if passed:
        return
    here = {"waits": "here", "delivered": "here", "given_up": "failed", "gone": "failed"}
    if state.broker in here:
        yield Stop("subscriber", None, say(f"journey.subscriber_{state.broker}"), here[state.broker])


def _subscriber(registered: list[Registration], queued: list[Notification], state: State) -> Iterable[Stop]:
    ids = ", ".join(n.notification_id for n in queued)
    if registered:
        key = "journey.registered" if queued else "journey.registered_only"
        missing = not queued and not state.notification
        yield Stop("subscriber", registered[0].processed_at, say(key, id=ids), "failed" if missing else "passed")
    elif queued:
        yield Stop("subscriber", queued[0].created_at, say("journey.queued_only", id=ids))


def _delivery(
    main: Notification | None, letter: Letter | None, state: State, facts: Mapping[str, object]
) -> Iterable[Stop]:
    if main is not None and main.status == "SENT":
        yield Stop("receiver", main.sent_at, say("journey.sent", n=main.attempt_count or None))
    elif state.notification == "FAILED" or (main is None and letter is not None):
        n, error = main.attempt_count if main else None, letter.error_message if letter else None
        at = letter.created_at if letter else None
        yield Stop("delivery_worker", at, say("journey.failed", n=n, error=error), "failed")
    elif main is not None:
        seen = dict(facts) | {"n": main.attempt_count or None, "by": main.locked_by or None}
        yield Stop("delivery_worker", main.locked_at, say(f"journey.queue_{state.notification_wait}", **seen), "here")


def _again(again: list[Redriven], store: str, hop: str) -> Iterable[Stop]:
    for r in again:
        if r.store == store:
            yield Stop(hop, r.at, say(f"journey.{'discarded' if r.decision == 'discard' else 'again'}"))


def _waited(stops: Iterable[Stop]) -> Iterable[Stop]:
    before = None
    for stop in stops:
        yield replace(stop, wait_s=seconds_between(before, stop.at))
        before = stop.at or before


# What it means ----------------------------------------------------------------------------------------------------


def _status(place: str, copies: int, discarded: bool, age: float | None, given: Given) -> Status:
    fate = PLACES[place].fate
    if copies > 1 or fate == "lost" or (fate == "given_up" and not discarded):
        return Status.CRITICAL
    if fate == "unseen":
        return Status.UNKNOWN
    late = age is not None and age >= given.number("delivery.cohort_from")
    return Status.WARNING if fate == "given_up" or (fate == "way" and late) else Status.OK


def _next(
    place: str, event: str, facts: Mapping[str, object], given: Given, *, permanent: bool, discarded: bool
) -> Text:
    stores = {"outbox_failed": "outbox", "refused": "broker", "failed": "delivery"}
    if place not in stores:
        return say(f"journey.next.{place}", **facts)
    if discarded:
        return say("journey.next.discarded")
    words = ["redrive", stores[place], "--event", event, "--target", given.target, "--incident", given.incident]
    command = shlex.join(["runbook", "act", *words])
    return say(f"journey.next.{'permanent' if permanent else 'transient'}", command=command)


def _notes(
    box: Outbox | None,
    queued: list[Notification],
    registered: list[Registration],
    letters: list[Letter],
    frames: Frames,
    facts: Mapping[str, object],
) -> Iterable[Text]:
    if len(queued) > 1:
        yield say("journey.copies", n=len(queued), ids=", ".join(f"{n.notification_id} {n.status}" for n in queued))
    if queued and not registered:
        yield say("journey.unregistered", **facts)
    if letters and not queued:
        yield say("journey.purged", **facts)
    if any(n.status == "FAILED" for n in queued) and not letters:
        yield say("journey.no_letter")
    if box is not None and "redriven" not in frames:
        yield say("journey.no_ledger")


def _action(kind: str) -> str:
    return "revoked" if kind == REVOKED else "granted" if kind.startswith("Entitlement") else "changed"


def _own(frames: Frames, name: str, kind: type[rows.T], event_id: str) -> list[rows.T]:
    frame = frames.get(name)
    if frame is None or "event_id" not in frame:
        return []
    return rows.each(frame[frame["event_id"].astype(str) == event_id], kind)
