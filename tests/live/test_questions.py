"""Each query on a real server: its answer has what its kinds of rows declare, on no rows and on many."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pandas as pd
import psycopg
import pytest

from runbook_lib.book import pack, queries
from runbook_lib.gameday.sandbox import history
from runbook_lib.model.finding import Window, read_cost
from runbook_lib.packs.entitlement.checks import given_up
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.answers import Answers
from runbook_lib.sources.postgres import Postgres
from runbook_lib.sources.settings import Budget
from runbook_lib.sources.source import ReadCost
from tests.kit.rows import assert_fits, kinds_of_rows
from tests.kit.servers import Servers
from tests.kit.steps import UNPROCESSED, events, lock_wait, locked

NAMES = queries.names()


#: What neither wheel nor image brings; tests/test_postgres_surroundings.py asks a server that does.
BY_EXTENSION = {"database/statements"}

#: What has no row here: a transaction that has been open for seconds, an event whose key the table does not hold to,
#: a table in partitions (tests/test_postgres_surroundings.py has one), a setting of the role, copies of a change.
UNSEEN = {
    "changed/settings",
    "consistency/surplus",
    "database/long_transactions",
    "database/row_locks",
    "scope/partitions",
}


def parameters(now: pd.Timestamp) -> dict[str, Any]:
    """What some of the questions are asked with, beside what is bound for each."""
    hour = now - pd.Timedelta(hours=1)
    return {
        "moment": hour, "created_since": hour, "arrived_since": hour, "begins": [hour], "ends": [now],
        "low": hour, "high": now, "until": now, "late_s": 10.0, "waited": 0.02,
        "slow_s": 10.0, "few": 4.0, "limit_s": 30.0, "old_s": 10.0, "tries_s": 420.0, "bucket_s": 60, "share": 0.05,
        "tried_since": now - pd.Timedelta(seconds=20), "fields": list(given_up.FIELDS), "schema": "notification",
        "event": str(uuid4()), "seqs": [7], "with_open": True, "role": "miniserversystem",
        "schemas": ["entitlement", "notification"], "tables": None, "names": ["entitlement", "idempotency_keys"],
        "id": str(uuid4()), "ids": [], "settled_s": 5.0, "instants": [], "typed_id": "", "typed_user": "",
    }  # fmt: skip


def of_what_is_there(db: psycopg.Connection) -> dict[str, Any]:
    """What the others are asked with, as far as there are rows."""
    asked: dict[str, Any] = {"event_ids": [str(i) for (i,) in db.execute(
        "SELECT event_id FROM notification.processed_events LIMIT 9")]}  # fmt: skip
    change = db.execute(
        "SELECT audit_id, occurred_at, user_id, payload->>'trace_id' FROM entitlement.entitlement_audit JOIN"
        " entitlement.outbox_events ON created_at = occurred_at WHERE payload->>'trace_id' <> '' LIMIT 1"
    ).fetchone()
    letter = db.execute("SELECT event_id FROM notification.notification_dlq LIMIT 1").fetchone()
    if change and letter:
        asked |= {"id": str(change[0]), "instants": [change[1]], "typed_user": change[2], "typed_id": change[3]}
        asked["ids"] = [*asked["event_ids"], str(letter[0])]
    return asked


def fill(db: psycopg.Connection) -> None:
    """An hour of traffic, and of what goes wrong a little of each kind."""
    history.backfill(db, datetime.now(UTC), hours=1.0, rate=0.5)
    events(db, 3, 40, outbox="PENDING", publish_tries=2, error="nats: timeout", publish_again=5.0, **UNPROCESSED)
    events(db, 2, 50, outbox="FAILED", publish_tries=10, error="outbox payload parse failure", **UNPROCESSED)
    events(db, 3, 30, status="PROCESSING", by="pod-1", locked=20.0, over=2.0)
    events(db, 3, 30, status="PENDING", tries=1, again=3.0)
    events(db, 2, 300, status="FAILED", tries=10, dead=20.0)
    events(db, 2, 200, **UNPROCESSED)
    db.execute("INSERT INTO notification.notification_nats_dlq (stream_seq, created_at) VALUES (7, now())")
    db.execute(
        "UPDATE entitlement.outbox_events SET status = 'IN_FLIGHT', locked_by = 'entitlement-1', locked_at = now(),"
        " lease_until = now() + interval '30 s' WHERE event_id = (SELECT min(CAST(event_id AS text)) FROM"
        " entitlement.outbox_events WHERE status = 'PENDING')::uuid"
    )
    events(db, 2, 100, status="FAILED", tries=10)
    events(db, 2, 110, status="PENDING", tries=10, again=0.0, dead=20.0)
    events(db, 2, 120, processed=False)
    events(db, 2, 130, outbox=None, **UNPROCESSED)
    events(db, 2, 140, by="pod-1", locked=20.0, over=2.0)
    events(db, 2, 150, status="PENDING", by="pod-1", locked=20.0, over=2.0)
    events(db, 1, -7200, audit=False, outbox=None)  # of another system, and ahead
    db.execute("UPDATE notification.notifications SET created_at = now() WHERE occurred_at > now()")
    db.execute(
        "INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at, payload_json,"
        " status, created_at, sent_at) SELECT gen_random_uuid(), event_id, user_id, type, occurred_at, payload_json,"
        " status, created_at + interval '2 minutes', sent_at FROM notification.notifications"
        " WHERE status = 'SENT' AND sent_at < now() - interval '5 minutes' ORDER BY created_at DESC LIMIT 3"
    )
    db.execute(
        "INSERT INTO runbook.redriven"
        " (store, decision, state, event_id, incident, action, approved_by, reason, archived)"
        " SELECT 'delivery', 'redrive', 'waiting', event_id, 'A', 'a', 'me', 'why', '{}'"
        " FROM notification.notification_dlq"
    )
    db.execute("ANALYZE")


@pytest.mark.parametrize("full", [False, True])
def test_an_answer_has_what_its_kinds_of_rows_declare(servers: Servers, db: psycopg.Connection, full: bool) -> None:
    if full:
        fill(db)
    empty, now = set(), pd.Timestamp.now("UTC")
    there = of_what_is_there(db)
    kinds = kinds_of_rows(pack.active_runbook().packs[0])
    source = Postgres(servers.database_url, "test", Budget(), ReadCost(Masker()))
    keys = "entitlement.idempotency_keys"
    with (
        locked(servers, keys),
        lock_wait(servers.app_url, f"SELECT FROM {keys}"),
        source.snapshot(Window.before(now, 60)) as snapshot,
    ):
        for name in (n for n in NAMES if n not in BY_EXTENSION):
            frame = snapshot.ask(name, **parameters(now) | there)
            assert_fits(name, frame, kinds)
            if frame.empty:
                empty.add(name)
    if full:
        assert empty == UNSEEN
    assert {kind.QUERY for kind in kinds if hasattr(kind, "QUERY")} <= {*NAMES}


def test_what_another_step_has_just_asked_is_not_asked_again(servers: Servers, db: psycopg.Connection) -> None:
    """But a step's second sample is, as is what an action needs, and another window."""
    source, known = Postgres(servers.database_url, "test", Budget(), ReadCost(Masker())), Answers()
    hour, day = (Window.before(pd.Timestamp.now("UTC"), minutes) for minutes in (60, 1440))
    asked = source.read_cost.queries

    def ask(step: str, window: Window = hour) -> pd.DataFrame:
        with source.snapshot(window, replace(known, step=step)) as snapshot:
            return snapshot.ask("outbox/backlog")

    def sent() -> int:
        return int(read_cost(q for q in asked if q.name == "outbox/backlog")["queries"])

    first = ask("3.1")
    first["due"] = 9
    other = ask("3.2")
    assert (sent(), other["due"][0], other["now"][0]) == (1, 0, first["now"][0])
    assert [q.name for q in asked].count("outbox/backlog") == 2, "each step names what it rests on"
    assert ask("3.2")["now"][0] > first["now"][0] and sent() == 2
    assert ask("3.4")["now"][0] > first["now"][0] and sent() == 2
    ask(""), ask(""), ask("6.1", window=day)
    assert sent() == 5
