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
from tests.kit.servers import Servers
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

SLOW = {"publish_delay": row(n=9, p95=7.0)}
LETTERS = {"given_up": row(events=40, users=30), "delivered": row(n=900, p95=2.0)}
SUBSCRIBER = {"given_up_messages": row(n=2)}
STOPPED = {"published_steps": through(flowing=False)}
OTHER_OUTAGE = got_through(52, published=(230, 240), tried=1)
HANG = {"affected": affected(notification=(70, 60, 120.0))}
FEW = {"affected": affected(notification=(3, 3, 21.0))}
YOUNG = {"detected_by": "alert", "detected_at": ago(8)}
#: What is published, processed and sent rises for another reason.
RISES = {name: per_minute(*[90] * 7, *[40] * 7) for name in ("sent", "processed", "created", "published")}
STOPS = per_minute(*[0] * 4, *[300] * 10)
#: The relay's FAILED rows are told among the events that wait.
FAILED = {"outbox": row(due=0, failed=1, oldest_due_s=0.0), "affected": affected(outbox_failed=(1, 1, 9000.0))}
#: A row waits for some minutes, and is then a dead letter.
OUTAGE = {
    "affected": affected(notification=(70, 60, 300.0)), "sent": per_minute(*[0] * 10, *[300] * 19),
    "dead": per_minute(*[40] * 5, *[0] * 24), "processed": per_minute(*[300] * 29),
    "published": per_minute(*[300] * 29),
}  # fmt: skip
MINUTES = [NOW.floor("min") - pd.Timedelta(minutes=n) for n in range(30)]


def sent_late(*last_ago: float) -> Frames:
    """Sent late in each minute; the last of the newest minutes so many seconds ago."""
    sent = per_minute(*[300] * 14, slow=200)
    sent["last_slow"] = pd.Series([ago(s) for s in last_ago], index=range(len(last_ago)))
    return {"sent": sent, "delivered": row(n=1500, p95=42.0, longest=60.0)}


def judged_impact(frames: Frames, **given: Any) -> Finding:
    return response.judge_impact(impact(**frames), make_given(**given))


@pytest.mark.parametrize(
    ("changes", "slo"),
    [
        (SLOW, "ENT-C"),
        ({"outbox_age": row(n=9, p95=20.0)}, "ENT-D"),
        ({"outbox": row(due=0, failed=1, oldest_due_s=0.0)}, "ENT-E"),
        ({"given_up": row(events=9, users=9)}, "NOTI-A"),
        ({"delivered": row(n=9, p95=44.0)}, "NOTI-B"),
        ({"affected": affected(broker=(300, 200, 61.0))}, "NOTI-B"),
        ({"notifications": row(due=40, expired=20)}, "NOTI-C"),
        ({"given_up_messages": row(n=1)}, "NOTI-D"),
        ({"dead": per_minute()}, None),
    ],
)
def test_a_missed_objective_is_named_and_one_that_cannot_be_seen_does_not_count(
    changes: Frames, slo: str | None
) -> None:
    table = response.ImpactSample(impact(**changes), make_given()).slis.set_index("slo")
    assert (slo in table.index[table["met"].eq(False)]) is bool(slo)
    assert list(table.index[table["met"].isna()]) == ["ENT-A", "ENT-B"]
    if slo:
        assert table.loc[slo, "why"] == ("oldest_waiting" if "affected" in changes else "")
    expect(judged_impact(changes), Status.CRITICAL if slo else Status.OK, says=slo or ())


@pytest.mark.parametrize(
    ("changes", "key", "events"),
    [
        ({}, "response.impact_begins", 3),
        ({"affected": affected(broker=(300, 200, 3000.0))}, "response.doubtful", 0),
        ({"deletions": row(age_d=0.1, inserted=9000, deleted=299)}, "response.impact", 303),
        ({"consumer": row(pending=260, unacknowledged=40)}, "response.impact", 303),
        ({"consumer": row(pending=5, unacknowledged=1)}, "response.impact_begins", 9),
    ],
)
def test_what_may_have_been_processed_is_not_said_to_wait(changes: Frames, key: str, events: int) -> None:
    waits = {"affected": affected(broker=(300, 200, 3000.0), notification=(3, 2, 21.0))}
    deleted = {"deletions": row(age_d=0.1, inserted=9000, deleted=300), "consumer": row(pending=0, unacknowledged=0)}
    found = judged_impact(waits | deleted | changes)
    status = {"response.impact": Status.CRITICAL, "response.doubtful": Status.UNKNOWN}.get(key, Status.WARNING)
    expect(found, status, key, values={"impact.events": events}, sections=() if events == 303 else ("5.3",))
    assert found.value("impact.users") == {303: 202, 9: 8, 3: 2, 0: 0}[events]


def lately(p95: float) -> Frames:
    return SLOW | {"publish_delay_lately": row(n=3, p95=p95)}


