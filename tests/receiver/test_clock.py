"""The machine's clock is set forward and back, while a receiver runs and between two: nothing waits longer for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.receiver import dispatcher, loop
from runbook_lib.receiver.clock import SteadyClock
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.receiver.notify import Notifier
from runbook_lib.runs import forks
from tests.kit import ROOT
from tests.kit.dispatching import FOUND, Odd, dispatched
from tests.kit.journal import CONFIG, TOLD, WINDOW_S, done, firing, firing_since, resolved, taken, verdict
from tests.kit.waiting import until

DAY = 24 * 3600.0
SETS = pytest.mark.parametrize("by", [DAY, -DAY, 400 * DAY, -400 * DAY, 60.0, -60.0])


class Hands:
    """A machine's clocks: the one that people set, and the one that only goes forward."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_800_000_000.0, 500.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.steady)


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def journal(tmp_path: Path, hands: Hands) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db", hands.clock())
    yield journal
    journal.close()


def reopened(journal: Journal, hands: Hands) -> Journal:
    """The journal as the next receiver has it, on a machine that was started anew."""
    journal.close()
    hands.steady = 3.0
    journal = Journal(journal.file, hands.clock())
    journal.recover(journal.clock.now())
    return journal


def test_a_run_of_a_clock_that_was_ahead_has_not_seen_what_began_since(journal: Journal, hands: Hands) -> None:
    right = hands.wall
    hands.wall += 9 * 3600  # local time
    journal.close()
    journal = Journal(journal.file, hands.clock())
    journal.accept([firing()], CONFIG, journal.clock.now())
    journal.conclude(taken(journal, journal.clock.now()), verdict(), journal.clock.now())
    hands.wall = right + 1200
    journal = reopened(journal, hands)
    late = replace(firing_since(hands.wall), fingerprint="2")
    again = journal.accept([late], CONFIG, journal.clock.now())
    assert taken(journal, journal.clock.now()).id == again.jobs[0]
    journal.close()


@SETS
def test_a_clock_passes_evenly_and_shows_what_the_machine_shows(hands: Hands, by: float) -> None:
    clock = hands.clock()
    began = clock.now()
    assert began == hands.wall == clock.to_wall_clock(began)
    hands.wall += by
    assert clock.now() == began
    hands.pass_(10)
    assert clock.now() == began + 10
    assert clock.to_wall_clock(clock.now()) == hands.wall


@SETS
def test_what_people_see_is_by_the_clock_as_it_was_set(journal: Journal, hands: Hands, by: float) -> None:
    hands.wall += by
    journal.accept([firing()], CONFIG, journal.clock.now())
    hands.pass_(5)
    done(journal, journal.clock.now(), seal="s")
    journal.accept([resolved()], CONFIG, journal.clock.now())
    hands.pass_(5)
    done(journal, journal.clock.now(), "OK")
    (incident,) = journal.incidents()
    assert (incident.opened, incident.closed) == (hands.wall - 10, hands.wall)
    assert journal.seals(incident.id) == [(hands.wall - 5, "s")]


def test_the_newest_seal_is_the_one_that_was_told_last(journal: Journal, hands: Hands) -> None:
    for seal, target in (("first", "main"), ("second", "other")):
        journal.accept([firing(fingerprint=target, incident="I", runbook_target=target)], CONFIG, journal.clock.now())
        done(journal, journal.clock.now(), seal=seal)
        hands.wall -= DAY
    assert [told for _, told in journal.seals("I")] == ["first", "second"]
    assert journal.incidents()[0].seal == "second"


@SETS
def test_while_it_runs_no_wait_gets_longer(journal: Journal, hands: Hands, by: float) -> None:
    """A first run, another try, a second look and a message, each with the clock set just before it is due."""

    def set_and_wait(seconds: float) -> float:
        nonlocal by
        hands.wall, by = hands.wall + by, -by
        hands.pass_(seconds)
        return journal.clock.now()

    journal.accept([firing()], CONFIG, journal.clock.now())
    job = taken(journal, set_and_wait(0))
    journal.retry(job, journal.clock.now() + 60, "disk full")
    assert journal.next_job(set_and_wait(59), []) is None
    retried = taken(journal, set_and_wait(1))
    look = journal.clock.now() + 120
    journal.conclude(retried, verdict("WARNING"), journal.clock.now(), rerun_at=look, **TOLD)
    (message,) = journal.due_messages(set_and_wait(0))
    journal.mark_unsent(message, journal.clock.now() + 30, "refused")
    assert journal.due_messages(set_and_wait(29)) == []
    assert len(journal.due_messages(set_and_wait(1))) == 1
    assert journal.next_job(set_and_wait(89), []) is None
    again = taken(journal, set_and_wait(1))
    assert again.rerun


@SETS
def test_the_window_of_a_repeat_is_as_long_as_ever(journal: Journal, hands: Hands, by: float) -> None:
    journal.accept([firing()], CONFIG, journal.clock.now())
    done(journal, journal.clock.now())
    hands.wall += by
    hands.pass_(WINDOW_S - 1)
    assert journal.accept([firing()], CONFIG, journal.clock.now()).counted == 1
    hands.wall -= by
    hands.pass_(2)
    assert len(journal.accept([firing()], CONFIG, journal.clock.now()).jobs) == 1


