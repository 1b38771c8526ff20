"""Determine where one event is: exactly one place, from its rows in the tables and its message at the broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: "in_progress": the services move the event on without help. "done": it has arrived. "given_up": a person can send it
#: again. "lost": no component has it, or no component will move it. "unseen": it is not known which of these holds.
Disposition = Literal["in_progress", "done", "given_up", "lost", "unseen"]


@dataclass(frozen=True)
class EventPlace:
    """A place where an event can be: a hop of the pipeline, and what happens to an event there."""

    hop: str
    disposition: Disposition


#: In the order of the pipeline.
PLACES: dict[str, EventPlace] = {
    "no_event": EventPlace("producer", "lost"),
    "outbox_due": EventPlace("relay", "in_progress"),
    "outbox_retry": EventPlace("relay", "in_progress"),
    "outbox_held": EventPlace("relay", "in_progress"),
    "outbox_failed": EventPlace("relay", "given_up"),
    "published": EventPlace("jetstream", "unseen"),
    "stream": EventPlace("jetstream", "in_progress"),
    "lost": EventPlace("jetstream", "lost"),
    "passed_by": EventPlace("jetstream", "lost"),
    "subscriber": EventPlace("subscriber", "in_progress"),
    "refused": EventPlace("subscriber", "given_up"),
    "registered": EventPlace("subscriber", "lost"),
    "queue_due": EventPlace("delivery_worker", "in_progress"),
    "queue_retry": EventPlace("delivery_worker", "in_progress"),
    "queue_held": EventPlace("delivery_worker", "in_progress"),
    "failed": EventPlace("delivery_worker", "given_up"),
    "sent": EventPlace("receiver", "done"),
}


@dataclass(frozen=True)
class State:
    """What the tables and the broker show of one event.

    `outbox` and `notification` are the statuses of its rows, or "" without a row. `outbox_wait` and `notification_wait`
    are "due", "retry" (the next try is not due yet) or "held" (under a lease that has not expired). `broker` is the
    place of a published message: "waits", "delivered", "given_up", "gone" (the broker has no such message, or has
    finished with it), "passed" (it is in the stream, but the consumer's filter excludes its subject), or "" if unknown.
    """

    outbox: str = ""
    outbox_wait: str = "due"
    processed: bool = False
    notification: str = ""
    notification_wait: str = "due"
    broker: str = ""

    @property
    def place(self) -> str:
        """Return the last place that the event has reached; rows of earlier hops may be duplicates or marked late."""
        if self.notification:
            ends = {"SENT": "sent", "FAILED": "failed"}
            return ends.get(self.notification, f"queue_{self.notification_wait}")
        if self.processed:
            return "registered"
        if self.outbox == "PUBLISHED" or (not self.outbox and self.broker):
            seen = {
                "waits": "stream",
                "delivered": "subscriber",
                "given_up": "refused",
                "gone": "lost",
                "passed": "passed_by",
            }
            return seen.get(self.broker, "published")
        if self.outbox == "FAILED":
            return "outbox_failed"
        return f"outbox_{self.outbox_wait}" if self.outbox else "no_event"
