"""Run investigations on the workers of a Dask cluster: a `concurrent.futures.Executor` (see `runs.executors`)."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from importlib import import_module, metadata
from threading import Lock
from typing import Any, ParamSpec, TypeVar

from runbook_lib.model.usage import UsageError, install_command
from runbook_lib.runs.executors import WorkerError, one_line

#: Seconds for the scheduler to answer, for the first worker to appear, and for the workers to answer the check.
CONNECT_S, WORKER_S, FIT_S = 10.0, 10.0, 10.0

P = ParamSpec("P")
R = TypeVar("R")


class DaskExecutor(Executor):
    """The workers of a Dask scheduler. After a lost connection the next call connects again."""

    def __init__(self, scheduler: str) -> None:
        self._scheduler, self._lock = scheduler, Lock()
        self._version = metadata.version("runbook-notebooks")
        self._connect()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call `fn` on a worker. Besides its own exceptions the future raises Dask's and WorkerError."""
        with self._lock:
            if self._client.status == "closed":
                try:
                    self._connect()
                except UsageError as e:  # the setting worked before, so this is a failure, not a usage error
                    raise WorkerError(str(e)) from None
        future: Future[R] = self._executor.submit(_call_on_worker, self._version, fn, args, kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Disconnect from the cluster; unfinished calls are cancelled unless `wait`."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()

    def _connect(self) -> None:
        try:
            distributed: Any = import_module("distributed")
        except ModuleNotFoundError as e:
            raise UsageError(f"--executor dask needs the package {e.name}: {install_command('dask')}") from None
        try:
            self._client: Any = distributed.Client(self._scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as e:
            raise UsageError(f"the Dask scheduler {self._scheduler} does not answer: {one_line(e)}") from None
        # Not pure: a repeated order must run again, not return the cached result of an equal call.
        self._executor: Any = self._client.get_executor(pure=False)
        try:
            self._check_workers()
        except BaseException:
            self._client.close()
            raise

    def _check_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=WORKER_S)
        except TimeoutError:
            raise UsageError(f"the Dask scheduler {self._scheduler} has no worker") from None
        asked = {
            worker: self._client.submit(find_worker_problem, self._version, workers=[worker], pure=False, priority=1)
            for worker in self._client.nthreads()
        }
        until = time.monotonic() + FIT_S
        for worker, answer in asked.items():
            try:
                problem = answer.result(timeout=max(until - time.monotonic(), 0.1))
            except TimeoutError:
                continue  # it is busy; each call checks again
            except Exception as e:
                problem = f"runbook-notebooks {self._version} cannot be used there: {one_line(e)}"
            if problem:
                raise UsageError(f"Dask worker {worker}: {problem}")


def find_worker_problem(version: str) -> str:
    """Return why this process cannot run calls of that version of the package; "" if it can."""
    own = metadata.version("runbook-notebooks")
    if own != version:
        return f"it has runbook-notebooks {own}, this machine has {version}: install the same version on both"
    if multiprocessing.current_process().daemon:
        return (
            "its nanny does not allow it to start processes: start it with DASK_DISTRIBUTED__WORKER__DAEMON=False or "
            "--no-nanny"
        )
    return ""


def _call_on_worker(version: str, function: Callable[..., R], arguments: tuple[Any, ...], options: dict[str, Any]) -> R:
    """Check this worker, which may be newer than the last check, and call the function. Runs on the worker."""
    if problem := find_worker_problem(version):
        worker = import_module("distributed").get_worker().address
        raise WorkerError(f"Dask worker {worker}: {problem}")
    return function(*arguments, **options)
