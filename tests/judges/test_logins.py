"""Whether a service could log in at its start: each source alone, all together, and none of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.actions.action import Action
from runbook_lib.book import catalog, messages
from runbook_lib.checks.check import NOT_READ, NOT_READ_COLUMNS
from runbook_lib.checks.context import Context
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.model.finding import Frames, Proposal, Reason, Status, Unseen, say, unknown
from runbook_lib.model.frames import row
from runbook_lib.model.outcome import Precondition
from runbook_lib.notebook.session import quiet_session
from runbook_lib.packs.entitlement.actions import restart, scale
from runbook_lib.packs.entitlement.actions.change import SettingsChange
from runbook_lib.packs.entitlement.actions.restart import Restart
from runbook_lib.packs.entitlement.actions.scale import Scale
from runbook_lib.packs.entitlement.checks import exceptions
from runbook_lib.packs.entitlement.evidence import addresses, logins, sessions
from runbook_lib.packs.entitlement.evidence.logins import Server
from runbook_lib.packs.logs.logs import read_attempts
from runbook_lib.sources.source import SourceError
from tests.kit.findings import BOOK, seen
from tests.kit.frames.exceptions import tables
from tests.kit.frames.services import NOBODY, looked, of_sessions, process
from tests.kit.servers import Servers
from tests.kit.steps import NOW, ago, make_given, odd_frames, read_log, weight, words

PSQL = "org.postgresql.util.PSQLException: "
PASSWORD = PSQL + 'FATAL: password authentication failed for user "miniserversystem"'
TASK = "Unexpected error occurred in scheduled task"
DENIED = "errorOccurred, Connection: 3, Error: Authorization Violation"
REFUSED = "exceptionOccurred, Connection: 3, Exception: java.net.ConnectException: Connection refused"
UP = "notification stream ensured"
AWAY = PSQL + "Connection to 10.0.0.7:5432 refused. Check that the hostname and port are correct"


def line(seconds_ago: float, message: str, *causes: str) -> str:
    stack = "\n".join(f"{'Caused by: ' if n else ''}{cause}\n\tat x.Y.run(Y.java)" for n, cause in enumerate(causes))
    at = (NOW - timedelta(seconds=seconds_ago)).isoformat()
    return json.dumps({"@timestamp": at, "severity": "ERROR", "message": message, "stack_trace": stack})


def no_connection(seconds_ago: float, cause: str = PASSWORD) -> str:
    above = "org.springframework.jdbc.CannotGetJdbcConnectionException: Failed to obtain JDBC Connection"
    return line(seconds_ago, TASK, above, cause)


def log(*lines: str) -> Frames:
    return {"logins": read_attempts(read_log(*sorted(lines)).entries, logins.SIGNS)}


def held(**changes: Any) -> Frames:
    """Notification's sessions, the newest of them a minute old; entitlement's have no known begin."""
    return of_sessions(**{"newest_login": 60.0} | changes)


def pool(connections: float, by: str = "service", age_s: float = 600.0) -> Frames:
    series = process(NOW.timestamp() - age_s, hikaricp_connections=connections, hikaricp_connections_pending=1)
    return looked(series, by=by)


def instances() -> Frames:
    return {"instances": row(started=ago(600))}


def node(started: float = 1e5, loaded: float = 1e5) -> Frames:
    return {"node": row(started=ago(started), loaded=ago(loaded))}


def connected(*users: str | None, start: float = 500.0) -> Frames:
    return {"connected": pd.DataFrame([(ago(start), user) for user in users], columns=["start", "user"])}


def judged(frames: Frames, server: Server) -> bool | None:
    return logins.judge(frames, make_given(), "notification")[server].ok


# The database -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "ok"),
    [
        # Nothing
        ({}, None),
        (instances(), None),
        # The log alone
        (log(no_connection(5)), False),
        (log(line(5, "Application run failed", "x.BeanCreationException: y", PASSWORD)), False),
        (log(no_connection(5, PSQL + 'FATAL: role "miniserversystem" is not permitted to log in')), False),
        (log(no_connection(5, PSQL + 'FATAL: too many connections for role "miniserversystem"')), False),
        (log(no_connection(5, PSQL + "FATAL: no pg_hba.conf entry for host")), False),
        (log(no_connection(5, PSQL + "Connection to 10.0.0.7:5432 refused. Check that the hostname")), False),
        (log(no_connection(5, PSQL + "The connection attempt failed.")), False),
        (log(line(5, TASK, "x.E: y", PSQL + "Connection to db:5432 refused.", "java.net.ConnectException: refused")),
         False),
        (log(no_connection(600)), False),  # it has been silent since: nothing shows that this is over
        (log(no_connection(600, PSQL + "The connection attempt failed.")), None),
        (log(no_connection(60), line(5, "HikariPool-1 - Added connection org.postgresql.jdbc.PgConnection@1")), True),
        (log(no_connection(60), line(5, "Started NotificationApplication in 5.6 seconds (process running)")), True),
        (log(line(5, TASK, PSQL + "FATAL: terminating connection due to administrator command")), None),
        (log(line(5, TASK, PSQL + "ERROR: cannot execute UPDATE in a read-only transaction")), None),
        (log(line(5, "notification retry scheduled id=1 attempt=2", "x.E: receiver: Authentication error")), None),
        # The sessions alone
        (held(), True),
        (held(newest_login=3000.0), None),  # older than a pool lets one become: the process may be frozen
        (of_sessions(sessions=0, newest=None, poll=None, entitlement=0), None),  # no refusal: nobody may be there
        # Together
        (held() | log(no_connection(90)), True),  # let in again since
        (held(newest_login=600.0) | log(no_connection(90)), False),  # what is left of its sessions is no login
        (log(no_connection(600, AWAY)), None),  # no try failed lately
    ],
)  # fmt: skip
def test_the_database(frames: Frames, ok: bool | None) -> None:
    assert judged(frames, Server.DATABASE) is ok


def test_the_sessions_of_the_other_service_are_of_the_same_role() -> None:
    """They show that the role may log in; a service that was turned away itself may have another password."""
    only_other = of_sessions(sessions=0, newest=None, poll=None)
    only_other["service_sessions"].loc[0, "newest_login"] = 60.0
    assert judged(only_other, Server.DATABASE) is None
    assert judged(only_other | log(no_connection(5)), Server.DATABASE) is False
    assert judged(only_other | log(no_connection(600)), Server.DATABASE) is None


def test_what_the_server_said_is_told_with_its_moment() -> None:
    found = logins.judge(log(no_connection(90), no_connection(7)), make_given(), "notification")[Server.DATABASE]
    assert (found.at, found.why) == (ago(7), PASSWORD.removeprefix(PSQL))
    assert logins.judge(held(), make_given(), "notification")[Server.DATABASE].at == ago(60)
    assert list(logins.refused_servers({Server.DATABASE: found})) == [Server.DATABASE]


def test_ages_count_from_when_they_were_asked_for() -> None:
    """A step is judged at the moment of its run, and asks some seconds later."""
    later = {"looked": row(at=NOW + pd.Timedelta(seconds=8))}
    let_in = log(line(-2, TASK, PASSWORD)) | held(newest_login=5.0)
    assert judged(let_in, Server.DATABASE) is False
    assert judged(let_in | later, Server.DATABASE) is True


# The broker -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "ok"),
    [
        # Nothing
        ({}, None),
        # The log alone
        (log(line(2, DENIED)), False),
        (log(line(2, "errorOccurred, Connection: 1, Error: nats: 'Authorization Violation'")), False),
        (log(line(2, "Application run failed", "x.BeanCreationException: y",
                  "io.nats.client.AuthenticationException: Authorization Violation")), False),
        (log(line(2, REFUSED)), False),
        (log(line(600, REFUSED)), None),
        (log(line(600, DENIED)), False),  # its client has given up, and tries no more
        (log(line(600, UP)), True),
        (log(line(600, DENIED), line(300, UP)), True),
        (log(line(600, UP), line(300, DENIED)), False),
        (log(line(5, "failed to handle nats message", "x.E: Connection is not available, request timed out")), None),
        # The broker's own word alone
        (connected("app"), None),  # somebody, and nothing says as whom the service logs in
        (log(line(600, DENIED)) | connected("app") | {"own": row(user="other")}, False),
        # What works through its connection
        ({"at_work": row(bound=True)}, True),
        ({"at_work": row(bound=False)}, None),
        # Together
        (log(line(30, DENIED)) | node(loaded=10), None),  # its configuration was read again since
        (log(line(30, DENIED)) | node(loaded=40), False),
        (log(line(30, DENIED)) | node(started=10), None),
        (log(line(30, REFUSED)) | node(started=10), None),
        (log(line(30, REFUSED)) | node(started=40), False),  # it was there: the address is wrong, or the way is shut
        (log(line(30, DENIED)) | connected("app", start=10) | {"own": row(user="app")}, None),
        (log(line(30, DENIED)) | {"at_work": row(bound=True)}, True),
    ],
)  # fmt: skip
def test_the_broker(frames: Frames, ok: bool | None) -> None:
    assert judged(frames, Server.BROKER) is ok


@pytest.mark.parametrize(
    ("published", "refused", "ok"), [(20, 30, True), (40, 30, False), (20, None, True), (3000, None, None)]
)
def test_what_was_published_went_over_its_connection_to_the_broker(
    published: float, refused: float | None, ok: bool | None
) -> None:
    frames = (log(line(refused, DENIED)) if refused else {}) | {"done": row(at=ago(published))}
    assert logins.judge(frames, make_given(), "entitlement")[Server.BROKER].ok is ok


# A log is read ----------------------------------------------------------------------------------------------


def test_a_stack_trace_keeps_what_its_cause_has_caused() -> None:
    (record,) = read_log(line(1, TASK, "a.BException: one", "c.DException: two", "e.FException: three")).entries
    assert (record.error, record.above) == ("e.FException: three", ("a.BException: one", "c.DException: two"))


# 5.1.1 ------------------------------------------------------------------------------------------------------


def exceptions_of(
    *lines: str,
    database: Reason | None = None,
    broker: Reason | None = None,
    done: float | None = None,
    more: Frames | None = None,
) -> Any:
    """What the log tells; `database`, `broker`: why not read; `done`: seconds since its work."""
    phrases = catalog.load().phrases
    frames = exceptions.log_frames(read_log(*lines), phrases, 15, make_given().number)
    about = {"about": row(workload="notification", name="notification", minutes=15)}
    if database:
        failed = ("tries", "postgres", database.value, "no answer", "")
        about[NOT_READ] = pd.DataFrame([failed], columns=NOT_READ_COLUMNS)
    if broker:
        failed = ("at_work", "jetstream", broker.value, "no answer", "")
        about[NOT_READ] = pd.DataFrame([failed], columns=NOT_READ_COLUMNS)
    frames |= {"done": row(at=ago(done))} if done is not None else {}
    return exceptions.judge_exceptions(about | frames | (more or {}), make_given())


GIVEN_UP = "exceptionOccurred: NATS connection closed, no further reconnect"
READ_ONLY = PSQL + "ERROR: cannot execute UPDATE in a read-only transaction"


@pytest.mark.parametrize(
    ("newest", "done", "goes_on"),
    [(30, None, True), (30, 31, True), (30, 29, False), (11, 0, False), (9, 0, True), (1, 0, True)],
)
def test_what_failed_and_works_since_is_over_in_the_log_too(newest: float, done: float | None, goes_on: bool) -> None:
    lines = [line(newest + n, TASK, READ_ONLY) for n in range(4)]
    found = exceptions_of(line(800, UP), *lines, done=done)
    assert ("exceptions.read_only" in {s.observation for s in found.signals}) is goes_on
    assert found.headline.key == ("exceptions.now" if goes_on else "exceptions.over")


@pytest.mark.parametrize("status", [308, 414])
@pytest.mark.parametrize(
    ("started", "sent", "at"),
    [(900, 40, "receiver"), (30, 40, "delivery_worker"), (900, None, "delivery_worker"), (900, 3, "delivery_worker")],
)
def test_a_worker_that_has_sent_well_has_not_begun_by_itself_to_send_what_is_rejected(
    started: float, sent: float | None, at: str, status: int
) -> None:
    error = f"java.lang.IllegalStateException: receiver answered {status}"
    rejected = [line(s, "notification retry scheduled", error) for s in range(38, 1, -1)]
    frames = {
        "instances": row(started=ago(started)),
        "done": row(at=ago(1), sent=sent and ago(sent)),
        **tables(failing=95),
    }
    found = exceptions_of(*rejected, more=frames)
    at_once = "sends.rejected_since" in {s.observation for s in found.signals}
    assert at_once is (at == "receiver") and (weight(found, at) > 0.4)


@pytest.mark.parametrize(
    ("told", "mode", "looks"),
    [
        (no_connection(5), "FM-DB-05", "look_at_role"),
        (no_connection(5, PSQL + "FATAL: sorry, too many clients already"), "FM-DB-01", "look_at_role"),
        (line(2, DENIED), "FM-NATS-05", "check_nats_credentials"),
    ],
)
def test_while_it_is_turned_away_the_log_forbids_its_restart(told: str, mode: str, looks: str) -> None:
    found = exceptions_of(line(800, UP), told, line(1, GIVEN_UP))
    assert found.status is Status.CRITICAL and "would not start" in " ".join(notes(found))
    assert conclude([found], catalog.load()).failure_modes[0].id == mode
    assert weight(found, mode) >= 0.6
    assert [p.name for p in found.proposals] == [looks]
    words(found)
    # Not proposed by another step either, nor a changed setting, which is a restart.
    names = ("restart_notification", "restart_entitlement", "hold_delivery", "throttle_relay", "logs")
    others = replace(found, step="4.1.1", proposals=tuple(Proposal(n, n, "5.1", {}) for n in names), signals=())
    left = [p.name for p in conclude([found, others], catalog.load()).proposals]
    assert not {*left} & {*names[:4]}
    assert [p.name for p in exceptions_of(line(900, UP), line(1, GIVEN_UP)).proposals] == ["restart_notification"]


@pytest.mark.parametrize(
    ("own", "other", "differs"),
    [
        ({"NATS_URL": "nats://app:***@10.0.0.7:4222"}, {"NATS_URL": "nats://app:***@10.0.0.8:4222"}, ["NATS_URL"]),
        ({"NATS_URL": "nats://127.0.0.1:4222"}, {"NATS_URL": "nats://127.0.0.1:4223"}, ["NATS_URL"]),
        ({"NATS_URL": "nats://a:4222,nats://b:4222"}, {"NATS_URL": "nats://b.prod.svc:4222"}, []),
        ({"POSTGRES_HOST": "db"}, {"POSTGRES_HOST": "db.prod.svc.cluster.local"}, []),
        ({"POSTGRES_HOST": "db"}, {"POSTGRES_HOST": "old"}, ["POSTGRES_HOST"]),
        ({"SPRING_DATASOURCE_URL": "jdbc:postgresql://db:5432/a"}, {"SPRING_DATASOURCE_URL": "jdbc:postgresql://c:5432/a"},
         ["SPRING_DATASOURCE_URL"]),
        ({"NATS_URL": "nats://a:4222"}, {"POSTGRES_HOST": "db"}, []),
        ({"SERVER_PORT": "8080", "RECEIVER_URL": "http://a"}, {"SERVER_PORT": "8081", "RECEIVER_URL": "http://b"}, []),
    ],
)  # fmt: skip
def test_an_address_that_is_not_that_of_the_other_program_is_found(
    own: dict[str, str], other: dict[str, str], differs: list[str]
) -> None:
    assert addresses.find_other_servers(own, other) == differs
    file = own | {f"ENTITLEMENT__{name}": value for name, value in other.items()}
    programs = (addresses.own_variables(file, service) for service in ("notification", "entitlement"))
    assert [v for v in addresses.find_other_servers(*programs) if v in other] == differs


@pytest.mark.parametrize(("ours", "differs"), [("a:4222", False), ("a.prod.svc:4222", False), ("b:4222", True)])
def test_the_server_that_the_runbook_uses_is_no_other_one(ours: str, differs: bool) -> None:
    own, other = {"NATS_URL": "nats://a:4222", "DB_HOST": "a"}, {"NATS_URL": "nats://b:4222", "DB_HOST": "b"}
    found = addresses.find_other_servers(own, other, [f"nats://user@{ours}"])
    assert bool(found) is differs


def test_a_program_with_another_server_is_not_restarted() -> None:
    frames = log(line(5, UP)) | {"own": row(user="app", differs="NATS_URL"), "log": row(lines=1, entries=1)}
    found = exceptions.judge_exceptions(frames | {"about": row(workload="notification", name="n")}, make_given())
    assert found.status is Status.WARNING and "NATS_URL" in messages.text(found.headline, "en")
    deaf = seen("4.1.2", *BOOK.evidence("subscriber.deaf"), proposals=("restart_notification",))
    assert [p.name for p in conclude([deaf], BOOK).proposals] == ["restart_notification"]
    verdict = conclude([deaf, found], BOOK)
    assert (verdict.proposals, verdict.stuck_at, verdict.failure_modes[0].id) == ((), "subscriber", "FM-CFG-01")


@pytest.mark.parametrize(
    ("told", "broker", "away"),
    [
        (GIVEN_UP, Reason.UNREACHABLE, True),
        (GIVEN_UP, Reason.DENIED, False),  # it is there
        (GIVEN_UP, None, False),
        (UP, Reason.UNREACHABLE, False),  # perhaps only from here
    ],
)
def test_while_the_broker_answers_nobody_no_service_is_restarted(told: str, broker: Reason | None, away: bool) -> None:
    """A client that has given up needs a restart, but exits at its start until the broker is back."""
    found = exceptions_of(line(800, UP), line(60, told), broker=broker, more=tables())
    assert any("not only unreachable from here" in note for note in notes(found)) is away
    words(found)
    restart = ("restart_entitlement", "restart_notification")
    relay = seen("4.1.3", *BOOK.evidence("exceptions.publishes_fail"), proposals=restart)
    verdict = conclude([relay, found], BOOK)
    if away:
        assert (found.status, verdict.stuck_at, verdict.proposals) == (Status.CRITICAL, "jetstream", ())
        assert verdict.failure_modes[0].id == "FM-NATS-04"
    else:
        assert verdict.stuck_at != "jetstream"
        assert "restart_notification" in {p.name for p in found.proposals} or told is UP


CUT_OFF = "org.postgresql.util.PSQLException: FATAL: terminating connection due to administrator command"


@pytest.mark.parametrize(
    ("lines", "database", "away"),
    [
        ([no_connection(5, AWAY)], Reason.UNREACHABLE, True),
        ([no_connection(5, AWAY)], None, False),  # its address may be wrong
        ([no_connection(5, AWAY)], Reason.DENIED, False),  # the database lets nobody of ours in: it is there
        ([no_connection(500, AWAY)], Reason.UNREACHABLE, False),  # long over
        ([line(5, TASK, CUT_OFF)], Reason.UNREACHABLE, True),
        ([line(5, TASK, CUT_OFF)], None, False),  # a person has ended its sessions
        ([line(5, TASK, "java.lang.IllegalStateException: odd")], Reason.UNREACHABLE, False),
    ],
)
def test_a_database_that_answers_neither_the_service_nor_us_is_away(
    lines: list[str], database: Reason | None, away: bool
) -> None:
    found = exceptions_of(line(800, UP), *lines, database=database)
    assert ("exceptions.database_away" in {s.observation for s in found.signals}) is away
    assert any("not only unreachable from here" in note for note in notes(found)) is away
    if away:
        assert found.status is Status.CRITICAL
        verdict = conclude([found], catalog.load())
        assert (verdict.stuck_at, verdict.failure_modes[0].id) == ("database", "FM-DB-01")


def test_while_only_we_do_not_reach_the_database_the_logs_are_asked() -> None:
    silent = unknown("3.1", Reason.UNREACHABLE, say("ui.no_action"))
    nothing = replace(silent, unseen=(Unseen("postgres", Reason.UNREACHABLE),))
    asked = conclude([nothing], catalog.load()).settled_by
    assert {"4.5.1", "4.5.2"} <= {*asked}
    denied = replace(nothing, unseen=(Unseen("postgres", Reason.DENIED),))
    assert conclude([denied], catalog.load()).settled_by == ()


def notes(found: Any) -> list[str]:
    return [messages.text(note, "en") for note in found.notes]


@pytest.mark.parametrize("refused", [no_connection(5), line(2, DENIED)])
@pytest.mark.parametrize(
    "action",
    [
        lambda rb: Restart(rb, workload="notification"),
        lambda rb: Restart(rb, workload="entitlement"),
        lambda rb: Scale(rb, workload="notification", replicas=1),
        lambda rb: SettingsChange(rb, settings={"delivery.batch_size": 10}),
    ],
)
def test_every_action_that_starts_a_service_needs_its_logins(
    action: Callable[[Context], Action], refused: str, embedded: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", embedded.database_url)
    monkeypatch.setenv("RUNBOOK_NATS_URL", embedded.nats_url)
    rb = quiet_session("5.1").context
    cluster = MagicMock(spec=rb.workloads)
    cluster.environment.return_value, cluster.replicas.return_value, cluster.pods.return_value = {}, 1, []
    cluster.cluster.return_value, cluster.cluster_id.return_value = ("", ""), ""
    monkeypatch.setattr(Context, "workloads", cluster)
    for module in (restart, scale):  # which would watch the claims for a lease
        monkeypatch.setattr(module, "check_only_worker", lambda *given: Precondition(say("not_seen"), ok=None))
    for lines, ok in (((), {None}), ((refused,), {None, False})):  # what is not known is a warning
        monkeypatch.setattr(logins, "collect", lambda rb, workload, lines=lines: {"looked": row(at=NOW)} | log(*lines))
        checked = action(rb).preconditions(rb)
        found = [p.ok for p in checked if p.text.key.startswith(("action.restart.database_", "action.restart.broker_"))]
        assert (len(found), {*found}) == (2, ok)


def test_a_stop_needs_no_database_and_a_start_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", "postgresql://runbook@127.0.0.1:1/none")
    rb = quiet_session("5.1").context
    cluster = MagicMock(spec=rb.workloads)
    cluster.replicas.return_value, cluster.pods.return_value = 1, []
    monkeypatch.setattr(Context, "workloads", cluster)
    assert Scale(rb, workload="notification", replicas=0).state(rb) == {"replicas": 1}
    with pytest.raises(SourceError):
        Scale(rb, workload="notification", replicas=1).state(rb)


@pytest.mark.parametrize(
    ("environment", "ok"),
    [
        ({"NOTIFICATION_NATS_ACK_WAIT": "20s"}, True),
        ({"NOTIFICATION_NATS_ACK_WAIT": "5s"}, False),
        ({"NOTIFICATION_NATS_MAX_DELIVER": "3"}, False),  # the other one differs too, by its default
        ({}, None),
    ],
)
def test_only_a_value_that_was_read_keeps_a_start_back(
    environment: dict[str, str], ok: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not among the pod's variables may come from a ConfigMap, or is the default: nobody knows."""
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", "postgresql://runbook@127.0.0.1:1/none")
    rb = quiet_session("5.1").context
    cluster, broker = MagicMock(spec=rb.workloads), MagicMock()
    cluster.environment.return_value = environment
    broker.consumer.return_value.config = {"ack_wait": 20e9, "max_deliver": 10}
    monkeypatch.setattr(Context, "workloads", cluster)
    monkeypatch.setattr(Context, "source", lambda rb, name: broker)
    found = restart.check_start(rb, "notification")
    assert (found.ok, found.holds) == (ok, ok is not False)


