"""Section 4.4: what was given up, sorted by cause; judges on frames of every shape, and the steps on real servers."""

from __future__ import annotations

import json
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.js import JetStreamContext
from psycopg.types.json import Jsonb

from runbook_lib.book import catalog, messages
from runbook_lib.checks.check import NOT_READ, checks, failure_frame
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Unseen, replace
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.checks import errors, given_up
from runbook_lib.packs.entitlement.wire import EntitlementEvent
from runbook_lib.packs.logs.logs import fingerprint
from runbook_lib.sources.source import SourceError
from tests.kit.frames.dead_letters import (
    FRAMES,
    LACKING,
    PARSE,
    QUIET,
    SHAPE,
    TIMEOUT,
    advisories,
    burst,
    failed,
    letter,
    letters,
    message,
    recorded,
    sends,
)
from tests.kit.servers import Servers
from tests.kit.steps import (
    NOW,
    UNPROCESSED,
    ago,
    bound,
    charts_of,
    events,
    expect,
    insert,
    make_given,
    publish,
    run,
    statuses,
    through,
    traffic,
    weight,
    words,
)

CHECKS = checks()

STEPS = ("4.4.1", "4.4.2", "4.4.3")


def verdict(found: dict[str, Finding]) -> Any:
    return diagnosis.conclude(found.values(), catalog.load())


def top_mode(found: dict[str, Finding]) -> str | None:
    modes = verdict(found).failure_modes
    return modes[0].id if modes else None


# Error texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (
            "notification delivery failure injection matched userId=user-0001",
            "notification delivery failure injection matched userId=bob@example.org",
        ),
        ("receiver 10.0.0.7:8080 answered 503", "receiver 192.168.1.2:9090 answered 503"),
        ("send 5f0c1c1e-6a1f-4a38-9a59-0a3e5f0c1c1e failed", "send 00000000-6a1f-4a38-9a59-0a3e5f0c1c1e failed"),
        ("no answer within 2000 ms", "no answer within 137 ms"),
        ("Text '2025-01-31T03:00:10Z' could not be parsed", "Text '2026-11-01 13:00:10.123Z' could not be parsed"),
        ("GET https://a.example/x?id=1 failed", "GET https://b.example/y failed"),
        ("trace 0a3e5f0c1c1e4f", "trace ffee5f0c1c1e4f"),
        ("<object at 0x7f3a>", "<object at 0x99>"),
    ],
)
def test_what_differs_by_chance_is_folded(text: str, other: str) -> None:
    assert fingerprint(text) == fingerprint(other)


def test_a_status_code_is_the_meaning_of_a_text() -> None:
    assert fingerprint("receiver answered 503") != fingerprint("receiver answered 400")
    assert errors.text_kind("receiver answered 503") == "dependency"
    assert errors.text_kind("receiver answered 422") == "data"


@given(st.text())
@example("userId=user-0001 at 10.0.0.7:80, 12345678-1234-1234-1234-123456789abc")
@example("1.5.503")
def test_a_fingerprint_is_total_short_and_final(text: str) -> None:
    once = fingerprint(text)
    assert len(once) <= 200
    if len(once) < 200:
        assert fingerprint(once) == once


LONG = range(1, 50, 6)


def series(error: str, minutes: range, user: str | None = None) -> list[Any]:
    """One in each of these minutes before now, of another user each unless one is named."""
    return [letter(60 * i, error, user or f"user-{i}") for i in minutes]


