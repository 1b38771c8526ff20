"""Sections 4.1 and 4.3: judges on frames of every shape, and whole steps on real servers."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import nats
import pandas as pd
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from runbook_lib.book import catalog, messages
from runbook_lib.checks.check import NOT_READ, checks, failure_frame
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Unseen, Value, read_cost, say
from runbook_lib.model.frames import row
from runbook_lib.notebook import session
from runbook_lib.packs.entitlement.actions.restart import check_servers
from runbook_lib.packs.entitlement.checks import backlog, database, leases, past, publish, subscriber
from runbook_lib.packs.entitlement.checks.delivery import read_delivery
from runbook_lib.packs.entitlement.evidence import services
from runbook_lib.packs.entitlement.evidence.sessions import Sessions, read_time_use
from runbook_lib.packs.entitlement.facts import EntitlementFacts
from runbook_lib.packs.postmortem.incident import Span
from runbook_lib.sources.source import SourceError
from tests.kit import steps
from tests.kit.effort import examples
from tests.kit.frames.delivery import (
    TIMEOUT,
    closed,
    consumer,
    events,
    held,
    holders,
    later,
    look,
    outbox,
    pool,
    runs,
    sessions,
    silent,
    tried,
)
from tests.kit.servers import Servers
from tests.kit.steps import (
    NOW,
    ago,
    expect,
    failures,
    got_through,
    make_given,
    run,
    through,
    traffic,
    verdict_of,
    weight,
    words,
)
from tests.kit.waiting import until
from tests.kit.web import reply, web

CHECKS = checks()

NO_RESPONDERS = "Error Publishing: 503 No Responders Available For Request"
REFUSED = "Authentication Failure"

STEPS = ("4.1.1", "4.1.2", "4.1.3", "4.1.4", "4.3.1", "4.3.2", "4.3.3", "4.3.4", "4.3.5")


# Judges ------------------------------------------------------------------------------------------------------


def test_retries_that_climb_are_failed_sends_and_no_hung_worker() -> None:
    frames = look(due=3, oldest_due_s=0.8, waiting_retry=70)
    frames["attempts"] = tried((1, 30, 30), (2, 20, 20), (3, 20, 20))
    frames["activity"] = frames["activity"].assign(last_sent=ago(20), last_try=ago(0.5))
    found = backlog.judge(frames, make_given())
    expect(found, sections=("4.4", "5.2"), weights={"receiver": "> 0.4", "FM-NOTI-03": "> 0.4"})
    assert verdict_of(found).undecided == ("delivery_worker", "receiver"), "the worker alone says so"
    assert "hold_delivery" not in [p.name for p in found.proposals]  # it has tries left: nothing is lost yet
    words(found)
    frames["attempts"] = frames["attempts"].assign(attempt_count=[1, 2, 9])
    assert backlog.judge(frames, make_given()).proposals[0].name == "hold_delivery"
    frames["activity"] = frames["activity"].assign(last_sent=ago(1))
    assert "hold_delivery" not in [p.name for p in backlog.judge(frames, make_given()).proposals]


@pytest.mark.parametrize(
    ("settings_", "proposed"),
    [
        ({"batch": 50, "poll_s": 1.0}, True),
        ({"batch": None, "poll_s": None}, True),  # a value that the application cannot parse
        ({"batch": 25, "poll_s": 2.0}, False),
        ({"batch": 5, "poll_s": 1.0}, False),
    ],
)
def test_throttling_never_raises_the_rate(settings_: dict[str, Any], proposed: bool) -> None:
    frames = look(due=3, oldest_due_s=0.8, waiting_retry=70)
    frames["attempts"] = tried((1, 30, 30), (2, 20, 20), (3, 20, 20))
    frames["activity"] = frames["activity"].assign(last_sent=ago(20), last_try=ago(0.5))
    found = backlog.judge(frames | {"program": row(ready=1, **settings_)}, make_given())
    assert ("throttle_delivery" in [p.name for p in found.proposals]) is proposed


def test_a_receiver_that_refuses_some_while_most_pass_is_not_asked_for_less() -> None:
    frames = look(due=3, oldest_due_s=0.8, waiting_retry=22)
    frames["attempts"] = tried((2, 4, 4), (5, 18, 18))
    frames["activity"] = frames["activity"].assign(last_sent=ago(0.6), sent_1m=280)
    tries = {"part": "delivery", "failed": 6, "failed_now": 0, "waiting": 22, "due_again": 0}
    found = backlog.judge(frames | {"tries": pd.DataFrame([tries])}, make_given())
    assert (found.headline.key, weight(found, "receiver") > 0.5) == ("backlog.refused_some", True)
    assert weight(found, "FM-NOTI-04") > weight(found, "FM-NOTI-03")
    expect(found, proposals=["logs"])
    outage = frames["activity"].assign(sent_1m=4)  # all but a few fail
    found = backlog.judge(frames | {"tries": pd.DataFrame([tries]), "activity": outage}, make_given())
    assert found.headline.key != "backlog.refused_some"


@pytest.mark.parametrize(
    ("last_sent", "after", "again"),
    [(25, 0.2, True), (25, 25, False), (None, 0.2, True), (None, None, False), (2, 0.2, False)],
)
def test_a_receiver_that_accepts_again_is_not_the_worker_s_fault(
    last_sent: float | None, after: float | None, again: bool
) -> None:
    frames = look(due=3, oldest_due_s=25, waiting_retry=70)
    frames["attempts"] = tried((1, 30, 30), (2, 20, 20), (3, 20, 20))
    frames["activity"] = frames["activity"].assign(last_sent=last_sent and ago(last_sent), last_try=ago(0.5))
    frames["activity_after"] = frames["activity"].assign(last_sent=after and ago(after))
    frames["receiver"] = row(result="answers", status=204, ms=3)
    found = backlog.judge(frames, make_given())
    assert (found.headline.key == "backlog.accepts_again") is again
    assert (weight(found, "FM-NOTI-10") > 0.5) is not again
    assert bool(found.proposals) is not again


def test_an_answer_of_the_receiver_that_could_not_be_compared_accuses_nobody() -> None:
    frames = look(due=3, oldest_due_s=25, waiting_retry=70) | {"receiver": row(result="answers", status=204, ms=3)}
    frames["attempts"] = tried((1, 30, 30), (2, 20, 20), (3, 20, 20))
    lost = SourceError("postgres", Reason.TIMEOUT, "canceling statement")
    found = CHECKS["4.1.1"].finding(frames | {NOT_READ: failure_frame({"activity_after": lost})}, make_given())
    assert found.status is not Status.UNKNOWN and weight(found, "FM-NOTI-10") <= 0.5
    assert weight(CHECKS["4.1.1"].finding(frames, make_given()), "FM-NOTI-10") > 0.5


def test_a_slow_batch_that_moves_is_no_dead_worker() -> None:
    frames = silent(look(due=60, oldest_due_s=20, leased=40), 25)
    frames["attempts"] = tried((0, 90, 0), (1, 8, 0))
    frames["held"] = held(("a", "w", 25, 5), ("b", "w", 25, 5))
    moved = later(frames, held=held(("b", "w", 25, 5)))
    assert read_delivery(moved).moved is True
    expect(backlog.judge(moved, make_given()), weights={"FM-NOTI-06": "<= 0", "receiver": "> 0.4"})
    expect(backlog.judge(later(frames), make_given()), weights={"delivery_worker": "> 0 < 0.6"})


@pytest.mark.parametrize(
    ("samples", "sees", "slow"),
    [
        ([(1, 1, 0)] * 4 + [(1, 0, 1), (0, 0, 0)], True, True),
        ([(1, 1, 0)] * 4 + [(1, 0, 1), (0, 0, 0)], False, False),
        ([(1, 1, 0)] * 6, True, False),  # one service may itself be slow
        ([(1, 1, 0), (1, 0, 1)] + [(0, 0, 0)] * 8, True, False),
        ([(1, 1, 0), (1, 0, 1)], True, False),
    ],
)
def test_transactions_of_both_services_that_wait_for_their_clients_are_a_slow_way(
    samples: list[tuple[int, int, int]], sees: bool, slow: bool
) -> None:
    columns = ["opened", "of_entitlement", "of_notification"]
    watched = {"worker_samples": pd.DataFrame(samples, columns=columns).assign(sees_others=sees)}
    found = backlog.judge(look() | runs("delivery") | watched, make_given())
    assert (found.headline.key == "program.slow_way") is slow
    assert (weight(found, "database") > 0.5) is slow


SPENDS = {"outside": "slow_outside", "working": "slow_statements", "locked": "waits_for_lock"}


def late_worker(samples: list[str], *, in_batch: bool = True, sees: bool = True) -> Frames:
    """A worker that is late and finished a row between two samples; `samples` says what it did meanwhile."""
    frames = look(due=60, oldest_due_s=20, leased=2)
    frames["held"] = held(("a", "w", 9, 21), ("b", "w", 9, 21))
    sampled = [(sees, s == "working", s == "locked", "IO: WALSync", "UPDATE notifications") for s in samples]
    columns = ["sees_others", "working", "locked", "waits_for", "statement"]
    frames["worker_samples"] = pd.DataFrame(sampled, columns=columns)
    return later(frames, held=held(("b", "w", 9 if in_batch else 0, 21)))


@settings(max_examples=examples(200))
@given(st.lists(st.sampled_from([*SPENDS]), max_size=12), st.booleans(), st.booleans())
def test_what_a_late_worker_spends_its_time_on_is_what_most_samples_show(
    samples: list[str], in_batch: bool, sees: bool
) -> None:
    found = backlog.judge(late_worker(samples, in_batch=in_batch, sees=sees), make_given())
    most = next((kind for kind in SPENDS if len(samples) >= 4 and samples.count(kind) >= 0.7 * len(samples)), "")
    # Between two batches it pauses: it is outside the database, and waits for nobody.
    known = sees and (most != "outside" or in_batch)
    assert found.headline.key == f"backlog.{SPENDS[most] if most and known else 'behind'}"
    place = "receiver" if most == "outside" else "database"
    assert (weight(found, place) > 0.5) == bool(most and known)
    words(found)


@pytest.mark.parametrize("kind", SPENDS)
def test_a_worker_that_is_in_time_or_gone_is_not_said_to_be_slow(kind: str) -> None:
    frames = late_worker([kind] * 10)
    in_time = frames | {"backlog": frames["backlog"].assign(oldest_due_s=1.0)}
    assert backlog.judge(in_time, make_given()).headline.key == "backlog.flowing"
    gone = silent(later(silent(frames, 60)), 60)
    assert weight(backlog.judge(gone, make_given()), "receiver") <= 0
    assert weight(leases.judge_workers(frames | {"holders": holders()}, make_given()), "receiver") == (
        0.6 if kind == "outside" else -0.6
    )


@pytest.mark.parametrize(("kind", "stopped"), [("working", False), ("locked", False), ("outside", True)])
def test_a_worker_that_is_inside_a_statement_has_not_stopped(kind: str, stopped: bool) -> None:
    """Nothing was claimed or sent for long, and each sample shows its claim: the database has not answered it yet."""
    for oldest in (8.0, 15.2):
        frames = silent(look(due=75, oldest_due_s=oldest), oldest + 0.1)
        frames |= {"worker_samples": late_worker([kind] * 10)["worker_samples"]}
        found = backlog.judge(later(frames), make_given())
        assert (weight(found, "FM-NOTI-06") > 0.5) is stopped
        assert ("restart_notification" in {p.name for p in found.proposals}) is stopped, words(found)
    assert (weight(found, "database") > 0.7) is not stopped


def test_a_worker_that_works_a_backlog_off_names_no_slow_receiver() -> None:
    frames = late_worker(["outside"] * 10)
    frames |= {name: frames[name].assign(sent_1m=400) for name in ("first.activity", "activity")}
    assert weight(backlog.judge(frames, make_given()), "receiver") <= 0


def test_a_frozen_process_is_told_and_restarted_while_nothing_waits() -> None:
    worker = backlog.judge(look() | pool("notification", 90), make_given())
    assert weight(worker, "delivery_worker") >= 0.85
    unbound = subscriber.judge(consumer(bound=False, num_pending=9) | pool("notification", 90), make_given())
    assert weight(unbound, "subscriber") > 0.8
    relay = publish.judge(outbox() | pool("entitlement", 90), make_given())
    assert weight(relay, "relay") >= 0.85
    for found, restart in ((worker, "notification"), (unbound, "notification"), (relay, "entitlement")):
        expect(found, Status.CRITICAL, proposals=[f"restart_{restart}"])


def test_a_loop_that_runs_and_takes_nothing_of_what_is_due_is_not_restarted() -> None:
    worker = backlog.judge(later(silent(look(due=75, oldest_due_s=15.2), 15.3)) | pool("", 0), make_given())
    relay = publish.judge(outbox(due=75, oldest_due_s=15.0, last_published=ago(15.5)) | pool("", 0), make_given())
    verdict = verdict_of(worker, relay)
    assert (verdict.stuck_at, verdict.failure_modes[0].id) == ("database", "FM-DB-01")
    assert verdict.proposals == ()
    for found in (worker, relay):
        words(found)


@pytest.mark.parametrize(("claimed_ago", "two"), [(3, True), (90, False)])
def test_a_second_worker_is_no_reason_to_restart_the_first(claimed_ago: float, two: bool) -> None:
    """Claims of a pod that was there before the newest one tell of no second worker."""
    frames = look(due=75, oldest_due_s=15.2) | {
        "held": held(("a", "one", 5, 25), ("b", "two", claimed_ago, 25)),
        "program": pd.DataFrame([{"ready": 1, "wanted": 1, "started": ago(60)}]),
    }
    found = backlog.judge(later(frames), make_given())
    assert ("leases.two_workers" in {s.observation for s in found.signals}) is two
    if two:
        assert weight(found, "FM-NOTI-02") > 0.5 and "one, two" in messages.text(found.headline, "en")
    words(found)


def scraped() -> Frames:
    """What a Prometheus has of the delivery loop: it ran between two moments a minute apart, the last one scraped."""
    name, worker = "tasks_scheduled_execution_seconds_count", "com.example.NotificationDeliveryWorker"
    rows = [
        ("notification", at, "prometheus", name, worker, "none", "SUCCESS", "", n)
        for at, n in ((ago(60), 500.0), (NOW, 560.0))
    ]
    return {"service_samples": pd.DataFrame(rows, columns=services.SAMPLE_COLUMNS)}


def test_a_worker_that_may_hang_since_its_last_send_is_not_surely_well() -> None:
    """Two seconds after it hangs nothing is late: only a cycle that was seen tells it from one that works."""
    frames = silent(look(due=10, oldest_due_s=2.1), 2.4)
    found = backlog.judge(later(frames), make_given())
    expect(found, Status.OK, values={"delivery.look_again": 5.0}, notes={"program.unproven"})
    verdict = verdict_of(found)
    assert (verdict.status, verdict.confidence, verdict.look_again_s) == (Status.OK, "medium", 5.0)
    leased = frames | look(due=10, oldest_due_s=2.1, leased=40)
    leased |= {"activity": frames["activity"].assign(last_claim=ago(2.4)), "held": held(("a", "w", 2.4, 27.6))}
    # A batch in hand may last: only half a lease of silence tells.
    assert backlog.judge(later(leased), make_given()).value("delivery.look_again") == 13.0
    moved = later(frames, activity=frames["activity"].assign(last_sent=ago(0.2)))
    for seen in (frames | runs("delivery"), moved):
        well = backlog.judge(seen, make_given())
        assert (well.status, well.value("delivery.look_again")) == (Status.OK, None)
        assert verdict_of(well).confidence == "high"
    for other in (runs("relay"), scraped()):
        assert backlog.judge(later(frames) | other, make_given()).value("delivery.look_again") == 5.0


def test_an_idle_worker_of_which_nothing_was_seen_is_not_surely_well() -> None:
    expect(backlog.judge(silent(look(), 7200), make_given()), Status.OK, values={"delivery.look_again": 60.0})
    assert backlog.judge(silent(look(), 7200) | runs("delivery"), make_given()).value("delivery.look_again") is None


def test_what_is_wrong_by_itself_is_not_said_to_be_too_early_to_tell() -> None:
    for frames in (
        later(silent(look(due=75, oldest_due_s=15.2), 15.3)),
        look() | pool("notification", 90),
        later(silent(look(due=75, oldest_due_s=15.2), 15.3)) | pool("", 0),
    ):
        assert backlog.judge(frames, make_given()).value("delivery.look_again") is None


def test_a_relay_that_may_hang_since_its_last_publish_is_not_surely_well() -> None:
    frames = outbox(due=8, oldest_due_s=1.9, last_published=ago(2.4))
    found = publish.judge(frames, make_given())
    assert (found.status, found.value("relay.look_again")) == (Status.OK, 5.0)
    assert verdict_of(found).confidence == "medium"
    words(found)
    leased = outbox(due=8, oldest_due_s=1.9, leased=40, last_claim=ago(2.4), last_published=ago(2.4))
    assert publish.judge(leased, make_given()).value("relay.look_again") == 8.0
    again = frames | {"first.backlog": frames["backlog"], "backlog": frames["backlog"].assign(last_published=ago(0.3))}
    for seen in (again, frames | runs("relay")):
        well = publish.judge(seen, make_given())
        assert (well.status, well.value("relay.look_again")) == (Status.OK, None)
        assert verdict_of(well).confidence == "high"
    same = frames | {"first.backlog": frames["backlog"]} | runs("delivery")
    assert publish.judge(same, make_given()).value("relay.look_again") == 5.0
    late = outbox(due=75, oldest_due_s=15.0, last_published=ago(15.5))
    assert publish.judge(late, make_given()).value("relay.look_again") is None


def test_a_subscriber_that_holds_messages_and_was_not_seen_to_handle_one_is_not_surely_well() -> None:
    frames = consumer(num_ack_pending=10, ack_floor_seq=40) | {"oldest": pd.DataFrame([{"seq": 41, "age_s": 2.0}])}
    found = subscriber.judge(frames, make_given())
    assert (found.status, found.value("subscriber.look_again")) == (Status.OK, 8.0)
    assert verdict_of(found).confidence == "medium"
    words(found)

    def later_seen(**changes: Any) -> Finding:
        account = {"num_pending": 0, "num_ack_pending": 10, "ack_floor_seq": 40} | changes
        return subscriber.judge(frames | {"consumer_now": pd.DataFrame([account])}, make_given())

    for unmoved in (later_seen(), later_seen(ack_floor_seq=None)):
        assert unmoved.value("subscriber.look_again") == 8.0
    for well in (
        later_seen(ack_floor_seq=43),
        later_seen(num_ack_pending=0),
        subscriber.judge(consumer(), make_given()),
    ):
        assert (well.status, well.value("subscriber.look_again")) == (Status.OK, None)
    behind = frames | {"oldest": pd.DataFrame([{"seq": 41, "age_s": 12.0}])}
    assert subscriber.judge(behind, make_given()).value("subscriber.look_again") is None


def test_a_worker_that_holds_rows_and_was_not_seen_to_move_is_not_surely_alive() -> None:
    first = silent(look(due=10, oldest_due_s=2.1), 2.4) | {"holders": holders(("w", 2, 0, 0.0))}
    expect(leases.judge_workers(later(first), make_given()), Status.OK, values={"delivery.look_again": 5.0})
    moved = later(first, activity=first["activity"].assign(last_sent=ago(0.2)))
    assert leases.judge_workers(moved, make_given()).value("delivery.look_again") is None
    idle = later(silent(look(), 2.4)) | {"holders": pd.DataFrame()}
    assert leases.judge_workers(idle, make_given()).value("delivery.look_again") is None


def test_nobody_bound_is_critical_without_any_lag() -> None:
    found = subscriber.judge(consumer(bound=False), make_given())
    expect(found, Status.CRITICAL, "subscriber.deaf_idle")
    alone = subscriber.judge(consumer(bound=False, num_pending=1), make_given())
    assert weight(alone, "subscriber") == 0.85  # whether its process is there was not seen
    assert weight(found, "FM-NATS-01") > weight(found, "FM-NATS-05")
    expect(found, proposals=["restart_notification"])


@pytest.mark.parametrize(
    ("changes", "listens", "processed_ago", "observation", "proposed"),
    [
        ({"bound": False, "num_pending": 60}, True, 1, "subscriber.deaf", ["restart_notification"]),
        ({"bound": False, "num_pending": 60}, False, 1, "subscriber.switched_off", ["check_nats_credentials"]),
        ({"paused": True, "num_pending": 60}, True, 1, "subscriber.paused", []),
        ({"full": True}, True, 1, "subscriber.full", []),
        ({"num_ack_pending": 60}, True, 40, "subscriber.holds", ["restart_notification"]),
        ({"num_ack_pending": 60}, True, 1, "subscriber.behind", []),
        ({"num_pending": 60}, True, 40, "subscriber.behind", []),
    ],
)
def test_a_restart_is_proposed_for_a_subscriber_only_where_it_helps(
    changes: dict[str, Any], listens: bool, processed_ago: float, observation: str, proposed: list[str]
) -> None:
    frames = consumer(**changes) | {"own_settings": pd.DataFrame({"listens": [listens]})} | pool("notification", 0.4)
    frames["oldest"] = pd.DataFrame([{"seq": 1, "age_s": 40.0}])
    frames["activity"] = frames["activity"].assign(last_processed=ago(processed_ago))
    found = subscriber.judge(frames, make_given())
    assert {s.observation for s in found.signals} == {observation}
    assert max(weight(found, "FM-NATS-01"), weight(found, "FM-NATS-04")) > 0.5
    assert [p.name for p in found.proposals] == proposed
    ways_out = {"subscriber.paused": "subscriber.resume", "subscriber.full": "subscriber.raise_limit"}
    told = {n.key for n in found.notes} & {*ways_out.values()}
    assert told == {way for of, way in ways_out.items() if of == observation}
    words(found)


def test_a_replay_that_only_skips_what_is_registered_is_no_hang() -> None:
    frames = consumer(num_pending=90_000, num_ack_pending=600, ack_floor_seq=5_000)
    frames |= {"oldest": row(seq=1, age_s=9_000.0), "consumer_now": frames["consumer"].assign(ack_floor_seq=6_200)}
    frames["activity"] = frames["activity"].assign(last_processed=ago(40), processed_1m=0)
    expect(subscriber.judge(frames, make_given()), key="subscriber.behind", proposals=[])
    frames["consumer_now"] = frames["consumer"]
    expect(subscriber.judge(frames, make_given()), key="subscriber.holds", proposals=["restart_notification"])


def test_events_that_are_lost_do_not_wait_for_a_client() -> None:
    frames = consumer(bound=False) | {"unprocessed": events(480)}
    frames["broker"] = pd.DataFrame([{"event_id": "0", "place": "given_up"}])
    expect(subscriber.judge(frames, make_given()), Status.CRITICAL, key="subscriber.deaf_idle")


#: What each observation of the subscriber is worded as; what a restart may follow.
SAID_AS = {
    "subscriber.locked_out": {"refused"}, "subscriber.kept_out": {"refused"}, "subscriber.no_quorum": {"cluster"},
    "subscriber.quorum_unclear": {"cluster"}, "subscriber.paused": {"paused"}, "subscriber.full": {"full"},
    "subscriber.switched_off": {"switched_off"}, "subscriber.deaf": {"deaf"}, "subscriber.seems_deaf": {"deaf"},
    "subscriber.deaf_idle": {"deaf_idle"}, "subscriber.holds": {"holds"}, "subscriber.stands_still": {"unseen"},
    "subscriber.behind": {"behind", "lost", "stalled"}, "subscriber.bound": {"bound", "lost"},
}  # fmt: skip
HELPED = {"subscriber.deaf", "subscriber.seems_deaf", "subscriber.deaf_idle", "subscriber.holds"}
FACTS = st.fixed_dictionaries(
    {
        "bound": st.booleans(), "paused": st.booleans(), "full": st.booleans(), "num_pending": st.sampled_from([0, 60]),
        "num_ack_pending": st.sampled_from([0, 60]), "max_ack_pending": st.sampled_from([60, 1000]),
    }
)  # fmt: skip


@settings(max_examples=examples(300))
@given(facts=FACTS, seen=st.booleans(), loop=st.booleans(), listens=st.booleans(), quorum_=st.sampled_from(["", "lost",
       "unclear"]), late=st.booleans(), silent=st.booleans(), missed=st.booleans())  # fmt: skip
def test_headline_evidence_and_proposals_of_the_subscriber_name_one_case(
    facts: dict[str, Any], seen: bool, loop: bool, listens: bool, quorum_: str, late: bool, silent: bool, missed: bool
) -> None:
    """Whatever comes together: no remedy of another case than the one that is told, and none that is missing."""
    frames = consumer(**facts) | {"own_settings": pd.DataFrame({"listens": [listens]})} | pool("notification", 0.4)
    frames |= {"unprocessed": events(61)} if missed else {}
    frames |= {"closed": closed((REFUSED, 14))} if loop else {}
    frames["oldest"] = pd.DataFrame([{"seq": 1, "age_s": 40.0 if late else 1.0}])
    frames["activity"] = frames["activity"].assign(
        last_processed=ago(40 if silent else 1), processed_1m=0 if silent else 9
    )
    if quorum_:
        offline = [True, True] if quorum_ == "lost" else [False, False]
        frames["replicas"] = replicas(offline, heard_s=None if quorum_ == "lost" else 7.0)
    if not seen:
        del frames["consumer"]
    found = subscriber.judge(frames, make_given())
    case = found.headline.key.removeprefix("subscriber.")
    observed = {s.observation for s in found.signals} & {*SAID_AS}
    assert len(observed) <= 1 and all(case in SAID_AS[name] for name in observed), (case, observed)
    assert observed or case == "unseen"
    proposed = {p.name for p in found.proposals}
    assert ("check_nats_credentials" in proposed) == (case in ("refused", "switched_off"))
    assert ("restart_notification" in proposed) == bool(observed & HELPED), (case, proposed)
    told = {n.key for n in found.notes}
    assert ("subscriber.resume" in told) == (seen and facts["paused"])
    words(found)


def replicas(offline: list[bool], heard_s: float | None) -> pd.DataFrame:
    """A group of three whose leader is there; the others as they are said to be."""
    others = [("EVENTS", f"n{i + 2}", False, not off, off, heard_s) for i, off in enumerate(offline)]
    return pd.DataFrame(
        [("EVENTS", "n1", True, True, False, None), *others],
        columns=["group", "node", "leader", "current", "offline", "active_s"],
    )


@pytest.mark.parametrize(
    ("kept_s", "first_ago", "key", "mode"),
    [
        (1.0, 1.0, "expired", "FM-NATS-10"),
        (None, 50.0, "expired", "FM-NATS-10"),
        (3600.0, 50.0, "lost", "FM-NATS-03"),
        (None, 500.0, "lost", "FM-NATS-03"),
        (None, None, "lost", "FM-NATS-03"),
    ],
)
def test_what_the_stream_has_deleted_is_told_from_what_was_given_up(
    kept_s: float | None, first_ago: float | None, key: str, mode: str
) -> None:
    """By a limit of now or of then; a limit longer than all deliveries is not the cause."""
    limit = {} if kept_s is None else {"limit": f"max_age {kept_s:g} s", "kept_s": kept_s}
    limited = consumer(**limit, first_message=None if first_ago is None else ago(first_ago))
    lost = {"unprocessed": events(61, 90), "broker": pd.DataFrame({"event_id": ["0", "1"], "place": "gone"})}
    found = subscriber.judge(limited | lost, make_given())
    expect(found, Status.CRITICAL, f"subscriber.{key}")
    unrecorded = Finding(
        "5.3.2", Status.CRITICAL, say("-"), signals=make_given().evidence("consistency.lost_unrecorded")
    )
    verdict = verdict_of(found, unrecorded)
    assert (verdict.stuck_at, verdict.failure_modes[0].id, verdict.between) == ("subscriber", mode, ())
    assert ("subscriber.keep_longer" in [n.key for n in found.notes]) == (kept_s == 1.0)
    words(found)
    expect(subscriber.judge(limited, make_given()), None, "subscriber.expires" if kept_s == 1.0 else "subscriber.bound")


def without_consumer(reason: Reason, code: str, processed_ago: float, **changes: Any) -> Frames:
    """The broker could not tell of its consumer; the tables could."""
    frames = {name: frame for name, frame in consumer(**changes).items() if name != "consumer"}
    frames["activity"] = frames["activity"].assign(
        now=NOW, last_processed=ago(processed_ago), processed_1m=300 if processed_ago < 60 else 0
    )
    frames["not_read"] = failures(("consumer", "jetstream", reason.value, "gone", code))
    return frames


@pytest.mark.parametrize("code", ["stream_not_found", "consumer_not_found", "no_jetstream"])
def test_a_broker_that_says_what_it_lost_is_the_answer(code: str) -> None:
    found = CHECKS["4.1.2"].finding(without_consumer(Reason.ERROR, code, processed_ago=60), make_given())
    expect(found, Status.CRITICAL, weights={"jetstream": ">= 0.9"})


def test_only_the_consumer_lost_leaves_publishing_alone() -> None:
    found = CHECKS["4.1.2"].finding(
        without_consumer(Reason.ERROR, "consumer_not_found", processed_ago=60), make_given()
    )
    assert [p.name for p in found.proposals] == ["restart_notification"]
    assert "publishing fails" not in words(found)


@pytest.mark.parametrize("code", ["stream_not_found", "consumer_not_found", "no_jetstream"])
def test_while_events_flow_another_broker_has_answered(code: str) -> None:
    found = CHECKS["4.1.2"].finding(without_consumer(Reason.ERROR, code, processed_ago=1), make_given())
    expect(found, Status.UNKNOWN, proposals=[], sections=("2",), observations=set())


@pytest.mark.parametrize("reason", [Reason.UNREACHABLE, Reason.TIMEOUT, Reason.DENIED, Reason.NOT_CONFIGURED])
@pytest.mark.parametrize("processed_ago", [1, 600])
def test_a_broker_that_was_not_seen_is_neither_broken_nor_restarted(reason: Reason, processed_ago: float) -> None:
    frames = without_consumer(reason, "no_connection", processed_ago)
    found = CHECKS["4.1.2"].finding(frames, make_given())
    assert (found.status, found.reason) == (Status.UNKNOWN, reason)
    assert not any(s.weight > 0 for s in found.signals)
    assert (found.proposals, found.next_sections) == ((), ("2",))
    assert found.unseen == (Unseen("jetstream", reason),)
    words(found)


@pytest.mark.parametrize(("client", "status"), [("-", Status.UNKNOWN), ("notification", Status.CRITICAL)])
def test_logins_without_a_name_may_be_those_of_the_runbook_that_did_not_get_in(client: str, status: Status) -> None:
    frames = without_consumer(Reason.TIMEOUT, "no_connection", 600)
    logins = [(client, "127.0.0.1", "Authentication Timeout", 4, 4, 1.0)]
    columns = ["client", "ip", "reason", "n", "last_minute", "last_s_ago"]
    found = CHECKS["4.1.2"].finding(frames | {"closed": pd.DataFrame(logins, columns=columns)}, make_given())
    assert found.status is status


def test_what_waits_at_a_broker_that_was_not_seen_is_not_called_lost() -> None:
    """A closed port, while everything flows: 300 events wait for longer than a minute."""
    frames = without_consumer(Reason.UNREACHABLE, "no_connection", processed_ago=1)
    found = CHECKS["4.1.2"].finding(frames | {"unprocessed": events(*range(61, 361))}, make_given())
    expect(found, Status.UNKNOWN, values={"outbox.unprocessed": None, "outbox.published_not_processed": 300})
    assert weight(found, "subscriber") == weight(found, "FM-NATS-03") == 0
    assert verdict_of(found).stuck_at is None
    words(found)


@pytest.mark.parametrize(("reason", "status"), [(Reason.NOT_CONFIGURED, Status.OK), (Reason.TIMEOUT, Status.UNKNOWN)])
def test_without_a_database_the_broker_answers_alone(reason: Reason, status: Status) -> None:
    """A target that has none is judged by its broker; one whose database is silent is not."""
    silent = failure_frame({"events": SourceError("postgres", reason, "-")})
    seen = {name: frame for name, frame in consumer().items() if name not in ("unprocessed", "activity", "nats_dlq")}
    found = subscriber.judge(seen | {NOT_READ: silent}, make_given())
    assert found.status is status, words(found)
    assert ("outbox.unprocessed" in {v.name for v in found.values}) is (status is Status.UNKNOWN)


@pytest.mark.parametrize("column", ["num_pending", "num_ack_pending"])
def test_what_a_consumer_does_not_say_of_itself_is_no_zero(column: str) -> None:
    frames = consumer()
    frames["consumer"] = frames["consumer"].assign(**{column: None})
    found = subscriber.judge(frames | {"unprocessed": events(61, 90)}, make_given())
    expect(found, Status.UNKNOWN, values={"outbox.unprocessed": None}, weights={"FM-NATS-03": "== 0"})


def test_what_stands_still_behind_a_broker_that_was_not_seen_is_seen() -> None:
    frames = without_consumer(Reason.UNREACHABLE, "no_connection", processed_ago=600)
    found = CHECKS["4.1.2"].finding(frames | {"unprocessed": events(61, 90)}, make_given())
    expect(found, proposals=["logs"], weights={"subscriber": "> 0.5"})


def test_one_lost_event_before_others_that_were_processed_is_no_standstill() -> None:
    frames = without_consumer(Reason.UNREACHABLE, "no_connection", processed_ago=90)
    quiet = CHECKS["4.1.2"].finding(frames | {"unprocessed": events(600)}, make_given())
    assert "subscriber.stands_still" not in {s.observation for s in quiet.signals} and quiet.proposals == ()
    still = CHECKS["4.1.2"].finding(frames | {"unprocessed": events(600, 61)}, make_given())
    assert "subscriber.stands_still" in {s.observation for s in still.signals}


@pytest.mark.parametrize("tried", [0, 5])
def test_of_a_broker_out_of_reach_only_failing_publishes_make_a_broken_one(tried: int) -> None:
    errors = [("PENDING", TIMEOUT, tried)] if tried else []
    frames = outbox(errors, due=40, oldest_due_s=16, tried=tried, last_published=ago(17))
    del frames["broker"]
    frames["not_read"] = failures(("broker", *NO_BROKER))
    found = CHECKS["4.1.3"].finding(frames, make_given())
    verdict = verdict_of(found)
    if tried:
        assert verdict.stuck_at == "jetstream"
        assert [p.name for p in found.proposals] == ["restart_nats", "logs"]
    else:
        assert (verdict.stuck_at, verdict.confidence) == (None, "low")
        assert {"relay", "jetstream"} <= set(verdict.undecided)
        assert found.proposals == ()
    words(found)


@pytest.mark.parametrize(
    ("before", "later"),
    [
        ({"leased": 2, "last_claim": ago(20)}, {"leased": 0, "last_claim": pd.NaT}),
        ({"expired": 40, "last_claim": ago(33)}, {"expired": 39, "last_claim": ago(33)}),
    ],
)
def test_a_relay_that_finishes_rows_of_its_batch_has_not_stopped(before: dict[str, Any], later: dict[str, Any]) -> None:
    late: dict[str, Any] = {"due": 75, "oldest_due_s": 40.0, "last_published": ago(40)}
    frames = outbox(**late | before)
    frames |= {"first.backlog": frames["backlog"], "backlog": frames["backlog"].assign(**later)}
    expect(publish.judge(frames, make_given()), key="publish.late")


@pytest.mark.parametrize(
    ("created", "mode"),
    [
        (None, "FM-NATS-11"),
        (3600.0, "FM-NATS-11"),
        (11.0, "FM-NATS-11"),  # the newest event was created 10 s ago, and failed after that
        (9.0, "FM-NATS-04"),  # it was made again since
    ],
)
def test_a_stream_that_is_there_is_not_missing(created: float | None, mode: str) -> None:
    frames = outbox([("PENDING", NO_RESPONDERS, 5)], due=40, oldest_due_s=12, tried=5, last_published=ago(13))
    frames["broker"] = frames["broker"].assign(
        subjects="entitlement.renamed", created=None if created is None else ago(created)
    )
    found = publish.judge(frames, make_given())
    assert weight(found, mode) > 0.8
    assert ("the stream exists (it takes entitlement.renamed)" in words(found)) is (mode == "FM-NATS-11")
    unread = {name: frame for name, frame in frames.items() if name != "broker"}
    assert weight(publish.judge(unread, make_given()), "FM-NATS-04") > 0.8


def test_a_number_in_the_name_of_an_event_proposes_no_restart() -> None:
    error = "unknown event type: ITEM_503_GRANTED"
    frames = outbox([("PENDING", error, 5)], due=40, oldest_due_s=12, tried=5, last_published=ago(13))
    found = publish.judge(frames, make_given())
    assert weight(found, "producer") > 0 >= weight(found, "FM-NATS-04")
    assert [p.name for p in found.proposals if "restart" in p.name] == []
    words(found)


def test_late_events_of_the_last_minutes_count_and_those_of_the_window_do_not() -> None:
    frames = outbox()
    frames["delay"] = frames["delay"].assign(p95=40.0)
    assert publish.judge(frames, make_given()).status is Status.OK
    frames["delay_now"] = frames["delay"]
    expect(publish.judge(frames, make_given()), Status.CRITICAL, "publish.slow")


def test_events_that_were_late_before_the_newest_are_what_an_outage_has_left() -> None:
    """Those of the last minute were drained after the broker came back; those of now are published in time."""
    frames = outbox() | got_through(published=(41, 43))
    frames["delay_now"] = frames["delay"].assign(p95=34.0)
    found = publish.judge(frames | runs("relay"), make_given())
    assert (found.status, found.headline.key) == (Status.WARNING, "publish.over")
    assert found.ended and (found.ended.since, found.ended.by.key) == (ago(41), "outage.published")
    words(found)
    verdict = verdict_of(found)
    assert (verdict.status, verdict.stuck_at, verdict.ended) == (Status.WARNING, None, found.ended)
    assert verdict.next_sections[0] == "6"
    assert verdict.confidence == "high"


@pytest.mark.parametrize(
    ("steps", "again"),
    [
        (got_through(published=(12, 15)), 18),  # just now
        (got_through(published=(41, 43, 120)), 49),  # it has paused for as long before
    ],
)
def test_a_delay_that_has_passed_may_still_be_a_pause(steps: Frames, again: float) -> None:
    frames = outbox() | steps
    frames["delay_now"] = frames["delay"].assign(p95=34.0)
    found = publish.judge(frames | runs("relay"), make_given())
    assert (found.status, found.headline.key, found.ended) == (Status.WARNING, "publish.passed", None)
    expect(found, values={"outbox.look_again": pytest.approx(again, abs=1)})
    verdict = verdict_of(found)
    assert (verdict.status, verdict.stuck_at, verdict.ended) == (Status.WARNING, None, None)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"tried": 3, "waiting_retry": 3}, got_through(published=(41,))),  # some of it fails still, or waits for a try
        ({"due": 40, "oldest_due_s": 8.0}, got_through(published=(41,))),
        ({"failed": 1}, got_through(published=(41,))),
        ({"last_published": ago(9)}, {"published_steps": through(41, of="published", flowing=False)}),
        ({}, {}),
    ],
)
def test_a_relay_that_only_pauses_or_fails_again_is_not_over(changes: dict[str, Any], steps: Frames) -> None:
    frames = outbox(**changes) | steps
    frames["delay_now"] = frames["delay"].assign(p95=34.0)
    found = publish.judge(frames | runs("relay"), make_given())
    assert (found.status, found.ended) == (Status.CRITICAL, None)
    words(found)


def test_an_outage_that_is_over_is_not_said_to_be_while_the_relay_may_hang() -> None:
    frames = outbox(last_published=ago(2.4)) | got_through(published=(41, 43))
    frames["delay_now"] = frames["delay"].assign(p95=34.0)
    found = publish.judge(frames, make_given())
    assert (found.ended is not None, verdict_of(found).ended) == (True, None)


def test_both_clients_cut_off_is_the_broker_s_door() -> None:
    deaf = subscriber.judge(consumer(bound=False), make_given())
    earlier = (Finding("4.1.2", deaf.status, deaf.headline, values=deaf.values),)
    frames = outbox([("PENDING", TIMEOUT, 5)], due=40, oldest_due_s=12, tried=5, last_published=ago(13))
    expect(publish.judge(frames, make_given(earlier=earlier)), weights={"jetstream": "> 0.8", "FM-NATS-05": "> 0.8"})


@pytest.mark.parametrize("observation", ["delivery.down", "subscriber.switched_off"])
def test_a_notification_that_somebody_stopped_is_not_cut_off(observation: str) -> None:
    evidence = make_given().evidence(observation)
    earlier = (Finding("4.1.2", Status.CRITICAL, say("-"), values=(Value("consumer.bound", "no"),), signals=evidence),)
    frames = outbox([("PENDING", TIMEOUT, 5)], due=40, oldest_due_s=12, tried=5, last_published=ago(13))
    found = publish.judge(frames, make_given(earlier=earlier))
    assert "publish.fails_timeout" in {s.observation for s in found.signals}


@pytest.mark.parametrize(
    ("arrived", "place"), [((5, 5), "publish.fails_no_receipt"), ((5, 2), "publish.fails_timeout")]
)
def test_what_arrives_although_its_publish_failed_lacks_only_the_receipt(arrived: tuple[int, int], place: str) -> None:
    frames = outbox([("PENDING", TIMEOUT, 5)], due=40, oldest_due_s=12, tried=5, last_published=ago(13))
    frames["arrived"] = pd.DataFrame({"n": [arrived[0]], "arrived": [arrived[1]]})
    found = publish.judge(frames, make_given())
    assert place in {s.observation for s in found.signals}
    words(found)


@pytest.mark.parametrize(("started", "case"), [(25, "publish.waiting"), (100, "publish.failing")])
def test_what_an_earlier_process_tried_does_not_accuse_the_present_one(started: float, case: str) -> None:
    frames = outbox([("PENDING", "Connection is Closed", 5)], waiting_retry=5, tried=5, last_published=ago(400))
    frames["errors"] = frames["errors"].assign(newest=ago(120), tried_after=ago(40))
    frames["delay_now"] = frames["delay"].assign(n=0)
    began = ago(started).timestamp()
    columns = [("entitlement", NOW, "service", "process_start_time_seconds", "", "", "", "", began)]
    frames["service_samples"] = pd.DataFrame(columns, columns=services.SAMPLE_COLUMNS)
    frames["service_asked"] = pd.DataFrame([vars(services.ServiceRequest("entitlement", NOW, "service"))])
    found = publish.judge(frames, make_given())
    assert found.decision and found.decision.case == case, words(found)
    assert ("restart_entitlement" in [p.name for p in found.proposals]) == (case == "publish.failing")


def test_a_database_that_refuses_is_not_said_to_be_well_because_it_is_free() -> None:
    blamed = Finding("4.1.1", Status.CRITICAL, say("-"), signals=make_given().evidence("delivery.blocked"))
    found = database.judge(sessions(), make_given(earlier=(blamed,)))
    expect(found, weights={"database": "== 0", "FM-DB-01": "== 0"})
    assert [p.params["name"] for p in found.proposals] == ["notification", "entitlement"]
    full = database.judge(sessions(used=34), make_given(earlier=(blamed,)))
    assert full.proposals[0].name == "end_sessions"


@pytest.mark.parametrize(
    ("pools", "role", "case"),
    [
        ((10, 10), {}, "database.free"),
        ((9, 9), {}, "database.free"),  # one of each reconnects
        ((10, 2), {}, "database.shut_out"),
        (None, {}, "database.shut_out"),
        ((10, 10), {"can_login": False}, "database.shut_out"),
    ],
)
def test_a_limit_that_the_pools_fill_shuts_nobody_out(
    pools: tuple[int, int] | None, role: dict[str, Any], case: str
) -> None:
    application = row(**{"role": "app", "there": True, "connection_limit": 20, "sessions": 20} | role)
    frames = sessions(application=application)
    if pools:
        services_ = zip(("entitlement", "notification"), pools, strict=True)
        frames["service_sessions"] = pd.DataFrame([vars(Sessions(s, n, sees_others=True)) for s, n in services_])
    assert database.judge(frames, make_given()).headline.key == case


def test_a_role_at_its_limit_is_looked_at_session_by_session(servers: Servers, db: psycopg.Connection) -> None:
    role = "ALTER ROLE miniserversystem CONNECTION LIMIT "
    with ExitStack() as open_ones, steps.undone(db, f"{role} 20", f"{role} -1"):
        for schema in ("entitlement", "notification"):
            for _ in range(10):
                name = "PostgreSQL JDBC Driver"
                own = open_ones.enter_context(psycopg.connect(servers.app_url, application_name=name, autocommit=True))
                own.execute(f"SET search_path TO '{schema}'".encode())
        assert run(servers, "4.1.4")["4.1.4"].headline.key == "database.free"


def test_a_request_that_waits_for_another_s_row_is_not_cancelled() -> None:
    """A user's second request waits for the first one, and that for a session that is idle in its transaction."""
    blocked = pd.DataFrame(
        [
            {"pid": 7, "wait_s": 20.0, "blocked_by": "5", "object": "transactionid", "application": DRIVER},
            {"pid": 8, "wait_s": 18.0, "blocked_by": "7", "object": "entitlement.entitlements", "application": DRIVER},
        ]
    )
    blockers = row(pid=5, application="psql", state="idle in transaction", transaction_s=60.0)
    found = database.judge(sessions(blocked=blocked, blockers=blockers), make_given())
    assert [p.name for p in found.proposals] == ["end_blocker"] and "(5)" in found.proposals[0].command


