"""Section 5.3: rows that the application code cannot produce, and events that exist on one side only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, collector
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Status, Text, Value, judged, say
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import missing
from runbook_lib.packs.entitlement.checks.series import ask_since
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Count, Letters
from runbook_lib.packs.jetstream.consumer import ConsumerPosition, count_held, read_oldest_held
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot


class ConsumerLag(rows.Row):
    """Messages that the subscriber's consumer still holds; None where it was not read."""

    pending: int | None = None
    unacknowledged: int | None = None

    @property
    def lag(self) -> float | None:
        """Return the number of events that it holds, delivered or not."""
        return count_held(self.pending, self.unacknowledged)


class Scope(rows.Row):
    """The period that was read; None means the window only. `refused` tells that a longer period was over the limit."""

    hours: float | None = None
    days: int | None = None
    refused: bool | None = None


def _ask_if_cheap(db: Snapshot, query: str, **params: Any) -> pd.DataFrame | None:
    """Return the result of a query; None if the cost gate refuses it. Raises SourceError for any other failure."""
    try:
        return db.ask_apart(query, **params)
    except SourceError as e:
        if e.code != "cost_gate":
            raise
        return None


def _note_row_limit(*frames: pd.DataFrame | None) -> tuple[Text, ...]:
    """Return a note if one of the frames holds only the first rows of its result."""
    most = max((len(f) for f in frames if f is not None and f.attrs.get("capped")), default=0)
    return (say("consistency.capped", rows=most),) if most else ()


# 5.3.1 ------------------------------------------------------------------------------------------------------


def collect_sent(rb: Context) -> Frames:
    """5.3.1: collect inconsistent SENT rows, and the seed runbook's count if cheap. Frames: dirty, everything."""
    parts = FrameCollector()
    with rb.snapshot() as db:
        parts.ask(db, {"dirty": "consistency/sent_dirty_rows", "everything": "consistency/sent_dirty"})
    return parts.frames()


def judge_sent(frames: Frames, given: JudgeInput) -> Finding:
    """5.3.1: judge SENT rows that still have a lock or a retry time."""
    dirty, whole = frames["dirty"], rows.one(frames.get("everything"), Count).n
    found = len(dirty) if whole is None else max(len(dirty), whole)
    read = say("consistency.window_only" if whole is None else "consistency.whole_table", minutes=given.window_minutes)
    return judged(
        say("consistency.sent_dirty" if found else "consistency.sent_clean", n=found, read=read),
        [given.limits.value("integrity.rows", found)],
        notes=_note_row_limit(dirty),
        signals=given.evidence("consistency.notification_lock_left") if found else (),
        show=("dirty",),
    )


# 5.3.2 ------------------------------------------------------------------------------------------------------


def collect_lost(rb: Context, day: bool = True) -> Frames:
    """5.3.2: collect published events that were never processed, and what the consumer still holds.

    Frames: unprocessed, given_up; consumer (pending, unacknowledged: messages), scope (hours: h, refused: flag), broker
    (event_id: id; place: text).
    """
    parts, before, hours = FrameCollector(), None, rb.number("retention.outbox")
    # The consumer first: an event that it does not hold now, and that is not processed afterwards, is lost.
    with parts.part("consumer") as answers:
        names = facts_of(rb).streams
        consumer = rb.source("jetstream").consumer(names.events, names.consumer)
        answers["consumer"] = row(pending=consumer.num_pending, unacknowledged=consumer.num_ack_pending)
        _, held_s = read_oldest_held(rb, names.events, consumer)
        before = ConsumerPosition.of(consumer, held_s)
    settled_s = missing.settled_s(rb, before)
    with rb.snapshot() as db:
        events = _ask_if_cheap(db, "consistency/unprocessed_day", settled_s=settled_s) if day else None
        parts.answers["scope"] = row(hours=None if events is None else hours, refused=day and events is None)
        if events is None:
            events = db.ask(missing.Unprocessed.QUERY, settled_s=settled_s)
        parts.answers["unprocessed"] = events
        ask_since(rb, db, parts, Letters.QUERY, given_up="window")
    missing.locate(rb, parts, before)
    return parts.frames()


def _say_read(scope: Scope, else_key: str, given: JudgeInput) -> Text:
    return say("consistency.day" if scope.hours else else_key, hours=scope.hours, minutes=given.window_minutes)


