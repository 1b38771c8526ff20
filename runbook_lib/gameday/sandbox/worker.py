"""A polling worker: it claims what is due for a lease, handles row by row, marks each, and backs off after failures.

The relay and the delivery worker are this program, each with a queue and a handler of its own. The same thread runs the
service's retention.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, NoReturn

from psycopg.rows import DictRow

from . import database, telemetry
from .database import Connection, pooled
from .settings import Environment, WorkerSettings, flag, seconds

Handle = Callable[[DictRow], None]

#: Rows that wait for a try, and rows whose worker has not come back.
_DUE = """(status = 'PENDING' AND (next_retry_at IS NULL OR next_retry_at <= %(now)s))
       OR (status = '{leased}' AND (lease_until IS NULL OR lease_until <= %(now)s))"""
_CLAIM = """
WITH due AS (
    SELECT {key} FROM {table}
    WHERE {due}
    ORDER BY created_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE {table} AS q
SET status = '{leased}', locked_by = %(me)s, locked_at = %(now)s, lease_until = %(lease)s{also}
FROM due WHERE q.{key} = due.{key}
RETURNING q.*
"""
_UNLOCKED = {"locked_by": None, "locked_at": None, "lease_until": None}


class PermanentError(Exception):
    """No further try can succeed."""


@dataclass(frozen=True)
class WorkerQueue(ABC):
    """A worker's side of its table; `now` is the start of its batch, for every row of it."""

    connection: Connection
    settings: WorkerSettings
    me: str

    NAME: ClassVar[str]  # of the worker, in the metrics
    SETTINGS: ClassVar[str]  # what the names of its settings begin with
    TABLE: ClassVar[str]
    KEY: ClassVar[str]
    LEASED: ClassVar[str]  # the status of a claimed row
    ALSO: ClassVar[str] = ""  # what a claim sets beside the lease
    GUARD: ClassVar[dict[str, str]] = {}  # what must hold of a row for its mark to count, beside the lock

    @classmethod
    def due(cls) -> str:
        """Return the SQL condition of rows that a claim takes."""
        return _DUE.format(leased=cls.LEASED)

    def claim(self, now: datetime) -> list[DictRow]:
        """Take what is due, or was left by a dead worker, for the length of the lease."""
        query = _CLAIM.format(key=self.KEY, table=self.TABLE, due=self.due(), leased=self.LEASED, also=self.ALSO)
        lease = now + self.settings.lease
        values = {"now": now, "limit": self.settings.batch_size, "me": self.me, "lease": lease}
        return self.connection.execute(query, values).fetchall()

    def work(self, handle: Handle, now: datetime) -> int:
        """Claim, handle one by one, mark one by one; return how many rows were claimed."""
        rows = self.claim(now)
        for row in rows:
            try:
                handle(row)
            except Exception as error:
                self.failed(row, now, error)
            else:
                self.succeeded(row, now)
        return len(rows)

    def failed(self, row: DictRow, now: datetime, error: Exception) -> None:
        """Schedule the next try, or give up."""
        most = self.settings.max_attempts
        failures = most if isinstance(error, PermanentError) else row["attempt_count"] + 1
        if failures >= most:
            self.mark_failed(row, now, error, status="FAILED", attempt_count=failures, next_retry_at=None)
        else:
            again = now + self.settings.backoff.delay(failures)
            self.mark_failed(row, now, error, status="PENDING", attempt_count=failures, next_retry_at=again)

    def mark(self, row: DictRow, **columns: object) -> bool:
        """Change the row and free its lock; False when the lock was lost."""
        where = {self.KEY: row[self.KEY], **self.GUARD, "locked_by": self.me}
        return database.update(self.connection, self.TABLE, columns | _UNLOCKED, **where) == 1

    @abstractmethod
    def poll(self, handle: Handle) -> None:
        """Work on one batch, and measure."""

    @abstractmethod
    def succeeded(self, row: DictRow, now: datetime) -> bool:
        """Mark as done; False when the lock was lost."""

    @abstractmethod
    def mark_failed(self, row: DictRow, now: datetime, error: Exception, **columns: object) -> None:
        """Mark for the next try, or as FAILED, and log it."""


def run(
    env: Environment, kind: type[WorkerQueue], handle: Handle, clean_up: Callable[[Connection, datetime], object]
) -> NoReturn:
    """Run the scheduler thread of a pod: a batch after each poll interval, retention every hour."""
    service = env["SERVICE"]
    settings = WorkerSettings.read(kind.SETTINGS, env)
    retention = flag(env.get(f"{service.upper()}_RETENTION_ENABLED", "true"))
    cleanup_interval = seconds(env.get(f"{service.upper()}_RETENTION_CLEANUP_INTERVAL", "1h"))
    source = pooled(env, "worker")
    next_cleanup = time.monotonic()
    while True:
        if settings.enabled:
            with telemetry.scheduled(kind.NAME), source.connection() as connection:
                kind(connection, settings, env["HOSTNAME"]).poll(handle)
        if retention and time.monotonic() >= next_cleanup:
            next_cleanup = time.monotonic() + cleanup_interval
            with telemetry.scheduled(telemetry.RETENTION[service]), source.connection() as connection:
                clean_up(connection, database.now())
        time.sleep(settings.poll_interval)
