"""A bad network: on loopback, a proxy before each server, for the runbook alone or for a sandbox's services."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.gameday.sandbox.state import SERVICES, SandboxState
from tests.kit.waiting import is_listening, until

#: Where the services, and the runbook, reach the proxies; the ports are those of the servers.
FOR_SERVICES, FOR_RUNBOOK = "127.0.0.2", "127.0.0.3"
#: What the services reach.
SERVERS = ("nats", "postgres", "receiver")
#: The variable that has the address of each server for the runbook.
VARIABLES = {
    "postgres": "RUNBOOK_DATABASE_URL",
    "nats": "RUNBOOK_NATS_URL",
    "nats_monitor": "RUNBOOK_NATS_MONITOR_URL",
    "entitlement": "RUNBOOK_ENTITLEMENT_URL",
    "notification": "RUNBOOK_NOTIFICATION_URL",
    "receiver": "RUNBOOK_DESTINATION_URL",
}
#: What can be done to what passes, and the values of each: bytes of a connection, seconds, bytes per second;
#: of each chunk the probability that it is lost, and sent again later.
RULES: Mapping[str, tuple[float, ...]] = {
    "refuse": (0,),
    "drop": (0,),
    "lose": (0.2,),
    "delay": (0.05, 0.5, 3),
    "cut": (0, 1_000, 100_000),
    "rate": (10, 1_000, 100_000),
}
POLL_S, _CHUNK = 0.1, 1 << 16


class Link:
    """The proxy of one server on 127.0.0.1; `rule` counts at once, also for connections that there are."""

    def __init__(self, port: int, host: str) -> None:
        self._port, self._host = port, host
        self.rule, self.value = "", 0.0
        self._ends: set[StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def busy(self) -> bool:
        """Whether it listens or has connections."""
        return bool(self._server or self._ends)

    async def serve(self) -> None:
        """Accept connections, unless they are refused."""
        while True:
            if self.rule != "refuse" and self._server is None:
                self._server = await asyncio.start_server(self._forward, self._host, self._port)
            elif self.rule == "refuse" and self._server is not None:
                self._server.close()
                self._server = None
                for end in [*self._ends]:
                    end.transport.abort()
            await asyncio.sleep(POLL_S)

    async def _forward(self, near_reader: StreamReader, near: StreamWriter) -> None:
        ends = {near}
        with contextlib.suppress(OSError):
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._port)
            ends.add(far)
            self._ends |= ends
            pumps = [asyncio.create_task(self._pump(*way)) for way in ((near_reader, far), (far_reader, near))]
            _, others = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in others:
                pump.cancel()
        for end in ends:
            end.close()
        self._ends -= ends

    async def _pump(self, source: StreamReader, target: StreamWriter) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while chunk := await source.read(_CHUNK):
                while self.rule == "drop" and passed >= self.value:
                    await asyncio.sleep(POLL_S)
                if self.rule in ("delay", "rate"):
                    await asyncio.sleep(self.value if self.rule == "delay" else len(chunk) / self.value)
                resent_s = 0.2
                while self.rule == "lose" and random.random() < self.value:
                    await asyncio.sleep(resent_s)
                    resent_s *= 2
                passed += len(chunk)
                over = max(passed - round(self.value), 0) if self.rule == "cut" else 0
                target.write(chunk[: max(len(chunk) - over, 0)])
                await target.drain()
                if over:
                    return


@contextmanager
def linked(ports: Mapping[str, int], host: str) -> Iterator[dict[str, Link]]:
    """Run a proxy for each of these ports of 127.0.0.1 on that host; return the proxies by name."""
    links, over = {name: Link(port, host) for name, port in ports.items()}, threading.Event()

    async def forward() -> None:
        tasks = [asyncio.create_task(link.serve()) for link in links.values()]
        while not over.is_set() or any(link.busy for link in links.values()):
            await asyncio.sleep(POLL_S)
        for task in tasks:
            task.cancel()

    thread = threading.Thread(target=asyncio.run, args=(forward(),))
    thread.start()
    try:
        until(lambda: all(is_listening(port, host) for port in ports.values()))
        yield links
    finally:
        for link in links.values():
            link.rule = "refuse"  # ends its connections
        over.set()
        thread.join()


@contextmanager
def disturbed(state: SandboxState, rule: str, value: float, *servers: str) -> Iterator[dict[str, str]]:
    """Disturb the runbook's way to these servers; return the variables whose addresses lead there."""
    own = state.addresses
    ports = {"postgres": own.postgres_port, "nats": own.nats_port, "nats_monitor": own.monitor_port}
    ports |= {"receiver": own.receiver_port, **own.service_ports}
    with linked({name: ports[name] for name in servers}, FOR_RUNBOOK) as links:
        for link in links.values():
            link.rule, link.value = rule, value
        yield {VARIABLES[n]: state.env[VARIABLES[n]].replace("127.0.0.1", FOR_RUNBOOK) for n in servers}


_before_services: dict[Path, dict[str, Link]] = {}


@contextmanager
def before_services(sandbox: Sandbox) -> Iterator[None]:
    """Let the services of a sandbox reach their servers through proxies, which `disturb` disturbs."""
    addresses = sandbox.state.addresses
    with linked({name: getattr(addresses, f"{name}_port") for name in SERVERS}, FOR_SERVICES) as links:
        names = ("POSTGRES_HOST", "NATS_URL", "SANDBOX_RECEIVER_URL")
        sandbox.configure({name: sandbox.settings[name].replace("127.0.0.1", FOR_SERVICES) for name in names})
        sandbox.restart(*SERVICES)
        sandbox.wait_for_flow(60)
        _before_services[sandbox.directory] = links
        try:
            yield
        finally:
            del _before_services[sandbox.directory]


def disturb(sandbox: Sandbox, rules: Mapping[str, tuple[str, float]]) -> None:
    """Disturb the services' way to servers, by the servers' names."""
    for name, (rule, value) in rules.items():
        link = _before_services[sandbox.directory][name]
        link.rule, link.value = rule, value