def judge_lost(frames: Frames, given: JudgeInput) -> Finding:
    """5.3.2: judge whether published events that were never processed are waiting or lost."""
    lag = rows.one(frames.get("consumer"), ConsumerLag).lag
    seen = missing.judge_missing(frames, given, lag)
    scope, recorded = rows.one(frames.get("scope"), Scope), rows.one(frames.get("given_up"), Count).n
    read = _say_read(scope, "consistency.last_events", given)
    notes = [*_note_row_limit(frames["unprocessed"]), *seen.notes]
    if scope.refused:
        notes.append(say("consistency.gate_day"))
    observed, status = [], Status.OK
    if seen.lost is None:
        status, headline = Status.UNKNOWN, say("consistency.lost_or_waiting", n=seen.found, read=read)
    elif seen.surely_lost:
        headline = say("consistency.lost", n=seen.surely_lost, waiting=seen.waiting, lag=lag, read=read)
        observed = _observe_lost(seen, recorded)
    elif seen.doubtful:
        status, headline = seen.status_of_doubt, say("consistency.lost_or_deleted", n=seen.doubtful, read=read)
    elif seen.notified:
        headline = seen.not_registered
    elif seen.waiting:
        status, headline = Status.WARNING, say("consistency.waiting", n=seen.waiting, lag=lag)
        observed = ["consistency.waits_at_subscriber"]
    else:
        headline = say("consistency.none_lost", read=read)
    observed += seen.observations
    return judged(
        headline,
        [
            given.limits.value("integrity.lost", seen.surely_lost),
            given.limits.value("integrity.rows", len(seen.notified)),
            Value("outbox.unprocessed", seen.found, "rows"),
            Value("subscriber.lag", lag, "rows"),
            Value("subscriber.given_up", recorded, "rows"),
            Value("subscriber.passed_by", seen.passed_by, "rows"),
        ],
        at_least=status,
        notes=tuple(n for n in notes if n != headline),
        signals=tuple(given.evidence_of(observed)),
        next_sections=("4.1",) if seen.waiting or seen.lost is None else (),
        show=("unprocessed",),
    )


def _observe_lost(seen: missing.MissingEvents, recorded: int | None) -> list[str]:
    """Return the observations of lost events: recorded as dead letters or not, passed by or not."""
    found = ["subscriber.passed_by"] if seen.passed_by else []
    if not seen.ended:
        return found
    if recorded:
        return [*found, "consistency.lost_recorded" if recorded >= seen.ended else "consistency.lost_recorded_in_part"]
    return [*found, "consistency.lost_unrecorded"]


# 5.3.3 ------------------------------------------------------------------------------------------------------


def judge_halves(frames: Frames, given: JudgeInput) -> Finding:
    """5.3.3: judge half-processed events in both directions."""
    halves = frames["halves"]
    n = {kind: int((halves["kind"] == kind).sum()) for kind in ("registered_only", "queued_only")}
    registered, queued = n.values()
    emptied = missing.is_emptied(halves)
    return judged(
        say("consistency.emptied", n=registered, minutes=given.window_minutes)
        if emptied and not queued
        else say("consistency.halves", registered=registered, queued=queued, minutes=given.window_minutes)
        if registered or queued
        else say("consistency.no_halves", minutes=given.window_minutes),
        [
            given.limits.value("integrity.rows", registered + queued),
            *(Value(kind, found, "rows") for kind, found in n.items()),
        ],
        notes=_note_row_limit(halves),
        signals=(
            *(given.evidence("consistency.queued_only") if queued else ()),
            *(
                given.evidence("consistency.event_deleted" if emptied else "consistency.registered_only")
                if registered
                else ()
            ),
        ),
        show=("halves",),
    )


# 5.3.4 ------------------------------------------------------------------------------------------------------


def collect_dead_letters(rb: Context) -> Frames:
    """5.3.4: collect mismatches between FAILED rows and dead letters, as far back as rows are retained if cheap.

    Frames: failed, letters; scope (days: d, None for the window).
    """
    parts, days = FrameCollector(), int(rb.number("retention.notifications"))
    with rb.snapshot() as db:
        parts.ask(db, {"failed": "consistency/failed_without_dead_letter"})
        query, begin = "consistency/dead_letter_not_failed", rb.as_of - pd.Timedelta(days=days)
        with parts.part("letters") as answers:
            letters = _ask_if_cheap(db, query, since=begin)
            answers["scope"] = row(days=None if letters is None else days)
            answers["letters"] = db.ask_apart(query) if letters is None else letters
    return parts.frames()


def judge_dead_letters(frames: Frames, given: JudgeInput) -> Finding:
    """5.3.4: judge FAILED rows without a dead letter, and dead letters of rows that are not FAILED."""
    failed, letters = len(frames["failed"]), len(frames["letters"]) if "letters" in frames else None
    found = failed if letters is None else failed + letters
    notes = [*_note_row_limit(frames["failed"], frames.get("letters"))]
    if letters is not None and rows.one(frames.get("scope"), Scope).days is None:
        notes.append(say("consistency.letters_window", minutes=given.window_minutes))
    return judged(
        say("consistency.letters_apart", failed=failed, letters=letters)
        if found
        else say("consistency.letters_together"),
        [
            given.limits.value("integrity.rows", found),
            Value("failed_without_dead_letter", failed, "rows"),
            Value("dead_letter_not_failed", letters, "rows"),
        ],
        notes=tuple(notes),
        signals=given.evidence("consistency.letters_apart") if found else (),
        show=("failed", "letters"),
    )


