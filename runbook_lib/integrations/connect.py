"""`runbook connect`: forward the ports of a cluster that a target's sections need, until Ctrl-C."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import IO
from urllib.parse import urlsplit

import click

from runbook_lib.book import catalog, messages
from runbook_lib.cli import interrupts
from runbook_lib.cli.common import lang_option
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import settings
from runbook_lib.sources.settings import Settings, Target, WorkloadSettings

#: Seconds for kubectl to open its ports, and to end after SIGTERM.
OPEN_S, END_S = 30.0, 5.0
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
#: URLs to export for addresses that the target does not have; the user fills in user and password.
_URL_TEMPLATES = {
    "database_url": "postgresql://USER:PASSWORD@127.0.0.1:{port}/{database}",
    "nats_url": "nats://USER:PASSWORD@127.0.0.1:{port}",
}


@dataclass
class Forward:
    """One `kubectl port-forward` process for one resource; ports are (address name, local port, remote port)."""

    resource: str
    ports: list[tuple[str, int, int]]
    needed: bool
    output: list[str] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None

    def start(self, workloads: WorkloadSettings) -> None:
        """Start kubectl. Raises ClickException if it cannot be started."""
        pairs = [f"{here}:{there}" for _, here, there in self.ports]
        command = [*workloads.kubectl, "port-forward", "--address", "127.0.0.1"]
        try:
            self._process = subprocess.Popen(
                [*command, self.resource, *pairs],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        except OSError as e:
            raise click.ClickException(f"kubectl cannot be started ({e.strerror}): install it, or check PATH") from None
        for stream in (self._process.stdout, self._process.stderr):
            threading.Thread(target=self._collect_output, args=(stream,), daemon=True).start()

    def _collect_output(self, stream: IO[str]) -> None:
        for line in stream:
            if not line.startswith("Handling connection"):
                self.output.append(line.strip())

    @property
    def ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process is None or self._process.poll() is not None

    @property
    def opened(self) -> bool:
        """Return whether every port is open."""
        return sum(line.startswith("Forwarding from") for line in self.output) >= len(self.ports)

    def problem(self) -> str:
        """Return the last error line of kubectl."""
        time.sleep(0.2)  # its last output may not have been read yet
        lines = [line for line in self.output if line and not line.startswith("Forwarding from")]
        return Masker().scrub(lines[-1].removeprefix("error: ") if lines else "it ended without a message")[:300]

    def end(self) -> None:
        """End the process and with it its connections."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
            self._process.kill()
            self._process.wait()


@click.command()
@click.argument("target", default="default")
@lang_option()
def connect(target: str) -> None:
    """Forward the cluster's ports to this machine until Ctrl-C.

    It runs a kubectl port-forward for each address that the sources need.
    """
    config = settings.load()
    known, workloads = _find_target(config, target)
    if workloads.runner != "kubectl" or not workloads.forwards:
        raise UsageError(f"target '{target}' does not use kubectl, or has no forwards: there is nothing to forward")
    forwards, elsewhere = _plan_forwards(known, workloads)
    for name in elsewhere:
        click.echo(messages.text(say("connect.elsewhere", name=name)), err=True)
    if not forwards:
        raise UsageError(f"target '{target}' has no address on this machine: there is nothing to forward")
    interrupts.raise_on_signal()
    with ExitStack() as opened:
        for forward in forwards:
            opened.callback(forward.end)
            forward.start(workloads)
        _wait_until_open(forwards, workloads)
        running = [f for f in forwards if not f.ended]
        if target == "default":  # the environment gives only this target its addresses
            for line in _export_lines(running, known, workloads):
                click.echo(line)
        look = f"run {reach}" if (reach := catalog.section_with("reach")) else "triage"
        click.echo(messages.text(say("connect.open", command=f"runbook {look} --target {target}")), err=True)
        while not (dead := [f for f in running if f.ended and f.needed]):
            time.sleep(0.3)
    died = say("connect.died", resource=dead[0].resource, detail=dead[0].problem())
    raise click.ClickException(messages.text(died))


def _find_target(config: Settings, name: str) -> tuple[Target | None, WorkloadSettings]:
    """Return the target and its workloads; for a `default` without any address, None and the default workloads."""
    try:
        known = config.target(name)
    except UsageError:
        if name != "default" or config.database_url or config.nats_url:
            raise
        return None, settings.facts_of({}).workloads
    return known, known.facts.workloads


def _plan_forwards(known: Target | None, workloads: WorkloadSettings) -> tuple[list[Forward], list[str]]:
    """Plan a forward for each resource whose address is local or not set; also return the remote addresses' names."""
    ports: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    needed: set[str] = set()
    elsewhere = []
    for name, behind in workloads.forwards.items():
        resource, _, port = behind.rpartition(":")
        url = known.address(name) if known else None
        here = int(port) if url is None else _local_port(url, int(port))
        if here is None:
            elsewhere.append(name)
            continue
        ports[resource].append((name, here, int(port)))
        if url is not None or name in _URL_TEMPLATES:
            needed.add(resource)
    return [Forward(resource, each, resource in needed) for resource, each in ports.items()], elsewhere


def _local_port(urls: str, usual: int) -> int | None:
    """Return the port of the first address on this machine; None if there is none."""
    for url in settings.split_urls(urls):
        with suppress(ValueError):
            parts = urlsplit(url)
            if parts.hostname in _LOCAL_HOSTS:
                return parts.port or usual
    return None


def _wait_until_open(forwards: list[Forward], workloads: WorkloadSettings) -> None:
    """Wait until all forwards are open; an optional one may fail. Raises ClickException if a needed one fails."""
    until = time.monotonic() + OPEN_S
    for forward in forwards:
        while not forward.opened and not forward.ended and time.monotonic() < until:
            time.sleep(0.05)
        if forward.opened and not forward.ended:
            continue
        facts = {"resource": forward.resource, "namespace": workloads.namespace}
        detail = forward.problem() if forward.ended else f"not open within {OPEN_S:.0f} s"
        denied = "forbidden" in detail.lower() or re.search(r"unauthorized|must be logged in", detail, re.IGNORECASE)
        why = say("connect.denied" if denied else "connect.failed", **facts, detail=detail)
        failed = messages.text(why)
        if forward.needed:
            raise click.ClickException(failed)
        forward.end()
        click.echo(f"runbook: {failed}", err=True)


def _export_lines(running: list[Forward], known: Target | None, workloads: WorkloadSettings) -> list[str]:
    """Return `export` lines for the addresses that the target does not have."""
    return [
        f"export RUNBOOK_{name.upper()}="
        + shlex.quote(
            _URL_TEMPLATES.get(name, "http://127.0.0.1:{port}").format(port=here, database=workloads.database)
        )
        for forward in running
        for name, here, _ in forward.ports
        if known is None or known.address(name) is None
    ]
