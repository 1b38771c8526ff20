"""Interactive use: JupyterLab on copies of the notebooks, so that the committed ones stay as they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

import nbformat

from runbook_lib import catalog, pack
from runbook_lib.parameters import validate
from runbook_lib.store import Archive
from runbook_lib.usage import UsageError, config_file, sandbox_folder

#: Behind a person's own, so that they hold.
_OPTIONS = (
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.jpserver_extensions={'runbook_lib.lab.server': True}",
)


_PICTURES = shutil.ignore_patterns("images")


def prepare_copies(archive: Archive, target: str) -> str:
    """Copy the notebooks into the incident's folder; those there are kept. In each, fill in target and incident.

    Returns the folder. Raises UsageError when the archive is not a local folder.
    """
    if archive.local is None:
        raise UsageError("`runbook lab` needs a local --output folder: a responder's copies live beside the artifacts")
    folder = archive.local / "lab"
    # The documents that the notebooks link to come along, so that the links lead somewhere here as well.
    for own in pack.in_force().packs:
        copied = folder / "docs" / (own.name if own.extends else "")
        shutil.copytree(own.document("runbook").parent, copied, dirs_exist_ok=True, ignore=_PICTURES)
    for section in catalog.load().runnable().values():
        assert section.notebook is not None  # noqa: S101 - runnable sections have one
        own = next(p for p in pack.in_force().packs if p.notebook(section.notebook.name) == section.notebook)
        docs = f"docs/{own.name}" if own.extends else "docs"
        copy = folder / section.notebook.name
        try:
            nb = nbformat.read(copy if copy.exists() else section.notebook, as_version=4)
        except ValueError:
            continue  # somebody's own file
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                cell.source = cell.source.replace("](../docs/", f"]({docs}/")
        if _fill_in(nb, {"incident_id": archive.incident, "target": target}) or not copy.exists():
            nbformat.write(nb, copy)
    return str(folder)


def _fill_in(nb: nbformat.NotebookNode, values: dict[str, str]) -> bool:
    """Set values in the parameters cell itself, so that running it again keeps them; was there anything to set?"""
    changed = False
    for cell in nb.cells:
        if "parameters" in cell.metadata.get("tags", []):
            before = cell.source
            for name, value in values.items():
                line = f"{name} = {json.dumps(value)}".replace("\\", r"\\")
                cell.source = re.sub(rf'^{name} = ("(?:[^"\\]|\\.)*"|\S+)', line, cell.source, flags=re.MULTILINE)
            changed = changed or cell.source != before
    return changed


def open_lab(output: str, incident: str, target: str, arguments: Sequence[str] = ()) -> NoReturn:
    """Become JupyterLab on the copies, with further arguments of its own.

    It listens on this machine alone: whoever reaches it can run anything. It takes the place of this process, so
    that Ctrl-C and its question whether to stop are its own.
    """
    if shutil.which("jupyter-lab", path=f"{sys.prefix}/bin") is None:
        raise UsageError("JupyterLab is not installed: pip install 'runbook-notebooks[lab]'")
    if any(re.match(r"--(ServerApp\.|LabApp\.|NotebookApp\.)?ip\b", a) for a in arguments):
        raise UsageError("JupyterLab listens on this machine only: reach it from another one through `ssh -L`")
    validate({"incident_id": incident})
    archive = Archive(output, incident)
    archive.prepare()
    folder = prepare_copies(archive, target)
    start = f"--LabApp.default_url=/runbook/{incident}/"  # before a person's own: it need not hold
    own = (*_OPTIONS, f"--ServerApp.root_dir={folder}")
    command = [sys.executable, "-m", "jupyterlab", start, *arguments, *own]
    os.execve(sys.executable, command, os.environ | _found_here(archive))  # noqa: S606 - no shell


def _found_here(archive: Archive) -> dict[str, str]:
    """Where this folder's settings, sandbox and artifacts are, for kernels that run in another one."""
    assert archive.local is not None  # noqa: S101 - `prepare_copies` has checked it
    found = {
        "RUNBOOK_SANDBOX_DIR": str(sandbox_folder().resolve()),
        "RUNBOOK_OUTPUT": str(archive.local.parent.resolve()),
    }
    if (config := config_file()) is not None:
        found["RUNBOOK_CONFIG"] = str(config.resolve())
    return found
