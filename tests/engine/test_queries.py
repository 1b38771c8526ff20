"""What the packs say that each step asks, against what recordings say was asked."""

from __future__ import annotations

import re

from runbook_lib.book import messages, pack
from runbook_lib.book import queries as questions
from runbook_lib.model.finding import say
from runbook_lib.runs import replay
from runbook_lib.view.queries import FILE, declared, psql, queries_of
from tests.kit import RECORDINGS
from tests.tools import make_recordings


def test_each_step_says_what_the_recordings_were_asked() -> None:
    asked = make_recordings.asked_queries(replay.read_index(RECORDINGS))
    committed = (pack.active_runbook().packs[0].folder / FILE).read_text(encoding="utf-8")
    assert make_recordings.queries_file(asked) == committed, "`make record QUERIES=1` writes queries.toml"
    for step, names in make_recordings.NOT_RECORDED.items():
        assert not names & asked[step].keys(), f"a recording has it: take it out of NOT_RECORDED, {step}"
    for step, names in make_recordings.NO_LONGER.items():
        assert names <= asked[step].keys(), f"no recording has it: take it out of NO_LONGER, {step}"
    for step, said in declared(pack.active_runbook().packs[0].folder / FILE).items():
        title, _, listed = queries_of(step).folded().partition("</summary>")
        assert not re.search(r"\d", title), "a step may send a query several times: how many is not known before"
        assert [name for name in said if (name.partition(" ")[2] or name) not in listed] == []


def test_a_query_is_shown_whole_and_ready_for_psql() -> None:
    shown = queries_of("4.1.1")
    (backlog,) = [q for q in shown.sql if q.name == "notifications/backlog"]
    assert f"**notifications/backlog** · cost: index · index: {backlog.index}" in shown.folded()
    assert psql(backlog).endswith(f"{backlog.sql};") and backlog.sql in repr(shown)
    assert list(shown.frame["name"]) == [q.name for q in shown.sql]
    assert r"\set since" in psql(questions.query("outbox/unprocessed"))
    with messages.using("ja"):
        nothing = queries_of("3.5")
    assert "psql" not in repr(shown) and len(nothing) == 0
    assert repr(nothing) == messages.text(say("ui.asks_nothing", step="3.5"), "ja")
