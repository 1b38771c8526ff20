"""The sample dossier that git keeps, of some earlier code: whole, of no machine, and readable today."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.kit import ROOT
from tests.kit.command import runbook
from tests.tools import sample

COMMITTED = ROOT / sample.OUTPUT / sample.INCIDENT


def files() -> list[Path]:
    return [p for p in COMMITTED.rglob("*") if p.is_file()]


def said(dossier: Path) -> dict[str, Any]:
    (path,) = dossier.glob("*-verdict-*.json")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


@pytest.mark.slow
def test_the_same_state_gives_the_same_verdict(tmp_path: Path) -> None:
    with sample.incident(tmp_path / "servers") as servers:
        done = sample.triage(servers, str(tmp_path), sample.INCIDENT, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    for dossier in (tmp_path / sample.INCIDENT, COMMITTED):
        verdict = said(dossier)["verdict"]
        found = (verdict["status"], verdict["stuck_at"], verdict["failure_modes"][0]["id"])
        assert found == ("CRITICAL", "delivery_worker", "FM-NOTI-06"), dossier


def test_the_committed_dossier_verifies() -> None:
    done = runbook(
        "verify",
        sample.INCIDENT,
        "--checkpoint",
        sample.CHECKPOINT,
        "--output",
        sample.OUTPUT,
        env=os.environ,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_small_and_complete() -> None:
    assert sum(p.stat().st_size for p in files()) < 3_000_000  # an evidence file holds whole findings
    assert not [p.name for p in files() if ".partial" in p.name]
    index = (COMMITTED / "index.html").read_text(encoding="utf-8")
    for link in re.findall(r'href="([^"#]+)"', index):
        assert (COMMITTED / link).is_file(), link


def test_nothing_of_the_machine_it_was_made_on() -> None:
    picture = re.compile(r'(?:base64,|"image/png": ")[A-Za-z0-9+/=\\n]+')
    for path in files():
        if path.name.startswith("policy-"):
            continue  # the documents, which say what an address and a path look like
        text = picture.sub("", path.read_text(encoding="utf-8"))
        assert not re.search(r"(?<![\w<.])/(?:work|root|tmp|home|usr|opt|var|Users)/", text), path
        assert not re.search(r"(?:postgresql|nats|redis)://|password", text), path
        assert set(re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", text)) <= {"127.0.0.1"}, path
    for document in [said(COMMITTED), *map(json.loads, (COMMITTED / "log.jsonl").read_text().splitlines())]:
        assert document.get("parameters", document).get("target", "default") == "default"
