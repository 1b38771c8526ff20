"""Metrics of a pod: its parts report to the pod, which serves /actuator/prometheus.

A part is a process here and a thread of a JVM there. So each part has a line to its pod, on which it reports, and the
series are kept by the pod: they count on for as long as it lives, whatever becomes of a part.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from . import java

log = logging.getLogger(__name__)

RETENTION = {"entitlement": "EntitlementRetentionWorker", "notification": "NotificationRetentionWorker"}


#: Takes a report: what happened, the name that it is about, labels, a value.
Report = Callable[[str, str, dict[str, str], Any], None]

_report: Report | None = None
_turn = threading.Lock()


# In a part --------------------------------------------------------------------------------------------------


def report_to(report: Report) -> None:
    """Let this process report there from now on, to the pod or in the pod itself to its board, its log entries too."""
    global _report
    _report = report
    logging.getLogger().addHandler(_Counted())


def count(name: str, by: float = 1.0, **labels: str) -> None:
    """Increase a counter."""
    _send_report("add", name, labels, by)


def timer(name: str, seconds: float) -> None:
    """Record a duration in a timer without buckets."""
    count(f"{name}_seconds_count")
    count(f"{name}_seconds_sum", seconds)


def gauge(name: str, value: float, **labels: str) -> None:
    """Set a gauge."""
    _send_report("set", name, labels, value)


def pool(part: str, connections: int, active: int, waiting: int) -> None:
    """Report how a part uses the pod's connections."""
    _send_report("pool", part, {}, (connections, active, waiting))


@contextmanager
def scheduled(worker: str) -> Iterator[None]:
    """Report one run of a scheduled loop: what it throws is logged, and the next run comes all the same."""
    began, exception = time.monotonic(), "none"
    _send_report("begin", worker, {}, began)
    try:
        yield
    except Exception as error:
        exception = java.name(error)
        log.exception("Unexpected error occurred in scheduled task")
    finally:
        _send_report("end", worker, {"exception": exception}, time.monotonic() - began)


def _send_report(verb: str, name: str, labels: dict[str, str], value: object) -> None:
    if _report is not None:
        with _turn, suppress(OSError):
            _report(verb, name, labels, value)


class _Counted(logging.Handler):
    """Counts log entries by level, as logback's metrics do."""

    def emit(self, record: logging.LogRecord) -> None:
        """Report one entry."""
        count("logback_events_total", level="warn" if record.levelno == logging.WARNING else record.levelname.lower())


# In the pod -------------------------------------------------------------------------------------------------


class Board:
    """The series of one pod."""

    def __init__(self, app: str) -> None:
        self._app, self._lock = app, threading.Lock()
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self._inside: dict[str, float] = {}
        self._pools: dict[str, tuple[int, int, int]] = {}
        self._started, self._began = time.time(), time.monotonic()
        for level in ("trace", "debug", "info", "warn", "error"):
            self.apply("add", "logback_events_total", {"level": level}, 0.0)
        self.apply("add", "hikaricp_connections_timeout_total", {"pool": java.POOL}, 0.0)

    def hear(self, line: Connection) -> None:
        """Take what a part reports until it ends; each part's line has a thread of its own."""

        def listen() -> None:
            with suppress(EOFError, OSError):
                while True:
                    self.apply(*line.recv())

        threading.Thread(target=listen, daemon=True).start()

    def apply(self, verb: str, name: str, labels: dict[str, str], value: float | tuple[int, int, int]) -> None:
        """Take one report."""
        with self._lock:
            if isinstance(value, tuple):
                self._pools[name] = value
            elif verb == "begin":
                self._inside[name] = value
                self._values[_task_series("active_seconds_sum", name)] += 0.0  # there from its first run on
            elif verb == "end":
                self._inside.pop(name, None)
                ended = {
                    "error": labels["exception"],
                    "exception": labels["exception"],
                    "outcome": "SUCCESS" if labels["exception"] == "none" else "ERROR",
                }
                self._values[_task_series("seconds_count", name, **ended)] += 1
                self._values[_task_series("seconds_sum", name, **ended)] += value
            elif verb == "set":
                self._values[name, tuple(sorted(labels.items()))] = value
            else:
                self._values[name, tuple(sorted(labels.items()))] += value

    def text(self) -> str:
        """Return all series in the text format that Prometheus reads."""
        now = time.monotonic()
        with self._lock:
            found = dict(self._values)
            for name, labels in self._values:
                if name.endswith("active_seconds_sum"):
                    worker = dict(labels)["code_namespace"].rpartition(".")[2]
                    inside = now - self._inside[worker] if worker in self._inside else 0.0
                    found[name, labels] = inside
                    found[_task_series("active_seconds_max", worker)] = inside
                    found[_task_series("active_seconds_count", worker)] = float(worker in self._inside)
            connections, active, waiting = (sum(part) for part in zip((0, 0, 0), *self._pools.values(), strict=True))
        own = (("pool", java.POOL),)
        found |= {
            ("process_start_time_seconds", ()): self._started,
            ("process_uptime_seconds", ()): now - self._began,
            ("hikaricp_connections", own): connections,
            ("hikaricp_connections_active", own): active,
            ("hikaricp_connections_idle", own): connections - active,
            ("hikaricp_connections_pending", own): waiting,
            ("hikaricp_connections_max", own): java.POOL_SIZE,
        }
        lines = []
        for (name, labels), value in sorted(found.items()):
            shown = ",".join(f'{k}="{v}"' for k, v in (("application", self._app), *labels))
            lines.append(f"{name}{{{shown}}} {value}\n")
        return "".join(lines)


def _task_series(what: str, worker: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    service = next(s for s in RETENTION if worker.lower().startswith(s))
    own = {"code_function": "run", "code_namespace": f"com.example.{service}.worker.{worker}", **labels}
    return f"tasks_scheduled_execution_{what}", tuple(sorted(own.items()))
