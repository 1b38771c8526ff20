"""The journal: what was accepted is there, each thing leads to one job, and nothing is open for ever."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runbook_lib.model.usage import UsageError
from runbook_lib.receiver import database
from runbook_lib.receiver.alert import Alert
from runbook_lib.receiver.database import JournalError
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.work import Accepted, Job
from runbook_lib.sources.settings import Route
from tests.kit import ROOT
from tests.kit.effort import examples
from tests.kit.journal import (
    CONFIG,
    TOLD,
    WINDOW_S,
    done,
    firing,
    firing_since,
    incident_of,
    messages_of,
    resolved,
    taken,
    verdict,
)  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


def ran(journal: Journal, now: float, *alerts: Alert, status: str = "CRITICAL", **more: Any) -> Job:
    """Accept alerts; a second later a run has ended."""
    journal.accept(alerts, CONFIG, now)
    return done(journal, now + 1, status, **more)


def reopened(journal: Journal) -> Journal:
    """Return the journal as the next receiver has it."""
    journal.close()
    return Journal(journal.file)


def test_an_alert_is_one_job_and_a_repeat_is_counted(journal: Journal) -> None:
    first = journal.accept([firing()], CONFIG, 0)
    assert (len(first.jobs), first.counted) == (1, 0)
    again = journal.accept([firing()], CONFIG, WINDOW_S - 1)
    assert (again.jobs, again.counted) == ((), 1)
    later = journal.accept([firing()], CONFIG, WINDOW_S + 1)
    assert len(later.jobs) == 1
    (incident,) = journal.incidents()
    keys = [j.key for j in incident.jobs]
    assert len({*keys}) == 2 and all(key.startswith(f"{incident.id}/firing/3/") for key in keys)
    assert (incident.alerts, incident.repeats) == (1, 2)


def test_an_alert_that_begins_long_after_the_look_is_looked_at(journal: Journal) -> None:
    ran(journal, 0, firing("Late", "1"))
    at = journal.clock.to_wall_clock(0)
    soon, later = (replace(firing_since(at + s), fingerprint=str(s)) for s in (60, 1200))
    assert len(journal.incidents()[0].jobs) == 1
    journal.accept([soon], CONFIG, 70)
    assert len(journal.incidents()[0].jobs) == 1
    journal.accept([later], CONFIG, 1210)
    assert len(journal.incidents()[0].jobs) == 2


def test_another_route_of_the_group_is_another_job_of_the_incident(journal: Journal) -> None:
    journal.accept([firing(), firing("Db", "2")], CONFIG, 0)
    (incident,) = journal.incidents()
    assert [j.sections for j in incident.jobs] == [("3",), ("4.2",)]
    assert incident.jobs[0].parameters["detected_by"] == "alert" and incident.jobs[1].parameters == {}


def test_a_named_incident_may_have_two_targets(journal: Journal) -> None:
    alerts = [firing(fingerprint=t, incident="INC-1", runbook_target=t) for t in ("main", "other")]
    assert len(journal.accept(alerts, CONFIG, 0).jobs) == 2
    (incident,) = journal.incidents()
    assert [j.target for j in incident.jobs] == ["main", "other"]
    assert len({j.key for j in incident.jobs}) == 2


TWO = [firing(fingerprint=t, incident="INC-1", runbook_target=t) for t in ("main", "other")]
ENDED = [replace(alert, firing=False) for alert in TWO]


def test_of_two_targets_each_has_its_own_last_verdict(journal: Journal) -> None:
    def verdicts(now: float, *said: str) -> list[str]:
        """The statuses that are told when each target has come to a verdict."""
        before = len(messages_of(journal))
        journal.accept(TWO, CONFIG, now)
        for status in said:
            done(journal, now, status, **TOLD)
        return [message["status"] for message in messages_of(journal)][before:]

    assert verdicts(0, "CRITICAL", "OK") == ["CRITICAL", "OK"]
    assert verdicts(WINDOW_S + 1, "CRITICAL", "OK") == [], "nothing has changed"
    assert verdicts(2 * WINDOW_S + 2, "CRITICAL", "CRITICAL") == ["CRITICAL"], "the other target's is new"
    journal.accept(TWO, CONFIG, 3 * WINDOW_S + 3)
    journal.conclude(taken(journal, 3 * WINDOW_S + 3), None, 3 * WINDOW_S + 3, **TOLD)
    done(journal, 3 * WINDOW_S + 3, "CRITICAL", **TOLD)
    assert verdicts(4 * WINDOW_S + 4, "CRITICAL", "CRITICAL") == ["CRITICAL"], "only one was given up"


@pytest.mark.parametrize("ended", [ENDED, ENDED[::-1]])
def test_of_two_targets_the_recovery_of_each_is_checked(journal: Journal, ended: list[Alert]) -> None:
    journal.accept(TWO, CONFIG, 0)
    done(journal, 1), done(journal, 1)
    assert journal.accept(ended[:1], CONFIG, 2).jobs == ()
    assert len(journal.accept(ended[1:], CONFIG, 3).jobs) == 2
    assert journal.accept(ended, CONFIG, 4).jobs == (), "told twice"
    first = done(journal, 5, "WARNING", rerun_at=60)
    second = done(journal, 6, "OK")
    assert [(j.kind, j.target) for j in (first, second)] == [("resolved", "main"), ("resolved", "other")]
    assert journal.incidents()[0].closed is None, "one of them has not recovered"
    assert (again := done(journal, 60, "OK")).key != first.key and (again.target, again.rerun) == ("main", True)
    assert journal.incidents()[0].closed == 60
    assert journal.next_job(1000, []) is None


def test_what_a_journal_of_0_6_has_goes_on(tmp_path: Path) -> None:
    """Release 0.6.0 has made it: an incident recovers, one fires under a second route, one waits for their target.

    Its receiver was killed, `now`, while it ran the second route's job.
    """
    file, now = tmp_path / "journal.db", 1_796_000_100.0
    with closing(sqlite3.connect(file)) as db:
        db.executescript((ROOT / "tests" / "data" / "receiver-0.6.sql").read_text(encoding="utf-8"))
    journal = reopened(Journal(file))
    assert journal._query("PRAGMA foreign_key_check") == [] and journal.recover(now) == 1
    kept = {i.id: (i.closed, i.alerts, i.repeats, i.seal) for i in journal.incidents()}
    assert list(kept.values()) == [(None, 1, 0, ""), (None, 1, 1, ""), (None, 1, 0, "seal:RECOVERS:1")]

    (message,) = journal.due_messages(now)
    assert (message.title, message.body, message.attempts) == ("CRITICAL at relay", "the link", 1)
    journal.mark_sent(message)
    assert [m.title for m in journal.due_messages(now)] == ["WARNING"]

    ran = []
    while job := journal.next_job(now + 60, ()):
        ran.append((job.incident, job.kind, job.sections, job.rerun, job.attempts))
        journal.conclude(job, verdict(), now + 60, rerun_at=now + 90, **TOLD)
    assert ran == [
        ("RECOVERS", "resolved", ("6",), True, 1), ("FIRES", "firing", ("4.2",), True, 1),
        ("FIRES", "firing", ("3",), False, 2), ("Late-19700101T000000-7b18b0e6", "firing", ("3",), False, 1),
    ]  # fmt: skip
    told = [m.incident for m in journal.due_messages(now + 60)]
    assert told == ["RECOVERS", "RECOVERS", "Late-19700101T000000-7b18b0e6"], "that of FIRES was reported by 0.6.0"
    assert [tuple(row) for row in journal._query("SELECT * FROM threads")] == [("FIRES", "place", "17.1")]
    assert (recovered := incident_of(journal, "RECOVERS")) and recovered.closed
    journal.close()


def test_the_end_of_the_last_alert_looks_at_the_recovery_and_closes(journal: Journal) -> None:
    ran(journal, 0, firing(fingerprint="1"), firing(fingerprint="2"))
    assert journal.accept([resolved("Late", "1")], CONFIG, 2).jobs == ()
    assert len(journal.accept([resolved("Late", "2")], CONFIG, 3).jobs) == 1
    assert journal.incidents()[0].closed is None
    job = done(journal, 4, "OK")
    assert (job.kind, job.sections) == ("resolved", ("6",))
    assert journal.incidents()[0].closed == 4
    assert journal.accept([resolved("Late", "2")], CONFIG, 5).jobs == ()


def test_an_end_without_a_beginning_is_only_counted(journal: Journal) -> None:
    assert journal.accept([resolved()], CONFIG, 0) == Accepted((), 1)
    assert journal.incidents() == []


def recovered(journal: Journal, *alerts: Alert, **told: Any) -> None:
    """Alerts fire at 0 s, end at 300 s, and section 6 says OK at 310 s."""
    journal.accept(alerts, CONFIG, 0)
    done(journal, 10, **told)
    journal.accept([resolved(a.name, a.fingerprint) for a in alerts], CONFIG, 300)
    assert done(journal, 310, "OK", **told).kind == "resolved"
    assert journal.incidents()[0].closed == 310


@pytest.mark.parametrize("fingerprint", ["1", "another"])
def test_an_alert_after_the_recovery_runs_at_once_and_is_told(journal: Journal, fingerprint: str) -> None:
    recovered(journal, firing(), **TOLD)
    again = journal.accept([firing(fingerprint=fingerprint)], CONFIG, 900)
    assert (len(again.jobs), again.counted) == (1, 0)
    (incident,) = journal.incidents()
    assert incident.closed is None
    second = taken(journal, 900)
    assert (second.id, second.recurred) == (*again.jobs, True)
    journal.conclude(second, verdict("OK"), 901, **TOLD)
    assert [m["status"] for m in messages_of(journal)] == ["CRITICAL", "OK", "OK"], (
        "told, although the verdict is the one of section 6"
    )
    repeat = journal.accept([firing(fingerprint=fingerprint)], CONFIG, 960)
    assert (repeat.jobs, repeat.counted) == ((), 1)
    journal.accept([firing(fingerprint=fingerprint)], CONFIG, 901 + WINDOW_S)
    assert not taken(journal, 901 + WINDOW_S).recurred, "the repeat of an outage is no further one"


def test_an_alert_that_ends_and_fires_anew_beside_another_is_looked_at(journal: Journal) -> None:
    """Nobody has looked since it began again: the run of the first time saw nothing of it."""
    ran(journal, 0, firing(fingerprint="1"), firing(fingerprint="2"))
    anew = firing_since(journal.clock.to_wall_clock(180))  # after the run began, if not long after
    for at, alert, jobs in ((3, firing(), 0), (1500, anew, 1), (1600, anew, 0)):
        journal.accept([resolved(fingerprint="1")] if at < 1600 else [], CONFIG, at - 1)
        back = journal.accept([alert], CONFIG, at)
        assert (len(back.jobs), back.counted) == (jobs, 1 - jobs), at


@pytest.mark.parametrize("fails", ["before it", "during it", "with a verdict"])
def test_a_look_at_the_recovery_that_fails_holds_up_no_second_outage(journal: Journal, fails: str) -> None:
    """It is not tried again, whether it fails before the second outage or during it."""
    ran(journal, 0, firing())
    journal.accept([resolved()], CONFIG, 2)
    look = taken(journal, 3)
    if fails == "before it":
        journal.retry(look, 300, "disk full")
    journal.accept([firing()], CONFIG, 4)
    if fails == "during it":
        journal.retry(look, 300, "disk full")
    elif fails == "with a verdict":
        journal.conclude(look, verdict("OK"), 5, retry_at=300, problem="disk full")
    assert done(journal, 6).recurred, "it does not wait for the other attempt"
    states = [(j.kind, j.state, j.ended is None, j.problem) for j in journal.incidents()[0].jobs]
    assert states == [
        ("firing", "done", False, ""), ("resolved", "failed", False, "disk full"), ("firing", "done", False, ""),
    ]  # fmt: skip
    assert ran(journal, 7, resolved(), status="OK").kind == "resolved"
    assert journal.incidents()[0].closed == 8


def test_an_alert_whose_target_changed_while_it_fired_ends(journal: Journal) -> None:
    config = CONFIG.model_copy(update={"routes": [Route(sections=["4.1"], target="other")]})
    first = ran(journal, 0, firing())
    journal.accept([firing()], config, 10)
    assert len(journal.accept([resolved()], config, 30).jobs) == 2, "the recovery of both targets is checked"
    while job := journal.next_job(40, []):
        journal.conclude(job, verdict("OK"), 41)
    (incident,) = journal.incidents()
    assert (incident.id, incident.closed, incident.jobs[-1].kind) == (first.incident, 41, "resolved")


def test_a_window_after_its_end_it_is_another_incident(journal: Journal) -> None:
    recovered(journal, firing())
    journal.accept([firing_since(310 + WINDOW_S)], CONFIG, 310 + WINDOW_S)
    assert len(journal.incidents()) == 2
    assert not taken(journal, 310 + WINDOW_S).recurred


def test_one_job_a_target_and_an_incident_keeps_its_order(journal: Journal) -> None:
    journal.accept([firing(group="a"), firing("Db", "2", "a")], CONFIG, 0)
    journal.accept([firing(fingerprint="3", group="b", runbook_target="other")], CONFIG, 0)
    first = taken(journal, 1)
    assert first.target == "main" and first.attempts == 1
    assert taken(journal, 1, "main").target == "other"
    assert journal.next_job(1, ["main", "other"]) is None
    journal.retry(first, 100, "disk full")
    assert journal.next_job(50, []) is None, "a later job of the incident went before the one that is tried again"
    retried = taken(journal, 100)
    assert (retried.id, retried.attempts, retried.problem) == (first.id, 2, "disk full")


def test_what_came_too_early_is_looked_at_once_more_and_holds_up_nothing(journal: Journal) -> None:
    first = ran(journal, 0, firing(), status="WARNING", rerun_at=60)
    assert journal.next_job(59, []) is None
    assert ran(journal, 10, firing("Db", "2")).sections == ("4.2",)
    again = taken(journal, 60)
    assert again.key != first.key and again.rerun
    assert (again.sections, again.parameters, again.attempts) == (first.sections, first.parameters, 1)
    journal.conclude(again, verdict(), 61, rerun_at=120)
    assert journal.next_job(1000, []) is None, "a second look is looked at again"


@pytest.mark.parametrize("last", ["OK", "WARNING"])
def test_a_recovery_is_checked_once_more_and_then_the_incident_is_closed(journal: Journal, last: str) -> None:
    ran(journal, 0, firing())
    first = ran(journal, 2, resolved(), status="WARNING", rerun_at=60)
    assert first.kind == "resolved" and journal.incidents()[0].closed is None
    assert journal.accept([resolved()], CONFIG, 4).jobs == (), "the end is told twice"
    second = done(journal, 60, last, rerun_at=180)
    assert (second.id, first.rerun, second.rerun) == (first.id, False, True)
    assert journal.incidents()[0].closed == 60 and journal.next_job(1000, []) is None


def test_an_alert_that_was_silenced_when_it_ended_ends_when_nobody_repeats_it(journal: Journal) -> None:
    """Alertmanager tells no end of it: the recovery is checked all the same, and the next outage is told."""
    ran(journal, 0, firing(), **TOLD)
    journal.end_unrepeated(-200, "silent", 10)
    journal.accept([firing()], CONFIG, 100)
    journal.end_unrepeated(-70, "silent", 130)
    journal.end_unrepeated(50, "silent", 250)
    assert journal.next_job(250, ()) is None, "it was repeated"
    journal.end_unrepeated(110, "silent", 310)
    check = done(journal, 310, "OK", **TOLD)
    assert (check.kind, check.sections, check.alert) == ("resolved", ("6",), "silent")
    assert journal.incidents()[0].closed is not None
    journal.end_unrepeated(220, "silent", 420)
    assert journal.next_job(420, ()) is None, "once"
    ran(journal, 200000, firing(), **TOLD)
    assert journal.counts()["messages_waiting"] == 3, "the next outage is told, too"


@pytest.mark.parametrize(("repeated", "ends"), [(False, 100_100), (True, 100_310)])
def test_the_time_without_a_receiver_is_no_silence_of_an_alert(journal: Journal, repeated: bool, ends: int) -> None:
    """After a day an alert fires still, however late its sender repeats it; from then on its silence counts."""
    ran(journal, 0, firing())
    for at in (10, 100):
        journal.end_unrepeated(at - 300, "silent", at)
    if repeated:  # before the receiver looks for the first time
        journal.accept([firing()], CONFIG, 100_000)
    for at in range(100_000, ends, 50):
        journal.end_unrepeated(at - 300, "silent", at)
        assert not (job := journal.next_job(at, ())) or job.kind == "firing"
    journal.end_unrepeated(ends - 300, "silent", ends)
    check = journal.next_job(ends, ())
    assert check and check.kind == "resolved"


def test_a_journal_of_an_earlier_release_ends_no_alert_at_once(journal: Journal) -> None:
    ran(journal, 0, firing())
    journal.end_unrepeated(99_700, "silent", 100_000)
    assert journal.next_job(100_000, ()) is None


def read_or_empty(file: str) -> bytes:
    return Path(file).read_bytes() if Path(file).exists() else b""


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_a_journal_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path, closed: bool) -> None:
    file, later = tmp_path / "journal.db", tmp_path / "later.db"
    journal = Journal(file)
    ran(journal, 0, firing())
    journal._execute("PRAGMA user_version = 3")
    if closed:
        journal.close()
    for part in ("", "-wal"):
        if (written := Path(f"{file}{part}")).exists():
            shutil.copy(written, f"{later}{part}")
    if not closed:
        journal.close()
    before = [read_or_empty(f"{later}{part}") for part in ("", "-wal")]
    with pytest.raises(UsageError, match=r"is newer \(version 3, this runbook knows 2\): update, or"):
        Journal(later)
    assert before == [read_or_empty(f"{later}{part}") for part in ("", "-wal")]


def test_a_job_that_is_run_once_more_does_not_count_as_waiting(journal: Journal) -> None:
    early = journal.clock.now()
    ran(journal, early, firing(), rerun_at=early + 3600)
    assert journal.counts()["jobs_waiting"] == 0


def test_a_changed_verdict_is_one_message_a_place(journal: Journal) -> None:
    for n in range(3):
        ran(journal, n * WINDOW_S * 2, firing(), status="CRITICAL" if n < 2 else "OK", **TOLD | {"places": ["p", "q"]})
    due = journal.due_messages(10 * WINDOW_S)
    assert [(m.place, m.status) for m in due] == [("p", "CRITICAL"), ("q", "CRITICAL")], "the newer ones wait"
    journal.mark_sent(due[0])
    journal.mark_unsent(due[1], 11 * WINDOW_S, "refused")
    assert [(m.place, m.status) for m in journal.due_messages(10 * WINDOW_S)] == [("p", "OK")]
    journal.mark_unsent(due[1], None, "given up")
    assert [(m.place, m.status) for m in journal.due_messages(12 * WINDOW_S)] == [("p", "OK"), ("q", "OK")]
    assert journal.counts()["messages_failed"] == 1


def statuses(journal: Journal) -> list[tuple[str, str]]:
    """The place and status of each message that waits."""
    return [(m["place"], m["status"]) for m in messages_of(journal, "state = 'waiting'")]


def test_what_waits_is_addressed_to_what_is_configured_now(journal: Journal) -> None:
    for n, status in enumerate(("CRITICAL", "OK")):
        ran(journal, n * WINDOW_S * 2, firing(), status=status, **TOLD | {"places": ["misspelt", "q"]})
    assert journal.readdress(["misspelt", "q"], 9) == journal.readdress([], 9) == 0
    sent = next(m for m in journal.due_messages(9) if m.place == "q")
    journal.mark_sent(sent)
    before = journal.due_messages(9)[0]
    assert journal.readdress(["q", "p"], 9) == 2
    assert statuses(journal) == [("q", "OK"), ("p", "CRITICAL"), ("p", "OK")], "each place gets each message once"
    after = next(m for m in journal.due_messages(9) if m.place == "p")
    assert (after.title, after.body, after.made) == (before.title, before.body, before.made)


def test_after_a_message_that_is_given_up_the_same_verdict_is_told(journal: Journal) -> None:
    for n in range(2):
        ran(journal, n * (WINDOW_S + 1), firing(), **TOLD)
    assert statuses(journal) == [("p", "CRITICAL")], "nothing has changed"
    journal.mark_unsent(journal.due_messages(2 * WINDOW_S)[0], None, "not sent within 24 h")
    ran(journal, 2 * (WINDOW_S + 1), firing(), **TOLD)
    assert statuses(journal) == [("p", "CRITICAL")]


def test_what_nobody_was_told_is_told_once_a_place_is_configured(journal: Journal) -> None:
    ran(journal, 0, firing())
    ran(journal, WINDOW_S + 1, firing(), **TOLD)
    assert statuses(journal) == [("p", "CRITICAL")]


def test_after_a_run_that_was_given_up_the_next_verdict_is_told(journal: Journal) -> None:
    ran(journal, 0, firing(), **TOLD)
    journal.accept([firing()], CONFIG, WINDOW_S + 1)
    journal.conclude(taken(journal, WINDOW_S + 1), None, WINDOW_S + 2, **TOLD)
    ran(journal, 2 * WINDOW_S + 2, firing(), **TOLD)
    sent = [message["status"] for message in messages_of(journal)]
    assert sent == ["CRITICAL", "UNKNOWN", "CRITICAL"], "the last that people heard was UNKNOWN"


def sizes(journal: Journal) -> dict[str, int]:
    tables = {"incidents": "incidents", "alerts": "alerts", "seals": "seals"}
    tables |= {"jobs": "work WHERE kind <> 'message'", "messages": "work WHERE kind = 'message'"}
    return {name: journal._query(f"SELECT count(*) AS n FROM {table}")[0]["n"] for name, table in tables.items()}


def test_the_newest_are_kept_and_what_open_incidents_need(journal: Journal) -> None:
    told = TOLD | {"places": ["p", "q"]}
    for n in range(40):
        alert = firing(incident="long") if n < 10 else firing(group="new")
        ran(journal, n * 3 * WINDOW_S, alert, status="OK" if n % 2 else "CRITICAL", seal=f"seal {n}", **told)
    while due := journal.due_messages(1e9):
        for message in due:
            journal.mark_sent(message)
    whole = sizes(journal)
    journal.trim(100)
    assert sizes(journal) == whole == {"incidents": 2, "alerts": 2, "jobs": 40, "messages": 80, "seals": 40}
    for _ in range(2):
        journal.trim(20)
        assert sizes(journal) == {"incidents": 2, "alerts": 2, "jobs": 21, "messages": 20, "seals": 21}
    long = incident_of(journal, "long")
    assert long and len(long.jobs) == 1 and long.verdict and (long.alerts, long.repeats) == (1, 9)
    assert [seal for _, seal in journal.seals("long")] == ["seal 9"] == [long.seal]


def test_of_an_old_incident_its_line_and_its_last_seal_stay(journal: Journal) -> None:
    keys: list[str] = []
    for name, at in (("old", 0), ("new", 1000), ("old", 2 * WINDOW_S)):
        keys.append(ran(journal, at, firing(incident=name), seal=f"{name} {at}", **TOLD).key)
        ended = firing(incident=name, ended=True)
        keys.append(ran(journal, at + 2, ended, status="OK", seal=f"{name} {at} OK", **TOLD).key)
        if name == "new":
            journal.trim(2)
            assert sizes(journal)["messages"] == 4, "they have not been sent"
            while due := journal.due_messages(1e9):
                journal.mark_sent(due[0], "thread")
            journal.trim(2)
            assert [row["incident"] for row in journal._query("SELECT * FROM threads")] == ["new"]
            assert sizes(journal) == {"incidents": 2, "alerts": 1, "jobs": 2, "messages": 2, "seals": 3}
            old = incident_of(journal, "old")
            assert old and (old.closed, old.verdict, old.jobs, old.seal) == (3, None, (), "old 0 OK")
    assert len(set(keys)) == len(keys) == 6
    assert [m["status"] for m in messages_of(journal, "incident = 'old'")] == ["CRITICAL", "OK"], (
        "what was told of it long ago is no reason to be silent now"
    )


def test_what_waits_or_fires_is_not_trimmed(journal: Journal) -> None:
    ran(journal, 0, firing(), **TOLD, rerun_at=60)
    for n in range(5):
        journal.accept([firing(fingerprint=f"g{n}", group=f"g{n}")], CONFIG, 2)
    before = sizes(journal)
    journal.trim(1)
    assert sizes(journal) == before
    assert journal.accept([firing()], CONFIG, 10).counted == 1


def test_one_receiver_at_a_time(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in use by another receiver"):
        Journal(tmp_path / "journal.db")
    journal.close()
    assert [p.name for p in tmp_path.iterdir()] == ["journal.db"]
    Journal(tmp_path / "journal.db").close()


def test_a_journal_that_is_older_than_0_6_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE jobs (id)")
    before = file.read_bytes()
    with pytest.raises(UsageError, match="is older than"):
        Journal(file)
    assert file.read_bytes() == before and not Path(f"{file}.lock").exists()


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


@pytest.mark.timeout(60)
def test_a_call_waits_for_the_calls_before_it_within_a_limit(journal: Journal, monkeypatch: Any) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    with journal._lock:
        for call in (lambda: journal.accept([firing()], CONFIG, 0), journal.incidents):
            with pytest.raises(JournalError, match="has been in use"):
                call()
    assert len(journal.accept([firing()], CONFIG, 0).jobs) == 1


def test_the_effort_for_a_body_grows_with_its_alerts_only(journal: Journal) -> None:
    def effort(incidents: range, ended: bool) -> int:
        steps: list[int] = []
        journal._db.set_progress_handler(lambda: steps.append(1), 1000)
        journal.accept([firing(fingerprint=str(n), ended=ended, incident=f"I{n}") for n in incidents], CONFIG, 0)
        return len(steps)

    for ended in (False, True):
        assert effort(range(1000, 4000), ended) < 5 * effort(range(1000), ended)


_ACCEPTS = """
import sys
from runbook_lib.receiver.journal import Journal
from tests.kit.journal import CONFIG, firing
journal = Journal(sys.argv[1])
n = 0
while True:
    journal.accept([firing(fingerprint=str(n), group=str(n))], CONFIG, n)
    print(n, flush=True)
    n += 1
