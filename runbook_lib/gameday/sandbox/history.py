"""Past traffic with honest timestamps, written in seconds and the same for the same seed.

Every hop agrees with the next: what the audit knows the outbox knows, what was published was processed, what
was processed was notified and sent. (Stored API answers are left out: nobody repeats those requests.)
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from .entitlement import PUBLISHED_TTL, STOCK_KEEPING_UNITS, USERS

STANDSTILL = timedelta(minutes=10)
TABLES = (
    *("entitlement.entitlements", "entitlement.entitlement_audit", "entitlement.outbox_events"),
    *("notification.processed_events", "notification.notifications"),
)
_QUIET = 5.0  # the last event is this old: everything before it has had the time to be sent
_TRAFFIC = Path(__file__).with_name("history.sql")


def backfill(
    connection: psycopg.Connection[Any],
    now: datetime,
    hours: float = 1.0,
    rate: float = 1.0,
    seed: int = 1,
    stopped: str = "",
) -> int:
    """Replace the tables by `hours` of traffic at `rate` events per second, ending now; return the number of events.

    With `stopped` ("relay", "subscriber" or "worker") that hop did nothing during the last ten minutes.
    """
    dice = random.Random(seed)
    n = int((hours * 3600 - _QUIET) * rate)
    values = {
        "n": n,
        "rate": rate,
        "now": now.timestamp(),
        "start": now.timestamp() - hours * 3600,
        "seed": f"{seed} ",
        "users": USERS,
        "skus": list(STOCK_KEEPING_UNITS),
        "relay_phase": dice.random(),
        "worker_phase": dice.random(),
        "stopped": stopped,
        "standstill": STANDSTILL.total_seconds(),
        "published_ttl": PUBLISHED_TTL.total_seconds(),
    }
    with connection.transaction():
        connection.execute(f"TRUNCATE {', '.join(TABLES)}")
        connection.execute("SELECT setseed(%s)", [dice.random()])
        psycopg.ClientCursor(connection).execute(_TRAFFIC.read_bytes(), values)
    # Without statistics the first plans of the pods and of the runbook would be those for empty tables.
    with connection.transaction():
        connection.execute("SET LOCAL default_statistics_target = 20")
        connection.execute(f"ANALYZE {', '.join(TABLES)}")
    return n
