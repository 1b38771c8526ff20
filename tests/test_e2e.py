"""Drills with an answer key, by the command: fault on -> triage -> heal -> recovered; and a healthy system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.sandbox import faults
from runbook_lib.sandbox.sandbox import Sandbox

pytestmark = pytest.mark.e2e

#: How long a fault is on before the alert fires.
HURT_S = 18


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("sandbox"))
    sandbox.up(hours=3)
    yield sandbox
    sandbox.down()


def runbook(sandbox: Sandbox, output: Path, *arguments: str) -> dict[str, Any]:
    """Run the command as a scheduler would, with addresses in the environment alone."""
    command = [sys.executable, "-m", "runbook_lib", *arguments, "--incident", "E2E", "--json", "--output", str(output)]
    done = subprocess.run(
        command, env={**os.environ, **sandbox.state.env}, capture_output=True, text=True, timeout=240, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == said["exit_code"]
    kept = b"".join(p.read_bytes() for p in output.rglob("*") if p.is_file()).decode(errors="replace")
    for secret in sandbox.state.addresses.passwords.values():
        assert secret not in done.stdout + done.stderr + kept
    return said


def shown(said: dict[str, Any]) -> str:
    return "\n".join(
        f"{f['step']} {f['status']} {f['reason'] or ''} {f['headline']}" for r in said["runs"] for f in r["findings"]
    )


@pytest.mark.parametrize("time", range(1, 11))
def test_healthy_ten_times_of_ten(sandbox: Sandbox, tmp_path: Path, time: int) -> None:
    said = runbook(sandbox, tmp_path, "run", "3", "4.1", "4.3", "5.3", "6", "2")
    statuses = {f["status"] for r in said["runs"] for f in r["findings"] if f["reason"] != "not_configured"}
    assert statuses == {"OK"}, shown(said)
    assert (said["verdict"]["stuck_at"], said["status"]) == (None, "OK")


@pytest.mark.parametrize("fault", faults.CATALOGUE, ids=lambda f: f.name)
def test_fault(sandbox: Sandbox, tmp_path: Path, fault: faults.Fault) -> None:
    sandbox.fault(fault.name)
    try:
        time.sleep(HURT_S)
        said = runbook(sandbox, tmp_path, "triage")
    finally:
        sandbox.heal()
    assert said["status"] == "CRITICAL", shown(said)
    assert said["verdict"]["stuck_at"] == fault.stuck_at, shown(said)
    assert said["verdict"]["confidence"] in ("high", "medium"), shown(said)
    modes = [m["id"] for m in said["verdict"]["failure_modes"]]
    assert fault.failure_mode in modes[:2], (modes, shown(said))
    assert len(said["runs"]) > 1, "triage followed no section"
    index = (tmp_path / "E2E" / "index.html").read_text(encoding="utf-8")
    assert fault.failure_mode in index
    deadline = time.monotonic() + 75
    while True:
        recovered = runbook(sandbox, tmp_path, "run", "6", "-p", "window_minutes=15")
        if recovered["status"] == "OK" or time.monotonic() > deadline:
            break
        time.sleep(3)
    assert recovered["status"] == "OK", shown(recovered)


def test_the_dossier_verifies(sandbox: Sandbox, tmp_path: Path) -> None:
    runbook(sandbox, tmp_path, "run", "4.1", "4.3")
    command = [sys.executable, "-m", "runbook_lib", "verify", "E2E", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