# Whoever does the work beside it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "told", "assumed"),
    [
        (of_sessions() | pool(10), 0, 0),
        (of_sessions(sessions=20) | pool(10), 10, 10),
        (of_sessions(sessions=20) | pool(20), 0, 0),
        (of_sessions(sessions=12) | pool(10), 0, 0),  # some made anew
        (of_sessions(sessions=20), None, 10),
        (of_sessions(), None, 0),
        (of_sessions(strangers=1) | pool(10), None, None),
        (of_sessions(sees_others=False) | pool(10), None, None),
        ({}, None, None),
    ],
)
def test_a_whole_pool_more_is_somebody_else(frames: Frames, told: int | None, assumed: int | None) -> None:
    assert sessions.sessions_beyond_pool(frames, make_given(), "notification") == told
    assert sessions.sessions_beyond_pool(frames, make_given(), "notification", assumed=10) == assumed
    if told:
        assert sessions.sessions_beyond_pool(frames, make_given(), "notification", instances=2) == 0


def test_sessions_that_are_of_either_service_count_as_well() -> None:
    frames = of_sessions(sessions=19) | pool(10)
    found = [*frames["service_sessions"].to_dict("records")[::2], vars(replace(NOBODY, sessions=1))]
    frames["service_sessions"] = pd.DataFrame(found)
    assert sessions.sessions_beyond_pool(frames, make_given(), "notification") == 10


