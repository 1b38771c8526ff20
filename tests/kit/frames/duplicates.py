"""What sections 4.3 and 6 read."""

from __future__ import annotations

from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.packs.entitlement.checks import duplicates
from tests.kit.steps import NOW, failures, read_log


def index(**changes: Any) -> dict[str, Any]:
    usual = {
        "table_name": "processed_events", "index_name": "processed_events_pkey",
        "constraint_name": "processed_events_pkey", "is_primary": True, "is_unique": True, "valid": True,
        "ready": True, "immediate": True, "partial": False, "columns": "event_id",
    }  # fmt: skip
    return usual | changes


NO_CONSTRAINT: dict[str, Any] = {"constraint_name": None, "is_primary": None}
PLAIN = index(index_name="processed_events_processed_at_idx", **NO_CONSTRAINT, is_unique=False, columns="processed_at")


def look(**changes: Any) -> pd.DataFrame:
    usual = {
        "ts": NOW.isoformat(), "created": "c", "delivered": 100, "delivered_stream_seq": 98, "num_pending": 0,
        "num_ack_pending": 0, "num_redelivered": 0, "bound": True,
    }  # fmt: skip
    return pd.DataFrame([usual | changes])


HELD = pd.DataFrame(columns=["notification_id", "locked_by", "locked_at", "lease_until", "now", "attempt_count"])
FRAMES: dict[str, Frames] = {
    "4.2.1": {"key": pd.DataFrame([index(), PLAIN])},
    "4.2.2": {
        "duplicates": pd.DataFrame(columns=["event_id", "n", "first", "last", "sent", "waiting"]),
        "halves": pd.DataFrame(columns=["kind", "event_id", "notification_id", "at"]),
        "arrivals": pd.DataFrame({"minute": [NOW.floor("min")], "n": [60]}),
    },
    "4.2.3": {
        "first.consumer": look(),
        "consumer": look(ts=(NOW + pd.Timedelta(seconds=3)).isoformat(), delivered=115, delivered_stream_seq=113),
        "first.held": HELD,
        "held": HELD,
        **duplicates.log_frames(read_log(), 60, 60),
        "not_read": failures(),
    },
}
