"""What waited in a queue over the window, rebuilt from timestamps, and its chart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import pandas as pd

from runbook_lib import rows
from runbook_lib.analysis import history
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Text, Threshold, say
from runbook_lib.view import charts


@dataclass(frozen=True)
class Open:
    """What has not reached an end at this moment: the anchor."""

    now: pd.Timestamp | None = None
    n: float = 0.0
    oldest: pd.Timestamp | None = None


def rebuild(frames: Frames, given: Given, *left: str) -> pd.DataFrame | None:
    """Unfinished rows by minute, from the frames open, arrivals and those of what `left`; None without the first."""
    anchor = rows.first(frames.get("open"), Open)
    if anchor is None or "arrivals" not in frames or left[0] not in frames:
        return None
    came, *gone = (history.counts(frames.get(name)) for name in ("arrivals", *left))
    now = max(anchor.now or given.as_of, given.as_of)
    ahead = int((now.ceil("min") - given.as_of.ceil("min")) / history.MINUTE)
    all_gone = reduce(lambda a, b: a.add(b, fill_value=0.0), gone)
    series = history.backlog_series(anchor.n, came, all_gone, now, given.window_minutes + ahead)
    return series.iloc[: given.window_minutes] if given.window_minutes else None


def blind_spots(frames: Frames, given: Given, retention: pd.Timedelta, without: str = "") -> tuple[Text, ...]:
    """What the series does not show."""
    oldest = rows.one(frames.get("open"), Open).oldest
    spots = history.blind_spots(given.window_minutes, retention, None, oldest, given.as_of)
    return tuple(say(f"blind_spot.{spot}") for spot in spots if spot != without)


def draw(
    series: pd.DataFrame | None, title: str, lines: tuple[str, str, str], alt: str, spots: tuple[Text, ...],
    limit: Threshold | None = None,
) -> charts.Chart | None:  # fmt: skip
    """The series with what came and what left, and the limit once the backlog is near it."""
    if series is None or series.empty:
        return None
    figure, ax = charts.axes(title, "rows", "UTC")
    charts.flows(ax, series, lines)
    if limit and series["backlog"].max() > 0.3 * (limit.warning or 0):
        charts.thresholds(ax, limit)
    charts.legend(figure)
    peak = series["backlog"].idxmax()
    shown = {"now": float(series["backlog"].iloc[-1]), "peak": float(series["backlog"].max()), "minutes": len(series)}
    return charts.Chart(figure, say(alt, at=f"{peak:%H:%M}", **shown), spots)
