"""The backlog of the past: how much waited in each stretch of time, and where that left its ordinary range.

Timestamps that the tables keep anyway say exactly when each row came and went; pure functions on such counts.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

MINUTE = pd.Timedelta(minutes=1)


def levels(flows: pd.DataFrame, buckets: int) -> pd.DataFrame:
    """Return how many rows waited in each of `buckets` buckets.

    `flows` has rows (piece, bucket, came, gone, least, most): what came and went in a bucket, and the least and the
    most that waited in it after one of these. A bucket that is missing had none, bucket -1 is all before, and pieces
    are of different rows, so that they add up. The result is indexed by bucket: `came`, `gone`, `waiting` (at its end),
    `least` and `most` (at any moment of it; of several pieces that change in one bucket the bounds of these).

    >>> flows = pd.DataFrame({"piece": 0, "bucket": [-1, 1], "came": [3, 4], "gone": [1, 6], "least": [1, 0],
    ...                       "most": [3, 5]})
    >>> levels(flows, 3)[["waiting", "least", "most"]].astype(int).to_numpy().tolist()
    [[2, 2, 2], [0, 0, 5], [0, 0, 0]]
    """
    every = range(-1, buckets)
    whole = pd.DataFrame(0.0, index=every, columns=["came", "gone", "waiting", "least", "most"])
    for _, rows in flows.groupby("piece"):
        numbers = rows.set_index("bucket")[["came", "gone", "least", "most"]].apply(pd.to_numeric, errors="coerce")
        part = numbers.groupby(level=0).first().reindex(every)
        part[["came", "gone"]] = part[["came", "gone"]].fillna(0.0)
        part["waiting"] = (part["came"] - part["gone"]).cumsum()
        before = part["waiting"].shift(fill_value=0.0)
        part["least"], part["most"] = np.fmin(part["least"], before), np.fmax(part["most"], before)
        whole += part[whole.columns]
    return pd.DataFrame(whole.loc[0:])


def ordinary(least: ArrayLike, share: float, spread: float) -> tuple[float, float]:
    """Return the usual number of waiting rows, and the limit up to which more is chance.

    `share` of the buckets are taken to be usual, so that an incident may fill all the others; the limit is `spread`
    standard deviations of a Poisson count above.

    >>> ordinary([0, 1, 0, 0, 60, 90, 40, 0], share=0.25, spread=4)
    (0.0, 4.0)
    """
    levels = np.asarray(least, dtype=float)
    usual = float(np.quantile(levels, share)) if levels.size else 0.0
    return usual, usual + spread * float(np.sqrt(usual + 1))


def episodes(least: ArrayLike, limit: float, gap: int) -> list[tuple[int, int]]:
    """Return the intervals in which more than `limit` waited throughout, as (first bucket, first bucket after).

    >>> episodes([0, 9, 0, 8, 9, 0, 0, 0, 7], limit=4, gap=1)
    [(1, 5), (8, 9)]
    """
    found: list[tuple[int, int]] = []
    for bucket in np.flatnonzero(np.asarray(least, dtype=float) > limit).tolist():
        if found and bucket - found[-1][1] <= gap:
            found[-1] = (found[-1][0], bucket + 1)
        else:
            found.append((bucket, bucket + 1))
    return found


def counts(frame: pd.DataFrame | None) -> pd.Series:
    """Return the counts of a frame with the columns `minute` and `n`, by minute; empty if there is none."""
    if frame is None or frame.empty or not {"minute", "n"} <= set(frame.columns):
        return pd.Series(dtype=float, index=pd.DatetimeIndex([], tz="UTC"))
    return pd.Series(frame["n"].to_numpy(dtype=float), index=pd.DatetimeIndex(frame["minute"]))
