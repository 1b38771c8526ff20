"""Sections 4.1 and 4.3: judges on frames of every shape, and whole steps on real servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import nats
import pandas as pd
import psycopg
import pytest
import steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from steps import NOW, ago, make_given, run, traffic, weight, words

from runbook_lib import catalog, messages, questions, session
from runbook_lib.analysis.diagnosis import conclude
from runbook_lib.checks import checks
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Unseen, say
from runbook_lib.packs.entitlement.actions.restart import servers_answer
from runbook_lib.packs.entitlement.checks import backlog, database, leases, past, publish, subscriber
from runbook_lib.packs.entitlement.checks.delivery import delivery
from runbook_lib.packs.entitlement.evidence.sessions import Sessions
from runbook_lib.packs.entitlement.facts import Facts
from runbook_lib.packs.entitlement.sandbox import broker as applications
from runbook_lib.packs.entitlement.sandbox.servers import Servers
from runbook_lib.sources import SourceError
from runbook_lib.view.charts import Chart

CHECKS = checks()

STEPS = ("4.1.1", "4.1.2", "4.1.3", "4.1.4", "4.3.1", "4.3.2", "4.3.3", "4.3.4", "4.3.5")


# Judges ------------------------------------------------------------------------------------------------------


def look(**backlog_values: Any) -> Frames:
    """One look at an idle worker, with what is given on top."""
    zero = dict.fromkeys(("due", "waiting_retry", "leased", "expired", "without_lease", "overdue_10min"), 0) | {
        "oldest_due_s": None,
        "oldest_expired_s": None,
    }
    return {
        "backlog": pd.DataFrame([{"now": NOW, **zero, **backlog_values}]),
        "activity": pd.DataFrame(
            [{"now": NOW, "last_claim": pd.NaT, "last_sent": ago(1), "last_try": pd.NaT, "sent_1m": 300,
              "arrived_1m": 300, "workers": None}]
        ),
        "attempts": pd.DataFrame({"attempt_count": [0], "n": [1], "waiting": [0]}),
        "held": held(),
    }  # fmt: skip


def held(*rows: tuple[str, str, float, float]) -> pd.DataFrame:
    """Rows in PROCESSING: id, worker, seconds since the claim, seconds to the lease's end."""
    return pd.DataFrame(
        [
            {"now": NOW, "notification_id": i, "locked_by": w, "locked_at": ago(since), "lease_until": ago(-left),
             "attempt_count": 0}
            for i, w, since, left in rows
        ],
        columns=["now", "notification_id", "locked_by", "locked_at", "lease_until", "attempt_count"],
    )  # fmt: skip


def later(frames: Frames, **changes: pd.DataFrame) -> Frames:
    """The second look, the same as the first but for what is given."""
    return frames | {f"{n}_later": changes.get(n, frames[n]) for n in ("activity", "attempts", "held")}


def silent(frames: Frames, seconds: float) -> Frames:
    return frames | {"activity": frames["activity"].assign(last_sent=ago(seconds))}


def test_nothing_waits_is_ok() -> None:
    found = backlog.judge(look(), make_given())
    assert found.status is Status.OK
    assert weight(found, "delivery_worker") < 0
    words(found)


def test_due_and_silent_is_the_worker() -> None:
    found = backlog.judge(later(silent(look(due=75, oldest_due_s=15.2), 15.3)), make_given())
    assert found.status is Status.CRITICAL
    assert weight(found, "delivery_worker") >= 0.9
    assert weight(found, "FM-NOTI-06") >= 0.9
    assert [p.name for p in found.proposals] == ["restart_notification"]
    words(found)


def test_an_idle_worker_is_not_blamed_for_a_row_that_has_just_come() -> None:
    found = backlog.judge(silent(look(due=1, oldest_due_s=0.4), 7200), make_given())
    assert found.status is Status.OK
    assert weight(found, "delivery_worker") <= 0


def test_retries_that_climb_are_the_receiver_and_not_the_worker() -> None:
    frames = look(due=3, oldest_due_s=0.8, waiting_retry=70)
    frames["attempts"] = pd.DataFrame({"attempt_count": [1, 2, 3], "n": [30, 20, 20], "waiting": [30, 20, 20]})
    frames["activity"] = frames["activity"].assign(last_sent=ago(20), last_try=ago(0.5))
    found = backlog.judge(frames, make_given())
    assert weight(found, "receiver") > 0.8
    assert weight(found, "FM-NOTI-03") > 0.8
    assert weight(found, "delivery_worker") < 0
    assert found.next_sections == ("4.4", "5.2")
    assert "hold_delivery" not in [p.name for p in found.proposals]  # it has tries left: nothing is lost yet
    words(found)
    frames["attempts"] = frames["attempts"].assign(attempt_count=[1, 2, 9])
    assert backlog.judge(frames, make_given()).proposals[0].name == "hold_delivery"
    frames["activity"] = frames["activity"].assign(last_sent=ago(1))
    assert "hold_delivery" not in [p.name for p in backlog.judge(frames, make_given()).proposals]


def test_retries_of_an_outage_that_is_over_do_not_blame_the_receiver() -> None:
    frames = look(waiting_retry=70)
    frames["attempts"] = pd.DataFrame({"attempt_count": [3, 4], "n": [35, 35], "waiting": [35, 35]})
    found = backlog.judge(frames, make_given())
    assert weight(found, "receiver") <= 0
    words(found)


def test_a_receiver_that_refuses_some_while_most_pass_is_not_asked_for_less() -> None:
    frames = look(due=3, oldest_due_s=0.8, waiting_retry=22)
    frames["attempts"] = pd.DataFrame({"attempt_count": [2, 5], "n": [4, 18], "waiting": [4, 18]})
    frames["activity"] = frames["activity"].assign(last_sent=ago(0.6), sent_1m=280)
    tries = {"part": "delivery", "failed": 6, "failed_now": 0, "waiting": 22, "due_again": 0}
    found = backlog.judge(frames | {"tries": pd.DataFrame([tries])}, make_given())
    assert (found.headline.key, weight(found, "receiver") > 0.5) == ("backlog.refused_some", True)
    assert weight(found, "FM-NOTI-04") > weight(found, "FM-NOTI-03")
    assert [p.name for p in found.proposals] == ["logs"]
    words(found)
    outage = frames["activity"].assign(sent_1m=4)  # all but a few fail
    found = backlog.judge(frames | {"tries": pd.DataFrame([tries]), "activity": outage}, make_given())
    assert found.headline.key != "backlog.refused_some"


