"""The state of one sandbox: addresses, passwords, the active fault. Stored in `DIR/sandbox.json`."""

from __future__ import annotations

import json
import random
import secrets
import shlex
import socket
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click

from runbook_lib.model.usage import SANDBOX_TARGET, sandbox_folder
from runbook_lib.store.files import write_whole

from .settings import PODS_FILE

DATABASE = "miniserversystem"
SERVICES = ("entitlement", "notification")
#: Nobody else is called so: `act canary` grants it a right and takes it away again.
CANARY = "canary"
FILE_NAME = "sandbox.json"


class SandboxError(click.ClickException):
    """Something a person can act on; the text is one line, which a command ends with."""


def command(verb: str, directory: Path) -> str:
    """Return the command line for the sandbox in `directory`, to be typed in this folder."""
    here = directory.resolve() == sandbox_folder().resolve()
    return f"runbook sandbox {verb}" + ("" if here else f" --dir {shlex.quote(str(directory))}")


def owners(variables: Iterable[str]) -> list[str]:
    """Return the pods that read these variables: a name without the prefix of one belongs to both services.

    >>> owners(["NATS_URL"]), owners(["RECEIVER_DELAY", "NOTIFICATION__IMAGE"]), owners(["SANDBOX_RATE"])
    (['entitlement', 'notification'], ['notification', 'receiver'], [])
    """
    prefixes = {name.split("_")[0].lower() for name in variables if name != "SANDBOX_RATE"}
    pods = prefixes & {*SERVICES, "receiver"}
    return sorted(pods | {*SERVICES} if prefixes - pods else pods)


@dataclass(frozen=True)
class Addresses:
    """Ports on 127.0.0.1 and the passwords that belong to them."""

    postgres_port: int
    nats_port: int
    monitor_port: int
    receiver_port: int
    service_ports: dict[str, int]
    passwords: dict[str, str]

    @classmethod
    def choose(cls) -> Addresses:
        """Choose free ports and fresh random passwords."""
        names = ("postgres", DATABASE, "runbook", "nats-app", "nats-runbook")
        postgres, nats, monitor, receiver, *services = free_ports(4 + len(SERVICES))
        ports = dict(zip(SERVICES, services, strict=True))
        return cls(postgres, nats, monitor, receiver, ports, {name: secrets.token_hex(16) for name in names})

    @property
    def admin_url(self) -> str:
        """The superuser, for tests and for what only an operator may do."""
        return self._postgres_url("postgres")

    @property
    def app_url(self) -> str:
        """The role that the applications share and that owns every object."""
        return self._postgres_url(DATABASE)

    @property
    def database_url(self) -> str:
        """The runbook's read-only role."""
        return self._postgres_url("runbook")

    @property
    def app_nats_url(self) -> str:
        """The broker user of the applications."""
        return f"nats://app:{self.passwords['nats-app']}@127.0.0.1:{self.nats_port}"

    @property
    def nats_url(self) -> str:
        """The runbook's broker user, who may only ask."""
        return f"nats://runbook:{self.passwords['nats-runbook']}@127.0.0.1:{self.nats_port}"

    @property
    def nats_monitor_url(self) -> str:
        """The broker's monitoring endpoint."""
        return f"http://127.0.0.1:{self.monitor_port}"

    @property
    def receiver_url(self) -> str:
        """Return the URL that notifications are delivered to."""
        return f"http://127.0.0.1:{self.receiver_port}/notifications"

    def service_url(self, service: str) -> str:
        """Return the URL of a service: its API and its metrics."""
        return f"http://127.0.0.1:{self.service_ports[service]}"

    @property
    def env(self) -> dict[str, str]:
        """The environment with which the runbook reaches these servers."""
        return {
            "RUNBOOK_DATABASE_URL": self.database_url,
            "RUNBOOK_NATS_URL": self.nats_url,
            "RUNBOOK_NATS_MONITOR_URL": self.nats_monitor_url,
            # The applications' own, for actions alone.
            "RUNBOOK_ACTION_DATABASE_URL": self.app_url,
            "RUNBOOK_ACTION_NATS_URL": self.app_nats_url,
        }

    def _postgres_url(self, role: str) -> str:
        return f"postgresql://{role}:{self.passwords[role]}@127.0.0.1:{self.postgres_port}/{DATABASE}"


@dataclass
class SandboxState:
    """Everything a second command needs to find the sandbox that a first one started."""

    directory: Path
    addresses: Addresses
    socket: Path  # of supervisord, in a short temporary folder: a socket's path is limited to about 100 bytes
    ready: bool = False
    fault: str | None = None
    unknown: bool = False  # whether the responder is not told which it is

    @property
    def env(self) -> dict[str, str]:
        """RUNBOOK_DATABASE_URL and its sisters, role `runbook`, and where services and receiver answer."""
        services = {f"RUNBOOK_{service.upper()}_URL": self.addresses.service_url(service) for service in SERVICES}
        return self.addresses.env | services | {"RUNBOOK_DESTINATION_URL": self.addresses.receiver_url}

    @property
    def supervisor_config(self) -> Path:
        """The configuration file of supervisord."""
        return self.directory / "supervisord.conf"

    @property
    def supervisorctl(self) -> list[str]:
        """The argument vector a responder puts `restart notification` behind."""
        return [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.supervisor_config)]

    def save(self) -> None:
        """Write the state and the target, readable by their owner only, each in one step."""
        for name, content in ((SANDBOX_TARGET, self.target()), (FILE_NAME, asdict(self))):
            write_private(self.directory / name, json.dumps(content, default=str, indent=2))

    def target(self) -> dict[str, Any]:
        """Return the sandbox as a target, in the form of runbook.toml."""
        urls = {name.removeprefix("RUNBOOK_").lower(): value for name, value in self.env.items()}
        logs = {app: str(self.directory / "log" / f"{app}.log") for app in SERVICES}
        return urls | {
            "canary_user": CANARY,
            "workloads": {
                "runner": "supervisorctl",
                "supervisorctl": self.supervisorctl,
                "log_files": logs,
                "env_file": str(self.directory / PODS_FILE),
            },
        }


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner only may read, in one step."""
    write_whole(path, text.encode(), durable=False, mode=0o600)


def load(directory: Path | str | None = None) -> SandboxState:
    """Load the state of the sandbox in `directory`. Raises SandboxError if there is none."""
    folder = Path(directory or sandbox_folder()).resolve()
    try:
        data = json.loads((folder / FILE_NAME).read_text())
    except FileNotFoundError:
        raise SandboxError(f"no sandbox in {folder}: start one with `{command('up', folder)}`") from None
    except (OSError, ValueError) as error:
        raise SandboxError(f"cannot read {folder / FILE_NAME}: {error}") from None
    data |= {"directory": folder, "addresses": Addresses(**data["addresses"]), "socket": Path(data["socket"])}
    return SandboxState(**{field.name: data[field.name] for field in fields(SandboxState) if field.name in data})


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free at this moment."""
    # Below the ephemeral range, so that no outgoing connection takes a port while its server is restarted.
    found: list[int] = []
    candidates = random.SystemRandom().sample(range(20000, 32000), 400)
    for port in candidates:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise SandboxError("no free port between 20000 and 32000 on 127.0.0.1")
