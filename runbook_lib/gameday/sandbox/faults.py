"""The catalogue of faults: how each is caused, and what the runbook should find.

A fault's table in faults.toml says what is changed; what statements and settings cannot do is in `_ACTS`. Settings,
signals, and what was stopped or started can be undone. Whatever else a fault changes, a new sandbox heals.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import psycopg

from runbook_lib.model.usage import did_you_mean

from . import damage, database
from .broker import CONSUMER, STREAM
from .sandbox import PROGRAMS, Sandbox
from .state import DATABASE, SERVICES, SandboxError, command

Act = Callable[[Sandbox], object]
#: What causes a fault, and what undoes it: None if it changes more than can be undone.
Pair = tuple[Act, Act | None]


@dataclass(frozen=True)
class Fault:
    """One thing that breaks, with the answer that is right: a table of faults.toml."""

    name: str
    inject: Act = field(repr=False)
    undo: Act | None = field(repr=False)
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


def each(*acts: Act) -> Act:
    """Do one after the other."""

    def do(sandbox: Sandbox) -> None:
        for act in acts:
            act(sandbox)

    return do


def stack(*pairs: Pair) -> Pair:
    """Do one after the other, and undo them in the reverse order, if each can be undone."""
    undone = [undo for _, undo in reversed(pairs) if undo]
    return each(*(do for do, _ in pairs)), each(*undone) if len(undone) == len(pairs) else None


# Programs and their settings --------------------------------------------------------------------------------


def start(*programs: str) -> Act:
    """Start programs."""
    return lambda sandbox: sandbox.start(*programs)


def stop(*programs: str) -> Act:
    """Stop programs."""
    return lambda sandbox: sandbox.stop(*programs)


def restart(*programs: str) -> Act:
    """Stop and start programs."""
    return lambda sandbox: sandbox.restart(*programs)


def signalled(how: str, program: str, part: str = "") -> Pair:
    """Send a signal to a program, to a pod, or to one part of it; undone by CONT, and by a restart of a pod.

    "STOP 30" goes on by itself after 30 s. "FILES" is no signal: what is open now is all that may be open.
    """
    name, _, s = how.partition(" ")

    def go_on(sandbox: Sandbox) -> None:
        with contextlib.suppress(SandboxError):  # it may have been removed by then
            sandbox.signal_program(program, "CONT", part)

    def do(sandbox: Sandbox) -> None:
        if name == "FILES":
            return sandbox.limit_files(program, part)
        sandbox.signal_program(program, name, part)
        if s:
            again = Timer(float(s), go_on, (sandbox,))
            again.daemon = True
            again.start()

    return do, each(go_on, restart(program) if program in SERVICES else start(program))


def changed(values: Mapping[str, Sequence[Any]], put: Callable[[Sandbox, dict[str, Any]], object], *then: Act) -> Pair:
    """Put the wrong value of each name; then the right one (none: None), after which `then` is done."""
    wrong, right = ({name: dict(enumerate(value)).get(n) for name, value in values.items()} for n in (0, 1))
    return lambda sandbox: put(sandbox, wrong), each(lambda sandbox: put(sandbox, right), *then)


# Rows, streams, and the database's own settings -------------------------------------------------------------


def rows(change: Callable[..., object], *usual: int) -> Act:
    """Change rows in one transaction, as the applications; of what is counted, as many as usual times the intensity."""

    def act(sandbox: Sandbox) -> None:
        with sandbox.transaction() as connection:
            change(connection, *_scale_counts(sandbox, usual))

    return act


def on_broker(scene: Callable[..., Awaitable[object]], *usual: int) -> Act:
    """Run a function at the broker as the applications; counts are the usual ones times the intensity."""
    return lambda sandbox: sandbox.visit(lambda js: scene(js, *_scale_counts(sandbox, usual)))


def _scale_counts(sandbox: Sandbox, usual: Sequence[int]) -> list[int]:
    return [max(round(n * sandbox.intensity), 1) for n in usual]


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


def held(program: str, query: str) -> Pair:
    """Start a stranger, wait until that query of the superuser says that it has what it wants, and stop it."""

    def let_in(sandbox: Sandbox) -> None:
        sandbox.start(program)

        def done() -> bool:
            with psycopg.connect(sandbox.state.addresses.admin_url, connect_timeout=2) as connection:
                row = connection.execute(query, (program,)).fetchone()
                return bool(row and row[0])

        sandbox.wait_for(f"{program} to take hold", done, 30)

    return let_in, stop(program)


# The table --------------------------------------------------------------------------------------------------

_LOCKED = """
SELECT EXISTS (
    SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE application_name = %s AND mode = 'AccessExclusiveLock' AND granted
)
"""
_IN_TRANSACTION = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s AND xact_start < now())"
_EXHAUSTED = """
SELECT count(*) FILTER (WHERE application_name = 'PostgreSQL JDBC Driver') = 0
   -- one less than all ordinary slots, because whoever asks sits on one
   AND count(*) FILTER (WHERE application_name = %s) >= current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int - current_setting('reserved_connections')::int - 1
