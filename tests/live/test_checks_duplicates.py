"""Section 4.2: judges on frames of every shape, and the steps on real servers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import nats
import pandas as pd
import psycopg
import pytest

from runbook_lib.book import catalog
from runbook_lib.checks.check import NOT_READ, checks, failure_frame
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.model.finding import Frames, Reason, Status, replace
from runbook_lib.packs.entitlement.checks import duplicates
from runbook_lib.sources.source import SourceError
from tests.kit.frames.duplicates import FRAMES, NO_CONSTRAINT, PLAIN, index, look
from tests.kit.servers import Servers
from tests.kit.steps import (
    UNPROCESSED,
    ago,
    bound,
    events,
    expect,
    make_given,
    publish_ids,
    read_log,
    run,
    statuses,
    traffic,
    weight,
    words,
)

CHECKS = checks()

STEPS = ("4.2.1", "4.2.2", "4.2.3")


BARE = dict.fromkeys(index())


@pytest.mark.parametrize(
    ("rows", "key", "status"),
    [
        ([index()], "key_valid", Status.OK),
        ([index(), index(index_name="left", **NO_CONSTRAINT, valid=False)], "key_valid", Status.OK),
        ([index(valid=False)], "key_broken", Status.CRITICAL),
        ([index(ready=False)], "key_broken", Status.CRITICAL),
        ([index(**NO_CONSTRAINT, valid=False)], "key_broken", Status.CRITICAL),
        ([index(**NO_CONSTRAINT, partial=True)], "key_broken", Status.CRITICAL),
        ([index(columns="event_id, processed_at")], "key_broken", Status.CRITICAL),
        ([index(constraint_name=None, columns="(expression)")], "key_broken", Status.CRITICAL),
        ([PLAIN], "key_broken", Status.CRITICAL),
        ([BARE], "key_broken", Status.CRITICAL),
        ([index(index_name="other", **NO_CONSTRAINT)], "key_differs", Status.WARNING),
        ([index(index_name="other", constraint_name="other")], "key_differs", Status.WARNING),
        ([index(immediate=False)], "key_differs", Status.WARNING),
        ([], "no_table", Status.CRITICAL),
    ],
)
def test_the_key(rows: list[dict[str, Any]], key: str, status: Status) -> None:
    found = duplicates.judge_key({"key": pd.DataFrame(rows, columns=list(index()))}, make_given())
    expect(found, status, f"duplicates.{key}")
    broken = status is Status.CRITICAL and key != "no_table"
    assert not found.proposals  # whether anything is to be held back, the rows tell
    assert (weight(found, "FM-NOTI-01") > 0.6) == broken


def doubled(*last: pd.Timestamp, waiting: int = 0) -> Frames:
    """Events with two notifications each, of which so many wait to be sent."""
    pairs = [
        {"event_id": f"e{i}", "n": 2, "last": at, "sent": 2 - waiting, "waiting": waiting} for i, at in enumerate(last)
    ]
    return {"duplicates": pd.DataFrame(pairs)}


@pytest.mark.parametrize(
    ("frames", "key", "status"),
    [
        (doubled(ago(30)), "doubled", Status.CRITICAL),
        (doubled(ago(1800)), "doubled", Status.CRITICAL),
        ({"halves": pd.DataFrame({"kind": ["queued_only"] * 3})}, "unregistered", Status.CRITICAL),
        ({"halves": pd.DataFrame({"kind": ["registered_only"]})}, "registered_only", Status.CRITICAL),
        ({"arrivals": pd.DataFrame({"minute": [], "n": []})}, "none", Status.OK),
    ],
)
def test_the_order(frames: Frames, key: str, status: Status) -> None:
    found = duplicates.judge_order(FRAMES["4.2.2"] | frames, make_given())
    expect(found, status, f"duplicates.{key}")
    assert (found.next_sections == ("5.3",)) == (key != "none")
    assert weight(found, "FM-NOTI-01") > 0 or key in ("none", "registered_only")


def test_duplicates_are_shown_with_the_key_that_did_not_refuse_them() -> None:
    no_key = replace(duplicates.judge_key({"key": pd.DataFrame([PLAIN])}, make_given()), step="4.2.1")
    found = duplicates.judge_order(FRAMES["4.2.2"] | doubled(ago(30)), make_given(earlier=(no_key,)))
    assert (found.show, found.headline.params["key_state"]) == (("duplicates",), "broken")


def test_registrations_older_than_the_retention_are_named() -> None:
    found = duplicates.judge_order(FRAMES["4.2.2"] | {"oldest": pd.DataFrame({"age_d": [40.0]})}, make_given())
    expect(found, Status.WARNING, weights={"FM-DB-02": "> 0.5"}, notes={"scope.not_cleaned_up"})


def test_delivery_is_held_for_duplicates_that_come_or_wait() -> None:
    new, burst, over, waiting = (
        duplicates.judge_order(FRAMES["4.2.2"] | frames, make_given())
        for frames in (
            doubled(ago(45), ago(30)), doubled(ago(30), ago(30)), doubled(ago(1800)),
            doubled(ago(1800), ago(1800), waiting=1),
        )
    )  # fmt: skip
    assert burst.proposals == ()
    assert [p.name for p in new.proposals] == ["hold_delivery", "resume_delivery"]
    assert over.proposals == ()
    expect(waiting, proposals=["hold_delivery", "resume_delivery"], values={"duplicates.extra_not_sent": 2})
    assert new.value("duplicates.extra") == 2
    assert "=false" in new.proposals[0].command and "scale" not in new.proposals[0].command


def test_a_part_that_was_not_answered_is_not_green() -> None:
    frames = {name: f for name, f in FRAMES["4.2.2"].items() if name != "halves"}
    lost = SourceError("postgres", Reason.TIMEOUT, "a lock", "lock_not_available")
    frames |= {NOT_READ: failure_frame({"halves": lost})}
    found = CHECKS["4.2.2"].finding(frames, make_given())
    expect(found, Status.UNKNOWN, reason=Reason.TIMEOUT, says="halves")
    assert "duplicates.in_order" not in {s.observation for s in found.signals}
    assert CHECKS["4.2.2"].finding(frames | doubled(ago(30)), make_given()).status is Status.CRITICAL


@pytest.mark.parametrize(
    ("frames", "key", "status"),
    [
        ({}, "no_redelivery", Status.OK),
        ({"consumer": look(delivered=120, delivered_stream_seq=113)}, "absorbed", Status.OK),
        ({"consumer": look(delivered=900, delivered_stream_seq=113)}, "storm", Status.WARNING),
        ({"consumer": look(delivered=3, delivered_stream_seq=3, created="another")}, "unseen", Status.OK),
        # A thousand pushed ahead and not answered yet are neither redelivered nor absorbed: no storm.
        (
            {"consumer": look(delivered=1100, delivered_stream_seq=1098, num_ack_pending=985)},
            "no_redelivery",
            Status.OK,
        ),
    ],
)
def test_deliveries(frames: Frames, key: str, status: Status) -> None:
    found = duplicates.judge_absorbed(FRAMES["4.2.3"] | frames, make_given())
    expect(found, status, f"duplicates.{key}")
    if key == "no_redelivery":
        expect(found, values={"redelivered": 0})


def test_what_4_2_2_found_is_not_called_absorbed() -> None:
    before = replace(duplicates.judge_order(FRAMES["4.2.2"] | doubled(ago(300)), make_given()), step="4.2.2")
    found = duplicates.judge_absorbed(FRAMES["4.2.3"], make_given(earlier=(before,)))
    expect(found, Status.CRITICAL, "duplicates.reached", proposals=[])


SENT = "notification simulated send id=a eventId=e"


def entry(seconds: float, message: str) -> str:
    at = ago(seconds).isoformat()
    return f'{{"@timestamp": "{at}", "severity": "WARN", "logger": "delivery", "message": "{message}"}}'


@pytest.mark.parametrize(
    ("lines", "key", "status", "mode"),
    [
        ([entry(20, SENT)], "no_redelivery", Status.OK, 0),
        ([entry(20, "duplicate notification event skipped")], "no_redelivery", Status.OK, 0),
        ([entry(20, "notification sent but lock was lost id=a")], "lock_lost", Status.WARNING, 0.6),
        ([entry(s, "notification sent but lock was lost id=a") for s in (9, 5, 2)], "lock_lost", Status.CRITICAL, 0.9),
        ([entry(300, "notification retry skipped because lock was lost id=a")], "lock_lost", Status.WARNING, 0.4),
        ([entry(1800, "notification dlq skipped because lock was lost id=a")], "no_redelivery", Status.OK, 0.4),
        ([entry(s, SENT) for s in (90, 20)], "sent_twice", Status.CRITICAL, 0.9),
        ([entry(s, SENT) for s in (500, 400)], "sent_twice", Status.WARNING, 0.4),
        # Sent twice an hour ago; one lock lost now may come from a restart.
        (
            [*(entry(s, SENT) for s in (3000, 2900)), entry(20, "notification sent but lock was lost id=b")],
            "sent_twice",
            Status.WARNING,
            0.6,
        ),
        (["no time at all"], "no_redelivery", Status.OK, 0),
        ([], "no_redelivery", Status.OK, 0),
    ],
)
def test_the_log_tells_what_no_table_shows(lines: list[str], key: str, status: Status, mode: float) -> None:
    logged = duplicates.log_frames(read_log(*lines), 60, 60)
    found = duplicates.judge_absorbed(FRAMES["4.2.3"] | logged, make_given())
    expect(found, status, f"duplicates.{key}", proposals=["pods"] if status is not Status.OK else [])
    assert weight(found, "FM-NOTI-02") == mode
    assert found.value("log.skipped") == sum("skipped" in line and "duplicate" in line for line in lines)


# On real servers ---------------------------------------------------------------------------------------------


@contextmanager
def changed(db: psycopg.Connection, *statements: str) -> Iterator[None]:
    """processed_events with another key; as it was afterwards, whatever happened."""
    try:
        for statement in filter(None, statements):
            db.execute(statement)
        yield
    finally:
        others = db.execute(
            "SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
            " WHERE x.indrelid = 'notification.processed_events'::regclass"
            " AND i.relname <> 'processed_events_processed_at_idx'"
        ).fetchall()
        for (name,) in others:
            db.execute(f"{TABLE} DROP CONSTRAINT IF EXISTS {name}")
            db.execute(f"DROP INDEX IF EXISTS notification.{name}")
        db.execute("TRUNCATE notification.processed_events")
        db.execute(f"{TABLE} ADD CONSTRAINT processed_events_pkey PRIMARY KEY (event_id)")


TABLE = "ALTER TABLE notification.processed_events"
DROP = f"{TABLE} DROP CONSTRAINT processed_events_pkey"
MINE = "CREATE UNIQUE INDEX mine ON notification.processed_events"
INVALID = "CREATE UNIQUE INDEX CONCURRENTLY broken ON notification.processed_events (event_id)"
TWICE = "INSERT INTO notification.processed_events SELECT event_id, now() FROM notification.processed_events"
#: The same events queued again, as a redelivery without the key would.
COPIES = """
WITH first AS (SELECT * FROM notification.notifications WHERE status = 'SENT'), registered AS (
    INSERT INTO notification.processed_events SELECT event_id, now() FROM first WHERE %(registered)s
)
INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at, payload_json, status,
    attempt_count, next_retry_at, created_at)
