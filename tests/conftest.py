"""Real servers for the integration tests, started once from the wheels and once from container images."""

# ruff: noqa: E402

from __future__ import annotations

import signal
import sys

# A shell that starts this behind itself has Ctrl-C ignored, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# jsonschema parses a grammar of international URIs, for seconds, to check a format that nothing here has.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import psycopg
import pytest
import sandboxes
from effort import examples
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from psycopg import sql
from recording import Http
from store import Store
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from runbook_lib.cli import main
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.gameday.sandbox import servers as embedded_servers
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.gameday.sandbox.servers import Servers
from runbook_lib.queries import Query, query
from runbook_lib.runs import forks
from runbook_lib.sources import postgres
from runbook_lib.store import Archive

POSTGRES_IMAGE = os.environ.get("RUNBOOK_TEST_POSTGRES_IMAGE", "postgres:16")
NATS_IMAGE = os.environ.get("RUNBOOK_TEST_NATS_IMAGE", "nats:2")

# Some of their processes start a sandbox, which is no headless run; notebooks/test_engine.py has one without this.
forks.PRELOADED.remove("runbook_lib.runs.polite")

# How fast an example is made says more about the machine than about the test.
hypothesis.settings.register_profile(
    "any",
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Keep tests that share a fixture of their module on one worker, unless they name another group."""
    for item in items:
        known = getattr(item, "_fixtureinfo", None)
        shares = known and any(d.scope == "module" for defs in known.name2fixturedefs.values() for d in defs)
        if shares and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    yield  # first of all: xdist, whose hook is early as well, reads the groups


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
        embedded_servers.write_nats_config(self.directory, self.addresses, self.addresses.passwords["nats-app"])
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


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ledger of a target lies that has no runbook.toml: nobody's home, and another one in each test."""
    folder = tmp_path_factory.mktemp("state", numbered=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the runbook in the environment."""
    for name in [n for n in os.environ if n.startswith("RUNBOOK_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers from the wheels, for what needs their processes."""
    with Servers(tmp_path_factory.mktemp("embedded")) as running:
        running.ensure_streams()
        yield running


@pytest.fixture(scope="session", params=["embedded", pytest.param("containers", marks=pytest.mark.docker)])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Both servers with roles, schema, streams and durables; a test runs with each kind of them."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
        return
    if problem := engine_problem():
        if os.environ.get("RUNBOOK_REQUIRE_DOCKER") == "1":
            pytest.fail(f"RUNBOOK_REQUIRE_DOCKER=1 and no Docker engine answers: {problem}", pytrace=False)
        pytest.skip("no Docker engine answers; the same tests ran with the embedded servers")
    with Containers(tmp_path_factory.mktemp("containers")) as running:
        running.ensure_streams()
        yield running


@pytest.fixture
def db(servers: Servers) -> Iterator[psycopg.Connection]:
    """A superuser's connection (autocommit) to a database without rows."""
    with psycopg.connect(servers.admin_url, autocommit=True) as connection:
        connection.execute("SET lock_timeout = '5s'")  # a test that left a transaction open is named by it
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables "
            "WHERE schemaname IN ('entitlement', 'notification', 'runbook') AND tablename NOT LIKE 'flyway%'"
        ).fetchall()
        names = sql.SQL(", ").join(sql.Identifier(*table) for table in tables)
        connection.execute(sql.SQL("TRUNCATE {}").format(names))
        connection.execute("SELECT pg_stat_reset()")  # what an earlier test deleted counts no more
        # The connections that the sources of earlier tests have kept: there are few.
        idle = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'runbook' AND state = 'idle'"
        connection.execute(idle)
        yield connection


@pytest.fixture
def broker(servers: Servers) -> str:
    """Empty streams and fresh durables; the value is the URL of the applications' broker user."""

    async def delete(js: JetStreamContext) -> None:
        for stream in {stream for stream, _ in applications.CONSUMERS.values()}:
            with suppress(NotFoundError):
                await js.delete_stream(stream)

    applications.visit(servers.app_nats_url, delete)
    servers.ensure_streams()
    return servers.app_nats_url


@pytest.fixture
def default_target(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The addresses of both servers in the environment."""
    for name, value in servers.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def ask_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a question out of SQL and get its name."""
    made: dict[str, Query] = {}
    monkeypatch.setattr(postgres, "query", lambda name: made.get(name) or query(name))

    def make(sql: str, cost: str = "index", answers: str = "present") -> str:
        name = f"test/{len(made)}"
        made[name] = Query(name, sql, "a test's question", "none", cost, answers, {})
        return name

    return make


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox with three hours of past traffic, for the drills of one module."""
    forks.context()  # has its imports when the sandbox is up
    with sandboxes.running(tmp_path_factory.mktemp("sandbox"), hours=3) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """An object store for the tests of one module."""
    with Store() as running:
        yield running


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`runbook verify` of a dossier, in this process: its exit code, what it said and what it complained of."""

    def ask(archive: Archive, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main._run_command(["verify", archive.incident, "--output", archive.output, *arguments])
        return code, *capsys.readouterr()

    return ask


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a Chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("RUNBOOK_REQUIRE_BROWSER") == "1":
        pytest.fail("RUNBOOK_REQUIRE_BROWSER=1 and no chromium is installed", pytrace=False)
    pytest.skip("no chromium is installed")


@pytest.fixture
def http() -> Iterator[Callable[..., Http]]:
    made: list[Http] = []

    def make(*answers: int) -> Http:
        made.append(Http(*answers))
        return made[-1]

    yield make
    for place in made:
        place.close()
