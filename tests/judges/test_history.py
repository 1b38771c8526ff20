"""What waited, held against simulations in which every level is known; spells; what is usual."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.diagnosis import history

_ROW = st.tuples(st.integers(-20, 60), st.one_of(st.none(), st.integers(0, 40)))


@given(st.lists(_ROW, max_size=60), st.integers(1, 20), st.lists(st.integers(0, 3), min_size=60, max_size=60))
def test_levels_are_those_of_the_rows(found: list[tuple[int, int | None]], wide: int, piece: list[int]) -> None:
    """Rows that came at a second and stayed for some; each is in some piece."""
    buckets = 60 // wide
    flows = []
    for p in range(4):
        rows = [r for r, of in zip(found, piece, strict=False) if of == p]
        steps = [(at, 1) for at, _ in rows] + [(at + took, -1) for at, took in rows if took is not None]
        frame = pd.DataFrame(steps, columns=["at", "step"]).sort_values("at", kind="stable")
        frame["bucket"] = (frame["at"] // wide).clip(lower=-1)
        levels = frame.groupby("at")["step"].sum().cumsum()
        frame["level"] = frame["at"].map(levels)
        for bucket, part in frame.groupby("bucket"):
            came, gone = int((part["step"] > 0).sum()), int((part["step"] < 0).sum())
            flows.append((p, bucket, came, gone, part["level"].min(), part["level"].max()))
    columns = ["piece", "bucket", "came", "gone", "least", "most"]
    got = history.levels(pd.DataFrame(flows, columns=columns), buckets)

    def waits(at: int) -> int:
        return sum(came <= at and (took is None or at < came + took) for came, took in found)

    for bucket in range(buckets):
        seconds = [waits(at) for at in range(bucket * wide - 1, (bucket + 1) * wide)]
        row = got.loc[bucket]
        assert row["waiting"] == seconds[-1]
        assert row["came"] == sum(came // wide == bucket for came, _ in found)
        assert row["least"] <= min(seconds) and row["most"] >= max(seconds)
        if len({piece[i] for i in range(len(found))}) <= 1:
            assert (row["least"], row["most"]) == (min(seconds), max(seconds))


def test_no_rows_are_a_flat_line() -> None:
    empty = pd.DataFrame(columns=["piece", "bucket", "came", "gone", "least", "most"])
    assert not history.levels(empty, 5).to_numpy().any()
    assert len(history.levels(empty, 0)) == 0


@given(st.lists(st.integers(0, 50), max_size=80), st.integers(0, 40), st.integers(0, 5))
def test_spells_hold_all_that_is_above(least: list[int], limit: int, gap: int) -> None:
    found = history.episodes(least, limit, gap)
    inside = {i for first, end in found for i in range(first, end)}
    assert {i for i, n in enumerate(least) if n > limit} <= inside
    assert all(least[first] > limit and least[end - 1] > limit for first, end in found)
    assert all(after[0] - before[1] > gap for before, after in pairwise(found))


@pytest.mark.parametrize(
    "frame",
    [
        None,
        pd.DataFrame(),
        pd.DataFrame({"minute": [1]}),
        pd.DataFrame({"n": [1]}),
        pd.DataFrame({"minute": [], "n": []}),
    ],
)
def test_counts_of_nothing_are_none(frame: pd.DataFrame | None) -> None:
    found = history.counts(frame)
    assert found.empty and str(found.index.tz) == "UTC"  # type: ignore[attr-defined]


def test_counts_are_by_minute() -> None:
    minute = pd.Timestamp("2026-07-01T03:12Z")
    assert history.counts(pd.DataFrame({"minute": [minute], "n": [7]})).to_dict() == {minute: 7.0}


def test_half_a_span_that_stood_is_a_spell() -> None:
    least = [0.0] * 30 + [float(5 * i) for i in range(1, 60)] + [0.0] * 10
    usual, limit = history.ordinary(least, 0.25, 4)
    assert history.ordinary([], 0.25, 4) == (0.0, 4.0)
    assert usual == 0 and history.episodes(least, limit, 12) == [(30, 89)]
