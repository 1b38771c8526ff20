"""The pack of examples/procrastinate against the real thing: faults of real workers, and what is said of them."""

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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, TypeVar

import pandas as pd
import procrastinate
import psycopg
import pytest
from procrastinate import schema
from psycopg import sql

from runbook_lib.book import catalog, pack, queries
from runbook_lib.gameday.sandbox.sandbox import supervisor_sections
from runbook_lib.model.finding import Proposal, Status
from tests.kit import ROOT
from tests.kit.command import runbook
from tests.kit.rows import assert_fits, kinds_of_rows
from tests.kit.schemas import valid
from tests.kit.servers import Servers
from tests.kit.steps import lock_wait, open_target, words
from tests.kit.systems import Said, ask_target, own_database
from tests.kit.waiting import until

PACK = ROOT / "examples" / "procrastinate"
HEARTBEAT_S, STALLED_S, POLL_S = 0.5, 30.0, 0.5
#: How the names of queries of the rooms begin: test_queues.py and test_questions.py ask these.
ROOMS = ("queues/", "database/", "scope/", "changed/")
#: The application_name of the workers' sessions.
WORKERS = "shop-worker"
#: The workers' settings, as the target has them.
FACTS: dict[str, Any] = {"stalled_after_s": STALLED_S, "grace_s": STALLED_S, "poll_interval_s": POLL_S}


T = TypeVar("T")


@dataclass
class System:
    """A database with procrastinate's schema, an application that defers, and its workers as processes."""

    url: str
    reader_url: str
    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.db = psycopg.connect(self.url, autocommit=True)
        self.app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=self.url))
        self.app.open()

    def close(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait(10)
        self.app.close()
        self.db.close()

    def worker(self, *options: str) -> subprocess.Popen[bytes]:
        """A worker that is registered and listens."""
        before = self.value("SELECT coalesce(max(id), 0) FROM procrastinate_workers")
        command = [sys.executable, "-m", "procrastinate", "--app", "procrastinate_app.app", "worker", *options]
        with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
            process = subprocess.Popen(command, env=os.environ | self.environment, stdout=log, stderr=log)
        self.workers.append(process)
        until(lambda: self.value("SELECT count(*) FROM procrastinate_workers WHERE id > %s", before))
        until(lambda: self.listeners() >= sum(w.poll() is None for w in self.workers))
        return process

    @property
    def environment(self) -> dict[str, str]:
        """What a worker is told."""
        return {
            "APP_DATABASE_URL": self.url,
            "APP_HEARTBEAT_S": str(HEARTBEAT_S),
            "APP_STALLED_S": str(STALLED_S),
            "APP_POLL_S": str(POLL_S),
            "APP_LISTENS_S": "0.2",
            "PGAPPNAME": WORKERS,
            "PYTHONPATH": str(ROOT / "tests" / "kit"),
        }

    def listeners(self) -> int:
        return int(
            self.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND (query LIKE 'LISTEN%%' OR query = 'SELECT 1')"
            )
        )

    def defer(self, task: str, n: int = 1, *, later_s: int = 0, **options: Any) -> list[int]:
        """Jobs of a task; `seconds` is its argument, the rest is how it is deferred."""
        arguments = {"seconds": options.pop("seconds")} if "seconds" in options else {}
        if later_s:
            options["schedule_in"] = {"seconds": later_s}
        name = f"procrastinate_app.{task}"
        deferrer = self.app.configure_task(name, allow_unknown=True, **{"queue": "default"} | options)
        return [deferrer.defer(**arguments) for _ in range(n)]

    def value(self, question: str, *values: Any) -> Any:
        row = self.db.execute(question.encode(), values or None).fetchone()
        assert row is not None
        return row[0]

    def status(self, job: int) -> str:
        return str(self.value("SELECT status::text FROM procrastinate_jobs WHERE id = %s", job))

    def becomes(self, job: int, status: str) -> None:
        until(lambda: self.status(job) == status)

    def passes(self, seconds: float) -> None:
        """Let time pass for what has happened so far."""
        self.db.execute("UPDATE procrastinate_events SET at = at - %s * interval '1 s'", (seconds,))

    def lost_job(self, **options: Any) -> int:
        """A job that a worker had when it was killed."""
        worker = self.worker()
        job = self.running_job(seconds=600, **options)
        worker.kill()
        worker.wait(10)
        return job

    def running_job(self, seconds: int = 60, **options: Any) -> int:
        """A job that a worker has taken."""
        (job,) = self.defer("work", seconds=seconds, **options)
        self.becomes(job, "doing")
        return job

    def shorten(self, job: int) -> None:
        """Let a job be done at once when it is tried again."""
        self.db.execute("UPDATE procrastinate_jobs SET args = '{\"seconds\": 0}' WHERE id = %s", (job,))

    def somebody_waits(self, n: int = 1) -> None:
        """Wait until so many locks are waited for."""
        until(lambda: self.value("SELECT count(*) FROM pg_locks WHERE NOT granted") >= n)

    def runs(self, proposal: Proposal) -> None:
        """Carry out what was proposed as SQL, as its owner would."""
        words = shlex.split(proposal.command)
        assert words[0] == "psql", words
        self.db.execute(words[-1].encode())

    def silence(self, living: int = 0) -> None:
        """Let the heartbeats of all workers but the living be overdue, and their grace over."""
        beats = f"last_heartbeat > now() - interval '{4 * HEARTBEAT_S} s'"
        overdue = f"last_heartbeat < now() - interval '{STALLED_S} s'"
        age = f"UPDATE procrastinate_workers SET last_heartbeat = last_heartbeat - interval '{STALLED_S} s'"

        def is_silent() -> bool:
            self.db.execute(f"{age} WHERE NOT {beats} AND NOT {overdue}".encode())
            return bool(self.value(f"SELECT count(*) FROM procrastinate_workers WHERE {beats}") == living)

        until(is_silent, "the silence of the others")

    def rests(self) -> None:
        """Wait until nothing is left to do."""
        until(lambda: not self.value("SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"))