FROM pg_stat_activity WHERE usename = 'miniserversystem'
"""
#: By the fault's name: what is done after what its table says.
_ACTS: dict[str, Pair] = {
    # The broker. After two minutes the pods' connections are closed for good; only a restart brings them back.
    "broker_down": (stop("nats"), each(start("nats"), restart(*SERVICES))),
    "broker_frozen": stack((each(), restart(*SERVICES)), signalled("STOP", "nats")),
    "stream_missing": (on_broker(lambda js: js.delete_stream(STREAM)), None),
    "stream_full": (on_broker(damage.fill_stream), None),
    "consumer_deleted": (on_broker(lambda js: js.delete_consumer(STREAM, CONSUMER)), None),
    "consumer_paused": (on_broker(lambda js: js.pause_consumer(STREAM, CONSUMER, "2100-01-01T00:00:00Z")), None),
    # The database
    "table_lock": held("schema-migration", _LOCKED),
    "outbox_locked": held("outbox-migration", _LOCKED),
    "rows_locked": held("reconciliation", _IN_TRANSACTION),
    "connections_exhausted": held("nightly-report", _EXHAUSTED),
    # Single events
    "dedupe_broken": (on_broker(damage.replay, 10), None),
    "bad_payload": (rows(damage.bad_payloads, 5), None),
    "unknown_event_type": (rows(damage.unknown_event_types, 5), None),
    "undecodable_message": (on_broker(damage.publish_noise, 3), None),
    "events_lost": (damage.lose_events, None),
    "exhausted_outbox": (damage.exhaust_outbox, None),
    "failing_user": (rows(damage.refuse_one_user), None),
    "dlq_mismatch": (rows(damage.part_dead_letters), None),
    "stream_purged": (on_broker(partial(damage.pause_consumer, purge=True), 4), None),
    "record_deleted": (each(damage.lose_events, on_broker(damage.purge_record)), None),
}

#: What a key of a fault's table does with its value, in the order in which it is done.
_MEANS: dict[str, Callable[[Any], Pair]] = {
    "broker": lambda values: changed(values, lambda s, fields: s.configure_broker(**fields), restart(*SERVICES)),
    "signal": lambda words: signalled(*words),
    "stopped": lambda programs: (stop(*programs), start(*programs)),
    "started": lambda program: (start(program), stop(program)),
}


def pair(table: Mapping[str, Any], *also: Pair) -> Pair:
    """Return what a table of faults.toml does, then `also`, and how that is undone."""

    def put(sandbox: Sandbox, settings: Mapping[str, str | None]) -> None:
        sandbox.configure(settings)
        sandbox.restart(*table.get("restarts", ()))

    pairs: list[Pair] = [(alter(*table["do"]), None)] if "do" in table else []
    if {"settings", "restarts"} & table.keys():
        pairs.append(changed(table.get("settings", {}), put))
    pairs += [make(table[key]) for key, make in _MEANS.items() if key in table]
    return stack(*pairs, *also)


def _make_fault(name: str, table: Mapping[str, Any]) -> Fault:
    inject, undo = pair(table, *([_ACTS[name]] if name in _ACTS else []))
    told = {key: value for key, value in table.items() if key not in ("do", "settings", "restarts", "damages", *_MEANS)}
    lists = {key: tuple(value) for key, value in told.items() if isinstance(value, list)}
    return Fault(name, inject, None if table.get("damages") else undo, **{**told, **lists})


_FILE = Path(__file__).with_name("faults.toml")
TABLES: dict[str, dict[str, Any]] = tomllib.loads(_FILE.read_text(encoding="utf-8"))
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
    state.fault, state.fault_at = name, datetime.now(UTC).isoformat(timespec="milliseconds")
    state.unknown = unknown
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
    undo = find(state.fault).undo
    if undo is None:
        anew = " && ".join(command(verb, sandbox.directory) for verb in ("down", "up"))
        active = "this fault" if state.unknown else state.fault
        raise SandboxError(f"{active} has changed more than can be undone; a new sandbox heals it: `{anew}`")
    undo(sandbox)
    sandbox.start(*PROGRAMS)  # whatever else a responder stopped on the way
    sandbox.wait_for_flow(timeout)
    sandbox.wait_for("every program to run", lambda: {*sandbox.status().programs.values()} == {"RUNNING"}, timeout)
    healed, state.fault, state.unknown = state.fault, None, False
    state.save()
    return healed
