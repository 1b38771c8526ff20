"""How each fault of the sandbox shows without the runbook: in the tables, at the broker, in logs and in the services.

A signature is asked again and again until it holds. It takes the sandbox and how the flow was before the fault.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import psutil
import psycopg
import requests

from runbook_lib.book import catalog
from runbook_lib.checks.context import Context
from runbook_lib.gameday.sandbox import broker
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.packs.entitlement.evidence import services, sessions
from runbook_lib.packs.entitlement.evidence.services import LoopActivity, RequestResult, ServiceSeen
from runbook_lib.packs.entitlement.evidence.sessions import SessionsSeen, SessionState
from runbook_lib.packs.entitlement.facts import EntitlementFacts
from runbook_lib.sources.source import SourceError
from tests.drills import probe
from tests.drills.judge import took_effect
from tests.kit.drills import ask, consumer, monitor, streams
from tests.kit.steps import open_target

Signature = Callable[[Sandbox, probe.FlowSample], bool]
#: How long the flow is looked at, in seconds, for its rates.
WHILE_S = 3.0

BACKLOG = "SELECT count(*) FROM notification.notifications WHERE status = 'PENDING' AND next_retry_at < now()"
OUTBOX = "SELECT count(*) FROM entitlement.outbox_events WHERE "
QUEUE = "SELECT count(*) FROM notification.notifications WHERE "
UNPUBLISHED = OUTBOX + "status <> 'PUBLISHED' AND created_at < now() - '2s'::interval"
SINCE_PROCESSED = "SELECT extract(epoch FROM now() - max(processed_at)) FROM notification.processed_events"
SINCE_SENT = "SELECT extract(epoch FROM now() - max(sent_at)) FROM notification.notifications"
PUBLISHED_LATELY = OUTBOX + "published_at > now() - interval '6 s'"
DRILL_OUTBOX = OUTBOX + "aggregate_key LIKE 'drill-%' AND status = 'FAILED' AND attempt_count = 10 AND last_error "
GIVEN_UP = "SELECT count(*) FROM notification.notification_nats_dlq"
#: Events published a while ago of which the next hop knows nothing.
UNPROCESSED = (
    "SELECT count(*) FROM entitlement.outbox_events LEFT JOIN notification.processed_events p USING (event_id)"
    " WHERE status = 'PUBLISHED' AND published_at < now() - interval '2 s' AND p.event_id IS NULL"
)
WITHOUT_NOTIFICATION = (
    "SELECT count(*) FROM notification.processed_events LEFT JOIN notification.notifications n USING (event_id)"
    " WHERE n.event_id IS NULL"
)
LAST_ERROR = "SELECT coalesce(string_agg(DISTINCT last_error, '|'), '') FROM entitlement.outbox_events"


# What signatures are made of -----------------------------------------------------------------------------------


def counts(query: str, at_least: float, at_most: float = math.inf) -> Signature:
    """Return the signature of a count that lies within its limits."""
    return lambda sandbox, before: bool(at_least <= ask(sandbox, query) <= at_most)


def all_of(*signatures: Signature) -> Signature:
    """Return the signature of several at once."""
    return lambda sandbox, before: all(signature(sandbox, before) for signature in signatures)


def worsens(name: str) -> Signature:
    """Return the signature of a number of the probe that is clearly worse than before the fault."""
    return lambda sandbox, before: name in took_effect(before, probe.sample_flow(sandbox, WHILE_S))


def logs(program: str, *phrases: str, times: int = 1) -> Signature:
    """Return the signature of words in a program's log, each at least so often."""
    return lambda sandbox, before: all(sandbox.log(program).count(phrase) >= times for phrase in phrases)


def part(sandbox: Sandbox, app: str, name: str) -> int:
    pid: int = sandbox.pod(app)["parts"][name]
    return pid


