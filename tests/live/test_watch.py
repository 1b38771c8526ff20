"""`runbook watch` and `runbook archive baseline` on a system on which a little flows."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from runbook_lib.diagnosis import snapshots
from runbook_lib.dossier import baseline
from runbook_lib.gameday.sandbox.servers import Servers
from runbook_lib.model.finding import (
    Status,
)
from tests.kit.command import runbook, start
from tests.kit.steps import UNPROCESSED, events, traffic

STREAM = ("jetstream", "stream s", "max_age", "90 s")


@pytest.fixture
def target(servers: Servers, db: psycopg.Connection, broker: str, default_target: None) -> dict[str, str]:
    """A system on which a little flows, by its environment."""
    traffic(db)
    return {**os.environ, **servers.env}


@pytest.mark.slow
def test_only_a_healthy_configuration_is_stored(target: dict[str, str], db: psycopg.Connection, tmp_path: Path) -> None:
    events(db, 400, 100, outbox="PENDING", **UNPROCESSED)
    done = runbook("baseline", "--output", str(tmp_path), env=target)
    assert (done.returncode, done.stderr) == (Status.CRITICAL.value, "")
    assert "is CRITICAL: its configuration is not stored" in done.stdout
    assert baseline.configuration(str(tmp_path), "default") is None


def test_the_configuration_that_0_5_0_stored_is_read(tmp_path: Path) -> None:
    rows = pd.DataFrame([STREAM], columns=snapshots.SETTING_COLUMNS)
    baseline.keep(str(tmp_path), "east", rows, pd.Timestamp("2026-01-31T03:00Z"))
    kept = tmp_path / "baseline-east" / baseline.HEALTHY_RUNS
    (line,) = (json.loads(line) for line in kept.read_text().splitlines())
    numbers = {"at": "2026-01-31T04:00:00+00:00", "section": "4.1", "numbers": [["4.1.1", "n", 7]]}
    kept.write_text("".join(json.dumps(e) + "\n" for e in (numbers | line | {"section": "3"}, numbers)))
    found = baseline.configuration(str(tmp_path), "east")
    assert found is not None and found.drop(columns="at").equals(rows) and {*found["at"]} == {pd.Timestamp(line["at"])}


@pytest.mark.slow
def test_watch_shows_look_after_look_until_it_is_interrupted(target: dict[str, str], db: psycopg.Connection) -> None:
    events(db, 400, 100, outbox="PENDING", **UNPROCESSED)
    time.sleep(6)  # what the fixture has published is as new as this test, and whoever published within 5 s is at work
    process = start("watch", "--every", "2", env=target)
    assert process.stdout is not None
    shown = ""
    while "compared with" not in shown:  # the second sample says what it is compared with
        line = process.stdout.readline()
        assert line, process.communicate()
        shown += line
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (Status.CRITICAL.value, "")
    assert shown.count("Stuck at outbox relay") == 2
