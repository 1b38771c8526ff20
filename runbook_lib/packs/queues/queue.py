"""A queue: a table whose rows wait, are in work, and end; and the room's queries for its columns.

Where a table has no column for something, an expression says it, in which the table is called `q`:
`lease="q.started_on + q.expire_in"`. A state may be a condition as well: `waiting="q.locked_at IS NULL"`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from runbook_lib.book import queries
from runbook_lib.book.queries import Query

if TYPE_CHECKING:
    from psycopg import sql

_SQL = Path(__file__).parent / "sql"
#: A column in an expression.
_OWN = re.compile(r'\bq\.(?:"([^"]+)"|(\w+))')
#: What stands for a column that the table lacks.
_ABSENT = {
    "attempts": "CAST(NULL AS integer)",
    "error": "CAST(NULL AS text)",
    "owner": "CAST(NULL AS text)",
    "group": "CAST(NULL AS text)",
}
_NO_TIME = "CAST(NULL AS timestamptz)"
#: The columns that hold a time.
TIMES = ("created", "due", "started", "lease", "finished")
#: All columns but the key and the state.
COLUMNS = (*TIMES, "owner", "attempts", "error", "group")
#: What a state may mean.
STATES = ("waiting", "working", "done", "failed", "aside")
#: What is counted of a flow.
COUNTED = ("arrived", "succeeded", "failed")

#: The states that have a meaning, or the condition of it.
States = tuple[str | int, ...] | str


def own_columns(expression: str) -> list[str]:
    """Return the columns of `q` that an expression names; none if it is the name of a column."""
    return [quoted or plain for quoted, plain in _OWN.findall(expression)]


@dataclass(frozen=True)
class Events:
    """A second table, with a row for each thing that happened to a row of the queue, which tells of the flow.

    `kind` is the column that says what, `at` when; `arrived`, `succeeded` and `failed` are the kinds.
    """

    table: str
    kind: str
    at: str
    arrived: tuple[str, ...] = ()
    succeeded: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Queue:
    """A table and its columns, and the states of a row by what they mean.

    `created` is when a row was added, `due` from when on it may be taken, `started` when a worker took it, `lease`
    until when the worker has it, `finished` when it ended. Rows `aside` are nobody's to take. `attempts` counts a
    row's tries. `group` is the name of a row's queue, where one table has many. What is None, the table lacks: a step
    leaves out what it would say of it, or is UNKNOWN. Raises ValueError.
    """

    table: str
    id: str
    state: str | None
    waiting: States
    working: States = ()
    done: States = ()
    failed: States = ()
    aside: States = ()
    created: str | None = None
    due: str | None = None
    started: str | None = None
    lease: str | None = None
    finished: str | None = None
    owner: str | None = None
    attempts: str | None = None
    error: str | None = None
    group: str | None = None
    deleted_when_done: bool = False
    """Whether a success removes the row."""
    events: Events | None = None

    def __post_init__(self) -> None:
        if not self.waiting:
            raise ValueError(f"{self.table}: 'waiting' names no state: name at least one in which a row waits")
        if self.done and self.deleted_when_done:
            raise ValueError(
                f"{self.table}: a row that is deleted when it is done has no state for it: leave out 'done'"
            )
        named, conditions = self.states, self._conditions
        if named and self.state is None:
            raise ValueError(f"{self.table}: '{named[0]}' is a state, and no column has it: name it as 'state'")
        if twice := sorted({s for s in named if named.count(s) > 1}):
            raise ValueError(f"{self.table}: the state '{twice[0]}' has two meanings: name it once")
        if odd := next((n for n in (self.table, *self.columns.values(), *named, *conditions) if ":" in n), None):
            raise ValueError(
                f"{self.table}: '{odd}' has a ':', which names a parameter of a query: write CAST(... AS ...)"
            )
        if odd := next((c for c in conditions if not own_columns(c)), None):
            raise ValueError(f"{self.table}: '{odd}' is no condition of a column: write q.column, or a tuple of states")

    @property
    def states(self) -> list[str]:
        """The states that have a meaning."""
        groups = [getattr(self, group) for group in STATES]
        return [str(s) for group in groups if not isinstance(group, str) for s in group]

    @property
    def _conditions(self) -> list[str]:
        return [group for group in (getattr(self, name) for name in STATES) if isinstance(group, str)]

    @property
    def columns(self) -> dict[str, str]:
        """The columns and expressions that the table has, by what they are."""
        found = {name: getattr(self, name) for name in ("id", "state", *COLUMNS)}
        return {name: column for name, column in found.items() if column is not None}

    @property
    def names(self) -> list[str]:
        """The columns that the table has to have, also those that an expression or a condition names."""
        found = {n for c in (*self.columns.values(), *self._conditions) for n in own_columns(c) or [c]}
        return sorted(found)

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
        """Return whether the table, or that of its events, tells when rows arrived, succeeded or failed."""
        if self.events:
            return bool(getattr(self.events, what))
        return bool(
            {
                "arrived": self.created,
                "succeeded": self.done and self.finished,
                "failed": self.failed and (self.finished or self.started),
            }[what]
        )

    def fill(self, query: Query) -> Query:
        """Return a query whose {placeholders} are this table, its columns, and the conditions of its states."""
        from psycopg import sql

        named = {name: self._column(name) for name in ("id", *COLUMNS)}
        named |= {group: self._condition(group) for group in STATES}
        named |= {"state": self._state(named), "table": _table(self.table)}
        named["happened"] = sql.SQL(_EVENTS if self.events else _OWN_FLOW).format(**named, **self._kinds())
        return replace(query, sql=sql.SQL(query.sql).format(**named).as_string())

    def _column(self, name: str) -> sql.Composable:
        from psycopg import sql

        return _expression(self.columns[name]) if name in self.columns else sql.SQL(_ABSENT.get(name, _NO_TIME))

    def _condition(self, group: str) -> sql.Composable:
        from psycopg import sql

        states: States = getattr(self, group)
        if isinstance(states, str):
            return sql.SQL("({})").format(sql.SQL(states))
        if not states or self.state is None:
            return sql.SQL("false")
        return sql.SQL("{} IN ({})").format(_expression(self.state), _literals(states))

    def _state(self, conditions: dict[str, sql.Composable]) -> sql.Composable:
        """Return the state of a row; of a table without a column for it, what it means."""
        from psycopg import sql

        if self.state is not None:
            return _expression(self.state)
        cases = [sql.SQL("WHEN {} THEN {}").format(conditions[group], sql.Literal(group)) for group in STATES]
        return sql.SQL("CASE {} END").format(sql.SQL(" ").join(cases))

    def _kinds(self) -> dict[str, sql.Composable]:
        """Return what the query of the events needs besides."""
        from psycopg import sql

        if self.events is None:
            return {}
        kinds = {f"{what}_kinds": _literals(getattr(self.events, what)) for what in COUNTED}
        return kinds | {
            "events": _table(self.events.table),
            "kind": sql.Identifier(self.events.kind),
            "at": sql.Identifier(self.events.at),
        }

    def query(self, name: str) -> Query:
        """Return a query of this room, such as "backlog", for this table. Raises KeyError."""
        return _filled(self, name)


#: What happened to rows, and when: a query for {happened}.
_OWN_FLOW = """
    SELECT {created} AS at, 'arrived' AS what FROM {table} q
    UNION ALL
    SELECT {finished}, 'succeeded' FROM {table} q WHERE {done}
    UNION ALL
    SELECT coalesce({finished}, {started}), 'failed' FROM {table} q WHERE {failed}
