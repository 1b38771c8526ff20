"""A long run of the tests says how far it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_says_how_far_it_is(tmp_path: Path, workers: str) -> None:
    """In a log, too; with workers and without."""
    (tmp_path / "conftest.py").write_text(
        "import progress\nprogress.EVERY_S = 0\npytest_sessionstart = progress.pytest_sessionstart\n"
    )
    (tmp_path / "test_some.py").write_text("".join(f"def test_{n}(): ...\n" for n in range(4)))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", "-n", workers, "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run([*command, str(tmp_path)], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout
    assert re.search(r"  [123] of 4 tests \(\d+%\), last test_some.py::test_", done.stdout), done.stdout
    assert "  4 of 4 tests (100%), last test_some.py::test_" in done.stdout
