"""Who imports what: what has to start at once, and stay small, does not load what notebooks need."""

from __future__ import annotations

import json
import os
import subprocess
import sys

HEAVY = {
    "papermill",
    "IPython",
    "ipykernel",
    "matplotlib",
    "psycopg",
    "nats",
    "nbconvert",
    "jupyterlab",
}


def loaded_by(program: str, **env: str) -> set[str]:
    """Return the modules and packages that a fresh interpreter has after a program, which writes no error."""
    program = f"{program}; import json, sys; print(json.dumps([*sys.modules]))"
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True, env=os.environ | env)
    assert done.stderr == ""
    modules = json.loads(done.stdout)
    return {*modules} | {module.split(".")[0] for module in modules}


def test_the_receiver_loads_nothing_of_what_its_runs_need() -> None:
    program = "from runbook_lib.receiver import receiver, dispatcher, journal, notify, server"
    assert loaded_by(program) & HEAVY == set()


def test_a_targets_settings_load_nothing_of_what_its_runs_need() -> None:
    """Whoever hands runs out reads the settings, and thereby what the system's pack says of a target."""
    program = (
        "from runbook_lib.book import catalog; from runbook_lib.sources import settings; catalog.load();"
        "settings.Settings(targets={'t': {'database_url': 'postgresql://u@h/d', 'lease_s': 5}}).target('t')"
    )
    assert loaded_by(program) & HEAVY == set()


def test_the_command_loads_nothing_until_it_knows_what_for() -> None:
    assert loaded_by("import runbook_lib.cli.main") & (HEAVY | {"pandas", "numpy", "jinja2"}) == set()


def test_the_trace_of_an_event_loads_no_chart_and_no_check() -> None:
    loaded = loaded_by("from runbook_lib.packs.entitlement import event_lookup")
    assert loaded & {"matplotlib", "runbook_lib.packs.entitlement.checks"} == set()


def test_a_sample_waits_for_nothing_of_what_the_sections_need() -> None:
    loaded = loaded_by("import runbook_lib.cli.warm")
    assert "psycopg" in loaded and "runbook_lib.packs.entitlement.sample" in loaded
    assert loaded & {"matplotlib", "papermill", "IPython", "jupyter_client"} == set()
