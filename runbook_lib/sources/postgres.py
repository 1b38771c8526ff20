"""PostgreSQL, read within a budget: short read-only snapshots on one connection, bounded on both sides.

The budget is enforced by the server (timeouts set at connect, read-only) and by this client (a watchdog for a
server that no longer answers, the cost gate, the row cap). Measured facts behind each: docs/architecture.md,
"The read budget".
"""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pandas as pd
import psycopg
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from runbook_lib.model.finding import Reason, Window
from runbook_lib.questions import Query, query
from runbook_lib.settings import Budget
from runbook_lib.sources import ReadCost, SourceError
from runbook_lib.usage import UsageError

_READERS_LOCK = 0x52554E42  # "RUNB": the advisory lock class of runbook readers


class Postgres:
    """A database that is asked in short snapshots; no connection is held between them."""

    def __init__(self, url: str, application_name: str, budget: Budget, read_cost: ReadCost) -> None:
        self._budget, self._read_cost = budget, read_cost
        self._down: tuple[float, SourceError] | None = None
        settings = {
            "default_transaction_read_only": "on",
            "statement_timeout": budget.statement_timeout_ms,
            "lock_timeout": budget.lock_timeout_ms,
            "idle_in_transaction_session_timeout": budget.idle_timeout_ms,
            "max_parallel_workers_per_gather": 0,
            "jit": "off",
            "timezone": "UTC",
        }
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise UsageError("database_url is not a URL like postgresql://user@host:5432/database") from None
        self._engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            poolclass=NullPool,
            isolation_level="REPEATABLE READ",
            connect_args={
                "connect_timeout": budget.connect_timeout_s,
                "application_name": application_name[:63],
                "options": " ".join(f"-c {k}={v}" for k, v in settings.items()),
            },
        )

    @contextmanager
    def snapshot(self, window: Window | None = None) -> Iterator[Snapshot]:
        """One short REPEATABLE READ READ ONLY transaction; what is asked in it is of one moment, about that window.

        Raises SourceError; a database that did not answer is not asked again for 15 seconds.
        """
        if self._down and time.monotonic() - self._down[0] < 15:
            raise self._down[1]
        try:
            connection = self._connect()
        except SourceError as e:
            if e.reason is not Reason.NO_DATA:
                self._down = (time.monotonic(), e)
            raise
        try:
            snapshot = Snapshot(connection, window, self._budget, self._read_cost)
            snapshot.wait_for_turn()
            yield snapshot
        finally:
            # A connection that the watchdog cut cannot say goodbye.
            with suppress(Exception):
                connection.rollback()
            with suppress(Exception):
                connection.close()

    def _connect(self) -> sa.Connection:
        with self._read_cost.question("postgres", "connect", "CONNECT"):
            try:
                return self._engine.connect()
            except sa.exc.SQLAlchemyError as e:
                raise source_error(e) from None


