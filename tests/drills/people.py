"""What a person changes beside the knobs that the servers show: the rows of people.toml, and harmless changes."""

from __future__ import annotations

import asyncio
import contextlib
import tomllib
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import psycopg
from nats.js import JetStreamContext

from runbook_lib.gameday.sandbox import broker, damage, database, faults
from runbook_lib.gameday.sandbox.database import Connection
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.gameday.sandbox.state import DATABASE, SandboxError
from tests.kit import network

Act = Callable[[Sandbox], object]


def postpone(connection: Connection, n: int) -> None:
    """Set the next try of waiting notifications to tomorrow."""
    now = database.now()
    for second in range(n):
        at = now - timedelta(minutes=2, seconds=second)
        damage.add_notification(connection, f"later-{second}", at, next_retry_at=now + timedelta(days=1))


def delete_waiting(connection: Connection, n: int) -> None:
    """Delete waiting notifications, and nothing else of their events."""
    postpone(connection, n)
    connection.execute("DELETE FROM notification.notifications WHERE user_id LIKE 'drill-later-%'")


async def configure(js: JetStreamContext, *, kind: str, **fields: Any) -> None:
    """Change fields of the events' stream, or of its consumer."""
    if kind == "stream":
        await js.update_stream((await js.stream_info(broker.STREAM)).config.evolve(**fields))
    else:
        consumer = (await js.consumer_info(broker.STREAM, broker.CONSUMER)).config.evolve(**fields)
        await js.add_consumer(broker.STREAM, consumer)


async def make_consumer_again(js: JetStreamContext) -> None:
    """Delete the events' consumer, and add it with another subject to which it delivers."""
    config = (await js.consumer_info(broker.STREAM, broker.CONSUMER)).config
    await js.delete_consumer(broker.STREAM, broker.CONSUMER)
    await js.add_consumer(broker.STREAM, config.evolve(deliver_subject="review.events"))


async def expire(js: JetStreamContext, s: int) -> None:
    """Pause the consumer for so many seconds: messages become older than the stream keeps them."""
    await js.pause_consumer(broker.STREAM, broker.CONSUMER, "2100-01-01T00:00:00Z")
    await asyncio.sleep(s)
    await js.resume_consumer(broker.STREAM, broker.CONSUMER)


#: By the row's name: what is done after what people.toml says.
_ACTS: dict[str, faults.Act] = {
    "rows_postponed": faults.rows(postpone),
    "rows_deleted": faults.rows(delete_waiting),
    "stream_replayed": faults.on_broker(damage.replay),
    "consumer_subject": faults.on_broker(make_consumer_again),
    "stream_retention": faults.on_broker(expire),
}


def make_act(table: Mapping[str, Any], then: faults.Act | None = None) -> Act:
    """Return what a table does: as in faults.toml, and to the stream, the consumer and the network; then `then`.

    "STOP 30" is a signal after which a process goes on by itself after 30 s.
    """

    def act(sandbox: Sandbox) -> None:
        how, *where = table.get("signal", ("",))
        name, _, s = how.partition(" ")
        faults.change(sandbox, {**table, "signal": [name, *where]} if name else table)
        if s:
            again = Timer(float(s), _go_on, (sandbox, *where))
            again.daemon = True
            again.start()
        for kind in ("stream", "consumer"):
            if kind in table:
                sandbox.visit(partial(configure, kind=kind, **table[kind]))
        network.disturb(sandbox, table.get("network", {}))
        if then:
            then(sandbox, *([table["amount"]] if "amount" in table else []))

    return act


def _go_on(sandbox: Sandbox, program: str, part: str) -> None:
    with contextlib.suppress(SandboxError):  # it may have been removed by then
        sandbox.signal_program(program, "CONT", part)


TABLES: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
#: By the row's name: what changes the sandbox.
ACTS: dict[str, Act] = {name: make_act(table, _ACTS.get(name)) for name, table in TABLES.items()}


# Noise ------------------------------------------------------------------------------------------------------


def read_for_long(name: str, begin: str, query: str) -> Act:
    """Read for a long time as the superuser; no session waits for it, and it needs no core."""

    def read(sandbox: Sandbox) -> None:
        url = sandbox.state.addresses.admin_url
        with (
            contextlib.suppress(psycopg.Error),  # the server ends before it
            psycopg.connect(url, autocommit=True, application_name=name) as connection,
        ):
            connection.execute(begin)
            connection.execute(query)

    return lambda sandbox: Thread(target=read, args=(sandbox,), daemon=True).start()


#: What goes on in any system, by the name of a drill's noise: a dump reads everything in one transaction, a person's
#: query takes long, or changes a setting.
HARMLESS: dict[str, Act] = {
    "backup": read_for_long(
        "pg_dump",
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        "SELECT n.*, pg_sleep(0.02) FROM notification.notifications n",
    ),
    "analyst": read_for_long(
        "psql",
        "SET statement_timeout = '15min'",
        "SELECT count(*), max(pg_sleep(0.05)::text) FROM entitlement.outbox_events JOIN notification.notifications"
        " USING (event_id)",
    ),
    "setting": faults.alter(f"ALTER ROLE {DATABASE} SET work_mem = '8MB'"),
}
