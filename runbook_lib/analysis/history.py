"""The backlog of the past, rebuilt from timestamps that the tables keep anyway.

It is anchored at what waits now and walked back through what arrived and what left since; pure functions on
frames.
"""

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

BlindSpot = Literal["retention", "redrive", "lookback", "one_status"]

MINUTE = pd.Timedelta(minutes=1)


def backlog_series(
    backlog_now: float, arrivals: pd.Series, departures: pd.Series, as_of: pd.Timestamp, minutes: int
) -> pd.DataFrame:
    """Rebuild the backlog of the last `minutes` minutes, walking back from `backlog_now`.

        B(t) = B(now) - arrivals(t, now] + departures(t, now]

    `arrivals` and `departures` are counts per minute indexed by the start of the minute (naive times are
    UTC); a minute that is missing had none, the order is free, and what lies outside the window is ignored.
    The result has one row per minute, indexed by its start in UTC, ending with the minute that `as_of` is in
    (a full minute ends at its boundary):

    - `arrivals`, `departures`: events in the minute;
    - `backlog`: what waited at the end of the minute, so the last row is `backlog_now`;
    - `partial`: the minute was not over at `as_of`.

    A negative backlog cannot be: it is shown as 0, and `.attrs["clamped"]` says how often. No minutes give an
    empty frame, and no counts a flat line.

    >>> now = pd.Timestamp("2025-01-01 10:02:30", tz="UTC")
    >>> came = pd.Series([5, 2], index=pd.to_datetime(["2025-01-01 10:01", "2025-01-01 10:02"], utc=True))
    >>> left = pd.Series([4], index=pd.to_datetime(["2025-01-01 10:02"], utc=True))
    >>> frame = backlog_series(7, came, left, now, minutes=3)
    >>> frame.index.strftime("%H:%M").tolist(), frame["backlog"].tolist(), frame["partial"].tolist()
    (['10:00', '10:01', '10:02'], [4.0, 9.0, 7.0], [False, False, True])
    """
    last = _utc(as_of).ceil("min") - MINUTE
    starts = pd.date_range(end=last, periods=max(minutes, 0), freq="min", name="minute")
    came, left = _per_minute(arrivals, starts), _per_minute(departures, starts)
    net = left - came
    backlog = backlog_now + (net[::-1].cumsum()[::-1] - net)
    frame = pd.DataFrame(
        {
            "arrivals": came,
            "departures": left,
            "backlog": np.maximum(backlog, 0.0),
            "partial": partial_buckets(starts, as_of, MINUTE),
        },
        index=starts,
    )
    frame.attrs["clamped"] = int((backlog < 0).sum())
    return frame


def counts(frame: pd.DataFrame | None) -> pd.Series:
    """The counts of a frame with the columns `minute` and `n`, by minute; empty for none."""
    if frame is None or frame.empty or not {"minute", "n"} <= set(frame.columns):
        return pd.Series(dtype=float, index=pd.DatetimeIndex([], tz="UTC"))
    return pd.Series(frame["n"].to_numpy(dtype=float), index=pd.DatetimeIndex(frame["minute"]))


def partial_buckets(starts: pd.DatetimeIndex, as_of: pd.Timestamp, bucket: pd.Timedelta) -> NDArray[np.bool_]:
    """Mark the buckets, given by their starts, that were not over at `as_of`: they are still filling.

    Leave them out before a slope is fitted: `frame[~partial_buckets(frame.index, as_of, bucket)]`.

    >>> starts = pd.to_datetime(["2025-01-01 10:00", "2025-01-01 10:05"], utc=True)
    >>> partial_buckets(starts, pd.Timestamp("2025-01-01 10:07", tz="UTC"), pd.Timedelta(minutes=5)).tolist()
    [False, True]
    """
    ends = pd.to_datetime(starts, utc=True) + bucket
    return np.asarray(ends > _utc(as_of), dtype=np.bool_)


def blind_spots(
    minutes: int,
    retention: pd.Timedelta,
    redriven: int | None,
    oldest_backlog: pd.Timestamp | None,
    as_of: pd.Timestamp,
) -> list[BlindSpot]:
    """Name what a rebuilt backlog cannot see, to be printed under its chart.

    - "retention": rows are deleted (after `retention`) that the window of `minutes` still needs;
    - "redrive": FAILED rows were put back (`redriven` of them; None is unknown, and counts), so that they
      seem to have waited ever since they were created;
    - "lookback": something waits that is older than the window (`oldest_backlog`; None is nothing waiting);
    - "one_status": PENDING and PROCESSING cannot be told apart in the past. Always.

    >>> now = pd.Timestamp("2025-01-01 10:00", tz="UTC")
    >>> blind_spots(60, pd.Timedelta(days=7), redriven=0, oldest_backlog=None, as_of=now)
    ['one_status']
    >>> early = now - pd.Timedelta(hours=2)
    >>> blind_spots(60, pd.Timedelta(minutes=30), redriven=500, oldest_backlog=early, as_of=now)
    ['retention', 'redrive', 'lookback', 'one_status']
    """
    window = pd.Timedelta(minutes=minutes)
    old = oldest_backlog is not None and _utc(oldest_backlog) < _utc(as_of) - window
    applies: dict[BlindSpot, bool] = {
        "retention": not retention >= window,
        "redrive": redriven is None or redriven > 0,
        "lookback": old,
        "one_status": True,
    }
    return [spot for spot, applied in applies.items() if applied]


def _utc(time: pd.Timestamp) -> pd.Timestamp:
    return time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")


def _per_minute(counts: pd.Series, starts: pd.DatetimeIndex) -> NDArray[np.float64]:
    """Counts of exactly these minutes; those that are missing are 0."""
    minute = pd.to_datetime(counts.index, utc=True).floor("min")
    summed = pd.Series(counts.to_numpy(dtype=float, na_value=0.0), index=minute).groupby(level=0).sum()
    return summed.reindex(starts, fill_value=0.0).to_numpy(dtype=float)
