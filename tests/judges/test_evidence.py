"""What the services, the database and the broker say of a loop, read: pure, over generated looks."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from runbook_lib.book import messages
from runbook_lib.checks.check import failures
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.model.finding import Frames, Reason
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.actions import change
from runbook_lib.packs.entitlement.checks import consistency, program
from runbook_lib.packs.entitlement.evidence import logins, services, sessions
from runbook_lib.packs.entitlement.evidence.services import LoopActivity, RequestResult, ServiceRequest, ServiceSeen
from runbook_lib.packs.entitlement.evidence.sessions import Sessions, SessionsSeen, SessionState
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources.source import SourceError
from tests.kit.findings import BOOK
from tests.kit.findings import seen as finding
from tests.kit.frames.services import AT_WORK, NOBODY, Series, looked, of_sessions, process
from tests.kit.steps import NOW, make_given

GIVEN = make_given()


def runs(worker: str, n: float, exception: str = "none") -> Series:
    outcome = "SUCCESS" if exception == "none" else "ERROR"
    return {("tasks_scheduled_execution_seconds_count", worker, exception, outcome): n}


def inside(worker: str, seconds: float) -> Series:
    name = "tasks_scheduled_execution_active_seconds"
    return {(f"{name}_count", worker): float(seconds > 0), (f"{name}_max", worker): seconds}


def delivery(*looks: Series, **how: Any) -> services.LoopSeen:
    return services.read(looked(*looks, **how), GIVEN)["notification"].loops["delivery"]


WORKER, RETENTION = "NotificationDeliveryWorker", "NotificationRetentionWorker"


@pytest.mark.parametrize(
    ("first", "second", "doing"),
    [
        (runs(WORKER, 500), runs(WORKER, 504), LoopActivity.RUNS),
        (runs(WORKER, 500), runs(WORKER, 500) | runs(WORKER, 4, "UncategorizedSQLException"), LoopActivity.FAILS),
        (runs(WORKER, 500), runs(WORKER, 501) | inside(WORKER, 2), LoopActivity.RUNS),
        (runs(WORKER, 500) | inside(WORKER, 8), runs(WORKER, 500) | inside(WORKER, 12), LoopActivity.LONG),
        (runs(WORKER, 500) | inside(WORKER, 0), runs(WORKER, 500) | inside(WORKER, 1), LoopActivity.NOT_SEEN),
        (runs(WORKER, 500), runs(WORKER, 500), LoopActivity.STILL),
        (runs(WORKER, 20), runs(WORKER, 20), LoopActivity.NOT_SEEN),  # one run in 30 s: its pause may be as long
        (runs(WORKER, 500), runs(WORKER, 500) | runs(RETENTION, 1) | inside(RETENTION, 60), LoopActivity.BEHIND),
        ({}, runs(RETENTION, 1), LoopActivity.OFF),
        ({}, {}, LoopActivity.NOT_SEEN),
        ({}, inside(RETENTION, 60), LoopActivity.BEHIND),  # the clean-up of its start holds the thread
        ({}, inside(RETENTION, 3), LoopActivity.NOT_SEEN),
        ({}, runs("SomeOtherWorker", 9), LoopActivity.NOT_SEEN),  # another version, with other names
        ({}, runs(RETENTION, 1) | inside(WORKER, 2), LoopActivity.NOT_SEEN),
    ],
)
def test_what_a_loop_does_shows_in_two_looks(first: Series, second: Series, doing: LoopActivity) -> None:
    assert delivery(process() | first, process() | second).doing is doing


def test_a_failing_loop_is_told_with_its_exception_and_its_share() -> None:
    before = process() | runs(WORKER, 500) | runs(WORKER, 7, "OldException")
    after = process() | runs(WORKER, 501) | runs(WORKER, 7, "OldException") | runs(WORKER, 3, "BadSqlGrammarException")
    found = delivery(before, after)
    assert (found.doing, found.exception, found.share) == (LoopActivity.FAILS, "BadSqlGrammarException", 0.75)


def test_one_look_tells_what_is_off_and_what_has_been_long_and_nothing_else() -> None:
    assert delivery(process() | runs(RETENTION, 1)).doing is LoopActivity.OFF
    assert delivery(process() | runs(WORKER, 500) | inside(WORKER, 40)).doing is LoopActivity.LONG
    assert delivery(process() | runs(WORKER, 500)).doing is LoopActivity.NOT_SEEN


def test_a_young_process_has_not_switched_off_anything() -> None:
    young = process(NOW.timestamp() - 3) | runs(RETENTION, 1)
    assert delivery(young).doing is LoopActivity.NOT_SEEN
    assert delivery(runs(RETENTION, 1)).doing is LoopActivity.NOT_SEEN  # nor one of no known age


def test_counts_of_the_process_before_are_not_compared() -> None:
    frames = looked(process() | runs(WORKER, 500), process(NOW.timestamp() - 2) | runs(WORKER, 1))
    seen = services.read(frames, GIVEN)["notification"]
    assert seen.age_s == pytest.approx(2)
    assert seen.loops["delivery"].doing is LoopActivity.NOT_SEEN


def test_the_pool_that_has_no_connection_and_is_waited_for() -> None:
    shut = process(hikaricp_connections=0, hikaricp_connections_pending=2)
    assert services.read(looked(shut), GIVEN)["notification"].locked_out
    busy = process(hikaricp_connections=10, hikaricp_connections_pending=2)
    assert not services.read(looked(busy), GIVEN)["notification"].locked_out
    assert not services.read(looked(process()), GIVEN)["notification"].locked_out


@pytest.mark.parametrize(
    ("reason", "code", "answers"),
    [
        ("timeout", "hung", RequestResult.HUNG),
        ("timeout", "no_answer", RequestResult.NOT_SEEN),
        ("unreachable", "no_connection", RequestResult.CLOSED),
        ("not_configured", "", RequestResult.NOT_SEEN),
        ("denied", "403", RequestResult.NOT_SEEN),
    ],
)
def test_who_does_not_answer_is_not_seen_to_do_anything(reason: str, code: str, answers: RequestResult) -> None:
    frames = looked(process() | runs(WORKER, 500), process() | runs(WORKER, 504))
    frames["service_asked"] = pd.DataFrame([vars(ServiceRequest("notification", NOW, "service", reason, code, "x"))])
    seen = services.read(frames, GIVEN)
    assert seen["notification"].answers is answers
    if answers in (RequestResult.HUNG, RequestResult.CLOSED):  # it answered a moment ago: that is over
        assert seen["notification"].loops["delivery"].doing is LoopActivity.NOT_SEEN
    assert seen["entitlement"] == ServiceSeen(loops={"relay": services.LoopSeen()})


def test_prometheus_stands_in_where_the_service_is_not_declared() -> None:
    frames = looked(process() | runs(WORKER, 500), process() | runs(WORKER, 556), gap_s=60, by="prometheus")
    seen = services.read(frames, GIVEN)["notification"]
    assert (seen.by, seen.answers) == ("prometheus", RequestResult.NOT_SEEN)
    assert seen.loops["delivery"].doing is LoopActivity.RUNS
    both = services.concat_samples(frames, looked(process() | runs(WORKER, 557)))
    assert services.read(both, GIVEN)["notification"].by == "service"


class Run:
    """As much of a run's context as a look needs: no address of a service, and a Prometheus or none."""

    def __init__(self, vector: pd.DataFrame | None) -> None:
        self.vector, self.asked = vector, list[pd.Timestamp]()

    def source(self, name: str) -> Any:
        return self

    def service(self, name: str) -> Any:
        raise SourceError(name, Reason.NOT_CONFIGURED, "not declared")

    def now(self) -> pd.Timestamp:
        return NOW

    def instant(self, promql: str, at: pd.Timestamp) -> pd.DataFrame:
        self.asked.append(at)
        if self.vector is None:
            raise SourceError("prometheus", Reason.NOT_CONFIGURED, "not declared")
        grown = self.vector["__name__"].str.endswith("_count") & (at == NOW)
        return self.vector.assign(value=self.vector["value"] + 56 * grown)


