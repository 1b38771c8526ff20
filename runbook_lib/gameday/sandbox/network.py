"""The network between the services and what they reach: on loopback, a proxy for each server.

The services connect to 127.0.0.2 and the servers' own ports, the runbook directly. The rules are read from a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from asyncio import StreamReader, StreamWriter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .state import load

HOST, FILE_NAME = "127.0.0.2", "network.json"
SERVERS = ("nats", "postgres", "receiver")
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

    def __init__(self, port: int, host: str = HOST) -> None:
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


def main(directory: Path) -> None:
    """Forward until stopped."""
    asyncio.run(_forward_all(directory))


async def _forward_all(directory: Path) -> None:
    addresses = load(directory).addresses
    links = {name: Link(getattr(addresses, f"{name}_port")) for name in SERVERS}
    tasks = [asyncio.create_task(link.serve()) for link in links.values()]
    while not any(task.done() for task in tasks):
        rules: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            rules = json.loads((directory / FILE_NAME).read_text())
        for name, link in links.items():
            link.rule, link.value = rules.get(name) or ("", 0)
        await asyncio.sleep(POLL_S)
    await asyncio.gather(*tasks)  # raises what ended one
