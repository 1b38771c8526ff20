"""Section 2: check that every source in scope is reachable, with which user, and configured as expected."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.checks.check import Check, Collect, Judge, failures, unknown_from_error
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import (
    FrameCollector,
    require_present,
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
    worst,
)
from runbook_lib.model.frames import row
from runbook_lib.model.unread import UnreadError
from runbook_lib.packs.entitlement import retention
from runbook_lib.packs.entitlement.checks import publish
from runbook_lib.packs.entitlement.checks.loop import TableLoop
from runbook_lib.packs.entitlement.facts import EntitlementFacts, facts_of
from runbook_lib.packs.entitlement.rows import Activity, Holder, Notifications, Outbox, OutboxAges, Registered
from runbook_lib.packs.jetstream import quorum
from runbook_lib.packs.jetstream.consumer import none_if_missing
from runbook_lib.packs.postgres import reach
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

T = TypeVar("T")

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

NANOSECONDS = 1e9


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
    """2.2: query the outbox's backlog, its last publish and its lease holders. Frames: sessions, outbox, holders."""
    with rb.snapshot() as db:
        return {
            "sessions": db.ask("database/sessions"),
            "outbox": db.ask("outbox/backlog"),
            "holders": db.ask("outbox/holders"),
        }


def judge_relay(frames: Frames, given: JudgeInput) -> Finding:
    """2.2: judge whether the relay claims and publishes, and name its workers."""
    loop = publish.read_loop(rows.one(frames["outbox"], Outbox))
    queue, waits = loop.queue, given.limits.value("outbox.oldest_due", loop.queue.oldest_s)
    state = _flow_state(waits, loop, given)
    names = ", ".join(h.locked_by for h in rows.each(frames.get("holders"), Holder) if h.locked_by)
    return judged(
        say(
            f"scope.relay_{state}",
            published=_format_age(loop.finished_s),
            due=queue.ready,
            oldest=queue.oldest_s,
            waiting=queue.waiting_retry,
        ),
        [Value("outbox.due", queue.ready, "rows"), waits, Value("relay.last_publish", loop.finished_s, "s")],
        at_least=Status.WARNING if state == "retries" else Status.OK,
        notes=(say("scope.held_by", names=names) if names else say("scope.held_by_nobody"),),
        signals=given.evidence("scope.relay_late") if state == "late" else (),
        hops=(Hop("relay", waiting=queue.ready, oldest_s=queue.oldest_s, alive=names or None, late=state == "late"),),
        next_sections=("4.1",) if state != "well" else (),
        show=("holders", "sessions"),
    )


def _flow_state(waits: Value, loop: TableLoop | None, given: JudgeInput) -> str:
    """Return "late" if rows wait for too long, "retries" if they wait for a next try and none succeeds, else "well"."""
    if waits.status in (Status.WARNING, Status.CRITICAL):
        return "late"
    pattern = given.number("tries.pattern")
    retries = loop is not None and loop.queue.waiting_retry >= pattern and not loop.finishes(given)
    return "retries" if retries else "well"


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
    """2.4: judge whether events are registered, queued and delivered."""
    schema = reach.judge_schema(frames, given, NOTIFICATION)
    if not frames.keys() & {"processed", "sent", "backlog"}:
        return schema
    processed, sent = rows.one(frames.get("processed"), Registered), rows.first(frames.get("sent"), Activity)
    queue = rows.first(frames.get("backlog"), Notifications)
    due, oldest_s, waiting = (queue.ready, queue.oldest_s, queue.waiting_retry) if queue else (None, None, None)
    arrived, left, workers = (sent.arrived_1m, sent.sent_1m, sent.workers) if sent else (None, None, None)
    since_sent = seconds_between(sent.last_sent, sent.now) if sent else None
    since_processed = seconds_between(processed.last_processed, processed.now)
    waits = given.limits.value("backlog.oldest_due", oldest_s)
    loop = TableLoop("delivery", queue, None, since_sent, None) if queue and sent else None
    state = _flow_state(waits, loop, given)
    clean_up = retention.judge_clean_up(frames, given)
    activity = say(
        f"scope.notification_{state}",
        processed=_format_age(since_processed) if "processed" in frames else say("scope.not_read"),
        sent=_format_age(since_sent) if sent else say("scope.not_read"),
        due=due,
        oldest=oldest_s,
        waiting=waiting,
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
        at_least=worst([schema.status, Status.WARNING if state == "retries" else Status.OK]),
        notes=(*schema.notes, *clean_up.notes),
        signals=(
            *schema.signals,
            *(given.evidence("scope.delivery_late") if state == "late" else ()),
            *clean_up.signals,
        ),
        hops=(
            Hop("subscriber", rate_out=processed.processed_1m),
            Hop(
                "delivery_worker",
                rate_in=arrived,
                rate_out=left,
                waiting=due,
                oldest_s=oldest_s,
                alive=workers,
                late=state == "late",
            ),
        ),
        next_sections=("4.1",) if state == "late" else (),
        show=("migrations",),
    )


