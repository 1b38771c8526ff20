"""Section 5.1: a restart is proposed, refused, or carried out and seen to help."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from runbook_lib.book import catalog
from runbook_lib.checks.check import checks
from runbook_lib.checks.context import JudgeInput
from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.model.finding import Frames, Status
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.actions.restart import Restart, check_only_worker, is_starting
from runbook_lib.packs.entitlement.facts import EntitlementFacts
from runbook_lib.store.archive import ACTION, LOG, Archive
from tests.kit import sandboxes
from tests.kit.command import runbook as command
from tests.kit.frames.services import of_sessions
from tests.kit.schemas import valid
from tests.kit.servers import Servers
from tests.kit.steps import UNPROCESSED, events, open_target

CHECKS = checks()

BOOK = catalog.load()
NOW = pd.Timestamp("2026-03-01T12:00:00Z")
GIVEN = JudgeInput(BOOK, NOW, 60, EntitlementFacts())


def outcome(result: str, verified: bool | None, holds: list[bool | None]) -> dict[str, pd.DataFrame]:
    words = {"why_en": "why", "why_ja": "理由", "effect_en": "effect", "effect_ja": "効果"}
    return {
        "outcome": pd.DataFrame([{"result": result, "verified": verified, **words}]),
        "preconditions": pd.DataFrame({"precondition": ["it answers"] * len(holds), "holds": holds}, dtype=object),
        "about": row(workload="notification", name="notification", leased=3, stream="s"),
    }


def test_what_could_not_be_seen_warns_and_does_not_stop_it() -> None:
    frames = outcome("dry", None, [True, None, True])
    frames["preconditions"]["warns"] = [False, True, True]
    finding = CHECKS["5.1.2"].judge(frames, GIVEN)
    assert (finding.status, finding.reason, finding.headline.key) == (Status.WARNING, None, "restart.warned")
    frames["preconditions"]["warns"] = False
    assert CHECKS["5.1.2"].judge(frames, GIVEN).status is Status.UNKNOWN
    frames = outcome("dry", None, [False, None])
    frames["preconditions"]["warns"] = True
    assert CHECKS["5.1.2"].judge(frames, GIVEN).headline.key == "restart.not_advised"


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
    assert CHECKS[step].judge(frames, GIVEN).status is not Status.OK


def test_nothing_seen_is_not_recovered() -> None:
    assert CHECKS["5.1.3"].judge({}, GIVEN).status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("started", "ending", "expected"),
    [
        ([], [], False),
        ([""], [], True),
        (["2026-03-01T11:59:50Z"], [], True),
        (["2026-03-01T11:59:50Z", "2026-03-01T10:00:00Z"], [], False),
        (["2026-03-01T11:59:50Z"], ["2026-03-01T10:00:00Z"], True),  # the old one still ends
        ([], ["2026-03-01T10:00:00Z"], True),
    ],
)
def test_a_rollout_is_under_way_while_all_instances_are_young_or_end(
    started: list[str], ending: list[str], expected: bool
) -> None:
    pods = [{"started": at, "ending": ends} for ends, each in ((False, started), (True, ending)) for at in each]
    assert is_starting(pods, NOW, 20.0) is expected


class Claims:
    """As much of a context as `claims_alone` needs: whose claim a look shows, by the second that it is made at."""

    def __init__(self, claims: list[tuple[float, str]], instances: int = 1, ready: bool = True) -> None:
        self.claims, self.instances, self.ready = claims, instances, ready
        self.elapsed, self.looks, self.workloads = 0.0, 0, self

    def pods(self, name: str) -> list[dict[str, Any]]:
        return [{"name": name, "started": "2026-03-01T11:00:00Z", "ready": self.ready}] * self.instances

    def number(self, name: str) -> float:
        return BOOK.numbers[name]

    def given(self) -> JudgeInput:
        return GIVEN

    def sleep(self, seconds: float) -> None:
        self.elapsed += seconds

    @contextmanager
    def snapshot(self) -> Iterator[Claims]:
        self.looks += 1
        yield self

    def ask(self, question: str) -> pd.DataFrame:
        made = [(at, who) for at, who in self.claims if at <= self.elapsed]
        rows = [(who, NOW + pd.Timedelta(seconds=at)) for at, who in made[-1:]]  # who claims takes the other's rows
        return pd.DataFrame(rows, columns=["locked_by", "locked_at"])


@pytest.mark.parametrize(
    ("claims", "frames", "ok"),
    [
        ([(-1.0, "a"), (9.8, "b"), (11.2, "a")], {}, False),  # a batch of ten seconds, as in a slow receiver's time
        ([(-8.0, "b"), (1.3, "a"), (10.1, "b")], {}, False),
        ([(float(n), "a") for n in range(9)], {}, True),
        ([(float(n), "a") for n in range(9)], of_sessions(sessions=20), None),
        ([(-8.0, "a")], {}, None),  # it hangs, and nobody is seen to take its rows
        ([], {}, None),
        ([], of_sessions(), True),  # no more sessions than its own
        ([(-1.0, "a"), (9.8, "b")], of_sessions(), True),  # not looked for: the first one has ended
    ],
)
def test_claims_are_watched_for_longer_than_a_batch_unless_the_sessions_are_its_own(
    claims: list[tuple[float, str]], frames: Frames, ok: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rb = Claims(claims)
    monkeypatch.setattr(time, "sleep", rb.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: rb.elapsed)
    found = check_only_worker(rb, "notification", frames)  # type: ignore[arg-type]
    assert found.ok is ok and found.holds is not (ok is False)
    assert rb.elapsed <= BOOK.numbers["claims.watch"] + BOOK.numbers["claims.apart"]


def test_none_is_started_while_sessions_of_no_known_instance_work() -> None:
    nobody = Claims([], instances=0)
    assert check_only_worker(nobody, "notification", of_sessions()).ok is False  # type: ignore[arg-type]
    gone = of_sessions(sessions=0, newest=None, poll=None)
    assert check_only_worker(nobody, "notification", gone).ok is True  # type: ignore[arg-type]
    assert nobody.looks == 0


@pytest.mark.parametrize("frames", [{}, of_sessions()])
def test_whose_claims_they_are_is_not_known_while_its_own_instance_is_not_ready(
    frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may hold its consumer, which is why it ends at each start."""
    rb = Claims([(float(n), "a") for n in range(9)], ready=False)
    monkeypatch.setattr(time, "sleep", rb.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: rb.elapsed)
    found = check_only_worker(rb, "notification", frames)  # type: ignore[arg-type]
    assert (found.ok, found.holds) == (None, True)


