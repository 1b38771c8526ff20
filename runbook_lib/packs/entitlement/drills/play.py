"""One drill on real servers: an incident, the first look at it, what is proposed carried out, and a twin left alone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from runbook_lib import catalog
from runbook_lib.packs.entitlement.sandbox import faults, servers
from runbook_lib.packs.entitlement.sandbox.programs import PODS
from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox
from runbook_lib.packs.entitlement.sandbox.state import SandboxError

from . import probe
from .judge import LATER_S, Truth, changing, helped
from .scenario import LOADS, Scenario

#: How long the flow is looked at before anything breaks, and how long a new load has had by then.
BEFORE_S, WARM_S = 10.0, 4.0
_TRIAGE_S, _COMMAND_S, _END_S = 240.0, 90.0, 15.0

#: What a session of somebody else does, by its noise: its name, how it begins, what it reads. Neither needs a core.
_SESSIONS = {
    "backup": (
        "pg_dump",
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        "SELECT n.*, pg_sleep(0.02) FROM notification.notifications n",
    ),
    "analyst": (
        "psql",
        "SET statement_timeout = '15min'",
        "SELECT count(*), max(pg_sleep(0.05)::text) FROM entitlement.outbox_events JOIN notification.notifications"
        " USING (event_id)",
    ),
}


class Stopped(Exception):
    """Somebody wants the drills to end; what is up has been taken down."""


@dataclass(frozen=True)
class Clock:
    """Waits that end at once when the drills are to end."""

    stop: threading.Event = field(default_factory=threading.Event)

    def wait(self, s: float) -> None:
        """So many seconds. Raises Stopped."""
        if self.stop.wait(max(s, 0.0)):
            raise Stopped


@dataclass(frozen=True)
class Incident:
    """A sandbox in which the scenario has just begun."""

    sandbox: Sandbox
    before: probe.Seen
    problems: tuple[str, ...]  # of injections: whether something broke all the same is seen by the probe


def truth(scenario: Scenario) -> Truth | None:
    """What is right to say of it, by the catalogue; None where nothing was broken."""
    broken = [faults.find(name) for name in scenario.faults]
    if not broken:
        return None
    modes = catalog.load().failure_modes
    right = {name for f in broken for name in (f.stuck_at, f.failure_mode, *f.also_right)}
    return Truth(places=frozenset(right - {*modes}), modes=frozenset(name for name in right if name in modes))


@contextlib.contextmanager
def incident(scenario: Scenario, directory: Path, clock: Clock) -> Iterator[Incident]:
    """The scenario, from a sandbox that is started for it to its onset; taken down at the end. Raises SandboxError."""
    sandbox = Sandbox(directory)
    sandbox.intensity = scenario.intensity
    before, during = LOADS[scenario.load]
    sandbox.up(rate=before, hours=1, seed=scenario.seed)
    try:
        sandbox.configure({"SANDBOX_RATE": f"{during:g}"})
        state = sandbox.state
        state.rate = during
        state.save()
        clock.wait(WARM_S + BEFORE_S)
        seen = probe.look(sandbox, BEFORE_S)
        with _noise(scenario, sandbox):
            problems = []
            for name in scenario.faults:
                try:
                    faults.find(name).inject(sandbox)
                except Exception as error:  # a second fault may not get in; what has been broken the probe sees
                    problems.append(f"{name}: {error}".splitlines()[0])
            yield Incident(sandbox, seen, tuple(problems))
    finally:
        sandbox.down()


@contextlib.contextmanager
def _noise(scenario: Scenario, sandbox: Sandbox) -> Iterator[None]:
    if scenario.noise == "deploy":
        sandbox.restart(PODS[scenario.seed % len(PODS)])
        if scenario.faults:
            sandbox.wait_for_flow(30)  # a fault that hits a pod that is still starting would end with it
    if scenario.noise not in _SESSIONS:
        yield
        return
    name, begin, query = _SESSIONS[scenario.noise]
    url = sandbox.state.addresses.admin_url
    with contextlib.closing(
        psycopg.connect(url, autocommit=True, application_name=name, connect_timeout=5)
    ) as connection:
        connection.execute(begin)
        reads = threading.Thread(target=_read, args=(connection, query), daemon=True)
        reads.start()
        try:
            yield
        finally:
            with contextlib.suppress(psycopg.Error):
                connection.cancel()
            reads.join(_END_S)


def _read(connection: psycopg.Connection[Any], query: str) -> None:
    with contextlib.suppress(psycopg.Error):  # cancelled at the end, or ended by what goes wrong
        connection.execute(query)


def drill(scenario: Scenario, clock: Clock, after_s: float = 40.0, keep: Path | None = None) -> dict[str, Any]:
    """Play it and return its line: the scenario, what was seen, said, done and what became of it.

    `after_s` is how long the flow is given after the first proposal; `keep` is a folder for the runbook's artifacts.
    """
    line: dict[str, Any] = {
        "seed": scenario.seed,
        "scenario": asdict(scenario),
        "at": _now(),
        "version": version("runbook-notebooks"),
    }
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch:
        try:
            line |= _drill(scenario, Path(scratch), clock, after_s, keep)
        except (SandboxError, psycopg.Error, OSError) as error:
            line["error"] = (str(error).splitlines() or [type(error).__name__])[0]
    return line


def _drill(scenario: Scenario, scratch: Path, clock: Clock, after_s: float, keep: Path | None) -> dict[str, Any]:
    right = truth(scenario)
    later = False
    with (
        _twin(scenario, scratch / "twin", clock, after_s) as twin,
        incident(scenario, scratch / "sandbox", clock) as it,
    ):
        onset = time.monotonic()
        clock.wait(scenario.look_after_s)
        document, seconds, problem = triage(it.sandbox, scenario, keep or scratch, clock)
        verdict = document["verdict"] if document else None
        proposal = changing(verdict["proposals"]) if verdict else None
        done = carry_out(proposal["command"], it.sandbox, scratch, clock) if proposal else None
        if not done:
            twin.end()  # this sandbox is itself left alone
        acted_at = time.monotonic()

        def look(s: float) -> tuple[probe.Seen, probe.Seen]:
            if done:
                twin.look_at(acted_at + s - onset)
            clock.wait(acted_at + s - time.monotonic())
            acted = probe.look(it.sandbox, after_s)
            return acted, twin.seen() if done else acted

        acted, alone = look(after_s)
        if done and helped(acted, alone) == "nothing" and after_s < LATER_S:
            later = True
            acted, alone = look(LATER_S)
    return {
        "problems": it.problems,
        "truth": {"places": sorted(right.places, key=str), "modes": sorted(right.modes)} if right else None,
        "verdict": verdict,
        "headline": _headline(document) if document else problem,
        "seconds": round(seconds, 1),
        "proposal": {**proposal, **done} if proposal and done else None,
        "before": asdict(it.before),
        "acted": asdict(acted),
        "alone": asdict(alone),
        **({"after_s": LATER_S} if later else {}),
    }


class _Twin:
    """The same incident, left alone, in a thread of its own: looked at when it has some ages, in s."""

    def __init__(self) -> None:
        self._ages: queue.Queue[float | None] = queue.Queue()
        self._seen: queue.Queue[probe.Seen] = queue.Queue()
        self.lane: Future[None] = Future()

    def look_at(self, age_s: float) -> None:
        """How it is at that age is `seen`."""
        self._ages.put(age_s)

    def end(self) -> None:
        """It is not needed any more."""
        self._ages.put(None)

    def seen(self) -> probe.Seen:
        """The next look, waited for. Raises what has ended it."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._seen.get(timeout=0.2)
            if self.lane.done():
                self.lane.result()
                raise Stopped

    def run(self, scenario: Scenario, directory: Path, clock: Clock, after_s: float) -> None:
        """From its start to its end."""
        with incident(scenario, directory, clock) as it:
            onset = time.monotonic()
            while True:
                try:
                    age_s = self._ages.get_nowait()
                except queue.Empty:
                    clock.wait(0.2)
                    continue
                if age_s is None:
                    return
                clock.wait(onset + age_s - time.monotonic())
                self._seen.put(probe.look(it.sandbox, after_s))


