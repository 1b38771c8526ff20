"""Jobs are carried out whatever happens: one artifact each, one message each, whoever is killed when."""

from __future__ import annotations

import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from multiprocessing import active_children
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from runbook_lib.gameday.sandbox.state import free_ports
from runbook_lib.model.order import Order
from runbook_lib.model.usage import UsageError
from runbook_lib.receiver import dispatcher, loop, notify
from runbook_lib.receiver.alert import Alert
from runbook_lib.receiver.database import JournalError
from runbook_lib.receiver.dispatcher import Dispatcher
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.receiver.work import Job
from runbook_lib.runs import executors, forks
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import ACTION, NOTE, Archive, OutputError
from tests.kit import ROOT, web
from tests.kit.dispatching import CONFIG, FOUND, Odd, dispatched, dispatcher_of, firing
from tests.kit.journal import messages_of
from tests.kit.waiting import until

#: A section that takes little time and points to no other.
SECTION = "2"
TOML = """
deadline_s = 20
[targets.gone]
database_url = "postgresql://u@127.0.0.1:1/x"
[targets.away]
database_url = "postgresql://u@127.0.0.1:1/x"
[targets.slow]
database_url = "postgresql://u@127.0.0.1:{silent}/x"
nats_url = "nats://127.0.0.1:{silent}"
nats_monitor_url = "http://127.0.0.1:{silent}"
[targets.slower]
database_url = "postgresql://u@127.0.0.1:{silent}/x"
[receiver]
workers = 3
[[routes]]
alertname = "Restart"
sections = ["5.1"]
parameters = {{ execute = true, approved_by = "Aoki", reason = "it always helps" }}
[[routes]]
sections = ["{section}"]
"""


class Sink:
    """Where messages go: takes what apprise posts."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        (self.port,) = free_ports(1)
        self._open = ExitStack()

    def open(self) -> None:
        self._open.enter_context(web.web(self._take, self.port))

    def close(self) -> None:
        self._open.close()

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        self.taken.append(web.told(request))
        web.reply(request)


class Receiver:
    """A journal, and the process that works it off."""

    def __init__(self, folder: Path, sink: Sink, silent: int) -> None:
        self.folder, self.sink = folder, sink
        (folder / "runbook.toml").write_text(TOML.format(silent=silent, section=SECTION))
        self.process: subprocess.Popen[bytes] | None = None

    def accept(self, *alerts: Alert, toml: str | None = None) -> None:
        config = Settings(**tomllib.loads(toml or (self.folder / "runbook.toml").read_text()))
        journal = Journal(self.folder / "journal.db")
        for alert in alerts:
            journal.accept([alert], config, time.time())
        journal.close()

    def start(self, **options: Any) -> None:
        env = os.environ | {"RUNBOOK_NOTIFY_URLS": f"json://127.0.0.1:{self.sink.port}"}
        env.pop("RUNBOOK_CONFIG", None)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "kit" / "receive.py"), json.dumps(options)], cwd=self.folder, env=env
        )

    def ends(self, timeout_s: float = 90) -> None:
        assert self.process is not None
        assert self.process.wait(timeout_s) == 0

    def tree(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            tree = self.tree()
            self.process.kill()
            self.process.wait()
            _, alive = psutil.wait_procs(tree, timeout=10)
            assert not alive, "something runs on that nobody waits for"

    def rows(self, question: str) -> list[Any]:
        with sqlite3.connect(f"file:{self.folder}/journal.db?mode=ro", uri=True) as db:
            return db.execute(question).fetchall()

    def jobs(self, columns: str, where: str = "true") -> list[Any]:
        return self.rows(f"SELECT {columns} FROM work WHERE kind <> 'message' AND {where}")

    def until(self, holds: Callable[[], Any]) -> Any:
        def seen() -> Any:
            with suppress(psutil.Error, sqlite3.Error):
                return holds()

        return until(seen, within=120)

    def archive(self, incident: str) -> Archive:
        return Archive(str(self.folder / "out"), incident)

    def artifacts(self, incident: str) -> Counter[str]:
        """How many of each section, "" for verdicts; whole."""
        archive = self.archive(incident)
        assert archive.problems() == []
        return Counter(e.get("section", "") for e in archive.artifacts())

    def told(self, incident: str) -> list[dict[str, Any]]:
        return [m for m in self.sink.taken if m["title"].endswith(f" · {incident}")]


class Silent:
    """A socket that accepts and says nothing, until it is told to hang up."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        self.hangs_up = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                if self.hangs_up:
                    connection.close()
                else:
                    self._open.append(connection)

    def hang_up(self) -> None:
        self.hangs_up = True
        for connection in self._open:
            connection.close()

    def close(self) -> None:
        self.hang_up()
        self._server.close()


