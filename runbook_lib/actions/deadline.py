"""A limit of time for a block of code."""

from __future__ import annotations

import signal
from typing import NoReturn


class DeadlineError(BaseException):
    """A block has taken longer than it may; no handler of errors within the block may keep it."""


class Deadline:
    """Raise DeadlineError in a block that takes longer than so many seconds, if this is the main thread."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        """Begin to count."""
        try:
            self._handler = signal.signal(signal.SIGALRM, self._end)
        except ValueError:  # another thread
            self._handler = None
        else:
            self._timer = signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *error: object) -> None:
        """Leave the timer as it was."""
        if self._handler is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._handler)
            signal.setitimer(signal.ITIMER_REAL, *self._timer)

    def _end(self, *_: object) -> NoReturn:
        raise DeadlineError(f"it took more than {self._seconds:g} s")