def test_a_request_is_not_cancelled_for_one_that_waits_for_its_rows() -> None:
    """The table is held; a user's second request waits for the row of the first one, which waits for the table."""
    blocked = pd.DataFrame(
        [
            {"pid": 7, "wait_s": 20.0, "blocked_by": "5", "object": "entitlement.outbox_events", "application": DRIVER},
            {"pid": 8, "wait_s": 18.0, "blocked_by": "7", "object": "transactionid", "application": DRIVER},
        ]
    )
    blockers = row(pid=5, application="psql", state="idle in transaction", transaction_s=60.0)
    found = database.judge(sessions(blocked=blocked, blockers=blockers), make_given())
    assert [p.name for p in found.proposals] == ["end_blocker"] and "(5)" in found.proposals[0].command


def test_a_wait_of_a_moment_does_not_hide_who_holds_due_rows() -> None:
    moment = pd.DataFrame([{"pid": 7, "wait_s": 0.02, "blocked_by": "8", "application": DRIVER}])
    held = row(pid=5, application="psql", state="idle in transaction", transaction_s=600.0, n=200)
    frames = sessions(blocked=moment, blockers=row(pid=8, application=DRIVER, state="active", transaction_s=0.03))
    found = database.judge(frames | {"row_locks": held}, make_given())
    expect(found, key="database.rows_held", proposals=["end_blocker"])
    assert "(5)" in found.proposals[0].command


