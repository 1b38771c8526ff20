"""The notification application: subscriber, advisory subscribers, delivery worker and retention."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import time
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from nats.aio.msg import Msg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.wire import EntitlementEvent, Event, MatchmakingEvent

from . import broker, database
from .database import Connection, Database
from .settings import Environment, WorkerSettings, error_text, flag, nats_timeout, seconds

log = logging.getLogger(__name__)

Send = Callable[[DictRow], None]

SEND_TIMEOUT = 2.0


# The subscriber ---------------------------------------------------------------------------------------------


class PermanentError(Exception):
    """This message can never be stored, however often it is delivered."""


def accept(connection: Connection, event: Event, now: datetime) -> bool:
    """Queue a notification, once per event: the ledger row comes first; False for a duplicate."""
    try:
        event_id = uuid.UUID(event.event_id)
        occurred_at = datetime.fromisoformat(event.occurred_at)
    except ValueError as error:
        raise PermanentError(str(error)) from None
    try:
        with connection.transaction():
            connection.execute(
                "INSERT INTO notification.processed_events (event_id, processed_at) VALUES (%s, %s)",
                (event_id, now),
            )
            connection.execute(
                "INSERT INTO notification.notifications (notification_id, event_id, user_id, type,"
                " occurred_at, payload_json, status, attempt_count, next_retry_at, created_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, 'PENDING', 0, %s, %s)",
                (
                    uuid.uuid4(),
                    event_id,
                    event.user_id,
                    event.event_type,
                    occurred_at,
                    Jsonb(event.payload()),
                    now,
                    now,
                ),
            )
    except psycopg.errors.UniqueViolation as error:
        if error.diag.constraint_name != "processed_events_pkey":
            raise
        return False
    return True


@dataclass
class Subscriber:
    """Turns messages of one kind into rows, one at a time, and answers each: ack, nak or term."""

    source: Database
    kind: type[Event] = EntitlementEvent

    async def on_event(self, message: Msg) -> None:
        """A message of the stream that carries this kind of event."""
        match = self.kind is MatchmakingEvent
        nats_message = "matchmaking nats message" if match else "nats message"
        try:
            event: Event = wire.decode(message.data, self.kind)
        except wire.WireError:
            log.warning("failed to parse %s payload", nats_message)
            await _reply(message.term, "term")
            return
        ids = {"event_id": event.event_id, "event_type": event.event_type}
        if isinstance(event, EntitlementEvent):
            ids["source_id"] = event.source_id
        try:
            new = await asyncio.to_thread(self._accept, event)
        except PermanentError as error:
            log.warning("permanent failure while handling %s: %s", nats_message, error, extra=ids)
            await _reply(message.term, "term")
        except psycopg.OperationalError as error:
            log.warning("failed to handle %s: %s", nats_message, error_text(error).splitlines()[0], extra=ids)
            await _reply(message.nak, "nack")
        except psycopg.Error as error:
            log.warning("temporary failure while handling %s: %s", nats_message, error_text(error), extra=ids)
            await _reply(message.nak, "nack")
        except Exception:
            log.warning("failed to handle %s", nats_message, exc_info=True, extra=ids)
            await _reply(message.nak, "nack")
        else:
            name = "matchmaking event" if match else "notification event"
            log.info(f"{name} accepted and queued" if new else f"duplicate {name} skipped", extra=ids)
            await _reply(message.ack, "ack")

    def _accept(self, event: Event) -> bool:
        with self.source.connection() as connection:
            return accept(connection, event, database.now())


@dataclass
class AdvisorySubscriber:
    """Records the stream sequence of every message that the broker gave up on."""

    source: Database
    kind: str  # "advisory" or "terminated advisory"

    async def on_advisory(self, message: Msg) -> None:
        """A MAX_DELIVERIES or MSG_TERMINATED advisory."""
        try:
            stream_seq = json.loads(message.data).get("stream_seq")
        except (ValueError, AttributeError):
            log.warning("failed to parse %s payload", self.kind)
            await _reply(message.ack, "ack")
            return
        if not isinstance(stream_seq, int) or stream_seq <= 0:
            log.warning("%s payload missing stream_seq", self.kind)
            await _reply(message.ack, "ack")
            return
        try:
            await asyncio.to_thread(self._record, stream_seq)
        except psycopg.Error as error:
            log.warning("temporary failure while handling %s payload: %s", self.kind, error_text(error))
            await _reply(message.nak, "nack")
        else:
            await _reply(message.ack, "ack")

    def _record(self, stream_seq: int) -> None:
        with self.source.connection() as connection:
            connection.execute(
                "INSERT INTO notification.notification_nats_dlq (stream_seq, created_at) VALUES (%s, %s)"
                " ON CONFLICT DO NOTHING",
                (stream_seq, database.now()),
            )


async def _reply(answer: Callable[[], Any], name: str) -> None:
    # Fire and forget: on a dead connection the message simply comes again.
    try:
        await answer()
    except Exception as error:
        log.warning("failed to %s nats message: %s", name, error)


def run_subscriber(env: Environment) -> None:
    """The subscriber of a pod; SIGUSR1 makes it deaf (see `Broker.give_up`)."""
    asyncio.run(_subscribe(env))


async def _subscribe(env: Environment) -> None:
    client = broker.Broker(env["NATS_URL"], nats_timeout(env))
    js = await client.open()
    await broker.ensure_streams(js, seconds(env.get("NOTIFICATION_NATS_DUPLICATE_WINDOW", "2m")))
    log.info("notification stream ensured")
    url = database.url(env)
    ack_wait = seconds(env.get("NOTIFICATION_NATS_ACK_WAIT", "10s"))
    max_deliver = int(env.get("NOTIFICATION_NATS_MAX_DELIVER", "10"))
    for durable, name, handler in (
        (broker.CONSUMER, "notification", Subscriber(Database(url)).on_event),
        (broker.MATCH_CONSUMER, "matchmaking", Subscriber(Database(url), MatchmakingEvent).on_event),
        (
            broker.ADVISORY_CONSUMER,
            "notification advisory",
            AdvisorySubscriber(Database(url), "advisory").on_advisory,
        ),
        (
            broker.TERMINATED_CONSUMER,
            "notification terminated advisory",
            AdvisorySubscriber(Database(url), "terminated advisory").on_advisory,
        ),
    ):
        await client.bind(durable, handler, ack_wait, max_deliver)
        log.info("%s subscriber started", name)
    client.give_up_on_signal()
    await asyncio.Event().wait()  # the process outlives its connection


# The delivery worker ----------------------------------------------------------------------------------------

_CLAIM = """
WITH due AS (
    SELECT notification_id FROM notification.notifications
    WHERE (status = 'PENDING' AND (next_retry_at IS NULL OR next_retry_at <= %(now)s))
       OR (status = 'PROCESSING' AND (lease_until IS NULL OR lease_until <= %(now)s))
    ORDER BY created_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE notification.notifications AS n
SET status = 'PROCESSING', locked_by = %(me)s, locked_at = %(now)s, lease_until = %(lease)s
FROM due WHERE n.notification_id = due.notification_id
RETURNING n.notification_id, n.event_id, n.user_id, n.type, n.payload_json, n.attempt_count
"""


class LockLostError(Exception):
    """The guarded update met no row: another worker has taken it over."""


@dataclass(frozen=True)
class Deliveries:
    """The worker's side of `notifications`; `now` is the start of its batch, for every row of it."""

    connection: Connection
    settings: WorkerSettings
    me: str

    def claim(self, now: datetime) -> list[DictRow]:
        """Take what is due, or was left by a dead worker, for the length of the lease."""
        return self.connection.execute(
            _CLAIM,
            {
                "now": now,
                "limit": self.settings.batch_size,
                "me": self.me,
                "lease": now + self.settings.lease,
            },
        ).fetchall()

    def sent(self, row: DictRow, now: datetime) -> bool:
        """Mark as sent; False when the lock was lost."""
        return self._mark(row, "status = 'SENT', sent_at = %(now)s, next_retry_at = NULL", now=now)

    def failed(self, row: DictRow, now: datetime, error: str) -> str:
        """Schedule the next try, or move to the DLQ in one transaction; the status that was meant."""
        failures = row["attempt_count"] + 1
        if failures >= self.settings.max_attempts:
            self._dead_letter(row, now, failures, error)
            return "FAILED"
        retry = now + self.settings.backoff.delay(failures)
        assignments = "status = 'PENDING', attempt_count = %(failures)s, next_retry_at = %(retry)s"
        if not self._mark(row, assignments, failures=failures, retry=retry):
            log.warning("notification retry skipped because lock was lost id=%s", row["notification_id"])
        log.warning("notification retry scheduled id=%s attempt=%s", row["notification_id"], failures)
        return "PENDING"

    def _dead_letter(self, row: DictRow, now: datetime, failures: int, error: str) -> None:
        try:
            with self.connection.transaction():
                self.connection.execute(
                    "INSERT INTO notification.notification_dlq"
                    " (dlq_id, notification_id, event_id, payload_json, error_message, created_at)"
                    " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (notification_id) DO NOTHING",
                    (
                        uuid.uuid4(),
                        row["notification_id"],
                        row["event_id"],
                        Jsonb(row["payload_json"]),
                        error,
                        now,
                    ),
                )
                assignments = "status = 'FAILED', attempt_count = %(failures)s, next_retry_at = NULL"
                if not self._mark(row, assignments, failures=failures):
                    raise LockLostError
        except LockLostError:
            log.warning("notification dlq skipped because lock was lost id=%s", row["notification_id"])
        else:
            log.warning("notification moved to DLQ id=%s eventId=%s", row["notification_id"], row["event_id"])

    def _mark(self, row: DictRow, assignments: str, **values: Any) -> bool:
        done = self.connection.execute(
            f"UPDATE notification.notifications SET {assignments}, locked_by = NULL, locked_at = NULL,"  # noqa: S608
            " lease_until = NULL"
            " WHERE notification_id = %(id)s AND status = 'PROCESSING' AND locked_by = %(me)s",
            {**values, "id": row["notification_id"], "me": self.me},
        )
        return done.rowcount == 1


def deliver_batch(deliveries: Deliveries, send: Send, now: datetime) -> int:
    """Claim, send one by one, mark one by one; how many rows were claimed."""
    rows = deliveries.claim(now)
    for row in rows:
        try:
            send(row)
        except Exception as error:
            deliveries.failed(row, now, error_text(error))
            continue
        if not deliveries.sent(row, now):
            log.warning("notification sent but lock was lost id=%s", row["notification_id"])
    return len(rows)


def post_to(url: str) -> Send:
    """The sender: one HTTP POST per notification."""
    target = urllib.parse.urlsplit(url)

    def send(row: DictRow) -> None:
        body = {
            "notification_id": str(row["notification_id"]),
            "event_id": str(row["event_id"]),
            "user_id": row["user_id"],
            "type": row["type"],
            "payload": row["payload_json"],
        }
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=SEND_TIMEOUT)
        try:
            connection.request("POST", target.path, json.dumps(body), {"Content-Type": "application/json"})
            status = connection.getresponse().status
        except TimeoutError:
            raise ConnectionError(f"receiver did not answer within {SEND_TIMEOUT:g} s") from None
        except OSError as error:
            raise ConnectionError(f"receiver unreachable: {error.strerror or error}") from None
        finally:
            connection.close()
        if status >= 300:
            raise ConnectionError(f"receiver answered {status}")
        log.info("notification simulated send id=%s eventId=%s", row["notification_id"], row["event_id"])

    return send


