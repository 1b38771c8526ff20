"""Archive a run of `runbook lab` out of its kernel: nothing has to be saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nbformat.v4 import new_code_cell, new_notebook, new_output

from runbook_lib.checks.context import Context
from runbook_lib.dossier import artifact, overview
from runbook_lib.model.finding import replace
from runbook_lib.model.times import now
from runbook_lib.store.files import digest
from runbook_lib.store.lines import run_line
from runbook_lib.store.run import read_run, run_of_cells


def archive_run(rb: Context, cells: Mapping[str, Iterable[tuple[dict[str, Any], dict[str, Any]]]]) -> None:
    """Archive a concluded run like a headless one, unless it is there already. Raises UsageError and OSError.

    `cells` are what the run has shown by the source of the cell: MIME bundles with their metadata. A run that changed
    is another one.
    """
    nb = new_notebook(
        cells=[
            new_code_cell(source, outputs=[new_output("display_data", data, metadata=more) for data, more in shown])
            for source, shown in cells.items()
        ]
    )
    section, archive = rb.section.number, rb.archive
    run = run_of_cells(nb.cells, section, rb.catalog)
    parameters = {"incident_id": archive.incident, "target": run.header["target"]} | run.header["parameters"]
    job = f"lab:{digest(str((run.header['opened'], run.stored)).encode())}"
    archive.prepare()
    if section not in archive.of_job(job):
        run = replace(run, started=run.header["opened"], ended=now())
        stem = archive.reserve(f"{artifact.stamp(run.started)}-{section}")
        try:
            made = artifact.make(nb, run, parameters, stem, interactive=True, job=job)
            archive.append(made.entry, made.files)
        finally:
            archive.release(stem)
    # The verdict and the page follow if an earlier attempt left them out.
    run = read_run(archive, run_line(archive, archive.of_job(job)[section]))
    overview.keep(archive, [run], overview.document(archive.incident, parameters["target"], [run], run.verdict), job)
    overview.write_index(archive)
