"""Samples that the sections of one run share, so that a section can compare with an earlier one's and need not wait.

They are files in a folder of the run's own, `RUNBOOK_SAMPLES`, and are gone with it. Without that folder, as in
JupyterLab, nothing is shared.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from runbook_lib.model.finding import Frames, SentQuery
from runbook_lib.store import write_whole
from runbook_lib.view import record

FOLDER = "RUNBOOK_SAMPLES"
SECTIONS = "sections"


def keep(name: str, at: pd.Timestamp | None, frames: Frames) -> None:
    """Keep a sample that was taken at a moment of the database's clock."""
    if (folder := os.environ.get(FOLDER)) and at is not None:
        stored = {"at": at.isoformat(), "frames": {n: record.frame_to_json(f) for n, f in frames.items()}}
        _write_json(Path(folder, f"{name}-{time.monotonic_ns()}.json"), stored)


def earlier(
    name: str, than: pd.Timestamp | None, apart_s: float, most_s: float
) -> tuple[pd.Timestamp, Frames] | tuple[None, Frames]:
    """Return the newest sample of that name that is `apart_s` older than a moment, else the oldest; None, {} if none.

    A sample more than `most_s` older than that moment is not returned: it says nothing of the last seconds.
    """
    if not (folder := os.environ.get(FOLDER)) or than is None:
        return None, {}
    stored = [json.loads(file.read_bytes()) for file in Path(folder).glob(f"{name}-*.json")]
    ages = {(than - pd.Timestamp(s["at"])).total_seconds(): s for s in stored}
    known = sorted(age for age in ages if 0 < age <= most_s)
    if not known:
        return None, {}
    found = ages[next((age for age in known if age >= apart_s), known[-1])]
    return pd.Timestamp(found["at"]), {n: record.frame_from_json(f) for n, f in found["frames"].items()}


def keep_queries(section: str, sent: Iterable[SentQuery]) -> None:
    """Keep the queries that are sent for a section outside of it, all so far."""
    if folder := os.environ.get(FOLDER):
        _write_json(Path(folder, f"{section}.queries"), [asdict(q) for q in sent])


def queries_before(section: str) -> list[SentQuery]:
    """Return the queries that were sent for a section outside of it; it counts them as its own."""
    folder = os.environ.get(FOLDER)
    if not folder or not (file := Path(folder, f"{section}.queries")).is_file():
        return []
    return [SentQuery(**q) for q in json.loads(file.read_bytes())]


def keep_sections(sections: Iterable[str]) -> None:
    """Keep the sections to which the first numbers point, before section 3 does."""
    if folder := os.environ.get(FOLDER):
        _write_json(Path(folder, SECTIONS), list(sections))


def sections_before(folder: str) -> list[str]:
    """Return the sections to which the first numbers of a run point; none if these are not there yet."""
    file = Path(folder, SECTIONS)
    return list(json.loads(file.read_bytes())) if folder and file.is_file() else []


def _write_json(path: Path, content: object) -> None:
    with suppress(OSError):  # a full disk: who finds nothing here asks anew
        write_whole(path, json.dumps(content).encode(), durable=False)