@pytest.fixture(autouse=True)
def in_force(embedded: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_CONFIG", str(PACK / "runbook.toml"))


@pytest.fixture
def system(embedded: Servers, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[System]:
    tables = schema.SchemaManager.get_schema()
    with own_database(embedded, request.node.name, tables, "public") as urls:
        system = System(*urls, tmp_path)
        try:
            yield system
        finally:
            system.close()


def ask(system: System, *sections: str, **facts: Any) -> Said:
    """What the steps of these sections say together (4.1 and 4.2 unless named)."""
    target = {"database_url": system.reader_url, "workloads": {"runner": "supervisorctl"}, **FACTS, **facts}
    return ask_target(target, *(sections or ("4.1", "4.2")))


# What is well is OK.


@pytest.mark.slow
def test_a_queue_that_is_well(system: System) -> None:
    system.worker("--concurrency", "2")
    system.defer("send", 20)
    system.rests()
    said = ask(system, "2", "3", "4.1", "4.2", "6", concurrency=2)
    said.expect(Status.OK, None, proposed=[])
    assert said.verdict.confidence == "high"


def test_a_queue_at_work(system: System) -> None:
    """A job that runs in its time, one that is meant for later, one that was just deferred."""
    system.worker()
    system.running_job()
    system.defer("send", later_s=600)
    system.defer("send", 2)
    ask(system).expect(Status.OK, None)


# Workers.


def test_a_worker_that_was_stopped(system: System) -> None:
    worker = system.worker()
    worker.terminate()
    assert worker.wait(10) == 0
    jobs = system.defer("send", 3)
    system.passes(90)
    ask(system, "3").expect(Status.CRITICAL, "worker", "FM-WRK-01", ["restart_worker"])
    system.worker()  # what was proposed
    for job in jobs:
        system.becomes(job, "succeeded")
    assert ask(system, "6").verdict.status is Status.OK


def test_no_worker_and_nothing_to_do(system: System) -> None:
    """It may be one that a timer starts: not green, and no reason to restart anything."""
    ask(system).expect(Status.WARNING, None, proposed=[])


@pytest.mark.slow
def test_a_worker_that_was_killed_with_a_job(system: System) -> None:
    left = system.lost_job()
    (waits,) = system.defer("send")
    system.passes(90)
    system.silence()
    proposed = ["worker_process", "restart_worker", "retry_orphans"]
    ask(system, "3").expect(Status.CRITICAL, "worker", "FM-WRK-02", proposed)
    # A worker that starts takes what waits, and leaves what the dead one had.
    system.worker()
    system.becomes(waits, "succeeded")
    assert system.status(left) == "doing"
    ask(system).expect(Status.CRITICAL, "worker", "FM-WRK-02", ["worker_process", "retry_orphans"])
    system.passes(300)  # no job that is well runs so long
    said = ask(system)
    assert (said.first, said.proposed) == ("FM-WRK-02", ["retry_orphans"])
    # The row of the dead worker is gone by now, and its job is nobody's.
    assert system.value("SELECT worker_id FROM procrastinate_jobs WHERE id = %s", left) is None
    system.shorten(left)
    system.runs(said.verdict.proposals[0])
    system.becomes(left, "succeeded")
    assert ask(system, "6").verdict.status is Status.OK


@pytest.mark.slow
def test_a_job_that_is_taken_meanwhile_is_not_put_back(system: System) -> None:
    """The proposed statement looks again: what it names may be in good hands by the time somebody types it."""
    left = system.lost_job()
    system.silence()
    proposal = next(p for p in ask(system).verdict.proposals if p.name == "retry_orphans")
    system.worker()
    system.runs(proposal)
    system.becomes(left, "doing")
    attempts = system.value("SELECT attempts FROM procrastinate_jobs WHERE id = %s", left)
    system.runs(proposal)
    assert system.status(left) == "doing"
    assert system.value("SELECT attempts FROM procrastinate_jobs WHERE id = %s", left) == attempts == 1


@pytest.mark.slow
def test_a_worker_that_is_stopping_is_left_its_job(system: System) -> None:
    """Told to stop, a worker ends its heartbeat before its jobs: it looks like a dead one for as long."""
    worker = system.worker()
    system.running_job(seconds=30)
    worker.terminate()
    system.silence()
    assert worker.poll() is None
    said = ask(system, grace_s=120)
    said.expect(Status.WARNING, None, "FM-WRK-05", [])
    assert 60 < (said.verdict.look_again_s or 0) < 120


@pytest.mark.slow
@pytest.mark.parametrize("how", ["computes", "is paused"])
@pytest.mark.parametrize("named", [True, False], ids=["a name of its own", "no name"])
def test_a_worker_that_is_silent_and_still_there(system: System, how: str, named: bool) -> None:
    """Its job may run: neither a restart nor putting it back is justified by silence alone."""
    worker = system.worker("--concurrency", "2")
    until(lambda: not system.value("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"))
    job = system.defer("compute" if how == "computes" else "work", seconds=20)[0]
    system.becomes(job, "doing")
    if how == "is paused":
        worker.send_signal(signal.SIGSTOP)
    system.defer("send")
    system.passes(90)
    system.silence()
    said = ask(system, concurrency=2, application=WORKERS if named else "")
    assert said.verdict.stuck_at == "worker"
    if named:
        assert (said.first, said.proposed) == ("FM-WRK-03", ["logs", "worker_process"])
    else:  # the session that asks SELECT 1 may be anybody's
        assert {"FM-WRK-02", "FM-WRK-03"} <= {m.id for m in said.verdict.failure_modes}
        assert said.verdict.confidence != "high" and said.proposed == ["worker_process"]


def test_every_worker_is_busy(system: System) -> None:
    system.worker()
    system.running_job()
    system.defer("send", 5)
    system.passes(90)
    said = ask(system)
    said.expect(Status.CRITICAL, "worker", "FM-WRK-04")
    assert "restart_worker" not in said.proposed


@pytest.mark.slow
def test_without_the_right_to_see_sessions_it_is_left_open(system: System, embedded: Servers) -> None:
    """Without pg_monitor a worker that was killed can not be told from one that hangs."""
    system.lost_job()
    system.silence()
    with blind(system) as url:
        system.reader_url = url
        said = ask(system, "2", "4.1", "4.2")
    assert said.findings["2.1"].status is Status.WARNING
    said.expect(None, "worker", proposed=["worker_process"])
    assert {"FM-WRK-02", "FM-WRK-03"} <= {m.id for m in said.verdict.failure_modes}
    assert said.verdict.confidence != "high"


@contextmanager
def blind(system: System) -> Iterator[str]:
    """A role that may read the tables and sees no other session."""
    role = sql.Identifier(f"blind_{os.getpid()}")
    system.db.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
    system.db.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role))
    try:
        yield re.sub(r"//[^@]*@", f"//blind_{os.getpid()}:x@", system.url)
    finally:
        system.db.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


