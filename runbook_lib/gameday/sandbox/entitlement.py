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
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.wire import EntitlementEvent

from . import broker, database, telemetry, worker
from .database import Connection, Database, pooled
from .settings import AROUND_FILE, Environment, WorkerSettings, error_text, nats_timeout, read_env, seconds
from .worker import Handle, PermanentError, WorkerQueue

log = logging.getLogger(__name__)

USERS = 400
STOCK_KEEPING_UNITS = ("sku-season-pass", "sku-gold-pack", "sku-skin-aurora", "sku-skin-ember", "sku-starter")
IDEMPOTENCY_TTL = timedelta(hours=24)
PUBLISHED_TTL = timedelta(hours=24)

PARSE_FAILURE = "outbox payload parse failure"


# The API ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GrantRequest:
    """One request to grant or to revoke."""

    FIELDS = ("user_id", "stock_keeping_unit", "reason", "purchase_id")

    action: str  # GRANT or REVOKE
    user_id: str
    stock_keeping_unit: str
    reason: str
    purchase_id: str
    idempotency_key: str = field(default_factory=lambda: str(uuid.uuid4()))
    trace_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def detail(self) -> dict[str, str]:
        """Return the request's body."""
        return {name: getattr(self, name) for name in self.FIELDS}

    def hash(self) -> str:
        """Return the hash by which two requests are the same."""
        return hashlib.sha256("\n".join((self.action, *self.detail().values())).encode()).hexdigest()


def instant(moment: datetime) -> str:
    """Return a moment as ISO-8601 in UTC, ending in Z."""
    return moment.isoformat().replace("+00:00", "Z")


def execute(connection: Connection, command: GrantRequest, now: datetime) -> tuple[int, dict[str, Any]]:
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
        code, body = _change_right(connection, command, now)
        database.insert(
            connection,
            "entitlement.idempotency_keys",
            "ON CONFLICT (idem_key) DO UPDATE SET request_hash = excluded.request_hash,"
            " response_code = excluded.response_code, response_body = excluded.response_body,"
            " expires_at = excluded.expires_at",
            idem_key=command.idempotency_key,
            request_hash=command.hash(),
            response_code=code,
            response_body=Jsonb(body),
            created_at=now,
            expires_at=now + IDEMPOTENCY_TTL,
        )
        return code, body


def _change_right(connection: Connection, command: GrantRequest, now: datetime) -> tuple[int, dict[str, Any]]:
    granting = command.action == "GRANT"
    status = "ACTIVE" if granting else "REVOKED"
    owner = {"user_id": command.user_id, "stock_keeping_unit": command.stock_keeping_unit}
    shared: dict[str, Any] = owner | {"source": command.reason, "source_id": command.purchase_id}
    current = connection.execute(
        "SELECT status, version FROM entitlement.entitlements"
        " WHERE user_id = %(user_id)s AND stock_keeping_unit = %(stock_keeping_unit)s",
        owner,
    ).fetchone()
    if current is not None and current["status"] == status:
        return 409, {"code": "ENTITLEMENT_STATE_CONFLICT"}
    version = 0 if current is None else current["version"] + 1
    database.insert(
        connection,
        "entitlement.entitlements AS e",
        "ON CONFLICT (user_id, stock_keeping_unit) DO UPDATE SET status = excluded.status,"
        " granted_at = coalesce(excluded.granted_at, e.granted_at), revoked_at = excluded.revoked_at,"
        " source = excluded.source, source_id = excluded.source_id, version = excluded.version,"
        " updated_at = excluded.updated_at",
        **shared,
        status=status,
        granted_at=now if granting else None,
        revoked_at=None if granting else now,
        version=version,
        updated_at=now,
    )
    database.insert(
        connection,
        "entitlement.entitlement_audit",
        audit_id=uuid.uuid4(),
        occurred_at=now,
        **shared,
        action=command.action,
        request_id=command.idempotency_key,
        detail=Jsonb(command.detail()),
    )
    event = EntitlementEvent(
        event_id=str(uuid.uuid4()),
        event_type=wire.GRANTED if granting else wire.REVOKED,
        occurred_at=instant(now),
        **shared,
        version=version,
        trace_id=command.trace_id,
    )
    database.insert(
        connection,
        "entitlement.outbox_events",
        event_id=event.event_id,
        event_type=event.event_type,
        aggregate_key=":".join(owner.values()),
        payload=Jsonb(event.payload()),
        status="PENDING",
        attempt_count=0,
        created_at=now,
    )
    return 200, {**owner, "status": status, "version": version}


