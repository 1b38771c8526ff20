"""A queue: a table whose rows wait, are in work, and end; and the room's queries for its columns."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from runbook_lib.book import queries
from runbook_lib.book.queries import Query

if TYPE_CHECKING:
    from psycopg import sql

_SQL = Path(__file__).parent / "sql"
#: What stands for a column that the table lacks.
_ABSENT = {
    "attempts": "CAST(NULL AS integer)",
    "error": "CAST(NULL AS text)",
    "owner": "CAST(NULL AS text)",
}
_NO_TIME = "CAST(NULL AS timestamptz)"
#: The columns that hold a time.
TIMES = ("created", "due", "started", "lease", "finished")
#: The groups of states.
STATES = ("waiting", "working", "done", "failed", "aside")
#: What is counted of a flow.
COUNTED = ("arrived", "succeeded", "failed")


@dataclass(frozen=True)
class Queue:
    """A table and its columns, and the states of a row by what they mean.

    `created` is when a row was added, `due` from when on it may be taken, `started` when a worker took it, `lease`
    until when the worker has it, `finished` when it ended. Rows `aside` are nobody's to take. `attempts` counts a
    row's tries. What is None, the table lacks: a step leaves out what it would say of it, or is UNKNOWN. Raises
    ValueError.
    """

    table: str
    id: str
    state: str
    waiting: tuple[str | int, ...]
    working: tuple[str | int, ...] = ()
    done: tuple[str | int, ...] = ()
    failed: tuple[str | int, ...] = ()
    aside: tuple[str | int, ...] = ()
    created: str | None = None
    due: str | None = None
    started: str | None = None
    lease: str | None = None
    finished: str | None = None
    owner: str | None = None
    attempts: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if not self.waiting:
            raise ValueError(f"{self.table}: 'waiting' names no state: name at least one in which a row waits")
        named = [str(s) for group in STATES for s in getattr(self, group)]
        if twice := sorted({s for s in named if named.count(s) > 1}):
            raise ValueError(f"{self.table}: the state '{twice[0]}' has two meanings: name it once")
        if odd := next((n for n in (self.table, *self.columns.values(), *named) if ":" in n), None):
            raise ValueError(f"{self.table}: '{odd}' has a ':', which names a parameter of a query")

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the table has, by what they are."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("table", *STATES)}
        return {name: column for name, column in found.items() if column is not None}

    @property
    def regclass(self) -> str:
        """The table as to_regclass() takes it."""
        from psycopg import sql

        return sql.Identifier(*self.table.split(".")).as_string()

    @property
    def schemas(self) -> list[str] | None:
        """The table's schema; None if it is found by the search path."""
        return [self.table.split(".")[0]] if "." in self.table else None

    def tells(self, what: str) -> bool:
        """Return whether the table tells when rows arrived, succeeded or failed."""
        return bool(
            {
                "arrived": self.created,
                "succeeded": self.done and self.finished,
                "failed": self.failed and (self.finished or self.started),
            }[what]
        )

    def fill(self, query: Query) -> Query:
        """Return a query whose {placeholders} are this table, its columns and its states, quoted."""
        from psycopg import sql

        def column(name: str) -> sql.Composable:
            if name in self.columns:
                return sql.Identifier(self.columns[name])
            return sql.SQL(_ABSENT.get(name, _NO_TIME))

        def states(group: str) -> sql.Composable:
            # A literal without a type is read as one of the column's: text, a number or a member of an enum.
            values: list[sql.Composable] = [sql.Literal(str(s)) for s in getattr(self, group)]
            return sql.SQL(", ").join(values or [sql.SQL("NULL")])

        named = {f.name: column(f.name) for f in fields(self) if f.name not in ("table", *STATES)}
        named |= {group: states(group) for group in STATES} | {"table": sql.Identifier(*self.table.split("."))}
        text = sql.SQL(query.sql).format(**named)
        return replace(query, sql=text.as_string())

    def query(self, name: str) -> Query:
        """Return a query of this room, such as "backlog", for this table. Raises KeyError."""
        return _filled(self, name)


@cache
def _filled(queue: Queue, name: str) -> Query:
    template = room_query(name)
    return queue.fill(template) if queries.PLACEHOLDER.search(template.sql) else template


def room_query(name: str) -> Query:
    """Return a query of this room as its file has it. Raises KeyError."""
    return queries.read(f"queues/{name}", _SQL / "queues" / f"{name}.sql")
