"""The statistics behind the verdicts: pure functions on numpy arrays, and nothing else.

None of them raises for want of data: an empty window, one bucket or all zeros gives a result that says so
(`nan`, `None` or "inconclusive"). Counts are events per bucket, in time order; a missing count (`nan`) is a
bucket in which nothing happened. Leave the last bucket out while it is still filling: a half-counted minute
looks like a fall.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FlowVerdict = Literal["draining", "filling", "steady", "inconclusive"]
TrendKind = Literal["none", "spike", "steady", "step"]

Z_CRITICAL = 2.33
"""How sure a flow test is before it says draining or filling: the one-sided 1% point of the normal."""
Z_POWER = 0.84
"""How likely it finds a net flow worth knowing, before it may say steady: the 80% point of the normal."""
WORTH_KNOWING = 0.10
"""The smallest net flow worth knowing, as a share of the busier of the two flows."""
CHANGE_THRESHOLD = 15.0
"""Likelihood ratio of a change point. Flat Poisson series exceed it less than 1% of the time: simulated for 4
to 1,440 buckets and 0.01 to 500 events per bucket, where the 99% quantile lies between 2.8 and 14.4."""
MIN_BUCKETS = 4
"""Fewer buckets than this have no trend."""


@dataclass(frozen=True, slots=True)
class FlowTest:
    """Is a backlog draining? `z` > 0 and `net_per_min` > 0 mean that more leaves than arrives."""

    z: float
    verdict: FlowVerdict
    net_per_min: float
    eta_min: float | None


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """The change of a rate: `index` is the first bucket at the new rate, None if no change is proven.

    `ratio` is the likelihood ratio of the best split; `before` and `after` are its mean counts per bucket.
    """

    index: int | None
    ratio: float
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Trend:
    """The shape of a series of counts, and the bucket in which it began (spike and step only)."""

    kind: TrendKind
    onset: int | None


def flow_test(arrivals: float, departures: float, minutes: float, backlog: float) -> FlowTest:
    """Judge whether a backlog drains, from what came in and what went out in one window.

    `arrivals` and `departures` are numbers of events in the window, `minutes` its length, `backlog` what
    waits now. The difference of two Poisson flows follows a Skellam distribution, so

        z = (departures - arrivals) / sqrt(departures + arrivals)

    - "draining" is z > 2.33, "filling" is z < -2.33 (each wrong 1% of the time on balanced flows);
    - "steady" is neither, in a window with the power to tell: a net flow of 10% of the busier flow would have
      been found with a probability of 80%, that is
      (2.33 + 0.84) * sqrt(departures + arrivals) <= 0.10 * max(arrivals, departures).
      Balanced flows need about 2,000 events each way for that;
    - "inconclusive" is everything else. Without data (no minutes, a negative or missing count) z and net are
      `nan`.

    `eta_min` is backlog / net, in minutes, and is None unless the backlog drains.

    >>> flow_test(arrivals=500, departures=650, minutes=5, backlog=900)
    FlowTest(z=4.42..., verdict='draining', net_per_min=30.0, eta_min=30.0)
    >>> flow_test(arrivals=500, departures=510, minutes=5, backlog=900).verdict
    'inconclusive'
    >>> flow_test(arrivals=6000, departures=6010, minutes=60, backlog=900).verdict
    'steady'
    >>> flow_test(arrivals=0, departures=0, minutes=5, backlog=900)
    FlowTest(z=0.0, verdict='inconclusive', net_per_min=0.0, eta_min=None)
    """
    arrivals, departures, minutes, backlog = map(float, (arrivals, departures, minutes, backlog))
    known = all(map(math.isfinite, (arrivals, departures, minutes)))
    if not known or minutes <= 0 or arrivals < 0 or departures < 0:
        return FlowTest(math.nan, "inconclusive", math.nan, None)
    net, noise = departures - arrivals, math.sqrt(departures + arrivals)
    z, net_per_min = (net / noise if noise else 0.0), net / minutes
    verdict: FlowVerdict = "inconclusive"
    if z > Z_CRITICAL:
        verdict = "draining"
    elif z < -Z_CRITICAL:
        verdict = "filling"
    elif noise and (Z_CRITICAL + Z_POWER) * noise <= WORTH_KNOWING * max(arrivals, departures):
        verdict = "steady"
    has_eta = verdict == "draining" and math.isfinite(backlog)
    return FlowTest(z, verdict, net_per_min, max(backlog, 0.0) / net_per_min if has_eta else None)


def top_share(counts: ArrayLike) -> float:
    """Tell which share (0..1) of all events fell into the three busiest buckets; `nan` without any.

    >>> top_share([1, 1, 50, 30, 10, 1, 1, 1, 5])
    0.9
    >>> top_share([])
    nan
    """
    c = np.sort(_clean_counts(counts))[::-1]
    return float(c[:3].sum() / c.sum()) if c.any() else math.nan


def change_point(counts: ArrayLike) -> ChangePoint:
    """Find the one bucket from which the rate is another, by a Poisson likelihood ratio over all splits.

    `counts` are events per bucket. The ratio is divided by the variance over the mean that remains after the
    split, where that exceeds 1, so that events in batches rarely pass for a change. Above `CHANGE_THRESHOLD`
    the change is proven; flat series get there less than 1% of the time. Without counts, or below four
    buckets, `index` is None, the ratio 0 and both means are the overall mean (`nan` without a bucket).

    >>> change_point([2, 1, 3, 2, 2, 1, 9, 11, 8, 12, 10])
    ChangePoint(index=6, ratio=34.6..., before=1.83..., after=10.0)
    >>> change_point([2, 1, 3, 2, 2, 1, 2, 1, 3]).index is None
    True
    >>> change_point([5])
    ChangePoint(index=None, ratio=0.0, before=5.0, after=5.0)
    """
    c = _clean_counts(counts)
    n = c.size
    if n < MIN_BUCKETS or not c.any():
        mean = float(c.mean()) if n else math.nan
        return ChangePoint(None, 0.0, mean, mean)
    splits = np.arange(1, n)
    left = c.cumsum()[:-1]
    total = c.sum()
    ratios = 2 * (_log_likelihood(left, splits) + _log_likelihood(total - left, n - splits) - _log_likelihood(total, n))
    at = int(splits[ratios.argmax()])
    before, after = float(c[:at].mean()), float(c[at:].mean())
    mean_of = np.where(np.arange(n) < at, before, after)
    lively = mean_of > 0
    dispersion = float(((c - mean_of)[lively] ** 2 / mean_of[lively]).sum()) / (n - 2)
    ratio = max(float(ratios.max()), 0.0) / max(dispersion, 1.0)
    return ChangePoint(at if ratio > CHANGE_THRESHOLD else None, ratio, before, after)


def trend_kind(counts: ArrayLike) -> Trend:
    """Name the shape of a series of counts, and where it began.

    - "none": nothing was counted, or there are fewer than four buckets;
    - "spike": a burst that is over. The busiest bucket lies more than four standard deviations above the
      median, the three busiest hold at least half of what exceeds the median, and the last bucket is back.
      The onset is where it rose;
    - "step": the rate changed (`change_point`) and stayed, up or down. The onset is the first bucket at the
      new rate;
    - "steady": neither.

    >>> trend_kind([1, 0, 2, 1, 40, 55, 1, 0, 1, 1])
    Trend(kind='spike', onset=4)
    >>> trend_kind([1, 0, 2, 1, 1, 1, 20, 18, 25, 22])
    Trend(kind='step', onset=6)
    >>> trend_kind([4, 6, 5, 3, 5, 6])
    Trend(kind='steady', onset=None)
    >>> trend_kind([0, 0, 0, 0, 0])
    Trend(kind='none', onset=None)
    """
    c = _clean_counts(counts)
    if c.size < MIN_BUCKETS or not c.any():
        return Trend("none", None)
    usual = float(np.median(c))
    limit = usual + 4 * math.sqrt(usual + 1)
    peak = int(c.argmax())
    if c[peak] > limit >= c[-1] and top_share(c - usual) >= 0.5:
        quiet = np.flatnonzero(c[:peak] <= limit)
        return Trend("spike", int(quiet[-1]) + 1 if quiet.size else 0)
    onset = change_point(c).index
    return Trend("steady" if onset is None else "step", onset)


def percentile(values: ArrayLike, q: float) -> float:
    """Give the `q`-th percentile (0..100) of the values, in their unit.

    Missing values (`nan`) are left out; when none remains, the result is `nan`.

    >>> percentile([1.0, 2.0, float("nan"), 3.0], 50)
    2.0
    >>> percentile([], 95)
    nan
    """
    v = np.asarray(values, dtype=float).ravel()
    v = v[~np.isnan(v)]
    return float(np.percentile(v, q)) if v.size else math.nan


def burn_rate(bad: float, total: float, objective: float) -> float:
    """Tell how many times faster than allowed an error budget is spent; 1 lasts exactly its period.

    `bad` of `total` events missed the objective, a share such as 0.999. Returns `nan` when there were no
    events; with an objective of 1, which leaves no budget, `inf` for any bad event and 0 for none.

    >>> round(burn_rate(bad=144, total=10_000, objective=0.999), 1)
    14.4
    >>> burn_rate(bad=0, total=0, objective=0.999)
    nan
    """
    if not total > 0:
        return math.nan
    budget = 1 - objective
    if budget <= 0:
        return math.inf if bad > 0 else 0.0
    return bad / total / budget


def _clean_counts(counts: ArrayLike) -> NDArray[np.float64]:
    """Convert counts to one float array; missing and negative counts are 0."""
    c = np.asarray(counts, dtype=float).ravel()
    return np.asarray(np.where(np.isfinite(c), np.maximum(c, 0.0), 0.0))


def _log_likelihood(events: ArrayLike, buckets: ArrayLike) -> NDArray[np.float64]:
    """Return the log-likelihood of a Poisson rate fitted to its own segment, up to what all splits share."""
    e = np.maximum(np.asarray(events, dtype=float), 0.0)
    return np.asarray(e * np.log(np.where(e > 0, e, 1.0) / np.asarray(buckets, dtype=float)))