def test_a_slow_batch_that_moves_is_no_dead_worker() -> None:
    frames = silent(look(due=60, oldest_due_s=20, leased=40), 25)
    frames["attempts"] = pd.DataFrame({"attempt_count": [0, 1], "n": [90, 8], "waiting": [0, 0]})
    frames["held"] = held(("a", "w", 25, 5), ("b", "w", 25, 5))
    moved = later(frames, held=held(("b", "w", 25, 5)))
    assert delivery(moved).progress is True
    slow = backlog.judge(moved, make_given())
    assert weight(slow, "delivery_worker") < 0
    assert weight(slow, "receiver") > 0.5
    stuck = backlog.judge(later(frames), make_given())
    assert 0 < weight(stuck, "delivery_worker") < 0.6
    words(stuck)


def test_dead_letters_in_a_burst_speak_for_the_receiver() -> None:
    frames = look() | {"failed": pd.DataFrame({"minute": [ago(60).floor("min")], "n": [40]})}
    found = backlog.judge(frames, make_given())
    assert weight(found, "receiver") > 0.5
    assert weight(found, "FM-NOTI-04") > 0.5


def pool(service: str, newest_s: float) -> Frames:
    """What the database shows of both services' sessions, one of which said its last word so long ago."""
    rows = [
        Sessions(s, 10, 0, 0, 600.0, newest, newest, 0, sees_others=True)
        for s, newest in (("entitlement", 0.4), ("notification", 0.4), (service, newest_s))
    ]
    return {
        "service_sessions": pd.DataFrame([vars(row) for row in rows]),
        "transactions": pd.DataFrame({"commits": [100, 105], "rollbacks": [0, 0]}),
    }


def test_a_frozen_process_is_told_and_restarted_while_nothing_waits() -> None:
    worker = backlog.judge(look() | pool("notification", 90), make_given())
    assert weight(worker, "delivery_worker") >= 0.9 and weight(worker, "subscriber") >= 0.9
    relay = publish.judge(outbox() | pool("entitlement", 90), make_given())
    assert weight(relay, "relay") >= 0.9
    for found, restart in ((worker, "restart_notification"), (relay, "restart_entitlement")):
        assert found.status is Status.CRITICAL
        assert [p.name for p in found.proposals] == [restart]
        words(found)


def test_a_loop_that_runs_and_takes_nothing_of_what_is_due_is_not_restarted() -> None:
    worker = backlog.judge(later(silent(look(due=75, oldest_due_s=15.2), 15.3)) | pool("", 0), make_given())
    relay = publish.judge(outbox(due=75, oldest_due_s=15.0, last_published=ago(15.5)) | pool("", 0), make_given())
    verdict = conclude([worker, relay], catalog.load())
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


def test_the_past_is_exact_and_never_green() -> None:
    def waiting(n: int) -> Frames:
        flows = {"piece": 0, "bucket": [-1, 9], "came": [n, 5], "gone": [0, 5], "least": [0, n], "most": [n, n + 5]}
        return {"waiting.notifications": pd.DataFrame(flows)}

    found = backlog.judge(waiting(20), make_given())
    assert (found.status, found.reason) == (Status.UNKNOWN, Reason.NO_DATA)
    assert found.value("backlog.open") == 20
    words(found)
    assert backlog.draw_history(waiting(20), make_given()) is not None
    assert backlog.judge(waiting(900), make_given()).status is Status.CRITICAL


def consumer(**changes: Any) -> Frames:
    values = {
        "bound": True, "num_pending": 0, "num_ack_pending": 0, "max_ack_pending": 1000, "num_redelivered": 0,
    } | changes  # fmt: skip
    return {
        "consumer": pd.DataFrame([values]),
        "clients": pd.DataFrame(
            [{"cid": 5, "name": None, "ip": "10.0.0.7", "port": 4000, "start": ago(600), "user": "app",
              "pending_bytes": 0, "bound": values["bound"]}]
        ),
        "closed": closed(),
        "activity": pd.DataFrame([{"now": NOW, "last_processed": ago(1), "processed_1m": 300}]),
        "unprocessed": events(),
    }  # fmt: skip


def closed(*rows: tuple[str, int]) -> pd.DataFrame:
    return pd.DataFrame(
        [("app", "10.0.0.7", reason, n, n, 1.0) for reason, n in rows],
        columns=["client", "ip", "reason", "n", "last_minute", "last_s_ago"],
    )


def events(*seconds: float) -> pd.DataFrame:
    return pd.DataFrame(
        [(str(i), "EntitlementGranted", ago(s + 1), ago(s)) for i, s in enumerate(seconds)],
        columns=["event_id", "event_type", "created_at", "published_at"],
    )


def test_a_bound_subscriber_that_keeps_up_is_ok() -> None:
    found = subscriber.judge(consumer(), make_given())
    assert found.status is Status.OK
    assert weight(found, "subscriber") < 0
    words(found)


def test_nobody_bound_is_critical_without_any_lag() -> None:
    found = subscriber.judge(consumer(bound=False), make_given())
    assert found.status is Status.CRITICAL
    assert found.headline.key == "subscriber.deaf_idle"
    alone = subscriber.judge(consumer(bound=False, num_pending=1), make_given())
    assert weight(alone, "subscriber") == 0.8  # whether its process is there was not seen
    assert weight(found, "FM-NATS-01") > weight(found, "FM-NATS-05")
    assert [p.name for p in found.proposals] == ["restart_notification"]
    words(found)


def test_without_the_monitoring_port_the_step_still_answers() -> None:
    frames = {k: v for k, v in consumer(bound=False, num_pending=3).items() if k not in ("clients", "closed")}
    frames["failed"] = pd.DataFrame(
        [("clients", "nats_monitor", "unreachable", "connection refused", "no_connection")],
        columns=["part", "source", "why", "detail", "code"],
    )
    found = subscriber.judge(frames, make_given())
    assert found.status is Status.CRITICAL
    assert 0.5 < weight(found, "subscriber") < 0.9
    assert any(n.key == "subscriber.without" for n in found.notes)
    words(found)


def test_a_reconnect_loop_of_everybody_is_the_broker_s_door() -> None:
    frames = consumer(bound=False, num_pending=60) | {"closed": closed(("Authentication Failure", 14))}
    frames["clients"] = frames["clients"].head(0)
    found = subscriber.judge(frames, make_given())
    assert weight(found, "jetstream") > 0.9
    assert weight(found, "FM-NATS-05") >= 0.9
    assert found.headline.params["reason"] == "Authentication Failure"
    assert [p.name for p in found.proposals] == ["check_nats_credentials"]
    words(found)


def test_a_reconnect_loop_of_one_is_its_own() -> None:
    frames = consumer(bound=False) | {"closed": closed(("Authentication Failure", 14))}
    found = subscriber.judge(frames, make_given())
    assert weight(found, "subscriber") > 0.8
    assert weight(found, "jetstream") <= 0


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


