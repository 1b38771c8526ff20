"""One drill on real servers: an incident, the first triage, its proposal carried out, and a twin without it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

import runbook_lib
from runbook_lib.book.catalog import DOCUMENTS, Catalog
from runbook_lib.book.pack import active_runbook
from runbook_lib.gameday.sandbox import damage, faults, servers
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.gameday.sandbox.state import SERVICES, SandboxError
from tests.kit import network

from . import people, probe
from .judge import LATER_S, Truth, changing, helped
from .scenario import LOADS, Scenario

#: How long the flow is looked at before anything breaks, and how long a new load has had by then.
BEFORE_S, WARM_S = 10.0, 4.0
_TRIAGE_S, _COMMAND_S, _END_S = 240.0, 90.0, 15.0
_RUNBOOK = (sys.executable, "-m", "runbook_lib")
#: Of plays side by side, one is being set up at a time, and one is asked: nobody is asked on a machine that is busy.
_SET_UP, _ASKED = threading.Lock(), threading.Lock()


class Stopped(Exception):
    """Somebody wants the drills to end; what is up has been taken down."""


@dataclass(frozen=True)
class DrillClock:
    """Waits that end at once when the drills are to end."""

    stop: threading.Event = field(default_factory=threading.Event)

    def wait(self, s: float) -> None:
        """Wait so many seconds. Raises Stopped."""
        if self.stop.wait(max(s, 0.0)):
            raise Stopped

    @contextlib.contextmanager
    def turn(self, one: threading.Lock) -> Iterator[None]:
        """Wait for the turn of this play. Raises Stopped."""
        while not one.acquire(timeout=0.1):
            self.wait(0.0)
        try:
            yield
        finally:
            one.release()


@dataclass(frozen=True)
class PlayedIncident:
    """A sandbox in which the scenario has just begun."""

    sandbox: Sandbox
    before: probe.FlowSample
    problems: tuple[str, ...]  # of injections: whether something broke all the same is seen by the probe
    broken: probe.FlowSample | None = None  # before the faults were undone, where they have ended


def truth(scenario: Scenario, book: Catalog, left: probe.FlowSample | None = None) -> Truth | None:
    """Return the right answers, from the catalogue; None if nothing was broken.

    Faults that have ended may have lost events for good, which the flow that was `left` alone shows.
    """
    broken = [faults.find(name) for name in scenario.faults]
    if not broken:
        return None
    modes = book.failure_modes
    right = {name for f in broken for name in (f.stuck_at, f.failure_mode, *f.also_right)}
    if scenario.ended_s and left and left.missing:
        right |= {"subscriber", "FM-NATS-03"}
    places = frozenset(right - {*modes})
    return Truth(places, frozenset(name for name in right if name in modes), over=bool(scenario.ended_s))


@contextlib.contextmanager
def incident(
    scenario: Scenario,
    directory: Path,
    clock: DrillClock,
    settings: Mapping[str, str] | None = None,
    output: Path | None = None,
    turn: Callable[[Sandbox], object] | None = None,
    proxied: bool = False,
) -> Iterator[PlayedIncident]:
    """Run the scenario from a new sandbox to its onset, or to the end of faults that have ended.

    With `output`, the healthy system's configuration is stored there; `turn` breaks what the scenario does not name;
    `proxied` services reach their servers through a network that can be disturbed. The sandbox is removed at the end.
    Raises SandboxError.
    """
    sandbox, around = Sandbox(directory), contextlib.ExitStack()
    before, during = LOADS[scenario.load]
    try:
        with clock.turn(_SET_UP):
            sandbox.up(rate=before, hours=1, seed=scenario.seed, settings=settings)
            if proxied:
                around.enter_context(network.before_services(sandbox))
        sandbox.configure({"SANDBOX_RATE": f"{during:g}"})
        clock.wait(WARM_S + BEFORE_S)
        seen = probe.sample_flow(sandbox, BEFORE_S)
        if output:
            baseline = (*_RUNBOOK, "baseline", "--target", "sandbox", "--output", str(output))
            with clock.turn(_SET_UP):
                _run_command(baseline, sandbox, directory, clock)
        _make_noise(scenario, sandbox)
        problems = []
        for name in scenario.faults:
            try:
                scaled(faults.find(name), scenario.intensity).inject(sandbox)
            except Exception as error:  # a second fault may not get in; what has been broken the probe sees
                problems.append(f"{name}: {error}".splitlines()[0])
        if turn:
            turn(sandbox)
        broken = None
        if scenario.ended_s:
            clock.wait(scenario.look_after_s)
            broken = probe.sample_flow(sandbox, BEFORE_S)
            for name in scenario.faults:
                faults.find(name).undo(sandbox)
        yield PlayedIncident(sandbox, seen, tuple(problems), broken)
    finally:
        sandbox.down()
        around.close()


def scaled(fault: faults.Fault, intensity: float) -> faults.Fault:
    """Return the fault with its amount times the intensity, if it has one."""
    amount = fault.table.get("amount")
    return replace(fault, table={**fault.table, "amount": _scale(amount, intensity)}) if amount else fault


def _scale(amount: int, intensity: float) -> int:
    return max(round(amount * intensity), 1)


def _make_noise(scenario: Scenario, sandbox: Sandbox) -> None:
    if scenario.noise == "deploy":
        sandbox.restart(SERVICES[scenario.seed % len(SERVICES)])
        if scenario.faults:
            sandbox.wait_for_flow(30)  # a fault that hits a pod that is still starting would end with it
    elif scenario.noise == "replay":
        sandbox.visit(lambda js: damage.replay(js, _scale(50, scenario.intensity)))
    elif scenario.noise:
        people.HARMLESS[scenario.noise](sandbox)


def drill(
    scenario: Scenario, book: Catalog, clock: DrillClock, after_s: float = 40.0, keep: Path | None = None
) -> dict[str, Any]:
    """Play it and return its line: the scenario, what was seen, said, done and what became of it.

    `after_s` is how long the flow is given after the first proposal; `keep` is a folder for the runbook's artifacts.
    """
    return record(scenario, lambda scratch: _play_scenario(scenario, book, scratch, clock, after_s, keep))


def record(scenario: Scenario, play: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Play it in a folder that is removed afterwards; return its line, with `error` if it could not be played."""
    line: dict[str, Any] = {
        "seed": scenario.seed,
        "scenario": asdict(scenario),
        "at": _format_now(),
        "version": version("runbook-notebooks"),
        "code": _digest_of_code(),
    }
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch:
        try:
            line |= play(Path(scratch))
        except (SandboxError, psycopg.Error, OSError) as error:
            line["error"] = (str(error).splitlines() or [type(error).__name__])[0]
    return line