# 5.3.5 ------------------------------------------------------------------------------------------------------


def collect_audit(rb: Context) -> Frames:
    """5.3.5: collect audit rows without an event: of 24 h if cheap, else of the window in the newest audit pages.

    Frames: changes; scope (hours: h, None for the window); surplus, the notifications beyond the changes.
    """
    parts, hours = FrameCollector(), rb.number("retention.outbox")
    with rb.snapshot() as db:
        day = _ask_if_cheap(db, "consistency/audit_without_event_day")
        parts.answers["changes"] = db.ask(Change.QUERY) if day is None else day
        parts.answers["scope"] = row(hours=None if day is None else hours)
        parts.ask(db, {"surplus": missing.Surplus.QUERY})
    return parts.frames()


class Change(rows.Row, query="consistency/audit_without_event_tail"):
    """An entitlement change without an outbox event; `notification` is the status of its notification."""

    occurred_at: pd.Timestamp | None = None
    notification: str = ""


def judge_audit(frames: Frames, given: JudgeInput) -> Finding:
    """5.3.5: judge entitlement changes without an outbox event: never written, or deleted after it was processed.

    And the reverse: notifications that no change explains.
    """
    changes, scope = rows.each(frames["changes"], Change), rows.one(frames.get("scope"), Scope)
    read = _say_read(scope, "consistency.audit_tail", given)
    notified = [c.occurred_at for c in changes if c.notification and c.occurred_at is not None]
    deleted = say(
        "consistency.event_deleted",
        n=len(notified),
        since=f"{min(notified):%H:%M:%S}" if notified else None,
        until=f"{max(notified):%H:%M:%S}" if notified else None,
    )
    found = len(changes) - len(notified)
    surplus = missing.judge_surplus(frames, given)
    told = [
        *([say("consistency.no_event", n=found, read=read)] if found else []),
        *surplus.notes,
        *([deleted] if notified else []),
    ]
    return judged(
        told[0] if told else say("consistency.all_events", read=read),
        [
            given.limits.value("integrity.lost", found),
            Value("outbox.deleted", len(notified), "rows"),
            *surplus.values,
        ],
        at_least=Status.CRITICAL if surplus.notes else Status.WARNING if notified else Status.OK,
        notes=(
            *told[1:],
            *(() if scope.hours else (say("consistency.gate_day"),)),
            *_note_row_limit(frames["changes"], frames.get("surplus")),
        ),
        signals=(
            *(given.evidence("consistency.no_event") if found else ()),
            *(given.evidence("consistency.event_deleted") if notified else ()),
            *surplus.signals,
        ),
        show=("changes", *(("surplus",) if surplus.notes else ())),
    )


# 5.3.6 ------------------------------------------------------------------------------------------------------


def judge_locks(frames: Frames, given: JudgeInput) -> Finding:
    """5.3.6: judge lock columns that are set outside the leased statuses."""
    locks = frames["locks"]
    kinds = {str(kind): int(n) for kind, n in locks["kind"].value_counts().items()}
    outbox = any(kind.startswith(("outbox", "in_flight")) for kind in kinds)
    left = "consistency.outbox_lock_left" if outbox else "consistency.notification_lock_left"
    return judged(
        say("consistency.locks_left", n=len(locks), kinds=", ".join(f"{k} {n}" for k, n in kinds.items()))
        if kinds
        else say("consistency.no_locks_left", minutes=given.window_minutes),
        [given.limits.value("integrity.rows", len(locks)), *(Value(kind, n, "rows") for kind, n in kinds.items())],
        notes=_note_row_limit(locks),
        signals=given.evidence(left) if kinds else (),
        show=("locks",),
    )


SENT = Check("5.3.1", collect_sent, judge_sent, needs=("dirty",), optional=("everything",))
#: Where nothing is missing nobody needs to know what the consumer holds; where something is, the judge weighs each.
LOST = Check(
    "5.3.2", collect_lost, judge_lost, needs=("unprocessed",), optional=("consumer", "given_up", *missing.TRACES)
)
HALVES = Check("5.3.3", collector(halves="consistency/half_processed"), judge_halves, needs=("halves",))
DEAD_LETTERS = Check("5.3.4", collect_dead_letters, judge_dead_letters, needs=("failed",))
AUDIT = Check("5.3.5", collect_audit, judge_audit, needs=("changes",))
LOCKS = Check("5.3.6", collector(locks="consistency/locks"), judge_locks, needs=("locks",))
CHECKS = (SENT, LOST, HALVES, DEAD_LETTERS, AUDIT, LOCKS)
