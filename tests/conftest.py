"""Fixtures that the tests of several rooms use. Each imports what it needs when a test asks for it."""

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
from typing import TYPE_CHECKING

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.kit")

from runbook_lib.runs import forks
from tests.kit.effort import ALL, examples

if TYPE_CHECKING:
    import psycopg
    from nats.js import JetStreamContext

    from runbook_lib.gameday.sandbox.sandbox import Sandbox
    from runbook_lib.store.archive import Archive
    from tests.kit.servers import Servers
    from tests.kit.store import Store
    from tests.kit.web import Http

# Some of their processes start a sandbox, which is no headless run; notebooks/test_engine.py has one without this.
forks.PRELOADED.remove("runbook_lib.runs.polite")

# How fast an example is made says more about the machine than about the test.
hypothesis.settings.register_profile(
    "any",
    deadline=None,
    derandomize=not ALL,  # the gate tries the same examples each time
    max_examples=examples(100),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any")


#: Fixtures that start a server or a browser.
SERVED = {"embedded", "servers", "sandbox", "store", "browser"}


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark tests of texts and those of servers. Keep tests that share a fixture of their module on one worker."""
    for item in items:
        if item.path.parent.name == "lint":
            item.add_marker(pytest.mark.lint)
        known = getattr(item, "_fixtureinfo", None)
        if known and SERVED & known.name2fixturedefs.keys():
            item.add_marker(pytest.mark.served)
        shares = known and any(d.scope == "module" for defs in known.name2fixturedefs.values() for d in defs)
        if shares and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    yield  # first of all: xdist, whose hook is early as well, reads the groups


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
    from tests.kit.servers import Servers

    with Servers(tmp_path_factory.mktemp("embedded")) as running:
        running.ensure_streams()
        yield running


@pytest.fixture(scope="session", params=["embedded", pytest.param("containers", marks=pytest.mark.docker)])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Both servers with roles, schema, streams and durables; a test runs with each kind of them."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
        return
    from tests.kit.containers import Containers, engine_problem

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
    import psycopg
    from psycopg import sql

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
    """Empty streams, fresh durables and nobody refused; the value is the URL of the applications' broker user."""
    from nats.js.errors import NotFoundError

    from runbook_lib.gameday.sandbox import broker as applications
    from tests.kit.brokers import refused_within
    from tests.kit.waiting import until

    async def delete(js: JetStreamContext) -> None:
        for stream in {stream for stream, _ in applications.CONSUMERS.values()}:
            with suppress(NotFoundError):
                await js.delete_stream(stream)

    applications.visit(servers.app_nats_url, delete)
    servers.ensure_streams()
    # Judges count the logins that an earlier test had refused for so long.
    until(lambda: not refused_within(servers.nats_monitor_url, 11), "the refused logins to be over")
    return servers.app_nats_url


@pytest.fixture
def default_target(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The addresses of both servers in the environment."""
    for name, value in servers.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def ask_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a question out of SQL and get its name."""
    from runbook_lib.book.queries import Query, query
    from runbook_lib.sources import postgres

    made: dict[str, Query] = {}
    monkeypatch.setattr(postgres, "query", lambda name: made.get(name) or query(name))

    def make(sql: str, cost: str = "index", answers: str = "present") -> str:
        name = f"test/{len(made)}"
        made[name] = Query(name, sql, "a test's question", "none", cost, answers)
        return name

    return make


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox with three hours of past traffic, for the drills of one module."""
    forks.context()  # has its imports when the sandbox is up
    from tests.kit import sandboxes

    with sandboxes.running(tmp_path_factory.mktemp("sandbox"), hours=3) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """An object store for the tests of one module."""
    from tests.kit.store import Store

    with Store() as running:
        yield running


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`runbook verify` of a dossier, in this process: its exit code, what it said and what it complained of."""
    from runbook_lib.cli import main

    def ask(archive: Archive, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main._run_command(["verify", archive.incident, "--output", archive.output, *arguments])
        return code, *capsys.readouterr()

    return ask


@pytest.fixture(scope="module")
def kubectl() -> None:
    """kubectl is installed; else the test is skipped, or fails where it is required."""
    from tests.kit.programs import tool

    tool("kubectl", "RUNBOOK_REQUIRE_KUBECTL", "kubernetes-client")


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
    from tests.kit.web import Http

    made: list[Http] = []

    def make(*answers: int) -> Http:
        made.append(Http(*answers))
        return made[-1]

    yield make
    for place in made:
        place.close()
