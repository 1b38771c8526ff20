"""The next question of an undecided verdict: which one it is, when no more is asked, and what its answer came to."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_diagnosis import BOOK, seen

from runbook_lib import catalog
from runbook_lib.analysis import diagnosis
from runbook_lib.model.finding import Answer, Finding, Hop, Signal, Status, say
from runbook_lib.runs import batch, investigation

STEPS = sorted({step for mode in BOOK.failure_modes.values() for step in mode.told_by})
RIVALS = ("FM-DB-01", "FM-DB-02", "FM-DB-03", "FM-OB-01")


@given(
    st.lists(st.lists(st.sampled_from(STEPS), unique=True, max_size=4), min_size=2, max_size=4),
    st.sets(st.sampled_from(STEPS)),
)
def test_the_next_question_tells_most_candidates_per_second(told: list[list[str]], asked: set[str]) -> None:
    modes = {
        id_: replace(BOOK.failure_modes[id_], told_by=tuple(steps), remedies=(id_,), excluded_by=())
        for id_, steps in zip(RIVALS, told, strict=False)
    }
    book = replace(BOOK, failure_modes=BOOK.failure_modes | modes)
    rivals = seen("3.1", *(Signal(id_, 0.8, id_) for id_ in modes))
    verdict = diagnosis.conclude([rivals, *(seen(step) for step in asked)], book)
    assert set(verdict.between) == set(modes)
    left = {step for steps in told for step in steps} - asked
    gain = {
        step: sum(step in steps for steps in told) / BOOK.sections[step.rpartition(".")[0]].seconds for step in left
    }
    assert {*verdict.settled_by} == left
    assert [gain[step] for step in verdict.settled_by] == sorted(gain.values(), reverse=True)


def test_an_undecided_place_asks_for_the_modes_that_are_not_excluded() -> None:
    late = Finding("4.1.1", Status.CRITICAL, say("ui.no_action"), hops=(Hop("delivery_worker", late=True),))
    verdict = diagnosis.conclude([late], BOOK)
    assert "receiver" in verdict.undecided and "4.3.2" in verdict.settled_by
    runs = seen("4.3.1", Signal("", 0.0, "delivery.held_up"))  # no worker that hangs: 4.3.2 has nothing to tell
    assert "4.3.2" not in diagnosis.conclude([late, runs], BOOK).settled_by


CHANGED = seen("3.6", Signal("database", 0.9, "a"), Signal("FM-CFG-01", 0.6, "changed.database"))
SLOW = seen("3.2", Signal("FM-DB-01", 0.56, "relay.held_up"))
CANCELLED = seen("4.5.2", *BOOK.evidence("exceptions.cancelled"))


def result(section: str, *findings: Finding) -> Any:
    return SimpleNamespace(run=SimpleNamespace(section=section, findings=findings))


def follow(
    answers: dict[str, Finding],
    monkeypatch: pytest.MonkeyPatch,
    *,
    takes_s: float = 1.0,
    early: dict[str, list[str]] | None = None,
    past: bool = False,
) -> tuple[list[str], Any]:
    """The sections that are opened after section 3, in their order, and the verdict."""
    clock, opened = [0.0], list[str]()
    monkeypatch.setattr(investigation, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def run(sections: dict[str, list[str]]) -> list[Any]:
        clock[0] += takes_s
        opened.extend(sections)
        return [result(n, answers.get(n, seen(f"{n}.1"))) for n in sections]

    results = [result("3", CHANGED, SLOW)]
    return opened, investigation._follow_verdict(results, batch.combine_verdict(results), run, early=early, past=past)


def test_questions_end_with_the_decision_the_budget_or_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, verdict = follow({"4.5": CANCELLED}, monkeypatch)
    assert (opened, verdict.between, verdict.failure_modes[0].id) == (["4.5"], (), "FM-CFG-01")
    assert verdict.asked == (Answer("4.5.2", ("database", "FM-CFG-01"), ("FM-DB-01",)),)
    opened, verdict = follow({}, monkeypatch)
    assert opened == ["4.5", "4.1"] and verdict.between, "nothing decides, and none is left"
    assert [a.step for a in verdict.asked] == ["4.5.1"], "what only repeats is no answer"
    limit = BOOK.numbers["settle.time"]
    assert follow({}, monkeypatch, takes_s=limit)[0] == ["4.5", "4.1"], "the first answers are not in the budget"
    assert follow({}, monkeypatch, past=True)[0] == ["4.5"]
    assert follow({}, monkeypatch, early={"4.3": []}, past=True)[0] == ["4.3", "4.5"], "it was begun, so it counts"
    few = replace(BOOK, numbers=BOOK.numbers | {"settle.questions": 0})
    monkeypatch.setattr(catalog, "load", lambda: few)
    assert follow({}, monkeypatch)[0] == ["4.5"]
