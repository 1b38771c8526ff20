"""A target's ledger: every action that was begun on the target, and every approval that was used.

    <ledger>/<target>/actions.jsonl      two lines per action, hash-chained like an action log

Its folder is a setting of the target (`Target.ledger`), independent of an action's output. The rules of a target (limit
per hour, approvals) use the ledger.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from runbook_lib.checks.context import Context
from runbook_lib.model.finding import Text
from runbook_lib.store.archive import ACTION_LOG, Archive, entry_of

#: Names that are valid as a folder and as an argument of `runbook verify`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def ledger_of(rb: Context) -> Archive:
    """Return the ledger of the target; creates nothing."""
    name = rb.parameters.target
    fits = _NAME.fullmatch(name) and ".." not in name
    folder = name if fits else f"target-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return Archive(rb.target.ledger, folder, people=False)


def read_actions(rb: Context) -> pd.DataFrame:
    """Return the ledger's actions as the frame of `to_frame`. Raises OSError and UsageError."""
    return _drop_refused(to_frame(read_entries(ledger_of(rb))))


def read_all(rb: Context) -> pd.DataFrame:
    """Return the actions of the target's ledger and of the incident's own log. Raises OSError and UsageError.

    The ledger may have been unwritable when an action of this incident began.
    """
    return pd.concat([read_actions(rb), to_frame(read_entries(rb.archive))], ignore_index=True)


def _drop_refused(lines: pd.DataFrame) -> pd.DataFrame:
    """Drop the actions that did not begin because their incident's log could not be written."""
    return lines[~lines["id"].isin(lines.loc[lines["result"] == "refused", "id"])]


def read_entries(archive: Archive) -> list[dict[str, Any]]:
    """Return the entries of an archive's action log; invalid lines are left out. Raises OSError."""
    return [entry for line in archive.raw(ACTION_LOG) if (entry := entry_of(line))]


def to_frame(entries: list[dict[str, Any]]) -> pd.DataFrame:
    """Return entries of an action log as a frame: id, result, time (UTC), job, name (of the workload)."""
    named = [e | {"name": w.get("name") if isinstance(w := e.get("what"), dict) else ""} for e in entries]
    rows = pd.DataFrame(named, columns=["id", "result", "time", "job", "name"], dtype=object).astype(str)
    return rows.assign(time=pd.to_datetime(rows["time"], utc=True, errors="coerce", format="ISO8601"))


def begin(rb: Context, entry: dict[str, Any], refused: Callable[[pd.DataFrame], Text | None]) -> Text | None:
    """Add an action before it begins; return the refusal, if any, and then add nothing.

    `refused` gets the ledger's actions at the moment of the write, so that of two concurrent actions the second sees
    the first. Raises OSError and UsageError.
    """
    ledger, why = ledger_of(rb), list[Text | None]()

    def stops(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
        why[:] = [refused(_drop_refused(to_frame(entries)))]
        return entry if why[0] else None

    ledger.make()
    ledger.add_line(ACTION_LOG, entry, stops)
    return why[0]


def end(rb: Context, entry: dict[str, Any]) -> None:
    """Add the line with which an action ended. Raises OSError and UsageError."""
    ledger_of(rb).add_line(ACTION_LOG, entry, lambda _: None)


def latest_time(rb: Context, log: pd.DataFrame) -> pd.Timestamp:
    """Return the present, or the newest logged time if that is later. Raises OSError."""
    own = to_frame(read_entries(rb.archive))
    moments: list[pd.Timestamp] = [pd.Timestamp.now("UTC"), *log["time"].dropna(), *own["time"].dropna()]
    return max(moments)
