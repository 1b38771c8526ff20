"""A lock on one table: who holds it is named before anybody waits, and it hides nothing of the other tables."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest

from runbook_lib.book import catalog
from runbook_lib.checks.check import NOT_READ
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.model.finding import Finding, Reason, Status
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import database, recovery
from tests.kit.frames.delivery import sessions
from tests.kit.servers import Servers
from tests.kit.steps import (
    UNPROCESSED,
    bound,
    events,
    expect,
    lock_wait,
    locked,
    make_given,
    run,
    traffic,
    undone,
    verdict_of,
    weight,
    words,
)

TIMEOUT = "Timeout or no response waiting for NATS JetStream server"
CLOSED = "nats://127.0.0.1:9"


# The session that holds it ------------------------------------------------------------------------------------


def table_lock(**changes: Any) -> dict[str, pd.DataFrame]:
    held = {
        "pid": 5, "application": "migration", "state": "idle in transaction", "tables": "notification.notifications",
        "mode": "AccessExclusiveLock", "transaction_s": 20.0,
    }  # fmt: skip
    return sessions(table_locks=row(**held | changes))


@pytest.mark.parametrize(
    ("held_s", "status"), [(2.0, Status.OK), (7.0, Status.WARNING), (20.0, Status.CRITICAL), (None, Status.OK)]
)
def test_how_long_a_table_is_held_decides(held_s: float | None, status: Status) -> None:
    found = database.judge(table_lock(transaction_s=held_s), make_given())
    assert found.status is status
    assert "table_locks" in found.show
    assert (weight(found, "database") > 0.5) is (status is not Status.OK)
    words(found)
    if status is not Status.OK:
        assert found.headline.key == "database.table_held"
        assert "pg_terminate_backend(5)" in found.proposals[0].command
        assert found.next_sections == ("5.2",)


def test_a_migration_of_the_services_themselves_is_not_ended_while_it_works() -> None:
    own = table_lock(application="PostgreSQL JDBC Driver", state="active")
    expect(database.judge(own, make_given()), None, "database.table_held", proposals=["logs", "logs"])
    expect(database.judge(table_lock(application="PostgreSQL JDBC Driver"), make_given()), proposals=["end_blocker"])


def test_whoever_waits_already_counts_more() -> None:
    blocked = row(pid=7, wait_s=6.0, blocked_by="5", object="notification.notifications")
    blockers = row(pid=5, application="migration", state="active", transaction_s=20.0)
    found = database.judge(table_lock() | {"blocked": blocked, "blockers": blockers}, make_given())
    assert found.headline.key == "database.blocked"
    assert found.status is Status.CRITICAL  # by the age of what holds the table


@pytest.mark.parametrize(
    "mode", ["ACCESS EXCLUSIVE", pytest.param("SHARE", marks=pytest.mark.slow)]
)  # ALTER, CREATE INDEX
def test_triage_names_who_holds_a_table_before_anybody_waits(
    servers: Servers, db: psycopg.Connection, broker: str, mode: str
) -> None:
    traffic(db, 120, until=60)
    with bound(broker), locked(servers, "notification.notifications", mode, held_s=5.5) as pid:
        found = run(servers, "3.1", "3.2", "3.3")
    place = found["3.2"]
    expect(place, None, "response.stuck", values={"stuck_at": "database"})
    named = next(n.params["answer"] for n in place.notes if n.params.get("step") == "4.1.4")
    assert (named.params["pid"], named.params["application"]) == (pid, "migration")
    assert 5 < named.params["transaction"] < 60
    assert [p.name for p in place.proposals] == ["end_blocker"]
    assert str(pid) in found["3.3"].proposals[0].command


def test_locks_that_keep_nobody_out_are_no_finding(servers: Servers, db: psycopg.Connection) -> None:
    for mode in ("ACCESS SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE"):
        with locked(servers, "notification.notifications", mode, held_s=0.0):
            found = run(servers, "4.1.4")["4.1.4"]
        assert found.frames["table_locks"].empty, mode


# The session that the runbook's own query waits for -------------------------------------------------------------

#: A step that reads the table.
READS = {
    "notification.notifications": "4.3.1",
    "notification.processed_events": "4.2.2",
    "entitlement.outbox_events": "2.2",
}


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("table", "step"), READS.items())
def test_who_keeps_the_runbook_out_is_named_and_critical_if_others_wait(
    servers: Servers, db: psycopg.Connection, table: str, step: str, waits: bool
) -> None:
    traffic(db, 20)
    waiting = lock_wait(servers.app_url, f"SELECT FROM {table}") if waits else nullcontext()
    with locked(servers, table) as pid, waiting:
        found = run(servers, step)[step]
    assert found.status is (Status.CRITICAL if waits else Status.UNKNOWN)
    expect(found, says=(f"pid {pid} (migration at 127.0.0.1, idle in transaction", f"AccessExclusiveLock on {table}"))
    assert f"pg_terminate_backend({pid})" in found.proposals[0].command
    verdict = verdict_of(found)
    assert (verdict.stuck_at, verdict.failure_modes[0].id) == ("database", "FM-DB-01")
    assert (verdict.status, verdict.proposals[0].name) == (found.status, "end_blocker")


def test_a_triage_names_who_keeps_it_out_and_is_critical_if_events_are_late(
    servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    """No session waits, and the table was free until just now."""
    traffic(db, 60, until=30)
    events(db, 40, 40, outbox="PENDING", **UNPROCESSED)
    with bound(broker), locked(servers, "notification.notifications") as pid:
        found = run(servers, "3.1", "3.2", "3.3")
    expect(found["3.2"], Status.CRITICAL, values={"stuck_at": "database"}, says=f"pid {pid} (migration")
    assert f"pg_terminate_backend({pid})" in found["3.3"].proposals[0].command
    assert verdict_of(*found.values()).status is Status.CRITICAL


def test_behind_a_statement_that_waits_the_first_of_the_queue_is_named(
    servers: Servers, db: psycopg.Connection
) -> None:
    alter = "ALTER TABLE notification.notifications ALTER COLUMN locked_by SET DEFAULT NULL"
    with (
        locked(servers, "notification.notifications", "ACCESS SHARE") as pid,
        lock_wait(servers.admin_url, alter) as migration,
        lock_wait(servers.app_url, "SELECT FROM notification.notifications"),
    ):
        found = run(servers, "4.3.1")["4.3.1"]
        waiting = migration.info.backend_pid
    expect(found, Status.CRITICAL, says=(f"pid {pid} (migration", "AccessShareLock on notification.notifications"))
    assert [(p.name, p.params["pid"]) for p in found.proposals] == [("cancel_waiting", waiting), ("end_blocker", pid)]


def test_an_index_that_is_held_keeps_out_as_well(servers: Servers, db: psycopg.Connection) -> None:
    with psycopg.connect(servers.admin_url, application_name="reindex") as holder:
        holder.execute("REINDEX INDEX notification.notifications_pending_idx")
        found = run(servers, "4.3.1")["4.3.1"]
        expect(found, Status.UNKNOWN, says=(f"pid {holder.info.backend_pid} (reindex", "notifications_pending_idx"))


def test_a_lock_on_a_table_of_the_same_name_elsewhere_is_not_accused(servers: Servers, db: psycopg.Connection) -> None:
    with (
        undone(db, "CREATE SCHEMA elsewhere", "DROP SCHEMA elsewhere CASCADE"),
        undone(db, "CREATE TABLE elsewhere.notifications ()", "SELECT"),
        locked(servers, "elsewhere.notifications"),
        locked(servers, "notification.notifications") as pid,
    ):
        found = run(servers, "4.3.1")["4.3.1"]
    assert found.frames["lock_holders"]["pid"].tolist() == [pid]


@pytest.mark.slow
def test_a_prepared_transaction_has_no_session_and_is_named_by_its_gid(tmp_path: Path) -> None:
    with Servers(tmp_path) as own, psycopg.connect(own.admin_url, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET max_prepared_transactions = 2")
        own.stop_postgres()
        own.start_postgres()
        with psycopg.connect(own.admin_url, autocommit=True) as db:
            for lock in ("LOCK TABLE notification.notifications", "SELECT FROM notification.notifications"):
                for statement in ("BEGIN", lock, "PREPARE TRANSACTION 'transfer-7'"):
                    db.execute(statement.encode())
                alter = "ALTER TABLE notification.notifications ALTER COLUMN locked_by SET DEFAULT NULL"
                with lock_wait(own.admin_url, alter), lock_wait(own.app_url, "SELECT FROM notification.notifications"):
                    found = run(own, "4.3.1", "4.3.2")["4.3.1"]
                db.execute("ROLLBACK PREPARED 'transfer-7'")
                expect(found, Status.CRITICAL, says=("transfer-7", "on notification.notifications"), proposals=[])


# What it hides -------------------------------------------------------------------------------------------------

#: The steps that read other tables than the locked one as well, or it alone no more.
READ_ON = {
    "notification.processed_events": ("2.4", "3.1", "4.1.2", "4.1.3", "4.3.5", "4.4.1", "4.4.2", "4.4.3"),
    "entitlement.outbox_events": (
        *("3.1", "4.1.1", "4.1.2", "4.3.1", "4.3.2", "4.3.3", "4.4.1", "4.4.2", "5.2.1", "6.1", "6.2", "6.3", "6.4"),
    ),
    "notification.notifications": (
        *("2.4", "3.1", "4.1.2", "4.1.3", "4.3.5", "4.4.1", "4.4.2", "4.4.3", "6.1", "6.2", "6.3", "6.4"),
    ),
    "notification.notification_nats_dlq": ("4.4.1", "4.4.2"),
}
#: Of these, those that do not need the locked table.
WITHOUT = {
    "notification.processed_events": {"4.1.3"},
    "entitlement.outbox_events": {"4.1.1", "4.3.1", "4.3.2", "4.3.3"},
    "notification.notifications": {"4.1.2", "4.1.3", "4.4.1", "6.3"},
}


def test_the_relay_s_step_reports_what_a_lock_on_the_registrations_leaves(
    servers: Servers, db: psycopg.Connection
) -> None:
    traffic(db, 60)
    with locked(servers, "notification.processed_events"):
        found = run(servers, "4.1.3")["4.1.3"]
    assert found.status is Status.OK and Reason.TIMEOUT not in {u.reason for u in found.unseen}


@pytest.mark.slow
@pytest.mark.parametrize("table", READ_ON)
def test_a_step_reports_the_parts_that_it_could_read(
    servers: Servers, db: psycopg.Connection, broker: str, table: str
) -> None:
    traffic(db, 120)
    found: dict[str, Finding] = {}
    with bound(broker), locked(servers, table):
        for section in dict.fromkeys(step.rpartition(".")[0] for step in READ_ON[table]):
            found |= run(servers, *(s for s in READ_ON[table] if s.rpartition(".")[0] == section))
    for step, f in found.items():
        assert f.headline.key != "unknown.timeout", f"{step} as a whole"
        if step in WITHOUT.get(table, ()):
            assert f.status is not Status.UNKNOWN, step
        elif step not in ("5.2.1", "4.4.3"):
            assert f.status in (Status.UNKNOWN, Status.CRITICAL), f"{step}: what was not read is not well"
            assert weight(f, "database") > 0.5, step


@pytest.mark.slow
def test_a_lock_on_the_registrations_does_not_hide_a_broker_that_is_gone(
    servers: Servers, db: psycopg.Connection
) -> None:
    """The broker refuses the runbook's connection, and the relay's publishes have failed for 40 s."""
    traffic(db, 200, until=45)
    events(db, 40, 40, outbox="PENDING", publish_tries=4, error=TIMEOUT, publish_again=5.0, **UNPROCESSED)
    events(db, 4, 40, outbox="PENDING", **UNPROCESSED)
    with locked(servers, "notification.processed_events", held_s=5.5) as pid:
        found = run(servers, "4.1.1", "4.1.2", "4.1.3", "4.1.4", without=("nats_monitor_url",), nats_url=CLOSED)
        triage = run(servers, "3.1", "3.2", without=("nats_monitor_url",), nats_url=CLOSED)
    assert "the broker answers neither the relay" in words(found["4.1.3"])
    assert found["4.1.4"].headline.params["pid"] == pid
    book = catalog.load()
    for verdict in (conclude(found.values(), book), conclude(triage.values(), book)):
        assert (verdict.stuck_at, verdict.failure_modes[0].id) == ("jetstream", "FM-NATS-04")
        assert "FM-DB-01" in [m.id for m in verdict.failure_modes]
        assert verdict.proposals[0].name == "restart_nats"
    expect(triage["3.1"], values={"impact.events": None}, says="ENT-D")


def test_a_queue_that_was_not_read_is_neither_empty_nor_failing() -> None:
    failed = pd.DataFrame(
        [("outbox", "postgres", "timeout", "canceling statement due to lock timeout", "lock_not_available")],
        columns=["part", "source", "why", "detail", "code"],
    )
    queue = row(due=0, expired=0)
    flows = pd.DataFrame(columns=["tens_ago", "arrived", "gone", "arrived_now", "gone_now"])
    tries = row(part="delivery", failed=0, failed_now=0, waiting=0, due_again=0)
    read = {"notifications": queue, "notification_flows": flows, "tries": tries, NOT_READ: failed}
    for check in (recovery.BACKLOG, recovery.ERRORS):
        found = check.finding(read, make_given())
        assert (found.status, found.reason) == (Status.UNKNOWN, Reason.TIMEOUT)
        expect(found, values={"outbox.due": None, "errors.publish": None}, weights={"database": "> 0.5"})
