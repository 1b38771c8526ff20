"""What section 4.4 reads."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.checks import given_up
from runbook_lib.sources.jetstream import Message, headers_of
from tests.kit.steps import NOW, ago, failures

SHAPE = " ".join(f"{name}:{'number' if name == 'version' else 'string'}" for name in given_up.FIELDS)
TIMEOUT = "Timeout or no response waiting for NATS JetStream server"
PARSE = "outbox payload parse failure"


def letter(seconds: float, error: str = "receiver answered 503", user: str | None = None, **values: Any) -> Any:
    usual = {
        "event_id": str(uuid.uuid4()),
        "source": "purchase",
        "event_type": wire.GRANTED,
        "shape": SHAPE,
        "total": 1,
    }
    return {"created_at": ago(seconds), "error_message": error, "user_id": user} | usual | values


def letters(*rows: Any) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(letter(0)))
    frame["total"] = len(frame)
    return frame


def burst(error: str, start: float, n: int = 30, user: str | None = None) -> list[Any]:
    return [letter(start - i, error, user or f"user-{i}") for i in range(n)]


def sends(first: float, last: float) -> pd.DataFrame:
    minutes = pd.date_range(ago(first).floor("min"), ago(last).floor("min"), freq="min")
    return pd.DataFrame({"minute": minutes, "n": 300})


def message(
    body: bytes, headers: str = "NATS/1.0\r\nNats-Msg-Id: x\r\nevent_type: EntitlementGranted\r\n\r\n"
) -> Message:
    return Message(7, datetime(2025, 1, 31, 3, tzinfo=UTC), "entitlement.events", headers_of(headers), body)


def failed(*rows: tuple[float, str, str]) -> pd.DataFrame:
    """FAILED outbox events: seconds ago, error, shape of the payload."""
    columns = ["event_id", "failed_at", "exact", "created_at", "last_error", "attempt_count", "event_type", "source"]
    frame = pd.DataFrame(
        [
            (str(i), ago(s), True, ago(s), e, 10, wire.GRANTED, "purchase", shape)
            for i, (s, e, shape) in enumerate(rows)
        ],
        columns=[*columns, "shape"],
    )
    return frame.assign(total=len(frame))


def advisories(*rows: tuple[float, int]) -> pd.DataFrame:
    return pd.DataFrame(
        [(i, ago(s), seq) for i, (s, seq) in enumerate(rows)], columns=["advisory_seq", "time", "stream_seq"]
    )


def recorded(*rows: tuple[float, int]) -> pd.DataFrame:
    return pd.DataFrame([(seq, ago(s)) for s, seq in rows], columns=["stream_seq", "created_at"])


NO_MESSAGES = pd.DataFrame(columns=[*given_up.classify(message(b""))])
NOBODY = pd.DataFrame(columns=["event_id", "processed_at"])
OLDER = pd.DataFrame([("outbox", 0), ("delivery", 3), ("broker", 0)], columns=["store", "n"])
READ: Frames = {
    "terminated": advisories(),
    "exhausted": advisories(),
    "messages": NO_MESSAGES,
    "recorded": recorded(),
    "processed": NOBODY,
    "older": OLDER,
    "not_read": failures(),
}
QUIET: Frames = {
    "backlog": row(due=2, expired=0, leased=0, waiting_retry=0, oldest_due_s=0.5, oldest_expired_s=None),
    "activity": row(now=NOW, last_claim=ago(1), last_sent=ago(1), last_try=None, sent_1m=300),
    "attempts": pd.DataFrame([(0, 3, 0)], columns=["attempt_count", "n", "waiting"]),
    "held": pd.DataFrame(columns=["now", "notification_id", "locked_by", "locked_at", "lease_until", "attempt_count"]),
    "retrying": row(n=0, users=0, types=0, top_user_n=None, top_type_n=None),
    "tries": row(part="delivery", failed=0, waiting=0, due_again=0),
    "errors": pd.DataFrame(columns=["status", "last_error", "n", "attempts", "oldest", "newest"]),
    "outbox": row(now=NOW, due=1, expired=0, last_published=ago(1), published_1m=300),
}
LETTERS = {"letters": letters(), "outbox_failed": failed(), "sent_per_minute": sends(900, 0)}
FRAMES: dict[str, Frames] = {
    "4.4.1": READ | LETTERS | {"given_up": recorded().assign(total=0), "errors": QUIET["errors"]},
    "4.4.2": READ | LETTERS | QUIET,
    "4.4.3": READ
    | {
        "per_bucket": pd.DataFrame(columns=["store", "ago", "n", "last", "exact"]),
        "letters.asked": pd.DataFrame({"step": ["5.3.4"]}),
        "letters.failed": pd.DataFrame(columns=["notification_id"]),
        "letters.letters": pd.DataFrame(columns=["dlq_id"]),
        "letters.scope": row(days=30),
        "lost.asked": pd.DataFrame({"step": ["5.3.2"]}),
        "lost.consumer": row(pending=0, unacknowledged=0, bound=True),
        "lost.unprocessed": pd.DataFrame(columns=["event_id"]),
        "lost.scope": row(hours=None, refused=False),
        "lost.given_up": row(n=0, last=None),
        "lost.failed": failures(),
    },
}
LACKING = SHAPE.replace("source_id:string", "source_id:empty")
BUSY: dict[str, Frames] = {
    "4.4.1": {
        "outbox_failed": failed((30, PARSE, "payload:array")),
        "terminated": advisories((9, 4)),
        "letters": letters(letter(9, "bad request", "bob", shape=LACKING)),
    },
    "4.4.2": {
        "letters": letters(*burst("timed out", 100)),
        "outbox_failed": failed((30, TIMEOUT, SHAPE)),
        "exhausted": advisories((9, 4)),
    },
    "4.4.3": {
        "exhausted": advisories((90, 4), (5, 6)),
        "recorded": recorded((5, 6)),
        "per_bucket": row(store="delivery", ago=3, n=9, last=ago(200), exact=True),
    },
}