class Snapshot:
    """The questions of one moment."""

    def __init__(self, connection: sa.Connection, window: Window | None, budget: Budget, read_cost: ReadCost) -> None:
        self._connection, self._window, self._budget, self._read_cost = connection, window, budget, read_cost
        self._gone: SourceError | None = None

    def ask(self, name: str, **params: Any) -> pd.DataFrame:
        """The answer to a question of the packs' sql folders as a frame, at most `max_rows` rows.

        `:as_of`, `:since` and `:max_rows` are bound for every question. `frame.attrs["capped"]` tells that
        there were more rows. Raises SourceError: timeout, denied, error, or no_data for a question about the
        present when the run looks at a past moment.
        """
        q = query(name)
        bound = {
            "as_of": self._window and self._window.as_of,
            "since": self._window and self._window.since,
            "max_rows": self._budget.max_rows + 1,
        } | params
        used = {k: v for k, v in bound.items() if re.search(rf"(?<![:\w]):{k}\b", q.sql)}
        with self._read_cost.question("postgres", name, _as_sent(q.sql, used)) as asked:
            if q.answers == "present" and self._window and self._window.past:
                raise SourceError("postgres", Reason.NO_DATA, f"'{q.question}' can only be asked of the present")
            if q.cost == "scan":
                asked.plan_cost = self._plan_cost(q, used)
                if asked.plan_cost > self._budget.max_plan_cost:
                    raise SourceError(
                        "postgres",
                        Reason.DENIED,
                        f"plan cost {asked.plan_cost:,.0f} is over the limit of {self._budget.max_plan_cost:,.0f}",
                        "cost_gate",
                    )
            result = self._execute(q.sql, used)
            rows = result.fetchmany(self._budget.max_rows + 1)
            asked.rows = len(rows)
            frame = pd.DataFrame([tuple(r) for r in rows[: self._budget.max_rows]], columns=list(result.keys()))
            frame.attrs["capped"] = len(rows) > self._budget.max_rows
            result.close()
        return _typed(frame)

    def try_ask(self, name: str, **params: Any) -> pd.DataFrame | None:
        """As `ask`, but None where the question may not or cannot be answered; the rest goes on."""
        self._execute("SAVEPOINT question", {})
        try:
            frame = self.ask(name, **params)
        except SourceError:
            if self._gone:
                raise
            self._execute("ROLLBACK TO SAVEPOINT question", {})
            return None
        self._execute("RELEASE SAVEPOINT question", {})
        return frame

    def wait_for_turn(self) -> None:
        """Let only `readers` runs read one database at once: a burst of alerts must not add to its load."""
        taken = (
            "SELECT EXISTS (SELECT FROM (SELECT generate_series(1, :readers) AS seat OFFSET 0) seats "
            "WHERE pg_try_advisory_xact_lock(:class, seat) LIMIT 1)"
        )
        until = time.monotonic() + 5
        while not self._execute(taken, {"readers": self._budget.readers, "class": _READERS_LOCK}).scalar():
            if time.monotonic() > until:
                raise SourceError(
                    "postgres", Reason.TIMEOUT, "other runs of the runbook are reading; try again", "readers"
                )
            self._connection.rollback()
            time.sleep(random.uniform(0.05, 0.2))  # noqa: S311 - spreads the readers out

    def clock_offset(self, rounds: int = 9) -> tuple[float, float]:
        """Seconds that the database's clock is ahead of this machine's, and the error bound.

        Of nine round trips the shortest counts; its midpoint is taken as the moment of the server's answer.
        """
        samples = []
        with self._read_cost.question("postgres", "clock_offset", "SELECT clock_timestamp()") as asked:
            for _ in range(rounds):
                sent = time.time()
                server = self._execute("SELECT extract(epoch FROM clock_timestamp())", {}).scalar_one()
                received = time.time()
                samples.append((received - sent, float(server) - (sent + received) / 2))
            asked.rows = rounds
        rtt, offset = min(samples)
        return offset, rtt / 2

    def _plan_cost(self, q: Query, params: dict[str, Any]) -> float:
        plan = self._execute(f"EXPLAIN (FORMAT JSON) {q.sql}", params).scalar_one()
        return float(plan[0]["Plan"]["Total Cost"])

    def _execute(self, sql: str, params: dict[str, Any]) -> sa.CursorResult[Any]:
        if self._gone:
            raise self._gone
        with cut_when_hung(self._connection.connection.driver_connection, self._budget) as cut:
            try:
                return self._connection.execute(sa.text(sql), params)
            except sa.exc.SQLAlchemyError as e:
                error = source_error(e)
                if cut.is_set():
                    error = SourceError(
                        "postgres",
                        Reason.TIMEOUT,
                        "the server accepted the question and never answered",
                        "hung",
                    )
                if self._connection.invalidated:
                    self._gone = error
                raise error from None