@pytest.mark.parametrize(
    ("process", "status", "observation", "proposed"),
    [
        ({"ready": 1, "young": False, "failed": True}, Status.CRITICAL, "delivery.not_up", ["logs"]),
        ({"ready": 1, "young": True, "failed": False}, Status.WARNING, "delivery.starting", ["logs"]),
        ({"ready": 0, "wanted": 0}, Status.CRITICAL, "delivery.taken_down", ["start_notification"]),
    ],
)
def test_nobody_listens_while_the_process_is_not_at_work(
    process: dict[str, Any], status: Status, observation: str, proposed: list[str]
) -> None:
    frames = consumer(bound=False, num_pending=9) | {"program": pd.DataFrame([process])}
    found = subscriber.judge(frames, make_given())
    assert (found.status, {s.observation for s in found.signals}) == (status, {observation})
    assert [p.name for p in found.proposals] == proposed
    words(found)


def test_published_not_processed_and_not_held_is_lost() -> None:
    found = subscriber.judge(consumer() | {"unprocessed": events(61, 90)}, make_given())
    assert found.status is Status.CRITICAL
    assert found.value("outbox.unprocessed") == 2
    assert weight(found, "FM-NATS-03") > 0
    held_back = subscriber.judge(consumer(num_pending=5) | {"unprocessed": events(61, 90)}, make_given())
    assert held_back.value("outbox.unprocessed") == 0
    words(found)


def test_a_stalled_consumer_is_said_to_be() -> None:
    found = subscriber.judge(consumer(num_pending=9, num_ack_pending=1000), make_given())
    assert found.status is Status.CRITICAL  # a lag of 1000 and more
    assert found.headline.key == "subscriber.stalled"


def without_consumer(reason: Reason, code: str, processed_ago: float, **changes: Any) -> Frames:
    """The broker could not tell of its consumer; the tables could."""
    frames = consumer(**changes)
    del frames["consumer"]
    frames["activity"] = frames["activity"].assign(
        now=NOW, last_processed=ago(processed_ago), processed_1m=300 if processed_ago < 60 else 0
    )
    frames["failed"] = pd.DataFrame(
        [("consumer", "jetstream", reason.value, "gone", code)], columns=["part", "source", "why", "detail", "code"]
    )
    return frames


@pytest.mark.parametrize("code", ["hung", "stream_not_found", "consumer_not_found", "no_jetstream"])
def test_a_broker_that_says_what_it_lost_is_the_answer(code: str) -> None:
    found = CHECKS["4.1.2"].finding(without_consumer(Reason.ERROR, code, processed_ago=60), make_given())
    assert found.status is Status.CRITICAL
    assert weight(found, "jetstream") >= 0.9
    words(found)


def test_only_the_consumer_lost_leaves_publishing_alone() -> None:
    found = CHECKS["4.1.2"].finding(
        without_consumer(Reason.ERROR, "consumer_not_found", processed_ago=60), make_given()
    )
    assert [p.name for p in found.proposals] == ["restart_notification"]
    assert "publishing fails" not in words(found)


@pytest.mark.parametrize("code", ["hung", "stream_not_found", "consumer_not_found", "no_jetstream"])
def test_while_events_flow_another_broker_has_answered(code: str) -> None:
    found = CHECKS["4.1.2"].finding(without_consumer(Reason.ERROR, code, processed_ago=1), make_given())
    assert found.status is Status.UNKNOWN
    assert (found.signals, found.proposals, found.next_sections) == ((), (), ("2",))
    words(found)


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


def test_what_stands_still_behind_a_broker_that_was_not_seen_is_seen() -> None:
    frames = without_consumer(Reason.UNREACHABLE, "no_connection", processed_ago=600)
    found = CHECKS["4.1.2"].finding(frames | {"unprocessed": events(61, 90)}, make_given())
    assert weight(found, "subscriber") > 0.5
    assert [p.name for p in found.proposals] == ["logs"]


@pytest.mark.parametrize("tried", [0, 5])
def test_of_a_broker_out_of_reach_only_failing_publishes_make_a_broken_one(tried: int) -> None:
    errors = [("PENDING", TIMEOUT, tried)] if tried else []
    frames = outbox(errors, due=40, oldest_due_s=16, tried=tried, last_published=ago(17))
    del frames["broker"]
    frames["failed"] = pd.DataFrame(
        [("broker", "jetstream", "unreachable", "connection refused", "no_connection")],
        columns=["part", "source", "why", "detail", "code"],
    )
    found = CHECKS["4.1.3"].finding(frames, make_given())
    verdict = conclude([found], catalog.load())
    if tried:
        assert verdict.stuck_at == "jetstream"
        assert [p.name for p in found.proposals] == ["restart_nats", "logs"]
    else:
        assert (verdict.stuck_at, verdict.confidence) == (None, "low")
        assert {"relay", "jetstream"} <= set(verdict.undecided)
        assert found.proposals == ()
    words(found)


TIMEOUT = "Timeout or no response waiting for NATS JetStream server"


def outbox(errors: list[tuple[str, str, int]] | None = None, **changes: Any) -> Frames:
    zero = dict.fromkeys(("due", "waiting_retry", "leased", "expired", "failed", "tried"), 0)
    values = {
        "now": NOW, **zero, "oldest_due_s": None, "oldest_expired_s": None, "max_attempt_count": 0,
        "last_claim": pd.NaT, "last_published": ago(1), "published_1m": 300, "arrived_1m": 300,
    } | changes  # fmt: skip
    delay = pd.DataFrame(
        [{"n": 900, "p50": 0.5, "p95": 0.9, "p99": 1.0, "longest": 1.2, "negative": 0, "last_published": ago(1)}]
    )
    return {
        "backlog": pd.DataFrame([values]),
        "delay": delay,
        "delay_now": delay,
        "errors": pd.DataFrame(
            [(s, e, n, 1, ago(20), ago(10)) for s, e, n in errors or ()],
            columns=["status", "last_error", "n", "attempts", "oldest", "newest"],
        ),
        "unprocessed": events(),
        "broker": pd.DataFrame([{"answers": True, "last_seq": 9}]),
    }  # fmt: skip


def test_an_outbox_that_flows_is_ok() -> None:
    found = publish.judge(outbox(due=4, oldest_due_s=0.9), make_given())
    assert found.status is Status.OK
    assert weight(found, "relay") < 0
    words(found)


