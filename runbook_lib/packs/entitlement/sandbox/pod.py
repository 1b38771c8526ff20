"""One pod: a process with a fresh pod name whose parts are child processes, as a JVM's are threads.

A part that fails at its start takes the pod down and the supervisor starts it again: the crash loop. A part
that is killed stays dead while the pod lives on and looks healthy: a worker that stopped.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

POD_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
STOP_TIMEOUT = 1.0


def pod_name(app: str) -> str:
    """A name such as `notification-7c9d5f6b8-x2k4q`."""
    chars = random.choices(POD_NAME_LETTERS, k=14)
    return f"{app}-{''.join(chars[:9])}-{''.join(chars[9:])}"


def read_env(path: Path) -> dict[str, str]:
    """The NAME=VALUE lines that all pods share."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line)


class JsonLines(logging.Formatter):
    """One JSON object per line, with the field names of the applications' own log."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line = {
            "@timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "service.name": self._service,
            "severity": "WARN" if record.levelno == logging.WARNING else record.levelname,
            "logger": record.name,
            "thread": record.processName,
            "message": record.getMessage(),
        }
        for name in ("event_id", "event_type", "source_id"):
            if name in record.__dict__:
                line[name] = record.__dict__[name]
        if record.exc_info:
            line["stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(service: str) -> None:
    """JSON lines on standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # the broker module says it in the reference's words


def main(app: str, directory: Path) -> NoReturn:
    """Run the pod `entitlement` or `notification` until it is stopped."""
    from . import database, entitlement, notification

    parts = {
        "entitlement": {"api": entitlement.run_api, "relay": entitlement.run_relay},
        "notification": {"subscriber": notification.run_subscriber, "worker": notification.run_worker},
    }[app]
    name = pod_name(app)
    env = {**os.environ, **read_env(directory / "pods.env"), "HOSTNAME": name}
    set_up_logging(app)
    database.set_clock(float(env.get(f"{app.upper()}_CLOCK_OFFSET", "0")))

    context = multiprocessing.get_context("fork")
    children = {part: context.Process(target=run, args=(env,), name=part) for part, run in parts.items()}
    for child in children.values():
        child.start()
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit(0))
    (directory / "run" / f"{app}.json").write_text(
        json.dumps({"pod": name, "parts": {part: child.pid for part, child in children.items()}})
    )
    try:
        _watch(list(children.values()))
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.join(STOP_TIMEOUT)
            child.kill()  # a stopped (SIGSTOP) part does not hear SIGTERM


def _watch(children: list[multiprocessing.context.ForkProcess]) -> NoReturn:
    """Leave with an error as soon as a part left by itself; a killed part is nobody's business."""
    while children:
        ready = multiprocessing.connection.wait([child.sentinel for child in children])
        for child in [child for child in children if child.sentinel in ready]:
            child.join()  # the sentinel can be a moment ahead of the exit code
            if child.exitcode is not None and child.exitcode >= 0:
                sys.exit(1)
            children.remove(child)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