@pytest.mark.parametrize(
    ("why", "frames", "key", "ended"),
    [
        ("the last is a while ago", sent_late(75, 130) | got_through(75, 80), "impact_over", "sent_in_time"),
        ("it was just now", sent_late(12) | got_through(12, 15), "impact_passed", None),
        ("events wait", sent_late(12) | FEW, "impact", None),
        ("events were given up", sent_late(12) | {"given_up": row(events=2, users=1)}, "impact", None),
        ("the newest are late", lately(6.0), "impact", None),
        ("the newest are in time", lately(0.6) | got_through(published=(50, 55)), "impact_over", "published"),
        ("the cost gate refused the question", lately(0.6), "impact_passed", None),
        ("it is over, dead letters are left", LETTERS | got_through(52, 60, tried=1), "impact_over", "sent_again"),
        # Those of the subscriber are of messages, and nothing that was sent tells of these.
        ("of messages too", SUBSCRIBER | LETTERS | got_through(52, 60, tried=1), "impact", None),
        ("two outages far apart", LETTERS | got_through(52, 200, tried=1), "impact_over", "sent_again"),
        ("quiet for longer than it paused", LETTERS | got_through(95, 145, tried=1), "impact_over", "sent_again"),
        ("the other one is over for long", LETTERS | OTHER_OUTAGE, "impact_over", "sent_again"),
        ("the last was just now", LETTERS | got_through(21, tried=1), "impact", None),
        ("it has paused for as long before", LETTERS | got_through(52, 60, 130, tried=1), "impact", None),
        ("nothing is sent any more", LETTERS | got_through(52, 60, tried=1, flowing=False), "impact", None),
        ("nothing is published any more", LETTERS | got_through(52, tried=1) | STOPPED, "impact", None),
        ("some still fail", LETTERS | got_through(*range(52, 60), *range(5), tried=1), "impact", None),
        ("what was sent is unknown", LETTERS | {"published_steps": through(of="published")}, "impact", None),
        ("somebody waits", LETTERS | got_through(52, tried=1) | FEW, "impact", None),
    ],
)
def test_what_is_over_says_so_and_a_pause_does_not(why: str, frames: Frames, key: str, ended: str | None) -> None:
    found = judged_impact(frames)
    sections = ("4.4",) if "given_up" in frames else ()
    expect(found, Status.CRITICAL if key == "impact" else Status.WARNING, f"response.{key}", sections=sections)
    assert (found.ended and found.ended.by.key) == (ended and f"outage.{ended}"), why


@pytest.mark.parametrize(
    ("frames", "given", "value"),
    [
        ({}, YOUNG, ("impact.look_again", 52.0)),  # nothing shows yet
        ({}, {"detected_at": ago(90)}, ("impact.look_again", None)),
        ({}, {}, ("impact.look_again", None)),
        (FEW, YOUNG, ("impact.look_again", None)),
        (HANG, {"detected_at": ago(30)}, ("ttd", 90.0)),
        ({"affected": affected(notification=(70, 60, 20.0))}, {"detected_at": ago(30)}, ("ttd", None)),
        (sent_late(12) | got_through(12, 15), {}, ("impact.look_again", 18.0)),
    ],
)
def test_when_it_was_detected(frames: Frames, given: dict[str, Any], value: tuple[str, float | None]) -> None:
    expect(judged_impact(frames, **given), values=dict([value]))


@pytest.mark.parametrize(
    ("frames", "window", "at", "how"),
    [
        ({"affected": affected(notification=(70, 60, 21.0), outbox_failed=(1, 1, 9000.0))}, 15, ago(21), "oldest"),
        (SLOW | {"sent": STOPS}, 15, MINUTES[4], "change"),
        (SLOW | {"sent": STOPS.assign(first_slow=pd.Series([ago(100), ago(219)], index=[1, 2]))}, 15, ago(219), "slow"),
        (SLOW | {"dead": per_minute(0, 0, 40, 30, *[0] * 10)}, 15, MINUTES[4], "change"),
        # Half an hour of an outage: a row waits for some minutes, and is then a dead letter.
        (OUTAGE, 30, MINUTES[10], "change"),
        (OUTAGE | {"dead": per_minute(*[0] * 29)}, 30, ago(300), "oldest"),
        (SLOW | RISES, 15, MINUTES[7], "change"),
        (FAILED | RISES, 15, None, ""),
    ],
)  # fmt: skip
def test_the_onset_is_the_oldest_that_waits_else_the_change_of_a_flow(
    frames: Frames, window: int, at: pd.Timestamp | None, how: str
) -> None:
    given = make_given(window_minutes=window)
    assert response.ImpactSample(impact(**frames), given).onset == (at, how)
    early = replace(given, detected_at=NOW - pd.Timedelta(minutes=20))
    assert response.judge_impact(impact(**frames), early).value("ttd") is None, "detected before this onset"


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
    found = judged_impact({"affected": affected(**places)}, detected_at=ago(30))
    assert (found.value("impact.onset") is not None, found.value("ttd") is not None) == (since, since)
    expect(found, notes=() if since else {"response.onset_before"})


