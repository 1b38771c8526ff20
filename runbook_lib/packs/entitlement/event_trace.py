"""Build the trace of one event, hop by hop, from its rows and its message. Pure: it queries nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import seconds_between
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Status, Text, say
from runbook_lib.packs.entitlement.event_place import PLACES, State
from runbook_lib.packs.entitlement.wire import REVOKED

#: By `State.broker`: the text and the mark of the subscriber's stage.
_BROKER_STAGES = {
    "waits": ("journey.subscriber_waits", "here"),
    "delivered": ("journey.subscriber_delivered", "here"),
    "given_up": ("journey.subscriber_given_up", "failed"),
    "gone": ("journey.subscriber_gone", "failed"),
    "passed": ("journey.subscriber_passed", "failed"),
}


class AuditRow(rows.Row, query="journey/audit"):
    """A row of the audit table."""

    audit_id: str = ""
    occurred_at: pd.Timestamp | None = None
    user_id: str = ""
    stock_keeping_unit: str = ""
    action: str = ""


class QueueRow(rows.Row):
    """The columns that rows of the outbox and of the notifications share."""

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
        """Return the wait as in `event_place.State`; "due" for a row in a final status."""
        if self.status in ("IN_FLIGHT", "PROCESSING"):
            return "held" if self.lease_until is not None and self.lease_until > now else "due"
        return "retry" if self.next_retry_at is not None and self.next_retry_at > now else "due"


class OutboxRow(QueueRow, query="journey/outbox"):
    """A row of the outbox."""

    event_type: str = ""
    published_at: pd.Timestamp | None = None
    last_error: str = ""

    @property
    def permanent(self) -> bool:
        """Return whether another try would fail too, by the error text that the publisher stored."""
        from runbook_lib.packs.entitlement.checks import dead_letters  # most traces need no check

        return self.lacks > 0 or dead_letters.outbox_kind(self.last_error, "") not in (None, "unknown")


class NotificationRow(QueueRow, query="journey/notifications"):
    """A notification."""

    notification_id: str = ""
    type: str = ""
    occurred_at: pd.Timestamp | None = None
    sent_at: pd.Timestamp | None = None


class ProcessedRow(rows.Row, query="journey/processed"):
    """A registration of an event as processed."""

    event_id: str = ""
    processed_at: pd.Timestamp | None = None


class LetterRow(rows.Row, query="journey/letters"):
    """A dead letter of the delivery worker."""

    event_id: str = ""
    notification_id: str = ""
    created_at: pd.Timestamp | None = None
    error_message: str = ""

    @property
    def refused(self) -> bool:
        """Return whether another try would fail too: the receiver does not accept the data."""
        from runbook_lib.packs.entitlement.checks import errors

        return errors.text_kind(self.error_message) == "data"


class RedrivenRow(rows.Row, query="journey/redriven"):
    """A decision to send an event again or to discard it."""

    event_id: str = ""
    store: str = ""
    decision: str = ""
    state: str = ""
    at: pd.Timestamp | None = None


class StoredMessage(rows.Row):
    """The event's message, and its place at the broker (see `event_place.State`)."""

    event_id: str = ""
    stream_seq: int | None = None
    stored_at: pd.Timestamp | None = None
    broker: str = ""


@dataclass(frozen=True)
class TraceStage:
    """One stage of a trace: when the event reached it (None if no row stores that), and what happened there.

    `mark` is "passed", "here" (the event waits there), "failed" or "unseen". `wait_s` are the seconds since the
    previous stage.
    """

    hop: str
    at: pd.Timestamp | None
    text: Text
    mark: str = "passed"
    wait_s: float | None = None


@dataclass(frozen=True)
class EventTrace:
    """The trace of one event: its stages, its place now, and what happens next. User ids are masked."""

    event_id: str
    type: str
    user: str
    sku: str
    trace_id: str
    stages: tuple[TraceStage, ...]
    place: str
    status: Status
    headline: Text
    next: Text
    notes: tuple[Text, ...] = ()
    now: pd.Timestamp | None = None

    @property
    def title(self) -> Text:
        """Return the event's type, user, right and id as a text."""
        return say("journey.title", type=self.type, user=self.user, sku=self.sku, event=self.event_id)


