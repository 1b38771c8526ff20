"""From the database alone: is each service there, does it say anything, and does its loop?

Each service keeps a pool of ten sessions, and each loop polls once a second also when there is nothing to do. So the
newest statement tells of the process, and the newest claim, mark or count of its loop. "Failing" is told by the
transactions that the database rolls back, which are those of everybody: it needs two looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal

import pandas as pd

from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Reason
from runbook_lib.packs.entitlement.facts import Facts, facts_of
from runbook_lib.rows import each
from runbook_lib.sources import SourceError
from runbook_lib.sources.postgres import Snapshot

Confidence = Literal["high", "medium", "low", "none"]


class Says(StrEnum):
    """What a service's sessions show."""

    NONE = "none"  # it has none: the database's door is shut for it, or no process is there
    FROZEN = "frozen"  # they are there, and all fell silent together with its loop
    BLOCKED = "blocked"  # its newest statement is at work for long, or waits for a lock
    LOOP_SILENT = "loop_silent"  # the process works, its loop says nothing: switched off, or it hangs
    FAILING = "failing"  # the loop speaks, and most of what the database is asked is rolled back
    ALIVE = "alive"
    NOT_SEEN = "not_seen"


@dataclass(frozen=True)
class Sessions:
    """A row of alive/sessions: seconds since the oldest session began, since the newest statement, and since the
    newest one of the loop.
    """

    QUESTION: ClassVar[str] = "alive/sessions"

    service: str = ""
    sessions: int = 0
    working: int = 0
    waiting: int = 0
    since: float | None = None
    newest: float | None = None
    poll: float | None = None
    strangers: int = 0
    sees_others: bool = False


@dataclass(frozen=True)
class Transactions:
    """A row of alive/transactions."""

    QUESTION: ClassVar[str] = "alive/transactions"

    commits: int = 0
    rollbacks: int = 0
    at: pd.Timestamp | None = None


@dataclass(frozen=True)
class SessionsSeen:
    """What one service's sessions come to, and how sure that is."""

    service: str
    says: Says = Says.NOT_SEEN
    confidence: Confidence = "none"
    sessions: int | None = None
    newest_s: float | None = None
    poll_s: float | None = None


@dataclass(frozen=True)
class Numbers:
    """What decides, from docs/slo.md: seconds, and the share of transactions that is rolled back."""

    poll_s: float
    young_s: float
    fresh_s: float
    frozen_s: float
    sure_s: float
    failing: float
    few: float
    pool: float

    @classmethod
    def of(cls, given: Given) -> Numbers:
        """Those of a run."""
        return cls(
            facts_of(given).poll_interval_s,
            given.number("service.young"),
            given.number("sessions.fresh"),
            given.number("sessions.frozen"),
            given.number("sessions.sure"),
            given.number("sessions.failing"),
            given.number("sessions.few"),
            given.number("sessions.pool"),
        )


def look(db: Snapshot, role: str) -> Frames:
    """One look, services log in as `role`: `service_sessions`, `transactions`.

    Raises SourceError, also where the sessions are not a pool each.
    """
    if db.place.replica or db.place.pooled:
        raise SourceError("postgres", Reason.NO_DATA, "these are not the services' own sessions", "not_theirs")
    return {"service_sessions": db.ask(Sessions.QUESTION, role=role), "transactions": db.ask(Transactions.QUESTION)}


def read(frames: Frames, numbers: Numbers) -> dict[str, SessionsSeen]:
    """Each service, by the newest look; pure. What could not be seen is not seen."""
    found = {row.service: row for row in each(frames.get("service_sessions"), Sessions)}  # the last of each
    share = rolled_back(frames, numbers)
    either = found.get("either", Sessions())
    if not _each_its_own(found.values(), numbers):
        return {s: SessionsSeen(s) for s in Facts.services}
    return {s: _one(found.get(s), either, share, numbers) or SessionsSeen(s) for s in Facts.services}


def _each_its_own(rows: Iterable[Sessions], numbers: Numbers) -> bool:
    """Whether the sessions that are there can be a pool for each service that has any.

    Fewer are those of a pooler between, that lends the same ones to all: what one shows last tells nothing then.
    """
    there = [row for row in rows if row.sessions]
    services = sum(row.service in Facts.services for row in there)
    return sum(row.sessions for row in there) >= numbers.pool * services


def rolled_back(frames: Frames, numbers: Numbers) -> float | None:
    """The share of the transactions between the first look and the last that was rolled back; None if not seen."""
    looks = each(frames.get("transactions"), Transactions)
    if len(looks) < 2:
        return None
    bad = looks[-1].rollbacks - looks[0].rollbacks
    total = bad + looks[-1].commits - looks[0].commits
    return bad / total if bad >= numbers.few and total > 0 else 0.0 if total > 0 else None


def _one(row: Sessions | None, either: Sessions, share: float | None, numbers: Numbers) -> SessionsSeen | None:
    if row is None or not row.sees_others:
        return None
    fresh = max(numbers.fresh_s, 3 * numbers.poll_s)
    frozen = max(numbers.frozen_s, 5 * numbers.poll_s)

    def seen(says: Says, confidence: Confidence) -> SessionsSeen:
        return SessionsSeen(row.service, says, confidence, row.sessions, row.newest, row.poll)

    if not row.sessions:
        # Sessions that tell nothing of themselves may be its own, and so may those of another driver's name.
        return seen(Says.NOT_SEEN, "none") if either.sessions or row.strangers else seen(Says.NONE, "high")
    if row.newest is None:
        return seen(Says.NOT_SEEN, "none")
    if row.waiting or (row.working and row.newest >= fresh):
        return seen(Says.BLOCKED, "medium")
    if row.poll is None:
        # No session has a word of the loop, and one that fell silent would have left its last. The others speak on.
        if (row.since or 0.0) < numbers.young_s:
            return seen(Says.NOT_SEEN, "none")
        speaks = min(row.newest, either.newest if either.newest is not None else row.newest) < fresh
        return seen(Says.LOOP_SILENT, "medium" if speaks else "low")
    if row.newest >= frozen and row.poll - row.newest <= fresh:
        return seen(Says.FROZEN, "high" if row.newest >= numbers.sure_s else "medium")
    if row.newest < fresh and row.poll >= frozen:
        return seen(Says.LOOP_SILENT, "medium")
    if row.poll >= fresh:
        return seen(Says.NOT_SEEN, "none")  # too early to tell
    if share is not None and share >= numbers.failing:
        return seen(Says.FAILING, "medium")
    return seen(Says.ALIVE, "medium" if share is None else "high")


def door_is_shut(seen: dict[str, SessionsSeen]) -> bool:
    """Whether no service at all has a session: rather the database's door than two dead processes."""
    return bool(seen) and all(s.says is Says.NONE for s in seen.values())