@pytest.mark.parametrize(
    ("rows", "sent", "kind", "shape"),
    [
        (burst("receiver answered 503", 100), None, "dependency", "burst"),
        (burst("oops", 100), None, "dependency", "burst"),
        (burst("oops", 100), sends(600, 0), "unclear", "burst"),  # the others got through meanwhile
        (series("oops", LONG), sends(3600, 0), "data", "long"),
        (series("oops", LONG), None, "unclear", "long"),
        (series("oops", LONG, "alice"), None, "data", "long"),
        (series("timed out", LONG, "alice"), None, "data", "long"),
        (burst("timed out", 50, 5, "alice"), None, "dependency", "burst"),  # the only user of a quiet night
        (burst("receiver answered 400", 100), None, "data", "burst"),
        ([letter(5, "oops", "bob")], None, "unclear", "few"),
        # A long series of one kind of user, of which several came at once at its end.
        (series("oops", range(4, 50, 9)) + burst("oops", 20, 6), sends(3600, 0), "data", "long"),
    ],
)
def test_a_dependency_is_told_from_data(rows: list[Any], sent: pd.DataFrame | None, kind: str, shape: str) -> None:
    (cluster,) = errors.cluster_errors(letters(*rows), make_given(), sent)
    assert (cluster.kind, cluster.shape) == (kind, shape)


def test_a_sample_counts_for_all() -> None:
    frame = letters(*burst("oops", 100, 20))
    frame["total"] = 200
    assert errors.cluster_errors(frame, make_given())[0].n == 200


# Messages ----------------------------------------------------------------------------------------------------

EVENT = EntitlementEvent(
    str(uuid.uuid4()), wire.GRANTED, "2025-01-31T03:00:00Z", "alice@example.org", "sku", "purchase", "p-1", 0, "t"
)


def changed(**fields: Any) -> bytes:
    return wire.encode(EntitlementEvent(**{**EVENT.payload(), **fields}))


@pytest.mark.parametrize(
    ("body", "problem", "fields"),
    [
        (b"\xff\xff\xff", "undecodable", ""),
        (b"", "empty_field", ", ".join(f"{n} empty" for n in given_up.FIELDS if n not in ("version", "event_type"))),
        (changed(event_id="42"), "bad_event_id", "event_id malformed"),
        (changed(occurred_at="yesterday"), "bad_occurred_at", "occurred_at malformed"),
        (changed(occurred_at="2025-01-31"), "bad_occurred_at", "occurred_at malformed"),
        (changed(user_id=""), "empty_field", "user_id empty"),
        (changed(), "decodes", ""),
    ],
    ids=["noise", "empty", "event id", "no time", "a date", "no user", "well"],
)
def test_what_is_wrong_with_a_message(body: bytes, problem: str, fields: str) -> None:
    found = given_up.classify(message(body))
    assert (found["problem"], found["fields"]) == (problem, fields)
    assert "alice" not in str(found)


@given(st.binary(max_size=200), st.text(max_size=60))
def test_any_message_is_classified_without_its_content(body: bytes, headers: str) -> None:
    found = given_up.classify(message(body, headers))
    assert found["problem"] in ("undecodable", "empty_field", "bad_event_id", "bad_occurred_at", "decodes")


# Judges ------------------------------------------------------------------------------------------------------


def judge(step: str, **frames: pd.DataFrame) -> Finding:
    found = CHECKS[step].judge(FRAMES[step] | frames, make_given(window_minutes=60))
    words(found)
    charts_of(step, FRAMES[step] | frames, make_given(window_minutes=60))
    return found


@pytest.mark.parametrize("step", STEPS)
def test_quiet_is_ok(step: str) -> None:
    expect(judge(step), Status.OK, notes={"letters.older"})


