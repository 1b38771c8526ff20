"""What other tools read of a run: a Nagios plugin's line, and a textfile for Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.integrations import formats
from tests.kit import ROOT
from tests.kit.command import runbook

DOCUMENT: dict[str, Any] = json.loads(next((ROOT / "outputs" / "sample").glob("*-verdict-*.json")).read_text())
NOWHERE = {"RUNBOOK_DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "RUNBOOK_NATS_URL": "nats://127.0.0.1:1"}
#: 'label'=value[unit];[warn];[crit]
PERFORMANCE = re.compile(r"'([^'=]+)'=(U|-?[\d.e+-]+)(s?);([^; ]*);([^; ]*)")


def test_one_line_with_what_has_limits() -> None:
    line = formats.nagios("! CRITICAL  Stuck at | the\nworker", DOCUMENT)
    said, _, performance = line.partition(" | ")
    assert said == "RUNBOOK CRITICAL: Stuck at / the worker" and "\n" not in line
    found = {m[1]: m.groups()[1:] for m in PERFORMANCE.finditer(performance)}
    assert PERFORMANCE.sub("", performance).strip() == ""
    assert found["3.1 backlog.due"] == ("595.0", "", "50", "500")
    assert found["3.1 outbox.failed"] == ("0.0", "", "", "1")
    assert not any("impact.events" in label for label in found)  # it has no limit
    assert formats.nagios("UNKNOWN", {"status": "UNKNOWN"}) == "RUNBOOK UNKNOWN:"


def test_of_several_systems_each_line_names_its_own(tmp_path: Path) -> None:
    names = ("eu", "CRITICAL-1")
    (tmp_path / "runbook.toml").write_text("\n".join(f'[targets.{n}]\nnats_url_env = "NOT_SET"' for n in names))
    asked = ("triage", "--targets", ",".join(names), "--format", "nagios", "--output", str(tmp_path / "out"))
    done = runbook(*asked, env=os.environ, cwd=tmp_path)
    assert done.returncode == 3
    assert {line.partition(" |")[0] for line in done.stdout.splitlines()} == {f"RUNBOOK UNKNOWN: {n}" for n in names}


def test_a_limit_from_below_and_a_value_that_was_not_seen() -> None:
    limits = {"unit": "ratio", "warning": 0.9, "critical": 0.5, "below": True, "origin": "x"}
    values = {"success": {"value": None, **limits}, "again": {"value": 0.7, **limits}}
    line = formats.nagios("OK", {"status": "OK", "runs": [{"findings": [{"step": "1.1", "values": values}]}]})
    assert line.endswith("| '1.1 success'=U;0.9:;0.5: '1.1 again'=0.7;0.9:;0.5:")


def test_prometheus_takes_the_gauges() -> None:
    text = formats.openmetrics([DOCUMENT | {"target": 'a "quoted"\nname\\'}])
    assert text.endswith("# EOF\n")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len({line.rsplit(" ", 1)[0] for line in lines}) == len(lines), "each series once"
    label = r'target="a \"quoted\"\nname\\"'
    assert f"runbook_status{{{label}}} 2" in lines
    assert f'runbook_value{{{label},step="3.1",name="backlog.due",unit="rows"}} 595.0' in lines
    assert any(line.startswith(f'runbook_stuck_at{{{label},place="delivery_worker"') for line in lines)
    if promtool := shutil.which("promtool"):
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr.strip(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [["run", "2"], ["triage"]])
def test_the_command_says_one_of_them(tmp_path: Path, command: list[str]) -> None:
    def said(form: str) -> str:
        asked = [*command, "--output", str(tmp_path), "--incident", form]
        done = runbook(*asked, "--format", form, env={"PATH": os.environ["PATH"], **NOWHERE}, cwd=tmp_path)
        assert done.returncode == 3, done.stdout + done.stderr
        return done.stdout

    (line,) = said("nagios").splitlines()
    assert line.startswith("RUNBOOK UNKNOWN: The location is not known; could not be read: postgres (unreachable)")
    assert 'runbook_status{target="default"} 3' in said("openmetrics").splitlines()
    assert json.loads(said("json"))["status"] == "UNKNOWN"
