"""Who imports what: what has to start at once, and stay small, does not load what notebooks need."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = {
    "papermill",
    "IPython",
    "ipykernel",
    "matplotlib",
    "psycopg",
    "nats",
    "nbconvert",
    "jupyterlab",
    "opentelemetry",
}


def loaded_by(*modules: str) -> set[str]:
    """The packages that a fresh interpreter has after importing them."""
    program = (
        f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(done.stdout))


def test_the_receiver_loads_nothing_of_what_its_runs_need() -> None:
    parts = ("receiver", "dispatcher", "journal", "notify", "server")
    assert loaded_by(*(f"runbook_lib.receiver.{part}" for part in parts)) & HEAVY == set()


def test_a_targets_settings_load_nothing_of_what_its_runs_need() -> None:
    """Whoever hands runs out reads the settings, and thereby what the system's pack says of a target."""
    program = (
        "import json, sys; from runbook_lib import catalog, settings; catalog.load();"
        "settings.Settings(targets={'t': {'database_url': 'postgresql://u@h/d', 'lease_s': 5}}).target('t');"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert set(json.loads(done.stdout)) & HEAVY == set()


def test_the_command_loads_nothing_until_it_knows_what_for() -> None:
    assert loaded_by("runbook_lib.cli.main") & (HEAVY | {"pandas", "numpy", "jinja2"}) == set()


def test_the_first_numbers_load_nothing_of_what_the_sections_need() -> None:
    """And say nothing where the database does not answer."""
    program = (
        "import json, sys; from runbook_lib.cli import main, run; from runbook_lib.cli.progress import *;"
        "from runbook_lib.model.order import Order; from runbook_lib.runs import executors;"
        "show_first_numbers(Order(('3',), ''), ProgressDisplay(in_pipe=True));"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    env = os.environ | {"RUNBOOK_DATABASE_URL": "postgresql://u@127.0.0.1:1/d", "RUNBOOK_CONFIG": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=env)
    loaded = set(json.loads(done.stdout))
    assert "psycopg" in loaded and done.stderr == ""
    assert loaded & (HEAVY - {"psycopg"} | {"nbformat", "requests"}) == set()


@pytest.mark.parametrize("package", ["model", "analysis", "view", "sources", "store", "messages"])
def test_what_lies_below_loads_nothing_of_what_lies_above(package: str) -> None:
    program = f"import runbook_lib.{package}, sys; print([m for m in sys.modules if m.startswith('runbook_lib.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    above = ("session", "checks", "actions", "context", "runs", "archive", "receiver", "lab", "cli", "sandbox")
    assert not any(f"'runbook_lib.{name}" in done.stdout for name in above)