@pytest.mark.parametrize(
    ("error", "shape", "kind"),
    [
        (PARSE, "payload:array", "parse_failure"),
        ("unknown event type: Sold", SHAPE, "unknown_type"),
        ("text", SHAPE.replace("occurred_at:string", "occurred_at:absent"), "missing_field"),
        ("unknown error", SHAPE.replace("user_id:string", "user_id:null"), "missing_field"),
        ("Invalid isoformat string", SHAPE.replace("occurred_at:string", "occurred_at:malformed"), "malformed_field"),
        ("something else", SHAPE, "unknown"),
        (TIMEOUT, SHAPE, None),
        ("Error Publishing: 503 No Responders Available For Request", SHAPE, None),
        ("Connection is Closed", SHAPE, None),
    ],
)
def test_a_failed_event_is_permanent_or_was_held_up(error: str, shape: str, kind: str | None) -> None:
    permanent = judge("4.4.1", outbox_failed=failed((30, error, shape)))
    transient = judge("4.4.2", outbox_failed=failed((30, error, shape)))
    if kind is None:
        assert permanent.status is Status.OK
        assert transient.value("dlq.outbox") == 1
        assert transient.status is Status.CRITICAL  # 30 s ago: not over
        return
    assert list(permanent.frames["kinds"]["kind"]) == [kind]
    assert permanent.status is Status.CRITICAL
    expect(transient, Status.OK, values={"dlq.outbox": 0})
    assert (weight(permanent, "FM-OB-02") > 0.5) == (kind != "unknown")
    assert (weight(permanent, "producer") >= 0.5) == (kind != "unknown")
    assert [p.name for p in permanent.proposals] == (["fix_producer"] if kind != "unknown" else [])


def test_what_cannot_pass_is_seen_before_it_is_given_up() -> None:
    tried = pd.DataFrame(
        [("PENDING", "unknown event type: Sold", 3, 2, ago(15), ago(9)), ("PENDING", TIMEOUT, 3, 2, ago(15), ago(9))],
        columns=["status", "last_error", "n", "attempts", "oldest", "newest"],
    )
    expect(judge("4.4.1", errors=tried), values={"dlq.permanent": 3}, weights={"producer": ">= 0.5"})


def test_terminated_messages_name_what_is_wrong_and_who_sent_them() -> None:
    classified = pd.DataFrame(
        [
            given_up.classify(message(b"\xff")) | {"stream_seq": 4},
            given_up.classify(message(changed(event_id="42"), "")) | {"stream_seq": 5},
            given_up.classify(message(changed())) | {"stream_seq": 6},
        ]
    )
    done = pd.DataFrame([(EVENT.event_id, NOW)], columns=["event_id", "processed_at"])
    frames = {
        "terminated": advisories((300, 4), (200, 5), (100, 6), (90, 7), (80, 2)),
        "messages": classified,
        "given_up": recorded((300, 4), (50, 99)).assign(total=2),
    }
    found = judge("4.4.1", **frames)
    kinds = found.frames["kinds"]
    assert set(kinds["kind"]) == {"undecodable", "bad_event_id", "decodes", "gone", "not_fetched", "unknown"}
    assert list(kinds[kinds["kind"] == "bad_event_id"]["source"]) == ["not the relay"]
    expect(found, values={"dlq.kind_unknown": 4}, weights={"FM-NATS-02": ">= 0.85", "producer": ">= 0.6"})
    assert "decodes" not in set(judge("4.4.1", **frames, processed=done).frames["kinds"]["kind"])


def test_advisories_that_were_not_read_are_told() -> None:
    def notes(seconds: float, *, capped: bool) -> set[str]:
        read = advisories((seconds, 4))
        read.attrs["capped"] = capped
        return {note.key for note in judge("4.4.1", terminated=read).notes}

    told = "letters.advisories_capped"
    assert told in notes(300, capped=True)
    assert told not in notes(300, capped=False) | notes(3600, capped=True)  # all of the window was read


def test_dead_letters_of_the_data_are_permanent_and_those_of_an_outage_are_not() -> None:
    data = [letter(60 * i + 5, "receiver answered 400", f"user-{i}", shape=LACKING) for i in range(5)]
    rows = letters(*data, *burst("receiver did not answer within 2 s", 900))
    permanent, transient = judge("4.4.1", letters=rows), judge("4.4.2", letters=rows)
    assert permanent.value("dlq.permanent") == 5
    assert set(permanent.frames["kinds"]["fields"]) == {"source_id empty"}
    expect(permanent, weights={"FM-NOTI-04": "> 0.5", "producer": "> 0.5"})
    expect(transient, None, "letters.failure.dependency_over", values={"dlq.delivery": 30})
    assert top_mode({"4.4.2": transient}) == "FM-NOTI-03"


