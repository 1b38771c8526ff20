"""What step 5.1.1 reads."""

from __future__ import annotations

import json
from datetime import timedelta

import pandas as pd

from runbook_lib.book import catalog
from runbook_lib.checks.check import NOT_READ
from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import exceptions
from tests.kit.frames import recovery
from tests.kit.steps import NOW, make_given, read_log

AT = NOW.to_pydatetime()
PHRASES = catalog.load().phrases
RETRY, SENT = "notification retry scheduled id=7 attempt=1", "notification simulated send id=7 eventId=8"


def line(seconds_ago: float, message: str, level: str = "WARN", stack: str = "") -> str:
    at = (AT - timedelta(seconds=seconds_ago)).isoformat()
    return json.dumps(
        {"@timestamp": at, "severity": level, "message": message, "stack_trace": stack, "user_id": "alice"}
    )


def about(workload: str = "notification", minutes: int = 15) -> Frames:
    return {"about": row(workload=workload, name=workload, minutes=minutes), **failed()}


def failed(**parts: tuple[str, str, str]) -> Frames:
    rows = [{"part": p, "source": s, "why": w, "detail": d, "code": ""} for p, (s, w, d) in parts.items()]
    return {NOT_READ: pd.DataFrame(rows, columns=["part", "source", "why", "detail", "code"])}


def log(*lines: str, minutes: float = 15) -> Frames:
    return exceptions.log_frames(read_log(*lines), PHRASES, minutes, make_given().number)


def tables(failing: int = 0, gone: int = 50) -> Frames:
    """What 6.2 collects: in each ten seconds `gone` left; `failing` tries failed in the last twenty."""
    flows = recovery.flows(*[(50, gone)] * 60)
    tried = recovery.tries(failed=failing, waiting=failing)
    tried["publish_tries"] = tried["tries"].assign(part="publish")
    seen = {"notification_flows": flows, "outbox_flows": flows, "letters": recovery.letters()}
    return recovery.queues() | tried | seen


HEALTHY = log(
    *[line(s, text, "INFO") for s in range(890, 0, -2) for text in ("notification event accepted and queued", SENT)],
    line(1, "duplicate notification event skipped", "INFO"),
)
FAILING = log(*[line(s, RETRY) for s in range(90)], line(3, "boom", "ERROR"), line(99, "no further reconnect", "ERROR"))
