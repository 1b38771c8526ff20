"""Faults that leave rows, messages or settings behind, and how all of it is put right again.

What is put into the tables belongs to users whose ids begin with `drill-`. It is written by the applications' own
code as far as they have any for it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import cycle, islice
from typing import TYPE_CHECKING

import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy
from psycopg.rows import DictRow

from runbook_lib.packs.entitlement.wire import EntitlementEvent

from . import broker, database, entitlement, notification, state
from .database import Connection

if TYPE_CHECKING:
    from .programs import Programs

USER = "drill-"
SKU = entitlement.STOCK_KEEPING_UNITS[0]
INJECTED = "notification delivery failure injection matched userId="

# Nine tries take about four minutes: rows that have used them up are so old.
_NINE_TRIES = timedelta(minutes=4, seconds=5)


# Streams and settings ---------------------------------------------------------------------------------------


def delete_stream(sandbox: Programs) -> None:
    """The stream of the events goes, with all messages and its durable."""

    async def delete(js: JetStreamContext) -> None:
        await js.delete_stream(broker.STREAM)

    broker.visit(sandbox.state.addresses.app_nats_url, delete)


def with_settings(pod: str, **settings: str) -> Callable[[Programs], None]:
    """Give a pod other environment variables and restart it."""

    def apply(sandbox: Programs) -> None:
        sandbox.configure(settings)
        sandbox.restart(pod)

    return apply


def delete_consumer(sandbox: Programs) -> None:
    """Only the durable of the events goes; the stream and its messages stay."""

    async def delete(js: JetStreamContext) -> None:
        await js.delete_consumer(broker.STREAM, broker.CONSUMER)

    broker.visit(sandbox.state.addresses.app_nats_url, delete)


def limit_stream(full: bool) -> Callable[[Programs], None]:
    """Let the stream of the events take no more than it holds, and refuse what is new; or lift that."""

    def apply(sandbox: Programs) -> None:
        async def limit(js: JetStreamContext) -> None:
            info = await js.stream_info(broker.STREAM)
            info.config.max_msgs = info.state.messages if full else -1
            info.config.discard = DiscardPolicy.NEW if full else DiscardPolicy.OLD
            await js.update_stream(info.config)

        broker.visit(sandbox.state.addresses.app_nats_url, limit)

    return apply


def pause_consumer(until: str) -> Callable[[Programs], None]:
    """The broker delivers nothing to the durable of the events until then."""

    def apply(sandbox: Programs) -> None:
        async def pause(js: JetStreamContext) -> None:
            await js.pause_consumer(broker.STREAM, broker.CONSUMER, until)

        broker.visit(sandbox.state.addresses.app_nats_url, pause)

    return apply


# The database, changed by its superuser ---------------------------------------------------------------------

#: What a changed setting needs to count: the server reads its own again, the applications begin new sessions.
RELOAD = "SELECT pg_reload_conf()"
AFRESH = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{state.DATABASE}'"  # noqa: S608


def alter(*statements: str) -> Callable[[Programs], None]:
    """Have the superuser, who may still write when the applications may not, say that."""

    def apply(sandbox: Programs) -> None:
        url = f"{sandbox.state.addresses.admin_url}?options=-c%20default_transaction_read_only%3Doff"
        with database.connect(url) as admin:
            for statement in statements:
                admin.execute(statement)

    return apply


def mend(*statements: str) -> Callable[[Programs], None]:
    """The same, until events flow again; what the subscriber gave up meanwhile is published again."""

    def apply(sandbox: Programs) -> None:
        sandbox.wait_for("PostgreSQL", lambda: alter(*statements)(sandbox) is None)
        sandbox.wait_for_flow(60)
        publish_lost_events_again(sandbox)

    return apply


def restore_password(sandbox: Programs) -> None:
    """The password that the applications know."""
    mend(f"ALTER ROLE {state.DATABASE} PASSWORD '{sandbox.state.addresses.passwords[state.DATABASE]}'")(sandbox)


_TRIGGER = (
    "CREATE OR REPLACE FUNCTION notification.audit_change() RETURNS trigger LANGUAGE plpgsql"
    " AS $$BEGIN PERFORM pg_sleep({}); RETURN NEW; END$$"
)

#: Each update of a notification takes so long. The function is made quick before it goes: a claim holds the table.
slow_down = alter(
    _TRIGGER.format(1.5),
    "CREATE TRIGGER audit_change BEFORE UPDATE ON notification.notifications"
    " FOR EACH ROW EXECUTE FUNCTION notification.audit_change()",
)
speed_up = alter(_TRIGGER.format(0), AFRESH, "DROP FUNCTION notification.audit_change CASCADE")


# Rows -------------------------------------------------------------------------------------------------------


@contextmanager
def _transaction(sandbox: Programs) -> Iterator[Connection]:
    """The applications' own database role; all or nothing, so that no worker sees a half of it."""
    with database.connect(sandbox.state.addresses.app_url) as connection, connection.transaction():
        yield connection


