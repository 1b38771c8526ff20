"""Findings and verdicts as JSON: what an executed notebook carries in its outputs.

The notebook itself is the record; batch, dossier and `runbook verify` read it back from here. Frames are
kept with their types, so that a judge can be run again on what it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from functools import cache, lru_cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

from runbook_lib.book import messages
from runbook_lib.model.finding import Finding, Reason, Status, Text, Threshold, Value, Verdict

if TYPE_CHECKING:
    from runbook_lib.model.outcome import Outcome, Precondition

FINDING_MIME = "application/vnd.runbook.finding+json"
VERDICT_MIME = "application/vnd.runbook.verdict+json"
#: Marks the output that heads a notebook, so that an artifact can put it first.
BANNER_MIME = "application/vnd.runbook.banner+json"
#: Marks whatever the library shows with the moment its run was opened: a notebook may hold the outputs of several.
RUN_MIME = "application/vnd.runbook.run+json"

T = TypeVar("T")
#: The types that JSON has, and what they may be read as.
_PLAIN: dict[type, tuple[type, ...]] = {
    str: (str,), int: (int,), float: (int, float), bool: (bool,), type(None): (type(None),),
}  # fmt: skip
#: The type of a stored column by the kind of its dtype, durations in seconds; any other is text.
_COLUMN_TYPES = {"b": "bool", "i": "int", "u": "int", "f": "float", "m": "float", "M": "time"}


def read_outputs(cells: Iterable[Mapping[str, Any]], kind: str) -> Iterator[Any]:
    """Iterate over what the outputs of a notebook's cells hold of a MIME type."""
    for cell in cells:
        for output in cell.get("outputs", ()):
            if kind in (data := output.get("data", {})):
                yield data[kind]


def as_json(value: Any) -> Any:
    """Return plain data of the model as JSON: a dataclass by its fields, texts in every language, a status by name."""
    if isinstance(value, Text):
        return text(value)
    if isinstance(value, Status):
        return value.name
    if isinstance(value, Value):
        return {"name": value.name, **_value_fields(value)}
    if is_dataclass(value):
        return {name: as_json(v) for name, v in vars(value).items()}
    return [as_json(v) for v in value] if isinstance(value, tuple) else plain(value)


def finding(f: Finding) -> dict[str, Any]:
    """Return a finding as JSON, its texts in both languages, its frames as they are (masked)."""
    plain_fields = dict(as_json(replace(f, values=()))) | {"values": values(f)}
    return {"questions" if name == "queries" else name: value for name, value in plain_fields.items()}


def finding_from_json(stored: Mapping[str, Any]) -> Finding:
    """Restore a finding from `finding`."""
    found = from_json(Finding, {**stored, "queries": stored["questions"], "values": ()})
    return replace(found, values=tuple(_value_from_json(name, v) for name, v in stored["values"].items()))


