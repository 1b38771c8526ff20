"""Servers with a table of millions of notifications, filled in bulk.

Events are numbered and evenly spaced over 28 days; every hop agrees with the next. Of the last 8 hours every
second notification still waits, so that both halves of each question (what is finished, what is not) have work to do.

The last 34 hours are written after the VACUUM, so that their pages are not all-visible: two updates per row reach
autovacuum's fifth of the table every 67 hours, and half of that is what an index-only scan meets on average.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.kit.servers import Servers

OVER = timedelta(days=28)
WAITING = timedelta(hours=8)
RECENT = timedelta(hours=34)

# One event by number. What becomes of it follows from its number and its age alone.
_EVENTS = """
SELECT i, event_id, kind, user_id, sku, at, published, processed, waits, failed, unpublished,
    jsonb_build_object('event_id', event_id, 'event_type', kind, 'occurred_at', at, 'user_id', user_id,
        'stock_keeping_unit', sku, 'source', 'purchase', 'source_id', 'purchase-' || i, 'version', i % 9,
        'trace_id', md5('trace' || i)) AS payload
FROM (
    SELECT i, CAST(md5('event' || i) AS uuid) AS event_id,
        CASE WHEN i % 20 = 0 THEN 'MatchFound' WHEN i % 3 = 0 THEN 'EntitlementRevoked'
            ELSE 'EntitlementGranted' END AS kind,
        'user-' || i * 7919 % 100003 AS user_id, 'sku-' || i % 20 AS sku,
        at, date_trunc('second', at) + interval '1 second' AS published,
        date_trunc('second', at) + interval '1.005 seconds' + i % 50 * interval '4 ms' AS processed,
        at > {waiting} AND i % 2 = 1 AS waits,
        i % 83 = 0 AND at < {now} - interval '10 minutes' AS failed,
        i % 20 <> 0 AND (i % 4001 = 3 OR i % 4 = 2 AND at > {now} - interval '5 minutes') AS unpublished
    FROM (
        SELECT i, CAST({start} AS timestamptz) + i * CAST({step} AS interval) AS at
        FROM generate_series(CAST({first} AS bigint), CAST({last} AS bigint)) AS i
    ) moments
) events
"""

_TABLES = {
    "notification.notifications": """
        INSERT INTO notification.notifications
        SELECT CAST(md5('notification' || i) AS uuid), event_id, user_id, kind, at, payload,
            CASE WHEN held THEN 'PROCESSING' WHEN waits THEN 'PENDING' WHEN failed THEN 'FAILED' ELSE 'SENT' END,
            CASE WHEN held THEN 'notification-' || i % 3 END,
            CASE WHEN held THEN {now} - i % 30 * interval '1 second' END,
            CASE WHEN held THEN {now} + (30 - i % 120) * interval '1 second' END,
            CASE WHEN failed THEN 10 WHEN waits AND i % 17 = 0 THEN 1 + i % 9 WHEN i % 251 = 0 THEN 1 ELSE 0 END,
            CASE WHEN waits AND i % 17 = 0 THEN {now} + (i % 90 - 30) * interval '1 second'
                WHEN waits THEN processed END,
            processed,
            CASE WHEN NOT waits AND NOT failed
                THEN date_trunc('second', processed) + interval '1.4 seconds' + i % 251 / 250 * interval '2 s' END
        FROM (SELECT *, waits AND i % 190 = 1 AS held FROM ({events}) numbered) known
        WHERE NOT unpublished AND i % 9973 <> 5""",
    "notification.processed_events": """
        INSERT INTO notification.processed_events
        SELECT event_id, processed FROM ({events}) known WHERE NOT unpublished AND i % 9973 <> 5""",
    "notification.notification_dlq": """
        INSERT INTO notification.notification_dlq
        SELECT CAST(md5('letter' || i) AS uuid), CAST(md5('notification' || i) AS uuid), event_id, payload,
            'receiver answered 503', at + interval '4 minutes'
        FROM ({events}) known WHERE failed AND NOT waits AND NOT unpublished AND i % 9973 <> 5""",
    "notification.notification_nats_dlq": """
        INSERT INTO notification.notification_nats_dlq
        SELECT i, processed FROM ({events}) known WHERE i % 9973 = 5""",
    "entitlement.outbox_events": """
        INSERT INTO entitlement.outbox_events
        SELECT event_id, kind, user_id || ':' || sku, payload, status,
            CASE WHEN status = 'FAILED' THEN 10 WHEN unpublished AND i % 3 = 0 THEN 3 ELSE 0 END,
            CASE WHEN status = 'PENDING' AND i % 3 = 0 THEN {now} + (i % 30 - 20) * interval '1 second' END,
            at, CASE WHEN status = 'PUBLISHED' THEN published END,
            CASE WHEN status = 'IN_FLIGHT' THEN 'entitlement-1' END,
            CASE WHEN status = 'IN_FLIGHT' THEN {now} - interval '5 seconds' END,
            CASE WHEN status = 'IN_FLIGHT' THEN {now} + interval '25 seconds' END,
            CASE WHEN status = 'FAILED' OR status = 'PENDING' AND i % 3 = 0 THEN 'nats: timeout' END
        FROM (
            SELECT *, CASE WHEN i % 4001 = 3 THEN 'FAILED' WHEN unpublished AND i % 40 = 2 THEN 'IN_FLIGHT'
                WHEN unpublished THEN 'PENDING' ELSE 'PUBLISHED' END AS status
            FROM ({events}) numbered
        ) known
        WHERE i % 20 <> 0 AND (at > {now} - interval '24 hours' OR status <> 'PUBLISHED')""",
    "entitlement.entitlement_audit": """
        INSERT INTO entitlement.entitlement_audit
        SELECT CAST(md5('audit' || i) AS uuid), at, user_id, sku,
            CASE WHEN kind = 'EntitlementRevoked' THEN 'REVOKE' ELSE 'GRANT' END, 'purchase', 'purchase-' || i,
            md5('key' || i), jsonb_build_object('user_id', user_id, 'stock_keeping_unit', sku,
                'reason', 'purchase', 'purchase_id', 'purchase-' || i)
        FROM ({events}) known WHERE i % 20 <> 0""",
    "entitlement.entitlements": """
        INSERT INTO entitlement.entitlements
        SELECT DISTINCT ON (user_id, sku) user_id, sku, 'ACTIVE', at, NULL, 'purchase', 'purchase-' || i, i % 9, at
        FROM ({events}) known WHERE i <= 200000""",
}
_TIMES = {
    "notification.notifications": "created_at",
    "notification.processed_events": "processed_at",
    "notification.notification_dlq": "created_at",
    "notification.notification_nats_dlq": "created_at",
    "entitlement.outbox_events": "created_at",
    "entitlement.entitlement_audit": "occurred_at",
}


@dataclass
class _Numbering:
    """Which number the event of a moment has."""

    start: datetime  # the moment of event 0
    step: timedelta
    history: int  # the number of the last event that is not of the recent part


class Filled(Servers):
    """Both servers with `rows` notifications of four weeks."""

    def __init__(self, directory: Path, rows: int) -> None:
        self._rows = rows
        super().__init__(directory)

    def __enter__(self) -> Filled:
        super().__enter__()
        try:
            self._write_recent(self._write_history())
            self.ensure_streams()
        except BaseException:
            self.stop()
            raise
        return self

    def deliver(self) -> None:
        """Send all that waits, so that no question about the worker has to look twice."""
        with psycopg.connect(self.app_url) as owner:
            owner.execute(
                "UPDATE notification.notifications SET status = 'SENT', sent_at = now(), next_retry_at = NULL,"
                " locked_by = NULL, locked_at = NULL, lease_until = NULL WHERE status IN ('PENDING', 'PROCESSING')"
            )

    def _write_history(self) -> _Numbering:
        now = datetime.now(UTC)
        step = OVER / self._rows
        numbering = _Numbering(now - OVER, step, int((OVER - RECENT) / step))
        values = _values(numbering, 1, numbering.history, now)
        # The two large halves side by side: notifications, and everything else.
        first, *others = _TABLES
        with ThreadPoolExecutor(2) as pool:
            halves = [pool.submit(_load, self.app_url, tables, values) for tables in ([first], others)]
            for half in halves:
                half.result()
        with psycopg.connect(self.app_url, autocommit=True) as owner:
            owner.execute(f"VACUUM (ANALYZE, PARALLEL 2) {', '.join(_TABLES)}")
        return numbering

    def _write_recent(self, numbering: _Numbering) -> None:
        now = datetime.now(UTC)
        last = int((now - numbering.start) / numbering.step)
        with psycopg.connect(self.app_url, autocommit=True) as owner:
            for table in _TIMES:
                owner.execute(_insert(table, _values(numbering, numbering.history + 1, last, now)))
            owner.execute(f"ANALYZE {', '.join(_TABLES)}")
            owner.execute("VACUUM entitlement.outbox_events")  # a small table: autovacuum comes every few hours


def _values(numbering: _Numbering, first: int, last: int, now: datetime) -> dict[str, Any]:
    return {
        "start": numbering.start,
        "step": numbering.step,
        "first": first,
        "last": last,
        "now": now,
        "waiting": now - WAITING,
    }


def _insert(table: str, values: dict[str, Any]) -> sql.Composed:
    literals = {name: sql.Literal(value) for name, value in values.items()}
    return sql.SQL(_TABLES[table]).format(events=sql.SQL(_EVENTS).format(**literals), **literals)


def _load(url: str, tables: list[str], values: dict[str, Any]) -> None:
    """Fill emptied tables without their indexes, then make these again; all in one transaction, hence unlogged."""
    for table in tables:
        with psycopg.connect(url) as owner:
            owner.execute("SET LOCAL maintenance_work_mem = '512MB'")
            owner.execute("SET LOCAL work_mem = '256MB'")
            name = [table]
            constraints = owner.execute(
                "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE conrelid = %s::regclass AND contype IN ('p', 'u')",
                name,
            ).fetchall()
            made = [f"ALTER TABLE {table} ADD CONSTRAINT {n} {definition}" for n, definition in constraints]
            for constraint, _ in constraints:
                owner.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
            indexes = owner.execute(
                "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
                " WHERE indrelid = %s::regclass",
                name,
            ).fetchall()
            for index, definition in indexes:
                made.append(definition)
                owner.execute(f"DROP INDEX {index}")
            owner.execute(f"TRUNCATE {table}")
            owner.execute(_insert(table, values))
            for command in made:
                owner.execute(sql.SQL(command))
