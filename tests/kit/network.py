"""A bad network before the runbook alone: a proxy of each server of a sandbox, on an address of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from runbook_lib.gameday.sandbox.broker import is_listening
from runbook_lib.gameday.sandbox.network import POLL_S, Link
from runbook_lib.gameday.sandbox.state import SandboxState
from tests.kit.waiting import until

HOST = "127.0.0.3"
#: The variable that has the address of each server.
VARIABLES = {
    "postgres": "RUNBOOK_DATABASE_URL",
    "nats": "RUNBOOK_NATS_URL",
    "nats_monitor": "RUNBOOK_NATS_MONITOR_URL",
    "entitlement": "RUNBOOK_ENTITLEMENT_URL",
    "notification": "RUNBOOK_NOTIFICATION_URL",
    "receiver": "RUNBOOK_DESTINATION_URL",
}


@contextmanager
def disturbed(state: SandboxState, rule: str, value: float, *servers: str) -> Iterator[dict[str, str]]:
    """Disturb the way to these servers by a rule of the sandbox's network; the variables whose addresses lead there."""
    own, over = state.addresses, threading.Event()
    ports = {"postgres": own.postgres_port, "nats": own.nats_port, "nats_monitor": own.monitor_port}
    ports |= {"receiver": own.receiver_port, **own.service_ports}
    links = {name: Link(ports[name], HOST) for name in servers}

    async def forward() -> None:
        tasks = [asyncio.create_task(link.serve()) for link in links.values()]
        while not over.is_set() or any(link.busy for link in links.values()):
            await asyncio.sleep(POLL_S)
        for task in tasks:
            task.cancel()

    thread = threading.Thread(target=asyncio.run, args=(forward(),))
    thread.start()
    try:
        until(lambda: all(is_listening(ports[name], HOST) for name in servers))
        for link in links.values():
            link.rule, link.value = rule, value
        yield {VARIABLES[n]: state.env[VARIABLES[n]].replace("127.0.0.1", HOST) for n in servers}
    finally:
        for link in links.values():
            link.rule = "refuse"  # ends its connections
        over.set()
        thread.join()
