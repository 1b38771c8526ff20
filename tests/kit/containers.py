"""The servers of the sandbox out of container images, for a Docker engine."""

from __future__ import annotations

import os
from pathlib import Path

from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from runbook_lib.gameday.sandbox import servers as embedded_servers
from tests.kit.servers import Servers

POSTGRES_IMAGE = os.environ.get("RUNBOOK_TEST_POSTGRES_IMAGE", "postgres:16")
NATS_IMAGE = os.environ.get("RUNBOOK_TEST_NATS_IMAGE", "nats:2")


class Containers(Servers):
    """The same two servers with the same roles and limits, out of images instead of wheels.

    The ports are chosen beforehand, so that a server that is restarted keeps its address.
    """

    def __init__(self, directory: Path | str) -> None:
        super().__init__(directory)
        passwords = self.addresses.passwords
        self._postgres_container = (
            PostgresContainer(POSTGRES_IMAGE, username="postgres", password=passwords["postgres"], dbname="postgres")
            .with_bind_ports(5432, self.addresses.postgres_port)
            .with_command([f"-c{name}={value}" for name, value in embedded_servers.POSTGRES_SETTINGS.items()])
        )
        self._nats_container = (
            DockerContainer(NATS_IMAGE)
            .with_bind_ports(self.addresses.nats_port, self.addresses.nats_port)
            .with_bind_ports(self.addresses.monitor_port, self.addresses.monitor_port)
            .with_command(["-c", "/nats.conf"])
        )
        self._made: set[str] = set()

    def _prepare(self) -> None:
        embedded_servers.write_nats_config(self.directory, self.addresses)
        config = (self.directory / "nats.conf").read_text().replace("127.0.0.1", "0.0.0.0")
        self._nats_container.with_copy_into_container(config.encode(), "/nats.conf")

    def start_postgres(self) -> None:
        self._start(self._postgres_container)
        embedded_servers.wait_for_postgres(self.addresses)

    def start_nats(self) -> None:
        self._start(self._nats_container)
        embedded_servers.wait_for_nats(self.addresses)

    def stop_postgres(self) -> None:
        self._postgres_container.get_wrapped_container().stop()

    def stop_nats(self) -> None:
        self._nats_container.get_wrapped_container().stop()

    def stop(self) -> None:
        self._nats_container.stop()
        self._postgres_container.stop()

    def _start(self, container: DockerContainer) -> None:
        if container.image in self._made:
            container.get_wrapped_container().start()
        else:
            self._made.add(container.image)
            container.start()


def engine_problem() -> Exception | None:
    """Why no container can be started here; None where a Docker engine answers."""
    try:
        DockerClient().client.ping()
    except Exception as error:
        return error
    return None