def verdict(v: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON."""
    return dict(as_json(v))


def outcome(o: Outcome) -> dict[str, Any]:
    """Return an action and its outcome as JSON."""
    return dict(as_json(o)) | {"preconditions": [precondition(p) for p in o.preconditions]}


def precondition(p: Precondition) -> dict[str, Any]:
    """Return a precondition as JSON: its key, its state, and its text in every language."""
    return {"key": p.text.key, **as_json(p)}


def describe_action(asked: dict[str, Any]) -> str:
    """Return what an action was about, in a few words, from its log line's `what`."""
    words = [str(asked.get("name") or asked.get("store") or "")]
    words += [f"{k}={'default' if v is None else v}" for k, v in (asked.get("settings") or {}).items()]
    named = ((k, asked.get(k)) for k in ("limit", "events", "discard", "replicas"))
    words += [f"{k}={v}" for k, v in named if v is not None and v is not False]
    return " ".join(w for w in words if w)


def values(f: Finding) -> dict[str, Any]:
    """Return the observed values by name, with unit and, if compared, the limits and their origin."""
    return {v.name: _value_fields(v) for v in f.values}


def signature(verdict: Mapping[str, Any]) -> str:
    """Return the parts of a verdict that make it a different one: status, hop, first failure mode."""
    modes = verdict.get("failure_modes") or [{}]
    return f"{verdict['status']} {verdict['stuck_at']} {modes[0].get('id')}"


def from_json(kind: type[T], stored: Any) -> T:
    """Restore plain data of the model from `as_json`. Texts come back as words; unknown fields are ignored."""
    of: Any = kind
    restored: T = _reader_of(of)(stored)
    return restored


@cache
def _reader_of(kind: Any) -> Callable[[Any], Any]:
    """Return the function that restores a value of a type; a value of a type that JSON has is checked and kept."""
    if kind in _READERS:
        return _READERS[kind]
    if kind in _PLAIN:
        return lambda stored: _require(stored, kind)
    of = get_args(kind)
    if get_origin(kind) is tuple:
        item = _reader_of(of[0])
        return lambda stored: tuple(map(item, stored))
    if get_origin(kind) is dict:
        value = _reader_of(of[1])
        return lambda stored: {name: value(v) for name, v in stored.items()}
    if get_origin(kind) in (Union, UnionType):
        plain_kinds = [k for k in of if k in _PLAIN]
        # Where a text or a name may stand, a text is a table.
        own = next((_reader_of(k) for k in of if k not in _PLAIN), None)
        if own is None:
            return lambda stored: _require(stored, *plain_kinds)
        return lambda stored: stored if any(_is_plain(stored, k) for k in plain_kinds) else own(stored)
    if is_dataclass(kind):
        hints = get_type_hints(kind, localns={"pd": pd})
        readers = {f.name: _reader_of(hints[f.name]) for f in fields(kind)}
        made: Any = kind
        return lambda stored: made(**{n: read(stored[n]) for n, read in readers.items() if n in stored})
    return _keep


def _keep(stored: Any) -> Any:
    return stored


def _is_plain(stored: Any, kind: type) -> bool:
    return isinstance(stored, _PLAIN[kind]) and (kind is bool or not isinstance(stored, bool))


def _require(stored: Any, *kinds: type) -> Any:
    if not any(_is_plain(stored, kind) for kind in kinds):
        raise TypeError(f"{stored!r:.40} is no {' or '.join(kind.__name__ for kind in kinds)}")
    return stored


def frame_to_json(frame: pd.DataFrame) -> dict[str, Any]:
    """Return columns with their kinds, and rows of JSON values; times in ISO 8601 with their offset."""
    kept = frame.reset_index() if frame.index.name else frame
    return {
        "columns": [{"name": str(c), "type": _COLUMN_TYPES.get(kept[c].dtype.kind, "text")} for c in kept.columns],
        "rows": [[plain(v) for v in row] for row in kept.itertuples(index=False, name=None)],
        "index": frame.index.name,
        "attrs": plain(dict(frame.attrs)),
    }


def frame_from_json(stored: dict[str, Any]) -> pd.DataFrame:
    """Restore a frame from `frame_to_json`."""
    kinds, rows = {c["name"]: c["type"] for c in stored["columns"]}, stored["rows"]
    frame = _build_frame(kinds, rows) if rows else _empty_frame(tuple(kinds.items())).copy()
    frame.attrs = dict(stored.get("attrs", {}))
    return frame.set_index(stored["index"]) if stored.get("index") else frame


def _build_frame(kinds: dict[str, str], rows: list[list[Any]]) -> pd.DataFrame:
    cells = zip(*rows, strict=True) if rows else ([] for _ in kinds)
    typed = {name: _build_column(kinds[name], list(values)) for name, values in zip(kinds, cells, strict=True)}
    return pd.DataFrame(typed, columns=list(kinds))


@lru_cache(maxsize=512)
def _empty_frame(kinds: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    return _build_frame(dict(kinds), [])  # most frames of an artifact are empty, and of few kinds


def _build_column(kind: str, values: list[Any]) -> pd.Series[Any] | pd.DatetimeIndex | np.ndarray[Any, Any]:
    if kind == "time":
        return pd.to_datetime(values, utc=True, format="ISO8601")
    if kind == "float":
        return np.array(values, dtype="float64")
    if kind in ("int", "bool") and None not in values:
        return np.array(values, dtype={"int": "int64", "bool": "bool"}[kind])
    return pd.Series(values, dtype=object if kind == "text" or not values else None)


def _value_fields(v: Value) -> dict[str, Any]:
    limits = {}
    if v.threshold:
        t = v.threshold
        limits = {"warning": t.warning, "critical": t.critical, "below": t.below, "origin": t.origin}
    return {"value": plain(v.value), "unit": v.unit, **limits}


def _value_from_json(name: str, stored: dict[str, Any]) -> Value:
    threshold = None
    if "origin" in stored:
        limits = {k: stored[k] for k in ("warning", "critical", "below", "origin")}
        threshold = Threshold(name, stored["unit"], **limits)
    return Value(name, stored["value"], stored["unit"], threshold)


def text_from_json(stored: dict[str, str]) -> Text:
    """Restore a text from `text`."""
    return Text(messages.VERBATIM, stored)


def text(message: Text) -> dict[str, str]:
    """Return a message in every language."""
    return {lang: messages.text(message, lang) for lang in messages.LANGUAGES}


def plain(value: Any) -> Any:
    """Convert a value to JSON types: durations to seconds, missing values to null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, Text):
        return messages.text(value, "en")
    if isinstance(value, pd.DataFrame):
        return frame_to_json(value)
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, timedelta | np.timedelta64):  # before isoformat: a Timedelta has one, too
        value = pd.Timedelta(value).total_seconds()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | bool) else str(value)


#: How a value of a type is restored, where that is not by its fields.
_READERS: dict[Any, Callable[[Any], Any]] = {
    Text: text_from_json,
    Status: Status.__getitem__,
    Reason: Reason,
    pd.Timestamp: pd.Timestamp,
    pd.DataFrame: frame_from_json,
    Value: lambda stored: _value_from_json(stored["name"], stored),
}
