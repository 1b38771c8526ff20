"""5.1.1: logs are read as they are, counted by phrase, and judged with the tables; on frames of every shape."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.checks.check import checks
from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.model.finding import Finding, Frames, Reason, Status
from runbook_lib.notebook.session import quiet_session
from runbook_lib.packs.entitlement.checks import exceptions
from runbook_lib.packs.entitlement.facts import EntitlementWorkloads
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import logs
from runbook_lib.sources import settings as target_settings
from tests.kit.frames import recovery
from tests.kit.frames.exceptions import AT, HEALTHY, PHRASES, RETRY, SENT, about, failed, line, log, tables
from tests.kit.steps import ago, expect, make_given, read_log, weight, words

CHECKS = checks()
CHECK = CHECKS["5.1.1"]


# The lines ------------------------------------------------------------------------------------------------------

JAVA = """\
2025-01-31T03:00:01.123Z  INFO 1 --- [notification] [main] c.e.n.Worker : notification subscriber started
2025-01-31T03:00:02.123Z ERROR 1 --- [notification] [scheduling-1] o.s.s.s.TaskUtils : Unexpected error occurred
org.springframework.dao.DataAccessResourceFailureException: could not connect
\tat com.example.Worker.run(Worker.java:12)
Caused by: java.net.ConnectException: Connection refused
\t... 12 more
2025-01-31T03:00:03.123+00:00  WARN 1 --- [x] [y] c.e.n.Worker : notification moved to DLQ id=1 eventId=2
no time of its own""".splitlines()

PYTHON = """\
{"@timestamp": "2025-01-31T03:00:01.5Z", "severity": "INFO", "logger": "a", "message": "fine"}
Traceback (most recent call last):
  File "pod.py", line 1, in main
    run()
