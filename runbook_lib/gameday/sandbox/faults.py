"""The catalogue of faults: how each is caused, and what the runbook should find.

A fault's table in faults.toml says what is changed; what statements and settings cannot do is in `_ACTS`. Settings,
signals, and what was stopped or started can be undone. Whatever else a fault changes, a new sandbox heals.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from nats.js import JetStreamContext

from runbook_lib.model.usage import did_you_mean

from . import damage, database
from .broker import ADVISORY_CONSUMER, ADVISORY_STREAM, CONSUMER, STREAM
from .sandbox import PROGRAMS, Sandbox
from .state import DATABASE, SERVICES, SandboxError, command

#: Takes a sandbox, and the amount of a fault that has one.
Act = Callable[..., object]


@dataclass(frozen=True)
class Fault:
    """One thing that breaks, with the answer that is right: a table of faults.toml."""

    name: str
    table: Mapping[str, Any] = field(repr=False)
    en: str
    ja: str
    section: str
    stuck_at: str | None = None
    failure_mode: str | None = None
    also_right: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()
    harms: tuple[str, ...] = ()

    @property
    def description(self) -> dict[str, str]:
        """By language."""
        return {"en": self.en, "ja": self.ja}

    @property
    def undoable(self) -> bool:
        """Whether it changes settings, sends signals, stops and starts, and does nothing else."""
        return self.name not in _ACTS and not self.table.keys() & {"do", "damages"}

    def inject(self, sandbox: Sandbox) -> None:
        """Break the sandbox."""
        change(sandbox, self.table)
        if act := _ACTS.get(self.name):
            act(sandbox, *([self.table["amount"]] if "amount" in self.table else []))

    def undo(self, sandbox: Sandbox) -> None:
        """Change back what the table says."""
        stopped = self.table.get("stopped", ())
        _, program, part = (*self.table.get("signal", ("", "")), "")[:3]
        if "started" in self.table:
            sandbox.stop(self.table["started"])
        sandbox.start(*stopped)
        if program:
            with contextlib.suppress(SandboxError):  # it may have been removed by then
                sandbox.signal_program(program, "CONT", part)
            (sandbox.restart if program in SERVICES else sandbox.start)(program)
        _configure(sandbox, self.table, 1)
        if "broker" in self.table or "nats" in (*stopped, program):
            # After two minutes the pods' connections are closed for good; only a restart brings them back.
            sandbox.restart(*SERVICES)


# What a table changes ---------------------------------------------------------------------------------------


def change(sandbox: Sandbox, table: Mapping[str, Any]) -> None:
    """Change what a table says: its statements, settings, signal, stops and starts."""
    alter(*table.get("do", ()))(sandbox)
    _configure(sandbox, table, 0)
    if "signal" in table:
        how, program, *part = table["signal"]
        sandbox.signal_program(program, how, *part)
    sandbox.stop(*table.get("stopped", ()))
    if "started" in table:
        _let_in(sandbox, table["started"])


def _configure(sandbox: Sandbox, table: Mapping[str, Any], which: int) -> None:
    """Set the wrong values (0) or the right ones (1; of a name that has none: none)."""

    def values(key: str) -> dict[str, Any]:
        return {name: (*value, None)[which] for name, value in table[key].items()}

    if "settings" in table:
        sandbox.configure(values("settings"))
    sandbox.restart(*table.get("restarts", ()))
    if "broker" in table:
        sandbox.configure_broker(**values("broker"))


#: What a changed setting needs to count, but for "restart": the server reads its own again, the applications begin
#: new sessions.
_SHORT = {
    "reload": "SELECT pg_reload_conf()",
    "new sessions": f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{DATABASE}'",  # noqa: S608
}


def alter(*statements: str) -> Act:
    """Run SQL as the superuser, who may write when the applications may not; "restart" restarts the server."""

    def act(sandbox: Sandbox) -> None:
        # No commit of its own waits for a standby.
        options = "-c%20default_transaction_read_only%3Doff%20-c%20synchronous_commit%3Dlocal"
        for statement in statements:
            if statement == "restart":
                sandbox.restart("postgres")
                continue
            with database.connect(f"{sandbox.state.addresses.admin_url}?options={options}") as admin:
                admin.execute(_SHORT.get(statement, statement))

    return act


_LOCKED = """
SELECT EXISTS (
    SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE application_name = %s AND mode = 'AccessExclusiveLock' AND granted
) AS held
"""
#: Queries of the superuser that say whether a stranger has what it wants.
_HELD = {
    "schema-migration": _LOCKED,
    "outbox-migration": _LOCKED,
    "reconciliation": """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s AND xact_start < now()) AS held
