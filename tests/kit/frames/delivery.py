"""What sections 4.1 and 4.2 read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.evidence.sessions import Sessions
from tests.kit.steps import NOW, ago

TIMEOUT = "Timeout or no response waiting for NATS JetStream server"


def look(**backlog_values: Any) -> Frames:
    """One look at an idle worker, with what is given on top."""
    zero = dict.fromkeys(("due", "waiting_retry", "leased", "expired", "without_lease", "overdue_10min"), 0)
    oldest = dict.fromkeys(("oldest_due_s", "oldest_expired_s"))
    return {
        "backlog": row(**{"now": NOW} | zero | oldest | backlog_values),
        "activity": row(
            now=NOW, last_claim=pd.NaT, last_sent=ago(1), last_try=pd.NaT, sent_1m=300, arrived_1m=300, workers=None
        ),
        "attempts": tried((0, 1, 0)),
        "held": held(),
    }


def tried(*rows: tuple[int, int, int]) -> pd.DataFrame:
    """How many tries, how many rows have had so many, and how many of these wait for the next."""
    return pd.DataFrame(rows, columns=["attempt_count", "n", "waiting"])


def held(*rows: tuple[str, str, float, float]) -> pd.DataFrame:
    """Rows in PROCESSING: id, worker, seconds since the claim, seconds to the lease's end."""
    return pd.DataFrame(
        [
            {"now": NOW, "notification_id": i, "locked_by": w, "locked_at": ago(since), "lease_until": ago(-left),
             "attempt_count": 0}
            for i, w, since, left in rows
        ],
        columns=["now", "notification_id", "locked_by", "locked_at", "lease_until", "attempt_count"],
    )  # fmt: skip


def later(frames: Frames, **changes: pd.DataFrame) -> Frames:
    """Both moments, the second the same as the first but for what is given."""
    return frames | {f"first.{n}": frames[n] for n in ("activity", "attempts", "held")} | changes


def silent(frames: Frames, seconds: float) -> Frames:
    return frames | {"activity": frames["activity"].assign(last_sent=ago(seconds))}


def pool(service: str, newest_s: float) -> Frames:
    """What the database shows of both services' sessions, one of which said its last word so long ago."""
    rows = [
        Sessions(s, 10, 0, 0, 600.0, newest, newest, 0, sees_others=True)
        for s, newest in (("entitlement", 0.4), ("notification", 0.4), (service, newest_s))
    ]
    return {
        "service_sessions": pd.DataFrame([vars(row) for row in rows]),
        "transactions": pd.DataFrame({"commits": [100, 105], "rollbacks": [0, 0]}),
    }


def runs(side: str) -> Frames:
    """What both services' sessions show at two looks 1.5 s apart: the loop of that side has spoken in between."""
    polls = {"entitlement": 0.4 if side == "relay" else 3.2, "notification": 0.4 if side == "delivery" else 3.2}
    rows = [Sessions(s, 10, 0, 0, 600.0, 0.4, poll, 0, sees_others=True) for s, poll in polls.items()]
    return {
        "service_sessions": pd.DataFrame([vars(row) for row in rows]),
        "transactions": pd.DataFrame({"commits": [100, 105], "rollbacks": [0, 0], "at": [ago(1.5), NOW]}),
    }


def consumer(**changes: Any) -> Frames:
    values = {
        "bound": True, "num_pending": 0, "num_ack_pending": 0, "max_ack_pending": 1000, "num_redelivered": 0,
    } | changes  # fmt: skip
    return {
        "consumer": pd.DataFrame([values]),
        "clients": pd.DataFrame(
            [{"cid": 5, "name": None, "ip": "10.0.0.7", "port": 4000, "start": ago(600), "user": "app",
              "pending_bytes": 0, "bound": values["bound"]}]
        ),
        "closed": closed(),
        "oldest": pd.DataFrame([{"seq": 1, "age_s": 1.0}]),
        "activity": pd.DataFrame([{"now": NOW, "last_processed": ago(1), "processed_1m": 300}]),
        "unprocessed": events(),
    }  # fmt: skip


def closed(*rows: tuple[str, int]) -> pd.DataFrame:
    return pd.DataFrame(
        [("app", "10.0.0.7", reason, n, n, 1.0) for reason, n in rows],
        columns=["client", "ip", "reason", "n", "last_minute", "last_s_ago"],
    )


