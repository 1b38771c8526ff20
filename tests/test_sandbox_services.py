"""A sandbox's services say what the real ones say: at rest, and under each fault that is not drilled yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import psycopg
import pytest
import requests
from drills import consumer, streams

from runbook_lib import catalog
from runbook_lib.context import Context, open_context
from runbook_lib.packs.entitlement.evidence import services, sessions
from runbook_lib.packs.entitlement.evidence.services import Answers, Doing, ServiceSeen
from runbook_lib.packs.entitlement.evidence.sessions import Says, SessionsSeen
from runbook_lib.packs.entitlement.facts import Facts
from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox
from runbook_lib.parameters import validate
from runbook_lib.settings import Settings
from runbook_lib.sources import SourceError


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    started = Sandbox(tmp_path_factory.mktemp("services"))
    started.up(rate=5, hours=0.1)
    yield started
    started.down()


@pytest.fixture(autouse=True)
def healed(running: Sandbox) -> Iterator[None]:
    yield
    running.heal(60)


def context(sandbox: Sandbox) -> Context:
    config = Settings(targets={"here": sandbox.state.target()})
    book = catalog.load()
    return open_context(book.sections["3"], validate({"target": "here"}), config, book)


def look(sandbox: Sandbox, gap_s: float = 2.5) -> tuple[dict[str, ServiceSeen], dict[str, SessionsSeen]]:
    """What two looks come to, as a step makes them."""
    rb = context(sandbox)
    given = rb.given()
    seen: list[dict[str, Any]] = []
    for pause in (gap_s, 0.0):
        frames = services.look(rb)
        try:
            with rb.snapshot() as db:
                frames |= sessions.look(db, Facts().database_role)
        except SourceError:
            """The database is out of reach for the runbook as well."""
        seen.append(frames)
        time.sleep(pause)
    frames = services.together(*seen)
    return services.read(frames, services.Numbers.of(given)), sessions.read(frames, sessions.Numbers.of(given))


def ask(sandbox: Sandbox, query: str) -> Any:
    with psycopg.connect(sandbox.state.addresses.admin_url, connect_timeout=2) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def log_of(sandbox: Sandbox, app: str) -> str:
    return (sandbox.directory / "log" / f"{app}.log").read_text()


def until(sandbox: Sandbox, what: str, condition: Callable[[], bool], timeout: float = 30) -> None:
    sandbox.wait_for(what, condition, timeout)


LAST_ERROR = "SELECT coalesce(string_agg(DISTINCT last_error, '|'), '') FROM entitlement.outbox_events"


def test_at_work_all_loops_run_and_ten_sessions_each_are_fresh(running: Sandbox) -> None:
    seen, held = look(running)
    for service, loop in (("entitlement", "relay"), ("notification", "delivery")):
        one = seen[service]
        assert (one.answers, one.by, one.loops[loop].doing) == (Answers.YES, "service", Doing.RUNS), one
        assert one.connections == 10 and not one.waiting and not one.errors and one.restarted is False
        assert all(each.doing is Doing.RUNS for each in one.loops.values()), one.loops
        assert held[service].says is Says.ALIVE, held
    per_driver = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'PostgreSQL JDBC Driver'"
    assert ask(running, per_driver) == 20


def test_without_the_right_to_see_others_nothing_is_said_of_the_sessions(running: Sandbox) -> None:
    with psycopg.connect(running.state.addresses.admin_url, autocommit=True) as admin:
        admin.execute("REVOKE pg_monitor FROM runbook")
        try:
            _, held = look(running, 0.1)
        finally:
            admin.execute("GRANT pg_monitor TO runbook")
    assert {s.says for s in held.values()} == {Says.NOT_SEEN}


def test_the_api_grants_once_and_refuses_what_it_must(running: Sandbox) -> None:
    url = running.state.addresses.service_url("entitlement")
    body = {"user_id": "api-user", "stock_keeping_unit": "sku", "reason": "purchase", "purchase_id": "p-1"}

    def post(path: str, key: str | None = None, **fields: str) -> tuple[int, Any]:
        headers = {"Idempotency-Key": key} if key else {}
        reply = requests.post(f"{url}/v1/entitlements/{path}", json=body | fields, headers=headers, timeout=5)
        return reply.status_code, reply.json()

    first = post("grants", "k-1")
    assert first[0] == 200 and first[1]["status"] == "ACTIVE"
    assert post("grants", "k-1") == first
    assert post("grants", "k-1", reason="gift") == (409, {"code": "IDEMPOTENCY_KEY_CONFLICT"})
    assert post("grants", "k-2") == (409, {"code": "ENTITLEMENT_STATE_CONFLICT"})
    assert post("revokes", "k-3")[1]["status"] == "REVOKED"
    assert post("grants") == (400, {"code": "BAD_REQUEST"})
    sent = "SELECT count(*) FROM notification.notifications WHERE user_id = 'api-user' AND status = 'SENT'"
    until(running, "both to be sent", lambda: ask(running, sent) == 2)
    assert requests.get(f"{url}/actuator/health", timeout=5).json()["status"] == "UP"


@pytest.mark.parametrize("fault", ["db_read_only", "server_read_only"])
def test_a_read_only_database_lets_every_loop_run_and_fail(running: Sandbox, fault: str) -> None:
    running.fault(fault)
    time.sleep(3)
    seen, held = look(running, 4)
    for service, loop in (("entitlement", "relay"), ("notification", "delivery")):
        found = seen[service].loops[loop]
        assert (found.doing, found.exception, found.share) == (Doing.FAILS, "UncategorizedSQLException", 1.0), found
        assert seen[service].errors
        assert held[service].says is Says.FAILING, held
    assert "PSQLException: ERROR: cannot execute INSERT in a read-only transaction" in log_of(running, "entitlement")
    assert requests.get(f"{running.state.addresses.service_url('entitlement')}/actuator/health", timeout=5).ok


def test_a_changed_password_leaves_no_session_and_no_pod_that_starts_again(running: Sandbox) -> None:
    running.fault("password_changed")
    time.sleep(3)
    seen, held = look(running)
    for service in Facts.services:
        assert seen[service].locked_out, seen[service]
        assert held[service].says is Says.NONE, held
    assert sessions.door_is_shut(held)
    before = running.pod("notification")
    running.restart("notification")
    time.sleep(4)
    assert running.pod("notification") == before  # none has come up
    assert look(running, 0.1)[0]["notification"].answers is Answers.CLOSED


@pytest.mark.parametrize(
    ("fault", "service", "loop"),
    [("relay_disabled", "entitlement", "relay"), ("delivery_disabled", "notification", "delivery")],
)
def test_a_loop_that_is_switched_off_is_told_from_a_dead_one(
    running: Sandbox, fault: str, service: str, loop: str
) -> None:
    running.fault(fault)
    time.sleep(11)  # a young process may not have begun it
    seen, held = look(running)
    assert seen[service].loops[loop].doing is Doing.OFF, seen[service]
    assert held[service].says is Says.LOOP_SILENT, held
    other = next(s for s in Facts.services if s != service)
    assert {each.doing for each in seen[other].loops.values()} == {Doing.RUNS}


@pytest.mark.parametrize("service", Facts.services)
def test_a_frozen_process_takes_connections_and_says_nothing(running: Sandbox, service: str) -> None:
    running.fault(f"{service}_frozen")
    time.sleep(16)
    seen, held = look(running, 0.1)
    assert seen[service].answers is Answers.HUNG and seen[service].started is None
    assert held[service].says is Says.FROZEN and (held[service].sessions or 0) >= 8, held
    if service == "notification":
        info = consumer(running)
        assert info["push_bound"] and info["num_ack_pending"] > 20


def test_without_nats_delivery_polls_on_and_nobody_is_bound(running: Sandbox) -> None:
    running.fault("nats_disabled")
    until(running, "nobody to be bound", lambda: "push_bound" not in consumer(running))
    until(running, "delivery to run", lambda: look(running)[0]["notification"].loops["delivery"].doing is Doing.RUNS)


def test_a_wrong_address_of_the_broker_is_a_crash_loop(running: Sandbox) -> None:
    running.fault("wrong_nats_address")
    until(running, "a failed start", lambda: log_of(running, "notification").count("Application run failed") >= 2)
    assert "Caused by: java.net.ConnectException: Connection refused" in log_of(running, "notification")
    until(running, "no session of it", lambda: look(running, 0.1)[1]["notification"].says is Says.NONE)
    assert look(running)[0]["entitlement"].loops["relay"].doing is Doing.RUNS


def test_migrations_that_failed_are_a_crash_loop(running: Sandbox) -> None:
    history = "UPDATE notification.flyway_schema_history_notification SET success = {} WHERE version = '3'"
    with psycopg.connect(running.state.addresses.admin_url, autocommit=True) as admin:
        admin.execute(history.format("false"))
        try:
            running.restart("notification")
            until(running, "it to end", lambda: "Validate failed" in log_of(running, "notification"))
        finally:
            admin.execute(history.format("true"))
    running.wait_for_flow(30)


def test_a_deleted_consumer_leaves_the_publishing_alone(running: Sandbox) -> None:
    before = streams(running)["entitlement-events"]["state"]["messages"]
    running.fault("consumer_deleted")
    time.sleep(3)
    info = streams(running)["entitlement-events"]
    assert "consumer_detail" not in info and info["state"]["messages"] > before + 5
    assert look(running)[0]["entitlement"].loops["relay"].doing is Doing.RUNS


def test_a_full_stream_says_so_in_each_events_error(running: Sandbox) -> None:
    running.fault("stream_full")
    until(running, "its words", lambda: ask(running, LAST_ERROR) == "maximum messages exceeded [10077]")
    assert look(running)[0]["entitlement"].loops["relay"].doing is Doing.RUNS  # it fails, and its runs do not


def test_a_receiver_that_refuses_some_lets_the_others_pass(running: Sandbox) -> None:
    began = ask(running, "SELECT now()")
    running.fault("receiver_refuses_some")
    since = f"FROM notification.notifications WHERE created_at > '{began}'"
    tried = f"SELECT count(DISTINCT user_id) {since} AND status <> 'SENT' AND attempt_count > 0"
    until(running, "some to be refused", lambda: ask(running, tried) >= 2, 60)
    sent = f"SELECT count(*) {since} AND status = 'SENT'"
    until(running, "the others to pass", lambda: ask(running, sent) > 5 * ask(running, tried))
    refused = "IllegalStateException: receiver answered 503"
    until(running, "its words", lambda: refused in log_of(running, "notification"))


def test_a_worker_that_is_gone_stands_still_and_one_that_waits_for_a_lock_is_in_a_long_run(running: Sandbox) -> None:
    running.fault("table_lock")
    time.sleep(6)
    seen, held = look(running)
    assert seen["notification"].loops["delivery"].doing is Doing.LONG, seen
    assert held["notification"].says is Says.BLOCKED, held
    running.heal(60)
    running.restart("notification")  # the lock is in its count of runs: its pause might be as long
    running.wait_for_flow(30)
    time.sleep(15)
    running.fault("worker_stopped")
    time.sleep(2)
    seen, _ = look(running, 5)
    assert seen["notification"].loops["delivery"].doing in (Doing.STILL, Doing.LONG), seen  # killed between, or inside
    assert seen["notification"].answers is Answers.YES


def test_the_pool_comes_back_by_itself(running: Sandbox) -> None:
    running.stop("postgres")
    time.sleep(2)
    seen, held = look(running, 0.5)
    assert seen["notification"].answers is Answers.YES and (seen["notification"].connections or 0) < 10
    assert {s.says for s in held.values()} == {Says.NOT_SEEN}
    running.start("postgres")
    until(running, "ten each", lambda: {s.connections for s in look(running, 0.1)[0].values()} == {10.0})
    running.wait_for_flow(30)


def test_it_stays_light(running: Sandbox) -> None:
    """One core of two is far more than a sandbox may take."""
    found = [p for p in psutil.process_iter() if _owner(p) == str(running.directory)]
    for p in found:
        p.cpu_percent()
    time.sleep(3)
    assert sum(p.cpu_percent() for p in found if p.is_running()) < 60


def _owner(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("RUNBOOK_SANDBOX_OWNER"))
    except psutil.Error:
        return ""
