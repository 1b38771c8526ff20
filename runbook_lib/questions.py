"""One .sql file per question, grouped by topic, found by name ("queue/backlog") in the packs' sql folders.

The header comment of each file says:

    -- question: what is asked, in one line
    -- index: the index that answers it, or "catalog", or "scan"
    -- cost: catalog | index | scan      (scan: goes through the cost gate first)
    -- answers: present | window         (present: only the state of this moment)
    -- column: name unit                 (a line for each column of the answer, in its order)
    -- continued in: topic/name          (where several questions end alike: the file that has the rest, columns too)

Units are those of a `Value` (rows, s, 1/min, ratio, bytes), or number, text, id, time (UTC), flag. What an action
asks and writes, on credentials of its own, has no such header: it is a `statement`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runbook_lib import pack

_HEADER = re.compile(r"^-- (question|index|cost|answers): *(.+?) *$", re.MULTILINE)
_COLUMN = re.compile(r"^-- column: *(\S+) +(\S+) *$", re.MULTILINE)
_CONTINUED = re.compile(r"^-- continued in: *(\S+) *$", re.MULTILINE)


@dataclass(frozen=True)
class Query:
    """A question's SQL with what its header says; `columns` are the units of the answer's columns by name."""

    name: str
    sql: str
    question: str
    index: str
    cost: str
    answers: str
    columns: dict[str, str]


def query(name: str) -> Query:
    """The question of that name. Raises KeyError for one that no pack has, or a header that is not complete."""
    return _query(name, pack.in_force().find("sql", f"{name}.sql"))


@cache
def _query(name: str, file: Path) -> Query:
    text = file.read_text(encoding="utf-8")
    for rest in _CONTINUED.findall(text):
        text += statement(rest)
    head, columns = dict(_HEADER.findall(text)), dict(_COLUMN.findall(text))
    body = "\n".join(line for line in text.splitlines() if not (_HEADER.match(line) or _COLUMN.match(line)))
    return Query(
        name, body.strip().rstrip(";"), head["question"], head["index"], head["cost"], head["answers"], columns
    )


def names() -> list[str]:
    """Every question's name."""
    folders = [p.folder / "sql" for p in pack.in_force().packs]
    return sorted(
        str(file.relative_to(folder).with_suffix(""))
        for folder in folders
        for file in folder.rglob("*.sql")
        if _HEADER.search(file.read_text(encoding="utf-8"))
    )


def statement(name: str) -> str:
    """What an action asks or writes; its parameters are the driver's own, `%(name)s`. Raises KeyError."""
    return _text(pack.in_force().find("sql", f"{name}.sql"))


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
