"""Determine from the database alone whether each service is there, is active, and runs its loop.

Each service keeps a pool of ten sessions, and each loop polls once a second even without work. So the newest statement
shows that the process is alive, and the newest claim, mark or count that its loop is. "Failing" is derived from the
rolled-back transactions of all clients, which needs two samples.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from textwrap import shorten

import pandas as pd

from runbook_lib.checks.context import Context, JudgeInput
from runbook_lib.checks.sample import SecondMoment
from runbook_lib.model.finding import Frames
from runbook_lib.model.rows import Row, each
from runbook_lib.packs.entitlement.evidence import services
from runbook_lib.packs.entitlement.facts import EntitlementFacts, facts_of
from runbook_lib.sources.postgres import Snapshot
from runbook_lib.sources.source import SourceError


class SessionState(StrEnum):
    """The state that a service's sessions show."""

    NONE = "none"  # no session: the database refuses the service, or no process is there
    FROZEN = "frozen"  # all sessions and the loop became inactive at the same time
    BLOCKED = "blocked"  # its newest statement has run for long, or waits for a lock
    LOOP_SILENT = "loop_silent"  # the process is active, its loop is not: switched off, or it hangs
    FAILING = "failing"  # the loop is active, and most transactions of the database are rolled back
    ALIVE = "alive"
    NOT_SEEN = "not_seen"


class Sessions(Row, query="alive/sessions"):
    """A row of alive/sessions.

    Seconds since: the oldest session began (`since`), the newest statement (`newest`), the loop's newest statement
    (`poll`), the newest session began (`newest_login`).
    """

    service: str = ""
    sessions: int = 0
    working: int = 0
    waiting: int = 0
    since: float | None = None
    newest: float | None = None
    poll: float | None = None
    strangers: int = 0
    sees_others: bool = False
    newest_login: float | None = None


class Transactions(Row, query=Sessions.QUERY):
    """The columns of alive/sessions about all transactions.

    `refused` registrations are those that were rolled back and not yet vacuumed.
    """

    commits: int = 0
    rollbacks: int = 0
    refused: int = 0
    at: pd.Timestamp | None = None


class WorkerSample(Row, query="alive/delivery"):
    """A row of alive/delivery: the sessions that run a statement of the delivery loop, or wait for a lock in one.

    `opened` are the open transactions of both services in which the server has waited for the next statement for a
    while; `of_entitlement` and `of_notification`, those whose last statement names the service.
    """

    at: pd.Timestamp | None = None
    sees_others: bool = False
    working: int = 0
    locked: int = 0
    waits_for: str = ""
    statement: str = ""
    committed: bool = False
    opened: int = 0
    of_entitlement: int = 0
    of_notification: int = 0


@dataclass(frozen=True)
class TimeUse:
    """The number of samples, of those in a statement, and of those in a lock wait; the usual statement and wait."""

    samples: int = 0
    working: int = 0
    locked: int = 0
    waits_for: str = ""
    statement: str = ""

    @property
    def outside(self) -> int:
        """The number of samples in which the loop ran no statement."""
        return self.samples - self.working - self.locked


@dataclass(frozen=True)
class SessionsSeen:
    """The state of one service by its sessions, and whether it is proven, as opposed to likely.

    `locked`: one of them waits for a lock.
    """

    says: SessionState = SessionState.NOT_SEEN
    sure: bool = False
    sessions: int | None = None
    newest_s: float | None = None
    poll_s: float | None = None
    locked: bool = False


def collect(db: Snapshot, role: str) -> Frames:
    """Query the sessions of `role`, the role of both services. Frames: service_sessions, transactions.

    {} on a replica and behind a pooler, whose sessions are not the services' own. Raises SourceError.
    """
    if not _shows_own_sessions(db):
        return {}
    found = db.ask(Sessions.QUERY, role=role)
    of_all = [field.name for field in fields(Transactions)]
    return {"service_sessions": found.drop(columns=of_all), "transactions": found[of_all].head(1)}


def _shows_own_sessions(db: Snapshot) -> bool:
    return not (db.place.replica or db.place.pooled)


