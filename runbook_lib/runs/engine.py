"""The papermill engine of the runbook: it executes the cells in papermill's own process.

papermill's usual engine starts a kernel, marks every cell "completed" after a timeout or a dead kernel, and rewrites
the file in place. `papermill --engine runbook` uses this one.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import nbformat

from runbook_lib.runs import forks, shell
from runbook_lib.store import record
from runbook_lib.store.files import file_mode, write_whole

#: The name under which papermill finds the engine (pyproject.toml).
NAME = "runbook"
#: The tags of a cell that may end with an error, and of one that only a person runs, as in nbclient.
MAY_FAIL, SKIPPED = "raises-exception", "skip-execution"

Notebook = nbformat.NotebookNode


def _manager_of(nb: Notebook, path: Path | None) -> Any:
    """Return papermill's manager of a notebook, which keeps it in a file that is whole at every moment."""
    from papermill.engines import NotebookExecutionManager

    class Manager(NotebookExecutionManager):  # type: ignore[misc]
        def save(self, **_: Any) -> None:
            if path is not None:
                with contextlib.suppress(OSError):  # a full disk does not end the run
                    # In one line: written twice for every cell, and a tenth of the time of the usual form.
                    content = json.dumps(self.nb, ensure_ascii=False).encode()
                    write_whole(path, content, durable=False, mode=file_mode(path.parent))
            self.last_save_time = self.now()

    return Manager(nb, progress_bar=False)


class RunbookEngine:
    """Executes the cells of a notebook in this process, and marks the one in which a run ended as failed.

    papermill imports this module while it is imported itself, and therefore is imported here on use.
    """

    @classmethod
    def nb_kernel_name(cls, nb: Notebook, name: str | None = None) -> str:
        """Return the name of the notebook's kernel, by which papermill writes the parameters."""
        return name or str(nb.metadata.get("kernelspec", {}).get("name", "python3"))

    @classmethod
    def nb_language(cls, nb: Notebook, language: str | None = None) -> str:
        """Return the notebook's language. Raises ValueError for one that is not Python."""
        language = language or str(nb.metadata.get("kernelspec", {}).get("language", "python"))
        if language != "python":
            raise ValueError(f"the engine '{NAME}' executes Python, and this notebook is in {language}")
        return language

    @classmethod
    def execute_notebook(
        cls,
        nb: Notebook,
        kernel_name: str,
        output_path: str | Path | None = None,
        *,
        partial: Path | None = None,
        kept: list[Notebook] | None = None,
        **_: Any,
    ) -> Notebook:
        """Execute the notebook, saving it to `partial`, else to the output, as it goes.

        `kept` holds it as far as it ran, even if this raises.
        """
        manager = _manager_of(nb, partial or (Path(output_path) if output_path else None))
        if kept is not None:
            kept.append(nb)
        manager.notebook_start()
        try:
            with shell.started() as running:
                _execute_cells(manager, running)
        finally:
            manager.notebook_complete()
        return nb


def _execute_cells(manager: Any, running: shell.Shell) -> None:
    for index, cell in enumerate(manager.nb.cells):
        manager.cell_start(cell, index)
        well, tags = True, cell.metadata.get("tags", ())
        try:
            if cell.cell_type == "code" and cell.source.strip() and SKIPPED not in tags:
                well = running.execute(cell) or MAY_FAIL in tags
        except BaseException:
            well = False
            raise
        finally:
            if not well:
                manager.cell_exception(cell, index)
            manager.cell_complete(cell, index)
            _report_findings(cell)
        if not well:
            return


def _report_findings(cell: Any) -> None:
    """Report what the steps of a cell have found, without its evidence."""
    for found in record.read_outputs([cell], record.FINDING_MIME):
        forks.report(record.finding_from_json(found | {"frames": {}}))