def test_due_without_a_try_is_the_relay() -> None:
    found = publish.judge(outbox(due=75, oldest_due_s=15.0, last_published=ago(15.5)), make_given())
    assert found.status is Status.CRITICAL
    assert weight(found, "relay") >= 0.9
    assert weight(found, "FM-OB-01") >= 0.9
    assert [p.name for p in found.proposals] == ["restart_entitlement"]
    words(found)


@pytest.mark.parametrize(
    ("error", "hop", "mode"),
    [
        (TIMEOUT, "relay", "FM-NATS-05"),
        ("Connection is Closed", "relay", "FM-NATS-05"),
        ("Error Publishing: 503 No Responders Available For Request", "jetstream", "FM-NATS-04"),
        ("maximum messages exceeded [10077]", "jetstream", "FM-NATS-04"),
    ],
)
def test_failing_publishes_are_told_apart_by_their_words(error: str, hop: str, mode: str) -> None:
    frames = outbox([("PENDING", error, 5)], due=40, oldest_due_s=12, tried=5, last_published=ago(13))
    found = publish.judge(frames, make_given())
    assert weight(found, hop) > 0.8
    assert weight(found, mode) > 0.8
    words(found)


def test_errors_of_an_outage_that_is_over_only_wait_for_their_turn() -> None:
    frames = outbox([("PENDING", "Connection is Closed", 98)], waiting_retry=98, tried=98)
    found = publish.judge(frames, make_given())
    assert found.status is Status.OK
    assert weight(found, "relay") < 0


def test_late_events_of_the_last_minutes_count_and_those_of_the_window_do_not() -> None:
    frames = outbox()
    frames["delay"] = frames["delay"].assign(p95=40.0)
    assert publish.judge(frames, make_given()).status is Status.OK
    frames["delay_now"] = frames["delay"]
    slow = publish.judge(frames, make_given())
    assert (slow.status, slow.headline.key) == (Status.CRITICAL, "publish.slow")
    words(slow)


def test_a_broker_that_does_not_answer_speaks_for_itself_not_for_the_relay() -> None:
    frames = outbox([("PENDING", TIMEOUT, 5)], due=40, oldest_due_s=12, tried=5, last_published=ago(13))
    del frames["broker"]
    frames["failed"] = pd.DataFrame(
        [("broker", "jetstream", "unreachable", "connection refused", "no_connection")],
        columns=["part", "source", "why", "detail", "code"],
    )
    found = publish.judge(frames, make_given())
    assert weight(found, "jetstream") > 0.8
    assert weight(found, "relay") < 0
    words(found)


def test_both_clients_cut_off_is_the_broker_s_door() -> None:
    deaf = subscriber.judge(consumer(bound=False), make_given())
    earlier = (Finding("4.1.2", deaf.status, deaf.headline, values=deaf.values),)
    frames = outbox([("PENDING", TIMEOUT, 5)], due=40, oldest_due_s=12, tried=5, last_published=ago(13))
    found = publish.judge(frames, make_given(earlier=earlier))
    assert weight(found, "jetstream") > 0.8
    assert weight(found, "FM-NATS-05") > 0.8


def test_an_error_that_the_next_claim_has_wiped_is_still_a_failing_publish() -> None:
    frames = outbox(due=40, oldest_due_s=18, leased=45, tried=6, last_claim=ago(4), last_published=ago(20))
    found = publish.judge(frames, make_given())
    assert found.headline.key == "publish.failing"
    assert weight(found, "relay") > 0.5
    words(found)


def test_a_payload_that_cannot_pass_is_the_producer() -> None:
    found = publish.judge(outbox([("FAILED", "outbox payload parse failure", 2)], failed=2), make_given())
    assert found.status is Status.CRITICAL
    assert weight(found, "producer") > 0.5
    assert weight(found, "FM-OB-02") > 0.8
    words(found)


def test_no_publish_is_no_percentile() -> None:
    frames = outbox(published_1m=0, arrived_1m=0, last_published=pd.NaT)
    frames["delay"] = pd.DataFrame([{"n": 0, "p50": None, "p95": None, "p99": None, "negative": 0}])
    frames["delay_now"] = frames["delay"]
    found = publish.judge(frames, make_given())
    assert found.status is Status.OK
    assert found.value("outbox.publish_delay_p95") is None
    assert found.headline.key == "publish.idle"
    words(found)


def sessions(used: int = 5, sees: bool = True, **frames: pd.DataFrame) -> Frames:
    empty = pd.DataFrame()
    return {
        "connections": pd.DataFrame(
            [{"max_connections": 40, "superuser_reserved": 3, "reserved": 2, "sees_others": sees, "used": used}]
        ),
        "sessions": pd.DataFrame({"application": ["report"], "state": ["idle"], "n": [used]}),
        "blocked": empty, "blockers": empty, "long_transactions": empty,
    } | frames  # fmt: skip


def test_a_free_database_is_ok() -> None:
    found = database.judge(sessions(), make_given())
    assert found.status is Status.OK
    assert weight(found, "database") < 0
    words(found)


def test_a_database_that_refuses_is_not_said_to_be_well_because_it_is_free() -> None:
    blamed = Finding("4.1.1", Status.CRITICAL, say("-"), signals=make_given().speaks("delivery.rejected"))
    found = database.judge(sessions(), make_given(earlier=(blamed,)))
    assert weight(found, "database") == 0
    assert weight(found, "FM-DB-01") < 0
    assert [p.name for p in found.proposals] == ["logs", "logs"]
    full = database.judge(sessions(used=34), make_given(earlier=(blamed,)))
    assert full.proposals[0].name == "end_sessions"


def test_connections_are_counted_against_the_usable_ones() -> None:
    found = database.judge(sessions(used=34), make_given())
    assert found.status is Status.CRITICAL  # 34 of 35, not of 40
    assert weight(found, "FM-DB-01") >= 0.9
    assert found.proposals[0].name == "end_sessions"
    words(found)


@pytest.mark.parametrize(
    ("application", "state", "key", "proposed"),
    [
        ("PostgreSQL JDBC Driver", "active", "database.own_work", ["logs", "logs"]),
        ("PostgreSQL JDBC Driver", "idle in transaction", "database.rows_held", ["end_blocker"]),
        ("reconciliation", "active", "database.rows_held", ["end_blocker"]),
    ],
)
def test_a_claim_that_takes_long_is_nobody_to_end(application: str, state: str, key: str, proposed: list[str]) -> None:
    holder = {"pid": 5, "application": application, "state": state, "transaction_s": 16.0, "n": 17}
    found = database.judge(sessions(row_locks=pd.DataFrame([holder])), make_given())
    assert (found.headline.key, [p.name for p in found.proposals]) == (key, proposed)
    assert weight(found, "FM-DB-01") >= 0.9
    words(found)