@contextmanager
def made(folder: Path) -> Iterator[tuple[Receiver, Silent]]:
    sink, silent = Sink(), Silent()
    receiver = Receiver(folder, sink, silent.port)
    try:
        yield receiver, silent
    finally:
        receiver.kill()
        sink.close()
        silent.close()


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple[Receiver, Silent]]:
    with made(tmp_path) as parts:
        yield parts


# What a night brings, all at once.


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with made(tmp_path_factory.mktemp("night")) as (receiver, _):
        receiver.sink.open()
        once = (receiver.folder / "runbook.toml").read_text()
        receiver.accept(firing("lost", "lost"), toml=f'{once}\n[targets.lost]\nnats_url = "nats://127.0.0.1:1"')
        receiver.accept(
            firing("hung", "slow"), firing("plain"), firing("plain", ended=True), firing("acts", "away", "Restart"),
            firing("unwritable", "away"),
        )  # fmt: skip
        (receiver.folder / "out").mkdir()
        (receiver.folder / "out" / "unwritable").write_text("where a folder should be")
        receiver.start()
        receiver.until(lambda: receiver.jobs("1", "incident = 'unwritable' AND attempts > 1"))
        (receiver.folder / "out" / "unwritable").unlink()
        receiver.ends()
        yield receiver


@pytest.mark.slow
def test_an_alert_and_its_end_are_investigated_and_noted_and_the_same_verdict_is_told_once(night: Receiver) -> None:
    assert night.artifacts("plain") == {SECTION: 1, "6": 1, "": 2}, "one of the alert, one of its end"
    (told,) = night.told("plain")
    assert "UNKNOWN" in told["title"] and told["type"] == "info"
    assert "Late firing" in told["message"] and f"section {SECTION}" in told["message"]
    assert told["message"].endswith("out/plain/index.html")
    notes = night.archive("plain").lines(NOTE)
    assert [(n["who"], n["text"].split(":")[0]) for n in notes] == [
        ("alert", text) for text in ("Late firing", "Late resolved", "alert resolved; result of section 6")
    ]
    said = json.dumps([night.sink.taken, notes])
    assert "hunter2" not in said and "alice" not in said
    assert "result of section 6" in (night.folder / "out" / "plain" / "index.html").read_text(encoding="utf-8")
    assert night.rows("SELECT closed IS NULL FROM incidents WHERE id = 'plain'") == [(0,)]


@pytest.mark.slow
def test_what_an_alert_started_carries_nothing_out(night: Receiver) -> None:
    (action,) = night.archive("acts").lines(ACTION)
    assert (action["result"], action["action"]) == ("refused", "restart")
    assert "unattended" in action["why"]["en"]


@pytest.mark.slow
def test_a_target_that_is_gone_is_given_up_at_once_and_told(night: Receiver) -> None:
    ((state, attempts, problem),) = night.jobs("state, attempts, problem", "incident = 'lost'")
    assert (state, attempts) == ("failed", 1)
    assert "unknown target 'lost'" in problem
    (told,) = night.told("lost")
    assert problem in told["message"]


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_tried_again(night: Receiver) -> None:
    ((state, attempts),) = night.jobs("state, attempts", "incident = 'unwritable'")
    assert state == "done" and attempts > 1
    assert night.artifacts("unwritable") == {SECTION: 1, "": 1}
    assert len(night.archive("unwritable").lines(NOTE)) == len(night.told("unwritable")) == 1


@pytest.mark.slow
def test_a_target_that_hangs_holds_up_no_other(night: Receiver) -> None:
    rows = night.jobs("incident, started, ended", "kind = 'firing'")
    jobs = {incident: (started, ended) for incident, started, ended in rows}
    assert jobs["plain"][0] < jobs["hung"][1], "it does not wait for its end"
    assert night.artifacts("hung") == {SECTION: 1, "": 1}


# Whoever is killed when.


