"""Whole incidents by the command, beside those of single faults (test_faults.py)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest

from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import read_logs
from runbook_lib.store.run import read_run
from tests.kit import sandboxes
from tests.kit.command import runbook as command
from tests.kit.drills import runbook, shown
from tests.kit.schemas import valid, valid_dossier

pytestmark = pytest.mark.slow

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
    assert {p["name"] for p in said["verdict"]["proposals"]} <= {"logs"}, "reading whether it is away for everybody"
    assert "2" in [r["section"] for r in said["runs"]]
    assert {"source": "jetstream", "reason": "unreachable"} in said["verdict"]["unseen"]
    assert "restart" not in (tmp_path / "E2E" / "index.html").read_text(encoding="utf-8").lower()


def test_the_demo_s_incident_is_told_the_same_by_every_section(tmp_path: Path) -> None:
    """Short enough for a minute's bucket to hide: 3.1 and 7.1 agree, and the onset is when it was broken.

    On a busy machine rows wait for a few seconds before it breaks.
    """
    with sandboxes.running(tmp_path / "sandbox", hours=1) as sandbox:
        told_the_same(sandbox, tmp_path / "out")


def told_the_same(sandbox: Sandbox, tmp_path: Path) -> None:
    broken = pd.Timestamp.now("UTC")
    faults.inject(sandbox, "worker_stopped")
    try:
        time.sleep(12)
        alert = pd.Timestamp.now("UTC")
        told = ("-p", "detected_by=alert", "-p", f"detected_at={alert.isoformat()}")
        runbook(sandbox, tmp_path, "triage", *told)
    finally:
        faults.heal(sandbox)
    recovered = runbook(sandbox, tmp_path, "run", "6", "--wait", "2m", "-p", "window_minutes=15")
    assert recovered["status"] == "OK", shown(recovered)
    env = {**os.environ, **sandbox.state.env}
    done = command("postmortem", "E2E", "--json", "--output", str(tmp_path), env=env)
    said = valid(json.loads(done.stdout), "run")
    found = {f["step"]: f for r in said["runs"] for f in r["findings"]}

    archive = Archive(str(tmp_path), "E2E")
    first = read_run(archive, next(run for run in read_logs(archive).runs if run.section == "3"))
    seen = first.by_step["3.1"].frames["slis"]
    missed = {str(r["slo"]) for r in seen.to_dict("records") if r["met"] is False}
    assert "NOTI-C" in missed
    values = found["7.1"]["values"]
    assert missed <= {slo for slo in seen["slo"] if (values.get(f"{slo}.breach") or {"value": 0})["value"]}, shown(said)
    assert abs((pd.Timestamp(values["onset"]["value"]) - broken).total_seconds()) < 5, (broken, values["onset"])
    assert abs(found["7.3"]["values"]["ttd"]["value"] - (alert - broken).total_seconds()) < 5
    onset = first.by_step["3.1"].value("impact.onset")
    assert abs((pd.Timestamp(str(onset)) - broken).total_seconds()) < 5, (broken, onset)


@pytest.mark.parametrize("attempt", range(5))
def test_the_demo_decides_restarts_recovers_and_names_the_origin(tmp_path: Path, attempt: int) -> None:
    """The command itself checks the recovery."""
    where = ("--dir", str(tmp_path / "sandbox"), "--output", str(tmp_path / "out"))
    done = command("sandbox", "demo", *where, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "Stuck at delivery worker  (confidence high)" in done.stdout, attempt
    assert "The verdicts point to FM-NOTI-06" in done.stdout
    (incident,) = (tmp_path / "out").glob("demo-*")
    archive = Archive(str(incident.parent), incident.name)
    assert any(action.result == "done" and action.verified for action in read_logs(archive).actions)
    assert b"\norigin: FM-NOTI-06\n" in archive.read("postmortem.md")


def test_the_dossier_verifies(sandbox: Sandbox, tmp_path: Path) -> None:
    told = runbook(sandbox, tmp_path, "run", "4.1", "4.3")["seal"]
    done = command("verify", "E2E", "--output", str(tmp_path), "--checkpoint", told, env=os.environ)
    assert done.returncode == 0, done.stderr
    valid_dossier(tmp_path / "E2E")
