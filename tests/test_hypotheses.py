"""Incidents that look alike and call for different remedies: what the first proposal does is what counts."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import runbook as command
from drills import runbook

from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox

pytestmark = pytest.mark.e2e

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
    sandbox.wait_for_flow(60)


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
    first, *others = (p["command"] for p in verdict["proposals"])
    assert f"{variable}=true" in first
    assert not any("restart" in command for command in others)
    subprocess.run(["sh", "-c", first], check=True, timeout=60, capture_output=True)
    settings.wait_for_flow(60)


@pytest.mark.parametrize("name", ["db_read_only", "server_read_only", "password_changed"])
def test_what_the_database_refuses_is_not_answered_with_a_restart(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    """Where the catalog does not show it, the services themselves do: their loops run, and each run fails."""
    fault = sandbox.fault(name)
    try:
        time.sleep(25)
        verdict = triage(sandbox, tmp_path)
    finally:
        sandbox.heal(60)
    assert verdict["stuck_at"] == "database", verdict
    assert fault.failure_mode in [m["id"] for m in verdict["failure_modes"][:2]], verdict["failure_modes"]
    assert not any("restart" in p["command"] for p in verdict["proposals"]), verdict["proposals"]


@pytest.mark.parametrize("name", ["notification_frozen", "entitlement_frozen"])
def test_a_frozen_process_is_restarted_before_anything_waits_for_long(
    sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    fault = sandbox.fault(name)
    try:
        time.sleep(8)
        verdict = triage(sandbox, tmp_path)
    finally:
        sandbox.heal(60)
    assert verdict["stuck_at"] in (fault.stuck_at, *fault.also_right), verdict
    assert verdict["confidence"] == "high", verdict
    assert f"restart {name.partition('_')[0]}" in verdict["proposals"][0]["command"], verdict["proposals"]


def test_beside_a_second_worker_nothing_is_restarted(sandbox: Sandbox, tmp_path: Path) -> None:
    rate = sandbox.state.rate
    sandbox.configure({"SANDBOX_RATE": "20"})  # so that both always hold rows
    sandbox.fault("second_worker")
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
        sandbox.configure({"SANDBOX_RATE": f"{rate:g}"})
        sandbox.heal(60)
    assert "FM-NOTI-02" in [m["id"] for m in verdict["failure_modes"]], verdict
    assert not any("restart" in p["command"] for p in verdict["proposals"]), verdict["proposals"]
    assert [p["ok"] for p in act["preconditions"] if "claims rows" in p["text"]["en"]] == [False]


@pytest.mark.parametrize("name", ["nats_disabled", "wrong_nats_address"])
def test_a_service_that_its_own_settings_keep_from_the_broker_is_not_restarted(
    sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    fault = sandbox.fault(name)
    try:
        time.sleep(15)
        verdict = triage(sandbox, tmp_path)
    finally:
        sandbox.heal(60)
    assert verdict["stuck_at"] == fault.stuck_at, verdict
    assert verdict["failure_modes"][0]["id"] in (fault.failure_mode, *fault.also_right), verdict
    assert not any("restart" in p["command"] for p in verdict["proposals"]), verdict["proposals"]
