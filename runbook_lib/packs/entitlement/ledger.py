"""Where one event is: each in exactly one place, told by what the tables and the broker have of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What becomes of an event that is there: it goes on by itself, has arrived, was given up where a person can send it
#: again, or is nowhere. "unseen": whether it goes on can not be told.
Fate = Literal["way", "done", "given_up", "lost", "unseen"]


@dataclass(frozen=True)
class Place:
    """A place where an event can be: the hop of the pipeline that has it, and what becomes of it there."""

    hop: str
    fate: Fate


#: In the order of the way.
PLACES: dict[str, Place] = {
    "no_event": Place("producer", "lost"),
    "outbox_due": Place("relay", "way"),
    "outbox_retry": Place("relay", "way"),
    "outbox_held": Place("relay", "way"),
    "outbox_failed": Place("relay", "given_up"),
    "published": Place("jetstream", "unseen"),
    "stream": Place("jetstream", "way"),
    "lost": Place("jetstream", "lost"),
    "subscriber": Place("subscriber", "way"),
    "refused": Place("subscriber", "given_up"),
    "registered": Place("subscriber", "lost"),
    "queue_due": Place("delivery_worker", "way"),
    "queue_retry": Place("delivery_worker", "way"),
    "queue_held": Place("delivery_worker", "way"),
    "failed": Place("delivery_worker", "given_up"),
    "sent": Place("receiver", "done"),
}


@dataclass(frozen=True)
class State:
    """What is known of one event.

    `outbox` and `notification` are the statuses of its rows, "" where there is none; `*_wait` is "due", "retry" (its
    next try is not due yet) or "held" (under a lease that lasts). `broker` says where a published message is: "waits",
    "delivered", "given_up", "gone" (the broker holds it nowhere, or is done with it), "" where that was not seen.
    """

    outbox: str = ""
    outbox_wait: str = "due"
    processed: bool = False
    notification: str = ""
    notification_wait: str = "due"
    broker: str = ""

    @property
    def place(self) -> str:
        """The furthest place that it has reached: what lies before it may be a copy, or a late mark."""
        if self.notification:
            ends = {"SENT": "sent", "FAILED": "failed"}
            return ends.get(self.notification, f"queue_{self.notification_wait}")
        if self.processed:
            return "registered"
        if self.outbox == "PUBLISHED" or (not self.outbox and self.broker):
            seen = {"waits": "stream", "delivered": "subscriber", "given_up": "refused", "gone": "lost"}
            return seen.get(self.broker, "published")
        if self.outbox == "FAILED":
            return "outbox_failed"
        return f"outbox_{self.outbox_wait}" if self.outbox else "no_event"
