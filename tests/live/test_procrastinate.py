"""The pack of examples/procrastinate against the real thing: a worker that dies, and a queue that is well."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate import schema

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox.sandbox import supervisor_sections
from tests.kit import ROOT
from tests.kit.command import runbook
from tests.kit.servers import Servers
from tests.kit.systems import own_database
from tests.kit.waiting import until

PACK = ROOT / "examples" / "procrastinate"
HEARTBEAT_S, STALLED_S, POLL_S = 0.5, 30.0, 0.5
WORKER = (sys.executable, "-m", "procrastinate", "--app", "procrastinate_app.app", "worker")


@dataclass
class System:
    """A database with procrastinate's schema, and an application that defers."""

    url: str
    reader_url: str

    def __post_init__(self) -> None:
        self.db = psycopg.connect(self.url, autocommit=True)
        self.app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=self.url))
        self.app.open()

    def close(self) -> None:
        self.app.close()
        self.db.close()

    @contextmanager
    def worker(self) -> Iterator[None]:
        """A worker that is registered and listens."""
        process = subprocess.Popen(WORKER, env=os.environ | self.environment)
        try:
            until(self.listeners)
            yield
        finally:
            process.kill()
            process.wait(10)

    @property
    def environment(self) -> dict[str, str]:
        """What a worker is told."""
        return {
            "APP_DATABASE_URL": self.url,
            "APP_HEARTBEAT_S": str(HEARTBEAT_S),
            "APP_STALLED_S": str(STALLED_S),
            "APP_POLL_S": str(POLL_S),
            "APP_LISTENS_S": "0.2",
            "PYTHONPATH": str(ROOT / "tests" / "kit"),
        }

    def listeners(self) -> int:
        return int(
            self.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND (query LIKE 'LISTEN%%' OR query = 'SELECT 1')"
            )
        )

    def defer(self, task: str, n: int = 1, **options: Any) -> list[int]:
        """Jobs of a task; `seconds` is its argument, the rest is how it is deferred."""
        arguments = {"seconds": options.pop("seconds")} if "seconds" in options else {}
        name = f"procrastinate_app.{task}"
        deferrer = self.app.configure_task(name, allow_unknown=True, **{"queue": "default"} | options)
        return [deferrer.defer(**arguments) for _ in range(n)]

    def value(self, question: str, *values: Any) -> Any:
        row = self.db.execute(question.encode(), values or None).fetchone()
        assert row is not None
        return row[0]

    def passes(self, seconds: float) -> None:
        """Let time pass for what has happened so far."""
        self.db.execute("UPDATE procrastinate_events SET at = at - %s * interval '1 s'", (seconds,))

    def running_job(self, seconds: int, lock: str) -> int:
        """A job that a worker has taken."""
        (job,) = self.defer("work", seconds=seconds, lock=lock)
        until(lambda: self.value("SELECT status = 'doing' FROM procrastinate_jobs WHERE id = %s", job))
        return job

    def shorten(self, job: int) -> None:
        """Let a job be done at once when it is tried again."""
        self.db.execute("UPDATE procrastinate_jobs SET args = '{\"seconds\": 0}' WHERE id = %s", (job,))

    def silence(self) -> None:
        """Wait until no worker is alive, and let all heartbeats be overdue, and their grace over."""
        alive = (
            f"SELECT count(*) FROM procrastinate_workers WHERE last_heartbeat > now() - interval '{4 * HEARTBEAT_S} s'"
        )
        until(lambda: not self.value(alive), "the silence of the workers")
        age = f"UPDATE procrastinate_workers SET last_heartbeat = last_heartbeat - interval '{STALLED_S} s'"
        self.db.execute(age.encode())

    def rests(self) -> None:
        """Wait until nothing is left to do."""
        until(lambda: not self.value("SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"))