@cache
def _digest_of_code() -> str:
    """Return a short digest of what decides a verdict: code, queries and documents, without the game days."""
    files = [f for f in Path(runbook_lib.__file__).parent.rglob("*") if f.suffix in (".py", ".sql", ".md", ".toml")]
    documents = [pack.document(name) for pack in active_runbook().packs for name in DOCUMENTS]
    digest = hashlib.sha256()
    for file in sorted({*(f for f in files if "gameday" not in f.parts), *(d for d in documents if d.is_file())}):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def _play_scenario(
    scenario: Scenario, book: Catalog, scratch: Path, clock: DrillClock, after_s: float, keep: Path | None
) -> dict[str, Any]:
    output = (keep or scratch) / f"drill-{scenario.seed}"
    it, _, line = respond(scenario, scratch, clock, after_s, output)
    right = truth(scenario, book, probe.FlowSample(**line["alone"]))
    return {
        "problems": it.problems,
        "truth": {**asdict(right), "places": sorted(right.places, key=str), "modes": sorted(right.modes)}
        if right
        else None,
        **line,
        "broken": asdict(it.broken) if it.broken else None,
    }


def respond(
    scenario: Scenario,
    scratch: Path,
    clock: DrillClock,
    after_s: float,
    output: Path,
    turn: Callable[[Sandbox], object] | None = None,
    proxied: bool = False,
) -> tuple[PlayedIncident, dict[str, Any] | None, dict[str, Any]]:
    """Play the incident, its triage and its first proposal; return it, the triage's document, and fields of its line.

    If `turn` breaks the sandbox, only a proposal of high confidence is carried out, and only then there is a twin.
    """
    more: dict[str, Any] = {"turn": turn, "proxied": proxied}
    with contextlib.ExitStack() as up:
        twin = None if turn else up.enter_context(Twin(scenario, scratch / "twin", clock))
        it = up.enter_context(incident(scenario, scratch / "sandbox", clock, output=output, **more))
        onset = time.monotonic()
        clock.wait(scenario.ended_s or scenario.look_after_s)
        line: dict[str, Any] = {"before": asdict(it.before)}
        if turn:
            line["seen"] = asdict(probe.sample_flow(it.sandbox, scenario.look_after_s))
        with clock.turn(_ASKED):
            document, seconds, problem = triage(it.sandbox, scenario, output, clock)
        verdict = document["verdict"] if document else None
        wanted = verdict and (not turn or verdict["confidence"] == "high")
        proposal = changing(verdict["proposals"]) if verdict and wanted else None
        done = carry_out(proposal["command"], it.sandbox, scratch, clock) if proposal else None
        if done and not twin:
            twin = up.enter_context(Twin(scenario, scratch / "twin", clock, **more))
        elif twin and not done:
            twin.end()  # this sandbox is itself left alone
        acted_at = time.monotonic()

        def look(s: float) -> tuple[probe.FlowSample, probe.FlowSample]:
            alone = twin.look_at(acted_at + s - onset, after_s) if twin and done else None
            clock.wait(acted_at + s - time.monotonic())
            acted = probe.sample_flow(it.sandbox, after_s)
            return acted, alone.result() if alone else acted

        acted, alone = look(after_s)
        if done and helped(acted, alone) == "nothing" and after_s < LATER_S:
            line["after_s"] = LATER_S
            acted, alone = look(LATER_S)
    return it, document, {
        "verdict": verdict,
        "headline": find_headline(document) if document else problem,
        "seconds": round(seconds, 1),
        "proposal": {**proposal, **done} if proposal and done else None,
        **line,
        "acted": asdict(acted),
        "alone": asdict(alone),
    }  # fmt: skip