def test_a_blocker_is_named_with_its_pid() -> None:
    blocked = pd.DataFrame([{"pid": 7, "wait_s": 6.0, "blocked_by": "5", "object": "notification.notifications"}])
    blockers = pd.DataFrame(
        [{"pid": 5, "application": "schema-migration", "state": "idle in transaction", "blocks": 1,
          "transaction_s": 16.0}]
    )  # fmt: skip
    found = database.judge(sessions(blocked=blocked, blockers=blockers), make_given())
    assert found.status is Status.WARNING
    assert weight(found, "database") > 0.7
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


def test_hidden_sessions_are_denied_and_not_absent() -> None:
    found = database.judge(sessions(sees=False), make_given())
    assert any(n.key == "database.denied" for n in found.notes)


def test_no_connection_left_is_critical() -> None:
    e = SourceError("postgres", Reason.UNREACHABLE, "sorry, too many clients already", "too_many_clients")
    found = database.on_error(e, make_given())
    assert found.status is Status.CRITICAL
    words(found)


def holders(*rows: tuple[str | None, int, int, float]) -> pd.DataFrame:
    """Worker, rows, of them expired, for how long."""
    return pd.DataFrame(
        [
            {"now": NOW, "locked_by": w, "n": n, "expired": e, "without_lease": 0, "expired_for_s": s or None,
             "last_claim": ago(30 + s), "since_claim_s": 30 + s, "shortest_lease_s": 30.0, "longest_lease_s": 30.0,
             "furthest_s": -s}
            for w, n, e, s in rows
        ]
    )  # fmt: skip


def test_leases_with_time_left_are_work() -> None:
    assert leases.judge_leases({"holders": holders(("w", 50, 0, 0.0))}, make_given()).status is Status.OK
    assert leases.judge_leases({"holders": pd.DataFrame()}, make_given()).status is Status.OK


def test_leases_left_behind_are_a_worker_that_is_gone() -> None:
    found = leases.judge_leases({"holders": holders(("w", 50, 50, 20.0))}, make_given())
    assert found.status is Status.CRITICAL
    assert weight(found, "FM-NOTI-06") > 0.7
    words(found)


def test_leases_outlived_by_a_batch_that_goes_on_are_not() -> None:
    first = silent(look(expired=2, oldest_expired_s=20.0), 50)
    first["held"] = held(("a", "w", 50, -20), ("b", "w", 50, -20))
    frames = later(first, held=held(("b", "w", 50, -20))) | {"holders": holders(("w", 2, 2, 20.0))}
    found = leases.judge_leases(frames, make_given())
    assert found.headline.key == "leases.outlasted"
    assert weight(found, "delivery_worker") == 0
    alive = leases.judge_workers(frames, make_given())
    assert alive.status is Status.OK
    earlier = (Finding("4.3.2", alive.status, alive.headline, values=alive.values),)
    short = leases.judge_length({"holders": frames["holders"]}, make_given(earlier=earlier))
    assert short.status is Status.CRITICAL  # 30 s against the 50 s of the batch that goes on
    words(found)
    words(short)


def test_the_dead_worker_is_named() -> None:
    frames = later(silent(look(expired=9, oldest_expired_s=18.0), 48)) | {"holders": holders(("pod-1", 9, 9, 18.0))}
    found = leases.judge_workers(frames, make_given())
    assert found.status is Status.CRITICAL
    assert found.headline.params["who"] == "pod-1"
    words(found)


def test_a_row_in_other_hands_before_its_lease_is_over_is_a_race() -> None:
    first = held(("a", "one", 5, 25))
    second = held(("a", "two", 1, 29)).assign(now=NOW)
    found = leases.judge_locks({"first": first, "second": second}, make_given())
    assert found.status is Status.CRITICAL
    assert weight(found, "FM-NOTI-02") > 0.8
    words(found)


def test_a_takeover_after_the_lease_is_a_warning() -> None:
    found = leases.judge_locks({"first": held(("a", "one", 31, -1)), "second": held(("a", "two", 0, 30))}, make_given())
    assert (found.status, found.headline.key) == (Status.WARNING, "leases.takeover")
    words(found)


def test_two_workers_that_claim_are_seen_without_a_shared_row() -> None:
    first = held(("a", "one", 9, 21)).assign(now=ago(2.5))
    second = held(("b", "one", 1, 29), ("c", "two", 1, 29))
    found = leases.judge_locks({"first": first, "second": second}, make_given())
    assert found.headline.key == "leases.two_workers"


def test_one_worker_with_other_rows_is_ok() -> None:
    first, second = held(("a", "one", 9, 21)), held(("b", "one", 1, 29))
    assert leases.judge_locks({"first": first, "second": second}, make_given()).status is Status.OK


def test_a_lease_is_measured_against_real_batches() -> None:
    batches = pd.DataFrame(
        {"started": [ago(3), ago(40)], "exact_s": [0.1, 26.0], "cycle_s": [None, 27.0], "next_waited_s": [None, 20.0]}
    )
    short = leases.judge_length({"holders": holders(("w", 1, 0, 0.0)), "batches": batches}, make_given())
    assert short.status is Status.CRITICAL
    assert weight(short, "FM-NOTI-02") > 0
    words(short)
    untracked = leases.judge_length({"batches": batches.assign(exact_s=None)}, make_given())
    assert untracked.value("batch.longest_estimated") == 26.0
    fine = leases.judge_length({"batches": batches.head(1)}, make_given())
    assert fine.status is Status.OK
    before = leases.judge_length({"batches": batches.assign(started=[ago(3), ago(600)])}, make_given())
    assert before.status is Status.OK
    assert any(n.key == "leases.longer_before" for n in before.notes)
    other = leases.judge_length({"holders": holders(("w", 1, 0, 0.0))}, make_given(facts=Facts(lease_s=60.0)))
    assert other.status is Status.WARNING


def test_a_clock_that_is_ahead_is_proven() -> None:
    worker = pd.DataFrame([{"now": NOW, "tracked": False, "held": 3, "claim_ahead_s": 45.0, "lease_ahead_s": 75.0,
                            "born_expired": 0, "sent": 0}])  # fmt: skip
    found = leases.judge_clocks({"worker": worker}, make_given())
    assert found.status is Status.CRITICAL
    assert weight(found, "FM-CLK-01") >= 0.9
    words(found)


def test_a_clock_that_is_behind_is_seen_by_commit_times() -> None:
    subscriber_row = pd.DataFrame([{"now": NOW, "n": 200, "ahead_s": -21.0, "to_commit_s": 20.0}])
    found = leases.judge_clocks({"subscriber": subscriber_row}, make_given())
    assert found.status is Status.CRITICAL
    assert found.headline.params["skew"] == -20.0


