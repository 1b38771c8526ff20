"""A place on this machine that messages go to: it keeps what it is sent."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "s3cret-token"


class Http:
    """Answers each request in turn with a status, 0 for never; the last one stays."""

    def __init__(self, *answers: int) -> None:
        self.taken: list[dict[str, Any]] = []
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.asked = 0
        self.released = threading.Event()
        turns = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                self.asked += 1
                self.heads.append((handler.path, dict(handler.headers)))
                answer = turns.pop(0) if len(turns) > 1 else turns[0]
                said = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
                if not answer:
                    self.released.wait(30)
                elif answer == 200:
                    self.taken.append(said)
                with suppress(OSError):
                    handler.send_response(answer or 500)
                    handler.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"json://user:{SECRET}@127.0.0.1:{self.server.server_port}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
