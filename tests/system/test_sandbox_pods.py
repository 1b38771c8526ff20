"""A whole sandbox: pods under a supervisor, one fault at a time, and an end that leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from click.testing import CliRunner

from runbook_lib.gameday.cli.sandbox import sandbox as commands
from runbook_lib.gameday.sandbox import faults, state
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.gameday.sandbox.state import SandboxError
from tests.kit import sandboxes
from tests.kit.command import processes, start
from tests.kit.drills import ask

pytestmark = pytest.mark.slow

BACKLOG = "SELECT count(*) FROM notification.notifications WHERE status = 'PENDING' AND next_retry_at < now()"
POD_NAME = re.compile(r"(entitlement|notification)-[a-z0-9]{9}-[a-z0-9]{5}")


def has_worker(sandbox: Sandbox) -> bool:
    try:
        return psutil.Process(sandbox.pod("notification")["parts"]["worker"]).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    # Deep on purpose: the supervisor's socket must not care.
    folder = tmp_path_factory.mktemp("pods") / ("deep" * 20) / "with space"
    settings = {"NOTIFICATION_DELIVERY_BATCH_SIZE": "40"}
    with sandboxes.running(folder, rate=10, hours=0.1, settings=settings) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def healed(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that failed with a fault on does not fail its neighbours."""
    yield
    if "running" in request.fixturenames:
        faults.heal(request.getfixturevalue("running"))


def test_one_fault_at_a_time_which_status_names_and_heal_takes_away(running: Sandbox) -> None:
    assert set(faults.inject(running, "worker_stopped").description) == {"en", "ja"}
    assert running.state.fault == "worker_stopped"
    with pytest.raises(SandboxError, match="heal"):
        faults.inject(running, "worker_stopped")
    assert faults.heal(running) == "worker_stopped"
    assert running.state.fault is None
    assert faults.heal(running) is None
    assert set(running.programs().values()) == {"RUNNING"}


