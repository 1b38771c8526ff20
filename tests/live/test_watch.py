"""`runbook watch` and `runbook archive baseline` on a system on which a little flows."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psycopg
import pytest

from runbook_lib.dossier import baseline
from runbook_lib.model.finding import (
    Status,
)
from tests.kit.command import runbook, start
from tests.kit.servers import Servers
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
