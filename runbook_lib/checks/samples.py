"""What the sections of one run share: samples, so that a section can compare with an earlier one's and need not wait,
and the workloads' logs, which are read once.

They are files in a folder of the run's own, `RUNBOOK_SAMPLES`, and are gone with it. Without that folder, as in
JupyterLab, nothing is shared.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from fcntl import LOCK_EX, flock
from pathlib import Path

import pandas as pd

from runbook_lib.model.finding import Frames, Reason, SentQuery
from runbook_lib.sources.logs import Log, LogEntry
from runbook_lib.sources.source import ReadCost, SourceError
from runbook_lib.store import record
from runbook_lib.store.files import write_whole

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
    """Keep the sections to which the first numbers point, before the triage does."""
    if folder := os.environ.get(FOLDER):
        _write_json(Path(folder, SECTIONS), list(sections))


def sections_before(folder: str) -> list[str]:
    """Return the sections to which the first numbers of a run point; none if these are not there yet."""
    file = Path(folder, SECTIONS)
    return list(json.loads(file.read_bytes())) if folder and file.is_file() else []


def log(name: str, minutes: float, read: Callable[[], Log], cost: ReadCost) -> Log:
    """Return a workload's log of the last minutes: what another section of this run has read, else what `read` returns.

    Raises SourceError, as the other section did.
    """
    folder = os.environ.get(FOLDER)
    if not folder or not Path(folder).is_dir():  # it may have gone with a run that had ended
        return read()
    file = Path(folder, f"{name}-{minutes:g}.log")
    with file.with_suffix(".lock").open("w") as lock:
        flock(lock, LOCK_EX)  # of sections that begin together, the others wait for the first one
        if not file.is_file():
            return _read_and_keep(file, read)
    kept = json.loads(file.read_bytes())
    with cost.query("workloads", "logs", f"the log of {name}, as another section of this run has read it") as asked:
        if error := kept.get("error"):
            raise SourceError(error["source"], Reason(error["reason"]), error["detail"], error["code"])
        asked.rows = kept["lines"]
    cost.masker.keep_tokens(json.dumps(kept["entries"]))
    entries = tuple(
        LogEntry(time and datetime.fromisoformat(time), level, message, error, tuple(above))
        for time, level, message, error, above in kept["entries"]
    )
    return Log(entries, kept["lines"], datetime.fromisoformat(kept["at"]))


def _read_and_keep(file: Path, read: Callable[[], Log]) -> Log:
    try:
        found = read()
    except SourceError as e:
        _write_json(file, {"error": vars(e)})
        raise
    entries = [[e.time and e.time.isoformat(), e.level, e.message, e.error, e.above] for e in found.entries]
    _write_json(file, {"at": found.at.isoformat(), "lines": found.lines, "entries": entries})
    return found


def _write_json(path: Path, content: object) -> None:
    with suppress(OSError):  # a full disk: who finds nothing here asks anew
        write_whole(path, json.dumps(content).encode(), durable=False, mode=0o600)
