"""A thread that polls the journal and starts work, one piece at a time for each key."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import Event, Lock, Thread

from runbook_lib.receiver.database import JournalError

#: Seconds between two polls, unless `wake` is called.
POLL_S = 1.0

_log = logging.getLogger(__name__)


class Loop(ABC):
    """The base of the dispatcher and the notifier. If the journal cannot be used, the loop tries again."""

    def __init__(self, name: str) -> None:
        self._wakeup, self.stopping, self._lock = Event(), Event(), Lock()
        self._working: dict[str, Thread] = {}
        self._thread = Thread(target=self._run_loop, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Poll now: the journal may have new work."""
        self._wakeup.set()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Start no more work, wait for the work in progress, and return whether all of it has ended in time.

        The next receiver does unfinished work again. The threads do not block the end of the process, but the process
        pools of a local investigation do: if this returns False, exit with `os._exit`.
        """
        until = time.monotonic() + timeout_s
        self.stopping.set()
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)  # before the list: it may be starting work
        with self._lock:
            workers = list(self._working.values())
        for thread in workers:
            thread.join(max(until - time.monotonic(), 0))
        return not any(t.is_alive() for t in (self._thread, *workers))

    @abstractmethod
    def poll(self) -> None:
        """Start the work that is due. May raise JournalError."""

    @property
    def busy(self) -> list[str]:
        """Return the keys with work in progress."""
        with self._lock:
            return list(self._working)

    def start_work(self, key: str, work: Callable[[], None]) -> None:
        """Start work for a key that is not busy; poll again when it ends."""

        def do() -> None:
            try:
                work()
            except Exception:
                _log.exception("%s: unexpected", key)
            finally:
                with self._lock:
                    del self._working[key]
                self.wake()

        thread = Thread(target=do, name=f"{self._thread.name} {key}", daemon=True)
        with self._lock:
            thread.start()  # if it fails, the key is not busy; the thread itself takes the lock at its end
            self._working[key] = thread

    def write_until_done(self, write: Callable[[], object]) -> None:
        """Write into the journal, retrying until it succeeds or the receiver is stopped."""
        while True:
            try:
                write()
                return
            except JournalError as e:
                _log.warning("%s", e)
            if self.stopping.wait(POLL_S):
                return

    def _run_loop(self) -> None:
        while not self.stopping.is_set():
            self._wakeup.clear()
            try:
                self.poll()
            except JournalError as e:
                _log.warning("%s", e)
            except Exception:  # the next poll may succeed
                _log.exception("%s: unexpected", self._thread.name)
            self._wakeup.wait(POLL_S)