# Under a supervisor, which tells of processes.


class Supervisor:
    """A real supervisord with one worker as its program."""

    def __init__(self, system: System, *options: str, autorestart: bool = False) -> None:
        self.system = system
        self.folder = Path(tempfile.mkdtemp(prefix="pq"))  # a socket's path is short
        command = [sys.executable, "-m", "procrastinate", "--app", "procrastinate_app.app", "worker", *options]
        environment = ",".join(f'{k}="{v.replace("%", "%%")}"' for k, v in system.environment.items())
        (self.folder / "conf").write_text(
            supervisor_sections(self.folder / "s", self.folder / "log", self.folder / "pid")
            + f"[program:worker]\ncommand={shlex.join(command)}\nenvironment={environment}\n"
            f"autorestart={str(autorestart).lower()}\nstartsecs=0\nstopwaitsecs=3\n"
            f"stdout_logfile={self.folder}/worker.log\nredirect_stderr=true\n"
        )
        self.supervisorctl = [sys.executable, "-m", "supervisor.supervisorctl", "-c", f"{self.folder}/conf"]
        supervisord = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", f"{self.folder}/conf"]
        with (self.folder / "out").open("wb") as out:
            self.process = subprocess.Popen(supervisord, stdout=out, stderr=out)
        until(lambda: system.listeners() == 1)

    def facts(self) -> dict[str, Any]:
        return {"workloads": {"runner": "supervisorctl", "supervisorctl": self.supervisorctl, "database": "shop"}}

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
        until(
            lambda: self.system.listeners() == 0 or self.system.value("SELECT count(*) FROM procrastinate_workers") > 1
        )

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(25)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def supervised(system: System, *options: str, autorestart: bool = False) -> Iterator[Supervisor]:
    supervisor = Supervisor(system, *options, autorestart=autorestart)
    try:
        yield supervisor
    finally:
        supervisor.close()


