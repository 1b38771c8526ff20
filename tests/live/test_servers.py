"""The sources against real servers: what they read, and what they say when a server refuses, hangs or is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import nats
import pandas as pd
import psycopg
import pytest
from nats.js import JetStreamContext
from nats.js.errors import ServerError

from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.gameday.sandbox.broker import CONSUMER, STREAM, SUBJECT
from runbook_lib.model.finding import Reason
from runbook_lib.sources import postgres
from runbook_lib.sources.jetstream import JetStream
from runbook_lib.sources.nats_monitor import NatsMonitor
from runbook_lib.sources.postgres import Postgres
from runbook_lib.sources.settings import Budget
from runbook_lib.sources.source import ReadCost, SourceError
from tests.kit.servers import Servers
from tests.kit.sources import A_PASSWORD, a_read_cost, refused
from tests.kit.steps import UNPROCESSED, events, lock_wait, locked, publish, slots_taken
from tests.kit.waiting import until

WRONG = "0" * 32


def reader(url: str, read_cost: ReadCost | None = None, **budget: float) -> Postgres:
    return Postgres(url, "runbook test", Budget(**budget), read_cost or a_read_cost())


def broker_reader(url: str, read_cost: ReadCost | None = None) -> JetStream:
    return JetStream(url, "runbook test", read_cost or a_read_cost())


# PostgreSQL -------------------------------------------------------------------------------------------------


def test_a_snapshot_is_of_one_moment(servers: Servers, db: psycopg.Connection) -> None:
    with reader(servers.database_url).snapshot() as snapshot:
        before = snapshot.ask("outbox/backlog")
        events(db, 3, 10, outbox="PENDING", **UNPROCESSED)
        after = snapshot.ask("outbox/backlog")
    assert after.equals(before)
    with reader(servers.database_url).snapshot() as snapshot:
        assert not snapshot.ask("outbox/backlog").equals(before)


def test_reading_rolls_nothing_back(servers: Servers, db: psycopg.Connection) -> None:
    """Rollbacks of a database are evidence that it refuses the services: the runbook's own reads add none."""

    def rolled_back() -> int:
        seen = db.execute("SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()").fetchone()
        return int(seen[0]) if seen else -1

    before, source = rolled_back(), reader(servers.database_url)
    for _ in range(5):
        with source.snapshot() as snapshot:
            snapshot.ask("alive/sessions", role="miniserversystem")
    source.close()
    until(lambda: not db.execute("SELECT FROM pg_stat_activity WHERE application_name = 'runbook test'").fetchone())
    assert rolled_back() == before


@pytest.mark.parametrize("role", ["runbook", "superuser"])
def test_nothing_can_be_written(
    servers: Servers, db: psycopg.Connection, ask_for: Callable[..., str], role: str
) -> None:
    url = servers.database_url if role == "runbook" else servers.admin_url
    name = ask_for("DELETE FROM entitlement.outbox_events")
    with reader(url).snapshot() as snapshot, refused("postgres", Reason.ERROR, "25006"):
        snapshot.ask(name)


def test_a_table_that_the_role_may_not_read(servers: Servers, ask_for: Callable[..., str]) -> None:
    name = ask_for("SELECT rolpassword FROM pg_authid")
    with (
        reader(servers.database_url).snapshot() as snapshot,
        refused("postgres", Reason.DENIED, "permission_denied"),
    ):
        snapshot.ask(name)


def test_statement_timeout(servers: Servers, ask_for: Callable[..., str]) -> None:
    name = ask_for("SELECT 1 FROM pg_sleep(20)")
    with (
        reader(servers.database_url, statement_timeout_ms=200).snapshot() as snapshot,
        refused("postgres", Reason.TIMEOUT, "statement_timeout"),
    ):
        snapshot.ask(name)


def test_a_locked_table(servers: Servers, db: psycopg.Connection) -> None:
    with (
        locked(servers, "entitlement.outbox_events"),
        reader(servers.database_url).snapshot() as snapshot,
        refused("postgres", Reason.TIMEOUT, "lock_not_available"),
    ):
        snapshot.ask("outbox/backlog")