def test_a_prometheus_is_asked_for_two_of_its_moments() -> None:
    spring, count = "com.example.", "tasks_scheduled_execution_seconds_count"
    vector = pd.DataFrame(
        [
            {"__name__": count, "application": "notification", "instance": "10.0.0.7:8080",
             "code_namespace": spring + WORKER, "exception": "none", "outcome": "SUCCESS", "value": 100.0},
            {"__name__": count, "instance": "entitlement:80", "code_namespace": spring + "EntitlementOutboxWorker",
             "exception": "X", "outcome": "ERROR", "value": 7.0},
            {"__name__": count, "instance": "entitlements-of-others:80", "code_namespace": "x", "value": 1e9},
        ]
    )  # fmt: skip
    run = Run(vector)
    seen = services.read(services.collect(run), GIVEN)  # type: ignore[arg-type]
    assert [(NOW - at).total_seconds() for at in run.asked] == [60, 0]
    assert (seen["notification"].by, seen["notification"].loops["delivery"].doing) == ("prometheus", LoopActivity.RUNS)
    relay = seen["entitlement"].loops["relay"]
    assert (relay.doing, relay.exception, relay.share) == (LoopActivity.FAILS, "X", 1.0)


def test_without_any_way_to_the_services_nothing_is_seen() -> None:
    frames = services.collect(Run(None))  # type: ignore[arg-type]
    assert list(frames["service_samples"].columns) == services.SAMPLE_COLUMNS and frames["service_samples"].empty
    seen = services.read(frames, GIVEN)
    assert {s.answers for s in seen.values()} == {RequestResult.NOT_SEEN}
    assert {loop.doing for s in seen.values() for loop in s.loops.values()} == {LoopActivity.NOT_SEEN}


