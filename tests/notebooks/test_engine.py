"""The engine tells the truth about runs that end badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from papermill.exceptions import PapermillExecutionError
from papermill.execute import execute_notebook

from runbook_lib.runs import forks, shell
from runbook_lib.runs.engine import NAME
from runbook_lib.store.files import write_whole
from tests.kit import waiting

PYTHON = {"name": "python3", "display_name": "python3", "language": "python"}


def execute(tmp_path: Path, *sources: str, **options: Any) -> nbformat.NotebookNode:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nb.metadata["kernelspec"] = PYTHON
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


class Late(BaseException):
    """As the deadline is told."""


@pytest.fixture
def late() -> Iterator[str]:
    """A statement that tells the deadline from outside, which the cell that waits cannot keep."""
    before = signal.signal(signal.SIGUSR1, lambda *_: shell.end(Late()))
    yield "import os, signal, threading; threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()"
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    "wait",
    [
        "import time; time.sleep(60)",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "!sleep 60",
        "import asyncio; await asyncio.sleep(60)",
        "while True: pass",
    ],
)
def test_the_deadline_keeps_what_was_printed_and_marks_the_cell(tmp_path: Path, late: str, wait: str) -> None:
    with pytest.raises(Late) as e:
        execute(tmp_path, f"print('before')\n{late}\n{wait}", "print('never')")
    nb = e.value.kept  # type: ignore[attr-defined]
    assert states(nb) == ["failed", "pending"]
    assert nb.cells[0].outputs[0].text == "before\n" and nb.metadata.papermill.exception


def test_a_deadline_between_cells_begins_none(tmp_path: Path) -> None:
    shell.end(Late())
    with pytest.raises(Late) as e:
        execute(tmp_path, "print('never')")
    assert states(e.value.kept) == ["failed"] and not e.value.kept.cells[0].outputs  # type: ignore[attr-defined]
    execute(tmp_path, "print('the next notebook')")


def test_raising_cell(tmp_path: Path) -> None:
    with pytest.raises(PapermillExecutionError) as e:
        execute(tmp_path, "1 / 0", "print('never')")
    assert states(e.value.kept) == ["failed", "pending"]


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print('done')")])
    nb.metadata["kernelspec"] = PYTHON
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


SHOWN = [
    ("print('a')\n1 + 1", [("stream", "a\n"), ("execute_result", "2")]),
    ("1 + 1;", []),
    ("__name__, _", [("execute_result", "('__main__', '')")]),
    ("import sys; print('a'); print('b', file=sys.stderr); print('c')", [("stream", t) for t in ("a\n", "b\n", "c\n")]),
    ("!echo hi", [("stream", "hi\r\n")]),
    ("%%bash\necho hi", [("stream", "hi\n")]),
    ("import os; os.system('echo hi');", [("stream", "hi\n")]),
    ("import asyncio\nawait asyncio.sleep(0)\n7", [("execute_result", "7")]),
    ("from IPython.display import Markdown\nMarkdown('# a')", [("execute_result", "# a")]),
    (
        "from IPython.display import clear_output\nprint('a'); clear_output(wait=True); print('b')",
        [("stream", "b\n")],
    ),
    ("input('who? ')", [("stream", "who? "), ("error", "EOF when reading a line")]),
    ("import sys; sys.exit(3)", [("error", "3")]),
    ("exit()", []),
    (
        "import threading\nt = threading.Thread(target=print, args=('from a thread',)); t.start(); t.join()",
        [("stream", "from a thread\n")],
    ),
]


@pytest.mark.parametrize(("source", "shown"), SHOWN, ids=[source for source, _ in SHOWN])
def test_a_cell_shows_what_it_shows_in_a_kernel(source: str, shown: list[tuple[str, str]]) -> None:
    cell = nbformat.v4.new_code_cell(source)
    with shell.started() as running:
        running.execute(cell)
    found = [(o.output_type, o.get("text") or o.get("evalue") or min(o.data.items())[1]) for o in cell.outputs]
    assert found[: len(shown)] == shown and len(found) - len(shown) in (0, "exit(3)" in source)


def test_a_display_is_updated_in_the_cell_that_has_it() -> None:
    shows, updates = (nbformat.v4.new_code_cell(s) for s in ("h = display(1, display_id=True)", "h.update(2)"))
    with shell.started() as running:
        assert running.execute(shows) and running.execute(updates)
    assert [o.data["text/plain"] for o in shows.outputs] == ["2"] and not updates.outputs


def test_a_cell_that_prints_without_end_is_cut(tmp_path: Path) -> None:
    nb = execute(tmp_path, "for _ in range(100): print('x' * 999_999)", "import os; os.system('yes | head -c 20M');")
    for cell in nb.cells:
        said = "".join(o.text for o in cell.outputs)
        assert len(said) < 1.1 * shell.MOST and "characters left out" in said


def test_a_magic_of_a_line_knows_the_names_of_the_notebook(tmp_path: Path) -> None:
    nb = execute(tmp_path, "x = 5", "%who_ls")
    assert nb.cells[1].outputs[0].data["text/plain"] == "['x']"


@pytest.mark.parametrize("tag", ["", "raises-exception"])
def test_a_cell_that_may_raise_says_so(tmp_path: Path, tag: str) -> None:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in ("1 / 0", "2")])
    nb.cells[0].metadata["tags"], nb.metadata["kernelspec"] = [tag], PYTHON
    kept: list[nbformat.NotebookNode] = []
    with pytest.raises(PapermillExecutionError):  # papermill's own word, once all is done
        execute_notebook(nb, None, engine_name=NAME, partial=tmp_path / "a.ipynb", kept=kept)
    assert bool(kept[0].cells[-1].outputs) == bool(tag)


def test_a_cell_for_a_person_is_skipped(tmp_path: Path) -> None:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0", metadata={"tags": ["skip-execution"]})])
    nb.metadata["kernelspec"] = PYTHON
    done = execute_notebook(nb, None, engine_name=NAME, partial=tmp_path / "a.ipynb")
    assert not done.cells[0].outputs and done.cells[0].execution_count is None


def _execute_in_runner(folder: str, source: str) -> None:
    os.setpgid(0, 0)
    execute(Path(folder), source)


def test_what_a_cell_starts_ends_with_its_runner(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    source = f"import subprocess; open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))"
    runner = forks.start(_execute_in_runner, str(tmp_path), source)
    waiting.until(lambda: note.is_file() and note.read_text(), "the pid", within=120)
    left = psutil.Process(int(note.read_text()))
    runner.result()
    _, alive = psutil.wait_procs([left], timeout=60)
    assert not alive


def test_papermill_finds_the_engine_by_its_name(tmp_path: Path) -> None:
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import sys; print('ipykernel.kernelapp' in sys.modules)")]
    )
    nb.metadata["kernelspec"] = PYTHON
    nbformat.write(nb, tmp_path / "a.ipynb")
    line = [sys.executable, "-m", "papermill", "--engine", NAME, "a.ipynb", "b.ipynb"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (cell,) = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells
    assert cell.outputs[0].text == "False\n"


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
    from runbook_lib.runs import engine
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
