"""A sandbox's services say what the real ones say: at rest, and under each fault that is not drilled yet."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import psutil
import psycopg
import pytest
import requests

from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.packs.entitlement.evidence import services, sessions
from runbook_lib.packs.entitlement.evidence.services import LoopActivity, RequestResult, ServiceSeen
from runbook_lib.packs.entitlement.evidence.sessions import SessionsSeen, SessionState
from runbook_lib.packs.entitlement.facts import EntitlementFacts
from runbook_lib.sources.source import SourceError
from tests.kit import ROOT, sandboxes
from tests.kit.steps import open_target

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandboxes.running(tmp_path_factory.mktemp("services"), rate=5, hours=0.1) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def healed(running: Sandbox) -> Iterator[None]:
    yield
    sandboxes.heal(running, rate=5, hours=0.1)


def ask(sandbox: Sandbox, query: str) -> Any:
    with psycopg.connect(sandbox.state.addresses.admin_url, connect_timeout=2) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def look(sandbox: Sandbox, gap_s: float = 2.5) -> tuple[dict[str, ServiceSeen], dict[str, SessionsSeen]]:
    """Return what two samples come to, as a step takes them."""
    rb = open_target("3", sandbox.state.target())
    given = rb.given()
    seen: list[dict[str, Any]] = []
    for pause in (gap_s, 0.0):
        frames = services.collect(rb)
        try:
            with rb.snapshot() as db:
                frames |= sessions.collect(db, EntitlementFacts().database_role)
        except SourceError:
            """The database is out of reach for the runbook as well."""
        seen.append(frames)
        time.sleep(pause)
    frames = services.concat_samples(*seen)
    return services.read(frames, given), sessions.read(frames, given)


def test_at_work_all_loops_run_and_ten_sessions_each_are_fresh(running: Sandbox) -> None:
    seen, held = look(running)
    for service, loop in (("entitlement", "relay"), ("notification", "delivery")):
        one = seen[service]
        assert (one.answers, one.by, one.loops[loop].doing) == (RequestResult.YES, "service", LoopActivity.RUNS), one
        assert one.connections == 10 and not one.waiting and (one.age_s or 0) > 0
        assert all(each.doing is LoopActivity.RUNS for each in one.loops.values()), one.loops
        assert held[service].says is SessionState.ALIVE, held
    per_driver = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'PostgreSQL JDBC Driver'"
    assert ask(running, per_driver) == 20


def test_the_services_export_what_the_alert_rules_read(running: Sandbox) -> None:
    rules = (ROOT / "docs" / "deploy" / "prometheus" / "rules.yaml").read_text(encoding="utf-8")
    read = set(re.findall(r"\b(?:entitlement|notification)_\w+_(?:total|count|sum|current)\b", rules))

    def missing() -> set[str]:
        urls = map(running.state.addresses.service_url, ("entitlement", "notification"))
        exported = "".join(requests.get(f"{url}/actuator/prometheus", timeout=5).text for url in urls)
        return {name for name in read if f"\n{name}" not in f"\n{exported}"}

    running.wait_for("every metric but that of a first dead letter", lambda: missing() == {"notification_dlq_total"})


def test_without_the_right_to_see_others_nothing_is_said_of_the_sessions(running: Sandbox) -> None:
    with psycopg.connect(running.state.addresses.admin_url, autocommit=True) as admin:
        admin.execute("REVOKE pg_monitor FROM runbook")
        try:
            _, held = look(running, 0.1)
        finally:
            admin.execute("GRANT pg_monitor TO runbook")
    assert {s.says for s in held.values()} == {SessionState.NOT_SEEN}


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
    running.wait_for("both to be sent", lambda: ask(running, sent) == 2)
    assert requests.get(f"{url}/actuator/health", timeout=5).json()["status"] == "UP"


def test_with_a_changed_password_no_pod_starts_again(running: Sandbox) -> None:
    faults.inject(running, "password_changed")
    before = running.pod("notification")
    running.restart("notification")
    running.wait_for("its port to close", lambda: look(running, 0.1)[0]["notification"].answers is RequestResult.CLOSED)
    assert running.pod("notification") == before  # none has come up


def test_a_worker_that_is_gone_stands_still_while_its_service_answers(running: Sandbox) -> None:
    # A loop that has not ended a run since its process started has no series that could stand still.
    running.wait_for(
        "delivery to run",
        lambda: look(running, 2)[0]["notification"].loops["delivery"].doing is LoopActivity.RUNS,
    )
    faults.inject(running, "worker_stopped")

    def is_stalled() -> bool:
        notification = look(running, 5)[0]["notification"]
        # Killed between two runs, or inside of one.
        return notification.answers is RequestResult.YES and notification.loops["delivery"].doing in (
            LoopActivity.STILL,
            LoopActivity.LONG,
        )

    running.wait_for("delivery to stand still", is_stalled)


def test_the_pool_comes_back_by_itself(running: Sandbox) -> None:
    running.stop("postgres")
    time.sleep(2)
    seen, held = look(running, 0.5)
    assert seen["notification"].answers is RequestResult.YES and (seen["notification"].connections or 0) < 10
    assert {s.says for s in held.values()} == {SessionState.NOT_SEEN}
    running.start("postgres")
    running.wait_for("ten each", lambda: {s.connections for s in look(running, 0.1)[0].values()} == {10.0})
    running.wait_for_flow(90)


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
