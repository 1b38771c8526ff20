"""Interactive use: JupyterLab on copies of the notebooks, so that the committed ones stay as they are."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Container, Sequence
from itertools import product
from pathlib import Path
from typing import NoReturn

import nbformat

from runbook_lib.book import messages, pack
from runbook_lib.book.catalog import DOCUMENTS, Catalog
from runbook_lib.book.parameters import validate
from runbook_lib.model.incident import REPLAY
from runbook_lib.model.usage import UsageError, config_file, install_command, sandbox_folder
from runbook_lib.sources.settings import Settings
from runbook_lib.store import capsule
from runbook_lib.store.archive import Archive
from runbook_lib.store.files import read_regular, write_whole
from runbook_lib.view import prose

#: Placed after the user's own options, so that these win.
_OPTIONS = (
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.jpserver_extensions={'runbook_lib.lab.server': True}",
)
#: JupyterLab's configuration: no news and no updates from the internet, which production does not have.
_JUPYTER_CONFIG = Path(__file__).parent / "jupyter"
#: Options of JupyterLab that would open it to others, replace one of these, or end the options before them.
_REFUSED = {
    r"--(\w+\.)?ip\b": "JupyterLab listens only on this machine: use `ssh -L` to reach it from another one",
    r"--(\w+\.)?jpserver_extensions\b": "JupyterLab's extensions are set in its configuration: leave out {}",
    r"--$": "options of JupyterLab follow one `--`: leave out the second one",
}
#: A link to a document from a committed notebook, or the definition of one.
_TO_DOCUMENTS = re.compile(r"(\]\(|^\[[^\]]+\]: )\.\./docs/", re.MULTILINE)
#: A link from one document to another that the catalog reads, up to its name.
_BETWEEN_DOCUMENTS = re.compile(rf"\]\([^()\s:]+/({'|'.join(DOCUMENTS)})\.md")
_PICTURES = shutil.ignore_patterns("images", "hooks")


def prepare_copies(archive: Archive, target: str, book: Catalog, sections: Container[str] | None = None) -> str:
    """Copy the notebooks into the incident's folder; those there are kept. In each, fill in target and incident.

    With `sections` only theirs. A new copy's text is in the current language. Returns the folder. Raises UsageError
    when the archive is not a local folder.
    """
    if archive.local is None:
        raise UsageError("`runbook lab` needs a local folder as --output, for the copies of the notebooks")
    folder = archive.local / "lab"
    # The documents that the notebooks link to come along, so that the links lead somewhere here as well.
    for own in pack.active_runbook().packs:
        copied = folder / "docs" / (own.name if own.extends else "")
        if (documents := own.document("runbook").parent).is_dir():
            shutil.copytree(documents, copied, dirs_exist_ok=True, ignore=_PICTURES)
            for path in filter(Path.is_file, map(own.document, DOCUMENTS)):  # some are in the pack's folder
                text = _BETWEEN_DOCUMENTS.sub(r"](\1.md", path.read_text(encoding="utf-8"))
                write_whole(copied / path.name, text.encode(), durable=False)
    for section in book.runnable().values():
        assert section.notebook is not None  # noqa: S101 - runnable sections have one
        if sections is not None and section.number not in sections:
            continue
        own = next(p for p in pack.active_runbook().packs if p.has_notebook(section.notebook))
        docs = f"docs/{own.name}" if own.extends else "docs"
        copy = folder / section.notebook.name
        values = {"incident_id": archive.incident, "target": target}
        new = not copy.exists()
        try:
            nb = nbformat.reads(read_regular(section.notebook if new else copy).decode(), as_version=4)
        except ValueError:
            continue  # somebody's own file
        if new:
            prose.translate(nb)
            values["lang"] = messages.language()
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                cell.source = _TO_DOCUMENTS.sub(rf"\g<1>{docs}/", cell.source)
        if _fill_in(nb, values) or new:
            write_whole(copy, f"{nbformat.writes(nb)}\n".encode())
    return str(folder)


def _fill_in(nb: nbformat.NotebookNode, values: dict[str, str]) -> bool:
    """Set values in the parameters cell itself, so that running it again keeps them; return whether any changed."""
    changed = False
    for cell in nb.cells:
        if "parameters" in cell.metadata.get("tags", []):
            before = cell.source
            for name, value in values.items():
                line = f"{name} = {json.dumps(value)}".replace("\\", r"\\")
                cell.source = re.sub(rf'^{name} = ("(?:[^"\\]|\\.)*"|\S+)', line, cell.source, flags=re.MULTILINE)
            changed = changed or cell.source != before
    return changed


def replay_incident(recording: Path) -> str:
    """Return the incident under which a recording is opened, whatever its file is called."""
    return REPLAY + re.sub(r"[^A-Za-z0-9._-]+", "-", recording.stem)[:50]


def open_lab(
    config: Settings,
    output: str,
    incident: str,
    target: str,
    book: Catalog,
    arguments: Sequence[str] = (),
    replay: Path | None = None,
) -> NoReturn:
    """Become JupyterLab on the copies, with further arguments of its own; with `replay` on a recording's frames.

    It listens on this machine only, since anybody who reaches it can run any code. It replaces this process, so that it
    handles Ctrl-C and asks its own question whether to stop.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise UsageError(f"JupyterLab is not installed: {install_command('lab')}")
    for argument, (pattern, why) in product(arguments, _REFUSED.items()):
        if re.match(pattern, argument):
            raise UsageError(why.format(argument))
    validate({"incident_id": incident})
    runs = capsule.read(replay) if replay else None
    if runs:
        target = str(next(iter(runs.values())).header.get("target", target))
    archive = Archive(output, incident)
    archive.prepare()
    folder = prepare_copies(archive, target, book, runs)
    start = f"--LabApp.default_url=/runbook/{incident}/"  # before a person's own: it need not hold
    own = (*_OPTIONS, f"--ServerApp.root_dir={folder}")
    command = [sys.executable, "-m", "jupyterlab", start, *arguments, *own]
    replayed = {"RUNBOOK_REPLAY": str(replay.resolve())} if replay else {}
    # Any code can be run here: a kernel has the secrets of the opened target only.
    env = config.environment_of("" if replay else target)
    paths = (env.get("JUPYTER_CONFIG_PATH"), str(_JUPYTER_CONFIG))  # the first one wins
    env["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, paths))
    os.execve(sys.executable, command, env | _kernel_environment(archive) | replayed)  # noqa: S606 - no shell


def _kernel_environment(archive: Archive) -> dict[str, str]:
    """Return the paths of this folder's settings, sandbox and artifacts, for kernels that run in another folder."""
    assert archive.local is not None  # noqa: S101 - `prepare_copies` has checked it
    found = {
        "RUNBOOK_SANDBOX_DIR": str(sandbox_folder().resolve()),
        "RUNBOOK_OUTPUT": str(archive.local.parent.resolve()),
    }
    if (config := config_file()) is not None:
        found["RUNBOOK_CONFIG"] = str(config.resolve())
    return found
