"""A dossier that release 0.5.0 wrote, read by today's code: the same is said of it.

0.5.0.tar.xz was made by the code of that release: `runbook serve` on a sandbox's servers with a stopped worker got an
alert twice, investigated it with section 4.3 and could not send its message; a responder wrote a note; the receiver was
killed while it investigated a second alert.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.kit.command import runbook
from tests.kit.schemas import valid, valid_dossier

DATA = Path(__file__).parents[1] / "data" / "0.5.0.tar.xz"
INCIDENT = "NotDelivered-20261130T225806-3d71abbe"
SEAL = f"seal:{INCIDENT}:2.0.2:0e01a70359d77b96b17f622bf8811d33"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder that 0.5.0 has left."""
    with tarfile.open(DATA) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "runbook.toml").write_text(
        '[targets.production]\ndatabase_url = "postgresql://u@127.0.0.1:1/x"\nnats_url = "nats://127.0.0.1:1"\n'
    )
    return tmp_path


def said(folder: Path, *arguments: str, code: int = 0) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    done = runbook(*arguments, "--lang", "en", env=clean, cwd=folder)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout + done.stderr
    return done.stdout


def test_its_dossier_is_read(written: Path) -> None:
    assert "4 sealed entries, 5 steps judged again" in said(written, "verify", INCIDENT, "--checkpoint", SEAL)

    folder = written / "outputs" / INCIDENT
    valid_dossier(folder)
    (folder / "index.html").unlink()
    assert said(written, "dossier", INCIDENT).strip().endswith("index.html")
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "Stuck at delivery worker" in page and "failed over to the second worker" in page

    documents = str(Path(__file__).parents[2] / "docs" / "slo.md")
    tested = said(written, "archive", "backtest", INCIDENT, "--policy", documents, code=1)
    # Its restart was sure although the program's own side was not read.
    assert "CRITICAL: 1 run then, 1 by the other policy" in tested and "FM-NOTI-06, high -> " in tested
    said(written, "capsule", INCIDENT, "--out", "it.runbook")
    opened = said(written, "open", "it.runbook", "--no-browser", code=3)  # no checkpoint covers it
    assert "Stuck at delivery worker" in opened
    assert "Verdict: unchanged; today's code judges 5 steps as they were recorded" in opened


def test_its_postmortem_is_drafted(written: Path) -> None:
    valid(json.loads(said(written, "postmortem", INCIDENT, "--json", code=3)), "run")  # its database is not there
    draft = written / "outputs" / INCIDENT / "postmortem.md"
    assert "FM-NOTI-06" in draft.read_text(encoding="utf-8")
