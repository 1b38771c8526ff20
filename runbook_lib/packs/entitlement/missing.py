"""Balance what was published and what arrived: events without a registration, and notifications without an event.

Events that were published and are not registered as processed are held by the consumer, lost, or neither.

Steps 4.1.2 and 5.3.2, and the steps built on them (4.4.3, 6.5), use this module. An event is lost if it is not
delivered without help. It is not lost if a notification or a dead letter shows that it was processed: its registration
was deleted. If the broker's record does not show how it was lost, and registrations were deleted, it is undecided
between both. `stream.locate_events` locates each event in the broker, also for the commands `event` and `account`.

3.1, 4.2.2, 5.3.5 and 6.5 count the notifications beyond the changes (FM-NATS-12): copies of an event under new ids, and
events that the outbox never had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.check import failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Status, Text, Value, say
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import stream
from runbook_lib.packs.entitlement.retention import FindingPart, Oldest
from runbook_lib.packs.jetstream.consumer import ConsumerPosition

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: Values of `event_place.State.broker` of events that are not delivered without help.
LOST = ("gone", "given_up", "passed")
#: The parts that `locate` reads of events that are missing.
TRACES = ("notified", "broker", "deletions", "retention")
#: How many users a sentence names as examples.
EXAMPLES = 3
#: The retention of the notification service in days, as its pods know it.
RETENTION_VARIABLE = "RETENTION_RETENTION_DAYS"


class Unprocessed(rows.Row, query="outbox/unprocessed"):
    """An event that was published and is not registered as processed."""

    event_id: str = ""
    published_at: pd.Timestamp | None = None


class Notified(rows.Row, query="notifications/of_events"):
    """Such an event with a notification: its status, "FAILED" also for a dead letter that is left of one."""

    event_id: str = ""
    notification: str = ""


class Located(rows.Row):
    """The location of an event in the broker; `place` is a value of `event_place.State.broker`."""

    event_id: str = ""
    place: str = ""


class Retention(rows.Row):
    """The retention of the notification service that is set for its pods; None if it is not set."""

    days: float | None = None


@dataclass(frozen=True)
class MissingEvents:
    """The number of unprocessed events, of the lost ones, and of those lost because the consumer skips their subject.

    `lost` is None if the consumer's state or the notifications were not read: events that wait, are lost or were
    processed then look the same. `lately` is True if an event that may be lost was published within the last
    `subscriber.losing` seconds. `notified` are the events that were processed, as their notifications show, but are not
    registered; they are not among `found`. `doubtful` of the lost ones may also have been processed: their rows may be
    deleted. `oldest` tells what was deleted, `keeps_d` is the retention in days, if it is shorter than it should be.
    The outbox has no published event from before `since`; `newest` is when the last of `found` was published. `found`
    is None if the events were not read.
    """

    found: int | None = None
    lost: int | None = None
    passed_by: int = 0
    lately: bool = False
    notified: tuple[Unprocessed, ...] = ()
    doubtful: int = 0
    oldest: Oldest | None = None
    keeps_d: float | None = None
    since: str = ""
    newest: pd.Timestamp | None = None

    @property
    def waiting(self) -> int | None:
        """The number of events that the consumer still holds; None if `lost` is."""
        return None if self.lost is None or self.found is None else self.found - self.lost

    @property
    def surely_lost(self) -> int | None:
        """The number of lost events that no deletion explains; None if `lost` is."""
        return None if self.lost is None else self.lost - self.doubtful

    @property
    def ended(self) -> int | None:
        """The number of those under a subject that the consumer takes; None if `lost` is."""
        return None if self.surely_lost is None else self.surely_lost - self.passed_by

    @property
    def status_of_doubt(self) -> Status:
        """The status if it is undecided whether events are lost: CRITICAL if the retention deletes too much."""
        return Status.UNKNOWN if self.keeps_d is None else Status.CRITICAL

    @property
    def notes(self) -> tuple[Text, ...]:
        """The notes on events that the consumer skips, and on those whose rows were or may be deleted."""
        return (
            *((say("missing.passed_by", n=self.passed_by),) if self.passed_by else ()),
            *((self.not_registered, say("missing.register", since=self.since)) if self.notified else ()),
            *((say("missing.doubtful", **self._deletions),) if self.doubtful else ()),
            *((say("missing.short_retention", days=self.keeps_d),) if self.keeps_d is not None else ()),
        )

    @property
    def not_registered(self) -> Text:
        """The sentence on the events whose registrations were deleted."""
        times = sorted(e.published_at for e in self.notified if e.published_at is not None)
        since, until = (f"{times[i]:%Y-%m-%d %H:%M:%S}" if times else None for i in (0, -1))
        return say("missing.not_registered", n=len(self.notified), since=since, until=until)

    @property
    def observations(self) -> tuple[str, ...]:
        """The observations of rows that were or may be deleted."""
        return (
            *(("consistency.not_registered",) if self.notified else ()),
            *(("consistency.short_retention",) if self.keeps_d is not None else ()),
            *(("consistency.lost_or_deleted",) if self.doubtful and self.keeps_d is None else ()),
        )

    @property
    def _deletions(self) -> dict[str, object]:
        counted = self.oldest.counted_since if self.oldest else None
        return {
            "deleted": self.oldest.deleted if self.oldest else None,
            "since": f"{counted:%Y-%m-%d %H:%M}" if counted is not None else None,
        }


def settled_s(rb: Context, before: ConsumerPosition | None) -> float:
    """Return the age in seconds from which on a published event is registered, unless it is held or lost.

    An event that is older than the oldest message which the consumer holds was acknowledged or given up. `before` is
    the consumer's state from before the tables are read; without it the age is that of several deliveries.
    """
    most = rb.number("missing.settled")
    if before is None or before.held_s is None:
        return most
    return min(most, before.held_s + rb.number("missing.answered"))


def locate(rb: Context, parts: FrameCollector, before: ConsumerPosition | None) -> None:
    """Look for other traces of the events of the frame "unprocessed": a notification, else their place in the broker.

    Frames notified; broker (event_id: id; place: text). If the broker does not show how they were lost, also what was
    deleted: frames deletions, retention (days: d). `before` is the consumer's state from before the tables were read;
    if it is None, the broker is not queried.
    """
    if not len(parts.answers.get("unprocessed", ())):
        return
    with parts.part("notified") as answers, rb.snapshot() as db:
        ids = [str(i) for i in answers["unprocessed"]["event_id"]]
        answers["notified"] = db.ask(Notified.QUERY, event_ids=ids)
    if before is None:
        return
    with parts.part("broker") as answers:
        known = {e.event_id for e in rows.each(answers.get("notified"), Notified)}
        events = answers["unprocessed"]
        located = stream.locate_events(rb, events[~events["event_id"].isin(known)], before)
        answers["broker"] = pd.DataFrame(located.items(), columns=["event_id", "place"])
    _drop_registered(rb, parts)
    _drop_unsettled(rb, parts.answers)
    if not _find_unexplained(parts.answers):
        return
    with parts.part("deletions") as answers, rb.snapshot() as db:
        answers["deletions"] = db.ask(Oldest.QUERY)
    with parts.part("retention") as answers:
        environment = rb.workloads.environment(rb.facts.workloads.program("notification"))
        days = [v for k, v in environment.items() if k.endswith(RETENTION_VARIABLE)]
        answers["retention"] = row(days=float(days[0]) if days and days[0].isdecimal() else None)


def _drop_registered(rb: Context, parts: FrameCollector) -> None:
    """Drop events that look lost and are registered: a replica lacks the registrations of the last moments."""
    lost = [e.event_id for e in rows.each(parts.answers.get("broker"), Located) if e.place in LOST]
    if not lost or rb.postgres.replica is None:
        return
    with parts.part("notified") as answers, rb.postgres.snapshot() as db:
        registered = {str(event) for event in db.ask("journey/registered", ids=lost)["event_id"]}
        for name in ("unprocessed", "broker"):
            frame = answers[name]
            answers[name] = frame[~frame["event_id"].astype(str).isin(registered)].reset_index(drop=True)
            answers[name].attrs |= frame.attrs


def _drop_unsettled(rb: Context, answers: Frames) -> None:
    """Drop events that may be on their way from the frame "unprocessed": young ones that the broker shows not as lost.

    An event has the time at which its batch began, so it may have been published after the consumer was read, and
    registered after the tables were.
    """
    lost = {e.event_id for e in rows.each(answers.get("broker"), Located) if e.place in LOST}
    since, events = rb.as_of - pd.Timedelta(seconds=rb.number("missing.settled")), answers["unprocessed"]
    settled = (pd.to_datetime(events["published_at"], utc=True) < since) | events["event_id"].astype(str).isin(lost)
    answers["unprocessed"] = events[settled].reset_index(drop=True)
    answers["unprocessed"].attrs |= events.attrs


def leave_open(rb: Context, places: Mapping[str, str], published: Mapping[str, pd.Timestamp | None]) -> dict[str, str]:
    """Return the places of events at the broker without those that are "gone" and may have been processed all the same.

    The tables' own server decides: behind the broker, a replica lacks the registrations of the last moments.

    Raises SourceError.
    """
    gone = {event: published.get(event) for event, place in places.items() if place == "gone"}
    if not gone:
        return dict(places)
    # Not of the run's window: the broker was read now, and what was read of the tables may be a replica's.
    with rb.postgres.snapshot() as db:
        oldest = rows.one(db.ask(Oldest.QUERY), Oldest)
        registered = {str(event) for event in db.ask("journey/registered", ids=[*gone])["event_id"]}
        behind = db.place.replica
    doubtful = oldest.find_doubtful(gone, rb.now(), rb.number("retention.notifications"))
    kept_open = gone.keys() if behind else {*doubtful, *registered}
    return {event: place for event, place in places.items() if event not in kept_open}


def _find_unexplained(frames: Frames) -> dict[str, pd.Timestamp | None]:
    """Return the events without a notification that the broker does not hold nor show to be given up or skipped."""
    explained = {e.event_id for e in rows.each(frames.get("broker"), Located) if e.place not in ("", "gone")}
    explained |= {e.event_id for e in rows.each(frames.get("notified"), Notified)}
    events = rows.each(frames["unprocessed"], Unprocessed)
    return {e.event_id: e.published_at for e in events if e.event_id not in explained}


def judge_missing(frames: Frames, given: JudgeInput, lag: float | None) -> MissingEvents:
    """Count the missing events from the frames "unprocessed" and "broker".

    `lag` is the number of messages that the consumer holds; None if it was not read.
    """
    every = rows.each(frames["unprocessed"], Unprocessed)
    traced = {e.event_id for e in rows.each(frames.get("notified"), Notified)}
    events = [e for e in every if e.event_id not in traced]
    found = len(events)
    places = {e.event_id: e.place for e in rows.each(frames.get("broker"), Located)}
    undelivered = [e for e in events if places.get(e.event_id) in LOST]
    # An event that was not located may be held by the consumer, but no more events wait than the consumer holds.
    lost = max(len(undelivered), found - int(lag)) if lag is not None else None if found else 0
    if lost and "notified" in failures(frames):
        lost = None
    since = given.as_of - pd.Timedelta(seconds=given.number("subscriber.losing"))
    unsure = [e for e in events if places.get(e.event_id, "") in ("", *LOST)]
    may_be = undelivered if lost == len(undelivered) else unsure
    oldest = rows.first(frames.get("deletions"), Oldest)
    keep_d = given.number("retention.notifications")
    doubtful = oldest.find_doubtful(_find_unexplained(frames), given.as_of, keep_d) if oldest and lost else ()
    set_d = rows.one(frames.get("retention"), Retention).days if doubtful and "retention" in frames else None
    return MissingEvents(
        found=found,
        lost=lost,
        passed_by=sum(places.get(e.event_id) == "passed" for e in events),
        lately=any(e.published_at is not None and e.published_at > since for e in may_be or events),
        notified=tuple(e for e in every if e.event_id in traced),
        doubtful=len(doubtful) if lost is None else min(len(doubtful), lost),
        oldest=oldest,
        keeps_d=set_d if set_d is not None and set_d < keep_d else None,
        since=f"{given.as_of - pd.Timedelta(hours=given.number('retention.outbox')):%Y-%m-%d %H:%M:%S}",
        newest=max((e.published_at for e in events if e.published_at is not None), default=None),
    )


class Half(rows.Row, query="consistency/half_processed"):
    """An event that is only registered or only queued; `emptied`: it is older than every notification that there is."""

    kind: str = ""
    emptied: bool = False


def is_emptied(halves: pd.DataFrame | None) -> bool:
    """Return whether what is registered without a notification shows one thing: the notifications were deleted."""
    alone = [half for half in rows.each(halves, Half) if half.kind == "registered_only"]
    return bool(alone) and all(half.emptied for half in alone)


class Surplus(rows.Row, query="consistency/surplus"):
    """Notifications beyond the changes, of events that the outbox has or not: of a user's item, or in all.

    `n` of them are too many, beside one for each of the `changes`; `user_id` is empty in the sum over all users.
    """

    in_outbox: bool = False
    user_id: str = ""
    stock_keeping_unit: str = ""
    changes: int = 0
    n: int = 0
    users: int = 0
    sent: int = 0
    registered: int = 0
    first: pd.Timestamp | None = None
    last: pd.Timestamp | None = None

    @property
    def kind(self) -> str:
        """Return the name of its observation and message."""
        return "consistency.copies" if self.in_outbox else "consistency.without_event"

    @property
    def per_minute(self) -> float:
        """Return the rate from the first to the last one."""
        return self.n / max((seconds_between(self.first, self.last) or 0.0) / 60, 1.0)


@dataclass(frozen=True)
class SurplusPart(FindingPart):
    """What is added to a finding; `ago` is the age in seconds of the newest notification that no change explains."""

    ago: float | None = None

    def goes_on(self, given: JudgeInput) -> bool:
        """Return whether users still receive such notifications."""
        return self.ago is not None and self.ago < given.number("duplicates.still")


def judge_surplus(frames: Frames, given: JudgeInput) -> SurplusPart:
    """Count the notifications of the frame surplus, with their users, rate and times, by whether the outbox has them.

    One change explains one notification, whatever the ids of its events.
    """
    every = rows.each(frames.get("surplus"), Surplus)
    totals = [total for total in every if not total.user_id]
    newest = max((total.last for total in totals if total.last is not None), default=None)
    return SurplusPart(
        tuple(
            Value(f"{total.kind.removeprefix('consistency.')}.{name}", value, unit)
            for total in totals
            for name, value, unit in (
                ("notifications", total.n, "rows"),
                ("users", total.users, "users"),
                ("registrations", total.registered, "rows"),
                ("per_minute", total.per_minute, "1/min"),
            )
        ),
        tuple(_say_surplus(total, every) for total in totals),
        tuple(given.evidence_of(total.kind for total in totals)),
        seconds_between(newest, given.as_of),
    )


def _say_surplus(total: Surplus, every: list[Surplus]) -> Text:
    most = [g for g in every if g.user_id and g.kind == total.kind][:EXAMPLES]
    return say(
        total.kind,
        n=total.n,
        users=total.users,
        rate=total.per_minute,
        since=total.first and f"{total.first:%Y-%m-%d %H:%M:%S}",
        until=total.last and f"{total.last:%H:%M:%S}",
        sent=total.sent,
        examples=", ".join(f"{g.user_id} {g.stock_keeping_unit} {g.changes + g.n}/{g.changes}" for g in most),
    )
