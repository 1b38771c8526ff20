"""Step 3.6: what changed in the hours before, on frames of every shape and on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event, Thread

import pandas as pd
import psycopg
import pytest

from runbook_lib.book import messages
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.snapshots import CONFIGURATION, LOCKED, SETTING_COLUMNS, take_snapshot
from runbook_lib.dossier import baseline
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, OutageEnd, Reason, Status, Value, judged, replace, say
from runbook_lib.packs.changes.starts import Start
from runbook_lib.packs.entitlement.checks import changed
from runbook_lib.packs.entitlement.facts import EntitlementFacts
from runbook_lib.view.differences import Comparison
from tests.kit.frames.changed import frames
from tests.kit.servers import Servers
from tests.kit.steps import ago, expect, make_given, run, undone, words


def test_the_nearest_before_the_onset_is_named_and_blames_nobody() -> None:
    begun = replace(judged(say("response.impact"), [Value("impact.onset", ago(300).isoformat())]), step="3.1")
    seen = frames(
        (100, "restarted meanwhile"), (400, "settings loaded"), (3000, "stream made"), (90000, "of yesterday")
    )
    found = changed.CHECK.judge(seen, make_given(earlier=(begun,)))
    assert "100 s before the onset: settings loaded, 400 s ago" in words(found) and "3 changes" in words(found)
    assert (found.status, found.signals, found.value("changes.before_onset")) == (Status.OK, (), 2)
    assert list(found.frames["lately"]["what"]) == ["restarted meanwhile", "settings loaded", "stream made"]
    # Without an onset it is the newest.
    assert "restarted meanwhile" in words(changed.CHECK.judge(seen, make_given()))
    assert "No change was found" in words(changed.CHECK.judge(frames((90000, "of yesterday")), make_given()))


def test_what_came_just_before_the_end_of_an_outage_is_named_with_it() -> None:
    over = OutageEnd(ago(50), say("outage.published", n=9))
    onset = [Value("impact.onset", ago(120).isoformat())]
    begun = replace(judged(say("response.impact_over"), onset), step="3.1", ended=over)
    seen = frames((20, "a pod started"), (62, "the broker started"), (90, "settings loaded"), (400, "a migration"))
    found = changed.CHECK.judge(seen, make_given(earlier=(begun,)))
    assert found.ended and found.ended.since == over.since
    assert found.ended.after == say("changed.before_the_end", what="the broker started", at="02:59:08")
    # The last late row is timed by the start of its batch, which waited for the broker.
    while_it_waited = changed.CHECK.judge(frames((44, "the broker started")), make_given(earlier=(begun,)))
    assert while_it_waited.ended and while_it_waited.ended.after
    # A short outage may have no onset that the counts per minute show.
    short = replace(begun, values=())
    named = changed.CHECK.judge(
        frames((62, "the broker started"), (90, "settings loaded")), make_given(earlier=(short,))
    )
    assert named.ended and named.ended.after == say("changed.before_the_end", what="the broker started", at="02:59:08")
    assert changed.CHECK.judge(frames((90, "settings loaded")), make_given(earlier=(short,))).ended is None
    for earlier in ((replace(begun, ended=None),), ()):
        assert changed.CHECK.judge(seen, make_given(earlier=earlier)).ended is None
    assert changed.CHECK.judge(frames((10, "a"), (400, "b")), make_given(earlier=(begun,))).ended is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([], ["the system started: PostgreSQL, NATS and 3 others together"]),
        # Each of these is a change of its own: a broker that was started again, and what did not go well.
        ([(80, "server start", "NATS server b started")], None),
        (
            [(92, "failed migration", "migration 2, failed"), (95, "restart", "pod-2 started (3 restarts before)")],
            [
                "migration 2, failed",
                "pod-2 started (3 restarts before)",
                "the system started: PostgreSQL, NATS and 3 others together",
            ],
        ),
        # The kind decides, not the text.
        (
            [(92, "action", "action by which pod-1 started")],
            ["action by which pod-1 started", "the system started: PostgreSQL, NATS and 3 others together"],
        ),
    ],
)
def test_the_start_of_the_whole_system_is_one_change(
    changes: list[tuple[float, str, str]], told: list[str] | None
) -> None:
    every = [
        (100, "server start", "PostgreSQL started"), (99, "server start", "NATS server a started"),
        (98, "migration", "migration of entitlement: 1 a"), (95, "start", "pod-1 started"),
        (91, "creation", "stream s created"), *changes,
    ]  # fmt: skip
    seen = frames(*((seconds, what) for seconds, _, what in every), kinds=[kind for _, kind, _ in every])
    seen["changes"].loc[seen["changes"]["what"].str.startswith("NATS"), "source"] = "nats_monitor"
    found = changed.CHECK.judge(seen, make_given())
    assert list(found.frames["lately"]["what"]) == (told or [*seen["changes"].sort_values("at")["what"][::-1]])


def test_what_changed_on_real_servers(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    db.execute("SELECT pg_reload_conf()")
    role = "ALTER ROLE miniserversystem"
    with undone(db, f"{role} SET statement_timeout = '7s'", f"{role} RESET statement_timeout"):
        found = run(servers, "3.6")["3.6"]
    assert found.status is Status.OK, words(found)
    told = set(found.frames["lately"]["what"])
    # The streams of this test are made long after the servers' start, or with it: then both are one line.
    assert any("PostgreSQL" in what and "started" in what for what in told)
    assert "statement_timeout=7s" in set(found.frames["settings"]["setting"])
    assert {"postgres", "jetstream", "nats_monitor"} <= set(found.frames["asked"]["source"])
    assert {u.source for u in found.unseen} == {"workloads"}


def test_settings_are_named_and_only_values_that_can_hold_no_secret_are_shown(
    servers: Servers, db: psycopg.Connection
) -> None:
    name = db.info.dbname
    kept = {"statement_timeout=7s", "search_path=notification, public", "default_transaction_isolation=serializable"}
    named = {"app.jwt_secret", "app.pin", "auto_explain.log_analyze", "application_name"}
    db.execute(f"ALTER DATABASE {name} SET app.jwt_secret = 'planted=Value'")
    db.execute(f"ALTER DATABASE {name} SET search_path = notification, public")
    for setting in (
        *("app.pin = '914773350118'", "auto_explain.log_analyze = 'planted'", "application_name = 'planted'"),
        *("statement_timeout = '7s'", "default_transaction_isolation = 'serializable'"),
    ):
        db.execute(f"ALTER ROLE miniserversystem SET {setting}".encode())
    try:
        found = run(servers, "3.6")["3.6"]
    finally:
        db.execute("ALTER ROLE miniserversystem RESET ALL")
        db.execute(f"ALTER DATABASE {name} RESET ALL")
    assert set(found.frames["settings"]["setting"]) == kept | named
    told = "".join(messages.text(text, "en") for text in found.notes) + found.frames["settings"].to_csv()
    assert "planted" not in told and "914773350118" not in told


HEALTHY = [
    ("postgres", "role app", "statement_timeout", "0"),
    ("postgres", "role app", "work_mem", "4MB"),
    ("jetstream", "consumer c", "filter_subject", "entitlement.>"),
    ("jetstream", "stream s", "retention", "limits"),
    ("jetstream account", "account", "max_storage", "-1"),
    ("nats_monitor", "broker", "max_payload", "1048576"),
    ("postgres rights", "role app", "connection limit", "-1"),
    ("workloads template", "workload notification", "image", "n:1"),
    ("workloads", "workload notification", "NOTIFICATION_ENABLED", "true"),
    ("workloads", "workload notification", "replicas", "1"),
    ("workloads", "workload notification", "NOTIFICATION_DELIVERY_BATCH_SIZE", "50"),
    ("workloads", "workload notification", "ENTITLEMENT_OUTBOX_BATCH_SIZE", "50"),
    ("postgres", "table t", "column gone", "text"),
]


#: Something is late.
LATE = replace(judged(say("response.impact"), []), step="3.1", status=Status.CRITICAL)


def drifted(**values: str) -> Frames:
    """The configuration now, in which these settings have these values ("" for none), beside the healthy one."""
    now = [(source, item, setting, values.get(setting, value)) for source, item, setting, value in HEALTHY]
    healthy = pd.DataFrame(HEALTHY, columns=SETTING_COLUMNS).assign(at=ago(3600))
    return frames() | {
        "configuration": pd.DataFrame([row for row in now if row[3]], columns=SETTING_COLUMNS),
        "healthy": healthy,
    }


@pytest.mark.parametrize(
    ("values", "observed", "told"),
    [
        ({"statement_timeout": "5s"}, "changed.database", "role app: statement_timeout changed from 0 to 5s between"),
        ({"work_mem": "8MB"}, "changed.tuning", "role app: work_mem changed from 4MB to 8MB"),
        ({"filter_subject": "other.>"}, "changed.consumer", "filter_subject changed from entitlement.> to other.>"),
        ({"NOTIFICATION_ENABLED": "false"}, "changed.notification", "NOTIFICATION_ENABLED changed from true to false"),
        ({"NOTIFICATION_DELIVERY_BATCH_SIZE": "2"}, "changed.delivery", "BATCH_SIZE changed from 50 to 2"),
        ({"column gone": ""}, "changed.database", "column gone was removed"),
        ({"connection limit": "1"}, "changed.database", "role app: connection limit changed from -1 to 1"),
        ({"retention": "interest"}, "changed.stream", "stream s: retention changed from limits to interest"),
        ({"max_payload": "100"}, "changed.broker", "broker: max_payload changed from 1048576 to 100"),
        ({"max_storage": "10"}, "changed.broker", "account: max_storage changed from -1 to 10"),
        ({"image": "n:2"}, "changed.notification", "workload notification: image changed from n:1 to n:2"),
        ({"NOTIFICATION_ENABLED": "", "filter_subject": "x"}, "changed.consumer", "; 1 other setting changed"),
    ],
)
def test_a_difference_to_the_healthy_configuration_is_evidence_while_something_is_late(
    values: dict[str, str], observed: str, told: str
) -> None:
    found = changed.CHECK.judge(drifted(**values), make_given(earlier=(LATE,)))
    assert told in words(found) and found.value("changes.configuration") == len(values)
    assert observed in {s.observation for s in found.signals}
    assert "FM-CFG-01" in {s.about for s in found.signals}
    # A change while all is well, or after the end, is told and accuses nobody.
    for earlier in (
        replace(LATE, status=Status.OK),
        replace(LATE, ended=OutageEnd(ago(50), say("outage.published", n=9))),
    ):
        calm = changed.CHECK.judge(drifted(**values), make_given(earlier=(earlier,)))
        assert told in words(calm) and calm.signals == ()


@pytest.mark.parametrize(
    ("variable", "also", "times"),
    [
        ("NATS_CONNECTION_TIMEOUT", (), 1),
        ("NATS_CONNECTION_TIMEOUT", ("NOTIFICATION_ENABLED",), 2),
        ("NOTIFICATION_DELIVERY_BATCH_SIZE", (), 1),  # nothing to the other workload
    ],
)
def test_a_variable_that_two_workloads_share_is_one_change(variable: str, also: tuple[str, ...], times: int) -> None:
    shared = [(f"workload {name}", variable) for name in ("entitlement", "notification")]
    changes = [*shared, *(("workload notification", name) for name in also)]
    seen = frames()
    for name, value in (("configuration", "1"), ("healthy", "5")):
        rows = [("workloads", item, setting, value) for item, setting in changes]
        seen[name] = pd.DataFrame(rows, columns=SETTING_COLUMNS).assign(at=ago(3600))
    signals = changed.CHECK.judge(seen, make_given(earlier=(LATE,))).signals
    assert [s.about for s in signals].count("FM-CFG-01") == times
    assert "delivery_worker" in {s.about for s in signals}


def test_a_variable_of_the_other_workload_is_no_evidence() -> None:
    found = changed.CHECK.judge(drifted(ENTITLEMENT_OUTBOX_BATCH_SIZE="2"), make_given(earlier=(LATE,)))
    assert "ENTITLEMENT_OUTBOX_BATCH_SIZE changed" in words(found) and found.signals == ()


@pytest.mark.parametrize(
    ("item", "setting", "before", "now", "observed"),
    [
        # A column that nobody fills breaks each insert.
        ("table t", "column channel", "", "text not null", "changed.column_required"),
        ("table t", "column channel", "", "text not null default ''::text", "changed.database"),
        # Row security that is forced refuses rows of the owner.
        ("table t", "row security", "", "enabled", "changed.database"),
        ("table t", "row security", "", "enabled, forced", "changed.row_security"),
        # A key against duplicates that is gone stops no hop.
        ("table notification.processed_events", "constraint k", "PRIMARY KEY (id)", "", "changed.duplicate_key"),
        ("table notification.notifications", "constraint k", "PRIMARY KEY (id)", "", "changed.database"),
    ],
)
def test_a_definition_is_weighed_by_what_it_does(item: str, setting: str, before: str, now: str, observed: str) -> None:
    seen = drifted()
    for name, value in (("healthy", before), ("configuration", now)):
        rows = [("postgres", item, setting, value)] if value else []
        added = pd.DataFrame(rows, columns=SETTING_COLUMNS).assign(at=ago(3600))
        seen[name] = pd.concat([seen[name], added])
    signals = changed.CHECK.judge(seen, make_given(earlier=(LATE,))).signals
    about = {s.about for s in signals}
    assert {s.observation for s in signals} == {observed}
    assert ("FM-DB-05" in about) is (observed == "changed.row_security")
    assert ("database" in about) is (observed != "changed.duplicate_key")


def test_a_trigger_and_its_function_are_one_change() -> None:
    queue, function = "notification.notifications", "notification.refuse()"
    trigger = f"CREATE TRIGGER t BEFORE UPDATE ON {queue} FOR EACH ROW EXECUTE FUNCTION {function}"
    changes = [(f"table {queue}", "trigger t", trigger), (f"function {function}", "definition", "9f86d081")]
    seen = drifted()
    for named, added in (("one", changes), ("another", [changes[0], ("function notification.refuse_all()", "", "1")])):
        more = pd.DataFrame([("postgres", *change) for change in added], columns=SETTING_COLUMNS)
        configuration = pd.concat([seen["configuration"], more])
        signals = changed.CHECK.judge(seen | {"configuration": configuration}, make_given(earlier=(LATE,))).signals
        observed = {"changed.queue_trigger", *(("changed.database",) if named == "another" else ())}
        assert {s.observation for s in signals} == observed


def test_a_difference_to_a_configuration_of_long_ago_names_no_place() -> None:
    seen = drifted(statement_timeout="5s", filter_subject="other.>")
    seen["healthy"] = seen["healthy"].assign(at=ago(3600 * 25))
    (signal,) = changed.CHECK.judge(seen, make_given(earlier=(LATE,))).signals
    assert (signal.about, signal.observation) == ("FM-CFG-01", "changed.long_ago")


def test_a_source_that_did_not_answer_has_not_lost_its_settings() -> None:
    seen = drifted()
    assert changed.CHECK.judge(seen, make_given()).value("changes.configuration") == 0
    # An earlier release did not read the rights.
    seen["healthy"] = seen["healthy"][seen["healthy"]["source"] != "postgres rights"]
    seen["configuration"] = seen["configuration"][seen["configuration"]["source"] != "jetstream"]
    assert changed.CHECK.judge(seen, make_given()).value("changes.configuration") == 0
    assert changed.CHECK.judge(frames(), make_given()).value("changes.configuration") is None


def test_a_table_that_is_locked_has_not_lost_its_columns() -> None:
    seen = drifted()
    columns = [("postgres", "table t", f"column {name}", "text") for name in "ab"]
    seen["healthy"] = pd.concat([seen["healthy"], pd.DataFrame(columns, columns=SETTING_COLUMNS).assign(at=ago(3600))])
    locked = pd.DataFrame([("postgres", "table t", LOCKED, "")], columns=SETTING_COLUMNS)
    assert changed.CHECK.judge(seen, make_given()).value("changes.configuration") == 2
    seen["configuration"] = pd.concat([seen["configuration"], locked])
    assert changed.CHECK.judge(seen, make_given()).value("changes.configuration") == 0


@pytest.mark.parametrize(
    ("row", "observed", "told"),
    [
        (("postgres", "table t", "trigger no", "CREATE TRIGGER no"), "changed.unexpected", "services' migrations"),
        (
            ("postgres", "table t", "row security", "enabled, forced"),
            "changed.unexpected",
            "row security is not",
        ),
        (
            ("jetstream", "stream s", "max_age", "5 s"),
            "changed.undocumented",
            "is 5 s, and 0 s in the documents",
        ),
        (("jetstream", "consumer c", "ack_wait", "30 s"), "changed.undocumented", "ack_wait is 30 s, and 10 s in"),
        (("jetstream", "stream s", "num_replicas", "3"), None, "No change"),
        (("postgres", "table t", "constraint notifications_status_check", "CHECK (status)"), None, "No change"),
    ],
)
def test_without_a_baseline_what_nothing_declares_is_named(
    row: tuple[str, ...], observed: str | None, told: str
) -> None:
    seen = frames() | {"configuration": pd.DataFrame([row], columns=SETTING_COLUMNS)}
    found = changed.CHECK.judge(seen, make_given(earlier=(LATE,)))
    assert told in words(found) and {s.observation for s in found.signals} == {observed} - {None}
    assert changed.CHECK.judge(seen, make_given()).status is Status.OK
    if observed == "changed.undocumented":
        assert {s.about for s in found.signals} == {"FM-CFG-01"}


def test_two_runs_that_read_another_configuration_differ_by_their_settings() -> None:
    seen = drifted(filter_subject="other.>", NOTIFICATION_ENABLED="")
    healthy = seen["healthy"].drop(columns="at")
    verdict = diagnosis.conclude([], make_given().catalog)
    before, after = (
        take_snapshot(name, [replace(judged(say("changed.none")), step="3.6", frames={CONFIGURATION: frame})], verdict)
        for name, frame in (("then", healthy), ("now", seen["configuration"]))
    )
    lines = Comparison(before, after).lines()
    assert any("consumer c: filter_subject" in ln and "entitlement.>" in ln and "other.>" in ln for ln in lines), lines
    assert any("NOTIFICATION_ENABLED" in ln and ln.rstrip().endswith("-") for ln in lines), lines
    assert not [c for c in Comparison(before, before).changes if c.kind == "setting"]


def test_what_somebody_set_is_named_with_the_old_value_on_real_servers(
    servers: Servers, db: psycopg.Connection, broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = run(servers, "3.6")["3.6"].frames["configuration"]
    asked = {"postgres", "jetstream", "nats_monitor"}
    assert {*before["source"]} == asked | {"postgres rights", "jetstream account"}
    assert {("broker", "max_payload"), ("account", "max_storage"), ("schema notification", "grants")} <= {
        *before[["item", "setting"]].itertuples(index=False, name=None)
    }
    assert not before["value"].str.contains("runbook-secret").any()
    baseline.keep("outputs", "here", before, ago(3600))
    assert run(servers, "3.6")["3.6"].value("changes.configuration") == 0
    role, table = "ALTER ROLE miniserversystem", "ALTER TABLE notification.notifications"
    letters = "notification.notification_dlq"
    check = "CHECK (status IN ('SENT', 'planted', 'X''planted') AND user_id <> 'planted') NOT VALID"
    policy = f"CREATE POLICY few ON {letters} USING (error_message <> 'planted')"
    with (
        undone(db, f"{role} SET statement_timeout = '7s'", f"{role} RESET ALL"),
        undone(db, f"{role} CONNECTION LIMIT 50", f"{role} CONNECTION LIMIT -1"),
        undone(db, f"{table} ADD CONSTRAINT nobody {check}", f"{table} DROP CONSTRAINT nobody"),
        undone(
            db, f"ALTER TABLE {letters} ENABLE ROW LEVEL SECURITY; {policy}",
            f"DROP POLICY few ON {letters}; ALTER TABLE {letters} DISABLE ROW LEVEL SECURITY",
        ),
    ):  # fmt: skip
        found = run(servers, "3.6")["3.6"]
    drift = {(r.setting, r.before, r.now) for r in found.frames["drift"].itertuples()}
    assert {
        ("statement_timeout", "", "7s"), ("row security", "", "enabled"), ("connection limit", "-1", "50"),
    } <= drift  # fmt: skip
    (shown,) = [str(now) for setting, _, now in drift if setting == "policy few"]
    assert shown.startswith("* using (error_message <> ***")
    (added,) = [str(now) for setting, _, now in drift if setting == "constraint nobody"]
    assert added.startswith("CHECK") and "planted" not in added
    assert "user_id <> ***::text" in added, "a token would differ from that of the baseline's incident"
    assert "'SENT'::text, ***::text" in added


def test_a_source_that_is_away_leaves_the_others(servers: Servers, db: psycopg.Connection) -> None:
    found = run(servers, "3.6", nats_url="nats://127.0.0.1:1", without=("nats_monitor_url",))["3.6"]
    expect(found, Status.UNKNOWN, reason=Reason.UNREACHABLE)
    assert "PostgreSQL started" in set(found.frames["lately"]["what"])
    assert Reason.UNREACHABLE in {u.reason for u in found.unseen}


# What starts again and again -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "seconds_ago", "again"),
    [
        ("start", (4,), False),  # a deploy
        ("start", (4.0, 4.9, 4.4), False),  # read three times, by an age in seconds
        ("start", (4, 13), True),
        ("start", (4, 4000), False),
        ("sessions", (1, 3.5, 6), True),
        ("log", (60, 62, 64, 68), False),  # one outage, as its clients see it
        ("log", (60, 62, 70, 71), True),
    ],
)
def test_two_separate_starts_are_a_warning_without_a_place(
    kind: str, seconds_ago: tuple[float, ...], again: bool
) -> None:
    starts = rows.frame([Start(kind, "NATS", ago(s)) for s in seconds_ago], Start)
    found = changed.CHECK.judge(frames((4, "the broker started")) | {"starts": starts}, make_given())
    expect(found, Status.WARNING if again else Status.OK, f"changed.again_{kind}" if again else "changed.some")
    verdict = diagnosis.conclude([replace(found, step="3.6")], make_given().catalog)
    assert (verdict.stuck_at, verdict.undecided, verdict.failure_modes) == (None, (), ())


def test_starts_of_two_parts_are_no_series() -> None:
    starts = rows.frame([Start("start", "pod-1", ago(4)), Start("start", "pod-2", ago(13))], Start)
    expect(changed.CHECK.judge(frames() | {"starts": starts}, make_given()), Status.OK)


@contextmanager
def repeated(act: Callable[[], object], every_s: float) -> Iterator[None]:
    """Do that again and again."""
    over = Event()

    def go_on() -> None:
        while not over.wait(every_s):
            act()

    thread = Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("service", EntitlementFacts.services)
def test_sessions_that_are_ended_again_and_again(servers: Servers, db: psycopg.Connection, service: str) -> None:
    with ExitStack() as pool:

        def connect() -> None:
            pool.close()
            for _ in range(10):
                one = psycopg.connect(servers.app_url, application_name="PostgreSQL JDBC Driver", autocommit=True)
                pool.enter_context(closing(one)).execute(f"SET search_path = {service}".encode())

        connect()
        once = run(servers, "3.6")["3.6"]
        with repeated(connect, 2.5):
            found = run(servers, "3.6")["3.6"]
    assert not once.headline.key.startswith("changed.again")
    expect(found, Status.WARNING, "changed.again_sessions", says=f"sessions of {service}")


@pytest.mark.slow
def test_a_broker_that_starts_again_and_again(tmp_path: Path) -> None:
    with Servers(tmp_path) as own:

        def restart() -> None:
            own.stop_nats()
            own.start_nats()

        once = run(own, "3.6")["3.6"]
        with repeated(restart, 3):
            found = run(own, "3.6")["3.6"]
    assert not once.headline.key.startswith("changed.again")
    expect(found, Status.WARNING, "changed.again_start", says="NATS starts again")
