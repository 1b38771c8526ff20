"""Processes that are forked from one that has imported what they all need, and nothing else.

The origin process is started first, so that it imports while the command itself still does. A forked process may fork
further ones: it has the same imports, and one thread. The caller identifies each by its pipe, and each ends with its
caller, so that no process runs on without one.

Ctrl-C in a terminal reaches all of them, but only the command handles it. The command, and every process that has
forked others, ends these by SIGTERM, which they accept while they wait; between waits they finish their work.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import active_children, connection, forkserver, get_context, parent_process, resource_tracker, util
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic, TypeVar

R = TypeVar("R")
Hear = Callable[[Any], None]

#: Seconds that a process has to end in order, after its own children have ended.
LEAVE_S = 10.0

#: By how much the niceness of these processes is raised.
NICE = 5
#: The imports, in order, of the process that others are forked from; what runs sections imports `RUNNERS` too.
PRELOADED = ["runbook_lib.runs.polite", "runbook_lib.cli.warm"]
RUNNERS = "runbook_lib.cli.warm_runners"

_is_fork = False
#: Where this process reports to the one that began it.
_pipe: connection.Connection | None = None


class ProcessDiedError(Exception):
    """The process ended without an answer."""


class Forked(Generic[R]):
    """A process that runs one call; `hear` is called with what it reports meanwhile."""

    def __init__(self, process: BaseProcess, pipe: connection.Connection, hear: Hear) -> None:
        self.process, self.pipe, self._hear = process, pipe, hear
        self._answer: tuple[bool | None, Any] | None = None

    def receive(self) -> bool:
        """Read one report, or the answer; return whether this was the answer, or the process has died."""
        try:
            done, value = self.pipe.recv()
        except (EOFError, OSError):
            done, value = False, ProcessDiedError("the process was killed")
        if done is None:
            self._hear(value)
            return False
        self._answer = done, value
        return True

    def result(self) -> R:
        """Wait for the call; return what it returned or raise what it raised. Raises ProcessDiedError if it died."""
        try:
            while self._answer is None:
                self.receive()
        finally:
            self.end()
        done, value = self._answer
        if not done:
            raise value
        result: R = value
        return result

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        if self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def end(self) -> None:
        """Kill the process, and the group of processes that it leads, if it does."""
        if self.process.pid and not self.pipe.closed:  # its number may be another's later
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def is_fork() -> bool:
    """Return whether this process was forked; it must have one thread when it forks further ones."""
    return _is_fork


@cache
def context() -> BaseContext:
    """Return the context that processes are forked from; the first call starts it."""
    if _is_fork:
        return get_context("fork")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a fork takes one thread with it, and no more are needed
    origin = get_context("forkserver")
    origin.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # it leaves SIGINT unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        util.get_temp_dir()  # made, and registered to be removed, in two steps
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM} - before)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    atexit.register(_end_all)
    return origin


def start(function: Callable[..., R], *arguments: Any, hear: Hear = lambda said: None) -> Forked[R]:
    """Begin a call in a process of its own; `hear` is called with what the call reports, while this one waits."""
    origin: Any = context()
    ours, theirs = origin.Pipe(duplex=False)
    process = origin.Process(target=_run_call, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    return Forked(process, ours, hear)


def call(
    function: Callable[..., R], *arguments: Any, hear: Hear = lambda said: None, within_s: float | None = None
) -> R:
    """Call a function in a process of its own; return what it returns or raise what it raises.

    The process has then ended. Raises ProcessDiedError if it died, or has no answer within `within_s` seconds.
    """
    until = None if within_s is None else time.monotonic() + within_s
    forked = start(function, *arguments, hear=hear)
    try:
        while not wait_for_any([forked], until):
            if until is not None and time.monotonic() >= until:
                raise ProcessDiedError(f"no answer within {within_s:.0f} s")
        return forked.result()
    finally:
        end_in_order([forked])


def wait_for_any(running: Iterable[Forked[R]], until: float | None) -> list[Forked[R]]:
    """Wait for any that has an answer or has died, until a time (of `time.monotonic`), and return these.

    When one has reported something, it is heard, and this returns too: what was heard may change what is waited for.
    Raises KeyboardInterrupt in a forked process that gets SIGTERM, or whose parent is gone.
    """
    by_pipe: dict[Any, Forked[R]] = {f.pipe: f for f in running}
    parent = parent_process() if _is_fork else None
    watched = [*by_pipe, *([parent.sentinel] if parent else [])]
    with interruptible():
        found = connection.wait(watched, None if until is None else max(until - time.monotonic(), 0))
    if parent and parent.sentinel in found:
        raise KeyboardInterrupt
    return [f for p in found if (f := by_pipe.get(p)) and f.receive()]


def report(said: object) -> None:
    """Tell the process that began this one; nothing in a process that no other one waits for."""
    if _pipe is not None:
        with suppress(OSError):  # the caller is gone
            _pipe.send((None, said))


@contextmanager
def interruptible() -> Iterator[None]:
    """Allow SIGTERM to interrupt this block, in a forked process."""
    try:
        if _is_fork:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        yield
    finally:
        if _is_fork:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def end_in_order(running: Iterable[Forked[Any]]) -> None:
    """Tell them to end, wait until they have left in order, and end those that have not."""
    running = list(running)
    _terminate_and_join([f.process for f in running])
    for forked in running:
        forked.end()


def _terminate_and_join(processes: Iterable[BaseProcess]) -> None:
    processes = [p for p in processes if p.is_alive()]
    for process in processes:
        process.terminate()
    until = time.monotonic() + (LEAVE_S if _is_fork else LEAVE_S + 2)
    for process in processes:
        process.join(max(until - time.monotonic(), 0))
        process.kill()


def _end_all() -> None:
    """End what this process has started, and the process that these were forked from."""
    _terminate_and_join(active_children())
    with suppress(OSError, TypeError):
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGTERM)  # type: ignore[attr-defined]


def end_with_parent() -> None:
    """End this process when its parent is gone, for a forked process that does not use `wait_for_any`."""
    parent = parent_process()

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    if parent is not None:
        Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _run_call(pipe: connection.Connection, function: Callable[..., R], arguments: tuple[Any, ...]) -> None:
    global _is_fork, _pipe
    _is_fork, _pipe = True, pipe
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        answer: tuple[bool, Any] = (True, function(*arguments))
    except Exception as e:
        answer = (False, e)
    except KeyboardInterrupt:
        return
    with suppress(BrokenPipeError):  # the caller is gone
        pipe.send(answer)
    pipe.close()
