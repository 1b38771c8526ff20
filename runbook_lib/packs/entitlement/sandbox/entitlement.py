"""The entitlement application: grant and revoke, the outbox relay, retention, and its load."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.wire import EntitlementEvent

from . import broker, database, telemetry
from .database import Connection, Database, Pooled
from .settings import Environment, WorkerSettings, error_text, flag, nats_timeout, read_env, seconds

log = logging.getLogger(__name__)

USERS = 400
STOCK_KEEPING_UNITS = ("sku-season-pass", "sku-gold-pack", "sku-skin-aurora", "sku-skin-ember", "sku-starter")
IDEMPOTENCY_TTL = timedelta(hours=24)
PUBLISHED_TTL = timedelta(hours=24)

PARSE_FAILURE = "outbox payload parse failure"


# The API ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One request to grant or to revoke."""

    FIELDS = ("user_id", "stock_keeping_unit", "reason", "purchase_id")

    action: str  # GRANT or REVOKE
    user_id: str
    stock_keeping_unit: str
    reason: str
    purchase_id: str
    idempotency_key: str
    trace_id: str

    def detail(self) -> dict[str, str]:
        """The request's body."""
        return {name: getattr(self, name) for name in self.FIELDS}

    def hash(self) -> str:
        """What makes two requests the same."""
        return hashlib.sha256("\n".join((self.action, *self.detail().values())).encode()).hexdigest()


def instant(moment: datetime) -> str:
    """ISO-8601 in UTC, ending in Z."""
    return moment.isoformat().replace("+00:00", "Z")


def execute(connection: Connection, command: Command, now: datetime) -> tuple[int, dict[str, Any]]:
    """Grant or revoke in one transaction: state, audit, outbox and the stored answer."""
    with connection.transaction():
        lock = hashlib.sha256(command.idempotency_key.encode()).digest()[:8]
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (int.from_bytes(lock, "big", signed=True),))
        stored = connection.execute(
            "SELECT request_hash, response_code, response_body FROM entitlement.idempotency_keys"
            " WHERE idem_key = %s AND expires_at > %s",
            (command.idempotency_key, now),
        ).fetchone()
        if stored is not None:
            if stored["request_hash"] != command.hash():
                return 409, {"code": "IDEMPOTENCY_KEY_CONFLICT"}
            return stored["response_code"], stored["response_body"]
        code, body = _transition(connection, command, now)
        connection.execute(
            "INSERT INTO entitlement.idempotency_keys"
            " (idem_key, request_hash, response_code, response_body, created_at, expires_at)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (idem_key) DO UPDATE SET"
            " request_hash = excluded.request_hash, response_code = excluded.response_code,"
            " response_body = excluded.response_body, expires_at = excluded.expires_at",
            (command.idempotency_key, command.hash(), code, Jsonb(body), now, now + IDEMPOTENCY_TTL),
        )
        return code, body


def _transition(connection: Connection, command: Command, now: datetime) -> tuple[int, dict[str, Any]]:
    granting = command.action == "GRANT"
    status = "ACTIVE" if granting else "REVOKED"
    pair = (command.user_id, command.stock_keeping_unit)
    current = connection.execute(
        "SELECT status, version FROM entitlement.entitlements WHERE user_id = %s AND stock_keeping_unit = %s",
        pair,
    ).fetchone()
    if current is not None and current["status"] == status:
        return 409, {"code": "ENTITLEMENT_STATE_CONFLICT"}
    version = 0 if current is None else current["version"] + 1
    connection.execute(
        "INSERT INTO entitlement.entitlements AS e (user_id, stock_keeping_unit, status, granted_at,"
        " revoked_at, source, source_id, version, updated_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (user_id, stock_keeping_unit) DO UPDATE SET status = excluded.status,"
        " granted_at = coalesce(excluded.granted_at, e.granted_at), revoked_at = excluded.revoked_at,"
        " source = excluded.source, source_id = excluded.source_id, version = excluded.version,"
        " updated_at = excluded.updated_at",
        (
            *pair,
            status,
            now if granting else None,
            None if granting else now,
            command.reason,
            command.purchase_id,
            version,
            now,
        ),
    )
    connection.execute(
        "INSERT INTO entitlement.entitlement_audit (audit_id, occurred_at, user_id, stock_keeping_unit,"
        " action, source, source_id, request_id, detail) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            uuid.uuid4(),
            now,
            *pair,
            command.action,
            command.reason,
            command.purchase_id,
            command.idempotency_key,
            Jsonb(command.detail()),
        ),
    )
    event = EntitlementEvent(
        event_id=str(uuid.uuid4()),
        event_type=wire.GRANTED if granting else wire.REVOKED,
        occurred_at=instant(now),
        user_id=command.user_id,
        stock_keeping_unit=command.stock_keeping_unit,
        source=command.reason,
        source_id=command.purchase_id,
        version=version,
        trace_id=command.trace_id,
    )
    connection.execute(
        "INSERT INTO entitlement.outbox_events (event_id, event_type, aggregate_key, payload, status,"
        " attempt_count, created_at) VALUES (%s, %s, %s, %s, 'PENDING', 0, %s)",
        (event.event_id, event.event_type, ":".join(pair), Jsonb(event.payload()), now),
    )
    body = {"user_id": pair[0], "stock_keeping_unit": pair[1], "status": status, "version": version}
    return 200, body