# The outbox -------------------------------------------------------------------------------------------------


class OutboxQueue(WorkerQueue):
    """The relay's side of `outbox_events`."""

    NAME, SETTINGS = "EntitlementOutboxWorker", "ENTITLEMENT_OUTBOX"
    TABLE, KEY, LEASED, ALSO = "entitlement.outbox_events", "event_id", "IN_FLIGHT", ", last_error = NULL"
    # The status is not checked: a late mark by the same pod still counts.

    def poll(self, handle: Handle) -> None:
        """Publish one batch; each poll ends with how many events have been given up."""
        self.work(handle, database.now())
        failed = database.count(self.connection, self.TABLE, "status = 'FAILED'")
        telemetry.gauge("entitlement_outbox_failed_current", failed)

    def succeeded(self, row: DictRow, now: datetime) -> bool:
        """Mark as published."""
        marked = self.mark(row, status="PUBLISHED", published_at=now)
        if marked:
            telemetry.timer("entitlement_outbox_publish_delay", (now - row["created_at"]).total_seconds())
        else:
            log.warning("outbox publish succeeded but lock was lost eventId=%s", row["event_id"])
        return marked

    def mark_failed(self, row: DictRow, now: datetime, error: Exception, **columns: object) -> None:
        """Mark for the next try, or as FAILED, and log it; there is no dead letter."""
        event_id = row["event_id"]
        if not self.mark(row, **columns, last_error=error_text(error)):
            log.warning("outbox retry skipped because lock was lost eventId=%s", event_id)
        if isinstance(error, PermanentError):
            log.error("outbox payload parse failed and moved to FAILED eventId=%s", event_id)
        elif columns["status"] == "FAILED":
            log.warning("outbox publish moved to FAILED eventId=%s", event_id)
        else:
            log.warning("outbox publish retry scheduled eventId=%s attempt=%s", event_id, columns["attempt_count"])


def parse(row: DictRow) -> EntitlementEvent:
    """Return the event of an outbox row, its type from the column; PermanentError for JSON of another shape."""
    payload = row["payload"]
    if not isinstance(payload, dict) or not isinstance(payload.get("version", 0), int):
        raise PermanentError(PARSE_FAILURE)
    fields = {name: payload.get(name) for name in EntitlementEvent.__dataclass_fields__}
    if any(isinstance(value, dict | list) for value in fields.values()):
        raise PermanentError(PARSE_FAILURE)
    return EntitlementEvent(**{**fields, "event_type": row["event_type"], "version": fields["version"] or 0})


async def publish(client: broker.Broker, row: DictRow) -> None:
    """Send one event and wait for the receipt."""
    event = parse(row)
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


def publisher(client: broker.Broker) -> Handle:
    """Return what publishes a row from the worker's thread, on the client's loop, which is the running one."""
    loop = asyncio.get_running_loop()
    return lambda row: asyncio.run_coroutine_threadsafe(publish(client, row), loop).result()


def clean_up(connection: Connection, now: datetime, published_ttl: timedelta) -> tuple[int, int]:
    """Delete expired idempotency keys and long published events; FAILED and the audit stay for ever."""
    keys = database.delete(connection, "entitlement.idempotency_keys", "expires_at <= %(now)s", now=now)
    old = "status = 'PUBLISHED' AND published_at <= %(before)s"
    events = database.delete(connection, OutboxQueue.TABLE, old, before=now - published_ttl)
    log.info("entitlement retention cleanup deleted idempotencyKeys=%s outboxEvents=%s", keys, events)
    return keys, events


