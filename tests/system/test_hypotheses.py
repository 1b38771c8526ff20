"""Incidents that look alike and call for different remedies: what the first proposal does is what counts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from tests.kit.command import runbook as command
from tests.kit.drills import runbook

pytestmark = pytest.mark.slow

OFF = {
    "delivery": ("NOTIFICATION_DELIVERY_ENABLED", "notification", "FM-NOTI-07", "delivery_worker"),
    "relay": ("ENTITLEMENT_OUTBOX_ENABLED", "entitlement", "FM-OB-04", "relay"),
}


@pytest.fixture
def settings(sandbox: Sandbox) -> Iterator[Sandbox]:
    """The pods' variables, as they were before when the test is over."""
    sandbox.configure({variable: "true" for variable, *_ in OFF.values()})
    yield sandbox
    sandbox.configure({variable: "true" for variable, *_ in OFF.values()})
    for app in ("entitlement", "notification"):
        sandbox.restart(app)
    sandbox.wait_for_flow(90)


def restarts(proposal: dict[str, Any]) -> bool:
    """Whether a proposal restarts something: by its name, or by a word of its command that is no path."""
    return "restart" in proposal["name"] or "restart" in shlex.split(proposal["command"])


def triage(sandbox: Sandbox, output: Path) -> dict[str, Any]:
    verdict: dict[str, Any] = runbook(sandbox, output, "triage", target="sandbox")["verdict"]
    return verdict


@pytest.mark.parametrize("side", OFF)
def test_a_loop_that_is_switched_off_is_switched_on_and_not_restarted(
    settings: Sandbox, tmp_path: Path, side: str
) -> None:
    variable, app, mode, hop = OFF[side]
    settings.configure({variable: "false"})
    settings.restart(app)
    time.sleep(20)
    verdict = triage(settings, tmp_path)
    assert (verdict["stuck_at"], verdict["failure_modes"][0]["id"]) == (hop, mode)
    first, *others = verdict["proposals"]
    assert f"{variable}=true" in first["command"]
    assert not any(map(restarts, others))
    subprocess.run(["sh", "-c", first["command"]], check=True, timeout=60, capture_output=True)
    settings.wait_for_flow(90)


def test_beside_a_second_worker_nothing_is_restarted(sandbox: Sandbox, tmp_path: Path) -> None:
    rate = sandbox.settings["SANDBOX_RATE"]
    sandbox.configure({"SANDBOX_RATE": "20"})  # so that both always hold rows
    faults.inject(sandbox, "second_worker")
    try:
        time.sleep(12)
        for _ in range(3):  # until both have had their turn
            verdict = triage(sandbox, tmp_path)
            if verdict["failure_modes"]:
                break
        environment = {**os.environ, "RUNBOOK_SANDBOX_DIR": str(sandbox.directory)}
        where = ("--target", "sandbox", "--incident", "E2E", "--output", str(tmp_path), "--json")
        act = json.loads(command("act", "restart", "notification", *where, env=environment).stdout)
    finally:
        sandbox.configure({"SANDBOX_RATE": rate})
        faults.heal(sandbox, 60)
    assert "FM-NOTI-02" in [m["id"] for m in verdict["failure_modes"]], verdict
    assert not any(map(restarts, verdict["proposals"])), verdict["proposals"]
    assert [p["ok"] for p in act["preconditions"] if "claims rows" in p["text"]["en"]] == [False]


def test_a_row_that_the_database_rejects_is_decided_by_the_log(sandbox: Sandbox, tmp_path: Path) -> None:
    table = "ALTER TABLE notification.notifications"
    with psycopg.connect(sandbox.state.addresses.admin_url, autocommit=True) as db:
        db.execute(f"{table} ADD CONSTRAINT nobody CHECK (user_id = 'x') NOT VALID")
        try:
            time.sleep(45)
            verdict = triage(sandbox, tmp_path)
        finally:
            db.execute(f"{table} DROP CONSTRAINT nobody")
            faults.heal(sandbox, 60)
    assert (verdict["stuck_at"], verdict["failure_modes"][0]["id"]) == ("database", "FM-CFG-01"), verdict
    assert verdict["confidence"] != "low" and verdict["between"] == []
    (log,) = [a for a in verdict["asked"] if a["step"] == "4.5.2"]
    assert {"database", "FM-CFG-01"} <= {*log["supports"]}
    assert "logs" not in [p["name"] for p in verdict["proposals"]], "the run has read it"
    assert not any(map(restarts, verdict["proposals"]))
