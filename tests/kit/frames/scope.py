"""What section 2 reads."""

from __future__ import annotations

from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import scope
from tests.kit.steps import NOW, ago


def schema(name: str) -> Frames:
    """A schema as it should be."""
    known = scope.ENTITLEMENT if name == "entitlement" else scope.NOTIFICATION
    return {
        "tables": pd.DataFrame([{"table_name": t, "column_names": c} for t, c in known.tables.items()]),
        "indexes": pd.DataFrame(
            {"index_name": [*known.unique, *known.indexes.split()], "table_name": "t", "usable": True}
        ),
        "migrations": pd.DataFrame({"version": ["2", "1"], "success": [True, True]}),
    }


def broker_frames(**changes: Any) -> Frames:
    stream = {"exists": True, "subjects": "entitlement.events", "duplicate_window_s": 120.0, "messages": 9,
              "max_age_s": 0.0, "retention": "limits", "max_msgs": -1, "no_ack": False}  # fmt: skip
    consumer = {"exists": True, "bound": True, "push": True, "subject": "entitlement.events", "ack_wait_s": 10.0,
                "max_deliver": 10, "deliver_policy": "all", "ack_policy": "explicit", "pending": 0,
                "unacknowledged": 0}  # fmt: skip
    return {
        "server": row(version="2.15.1", user="runbook", clients=3, slow_consumers=0),
        "streams": pd.DataFrame([{"stream": "s", **stream, **{k: v for k, v in changes.items() if k in stream}}]),
        "consumers": pd.DataFrame(
            [{"stream": "s", "durable": "d", **consumer, **{k: v for k, v in changes.items() if k in consumer}}]
        ),
    }


def database_frames(**changes: Any) -> Frames:
    server = {"role": "runbook", "database": "d", "version": "16.4", "is_replica": False, "superuser": False,
              "monitor": True, "may_use_reserved": True, "read_only": "on", "track_commit_timestamp": "on"}  # fmt: skip
    rights = {"table_name": "notification.notifications", "may_read": True, "may_write": False}
    connections = {"max_connections": 100, "superuser_reserved": 3, "reserved": 2, "used": 10}
    return {
        name: pd.DataFrame([frame | {k: v for k, v in changes.items() if k in frame}])
        for name, frame in (("server", server), ("rights", rights), ("connections", connections))
    }


def clocks(*ahead_s: float, error_s: float = 0.02) -> pd.DataFrame:
    """How far PostgreSQL's and the broker's clocks are ahead."""
    against = {"clock": ["postgres", "nats"], "against": ["here", "postgres"]}
    return pd.DataFrame(against | {"ahead_s": ahead_s, "error_s": error_s})


FRAMES: dict[str, Frames] = {
    "2.1": schema("entitlement") | {"last": row(now=NOW, last_event=ago(3))},
    "2.2": {
        "outbox": row(now=NOW, due=2, oldest_due_s=0.4, last_published=ago(1)),
        "holders": pd.DataFrame({"locked_by": ["pod-1"], "n": [3], "since_claim_s": [0.2]}),
    },
    "2.3": broker_frames(),
    "2.4": schema("notification")
    | {
        "processed": row(now=NOW, last_processed=ago(1), processed_1m=300),
        "oldest": row(age_d=30.04),
        "sent": row(now=NOW, last_sent=ago(1), sent_1m=300, arrived_1m=300),
        "backlog": row(due=1, expired=0, oldest_due_s=0.4, oldest_expired_s=None, waiting_retry=0),
        "holders": pd.DataFrame({"locked_by": ["pod-1"], "n": [3], "since_claim_s": [0.2]}),
    },
    "2.5": database_frames(),
    "2.6": {"redis": row(version="7.2")},
    "2.7": {"clocks": clocks(0.01, 0.02)},
}
