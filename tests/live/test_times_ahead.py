"""Times of a healthy system that somebody's clock, a trigger or a script has set wrong: no absence, and no CRITICAL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox import history
from runbook_lib.model.finding import Status
from tests.kit.servers import Servers
from tests.kit.steps import bound, run, verdict_of, words

COLUMNS = (
    "outbox_events.created_at", "outbox_events.published_at", "entitlement_audit.occurred_at",
    "entitlements.updated_at", "processed_events.processed_at", "notifications.created_at",
    "notifications.occurred_at", "notifications.sent_at",
)  # fmt: skip
#: Of these, what is ahead has an index.
NAMED = {*COLUMNS[:2], "processed_events.processed_at", "notifications.created_at"}
HOURS = (-12, pytest.param(-1, marks=pytest.mark.slow), 9, pytest.param(12, marks=pytest.mark.slow))
#: Three events of the last second are on their way to the subscriber.
ON_THEIR_WAY = """
WITH young AS (
    DELETE FROM notification.processed_events
    WHERE event_id IN (SELECT event_id FROM entitlement.outbox_events ORDER BY created_at DESC LIMIT 3)
    RETURNING event_id
)
DELETE FROM notification.notifications WHERE event_id IN (SELECT event_id FROM young)
"""


@pytest.mark.parametrize("hours", HOURS)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_wrong_time_is_no_absence(
    servers: Servers, db: psycopg.Connection, broker: str, monkeypatch: pytest.MonkeyPatch, column: str, hours: float
) -> None:
    monkeypatch.setitem(catalog.load().numbers, "looks.apart", 0.2)
    history.backfill(db, datetime.now(UTC) + timedelta(seconds=4), hours=0.5, rate=5)
    if column != "outbox_events.published_at":
        db.execute(ON_THEIR_WAY)
    db.execute("SELECT pg_stat_reset()")
    table, name = column.split(".")
    schema = "notification" if table in ("processed_events", "notifications") else "entitlement"
    db.execute(
        sql.SQL("UPDATE {0} SET {1} = {1} + %s * interval '1 h' WHERE {1} > now() - interval '2 minutes'").format(
            sql.Identifier(schema, table), sql.Identifier(name)
        ),
        [hours],
    )
    with bound(broker):
        found = run(servers, "3.1", "3.2") | run(servers, "5.3.2", "5.3.3", "5.3.5")
    wrong = {step: words(f) for step, f in found.items() if f.status not in (Status.OK, Status.WARNING)}
    verdict = verdict_of(*found.values())
    assert (verdict.stuck_at, verdict.undecided, wrong) == (None, (), {}), {s: words(f) for s, f in found.items()}
    if hours > 0 and column in NAMED:
        assert f"have {schema}.{column} ahead of" in words(found["3.2"])
