from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Ends as the command does, interrupted while `exec` makes something from text, as `dataclass` does.
PROGRAM = """
from runbook_lib.book import pack
from runbook_lib.cli import main
def load(command):
    exec("raise KeyboardInterrupt({number})")
pack.Command.load = load
main.main(["triage"])
"""


@pytest.mark.parametrize("number", [2, 15])
def test_an_interrupt_in_code_made_from_text_exits_with_its_code(tmp_path: Path, number: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(number=number))
    command = [sys.executable, "-m", "program"]  # a file that is run by its name exits as it is told
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "runbook: interrupted\n")
