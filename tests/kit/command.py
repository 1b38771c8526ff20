"""The `runbook` command with its imports paid once: in a process forked from one that has them.

It has its own environment, folder, output and exit code, as from a shell. Only the interpreter's start is not its own;
what that alone shows (signals, a missing package, an odd terminal) is tested by `alone` and `start`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess, Popen, TimeoutExpired
from typing import Any

import psutil

from runbook_lib.runs import forks


def runbook(
    *arguments: str, env: Mapping[str, str], cwd: Path | None = None, stdin: str = "", timeout: float = 240
) -> CompletedProcess[str]:
    """Run the command to its end. Raises TimeoutExpired (seconds), and Killed where it died."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin, encoding="utf-8")
        running = forks.start(_main, arguments, dict(env), str(cwd or Path.cwd()), [str(path) for path in streams])
        try:
            if not forks.wait_for_any([running], time.monotonic() + timeout):
                raise TimeoutExpired(arguments, timeout)
            code = running.result()
        finally:
            running.end()
        out, err = (path.read_text(encoding="utf-8") for path in streams[1:])
    return CompletedProcess(arguments, code, out, err)


def start(*arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> Popen[str]:
    """Start the command with an interpreter of its own, by default with pipes for what it says."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return Popen([sys.executable, "-m", "runbook_lib", *arguments], env=env, **(pipes | options))


def alone(*arguments: str, timeout: float = 240, **options: Any) -> CompletedProcess[str]:
    """Run the command with an interpreter of its own to its end."""
    with start(*arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return CompletedProcess(arguments, process.returncode, out, err)


def processes(variable: str, value: str) -> list[psutil.Process]:
    """Return the living processes that have this value in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _main(arguments: tuple[str, ...], env: dict[str, str], cwd: str, streams: list[str]) -> int:
    from runbook_lib.cli import main as cli

    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a fork has none
    try:
        cli.main(list(arguments))
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(end.code or 0)
    return 0