@pytest.mark.slow
def test_a_worker_that_was_stopped_under_a_supervisor(system: System) -> None:
    with supervised(system) as worker:
        worker.types(shlex.join([*worker.supervisorctl, "stop", "worker"]))
        jobs = system.defer("send", 3)
        system.passes(90)
        said = ask(system, **worker.facts())
        said.expect(None, "worker", "FM-WRK-01", ["restart_worker"])
        assert said.verdict.confidence == "high"
        worker.types(said.verdict.proposals[0].command)
        for job in jobs:
            system.becomes(job, "succeeded")
        assert ask(system, "6", **worker.facts()).verdict.status is Status.OK


@pytest.mark.slow
def test_a_worker_that_was_killed_under_a_supervisor(system: System) -> None:
    """That its process is gone is known, so that nothing has to be looked at before its job is put back."""
    with supervised(system) as worker:
        left = system.running_job(seconds=600)
        worker.kill()
        (waits,) = system.defer("send")
        system.passes(90)
        system.silence()
        said = ask(system, **worker.facts())
        said.expect(Status.CRITICAL, "worker", "FM-WRK-02", ["restart_worker", "retry_orphans"])
        assert said.verdict.confidence == "high"
        system.shorten(left)
        for proposal in said.verdict.proposals:
            worker.types(proposal.command)
        for job in (left, waits):
            system.becomes(job, "succeeded")
        assert ask(system, "6", **worker.facts()).verdict.status is Status.OK


@pytest.mark.slow
def test_a_worker_that_its_supervisor_started_again(system: System) -> None:
    """All is well but for the job that the dead one had: a restart, which the supervisor has done, frees nothing."""
    with supervised(system, autorestart=True) as worker:
        system.running_job(seconds=600)
        system.passes(90)
        worker.kill()
        until(lambda: system.value("SELECT max(id) FROM procrastinate_workers") == 2)
        system.defer("send", 5)
        system.silence(living=1)
        said = ask(system, **worker.facts())
        said.expect(Status.CRITICAL, "worker", "FM-WRK-02", ["retry_orphans"])
        assert said.verdict.confidence == "high"


