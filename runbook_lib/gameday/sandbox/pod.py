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
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NoReturn

import psycopg

from runbook_lib.store.files import write_whole

from . import database, entitlement, java, notification, telemetry
from .settings import PODS_FILE, Environment, read_own_env
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
_HEALTH: dict[str, dict[str, list[str]]] = {
    "/actuator/health": {"groups": ["liveness", "readiness"]},
    "/actuator/health/liveness": {},
    "/actuator/health/readiness": {},
}

log = logging.getLogger(__name__)


def pod_name(app: str) -> str:
    """Make a name such as `notification-7c9d5f6b8-x2k4q`."""
    chars = random.choices(POD_NAME_LETTERS, k=14)
    return f"{app}-{''.join(chars[:9])}-{''.join(chars[9:])}"


#: How a pod is stopped.
_STOPS = (signal.SIGTERM, signal.SIGINT)


class JsonLines(logging.Formatter):
    """One JSON object per line, with the field names of the applications' own log."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Format the record as one line."""
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
    """Log JSON lines to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # the broker module says it in the reference's words


def main(app: str, directory: Path) -> NoReturn:
    """Run the pod `entitlement` or `notification` until it is stopped."""
    name = pod_name(app)
    env = {**os.environ, **read_own_env(directory / PODS_FILE, app), "HOSTNAME": name, "SERVICE": app}
    set_up_logging(app)
    database.set_clock(float(env.get(f"{app.upper()}_CLOCK_OFFSET", "0")))
    _check_migrations(env)

    context = multiprocessing.get_context("fork")
    board = telemetry.Board(app)
    children, lines = {}, []
    for stop in _STOPS:
        signal.signal(stop, lambda *_: sys.exit(0))
    try:
        for part, run in PARTS[app].items():
            heard, line = context.Pipe(duplex=False)
            children[part] = child = context.Process(target=_run_part, args=(run, env, line), name=part)
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # until the part is known
            child.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
            line.close()
            lines.append(heard)
        for heard in lines:  # once nothing is forked any more: it takes a thread each
            board.hear(heard)
        pod = {"pod": name, "pid": os.getpid(), "parts": {part: child.pid for part, child in children.items()}}
        write_whole(directory / "run" / f"{app}.json", json.dumps(pod).encode(), durable=False)
        telemetry.report_to(board.apply)
        for n in range(java.POOL_SIZE - USED[app]):
            database.pooled(env, f"spare-{n}")
        serve = _make_http_server(env, board, load(directory).addresses.service_ports[app]).serve_forever
        Thread(target=serve, daemon=True).start()
        _wait_for_failure(list(children.values()))
    finally:
        for stop in _STOPS:
            signal.signal(stop, signal.SIG_IGN)
        started = [child for child in children.values() if child.pid]
        for child in started:
            child.terminate()
        for child in started:
            child.join(STOP_TIMEOUT)
            child.kill()  # a stopped (SIGSTOP) part does not hear SIGTERM


def _check_migrations(env: Environment) -> None:
    """Migrate the schema to this version before anything else; on failure the application does not start."""
    service = env["SERVICE"]
    table = f"{service}.flyway_schema_history_{service}"
    history = f"SELECT count(*) FILTER (WHERE success) = count(*), count(*) FROM {table}"  # noqa: S608
    for n in range(DATABASE_TRIES + 1):
        try:
            with psycopg.connect(database.url(env), connect_timeout=5) as connection:
                done = connection.execute(history).fetchone()
        except psycopg.OperationalError as error:
            if n == DATABASE_TRIES:
                _fail_start(java.StartError("Unable to obtain connection from database"), error)
            time.sleep(min(n + 1, LONGEST_PAUSE))
        except psycopg.Error as error:
            _fail_start(java.StartError("Unable to check whether schema history table exists"), error)
        else:
            # An image is named by the last migration that it knows.
            known = int(env.get("IMAGE", f"{service}:{MIGRATIONS[service]}").rpartition(":")[2])
            if done != (True, known):
                _fail_start(java.StartError("Validate failed: Migrations have failed validation"), None)
            return


def _run_part(run: Callable[[Environment], None], env: Environment, line: Connection) -> None:
    """Run one part; what it throws is the end of the application."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not as the pod, which ends its parts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    telemetry.report_to(lambda *report: line.send(report))
    try:
        run(env)
    except Exception as error:
        _fail_start(java.StartError(f"Error creating bean: {error}"), error)


def _fail_start(error: Exception, cause: Exception | None) -> NoReturn:
    error.__cause__ = cause
    log.error(FAILED_START, exc_info=error)
    sys.exit(1)


def server(port: int, answer: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, str, str]]) -> ThreadingHTTPServer:
    """Return a server on 127.0.0.1; `answer` takes a request and its body, and returns status, type and body."""

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, kind, text = answer(self, self.rfile.read(int(self.headers.get("Content-Length", "0"))))
            self.send_response(code)
            self.send_header("Content-Type", kind)
            if HTTPStatus.MULTIPLE_CHOICES <= code < HTTPStatus.BAD_REQUEST:
                self.send_header("Location", self.path)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: a read of a service leaves no line in its log."""

    return ThreadingHTTPServer(("127.0.0.1", port), Service)


def _make_http_server(env: Environment, board: telemetry.Board, port: int) -> ThreadingHTTPServer:
    """Serve the service's own port, beside the work of the parts."""
    source = database.pooled(env, "http") if env["SERVICE"] == "entitlement" else None
    turn = Lock()

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, str]:
        code, said = 404, dict[str, Any]()
        action = entitlement.ACTIONS.get(request.path)
        if request.command == "POST" and source and action:
            key, trace_id = (request.headers.get(name, "") for name in ("Idempotency-Key", "X-Trace-Id"))
            with turn:
                code, said = entitlement.answer(source, action, body, key, trace_id)
        elif request.command == "GET" and request.path == "/actuator/prometheus":
            return 200, "text/plain; version=0.0.4; charset=utf-8", board.text()
        elif request.command == "GET" and request.path in _HEALTH:
            # Up, whatever its database or its broker do.
            code, said = 200, {"status": "UP"} | _HEALTH[request.path]
        return code, "application/json", json.dumps(said)

    return server(port, answer)


def _wait_for_failure(children: list[multiprocessing.context.ForkProcess]) -> NoReturn:
    """Exit with an error as soon as a part has exited by itself; a killed part is ignored."""
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
