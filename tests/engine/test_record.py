"""A notebook carries its findings: what is written is what is read back."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book import messages
from runbook_lib.model.finding import (
    Finding,
    Hop,
    Proposal,
    RankedMode,
    Reason,
    ScoreReason,
    SentQuery,
    Signal,
    Status,
    Text,
    Threshold,
    Value,
    Verdict,
    replace,
    say,
    unknown,
)
from runbook_lib.store import record
from runbook_lib.view import render

FINDING = Finding(
    "4.1.1",
    Status.UNKNOWN,
    say("unknown.timeout", source="postgres", detail="late"),
    Reason.TIMEOUT,
    values=(Value("backlog.due", 7, "rows", Threshold("backlog.due", "rows", 50, 500, origin="docs/slo.md")),),
    notes=(say("unknown.not_run"),),
    signals=(Signal("relay", -0.5), Signal("FM-OB-01", 0.5)),
    hops=(Hop("relay", 1.0, None, 2, 3.5, "pod"),),
    proposals=(Proposal("logs", "kubectl logs", "5.1", {"name": "x"}),),
    next_sections=("4.3",),
    frames={"now": pd.DataFrame({"due": [7], "at": [pd.Timestamp("2026-01-01T00:00:00Z")]})},
    show=("now",),
    queries=(SentQuery("postgres", "q", "SELECT 1", 1.5, 1, 8.0, ""),),
)


def through_json(document: Any) -> Any:
    return json.loads(json.dumps(document, allow_nan=False))


def conclusion(verdict: Any) -> str:
    """The page's part about a verdict."""
    about: dict[str, Any] = {"header": {"section": "4.1"}, "findings": (), "titles": {}}
    return render.html(
        "conclusion", verdict=verdict, cost={"queries": 1, "ms": 1, "rows": 1, "max_plan_cost": None}, **about
    )


def test_a_finding_survives_json() -> None:
    stored = through_json(record.finding(FINDING))
    back = record.finding_from_json(stored)
    assert record.finding(back) == stored
    for name in ("status", "reason", "signals", "hops"):
        assert getattr(back, name) == getattr(FINDING, name)
    for lang in messages.LANGUAGES:
        assert messages.text(back.headline, lang) == messages.text(FINDING.headline, lang)
    pd.testing.assert_frame_equal(back.frames["now"], FINDING.frames["now"], check_dtype=False)


columns = st.one_of(
    st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=5),
    st.lists(st.floats(allow_nan=True, allow_infinity=False), min_size=1, max_size=5),
    st.lists(st.one_of(st.none(), st.text()), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)


@given(columns)
def test_a_frame_survives_json(values: list[object]) -> None:
    frame = pd.DataFrame({"x": pd.Series(values, dtype=object).infer_objects()})
    stored = through_json(record.frame_to_json(frame))
    back = record.frame_from_json(stored)
    assert record.frame_to_json(back) == stored
    missing = [v is None or v != v for v in values]
    assert [bool(m) for m in back["x"].isna()] == missing


def test_durations_are_numbers_of_seconds() -> None:
    waits = pd.to_timedelta([90.5, None, 0], unit="s")
    apart = pd.Series([timedelta(minutes=1), None, np.timedelta64(5, "s")], dtype=object)
    frame = pd.DataFrame({"wait": waits, "apart": apart})
    stored = through_json(record.frame_to_json(frame))
    assert stored["rows"] == [[90.5, 60.0], [None, None], [0.0, 5.0]] and stored["columns"][0]["type"] == "float"
    back = record.frame_from_json(stored)
    assert back["wait"].dtype == "float64" and back["wait"].sum() == 90.5
    assert record.plain(np.timedelta64("NaT")) is None


def test_an_index_of_times_survives() -> None:
    index = pd.date_range("2026-01-01", periods=3, freq="min", tz="UTC", name="minute")
    frame = pd.DataFrame({"n": [1, 2, 3]}, index=index)
    back = record.frame_from_json(through_json(record.frame_to_json(frame)))
    assert list(back.index) == list(index) and back.index.name == "minute"


def test_a_finding_shows_itself_in_both_languages_and_escapes_what_it_shows() -> None:
    frame = pd.DataFrame({"last_error": ["<script>alert(1)</script>"]})
    nasty = Finding("4.1.1", Status.OK, say("unknown.error", detail="<b>"), frames={"f": frame}, show=("f",))
    for lang in messages.LANGUAGES:
        with messages.using(lang):
            page = render.Card(nasty, "t")._repr_mimebundle_()["text/html"]
        assert "<script>" not in page and "<b>&lt;b&gt;" not in page
        assert "&lt;script&gt;" in page


