"""Every link in the notebooks and documents leads somewhere, and every id that is named exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runbook_lib.book import catalog, messages
from runbook_lib.book.catalog import Section
from runbook_lib.packs.entitlement import ROOT
from tests.kit.links import LINK, problems, prose

BOOK = catalog.load()
SECTIONS = list(BOOK.runnable().values())
DOCUMENTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "runbook_lib" / "packs").rglob("*.md")),
    *sorted(ROOT.glob("*.md")),
    ROOT / "outputs" / "README.md",
]
MODE = re.compile(r"\bFM-[A-Z]+-\d\d\b")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_of_a_document(path: Path) -> None:
    assert problems(path) == []


def test_both_readmes_lead_to_the_same_documents() -> None:
    """In the list at their end, where one looks for the rest."""
    last = [prose(ROOT / name).rsplit("## ", 1)[1] for name in ("README.md", "README.ja.md")]
    assert LINK.findall(last[0]) == LINK.findall(last[1])


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.number)
def test_links_of_a_notebook(section: Section) -> None:
    """To each other notebook, to its section and to the failure modes that it tells apart."""
    assert section.notebook
    assert problems(section.notebook) == []
    links = set(LINK.findall(text := prose(section.notebook)))
    assert links == {s.notebook.name for s in SECTIONS if s.notebook and s != section}
    assert "../docs/runbook.md#" in text
    assert ("../docs/failure-modes.md#" in text) is (section.number not in ("6", "7"))


@pytest.mark.parametrize("path", [*DOCUMENTS, *(s.notebook for s in SECTIONS if s.notebook)], ids=lambda p: p.name)
def test_failure_modes_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    own = set(re.findall(rf"^### ({MODE.pattern})", text, re.MULTILINE)) if "queues" in path.parts else set()
    assert set(MODE.findall(text)) <= own | set(BOOK.failure_modes)


def test_failure_modes_in_code_and_texts_exist() -> None:
    named = {m for p in (ROOT / "runbook_lib").rglob("*.py") for m in MODE.findall(p.read_text(encoding="utf-8"))}
    for lang in messages.LANGUAGES:
        named |= {m for text in messages.catalogue(lang).values() for m in MODE.findall(text)}
    assert named <= set(BOOK.failure_modes)


def test_every_section_that_a_failure_mode_names_can_be_run() -> None:
    for mode in BOOK.failure_modes.values():
        for number in mode.sections:
            assert BOOK.sections[number].notebook, f"{mode.id} names {number}, which has no notebook"
