"""The runners with their real tools: kubectl against an API that keeps what it is asked, a real supervisord."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import psutil
import pytest

from runbook_lib.actions import proposals
from runbook_lib.actions.action import perform
from runbook_lib.book import messages, pack
from runbook_lib.gameday.sandbox.sandbox import supervisor_sections
from runbook_lib.gameday.supervisor import SupervisorctlRunner
from runbook_lib.model.finding import Reason
from runbook_lib.notebook.session import quiet_session
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.actions.restart import Restart
from runbook_lib.packs.entitlement.facts import EntitlementFacts, EntitlementWorkloads
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import workloads
from runbook_lib.sources.settings import facts_of
from runbook_lib.sources.source import ReadCost, SourceError
from runbook_lib.sources.workloads import KubectlRunner, runner_of
from tests.kit import ROOT
from tests.kit.cluster import NAMESPACE, Cluster
from tests.kit.sources import fails_with
from tests.kit.steps import make_given
from tests.kit.waiting import until

SECRET = "p4ss-of-the-app"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/notification"
STRATEGIC = "application/strategic-merge-patch+json"


def a_read_cost() -> ReadCost:
    return ReadCost(Masker.of([f"postgresql://app:{SECRET}@db/app"], "INC-1"))


# kubectl -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(kubectl: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with Cluster() as running:
        running.add(
            "notification",
            env=[
                {"name": "NOTIFICATION_DELIVERY_BATCH_SIZE", "value": "50"},
                {"name": "POSTGRES_PASSWORD", "value": "plain-in-helm"},
                {"name": "NATS_URL", "value": f"nats://app:{SECRET}@nats:4222"},
                {"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "api"}}},
            ],
        )
        running.write_config(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("HOME", str(tmp_path))  # kubectl keeps what it learns of an API there
        yield running


@pytest.fixture
def runner(cluster: Cluster) -> KubectlRunner:
    found = runner_of(EntitlementWorkloads(), a_read_cost())
    assert isinstance(found, KubectlRunner)
    return found


def test_logs_of_every_pod_in_the_order_of_time(cluster: Cluster, runner: KubectlRunner) -> None:
    cluster.add("entitlement", replicas=2)
    older, newer = (f"2025-01-31T03:00:0{n}.000000000Z" for n in (1, 2))
    cluster.logs["entitlement-7c9d5f6b8-x2k40"] = [f"{newer} pool with password={SECRET} is used up"]
    cluster.logs["entitlement-7c9d5f6b8-x2k41"] = [f'{older} {{"message": "granted", "user_id": "alice"}}']
    log = runner.logs("entitlement", 15)
    assert [e.time for e in log.entries] == [pd.Timestamp(older), pd.Timestamp(newer)] and log.lines == 2
    assert [e.message for e in log.entries] == ["granted", "pool with password=*** is used up"]
    asked = [a.query for a in cluster.asked if a.path.endswith("/log")]
    assert len(asked) == 2
    assert asked[0] == {
        "container": "entitlement",
        "sinceSeconds": "900",
        "tailLines": str(workloads.LOG_LINES[0]),
        "limitBytes": str(workloads.LOG_BYTES),
        "timestamps": "true",
    }
    assert [a.query for a in cluster.asked if a.path.endswith("/pods")] == [{"labelSelector": "app=entitlement"}]
    assert {q.name for q in runner._read_cost.queries} == {"get deploy", "logs"}
    assert runner._read_cost.queries[-1].rows == 2
    assert SECRET not in repr(runner._run_verb("logs", "--selector=app=entitlement"))


def test_the_newest_lines_survive_the_limit_of_bytes(
    cluster: Cluster, runner: KubectlRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "LOG_BYTES", 4000)
    monkeypatch.setattr(workloads, "LOG_LINES", (1000, 100, 10))
    cluster.logs["notification-7c9d5f6b8-x2k40"] = [
        f"2025-01-31T03:{n // 60:02}:{n % 60:02}.000000000Z line {n}" for n in range(500)
    ]
    assert runner.logs("notification", 15).entries[-1].message == "line 499"
    assert [a.query["tailLines"] for a in cluster.asked if a.path.endswith("/log")] == ["1000", "100", "10"]


def test_no_pod_has_no_log(cluster: Cluster, runner: KubectlRunner) -> None:
    cluster.pods.clear()
    assert runner.logs("notification", 15).entries == ()
    assert runner.pods("notification") == []


def test_what_a_deployment_is(cluster: Cluster, runner: KubectlRunner) -> None:
    assert (runner.replicas("notification"), runner.strategy("notification")) == (1, "Recreate")
    assert runner.pods("notification") == [
        {
            "name": "notification-7c9d5f6b8-x2k40",
            "ready": True,
            "restarts": 3,
            "started": "2025-01-31T02:30:00Z",
            "before": "2025-01-31T02:20:00Z",
            "ending": False,
        }
    ]
    assert runner.environment("notification") == {
        "NOTIFICATION_DELIVERY_BATCH_SIZE": "50",
        "POSTGRES_PASSWORD": "***",
        "NATS_URL": "nats://app:***@nats:4222",
        "API_KEY": "***",  # from a Secret: set, and not known
    }
    assert runner.template("notification") == {"image": "x", "limits.memory": "512Mi"}
    assert all(a.method == "GET" for a in cluster.asked)


def test_a_pod_of_a_lost_node_is_not_ready(cluster: Cluster, runner: KubectlRunner) -> None:
    """Its containers stand as they were; the pod's condition does not."""
    (pod,) = (p for p in cluster.pods if p["metadata"]["name"].startswith("notification"))
    ready = {"type": "Ready", "status": "True"}
    pod["status"]["conditions"] = [ready, {"type": "DisruptionTarget", "status": "False"}]
    assert runner.pods("notification")[0]["ready"]
    ready["status"] = "Unknown"
    assert not runner.pods("notification")[0]["ready"]


