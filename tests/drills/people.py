"""What a person changes beside the knobs that the servers show: the rows of people.toml, and harmless changes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from nats.js import JetStreamContext

from runbook_lib.gameday.sandbox import broker, damage, database, faults
from runbook_lib.gameday.sandbox.database import Connection
from runbook_lib.gameday.sandbox.faults import Act
from runbook_lib.gameday.sandbox.state import DATABASE


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


#: By the row's name: what is done after what people.toml says.
_ACTS: dict[str, Act] = {
    "rows_postponed": faults.rows(postpone, 20),
    "rows_deleted": faults.rows(delete_waiting, 20),
    "stream_replayed": faults.on_broker(damage.replay, 30),
    "consumer_subject": faults.on_broker(make_consumer_again),
    # While nothing is delivered, messages become older than the stream keeps them.
    "stream_retention": faults.on_broker(damage.pause_consumer, 4),
}

#: What a person does without harm, by the name of a drill's noise.
HARMLESS: dict[str, Act] = {
    "setting": faults.alter(f"ALTER ROLE {DATABASE} SET work_mem = '8MB'"),
    "replay": faults.on_broker(damage.replay, 50),
}


def make_act(table: Mapping[str, Any]) -> Act:
    """Return what a table does: as in faults.toml, and to the stream, the consumer and the network."""
    acts = [faults.pair(table)[0]]
    acts += [
        faults.on_broker(partial(configure, kind=kind, **table[kind]))
        for kind in ("stream", "consumer")
        if kind in table
    ]
    if "network" in table:
        acts.append(lambda sandbox: sandbox.configure_network(**table["network"]))
    return faults.each(*acts)


TABLES: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
#: By the row's name: what changes the sandbox.
ACTS: dict[str, Act] = {
    name: faults.each(make_act(table), *([_ACTS[name]] if name in _ACTS else [])) for name, table in TABLES.items()
}
