"""What section 3 reads."""

from __future__ import annotations

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row
from tests.kit.steps import NOW


def per_minute(*newest_first: int, slow: int = 0) -> pd.DataFrame:
    minutes = [NOW.floor("min") - pd.Timedelta(minutes=i + 1) for i in range(len(newest_first))]
    return pd.DataFrame({"minute": minutes, "n": newest_first, "slow": slow})


def affected(**places: tuple[int, int, float]) -> pd.DataFrame:
    rows = [(place, *seen) for place, seen in places.items()]
    total = ("all", sum(r[1] for r in rows), sum(r[2] for r in rows), max((r[3] for r in rows), default=None))
    return pd.DataFrame([*rows, total], columns=["place", "events", "users", "oldest_s"])


def impact(**changes: pd.DataFrame) -> Frames:
    usual = {
        "affected": affected(),
        "outbox": row(due=0, failed=0, oldest_due_s=0.0),
        "outbox_age": row(n=0, p95=None, oldest_s=None),
        "publish_delay": row(n=1500, p95=1.0),
        "notifications": row(due=0, expired=0),
        "delivered": row(n=1500, p95=1.7, longest=3.0),
        "given_up": row(events=0, users=0),
        "given_up_messages": row(n=0),
        "sent": per_minute(*[300] * 14),
        "dead": per_minute(),
        "published": per_minute(*[300] * 14),
        "processed": per_minute(*[300] * 14),
        "created": per_minute(*[300] * 14),
    }
    return usual | changes
