"""`runbook connect`: the ways into a cluster that a target's sections need, open for as long as it runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import IO, NoReturn
from urllib.parse import urlsplit

import click

from runbook_lib import interrupts, messages, settings
from runbook_lib.masking import Masker
from runbook_lib.model.finding import say
from runbook_lib.settings import Settings, Target, Workloads
from runbook_lib.usage import UsageError

#: Seconds until kubectl has opened its ports, or says why not; and until it ends when it is told to.
OPEN_S, END_S = 30.0, 5.0
_HERE = ("127.0.0.1", "localhost", "::1")
#: What is exported where the target has no such address; a person puts in who asks.
_ADDRESS = {
    "database_url": "postgresql://USER:PASSWORD@127.0.0.1:{port}/{database}",
    "nats_url": "nats://USER:PASSWORD@127.0.0.1:{port}",
}


@dataclass
class Forward:
    """One kubectl, and the ports of one resource that it forwards: (address, port here, port there)."""

    resource: str
    ports: list[tuple[str, int, int]]
    needed: bool
    said: list[str] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None

    def start(self, workloads: Workloads) -> None:
        """Start it. Raises ClickException where there is no kubectl."""
        context = ["--context", workloads.context] if workloads.context else []
        pairs = [f"{here}:{there}" for _, here, there in self.ports]
        command = ["kubectl", *context, "-n", workloads.namespace, "port-forward", "--address", "127.0.0.1"]
        try:
            self._process = subprocess.Popen(
                [*command, self.resource, *pairs],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        except OSError as e:
            raise click.ClickException(f"kubectl cannot be started ({e.strerror}): install it, or see PATH") from None
        for stream in (self._process.stdout, self._process.stderr):
            threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            if not line.startswith("Handling connection"):
                self.said.append(line.strip())

    @property
    def ended(self) -> bool:
        """Whether it does not run any more."""
        return self._process is None or self._process.poll() is not None

    @property
    def opened(self) -> bool:
        """Whether every port is open."""
        return sum(line.startswith("Forwarding from") for line in self.said) >= len(self.ports)

    def problem(self) -> str:
        """Its last line of complaint."""
        time.sleep(0.2)  # what it has said last is still on its way
        lines = [line for line in self.said if line and not line.startswith("Forwarding from")]
        return Masker().scrub(lines[-1].removeprefix("error: ") if lines else "it ended without a word")[:300]

    def end(self) -> None:
        """End it; it takes its connections with it."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
            self._process.kill()
            self._process.wait()


def hold(target: str, lang: str | None) -> NoReturn:
    """Open the ways to a target and hold them; whatever is raised ends all of them.

    Raises UsageError, and ClickException where a way cannot be opened, or has ended.
    """
    config = settings.load()
    lang = lang or config.lang
    known, workloads = _target(config, target)
    if workloads.runner != "kubectl" or not workloads.forwards:
        raise UsageError(f"target '{target}' is not run by kubectl, or names no forwards: there is nothing to open")
    forwards, elsewhere = _planned(known, workloads)
    for name in elsewhere:
        click.echo(messages.text(say("connect.elsewhere", name=name), lang), err=True)
    if not forwards:
        raise UsageError(f"no address of target '{target}' is on this machine: there is nothing to forward")
    interrupts.unwind()
    with ExitStack() as opened:
        for forward in forwards:
            opened.callback(forward.end)
            forward.start(workloads)
        _wait(forwards, workloads, lang)
        running = [f for f in forwards if not f.ended]
        for line in _environment(running, known, workloads):
            click.echo(line)
        click.echo(messages.text(say("connect.open", command=f"runbook run 2 --target {target}"), lang), err=True)
        while not (dead := [f for f in running if f.ended]):
            time.sleep(0.3)
    died = say("connect.died", resource=dead[0].resource, detail=dead[0].problem())
    raise click.ClickException(messages.text(died, lang))


def _target(config: Settings, name: str) -> tuple[Target | None, Workloads]:
    """The target and its workloads; for a `default` without any address, what is usual of the system."""
    try:
        known = config.target(name)
    except UsageError:
        if name != "default" or config.database_url or config.nats_url:
            raise
        return None, settings.facts_of({}).workloads
    return known, known.facts.workloads


def _planned(known: Target | None, workloads: Workloads) -> tuple[list[Forward], list[str]]:
    """A forward for each resource with an address on this machine, or with none; and what is elsewhere."""
    ports: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    needed: set[str] = set()
    elsewhere = []
    for name, behind in workloads.forwards.items():
        resource, _, port = behind.rpartition(":")
        url = known.address(name) if known else None
        here = int(port) if url is None else _port_here(url, int(port))
        if here is None:
            elsewhere.append(name)
            continue
        ports[resource].append((name, here, int(port)))
        if url is not None or name in _ADDRESS:
            needed.add(resource)
    return [Forward(resource, each, resource in needed) for resource, each in ports.items()], elsewhere


def _port_here(urls: str, usual: int) -> int | None:
    """The port of the first address that is on this machine; None where none is."""
    for url in settings.several(urls):
        with suppress(ValueError):
            parts = urlsplit(url)
            if parts.hostname in _HERE:
                return parts.port or usual
    return None


def _wait(forwards: list[Forward], workloads: Workloads, lang: str) -> None:
    """Until all are open; one that nobody needs may fail. Raises ClickException for another one."""
    until = time.monotonic() + OPEN_S
    for forward in forwards:
        while not forward.opened and not forward.ended and time.monotonic() < until:
            time.sleep(0.05)
        if forward.opened and not forward.ended:
            continue
        facts = {"resource": forward.resource, "namespace": workloads.namespace}
        detail = forward.problem() if forward.ended else f"not open within {OPEN_S:.0f} s"
        right = "forbidden" in detail.lower() or re.search(r"unauthorized|must be logged in", detail, re.IGNORECASE)
        failed = messages.text(say(f"connect.{'denied' if right else 'failed'}", **facts, detail=detail), lang)
        if forward.needed:
            raise click.ClickException(failed)
        forward.end()
        click.echo(f"runbook: {failed}", err=True)


def _environment(running: list[Forward], known: Target | None, workloads: Workloads) -> list[str]:
    """What to export, for the addresses that the target does not have; the others it has from where they stand."""
    return [
        f"export RUNBOOK_{name.upper()}="
        + shlex.quote(_ADDRESS.get(name, "http://127.0.0.1:{port}").format(port=here, database=workloads.database))
        for forward in running
        for name, here, _ in forward.ports
        if known is None or known.address(name) is None
    ]