_SERIES = st.dictionaries(
    st.one_of(
        st.tuples(st.sampled_from(services._SERIES)),
        st.tuples(
            st.sampled_from(services._SERIES[:3]),
            st.sampled_from([WORKER, RETENTION, "EntitlementOutboxWorker", ""]),
            st.sampled_from(["none", "", "X"]),
            st.sampled_from(["SUCCESS", "ERROR", ""]),
        ),
    ),
    st.floats(0, 1e10) | st.just(float("nan")),
)


@example([{("process_start_time_seconds",): 1e10}], 1.0)  # no moment that a timestamp can hold
@given(st.lists(_SERIES, max_size=3), st.floats(0.1, 100))
def test_reading_is_total_and_names_no_share_that_is_none(looks: list[Series], gap_s: float) -> None:
    seen = services.read(looked(*looks, gap_s=gap_s), GIVEN)
    assert set(seen) == {"entitlement", "notification"}
    for one in seen.values():
        for loop in one.loops.values():
            assert loop.share is None or 0 <= loop.share <= 1
            assert loop.doing is not LoopActivity.FAILS or loop.exception
    assert services.read({}, GIVEN)["notification"].answers is RequestResult.NOT_SEEN


@given(st.floats(2, 1000), st.integers(1, 1000), st.floats(2, 20))
def test_nobody_is_said_to_stand_still_who_may_only_pause(pause_s: float, n: int, gap_s: float) -> None:
    """A loop with whatever pause: as many runs as fit in its age, and none in the gap because the gap is shorter."""
    age = pause_s * n
    series = process(NOW.timestamp() - age) | runs(WORKER, n)
    assume(gap_s < pause_s and pause_s > 2 * facts_of(GIVEN).poll_interval_s)
    assert delivery(series, series, gap_s=gap_s).doing is LoopActivity.NOT_SEEN


def test_a_step_takes_the_services_word_where_no_runner_is_in_reach() -> None:
    off = looked(process() | runs(RETENTION, 1))
    assert program.loop_state(off, make_given(), "delivery").state == "off"
    assert program.loop_state(off, make_given(), "relay").state is None
    assert program.loop_state({}, make_given(), "delivery").state is None
    not_up = {"program": row(enabled=True, replicas=1, ready=0)}
    assert program.loop_state(not_up, make_given(), "delivery").state == "not_up"
    assert program.loop_state(off | not_up, make_given(), "delivery").state == "off"


def unanswered(code: str) -> Frames:
    reason = "unreachable" if code == "no_connection" else "timeout"
    return {"service_asked": pd.DataFrame([vars(ServiceRequest("notification", NOW, "service", reason, code, "x"))])}


