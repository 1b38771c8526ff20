"""A policy that hides rows from the runbook's role: what it may not see is unread, and no empty table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from runbook_lib.model.finding import Reason, Status
from tests.kit.servers import Servers
from tests.kit.steps import bound, run, traffic, verdict_of, words

TABLES = {
    "entitlement.outbox_events": "4.1.3",
    "entitlement.entitlement_audit": "5.3.5",
    "notification.processed_events": "5.3.2",
    "notification.notifications": "4.1.1",
    "notification.notification_dlq": "4.4.1",
}


@contextmanager
def hidden(db: psycopg.Connection, table: str) -> Iterator[None]:
    """The table with row security and no policy for anybody: only its owner sees rows."""
    name = sql.Identifier(*table.split("."))
    db.execute(sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(name))
    try:
        yield
    finally:
        db.execute(sql.SQL("ALTER TABLE {} DISABLE ROW LEVEL SECURITY").format(name))


@pytest.mark.parametrize("table", TABLES)
def test_rows_that_the_runbook_may_not_see_are_no_empty_table(
    servers: Servers, db: psycopg.Connection, broker: str, table: str
) -> None:
    traffic(db)
    with hidden(db, table), bound(broker):
        found = run(servers, TABLES[table]) | run(servers, "3.1", "3.2")
    of_table = found[TABLES[table]]
    assert (of_table.status, of_table.reason) == (Status.UNKNOWN, Reason.DENIED), words(of_table)
    assert f'row-level security policy for table "{table.partition(".")[2]}"' in words(of_table)
    assert verdict_of(*found.values()).status is not Status.OK
