"""Every recording, judged by today's code and documents: what comes out is what the index expects."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence

import pytest

from runbook_lib import catalog, messages, recording
from runbook_lib.analysis import diagnosis
from runbook_lib.archive import policy
from runbook_lib.catalog import Catalog
from runbook_lib.model.finding import Finding, Verdict
from runbook_lib.runs import replay
from runbook_lib.view import record, render
from tests.kit import RECORDINGS

INDEX = replay.read_index(RECORDINGS)


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Thousands of small frames leave little garbage, and looking for it takes a third of the time."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", INDEX)
def test_replay(name: str) -> None:
    """Each is judged as the index expects, names what a headline's numbers rest on, and does not contradict itself."""
    recorded, book = recording.read(RECORDINGS / f"{name}{recording.SUFFIX}"), catalog.load()
    judged = replay.replay(recorded, book)
    differ = list(replay.differences(INDEX[name]["expected"], replay.as_expected(judged)))
    assert not differ, "\n".join([f"{name} is judged otherwise than the index expects:", *differ])
    _assert_sources(f for findings in judged.findings.values() for f in findings)
    triage = [f for section in judged.ran for f in judged.findings[section]]
    for findings, verdict in [
        *((judged.findings[n], judged.verdicts[n]) for n in judged.findings),
        (triage, judged.verdict),
    ]:
        _assert_no_contradiction(findings, verdict, book)


def _assert_sources(findings: Iterable[Finding]) -> None:
    stored = [record.finding(f) for f in findings]
    numbered = [
        f for f in stored if any("<b>" in render.mark_numbers(f["headline"][lang]) for lang in messages.LANGUAGES)
    ]
    assert not [f["step"] for f in numbered if not render.sources(f)], "a number without a source"


def _assert_no_contradiction(findings: Sequence[Finding], verdict: Verdict, book: Catalog) -> None:
    """What another observation contradicts is no evidence in a verdict, which names it."""
    _, contradicted = diagnosis.drop_contradicted(findings, book)
    assert {b.observation for b in verdict.contradicted} == contradicted.keys()
    counted = {b.observation for m in verdict.failure_modes for b in m.because if b.kind == "observed"}
    assert counted.isdisjoint(contradicted)
    lines = "\n".join(render.question_lines(record.verdict(verdict), "en"))
    assert all(observation in lines for observation in contradicted)


@pytest.mark.parametrize(
    ("was", "becomes", "differs"),
    [
        ("FM-NOTI-06 0.9", "FM-NOTI-06 0.85", "failure_modes: expected FM-NOTI-06 0.90, now FM-NOTI-06 0.85"),
        (
            "| `backlog.oldest_due` | 10 | 30 |",
            "| `backlog.oldest_due` | 1000 | 3000 |",
            "sections 2 steps 2.4: expected CRITICAL",
        ),
    ],
)
def test_a_changed_weight_or_threshold_is_a_difference(was: str, becomes: str, differs: str) -> None:
    (documents,) = policy.current_policy({}).values()
    assert was.encode() in documents
    changed = policy.read(documents.replace(was.encode(), becomes.encode()))
    assert differs in _differences(changed)


def test_a_changed_headline_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = messages.catalogue("en") | {"backlog.stopped": "{due} rows are due"}
    monkeypatch.setattr(messages, "catalogue", lambda lang: changed)
    assert "sections 4.1 steps 4.1.1: expected CRITICAL: 436 notifications" in _differences(catalog.load())


def _differences(book: Catalog) -> str:
    now = replay.evaluate(recording.read(RECORDINGS / f"worker_hung{recording.SUFFIX}"), book)
    return "\n".join(replay.differences(INDEX["worker_hung"]["expected"], now))