# The broker -------------------------------------------------------------------------------------------------


def collect_broker(rb: Context) -> Frames:
    """2.3: query the broker, its streams and its durable consumers; each may be missing on its own.

    Frames: server (version, server, user: text; jetstream: flag; clients, slow_consumers: number; started_at: time),
    streams (stream, subjects: text; exists: flag; duplicate_window_s: s; messages; first_seq, last_seq: id; created:
    text), consumers (stream, durable, subject, deliver_policy: text; exists, bound, push: flag; ack_wait_s: s;
    max_deliver: number; pending, unacknowledged: messages); in a cluster replicas (fields of `quorum.Member`), nodes.
    """
    require_present(rb, "jetstream")
    names = facts_of(rb).streams
    info = rb.source("jetstream").server()
    server = {
        "version": info.get("version"),
        "server": info.get("server_name"),
        "jetstream": bool(info.get("jetstream")),
        "user": rb.source("jetstream").user,
        "clients": None,
        "slow_consumers": None,
        "started_at": None,
    }
    parts, members = FrameCollector(), list[quorum.Member]()
    with parts.part("monitor") as answers:
        varz, cluster = rb.source("nats_monitor").servers(), rb.source("nats_monitor").cluster()
        server |= {
            "clients": _sum_counts(varz, "connections"),
            "slow_consumers": _sum_counts(varz, "slow_consumers"),
            # The broker was away only if no node has run for longer.
            "started_at": min((pd.Timestamp(v["start"]) for v in varz if v.get("start")), default=None),
        }
        answers["nodes"] = quorum.nodes(cluster)
        members += quorum.meta(cluster)
    streams, consumers = [], []
    for stream, durable in names.durables.items():
        found = none_if_missing(partial(rb.source("jetstream").stream, stream)) or {}
        config, state = found.get("config", {}), found.get("state", {})
        members += quorum.members(stream, found)
        streams.append(
            {
                "stream": stream,
                "exists": bool(found),
                "subjects": " ".join(config.get("subjects") or []),
                "duplicate_window_s": _to_seconds(config.get("duplicate_window")),
                "messages": state.get("messages"),
                "first_seq": state.get("first_seq"),
                "last_seq": state.get("last_seq"),
                "created": found.get("created"),
            }
        )
        consumer = none_if_missing(partial(rb.source("jetstream").consumer, stream, durable)) if found else None
        config = consumer.config if consumer else {}
        members += quorum.members(durable, consumer.info if consumer else {})
        consumers.append(
            {
                "stream": stream,
                "durable": durable,
                "exists": consumer is not None,
                "bound": consumer is not None and consumer.bound,
                "push": bool(config.get("deliver_subject")),
                "subject": " ".join(consumer.subjects) if consumer else "",
                "ack_wait_s": _to_seconds(config.get("ack_wait")),
                "max_deliver": config.get("max_deliver"),
                "deliver_policy": config.get("deliver_policy"),
                "pending": consumer and consumer.num_pending,
                "unacknowledged": consumer and consumer.num_ack_pending,
            }
        )
    return parts.frames() | {
        "server": row(**server),
        "streams": pd.DataFrame(streams),
        "consumers": pd.DataFrame(consumers),
        "replicas": rows.frame(members, quorum.Member),
    }


def _to_seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / NANOSECONDS


def _sum_counts(answers: list[dict[str, Any]], name: str) -> int | None:
    """Return the sum over all nodes; None if a node does not report the value."""
    counts = [a.get(name) for a in answers]
    return None if None in counts else sum(c for c in counts if c is not None)


class BrokerServer(rows.Row):
    """The broker, with the values of its monitoring port."""

    version: str | None = None
    user: str = ""
    clients: int | None = None
    slow_consumers: int | None = None
    started_at: pd.Timestamp | None = None


class StreamConfig(rows.Row):
    """A stream that should exist."""

    stream: str = ""
    exists: bool = False
    subjects: str = ""
    duplicate_window_s: float | None = None


