"""`tests/tools/run.py`: what failed is tried once more, alone, and named if it then passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import ROOT

RUN = ROOT / "tests" / "tools" / "run.py"
PASSES = "def test_passes(): pass\n"
FAILS = "def test_fails(): assert False\n"
UNSTEADY = """
@pytest.mark.xdist_group("shared")
@pytest.mark.parametrize("n", range({n}))
def test_unsteady(n):
    seen = pathlib.Path(f"seen-{{n}}")
    second = seen.exists()
    seen.touch()
    assert second
"""
TWO_UNSTEADY = "".join(f"UNSTEADY test_it.py::test_unsteady[{n}]\n" for n in range(2))


def runs(folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(RUN), "--workers", "1"]
    # With no plugin but the one that is needed: each of these starts pytest some times.
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("tests", "code", "end"),
    [
        (PASSES + UNSTEADY.format(n=2), 0, "total: 3 passed, 0 failed, 0 skipped\n" + TWO_UNSTEADY),
        pytest.param(
            PASSES + UNSTEADY.format(n=4), 1, "UNSTEADY test_it.py::test_unsteady[3]\n", marks=pytest.mark.slow
        ),
        (PASSES + FAILS, 1, "FAILED test_it.py::test_fails (twice)\ntotal: 1 passed, 1 failed, 0 skipped\n"),
        ("", 5, "total: 0 passed, 0 failed, 0 skipped\n"),
    ],
    ids=["two-unsteady", "four-unsteady", "fails-twice", "no-test"],
)
def test_what_failed_is_tried_once_more(tmp_path: Path, tests: str, code: int, end: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --dist loadgroup\n")
    (tmp_path / "test_it.py").write_text(f"import pathlib, pytest\n{tests}")
    done = runs(tmp_path)
    assert (done.returncode, done.stdout[-len(end) :]) == (code, end), done.stdout + done.stderr


def test_a_file_that_cannot_be_imported_fails_beside_an_unsteady_test(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(f"import pathlib, pytest\n{UNSTEADY.format(n=1)}")
    (tmp_path / "test_other.py").write_text("import nothing_of_that_name\n")
    done = runs(tmp_path)
    assert done.returncode != 0 and "FAILED test_other.py\n" in done.stdout, done.stdout