def watch_worker(rb: Context, second: SecondMoment, *, often: bool) -> Frames:
    """Wait for the second moment, and sample meanwhile `often` what the delivery worker does.

    Frame worker_samples: the columns of alive/delivery; none if it was not watched.
    """
    apart_s, samples = rb.number("samples.apart"), list[pd.DataFrame]()
    with suppress(SourceError):  # the samples before and after the pause tell why
        while often and time.monotonic() + apart_s < second.at:
            time.sleep(apart_s)
            with rb.snapshot() as db:
                if not _shows_own_sessions(db):
                    break
                sample = db.ask(WorkerSample.QUERY, waited=rb.number("samples.waited"))
            shown = [s and shorten(rb.masker.statement(s), 80) for s in sample["statement"]]
            samples.append(sample.assign(statement=shown))
    second.wait()
    return {"worker_samples": pd.concat(samples, ignore_index=True)} if samples else {}


def read_time_use(frames: Frames) -> TimeUse:
    """Read the frame worker_samples; no samples if the runbook cannot see the sessions of other roles."""
    samples = [s for s in each(frames.get("worker_samples"), WorkerSample) if s.sees_others]
    busy = [s for s in samples if s.working or s.locked]
    (statement, _), (waits_for, _) = (
        next(iter(Counter(getattr(s, name) for s in busy).most_common(1)), ("", 0))
        for name in ("statement", "waits_for")
    )
    locked = sum(s.locked > 0 for s in samples)
    return TimeUse(len(samples), len(busy) - locked, locked, waits_for, statement)


def wait_for_clients(frames: Frames, given: JudgeInput) -> bool:
    """Return whether the server waits within the transactions of both services, in many samples, for what comes next.

    One service may itself be slow; what both have in common is the way to the database.
    """
    samples = [s for s in each(frames.get("worker_samples"), WorkerSample) if s.sees_others]
    many = sum(s.opened > 0 for s in samples) >= given.number("samples.opened") * len(samples)
    both = any(s.of_entitlement for s in samples) and any(s.of_notification for s in samples)
    return len(samples) >= given.number("samples.least") and many and both


def read(frames: Frames, given: JudgeInput) -> dict[str, SessionsSeen]:
    """Read each service from the newest sample; pure."""
    found = {row.service: row for row in each(frames.get("service_sessions"), Sessions)}  # the newest row of each
    share = rollback_share(frames, given)
    either = found.get("either", Sessions())
    if not _pools_are_separate(found.values(), given):
        return {s: SessionsSeen() for s in EntitlementFacts.services}
    gap_s = _seconds_between_samples(frames)
    return {s: _judge_service(found.get(s), either, share, gap_s, given) for s in EntitlementFacts.services}


def _pools_are_separate(rows: Iterable[Sessions], given: JudgeInput) -> bool:
    """Return whether there are enough sessions for a pool of each service that has any.

    Fewer sessions belong to a pooler that shares them among the services: their activity shows nothing of a service.
    """
    present = [row for row in rows if row.sessions]
    services = sum(row.service in EntitlementFacts.services for row in present)
    return sum(row.sessions for row in present) >= given.number("sessions.pool") * services


def pools_are_full(frames: Frames, given: JudgeInput) -> bool:
    """Return whether each service is seen to have its pool of sessions."""
    found = {row.service: row for row in each(frames.get("service_sessions"), Sessions)}
    pool, either = given.number("sessions.pool"), found.get("either", Sessions()).sessions
    own = [found.get(service, Sessions()) for service in EntitlementFacts.services]
    enough = sum(row.sessions for row in own) + either >= pool * len(own)
    return enough and all(row.sees_others and row.sessions + either >= pool for row in own)


def rollback_share(frames: Frames, given: JudgeInput) -> float | None:
    """Return the share of transactions rolled back between the first sample and the last; None if unknown.

    Registrations that were rolled back do not count: the unique key refuses each redelivery of an event.
    """
    samples = each(frames.get("transactions"), Transactions)
    if len(samples) < 2:
        return None
    first, last = samples[0], samples[-1]
    bad = max(last.rollbacks - first.rollbacks - max(last.refused - first.refused, 0), 0)
    total = bad + last.commits - first.commits
    if first.at is not None and last.at is not None:
        total -= _count_own(frames, first.at, last.at, given)
    return bad / total if bad >= given.number("sessions.few") and total > 0 else 0.0 if total > 0 else None


def _count_own(frames: Frames, first: pd.Timestamp, last: pd.Timestamp, given: JudgeInput) -> int:
    """Return how many commits between two samples are surely the runbook's: each sample of the worker is one."""
    until = last - pd.Timedelta(seconds=given.number("sessions.reported"))
    samples = [s for s in each(frames.get("worker_samples"), WorkerSample) if s.committed]
    return sum(s.at is not None and first < s.at <= until for s in samples)


