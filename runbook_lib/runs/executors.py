"""Executors of investigations: this machine, or the workers of a Dask cluster.

Both are a `concurrent.futures.Executor`. Arguments and results must be small: an `Order`, and the result of
`carry_out`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from runbook_lib.book import pack
from runbook_lib.model.order import Order, RunProgress
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.urls import show_url
from runbook_lib.runs import forks

#: Seconds beyond its deadline after which the process of an investigation without a person is killed: fewer than those
#: after which the dispatcher considers it lost.
HUNG_S = 240.0
_ADDRESS = re.compile(r"(tcp|tls|wss?)://[^/\s]+:\d{1,5}/?")

T = TypeVar("T")


class WorkerError(Exception):
    """The worker cannot carry the order out; another worker, or a later attempt, may."""


def executor_of(kind: str, scheduler: str | None = None, workers: int = 4) -> Executor:
    """Return an executor; `local` runs `workers` calls at once, `dask` as many as the scheduler's workers have threads.

    The work of a Dask worker that dies is repeated on another one. Raises UsageError, one line, for options that
    exclude each other, a missing package, or a scheduler or worker that does not answer or is incompatible.
    """
    if (kind == "dask") != bool(scheduler):
        raise UsageError("--executor dask and --scheduler belong together")
    if not scheduler:
        return ThreadPoolExecutor(workers, thread_name_prefix="investigation")
    if not _ADDRESS.fullmatch(scheduler):
        raise UsageError(f"--scheduler {show_url(scheduler)}: write it as tcp://HOST:PORT or tls://HOST:PORT")
    cluster: Executor = pack.hook("dask")(scheduler)
    return cluster


def results(
    executor: Executor, function: Callable[[T], dict[str, Any]], items: Iterable[T]
) -> Iterator[tuple[T, dict[str, Any] | Exception]]:
    """Yield each item with the function's result, or with the exception, in the order in which they end.

    Calls that have not started are cancelled when the caller stops iterating.
    """
    futures = {executor.submit(function, item): item for item in items}
    try:
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except Exception as e:
                yield futures[future], e
    finally:
        for future in futures:
            future.cancel()


def one_line(e: BaseException | None) -> str:
    """Return an exception's text on one line, or the name of its class if it has none."""
    return " ".join(str(e).split()) or type(e).__name__


def carry_out(order: Order, hear: Callable[[RunProgress], None] = lambda said: None) -> dict[str, Any]:
    """Carry it out in a process of its own: see `investigation.summary`. `hear` is called with its progress.

    Raises UsageError before anything has started when the order, or its target, is not in order; ProcessDiedError if
    the process died, or was killed because it did not end.
    """
    within_s = order.deadline_s + HUNG_S if order.unattended else None  # an action may take longer than its deadline
    return forks.call(_run_investigation, order, hear=hear, within_s=within_s)


def _run_investigation(order: Order) -> dict[str, Any]:
    from runbook_lib.book import catalog, messages
    from runbook_lib.runs import investigation
    from runbook_lib.sources import settings

    messages.use(order.lang)
    config, book = settings.load(), catalog.load()
    return investigation.summary(order, config, book, investigation.tell_progress(forks.report, book), forks.report)
