"""Classes of rows that several topics read (see `runbook_lib.model.rows`); other classes are beside their judge."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.model.rows import Row, one

if TYPE_CHECKING:
    from runbook_lib.checks.context import JudgeInput


def parse_uuid(text: str) -> str | None:
    """Return a UUID in its usual form; None if the text is none."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def list_ids(ids: Sequence[str], most: int = 5) -> str:
    """Return the first ids in one line; "…" stands for further ones."""
    return ", ".join(ids[:most]) + (", …" if len(ids) > most else "")


class QueueCounts(Row):
    """The backlog of a table now: numbers of rows, and seconds since the oldest became due or its lease expired.

    `strays` have a state that no program takes, of which `stray_states` lists the names.
    """

    now: pd.Timestamp | None = None
    due: float = 0.0
    oldest_due_s: float = 0.0
    waiting_retry: float = 0.0
    leased: float = 0.0
    expired: float = 0.0
    oldest_expired_s: float = 0.0
    strays: float = 0.0
    stray_states: str | None = None

    @property
    def ready(self) -> float:
        """Return the rows that a worker may claim: due, or under an expired lease."""
        return self.due + self.expired

    @property
    def total(self) -> float:
        """Return the number of unfinished rows."""
        return self.ready + self.leased + self.waiting_retry

    @property
    def oldest_s(self) -> float:
        """Return for how many seconds the oldest of those has been ready."""
        return max(self.oldest_due_s, self.oldest_expired_s)


class Notifications(QueueCounts, query="notifications/backlog"):
    """The delivery worker's queue."""

    overdue_10min: float = 0.0


class Activity(Row, query="notifications/activity"):
    """The delivery worker's last actions, and the notifications that arrived and were sent in the last minute."""

    now: pd.Timestamp | None = None
    last_claim: pd.Timestamp | None = None
    last_sent: pd.Timestamp | None = None
    last_try: pd.Timestamp | None = None
    sent_1m: float = 0.0
    arrived_1m: float = 0.0
    workers: str | None = None


class Registered(Row, query="processed/activity"):
    """The subscriber's last registration, and the events that it registered in the last minute."""

    now: pd.Timestamp | None = None
    last_processed: pd.Timestamp | None = None
    processed_1m: float | None = None


class Attempts(Row, query="notifications/attempts"):
    """The number of unfinished rows with so many failed attempts.

    `postponed` wait for a retry time later than any that the worker sets by its documented settings.
    """

    attempt_count: int = 0
    n: int = 0
    postponed: int = 0


class Outbox(QueueCounts, query="outbox/backlog"):
    """The relay's queue, and the relay's last actions; `postponed` rows are those of `Attempts`."""

    failed: float = 0.0
    max_attempt_count: float = 0.0
    tried: float = 0.0
    last_claim: pd.Timestamp | None = None
    last_published: pd.Timestamp | None = None
    published_1m: float = 0.0
    arrived_1m: float = 0.0
    postponed: float = 0.0


class DatabaseIdentity(Row, query="scope/database"):
    """The database that answers: its name, and its cluster's identifier, which a copy by replication shares."""

    name: str = ""
    cluster: str = ""

    @property
    def identity(self) -> str:
        """Return both in one text."""
        return f"{self.name}@{self.cluster}"


class Delay(Row, query="outbox/delay"):
    """Delays, in seconds, of the events that were published in the window; `span_s` from the first to the last."""

    n: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    negative: float | None = None
    span_s: float = 0.0

    def is_dated_back(self, waiting: float, given: JudgeInput) -> bool:
        """Return whether the events were not late, but have times behind those of their publishing.

        By Little's law, as many events wait as come in during a delay that stays the same. `waiting` are unpublished.
        """
        limit_s = given.slos["ENT-C"].number
        if not (self.n and self.p50 and self.p99) or self.p50 <= limit_s or self.p99 - self.p50 > limit_s:
            return False
        long_enough = self.span_s >= given.number("success.lately")
        return long_enough and waiting < given.number("delay.waiting_share") * self.p50 * self.n / self.span_s


class OutboxAges(Row, query="outbox/ages"):
    """When the newest event was written, the p95 age of unpublished events in seconds, and those that were given up.

    `n` were given up; the `newest` of them is by its creation, `last_failed` is known only if commit times are tracked.
    """

    now: pd.Timestamp | None = None
    last_event: pd.Timestamp | None = None
    p95: float = 0.0  # NULL of nothing that waits
    n: int = 0
    newest: pd.Timestamp | None = None
    last_failed: pd.Timestamp | None = None


class Delivered(Row, query="sli/delivered"):
    """Delays, in seconds, of the notifications that were sent."""

    n: float = 0.0
    p95: float | None = None


class Letters(Row, query="processed/nats_dlq"):
    """The number of messages that the subscriber gave up in the window."""

    n: float = 0.0


class HeldRow(Row, query="notifications/held"):
    """A row that a worker has leased."""

    now: pd.Timestamp | None = None
    notification_id: str = ""
    locked_by: str | None = None
    locked_at: pd.Timestamp | None = None
    lease_until: pd.Timestamp | None = None
    attempt_count: float = 0.0


class Holder(Row, query="notifications/holders"):
    """The rows that one worker has leased, and since when; outbox/holders has some of these columns."""

    locked_by: str | None = None
    n: float = 0.0
    expired: float = 0.0
    without_lease: float = 0.0
    expired_for_s: float = 0.0
    since_claim_s: float | None = None
    shortest_lease_s: float | None = None
    longest_lease_s: float = 0.0
    furthest_s: float | None = None


class Count(Row):
    """The result of a query that only counts; None if it was not answered."""

    n: int | None = None


class Application(Row, query="database/application"):
    """The database role of both services, and the settings that can keep it from its work."""

    role: str | None = None
    there: bool = False
    can_login: bool = True
    expired: bool = False
    connection_limit: float | None = None
    sessions: float = 0.0
    read_only: str | None = None
    lacks: str | None = None

    @property
    def at_limit(self) -> bool:
        """Return whether the role has all the sessions that it may have."""
        return self.connection_limit is not None and self.connection_limit <= self.sessions

    @property
    def write_blocker(self) -> str:
        """Return what keeps the role from its work: read_only, shut_out or lacks_rights; "" for nothing or no role."""
        if not self.there:
            return ""
        if not self.can_login or self.expired or self.at_limit:
            return "shut_out"
        if (self.read_only or "").lower() in ("on", "true", "yes", "1"):
            return "read_only"
        return "lacks_rights" if self.lacks else ""


#: The frame with the failed tries of each part.
TRY_FRAMES = {"delivery": "tries", "publish": "publish_tries"}


class Tries(Row, query="notifications/failed_tries"):
    """Failed tries of one part that have a retry time; outbox/failed_tries has the same columns."""

    part: str = ""
    failed: float = 0.0
    failed_now: float = 0.0
    waiting: float = 0.0
    due_again: float = 0.0

    @classmethod
    def of(cls, part: str, frames: Frames) -> Tries:
        """Return the failed tries of "delivery" or "publish"; a frame without a row means that no try failed."""
        return one(frames.get(TRY_FRAMES[part]), cls)