def test_an_output_keeps_the_language_in_which_it_was_made() -> None:
    with messages.using("ja"):
        card = render.Card(FINDING, "t")
    assert messages.text(FINDING.headline, "ja") in card._repr_mimebundle_()["text/plain"]
    assert messages.language() == "en"


def test_a_thread_begins_in_the_language_of_the_process() -> None:
    with ThreadPoolExecutor() as threads, messages.using("ja"):
        assert (messages.language(), threads.submit(messages.language).result()) == ("ja", "en")
        messages.use("ja")
        try:
            assert threads.submit(messages.language).result() == "ja"
        finally:
            messages.use("en")


@pytest.mark.parametrize("alive", [None, "pod", say("alive.not_bound"), say("alive.silent", s=12.4)])
def test_who_is_alive_is_worded_when_it_is_shown(alive: Text | str | None) -> None:
    """In the language of whoever reads, also of a finding read back; a name stays one."""
    stored = through_json(record.finding(replace(FINDING, hops=(Hop("subscriber", alive=alive),))))
    back = record.finding_from_json(stored)
    assert record.finding(back) == stored
    verdict = Verdict(Status.OK, None, "high", hops=back.hops)
    seen = record.from_json(Verdict, through_json(record.verdict(verdict)))  # as a dossier's page has it
    for lang, word in (("en", "alive"), ("ja", "稼働")):
        with messages.using(lang):
            shown = messages.text(alive) if isinstance(alive, Text) else alive
            head, row = render.strip_lines(verdict)
            assert head.endswith(word) and row.endswith(shown or "·")
            assert (f"<small>{shown}</small>" in conclusion(seen)) is (alive is not None)


WHY = (
    ScoreReason("observed", ("3.2", "4.1.1"), "delivery.stopped", 0.9, say("backlog.empty")),
    ScoreReason("observed", ("4.1.4",), "", -0.4, say("backlog.empty")),
    ScoreReason("excludes", ("4.3.2",), "backlog.sends", 0.0, say("backlog.empty")),
    ScoreReason("unseen", ("4.3.2",), "postgres", 0.0, say("unknown.not_run", step="4.3.2")),
    ScoreReason("elsewhere", (), "database", 0.6, say("hop.database")),
)


@pytest.mark.parametrize("lang", messages.LANGUAGES)
def test_why_a_failure_mode_has_its_score_is_told_line_by_line_in_notebook_dossier_and_terminal(lang: str) -> None:
    verdict = Verdict(Status.CRITICAL, "database", "low", (RankedMode("FM-NOTI-06", 0.32, WHY),))
    seen = record.from_json(Verdict, through_json(record.verdict(verdict)))
    mode = seen.failure_modes[0]
    with messages.using(lang):
        lines = render.why_lines(mode)
        assert len(lines) == len(WHY) and "None" not in "".join(lines)
        assert lines[0].startswith("+0.90 delivery.stopped") and "3.2, 4.1.1" in lines[0]
        assert messages.text(say("backlog.empty")) in lines[1] and lines[1].startswith("-0.40")
        assert [line in "\n".join(render.failure_mode_lines(seen)) for line in lines] == [True] * len(lines)
        page = conclusion(seen)
        assert [f"<li>{line}</li>" in page for line in lines] == [True] * len(lines)


@pytest.mark.parametrize("reason", Reason)
def test_the_reason_of_an_unknown_is_told_in_the_readers_language(reason: Reason) -> None:
    finding = unknown("4.1.1", reason, say("unknown.not_run"))
    assert f"UNKNOWN ({reason.value}): " in render.finding_line(finding)
    with messages.using("ja"):
        assert not re.search(r"\([a-z_]+\)", render.finding_line(finding))


def test_what_is_unknown_for_one_reason_is_said_once() -> None:
    def away(step: str) -> Finding:
        return unknown(step, Reason.UNREACHABLE, say("unknown.error", detail="postgres is away"))

    well = Finding("2.3", Status.OK, say("ui.no_action"))
    found = [
        away("2.1"),
        well,
        away("2.2"),
        replace(well, step="2.6"),
        unknown("2.7", Reason.NOT_RUN, say("unknown.not_run")),
    ]
    assert [line.split()[1:3] for _, line in render.finding_lines(found)] == [
        ["2.1,", "2.2"], ["2.3", "OK:"], ["2.6", "OK:"], ["2.7", "UNKNOWN"]
    ]  # fmt: skip
