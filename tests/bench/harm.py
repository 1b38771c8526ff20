"""What a running runbook does to the application: how long claim, mark and enqueue take at a steady load.

Once as shipped, all on the same cores, against the idle time of the same round. And once with the runbook alone on the
last core, and the servers with the application on the others: there against a process on that core that computes as
politely and asks nothing, since two cores share caches, and often are two threads of one. What is left is the
database's share. As shipped, a process per core that asks nothing shows what the scheduler alone does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from . import speed
from .fill import Filled
from .receiver import BIN, Receiver

#: At most so many times the p95 of the phase that each is held against, by way, for each of `PHASES`.
TARGETS = {"as shipped": (1.4, 1.4, 1.4), "the database's share": (1.2, 1.2, 1.5)}
KINDS = ("enqueue", "claim", "mark")
PERCENTILES = (95, 99)
IDLE_S = 10.0
#: So many alerts come at once; the first seconds of the work on them are measured.
ALERTS, ALERTS_S = 20, 20.0
SYSTEMS = 4
#: All of it ends within so many seconds; no round begins that would end later than the second number of them.
LIMIT_S, _LAST_ROUND_S = 600.0, 500.0
_TIMEOUT_S = 300.0


@dataclass
class Way:
    """One way to share the cores: percentiles by phase and kind, a number per round, in ms."""

    name: str
    against: str
    """The phase that the others are held against."""
    rounds: dict[tuple[str, str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    statements: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def ms(self, phase: str, kind: str, percentile: int) -> float:
        """Median of the rounds."""
        return statistics.median(self.rounds[phase, kind, percentile])

    def ratio(self, phase: str, kind: str, percentile: int) -> float:
        """Against the same round's `against`, median of the rounds."""
        pairs = zip(self.rounds[phase, kind, percentile], self.rounds[self.against, kind, percentile], strict=True)
        return statistics.median(a / b for a, b in pairs)


IDLE, BUSY = "idle", "busy cores"
PHASES = ("one triage", "eight sections", f"{ALERTS} alerts")


def database_seconds(servers: Filled, scratch: Path) -> dict[str, float]:
    """Seconds of one core that the database works for each phase, without a load: its sessions end with the command."""
    scratch.mkdir(parents=True, exist_ok=True)
    env, cores, took = _environment(servers, scratch), sorted(os.sched_getaffinity(0)), {}
    for phase, arguments in zip(PHASES, (["triage"], ["run", *eight()]), strict=False):
        before = _of_ended_sessions(servers)
        _command(arguments, env, scratch, cores)
        time.sleep(1)
        took[phase] = _of_ended_sessions(servers) - before
    return took


def _of_ended_sessions(servers: Filled) -> float:
    times = _postmaster(servers).cpu_times()
    return float(times.children_user + times.children_system)


