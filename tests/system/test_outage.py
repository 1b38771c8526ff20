"""Outages that are over, on real servers: what they leave behind is told as such, and not as a fault of now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from tests.kit import sandboxes
from tests.kit.drills import runbook, shown

pytestmark = pytest.mark.slow

#: So that an outage of half a minute leaves dead letters.
FEW_TRIES = {"NOTIFICATION_DELIVERY_MAX_ATTEMPTS": "3"}


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox that nothing has happened to yet."""
    with sandboxes.running(tmp_path / "sandbox", hours=1, settings=FEW_TRIES) as sandbox:
        yield sandbox


def over(said: dict[str, Any]) -> str:
    """What shows it, once the verdict says that it is over: WARNING, and no place."""
    verdict = said["verdict"]
    assert verdict["ended"], shown(said)
    assert (said["status"], verdict["stuck_at"], verdict["undecided"]) == ("WARNING", None, []), shown(said)
    assert "6" in [r["section"] for r in said["runs"]]
    shows: str = verdict["ended"]["by"]["en"]
    return shows


def test_a_receiver_that_was_down_leaves_dead_letters_to_send_again(fresh: Sandbox, tmp_path: Path) -> None:
    fresh.stop("receiver")
    time.sleep(25)
    fresh.start("receiver")
    just = runbook(fresh, tmp_path / "just", "run", "3")
    assert (just["status"], just["verdict"]["ended"]) == ("CRITICAL", None), "it may only pause"
    time.sleep(45)
    said = runbook(fresh, tmp_path / "over", "triage")
    assert over(said).startswith("sends succeed again")
    assert "4.4" in [r["section"] for r in said["runs"]]
    assert [p["name"] for p in said["verdict"]["proposals"]] == ["redrive_delivery"]


def test_a_broker_that_was_down_leaves_late_events(fresh: Sandbox, tmp_path: Path) -> None:
    well = runbook(fresh, tmp_path / "well", "run", "3", "4.1", "4.3")
    assert (well["status"], well["verdict"]["confidence"]) == ("OK", "high"), shown(well)
    fresh.stop("nats")
    time.sleep(45)
    fresh.start("nats")
    time.sleep(45)
    said = runbook(fresh, tmp_path / "over", "triage")
    assert over(said).startswith("events are published in time again")
    after = said["verdict"]["ended"]["after"]
    assert after and after["en"].startswith("NATS server"), after
    assert said["verdict"]["proposals"] == []


def test_a_worker_that_has_just_hung_is_not_surely_well(fresh: Sandbox, tmp_path: Path) -> None:
    faults.inject(fresh, "worker_hung")
    verdict = runbook(fresh, tmp_path / "at_once", "run", "4.3")["verdict"]
    assert (verdict["status"], verdict["confidence"]) != ("OK", "high"), "the recording says what it is, at best"
    time.sleep((verdict["look_again_s"] or 0) + 5)
    said = runbook(fresh, tmp_path / "later", "run", "4.3")
    assert said["verdict"]["stuck_at"] == "delivery_worker", shown(said)


def test_a_fault_behind_one_that_is_over_is_the_one_that_is_told(fresh: Sandbox, tmp_path: Path) -> None:
    fresh.stop("nats")
    time.sleep(30)
    fresh.start("nats")
    time.sleep(40)
    faults.inject(fresh, "worker_stopped")
    at_once = runbook(fresh, tmp_path / "at_once", "run", "3")
    assert at_once["verdict"]["ended"] is None, shown(at_once)
    time.sleep(10)
    said = runbook(fresh, tmp_path / "later", "run", "3")
    assert (said["verdict"]["stuck_at"], said["verdict"]["ended"]) == ("delivery_worker", None), shown(said)
