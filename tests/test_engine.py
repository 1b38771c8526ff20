"""The engine tells the truth about runs that end badly, against real kernels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.engines import papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import execute_notebook

from runbook_lib.engine import Engine, write_whole

papermill_engines.register("runbook", Engine)


def execute(tmp_path: Path, *sources: str, **options: Any) -> nbformat.NotebookNode:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    kept: list[nbformat.NotebookNode] = []
    partial = tmp_path / "run.partial.ipynb"
    try:
        execute_notebook(nb, None, engine_name="runbook", progress_bar=False, partial=partial, kept=kept, **options)
    except BaseException as e:
        e.kept = kept[0]  # type: ignore[attr-defined]
        raise
    assert nbformat.read(partial, as_version=4).cells[0].source == sources[0]
    return kept[0]


def states(nb: nbformat.NotebookNode) -> list[str]:
    # papermill puts banners, without a state, above a cell that raised
    return [c.metadata.papermill.status for c in nb.cells if "papermill" in c.metadata]


def test_good_run(tmp_path: Path) -> None:
    nb = execute(tmp_path, "x = 1", "print(x + 1)")
    assert states(nb) == ["completed", "completed"]
    assert nb.cells[1].outputs[0].text == "2\n"


def test_timeout_keeps_what_was_printed_and_marks_the_cell(tmp_path: Path) -> None:
    until = time.time() + 3
    with pytest.raises(CellTimeoutError) as e:
        execute(
            tmp_path,
            "import time\nprint('before', flush=True)\ntime.sleep(60)",
            "print('never')",
            timeout_func=lambda cell: max(int(until - time.time()), 1),
        )
    nb = e.value.kept  # type: ignore[attr-defined]
    assert states(nb) == ["failed", "pending"]
    assert nb.cells[0].outputs[0].text == "before\n"
    assert nb.metadata.papermill.exception


def test_dead_kernel(tmp_path: Path) -> None:
    with pytest.raises(DeadKernelError) as e:
        execute(tmp_path, "x = 1", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "x")
    assert states(e.value.kept) == ["completed", "failed", "pending"]  # type: ignore[attr-defined]


def test_raising_cell(tmp_path: Path) -> None:
    with pytest.raises(PapermillExecutionError) as e:
        execute(tmp_path, "1 / 0", "print('never')")
    assert states(e.value.kept) == ["failed", "pending"]


def test_no_such_kernel_completes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no-such-kernel") as e:
        execute(tmp_path, "x = 1", kernel_name="no-such-kernel")
    assert "completed" not in states(e.value.kept)  # type: ignore[attr-defined]


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print('done')")])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    kept: list[nbformat.NotebookNode] = []
    gone = tmp_path / "gone" / "run.partial.ipynb"
    execute_notebook(nb, None, engine_name="runbook", progress_bar=False, partial=gone, kept=kept)
    assert kept[0].cells[0].outputs[0].text == "done\n"


def test_write_whole_leaves_the_old_content_when_it_fails(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_whole(file, b"old")
    with pytest.raises(OSError, match=r"."):
        write_whole(tmp_path / "missing" / "a", b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".new")] == []