psycopg.errors.AdminShutdown: terminating connection
{"@timestamp": "2025-01-31T03:00:02Z", "severity": "ERROR", "message": "failed", "stack_trace": "Traceback (most \
recent call last):\\n  File x\\nConnectionRefusedError: [Errno 111] Connection refused"}
{not json""".splitlines()


def told(lines: list[str]) -> list[tuple[str, str, str]]:
    return [(r.level, r.message, r.error) for r in read_log(*lines).entries]


@pytest.mark.parametrize("prefix", ["", "2025-01-31T03:00:09.000000000Z "])
def test_plain_text_and_its_stack_traces(prefix: str) -> None:
    """With and without the time that a runner puts before each line."""
    assert told([prefix + line for line in JAVA]) == [
        ("INFO", "notification subscriber started", ""),
        ("ERROR", "Unexpected error occurred", "java.net.ConnectException: Connection refused"),
        ("WARN", "notification moved to DLQ id=1 eventId=2", ""),
        ("", "no time of its own", ""),
    ]
    times = [r.time for r in read_log(*(prefix + line for line in JAVA)).entries]
    assert times[0] == datetime(2025, 1, 31, 3, 0, 1, 123000, UTC)
    assert times[3] == (datetime(2025, 1, 31, 3, 0, 9, tzinfo=UTC) if prefix else times[2])


def test_json_and_what_stands_between() -> None:
    assert told(PYTHON) == [
        ("INFO", "fine", ""),
        ("ERROR", "Traceback (most recent call last):", "psycopg.errors.AdminShutdown: terminating connection"),
        ("ERROR", "failed", "ConnectionRefusedError: [Errno 111] Connection refused"),
        ("", "{not json", ""),
    ]


def test_the_loggers_of_java_and_other_times() -> None:
    lines = [
        "SEVERE: errorOccurred, Connection: 5",
        "2025-01-31 03:00:02,123 WARNING slow",
        "2025-99-31T03:00:02Z ERROR x",
    ]
    assert [(r.level, r.message) for r in read_log(*lines).entries] == [
        ("ERROR", "errorOccurred, Connection: 5"),
        ("WARN", "slow"),
        ("ERROR", "x"),
    ]


@pytest.mark.parametrize(
    ("line", "hour"),
    [
        ("2025-01-31T03:00:00Z 2025-01-31 12:00:00,000 ERROR x", 3),
        ('2025-01-31T03:00:00Z {"time": "2025-01-31 12:00:00", "message": "x"}', 3),
        ("2025-01-31T03:00:00Z 2025-01-31 11:00:00+09:00 ERROR x", 2),
        ('2025-01-31T03:00:00Z {"time": "2025-01-31T11:00:00+09:00", "message": "x"}', 2),
        ("2025-01-31 12:00:00 ERROR x", 12),
        ('{"time": "2025-01-31 12:00:00", "message": "x"}', 12),
    ],
)
def test_a_time_without_a_zone_yields_to_the_time_of_the_runner(line: str, hour: int) -> None:
    (entry,) = read_log(line).entries
    assert (entry.time, entry.message) == (datetime(2025, 1, 31, hour, tzinfo=UTC), "x")


def traced(n: int, message: str, frames: int = 60) -> str:
    """An entry with a stack trace, as a line of JSON or as text."""
    trace = "a.BException: of alice, user_id=alice\n" + "\tat com.example.Worker.run(Worker.java:12)\n" * frames
    if n % 2:
        return json.dumps(
            {"@timestamp": "2025-01-31T03:00:01Z", "severity": "ERROR", "message": message, "stack_trace": trace}
        )
    return f"2025-01-31T03:00:01Z ERROR {message}\n{trace}"


def test_of_a_log_only_what_is_kept_is_masked() -> None:
    text, masked = "\n".join(traced(n, f"failed {n}") for n in range(200)), list[str]()
    log = logs.read(text, lambda part: masked.append(part) or part)  # type: ignore[func-returns-value]
    assert len(log.entries) == 200 and {e.error for e in log.entries} == {"a.BException: of alice, user_id=alice"}
    assert sum(map(len, masked)) < len(text) / 50
    (entry,) = read_log(traced(1, "failed", frames=4000)).entries
    assert (entry.level, entry.message) == ("ERROR", "failed"), "however long its line is"


def test_no_half_of_a_secret_is_kept_where_an_entry_is_cut() -> None:
    mask = Masker.of([], "INC-1").scrub
    secrets = ("nats://app:hunter2-Kx9@db-9", "quill.jane@hunter.example", "password='hunter quill'")
    for before, secret in product(range(logs.LONGEST - 40, logs.LONGEST + logs.BEYOND + 20, 3), secrets):
        # What is masked shrinks, so that what was far behind comes near.
        for head in ("x", "password=" + "y" * (before - 12) + " x"):
            lines = [traced(n, f"{head.ljust(before, '.')} {secret} .") for n in (0, 1)]
            for entry in read_log(*lines, mask=mask).entries:
                assert "hunter" not in entry.message and "quill" not in entry.message, before
                assert len(entry.message) <= logs.LONGEST


def test_secrets_of_several_lines_are_masked_before_the_lines_are_told_apart() -> None:
    key = ("-----BEGIN PRIVATE KEY-----", "MIIEhunter2", "QUILLquill", "-----END PRIVATE KEY-----")
    value = ("DB: {name: DB_PASSWORD,", " value: hunter2}")
    started, ended = ("2025-01-31T03:00:01Z INFO started", "2025-01-31T03:00:02Z INFO ended")
    log = read_log(started, *key, *value, ended, mask=Masker().scrub)
    assert "hunter" not in str(log) and "QUILL" not in str(log) and log.entries[-1].message == "ended"


LINES = st.lists(
    st.one_of(
        st.text(max_size=80),
        st.sampled_from(
            [*JAVA, *PYTHON, "", "\t", "{}", '{"message": null, "@timestamp": 5}', '{"stack_trace": ["x"]}']
        ),
        st.dictionaries(st.sampled_from(["@timestamp", "severity", "message", "stack_trace"]), st.text()).map(
            json.dumps
        ),
    ),
    max_size=12,
)


@given(LINES)
def test_any_lines_can_be_read(lines: list[str]) -> None:
    log = read_log(*lines, at=pd.Timestamp("2025-01-31 03:01", tz="UTC"))
    assert len(log.entries) <= log.lines
    assert all(e.time is None or e.time.tzinfo for e in log.entries)
    frames = exceptions.log_frames(log, PHRASES, 15, make_given().number)
    assert frames["log"]["entries"][0] <= len(log.entries)
    words(CHECK.finding(about() | frames, make_given()))
    late = logs.read("\n".join(lines), str, AT)
    assert all(e in log.entries and (e.time is None or e.time >= AT) for e in late.entries) and late.lines <= log.lines


# Counting -------------------------------------------------------------------------------------------------------


def judge(*frames: Frames, workload: str = "notification") -> Finding:
    together = about(workload)
    for f in frames:
        together = together | f
    found = CHECK.finding(together, make_given())
    words(found)
    return found


def test_phrases_are_counted_and_unknown_errors_clustered() -> None:
    cause = "a.BException: x\nCaused by: java.net.ConnectException: to {}"
    frames = log(
        line(800, "notification retry scheduled id=1 attempt=2"),
        *[line(s, f"notification retry scheduled id={s} attempt=1") for s in (50, 30, 10)],
        line(40, "Unexpected error occurred in scheduled task", "ERROR", cause.format("10.0.0.7:5432")),
        line(20, "Unexpected error occurred in scheduled task", "ERROR", cause.format("10.0.0.8:5432")),
        *[line(s, f"pool of userId=bob{s} is slow: {s} ms") for s in (5, 4)],
    )  # fmt: skip
    phrases = frames["phrases"].set_index("phrase")
    retried = phrases.loc["notification retry scheduled"]
    assert (retried["n"], retried["now"], retried["tries_now"], retried["failure_modes"]) == (4, 3, 1, "FM-NOTI-03")
    assert (retried["first"], retried["since"], retried["last"]) == (ago(800), ago(50), ago(10))
    assert retried["per_min"] == pytest.approx(4 / (800 / 60), abs=0.01)
    texts = frames["texts"].set_index("detail")["n"].to_dict()
    assert texts == {
        "java.net.ConnectException: to <address>": 2,
        "pool of userId=<user> is slow: <n> ms": 2,
    }
    assert "bob" not in str({k: f.to_csv() for k, f in frames.items()})


def test_what_is_older_than_asked_is_not_counted() -> None:
    frames = log(line(3600, RETRY), line(60, SENT, "INFO"), minutes=15)
    assert list(frames["phrases"]["phrase"]) == ["notification simulated send"]
    assert (frames["log"]["lines"][0], frames["log"]["entries"][0]) == (2, 1)


def test_texts_are_bounded() -> None:
    # Words that no pattern folds.
    odd = [
        line(5, f"strange {chr(97 + n // 26 // 26)}{chr(97 + n // 26 % 26)}{chr(97 + n % 26)}", "ERROR")
        for n in range(600)
    ]
    texts = log(*odd)["texts"]
    assert len(texts) == make_given().number("log.texts") + 1 and texts["n"].sum() == 600
    assert texts["detail"][0] == exceptions.OTHER


# Judging --------------------------------------------------------------------------------------------------------


def test_a_healthy_process_is_ok() -> None:
    found = judge(HEALTHY, tables())
    assert found.status is Status.OK and not any(s.weight for s in found.signals) and found.proposals == ()
    assert "no error in 15 min" in words(found)


def test_failed_tries_are_judged_by_their_share_of_now() -> None:
    failing = log(*[line(s, RETRY) for s in range(200, 0, -1)], line(3, SENT, "INFO"))
    found = judge(failing, tables(failing=95, gone=2))
    assert found.status is Status.CRITICAL
    assert found.value("log.failed_share") == pytest.approx(100 * 20 / 21)
    assert "200 failed tries" in words(found) and "since 02:56" in words(found) and "(96 %)" in words(found)
    assert weight(found, "receiver") > 0.4 and weight(found, "FM-NOTI-03") >= 0.4
    assert "notification retry scheduled" in {s.observation for s in found.signals}
    assert found.next_sections == ("5.2",) and not found.proposals  # a restart cures no receiver
    assert any(n.key == "exceptions.no_cure" for n in found.notes)

    expect(
        judge(
            log(*[line(s, RETRY) for s in range(300, 100, -1)], *[line(s, SENT, "INFO") for s in range(20)]), tables()
        ),
        Status.OK,
        weights={"FM-NOTI-03": "== 0"},
        says="none just now",
    )
    once = judge(log(line(5, RETRY), *[line(s / 10, SENT, "INFO") for s in range(1, 190)]), tables())
    assert once.status is Status.OK and weight(once, "FM-NOTI-03") == 0


@pytest.mark.parametrize(("n", "status"), [(1, Status.WARNING), (29, Status.WARNING), (30, Status.CRITICAL)])
def test_other_errors_are_judged_by_their_number(n: int, status: Status) -> None:
    errors = [line(s * 1.5, "Unexpected error occurred in scheduled task", "ERROR") for s in range(n)]
    found = judge(log(line(880, SENT, "INFO"), *errors, line(5, SENT, "INFO")), tables())
    assert found.status is status and weight(found, "FM-DB-01") == 0.4
    broken = [line(s, "Unexpected error occurred in scheduled task", "ERROR", "java.io.IOException: x") for s in (1, 2)]
    assert "scheduled task: java.io.IOException: x'" in words(judge(log(*broken), tables()))
    unknown = judge(log(*[line(s * 1.5, "boom", "ERROR") for s in range(n)], line(5, SENT, "INFO")), tables())
    assert unknown.status is status and "'boom'" in words(unknown)
    warned = judge(log(*[line(s * 1.5, "boom") for s in range(n)], line(5, SENT, "INFO")), tables())
    assert warned.status is Status.OK and "texts" in warned.show


@pytest.mark.parametrize(
    ("words_of_the_database", "mode"),
    [
        ('new row for relation "notifications" violates check constraint "nobody"', "FM-CFG-01"),
        ('null value in column "x" of relation "y" violates not-null constraint', "FM-DB-03"),
        ("canceling statement due to statement timeout", "FM-CFG-01"),
        ("cannot execute UPDATE in a read-only transaction", "FM-DB-04"),
        ("permission denied for table notifications", "FM-DB-05"),
        ('new row violates row-level security policy for table "notifications"', "FM-DB-05"),
        ('column "title" does not exist', "FM-DB-03"),
        ("user-7 may not be notified", ""),
        ('duplicate key value violates unique constraint "processed_events_pkey"', None),
    ],
)
def test_the_words_of_the_database_name_what_it_refuses(words_of_the_database: str, mode: str | None) -> None:
    cause = f"a.BException: x\nCaused by: org.postgresql.util.PSQLException: ERROR: {words_of_the_database}"
    many = [line(s, "Unexpected error occurred in scheduled task", "ERROR", cause) for s in (3, 2, 1)]
    found = judge(log(*many), tables())
    assert (weight(found, "database") > 0.5) is (mode is not None)
    assert not mode or weight(found, mode) > 0.6
    assert f": ERROR: {words_of_the_database.replace('user-7', '<user>')[:60]}" in words(found)
    assert weight(judge(log(*many[:2]), tables()), "database") == 0, "one or two may be chance"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ('new row for relation "notifications" violates check constraint "nobody"\nDETAIL:  Failing row: user-7', True),
        ('duplicate key value violates unique constraint "processed_events_pkey"', False),
        ("the connection is closed", False),
    ],
)
def test_the_words_of_the_database_count_behind_a_phrase_too(error: str, shown: bool) -> None:
    frames = log(*[line(s, f"temporary failure while handling nats message: {error}") for s in (3, 2, 1)])
    found = judge(frames, tables())
    assert frames["texts"]["detail"].tolist() == ([error.partition("\n")[0]] if shown else [])
    assert (weight(found, "database") > 0.5, weight(found, "FM-CFG-01") > 0.6) == (shown, shown)
    assert "user-7" not in words(found) and ('constraint "nobody"' in words(found)) is shown
    kinds = ("nats message", "advisory payload")
    many = [line(s, f"temporary failure while handling {kind}: {error}") for s in (5, 4, 3) for kind in kinds]
    over = judge(log(*many, line(2, "notification event accepted and queued", "INFO")), tables())
    assert weight(over, "database") == 0, "what is handled since is refused no more"


def test_the_words_of_the_broker_name_the_subject_that_it_denies() -> None:
    denied = 'errorOccurred, Connection: 1, Error: nats: permissions violation for publish to "$js.ack.events.worker.1"'
    found = judge(log(*[line(s, denied) for s in (3, 2, 1)]), tables())
    assert 'permissions violation for publish to "$js.ack.events.worker' in words(found)
    assert weight(found, "FM-NATS-05") >= 0.85


def test_connections_that_break_speak_of_the_way_to_the_database() -> None:
    broken = "org.postgresql.util.PSQLException: An I/O error occurred while sending to the backend."
    found = judge(
        log(*[line(s, "Unexpected error occurred in scheduled task", "ERROR", broken) for s in (3, 2, 1)]), tables()
    )
    assert 0.5 < weight(found, "database") < 0.85, "the program alone says so"


def test_a_connection_that_broke_is_said_once_by_a_loop_that_is_silent_since() -> None:
    broken, closed = (
        f"org.postgresql.util.PSQLException: {words}"
        for words in ("An I/O error occurred while sending to the backend.", "This connection has been closed.")
    )
    once = log(line(3, "Unexpected error occurred in scheduled task", "ERROR", broken))
    more = log(*[line(s, "Unexpected error occurred in scheduled task", "ERROR", t)
                 for s, t in ((2, broken), (1, closed), (1, broken))])  # fmt: skip
    silent, works = tables(gone=0) | {"notifications": recovery.queues(due=4)["notifications"]}, tables()
    assert weight(judge(once, works), "database") == 0, "it works since, and one may be chance"
    for found in (judge(more, works), judge(once, silent)):
        assert weight(found, "database") > 0.5


@pytest.mark.parametrize(("seconds", "still_tries"), [(2, True), (60, False)])
@pytest.mark.parametrize(
    ("workload", "text", "observation"),
    [
        ("notification", RETRY, "exceptions.worker_tries"),
        ("notification", "notification moved to DLQ id=7", "exceptions.worker_tries"),
        ("notification", "temporary failure while handling nats message", "exceptions.subscriber_tries"),
        ("entitlement", "outbox publish retry scheduled id=7", "exceptions.relay_tries"),
    ],
)
def test_a_loop_that_logs_failed_tries_just_now_works(
    workload: str, text: str, observation: str, seconds: float, still_tries: bool
) -> None:
    found = judge(about(workload), log(line(400, text), line(seconds, text)), tables())
    assert (observation in {s.observation for s in found.signals}) is still_tries


def test_a_connection_given_up_is_cured_by_a_restart_only() -> None:
    gone = line(600, "exceptionOccurred: NATS connection closed, no further reconnect", "ERROR")
    found = judge(log(line(700, "notification stream ensured", "INFO"), gone, line(5, SENT, "INFO")), tables())
    assert found.status is Status.CRITICAL and weight(found, "FM-NATS-05") == 0.6
    expect(found, proposals=["restart_notification"], says="no further reconnect")
    since = judge(log(gone, line(500, "notification stream ensured", "INFO"), line(5, SENT, "INFO")), tables())
    assert since.status is Status.OK and not since.proposals
    # The service says it in the cause alone.
    closed = "java.io.IOException: Connection is Closed"
    behind = [line(s, "outbox publish retry scheduled", stack=closed) for s in (9, 4)]
    relay = judge(log(*behind), tables(failing=9, gone=0), workload="entitlement")
    expect(relay, proposals=["restart_entitlement"], weights={"FM-NATS-05": ">= 0.6"})


def test_the_relay_is_judged_by_the_tables() -> None:
    retries = [line(s, "outbox publish retry scheduled eventId=1 attempt=2") for s in range(50)]
    found = judge(log(*retries), tables(failing=90, gone=1), workload="entitlement")
    assert found.status is Status.CRITICAL and found.value("log.failed_share") is None
    expect(found, sections=(), weights={"FM-OB-01": "> 0 < 0.5", "relay": "> 0 < 0.5"})


def test_one_part_may_be_missing_and_nothing_is_green_without_any() -> None:
    unread = failed(log=("workloads", "unreachable", "kubectl is not installed"))
    found = judge(tables(), unread)
    expect(found, Status.UNKNOWN, reason=Reason.UNREACHABLE, proposals=["logs"], says="kubectl is not installed")
    assert judge(tables(failing=50), unread).status is Status.CRITICAL
    away = failed(tries=("postgres", "unreachable", "connection refused"))
    expect(judge(HEALTHY, away), Status.UNKNOWN, reason=Reason.UNREACHABLE, weights={"database": "== 0"})
    assert judge(log(*[line(s, RETRY) for s in range(50)]), away).status is Status.CRITICAL
    neither = judge(unread, failed(**{"log": ("workloads", "unreachable", "kubectl is not installed"),
                                      "tries": ("postgres", "timeout", "slow")}))  # fmt: skip
    assert (neither.status, neither.reason) == (Status.UNKNOWN, Reason.UNREACHABLE)
    assert judge().reason is Reason.NO_DATA
    expect(judge(log(), tables()), Status.OK, says="no log line")
    assert judge(log()).status is Status.UNKNOWN


def test_prometheus_decides_where_the_tables_do_not() -> None:
    results = {"results": pd.DataFrame({"result": ["sent", "retry_scheduled", "failed"], "value": [50.0, 40.0, 10.0]})}
    expect(judge(HEALTHY, tables(), results), Status.OK, values={"prometheus.failed_share": 50})
    assert judge(HEALTHY, results).status is Status.CRITICAL
    expect(judge(HEALTHY, {"results": results["results"].iloc[:1]}), Status.OK, values={"prometheus.failed_share": 0})


def test_a_log_that_begins_late_is_said_to() -> None:
    assert any(n.key == "exceptions.late" for n in judge(log(line(60, SENT, "INFO")), tables()).notes)
    assert not any(n.key == "exceptions.late" for n in judge(HEALTHY, tables()).notes)


# On real servers ------------------------------------------------------------------------------------------------


# A whole sandbox ------------------------------------------------------------------------------------------------


def run(**parameters: Any) -> Finding:
    rb = quiet_session("5.1", target="sandbox", window_minutes=15, **parameters).context
    found = CHECKS["5.1.1"].run(rb)
    words(found)
    assert found.reason is not Reason.ERROR, found.headline
    return found


@pytest.fixture
def here(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setenv("RUNBOOK_SANDBOX_DIR", str(sandbox.directory))
    return sandbox


@pytest.mark.slow
def test_on_a_healthy_sandbox_and_with_a_receiver_that_is_down(
    here: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workload in ("notification", "entitlement"):
        expect(run(workload=workload), Status.OK)
    faults.inject(here, "receiver_outage")
    try:
        here.wait_for("tries to fail", lambda: run().status is Status.CRITICAL)
        found = run()
        assert weight(found, "receiver") > 0.4 and weight(found, "FM-NOTI-03") >= 0.4
        assert found.frames["phrases"]["phrase"][0] == "notification retry scheduled"
        kept = str([f.to_csv() for f in found.frames.values()]) + str(found.queries)
        assert not [s for s in here.state.addresses.passwords.values() if s in kept]
        # Without its tool, the tables answer alone.
        unread = EntitlementWorkloads(runner="kubectl")
        monkeypatch.setenv("PATH", str(tmp_path))
        there = target_settings.sandbox_target()
        assert there is not None
        facts = there.facts.model_copy(update={"workloads": unread})
        monkeypatch.setattr(target_settings, "sandbox_target", lambda: there.model_copy(update={"facts": facts}))
        # How many tries failed within the last seconds is a lower bound there: it may be a warning only.
        here.wait_for("tries to fail", lambda: run().status in (Status.WARNING, Status.CRITICAL))
        assert "kubectl is not installed" in words(run())
    finally:
        monkeypatch.undo()
        faults.heal(here)


@pytest.mark.slow
def test_a_restart_in_the_sandbox_is_that_of_a_person(here: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    rb = quiet_session("5.1", target="sandbox").context
    before = here.pod("notification")["pod"]
    variables = rb.workloads.environment("notification")
    assert variables["POSTGRES_PASSWORD"] == "***"
    said = rb.workloads.set_environment("notification", {"NOTIFICATION_DELIVERY_BATCH_SIZE": "40"})
    assert said.splitlines() == ["notification: stopped", "notification: started"]
    assert "RUNNING" in rb.workloads.wait_ready("notification", 20)
    here.wait_for("the new pod", lambda: here.pod("notification")["pod"] != before)
    here.wait_for_flow(90)
    assert rb.workloads.environment("notification")["NOTIFICATION_DELIVERY_BATCH_SIZE"] == "40"
    rb.workloads.set_environment("notification", {"NOTIFICATION_DELIVERY_BATCH_SIZE": None})
    here.wait_for_flow(90)
