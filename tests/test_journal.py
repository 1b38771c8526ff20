"""The journal: what was accepted is there, each thing leads to one job, and nothing is open for ever."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runbook_lib.alerts import journal as journals
from runbook_lib.alerts.alert import Alert
from runbook_lib.alerts.journal import Job, Journal, JournalError
from runbook_lib.settings import Route, Settings
from runbook_lib.usage import UsageError

GONE = {"database_url": "postgresql://u@127.0.0.1:1/x"}
CONFIG = Settings(targets={"main": GONE, "other": GONE}, routes=[Route(alertname="Db", sections=["4.2"])])
WINDOW_S = CONFIG.receiver.window_minutes * 60


def firing(name: str = "Late", fingerprint: str = "1", group: str = "g", ended: bool = False, **labels: str) -> Alert:
    return Alert(name, not ended, fingerprint, {"alertname": name} | labels, "slow", pd.Timestamp(0, tz="UTC"), group)


def resolved(name: str = "Late", fingerprint: str = "1") -> Alert:
    return firing(name, fingerprint, ended=True)


def verdict(status: str = "CRITICAL", stuck_at: str | None = "relay") -> dict[str, Any]:
    return {"status": status, "stuck_at": stuck_at, "failure_modes": []}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


def taken(journal: Journal, now: float, *busy: str) -> Job:
    job = journal.next_job(now, busy)
    assert job is not None
    return job


def done(journal: Journal, now: float, status: str = "CRITICAL", **more: Any) -> Job:
    job = taken(journal, now)
    journal.concluded(job, verdict(status), now, **more)
    return job


def test_an_alert_is_one_job_and_a_repeat_is_counted(journal: Journal) -> None:
    first = journal.accept([firing()], CONFIG, 0)
    assert (len(first.jobs), first.counted) == (1, 0)
    again = journal.accept([firing()], CONFIG, WINDOW_S - 1)
    assert (again.jobs, again.counted) == ((), 1)
    later = journal.accept([firing()], CONFIG, WINDOW_S + 1)
    assert len(later.jobs) == 1
    (incident,) = journal.incidents()
    assert [j.key for j in incident.jobs] == [f"{incident.id}/firing/3/{n}" for n in (1, 2)]
    assert (incident.alerts, incident.repeats) == (1, 2)


def test_alerts_of_a_group_share_a_job_and_a_new_one_is_no_new_job(journal: Journal) -> None:
    assert len(journal.accept([firing("Late", str(n)) for n in range(5)], CONFIG, 0).jobs) == 1
    more = journal.accept([firing("Late", "9")], CONFIG, 10)
    (incident,) = journal.incidents()
    assert more.jobs == (incident.jobs[0].id,) and len(incident.jobs) == 1
    assert incident.alerts == 6


def test_another_route_of_the_group_is_another_job_of_the_incident(journal: Journal) -> None:
    journal.accept([firing(), firing("Db", "2")], CONFIG, 0)
    (incident,) = journal.incidents()
    assert [j.sections for j in incident.jobs] == [("3",), ("4.2",)]
    assert incident.jobs[0].parameters["detected_by"] == "alert" and incident.jobs[1].parameters == {}


def test_a_named_incident_may_have_two_targets(journal: Journal) -> None:
    alerts = [firing(fingerprint=t, incident="INC-1", runbook_target=t) for t in ("main", "other")]
    assert len(journal.accept(alerts, CONFIG, 0).jobs) == 2
    (incident,) = journal.incidents()
    assert [(j.target, j.number) for j in incident.jobs] == [("main", 1), ("other", 2)]
    assert len({j.key for j in incident.jobs}) == 2


def test_a_thousand_alerts_of_fifty_groups_are_fifty_jobs(journal: Journal) -> None:
    for n in range(1000):
        journal.accept([firing(fingerprint=str(n), group=f"group-{n % 50}")], CONFIG, n * 0.01)
    assert journal.counts()["jobs_waiting"] == journal.counts()["incidents_open"] == 50


def test_the_end_of_the_last_alert_looks_at_the_recovery_and_closes(journal: Journal) -> None:
    journal.accept([firing(fingerprint="1"), firing(fingerprint="2")], CONFIG, 0)
    done(journal, 1)
    assert journal.accept([resolved("Late", "1")], CONFIG, 2).jobs == ()
    assert len(journal.accept([resolved("Late", "2")], CONFIG, 3).jobs) == 1
    assert journal.incidents()[0].closed is None
    job = done(journal, 4, "OK")
    assert (job.kind, job.sections) == ("resolved", ("6",))
    assert journal.incidents()[0].closed == 4
    assert journal.accept([resolved("Late", "2")], CONFIG, 5).jobs == ()


def test_an_end_without_a_beginning_is_only_counted(journal: Journal) -> None:
    assert journal.accept([resolved()], CONFIG, 0) == journals.Accepted((), 1)
    assert journal.incidents() == []


def test_what_begins_again_while_its_end_is_looked_at_stays_open(journal: Journal) -> None:
    journal.accept([firing()], CONFIG, 0)
    done(journal, 1)
    journal.accept([resolved()], CONFIG, 2)
    job = taken(journal, 3)
    journal.accept([firing()], CONFIG, 4)
    journal.concluded(job, verdict("OK"), 5)
    assert journal.incidents()[0].closed is None
    journal.accept([resolved()], CONFIG, 6)
    assert journal.incidents()[0].closed == 6  # it was looked at within the window


def test_a_recovery_is_looked_at_after_whatever_came_since_the_last_look(journal: Journal) -> None:
    journal.accept([firing()], CONFIG, 0)
    done(journal, 1)
    journal.accept([resolved()], CONFIG, WINDOW_S - 10)
    done(journal, WINDOW_S - 9, "OK")
    journal.accept([firing()], CONFIG, WINDOW_S + 1)
    journal.accept([resolved()], CONFIG, WINDOW_S + 2)
    assert [j.kind for j in journal.incidents()[0].jobs] == ["firing", "resolved"] * 2
    assert journal.incidents()[0].closed is None


def test_one_job_a_target_and_an_incident_keeps_its_order(journal: Journal) -> None:
    journal.accept([firing(group="a"), firing("Db", "2", "a")], CONFIG, 0)
    journal.accept([firing(group="b", runbook_target="other")], CONFIG, 0)
    first = taken(journal, 1)
    assert first.target == "main" and first.attempts == 1
    assert taken(journal, 1, "main").target == "other"
    assert journal.next_job(1, ["main", "other"]) is None
    journal.again(first, 100, "disk full")
    assert journal.next_job(50, []) is None, "a later job of the incident went before the one that is tried again"
    retried = taken(journal, 100)
    assert (retried.id, retried.attempts, retried.problem) == (first.id, 2, "disk full")


def test_what_came_too_early_is_looked_at_once_more_and_holds_up_nothing(journal: Journal) -> None:
    journal.accept([firing()], CONFIG, 0)
    first = done(journal, 1, "WARNING", second_look=(60, "again"))
    assert journal.next_job(59, []) is None
    journal.accept([firing("Db", "2")], CONFIG, 10)
    assert done(journal, 11).sections == ("4.2",)
    again = taken(journal, 60)
    assert (again.key, again.alert) == (f"{first.key}/again", "again")
    assert (again.sections, again.parameters, again.number) == (first.sections, first.parameters, 2)
    journal.concluded(again, verdict(), 61, second_look=(120, "and again"))
    assert journal.next_job(1000, []) is None, "a second look is looked at again"


def test_what_has_ended_is_not_looked_at_again(journal: Journal) -> None:
    journal.accept([firing()], CONFIG, 0)
    done(journal, 1, "WARNING", second_look=(60, "again"))
    journal.accept([resolved()], CONFIG, 2)
    assert done(journal, 3, "OK", second_look=(60, "again")).kind == "resolved"
    assert journal.next_job(100, []) is None
    assert journal.incidents()[0].closed == 3


def test_a_changed_verdict_is_one_message_a_place(journal: Journal) -> None:
    told = {"places": ["p", "q"], "message": ("title", "body")}
    for n in range(3):
        journal.accept([firing()], CONFIG, n * WINDOW_S * 2)
        done(journal, n * WINDOW_S * 2 + 1, "CRITICAL" if n < 2 else "OK", **told)
    due = journal.due_messages(10 * WINDOW_S)
    assert [(m.place, m.status) for m in due] == [("p", "CRITICAL"), ("q", "CRITICAL")], "the newer ones wait"
    journal.sent(due[0], 10 * WINDOW_S)
    journal.not_sent(due[1], 11 * WINDOW_S, "refused")
    assert [(m.place, m.status) for m in journal.due_messages(10 * WINDOW_S)] == [("p", "OK")]
    journal.not_sent(due[1], None, "given up")
    assert [(m.place, m.status) for m in journal.due_messages(12 * WINDOW_S)] == [("p", "OK"), ("q", "OK")]
    assert journal.counts()["messages_failed"] == 1


def test_what_is_given_up_is_told(journal: Journal) -> None:
    journal.accept([firing()], CONFIG, 0)
    journal.failed(taken(journal, 1), 2, "no such target", ["p"], ("t", "b"))
    assert [(m.status, m.title) for m in journal.due_messages(3)] == [("UNKNOWN", "t")]
    assert journal.incidents()[0].jobs[0].state == "failed"


def test_what_ran_waits_again(journal: Journal, tmp_path: Path) -> None:
    journal.accept([firing()], CONFIG, 0)
    job = taken(journal, 1)
    journal.close()
    journal = Journal(tmp_path / "journal.db")
    assert journal.recover(2) == 1
    assert taken(journal, 2).key == job.key
    journal.close()


def test_one_receiver_at_a_time(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in use by another receiver"):
        Journal(tmp_path / "journal.db")
    journal.close()
    assert [p.name for p in tmp_path.iterdir()] == ["journal.db"]
    Journal(tmp_path / "journal.db").close()


def test_a_file_that_is_no_journal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and longer than a header is" * 20)
    for name in ("text", "text/below"):
        with pytest.raises(UsageError, match="cannot be") as e:
            Journal(tmp_path / name)
        assert "\n" not in str(e.value)


def test_a_journal_that_is_locked_is_an_error_and_keeps_nothing(journal: Journal, tmp_path: Path) -> None:
    journal._db.execute("PRAGMA busy_timeout = 100")
    other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match="locked") as e:
        journal.accept([firing()], CONFIG, 0)
    assert "\n" not in str(e.value)
    assert journal.incidents() == []
    other.execute("ROLLBACK")
    assert len(journal.accept([firing()], CONFIG, 0).jobs) == 1
    other.close()


_ACCEPTS = """
import sys
sys.path.insert(0, "tests")
from test_journal import CONFIG, Journal, firing
journal = Journal(sys.argv[1])
n = 0
while True:
    journal.accept([firing(fingerprint=str(n), group=str(n))], CONFIG, n)
    print(n, flush=True)
    n += 1