""",
    "nightly-report": """
SELECT count(*) FILTER (WHERE application_name = 'PostgreSQL JDBC Driver') = 0
   -- one less than all ordinary slots, because whoever asks sits on one
   AND count(*) FILTER (WHERE application_name = %s) >= current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int - current_setting('reserved_connections')::int - 1
   AS held
FROM pg_stat_activity WHERE usename = 'miniserversystem'
""",
}


def _let_in(sandbox: Sandbox, stranger: str) -> None:
    sandbox.start(stranger)

    def holds() -> bool:
        with database.connect(sandbox.state.addresses.admin_url) as admin:
            row = admin.execute(_HELD[stranger], (stranger,)).fetchone()
        return bool(row and row["held"])

    if stranger in _HELD:
        sandbox.wait_for(f"{stranger} to take hold", holds, 30)


# Rows and streams -------------------------------------------------------------------------------------------


def rows(change: Callable[..., object]) -> Act:
    """Change rows in one transaction, as the applications."""

    def act(sandbox: Sandbox, *amount: int) -> None:
        with sandbox.transaction() as connection:
            change(connection, *amount)

    return act


def on_broker(scene: Callable[..., Awaitable[object]]) -> Act:
    """Run a function at the broker as the applications."""
    return lambda sandbox, *amount: sandbox.visit(lambda js: scene(js, *amount))


def _lose_events(sandbox: Sandbox) -> None:
    """Let the subscriber's writes fail until a few events have used up their deliveries, and the record of it too."""
    allow = "GRANT INSERT ON notification.{} TO CURRENT_USER"
    with database.connect(sandbox.state.addresses.app_url) as connection:
        for table in ("processed_events", "notification_nats_dlq"):
            connection.execute(f"REVOKE INSERT ON notification.{table} FROM CURRENT_USER")
        try:
            sandbox.wait_for("events to be given up", lambda: sandbox.visit(_count_advisories)[0] >= 3, 30)
            connection.execute(allow.format("processed_events"))
            sandbox.wait_for("the advisories to be given up", lambda: sandbox.visit(_count_advisories)[1] == 0, 30)
        finally:
            for table in ("processed_events", "notification_nats_dlq"):
                connection.execute(allow.format(table))


async def _count_advisories(js: JetStreamContext) -> tuple[int, int]:
    """Return how many there are, and how many the subscriber still has before it."""
    info = await js.consumer_info(ADVISORY_STREAM, ADVISORY_CONSUMER)
    messages = (await js.stream_info(ADVISORY_STREAM)).state.messages
    return messages, (info.num_pending or 0) + (info.num_ack_pending or 0)


def _exhaust_outbox(sandbox: Sandbox) -> None:
    """Let events on their last try meet a broker that is away; then it comes back, and they do not."""
    sandbox.wait_for_flow(30)
    sandbox.stop("nats")
    now = database.now()
    try:
        with sandbox.transaction() as connection:
            for n in range(4):
                at = now - damage.NINE_TRIES - timedelta(seconds=n)
                damage.add_event(connection, f"outage-{n}", at, attempt_count=9, next_retry_at=now)
        failed = "aggregate_key LIKE 'drill-%%' AND status = 'FAILED'"
        with database.connect(sandbox.state.addresses.app_url) as connection:
            sandbox.wait_for(
                "events to fail",
                lambda: database.count(connection, "entitlement.outbox_events", failed) == 4,
                60,
            )
    finally:
        sandbox.start("nats")
    sandbox.wait_for_flow(30)


