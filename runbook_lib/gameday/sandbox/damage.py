"""The effects of faults on rows, messages and streams.

What is put into the tables belongs to users whose ids begin with `drill-`. It is written by the applications' own
code as far as they have any for it. What works on rows takes a connection in a transaction, what works at the broker
its JetStream.
"""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime, timedelta
from itertools import cycle, islice
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy
from psycopg.rows import DictRow

from runbook_lib.packs.entitlement.wire import EntitlementEvent

from . import broker, database, entitlement, notification
from .database import Connection

USER = "drill-"
SKU = entitlement.STOCK_KEEPING_UNITS[0]
INJECTED = "notification delivery failure injection matched userId="

# Nine tries take about four minutes: rows that have used them up are so old.
NINE_TRIES = timedelta(minutes=4, seconds=5)


# Rows -------------------------------------------------------------------------------------------------------


def add_event(connection: Connection, user: str, at: datetime, sku: str = SKU, **columns: object) -> DictRow:
    """Grant a right, once per user and SKU; return the outbox row, which waits, or is as `columns` say."""
    command = entitlement.GrantRequest("GRANT", USER + user, sku, "purchase", f"purchase-{user}")
    entitlement.execute(connection, command, at)
    row = connection.execute(
        "SELECT event_id, payload FROM entitlement.outbox_events WHERE aggregate_key = %s", (f"{USER}{user}:{sku}",)
    ).fetchone()
    assert row is not None  # noqa: S101
    if columns:
        database.update(connection, "entitlement.outbox_events", columns, event_id=row["event_id"])
    return row


def add_notification(
    connection: Connection,
    user: str,
    at: datetime,
    sku: str = SKU,
    letter: tuple[str, datetime] | None = None,
    **columns: object,
) -> None:
    """Let an event pass every hop up to the delivery queue; its notification is as `columns` say.

    With `letter`, an error and its time, it has a dead letter.
    """
    published = at + timedelta(milliseconds=400)
    row = add_event(connection, user, at, sku, status="PUBLISHED", published_at=published)
    notification.accept(connection, EntitlementEvent(**row["payload"]), at + timedelta(milliseconds=500))
    database.update(connection, "notification.notifications", columns, event_id=row["event_id"])
    if letter:
        connection.execute(
            "INSERT INTO notification.notification_dlq"
            " (dlq_id, notification_id, event_id, payload_json, error_message, created_at)"
            " SELECT gen_random_uuid(), notification_id, event_id, payload_json, %s, %s"
            " FROM notification.notifications WHERE event_id = %s",
            (*letter, row["event_id"]),
        )


def bad_payloads(connection: Connection, n: int) -> None:
    """Queue payloads of the wrong JSON shape, one a minute."""
    now = database.now()
    shapes = ("[]", '"text"', '{"version": "one"}', "[]", "[1, 2]")
    for minute, payload in enumerate(islice(cycle(shapes), n)):
        add_event(connection, f"shape-{minute}", now - timedelta(minutes=minute), payload=payload)


def unknown_event_types(connection: Connection, n: int) -> None:
    """Queue events of a type that the wire format lacks; each has one try left."""
    now = database.now()
    last: dict[str, Any] = {"event_type": "EntitlementSuspended", "attempt_count": 9, "next_retry_at": now}
    for minute in range(n):
        add_event(connection, f"type-{minute}", now - NINE_TRIES - timedelta(minutes=minute), **last)


def refuse_one_user(connection: Connection) -> None:
    """Let deliveries to one user have failed for an hour, and a few more be about to."""
    now = database.now()
    for n in range(6):
        at = now - timedelta(minutes=9 * n + 2)
        failed: dict[str, Any] = {"status": "FAILED", "attempt_count": 10, "next_retry_at": None}
        add_notification(connection, "refused", at - NINE_TRIES, f"sku-{n}", (f"{INJECTED}{USER}refused", at), **failed)
    for n in range(6, 12):
        again = now + timedelta(seconds=2 * (n - 6))
        add_notification(connection, "refused", now - NINE_TRIES, f"sku-{n}", attempt_count=9, next_retry_at=again)


def part_dead_letters(connection: Connection) -> None:
    """Make a FAILED row without its dead letter, and a dead letter of what was sent."""
    at = database.now() - timedelta(minutes=5)
    made = at - NINE_TRIES
    add_notification(connection, "failed", made, status="FAILED", attempt_count=10, next_retry_at=None)
    sent: dict[str, Any] = {"status": "SENT", "attempt_count": 9, "next_retry_at": None, "sent_at": at}
    add_notification(connection, "sent", made, letter=("receiver answered 503", at), **sent)


# Streams and messages ---------------------------------------------------------------------------------------


async def purge_stream(js: JetStreamContext, s: int) -> None:
    """Pause the consumer for so many seconds, and purge the events' stream before it goes on."""
    await js.pause_consumer(broker.STREAM, broker.CONSUMER, "2100-01-01T00:00:00Z")
    await asyncio.sleep(s)
    await js.purge_stream(broker.STREAM)
    await js.resume_consumer(broker.STREAM, broker.CONSUMER)


async def purge_record(js: JetStreamContext) -> None:
    """Purge the advisories, which name the messages that were given up."""
    for stream in (broker.ADVISORY_STREAM, broker.TERMINATED_STREAM):
        await js.purge_stream(stream)


async def fill_stream(js: JetStreamContext) -> None:
    """Let the stream of the events take no more than it holds, and refuse what is new."""
    info = await js.stream_info(broker.STREAM)
    await js.update_stream(info.config.evolve(max_msgs=info.state.messages, discard=DiscardPolicy.NEW))


async def publish_noise(js: JetStreamContext, n: int) -> None:
    """Publish noise on the subject of the events."""
    for _ in range(n):
        await js.publish(broker.SUBJECT, b"\xff" + secrets.token_bytes(40))  # no message starts with this byte


async def replay(js: JetStreamContext, n: int) -> None:
    """Publish the newest events a second time."""
    held = (await js.stream_info(broker.STREAM)).state
    for seq in range(max(held.first_seq, held.last_seq - n + 1), held.last_seq + 1):
        await js.publish(broker.SUBJECT, (await js.get_msg(broker.STREAM, seq)).data or b"")
