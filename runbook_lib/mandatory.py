"""What a postmortem must hold: the record that a person confirms or fills in, read from its draft's YAML.

Four items, those of section 7 of docs/runbook.md, one fenced block each.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from annotated_types import Predicate
from markdown_it import MarkdownIt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from runbook_lib.model.finding import Text, say

if TYPE_CHECKING:
    from runbook_lib.catalog import Catalog

SECTION = "7"
MARKDOWN = "postmortem.md"
MEASURE = ("kind", "measure", "owner", "due", "whole")

_DONE = re.compile(r"\s*(\d{4}-\d\d-\d\d|yes\b|true\b)", re.IGNORECASE)
_OPEN = r"(?-i:\bTODO\b|\bTBD\b)|to be filled in|^null$|要記入|未記入|未定"  # Todo is a name, too


def _lacks(row: Any) -> int:
    try:
        Measure.model_validate(row)
    except ValidationError as e:
        return e.error_count()
    return 0


#: What was typed in full width is read all the same.
_NARROW = BeforeValidator(lambda v: unicodedata.normalize("NFKC", v) if isinstance(v, str) else v)
Said = Annotated[str, Predicate(lambda t: bool(re.search(r"\w", t)) and not re.search(_OPEN, t, re.IGNORECASE))]
Amount = Annotated[float, _NARROW, Field(ge=0, allow_inf_nan=False)]


class Unmeasurable(BaseModel):
    """Why something can not be known."""

    not_measurable: Said


class Hit(BaseModel):
    """What an objective suffered: minutes in breach, bad events of a total, rows at the peak."""

    model_config = ConfigDict(extra="forbid")
    minutes: Amount | None = None
    bad: Amount | None = None
    total: Amount | None = None
    peak: Amount | None = None


class Entry(BaseModel):
    """One line of the timeline, in UTC."""

    time: Annotated[datetime, _NARROW]
    what: Said


class Timeline(BaseModel):
    """How long it took to detect and to recover, and what happened when."""

    ttd_seconds: Amount | Unmeasurable
    ttr_seconds: Amount | Unmeasurable
    entries: list[Entry] = Field(min_length=1)


class Measure(BaseModel):
    """What will be changed for good, by whom and by when."""

    kind: Literal["measure", "control", "design"]
    measure: Said
    owner: Said
    due: Annotated[date, _NARROW]


class Record(BaseModel):
    """The four mandatory items, in the order of section 7; one objective and one measure are enough.

    It is validated with the catalog as pydantic's context, which knows the objectives and the failure modes.
    """

    impact: dict[str, Hit | Unmeasurable] = Field(min_length=1)
    origin: str
    timeline: Timeline
    measures: list[Measure] = Field(min_length=1)

    @field_validator("impact", mode="before")
    @classmethod
    def _answered(cls, hits: Any, info: ValidationInfo[Catalog]) -> Any:
        return {slo: hits[slo] for slo in info.context.slos if hits.get(slo)} if isinstance(hits, dict) else hits

    @field_validator("origin")
    @classmethod
    def _known(cls, id_: str, info: ValidationInfo[Catalog]) -> str:
        if id_ not in info.context.failure_modes:
            raise ValueError(id_)
        return id_

    @field_validator("measures", mode="before")
    @classmethod
    def _nearest(cls, rows: Any) -> Any:
        return sorted(rows, key=_lacks)[:1] if isinstance(rows, list) else rows


@dataclass(frozen=True)
class Missing:
    """A mandatory item that is not there, and what is wrong with it."""

    number: int
    item: str
    problem: Text


def record_of(draft: str) -> dict[str, Any]:
    """What a draft's YAML holds, as it was typed; for what can not be read, the number of the line."""
    found: dict[str, Any] = {}
    for fence in MarkdownIt("commonmark").parse(draft):
        if fence.type == "fence" and fence.map and fence.info.strip() == "yaml":
            try:
                data = yaml.load(fence.content, Loader=yaml.BaseLoader)  # noqa: S506 - makes nothing but text
            except yaml.YAMLError as e:
                line = fence.map[0] + 2 + getattr(getattr(e, "problem_mark", None), "line", 0)
                data = dict.fromkeys(re.findall(r"^(\w+):", fence.content, re.MULTILINE), line)
            found |= data if isinstance(data, dict) else {}
    return found


def old_form(draft: str) -> bool:
    """Whether a draft is of the time when its tables were read: it holds no record."""
    return bool(draft) and not Record.model_fields.keys() & record_of(draft)


def missing(draft: str, book: Catalog) -> list[Missing]:
    """The mandatory items that a postmortem lacks; [] is complete."""
    record = record_of(draft)
    lacking: dict[str, list[str]] = {}
    try:
        Record.model_validate(record, context=book)
    except ValidationError as e:
        for item, *inside in (error["loc"] for error in e.errors()):
            lacking.setdefault(str(item), []).extend([n for n in inside if isinstance(n, str)][:1])
    order = [*Record.model_fields]
    return [Missing(order.index(item) + 1, item, _problem(item, record.get(item), lacking[item])) for item in lacking]


def _problem(item: str, said: Any, names: list[str]) -> Text:
    if said is None:
        return say("postmortem.missing.block", item=item)
    if isinstance(said, int):
        return say("postmortem.missing.unreadable", line=said)
    return say(f"postmortem.missing.{item}", names=", ".join(dict.fromkeys(names)) or None, said=str(said) or None)


def measures_of(draft: str) -> list[dict[str, Any]]:
    """The measures that a draft holds; `whole` that have all that is asked for, `done` that say when."""
    rows = record_of(draft).get("measures")
    return [
        {name: str(r.get(name) or "") for name in Measure.model_fields}
        | {"whole": not _lacks(r), "done": bool(_DONE.match(unicodedata.normalize("NFKC", str(r.get("done")))))}
        for r in (rows if isinstance(rows, list) else ())
        if isinstance(r, dict) and (r.get("owner") or r.get("due"))
    ]
