"""The machine's clock is set forward and back, while a receiver runs and between two: nothing waits longer for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.receiver import dispatcher, loop
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.receiver.notify import Notifier
from runbook_lib.runs import forks
from tests.kit import ROOT
from tests.kit.dispatching import FOUND, Odd, dispatched
from tests.kit.journal import CONFIG, TOLD, firing, taken, verdict
from tests.kit.waiting import until

DAY = 24 * 3600.0


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
