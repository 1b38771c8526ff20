"""Run a bench in a process of its own, and end all that it has started when it ends, however it ends."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

#: What ends a bench, unless it is ignored already, as after nohup.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: So long may a bench take to stop in order, and what is left then to end, in s.
GRACE_S = 20.0
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def fork(limit_s: float = math.inf) -> Path:
    """Return an empty folder in a new process, which goes on; this one waits for it and exits with its code.

    A signal, and the limit, end the new process with SystemExit, so that it stops its servers in order. Then all its
    descendants are ended, also those that have left for a session of their own, and the folder is removed.
    """
    ending = {n for n in ENDING if signal.getsignal(n) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ending, signal.SIGCHLD})
    scratch = Path(tempfile.mkdtemp(prefix="runbook-bench-"))
    _control_process(_SET_CHILD_SUBREAPER, 1)  # who loses its parent becomes a child of this process
    child = os.fork()
    if not child:
        _control_process(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        for number in ending:
            signal.signal(number, _unwind)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ending, signal.SIGCHLD})
        return scratch
    code = _wait(child, ending, limit_s)
    if code is None:
        print(f"stopped: it took more than {limit_s:.0f} s", file=sys.stderr, flush=True)
        code = 124  # as `timeout` does
    with suppress(ProcessLookupError):  # it has ended
        os.kill(child, signal.SIGTERM)
        _wait(child, set(), GRACE_S)
    _end_descendants()
    shutil.rmtree(scratch, ignore_errors=True)
    sys.exit(code)


def _control_process(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _unwind(number: int, _: object) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _wait(child: int, ending: set[signal.Signals], limit_s: float) -> int | None:
    """Return the exit code of the child, or 128 and the number of a signal to this process; None after the limit."""
    until = time.monotonic() + limit_s
    while (left_s := until - time.monotonic()) > 0:
        got = signal.sigtimedwait({*ending, signal.SIGCHLD}, min(left_s, 60.0))
        for pid, status in _reap():
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        if got and got.si_signo in ending:
            return 128 + got.si_signo
    return None


def _reap() -> Iterator[tuple[int, int]]:
    """Yield the id and the status of each child that has ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            yield ended


def _end_descendants() -> None:
    """End all descendants: those that do not end when told so by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        asked: set[psutil.Process] = set()
        until = time.monotonic() + GRACE_S
        while time.monotonic() < until:
            list(_reap())
            left = set(psutil.Process().children(recursive=True))
            if not left:
                return
            for process in left - asked:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            asked |= left
            time.sleep(0.05)