@pytest.mark.slow
def test_killed_during_a_run(parts: tuple[Receiver, Silent]) -> None:
    receiver, silent = parts
    receiver.sink.open()
    receiver.accept(firing("I", "slow"))
    receiver.start()
    receiver.until(lambda: runners(receiver, silent))
    receiver.kill()
    assert receiver.jobs("state, attempts") == [("running", 1)]
    silent.hang_up()
    receiver.start()
    receiver.ends()
    assert receiver.jobs("state, attempts") == [("done", 2)]
    assert receiver.artifacts("I") == {SECTION: 1, "": 1}
    assert len(receiver.archive("I").lines(NOTE)) == len(receiver.told("I")) == 1


@pytest.mark.slow
def test_killed_between_the_run_and_what_is_told_of_it(parts: tuple[Receiver, Silent]) -> None:
    receiver, _ = parts
    receiver.accept(firing("I"), firing("J", "away"))
    receiver.start()
    receiver.until(lambda: len(receiver.rows("SELECT 1 FROM work WHERE kind = 'message' AND attempts > 0")) == 2)
    receiver.kill()
    assert receiver.artifacts("J") == {SECTION: 1, "": 1}
    # A moment earlier: everything is in the archive, and the journal does not know.
    with sqlite3.connect(receiver.folder / "journal.db") as db:
        db.execute("UPDATE work SET state = 'running' WHERE kind <> 'message' AND incident = 'J'")
        db.execute("UPDATE incidents SET verdict = NULL WHERE id = 'J'")
        db.execute("DELETE FROM reported WHERE incident = 'J'")
        db.execute("DELETE FROM work WHERE kind = 'message' AND incident = 'J'")
    receiver.sink.open()
    receiver.start()
    receiver.ends()
    for incident in "IJ":
        assert receiver.artifacts(incident) == {SECTION: 1, "": 1}
        assert len(receiver.told(incident)) == len(receiver.archive(incident).lines(NOTE)) == 1
    sent = receiver.rows("SELECT state, attempts > 1 FROM work WHERE kind = 'message' ORDER BY incident")
    assert sent == [("done", 1), ("done", 0)]


@pytest.mark.slow
def test_an_investigation_and_a_runner_are_killed(parts: tuple[Receiver, Silent]) -> None:
    receiver, silent = parts
    receiver.sink.open()
    receiver.accept(firing("I", "slow"), firing("J", "slower"))
    receiver.start()
    first, second = receiver.until(lambda: len(found := runners(receiver, silent)) == 2 and found)
    first.parent().kill()
    second.kill()
    assert not psutil.wait_procs([first, second], timeout=10)[1]
    silent.hang_up()
    receiver.ends()
    assert sorted(receiver.jobs("attempts, state")) == [(1, "done"), (2, "done")]
    entries = [e for i in "IJ" for e in receiver.archive(i).artifacts() if "section" in e]
    assert sorted(e["problem"] for e in entries) == ["", "the runner was killed"]
    for incident in "IJ":
        assert receiver.artifacts(incident) == {SECTION: 1, "": 1}
        assert len(receiver.told(incident)) == 1


@pytest.mark.slow
def test_a_full_disk_is_waited_for(parts: tuple[Receiver, Silent]) -> None:
    """Files of the runners may not grow beyond a few kB, then they may."""
    receiver, _ = parts
    receiver.sink.open()
    receiver.accept(firing("I"))
    receiver.start(file_size=10_000, first_wait_s=0.5)
    receiver.until(lambda: receiver.jobs("1", "problem LIKE '%could not be written%'"))
    receiver.until(lambda: receiver.told("I"))  # what was found need not wait for room
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for process in receiver.tree():
        with suppress(psutil.NoSuchProcess):
            process.rlimit(resource.RLIMIT_FSIZE, unlimited)
    receiver.ends()
    ((attempts, state, problem),) = receiver.jobs("attempts, state, problem")
    assert attempts > 1 and (state, problem) == ("done", "")
    assert receiver.artifacts("I") == {SECTION: 1, "": 1}
    assert len(receiver.archive("I").lines(NOTE)) == len(receiver.told("I")) == 1


