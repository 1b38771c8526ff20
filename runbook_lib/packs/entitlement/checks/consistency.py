"""Section 5.3: rows that the code cannot have produced, and events that exist on one side only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, needs_the_present
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Reason, Signal, Status, Text, Value, judged, say, unknown
from runbook_lib.model.frames import one, row
from runbook_lib.packs.entitlement.facts import facts_of

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: SENT and FAILED notifications are removed after this; their dead letters stay.
RETENTION = pd.Timedelta(days=30)


def counted(frame: pd.DataFrame | None) -> int | None:
    """How many rows a question found; None where it could not be asked."""
    return None if frame is None else len(frame)


def _capped(*frames: pd.DataFrame | None) -> tuple[Text, ...]:
    rows = max((len(f) for f in frames if f is not None and f.attrs.get("capped")), default=0)
    return (say("consistency.capped", rows=rows),) if rows else ()


# 5.3.1 ------------------------------------------------------------------------------------------------------


def collect_sent_rows(rb: Context) -> Frames:
    """What an index can find of all rows, and the window exactly."""
    with rb.snapshot() as db:
        return {"dirty": db.ask("consistency/sent_dirty_rows")}


def collect_sent(rb: Context) -> Frames:
    """5.3.1: the rows that an index can find, and the runbook's own count if that is cheap."""
    with rb.snapshot() as db:
        frames = {"dirty": db.ask("consistency/sent_dirty_rows")}
        everything = db.try_ask("consistency/sent_dirty")
        if everything is not None:
            frames["everything"] = everything
        return frames


def judge_sent(frames: Frames, given: Given) -> Finding:
    """5.3.1: SENT rows that still carry a lock or a retry time."""
    dirty, everything = frames.get("dirty"), one(frames.get("everything"))
    if dirty is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="consistency/sent_dirty_rows"))
    whole = "n" in everything
    found = max(len(dirty), int(everything.get("n") or 0))
    read = say("consistency.whole_table" if whole else "consistency.window_only", minutes=given.window_minutes)
    return judged(
        say("consistency.sent_dirty" if found else "consistency.sent_clean", n=found, read=read),
        [given.limits.value("integrity.rows", found)],
        notes=(*(() if whole else (say("consistency.gate_sent"),)), *_capped(dirty)),
        signals=(Signal("FM-NOTI-02", 0.4),) if found else (),
        show=("dirty",),
    )


# 5.3.2 ------------------------------------------------------------------------------------------------------


def collect_lost(rb: Context, day: bool = True) -> Frames:
    """5.3.2: events without a trace behind the broker, and what the consumer still holds."""
    parts = Parts()
    # The consumer first: what it does not hold now, and is not processed a moment later, is nobody's.
    with parts.part("consumer") as answers:
        needs_the_present(rb, "jetstream")
        names = facts_of(rb).streams
        info = rb.jetstream.consumer(names.events, names.consumer)
        answers["consumer"] = row(
            pending=info.get("num_pending"),
            unacknowledged=info.get("num_ack_pending"),
            bound=bool(info.get("push_bound")),
        )
    with rb.snapshot() as db:
        events = db.try_ask("consistency/unprocessed_day") if day else None
        parts.answers["scope"] = row(hours=24.0 if events is not None else None, refused=day and events is None)
        parts.answers["unprocessed"] = db.ask("outbox/unprocessed") if events is None else events
        given_up = db.try_ask("processed/nats_dlq")
        if given_up is not None:
            parts.answers["given_up"] = given_up
    return parts.frames()


def judge_lost(frames: Frames, given: Given) -> Finding:
    """5.3.2: events published over a minute ago and never processed: waiting, or lost?"""
    found = counted(frames.get("unprocessed"))
    if found is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="outbox/unprocessed"))
    consumer, given_up = one(frames.get("consumer")), one(frames.get("given_up"))
    lag = int(consumer.get("pending") or 0) + int(consumer.get("unacknowledged") or 0) if consumer else None
    # Each event that the consumer holds may be one of those without a trace; the rest is held by nobody.
    lost = found if lag == 0 else max(found - lag, 0) if lag is not None else 0
    waiting = found - lost
    scope = one(frames.get("scope"))
    read = say("consistency.day" if scope.get("hours") else "consistency.last_events", minutes=given.window_minutes)
    values = [
        given.limits.value("integrity.lost", lost),
        Value("outbox.unprocessed", found, "rows"),
        Value("subscriber.lag", lag, "rows"),
        Value("subscriber.given_up", given_up.get("n"), "rows"),
    ]
    notes = [*_capped(frames.get("unprocessed"))]
    if lag is None:
        e = failures(frames).get("consumer")
        notes.append(say("consistency.no_lag", why=e.reason.value if e else None))
    if scope.get("refused"):
        notes.append(say("consistency.gate_day"))
    signals: list[Signal] = []
    status = Status.OK
    if lost:
        # Recorded by the subscriber's own dead letters, or by nobody.
        recorded = int(given_up.get("n") or 0)
        signals = [
            Signal("subscriber", 0.5),
            Signal("FM-NATS-03", 0.3 if recorded >= lost else 0.6),
            Signal("FM-NATS-02", 0.4 if recorded else 0.1),
        ]
        headline = say("consistency.lost", n=lost, waiting=waiting, lag=lag, read=read)
    elif waiting and lag is None:
        status, headline = Status.UNKNOWN, say("consistency.lost_or_waiting", n=waiting, read=read)
    elif waiting:
        status, headline = Status.WARNING, say("consistency.waiting", n=waiting, lag=lag)
        signals = [Signal("subscriber", 0.5), Signal("FM-NATS-01", 0.5)]
    else:
        headline = say("consistency.none_lost", read=read)
    return judged(
        headline,
        values,
        at_least=status,
        notes=tuple(notes),
        signals=tuple(signals),
        next_sections=("4.1",) if waiting else (),
        show=("unprocessed",),
    )


