"""Queries: one .sql file each, grouped by topic, found by name ("queue/backlog") in the packs' sql folders.

The header comment of each file says:

    -- question: the purpose, in one line
    -- index: the index that it uses, or "catalog", or "scan"
    -- cost: catalog | index | scan      (scan: goes through the cost gate first)
    -- answers: present | window         (present: it can only read the present state)
    -- continued in: topic/name          (queries with the same end: the file that has the rest)

A query of a room may have `{placeholders}` for a table and its columns. It is asked by no name: the room fills it
(`runbook_lib/packs/queues/queue.py`), and `Check.queries` has the result.

The columns that a judge reads are the fields of its kind of row (`runbook_lib/model/rows.py`). The statements of an
action, which has credentials of its own, have no such header: see `statement`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runbook_lib.book import pack

_HEADER = re.compile(r"^-- (question|index|cost|answers): *(.+?) *$", re.MULTILINE)
#: A name that a room fills in, such as {table}.
PLACEHOLDER = re.compile(r"\{[a-z]+\}")
_CONTINUED = re.compile(r"^-- continued in: *(\S+) *$", re.MULTILINE)


@dataclass(frozen=True)
class Query:
    """A query's SQL and its header."""

    name: str
    sql: str
    question: str
    index: str
    cost: str
    answers: str


def query(name: str) -> Query:
    """Return the query of that name. Raises KeyError for an unknown name or an incomplete header."""
    return read(name, pack.active_runbook().find("sql", f"{name}.sql"))


@cache
def read(name: str, file: Path) -> Query:
    """Return the query in a file. Raises KeyError for an incomplete header."""
    text = file.read_text(encoding="utf-8")
    for rest in _CONTINUED.findall(text):
        text += statement(rest)
    head = dict(_HEADER.findall(text))
    body = "\n".join(line for line in text.splitlines() if not _HEADER.match(line))
    sql = body.strip().rstrip(";")
    return Query(name, sql, head["question"], head["index"], head["cost"], head["answers"])


def names() -> list[str]:
    """Return the name of every query."""
    folders = [p.folder / "sql" for p in pack.active_runbook().packs]
    return sorted(
        str(file.relative_to(folder).with_suffix(""))
        for folder in folders
        for file in folder.rglob("*.sql")
        if _HEADER.search(text := file.read_text(encoding="utf-8")) and not PLACEHOLDER.search(text)
    )


def statement(name: str) -> str:
    """Return the SQL of an action; its parameters are the driver's own, `%(name)s`. Raises KeyError."""
    return _read_text(pack.active_runbook().find("sql", f"{name}.sql"))


@cache
def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
