"""Serve the receiver with uvicorn: limits of size and connections, and a graceful shutdown.

A client that reads slowly is bounded by a proxy in front (docs/operations.md).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from runbook_lib.model.usage import UsageError
from runbook_lib.receiver.auth import Auth
from runbook_lib.receiver.dispatcher import Dispatcher
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.receiver.notify import Notifier
from runbook_lib.receiver.receiver import MAX_HEADERS, Receiver
from runbook_lib.sources.settings import Settings

#: Connections that are served; a request on a further one is answered with 503.
CONNECTIONS = 128
#: Seconds in which a connection's next request must have sent its headers.
HEADERS_S = 10.0
#: Seconds for requests, and then for investigations, to end after the receiver gets a signal to stop.
STOP_S = 6.0


@dataclass(frozen=True)
class Tls:
    """A certificate chain and its key, as PEM files."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Check that both files can be used together. Raises UsageError, one line."""
        for option, file in (("--tls-cert", self.certificate), ("--tls-key", self.key)):
            try:
                file.read_bytes()
            except OSError as e:
                raise UsageError(f"{option} {file}: {e.strerror}") from None
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                self.certificate, self.key, password=lambda: ""
            )
        except (ssl.SSLError, ValueError) as e:
            raise UsageError(
                f"--tls-cert {self.certificate} and --tls-key {self.key} cannot be used together: {e}"
            ) from None


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server((str(address[0]), int(address[1])), family=family)


def url(listening: socket.socket, tls: Tls | None) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


class _BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a limit of time for the headers, which uvicorn does not have."""

    waits_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()
        self._make_room()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_headers()

    def _await_headers(self) -> None:
        last, self.waits_since = self.cycle, self.loop.time()
        self.loop.call_later(HEADERS_S, lambda: self.transport.close() if self.cycle is last else None)

    def _make_room(self) -> None:
        """At the limit, close the connections that have waited longest for a request: silent ones keep nobody out."""
        others = [
            c for c in self.connections
            if isinstance(c, _BoundedProtocol) and c is not self and not c.transport.is_closing()
        ]  # fmt: skip
        waiting = [c for c in others if c.cycle is None or c.cycle.response_complete]
        # More than one if, when the last ones came, nobody was waiting.
        excess = max(len(others) + 2 - CONNECTIONS, 0)
        for connection in sorted(waiting, key=lambda c: c.waits_since)[:excess]:
            connection.transport.abort()
            self.connections.discard(connection)  # now: a request that is read in this turn of the loop counts them


def server(app: ASGIApp, tls: Tls | None = None) -> uvicorn.Server:
    """Return a uvicorn server with the limits above; it logs only warnings and errors."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEADERS,
            timeout_graceful_shutdown=round(STOP_S),
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
    )


def log_to_stderr() -> None:
    """Write this package's log to stderr, with times in UTC."""
    handler = logging.StreamHandler()
    handler.setFormatter(_UtcFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ"))
    log = logging.getLogger("runbook_lib")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


class _UtcFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)


def serve(
    config: Settings, output: str, auth: Auth, journal: Journal, executor: Executor,
    places: Mapping[str, str], listening: socket.socket, tls: Tls | None, hello: str,
) -> bool:  # fmt: skip
    """Accept alerts and run their investigations until SIGTERM or SIGINT.

    `places` is from `notify.urls_by_digest`; `hello` is printed when all is ready.

    Returns whether all started work has ended. If not, the next receiver runs it again, and the caller must exit with
    `os._exit`.
    """
    metrics = Metrics()
    dispatcher = Dispatcher(journal, config, output, executor, metrics, places=tuple(places))
    notifier = Notifier(journal, places, metrics)
    serving = server(Receiver(journal, dispatcher, config, output, metrics, auth).app, tls)

    def stop(*_: object) -> None:
        serving.should_exit = True

    # uvicorn installs its own handlers and raises the signal again when it ends: then this handler runs.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    dispatcher.start()
    notifier.start()
    print(hello, flush=True)
    serving.run(sockets=[listening])
    done = dispatcher.stop(STOP_S)
    done = notifier.stop(1.0) and done
    journal.close()
    return done
