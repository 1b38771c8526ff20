"""What happens to single events in a whole sandbox that has no other traffic: the way through, and each way back."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from psycopg.rows import DictRow

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox import broker, database, entitlement, notification
from runbook_lib.gameday.sandbox.database import Connection
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.packs.entitlement import wire
from runbook_lib.store.archive import ACTION, Archive
from tests.kit import sandboxes
from tests.kit.command import start
from tests.kit.drills import ask, consumer, streams

pytestmark = pytest.mark.slow

LEASE_S = 2
QUICK = {
    "NATS_CONNECTION_TIMEOUT": "1",
    "ENTITLEMENT_OUTBOX_POLL_INTERVAL": "200ms",
    "ENTITLEMENT_OUTBOX_LEASE": f"{LEASE_S}s",
    "NOTIFICATION_DELIVERY_POLL_INTERVAL": "200ms",
    "NOTIFICATION_DELIVERY_LEASE": f"{LEASE_S}s",
}
FREE = {"locked_by": None, "locked_at": None, "lease_until": None}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandboxes.running(tmp_path_factory.mktemp("quiet"), rate=0, hours=0, settings=QUICK) as sandbox:
        yield sandbox


@pytest.fixture
def db(quiet: Sandbox) -> Iterator[Connection]:
    with database.connect(quiet.state.addresses.app_url) as connection:
        yield connection


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4()}"


def command(connection: Connection, user: str, action: str = "GRANT") -> tuple[int, dict[str, Any]]:
    """One request to the API."""
    request = entitlement.GrantRequest(action, user, "sku", "purchase", "purchase-1")
    return entitlement.execute(connection, request, database.now())


def rows(connection: Connection, table: str, user: str) -> list[DictRow]:
    """What a table holds of a user's events, oldest first."""
    query = {
        "outbox": "SELECT * FROM entitlement.outbox_events WHERE aggregate_key = %s || ':sku' ORDER BY created_at",
        "notifications": "SELECT * FROM notification.notifications WHERE user_id = %s ORDER BY occurred_at",
        "processed": "SELECT p.* FROM notification.processed_events p JOIN notification.notifications USING (event_id)"
        " WHERE user_id = %s",
        "letters": "SELECT d.* FROM notification.notification_dlq d JOIN notification.notifications USING (event_id)"
        " WHERE user_id = %s",
    }[table]
    return connection.execute(query, (user,)).fetchall()


def until(connection: Connection, table: str, user: str, status: str, timeout: float = 60) -> DictRow:
    """The user's newest row once all of the user's rows have that status."""

    def done() -> bool:
        return {row["status"] for row in rows(connection, table, user)} == {status}

    Sandbox.wait_for(f"{table} of {user} to be {status}", done, timeout)
    return rows(connection, table, user)[-1]


def settled(sandbox: Sandbox, stream: str = broker.STREAM) -> dict[str, Any]:
    """The durable of a stream once it has answered everything that is stored."""

    def done() -> bool:
        return bool(consumer(sandbox, stream)["ack_floor"]["stream_seq"] == last_seq(sandbox, stream))

    sandbox.wait_for("the consumer to catch up", done)
    return consumer(sandbox, stream)


def last_seq(sandbox: Sandbox, stream: str = broker.STREAM) -> int:
    seq: int = streams(sandbox)[stream]["state"]["last_seq"]
    return seq


def given_up(sandbox: Sandbox) -> int:
    n: int = ask(sandbox, "SELECT count(*) FROM notification.notification_nats_dlq")
    return n


def test_an_event_passes_every_hop_and_a_second_delivery_leaves_no_trace(
    quiet: Sandbox, db: Connection, user: str
) -> None:
    before = last_seq(quiet)
    assert command(db, user)[0] == 200
    sent = until(db, "notifications", user, "SENT")
    published = until(db, "outbox", user, "PUBLISHED")
    assert (sent["attempt_count"], sent["next_retry_at"]) == (0, None)
    assert published["published_at"] is not None
    assert {**FREE} == {name: published[name] for name in FREE} == {name: sent[name] for name in FREE}
    assert [row["event_id"] for row in rows(db, "processed", user)] == [published["event_id"]]
    assert last_seq(quiet) == before + 1

    clean = (settled(quiet), given_up(quiet))
    log = quiet.directory / "log" / "notification.log"

    async def again(js: JetStreamContext) -> None:
        await js.publish(broker.SUBJECT, (await js.get_msg(broker.STREAM, before + 1)).data or b"")

    quiet.visit(again)
    now = settled(quiet)
    assert last_seq(quiet) == before + 2
    assert (len(rows(db, "notifications", user)), len(rows(db, "processed", user))) == (1, 1)
    # Two counts would be the same had it been refused ten times instead of answered once.
    assert now["delivered"]["consumer_seq"] == clean[0]["delivered"]["consumer_seq"] + 1
    assert (now["num_pending"], now["num_ack_pending"], now["num_redelivered"]) == (0, 0, 0)
    assert given_up(quiet) == clean[1]
    assert "duplicate notification event skipped" in log.read_text()


