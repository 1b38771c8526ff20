"""The action `set`: what it takes, what stops it, and on a real sandbox that it does what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest

from runbook_lib.actions import proposals
from runbook_lib.book import catalog, messages
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.gameday.sandbox.settings import read_env
from runbook_lib.model.finding import Finding, Status
from runbook_lib.model.frames import row
from runbook_lib.model.outcome import Outcome
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session, quiet_session
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.actions.change import SettingsChange, Watch
from runbook_lib.packs.entitlement.facts import EntitlementFacts, EntitlementWorkloads
from runbook_lib.store.archive import ACTION
from tests.kit.cluster import Cluster
from tests.kit.command import runbook
from tests.kit.servers import Servers
from tests.kit.steps import NOW, ago, make_given

SETTINGS = catalog.load().settings
BATCH, POLL = "NOTIFICATION_DELIVERY_BATCH_SIZE", "NOTIFICATION_DELIVERY_POLL_INTERVAL"
WORD: dict[str, Any] = {"execute": True, "approved_by": "The Owner", "reason": "the receiver asked for less"}


# Values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("delivery.batch_size", 0, "outside 1 to 200"),
        ("delivery.batch_size", 201, "outside 1 to 200"),
        ("delivery.batch_size", 7.5, "whole number"),
        ("delivery.batch_size", float("nan"), "outside"),
        ("delivery.batch_size", "many", "a number of rows"),
        ("delivery.batch_size", True, "a number of rows"),
        ("relay.poll_interval", 0.1, "outside 0.2 to 30"),
        ("relay.enabled", 1, "true or false"),
    ],
)
def test_what_may_not_be_set(name: str, value: object, problem: str) -> None:
    assert problem in SETTINGS[name].problem(value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("delivery.batch_size", 5, "5"),
        ("delivery.batch_size", 5.0, "5"),
        ("delivery.poll_interval", 2, "2s"),
        ("delivery.poll_interval", 0.2, "200ms"),  # the applications take no fractions of a unit
        ("delivery.poll_interval", 1.5, "1500ms"),
        ("relay.enabled", False, "false"),
    ],
)
def test_a_value_is_spelt_as_the_application_takes_it(name: str, value: Any, text: str) -> None:
    assert (SETTINGS[name].problem(value), SETTINGS[name].spelt(value)) == ("", text)
    assert SETTINGS[name].understood(text) == value


def test_what_an_application_would_not_understand() -> None:
    assert [SETTINGS[f"relay.{k}"].understood("soon") for k in change.KINDS] == [None, None, None]


def test_what_is_in_force_and_where_it_is_written_twice() -> None:
    environment = {BATCH: "10", "NOTIFICATION_DELIVERY_BATCHSIZE": "20", "NOTIFICATION_DELIVERY_ENABLED": "false"}
    assert change.current_settings(SETTINGS, "delivery", environment) == {
        "delivery.batch_size": 10,
        "delivery.poll_interval": 1,
        "delivery.enabled": False,
    }
    assert change.other_spellings(SETTINGS["delivery.batch_size"], environment) == ["NOTIFICATION_DELIVERY_BATCHSIZE"]


def test_commands_of_both_runners() -> None:
    kubectl = make_given(
        facts=EntitlementFacts(workloads=EntitlementWorkloads(context="prod"), batch_size=50, poll_interval_s=1)
    )
    supervisor = make_given(
        facts=EntitlementFacts(workloads=EntitlementWorkloads(runner="supervisorctl"), batch_size=1, poll_interval_s=20)
    )
    assert remedies.throttle(kubectl, "delivery").command == (
        f"kubectl --context prod -n miniserversystem set env deploy/notification -c notification {BATCH}=25 {POLL}=2s"
    )
    assert remedies.throttle(supervisor, "relay").command == (
        "supervisorctl update entitlement  # once environment= of [program:entitlement] has "
        "ENTITLEMENT_OUTBOX_BATCH_SIZE=1, ENTITLEMENT_OUTBOX_POLL_INTERVAL=30s"
    )
    assert proposals.undo_settings(kubectl, ["relay.batch_size"]).command.endswith(
        "deploy/entitlement -c entitlement ENTITLEMENT_OUTBOX_BATCH_SIZE-"
    )
    assert proposals.undo_settings(supervisor, ["relay.poll_interval"]).command.endswith("POLL_INTERVAL=1s")


def test_the_command_of_a_supervised_target_puts_its_variables_in_force(tmp_path: Path) -> None:
    file = tmp_path / "the pods.env"
    file.write_text(f"{BATCH}=50\nOTHER=x\n")
    facts = EntitlementFacts(
        workloads=EntitlementWorkloads(runner="supervisorctl", supervisorctl=["echo"], env_file=str(file)), batch_size=4
    )
    command = remedies.throttle(make_given(facts=facts), "delivery").command
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "restart notification\n"
    assert read_env(file) == {BATCH: "2", POLL: "2s", "OTHER": "x"}


# The effect, from the tables --------------------------------------------------------------------------------


def look(sizes: list[int], every: float = 2.0, since: float = 60.0, **more: Any) -> dict[str, pd.DataFrame]:
    """What is seen when batches of these sizes, newest first, were begun after `since`; `held` are in work."""
    started = [ago(1 + i * every) for i in range(len(sizes))]
    batches = pd.DataFrame({"started": pd.to_datetime(started, utc=True), "n": sizes})
    held = more.pop("held", None)
    return {
        "batches": batches[batches["started"] > ago(since)],
        "backlog": row(now=NOW, due=more.pop("due", 0), expired=0, waiting_retry=0),
        "created": row(now=NOW, n=more.pop("created", 0)),
        "holders": pd.DataFrame({"locked_by": ["p"], "n": [held], "since_claim_s": [1.0]} if held else {}),
        "attempts": pd.DataFrame({"attempt_count": [1], "n": [more.pop("tried", 0)]}),
    }


def watched(frames: dict[str, pd.DataFrame], spent: float = 20.0, first: Any = None, **now: Any) -> tuple[Any, ...]:
    values = {"delivery.batch_size": 5.0, "delivery.poll_interval": 2.0, "delivery.enabled": True}
    pods = now.pop("pods", 1)
    watch = Watch(values | {f"delivery.{k}": v for k, v in now.items()}, pods, ago(60), catalog.load().numbers)
    settled, seen, text = watch.judge(first or frames, frames, spent)
    for lang in messages.LANGUAGES:
        assert messages.text(text, lang)
    return settled, seen, text.key.removeprefix("change.")


@pytest.mark.parametrize(
    ("frames", "now", "expected"),
    [
        (look([5, 5, 5]), {}, (True, True, "keeps_to_it")),
        (look([5, 5]), {}, (False, True, "keeps_to_it")),  # a moment longer, if there is time
        (look([5]), {}, (False, True, "one_batch")),
        (look([5, 5, 5, 50, 50]), {}, (True, True, "keeps_to_it")),  # an old pod that was still leaving
        (look([5, 50, 5]), {}, (False, False, "too_large")),
        (look([5, 5, 5], every=1.0), {}, (False, False, "too_fast")),
        (look([], due=30), {}, (False, False, "no_claim")),
        (look([5] * 6, every=1.0), {"pods": 2}, (True, True, "keeps_to_it")),
        (look([5] * 6, every=0.5), {"pods": 2}, (False, False, "too_fast")),
        (look([], held=4), {}, (True, True, "tries_only")),  # whose tries fail leaves no batches
        (look([], held=9), {}, (True, False, "tries_only")),
        (look([], tried=3, due=9), {"first": look([], tried=2, due=9)}, (True, True, "tries_only")),
        (look([]), {"spent": 1}, (False, True, "idle")),
        (look([]), {"spent": 9}, (True, True, "idle")),
        (look([], created=9, due=9), {"spent": 9, "enabled": False}, (True, True, "held")),
        (look([], created=9, due=9), {"spent": 2, "enabled": False}, (False, True, "held")),
        (look([]), {"spent": 9, "enabled": False}, (False, True, "held_idle")),
        (look([3]), {"spent": 9, "enabled": False}, (False, False, "still_claims")),
    ],
)
def test_claims_are_held_against_the_values(
    frames: dict[str, pd.DataFrame], now: dict[str, Any], expected: tuple[bool, bool, str]
) -> None:
    assert watched(frames, **now) == expected


# On a real sandbox ------------------------------------------------------------------------------------------


@pytest.fixture
def open_52(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """A session of 5.2 on the sandbox; for another incident than "T" as if the cooldown of what was done were over."""
    monkeypatch.setenv("RUNBOOK_SANDBOX_DIR", str(sandbox.directory))
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path))
    monkeypatch.delenv("RUNBOOK_UNATTENDED", raising=False)
    ledger = sandbox.directory / "runbook-ledger"
    shutil.rmtree(ledger, ignore_errors=True)

    def open_session(incident: str = "T", **more: Any) -> Session:
        if incident != "T":
            shutil.rmtree(ledger, ignore_errors=True)
        return quiet_session("5.2", target="sandbox", incident_id=incident, **more)

    return open_session


def words(outcome: Outcome) -> str:
    return messages.text(outcome.why, "en")


def test_what_is_not_a_setting(open_52: Callable[..., Session]) -> None:
    rb = open_52()
    for wrong, meant in (
        ({"settings": {"delivery.batchsize": 5}}, "did you mean 'delivery.batch_size'"),
        ({"settings": {}}, "needs a setting"),
        ({"side": "subscriber"}, "one side"),
    ):
        with pytest.raises(UsageError, match=meant):
            SettingsChange(rb.context, **wrong)
    asked: Any = {"delivery.enabled": True, "relay.batch_size": "many", "relay.poll_interval": None}
    spelt = "delivery.enabled=true relay.batch_size=many relay.poll_interval=default"
    assert SettingsChange(rb.context, settings=asked).command() == f"runbook act set {spelt}"


@pytest.mark.parametrize(
    ("what", "word", "why"),
    [
        ({"settings": {"delivery.batch_size": 5}}, {"approved_by": None}, "approved_by is missing"),
        ({"settings": {"delivery.batch_size": 5}}, {"reason": None}, "reason is missing"),
        ({"settings": {"delivery.batch_size": 500}}, {}, "outside 1 to 200"),
        ({"settings": {"delivery.batch_size": "many"}}, {}, "a number of rows"),
        ({"settings": {"delivery.batch_size": 50}}, {}, "at least one value differs"),
        ({"settings": {"delivery.batch_size": None}}, {}, "at least one value differs"),
        ({"settings": {"delivery.batch_size": 5, "relay.batch_size": 5}}, {}, "for one side"),
        ({"side": "delivery"}, {}, "a person has named"),
    ],
)
def test_a_refusal_changes_nothing_and_is_a_line(
    sandbox: Sandbox, open_52: Callable[..., Session], what: Any, word: Any, why: str
) -> None:
    before, rb = (sandbox.directory / "pods.env").read_text(), open_52()
    outcome = rb.act("set", **(WORD | word), **what).outcome
    assert outcome.result == "refused"
    assert why in words(outcome)
    lines = rb.context.archive.lines(ACTION)
    assert [line["result"] for line in lines] == ["refused"]
    assert lines[0]["why"]["en"] == words(outcome)
    assert (sandbox.directory / "pods.env").read_text() == before


def test_nobody_attends(open_52: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_UNATTENDED", "1")
    rb = open_52()
    outcome = rb.act("set", settings={"delivery.batch_size": 5}, **WORD).outcome
    assert (outcome.result, "unattended" in words(outcome)) == ("refused", True)
    assert len(rb.context.archive.lines(ACTION)) == 1


def test_both_sides_in_one_run_are_refused_on_both(open_52: Callable[..., Session]) -> None:
    rb = open_52(delivery_batch_size=5, relay_batch_size=5)
    for side in change.SIDES:
        outcome = rb.act("set", side=side, **WORD).outcome
        assert (outcome.result, "for one side" in words(outcome)) == ("refused", True)


def test_the_side_that_nobody_asked_for_is_only_shown(open_52: Callable[..., Session]) -> None:
    rb = open_52(delivery_batch_size=500)
    assert rb.act("set", side="delivery", **WORD).outcome.result == "refused"
    shown = rb.act("set", side="relay", **WORD).outcome
    assert (shown.result, shown.what["settings"]) == ("dry", {"relay.batch_size": 25, "relay.poll_interval": 2.0})


def test_a_start_that_would_fail_is_refused(sandbox: Sandbox, open_52: Callable[..., Session]) -> None:
    file = sandbox.directory / "pods.env"
    before = file.read_text()
    try:
        sandbox.configure({"NOTIFICATION_NATS_ACK_WAIT": "20s"})
        outcome = open_52().act("set", settings={"delivery.batch_size": 5}, **WORD).outcome
        assert "NOTIFICATION_NATS_ACK_WAIT is 20s but the durable consumer has 10" in words(outcome)
        restarted = open_52().act("restart", workload="notification", **WORD).outcome
        assert restarted.result == "refused" and "NOTIFICATION_NATS_ACK_WAIT is 20s" in words(restarted)
        file.write_text(before)
        sandbox.configure({"NOTIFICATION_DELIVERY_BATCHSIZE": "5"})
        outcome = open_52().act("set", settings={"delivery.batch_size": 5}, **WORD).outcome
        assert "also set as NOTIFICATION_DELIVERY_BATCHSIZE" in words(outcome)
    finally:
        file.write_text(before)


def command(sandbox: Sandbox, output: Path, *arguments: str) -> dict[str, Any]:
    """`runbook run 5.2` on the target `sandbox`, as a responder types it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    where = ("--target", "sandbox", "--incident", "T", "--json", "--output", str(output))
    done = runbook("run", "5.2", *where, *arguments, env=env | {"RUNBOOK_SANDBOX_DIR": str(sandbox.directory)})
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def findings(said: dict[str, Any]) -> dict[str, Any]:
    return {f["step"]: f for f in said["runs"][0]["findings"]}


