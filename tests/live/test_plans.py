"""The plan of every query at five million notifications, by the planner's statistics alone: no big table is scanned.

A hundredth of the rows is written and analysed; then the counts in `pg_class` are multiplied, and the files of tables
and indexes are made longer by pages without rows. These are holes, which take no disk space.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runbook_lib.book import queries
from runbook_lib.sources import postgres
from tests.bench import fill, questions

ROWS, TIMES = 5_000_000, 100
SEGMENT_BYTES = 1 << 30  # PostgreSQL continues a longer table in a second file

#: The big tables that a query may read in sequence, and why. Each of these goes through the cost gate.
SCANNED: dict[str, tuple[set[str], str]] = {
    "consistency/audit_without_event_day": ({"entitlement_audit", "outbox_events"}, "no index on the audit's time"),
    "consistency/sent_dirty": ({"notifications"}, "every row is compared"),
    "consistency/unprocessed_day": ({"outbox_events"}, "nearly all rows are of the last day"),
    "journey/by_trace": ({"outbox_events"}, "no index on the trace id; the table keeps a day"),
    **dict.fromkeys(
        (
            "consistency/dead_letter_not_failed", "dead_letters/given_up", "dead_letters/letters", "dead_letters/older",
            "dead_letters/per_bucket", "notifications/failed_per_minute", "postmortem/dead_letters",
            "postmortem/unprocessed", "processed/nats_dlq", "recovery/dead_letters", "sli/given_up_users",
        ),
        ({"notification_dlq", "notification_nats_dlq"}, "no index on their time; a row per event that was given up"),
    ),
}  # fmt: skip

_TABLES = list(fill._TIMES)
_OURS = """
SELECT c.oid, pg_relation_filepath(c.oid) FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
WHERE coalesce(i.indrelid, c.oid) = ANY(CAST(%s AS regclass[]))
"""
_MULTIPLY = (
    "UPDATE pg_class SET relpages = relpages * %(n)s, reltuples = reltuples * %(n)s,"
    " relallvisible = relallvisible * %(n)s WHERE oid = ANY(%(oids)s)"
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fill.Filled]:
    """A database that the planner takes for one of five million notifications."""
    with fill.Filled(tmp_path_factory.mktemp("large"), ROWS // TIMES) as servers:
        with psycopg.connect(servers.admin_url, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET autovacuum = off")
            admin.execute("SELECT pg_reload_conf()")
            admin.execute("CHECKPOINT")
            ours = admin.execute(_OURS, [_TABLES]).fetchall()
            for _, path in ours:
                lengthen(servers.directory / "postgres" / path)
            admin.execute(_MULTIPLY, {"n": TIMES, "oids": [oid for oid, _ in ours]})
        yield servers


def lengthen(file: Path) -> None:
    """Make a table's or an index's file so many times as long, with holes."""
    own = file.stat()
    whole = own.st_size * TIMES
    for n in range(-(-whole // SEGMENT_BYTES)):
        segment = file.with_name(f"{file.name}.{n}") if n else file
        segment.touch(mode=0o600)
        os.chown(segment, own.st_uid, own.st_gid)
        os.truncate(segment, min(SEGMENT_BYTES, whole - n * SEGMENT_BYTES))


def plan(db: psycopg.Connection[Any], text: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of a query with these values for its parameters."""
    compiled, names = postgres._compile_query(f"EXPLAIN (FORMAT JSON) {text}")
    row = db.execute(compiled, {name: values[name] for name in names}).fetchone()
    assert row is not None
    found: dict[str, Any] = row[0][0]["Plan"]
    return found


def scanned(db: psycopg.Connection[Any], name: str, values: dict[str, Any]) -> set[str]:
    """Return the big tables that a query reads in sequence."""
    nodes = questions._nodes(plan(db, queries.query(name).sql, values))
    big = {table.partition(".")[2] for table in _TABLES}
    return {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & big


def test_no_query_scans_a_big_table_unless_it_is_meant_to(large: fill.Filled) -> None:
    values = questions._parameters(questions._source(large.database_url))
    asked = [name for name in queries.names() if queries.query(name).cost != "catalog"]
    with psycopg.connect(large.admin_url) as db:
        rows = plan(db, "SELECT FROM notification.notifications", {})["Plan Rows"]
        assert rows == pytest.approx(ROWS, rel=0.01)
        found = {name: tables for name in asked if (tables := scanned(db, name, values))}
        unmeant = {name: tables for name, tables in found.items() if name not in SCANNED or tables - SCANNED[name][0]}
        assert unmeant == {}
        for name in SCANNED:
            assert queries.query(name).cost == "scan", "it would not go through the cost gate"
            assert "scan" in queries.query(name).index

        for index, name, table in (
            ("notification.processed_events_processed_at_idx", "processed/clock", "processed_events"),
            ("entitlement.outbox_published_at_idx", "outbox/delay", "outbox_events"),
        ):
            db.execute(f"DROP INDEX {index}")
            assert scanned(db, name, values) == {table}
            db.rollback()
            assert scanned(db, name, values) == set()
