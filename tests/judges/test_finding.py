"""The vocabulary: nothing missing is ever green, and every planned step appears exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.model.finding import (
    Finding,
    Reason,
    Status,
    Threshold,
    Value,
    complete,
    judged,
    overall,
    say,
    unknown,
    worst,
)

STATUSES = st.sampled_from(Status)


def test_exit_codes_are_those_of_nagios() -> None:
    assert [s.value for s in (Status.OK, Status.WARNING, Status.CRITICAL, Status.UNKNOWN)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], Status.UNKNOWN),
        ([Status.OK], Status.OK),
        ([Status.OK, Status.WARNING], Status.WARNING),
        ([Status.WARNING, Status.UNKNOWN], Status.UNKNOWN),
        ([Status.UNKNOWN, Status.CRITICAL], Status.CRITICAL),
    ],
)
def test_unknown_ranks_between_warning_and_critical(statuses: list[Status], expected: Status) -> None:
    assert worst(statuses) is expected


@given(st.lists(STATUSES, min_size=1), st.lists(STATUSES, min_size=1))
def test_worst_is_order_free_and_joins(a: list[Status], b: list[Status]) -> None:
    assert worst(a + b) is worst([worst(a), worst(b)]) is worst(b + a)


@given(st.none() | st.floats(allow_nan=True), st.floats(0, 100), st.floats(0, 100), st.booleans())
def test_a_threshold_answers_everything(value: float | None, warning: float, critical: float, below: bool) -> None:
    status = Threshold("t", "s", warning, critical, below).status(value)
    missing = value is None or value != value
    assert (status is Status.UNKNOWN) == missing


def test_at_or_above_is_bad_and_below_with_a_mark() -> None:
    up, down = Threshold("a", "s", 5, 10), Threshold("b", "%", 99.95, 99.9, below=True)
    assert [up.status(v) for v in (4.9, 5, 10)] == [Status.OK, Status.WARNING, Status.CRITICAL]
    assert [down.status(v) for v in (99.95, 99.92, 99.8)] == [Status.OK, Status.WARNING, Status.CRITICAL]


def test_a_value_that_was_not_seen_is_not_green() -> None:
    seen = judged(say("x"), [Value("a", None, "s", Threshold("a", "s", 1, 2))])
    assert (seen.status, seen.reason) == (Status.UNKNOWN, Reason.NO_DATA)


@given(st.sets(st.sampled_from(["1.1", "1.2", "1.3", "9.9"])))
def test_every_planned_step_exactly_once(answered: set[str]) -> None:
    findings = {s: Finding(s, Status.OK, say("x")) for s in answered}
    result = complete(["1.1", "1.2", "1.3"], findings)
    assert [f.step for f in result] == ["1.1", "1.2", "1.3"]
    assert all((f.reason is Reason.NOT_RUN) == (f.step not in answered) for f in result)


def test_not_configured_is_neither_green_nor_counted() -> None:
    absent = unknown("2.6", Reason.NOT_CONFIGURED, say("x"))
    assert overall([absent, Finding("2.5", Status.OK, say("x"))]) is Status.OK
    assert overall([absent]) is Status.UNKNOWN
