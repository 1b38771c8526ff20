"""Where it is stuck, and how sure: pure, over findings made by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book import catalog, patterns
from runbook_lib.checks.triage import deciding_finding
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.evidence import evidence_from_error, score, strip
from runbook_lib.model.finding import (
    Finding,
    Hop,
    OutageEnd,
    Proposal,
    Reason,
    ScoreReason,
    SentQuery,
    Signal,
    Status,
    Threshold,
    Unseen,
    Value,
    Verdict,
    replace,
    say,
    unknown,
)
from runbook_lib.packs.entitlement import PACK
from runbook_lib.sources.source import SourceError
from runbook_lib.store import record
from runbook_lib.view import render
from tests.kit.findings import BOOK, seen

HOPS, DATABASE = BOOK.hops, "database"


def conclude(findings: list[Finding]) -> Verdict:
    return diagnosis.conclude(findings, BOOK)


def finding(step: str, *signals: tuple[str, float], status: Status = Status.CRITICAL) -> Finding:
    return Finding(step, status, say("ui.no_action"), signals=tuple(Signal(a, w) for a, w in signals))


def test_healthy() -> None:
    verdict = conclude([finding("4.1.1", status=Status.OK), finding("4.1.2", status=Status.OK)])
    assert (verdict.status, verdict.stuck_at, verdict.confidence) == (Status.OK, None, "high")


@pytest.mark.parametrize(("seen", "all_of_it"), [(1, False), (3, True), (6, True)])
def test_who_looked_at_a_part_does_not_say_that_nothing_is_stuck(seen: int, all_of_it: bool) -> None:
    looked = replace(finding("4.2.3", status=Status.OK), hops=tuple(Hop(name, waiting=0.0) for name in HOPS[:seen]))
    said = render.location(conclude([looked]))
    assert said == ("Nothing is stuck" if all_of_it else "Nothing is stuck in what was read")


@pytest.mark.parametrize(
    ("scores", "place"),
    [
        ({"relay": 0.9, "subscriber": 0.9}, "relay"),
        ({"relay": 0.5}, "relay"),
        ({"relay": 0.499}, None),
        # A weak hop upstream does not hide a strong one.
        ({"producer": 0.6, "delivery_worker": 0.85}, "delivery_worker"),
        ({"producer": 0.85, "delivery_worker": 0.9}, "producer"),
        ({"producer": 0.49, "relay": 0.5}, "relay"),
        # What several hops depend on explains them.
        ({"relay": 0.9, "jetstream": 0.9}, "jetstream"),
        ({"relay": 0.9, DATABASE: 0.9}, DATABASE),
        ({"jetstream": 0.9, DATABASE: 0.9}, DATABASE),
        ({"jetstream": 0.9, DATABASE: 0.8}, "jetstream"),
        ({"relay": 0.9, DATABASE: 0.85}, DATABASE),
        ({"relay": 0.9, DATABASE: 0.6}, "relay"),
        ({"relay": 0.5, DATABASE: 0.49}, "relay"),
        # Signs of two hops tell neither.
        ({"relay": 0.6, "subscriber": 0.6}, None),
        ({"relay": 0.6, DATABASE: 0.6}, DATABASE),
    ],
)
def test_the_place_that_stands_out(scores: dict[str, float], place: str | None) -> None:
    assert conclude([finding("a", *scores.items())]).stuck_at == place


def test_what_was_changed_counts_while_something_is_late_even_where_all_seems_to_work() -> None:
    works = seen("3.2", *BOOK.evidence("subscriber.nothing_lost"), *BOOK.evidence("database.takes_all"))
    drift = replace(seen("3.6", *BOOK.evidence("changed.database")), hops=(Hop("subscriber", late=True),))
    verdict = conclude([works, drift])
    assert (verdict.stuck_at, verdict.confidence) == (DATABASE, "low")
    assert verdict.settled_by, "what is not sure is still asked for"


def test_one_observation_of_several_steps_is_one_piece_of_evidence() -> None:
    """Section 3 asks what 4.1 asks too: being told twice makes nothing surer."""
    silent = BOOK.evidence("publish.seems_stopped")
    findings = [Finding(step, Status.WARNING, say(step), signals=silent) for step in ("3.2", "4.1.3")]
    mode = score(findings, "relay", BOOK)
    assert (mode.score, mode.because) == (
        0.6,
        (ScoreReason("observed", ("3.2", "4.1.3"), "publish.seems_stopped", 0.6, say("4.1.3")),),
    ), "in the words of the step that asked for nothing else"
    other = Finding("4.5.1", Status.WARNING, say("ui.no_action"), signals=BOOK.evidence("relay.may_hang"))
    assert (conclude(findings).confidence, conclude([*findings, other]).confidence) == ("low", "medium")


def test_a_place_whose_cause_is_not_known_is_not_sure_and_is_asked_for() -> None:
    known = conclude([finding("a", ("delivery_worker", 0.95), ("FM-NOTI-06", 0.9))])
    assert (known.confidence, known.settled_by) == ("high", ())
    unknown_cause = conclude([finding("a", ("delivery_worker", 0.95), ("FM-CFG-01", 0.5), ("FM-OB-01", 0.9))])
    assert (unknown_cause.stuck_at, unknown_cause.confidence) == ("delivery_worker", "low")
    assert unknown_cause.settled_by


def test_a_failure_mode_elsewhere_is_a_consequence() -> None:
    worker = finding("a", ("FM-NOTI-06", 0.9), ("delivery_worker", 0.9))
    verdict = conclude([worker, finding("b", (DATABASE, 0.9), ("FM-DB-01", 0.9))])
    assert (verdict.stuck_at, [m.id for m in verdict.failure_modes]) == (DATABASE, ["FM-DB-01", "FM-NOTI-06"])


OK, WARNS = (finding("c", status=status) for status in (Status.OK, Status.WARNING))
SILENT = unknown("d", Reason.TIMEOUT, say("ui.no_action"))
CLOCK = replace(OK, values=(Value("rows", 99.0), Value("look_again", None), Value("impact.look_again", 8.0, "s")))


def stuck(place: float, mode: float = 0.9, **more: Any) -> Finding:
    return replace(finding("a", ("delivery_worker", place), ("FM-NOTI-06", mode)), **more)


@pytest.mark.parametrize(
    ("findings", "confidence"),
    [
        ([stuck(0.9)], "high"),
        ([stuck(0.6)], "low"),
        ([stuck(0.6), replace(stuck(0.6), step="b")], "medium"),
        ([stuck(0.6), finding("b", ("delivery_worker", 0.45))], "medium"),
        ([stuck(0.6), finding("b", ("delivery_worker", 0.4))], "low"),
        ([stuck(0.9, 0.51)], "high"),
        ([stuck(0.9, 0.5)], "low"),
        ([finding("a", ("FM-NOTI-06", 0.85))], "high"),
        ([finding("a", ("FM-NOTI-06", 0.5), status=Status.OK)], "low"),
        ([finding("a", ("FM-NOTI-06", 0.49), status=Status.OK)], "high"),
        ([finding("a")], "low"),
        ([WARNS], "high"),
        # Steps without an answer.
        ([stuck(0.9), OK, SILENT], "medium"),
        ([stuck(0.9), SILENT], "low"),
        ([stuck(0.9), SILENT, SILENT, SILENT], "low"),
        ([OK, OK, SILENT], "medium"),
        ([OK, SILENT], "low"),
        ([WARNS, SILENT, SILENT], "low"),
        ([unknown("a", Reason.DENIED, say("ui.no_action"))], "none"),
        # Their silence is the evidence.
        ([stuck(0.9, status=Status.UNKNOWN)] * 3, "high"),
        ([stuck(0.9), finding("b", ("delivery_worker", -0.1), status=Status.UNKNOWN)], "low"),
        # A source that was not read.
        ([stuck(0.9), replace(OK, unseen=(Unseen("postgres", Reason.DENIED),))], "medium"),
        ([stuck(0.9), replace(OK, unseen=(Unseen("workloads", Reason.TIMEOUT),))], "high"),
        # Too early to tell.
        ([CLOCK], "medium"),
        ([CLOCK, stuck(0.9)], "high"),
        ([CLOCK, OK, SILENT, SILENT], "low"),
    ],
)
def test_confidence(findings: list[Finding], confidence: str) -> None:
    assert conclude(findings).confidence == confidence


HANGS = seen("4.1.3", *BOOK.evidence("relay.hangs"), proposals=("restart_entitlement",))
LOG_READ = BOOK.evidence("exceptions.log_read")


@pytest.mark.parametrize(
    ("read", "confidence", "asks"),
    [
        ([], "medium", ("4.5.1",)),
        ([seen("4.5.2", *LOG_READ)], "medium", ("4.5.1",)),  # of the other program
        ([seen("4.5.1", *LOG_READ)], "high", ()),
        ([seen("5.1.1", *LOG_READ)], "high", ()),
        ([replace(seen("4.5.1", *LOG_READ), unseen=(Unseen("workloads", Reason.DENIED),))], "medium", ()),
        ([OK, unknown("4.5.1", Reason.DENIED, say("ui.no_action"))], "medium", ()),
        ([replace(OK, unseen=(Unseen("workloads", Reason.DENIED),))], "medium", ()),
    ],
)
def test_a_restart_is_sure_only_after_the_programs_own_side_was_read(
    read: list[Finding], confidence: str, asks: tuple[str, ...]
) -> None:
    verdict = conclude([HANGS, *read])
    assert [p.name for p in verdict.proposals] == ["restart_entitlement"]
    assert (verdict.confidence, verdict.settled_by) == (confidence, asks)
    assert verdict.read_first == (("4.5.1",) if confidence != "high" else ())
    cautions = render.caution_lines(verdict)
    assert any("4.5.1" in line for line in cautions) is (confidence != "high")
    assert any("runbook run 4.5" in line for line in cautions) is bool(asks)  # what cannot be read is not asked for


def test_what_the_database_refuses_in_the_programs_log_forbids_its_restart() -> None:
    refusals = {e.observation for e in patterns.source(PACK, "server error").kinds.values()} - {""}
    for observation in refusals:
        assert {"restart_notification", "restart_entitlement"} <= {*BOOK.forbids[observation]}, observation
    assert {*BOOK.read_first} == {"restart_notification", "restart_entitlement"}


@pytest.mark.parametrize(
    ("reason", "asks"), [(Reason.TIMEOUT, True), (Reason.UNREACHABLE, True), (Reason.DENIED, False)]
)
def test_a_source_that_may_be_away_for_everybody_is_asked_for(reason: Reason, asks: bool) -> None:
    away = unknown("3.1", reason, say("ui.no_action"))
    verdict = conclude([replace(away, unseen=(Unseen("postgres", reason),))])
    assert (verdict.stuck_at, verdict.status) == (None, Status.UNKNOWN)
    assert verdict.settled_by == (("4.5.1", "4.5.2") if asks else ())


def test_proposals_once_and_those_for_the_broken_hop_first() -> None:
    restart, throttle = Proposal("r", "restart", "5.1"), Proposal("t", "throttle", "5.2")
    first = replace(finding("a", status=Status.WARNING), proposals=(throttle,))
    second = replace(finding("b", ("relay", 0.9)), proposals=(restart, throttle))
    assert conclude([first, second]).proposals == (restart, throttle)


def test_remedies_of_the_likeliest_mode_stand_in_the_order_of_the_documents() -> None:
    """What another needs at its start comes first; what is no remedy keeps its place."""
    book = hypotheses({DEAD: {"remedies": ("bring_back", "make", "bind")}})
    steps = [
        seen("4.1.2", Signal(DEAD, 0.9, "a"), proposals=("look", "bind", "make")),
        seen("4.1.3", proposals=("bring_back", "logs")),
    ]
    names = [p.name for p in diagnosis.conclude(steps, book).proposals]
    assert names == ["look", "bring_back", "make", "bind", "logs"]


@pytest.mark.parametrize("observation", ["jetstream.stream_not_found", "publish.fails_no_stream"])
def test_a_lost_stream_is_made_before_its_consumer_is_bound(observation: str) -> None:
    restarts = ("restart_notification", "restart_entitlement")
    verdict = conclude([seen("4.1.2", *BOOK.evidence(observation), proposals=restarts)])
    assert [p.name for p in verdict.proposals] == ["restart_entitlement", "restart_notification"]


def test_the_strip_joins_what_each_finding_knows() -> None:
    hops = (Hop("relay", rate_in=3, waiting=2), Hop("relay", rate_out=4))
    joined = {h.name: h for h in strip([replace(finding("a"), hops=(hop,)) for hop in hops], HOPS)}
    assert joined["relay"] == Hop("relay", 3, 4, 2)
    assert list(joined) == list(HOPS)


def test_our_own_refusal_says_nothing_about_the_pipeline() -> None:
    refused = SourceError("postgres", Reason.DENIED, "wrong password", "wrong_password")
    gate = SourceError("postgres", Reason.DENIED, "plan cost", "cost_gate")
    assert evidence_from_error(refused, BOOK) == evidence_from_error(gate, BOOK) == ()


@given(st.lists(st.tuples(st.sampled_from([*HOPS, DATABASE, "FM-DB-01"]), st.floats(-1, 1)), max_size=12))
def test_conclude_is_total_and_bounded(signals: list[tuple[str, float]]) -> None:
    verdict = conclude([finding(str(n), s) for n, s in enumerate(signals)])
    assert verdict.stuck_at in (None, *HOPS, DATABASE)
    assert all(0 <= m.score <= 1 for m in verdict.failure_modes)


def test_a_step_answered_in_part_lowers_the_confidence_but_not_what_the_cost_gate_held_back() -> None:
    def asked(error: str, *, refused: bool, source: str = "postgres") -> Finding:
        question = SentQuery(source, "q", "", error=error, refused=refused)
        return replace(finding("a", status=Status.OK), queries=(question,))

    assert conclude([asked("unreachable", refused=False)]).confidence == "medium"
    assert conclude([asked("denied", refused=True)]).confidence == "high"
    helps = asked("unreachable", refused=False, source="workloads")
    assert conclude([helps]).confidence == "high", "a help, not needed"


def test_what_harms_without_stopping_the_flow_is_told_by_its_failure_mode() -> None:
    verdict = conclude([finding("4.2.2", ("FM-NOTI-01", 0.95)), finding("4.2.3", status=Status.OK)])
    assert verdict.stuck_at is None and verdict.confidence == "high"
    assert render.location(verdict).startswith("FM-NOTI-01: ")


# Hypotheses and their remedies ----------------------------------------------------------------------------------

DEAD, OFF = "FM-NOTI-06", "FM-NOTI-03"


def hypotheses(changes: dict[str, dict[str, Any]]) -> catalog.Catalog:
    """The documents, with other bullets for some failure modes."""
    modes = {id_: replace(m, excluded_by=(), remedies=(), told_by=()) for id_, m in BOOK.failure_modes.items()}
    modes |= {id_: replace(modes[id_], **more) for id_, more in changes.items()}
    return replace(BOOK, failure_modes=modes)


def test_one_observation_takes_a_failure_mode_out_however_much_speaks_for_it() -> None:
    book = hypotheses({DEAD: {"excluded_by": ("worker.polls",), "remedies": ("restart",)}})
    silent = seen("4.1.1", Signal(DEAD, 0.95, "worker.silent"), proposals=("restart", "logs"))
    assert diagnosis.conclude([silent], book).failure_modes[0].score > 0.9
    verdict = diagnosis.conclude([silent, seen("4.3.2", Signal("", 0.0, "worker.polls"))], book)
    (mode,) = verdict.failure_modes
    assert (mode.score, mode.excluded_by) == (0.0, "worker.polls")
    assert [(b.kind, b.steps, b.observation) for b in mode.because] == [
        ("observed", ("4.1.1",), "worker.silent"),
        ("excludes", ("4.3.2",), "worker.polls"),
    ]
    assert [p.name for p in verdict.proposals] == ["logs"], "what helps nothing that stands is not proposed"


def test_two_that_call_for_different_remedies_are_undecided_with_what_would_settle_it() -> None:
    remedies = {DEAD: ("restart",), OFF: ("switch_on",)}
    book = hypotheses({mode: {"remedies": names, "told_by": ("5.1.1",)} for mode, names in remedies.items()})
    told = seen("4.1.1", Signal(DEAD, 0.8, "a"), Signal(OFF, 0.75, "b"), proposals=("restart", "switch_on", "logs"))
    verdict = diagnosis.conclude([told], book)
    assert (verdict.between, verdict.settled_by, verdict.confidence) == ((DEAD, OFF), ("5.1.1",), "low")
    assert [p.name for p in verdict.proposals] == ["logs"]
    assert verdict.next_sections == ("5.1",)
    text = "\n".join(render.verdict_lines(verdict))
    assert f"Undecided between: {DEAD}" in text and "To decide, run step 5.1.1" in text


def test_no_remedy_is_proposed_while_it_is_undecided_what_due_rows_wait_for() -> None:
    book = hypotheses({DEAD: {"remedies": ("restart",)}})
    told = replace(
        seen("4.1.1", Signal(DEAD, 0.4, "a"), proposals=("restart", "logs")), hops=(Hop("delivery_worker", late=True),)
    )
    verdict = diagnosis.conclude([told], book)
    assert "delivery_worker" in verdict.undecided
    assert [p.name for p in verdict.proposals] == ["logs"]


def test_what_the_first_leaves_behind_is_no_rival_and_its_remedy_comes_afterwards() -> None:
    lost = {"remedies": ("redrive",), "follows": (DEAD,)}
    book = hypotheses({DEAD: {"remedies": ("restart",)}, OFF: lost})
    told = seen("4.1.1", Signal(DEAD, 0.9, "a"), Signal(OFF, 0.8, "b"), proposals=("redrive", "restart"))
    verdict = diagnosis.conclude([told], book)
    assert verdict.between == () and {p.name for p in verdict.proposals} == {"restart", "redrive"}
    # Where it is the likelier one, the cause is over.
    told = seen("4.1.1", Signal(DEAD, 0.6, "a"), Signal(OFF, 0.9, "b"))
    assert diagnosis.conclude([told], book).between == ()


def test_each_line_of_evidence_has_its_moment_and_the_value_that_decided() -> None:
    limit = Threshold("outbox.oldest_due", "s", 2, 10)
    values = (Value("outbox.due", 7, "rows"), Value("outbox.oldest_due", 96.9, "s", limit))
    at = pd.Timestamp("2026-07-01T03:12:40Z")
    told = replace(finding("4.1.3", ("FM-OB-01", 0.9)), values=values, at=at)
    mode = conclude([told]).failure_modes[0]
    (line,) = mode.because
    assert line.value and (line.at, line.value.name, line.value.value) == (at, "outbox.oldest_due", 96.9)
    assert any("(4.1.3 at 03:12:40Z)" in w for w in render.why_lines(mode))
    assert record.finding_from_json(record.finding(told)).at == at


@pytest.mark.parametrize(
    ("scores", "follows", "stand"),
    [
        ({DEAD: 0.5}, (), [DEAD]),
        ({DEAD: 0.499}, (), []),
        ({DEAD: 0.9, OFF: 0.85}, (), [DEAD, OFF]),
        ({DEAD: 0.85, OFF: 0.6}, (), [DEAD]),
        ({DEAD: 0.9, OFF: 0.6}, (OFF,), [DEAD]),
        ({}, (), []),
    ],
)
def test_the_modes_that_stand(scores: dict[str, float], follows: tuple[str, ...], stand: list[str]) -> None:
    assert [m.id for m in diagnosis._find_standing(scores, hypotheses({DEAD: {"follows": follows}}))] == stand


def test_what_an_observation_forbids_is_not_proposed_whatever_stands() -> None:
    book = hypotheses({DEAD: {"remedies": ("restart",)}})
    told = seen("4.1.1", Signal(DEAD, 0.9, "a"), Signal("", 0.0, "two"), proposals=("restart", "look"))
    for observation, left in (("two", {"look"}), ("other", {"restart", "look"})):
        verdict = diagnosis.conclude([told], replace(book, forbids={observation: ("restart",)}))
        assert {p.name for p in verdict.proposals} == left


def test_what_stands_alone_or_shares_its_remedy_is_decided() -> None:
    told = seen("4.1.1", Signal(DEAD, 0.8, "a"), Signal(OFF, 0.75, "b"), proposals=("restart", "switch_on"))
    same = hypotheses({DEAD: {"remedies": ("restart",)}, OFF: {"remedies": ("restart", "switch_on")}})
    assert diagnosis.conclude([told], same).between == ()
    weak = seen("4.1.1", Signal(DEAD, 0.9, "a"), Signal(OFF, 0.55, "b"), proposals=("look", "restart", "switch_on"))
    apart = hypotheses({DEAD: {"remedies": ("restart",)}, OFF: {"remedies": ("switch_on",)}})
    other = seen("4.1.2", proposals=("logs",))
    verdict = diagnosis.conclude([other, weak], apart)
    assert verdict.between == () and [p.name for p in verdict.proposals] == ["look", "restart", "logs"]


def test_what_helps_nothing_that_stands_is_proposed_only_where_nothing_stands() -> None:
    book = hypotheses({DEAD: {"remedies": ("restart",)}})
    stands = seen("4.1.3", Signal("FM-NATS-05", 0.9, "a"), proposals=("restart",))
    assert diagnosis.conclude([stands], book).proposals == ()
    beside = seen("4.1.3", Signal("FM-NATS-05", 0.9, "a"), Signal(DEAD, 0.8, "b"), proposals=("restart",))
    assert diagnosis.conclude([beside], book).proposals == (), "nothing helps what is likelier"
    suspected = seen("4.1.3", Signal("FM-NATS-05", 0.3, "a"), proposals=("restart",))
    assert [p.name for p in diagnosis.conclude([suspected], book).proposals] == ["restart"], "the step may know better"


def test_why_a_mode_counts_for_less_and_what_would_tell_of_it_and_was_not_seen() -> None:
    book = hypotheses({DEAD: {"told_by": ("4.3.2", "4.1.1", "5.1.1")}})
    silent = unknown("4.3.2", Reason.TIMEOUT, say("ui.no_action"))
    steps = [
        seen("4.1.1", Signal(DEAD, 0.8, "a")),
        unknown("2.1", Reason.TIMEOUT, say("ui.no_action")),
        seen("4.1.4", Signal(DATABASE, 0.9, "b")),
        replace(silent, unseen=(Unseen("postgres", Reason.TIMEOUT),)),
    ]
    (mode,) = diagnosis.conclude(steps, book).failure_modes
    assert (mode.score, [b.kind for b in mode.because]) == (0.48, ["observed", "unseen", "elsewhere"])
    assert [(b.steps, b.observation, b.weight) for b in mode.because[1:]] == [
        (("4.3.2",), "postgres", 0.0),
        ((), DATABASE, diagnosis.CONSEQUENCE),
    ]


def test_connections_that_are_all_taken_explain_that_nobody_comes_in() -> None:
    """With both services kept out, whoever holds the connections is still the answer, and not the services' rights."""
    told = ("delivery.blocked", "relay.blocked", "database.keeps_out", "database.no_connections")
    verdict = conclude([seen(o, *BOOK.evidence(o)) for o in told])
    assert (verdict.stuck_at, verdict.failure_modes[0].id) == (DATABASE, "FM-DB-01")
    assert (verdict.confidence, verdict.between) == ("high", ())


