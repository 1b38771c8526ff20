"""The door between frames and judges: what is there is of its type, what is not is the default."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib import rows

TIMES = st.datetimes(timezones=st.just(None)).map(lambda t: pd.Timestamp(t, tz="UTC"))


@dataclass(frozen=True)
class Batch:
    """A kind with one field of each type."""

    name: str = ""
    n: int = 0
    took_s: float | None = None
    at: pd.Timestamp | None = None
    whole: bool = False


BATCHES = st.builds(
    Batch,
    name=st.text(),
    n=st.integers(-(2**53), 2**53),
    took_s=st.none() | st.floats(allow_nan=False),
    at=st.none() | TIMES,
    whole=st.booleans(),
)


@given(st.lists(BATCHES, max_size=5))
def test_what_goes_out_as_a_frame_comes_back(batches: list[Batch]) -> None:
    assert rows.each(rows.frame(batches, Batch), Batch) == batches


@pytest.mark.parametrize("frame", [None, pd.DataFrame(), pd.DataFrame(columns=["name", "n"])])
def test_nothing_is_a_row_of_defaults(frame: pd.DataFrame | None) -> None:
    assert rows.each(frame, Batch) == [] and rows.first(frame, Batch) is None
    assert rows.one(frame, Batch) == Batch()


def test_what_is_missing_is_the_default_and_other_columns_are_not_looked_at() -> None:
    frame = pd.DataFrame({"n": [3.0, None], "at": [pd.NaT, "2025-01-31T03:00:00+09:00"], "other": [object(), None]})
    first, second = rows.each(frame, Batch)
    assert first == Batch(n=3) and isinstance(first.n, int)
    assert second == Batch(at=pd.Timestamp("2025-01-30T18:00:00Z"))


def test_a_time_without_a_zone_is_utc() -> None:
    assert rows.one(pd.DataFrame({"at": [pd.Timestamp("2025-01-31 03:00")]}), Batch).at == pd.Timestamp(
        "2025-01-31T03:00:00Z"
    )
