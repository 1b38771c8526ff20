"""What can be broken, how it is undone, and what the runbook is expected to find."""

from __future__ import annotations

import signal
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from runbook_lib.usage import did_you_mean

from . import damage
from .damage import alter, mend, with_settings
from .state import DATABASE, SandboxError

if TYPE_CHECKING:
    from .programs import Programs

Act = Callable[["Programs"], None]


@dataclass(frozen=True)
class Fault:
    """One thing that breaks, with the answer that a drill is graded by: a table of faults.toml, which says of each."""

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

    @property
    def description(self) -> dict[str, str]:
        """By language."""
        return {"en": self.en, "ja": self.ja}


def _part(app: str, part: str, number: signal.Signals) -> Act:
    return lambda sandbox: sandbox.signal_part(app, part, number)


def _freeze(app: str) -> Act:
    return lambda sandbox: sandbox.signal_pod(app, signal.SIGSTOP)


def _signal(program: str, name: str) -> Act:
    return lambda sandbox: sandbox.signal_program(program, name)


def _restart(*programs: str) -> Act:
    def restart(sandbox: Programs) -> None:
        for program in programs:
            sandbox.restart(program)

    return restart


def _stop(*programs: str) -> Act:
    def stop(sandbox: Programs) -> None:
        for program in programs:
            sandbox.stop(program)

    return stop


def _start(*programs: str) -> Act:
    def start(sandbox: Programs) -> None:
        for program in programs:
            sandbox.start(program)

    return start


def _each(*acts: Act) -> Act:
    def each(sandbox: Programs) -> None:
        for act in acts:
            act(sandbox)

    return each


def _let_in(program: str, query: str) -> Act:
    """Start an intruder and wait until the superuser sees that it has what it wants."""

    def inject(sandbox: Programs) -> None:
        sandbox.start(program)

        def done() -> bool:
            with psycopg.connect(sandbox.state.addresses.admin_url, connect_timeout=2) as connection:
                row = connection.execute(query, (program,)).fetchone()
                return bool(row and row[0])

        sandbox.wait_for(f"{program} to take hold", done, 30)

    return inject


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


def _wrong(pod: str, variable: str) -> tuple[Act, Act]:
    """An address at which nothing listens: what the receiver's port is for another protocol would hang instead."""
    ours = f"{pod.upper()}__{variable}"

    def right(sandbox: Programs) -> None:
        with_settings(pod, **{ours: sandbox.settings[variable]})(sandbox)

    return with_settings(pod, **{ours: "nats://127.0.0.1:1" if variable == "NATS_URL" else "1"}), right


def _denied(right: str, table: str) -> tuple[Act, Act]:
    return alter(f"REVOKE {right} ON {table} FROM {DATABASE}"), mend(f"GRANT {right} ON {table} TO {DATABASE}")


def _read_only(where: str, then: str) -> tuple[Act, Act]:
    setting = f"ALTER {where} {{}} default_transaction_read_only"
    return alter(setting.format("SET") + " = on", then), mend(setting.format("RESET"), then)


_MIGRATION = "UPDATE notification.flyway_schema_history_notification SET success = {} WHERE version = '3'"
_BOTH = ("notification", "entitlement")
_NOTIFICATION, _ENTITLEMENT, _PODS = _restart("notification"), _restart("entitlement"), _restart(*_BOTH)

