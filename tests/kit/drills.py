"""What the drills share: the command run on a sandbox as a scheduler would, and what must hold of every run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import psycopg

from runbook_lib.book import catalog, messages
from runbook_lib.dossier import artifact
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.model.finding import say
from runbook_lib.store.run import run_of_cells
from tests.kit.command import runbook as command
from tests.kit.schemas import valid

#: What a sentence must not show: a word for what is not known ("p95 ? s", "for: -"), a number of the machine's
#: ("9999.0"), more than one of 1 ("1 events").
UNFIT = re.compile(
    r"(?:^|[\s(=、:])\?(?=$|[\s).,;:%/、。])|[(:=]\s*-(?=$|[;,.)])|\bNone\b|\bnan\b|(?<![.\d])\d{3,}\.0(?![\d.])"
    r"|(?<![\d.,:+-])1 (?:\w+ )?(?:events|rows|notifications|entries|messages|users|objectives|letters|tries|steps)\b"
)

#: Seconds from a fault to the look that tells of it; some show themselves later than others.
LOOK_AFTER_S = 30.0
LATER = {
    "receiver_outage": 45.0,
    "receiver_slow": 60.0,
    "second_worker": 60.0,
    "delivery_held": 45.0,
    "clock_skew": 45.0,
    "relay_batch": 60.0,
    "delivery_batch": 60.0,
    "receiver_rate_limit": 45.0,
    "receiver_unavailable": 45.0,
    "receiver_denies": 45.0,
    "worker_wrong_address": 45.0,
    "worker_no_such_host": 45.0,
    "worker_out_of_files": 45.0,
    "registrations_deleted": 45.0,
    "traces_deleted": 45.0,
    "retention_too_short": 45.0,
    # An event is missing a minute after it was published.
    "stream_purged": 90.0,
    "record_deleted": 90.0,
}


def unfit(said: dict[str, Any]) -> list[str]:
    """The sentences of the artifacts, in every language, that show such a thing."""
    found = []
    for r in said["runs"]:
        nb = artifact.notebook(Path(r["artifact"]["ipynb"]).read_bytes())
        for f in run_of_cells(nb.cells, r["section"], catalog.load()).findings:
            texts = [f.headline, *f.notes, *(say(f"proposal.{p.name}.title", **p.params) for p in f.proposals)]
            found += [f"{f.step}: {s}" for t in texts for lang in messages.LANGUAGES for s in [messages.text(t, lang)]]
    return [s for s in found if UNFIT.search(s)]


def runbook(
    sandbox: Sandbox, output: Path, *arguments: str, target: str = "default", env: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run the command as a scheduler would, with addresses in the environment alone; or on the target `sandbox`."""
    environment = {**os.environ, **sandbox.state.env, "RUNBOOK_SANDBOX_DIR": str(sandbox.directory), **(env or {})}
    where = ("--incident", "E2E", "--json", "--output", str(output), "--target", target)
    done = command(*arguments, *where, env=environment)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.stdout, done.stderr
    said: dict[str, Any] = valid(json.loads(done.stdout), "run")
    assert done.returncode == said["exit_code"]
    kept = b"".join(p.read_bytes() for p in output.rglob("*") if p.is_file()).decode(errors="replace")
    for secret in sandbox.state.addresses.passwords.values():
        assert secret not in done.stdout + done.stderr + kept
    assert not (amiss := unfit(said)), amiss
    return said


def ask(sandbox: Sandbox, query: str) -> Any:
    """One value, asked as the runbook asks: its own role, short timeouts."""
    options = "-c lock_timeout=200 -c statement_timeout=3000"
    with psycopg.connect(sandbox.state.addresses.database_url, options=options, connect_timeout=2) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def shown(said: dict[str, Any]) -> str:
    return "\n".join(
        f"{f['step']} {f['status']} {f['reason'] or ''} {f['headline']}" for r in said["runs"] for f in r["findings"]
    )
