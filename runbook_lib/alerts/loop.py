"""A thread that looks at the journal again and again, and begins work: one piece at a time for each key."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import Event, Lock, Thread

from runbook_lib.alerts.journal import JournalError

#: Seconds between two looks, unless woken.
LOOK_S = 1.0

_log = logging.getLogger(__name__)


class Loop(ABC):
    """What the dispatcher and the notifier have in common. A journal that cannot be used now is waited for."""

    def __init__(self, name: str) -> None:
        self._woken, self.stopping, self._lock = Event(), Event(), Lock()
        self._at_work: dict[str, Thread] = {}
        self._thread = Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it looks."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """There may be something new."""
        self._woken.set()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Begin nothing more and wait a little for what was begun; whether all of it has ended.

        What has not is begun again by the next receiver. Its threads do not hold up the end of the process, but the
        pools of an investigation on this machine do: leave with `os._exit` where this is False.
        """
        until = time.monotonic() + timeout_s
        self.stopping.set()
        self.wake()
        with self._lock:
            threads = [t for t in (self._thread, *self._at_work.values()) if t.ident is not None]
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0))
        return not any(t.is_alive() for t in threads)

    def first(self) -> None:  # noqa: B027 - nothing, unless there is something
        """What is done once, before the first look. May raise JournalError: then it is done again."""

    @abstractmethod
    def look(self) -> None:
        """Begin whatever is due. May raise JournalError."""

    @property
    def busy(self) -> list[str]:
        """The keys that are worked on."""
        with self._lock:
            return list(self._at_work)

    def begin(self, key: str, work: Callable[[], None]) -> None:
        """Have work done for a key that is not busy; the next look follows it."""

        def do() -> None:
            try:
                work()
            except Exception:
                _log.exception("%s: unexpected", key)
            finally:
                with self._lock:
                    del self._at_work[key]
                self.wake()

        thread = Thread(target=do, name=f"{self._thread.name} {key}", daemon=True)
        with self._lock:
            self._at_work[key] = thread
        thread.start()

    def keep(self, write: Callable[[], object]) -> bool:
        """Write into the journal, as often as it takes; False where the receiver is stopped before."""
        while True:
            try:
                write()
                return True
            except JournalError as e:
                _log.warning("%s", e)
            if self.stopping.wait(LOOK_S):
                return False

    def _run(self) -> None:
        if not self.keep(self.first):
            return
        while not self.stopping.is_set():
            self._woken.clear()
            try:
                self.look()
            except JournalError as e:
                _log.warning("%s", e)
            except Exception:  # whatever it is, the next look may do better
                _log.exception("%s: unexpected", self._thread.name)
            self._woken.wait(LOOK_S)
