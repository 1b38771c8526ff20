"""What the tests of whole steps share: running them on real servers, rows that agree with each other, odd frames."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nats
import pandas as pd
import psycopg
from hypothesis import strategies as st
from nats.aio.client import Client

from runbook_lib import catalog, messages
from runbook_lib.checks import checks
from runbook_lib.context import Given, open_context
from runbook_lib.model.finding import Finding, Frames, Reason, Status, say
from runbook_lib.packs.entitlement.facts import Facts
from runbook_lib.packs.entitlement.sandbox import broker as applications
from runbook_lib.packs.entitlement.sandbox.servers import Servers
from runbook_lib.parameters import validate
from runbook_lib.settings import Settings

CHECKS = checks()

NOW = pd.Timestamp("2025-01-31 03:00:10", tz="UTC")


def make_given(**changes: Any) -> Given:
    book = catalog.load()
    usual: dict[str, Any] = {"catalog": book, "as_of": NOW, "window_minutes": 15, "facts": Facts()}
    return Given(**(usual | changes))


def ago(seconds: float) -> pd.Timestamp:
    return NOW - pd.Timedelta(seconds=seconds)


def weight(finding: Finding, about: str) -> float:
    return sum(s.weight for s in finding.signals if s.about == about)


def words(finding: Finding, lang: str = "en") -> str:
    """The headline, after making sure that every text exists in both languages and takes its parameters."""
    for each in messages.LANGUAGES:
        for text in (finding.headline, *finding.notes):
            assert messages.text(text, each)
        for p in finding.proposals:
            for part in ("title", "preconditions", "effect", "risk", "undo", "verify"):
                assert messages.text(say(f"proposal.{p.name}.{part}", **p.params), each)
    return messages.text(finding.headline, lang)


def run(servers: Servers, *steps: str, without: tuple[str, ...] = (), **parameters: Any) -> dict[str, Finding]:
    """The steps of one section, as its notebook would ask them."""
    urls = {k.removeprefix("RUNBOOK_").lower(): v for k, v in servers.env.items()}
    addresses = ("database_url", "database_url_command", "replica_url", "nats_url", "redis_url", "prometheus_url")
    changed = {k: parameters.pop(k) for k in addresses if k in parameters}
    config = Settings(targets={"here": {k: v for k, v in (urls | changed).items() if k not in without}})
    section = next(s for s in catalog.load().sections.values() if steps[0] in {x.id for x in s.steps})
    rb = open_context(
        section, validate({"incident_id": "test", "target": "here", **parameters}), config, catalog.load()
    )
    for step in steps:
        rb.findings[step] = CHECKS[step].run(rb)
        words(rb.findings[step])
        assert rb.findings[step].reason is not Reason.ERROR, rb.findings[step].headline
        for draw in CHECKS[step].charts:
            draw(rb.findings[step].frames, rb.given())
    return rb.findings


def statuses(found: dict[str, Finding]) -> dict[str, Status]:
    return {step: f.status for step, f in found.items()}


_EVENT = """
WITH event AS (
    SELECT gen_random_uuid() AS id, gen_random_uuid() AS notification_id, 'user-' || g AS who, g,
        now() - %(age)s * interval '1 s' - g * interval '10 ms' AS t
    FROM generate_series(1, %(n)s) g
), audit AS (
    INSERT INTO entitlement.entitlement_audit (audit_id, occurred_at, user_id, stock_keeping_unit, action)
    SELECT gen_random_uuid(), t, who, 'sku', 'GRANT' FROM event WHERE %(audit)s
), outbox AS (
    INSERT INTO entitlement.outbox_events (event_id, event_type, aggregate_key, payload, status, created_at,
        published_at, attempt_count, last_error, next_retry_at)
    SELECT id, 'EntitlementGranted', who || ':sku', '{}', %(outbox)s, t,
        CASE WHEN %(outbox)s = 'PUBLISHED' THEN t + interval '0.5 s' END, %(publish_tries)s, %(error)s,
        now() + %(publish_again)s * interval '1 s'
    FROM event WHERE %(outbox)s IS NOT NULL
), processed AS (
    INSERT INTO notification.processed_events (event_id, processed_at)
    SELECT id, t + interval '0.6 s' FROM event WHERE %(processed)s
), notified AS (
    INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at, payload_json,
        status, created_at, sent_at, attempt_count, next_retry_at, locked_by, locked_at, lease_until)
    SELECT notification_id, id, who, 'EntitlementGranted', t, '{}', %(status)s, t + interval '0.6 s',
        CASE WHEN %(status)s = 'SENT' THEN t + %(sent_after)s * interval '1 s' END, %(tries)s,
        CASE WHEN %(status)s IN ('SENT', 'FAILED') THEN NULL
             ELSE coalesce(now() + %(again)s * interval '1 s', t + interval '0.6 s') END,
        %(by)s, now() - %(locked)s * interval '1 s', now() - %(over)s * interval '1 s'
    FROM event WHERE %(status)s IS NOT NULL
)
INSERT INTO notification.notification_dlq (dlq_id, notification_id, event_id, payload_json, error_message, created_at)
SELECT gen_random_uuid(), notification_id, id, '{}', 'HTTP 503', now() - coalesce(%(dead)s, 0) * interval '1 s'
FROM event WHERE %(dead)s IS NOT NULL
"""


def events(db: psycopg.Connection, n: int, age: float, **values: Any) -> None:
    """`n` events about `age` seconds old, sent in time unless `values` say otherwise; times are in seconds."""
    usual: dict[str, Any] = {
        "audit": True, "outbox": "PUBLISHED", "publish_tries": 0, "error": None, "publish_again": None,
        "processed": True, "status": "SENT", "sent_after": 1.2, "tries": 0, "again": None, "by": None, "locked": None,
        "over": None, "dead": None,
    }  # fmt: skip
    assert values.keys() <= usual.keys()
    db.execute(_EVENT, usual | {"n": n, "age": age} | values)


def traffic(db: psycopg.Connection, seconds: int = 300, until: int = 0, per_second: int = 5) -> None:
    """A healthy flow that ends `until` seconds ago."""
    for second in range(until + 2, until + seconds):
        events(db, per_second, second)


@contextmanager
def bound(url: str) -> Iterator[None]:
    """Somebody is bound to all three consumers and acknowledges nothing."""
    loop = asyncio.new_event_loop()

    async def bind() -> Client:
        client = await nats.connect(url)
        js = client.jetstream()
        for durable, (stream, _) in applications.CONSUMERS.items():
            config = (await js.consumer_info(stream, durable)).config
            await js.subscribe_bind(stream, config, durable, manual_ack=True)
        return client

    client = loop.run_until_complete(bind())
    try:
        yield
    finally:
        loop.run_until_complete(client.close())
        loop.close()


# Frames of every shape ---------------------------------------------------------------------------------------


def odd_frames(frames: Frames) -> st.SearchStrategy[Frames]:
    """The given frames with some missing, emptied, or with cells of one-row frames replaced."""

    def strange(name: str) -> st.SearchStrategy[pd.DataFrame | None]:
        frame = frames[name]
        shapes: list[st.SearchStrategy[pd.DataFrame | None]] = [st.just(frame), st.just(None), st.just(frame.iloc[:0])]
        numbers = [c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c]) and frame[c].dtype != bool]
        if len(frame) == 1 and numbers:
            shapes.append(
                st.fixed_dictionaries({c: st.one_of(st.none(), st.floats(-5, 1e6)) for c in numbers}).map(
                    lambda cells: pd.DataFrame([frame.iloc[0].to_dict() | cells])
                )
            )
        return st.one_of(shapes)

    return st.fixed_dictionaries({name: strange(name) for name in frames}).map(
        lambda found: {name: f for name, f in found.items() if f is not None}
    )
