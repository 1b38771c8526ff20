"""Freeze windows of a target: when runbook.toml forbids actions, as text.

    2026-12-24T00:00+09:00/2026-12-27T00:00+09:00    once, each moment with its offset
    Fri 18:00/Mon 08:00 Asia/Tokyo                   every week, by the clocks of that zone

A window includes its start and excludes its end. When clocks go back, a start in the repeated hour is its first
occurrence and an end its second one; when clocks go forward, a time in the skipped hour is the moment of the jump.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MOMENT = rf"({'|'.join(_DAYS)}) ([01]\d|2[0-3]):([0-5]\d)"
_WEEKLY = re.compile(rf"{_MOMENT}/{_MOMENT} (\S+)")
_WEEK, _MINUTE = timedelta(weeks=1), timedelta(minutes=1)


def frozen_until(windows: Sequence[str], at: datetime) -> datetime | None:
    """Return when the freeze at a moment ends, in UTC; None if there is no freeze then. Raises ValueError."""
    free = at.astimezone(UTC)
    for _ in windows:  # before one ends, another may have begun
        free = max([free, *(end for w in windows if (end := _window_end(w, free)))])
    return free if free > at else None


def _window_end(window: str, at: datetime) -> datetime | None:
    """Return when the window around a moment ends, in UTC; None outside of it. Raises ValueError for a bad window."""
    weekly = _WEEKLY.fullmatch(window)
    spans = _weekly_spans(weekly, at) if weekly else [_parse_single_window(window)]
    return max((last.astimezone(UTC) for first, last in spans if first <= at < last), default=None)


def _parse_single_window(window: str) -> tuple[datetime, datetime]:
    """Return start and end of a window that occurs once."""
    try:
        first, last = (datetime.fromisoformat(moment) for moment in window.split("/"))
        length = last - first  # a TypeError if only one has an offset
        if first.tzinfo is None:
            raise ValueError(window)
    except (ValueError, TypeError):
        raise ValueError(
            f"'{window}' is not a freeze window: write it like 2026-12-24T00:00+09:00/2026-12-27T00:00+09:00 or "
            "Fri 18:00/Mon 08:00 Asia/Tokyo"
        ) from None
    if length <= timedelta():
        raise ValueError(f"'{window}' does not end after its start")
    return first, last


def _weekly_spans(window: re.Match[str], at: datetime) -> list[tuple[datetime, datetime]]:
    """Return start and end of a weekly window in the week before a moment, in its own week, and in the next."""
    begin, end = (_offset_in_week(*window.groups()[i : i + 3]) for i in (0, 3))
    zone, length = _load_zone(window[7]), (end - begin) % _WEEK
    if not length:
        raise ValueError(f"'{window[0]}' does not end after its start")
    today = datetime.combine(at.astimezone(zone).date(), time())
    begins = [today - timedelta(days=today.weekday()) + begin + n * _WEEK for n in (-1, 0, 1)]
    return [(_to_utc(first, zone), _to_utc(first + length, zone, fold=1)) for first in begins]


def _to_utc(wall: datetime, zone: ZoneInfo, fold: int = 0) -> datetime:
    """Return the moment in UTC at which the clocks of a zone show a time.

    If they show it twice, `fold` selects the occurrence; if they skip it, it is the moment of the jump.
    """
    early, late = (wall.replace(tzinfo=zone, fold=f).astimezone(UTC) for f in (1, 0))
    if early >= late:  # once, or twice
        return early if fold else late
    minutes = range(int((late - early) / _MINUTE))
    after = late.astimezone(zone).utcoffset()
    jump = bisect_left(minutes, True, key=lambda n: (early + n * _MINUTE).astimezone(zone).utcoffset() == after)
    return early + jump * _MINUTE


def _offset_in_week(day: str, hour: str, minute: str) -> timedelta:
    return timedelta(days=_DAYS.index(day), hours=int(hour), minutes=int(minute))


def _load_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"unknown time zone '{name}': write it like Asia/Tokyo") from None