# The outbox -------------------------------------------------------------------------------------------------

_CLAIM = """
WITH due AS (
    SELECT event_id FROM entitlement.outbox_events
    WHERE (status = 'PENDING' AND (next_retry_at IS NULL OR next_retry_at <= %(now)s))
       OR (status = 'IN_FLIGHT' AND (lease_until IS NULL OR lease_until <= %(now)s))
    ORDER BY created_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE entitlement.outbox_events AS o
SET status = 'IN_FLIGHT', locked_by = %(me)s, locked_at = %(now)s, lease_until = %(lease)s, last_error = NULL
FROM due WHERE o.event_id = due.event_id
RETURNING o.event_id, o.event_type, o.aggregate_key, o.payload, o.attempt_count
"""


@dataclass(frozen=True)
class Outbox:
    """The relay's side of `outbox_events`; `now` is the start of its batch, for every row of it."""

    connection: Connection
    settings: WorkerSettings
    me: str

    def claim(self, now: datetime) -> list[DictRow]:
        """Take what is due, or was left by a dead relay, for the length of the lease."""
        return self.connection.execute(
            _CLAIM,
            {
                "now": now,
                "limit": self.settings.batch_size,
                "me": self.me,
                "lease": now + self.settings.lease,
            },
        ).fetchall()

    def published(self, event_id: uuid.UUID, now: datetime) -> bool:
        """Mark as published; False when the lock was lost."""
        return self._mark(event_id, "status = 'PUBLISHED', published_at = %(now)s", now=now)

    def failed(
        self, row: DictRow, now: datetime, error: str, permanent: bool = False, cause: Exception | None = None
    ) -> str:
        """Schedule the next try, or give up; the status that was meant. The cause is for the log."""
        failures = self.settings.max_attempts if permanent else row["attempt_count"] + 1
        given_up = failures >= self.settings.max_attempts
        status = "FAILED" if given_up else "PENDING"
        marked = self._mark(
            row["event_id"],
            "status = %(status)s, attempt_count = %(failures)s, next_retry_at = %(retry)s, last_error = %(error)s",
            status=status,
            failures=failures,
            retry=None if given_up else now + self.settings.backoff.delay(failures),
            error=error,
        )
        if not marked:
            log.warning("outbox retry skipped because lock was lost eventId=%s", row["event_id"])
        if permanent:
            log.error("outbox payload parse failed and moved to FAILED eventId=%s", row["event_id"])
        elif given_up:
            log.warning("outbox publish moved to FAILED eventId=%s", row["event_id"])
        else:
            log.warning(
                "outbox publish retry scheduled eventId=%s attempt=%s", row["event_id"], failures, exc_info=True
            )
        return status

    def _mark(self, event_id: uuid.UUID, assignments: str, **values: Any) -> bool:
        # The status is not checked: a late mark by the same pod still counts.
        done = self.connection.execute(
            f"UPDATE entitlement.outbox_events SET {assignments}, locked_by = NULL, locked_at = NULL,"  # noqa: S608
            " lease_until = NULL WHERE event_id = %(id)s AND locked_by = %(me)s",
            {**values, "id": event_id, "me": self.me},
        )
        return done.rowcount == 1