#: By the fault's name: how it is done, and how it is undone.
_ACTS: dict[str, tuple[Act, Act]] = {
    # Parts, pods and programs
    "worker_stopped": (_part("notification", "worker", signal.SIGKILL), _NOTIFICATION),
    "worker_hung": (_part("notification", "worker", signal.SIGSTOP), _NOTIFICATION),
    "subscriber_deaf": (_part("notification", "subscriber", signal.SIGUSR1), _NOTIFICATION),
    "subscriber_frozen": (_part("notification", "subscriber", signal.SIGSTOP), _NOTIFICATION),
    "relay_stopped": (_part("entitlement", "relay", signal.SIGKILL), _ENTITLEMENT),
    "relay_closed": (_part("entitlement", "relay", signal.SIGUSR1), _ENTITLEMENT),
    "notification_frozen": (_freeze("notification"), _NOTIFICATION),
    "entitlement_frozen": (_freeze("entitlement"), _ENTITLEMENT),
    "notification_stopped": (_stop("notification"), _start("notification")),
    "entitlement_stopped": (_stop("entitlement"), _start("entitlement")),
    "services_stopped": (_stop(*_BOTH), _start(*_BOTH)),
    "second_worker": (damage.start_second_worker, damage.stop_second_worker),
    "migration_failed": (
        _each(alter(_MIGRATION.format("false")), _NOTIFICATION),
        _each(alter(_MIGRATION.format("true")), _NOTIFICATION),
    ),
    # Settings of the pods
    "delivery_disabled": (
        with_settings("notification", NOTIFICATION_DELIVERY_ENABLED="false"),
        with_settings("notification", NOTIFICATION_DELIVERY_ENABLED="true"),
    ),
    "delivery_held": (
        with_settings("notification", NOTIFICATION_DELIVERY_BATCH_SIZE="1", NOTIFICATION_DELIVERY_POLL_INTERVAL="10m"),
        with_settings("notification", NOTIFICATION_DELIVERY_BATCH_SIZE="50", NOTIFICATION_DELIVERY_POLL_INTERVAL="1s"),
    ),
    "relay_disabled": (
        with_settings("entitlement", ENTITLEMENT_OUTBOX_ENABLED="false"),
        with_settings("entitlement", ENTITLEMENT_OUTBOX_ENABLED="true"),
    ),
    "nats_disabled": (
        with_settings("notification", NOTIFICATION__NATS_ENABLED="false"),
        with_settings("notification", NOTIFICATION__NATS_ENABLED="true"),
    ),
    "wrong_nats_address": _wrong("notification", "NATS_URL"),
    "wrong_database_address": _wrong("notification", "POSTGRES_PORT"),
    "clock_skew": (
        with_settings("notification", NOTIFICATION_CLOCK_OFFSET=str(damage.SKEW_S)),
        damage.put_clock_right,
    ),
    # The broker
    "broker_down": (
        _stop("nats"),
        # After two minutes the pods' connections are closed for good; only a restart brings them back.
        _each(_start("nats"), _PODS),
    ),
    "broker_frozen": (_signal("nats", "STOP"), _each(_signal("nats", "CONT"), _PODS)),
    "broker_refusing": (
        lambda sandbox: sandbox.change_app_password("changed-and-not-announced"),
        _each(lambda sandbox: sandbox.change_app_password(None), _PODS),
    ),
    "stream_missing": (damage.delete_stream, _PODS),
    "stream_full": (damage.limit_stream(full=True), damage.limit_stream(full=False)),
    "consumer_deleted": (damage.delete_consumer, _NOTIFICATION),
    "consumer_paused": (damage.pause_consumer("2100-01-01T00:00:00Z"), damage.pause_consumer("1970-01-01T00:00:00Z")),
    # The database
    "database_down": (_stop("postgres"), _each(_start("postgres"), mend())),
    "table_lock": (_let_in("schema-migration", _LOCKED), _stop("schema-migration")),
    "outbox_locked": (_let_in("outbox-migration", _LOCKED), _stop("outbox-migration")),
    "rows_locked": (_let_in("reconciliation", _IN_TRANSACTION), _stop("reconciliation")),
    "connections_exhausted": (_let_in("nightly-report", _EXHAUSTED), _stop("nightly-report")),
    "slow_statements": (damage.slow_down, damage.speed_up),
    "db_read_only": _read_only(f"DATABASE {DATABASE}", damage.AFRESH),
    "server_read_only": _read_only("SYSTEM", damage.RELOAD),
    "password_changed": (
        alter(f"ALTER ROLE {DATABASE} PASSWORD 'changed-and-not-announced'", damage.AFRESH),
        damage.restore_password,
    ),
    "role_at_limit": (
        alter(f"ALTER ROLE {DATABASE} CONNECTION LIMIT 2", damage.AFRESH),
        mend(f"ALTER ROLE {DATABASE} CONNECTION LIMIT -1"),
    ),
    "worker_denied": _denied("UPDATE", "notification.notifications"),
    "api_denied": _denied("INSERT", "entitlement.outbox_events"),
    "subscriber_denied": _denied("INSERT", "notification.processed_events"),
    "runbook_locked_out": (alter("ALTER ROLE runbook NOLOGIN"), alter("ALTER ROLE runbook LOGIN")),
    # The receiver
    "receiver_outage": (_stop("receiver"), _start("receiver")),
    "receiver_hangs": (_signal("receiver", "STOP"), _signal("receiver", "CONT")),
    "receiver_slow": (
        with_settings("receiver", RECEIVER_DELAY="1500ms"),
        with_settings("receiver", RECEIVER_DELAY="0s"),
    ),
    "receiver_refuses_some": (
        with_settings("receiver", RECEIVER_REFUSES="16"),  # one user in so many, always the same; 0 is none
        with_settings("receiver", RECEIVER_REFUSES="0"),
    ),
    # Single events
    "dedupe_broken": (damage.break_dedupe, damage.repair_dedupe),
    "bad_payload": (damage.bad_payloads, damage.forget),
    "unknown_event_type": (damage.unknown_event_types, damage.forget),
    "undecodable_message": (damage.undecodable_messages, damage.forget_dead_messages),
    "events_lost": (damage.lose_events, damage.publish_lost_events_again),
    "exhausted_outbox": (damage.exhaust_outbox, damage.forget_exhausted_outbox),
    "failing_user": (damage.refuse_one_user, damage.accept_every_user),
    "dlq_mismatch": (damage.part_dead_letters, damage.forget),
}


def _fault(name: str, answer: dict[str, Any]) -> Fault:
    inject, heal = _ACTS[name]
    lists = {key: tuple(value) for key, value in answer.items() if isinstance(value, list)}
    return Fault(name, inject, heal, **{**answer, **lists})


_FILE = Path(__file__).with_name("faults.toml")
CATALOGUE = tuple(_fault(*each) for each in tomllib.loads(_FILE.read_text(encoding="utf-8")).items())


def find(name: str) -> Fault:
    """The fault of that name; SandboxError names what was meant when there is none."""
    known = {fault.name: fault for fault in CATALOGUE}
    if name not in known:
        raise SandboxError(f"no fault {name!r}: {did_you_mean(name, list(known))}")
    return known[name]
