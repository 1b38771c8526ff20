"""The timeline of an incident: lanes over one time axis, as an inline SVG and as a table.

Where a lane has no data it is hatched: that is not the same as zero. Times in UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from runbook_lib.view import render

#: In units of the drawing: the width of all and of the lanes' names, and the heights of lanes and axis.
WIDTH, NAMES, AXIS = 1180, 178, 24
_MARKS_HEIGHT, _RATES_HEIGHT, _WAITING_HEIGHT = 26, 34, 46
#: Possible distances of the axis' ticks, in seconds, and their maximum number.
_TICKS_S, _MAX_TICKS = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400), 12

Interval = tuple[pd.Timestamp, pd.Timestamp]


@dataclass(frozen=True)
class Mark:
    """An event, or with `until` an interval; `status` is one of the four, or "" where there is none."""

    at: pd.Timestamp
    text: str
    status: str = ""
    until: pd.Timestamp | None = None


@dataclass(frozen=True)
class LaneSeries:
    """A measured value by interval (begin, end, value); intervals without a value are left out."""

    name: str
    kind: str
    values: tuple[tuple[pd.Timestamp, pd.Timestamp, float], ...]


@dataclass(frozen=True)
class Lane:
    """Events, or series with their limit. `known` are the intervals that the marks cover; None for all of the axis."""

    name: str
    marks: tuple[Mark, ...] = ()
    series: tuple[LaneSeries, ...] = ()
    known: tuple[Interval, ...] | None = None
    limit: float | None = None

    @property
    def covered(self) -> Iterable[Interval]:
        """Return the intervals for which the lane has data, joined where they touch."""
        joined: list[Interval] = []
        for begin, end in sorted([*(self.known or ()), *((b, e) for s in self.series for b, e, _ in s.values)]):
            if joined and begin <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], end))
            else:
                joined.append((begin, end))
        return joined


def html(lanes: Sequence[Lane], since: pd.Timestamp, until: pd.Timestamp, opens: Interval | None = None) -> str:
    """Return the lanes from `since` to `until` as HTML; what is drawn first, and printed, is `opens`, else all."""
    since = since.floor("s")  # the script knows no shorter time than a millisecond
    span_s = max((until - since).total_seconds(), 1.0)
    begin, end = (t.floor("s") for t in opens) if opens else (since, since + pd.Timedelta(seconds=span_s))
    from_s, shown_s = (begin - since).total_seconds(), (end - begin).total_seconds()
    shown, y = [], float(AXIS)

    def second(time: pd.Timestamp) -> float:
        return round(min(max((time - since).total_seconds(), 0.0), span_s), 1)

    for lane in lanes:
        waits = any(s.kind == "waiting" for s in lane.series)
        height = _WAITING_HEIGHT if waits else _RATES_HEIGHT if lane.series else _MARKS_HEIGHT
        top = max([lane.limit or 0.0, *(v for s in lane.series for *_, v in s.values)], default=0.0) or 1.0
        peak = max((v for s in lane.series for *_, v in s.values), default=0.0)
        if lane.limit and peak < 0.3 * lane.limit:
            top = peak or 1.0
        level = partial(_scale_level, y + height - 4, (height - 16) / top)
        covered = [(since, until)] if lane.known is None and not lane.series else lane.covered
        shown.append(
            {
                "lane": lane,
                "y": y,
                "height": height,
                "peak": peak,
                "known": [(second(b), second(e)) for b, e in covered if e > since and b < until],
                "series": [(s, *_trace_lines(s, second, level)) for s in lane.series],
                "limit": level(lane.limit) if lane.limit and lane.limit <= top else None,
                "marks": [
                    (m, second(m.at), None if m.until is None else second(m.until))
                    for m in lane.marks
                    if (m.until or m.at) >= since and m.at <= until
                ],
            }
        )
        y += height + 4
    return render.html(
        "timeline", lanes=shown, span_s=span_s, since=since, until=until, begin=begin, end=end, opens=opens,
        from_s=from_s, to_s=from_s + shown_s, width=WIDTH, names=NAMES, height=y, axis=AXIS,
        ticks=[(from_s + s, words) for s, words in _place_ticks(begin, shown_s)],
        events=_list_events(lanes, since, until), series=_tabulate_series(lanes),
        x=lambda s: round(NAMES + (s - from_s) / shown_s * (WIDTH - NAMES - 12), 1)
    )  # fmt: skip


def _scale_level(bottom: float, scale: float, value: float) -> float:
    return round(bottom - scale * value, 1)


def _trace_lines(series: LaneSeries, second: Any, level: Any) -> tuple[list[list[tuple[float, float]]], str]:
    """Return the lines of a series, interrupted where it has no value, and its values as JSON (begin, end, value).

    What waits is known at the end of its interval; a rate is that of all of its interval.
    """
    lines: list[list[tuple[float, float]]] = []
    last: pd.Timestamp | None = None
    for begin, end, value in series.values:
        if last is None or begin > last:
            lines.append([])
        lines[-1] += [(second(at), level(value)) for at in ((end,) if series.kind == "waiting" else (begin, end))]
        last = end
    return lines, json.dumps([(second(b), second(e), v) for b, e, v in series.values], separators=(",", ":"))


def _place_ticks(since: pd.Timestamp, span_s: float) -> Iterator[tuple[float, str]]:
    step = next((s for s in _TICKS_S if span_s / s <= _MAX_TICKS), _TICKS_S[-1] * (1 + int(span_s // 1e6)))
    first = -(-since.timestamp() // step) * step - since.timestamp()
    for n in range(int((span_s - first) // step) + 1):
        at = since + pd.Timedelta(seconds=first + n * step)
        yield first + n * step, f"{at:%m-%d}" if step >= 86400 else f"{at:%H:%M:%S}" if step < 60 else f"{at:%H:%M}"


def _list_events(lanes: Iterable[Lane], since: pd.Timestamp, until: pd.Timestamp) -> list[tuple[Mark, str]]:
    found = [(m, lane.name) for lane in lanes for m in lane.marks if (m.until or m.at) >= since and m.at <= until]
    return sorted(found, key=lambda e: e[0].at)


def _tabulate_series(lanes: Iterable[Lane]) -> tuple[list[str], list[tuple[pd.Timestamp, list[float | None]]]]:
    """Return the names of all series, and for each interval its begin and their values."""
    every = [(f"{lane.name}: {s.name}", {b: v for b, _, v in s.values}) for lane in lanes for s in lane.series]
    times = sorted({b for _, values in every for b in values})
    return [name for name, _ in every], [(t, [values.get(t) for _, values in every]) for t in times]
