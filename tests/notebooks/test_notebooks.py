"""The committed notebooks: clean, short, in the runbook's order, and running under nbval and under papermill."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.execute import execute_notebook

from runbook_lib import catalog
from runbook_lib.archive import artifact, rejudge
from runbook_lib.catalog import Section
from runbook_lib.model.finding import Status
from runbook_lib.store import Archive
from runbook_lib.view import prose, record
from runbook_lib.view.queries import FOLDED_MOST, queries_of
from tests.kit.command import runbook

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
        title, *texts = [prose.text_of(c, lang) for c in nb.cells if c.cell_type == "markdown"]
        assert title.startswith(f"# {section.number} {section.words(lang)}\n")
        for step in section.steps:
            (text,) = [text for text in texts if text.startswith(f"## {step.id} ")]
            heading, _, question = text.split("\n")[:3]
            words = heading.removeprefix(f"## {step.id} ")
            whole = {step.words(lang).lower(), step.words(lang).lower().removeprefix(f"{words.lower()}: ")}
            assert question.lower() in whole


@each_section
def test_one_example_that_a_headless_run_leaves_out(section: Section) -> None:
    (example,) = [c for c in read(section).cells if SKIPPED in c.metadata.get("tags", ())]
    assert example.metadata.tags == [SKIPPED, "nbval-skip"] and example.source.startswith("rb.ask(")


@each_section
def test_put_into_a_language_it_holds_no_other(section: Section) -> None:
    for lang in ("en", "ja"):
        nb = read(section)
        prose.set_language(nb, lang)
        nbformat.validate(nb)
        assert not any("runbook" in c.metadata for c in nb.cells)
        for step in section.steps:
            (text,) = [c.source for c in nb.cells if c.source.startswith(f"## {step.id} ")]
            asked = queries_of(step.id, lang)
            assert text.count("<details>") == (1 if len(asked) else 0)
            long = len(asked._repr_markdown_()) > FOLDED_MOST  # then the names, and where the SQL is
            assert all((f"`{q.name}`" if long else q.sql) in text for q in asked.sql)
            assert long is (f'rb.queries("{step.id}")' in text)


def declare(servers, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A quiet, healthy system as the default target."""
    for name in list(os.environ):
        if name.startswith("RUNBOOK_") and name.endswith("_URL"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(output))
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", servers.database_url)
    monkeypatch.setenv("RUNBOOK_NATS_URL", servers.nats_url)
    monkeypatch.setenv("RUNBOOK_NATS_MONITOR_URL", servers.nats_monitor_url)


@each_section
def test_under_plain_papermill(section: Section, servers, db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    declare(servers, tmp_path / "outputs", monkeypatch)
    nb = execute_notebook(
        section.notebook,
        tmp_path / "out.ipynb",
        parameters={"incident_id": "T-1", "window_minutes": 30},
        progress_bar=False,
    )
    ran_whole(section, nb)


def test_all_of_them_by_the_command(servers, db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    declare(servers, tmp_path, monkeypatch)
    numbers = [s.number for s in SECTIONS]
    done = runbook("run", *numbers, "--incident", "T-1", "-p", "window_minutes=30", env=os.environ)
    archive = Archive(str(tmp_path), "T-1")
    names = {e["section"]: e["name"] for e in archive.manifest() if "section" in e}
    assert {*names} == {*numbers}, done.stderr
    for section in SECTIONS:
        ran_whole(section, artifact.notebook(archive.read(f"{names[section.number]}.ipynb")))


def ran_whole(section: Section, nb: nbformat.NotebookNode) -> None:
    run = artifact.read(nb, section)
    assert run.concluded
    assert [f.step for f in run.findings] == [s.id for s in section.steps]
    assert [f for f in run.findings if f.reason and f.reason.value == "error"] == []
    assert rejudge.judge_again(run) == []
    opens_offline_and_starts_with_the_verdict(section, nb)


def opens_offline_and_starts_with_the_verdict(section: Section, nb: nbformat.NotebookNode) -> None:
    page = artifact.html(nb, "T-1", "en")
    for loader in ("<script", "<link", "<iframe", "@import", 'src="http', "url(http"):
        assert loader not in page
    assert 'href="../' not in page and not re.search(r'href="\d\d_', page), "a link that leads out of the dossier"
    body = page[page.index("<body") :]
    assert body.index("rb-banner") < body.index(f"{section.number} {section.en}")
    images = page.count("<img")
    assert page.count("alt=") >= images
    status = artifact.read(nb, section).status
    assert f"rb-{status.name}" in body[: body.index("rb-strip")]
    assert status in Status
    assert record.VERDICT_MIME not in page


@each_section
def test_under_nbval(section: Section, embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    declare(embedded, tmp_path / "outputs", monkeypatch)
    assert section.notebook
    copy = tmp_path / section.notebook.name
    execute_notebook(section.notebook, copy, parameters={"incident_id": "T-1"}, prepare_only=True, progress_bar=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    plugins = ["-p", "runbook_lib.runs.quick", "-p", "nbval.plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "--nbval-lax", "--nbval-current-env", "-q", str(copy)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
