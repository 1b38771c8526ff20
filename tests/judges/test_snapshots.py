"""The differences between two samples of a section."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.diagnosis import snapshots
from runbook_lib.diagnosis.snapshots import RunSnapshot, difference
from runbook_lib.model.finding import (
    Finding,
    Hop,
    RankedMode,
    Reason,
    Threshold,
    Value,
    Verdict,
    judged,
    replace,
    say,
    unknown,
)

LIMIT = Threshold("queue.oldest", "s", 10, 60)


def finding(step: str = "4.1.1", **values: Any) -> Finding:
    seen = [Value(n, v, "s", LIMIT) if n == "oldest" else Value(n, v, "rows") for n, v in values.items()]
    return replace(judged(say("compare.same"), seen), step=step)


def look(*findings: Finding, **verdict: Any) -> RunSnapshot:
    status = max((f.status for f in findings), key=lambda s: s.rank)
    return snapshots.take_snapshot(
        "a look", findings, Verdict(status, verdict.pop("stuck_at", None), "high", **verdict)
    )


def said(before: RunSnapshot, after: RunSnapshot) -> list[tuple[str, str, str]]:
    return [(c.kind, c.where, c.name) for c in difference(before, after)]


def test_what_appears_what_goes_and_what_moves() -> None:
    strip = {w: (Hop("relay", waiting=w, rate_out=100),) for w in (0, 300)}
    before = look(finding(due=3, oldest=2.0), failure_modes=(RankedMode("FM-OB-02", 0.7),), hops=strip[0])
    after = look(
        finding(due=300, oldest=61.0),
        unknown("4.1.2", Reason.TIMEOUT, say("compare.same")),
        failure_modes=(RankedMode("FM-OB-01", 0.9), RankedMode("FM-OB-03", 0.0)),
        stuck_at="relay",
        hops=strip[300],
    )
    assert set(said(before, after)) == {
        ("verdict", "", ""),
        ("mode", "FM-OB-01", ""),
        ("mode", "FM-OB-02", ""),
        ("step", "4.1.1", ""),
        ("value", "4.1.1", "due"),
        ("value", "4.1.1", "oldest"),
        ("hop", "relay", "waiting"),
    }


@pytest.mark.parametrize(
    ("before", "after", "unit", "moved"),
    [
        (100, 130, "rows", False),
        (100, 190, "rows", True),
        (0, 16, "rows", False),
        (0, 17, "rows", True),
        (-6, -1, "rows", True),
        (0.5, 0.6, "ratio", True),
        (0.5, 0.5, "ratio", False),
    ],
)
def test_what_chance_explains_has_not_moved(before: float, after: float, unit: str, moved: bool) -> None:
    all_named: tuple[dict[str, Any], ...] = ({"n": before, "gone": 9, "x": 1}, {"n": after, "new": 9, "x": "text"})
    looks = [
        look(replace(finding(), values=tuple(Value(name, value, unit) for name, value in named.items())))
        for named in all_named
    ]
    assert said(*looks) == ([("value", "4.1.1", "n")] if moved else [])


def test_only_numbers_of_steps_that_ran_are_in_a_snapshot() -> None:
    odd = [Value("yes", True), Value("text", "x"), Value("none", None), Value("nan", math.nan), Value("n", 7, "rows")]
    seen = look(
        replace(finding(), values=tuple(odd)),
        unknown("4.1.2", Reason.NOT_RUN, say("compare.same")),
        unknown("4.1.3", Reason.TIMEOUT, say("compare.same")),
        hops=(Hop("relay", waiting=0.0),),
    )
    assert {*seen.numbers} == {("4.1.1", "n"), ("relay", "waiting")}
    assert {*seen.steps} == {"4.1.1", "4.1.3"}


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        ({"stuck_at": "relay", "failure_modes": (RankedMode("FM-OB-01", 0.9),)}, "OK, relay, FM-OB-01, high"),
        ({"undecided": ("relay", "jetstream")}, "OK, relay / jetstream, high"),
        ({"failure_modes": (RankedMode("FM-OB-01", 0.0), RankedMode("FM-OB-02", 0.1))}, "OK, FM-OB-02, high"),
    ],
)
def test_a_conclusion_in_one_line(verdict: dict[str, Any], line: str) -> None:
    seen = look(finding(), **verdict)
    assert seen.verdict and snapshots.conclusion(seen.verdict) == line
    # Of two moments the status and the hop are compared, of the same evidence all of it.
    other = look(finding())
    assert ("verdict" in {c.kind for c in difference(other, seen)}) is ("stuck_at" in verdict)
    assert "verdict" in {c.kind for c in difference(other, seen, same_evidence=True)}


STREAM = ("jetstream", "stream s", "max_age", "90 s")


@pytest.mark.parametrize(
    ("before", "now", "differing"),
    [
        ([STREAM], [STREAM], []),
        ([STREAM], [(*STREAM[:3], "5 s")], [["stream s", "max_age", "90 s", "5 s"]]),
        ([STREAM], [], []),  # not answered
        ([STREAM, ("postgres", "table t", "a", "1")], [STREAM], []),
        ([STREAM], [("jetstream", "stream t", "max_age", "5 s")],
         [["stream s", "max_age", "90 s", ""], ["stream t", "max_age", "", "5 s"]]),
        ([STREAM], [("jetstream", "stream s", snapshots.LOCKED, "")], []),
    ],
)  # fmt: skip
def test_settings_that_differ(
    before: list[tuple[str, ...]], now: list[tuple[str, ...]], differing: list[list[str]]
) -> None:
    was, is_ = (pd.DataFrame(rows, columns=snapshots.SETTING_COLUMNS) for rows in (before, now))
    assert snapshots.drift(was, is_).to_numpy().tolist() == differing
    read = [look(replace(finding(), frames={snapshots.CONFIGURATION: frame})) for frame in (was, is_)]
    found = [c for c in difference(*read) if c.kind == "setting"]
    assert [[c.where, c.name, c.before or "", c.after or ""] for c in found] == differing
    assert not {None, ""} & {c.after if c.before is None else c.before for c in found}
    assert difference(look(finding()), read[1]) == difference(read[0], look(finding())) == ()


def test_a_number_beyond_its_limit_has_moved_however_near() -> None:
    assert ("value", "4.1.1", "oldest") in said(look(finding(oldest=9.9)), look(finding(oldest=10.1)))


def test_that_one_looks_back_further_is_said_first() -> None:
    before, after = (replace(look(finding(due=n)), window_minutes=w) for n, w in ((400, 15), (100, 60)))
    changes = difference(before, after)
    assert (changes[0].name, changes[0].before, changes[0].after) == ("window_minutes", 15, 60)
    for other in (before, replace(before, window_minutes=None)):
        assert "window_minutes" not in {c.name for c in difference(other, replace(after, window_minutes=15))}


def test_what_was_not_seen_before_has_not_changed() -> None:
    silent = unknown("4.1.1", Reason.NO_DATA, say("compare.same"))
    before, after = look(silent), look(finding(due=900))
    assert [c.kind for c in difference(before, after)] == ["verdict"]
    assert [c.kind for c in difference(before, after, same_evidence=True)] == ["verdict", "step"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6)), max_size=6))
def test_a_look_does_not_differ_from_itself(values: list[tuple[str, float]]) -> None:
    seen = look(finding(**dict[str, Any](values)))
    assert difference(seen, seen) == difference(seen, seen, same_evidence=True) == ()