def test_while_nothing_gets_through_an_outage_does_not_pause() -> None:
    """The first are late when it begins, the others when it has ended: nothing was published in between."""
    steps = got_through(46, published=(46, 50, 115))
    down = steps["published_steps"]["tens_ago"].between(6, 10)
    steps["published_steps"] = steps["published_steps"][~down]
    found = judged_impact({**SLOW, "publish_delay_lately": row(n=3, p95=0.6), **steps})
    assert found.ended and found.ended.by.key == "outage.published"


@pytest.mark.parametrize(("arrived", "steady"), [(300, True), (185, True), (170, False), (0, False)])
def test_a_flow_into_which_fewer_come_than_before_is_not_steady(arrived: float, steady: bool) -> None:
    sample = response.ImpactSample(impact(outbox=row(due=0, arrived_1m=arrived)), make_given())
    assert sample.comes_in is steady


@pytest.mark.parametrize("unread", ["published", "outbox"])
def test_a_flow_that_was_not_read_is_not_steady(unread: str) -> None:
    frames = {name: frame for name, frame in impact().items() if name != unread}
    assert not response.ImpactSample(frames, make_given()).comes_in


@pytest.mark.parametrize(
    ("silent_s", "before", "key"),
    [
        (45, [300] * 15, "response.nothing_comes"),
        (12, [300] * 15, "response.no_impact"),  # too short for anybody's concern
        (45, [3] * 15, "response.no_impact"),  # two or three should have come
        (45, [300, 0] * 8, "response.no_impact"),  # it pauses at times
        (200, [0, 0, 0, *[300] * 15], "response.nothing_comes"),
        (45, None, "response.silence_unclear"),  # a rate that was not read is no quiet hour
        # Longer than the window: the rate that counts is the one before the newest event, however long ago that is.
        (1800, [0] * 30 + [300] * 14, "response.nothing_comes"),
        (1800, [0] * 30 + [300, 300, *[0] * 12], "response.no_impact"),  # it came in a burst
        (1800, None, "response.silence_unclear"),
    ],
)
def test_a_producer_that_falls_silent_is_no_quiet_hour(silent_s: float, before: list[int] | None, key: str) -> None:
    frames = impact(last_event=row(now=NOW, last_event=ago(silent_s)))
    if silent_s == 1800:
        frames |= {name: per_minute(*[0] * 14) for name in ("sent", "processed", "created", "published")}
    if before is not None:
        frames["published_before"] = per_minute(*before)
    found = response.judge_impact(frames, make_given())
    unknown = {"response.nothing_comes": Status.WARNING, "response.silence_unclear": Status.UNKNOWN}
    expect(found, unknown.get(key, Status.OK), key)
    broken = [h.name for h in found.hops if h != Hop(h.name, past=h.past)]
    assert broken == (["producer"] if found.status is Status.WARNING else [])


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
    status, sections = (Status.WARNING, ("5.3",)) if observed else (Status.OK, ())
    apart = {"created": per_minute(*created)}
    expect(judged_impact(apart), status, told, observations=observed, sections=sections)
    assert (told in {n.key for n in judged_impact(apart | HANG).notes}) is bool(observed)
    apart["created"].attrs["capped"] = True
    assert judged_impact(apart).status is Status.OK


def test_burn_rates_take_the_lower_of_both_windows() -> None:
    def fast(frames: Frames) -> float | None:
        rates = response.ImpactSample(frames, make_given()).burn_rates
        return rates and rates[0]

    late, over = impact(sent=per_minute(*[300] * 4, slow=280)), per_minute(*[300] * 300)
    over.loc[over.index >= 5, "slow"] = 300  # slow before, in time now
    assert (fast(late) or 0) > 14.4 and fast(impact(sent=over)) == 0
    assert fast({}) is fast(late | {"sent": late["sent"].drop(columns="slow")}) is None


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
    begun = replace(judged_impact(HANG, detected_by="slo", detected_at=ago(9)), step="3.1")
    given_ = make_given(earlier=(begun, place("delivery_worker", Status.CRITICAL, "kubectl a")))
    kept = record_rows(given_)
    expect(triage.judge_record({"record": kept}, given_), Status.OK)
    line = dict(zip(kept["what"], kept["value"], strict=True))
    told = {"stuck_at": "delivery_worker", "events_waiting": "70", "ttd_s": "111"}
    assert line | told == line and line["failure_modes"].startswith("FM-NOTI-06")
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
    sampled = ("alive/", "outbox/backlog", *(f"notifications/{n}" for n in ("backlog", "activity", "attempts", "held")))
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
