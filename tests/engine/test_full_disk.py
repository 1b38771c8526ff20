"""A disk without room: each file that a command replaces stays as it was."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from runbook_lib.cli import main
from runbook_lib.store.files import replace_file
from tests.kit import ROOT
from tests.kit.limits import files_up_to


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["report", "--page", "x"], "x"),
        (["report", "--csv", "x"], "x"),
        (["backtest", "--policy", str(ROOT / "docs"), "--page", "x"], "x"),
        (["capsule", "sample", "--out", "x"], "x"),
        (["record", "sample", "--to", "x"], "x/index.json"),
        (["new", "section", "8.{n}", "--pack", "x"], "x/docs/runbook.md"),
        (["dossier", "sample"], "outputs/sample/index.html"),
        (["note", "sample", "x"], "outputs/sample/log.jsonl"),
    ],
)
def test_a_full_disk_takes_nothing(
    words: list[str], written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNBOOK_OUTPUT", "outputs")
    shutil.copytree(ROOT / "outputs" / "sample", tmp_path / "outputs" / "sample")
    assert main._run_command([word.format(n=1) for word in words]) in (0, 1)
    before = contents(tmp_path)
    assert tmp_path / written in before
    capsys.readouterr()
    with files_up_to(1):
        assert main._run_command([word.format(n=2) for word in words]) == 69
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_replaced_file_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("before")
    file.chmod(0o640)
    link.symlink_to(file)
    replace_file(link, b"after")
    assert link.is_symlink() and file.read_bytes() == b"after" and stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    replace_file(pipe, b"page")
    assert os.read(reader, 9) == b"page" and pipe.is_fifo()
    os.close(reader)
