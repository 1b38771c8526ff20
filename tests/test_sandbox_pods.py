"""A whole sandbox: pods under a supervisor, each fault with its signature, and an end that leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import requests
from click.testing import CliRunner
from drills import OUTAGES, ask, consumer, monitor

from runbook_lib.packs.entitlement.cli.sandbox import sandbox as commands
from runbook_lib.packs.entitlement.sandbox import faults, state
from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox
from runbook_lib.packs.entitlement.sandbox.state import SandboxError

POD_NAME = re.compile(r"(entitlement|notification)-[a-z0-9]{9}-[a-z0-9]{5}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    # Deep on purpose: the supervisor's socket must not care.
    folder = tmp_path_factory.mktemp("pods") / ("deep" * 20) / "with space"
    started = Sandbox(folder)
    started.up(rate=10, hours=0.1, settings={"NOTIFICATION_DELIVERY_BATCH_SIZE": "40"})
    yield started
    started.down()


BACKLOG = "SELECT count(*) FROM notification.notifications WHERE status = 'PENDING' AND next_retry_at < now()"
UNPUBLISHED = (
    "SELECT count(*) FROM entitlement.outbox_events WHERE status <> 'PUBLISHED' AND created_at < now() - '2s'::interval"
)
SINCE_PROCESSED = "SELECT extract(epoch FROM now() - max(processed_at)) FROM notification.processed_events"
SINCE_SENT = "SELECT extract(epoch FROM now() - max(sent_at)) FROM notification.notifications"


def delivery_stands_still(sandbox: Sandbox) -> bool:
    return (
        ask(sandbox, BACKLOG) > 20 and ask(sandbox, SINCE_PROCESSED) < 3 and bool(consumer(sandbox).get("push_bound"))
    )


def worker_is_gone(sandbox: Sandbox) -> bool:
    return delivery_stands_still(sandbox) and not alive(sandbox, "notification", "worker")


def worker_is_stopped(sandbox: Sandbox) -> bool:
    return (
        delivery_stands_still(sandbox) and psutil.Process(part(sandbox, "notification", "worker")).status() == "stopped"
    )


def subscriber_is_unbound(sandbox: Sandbox) -> bool:
    info = consumer(sandbox)
    return "push_bound" not in info and info["num_pending"] > 20 and alive(sandbox, "notification", "subscriber")


def relay_is_gone(sandbox: Sandbox) -> bool:
    return bool(ask(sandbox, UNPUBLISHED) > 20) and not alive(sandbox, "entitlement", "relay")


def broker_is_gone(sandbox: Sandbox) -> bool:
    error = "SELECT count(*) FROM entitlement.outbox_events WHERE last_error LIKE 'Timeout or no response%'"
    with pytest.raises(requests.ConnectionError):
        monitor(sandbox, "/varz")
    return bool(ask(sandbox, error))


def broker_refuses(sandbox: Sandbox) -> bool:
    closed = monitor(sandbox, "/connz?state=closed&sort=stop")["connections"]
    refused = [connection for connection in closed if connection["reason"] == "Authentication Failure"]
    return len(refused) > 5 and bool(ask(sandbox, UNPUBLISHED) > 5) and "push_bound" not in consumer(sandbox)


def table_is_locked(sandbox: Sandbox) -> bool:
    with pytest.raises(psycopg.errors.LockNotAvailable):
        ask(sandbox, BACKLOG)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pg_blocking_pids(pid) <> '{}'"
    return bool(ask(sandbox, waiting) == 2 and ask(sandbox, SINCE_PROCESSED) > 2)


def connections_are_gone(sandbox: Sandbox) -> bool:
    try:
        psycopg.connect(sandbox.state.addresses.app_url).close()
        return False  # a slot that a monitor just left
    except psycopg.OperationalError as error:
        refused = "remaining connection slots are reserved" in str(error) or "too many clients" in str(error)
    # The runbook's own role has a reserved slot.
    return refused and bool(ask(sandbox, SINCE_PROCESSED) > 2)


def sends_are_retried(sandbox: Sandbox) -> bool:
    retried = "SELECT count(*) FROM notification.notifications WHERE status <> 'SENT' AND attempt_count > 1"
    return bool(ask(sandbox, retried) > 5 and ask(sandbox, SINCE_PROCESSED) < 3 and ask(sandbox, SINCE_SENT) > 2)


SIGNATURES: dict[str, Callable[[Sandbox], bool]] = {
    "worker_stopped": worker_is_gone,
    "worker_hung": worker_is_stopped,
    "subscriber_deaf": subscriber_is_unbound,
    "relay_stopped": relay_is_gone,
    "broker_down": broker_is_gone,
    "broker_refusing": broker_refuses,
    "table_lock": table_is_locked,
    "connections_exhausted": connections_are_gone,
    "receiver_outage": sends_are_retried,
}


def part(sandbox: Sandbox, app: str, name: str) -> int:
    pid: int = sandbox.pod(app)["parts"][name]
    return pid


def alive(sandbox: Sandbox, app: str, name: str) -> bool:
    try:
        return psutil.Process(part(sandbox, app, name)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RUNBOOK_SANDBOX_OWNER") == str(folder) and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(autouse=True)
def healed(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that failed with a fault on does not fail its neighbours."""
    yield
    if "running" in request.fixturenames:
        request.getfixturevalue("running").heal()


