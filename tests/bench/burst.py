"""A burst of alerts at a receiver that is killed twice meanwhile: each group investigated once, answers, memory.

A sender repeats what was not answered, as Alertmanager does.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import requests

from runbook_lib.store.archive import Archive

from .receiver import Receiver

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


def measure(scratch: Path) -> Burst:
    """Send the burst; kill the receiver after each third of it; wait until all is investigated."""
    scratch.mkdir(parents=True, exist_ok=True)
    targets = "".join(f'[targets.t{n}]\nnats_url = "nats://127.0.0.1:1"\n' for n in range(GROUPS))
    (scratch / "runbook.toml").write_text(f'{targets}[[routes]]\nsections = ["2"]\n')
    burst, began = Burst(), time.monotonic()
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    with Receiver(env, scratch) as receiver:
        posts = [(group, n) for n in range(TIMES) for group in range(GROUPS)]
        third = len(posts) // (KILLS + 1)
        with ThreadPoolExecutor(SENDERS) as senders:
            for part in range(KILLS + 1):
                own = posts[part * third : (part + 1) * third if part < KILLS else None]
                doing = [senders.submit(_post, receiver, *post) for post in own]
                if part < KILLS:
                    doing[len(doing) // 2].result()
                    receiver.kill()
                burst.answers_ms += [d.result() for d in doing]
        burst.sent_s = time.monotonic() - began
        print(f"  sent: {burst.sent_s:.0f} s", flush=True)
        _watch_to_the_end(receiver, burst, began)
    for n in range(GROUPS):
        found = [Archive(str(receiver.output), p.name) for p in receiver.output.glob(f"*t{n}")]
        left = [Counter(e.get("section", "verdict") for e in archive.artifacts()) for archive in found]
        if left != [Counter({"2": 1, "verdict": 1})]:
            burst.wrong.append(f"t{n}: {left}")
    return burst


def _post(receiver: Receiver, group: int, n: int) -> float:
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
            if receiver.post(body).status_code == 202:
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
            print(f"  {len(burst.memory)} of {parts} fifths: {burst.memory[-1]:.0f} MiB", flush=True)
        if not waiting and not receiver.metric("runbook_investigations_running"):
            burst.seconds = time.monotonic() - began
            return
        time.sleep(0.5)
    burst.wrong.append(f"not all investigated within {_TIMEOUT_S:.0f} s")