def test_an_outage_that_goes_on_throttles_and_one_that_is_over_sends_again() -> None:
    now = judge("4.4.2", letters=letters(*burst("receiver answered 503", 40)))
    expect(now, Status.CRITICAL, weights={"receiver": ">= 0.5"}, notes={"letters.redrive_waits"})
    assert verdict({"4.4.2": now}).stuck_at == "receiver", "a status is its own word"
    no_host = judge("4.4.2", letters=letters(*burst("receiver unreachable: Name or service not known", 40)))
    assert verdict({"4.4.2": no_host}).stuck_at == "delivery_worker"
    refused = judge("4.4.2", letters=letters(*burst("receiver unreachable: Connection refused", 40)))
    assert verdict({"4.4.2": refused}).undecided == ("delivery_worker", "receiver")
    assert not [p for p in now.proposals if p.name.startswith("redrive")]
    over = judge("4.4.2", letters=letters(*burst("receiver answered 503", 400)))
    expect(over, Status.WARNING, weights={"receiver": "<= 0"})
    (again,) = over.proposals
    assert again.command == (
        "runbook act redrive delivery --target default --incident adhoc --limit 30 --since 2025-01-31T02:00:10+00:00 "
        "--approved-by NAME --reason TEXT"
    )


def test_an_outage_after_which_nothing_was_tried_is_not_called_over() -> None:
    given_up = letters(*burst("receiver answered 503", 900))
    sent = failing(0)["activity"]
    for last_sent, key, proposals in (
        (ago(1), "letters.failure.dependency_over", ["redrive_delivery"]),
        (ago(2000), "letters.failure.dependency_untried", []),
        (None, "letters.failure.dependency_untried", []),
    ):
        found = judge(
            "4.4.2", letters=given_up, activity=sent.assign(last_sent=last_sent), sent_per_minute=sends(3000, 2000)
        )
        expect(found, Status.WARNING, key, proposals=proposals)
        words(found)


def test_letters_of_an_outage_that_is_over_are_not_growing_and_may_be_sent_again() -> None:
    """Younger than the time that proves it by itself; what got through since proves it."""
    dead, left = letters(*burst("receiver answered 503", 89)), {"sent_steps": through(60, 70, tried=1)}
    per_bucket = row(store="delivery", ago=1, n=30, last=ago(60), exact=True)

    def judged(**frames: pd.DataFrame) -> tuple[Finding, Finding]:
        transient = judge("4.4.2", letters=dead, **frames)
        given_ = make_given(window_minutes=60, earlier=(replace(transient, step="4.4.2"),))
        return transient, CHECKS["4.4.3"].judge(FRAMES["4.4.3"] | {"per_bucket": per_bucket}, given_)

    over, trend = judged(**left)
    assert {f.status for f in (over, trend)} == {Status.WARNING}
    assert over.headline.key.endswith("_over") and trend.headline.key == "letters.trend_burst"
    expect(over, proposals=["redrive_delivery"], weights={"receiver": "<= 0"}, notes={"letters.redrive_waits"})
    assert over.ended == trend.ended and over.ended and over.ended.by.key == "outage.sent_again"
    words(trend)
    told = verdict({"4.4.2": over, "4.4.3": trend})
    assert (told.status, told.stuck_at, told.ended) == (Status.WARNING, None, over.ended)
    assert told.next_sections[0] == "6"
    nothing = judge("4.4.2", **left)
    none = CHECKS["4.4.3"].judge(FRAMES["4.4.3"], make_given(earlier=(replace(nothing, step="4.4.2"),)))
    assert [(f.status, f.ended) for f in (nothing, none)] == [(Status.OK, None)] * 2, "what was late left no letter"
    usual, _ = judged(sent_steps=through(60, 70, tried=1, single=(130, 160, 210)))
    assert usual.ended == over.ended, "a single one among many in time is no outage that paused"
    lately, _ = judged(sent_steps=through(60, 70, tried=1, single=(15,)))
    assert lately.ended is None, "however few, something fails still"
    retrying = pd.DataFrame([(4, 3, 3)], columns=["attempt_count", "n", "waiting"])
    for goes_on in ({}, left | {"attempts": retrying}, {"sent_steps": through(60, 70, 160, tried=1)}):
        lasts, grows = judged(**goes_on)
        assert (lasts.status, grows.status) == (Status.CRITICAL, Status.CRITICAL)
        assert verdict({"4.4.2": lasts, "4.4.3": grows}).ended is None
        assert lasts.proposals == ()