class ConsumerConfig(rows.Row):
    """A durable consumer that should exist."""

    stream: str = ""
    durable: str = ""
    exists: bool = False
    bound: bool = False
    push: bool = False
    subject: str = ""
    ack_wait_s: float | None = None
    max_deliver: int | None = None
    deliver_policy: str | None = None


def _find_differences(streams: list[StreamConfig], consumers: list[ConsumerConfig], given: JudgeInput) -> list[str]:
    """List the settings that differ from those of the services; unreported values are not listed."""
    subjects = {s.stream: s.subjects.split() for s in streams}
    window, ack_wait = given.number("broker.duplicate_window"), given.number("broker.ack_wait")
    found = [
        f"{s.stream}: duplicate_window {s.duplicate_window_s} s"
        for s in streams
        if s.exists and s.duplicate_window_s not in (None, window)
    ]
    for c in consumers:
        matches = {
            f"ack_wait {c.ack_wait_s} s": c.ack_wait_s in (None, ack_wait),
            f"max_deliver {c.max_deliver}": c.max_deliver in (None, given.number("broker.max_deliver")),
            f"deliver_policy {c.deliver_policy}": c.deliver_policy in (None, "all"),
            f"filter {c.subject}": {*c.subject.split()} <= {*subjects.get(c.stream, [])},
        }
        found += [f"{c.durable}: {setting}" for setting, matching in matches.items() if c.exists and not matching]
    return found


def _observe_missing(missing: list[str], streams: list[StreamConfig], consumers: list[ConsumerConfig]) -> str:
    """Return the observation of what is missing: the events' stream, only its consumer, or what records lost events."""
    if streams[0].stream in missing:
        return "scope.stream_missing"
    return "scope.consumer_missing" if consumers[0].durable in missing else "scope.record_missing"


def judge_broker(frames: Frames, given: JudgeInput) -> Finding:
    """2.3: judge whether the broker is reachable, and its streams and consumers are as expected."""
    server = rows.one(frames["server"], BrokerServer)
    streams, consumers = (
        rows.each(frames.get("streams"), StreamConfig),
        rows.each(frames.get("consumers"), ConsumerConfig),
    )
    if not streams or not consumers:
        raise UnreadError("streams")
    missing = [s.stream for s in streams if not s.exists] + [c.durable for c in consumers if not c.exists]
    unbound = [c.durable for c in consumers if c.exists and c.push and not c.bound]
    events_unbound = consumers[0].durable in unbound
    differences, names = _find_differences(streams, consumers, given), ", ".join(missing)
    published = next((f.value("relay.last_publish") for f in given.earlier if f.step == "2.2"), None)
    if streams[0].stream in missing and isinstance(published, float) and published < given.number("processed.lately"):
        another = say("scope.another_broker", names=names, ago=published)
        return unknown("", Reason.ERROR, another, next_sections=("4.1",))

    monitor = failures(frames).get("monitor")
    present, nodes = sum(c.exists for c in consumers), rows.one(frames.get("nodes"), quorum.Nodes)
    broken, thin = _find_raft_problems(frames, given, nodes)
    lost = any(g.writes is False and g.name != quorum.META for g in broken)
    undeclared = monitor is not None and monitor.reason is Reason.NOT_CONFIGURED
    status = Status.WARNING if differences or undeclared or thin or nodes.partly else Status.OK
    well_key = "scope.broker_bound" if differences else "scope.broker_well"
    headline = say(well_key, version=server.version, streams=len(streams), n=present)
    if missing:
        headline, status = say("scope.broker_missing", names=names), Status.CRITICAL
    elif broken:
        headline = say("scope.cluster", group=broken[0].text, n=len(broken) - 1)
        status = Status.CRITICAL if broken[0].writes is False else Status.UNKNOWN
    elif unbound:
        headline, status = say("scope.broker_unbound", names=", ".join(unbound)), Status.WARNING
    well, restarted_s = not (missing or unbound or broken), _restarted_meanwhile(server, given)
    if well and restarted_s is not None:
        headline, status = say("scope.broker_restarted", ago=restarted_s), Status.WARNING
    return judged(
        headline,
        [
            Value("broker.version", server.version),
            Value("broker.clients", server.clients),
            Value("broker.slow_consumers", server.slow_consumers),
        ],
        at_least=status,
        notes=(
            say("scope.broker_as", user=server.user, version=server.version),
            *((say("scope.broker_differs", names="; ".join(differences)),) if differences else ()),
            *((say("scope.no_monitor", why=monitor.reason.value),) if monitor else ()),
            *((say("subscriber.nodes_unseen", seen=nodes.seen, of=nodes.of),) if nodes.partly else ()),
            *(group.text for group in (*broken[1:], *thin)),
            *((say("scope.no_start"),) if any(g.name == quorum.META and not g.writes for g in broken) else ()),
        ),
        signals=(
            *(given.evidence("scope.no_quorum") if lost else ()),
            *(given.evidence("scope.no_meta_leader") if broken and not lost and broken[0].writes is False else ()),
            *(given.evidence("scope.quorum_unclear") if broken and broken[0].writes is None else ()),
            *(given.evidence(_observe_missing(missing, streams, consumers)) if missing else ()),
            *(given.evidence("scope.unbound" if events_unbound else "scope.record_missing") if unbound else ()),
            *(given.evidence("scope.broker_well" if restarted_s is None else "scope.broker_restarted") if well else ()),
        ),
        proposals=(proposals.pods(given, "nats"), proposals.logs(given, "nats")) if broken else (),
        next_sections=("4.1",) if missing or unbound or broken else (),
        show=("streams", "consumers", *(("replicas",) if len(frames.get("replicas", ())) else ())),
    )


