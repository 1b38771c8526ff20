"""A healthy sandbox is OK in every section; the recordings hold further moments in which nothing is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from drills import runbook, shown

from runbook_lib.analysis.diagnosis import BROKEN
from runbook_lib.gameday.sandbox.sandbox import Sandbox

pytestmark = pytest.mark.slow


def test_healthy(sandbox: Sandbox, tmp_path: Path) -> None:
    said = runbook(sandbox, tmp_path, "run", "3", "4.1", "4.2", "4.3", "4.4", "5.3", "6", "2")
    statuses = {f["status"] for r in said["runs"] for f in r["findings"] if f["reason"] != "not_configured"}
    assert statuses == {"OK"}, shown(said)
    assert (said["verdict"]["stuck_at"], said["status"]) == (None, "OK")
    assert [m for m in said["verdict"]["failure_modes"] if m["score"] >= BROKEN] == []


def test_the_sections_that_can_act_have_nothing_to_say(sandbox: Sandbox, tmp_path: Path) -> None:
    said = runbook(sandbox, tmp_path, "run", "5.1", "5.2", target="sandbox")
    assert {f["status"] for r in said["runs"] for f in r["findings"]} == {"OK"}, shown(said)