def _event(connection: Connection, user: str, at: datetime, sku: str = SKU) -> DictRow:
    """A right is granted, once per user and SKU; the outbox row, which waits."""
    command = entitlement.Command(
        "GRANT", USER + user, sku, "purchase", f"purchase-{user}", str(uuid.uuid4()), uuid.uuid4().hex
    )
    entitlement.execute(connection, command, at)
    row = connection.execute(
        "SELECT event_id, payload FROM entitlement.outbox_events WHERE aggregate_key = %s", (f"{USER}{user}:{sku}",)
    ).fetchone()
    assert row is not None  # noqa: S101
    return row


def _queued(connection: Connection, user: str, at: datetime, sku: str = SKU) -> uuid.UUID:
    """An event that has passed every hop up to the delivery queue; its id."""
    row = _event(connection, user, at, sku)
    connection.execute(
        "UPDATE entitlement.outbox_events SET status = 'PUBLISHED', published_at = %s WHERE event_id = %s",
        (at + timedelta(milliseconds=400), row["event_id"]),
    )
    notification.accept(connection, EntitlementEvent(**row["payload"]), at + timedelta(milliseconds=500))
    event_id: uuid.UUID = row["event_id"]
    return event_id


def _dead_letter(connection: Connection, event_id: uuid.UUID, error: str, at: datetime) -> None:
    connection.execute(
        "INSERT INTO notification.notification_dlq"
        " (dlq_id, notification_id, event_id, payload_json, error_message, created_at)"
        " SELECT gen_random_uuid(), notification_id, event_id, payload_json, %s, %s"
        " FROM notification.notifications WHERE event_id = %s",
        (error, at, event_id),
    )


_FORGET = """
WITH gone AS (
    DELETE FROM notification.notifications WHERE user_id LIKE 'drill-%' RETURNING notification_id
), letters AS (
    DELETE FROM notification.notification_dlq WHERE notification_id IN (SELECT notification_id FROM gone)
), outbox AS (
    DELETE FROM entitlement.outbox_events WHERE aggregate_key LIKE 'drill-%' RETURNING event_id
), processed AS (
    DELETE FROM notification.processed_events WHERE event_id IN (SELECT event_id FROM outbox)
), audit AS (
    DELETE FROM entitlement.entitlement_audit WHERE user_id LIKE 'drill-%'
)
DELETE FROM entitlement.entitlements WHERE user_id LIKE 'drill-%'
"""


def forget(sandbox: Programs) -> None:
    """Delete every row of the drill's users."""
    with _transaction(sandbox) as connection:
        connection.execute(_FORGET)


# Events that can never pass ---------------------------------------------------------------------------------


def _n(sandbox: Programs, usual: int) -> int:
    return max(round(usual * sandbox.intensity), 1)


def bad_payloads(sandbox: Programs) -> None:
    """Payloads of the wrong JSON shape, one a minute."""
    now = database.now()
    with _transaction(sandbox) as connection:
        shapes = ("[]", '"text"', '{"version": "one"}', "[]", "[1, 2]")
        for n, payload in enumerate(islice(cycle(shapes), _n(sandbox, 5))):
            row = _event(connection, f"shape-{n}", now - timedelta(minutes=n))
            connection.execute(
                "UPDATE entitlement.outbox_events SET payload = %s WHERE event_id = %s", (payload, row["event_id"])
            )