def test_a_lock_that_only_queues(servers: Servers, db: psycopg.Connection) -> None:
    """A migration that waits behind a long reader stops every new reader as well."""
    with (
        locked(servers, "entitlement.outbox_events", "ACCESS SHARE"),
        lock_wait(servers.admin_url, "BEGIN; LOCK TABLE entitlement.outbox_events IN ACCESS EXCLUSIVE MODE"),
        reader(servers.database_url).snapshot() as snapshot,
        refused("postgres", Reason.TIMEOUT, "lock_not_available"),
    ):
        snapshot.ask("outbox/backlog")


def test_the_rest_of_a_snapshot_goes_on(servers: Servers, db: psycopg.Connection) -> None:
    with locked(servers, "entitlement.outbox_events"), reader(servers.database_url).snapshot() as snapshot:
        assert snapshot.try_ask("outbox/backlog") is None
        assert snapshot.try_ask("notifications/backlog") is not None
        assert len(snapshot.ask("notifications/backlog")) == 1


def test_the_cost_gate(servers: Servers, ask_for: Callable[..., str]) -> None:
    ledger = a_read_cost()
    name = ask_for("SELECT count(*) FROM generate_series(1, CAST(:n AS integer))", cost="scan")
    with reader(servers.database_url, ledger, max_plan_cost=0.001).snapshot() as snapshot:
        with refused("postgres", Reason.DENIED, "cost_gate"):
            snapshot.ask(name, n=10)
        # It was planned and not run, so the transaction is as good as before.
        assert snapshot.ask(ask_for("SELECT 1 AS one"))["one"].tolist() == [1]
    gated = ledger.queries[-2]
    assert gated.plan_cost is not None
    assert gated.plan_cost > 0.001
    assert gated.error.startswith("denied")


def test_the_row_cap(servers: Servers, ask_for: Callable[..., str]) -> None:
    with reader(servers.database_url, max_rows=3).snapshot() as snapshot:
        name = ask_for("SELECT n FROM generate_series(1, CAST(:n AS integer)) n LIMIT :max_rows")
        capped, all_of_it = snapshot.ask(name, n=10), snapshot.ask(name, n=3)
    assert capped["n"].tolist() == all_of_it["n"].tolist() == [1, 2, 3]
    assert capped.attrs["capped"] is True
    assert all_of_it.attrs["capped"] is False


def test_types_of_a_frame(servers: Servers, ask_for: Callable[..., str]) -> None:
    name = ask_for(
        "SELECT CAST(1.5 AS numeric) AS a, now() AS b, gen_random_uuid() AS c, CAST(NULL AS timestamptz) AS d "
        "UNION ALL SELECT NULL, NULL, NULL, NULL"
    )
    with reader(servers.database_url).snapshot() as snapshot:
        frame = snapshot.ask(name)
    assert frame["a"].dtype == "float64"
    assert str(frame["b"].dt.tz) == "UTC"
    assert isinstance(frame["c"][0], str)
    assert frame["d"].isna().all()


@pytest.mark.parametrize("value", ["CAST('infinity' AS timestamptz)", "CAST('-infinity' AS date)"])
def test_a_value_that_the_driver_cannot_read_is_an_error(
    servers: Servers, ask_for: Callable[..., str], value: str
) -> None:
    ledger = a_read_cost()
    with reader(servers.database_url, ledger).snapshot() as snapshot:
        with refused("postgres", Reason.ERROR, ""):
            snapshot.ask(ask_for(f"SELECT {value} AS at"))
        assert "too " in ledger.queries[-1].error
        assert snapshot.ask(ask_for("SELECT 1 AS n"))["n"].tolist() == [1]


@pytest.mark.slow
def test_only_so_many_runs_read_at_once(servers: Servers) -> None:
    with reader(servers.database_url, readers=1).snapshot():
        with reader(servers.database_url, readers=2).snapshot():
            pass
        with (
            refused("postgres", Reason.TIMEOUT, "readers"),
            reader(servers.database_url, readers=1).snapshot(),
        ):
            pass
    with reader(servers.database_url, readers=1).snapshot():
        pass


