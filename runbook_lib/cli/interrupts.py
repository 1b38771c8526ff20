"""Signal handling: Ctrl-C and SIGTERM end the command at any moment with one line and exit code 130 or 143.

An exception raised in the middle of an import or of a callback becomes a traceback or is lost. So the handler ends the
command itself; an exception is raised only where work has to be undone by its owner.

This module is imported first and imports almost nothing, so that the time before `exit_on_signal` is short.
"""

from __future__ import annotations

import atexit
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def exit_on_signal() -> None:
    """Let a signal end this process, once what was registered with `atexit` is done; a second one ends it at once."""
    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell starts what runs behind others
            signal.signal(number, _end_process)


def raise_on_signal() -> None:
    """Let the first signal raise a KeyboardInterrupt with its number; in a process that `watch`es."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _end_process:
            signal.signal(number, _raise_interrupt)


def _end_process(number: int, _: object) -> NoReturn:
    _set_handlers(signal.SIG_DFL)
    try:
        os.write(2, b"runbook: interrupted\n")
    finally:
        atexit._run_exitfuncs()
        os._exit(128 + number)


def _raise_interrupt(number: int, _: object) -> NoReturn:
    _set_handlers(signal.SIG_IGN)  # what is undone now is bounded, and must not be left in its middle
    raise KeyboardInterrupt(number)


def _set_handlers(handler: signal.Handlers) -> None:
    for number in _NUMBERS:
        signal.signal(number, handler)
