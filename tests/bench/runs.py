"""Notebooks run headless, by the product and by plain papermill: time, memory, and what they read in sequence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import psycopg

from runbook_lib.book import catalog
from runbook_lib.book.catalog import Section
from runbook_lib.gameday.sandbox.servers import Servers
from runbook_lib.store.run import run_of_cells

TABLES = ("notification.notifications", "entitlement.outbox_events")
_BIN = Path(sys.executable).parent
_SAMPLE_S = 0.05
_TIMEOUT_S = 180


@dataclass(frozen=True)
class Measured:
    """One headless run of one notebook; memory is the peak of the summed RSS of its process tree, sampled."""

    seconds: float
    mebibytes: float
    seq_scans: int
    index_scans: int
    questions: frozenset[str]  # of the database, as the executed notebook names them
    problem: str = ""


def by_product(section: Section, servers: Servers, folder: Path) -> Measured:
    """`runbook run SECTION`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(_BIN / "runbook"), "run", section.number, "--incident", "bench", "--output", str(folder), "--json"]
    output = folder / f"{section.number}.json"
    return _measured(section, servers, command, output, folder)


def by_papermill(section: Section, servers: Servers, folder: Path) -> Measured:
    """`papermill NOTEBOOK OUTPUT`."""
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{section.number}.ipynb"
    options = ["--no-progress-bar", "-p", "incident_id", "bench"]
    command = [str(_BIN / "papermill"), str(section.notebook), str(output), *options]
    return _measured(section, servers, command, folder / f"{section.number}.log", folder)


def _measured(section: Section, servers: Servers, command: list[str], output: Path, folder: Path) -> Measured:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")} | servers.env
    before = _scans(servers)
    started = time.monotonic()
    with output.open("wb") as out, (folder / "errors.log").open("ab") as errors:
        process = psutil.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _tree_rss(process))
            if time.monotonic() - started > _TIMEOUT_S:
                for child in [*process.children(recursive=True), process]:
                    child.kill()
                process.wait()
            time.sleep(_SAMPLE_S)
    seconds = time.monotonic() - started
    after = _scans(servers)
    questions, problem = _read(section, output)
    return Measured(seconds, peak / 2**20, after[0] - before[0], after[1] - before[1], questions, problem)


def _read(section: Section, output: Path) -> tuple[frozenset[str], str]:
    """Which questions the executed notebook asked, and whether it came to its end."""
    path = output.with_suffix(".ipynb")
    if output.suffix == ".json":
        try:
            path = Path(json.loads(output.read_text())["runs"][0]["artifact"]["ipynb"])
        except (ValueError, KeyError, TypeError):
            return frozenset(), "no verdict"
    if not path.is_file():
        return frozenset(), "no notebook"
    run = run_of_cells(nbformat.read(path, as_version=4).cells, section.number, catalog.load())
    asked = {q.name for f in run.findings for q in f.queries if q.source == "postgres"}
    return frozenset(asked), "" if run.concluded else "not concluded"


def _tree_rss(process: psutil.Process) -> int:
    total = 0
    try:
        for member in [process, *process.children(recursive=True)]:
            total += member.memory_info().rss
    except psutil.NoSuchProcess:
        return 0  # it ended in between; the sample before counts
    return total


def _scans(servers: Servers) -> tuple[int, int]:
    """Sequential and index scans of the two large tables so far; a session reports its own when it ends."""
    with psycopg.connect(servers.admin_url, autocommit=True) as admin:
        until = time.monotonic() + 5
        busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'runbook/%'"
        while admin.execute(busy).fetchone() != (0,) and time.monotonic() < until:
            time.sleep(0.05)
        counts = (
            "SELECT sum(seq_scan)::bigint, sum(idx_scan)::bigint FROM pg_stat_user_tables"
            " WHERE schemaname || '.' || relname = ANY(%s)"
        )
        row = admin.execute(counts, [list(TABLES)]).fetchone()
        assert row
        return int(row[0]), int(row[1])


def sections() -> list[Section]:
    """Those whose notebook is there."""
    return [s for s in catalog.load().runnable().values() if s.notebook and s.notebook.is_file()]
