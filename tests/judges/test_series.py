"""Counts by steps of time, and queries for several spans at once."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model.finding import Reason
from runbook_lib.model.unread import UnreadError
from runbook_lib.packs.entitlement.checks.series import FlowCounts, ask_flows, ask_since
from runbook_lib.sources.source import SourceError
from tests.kit.frames.recovery import flows
from tests.kit.steps import make_given, open_target


def test_counts_of_steps() -> None:
    series = FlowCounts.of(pd.concat([flows((1, 5), (2, 6), (4, 7)), flows((10, 0))]), make_given())
    assert [series.count("arrived", s, skip) for s, skip in ((10, 0), (20, 0), (20, 10), (99, 20))] == [11, 13, 6, 4]
    assert series.has("gone") and series.now("gone") is None
    for unread in (series, FlowCounts.of(None, make_given())):
        with pytest.raises(UnreadError):
            unread.count("late")


class Costly:
    """A snapshot that refuses a query for more spans than these."""

    def __init__(self, most: int) -> None:
        self.most = most

    def ask_apart(self, query: str, *, begins: list[pd.Timestamp], **_: Any) -> pd.DataFrame:
        if len(begins) > self.most:
            raise SourceError("postgres", Reason.DENIED, "plan cost", "cost_gate")
        return pd.DataFrame({"nth": range(1, len(begins) + 1), "begin": begins})


@pytest.mark.parametrize("most", [4, 2, 0])
def test_spans_are_asked_for_at_once_or_only_those_that_are_wanted(most: int) -> None:
    rb, parts = open_target("3", {"nats_url": "nats://127.0.0.1:9"}), FrameCollector()
    ask_since(rb, Costly(most), parts, "q", first="window", second="now")  # type: ignore[arg-type]
    if not most:
        assert {*parts.failures} == {"first", "second"} and not parts.answers
        return
    assert not parts.failures
    begins = {name: frame["begin"].tolist() for name, frame in parts.answers.items()}
    assert begins == {"first": [rb.since], "second": [rb.as_of - pd.Timedelta(minutes=5)]}


@pytest.mark.parametrize("code", ["cost_gate", "lock_not_available"])
def test_only_a_read_that_is_too_expensive_is_asked_for_less(code: str) -> None:
    rb, hours = open_target("6", {"nats_url": "nats://127.0.0.1:9"}), list[float]()

    class Refusing:
        def ask_apart(self, query: str, *, since: pd.Timestamp, created_since: pd.Timestamp, **_: Any) -> pd.DataFrame:
            hours.append((since - created_since) / pd.Timedelta(hours=1))
            raise SourceError("postgres", Reason.DENIED, "refused", code)

    with pytest.raises(SourceError, match="refused"):
        ask_flows(rb, Refusing(), "notifications")  # type: ignore[arg-type]
    assert hours == ([rb.number("recovery.created_before"), 1] if code == "cost_gate" else hours[:1])