def inject_failures(send: Send, env: Environment) -> Send:
    """Refuse the users with a given prefix when the failure injection is on."""
    prefix = env.get("NOTIFICATION_DELIVERY_FAILURE_INJECTION_USER_ID_PREFIX", "")
    enabled = flag(env.get("NOTIFICATION_DELIVERY_FAILURE_INJECTION_ENABLED", "false"))
    if not (enabled and prefix):
        return send

    def refuse(row: DictRow) -> None:
        if row["user_id"].startswith(prefix):
            raise RuntimeError(f"notification delivery failure injection matched userId={row['user_id']}")
        send(row)

    return refuse


# Retention --------------------------------------------------------------------------------------------------


def clean_up(connection: Connection, now: datetime, keep: timedelta) -> tuple[int, int]:
    """Delete what is finished and old; what is old and not finished is only reported."""
    before = now - keep
    stale = connection.execute(
        "SELECT count(*) AS n FROM notification.notifications"
        " WHERE status IN ('PENDING', 'PROCESSING') AND created_at < %s",
        (before,),
    ).fetchone()
    if stale is not None and stale["n"]:
        log.error("notification retention found stale active records count=%s", stale["n"])
    notifications = connection.execute(
        "DELETE FROM notification.notifications WHERE status IN ('SENT', 'FAILED') AND created_at < %s",
        (before,),
    ).rowcount
    processed = connection.execute(
        "DELETE FROM notification.processed_events WHERE processed_at < %s", (before,)
    ).rowcount
    log.info("notification retention cleanup deleted notifications=%s processedEvents=%s", notifications, processed)
    return notifications, processed


def run_worker(env: Environment) -> None:
    """The scheduler thread of a pod: delivery every second, retention every hour."""
    settings = WorkerSettings.read("NOTIFICATION_DELIVERY", env)
    retention = flag(env.get("NOTIFICATION_RETENTION_ENABLED", "true"))
    keep = timedelta(days=int(env.get("NOTIFICATION_RETENTION_RETENTION_DAYS", "30")))
    cleanup_interval = seconds(env.get("NOTIFICATION_RETENTION_CLEANUP_INTERVAL", "1h"))
    send = inject_failures(post_to(env["SANDBOX_RECEIVER_URL"]), env)
    source = Database(database.url(env))
    next_cleanup = time.monotonic()
    while True:
        try:
            with source.connection() as connection:
                if settings.enabled:
                    deliver_batch(Deliveries(connection, settings, env["HOSTNAME"]), send, database.now())
                if retention and time.monotonic() >= next_cleanup:
                    next_cleanup = time.monotonic() + cleanup_interval
                    clean_up(connection, database.now(), keep)
        except Exception:
            # What a scheduled task throws is logged, and the next run comes all the same.
            log.exception("Unexpected error occurred in scheduled task")
        time.sleep(settings.poll_interval)
