"""Past traffic with honest timestamps, written in seconds and the same for the same seed.

Every hop agrees with the next: what the audit knows the outbox knows, what was published was processed, what
was processed was notified and sent. (Stored API answers are left out: nobody repeats those requests.)
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any

import psycopg

from runbook_lib.packs.entitlement.wire import GRANTED, REVOKED

from .entitlement import PUBLISHED_TTL, STOCK_KEEPING_UNITS, USERS

# What may have stood still, and since when at most; None is a healthy system.
STATES = {
    "healthy": None,
    "relay_stopped": "relay",
    "subscriber_deaf": "subscriber",
    "worker_stopped": "worker",
}
STANDSTILL = timedelta(minutes=10)

_QUIET = 5.0  # the last event is this old: everything before it has had the time to be sent
_CHUNK = 20_000

_COLUMNS = {
    "entitlement.entitlements": "user_id, stock_keeping_unit, status, granted_at, revoked_at, source,"
    " source_id, version, updated_at",
    "entitlement.entitlement_audit": "audit_id, occurred_at, user_id, stock_keeping_unit, action, source,"
    " source_id, request_id, detail",
    "entitlement.outbox_events": "event_id, event_type, aggregate_key, payload, status, attempt_count,"
    " next_retry_at, created_at, published_at",
    "notification.processed_events": "event_id, processed_at",
    "notification.notifications": "notification_id, event_id, user_id, type, occurred_at, payload_json,"
    " status, attempt_count, next_retry_at, created_at, sent_at",
}

Connection = psycopg.Connection[Any]


def seed_state(
    connection: Connection, now: datetime, state: str, seed: int = 1, hours: float = 1.0, rate: float = 1.0
) -> None:
    """Fill the tables, emptied before, as if `state` (one of STATES) had been so for the last ten minutes."""
    backfill(connection, now, hours, rate, seed, stopped=STATES[state])


def backfill(
    connection: Connection,
    now: datetime,
    hours: float,
    rate: float,
    seed: int = 1,
    stopped: str | None = None,
) -> int:
    """Replace the tables by `hours` of traffic at `rate` events per second, ending now; the number of events.

    With `stopped` ("relay", "subscriber" or "worker") that hop did nothing during the last ten minutes.
    """
    traffic = _Traffic(random.Random(seed), now, stopped)
    events = traffic.events(now.timestamp() - hours * 3600, rate)
    count = 0
    with connection.transaction():
        # Emptied in the same transaction, a table is loaded without a write-ahead log.
        connection.execute(f"TRUNCATE {', '.join(_COLUMNS)}")
        while batch := list(islice(events, _CHUNK)):
            count += len(batch)
            tables: defaultdict[str, list[str]] = defaultdict(list)
            for event in batch:
                traffic.write(event, tables)
            _copy(connection, tables)
        _copy(connection, {"entitlement.entitlements": list(traffic.entitlements())})
    # Without statistics the first plans of the pods and of the runbook would be those for empty tables.
    with connection.transaction():
        connection.execute("SET LOCAL default_statistics_target = 20")
        connection.execute(f"ANALYZE {', '.join(_COLUMNS)}")
    return count


def _copy(connection: Connection, tables: Mapping[str, list[str]]) -> None:
    for table, lines in tables.items():
        with connection.cursor().copy(f"COPY {table} ({_COLUMNS[table]}) FROM STDIN") as copy:
            copy.write("".join(lines))


@dataclass
class _Owned:
    """The state of one user and SKU while the past is played forward."""

    active: bool = False
    version: int = -1
    granted_at: str = r"\N"
    revoked_at: str = r"\N"
    updated_at: str = ""
    source_id: str = ""


@dataclass(frozen=True)
class _Event:
    time: float
    published: float  # start of the relay's batch
    processed: float


class _Traffic:
    def __init__(self, rng: random.Random, now: datetime, stopped: str | None) -> None:
        self._rng = rng
        self._now = now.timestamp()
        self._stopped = stopped
        self._standstill = self._now - STANDSTILL.total_seconds() if stopped else math.inf
        # Both workers poll once a second, each at its own moment of it.
        self._relay_phase = rng.random()
        self._worker_phase = rng.random()
        self._owned: defaultdict[tuple[str, str], _Owned] = defaultdict(_Owned)

    def events(self, start: float, rate: float) -> Iterator[_Event]:
        """Moments at which requests came, one per slot of 1/rate."""
        batch, position = 0.0, 0
        for slot in range(int((self._now - _QUIET - start) * rate)):
            time = round(start + (slot + self._rng.random()) / rate, 6)
            published = _next_tick(time, self._relay_phase)
            position = position + 1 if published == batch else 1
            batch = published
            yield _Event(time, published, published + 0.004 * position + 0.002 * self._rng.random())

    def write(self, event: _Event, tables: defaultdict[str, list[str]]) -> None:
        """The rows that this event left in each table."""
        rng = self._rng
        user, sku = f"user-{int(rng.random() * USERS):04d}", rng.choice(STOCK_KEEPING_UNITS)
        owned = self._owned[user, sku]
        owned.active = not owned.active
        owned.version += 1
        owned.source_id = f"purchase-{_uuid(rng)}"
        owned.updated_at = created = _timestamp(event.time)
        if owned.active:
            action, kind, reason = "GRANT", GRANTED, "purchase"
            owned.granted_at, owned.revoked_at = created, r"\N"
        else:
            action, kind, reason = "REVOKE", REVOKED, "refund"
            owned.revoked_at = created

        event_id, key = _uuid(rng), _uuid(rng)
        pair = f'"user_id":"{user}","stock_keeping_unit":"{sku}"'
        detail = f'{{{pair},"reason":"{reason}","purchase_id":"{owned.source_id}"}}'
        payload = (
            f'{{"event_id":"{event_id}","event_type":"{kind}","occurred_at":"{created[:-6]}Z",{pair},'
            f'"source":"{reason}","source_id":"{owned.source_id}","version":{owned.version},'
            f'"trace_id":"{rng.getrandbits(128):032x}"}}'
        )
        tables["entitlement.entitlement_audit"].append(
            f"{rng.getrandbits(128):032x}\t{created}\t{user}\t{sku}\t{action}\t{reason}\t{owned.source_id}\t{key}\t{detail}\n"
        )
        stopped = self._stopped if event.time >= self._standstill else None
        if event.time > self._now - PUBLISHED_TTL.total_seconds():
            published = (
                f"PENDING\t0\t\\N\t{created}\t\\N"
                if stopped == "relay"
                else f"PUBLISHED\t0\t\\N\t{created}\t{_timestamp(event.published)}"
            )
            tables["entitlement.outbox_events"].append(f"{event_id}\t{kind}\t{user}:{sku}\t{payload}\t{published}\n")
        if stopped in ("relay", "subscriber"):
            return
        processed = _timestamp(event.processed)
        tables["notification.processed_events"].append(f"{event_id}\t{processed}\n")
        delivered = (
            f"PENDING\t0\t{processed}\t{processed}\t\\N" if stopped == "worker" else self._sent(event, processed)
        )
        tables["notification.notifications"].append(
            f"{rng.getrandbits(128):032x}\t{event_id}\t{user}\t{kind}\t{created}\t{payload}\t{delivered}\n"
        )

    def _sent(self, event: _Event, processed: str) -> str:
        sent, failures = _next_tick(event.processed, self._worker_phase), 0
        if self._rng.random() < 0.004 and event.time < self._now - 60:
            failures = self._rng.choice((1, 1, 1, 2))
            for failure in range(failures):
                sent = _next_tick(sent + max(1.0, 2.0**failure * self._rng.uniform(0.5, 1.5)), self._worker_phase)
        return f"SENT\t{failures}\t\\N\t{processed}\t{_timestamp(sent)}"

    def entitlements(self) -> Iterator[str]:
        """What everybody owns at the end."""
        for (user, sku), owned in self._owned.items():
            status, reason = ("ACTIVE", "purchase") if owned.active else ("REVOKED", "refund")
            yield (
                f"{user}\t{sku}\t{status}\t{owned.granted_at}\t{owned.revoked_at}\t{reason}\t{owned.source_id}"
                f"\t{owned.version}\t{owned.updated_at}\n"
            )


def _next_tick(time: float, phase: float) -> float:
    return math.ceil(time - phase) + phase


@lru_cache(maxsize=16)  # one batch of a worker has one timestamp
def _timestamp(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds")


def _uuid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