def parse(row: DictRow) -> EntitlementEvent:
    """The event of an outbox row, its type from the column; ValueError for JSON of another shape."""
    payload = row["payload"]
    if not isinstance(payload, dict) or not isinstance(payload.get("version", 0), int):
        raise ValueError(PARSE_FAILURE)
    fields = {name: payload.get(name) for name in EntitlementEvent.__dataclass_fields__}
    if any(isinstance(value, dict | list) for value in fields.values()):
        raise ValueError(PARSE_FAILURE)
    return EntitlementEvent(**{**fields, "event_type": row["event_type"], "version": fields["version"] or 0})


async def publish(client: broker.Broker, row: DictRow, event: EntitlementEvent) -> None:
    """Send one event and wait for the receipt."""
    if event.occurred_at is None:
        raise ValueError("text")  # what the reference's instant parser says to a null
    if None in event.payload().values():
        raise ValueError
    datetime.fromisoformat(event.occurred_at)
    headers = {
        "Nats-Msg-Id": event.event_id,
        "event_type": row["event_type"],
        "aggregate_key": row["aggregate_key"],
        "occurred_at": event.occurred_at,
        "trace_id": event.trace_id,
    }
    await client.publish(broker.SUBJECT, wire.encode(event), headers)


async def relay_batch(outbox: Outbox, client: broker.Broker, now: datetime) -> int:
    """Claim, publish one by one, mark one by one; how many rows were claimed."""
    rows = await asyncio.to_thread(outbox.claim, now)
    for row in rows:
        try:
            event = parse(row)
        except ValueError:
            await asyncio.to_thread(outbox.failed, row, now, PARSE_FAILURE, permanent=True)
            continue
        try:
            await publish(client, row, event)
        except Exception as error:
            await asyncio.to_thread(outbox.failed, row, now, error_text(error), cause=error)
            continue
        if not await asyncio.to_thread(outbox.published, row["event_id"], now):
            log.warning("outbox publish succeeded but lock was lost eventId=%s", row["event_id"])
    return len(rows)


# Retention --------------------------------------------------------------------------------------------------


def clean_up(connection: Connection, now: datetime, published_ttl: timedelta) -> tuple[int, int]:
    """Delete expired idempotency keys and long published events; FAILED and the audit stay for ever."""
    keys = connection.execute("DELETE FROM entitlement.idempotency_keys WHERE expires_at <= %s", (now,)).rowcount
    events = connection.execute(
        "DELETE FROM entitlement.outbox_events WHERE status = 'PUBLISHED' AND published_at <= %s",
        (now - published_ttl,),
    ).rowcount
    log.info("entitlement retention cleanup deleted idempotencyKeys=%s outboxEvents=%s", keys, events)
    return keys, events


# What the pod runs ------------------------------------------------------------------------------------------


def run_relay(env: Environment) -> None:
    """The scheduler thread of a pod: the relay every second, retention every hour; SIGUSR1 as for a subscriber."""
    asyncio.run(_relay(env))


async def _relay(env: Environment) -> None:
    settings = WorkerSettings.read("ENTITLEMENT_OUTBOX", env)
    published_ttl = timedelta(seconds=seconds(env.get("ENTITLEMENT_OUTBOX_PUBLISHED_TTL", "24h")))
    retention = flag(env.get("ENTITLEMENT_RETENTION_ENABLED", "true"))
    cleanup_interval = seconds(env.get("ENTITLEMENT_RETENTION_CLEANUP_INTERVAL", "1h"))
    client = broker.Broker(env["NATS_URL"], nats_timeout(env))
    js = await client.open()
    if settings.enabled:
        await broker.ensure_stream(js, broker.STREAM, 120.0)
        log.info("entitlement stream ensured")
    client.give_up_on_signal()
    source = await asyncio.to_thread(Pooled, env, "relay")
    next_cleanup = time.monotonic()
    while True:
        if settings.enabled:
            with telemetry.scheduled(telemetry.RELAY):
                await asyncio.to_thread(source.wait)
                with source.connection() as connection:
                    await relay_batch(Outbox(connection, settings, env["HOSTNAME"]), client, database.now())
                    telemetry.gauge("entitlement_outbox_failed_current", await asyncio.to_thread(failed, connection))
        if retention and time.monotonic() >= next_cleanup:
            next_cleanup = time.monotonic() + cleanup_interval
            with telemetry.scheduled(telemetry.RETENTION["entitlement"]):
                await asyncio.to_thread(source.wait)
                with source.connection() as connection:
                    await asyncio.to_thread(clean_up, connection, database.now(), published_ttl)
        await asyncio.sleep(settings.poll_interval)


