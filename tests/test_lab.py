"""Interactive use: copies that are filled in once, and kernels that find the settings of the folder they came from."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

from runbook_lib import catalog, lab, settings
from runbook_lib.archive import Archive
from runbook_lib.settings import UsageError


def test_copies_have_target_and_incident(tmp_path: Path) -> None:
    folder = Path(lab.prepare_copies(Archive(str(tmp_path), "INC-1"), "production"))
    assert {p.name for p in folder.iterdir()} == {s.notebook.name for s in catalog.load().runnable().values()}  # type: ignore[union-attr]
    for path in folder.iterdir():
        nb = nbformat.read(path, as_version=4)
        (injected,) = [c.source for c in nb.cells if "injected-parameters" in c.metadata.get("tags", [])]
        assert 'incident_id = "INC-1"' in injected and 'target = "production"' in injected


def test_a_copy_that_was_worked_on_is_kept(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    copy = Path(lab.prepare_copies(archive, "default")) / "02_scope.ipynb"
    copy.write_text("notes")
    lab.prepare_copies(archive, "default")
    assert copy.read_text() == "notes"


def test_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="local --output"):
        lab.prepare_copies(Archive("memory://lab", "INC-1"), "default")


def test_kernels_find_settings_and_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNBOOK_CONFIG", "RUNBOOK_SANDBOX_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runbook.toml").write_text("")
    started: dict[str, Any] = {}

    def run(command: list[str], env: dict[str, str], check: bool) -> SimpleNamespace:
        started.update(command=command, env=env)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    assert lab.open_lab("outputs", "INC-1", "default") == 0
    assert started["command"][-1] == f"--notebook-dir={tmp_path}/outputs/INC-1/lab"
    assert started["env"]["RUNBOOK_CONFIG"] == str(tmp_path / "runbook.toml")
    assert started["env"]["RUNBOOK_SANDBOX_DIR"] == str(tmp_path / ".sandbox")


def test_a_secret_file_is_looked_for_beside_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runbook.toml").write_text('[targets.production]\ndatabase_url_file = "database-url"\n')
    (tmp_path / "database-url").write_text("postgresql://reader@db/app\n")
    monkeypatch.setenv("RUNBOOK_CONFIG", str(tmp_path / "runbook.toml"))
    assert settings.load().target("production").url("database_url") == "postgresql://reader@db/app"