def test_connections_are_counted_against_the_usable_ones() -> None:
    found = database.judge(sessions(used=34), make_given())
    assert found.status is Status.CRITICAL  # 34 of 35, not of 40
    assert weight(found, "FM-DB-01") >= 0.9
    assert found.proposals[0].name == "end_sessions"
    words(found)


@pytest.mark.parametrize(("waits_for", "key"), [("IPC: SyncRep", "waits_for_standby"), ("IO: WALSync", "own_work")])
def test_commits_that_wait_for_a_standby_are_named_with_the_setting(waits_for: str, key: str) -> None:
    holder = {"pid": 5, "application": "PostgreSQL JDBC Driver", "state": "active", "transaction_s": 16.0, "n": 17}
    waiting = pd.DataFrame([{"pid": 5, "transaction_s": 16.0, "waits_for": waits_for}])
    frames = sessions(row_locks=pd.DataFrame([holder]), long_transactions=waiting)
    frames["connections"] = frames["connections"].assign(standbys="nobody")
    found = database.judge(frames, make_given())
    expect(found, Status.CRITICAL, f"database.{key}", weights={"database": ">= 0.9"})
    verdict = verdict_of(found)
    assert verdict.failure_modes[0].id == ("FM-DB-06" if key == "waits_for_standby" else "FM-DB-01")
    assert ("synchronous_standby_names (nobody)" in words(found)) == (key == "waits_for_standby")
    assert "end_blocker" not in [p.name for p in verdict.proposals]


