"""Section 5.3: judges on frames of every shape, and the steps on real servers."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from runbook_lib.book import messages
from runbook_lib.checks.check import NOT_READ, checks, failure_frame
from runbook_lib.model.finding import Frames, Reason, Status
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import consistency
from runbook_lib.sources.source import SourceError
from tests.kit.frames.consistency import FRAMES, rows
from tests.kit.servers import Servers
from tests.kit.steps import (
    UNPROCESSED,
    bound,
    events,
    expect,
    make_given,
    publish,
    run,
    statuses,
    traffic,
    verdict_of,
    weight,
    words,
)

CHECKS = checks()

STEPS = ("5.3.1", "5.3.2", "5.3.3", "5.3.4", "5.3.5", "5.3.6")


@pytest.mark.parametrize(
    ("step", "frame", "mode"),
    [
        ("5.3.1", {"dirty": rows(2)}, "FM-NOTI-02"),
        ("5.3.3", {"halves": rows(2, kind="queued_only")}, "FM-NOTI-01"),
        ("5.3.3", {"halves": rows(2, kind="registered_only")}, "subscriber"),
        ("5.3.4", {"failed": rows(2)}, "FM-NOTI-05"),
        ("5.3.5", {"changes": rows(2)}, "producer"),
        ("5.3.6", {"locks": rows(2, kind="outbox_published_locked")}, "FM-OB-03"),
        ("5.3.6", {"locks": rows(2, kind="notification_leased")}, "FM-NOTI-02"),
    ],
)
def test_the_first_row_is_critical(step: str, frame: Frames, mode: str) -> None:
    expect(CHECKS[step].judge(FRAMES[step] | frame, make_given()), Status.CRITICAL, weights={mode: "> 0"})


def test_what_the_cost_gate_refused_is_said() -> None:
    costly = SourceError("postgres", Reason.DENIED, "plan cost 9 is over the limit of 1", "cost_gate")
    refused = {NOT_READ: failure_frame({"everything": costly, "letters": costly})}
    partly = CHECKS["5.3.1"].finding({"dirty": rows(0)} | refused, make_given())
    assert "over the limit" in messages.text(partly.notes[0], "en")
    half = CHECKS["5.3.4"].finding({"failed": rows(0), "scope": row(days=None)} | refused, make_given())
    assert (half.status, half.reason) == (Status.UNKNOWN, Reason.DENIED)
    day = consistency.judge_audit({"changes": rows(0), "scope": row(hours=None)}, make_given())
    assert "consistency.gate_day" in {n.key for n in day.notes}


# On real servers ---------------------------------------------------------------------------------------------


def test_what_agrees_is_ok(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    assert set(statuses(run(servers, *STEPS)).values()) == {Status.OK}  # no rows at all
    traffic(db, 120)
    events(db, 3, 30, status="PENDING")
    events(db, 3, 30, status="PROCESSING", by="pod-1", locked=1, over=-29)
    events(db, 3, 200, status="FAILED", tries=10, dead=50)
    events(db, 3, 5, outbox="PENDING", **UNPROCESSED)
    events(db, 3, 2, **UNPROCESSED)  # published a moment ago: on its way
    with bound(broker):
        found = run(servers, *STEPS)
    assert set(statuses(found).values()) == {Status.OK}, {s: words(f) for s, f in found.items()}


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("5.3.1", "UPDATE notification.notifications SET locked_by = 'me' WHERE status = 'SENT'"),
        ("5.3.1", "UPDATE notification.notifications SET next_retry_at = now() WHERE status = 'SENT'"),
        ("5.3.1", "UPDATE notification.notifications SET lease_until = now() WHERE status = 'SENT'"),
        ("5.3.3", "DELETE FROM notification.notifications WHERE status = 'SENT'"),
        ("5.3.3", "DELETE FROM notification.processed_events"),
        ("5.3.4", "DELETE FROM notification.notification_dlq"),
        ("5.3.4", "UPDATE notification.notifications SET status = 'PENDING' WHERE status = 'FAILED'"),
        ("5.3.6", "UPDATE notification.notifications SET lease_until = now() WHERE status = 'PENDING'"),
        ("5.3.6", "UPDATE notification.notifications SET locked_by = 'me' WHERE status = 'PENDING'"),
        ("5.3.6", "UPDATE notification.notifications SET locked_by = 'me' WHERE status = 'FAILED'"),
        ("5.3.6", "UPDATE notification.notifications SET status = 'PROCESSING' WHERE status = 'PENDING'"),
        ("5.3.6", "UPDATE notification.notifications SET sent_at = NULL WHERE status = 'SENT'"),
        ("5.3.6", "UPDATE notification.notifications SET sent_at = now() WHERE status = 'PENDING'"),
        ("5.3.6", "UPDATE entitlement.outbox_events SET locked_by = 'me'"),
        ("5.3.6", "UPDATE entitlement.outbox_events SET status = 'PENDING', lease_until = now()"),
        ("5.3.6", "UPDATE entitlement.outbox_events SET status = 'IN_FLIGHT'"),
    ],
)
def test_what_does_not_agree_is_found(servers: Servers, db: psycopg.Connection, step: str, change: str) -> None:
    events(db, 4, 100)
    events(db, 1, 100, status="PENDING")
    events(db, 2, 100, status="FAILED", tries=10, dead=50)
    db.execute(change)
    found = run(servers, step)[step]
    assert found.status is Status.CRITICAL, words(found)
    assert len(found.frames[found.show[0]]) or len(found.frames[found.show[-1]])


NO_EVENT: dict[str, Any] = {"outbox": None, "processed": False, "status": None}


def test_a_day_of_the_audit_is_compared(servers: Servers, db: psycopg.Connection) -> None:
    events(db, 3, 26 * 3600, **NO_EVENT)  # removed by retention
    events(db, 2, 3 * 3600, **NO_EVENT)  # before the window, within the day
    expect(run(servers, "5.3.5")["5.3.5"], Status.CRITICAL, values={"integrity.lost": 2})


@pytest.mark.parametrize("day", [True, False])
def test_an_event_that_was_notified_was_deleted_not_lost(
    servers: Servers, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, day: bool
) -> None:
    if not day:
        monkeypatch.setenv("RUNBOOK_BUDGET__MAX_PLAN_COST", "1")
    events(db, 5, 100)
    db.execute("DELETE FROM entitlement.outbox_events")
    found = run(servers, "5.3.5")["5.3.5"]
    expect(found, Status.WARNING, values={"integrity.lost": 0, "outbox.deleted": 5}, weights={"FM-DB-07": "> 0"})
    assert weight(found, "producer") == 0
    events(db, 1, 100, **NO_EVENT)
    both = run(servers, "5.3.5")["5.3.5"]
    expect(both, Status.CRITICAL, values={"integrity.lost": 1}, notes={"consistency.event_deleted"})


def test_notifications_of_events_that_nobody_sent_here(servers: Servers, db: psycopg.Connection) -> None:
    events(db, 5, 400)
    events(db, 4, 300, audit=False, outbox=None)  # of another system's stream
    events(db, 2, 25 * 3600, outbox=None)  # of this one, and late
    db.execute("UPDATE notification.notifications SET created_at = now() WHERE occurred_at < now() - interval '1 day'")
    db.execute("UPDATE entitlement.entitlements SET updated_at = now() - interval '1 day'")
    counted = {"without_event.notifications": 4, "without_event.registrations": 4}
    for step in ("5.3.5", "4.2.2"):
        found = run(servers, step)[step]
        expect(found, Status.CRITICAL, values=counted, weights={"FM-NATS-12": "> 0.8", "FM-DB-07": "== 0"})
        said = "".join(messages.text(t, "en") for t in (found.headline, *found.notes))
        assert "4 notifications of 4 users are more than" in said and "This outbox never had their events" in said
    db.execute("UPDATE notification.notifications SET type = 'MatchFound'")  # a match has no outbox row
    expect(run(servers, "5.3.5")["5.3.5"], Status.OK)


@pytest.mark.parametrize("how", ["DELETE FROM", "TRUNCATE"])
def test_notifications_that_were_deleted_by_hand_are_nobody_s_silence(
    servers: Servers, db: psycopg.Connection, broker: str, how: str
) -> None:
    traffic(db, until=30)
    db.execute(f"{how} notification.notifications".encode())
    traffic(db, seconds=20)  # and it goes on
    with bound(broker):
        found = run(servers, "3.1", "3.2") | run(servers, "4.2.2") | run(servers, "5.3.3")
    for step in ("3.1", "4.2.2", "5.3.3"):
        expect(found[step], weights={"FM-DB-07": "> 0.8", "subscriber": "== 0"}, says="older than every notification")
    verdict = verdict_of(found["3.1"], found["3.2"])
    assert (verdict.status, verdict.stuck_at, verdict.undecided) == (Status.WARNING, None, ())


def test_the_gate_leaves_the_window(servers: Servers, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    events(db, 3, 100, **NO_EVENT)
    events(db, 2, 3 * 3600, **NO_EVENT)
    events(db, 4, 200, **UNPROCESSED)
    events(db, 5, 3 * 3600, **UNPROCESSED)
    db.execute("UPDATE notification.notifications SET locked_by = 'me' WHERE created_at < now() - interval '2 hours'")
    monkeypatch.setenv("RUNBOOK_BUDGET__MAX_PLAN_COST", "1")
    found = run(servers, "5.3.1", "5.3.2", "5.3.4", "5.3.5")
    assert found["5.3.5"].value("integrity.lost") == 3
    assert found["5.3.2"].value("outbox.unprocessed") == 4
    expect(found["5.3.1"], Status.OK, notes={"unknown.part"})
    assert (found["5.3.4"].status, found["5.3.4"].reason) == (Status.UNKNOWN, Reason.DENIED)
    asked = [q for q in found["5.3.1"].queries if q.name == "consistency/sent_dirty"]
    assert asked[0].plan_cost and asked[0].error


def test_published_and_gone(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    events(db, 3, 100, **UNPROCESSED)
    with bound(broker):
        lost = run(servers, "5.3.2")["5.3.2"]
        expect(lost, Status.CRITICAL, values={"integrity.lost": 3}, weights={"FM-NATS-03": "> 0"})
        publish(broker, b"0", b"1", b"2")
        waiting = run(servers, "5.3.2")["5.3.2"]
    expect(waiting, Status.WARNING, sections=("4.1",), values={"integrity.lost": 0})


def test_without_the_broker_lost_is_not_told_from_waiting(servers: Servers, db: psycopg.Connection) -> None:
    found = run(servers, "5.3.2", nats_url="nats://127.0.0.1:9")["5.3.2"]
    assert found.status is Status.OK  # nothing is missing, whatever the consumer holds
    events(db, 3, 100, **UNPROCESSED)
    expect(run(servers, "5.3.2", nats_url="nats://127.0.0.1:9")["5.3.2"], Status.UNKNOWN, reason=Reason.NO_DATA)


def test_people_are_masked_in_the_evidence(servers: Servers, db: psycopg.Connection) -> None:
    events(db, 3, 100, outbox=None)
    found = run(servers, "5.3.5")["5.3.5"]
    assert not any(str(u) == "user-1" for u in found.frames["changes"]["user_id"])
