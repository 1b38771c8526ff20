"""The receiver on a socket: uvicorn, with limits of time for those that send slowly, and an orderly end."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from runbook_lib.alerts.auth import Auth
from runbook_lib.alerts.dispatcher import Dispatcher
from runbook_lib.alerts.journal import Journal
from runbook_lib.alerts.metrics import Metrics
from runbook_lib.alerts.notify import Notifier
from runbook_lib.alerts.receiver import MAX_HEADERS, Receiver
from runbook_lib.settings import Settings
from runbook_lib.usage import UsageError

#: Seconds in which a request must have arrived as a whole, and in which a part of an answer must have been taken.
REQUEST_S, ANSWER_S = 20.0, 300.0
#: Connections that are answered; twice as many are held open.
CONNECTIONS = 128
#: Seconds that requests, and then investigations, are given to end once the receiver is told to stop.
STOP_S = 6.0


class Patient(H11Protocol):
    """HTTP/1.1 with an end to patience: uvicorn itself waits for a request's rest, and for a reader, for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        self._patience: dict[str, asyncio.TimerHandle] = {}
        super().connection_made(transport)
        if len(self.connections) > 2 * CONNECTIONS:
            transport.abort()
        self._await_rest()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request that has begun, in however many parts it comes."""
        super().data_received(data)
        self._await_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._end("request")
        self._end("answer")

    def pause_writing(self) -> None:
        """The other side does not read."""
        super().pause_writing()
        self._begin("answer", ANSWER_S)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._end("answer")

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is told so as everything else is: in one line of JSON."""
        said = json.dumps({"error": msg}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(said))), ("connection", "close")]
        with suppress(h11.LocalProtocolError):  # an answer is out already
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=said), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True  # what is being answered has been answered
        self.transport.close()

    def _await_rest(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._begin("request", REQUEST_S)
        else:
            self._end("request")

    def _begin(self, what: str, seconds: float) -> None:
        if what not in self._patience:
            self._patience[what] = self.loop.call_later(seconds, self.transport.abort)

    def _end(self, what: str) -> None:
        if timer := self._patience.pop(what, None):
            timer.cancel()


@dataclass(frozen=True)
class Tls:
    """A certificate with its chain and its key, as PEM files."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raises UsageError, one line, when they cannot be used."""
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
                f"--tls-cert {self.certificate} and --tls-key {self.key} are no pair that can be used: {e}"
            ) from None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server((str(address[0]), int(address[1])), family=family)


def url(listening: socket.socket, tls: Tls | None) -> str:
    """Where a socket is found."""
    host, port = listening.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


def server(app: ASGIApp, tls: Tls | None = None) -> uvicorn.Server:
    """uvicorn with the limits above; its log speaks only of what is wrong."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Patient,
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
    """This project's own log, a line each: the moment in UTC and what happened."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Line("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ"))
    log = logging.getLogger("runbook_lib")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


class _Line(logging.Formatter):
    converter = staticmethod(time.gmtime)


def serve(
    config: Settings, output: str, lang: str, auth: Auth, journal: Journal, executor: Executor,
    places: Mapping[str, str], listening: socket.socket, tls: Tls | None, hello: str,
) -> bool:  # fmt: skip
    """Receive alerts and carry out what they ask for, until SIGTERM or SIGINT.

    `places` are those of `notify.places`; `hello` is printed once all is ready.

    Returns whether all that was begun is done; where not, it is begun again by the next receiver, and the caller has to
    leave with `os._exit`.
    """
    metrics = Metrics()
    dispatcher = Dispatcher(journal, config, output, executor, metrics, places=tuple(places), lang=lang)
    notifier = Notifier(journal, places, metrics)
    serving = server(Receiver(journal, dispatcher, config, output, metrics, auth, lang).app, tls)

    def stop(*_: object) -> None:
        serving.should_exit = True

    # uvicorn puts its own in their place and raises the signal again at its end: this one takes it then.
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