def test_a_blocker_is_named_with_its_pid() -> None:
    blocked = pd.DataFrame([{"pid": 7, "wait_s": 6.0, "blocked_by": "5", "object": "notification.notifications"}])
    blockers = pd.DataFrame(
        [{"pid": 5, "application": "schema-migration", "state": "idle in transaction", "blocks": 1,
          "transaction_s": 16.0}]
    )  # fmt: skip
    found = database.judge(sessions(blocked=blocked, blockers=blockers), make_given())
    expect(found, Status.WARNING, weights={"database": "> 0.7"})
    assert "pg_terminate_backend(5)" in found.proposals[0].command
    running = database.judge(sessions(blocked=blocked, blockers=blockers.assign(state="active")), make_given())
    assert "pg_cancel_backend(5)" in running.proposals[0].command
    words(found)


def test_of_a_lock_queue_the_milder_way_out_comes_first() -> None:
    """A long reader is in the way of an ALTER, and the ALTER alone in that of everybody else."""
    blocked = pd.DataFrame(
        [
            {"pid": 7, "wait_s": 20.0, "blocked_by": "5", "mode": "AccessExclusiveLock", "application": "flyway"},
            {"pid": 8, "wait_s": 18.0, "blocked_by": "7", "mode": "RowExclusiveLock", "application": "x"},
        ]
    )
    blockers = pd.DataFrame([{"pid": 5, "application": "report", "state": "active", "transaction_s": 60.0}])
    found = database.judge(sessions(blocked=blocked, blockers=blockers), make_given())
    assert [p.name for p in found.proposals] == ["cancel_waiting", "end_blocker"]
    assert "pg_cancel_backend(7)" in found.proposals[0].command
    words(found)