GONE: dict[str, Any] = {"sessions": 0, "newest": None, "poll": None}
WORKS = looked(process() | runs(WORKER, 500), process() | runs(WORKER, 504))
STILL = looked(process() | runs(WORKER, 500), process() | runs(WORKER, 500))
LONG = looked(process() | inside(WORKER, 20), process() | inside(WORKER, 24))


#: A process that came up 17 s ago.
AGED_17S: dict[str, Any] = {"ready": 1, "young": True, "started": NOW - pd.Timedelta("17s")}


def at_now(frames: Frames) -> Frames:
    """The frames of `of_sessions` with the time of their samples: the last one now."""
    return frames | {"transactions": frames["transactions"].assign(at=NOW)}


def sent(seconds_ago: float) -> Frames:
    return {"activity": row(now=NOW, last_sent=NOW - pd.Timedelta(seconds=seconds_ago))}


#: What the recorded states of 4.1.3 do not show of the relay.
@pytest.mark.parametrize(
    ("frames", "program_seen", "observations"),
    [
        (WORKS | of_sessions(), {}, "delivery.runs"),
        (WORKS | of_sessions(newest=90.0, poll=90.5), {"ready": 0}, "delivery.runs"),  # its own word counts most
        (of_sessions(), {}, "delivery.runs"),
        (of_sessions(looks=1), {}, ""),  # it speaks; whether it is heard takes two looks
        (of_sessions(newest=90.0, poll=90.5), {"ready": 0}, "delivery.hangs"),  # its probes fail as well
        (unanswered("hung") | of_sessions(newest=6.0, poll=6.0), {}, "delivery.hangs"),
        (unanswered("hung") | of_sessions(), {}, "delivery.runs"),  # a way to nowhere: the database hears of it
        (unanswered("hung"), {}, ""),
        (STILL | of_sessions(newest=90.0, poll=90.5), {}, "delivery.hangs"),  # it answers, so it is not the process
        (unanswered("no_connection") | of_sessions(**GONE), {"ready": 1}, "delivery.not_up"),
        (WORKS | of_sessions(**GONE), {}, "delivery.runs"),
        (of_sessions(**GONE, entitlement=0), {"ready": 1}, "database.no_session"),
        (of_sessions(**GONE, entitlement=0), {"ready": 0}, "delivery.not_up"),
        (of_sessions(**GONE, entitlement=0), {}, ""),  # both may be there by other names
        (of_sessions(poll=90.0), {"enabled": True}, "delivery.hangs"),
        (of_sessions(newest=20.0, poll=20.5), {"enabled": True, "poll_s": 10.0}, "delivery.runs"),  # its pauses
        (of_sessions(poll=14.0), AGED_17S, "delivery.starting"),  # no clock stands beside the sessions
        (at_now(of_sessions(poll=14.0)), AGED_17S, ""),  # it has worked since its start, and is silent too briefly
        (at_now(of_sessions(poll=16.0)), AGED_17S | {"enabled": True}, "delivery.hangs"),
        (at_now(of_sessions(poll=18.0)), AGED_17S, "delivery.starting"),  # its statement is of the process before
        (STILL | of_sessions(poll=90.0), AGED_17S, "delivery.hangs"),  # it has counted 500 runs
        (of_sessions(poll=90.0) | sent(4.0), AGED_17S | {"enabled": True}, "delivery.hangs"),
        (of_sessions(poll=90.0) | sent(18.0), AGED_17S, "delivery.starting"),
        (of_sessions(**GONE), {"ready": 0, "young": True}, "delivery.starting"),
        (of_sessions(**GONE), {"ready": 0, "young": False}, "delivery.not_up"),  # it has ended at its start before
        (WORKS | of_sessions(), {"ready": 1, "young": True}, "delivery.runs"),
        (LONG | of_sessions(poll=90.0), {}, "delivery.hangs"),
        (LONG | of_sessions(), {}, ""),  # each row may take long
    ],
)  # fmt: skip
def test_how_a_loop_stands(frames: Frames, program_seen: dict[str, Any], observations: str) -> None:
    asked = frames | ({"program": row(**program_seen)} if program_seen else {})
    assert " ".join(program.loop_state(asked, make_given(), "delivery").observations) == observations


