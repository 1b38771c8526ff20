"""The rebuilt backlog, held against simulations in which every level is known."""

import doctest

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.analysis import history
from runbook_lib.analysis.history import backlog_series, blind_spots, partial_buckets

AS_OF = pd.Timestamp("2025-03-01 12:00:20", tz="UTC")
NOTHING = pd.Series(dtype=float)


def per_minute(counts: list[int], last: str = "2025-03-01 12:00") -> pd.Series:
    """Counts of consecutive minutes up to `last`; one without events is missing, as after GROUP BY."""
    index = pd.date_range(end=pd.Timestamp(last, tz="UTC"), periods=len(counts), freq="min")
    series = pd.Series(counts, index=index, dtype=float)
    return series[series > 0]


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(history)
    assert result.attempted > 5
    assert result.failed == 0


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=60),
    st.integers(0, 100),
    st.integers(0, 2**32 - 1),
)
def test_round_trip_of_a_simulated_queue(flows: list[tuple[int, int]], start: int, seed: int) -> None:
    level, arrivals, departures, levels = start, [], [], []
    for came, wanted in flows:
        left = min(wanted, level + came)
        level += came - left
        arrivals.append(came)
        departures.append(left)
        levels.append(level)
    shuffled = per_minute(arrivals).sample(frac=1, random_state=seed)
    frame = backlog_series(level, shuffled, per_minute(departures), AS_OF, minutes=len(flows))
    assert frame["backlog"].tolist() == levels
    assert frame["arrivals"].tolist() == arrivals
    assert frame["departures"].tolist() == departures
    assert frame.attrs["clamped"] == 0


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 100), max_size=40),
    st.lists(st.integers(0, 100), max_size=40),
    st.integers(1, 40),
)
def test_events_are_conserved(now: int, arrivals: list[int], departures: list[int], minutes: int) -> None:
    """The last backlog is what waits now, none is negative, and unclamped ones differ by the net flow."""
    frame = backlog_series(now, per_minute(arrivals), per_minute(departures), AS_OF, minutes)
    assert len(frame) == minutes
    assert frame["backlog"].iloc[-1] == now
    assert (frame["backlog"] >= 0).all()
    if not frame.attrs["clamped"]:
        net = (frame["arrivals"] - frame["departures"]).to_numpy()
        assert np.diff(frame["backlog"].to_numpy()).tolist() == net[1:].tolist()


def test_no_events_are_a_flat_line() -> None:
    frame = backlog_series(12, NOTHING, NOTHING, AS_OF, minutes=5)
    assert frame["backlog"].tolist() == [12.0] * 5
    assert frame["arrivals"].sum() == frame["departures"].sum() == 0


def test_no_minutes_are_an_empty_frame() -> None:
    frame = backlog_series(12, per_minute([1, 2]), NOTHING, AS_OF, minutes=0)
    assert frame.empty
    assert list(frame.columns) == ["arrivals", "departures", "backlog", "partial"]
    assert frame.attrs["clamped"] == 0


def test_negative_levels_are_clamped_and_counted() -> None:
    frame = backlog_series(5, per_minute([0, 4, 10]), NOTHING, AS_OF, minutes=4)
    assert frame["backlog"].tolist() == [0, 0, 0, 5]
    assert frame.attrs["clamped"] == 3


def test_only_the_minute_still_running_is_partial() -> None:
    frame = backlog_series(0, NOTHING, NOTHING, AS_OF, minutes=3)
    assert frame.index[-1] == pd.Timestamp("2025-03-01 12:00", tz="UTC")
    assert frame["partial"].tolist() == [False, False, True]


def test_a_full_minute_ends_at_its_boundary() -> None:
    frame = backlog_series(0, NOTHING, NOTHING, AS_OF.floor("min"), minutes=3)
    assert frame.index[-1] == pd.Timestamp("2025-03-01 11:59", tz="UTC")
    assert not frame["partial"].any()


@pytest.mark.parametrize("as_of", [AS_OF.tz_convert("Asia/Tokyo"), AS_OF.tz_localize(None)])
def test_any_time_zone_is_read_as_utc(as_of: pd.Timestamp) -> None:
    counts = per_minute([3, 0, 2])
    local = counts.tz_convert("Asia/Tokyo")
    pd.testing.assert_frame_equal(
        backlog_series(9, local, counts.tz_localize(None), as_of, minutes=4),
        backlog_series(9, counts, counts, AS_OF, minutes=4),
    )


def test_what_came_after_as_of_or_is_missing_does_not_count() -> None:
    later = per_minute([1, 1, 100], last="2025-03-01 12:01")
    later.iloc[0] = np.nan
    frame = backlog_series(10, later, NOTHING, AS_OF, minutes=3)
    assert frame["backlog"].tolist() == [9, 9, 10]


def test_partial_buckets_of_any_width() -> None:
    starts = pd.date_range("2025-03-01 11:50", periods=3, freq="5min")
    assert partial_buckets(starts, AS_OF, pd.Timedelta(minutes=5)).tolist() == [False, False, True]
    assert partial_buckets(starts[:0], AS_OF, pd.Timedelta(minutes=5)).tolist() == []


@pytest.mark.parametrize(
    ("retention", "redriven", "waiting_hours", "expected"),
    [
        ("7D", 0, None, []),
        ("7D", 0, 0.5, []),
        ("30min", 0, None, ["retention"]),
        ("7D", 3, None, ["redrive"]),
        ("7D", None, None, ["redrive"]),
        ("7D", 0, 2.0, ["lookback"]),
        ("30min", None, 2.0, ["retention", "redrive", "lookback"]),
    ],
)
def test_blind_spots(retention: str, redriven: int | None, waiting_hours: float | None, expected: list[str]) -> None:
    oldest = None if waiting_hours is None else AS_OF - pd.Timedelta(hours=waiting_hours)
    spots = blind_spots(60, pd.Timedelta(retention), redriven, oldest, AS_OF)
    assert spots == [*expected, "one_status"]
