"""Processes that are forked from one that has imported what they all need, and nothing else.

That one is started first of all, so that it imports while the command itself still does. A process that comes from it
may fork further ones itself: it has the same imports, and one thread. Each is told apart by its pipe, and ends with
whoever asked for it, so that nothing runs on that nobody waits for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import cache
from multiprocessing import connection, forkserver, get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic, TypeVar

R = TypeVar("R")

_is_fork = False


class Killed(Exception):
    """The process ended without an answer."""


class Forked(Generic[R]):
    """A process that works on one call."""

    def __init__(self, process: BaseProcess, pipe: connection.Connection) -> None:
        self._process, self.pipe = process, pipe

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
        self._process.kill()
        self._process.join()
        self.pipe.close()


@cache
def context() -> BaseContext:
    """Where processes come from; the first call starts it. A process that came from there has what its own need."""
    if _is_fork:
        return get_context("fork")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a fork takes one thread with it, and no more are needed
    origin = get_context("forkserver")
    origin.set_forkserver_preload(["runbook_lib.warm"])
    forkserver.ensure_running()
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
        forked.end()


def ready(running: Iterable[Forked[R]], until: float | None) -> list[Forked[R]]:
    """Those that have an answer or have died, waited for until a time (seconds since 1970)."""
    by_pipe: dict[Any, Forked[R]] = {f.pipe: f for f in running}
    parent = parent_process() if _is_fork else None
    watched = [*by_pipe, *([parent.sentinel] if parent else [])]
    found = connection.wait(watched, None if until is None else max(until - time.time(), 0))
    if parent and parent.sentinel in found:
        os._exit(1)
    return [by_pipe[p] for p in found if p in by_pipe]


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
    try:
        answer: tuple[bool, Any] = (True, function(*arguments))
    except Exception as e:
        answer = (False, e)
    pipe.send(answer)
    pipe.close()
