"""Where an event is: its journey, against a sandbox's own record of it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook_lib.book import messages
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.gameday.sandbox import faults
from runbook_lib.model.finding import Status
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session, quiet_session
from runbook_lib.packs.entitlement import event_lookup
from runbook_lib.packs.entitlement.event_lookup import FoundTraces
from runbook_lib.packs.entitlement.event_place import PLACES, State
from runbook_lib.packs.jetstream import search
from runbook_lib.runs import forks
from tests.kit import sandboxes
from tests.kit.command import runbook
from tests.kit.effort import examples
from tests.kit.schemas import valid
from tests.kit.servers import Servers
from tests.kit.steps import UNPROCESSED, events, publish_ids
from tests.kit.tagged import Tagged

# Pure -------------------------------------------------------------------------------------------------------------

WAITS = st.sampled_from(["due", "retry", "held"])
STATES = st.builds(
    State,
    outbox=st.sampled_from(["", "PENDING", "IN_FLIGHT", "PUBLISHED", "FAILED"]),
    outbox_wait=WAITS,
    processed=st.booleans(),
    notification=st.sampled_from(["", "PENDING", "PROCESSING", "SENT", "FAILED"]),
    notification_wait=WAITS,
    broker=st.sampled_from(["", "waits", "delivered", "given_up", "gone"]),
)


@settings(max_examples=examples(60))
@given(STATES)
def test_each_state_has_a_place_with_words(state: State) -> None:
    place = state.place
    assert place in PLACES and f"journey.at.{place}" in messages.catalogue("en")
    assert (PLACES[place].disposition == "done") == (state.notification == "SENT")
    if PLACES[place].disposition == "lost":
        assert not state.notification and (state.processed or state.broker == "gone" or not state.outbox)


def test_what_the_broker_was_not_asked_is_not_lost() -> None:
    assert State(outbox="PUBLISHED").place == "published"
    assert PLACES["published"].disposition == "unseen"


# On real servers --------------------------------------------------------------------------------------------------


@pytest.fixture
def rb(servers: Servers, db: psycopg.Connection, broker: str, default_target: None) -> Session:
    return quiet_session("3")


def ids(db: psycopg.Connection, table: str = "entitlement.outbox_events", column: str = "event_id") -> list[str]:
    return [str(i) for (i,) in db.execute(f"SELECT {column} FROM {table} ORDER BY 1")]


def one(found: FoundTraces) -> str:
    """The place of the one event."""
    (journey,) = found.traces
    return journey.place


PLACED: dict[str, tuple[dict[str, object], Status]] = {
    "sent": ({}, Status.OK),
    "outbox_due": ({"outbox": "PENDING", "publish_again": None}, Status.WARNING),
    "outbox_retry": ({"outbox": "PENDING", "publish_tries": 3, "publish_again": 6000}, Status.WARNING),
    "outbox_failed": ({"outbox": "FAILED", "publish_tries": 10, "error": "Connection is Closed"}, Status.CRITICAL),
    "registered": ({"status": None}, Status.CRITICAL),
    "queue_due": ({"status": "PENDING"}, Status.WARNING),
    "queue_retry": ({"status": "PENDING", "tries": 3, "again": 6000}, Status.WARNING),
    "queue_held": ({"status": "PROCESSING", "by": "pod-1", "locked": 1, "over": -6000}, Status.WARNING),
    "failed": ({"status": "FAILED", "tries": 10, "dead": 5}, Status.CRITICAL),
}


def test_each_place_and_what_comes_next(rb: Session, db: psycopg.Connection) -> None:
    """By whatever id it is asked for, in both languages, and as a picture."""
    of: dict[str, str] = {}
    for place, (row, _) in PLACED.items():
        early = {"processed": False, "status": None} if place.startswith("outbox") else {}
        events(db, 1, 120, **early, **row)
        (event,) = set(ids(db)) - of.keys()
        of[event] = place
    asked = db.execute(
        "SELECT o.event_id, a.audit_id, n.notification_id FROM entitlement.outbox_events o"
        " JOIN entitlement.entitlement_audit a ON a.occurred_at = o.created_at"
        " LEFT JOIN notification.notifications n USING (event_id)"
    ).fetchall()
    assert len(asked) == len(PLACED)
    for event, *others in asked:
        place = of[str(event)]
        found = rb.event(str(event))
        assert (one(found), found.status) == (place, PLACED[place][1])
        assert [one(rb.event(str(other))) for other in others if other] == [place] * len([o for o in others if o])
        for lang in messages.LANGUAGES:
            with messages.using(lang):
                assert len(FoundTraces(found.traces, found.notes).lines()) > 3
    shown = found._repr_mimebundle_()
    assert shown["text/html"] and shown["text/plain"]


def test_published_and_not_processed_is_told_by_the_broker_alone(
    rb: Session, db: psycopg.Connection, broker: str, servers: Servers
) -> None:
    events(db, 3, 1, **UNPROCESSED)
    three = ids(db)
    # An empty stream may be another system's: nothing is said to be lost.
    assert {one(rb.event(e)) for e in three} == {"published"}
    publish_ids(broker, three[:2])
    assert [one(rb.event(e)) for e in three] == ["stream", "stream", "lost"]


def test_a_token_of_nobody_is_not_a_user_without_events(rb: Session, db: psycopg.Connection) -> None:
    events(db, 1, 90)
    (unknown,), (nobody,) = rb.event(user="user-00000000").notes, rb.event(user="somebody").notes
    assert (unknown.key, nobody.key) == ("journey.not_resolved", "journey.nobody")


def test_a_moment_is_found_in_a_stream_with_gaps(rb: Session, broker: str) -> None:
    publish_ids(broker, [str(n) for n in range(60)])
    deleted = {1, 2, *range(20, 45), 60}
    for seq in deleted:
        applications.visit(broker, lambda js, seq=seq: js.delete_msg(applications.STREAM, seq))  # type: ignore[misc]
    stored = {m.seq: m.time for m in rb.context.source("jetstream").messages(applications.STREAM, range(1, 61))}
    assert stored.keys() == set(range(1, 61)) - deleted
    times = sorted(stored.values())
    asked = [times[0] - timedelta(1), *times, times[-1] + timedelta(1)]
    for moment, at in zip(asked, rb.context.source("jetstream").positions(applications.STREAM, asked), strict=True):
        assert {s for s, t in stored.items() if t < moment} == {s for s in stored if s < at}


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 300)), max_size=60))
def test_few_spans_cover_all_that_is_looked_for(wanted: list[tuple[int, int]]) -> None:
    zero = pd.Timestamp("2026-01-01", tz="UTC")
    spans = [(zero + pd.Timedelta(a, "s"), zero + pd.Timedelta(a + s, "s")) for a, s in wanted]
    merged = search.merge_spans(spans)
    assert len(merged) <= search.SPANS
    assert all(any(a <= since and until <= b for a, b in merged) for since, until in spans)
    assert all(b < a for (_, b), (a, _) in pairwise(merged))


def test_a_trace_and_what_is_beyond_retention(
    rb: Session, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    events(db, 2, 60)
    first, _ = ids(db)
    db.execute('UPDATE entitlement.outbox_events SET payload = \'{"trace_id": "t-1"}\' WHERE event_id = %s', (first,))
    found = rb.event("t-1")
    assert found.traces[0].event_id == first and "trace_link" not in found.record()["events"][0]
    monkeypatch.setenv("RUNBOOK_TRACE_LINK", "https://tempo.example/trace/{trace_id}?a&b")
    linked = quiet_session("3").event("t-1")
    url = "https://tempo.example/trace/t-1?a&b"
    assert f"  {url}" in linked.lines() and valid(linked.record(), "event")["events"][0]["trace_link"] == url
    assert f'href="{url.replace("&", "&amp;")}"' in linked._repr_mimebundle_()["text/html"]
    db.execute("DELETE FROM entitlement.outbox_events")
    assert one(rb.event(first)) == "sent"
    for nobodys in (str(uuid.uuid4()), "no-such-trace"):
        found = rb.event(nobodys)
        assert (found.status, found.traces, len(found.lines())) == (Status.UNKNOWN, [], 1)
    with pytest.raises(UsageError):
        rb.event()


def test_a_user_by_id_or_token_is_never_named(rb: Session, db: psycopg.Connection, servers: Servers) -> None:
    events(db, 1, 60)
    events(db, 1, 40, status="PENDING")
    db.execute("UPDATE notification.notifications SET user_id = 'alice of the hills'")
    db.execute("UPDATE entitlement.outbox_events SET aggregate_key = 'alice of the hills:sku'")
    token = str(rb.context.masker.person("alice of the hills"))
    assert [j.user for j in rb.event(user=token).traces] == [token] * 2
    found = rb.event(user="alice of the hills")
    assert [j.place for j in found.traces] == ["queue_due", "sent"]
    said = str(found._repr_mimebundle_()) + repr(found) + repr(rb.context.read_cost.queries)
    assert "alice" not in said and "hills" not in said
    nobody = runbook("event", "--user", "bob of the hills", env={**os.environ, **servers.env})
    assert nobody.returncode == 3 and "hills" not in nobody.stdout + nobody.stderr


def test_a_key_without_an_item_is_a_user_and_no_item(rb: Session, db: psycopg.Connection) -> None:
    events(db, 1, 60)
    (event,) = ids(db)
    db.execute("UPDATE entitlement.outbox_events SET aggregate_key = 'jane.doe', payload = '{}'")
    found = rb.event(event)
    assert (found.traces[0].sku, "jane" in str(found._repr_mimebundle_()) + repr(found)) == ("", False)


def test_a_dead_letter_alone_is_sent_again_by_no_command(rb: Session, db: psycopg.Connection) -> None:
    events(db, 1, 60, status="FAILED", tries=10, dead=5)
    (event,) = ids(db)
    for table in ("notifications", "processed_events"):
        db.execute(f"DELETE FROM notification.{table}")
    (trace,) = rb.event(event).traces
    assert (trace.place, trace.next.key) == ("failed", "journey.next.purged")


def test_the_command_says_it_in_one_document(rb: Session, db: psycopg.Connection, servers: Servers) -> None:
    events(db, 1, 60, status="FAILED", tries=10, dead=5)
    env = {**os.environ, **servers.env}
    done = runbook("event", *ids(db), "--lang", "ja", env=env)
    assert done.returncode == 2 and "runbook act redrive delivery --event" in done.stdout
    valid(json.loads(runbook("event", *ids(db), "--json", env=env).stdout), "event")


# On a sandbox -----------------------------------------------------------------------------------------------------

#: Some, and all of these with RUNBOOK_TEST_ALL: each place where events can stay, and each way that they get there.
#: What one has left, the next finds as well. Not dlq_mismatch, which writes rows that no service has seen.
FAULTS, N = ["relay_stopped", "subscriber_deaf", "receiver_outage"], 60
if os.environ.get("RUNBOOK_TEST_ALL"):
    FAULTS += ["worker_hung", "broker_down", "stream_missing", "stream_full", "receiver_refuses_some", "failing_user"]
    FAULTS += ["bad_payload", "unknown_event_type", "undecodable_message", "services_stopped", "clock_skew"]
    FAULTS += ["dedupe_broken"]

#: Publishing in vain takes a second each: the record stands still once it is over.
QUIET: dict[str, Any] = {"rate": 0, "hours": 0, "settings": {"NATS_CONNECTION_TIMEOUT": "1"}}

#: As the record has them.
COARSE = {"stream": "broker", "subscriber": "broker"} | {
    f"{queue}_{wait}": queue for queue in ("outbox", "queue") for wait in ("due", "retry", "held")
}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tagged]:
    forks.context()
    with sandboxes.running(tmp_path_factory.mktemp("tagged"), **QUIET) as sandbox:
        yield Tagged(sandbox)


def places(rb: Session, tagged: Tagged) -> dict[str, str]:
    """Where the journeys say that each tagged event is."""
    found: dict[str, str] = {}
    every = [*tagged.audits]
    for first in range(0, len(every), 200):
        journeys, _ = event_lookup.collect_traces(rb.context, every[first : first + 200])
        found |= {j.event_id: j.place for j in journeys}
    for event, audit in tagged.audits.items():
        if event not in found:
            found[event] = rb.event(audit).traces[0].place
    return {event: COARSE.get(place, place) for event, place in found.items()}


def agrees(tagged: Tagged, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journeys say what the record says, event by event; what moves meanwhile is looked at again."""
    for name, value in tagged.sandbox.state.env.items():
        monkeypatch.setenv(name, value)
    for _ in range(10):
        record = tagged.settled(30)
        rb = quiet_session("3", window_minutes=120)
        told = places(rb, tagged)
        # A broker that was heard for some only, on a busy machine, is asked again.
        unheard = "published" in told.values() and {"broker", "lost", "refused"} & {*told.values()}
        if tagged.record() == record and not unheard:
            break
    if "published" in told.values():  # the broker is away: what only it can tell is not seen, and not lost
        record = {e: "published" if place in ("broker", "lost", "refused") else place for e, place in record.items()}
    assert told == record


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_every_event_is_where_the_sandbox_has_it(tagged: Tagged, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when some are taken out of where they are: these are unaccounted for, and no others."""
    tagged.flow()
    try:
        faults.inject(tagged.sandbox, name)
        granted: list[str] = []
        with suppress(psycopg.Error):  # some faults let nobody write
            granted = tagged.grant(N)
        tagged.last_try(granted[: N // 3])
        agrees(tagged, monkeypatch)
        there = tagged.record()
        for event in granted[:: N // 5]:
            tagged.destroy(event, there[event])
        agrees(tagged, monkeypatch)
    finally:
        sandboxes.heal(tagged.sandbox, **QUIET)
