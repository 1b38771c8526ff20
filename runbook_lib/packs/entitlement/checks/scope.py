"""Section 2: check that every source in scope is reachable, with which user, and configured as expected."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.check import Check, Collect, Judge, failures, unknown_from_error
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import (
    FrameCollector,
    seconds_between,
)
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    Reason,
    Status,
    Text,
    Value,
    judged,
    replace,
    say,
    unknown,
)
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import retention
from runbook_lib.packs.entitlement.checks import publish
from runbook_lib.packs.entitlement.facts import EntitlementFacts, facts_of
from runbook_lib.packs.entitlement.rows import Activity, Holder, Notifications, Outbox, OutboxAges, Registered
from runbook_lib.packs.jetstream import reach as broker_reach
from runbook_lib.packs.jetstream.reach import BrokerSpec
from runbook_lib.packs.postgres import reach

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.settings import TargetFacts

#: The columns that the two services and this runbook rely on, and the indexes.
ENTITLEMENT = reach.Schema(
    "entitlement",
    {
        "entitlements": """user_id stock_keeping_unit status granted_at revoked_at source source_id version
            updated_at""",
        "idempotency_keys": "idem_key request_hash response_code response_body created_at expires_at",
        "outbox_events": """event_id event_type aggregate_key payload status attempt_count next_retry_at
            created_at published_at locked_by locked_at lease_until last_error""",
        "entitlement_audit": """audit_id occurred_at user_id stock_keeping_unit action source source_id
            request_id detail""",
    },
    dict.fromkeys(("entitlements_pkey", "idempotency_keys_pkey", "outbox_events_pkey", "entitlement_audit_pkey"), ""),
    """entitlements_user_updated_idx idempotency_expires_idx outbox_pick_idx outbox_inflight_lease_idx
        outbox_published_at_idx""",
    "scope/migrations_entitlement",
)
NOTIFICATION = reach.Schema(
    "notification",
    {
        "processed_events": "event_id processed_at",
        "notifications": """notification_id event_id user_id type occurred_at payload_json status locked_by
            locked_at lease_until attempt_count next_retry_at created_at sent_at""",
        "notification_dlq": "dlq_id notification_id event_id payload_json error_message created_at",
        "notification_nats_dlq": "stream_seq created_at",
    },
    {
        "processed_events_pkey": "scope.key_unusable",
        "notifications_pkey": "",
        "notification_dlq_pkey": "",
        "notification_dlq_notification_id_uniq": "",
        "notification_nats_dlq_pkey": "",
    },
    """processed_events_processed_at_idx notifications_pending_idx notifications_processing_idx
        notifications_user_idx notifications_retention_sent_failed_idx notifications_retention_active_idx
        notification_dlq_event_idx""",
    "scope/migrations_notification",
)


def _format_age(seconds: float | None) -> Text:
    return say("scope.never") if seconds is None else say("scope.ago", seconds=seconds)


# The two services -------------------------------------------------------------------------------------------


def collect_entitlement(rb: Context) -> Frames:
    """2.1: query the entitlement schema and its newest event. Frames: those of `reach.collect_schema`, last."""
    return reach.collect_schema(rb, ENTITLEMENT, {"last": OutboxAges.QUERY})


def judge_entitlement(frames: Frames, given: JudgeInput) -> Finding:
    """2.1: judge whether the schema is as expected; report the age of the newest event."""
    schema = reach.judge_schema(frames, given, ENTITLEMENT)
    if "last" not in frames:
        return schema
    newest = rows.one(frames.get("last"), OutboxAges)
    age = seconds_between(newest.last_event, newest.now)
    last = say("scope.no_event") if age is None else say("scope.last_event", seconds=age)
    return replace(
        schema,
        headline=say("scope.service", schema=schema.headline, activity=last),
        values=(*schema.values, Value("entitlement.last_event", age, "s")),
    )


def collect_relay(rb: Context) -> Frames:
    """2.2: query the outbox's backlog, its last publish and its lease holders. Frames: outbox, holders."""
    with rb.snapshot() as db:
        return {"outbox": db.ask("outbox/backlog"), "holders": db.ask("outbox/holders")}


