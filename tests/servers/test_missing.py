"""Events that were published and never processed: 4.1.2, 5.3.2, `runbook account` and `runbook event` say one thing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import psycopg
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.js import JetStreamContext
from steps import ago, bound, events, make_given, publish_ids, run, weight, words

from runbook_lib.analysis.diagnosis import conclude
from runbook_lib.catalog import load
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.gameday.sandbox.servers import Servers
from runbook_lib.model.finding import Finding, Frames, Status
from runbook_lib.packs.entitlement.checks import consistency, subscriber
from runbook_lib.packs.entitlement.stream import ConsumerPosition
from runbook_lib.session import quiet_session
from runbook_lib.sources.jetstream import Consumer

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
        "activity": pd.DataFrame([{"now": ago(0), "last_processed": ago(1), "processed_1m": 300}]),
        "broker": pd.DataFrame(told, columns=["event_id", "place"]),
    }
    if lag is None:
        return found
    return found | {"consumer": pd.DataFrame([consumer])}


def judged(found: Frames) -> tuple[Finding, Finding]:
    """What both steps say of the same."""
    a, b = subscriber.judge(found, make_given()), consistency.judge_lost(found, make_given())
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
        assert "missing.passed_by" in {n.key for n in found.notes}
        assert weight(found, "FM-NATS-03") == 0
        assert found.proposals == ()
    verdict = conclude([at_subscriber, in_consistency], load())
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


# On real servers -----------------------------------------------------------------------------------------------


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
    servers: Servers, db: psycopg.Connection, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in servers.env.items():
        monkeypatch.setenv(name, value)
    events(db, N, 90, processed=False, status=None)
    ids = [str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events")]
    with bound(broker), another_subject(servers) as subject:
        publish_ids(broker, ids, subject)
        at_subscriber = run(servers, "4.1.2")["4.1.2"]
        in_consistency = run(servers, "5.3.2")["5.3.2"]
        rb = quiet_session("3")
        balance, journey = rb.account().balance, rb.event(ids[0]).traces[0]
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == N
    assert at_subscriber.value("subscriber.lag") == 0
    assert (at_subscriber.status, in_consistency.status) == (Status.CRITICAL, Status.CRITICAL)
    assert at_subscriber.headline.key == "subscriber.passed_by"
    assert set(balance.unaccounted) == set(ids)
    assert (journey.place, journey.status) == ("passed_by", Status.CRITICAL)


def test_older_events_that_were_lost_are_not_hidden_by_newer_ones_that_wait(
    servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    """Nobody takes what is new, so that the consumer holds more than is missing; what was acknowledged is gone."""
    events(db, 3, 200, processed=False, status=None)
    old = [str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events")]
    events(db, 5, 90, processed=False, status=None)
    new = [str(i) for (i,) in db.execute("SELECT event_id FROM entitlement.outbox_events") if str(i) not in old]
    publish_ids(broker, old)

    async def acknowledge(js: JetStreamContext) -> None:
        config = (await js.consumer_info(applications.STREAM, applications.CONSUMER)).config
        sub = await js.subscribe_bind(applications.STREAM, config, applications.CONSUMER, manual_ack=True)
        for _ in old:
            await (await sub.next_msg()).ack_sync()

    applications.visit(broker, acknowledge)
    publish_ids(broker, [*new, *(f"just-now-{n}" for n in range(10))])
    at_subscriber = run(servers, "4.1.2")["4.1.2"]
    in_consistency = run(servers, "5.3.2")["5.3.2"]
    assert at_subscriber.value("subscriber.lag") == 15
    assert at_subscriber.value("outbox.unprocessed") == in_consistency.value("integrity.lost") == 3
