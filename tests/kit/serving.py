"""The receiver: `runbook serve` as a process of its own (`serving`), or its application in this process (`running`)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import requests

from runbook_lib.receiver import server
from runbook_lib.receiver.auth import Auth
from runbook_lib.receiver.dispatcher import Dispatcher
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.receiver.receiver import Receiver
from runbook_lib.receiver.server import Tls
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import Archive
from tests.kit import ROOT, web
from tests.kit.command import start

TOKEN = "token-of-a-test"


@dataclass(frozen=True)
class Serving:
    """A receiver that is up: where it listens, its first line, where it works, what it has told."""

    url: str
    line: str
    folder: Path
    told: list[dict[str, Any]]

    def post(self, alerts: list[dict[str, Any]], group: str) -> requests.Response:
        body = {"version": "4", "groupKey": group, "alerts": alerts}
        return requests.post(f"{self.url}alertmanager", json=body, headers=bearer(), timeout=30)

    def metric(self, name: str) -> float:
        text = requests.get(f"{self.url}metrics", headers=bearer(), timeout=10).text
        return float(re.findall(rf"^{name}(?:{{.*}})? ([0-9.e+]+)$", text, re.MULTILINE)[0])

    def incidents(self) -> list[Archive]:
        return [Archive(str(self.folder / "kept"), p.name) for p in sorted((self.folder / "kept").iterdir())]


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@contextmanager
def serving(folder: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Serving]:
    """Serve `runbook.toml` of a folder, artifacts into `kept`, what it says into `log`; its exit code must be 0."""
    told: list[dict[str, Any]] = []

    def take(request: BaseHTTPRequestHandler) -> None:
        told.append(web.told(request))
        web.reply(request)

    with web.web(take) as place:
        own = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
        own |= {
            "PYTHONPATH": str(ROOT),
            "RUNBOOK_RECEIVER_TOKEN": TOKEN,
            "RUNBOOK_NOTIFY_URLS": place.replace("http:", "json:"),
        } | (env or {})
        with (folder / "log").open("w") as log:
            process = start("serve", "--port", "0", "--output", "kept", *options, cwd=folder, env=own, stderr=log)
            try:
                assert process.stdout
                line = process.stdout.readline()
                found = re.search(r"http://127\.0\.0\.1:\d+/", line)
                assert found, line + (folder / "log").read_text()
                yield Serving(found[0], line, folder, told)
            finally:
                process.terminate()
                code = process.wait(60)
        assert code == 0, (folder / "log").read_text()


JSON = {"content-type": "application/json"}
#: Nobody answers there.
NOWHERE = {"production": {"database_url": "postgresql://u@127.0.0.1:1/x", "nats_url": "nats://127.0.0.1:1"}}


def one(name: str = "NotDelivered", status: str = "firing", **labels: str) -> dict[str, Any]:
    return {
        "status": status,
        "labels": {"alertname": name, **labels},
        "annotations": {"summary": "too old"},
        "startsAt": "2026-01-31T03:00:00Z",
        "fingerprint": hashlib.sha256(repr((name, labels)).encode()).hexdigest()[:16],
    }


def webhook(*alerts: dict[str, Any], group: str = "g", **other: Any) -> bytes:
    return json.dumps({"version": "4", "groupKey": group, "alerts": alerts or [one()]} | other).encode()


@dataclass(frozen=True)
class Running:
    """A receiver that answers on a port of its own."""

    url: str
    port: int
    journal: Journal
    output: str
    dispatcher: Dispatcher

    def post(
        self, body: bytes | Iterator[bytes], path: str = "alertmanager", headers: Mapping[str, str] = JSON
    ) -> requests.Response:
        return requests.post(self.url + path, body, headers=dict(headers), timeout=10)

    def get(self, path: str = "", **options: Any) -> requests.Response:
        return requests.get(self.url + path, **{"timeout": 10, "allow_redirects": False} | options)

    def raw(self, sent: bytes, timeout: float = 10) -> bytes:
        """All that comes back for bytes as they are, until the other side closes; it may not read to their end."""
        came = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as s, suppress(ConnectionError):
            s.sendall(sent)
            while part := s.recv(65536):
                came += part
        return came


def cards_of(page: str) -> dict[str, str]:
    """The card of each incident."""
    return dict(re.findall(r'<article [^>]*id="([^"]+)">(.*?)</article>', page, re.DOTALL))


@contextmanager
def running(
    folder: Path, auth: Auth | None = None, *, output: str = "", tls: Tls | None = None,
    config: Settings | None = None, places: Sequence[str] = (),
) -> Iterator[Running]:  # fmt: skip
    """The application under its own server in a thread; jobs stay in the journal unless the dispatcher is started."""
    config = config or Settings(targets=NOWHERE)
    kept, metrics, output = Journal(folder / "receiver.db"), Metrics(), output or str(folder / "outputs")
    with ThreadPoolExecutor(2) as executor:
        dispatcher = Dispatcher(kept, config, output, executor, metrics, places=places)
        received = Receiver(kept, dispatcher, config, output, metrics, auth or Auth(), probe_s=0.05)
        listening = server.listen("127.0.0.1", 0)
        served = server.server(received.app, tls)
        thread = threading.Thread(target=served.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Running(server.url(listening, tls), listening.getsockname()[1], kept, output, dispatcher)
        finally:
            served.should_exit = True
            thread.join(20)
            dispatcher.stop()
            kept.close()
