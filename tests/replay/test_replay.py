"""Every recording, judged by today's code and documents: what comes out is what the index expects."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pytest

from runbook_lib.book import catalog, messages, pack
from runbook_lib.book.catalog import Catalog
from runbook_lib.diagnosis.evidence import drop_contradicted
from runbook_lib.model.finding import Finding, Verdict
from runbook_lib.runs import replay
from runbook_lib.store import capsule, record
from runbook_lib.store.run import Run
from runbook_lib.view import render
from tests.kit import RECORDINGS

INDEX = replay.read_index(RECORDINGS)


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Thousands of small frames leave little garbage, and looking for it takes a third of the time."""
    gc.disable()
    yield
    gc.enable()


@lru_cache(maxsize=2)
def read(name: str) -> dict[str, Run]:
    return capsule.read(RECORDINGS / f"{name}{capsule.SUFFIX}")


@lru_cache(maxsize=24)
def judge(name: str, section: str) -> tuple[tuple[Finding, ...], Verdict]:
    return replay.judge(read(name)[section], catalog.load())


def one_worker(name: str, *more: str) -> Any:
    """The sections of a recording and its triage share what is judged."""
    return pytest.param(name, *more, marks=pytest.mark.xdist_group(name))


@pytest.mark.parametrize(
    ("name", "section"), [one_worker(name, n) for name, known in INDEX.items() for n in known["expected"]["sections"]]
)
def test_section(name: str, section: str) -> None:
    """Each is judged as the index expects, names what a headline's numbers rest on, and does not contradict itself."""
    expected, (findings, verdict) = INDEX[name]["expected"]["sections"][section], judge(name, section)
    differ = list(replay.differences(expected, replay.section_as_expected(section, findings, verdict)))
    assert not differ, "\n".join([f"{name} is judged otherwise than the index expects:", *differ])
    _assert_sources(findings)
    _assert_no_contradiction(findings, verdict, catalog.load())


@pytest.mark.parametrize("name", map(one_worker, INDEX))
def test_triage(name: str) -> None:
    """The verdict of all sections together is as the index expects, and does not contradict itself."""
    judged = replay.triage({section: judge(name, section) for section in read(name)}, catalog.load())
    expected = {key: value for key, value in INDEX[name]["expected"].items() if key != "sections"}
    differ = list(replay.differences(expected, replay.as_expected(judged)))
    assert not differ, "\n".join([f"{name} is judged otherwise than the index expects:", *differ])
    stored = json.loads(json.dumps(record.verdict(judged.verdict)))
    assert record.verdict(record.from_json(Verdict, stored)) == stored
    findings = [f for section in judged.ran for f in judged.findings[section]]
    _assert_no_contradiction(findings, judged.verdict, catalog.load())


def _assert_sources(findings: Iterable[Finding]) -> None:
    def has_number(f: Finding) -> bool:
        return any("<b>" in render.mark_numbers(messages.text(f.headline, lang)) for lang in messages.LANGUAGES)

    assert not [f.step for f in findings if has_number(f) and not render.sources(f)], "a number without a source"


def _assert_no_contradiction(findings: Sequence[Finding], verdict: Verdict, book: Catalog) -> None:
    """What another observation contradicts is no evidence in a verdict, which names it."""
    _, contradicted = drop_contradicted(findings, book)
    assert {b.observation for b in verdict.contradicted} == contradicted.keys()
    counted = {b.observation for m in verdict.failure_modes for b in m.because if b.kind == "observed"}
    assert counted.isdisjoint(contradicted)
    lines = "\n".join(render.question_lines(verdict))
    assert all(observation in lines for observation in contradicted)


@pytest.mark.parametrize(
    ("was", "becomes", "differs"),
    [
        (
            "| stands | delivery_worker, FM",
            "| hint | delivery_worker, FM",
            "failure_modes: expected FM-NOTI-06 0.85, now",
        ),
        (
            "| `backlog.oldest_due` | 10 | 30 |",
            "| `backlog.oldest_due` | 1000 | 3000 |",
            "sections 2 steps 2.4: expected CRITICAL",
        ),
    ],
)
def test_a_changed_weight_or_threshold_is_a_difference(was: str, becomes: str, differs: str) -> None:
    texts = catalog.read_texts(packs := pack.active_runbook().packs)
    changed = {name: {d: text.replace(was, becomes) for d, text in own.items()} for name, own in texts.items()}
    assert changed != texts
    assert differs in _differences(catalog.read(packs, changed))


def test_changed_evidence_is_a_difference() -> None:
    """The numbers of a headline, and what a step contributes to the verdict, are expected as well."""
    expected = replay.evaluate(read("worker_hung"), catalog.load())
    step = expected["sections"]["4.1"]
    assert "due=436" in step["steps"]["4.1.1"]
    step["steps"]["4.1.1"] = step["steps"]["4.1.1"].replace("436", "437")
    step["evidence"]["4.1.1"].pop()
    differ = list(replay.differences(expected, replay.evaluate(read("worker_hung"), catalog.load())))
    assert [line.partition(": ")[0] for line in differ] == [
        f"sections 4.1 {part} 4.1.1" for part in ("steps", "evidence")
    ]


def _differences(book: Catalog) -> str:
    now = replay.evaluate(read("worker_hung"), book)
    return "\n".join(replay.differences(INDEX["worker_hung"]["expected"], now))
