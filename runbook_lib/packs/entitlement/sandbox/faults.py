"""What can be broken, how it is undone, and what the runbook is expected to find."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

from runbook_lib.usage import did_you_mean

from . import damage
from .state import SandboxError

if TYPE_CHECKING:
    from .programs import Programs


@dataclass(frozen=True)
class Fault:
    """One thing that breaks, with the answer that a drill is graded by."""

    name: str
    description: dict[str, str]  # by language, en and ja
    section: str  # of the runbook, which answers it
    stuck_at: str | None  # None where the flow itself does not break
    failure_mode: str
    inject: Callable[[Programs], None] = field(repr=False)
    heal: Callable[[Programs], None] = field(repr=False)
    #: Of what the runbook may propose, by the proposal's name: what ends it, and what makes it worse. All else does
    #: nothing. A remedy that no proposal has yet has a name all the same.
    helps: tuple[str, ...] = ()
    harms: tuple[str, ...] = ()
    #: Other places and failure modes that are as right as the ones above.
    also_right: tuple[str, ...] = ()


def _signal(app: str, part: str, number: signal.Signals) -> Callable[[Programs], None]:
    return lambda sandbox: sandbox.signal_part(app, part, number)


def _restart(*apps: str) -> Callable[[Programs], None]:
    def restart(sandbox: Programs) -> None:
        for app in apps:
            sandbox.restart(app)

    return restart


def _freeze(app: str) -> Callable[[Programs], None]:
    return lambda sandbox: sandbox.signal_pod(app, signal.SIGSTOP)


def _misdirect(sandbox: Programs) -> None:
    # Nothing listens there: what the receiver's port is for another protocol would hang instead.
    damage.with_settings("notification", NOTIFICATION__NATS_URL="nats://127.0.0.1:1")(sandbox)


def _direct(sandbox: Programs) -> None:
    url = sandbox.state.addresses.app_nats_url
    damage.with_settings("notification", NOTIFICATION__NATS_URL=url)(sandbox)


def _stop(program: str) -> Callable[[Programs], None]:
    return lambda sandbox: sandbox.stop(program)


def _start_receiver(sandbox: Programs) -> None:
    sandbox.start("receiver")


def _start_broker(sandbox: Programs) -> None:
    sandbox.start("nats")
    # After two minutes the pods' connections are closed for good; only a restart brings them back.
    _restart("notification", "entitlement")(sandbox)


def _refuse_applications(sandbox: Programs) -> None:
    sandbox.change_app_password("changed-and-not-announced")


def _admit_applications(sandbox: Programs) -> None:
    sandbox.change_app_password(None)
    _restart("notification", "entitlement")(sandbox)


def _let_in(program: str, query: str) -> Callable[[Programs], None]:
    """Start an intruder and wait until the superuser sees that it has what it wants."""

    def inject(sandbox: Programs) -> None:
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
SELECT count(*) FILTER (WHERE application_name = 'PostgreSQL JDBC Driver') = 0
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
            "ja": "配信 worker が停止します。Pod は生きており正常に見えます。",
        },
        section="4.1",
        stuck_at="delivery_worker",
        failure_mode="FM-NOTI-06",
        inject=_signal("notification", "worker", signal.SIGKILL),
        heal=_restart("notification"),
        helps=("restart_notification",),
    ),
    Fault(
        "worker_hung",
        {
            "en": "The delivery worker hangs: alive, connected, and doing nothing.",
            "ja": "配信 worker がハングします。接続は残りますが、何もしません。",
        },
        section="4.3",
        stuck_at="delivery_worker",
        failure_mode="FM-NOTI-06",
        inject=_signal("notification", "worker", signal.SIGSTOP),
        heal=_restart("notification"),
        helps=("restart_notification",),
    ),
    Fault(
        "subscriber_deaf",
        {
            "en": "The subscriber's NATS connection is closed for good; its process lives on.",
            "ja": "subscriber の NATS 接続が切れたまま戻りません。プロセスは生きています。",
        },
        section="4.1",
        stuck_at="subscriber",
        failure_mode="FM-NATS-01",
        inject=_signal("notification", "subscriber", signal.SIGUSR1),
        heal=_restart("notification"),
        helps=("restart_notification",),
        also_right=("FM-NATS-05",),  # not bound, because its connection is closed for good
    ),
    Fault(
        "relay_stopped",
        {
            "en": "The outbox relay is dead; the API still takes requests.",
            "ja": "outbox relay が停止します。API は受け付け続けます。",
        },
        section="4.1",
        stuck_at="relay",
        failure_mode="FM-OB-01",
        inject=_signal("entitlement", "relay", signal.SIGKILL),
        heal=_restart("entitlement"),
        helps=("restart_entitlement",),
    ),
    Fault(
        "broker_down",
        {
            "en": "nats-server is stopped.",
            "ja": "nats-server が停止します。",
        },
        section="4.1",
        stuck_at="jetstream",
        failure_mode="FM-NATS-04",
        inject=_stop("nats"),
        heal=_start_broker,
        helps=("start_broker",),
        harms=("restart_notification", "restart_entitlement"),
    ),
    Fault(
        "broker_refusing",
        {
            "en": "The broker refuses the applications' password: they reconnect in a loop.",
            "ja": "ブローカーがアプリの認証を拒否し、再接続ループになります。",
        },
        # The broker answers the runbook, but neither application: what fails is its door, not one hop.
        section="4.1",
        stuck_at="jetstream",
        failure_mode="FM-NATS-05",
        inject=_refuse_applications,
        heal=_admit_applications,
        helps=("broker_password",),
        harms=("restart_notification", "restart_entitlement"),
    ),
    Fault(
        "table_lock",
        {
            "en": "A migration holds an ACCESS EXCLUSIVE lock on notification.notifications.",
            "ja": "マイグレーションが notification.notifications を ACCESS EXCLUSIVE でロックし続けます。",
        },
        section="4.1",
        stuck_at="database",
        failure_mode="FM-DB-01",
        inject=_let_in("schema-migration", _LOCKED),
        heal=_stop("schema-migration"),
        helps=("end_blocker",),
        harms=("restart_notification",),
    ),
    Fault(
        "connections_exhausted",
        {
            "en": "A report holds every ordinary database connection; the pods cannot come back in.",
            "ja": "レポート処理が DB 接続をすべて占有し、Pod が接続できません。",
        },
        section="4.1",
        stuck_at="database",
        failure_mode="FM-DB-01",
        inject=_let_in("nightly-report", _EXHAUSTED),
        heal=_stop("nightly-report"),
        helps=("end_sessions",),
        harms=("restart_notification", "restart_entitlement"),
    ),
    Fault(
        "receiver_outage",
        {
            "en": "The receiver of the notifications is down: every send fails and is retried.",
            "ja": "通知の送信先が停止します。送信はすべて失敗し、再試行されます。",
        },
        section="4.1",
        stuck_at="receiver",
        failure_mode="FM-NOTI-03",
        inject=_stop("receiver"),
        heal=_start_receiver,
        helps=("start_receiver",),
    ),
    Fault(
        "stream_missing",
        {
            "en": "The stream entitlement-events is gone: nothing is published, nothing is consumed.",
            "ja": "stream entitlement-events が失われます。publish も受信もできません。",
        },
        section="4.1",
        stuck_at="jetstream",
        failure_mode="FM-NATS-04",
        inject=damage.delete_stream,
        heal=_restart("notification", "entitlement"),
        helps=("restart_entitlement", "restart_notification"),
    ),
    Fault(
        "relay_closed",
        {
            "en": "The relay's NATS connection is closed for good; every publish fails although the broker is well.",
            "ja": "relay の NATS 接続が切れたまま戻りません。ブローカーは正常でも publish はすべて失敗します。",
        },
        section="4.1",
        stuck_at="relay",
        failure_mode="FM-NATS-05",
        inject=_signal("entitlement", "relay", signal.SIGUSR1),
        heal=_restart("entitlement"),
        helps=("restart_entitlement",),
    ),
    Fault(
        "delivery_disabled",
        {
            "en": "Delivery is switched off by its flag; the subscriber keeps queueing.",
            "ja": "配信がフラグで無効になります。subscriber はキューに積み続けます。",
        },
        section="4.1",
        stuck_at="delivery_worker",
        failure_mode="FM-NOTI-07",
        inject=damage.with_settings("notification", NOTIFICATION_DELIVERY_ENABLED="false"),
        heal=damage.with_settings("notification", NOTIFICATION_DELIVERY_ENABLED="true"),
        helps=("switch_on_delivery", "resume_delivery", "undo_settings"),
    ),
    Fault(
        "clock_skew",
        {
            "en": f"The clock of the notification pod is {damage.SKEW_S} s ahead.",
            "ja": f"notification Pod の時計が {damage.SKEW_S} 秒進みます。",
        },
        section="4.3",
        stuck_at=None,
        failure_mode="FM-CLK-01",
        inject=damage.with_settings("notification", NOTIFICATION_CLOCK_OFFSET=str(damage.SKEW_S)),
        heal=damage.put_clock_right,
        helps=("pod_clock",),
    ),
    Fault(
        "second_worker",
        {
            "en": "A second delivery worker takes rows whose lease is over while the first still sends them.",
            "ja": "2 つ目の配信 worker が、1 つ目が送信中の行を lease 切れで横取りします。",
        },
        section="4.3",
        stuck_at=None,
        failure_mode="FM-NOTI-02",
        inject=damage.start_second_worker,
        heal=damage.stop_second_worker,
        helps=("one_worker",),
    ),
    Fault(
        "dedupe_broken",
        {
            "en": "The primary key of processed_events is gone and events are delivered again: doubles pass.",
            "ja": "processed_events の主キーがなくなり、再配信されたイベントが二重に通知されます。",
        },
        section="4.2",
        stuck_at=None,
        failure_mode="FM-NOTI-01",
        inject=damage.break_dedupe,
        heal=damage.repair_dedupe,
        helps=("restore_key", "hold_delivery"),
        harms=("redrive_broker",),
    ),
    Fault(
        "bad_payload",
        {
            "en": "Outbox payloads of the wrong JSON shape: FAILED at once.",
            "ja": "outbox の payload の JSON 形式が不正で、即座に FAILED になります。",
        },
        section="4.4",
        stuck_at="producer",
        failure_mode="FM-OB-02",
        inject=damage.bad_payloads,
        heal=damage.forget,
        helps=("fix_producer",),
        harms=("redrive_outbox",),
    ),
    Fault(
        "unknown_event_type",
        {
            "en": "Outbox events of a type that cannot be published: FAILED after ten tries.",
            "ja": "publish できない種別の outbox イベントが、10 回試行して FAILED になります。",
        },
        section="4.4",
        stuck_at="producer",
        failure_mode="FM-OB-02",
        inject=damage.unknown_event_types,
        heal=damage.forget,
        helps=("fix_producer",),
        harms=("redrive_outbox",),
    ),
    Fault(
        "undecodable_message",
        {
            "en": "Messages that cannot be decoded: terminated, recorded, never a notification.",
            "ja": "デコードできないメッセージが届きます。term され記録に残りますが、通知にはなりません。",
        },
        section="4.4",
        stuck_at="producer",
        failure_mode="FM-NATS-02",
        inject=damage.undecodable_messages,
        heal=damage.forget_dead_messages,
        helps=("fix_producer",),
        harms=("redrive_broker",),
    ),
    Fault(
        "events_lost",
        {
            "en": "The subscriber could not write for a moment: events used up their deliveries, unrecorded.",
            "ja": "subscriber が一時的に書き込めず、再配信を使い切ったイベントが記録もなく失われます。",
        },
        section="4.4",
        stuck_at="subscriber",
        failure_mode="FM-NATS-03",
        inject=damage.lose_events,
        heal=damage.publish_lost_events_again,
        helps=("redrive_broker",),
    ),
    Fault(
        "exhausted_outbox",
        {
            "en": "A broker outage that is over used up the tries of some events: FAILED, and they stay so.",
            "ja": "終息済みのブローカー障害で試行を使い切ったイベントが FAILED のまま残り、自然には戻りません。",
        },
        section="4.4",
        stuck_at=None,
        failure_mode="FM-OB-01",
        inject=damage.exhaust_outbox,
        heal=damage.forget_exhausted_outbox,
        helps=("redrive_outbox",),
    ),
    Fault(
        "failing_user",
        {
            "en": "Deliveries to the users with one prefix always fail and end in dead letters.",
            "ja": "特定の接頭辞のユーザーへの配信が必ず失敗し、DLQ に入ります。",
        },
        section="4.4",
        stuck_at="producer",
        failure_mode="FM-NOTI-04",
        inject=damage.refuse_one_user,
        heal=damage.accept_every_user,
        helps=("fix_producer",),
        harms=("redrive_delivery",),
    ),
    Fault(
        "dlq_mismatch",
        {
            "en": "A FAILED notification without its dead letter, and a dead letter of one that was sent.",
            "ja": "DLQ のない FAILED 通知と、送信済み通知に残る DLQ を作ります。",
        },
        section="5.3",
        stuck_at=None,
        failure_mode="FM-NOTI-05",
        inject=damage.part_dead_letters,
        heal=damage.forget,
        helps=("reconcile_dead_letters",),
        harms=("redrive_delivery",),
    ),
    Fault(
        "db_read_only",
        {
            "en": "The services' database was set to read-only; the processes live on and connect again.",
            "ja": "サービスのデータベースが読み取り専用に設定されます。プロセスは生きており、再接続します。",
        },
        section="4.1",
        stuck_at="database",
        failure_mode="FM-DB-04",
        inject=damage.make_read_only(damage.THE_DATABASE),
        heal=damage.make_writable(damage.THE_DATABASE),
        helps=("database_writable",),
    ),
    Fault(
        "server_read_only",
        {
            "en": "The whole server takes no more writes; no setting of role or database shows it.",
            "ja": "サーバー全体が書き込みを受け付けません。ロールや DB の設定には現れません。",
        },
        section="4.1",
        stuck_at="database",
        failure_mode="FM-DB-04",
        inject=damage.make_read_only(damage.THE_SERVER),
        heal=damage.make_writable(damage.THE_SERVER),
        helps=("database_writable",),
    ),
    Fault(
        "password_changed",
        {
            "en": "The password of the applications' database role was changed and their sessions were ended.",
            "ja": "アプリの DB ロールのパスワードが変更され、セッションが切断されます。",
        },
        section="4.1",
        stuck_at="database",
        failure_mode="FM-DB-05",
        inject=damage.change_password,
        heal=damage.restore_password,
        helps=("database_password",),
        harms=("restart_notification", "restart_entitlement"),  # they live on, and would not come up again
    ),
    Fault(
        "relay_disabled",
        {
            "en": "The relay is switched off by its flag; the API still takes requests.",
            "ja": "relay がフラグで無効になります。API は受け付け続けます。",
        },
        section="4.1",
        stuck_at="relay",
        failure_mode="FM-OB-04",
        inject=damage.with_settings("entitlement", ENTITLEMENT_OUTBOX_ENABLED="false"),
        heal=damage.with_settings("entitlement", ENTITLEMENT_OUTBOX_ENABLED="true"),
        helps=("switch_on_relay", "undo_settings"),
    ),
    Fault(
        "notification_frozen",
        {
            "en": "The notification process is frozen: its connections stay, and it does nothing.",
            "ja": "notification のプロセスが凍結します。接続は残りますが、何もしません。",
        },
        section="4.1",
        stuck_at="subscriber",
        failure_mode="FM-NATS-01",
        inject=_freeze("notification"),
        heal=_restart("notification"),
        helps=("restart_notification",),
        also_right=("delivery_worker", "FM-NOTI-06"),
    ),
    Fault(
        "entitlement_frozen",
        {
            "en": "The entitlement process is frozen: API and relay fall silent in the same second.",
            "ja": "entitlement のプロセスが凍結します。API と relay が同時に止まります。",
        },
        section="4.1",
        stuck_at="relay",
        failure_mode="FM-OB-01",
        inject=_freeze("entitlement"),
        heal=_restart("entitlement"),
        helps=("restart_entitlement",),
        also_right=("producer",),
    ),
    Fault(
        "nats_disabled",
        {
            "en": "Notification runs with NATS switched off: delivery polls on, and nobody is subscribed.",
            "ja": "notification の NATS がフラグで無効になります。配信は動きますが、誰も受信しません。",
        },
        section="4.1",
        stuck_at="subscriber",
        failure_mode="FM-NATS-01",
        inject=damage.with_settings("notification", NOTIFICATION__NATS_ENABLED="false"),
        heal=damage.with_settings("notification", NOTIFICATION__NATS_ENABLED="true"),
        helps=("nats_settings", "undo_settings"),
    ),
    Fault(
        "wrong_nats_address",
        {
            "en": "Notification was given a wrong address of the broker: it ends at each start, again and again.",
            "ja": "notification に誤ったブローカーのアドレスが設定され、起動のたびに終了します。",
        },
        section="4.1",
        stuck_at="subscriber",
        failure_mode="FM-NOTI-08",
        inject=_misdirect,
        heal=_direct,
        helps=("nats_settings", "undo_settings"),
        also_right=("delivery_worker", "FM-NATS-05"),
    ),
    Fault(
        "consumer_deleted",
        {
            "en": "Only the consumer is gone: publishing goes on, and nobody is subscribed.",
            "ja": "consumer だけが失われます。publish は続きますが、誰も受信しません。",
        },
        section="4.1",
        stuck_at="jetstream",
        failure_mode="FM-NATS-06",
        inject=damage.delete_consumer,
        heal=_restart("notification"),
        helps=("restart_notification",),
        also_right=("subscriber", "FM-NATS-01"),
    ),
    Fault(
        "stream_full",
        {
            "en": "The stream entitlement-events has reached its limit of messages and refuses new ones.",
            "ja": "stream entitlement-events がメッセージ数の上限に達し、新しいものを拒否します。",
        },
        section="4.1",
        stuck_at="jetstream",
        failure_mode="FM-NATS-04",
        inject=damage.limit_stream(full=True),
        heal=damage.limit_stream(full=False),
        # At its start an application updates the stream to its own idea of it, which has no limit.
        helps=("raise_stream_limit", "restart_entitlement", "restart_notification"),
    ),
    Fault(
        "receiver_refuses_some",
        {
            "en": "The receiver refuses the notifications of one user in sixteen; all others pass.",
            "ja": "送信先が 16 人に 1 人の通知を拒否します。ほかのユーザーには届きます。",
        },
        section="4.1",
        stuck_at="receiver",
        failure_mode="FM-NOTI-04",
        inject=damage.refuse_users(16),
        heal=damage.refuse_users(0),
        helps=("fix_receiver",),
        harms=("hold_delivery",),  # it stops also what passes
        also_right=("FM-NOTI-03",),
    ),
)


def find(name: str) -> Fault:
    """The fault of that name; SandboxError names what was meant when there is none."""
    known = {fault.name: fault for fault in CATALOGUE}
    if name not in known:
        raise SandboxError(f"no fault {name!r}: {did_you_mean(name, list(known))}")
    return known[name]
