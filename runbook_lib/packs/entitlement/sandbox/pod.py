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
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread
from typing import NoReturn

import psycopg

from . import database, entitlement, java, notification, telemetry
from .settings import Environment, read_env
from .state import load

POD_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
STOP_TIMEOUT = 1.0
#: How often the migrations are tried while the database does not let anybody in, and the longest pause between.
DATABASE_TRIES, LONGEST_PAUSE = 30, 2.0
#: How many of the pod's connections its own parts use; the others are there and idle.
USED = {"entitlement": 3, "notification": 5}
MIGRATIONS = {"entitlement": 4, "notification": 3}
PARTS: dict[str, dict[str, Callable[[Environment], None]]] = {
    "entitlement": {"api": entitlement.run_api, "relay": entitlement.run_relay},
    "notification": {"subscriber": notification.run_subscriber, "worker": notification.run_worker},
}

FAILED_START = "Application run failed"

log = logging.getLogger(__name__)


def pod_name(app: str) -> str:
    """A name such as `notification-7c9d5f6b8-x2k4q`."""
    chars = random.choices(POD_NAME_LETTERS, k=14)
    return f"{app}-{''.join(chars[:9])}-{''.join(chars[9:])}"


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
        if record.exc_info and record.exc_info[1]:
            line["stack_trace"] = java.stack(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(service: str) -> None:
    """JSON lines on standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # the broker module says it in the reference's words


def main(app: str, directory: Path) -> NoReturn:
    """Run the pod `entitlement` or `notification` until it is stopped."""
    name = pod_name(app)
    shared = read_env(directory / "pods.env")
    own = {k.removeprefix(f"{app.upper()}__"): v for k, v in shared.items() if k.startswith(f"{app.upper()}__")}
    env = {**os.environ, **shared, **own, "HOSTNAME": name, "SERVICE": app}
    set_up_logging(app)
    database.set_clock(float(env.get(f"{app.upper()}_CLOCK_OFFSET", "0")))
    _migrate(env)

    context = multiprocessing.get_context("fork")
    board = telemetry.Board(app)
    children, lines = {}, []
    for part, run in PARTS[app].items():
        heard, line = context.Pipe(duplex=False)
        children[part] = child = context.Process(target=_run, args=(run, env, line), name=part)
        child.start()
        line.close()
        lines.append(heard)
    for heard in lines:  # once nothing is forked any more: it takes a thread each
        board.hear(heard)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit(0))
    (directory / "run" / f"{app}.json").write_text(
        json.dumps({"pod": name, "pid": os.getpid(), "parts": {part: child.pid for part, child in children.items()}})
    )
    try:
        telemetry.report_to(board)
        for n in range(java.POOL_SIZE - USED[app]):
            database.Pooled(env, f"spare-{n}")
        _serve(env, board, load(directory).addresses.service_ports[app])
        _watch(list(children.values()))
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.join(STOP_TIMEOUT)
            child.kill()  # a stopped (SIGSTOP) part does not hear SIGTERM


def _migrate(env: Environment) -> None:
    """What happens before anything else: the schema is as this version needs it, or the application does not start."""
    service = env["SERVICE"]
    table = f"{service}.flyway_schema_history_{service}"
    history = f"SELECT count(*) FILTER (WHERE success) = count(*), count(*) FROM {table}"  # noqa: S608
    for n in range(DATABASE_TRIES + 1):
        try:
            with psycopg.connect(database.url(env), connect_timeout=5) as connection:
                done = connection.execute(history).fetchone()
        except psycopg.OperationalError as error:
            if n == DATABASE_TRIES:
                _fail(java.StartError("Unable to obtain connection from database"), error)
            time.sleep(min(n + 1, LONGEST_PAUSE))
        except psycopg.Error as error:
            _fail(java.StartError("Unable to check whether schema history table exists"), error)
        else:
            if done != (True, MIGRATIONS[service]):
                _fail(java.StartError("Validate failed: Migrations have failed validation"), None)
            return


def _run(run: Callable[[Environment], None], env: Environment, line: Connection) -> None:
    """One part; what it throws is the end of the application."""
    telemetry.report_to(line)
    try:
        run(env)
    except Exception as error:
        _fail(java.StartError(f"Error creating bean: {error}"), error)


def _fail(error: Exception, cause: Exception | None) -> NoReturn:
    error.__cause__ = cause
    log.error(FAILED_START, exc_info=error)
    sys.exit(1)


def _serve(env: Environment, board: telemetry.Board, port: int) -> None:
    """Answer on the service's own port, beside what the parts do."""
    api = entitlement.Api(database.Pooled(env, "http")) if env["SERVICE"] == "entitlement" else None
    turn = Lock()

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/actuator/prometheus":
                self._answer(200, board.text(), "text/plain; version=0.0.4; charset=utf-8")
            elif self.path in ("/actuator/health", "/actuator/health/liveness", "/actuator/health/readiness"):
                # Up, whatever its database or its broker do.
                groups = {"groups": ["liveness", "readiness"]} if self.path.endswith("health") else {}
                self._answer(200, json.dumps({"status": "UP"} | groups))
            else:
                self._answer(404, "{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            action = entitlement.ACTIONS.get(self.path)
            if api is None or action is None:
                self._answer(404, "{}")
                return
            with turn:
                code, said = api.request(
                    action, body, self.headers.get("Idempotency-Key", ""), self.headers.get("X-Trace-Id", "")
                )
            self._answer(code, json.dumps(said))

        def _answer(self, code: int, body: str, kind: str = "application/json") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a look at a service leaves no line in its log."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Service)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()


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