def test_leases_outlived_by_a_batch_that_goes_on_are_not() -> None:
    first = silent(look(expired=2, oldest_expired_s=20.0), 50)
    first["held"] = held(("a", "w", 50, -20), ("b", "w", 50, -20))
    frames = later(first, held=held(("b", "w", 50, -20))) | {"holders": holders(("w", 2, 2, 20.0))}
    found = leases.judge_leases(frames, make_given())
    expect(found, None, "leases.outlasted", weights={"delivery_worker": "== 0"})
    alive = leases.judge_workers(frames, make_given())
    assert alive.status is Status.OK
    earlier = (Finding("4.3.2", alive.status, alive.headline, values=alive.values),)
    short = leases.judge_length({"holders": frames["holders"]}, make_given(earlier=earlier))
    assert short.status is Status.CRITICAL  # 30 s against the 50 s of the batch that goes on
    words(found)
    words(short)


def test_rows_of_a_pod_that_was_replaced_make_no_long_batch() -> None:
    """They wait for the end of their lease while the new pod works."""
    worker = Finding("4.3.2", Status.OK, say("-"), values=(Value("delivery.progress", "yes"),))
    left, new = holders(("old", 7, 0, 0.0), ("new", 50, 0, 0.0)), [28.0, 0.4]
    found = leases.judge_length({"holders": left.assign(since_claim_s=new)}, make_given(earlier=(worker,)))
    expect(found, Status.OK, "leases.fits", proposals=[], values={"batch.longest_estimated": 0.4})


