"""What section 6 reads."""

from __future__ import annotations

from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row
from tests.kit.steps import ago

QUIET = {"due": 2, "expired": 0, "oldest_due_s": 0.5, "oldest_expired_s": None, "waiting_retry": 0}


def flows(*per_ten: tuple[int, int]) -> pd.DataFrame:
    """Came and gone in each ten seconds, newest first."""
    return pd.DataFrame(
        [(i, came, gone) for i, (came, gone) in enumerate(per_ten)], columns=["tens_ago", "arrived", "gone"]
    )


STEADY = flows(*[(50, 50)] * 60)


def queues(**changes: Any) -> Frames:
    return {
        "notifications": pd.DataFrame([QUIET | changes]),
        "outbox": pd.DataFrame([QUIET]),
        "notification_flows": STEADY,
        "outbox_flows": STEADY,
    }


def tries(**delivery: int) -> Frames:
    zero = {"part": "delivery", "failed": 0, "waiting": 0, "due_again": 0, "most_tries": 1}
    return {"tries": row(**zero | delivery), "publish_tries": pd.DataFrame()}


def letters(*at: tuple[float, int]) -> pd.DataFrame:
    """Dead letters: seconds ago, and how many."""
    return pd.DataFrame(
        [("delivery", int(s // 10), n, ago(s)) for s, n in at], columns=["kind", "tens_ago", "n", "last"]
    )


def outbox_failed(n: int = 0, last: Any = None, newest: Any = None) -> pd.DataFrame:
    return row(n=n, newest=newest, last_failed=last)


def cohort(n: int, done: int, p95: float | None) -> pd.DataFrame:
    return row(n=n, done=done, p95=p95)


FRAMES: dict[str, Frames] = {
    "6.1": queues(),
    "6.2": queues() | tries() | {"letters": letters()},
    "6.3": {"letters": letters(), "outbox_failed": outbox_failed()},
    "6.4": {
        "publish": cohort(55, 55, 1.0),
        "accepted": cohort(100, 100, 1.0),
        "delivery": cohort(100, 100, 1.7),
        "outbox_before": row(p95=1.0),
        "delivery_before": row(p95=1.7),
    },
}
