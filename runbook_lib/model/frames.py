"""Small words for frames: a row of single values, a frame that may be missing."""

from __future__ import annotations

from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames


def row(**values: Any) -> pd.DataFrame:
    """Return a one-row frame of single values."""
    return pd.DataFrame([values])


def table(frames: Frames, name: str, *columns: str) -> pd.DataFrame:
    """Return the frame of that name; an empty one with these columns if it, or one of them, is missing."""
    frame = frames.get(name)
    if frame is None or not set(columns) <= set(frame.columns):
        return pd.DataFrame(columns=list(columns))
    return frame
