"""Every recording, judged by today's code and documents: what comes out is what the index expects."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from make_recordings import FOLDER

from runbook_lib import catalog, messages, recording
from runbook_lib.analysis import diagnosis
from runbook_lib.runs import replay
from runbook_lib.view import record, render

INDEX = replay.read_index(FOLDER)


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Thousands of small frames leave little garbage, and looking for it takes a third of the time."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", INDEX)
def test_replay(name: str) -> None:
    recorded = recording.read(FOLDER / f"{name}{recording.SUFFIX}")
    found = replay.evaluate(recorded)
    differ = list(replay.differences(INDEX[name]["expected"], found))
    assert not differ, "\n".join([f"{name} is judged otherwise than the index expects:", *differ])
    stored = [f for run in recorded.runs.values() for f in run.stored]
    numbered = [
        f for f in stored if any("<b>" in render.mark_numbers(f["headline"][lang]) for lang in messages.LANGUAGES)
    ]
    assert numbered and not [f["step"] for f in numbered if not render.sources(f)], "a number without a source"


@pytest.mark.parametrize("name", INDEX)
def test_no_artifact_holds_two_findings_that_contradict_each_other(name: str) -> None:
    """What another observation contradicts is no evidence in a verdict, which names it."""
    book = catalog.load()
    judged = replay.replay(recording.read(FOLDER / f"{name}{recording.SUFFIX}"), book)
    triage = [f for section in judged.ran for f in judged.findings[section]]
    pairs = [(judged.findings[n], judged.verdicts[n]) for n in judged.findings]
    for findings, verdict in [*pairs, (triage, judged.verdict)]:
        _, contradicted = diagnosis.drop_contradicted(findings, book)
        assert {b.observation for b in verdict.contradicted} == contradicted.keys()
        counted = {b.observation for m in verdict.failure_modes for b in m.because if b.kind == "observed"}
        assert counted.isdisjoint(contradicted)
        lines = "\n".join(render.question_lines(record.verdict(verdict), "en"))
        assert all(observation in lines for observation in contradicted)