def answered(rb: Session) -> Finding:
    rb.step("5.2.1")
    return rb.findings["5.2.1"]


def sent_per_minute(sandbox: Sandbox, seconds: float) -> float:
    """Measured from outside, over the next seconds."""
    count = "SELECT count(*) FROM notification.notifications WHERE status = 'SENT'"
    with psycopg.connect(sandbox.state.addresses.admin_url, autocommit=True) as db:
        first, begun = db.execute(count).fetchone(), time.monotonic()
        time.sleep(seconds)
        later = db.execute(count).fetchone()
    assert first and later
    return float((later[0] - first[0]) * 60 / (time.monotonic() - begun))


@pytest.mark.slow
def test_throttled_measured_and_taken_back(sandbox: Sandbox, open_52: Callable[..., Session], tmp_path: Path) -> None:
    named = ("-p", "delivery_batch_size=5", "-p", "delivery_poll_interval_s=2")
    word = ("-p", "execute=true", "-p", "approved_by=The Owner", "-p", "reason=the receiver asked for less")
    said = command(sandbox, tmp_path, *named, *word)
    found = findings(said)["5.2.1"]
    assert (found["status"], said["status"]) == ("WARNING", "WARNING"), found["headline"]
    assert "were changed: the values are active" in found["headline"]
    assert found["values"]["delivery.allowed"]["value"] <= 150
    env = read_env(sandbox.directory / "pods.env")
    assert (env[BATCH], env[POLL]) == ("5", "2s")

    lines = open_52().context.archive.lines(ACTION)
    assert [(line["result"], line["what"]["workload"]) for line in lines] == [
        ("begun", "notification"),
        ("done", "notification"),
        ("dry", "entitlement"),
    ]
    begun, done = lines[:2]
    assert begun["id"] == done["id"]
    assert (begun["before"], begun["after"]) == ({BATCH: "50 (default)", POLL: "1s (default)"}, {})
    assert (done["after"], done["verified"]) == ({BATCH: "5", POLL: "2s"}, True)
    assert (done["approved_by"], done["reason"]) == ("The Owner", "the receiver asked for less")
    assert "5 rows" in done["effect"]["en"]
    assert 100 <= sent_per_minute(sandbox, 10) <= 185  # 150 at most, and whole batches at both ends

    # Too early for another change; and a look at it says what is in force, and how to undo it.
    rb = open_52()
    undo = {"delivery.batch_size": None, "delivery.poll_interval": None}
    assert "within the last 60 s" in words(rb.act("set", settings=undo, **WORD).outcome)
    shown = open_52().act("set", side="delivery").outcome
    assert (shown.result, shown.what["settings"]) == ("dry", undo)
    in_force = answered(open_52())
    # The headroom decided, so that the headline names it, behind what is in force.
    assert (in_force.status, in_force.headline.key) == (Status.WARNING, "ui.decided_below")
    assert in_force.headline.params["headline"].key == "throttle.in_force_below"
    assert [p.name for p in in_force.proposals] == ["undo_settings"]

    undone = open_52("T-2").act("set", settings=undo, **WORD).outcome
    assert (undone.result, undone.verified) == ("done", True), undone
    assert undone.after == {BATCH: "50 (default)", POLL: "1s (default)"}
    assert not {BATCH, POLL} & set(read_env(sandbox.directory / "pods.env"))
    assert answered(open_52()).status is Status.OK


