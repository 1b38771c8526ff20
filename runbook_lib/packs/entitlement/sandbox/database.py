"""The pod's connections to PostgreSQL: a fixed pool, of which each part keeps the one that it uses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import psycopg
from psycopg.rows import DictRow, dict_row

from . import java, telemetry
from .settings import Environment

Connection = psycopg.Connection[DictRow]

#: Between two tries to connect while somebody waits, and between two looks at what nobody uses.
_AGAIN_S, _KEEP_S = 0.5, 1.0


def connect(url: str) -> Connection:
    """An autocommitting connection whose rows are dicts; what belongs together opens a transaction itself."""
    return psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=5)


def url(env: Environment) -> str:
    """From POSTGRES_HOST and its sisters."""
    user, password = env["POSTGRES_USER"], env["POSTGRES_PASSWORD"]
    return f"postgresql://{user}:{password}@{env['POSTGRES_HOST']}:{env['POSTGRES_PORT']}/{env['POSTGRES_DB']}"


_skew = timedelta()


def set_clock(ahead_s: float) -> None:
    """Let this process's clock be so many seconds ahead of the true time."""
    global _skew
    _skew = timedelta(seconds=ahead_s)


def now() -> datetime:
    """The pod's clock: the applications never ask the database what time it is."""
    return datetime.now(UTC) + _skew


class Database:
    """A connection that is opened when first needed and again after it broke."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self._turn = threading.Lock()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The connection; whatever fails on it is the caller's to handle."""
        with self._turn:
            yield self._borrow()

    def _borrow(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._url)
        return self._connection


class Pooled(Database):
    """One connection of a pod's pool: there from the start, and again soon after the server has ended it.

    Who wants one while there is none waits for as long as the pool is patient; then it is NoConnectionError.
    """

    _all: ClassVar[list[Pooled]] = []  # of this process

    def __init__(self, env: Environment, name: str) -> None:
        super().__init__(f"{url(env)}?application_name={java.DRIVER.replace(' ', '%20')}")
        self._name, self._schema = name, env["SERVICE"]
        self._patience_s = float(env.get("SPRING_DATASOURCE_HIKARI_CONNECTION_TIMEOUT", "30000")) / 1000
        self._keep()
        if not self._all:
            threading.Thread(target=self._keep_all, daemon=True).start()
        self._all.append(self)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The connection, as soon as there is one."""
        try:
            with super().connection() as connection:
                self._tell(active=1)
                yield connection
        finally:
            self._tell()

    def wait(self) -> None:
        """Return when there is one, as `connection` would."""
        with self.connection():
            pass

    def _borrow(self) -> Connection:
        until = time.monotonic() + self._patience_s
        while self._connection is None or self._connection.closed:
            try:
                self._open()
            except psycopg.Error as error:
                if time.monotonic() + _AGAIN_S > until:
                    telemetry.count("hikaricp_connections_timeout_total", pool=java.POOL)
                    raise java.NoConnectionError from error
                self._tell(waiting=1)
                time.sleep(_AGAIN_S)
        return self._connection

    def _open(self) -> None:
        self._connection = connect(self._url)
        self._connection.execute(f"SET SESSION search_path TO '{self._schema}'")

    @classmethod
    def _keep_all(cls) -> None:
        while True:
            time.sleep(_KEEP_S)
            for one in list(cls._all):
                one._keep()

    def _keep(self) -> None:
        """Have it open again where the server has ended it; nothing where it is in use, or that does not work now."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            with suppress(psycopg.Error):
                if self._connection is not None and not self._connection.closed:
                    with suppress(psycopg.Error):
                        self._connection.pgconn.consume_input()  # it shows whether the server has hung up
                    if self._connection.pgconn.status != psycopg.pq.ConnStatus.OK:
                        self._connection.close()
                if self._connection is None or self._connection.closed:
                    self._open()
        finally:
            self._turn.release()
        self._tell()

    def _tell(self, active: int = 0, waiting: int = 0) -> None:
        there = self._connection is not None and not self._connection.closed
        telemetry.pool(self._name, int(there), active, waiting)
