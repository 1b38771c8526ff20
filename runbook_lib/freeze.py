"""When a target is left alone: the windows of runbook.toml, as text.

    2026-12-24T00:00+09:00/2026-12-27T00:00+09:00    once, each moment with its offset
    Fri 18:00/Mon 08:00 Asia/Tokyo                   every week, by the clocks of that zone

A window holds its beginning, and not its end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MOMENT = rf"({'|'.join(_DAYS)}) ([01]\d|2[0-3]):([0-5]\d)"
_WEEKLY = re.compile(rf"{_MOMENT}/{_MOMENT} (\S+)")
_WEEK = timedelta(weeks=1)


def until(windows: Sequence[str], at: datetime) -> datetime | None:
    """When the target may be touched again, in UTC; None where it may be at that moment. Raises ValueError."""
    free = at.astimezone(UTC)
    for _ in windows:  # where one ends, another may have begun
        free = max([free, *(end for w in windows if (end := _end(w, free)))])
    return free if free > at else None


def _end(window: str, at: datetime) -> datetime | None:
    """When the window around a moment ends, in UTC; None outside of it. Raises ValueError for what is no window."""
    if weekly := _WEEKLY.fullmatch(window):
        begin, end = (_of_week(*weekly.groups()[i : i + 3]) for i in (0, 3))
        here = at.astimezone(_zone(weekly[7])).replace(second=0, microsecond=0)
        length, since = (end - begin) % _WEEK, (_of_week(_DAYS[here.weekday()], here.hour, here.minute) - begin) % _WEEK
        last = (here - since + length).astimezone(UTC)
        inside = since < length
    else:
        try:
            first, last = (datetime.fromisoformat(moment) for moment in window.split("/"))
            inside = first <= at < last
            length = last - first
        except (ValueError, TypeError):
            raise ValueError(
                f"'{window}' is no window: write it like 2026-12-24T00:00+09:00/2026-12-27T00:00+09:00 or "
                "Fri 18:00/Mon 08:00 Asia/Tokyo"
            ) from None
    if length <= timedelta():
        raise ValueError(f"'{window}' ends where it begins, or before")
    return last.astimezone(UTC) if inside and at < last else None


def _of_week(day: str, hour: str | int, minute: str | int) -> timedelta:
    return timedelta(days=_DAYS.index(day), hours=int(hour), minutes=int(minute))


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"unknown time zone '{name}': write it like Asia/Tokyo") from None
