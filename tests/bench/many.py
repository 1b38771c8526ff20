"""Triage of many systems by a Dask scheduler and two workers, one of which is killed and replaced.

Section 3 with what it points to, of servers where all is delivered; the systems share them under other names.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from runbook_lib.model.order import Order
from runbook_lib.runs import executors
from runbook_lib.store.archive import Archive

from .fill import Filled
from .machines import Cluster

SYSTEMS = 100
PARTS = 5
#: The last part may take so much more than the one after the kill, in seconds and in the scheduler's memory.
SLACK = 1.25
_DEADLINE_S = 180.0


@dataclass
class IncidentTimes:
    """How it went: a number for each part of the systems."""

    systems: int
    seconds: list[float] = field(default_factory=list)
    scheduler_mib: list[float] = field(default_factory=list)
    """At the end of each part; the first is before any."""
    wrong: list[str] = field(default_factory=list)
    """Systems that are not there exactly once, one line each."""

    @property
    def bends(self) -> list[str]:
        """What does not grow with the number of systems alone."""
        grown = [b - a for a, b in zip(self.scheduler_mib, self.scheduler_mib[1:], strict=False)]
        found = []
        if self.seconds[-1] > SLACK * self.seconds[2]:
            found.append(f"the last part took {self.seconds[-1]:.0f} s, the third {self.seconds[2]:.0f} s")
        if grown[-1] > SLACK * max(grown[1:3]) + 1:
            found.append(f"the last part took {grown[-1]:.1f} MiB of the scheduler, earlier ones {max(grown[1:3]):.1f}")
        return found


def measure(delivered: Filled, scratch: Path, systems: int = SYSTEMS) -> IncidentTimes:
    """Carry them out; the second part begins with the death of a worker."""
    scratch.mkdir(parents=True, exist_ok=True)
    names = {key: f"MANY_{key.removeprefix('RUNBOOK_')}" for key in delivered.env}
    lines = "\n".join(f"{k.removeprefix('RUNBOOK_').lower()} = {json.dumps(f'env:{v}')}" for k, v in names.items())
    (scratch / "runbook.toml").write_text("\n".join(f"[targets.t{n}]\n{lines}" for n in range(systems)))
    env = {names[key]: value for key, value in delivered.env.items()}
    output = str(scratch / "dossiers")
    orders = [
        Order(("3",), output, target=f"t{n}", incident=f"M-t{n}", job=f"job-{n}", follow=True, deadline_s=_DEADLINE_S)
        for n in range(systems)
    ]
    course = IncidentTimes(systems)
    cluster = Cluster(scratch, env)
    try:
        victim = cluster.worker("--no-nanny")
        cluster.worker("--no-nanny")
        scheduler = psutil.Process(cluster.scheduler.pid)
        with executors.executor_of("dask", cluster.url) as executor:
            course.scheduler_mib.append(scheduler.memory_info().rss / 2**20)
            began, done = time.monotonic(), 0
            for order, came in executors.results(executor, executors.carry_out, orders):
                done += 1
                if isinstance(came, Exception) or came["problem"]:
                    course.wrong.append(f"{order.target}: {came if isinstance(came, Exception) else came['problem']}")
                if done % (systems // PARTS):
                    continue
                course.seconds.append(time.monotonic() - began)
                course.scheduler_mib.append(scheduler.memory_info().rss / 2**20)
                print(f"  {done} of {systems}: {course.seconds[-1]:.0f} s", flush=True)
                if len(course.seconds) == 1:
                    os.kill(victim.pid, signal.SIGKILL)
                    cluster.worker("--no-nanny")
                began = time.monotonic()
    finally:
        cluster.stop()
    course.wrong += [f"{order.target}: {left}" for order in orders if (left := _not_once(output, order))]
    return course


def _not_once(output: str, order: Order) -> str:
    left = Counter(e.get("section", "verdict") for e in Archive(output, order.incident).artifacts())
    return "" if left["3"] == left["verdict"] == 1 and set(left.values()) == {1} else str(dict(left))