def test_no_rows_tell_no_clock_and_raise_no_alarm() -> None:
    found = leases.judge_clocks({}, make_given())
    assert (found.status, found.headline.key) == (Status.OK, "leases.clock_no_rows")


# Whatever the frames are, a judge and its charts answer.

WAITING = pd.DataFrame({"piece": 0, "bucket": [2], "came": [3], "gone": [3], "least": [0], "most": [3]})

SHAPES: dict[str, Callable[[], Frames]] = {
    "4.1.1": lambda: later(look(due=9, oldest_due_s=20.0)) | pool("notification", 90) | {
        "by_status": pd.DataFrame({"status": ["SENT"], "count": ["≈ 9"]}),
        "ages": pd.DataFrame({"bucket": [3], "n": [2]}), "older_than_10min": pd.DataFrame({"count": [1]}),
        "waiting.notifications": WAITING,
        "failed": pd.DataFrame({"minute": [NOW.floor("min")], "n": [3]})},
    "4.1.2": lambda: consumer() | {"oldest": pd.DataFrame([{"seq": 1, "age_s": 3.0}])},
    "4.1.3": lambda: outbox([("PENDING", TIMEOUT, 5)], due=4, tried=3) | {
        "waiting.outbox": WAITING,
        "delays": pd.DataFrame({"minute": [NOW.floor("min")], "n": [3], "p50": [0.5], "p95": [1.0]})},
    "4.1.4": sessions,
    "4.3.1": lambda: {"holders": holders(("w", 2, 1, 3.0)),
        "leases": pd.DataFrame({"from_s": [-5, 25, None], "n": [1, 1, 1]})},
    "4.3.2": lambda: look() | {"holders": holders(("w", 2, 1, 3.0))},
    "4.3.3": lambda: {"first": held(("a", "w", 1, 29)), "second": held(("a", "w", 1, 29))},
    "4.3.4": lambda: {"holders": holders(("w", 2, 1, 3.0)),
        "batches": pd.DataFrame({"started": [ago(3)], "exact_s": [0.1], "cycle_s": [1.0], "next_waited_s": [2.0]})},
    "4.3.5": lambda: {
        "clocks": pd.DataFrame({"server": ["postgres", "nats"], "offset_s": [0.0, 2.0], "error_s": [0.1, 0.1]})},
}  # fmt: skip

NUMBERS = st.one_of(st.none(), st.just(float("nan")), st.floats(-1e9, 1e9), st.integers(-(10**9), 10**12))


@st.composite
def odd_frames(draw: st.DrawFn, step: str) -> Frames:
    """Frames of the step with some missing, emptied, without a column, or with other numbers."""
    frames: Frames = {}
    for name, frame in SHAPES[step]().items():
        match draw(st.sampled_from(("as is", "missing", "empty", "no columns", "one column less", "numbers"))):
            case "missing":
                continue
            case "empty":
                frames[name] = frame.head(0)
            case "no columns":
                frames[name] = pd.DataFrame()
            case "one column less" if len(frame.columns):
                frames[name] = frame.drop(columns=draw(st.sampled_from(list(frame.columns))))
            case "numbers":
                numeric = [c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c]) and c != "bucket"]
                frames[name] = frame.assign(**{str(c): draw(NUMBERS) for c in numeric})
            case _:
                frames[name] = frame
    return frames


@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_judges_are_total(step: str, data: st.DataObject) -> None:
    found = CHECKS[step].judge(data.draw(odd_frames(step)), make_given())
    assert isinstance(found, Finding)
    words(found)
    assert all(-1 <= s.weight <= 1 for s in found.signals)


@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_charts_are_total(step: str, data: st.DataObject) -> None:
    frames = data.draw(odd_frames(step))
    for draw in CHECKS[step].charts:
        chart = draw(frames, make_given())
        assert chart is None or isinstance(chart, Chart)


@pytest.mark.parametrize("step", [s for s in STEPS if CHECKS[s].charts])
def test_charts_are_drawn_with_words(step: str) -> None:
    for draw, lang in product(CHECKS[step].charts, messages.LANGUAGES):
        chart = draw(SHAPES[step](), make_given())
        assert chart is not None
        assert chart.display(lang)[0]["image/png"]
        assert messages.text(chart.alt, lang)


# Real servers -----------------------------------------------------------------------------------------------

INSERT = """
INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at, payload_json, status,
    attempt_count, created_at, next_retry_at, sent_at, locked_by, locked_at, lease_until)
SELECT gen_random_uuid(), gen_random_uuid(), 'user-1', 'EntitlementGranted', t, '{}', %(status)s, %(attempts)s, t,
    now() + %(retry)s * interval '1 s', now() + %(sent)s * interval '1 s', %(by)s,
    now() + %(locked)s * interval '1 s', now() + %(lease)s * interval '1 s'
FROM (SELECT now() - %(age)s * interval '1 s' - g * interval '10 ms' AS t FROM generate_series(1, %(n)s) g) rows
"""


def notify(db: psycopg.Connection, n: int, status: str, age: float, **values: Any) -> None:
    """Rows of one kind; times in seconds from now."""
    nothing = dict.fromkeys(("retry", "sent", "by", "locked", "lease")) | {"attempts": 0}
    db.execute(INSERT, nothing | {"n": n, "status": status, "age": age} | values)


def event(db: psycopg.Connection, n: int, status: str, age: float, **values: Any) -> None:
    """Outbox rows of one kind; times in seconds from now."""
    nothing = {"published": None, "error": None, "attempts": 0, "retry": None}
    db.execute(
        """
        INSERT INTO entitlement.outbox_events (event_id, event_type, aggregate_key, payload, status, created_at,
            published_at, last_error, attempt_count, next_retry_at)
        SELECT gen_random_uuid(), 'EntitlementGranted', 'user-1:sku', '{}', %(status)s,
            now() - %(age)s * interval '1 s', now() + %(published)s * interval '1 s', %(error)s, %(attempts)s,
            now() + %(retry)s * interval '1 s'
        FROM generate_series(1, %(n)s)
        """,
        nothing | {"n": n, "status": status, "age": age} | values,
    )


@contextmanager
def subscribed(url: str) -> Iterator[None]:
    """Somebody is bound to the consumer and acknowledges nothing."""
    loop = asyncio.new_event_loop()

    async def bind() -> Client:
        client = await nats.connect(url)
        js = client.jetstream()
        config = (await js.consumer_info(applications.STREAM, applications.CONSUMER)).config
        await js.subscribe_bind(applications.STREAM, config, applications.CONSUMER, manual_ack=True)
        return client

    client = loop.run_until_complete(bind())
    try:
        yield
    finally:
        loop.run_until_complete(client.close())
        loop.close()