def test_loops_that_hang_with_a_broken_connection_are_not_surely_their_own_fault() -> None:
    restart = Proposal("restart_entitlement", "restart", "5.1", guarded="runbook act restart entitlement")
    relay = replace(seen("4.1.3", *BOOK.evidence("relay.hangs")), proposals=(restart,))
    told = [relay, seen("4.1.1", *BOOK.evidence("delivery.hangs"))]
    lost = seen("4.5.1", *BOOK.evidence("exceptions.database_lost"))
    assert conclude(told).stuck_at == "relay"
    verdict = conclude([*told, lost])
    assert verdict.confidence != "high" and verdict.proposals == ()
    assert "database" in {verdict.stuck_at, *verdict.undecided}


def test_what_is_too_early_to_tell_or_undecided_is_not_sure() -> None:
    assert conclude([CLOCK]).look_again_s == 8.0
    waits = replace(seen("3.2", Signal("FM-DB-01", 0.8, "x")), hops=(Hop("delivery_worker", late=True),))
    verdict = conclude([waits])
    assert (verdict.stuck_at, verdict.confidence) == (None, "low") and verdict.undecided


def test_what_is_left_by_elimination_alone_is_not_the_only_one_named() -> None:
    """Those at work are cleared of standing still, and may have lost the very one that waits."""
    at_work = tuple(Signal(hop, -0.5, f"{hop} works") for hop in ("jetstream", "subscriber", "relay"))
    waits = replace(seen("3.1", *at_work), hops=(Hop("subscriber", late=True),))
    assert conclude([waits]).undecided == ("subscriber", DATABASE)
    suspected = seen("3.2", Signal(DATABASE, 0.3, "slow"))
    assert conclude([waits, suspected]).undecided == (DATABASE,)


