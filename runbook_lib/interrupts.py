"""What Ctrl-C and SIGTERM do to the command at any moment: one line, exit code 130 or 143, nothing left behind.

An exception that is raised in the middle of an import, or of a callback, becomes a traceback or is lost. So the command
ends at once, from within the handler; only where something has to be undone by the one who does it, it is raised.
This module is imported before all others and imports next to nothing, so that the moment before `watch` is short.
"""

from __future__ import annotations

import atexit
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def watch() -> None:
    """From now on they end this process, once what was registered with `atexit` is done; a second one does at once."""
    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell starts what runs behind others
            signal.signal(number, _end)


def unwind() -> None:
    """From now on the first of them is raised as a KeyboardInterrupt with its number; in a process that `watch`es."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _end:
            signal.signal(number, _raise)


def _end(number: int, _: object) -> NoReturn:
    _every(signal.SIG_DFL)
    try:
        os.write(2, b"runbook: interrupted\n")
    finally:
        atexit._run_exitfuncs()
        os._exit(128 + number)


def _raise(number: int, _: object) -> NoReturn:
    _every(signal.SIG_IGN)  # what is undone now is bounded, and must not be left in its middle
    raise KeyboardInterrupt(number)


def _every(handler: signal.Handlers) -> None:
    for number in _NUMBERS:
        signal.signal(number, handler)