def publish_messages(url: str, n: int) -> None:
    async def send() -> None:
        client = await nats.connect(url)
        for i in range(n):
            await client.jetstream().publish(applications.SUBJECT, json.dumps(i).encode())
        await client.close()

    asyncio.run(send())


def test_every_question_is_answered(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    assert (
        len([n for n in questions.names() if n.split("/")[0] in ("notifications", "outbox", "processed", "database")])
        > 20
    )
    with subscribed(broker):
        for steps in (STEPS[:4], STEPS[4:]):
            found = run(servers, *steps)
            assert {f.status for f in found.values()} == {Status.OK}, {s: f.headline for s, f in found.items()}


def test_a_backlog_that_nobody_takes(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    notify(db, 30, "SENT", 600, sent=-590)
    notify(db, 60, "PENDING", 30, retry=-30)
    notify(db, 5, "PROCESSING", 60, by="pod-1", locked=-50, lease=-20)
    found = run(servers, "4.1.1")["4.1.1"]
    assert found.status is Status.CRITICAL
    assert found.value("backlog.due") == 65
    assert weight(found, "delivery_worker") >= 0.9
    counted = found.frames["by_status"].set_index("status")["count"].to_dict()
    assert counted == {"PENDING": "60", "PROCESSING": "5", "SENT": "30"}
    stuck = run(servers, "4.3.1", "4.3.2")
    assert stuck["4.3.1"].value("processing.expired") == 5
    assert stuck["4.3.2"].headline.params["who"] == "pod-1"
    assert weight(stuck["4.3.2"], "FM-NOTI-06") >= 0.9


def test_a_receiver_that_refuses(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    notify(db, 30, "SENT", 100, sent=-90)
    for attempts in (1, 2, 3):
        notify(db, 10, "PENDING", 20, attempts=attempts, retry=2.0**attempts)
    found = run(servers, "4.1.1")["4.1.1"]
    assert found.status is Status.WARNING
    assert weight(found, "receiver") > 0.8
    assert weight(found, "delivery_worker") < 0


def test_the_past_is_answered_from_timestamps(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    notify(db, 40, "SENT", 1200, sent=-300)  # came 20 min ago, left 5 min ago
    notify(db, 3, "PENDING", 60, retry=-60)
    then = (pd.Timestamp.now("UTC") - pd.Timedelta(minutes=10)).isoformat()
    found = run(servers, "4.1.1", "4.1.2", "4.1.3", "4.1.4", as_of=then)
    assert found["4.1.1"].value("backlog.open") == 40
    assert {f.status for f in found.values()} == {Status.UNKNOWN}
    assert {f.reason for f in found.values()} == {Reason.NO_DATA}


def test_nobody_listens(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    publish_messages(broker, 7)
    event(db, 7, "PUBLISHED", 5, published=-4)
    found = run(servers, "4.1.2")["4.1.2"]
    assert found.status is Status.CRITICAL
    assert found.value("subscriber.lag") == 7
    assert weight(found, "subscriber") == 0.8  # there is no process to be seen
    closed_port = run(servers, "4.1.2", without=("nats_monitor_url",))["4.1.2"]
    assert closed_port.status is Status.CRITICAL
    assert weight(closed_port, "subscriber") == 0.8


def test_the_bound_client_is_named(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with subscribed(broker):
        found = run(servers, "4.1.2")["4.1.2"]
    assert found.status is Status.OK
    assert found.frames["clients"]["bound"].sum() == 1
    assert not found.frames["clients"]["name"].fillna("").str.startswith("runbook/").any()


def test_published_and_never_processed(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    event(db, 3, "PUBLISHED", 100, published=-90)
    with subscribed(broker):
        found = run(servers, "4.1.2")["4.1.2"]
    assert found.value("outbox.unprocessed") == 3
    assert found.status is Status.CRITICAL


def test_without_the_broker_the_tables_still_tell(servers: Servers, db: psycopg.Connection) -> None:
    event(db, 3, "PUBLISHED", 100, published=-90)
    found = run(servers, "4.1.2", without=("nats_url", "nats_monitor_url"))["4.1.2"]
    assert found.value("outbox.unprocessed") == 3
    assert weight(found, "subscriber") > 0.5


def test_a_stream_that_is_gone(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    async def delete() -> None:
        client = await nats.connect(broker)
        await client.jetstream().delete_stream(applications.STREAM)
        await client.close()

    asyncio.run(delete())
    found = run(servers, "4.1.2")["4.1.2"]
    assert found.status is Status.CRITICAL
    assert weight(found, "FM-NATS-04") > 0
    assert [p.name for p in found.proposals] == ["restart_notification", "restart_entitlement"]
    servers.ensure_streams()


def test_refused_logins_are_counted_and_nothing_is_restarted_meanwhile(
    servers: Servers, db: psycopg.Connection, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def knock() -> None:
        for _ in range(4):
            with pytest.raises(Exception, match=r"(?i)auth"):
                await nats.connect(broker.replace("app:", "app:not"), allow_reconnect=False, max_reconnect_attempts=1)

    asyncio.run(knock())
    found = run(servers, "4.1.2")["4.1.2"]
    assert found.value("connections.refused_last_minute") >= 4  # type: ignore[operator]
    assert weight(found, "jetstream") > 0.9
    assert weight(found, "FM-NATS-05") >= 0.9
    assert found.headline.params["reason"] == "Authentication Failure"
    assert not any("restart" in p.name for p in conclude([found], catalog.load()).proposals), found.proposals
    for name, value in servers.env.items():
        monkeypatch.setenv(name, value)
    told = {p.text.key: p.ok for p in servers_answer(session.quiet_session("5.1").context)}
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


@pytest.mark.parametrize("kept_from", KEPT_FROM)
def test_what_keeps_the_services_from_the_database_is_never_cured_by_a_restart(
    servers: Servers, db: psycopg.Connection, broker: str, kept_from: str
) -> None:
    """Due rows that nobody claims look like a dead relay and a dead worker; why they do not claim is in the catalog."""
    event(db, 20, "PENDING", 60)
    take, give, mode = KEPT_FROM[kept_from]
    book = catalog.load()
    with subscribed(broker):
        before = conclude(run(servers, *STEPS[:4]).values(), book)
        assert before.proposals[0].name == "restart_entitlement"
        db.execute(take)
        try:
            found = run(servers, *STEPS[:4])
        finally:
            db.execute(give)
    verdict = conclude(found.values(), book)
    assert found["4.1.4"].status is Status.CRITICAL
    assert (verdict.stuck_at, verdict.failure_modes[0].id, verdict.confidence) == ("database", mode, "high")
    assert [p.name for p in verdict.proposals] == ["look_at_role"]
    out = {m.id: m.excluded_by for m in verdict.failure_modes}
    assert out["FM-OB-01"] == f"database.{kept_from}"


def test_an_outbox_that_nobody_relays(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    event(db, 20, "PUBLISHED", 60, published=-59)
    event(db, 20, "PENDING", 18)
    event(db, 1, "FAILED", 30, error="outbox payload parse failure", attempts=10)
    found = run(servers, "4.1.3")["4.1.3"]
    assert found.status is Status.CRITICAL
    assert weight(found, "relay") >= 0.9
    assert weight(found, "producer") < 0.5
    assert weight(found, "FM-OB-02") > 0.8


def test_due_rows_that_somebody_holds_are_found_without_a_queue(servers: Servers, db: psycopg.Connection) -> None:
    steps.events(db, 30, 60, outbox="PENDING", processed=False, status=None)
    notify(db, 12, "PENDING", 60, retry=-60)  # a fresh row has a retry time
    with psycopg.connect(servers.admin_url, application_name="by-hand") as holder:
        for table in ("entitlement.outbox_events", "notification.notifications"):
            holder.execute(f"SELECT FROM {table} WHERE status = 'PENDING' FOR UPDATE")
        db.execute("SELECT pg_sleep(5.5)")  # a transaction younger than that is a worker's own
        found = run(servers, "4.1.4")["4.1.4"]
    assert found.headline.key == "database.rows_held"
    assert (found.headline.params["rows"], found.headline.params["application"]) == (42, "by-hand")
    assert found.proposals[0].name == "end_blocker"
    words(found)


def test_a_table_lock_is_found_while_it_is_held(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with psycopg.connect(servers.app_url, application_name="migration") as migration:
        migration.execute("LOCK TABLE notification.notifications IN ACCESS EXCLUSIVE MODE")
        waiting = psycopg.connect(servers.app_url, autocommit=True)
        waiting.pgconn.send_query(b"SELECT count(*) FROM notification.notifications")
        waited = 0.0
        while waited < 6 and not db.execute("SELECT FROM pg_locks WHERE NOT granted").fetchone():
            db.execute("SELECT pg_sleep(0.05)")
            waited += 0.05
        found = run(servers, "4.1.1", "4.1.4")
        migration.rollback()
        waiting.close()
    assert (found["4.1.1"].status, found["4.1.1"].reason) == (Status.UNKNOWN, Reason.TIMEOUT)
    assert weight(found["4.1.1"], "database") > 0.5
    blockers = found["4.1.4"].frames["blockers"]
    assert blockers["application"].tolist() == ["migration"]
    assert found["4.1.4"].value("locks.blocked_sessions") == 1


def test_connections_run_out(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    held_open: list[psycopg.Connection] = []
    try:
        while len(held_open) < 200:
            held_open.append(psycopg.connect(servers.app_url, application_name="nightly-report", autocommit=True))
    except psycopg.OperationalError:
        pass
    try:
        found = run(servers, "4.1.4")["4.1.4"]
    finally:
        for connection in held_open:
            connection.close()
    assert found.status is Status.CRITICAL
    assert weight(found, "FM-DB-01") >= 0.9
    assert found.proposals[0].name in ("end_sessions", "list_sessions")


def test_a_row_that_changes_hands(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    notify(db, 3, "PROCESSING", 10, by="one", locked=-5, lease=25)
    delayed = psycopg.connect(servers.app_url, autocommit=True)
    delayed.pgconn.send_query(
        b"SELECT pg_sleep(2.2); UPDATE notification.notifications"
        b" SET locked_by = 'two', locked_at = clock_timestamp(), lease_until = clock_timestamp() + interval '30 s'"
    )
    found = run(servers, "4.3.3")["4.3.3"]
    delayed.close()
    assert found.status is Status.CRITICAL
    assert found.value("processing.taken_before_lease_end") == 3
    assert weight(found, "FM-NOTI-02") > 0.8


def test_steps_share_two_looks_and_a_step_run_again_takes_its_own(
    servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    notify(db, 3, "PROCESSING", 120, by="one", locked=-90, lease=-60)
    found = run(servers, "4.3.1", "4.3.2", "4.3.3")
    assert len(held_questions(*found.values())) == 2
    assert found["4.3.3"].frames["first"].equals(found["4.3.1"].frames["held"])
    assert found["4.3.3"].frames["second"].equals(found["4.3.2"].frames["held_later"])
    notify(db, 2, "PROCESSING", 10, by="two", locked=-1, lease=29)
    again = run(servers, "4.3.1", "4.3.3", "4.3.3")["4.3.3"]
    assert len(held_questions(again)) == 2
    assert len(again.frames["first"]) == len(again.frames["second"]) == 5


def held_questions(*found: Finding) -> list[str]:
    return [q.name for f in found for q in f.questions if q.name == "notifications/held"]


def test_a_worker_clock_that_is_ahead(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    notify(db, 3, "PROCESSING", 10, by="one", locked=45, lease=75)
    found = run(servers, "4.3.4", "4.3.5")
    assert found["4.3.5"].status is Status.CRITICAL
    assert 44 < found["4.3.5"].headline.params["skew"] < 46
    assert found["4.3.4"].status is not Status.OK


def test_of_a_busy_system_the_history_is_asked_in_smaller_pieces(
    servers: Servers, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them passes the cost gate that the whole does not; together they say the same."""
    traffic(db, seconds=3000, per_second=1)
    db.execute("ANALYZE notification.notifications")
    for name, value in servers.env.items():
        monkeypatch.setenv(name, value)
    plans: list[float] = []

    def asked() -> tuple[pd.DataFrame, int]:
        rb = session.quiet_session("4.1").context
        span = past.Span(rb.as_of.floor("min") - pd.Timedelta(minutes=60), rb.as_of.floor("min"), 60)
        with rb.snapshot() as snapshot:
            found = past.ask(rb, snapshot, span, ["notifications"])
        plans.extend(q.plan_cost or 0.0 for q in rb.read_cost.questions if q.name == "past/notifications")
        levels = past.levels(found, "notifications", span)
        assert levels is not None
        return levels, found["waiting.notifications"]["piece"].nunique()

    whole, pieces = asked()
    assert pieces == 1
    monkeypatch.setenv("RUNBOOK_BUDGET__MAX_PLAN_COST", str(plans[-1] * 0.7))
    parts, pieces = asked()
    assert pieces in (2, 4)
    assert parts[["came", "gone", "waiting"]].equals(whole[["came", "gone", "waiting"]])
