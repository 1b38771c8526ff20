"""Investigations on other machines: a Dask scheduler and its workers, each a process of its own on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import psutil
import pytest

from runbook_lib.model.order import Order
from runbook_lib.model.usage import UsageError, install_command
from runbook_lib.runs import executors
from runbook_lib.store.archive import Archive
from tests.bench.machines import Cluster
from tests.kit.command import alone, runbook
from tests.kit.schemas import valid
from tests.kit.store import BUCKET, Store

pytestmark = pytest.mark.slow

MANY = 12
SHUT = 'database_url = "postgresql://runbook@127.0.0.1:9/miniserversystem"\nnats_url = "nats://127.0.0.1:9"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Many systems whose ports are shut, and one that takes connections and says nothing."""
    folder = tmp_path_factory.mktemp("machines")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        shut = [f"[targets.t{n}]\n{SHUT}" for n in range(MANY)]
        silent_one = f"[targets.silent]\n{SHUT.replace('127.0.0.1:9', at)}"
        odd = '[targets.odd]\ndatabase_url = "env:NOT_SET"\n'
        (folder / "runbook.toml").write_text("\n".join([*shut, silent_one, odd]))
        yield folder


@pytest.fixture(scope="module")
def cluster(folder: Path, store: Store) -> Iterator[Cluster]:
    cluster = Cluster(folder, store.env)
    try:
        cluster.worker("--no-nanny")
        cluster.worker("--nanny", DASK_DISTRIBUTED__WORKER__DAEMON="False")
        yield cluster
    finally:
        left = [c for w in cluster.workers for c in below(w.pid)]
        cluster.stop()
        assert remaining(left, 20) == []


