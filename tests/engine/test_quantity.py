"""Numbers for people: few digits, the unit that fits, nothing that is not zero shown as zero."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book.messages import LANGUAGES, quantity

MEASURED = ("ms", "s", "min", "h", "d", "%", "share", "ratio")


@given(st.floats(allow_nan=False), st.sampled_from(MEASURED), st.sampled_from(LANGUAGES))
def test_what_is_measured_has_no_exponent_and_at_most_four_digits(value: float, unit: str, lang: str) -> None:
    shown = quantity(value, unit, lang)
    assert re.fullmatch(r"[<>≈]?-?[\d,.]+ \D+", shown) and sum(c.isdigit() for c in shown) <= 4
    assert (value == 0) == shown.startswith("0 ")


@given(st.integers(-(2**53), 2**53), st.sampled_from(LANGUAGES))
def test_what_is_counted_is_whole(value: int, lang: str) -> None:
    shown = quantity(value, "rows", lang)
    assert shown == quantity(float(value), "rows", lang) and shown.split()[0] == f"{value:,}"


@pytest.mark.parametrize(
    ("value", "unit", "en", "ja"),
    [
        (2.083e-05, "share", "0.002 %", "0.002 %"),
        (-0.000625, "s", "-0.625 ms", "-0.625 ミリ秒"),
        (0.01043, "s", "10.4 ms", "10.4 ミリ秒"),
        (0.9997, "s", "1 s", "1 秒"),
        (5400, "s", "90 min", "90 分"),
        (0.0425, "d", "1.02 h", "1.02 時間"),
        (1, "ratio", "1 time", "1 倍"),
        (2876, "ratio", "2,880 times", "2,880 倍"),
        (99.9996, "%", "99.99 %", "99.99 %"),
        (1e-9, "s", "≈0 ms", "≈0 ミリ秒"),
        (1, "rows", "1 row", "1 行"),
        (2, "deliveries", "2 deliveries", "2 回"),
        (2656.9, "1/min", "2,657/min", "2,657 件/分"),
        (float("nan"), "s", "–", "–"),
        ("16.14", "", "16.14", "16.14"),
    ],
)
def test_the_unit_fits(value: float | str, unit: str, en: str, ja: str) -> None:
    assert (quantity(value, unit, "en"), quantity(value, unit, "ja")) == (en, ja)
