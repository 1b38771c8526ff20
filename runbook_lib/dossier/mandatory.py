"""The mandatory items of a postmortem: parse and check the record in its draft's front matter.

There are four items, as the section of the postmortem in docs/runbook.md has them.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from annotated_types import Predicate
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from runbook_lib.model.finding import Text, say

if TYPE_CHECKING:
    from runbook_lib.book.catalog import Catalog

MARKDOWN = "postmortem.md"
MEASURE = ("kind", "measure", "owner", "due", "whole")

_BOUNDARY = re.compile(r"^---[ \t]*$", re.MULTILINE)
_DONE = re.compile(r"\s*(\d{4}-\d\d-\d\d|yes\b|true\b)", re.IGNORECASE)
_OPEN = r"(?-i:\bTODO\b|\bTBD\b)|to be filled in|^null$|要記入|未記入|未定"  # Todo is a name, too


def _count_missing(row: Any) -> int:
    try:
        Measure.model_validate(row)
    except ValidationError as e:
        return e.error_count()
    return 0


#: Full-width characters are accepted.
_NARROW = BeforeValidator(lambda v: unicodedata.normalize("NFKC", v) if isinstance(v, str) else v)
FilledIn = Annotated[str, Predicate(lambda t: bool(re.search(r"\w", t)) and not re.search(_OPEN, t, re.IGNORECASE))]
Amount = Annotated[float, _NARROW, Field(ge=0, allow_inf_nan=False)]


class Unmeasurable(BaseModel):
    """The reason why a value cannot be measured."""

    not_measurable: FilledIn


class ObjectiveImpact(BaseModel):
    """The impact on an objective: minutes in breach, bad events of a total, rows at the peak."""

    model_config = ConfigDict(extra="forbid")
    minutes: Amount | None = None
    bad: Amount | None = None
    total: Amount | None = None
    peak: Amount | None = None


class TimelineEntry(BaseModel):
    """One line of the timeline, in UTC."""

    time: Annotated[datetime, _NARROW]
    what: FilledIn


class Timeline(BaseModel):
    """The times to detect and to recover, in seconds, and the events with their times."""

    ttd_seconds: Amount | Unmeasurable
    ttr_seconds: Amount | Unmeasurable
    entries: list[TimelineEntry] = Field(min_length=1)


class Measure(BaseModel):
    """A permanent measure, with its owner and due date."""

    kind: Literal["measure", "control", "design"]
    measure: FilledIn
    owner: FilledIn
    due: Annotated[date, _NARROW]


class IncidentRecord(BaseModel):
    """The four mandatory items, in the order of the section's steps; one objective and one measure are enough.

    Validation needs the catalog as pydantic's context, for the objectives and the failure modes.
    """

    impact: dict[str, ObjectiveImpact | Unmeasurable] = Field(min_length=1)
    origin: str
    timeline: Timeline
    measures: list[Measure] = Field(min_length=1)

    @field_validator("impact", mode="before")
    @classmethod
    def _drop_empty(cls, hits: Any, info: ValidationInfo[Catalog]) -> Any:
        return {slo: hits[slo] for slo in info.context.slos if hits.get(slo)} if isinstance(hits, dict) else hits

    @field_validator("origin")
    @classmethod
    def _check_mode(cls, id_: str, info: ValidationInfo[Catalog]) -> str:
        if id_ not in info.context.failure_modes:
            raise ValueError(id_)
        return id_

    @field_validator("measures", mode="before")
    @classmethod
    def _keep_most_complete(cls, rows: Any) -> Any:
        return sorted(rows, key=_count_missing)[:1] if isinstance(rows, list) else rows


@dataclass(frozen=True)
class MissingItem:
    """A mandatory item that is missing or invalid, and its problem."""

    number: int
    item: str
    problem: Text


def split_draft(draft: str) -> tuple[str, str]:
    """Return a draft's front matter, "" if it has none, and its text."""
    before, *parts = _BOUNDARY.split(draft.replace("\r\n", "\n"), maxsplit=2)
    return (parts[0], parts[1]) if len(parts) == 2 and not before.strip("\ufeff\n ") else ("", draft)


def parse_record(draft: str) -> dict[str, Any]:
    """Return the data of a draft's front matter, all values as text; if it is unreadable, each item's line number."""
    front, _ = split_draft(draft)
    try:
        data = yaml.load(front, Loader=yaml.BaseLoader)  # noqa: S506 - it makes only text
    except yaml.YAMLError as e:
        line = 1 + getattr(getattr(e, "problem_mark", None), "line", 0)
        return dict.fromkeys(re.findall(r"^(\w+):", front, re.MULTILINE), line)
    return data if isinstance(data, dict) else {}


def missing(draft: str, book: Catalog) -> list[MissingItem]:
    """Return the mandatory items that a postmortem lacks; [] if it is complete."""
    record = parse_record(draft)
    lacking: dict[str, list[str]] = {}
    try:
        IncidentRecord.model_validate(record, context=book)
    except ValidationError as e:
        for item, *inside in (error["loc"] for error in e.errors()):
            lacking.setdefault(str(item), []).extend([n for n in inside if isinstance(n, str)][:1])
    order = [*IncidentRecord.model_fields]
    return [
        MissingItem(order.index(item) + 1, item, _describe_problem(item, record.get(item), lacking[item]))
        for item in lacking
    ]


def _describe_problem(item: str, value: Any, names: list[str]) -> Text:
    if value is None:
        return say("postmortem.missing.block", item=item)
    if isinstance(value, int):
        return say("postmortem.missing.unreadable", line=value)
    return say(f"postmortem.missing.{item}", names=", ".join(dict.fromkeys(names)) or None, said=str(value) or None)


def measures_of(draft: str) -> list[dict[str, Any]]:
    """Return the measures of a draft that have an owner or a due date.

    `whole`: it has every mandatory field, `done`: it has a date or "yes" there.
    """
    rows = parse_record(draft).get("measures")
    return [
        {name: str(r.get(name) or "") for name in Measure.model_fields}
        | {"whole": not _count_missing(r), "done": bool(_DONE.match(unicodedata.normalize("NFKC", str(r.get("done")))))}
        for r in (rows if isinstance(rows, list) else ())
        if isinstance(r, dict) and (r.get("owner") or r.get("due"))
    ]