def unknown_event_types(sandbox: Programs) -> None:
    """Events of a type that the wire format lacks; each has one try left."""
    now = database.now()
    with _transaction(sandbox) as connection:
        for n in range(_n(sandbox, 5)):
            row = _event(connection, f"type-{n}", now - _NINE_TRIES - timedelta(minutes=n))
            connection.execute(
                "UPDATE entitlement.outbox_events SET event_type = 'EntitlementSuspended', attempt_count = 9,"
                " next_retry_at = %s WHERE event_id = %s",
                (now, row["event_id"]),
            )


def undecodable_messages(sandbox: Programs) -> None:
    """Noise on the subject of the events."""

    async def publish(js: JetStreamContext) -> None:
        for _ in range(_n(sandbox, 3)):
            await js.publish(broker.SUBJECT, b"\xff" + secrets.token_bytes(40))  # no message starts with this byte

    broker.visit(sandbox.state.addresses.app_nats_url, publish)


def forget_dead_messages(sandbox: Programs) -> None:
    """Remove what the subscriber gave up on: the messages, the advisories and the record of them."""

    async def purge(js: JetStreamContext) -> None:
        for stream in (broker.ADVISORY_STREAM, broker.TERMINATED_STREAM):
            for seq in await _given_up(js, stream):
                with contextlib.suppress(nats.js.errors.APIError):  # gone already, with the stream it was in
                    await js.delete_msg(broker.STREAM, seq)
            await js.purge_stream(stream)

    broker.visit(sandbox.state.addresses.app_nats_url, purge)
    with _transaction(sandbox) as connection:
        connection.execute("DELETE FROM notification.notification_nats_dlq")


async def _given_up(js: JetStreamContext, stream: str) -> list[int]:
    """Sequences in the stream of events that the advisories of a stream speak of."""
    held = (await js.stream_info(stream)).state
    stored = range(held.first_seq, held.last_seq + 1) if held.messages else ()
    return [json.loads((await js.get_msg(stream, seq)).data or b"")["stream_seq"] for seq in stored]


# Events that are lost ---------------------------------------------------------------------------------------


def lose_events(sandbox: Programs) -> None:
    """The subscriber's writes fail until a few events have used up their deliveries, and so has the record of it."""
    allow = "GRANT INSERT ON notification.{} TO CURRENT_USER"
    with database.connect(sandbox.state.addresses.app_url) as connection:
        for table in ("processed_events", "notification_nats_dlq"):
            connection.execute(f"REVOKE INSERT ON notification.{table} FROM CURRENT_USER")
        try:
            sandbox.wait_for("events to be given up", lambda: _advisories(sandbox)[0] >= 3, 30)
            connection.execute(allow.format("processed_events"))
            sandbox.wait_for("the advisories to be given up", lambda: _advisories(sandbox)[1] == 0, 30)
        finally:
            for table in ("processed_events", "notification_nats_dlq"):
                connection.execute(allow.format(table))


def _advisories(sandbox: Programs) -> tuple[int, int]:
    """How many there are, and how many the subscriber still has before it."""

    async def count(js: JetStreamContext) -> tuple[int, int]:
        info = await js.consumer_info(broker.ADVISORY_STREAM, broker.ADVISORY_CONSUMER)
        messages = (await js.stream_info(broker.ADVISORY_STREAM)).state.messages
        return messages, (info.num_pending or 0) + (info.num_ack_pending or 0)

    return broker.visit(sandbox.state.addresses.app_nats_url, count)


_LOST = """
SELECT count(*) AS n FROM entitlement.outbox_events o
LEFT JOIN notification.processed_events p ON p.event_id = o.event_id
WHERE o.status = 'PUBLISHED' AND o.published_at BETWEEN now() - interval '1 hour' AND now() - interval '2 s'
    AND p.event_id IS NULL
"""


