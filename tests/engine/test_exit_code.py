"""Exit codes that are no status: a store that fails or refuses is 69, what nobody expected 70; each is one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click
import pytest

from runbook_lib.cli import main
from runbook_lib.store.archive import Archive


def ended(problem: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(main.cli, "main", fail)
    return main._run_command(["sections"])


def test_a_bug_is_one_line_and_no_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(RuntimeError("two\nlines of postgresql://me:s3cret@db/app"), monkeypatch) == 70
    said = capsys.readouterr().err
    assert said.startswith("runbook: internal error: RuntimeError: two lines of ") and "s3cret" not in said
    assert said.count("\n") == 1 and "RUNBOOK_DEBUG=1" in said
    monkeypatch.setenv("RUNBOOK_DEBUG", "1")
    with pytest.raises(RuntimeError):
        ended(RuntimeError(), monkeypatch)


def test_what_click_makes_of_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    abort = click.Abort()
    assert ended(abort, monkeypatch) == 64
    abort.__cause__ = EOFError("closed")
    assert ended(abort, monkeypatch) == 70
    assert [line[:40] for line in capsys.readouterr().err.splitlines()] == [
        "runbook: a question got no answer",
        "runbook: internal error: EOFError: close",
    ]


def test_a_configuration_that_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runbook.toml").write_bytes(b"lang = '\xff'")
    monkeypatch.chdir(tmp_path)
    assert main._run_command(["run", "2"]) == 64
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        TimeoutError("no answer"),
        PermissionError(errno.EACCES, "Permission denied"),
        FileNotFoundError(errno.EIO, "The specified bucket does not exist"),
    ],
)
@pytest.mark.parametrize("fails", ["make", "add_line", "names"])
def test_what_a_store_refuses_or_fails_to_do_is_no_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: OSError, fails: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(Archive, fails, fail)
    command = ["note", "I", "x", "--new"] if fails in ("make", "add_line") else ["verify", "I"]
    assert main._run_command([*command, "--output", str(tmp_path)]) == 69
