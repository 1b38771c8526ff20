"""Interactive use: JupyterLab on copies of the notebooks, so that the committed ones stay as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import nbformat

from runbook_lib import catalog, settings
from runbook_lib.archive import Archive
from runbook_lib.parameters import validate
from runbook_lib.sandbox import state
from runbook_lib.settings import UsageError


def prepare_copies(archive: Archive, target: str) -> str:
    """Copy the notebooks into the incident's folder, target and incident filled in; those there are kept.

    Returns the folder. Raises UsageError when the archive is not a local folder.
    """
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    if archive.local is None:
        raise UsageError("`runbook lab` needs a local --output folder: a responder's copies live beside the artifacts")
    folder = archive.local / "lab"
    folder.mkdir(parents=True, exist_ok=True)
    values = {"incident_id": archive.incident, "target": target}
    for section in catalog.load().runnable().values():
        assert section.notebook is not None  # noqa: S101 - runnable sections have one
        copy = folder / section.notebook.name
        if not copy.exists():
            nb = parameterize_notebook(load_notebook_node(str(section.notebook)), values)
            nbformat.write(nb, copy)
    return str(folder)


def open_lab(output: str, incident: str, target: str) -> int:
    """Start JupyterLab on the copies; returns its exit code."""
    if shutil.which("jupyter-lab", path=f"{sys.prefix}/bin") is None:
        raise UsageError("JupyterLab is not installed: pip install 'runbook-notebooks[lab]'")
    validate({"incident_id": incident})
    archive = Archive(output, incident)
    archive.prepare()
    folder = prepare_copies(archive, target)
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={folder}"]
    return subprocess.run(command, env=os.environ | _found_here(), check=False).returncode


def _found_here() -> dict[str, str]:
    """Where this folder's settings and sandbox are, for kernels that run in another one."""
    found = {"RUNBOOK_SANDBOX_DIR": str(state.default_directory().resolve())}
    if (config := settings.config_file()) is not None:
        found["RUNBOOK_CONFIG"] = str(config.resolve())
    return found