def build_trace(event_id: str, frames: Frames, given: JudgeInput, now: pd.Timestamp) -> EventTrace | None:
    """Return the trace of one event at the database's time `now`; None if no row of it exists.

    Frames, all masked: outbox, processed, notifications, letters, stored (event_id, stream_seq: id; stored_at: time;
    broker: text), and audit and redriven if they could be read.
    """
    box = next(iter(_rows_of_event(frames, "outbox", OutboxRow, event_id)), None)
    queued = _rows_of_event(frames, "notifications", NotificationRow, event_id)
    registered = _rows_of_event(frames, "processed", ProcessedRow, event_id)
    letters = _rows_of_event(frames, "letters", LetterRow, event_id)
    stored = next(iter(_rows_of_event(frames, "stored", StoredMessage, event_id)), StoredMessage())
    again = _rows_of_event(frames, "redriven", RedrivenRow, event_id)
    if box is None and not queued and not registered and not letters:
        return None
    first = box or (queued[0] if queued else QueueRow())
    letter = letters[-1] if letters else None
    # Of several notifications of one event, take the most advanced; duplicates are a finding of their own.
    order = ("SENT", "PROCESSING", "PENDING", "FAILED")
    main = min(queued, key=lambda n: order.index(n.status) if n.status in order else len(order), default=None)
    state = State(
        outbox=box.status if box else "",
        outbox_wait=box.wait(now) if box else "due",
        processed=bool(registered),
        # Retention deletes registration and notification at the same age, and dead letters never.
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
            for c in rows.each(frames.get("audit"), AuditRow)
            if c.occurred_at == began and (c.user_id, c.stock_keeping_unit) == (first.user_id, first.stock_keeping_unit)
        ),
        None,
    )
    stages = [
        TraceStage("producer", began, say(_choose_change_key(kind), audit=change.audit_id if change else None)),
        *_build_redrive_stages(again, "outbox", "relay"),
        *_build_relay_stages(box, state, facts),
        *_build_redrive_stages(again, "broker", "jetstream"),
        *_build_broker_stages(stored, state, facts),
        *_build_subscriber_stages(registered, queued, state),
        *_build_redrive_stages(again, "delivery", "delivery_worker"),
        *_build_delivery_stages(main, letter, state, facts),
    ]
    discarded = any(r.decision == "discard" for r in again)
    refused = letter is not None and letter.refused
    permanent = box.permanent if box and place == "outbox_failed" else bool(main and main.lacks) or refused
    age = seconds_between(began, now)
    return EventTrace(
        event_id=event_id,
        type=kind,
        user=first.user_id,
        sku=first.stock_keeping_unit,
        trace_id=first.trace_id,
        stages=tuple(_add_waits(stages)),
        place=place,
        status=_rate_status(place, len(queued) > 1, discarded, age, given),
        headline=say(f"journey.at.{place}", **facts),
        next=_describe_next_step(
            place, event_id, facts, given, permanent=permanent, discarded=discarded, purged=not queued
        ),
        notes=tuple(_build_notes(box, queued, registered, letters, frames, facts)),
        now=now,
    )


def build_trace_without_event(frames: Frames, given: JudgeInput, now: pd.Timestamp) -> EventTrace | None:
    """Return the trace of a change of a right that has no event; None without a row in the frame `change`."""
    change = rows.first(frames.get("change"), AuditRow)
    if change is None:
        return None
    age_s = seconds_between(change.occurred_at, now)
    old = age_s is None or age_s / 3600 > given.number("retention.outbox")
    key = "journey.at.deleted" if old else "journey.at.no_event"
    facts = {"day": int(given.number("retention.outbox")), "days": int(given.number("retention.notifications"))}
    return EventTrace(
        event_id="",
        type=change.action,
        user=change.user_id,
        sku=change.stock_keeping_unit,
        trace_id="",
        stages=(
            TraceStage("producer", change.occurred_at, say("journey.api_changed", audit=change.audit_id)),
            TraceStage("relay", None, say("journey.nothing_left", **facts), "unseen" if old else "failed"),
        ),
        place="" if old else "no_event",
        status=Status.UNKNOWN if old else Status.CRITICAL,
        headline=say(key, **facts),
        next=say("journey.next.unseen" if old else "journey.next.no_event"),
        now=now,
    )


# Stages -----------------------------------------------------------------------------------------------------------


def _build_relay_stages(box: OutboxRow | None, state: State, facts: Mapping[str, object]) -> Iterable[TraceStage]:
    if box is None:
        if state.processed or state.notification:
            yield TraceStage("relay", None, say("journey.relay_gone", **facts), "unseen")
        return
    seen = dict(facts) | {"n": box.attempt_count or None, "error": box.last_error, "by": box.locked_by}
    if box.status == "PUBLISHED":
        yield TraceStage("relay", box.published_at, say("journey.relay_published", **seen))
    elif box.status == "FAILED":
        yield TraceStage("relay", None, say("journey.relay_failed", **seen), "failed")
    else:
        yield TraceStage("relay", box.locked_at, say(f"journey.relay_{state.outbox_wait}", **seen), "here")


