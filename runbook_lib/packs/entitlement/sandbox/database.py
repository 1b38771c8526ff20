"""The one connection that a worker keeps to PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg.rows import DictRow, dict_row

from .settings import Environment

Connection = psycopg.Connection[DictRow]


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

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The connection; whatever fails on it is the caller's to handle."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._url)
        yield self._connection