@pytest.mark.slow
def test_held_while_events_come_in_and_resumed(sandbox: Sandbox, open_52: Callable[..., Session]) -> None:
    held = open_52("H-1").act("set", settings={"delivery.enabled": False}, **WORD).outcome
    try:
        assert (held.result, held.verified) == ("done", True), held
        assert held.effect
        assert held.effect.key == "change.held"
        assert sent_per_minute(sandbox, 3) == 0
    finally:
        resumed = open_52("H-2").act("set", settings={"delivery.enabled": None}, **WORD).outcome
    assert (resumed.result, resumed.verified) == ("done", True), resumed


@pytest.mark.slow
def test_the_relay_is_throttled_alone(sandbox: Sandbox, open_52: Callable[..., Session]) -> None:
    notification = sandbox.pod("notification")["pod"]
    slowed = open_52("R-1", relay_poll_interval_s=3).act("set", side="relay", **WORD).outcome
    back = open_52("R-2").act("set", settings={"relay.poll_interval": None}, **WORD).outcome
    for outcome in (slowed, back):
        assert (outcome.result, outcome.verified) == ("done", True), outcome
    assert slowed.after == {"ENTITLEMENT_OUTBOX_POLL_INTERVAL": "3s"}
    assert sandbox.pod("notification")["pod"] == notification