# What the pod runs ------------------------------------------------------------------------------------------


def run_relay(env: Environment) -> None:
    """Run the relay and retention of a pod; SIGUSR1 as for a subscriber."""
    asyncio.run(_run_relay_loop(env))


async def _run_relay_loop(env: Environment) -> None:
    client = broker.Broker(env["NATS_URL"], nats_timeout(env))
    js = await client.open()
    if WorkerSettings.read(OutboxQueue.SETTINGS, env).enabled:
        await broker.ensure_stream(js, broker.STREAM, 120.0)
        log.info("entitlement stream ensured")
    client.give_up_on_signal()
    published_ttl = timedelta(seconds=seconds(env.get("ENTITLEMENT_OUTBOX_PUBLISHED_TTL", "24h")))
    clean = partial(clean_up, published_ttl=published_ttl)
    await asyncio.to_thread(worker.run, env, OutboxQueue, publisher(client), clean)


#: The paths of the API, and what each does.
ACTIONS = {"/v1/entitlements/grants": "GRANT", "/v1/entitlements/revokes": "REVOKE"}


def answer(source: Database, action: str, body: bytes, key: str, trace_id: str) -> tuple[int, dict[str, Any]]:
    """Answer one request: its status and its body."""
    try:
        fields = json.loads(body)
        user, sku, reason, purchase = (str(fields[name]) for name in GrantRequest.FIELDS)
    except (ValueError, KeyError, TypeError):
        return 400, {"code": "BAD_REQUEST"}
    if not key:
        return 400, {"code": "BAD_REQUEST"}
    command = GrantRequest(action, user, sku, reason, purchase, key, trace_id or uuid.uuid4().hex)
    try:
        with source.connection() as connection:
            return carry_out(connection, command)
    except Exception:
        return 500, {"code": "INTERNAL_ERROR"}


def carry_out(connection: Connection, command: GrantRequest) -> tuple[int, dict[str, Any]]:
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
    """Send SANDBOX_RATE requests per second, from clients that know what they own and may ask for more at any time."""
    around = Path(env["RUNBOOK_SANDBOX_OWNER"]) / AROUND_FILE
    source = pooled(env, "api")
    owned: set[tuple[str, str]] | None = None
    due = time.monotonic()
    while True:
        rate = float(read_env(around).get("SANDBOX_RATE", "5"))
        if rate <= 0:
            time.sleep(0.2)
            continue
        due = max(due + 1 / rate, time.monotonic() - 1)  # after an outage clients do not make up for lost time
        time.sleep(max(0.0, due - time.monotonic()))
        with suppress(Exception), source.connection() as connection:
            if owned is None:
                owned = _read_owned(connection)
            _send_request(connection, owned)


def _read_owned(connection: Connection) -> set[tuple[str, str]]:
    rows = connection.execute(
        "SELECT user_id, stock_keeping_unit FROM entitlement.entitlements WHERE status = 'ACTIVE'"
    )
    return {(row["user_id"], row["stock_keeping_unit"]) for row in rows}


def _send_request(connection: Connection, owned: set[tuple[str, str]]) -> None:
    pair = (f"user-{random.randrange(USERS):04d}", random.choice(STOCK_KEEPING_UNITS))
    action, reason = ("REVOKE", "refund") if pair in owned else ("GRANT", "purchase")
    command = GrantRequest(action, *pair, reason, f"purchase-{uuid.uuid4()}")
    code, body = carry_out(connection, command)
    if code == 200:
        (owned.discard if pair in owned else owned.add)(pair)
    else:
        log.warning("entitlement command refused %s", json.dumps(body))
