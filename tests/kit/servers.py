"""PostgreSQL and nats-server as the sandbox has them, for a test."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from nats.js import JetStreamContext
from nats.js.errors import ServerError

from runbook_lib.gameday.sandbox import broker, servers
from runbook_lib.gameday.sandbox.state import Addresses

#: The broker's own code for "error creating store for stream".
STORE_BUSY = 10049


class Servers:
    """Both servers as children of this process, with the schema and without any pod.

    >>> with Servers(directory) as running:     # doctest: +SKIP
    ...     running.ensure_streams()
    ...     psycopg.connect(running.database_url)
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).resolve()
        self.addresses = Addresses.choose()
        self.admin_url = self.addresses.admin_url
        self.app_url = self.addresses.app_url
        self.database_url = self.addresses.database_url
        self.nats_url = self.addresses.nats_url
        self.app_nats_url = self.addresses.app_nats_url
        self.nats_monitor_url = self.addresses.nats_monitor_url
        self.env = self.addresses.env
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Servers:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._prepare()
            self.start_nats()
            self.start_postgres()
            servers.create_database(self.addresses)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare(self) -> None:
        servers.initialise(self.directory, self.addresses)

    def start_postgres(self) -> None:
        """Start PostgreSQL and wait until it answers."""
        self._launch_server("postgres", servers.postgres_command(self.directory), servers.wait_for_postgres)

    def start_nats(self) -> None:
        """Start nats-server and wait until it answers."""
        self._launch_server("nats", servers.nats_command(self.directory), servers.wait_for_nats)

    def stop_postgres(self) -> None:
        """Shut PostgreSQL down fast: sessions end, the data stays."""
        self._end_server("postgres", signal.SIGINT)

    def stop_nats(self) -> None:
        """Stop the broker; streams and consumers stay on disk."""
        self._end_server("nats", signal.SIGTERM)

    def stop(self) -> None:
        """Stop both servers."""
        self.stop_nats()
        self.stop_postgres()

    def ensure_streams(self) -> None:
        """Create streams and consumers as the applications do at their start.

        A broker that has just deleted a stream may still be at its files (500, 10049): for a while it is asked again.
        """
        until = time.monotonic() + 10

        async def create(js: JetStreamContext) -> None:
            await broker.ensure_streams(js)
            for durable in broker.CONSUMERS:
                await broker.ensure_consumer(js, durable)

        while True:
            try:
                return broker.visit(self.app_nats_url, create)
            except ServerError as error:
                if error.err_code != STORE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def _launch_server(
        self, name: str, command: list[str], wait: Callable[[Addresses, Callable[[], bool]], None]
    ) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes[name] = process
        wait(self.addresses, lambda: process.poll() is None)

    def _end_server(self, name: str, how: signal.Signals) -> None:
        if process := self.processes.pop(name, None):
            process.send_signal(how)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
