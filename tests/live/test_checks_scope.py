"""Section 2: judges on frames of every shape, and the steps on real servers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import psycopg
import pytest
from psycopg import sql as identifiers

from runbook_lib.checks.check import checks
from runbook_lib.model.finding import Reason, Status
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import scope
from runbook_lib.packs.entitlement.facts import EntitlementFacts
from runbook_lib.packs.postgres import locks, reach
from runbook_lib.sources.source import SourceError
from tests.kit.frames.scope import FRAMES, broker_frames, clocks, database_frames
from tests.kit.servers import Servers
from tests.kit.steps import (
    NOW,
    UNPROCESSED,
    ago,
    bound,
    events,
    expect,
    make_given,
    run,
    statuses,
    undone,
    weight,
    words,
)

CHECKS = checks()

STEPS = ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "2.7")
ADVISORIES = EntitlementFacts().streams.advisory


def test_a_missing_column_is_named() -> None:
    frames = dict(FRAMES["2.1"])
    frames["tables"] = frames["tables"].assign(
        column_names=[str(c).replace("lease_until ", "") for c in frames["tables"]["column_names"]]
    )
    found = scope.judge_entitlement(frames, make_given())
    expect(found, Status.CRITICAL, weights={"FM-DB-03": "> 0.5"}, says="outbox_events.lease_until")


@pytest.mark.parametrize(
    ("index", "status"), [("processed_events_pkey", Status.CRITICAL), ("notifications_user_idx", Status.WARNING)]
)
def test_an_index_that_is_not_usable(index: str, status: Status) -> None:
    frames = dict(FRAMES["2.4"])
    frames["indexes"] = frames["indexes"].assign(usable=frames["indexes"]["index_name"] != index)
    found = scope.judge_notification(frames, make_given())
    assert found.status is status
    assert (weight(found, "FM-NOTI-01") > 0) is (status is Status.CRITICAL)


@pytest.mark.parametrize("age_d", [None, 30.04, 45.0])
def test_registrations_that_nobody_removes(age_d: float | None) -> None:
    found = scope.judge_notification(FRAMES["2.4"] | {"oldest": row(age_d=age_d)}, make_given())
    hoards = age_d == 45.0
    assert found.status is (Status.WARNING if hoards else Status.OK)
    assert (weight(found, "FM-DB-02") > 0.5) is hoards
    assert not weight(found, "delivery_worker") and bool(found.notes) is hoards
    words(found)


@pytest.mark.parametrize(
    ("changes", "status", "told"),
    [
        ({"exists": False}, Status.CRITICAL, "missing"),
        ({"bound": False}, Status.WARNING, "no client is bound to: d"),
        ({"ack_wait_s": 30.0}, Status.WARNING, "consumer d: ack_wait 30 s"),
        ({"max_deliver": 3}, Status.WARNING, "consumer d: max_deliver 3"),
        ({"ack_policy": "none"}, Status.WARNING, "consumer d: ack_policy none"),
        ({"subject": "other"}, Status.WARNING, "consumer d: filter other"),
        ({"duplicate_window_s": 60.0}, Status.WARNING, "stream s: duplicate_window 60 s"),
        ({"max_age_s": 60.0, "no_ack": True}, Status.WARNING, "stream s: max_age 60 s; stream s: no_ack true"),
        ({"retention": "workqueue", "max_msgs": 9}, Status.WARNING, "max_msgs 9; stream s: retention workqueue"),
        ({"retention": None, "max_msgs": None, "ack_policy": None}, Status.OK, "as expected"),
    ],
)
def test_a_broker_that_is_not_as_expected(changes: dict[str, Any], status: Status, told: str) -> None:
    found = scope.BROKER.judge(broker_frames(**changes), make_given())
    expect(found, status)
    assert ("as expected" in words(found)) is (status is Status.OK)
    assert told in " ".join((words(found), *(str(note.params.get("names")) for note in found.notes)))


@pytest.mark.parametrize(("late_s", "restarted"), [(60.0, True), (15.0, False), (0.5, False)])
def test_a_broker_that_started_while_events_waited(late_s: float, restarted: bool) -> None:
    outbox = row(now=NOW, due=9, oldest_due=ago(late_s), oldest_due_s=late_s, last_published=ago(1))
    relay = replace(scope.judge_relay({"outbox": outbox}, make_given()), step="2.2")
    frames = broker_frames()
    frames["server"] = frames["server"].assign(started_at=ago(20))
    found = scope.BROKER.judge(frames, make_given(earlier=(relay,)))
    expect(found, Status.WARNING if restarted else Status.OK, weights={"jetstream": "> 0.5" if restarted else "< 0"})
    assert ("started 20 s ago" in words(found)) is restarted
    cut_off = frames | {"consumers": frames["consumers"].assign(bound=False)}
    expect(scope.BROKER.judge(cut_off, make_given(earlier=(relay,))), Status.WARNING, says="bound")


def test_an_unbound_consumer_of_advisories_holds_no_event_up() -> None:
    frames = broker_frames()
    two = pd.concat(
        [frames["consumers"], frames["consumers"].assign(stream=ADVISORIES, durable="advisories", bound=False)]
    )
    found = scope.BROKER.judge(frames | {"consumers": two}, make_given())
    expect(found, Status.WARNING, weights={"subscriber": "< 0.5", "FM-NATS-03": "> 0.5"})
    events = scope.BROKER.judge(broker_frames(bound=False), make_given())
    expect(events, Status.WARNING, weights={"subscriber": "> 0.5"})


def test_events_under_an_expired_lease_wait_for_the_relay_too() -> None:
    outbox = row(now=NOW, due=0, expired=50, oldest_expired_s=40.0, last_published=ago(70))
    found = scope.judge_relay({"outbox": outbox}, make_given())
    expect(found, Status.CRITICAL, "scope.relay", values={"outbox.due": 50, "outbox.oldest_due": 40.0})


def test_what_is_missing_at_the_broker_is_named() -> None:
    """A consumer is made again by a restart of notification; only a stream needs one of entitlement."""
    frames = broker_frames()
    other = frames["consumers"].assign(stream=ADVISORIES, durable="advisories", exists=False)
    record = frames | {"consumers": pd.concat([frames["consumers"], other], ignore_index=True)}
    consumer = frames | {"consumers": frames["consumers"].assign(exists=False)}
    for told, mode in ((broker_frames(exists=False), "FM-NATS-04"), (consumer, "FM-NATS-06"), (record, "FM-NATS-03")):
        found = scope.BROKER.judge(told, make_given())
        assert found.status is Status.CRITICAL
        assert [s.about for s in found.signals if s.about.startswith("FM") and s.weight > 0] == [mode]


def test_a_role_that_may_write_is_a_note_and_one_that_may_not_read_a_warning() -> None:
    writer = reach.judge_database(database_frames(may_write=True, superuser=True), make_given())
    expect(writer, Status.OK, notes={"scope.grants"})
    blind = reach.judge_database(database_frames(may_read=False, monitor=False), make_given())
    expect(blind, Status.WARNING, notes={"scope.unreadable", "scope.no_pg_monitor"})


def test_no_connection_left_is_the_answer() -> None:
    full = SourceError("postgres", Reason.UNREACHABLE, "full", "too_many_clients")
    expect(locks.on_error(full, make_given()), Status.CRITICAL)
    denied = SourceError("postgres", Reason.DENIED, "no", "wrong_password")
    expect(locks.on_error(denied, make_given()), Status.UNKNOWN, reason=Reason.DENIED)


@pytest.mark.parametrize(("ahead", "status"), [(0.9, Status.OK), (2.0, Status.WARNING), (-16.0, Status.CRITICAL)])
def test_clocks_apart(ahead: float, status: Status) -> None:
    found = reach.judge_clocks({"clocks": clocks(0.0, ahead)}, make_given(), 30.0, "scope.clocks_apart")
    assert found.status is status
    assert (weight(found, "FM-CLK-01") > 0) is (abs(ahead) >= 3)


def test_an_error_larger_than_the_offset_proves_nothing() -> None:
    frames = {"clocks": clocks(0.0, 8.0, error_s=8.0)}
    assert reach.judge_clocks(frames, make_given(), 30.0, "scope.clocks_apart").status is Status.OK


# On real servers ---------------------------------------------------------------------------------------------


def test_an_idle_system_is_ok(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with bound(broker):
        found = run(servers, *STEPS)
    assert {s: f.status for s, f in found.items() if f.counts} == dict.fromkeys((*STEPS[:5], "2.7"), Status.OK)
    assert found["2.6"].reason is Reason.NOT_CONFIGURED
    assert found["2.5"].value("postgres.may_write") == 0
    assert found["2.3"].notes[0].params["user"] == "runbook"


def test_what_is_late_and_unbound(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    events(db, 3, 20, outbox="PENDING", **UNPROCESSED)
    events(db, 60, 40, status="PENDING")
    found = run(servers, *STEPS)
    assert statuses(found)["2.2"] is Status.CRITICAL
    assert found["2.3"].headline.key == "broker.no_client"
    assert statuses(found)["2.4"] is Status.CRITICAL


def test_the_applications_own_role_gets_the_grants(servers: Servers, db: psycopg.Connection) -> None:
    found = run(servers, "2.5", database_url=servers.addresses.app_url)["2.5"]
    expect(found, Status.WARNING, values={"postgres.may_write": 10}, notes={"scope.grants", "scope.no_pg_monitor"})


def test_a_schema_that_lost_a_column_and_an_index(servers: Servers, db: psycopg.Connection) -> None:
    column = "ALTER TABLE notification.notifications RENAME COLUMN {} TO {}"
    with undone(db, column.format("lease_until", "lease_end"), column.format("lease_end", "lease_until")):
        found = run(servers, "2.1", "2.4")
    assert found["2.1"].status is Status.OK
    assert found["2.4"].status is not Status.OK
    assert weight(found["2.4"], "FM-DB-03") > 0.5
    index = "ALTER INDEX entitlement.outbox_{}_idx RENAME TO outbox_{}_idx"
    with undone(db, index.format("pick", "other"), index.format("other", "pick")):
        found = run(servers, "2.1")
    assert found["2.1"].status is Status.WARNING


def test_a_role_that_may_read_one_schema_only(servers: Servers, db: psycopg.Connection) -> None:
    role, password = identifiers.Identifier("half"), servers.addresses.passwords["runbook"]
    db.execute(identifiers.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, password))
    db.execute(identifiers.SQL("GRANT USAGE ON SCHEMA entitlement TO {}").format(role))
    try:
        url = servers.database_url.replace("//runbook:", "//half:")
        found = run(servers, "2.5", "2.2", database_url=url)
    finally:
        db.execute("DROP OWNED BY half")
        db.execute("DROP ROLE half")
    expect(found["2.5"], Status.WARNING, values={"postgres.unreadable": 10})
    assert (found["2.2"].status, found["2.2"].reason) == (Status.UNKNOWN, Reason.DENIED)


def test_a_broker_that_refuses_or_is_not_there(servers: Servers, db: psycopg.Connection) -> None:
    wrong = run(servers, "2.3", nats_url=servers.nats_url.replace("runbook:", "runbook:x"))["2.3"]
    assert (wrong.status, wrong.reason) == (Status.UNKNOWN, Reason.DENIED)
    gone = run(servers, "2.3", nats_url="nats://127.0.0.1:9")["2.3"]
    expect(gone, Status.UNKNOWN, reason=Reason.UNREACHABLE, sections=("2",), weights={"jetstream": "== 0"})


@pytest.mark.parametrize(("ahead_d", "said"), [(2.0, "ends in 2 d"), (-2.0, "ended 2 d ago and no default")])
def test_a_last_partition_that_has_ended_is_said_to_have(ahead_d: float, said: str) -> None:
    last = row(table_name="outbox_events", partitions=3, ahead_d=ahead_d, takes_the_rest=False)
    assert said in words(scope.judge_entitlement(FRAMES["2.1"] | {"partitions": last}, make_given()))


def test_redis_that_is_declared_and_silent(servers: Servers, db: psycopg.Connection) -> None:
    expect(run(servers, "2.6", redis_url="redis://127.0.0.1:9/0")["2.6"], Status.UNKNOWN, reason=Reason.UNREACHABLE)