@contextlib.contextmanager
def _twin(scenario: Scenario, directory: Path, clock: Clock, after_s: float) -> Iterator[_Twin]:
    twin = _Twin()
    with ThreadPoolExecutor(1) as lane:
        twin.lane = lane.submit(twin.run, scenario, directory, clock, after_s)
        try:
            yield twin
        finally:
            twin.end()


def triage(
    sandbox: Sandbox, scenario: Scenario, folder: Path, clock: Clock
) -> tuple[dict[str, Any] | None, float, str]:
    """The command as an alert would run it: its document, its seconds, and what it said instead of a document."""
    words = (
        "--target",
        "sandbox",
        "--incident",
        f"drill-{scenario.seed}",
        "--output",
        str(folder / "outputs"),
        "--json",
    )
    alert = ("-p", "detected_by=alert", "-p", f"detected_at={_now()}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drill-") as cwd:
        code, out, err = _run(
            (sys.executable, "-m", "runbook_lib", "triage", *words, *alert), sandbox, Path(cwd), clock
        )
    seconds = time.monotonic() - began
    try:
        return json.loads(out), seconds, ""
    except ValueError:
        return None, seconds, (err.strip().splitlines() or [f"no verdict, exit code {code}"])[-1]


def carry_out(command: str, sandbox: Sandbox, folder: Path, clock: Clock) -> dict[str, Any]:
    """The command as it stands, in a shell: its exit code, its last line and its seconds."""
    began = time.monotonic()
    code, out, err = _run(("/bin/sh", "-c", command), sandbox, folder, clock, _COMMAND_S)
    last = ((out + err).strip().splitlines() or [""])[-1]
    return {"exit": code, "said": last[:200], "seconds": round(time.monotonic() - began, 1)}


