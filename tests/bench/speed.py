"""From nothing, and from an alert, to the artifact: against `papermill` on the command line, side by side.

The same notebooks and servers; on our side the page, the evidence, the manifest and the dossier are part of the time.
papermill runs its notebooks one after another, as a script would.

One section is measured twice: where a backlog stands, it looks at the worker twice, 2.5 s apart, whoever runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.store.archive import Archive
from tests.kit.servers import Servers

from . import timeline
from .receiver import BIN, Receiver

ONE = ("4.1",)
#: At most so much of papermill's time (median of the rounds' ratios), by case.
TARGETS = {
    **{("cold", "one"): 0.50, ("cold", "one, backlog"): 0.50, ("cold", "ten"): 0.12},
    **{("warm", "one"): 0.25, ("warm", "ten"): 0.09},
}
#: At most so much memory, for ten sections.
MEBIBYTES = 450
#: At most so many seconds from Enter, where the delivery worker has stopped.
FIRST_SCREEN_S, TRIAGE_S = 2.0, 6.0
#: So long it has stopped when the first triage begins.
STOPPED_S = 40.0
#: What is imported from nothing: until the first numbers, and by the process that runs are forked from.
IMPORTED = {
    "the first numbers": "runbook_lib.cli.progress, runbook_lib.view.render, runbook_lib.sources.postgres",
    "the sections": "runbook_lib.runs.polite, runbook_lib.cli.warm",
}
_TIMEOUT_S = 300.0


@dataclass
class Way:
    """One way to the same artifacts, measured once a round."""

    seconds: list[float] = field(default_factory=list)
    mebibytes: float = 0.0
    """Peak of the summed PSS of the process tree, in a round of its own: a page that several share counts once."""


@dataclass
class Triage:
    """A triage from nothing of a system whose worker is dead: seconds to the first screen and to the verdict."""

    first_screen: list[float] = field(default_factory=list)
    verdict: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    """When the command has ended: the archive is written."""
    bars: list[timeline.Bar] = field(default_factory=list)
    """What ran when, in the last round."""


@dataclass
class Case:
    """Some sections over one pair of servers: papermill, `runbook run`, and an alert to a receiver that is up."""

    name: str
    sections: tuple[str, ...]
    servers: Servers
    papermill: Way = field(default_factory=Way)
    cold: Way = field(default_factory=Way)
    warm: Way = field(default_factory=Way)

    def ratio(self, way: str) -> float:
        """Of papermill's time, median of the rounds."""
        ours: Way = getattr(self, way)
        return statistics.median(a / b for a, b in zip(ours.seconds, self.papermill.seconds, strict=True))


def ten() -> tuple[str, ...]:
    """The sections that look at a system: all but the postmortem, which looks back at their artifacts."""
    return tuple(n for n in catalog.load().runnable() if n != catalog.section_with("postmortem"))


def measure(standing: Servers, delivered: Servers, scratch: Path, rounds: int = 3) -> list[Case]:
    """Each way in turn, round by round, so that whatever else the machine does meets all of them."""
    scratch.mkdir(parents=True, exist_ok=True)
    cases = [Case("one", ONE, delivered), Case("one, backlog", ONE, standing), Case("ten", ten(), standing)]
    with ExitStack() as stack:
        envs = {id(s): _environment(s, scratch) for s in (standing, delivered)}
        receivers = {
            key: stack.enter_context(Receiver(env, scratch / f"receiver-{n}"))
            for n, (key, env) in enumerate(envs.items())
        }
        for n in range(rounds + 1):
            for case in cases:
                env, receiver = envs[id(case.servers)], receivers[id(case.servers)]
                for way, run, tree in (
                    (case.papermill, partial(_papermill, case.sections, env, scratch), None),
                    (case.cold, partial(_runbook, case.sections, env, scratch), None),
                    (case.warm, partial(_alert, case.sections, receiver), receiver.process),
                ):
                    if n == 0:  # compiles and caches too, and whoever counts pages holds others up
                        way.mebibytes = _peak(run, tree)
                        continue
                    began = time.monotonic()
                    run()
                    way.seconds.append(time.monotonic() - began)
                took = ", ".join(f"{way.seconds[-1]:.1f} s" for way in (case.papermill, case.cold, case.warm) if n)
                print(f"  round {n} of {rounds}, {case.name}: {took or 'not timed'}", flush=True)
    return cases


def triage(scratch: Path, rounds: int = 5) -> Triage:
    """Run a triage of a sandbox as a person does; the first round compiles and is not counted."""
    scratch.mkdir(parents=True, exist_ok=True)
    sandbox = Sandbox(scratch / "sandbox")
    sandbox.up()
    try:
        faults.inject(sandbox, "worker_stopped")
        time.sleep(STOPPED_S)
        return _triage_often(scratch, rounds)
    finally:
        sandbox.down()