SELECT gen_random_uuid(), event_id, user_id, type, occurred_at, payload_json, 'PENDING', 0, now(), now() FROM first
"""


@pytest.mark.slow
def test_what_is_healthy_is_ok(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with bound(broker):
        assert set(statuses(run(servers, *STEPS)).values()) == {Status.OK}  # no rows at all
        traffic(db, 120)
        events(db, 3, 30, status="PENDING")
        events(db, 3, 30, status="PROCESSING", by="pod-1", locked=1, over=-29)
        events(db, 3, 200, status="FAILED", tries=10, dead=50)
        events(db, 3, 20, **UNPROCESSED)  # published a moment ago: on its way
        events(db, 5, 90, outbox=None)  # as matches are, without an outbox row
        db.execute("UPDATE notification.notifications SET type = 'MatchFound' WHERE event_id NOT IN"
                   " (SELECT event_id FROM entitlement.outbox_events)")  # fmt: skip
        found = run(servers, *STEPS)
    assert set(statuses(found).values()) == {Status.OK}, {s: words(f) for s, f in found.items()}
    assert found["4.2.2"].headline.key == "duplicates.in_order"


@pytest.mark.parametrize(
    ("instead", "key", "status"),
    [
        ("", "key_broken", Status.CRITICAL),
        (f"{MINE} (event_id)", "key_differs", Status.WARNING),
        (f"{TABLE} ADD PRIMARY KEY (event_id) DEFERRABLE", "key_differs", Status.WARNING),
        (f"{MINE} (event_id) WHERE processed_at > '2025-1-1'", "key_broken", Status.CRITICAL),
        (f"{MINE} (event_id, processed_at)", "key_broken", Status.CRITICAL),
        (f"{MINE} ((event_id::text))", "key_broken", Status.CRITICAL),
        (f"{MINE} (event_id) INCLUDE (processed_at)", "key_differs", Status.WARNING),
    ],
)
def test_the_key_as_it_is(servers: Servers, db: psycopg.Connection, instead: str, key: str, status: Status) -> None:
    with changed(db, DROP, instead):
        found = run(servers, "4.2.1")["4.2.1"]
    expect(found, status, f"duplicates.{key}")
    assert run(servers, "4.2.1")["4.2.1"].status is Status.OK


def test_an_index_left_by_a_failed_build(servers: Servers, db: psycopg.Connection) -> None:
    events(db, 3, 100)
    with changed(db, DROP, TWICE):
        with pytest.raises(psycopg.errors.UniqueViolation):
            db.execute(INVALID)
        found = run(servers, "4.2.1")["4.2.1"]
        expect(found, Status.CRITICAL, "duplicates.key_broken")


def test_the_key_is_seen_behind_a_lock(servers: Servers, db: psycopg.Connection) -> None:
    with db.transaction():
        db.execute("LOCK TABLE notification.processed_events IN ACCESS EXCLUSIVE MODE")
        found = run(servers, "4.2.1", "4.2.2")
    assert found["4.2.1"].status is Status.OK
    assert found["4.2.2"].status is Status.UNKNOWN


@pytest.mark.parametrize("registered", [True, False])
def test_copies_with_and_without_a_registration(servers: Servers, db: psycopg.Connection, registered: bool) -> None:
    events(db, 4, 100)
    events(db, 2, 50, status="PENDING")
    with changed(db, *([DROP] if registered else [])):
        db.execute(COPIES, {"registered": registered})
        found = run(servers, "4.2.2", "4.2.3")
    order = found["4.2.2"]
    assert (order.headline.key, order.status) == ("duplicates.doubled", Status.CRITICAL), words(order)
    assert (order.value("duplicates"), order.value("duplicates.extra_not_sent")) == (4, 4)
    assert [p.name for p in order.proposals] == ["hold_delivery", "resume_delivery"]
    assert {*order.frames["duplicates"]["n"]} == {2}
    assert found["4.2.3"].status is Status.CRITICAL


@pytest.mark.slow
def test_registrations_that_nobody_removes_show_in_2_4_and_in_4_2_alike(
    servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    old = "INSERT INTO notification.processed_events VALUES (gen_random_uuid(), now() - interval '{} days')"
    traffic(db, 60)
    with bound(broker):
        for days, status in ((30, Status.OK), (40, Status.WARNING)):
            db.execute(old.format(days).encode())
            found = run(servers, *STEPS)
            scope = run(servers, "2.4")["2.4"]
            assert (found["4.2.2"].status, scope.status) == (status, status), words(found["4.2.2"])
            verdict = conclude(found.values(), catalog.load())
            told = ["FM-DB-02"] if status is Status.WARNING else []
            assert [m.id for m in verdict.failure_modes if m.score > 0.5] == told
            assert (verdict.stuck_at, verdict.status) == (None, status)
    for f in (found["4.2.2"], scope):
        assert 40 <= float(f.value("processed.oldest") or 0) < 40.1
        expect(f, notes={"scope.not_cleaned_up"}, says="40")


@pytest.mark.parametrize(
    ("change", "key", "status"),
    [
        ("DELETE FROM notification.processed_events", "unregistered", Status.CRITICAL),
        ("DELETE FROM notification.notifications WHERE status = 'PENDING'", "registered_only", Status.CRITICAL),
    ],
)
def test_the_order_as_it_is(servers: Servers, db: psycopg.Connection, change: str, key: str, status: Status) -> None:
    events(db, 4, 100)
    events(db, 1, 100, status="PENDING")
    db.execute(change)
    found = run(servers, "4.2.2")["4.2.2"]
    assert (found.headline.key, found.status) == (f"duplicates.{key}", status), words(found)


@pytest.fixture
def in_the_pause(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen between the two samples, instead of the pause."""
    return lambda happens: monkeypatch.setattr(duplicates, "time", SimpleNamespace(sleep=lambda seconds: happens()))


