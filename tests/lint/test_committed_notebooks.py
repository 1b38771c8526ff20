"""The committed notebooks: clean, short, in the runbook's order."""

from __future__ import annotations

import ast
import re

import nbformat
import pytest

from runbook_lib.book import catalog, messages
from runbook_lib.book.catalog import Section
from runbook_lib.view import prose
from runbook_lib.view.queries import FOLDED_MOST, queries_of

SECTIONS = list(catalog.load().runnable().values())
#: The tag of a cell that papermill and `runbook run` leave out.
SKIPPED = "skip-execution"
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
each_section = pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.number)


def read(section: Section) -> nbformat.NotebookNode:
    assert section.notebook
    nb: nbformat.NotebookNode = nbformat.read(section.notebook, as_version=4)
    return nb


def code(nb: nbformat.NotebookNode) -> list[str]:
    """The code that a headless run executes."""
    return [c.source for c in nb.cells if c.cell_type == "code" and SKIPPED not in c.metadata.get("tags", ())]


@each_section
def test_committed_without_outputs_or_traces_of_execution(section: Section) -> None:
    nb = read(section)
    nbformat.validate(nb)
    assert set(nb.metadata) <= {"kernelspec", "language_info"}
    assert set(nb.metadata.language_info) == {"name"}
    for cell in nb.cells:
        assert set(cell.metadata) <= ({"runbook"} if cell.cell_type == "markdown" else {"tags"})
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@each_section
def test_every_step_in_the_runbooks_order(section: Section) -> None:
    calls = [
        node
        for source in code(read(section))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    steps = [c.args[0].value for c in calls if c.func.attr == "step"]  # type: ignore[attr-defined]
    assert steps == [s.id for s in section.steps]
    assert calls[-1].func.attr == "conclude"  # type: ignore[attr-defined]


@each_section
def test_no_sql_no_loops_no_plotting(section: Section) -> None:
    for source in code(read(section)):
        tree = ast.parse(source)
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom | ast.Import) for a in n.names}
        assert imported <= {"open_section"}
        assert not any(isinstance(n, ast.For | ast.While | ast.FunctionDef) for n in ast.walk(tree))
        assert "SELECT" not in source


@each_section
def test_each_text_in_one_language_and_there_in_the_other(section: Section) -> None:
    for cell in (c for c in read(section).cells if c.cell_type == "markdown"):
        visible = re.sub(r"^\[[^\]]+\]: .*$", "", cell.source, flags=re.MULTILINE)  # an anchor may be in both
        assert set(cell.metadata.runbook) == {"ja"}
        assert not JAPANESE.search(visible) and JAPANESE.search("".join(cell.metadata.runbook.ja))


@each_section
def test_titles_and_questions_are_the_documents(section: Section) -> None:
    """A question leaves out the words of its heading."""
    nb = read(section)
    for lang in ("en", "ja"):
        with messages.using(lang):
            title, *texts = [prose.text_of(c) for c in nb.cells if c.cell_type == "markdown"]
            assert title.startswith(f"# {section.number} {section.words()}\n")
            for step in section.steps:
                (text,) = [text for text in texts if text.startswith(f"## {step.id} ")]
                heading, _, question = text.split("\n")[:3]
                words = heading.removeprefix(f"## {step.id} ")
                whole = {step.words().lower(), step.words().lower().removeprefix(f"{words.lower()}: ")}
                assert question.lower() in whole


@each_section
def test_one_example_that_a_headless_run_leaves_out(section: Section) -> None:
    (example,) = [c for c in read(section).cells if SKIPPED in c.metadata.get("tags", ())]
    assert example.metadata.tags == [SKIPPED, "nbval-skip"] and example.source.startswith("rb.ask(")


@each_section
def test_put_into_a_language_it_holds_no_other(section: Section) -> None:
    for lang in ("en", "ja"):
        with messages.using(lang):
            nb = read(section)
            prose.translate(nb)
            nbformat.validate(nb)
            assert not any("runbook" in c.metadata for c in nb.cells)
            for step in section.steps:
                (text,) = [c.source for c in nb.cells if c.source.startswith(f"## {step.id} ")]
                asked = queries_of(step.id)
                assert text.count("<details>") == (1 if len(asked) else 0)
                long = len(asked._repr_markdown_()) > FOLDED_MOST  # then the names, and where the SQL is
                assert all((f"`{q.name}`" if long else q.sql) in text for q in asked.sql)
                assert long is (f'rb.queries("{step.id}")' in text)