@pytest.mark.slow
def test_a_journal_that_was_lost_brings_back_no_old_verdict(parts: tuple[Receiver, Silent]) -> None:
    """The alert still fires, its dossier is there, and the new journal begins to count at one."""
    receiver, _ = parts
    receiver.sink.open()
    for runs in (1, 2):
        receiver.accept(firing("I"))
        receiver.start()
        receiver.ends()
        assert receiver.artifacts("I") == {SECTION: runs, "": runs}
        assert len(receiver.told("I")) == runs
        (receiver.folder / "journal.db").unlink()
    assert len(receiver.archive("I").lines(NOTE)) == 2


def runners(receiver: Receiver, silent: Silent) -> list[psutil.Process]:
    """The runners that wait for an answer."""
    return [p for p in receiver.tree() if any(c.raddr and c.raddr[1] == silent.port for c in p.net_connections())]


# What executors do.


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(loop, "POLL_S", 0.02)


def wait_for_runs(journal: Journal, n: int) -> None:
    until(lambda: [j.state for j in journal.incidents()[0].jobs] == ["done"] * n, lambda: repr(journal.incidents()))


def at_first(monkeypatch: pytest.MonkeyPatch, of: Any, name: str, times: int, error: Exception) -> None:
    """Have a function raise the error so many times before it works."""
    real, left = getattr(of, name), [error] * times

    def flaky(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args, **kwargs)

    monkeypatch.setattr(of, name, flaky)


def settled(journal: Journal, state: str) -> Any:
    until(lambda: journal.incidents()[0].jobs[0].state == state, lambda: repr(journal.incidents()))
    return journal.incidents()[0].jobs[0]


@pytest.mark.parametrize(
    "problem",
    [
        BrokenExecutor("a worker was killed"), CancelledError(), OSError(28, "No space left on device"),
        OutputError("output folder cannot be written"), RuntimeError("lost"), KeyboardInterrupt(),
        FOUND | {"problem": "the runner was killed"},
    ],
    ids=lambda p: type(p).__name__,
)  # fmt: skip
def test_whatever_an_executor_does_the_job_is_done_again(tmp_path: Path, problem: Any) -> None:
    executor = Odd(problem, problem, FOUND)
    with dispatched(tmp_path, executor) as (journal, metrics):
        job = settled(journal, "done")
        assert (job.attempts, job.problem) == (3, "")
        assert len(journal.due_messages(time.time())) == 1
        assert metrics.registry.get_sample_value("runbook_investigations_retried_total") == 2
    assert [(o.job, o.again, o.unattended) for o in executor.orders] == [(job.key, True, True)] * 3
    assert len(Archive(str(tmp_path / "out"), "I").lines(NOTE)) == 1


def test_a_verdict_that_came_too_early_is_followed_by_one_more_run(tmp_path: Path) -> None:
    early: dict[str, Any] = {"status": "WARNING", "stuck_at": None, "failure_modes": [], "look_again_s": 0.2}
    executor = Odd(FOUND | {"document": FOUND["document"] | {"verdict": early}}, FOUND)
    with dispatched(tmp_path, executor) as (journal, metrics):
        until(lambda: metrics.registry.get_sample_value("runbook_investigations_finished_total", {"status": "OK"}) == 1)
        assert metrics.registry.get_sample_value("runbook_alert_to_artifact_seconds_count") == 1
        assert settled(journal, "done").rerun
        assert len({o.job for o in executor.orders}) == 2, "each has its artifacts"
        assert [m.status for m in journal.due_messages(time.time())] == ["WARNING"]  # the other waits for it
    first, second = (n["text"] for n in Archive(str(tmp_path / "out"), "I").lines(NOTE))
    assert "もう一度調査します" in second and second.endswith(first)


def test_an_alert_after_the_recovery_is_told_as_a_further_outage(tmp_path: Path) -> None:
    with dispatched(tmp_path, Odd(FOUND)) as (journal, _):
        for jobs, ended in enumerate((False, True, False), start=1):
            journal.accept([firing("I", ended=ended)], CONFIG, time.time())
            wait_for_runs(journal, jobs)
        titles = [message["title"] for message in messages_of(journal)]
        assert titles == ["OK · I", "再発: OK · I"], "the recovery has the verdict of the first run: it is told once"
    texts = [n["text"] for n in Archive(str(tmp_path / "out"), "I").lines(NOTE)]
    assert len(texts) == 4 and texts[-1].startswith("回復の確認後に再び発生しました: Late firing")