def events(*seconds: float) -> pd.DataFrame:
    return pd.DataFrame(
        [(str(i), "EntitlementGranted", ago(s + 1), ago(s)) for i, s in enumerate(seconds)],
        columns=["event_id", "event_type", "created_at", "published_at"],
    )


def outbox(errors: list[tuple[str, str, int]] | None = None, **changes: Any) -> Frames:
    zero = dict.fromkeys(("due", "waiting_retry", "leased", "expired", "failed", "tried"), 0)
    values = {
        "now": NOW, **zero, "oldest_due_s": None, "oldest_expired_s": None, "max_attempt_count": 0,
        "last_claim": pd.NaT, "last_published": ago(1), "published_1m": 300, "arrived_1m": 300,
    } | changes  # fmt: skip
    delay = pd.DataFrame(
        [{"n": 900, "p50": 0.5, "p95": 0.9, "p99": 1.0, "longest": 1.2, "negative": 0, "last_published": ago(1)}]
    )
    return {
        "backlog": pd.DataFrame([values]),
        "delay": delay,
        "delay_now": delay,
        "errors": pd.DataFrame(
            [(s, e, n, 1, ago(20), ago(10)) for s, e, n in errors or ()],
            columns=["status", "last_error", "n", "attempts", "oldest", "newest"],
        ),
        "unprocessed": events(),
        "broker": pd.DataFrame([{"answers": True, "last_seq": 9}]),
    }  # fmt: skip


def sessions(used: int = 5, sees: bool = True, **frames: pd.DataFrame) -> Frames:
    empty = pd.DataFrame()
    return {
        "connections": pd.DataFrame(
            [{"max_connections": 40, "superuser_reserved": 3, "reserved": 2, "sees_others": sees, "used": used}]
        ),
        "sessions": pd.DataFrame({"application": ["report"], "state": ["idle"], "n": [used]}),
        "blocked": empty, "blockers": empty, "long_transactions": empty, "row_locks": empty, "application": empty,
    } | frames  # fmt: skip


def holders(*rows: tuple[str | None, int, int, float]) -> pd.DataFrame:
    """Worker, rows, of them expired, for how long."""
    return pd.DataFrame(
        [
            {"now": NOW, "locked_by": w, "n": n, "expired": e, "without_lease": 0, "expired_for_s": s or None,
             "last_claim": ago(30 + s), "since_claim_s": 30 + s, "shortest_lease_s": 30.0, "longest_lease_s": 30.0,
             "furthest_s": -s}
            for w, n, e, s in rows
        ]
    )  # fmt: skip


WAITING = pd.DataFrame({"piece": 0, "bucket": [2], "came": [3], "gone": [3], "least": [0], "most": [3]})
SHAPES: dict[str, Callable[[], Frames]] = {
    "4.1.1": lambda: later(silent(look(due=9, oldest_due_s=20.0), 90)) | pool("notification", 90) | {
        "by_status": pd.DataFrame({"status": ["SENT"], "count": ["≈ 9"]}),
        "ages": pd.DataFrame({"bucket": [3], "n": [2]}), "older_than_10min": pd.DataFrame({"count": [1]}),
        "waiting.notifications": WAITING,
        "letters": pd.DataFrame({"minute": [NOW.floor("min")], "n": [3]})},
    "4.1.2": lambda: consumer() | {"oldest": pd.DataFrame([{"seq": 1, "age_s": 3.0}])},
    "4.1.3": lambda: outbox([("PENDING", TIMEOUT, 5)], due=4, tried=3) | {
        "waiting.outbox": WAITING,
        "delays": pd.DataFrame({"minute": [NOW.floor("min")], "n": [3], "p50": [0.5], "p95": [1.0]})},
    "4.1.4": sessions,
    "4.3.1": lambda: {"holders": holders(("w", 2, 1, 3.0)),
        "leases": pd.DataFrame({"from_s": [-5, 25, None], "n": [1, 1, 1]})},
    "4.3.2": lambda: look() | {"holders": holders(("w", 2, 1, 3.0))},
    "4.3.3": lambda: {"first": held(("a", "w", 1, 29)), "second": held(("a", "w", 1, 29))},
    "4.3.4": lambda: {"holders": holders(("w", 2, 1, 3.0)),
        "batches": pd.DataFrame({"started": [ago(3)], "exact_s": [0.1], "cycle_s": [1.0], "next_waited_s": [2.0]})},
    "4.3.5": lambda: {"worker": pd.DataFrame({"tracked": [False], "held": [1], "claim_ahead_s": [-1.0]})},
}  # fmt: skip