def _build_broker_stages(stored: StoredMessage, state: State, facts: Mapping[str, object]) -> Iterable[TraceStage]:
    if stored.stream_seq is None and state.outbox != "PUBLISHED":
        return
    passed = state.processed or bool(state.notification)
    if stored.stream_seq is None:
        lost = state.broker == "gone" and not passed
        text = say("journey.stream_lost" if lost else "journey.stream_unseen")
        yield TraceStage("jetstream", None, text, "failed" if lost else "unseen")
        return
    yield TraceStage("jetstream", stored.stored_at, say("journey.stream_stored", **facts))
    if passed:
        return
    if state.broker in _BROKER_STAGES:
        key, mark = _BROKER_STAGES[state.broker]
        yield TraceStage("subscriber", None, say(key), mark)


def _build_subscriber_stages(
    registered: list[ProcessedRow], queued: list[NotificationRow], state: State
) -> Iterable[TraceStage]:
    ids = ", ".join(n.notification_id for n in queued)
    if registered:
        key = "journey.registered" if queued else "journey.registered_only"
        missing = not queued and not state.notification
        yield TraceStage("subscriber", registered[0].processed_at, say(key, id=ids), "failed" if missing else "passed")
    elif queued:
        yield TraceStage("subscriber", queued[0].created_at, say("journey.queued_only", id=ids))


def _build_delivery_stages(
    main: NotificationRow | None, letter: LetterRow | None, state: State, facts: Mapping[str, object]
) -> Iterable[TraceStage]:
    if main is not None and main.status == "SENT":
        yield TraceStage("receiver", main.sent_at, say("journey.sent", n=main.attempt_count or None))
    elif state.notification == "FAILED" or (main is None and letter is not None):
        n, error = main.attempt_count if main else None, letter.error_message if letter else None
        at = letter.created_at if letter else None
        yield TraceStage("delivery_worker", at, say("journey.failed", n=n, error=error), "failed")
    elif main is not None:
        seen = dict(facts) | {"n": main.attempt_count or None, "by": main.locked_by or None}
        text = say(f"journey.queue_{state.notification_wait}", **seen)
        yield TraceStage("delivery_worker", main.locked_at, text, "here")


def _build_redrive_stages(again: list[RedrivenRow], store: str, hop: str) -> Iterable[TraceStage]:
    for r in again:
        if r.store == store:
            yield TraceStage(hop, r.at, say("journey.discarded" if r.decision == "discard" else "journey.again"))


def _add_waits(stages: Iterable[TraceStage]) -> Iterable[TraceStage]:
    before = None
    for stage in stages:
        yield replace(stage, wait_s=seconds_between(before, stage.at))
        before = stage.at or before


# What it means ----------------------------------------------------------------------------------------------------


def _rate_status(place: str, duplicates: bool, discarded: bool, age: float | None, given: JudgeInput) -> Status:
    disposition = PLACES[place].disposition
    if duplicates or disposition == "lost" or (disposition == "given_up" and not discarded):
        return Status.CRITICAL
    if disposition == "unseen":
        return Status.UNKNOWN
    late = age is not None and age >= given.number("delivery.cohort_from")
    return Status.WARNING if disposition == "given_up" or (disposition == "in_progress" and late) else Status.OK


def _describe_next_step(
    place: str,
    event: str,
    facts: Mapping[str, object],
    given: JudgeInput,
    *,
    permanent: bool,
    discarded: bool,
    purged: bool,
) -> Text:
    stores = {"outbox_failed": "outbox", "refused": "broker", "failed": "delivery"}
    if place not in stores:
        return say(f"journey.next.{place}", **facts)
    if discarded:
        return say("journey.next.discarded")
    if place == "failed" and purged:
        return say("journey.next.purged")
    arguments = ["redrive", stores[place], "--event", event, "--target", given.target, "--incident", given.incident]
    command = shlex.join(["runbook", "act", *arguments])
    return say("journey.next.permanent" if permanent else "journey.next.transient", command=command)


def _build_notes(
    box: OutboxRow | None,
    queued: list[NotificationRow],
    registered: list[ProcessedRow],
    letters: list[LetterRow],
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


def _choose_change_key(kind: str) -> str:
    if kind == REVOKED:
        return "journey.api_revoked"
    return "journey.api_granted" if kind.startswith("Entitlement") else "journey.api_changed"


def _rows_of_event(frames: Frames, name: str, kind: type[rows.T], event_id: str) -> list[rows.T]:
    frame = frames.get(name)
    if frame is None or "event_id" not in frame:
        return []
    return rows.each(frame[frame["event_id"].astype(str) == event_id], kind)
