"""Alerts and jobs for a receiver's journal."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd

from runbook_lib.receiver.alert import Alert
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.work import IncidentState, Job
from runbook_lib.sources.settings import Route, Settings

GONE = {"database_url": "postgresql://u@127.0.0.1:1/x"}
CONFIG = Settings(targets={"main": GONE, "other": GONE}, routes=[Route(alertname="Db", sections=["4.2"])])
WINDOW_S = CONFIG.receiver.window_minutes * 60


def firing(name: str = "Late", fingerprint: str = "1", group: str = "g", ended: bool = False, **labels: str) -> Alert:
    return Alert(name, not ended, fingerprint, {"alertname": name} | labels, "slow", pd.Timestamp(0, tz="UTC"), group)


def firing_since(wall: float) -> Alert:
    return replace(firing(), starts_at=pd.Timestamp(wall, unit="s", tz="UTC"))


def resolved(name: str = "Late", fingerprint: str = "1") -> Alert:
    return firing(name, fingerprint, ended=True)


def verdict(status: str = "CRITICAL", stuck_at: str | None = "relay") -> dict[str, Any]:
    return {"status": status, "stuck_at": stuck_at, "failure_modes": []}


def taken(journal: Journal, now: float, *busy: str) -> Job:
    job = journal.next_job(now, busy)
    assert job is not None
    return job


def done(journal: Journal, now: float, status: str = "CRITICAL", **more: Any) -> Job:
    job = taken(journal, now)
    journal.conclude(job, verdict(status), now, **more)
    return job


def incident_of(journal: Journal, id_: str) -> IncidentState | None:
    return next((i for i in journal.incidents() if i.id == id_), None)


def messages_of(journal: Journal, where: str = "true") -> list[dict[str, Any]]:
    """The messages of a journal, with what they say."""
    question = f"SELECT * FROM work WHERE kind = 'message' AND {where} ORDER BY id"
    return [{**row, **json.loads(row["about"])} for row in journal._query(question)]


#: Where a verdict is told.
TOLD: dict[str, Any] = {"places": ["p"], "message": ("title", "body")}