def test_clock_offset_of_one_machine(servers: Servers) -> None:
    with reader(servers.database_url).snapshot() as snapshot:
        offset, error = snapshot.clock_offset()
    assert abs(offset) <= error + 0.05
    assert 0 < error < 0.5


def test_a_snapshot_that_idles_is_ended_by_the_server(servers: Servers, ask_for: Callable[..., str]) -> None:
    with reader(servers.database_url, idle_timeout_ms=100).snapshot() as snapshot:
        time.sleep(0.5)
        with refused("postgres", Reason.TIMEOUT, "idle_timeout"):
            snapshot.ask(ask_for("SELECT 1"))


def test_too_many_clients(servers: Servers, db: psycopg.Connection) -> None:
    with slots_taken(db, servers.app_url), reader(servers.database_url).snapshot():
        pass  # the reserved slots are for this
    with (
        slots_taken(db, servers.database_url, left=["superuser_reserved_connections"]),
        refused("postgres", Reason.UNREACHABLE, "too_many_clients"),
        reader(servers.database_url).snapshot(),
    ):
        pass


def test_wrong_password(servers: Servers) -> None:
    url, ledger = servers.database_url.replace(servers.addresses.passwords["runbook"], WRONG), a_read_cost()
    with (
        refused("postgres", Reason.DENIED, "wrong_password"),
        reader(url, ledger).snapshot(),
    ):
        pass
    assert not A_PASSWORD.search(str(ledger.queries))


def test_wrong_database(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    source = reader(servers.database_url.rpartition("/")[0] + "/another")
    for _ in range(2):
        with refused("postgres", Reason.UNREACHABLE, "no_such_database"), source.snapshot():
            pass
        monkeypatch.setattr(source, "connect", lambda: pytest.fail("the server is asked again"))


def test_nobody_listens(servers: Servers) -> None:
    ledger = a_read_cost()
    url = servers.database_url.replace(f":{servers.addresses.postgres_port}/", ":1/")
    with refused("postgres", Reason.UNREACHABLE, "no_connection"), reader(url, ledger).snapshot():
        pass
    assert not A_PASSWORD.search(str(ledger.queries))


def test_the_server_goes_away_under_a_snapshot(servers: Servers, ask_for: Callable[..., str]) -> None:
    try:
        with reader(servers.database_url).snapshot() as snapshot:
            servers.stop_postgres()
            with refused("postgres", Reason.UNREACHABLE, "ended"):
                snapshot.try_ask(ask_for("SELECT 1"))
    finally:
        servers.start_postgres()


def test_a_server_that_hangs_at_connect(embedded: Servers) -> None:
    with (
        stopped(embedded.processes["postgres"].pid),
        refused("postgres", Reason.TIMEOUT, "unanswered"),
        reader(embedded.database_url, connect_timeout_s=2).snapshot(),
    ):
        pass


def test_an_address_that_nothing_answers_is_no_word_of_the_server() -> None:
    with socket.socket() as full:  # no more connections are accepted than wait here
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with contextlib.ExitStack() as waiting:
            for _ in range(3):
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            with (
                refused("postgres", Reason.TIMEOUT, "no_connection"),
                reader(f"postgresql://x@127.0.0.1:{port}/x", connect_timeout_s=2).snapshot(),
            ):
                pass


def test_one_connection_serves_snapshots_that_follow_each_other(
    servers: Servers, ask_for: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ask_for("SELECT pg_backend_pid() AS pid")
    source = reader(servers.database_url)

    def pid() -> int:
        with source.snapshot() as snapshot:
            return int(snapshot.ask(name)["pid"][0])

    with psycopg.connect(servers.admin_url, autocommit=True) as admin:

        def there(backend: int) -> bool:
            return bool(admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend]).fetchone())

        def gone(backend: int) -> None:
            until(lambda: not there(backend))

        first = pid()
        assert pid() == first
        with source.snapshot() as outer:
            assert pid() != int(outer.ask(name)["pid"][0]) == first, "two at once have one each"
        admin.execute("SELECT pg_terminate_backend(%s)", [first])
        gone(first)
        monkeypatch.setattr(postgres, "_IDLE_S", 0.2)
        second = pid()
        gone(second)
        assert pid() not in (first, second)


