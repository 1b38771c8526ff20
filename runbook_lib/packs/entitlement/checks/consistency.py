"""Section 5.3: rows that the code cannot have produced, and events that exist on one side only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib import rows
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, needs_the_present, no_data
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Text, Value, judged, say
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement import stream
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Count

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot


@dataclass(frozen=True)
class Consumer:
    """What the subscriber's consumer still holds; None where it was not seen."""

    pending: int | None = None
    unacknowledged: int | None = None

    @property
    def lag(self) -> int | None:
        """Events that it holds, delivered or not."""
        known = [n for n in (self.pending, self.unacknowledged) if n is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class Scope:
    """How far back was read: None is the window alone; `refused` where more was asked for."""

    hours: float | None = None
    days: int | None = None
    refused: bool = False


def _capped(*frames: pd.DataFrame | None) -> tuple[Text, ...]:
    most = max((len(f) for f in frames if f is not None and f.attrs.get("capped")), default=0)
    return (say("consistency.capped", rows=most),) if most else ()


# 5.3.1 ------------------------------------------------------------------------------------------------------


def collect_sent_rows(rb: Context) -> Frames:
    """What an index can find of all rows, and the window exactly. Frame: dirty."""
    with rb.snapshot() as db:
        return {"dirty": db.ask("consistency/sent_dirty_rows")}


def collect_sent(rb: Context) -> Frames:
    """5.3.1: the rows that an index can find, and the runbook's own count if cheap. Frames: dirty, everything."""
    with rb.snapshot() as db:
        return {"dirty": db.ask("consistency/sent_dirty_rows")} | _if_cheap(db, everything="consistency/sent_dirty")


def _if_cheap(db: Snapshot, **questions: str) -> Frames:
    """The answers to those that the cost gate lets through."""
    asked = {name: db.try_ask(question) for name, question in questions.items()}
    return {name: frame for name, frame in asked.items() if frame is not None}


def judge_sent(frames: Frames, given: Given) -> Finding:
    """5.3.1: SENT rows that still carry a lock or a retry time."""
    if "dirty" not in frames:
        return no_data("consistency/sent_dirty_rows")
    dirty, whole = frames["dirty"], rows.one(frames.get("everything"), Count).n
    found = max(len(dirty), whole or 0)
    read = say("consistency.window_only" if whole is None else "consistency.whole_table", minutes=given.window_minutes)
    return judged(
        say("consistency.sent_dirty" if found else "consistency.sent_clean", n=found, read=read),
        [given.limits.value("integrity.rows", found)],
        notes=(*((say("consistency.gate_sent"),) if whole is None else ()), *_capped(dirty)),
        signals=given.speaks("consistency.notification_lock_left") if found else (),
        show=("dirty",),
    )


# 5.3.2 ------------------------------------------------------------------------------------------------------


def collect_lost(rb: Context, day: bool = True) -> Frames:
    """5.3.2: events without a trace behind the broker, and what the consumer still holds.

    Frames: unprocessed, given_up; consumer (pending, unacknowledged: messages), scope (hours: h, refused: flag), broker
    (event_id: id; place: text).
    """
    parts, before = Parts(), None
    # The consumer first: what it does not hold now, and is not processed a moment later, is nobody's.
    with parts.part("consumer") as answers:
        needs_the_present(rb, "jetstream")
        names = facts_of(rb).streams
        info = rb.jetstream.consumer(names.events, names.consumer)
        answers["consumer"] = row(pending=info["num_pending"], unacknowledged=info["num_ack_pending"])
        before = stream.Held.of(info)
    with rb.snapshot() as db:
        events = db.try_ask("consistency/unprocessed_day") if day else None
        parts.answers["scope"] = row(hours=24.0 if events is not None else None, refused=day and events is None)
        parts.answers["unprocessed"] = db.ask("outbox/unprocessed") if events is None else events
        parts.answers |= _if_cheap(db, given_up="processed/nats_dlq")
    with parts.part("broker") as answers:
        if before:
            answers["broker"] = stream.places(rb, answers["unprocessed"], before)
    return parts.frames()


def judge_lost(frames: Frames, given: Given) -> Finding:
    """5.3.2: events published over a minute ago and never processed: waiting, or lost?"""
    if "unprocessed" not in frames:
        return no_data("outbox/unprocessed")
    found = len(frames["unprocessed"])
    lag = rows.one(frames.get("consumer"), Consumer).lag
    told = table(frames, "broker", "event_id", "place")["place"]
    # Of those whose message was not looked at, each that the consumer holds beside may be one; the rest is nobody's.
    held = max(lag - int(told.isin(["waits", "delivered"]).sum()), 0) if lag is not None else found
    lost = int(told.isin(["gone", "given_up"]).sum()) + max(found - len(told) - held, 0)
    waiting = found - lost
    scope, recorded = rows.one(frames.get("scope"), Scope), rows.one(frames.get("given_up"), Count).n
    read = say("consistency.day" if scope.hours else "consistency.last_events", minutes=given.window_minutes)
    notes = [*_capped(frames["unprocessed"])]
    if lag is None:
        e = failures(frames).get("consumer")
        notes.append(say("consistency.no_lag", why=e.reason.value if e else None))
    if scope.refused:
        notes.append(say("consistency.gate_day"))
    seen, status = "", Status.OK
    if lost:
        # Recorded by the subscriber's own dead letters, or by nobody.
        seen = "consistency.lost_unrecorded"
        if recorded:
            seen = "consistency.lost_recorded" if recorded >= lost else "consistency.lost_recorded_in_part"
        headline = say("consistency.lost", n=lost, waiting=waiting, lag=lag, read=read)
    elif waiting and lag is None:
        status, headline = Status.UNKNOWN, say("consistency.lost_or_waiting", n=waiting, read=read)
    elif waiting:
        status, headline = Status.WARNING, say("consistency.waiting", n=waiting, lag=lag)
        seen = "consistency.waits_at_subscriber"
    else:
        headline = say("consistency.none_lost", read=read)
    return judged(
        headline,
        [
            given.limits.value("integrity.lost", lost),
            Value("outbox.unprocessed", found, "rows"),
            Value("subscriber.lag", lag, "rows"),
            Value("subscriber.given_up", recorded, "rows"),
        ],
        at_least=status,
        notes=tuple(notes),
        signals=given.speaks(seen) if seen else (),
        next_sections=("4.1",) if waiting else (),
        show=("unprocessed",),
    )


# 5.3.3 ------------------------------------------------------------------------------------------------------


def collect_halves(rb: Context) -> Frames:
    """5.3.3: what was registered without being queued, and the reverse. Frame: halves."""
    with rb.snapshot() as db:
        return {"halves": db.ask("consistency/half_processed")}


def judge_halves(frames: Frames, given: Given) -> Finding:
    """5.3.3: half-processed events, both ways."""
    if "halves" not in frames:
        return no_data("consistency/half_processed")
    halves = frames["halves"]
    n = {kind: int((halves["kind"] == kind).sum()) for kind in ("registered_only", "queued_only")}
    registered, queued = n.values()
    return judged(
        say("consistency.halves", registered=registered, queued=queued, minutes=given.window_minutes)
        if registered or queued
        else say("consistency.no_halves", minutes=given.window_minutes),
        [
            given.limits.value("integrity.rows", registered + queued),
            *(Value(kind, found, "rows") for kind, found in n.items()),
        ],
        notes=_capped(halves),
        signals=(
            *(given.speaks("consistency.queued_only") if queued else ()),
            *(given.speaks("consistency.registered_only") if registered else ()),
        ),
        show=("halves",),
    )


# 5.3.4 ------------------------------------------------------------------------------------------------------


def collect_dead_letters(rb: Context) -> Frames:
    """5.3.4: FAILED and dead letters against each other; all that retention leaves, else the window.

    Frames: failed, letters; scope (days: d, none for the window).
    """
    days = int(rb.number("retention.notifications"))
    with rb.snapshot() as db:
        failed = db.ask("consistency/failed_without_dead_letter")
        letters = db.try_ask("consistency/dead_letter_not_failed", since=rb.as_of - pd.Timedelta(days=days))
        frames = {"failed": failed, "scope": row(days=None if letters is None else days)}
        if letters is None:
            return frames | _if_cheap(db, letters="consistency/dead_letter_not_failed")
        return frames | {"letters": letters}


def judge_dead_letters(frames: Frames, given: Given) -> Finding:
    """5.3.4: FAILED without a dead letter, and a dead letter of what is not FAILED."""
    if "failed" not in frames:
        return no_data("consistency/failed_without_dead_letter")
    failed, letters = len(frames["failed"]), len(frames["letters"]) if "letters" in frames else None
    found = failed + (letters or 0)
    notes = [*_capped(frames["failed"], frames.get("letters"))]
    if letters is None:
        notes.append(say("consistency.gate_letters"))
    elif rows.one(frames.get("scope"), Scope).days is None:
        notes.append(say("consistency.letters_window", minutes=given.window_minutes))
    return judged(
        say("consistency.letters_apart", failed=failed, letters=letters)
        if found
        else say("consistency.letters_half_seen" if letters is None else "consistency.letters_together"),
        [
            given.limits.value("integrity.rows", found),
            Value("failed_without_dead_letter", failed, "rows"),
            Value("dead_letter_not_failed", letters, "rows"),
        ],
        at_least=Status.UNKNOWN if letters is None else Status.OK,
        reason=Reason.DENIED,
        notes=tuple(notes),
        signals=given.speaks("consistency.letters_apart") if found else (),
        show=("failed", "letters"),
    )


# 5.3.5 ------------------------------------------------------------------------------------------------------


def collect_audit(rb: Context) -> Frames:
    """5.3.5: the day if the plan is cheap, else the window within the newest pages of the audit.

    Frames: changes; scope (hours: h, none for the window).
    """
    with rb.snapshot() as db:
        day = db.try_ask("consistency/audit_without_event_day")
        if day is not None:
            return {"changes": day, "scope": row(hours=24.0)}
        return {"changes": db.ask("consistency/audit_without_event_tail"), "scope": row(hours=None)}


def judge_audit(frames: Frames, given: Given) -> Finding:
    """5.3.5: changes of rights that left no outbox event."""
    if "changes" not in frames:
        return no_data("consistency/audit_without_event_tail")
    found, day = len(frames["changes"]), rows.one(frames.get("scope"), Scope).hours is not None
    read = say("consistency.day" if day else "consistency.audit_tail", minutes=given.window_minutes)
    return judged(
        say("consistency.no_event" if found else "consistency.all_events", n=found, read=read),
        [given.limits.value("integrity.lost", found)],
        notes=(*(() if day else (say("consistency.gate_day"),)), *_capped(frames["changes"])),
        signals=given.speaks("consistency.no_event") if found else (),
        show=("changes",),
    )


# 5.3.6 ------------------------------------------------------------------------------------------------------


def collect_locks(rb: Context) -> Frames:
    """5.3.6: lock columns, and sending times, where the status has none. Frame: locks."""
    with rb.snapshot() as db:
        return {"locks": db.ask("consistency/locks")}


def judge_locks(frames: Frames, given: Given) -> Finding:
    """5.3.6: no lock columns outside the leased statuses."""
    if "locks" not in frames:
        return no_data("consistency/locks")
    locks = frames["locks"]
    kinds = {str(kind): int(n) for kind, n in locks["kind"].value_counts().items()}
    outbox = any(kind.startswith(("outbox", "in_flight")) for kind in kinds)
    left = "consistency.outbox_lock_left" if outbox else "consistency.notification_lock_left"
    return judged(
        say("consistency.locks_left", n=len(locks), kinds=", ".join(f"{k} {n}" for k, n in kinds.items()))
        if kinds
        else say("consistency.no_locks_left", minutes=given.window_minutes),
        [given.limits.value("integrity.rows", len(locks)), *(Value(kind, n, "rows") for kind, n in kinds.items())],
        notes=_capped(locks),
        signals=given.speaks(left) if kinds else (),
        show=("locks",),
    )


CHECKS: tuple[Check, ...] = (
    Check("5.3.1", collect_sent, judge_sent),
    Check("5.3.2", collect_lost, judge_lost),
    Check("5.3.3", collect_halves, judge_halves),
    Check("5.3.4", collect_dead_letters, judge_dead_letters),
    Check("5.3.5", collect_audit, judge_audit),
    Check("5.3.6", collect_locks, judge_locks),
)
