"""One .sql file per question, grouped by topic, found by name ("notifications/backlog").

The header comment of each file says:

    -- question: what is asked, in one line
    -- index: the index that answers it, or "catalog", or "scan"
    -- cost: catalog | index | scan      (scan: goes through the cost gate first)
    -- answers: present | window         (present: only the state of this moment)

What an action asks and writes, on credentials of its own, has no such header: it is a `statement`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_HEADER = re.compile(r"^-- (question|index|cost|answers): *(.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Query:
    """A question's SQL with what its header says."""

    name: str
    sql: str
    question: str
    index: str
    cost: str
    answers: str


@cache
def query(name: str) -> Query:
    """The question of that name. Raises KeyError for a header that is not complete."""
    text = (_FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    head = dict(_HEADER.findall(text))
    body = "\n".join(line for line in text.splitlines() if not _HEADER.match(line)).strip().rstrip(";")
    return Query(name, body, head["question"], head["index"], head["cost"], head["answers"])


def names() -> list[str]:
    """Every question's name."""
    files = [p for p in _FOLDER.rglob("*.sql") if _HEADER.search(p.read_text(encoding="utf-8"))]
    return sorted(str(p.relative_to(_FOLDER).with_suffix("")) for p in files)


@cache
def statement(name: str) -> str:
    """What an action asks or writes; its parameters are the driver's own, `%(name)s`."""
    return (_FOLDER / f"{name}.sql").read_text(encoding="utf-8")
