"""Read an incident's dossier: its runs, when it was detected, and the run that found it recovered."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Reason
from runbook_lib.model.frames import table
from runbook_lib.model.times import moment
from runbook_lib.sources.source import SourceError
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import Logs, RunLine, read_logs
from runbook_lib.store.run import Run, read_run

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


class IncidentRun(rows.Row):
    """A run of the incident, from the manifest and its findings."""

    name: str = ""
    section: str = ""
    started: pd.Timestamp | None = None
    looked_at: pd.Timestamp | None = None
    status: str = ""
    detail: str | None = None
    detected_by: str | None = None
    detected_at: pd.Timestamp | None = None
    onset: pd.Timestamp | None = None


RUN = [f.name for f in fields(IncidentRun)]


@dataclass(frozen=True)
class Moment:
    """A time of the incident, how it is known, and the artifact that has it."""

    at: pd.Timestamp | None = None
    how: str = ""
    name: str = ""


def logs_of(archive: Archive) -> Logs:
    """Return the lines of the incident's logs. Raises SourceError."""
    try:
        return read_logs(archive)
    except (OSError, ValueError) as e:
        raise SourceError("archive", Reason.ERROR, f"logs: {e}") from None


def read_runs(rb: Context, *, own: bool = False) -> list[tuple[RunLine, Run | None]]:
    """Return the runs of the incident without those of its postmortem, or (`own`) only these.

    None in place of a run that cannot be read. Raises SourceError.
    """
    section = rb.catalog.section_with("postmortem")
    lines = (line for line in logs_of(rb.archive).runs if (line.section == section) is own)
    return [(line, _read_kept(rb.archive, line)) for line in lines]


@lru_cache(maxsize=100)
def _read_kept(archive: Archive, line: RunLine) -> Run | None:
    try:
        return read_run(archive, line)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # whatever a broken file raises
        return None


def collect_runs(rb: Context) -> Frames:
    """Return the runs of the incident without those of its postmortem. Frame: runs (fields of `IncidentRun`)."""
    found = []
    for line, run in read_runs(rb):
        looked_at = (run and run.header.get("as_of")) or line.started
        told, at = line.parameters.get("detected_by"), line.parameters.get("detected_at")
        onset = next((o for f in (run.findings if run else ()) if (o := f.value("impact.onset"))), None)
        own = line.name, line.section, line.started, looked_at, line.status.name, line.problem
        found.append((*own, told, moment(at) if at else None, onset))
    return {"runs": timed(pd.DataFrame(found, columns=RUN), "started", "looked_at", "detected_at", "onset")}


def timed(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return the frame with these columns as times in UTC; a value that is no time becomes NaT."""
    for column in columns:
        frame[column] = pd.to_datetime(frame[column], utc=True, format="ISO8601", errors="coerce")
    return frame


def runs_of(frames: Frames, by: str = "started") -> list[IncidentRun]:
    """Return the runs in the order of their starts, or of the moments that they looked at."""
    begun = table(frames, "runs", *RUN).dropna(subset=["started"])
    return rows.each(begun.sort_values(by, kind="stable"), IncidentRun)


def detection(frames: Frames, given: JudgeInput) -> Moment:
    """Return when the incident was detected: by this run's parameters, else an earlier run's, else the first run."""
    if given.detected_at is not None:
        return Moment(given.detected_at, given.detected_by or "told")
    runs = runs_of(frames)
    told = [r for r in runs if r.detected_at is not None]
    first = next(iter(told or [r for r in runs if r.detected_by] or runs), None)
    if first is None:
        return Moment()
    return Moment(
        first.detected_at or first.started, first.detected_by or ("told" if told else "first_run"), first.name
    )


def confirmation(frames: Frames, given: JudgeInput, since: pd.Timestamp | None) -> Moment:
    """Return the first OK run of the recovery's section after the last bad run.

    Bad is a run of that section that is not OK, and a CRITICAL one of the first response or of the flow. The runs count
    in the order of the moments that they looked at: a look back at the incident does not undo its end.
    """
    recover, *bad = (given.catalog.section_with(role) for role in ("recover", "triage", "flow"))
    chapters, last = {section.partition(".")[0] for section in bad}, None
    for run in runs_of(frames, "looked_at"):
        if run.section == recover and run.status == "OK":
            late_enough = since is None or (run.looked_at is not None and run.looked_at >= since)
            last = last or (run if late_enough else None)
        elif run.section == recover or (run.section.partition(".")[0] in chapters and run.status == "CRITICAL"):
            last = None
    return Moment(last.looked_at, "green", last.name) if last else Moment()


def onset_kept(frames: Frames) -> Moment:
    """Return the onset by the first response: the oldest event that waited, or a change of a flow."""
    told = next((r for r in runs_of(frames) if r.onset is not None), None)
    return Moment(told.onset, "run", told.name) if told else Moment()
