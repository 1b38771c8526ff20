"""Store the configuration of a healthy system, and return it: a later configuration is compared with it.

A target's baseline is a folder beside the incidents':

    <output>/baseline-<target>/usual.jsonl                      the moment of the healthy run, and a digest
    <output>/baseline-<target>/configuration-<digest>.json      the rows of a configuration, named by their content
"""

from __future__ import annotations

import json

import pandas as pd

from runbook_lib.diagnosis.snapshots import CONFIGURATION
from runbook_lib.model.incident import BASELINE
from runbook_lib.store.archive import Archive
from runbook_lib.store.files import digest

HEALTHY_RUNS = "usual.jsonl"


def keep(output: str, target: str, configuration: pd.DataFrame, at: pd.Timestamp) -> None:
    """Store the configuration that a healthy run read at that moment, in place of the earlier one. Raises OSError."""
    archive = _open(output, target)
    archive.prepare()
    content = configuration.to_json(orient="split", index=False, force_ascii=False).encode()
    name = digest(content)[:16]
    archive.write(f"{CONFIGURATION}-{name}.json", content)
    archive.write(HEALTHY_RUNS, json.dumps({"at": at.isoformat(), CONFIGURATION: name}).encode() + b"\n")


def configuration(output: str, target: str) -> pd.DataFrame | None:
    """Return the configuration of the newest healthy run, with `at`, when that was; None where none is kept.

    Raises OSError and ValueError where it can not be read.
    """
    kept = _open(output, target)
    if not (content := kept.read_or_none(HEALTHY_RUNS)):
        return None
    newest = json.loads(content.splitlines()[-1])
    rows = json.loads(kept.read(f"{CONFIGURATION}-{newest[CONFIGURATION]}.json"))
    return pd.DataFrame(rows["data"], columns=rows["columns"]).assign(at=pd.Timestamp(newest["at"]))


def _open(output: str, target: str) -> Archive:
    return Archive(output, f"{BASELINE}{target}", people=False)
