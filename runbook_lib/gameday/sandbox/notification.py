"""The notification application: subscriber, advisory subscribers, delivery worker and retention."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import urllib.parse
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import ClassVar, Literal

import psycopg
from nats.aio.msg import Msg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.wire import EntitlementEvent, Event, MatchmakingEvent

from . import broker, database, telemetry, worker
from .database import Connection, Database, pooled
from .settings import Environment, error_text, flag, nats_timeout, seconds
from .worker import Handle, PermanentError, WorkerQueue

log = logging.getLogger(__name__)

SEND_TIMEOUT = 2.0


# The subscriber ---------------------------------------------------------------------------------------------


def accept(connection: Connection, event: Event, now: datetime) -> bool:
    """Queue a notification, once per event: the ledger row comes first; False for a duplicate."""
    try:
        event_id = uuid.UUID(event.event_id)
        occurred_at = datetime.fromisoformat(event.occurred_at)
    except ValueError as error:
        raise PermanentError(str(error)) from None
    try:
        with connection.transaction():
            database.insert(connection, "notification.processed_events", event_id=event_id, processed_at=now)
            database.insert(
                connection,
                "notification.notifications",
                notification_id=uuid.uuid4(),
                event_id=event_id,
                user_id=event.user_id,
                type=event.event_type,
                occurred_at=occurred_at,
                payload_json=Jsonb(event.payload()),
                status="PENDING",
                attempt_count=0,
                next_retry_at=now,
                created_at=now,
            )
    except psycopg.errors.UniqueViolation as error:
        if error.diag.constraint_name != "processed_events_pkey":
            raise
        return False
    return True


@dataclass
class MessageHandler(ABC):
    """Takes messages one at a time, and answers each."""

    source: Database

    async def on_message(self, message: Msg) -> None:
        """Handle one message, and send the answer: on a dead connection the message simply comes again."""
        answer = await asyncio.to_thread(self.answer, message.data)
        try:
            await {"ack": message.ack, "nack": message.nak, "term": message.term}[answer]()
        except Exception as error:
            log.warning("failed to %s nats message: %s", answer, error)

    @abstractmethod
    def answer(self, data: bytes) -> Literal["ack", "nack", "term"]:
        """Handle what a message holds."""


@dataclass
class Subscriber(MessageHandler):
    """Turns messages of one kind into rows."""

    kind: type[Event] = EntitlementEvent

    def answer(self, data: bytes) -> Literal["ack", "nack", "term"]:
        """Handle a message of the stream that carries this kind of event."""
        match = self.kind is MatchmakingEvent
        nats_message = "matchmaking nats message" if match else "nats message"
        try:
            event: Event = wire.decode(data, self.kind)
        except wire.WireError:
            log.warning("failed to parse %s payload", nats_message)
            return "term"
        ids = {"event_id": event.event_id, "event_type": event.event_type}
        if isinstance(event, EntitlementEvent):
            ids["source_id"] = event.source_id
        try:
            with self.source.connection() as connection:
                new = accept(connection, event, database.now())
        except PermanentError as error:
            log.warning("permanent failure while handling %s: %s", nats_message, error, extra=ids)
            return "term"
        except Exception as error:
            refused = isinstance(error, psycopg.Error) and not isinstance(error, psycopg.OperationalError)
            what = "temporary failure while handling" if refused else "failed to handle"
            log.warning("%s %s", what, nats_message, exc_info=True, extra=ids)
        else:
            name = "matchmaking event" if match else "notification event"
            log.info(f"{name} accepted and queued" if new else f"duplicate {name} skipped", extra=ids)
            return "ack"
        return "nack"


@dataclass
class AdvisorySubscriber(MessageHandler):
    """Records the stream sequence of every message that the broker gave up on."""

    kind: str  # "advisory" or "terminated advisory"

    def answer(self, data: bytes) -> Literal["ack", "nack", "term"]:
        """Handle a MAX_DELIVERIES or MSG_TERMINATED advisory."""
        try:
            stream_seq = json.loads(data).get("stream_seq")
        except (ValueError, AttributeError):
            log.warning("failed to parse %s payload", self.kind)
            return "ack"
        if not isinstance(stream_seq, int) or stream_seq <= 0:
            log.warning("%s payload missing stream_seq", self.kind)
            return "ack"
        try:
            with self.source.connection() as connection:
                row = {"stream_seq": stream_seq, "created_at": database.now()}
                database.insert(connection, "notification.notification_nats_dlq", "ON CONFLICT DO NOTHING", **row)
        except psycopg.Error:
            log.warning("temporary failure while handling %s payload", self.kind, exc_info=True)
            return "nack"
        return "ack"


#: By the durable: how the log calls its subscriber, and who that is.
_SUBSCRIBERS: dict[str, tuple[str, Callable[[Database], MessageHandler]]] = {
    broker.CONSUMER: ("notification", Subscriber),
    broker.MATCH_CONSUMER: ("matchmaking", partial(Subscriber, kind=MatchmakingEvent)),
    broker.ADVISORY_CONSUMER: ("notification advisory", partial(AdvisorySubscriber, kind="advisory")),
    broker.TERMINATED_CONSUMER: (
        "notification terminated advisory",
        partial(AdvisorySubscriber, kind="terminated advisory"),
    ),
}


def run_subscriber(env: Environment) -> None:
    """Run the subscriber of a pod; after SIGUSR1 it receives nothing (see `Broker.give_up`)."""
    asyncio.run(_run_subscribers(env))


async def _run_subscribers(env: Environment) -> None:
    sources = {durable: await asyncio.to_thread(pooled, env, durable) for durable in _SUBSCRIBERS}
    if not flag(env.get("NATS_ENABLED", "true")):
        await asyncio.Event().wait()
    client = broker.Broker(env["NATS_URL"], nats_timeout(env))
    js = await client.open()
    await broker.ensure_streams(js, seconds(env.get("NOTIFICATION_NATS_DUPLICATE_WINDOW", "2m")))
    log.info("notification stream ensured")
    ack_wait = seconds(env.get("NOTIFICATION_NATS_ACK_WAIT", "10s"))
    max_deliver = int(env.get("NOTIFICATION_NATS_MAX_DELIVER", "10"))
    for durable, (name, subscriber) in _SUBSCRIBERS.items():
        await client.bind(durable, subscriber(sources[durable]).on_message, ack_wait, max_deliver)
        log.info("%s subscriber started", name)
    client.give_up_on_signal()
    await asyncio.Event().wait()  # the process outlives its connection


# The delivery worker ----------------------------------------------------------------------------------------


class LockLostError(Exception):
    """The guarded update met no row: another worker has taken it over."""


class Deliveries(WorkerQueue):
    """The worker's side of `notifications`."""

    NAME, SETTINGS = "NotificationDeliveryWorker", "NOTIFICATION_DELIVERY"
    TABLE, KEY, LEASED = "notification.notifications", "notification_id", "PROCESSING"
    GUARD: ClassVar = {"status": LEASED}

    def poll(self, handle: Handle) -> None:
        """Deliver one batch; each poll begins with how many are due."""
        now = database.now()
        due = database.count(self.connection, self.TABLE, self.due(), now=now)
        telemetry.gauge("notification_backlog_current", due)
        self.work(handle, now)

    def succeeded(self, row: DictRow, now: datetime) -> bool:
        """Mark as sent."""
        marked = self.mark(row, status="SENT", sent_at=now, next_retry_at=None)
        if marked:
            telemetry.count("notification_delivery_total", result="sent")
            telemetry.timer("notification_delivery_e2e_delay", (now - row["occurred_at"]).total_seconds())
        else:
            log.warning("notification sent but lock was lost id=%s", row[self.KEY])
        return marked

    def mark_failed(self, row: DictRow, now: datetime, error: Exception, **columns: object) -> None:
        """Mark for the next try, or as FAILED with a dead letter, and log it."""
        if columns["status"] == "FAILED":
            self._add_dead_letter(row, now, error, columns)
            return
        if not self.mark(row, **columns):
            log.warning("notification retry skipped because lock was lost id=%s", row[self.KEY])
        tries = columns["attempt_count"]
        log.warning("notification retry scheduled id=%s attempt=%s", row[self.KEY], tries, exc_info=error)
        telemetry.count("notification_delivery_total", result="retry_scheduled")

    def _add_dead_letter(self, row: DictRow, now: datetime, error: Exception, columns: dict[str, object]) -> None:
        try:
            with self.connection.transaction():
                database.insert(
                    self.connection,
                    "notification.notification_dlq",
                    "ON CONFLICT (notification_id) DO NOTHING",
                    dlq_id=uuid.uuid4(),
                    notification_id=row[self.KEY],
                    event_id=row["event_id"],
                    payload_json=Jsonb(row["payload_json"]),
                    error_message=error_text(error),
                    created_at=now,
                )
                if not self.mark(row, **columns):
                    raise LockLostError
        except LockLostError:
            log.warning("notification dlq skipped because lock was lost id=%s", row[self.KEY])
        else:
            log.warning("notification moved to DLQ id=%s eventId=%s", row[self.KEY], row["event_id"])
            telemetry.count("notification_dlq_total")
            telemetry.count("notification_delivery_total", result="failed")


def post_to(url: str) -> Handle:
    """Send one HTTP POST per notification."""
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


def inject_failures(send: Handle, env: Environment) -> Handle:
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
    active = "status IN ('PENDING', 'PROCESSING') AND created_at < %(before)s"
    if stale := database.count(connection, Deliveries.TABLE, active, before=before):
        log.error("notification retention found stale active records count=%s", stale)
    done = "status IN ('SENT', 'FAILED') AND created_at < %(before)s"
    notifications = database.delete(connection, Deliveries.TABLE, done, before=before)
    old = "processed_at < %(before)s"
    processed = database.delete(connection, "notification.processed_events", old, before=before)
    log.info("notification retention cleanup deleted notifications=%s processedEvents=%s", notifications, processed)
    return notifications, processed


def run_worker(env: Environment) -> None:
    """Run the delivery worker and retention of a pod."""
    keep = timedelta(days=int(env.get("NOTIFICATION_RETENTION_RETENTION_DAYS", "30")))
    send = inject_failures(post_to(env["SANDBOX_RECEIVER_URL"]), env)
    worker.run(env, Deliveries, send, partial(clean_up, keep=keep))
