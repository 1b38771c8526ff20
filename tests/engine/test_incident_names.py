"""Which incident and system a command means: by option, by variable, or the newest incident."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from runbook_lib import open_section
from runbook_lib.cli import common
from runbook_lib.model.usage import UsageError
from tests.kit import ROOT
from tests.kit.command import runbook

ENV = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "RUNBOOK_LANG": "en"}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """An output with two incidents, of which `a` is the newer, newer runs without one, and a folder that is none."""
    for name, at in (("b", 1e9), ("a", 2e9), ("adhoc", 3e9)):
        shutil.copytree(ROOT / "outputs" / "sample", tmp_path / name)
        os.utime(tmp_path / name / "log.jsonl", (at, at))
    (tmp_path / "zzz").mkdir()
    return tmp_path


def test_incidents_are_listed_with_their_last_verdict(two: Path) -> None:
    done = runbook("incidents", "--output", str(two), env=ENV)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["a", "adhoc", "b"]
    assert all("CRITICAL  delivery_worker" in line for line in done.stdout.splitlines())
    listed = json.loads(runbook("incidents", "--output", str(two), "--json", "--limit", "2", env=ENV).stdout)
    assert [i["incident"] for i in listed] == ["a", "adhoc"] and listed[0]["last"]


def test_latest_is_the_incident_with_the_newest_run(two: Path) -> None:
    assert runbook("dossier", "latest", "--output", str(two), env=ENV).stdout == f"{two}/a/index.html\n"
    none = runbook("dossier", "latest", "--output", str(two / "zzz"), env=ENV)
    assert (none.returncode, none.stdout) == (64, "") and "there is no incident" in none.stderr


def test_a_dossier_that_cannot_be_read_hides_no_other(two: Path) -> None:
    """Two newer ones: the log of one is broken, and of the other a link that leads nowhere."""
    for name in ("broken", "closed"):
        shutil.copytree(two / "b", two / name)
        (two / name / "log.jsonl").write_text("{")
        os.utime(two / name / "log.jsonl", (4e9, 4e9))
    (two / "closed" / "log.jsonl").unlink()
    (two / "closed" / "log.jsonl").symlink_to("log.jsonl")
    os.utime(two / "closed", (5e9, 5e9))
    (two / "loop").symlink_to("loop")
    (two / "runbook.toml").write_text('[targets.default]\ndatabase_url = "postgresql://x@y/z"\n')

    def run(*words: str) -> tuple[int, str, str]:
        done = runbook(*words, "--output", str(two), env=ENV, cwd=two)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    code, listed, unread = run("incidents", "--json")
    rows = {row["incident"]: row for row in json.loads(listed)}
    assert code == 3 and {n for n in rows if "unread" in rows[n]} == {"broken", "closed", "loop"}
    assert rows["a"]["last"] and unread.count("could not be read") == 3
    code, _, unread = run("note", "latest", "x")
    assert (code, "closed could not be read" in unread, "broken could not be read" in unread) == (0, True, True)
    assert run("report")[0] == 3
    code, _, unread = run("backtest", "--policy", str(ROOT / "docs"))
    assert code == 1 and "closed could not be read" in unread


RESERVED = ["baseline-x", "BASELINE-x", "LATEST", "Adhoc", "replay-x", "nul", "com1.log", "INC-1."]


@pytest.mark.parametrize("name", RESERVED)
def test_a_person_names_no_incident_as_the_product_names_its_own(
    name: str, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (two / "baseline-x").mkdir()
    (two / "baseline-x" / "usual.jsonl").write_text("{}\n")
    before = sorted(two.rglob("*"))
    acts = [["run", "2"], ["triage"], ["act", "canary"], ["event", "x"], ["lab"], ["triage", "--targets", "default"]]
    env = ENV | {"RUNBOOK_OUTPUT": str(two)}
    for words in [*([*act, "--incident", name] for act in acts), ["note", name, "x", "--new"], ["capsule", name]]:
        done = runbook(*words, env=env, cwd=two)
        assert done.returncode == 64 and "is reserved" in done.stderr and done.stderr.count("\n") == 1, words
    assert "is reserved" in runbook("run", "2", env=env | {"RUNBOOK_INCIDENT": name}, cwd=two).stderr
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(two))
    with pytest.raises(UsageError, match="is reserved"):
        open_section("2", {"incident_id": name})
    assert sorted(two.rglob("*")) == before
    shutil.rmtree(two / "baseline-x")
    (two / "b").rename(two / name)
    assert runbook("capsule", name, "--out", str(two / "x"), env=env, cwd=two).returncode == 0, "an earlier version's"


def test_variables_name_the_system_and_the_incident(tmp_path: Path) -> None:
    named = ENV | {"RUNBOOK_TARGET": "nowhere", "RUNBOOK_INCIDENT": "a/b"}
    assert "a/b" in runbook("run", "2", "--target", "default", env=named, cwd=tmp_path).stderr
    assert "nowhere" in runbook("run", "2", "--incident", "a", env=named, cwd=tmp_path).stderr


@pytest.mark.parametrize("named", [["--incident", "latest"], ["--incident=latest"], []])
def test_the_command_that_executes_names_the_incident_itself(named: list[str]) -> None:
    words = ["act", "canary", *named, "--reason", "latest"]
    assert common.without_option("--incident", words) == ["act", "canary", "--reason", "latest"]