def publish_lost_events_again(sandbox: Programs) -> None:
    """Publish what was given up once more, without the old message ids, and close the file."""

    async def publish(js: JetStreamContext) -> None:
        for seq in await _given_up(js, broker.ADVISORY_STREAM):
            await js.publish(broker.SUBJECT, (await js.get_msg(broker.STREAM, seq)).data or b"")

    broker.visit(sandbox.state.addresses.app_nats_url, publish)
    with database.connect(sandbox.state.addresses.app_url) as connection:
        sandbox.wait_for("the lost events to be processed", lambda: connection.execute(_LOST).fetchone() == {"n": 0})
    forget_dead_messages(sandbox)


def exhaust_outbox(sandbox: Programs) -> None:
    """Events on their last try meet a broker that is away; then it comes back, and they do not."""
    sandbox.configure({"NATS_CONNECTION_TIMEOUT": "1"})  # the same end, sooner
    sandbox.restart("entitlement")
    sandbox.wait_for_flow(30)
    sandbox.stop("nats")
    now = database.now()
    try:
        with _transaction(sandbox) as connection:
            for n in range(4):
                row = _event(connection, f"outage-{n}", now - _NINE_TRIES - timedelta(seconds=n))
                connection.execute(
                    "UPDATE entitlement.outbox_events SET attempt_count = 9, next_retry_at = %s WHERE event_id = %s",
                    (now, row["event_id"]),
                )
        with database.connect(sandbox.state.addresses.app_url) as connection:
            failed = (
                "SELECT count(*) AS n FROM entitlement.outbox_events"
                " WHERE aggregate_key LIKE 'drill-%' AND status = 'FAILED'"
            )
            sandbox.wait_for("events to fail", lambda: connection.execute(failed).fetchone() == {"n": 4}, 60)
    finally:
        sandbox.start("nats")
    sandbox.wait_for_flow(30)


def forget_exhausted_outbox(sandbox: Programs) -> None:
    """Forget them, and give the relay its patience back."""
    forget(sandbox)
    with_settings("entitlement", NATS_CONNECTION_TIMEOUT="5")(sandbox)


# Notifications that go wrong --------------------------------------------------------------------------------


def refuse_one_user(sandbox: Programs) -> None:
    """Deliveries to one user have failed for an hour, and a few more are about to."""
    with_settings(
        "notification",
        NOTIFICATION_DELIVERY_FAILURE_INJECTION_ENABLED="true",
        NOTIFICATION_DELIVERY_FAILURE_INJECTION_USER_ID_PREFIX=USER,
    )(sandbox)
    now = database.now()
    with _transaction(sandbox) as connection:
        for n in range(6):
            at = now - timedelta(minutes=9 * n + 2)
            event_id = _queued(connection, "refused", at - _NINE_TRIES, f"sku-{n}")
            _set(connection, event_id, status="FAILED", attempt_count=10, next_retry_at=None)
            _dead_letter(connection, event_id, f"{INJECTED}{USER}refused", at)
        for n in range(6, 12):
            event_id = _queued(connection, "refused", now - _NINE_TRIES, f"sku-{n}")
            _set(connection, event_id, attempt_count=9, next_retry_at=now + timedelta(seconds=2 * (n - 6)))


def _set(connection: Connection, event_id: uuid.UUID, **columns: object) -> None:
    assignments = ", ".join(f"{name} = %({name})s" for name in columns)
    connection.execute(
        f"UPDATE notification.notifications SET {assignments} WHERE event_id = %(event_id)s",  # noqa: S608
        {**columns, "event_id": event_id},
    )


def accept_every_user(sandbox: Programs) -> None:
    """No more injected failures, and none left of the past ones."""
    with_settings(
        "notification",
        NOTIFICATION_DELIVERY_FAILURE_INJECTION_ENABLED="false",
        NOTIFICATION_DELIVERY_FAILURE_INJECTION_USER_ID_PREFIX="",
    )(sandbox)
    forget(sandbox)


def part_dead_letters(sandbox: Programs) -> None:
    """FAILED without its dead letter, and a dead letter of what was sent."""
    at = database.now() - timedelta(minutes=5)
    with _transaction(sandbox) as connection:
        failed, sent = (_queued(connection, name, at - _NINE_TRIES) for name in ("failed", "sent"))
        _set(connection, failed, status="FAILED", attempt_count=10, next_retry_at=None)
        _set(connection, sent, status="SENT", attempt_count=9, next_retry_at=None, sent_at=at)
        _dead_letter(connection, sent, "receiver answered 503", at)


