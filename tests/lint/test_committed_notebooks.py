"""The committed notebooks: what docs/runbook.md says, and cells of our own that are clean and short."""

from __future__ import annotations

import ast
import re

import nbformat
import pytest

from runbook_lib.book import catalog, messages, pack
from runbook_lib.book.catalog import Section
from runbook_lib.notebook import writer
from runbook_lib.view import prose
from runbook_lib.view.queries import FOLDED_MOST, queries_of
from tests.kit import ROOT

SECTIONS = list(catalog.load().runnable().values())
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
each_section = pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.number)


def read(section: Section) -> nbformat.NotebookNode:
    assert section.notebook
    nb: nbformat.NotebookNode = nbformat.read(section.notebook, as_version=4)
    return nb


@pytest.mark.parametrize("folder", ["runbook_lib/packs/entitlement", "examples/procrastinate"])
def test_the_committed_notebooks_are_current(folder: str) -> None:
    """If not: `runbook new notebooks --pack FOLDER`."""
    with pack.use_pack(ROOT / folder) as runbook:
        found = list(writer.notebooks(runbook.packs[0], catalog.load(), force=True))
    assert found and [path.name for path, text, _ in found if path.read_text(encoding="utf-8") != text] == []


@each_section
def test_a_cell_of_our_own_is_clean_and_has_no_sql_no_loop_and_no_import(section: Section) -> None:
    for cell in read(section).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            nodes = list(ast.walk(ast.parse(cell.source)))
            assert cell.id == "open" or not any(isinstance(n, ast.ImportFrom | ast.Import) for n in nodes)
            assert not any(isinstance(n, ast.For | ast.While | ast.FunctionDef) for n in nodes)
            assert "SELECT" not in cell.source


@each_section
def test_each_text_in_one_language_and_there_in_the_other(section: Section) -> None:
    for cell in (c for c in read(section).cells if c.cell_type == "markdown"):
        visible = re.sub(r"^\[[^\]]+\]: .*$", "", cell.source, flags=re.MULTILINE)  # an anchor may be in both
        assert set(cell.metadata.runbook) == {"ja"}
        assert not JAPANESE.search(visible) and JAPANESE.search("".join(cell.metadata.runbook.ja))


@each_section
def test_put_into_a_language_it_holds_no_other(section: Section) -> None:
    for lang in ("en", "ja"):
        with messages.using(lang):
            nb = read(section)
            prose.translate(nb)
            nbformat.validate(nb)
            assert not any("runbook" in c.metadata for c in nb.cells)
            for step in section.steps:
                (text,) = [c.source for c in nb.cells if c.source.startswith(f"## {step.id} {step.words()}")]
                asked = queries_of(step.id)
                assert text.count("<details>") == (1 if len(asked) else 0)
                long = len(asked._repr_markdown_()) > FOLDED_MOST  # then the names, and where the SQL is
                assert all((f"`{q.name}`" if long else q.sql) in text for q in asked.sql)
                assert long is (f'rb.queries("{step.id}")' in text)