@pytest.fixture(autouse=True)
def in_force(embedded: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_CONFIG", str(PACK / "runbook.toml"))


@pytest.fixture
def system(embedded: Servers, request: pytest.FixtureRequest) -> Iterator[System]:
    tables = schema.SchemaManager.get_schema()
    with own_database(embedded, request.node.name, tables, "public") as urls:
        system = System(*urls)
        try:
            yield system
        finally:
            system.close()


class Supervisor:
    """A real supervisord with one worker as its program."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.folder = Path(tempfile.mkdtemp(prefix="pq"))  # a socket's path is short
        environment = ",".join(f'{k}="{v.replace("%", "%%")}"' for k, v in system.environment.items())
        (self.folder / "conf").write_text(
            supervisor_sections(self.folder / "s", self.folder / "log", self.folder / "pid")
            + f"[program:worker]\ncommand={shlex.join(WORKER)}\nenvironment={environment}\n"
            "autorestart=false\nstartsecs=0\nstopwaitsecs=3\n"
            f"stdout_logfile={self.folder}/worker.log\nredirect_stderr=true\n"
        )
        self.supervisorctl = [sys.executable, "-m", "supervisor.supervisorctl", "-c", f"{self.folder}/conf"]
        supervisord = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", f"{self.folder}/conf"]
        with (self.folder / "out").open("wb") as out:
            self.process = subprocess.Popen(supervisord, stdout=out, stderr=out)
        until(lambda: system.listeners() == 1)

    def types(self, command: str) -> None:
        """Somebody types what was proposed."""
        words = shlex.split(command)
        if words[0] == "psql":
            self.system.db.execute(words[-1].encode())
        else:
            subprocess.run(words, check=True, capture_output=True, timeout=30)

    def kill(self) -> None:
        """SIGKILL for the worker."""
        pid = subprocess.run([*self.supervisorctl, "pid", "worker"], capture_output=True, text=True, check=True).stdout
        os.kill(int(pid), signal.SIGKILL)
        until(lambda: self.system.listeners() == 0)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(25)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def env(system: System, tmp_path: Path) -> dict[str, str]:
    """A shell in which the runbook of the pack is in force, over a copy of its runbook.toml."""
    (tmp_path / "runbook.toml").write_text(
        f'packs = ["{PACK}"]\n[targets.shop]\ndatabase_url = "env:SHOP_DATABASE_URL"\n'
        f"stalled_after_s = {STALLED_S}\ngrace_s = {STALLED_S}\npoll_interval_s = {POLL_S}\n"
        '[targets.shop.workloads]\ndatabase = "shop"\n'
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    return clean | {"RUNBOOK_CONFIG": str(tmp_path / "runbook.toml"), "SHOP_DATABASE_URL": system.reader_url}


@pytest.mark.slow
def test_from_an_alert_to_recovery_by_the_command(system: System, env: dict[str, str], tmp_path: Path) -> None:
    """A worker dies with a job; triage, what it proposes, the recovery, and a dossier of it all that is whole."""

    def command(*words: str) -> CompletedProcess[str]:
        done = runbook(*words, "--incident", "INC-1", env=env, cwd=tmp_path)
        print(done.stdout, done.stderr)
        return done

    with closing(Supervisor(system)) as worker:
        with (tmp_path / "runbook.toml").open("a") as toml:
            toml.write(f"runner = 'supervisorctl'\nsupervisorctl = {json.dumps(worker.supervisorctl)}\n")
        left = system.running_job(seconds=600, lock="account-7")
        worker.kill()
        system.defer("send", 3)
        system.defer("send", 2, lock="account-7")
        system.passes(90)
        system.silence()

        done = command("triage", "--target", "shop", "--json")
        said = json.loads(done.stdout)
        assert (done.returncode, said["verdict"]["stuck_at"]) == (2, "worker")
        assert said["verdict"]["failure_modes"][0]["id"] == "FM-WRK-02"
        assert [run["section"] for run in said["runs"]] == ["3", "4.1", "4.2"]
        assert {f["reason"] for run in said["runs"] for f in run["findings"]} == {None}

        shown = command("run", "2", "4.1", "4.2", "6", "--target", "shop", "--lang", "ja")
        assert shown.returncode == 2 and "詰まり箇所: worker" in shown.stdout
        worker.types(proposed(shown))
        until(lambda: system.value("SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'") == 3)

        # What is left is the job of the dead worker, and those behind it.
        system.shorten(left)
        shown = command("run", "4.2", "--target", "shop")
        assert shown.returncode == 2 and "restart" not in shown.stdout
        worker.types(proposed(shown))
        system.rests()

        done = command("run", "6", "--target", "shop")
        assert done.returncode == 0, done.stdout
    (told,) = re.findall("^seal:.*", done.stdout, re.MULTILINE)
    assert runbook("dossier", "INC-1", env=env, cwd=tmp_path).returncode == 0
    assert "worker" in (tmp_path / "outputs" / "INC-1" / "index.html").read_text(encoding="utf-8")
    assert runbook("verify", "INC-1", "--checkpoint", told, env=env, cwd=tmp_path).returncode == 0


def proposed(shown: CompletedProcess[str]) -> str:
    """The command on the first screen."""
    return next(line for line in shown.stdout.splitlines() if "supervisor.supervisorctl" in line or "psql" in line)


def test_every_notebook_of_a_queue_that_is_well(system: System, env: dict[str, str], tmp_path: Path) -> None:
    numbers = list(catalog.load().sections)
    with system.worker():
        system.defer("send", 5)
        system.rests()
        done = runbook("run", *numbers, "--target", "shop", "--incident", "INC-1", "--json", env=env, cwd=tmp_path)
    said = json.loads(done.stdout)
    assert (done.returncode, said["status"]) == (0, "OK"), done.stdout
    assert [f["status"] for run in said["runs"] for f in run["findings"]] == ["OK"] * 19
