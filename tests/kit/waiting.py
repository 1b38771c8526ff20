"""Wait for what comes by itself, on a machine that may be busy."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any


def until(holds: Callable[[], Any], what: str | Callable[[], str] = "it", within: float = 60.0) -> Any:
    """The first true answer, within so many seconds; `what` is waited for, in words."""
    end = time.monotonic() + within
    while not (found := holds()):
        assert time.monotonic() < end, f"waited for {what if isinstance(what, str) else what()}"
        time.sleep(0.05)
    return found


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether anything accepts connections on this port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
