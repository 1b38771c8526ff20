"""Each stream of the system counts, not only that of the outbox's events."""

from __future__ import annotations

import json
import uuid

import psycopg
import pytest
from nats.js import JetStreamContext

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.model.finding import Finding, Status
from runbook_lib.packs.entitlement import wire
from tests.kit.servers import Servers
from tests.kit.steps import bound, expect, insert, publish, run, traffic, verdict_of

STREAM, DURABLE = applications.MATCH_STREAM, applications.MATCH_CONSUMER
RECORD = applications.ADVISORY_STREAM, applications.ADVISORY_CONSUMER


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is registered as soon as it is stored, so that no test waits for it to be late."""
    monkeypatch.setitem(catalog.load().numbers, "balance.settled", 0.0)


def publish_matches(url: str, n: int) -> list[str]:
    """Publish so many matches, and return their event ids."""
    ids = [str(uuid.uuid4()) for _ in range(n)]
    when = "2026-01-01T00:00:00Z"
    matches = [wire.MatchmakingEvent(id_, wire.MATCH_FOUND, when, "m", "casual", "t") for id_ in ids]
    publish(url, *map(wire.encode, matches), subject=applications.MATCH_SUBJECT)
    return ids


def break_consumer(url: str, state: str, stream: str = STREAM, durable: str = DURABLE) -> None:
    """Do to a consumer, or its stream, what the state is called by."""

    async def scene(js: JetStreamContext) -> None:
        if state == "stream_missing":
            await js.delete_stream(stream)
        if state == "consumer_missing":
            await js.delete_consumer(stream, durable)
        if state == "paused":
            until = json.dumps({"pause_until": "2999-01-01T00:00:00Z"}).encode()
            await js._nc.request(f"$JS.API.CONSUMER.PAUSE.{stream}.{durable}", until)

    applications.visit(url, scene)


def ask(servers: Servers, url: str, state: str, durable: str = DURABLE) -> Finding:
    """Return 4.1.2 while every other consumer has its client."""
    without = (durable,) if state in ("stream_missing", "consumer_missing", "unbound") else ()
    with bound(url, *without, acknowledges=state == "lost"):
        return run(servers, "4.1.2")["4.1.2"]


@pytest.mark.parametrize(
    ("state", "place", "mode"),
    [
        ("consumer_missing", "jetstream", "FM-NATS-06"),
        ("unbound", "subscriber", "FM-NATS-01"),
        ("paused", "subscriber", "FM-NATS-01"),
        ("behind", "subscriber", "FM-NATS-01"),
        ("lost", "subscriber", "FM-NATS-03"),
    ],
)
def test_matches_that_are_not_registered_make_the_place_stuck(
    servers: Servers, db: psycopg.Connection, broker: str, state: str, place: str, mode: str
) -> None:
    traffic(db, 60)
    publish_matches(broker, 30)
    break_consumer(broker, state)
    found = ask(servers, broker, state)
    expect(found, Status.CRITICAL, f"balance.{state}", values={"balance.unregistered": 30})
    assert found.headline.params["stream"] == STREAM
    verdict = verdict_of(found)
    assert (verdict.stuck_at, verdict.failure_modes[0].id) == (place, mode)


@pytest.mark.parametrize("state", ["stream_missing", "consumer_missing", "unbound", "paused"])
@pytest.mark.parametrize(("stream", "durable"), [(STREAM, DURABLE), RECORD])
def test_a_difference_without_a_late_message_is_a_warning_without_a_place(
    servers: Servers, db: psycopg.Connection, broker: str, stream: str, durable: str, state: str
) -> None:
    traffic(db, 60)
    break_consumer(broker, state, stream, durable)
    found = ask(servers, broker, state, durable)
    expect(found, Status.WARNING, f"balance.{state}")
    assert found.headline.params["stream"] == stream and verdict_of(found).stuck_at is None


def test_what_is_registered_or_of_no_match_is_not_missed(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 60)
    for event in publish_matches(broker, 25):
        insert(db, "notification.processed_events", event_id=event)
    publish(broker, b"\xff no match", b"", subject=applications.MATCH_SUBJECT)
    found = ask(servers, broker, "lost")
    expect(found, Status.OK, "subscriber.bound", values={"balance.unregistered": 0})
