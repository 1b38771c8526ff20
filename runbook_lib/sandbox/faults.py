"""What can be broken, how it is undone, and what the runbook is expected to find."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

from .state import SandboxError

if TYPE_CHECKING:
    from .sandbox import Sandbox

# supervised program: what the intruder behind it takes
INTRUDERS = {"schema-migration": "table", "nightly-report": "connections"}


@dataclass(frozen=True)
class Fault:
    """One thing that breaks, with the answer that a drill is graded by."""

    name: str
    description: dict[str, str]  # by language, en and ja
    stuck_at: str
    failure_mode: str
    inject: Callable[[Sandbox], None] = field(repr=False)
    heal: Callable[[Sandbox], None] = field(repr=False)


def _signal(app: str, part: str, number: signal.Signals) -> Callable[[Sandbox], None]:
    return lambda sandbox: sandbox.signal_part(app, part, number)


def _restart(*apps: str) -> Callable[[Sandbox], None]:
    def restart(sandbox: Sandbox) -> None:
        for app in apps:
            sandbox.restart(app)

    return restart


def _stop(program: str) -> Callable[[Sandbox], None]:
    return lambda sandbox: sandbox.stop(program)


def _start_receiver(sandbox: Sandbox) -> None:
    sandbox.start("receiver")


def _start_broker(sandbox: Sandbox) -> None:
    sandbox.start("nats")
    # After two minutes the pods' connections are closed for good; only a restart brings them back.
    _restart("notification", "entitlement")(sandbox)


def _refuse_applications(sandbox: Sandbox) -> None:
    sandbox.change_app_password("changed-and-not-announced")


def _admit_applications(sandbox: Sandbox) -> None:
    sandbox.change_app_password(None)
    _restart("notification", "entitlement")(sandbox)


def _let_in(program: str, query: str) -> Callable[[Sandbox], None]:
    """Start an intruder and wait until the superuser sees that it has what it wants."""

    def inject(sandbox: Sandbox) -> None:
        sandbox.start(program)

        def done() -> bool:
            with psycopg.connect(sandbox.state.addresses.admin_url, connect_timeout=2) as connection:
                row = connection.execute(query, (program,)).fetchone()
                return bool(row and row[0])

        sandbox.wait_for(f"{program} to take hold", done)

    return inject


_LOCKED = """
SELECT EXISTS (
    SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE application_name = %s AND mode = 'AccessExclusiveLock' AND granted
)
"""
_EXHAUSTED = """
SELECT count(*) FILTER (WHERE application_name = '') = 0
   -- one less than all ordinary slots, because whoever asks sits on one
   AND count(*) FILTER (WHERE application_name = %s) >= current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int - current_setting('reserved_connections')::int - 1
FROM pg_stat_activity WHERE usename = 'miniserversystem'
"""

CATALOGUE = (
    Fault(
        "worker_stopped",
        {
            "en": "The delivery worker is dead; its pod lives on and looks healthy.",
            "ja": "配信ワーカーが停止。Pod は生きており正常に見える。",
        },
        stuck_at="delivery_worker",
        failure_mode="FM-NOTI-06",
        inject=_signal("notification", "worker", signal.SIGKILL),
        heal=_restart("notification"),
    ),
    Fault(
        "worker_hung",
        {
            "en": "The delivery worker hangs: alive, connected, and doing nothing.",
            "ja": "配信ワーカーがハング。接続は残るが何もしない。",
        },
        stuck_at="delivery_worker",
        failure_mode="FM-NOTI-06",
        inject=_signal("notification", "worker", signal.SIGSTOP),
        heal=_restart("notification"),
    ),
    Fault(
        "subscriber_deaf",
        {
            "en": "The subscriber's NATS connection is closed for good; its process lives on.",
            "ja": "subscriber の NATS 接続が切れたまま戻らない。プロセスは生きている。",
        },
        stuck_at="subscriber",
        failure_mode="FM-NATS-01",
        inject=_signal("notification", "subscriber", signal.SIGUSR1),
        heal=_restart("notification"),
    ),
    Fault(
        "relay_stopped",
        {
            "en": "The outbox relay is dead; the API still takes requests.",
            "ja": "Outbox Relay が停止。API は受け付け続ける。",
        },
        stuck_at="relay",
        failure_mode="FM-OB-01",
        inject=_signal("entitlement", "relay", signal.SIGKILL),
        heal=_restart("entitlement"),
    ),
    Fault(
        "broker_down",
        {
            "en": "nats-server is stopped.",
            "ja": "nats-server が停止。",
        },
        stuck_at="jetstream",
        failure_mode="FM-NATS-04",
        inject=_stop("nats"),
        heal=_start_broker,
    ),
    Fault(
        "broker_refusing",
        {
            "en": "The broker refuses the applications' password: they reconnect in a loop.",
            "ja": "ブローカーがアプリの認証を拒否し、再接続ループになる。",
        },
        # The broker answers the runbook, but neither application: what fails is its door, not one hop.
        stuck_at="jetstream",
        failure_mode="FM-NATS-05",
        inject=_refuse_applications,
        heal=_admit_applications,
    ),
    Fault(
        "table_lock",
        {
            "en": "A migration holds an ACCESS EXCLUSIVE lock on notification.notifications.",
            "ja": "マイグレーションが notification.notifications を ACCESS EXCLUSIVE でロックしたまま。",
        },
        stuck_at="database",
        failure_mode="FM-DB-01",
        inject=_let_in("schema-migration", _LOCKED),
        heal=_stop("schema-migration"),
    ),
    Fault(
        "connections_exhausted",
        {
            "en": "A report holds every ordinary database connection; the pods cannot come back in.",
            "ja": "レポート処理が DB 接続をすべて占有し、Pod が接続できない。",
        },
        stuck_at="database",
        failure_mode="FM-DB-01",
        inject=_let_in("nightly-report", _EXHAUSTED),
        heal=_stop("nightly-report"),
    ),
    Fault(
        "receiver_outage",
        {
            "en": "The receiver of the notifications is down: every send fails and is retried.",
            "ja": "通知の宛先が停止。送信はすべて失敗し再試行される。",
        },
        stuck_at="receiver",
        failure_mode="FM-NOTI-03",
        inject=_stop("receiver"),
        heal=_start_receiver,
    ),
)


def find(name: str) -> Fault:
    """The fault of that name; SandboxError names the others when there is none."""
    for fault in CATALOGUE:
        if fault.name == name:
            return fault
    known = ", ".join(fault.name for fault in CATALOGUE)
    raise SandboxError(f"no fault {name!r}; there are: {known}")
