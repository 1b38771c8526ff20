"""A dispatcher whose runs are of the tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from runbook_lib.book import messages
from runbook_lib.model.order import Order
from runbook_lib.receiver.alert import Alert
from runbook_lib.receiver.dispatcher import Dispatcher
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.sources.settings import Settings


def firing(incident: str, target: str = "gone", name: str = "Late", ended: bool = False) -> Alert:
    labels = {"alertname": name, "incident": incident, "runbook_target": target}
    summary = "user_id=alice waits; password=hunter2"
    return Alert(name, not ended, incident, labels, summary, pd.Timestamp("2026-01-31T03:00:00Z"), incident)


class Odd(Executor):
    """Answers each order in turn with what it is given: raised, returned, or (None) never."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.orders: list[Order] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.orders.append(args[0])
        future: Future[Any] = Future()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        elif answer is not None:
            future.set_result(answer)
        return future


FOUND: dict[str, Any] = {
    "document": {
        "verdict": {"status": "OK", "stuck_at": None, "failure_modes": []}, "runs": [], "as_of": "2026-01-31T03:00:00Z",
    },
    "index": "x/index.html", "problem": "", "lines": ["OK"],
}  # fmt: skip
CONFIG = Settings(targets={"gone": {"database_url": "postgresql://u@127.0.0.1:1/x"}})


def dispatcher_of(folder: Path, journal: Journal, executor: Executor, metrics: Metrics) -> Dispatcher:
    return Dispatcher(journal, CONFIG, str(folder / "out"), executor, metrics, places=["p"])


@contextmanager
def dispatched(folder: Path, executor: Executor, alert: Alert | None = None) -> Iterator[tuple[Journal, Metrics]]:
    journal, metrics = Journal(folder / "journal.db"), Metrics()
    journal.accept([alert or firing("I")], CONFIG, time.time())
    jobs = dispatcher_of(folder, journal, executor, metrics)
    messages.use("ja")  # its threads have the language of the process
    jobs.start()
    try:
        yield journal, metrics
    finally:
        jobs.stop()
        messages.use("en")
        journal.close()