def test_a_broker_that_works_is_stuck_where_it_refuses_what_is_too_large() -> None:
    refused = seen("4.1.3", *BOOK.evidence("publish.fails_too_large"))
    well = [seen(step, *BOOK.evidence(o)) for step, o in (("2.3", "broker.well"), ("4.1.2", "subscriber.bound"))]
    verdict = conclude([refused, *well])
    assert (verdict.stuck_at, verdict.failure_modes[0].id) == ("jetstream", "FM-NATS-09")


def test_nothing_lets_events_flow_into_a_trigger_that_was_new_when_they_stopped() -> None:
    locked = seen("4.1.4", *BOOK.evidence("database.blocked_for_long"), proposals=("end_blocker", "logs"))
    trigger = seen("3.6", *BOOK.evidence("changed.queue_trigger"))
    assert [p.name for p in conclude([locked]).proposals] == ["end_blocker", "logs"]
    assert [p.name for p in conclude([locked, trigger]).proposals] == ["logs"]


OVER = OutageEnd(pd.Timestamp("2026-07-01T03:12:40Z"), say("outage.published", n=3))


def left(step: str, *signals: tuple[str, float], status: Status = Status.WARNING, ended: OutageEnd = OVER) -> Finding:
    """A finding that is only what an outage has left."""
    return replace(finding(step, *signals, status=status), ended=ended)


