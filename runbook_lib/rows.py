"""The door: rows of frames as typed objects, so that a judge reads `queue.due` and no column by its name.

A kind of row is a frozen dataclass with a default for each field; `QUESTION` names the question whose columns they are
(a test holds the two together). What is missing, or NULL, is the field's default: 0 for a count, None for what may be
unknown. So a judge is total over whatever an older artifact holds.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pandas as pd

T = TypeVar("T")


def one(frame: pd.DataFrame | None, kind: type[T]) -> T:
    """The first row of a frame; a row of defaults if there is none."""
    found = first(frame, kind)
    return kind() if found is None else found


def first(frame: pd.DataFrame | None, kind: type[T]) -> T | None:
    """The first row of a frame, where it matters whether there is one."""
    found = each(None if frame is None else frame.head(1), kind)
    return found[0] if found else None


def each(frame: pd.DataFrame | None, kind: type[T]) -> list[T]:
    """Every row of a frame, in its order."""
    if frame is None or frame.empty:
        return []
    wanted = {name: of for name, of in _types(kind).items() if name in frame.columns}  # type: ignore[arg-type]  # a type is
    columns = [frame[name].tolist() for name in wanted]
    return [
        kind(**{n: _as(of, v) for (n, of), v in zip(wanted.items(), values, strict=True) if not missing(v)})
        for values in (zip(*columns, strict=True) if columns else [()] * len(frame))
    ]


def frame(found: Iterable[Any], kind: type[Any]) -> pd.DataFrame:
    """Rows of that kind as a frame: what `each` reads back."""
    columns = [f.name for f in fields(kind)]
    return pd.DataFrame([[getattr(row, c) for c in columns] for row in found], columns=columns)


def missing(value: Any) -> bool:
    """Whether a cell holds nothing: NULL, NaN, NaT."""
    return value is None or value is pd.NaT or (isinstance(value, float) and value != value)


@cache
def _types(kind: Any) -> dict[str, type]:
    """The type of each field, without its "or None"."""
    hints = get_type_hints(kind)
    return {f.name: _bare(hints[f.name]) for f in fields(kind)}


def _bare(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(_bare(a) for a in get_args(hint) if a is not type(None))
    return get_origin(hint) or hint


def _as(of: type, value: Any) -> Any:
    if of is pd.Timestamp:
        time = pd.Timestamp(value)
        return time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")
    return value if of is object or of is Any else of(value)
