"""Over many rows: the planner's cost of each query of the runbook, and the time of `runbook event`."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg

from runbook_lib.book import queries
from runbook_lib.packs.entitlement.checks import given_up
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.postgres import Postgres
from runbook_lib.sources.settings import Budget
from runbook_lib.sources.source import ReadCost, SourceError

BUDGET = Budget()
EVENTS = 5

_EVENT = """
SELECT event_id FROM entitlement.outbox_events
WHERE status = 'PUBLISHED' AND published_at < now() - interval '10 minutes' ORDER BY published_at DESC LIMIT 1
"""
_CHANGE = "SELECT audit_id, occurred_at, user_id FROM entitlement.entitlement_audit LIMIT 1"


def plan_costs(database_url: str, admin_url: str, times: float) -> dict[str, float]:
    """Return the planner's cost of each question, were each table so many times as long, by its statistics alone.

    Pages stay as they are, so what is read in sequence would cost more.
    """
    grow = (
        "UPDATE pg_class SET reltuples = reltuples * %s WHERE reltuples > 0"
        " AND relnamespace IN ('entitlement'::regnamespace, 'notification'::regnamespace)"
    )
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(grow, [times])
        try:
            source, costs = _source(database_url), dict[str, float]()
            values = _parameters(source)
            for name in queries.names():
                text = queries.query(name).sql
                with suppress(SourceError, KeyError), source.snapshot() as db:
                    costs[name] = db._plan_cost(text, _used(text, values))
            return costs
        finally:
            admin.execute(grow, [1 / times])


def event_seconds(env: Mapping[str, str], admin_url: str, folder: Path) -> float:
    """Return how long `runbook event` takes for an event of the last day, from outside: the median of some."""
    lately = "SELECT event_id FROM notification.notifications WHERE created_at > now() - interval '1 day' LIMIT %s"
    with psycopg.connect(admin_url) as db:
        events = [str(event) for (event,) in db.execute(lately, [EVENTS])]
    own, took = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}, []
    for event in events:
        command = [sys.executable, "-m", "runbook_lib", "event", event, "--incident", "bench"]
        began = time.perf_counter()
        subprocess.run(command, env=own | dict(env), cwd=folder, capture_output=True, timeout=120)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _source(database_url: str) -> Postgres:
    return Postgres(database_url, "runbook/bench", BUDGET, ReadCost(Masker.of([database_url], "bench")))


def _parameters(source: Postgres) -> dict[str, Any]:
    """Return a value for each parameter that a question has."""
    with source.snapshot() as db:
        now = pd.Timestamp(*db._fetch_row("SELECT now()", {}))
        (event,) = db._fetch_row(_EVENT, {}) or (None,)
        audit, instant, user = db._fetch_row(_CHANGE, {}) or (None, now, "")
    return {
        "as_of": now,
        "since": now - pd.Timedelta(hours=1),
        "begins": [now - pd.Timedelta(seconds=15), now - pd.Timedelta(hours=1)],
        "ends": [now, now],
        "arrived_since": now - pd.Timedelta(hours=1),
        "created_since": now - pd.Timedelta(hours=2),
        "until": now - pd.Timedelta(minutes=1),
        "from": now - pd.Timedelta(minutes=10),
        "tried_since": now - pd.Timedelta(hours=1),
        "late_s": 30.0,
        "limit_s": 30.0,
        "schema": "notification",
        "event": event,
        "id": audit,
        "ids": [event] if event else [],
        "event_ids": [event] if event else [],
        "instants": [instant],
        "typed_id": "0" * 32,
        "typed_user": user,
        "low": now - pd.Timedelta(hours=1),
        "high": now,
        "with_open": True,
        "bucket_s": 60,
        "old_s": 10.0,
        "slow_s": 10.0,
        "few": 4.0,
        "share": 0.05,
        "tries_s": 420.0,
        "role": "miniserversystem",
        "schemas": ["entitlement", "notification"],
        "moment": now - pd.Timedelta(hours=1),
        "settled_s": 5.0,
        "fields": [*given_up.FIELDS],
        "seqs": [7],
        "max_rows": BUDGET.max_rows + 1,
    }


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _used(text: str, values: dict[str, Any]) -> dict[str, Any]:
    names = re.findall(r"(?<![:\w]):(\w+)\b", text)
    return {name: values[name] for name in names}
