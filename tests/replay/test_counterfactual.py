"""The smallest change of the evidence, on every recording: it flips the verdict, and half of it does not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from runbook_lib.book import catalog
from runbook_lib.book.catalog import Limits
from runbook_lib.checks.check import checks
from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import counterfactual
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.model.finding import EvidenceChange, Finding, Signal, Status, Verdict, replace, say
from runbook_lib.runs import replay
from runbook_lib.store import recording
from runbook_lib.store.recording import Recording
from tests.kit import RECORDINGS
from tests.kit.effort import a_quarter

BOOK = catalog.load()


def read(name: str) -> Recording:
    return recording.read(RECORDINGS / f"{name}{recording.SUFFIX}")


def explain(findings: Sequence[Finding]) -> Verdict:
    return counterfactual.explain(diagnosis.conclude(findings, BOOK), findings, BOOK)


def names(verdict: Verdict, id_: str) -> bool:
    """Whether the verdict names this place or failure mode, and no other beside it."""
    first = next((m.id for m in verdict.failure_modes if m.score >= diagnosis.BROKEN), None)
    return id_ == verdict.stuck_at or (id_ == first and not verdict.between)


def make(change: EvidenceChange, findings: Sequence[Finding], part: float) -> list[Finding]:
    """The findings with a part of the change, which alone excludes and readmits nothing."""
    share = part * change.weight / change.whole

    def remaining(s: Signal) -> list[Signal]:
        mine = s.observation == change.observation
        return [s] if not mine else [] if share == 1 else [replace(s, weight=s.weight * (1 - share))]

    if not change.seen:
        return [replace(f, signals=tuple(itertools.chain(*map(remaining, f.signals)))) for f in findings]
    seen = change.observation if share == 1 else f"{change.observation}, in part"
    signals = tuple(Signal(s.about, s.weight * share, seen) for s in BOOK.observations[change.observation])
    return [*findings, Finding(change.steps[0], Status.OK, say("ui.no_action"), signals=signals)]


@pytest.mark.parametrize("name", a_quarter(replay.read_index(RECORDINGS)))
def test_the_change_flips_the_verdict_and_half_of_it_does_not(name: str) -> None:
    findings = [f for run in read(name).runs.values() for f in run.findings.values()]
    verdict = explain(findings)
    for candidate in (*verdict.places, *verdict.failure_modes):
        now = names(verdict, candidate.id)
        if now and not candidate.changes:  # more than two observations speak for it
            for observation in {s.observation for f in findings for s in f.signals}:
                gone = EvidenceChange(observation, False, 1.0, 1.0, ("3.2",), ())
                assert names(diagnosis.conclude(make(gone, findings, 1.0), BOOK), candidate.id), observation
        assert len({c.then for c in candidate.changes}) <= 1
        for part in (0.5, 1.0) if candidate.changes else ():
            changed = findings
            for change in candidate.changes:
                changed = make(change, changed, part)
            flips = names(diagnosis.conclude(changed, BOOK), candidate.id) is not now
            assert flips is (part == 1.0), (candidate.id, candidate.changes, part)
        for change in candidate.changes:
            saw = {f.step for f in findings if change.observation in [s.observation for s in f.signals]}
            assert {*change.steps} == (saw if not change.seen else {BOOK.step_of(change.observation)}), change


def test_the_number_flips_the_verdict_and_half_way_to_it_does_not() -> None:
    runs, known = read("relay_batch").runs.values(), checks()

    def judge(steps: Sequence[str], book: catalog.Catalog) -> list[Finding]:
        """Judge these steps again by other limits, and find the limits that decide there."""
        findings: list[Finding] = []
        for run in runs:
            first = len(findings)
            for f in run.findings.values():
                given = JudgeInput.recorded(book, run.header, tuple(findings[first:]))
                again = known[f.step].judge_again(f, given) if f.step in steps else f
                findings.append(
                    replace(again, made_from=known[f.step].find_limits(again, given) if again is not f else {})
                )
        return findings

    def removed(verdict: Verdict) -> list[tuple[str, EvidenceChange]]:
        return [(m.id, c) for m in (*verdict.places, *verdict.failure_modes) for c in m.changes if not c.seen]

    steps = [step for _, c in removed(explain(judge((), BOOK))) for step in c.steps]
    verdict = explain(judge(steps, BOOK))
    numbers = [(id_, c, c.value, c.limit) for id_, c in removed(verdict) if c.value]
    assert numbers
    for id_, change, value, limit in numbers:
        assert value.threshold and isinstance(value.value, int | float) and limit is not None
        for part in (0.5, 1.01):  # of the way to the limit; the limits move instead of the value
            way, t = (value.value - limit) * part, value.threshold
            assert t.warning is not None and t.critical is not None
            book = replace(
                BOOK,
                limits=Limits(BOOK.limits | {t.name: replace(t, warning=t.warning + way, critical=t.critical + way)}),
            )
            flips = names(diagnosis.conclude(judge(change.steps, book), BOOK), id_) is not names(verdict, id_)
            assert flips is (part > 1), (id_, change, part)
