"""Each failure mode has a page for the responder, made from the configuration."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType, SimpleNamespace

import pytest

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox.faults import CATALOGUE
from runbook_lib.packs.entitlement import PACK, ROOT

BOOK = catalog.read([PACK])


def load_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("failure_modes_hook", ROOT / "docs" / "hooks" / "failure_modes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOK = load_hook()
PAGES: dict[str, str] = HOOK.pages()


def test_each_failure_mode_has_one_page_and_the_overview_has_them_all() -> None:
    assert set(PAGES) == {"failure-modes/overview.md", *(f"failure-modes/{id_}.md" for id_ in BOOK.failure_modes)}
    assert all(f"({id_}.md)" in PAGES["failure-modes/overview.md"] for id_ in BOOK.failure_modes)


@pytest.mark.parametrize("id_", BOOK.failure_modes)
def test_a_page_has_the_five_headings_and_each_is_filled(id_: str) -> None:
    _, *parts = re.split(r"^## ", PAGES[f"failure-modes/{id_}.md"], flags=re.MULTILINE)
    assert [part.splitlines()[0] for part in parts] == list(HOOK.HEADINGS)
    assert all("".join(part.splitlines()[1:]).strip() for part in parts)


@pytest.mark.parametrize("id_", BOOK.failure_modes)
def test_a_page_has_every_observation_and_remedy_of_its_mode(id_: str) -> None:
    page = PAGES[f"failure-modes/{id_}.md"]
    weights = {s.observation: abs(s.weight) for of in BOOK.observations.values() for s in of if s.about == id_}
    assert all(f"| `{name}` | {weight:g} |" in page for name, weight in weights.items())
    assert all(f"### {name}\n" in page for name in BOOK.failure_modes[id_].remedies)


def test_faults_are_on_the_page_of_the_mode_that_a_drill_expects() -> None:
    for fault in CATALOGUE:
        if fault.failure_mode:
            assert f"| `{fault.name}` | {fault.en} |" in PAGES[f"failure-modes/{fault.failure_mode}.md"]


def test_what_tells_two_neighbours_apart() -> None:
    """The observation of a relay that is switched off excludes a relay that has stopped."""
    page = PAGES["failure-modes/FM-OB-01.md"]
    row = next(line for line in page.splitlines() if line.startswith("| [FM-OB-04]"))
    assert "`relay.silent`" in row.split(" | ")[1] and "**`relay.off`**" in row.split(" | ")[3]


def test_links_between_the_pages_lead_to_pages() -> None:
    for path, page in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", page):
            file = (ROOT / "docs" / "failure-modes" / target).resolve()
            assert f"failure-modes/{target}" in PAGES or file.is_file(), path


def test_the_document_of_failure_modes_links_to_the_pages() -> None:
    def rendered(name: str) -> str:
        page = SimpleNamespace(file=SimpleNamespace(src_uri=name))
        return str(HOOK.on_page_markdown("# Title\n\nText", page=page, config=None, files=None))

    assert rendered("slo.md") == "# Title\n\nText"
    linked = rendered("failure-modes.md")
    assert "](failure-modes/overview.md)" in linked and linked.endswith("Text")
