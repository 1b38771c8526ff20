"""The pod's connections to PostgreSQL: a fixed pool, of which each part keeps the one that it uses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from . import java, telemetry
from .settings import Environment

Connection = psycopg.Connection[DictRow]

#: Between two tries to connect while somebody waits, and between two looks at what nobody uses.
_AGAIN_S, _KEEP_S = 0.5, 1.0


class _Session(Connection):
    """A session that, as the JDBC driver, prepares a statement once more whose result has got other columns."""

    def execute(self, query: Any, params: Any = None, **how: Any) -> psycopg.Cursor[DictRow]:
        """Execute it; in a transaction the error is the caller's, and the next one prepares anew."""
        try:
            return super().execute(query, params, **how)
        except psycopg.errors.FeatureNotSupported:  # "cached plan must not change result type"
            if self.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                raise
            super().execute("DEALLOCATE ALL")
            return super().execute(query, params, **how)


def connect(url: str) -> Connection:
    """Open an autocommit connection whose rows are dicts; the caller opens transactions itself."""
    return _Session.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=5)


def insert(connection: Connection, table: str, then: str = "", /, **row: object) -> None:
    """Insert one row; `then` is what follows, such as ON CONFLICT."""
    values = ", ".join(f"%({name})s" for name in row)
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values}) {then}", row)  # noqa: S608


def update(connection: Connection, table: str, columns: Mapping[str, object], /, **where: object) -> int:
    """Change the rows whose columns equal `where`; return how many."""
    changed = ", ".join(f"{name} = %({name})s" for name in columns)
    found = " AND ".join(f"{name} = %(where_{name})s" for name in where)
    values = {**columns, **{f"where_{name}": value for name, value in where.items()}}
    return connection.execute(f"UPDATE {table} SET {changed} WHERE {found}", values).rowcount  # noqa: S608


def delete(connection: Connection, table: str, condition: str, **values: object) -> int:
    """Delete the rows of a table on that condition; return how many."""
    return connection.execute(f"DELETE FROM {table} WHERE {condition}", values).rowcount  # noqa: S608


def count(connection: Connection, table: str, condition: str, **values: object) -> int:
    """Return how many rows of a table there are on that condition."""
    row = connection.execute(f"SELECT count(*) AS n FROM {table} WHERE {condition}", values).fetchone()  # noqa: S608
    return int(row["n"]) if row else 0


def url(env: Environment) -> str:
    """Return the database's URL from POSTGRES_HOST and its sisters."""
    user, password = env["POSTGRES_USER"], env["POSTGRES_PASSWORD"]
    return f"postgresql://{user}:{password}@{env['POSTGRES_HOST']}:{env['POSTGRES_PORT']}/{env['POSTGRES_DB']}"


_skew = timedelta()


def set_clock(ahead_s: float) -> None:
    """Let this process's clock be so many seconds ahead of the true time."""
    global _skew
    _skew = timedelta(seconds=ahead_s)


def now() -> datetime:
    """Return the pod's time: the applications never use the database's clock."""
    return datetime.now(UTC) + _skew


class Database:
    """One connection, opened when it is needed and again after it broke.

    Who wants it while there is none waits for as long as the pool is patient; then it is NoConnectionError. A `part` of
    a pod tells the pod of it.
    """

    def __init__(self, url: str, part: str = "", schema: str = "public", patience_s: float = 0.0) -> None:
        self._url, self._part, self._schema, self._patience_s = url, part, schema, patience_s
        self._connection: Connection | None = None
        self._turn = threading.Lock()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Return the connection as soon as there is one; the caller handles all failures on it."""
        with self._turn:
            try:
                connection = self._wait_for_connection()
                self._report_use(active=1)
                yield connection
            finally:
                self._report_use()

    def _wait_for_connection(self) -> Connection:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return self._open_connection()
            except psycopg.Error as error:
                if time.monotonic() + _AGAIN_S > until:
                    telemetry.count("hikaricp_connections_timeout_total", pool=java.POOL)
                    raise java.NoConnectionError from error
                self._report_use(waiting=1)
                time.sleep(_AGAIN_S)

    def _open_connection(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._url)
            self._connection.execute(f"SET SESSION search_path TO '{self._schema}'")
        return self._connection

    def keep(self) -> None:
        """Open it again if the server has ended it; do nothing if it is in use, or if that fails now."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            with suppress(psycopg.Error):
                if self._connection is not None and not self._connection.closed:
                    with suppress(psycopg.Error):
                        self._connection.pgconn.consume_input()  # it shows whether the server has hung up
                    if self._connection.pgconn.status != psycopg.pq.ConnStatus.OK:
                        self._connection.close()
                self._open_connection()
        finally:
            self._turn.release()
        self._report_use()

    def _report_use(self, active: int = 0, waiting: int = 0) -> None:
        if self._part:
            there = self._connection is not None and not self._connection.closed
            telemetry.pool(self._part, int(there), active, waiting)


_pool: list[Database] = []  # of this process


def pooled(env: Environment, part: str) -> Database:
    """Return one connection of a pod's pool: there from the start, and again soon after the server has ended it."""
    driver = java.DRIVER.replace(" ", "%20")
    patience_s = float(env.get("SPRING_DATASOURCE_HIKARI_CONNECTION_TIMEOUT", "30000")) / 1000
    made = Database(f"{url(env)}?application_name={driver}", part, env["SERVICE"], patience_s)
    made.keep()
    if not _pool:
        threading.Thread(target=_keep_all, daemon=True).start()
    _pool.append(made)
    return made


def _keep_all() -> None:
    while True:
        time.sleep(_KEEP_S)
        for one in list(_pool):
            one.keep()
