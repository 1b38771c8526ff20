"""Where investigations are carried out: by this machine, or by the workers of a Dask cluster.

Either is a `concurrent.futures.Executor`. What is sent and what comes back must be small: an `Order`, and what
`carry_out` makes of it.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from importlib import import_module, metadata
from threading import Lock
from typing import Any, ParamSpec, TypeVar

from runbook_lib.model.order import Order
from runbook_lib.runs import forks
from runbook_lib.usage import UsageError

KINDS = ("local", "dask")
_ADDRESS = re.compile(r"(tcp|tls|wss?)://[^/\s]+:\d{1,5}/?")

#: Seconds in which a scheduler must answer, then one worker must be there, then the workers say whether they are fit.
CONNECT_S, WORKER_S, FIT_S = 10.0, 10.0, 10.0

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class WorkerError(Exception):
    """What was sent cannot be carried out where it went, one line; elsewhere, or later, it may be."""


def executor_of(kind: str, scheduler: str | None = None, workers: int = 4) -> Executor:
    """`local`: at most `workers` calls at once, here. `dask`: as many as the scheduler's workers have threads.

    What runs on a Dask worker that dies is begun again on another one. Raises UsageError, one line: options that do
    not belong together, a package that is missing, a scheduler or a worker that does not answer or does not fit.
    """
    if (kind == "dask") != bool(scheduler):
        raise UsageError("--executor dask and --scheduler belong together")
    if not scheduler:
        return ThreadPoolExecutor(workers, thread_name_prefix="investigation")
    if not _ADDRESS.fullmatch(scheduler):
        raise UsageError(f"--scheduler {scheduler}: write it as tcp://HOST:PORT or tls://HOST:PORT")
    return _Cluster(scheduler)


def results(
    executor: Executor, function: Callable[[T], dict[str, Any]], items: Iterable[T]
) -> Iterator[tuple[T, dict[str, Any] | Exception]]:
    """What the function makes of each, or why it could not be called, in the order in which they end.

    What is not done yet is cancelled when whoever asks for it stops asking.
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


class _Cluster(Executor):
    """The workers of a Dask scheduler. A connection that was lost for good is opened again with the next call."""

    def __init__(self, scheduler: str) -> None:
        self._scheduler, self._lock = scheduler, Lock()
        self._version = metadata.version("runbook-notebooks")
        self._open()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call it on a worker. Beside what it raises the future raises what Dask does, and WorkerError."""
        with self._lock:
            if self._client.status == "closed":
                try:
                    self._open()
                except UsageError as e:  # it was right once, and may be again
                    raise WorkerError(str(e)) from None
        future: Future[R] = self._executor.submit(_there, self._version, fn, args, kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster as it was; what is not done by then is cancelled, unless it is waited for."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()

    def _open(self) -> None:
        try:
            distributed: Any = import_module("distributed")
        except ModuleNotFoundError as e:
            raise UsageError(
                f"--executor dask needs the package {e.name}: pip install 'runbook-notebooks[dask]'"
            ) from None
        try:
            self._client: Any = distributed.Client(self._scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as e:
            raise UsageError(f"the Dask scheduler {self._scheduler} does not answer: {one_line(e)}") from None
        # Not pure: an order that is carried out again is no repetition of a call whose result is known.
        self._executor: Any = self._client.get_executor(pure=False)
        try:
            self._check()
        except BaseException:
            self._client.close()
            raise

    def _check(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=WORKER_S)
        except TimeoutError:
            raise UsageError(f"the Dask scheduler {self._scheduler} has no worker") from None
        asked = {
            worker: self._client.submit(unfit, self._version, workers=[worker], pure=False, priority=1)
            for worker in self._client.nthreads()
        }
        until = time.monotonic() + FIT_S
        for worker, answer in asked.items():
            try:
                problem = answer.result(timeout=max(until - time.monotonic(), 0.1))
            except TimeoutError:
                continue  # it is at work; each call asks again
            except Exception as e:
                problem = f"runbook-notebooks {self._version} can not be used there: {one_line(e)}"
            if problem:
                raise UsageError(f"Dask worker {worker}: {problem}")


def unfit(version: str) -> str:
    """Why this process cannot carry out what is sent by that version of the package; "" where it can."""
    own = metadata.version("runbook-notebooks")
    if own != version:
        return f"it has runbook-notebooks {own}, and this is {version}: install the same version on both"
    if multiprocessing.current_process().daemon:
        return (
            "under its nanny it may start no process: set DASK_DISTRIBUTED__WORKER__DAEMON=False where it is started, "
            "or start it with --no-nanny"
        )
    return ""


def one_line(e: BaseException | None) -> str:
    """What an exception says, or its kind where it says nothing."""
    return " ".join(str(e).split()) or type(e).__name__


def _there(version: str, function: Callable[..., R], arguments: tuple[Any, ...], options: dict[str, Any]) -> R:
    """On a worker, which may have come later than those that were asked."""
    if problem := unfit(version):
        worker = import_module("distributed").get_worker().address
        raise WorkerError(f"Dask worker {worker}: {problem}")
    return function(*arguments, **options)


def carry_out(order: Order) -> dict[str, Any]:
    """Carry it out in a process of its own: see `investigation.summary`.

    Raises UsageError before anything has started when the order, or its target, is not in order.
    """
    return forks.call(_investigate, order)


def _investigate(order: Order) -> dict[str, Any]:
    from runbook_lib.runs import batch, investigation

    if order.job:
        return investigation.summary(order)  # perhaps one of many: nobody could tell whose section it is
    return investigation.summary(order, batch.terminal_progress())
