"""What a person would type who knows the columns, and not the indexes: `obvious.sql`."""

from __future__ import annotations

import re
from pathlib import Path

#: Questions that are the obvious query themselves, and why there is no other.
ITSELF = {
    "notifications/count_by_status": "the runbook's own wording, behind the cost gate",
    "notifications/older_than_10min": "the runbook's own wording, behind the cost gate",
    "notifications/processing_oldest": "the runbook's own wording, behind the cost gate",
    "journey/by_trace": "no trace has an index, behind the cost gate",
    "consistency/sent_dirty": "the runbook's own wording, behind the cost gate",
    "consistency/unprocessed_day": "a whole day has no cheaper form, behind the cost gate",
    "consistency/audit_without_event_day": "the audit has no index on the time, behind the cost gate",
    "consistency/dead_letter_not_failed": "dead letters have no index on the time, behind the cost gate",
    "notifications/failed_per_minute": "dead letters have no index on the time, behind the cost gate",
    "database/row_locks": "reads no row while nobody holds a transaction's id, and so does the obvious query",
    "processed/nats_dlq": "dead letters have no index on the time, behind the cost gate",
    "processed/per_minute": "the index on processed_at serves the obvious query too",
}

_SECTIONS = re.split(
    r"^-- question: (\S+)\n", Path(__file__).with_suffix(".sql").read_text("utf-8"), flags=re.MULTILINE
)
QUERIES = dict(zip(_SECTIONS[1::2], _SECTIONS[2::2], strict=True))
