"""Makes the sample dossier that git keeps: a seeded incident on the embedded servers, triaged by the command.

python -m tests.tools.sample      writes outputs/sample anew, and its seal into outputs/README.md
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from runbook_lib.gameday.sandbox import history
from runbook_lib.store.archive import SALT
from tests.bench import supervise
from tests.kit import ROOT
from tests.kit.command import alone
from tests.kit.servers import Servers
from tests.kit.steps import bound

OUTPUT, INCIDENT = "outputs", "sample"
#: Beside the dossier, in git: holds its seal.
CHECKPOINT = f"{OUTPUT}/README.md"
#: What stands still, and how much past there is: enough for every window, little to keep.
STOPPED, HOURS, RATE = "worker", 1.0, 1.0


@contextmanager
def incident(directory: Path) -> Iterator[Servers]:
    """The servers with a subscriber bound and the state seeded, as at the moment of the alert."""
    with Servers(directory) as servers:
        servers.ensure_streams()
        with bound(servers.app_nats_url), psycopg.connect(servers.admin_url, autocommit=True) as connection:
            history.backfill(connection, datetime.now(UTC), HOURS, RATE, stopped=STOPPED)
            yield servers


def triage(servers: Servers, output: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder` with the addresses in its environment."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    who = {"PYTHONPATH": str(ROOT)}
    asked = ("triage", "--incident", name, "--output", output, "-p", "detected_by=alert")
    return alone(*asked, env={**own, **servers.env, **who}, cwd=folder)


def main() -> None:
    """Replace outputs/sample."""
    folder = supervise.fork()
    with incident(folder / "servers") as servers:
        work = folder / "work"  # without other incidents: the dossier names those that are alike
        work.mkdir()
        done = triage(servers, OUTPUT, INCIDENT, work)
        shutil.rmtree(ROOT / OUTPUT / INCIDENT, ignore_errors=True)
        shutil.move(work / OUTPUT / INCIDENT, ROOT / OUTPUT / INCIDENT)
    print(done.stdout, done.stderr, sep="\n")
    (ROOT / OUTPUT / INCIDENT / SALT).unlink()  # nobody is behind these tokens
    if done.returncode != 2:
        sys.exit(f"the sample is CRITICAL by its making, and the command said {done.returncode}")
    seal = re.findall(r"^seal:sample:.*$", done.stdout, re.MULTILINE)[-1]
    text = (ROOT / CHECKPOINT).read_text(encoding="utf-8")
    (ROOT / CHECKPOINT).write_text(re.sub(r"seal:sample:[\w.:]+", seal, text), encoding="utf-8")


if __name__ == "__main__":
    main()