def test_redeliveries_are_counted(
    servers: Servers, db: psycopg.Connection, broker: str, in_the_pause: Callable[[Callable[[], object]], None]
) -> None:
    """A subscriber that refuses its messages during the pause: each comes ten times."""
    publish_ids(broker, [str(uuid.uuid4()) for _ in range(8)])
    refused: list[Any] = []

    async def refuse() -> None:
        client = await nats.connect(broker)
        js = client.jetstream()
        info = await js.consumer_info(applications.STREAM, applications.CONSUMER)

        async def nak(message: Any) -> None:
            await message.nak()
            refused.append(message)

        await js.subscribe_bind(applications.STREAM, info.config, applications.CONSUMER, cb=nak, manual_ack=True)
        async with asyncio.timeout(60):
            while len(refused) < 80:
                await asyncio.sleep(0.02)
        await client.close()

    in_the_pause(lambda: asyncio.run(refuse()))
    found = run(servers, "4.2.3")["4.2.3"]
    expect(found, Status.WARNING, "duplicates.storm")
    assert 25 < float(found.value("redelivered") or 0) <= 72


@pytest.mark.slow
def test_without_the_broker(servers: Servers, db: psycopg.Connection) -> None:
    down = run(servers, "4.2.3", nats_url="nats://127.0.0.1:9")["4.2.3"]
    expect(down, Status.UNKNOWN, reason=Reason.UNREACHABLE, weights={"FM-NATS-04": "== 0"})
    expect(run(servers, "4.2.3", without=("nats_url",))["4.2.3"], Status.OK, "duplicates.unseen")


def test_two_workers(
    servers: Servers, db: psycopg.Connection, broker: str, in_the_pause: Callable[[Callable[[], object]], None]
) -> None:
    events(db, 5, 30, status="PROCESSING", by="pod-1", locked=2, over=-28)

    steal = (
        "UPDATE notification.notifications SET locked_by = 'pod-2', locked_at = now(),"
        " lease_until = now() + interval '30 s'"
    )
    in_the_pause(lambda: db.execute(steal))
    with bound(broker):
        found = run(servers, "4.2.3")["4.2.3"]
    assert (found.headline.key, found.status) == ("duplicates.two_hands", Status.CRITICAL), words(found)
    expect(found, proposals=["pods"], sections=("4.3",), weights={"FM-NOTI-02": "> 0.8"})
    assert "pod-2" in words(found) and "pod-2" in words(found, "ja")
