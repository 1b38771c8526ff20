"""A burst of alerts at a receiver that is killed twice meanwhile: each group investigated once, answers, memory.

A sender repeats what was not answered, as Alertmanager does.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from runbook_lib.gameday.sandbox.state import free_ports
from runbook_lib.store import Archive

from . import speed

#: So many groups, each sent so many times with so many new alerts.
GROUPS, TIMES, ALERTS = 200, 10, 5
SENDERS, KILLS = 4, 2
#: At most so long until 99 of 100 answers; the memory of the receiver may grow by this share in its last third.
P99_MS, GROWTH = 50.0, 1.1
_TIMEOUT_S = 1800.0


@dataclass
class Burst:
    """How it went: the answers in ms, the receiver's memory in MiB by fifths of the investigations, what is wrong."""

    answers_ms: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    sent_s: float = 0.0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def p99_ms(self) -> float:
        """99 of 100 answers take at most so long."""
        return statistics.quantiles(self.answers_ms, n=100)[-1]


class Receiver:
    """A receiver on one port with one folder, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, (self.port,) = folder, free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
        self._env = env | {"RUNBOOK_RECEIVER_TOKEN": speed.TOKEN}
        self.start()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [str(speed.BIN / "runbook"), "serve", "--port", str(self.port), "--output", "kept"]
        with (self.folder / "receiver.log").open("ab") as log:
            self.process = psutil.Popen(
                command, cwd=self.folder, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        speed.until_ready(self.url, self.process, self.folder)

    def kill(self) -> None:
        """Kill it as a crash would, and start it again."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.start()

    def metric(self, name: str) -> float:
        """Read a number of its metrics."""
        text = requests.get(f"{self.url}/metrics", headers=speed.token(), timeout=30).text
        return float(re.findall(rf"^{name}(?:{{.*}})? ([0-9.e+]+)$", text, re.MULTILINE)[0])


def measure(scratch: Path) -> Burst:
    """Send the burst; kill the receiver after each third of it; wait until all is investigated."""
    scratch.mkdir(parents=True, exist_ok=True)
    targets = "".join(f'[targets.t{n}]\nnats_url = "nats://127.0.0.1:1"\n' for n in range(GROUPS))
    (scratch / "runbook.toml").write_text(f'{targets}[[routes]]\nsections = ["2"]\n')
    burst, receiver, began = Burst(), Receiver(scratch), time.monotonic()
    try:
        posts = [(group, n) for n in range(TIMES) for group in range(GROUPS)]
        third = len(posts) // (KILLS + 1)
        with ThreadPoolExecutor(SENDERS) as senders:
            for part in range(KILLS + 1):
                own = posts[part * third : (part + 1) * third if part < KILLS else None]
                doing = [senders.submit(_post, receiver.url, *post) for post in own]
                if part < KILLS:
                    doing[len(doing) // 2].result()
                    receiver.kill()
                burst.answers_ms += [d.result() for d in doing]
        burst.sent_s = time.monotonic() - began
        _watch_to_the_end(receiver, burst, began)
    finally:
        receiver.process.terminate()
        receiver.process.wait(60)
    for n in range(GROUPS):
        found = [Archive(str(scratch / "kept"), p.name) for p in (scratch / "kept").glob(f"*t{n}")]
        left = [Counter(e.get("section", "verdict") for e in archive.manifest()) for archive in found]
        if left != [Counter({"2": 1, "verdict": 1})]:
            burst.wrong.append(f"t{n}: {left}")
    return burst


def _post(url: str, group: int, n: int) -> float:
    labels = {"alertname": "Burst", "runbook_target": f"t{group}", "incident": f"burst-t{group}"}
    alerts = [
        {"status": "firing", "labels": labels | {"n": str(ALERTS * n + k)}, "startsAt": "2026-01-31T03:00:00Z"}
        for k in range(ALERTS)
    ]
    body = {"version": "4", "groupKey": f"t{group}", "alerts": alerts}
    until = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            answer = requests.post(f"{url}/alertmanager", json=body, headers=speed.token(), timeout=30)
            if answer.status_code == 202:
                return 1000 * (time.monotonic() - began)
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"group t{group}, {n}: never accepted")


def _watch_to_the_end(receiver: Receiver, burst: Burst, began: float) -> None:
    """Wait until no investigation waits or runs; the receiver's memory after each fifth of them."""
    parts = 5
    while time.monotonic() < began + _TIMEOUT_S:
        waiting = receiver.metric("runbook_investigations_waiting")
        if len(burst.memory) < parts and GROUPS - waiting >= GROUPS * (len(burst.memory) + 1) / parts:
            burst.memory.append(receiver.process.memory_info().rss / 2**20)
        if not waiting and not receiver.metric("runbook_investigations_running"):
            burst.seconds = time.monotonic() - began
            return
        time.sleep(0.5)
    burst.wrong.append(f"not all investigated within {_TIMEOUT_S:.0f} s")
