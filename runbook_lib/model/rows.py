"""Rows of frames as typed objects, so that a judge reads `queue.due` instead of a column by name.

A kind of row is a subclass of `Row` with a default for each field; `query` names the query that has these columns (a
test compares the two). The default is the meaning of NULL: 0 where nothing
was counted, None for what may be unknown. A frame that is not there was not read, and is no default: numbers and flags
are `Unread` then, on which every operation fails, unless their type allows None.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

import pandas as pd

from runbook_lib.model.unread import Unread, known


@dataclass_transform(frozen_default=True)
class Row:
    """Base of the kinds of rows: frozen dataclasses, each with the name of its query."""

    QUERY: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, query: str = "") -> None:
        """Make a dataclass of the class that is being defined."""
        if query:
            cls.QUERY = query
        dataclass(frozen=True)(cls)


T = TypeVar("T", bound=Row)
V = TypeVar("V")


def one(frame: pd.DataFrame | None, kind: type[T]) -> T:
    """Return the first row of a frame; defaults if it has none, `Unread` fields if there is no frame."""
    if frame is None:
        return kind(**_unread_fields(kind))  # type: ignore[arg-type]  # a type is hashable
    found = first(frame, kind)
    return kind() if found is None else found


def first(frame: pd.DataFrame | None, kind: type[T]) -> T | None:
    """Return the first row of a frame; None if there is none."""
    found = each(None if frame is None else frame.head(1), kind)
    return found[0] if found else None


def each(frame: pd.DataFrame | None, kind: type[T]) -> list[T]:
    """Return every row of a frame, in its order."""
    if frame is None or frame.empty:
        return []
    wanted = {name: of for name, of in _field_types(kind).items() if name in frame.columns}  # type: ignore[arg-type]  # a type is
    columns = [frame[name].tolist() for name in wanted]
    return [
        kind(**{n: _convert_value(of, v) for (n, of), v in zip(wanted.items(), values, strict=True) if not missing(v)})
        for values in (zip(*columns, strict=True) if columns else [()] * len(frame))
    ]


def value(frame: pd.DataFrame | None, column: str, of: type[V]) -> V | None:
    """Return one column of the first row, where nothing else of the frame is read; None where nothing is there."""
    found = None if frame is None or frame.empty or column not in frame.columns else frame[column].iloc[0]
    return None if missing(found) else _convert_value(of, found)


def frame(found: Iterable[Any], kind: type[Any]) -> pd.DataFrame:
    """Return rows of that kind as a frame: what `each` reads back."""
    columns = [f.name for f in fields(kind)]
    return pd.DataFrame([[known(getattr(row, c)) for c in columns] for row in found], columns=columns)


def missing(value: Any) -> bool:
    """Return whether a cell holds nothing: NULL, NaN, NaT."""
    return value is None or value is pd.NaT or (isinstance(value, float) and value != value)


@cache
def _field_types(kind: Any) -> dict[str, type]:
    """Return the type of each field, without its "or None"."""
    hints = get_type_hints(kind)
    return {f.name: _without_none(hints[f.name]) for f in fields(kind)}


@cache
def _unread_fields(kind: Any) -> dict[str, Any]:
    """Return `Unread` for each field that is a number or a flag and cannot be None."""
    hints = get_type_hints(kind)
    return {f.name: Unread(f"{kind.__name__}.{f.name}") for f in fields(kind) if hints[f.name] in (int, float, bool)}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(_without_none(a) for a in get_args(hint) if a is not type(None))
    return get_origin(hint) or hint


def _convert_value(of: type, value: Any) -> Any:
    if of is pd.Timestamp:
        time = pd.Timestamp(value)
        return time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")
    return value if of is object or of is Any else of(value)
