"""PostgreSQL as it is found: behind a pooler, behind TLS, as a replica; each of them the real program on loopback."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from runbook_lib.book import catalog, messages
from runbook_lib.book.queries import query
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.gameday.sandbox import servers as embedded_servers
from runbook_lib.gameday.sandbox.servers import _unprivileged
from runbook_lib.gameday.sandbox.state import DATABASE, free_ports
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Reason, Status
from runbook_lib.model.usage import UsageError
from runbook_lib.packs.entitlement.actions import stores
from runbook_lib.packs.postgres import locks
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import postgres, secret
from runbook_lib.sources.postgres import Postgres
from runbook_lib.sources.settings import Budget, Settings
from runbook_lib.sources.source import ReadCost, SourceError
from tests.kit.brokers import Authority
from tests.kit.rows import assert_fits
from tests.kit.servers import Servers
from tests.kit.steps import events, expect, run, statuses, weight, words
from tests.kit.waiting import is_listening, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def servers(embedded: Servers) -> Servers:
    """What stands between is put before the servers of the wheels alone."""
    return embedded


def reader(url: str, **how: Any) -> Postgres:
    budget = {k: how.pop(k) for k in [*how] if k in Budget.model_fields}
    return Postgres(url, "runbook test", Budget(**budget), ReadCost(Masker()), **how)


def notes(finding: Finding) -> str:
    return "\n".join(messages.text(note, "en") for note in finding.notes)


# PgBouncer --------------------------------------------------------------------------------------------------

PGBOUNCER = """
[databases]
{database} = host=127.0.0.1 port={server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory}/users
pool_mode = {mode}
default_pool_size = {size}
stats_users = {may_ask}
ignore_startup_parameters = {ignored}
"""


@contextmanager
def pgbouncer(
    servers: Servers,
    directory: Path,
    *,
    server: int | None = None,
    **changes: Any,
) -> Iterator[Callable[[str], str]]:
    """A PgBouncer before the server; what it yields turns a URL of the server into one through it."""
    if shutil.which("pgbouncer") is None:
        if os.environ.get("RUNBOOK_REQUIRE_PGBOUNCER") == "1":
            pytest.fail("RUNBOOK_REQUIRE_PGBOUNCER=1 and pgbouncer is not installed", pytrace=False)
        pytest.skip("pgbouncer is not installed")
    port = free_ports(1)[0]
    options = {"mode": "transaction", "size": 5, "may_ask": "runbook", "ignored": "extra_float_digits"} | changes
    own, passwords = servers.addresses.postgres_port, servers.addresses.passwords
    (directory / "users").write_text("".join(f'"{r}" "{passwords[r]}"\n' for r in ("postgres", DATABASE, "runbook")))
    (directory / "pgbouncer.ini").write_text(
        PGBOUNCER.format(database=DATABASE, server=server or own, port=port, directory=directory, **options)
    )
    command = [*_unprivileged(), shutil.which("pgbouncer") or "", "-q", str(directory / "pgbouncer.ini")]
    with (directory / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:

        def through(url: str) -> str:
            return url.replace(f":{own}/", f":{port}/")

        def answers() -> bool:
            assert process.poll() is None, (directory / "pgbouncer.log").read_text()
            return is_listening(port)

        until(answers)
        yield through
    finally:
        process.kill()  # SIGTERM would wait for its clients, and a background job may ignore SIGQUIT
        process.wait(30)


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_pooler_stands_between_and_nothing_else_changes(
    embedded: Servers, db: psycopg.Connection, tmp_path: Path, mode: str
) -> None:
    events(db, 20, 60)
    events(db, 5, 90, status="PENDING", tries=3, again=30)
    with pgbouncer(embedded, tmp_path, mode=mode) as through:
        url = through(embedded.database_url)
        psycopg.connect(through(embedded.app_url), autocommit=True).close()  # so that the services have a pool
        found = {s: run(embedded, *steps, database_url=url, pgbouncer_console=True) for s, steps in SECTIONS.items()}
        direct = {s: run(embedded, *steps) for s, steps in SECTIONS.items()}
    assert {s: statuses(f) for s, f in found.items()} == {s: statuses(f) for s, f in direct.items()}
    said = notes(found["2"]["2.5"])
    assert "PgBouncer" in said and f"pool mode {mode}" in said
    assert "PgBouncer" not in notes(direct["2"]["2.5"])
    assert found["4.1"]["4.1.4"].value("pool.wait") == 0
    assert direct["4.1"]["4.1.4"].value("pool.wait") is None


SECTIONS = {
    "2": ("2.1", "2.2", "2.4", "2.5", "2.7"),
    "3": ("3.1", "3.2"),
    "4.1": ("4.1.1", "4.1.3", "4.1.4"),
}


def test_every_transaction_has_its_limits_whoever_had_the_session_before(
    embedded: Servers, tmp_path: Path, ask_for: Callable[..., str]
) -> None:
    limits = {
        "statement_timeout": "3s",
        "lock_timeout": "200ms",
        "idle_in_transaction_session_timeout": "10s",
        "transaction_read_only": "on",
        "transaction_isolation": "repeatable read",
        "application_name": "runbook test",
        "TimeZone": "UTC",
    }
    asked = ask_for("SELECT " + ", ".join(f"current_setting('{k}') AS \"{k}\"" for k in limits))
    wrote = ask_for("DELETE FROM entitlement.outbox_events")
    with pgbouncer(embedded, tmp_path, size=1) as through:
        source = reader(through(embedded.admin_url))  # a role that may write, and whose sessions are not read-only
        with psycopg.connect(through(embedded.admin_url), autocommit=True, prepare_threshold=None) as other:
            for _ in range(3):
                # In a pool of one it leaves this to whoever comes next.
                other.execute("SET SESSION statement_timeout = 0; SET SESSION default_transaction_read_only = off")
                with source.snapshot() as snapshot:
                    assert snapshot.place.pooled
                    # More often than a driver prepares after.
                    assert [snapshot.ask(asked).iloc[0].to_dict() for _ in range(7)] == [limits] * 7
                    with pytest.raises(SourceError) as refused:
                        snapshot.ask(wrote)
                    assert refused.value.code == "25006"
        with source.snapshot() as snapshot:
            assert len(snapshot.clock_offset()) == 2
            assert snapshot.try_ask(wrote) is None
            assert snapshot.ask(asked).iloc[0].to_dict() == limits


@contextmanager
def held(url: str, *, waiting: int) -> Iterator[None]:
    """One transaction that has the pool's only connection, and so many clients that wait for it."""
    with psycopg.connect(url, prepare_threshold=None) as holder:
        holder.execute("SELECT 1")

        def wait() -> None:
            with suppress(psycopg.Error), psycopg.connect(url, prepare_threshold=None) as client:
                client.execute("SELECT 1")

        threads = [threading.Thread(target=wait) for _ in range(waiting)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            holder.rollback()
            for thread in threads:
                thread.join()


def test_who_waits_in_the_queue_is_a_finding(embedded: Servers, db: psycopg.Connection, tmp_path: Path) -> None:
    with pgbouncer(embedded, tmp_path, size=1) as through:
        url = through(embedded.database_url)
        source = reader(url, console=True)
        with held(through(embedded.app_url), waiting=2):
            until(lambda: source.pools()["longest_wait_s"].max() >= 1.5)
            found = run(embedded, "4.1.4", database_url=url, pgbouncer_console=True)["4.1.4"]
            assert found.status in (Status.WARNING, Status.CRITICAL)
            assert "2 clients of miniserversystem wait in the queue of PgBouncer" in words(found)
            assert weight(found, "FM-DB-01") > 0 and weight(found, "database") > 0
            assert found.frames["pools"].iloc[0]["waiting"] == 2

            # The runbook's own pool is taken as well: the console still says who waits for what.
            with held(url, waiting=0):
                until(lambda: source.pools()["longest_wait_s"].max() >= 1.5)
                with pytest.raises(SourceError) as queued, reader(url, statement_timeout_ms=200).snapshot():
                    pass
                assert (queued.value.reason, queued.value.code) == (Reason.TIMEOUT, "queued")
                found = run(embedded, "4.1.4", database_url=url, pgbouncer_console=True)["4.1.4"]
                expect(found, Status.CRITICAL, says="2 clients of miniserversystem wait")
        # What the runbook alone waits for says nothing of the system.
        with held(url, waiting=0):
            found = run(embedded, "4.1.4", database_url=url, pgbouncer_console=True)["4.1.4"]
            expect(found, Status.UNKNOWN, reason=Reason.TIMEOUT, observations=set())


@pytest.mark.parametrize("console", [True, False])
def test_a_console_that_is_closed_to_the_runbook_is_said_and_costs_nothing_else(
    embedded: Servers, db: psycopg.Connection, tmp_path: Path, console: bool
) -> None:
    with pgbouncer(embedded, tmp_path, may_ask="postgres") as through:
        url = through(embedded.database_url)
        found = run(embedded, "4.1.4", database_url=url, pgbouncer_console=console)["4.1.4"]
    assert found.status is Status.OK
    assert "its queue is not visible" in notes(found)
    assert console is ("SHOW POOLS" in {q.text for q in found.queries})
    assert found.unseen == () and all(q.refused for q in found.queries if q.error)
    assert conclude([found], catalog.load()).confidence == "high"


def test_the_server_behind_a_pooler_is_down(embedded: Servers, tmp_path: Path) -> None:
    with pgbouncer(embedded, tmp_path, server=9) as through:
        source = reader(through(embedded.database_url))
        with pytest.raises(SourceError) as refused, source.snapshot():
            pass
    assert refused.value.reason is not Reason.DENIED


@pytest.mark.parametrize("ignored", ["extra_float_digits", "options"])
def test_nobody_acts_through_a_pooler(embedded: Servers, tmp_path: Path, ignored: str) -> None:
    """Its lock would be a session's that whoever comes next may get, and its limits perhaps nobody's."""
    rb: Any = SimpleNamespace(
        budget=Budget(), read_cost=ReadCost(Masker()), parameters=SimpleNamespace(incident_id="I")
    )
    with pgbouncer(embedded, tmp_path, ignored=ignored) as through:
        for url, refused in ((through(embedded.app_url), True), (embedded.app_url, False)):
            rb.target = SimpleNamespace(url=lambda _, url=url: url)
            with pytest.raises(SourceError) if refused else nullcontext() as e, stores.connect(rb) as db:
                assert db.lock("delivery")
            assert not e or e.value.reason is Reason.DENIED


# TLS, and how a password is found ----------------------------------------------------------------------------

SECRET = "s3cret-of-the-test"
HBA = """
local all all trust
hostssl all postgres,runbook 127.0.0.1/32 scram-sha-256
hostssl all certain 127.0.0.1/32 cert
"""


def of_the_system() -> Path:
    """The programs of the newest PostgreSQL that is installed beside the wheel's, or those of RUNBOOK_TEST_POSTGRES."""
    if named := os.environ.get("RUNBOOK_TEST_POSTGRES"):
        return Path(named)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    other = shutil.which("postgres")
    if found or other:
        return (found[-1] if found else Path(other or "").resolve()).parent
    if os.environ.get("RUNBOOK_REQUIRE_POSTGRESQL") == "1":
        pytest.fail("RUNBOOK_REQUIRE_POSTGRESQL=1 and no PostgreSQL of the system is installed", pytrace=False)
    pytest.skip("no PostgreSQL of the system is installed beside the wheel's")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A PostgreSQL of the system that takes TLS alone, and the folder of its authority: `ca`, `certain`, `other`."""
    binaries = of_the_system()
    folder, data, port = tmp_path_factory.mktemp("tls"), tmp_path_factory.mktemp("data"), free_ports(1)[0]
    if os.geteuid() == 0:
        shutil.chown(data, "nobody")
    authority = Authority(folder, "ca")
    assert Authority(folder, "other").file.is_file()
    certificate, key = authority.sign("server")
    authority.sign("certain")
    initdb = [*_unprivileged(), str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--no-locale", "--no-sync"]
    subprocess.run([*initdb, "--auth=trust", "--encoding=UTF8"], check=True, capture_output=True)
    (data / "pg_hba.conf").write_text(HBA)
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": data,
        "fsync": "off",
        "dynamic_shared_memory_type": "mmap",
        "ssl": "on",
        "ssl_ca_file": authority.file,
        "ssl_cert_file": certificate,
        "ssl_key_file": key,
    }
    if keeps_statements := (binaries.parent / "lib" / "pg_stat_statements.so").exists():
        settings["shared_preload_libraries"] = "pg_stat_statements"
    options = [f"-c{k}={v}" for k, v in settings.items()]
    command = [*_unprivileged(), str(binaries / "postgres"), "-D", str(data), *options]
    with (folder / "postgres.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:

        def made() -> bool:
            assert process.poll() is None, (folder / "postgres.log").read_text()
            url = f"postgresql://postgres@/postgres?host={data}&port={port}"
            with suppress(psycopg.OperationalError):
                with psycopg.connect(url, autocommit=True) as admin:
                    admin.execute(f"CREATE ROLE runbook LOGIN PASSWORD '{SECRET}'")
                    admin.execute("CREATE ROLE certain LOGIN")
                    if keeps_statements:
                        admin.execute("CREATE EXTENSION pg_stat_statements")
                        admin.execute("GRANT pg_read_all_stats TO runbook")
                return True
            return False

        until(made)
        yield folder, port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def declared(url: str, **others: Any) -> str:
    """A URL as a target's settings take it."""
    return Settings(targets={"t": {"database_url": url, **others}}).target("t").url("database_url") or ""


WAYS = {
    "private authority": "runbook:{secret}@127.0.0.1:{port}/postgres?sslmode=verify-full&sslrootcert={tls}/ca.pem",
    "client certificate": "certain@127.0.0.1:{port}/postgres?sslmode=verify-full&sslrootcert={tls}/ca.pem"
    "&sslcert={tls}/certain.pem&sslkey={tls}/certain.key",
    "password file": "runbook@127.0.0.1:{port}/postgres?sslmode=require&passfile={tmp}/passfile",
    "password in the query": "runbook@127.0.0.1:{port}/postgres?sslmode=require&password={secret}",
    "service": "/?service=of-the-test",
    "first host is down": "runbook:{secret}@127.0.0.1:9,127.0.0.1:{port}/postgres?sslmode=require"
    "&target_session_attrs=read-write",
}


def way_in(tls: tuple[Path, int], way: str, tmp_path: Path) -> str:
    folder, port = tls
    return "postgresql://" + WAYS[way].format(secret=SECRET, port=port, tls=folder, tmp=tmp_path)


def test_the_slowest_statements_where_they_are_kept(tls: tuple[Path, int], tmp_path: Path) -> None:
    with psycopg.connect(way_in(tls, "client certificate", tmp_path)) as service:
        service.execute("SELECT pg_sleep(0.05), 'of a person'")
    source = reader(declared(way_in(tls, "private authority", tmp_path)))
    with source.snapshot() as db:
        if not rows.one(db.ask(locks.Connections.QUERY), locks.Connections).keeps_statements:
            pytest.skip("this PostgreSQL comes without pg_stat_statements")
        frame = db.ask(locks.Statement.QUERY, role="certain")
    assert_fits(locks.Statement.QUERY, frame, [locks.Statement])
    (slept,) = [s for s in rows.each(frame, locks.Statement) if "pg_sleep" in s.statement]
    assert "of a person" not in slept.statement and slept.calls == 1 and slept.mean_s >= 0.05
    assert slept.since is not None


@pytest.mark.parametrize("way", WAYS)
def test_ways_in_that_libpq_knows(
    tls: tuple[Path, int], tmp_path: Path, ask_for: Callable[..., str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    port = tls[1]
    (tmp_path / "passfile").write_text(f"127.0.0.1:{port}:*:runbook:{SECRET}\n")
    (tmp_path / "passfile").chmod(0o600)
    service = {"host": "127.0.0.1", "port": port, "dbname": "postgres", "user": "runbook", "password": SECRET}
    (tmp_path / "services").write_text("[of-the-test]\n" + "".join(f"{k}={v}\n" for k, v in service.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    url = declared(way_in(tls, way, tmp_path))
    with reader(url).snapshot() as snapshot:
        asked = snapshot.ask(ask_for("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
        assert asked["ssl"].tolist() == [True]
        assert not snapshot.place.pooled and not snapshot.place.replica


IN, US = "127.0.0.1:{port}/postgres", "runbook:{secret}@"
OTHER = "?sslmode=verify-full&sslrootcert={tls}/other.pem"
REFUSED = {
    "another authority": (US + IN + OTHER, Reason.UNREACHABLE, "certificate verify failed"),
    "no client certificate": (f"certain@{IN}?sslmode=require", Reason.DENIED, "requires a valid client certificate"),
    "without TLS": (US + IN + "?sslmode=disable", Reason.DENIED, "no pg_hba.conf entry"),
    "no standby": (US + f"127.0.0.1:9,{IN}?target_session_attrs=standby", Reason.UNREACHABLE, "standby"),
    "no such service": ("/?service=nowhere", Reason.UNREACHABLE, "nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ways_in_that_are_shut_say_why_in_a_line(tls: tuple[Path, int], case: str) -> None:
    folder, port = tls
    url, reason, why = REFUSED[case]
    source = reader(declared("postgresql://" + url.format(secret=SECRET, port=port, tls=folder)))
    with pytest.raises(SourceError) as refused, source.snapshot():
        pass
    assert refused.value.reason is reason, refused.value
    assert why in refused.value.detail
    assert "\n" not in refused.value.detail and SECRET not in refused.value.detail


@pytest.mark.parametrize(
    "url", ["postgresql://h:1,h:x/d", "postgresql://h:1,/d", "mysql://h/d", "postgresql://u:p/a@h/d"]
)
def test_what_is_no_url_of_a_database_is_said_without_a_word_of_it(url: str) -> None:
    with pytest.raises(UsageError, match="write it like postgresql://"):
        declared(url)


def python(code: str) -> str:
    return f"cmd:{shlex.join([sys.executable, '-c', code])}"


def printing(text: str) -> str:
    return python(f"import sys; sys.stdout.write({text!r})")


def test_a_command_prints_the_password_or_the_whole_url(tls: tuple[Path, int], tmp_path: Path) -> None:
    _, port = tls
    url = f"postgresql://runbook@127.0.0.1:{port}/postgres"
    with reader(url, password=printing(f"{SECRET}\n")).snapshot() as snapshot:
        assert snapshot.place.behind_s is None
    source = reader(printing(url.replace("@", f":{SECRET}@")))
    with source.snapshot():
        pass
    assert SECRET not in repr(source.read_cost.queries)

    # It is asked again where what it printed is refused: short-lived passwords end.
    counted = (
        f"import pathlib; p = pathlib.Path({str(tmp_path / 'n')!r}); n = len(p.read_text()) if p.exists() else 0; "
    )
    counted += f"p.write_text('x' * (n + 1)); print({SECRET!r} if n else 'an old one')"
    source = reader(url, password=python(counted))
    with pytest.raises(SourceError) as refused, source.snapshot():
        pass
    assert (refused.value.reason, refused.value.code) == (Reason.DENIED, "wrong_password")
    source.down = None
    for _ in range(3):
        with source.snapshot():
            pass
    assert (tmp_path / "n").read_text() == "xx", "what was good is kept for a while"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("cmd:/nowhere/at-all", "the command cannot be started (No such file or directory)"),
        (python(f"import sys; print('{SECRET}'); sys.exit(3)"), "the command ended with exit code 3"),
        (python("pass"), "the command gives no value"),
        (python("import time; time.sleep(60)"), "no answer within"),
        (printing(f"postgresql://u:{SECRET}@h:x/d"), "the command prints no URL of a database: its host or its port"),
        (printing(f"postgresql://u:{SECRET}@h/d?pgbouncer=true"), "the command prints a URL that libpq cannot read"),
        (printing(SECRET), "the command prints no URL of a database: it does not begin with postgresql://"),
    ],
    ids=["missing", "failing", "silent", "slow", "no url", "unknown word", "nothing beside it"],
)
def test_a_command_that_gives_no_password(monkeypatch: pytest.MonkeyPatch, command: str, why: str) -> None:
    monkeypatch.setattr(secret, "_TIMEOUT_S", 2.0)
    with pytest.raises(SourceError) as refused, reader(command).snapshot():
        pass
    assert (refused.value.reason, refused.value.code) == (Reason.DENIED, "no_password")
    assert why in refused.value.detail and refused.value.detail.startswith("database_url: ")
    assert SECRET not in str(refused.value)


def test_a_target_may_have_a_command_alone(embedded: Servers, db: psycopg.Connection) -> None:
    found = run(embedded, "2.5", database_url=printing(embedded.database_url))
    assert found["2.5"].status is Status.OK


# A replica --------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """A primary with all that a system has, and a streaming replica of its database, quick to cancel what is asked."""

    primary: Servers
    port: int
    admin: psycopg.Connection
    replica: psycopg.Connection

    def url(self, url: str) -> str:
        """The same of the replica."""
        return url.replace(f":{self.primary.addresses.postgres_port}/", f":{self.port}/")

    def catch_up(self) -> None:
        """Wait until the replica has applied all that the primary has written."""
        self.admin.execute("SELECT pg_logical_emit_message(true, '', '')")  # what VACUUM has left is written with it
        (written,) = self.admin.execute("SELECT pg_current_wal_lsn()").fetchone() or ()
        applied = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        until(lambda: (self.replica.execute(applied, [written]).fetchone() or (False,))[0])

    @contextmanager
    def paused(self, behind_s: float) -> Iterator[None]:
        """The replica has stood still for so long while the primary went on."""
        self.catch_up()
        self.replica.execute("SELECT pg_wal_replay_pause()")
        try:
            until(lambda: self.replica.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() == ("paused",))
            self.admin.execute("CREATE TABLE IF NOT EXISTS public.written AS SELECT now()")
            self.admin.execute("INSERT INTO public.written SELECT now()")
            age = "SELECT clock_timestamp() - pg_last_xact_replay_timestamp() > %s * interval '1 s'"
            until(lambda: (self.replica.execute(age, [behind_s]).fetchone() or (False,))[0])
            yield
        finally:
            self.replica.execute("SELECT pg_wal_replay_resume()")
            self.catch_up()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder, port, replica = tmp_path_factory.mktemp("primary"), free_ports(1)[0], None
    primary = Servers(folder)
    primary.__enter__()
    try:
        primary.ensure_streams()
        data = folder / "replica"
        copy = ["-D", str(data), "-R", "-X", "stream", "--no-sync", "-c", "fast", "-d", primary.admin_url]
        copied = [*_unprivileged(), embedded_servers.postgres_binary("pg_basebackup"), *copy]
        if os.geteuid() == 0:
            data.mkdir(mode=0o700)
            shutil.chown(data, "nobody")
        subprocess.run(copied, check=True, capture_output=True)
        command = [*_unprivileged(), embedded_servers.postgres_binary("postgres"), "-D", str(data)]
        command += [f"-cport={port}", "-cmax_standby_streaming_delay=300ms"]
        with (folder / "replica.log").open("wb") as log:
            replica = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        pair_url = primary.admin_url.replace(f":{primary.addresses.postgres_port}/", f":{port}/")

        def connected() -> psycopg.Connection | None:
            assert replica is None or replica.poll() is None, (folder / "replica.log").read_text()
            with suppress(psycopg.OperationalError):
                return psycopg.connect(pair_url, autocommit=True)
            return None

        on_replica = until(connected)
        with psycopg.connect(primary.admin_url, autocommit=True) as admin, on_replica:
            yield Pair(primary, port, admin, on_replica)
    finally:
        if replica is not None:
            replica.send_signal(signal.SIGINT)
            replica.wait(30)
        primary.stop()


EMPTIED = """entitlement.outbox_events, entitlement.entitlement_audit, entitlement.entitlements,
    notification.notifications, notification.processed_events, notification.notification_dlq"""


@pytest.fixture
def pair(both: Pair) -> Pair:
    """The same, without rows."""
    both.admin.execute(f"TRUNCATE {EMPTIED}".encode())
    both.catch_up()
    return both


def test_a_replica_is_not_behind_where_nothing_is_written(pair: Pair) -> None:
    idle = "SELECT clock_timestamp() - pg_last_xact_replay_timestamp() > interval '2 s'"
    until(lambda: (pair.replica.execute(idle).fetchone() or (False,))[0])
    with reader(pair.url(pair.primary.database_url)).snapshot() as snapshot:
        assert snapshot.place.behind_s == 0
    with reader(pair.primary.database_url).snapshot() as snapshot:
        assert snapshot.place.behind_s is None


def test_ages_are_counted_up_to_the_moment_that_a_replica_shows(pair: Pair, ask_for: Callable[..., str]) -> None:
    events(pair.admin, 3, 2, status="PENDING")
    moments = "SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) AS age"
    with pair.paused(6), reader(pair.url(pair.primary.database_url)).snapshot() as snapshot:
        behind_s = snapshot.place.behind_s
        assert behind_s is not None and behind_s > 6
        assert 0 < snapshot.ask("notifications/backlog").iloc[0]["oldest_due_s"] < behind_s, "as it was when written"
        # Of the catalog it is this moment; of rows the one that is shown.
        assert snapshot.ask(ask_for(moments, cost="catalog")).iloc[0]["age"] > 6
        assert snapshot.ask(ask_for(moments)).iloc[0]["age"] < 5


def test_a_replica_that_stands_still_says_nothing_of_the_present(
    pair: Pair, ask_for: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = reader(pair.url(pair.primary.database_url))
    of_the_window = ask_for("SELECT 1 AS one", answers="window")

    def refused() -> str:
        with source.snapshot() as snapshot:
            assert len(snapshot.ask("database/connections")) == len(snapshot.ask(of_the_window)) == 1
            try:
                snapshot.ask("notifications/backlog")
            except SourceError as e:
                return f"{e.reason} {e.code}: {e.detail}"
        return ""

    with pair.paused(1):
        assert refused() == "", "one look alone is of a moment"
        assert "no_data replica_behind: this replica stands still at a moment" in until(refused)
        source = reader(pair.url(pair.primary.database_url))
        monkeypatch.setattr(postgres, "PRESENT_S", 1.0)
        assert "this replica shows a moment" in refused()
    source = reader(pair.url(pair.primary.database_url))
    assert until(lambda: not refused())


def swept(pair: Pair) -> None:
    """Row versions go that a snapshot of the replica may still need."""
    pair.admin.execute("CREATE TABLE IF NOT EXISTS public.swept (n int)")
    pair.admin.execute("INSERT INTO public.swept SELECT generate_series(1, 100)")
    pair.admin.execute("DELETE FROM public.swept")
    pair.admin.execute("VACUUM (TRUNCATE off) public.swept")


def test_what_recovery_cancels_is_asked_once_more(pair: Pair, ask_for: Callable[..., str]) -> None:
    count, slow = ask_for("SELECT count(*) AS n FROM public.swept"), ask_for("SELECT 1 AS one FROM pg_sleep(2)")
    pair.admin.execute("DROP TABLE IF EXISTS public.swept; CREATE TABLE public.swept (n int)")
    pair.admin.execute("INSERT INTO public.swept VALUES (1); GRANT SELECT ON public.swept TO runbook")
    pair.catch_up()
    with reader(pair.url(pair.primary.database_url)).snapshot() as snapshot:
        assert snapshot.ask(count)["n"].tolist() == [1]
        swept(pair)
        pair.catch_up()  # it waits for us no longer: our session has been ended meanwhile
        answered = snapshot.try_ask(count)
        assert answered is not None and answered["n"].tolist() == [0]
        assert snapshot.try_ask("notifications/backlog") is not None

    # One that is at work is cancelled; the second time it is said.
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            swept(pair)
            stop.wait(0.1)

    thread = threading.Thread(target=sweep)
    with reader(pair.url(pair.primary.database_url)).snapshot() as snapshot:
        thread.start()
        try:
            with pytest.raises(SourceError) as cancelled:
                snapshot.ask(slow)
        finally:
            stop.set()
            thread.join()
    assert (cancelled.value.reason, cancelled.value.code) == (Reason.TIMEOUT, "recovery_conflict")
    assert "the replica has cancelled this twice for its own recovery" in cancelled.value.detail


def test_sections_on_a_replica_say_that_it_is_one(pair: Pair) -> None:
    events(pair.admin, 20, 60)
    events(pair.admin, 2, 90, status="PENDING", tries=3, again=30)
    pair.catch_up()
    url = pair.url(pair.primary.database_url)
    there = run(pair.primary, "4.1.1", "4.1.3", "4.1.4", database_url=url)
    here = run(pair.primary, "4.1.1", "4.1.3", "4.1.4")
    locks = there.pop("4.1.4")
    assert statuses(there) == {s: f.status for s, f in here.items() if s != "4.1.4"}
    assert (locks.status, locks.reason, locks.signals) == (Status.UNKNOWN, Reason.NOT_CONFIGURED, ())
    assert "locks and sessions of a replica" in words(locks)
    place = run(pair.primary, "3.2", database_url=url)["3.2"]
    assert place.status is run(pair.primary, "3.2")["3.2"].status, words(place)
    scope = run(pair.primary, "2.1", "2.4", "2.5", database_url=url)
    assert re.search(r"This server is a replica, \d\S* m?s behind", notes(scope["2.5"]))
    assert {f.status for f in scope.values()} == {Status.OK}


def test_the_windows_questions_go_to_a_declared_replica(pair: Pair, ask_for: Callable[..., str]) -> None:
    where = "SELECT pg_is_in_recovery() AS replica"
    window, present = ask_for(where, answers="window"), ask_for(where)

    def answered_by(url: str) -> list[bool]:
        with reader(pair.primary.database_url, replica=reader(url)).snapshot() as snapshot:
            return [bool(snapshot.ask(name)["replica"][0]) for name in (window, present)]

    url = pair.url(pair.primary.database_url)
    assert until(lambda: answered_by(url) == [True, False])
    with pair.paused(3):
        assert answered_by(url) == [False, False], "its last minutes would be too few"
    gone = f"postgresql://runbook@127.0.0.1:9/{DATABASE}"
    assert answered_by(gone) == [False, False]

    found = run(pair.primary, "2.5", replica_url=url)["2.5"]
    assert found.status is Status.OK and "go to the declared replica" in notes(found)
    found = run(pair.primary, "2.5", replica_url=gone)["2.5"]
    assert found.status is Status.WARNING and "The declared replica is not used" in notes(found)


def test_several_hosts_and_which_of_them_is_meant(pair: Pair) -> None:
    user = f"runbook:{pair.primary.addresses.passwords['runbook']}"
    hosts = f"127.0.0.1:9,127.0.0.1:{pair.primary.addresses.postgres_port},127.0.0.1:{pair.port}"
    for wanted, replica in (("primary", False), ("standby", True), ("prefer-standby", True), ("any", False)):
        url = declared(f"postgresql://{user}@{hosts}/{DATABASE}?target_session_attrs={wanted}")
        with reader(url).snapshot() as snapshot:
            assert snapshot.place.replica is replica, wanted


# Versions ---------------------------------------------------------------------------------------------------

STATES: dict[str, list[dict[str, Any]]] = {
    "well": [{"n": 20, "age": 60}],
    "nobody delivers": [{"n": 20, "age": 600}, {"n": 50, "age": 300, "status": "PENDING"}],
}


def verdicts(servers: Servers) -> dict[str, dict[str, Status]]:
    """What every section that looks at the system says of each state."""
    sections = [
        [step.id for step in s.steps] for s in catalog.load().runnable().values() if "postmortem" not in s.roles
    ]
    found: dict[str, dict[str, Status]] = {}
    with psycopg.connect(servers.admin_url, autocommit=True) as admin:
        for name, rows in STATES.items():
            admin.execute(f"TRUNCATE {EMPTIED}".encode())
            for given in rows:
                events(admin, **given)
            found[name] = {s: f.status for steps in sections for s, f in run(servers, *steps).items()}
        admin.execute(f"TRUNCATE {EMPTIED}".encode())
    return found


@pytest.fixture(scope="module")
def usual(embedded: Servers) -> dict[str, dict[str, Status]]:
    return verdicts(embedded)


@pytest.mark.parametrize("which", ["the wheel's 18", "the system's"])
def test_other_versions_give_the_same_verdicts(
    usual: dict[str, dict[str, Status]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    wheel = Path(embedded_servers.postgres_binary("postgres")).parents[2]
    binaries = wheel / "pginstall18" / "bin" if which == "the wheel's 18" else of_the_system()
    version = subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    with monkeypatch.context() as patch:
        patch.setattr(embedded_servers, "postgres_binary", lambda name: str(binaries / name))
        if int(version.split()[2].split(".")[0]) < 16:
            patch.delitem(embedded_servers.POSTGRES_SETTINGS, "reserved_connections")
        with Servers(tmp_path) as other:
            other.ensure_streams()
            found = verdicts(other)
    assert found == usual, version
    assert Status.CRITICAL in found["nobody delivers"].values()


# Partitions -------------------------------------------------------------------------------------------------

# Both tables as a team would part them by month: the key of the parts is in each unique constraint.
PARTED = f"""
CREATE TABLE {{schema}}.parted (LIKE {{schema}}.{{table}} INCLUDING DEFAULTS) PARTITION BY RANGE (created_at);
DROP TABLE {{schema}}.{{table}};
ALTER TABLE {{schema}}.parted RENAME TO {{table}};
ALTER TABLE {{schema}}.{{table}} OWNER TO {DATABASE};
GRANT SELECT ON {{schema}}.{{table}} TO runbook;
DO $$ BEGIN
    FOR ago IN 0..30 LOOP
        EXECUTE format('CREATE TABLE {{schema}}.{{table}}_%s PARTITION OF {{schema}}.{{table}} '
            'FOR VALUES FROM (%L) TO (%L)', ago,
            now() + interval '3 days' - (ago + 1) * interval '30 days',
            now() + interval '3 days' - ago * interval '30 days');
    END LOOP;
END $$
"""
#: By table: its schema, questions that ask for a time of the parts' key, and the step that reads it beside 2.1 to 2.5.
PARTS = {
    "notifications": ("notification", ("sli/delivery_cohort", "notifications/created_since"), "4.1.1"),
    "outbox_events": ("entitlement", ("outbox/created_since",), "4.1.3"),
}


def parted(admin: psycopg.Connection, schema: str, table: str) -> None:
    key = {"notifications": "notification_id", "outbox_events": "event_id"}[table]
    indexes = admin.execute(
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass AND NOT indisprimary",
        [f"{schema}.{table}"],
    ).fetchall()
    admin.execute(PARTED.format(schema=schema, table=table).encode())
    admin.execute(f"ALTER TABLE {schema}.{table} ADD CONSTRAINT {table}_pkey PRIMARY KEY ({key}, created_at)".encode())
    for (index,) in indexes:
        admin.execute(index.encode())


def looked_into(db: psycopg.Connection, name: str, table: str) -> set[str]:
    """The parts of a table that a question reads."""
    text, names = postgres._compile_query(query(name).sql)
    now = datetime.now(UTC)
    moments = {"as_of": now, "max_rows": 500}
    bound = {n: moments.get(n, now - timedelta(minutes=15)) for n in names}
    db.execute("SET enable_seqscan = off")  # or a few rows would not be worth an index
    found = db.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + text, bound).fetchone()
    assert found
    plans, seen = [found[0][0]["Plan"]], set()
    while plans:
        plan = plans.pop()
        plans += plan.get("Plans", [])
        if plan["Actual Loops"] and (name := plan.get("Relation Name", "")).startswith(f"{table}_"):
            seen.add(name)
    return seen


@pytest.mark.parametrize("table", PARTS)
def test_a_table_in_parts_is_known_and_the_next_part_is_missed(
    embedded: Servers, db: psycopg.Connection, table: str
) -> None:
    schema, of_a_time, step = PARTS[table]
    db.execute(f"CREATE DATABASE parted TEMPLATE {DATABASE}".encode())
    try:
        with psycopg.connect(embedded.admin_url.replace(f"/{DATABASE}", "/parted"), autocommit=True) as admin:
            parted(admin, schema, table)
            events(admin, 20, 60)
            url = embedded.database_url.replace(f"/{DATABASE}", "/parted")
            about = {"notification": "2.4", "entitlement": "2.1"}[schema]
            found = run(embedded, "2.1", "2.4", "2.5", database_url=url)
            assert statuses(found) == {"2.1": Status.OK, "2.4": Status.OK, "2.5": Status.OK} | {about: Status.WARNING}
            assert f"the last partition of {table} ends in 3 d" in words(found[about])
            assert f"{table} has 31 partitions" in notes(found[about])
            assert weight(found[about], "FM-DB-03") == 0, "nothing is refused as yet"
            assert run(embedded, step, database_url=url)[step].status is Status.OK
            for name in of_a_time:
                assert looked_into(admin, name, table) <= {f"{table}_0"}, name

            admin.execute(f"CREATE TABLE {schema}.others PARTITION OF {schema}.{table} DEFAULT".encode())
            assert run(embedded, about, database_url=url)[about].status is Status.OK
            admin.execute(f"DROP TABLE {schema}.others, {schema}.{table}_0".encode())
            found = run(embedded, about, database_url=url)
            assert found[about].status is Status.CRITICAL and weight(found[about], "FM-DB-03") > 0
    finally:
        db.execute("DROP DATABASE parted WITH (FORCE)")


# A migration that waits --------------------------------------------------------------------------------------

WAITING = """
SELECT application_name, pid, cardinality(waits_for) > 0 AS waits, waits_for, now() - query_start AS age
FROM (SELECT *, pg_blocking_pids(pid) AS waits_for FROM pg_stat_activity WHERE datname = current_database()) sessions
"""


def test_behind_a_migration_that_waits_the_runbook_leaves_the_queue_and_stands_before_nobody(
    embedded: Servers, db: psycopg.Connection
) -> None:
    events(db, 20, 60)

    def waits(connection: psycopg.Connection) -> bool:
        found = db.execute("SELECT cardinality(pg_blocking_pids(%s))", [connection.info.backend_pid]).fetchone()
        return found is not None and found[0] > 0

    def blocked(connection: psycopg.Connection, statement: str) -> threading.Thread:
        thread = threading.Thread(target=connection.execute, args=[statement])
        thread.start()
        until(lambda: waits(connection))
        return thread

    seen: list[dict[str, Any]] = []
    over = threading.Event()

    def watch() -> None:
        with psycopg.connect(embedded.admin_url, autocommit=True, row_factory=dict_row) as watcher:
            while not over.wait(0.02):
                seen.extend(watcher.execute(WAITING.encode()))

    watcher = threading.Thread(target=watch)
    threads = [watcher]
    with (
        psycopg.connect(embedded.admin_url, autocommit=True) as migration,
        psycopg.connect(embedded.app_url, autocommit=True) as worker,
        psycopg.connect(embedded.admin_url) as reading,
    ):
        reading.execute("SELECT FROM notification.notifications")
        try:
            threads.append(
                blocked(migration, "ALTER TABLE notification.notifications ALTER COLUMN locked_by SET DEFAULT NULL")
            )
            threads.append(blocked(worker, "UPDATE notification.notifications SET locked_by = locked_by"))
            watcher.start()
            found = run(embedded, "4.1.1", "4.1.4")
            assert waits(migration) and waits(worker), "they were in the queue all the while"
        finally:
            over.set()
            reading.rollback()
            for thread in threads:
                if thread.ident:
                    thread.join(60)
    assert Reason.TIMEOUT in {u.reason for u in found["4.1.1"].unseen}, "it did stand in the queue"
    ours = {s["pid"] for s in seen if s["application_name"].startswith("runbook/")}
    assert ours, "it was seen"
    assert not [s for s in seen if s["pid"] not in ours and set(s["waits_for"]) & ours]
    # The server's own limit is 0.2 s; whoever watches on a busy machine may come late, but not by a statement's limit.
    assert not [s for s in seen if s["pid"] in ours and s["waits"] and s["age"] >= timedelta(seconds=2)]
