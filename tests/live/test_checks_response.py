"""Section 3: judges on frames of every shape, and the steps on real servers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import psycopg
import pytest

from runbook_lib.book import messages
from runbook_lib.checks import triage
from runbook_lib.checks.check import checks
from runbook_lib.checks.context import JudgeInput
from runbook_lib.gameday.sandbox.servers import Servers
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    OutageEnd,
    Proposal,
    Reason,
    Signal,
    Status,
    Value,
    judged,
    replace,
    say,
)
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import response
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.prometheus import Prometheus
from runbook_lib.sources.source import ReadCost, SourceError
from runbook_lib.store import record as records
from tests.kit.frames.response import affected, impact, per_minute
from tests.kit.steps import (
    NOW,
    UNPROCESSED,
    ago,
    bound,
    events,
    expect,
    got_through,
    make_given,
    run,
    statuses,
    through,
    traffic,
    weight,
    words,
)
from tests.kit.web import reply, web

CHECKS = checks()
STEPS = ("3.1", "3.2", "3.3", "3.4", "3.5")


# Judges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "slo"),
    [
        ({"publish_delay": row(n=9, p95=7.0)}, "ENT-C"),
        ({"outbox_age": row(n=9, p95=20.0)}, "ENT-D"),
        ({"outbox": row(due=0, failed=1, oldest_due_s=0.0)}, "ENT-E"),
        ({"given_up": row(events=9, users=9)}, "NOTI-A"),
        ({"delivered": row(n=9, p95=44.0)}, "NOTI-B"),
        ({"affected": affected(broker=(300, 200, 61.0))}, "NOTI-B"),
        ({"notifications": row(due=40, expired=20)}, "NOTI-C"),
        ({"given_up_messages": row(n=1)}, "NOTI-D"),
    ],
)
def test_a_missed_objective_is_named(changes: Frames, slo: str) -> None:
    frames = impact(**changes)
    table = response.sli_rows(frames, make_given()).set_index("slo")
    assert table.loc[slo, "met"] is False
    assert table.loc[slo, "why"] == ("oldest_waiting" if "affected" in changes else "")
    found = response.judge_impact(frames, make_given())
    assert found.status is Status.CRITICAL
    assert slo in words(found)


def test_what_may_have_been_processed_is_not_said_to_wait() -> None:
    frames = impact(affected=affected(broker=(300, 200, 3000.0), notification=(3, 2, 21.0)))
    deleted = {
        "deletions": row(age_d=0.1, inserted=9000, deleted=300),
        "consumer": row(pending=0, unacknowledged=0),
    }
    expect(response.judge_impact(frames, make_given()), Status.CRITICAL, values={"impact.events": 303})
    found = response.judge_impact(frames | deleted, make_given())
    assert (found.status, found.value("impact.events"), found.value("impact.users")) == (Status.WARNING, 3, 2)
    assert found.headline.key == "response.impact_begins" and "response.doubtful" in {n.key for n in found.notes}
    alone = impact(affected=affected(broker=(300, 200, 3000.0))) | deleted
    found = response.judge_impact(alone, make_given())
    assert (found.status, found.headline.key) == (Status.UNKNOWN, "response.doubtful")
    assert not found.hops[0].late and found.next_sections == ("5.3",)
    few = {"deletions": row(age_d=0.1, inserted=9000, deleted=299)}
    held = {"consumer": row(pending=260, unacknowledged=40)}
    for changes in (few, held):
        expect(response.judge_impact(alone | changes, make_given()), Status.CRITICAL, values={"impact.events": 300})
    held = {"consumer": row(pending=5, unacknowledged=1)}
    some = response.judge_impact(alone | held, make_given())
    expect(some, values={"impact.events": 6, "impact.users": 6}, notes={"response.doubtful"})


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


def test_the_onset_stays_while_what_waited_longest_is_given_up() -> None:
    """Half an hour of an outage: a row waits for some minutes, and is then a dead letter."""
    frames = impact(
        affected=affected(notification=(70, 60, 300.0)), sent=per_minute(*[0] * 10, *[300] * 19),
        dead=per_minute(*[40] * 5, *[0] * 24), processed=per_minute(*[300] * 29), published=per_minute(*[300] * 29),
    )  # fmt: skip
    given = make_given(window_minutes=30)
    assert response.onset(frames, given) == (NOW.floor("min") - pd.Timedelta(minutes=10), "change")
    early = replace(given, detected_at=NOW - pd.Timedelta(minutes=20))
    assert response.judge_impact(frames, early).value("ttd") is None, "detected before this onset"
    assert response.onset(frames | {"dead": per_minute(*[0] * 29)}, given) == (ago(300), "oldest")


def test_what_is_over_says_so_and_does_not_alarm() -> None:
    late = {"delivered": row(n=1500, p95=42.0, longest=60.0)}
    sent = per_minute(*[300] * 14, slow=200)
    sent["last_slow"] = pd.Series([ago(75), ago(130)], index=[0, 1])
    found = response.judge_impact(impact(sent=sent, **late, **got_through(75, 80)), make_given())
    assert (found.status, found.headline.key) == (Status.WARNING, "response.impact_over")
    assert found.headline.params["ago"] == 75
    assert found.ended and (found.ended.since, found.ended.by.key) == (ago(75), "outage.sent_in_time")
    words(found)
    sent["last_slow"] = pd.Series([ago(12)], index=[0])
    just = response.judge_impact(impact(sent=sent, **late, **got_through(12, 15)), make_given())
    assert (just.status, just.value("impact.look_again")) == (Status.WARNING, 18.0)
    assert (just.headline.key, just.ended) == ("response.impact_passed", None)
    words(just)
    goes_on = impact(sent=sent, affected=affected(notification=(3, 3, 21.0)), **late)
    given_up = impact(sent=sent, given_up=row(events=2, users=1), **late)
    slow = {"publish_delay": row(n=9, p95=7.0)}
    still = impact(**slow, publish_delay_lately=row(n=3, p95=6.0))
    lately = {"publish_delay_lately": row(n=3, p95=0.6)}
    again = response.judge_impact(impact(**slow, **lately, **got_through(published=(50, 55))), make_given())
    assert again.headline.key == "response.impact_over"
    assert again.ended and again.ended.by.key == "outage.published"
    # Without a question that the cost gate refused, nothing is proven and nothing alarms.
    expect(response.judge_impact(impact(**slow, **lately), make_given()), Status.WARNING, "response.impact_passed")
    for frames in (goes_on, given_up, still):
        assert response.judge_impact(frames, make_given()).status is Status.CRITICAL


LETTERS = {"given_up": row(events=40, users=30), "delivered": row(n=900, p95=2.0)}


def test_dead_letters_of_an_outage_that_is_over_are_told_and_do_not_alarm() -> None:
    left = {**LETTERS, **got_through(52, 60, tried=1)}
    found = response.judge_impact(impact(**left), make_given())
    assert (found.status, found.headline.key) == (Status.WARNING, "response.impact_over")
    assert found.ended and found.ended.by.key == "outage.sent_again"
    expect(found, sections=("4.4",))
    # Those of the subscriber are of messages, and nothing that was sent tells of these.
    messages_too = left | {"given_up_messages": row(n=2)}
    assert response.judge_impact(impact(**messages_too), make_given()).status is Status.CRITICAL


@pytest.mark.parametrize(
    ("why", "frames"),
    [
        ("the last was just now", got_through(21, tried=1)),
        ("it has paused for as long before", got_through(52, 60, 130, tried=1)),
        ("nothing is sent any more", got_through(52, 60, tried=1, flowing=False)),
        ("nothing is published any more", got_through(52, tried=1) | {"published_steps": through(flowing=False)}),
        ("some of those that are tried still fail", got_through(*range(52, 60), *range(5), tried=1)),
        ("nothing is known of what was sent", {"published_steps": through(of="published")}),
        ("somebody waits", got_through(52, tried=1) | {"affected": affected(notification=(3, 3, 12.0))}),
    ],
)
def test_what_only_pauses_or_is_followed_by_another_fault_is_not_called_over(why: str, frames: Frames) -> None:
    found = response.judge_impact(impact(**LETTERS, **frames), make_given())
    assert (found.status, found.ended) == (Status.CRITICAL, None), why


def test_two_outages_far_apart_are_no_pause_of_one() -> None:
    assert response.judge_impact(impact(**LETTERS, **got_through(52, 200, tried=1)), make_given()).ended
    longer = response.judge_impact(impact(**LETTERS, **got_through(95, 145, tried=1)), make_given())
    assert longer.ended, "it has been quiet for longer than it had paused"
    other = response.judge_impact(
        impact(**LETTERS, **got_through(52, published=(230, 240), tried=1)), make_given()
    ).ended
    assert other and other.by.key == "outage.sent_again", "what is over for long does not show that this is"


def test_while_nothing_gets_through_an_outage_does_not_pause() -> None:
    """The first are late when it begins, the others when it has ended: nothing was published in between."""
    steps = got_through(46, published=(46, 50, 115))
    down = steps["published_steps"]["tens_ago"].between(6, 10)
    steps["published_steps"] = steps["published_steps"][~down]
    slow = {"publish_delay": row(n=9, p95=34.0)}
    lately = {"publish_delay_lately": row(n=3, p95=0.6)}
    found = response.judge_impact(impact(**slow, **lately, **steps), make_given())
    assert found.ended and found.ended.by.key == "outage.published"


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
    last = row(now=NOW, last_event=ago(silent_s))
    found = response.judge_impact(impact(last_event=last, published=per_minute(*published)), make_given())
    assert found.status is status
    broken = [h.name for h in found.hops if h != Hop(h.name, past=h.past)]
    assert broken == (["producer"] if status is Status.WARNING else [])
    words(found)


@pytest.mark.parametrize(
    ("before", "status", "key"),
    [
        ([0] * 30 + [300] * 14, Status.WARNING, "response.nothing_comes"),
        ([0] * 30 + [300, 300, *[0] * 12], Status.OK, "response.no_impact"),  # it came in a burst
        (None, Status.UNKNOWN, "response.silence_unclear"),
    ],
)
def test_a_silence_that_is_longer_than_the_window_is_still_one(
    before: list[int] | None, status: Status, key: str
) -> None:
    """The rate that counts is the one before the newest event, however long ago that is."""
    frames = impact(last_event=row(now=NOW, last_event=ago(30 * 60)), published=per_minute())
    frames |= {name: per_minute(*[0] * 14) for name in ("sent", "processed", "created")}
    if before is not None:
        frames["published_before"] = per_minute(*before)
    found = response.judge_impact(frames, make_given())
    assert (found.status, found.headline.key) == (status, key), words(found)


@pytest.mark.parametrize(
    ("places", "since"),
    [
        ({"broker": (70, 60, 600.0)}, True),
        ({"broker": (900, 60, 899.0)}, False),  # as long as the window: who knows what waits before it
        ({"notification": (70, 60, 5000.0)}, True),
        ({"notification": (20000, 60, 600.0)}, False),  # the query reads no more
    ],
)
def test_an_onset_is_told_if_nothing_older_may_wait(places: dict[str, tuple[int, int, float]], since: bool) -> None:
    found = response.judge_impact(impact(affected=affected(**places)), make_given(detected_at=ago(30)))
    assert (found.value("impact.onset") is not None, found.value("ttd") is not None) == (since, since)
    assert ("response.onset_before" in {n.key for n in found.notes}) is not since
    words(found)


def test_events_that_were_given_up_long_ago_have_no_onset_in_the_traffic_of_today() -> None:
    rises = {name: per_minute(*[90] * 7, *[40] * 7) for name in ("sent", "processed", "created", "published")}
    left = affected(outbox_failed=(1, 1, 9000.0))  # the relay's FAILED rows are told among the events that wait
    frames = impact(outbox=row(due=0, failed=1, oldest_due_s=0.0), affected=left, **rises)
    expect(response.judge_impact(frames, make_given()), Status.CRITICAL, says="ENT-E", values={"impact.onset": None})
    chart = response.chart_flows(frames, make_given())
    assert chart is not None and chart.alt.params["began"] is None
    slow = response.judge_impact(impact(publish_delay=row(n=9, p95=7.0), **rises), make_given())
    assert slow.value("impact.onset")


def test_a_rate_that_was_not_read_is_no_quiet_hour() -> None:
    frames = impact(last_event=row(now=NOW, last_event=ago(45)))
    del frames["published"]
    found = response.judge_impact(frames, make_given())
    assert (found.status, found.headline.key) == (Status.UNKNOWN, "response.silence_unclear")
    assert "No new event for 45 s" in words(found)


@pytest.mark.parametrize(
    ("created", "told", "observed"),
    [
        ([300] * 14, "response.no_impact", set()),
        ([299, 301, 298, *[300] * 11], "response.no_impact", set()),  # a row's two times are in two minutes
        ([300, 250, *[300] * 12], "response.not_queued", {"consistency.registered_only"}),
        ([330, *[300] * 13], "response.not_registered", {"consistency.queued_only"}),
    ],
)
def test_events_that_are_registered_without_a_notification_are_no_ok(
    created: list[int], told: str, observed: set[str]
) -> None:
    found = response.judge_impact(impact(created=per_minute(*created)), make_given())
    assert found.headline.key == told and {s.observation for s in found.signals} == observed
    expect(found, Status.WARNING if observed else Status.OK, sections=("5.3",) if observed else ())
    late = impact(created=per_minute(*created), affected=affected(notification=(70, 60, 120.0)))
    assert (told in {n.key for n in response.judge_impact(late, make_given()).notes}) is bool(observed)
    cut = per_minute(*created)
    cut.attrs["capped"] = True
    assert response.judge_impact(impact(created=cut), make_given()).status is Status.OK


def test_a_young_alert_is_looked_at_again_where_nothing_shows_yet() -> None:
    young = make_given(detected_by="alert", detected_at=ago(8))
    expect(response.judge_impact(impact(), young), Status.OK, values={"impact.look_again": 52.0})
    for frames, told in ((impact(), make_given(detected_at=ago(90))), (impact(), make_given()),
                         (impact(affected=affected(notification=(3, 3, 21.0))), young)):  # fmt: skip
        assert response.judge_impact(frames, told).value("impact.look_again") is None


def test_the_time_to_detect_is_kept() -> None:
    frames = impact(affected=affected(notification=(70, 60, 120.0)))
    found = response.judge_impact(frames, make_given(detected_by="alert", detected_at=ago(30)))
    expect(found, values={"ttd": 90.0, "detected_by": "alert"})


def test_burn_rates_take_the_lower_of_both_windows() -> None:
    late = impact(sent=per_minute(*[300] * 4, slow=280))
    fast, slow = response.burn_rates(late, make_given()) or (None, None)
    assert fast is not None
    assert slow is not None
    assert fast > 14.4
    assert response.burn_rates({}, make_given()) is None
    assert response.burn_rates(late | {"sent": late["sent"].drop(columns="slow")}, make_given()) is None
    over = per_minute(*[300] * 300)
    over.loc[over.index >= 5, "slow"] = 300  # slow before, in time now
    assert (response.burn_rates(impact(sent=over), make_given()) or (9, 9))[0] < 1


def test_the_chart_marks_the_beginning() -> None:
    frames = impact(affected=affected(notification=(700, 60, 121.0)))
    chart = response.chart_flows(frames, make_given())
    assert chart is not None and chart.alt.params["began"].startswith("2025-01-31T02:58")
    assert [moment.label for moment in chart.moments] == ["began"]
    assert response.chart_flows({}, make_given()) is None


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
    found = CHECKS["3.3"].judge({}, make_given(earlier=earlier))
    assert (found.status, found.headline.key) == (status, f"response.{key}")
    assert len(found.proposals) <= 1
    words(found)


def test_of_an_outage_that_is_over_the_next_step_is_to_confirm_it() -> None:
    ended = replace(place(None, Status.WARNING), ended=OutageEnd(ago(50), say("outage.published", n=9)))
    expect(CHECKS["3.3"].judge({}, make_given(earlier=(ended,))), Status.OK, "response.do_confirm")


def record_rows(given_: JudgeInput) -> pd.DataFrame:
    return triage.record_rows(given_, "3.1", "3.2", response.RECORDED)


def test_the_record_is_ready_to_paste() -> None:
    begun = response.judge_impact(
        impact(affected=affected(notification=(70, 60, 120.0))), make_given(detected_by="slo", detected_at=ago(9))
    )
    given_ = make_given(earlier=(replace(begun, step="3.1"), place("delivery_worker", Status.CRITICAL, "kubectl a")))
    kept = record_rows(given_)
    found = triage.judge_record({"record": kept}, given_)
    assert found.status is Status.OK
    line = dict(zip(kept["what"], kept["value"], strict=True))
    assert line["stuck_at"] == "delivery_worker"
    assert line["failure_modes"].startswith("FM-NOTI-06")
    assert line["events_waiting"] == "70"
    assert line["ttd_s"] == "111"
    words(found)
    excluded = make_given().evidence("publish.stopped") + make_given().evidence("relay.starting")
    young = replace(place("relay", Status.WARNING), signals=excluded)
    kept = record_rows(make_given(earlier=(young,)))
    assert "FM-OB-01" not in dict(zip(kept["what"], kept["value"], strict=True))["failure_modes"]
    assert triage.judge_record({"record": record_rows(make_given())}, make_given()).reason is Reason.SKIPPED
    assert triage.judge_record({}, make_given()).status is Status.UNKNOWN


def test_the_record_names_the_objectives_whatever_the_headline_says() -> None:
    """A headline that lacks the deciding number is wrapped in a text that has it."""
    missed = CHECKS["3.1"].finding(impact(outbox_age=row(n=9, p95=62.0)), make_given())
    stuck = place("delivery_worker", Status.CRITICAL, "kubectl a")
    for found, said in ((missed, "ENT-D"), (replace(missed, status=Status.UNKNOWN, values=()), "unknown")):
        given_ = make_given(earlier=(replace(found, step="3.1"), stuck))
        kept = record_rows(given_)
        assert dict(zip(kept["what"], kept["value"], strict=True))["objectives_missed"] == said
        paste = triage.judge_record({"record": kept}, given_).notes[0]
        assert f"objectives missed {said};" in messages.text(paste, "en")
    assert "未達 SLO 不明、" in messages.text(paste, "ja")


def test_without_a_part_the_place_is_unknown() -> None:
    expect(CHECKS["3.2"].judge({}, make_given()), Status.UNKNOWN)
    assert CHECKS["3.4"].judge({}, make_given()).status is Status.UNKNOWN


# On real servers ---------------------------------------------------------------------------------------------


@pytest.mark.slow
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
        expect(found, Status.CRITICAL, "response.flows_but", values={"stuck_at": None})
        assert weight(found, mode) > 0.5 and section in found.next_sections
        words(found)


def test_idle_and_healthy_are_ok(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with bound(broker):
        idle = run(servers, *STEPS)
        assert set(statuses(idle).values()) == {Status.OK}, {s: words(f) for s, f in idle.items()}
        traffic(db, 180)
        found = run(servers, *STEPS)
    assert set(statuses(found).values()) == {Status.OK}, {s: words(f) for s, f in found.items()}
    assert all(isinstance(h, Hop) for h in found["3.2"].hops)
    assert not found["3.2"].next_sections


def test_a_triage_asks_once_for_what_several_steps_use(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with bound(broker):
        found = run(servers, "3.1", "3.2", "3.4", "3.6")
    queries = (q for f in found.values() for q in f.queries if q.source in ("postgres", "jetstream"))
    sent = Counter(name for name, _ in {(q.name, q.started) for q in queries})
    sampled = ("alive/", "notifications/activity", "notifications/attempts", "notifications/held")
    assert [name for name, n in sent.items() if n > 1 and not name.startswith(sampled)] == []


def test_each_frame_of_a_flow_has_what_the_tables_have(servers: Servers, db: psycopg.Connection) -> None:
    traffic(db, 90)
    events(db, 7, 400)  # before the last five minutes
    events(db, 3, 40, status="FAILED", dead=30)
    db.execute("UPDATE notification.notifications SET occurred_at = occurred_at - interval '1 minute' WHERE true")
    frames = run(servers, "3.1")["3.1"].frames
    sent, given_up = 5 * 88, 3
    assert frames["published_steps"][["n", "late"]].sum().tolist() == [sent + given_up, 0]
    assert frames["sent_steps"][["n", "late", "tried"]].sum().tolist() == [sent + given_up] * 2 + [given_up]
    assert frames["sent"][["n", "slow"]].sum().tolist() == [sent + 7] * 2 and frames["dead"]["n"].sum() == given_up
    assert frames["created"]["n"].sum() == frames["published"]["n"].sum() == sent + given_up + 7
    assert (frames["publish_delay"]["n"].item(), frames["delivered"]["n"].item()) == (sent + given_up, sent)


def test_a_worker_that_stopped(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 120, until=20)
    for second in range(2, 20):
        events(db, 5, second, status="PENDING")
    with bound(broker):
        found = run(servers, *STEPS, detected_by="user_report", detected_at=pd.Timestamp.now("UTC").isoformat())
    expect(found["3.1"], Status.CRITICAL, values={"impact.users": 5})
    place_ = found["3.2"]
    expect(place_, sections=("4.1", "4.3"), values={"stuck_at": "delivery_worker"}, weights={"FM-NOTI-06": "> 0.5"})
    assert found["3.3"].proposals[0].command.endswith("rollout restart deploy/notification")
    assert found["3.4"].status is Status.CRITICAL
    assert {n.key for n in found["3.4"].notes} == {"response.criterion_met", "response.criterion_unmet"}
    assert "delivery_worker" in str(found["3.5"].notes[0].params["stuck_at"])


def test_the_place_can_be_judged_again_from_its_record(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    for second in range(2, 30):
        events(db, 5, second, outbox="PENDING", **UNPROCESSED)
    before = run(servers, "3.1", "3.2", nats_url="nats://127.0.0.1:9")["3.2"]
    stored = json.loads(json.dumps(records.finding(before)))
    frames = {name: records.frame_from_json(frame) for name, frame in stored["frames"].items()}
    again = CHECKS["3.2"].judge(frames, make_given())
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


@pytest.mark.slow
def test_lost_events_lead_to_consistency(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db, 60)
    events(db, 4, 100, **UNPROCESSED)
    with bound(broker):
        found = run(servers, "3.1", "3.2")["3.2"]
    assert "5.3" in found.next_sections


@contextmanager
def prometheus(success: float) -> Iterator[str]:
    """Something that answers queries as Prometheus does: all requests, the failed ones, and a quantile."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(request.path).query)["query"][0]
        value = 0.4 if "quantile" in query else 100 - success if "5.." in query else 100.0
        body = {"status": "success", "data": {"result": [{"metric": {}, "value": [0, str(value)]}]}}
        reply(request, body=json.dumps(body).encode())

    with web(answer) as url:
        yield url


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b'{"data": {"result": 7}}', b'{"data": {"result": [{"metric": {}, "value": [0, "much"]}]}}']
)
def test_an_answer_that_is_not_prometheus_own_is_no_number(body: bytes) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        reply(request, body=body)

    with web(answer) as url, pytest.raises(SourceError) as e:
        Prometheus("prometheus", url, ReadCost(Masker())).instant("up", NOW)
    assert e.value.reason is Reason.ERROR


def test_with_prometheus_the_api_is_judged_too(servers: Servers, db: psycopg.Connection) -> None:
    with prometheus(success=99.0) as url:
        found = run(servers, "3.1", prometheus_url=url)["3.1"]
    table = found.frames["slis"].set_index("slo")
    assert table.loc["ENT-A", "now"] == 99.0
    expect(found, Status.CRITICAL, says="ENT-A")
    assert "ENT-B" not in words(found)
