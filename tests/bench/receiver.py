"""A receiver of the bench: a process on a port of its own, which can be killed and started again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import requests

from runbook_lib.gameday.sandbox.state import free_ports

TOKEN = "bench"
BIN = Path(sys.executable).parent


class Receiver:
    """A receiver that is up while it is entered: where it listens, and where it leaves its artifacts.

    `first` is called in its process.
    """

    def __init__(self, env: dict[str, str], folder: Path, first: Callable[[], None] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        (self._port,) = free_ports(1)
        self._env, self._folder, self._first = env | {"RUNBOOK_RECEIVER_TOKEN": TOKEN}, folder, first
        self.url, self.output = f"http://127.0.0.1:{self._port}", folder / "kept"

    def __enter__(self) -> Receiver:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except psutil.TimeoutExpired:
            self.process.kill()

    def start(self) -> None:
        """Start it and wait until it takes alerts. Raises RuntimeError with the end of its log."""
        command = [str(BIN / "runbook"), "serve", "--port", str(self._port), "--output", str(self.output)]
        with (self._folder / "receiver.log").open("ab") as log:
            self.process = psutil.Popen(
                command,
                env=self._env,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self._first,
            )
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.is_running():
            try:
                if requests.get(f"{self.url}/readyz", timeout=2).ok:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.1)
        self.process.kill()
        raise RuntimeError(f"the receiver did not start: {(self._folder / 'receiver.log').read_text()[-500:]}")

    def kill(self) -> None:
        """Kill it as a crash would, and start it again."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.start()

    def post(self, body: Mapping[str, object]) -> requests.Response:
        """Send a message of Alertmanager."""
        return requests.post(f"{self.url}/alertmanager", json=body, headers=_token(), timeout=30)

    def metric(self, name: str) -> float:
        """Read a number of its metrics."""
        text = requests.get(f"{self.url}/metrics", headers=_token(), timeout=30).text
        return float(re.findall(rf"^{name}(?:{{.*}})? ([0-9.e+]+)$", text, re.MULTILINE)[0])


def _token() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}