@pytest.mark.slow
def test_a_worker_that_can_not_start(system: System) -> None:
    """Its process is there, so that nothing is said for another start; why it can not is in its log."""
    with supervised(system) as worker:
        system.defer("send", 3)
        system.rests()
        system.db.execute("ALTER FUNCTION procrastinate_register_worker_v1 RENAME TO away")
        worker.types(shlex.join([*worker.supervisorctl, "stop", "worker"]))
        conf = worker.folder / "conf"
        conf.write_text(conf.read_text().replace("autorestart=false", "autorestart=true"))
        worker.types(shlex.join([*worker.supervisorctl, "update"]))
        system.defer("send", 3)
        system.passes(90)
        said = ask(system, **worker.facts())
        said.expect(None, "worker", proposed=["logs"])


@pytest.mark.slow
def test_a_worker_whose_heartbeat_failed_finishes_its_job(system: System) -> None:
    """It stops by itself, without a sign and beyond any grace; its process is there, so its job is left to it."""
    with supervised(system) as worker:
        job = system.running_job()
        system.db.execute("ALTER FUNCTION procrastinate_update_heartbeat_v1 RENAME TO away")
        time.sleep(1)
        system.db.execute("ALTER FUNCTION away RENAME TO procrastinate_update_heartbeat_v1")
        system.silence()
        said = ask(system, **worker.facts())
        assert system.status(job) == "doing"
        assert said.verdict.stuck_at == "worker"
        assert said.proposed[0] == "worker_process", "it may still run"


# Queues and locks.


def test_a_queue_that_nobody_takes_from(system: System) -> None:
    system.worker("--queues", "mails")
    system.defer("send", 3)
    system.passes(90)
    system.defer("send", 5, queue="mails")
    until(lambda: system.value("SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'") == 5)
    ask(system, "3").expect(Status.CRITICAL, "queue", "FM-QUE-01", ["listens_to"])


def test_nobody_takes_from_it_or_everybody_is_busy(system: System) -> None:
    system.worker("--queues", "mails")
    system.running_job(queue="mails")
    system.defer("send", 3)
    system.passes(90)
    said = ask(system)
    assert said.verdict.stuck_at is None
    assert {"queue", "worker"} <= set(said.verdict.undecided)
    assert "restart_worker" not in said.proposed


def test_a_line_behind_a_lock_whose_first_runs_too_long(system: System) -> None:
    system.worker("--concurrency", "2")
    head = system.running_job(seconds=600, lock="account-7")
    behind = system.defer("send", 3, lock="account-7")
    system.passes(1000)
    system.defer("send", 3)
    said = ask(system, concurrency=2)
    said.expect(Status.CRITICAL, "task", "FM-TSK-02", ["logs", "abort_job"])
    assert "FM-QUE-02" in {m.id for m in said.verdict.failure_modes}
    assert f"behind job {head}" in words(said.findings["4.2.3"])
    system.runs(said.verdict.proposals[1])
    for job in behind:
        system.becomes(job, "succeeded")
    assert system.status(head) == "aborted"
    assert ask(system, "6", concurrency=2).verdict.status is Status.OK


@pytest.mark.slow
def test_a_line_behind_a_lock_that_a_dead_worker_left(system: System) -> None:
    system.lost_job(lock="account-7")
    system.silence()
    system.worker()
    system.defer("send", 3, lock="account-7")
    system.passes(90)
    said = ask(system)
    said.expect(None, "worker", "FM-WRK-02", ["worker_process", "retry_orphans"])
    assert "whose worker has no heartbeat" in words(said.findings["4.2.3"])


def test_a_line_behind_a_lock_whose_first_waits_for_its_next_try(system: System) -> None:
    """A job that fails holds up all with its lock, also while it only waits."""
    system.worker()
    head = system.defer("settle", lock="account-7")[0]
    until(lambda: system.value("SELECT attempts FROM procrastinate_jobs WHERE id = %s", head) == 1)
    system.becomes(head, "todo")
    system.defer("send", 3, lock="account-7")
    system.passes(90)
    said = ask(system)
    said.expect(None, "task", "FM-TSK-01")
    assert {"FM-TSK-01", "FM-QUE-02"} <= {m.id for m in said.verdict.failure_modes}
    assert "restart_worker" not in said.proposed