def failing(n: int, *, sending: bool = False) -> Frames:
    """Tries fail, since fifteen seconds; nothing has been given up."""
    frames = {name: frame.copy() for name, frame in QUIET.items()}
    frames["backlog"] = frames["backlog"].assign(waiting_retry=n)
    frames["attempts"] = pd.DataFrame(
        [(1, n // 2, n // 2), (2, n - n // 2, n - n // 2)], columns=["attempt_count", "n", "waiting"]
    )
    frames["tries"] = frames["tries"].assign(failed=n)
    frames["retrying"] = row(n=n, users=n, types=1, top_user_n=1, top_type_n=n)
    if not sending:
        frames["activity"] = frames["activity"].assign(last_sent=ago(15))
    return frames


def test_a_receiver_that_refuses_is_seen_before_the_first_dead_letter() -> None:
    found = judge("4.4.2", **failing(75))
    expect(found, Status.WARNING, "letters.failing_yet")
    assert top_mode({"4.4.2": found}) == "FM-NOTI-03"
    assert verdict({"4.4.2": found}).undecided == ("delivery_worker", "receiver"), "the worker alone says so"
    assert found.proposals[0].name == "throttle_delivery"
    assert found.next_sections == ("5.2",)


def test_a_receiver_that_gets_less_already_is_not_asked_for_less() -> None:
    slow = judge("4.4.2", **failing(40), program=row(batch=10, poll_s=5.0))
    assert "throttle_delivery" not in [p.name for p in slow.proposals]
    usual = judge("4.4.2", **failing(40), program=row(batch=50, poll_s=1.0))
    assert "throttle_delivery" in [p.name for p in usual.proposals]


def test_some_tries_that_fail_while_most_succeed_are_no_outage() -> None:
    found = judge("4.4.2", **failing(8, sending=True))
    assert top_mode({"4.4.2": found}) == "FM-NOTI-04"
    assert not (found.proposals or found.next_sections), "fewer sends would not help the few that are refused"
    assert not [note for note in found.notes if "throttle" in messages.text(note, "en")]


def test_publishing_that_fails_points_at_its_cause() -> None:
    tries = row(part="publish", failed=9, waiting=9, due_again=0)
    stale = QUIET["outbox"].assign(last_published=ago(20))

    def waiting(error: str) -> pd.DataFrame:
        return row(status="PENDING", last_error=error, n=9, attempts=2, oldest=ago(15), newest=ago(9))

    closed = judge("4.4.2", publish_tries=tries, outbox=stale, errors=waiting("Connection is Closed"))
    expect(closed, sections=("4.1",), weights={"relay": "> 0.5"})
    gone = judge("4.4.2", publish_tries=tries, outbox=stale, errors=waiting("Error Publishing: 503 No Responders"))
    assert weight(gone, "jetstream") > 0.5
    assert (
        judge("4.4.2", publish_tries=tries, errors=waiting(TIMEOUT)).status is Status.OK
    )  # a publish succeeded just now


def test_deliveries_that_ran_out_are_lost_until_they_are_processed() -> None:
    fetched = pd.DataFrame([given_up.classify(message(changed())) | {"stream_seq": 4}])
    found = judge("4.4.2", exhausted=advisories((60, 4)), messages=fetched)
    expect(found, proposals=["logs"], values={"dlq.broker": 1}, weights={"subscriber": "> 0.5"})
    earlier = judge("4.4.2", exhausted=advisories((300, 4)), messages=fetched)
    expect(earlier, proposals=["redrive_broker"], values={"dlq.broker": 1}, weights={"subscriber": "< 0.5"})
    done = pd.DataFrame([(EVENT.event_id, NOW)], columns=["event_id", "processed_at"])
    assert judge("4.4.2", exhausted=advisories((300, 4)), messages=fetched, processed=done).status is Status.OK


def buckets(*rows: tuple[str, int, int]) -> pd.DataFrame:
    """Store, minutes ago, how many."""
    return pd.DataFrame(
        [(store, at, n, ago(at * 60 + 5), True) for store, at, n in rows],
        columns=["store", "ago", "n", "last", "exact"],
    )


@pytest.mark.parametrize(
    ("rows", "shape", "status"),
    [
        ([], "none", Status.OK),
        ([("delivery", 0, 1)], "few", Status.WARNING),
        ([("delivery", 20, 1)], "stopped", Status.OK),
        ([("delivery", 21, 60), ("delivery", 20, 80)], "burst", Status.OK),
        ([("delivery", 0, 80), ("delivery", 1, 60)], "step", Status.CRITICAL),
        ([("delivery", 3, 80), ("delivery", 2, 60), ("outbox", 0, 1)], "burst_on", Status.CRITICAL),
        ([("outbox", i, 2) for i in range(60)], "steady", Status.CRITICAL),
        ([("outbox", i, 2) for i in range(30)], "step", Status.CRITICAL),
        ([("outbox", i, 1) for i in range(10, 60, 5)], "stopped", Status.OK),
    ],
)
def test_a_burst_that_is_over_is_told_from_growth(rows: list[Any], shape: str, status: Status) -> None:
    expect(judge("4.4.3", per_bucket=buckets(*rows)), status, values={"dlq.trend": shape})


def test_a_burst_in_the_last_bucket_of_a_long_window_may_be_over() -> None:
    """A bucket of three days is 36 minutes; growth is measured over five."""
    rows = buckets(("delivery", 0, 60)).assign(last=ago(1200))
    found = CHECKS["4.4.3"].judge(FRAMES["4.4.3"] | {"per_bucket": rows}, make_given(window_minutes=4320))
    expect(found, Status.OK, values={"dlq.growth": 0.0, "dlq.trend": "burst"})
    lately = CHECKS["4.4.3"].judge(
        FRAMES["4.4.3"] | {"per_bucket": rows.assign(last=ago(120))}, make_given(window_minutes=4320)
    )
    expect(lately, Status.CRITICAL, says="1.7/min in the last 36 min")


def test_what_was_not_read_is_not_denied() -> None:
    lost = SourceError("postgres", Reason.TIMEOUT, "a lock on outbox_events", "lock_not_available")
    frames = {name: frame for name, frame in FRAMES["4.4.1"].items() if name not in ("outbox_failed", "errors")}
    found = CHECKS["4.4.1"].finding(frames | {NOT_READ: failure_frame({"outbox": lost})}, make_given(window_minutes=60))
    expect(found, Status.UNKNOWN, says="a lock on outbox_events")


def test_an_advisory_without_a_record_is_a_loss() -> None:
    found = judge("4.4.3", exhausted=advisories((60, 4), (50, 5), (3, 6)), recorded=recorded((50, 5)))
    assert list(found.frames["unrecorded"]["stream_seq"]) == [4]  # 6 is too young to tell
    assert found.status is Status.CRITICAL
    assert top_mode({"4.4.3": found}) == "FM-NATS-03"
    assert verdict({"4.4.3": found}).stuck_at == "subscriber"
    assert found.next_sections == ("5.3",)
    # A record from before the stream was lost, whose sequences start again, is not the record of this one.
    stale = judge("4.4.3", exhausted=advisories((60, 4)), recorded=recorded((7200, 4)))
    assert stale.value("advisories.unrecorded") == 1


def test_an_advisory_and_its_row_are_one_message() -> None:
    expect(
        judge(
            "4.4.3", terminated=advisories((60, 4)), recorded=recorded((60, 4)), per_bucket=buckets(("broker", 1, 1))
        ),
        values={"dlq.new": 1, "advisories.unrecorded": 0},
    )


# On real servers ---------------------------------------------------------------------------------------------


def advise(url: str, subject: str, *seqs: int) -> None:
    """The advisory streams as the broker itself fills them; it alone may publish to those subjects."""
    stream = next(s for s, x in applications.CONSUMERS.values() if x == subject)

    async def scene(js: JetStreamContext) -> None:
        config = (await js.stream_info(stream)).config
        await js.update_stream(config.evolve(subjects=[subject, f"test.{stream}"]))
        for seq in seqs:
            await js.publish(f"test.{stream}", json.dumps({"stream_seq": seq}).encode())

    applications.visit(url, scene)


def give_up(db: psycopg.Connection, error: str, seconds: float, payload: Any, event_type: str = wire.GRANTED) -> None:
    """An event that the relay has given up; its payload is a whole one, changed by `payload`, or another one."""
    event_id = str(uuid.uuid4())
    if isinstance(payload, dict):
        whole = {**EVENT.payload(), "event_id": event_id} | payload
        payload = {name: value for name, value in whole.items() if value is not None}
    insert(
        db, "entitlement.outbox_events", event_id=event_id, event_type=event_type, aggregate_key="alice:sku",
        payload=Jsonb(payload), status="FAILED", attempt_count=10, last_error=error,
        created_at=datetime.now(UTC) - timedelta(seconds=seconds),
    )  # fmt: skip


def dead(db: psycopg.Connection, error: str, seconds: float, user: str, **payload: Any) -> str:
    """A notification that was given up, and its dead letter."""
    event_id = str(uuid.uuid4())
    given_up = datetime.now(UTC) - timedelta(seconds=seconds)
    queued = given_up - timedelta(seconds=250)
    body = Jsonb({**EVENT.payload(), "event_id": event_id, "user_id": user} | payload)
    both: dict[str, Any] = {"notification_id": uuid.uuid4(), "event_id": event_id, "payload_json": body}
    own = {"user_id": user, "type": wire.GRANTED, "occurred_at": queued, "status": "FAILED", "attempt_count": 10}
    insert(db, "notification.processed_events", event_id=event_id, processed_at=queued)
    insert(db, "notification.notifications", **both, **own, created_at=queued)
    insert(db, "notification.notification_dlq", dlq_id=uuid.uuid4(), **both, error_message=error, created_at=given_up)
    return event_id


def all_ok(found: dict[str, Finding]) -> bool:
    return set(statuses(found).values()) == {Status.OK}


def test_healthy_and_idle_is_ok(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with bound(broker):
        assert all_ok(run(servers, *STEPS))
        traffic(db, 120)
        found = run(servers, *STEPS)
    assert all_ok(found), {s: words(f) for s, f in found.items()}
    assert verdict(found).stuck_at is None
    assert not verdict(found).failure_modes


def test_old_dead_letters_are_not_this_incident(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    dead(db, "receiver answered 503", 7200, "alice")
    db.execute("INSERT INTO notification.notification_nats_dlq VALUES (7, now() - interval '2 hours')")
    with bound(broker):
        found = run(servers, *STEPS)
    assert all_ok(found), {s: words(f) for s, f in found.items()}
    assert all("letters.older" in {n.key for n in f.notes} for f in found.values())


def test_events_of_the_wrong_shape(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 60)
    give_up(db, PARSE, 40, [])
    give_up(db, PARSE, 30, {"version": "one"})
    give_up(db, "text", 300, {"occurred_at": None})
    give_up(db, "unknown event type: Sold", 300, {}, "Sold")
    with bound(broker):
        found = run(servers, *STEPS)
    kinds = found["4.4.1"].frames["kinds"]
    assert {(r.kind, r.fields) for r in kinds.itertuples()} == {
        ("parse_failure", "payload array"),
        ("parse_failure", "version string"),
        ("missing_field", "occurred_at absent"),
        ("unknown_type", ""),
    }
    assert found["4.4.1"].status is Status.CRITICAL
    assert found["4.4.2"].status is Status.OK
    assert found["4.4.3"].value("dlq.outbox") == 4
    assert (verdict(found).stuck_at, top_mode(found)) == ("producer", "FM-OB-02")
    assert "alice" not in str([f.to_dict() for f in found["4.4.1"].frames.values()])


def test_an_outage_of_the_receiver_that_is_over(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 120)
    for i in range(40):
        dead(db, f"receiver answered 503 for userId=user-{i}", 600 - i, f"user-{i}")
    dead(db, "receiver answered 400", 500, "bob", source="")
    with bound(broker):
        found = run(servers, *STEPS)
    (cluster,) = found["4.4.2"].frames["clusters"].query("kind == 'dependency'").itertuples()
    assert (cluster.error, cluster.n, cluster.users) == ("receiver answered 503 for userId=<user>", 40, 40)
    expect(found["4.4.2"], None, "letters.failure.dependency_over", proposals=["redrive_delivery"])
    assert "--target here --incident test --limit 40" in found["4.4.2"].proposals[0].command
    assert found["4.4.1"].value("dlq.permanent") == 1
    assert found["4.4.3"].value("dlq.trend") == "burst"
    assert verdict(found).stuck_at is None
    kept = str([f.to_dict() for finding in found.values() for f in finding.frames.values()])
    assert "bob" not in kept


@pytest.mark.slow
def test_deliveries_that_ran_out_without_a_record(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 60)
    ids = [str(uuid.uuid4()) for _ in range(3)]
    seqs = publish(broker, *(changed(event_id=i) for i in ids))
    advise(broker, applications.ADVISORY_SUBJECT, *seqs)
    db.execute("INSERT INTO notification.processed_events VALUES (%s, now())", (ids[0],))
    time.sleep(15)  # so long, an advisory may still be on its way into the table
    with bound(broker):
        found = run(servers, *STEPS)
    assert found["4.4.2"].value("dlq.broker") == 2
    assert found["4.4.3"].value("advisories.unrecorded") == 3
    assert (verdict(found).stuck_at, top_mode(found)) == ("subscriber", "FM-NATS-03")


def test_lost_without_lag_and_letters_apart(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 60)
    events(db, 2, 100, **UNPROCESSED)
    event_id = dead(db, "receiver answered 503", 300, "alice")
    db.execute(
        "UPDATE notification.notifications SET status = 'SENT', sent_at = now() WHERE event_id = %s", (event_id,)
    )
    with bound(broker):
        found = run(servers, "4.4.3")["4.4.3"]
    assert found.value("published_and_lost") == 2
    expect(found, Status.CRITICAL, values={"dead_letters_apart": 1}, weights={"FM-NOTI-05": "> 0.8"})


def test_without_the_broker_the_tables_still_answer(servers: Servers, db: psycopg.Connection) -> None:
    give_up(db, PARSE, 40, [])
    away = run(servers, "4.4.1", "4.4.3", without=("nats_url",))
    expect(away["4.4.1"], Status.CRITICAL, notes={"letters.masked"})
    assert Unseen("jetstream", Reason.NOT_CONFIGURED) in away["4.4.1"].unseen
    db.execute("TRUNCATE entitlement.outbox_events")
    expect(run(servers, "4.4.1", nats_url="nats://127.0.0.1:1")["4.4.1"], Status.UNKNOWN, reason=Reason.UNREACHABLE)
    assert run(servers, "4.4.1", without=("nats_url",))["4.4.1"].status is Status.OK


def test_more_than_fit_are_sampled_over_the_whole_window(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    for i in range(1200):
        dead(db, "receiver answered 503", 3000 - 2 * i, f"user-{i}")
    found = run(servers, "4.4.2")["4.4.2"]
    assert len(found.frames["letters"]) <= 500
    assert found.value("dlq.delivery") == pytest.approx(1200)
    assert found.frames["letters"]["created_at"].min() < pd.Timestamp.now("UTC") - pd.Timedelta(seconds=2900)
    assert "letters.sampled" in {n.key for n in found.notes}
