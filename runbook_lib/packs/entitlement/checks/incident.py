"""Read an incident's dossier: its runs, when it was detected, and the run that found it recovered."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.book.parameters import moment
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Reason
from runbook_lib.sources.source import SourceError
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import Logs, RunLine, read_logs
from runbook_lib.store.run import Run, read_run

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

OWN = "7"


class IncidentRun(rows.Row):
    """A run of the incident, from the manifest and its findings."""

    name: str = ""
    section: str = ""
    started: pd.Timestamp | None = None
    ended: pd.Timestamp | None = None
    looked_at: pd.Timestamp | None = None
    status: str = ""
    stuck_at: str | None = None
    confidence: str | None = None
    detail: str | None = None
    detected_by: str | None = None
    detected_at: pd.Timestamp | None = None
    onset: pd.Timestamp | None = None


RUN = [f.name for f in fields(IncidentRun)]


@lru_cache(maxsize=100)
def kept_run(archive: Archive, line: RunLine) -> Run | None:
    """Return a run of the incident as it was kept; None if it cannot be read."""
    try:
        return read_run(archive, line)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # whatever a broken file raises
        return None


def collect_runs(rb: Context) -> Frames:
    """Return the runs of the incident without those of this section. Frame: runs (fields of `IncidentRun`)."""
    found = []
    for line in logs_of(rb.archive).runs:
        if line.section == OWN:
            continue
        run, at = kept_run(rb.archive, line), line.parameters.get("detected_at")
        impact = run.by_step.get("3.1") if run else None
        found.append(
            {
                "name": line.name, "section": line.section, "started": line.started, "ended": line.ended,
                "status": line.status.name, "stuck_at": line.stuck_at, "confidence": line.confidence,
                "looked_at": (run and run.header.get("as_of")) or line.started,
                "detail": line.problem,
                "detected_by": line.parameters.get("detected_by"),
                "detected_at": moment(at).isoformat() if at else None,
                "onset": impact.value("impact.onset") if impact else None,
            }
        )  # fmt: skip
    return {"runs": timed(pd.DataFrame(found, columns=RUN), "started", "ended", "looked_at", "detected_at", "onset")}


def logs_of(archive: Archive) -> Logs:
    """Return the lines of the incident's logs. Raises SourceError."""
    try:
        return read_logs(archive)
    except (OSError, ValueError) as e:
        raise SourceError("archive", Reason.ERROR, f"logs: {e}") from None


def timed(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return the frame with these columns as times in UTC; a value that is no time becomes NaT."""
    for column in columns:
        frame[column] = pd.to_datetime(frame[column], utc=True, format="ISO8601", errors="coerce")
    return frame


@dataclass(frozen=True)
class Moment:
    """A time of the incident, how it is known, and the artifact that has it."""

    at: pd.Timestamp | None = None
    how: str = ""
    name: str = ""


def runs_of(frames: Frames) -> list[IncidentRun]:
    """Return the runs in the order of their starts."""
    begun = [(r.started, r) for r in rows.each(frames.get("runs"), IncidentRun) if r.started is not None]
    return [run for _, run in sorted(begun, key=lambda b: b[0])]


def detection(frames: Frames, given: JudgeInput) -> Moment:
    """Return when the incident was detected: by this run's parameters, else an earlier run's, else the first run."""
    if given.detected_at is not None:
        return Moment(given.detected_at, given.detected_by or "told")
    runs = runs_of(frames)
    first = next((r for r in runs if r.detected_at is not None), None) or next(
        (r for r in runs if r.detected_by), runs[0] if runs else None
    )
    if first is None:
        return Moment()
    how = first.detected_by or ("first_run" if first.detected_at is None else "told")
    return Moment(first.started if first.detected_at is None else first.detected_at, how, first.name)


def green(frames: Frames, since: pd.Timestamp | None) -> Moment:
    """Return the first OK run of section 6 after the last bad run (CRITICAL in 3 or 4, not OK in 6).

    In the order of the moments that they looked at: a look back at the incident does not undo its end.
    """
    last = None
    looked = [(run.looked_at or run.started, run) for run in runs_of(frames) if run.started is not None]
    for _, run in sorted(looked, key=lambda each: each[0]):
        if run.section == "6" and run.status == "OK":
            late_enough = since is None or (run.looked_at is not None and run.looked_at >= since)
            last = run if last is None and late_enough else last
        elif run.section == "6" or (run.section.startswith(("3", "4")) and run.status == "CRITICAL"):
            last = None
    return Moment(last.looked_at, "green", last.name) if last else Moment()


def onset_kept(frames: Frames) -> Moment:
    """Return the onset by section 3: the oldest event that waited, or a change of a flow."""
    told = next((r for r in runs_of(frames) if r.onset is not None), None)
    return Moment(told.onset, "run", told.name) if told else Moment()