class Slow:
    """A run, and a runner whose restart takes half a minute."""

    facts, workloads, clock = EntitlementFacts(), property(lambda self: self), NOW

    def now(self) -> pd.Timestamp:
        return self.clock

    def number(self, name: str) -> float:
        return BOOK.numbers[name]

    def restart(self, name: str) -> str:
        return "restarted"

    def wait_ready(self, name: str, seconds: float) -> str:
        self.clock = NOW + pd.Timedelta(seconds=30)
        return "ready"


def test_what_the_old_instance_claimed_is_no_sign_of_the_new_one() -> None:
    rb: Any = Slow()
    did = Restart(rb, workload="entitlement").run(rb, None, lambda share, text: None)  # type: ignore[arg-type]
    assert pd.Timestamp(did["since"]) == NOW + pd.Timedelta(seconds=30)


@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ({}, (True, True, "idle")),
        ({"outbox": "PENDING", "publish_again": 60.0, "publish_tries": 3}, (False, True, "idle")),
        ({"outbox": "PENDING"}, (False, False, "not_at_work")),
    ],
)
def test_without_due_rows_a_restart_is_settled_only_if_none_can_become_due(
    servers: Servers, db: psycopg.Connection, rows: dict[str, Any], seen: tuple[bool, bool, str]
) -> None:
    rb = open_target("5.1", {"database_url": servers.database_url})
    if rows:
        events(db, 3, 20, **rows, **UNPROCESSED)
    settled, effective, text = Restart(rb, workload="entitlement")._check_at_work(rb, rb.now())
    assert (settled, effective, text.key) == (*seen[:2], f"action.restart.{seen[2]}")


@pytest.fixture
def sandbox(sandbox: Sandbox) -> Sandbox:
    """The module's sandbox without the actions of other tests, whose cooldown would count."""
    shutil.rmtree(sandbox.directory / "runbook-ledger", ignore_errors=True)
    return sandbox


