"""Section 5.1: a restart is proposed, refused, or carried out and seen to help."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
from command import runbook as command
from hypothesis import given as drawn
from hypothesis import strategies as st
from schemas import valid

from runbook_lib import catalog
from runbook_lib.checks import checks
from runbook_lib.context import Given
from runbook_lib.model.finding import Status
from runbook_lib.packs.entitlement.actions.restart import coming_up
from runbook_lib.packs.entitlement.facts import Facts
from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox
from runbook_lib.store import ACTION_LOG, Archive

CHECKS = checks()

BOOK = catalog.load()
NOW = pd.Timestamp("2026-03-01T12:00:00Z")
GIVEN = Given(BOOK, NOW, 60, Facts())


def outcome(result: str, verified: bool | None, holds: list[bool | None]) -> dict[str, pd.DataFrame]:
    words = {"why_en": "why", "why_ja": "理由", "effect_en": "effect", "effect_ja": "効果"}
    return {
        "outcome": pd.DataFrame([{"result": result, "verified": verified, **words}]),
        "preconditions": pd.DataFrame({"precondition": ["it answers"] * len(holds), "holds": holds}, dtype=object),
        "about": pd.DataFrame([{"workload": "notification", "name": "notification", "leased": 3, "stream": "s"}]),
    }


@pytest.mark.parametrize(
    ("result", "verified", "holds", "status"),
    [
        ("dry", None, [True, True], Status.OK),
        ("dry", None, [True, False], Status.WARNING),
        ("dry", None, [True, None], Status.UNKNOWN),
        ("dry", None, [], Status.UNKNOWN),
        ("refused", None, [True, False], Status.WARNING),
        ("failed", None, [True], Status.CRITICAL),
        ("done", True, [True], Status.OK),
        ("done", False, [True], Status.CRITICAL),
        ("done", None, [True], Status.CRITICAL),
    ],
)
def test_what_became_of_it(result: str, verified: bool | None, holds: list[bool | None], status: Status) -> None:
    finding = CHECKS["5.1.2"].judge(outcome(result, verified, holds), GIVEN)
    assert finding.status is status
    assert (finding.reason is not None) == (status is Status.UNKNOWN)


@drawn(
    st.dictionaries(
        st.sampled_from(["outcome", "preconditions", "about", "look", "backlog.notifications", "errors.tries"]),
        st.sampled_from([pd.DataFrame(), pd.DataFrame({"at": [NOW]}), pd.DataFrame({"odd": [None, "x"]})]),
    ),
    st.sampled_from(["5.1.2", "5.1.3"]),
)
def test_judges_are_total(frames: dict[str, pd.DataFrame], step: str) -> None:
    assert CHECKS[step].judge(frames, GIVEN).status is not Status.OK or step == "5.1.3"


def test_nothing_seen_is_not_recovered() -> None:
    assert CHECKS["5.1.3"].judge({}, GIVEN).status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ([], False),
        ([""], True),
        (["2026-03-01T11:59:50Z"], True),
        (["2026-03-01T11:59:50Z", "2026-03-01T10:00:00Z"], False),
    ],
)
def test_a_rollout_is_under_way_while_all_instances_are_young(started: list[str], expected: bool) -> None:
    assert coming_up([{"started": at} for at in started], NOW, 20.0) is expected


def runbook(sandbox: Sandbox, output: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    env = {**os.environ, "RUNBOOK_SANDBOX_DIR": str(sandbox.directory), **environment}
    where = ("--target", "sandbox", "--incident", "R-1", "--output", str(output), "--json")
    done = command(*arguments, *where, env=env)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    valid(json.loads(done.stdout), "action" if arguments[0] == "act" else "run")
    return done.returncode, done.stdout


def actions(output: Path) -> list[dict[str, Any]]:
    return Archive(str(output), "R-1").lines(ACTION_LOG)


@pytest.mark.e2e
def test_a_hung_worker_is_restarted_on_a_word_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    pod = sandbox.pod("notification")["pod"]
    sandbox.fault("worker_hung")
    try:
        time.sleep(BOOK.numbers["program.young"])  # whatever was done to it before this test is a rollout no more
        asked = ("-p", "execute=true")
        word = ("-p", "approved_by=Aoki", "-p", "reason=worker hangs")
        _, said = runbook(sandbox, tmp_path, "run", "5.1", *asked)
        steps = {f["step"]: f["status"] for f in json.loads(said)["runs"][0]["findings"]}
        assert steps["5.1.2"] == "WARNING" and actions(tmp_path)[-1]["result"] == "refused"
        runbook(sandbox, tmp_path, "run", "5.1", *asked, *word, RUNBOOK_UNATTENDED="1")
        assert actions(tmp_path)[-1]["result"] == "refused"
        assert sandbox.pod("notification")["pod"] == pod, "somebody restarted it without a word"

        _, said = runbook(sandbox, tmp_path, "run", "5.1", *asked, *word)
        findings = {f["step"]: f for f in json.loads(said)["runs"][0]["findings"]}
        assert findings["5.1.2"]["status"] == "OK", findings["5.1.2"]
        assert findings["5.1.3"]["status"] == "OK", findings["5.1.3"]
        assert sandbox.pod("notification")["pod"] != pod
    finally:
        sandbox.heal()
    begun, done = actions(tmp_path)[-2:]
    assert (begun["result"], done["result"], done["verified"]) == ("begun", "done", True)
    assert begun["before"]["due"] > 0
    assert (done["who"], done["approved_by"], done["section"]) == (begun["who"], "Aoki", "5.1")
    assert Archive(str(tmp_path), "R-1").problems() == []
    assert "Aoki" in (tmp_path / "R-1" / "index.html").read_text(encoding="utf-8")


@pytest.mark.e2e
def test_stopped_and_started_again_with_nothing_lost(sandbox: Sandbox, tmp_path: Path) -> None:
    word = ("--execute", "--approved-by", "Aoki", "--reason", "duplicates are being queued")
    code, _ = runbook(sandbox, tmp_path, "act", "scale", "notification", "1")
    assert code == Status.WARNING.value, "it is so already"
    code, said = runbook(sandbox, tmp_path, "act", "scale", "notification", "0", *word)
    assert code == Status.OK.value, said
    assert sandbox.program_state("notification") == "STOPPED"
    code, said = runbook(sandbox, tmp_path, "act", "restart", "notification", *word)
    assert code == Status.CRITICAL.value and json.loads(said)["result"] == "refused"
    deadline = time.monotonic() + BOOK.numbers["action.cooldown"] + 60
    while (code := runbook(sandbox, tmp_path, "act", "scale", "notification", "1", *word)[0]) and (
        time.monotonic() < deadline
    ):
        time.sleep(10)  # not within a minute of the stop
    assert code == Status.OK.value
    sandbox.wait_for_flow(30)
    results = [(a["action"], a["result"]) for a in actions(tmp_path) if a["result"] in ("done", "failed")]
    assert results == [("scale", "done"), ("scale", "done")]


@pytest.mark.e2e
def test_no_restart_against_a_database_that_takes_no_writes(sandbox: Sandbox, tmp_path: Path) -> None:
    with psycopg.connect(sandbox.state.addresses.admin_url, autocommit=True) as admin:
        admin.execute("ALTER ROLE miniserversystem SET default_transaction_read_only = on")
        try:
            code, said = runbook(sandbox, tmp_path, "act", "restart", "entitlement")
        finally:
            admin.execute("ALTER ROLE miniserversystem RESET default_transaction_read_only")
    outcome = json.loads(said)
    assert code == Status.WARNING.value and outcome["result"] == "dry"
    assert any("takes no writes" in p["text"]["en"] for p in outcome["preconditions"] if not p["ok"])


@pytest.mark.e2e
def test_no_restart_while_a_server_is_away(sandbox: Sandbox, tmp_path: Path) -> None:
    pod = sandbox.pod("entitlement")["pod"]
    sandbox.fault("broker_down")
    try:
        word = ("--approved-by", "Aoki", "--reason", "the relay is stuck")
        code, said = runbook(sandbox, tmp_path, "act", "restart", "entitlement", "--execute", *word)
        assert sandbox.pod("entitlement")["pod"] == pod
    finally:
        sandbox.heal()
    assert code == Status.CRITICAL.value
    answer = json.loads(said)
    assert answer["result"] == "refused" and "jetstream" in answer["why"]["en"]


@pytest.mark.e2e
def test_a_canary_is_delivered_or_tells_where_it_stays(sandbox: Sandbox, tmp_path: Path) -> None:
    word = ("--execute", "--approved-by", "Aoki", "--reason", "is it over?")
    code, said = runbook(sandbox, tmp_path, "act", "canary", *word)
    assert code == Status.OK.value, said
    assert "2 events of the canary delivered" in json.loads(said)["effect"]["en"]
    sandbox.fault("relay_stopped")
    try:
        code, said = runbook(sandbox, tmp_path, "act", "canary", *word, "--wait", "6")
    finally:
        sandbox.heal()
    assert code == Status.CRITICAL.value and "In the outbox" in json.loads(said)["effect"]["en"]
    with psycopg.connect(sandbox.state.addresses.admin_url, autocommit=True) as admin:
        admin.execute("REVOKE INSERT ON entitlement.outbox_events FROM miniserversystem")
        try:
            code, said = runbook(sandbox, tmp_path, "act", "canary", *word)
        finally:
            admin.execute("GRANT INSERT ON entitlement.outbox_events TO miniserversystem")
    assert code == Status.CRITICAL.value and "the API answered the grant with HTTP 500" in json.loads(said)["why"]["en"]
    assert [a["result"] for a in actions(tmp_path)] == ["begun", "done", "begun", "done", "begun", "failed"]
    assert b'"canary"' not in (tmp_path / "R-1" / ACTION_LOG).read_bytes().replace(b'"action": "canary"', b"")


def test_no_canary_without_an_account_for_it() -> None:
    done = command("act", "canary", env={**os.environ, "RUNBOOK_DATABASE_URL": "postgresql://a@127.0.0.1:9/b"})
    assert done.returncode == 64 and "has no canary_user" in done.stderr and len(done.stderr.splitlines()) == 1