def test_a_deployment_is_read_once_in_a_moment_and_again_after_a_change(
    cluster: Cluster, runner: KubectlRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> int:
        runner.replicas("notification"), runner.environment("notification"), runner.pods("notification")
        return sum(a.method == "GET" and a.path == DEPLOYMENT for a in cluster.asked)

    assert [read(), read()] == [1, 1]
    runner.restart("notification")
    known = sum(a.method == "GET" and a.path == DEPLOYMENT for a in cluster.asked)
    assert read() == known + 1
    monkeypatch.setattr(workloads, "SAME_S", 0.0)
    assert read() == known + 4
    monkeypatch.undo()
    cluster.stop()
    runner._known.clear()
    for _ in range(2):
        with fails_with(Reason.UNREACHABLE, "no_connection"):
            runner.replicas("notification")
    assert [q.error != "" for q in runner._read_cost.queries][-2:] == [False, True], "a failure too is asked for once"


def test_a_restart_is_a_new_annotation_of_the_template(cluster: Cluster, runner: KubectlRunner) -> None:
    assert "restarted" in runner.restart("notification")
    (patch,) = [a for a in cluster.asked if a.method == "PATCH"]
    assert (patch.path, patch.content_type) == (DEPLOYMENT, STRATEGIC)
    written = patch.body["spec"]["template"]["metadata"]["annotations"]
    assert list(written) == ["kubectl.kubernetes.io/restartedAt"]
    at = datetime.fromisoformat(written["kubectl.kubernetes.io/restartedAt"])
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert "successfully rolled out" in runner.wait_ready("notification", 10)


def test_scaled_to_none_and_back_and_to_nothing_else(cluster: Cluster, runner: KubectlRunner) -> None:
    assert "scaled" in runner.scale("notification", 0)
    assert runner.replicas("notification") == 0
    assert "scaled" in runner.scale("notification", 1)
    written = [(a.path, a.body["spec"]) for a in cluster.asked if a.method == "PATCH"]
    assert written == [(f"{DEPLOYMENT}/scale", {"replicas": 0}), (f"{DEPLOYMENT}/scale", {"replicas": 1})]
    with pytest.raises(SourceError, match="only 0 and 1"):
        runner.scale("notification", 2)


def test_a_rollout_that_does_not_end_is_a_timeout(cluster: Cluster, runner: KubectlRunner) -> None:
    cluster.deployments["notification"]["status"] |= {"updatedReplicas": 0, "availableReplicas": 0}
    with fails_with(Reason.TIMEOUT, "not_ready"):
        runner.wait_ready("notification", 2)


def test_variables_are_changed_in_the_own_container_only(cluster: Cluster, runner: KubectlRunner) -> None:
    runner.set_environment(
        "notification",
        {"NOTIFICATION_DELIVERY_POLL_INTERVAL": "2s", "NOTIFICATION_DELIVERY_BATCH_SIZE": None},
    )
    (patch,) = [a for a in cluster.asked if a.method == "PATCH"]
    assert (patch.path, patch.content_type) == (DEPLOYMENT, STRATEGIC)
    (container,) = patch.body["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "notification"
    assert container["env"] == [
        {"name": "NOTIFICATION_DELIVERY_POLL_INTERVAL", "value": "2s"},
        {"$patch": "delete", "name": "NOTIFICATION_DELIVERY_BATCH_SIZE"},
    ]
    now = runner.environment("notification")
    assert now["NOTIFICATION_DELIVERY_POLL_INTERVAL"] == "2s" and "NOTIFICATION_DELIVERY_BATCH_SIZE" not in now
    with pytest.raises(SourceError, match="API_KEY comes from a Secret"):
        runner.set_environment("notification", {"API_KEY": "mine"})


def test_another_container_and_context(cluster: Cluster) -> None:
    cluster.deployments["notification"]["spec"]["template"]["spec"]["containers"][0]["name"] = "app"
    named = runner_of(EntitlementWorkloads(containers={"notification": "app"}, context="double"), a_read_cost())
    named.set_environment("notification", {"A": "1"})
    assert named.environment("notification")["A"] == "1"
    with pytest.raises(SourceError, match='"elsewhere" does not exist'):
        runner_of(EntitlementWorkloads(context="elsewhere"), a_read_cost()).replicas("notification")


def test_proposed_commands_name_the_target_s_container_and_show_few_variables() -> None:
    named = EntitlementWorkloads(runner="kubectl", containers={"notification": "app"})
    of = make_given(facts=EntitlementFacts(workloads=named))
    for proposal in (
        proposals.logs(of, "notification"),
        proposals.undo_settings(of, ["delivery.batch_size"]),
        remedies.check_clocks(of),
    ):
        words = shlex.split(proposal.command)
        assert words[words.index("-c") + 1] == "app"
    assert "-c entitlement" in proposals.logs(of, "entitlement").command
    listed = remedies.check_nats_credentials(of).command
    assert listed.endswith("--list | grep -E '^#|NATS_'")


def test_a_change_is_offered_as_the_action_that_checks_it_first() -> None:
    of = make_given(target="eu", incident="I 1", facts=EntitlementFacts(workloads=EntitlementWorkloads()))
    offered = [
        (proposals.restart(of, "notification"), "restart notification"),
        (proposals.start(of, "entitlement"), "scale entitlement 1"),
        (proposals.settings("x", of, {"relay.enabled": False, "relay.poll_interval": 0.5}),
            "set relay.enabled=false relay.poll_interval=500ms"),
        (proposals.undo_settings(of, ["delivery.batch_size"]), "set delivery.batch_size=default"),
        (remedies.scale(of, 0), "scale notification 0"),
    ]  # fmt: skip
    for proposal, words in offered:
        assert proposal.offered == f"runbook act {words} --target eu --incident 'I 1'"
        assert proposal.command.startswith("kubectl ")
    pause = of.catalog.settings["relay.poll_interval"]
    assert pause.read("500ms") == 0.5 and pause.read("2s") == pause.read("2") == 2.0
    read = proposals.logs(of, "notification")
    assert read.offered == read.command


def test_a_proposal_runs_psql_where_the_settings_say_else_where_the_pack_does() -> None:
    def command(**settings: Any) -> str:
        return proposals.psql(make_given(facts=facts_of({"workloads": settings})), "SELECT 'a'")

    in_pod = "exec statefulset/postgres -c postgres -- psql -U miniserversystem -d miniserversystem"
    select = """-c 'SELECT '"'"'a'"'"''"""
    assert command() == f"kubectl -n miniserversystem {in_pod} {select}"
    assert command(context="double", namespace="n").startswith("kubectl --context double -n n exec statefulset/")
    assert command(runner="supervisorctl") == f"psql -d miniserversystem {select}"
    own = "kubectl -n db exec -it deploy/pg -- psql 'host=a b' -d app"
    assert {command(psql=own, runner=runner) for runner in ("kubectl", "supervisorctl")} == {f"{own} {select}"}
    with pack.use_pack(ROOT / "examples" / "procrastinate"):
        assert command() == f"psql -d postgres {select}"
        assert command(database="shop", runner="supervisorctl") == f"psql -d shop {select}"
        assert command(psql=own) == f"{own} {select}"


#: What becomes of a login: HTTP 401, or the script of kubectl's plugin; and what is said of it.
LOGINS = {
    "refused": ("", "You must be logged in to the server"),
    "plugin-fails": ("echo no session >&2; exit 3", "executable sh failed with exit code 3"),
    "plugin-asks": (
        "read answer </dev/tty || read answer || exit 4",
        "executable sh failed with exit code 4",
    ),
    "plugin-hangs": ("sleep 600", "kubectl did not end within 2 s; if your login has expired, "),
}


@pytest.mark.parametrize("login", LOGINS)
def test_an_expired_login_is_named_in_time_with_what_to_do(
    login: str, cluster: Cluster, runner: KubectlRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, says = LOGINS[login]
    cluster.refuse = 401
    cluster.write_config(tmp_path / "kubeconfig", plugin)
    monkeypatch.setitem(workloads.Runner._run_verb.__kwdefaults__, "timeout_s", 2.0)  # type: ignore[arg-type]
    for read in (runner.replicas, runner.pods, lambda name: runner.logs(name, 15), lambda _: runner.cluster_id()):
        with pytest.raises(SourceError) as e:
            read("notification")
        assert says in e.value.detail and "log in to the cluster again" in e.value.detail
        assert "\n" not in e.value.detail and e.value.reason in (Reason.DENIED, Reason.TIMEOUT)
    if login == "plugin-hangs":
        assert len(runner._read_cost.queries) == 1, "it is not waited for again and again"
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", "postgresql://runbook@127.0.0.1:1/d")
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path / "out"))
    rb = quiet_session("5.1", incident_id="A-1").context.in_one_cluster()
    outcome = perform(Restart(rb), rb, execute=True, approved_by="Aoki", reason="the worker hangs")
    said = messages.text(outcome.why)
    assert outcome.result == "refused" and says in said and "log in to the cluster again" in said, said


@pytest.mark.parametrize(
    "complaint",
    [
        "Unable to connect to the server: x509: certificate has expired or is not yet valid: current time 2026-01-31",
        "Unable to connect to the server: remote error: tls: expired certificate",
        "error: exec plugin: standard input is not a terminal",
    ],
)
def test_an_expired_certificate_is_an_expired_login(complaint: str, runner: KubectlRunner) -> None:
    found = runner._tool_error(complaint.lower(), complaint)
    assert (found.code, found.detail) == ("login_expired", f"log in to the cluster again: {complaint}")


def test_refusals_and_silence_have_their_reasons(
    cluster: Cluster, runner: KubectlRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason() -> tuple[Reason, str]:
        with pytest.raises(SourceError) as e:
            runner.restart("notification")
        assert "\n" not in e.value.detail
        return e.value.reason, e.value.code

    cluster.refuse = 403
    assert reason() == (Reason.DENIED, "forbidden")
    cluster.refuse = 500
    assert reason()[0] is Reason.ERROR
    cluster.refuse = 0
    del cluster.deployments["notification"]
    assert reason() == (Reason.ERROR, "not_found")
    cluster.stop()
    assert reason() == (Reason.UNREACHABLE, "no_connection")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="kubectl is not installed") as e:
        runner.logs("notification", 15)
    assert e.value.reason is Reason.UNREACHABLE
    assert "not installed" in runner._read_cost.queries[-1].error


@pytest.mark.parametrize(
    "words",
    [
        ("delete", "deploy", "notification"), ("autoscale", "deploy/notification", "--max=3"), ("get", "secrets"),
        ("exec", "deploy/notification", "--", "sh"), ("rollout", "undo", "deploy/notification"), ("logs-x",), (),
        ("-n", "kube-system", "get", "deploy"), ("set", "image", "deploy/notification", "notification=x"),
    ],
)  # fmt: skip
def test_what_is_not_on_the_list_is_not_started(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", Mock(side_effect=AssertionError("started")))
    for settings in (EntitlementWorkloads(), EntitlementWorkloads(runner="supervisorctl")):
        ledger = a_read_cost()
        with pytest.raises(SourceError, match="not on the list") as e:
            runner_of(settings, ledger)._run_verb(*words)
        assert e.value.reason is Reason.DENIED and ledger.queries == []


@pytest.mark.parametrize("name", ["-n", "; rm -rf /", "notification\n-n", "--all", "", "all", "postgres", "../x", "ノ"])
@pytest.mark.parametrize(
    "settings", [EntitlementWorkloads(), EntitlementWorkloads(runner="supervisorctl", env_file="/nowhere")]
)
def test_hostile_names_never_reach_a_command(
    name: str, settings: EntitlementWorkloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Mock(side_effect=AssertionError("started")))
    declared = settings.model_copy(update={"nats": name}) if name != "postgres" else settings
    calls: dict[str, tuple[Any, ...]] = {
        "logs": (15,), "pods": (), "replicas": (), "strategy": (), "environment": (), "restart": (), "wait_ready": (5,),
        "set_environment": ({"A": "1"},),
    }  # fmt: skip
    for chosen in (settings, declared):
        for method, arguments in calls.items():
            with fails_with(Reason.DENIED):
                getattr(runner_of(chosen, a_read_cost()), method)(name, *arguments)


@pytest.mark.parametrize(
    "variables",
    [
        {"-n": "x"}, {"A=B": "x"}, {"A-": None}, {"": "x"}, {"A B": "x"}, {"A": "x\nB=y"}, {"A": "x\0"}, {"A": "***"},
        {"A": "x" * 2000}, {"A\n": "x"}, {},
    ],
)  # fmt: skip
def test_hostile_variables_are_refused(variables: dict[str, str | None], tmp_path: Path) -> None:
    file = tmp_path / "pods.env"
    file.write_text("A=1\n")
    for settings in (EntitlementWorkloads(), EntitlementWorkloads(runner="supervisorctl", env_file=str(file))):
        with pytest.raises(SourceError) as e:
            runner_of(settings, a_read_cost()).set_environment("notification", variables)
        assert e.value.code == "not_allowed"
    assert file.read_text() == "A=1\n"


def test_variables_whose_names_say_so_are_secrets(tmp_path: Path) -> None:
    secret = [
        *("POSTGRES_PASSWORD", "DB_PASS", "DB_PWD", "API_KEY", "NATS_NKEY_SEED", "APP_JWT", "CLIENT_SECRET"),
        *("SENDGRID_APIKEY", "API_KEYS", "SIGNING_KEY_BASE64", "AWS_ACCESS_KEY_ID"),
    ]
    file = tmp_path / "pods.env"
    file.write_text("".join(f"{name}=planted, and more\n" for name in secret) + "BYPASS=1\nSEEDS=2\n")
    runner = runner_of(EntitlementWorkloads(runner="supervisorctl", env_file=str(file)), a_read_cost())
    assert runner.environment("notification") == dict.fromkeys(secret, "***") | {"BYPASS": "1", "SEEDS": "2"}


# Any command ---------------------------------------------------------------------------------------------------


def python(code: str) -> SupervisorctlRunner:
    """A runner whose tool is a line of Python."""
    settings = EntitlementWorkloads(runner="supervisorctl", supervisorctl=[sys.executable, "-c", code])
    return SupervisorctlRunner(settings, a_read_cost())


def test_a_timeout_leaves_nobody_behind(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    slow = python(f"import os; os.system('sleep 60 & echo $PPID $$ $! > {pids}; wait')")
    with fails_with(Reason.TIMEOUT):
        slow._run_verb("status", "notification", timeout_s=1.0)
    left = [psutil.Process(int(pid)) for pid in pids.read_text().split() if psutil.pid_exists(int(pid))]
    assert not psutil.wait_procs([p for p in left if p.status() != psutil.STATUS_ZOMBIE], timeout=5)[1]


def test_output_is_bounded_and_scrubbed_and_the_environment_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", "postgresql://x:y@z/w")
    talks = python(f"import os; print('{SECRET} password=abc', sorted(k for k in os.environ if 'RUNBOOK' in k))")
    assert talks._run_verb("status").out == "*** password=*** []\n"
    assert SECRET not in str(talks._read_cost.queries)
    much = python("import sys; [sys.stdout.write('x' * 1000) for _ in range(5000)]")
    assert len(much._run_verb("status", most=10_000).out) == 10_000


# supervisord ---------------------------------------------------------------------------------------------------

PROGRAM = """
import json, os, sys, time
from datetime import UTC, datetime
from pathlib import Path
now = datetime.now(UTC)
for minutes in (90, 10, 0):
    at = datetime.fromtimestamp(now.timestamp() - 60 * minutes, UTC).isoformat().replace("+00:00", "Z")
    print(json.dumps({"@timestamp": at, "severity": "WARN", "message": f"{minutes} min ago", "user_id": "alice"}))
print("  continued")
print(Path(sys.argv[1]).read_text(), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def supervised() -> Iterator[EntitlementWorkloads]:
    """A supervisord with one program that is well and one that is not."""
    folder = Path(tempfile.mkdtemp(prefix="rb-"))  # short: the path of a socket is limited
    (folder / "program.py").write_text(PROGRAM)
    (folder / "pods.env").write_text(f"POSTGRES_PASSWORD={SECRET}\nNATS_URL=nats://app:{SECRET}@nats:4222\nBATCH=50\n")
    config = folder / "supervisord.conf"
    config.write_text(
        supervisor_sections(folder / "s.sock", folder / "log", folder / "pid")
        + f"[program:notification]\ncommand={sys.executable} {folder}/program.py {folder}/pods.env\n"
        f"redirect_stderr=true\nstdout_logfile={folder}/notification.log\nstopwaitsecs=3\n\n"
        "[program:entitlement]\ncommand=false\nautostart=false\nstartretries=0\n"
    )
    subprocess.run([sys.executable, "-m", "supervisor.supervisord", "-c", str(config)], check=True, timeout=60)
    settings = EntitlementWorkloads(
        runner="supervisorctl",
        supervisorctl=[sys.executable, "-m", "supervisor.supervisorctl", "-c", str(config)],
        log_files={"notification": str(folder / "notification.log")},
        env_file=str(folder / "pods.env"),
    )
    try:
        runner_of(settings, a_read_cost()).wait_ready("notification", 20)
        yield settings
    finally:
        pid = int((folder / "pid").read_text())
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGTERM)
        process.wait(20)
        shutil.rmtree(folder)


@pytest.mark.parametrize("by_file", [True, False])
def test_the_log_of_a_program_from_the_minute_asked(supervised: EntitlementWorkloads, by_file: bool) -> None:
    settings = supervised if by_file else supervised.model_copy(update={"log_files": {}})
    log = runner_of(settings, a_read_cost()).logs("notification", 30)
    assert [e.message for e in log.entries[:3]] == ["10 min ago", "0 min ago", "continued"]
    assert SECRET not in str(log) and "alice" not in str(log)


def test_only_the_end_of_a_long_log_is_read(
    supervised: EntitlementWorkloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "LOG_BYTES", 1000)
    at = datetime.now(UTC).isoformat()
    (tmp_path / "log").write_text("".join(f"{at} line {n}\n" for n in range(1000)))
    long = supervised.model_copy(update={"log_files": {"notification": str(tmp_path / "log")}})
    log = runner_of(long, a_read_cost()).logs("notification", 30)
    assert log.entries[-1].message == "line 999" and 10 < log.lines == len(log.entries) < 30
    nowhere = long.model_copy(update={"log_files": {"notification": "/nowhere"}})
    with pytest.raises(SourceError, match="cannot read"):
        runner_of(nowhere, a_read_cost()).logs("notification", 30)


def test_a_program_is_restarted_with_its_new_variables(supervised: EntitlementWorkloads) -> None:
    runner = runner_of(supervised, a_read_cost())
    (before,) = runner.pods("notification")
    assert before["name"] == "notification" and before["ready"] and before["restarts"] is None
    assert runner.replicas("notification") == 1 and runner.strategy("notification") == "Recreate"
    assert runner.environment("notification") == {
        "POSTGRES_PASSWORD": "***",
        "NATS_URL": "nats://app:***@nats:4222",
        "BATCH": "50",
    }
    file = Path(supervised.env_file)
    file.rename(shared := file.with_name("shared.env"))
    file.symlink_to(shared)
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
    before_it = file.stat()
    said = runner.set_environment("notification", {"BATCH": None, "POLL": "2 s = two"})
    assert said.splitlines() == ["notification: stopped", "notification: started"]
    assert "RUNNING" in runner.wait_ready("notification", 10)
    assert runner.environment("notification")["POLL"] == "2 s = two"
    assert file.read_text() == (f"POSTGRES_PASSWORD={SECRET}\nNATS_URL=nats://app:{SECRET}@nats:4222\nPOLL=2 s = two\n")
    now = file.stat()
    assert stat.S_IMODE(now.st_mode) == 0o640
    assert (now.st_uid, now.st_gid) == (before_it.st_uid, before_it.st_gid) and now.st_ino != before_it.st_ino
    assert [p.name for p in file.parent.glob(".*.env*")] == [] and file.is_symlink()
    until(lambda: "POLL=2 s = two" in str(runner.logs("notification", 1)))
    (after,) = runner.pods("notification")
    assert after["started"] > before["started"]
    texts = [q.text for q in runner._read_cost.queries]
    assert any(t.endswith(" restart notification") for t in texts)
    assert any(t.endswith("pods.env: BATCH- POLL=2 s = two") for t in texts)


@pytest.mark.slow
def test_what_was_stopped_when_the_tool_was_cut_off_is_started(
    supervised: EntitlementWorkloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops and starts in two calls; a program that hangs takes longer to stop than is waited for."""
    runner = runner_of(supervised, a_read_cost())
    words = [*supervised.supervisorctl, "pid", "notification"]
    pid = int(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(workloads, "CHANGE_TIMEOUT_S", 2.0)
    with pytest.raises(SourceError, match="did not end within 2 s"):
        runner.restart("notification")
    assert "RUNNING" in runner.wait_ready("notification", 10) and not psutil.pid_exists(pid)


def test_variables_are_not_set_where_the_file_would_change_its_owner(
    supervised: EntitlementWorkloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fchown", Mock(side_effect=PermissionError(1, "Operation not permitted")))
    file = Path(supervised.env_file)
    text, cost = file.read_text(), a_read_cost()
    with pytest.raises(SourceError, match="its owner and group cannot be kept") as refused:
        runner_of(supervised, cost).set_environment("notification", {"POLL": "3"})
    assert refused.value.reason is Reason.DENIED and file.read_text() == text
    assert [p.name for p in file.parent.glob(".pods*")] == []
    assert not any("restart" in q.text for q in cost.queries)


def test_a_program_is_stopped_and_started(supervised: EntitlementWorkloads) -> None:
    runner = runner_of(supervised, a_read_cost())
    assert "stopped" in runner.scale("notification", 0)
    assert runner.pods("notification") == [] and runner.replicas("notification") == 0
    assert "started" in runner.scale("notification", 1)
    assert runner.replicas("notification") == 1
    with pytest.raises(SourceError, match="only 0 and 1"):
        runner.scale("notification", 2)


def test_a_program_that_does_not_start(supervised: EntitlementWorkloads) -> None:
    runner = runner_of(supervised, a_read_cost())
    assert runner.pods("entitlement") == []
    with fails_with(Reason.ERROR, "not_started"):
        runner.restart("entitlement")
    with fails_with(Reason.TIMEOUT):
        runner.wait_ready("entitlement", 1)


def test_an_unknown_program_and_a_supervisor_that_is_away(supervised: EntitlementWorkloads, tmp_path: Path) -> None:
    other = supervised.model_copy(update={"nats": "nobody"})
    for call in (runner_of(other, a_read_cost()).restart, runner_of(other, a_read_cost()).pods):
        with fails_with(Reason.ERROR, "not_found"):
            call("nobody")
    away = tmp_path / "away.conf"
    away.write_text(f"[supervisorctl]\nserverurl=unix://{tmp_path}/no.sock\n")
    command = [*supervised.supervisorctl[:-1], str(away)]
    with fails_with(Reason.UNREACHABLE, "no_connection"):
        runner_of(supervised.model_copy(update={"supervisorctl": command}), a_read_cost()).restart("notification")


def test_without_the_file_of_variables_they_are_not_configured() -> None:
    runner = runner_of(EntitlementWorkloads(runner="supervisorctl"), a_read_cost())
    with fails_with(Reason.NOT_CONFIGURED):
        runner.environment("notification")
    with fails_with(Reason.NOT_CONFIGURED):
        runner.set_environment("notification", {"A": "1"})