def test_who_works_where_nobody_is_wanted_is_found_before_another_is_started() -> None:
    asked = of_sessions() | {"program": row(ready=0, wanted=0)}
    stands = program.loop_state(asked, make_given(), "delivery")
    assert stands.observations == ("delivery.down", "delivery.elsewhere")
    assert [p.name for p in program.proposals(make_given(), stands)] == ["pods"]
    assert "10 of its database sessions" in messages.text(stands.headline(due=0), "en")


@pytest.mark.parametrize(
    ("program_seen", "sessions_seen", "elsewhere"),
    [
        ({"ready": 1, "wanted": 1}, 20, True),
        ({"ready": 1, "wanted": 1}, 11, False),
        ({"ready": 2, "wanted": 2}, 20, False),
        ({"ready": 1, "wanted": 1, "young": True}, 20, False),  # those of the instance before may not have ended
        ({}, 20, False),  # nobody knows how many instances there are
    ],
)
def test_who_works_beside_its_one_instance_is_found_by_the_sessions(
    program_seen: dict[str, Any], sessions_seen: int, elsewhere: bool
) -> None:
    pool = process(hikaricp_connections=10)
    frames = looked(pool | runs(WORKER, 500), pool | runs(WORKER, 504)) | of_sessions(sessions=sessions_seen)
    stands = program.loop_state(frames | {"program": row(**program_seen)}, make_given(), "delivery")
    assert stands.state == "runs" and not stands.wrong
    assert ("delivery.elsewhere" in stands.observations) is elsewhere
    if elsewhere:
        assert [p.name for p in program.proposals(make_given(), stands)] == ["pods"]


@pytest.mark.parametrize(
    ("frames", "ran"),
    [
        (looked(process() | runs(WORKER, 500), process() | runs(WORKER, 502), gap_s=1.5), True),
        (looked(process() | runs(WORKER, 500), process() | runs(WORKER, 500) | inside(WORKER, 2), gap_s=2.5), False),
        (looked(process() | runs(WORKER, 500)), False),
        # What a Prometheus has scraped is up to its interval old.
        (looked(process() | runs(WORKER, 500), process() | runs(WORKER, 560), gap_s=60, by="prometheus"), False),
        ({}, False),
    ],
)
def test_a_full_cycle_is_one_that_the_service_itself_has_counted_between_two_looks(frames: Frames, ran: bool) -> None:
    assert program.seen_running(frames, make_given(), "delivery") is ran


def test_only_what_hangs_is_restarted() -> None:
    restarted = {
        state for state in program.ProcessState
        for p in program.proposals(make_given(), program.LoopState("delivery", state)) if p.name.startswith("restart")
    }  # fmt: skip
    assert restarted == {"hangs", "may_hang"}


# Sessions ---------------------------------------------------------------------------------------------------


def held(row: Sessions, either: Sessions = NOBODY, transactions: list[tuple[int, int]] | None = None) -> SessionsSeen:
    frames = {
        "service_sessions": pd.DataFrame([vars(row), vars(either)]),
        "transactions": pd.DataFrame(transactions or [], columns=["commits", "rollbacks"]),
    }
    return sessions.read(frames, GIVEN)["notification"]


@pytest.mark.parametrize(
    ("changes", "says", "sure"),
    [
        ({}, SessionState.ALIVE, False),
        ({"sees_others": False}, SessionState.NOT_SEEN, False),
        ({"sessions": 0, "newest": None, "poll": None}, SessionState.NONE, False),
        ({"sessions": 0, "newest": None, "poll": None, "strangers": 10}, SessionState.NOT_SEEN, False),
        ({"newest": 20.0, "poll": 20.5}, SessionState.FROZEN, False),
        ({"newest": 90.0, "poll": 90.5}, SessionState.FROZEN, True),
        ({"newest": 7.0, "poll": 7.0}, SessionState.NOT_SEEN, False),  # too early to tell
        ({"newest": 0.5, "poll": 90.0}, SessionState.LOOP_SILENT, False),
        ({"poll": None}, SessionState.LOOP_SILENT, False),
        ({"poll": None, "newest": 90.0}, SessionState.LOOP_SILENT, False),
        ({"poll": None, "since": 4.0}, SessionState.NOT_SEEN, False),
        ({"waiting": 1}, SessionState.BLOCKED, False),
        ({"working": 1, "newest": 40.0, "poll": 40.0}, SessionState.BLOCKED, False),
        ({"working": 1}, SessionState.ALIVE, False),
    ],
)
def test_what_the_sessions_of_a_service_show(changes: dict[str, Any], says: SessionState, sure: bool) -> None:
    seen = held(replace(AT_WORK, **changes))
    assert (seen.says, seen.sure) == (says, sure)