@SETS
def test_between_two_receivers_no_wait_gets_longer_than_it_was(journal: Journal, hands: Hands, by: float) -> None:
    start = journal.clock.now()
    for n, group in enumerate(("fresh", "retry", "look")):
        journal.accept([firing(fingerprint=group, group=group, runbook_target=("main", "other")[n % 2])], CONFIG, start)
    journal.accept([firing("Db", "9", "running")], CONFIG, start)
    jobs = {i.id: i for i in journal.incidents()}
    assert len(jobs) == 4
    fresh = taken(journal, start)
    journal.retry(fresh, start + 300, "disk full")
    retry = taken(journal, start)
    journal.conclude(retry, verdict("WARNING"), start, rerun_at=start + 120, **TOLD)
    (message,) = journal.due_messages(start)
    journal.mark_unsent(message, start + 600, "refused")
    running = taken(journal, start)
    hands.wall += by
    journal = reopened(journal, hands)
    begun = []
    while job := journal.next_job(journal.clock.now(), []):
        begun.append(job.id)
    looks_at_once = by > 120  # as after a stop of that length
    assert {fresh.id, running.id} < set(begun) and len(begun) == 3 + looks_at_once
    (again,) = journal.due_messages(journal.clock.now())
    assert journal.clock.now() - again.made <= max(by, 0)
    assert looks_at_once or journal.next_job(journal.clock.now() + 120, []) is not None
    journal.close()


@SETS
def test_between_two_receivers_a_repeat_is_not_counted_for_longer(journal: Journal, hands: Hands, by: float) -> None:
    journal.accept([firing()], CONFIG, journal.clock.now())
    done(journal, journal.clock.now())
    hands.wall += by
    journal = reopened(journal, hands)
    hands.pass_(WINDOW_S + 1)
    assert len(journal.accept([firing()], CONFIG, journal.clock.now()).jobs) == 1
    journal.close()


def test_of_a_group_the_open_incident_is_the_one_that_ends(journal: Journal, hands: Hands) -> None:
    """By the clock it was opened before the closed one."""
    journal.accept([firing()], CONFIG, journal.clock.now())
    done(journal, journal.clock.now())
    journal.accept([resolved()], CONFIG, journal.clock.now())
    closed = done(journal, journal.clock.now(), "OK").incident
    hands.wall -= DAY
    hands.pass_(WINDOW_S + 1)
    journal.accept([firing_since(hands.wall)], CONFIG, journal.clock.now())
    second = done(journal, journal.clock.now()).incident
    assert second != closed
    hands.wall += DAY - WINDOW_S
    journal.accept([firing_since(hands.wall)], CONFIG, journal.clock.now())
    assert [i.id for i in journal.incidents() if i.closed is None] == [second]


@pytest.mark.parametrize("by", [DAY, -DAY])
def test_the_loops_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """With the process's own clocks: the first try and the second see another time each, and so does the notifier."""
    real, ahead = time.time, [by]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    monkeypatch.setattr(dispatcher, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(loop, "POLL_S", 0.02)

    class Sets(Odd):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            ahead[0] -= by
            return super().submit(fn, *args, **kwargs)

    executor = Sets(RuntimeError("lost"), FOUND | {"problem": "disk full"}, FOUND)
    with dispatched(tmp_path, executor) as (journal, _):
        ahead[0] -= by
        until(lambda: len(executor.orders) >= 3 and journal.incidents()[0].jobs[0].state == "done", "the runs")
        assert len(journal.due_messages(journal.clock.now())) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_no_message_is_given_up_because_a_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    real, ahead, sent = time.time, [0.0], list[str]()
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    monkeypatch.setattr(loop, "POLL_S", 0.02)

    def call(*given: Any, within_s: float) -> tuple[str, str]:
        sent.append(given[-1].title)
        return "", ""

    monkeypatch.setattr(forks, "call", call)
    journal = Journal(tmp_path / "journal.db")
    now = journal.clock.now()
    journal.accept([firing()], CONFIG, now)
    journal.conclude(taken(journal, now), verdict(), now, **TOLD)
    ahead[0] = 2 * DAY
    if restarted:
        journal.close()
        journal = Journal(tmp_path / "journal.db")
        journal.recover(journal.clock.now())
    told = Notifier(journal, {"p": "json://127.0.0.1:1"}, Metrics())
    told.start()
    until(lambda: sent or journal.counts()["messages_failed"], "a message")
    assert not journal.counts()["messages_failed"]
    told.stop()
    journal.close()


_RUNS = """
import sys, time
from runbook_lib.book import catalog
from runbook_lib.model.order import Order
from runbook_lib.runs import forks, investigation
from runbook_lib.sources import settings

if __name__ == "__main__":
    real, ahead = time.time, [0.0]
    time.time = lambda: real() + ahead[0]

    def set_the_clock(section, state):
        ahead[0] = float(sys.argv[1])

    order = Order(sections=("2",), output="out", target="gone", incident="I", deadline_s=60)
    given = order, settings.load(), catalog.load()
    print(*investigation.summary(*given, set_the_clock, lambda said: None)["problems"])
    ahead[0] = 0.0
    began = time.monotonic()
    hangs = forks.start(time.sleep, 60)
    until = time.monotonic() + 1
    ahead[0] = -float(sys.argv[1])
    print(forks.wait_for_any([hangs], until), time.monotonic() - began < 20)
    hangs.end()
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", [DAY, -DAY])
def test_a_run_has_its_time_whatever_the_clock_is_set_to(tmp_path: Path, by: float) -> None:
    """Set while sections run, the clock ends none of them, nor lets one that hangs go on."""
    (tmp_path / "runbook.toml").write_text('[targets.gone]\ndatabase_url = "postgresql://u@127.0.0.1:1/x"\n')
    (tmp_path / "runs.py").write_text(_RUNS)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "runs.py", str(by)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "\n[] True\n"), done.stdout + done.stderr