def test_a_kept_connection_to_a_server_that_hangs_tells_nothing(embedded: Servers) -> None:
    """Whether one can connect is told by a new connection."""
    source = reader(embedded.database_url, connect_timeout_s=2, statement_timeout_ms=300)
    with source.snapshot():
        pass
    assert source._idle
    backend = source._idle[0].info.backend_pid
    with (
        stopped(embedded.processes["postgres"].pid),
        stopped(backend),
        refused("postgres", Reason.TIMEOUT, "unanswered"),
        source.snapshot(),
    ):
        pass


@pytest.mark.parametrize("method", ["ask", "try_ask"])
def test_a_server_that_hangs_under_a_snapshot(embedded: Servers, ask_for: Callable[..., str], method: str) -> None:
    """A stopped backend does not enforce its own timeout; the client has to cut the line."""
    with reader(embedded.database_url, statement_timeout_ms=300).snapshot() as snapshot:
        name = ask_for("SELECT pg_backend_pid() AS pid")
        pid = snapshot.ask(name)["pid"][0]
        with stopped(int(pid)), refused("postgres", Reason.TIMEOUT, "hung"):
            getattr(snapshot, method)(name)


@pytest.mark.parametrize("again", [False, True])
def test_a_server_that_hangs_when_a_snapshot_is_rolled_back(
    embedded: Servers, ask_for: Callable[..., str], again: bool
) -> None:
    source = reader(embedded.database_url, statement_timeout_ms=300)
    with ExitStack() as later:
        with source.snapshot() as snapshot:
            pid = int(snapshot.ask(ask_for("SELECT pg_backend_pid() AS pid"))["pid"][0])
            # Without a limit it would wait for as long as the server is stopped.
            goes_on = threading.Timer(60, os.kill, (pid, signal.SIGCONT))
            later.callback(goes_on.cancel)
            goes_on.start()
            later.enter_context(stopped(pid))
            if again:
                with refused("postgres", Reason.TIMEOUT, "hung"):
                    snapshot.start()
        assert goes_on.is_alive() and not source._idle


# JetStream --------------------------------------------------------------------------------------------------