def judge_relay(frames: Frames, given: JudgeInput) -> Finding:
    """2.2: show when the relay published, what waits for it, and under which name it works; 4.1.3 says why."""
    outbox = rows.one(frames["outbox"], Outbox)
    waits, published_s = given.limits.value("outbox.oldest_due", outbox.oldest_s), publish.read_loop(outbox).finished_s
    names = ", ".join(h.locked_by for h in rows.each(frames.get("holders"), Holder) if h.locked_by)
    return judged(
        say(
            "scope.relay",
            published=_format_age(published_s),
            due=outbox.ready,
            oldest=outbox.oldest_s if outbox.ready else None,
        ),
        [Value("outbox.due", outbox.ready, "rows"), waits, Value("relay.last_publish", published_s, "s")],
        notes=(say("scope.held_by", names=names) if names else say("scope.held_by_nobody"),),
        hops=(Hop("relay", waiting=outbox.ready, oldest_s=outbox.oldest_s, alive=names or None),),
        next_sections=_read_on(waits),
        show=("holders",),
    )


def _read_on(waits: Value) -> tuple[str, ...]:
    return ("4.1",) if waits.status in (Status.WARNING, Status.CRITICAL) else ()


def collect_notification(rb: Context) -> Frames:
    """2.4: query the notification schema, its registrations, backlog and sends.

    Frames: those of `reach.collect_schema`, processed, oldest, sent, backlog.
    """
    activity = {
        "processed": Registered.QUERY,
        "oldest": retention.Oldest.QUERY,
        "sent": Activity.QUERY,
        "backlog": Notifications.QUERY,
    }
    return reach.collect_schema(rb, NOTIFICATION, activity)


def judge_notification(frames: Frames, given: JudgeInput) -> Finding:
    """2.4: judge whether the schema is as expected; show when events were registered and delivered (4.1 says why)."""
    schema = reach.judge_schema(frames, given, NOTIFICATION)
    if not frames.keys() & {"processed", "sent", "backlog"}:
        return schema
    processed, sent = rows.one(frames.get("processed"), Registered), rows.first(frames.get("sent"), Activity)
    queue = rows.first(frames.get("backlog"), Notifications)
    due, oldest_s = (queue.ready, queue.oldest_s) if queue else (None, None)
    arrived, left, workers = (sent.arrived_1m, sent.sent_1m, sent.workers) if sent else (None, None, None)
    since_sent = seconds_between(sent.last_sent, sent.now) if sent else None
    since_processed = seconds_between(processed.last_processed, processed.now)
    waits = given.limits.value("backlog.oldest_due", oldest_s)
    clean_up = retention.judge_clean_up(frames, given)
    activity = say(
        "scope.notification",
        processed=_format_age(since_processed) if "processed" in frames else say("scope.not_read"),
        sent=_format_age(since_sent) if sent else say("scope.not_read"),
        due=due,
        oldest=oldest_s if due else None,
    )
    return judged(
        say("scope.service", schema=schema.headline, activity=activity),
        [
            *schema.values,
            Value("notification.last_processed", since_processed, "s"),
            Value("notification.last_sent", since_sent, "s"),
            Value("backlog.due", due, "rows"),
            waits,
            *clean_up.values,
        ],
        at_least=schema.status,
        notes=(*schema.notes, *clean_up.notes),
        signals=(*schema.signals, *clean_up.signals),
        hops=(
            Hop("subscriber", rate_out=processed.processed_1m),
            Hop(
                "delivery_worker",
                rate_in=arrived,
                rate_out=left,
                waiting=due,
                oldest_s=oldest_s,
                alive=workers,
            ),
        ),
        next_sections=_read_on(waits),
        show=("migrations",),
    )


# The broker -------------------------------------------------------------------------------------------------


def broker(facts: TargetFacts) -> BrokerSpec:
    """Return what the system relies on at its broker."""
    assert isinstance(facts, EntitlementFacts)  # noqa: S101 - this pack's runbook is active
    streams = facts.streams
    return BrokerSpec(
        streams.durables, "4.1", _list_documented, _published_just_now, _late_since, records=streams.records
    )