def _seconds_between_samples(frames: Frames) -> float:
    """Return the seconds between the first sample and the last; infinite if an artifact does not have them."""
    at = [t.at for t in each(frames.get("transactions"), Transactions) if t.at is not None]
    return (at[-1] - at[0]).total_seconds() if len(at) > 1 else math.inf


def _judge_service(
    row: Sessions | None, either: Sessions, share: float | None, gap_s: float, given: JudgeInput
) -> SessionsSeen:
    if row is None or not row.sees_others:
        return SessionsSeen()
    seen = SessionsSeen(SessionState.NOT_SEEN, False, row.sessions, row.newest, row.poll)
    fresh = max(given.number("sessions.fresh"), 3 * facts_of(given).poll_interval_s)
    frozen = max(given.number("sessions.frozen"), 5 * facts_of(given).poll_interval_s)
    if not row.sessions:
        # Sessions without a known statement, or of an unknown driver, may be its own.
        return seen if either.sessions or row.strangers else replace(seen, says=SessionState.NONE)
    if row.newest is None:
        return seen
    if row.waiting or (row.working and row.newest >= fresh):
        return replace(seen, says=SessionState.BLOCKED, locked=bool(row.waiting))
    if row.poll is None:
        # No session has a statement of the loop; a loop that stopped would have left its last one.
        young = row.since is None or row.since < given.number("service.young")
        return seen if young else replace(seen, says=SessionState.LOOP_SILENT)
    if row.newest >= frozen and row.poll - row.newest <= fresh:
        return replace(seen, says=SessionState.FROZEN, sure=row.newest >= given.number("sessions.sure"))
    if row.newest < fresh and row.poll >= frozen:
        return replace(seen, says=SessionState.LOOP_SILENT)
    if row.poll >= fresh:
        return seen  # too early to tell
    if share is not None and share >= given.number("sessions.failing"):
        return replace(seen, says=SessionState.FAILING)
    # A statement older than the first sample may have been the loop's last one.
    return replace(seen, says=SessionState.ALIVE, sure=share is not None and row.poll <= gap_s)


def loop_has_worked(frames: Frames, given: JudgeInput, loop: str, started: pd.Timestamp | None) -> bool:
    """Return whether a loop has worked since its process `started`, by its run counter or its newest statement.

    A process that has worked is no longer starting, however young it is.
    """
    service = services.TASKS[loop].service
    if services.read(frames, given)[service].loops[loop].has_run:
        return True
    samples = each(frames.get("transactions"), Transactions)  # in the same samples as the sessions
    poll_s, at = read(frames, given)[service].poll_s, samples[-1].at if samples else None
    if poll_s is None or at is None or started is None:
        return False
    return at - pd.Timedelta(seconds=poll_s) > started


def no_service_has_sessions(seen: dict[str, SessionsSeen]) -> bool:
    """Return whether no service has a session: the database more likely refuses both than both processes are dead."""
    return bool(seen) and all(s.says is SessionState.NONE for s in seen.values())


def sessions_beyond_pool(
    frames: Frames, given: JudgeInput, service: str, *, instances: int = 1, assumed: float | None = None
) -> int | None:
    """Return the number of a service's sessions beyond the pools of its instances; None if unknown.

    A whole pool of such sessions belongs to another process that does the service's work, even while it has no leased
    rows; fewer count as 0. `assumed` is the size of a pool if the service does not report it.
    """
    found = {row.service: row for row in each(frames.get("service_sessions"), Sessions)}
    own, either = found.get(service), found.get("either", Sessions())
    if own is None or not own.sees_others or own.strangers or not _pools_are_separate(found.values(), given):
        return None
    seen = services.read(frames, given).get(service, services.ServiceSeen())
    pool = seen.connections if seen.by == "service" and seen.connections else assumed
    if pool is None:
        return None
    # What shows only COMMIT fills the pools of the others first.
    lacking = sum(
        int(pool if not row.sessions else -row.sessions % pool)
        for row in found.values()
        if row.service not in (service, "either")
    )
    beyond = own.sessions + max(either.sessions - lacking, 0) - pool * instances
    return int(beyond) if beyond >= given.number("sessions.pool") else 0