def test_a_line_behind_a_lock_whose_first_is_meant_for_later(system: System) -> None:
    system.worker()
    system.defer("send", lock="account-7", later_s=3600)
    system.defer("send", 3, lock="account-7")
    system.passes(90)
    ask(system).expect(None, "queue", "FM-QUE-02", ["see_job"])


# Tasks.


@pytest.mark.slow
def test_a_task_that_fails_and_is_tried_again(system: System) -> None:
    system.worker()
    system.defer("charge", 3)
    system.defer("send", 3)
    until(lambda: system.value("SELECT count(*) FROM procrastinate_events WHERE type = 'deferred_for_retry'") >= 5)
    ask(system, "3").expect(Status.CRITICAL, "task", "FM-TSK-01", ["logs"])


def test_a_task_that_fails_for_good(system: System) -> None:
    system.worker()
    system.defer("parse", 5)
    system.rests()
    ask(system).expect(None, "task", "FM-TSK-01", ["logs"])
    system.passes(120)  # none since
    assert ask(system, "6").verdict.status is Status.OK


def test_a_failure_now_and_then(system: System) -> None:
    system.worker()
    system.defer("send", 20)
    system.defer("parse")
    system.rests()
    ask(system).expect(Status.WARNING, None)


def test_successes_that_leave_no_trace(system: System) -> None:
    """Jobs that are deleted when they succeed take their events along: failures alone are no rate."""
    system.worker("--delete-jobs", "successful")
    system.defer("send", 20)
    system.defer("parse", 4)
    system.rests()
    said = ask(system, delete_jobs="successful")
    assert said.findings["4.1.3"].value("errors.rate") is None
    assert said.verdict.status is Status.WARNING and said.first == "FM-TSK-01"


# The questions.


def test_the_answers_have_what_the_kinds_of_rows_declare(system: System) -> None:
    """Of empty tables and of full ones, and as the rows that judges read."""

    def every() -> dict[str, pd.DataFrame]:
        rb = open_target("4.1", {"database_url": system.reader_url, **FACTS})
        asked = {"most": 100, "within_s": 300, "stalled_after_s": STALLED_S, "application": ""}
        with rb.snapshot() as snapshot:
            names = (n for n in queries.names() if not n.startswith(ROOMS))
            return {name: snapshot.ask(name, **asked) for name in names}

    own = kinds_of_rows(pack.active_runbook().packs[0])
    kinds = [kind for kind in own if not getattr(kind, "QUERY", "").startswith(ROOMS)]
    for frames in (every(), every_kind_of_row(system, every)):
        for name, frame in frames.items():
            assert_fits(name, frame, kinds)
    assert {kind.QUERY for kind in kinds if hasattr(kind, "QUERY")} == frames.keys()
    assert all(len(frame) for frame in frames.values())


def every_kind_of_row(system: System, ask: Callable[[], T]) -> T:
    """What is asked while no answer is empty."""
    system.worker("--concurrency", "2")
    system.defer("send", 3)
    system.defer("parse")
    system.rests()
    system.running_job(lock="a")
    system.defer("send", 2, lock="a")
    system.defer("send", 2, queue="mails")
    with psycopg.connect(system.url) as other:
        other.execute("LOCK TABLE procrastinate_jobs IN SHARE MODE")
        with lock_wait(system.url, "DELETE FROM procrastinate_jobs"):
            return ask()


# Database.


@pytest.mark.slow
def test_a_lock_on_the_jobs(system: System) -> None:
    system.worker()
    with psycopg.connect(system.url, application_name="migration") as other:
        other.execute("LOCK TABLE procrastinate_jobs IN ACCESS EXCLUSIVE MODE")
        system.somebody_waits()
        time.sleep(5.2)
        said = ask(system)
    assert said.verdict.status is not Status.OK
    said.expect(None, "database", "FM-QD-01", ["end_blocker"])


