"""Times and durations as people, alerts and applications write them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str, bare: str = "ms") -> float | None:
    """Return the seconds of a duration; None if it is none. A number alone has the unit `bare`, "" for none.

    The applications take a number alone for milliseconds.

    >>> duration("500ms"), duration("2m"), duration("PT1S"), duration("180", bare="s"), duration("soon")
    (0.5, 120.0, 1.0, 180.0, None)
    """
    m = re.fullmatch(r"(?:pt)?([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s|m|h|d|)", text.strip().lower())
    unit = _SECONDS.get(m[2] or bare) if m else None
    return float(m[1]) * unit if m and unit else None


def now() -> str:
    """Return the present time in ISO 8601 with milliseconds, as the logs write it."""
    import pandas as pd

    return pd.Timestamp.now("UTC").isoformat(timespec="milliseconds")


def moment(text: str, *, zoned: bool = False) -> pd.Timestamp:
    """Parse a time and convert it to UTC; a time without an offset is UTC, or refused if it must be `zoned`.

    Raises ValueError.
    """
    import pandas as pd

    try:
        written = pd.Timestamp(text)
        time = written.tz_localize("UTC") if written.tzinfo is None else written.tz_convert("UTC")
        known = 1970 < time.year < 9999  # not of NaT
    except (ValueError, TypeError, OverflowError, AttributeError):
        known = False
    if not known:
        raise ValueError("not a time like 2026-01-31T03:00:00Z")
    if zoned and written.tzinfo is None:
        here = pd.Timestamp(written.to_pydatetime(warn=False).astimezone()).isoformat()
        raise ValueError(f"it has no offset: write {here} (this machine's zone) or {written.isoformat()}Z")
    return time
