"""Drills on real servers: a few drills from end to end, each with its twin, short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox.faults import CATALOGUE
from tests.drills import knobs, play
from tests.drills.__main__ import drills
from tests.drills.play import DrillClock, drill
from tests.drills.report import judged
from tests.drills.scenario import Scenario, draw
from tests.kit import ROOT, network, sandboxes
from tests.kit.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KINDS = [fault.name for fault in CATALOGUE]


def left_behind(folder: Path) -> list[str]:
    """What drills that are over have left: files, and processes whose sandbox was there."""
    owners = [
        p.info["environ"].get("RUNBOOK_SANDBOX_OWNER", "")
        for p in psutil.process_iter(["environ"])
        if p.info["environ"]
    ]
    return [*map(str, folder.iterdir()), *(o for o in owners if o.startswith(str(folder)))]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where drills have their sandboxes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def first_seed(*faults: str, longest: float) -> int:
    return next(seed for seed in range(10_000) if draw(seed, KINDS, longest).faults == faults)


#: Drills that stand for many kinds; `python -m tests.drills play --seeds N --longest 12 --after 12` plays one by hand.
SHORT_S = 12.0
#: Two sandboxes and a minute of both cores; `make drills` plays many.
SEED = 26


def test_what_is_said_with_high_confidence_is_not_wrong_and_does_not_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "LATER_S", 2 * SHORT_S)
    line = drill(draw(SEED, KINDS, SHORT_S), catalog.load(), DrillClock(), after_s=SHORT_S)
    assert "error" not in line and line["verdict"], line
    found = judged(json.loads(json.dumps(line)))
    assert found.counts, line
    assert found.confidence != "high" or (found.judged.answer != "wrong" and found.help != "harms"), line


def test_a_proposal_is_carried_out_and_helps_beside_a_twin(temporary: Path) -> None:
    line = drill(Scenario(7, ("worker_stopped",), 1.0, "steady", "", 14.0), catalog.load(), DrillClock(), after_s=15)
    found = judged(json.loads(json.dumps(line)))
    assert found.judged.answer == "right" and found.help == "helps", line
    assert {"sent", "waiting"} <= {*found.effect}, line
    assert line["proposal"]["exit"] == 0 and not line["problems"], line
    assert left_behind(temporary) == []


def test_the_first_proposal_of_a_person_s_database_is_given_to_psql(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock's holder is ended by the superuser's psql; without a fault's code, and without the runbook's role.

    As if it had shown no difference: both sandboxes are looked at once more.
    """
    monkeypatch.setattr(play, "helped", lambda acted, alone: "nothing")
    monkeypatch.setattr(play, "LATER_S", 25.0)
    line = drill(Scenario(8, ("table_lock",), 1.0, "spike", "", 14.0), catalog.load(), DrillClock(), after_s=15)
    found = judged(line)
    assert found.judged.place == "right", line
    assert line["before"]["created"] > 15, "the spike is there before the onset"
    assert line["alone"]["sent"] == 0, line
    assert line["proposal"]["exit"] == 0, line
    assert line["after_s"] == 25 and judged(line).help == "helps", line


@pytest.mark.parametrize("kind", knobs.KINDS)
def test_a_knob_of_each_kind_is_turned(tmp_path: Path, kind: str) -> None:
    seed = next(seed for seed in range(999) if knobs.draw_kinds(seed) == [kind])
    turned: list[knobs.Knob] = []
    with sandboxes.running(tmp_path / "sandbox", rate=1, hours=0) as sandbox, network.before_services(sandbox):
        knobs.turn(seed, turned, sandbox)
    assert [knob.kind for knob in turned] == [kind]


def test_a_turned_knob_is_judged() -> None:
    """A play as `make knobs` does it."""
    line = knobs.drill(replace(knobs.scenario(12), look_after_s=SHORT_S), DrillClock(), after_s=SHORT_S)
    assert "error" not in line and line["verdict"], line
    assert line["knobs"][0]["kind"] == "privilege" and judged(json.loads(json.dumps(line))).effect, line


@pytest.mark.parametrize("command", ["play", "knobs"])
def test_sigterm_ends_the_plays_and_leaves_nothing(tmp_path: Path, command: str) -> None:
    words = [sys.executable, "-m", "tests.drills", command, "--seeds", "1", "--results", str(tmp_path / "r.jsonl")]
    folder = tmp_path / "tmp"
    folder.mkdir()
    with subprocess.Popen(words, env={**os.environ, "TMPDIR": str(folder)}, cwd=ROOT) as played:
        until(lambda: len(left_behind(folder)) > 3)  # servers run; a start is not finished
        played.terminate()
        assert played.wait(60) == 128 + signal.SIGTERM
    assert left_behind(folder) == []


def test_the_command_plays_what_has_not_been_played(tmp_path: Path) -> None:
    results, seed = tmp_path / "r.jsonl", first_seed(longest=4)
    words = ["play", "--seeds", str(seed), "--results", str(results), "--longest", "4", "--after", "4"]
    first = CliRunner().invoke(drills, words, catch_exceptions=False)
    assert first.exit_code == 0 and f"\n{seed}: no fault" in first.output, first.output
    (line,) = [json.loads(text) for text in results.read_text().splitlines()]
    assert judged(line).judged.answer == "right" and line["alone"]["sent"] > 0, line
    again = CliRunner().invoke(drills, words, catch_exceptions=False)
    assert again.exit_code == 0 and "0 to play, 1 already played" in again.output
    assert len(results.read_text().splitlines()) == 1
