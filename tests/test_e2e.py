"""Outages with an answer key, by the command: fault on -> triage -> heal -> recovered."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from command import runbook as command
from drills import OUTAGES, runbook, shown
from schemas import valid, valid_dossier

from runbook_lib.packs.entitlement.checks import incident
from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox
from runbook_lib.store import Archive
from runbook_lib.view import record

pytestmark = pytest.mark.e2e

#: How long a fault is on before the alert fires.
HURT_S = 18


@pytest.mark.parametrize("name", OUTAGES)
def test_fault(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    fault = sandbox.fault(name)
    try:
        time.sleep(HURT_S)
        said = runbook(sandbox, tmp_path, "triage", target="sandbox")
    finally:
        sandbox.heal()
    assert said["status"] == "CRITICAL", shown(said)
    assert said["verdict"]["stuck_at"] == fault.stuck_at, shown(said)
    assert said["verdict"]["confidence"] in ("high", "medium"), shown(said)
    modes = [m["id"] for m in said["verdict"]["failure_modes"]]
    assert fault.failure_mode in modes[:2], (modes, shown(said))
    assert len(said["runs"]) > 1, "triage followed no section"
    assert not {r["section"] for r in said["runs"]} & {*said["verdict"]["next_sections"]}, "what was run is not next"
    index = (tmp_path / "E2E" / "index.html").read_text(encoding="utf-8")
    assert str(fault.failure_mode) in index
    deadline = time.monotonic() + 75
    while True:
        recovered = runbook(sandbox, tmp_path, "run", "6", "-p", "window_minutes=15")
        if recovered["status"] == "OK" or time.monotonic() > deadline:
            break
        time.sleep(3)
    assert recovered["status"] == "OK", shown(recovered)


CLOSED = {"RUNBOOK_NATS_URL": "nats://127.0.0.1:9", "RUNBOOK_NATS_MONITOR_URL": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    "changed",
    [CLOSED, CLOSED | {"RUNBOOK_DATABASE_URL": "postgresql://runbook@127.0.0.1:9/d"}],
    ids=["the broker", "the database too"],
)
def test_what_cannot_be_reached_from_here_is_not_blamed(
    sandbox: Sandbox, tmp_path: Path, changed: dict[str, str]
) -> None:
    """A forgotten port-forward, while everything flows."""
    said = runbook(sandbox, tmp_path, "triage", env=changed)
    place = next(f for f in said["runs"][0]["findings"] if f["step"] == "3.2")
    assert (place["status"], place["reason"]) == ("UNKNOWN", "unreachable"), shown(said)
    assert said["verdict"]["stuck_at"] is None
    assert said["verdict"]["proposals"] == []
    assert "2" in [r["section"] for r in said["runs"]]
    assert {"source": "jetstream", "reason": "unreachable"} in said["verdict"]["unseen"]
    assert "restart" not in (tmp_path / "E2E" / "index.html").read_text(encoding="utf-8").lower()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox that nothing has happened to yet."""
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.up(hours=1)
    yield sandbox
    sandbox.down()


def test_the_demo_s_incident_is_told_the_same_by_every_section(fresh: Sandbox, tmp_path: Path) -> None:
    """Short enough for a minute's bucket to hide: 3.1 and 7.1 agree, and the onset is when it was broken."""
    sandbox, tmp_path = fresh, tmp_path / "out"
    sandbox.fault("worker_stopped")
    broken = pd.Timestamp(str(sandbox.state.fault_at))
    try:
        time.sleep(12)
        alert = pd.Timestamp.now("UTC")
        told = ("-p", "detected_by=alert", "-p", f"detected_at={alert.isoformat()}")
        runbook(sandbox, tmp_path, "triage", *told)
    finally:
        sandbox.heal()
    recovered = runbook(sandbox, tmp_path, "run", "6", "--wait", "2m", "-p", "window_minutes=15")
    assert recovered["status"] == "OK", shown(recovered)
    env = {**os.environ, **sandbox.state.env}
    done = command("postmortem", "E2E", "--json", "--output", str(tmp_path), env=env)
    said = valid(json.loads(done.stdout), "run")
    found = {f["step"]: f for r in said["runs"] for f in r["findings"]}

    archive = Archive(str(tmp_path), "E2E")
    name = next(e["name"] for e in archive.manifest() if e.get("section") == "3")
    seen = record.frame_from_json(incident.said(archive, name)["findings"]["3.1"]["frames"]["slis"])
    missed = {str(r["slo"]) for r in seen.to_dict("records") if r["met"] is False}
    assert "NOTI-C" in missed
    values = found["7.1"]["values"]
    assert missed <= {slo for slo in seen["slo"] if (values.get(f"{slo}.breach") or {"value": 0})["value"]}, shown(said)
    assert abs((pd.Timestamp(values["onset"]["value"]) - broken).total_seconds()) < 2, (broken, values["onset"])
    assert abs(found["7.3"]["values"]["ttd"]["value"] - (alert - broken).total_seconds()) < 2
    onset = incident.said(archive, name)["findings"]["3.1"]["values"]["impact.onset"]["value"]
    assert abs((pd.Timestamp(onset) - broken).total_seconds()) < 2, (broken, onset)


def test_the_dossier_verifies(sandbox: Sandbox, tmp_path: Path) -> None:
    told = runbook(sandbox, tmp_path, "run", "4.1", "4.3")["seal"]
    done = command("verify", "E2E", "--output", str(tmp_path), "--witness", told, env=os.environ)
    assert done.returncode == 0, done.stderr
    valid_dossier(tmp_path / "E2E")