def test_a_worker_whose_clock_is_ahead_makes_no_batch_of_less_than_nothing() -> None:
    worker = Finding("4.3.2", Status.OK, say("-"), values=(Value("delivery.progress", "yes"),))
    held_ = holders(("w", 7, 0, 0.0)).assign(since_claim_s=-0.05)
    found = leases.judge_length({"holders": held_, "batches": pd.DataFrame()}, make_given(earlier=(worker,)))
    expect(found, Status.OK, "leases.no_batches", proposals=[])


def test_a_lease_that_is_too_short_asks_for_less_only_where_that_is_less() -> None:
    batches = pd.DataFrame({"started": [ago(3)], "exact_s": [26.0], "cycle_s": [None], "next_waited_s": [None]})
    frames = {"holders": holders(("w", 1, 0, 0.0)), "batches": batches}
    expect(leases.judge_length(frames, make_given()), Status.CRITICAL, proposals=["throttle_delivery"])
    slow = frames | {"program": row(batch=10, poll_s=5.0)}
    expect(leases.judge_length(slow, make_given()), Status.CRITICAL, proposals=[])


#: The broker did not answer the question of that part.
NO_BROKER = ("jetstream", "unreachable", "connection refused", "no_connection")
DRIVER = "PostgreSQL JDBC Driver"


# Real servers -----------------------------------------------------------------------------------------------


def notify(db: psycopg.Connection, n: int, status: str, age: float, **values: Any) -> None:
    """Notifications alone."""
    steps.events(db, n, age, audit=False, outbox=None, processed=False, status=status, **values)


def event(db: psycopg.Connection, n: int, status: str, age: float, **values: Any) -> None:
    """Outbox rows alone."""
    steps.events(db, n, age, audit=False, outbox=status, processed=False, status=None, **values)