# On Kubernetes ----------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(
    servers: Servers, db: psycopg.Connection, broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """kubectl with an API to ask, and real servers that nobody uses."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (Debian: kubernetes-client)")
    for name, value in {**servers.env, "RUNBOOK_OUTPUT": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RUNBOOK_UNATTENDED", raising=False)
    with Cluster() as running, ExitStack() as sessions:
        address = f"{servers.app_url}?application_name=PostgreSQL%20JDBC%20Driver"
        for _ in range(10):  # those of a pod that is ready
            own = sessions.enter_context(psycopg.connect(address, autocommit=True))
            own.execute("SET SESSION search_path TO 'notification'")
        running.write_config(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("HOME", str(tmp_path))
        yield running


@pytest.mark.slow
def test_kubectl_sets_it_in_the_one_container(cluster: Cluster) -> None:
    cluster.add("notification", env=[{"name": BATCH, "value": "50"}])
    rb = quiet_session("5.2", incident_id="K-1")
    outcome = rb.act("set", settings={"delivery.batch_size": 5, "delivery.poll_interval": 0.5}, **WORD).outcome
    assert (outcome.result, outcome.verified) == ("done", True), outcome
    assert (outcome.before, outcome.after) == ({BATCH: "50", POLL: "1s (default)"}, {BATCH: "5", POLL: "500ms"})
    assert outcome.effect
    assert outcome.effect.key == "change.idle"
    patch = next(a.body for a in cluster.asked if a.method == "PATCH")
    assert [c["name"] for c in patch["spec"]["template"]["spec"]["containers"]] == ["notification"]
    assert answered(rb).headline.key == "throttle.done"


@pytest.mark.parametrize(
    ("workload", "deployment", "action", "why"),
    [
        ("notification", {"replicas": 2}, "set", "exactly one replica"),
        ("notification", {"replicas": 0}, "set", "exactly one replica"),
        ("notification", {"strategy": "RollingUpdate"}, "set", "stops the old pod"),
        ("notification", {"strategy": "RollingUpdate"}, "restart", "stops the old pod"),
        ("entitlement", {"replicas": 0}, "restart", "replicas: 0"),
    ],
)
def test_kubectl_is_not_called_where_a_start_would_fail(
    cluster: Cluster, workload: str, deployment: Any, action: str, why: str
) -> None:
    cluster.add(workload, **deployment)
    what: Any = {"settings": {"delivery.batch_size": 5}} if action == "set" else {"workload": workload}
    outcome = quiet_session("5.2" if action == "set" else "5.1").act(action, **what, **WORD).outcome
    assert (outcome.result, why in words(outcome)) == ("refused", True), words(outcome)
    assert not [a for a in cluster.asked if a.method != "GET"]


def test_a_value_that_may_come_from_a_whole_configmap_is_not_set(cluster: Cluster) -> None:
    cluster.add("notification", env=[{"name": POLL, "value": "1s"}], env_from=[{"configMapRef": {"name": "all"}}])
    outcome = quiet_session("5.2").act("set", settings={"delivery.batch_size": 5}, **WORD).outcome
    assert (outcome.result, "envFrom" in words(outcome)) == ("refused", True), words(outcome)
    seen = quiet_session("5.2").act("set", settings={"delivery.poll_interval": 2.0}).outcome
    assert "change.hidden" not in [p.text.key for p in seen.preconditions]


def test_an_action_stays_in_the_cluster_that_was_current_when_it_was_checked(cluster: Cluster) -> None:
    cluster.add("notification")
    rb = quiet_session("5.1")
    seen = rb.act("restart").outcome.preconditions
    assert [p.text.params["context"] for p in seen if p.text.key == "action.restart.cluster"] == ["double"]
    assert rb.context.workloads._build.program[1:3] == ["--context", "double"]


def test_a_cluster_that_refuses_is_said(cluster: Cluster) -> None:
    cluster.refuse = 403
    rb = quiet_session("5.2", incident_id="K-2")
    assert rb.act("set", side="delivery").outcome.what["settings"]["delivery.batch_size"] == 25
    outcome = rb.act("set", settings={"delivery.batch_size": 5}, **WORD).outcome
    assert (outcome.result, "forbidden" in words(outcome)) == ("refused", True)
    assert answered(rb).headline.key == "throttle.refused"