def _list_documented(given: JudgeInput) -> dict[str, dict[str, str]]:
    """Return what the services request when they create a stream or a consumer; the rest are the broker's defaults."""
    stream = {
        "duplicate_window": f"{given.number('broker.duplicate_window'):g} s",
        **{"retention": "limits", "discard": "old", "storage": "file", "no_ack": "false", "max_age": "0 s"},
        **dict.fromkeys(("max_msgs", "max_bytes", "max_msgs_per_subject", "max_msg_size"), "-1"),
    }
    consumer = {
        "ack_wait": f"{given.number('broker.ack_wait'):g} s",
        "max_deliver": f"{given.number('broker.max_deliver'):g}",
        **{"deliver_policy": "all", "ack_policy": "explicit"},
    }
    return {"stream": stream, "consumer": consumer}


def _published_just_now(given: JudgeInput) -> float | None:
    """Return the seconds since the relay's last publish if the broker worked then, as 2.2 read it; else None."""
    found = next((f.value("relay.last_publish") for f in given.earlier if f.step == "2.2"), None)
    return found if isinstance(found, float) and found < given.number("processed.lately") else None


def _late_since(given: JudgeInput) -> float | None:
    """Return how long the oldest event of the outbox has waited if 2.2 found it late, else None."""
    found = next((f.value("outbox.oldest_due") for f in given.earlier if f.step == "2.2"), None)
    late = isinstance(found, float) and given.limits["outbox.oldest_due"].reached(found)
    return found if isinstance(found, float) and late else None


# Optional sources ------------------------------------------------------------------------------------------


def collect_optional(rb: Context) -> Frames:
    """2.6: query Redis and Prometheus, if the target declares them.

    Frames: redis (version, role: text; uptime_s: s; clients: number), prometheus (job, instance: text; value: number).
    """
    parts = FrameCollector()
    with parts.part("redis") as answers:
        info = rb.source("redis").info()
        answers["redis"] = row(
            version=info.get("redis_version"),
            role=info.get("role"),
            uptime_s=info.get("uptime_in_seconds"),
            clients=info.get("connected_clients"),
        )
    with parts.part("prometheus") as answers:
        up = rb.source("prometheus").instant("up", rb.as_of)
        columns = [c for c in ("job", "instance", "value") if c in up.columns]
        answers["prometheus"] = up[columns] if columns else pd.DataFrame(columns=["job", "instance", "value"])
    return parts.frames()


class RedisServer(rows.Row):
    """The version that Redis reports."""

    version: str | None = None


def judge_optional(frames: Frames, given: JudgeInput) -> Finding:
    """2.6: judge whether the declared ones are reachable."""
    failed = failures(frames)
    undeclared = [n for n, e in failed.items() if e.reason is Reason.NOT_CONFIGURED]
    unanswered = [e for n, e in failed.items() if n not in undeclared]
    if unanswered:
        return replace(unknown_from_error(unanswered[0], given.catalog), frames=frames)
    declared = [n for n in ("redis", "prometheus") if n in frames]
    if not declared:
        return unknown("", Reason.NOT_CONFIGURED, say("scope.optional_none"))
    redis = rows.first(frames.get("redis"), RedisServer)
    return judged(
        say("scope.optional", names=", ".join(declared)),
        [Value("redis.version", redis.version)] if redis else [],
        notes=tuple(say("unknown.not_configured", source=n) for n in undeclared),
        show=("redis", "prometheus"),
    )


#: A source that the target does not declare is a WARNING.
JUDGE_ERROR = partial(broker_reach.judge_error, broker)


def _check_schema(step: str, collect: Collect, judge: Judge) -> Check:
    needs, optional = ("tables", "indexes"), ("migrations", "partitions")
    return Check(step, collect, judge, on_error=JUDGE_ERROR, needs=needs, optional=optional)


BROKER = broker_reach.check_of("2.3", broker)
CHECKS: tuple[Check, ...] = (
    _check_schema("2.1", collect_entitlement, judge_entitlement),
    Check("2.2", collect_relay, judge_relay, on_error=JUDGE_ERROR, needs=("outbox",)),
    BROKER,
    _check_schema("2.4", collect_notification, judge_notification),
    reach.database_check("2.5", list(EntitlementFacts.services)),
    Check("2.6", collect_optional, judge_optional),
    reach.clocks_check("2.7", lambda given: facts_of(given).lease_s, "scope.clocks_apart"),
)