def alive(sandbox: Sandbox, app: str, name: str) -> bool:
    try:
        return psutil.Process(part(sandbox, app, name)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def part_is(app: str, name: str, *, there: bool) -> Signature:
    """Return the signature of a part of a pod that is alive, or dead."""
    return lambda sandbox, before: alive(sandbox, app, name) is there


# What the services and their sessions say ----------------------------------------------------------------------


def context(sandbox: Sandbox) -> Context:
    return open_target("3", sandbox.state.target())


def look(sandbox: Sandbox, gap_s: float = 2.5) -> tuple[dict[str, ServiceSeen], dict[str, SessionsSeen]]:
    """Return what two samples come to, as a step takes them."""
    rb = context(sandbox)
    given = rb.given()
    seen: list[dict[str, Any]] = []
    for pause in (gap_s, 0.0):
        frames = services.collect(rb)
        try:
            with rb.snapshot() as db:
                frames |= sessions.collect(db, EntitlementFacts().database_role)
        except SourceError:
            """The database is out of reach for the runbook as well."""
        seen.append(frames)
        time.sleep(pause)
    frames = services.concat_samples(*seen)
    return services.read(frames, given), sessions.read(frames, given)


def loop_is(service: str, loop: str, *doing: LoopActivity, says: SessionState | None = None) -> Signature:
    """Return the signature of a loop by what its service, and its sessions, tell of it."""

    def found(sandbox: Sandbox, before: probe.FlowSample) -> bool:
        seen, held = look(sandbox)
        return seen[service].loops[loop].doing in doing and says in (None, held[service].says)

    return found


RELAY_RUNS = loop_is("entitlement", "relay", LoopActivity.RUNS)


def bound(there: bool) -> Signature:
    return lambda sandbox, before: bool(consumer(sandbox).get("push_bound")) is there


# One of each fault ---------------------------------------------------------------------------------------------


def delivery_stands_still(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    return (
        ask(sandbox, BACKLOG) > 20 and ask(sandbox, SINCE_PROCESSED) < 3 and bool(consumer(sandbox).get("push_bound"))
    )


def subscriber_is_unbound(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    info = consumer(sandbox)
    return "push_bound" not in info and info["num_pending"] > 20 and alive(sandbox, "notification", "subscriber")


def broker_is_gone(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    try:
        monitor(sandbox, "/varz")
    except requests.ConnectionError:
        return bool(ask(sandbox, OUTBOX + "last_error LIKE 'Timeout or no response%'"))
    return False


def broker_refuses(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    closed = monitor(sandbox, "/connz?state=closed&sort=stop")["connections"]
    refused = [connection for connection in closed if connection["reason"] == "Authentication Failure"]
    return len(refused) > 5 and bool(ask(sandbox, UNPUBLISHED) > 5) and "push_bound" not in consumer(sandbox)


def table_is_locked(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    try:
        ask(sandbox, BACKLOG)
    except psycopg.errors.LockNotAvailable:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pg_blocking_pids(pid) <> '{}'"
        )
        critical_s = catalog.load().limits["locks.wait"].critical
        # Before that the lock is a WARNING only, and the steps that cannot read the table are UNKNOWN, which is worse.
        old = f"SELECT count(*) FROM pg_locks WHERE NOT granted AND waitstart < now() - interval '{critical_s} s'"
        stuck = ask(sandbox, waiting) == 2 and ask(sandbox, old) >= 1 and ask(sandbox, SINCE_PROCESSED) > 2
        return bool(stuck) and loop_is("notification", "delivery", LoopActivity.LONG, says=SessionState.BLOCKED)(
            sandbox, before
        )
    return False


def connections_are_gone(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    try:
        psycopg.connect(sandbox.state.addresses.app_url).close()
        return False  # a slot that a monitor just left
    except psycopg.OperationalError as error:
        refused = "remaining connection slots are reserved" in str(error) or "too many clients" in str(error)
    # The runbook's own role has a reserved slot.
    return refused and bool(ask(sandbox, SINCE_PROCESSED) > 2)


def sends_are_retried(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    retried = QUEUE + "status <> 'SENT' AND attempt_count > 1"
    return bool(ask(sandbox, retried) > 5 and ask(sandbox, SINCE_PROCESSED) < 3 and ask(sandbox, SINCE_SENT) > 2)


def nothing_lags(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    found = consumer(sandbox)
    return bool(found["num_pending"] + found["num_ack_pending"] == 0)


def one_is_sent_twice(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    received = [line.partition("received id=")[2][:36] for line in sandbox.log("receiver").splitlines()]
    received = [line for line in received if line]
    lost = "notification sent but lock was lost" in sandbox.log("notification") + sandbox.log("second-worker")
    return lost and len(set(received)) < len(received)


def every_loop_fails(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    """A read-only database: the loops run, each run fails, and health says that all is well."""
    seen, held = look(sandbox, 4)
    for service, loop in (("entitlement", "relay"), ("notification", "delivery")):
        found = seen[service].loops[loop]
        if (found.doing, found.exception, found.share) != (LoopActivity.FAILS, "UncategorizedSQLException", 1.0):
            return False
        if held[service].says is not SessionState.FAILING:
            return False
    said = "PSQLException: ERROR: cannot execute INSERT in a read-only transaction" in sandbox.log("entitlement")
    return said and requests.get(f"{sandbox.state.addresses.service_url('entitlement')}/actuator/health", timeout=5).ok


def all_are_locked_out(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    seen, held = look(sandbox)
    out = all(
        seen[service].locked_out and held[service].says is SessionState.NONE for service in EntitlementFacts.services
    )
    return out and sessions.no_service_has_sessions(held)


def loop_is_off(service: str, loop: str) -> Signature:
    """Return the signature of a loop that its setting has switched off, while the other service's loops run."""

    def off(sandbox: Sandbox, before: probe.FlowSample) -> bool:
        seen, held = look(sandbox)
        other = next(s for s in EntitlementFacts.services if s != service)
        runs = {each.doing for each in seen[other].loops.values()} == {LoopActivity.RUNS}
        return (
            runs
            and seen[service].loops[loop].doing is LoopActivity.OFF
            and held[service].says is SessionState.LOOP_SILENT
        )

    return off


def process_is_frozen(service: str) -> Signature:
    """Return the signature of a process that takes connections and says nothing."""

    def frozen(sandbox: Sandbox, before: probe.FlowSample) -> bool:
        seen, held = look(sandbox, 0.1)
        silent = seen[service].answers is RequestResult.HUNG and seen[service].age_s is None
        idle = held[service].says is SessionState.FROZEN and (held[service].sessions or 0) >= 8
        info = consumer(sandbox) if service == "notification" else None
        return silent and idle and (info is None or bool(info["push_bound"] and info["num_ack_pending"] > 20))

    return frozen


def has_no_session(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    return look(sandbox, 0.1)[1]["notification"].says is SessionState.NONE


def some_are_refused(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    since = "FROM notification.notifications WHERE created_at > now() - interval '30 s'"
    tried = ask(sandbox, f"SELECT count(DISTINCT user_id) {since} AND status <> 'SENT' AND attempt_count > 0")
    sent = ask(sandbox, f"SELECT count(*) {since} AND status = 'SENT'")
    return bool(tried >= 2 and sent > 5 * tried)


def runbook_is_locked_out(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    try:
        psycopg.connect(sandbox.state.addresses.database_url).close()
    except psycopg.OperationalError as error:
        return "not permitted to log in" in str(error) and (probe.sample_flow(sandbox, WHILE_S).sent or 0) > 1
    return False


#: Faults in which one part's report, or a missing trace, misleads.
WITNESSES = (
    "receiver_unavailable",
    "receiver_denies",
    "worker_wrong_address",
    "worker_no_such_host",
    "worker_out_of_files",
    "registrations_deleted",
    "traces_deleted",
    "retention_too_short",
    "stream_purged",
    "record_deleted",
)

SIGNATURES: dict[str, Signature] = {
    "worker_stopped": all_of(delivery_stands_still, part_is("notification", "worker", there=False)),
    "worker_hung": all_of(
        delivery_stands_still,
        lambda sandbox, before: psutil.Process(part(sandbox, "notification", "worker")).status() == "stopped",
    ),
    "subscriber_deaf": subscriber_is_unbound,
    "relay_stopped": all_of(counts(UNPUBLISHED, 20), part_is("entitlement", "relay", there=False)),
    "broker_down": broker_is_gone,
    "broker_refusing": broker_refuses,
    "table_lock": table_is_locked,
    "connections_exhausted": connections_are_gone,
    "receiver_outage": sends_are_retried,
    "stream_missing": all_of(
        lambda sandbox, before: broker.STREAM not in streams(sandbox),
        counts(OUTBOX + "last_error LIKE 'Error Publishing: 503%'", 10),
        counts(PUBLISHED_LATELY, 0, 0),
    ),
    # Rows with this error alone may also be left by the restart that healed an earlier fault.
    "relay_closed": all_of(
        bound(True),
        counts(OUTBOX + "status <> 'PUBLISHED' AND last_error = 'Connection is Closed'", 10),
        counts(PUBLISHED_LATELY, 0, 0),
    ),
    "delivery_disabled": all_of(
        bound(True),
        counts(SINCE_SENT, 12),
        counts(QUEUE + "status = 'PENDING' AND next_retry_at < now()", 20),
        loop_is_off("notification", "delivery"),
    ),
    "clock_skew": counts(QUEUE + "sent_at > now() + interval '50 s'", 5),
    "second_worker": one_is_sent_twice,
    "dedupe_broken": counts(
        "SELECT count(*) FROM (SELECT FROM notification.notifications"
        " WHERE created_at > now() - interval '10 minutes' GROUP BY event_id HAVING count(*) > 1) duplicates",
        5,
    ),
    "bad_payload": counts(DRILL_OUTBOX + "= 'outbox payload parse failure'", 5),
    "unknown_event_type": counts(DRILL_OUTBOX + "LIKE 'unknown event type: %'", 5),
    "undecodable_message": all_of(
        lambda sandbox, before: streams(sandbox)[broker.TERMINATED_STREAM]["state"]["messages"] >= 3,
        counts(GIVEN_UP, 3, 3),
    ),
    "events_lost": all_of(
        nothing_lags,
        counts(GIVEN_UP, 0, 0),
        counts(UNPROCESSED, 3),
    ),
    "exhausted_outbox": all_of(bound(True), counts(DRILL_OUTBOX + "LIKE 'Timeout or no response%'", 4, 4)),
    "failing_user": counts(
        "SELECT count(*) FROM notification.notifications JOIN notification.notification_dlq USING (notification_id)"
        " WHERE user_id LIKE 'drill-%' AND status = 'FAILED' AND attempt_count = 10"
        " AND error_message = 'notification delivery failure injection matched userId=' || user_id",
        12,  # half of them are of an hour ago
    ),
    "dlq_mismatch": all_of(
        counts(
            "SELECT count(*) FROM notification.notifications LEFT JOIN notification.notification_dlq d"
            " USING (notification_id) WHERE status = 'FAILED' AND d.dlq_id IS NULL",
            1,
        ),
        counts(
            "SELECT count(*) FROM notification.notifications JOIN notification.notification_dlq USING (notification_id)"
            " WHERE status = 'SENT'",
            1,
        ),
    ),
    "db_read_only": every_loop_fails,
    "server_read_only": every_loop_fails,
    "password_changed": all_are_locked_out,
    "relay_disabled": loop_is_off("entitlement", "relay"),
    "notification_frozen": process_is_frozen("notification"),
    "entitlement_frozen": process_is_frozen("entitlement"),
    "nats_disabled": all_of(bound(False), loop_is("notification", "delivery", LoopActivity.RUNS)),
    "wrong_nats_address": all_of(
        logs("notification", "Application run failed", times=2),
        logs("notification", "Caused by: java.net.ConnectException: Connection refused"),
        has_no_session,
        RELAY_RUNS,
    ),
    "consumer_deleted": all_of(
        lambda sandbox, before: "consumer_detail" not in streams(sandbox)[broker.STREAM], RELAY_RUNS
    ),
    "stream_full": all_of(
        lambda sandbox, before: "maximum messages exceeded [10077]" in ask(sandbox, LAST_ERROR), RELAY_RUNS
    ),
    "receiver_refuses_some": all_of(
        some_are_refused, logs("notification", "IllegalStateException: receiver answered 503")
    ),
    "worker_denied": worsens("sent"),
    "api_denied": worsens("created"),
    "subscriber_denied": worsens("processed"),
    "role_at_limit": worsens("sent"),
    "outbox_locked": worsens("created"),
    "rows_locked": worsens("sent"),
    "slow_statements": worsens("sent"),
    "database_down": worsens("created"),
    "subscriber_frozen": worsens("processed"),
    "notification_stopped": worsens("sent"),
    "entitlement_stopped": worsens("published"),
    "services_stopped": worsens("created"),
    "migration_failed": all_of(logs("notification", "Validate failed"), worsens("oldest_s")),
    "wrong_database_address": worsens("oldest_s"),
    "delivery_held": worsens("oldest_s"),
    "receiver_hangs": worsens("sent"),
    "receiver_slow": worsens("oldest_s"),
    "broker_frozen": worsens("published"),
    "consumer_paused": worsens("processed"),
    "runbook_locked_out": runbook_is_locked_out,
    # Settings and people
    "statement_timeout": logs("entitlement", "canceling statement due to statement timeout", times=3),
    "synchronous_standby": counts("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 2),
    "partial_grant": all_of(counts(SINCE_SENT, 3), logs("notification", "permission denied for table notifications")),
    "row_security": all_of(worsens("processed"), logs("notification", "violates row-level security policy")),
    "check_constraint": all_of(worsens("processed"), logs("notification", "notifications_user_check")),
    "trigger_rejects_mark": all_of(counts(SINCE_SENT, 3), logs("notification", "not allowed")),
    "trigger_drops_rows": counts(WITHOUT_NOTIFICATION, 5),
    "half_migration": all_of(worsens("processed"), logs("notification", "violates not-null constraint")),
    "column_renamed": all_of(worsens("published"), logs("entitlement", "last_error", "does not exist")),
    "message_size": lambda sandbox, before: "message size exceeds maximum allowed" in ask(sandbox, LAST_ERROR),
    "stream_subject": lambda sandbox, before: "503 No Responders" in ask(sandbox, LAST_ERROR),
    "stream_retention": all_of(nothing_lags, counts(UNPROCESSED, 3)),
    "consumer_filter": all_of(nothing_lags, counts(UNPROCESSED, 10)),
    "consumer_subject": all_of(worsens("processed"), bound(False), part_is("notification", "subscriber", there=True)),
    "relay_batch": all_of(worsens("waiting"), RELAY_RUNS),
    "delivery_batch": all_of(worsens("waiting"), loop_is("notification", "delivery", LoopActivity.RUNS)),
    "wrong_version": all_of(logs("notification", "Validate failed", times=2), has_no_session),
    "two_versions": logs("second-worker", "receiver unreachable: Connection refused", times=3),
    "receiver_rate_limit": all_of(worsens("sent"), logs("notification", "receiver answered 429", times=3)),
    # What counts as sent has not arrived.
    "receiver_error_body": all_of(worsens("sent"), counts(SINCE_SENT, 0, 3)),
    "rows_postponed": counts(QUEUE + "status = 'PENDING' AND next_retry_at > now() + interval '20 hours'", 20),
    "rows_deleted": counts(WITHOUT_NOTIFICATION, 20),
    "stream_replayed": worsens("doubled"),
    # Sends that fail for other reasons than a receiver that is down
    "receiver_unavailable": logs("notification", "receiver answered 503", times=3),
    "receiver_denies": logs("notification", "receiver answered 401", times=3),
    "worker_wrong_address": logs("notification", "receiver unreachable: Connection refused", times=3),
    "worker_no_such_host": logs("notification", "receiver unreachable: Name or service not known", times=3),
    "worker_out_of_files": logs("notification", "receiver unreachable: Too many open files", times=3),
    # Removed traces
    "registrations_deleted": all_of(nothing_lags, counts(UNPROCESSED, 50)),
    "traces_deleted": all_of(nothing_lags, counts(UNPROCESSED, 50)),
    "retention_too_short": all_of(nothing_lags, counts(UNPROCESSED, 50)),
    "stream_purged": all_of(nothing_lags, counts(UNPROCESSED, 3)),
    "record_deleted": all_of(counts(GIVEN_UP, 0, 0), counts(UNPROCESSED, 3)),
}