def measure(servers: Filled, scratch: Path, show: Callable[[Way, str], None], rounds: int = 3) -> list[Way]:
    """Phase by phase, way by way, round by round, so that whatever else the machine does meets all of them.

    `show` is called with each phase that has been measured. There are fewer rounds if these take too long.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    cores = sorted(os.sched_getaffinity(0))
    ways = [(Way("as shipped", IDLE), cores, cores)]
    if len(cores) > 1:
        ways.append((Way("the database's share", BUSY), cores[:-1], cores[-1:]))
    env = _environment(servers, scratch)
    for done in range(rounds):
        if done and (time.monotonic() - began) * (done + 1) / done > _LAST_ROUND_S:
            break
        for n, (way, others, own) in enumerate(ways):
            _pin(servers, others)
            with (
                Receiver(env, scratch / f"receiver-{done}-{n}", _on(own)) as receiver,
                _load(servers.app_url, scratch / "load.jsonl", others) as read_until,
            ):
                phases: dict[str, Callable[[], None]] = {
                    IDLE: partial(time.sleep, IDLE_S),
                    BUSY: partial(_compute, own),
                    PHASES[0]: partial(_command, ["triage"], env, scratch, own),
                    PHASES[1]: partial(_command, ["run", *eight()], env, scratch, own),
                    PHASES[2]: partial(_alerts, receiver),
                }
                for phase in sorted(phases, key=lambda p: p != way.against):  # what others are held against first
                    since = time.monotonic()
                    phases[phase]()
                    until = time.monotonic()
                    _sort(way, phase, [(what, s) for what, at, s in read_until(until) if since <= at < until])
                    show(way, phase)
    _pin(servers, cores)
    return [way for way, _, _ in ways]


def eight() -> list[str]:
    """The sections that look and do not act."""
    return [n for n in speed.ten() if n not in ("5.1", "5.2")]


def _sort(way: Way, phase: str, took: list[tuple[str, float]]) -> None:
    for kind in KINDS:
        ms = [1000 * s for what, s in took if what == kind]
        way.statements[phase] += len(ms)
        cuts = statistics.quantiles(ms, n=100)
        for percentile in PERCENTILES:
            way.rounds[phase, kind, percentile].append(cuts[percentile - 1])


@contextmanager
def _load(url: str, file: Path, cores: list[int]) -> Iterator[Callable[[float], list[tuple[str, float, float]]]]:
    """A load that has begun; the function waits until it has measured up to a moment, and returns all of it."""

    def read_until(moment: float) -> list[tuple[str, float, float]]:
        took: list[tuple[str, float, float]] = []
        while not took or took[-1][1] < moment:
            if process.poll() is not None:
                raise RuntimeError(f"the load ended with {process.returncode}")
            time.sleep(0.1)
            lines = file.read_text().splitlines(keepends=True)
            took = [json.loads(line) for line in lines if line.endswith("\n")]
        return took

    command = [sys.executable, "-m", "tests.bench.load", url, str(file)]
    process = subprocess.Popen(command, preexec_fn=_on(cores))
    try:
        time.sleep(3)  # its first statements warm up
        yield read_until
    finally:
        process.terminate()
        process.wait(30)


def _on(cores: list[int]) -> Callable[[], None]:
    return partial(os.sched_setaffinity, 0, cores)


def _postmaster(servers: Filled) -> psutil.Process:
    return psutil.Process(int((servers.directory / "postgres" / "postmaster.pid").read_text().split()[0]))


def _pin(servers: Filled, cores: list[int]) -> None:
    postgres = _postmaster(servers)
    for process in [postgres, *postgres.children(recursive=True)]:
        process.cpu_affinity(cores)


def _compute(cores: list[int]) -> None:
    """Work on each of these cores that asks nobody, for as long as the idle time."""
    polite = "import runbook_lib.runs.polite, time; until = time.monotonic() + %s\nwhile time.monotonic() < until: pass"
    command = [sys.executable, "-c", polite % IDLE_S]
    for process in [subprocess.Popen(command, preexec_fn=_on(cores)) for _ in cores]:
        if code := process.wait(_TIMEOUT_S):
            raise RuntimeError(f"{sys.executable} ended with {code}")


def _command(arguments: list[str], env: dict[str, str], scratch: Path, cores: list[int]) -> None:
    command = [str(BIN / "runbook"), *arguments, "--incident", uuid.uuid4().hex[:8], "--json"]
    done = subprocess.run(
        [*command, "--output", str(scratch / "runs")],
        env=env,
        cwd=scratch,
        capture_output=True,
        timeout=_TIMEOUT_S,
        preexec_fn=_on(cores),
    )
    if any(not run["artifact"]["html"] for run in json.loads(done.stdout)["runs"]):
        raise RuntimeError(f"runbook {' '.join(arguments)}: {done.stderr.decode()[-500:]}")


def _environment(servers: Filled, scratch: Path) -> dict[str, str]:
    """Four systems at the same servers, so that the receiver works at as many at once as it will."""
    names = {key: f"HARM_{key.removeprefix('RUNBOOK_')}" for key in servers.env}
    lines = [f"{key.removeprefix('RUNBOOK_').lower()} = {json.dumps(f'env:{name}')}" for key, name in names.items()]
    file = scratch / "harm.toml"
    file.write_text("\n".join(f"[targets.system-{n}]\n" + "\n".join(lines) for n in range(SYSTEMS)))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RUNBOOK_", "PYTHONDONTWRITE"))} | servers.env
    secrets = {names[key]: value for key, value in servers.env.items()}
    return env | secrets | {"RUNBOOK_CONFIG": str(file)}


def _alerts(receiver: Receiver) -> None:
    """A burst of incidents, until all have their artifacts or the time is over."""
    burst = uuid.uuid4().hex[:8]
    incidents = [f"{burst}-{n}" for n in range(ALERTS)]
    for n, incident in enumerate(incidents):
        labels = {"alertname": "Harm", "incident": incident, "runbook_target": f"system-{n % SYSTEMS}"}
        alert = {"status": "firing", "labels": labels, "startsAt": "2025-01-31T03:00:00Z"}
        body = {"version": "4", "groupKey": incident, "alerts": [alert]}
        receiver.post(body).raise_for_status()
    until = time.monotonic() + ALERTS_S
    while time.monotonic() < until and not all(list((receiver.output / i).glob("*-verdict-*.json")) for i in incidents):
        time.sleep(0.2)
