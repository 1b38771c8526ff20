"""The statistics: worked examples, properties, and the error rates that the verdicts rest on."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runbook_lib.diagnosis import stats

events = st.integers(0, 100_000)
weights = st.lists(st.floats(0, 1), max_size=8)
count_lists = st.lists(st.integers(0, 1000), max_size=80)


# Flow test


@given(events, events, st.integers(1, 600), st.integers(0, 10**6))
def test_flow_test_is_symmetric(arrivals: int, departures: int, minutes: int, backlog: int) -> None:
    one = stats.flow_test(arrivals, departures, minutes, backlog)
    other = stats.flow_test(departures, arrivals, minutes, backlog)
    mirror = {"draining": "filling", "filling": "draining"}
    assert other.z == -one.z
    assert other.net_per_min == -one.net_per_min
    assert other.verdict == mirror.get(one.verdict, one.verdict)


@given(*[st.floats()] * 4)
def test_flow_test_never_raises(arrivals: float, departures: float, minutes: float, backlog: float) -> None:
    result = stats.flow_test(arrivals, departures, minutes, backlog)
    assert result.eta_min is None or (result.verdict == "draining" and result.eta_min >= 0)


@pytest.mark.parametrize(
    ("arrivals", "departures", "minutes"),
    [
        *[(0, 0, 5), (0, 0, 0), (10, 10, 0), (-1, 5, 5), (math.nan, 5, 5), (1, 1, 5)],
        *[(-1, 90, 5), (90, -1, 5), (9, 90, 0), (9, 90, -1), (9, 90, math.nan), (9, math.inf, 5), (math.inf, 9, 5)],
    ],
)
def test_flow_test_without_data_is_inconclusive(arrivals: float, departures: float, minutes: float) -> None:
    result = stats.flow_test(arrivals, departures, minutes, backlog=100)
    assert result.verdict == "inconclusive"
    assert result.eta_min is None and not math.isinf(result.net_per_min)


@pytest.mark.parametrize(
    ("arrivals", "departures", "backlog", "verdict", "eta_min"),
    [
        (4883.5, 5116.5, 9, "steady", None),  # z is 2.33
        (5116.5, 4883.5, 9, "steady", None),
        (4883, 5117, 468, "draining", 10.0),
        (5117, 4883, 468, "filling", None),
        (4883, 5117, -5, "draining", 0.0),
        (4883, 5117, math.nan, "draining", None),
        (1990, 2000, 9, "inconclusive", None),  # finds 200.2, and 200.0 is worth knowing
        (1995, 2010, 9, "steady", None),  # 200.6 of 201.0
    ],
)
def test_a_flow_at_its_limits(
    arrivals: float, departures: float, backlog: float, verdict: str, eta_min: float | None
) -> None:
    result = stats.flow_test(arrivals, departures, 5, backlog)
    assert (result.verdict, result.eta_min) == (verdict, eta_min)


def test_flow_test_finds_what_it_promises() -> None:
    """Where "steady" is allowed, 10% is found four times in five; 30% in five minutes nearly always."""
    rng = np.random.default_rng(7)

    def found(arrival_rate: float, departure_rate: float, minutes: int) -> float:
        arrivals, departures = (rng.poisson(rate * minutes, 2000) for rate in (arrival_rate, departure_rate))
        verdicts = [stats.flow_test(a, d, minutes, 1).verdict for a, d in zip(arrivals, departures, strict=True)]
        return verdicts.count("draining") / len(verdicts)

    assert stats.flow_test(2100, 2100, 21, 1).verdict == "steady"
    assert found(100, 110, 21) > 0.77
    assert found(100, 130, 5) > 0.97
    assert found(100, 100, 15) < 0.02
    assert stats.flow_test(1500, 1500, 15, 1).verdict == "inconclusive"


@pytest.mark.parametrize("minutes", [5, 15, 60])
def test_flat_autocorrelated_levels_are_not_judged_draining(minutes: int) -> None:
    """A tenth of the queue leaves every minute: its level is a flat AR(0.9) series, and wanders."""
    rng = np.random.default_rng(11)
    series, level = 1000, np.full(1000, 1000)
    arrivals = departures = np.zeros(series, dtype=int)
    for minute in range(50 + minutes):
        came, left = rng.poisson(100, series), rng.binomial(level, 0.1)
        level = level + came - left
        if minute >= 50:
            arrivals, departures = arrivals + came, departures + left
    verdicts = [stats.flow_test(a, d, minutes, b).verdict for a, d, b in zip(arrivals, departures, level, strict=True)]
    assert verdicts.count("draining") / series < 0.02


# Counts


@given(count_lists)
def test_counts_never_raise(counts: list[int]) -> None:
    share, change, trend = stats.top_share(counts), stats.change_point(counts), stats.trend_kind(counts)
    assert math.isnan(share) or 0 <= share <= 1
    assert change.ratio >= 0
    assert (trend.onset is not None) == (trend.kind in ("spike", "step"))
    assert (trend.kind == "none") == (len(counts) < stats.MIN_BUCKETS or sum(counts) == 0)


@given(st.integers(5, 60), st.integers(5, 60), st.integers(0, 20), st.integers(0, 2**32 - 1), st.booleans())
def test_change_point_finds_the_planted_onset(before: int, after: int, rate: int, seed: int, falling: bool) -> None:
    rng = np.random.default_rng(seed)
    quiet, loud = rng.poisson(rate, before), rng.poisson(10 * rate + 50, after)
    parts = (loud, quiet) if falling else (quiet, loud)
    change = stats.change_point(np.concatenate(parts))
    assert change.index == parts[0].size
    assert change.before == pytest.approx(parts[0].mean())
    assert change.after == pytest.approx(parts[1].mean())


@given(st.lists(st.integers(0, 60), min_size=stats.MIN_BUCKETS, max_size=20))
@example([5, 5, 5, 6])  # the ratio is below 1
@example([0, 4, 0, 0, 0, 0, 0, 60, 60])  # a mean below 1, in batches
@example([1, 1, 1, 7, 7, 7])  # the ratio is 15.2
def test_change_point_is_the_likeliest_split(counts: list[int]) -> None:
    def likelihood(part: list[int]) -> float:
        return sum(c * math.log(sum(part) / len(part)) for c in part if c)

    ratios = [2 * (likelihood(counts[:n]) + likelihood(counts[n:]) - likelihood(counts)) for n in range(1, len(counts))]
    second, best = sorted(ratios)[-2:]
    assume(best - second > 1e-6)
    at = ratios.index(best) + 1
    means = [*[np.mean(counts[:at])] * at, *[np.mean(counts[at:])] * (len(counts) - at)]
    dispersion = sum((c - m) ** 2 / m for c, m in zip(counts, means, strict=True) if m) / (len(counts) - 2)
    found = stats.change_point(counts)
    assert found.ratio == pytest.approx(best / max(dispersion, 1))
    assert (found.before, found.after) == pytest.approx((means[0], means[-1]))
    assert found.index == (at if found.ratio > 15 else None)


@pytest.mark.parametrize(
    ("counts", "kind", "onset"),
    [
        ([9, 9, 0], "none", None),
        ([0, 0, 90, 90], "step", 2),
        ([0, 0, 0, 4, 60, 70, 0, 0, 0], "spike", 4),
        ([60, 70, 0, 0, 0, 0, 4], "spike", 0),
        ([60, 70, 0, 0, 0, 0, 5], "step", 2),  # not over
        ([0, 0, 0, 0, 0, 4, 0], "steady", None),
        ([0, 0, 0, 0, 0, 5, 0], "spike", 5),
        ([1, 0, 2, 1, 1, 1, 1, 99], "step", 7),
        ([0, *[0, 5] * 6, *[0] * 5], "spike", 2),  # the three busiest hold half of it
        ([0, *[0, 5] * 7, *[0] * 5], "steady", None),
    ],
)
def test_what_a_trend_is(counts: list[int], kind: str, onset: int | None) -> None:
    found = stats.trend_kind(counts)
    assert (found.kind, found.onset) == (kind, onset)


def flat_series(rate: float, n: int = 60) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(42)
    return [rng.poisson(rate, n) for _ in range(300)]


@pytest.mark.parametrize("rate", [0.1, 1, 5, 50, 500])
def test_flat_series_raise_no_alarm(rate: float) -> None:
    series = flat_series(rate)
    assert sum(stats.change_point(c).index is not None for c in series) / len(series) < 0.02
    assert sum(stats.trend_kind(c).kind in ("spike", "step") for c in series) / len(series) < 0.02


def test_batches_are_rarely_a_change() -> None:
    """Ten at a time, the plain ratio would call nearly all of these a change."""
    series = [10 * c for c in flat_series(2)]
    assert sum(stats.change_point(c).index is not None for c in series) / len(series) < 0.05


@pytest.mark.parametrize("onset", [0, 5, 29, 30, 54])
def test_a_spike_on_a_busy_series_is_found(onset: int) -> None:
    counts = np.random.default_rng(5).poisson(20, 60)
    counts[onset : onset + 3] += np.array([90, 200, 120])
    assert stats.trend_kind(counts) == stats.Trend("spike", onset)


@pytest.mark.parametrize("onset", [10, 30, 50, 57])
def test_a_rise_that_lasts_is_a_step(onset: int) -> None:
    counts = np.random.default_rng(6).poisson(5, 60)
    counts[onset:] += 60
    assert stats.trend_kind(counts) == stats.Trend("step", onset)


def test_missing_counts_are_buckets_without_events() -> None:
    assert stats.change_point([math.nan] * 5 + [30] * 5).index == 5
    assert stats.top_share([math.nan, 1, -4, math.inf, 1, 1, 1]) == 0.75


# Percentiles, budgets, evidence


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=30), st.floats(0, 100))
def test_percentile_ignores_nan(values: list[float], q: float) -> None:
    known = [v for v in values if not math.isnan(v)]
    result = stats.percentile(values, q)
    assert min(known) <= result <= max(known) if known else math.isnan(result)


def test_burn_rate() -> None:
    assert stats.burn_rate(5, 1000, 0.995) == pytest.approx(1.0)
    assert stats.burn_rate(0, 1000, 0.995) == 0.0
    assert stats.burn_rate(1, 1, 0.5) == 2.0
    assert stats.burn_rate(1, 1000, 1.0) == math.inf
    assert stats.burn_rate(0, 1000, 1.0) == 0.0
    assert math.isnan(stats.burn_rate(0, 0, 0.995))
