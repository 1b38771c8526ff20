"""Section 3: judges on frames of every shape, and the steps on real servers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import NOW, ago, bound, events, make_given, odd_frames, run, statuses, traffic, weight, words

from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    Proposal,
    Reason,
    Signal,
    Status,
    Value,
    judged,
    replace,
    say,
)
from runbook_lib.packs.entitlement.checks import response
from runbook_lib.packs.entitlement.sandbox.servers import Servers
from runbook_lib.view import record as records
from runbook_lib.view.charts import Chart

STEPS = ("3.1", "3.2", "3.3", "3.4", "3.5")


def per_minute(*newest_first: int, slow: int = 0) -> pd.DataFrame:
    minutes = [NOW.floor("min") - pd.Timedelta(minutes=i + 1) for i in range(len(newest_first))]
    return pd.DataFrame({"minute": minutes, "n": newest_first, "slow": slow})


def affected(**places: tuple[int, int, float]) -> pd.DataFrame:
    rows = [(place, *seen) for place, seen in places.items()]
    total = ("all", sum(r[1] for r in rows), sum(r[2] for r in rows), max((r[3] for r in rows), default=None))
    return pd.DataFrame([*rows, total], columns=["place", "events", "users", "oldest_s"])


def impact(**changes: pd.DataFrame) -> Frames:
    usual = {
        "affected": affected(),
        "outbox": pd.DataFrame([{"due": 0, "failed": 0, "oldest_due_s": 0.0}]),
        "outbox_age": pd.DataFrame([{"n": 0, "p95": None, "oldest_s": None}]),
        "publish_delay": pd.DataFrame([{"n": 1500, "p95": 1.0}]),
        "notifications": pd.DataFrame([{"due": 0, "expired": 0}]),
        "delivered": pd.DataFrame([{"n": 1500, "p95": 1.7, "longest": 3.0}]),
        "given_up": pd.DataFrame([{"events": 0, "users": 0}]),
        "given_up_messages": pd.DataFrame([{"n": 0}]),
        "sent": per_minute(*[300] * 14),
        "dead": per_minute(),
        "published": per_minute(*[300] * 14),
        "processed": per_minute(*[300] * 14),
    }
    return usual | changes


# Judges ------------------------------------------------------------------------------------------------------


def test_nothing_missed_is_ok() -> None:
    found = response.judge_impact(impact(), make_given())
    assert found.status is Status.OK
    assert found.value("impact.onset") is None
    words(found)


@settings(max_examples=40)
@given(data=st.data())
def test_impact_is_total(data: st.DataObject) -> None:
    frames = data.draw(odd_frames(impact()))
    words(response.judge_impact(frames, make_given()))
    response.draw_flows(frames, make_given())
    assert response.judge_impact({}, make_given()).status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("changes", "slo"),
    [
        ({"publish_delay": pd.DataFrame([{"n": 9, "p95": 7.0}])}, "ENT-C"),
        ({"outbox_age": pd.DataFrame([{"n": 9, "p95": 20.0}])}, "ENT-D"),
        ({"outbox": pd.DataFrame([{"due": 0, "failed": 1, "oldest_due_s": 0.0}])}, "ENT-E"),
        ({"given_up": pd.DataFrame([{"events": 9, "users": 9}])}, "NOTI-A"),
        ({"delivered": pd.DataFrame([{"n": 9, "p95": 44.0}])}, "NOTI-B"),
        ({"affected": affected(broker=(300, 200, 61.0))}, "NOTI-B"),
        ({"notifications": pd.DataFrame([{"due": 40, "expired": 20}])}, "NOTI-C"),
        ({"given_up_messages": pd.DataFrame([{"n": 1}])}, "NOTI-D"),
    ],
)
def test_a_missed_objective_is_named(changes: Frames, slo: str) -> None:
    frames = impact(**changes)
    table = response.sli_rows(frames, make_given()).set_index("slo")
    assert table.loc[slo, "met"] is False
    found = response.judge_impact(frames, make_given())
    assert found.status is Status.CRITICAL
    assert slo in words(found)


def test_what_cannot_be_seen_is_a_row_and_does_not_count() -> None:
    frames = impact()
    frames["dead"] = per_minute()
    table = response.sli_rows(frames, make_given()).set_index("slo")
    assert list(table.index[table["met"].isna()]) == ["ENT-A", "ENT-B"]
    assert response.judge_impact(frames, make_given()).status is Status.OK


def test_the_onset_is_the_oldest_that_waits_else_the_change_of_a_flow() -> None:
    frames = impact(affected=affected(notification=(70, 60, 21.0), outbox_failed=(1, 1, 9000.0)))
    begin, how = response.onset(frames, make_given())
    assert how == "oldest"
    assert begin is not None
    assert (NOW - begin).total_seconds() == 21.0
    begin, how = response.onset(impact(sent=per_minute(*[0] * 4, *[300] * 10)), make_given())
    assert (how, begin) == ("change", NOW.floor("min") - pd.Timedelta(minutes=4))
    slow = per_minute(*[0] * 4, *[300] * 10)
    slow["first_slow"] = pd.Series([ago(100), ago(219)], index=[1, 2])
    assert response.onset(impact(sent=slow), make_given()) == (ago(219), "slow")
    burst = impact(dead=per_minute(0, 0, 40, 30, *[0] * 10))
    assert response.onset(burst, make_given())[0] == NOW.floor("min") - pd.Timedelta(minutes=4)


def test_what_is_over_says_so_and_does_not_alarm() -> None:
    late = {"delivered": pd.DataFrame([{"n": 1500, "p95": 42.0, "longest": 60.0}])}
    sent = per_minute(*[300] * 14, slow=200)
    sent["last_slow"] = pd.Series([ago(75), ago(130)], index=[0, 1])
    found = response.judge_impact(impact(sent=sent, **late), make_given())
    assert (found.status, found.headline.key) == (Status.WARNING, "response.impact_over")
    assert found.headline.params["ago"] == 75
    words(found)
    sent["last_slow"] = pd.Series([ago(12)], index=[0])
    just = response.judge_impact(impact(sent=sent, **late), make_given())
    assert (just.status, just.value("impact.look_again")) == (Status.WARNING, 18.0)
    goes_on = impact(sent=sent, affected=affected(notification=(3, 3, 21.0)), **late)
    given_up = impact(sent=sent, given_up=pd.DataFrame([{"events": 2, "users": 1}]), **late)
    slow = {"publish_delay": pd.DataFrame([{"n": 9, "p95": 7.0}])}
    still = impact(**slow, publish_delay_lately=pd.DataFrame([{"n": 3, "p95": 6.0}]))
    again = impact(**slow, publish_delay_lately=pd.DataFrame([{"n": 3, "p95": 0.6}]))
    assert response.judge_impact(again, make_given()).headline.key == "response.impact_over"
    for frames in (goes_on, given_up, still):
        assert response.judge_impact(frames, make_given()).status is Status.CRITICAL


@pytest.mark.parametrize(
    ("silent_s", "published", "status"),
    [
        (45, [300] * 14, Status.WARNING),
        (12, [300] * 14, Status.OK),  # too short for anybody's concern
        (45, [3] * 14, Status.OK),  # two or three should have come
        (45, [300, 0] * 7, Status.OK),  # it pauses at times
        (200, [0, 0, 0, *[300] * 11], Status.WARNING),
    ],
)
def test_a_producer_that_falls_silent_is_no_quiet_hour(silent_s: float, published: list[int], status: Status) -> None:
    last = pd.DataFrame([{"now": NOW, "last_event": ago(silent_s)}])
    found = response.judge_impact(impact(last_event=last, published=per_minute(*published)), make_given())
    assert found.status is status
    assert [h.name for h in found.hops] == (["producer"] if status is Status.WARNING else [])
    words(found)


def test_a_young_alert_is_looked_at_again_where_nothing_shows_yet() -> None:
    young = make_given(detected_by="alert", detected_at=ago(8))
    found = response.judge_impact(impact(), young)
    assert (found.status, found.value("impact.look_again")) == (Status.OK, 52.0)
    words(found)
    for frames, told in ((impact(), make_given(detected_at=ago(90))), (impact(), make_given()),
                         (impact(affected=affected(notification=(3, 3, 21.0))), young)):  # fmt: skip
        assert response.judge_impact(frames, told).value("impact.look_again") is None


def test_the_time_to_detect_is_kept() -> None:
    frames = impact(affected=affected(notification=(70, 60, 120.0)))
    found = response.judge_impact(frames, make_given(detected_by="alert", detected_at=ago(30)))
    assert found.value("ttd") == 90.0
    assert found.value("detected_by") == "alert"
    assert "response.detected" in {n.key for n in found.notes}
    words(found)


def test_burn_rates_take_the_lower_of_both_windows() -> None:
    late = impact(sent=per_minute(*[300] * 4, slow=280))
    fast, slow = response.burn_rates(late, make_given()) or (None, None)
    assert fast is not None
    assert slow is not None
    assert fast > 14.4
    assert response.burn_rates({}, make_given()) is None
    over = per_minute(*[300] * 300)
    over.loc[over.index >= 5, "slow"] = 300  # slow before, in time now
    assert (response.burn_rates(impact(sent=over), make_given()) or (9, 9))[0] < 1


def test_the_chart_marks_the_beginning() -> None:
    frames = impact(affected=affected(notification=(700, 60, 121.0)))
    chart = response.draw_flows(frames, make_given())
    assert isinstance(chart, Chart)
    assert chart.alt.params["began"].startswith("2025-01-31T02:58")
    assert response.draw_flows({}, make_given()) is None


def part(step: str, status: Status = Status.OK, **rest: Any) -> Finding:
    return replace(judged(say("ui.no_action"), at_least=status, **rest), step=step)


def place(stuck_at: str | None, status: Status, *commands: str) -> Finding:
    proposals = tuple(Proposal("restart_notification", c, "5.1", {"name": "notification"}) for c in commands)
    return replace(
        judged(
            say("response.not_stuck"),
            [Value("stuck_at", stuck_at)],
            at_least=status,
            proposals=proposals,
            signals=(Signal("FM-NOTI-06", 0.9), Signal("FM-NOTI-03", 0.2)),
        ),
        step="3.2",
    )


@pytest.mark.parametrize(
    ("earlier", "status", "key"),
    [
        ((), Status.UNKNOWN, "needs_place"),
        ((place(None, Status.OK),), Status.OK, "do_nothing"),
        ((place("delivery_worker", Status.CRITICAL, "kubectl a", "kubectl b"),), Status.WARNING, "do"),
        ((place("database", Status.CRITICAL),), Status.WARNING, "do_look"),
        ((place(None, Status.UNKNOWN),), Status.WARNING, "do_look"),
    ],
)
def test_the_smallest_step(earlier: tuple[Finding, ...], status: Status, key: str) -> None:
    found = response.judge_recovery({}, make_given(earlier=earlier))
    assert (found.status, found.headline.key) == (status, f"response.{key}")
    assert len(found.proposals) <= 1
    words(found)


def test_the_record_is_ready_to_paste() -> None:
    begun = response.judge_impact(
        impact(affected=affected(notification=(70, 60, 120.0))), make_given(detected_by="slo", detected_at=ago(9))
    )
    given_ = make_given(earlier=(replace(begun, step="3.1"), place("delivery_worker", Status.CRITICAL, "kubectl a")))
    kept = response.record(given_)
    found = response.judge_record({"record": kept}, given_)
    assert found.status is Status.OK
    line = dict(zip(kept["what"], kept["value"], strict=True))
    assert line["stuck_at"] == "delivery_worker"
    assert line["failure_modes"].startswith("FM-NOTI-06")
    assert line["events_waiting"] == "70"
    assert line["ttd_s"] == "111"
    words(found)
    assert response.judge_record({"record": response.record(make_given())}, make_given()).reason is Reason.SKIPPED
    assert response.judge_record({}, make_given()).status is Status.UNKNOWN


def test_without_a_part_the_place_is_unknown() -> None:
    found = response.judge_place({}, make_given())
    assert found.status is Status.UNKNOWN
    words(found)
    assert response.judge_criteria({}, make_given()).status is Status.UNKNOWN


# On real servers ---------------------------------------------------------------------------------------------


def test_what_is_broken_while_all_flows_is_not_called_well(
    servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    """Neither a missing key nor letters apart hold anything up: invariants 1 and 3."""
    with bound(broker):
        traffic(db, 60)
        db.execute("ALTER TABLE notification.processed_events DROP CONSTRAINT processed_events_pkey")
        keyless = run(servers, "3.2")["3.2"]
        db.execute("ALTER TABLE notification.processed_events ADD PRIMARY KEY (event_id)")
        db.execute(
            "UPDATE notification.notifications SET status = 'FAILED', sent_at = NULL WHERE notification_id ="
            " (SELECT notification_id FROM notification.notifications WHERE status = 'SENT' LIMIT 1)"
        )
        apart = run(servers, "3.2")["3.2"]
    for found, mode, section in ((keyless, "FM-NOTI-01", "4.2"), (apart, "FM-NOTI-05", "5.3")):
        assert (found.status, found.headline.key) == (Status.CRITICAL, "response.flows_but")
        assert found.value("stuck_at") is None
        assert weight(found, mode) > 0.5 and section in found.next_sections
        words(found)


def test_idle_and_healthy_are_ok(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with bound(broker):
        assert set(statuses(run(servers, *STEPS)).values()) == {Status.OK}
        traffic(db, 180)
        found = run(servers, *STEPS)
    assert set(statuses(found).values()) == {Status.OK}, {s: words(f) for s, f in found.items()}
    assert all(isinstance(h, Hop) for h in found["3.2"].hops)
    assert not found["3.2"].next_sections


def test_a_worker_that_stopped(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 120, until=20)
    for second in range(2, 20):
        events(db, 5, second, status="PENDING")
    with bound(broker):
        found = run(servers, *STEPS, detected_by="user_report", detected_at=pd.Timestamp.now("UTC").isoformat())
    assert found["3.1"].value("impact.users") == 5
    assert found["3.1"].status is Status.CRITICAL
    place_ = found["3.2"]
    assert place_.value("stuck_at") == "delivery_worker"
    assert place_.next_sections == ("4.1", "4.3")
    assert weight(place_, "FM-NOTI-06") > 0.5
    assert found["3.3"].proposals[0].command.endswith("rollout restart deploy/notification")
    assert found["3.4"].status is Status.CRITICAL
    assert {n.key for n in found["3.4"].notes} == {"response.criterion_met", "response.criterion_unmet"}
    assert "delivery_worker" in str(found["3.5"].notes[0].params["stuck_at"])


def test_the_place_can_be_judged_again_from_its_record(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    for second in range(2, 30):
        events(db, 5, second, outbox="PENDING", processed=False, status=None)
    before = run(servers, "3.1", "3.2", nats_url="nats://127.0.0.1:9")["3.2"]
    stored = json.loads(json.dumps(records.finding(before)))
    again = response.judge_place(records.frames_from_json(stored["frames"]), make_given())
    assert again.value("stuck_at") is before.value("stuck_at") is None
    assert again.headline.key == before.headline.key == "response.undecided"
    assert "outbox relay / JetStream" in words(before) and before.proposals == ()
    assert again.status is before.status
    assert "2" in before.next_sections


def test_nothing_reachable_leads_to_section_2(servers: Servers) -> None:
    found = run(servers, *STEPS, database_url="postgresql://a:b@127.0.0.1:9/c", nats_url="nats://127.0.0.1:9")
    assert found["3.1"].reason is Reason.UNREACHABLE
    assert "2" in found["3.2"].next_sections
    assert found["3.2"].status is not Status.OK


def test_lost_events_lead_to_consistency(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 60)
    events(db, 4, 100, processed=False, status=None)
    with bound(broker):
        found = run(servers, "3.1", "3.2")["3.2"]
    assert "5.3" in found.next_sections


@contextmanager
def prometheus(success: float) -> Iterator[str]:
    """Something that answers queries as Prometheus does: all requests, the failed ones, and a quantile."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)["query"][0]
            value = 0.4 if "quantile" in query else 100 - success if "5.." in query else 100.0
            body = {"status": "success", "data": {"result": [{"metric": {}, "value": [0, str(value)]}]}}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_with_prometheus_the_api_is_judged_too(servers: Servers, db: psycopg.Connection) -> None:
    with prometheus(success=99.0) as url:
        found = run(servers, "3.1", prometheus_url=url)["3.1"]
    table = found.frames["slis"].set_index("slo")
    assert table.loc["ENT-A", "now"] == 99.0
    assert found.status is Status.CRITICAL
    assert "ENT-A" in words(found)
    assert "ENT-B" not in words(found)
