"""Count the events that were published and never processed: how many the consumer still holds, how many are lost.

Steps 4.1.2 and 5.3.2, and the steps built on them (4.4.3, 6.5), use this module. An event is lost if it is not
delivered without help. `stream.whereabouts` locates each event in the broker, also for the commands `event` and
`account`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib import rows
from runbook_lib.checks.parts import Parts
from runbook_lib.context import JudgeInput
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.packs.entitlement import stream

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: Values of `ledger.State.broker` of events that are not delivered without help.
LOST = ("gone", "given_up", "passed")


class Unprocessed(rows.Row, query="outbox/unprocessed"):
    """An event that was published and never processed."""

    event_id: str = ""
    published_at: pd.Timestamp | None = None


class Located(rows.Row):
    """The location of an event in the broker; `place` is a value of `ledger.State.broker`."""

    event_id: str = ""
    place: str = ""


@dataclass(frozen=True)
class MissingEvents:
    """The number of unprocessed events, of the lost ones, and of those lost because the consumer skips their subject.

    `lost` is None if the consumer's state was not read: waiting and lost events then look the same. `lately` is True if
    an event that may be lost was published within the last `subscriber.losing` seconds.
    """

    found: int
    lost: int | None
    passed_by: int
    lately: bool

    @property
    def waiting(self) -> int | None:
        """The number of events that the consumer still holds; None if its state was not read."""
        return None if self.lost is None else self.found - self.lost

    @property
    def ended(self) -> int | None:
        """The number of lost events under a subject that the consumer takes; None if its state was not read."""
        return None if self.lost is None else self.lost - self.passed_by

    @property
    def notes(self) -> tuple[Text, ...]:
        """The note on the events whose subject the consumer skips, if there are any."""
        return (say("missing.passed_by", n=self.passed_by),) if self.passed_by else ()


def count_held(pending: float | None, unacknowledged: float | None) -> float | None:
    """Return the number of messages that the consumer holds, delivered or not; None if one of the counts is missing."""
    return None if pending is None or unacknowledged is None else pending + unacknowledged


def locate(rb: Context, parts: Parts, before: stream.ConsumerPosition | None) -> None:
    """Locate the events of the frame "unprocessed" in the broker. Frame broker (event_id: id; place: text).

    `before` is the consumer's state from before the tables were read; if it is None, the broker is not queried.
    """
    if before is not None and "unprocessed" in parts.answers:
        with parts.part("broker") as answers:
            answers["broker"] = stream.locate_events(rb, answers["unprocessed"], before)


def judge_missing(frames: Frames, given: JudgeInput, lag: float | None) -> MissingEvents | None:
    """Count the missing events from the frames "unprocessed" and "broker"; None without the frame "unprocessed".

    `lag` is the number of messages that the consumer holds; None if it was not read.
    """
    if "unprocessed" not in frames:
        return None
    found = len(frames["unprocessed"])
    events = rows.each(frames["unprocessed"], Unprocessed)
    places = {e.event_id: e.place for e in rows.each(frames.get("broker"), Located)}
    undelivered = [e for e in events if places.get(e.event_id) in LOST]
    # An event that was not located may be held by the consumer, but no more events wait than the consumer holds.
    lost = max(len(undelivered), found - int(lag)) if lag is not None else None if found else 0
    since = given.as_of - pd.Timedelta(seconds=given.number("subscriber.losing"))
    unsure = [e for e in events if places.get(e.event_id, "") in ("", *LOST)]
    may_be = undelivered if lost == len(undelivered) else unsure
    return MissingEvents(
        found=found,
        lost=lost,
        passed_by=sum(places.get(e.event_id) == "passed" for e in events),
        lately=any(e.published_at is not None and e.published_at > since for e in may_be or events),
    )
