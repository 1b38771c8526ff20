"""Events that were published and never processed: 4.1.2, 5.3.2 and `runbook event` say one thing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.js import JetStreamContext

from runbook_lib.book import catalog
from runbook_lib.book.messages import text
from runbook_lib.checks.check import NOT_READ, failure_frame
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.model.finding import Finding, Frames, Reason, Status
from runbook_lib.model.frames import row
from runbook_lib.notebook.session import quiet_session
from runbook_lib.packs.entitlement import missing
from runbook_lib.packs.entitlement.checks import consistency, subscriber
from runbook_lib.packs.jetstream.consumer import ConsumerPosition, read_oldest_held
from runbook_lib.sources.jetstream import Consumer
from runbook_lib.sources.source import SourceError
from tests.kit import steps
from tests.kit.effort import examples
from tests.kit.servers import Servers
from tests.kit.steps import (
    NOW,
    UNPROCESSED,
    ago,
    bound,
    events,
    expect,
    make_given,
    publish_ids,
    run,
    verdict_of,
    words,
)

N = 57


def frames(places: Sequence[str], lag: int | None, published: Sequence[float] | None = None) -> Frames:
    """Missing events, where the broker has each ("" for not looked at), and how much the consumer holds.

    The consumer stands there as 4.1.2 and as 5.3.2 collect it.
    """
    ids = [str(uuid.UUID(int=n)) for n in range(len(places))]
    seconds = published or [90.0] * len(places)
    told = [(i, place) for i, place in zip(ids, places, strict=True) if place]
    consumer = {"bound": True, "num_pending": lag, "num_ack_pending": 0, "pending": lag, "unacknowledged": 0}
    found = {
        "unprocessed": pd.DataFrame(
            [(i, "EntitlementGranted", ago(s + 1), ago(s)) for i, s in zip(ids, seconds, strict=True)],
            columns=["event_id", "event_type", "created_at", "published_at"],
        ),
        "activity": row(now=ago(0), last_processed=ago(1), processed_1m=300),
        "broker": pd.DataFrame(told, columns=["event_id", "place"]),
    }
    if lag is None:
        return found
    return found | {"consumer": pd.DataFrame([consumer])}


def judged(found: Frames) -> tuple[Finding, Finding]:
    """What both steps say of the same."""
    a, b = subscriber.CHECKS[0].finding(found, make_given()), consistency.LOST.finding(found, make_given())
    words(a), words(b)
    return a, b


@pytest.mark.parametrize(
    ("places", "lag", "lost"),
    [
        (["waits"] * N, N, 0),
        (["waits"] * N, 0, N),  # they lie where the consumer does not get them from: it holds nothing
        (["passed"] * N, 0, N),
        (["passed"] * N, 400, N),  # what it holds are others
        (["gone"] * N, 400, N),
        (["given_up"] * 3 + ["waits"] * 4, 10, 3),
        ([""] * N, 60, 0),
        ([""] * N, 50, 7),
        (["waits"] * 5 + [""] * 5, 7, 3),
        ([], 9, 0),
        ([], None, 0),
        ([""] * N, None, None),
    ],
)
def test_both_steps_decide_alike(places: list[str], lag: int | None, lost: int | None) -> None:
    at_subscriber, in_consistency = judged(frames(places, lag))
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == lost
    if lost is None:
        assert (at_subscriber.status, in_consistency.status) == (Status.UNKNOWN, Status.UNKNOWN)
        assert not [s for f in (at_subscriber, in_consistency) for s in f.signals if s.about == "FM-NATS-03"]
    elif lost:
        assert (at_subscriber.status, in_consistency.status) == (Status.CRITICAL, Status.CRITICAL)
    else:
        assert not {"subscriber.lost", "consistency.lost"} & {at_subscriber.headline.key, in_consistency.headline.key}


PLACES = st.lists(st.sampled_from(["waits", "delivered", "given_up", "gone", "passed", ""]), max_size=6)


@settings(max_examples=examples(80))
@given(PLACES, st.one_of(st.none(), st.integers(0, 9)))
def test_they_never_contradict_each_other(places: list[str], lag: int | None) -> None:
    at_subscriber, in_consistency = judged(frames(places, lag))
    lost = at_subscriber.value("outbox.unprocessed")
    assert lost == in_consistency.value("integrity.lost")
    assert (lost is None) is (lag is None and bool(places))
    if isinstance(lost, int) and lag is not None:
        assert len([p for p in places if p in ("given_up", "gone", "passed")]) <= lost
        assert len(places) - lost <= lag, "no more wait than the consumer holds"


def test_what_the_consumer_passes_by_is_named_and_nothing_is_restarted_for_it() -> None:
    at_subscriber, in_consistency = judged(frames(["passed"] * N, 0))
    assert at_subscriber.headline.key == "subscriber.passed_by"
    for found in (at_subscriber, in_consistency):
        expect(found, proposals=[], weights={"FM-NATS-03": "== 0"}, notes={"missing.passed_by"})
    verdict = verdict_of(at_subscriber, in_consistency)
    assert (verdict.stuck_at, verdict.proposals) == ("subscriber", ())


def test_events_lost_long_ago_are_not_being_lost_while_newer_ones_wait() -> None:
    old, new = ["gone"] * 3, ["waits"] * 4
    found, _ = judged(frames(old + new, 4, [800.0] * 3 + [70.0] * 4))
    assert found.value("outbox.unprocessed") == 3
    assert "subscriber.losing" not in {s.observation for s in found.signals}
    now, _ = judged(frames(old + new, 4, [70.0] * 3 + [800.0] * 4))
    assert "subscriber.losing" in {s.observation for s in now.signals}


@pytest.mark.parametrize(
    ("config", "subject", "takes"),
    [
        ({}, "any", True),
        ({"filter_subject": ""}, "any", True),
        ({"filter_subject": "a.b"}, "a.b", True),
        ({"filter_subject": "a.b"}, "a.c", False),
        ({"filter_subject": "a.*"}, "a.b.c", False),
        ({"filter_subjects": ["x", "a.>"]}, "a.b.c", True),
    ],
)
def test_what_a_consumer_takes(config: dict[str, object], subject: str, takes: bool) -> None:
    assert ConsumerPosition.of(Consumer({"config": config}, 0, 0, 0, 0, 0, 0)).takes(subject) is takes


def test_the_oldest_held_message_is_of_a_subject_that_the_consumer_takes() -> None:
    stored = {"a": 7, "b": 5, "c": 2}

    def message(stream: str, first: int, subject: str) -> Any:
        return SimpleNamespace(seq=stored[subject], time=ago(stored[subject]))

    broker = SimpleNamespace(message=message)
    rb: Any = SimpleNamespace(now=lambda: NOW, source=lambda name: broker)
    consumer = Consumer({"config": {"filter_subjects": ["a", "b"]}}, 1, 0, 0, 0, 0, 0)
    found, age_s = read_oldest_held(rb, applications.STREAM, consumer)
    assert found is not None and (found.seq, age_s) == (5, 5.0)


# Deleted rows --------------------------------------------------------------------------------------------------


def deletions(deleted: float, age_d: float | None, days: float | None = None) -> Frames:
    """How many registrations were deleted, how old the oldest is that is left, and the retention that is set."""
    return {
        "deletions": row(age_d=age_d, inserted=9, deleted=deleted, counted_since=ago(86400)),
        "retention": row(days=days),
    }


def test_events_with_a_notification_are_not_lost_but_not_registered() -> None:
    found = frames(["gone"] * N, 0)
    found["notified"] = found["unprocessed"][["event_id"]].assign(notification="SENT")
    at_subscriber, in_consistency = judged(found)
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == 0
    assert at_subscriber.value("outbox.not_registered") == in_consistency.value("integrity.rows") == N
    assert (at_subscriber.status, in_consistency.status) == (Status.CRITICAL, Status.CRITICAL)
    assert at_subscriber.headline.key == "subscriber.not_registered"
    assert in_consistency.headline.key == "missing.not_registered"
    (repair,) = (n for n in in_consistency.notes if n.key == "missing.register")
    assert "INSERT INTO notification.processed_events" in text(repair, "en")
    day_before = f"{NOW - pd.Timedelta('24h'):%Y-%m-%d %H:%M:%S}+00"
    assert f"created_at >= timestamptz '{day_before}'" in text(repair, "en"), "more may be missing than was read"
    verdict = verdict_of(at_subscriber, in_consistency)
    assert (verdict.stuck_at, verdict.failure_modes[0].id, verdict.proposals) == (None, "FM-DB-07", ())


def test_some_are_lost_and_others_only_not_registered() -> None:
    found = frames(["given_up"] * 3 + [""] * 4, 0)
    found["notified"] = found["unprocessed"][["event_id"]][3:].assign(notification="SENT")
    at_subscriber, in_consistency = judged(found)
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == 3
    expect(in_consistency, None, "consistency.lost", notes={"missing.not_registered"})


@pytest.mark.parametrize(
    ("places", "deleted", "age_d", "lost"),
    [
        (["gone"] * 5, 5, 1.0, 0),
        ([""] * 5, 500, 28.0, 0),
        (["gone"] * 5, 500, 29.9, 5),  # the retention deletes what is as old
        (["gone"] * 5, 4, 1.0, 5),  # too few to explain them
        (["gone"] * 5, 0, 1.0, 5),
        (["gone"] * 5, 0, 80 / 86400, 0),  # nothing is left from before they were published, 90 s ago
        (["gone"] * 5, 0, None, 0),  # emptied
        (["given_up"] * 3 + ["passed"] * 2 + ["gone"] * 5, 500, 1.0, 5),  # the broker shows how these were lost
    ],
)
def test_deletions_that_would_explain_a_loss_leave_it_open(
    places: list[str], deleted: float, age_d: float, lost: int
) -> None:
    at_subscriber, in_consistency = judged(frames(places, 0) | deletions(deleted, age_d))
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == lost
    open_ = {"consistency.lost_or_deleted"} & {s.observation for s in in_consistency.signals}
    assert bool(open_) == (lost < len(places))
    if lost:
        assert (at_subscriber.status, in_consistency.status) == (Status.CRITICAL, Status.CRITICAL)
        return
    assert (at_subscriber.status, in_consistency.status) == (Status.UNKNOWN, Status.UNKNOWN)
    assert at_subscriber.headline.key == "subscriber.lost_or_deleted"
    verdict = verdict_of(at_subscriber, in_consistency)
    assert verdict.stuck_at is None, "no deletion is proof of a loss, and none of its absence"
    assert "redrive_broker" not in {p.name for p in verdict.proposals}


def test_without_the_notifications_nothing_is_called_lost() -> None:
    failed = failure_frame({"notified": SourceError("postgres", Reason.TIMEOUT, "a lock", "lock_not_available")})
    at_subscriber, in_consistency = judged(frames(["gone"] * N, 0) | {NOT_READ: failed})
    assert at_subscriber.value("outbox.unprocessed") is in_consistency.value("integrity.lost") is None
    expect(in_consistency, Status.UNKNOWN, notes={"unknown.part"})
    assert not [s for f in (at_subscriber, in_consistency) for s in f.signals if s.about == "FM-NATS-03"]


def test_a_retention_that_is_too_short_is_named() -> None:
    at_subscriber, found = judged(frames(["gone"] * 5, 0) | deletions(500, 0.1, days=0))
    assert (at_subscriber.status, found.status) == (Status.CRITICAL, Status.CRITICAL)
    assert "consistency.short_retention" in {s.observation for s in found.signals}
    _, usual = judged(frames(["gone"] * 5, 0) | deletions(500, 0.1, days=30))
    assert "consistency.short_retention" not in {s.observation for s in usual.signals}


# On real servers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missed", [4, 80])
def test_deleted_registrations_mean_the_same_to_every_section(
    servers: Servers, db: psycopg.Connection, broker: str, default_target: None, missed: int
) -> None:
    """5.3, the triage's step and the postmortem speak of the same events."""
    events(db, 3, 300)
    events(db, N, 90)
    events(db, 2, 90, status="FAILED", tries=10, dead=50)
    db.execute("DELETE FROM notification.processed_events WHERE processed_at > now() - interval '200 seconds'")
    db.execute("DELETE FROM notification.notifications WHERE status = 'FAILED'")  # their dead letters remain
    events(db, missed, 95, **UNPROCESSED)
    db.execute("SELECT pg_stat_force_next_flush()")
    ids = [str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events")]
    steps.acknowledge(broker, publish_ids(broker, ids))
    with bound(broker):
        at_subscriber = run(servers, "4.1.2")["4.1.2"]
        in_consistency = run(servers, "5.3.2")["5.3.2"]
        slis = run(servers, "3.1")["3.1"]
        rb = quiet_session("3")
        traces = [rb.event(str(i)).traces[0] for i in in_consistency.frames["unprocessed"]["event_id"][-2:]]
    assert at_subscriber.value("outbox.not_registered") == in_consistency.value("integrity.rows") == N + 2
    assert in_consistency.value("outbox.unprocessed") == missed
    # If at least as many were deleted, that may be the reason.
    lost = 0 if missed <= N + 2 else missed
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == lost
    assert {t.place for t in traces} == {"published"}, "a single one may always be among those that were deleted"
    affected = slis.frames["affected"].set_index("place")["events"]
    assert affected["broker"] == missed
    impact = run(servers, "7.1")["7.1"]
    late = impact.frames["impact"].set_index("slo")["bad"]["NOTI-B"]
    doubtful = {n.key: dict(n.params) for n in impact.notes}.get("postmortem.lost_or_deleted")
    assert doubtful == (None if lost else {"n": missed})
    assert late == lost


@contextmanager
def another_subject(servers: Servers) -> Iterator[str]:
    """A second subject of the stream, which the consumer does not take."""
    subject = "entitlement.elsewhere"

    async def add(js: JetStreamContext) -> None:
        info = await js.stream_info(applications.STREAM)
        info.config.subjects = [applications.SUBJECT, subject]
        await js.update_stream(info.config)

    applications.visit(servers.app_nats_url, add)
    try:
        yield subject
    finally:
        servers.ensure_streams()


def test_published_events_that_pass_the_consumer_by(
    servers: Servers, db: psycopg.Connection, broker: str, default_target: None
) -> None:
    events(db, N, 90, **UNPROCESSED)
    ids = [str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events")]
    with bound(broker), another_subject(servers) as subject:
        publish_ids(broker, ids, subject)
        at_subscriber = run(servers, "4.1.2")["4.1.2"]
        in_consistency = run(servers, "5.3.2")["5.3.2"]
        journey = quiet_session("3").event(ids[0]).traces[0]
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == N
    assert at_subscriber.value("subscriber.lag") == 0
    assert (at_subscriber.status, in_consistency.status) == (Status.CRITICAL, Status.CRITICAL)
    assert at_subscriber.headline.key == "subscriber.passed_by"
    assert (journey.place, journey.status) == ("passed_by", Status.CRITICAL)


def test_older_events_that_were_lost_are_not_hidden_by_newer_ones_that_wait(
    servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    """Nobody takes what is new, so that the consumer holds more than is missing; what was acknowledged is gone."""
    events(db, 3, 200, **UNPROCESSED)
    old = [str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events")]
    events(db, 5, 90, **UNPROCESSED)
    new = [str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events") if str(i) not in old]
    steps.acknowledge(broker, publish_ids(broker, old))
    publish_ids(broker, [*new, *(f"just-now-{n}" for n in range(10))])
    at_subscriber = run(servers, "4.1.2")["4.1.2"]
    in_consistency = run(servers, "5.3.2")["5.3.2"]
    assert at_subscriber.value("subscriber.lag") == 15
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == 3


def test_events_that_were_lost_seconds_ago_are_found(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    """They were acknowledged and are not registered: the consumer holds nothing that is as old."""
    events(db, 3, 12, processed=False, status=None)
    ids = [str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events")]
    steps.acknowledge(broker, publish_ids(broker, ids))
    publish_ids(broker, ["just-now"])
    with bound(broker):
        at_subscriber = run(servers, "4.1.2")["4.1.2"]
        in_consistency = run(servers, "5.3.2")["5.3.2"]
    assert at_subscriber.value("subscriber.lag") == 1
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == 3


def test_what_the_broker_no_longer_holds_and_the_tables_register_is_left_open(
    servers: Servers, db: psycopg.Connection, default_target: None
) -> None:
    """A replica may lack the registrations of the last moments; the tables' own server decides."""
    events(db, 2, 3600)
    events(db, 2, 90)
    known = [str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events")]
    events(db, 2, 90, **UNPROCESSED)
    every = {str(i): at for i, at in db.execute("SELECT event_id, published_at FROM entitlement.outbox_events")}
    lost, held = (i for i in every if i not in known)
    places = {**dict.fromkeys(every, "gone"), held: "waits"}
    assert missing.leave_open(quiet_session("3").context, places, every) == {lost: "gone", held: "waits"}


def test_what_a_replica_does_not_show_yet_is_not_lost(
    servers: Servers, db: psycopg.Connection, default_target: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables' own server has registered what the replica lacks."""
    events(db, 1, 90)
    (known,) = (str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events"))
    rb, parts = quiet_session("4.1").context, FrameCollector(frames(["gone", "gone"], 0))
    (first, lost) = parts.answers["unprocessed"]["event_id"]
    for name in ("unprocessed", "broker"):
        parts.answers[name] = parts.answers[name].replace(first, known)
    missing._drop_registered(rb, parts)
    assert list(parts.answers["unprocessed"]["event_id"]) == [known, lost], "there is no replica"
    monkeypatch.setattr(rb.postgres, "replica", rb.postgres)
    missing._drop_registered(rb, parts)
    assert [list(parts.answers[n]["event_id"]) for n in ("unprocessed", "broker")] == [[lost], [lost]]


@pytest.mark.parametrize(("held_s", "settled_s"), [(None, 60), (0.0, 5), (8.0, 13), (300.0, 60)])
def test_an_event_counts_as_missing_once_it_is_older_than_all_that_is_held(
    held_s: float | None, settled_s: float
) -> None:
    rb: Any = SimpleNamespace(number=catalog.load().numbers.__getitem__)
    assert missing.settled_s(rb, ConsumerPosition(held_s=held_s)) == settled_s
    assert missing.settled_s(rb, None) == 60


def test_a_young_event_is_missing_only_if_the_broker_shows_its_loss() -> None:
    """The others may have been published after the consumer was read, or registered after the tables were."""
    ages = {"waits": 20.0, "gone": 20.5, "": 21.0, "delivered": 22.0}
    found = frames([*ages, "waits"], 0, [*ages.values(), 90.0])
    found["unprocessed"].attrs["capped"] = True
    rb: Any = SimpleNamespace(number=catalog.load().numbers.__getitem__, as_of=NOW)
    missing._drop_unsettled(rb, found)
    assert [str(uuid.UUID(i).int) for i in found["unprocessed"]["event_id"]] == ["1", "4"]
    assert found["unprocessed"].attrs["capped"]