def test_what_an_outage_that_is_over_has_left_has_no_place_and_section_six_is_next() -> None:
    later = replace(OVER, since=OVER.since + pd.Timedelta(seconds=9), by=say("outage.sent_again", n=3))
    changed = replace(finding("3.6", status=Status.OK), ended=replace(OVER, after=say("ui.no_action")))
    well = finding("4.1.1", status=Status.OK)
    verdict = conclude([left("3.1"), well, left("4.4.2", ("FM-NOTI-03", 0.8), ended=later), changed])
    assert (verdict.status, verdict.stuck_at, verdict.confidence) == (Status.WARNING, None, "high")
    assert verdict.ended == replace(later, after=say("ui.no_action"))
    assert verdict.next_sections == ("6",)
    text = render.location(verdict)
    assert text.startswith("The outage ended at 03:12:49 UTC: sends succeed again (3 since then)")
    assert "shortly before that" in text
    stored = record.verdict(verdict)["ended"]
    assert stored["since"] == later.since.isoformat() and "送信" in stored["by"]["ja"]
    told = record.finding(left("3.1"))
    assert record.finding(record.finding_from_json(told)) == told


@pytest.mark.parametrize(
    "goes_on",
    [
        finding("4.3.2", status=Status.WARNING),
        finding("4.1.2", ("subscriber", 0.9), status=Status.WARNING),
        left("4.4.1", status=Status.CRITICAL),
        unknown("4.1.2", Reason.TIMEOUT, say("ui.no_action")),
        replace(finding("4.1.1", status=Status.OK), values=(Value("delivery.look_again", 8.0, "s"),)),
        replace(finding("3.1", status=Status.OK), hops=(Hop("delivery_worker", late=True),)),
    ],
)
def test_beside_anything_that_goes_on_nothing_is_over(goes_on: Finding) -> None:
    verdict = conclude([left("3.1"), goes_on])
    assert verdict.ended is None and "6" not in verdict.next_sections
    assert "Over" not in render.location(verdict)


