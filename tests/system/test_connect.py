"""`runbook connect`: kubectl's ways into a cluster, its errors as one line, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from runbook_lib.gameday.sandbox.state import free_ports
from tests.kit import command
from tests.kit.cluster import Cluster
from tests.kit.waiting import until

COMMAND = [sys.executable, "-m", "runbook_lib", "connect"]

#: In the place of kubectl, for its processes alone: it says what kubectl says, and opens nothing. WAYS is a folder with
#: a file for each that runs; a resource whose file `no-<name>` is there fails.
DOUBLE = """#!/bin/sh
shift 5
resource=$1; shift
name=$(basename "$resource")
if [ -e "$WAYS/no-$name" ]; then
    echo "Error from server (NotFound): services \\"$name\\" not found" >&2
    exit 1
fi
echo $$ > "$WAYS/$name"
for pair; do echo "Forwarding from 127.0.0.1:${pair%%:*} -> ${pair##*:}"; done
exec sleep 600
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """No address is set; kubectl is the double."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "ways").mkdir()
    program = tmp_path / "bin" / "kubectl"
    program.write_text(DOUBLE)
    program.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    return clean | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "WAYS": str(tmp_path / "ways")}


@pytest.fixture
def ways(env: dict[str, str]) -> Path:
    """Where the doubles leave their numbers."""
    return Path(env["WAYS"])


@contextmanager
def started(env: dict[str, str], cwd: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs; it is killed if it has not ended by then."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, *arguments], env=env, cwd=cwd, stdout=pipe, stderr=pipe, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def ended(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = running.communicate(timeout=120)
    assert "Traceback" not in err
    return running.returncode, out, err


def alive(ways: Path) -> set[str]:
    return {f.name for f in ways.iterdir() if (n := f.read_text().strip()) and psutil.pid_exists(int(n))}


EVERY = {"postgres", "nats", "prometheus"}


def test_held_until_it_is_interrupted(env: dict[str, str], ways: Path, tmp_path: Path) -> None:
    with started(env, tmp_path) as running:
        until(lambda: alive(ways) == EVERY, "the three ways", 120)
        assert running.stdout is not None
        lines = [running.stdout.readline().strip() for _ in range(4)]
        running.send_signal(signal.SIGINT)
        code, _, err = ended(running)
    assert code == 130
    assert err.splitlines()[-1] == "runbook: interrupted"
    assert alive(ways) == set()
    assert lines == [
        "export RUNBOOK_DATABASE_URL=postgresql://USER:PASSWORD@127.0.0.1:5432/miniserversystem",
        "export RUNBOOK_NATS_URL=nats://USER:PASSWORD@127.0.0.1:4222",
        "export RUNBOOK_NATS_MONITOR_URL=http://127.0.0.1:8222",
        "export RUNBOOK_PROMETHEUS_URL=http://127.0.0.1:9090",
    ]


def test_one_that_ends_takes_the_others_with_it(env: dict[str, str], ways: Path, tmp_path: Path) -> None:
    (ways / "no-prometheus").write_text("")
    with started(env, tmp_path) as running:
        assert running.stderr is not None
        assert 'services "prometheus" not found' in running.stderr.readline()  # nobody needs it
        assert "until Ctrl-C" in running.stderr.readline()
        os.kill(int((ways / "nats").read_text()), signal.SIGKILL)
        code, _, err = ended(running)
    assert (code, alive(ways)) == (69, set())
    assert err.startswith("runbook: the forward to deploy/nats has ended")
    assert len(err.splitlines()) == 1


def test_one_that_nobody_needs_may_end_alone(env: dict[str, str], ways: Path, tmp_path: Path) -> None:
    with started(env, tmp_path) as running:
        until(lambda: alive(ways) == EVERY, "the three ways", 120)
        assert running.stderr is not None and "until Ctrl-C" in running.stderr.readline()
        os.kill(int((ways / "prometheus").read_text()), signal.SIGKILL)
        until(lambda: alive(ways) == EVERY - {"prometheus"}, "its end", 60)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(1.0)  # it looks three times a second
        running.send_signal(signal.SIGINT)
        code, _, err = ended(running)
    assert (code, alive(ways)) == (130, set())
    assert err.splitlines()[-1] == "runbook: interrupted"


def test_what_a_target_has_is_opened_where_its_addresses_say(env: dict[str, str], ways: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (tmp_path / "runbook.toml").write_text(
        f"""
        [targets.here]
        database_url = "postgresql://runbook@db.example:5432/d"
        nats_url = "nats://127.0.0.1:{port}"
        [targets.here.workloads]
        namespace = "elsewhere"
        forwards = {{ database_url = "svc/postgres:5432", nats_url = "statefulset/broker:4222" }}
        """
    )
    with started(env, tmp_path, "here", "--lang", "ja") as running:
        until(lambda: alive(ways) == {"broker"}, "the one way", 120)
        running.send_signal(signal.SIGTERM)
        code, out, err = ended(running)
    assert (code, out) == (143, "")  # the target has all that it needs
    assert "database_url" in err
    assert "ため、転送しません" in err


@pytest.mark.slow
def test_a_way_that_is_needed_and_cannot_be_opened(env: dict[str, str], ways: Path, tmp_path: Path) -> None:
    (ways / "no-postgres").write_text("")
    done = command.runbook("connect", env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.splitlines() == [
        "runbook: kubectl cannot forward svc/postgres in namespace miniserversystem: "
        'Error from server (NotFound): services "postgres" not found'
    ]
    assert alive(ways) == set()


def test_without_kubectl(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "kubectl").unlink()
    done = command.runbook("connect", env=env | {"PATH": str(tmp_path / "bin")}, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (69, 1)
    assert done.stderr.startswith("runbook: kubectl cannot be started")


@pytest.mark.parametrize(("refuse", "told"), [(403, "create on pods/portforward"), (0, "cannot forward")])
def test_the_real_kubectl_says_what_it_may_not(
    kubectl: None, env: dict[str, str], tmp_path: Path, refuse: int, told: str
) -> None:
    """Against the double of the API server, which forwards nothing."""
    (tmp_path / "bin" / "kubectl").unlink()
    (tmp_path / "runbook.toml").write_text(
        """
        [targets.here]
        nats_url = "nats://127.0.0.1:4222"
        workloads.forwards = { nats_url = "deploy/nats:4222" }
        """
    )
    with Cluster(refuse=refuse) as api:
        api.add("nats")
        api.write_config(tmp_path / "kubeconfig")
        own = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
        done = command.runbook("connect", "here", env=env | own, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (69, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
