"""Which table of a database is a queue, and what its columns are: by the catalog alone, by names and types.

What cannot be decided is a `Missing`: whoever asked names it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runbook_lib.model import rows
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.postgres import Postgres
from runbook_lib.sources.settings import Budget
from runbook_lib.sources.source import ReadCost, SourceError

from .queue import COLUMNS, STATES, TIMES, own_columns, room_query

#: The usual names of columns and states.
_USUAL = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))
NAMES, MEANINGS = ({role: names.split() for role, names in _USUAL[kind].items()} for kind in ("columns", "states"))
_NUMBERS = ("smallint", "integer", "bigint")
_TEXTS = ("text", "character varying", "character", "name")
_ADDRESS = "RUNBOOK_DATABASE_URL"


class CatalogColumn(rows.Row, query="queues/tables"):
    """A column of a table that has a time; `labels`, `common` have a value in each line."""

    schema: str = ""
    table: str = ""
    column: str = ""
    type: str = ""
    labels: str = ""
    checks: str = ""
    is_key: bool = False
    common: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """The few values that it may have: of its enum, of its check, else those that the statistics know."""
        if self.labels:
            return tuple(self.labels.split("\n"))
        checked = re.findall(r"'((?:[^']|'')*)'", self.checks) or re.findall(r"(?<![\w.])\d+(?![\w.])", self.checks)
        return tuple(dict.fromkeys(checked)) or tuple(sorted(filter(None, self.common.split("\n"))))


Table = dict[str, CatalogColumn]


class Missing(UsageError):
    """Something that the catalog does not decide: the option that says it, and the choices, if any are known."""

    def __init__(self, option: str, choices: Iterable[str], why: str) -> None:
        self.option, self.choices = option, tuple(choices)
        among = f" ({', '.join(self.choices)})" if self.choices else ""
        super().__init__(f"{why}: name it with --{option}{among}")


@dataclass
class Proposed:
    """The roles of a `Queue` with their values; what it left out, and why."""

    roles: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def read_tables(url: str) -> dict[str, Table]:
    """Return the columns of each table that has a time, by its name. Raises UsageError."""
    source = Postgres(url, "runbook/new", Budget(max_rows=5000), ReadCost(Masker.of([url], "new")))
    try:
        with source.snapshot() as db:
            columns = rows.each(db.ask(room_query("tables")), CatalogColumn)
    except SourceError as e:
        raise UsageError(f"{_ADDRESS}: {e.detail}") from None
    finally:
        source.close()
    tables: dict[str, Table] = {}
    for column in columns:
        tables.setdefault(f"{column.schema}.{column.table}", {})[column.column] = column
    return tables


def propose(tables: Mapping[str, Table], given: Mapping[str, str]) -> Proposed:
    """Return the table and its columns, those of `given` before all others; "-" is none.

    Raises Missing for what it cannot decide, UsageError for a name that is not there.
    """
    name = given.get("table") or _only_queue(tables)
    name = name if name in tables or "." in name else f"public.{name}"
    if name not in tables:
        raise UsageError(
            f"--table: there is no table {name} with a time among its columns, or this role may not see it"
        )
    table, found = tables[name], Proposed({"table": name})
    keys = [c.column for c in table.values() if c.is_key]
    found.roles["id"] = _named(table, given["id"], "id") if "id" in given else _only(keys, "id", table)
    _sort_states(table, given, found)
    for role in COLUMNS:
        column = _named(table, given[role], role) if role in given else _find(table, role)
        if column:
            found.roles[role] = column
        else:
            found.left[role] = "no column"
    said = [*found.roles.values()]
    taken = {name for value in said if isinstance(value, str) for name in own_columns(value) or [value]}
    found.left |= {column: "no role" for column in table if column not in taken}
    return found


def _only_queue(tables: Mapping[str, Table]) -> str:
    likely = [name for name, table in tables.items() if _looks_like_a_queue(table)]
    if len(likely) == 1:
        return likely[0]
    raise Missing(
        "table", likely or tables, "several tables may be the queue" if likely else "no table is surely a queue"
    )


def _looks_like_a_queue(table: Table) -> bool:
    """Return whether a table has a state, and something that only what is worked off has."""
    roles = [role for role in ("due", "started", "lease", "owner", "attempts") if _find(table, role)]
    meant = {v.lower() for c in _state_columns(table) for v in table[c].values}
    return bool(_state_columns(table)) and bool(roles or meant & {*MEANINGS["waiting"]})


def _state_columns(table: Table) -> list[str]:
    """Return the columns that may be the state: one that is called so, else those with few values."""
    fits = [c.column for c in table.values() if c.labels or c.type in (*_TEXTS, *_NUMBERS)]
    named = [name for name in NAMES["state"] if name in fits]
    return named[:1] or [c for c in fits if table[c].labels or (table[c].checks and table[c].values)]


def _find(table: Table, role: str) -> str | None:
    """Return the column with the likeliest of the usual names and a type that fits; None if there is none."""
    return next((n for n in NAMES[role] if n in table and _fits(table[n], role)), None)


def _fits(column: CatalogColumn, role: str) -> bool:
    if role in TIMES:
        return column.type.startswith("timestamp")
    return role != "attempts" or column.type in _NUMBERS


def _sort_states(table: Table, given: Mapping[str, str], found: Proposed) -> None:
    """Find the column with the state, and what its values mean; or take the conditions that somebody gave."""
    conditions = {g: given[g] for g in STATES if own_columns(given.get(g, ""))}
    for group, condition in conditions.items():
        found.roles[group] = _named(table, condition, group)
    if conditions and "state" not in given:
        found.left |= {group: "no state" for group in STATES if group not in conditions and group != "aside"}
        return
    states = [_named(table, given["state"], "state")] if "state" in given else _state_columns(table)
    found.roles["state"] = _only(states, "state", table)
    column = table.get(states[0], CatalogColumn())
    named = {v.strip() for g in STATES for v in given.get(g, "").split(",")}
    for group in [g for g in STATES if g not in conditions]:
        if group in given:
            values = tuple(v.strip() for v in given[group].split(",") if v.strip() not in ("", "-"))
        else:
            values = tuple(v for v in column.values if _means(v.lower().replace("-", "_"), group) and v not in named)
        if values:
            found.roles[group] = values
        elif group in ("waiting", "working") and group not in given:
            raise Missing(group, column.values, f"which values of {column.column} mean '{group}' is not known")
        elif group != "aside":
            found.left[group] = "no state"
    meant = {v for group in STATES if group not in conditions for v in found.roles.get(group, ())}
    if unknown := [v for v in column.values if v not in meant and not conditions]:
        raise UsageError(
            f"what {column.column} means by {', '.join(unknown)} is not known, and nobody would count such rows: name "
            f"each with {', '.join(f'--{group}' for group in STATES)}"
        )


def _means(value: str, group: str) -> bool:
    """Return whether a state is usually called so; what is being done is in work."""
    usual = {g: value in names for g, names in MEANINGS.items()}
    return usual[group] or (group == "working" and value.endswith("ing") and not any(usual.values()))


def _named(table: Table, name: str, role: str) -> str:
    """Return a column that somebody named, "" for "-". Raises UsageError for one that the table lacks."""
    if name == "-":
        return ""
    if missing := [n for n in own_columns(name) if n not in table]:
        raise UsageError(f"--{role}: the table has no column {missing[0]} ({', '.join(table)})")
    if own_columns(name):
        return name
    if name not in table:
        raise UsageError(f"--{role}: the table has no column {name} ({', '.join(table)})")
    if not _fits(table[name], role):
        raise UsageError(f"--{role}: {name} is of the type {table[name].type}")
    return name


def _only(names: list[str], option: str, table: Table) -> str:
    if len(names) == 1 and names[0]:
        return names[0]
    raise Missing(option, names or table, f"which column is the {option} is not known")