@pytest.mark.parametrize("side", ["delivery", "relay"])
def test_a_session_that_waits_for_a_lock_forbids_the_restart_of_a_stopped_loop(side: str) -> None:
    rows = [replace(AT_WORK, service=service, waiting=1) for service in ("notification", "entitlement")]
    frames = {"service_sessions": pd.DataFrame(map(vars, rows))}
    stopped = program.with_due_rows(program.loop_state(frames, GIVEN, side), stopped=True)
    assert stopped.observations == (f"{side}.blocked", "database.holds_up", f"{side}.locked")
    assert program.proposals(GIVEN, stopped) == ()
    restart = f"restart_{change.SIDES[side][0]}"
    other = finding("4.3.2", *BOOK.evidence(f"{side}.hangs"), proposals=(restart,))
    assert [p.name for p in conclude([other], BOOK).proposals] == [restart]
    assert conclude([other, finding("4.1.1", *BOOK.evidence(f"{side}.locked"))], BOOK).proposals == ()


def test_sessions_that_could_not_be_read_are_a_failure_of_the_step() -> None:
    late = SourceError("postgres", Reason.TIMEOUT, "canceling statement", "statement_timeout")
    rb, parts = MagicMock(now=lambda: NOW, facts=GIVEN.facts), FrameCollector()
    rb.first.return_value = rb.shared.return_value = {}
    rb.given.return_value, rb.snapshot.side_effect, rb.workloads.environment.side_effect = GIVEN, late, late
    program.ask(rb, "4.1.3", parts, "relay", late=False)
    assert parts.failures.keys() == {"sessions"} and parts.answers == {}
    rb.source.side_effect = rb.workloads.pods.side_effect = late
    rb.service.side_effect = late
    logins.collect_without_log(rb, parts, "notification")
    assert parts.failures.keys() == {*logins.PARTS}


@pytest.mark.parametrize(("code", "less"), [("cost_gate", True), ("statement_timeout", False)])
def test_only_the_cost_gate_makes_a_step_read_less(code: str, less: bool) -> None:
    rb = MagicMock(as_of=NOW, number=GIVEN.number, now=lambda: NOW)
    db = rb.snapshot.return_value.__enter__.return_value
    db.ask_apart.side_effect = SourceError("postgres", Reason.TIMEOUT, "", code)
    found = consistency.collect_dead_letters(rb)
    assert failures(found).keys() == {"failed", "letters"} and ("scope" in found) is less
    with nullcontext() if less else pytest.raises(SourceError):
        consistency.collect_audit(rb)
    assert db.ask.called is less


def test_none_is_not_said_while_somebody_unnamed_is_there() -> None:
    nobody = replace(AT_WORK, sessions=0, newest=None, poll=None)
    assert held(nobody, replace(NOBODY, sessions=2, newest=0.3)).says is SessionState.NOT_SEEN


def test_sessions_that_a_pooler_lends_to_all_tell_nothing() -> None:
    silent = replace(AT_WORK, sessions=3, newest=90.0, poll=90.5)
    others = replace(AT_WORK, service="entitlement", sessions=2)

    def read(*found: Sessions) -> SessionState:
        return sessions.read({"service_sessions": pd.DataFrame(map(vars, found))}, GIVEN)["notification"].says

    assert read(silent, others) is SessionState.NOT_SEEN
    assert read(replace(silent, sessions=0), others) is SessionState.NOT_SEEN
    unnamed = replace(NOBODY, sessions=14)
    assert read(silent, others, unnamed) is SessionState.FROZEN, "who is not told apart counts as well"
    assert read(replace(silent, sessions=10), replace(others, sessions=0)) is SessionState.FROZEN