def _run(
    command: Sequence[str], sandbox: Sandbox, folder: Path, clock: Clock, limit_s: float = _TRIAGE_S
) -> tuple[int, str, str]:
    """Run it as a process group of its own to its end, or end it; exit code, standard output and error."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env=_environment(sandbox),
            start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + limit_s
            while process.poll() is None and time.monotonic() < until:
                clock.wait(0.1)
        finally:
            _end(process)
        out.seek(0)
        err.seek(0)
        return process.returncode, out.read(), err.read()


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)


def _environment(sandbox: Sandbox) -> Mapping[str, str]:
    """What a responder of this sandbox would have: the commands, its folder, and the superuser for psql."""
    addresses = sandbox.state.addresses
    programs = [Path(sys.executable).parent, Path(servers.postgres_binary("psql")).parent]
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RUNBOOK_", "PG"))}
    return own | {
        "PATH": os.pathsep.join([*map(str, programs), os.environ.get("PATH", os.defpath)]),
        "RUNBOOK_SANDBOX_DIR": str(sandbox.directory),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(addresses.postgres_port),
        "PGUSER": "postgres",
        "PGPASSWORD": addresses.passwords["postgres"],
    }


def _headline(document: Mapping[str, Any]) -> str:
    """The sentence that says why: where it is stuck (3.2), or the first finding of the worst status."""
    findings = [f for run in document["runs"] for f in run["findings"]]
    worst = [f for f in findings if f["status"] == document["status"]]
    placed = [f for f in worst if f["step"] == "3.2"]
    return str(next(iter((*placed, *worst, *findings)), {"headline": ""})["headline"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