def below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def remaining(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after so many seconds at most."""

    def runs(p: psutil.Process) -> bool:
        try:
            return p.is_running() and p.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    until = time.monotonic() + seconds
    while (left := [p for p in processes if runs(p)]) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def opened(cluster: Cluster) -> Executor:
    return executors.executor_of("dask", cluster.url)


def triage(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return runbook("triage", *arguments, env=os.environ | cluster.env, cwd=cluster.folder)


def told(stdout: str) -> tuple[list[str], list[str]]:
    """A line for each target, and the seal that stands beneath it."""
    lines = stdout.splitlines()
    assert [line.startswith("  seal:") for line in lines] == [False, True] * (len(lines) // 2), stdout
    return lines[::2], [line.strip() for line in lines[1::2]]


def test_some_systems_into_an_object_store_and_a_silent_one_holds_up_no_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    names = ["silent", *(f"t{n}" for n in range(5))]
    output = f"s3://{BUCKET}/some"
    on = ("--executor", "dask", "--scheduler", cluster.url, "--output", output, "--deadline", "60")
    done = triage(cluster, "--targets", ",".join(names), "--incident", "S", *on)
    assert done.returncode == 3, done.stderr
    assert done.stderr == ""
    lines, seals = told(done.stdout)
    assert sorted(line.split()[0] for line in lines) == sorted(names)
    assert [s.partition(":S-")[2].partition(":")[0] for s in seals] == [line.split()[0] for line in lines]
    assert all(line.endswith(f"{output}/S-{line.split()[0]}/index.html") for line in lines)
    assert not lines[0].startswith("silent")
    for name in names:
        archive = Archive(output, f"S-{name}")
        left = Counter(e.get("section", "verdict") for e in archive.artifacts())
        assert left["3"] == left["verdict"] == 1 and set(left.values()) == {1} and len(left) > 2
        assert archive.problems() == []
        assert archive.partials() == []


def test_as_json_it_is_one_list_in_the_order_of_the_names(cluster: Cluster) -> None:
    on = ("--executor", "dask", "--scheduler", cluster.url)
    done = triage(cluster, "--targets", "t1,t0", "--incident", "J", "--json", *on)
    said = valid(json.loads(done.stdout), "run")
    assert [d["target"] for d in said] == ["t1", "t0"]
    assert [d["incident"] for d in said] == ["J-t1", "J-t0"]
    assert done.returncode == 3 == said[0]["exit_code"]
    assert Path(said[0]["runs"][0]["artifact"]["html"]).is_relative_to(cluster.folder / "outputs" / "J-t1")


@pytest.mark.timeout(900)
def test_a_killed_worker_loses_nothing_and_leaves_nothing_behind(cluster: Cluster) -> None:
    """Section 3 alone, so that two cores soon do all of them."""
    output = str(cluster.folder / "many")
    orders = [Order(("3",), output, target=f"t{n}", incident=f"M-t{n}", job=f"job-{n}") for n in range(MANY)]
    victim, done = cluster.workers[0], 0
    with opened(cluster) as executor:
        for order, came in executors.results(executor, executors.carry_out, orders):
            assert isinstance(came, dict), came
            assert (came["problem"], came["document"]["target"]) == ("", order.target)
            done += 1
            if done == MANY // 4:
                until = time.monotonic() + 60
                # At work: what it forks from has an investigation and its runner.
                while len(begun := below(victim.pid)) < 4:
                    assert time.monotonic() < until
                os.kill(victim.pid, signal.SIGKILL)
                assert remaining(begun, 20) == []
    assert done == MANY
    for order in orders:
        archive = Archive(output, order.incident)
        assert Counter((e["job"], e.get("section")) for e in archive.artifacts()) == {
            (order.job, "3"): 1,
            (order.job, None): 1,
        }
    assert Archive(output, "M-t0").problems() == []


def test_what_does_not_fit_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="belong together"):
        executors.executor_of("dask")
    for address in ("nonsense://x:1", "tcp://127.0.0.1", "127.0.0.1:8786"):
        with pytest.raises(UsageError, match="tcp://HOST:PORT"):
            executors.executor_of("dask", address)
    done = triage(cluster, "--targets", "t0", "--executor", "dask", "--scheduler", "tcp://127.0.0.1:9")
    assert done.returncode == 64 and done.stderr.count("\n") == 1

    under_nanny = cluster.worker("--nanny")
    with pytest.raises(UsageError, match="DASK_DISTRIBUTED__WORKER__DAEMON=False"):
        until_it_joins(cluster)
    under_nanny.terminate()
    under_nanny.wait(60)

    info = tmp_path / "runbook_notebooks-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: runbook-notebooks\nVersion: 0.0.1\n")
    cluster.worker("--no-nanny", PYTHONPATH=str(tmp_path))
    with pytest.raises(UsageError, match=r"it has runbook-notebooks 0\.0\.1"):
        until_it_joins(cluster)


def until_it_joins(cluster: Cluster) -> None:
    for _ in range(60):
        opened(cluster).shutdown()
        time.sleep(0.5)


def test_a_missing_package_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text("raise ModuleNotFoundError('none', name='distributed')")
    on = ("--executor", "dask", "--scheduler", "tcp://127.0.0.1:9")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = alone("triage", "--targets", "t0", *on, cwd=folder, env=env)
    assert done.returncode == 64
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"needs the package distributed: {install_command('dask')}\n")


def test_here_too(folder: Path) -> None:
    def here(*arguments: str) -> subprocess.CompletedProcess[str]:
        where = ("--incident", "H", "--output", str(folder / "here"))
        return runbook("triage", *where, *arguments, env=os.environ, cwd=folder)

    done = here("--targets", "t0,t1")
    assert done.returncode == 3 and done.stderr == ""
    assert {line.split()[0] for line in told(done.stdout)[0]} == {"t0", "t1"}
    done = here("--targets", "odd,t0", "--json")
    odd, t0 = valid(json.loads(done.stdout), "run")
    assert (odd["status"], t0["status"], done.returncode) == ("UNKNOWN", "UNKNOWN", 3)
    assert "NOT_SET" in odd["problem"] and done.stderr == f"runbook: odd: {odd['problem']}\n"