def _sandbox_environment(scratch: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RUNBOOK_", "PYTHONDONTWRITE"))}
    return env | {"RUNBOOK_SANDBOX_DIR": str(scratch / "sandbox")}


def _triage_often(scratch: Path, rounds: int) -> Triage:
    env = _sandbox_environment(scratch)
    command = [str(BIN / "runbook"), "triage", "--target", "sandbox", "--lang", "en", "--output", str(scratch / "out")]
    measured = Triage()
    for n in range(rounds + 1):
        shutil.rmtree(scratch / "out", ignore_errors=True)
        began, clock = time.monotonic(), time.time()
        with subprocess.Popen(
            command, env=env, cwd=scratch, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as running:
            assert running.stdout and running.stderr
            seen = [(line.decode().strip(), time.monotonic() - began) for line in running.stderr]
            said = running.stdout.read().decode()
        verdict = said.partition("\n")[0].strip()
        at = dict(reversed(seen))
        first = next((line for line, _ in seen if line.startswith("Provisional")), verdict)
        if not verdict or verdict not in at:
            raise RuntimeError(f"runbook triage: {said[-300:]} {[line for line, _ in seen][-3:]}")
        if n:
            measured.verdict.append(at[verdict])
            measured.first_screen.append(at[first])
            measured.ended.append(time.monotonic() - began)
        print(f"  round {n} of {rounds}: first screen {at[first]:.1f} s, verdict {at[verdict]:.1f} s", flush=True)
    measured.bars = timeline.bars(scratch / "out" / "adhoc", clock)
    return measured


def imports(what: str, most: int = 12) -> tuple[float, list[tuple[str, float]]]:
    """Return the milliseconds of an import from nothing, and of the packages that take most of it themselves."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {what}"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    lines = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stderr.splitlines()
    packages: Counter[str] = Counter()
    for line in lines:
        own, _, name = line.removeprefix("import time:").split("|")
        if own.strip().isdigit():
            packages[".".join(name.strip().split(".")[: 2 if "runbook_lib" in name else 1])] += int(own)
    return packages.total() / 1000, [(name, us / 1000) for name, us in packages.most_common(most)]


def _environment(servers: Servers, scratch: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RUNBOOK_", "PYTHONDONTWRITE"))} | servers.env
    return env | {"RUNBOOK_CONFIG": str(_config(scratch))}


def _papermill(sections: Sequence[str], env: dict[str, str], scratch: Path) -> None:
    for section in sections:
        notebook = catalog.load().sections[section].notebook
        command = [str(BIN / "papermill"), str(notebook), str(scratch / f"{section}.ipynb"), "--no-progress-bar"]
        done = subprocess.run(command, env=env, cwd=scratch, capture_output=True, timeout=_TIMEOUT_S)
        if done.returncode:
            raise RuntimeError(f"papermill, section {section}: {done.stderr.decode()[-500:]}")


def _runbook(sections: Sequence[str], env: dict[str, str], scratch: Path) -> None:
    command = [str(BIN / "runbook"), "run", *sections, "--output", str(scratch / "cold"), "--json"]
    done = subprocess.run(command, env=env, cwd=scratch, capture_output=True, timeout=_TIMEOUT_S)
    runs = json.loads(done.stdout)["runs"]
    if [r["section"] for r in runs if r["artifact"]["html"]] != list(sections):
        raise RuntimeError(f"runbook: {done.stderr.decode()[-500:]}")


def _alert(sections: Sequence[str], receiver: Receiver) -> None:
    """Post an alert and wait for its artifacts."""
    incident = f"bench-{uuid.uuid4().hex[:8]}"
    labels = {"alertname": _name(sections), "incident": incident}
    alert = {"status": "firing", "labels": labels, "startsAt": "2025-01-31T03:00:00Z"}
    body = {"version": "4", "groupKey": incident, "alerts": [alert]}
    receiver.post(body).raise_for_status()
    archive = Archive(str(receiver.output), incident)
    until = time.monotonic() + _TIMEOUT_S
    while not set(sections) <= {e.get("section") for e in archive.artifacts()}:
        if time.monotonic() > until:
            raise RuntimeError(f"no artifact of {incident} within {_TIMEOUT_S:.0f} s")
        time.sleep(0.01)


def _config(scratch: Path) -> Path:
    routes = [
        f"[[routes]]\nalertname = {json.dumps(_name(sections))}\nsections = {json.dumps(list(sections))}\n"
        for sections in (ONE, ten())
    ]
    file = scratch / "runbook.toml"
    file.write_text("\n".join(routes))
    return file


def _name(sections: Sequence[str]) -> str:
    return f"Bench{len(sections)}"


def _peak(run: Callable[[], None], family: psutil.Process | None = None) -> float:
    """Peak memory of the family, in MiB; without one, of what this process starts meanwhile."""
    before = set() if family else set(psutil.Process().children(recursive=True))
    peak, over = 0.0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not over.wait(0.05):
            tree = [family, *family.children(recursive=True)] if family else psutil.Process().children(recursive=True)
            peak = max(peak, sum(_pss(p) for p in tree if p not in before) / 2**20)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        over.set()
        watcher.join()
    return peak


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
