"""What the receiver's journal holds: incidents, jobs and messages."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Kind = Literal["firing", "resolved"]
Item = TypeVar("Item", "Job", "Notice")


@dataclass(frozen=True)
class Accepted:
    """The result of accepting a body's alerts."""

    jobs: tuple[int, ...]
    """The ids of the new jobs."""
    counted: int
    """The number of alerts that were known already."""


@dataclass(frozen=True)
class Job:
    """A run of sections for an incident; times in seconds since 1970."""

    id: int
    key: str
    incident: str
    kind: Kind
    sections: tuple[str, ...]
    target: str
    parameters: dict[str, Any]
    alert: str
    """The alert in one line, for the incident's timeline."""
    rerun: bool
    """Whether the sections are run once more, because the first verdict may change."""
    recurred: bool
    """Whether this is the first run of a further outage, after the recovery had been checked."""
    state: str
    attempts: int
    made: float
    started: float | None
    ended: float | None
    problem: str


@dataclass(frozen=True)
class Notice:
    """A message to one notify URL."""

    id: int
    incident: str
    place: str
    """The digest of the notify URL (`notify.urls_by_digest`)."""
    title: str
    body: str
    status: str
    attempts: int
    made: float
    thread: str
    """The id of the message there that it replies to; "" for the incident's first."""


@dataclass(frozen=True)
class IncidentState:
    """An incident with its jobs, as the journal holds it."""

    id: str
    alert: str
    target: str
    opened: float
    closed: float | None
    verdict: dict[str, Any] | None
    """The last verdict, as from `record.verdict`; None before the first."""
    alerts: int
    repeats: int
    jobs: tuple[Job, ...]
    seal: str
    """The dossier's last seal; "" before the first."""


def from_row(item: type[Item], row: sqlite3.Row) -> Item:
    """Return the job or the message of a row of the work."""
    values = {**row, **json.loads(row["about"])}
    if item is Job:
        flags = {name: bool(row[name]) for name in ("rerun", "recurred")}
        values |= flags | {"sections": tuple(row["sections"].split(","))}
    return item(**{name: values[name] for name in item.__dataclass_fields__})


def incident_from_rows(row: sqlite3.Row, jobs: list[sqlite3.Row]) -> IncidentState:
    """Return the incident of a row of `incident_states`, and of the rows of its jobs."""
    plain = {name: row[name] for name in IncidentState.__dataclass_fields__ if name != "jobs"}
    verdict = json.loads(row["verdict"]) if row["verdict"] else None
    return IncidentState(**plain | {"verdict": verdict, "jobs": tuple(from_row(Job, job) for job in jobs)})
