"""The next question of an undecided verdict: which one it is, when no more is asked, and what its answer came to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book import catalog
from runbook_lib.book.catalog import Catalog
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.questions import read_answers
from runbook_lib.model.finding import Answer, Finding, Hop, RankedMode, Reason, Signal, Status, Value, Verdict, say
from runbook_lib.model.order import Order, RunProgress
from runbook_lib.runs import batch, investigation
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import Archive
from tests.kit.findings import BOOK, seen

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
    unread = replace(seen("4.3.2"), status=Status.UNKNOWN, reason=Reason.TIMEOUT)
    assert "4.3.2" not in diagnosis.conclude([late, unread], BOOK).settled_by, "it lacks the fact that it lacked before"
    runs = seen("4.3.1", Signal("", 0.0, "delivery.blocked"))  # no worker that hangs: 4.3.2 has nothing to tell
    assert "4.3.2" not in diagnosis.conclude([late, runs], BOOK).settled_by


CHANGED = seen("3.6", Signal("database", 0.9, "a"), Signal("FM-CFG-01", 0.6, "changed.database"))
SLOW = seen("3.2", Signal("FM-DB-01", 0.56, "database.holds_up"))
CANCELLED = seen("4.5.2", *BOOK.evidence("exceptions.cancelled"))


def result(section: str, *findings: Finding) -> Any:
    return SimpleNamespace(section=section, findings=findings)


def follow(
    answers: dict[str, Finding],
    monkeypatch: pytest.MonkeyPatch,
    *,
    takes_s: float = 1.0,
    early: dict[str, list[str]] | None = None,
) -> tuple[list[str], Any]:
    """The sections that are opened after section 3, in their order, and the verdict."""
    clock, opened = [0.0], list[str]()
    monkeypatch.setattr(investigation, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def run(sections: dict[str, list[str]]) -> list[Any]:
        clock[0] += takes_s
        opened.extend(sections)
        return [result(n, answers.get(n, seen(f"{n}.1"))) for n in sections]

    results = [result("3", CHANGED, SLOW)]
    verdict = batch.combine_verdict(results, catalog.load())
    return opened, investigation._follow_verdict(results, verdict, run, catalog.load(), early=early)


def test_questions_end_with_the_decision_the_budget_or_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, verdict = follow({"4.5": CANCELLED}, monkeypatch)
    assert (opened, verdict.between, verdict.failure_modes[0].id) == (["4.5"], (), "FM-CFG-01")
    assert verdict.asked == (Answer("4.5.2", ("database", "FM-CFG-01")),)
    opened, verdict = follow({}, monkeypatch)
    assert opened == ["4.5", "4.1"] and verdict.between, "nothing decides, and none is left"
    assert [a.step for a in verdict.asked] == ["4.5.1"], "what only repeats is no answer"
    limit = BOOK.numbers["settle.time"]
    assert follow({}, monkeypatch, takes_s=limit)[0] == ["4.5", "4.1"], "the first answers are not in the budget"
    assert follow({}, monkeypatch, early={"4.3": []})[0] == ["4.3", "4.5", "4.1"], "it was begun, so it counts"
    few = replace(BOOK, numbers=BOOK.numbers | {"settle.questions": 0})
    monkeypatch.setattr(catalog, "load", lambda: few)
    assert follow({}, monkeypatch)[0] == ["4.5"]


@pytest.mark.parametrize(
    ("step", "signal", "answer"),
    [
        ("4.3.2", Signal("relay", -0.3, "new"), ((), ("relay",))),
        ("4.3.2", Signal("relay", -0.29, "new"), None),
        ("4.5.2", Signal("relay", -0.29, "new"), ((), ())),  # was asked
        ("4.3.2", Signal("relay", -0.3, "known"), None),
        ("4.3.2", Signal("FM-DB-01", -0.3, "new"), ((), ("FM-DB-01",))),
        ("4.3.2", Signal("FM-DB-02", -0.3, "new"), None),  # no candidate
        ("4.3.2", Signal("FM-DB-02", 0.1, "new"), (("FM-DB-02",), ())),
        ("4.3.2", Signal("FM-DB-02", 0.0, "new"), None),
        ("4.3.2", Signal("jetstream", -0.9, "new"), ((), ("jetstream",))),
    ],
)
def test_what_an_answer_supports_and_excludes(step: str, signal: Signal, answer: Any) -> None:
    modes = (RankedMode("FM-DB-01", 0.5), RankedMode("FM-DB-02", 0.0))
    before = Verdict(Status.WARNING, "jetstream", "low", modes, undecided=("relay",), settled_by=("4.5.2",))
    found = read_answers(before, [seen("3.1", Signal("", 0.0, "known"))], [seen(step, signal)], BOOK)
    assert [(a.supports, a.excludes) for a in found] == ([answer] if answer else [])


EARLY = (Value("backlog.look_again", 9.0, "s"),)
LATE = Finding("3.2", Status.CRITICAL, say("ui.no_action"), values=EARLY, hops=(Hop("delivery_worker", late=True),))
WORKS = Finding("3.2", Status.OK, say("ui.no_action"), values=EARLY)
AWAY = Finding("3.2", Status.UNKNOWN, say("ui.no_action"), Reason.TIMEOUT, values=EARLY)
LASTS = replace(LATE, values=())
ORDER = Order(("3",), "kept", follow=True, job="j", deadline_s=100.0)


@pytest.mark.parametrize(
    ("order", "first_s", "looks", "counts", "orders"),
    [
        (ORDER, 5, (LATE, CANCELLED), CANCELLED, ["j", "j/triage-2"]),
        (replace(ORDER, job=""), 5, (LATE, WORKS), WORKS, ["", ""]),
        (ORDER, 5, (AWAY, LATE), LATE, ["j", "j/triage-2"]),
        (ORDER, 5, (LATE, AWAY), LATE, ["j", "j/triage-2"]),
        (ORDER, 5, (CANCELLED, LATE), CANCELLED, ["j"]),
        (ORDER, 5, (WORKS, LATE), WORKS, ["j"]),
        (ORDER, 5, (LASTS, CANCELLED), LASTS, ["j"]),
        (ORDER, 60, (LATE, CANCELLED), LATE, ["j"]),
        (replace(ORDER, follow=False), 5, (LATE, CANCELLED), LATE, ["j"]),
        (replace(ORDER, sections=("2",)), 5, (LATE, CANCELLED), LATE, ["j"]),
    ],
    ids=[
        "decided",
        "over",
        "seen",
        "unseen",
        "clear",
        "calm",
        "lasting",
        "late_in_the_deadline",
        "alone",
        "of_no_flow",
    ],
)
def test_what_is_not_decided_is_looked_at_once_more(
    order: Order,
    first_s: float,
    looks: tuple[Finding, Finding],
    counts: Finding,
    orders: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, given, told = [0.0], list[Order](), list[RunProgress]()
    monkeypatch.setattr(investigation, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def run_order(archive: Archive, order: Order, config: Any, book: Catalog, *_: Any) -> tuple[list[Any], Any]:
        given.append(order)
        clock[0] += first_s
        results = [result("3", looks[len(given) - 1])]
        return results, batch.combine_verdict(results, book)

    monkeypatch.setattr(investigation, "_run_order", run_order)
    archive, progress = Archive("kept", "I"), lambda section, found: None
    results, verdict = investigation._look(archive, order, Settings(), catalog.load(), progress, told.append)
    assert [o.job for o in given] == orders
    assert [r.findings for r in results] == [(counts,)] and verdict.status is counts.status
    assert len(told) == len(orders) - 1
    if len(given) == 2:
        assert given[1].deadline_s == order.deadline_s - first_s


def test_a_second_run_takes_no_sections_of_the_second_triage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, ran = Archive(str(tmp_path), "I"), list[str]()

    def run_sections(requests: Any, *_: Any) -> list[Any]:
        for request in requests:
            ran.append(request.job)
            archive.append({"section": request.section, "job": request.job}, {})
        return [result(r.section, LATE) for r in requests]

    monkeypatch.setattr(batch, "request", lambda section, *_, job, **more: SimpleNamespace(section=section, job=job))
    monkeypatch.setattr(batch, "run_sections", run_sections)
    monkeypatch.setattr(investigation, "read_run", lambda archive, entry: result(entry["section"], LATE))
    monkeypatch.setattr(investigation, "sections_to_follow", lambda *_: {})
    monkeypatch.setattr(investigation, "_take_sample", lambda *_: None)
    order = replace(ORDER, job="K")
    for job in ("K", "L"):
        repeated = replace(order, job=job)
        investigation._look(archive, repeated, Settings(), catalog.load(), lambda *_: None, lambda said: None)
    own = investigation.SECOND_TRIAGE
    assert ran == ["K", f"K{own}", "L", f"L{own}"], "each triage looks at the system"
