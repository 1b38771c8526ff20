"""`runbook serve` as a process of its own, and a place that its messages go to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import requests

from runbook_lib.store import Archive
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
