"""HTTP servers on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "s3cret-token"


@contextmanager
def web(answer: Callable[[BaseHTTPRequestHandler], None], port: int = 0) -> Iterator[str]:
    """A server that answers every request so; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def told(request: BaseHTTPRequestHandler) -> Any:
    """The JSON that was posted."""
    return json.loads(request.rfile.read(int(request.headers["content-length"])))


def reply(
    request: BaseHTTPRequestHandler, status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None
) -> None:
    """Answer a request."""
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


class Http:
    """A place that messages go to. It keeps what it is sent.

    Answers each request in turn with a status, 0 for never; the last one stays.
    """

    def __init__(self, *answers: int) -> None:
        self.taken: list[dict[str, Any]] = []
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.asked = 0
        self.released = threading.Event()
        turns = list(answers)

        def answer(request: BaseHTTPRequestHandler) -> None:
            self.asked += 1
            self.heads.append((request.path, dict(request.headers)))
            status, said = turns.pop(0) if len(turns) > 1 else turns[0], told(request)
            if not status:
                self.released.wait(30)
            elif status == 200:
                self.taken.append(said)
            with suppress(OSError):
                reply(request, status or 500)

        self._open = ExitStack()
        self.address = self._open.enter_context(web(answer))
        self.url = f"{self.address.replace('http://', f'json://user:{SECRET}@')}/{SECRET}"

    def close(self) -> None:
        self.released.set()
        self._open.close()
