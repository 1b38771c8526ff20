"""Outages with an answer key, by the command: fault on -> triage -> heal -> recovered."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from command import runbook as command
from drills import OUTAGES, runbook, shown

from runbook_lib.sandbox.sandbox import Sandbox

pytestmark = pytest.mark.e2e

#: How long a fault is on before the alert fires.
HURT_S = 18


@pytest.mark.parametrize("name", OUTAGES)
def test_fault(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    fault = sandbox.fault(name)
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
    done = command("verify", "E2E", "--output", str(tmp_path), env=os.environ)
    assert done.returncode == 0, done.stderr