def test_whoever_is_told_critical_is_told_where_to_read_on() -> None:
    assert conclude([seen("4.1.2", Signal("FM-NATS-02", 0.9, "a"))]).next_sections == ("4.4",)
    assert conclude([seen("6.2")]).next_sections == ("3",)
    assert conclude([seen("6.2"), seen("3.1")]).next_sections == ("2",)


def test_a_difference_without_an_effect_names_no_place_and_is_a_warning() -> None:
    differs, passes = seen("2.4", *BOOK.evidence("scope.schema_differs")), BOOK.evidence("flow.passes")
    assert conclude([differs]).stuck_at == DATABASE, "nobody has seen that events pass"
    well = replace(seen("3.1", *passes), status=Status.OK)
    calm = conclude([well, differs])
    assert (calm.stuck_at, calm.undecided, calm.status, calm.failure_modes) == (None, (), Status.WARNING, ())
    assert [c.observation for c in calm.contradicted] == ["scope.schema_differs"]
    late = replace(seen("4.1.1"), hops=(Hop("delivery_worker", late=True),))
    assert conclude([well, differs, late]).stuck_at == DATABASE, "by now something is late"
    race = seen("4.3.1", *BOOK.evidence("leases.race"))
    assert conclude([well, differs, race]).stuck_at == "delivery_worker", "that rows are sent twice delays none"
    slow = seen("4.1.1", *BOOK.evidence("database.slow_way"))
    steady = replace(seen("3.1", *passes, *BOOK.evidence("flow.steady")), status=Status.OK)
    assert (conclude([well, slow]).stuck_at, conclude([steady, slow]).stuck_at) == (DATABASE, None), "fewer come in"
    key = seen("4.2.1", *BOOK.evidence("duplicates.key_broken"))
    assert conclude([well, key]).failure_modes[0].id == "FM-NOTI-01", "it names no place, and what it will do"
    unused = seen("4.2.2", *BOOK.evidence("duplicates.in_order"))
    calm = conclude([replace(unused, status=Status.OK), key])
    assert (calm.status, calm.failure_modes) == (Status.WARNING, ()), "no redelivery has used the gap"