@pytest.mark.slow
def test_a_migration_that_queues_behind_a_reader(system: System) -> None:
    """The one to end is the reader at the head, not the migration that everybody else waits behind."""
    system.worker()
    with psycopg.connect(system.url, application_name="report") as reader:
        reader.execute("SELECT count(*) FROM procrastinate_jobs")
        with lock_wait(system.url, "ALTER TABLE procrastinate_jobs ADD COLUMN note text") as migration:
            system.somebody_waits(2)
            time.sleep(5.2)
            said = ask(system)
            blocker = next(p for p in said.verdict.proposals if p.name == "end_blocker")
            assert blocker.params["pid"] != migration.info.backend_pid
        assert blocker.params == {"pid": reader.info.backend_pid, "application": "report"}
    said.expect(None, "database", "FM-QD-01")


@pytest.mark.slow
def test_rows_that_a_transaction_keeps(system: System) -> None:
    """Workers step over locked rows: the queue stands, nobody waits, and every worker is well."""
    system.worker()
    system.defer("send")
    system.rests()
    with psycopg.connect(system.url, application_name="admin") as other:
        # The rows are there before a worker could take them.
        other.execute("LOCK TABLE procrastinate_jobs IN SHARE ROW EXCLUSIVE MODE")
        other.rollback()
        system.workers[0].send_signal(signal.SIGSTOP)
        jobs = system.defer("send", 2)
        other.execute("SELECT * FROM procrastinate_jobs WHERE id = ANY(%s) FOR UPDATE", (jobs,))
        system.workers[0].send_signal(signal.SIGCONT)
        time.sleep(1)
        assert [system.status(job) for job in jobs] == ["todo", "todo"]
        system.passes(90)
        said = ask(system)
        assert said.verdict.stuck_at is None and said.verdict.undecided  # the transaction is young
        time.sleep(15)
        said = ask(system)
        said.expect(None, "database", "FM-DB-02", ["end_blocker"])
        pid = other.info.backend_pid
        assert said.verdict.proposals[0].params == {"pid": pid, "application": "admin"}
        system.runs(said.verdict.proposals[0])
        for job in jobs:
            system.becomes(job, "succeeded")
        other.close()


# The command.


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

    with supervised(system) as worker:
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


def test_asked_in_another_language_the_pack_answers_in_its_own(
    system: System, env: dict[str, str], tmp_path: Path
) -> None:
    """Its texts are English alone; those of the engine are in the language that was asked for."""
    words = ("--target", "shop", "--incident", "INC-1", "--lang", "ja", "--why")
    done = runbook("run", "2", *words, env=env, cwd=tmp_path)
    assert done.returncode == Status.WARNING.value, done.stdout + done.stderr
    for shown in ("2 Reachability", "No worker is registered; nothing waits yet", "判定の根拠"):
        assert shown in done.stdout
    page = (tmp_path / "outputs" / "INC-1" / "index.html").read_text(encoding="utf-8")
    assert "Reachability" in page and "到達性" not in page


@pytest.mark.slow
def test_every_notebook_of_a_queue_that_is_well(system: System, env: dict[str, str], tmp_path: Path) -> None:
    system.worker()
    system.defer("send", 5)
    system.rests()
    listed = runbook("sections", env=env, cwd=tmp_path).stdout
    for number, section in catalog.load().sections.items():
        assert number in listed and section.en in listed
    numbers = list(catalog.load().sections)
    done = runbook("run", *numbers, "--target", "shop", "--incident", "INC-1", "--json", env=env, cwd=tmp_path)
    said = json.loads(done.stdout)
    assert (done.returncode, said["status"]) == (0, "OK"), done.stdout
    assert [f["status"] for run in said["runs"] for f in run["findings"]] == ["OK"] * 19


@pytest.mark.slow
def test_undecided_stays_so_when_it_is_told_twice(system: System, env: dict[str, str], tmp_path: Path) -> None:
    """Section 3 and 4.1 tell of the same observations."""
    system.worker("--queues", "mails")
    system.running_job(queue="mails")
    system.defer("send", 3)
    system.passes(90)
    done = runbook("triage", "--target", "shop", "--incident", "INC-1", "--json", env=env, cwd=tmp_path)
    verdict = valid(json.loads(done.stdout), "run")["verdict"]
    assert verdict["stuck_at"] is None
    assert max(mode["score"] for mode in verdict["failure_modes"]) < 0.5
