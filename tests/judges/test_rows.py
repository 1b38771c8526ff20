"""The door between frames and judges: what is there is of its type, what is not is the default."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book import pack
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Hop, Reason, Status, Threshold, Value, judged, say
from runbook_lib.model.unread import UnreadError
from tests.kit.rows import assert_fits, kinds_of_rows
from tests.kit.steps import make_given, words

TIMES = st.datetimes(timezones=st.just(None)).map(lambda t: pd.Timestamp(t, tz="UTC"))


class Batch(rows.Row):
    """A kind with one field of each type."""

    name: str = ""
    n: int = 0
    took_s: float | None = None
    at: pd.Timestamp | None = None
    whole: bool = False


class Asked(Batch, query="batches"):
    """The same of a query."""


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


@pytest.mark.parametrize("frame", [pd.DataFrame(), pd.DataFrame(columns=["name", "n"])])
def test_no_row_is_a_row_of_defaults(frame: pd.DataFrame) -> None:
    assert rows.each(frame, Batch) == [] and rows.first(frame, Batch) is None
    assert rows.one(frame, Batch) == Batch()


def test_what_was_not_read_is_no_zero() -> None:
    assert rows.each(None, Batch) == [] and rows.first(None, Batch) is None
    unread = rows.one(None, Batch)
    assert (unread.name, unread.took_s, unread.at) == ("", None, None), "what may be unknown says so by its type"
    uses: list[Callable[[], object]] = [
        lambda: unread.n + 1, lambda: 1 - unread.n, lambda: unread.n or 0, lambda: unread.n > 0, lambda: unread.n == 0,
        lambda: max(unread.n, 0), lambda: sum([unread.n]), lambda: float(unread.n), lambda: f"{unread.n:.0f}",
        lambda: str(unread.n), lambda: round(unread.n), lambda: not unread.whole, lambda: bool(unread.whole),
        lambda: {unread.n: 1}, lambda: unread.n in (0, 1), lambda: np.float64(1) * unread.n, lambda: abs(unread.n),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(UnreadError, match=r"Batch\."):
            use()


def test_what_was_not_read_is_shown_as_unknown_and_compared_as_unknown() -> None:
    unread = rows.one(None, Batch)
    limit = Threshold("n", "rows", warning=0, critical=5)
    assert Value("n", unread.n, "rows", limit).status is Status.UNKNOWN
    assert limit.status(unread.n) is Status.UNKNOWN and not limit.reached(unread.n)
    assert Hop("relay", waiting=unread.n).waiting is None and say("x", n=unread.n).params == {"n": None}
    assert rows.frame([unread], Batch)["n"].isna().all()


def test_a_judge_that_needs_what_was_not_read_is_undecided() -> None:
    def judge(frames: Frames, given: JudgeInput) -> Finding:
        few = rows.one(frames.get("batch"), Batch).n < 1
        return judged(say("unknown.no_data", detail=""), at_least=Status.OK if few else Status.WARNING)

    found = Check("4.1.1", lambda rb: {}, judge).finding({"other": pd.DataFrame()}, make_given())
    assert (found.status, found.reason) == (Status.UNKNOWN, Reason.NO_DATA)
    assert words(found) == "cannot decide: Batch.n was not read"


def test_what_is_missing_is_the_default_and_other_columns_are_not_looked_at() -> None:
    frame = pd.DataFrame({"n": [3.0, None], "at": [pd.NaT, "2025-01-31T03:00:00+09:00"], "other": [object(), None]})
    first, second = rows.each(frame, Batch)
    assert first == Batch(n=3) and isinstance(first.n, int)
    assert second == Batch(at=pd.Timestamp("2025-01-30T18:00:00Z"))


def test_one_column_is_read_alone_and_what_is_not_there_is_none() -> None:
    frame = pd.DataFrame({"n": [3.0, 4.0], "gone": [None, 1.0], "at": ["2025-01-31T03:00:00+09:00", None]})
    assert rows.value(frame, "n", int) == 3 and isinstance(rows.value(frame, "n", int), int)
    assert rows.value(frame, "at", pd.Timestamp) == pd.Timestamp("2025-01-30T18:00:00Z")
    absent: list[tuple[pd.DataFrame | None, str]] = [(None, "n"), (frame.head(0), "n"), (frame, "gone"), (frame, "x")]
    assert all(rows.value(f, column, float) is None for f, column in absent)


def test_a_time_without_a_zone_is_utc() -> None:
    frame = pd.DataFrame({"at": [pd.Timestamp("2025-01-31 03:00")]})
    assert rows.one(frame, Batch).at == pd.Timestamp("2025-01-31T03:00:00Z")


# The pack's.

KINDS = kinds_of_rows(pack.active_runbook().packs[0])


def test_a_kind_of_row_has_a_default_for_each_field_and_a_name_of_its_own() -> None:
    assert [kind() for kind in KINDS] and len({kind.__name__ for kind in KINDS}) == len(KINDS) > 100


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"took_s": [None, None], "other": [1, 2]}, ""),
        ({"n": None}, "batches has no column for Asked: n"),
        ({"n": ["1", "2"]}, "batches: n is string, and Asked takes int"),
        ({"at": ["2025-01-31", None]}, "batches: at is string, and Asked takes Timestamp"),
        ({"whole": [1, 0]}, "batches: whole is integer, and Asked takes bool"),
        ({"name": [7, 8]}, "batches: name is integer, and Asked takes str"),
    ],
)
def test_an_answer_that_does_not_fit_its_kind_of_row_is_refused(change: dict[str, Any], problem: str) -> None:
    columns = {"name": ["a", None], "n": [1.0, None], "took_s": [1, 2], "at": [pd.Timestamp(0, tz="UTC")] * 2}
    answer = pd.DataFrame({n: v for n, v in (columns | {"whole": [True, None]} | change).items() if v is not None})
    with pytest.raises(AssertionError, match=problem) if problem else nullcontext():
        assert_fits("batches", answer, [Batch, Asked])
    assert_fits("others", answer, [Asked])
