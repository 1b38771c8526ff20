"""What breaks servers, the environment or a run, and how a command is interrupted."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Concatenate, ParamSpec

import psutil

from tests.kit import command
from tests.kit.servers import Servers

Env = dict[str, str]
Break = Callable[[Servers, Env], AbstractContextManager[None]]
P = ParamSpec("P")


def environment(servers: Servers) -> Env:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    return {
        **clean,
        "RUNBOOK_DATABASE_URL": servers.database_url,
        "RUNBOOK_NATS_URL": servers.nats_url,
        "RUNBOOK_NATS_MONITOR_URL": servers.nats_monitor_url,
    }


def breaking(broken: Callable[Concatenate[Servers, Env, P], Iterator[None]]) -> Callable[P, Break]:
    """Make a function that takes the other arguments, and returns what breaks the servers or the environment."""

    def given(*args: P.args, **kwargs: P.kwargs) -> Break:
        return lambda servers, env: contextmanager(broken)(servers, env, *args, **kwargs)

    return given


@breaking
def swapped(servers: Servers, env: Env, name: str, old: str, new: str) -> Iterator[None]:
    assert old in env[name]
    env[name] = env[name].replace(old, new)
    yield


@breaking
def down(servers: Servers, env: Env, server: str) -> Iterator[None]:
    getattr(servers, f"stop_{server}")()
    try:
        yield
    finally:
        getattr(servers, f"start_{server}")()


@breaking
def frozen(servers: Servers, env: Env, program: str) -> Iterator[None]:
    mine = str(servers.directory)
    tree = [
        p
        for p in psutil.process_iter(["cmdline"])
        if program in " ".join(p.info["cmdline"] or []) and mine in " ".join(p.info["cmdline"] or [])
    ]
    tree += [child for p in tree for child in p.children(recursive=True)]
    assert tree
    for process in tree:
        process.suspend()
    try:
        yield
    finally:
        for process in tree:
            with suppress(psutil.NoSuchProcess):  # a connection's own, whose client went meanwhile
                process.resume()


#: What a run says on its way: its first numbers, what it waits for, the steps that it has.
_PROGRESS = re.compile(r"Provisional: |  ┆ |\S \d\.\d")


def default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(
    env: Env, arguments: list[str], when: Callable[[Path], bool], number: signal.Signals, tmp_path: Path
) -> None:
    """Interrupt a command once it can be, and `when` says so; what must hold at whatever moment that was."""
    with tempfile.TemporaryDirectory() as temporary:  # a socket lies there, whose name must be short
        tmp_path.mkdir()
        mark = str(tmp_path)
        env = env | {"INTERRUPTED": mark, "TMPDIR": temporary, "RUNBOOK_OUTPUT": f"{tmp_path}/out"}
        env |= {"RUNBOOK_SANDBOX_DIR": f"{tmp_path}/sandbox"}
        said, problems = tmp_path / "stdout", tmp_path / "stderr"
        with said.open("w") as out, problems.open("w") as err:
            # Its SIGINT would be ignored behind a shell's &.
            process = command.start(
                *arguments, env=env, stdout=out, stderr=err, start_new_session=True, preexec_fn=default_interrupt
            )
        try:
            caught = 0
            while not caught >> (signal.SIGTERM - 1) & 1:  # before Python has begun it is Python's
                caught = int(Path(f"/proc/{process.pid}/status").read_text().split("SigCgt:")[1].split()[0], 16)
            while not when(said):
                assert process.poll() is None
                time.sleep(0.02)
            # Ctrl-C is for all that a terminal has in its foreground.
            (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
            code = process.wait(60)
            left = psutil.wait_procs(command.processes("INTERRUPTED", mark), timeout=20)[1]
        finally:
            for one in command.processes("INTERRUPTED", mark):
                with suppress(psutil.Error):
                    one.kill()
        told = [line for line in problems.read_text().splitlines() if not _PROGRESS.match(line)]
        assert (code, told, left) == (128 + number, ["runbook: interrupted"], [])
        files = [p.name for p in Path(temporary).iterdir()]
        files += [p.name for p in (tmp_path / "out").rglob("*") if ".partial" in p.name or p.name.endswith(".new")]
        assert files == [] and not (tmp_path / "sandbox").exists()


def after(seconds: float, begun: Callable[[Path], object] = lambda said: True) -> Callable[[Path], bool]:
    begin: list[float] = []

    def when(said: Path) -> bool:
        if begun(said):
            begin.append(time.monotonic())
        return bool(begin) and begin[-1] - begin[0] >= seconds

    return when


def a_section_runs(said: Path) -> bool:
    return any((said.parent / "out").rglob("*.partial.ipynb"))