def test_a_recovery_that_is_not_ok_is_checked_once_more(tmp_path: Path) -> None:
    slow: dict[str, Any] = {"status": "WARNING", "stuck_at": None, "failure_modes": [], "look_again_s": 0.1}
    executor = Odd(FOUND, FOUND | {"document": FOUND["document"] | {"verdict": slow}})
    with dispatched(tmp_path, executor) as (journal, _):
        settled(journal, "done")
        journal.accept([firing("I", ended=True)], CONFIG, time.time())
        until(lambda: journal.incidents()[0].closed is not None, lambda: repr(journal.incidents()), 30)
        assert [m["status"] for m in messages_of(journal)] == ["OK", "WARNING"], "one for each changed verdict"
    assert [o.sections for o in executor.orders] == [("3",), ("6",), ("6",)]
    notes = [n["text"] for n in Archive(str(tmp_path / "out"), "I").lines(NOTE)]
    assert sum("回復をもう一度確認します" in n for n in notes) == 1


@pytest.mark.parametrize(
    ("kind", "status", "named", "seconds"),
    [
        ("firing", "WARNING", 20.0, 20.0), ("firing", "CRITICAL", None, None), ("resolved", "WARNING", 20.0, 20.0),
        ("resolved", "CRITICAL", None, 300.0), ("resolved", "OK", None, None), ("resolved", "UNKNOWN", 20.0, None),
    ],
)  # fmt: skip
def test_when_a_verdict_may_change(kind: Any, status: str, named: float | None, seconds: float | None) -> None:
    job = Job(1, "k", "I", kind, ("3",), "gone", {}, "a", False, False, "running", 1, 0.0, 0.0, None, "")
    assert dispatcher._seconds_to_rerun(job, {"status": status, "look_again_s": named}) == seconds


def test_after_the_last_try_it_is_given_up_and_told(tmp_path: Path) -> None:
    executor = Odd(RuntimeError("password=hunter2"))
    with dispatched(tmp_path, executor) as (journal, metrics):
        job = settled(journal, "failed")
        assert (job.attempts, job.problem) == (dispatcher.ATTEMPTS, "RuntimeError: password=***")
        (message,) = journal.due_messages(time.time())
        assert "hunter2" not in message.body and "調査を実行できませんでした" in message.title
        assert metrics.registry.get_sample_value("runbook_investigations_failed_total") == 1
    assert [o.again for o in executor.orders] == [True] * (dispatcher.ATTEMPTS - 1) + [False]


def test_after_the_last_try_what_was_found_is_told_with_its_problem(tmp_path: Path) -> None:
    with dispatched(tmp_path, Odd(FOUND | {"problem": "disk full"})) as (journal, _):
        assert settled(journal, "done").problem == "disk full"
        (message,) = journal.due_messages(time.time())
        assert message.status == "OK" and "disk full" in message.body


def test_an_output_that_cannot_be_opened_leaves_no_job_running(tmp_path: Path) -> None:
    journal, metrics = Journal(tmp_path / "journal.db"), Metrics()
    journal.accept([firing("I")], CONFIG, time.time())
    jobs = Dispatcher(journal, CONFIG, "nosuch://there", Odd(FOUND | {"index": None}), metrics, places=["p"])
    jobs.start()
    assert settled(journal, "done").attempts == dispatcher.ATTEMPTS
    (message,) = journal.due_messages(time.time())
    assert message.body.endswith("nosuch://there/I")
    jobs.stop()
    journal.close()


@pytest.mark.parametrize("failures", [1, 99])
def test_a_result_that_cannot_be_reported_leaves_no_job_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    at_first(monkeypatch, notify, "compose", failures, KeyError("password=hunter2"))
    with dispatched(tmp_path, Odd(FOUND)) as (journal, metrics):
        job = settled(journal, "done" if failures == 1 else "failed")
        assert job.attempts == min(failures + 1, dispatcher.ATTEMPTS)
        (message,) = journal.due_messages(time.time())
        assert message.title.endswith(" · I") and "hunter2" not in message.body + job.problem
        assert metrics.registry.get_sample_value("runbook_investigations_failed_total") == float(failures > 1)


def test_a_thread_that_does_not_start_leaves_no_job_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_first(monkeypatch, loop.Loop, "start_work", 2, RuntimeError("can't start new thread"))
    with dispatched(tmp_path, Odd(FOUND)) as (journal, _):
        assert settled(journal, "done").attempts == 3


