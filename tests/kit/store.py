"""An S3 server on loopback: moto's, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import requests
from s3fs import S3FileSystem  # type: ignore[import-untyped]

from runbook_lib.gameday.sandbox.state import free_ports
from tests.kit.waiting import is_listening, until

BUCKET = "incidents"

#: One request after the other gets to moto: it looks at `If-Match` first and writes later, which S3 does not.
#: What a PUT to /fault says is done to the requests whose "METHOD path?query" matches: an error code, "cut", or "hang":
#: no answer until there is another fault, or none.
SERVER = """
import re, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug import Request, Response
from werkzeug.serving import run_simple
moto, fault = DomainDispatcherApplication(create_backend_app), ["", ""]
one, changed = threading.Lock(), threading.Condition()

def serve(environ, start_response):
    request = Request(environ)
    if request.path == "/fault":
        with changed:
            fault[:] = request.get_json()
            changed.notify_all()
        return Response()(environ, start_response)
    pattern, what = fault
    if not pattern or not re.search(pattern, f"{request.method} {request.full_path}"):
        with one:
            return moto(environ, start_response)
    request.get_data()
    if what == "hang":
        with changed:
            changed.wait_for(lambda: fault != [pattern, what])
        return Response(status=503)(environ, start_response)
    if what == "cut":
        return Response(iter([b"<cut"]), headers={"Content-Length": "4000"})(environ, start_response)
    text = f"<Error><Code>{what}</Code><Message>{what} is the answer</Message></Error>"
    return Response(text, 400 if what == "ExpiredToken" else 403)(environ, start_response)

run_simple("127.0.0.1", int(sys.argv[1]), serve, threaded=True)
"""


class Store:
    """The server; its objects are in its memory alone."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        #: What a process needs to find it; the credentials are believed by moto alone.
        self.env = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        S3FileSystem.clear_instance_cache()  # of a server of other tests, at another port
        quiet = subprocess.DEVNULL
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.port)], stdout=quiet, stderr=quiet, env=os.environ | self.env
        )
        until(lambda: is_listening(self.port), "moto")
        requests.put(f"{self.url}/{BUCKET}", timeout=5).raise_for_status()

    def stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    @contextmanager
    def failing(self, pattern: str, what: str) -> Iterator[None]:
        """Do this to the requests that match."""
        requests.put(f"{self.url}/fault", json=[pattern, what], timeout=5).raise_for_status()
        try:
            yield
        finally:
            requests.put(f"{self.url}/fault", json=["", ""], timeout=5).raise_for_status()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It takes connections and does not answer."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._server.send_signal(signal.SIGCONT)

    def __enter__(self) -> Store:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