def _restarted_meanwhile(server: BrokerServer, given: JudgeInput) -> float | None:
    """Return the seconds since the broker's start if an event of the outbox was late already by then, else None."""
    since_s = seconds_between(server.started_at, given.as_of)
    late_s = next((f.value("outbox.oldest_due") for f in given.earlier if f.step == "2.2" and f.signals), None)
    meanwhile = since_s is not None and isinstance(late_s, float) and 0 <= since_s < late_s
    return since_s if meanwhile else None


def _find_raft_problems(
    frames: Frames, given: JudgeInput, nodes: quorum.Nodes
) -> tuple[list[quorum.RaftGroup], list[quorum.RaftGroup]]:
    """Return the Raft groups that cannot be written (certain ones first), and those that lack a node."""
    groups = quorum.groups(frames, given)
    if nodes.partly and nodes.of and nodes.seen * 2 <= nodes.of:
        # The other nodes may have elected a leader that the visible minority does not see.
        groups = [replace(g, writes=g.writes or None) if g.name == quorum.META else g for g in groups]
    broken = sorted((g for g in groups if not g.writes), key=lambda g: (g.writes is None, g.name == quorum.META))
    return broken, [g for g in groups if g.writes and g.away]


def judge_source_error(e: SourceError, given: JudgeInput) -> Finding:
    """Judge a source that does not answer; one that the target does not declare is a WARNING, not UNKNOWN."""
    if e.reason is Reason.NOT_CONFIGURED:
        return judged(say("scope.undeclared", source=e.source), at_least=Status.WARNING)
    if e.code == "no_leader":
        checks = (proposals.pods(given, "nats"), proposals.logs(given, "nats"))
        return judged(
            say("subscriber.no_leader", detail=e.detail),
            at_least=Status.CRITICAL,
            proposals=checks,
            next_sections=("4.1",),
        )
    return unknown_from_error(e, given.catalog)


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
    redis, targets = rows.first(frames.get("redis"), RedisServer), frames.get("prometheus")
    answers = [Value("redis.version", redis.version)] if redis else []
    scraped = down = None
    if targets is not None:
        scraped, down = len(targets), int((targets["value"] == 0).sum()) if len(targets) else len(targets)
        answers += [Value("prometheus.targets", scraped), Value("prometheus.targets_down", down)]
    return judged(
        say("scope.optional_down", n=down, of=scraped) if down else say("scope.optional", names=", ".join(declared)),
        answers,
        at_least=Status.WARNING if down else Status.OK,
        notes=tuple(say("unknown.not_configured", source=n) for n in undeclared),
        show=("redis", "prometheus"),
    )


def _check_schema(step: str, collect: Collect, judge: Judge) -> Check:
    needs, optional = ("tables", "indexes"), ("migrations", "partitions")
    return Check(step, collect, judge, on_error=judge_source_error, needs=needs, optional=optional)


BROKER = Check(
    "2.3", collect_broker, judge_broker, on_error=judge_source_error, needs=("server", "streams", "consumers")
)
CHECKS: tuple[Check, ...] = (
    _check_schema("2.1", collect_entitlement, judge_entitlement),
    Check("2.2", collect_relay, judge_relay, on_error=judge_source_error, needs=("outbox",)),
    BROKER,
    _check_schema("2.4", collect_notification, judge_notification),
    reach.database_check("2.5", list(EntitlementFacts.services)),
    Check("2.6", collect_optional, judge_optional),
    reach.clocks_check("2.7", lambda given: facts_of(given).lease_s, "scope.clocks_apart"),
)