def test_sessions_that_are_of_either_service_fill_the_other_pool_first() -> None:
    frames = of_sessions() | pool(10)
    both = [vars(replace(NOBODY, service=name, sessions=n)) for name, n in (("entitlement", 2), ("either", 8))]
    frames["service_sessions"] = pd.concat([frames["service_sessions"].tail(1), pd.DataFrame(both)])
    assert sessions.sessions_beyond_pool(frames, make_given(), "notification") == 0


# Whatever stands there --------------------------------------------------------------------------------------


@given(st.data())
def test_reading_is_total(data: st.DataObject) -> None:
    whole = held() | pool(10) | instances() | node() | connected("app", None) | log(no_connection(5), line(2, DENIED))
    frames = data.draw(odd_frames(whole | {"at_work": row(bound=True), "own": row(user="app")}))
    for found in logins.judge(frames, make_given(), "entitlement").values():
        assert found.ok in (True, False, None)
    logins.refused_servers(logins.judge(frames, make_given(), "nobody"))
    sessions.sessions_beyond_pool(frames, make_given(), "entitlement")


@given(st.lists(st.text(max_size=200) | st.sampled_from([no_connection(5), line(2, DENIED), line(2, UP)]), max_size=9))
def test_any_lines_can_be_read(lines: list[str]) -> None:
    found = read_attempts(read_log(*lines).entries, logins.SIGNS)
    assert list(found.columns) == [
        "server",
        "came",
        "n",
        "last",
        "detail",
    ]