def test_the_journal_is_trimmed_at_the_start_and_every_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "TRIM_S", 0.1)
    kept: list[int] = []
    monkeypatch.setattr(Journal, "trim", lambda journal, keep: kept.append(keep))
    with dispatched(tmp_path, Odd(FOUND)) as (journal, _):
        settled(journal, "done")
        until(lambda: len(kept) >= 3, "it to be trimmed again")
    assert set(kept) == {Settings().receiver.keep_runs}


def test_wrong_settings_are_not_tried_again(tmp_path: Path) -> None:
    executor = Odd(UsageError("unknown section"))
    with dispatched(tmp_path, executor) as (journal, _):
        assert settled(journal, "failed").attempts == 1


def test_an_investigation_that_never_comes_back_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "LOST_S", -179.8)
    with dispatched(tmp_path, Odd(None, FOUND)) as (journal, _):
        assert settled(journal, "done").attempts == 2


def hang(_: Order) -> None:
    with forks.interruptible():
        time.sleep(60)


def test_a_hung_investigation_leaves_no_thread_and_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_run_investigation", hang)
    monkeypatch.setattr(executors, "HUNG_S", 0.5 - CONFIG.deadline_s)
    with ThreadPoolExecutor(1) as pool, dispatched(tmp_path, pool) as (journal, _):
        until(lambda: journal.incidents()[0].jobs[0].attempts > 2, "the thread to take another order", 30)
        assert "no answer within" in journal.incidents()[0].jobs[0].problem
    assert not [p for p in active_children() if p.is_alive()]


def test_what_a_person_runs_has_no_such_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float | None] = []
    monkeypatch.setattr(forks, "call", lambda *_, hear, within_s: limits.append(within_s))
    for unattended in (True, False):
        executors.carry_out(Order(sections=("5.1",), output="o", deadline_s=60, unattended=unattended))
    assert limits == [60 + executors.HUNG_S, None], "an action may take longer than its deadline"


def test_a_journal_that_cannot_be_used_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, times in {"recover": 2, "next_job": 2, "conclude": 3}.items():
        at_first(monkeypatch, Journal, name, times, JournalError("locked"))
    executor = Odd(FOUND)
    with dispatched(tmp_path, executor) as (journal, _):
        settled(journal, "done")
    assert len(executor.orders) == 1


def test_a_stop_does_not_wait_for_long_and_loses_nothing(tmp_path: Path) -> None:
    journal, executor = Journal(tmp_path / "journal.db"), Odd(None)
    journal.accept([firing("I")], CONFIG, time.time())
    jobs = dispatcher_of(tmp_path, journal, executor, Metrics())
    assert not jobs.alive and jobs.stop(0)
    jobs = dispatcher_of(tmp_path, journal, executor, Metrics())
    jobs.start()
    until(lambda: executor.orders, "an order")
    assert jobs.alive
    assert not jobs.stop(0.3)
    assert not jobs.alive
    assert journal.incidents()[0].jobs[0].state == "running"
    journal.close()
    again = Journal(tmp_path / "journal.db")
    assert again.recover(time.time()) == 1
    again.close()


def test_a_stop_waits_for_work_that_is_just_being_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is taken from the journal, and its thread starts only after the stop."""
    journal, executor, jobs = Journal(tmp_path / "journal.db"), Odd(None), list[Dispatcher]()
    journal.accept([firing("I")], CONFIG, time.time())
    real = journal.next_job

    def next_job(*given: Any) -> Any:
        job = real(*given)
        until(jobs[0].stopping.is_set)
        time.sleep(0.2)
        return job

    monkeypatch.setattr(journal, "next_job", next_job)
    jobs.append(dispatcher_of(tmp_path, journal, executor, Metrics()))
    jobs[0].start()
    until(lambda: journal.counts()["jobs_running"])
    assert not jobs[0].stop(2), "a job is at work"
    until(lambda: executor.orders)
    monkeypatch.undo()
    journal.close()


class Idle(loop.Loop):
    """A loop without a journal."""

    def poll(self) -> None:
        """Find nothing to do."""


def test_work_whose_thread_does_not_start_leaves_its_key_free(monkeypatch: pytest.MonkeyPatch) -> None:
    idle, done = Idle("idle"), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            idle.start_work("shop", done.set)
    assert idle.busy == []
    idle.start_work("shop", done.set)
    assert done.wait(5)
    until(lambda: not idle.busy)