def runbook(sandbox: Sandbox, output: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    env = {**os.environ, "RUNBOOK_SANDBOX_DIR": str(sandbox.directory), **environment}
    where = ("--target", "sandbox", "--incident", "R-1", "--output", str(output), "--json")
    done = command(*arguments, *where, env=env)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    valid(json.loads(done.stdout), "action" if arguments[0] == "act" else "run")
    return done.returncode, done.stdout


def actions(output: Path) -> list[dict[str, Any]]:
    return Archive(str(output), "R-1").lines(ACTION)


@pytest.mark.slow
def test_a_hung_worker_is_restarted_on_a_word_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    pod = sandbox.pod("notification")["pod"]
    faults.inject(sandbox, "worker_hung")
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
        faults.heal(sandbox)
    begun, done = actions(tmp_path)[-2:]
    assert (begun["result"], done["result"], done["verified"]) == ("begun", "done", True)
    assert begun["before"]["due"] > 0
    assert (done["who"], done["approved_by"], done["section"]) == (begun["who"], "Aoki", "5.1")
    assert Archive(str(tmp_path), "R-1").problems() == []
    assert "Aoki" in (tmp_path / "R-1" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
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
    sandbox.wait_for_flow(90)
    results = [(a["action"], a["result"]) for a in actions(tmp_path) if a["result"] in ("done", "failed")]
    assert results == [("scale", "done"), ("scale", "done")]


@pytest.mark.slow
def test_no_restart_against_a_database_that_takes_no_writes(sandbox: Sandbox, tmp_path: Path) -> None:
    with psycopg.connect(sandbox.state.addresses.admin_url, autocommit=True) as admin:
        admin.execute("ALTER ROLE miniserversystem SET default_transaction_read_only = on")
        try:
            code, said = runbook(sandbox, tmp_path, "act", "restart", "entitlement")
        finally:
            admin.execute("ALTER ROLE miniserversystem RESET default_transaction_read_only")
    outcome = json.loads(said)
    assert code == Status.WARNING.value and outcome["result"] == "dry"
    assert any("accepts no writes" in p["text"]["en"] for p in outcome["preconditions"] if not p["ok"])


#: What does not let the services in: its words in their log, the precondition that tells it, and the failure mode.
TURNED_AWAY = {
    "password_changed": ("password authentication failed", "the database refuses logins of {}", "FM-DB-05"),
    "broker_refusing": ("Authorization Violation", "the broker refuses logins of {}", "FM-NATS-05"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workload"),
    [("password_changed", "notification"), ("broker_refusing", "notification"), ("broker_refusing", "entitlement")],
)
def test_no_restart_of_a_service_that_a_server_turns_away(
    sandbox: Sandbox, tmp_path: Path, name: str, workload: str
) -> None:
    """It lives on, and comes back by itself; restarted, it would not start."""
    pod, (said_in_log, condition, mode) = sandbox.pod(workload)["pod"], TURNED_AWAY[name]
    path = sandbox.directory / "log" / f"{workload}.log"
    before = path.stat().st_size
    faults.inject(sandbox, name)
    try:
        # A pool is patient for 30 s before it says so.
        sandbox.wait_for("the refusal in the log", lambda: said_in_log in path.read_text()[before:], 60)
        word = ("--execute", "--approved-by", "Aoki", "--reason", "nothing is claimed")
        code, said = runbook(sandbox, tmp_path, "act", "restart", workload, *word)
        _, proposed = runbook(sandbox, tmp_path, "run", "5.1", "-p", f"workload={workload}")
        assert sandbox.pod(workload)["pod"] == pod
    finally:
        sandboxes.heal(sandbox, hours=3)
    answer = json.loads(said)
    assert (code, answer["result"]) == (Status.CRITICAL.value, "refused"), said
    broken = [p["text"]["en"] for p in answer["preconditions"] if p["ok"] is False]
    assert any(text.startswith(condition.format(workload)) for text in broken), broken
    (run,) = json.loads(proposed)["runs"]
    findings = {f["step"]: f for f in run["findings"]}
    assert findings["5.1.1"]["status"] == "CRITICAL" and findings["5.1.2"]["status"] == "WARNING", findings
    assert json.loads(proposed)["verdict"]["failure_modes"][0]["id"] == mode
    assert not any("restart" in p["name"] for p in json.loads(proposed)["verdict"]["proposals"])


@pytest.mark.slow
def test_no_restart_while_a_server_is_away(sandbox: Sandbox, tmp_path: Path) -> None:
    pod = sandbox.pod("entitlement")["pod"]
    faults.inject(sandbox, "broker_down")
    try:
        word = ("--approved-by", "Aoki", "--reason", "the relay is stuck")
        code, said = runbook(sandbox, tmp_path, "act", "restart", "entitlement", "--execute", *word)
        assert sandbox.pod("entitlement")["pod"] == pod
    finally:
        faults.heal(sandbox)
    assert code == Status.CRITICAL.value
    answer = json.loads(said)
    assert answer["result"] == "refused" and "jetstream" in answer["why"]["en"]


@pytest.mark.slow
def test_a_canary_is_delivered_or_tells_where_it_stays(sandbox: Sandbox, tmp_path: Path) -> None:
    word = ("--execute", "--approved-by", "Aoki", "--reason", "is it over?")
    code, said = runbook(sandbox, tmp_path, "act", "canary", *word)
    assert code == Status.OK.value, said
    assert "2 events of the canary delivered" in json.loads(said)["effect"]["en"]
    faults.inject(sandbox, "relay_stopped")
    try:
        code, said = runbook(sandbox, tmp_path, "act", "canary", *word, "--wait", "6")
    finally:
        faults.heal(sandbox)
    assert code == Status.CRITICAL.value and "In the outbox" in json.loads(said)["effect"]["en"]
    with psycopg.connect(sandbox.state.addresses.admin_url, autocommit=True) as admin:
        admin.execute("REVOKE INSERT ON entitlement.outbox_events FROM miniserversystem")
        try:
            code, said = runbook(sandbox, tmp_path, "act", "canary", *word)
        finally:
            admin.execute("GRANT INSERT ON entitlement.outbox_events TO miniserversystem")
    assert code == Status.CRITICAL.value and "the API answered the grant with HTTP 500" in json.loads(said)["why"]["en"]
    assert [a["result"] for a in actions(tmp_path)] == ["begun", "done", "begun", "done", "begun", "failed"]
    assert b'"canary"' not in (tmp_path / "R-1" / LOG).read_bytes().replace(b'"action": "canary"', b"")


def test_no_canary_without_an_account_for_it() -> None:
    done = command("act", "canary", env={**os.environ, "RUNBOOK_DATABASE_URL": "postgresql://a@127.0.0.1:9/b"})
    assert done.returncode == 64 and "has no canary_user" in done.stderr and len(done.stderr.splitlines()) == 1