def test_an_action_that_is_no_mode_s_remedy_is_proposed_with_what_its_step_speaks_for() -> None:
    undo = Proposal("undo_settings", "set", "5.2", guarded="runbook act set")
    off = replace(seen("4.1.1", *BOOK.evidence("delivery.off")), proposals=(undo,))
    refused = seen("4.5.1", *BOOK.evidence("exceptions.lacks_rights"))
    assert conclude([off]).proposals == (undo,)
    assert conclude([off, refused]).proposals == (), "first the database, whose words are its own"
    first_look = replace(off, step="3.2", signals=(*off.signals, *refused.signals))
    assert conclude([first_look, off, refused]).proposals == ()
    look = replace(undo, guarded="")
    assert conclude([replace(off, proposals=(look,)), refused]).proposals == (look,), "what only looks stays"


def test_the_step_that_accuses_a_place_says_why_even_if_it_knows_something_for_it() -> None:
    idle, accuses = finding("4.1.2", status=Status.OK), finding("4.1.1", ("relay", 0.7), ("relay", -0.9))
    assert deciding_finding([idle, accuses], "relay").step == "4.1.1"


def test_a_status_that_blames_the_request_leaves_open_which_side_changed() -> None:
    names = ("delivery.refused", "receiver.answers", "sends.rejected")
    told = (signal for name in names for signal in BOOK.evidence(name))
    verdict = conclude([replace(seen("4.5.2", *told), hops=(Hop("delivery_worker", late=True),))])
    assert (verdict.stuck_at, verdict.undecided) == (None, ("delivery_worker", "receiver"))
    assert verdict.proposals == ()
