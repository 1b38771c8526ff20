"""What `--help` shows, and how durations are written."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from runbook_lib.book import catalog, parameters
from runbook_lib.cli.common import Duration
from runbook_lib.cli.main import cli

GROUPS: tuple[list[str], ...] = ([], ["archive"], ["act"], ["sandbox"], ["new"])


@pytest.mark.parametrize("group", GROUPS, ids=lambda words: " ".join(words) or "runbook")
def test_no_line_of_a_list_of_commands_is_cut_off(group: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80).output
    assert "Options" in shown and "..." not in shown.replace("[ARGS]...", "")


@pytest.mark.parametrize("command", [["run"], ["triage"], ["act"]], ids=" ".join)
def test_exit_codes_stand_in_the_help(command: list[str]) -> None:
    assert "Exit code" in CliRunner().invoke(cli, [*command, "--help"]).output


@pytest.mark.parametrize("command", ["run", "triage"])
def test_the_help_leads_to_the_parameters_of_each_section(command: str) -> None:
    shown = " ".join(CliRunner().invoke(cli, [command, "--help"]).output.split())
    assert "`runbook sections --parameters`" in shown
    listed = CliRunner().invoke(cli, ["sections", "--parameters"]).output
    every, *own = re.split(r"(?m)^(?=\d)", listed)
    for section, block in zip(catalog.load().runnable().values(), own, strict=True):
        assert section.notebook and block.startswith(f"{section.number} ")
        names = [line.split()[0] for line in (every + block).splitlines() if line.startswith(" ")]
        assert sorted(names) == sorted(parameters.declared_names(section.notebook))


@pytest.mark.parametrize("command", [["run"], ["triage"], ["act", "restart"]], ids=" ".join)
def test_the_system_and_the_incident_are_the_first_options(command: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*command, "--help"]).output
    options = [line.split()[0] for line in shown.splitlines() if line.startswith("  --")]
    assert [name for name in options if name not in ("--wait", "--window")][:2] == ["--target", "--incident"]


@pytest.mark.parametrize(("text", "seconds"), [("180", 180), ("180s", 180), ("3m", 180), ("1.5h", 5400), (10.0, 10)])
def test_a_duration_is_seconds(text: str | float, seconds: float) -> None:
    assert Duration(max=6000).convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["soon", "-3", "nan", "3 weeks", "2h"])
def test_another_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration(max=6000).convert(text, None, None)
