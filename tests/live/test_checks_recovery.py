"""Section 6: over is what recent flow says; judges on frames of every shape, and the steps on real servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook_lib.checks.check import NOT_READ, checks, failure_frame
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Value, replace, say
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import recovery
from runbook_lib.sources.source import SourceError
from runbook_lib.store.archive import Archive
from tests.kit import command
from tests.kit.effort import examples
from tests.kit.frames.recovery import FRAMES, STEADY, cohort, flows, letters, outbox_failed, queues, tries
from tests.kit.servers import Servers
from tests.kit.steps import UNPROCESSED, ago, bound, events, expect, make_given, run, statuses, traffic, words

CHECKS = checks()

STEPS = ("6.1", "6.2", "6.3", "6.4", "6.5")


def test_side_effects_that_nobody_looked_for_are_not_ok() -> None:
    expect(recovery.judge_side_effects({}, make_given()), Status.UNKNOWN)


DEEP = {"due": 400, "oldest_due_s": 80.0}


@pytest.mark.parametrize(
    ("now", "seen", "status", "key"),
    [
        ({}, STEADY, Status.OK, "queue_empty"),
        ({"oldest_due_s": 40.0}, flows(*[(0, 0)] * 60), Status.CRITICAL, "queue_still"),
        (DEEP, flows(*[(50, 200)] * 6, *[(50, 0)] * 24), Status.OK, "queue_draining"),
        (DEEP, flows(*[(50, 0)] * 6, *[(50, 200)] * 24), Status.CRITICAL, "queue_filling"),
        (DEEP, flows(*[(5, 5)] * 6, *[(5, 5)] * 24), Status.WARNING, "queue_unclear"),
        (DEEP | {"due": 100}, flows(*[(10, 14)] * 30), Status.OK, "queue_draining"),
        (DEEP, flows(*[(10, 14)] * 30), Status.WARNING, "queue_recovering"),  # 17 minutes more
        (DEEP, flows(*[(10, 11)] * 6, *[(10, 6)] * 24), Status.WARNING, "queue_unclear"),
    ],
)
def test_is_the_backlog_falling(now: dict[str, Any], seen: pd.DataFrame, status: Status, key: str) -> None:
    found = recovery.judge_backlog(queues(**now) | {"notification_flows": seen}, make_given())
    assert found.status is status, words(found)
    assert found.headline.params["a"].key == f"recovery.{key}"
    words(found)


#: Half an hour of a worker that is throttled to 12 rows a minute, after two hours without one; nothing new comes.
SLOW = queues(due=50_000, oldest_due_s=7200.0) | {"notification_flows": flows(*[(0, 2)] * 90)}
IDLE = cohort(0, 0, None)


def test_a_backlog_that_takes_days_to_empty_is_recovering_and_not_ok() -> None:
    found = recovery.judge_backlog(SLOW, make_given())
    said = found.headline.params["a"]
    assert (found.status, said.key) == (Status.WARNING, "recovery.queue_recovering"), words(found)
    assert said.params["eta"] == pytest.approx(50_000 / 12)
    assert found.value("notifications.empty_in") == pytest.approx(50_000 / 12, rel=0.01)
    expect(found, values={"notifications.look_again": 60}, says="empty in about 2.89 d")


def test_section_6_as_a_whole_is_not_ok_while_a_large_backlog_drains_slowly() -> None:
    frames = SLOW | {**tries(), "letters": letters()}
    idle = {"publish": IDLE, "accepted": IDLE, "delivery": IDLE}
    found = [
        replace(recovery.judge_backlog(frames, make_given()), step="6.1"),
        replace(recovery.judge_errors(frames, make_given()), step="6.2"),
        replace(recovery.judge_slis(FRAMES["6.4"] | idle, make_given()), step="6.4"),
    ]
    verdict = diagnosis.conclude(found, make_given().catalog)
    assert verdict.status is Status.WARNING and verdict.confidence != "high"
    assert verdict.look_again_s == 60


@pytest.mark.parametrize(
    ("came", "gone"), [(0, 0), (5, 5), (6, 5), (1, 0), (50, 50), (5000, 5000)], ids=lambda n: str(n)
)
def test_what_does_not_drain_has_no_estimate(came: int, gone: int) -> None:
    seen = SLOW | {"notification_flows": flows(*[(came, gone)] * 30)}
    found = recovery.judge_backlog(seen, make_given())
    assert found.status in (Status.WARNING, Status.CRITICAL)
    assert "does not drain" in words(found) and "empty in" not in words(found)
    assert found.value("notifications.empty_in") is None


@settings(max_examples=examples(100))
@given(due=st.integers(0, 10**6), oldest=st.floats(0, 1e6), per_ten=st.lists(st.tuples(st.integers(0, 500),
       st.integers(0, 500)), max_size=40))  # fmt: skip
def test_ok_means_within_the_objectives_or_soon_empty(due: int, oldest: float, per_ten: list[tuple[int, int]]) -> None:
    seen = queues(due=due, oldest_due_s=oldest) | {"notification_flows": flows(*per_ten)}
    found = recovery.judge_backlog(seen, make_given())
    limits = make_given().limits
    met = limits["backlog.due"].status(due) is limits["backlog.oldest_due"].status(oldest) is Status.OK
    small = not due or met
    soon = limits["drain.empty_in"].status(found.value("notifications.empty_in")) is Status.OK  # type: ignore[arg-type]
    assert (found.status is Status.OK) == (small or soon)
    words(found)


HEALED = flows(*[(50, 60)], *[(50, 0)] * 29).assign(arrived_now=[20, *[0] * 29], gone_now=[60, *[0] * 29])


def recovered(came: int, gone: int, failed: int = 0) -> tuple[Finding, Finding]:
    """6.1 and 6.2 just after the cure of a minute in which nothing was sent, by the last seconds."""
    seen = HEALED.assign(gone_now=[gone, *[0] * 29], arrived_now=[came, *[0] * 29])
    frames = queues(**DEEP) | {"notification_flows": seen, "outbox_flows": STEADY.assign(arrived_now=0, gone_now=0)}
    frames["outbox_flows"].loc[0, ["arrived_now", "gone_now"]] = (came, came)
    backlog = replace(recovery.judge_backlog(frames, make_given()), step="6.1")
    errors = recovery.judge_errors(frames | tries(failed=90, failed_now=failed), make_given())
    return backlog, replace(errors, step="6.2")


def test_what_recovers_is_neither_critical_nor_green_and_says_when_to_look_again() -> None:
    backlog, errors = recovered(20, 60)
    assert backlog.headline.params["a"].key == "recovery.queue_recovering" and backlog.status is Status.WARNING
    assert errors.headline.params["a"].key == "recovery.errors_recovering" and errors.status is Status.WARNING
    assert backlog.value("notifications.look_again") == pytest.approx(400 / (40 / 4), abs=1)  # 40 in 4 s leave more
    frames = FRAMES["6.4"] | {"delivery": cohort(100, 10, 40.0)}
    late = recovery.judge_slis(frames, make_given(earlier=(backlog, errors)))
    assert late.status is Status.WARNING and late.headline.params["a"].key == "recovery.sli_recovering"
    slow = recovery.judge_slis(FRAMES["6.4"] | {"delivery": cohort(100, 100, 40.0)},
                               make_given(earlier=(backlog, errors)))  # fmt: skip
    assert slow.status is Status.WARNING and slow.value("delivery.look_again") == 30
    for found in (backlog, errors, late, slow):
        assert "look_again" in str(found.values)
        words(found)


@pytest.mark.parametrize(
    ("came", "gone", "failed"),
    [(20, 0, 0), (20, 10, 0), (20, 21, 0), (20, 60, 9)],
    ids=["nothing leaves", "less leaves than comes", "too little to tell", "tries still fail"],
)
def test_what_does_not_recover_stays_critical(came: int, gone: int, failed: int) -> None:
    backlog, errors = recovered(came, gone, failed)
    assert Status.CRITICAL in (backlog.status, errors.status)
    late = recovery.judge_slis(
        FRAMES["6.4"] | {"delivery": cohort(100, 10, 40.0)}, make_given(earlier=(backlog, errors))
    )
    assert late.status is Status.CRITICAL


def test_notifications_of_matches_are_no_recovery_of_the_events() -> None:
    """The subscriber of the events is deaf: what leaves the queue are matches."""
    backlog, errors = recovered(10, 40)
    values = (*backlog.values, Value("notifications.events_gone_now", 0.0, "rows"))
    frames = FRAMES["6.4"] | {"delivery": cohort(0, 0, None), "accepted": cohort(200, 200, 1.0)}
    found = recovery.judge_slis(frames, make_given(earlier=(replace(backlog, values=values), errors)))
    assert found.status is Status.CRITICAL and found.headline.params["a"].key == "recovery.sli_missing"
    assert recovery.judge_slis(frames, make_given(earlier=(backlog, errors))).status is Status.WARNING


def test_a_burst_of_dead_letters_that_ended_just_now_is_recovering() -> None:
    frames = {"letters": letters((9, 20), (15, 20), (25, 20)), "outbox_failed": outbox_failed()}
    found = recovery.judge_dead_letters(frames, make_given())
    expect(found, Status.WARNING, "recovery.letters_recovering", values={"look_again": 6})


def test_a_backlog_that_falls_has_an_eta() -> None:
    seen = flows(*[(50, 100)] * 30)
    found = recovery.judge_backlog(queues(**DEEP) | {"notification_flows": seen}, make_given())
    assert found.headline.params["a"].params["eta"] == pytest.approx(400 / 300, rel=0.01)


def test_tries_that_fail_now_count_and_old_ones_that_wait_do_not() -> None:
    base = queues() | {"letters": letters()}
    expect(recovery.judge_errors(base | tries(failed=90, waiting=90), make_given()), Status.CRITICAL)
    waiting = recovery.judge_errors(base | tries(waiting=80), make_given())
    expect(waiting, Status.OK, values={"delivery.waiting_retry": 80})
    expect(recovery.judge_errors(base | {**tries(), "letters": letters((5, 4))}, make_given()), Status.WARNING)


def test_tries_of_what_was_given_up_have_to_be_counted() -> None:
    unread = recovery.judge_errors(queues() | tries(), make_given())
    assert (unread.status, unread.headline.params["a"].key) == (Status.UNKNOWN, "recovery.errors_uncounted")
    failing = recovery.judge_errors(queues() | tries(failed=90), make_given())
    assert failing.status is Status.CRITICAL, "they could only make it worse"
    words(unread)


@pytest.mark.parametrize("frame", ["tries", "notification_flows", "notifications"])
def test_a_rate_of_tries_of_which_a_part_was_not_read_is_unknown(frame: str) -> None:
    frames = FRAMES["6.2"] | tries(failed=90)
    found = recovery.judge_errors({name: f for name, f in frames.items() if name != frame}, make_given())
    assert found.status is Status.UNKNOWN, words(found)


@pytest.mark.parametrize(
    ("failed", "place", "sections"),
    [(90, Status.OK, ("4.5",)), (0, Status.OK, ()), (90, Status.CRITICAL, ())],  # what is stuck names its own
)
def test_tries_that_fail_while_nothing_waits_have_the_log_read(
    failed: int, place: Status, sections: tuple[str, ...]
) -> None:
    criteria = FRAMES | {"6.2": FRAMES["6.2"] | tries(failed=failed)}
    frames = {f"{step}.{name}": frame for step, own in criteria.items() for name, frame in own.items()}
    frames |= {f"{step}.asked": row(step=step) for step in criteria}
    placed = Finding("3.2", place, say("response.not_stuck"))
    found = CHECKS["3.4"].judge(frames, make_given(earlier=(placed,)))
    assert found.next_sections == sections, words(found)


def test_nothing_succeeds_although_work_is_due() -> None:
    frames = queues(due=5) | {"notification_flows": flows(), **tries(), "letters": letters()}
    found = recovery.judge_errors(frames, make_given())
    assert found.status is Status.WARNING
    assert found.headline.params["a"].key == "recovery.errors_unknown"


def test_rows_that_wait_for_another_try_are_not_recovered() -> None:
    """Ten tries end after minutes: what succeeds or fails next is not known yet."""
    frames = queues(due=0, waiting_retry=7) | {"notification_flows": flows(), "letters": letters()}
    found = recovery.judge_errors(frames | tries(waiting=7), make_given())
    assert (found.status, found.value("delivery.look_again")) == (Status.WARNING, 20.0)
    assert found.headline.params["a"].key == "recovery.errors_waiting"
    assert "7 rows wait for another try" in words(found)
    idle = recovery.judge_errors(frames | tries(), make_given())
    assert idle.status is Status.OK


@pytest.mark.parametrize(
    ("came", "status"),
    [
        ([], Status.OK),
        ([(25, 10), (40, 20), (55, 20)], Status.OK),  # a burst that is over
        ([(5, 1)], Status.WARNING),
        ([(3, 10), (20, 5), (200, 2)], Status.CRITICAL),
        ([(50, 1), (110, 1), (170, 1), (230, 1)], Status.WARNING),  # one a minute: 50 s of silence prove nothing
        ([(200, 1), (260, 1), (320, 1), (380, 1)], Status.OK),
        ([(60, 30), (161, 50)], Status.WARNING),  # batches of 100 s: the next one comes in 40 s
    ],
)
def test_dead_letters_are_over_when_silence_outlasts_their_gaps(came: list[tuple[float, int]], status: Status) -> None:
    found = recovery.judge_dead_letters({"letters": letters(*came), "outbox_failed": outbox_failed()}, make_given())
    assert found.status is status, words(found)


@pytest.mark.parametrize(
    ("failed", "status"),
    [
        (outbox_failed(3, last=ago(2)), Status.WARNING),
        (outbox_failed(3, last=ago(40)), Status.OK),
        (outbox_failed(3, newest=ago(100)), Status.WARNING),  # no commit times: it may have failed just now
        (outbox_failed(3, newest=ago(900)), Status.OK),
    ],
)
def test_events_that_the_relay_gave_up(failed: pd.DataFrame, status: Status) -> None:
    found = recovery.judge_dead_letters({"letters": letters(), "outbox_failed": failed}, make_given())
    expect(found, status, notes={"recovery.outbox_stays"})


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"delivery": cohort(60, 60, 1.7)}, Status.CRITICAL),  # 40 of 100 never reached the notifications
        ({"delivery": cohort(100, 80, 1.7)}, Status.WARNING),
        ({"delivery": cohort(100, 30, 1.7)}, Status.CRITICAL),
        ({"delivery": cohort(100, 100, 24.0)}, Status.WARNING),
        ({"publish": cohort(55, 55, 9.0)}, Status.CRITICAL),
        ({"publish": cohort(55, 55, 9.0), "outbox_before": row(p95=40.0)}, Status.WARNING),
        ({"publish": cohort(0, 0, None), "accepted": cohort(0, 0, None), "delivery": cohort(0, 0, None)}, Status.OK),
    ],
)
def test_the_newest_events_tell(changes: Frames, status: Status) -> None:
    frames = FRAMES["6.4"] | changes
    if "delivery" in changes and changes["delivery"]["n"].iloc[0] == 60:
        frames |= {"delivery": cohort(60, 40, 1.7)}
    expect(recovery.judge_slis(frames, make_given()), status)


def test_duplicates_of_long_ago_are_not_new() -> None:
    def duplicates(s: float) -> Frames:
        return {"duplicates": row(event_id="e", n=2, first=ago(900), last=ago(s))}

    assert recovery.judge_duplicates(duplicates(5), make_given()).status is Status.CRITICAL
    assert recovery.judge_duplicates(duplicates(500), make_given()).status is Status.WARNING


def test_the_chart_shows_three_flows() -> None:
    chart = recovery.chart_flows(FRAMES["6.1"], make_given())
    assert chart is not None and chart.alt.params["sent"] == 300
    assert [flow.label for flow in chart.series] == ["written to the outbox", "published", "sent"]
    assert recovery.chart_flows({}, make_given()) is None


# On real servers ---------------------------------------------------------------------------------------------


def test_idle_is_recovered(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with bound(broker):
        found = run(servers, *STEPS, window_minutes=15)
    assert set(statuses(found).values()) == {Status.OK}, {s: words(f) for s, f in found.items()}


def test_a_past_incident_in_the_window_keeps_nothing_red(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 60)
    events(db, 200, 300, sent_after=230)  # delivered late, a minute ago
    events(db, 20, 400, status="FAILED", tries=10, dead=90)
    events(db, 10, 200, status="PENDING", tries=7, again=40)  # failed long ago, still waiting
    with bound(broker):
        found = run(servers, *STEPS, window_minutes=15)
    assert set(statuses(found).values()) == {Status.OK}, {s: words(f) for s, f in found.items()}
    assert found["6.2"].value("delivery.waiting_retry") == 10
    assert found["6.3"].value("dlq.new") == 20


def test_what_was_given_up_at_once_is_not_delivered(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    """With few tries, rows are FAILED within the span of the newest events; they have no time of sending."""
    traffic(db, 60, until=29)
    for second in range(10, 29):
        events(db, 5, second, status="FAILED", tries=1, sent_after=None, dead=second - 1)
    with bound(broker):
        found = run(servers, "6.4", window_minutes=15)["6.4"]
    assert (found.status, found.value("delivery.done")) == (Status.CRITICAL, 0)


def test_a_backlog_that_drains_is_met(servers: Servers, db: psycopg.Connection) -> None:
    events(db, 60, 100, status="PENDING")
    for second in range(1, 50):
        events(db, 5, second, status="PENDING")
        events(db, 20, 300 + second, sent_after=300)
    found = run(servers, "6.1", window_minutes=15)["6.1"]
    assert found.headline.params["a"].key == "recovery.queue_draining", words(found)
    assert found.status is Status.OK


def test_side_effects_are_found(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    events(db, 1, 200)
    traffic(db, 30)
    events(db, 2, 100, **UNPROCESSED)
    found = run(servers, "6.5", window_minutes=15)["6.5"]
    expect(found, Status.CRITICAL, sections=("5.3",), values={"lost": 2}, notes={"broker.no_client"})
    db.execute(
        "INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at, payload_json,"
        " status, created_at, sent_at) SELECT gen_random_uuid(), event_id, user_id, type, occurred_at, payload_json,"
        " status, created_at, sent_at FROM notification.notifications"
    )
    assert run(servers, "6.5", window_minutes=15)["6.5"].value("duplicates") == 141


def test_the_moment_the_relay_gave_up_is_exact_where_commit_times_are_kept(
    servers: Servers, db: psycopg.Connection
) -> None:
    events(db, 2, 3000, outbox="FAILED", publish_tries=10, error="outbox payload parse failure", **UNPROCESSED)
    expect(run(servers, "6.3", window_minutes=15)["6.3"], Status.WARNING, values={"outbox.failed_total": 2})


def test_an_outbox_that_was_not_read_is_not_called_well() -> None:
    lost = SourceError("postgres", Reason.TIMEOUT, "a lock on outbox_events", "lock_not_available")
    found = CHECKS["6.3"].finding({"letters": letters(), NOT_READ: failure_frame({"outbox": lost})}, make_given())
    expect(found, Status.UNKNOWN, says="a lock on outbox_events")


def test_of_many_events_that_were_given_up_the_newest_count(servers: Servers, db: psycopg.Connection) -> None:
    insert = (
        "INSERT INTO entitlement.outbox_events (event_id, event_type, aggregate_key, payload, status, created_at)"
        " SELECT gen_random_uuid(), 'EntitlementGranted', 'u:s', '{}', 'FAILED', now() - %s * interval '1 day'"
        " FROM generate_series(1, %s)"
    )
    db.execute(insert, [2, 20000])
    db.execute(insert, [0, 1])
    found = run(servers, "6.3", window_minutes=15)["6.3"]
    newest = found.frames["outbox_failed"]["newest"].iloc[0]
    assert (pd.Timestamp.now(tz="UTC") - newest).total_seconds() < 600


# Waiting for it ----------------------------------------------------------------------------------------------


def start(servers: Servers, output: Path, *arguments: str) -> subprocess.Popen[str]:
    where = ("--incident", "W", "--output", str(output))
    return command.start("run", *arguments, *where, env={**os.environ, **servers.env})


@pytest.mark.slow
def test_it_is_waited_for_until_it_is_green(
    servers: Servers, db: psycopg.Connection, broker: str, tmp_path: Path
) -> None:
    events(db, 600, 60, status="PENDING")
    with bound(broker):
        waiting = start(servers, tmp_path, "6", "--wait", "2m", "-p", "window_minutes=15", "--json", "--lang", "ja")
        assert waiting.stderr is not None
        told = [waiting.stderr.readline()]
        db.execute("UPDATE notification.notifications SET status = 'SENT', sent_at = now(), next_retry_at = NULL")
        out, err = waiting.communicate(timeout=180)
    said = json.loads(out)
    assert waiting.returncode == said["exit_code"] == 0, err
    looks = [e for e in Archive(str(tmp_path), "W").artifacts() if e.get("section") == "6"]
    assert len(looks) >= 2 and looks[0]["status"] != "OK" and looks[-1]["status"] == "OK"  # each look is kept
    told += err.splitlines()
    assert len(told) == len(looks) - 1 and all("秒後に再確認します" in line for line in told), err


@pytest.mark.slow
def test_what_does_not_recover_in_time_has_its_own_exit_code(
    servers: Servers, db: psycopg.Connection, broker: str, tmp_path: Path
) -> None:
    events(db, 600, 60, status="PENDING")
    waiting = start(servers, tmp_path, "6", "--wait", "1s", "-p", "window_minutes=15")
    out, err = waiting.communicate(timeout=180)
    assert waiting.returncode == Status.CRITICAL.value, out + err
    assert out.count("6.1 ") == 1  # the last look alone is printed


@pytest.mark.slow
def test_a_wait_that_is_interrupted_ends(servers: Servers, db: psycopg.Connection, broker: str, tmp_path: Path) -> None:
    events(db, 600, 60, status="PENDING")
    waiting = start(servers, tmp_path, "6", "--wait", "5m", "-p", "window_minutes=15", "--json")
    assert waiting.stderr is not None
    first = waiting.stderr.readline()
    assert "CRITICAL: checking again in" in first, first
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out, err.strip()) == (130, "", "runbook: interrupted")
    assert not Archive(str(tmp_path), "W").partials()
