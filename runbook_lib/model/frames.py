"""Small words for frames: the one row, a number of it, a frame that may be missing."""

from __future__ import annotations

from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames


def one(frame: pd.DataFrame | None) -> dict[str, Any]:
    """The only row of a frame as a dict, its missing values as None; {} if there is none."""
    if frame is None or frame.empty:
        return {}
    return {str(k): (None if v is None or v is pd.NaT or v != v else v) for k, v in frame.iloc[0].items()}


def row(**values: Any) -> pd.DataFrame:
    """A one-row frame of single values."""
    return pd.DataFrame([values])


def amount(found: dict[str, Any], name: str) -> float:
    """A number of `one`, where nothing means 0: a count, or the age of the oldest of none."""
    return float(found.get(name) or 0)


def table(frames: Frames, name: str, *columns: str) -> pd.DataFrame:
    """The frame of that name; an empty one with these columns where it, or one of them, is missing."""
    frame = frames.get(name)
    if frame is None or not set(columns) <= set(frame.columns):
        return pd.DataFrame(columns=list(columns))
    return frame