def test_a_broker_that_is_still_at_the_files_of_a_stream_is_asked_again(
    servers: Servers, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def busy(js: JetStreamContext, *_: float) -> None:
        asked.append(js)
        if len(asked) < 3:
            raise ServerError(code=500, err_code=10049, description="error creating store for stream")
        await real(js)

    real = applications.ensure_streams
    monkeypatch.setattr(applications, "ensure_streams", busy)
    servers.ensure_streams()
    assert len(asked) == 3


def test_stream_consumer_and_messages(servers: Servers, broker: str) -> None:
    publish(broker, b"one", headers={"Nats-Msg-Id": "0"})
    publish(broker, b"two", headers={"Nats-Msg-Id": "1"})
    source = broker_reader(servers.nats_url)
    state = source.stream(STREAM)["state"]
    assert (state["messages"], state["first_seq"], state["last_seq"]) == (2, 1, 2)
    consumer = source.consumer(STREAM, CONSUMER)
    assert consumer.num_pending == 2
    assert not consumer.bound
    assert consumer.info["ts"]
    message = source.message(STREAM, 2)
    assert message is not None
    assert (message.seq, message.subject, message.body) == (2, SUBJECT, b"two")
    assert message.headers["Nats-Msg-Id"] == "1"
    assert abs(time.time() - message.time.timestamp()) < 60
    following = source.message(STREAM, 1, SUBJECT)
    assert following is not None
    assert following.body == b"one"
    assert source.message(STREAM, 9) is None
    assert source.server()["jetstream"] is True


def test_what_is_missing_has_a_code(servers: Servers) -> None:
    source = broker_reader(servers.nats_url)
    with refused("jetstream", Reason.ERROR, "stream_not_found"):
        source.stream("no-such-stream")
    with refused("jetstream", Reason.ERROR, "consumer_not_found"):
        source.consumer(STREAM, "no-such-durable")
    assert source.stream(STREAM)["config"]["name"] == STREAM


def test_in_a_thread_that_runs_an_event_loop(servers: Servers) -> None:
    async def in_a_notebook() -> str:
        return str(broker_reader(servers.nats_url).stream(STREAM)["config"]["name"])

    assert asyncio.run(in_a_notebook()) == STREAM


def test_what_the_broker_user_may_not_do(servers: Servers) -> None:
    source = broker_reader(servers.nats_url)
    with refused("jetstream", Reason.DENIED, "permission_denied"):
        source._call_api(f"STREAM.PURGE.{STREAM}")
    assert source.stream(STREAM)  # it is not taken for a broker that is down


def test_wrong_broker_credentials(servers: Servers) -> None:
    ledger = a_read_cost()
    url = f"nats://runbook:{WRONG}@127.0.0.1:{servers.addresses.nats_port}"
    with refused("jetstream", Reason.DENIED, "wrong_credentials"):
        broker_reader(url, ledger).stream(STREAM)
    assert not A_PASSWORD.search(str(ledger.queries))


def test_the_broker_is_down(servers: Servers) -> None:
    servers.stop_nats()
    try:
        with refused("jetstream", Reason.UNREACHABLE, "no_connection"):
            broker_reader(servers.nats_url).stream(STREAM)
        with refused("nats_monitor", Reason.UNREACHABLE, "no_connection"):
            NatsMonitor(servers.nats_monitor_url, a_read_cost()).servers()
    finally:
        servers.start_nats()
    assert broker_reader(servers.nats_url).stream(STREAM)


@pytest.mark.slow
def test_the_broker_hangs(embedded: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    source = broker_reader(embedded.nats_url)
    with stopped(embedded.processes["nats"].pid):
        with refused("jetstream", Reason.TIMEOUT, "no_connection"):
            source.stream(STREAM)
        monkeypatch.setattr(source, "_connect_to_node", lambda errors: pytest.fail("the broker is asked again"))
        with refused("jetstream", Reason.TIMEOUT, "no_connection"):
            source.stream(STREAM)
        with refused("nats_monitor", Reason.TIMEOUT, "hung"):
            NatsMonitor(embedded.nats_monitor_url, a_read_cost()).servers()


# The broker's monitoring port -------------------------------------------------------------------------------


def test_connections_and_why_they_closed(servers: Servers) -> None:
    monitor = NatsMonitor(servers.nats_monitor_url, a_read_cost())
    name = f"a pod {uuid.uuid4()}"  # other tests have connections to this broker too

    def pods(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["name"] == name]

    async def come_and_go() -> None:
        client = await nats.connect(servers.app_nats_url, name=name)
        try:
            await client.subscribe("a.subject")
            await client.flush()
            # A busy broker may know of a connection that the client gave up and made again.
            until(lambda: len(pods(monitor.connections())) == 1, "not one connection is open")
            (pod,) = pods(monitor.connections()).to_dict("records")
            assert (pod["user"], pod["subjects"]) == ("app", "a.subject")
        finally:
            await client.close()

    asyncio.run(come_and_go())
    with pytest.raises(SourceError):
        broker_reader(servers.nats_url.replace("runbook:", "nobody:")).server()
    until(lambda: pods(monitor.connections()).empty, "the broker does not notice that the client went")
    until(lambda: "Authentication Failure" in set(monitor.closed()["reason"]), "nobody was refused")
    pod = pods(monitor.closed()).iloc[0]
    assert pod["reason"] == "Client Closed"
    assert pod["start"] <= pod["stop"]
    assert monitor.servers()[0]["version"]


# ------------------------------------------------------------------------------------------------------------


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that exists and does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
