"""A place on this machine that messages go to: it keeps what it is sent."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

import web

SECRET = "s3cret-token"


class Http:
    """Answers each request in turn with a status, 0 for never; the last one stays."""

    def __init__(self, *answers: int) -> None:
        self.taken: list[dict[str, Any]] = []
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.asked = 0
        self.released = threading.Event()
        turns = list(answers)

        def answer(request: BaseHTTPRequestHandler) -> None:
            self.asked += 1
            self.heads.append((request.path, dict(request.headers)))
            status, said = turns.pop(0) if len(turns) > 1 else turns[0], web.told(request)
            if not status:
                self.released.wait(30)
            elif status == 200:
                self.taken.append(said)
            with suppress(OSError):
                web.reply(request, status or 500)

        self._open = ExitStack()
        self.address = self._open.enter_context(web.web(answer))
        self.url = f"{self.address.replace('http://', f'json://user:{SECRET}@')}/{SECRET}"

    def close(self) -> None:
        self.released.set()
        self._open.close()