"""


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    child = subprocess.Popen(
        [sys.executable, "-c", _ACCEPTS, str(file)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 20:
            break
    os.kill(child.pid, signal.SIGKILL)
    answered = 20 + sum(1 for line in child.stdout if line.strip())
    child.wait()
    journal = Journal(file)
    assert answered < journal.counts()["jobs_waiting"] <= answered + 2
    journal.close()


class Alerting(RuleBasedStateMachine):
    """Alerts begin, end and repeat, jobs run and fail, time passes and the receiver is killed; in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 0.0
        self.running: list[Job] = []
        self.firing: set[tuple[str, str, str]] = set()
        self.open()

    def open(self) -> None:
        self.journal = Journal(Path(self.folder.name) / "journal.db")
        self.journal._db.execute("PRAGMA synchronous = OFF")

    @rule(
        alerts=st.lists(
            st.tuples(st.sampled_from("ab"), st.sampled_from(["Late", "Db"]), st.sampled_from("12"), st.booleans()),
            min_size=1,
            max_size=3,
            unique_by=lambda a: a[:3],
        )
    )
    def receive(self, alerts: list[tuple[str, str, str, bool]]) -> None:
        for group in {a[0] for a in alerts}:
            own = [a for a in alerts if a[0] == group]
            self.journal.accept([firing(n, n + f, g, ended=e) for g, n, f, e in own], CONFIG, self.now)
        for *which, ended in alerts:
            (self.firing.discard if ended else self.firing.add)(tuple(which))  # type: ignore[arg-type]

    @rule()
    def begin(self) -> None:
        job = self.journal.next_job(self.now, [j.target for j in self.running])
        self.running += [job] if job else []

    @precondition(lambda self: self.running)
    @rule(status=st.sampled_from(["OK", "CRITICAL", "again", "failed"]))
    def end(self, status: str) -> None:
        job = self.running.pop()
        if status == "again":
            self.journal.again(job, self.now + 5, "problem")
        elif status == "failed":
            self.journal.failed(job, self.now, "problem", ["p"], ("t", "b"))
        else:
            self.journal.concluded(job, verdict(status), self.now, places=["p"], message=("t", "b"))

    @rule(seconds=st.sampled_from([1.0, 60.0, WINDOW_S / 2, WINDOW_S + 1]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def kill(self) -> None:
        self.journal.close()
        self.open()
        assert self.journal.recover(self.now) == len(self.running)
        self.running = []

    @invariant()
    def one_job_a_window(self) -> None:
        for incident in self.journal.incidents():
            looked_at: dict[tuple[str, ...], float] = {}
            before = None
            for job in incident.jobs:
                if job.kind == "firing":
                    assert job.accepted - looked_at.get(job.sections, -1e9) >= WINDOW_S
                    looked_at[job.sections] = job.accepted
                elif before and before.kind == "resolved":
                    assert job.accepted - before.accepted >= WINDOW_S
                before = job

    @invariant()
    def open_as_long_as_there_is_something(self) -> None:
        for incident in self.journal.incidents():
            alerts = self.journal._rows("SELECT 1 FROM alerts WHERE incident = ? AND firing", incident.id)
            jobs = [j for j in incident.jobs if j.state in ("waiting", "running")]
            assert (incident.closed is None) == bool(alerts or jobs)

    @invariant()
    def what_fires_is_known_to_fire(self) -> None:
        known = self.journal._rows("SELECT DISTINCT i.group_key, a.fingerprint FROM alerts AS a"
                                   " JOIN incidents AS i ON i.id = a.incident WHERE firing")  # fmt: skip
        assert len(known) == len(self.firing)

    @invariant()
    def messages_only_of_changes(self) -> None:
        rows = self.journal._rows("SELECT count(*) AS n FROM messages")
        ended = [j for i in self.journal.incidents() for j in i.jobs if j.state in ("done", "failed")]
        assert rows[0]["n"] <= len(ended)

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()


Alerting.TestCase.settings = hypothesis(max_examples=60, stateful_step_count=30)
TestAlerting = Alerting.TestCase
