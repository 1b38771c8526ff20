"""The papermill engine of the runbook: the artifact of a failed run shows where it failed.

papermill's own engine marks every cell "completed" after a timeout or a dead kernel, and rewrites the
file in place.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import CellExecutionError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from traitlets import Unicode

from runbook_lib.runs import forks, kernels
from runbook_lib.store import record
from runbook_lib.store.files import file_mode, write_whole

#: Under which papermill knows the engine, once this module is imported.
NAME = "runbook"

Notebook = nbformat.NotebookNode


class _Manager(NotebookExecutionManager):  # type: ignore[misc]
    """Keeps the notebook in a file that is whole at every moment; a full disk does not end the run."""

    def save(self, **_: Any) -> None:
        with contextlib.suppress(OSError):
            # In one line: written twice for every cell, and a tenth of the time of the usual form.
            path, content = Path(self.output_path), json.dumps(self.nb, ensure_ascii=False).encode()
            write_whole(path, content, durable=False, mode=file_mode(path.parent))
        self.last_save_time = self.now()


class _MarkingClient(PapermillNotebookClient):  # type: ignore[misc]
    """Marks the cell in which a run ended as failed, including timeouts and dead kernels."""

    sockets = Unicode()

    def create_kernel_manager(self) -> Any:
        """Connect over ipc, which needs no ports and is private; a folder per kernel keeps kernels apart."""
        km = super().create_kernel_manager()
        km.transport, km.ip, km.connection_file = "ipc", f"{self.sockets}/ipc", f"{self.sockets}/kernel.json"
        km.client_factory = kernels.QuickKernelClient
        km.kernel_spec.metadata["kernel_provisioner"] = {"provisioner_name": kernels.PROVISIONER}
        return km

    def papermill_execute_cells(self) -> None:
        for index, cell in enumerate(self.nb.cells):
            self.nb_man.cell_start(cell, index)
            try:
                self.execute_cell(cell, index)
            except BaseException as e:
                self.nb_man.cell_exception(cell, cell_index=index, exception=e)
                if not isinstance(e, CellExecutionError):
                    raise
                return
            finally:
                self.nb_man.cell_complete(cell, cell_index=index)
                _report_findings(cell)


def _report_findings(cell: Any) -> None:
    """Report what the steps of a cell have found, without its evidence."""
    for found in record.read_outputs([cell], record.FINDING_MIME):
        forks.report(record.finding_from_json(found | {"frames": {}}))


class Engine(NBClientEngine):  # type: ignore[misc]
    """Executes a notebook within a deadline, saving to `partial` as it goes."""

    @classmethod
    def execute_notebook(
        cls,
        nb: Notebook,
        kernel_name: str,
        *,
        partial: Path,
        kept: list[Notebook],
        scratch: Path | None = None,
        **options: Any,
    ) -> Notebook:
        """Execute the notebook; `kept` holds it as far as it ran, even if this raises.

        The kernel's files are in `scratch`, or in the temporary directory.
        """
        manager = _Manager(nb, output_path=str(partial), progress_bar=False)
        kept.append(nb)
        manager.notebook_start()
        try:
            # The name of a socket must be short: nothing further between the two.
            with (
                contextlib.nullcontext(scratch)
                if scratch
                else tempfile.TemporaryDirectory(prefix="runbook-") as sockets
            ):
                _MarkingClient(
                    manager,
                    sockets=str(sockets),
                    kernel_name=kernel_name,
                    shutdown_kernel="immediate",
                    record_timing=False,
                    **{k: options[k] for k in ("timeout_func", "startup_timeout") if k in options},
                ).execute()
        except BaseException:
            nb.metadata.papermill["exception"] = True
            for cell in nb.cells:
                if cell.metadata.papermill["status"] != manager.COMPLETED:
                    cell.metadata.papermill["status"] = manager.FAILED
                    break
            raise
        finally:
            manager.notebook_complete()
        return nb


papermill_engines.register(NAME, Engine)
