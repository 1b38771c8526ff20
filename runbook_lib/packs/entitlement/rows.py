"""Kinds of rows that several topics read (see `runbook_lib.rows`); others stand beside their judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.rows import each


@dataclass(frozen=True)
class Queue:
    """What waits in a table now: rows, and seconds that the oldest has been due, or its lease over."""

    now: pd.Timestamp | None = None
    due: float = 0.0
    oldest_due_s: float = 0.0
    waiting_retry: float = 0.0
    leased: float = 0.0
    expired: float = 0.0
    oldest_expired_s: float = 0.0

    @property
    def ready(self) -> float:
        """What a worker may take: due, or under a lease that is over."""
        return self.due + self.expired

    @property
    def oldest_s(self) -> float:
        """How long the oldest of those has been ready."""
        return max(self.oldest_due_s, self.oldest_expired_s)


@dataclass(frozen=True)
class Notifications(Queue):
    """The delivery worker's queue."""

    QUESTION: ClassVar[str] = "notifications/backlog"

    overdue_10min: float = 0.0


@dataclass(frozen=True)
class Activity:
    """When the worker was last at work, and what came and went in the last minute."""

    QUESTION: ClassVar[str] = "notifications/activity"

    now: pd.Timestamp | None = None
    last_claim: pd.Timestamp | None = None
    last_sent: pd.Timestamp | None = None
    last_try: pd.Timestamp | None = None
    sent_1m: float = 0.0
    arrived_1m: float = 0.0
    workers: str | None = None


@dataclass(frozen=True)
class Attempts:
    """Unfinished rows that were tried so often in vain."""

    QUESTION: ClassVar[str] = "notifications/attempts"

    attempt_count: int = 0
    n: int = 0


@dataclass(frozen=True)
class Outbox(Queue):
    """The relay's queue, and when the relay was last at work."""

    QUESTION: ClassVar[str] = "outbox/backlog"

    failed: float = 0.0
    tried: float = 0.0
    last_claim: pd.Timestamp | None = None
    last_published: pd.Timestamp | None = None
    published_1m: float = 0.0
    arrived_1m: float = 0.0


@dataclass(frozen=True)
class Delay:
    """How long events took that were published in the window, in seconds."""

    QUESTION: ClassVar[str] = "outbox/delay"

    n: float = 0.0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    negative: float = 0.0


@dataclass(frozen=True)
class LastEvent:
    """When the newest event was written."""

    QUESTION: ClassVar[str] = "scope/last_event"
    now: pd.Timestamp | None = None
    last_event: pd.Timestamp | None = None


@dataclass(frozen=True)
class Delivered:
    """How long notifications took that were sent, in seconds."""

    QUESTION: ClassVar[str] = "sli/delivered"

    n: float = 0.0
    p95: float | None = None


@dataclass(frozen=True)
class Letters:
    """Messages that the subscriber gave up on in the window."""

    QUESTION: ClassVar[str] = "processed/nats_dlq"

    n: float = 0.0


@dataclass(frozen=True)
class Held:
    """A row in a worker's hands."""

    QUESTION: ClassVar[str] = "notifications/held"

    now: pd.Timestamp | None = None
    notification_id: str = ""
    locked_by: str | None = None
    locked_at: pd.Timestamp | None = None
    lease_until: pd.Timestamp | None = None


@dataclass(frozen=True)
class Count:
    """A question that only counts; None where it was not answered."""

    n: int | None = None


@dataclass(frozen=True)
class Application:
    """The role of both services: what may keep it from its work, whatever its processes do."""

    QUESTION: ClassVar[str] = "database/application"

    role: str | None = None
    there: bool = False
    can_login: bool = True
    expired: bool = False
    connection_limit: float | None = None
    sessions: float = 0.0
    read_only: str | None = None
    lacks: str | None = None

    @property
    def kept_from(self) -> str:
        """What keeps it: read_only, shut_out or lacks_rights; "" where nothing does, or there is no such role."""
        full = self.connection_limit is not None and self.connection_limit <= self.sessions
        if not self.there:
            return ""
        if not self.can_login or self.expired or full:
            return "shut_out"
        if (self.read_only or "").lower() in ("on", "true", "yes", "1"):
            return "read_only"
        return "lacks_rights" if self.lacks else ""


@dataclass(frozen=True)
class Tries:
    """Tries of one part that left a retry time behind."""

    QUESTION: ClassVar[str] = "recovery/failed_tries"

    part: str = ""
    failed: float = 0.0
    failed_now: float = 0.0
    waiting: float = 0.0
    due_again: float = 0.0

    @classmethod
    def of(cls, part: str, frames: Frames) -> Tries:
        """Those of "delivery" or "publish" in the frame tries."""
        return next((t for t in each(frames.get("tries"), cls) if t.part == part), cls())