def test_every_question_is_answered(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with steps.bound(broker):
        for some in (STEPS[:4], STEPS[4:]):
            found = run(servers, *some)
            assert {f.status for f in found.values()} == {Status.OK}, {s: f.headline for s, f in found.items()}


@pytest.mark.parametrize(
    ("status", "place", "said"),
    [
        (204, "delivery_worker", "answers the runbook with 204"),
        (503, "receiver", "also gets status 503"),
        (0, "receiver", "refuses the runbook's connection too"),
    ],
)
def test_while_sends_fail_the_receiver_itself_is_asked(
    servers: Servers, db: psycopg.Connection, broker: str, status: int, place: str, said: str
) -> None:
    notify(db, 30, "SENT", 100, sent_after=10)
    for attempts in (1, 2, 3):
        notify(db, 10, "PENDING", 20, tries=attempts, again=2.0**attempts)
    with web(lambda request: reply(request, status or 204)) as url, steps.bound(broker):
        found = run(servers, "4.1.1", destination_url=url if status else "http://127.0.0.1:1/health")["4.1.1"]
    assert said in words(found)
    assert [(q.source, q.name) for q in found.queries if q.source == "receiver"] == [("receiver", "probe")]
    assert verdict_of(found).stuck_at == place


def test_the_bound_client_is_named(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with steps.bound(broker):
        found = run(servers, "4.1.2")["4.1.2"]
    assert found.status is Status.OK
    assert found.frames["clients"]["bound"].sum() == 1
    assert not found.frames["clients"]["name"].fillna("").str.startswith("runbook/").any()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_age": 90.0, "duplicate_window": 90.0}, "max_age 90 s"),
        ({"max_msgs": 3}, "max_msgs 3"),
        ({"max_msgs": 9}, ""),
        ({"max_bytes": 300}, "max_bytes 300"),
    ],
)
def test_the_limit_by_which_a_stream_deletes_is_read(
    servers: Servers, db: psycopg.Connection, broker: str, limits: dict[str, Any], said: str
) -> None:
    async def limit(js: Any, **values: Any) -> None:
        await js.update_stream(dataclasses.replace((await js.stream_info(applications.STREAM)).config, **values))

    event(db, 3, "PUBLISHED", 100)
    steps.publish_ids(broker, [str(n) for n in range(5)])
    applications.visit(broker, lambda js: limit(js, **limits))
    try:
        with steps.bound(broker):
            found = run(servers, "4.1.2")["4.1.2"]
    finally:
        applications.visit(broker, lambda js: limit(js, max_age=0, duplicate_window=120.0, max_msgs=-1, max_bytes=-1))
    assert (found.headline.params["limit"] or "") == said
    assert (weight(found, "FM-NATS-10") > 0) == bool(said)


def test_without_the_broker_the_tables_still_tell(servers: Servers, db: psycopg.Connection) -> None:
    event(db, 3, "PUBLISHED", 100)
    found = run(servers, "4.1.2", without=("nats_url", "nats_monitor_url"))["4.1.2"]
    assert found.value("outbox.published_not_processed") == 3
    assert found.value("outbox.unprocessed") is None, "what the consumer holds was not read: waiting, or lost"
    assert weight(found, "subscriber") > 0.5 and weight(found, "FM-NATS-03") == 0


