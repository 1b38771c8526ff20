"""Read an incident's dossier: its runs, when it was detected, and the run that found it recovered."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.book.parameters import LONGEST
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
    """A run of the incident, from the log and its findings."""

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
    archive = rb.archive.patient()
    lines = [line for line in logs_of(archive).runs if (line.section == section) is own]
    return [*zip(lines, archive.read_each(partial(_read_if_possible, archive), lines), strict=True)]


#: A run that was read stays as it is; a failure is not kept.
_read_once = lru_cache(maxsize=100)(read_run)


def _read_if_possible(archive: Archive, line: RunLine) -> Run | None:
    try:
        return _read_once(archive, line)
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


def runs_of(frames: Frames) -> list[IncidentRun]:
    """Return the runs in the order of their starts."""
    begun = table(frames, "runs", *RUN).dropna(subset=["started"])
    return rows.each(begun.sort_values("started", kind="stable"), IncidentRun)


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

    Bad is a run of that section that is not OK, and a CRITICAL one of the first response or of the flow.
    """
    recover, *bad = (given.catalog.section_with(role) for role in ("recover", "triage", "flow"))
    chapters, last = {section.partition(".")[0] for section in bad}, None
    for run in runs_of(frames):
        if run.section == recover and run.status == "OK":
            late_enough = since is None or (run.looked_at is not None and run.looked_at >= since)
            last = last or (run if late_enough else None)
        elif run.section == recover or (run.section.partition(".")[0] in chapters and run.status == "CRITICAL"):
            last = None
    return Moment(last.looked_at, "green", last.name) if last else Moment()


@dataclass(frozen=True)
class Span:
    """An interval of time in buckets of `bucket_s` seconds; bucket -1 is the time before it."""

    since: pd.Timestamp
    until: pd.Timestamp
    bucket_s: int

    @property
    def buckets(self) -> int:
        """The number of buckets."""
        return max(math.ceil((self.until - self.since).total_seconds() / self.bucket_s), 1)

    @property
    def full(self) -> int:
        """The number of complete buckets; the last bucket may be incomplete."""
        return int((self.until - self.since).total_seconds() // self.bucket_s)

    def at(self, bucket: int) -> pd.Timestamp:
        """Return the start of a bucket."""
        return self.since + pd.Timedelta(seconds=bucket * self.bucket_s)

    def of(self, time: pd.Timestamp) -> int:
        """Return the bucket of a time."""
        return int((time - self.since).total_seconds() // self.bucket_s)

    def counts(self, frames: Frames, name: str, *columns: str) -> pd.DataFrame | None:
        """Return the columns' counts for every bucket from -1 on; None if the query has no result."""
        if name not in frames:
            return None
        found = table(frames, name, "bucket", *columns).set_index("bucket")[list(columns)]
        numbers = found.apply(pd.to_numeric, errors="coerce").fillna(0.0).groupby(level=0).sum()
        return pd.DataFrame(numbers.reindex(range(-1, self.buckets), fill_value=0.0).astype(float))


def span_of(frames: Frames, name: str = "span") -> Span | None:
    """Return the span of the frames; None if they have none."""
    since, until = (rows.value(frames.get(name), column, pd.Timestamp) for column in ("since", "until"))
    bucket_s = rows.value(frames.get(name), "bucket_s", float)
    return Span(since, until, max(int(bucket_s), 1)) if since and until and bucket_s else None


def window_of(rb: Context, frames: Frames) -> Span:
    """Return the window of the postmortem, in buckets of whole minutes, by the frame of `collect_runs`.

    It is that of the parameters. Without them it is the incident's own: from `window_minutes` before its detection, or
    its first run, to its recovery, and `LONGEST` at most.
    """
    given, asked = rb.given(), rb.parameters
    detected = detection(frames, given).at
    since = moment(asked.from_time) if asked.from_time else None
    until = moment(asked.to_time) if asked.to_time else confirmation(frames, given, detected).at
    if until is None or (since is not None and until <= since):
        until = rb.as_of
    until = min(until, rb.as_of)  # another machine's clock may be ahead
    if since is None:
        begun = [t for t in (detected, *(r.started for r in runs_of(frames)[:1])) if t is not None]
        since = max(min([*begun, until]) - pd.Timedelta(minutes=given.window_minutes), until - LONGEST)
    since = min(since, until - pd.Timedelta(minutes=1)).floor("min")
    until = min(until, since + LONGEST)
    minutes = math.ceil((until - since).total_seconds() / 60 / rb.number("postmortem.buckets"))
    return Span(since, until, 60 * minutes)


def onset_kept(frames: Frames) -> Moment:
    """Return the onset by the first response: the oldest event that waited, or a change of a flow."""
    told = next((r for r in runs_of(frames) if r.onset is not None), None)
    return Moment(told.onset, "run", told.name) if told else Moment()