"""


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    child = subprocess.Popen([sys.executable, "-c", _ACCEPTS, str(file)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
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
        self.firing: set[str] = set()
        self.regrouped = False
        self.config = CONFIG
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
        for group in {self.group_of(a[0]) for a in alerts}:
            own = [a for a in alerts if self.group_of(a[0]) == group]
            self.journal.accept([firing(n, g + n + f, group, ended=e) for g, n, f, e in own], self.config, self.now)
        for *which, ended in alerts:
            (self.firing.discard if ended else self.firing.add)("".join(which))

    def group_of(self, letter: str) -> str:
        return "all" if self.regrouped else letter

    @rule()
    def regroup(self) -> None:
        """Alertmanager starts with another `group_by`."""
        self.regrouped = not self.regrouped

    @rule(sections=st.sampled_from(["3", "4.1", "4.2"]))
    def reroute(self, sections: str) -> None:
        """The receiver starts with another route."""
        self.config = CONFIG.model_copy(update={"routes": [Route(alertname="Db", sections=[sections])]})

    @rule()
    def begin(self) -> None:
        job = self.journal.next_job(self.now, [j.target for j in self.running])
        self.running += [job] if job else []

    @precondition(lambda self: self.running)
    @rule(status=st.sampled_from(["OK", "CRITICAL", "again", "failed"]))
    def end(self, status: str) -> None:
        job = self.running.pop()
        if status == "again":
            self.journal.retry(job, self.now + 5, "problem")
        elif status == "failed":
            self.journal.conclude(job, None, self.now, places=["p"], message=("t", "b"))
        else:
            rerun_at = None if status == "OK" else self.now + 60
            self.journal.conclude(job, verdict(status), self.now, rerun_at=rerun_at, **TOLD)

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
    def one_job_a_window_and_outage(self) -> None:
        for incident in self.journal.incidents():
            looked_at: dict[tuple[str, ...], float] = {}
            before = None
            for job in incident.jobs:  # a job that runs once more is the same one
                if job.kind == "firing":
                    assert job.made - looked_at.get(job.sections, -1e9) >= WINDOW_S
                    assert job.rerun or job.recurred == (
                        job.sections not in looked_at
                        and any(j.kind == "resolved" for j in incident.jobs[: incident.jobs.index(job)])
                    )
                    looked_at[job.sections] = job.made
                else:
                    assert before and before.kind == "firing"
                    looked_at = {}
                before = job

    @invariant()
    def what_fires_after_a_look_at_the_recovery_is_looked_at(self) -> None:
        unseen = self.journal._query(
            "SELECT 1 FROM alerts AS a WHERE firing AND EXISTS"
            " (SELECT 1 FROM work WHERE incident = a.incident AND kind = 'resolved' AND id > a.job)"
        )
        assert not unseen

    @invariant()
    def what_fires_has_a_job_that_looked_or_will_look(self) -> None:
        assert not self.journal._query(
            "SELECT 1 FROM alerts AS a JOIN work AS j ON j.id = a.job"
            " WHERE firing AND j.state = 'done' AND j.started IS NULL"
        )

    @invariant()
    def the_end_is_looked_at_last(self) -> None:
        for incident in self.journal.incidents():
            if incident.closed is not None:
                assert incident.jobs[-1].kind == "resolved"

    @invariant()
    def looks_at_the_recovery_do_not_pile_up(self) -> None:
        for incident in self.journal.incidents():
            waiting = [j for j in incident.jobs if (j.kind, j.state) == ("resolved", "waiting")]
            assert len(waiting) <= 1

    @invariant()
    def open_as_long_as_there_is_something(self) -> None:
        for incident in self.journal.incidents():
            alerts = self.journal._query("SELECT 1 FROM alerts WHERE incident = ? AND firing", incident.id)
            jobs = [j for j in incident.jobs if j.state in ("waiting", "running")]
            assert (incident.closed is None) == bool(alerts or jobs)

    @invariant()
    def what_fires_is_known_to_fire(self) -> None:
        known = self.journal._query("SELECT DISTINCT fingerprint FROM alerts WHERE firing")
        assert {row["fingerprint"] for row in known} == self.firing

    @invariant()
    def messages_only_of_changes(self) -> None:
        jobs = [j for i in self.journal.incidents() for j in i.jobs]
        assert len(messages_of(self.journal)) <= sum((j.state in ("done", "failed")) + j.rerun for j in jobs)

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()


Alerting.TestCase.settings = hypothesis(max_examples=examples(300), stateful_step_count=30)
TestAlerting = Alerting.TestCase