def _delete_record(sandbox: Sandbox) -> None:
    """Lose events, and what tells of it."""
    _lose_events(sandbox)
    sandbox.visit(damage.purge_record)


# The table --------------------------------------------------------------------------------------------------

#: By the fault's name: what is done after what its table says.
_ACTS: dict[str, Act] = {
    "stream_missing": on_broker(lambda js: js.delete_stream(STREAM)),
    "stream_full": on_broker(damage.fill_stream),
    "consumer_deleted": on_broker(lambda js: js.delete_consumer(STREAM, CONSUMER)),
    "consumer_paused": on_broker(lambda js: js.pause_consumer(STREAM, CONSUMER, "2100-01-01T00:00:00Z")),
    "dedupe_broken": on_broker(damage.replay),
    "bad_payload": rows(damage.bad_payloads),
    "unknown_event_type": rows(damage.unknown_event_types),
    "undecodable_message": on_broker(damage.publish_noise),
    "events_lost": _lose_events,
    "exhausted_outbox": _exhaust_outbox,
    "failing_user": rows(damage.refuse_one_user),
    "dlq_mismatch": rows(damage.part_dead_letters),
    "stream_purged": on_broker(damage.purge_stream),
    "record_deleted": _delete_record,
}

TABLES: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("faults.toml").read_text(encoding="utf-8"))


def _make_fault(name: str, table: Mapping[str, Any]) -> Fault:
    told: dict[str, Any] = {each.name: table[each.name] for each in fields(Fault) if each.name in table}
    lists = {key: tuple(value) for key, value in told.items() if isinstance(value, list)}
    return Fault(name, table, **{**told, **lists})


CATALOGUE = tuple(_make_fault(*each) for each in TABLES.items())


def find(name: str) -> Fault:
    """Return the fault of that name. Raises SandboxError with the closest name if there is none."""
    known = {fault.name: fault for fault in CATALOGUE}
    if name not in known:
        raise SandboxError(f"no fault {name!r}: {did_you_mean(name, list(known))}")
    return known[name]


def inject(sandbox: Sandbox, name: str, unknown: bool = False) -> Fault:
    """Break one thing; one fault at a time. If it is `unknown`, no message names it."""
    fault, state = find(name), sandbox.up_state()
    if state.fault:
        active = "a fault" if state.unknown else state.fault
        raise SandboxError(f"{active} is on already: `{command('heal', sandbox.directory)}` first")
    # Noted first: a fault that was injected only half can still be healed.
    state.fault, state.unknown = name, unknown
    state.save()
    fault.inject(sandbox)
    return fault


def heal(sandbox: Sandbox, timeout: float = 30.0) -> str | None:
    """Undo the fault, wait until events flow again; the name of the fault, None when none was on.

    Raises SandboxError if only a new sandbox heals it.
    """
    state = sandbox.up_state()
    if state.fault is None:
        return None
    fault = find(state.fault)
    if not fault.undoable:
        anew = " && ".join(command(verb, sandbox.directory) for verb in ("down", "up"))
        active = "this fault" if state.unknown else state.fault
        raise SandboxError(f"{active} has changed more than can be undone; a new sandbox heals it: `{anew}`")
    fault.undo(sandbox)
    sandbox.start(*PROGRAMS)  # whatever else a responder stopped on the way
    sandbox.wait_for_flow(timeout)
    sandbox.wait_for("every program to run", lambda: {*sandbox.programs().values()} == {"RUNNING"}, timeout)
    state.fault, state.unknown = None, False
    state.save()
    return fault.name
