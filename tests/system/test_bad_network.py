"""A bad network before the runbook alone, while the system is well: UNKNOWN, and never a fault of the system."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runbook_lib.gameday.sandbox.sandbox import Sandbox
from tests.kit.drills import runbook, shown
from tests.kit.network import VARIABLES, disturbed

pytestmark = pytest.mark.slow

ALL = (*VARIABLES,)
POSTGRES, NATS, MONITOR = ("postgres",), ("nats",), ("nats_monitor",)
SERVICES = ("entitlement", "notification", "receiver")
SOURCES = {"postgres": "postgres", "nats": "jetstream", "nats_monitor": "nats_monitor"}


def play(sandbox: Sandbox, output: Path, rule: str, value: float, servers: tuple[str, ...], *command: str) -> str:
    """Run a command through a network that does this; return the status, which is no fault of the system's."""
    with disturbed(sandbox.state, rule, value, *servers) as addresses:
        said = runbook(sandbox, output, *command, env=addresses)
    verdict = said["verdict"]
    assert (verdict["stuck_at"], verdict["undecided"], said["status"] == "CRITICAL") == (None, [], False), shown(said)
    assert [r["problem"] for r in said["runs"] if r["problem"]] == [], "it ends before the deadline"
    unseen = {u["source"] for u in verdict["unseen"] if u["reason"] in ("timeout", "unreachable")}
    assert said["status"] != "OK" or unseen & {*SOURCES.values()} == set() or verdict["confidence"] != "high"
    return str(said["status"])


@pytest.mark.parametrize(
    ("servers", "rule", "value", "command"),
    [
        (POSTGRES, "drop", 0, ("triage",)),
        (POSTGRES, "drop", 8_000, ("triage",)),
        (POSTGRES, "drop", 2_000, ("run", "2")),
        (POSTGRES, "cut", 0, ("run", "3")),
        (POSTGRES, "cut", 3_000, ("run", "4.1")),
        (POSTGRES, "delay", 3, ("triage",)),
        (POSTGRES, "rate", 100, ("run", "4.1")),
        (NATS, "drop", 0, ("run", "2")),
        (NATS, "drop", 500, ("triage",)),
        (NATS, "cut", 300, ("run", "4.1")),
        (NATS, "delay", 3, ("run", "4.1")),
        (NATS, "rate", 100, ("run", "4.1")),
        (ALL, "refuse", 0, ("run", "4.1")),
        (ALL, "drop", 0, ("triage",)),
        (ALL, "cut", 1_000, ("run", "2", "4.1")),
        (ALL, "delay", 2, ("triage",)),
    ],
)
def test_what_only_the_runbook_does_not_reach_is_unknown(
    sandbox: Sandbox, tmp_path: Path, servers: tuple[str, ...], rule: str, value: float, command: tuple[str, ...]
) -> None:
    assert play(sandbox, tmp_path, rule, value, servers, *command) == "UNKNOWN"


@pytest.mark.parametrize("servers", [ALL, SERVICES, MONITOR])
@pytest.mark.parametrize(("rule", "value"), [("lose", 0.2), ("drop", 0), ("delay", 0.5)])
def test_a_lossy_or_slow_network_shows_no_fault(
    sandbox: Sandbox, tmp_path: Path, servers: tuple[str, ...], rule: str, value: float
) -> None:
    play(sandbox, tmp_path, rule, value, servers, "run", "3", "4.1")


@pytest.mark.parametrize("hangs", [True, False])
def test_a_name_server_that_does_not_know_a_host_or_never_answers(tmp_path: Path, hangs: bool) -> None:
    bind = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    own = ["unshare", "--mount", "sh", "-c", bind, str(tmp_path / "resolv")]
    (tmp_path / "resolv").write_text("nameserver 127.0.0.9\n")
    if subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us choose a name server")
    urls = {"DATABASE": "postgresql://u@db.test/x", "NATS": "nats://nats.test", "NATS_MONITOR": "http://nats.test:8222"}
    env = os.environ | {f"RUNBOOK_{name}_URL": url for name, url in urls.items()}
    command = [sys.executable, "-m", "runbook_lib", "run", "2", "4.1", "--json", "--output", str(tmp_path / "out")]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        if hangs:  # otherwise the port is closed
            silent.bind(("127.0.0.9", 53))
        done = subprocess.run([*own, *command], env=env, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    said = json.loads(done.stdout)
    assert (done.returncode, said["verdict"]["stuck_at"]) == (3, None)
    assert [r["problem"] for r in said["runs"]] == [None, None]
    assert {"postgres", "jetstream"} <= {u["source"] for u in said["verdict"]["unseen"]}
