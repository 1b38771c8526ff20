"""Keep the configuration of a healthy system, and return it: what a later one is compared with.

A target's baseline is a folder beside the incidents':

    <output>/baseline-<target>/usual.jsonl                      the numbers of one healthy run per line, and a digest
    <output>/baseline-<target>/configuration-<digest>.json      the rows of a configuration, named by their content
"""

from __future__ import annotations

import json

import pandas as pd

from runbook_lib.diagnosis.snapshots import CONFIGURATION
from runbook_lib.store.archive import Archive
from runbook_lib.store.files import digest

USUAL = "usual.jsonl"


def archive(output: str, target: str) -> Archive:
    """Return the place of a target's baseline."""
    return Archive(output, f"baseline-{target}", people=False)


def keep_configuration(archive: Archive, configuration: pd.DataFrame) -> str:
    """Write a configuration unless it is there already; return its digest. Raises OSError."""
    content = configuration.to_json(orient="split", index=False, force_ascii=False).encode()
    name = digest(content)[:16]
    archive.write(f"{CONFIGURATION}-{name}.json", content)
    return name


def configuration(output: str, target: str) -> pd.DataFrame | None:
    """Return the configuration of the newest healthy run, with `at`, when that was; None where none is kept.

    Raises OSError and ValueError where it can not be read.
    """
    kept = archive(output, target)
    newest = next((line for line in reversed(kept.lines(USUAL)) if line.get(CONFIGURATION)), None)
    if newest is None:
        return None
    rows = json.loads(kept.read(f"{CONFIGURATION}-{newest[CONFIGURATION]}.json"))
    return pd.DataFrame(rows["data"], columns=rows["columns"]).assign(at=pd.Timestamp(newest["at"]))
