"""The wheel carries everything it reads, and a headless run needs no extra, such as JupyterLab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from importlib.metadata import Distribution
from pathlib import Path

import psycopg
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runbook_lib.gameday.sandbox import history
from tests.kit import ROOT
from tests.kit.servers import Servers
from tests.kit.steps import bound


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a venv with the wheel and what it requires without extras, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("runbook_notebooks-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    lean = required("runbook-notebooks", {})
    assert not {"jupyterlab", "starlette", "supervisor", "distributed", "cryptography"} & {*lean}
    for distribution in lean.values():
        for file in distribution.files or ():
            if file.parts[0] != "..":  # a program
                place = packages / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(file.locate())
    return python.parent


def required(name: str, found: dict[str, Distribution], extras: Iterable[str] = ("",)) -> dict[str, Distribution]:
    """Add what a distribution with these extras requires to those found, and what these require; return `found`."""
    for line in metadata.requires(name) or ():
        wanted = Requirement(line)
        there = canonicalize_name(wanted.name)
        asked = not wanted.marker or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)
        if asked and there not in found:
            found[there] = metadata.distribution(there)
            required(there, found, {"", *wanted.extras})
    return found


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RUNBOOK_", "PYTHON", "JUPYTER"))}
    return subprocess.run(
        command, cwd=folder, env=own | environment, capture_output=True, text=True, timeout=180, check=False
    )


def test_the_lean_wheel_runs_away_from_the_checkout(
    installed: Path, servers: Servers, db: psycopg.Connection, broker: str, tmp_path: Path
) -> None:
    where = run([str(installed / "python"), "-c", "import runbook_lib as r; print(r.__file__)"], tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(installed.parent), where.stdout + where.stderr

    listed = run([str(installed / "runbook"), "sections"], tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "04_1_not_delivered.ipynb" in listed.stdout and "4.1.4" in listed.stdout
    shown = run([str(installed / "runbook"), "open", "example", "--no-browser"], tmp_path)
    assert "FM-NOTI-06" in shown.stdout, shown.stderr

    with bound(broker):
        history.backfill(db, datetime.now(UTC), stopped="worker")
        done = run([str(installed / "runbook"), "run", "4.1", "--json"], tmp_path, **servers.env)
    assert done.returncode == 2, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["verdict"]["stuck_at"] == "delivery_worker"
    (section,) = said["runs"]
    assert "UNKNOWN" not in {f["status"] for f in section["findings"]}, done.stdout
    assert Path(section["artifact"]["html"]).is_relative_to(tmp_path)
    assert (tmp_path / "outputs" / "adhoc" / "index.html").is_file()


ROOMS = ["gameday", "governance", "integrations", "lab", "receiver"]


@pytest.mark.parametrize(
    "rooms", [ROOMS, *(pytest.param([room], marks=pytest.mark.slow) for room in ROOMS)], ids=" ".join
)
def test_a_section_runs_without_optional_rooms(
    rooms: list[str], installed: Path, servers: Servers, db: psycopg.Connection, broker: str, tmp_path: Path
) -> None:
    (package,) = installed.parent.glob("lib/python*/site-packages/runbook_lib")
    try:
        for room in rooms:
            (package / room).rename(tmp_path / room)
        with bound(broker):
            history.backfill(db, datetime.now(UTC), stopped="worker")
            done = run([str(installed / "runbook"), "run", "4.1", "--json"], tmp_path, **servers.env)
    finally:
        for room in rooms:
            (tmp_path / room).rename(package / room)
    assert (done.returncode, done.stderr.count("Traceback")) == (2, 0), done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["verdict"]["stuck_at"] == "delivery_worker"
    assert "UNKNOWN" not in {f["status"] for run in said["runs"] for f in run["findings"]}, done.stdout