"""
_EVENTS = """
    SELECT
        e.{at} AS at,
        CASE WHEN e.{kind} IN ({arrived_kinds}) THEN 'arrived'
            WHEN e.{kind} IN ({succeeded_kinds}) THEN 'succeeded'
            WHEN e.{kind} IN ({failed_kinds}) THEN 'failed' END AS what
    FROM {events} e
"""


def _table(name: str) -> sql.Identifier:
    from psycopg import sql

    return sql.Identifier(*name.split("."))


def _expression(column: str) -> sql.Composable:
    """Return a column of `q`, quoted, or an expression as it is."""
    from psycopg import sql

    if own_columns(column):
        return sql.SQL("({})").format(sql.SQL(column))
    return sql.SQL("q.{}").format(sql.Identifier(column))


def _literals(values: tuple[str | int, ...]) -> sql.Composable:
    """Return a list of literals; one without a type is read as the column's: text, a number, a member of an enum."""
    from psycopg import sql

    return sql.SQL(", ").join([sql.Literal(str(v)) for v in values]) if values else sql.SQL("NULL")


@cache
def _filled(queue: Queue, name: str) -> Query:
    template = room_query(name)
    return queue.fill(template) if queries.PLACEHOLDER.search(template.sql) else template


def room_query(name: str) -> Query:
    """Return a query of this room as its file has it. Raises KeyError."""
    return queries.read(f"queues/{name}", _SQL / "queues" / f"{name}.sql")