class Twin:
    """The same incident, left alone, in a thread of its own, which ends with the block; `more` is as for `incident`."""

    def __init__(self, scenario: Scenario, directory: Path, clock: DrillClock, **more: Any) -> None:
        self._lane, self._clock, self._up = ThreadPoolExecutor(1), clock, contextlib.ExitStack()
        self._begun = self._lane.submit(self._start_incident, incident(scenario, directory, clock, **more))

    def _start_incident(self, begun: contextlib.AbstractContextManager[PlayedIncident]) -> tuple[Sandbox, float]:
        return self._up.enter_context(begun).sandbox, time.monotonic()

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._lane.shutdown()

    def look_at(self, age_s: float, after_s: float) -> Future[probe.FlowSample]:
        """Sample the flow at that age."""

        def look() -> probe.FlowSample:
            sandbox, onset = self._begun.result()
            self._clock.wait(onset + age_s - time.monotonic())
            return probe.sample_flow(sandbox, after_s)

        return self._lane.submit(look)

    def end(self) -> None:
        """Take it down, after what has been asked of it."""
        self._lane.submit(self._up.close)


def triage(
    sandbox: Sandbox, scenario: Scenario, output: Path, clock: DrillClock
) -> tuple[dict[str, Any] | None, float, str]:
    """Run the command as an alert would.

    Return its document, its seconds, and its error output if it has no document.
    """
    where = ("--target", "sandbox", "--incident", f"drill-{scenario.seed}", "--output", str(output))
    alert = ("-p", "detected_by=alert", "-p", f"detected_at={_format_now()}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drill-") as cwd:
        command = (*_RUNBOOK, "triage", "--json", *where, *alert)
        code, out, err = _run_command(command, sandbox, Path(cwd), clock)
    seconds = time.monotonic() - began
    try:
        return json.loads(out), seconds, ""
    except ValueError:
        return None, seconds, (err.strip().splitlines() or [f"no verdict, exit code {code}"])[-1]


def carry_out(command: str, sandbox: Sandbox, folder: Path, clock: DrillClock) -> dict[str, Any]:
    """Run the command in a shell as it is; return its exit code, its last line and its seconds."""
    began = time.monotonic()
    code, out, err = _run_command(("/bin/sh", "-c", command), sandbox, folder, clock, _COMMAND_S)
    last = ((out + err).strip().splitlines() or [""])[-1]
    return {"exit": code, "said": last[:200], "seconds": round(time.monotonic() - began, 1)}


def _run_command(
    command: Sequence[str], sandbox: Sandbox, folder: Path, clock: DrillClock, limit_s: float = _TRIAGE_S
) -> tuple[int, str, str]:
    """Run it as a process group of its own to its end, or end it; exit code, standard output and error."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env=environment(sandbox),
            start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + limit_s
            while process.poll() is None and time.monotonic() < until:
                clock.wait(0.1)
        finally:
            _end_process(process)
        out.seek(0)
        err.seek(0)
        return process.returncode, out.read(), err.read()


def _end_process(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)


def environment(sandbox: Sandbox) -> Mapping[str, str]:
    """Return a responder's environment in this sandbox: the commands, its folder, and the superuser for psql."""
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


def find_headline(document: Mapping[str, Any]) -> str:
    """Return the sentence that gives the reason: the step's that names a place, or the first with the worst status."""
    findings = [f for run in document["runs"] for f in run["findings"]]
    worst = [f for f in findings if f["status"] == document["status"]]
    placed = [f for f in worst if "stuck_at" in f["values"]]
    return str(next(iter((*placed, *worst, *findings)), {"headline": ""})["headline"])


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