def test_match_events_hide_no_lost_stream(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    """The subscriber registers them in the same tables, from another stream."""
    steps.events(db, 5, 120)
    steps.events(db, 5, 1)
    db.execute(
        "UPDATE notification.notifications SET type = 'MatchFound' WHERE created_at > now() - interval '1 minute'"
    )
    applications.visit(broker, lambda js: js.delete_stream(applications.STREAM))
    found = run(servers, "4.1.2")["4.1.2"]
    servers.ensure_streams()
    expect(found, Status.CRITICAL, weights={"FM-NATS-04": "> 0"})
    activity = found.frames["activity"].iloc[0]
    assert activity["processed_1m"] == 0
    assert 110 < (activity["now"] - activity["last_processed"]).total_seconds() < 130


def test_postponed_events_are_counted(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    steps.events(db, 3, 10, outbox="PENDING", publish_again=600.0, **steps.UNPROCESSED)
    steps.events(db, 2, 10, outbox="PENDING", publish_again=40.0, publish_tries=6, **steps.UNPROCESSED)
    # No try that has just failed waits for so long by the documented backoff: nothing tells when it was.
    steps.events(db, 4, 10, outbox="PENDING", publish_again=60.0, publish_tries=1, **steps.UNPROCESSED)
    found = run(servers, "4.1.3")["4.1.3"]
    values = {"outbox.postponed": 7, "outbox.waiting_retry": 9, "outbox.tried_before": 2}
    expect(found, Status.WARNING, "publish.postponed", values=values)


@pytest.mark.parametrize(
    ("table", "step", "key"),
    [
        ("entitlement.outbox_events", "4.1.3", "publish.stray"),
        ("notification.notifications", "4.1.1", "backlog.stray"),
    ],
)
def test_rows_in_a_state_that_no_program_takes_are_named(
    servers: Servers, db: psycopg.Connection, broker: str, table: str, step: str, key: str
) -> None:
    steps.events(db, 3, 100)
    name, constraint = sql.Identifier(*table.split(".")), sql.Identifier(table.partition(".")[2] + "_status_check")
    db.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(name, constraint))
    for n, state in enumerate(("ON_HOLD", "A", "ZZ")):
        held = sql.SQL(
            "UPDATE {0} SET status = %s WHERE event_id = (SELECT event_id FROM {0} ORDER BY 1 OFFSET %s LIMIT 1)"
        )
        db.execute(held.format(name), [state, n])
    found = run(servers, step)[step]
    expect(found, Status.WARNING, key, weights={"FM-NOTI-09": "> 0.8"}, says=("3 ", "(A, ON_HOLD, ZZ)"))


def test_failed_publishes_that_arrived_are_counted(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    failed = {"outbox": "PENDING", "publish_again": 1.0, "publish_tries": 1, "error": TIMEOUT}
    steps.events(db, 4, 10, **failed)
    steps.events(db, 1, 10, **failed | steps.UNPROCESSED)
    found = run(servers, "4.1.3")["4.1.3"]
    assert found.frames["arrived"].to_dict("records") == [{"n": 5, "arrived": 4}]


def test_sends_that_wait_for_longer_than_the_backoff_say_nothing_of_now(
    servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    steps.events(db, 5, 40, status="PENDING", tries=1, again=3000.0)
    found = run(servers, "4.1.1")["4.1.1"]
    expect(found, Status.WARNING, "backlog.postponed", values={"backlog.tried_before": 0, "backlog.waiting_retry": 5})


def test_refused_logins_are_counted_and_nothing_is_restarted_meanwhile(
    servers: Servers, db: psycopg.Connection, broker: str, default_target: None
) -> None:
    async def knock() -> None:
        for _ in range(4):
            with pytest.raises(Exception, match=r"(?i)auth"):
                await nats.connect(broker.replace("app:", "app:not"), allow_reconnect=False, max_reconnect_attempts=1)

    asyncio.run(knock())
    found = run(servers, "4.1.2")["4.1.2"]
    assert found.value("connections.refused_last_minute") >= 4  # type: ignore[operator]
    expect(found, weights={"jetstream": ">= 0.9", "FM-NATS-05": ">= 0.9"})
    assert found.headline.params["reason"] == REFUSED
    assert not any("restart" in p.name for p in verdict_of(found).proposals), found.proposals
    told = {p.text.key: p.ok for p in check_servers(session.quiet_session("5.1").context)}
    assert told["action.restart.lets_in"] is False and told["action.restart.answers"]


#: What keeps the services' role from its work, and what lets it again; the restart that "nobody claims" would suggest.
KEPT_FROM = {
    "read_only": (
        "ALTER ROLE miniserversystem SET default_transaction_read_only = on",
        "ALTER ROLE miniserversystem RESET default_transaction_read_only",
        "FM-DB-04",
    ),
    "shut_out": ("ALTER ROLE miniserversystem NOLOGIN", "ALTER ROLE miniserversystem LOGIN", "FM-DB-05"),
    "lacks_rights": (
        "REVOKE UPDATE ON notification.notifications FROM miniserversystem",
        "GRANT UPDATE ON notification.notifications TO miniserversystem",
        "FM-DB-05",
    ),
}


@pytest.mark.parametrize(
    "write_blocker", [pytest.param(name, marks=[pytest.mark.slow] if n else []) for n, name in enumerate(KEPT_FROM)]
)
def test_what_keeps_the_services_from_the_database_is_never_cured_by_a_restart(
    servers: Servers, db: psycopg.Connection, broker: str, write_blocker: str
) -> None:
    """Due rows that nobody claims look like a dead relay and a dead worker; why they do not claim is in the catalog."""
    event(db, 20, "PENDING", 60)
    take, give, mode = KEPT_FROM[write_blocker]
    book = catalog.load()
    with steps.bound(broker):
        before = conclude(run(servers, *STEPS[:4]).values(), book)
        assert before.proposals[0].name == "restart_entitlement"
        with steps.undone(db, take, give):
            found = run(servers, *STEPS[:4])
    verdict = conclude(found.values(), book)
    assert found["4.1.4"].status is Status.CRITICAL
    assert (verdict.stuck_at, verdict.failure_modes[0].id, verdict.confidence) == ("database", mode, "high")
    assert [p.name for p in verdict.proposals] == ["look_at_role"]
    out = {m.id: m.excluded_by for m in verdict.failure_modes}
    assert out["FM-OB-01"] == f"database.{write_blocker}"


def test_rights_on_the_columns_that_a_service_writes_are_enough(servers: Servers, db: psycopg.Connection) -> None:
    table = "notification.notifications"
    columns = "UPDATE (status, attempt_count, next_retry_at, locked_by, locked_at, lease_until, sent_at)"
    whole = f"GRANT UPDATE ON {table} TO miniserversystem"
    with steps.undone(db, f"REVOKE UPDATE ON {table} FROM miniserversystem", whole):
        db.execute(f"GRANT {columns} ON {table} TO miniserversystem".encode())
        found = run(servers, "4.1.4")["4.1.4"]
    expect(found, Status.OK, weights={"FM-DB-05": "== 0"})


def test_a_table_lock_is_found_while_it_is_held(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    table = "notification.notifications"
    with steps.locked(servers, table), steps.lock_wait(servers.app_url, f"SELECT count(*) FROM {table}"):
        found = run(servers, "4.1.1", "4.1.4")
    expect(found["4.1.1"], Status.CRITICAL, weights={"database": "> 0.5"}, says="migration")
    blockers = found["4.1.4"].frames["blockers"]
    assert blockers["application"].tolist() == ["migration"]
    assert found["4.1.4"].value("locks.blocked_sessions") == 1


@pytest.mark.slow
def test_the_worker_is_sampled_while_the_section_waits(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    """Its slow statement is seen with its wait and without its literals, then its absence, and no time is added."""
    steps.events(db, 3, 120, status="PENDING")
    busy = b"SELECT pg_sleep(60), 'user-7' FROM (SELECT count(*) FROM notification.notifications) x"
    with closing(psycopg.connect(servers.app_url, application_name="PostgreSQL JDBC Driver")) as worker:
        worker.pgconn.send_query(busy)
        in_statement = run(servers, "4.3.2")["4.3.2"]
        worker.cancel()
        pid = worker.info.backend_pid
    until(lambda: not db.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone())
    outside = run(servers, "4.3.2")["4.3.2"]
    seen, nothing = (read_time_use(f.frames) for f in (in_statement, outside))
    assert (seen.working, seen.locked, nothing.outside) == (seen.samples, 0, nothing.samples)
    assert seen.waits_for == "Timeout: PgSleep" and "pg_sleep(60)" in seen.statement
    assert "user-7" not in seen.statement
    asked = [q for q in outside.queries if q.name == "alive/delivery"]
    assert 4 <= len(asked) == nothing.samples <= 10 and len(asked) <= read_cost(outside.queries)["queries"]


LOCK_QUERIES = ("blocked", "blockers")


@pytest.mark.slow
def test_lock_waits_of_others_are_none_of_the_services(servers: Servers, db: psycopg.Connection) -> None:
    """Two of them, an index that is built behind a long reader, and an advisory lock; then a service waits as well."""
    rb = steps.open_target("4.1", {"database_url": servers.database_url})

    def ask() -> tuple[list[str], int]:
        with rb.snapshot() as snapshot:
            asked = {"role": EntitlementFacts().database_role, "schemas": list(EntitlementFacts.services)}
            found = [snapshot.ask(f"database/{name}", **asked) for name in LOCK_QUERIES]
        return [*found[0]["object"]], len(found[1])

    db.execute("CREATE TABLE public.of_others ()")
    lock = "LOCK TABLE public.of_others; SELECT pg_advisory_xact_lock(7), count(*) FROM entitlement.outbox_events"
    waits = {
        servers.admin_url: {
            "LOCK TABLE public.of_others": "relation",
            "SELECT pg_advisory_lock(7)": "advisory",
            "CREATE INDEX CONCURRENTLY of_others ON entitlement.outbox_events (locked_by)": "virtualxid",
        },
        servers.app_url: {"SELECT FROM entitlement.idempotency_keys": "relation"},
    }

    def is_blocked(pid: int, kind: str) -> bool:
        query = "SELECT FROM pg_locks WHERE NOT granted AND pid = %s AND locktype = %s"
        return db.execute(query, [pid, kind]).rowcount > 0

    with ExitStack() as open_ones:
        holder = open_ones.enter_context(psycopg.connect(servers.admin_url))
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute(lock.encode())
        seen = []
        for url, statements in waits.items():
            for statement, kind in statements.items():
                own = open_ones.enter_context(closing(psycopg.connect(url, autocommit=True)))
                if statement.startswith("LOCK"):
                    own.execute("BEGIN")
                if url == servers.app_url:
                    holder.execute("LOCK TABLE entitlement.idempotency_keys")
                own.pgconn.send_query(statement.encode())
                until(partial(is_blocked, own.info.backend_pid, kind))
            seen.append(ask())
        holder.rollback()
    db.execute("DROP TABLE public.of_others")
    db.execute("DROP INDEX IF EXISTS entitlement.of_others")
    assert seen == [([], 0), (["entitlement.idempotency_keys"], 1)]


def test_sessions_of_another_application_are_not_a_second_process(servers: Servers, db: psycopg.Connection) -> None:
    """It has the services' database, role and driver, and tables of its own."""
    rb = steps.open_target("4.1", {"database_url": servers.database_url})

    def count() -> dict[str, int]:
        with rb.snapshot() as snapshot:
            found = snapshot.ask(Sessions.QUERY, role=EntitlementFacts().database_role)
        return dict(zip(found["service"], found["sessions"], strict=True))

    before = count()
    said = [
        "SELECT count(*) FROM notification.notifications",
        "COMMIT",
        "SELECT 1",
        "",
        "SELECT relname FROM pg_class LIMIT 1",
        "SET SESSION search_path TO 'account'",
    ]
    with ExitStack() as open_ones:
        for statement in said:
            name = "PostgreSQL JDBC Driver"
            other = open_ones.enter_context(psycopg.connect(servers.app_url, application_name=name, autocommit=True))
            other.execute(statement.encode())
        found = {service: n - before[service] for service, n in count().items()}
    assert found == {"entitlement": 0, "notification": 4, "either": 0}, "what names nothing is of the one service there"


@pytest.mark.slow
def test_steps_share_two_looks_and_a_step_run_again_takes_its_own(
    servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    notify(db, 3, "PROCESSING", 120, by="one", locked=90, over=60)
    found = run(servers, "4.3.1", "4.3.2", "4.3.3")
    assert len(held_questions(*found.values())) == 2
    assert found["4.3.3"].frames["first"].equals(found["4.3.1"].frames["first.held"])
    assert found["4.3.3"].frames["second"].equals(found["4.3.2"].frames["held"])
    notify(db, 2, "PROCESSING", 10, by="two", locked=1, over=-29)
    again = run(servers, "4.3.1", "4.3.3", "4.3.3")["4.3.3"]
    assert len(held_questions(again)) == 2
    assert len(again.frames["first"]) == len(again.frames["second"]) == 5


def held_questions(*found: Finding) -> list[str]:
    return [q.name for f in found for q in f.queries if q.name == "notifications/held"]


def test_rows_of_the_future_are_named_and_have_no_age(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    for age, sent_after in ((30, 1), (31, 1), (32, 1), (-7200, -7210)):
        steps.events(db, 1, age, sent_after=sent_after)  # each in a transaction of its own, as the subscriber
    event(db, 1, "PENDING", -3600)
    found = run(servers, "4.3.5")["4.3.5"]
    expect(found, Status.WARNING, "leases.rows_ahead", weights={"FM-CLK-01": "> 0"}, says="1 row has notification.n")
    assert found.value("notification.processed_events.processed_at.ahead") == pytest.approx(7200, abs=60)
    # The newest event, publish, registration and sending are those of the past.
    of_2 = run(servers, "2.1", "2.2", "2.4")
    ages = {v.name: float(v.value) for f in of_2.values() for v in f.values if v.unit == "s" and v.value is not None}
    assert ages["entitlement.last_event"] >= 29 and min(ages.values()) >= 0, ages


def test_a_worker_clock_that_is_ahead(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    began = time.monotonic()
    notify(db, 3, "PROCESSING", 10, by="one", locked=-45, over=-75)
    found = run(servers, "4.3.4", "4.3.5")
    passed = time.monotonic() - began
    assert found["4.3.5"].status is Status.CRITICAL
    assert 44 - passed < found["4.3.5"].headline.params["skew"] < 46, "it is read some time after it was written"
    assert found["4.3.4"].status is not Status.OK


def test_of_a_busy_system_the_history_is_asked_in_smaller_pieces(
    db: psycopg.Connection, default_target: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them passes the cost gate that the whole does not; together they say the same."""
    traffic(db, seconds=3000, per_second=1)
    db.execute("ANALYZE notification.notifications")
    plans: list[float] = []

    def asked() -> tuple[pd.DataFrame, int]:
        rb = session.quiet_session("4.1").context
        span = Span(rb.as_of.floor("min") - pd.Timedelta(minutes=60), rb.as_of.floor("min"), 60)
        with rb.snapshot() as snapshot:
            found = past.ask(rb, snapshot, span, ["notifications"])
        plans.extend(q.plan_cost or 0.0 for q in rb.read_cost.queries if q.name == "past/notifications")
        levels = past.levels(found, "notifications", span)
        assert levels is not None
        return levels, found["waiting.notifications"]["piece"].nunique()

    whole, pieces = asked()
    assert pieces == 1
    monkeypatch.setenv("RUNBOOK_BUDGET__MAX_PLAN_COST", str(plans[-1] * 0.7))
    parts, pieces = asked()
    assert pieces in (2, 4)
    assert parts[["came", "gone", "waiting"]].equals(whole[["came", "gone", "waiting"]])