@pytest.mark.parametrize("name", OUTAGES)
def test_a_fault_has_its_signature_and_heals(running: Sandbox, name: str) -> None:
    fault = running.fault(name)
    assert set(fault.description) == {"en", "ja"}
    running.wait_for(name, lambda: SIGNATURES[name](running), timeout=30)
    assert running.status().fault == name
    with pytest.raises(SandboxError, match="heal"):
        running.fault(name)
    assert running.heal() == name
    assert running.status().fault is None
    assert running.heal() is None
    assert set(running.status().programs.values()) == {"RUNNING"}


def test_status_names_pods_and_addresses_without_passwords(running: Sandbox) -> None:
    shown = CliRunner().invoke(commands, ["status", "--dir", str(running.directory)])
    assert shown.exit_code == 0, shown.output
    assert len(POD_NAME.findall(shown.output)) == 2
    assert not any(secret in shown.output for secret in running.state.addresses.passwords.values())
    assert "fault            none" in shown.output


def test_the_responders_restart_brings_a_new_pod_and_the_worker_back(running: Sandbox) -> None:
    before = running.status().pods
    running.fault("worker_stopped")
    done = subprocess.run(
        [*running.state.supervisorctl, "restart", "notification"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    running.wait_for("the new worker", lambda: ask(running, BACKLOG) < 20 and alive(running, "notification", "worker"))
    after = running.status().pods
    assert after["notification"] != before["notification"]
    assert after["entitlement"] == before["entitlement"]
    assert running.heal() == "worker_stopped"


def test_pods_outlive_the_database(running: Sandbox) -> None:
    pods = running.status().pods
    running.stop("postgres")
    log = running.directory / "log" / "notification.log"
    running.wait_for("the outage in the log", lambda: "Unexpected error occurred in scheduled task" in log.read_text())
    running.start("postgres")
    running.wait_for_flow(30)
    assert running.status().pods == pods


def test_settings_count_from_the_next_start(running: Sandbox) -> None:
    running.configure({"NOTIFICATION_DELIVERY_ENABLED": "false"})
    running.restart("notification")
    running.wait_for("a backlog behind a living worker", lambda: delivery_stands_still(running), timeout=15)
    assert alive(running, "notification", "worker")
    running.configure({"NOTIFICATION_DELIVERY_ENABLED": "true"})
    running.restart("notification")
    running.wait_for_flow(15)


def test_logs_are_json_lines_with_the_phrases_to_grep(running: Sandbox) -> None:
    logs = {app: (running.directory / "log" / f"{app}.log").read_text() for app in ("entitlement", "notification")}
    records = [json.loads(line) for line in logs["notification"].splitlines() if line.startswith("{")]
    accepted = next(record for record in records if record["message"] == "notification event accepted and queued")
    assert {"@timestamp", "service.name", "severity", "thread", "event_id", "event_type", "source_id"} <= set(accepted)
    for phrase in ("notification stream ensured", "notification subscriber started", "notification simulated send id="):
        assert phrase in logs["notification"]
    assert "entitlement stream ensured" in logs["entitlement"]
    assert "entitlement retention cleanup deleted" in logs["entitlement"]


def test_the_environment_is_for_a_shell(running: Sandbox) -> None:
    shown = CliRunner().invoke(commands, ["env", "--dir", str(running.directory)])
    done = subprocess.run(
        ["sh", "-c", f"{shown.output}\nprintenv {' '.join(running.state.env)}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == list(running.state.env.values())
    assert done.stdout.startswith("postgresql://runbook:")


def test_up_twice_says_so_and_a_wrong_fault_names_the_right_ones(running: Sandbox) -> None:
    folder = str(running.directory)
    again = CliRunner().invoke(commands, ["up", "--dir", folder])
    assert (again.exit_code, again.output) == (1, f"Error: the sandbox in {folder} is already up\n")
    wrong = CliRunner().invoke(commands, ["fault", "gremlins", "--dir", folder])
    assert wrong.exit_code == 1
    assert "worker_stopped" in wrong.output
    typo = CliRunner().invoke(commands, ["fault", "worker_stoped", "--dir", folder])
    assert typo.output == "Error: no fault 'worker_stoped': did you mean 'worker_stopped'?\n"
    demo = CliRunner().invoke(commands, ["demo", "--dir", folder])
    assert demo.output == f"Error: the sandbox in {folder} is already up\n"
    shown = CliRunner().invoke(commands, ["faults"]).output
    assert shown.count("\n") == 2 * len(faults.CATALOGUE)
    assert re.search(r"^worker_stopped +4\.1 +The delivery worker is dead", shown, re.MULTILINE)


def test_without_a_sandbox_every_command_says_it_in_one_line(tmp_path: Path) -> None:
    for name in ("status", "heal", "env"):
        result = CliRunner().invoke(commands, [name, "--dir", str(tmp_path)])
        assert result.exit_code == 1
        assert (
            result.output == f"Error: no sandbox in {tmp_path}: start one with `runbook sandbox up --dir {tmp_path}`\n"
        )
    assert CliRunner().invoke(commands, ["down", "--dir", str(tmp_path)]).output.startswith("No sandbox")


def test_of_two_that_start_one_sandbox_one_does(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    up = [sys.executable, "-m", "runbook_lib", "sandbox", "up", "--history", "0.05", "--dir", str(folder)]
    two = [subprocess.Popen(up, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        (won, out, err), (lost, nothing, why) = sorted((p.wait(120), *p.communicate()) for p in two)
        assert (won, err, lost, nothing) == (0, "", 69, "")
        assert why in (
            f"runbook: the sandbox in {folder} is being started by another command\n",
            f"runbook: the sandbox in {folder} is already up\n",
        )
        assert f'eval "$(runbook sandbox env --dir {folder})"' in out
        assert set(Sandbox(folder).status().programs.values()) == {"RUNNING"}
    finally:
        Sandbox(folder).down()
    assert not folder.exists()


def test_up_refuses_a_folder_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(SandboxError, match="is not empty"):
        Sandbox(tmp_path).up()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(SandboxError, match="name another folder"):
        Sandbox(tmp_path / "100%").up()


def test_a_start_that_fails_says_why_and_cleans_up(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    result = CliRunner().invoke(
        commands, ["up", "--dir", str(folder), "--history", "0", "--set", "NOTIFICATION_DELIVERY_LEASE=soon"]
    )
    assert result.exit_code == 1
    assert "pod notification ends at its start" in result.output
    assert "not a duration: 'soon'" in result.output
    assert result.output.count("\n") == 1
    assert not folder.exists()
    assert processes_of(folder) == []


def test_down_finds_everything_after_a_crash_and_up_starts_over(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    crashed = Sandbox(folder)
    started = crashed.up(hours=0)
    crashed.fault("worker_hung")
    assert started.supervisord is not None
    os.kill(started.supervisord[0], signal.SIGKILL)
    crashed.wait_for("the supervisor's end", lambda: not crashed.is_up())
    assert len(processes_of(folder)) > 5
    with pytest.raises(SandboxError, match="is not up"):
        crashed.status()
    second = Sandbox(folder).up(hours=0)
    assert second.addresses != started.addresses
    assert state.load(folder).ready
    assert Sandbox(folder).down()
    assert processes_of(folder) == []
    assert not folder.exists()
    assert not second.socket.parent.exists()
    assert not started.socket.parent.exists()


def test_the_command_returns_and_the_supervisor_has_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    code = "from runbook_lib.packs.entitlement.cli.sandbox import sandbox; sandbox()"
    command = [sys.executable, "-c", code, "up", "--history", "0", "--dir", str(folder)]
    try:
        # Pipes that a child kept open would make this wait for the child.
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, shlex.join(command) + done.stderr
        assert psutil.Process(state.load(folder).supervisord[0]).terminal() is None  # type: ignore[index]
    finally:
        Sandbox(folder).down()
