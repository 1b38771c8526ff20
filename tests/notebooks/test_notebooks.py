"""The committed notebooks run under nbval, under papermill and by the command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.execute import execute_notebook

from runbook_lib.book import catalog
from runbook_lib.book.catalog import Section
from runbook_lib.dossier import artifact, rejudge
from runbook_lib.store import record
from runbook_lib.store.archive import Archive
from runbook_lib.store.run import run_of_cells
from tests.kit.command import runbook

SECTIONS = list(catalog.load().runnable().values())
each_section = pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.number)


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
    names = {e["section"]: e["name"] for e in archive.artifacts() if "section" in e}
    assert {*names} == {*numbers}, done.stderr
    for section in SECTIONS:
        ran_whole(section, artifact.notebook(archive.read(f"{names[section.number]}.ipynb")))


def ran_whole(section: Section, nb: nbformat.NotebookNode) -> None:
    run = run_of_cells(nb.cells, section.number, catalog.load())
    assert run.concluded
    assert [f.step for f in run.findings] == [s.id for s in section.steps]
    assert [f for f in run.findings if f.reason and f.reason.value == "error"] == []
    again, _ = rejudge.judge(run.findings, run.header, catalog.load())
    assert [f.status for f in again] == [f.status for f in run.findings]
    opens_offline_and_starts_with_the_verdict(section, nb)


def opens_offline_and_starts_with_the_verdict(section: Section, nb: nbformat.NotebookNode) -> None:
    page = artifact.html(nb, "T-1")
    for loader in ("<script", "<link", "<iframe", "@import", 'src="http', "url(http"):
        assert loader not in page
    assert 'href="../' not in page and not re.search(r'href="\d\d_', page), "a link that leads out of the dossier"
    body = page[page.index("<body") :]
    assert body.index("rb-banner") < body.index(f"{section.number} {section.en}")
    assert not re.search(r"<img(?![^>]*\balt=)", page)
    status = run_of_cells(nb.cells, section.number, catalog.load()).status
    assert f"rb-{status.name}" in body[: body.index("rb-strip")]
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
