"""The catalogue of faults: how each is caused and undone, and what the runbook should find.

A fault is a pair of acts on a sandbox, of which the second undoes the first. Its table in faults.toml says what is
changed; what statements and settings cannot do is in `_ACTS`.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import nats.errors
import psycopg

from runbook_lib.model.usage import did_you_mean

from . import damage, database
from .broker import CONSUMER, STREAM
from .state import DATABASE, SERVICES, SandboxError

if TYPE_CHECKING:
    from .sandbox import Sandbox

Act = Callable[["Sandbox"], object]
Pair = tuple[Act, Act]


@dataclass(frozen=True)
class Fault:
    """One thing that breaks, with the answer that a drill is graded by: a table of faults.toml."""

    name: str
    inject: Act = field(repr=False)
    heal: Act = field(repr=False)
    en: str
    ja: str
    section: str
    stuck_at: str | None = None
    failure_mode: str | None = None
    also_right: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()
    harms: tuple[str, ...] = ()
    restore: tuple[str, ...] = ()
    family: str = "failures"

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
    """Do one after the other, and undo them in the reverse order."""
    return each(*(do for do, _ in pairs)), each(*(undo for _, undo in reversed(pairs)))


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


def script(name: str) -> Act:
    """Execute an SQL file in one transaction, as the applications."""
    return rows(partial(damage.run_script, name=name))


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


def mend(*statements: str) -> Act:
    """Do the same, until events flow again; what was lost meanwhile is published again."""

    def act(sandbox: Sandbox) -> None:
        sandbox.wait_for("PostgreSQL", lambda: alter(*statements)(sandbox) is None)
        sandbox.wait_for_flow(60)
        damage.publish_lost_events_again(sandbox)

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
_PASSWORD = f"ALTER ROLE {DATABASE} PASSWORD '{{}}'"


def _restore_password(sandbox: Sandbox) -> None:
    mend(_PASSWORD.format(sandbox.state.addresses.passwords[DATABASE]))(sandbox)


_UNKNOWN_PASSWORD = "changed-and-not-announced"  # noqa: S105
#: Deletions that were repaired would make a later loss doubtful (5.3.2).
_COUNT_ANEW = alter("SELECT pg_stat_reset_single_table_counters('notification.processed_events'::regclass)")
_FORGET = script("forget")

#: By the fault's name: what is done after what its table says, and how that is undone.
_ACTS: dict[str, Pair] = {
    "clock_skew": (each(), each(stop("notification"), script("set_back"))),
    # The broker. After two minutes the pods' connections are closed for good; only a restart brings them back.
    "broker_down": (stop("nats"), each(start("nats"), restart(*SERVICES))),
    "broker_frozen": stack((each(), restart(*SERVICES)), signalled("STOP", "nats")),
    "stream_missing": (on_broker(lambda js: js.delete_stream(STREAM)), restart(*SERVICES)),
    "stream_full": (
        on_broker(partial(damage.limit_stream, full=True)),
        on_broker(partial(damage.limit_stream, full=False)),
    ),
    "consumer_deleted": (on_broker(lambda js: js.delete_consumer(STREAM, CONSUMER)), restart("notification")),
    "consumer_paused": (
        on_broker(lambda js: js.pause_consumer(STREAM, CONSUMER, "2100-01-01T00:00:00Z")),
        on_broker(lambda js: js.pause_consumer(STREAM, CONSUMER, "1970-01-01T00:00:00Z")),
    ),
    # The database
    "database_down": (stop("postgres"), each(start("postgres"), mend())),
    "table_lock": held("schema-migration", _LOCKED),
    "outbox_locked": held("outbox-migration", _LOCKED),
    "rows_locked": held("reconciliation", _IN_TRANSACTION),
    "connections_exhausted": held("nightly-report", _EXHAUSTED),
    "password_changed": (alter(_PASSWORD.format(_UNKNOWN_PASSWORD), "new sessions"), _restore_password),
    # Single events
    "dedupe_broken": (on_broker(partial(damage.replay, n=10)), script("repair_dedupe")),
    "bad_payload": (rows(damage.bad_payloads, 5), _FORGET),
    "unknown_event_type": (rows(damage.unknown_event_types, 5), _FORGET),
    "undecodable_message": (on_broker(damage.publish_noise, 3), damage.forget_dead_messages),
    "events_lost": (damage.lose_events, damage.publish_lost_events_again),
    "exhausted_outbox": (damage.exhaust_outbox, _FORGET),
    "failing_user": (rows(damage.refuse_one_user), _FORGET),
    "dlq_mismatch": (rows(damage.part_dead_letters), _FORGET),
    "rows_postponed": (rows(damage.postpone, 20), _FORGET),
    "rows_deleted": (rows(damage.delete_waiting, 20), _FORGET),
    "stream_replayed": (on_broker(damage.replay, 30), script("repair_dedupe")),
    "consumer_subject": (on_broker(damage.make_consumer_again), restart("notification")),
    # While nothing is delivered, messages become older than the stream keeps them.
    "stream_retention": (on_broker(damage.pause_consumer, 4), each()),
    "stream_purged": (on_broker(partial(damage.pause_consumer, purge=True), 4), mend()),
    "record_deleted": (each(damage.lose_events, on_broker(damage.purge_record)), damage.publish_lost_events_again),
}

#: What a person does without harm, by the name of a drill's noise.
HARMLESS: dict[str, Act] = {
    "setting": alter(f"ALTER ROLE {DATABASE} SET work_mem = '8MB'"),
    "replay": on_broker(damage.replay, 50),
}


def _reconfigure(kind: str, values: Mapping[str, Sequence[Any]]) -> Pair:
    """Give the events' stream or its consumer other fields; after the right ones, what was lost is published again.

    A stream that does not take something back is deleted, and the services make it again.
    """
    wrong, right = changed(values, lambda s, fields: s.visit(partial(damage.configure, kind=kind, **fields)))

    def restore(sandbox: Sandbox) -> None:
        try:
            right(sandbox)
        except nats.errors.Error:
            if kind != "stream":
                raise
            sandbox.visit(lambda js: js.delete_stream(STREAM))
            sandbox.restart(*SERVICES)

    return wrong, each(restore, mend())


#: What a key of a fault's table does with its value, in the order in which it is done.
_MEANS: dict[str, Callable[[Any], Pair]] = {
    "stream": partial(_reconfigure, "stream"),
    "consumer": partial(_reconfigure, "consumer"),
    "broker": lambda values: changed(values, lambda s, fields: s.configure_broker(**fields), restart(*SERVICES)),
    "network": lambda values: changed(values, lambda s, rules: s.configure_network(**rules)),
    "signal": lambda words: signalled(*words),
    "stopped": lambda programs: (stop(*programs), start(*programs)),
    "started": lambda program: (start(program), stop(program)),
}


def pair(table: Mapping[str, Any], *also: Pair) -> Pair:
    """Return what a table of faults.toml does and how it is undone, and then `also`."""
    pairs = []
    if "do" in table:
        pairs.append((alter(*table["do"]), mend(*table.get("undo", ()))))
    if {"settings", "restarts"} & table.keys():

        def put(sandbox: Sandbox, settings: Mapping[str, str | None]) -> None:
            sandbox.configure(settings)
            sandbox.restart(*table.get("restarts", ()))

        pairs.append(changed(table.get("settings", {}), put))
    pairs += [make(table[key]) for key, make in _MEANS.items() if key in table]
    return stack(*pairs, *also)


def _make_fault(name: str, table: Mapping[str, Any]) -> Fault:
    inject, heal = pair(table, *([_ACTS[name]] if name in _ACTS else []))
    told = {key: value for key, value in table.items() if key not in ("do", "undo", "settings", "restarts", *_MEANS)}
    lists = {key: tuple(value) for key, value in told.items() if isinstance(value, list)}
    return Fault(name, inject, each(heal, _COUNT_ANEW), **{**told, **lists})


_FILE = Path(__file__).with_name("faults.toml")
TABLES: dict[str, dict[str, Any]] = tomllib.loads(_FILE.read_text(encoding="utf-8"))
CATALOGUE = tuple(_make_fault(*each) for each in TABLES.items())


def find(name: str) -> Fault:
    """Return the fault of that name. Raises SandboxError with the closest name if there is none."""
    known = {fault.name: fault for fault in CATALOGUE}
    if name not in known:
        raise SandboxError(f"no fault {name!r}: {did_you_mean(name, list(known))}")
    return known[name]