@contextmanager
def cut_when_hung(connection: Any, budget: Budget) -> Iterator[threading.Event]:
    """Cut the line of a psycopg connection when the server does not even enforce its own statement_timeout."""
    cut = threading.Event()

    def shut() -> None:
        cut.set()
        with suppress(OSError):
            # Only a shutdown wakes a thread that waits in libpq; the descriptor stays libpq's own.
            line = socket.socket(fileno=connection.fileno())
            try:
                line.shutdown(socket.SHUT_RDWR)
            finally:
                line.detach()

    timer = threading.Timer(budget.statement_timeout_ms / 1000 + 1, shut)
    timer.daemon = True
    timer.start()
    try:
        yield cut
    finally:
        timer.cancel()


def _as_sent(sql: str, params: dict[str, Any]) -> str:
    shown = ", ".join(f"{k}={v}" for k, v in params.items())
    return f"{sql}\n-- {shown}" if shown else sql


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Decimals to floats, timestamps to UTC: what pandas would otherwise leave as objects."""
    for column in frame.columns:
        kinds = {type(v).__name__ for v in frame[column] if v is not None}
        if kinds == {"datetime"}:
            frame[column] = pd.to_datetime(frame[column], utc=True)
        elif kinds and kinds <= {"Decimal", "float", "int"} and "Decimal" in kinds:
            frame[column] = pd.to_numeric(frame[column].astype(float))
        elif kinds == {"UUID"}:
            frame[column] = [None if v is None else str(v) for v in frame[column]]
    return frame


#: What the server's own codes mean for whoever reads the runbook.
_SQLSTATE = {
    "57014": (Reason.TIMEOUT, "statement_timeout"),
    "55P03": (Reason.TIMEOUT, "lock_not_available"),
    "25P03": (Reason.TIMEOUT, "idle_timeout"),
    "42501": (Reason.DENIED, "permission_denied"),
    "28P01": (Reason.DENIED, "wrong_password"),
    "28000": (Reason.DENIED, "not_authorised"),
    "3D000": (Reason.UNREACHABLE, "no_such_database"),
    "53300": (Reason.UNREACHABLE, "too_many_clients"),
    "57P01": (Reason.UNREACHABLE, "shut_down"),
    "57P03": (Reason.UNREACHABLE, "starting_up"),
    "3F000": (Reason.ERROR, "schema_missing"),
    "42P01": (Reason.ERROR, "table_missing"),
    "42703": (Reason.ERROR, "column_missing"),
}
#: At connect psycopg gives no SQLSTATE; the message is all there is.
_AT_CONNECT = (
    ("too many clients", "53300"),
    ("remaining connection slots are reserved", "53300"),
    ("too many connections", "53300"),
    ("password authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("permission denied for database", "28000"),
    ("does not exist", "3D000"),
    ("starting up", "57P03"),
    ("shutting down", "57P03"),
)


def source_error(e: sa.exc.SQLAlchemyError | psycopg.Error) -> SourceError:
    """What a driver's error means for whoever reads the runbook; its words, without addresses."""
    original = getattr(e, "orig", None) or e
    message = str(original).strip()
    state = getattr(original, "sqlstate", None)
    if state is None and isinstance(original, psycopg.Error):
        lowered = message.lower()
        if "timeout" in lowered or "timed out" in lowered:
            return SourceError("postgres", Reason.TIMEOUT, "no answer to the connection", "no_connection")
        state = next((code for phrase, code in _AT_CONNECT if phrase in lowered), None)
    # The last FATAL or ERROR sentence is the server's reason; what stands before it is the address list.
    sentences = re.findall(r"(?:FATAL|ERROR):\s+(.+)", message)
    detail = sentences[-1] if sentences else message.splitlines()[0] if message else type(original).__name__
    if state in _SQLSTATE:
        reason, code = _SQLSTATE[state]
        return SourceError("postgres", reason, detail, code)
    if isinstance(original, psycopg.OperationalError):
        if sentences and state is None:  # whoever answers there, a pooler for example, does not take this connection
            return SourceError("postgres", Reason.DENIED, detail, "not_admitted")
        return SourceError("postgres", Reason.UNREACHABLE, detail, state or "no_connection")
    return SourceError("postgres", Reason.ERROR, detail, state or "")
