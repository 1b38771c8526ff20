"""Processes that are forked from one that has imported what they all need, and nothing else.

That one is started first of all, so that it imports while the command itself still does. A process that comes from it
may fork further ones itself: it has the same imports, and one thread. Each is told apart by its pipe, and ends with
whoever asked for it, so that nothing runs on that nobody waits for.

Ctrl-C in a terminal reaches all of them, and is for the command alone. It, and whoever has begun others, tells these to
end by SIGTERM, which they take while they wait: in between they finish what they do.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import active_children, connection, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic, TypeVar

R = TypeVar("R")

#: Seconds in which whoever is told to end must have left in order; who has begun others waits for them first.
LEAVE_S = 10.0

#: By how much those are nicer than whoever starts them.
NICE = 5
#: What the process that others are forked from imports, in this order.
PRELOADED = ["runbook_lib.runs.polite", "runbook_lib.warm"]

_is_fork = False


class Killed(Exception):
    """The process ended without an answer."""


class Forked(Generic[R]):
    """A process that works on one call."""

    def __init__(self, process: BaseProcess, pipe: connection.Connection) -> None:
        self.process, self.pipe = process, pipe

    def result(self) -> R:
        """What the call returned, or raised. Waits for it. Raises Killed for a process that has died."""
        try:
            done, value = self.pipe.recv()
        except (EOFError, OSError):
            raise Killed("the process was killed") from None
        finally:
            self.end()
        if not done:
            raise value
        result: R = value
        return result

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


@cache
def context() -> BaseContext:
    """Where processes come from; the first call starts it. A process that came from there has what its own need."""
    if _is_fork:
        return get_context("fork")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a fork takes one thread with it, and no more are needed
    origin = get_context("forkserver")
    origin.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # it leaves SIGINT unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    atexit.register(_end_all)
    return origin


def start(function: Callable[..., R], *arguments: Any) -> Forked[R]:
    """Begin a call in a process of its own."""
    origin: Any = context()
    ours, theirs = origin.Pipe(duplex=False)
    process = origin.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    return Forked(process, ours)


def call(function: Callable[..., R], *arguments: Any) -> R:
    """What a function returns, or raises, in a process of its own, which has ended when this does."""
    forked = start(function, *arguments)
    try:
        ready([forked], None)
        return forked.result()
    finally:
        leave([forked])


def ready(running: Iterable[Forked[R]], until: float | None) -> list[Forked[R]]:
    """Those that have an answer or have died, waited for until a time (seconds since 1970).

    Raises KeyboardInterrupt in a process from here that is told to end, or whose parent is gone.
    """
    by_pipe: dict[Any, Forked[R]] = {f.pipe: f for f in running}
    parent = parent_process() if _is_fork else None
    watched = [*by_pipe, *([parent.sentinel] if parent else [])]
    with interruptible():
        found = connection.wait(watched, None if until is None else max(until - time.time(), 0))
    if parent and parent.sentinel in found:
        raise KeyboardInterrupt
    return [by_pipe[p] for p in found if p in by_pipe]


@contextmanager
def interruptible() -> Iterator[None]:
    """Where a process from here takes the word to end."""
    try:
        if _is_fork:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        yield
    finally:
        if _is_fork:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def leave(running: Iterable[Forked[Any]]) -> None:
    """Tell them to end, wait until they have left in order, and end those that have not."""
    running = list(running)
    _leave([f.process for f in running])
    for forked in running:
        forked.end()


def _leave(processes: Iterable[BaseProcess]) -> None:
    processes = [p for p in processes if p.is_alive()]
    for process in processes:
        process.terminate()
    until = time.monotonic() + (LEAVE_S if _is_fork else LEAVE_S + 2)
    for process in processes:
        process.join(max(until - time.monotonic(), 0))
        process.kill()


def _end_all() -> None:
    """At the end of a process: of all that it has begun, and of where they come from."""
    _leave(active_children())
    with suppress(OSError, TypeError):
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGTERM)  # type: ignore[attr-defined]


def end_with_parent() -> None:
    """In a process from here that will not wait with `ready`: end when whoever asked for it is gone."""
    parent = parent_process()

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    if parent is not None:
        Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _answer(pipe: connection.Connection, function: Callable[..., R], arguments: tuple[Any, ...]) -> None:
    global _is_fork
    _is_fork = True
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        answer: tuple[bool, Any] = (True, function(*arguments))
    except Exception as e:
        answer = (False, e)
    except KeyboardInterrupt:
        return
    with suppress(BrokenPipeError):  # nobody waits for it any more
        pipe.send(answer)
    pipe.close()