def test_an_unknown_fault_is_hidden_until_it_is_revealed(running: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "CATALOGUE", (faults.find("relay_stopped"),))

    def said(*words: str) -> str:
        done = CliRunner().invoke(commands, [*words, "--dir", str(running.directory)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert said("reveal") == "No fault is active.\n"
    assert "relay" not in said("fault", "--unknown", "7").replace(str(running.directory), "")
    assert "fault            unknown" in said("status")
    assert re.search(
        "relay_stopped: .*\nPlace: relay, failure mode: FM-OB-01.*\nWhat helps: restart_ent", said("reveal")
    )
    assert "fault            relay_stopped" in said("status")
    assert "relay_stopped is undone" in said("heal")


def test_what_cannot_be_undone_is_healed_by_a_new_sandbox(tmp_path: Path) -> None:
    with sandboxes.running(tmp_path / "sandbox", hours=0) as sandbox:
        faults.inject(sandbox, "dlq_mismatch")
        healed = CliRunner().invoke(commands, ["heal", "--dir", str(sandbox.directory)])
        down, up = (f"runbook sandbox {verb} --dir {sandbox.directory}" for verb in ("down", "up"))
        assert healed.output == (
            f"Error: dlq_mismatch has changed more than can be undone; a new sandbox heals it: `{down} && {up}`\n"
        )
        assert sandbox.state.fault == "dlq_mismatch"


def test_a_locked_table_is_waited_for_no_longer_than_asked(running: Sandbox) -> None:
    with psycopg.connect(running.state.addresses.admin_url) as admin:
        admin.execute("LOCK TABLE entitlement.outbox_events")
        with pytest.raises(SandboxError, match="waited 1 s"):
            running.wait_for_flow(1)
        admin.rollback()
    running.wait_for_flow(90)


def test_status_names_pods_and_addresses_without_passwords(running: Sandbox) -> None:
    shown = CliRunner().invoke(commands, ["status", "--dir", str(running.directory)])
    assert shown.exit_code == 0, shown.output
    assert len(POD_NAME.findall(shown.output)) == 2
    assert not any(secret in shown.output for secret in running.state.addresses.passwords.values())
    assert "fault            none" in shown.output


def test_the_responders_restart_brings_a_new_pod_and_the_worker_back(running: Sandbox) -> None:
    before = running.pods()
    faults.inject(running, "worker_stopped")
    done = subprocess.run(
        [*running.state.supervisorctl, "restart", "notification"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    running.wait_for("the new worker", lambda: ask(running, BACKLOG) < 20 and has_worker(running))
    after = running.pods()
    assert after["notification"] != before["notification"]
    assert after["entitlement"] == before["entitlement"]
    assert faults.heal(running) == "worker_stopped"


def test_pods_outlive_the_database(running: Sandbox) -> None:
    pods = running.pods()
    running.stop("postgres")
    # Whoever wants a connection waits for it first, as long as the pool is patient.
    phrase = "Unexpected error occurred in scheduled task"
    running.wait_for("the outage in the log", lambda: phrase in running.log("notification"), 45)
    running.start("postgres")
    running.wait_for_flow(90)
    assert running.pods() == pods


def test_settings_count_from_the_next_start(running: Sandbox) -> None:
    running.configure({"NOTIFICATION_DELIVERY_ENABLED": "false"})
    running.restart("notification")
    running.wait_for(
        "a backlog behind a living worker",
        lambda: ask(running, BACKLOG) > 20 and has_worker(running),
        timeout=15,
    )
    running.configure({"NOTIFICATION_DELIVERY_ENABLED": "true"})
    running.restart("notification")
    running.wait_for_flow(90)


def test_the_broker_keeps_a_configuration_that_it_does_not_take(running: Sandbox) -> None:
    config = running.directory / "nats.conf"
    usual = config.read_text()
    running.configure_broker(max_payload=1000)
    assert running.ask_broker("varz")["max_payload"] == 1000
    for fields in ({"connections": 1}, {"http_port": 1}):  # unknown, and only for a start
        before = config.read_text()
        with pytest.raises(ValueError, match="nats-server does not"):
            running.configure_broker(**fields)
        assert config.read_text() == before
    running.configure_broker()
    assert config.read_text() == usual


def test_logs_are_json_lines_with_the_phrases_to_grep(running: Sandbox) -> None:
    logs = {app: running.log(app) for app in ("entitlement", "notification")}
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
    neither = CliRunner().invoke(commands, ["fault", "--dir", folder])
    assert neither.exit_code == 2 and "--unknown SEED" in neither.output
    demo = CliRunner().invoke(commands, ["demo", "--dir", folder])
    assert demo.output.endswith(f"Error: the sandbox in {folder} is already up\n")
    shown = CliRunner().invoke(commands, ["faults"]).output
    assert shown.count("\n") == 2 * len(faults.CATALOGUE)
    assert re.search(r"^worker_stopped +4\.1 +The delivery worker has stopped", shown, re.MULTILINE)


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
    two = [start("sandbox", "up", "--history", "0.05", "--dir", str(folder)) for _ in range(2)]
    try:
        (won, out, err), (lost, nothing, why) = sorted((p.wait(120), *p.communicate()) for p in two)
        assert (won, err, lost, nothing) == (0, "", 69, "")
        assert why in (
            f"runbook: the sandbox in {folder} is being started by another command\n",
            f"runbook: the sandbox in {folder} is already up\n",
        )
        assert f'eval "$(runbook sandbox env --dir {folder})"' in out
        assert set(Sandbox(folder).programs().values()) == {"RUNNING"}
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
    assert processes("RUNBOOK_SANDBOX_OWNER", str(folder)) == []


def test_down_finds_everything_after_a_crash_and_up_starts_over(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    crashed = Sandbox(folder)
    started = crashed.up(hours=0)
    faults.inject(crashed, "worker_hung")
    os.kill(int((folder / "supervisord.pid").read_text()), signal.SIGKILL)
    crashed.wait_for("the supervisor's end", lambda: not crashed.is_up())
    assert len(processes("RUNBOOK_SANDBOX_OWNER", str(folder))) > 5
    with pytest.raises(SandboxError, match="is not up"):
        crashed.programs()
    second = Sandbox(folder).up(hours=0)
    assert second.addresses != started.addresses
    assert state.load(folder).ready
    assert Sandbox(folder).down()
    assert processes("RUNBOOK_SANDBOX_OWNER", str(folder)) == []
    assert not folder.exists()
    assert not second.socket.parent.exists()
    assert not started.socket.parent.exists()


def test_the_command_returns_and_the_supervisor_has_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    code = "from runbook_lib.gameday.cli.sandbox import sandbox; sandbox()"
    command = [sys.executable, "-c", code, "up", "--history", "0", "--dir", str(folder)]
    try:
        # Pipes that a child kept open would make this wait for the child.
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, shlex.join(command) + done.stderr
        assert psutil.Process(int((folder / "supervisord.pid").read_text())).terminal() is None
    finally:
        Sandbox(folder).down()