def break_dedupe(sandbox: Programs) -> None:
    """Drop the key that absorbs second deliveries, and deliver the newest events a second time."""
    with _transaction(sandbox) as connection:
        connection.execute("ALTER TABLE notification.processed_events DROP CONSTRAINT processed_events_pkey")

    async def replay(js: JetStreamContext) -> None:
        held = (await js.stream_info(broker.STREAM)).state
        for seq in range(max(held.first_seq, held.last_seq - 9), held.last_seq + 1):
            await js.publish(broker.SUBJECT, (await js.get_msg(broker.STREAM, seq)).data or b"")

    broker.visit(sandbox.state.addresses.app_nats_url, replay)


_DOUBLES = """
DELETE FROM notification.{table} USING (
    SELECT ctid, row_number() OVER (PARTITION BY event_id ORDER BY {since}, ctid) AS nth FROM notification.{table}
) numbered
WHERE numbered.ctid = {table}.ctid AND nth > 1
"""


def repair_dedupe(sandbox: Programs) -> None:
    """Keep the first of each event, and put the key back."""
    with _transaction(sandbox) as connection:
        # In the subscriber's order, which therefore waits instead of ending in a deadlock.
        for table, since in (("processed_events", "processed_at"), ("notifications", "created_at")):
            connection.execute(f"LOCK TABLE notification.{table} IN ACCESS EXCLUSIVE MODE")
            connection.execute(_DOUBLES.format(table=table, since=since))
        key = "SELECT FROM pg_constraint WHERE conname = 'processed_events_pkey'"
        if connection.execute(key).fetchone() is None:
            connection.execute(
                "ALTER TABLE notification.processed_events ADD CONSTRAINT processed_events_pkey PRIMARY KEY (event_id)"
            )


# Two workers, and clocks ------------------------------------------------------------------------------------


def start_second_worker(sandbox: Programs) -> None:
    """A second delivery worker, while sends take so long that no lease outlasts its batch."""
    sandbox.configure({"NOTIFICATION_DELIVERY_LEASE": "500ms", "RECEIVER_DELAY": "200ms"})
    for program in ("receiver", "notification", "second-worker"):
        sandbox.restart(program)


def stop_second_worker(sandbox: Programs) -> None:
    """One worker, a quick receiver and a long lease again."""
    sandbox.stop("second-worker")
    sandbox.configure({"NOTIFICATION_DELIVERY_LEASE": "30s", "RECEIVER_DELAY": "0s"})
    for program in ("receiver", "notification"):
        sandbox.restart(program)


SKEW_S = 60

# What the pod's clock wrote lies ahead of the moment the database committed it.
_SET_BACK = (
    "UPDATE notification.notifications SET sent_at = sent_at - %(skew)s"
    " WHERE sent_at > pg_xact_commit_timestamp(xmin) + interval '30 s'",
    "UPDATE notification.notifications SET locked_at = locked_at - %(skew)s, lease_until = lease_until - %(skew)s"
    " WHERE locked_at > now() + interval '30 s'",
    "UPDATE notification.notifications n SET created_at = n.created_at - %(skew)s,"
    " next_retry_at = n.next_retry_at - %(skew)s FROM notification.processed_events p"
    " WHERE p.event_id = n.event_id AND p.processed_at > pg_xact_commit_timestamp(p.xmin) + interval '30 s'",
    "UPDATE notification.processed_events SET processed_at = processed_at - %(skew)s"
    " WHERE processed_at > pg_xact_commit_timestamp(xmin) + interval '30 s'",
)


def put_clock_right(sandbox: Programs) -> None:
    """The true time again, also in the rows written meanwhile."""
    sandbox.stop("notification")
    with _transaction(sandbox) as connection:
        for statement in _SET_BACK:
            connection.execute(statement, {"skew": timedelta(seconds=SKEW_S)})
    with_settings("notification", NOTIFICATION_CLOCK_OFFSET="0")(sandbox)