# 5.3.3 ------------------------------------------------------------------------------------------------------


def collect_halves(rb: Context) -> Frames:
    """5.3.3: what was registered without being queued, and the reverse."""
    with rb.snapshot() as db:
        return {"halves": db.ask("consistency/half_processed")}


def judge_halves(frames: Frames, given: Given) -> Finding:
    """5.3.3: half-processed events, both ways."""
    halves = frames.get("halves")
    if halves is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="consistency/half_processed"))
    registered = int((halves["kind"] == "registered_only").sum())
    queued = int((halves["kind"] == "queued_only").sum())
    signals = [Signal("FM-NOTI-01", 0.6)] if queued else []
    if registered:
        signals.append(Signal("subscriber", 0.3))
    return judged(
        say("consistency.halves", registered=registered, queued=queued, minutes=given.window_minutes)
        if registered or queued
        else say("consistency.no_halves", minutes=given.window_minutes),
        [
            given.limits.value("integrity.rows", registered + queued),
            Value("registered_only", registered, "rows"),
            Value("queued_only", queued, "rows"),
        ],
        notes=_capped(halves),
        signals=tuple(signals),
        show=("halves",),
    )


# 5.3.4 ------------------------------------------------------------------------------------------------------


def collect_dead_letters(rb: Context) -> Frames:
    """5.3.4: FAILED and dead letters against each other; all that retention leaves, else the window."""
    with rb.snapshot() as db:
        frames = {"failed": db.ask("consistency/failed_without_dead_letter")}
        letters = db.try_ask("consistency/dead_letter_not_failed", since=rb.as_of - RETENTION)
        if letters is None:
            letters = db.try_ask("consistency/dead_letter_not_failed")
            frames["scope"] = row(days=None)
        else:
            frames["scope"] = row(days=RETENTION.days)
        if letters is not None:
            frames["letters"] = letters
        return frames


def judge_dead_letters(frames: Frames, given: Given) -> Finding:
    """5.3.4: FAILED without a dead letter, and a dead letter of what is not FAILED."""
    failed, letters = counted(frames.get("failed")), counted(frames.get("letters"))
    if failed is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="consistency/failed_without_dead_letter"))
    found = failed + (letters or 0)
    notes = [*_capped(frames.get("failed"), frames.get("letters"))]
    if letters is None:
        notes.append(say("consistency.gate_letters"))
    elif one(frames.get("scope")).get("days") is None:
        notes.append(say("consistency.letters_window", minutes=given.window_minutes))
    return judged(
        say("consistency.letters_apart", failed=failed, letters=letters)
        if found
        else say("consistency.letters_half_seen")
        if letters is None
        else say("consistency.letters_together"),
        [
            given.limits.value("integrity.rows", found),
            Value("failed_without_dead_letter", failed, "rows"),
            Value("dead_letter_not_failed", letters, "rows"),
        ],
        at_least=Status.UNKNOWN if letters is None else Status.OK,
        reason=Reason.DENIED,
        notes=tuple(notes),
        signals=(Signal("FM-NOTI-05", 0.9),) if found else (),
        show=("failed", "letters"),
    )


# 5.3.5 ------------------------------------------------------------------------------------------------------


def collect_audit(rb: Context) -> Frames:
    """5.3.5: the day if the plan is cheap, else the window within the newest pages of the audit."""
    with rb.snapshot() as db:
        day = db.try_ask("consistency/audit_without_event_day")
        if day is not None:
            return {"changes": day, "scope": row(hours=24.0)}
        return {"changes": db.ask("consistency/audit_without_event_tail"), "scope": row(hours=None)}


def judge_audit(frames: Frames, given: Given) -> Finding:
    """5.3.5: changes of rights that left no outbox event."""
    found = counted(frames.get("changes"))
    if found is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="consistency/audit_without_event_tail"))
    day = one(frames.get("scope")).get("hours") is not None
    read = say("consistency.day" if day else "consistency.audit_tail", minutes=given.window_minutes)
    return judged(
        say("consistency.no_event" if found else "consistency.all_events", n=found, read=read),
        [given.limits.value("integrity.lost", found)],
        notes=(*(() if day else (say("consistency.gate_day"),)), *_capped(frames.get("changes"))),
        signals=(Signal("producer", 0.6),) if found else (),
        show=("changes",),
    )


# 5.3.6 ------------------------------------------------------------------------------------------------------


def collect_locks(rb: Context) -> Frames:
    """5.3.6: lock columns, and sending times, where the status has none."""
    with rb.snapshot() as db:
        return {"locks": db.ask("consistency/locks")}


def judge_locks(frames: Frames, given: Given) -> Finding:
    """5.3.6: no lock columns outside the leased statuses."""
    locks = frames.get("locks")
    if locks is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="consistency/locks"))
    kinds = locks["kind"].value_counts()
    outbox = bool(kinds.index.astype(str).str.startswith(("outbox", "in_flight")).any())
    signals = (Signal("FM-OB-03" if outbox else "FM-NOTI-02", 0.4),) if len(locks) else ()
    return judged(
        say("consistency.locks_left", n=len(locks), kinds=", ".join(f"{k} {n}" for k, n in kinds.items()))
        if len(locks)
        else say("consistency.no_locks_left", minutes=given.window_minutes),
        [
            given.limits.value("integrity.rows", len(locks)),
            *(Value(str(kind), int(n), "rows") for kind, n in kinds.items()),
        ],
        notes=_capped(locks),
        signals=signals,
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
