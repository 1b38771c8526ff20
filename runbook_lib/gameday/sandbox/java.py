"""The error texts of the reference system: the exceptions of its runtime, by name and with their causes."""

from __future__ import annotations

import re
from pathlib import Path

import nats.errors
import psycopg

#: Its pool of connections: fixed, and the same for every service.
POOL, POOL_SIZE = "HikariPool-1", 10
DRIVER = "PostgreSQL JDBC Driver"

_SPRING = "org.springframework."
#: What a statement that the database refuses becomes, by the beginning of its SQLSTATE; the longest one counts.
_BY_STATE = {
    "": f"{_SPRING}jdbc.UncategorizedSQLException",
    "08": f"{_SPRING}dao.DataAccessResourceFailureException",
    "23": f"{_SPRING}dao.DataIntegrityViolationException",
    "23505": f"{_SPRING}dao.DuplicateKeyException",
    "40001": f"{_SPRING}dao.CannotSerializeTransactionException",
    "40P01": f"{_SPRING}dao.CannotAcquireLockException",
    "42": f"{_SPRING}jdbc.BadSqlGrammarException",
    "53": f"{_SPRING}dao.DataAccessResourceFailureException",
    "55P03": f"{_SPRING}dao.CannotAcquireLockException",
    "57": f"{_SPRING}dao.DataAccessResourceFailureException",
}


class NoConnectionError(psycopg.OperationalError):
    """The pool had no connection to give, for the cause that it was raised from."""

    def __init__(self) -> None:
        super().__init__("Failed to obtain JDBC Connection")


class StartError(Exception):
    """The application's context does not start."""


def chain(error: BaseException) -> list[tuple[str, str]]:
    """Return the exception and its causes as the reference system writes them: class and text."""
    if isinstance(error, NoConnectionError):
        above = (f"{_SPRING}jdbc.CannotGetJdbcConnectionException", str(error))
        return [above, *(chain(error.__cause__)[-1:] if error.__cause__ else [])]
    if isinstance(error, psycopg.Error):
        state = error.sqlstate or ""
        kind = _BY_STATE[max((s for s in _BY_STATE if state.startswith(s)), key=len)]
        said = _server_sentence(error)
        return [
            (kind, f"PreparedStatementCallback; SQL state [{state}]; error code [0]; {said}"),
            ("org.postgresql.util.PSQLException", said),
        ]
    if isinstance(error, ConnectionRefusedError | nats.errors.NoServersError):
        return [("java.net.ConnectException", "Connection refused")]
    if isinstance(error, StartError):
        caused = chain(error.__cause__) if error.__cause__ else []
        return [(f"{_SPRING}beans.factory.BeanCreationException", str(error)), *caused]
    return [("java.lang.IllegalStateException", str(error) or type(error).__name__)]


def name(error: BaseException) -> str:
    """Return the simple name of the exception's class, as a metric's label has it."""
    return chain(error)[0][0].rpartition(".")[2]


#: Of a cause, and of the exception that the application sees: about five kilobytes, as the reference system writes.
_CAUSE, _OUTER = (part.splitlines() for part in Path(__file__).with_name("frames.txt").read_text().split("\n\n"))


def stack(error: BaseException) -> str:
    """Return an exception's stack trace, as Logback writes it."""
    lines = []
    for n, (kind, text) in enumerate(chain(error)):
        lines.append(f"{'Caused by: ' if n else ''}{kind}: {text}")
        lines += [f"\tat {frame}" for frame in (_CAUSE if n else _OUTER)]
        lines += [f"\t... {len(_OUTER) - 4} common frames omitted"] if n else []
    return "\n".join(lines)


def _server_sentence(error: psycopg.Error) -> str:
    """Return the server's own sentence with its severity; "" for a broken connection."""
    found = re.search(r"(FATAL|ERROR):\s+(.+)", str(error))
    if found:
        return f"{found[1]}: {found[2]}"
    first = next(iter(str(error).splitlines()), "")
    if error.sqlstate:
        return f"ERROR: {first}"
    refused = "refused" in first
    return "Connection to the database refused" if refused else "An I/O error occurred while sending to the backend."
