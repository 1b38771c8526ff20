"""Every question of the runbook under EXPLAIN (ANALYZE, BUFFERS), beside the obvious query."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
import psycopg

from runbook_lib.book import queries
from runbook_lib.book.queries import Query
from runbook_lib.packs.entitlement.checks import given_up
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.postgres import Postgres, Snapshot
from runbook_lib.sources.settings import Budget
from runbook_lib.sources.source import ReadCost, SourceError

from . import obvious

REPETITIONS = 3
#: The budget of the runbook, except that an obvious query may take as long as it does.
BUDGET = Budget(statement_timeout_ms=60_000)
SLOW_MS = 500.0  # an obvious query slower than this is repeated once only

_EVENT = """
SELECT event_id FROM entitlement.outbox_events
WHERE status = 'PUBLISHED' AND published_at < now() - interval '10 minutes' ORDER BY published_at DESC LIMIT 1
"""
_CHANGE = "SELECT audit_id, occurred_at, user_id FROM entitlement.entitlement_audit LIMIT 1"
_LARGE = {"notifications", "outbox_events"}


@dataclass(frozen=True)
class Cost:
    """What one query cost: median of the warm repetitions, 8 kB buffers touched, large tables read in sequence."""

    ms: float
    buffers: int
    scanned: frozenset[str]


@dataclass(frozen=True)
class Row:
    """One question; `tuned` is None where the cost gate refuses it, or it failed with `error`."""

    query: Query
    plan_cost: float
    refused: bool
    tuned: Cost | None
    obvious: Cost | None
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """Tuned buffers by obvious buffers."""
        if self.tuned is None or self.obvious is None:
            return None
        return self.tuned.buffers / max(self.obvious.buffers, 1)


def measure(database_url: str, names: Iterable[str] | None = None, *, besides: bool = True) -> Iterator[Row]:
    """Ask those named, or all, and the obvious ones beside them; each with the settings and the role of the runbook."""
    source = _source(database_url)
    values = _parameters(source)
    for name in queries.names() if names is None else names:
        q = queries.query(name)
        try:
            yield _row(source, q, values, obvious.QUERIES.get(q.name) if besides else None)
        except (SourceError, KeyError) as e:  # a KeyError: a parameter that is not among the values
            yield Row(q, 0.0, False, None, None, str(e.args[0]))


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


def _row(source: Postgres, q: Query, values: dict[str, Any], beside: str | None) -> Row:
    with source.snapshot() as db:
        plan_cost = db._plan_cost(q.sql, _used(q.sql, values))
        refused = q.cost == "scan" and plan_cost > BUDGET.max_plan_cost
        tuned: list[Cost] = []
        typed: list[Cost] = []
        for _ in range(REPETITIONS + 1):  # the first warms the cache
            if not refused:
                tuned.append(_explain(db, q.sql, values))
            if beside and not refused and not (len(typed) > 1 and typed[-1].ms > SLOW_MS):
                typed.append(_explain(db, beside, values))
    return Row(q, plan_cost, refused, _median(tuned), _median(typed))


def _explain(db: Snapshot, text: str, values: dict[str, Any]) -> Cost:
    explained = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {text}"
    ((answer,),) = db._fetch_row(explained, _used(text, values))
    plan = answer["Plan"]
    scanned = {n["Relation Name"] for n in _nodes(plan) if n["Node Type"] == "Seq Scan"} & _LARGE
    return Cost(answer["Execution Time"], plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], frozenset(scanned))


def _median(costs: list[Cost]) -> Cost | None:
    if not costs:
        return None
    warm = costs[1:] or costs
    return Cost(statistics.median(c.ms for c in warm), warm[-1].buffers, warm[-1].scanned)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _used(text: str, values: dict[str, Any]) -> dict[str, Any]:
    names = re.findall(r"(?<![:\w]):(\w+)\b", text)
    return {name: values[name] for name in names}