def failed(connection: Connection) -> int:
    """What each poll ends with: how many events have been given up."""
    row = connection.execute("SELECT count(*) AS n FROM entitlement.outbox_events WHERE status = 'FAILED'").fetchone()
    return int(row["n"]) if row else 0


#: The paths of the API, and what each does.
ACTIONS = {"/v1/entitlements/grants": "GRANT", "/v1/entitlements/revokes": "REVOKE"}


@dataclass(frozen=True)
class Api:
    """The API, as far as it changes anything."""

    source: Database

    def request(self, action: str, body: bytes, key: str, trace_id: str = "") -> tuple[int, dict[str, Any]]:
        """One request: its status and its answer."""
        try:
            fields = json.loads(body)
            user, sku, reason, purchase = (str(fields[name]) for name in Command.FIELDS)
        except (ValueError, KeyError, TypeError):
            return 400, {"code": "BAD_REQUEST"}
        if not key:
            return 400, {"code": "BAD_REQUEST"}
        command = Command(action, user, sku, reason, purchase, key, trace_id or uuid.uuid4().hex)
        try:
            with self.source.connection() as connection:
                return self.carry_out(connection, command)
        except Exception:
            return 500, {"code": "INTERNAL_ERROR"}

    @staticmethod
    def carry_out(connection: Connection, command: Command) -> tuple[int, dict[str, Any]]:
        """Execute and count; what fails is logged and raised."""
        result = "error"
        try:
            code, body = execute(connection, command, database.now())
            reused = body.get("code") == "IDEMPOTENCY_KEY_CONFLICT"
            result = "success" if code == 200 else "idempotency_reused" if reused else "conflict"
        except Exception:
            log.exception("entitlement command failed")
            raise
        finally:
            telemetry.count("entitlement_command_total", action=command.action, result=result)
        return code, body


def run_api(env: Environment) -> None:
    """Requests at SANDBOX_RATE per second, from clients who know what they own and may ask for more at any moment."""
    pods = Path(env["RUNBOOK_SANDBOX_OWNER"]) / "pods.env"
    source = Pooled(env, "api")
    owned: set[tuple[str, str]] | None = None
    due = time.monotonic()
    while True:
        rate = float(read_env(pods).get("SANDBOX_RATE", "5"))
        if rate <= 0:
            time.sleep(0.2)
            continue
        due = max(due + 1 / rate, time.monotonic() - 1)  # after an outage clients do not make up for lost time
        time.sleep(max(0.0, due - time.monotonic()))
        with suppress(Exception), source.connection() as connection:
            if owned is None:
                owned = _owned(connection)
            _request(connection, owned)


def _owned(connection: Connection) -> set[tuple[str, str]]:
    rows = connection.execute(
        "SELECT user_id, stock_keeping_unit FROM entitlement.entitlements WHERE status = 'ACTIVE'"
    )
    return {(row["user_id"], row["stock_keeping_unit"]) for row in rows}


def _request(connection: Connection, owned: set[tuple[str, str]]) -> None:
    pair = (f"user-{random.randrange(USERS):04d}", random.choice(STOCK_KEEPING_UNITS))
    command = Command(
        action="REVOKE" if pair in owned else "GRANT",
        user_id=pair[0],
        stock_keeping_unit=pair[1],
        reason="refund" if pair in owned else "purchase",
        purchase_id=f"purchase-{uuid.uuid4()}",
        idempotency_key=str(uuid.uuid4()),
        trace_id=uuid.uuid4().hex,
    )
    code, body = Api.carry_out(connection, command)
    if code == 200:
        (owned.discard if pair in owned else owned.add)(pair)
    else:
        log.warning("entitlement command refused %s", json.dumps(body))