@pytest.mark.parametrize(
    ("transactions", "says"),
    [
        ([(100, 5), (103, 25)], SessionState.FAILING),
        ([(100, 5), (400, 8)], SessionState.ALIVE),
        ([(100, 5), (100, 7)], SessionState.ALIVE),  # a lost race for a row
        ([(100, 5)], SessionState.ALIVE),
    ],
)
def test_failing_is_told_by_what_is_rolled_back(transactions: list[tuple[int, int]], says: SessionState) -> None:
    assert held(AT_WORK, transactions=transactions).says is says


@pytest.mark.parametrize(
    ("refused", "says"),
    [((3, 23), SessionState.ALIVE), ((3, 3), SessionState.FAILING), ((90, 0), SessionState.FAILING)],
)
def test_redeliveries_that_the_key_refuses_are_no_failing_loop(refused: tuple[int, int], says: SessionState) -> None:
    frames = {
        "service_sessions": pd.DataFrame([vars(AT_WORK), vars(NOBODY)]),
        "transactions": pd.DataFrame({"commits": [100, 103], "rollbacks": [5, 25], "refused": refused}),
    }
    assert sessions.read(frames, GIVEN)["notification"].says is says, "a clean-up may have removed the dead rows"


@pytest.mark.parametrize(
    ("samples_ago", "committed", "says"),
    [
        ((), True, SessionState.ALIVE),
        ((2.4, 2.2, 2.0, 1.8, 1.6, 1.4), True, SessionState.FAILING),
        ((2.4, 2.2, 2.0, 1.8, 1.6, 1.4), None, SessionState.ALIVE),  # of an older artifact: rolled back
        ((0.9, 0.8, 0.7, 0.6, 0.5, 0.4), True, SessionState.ALIVE),  # perhaps not reported yet
        ((9.0, 8.9, 8.8, 8.7, 8.6, 8.5), True, SessionState.ALIVE),  # before the first sample
    ],
)
def test_the_runbooks_own_transactions_do_not_count(
    samples_ago: tuple[float, ...], committed: bool | None, says: SessionState
) -> None:
    at = [NOW - pd.Timedelta(seconds=2.5), NOW]
    frames = {
        "service_sessions": pd.DataFrame([vars(AT_WORK), vars(NOBODY)]),
        "transactions": pd.DataFrame({"commits": [100, 108], "rollbacks": [0, 5], "at": at}),
        "worker_samples": pd.DataFrame(
            [(NOW - pd.Timedelta(seconds=s), committed) for s in samples_ago], columns=["at", "committed"]
        ),
    }
    assert sessions.read(frames, GIVEN)["notification"].says is says


@pytest.mark.parametrize(("poll", "sure"), [(0.4, True), (2.2, True), (2.6, False), (4.5, False)])
def test_a_loop_is_seen_to_run_only_by_what_it_said_after_the_first_look(poll: float, sure: bool) -> None:
    """What it said before may have been its last word: it may hang for as long as that is ago."""
    frames = {
        "service_sessions": pd.DataFrame([vars(replace(AT_WORK, poll=poll))]),
        "transactions": pd.DataFrame(
            {"commits": [100, 400], "rollbacks": [0, 0], "at": [NOW - pd.Timedelta(seconds=2.5), NOW]}
        ),
    }
    seen = sessions.read(frames, GIVEN)["notification"]
    assert (seen.says, seen.sure) == (SessionState.ALIVE, sure)


def test_all_without_a_session_is_the_door() -> None:
    gone = {s: SessionsSeen(SessionState.NONE, sessions=0) for s in ("entitlement", "notification")}
    assert sessions.no_service_has_sessions(gone)
    assert not sessions.no_service_has_sessions(gone | {"entitlement": SessionsSeen()})
    assert not sessions.no_service_has_sessions({})
    assert sessions.read({}, GIVEN)["entitlement"].says is SessionState.NOT_SEEN