def test_a_right_that_is_granted_and_revoked_is_told_twice(quiet: Sandbox, db: Connection, user: str) -> None:
    assert [command(db, user, action)[0] for action in ("GRANT", "REVOKE")] == [200, 200]
    until(db, "notifications", user, "SENT")
    quiet.wait_for("both to be sent", lambda: len(rows(db, "notifications", user)) == 2)
    until(db, "notifications", user, "SENT")
    types = ["EntitlementGranted", "EntitlementRevoked"]
    assert [row["type"] for row in rows(db, "notifications", user)] == types
    assert [(row["event_type"], row["status"]) for row in rows(db, "outbox", user)] == [
        (name, "PUBLISHED") for name in types
    ]
    state = db.execute("SELECT status, version FROM entitlement.entitlements WHERE user_id = %s", (user,)).fetchall()
    assert state == [{"status": "REVOKED", "version": 1}]


def test_a_match_becomes_a_notification_without_an_outbox_row(quiet: Sandbox, db: Connection) -> None:
    match_id, now = str(uuid.uuid4()), entitlement.instant(database.now())
    event = wire.MatchmakingEvent(str(uuid.uuid4()), wire.MATCH_FOUND, now, match_id, "casual", "trace")
    quiet.visit(
        lambda js: js.publish(broker.MATCH_SUBJECT, wire.encode(event), headers={"Nats-Msg-Id": event.event_id})
    )
    found = "SELECT * FROM notification.notifications WHERE event_id = %s"
    quiet.wait_for("the match", lambda: db.execute(found, (event.event_id,)).rowcount == 1)
    settled(quiet, broker.MATCH_STREAM)
    (row,) = db.execute(found, (event.event_id,)).fetchall()
    assert (row["type"], row["user_id"], row["payload_json"]) == (
        "MatchFound",
        "matchmaking-system",
        {"match_id": match_id},
    )
    processed = "SELECT processed_at FROM notification.processed_events WHERE event_id = %s"
    assert db.execute(processed, (event.event_id,)).fetchall() == [{"processed_at": row["created_at"]}]
    quiet.wait_for("it to be sent", lambda: db.execute(found, (event.event_id,)).fetchone()["status"] == "SENT")  # type: ignore[index]
    assert consumer(quiet, broker.MATCH_STREAM)["push_bound"]


@pytest.fixture
def injection(quiet: Sandbox, user: str) -> Iterator[None]:
    """Every delivery to the user fails, three times at most."""

    def apply(attempts: int, longest: str, on: str, prefix: str) -> None:
        name = "NOTIFICATION_DELIVERY"
        quiet.configure(
            {
                f"{name}_MAX_ATTEMPTS": str(attempts),
                f"{name}_BACKOFF_BASE": "1s",
                f"{name}_BACKOFF_MAX": longest,
                f"{name}_BACKOFF_MIN": "1s",
                f"{name}_FAILURE_INJECTION_ENABLED": on,
                f"{name}_FAILURE_INJECTION_USER_ID_PREFIX": prefix,
            }
        )
        before = quiet.pod("notification")
        quiet.restart("notification")
        quiet.wait_for("the new pod", lambda: quiet.pod("notification") != before and "push_bound" in consumer(quiet))

    apply(3, "1s", "true", user)
    yield
    apply(10, "60s", "false", "")


@pytest.mark.usefixtures("injection")
def test_deliveries_that_keep_failing_end_in_a_dead_letter(quiet: Sandbox, db: Connection, user: str) -> None:
    command(db, user)
    seen: list[int] = []

    def failed() -> bool:
        for row in rows(db, "notifications", user):
            seen.append(row["attempt_count"])
            return bool(row["status"] == "FAILED")
        return False

    quiet.wait_for("FAILED", failed)
    (row,), (letter,) = rows(db, "notifications", user), rows(db, "letters", user)
    assert seen == sorted(seen)
    assert set(seen) - {0} == {1, 2, 3}  # the first try may have come before the first look
    assert (row["attempt_count"], row["next_retry_at"], row["sent_at"], row["locked_by"]) == (3, None, None, None)
    assert letter["event_id"] == row["event_id"]
    assert letter["error_message"] == f"notification delivery failure injection matched userId={user}"
    assert until(db, "outbox", user, "PUBLISHED")["attempt_count"] == 0


