"""The engine tells the truth about runs that end badly, against real kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.execute import execute_notebook

from runbook_lib.runs import forks, kernels
from runbook_lib.runs.engine import NAME
from runbook_lib.store.files import write_whole
from tests.kit import waiting


def execute(tmp_path: Path, *sources: str, **options: Any) -> nbformat.NotebookNode:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    kept: list[nbformat.NotebookNode] = []
    partial = tmp_path / "run.partial.ipynb"
    try:
        execute_notebook(nb, None, engine_name=NAME, progress_bar=False, partial=partial, kept=kept, **options)
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
    execute_notebook(nb, None, engine_name=NAME, progress_bar=False, partial=gone, kept=kept)
    assert kept[0].cells[0].outputs[0].text == "done\n"


def test_write_whole_leaves_the_old_content_when_it_fails(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_whole(file, b"old")
    with pytest.raises(OSError, match=r"."):
        write_whole(tmp_path / "missing" / "a", b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".new")] == []


def forked(tmp_path: Path, *sources: str, **options: Any) -> nbformat.NotebookNode:
    kernels.fork_one()
    try:
        return execute(tmp_path, *sources, **options)
    finally:
        kernels.end_unused_kernel()


def test_a_forked_kernel_has_its_imports_and_its_own_state(tmp_path: Path) -> None:
    here = "import os, sys, runbook_lib.runs.engine; print(os.getppid(), 'papermill' in sys.modules, __name__)"
    nb = forked(tmp_path, here, "from IPython.display import Markdown\nMarkdown('shown')")
    assert states(nb) == ["completed", "completed"]
    assert nb.cells[0].outputs[0].text == f"{os.getpid()} True __main__\n"
    assert nb.cells[1].outputs[0].data["text/markdown"] == "shown"


def test_a_forked_kernel_ends_as_any_other(tmp_path: Path) -> None:
    until, others = time.time() + 3, psutil.Process().children()
    with pytest.raises(CellTimeoutError) as e:
        forked(
            tmp_path,
            "import time\nprint('before', flush=True)\ntime.sleep(60)",
            timeout_func=lambda cell: max(int(until - time.time()), 1),
        )
    assert states(e.value.kept) == ["failed"]  # type: ignore[attr-defined]
    with pytest.raises(DeadKernelError):
        forked(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(PapermillExecutionError):
        forked(tmp_path, "1 / 0")
    assert psutil.Process().children() == others


def test_a_fork_that_nobody_takes_ends(tmp_path: Path) -> None:
    others = set(psutil.Process().children())  # servers of other tests
    kernels.fork_one()
    (child,) = set(psutil.Process().children()) - others
    kernels.end_unused_kernel()
    assert not child.is_running()


def test_a_forked_kernel_goes_with_its_runner(tmp_path: Path) -> None:
    code = (
        "import os, sys, nbformat\n"
        "from papermill.execute import execute_notebook\n"
        "from runbook_lib.runs import engine, kernels\n"
        "from pathlib import Path\n"
        "kernels.fork_one()\n"
        "source = f'import os, time; open({sys.argv[1]!r}, \"w\").write(str(os.getpid())); time.sleep(60)'\n"
        "cell = nbformat.v4.new_code_cell(source)\n"
        "nb = nbformat.v4.new_notebook(cells=[cell])\n"
        "nb.metadata['kernelspec'] = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}\n"
        "partial = Path(sys.argv[1] + '.ipynb')\n"
        "execute_notebook(nb, None, engine_name=engine.NAME, progress_bar=False, partial=partial, kept=[])\n"
    )
    note = tmp_path / "pid"
    runner = subprocess.Popen([sys.executable, "-c", code, str(note)])
    waiting.until(lambda: note.is_file() and note.read_text(), "the kernel's pid", within=120)
    kernel = psutil.Process(int(note.read_text()))
    runner.kill()
    runner.wait()
    _, alive = psutil.wait_procs([kernel], timeout=60)
    assert not alive, "the kernel outlived its runner"


def _count(*numbers: int) -> int:
    for n in numbers:
        forks.report(n)
    return sum(numbers)


def _pass_on(*numbers: int) -> int:
    return forks.call(_count, *numbers, hear=forks.report)


def test_reports_come_in_order_before_the_answer_also_from_a_fork_of_a_fork() -> None:
    heard: list[int] = []
    assert forks.call(_pass_on, 1, 2, 3, hear=heard.append) == 6 and heard == [1, 2, 3]
    assert forks.call(_count, 4) == 4  # nobody listens


def test_what_is_forked_forks_its_own() -> None:
    """And starts no second origin, which would import everything once more."""
    assert forks.call(forks.context).get_start_method() == "fork"


POLITE = """
import os
from pathlib import Path
import nbformat
from runbook_lib.runs import forks

def look():
    from papermill.execute import execute_notebook
    from runbook_lib.runs import engine, kernels
    kernels.fork_one()
    cell = "import os; print(os.nice(0), open('/proc/self/autogroup').read().split()[-1], os.getsid(0))"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    kept = []
    execute_notebook(nb, None, engine_name=engine.NAME, progress_bar=False, partial=Path("run.ipynb"), kept=kept)
    return f"{os.nice(0)} {os.getsid(0)} {kept[0].cells[0].outputs[0].text}"

if __name__ == "__main__":
    before = os.nice(0)
    print(before, os.nice(0), os.getsid(0), forks.call(look))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel shares cores by processes alone")
def test_runs_let_others_go_first_and_slow_down_nobody_else(tmp_path: Path) -> None:
    """As processes and, where Linux shares the cores among sessions first, as a session of their own."""
    script = tmp_path / "look.py"
    script.write_text(POLITE)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    before, after, session, runner, of_runner, kernel, group, of_kernel = map(int, done.stdout.split())
    assert before == after and runner == kernel == min(before + forks.NICE, 19)
    assert group == forks.NICE and of_runner == of_kernel != session