def test_a_short_broker_outage_drains_by_itself(quiet: Sandbox, db: Connection, user: str) -> None:
    pods = quiet.pods()
    quiet.stop("nats")
    command(db, user)
    quiet.wait_for("a try that fails", lambda: rows(db, "outbox", user)[0]["attempt_count"] > 0)
    (row,) = rows(db, "outbox", user)
    assert row["last_error"] in (None, "Timeout or no response waiting for NATS JetStream server")
    quiet.start("nats")
    published = until(db, "outbox", user, "PUBLISHED")
    assert published["attempt_count"] >= 1
    assert published["next_retry_at"] is not None  # kept, unlike on a notification
    assert until(db, "notifications", user, "SENT")["attempt_count"] == 0
    assert quiet.pods() == pods


def test_a_receiver_outage_that_ends_leaves_sent_notifications(quiet: Sandbox, db: Connection, user: str) -> None:
    quiet.stop("receiver")
    command(db, user)
    quiet.wait_for(
        "tries that fail", lambda: [r["attempt_count"] > 1 for r in rows(db, "notifications", user)] == [True]
    )
    quiet.start("receiver")
    sent = until(db, "notifications", user, "SENT")
    assert sent["attempt_count"] >= 2
    assert sent["next_retry_at"] is None
    assert rows(db, "letters", user) == []


def test_what_a_crash_left_leased_is_taken_back_when_the_lease_is_over(
    quiet: Sandbox, db: Connection, user: str
) -> None:
    """A relay and a worker died in the middle of their batches: each left a row in dead hands."""
    now = database.now()
    end = now + timedelta(seconds=LEASE_S)
    lease = "locked_by = 'nobody-7c9d5f6b8-x2k4q', locked_at = %s, lease_until = %s, attempt_count = 4"
    event = wire.EntitlementEvent(
        str(uuid.uuid4()), wire.GRANTED, entitlement.instant(now), user, "sku", "purchase", "purchase-1", 0, "trace"
    )
    with db.transaction():
        command(db, f"{user}-relay")
        notification.accept(db, event, now)
        for table, status, key, value in (
            ("entitlement.outbox_events", "IN_FLIGHT", "aggregate_key", f"{user}-relay:sku"),
            ("notification.notifications", "PROCESSING", "user_id", user),
        ):
            db.execute(f"UPDATE {table} SET status = '{status}', {lease} WHERE {key} = %s", (now, end, value))
    published = until(db, "outbox", f"{user}-relay", "PUBLISHED")
    sent = until(db, "notifications", user, "SENT")
    # The start of the batch that took them: nobody did while the lease lasted, and taking back is no failure.
    assert published["published_at"] >= end
    assert sent["sent_at"] >= end
    assert (published["attempt_count"], sent["attempt_count"]) == (4, 4)


def test_an_action_that_is_interrupted_writes_down_what_has_become_of_it(quiet: Sandbox, tmp_path: Path) -> None:
    time.sleep(catalog.load().numbers["program.young"])  # what a test before has restarted is coming up no more
    words = ["workload=notification", "execute=true", "approved_by=drill", "reason=to be interrupted"]
    env = {**os.environ, "RUNBOOK_SANDBOX_DIR": str(quiet.directory), "RUNBOOK_OUTPUT": str(tmp_path)}
    asked = ("run", "5.1", "--target", "sandbox", *(x for w in words for x in ("-p", w)))
    run = start(
        *asked, env=env, stdout=None, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    archive = Archive(str(tmp_path), "adhoc")
    while not archive.lines(ACTION):
        assert run.poll() is None
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert (run.returncode, said) == (130, "runbook: interrupted\n")
    begun, ended = archive.lines(ACTION)
    assert (begun["result"], ended["result"]) == ("begun", "failed") and "interrupted" in ended["why"]["en"]
    entered = Archive(str(quiet.directory / "runbook-ledger"), "sandbox").lines(ACTION)[-2:]
    assert [(e["id"], e["result"]) for e in entered] == [(begun["id"], "begun"), (begun["id"], "failed")]
    (kept,) = archive.manifest()
    assert (kept["section"], kept["problem"]) == ("5.1", "it was interrupted")
    assert archive.partials() == [] and archive.problems() == []
