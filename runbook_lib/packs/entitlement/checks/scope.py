"""Section 2: check that every source in scope is reachable, with which user, and configured as expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.checks.check import Check, failures, unknown_from_error
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
from runbook_lib.packs.entitlement.checks import quorum
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Activity, Holder, Notifications, Outbox, OutboxAges, Registered
from runbook_lib.packs.postgres.locks import Connections, Pool, ServerInfo, collect_server_info
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

T = TypeVar("T")

#: The columns that the two services and this runbook rely on.
TABLES = {
    "entitlement": {
        "entitlements": """user_id stock_keeping_unit status granted_at revoked_at source source_id version
            updated_at""",
        "idempotency_keys": "idem_key request_hash response_code response_body created_at expires_at",
        "outbox_events": """event_id event_type aggregate_key payload status attempt_count next_retry_at
            created_at published_at locked_by locked_at lease_until last_error""",
        "entitlement_audit": """audit_id occurred_at user_id stock_keeping_unit action source source_id
            request_id detail""",
    },
    "notification": {
        "processed_events": "event_id processed_at",
        "notifications": """notification_id event_id user_id type occurred_at payload_json status locked_by
            locked_at lease_until attempt_count next_retry_at created_at sent_at""",
        "notification_dlq": "dlq_id notification_id event_id payload_json error_message created_at",
        "notification_nats_dlq": "stream_seq created_at",
    },
}
#: Unique indexes protect the data; the others only keep queries and claims fast.
UNIQUE_INDEXES = {
    "entitlement": "entitlements_pkey idempotency_keys_pkey outbox_events_pkey entitlement_audit_pkey",
    "notification": """processed_events_pkey notifications_pkey notification_dlq_pkey
        notification_dlq_notification_id_uniq notification_nats_dlq_pkey""",
}
INDEXES = {
    "entitlement": """entitlements_user_updated_idx idempotency_expires_idx outbox_pick_idx
        outbox_inflight_lease_idx outbox_published_at_idx""",
    "notification": """processed_events_processed_at_idx notifications_pending_idx
        notifications_processing_idx notifications_user_idx notifications_retention_sent_failed_idx
        notifications_retention_active_idx notification_dlq_event_idx""",
}

NANOSECONDS = 1e9


def _format_age(seconds: float | None) -> Text:
    return say("scope.never") if seconds is None else say("scope.ago", seconds=seconds)


# The two services -------------------------------------------------------------------------------------------


class TableColumns(rows.Row, query="scope/columns"):
    """A table and the names of its columns."""

    table_name: str = ""
    column_names: str = ""


class Index(rows.Row, query="scope/indexes"):
    """An index, and whether it is valid."""

    index_name: str = ""
    usable: bool = False


class Migration(rows.Row):
    """A migration that Flyway has run."""

    version: str | None = None
    success: bool = False


class Partitioned(rows.Row, query="scope/partitions"):
    """A table that is partitioned by time, and the days until its last partition ends."""

    table_name: str = ""
    partitions: int = 0
    ahead_d: float | None = None
    takes_the_rest: bool = False


def collect_schema(rb: Context, schema: str, activity: Mapping[str, str]) -> Frames:
    """Query tables, columns, indexes and migrations of a schema, and its activity, in one snapshot.

    `activity` has its queries by the names of their frames.
    Frames: tables, indexes, migrations, partitions, and those of the queries.
    """
    with rb.snapshot() as db:
        parts = FrameCollector()
        of_the_schema = {
            "tables": "scope/columns",
            "indexes": "scope/indexes",
            "migrations": f"scope/migrations_{schema}",
            "partitions": Partitioned.QUERY,
        }
        parts.ask(db, of_the_schema | dict(activity), schema=schema)
        return parts.frames()


def judge_schema(frames: Frames, given: JudgeInput, schema: str) -> Finding:
    """Judge whether a schema is as the services expect it; 2.1 and 2.4 share this part."""
    present = {t.table_name: t.column_names.split() for t in rows.each(frames.get("tables"), TableColumns)}
    missing = [
        f"{table}.{column}" if table in present else table
        for table, columns in TABLES[schema].items()
        for column in (columns.split() if table in present else [""])
        if column not in present.get(table, [])
    ]
    indexes = rows.each(frames.get("indexes"), Index)
    usable = {i.index_name for i in indexes if i.usable}
    unprotected = [i for i in UNIQUE_INDEXES[schema].split() if i not in usable]
    slow = [i for i in INDEXES[schema].split() if i not in usable]
    migrations = rows.each(frames.get("migrations"), Migration)
    failed = not all(m.success for m in migrations)
    partitioned = rows.each(frames.get("partitions"), Partitioned)
    bounded = [(p.ahead_d, p) for p in partitioned if p.ahead_d is not None and not p.takes_the_rest]
    ahead_d, shortest = min(bounded, key=lambda p: p[0], default=(None, Partitioned()))
    ahead = given.limits.value("partitions.ahead", ahead_d)
    ended = ahead_d is not None and ahead_d <= 0
    if missing:
        problem = say("scope.lacking", schema=schema, names=", ".join(missing[:5]), n=len(missing))
    elif unprotected:
        problem = say("scope.unprotected", schema=schema, names=", ".join(unprotected))
    elif failed:
        problem = say("scope.migration_failed", schema=schema)
    elif ahead_d is not None and ahead.status is not Status.OK:
        key = "scope.partition_ended" if ended else "scope.partition_missing"
        problem = say(key, schema=schema, table=shortest.table_name, days=abs(ahead_d))
    else:
        problem = say("scope.schema_as_expected", schema=schema, tables=len(TABLES[schema]), indexes=len(indexes))
    return judged(
        problem,
        [
            Value(f"{schema}.tables", len(TABLES[schema]) - sum(t not in present for t in TABLES[schema])),
            Value(f"{schema}.indexes_usable", len(usable)),
            Value(f"{schema}.migration", migrations[0].version if migrations else None),
            *((ahead,) if bounded else ()),
        ],
        at_least=Status.CRITICAL if missing or unprotected or failed else Status.WARNING if slow else Status.OK,
        notes=(
            *((say("scope.slow_indexes", names=", ".join(slow)),) if slow and not missing else ()),
            *(say("scope.partitioned", table=p.table_name, n=p.partitions) for p in partitioned),
        ),
        signals=(
            *(given.evidence("scope.schema_differs") if missing or failed else ()),
            *(given.evidence("scope.key_unusable") if "processed_events_pkey" in unprotected else ()),
            *(given.evidence("scope.index_unusable") if slow else ()),
            *(given.evidence("scope.partition_missing") if ended else ()),
        ),
        show=("migrations",),
    )


def collect_entitlement(rb: Context) -> Frames:
    """2.1: query the entitlement schema and its newest event. Frames: those of `collect_schema`, last."""
    return collect_schema(rb, "entitlement", {"last": OutboxAges.QUERY})


def judge_entitlement(frames: Frames, given: JudgeInput) -> Finding:
    """2.1: judge whether the schema is as expected; report the age of the newest event."""
    schema = judge_schema(frames, given, "entitlement")
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
    outbox = rows.one(frames["outbox"], Outbox)
    due, oldest = outbox.ready, outbox.oldest_s
    since = seconds_between(outbox.last_published, outbox.now)
    waits = given.limits.value("outbox.oldest_due", oldest)
    names = worker_names(frames)
    late = waits.status is not Status.OK
    fails = not late and _only_retries(outbox.waiting_retry, since, given)
    return judged(
        say(
            "scope.relay_late" if late else "scope.relay_retries" if fails else "scope.relay_well",
            published=_format_age(since),
            due=due,
            oldest=oldest,
            waiting=outbox.waiting_retry,
        ),
        [Value("outbox.due", due, "rows"), waits, Value("relay.last_publish", since, "s")],
        at_least=Status.WARNING if fails else Status.OK,
        notes=(say("scope.held_by", names=names) if names else say("scope.held_by_nobody"),),
        signals=given.evidence("scope.relay_late") if late else (),
        hops=(Hop("relay", waiting=due, oldest_s=oldest, alive=names or None, late=late),),
        next_sections=("4.1",) if late or fails else (),
        show=("holders", "sessions"),
    )


def _only_retries(waiting: float, succeeded_s: float | None, given: JudgeInput) -> bool:
    """Return whether rows wait for their next try, and none of the others has succeeded lately."""
    lately = succeeded_s is not None and succeeded_s < given.number("success.lately")
    return waiting >= given.number("tries.pattern") and not lately


def worker_names(frames: Frames) -> str:
    """Return the names of the workers that have leased rows now; "" between two batches."""
    return ", ".join(h.locked_by for h in rows.each(frames.get("holders"), Holder) if h.locked_by)


def collect_notification(rb: Context) -> Frames:
    """2.4: query the notification schema, its registrations, backlog and sends, and its lease holders.

    Frames: those of `collect_schema`, processed, oldest, sent, backlog, holders.
    """
    activity = {
        "processed": Registered.QUERY,
        "oldest": retention.Oldest.QUERY,
        "sent": "notifications/activity",
        "backlog": "notifications/backlog",
        "holders": "notifications/holders",
    }
    return collect_schema(rb, "notification", activity)


def judge_notification(frames: Frames, given: JudgeInput) -> Finding:
    """2.4: judge whether events are registered, queued and delivered."""
    schema = judge_schema(frames, given, "notification")
    if not frames.keys() & {"processed", "sent", "backlog"}:
        return schema
    processed, sent = rows.one(frames.get("processed"), Registered), rows.one(frames.get("sent"), Activity)
    queue = rows.first(frames.get("backlog"), Notifications)
    due, oldest = (queue.ready, queue.oldest_s) if queue else (None, None)
    since_processed = seconds_between(processed.last_processed, processed.now)
    since_sent = seconds_between(sent.last_sent, sent.now)
    waits = given.limits.value("backlog.oldest_due", oldest)
    claims = [h.since_claim_s for h in rows.each(frames.get("holders"), Holder) if h.since_claim_s is not None]
    values = [
        *schema.values,
        Value("notification.last_processed", since_processed, "s"),
        Value("notification.last_sent", since_sent, "s"),
        Value("backlog.due", due, "rows"),
        waits,
        *((given.limits.value("worker.heartbeat", max(claims)),) if claims else ()),
    ]
    late = any(v.status in (Status.WARNING, Status.CRITICAL) for v in values[len(schema.values) :])
    fails = queue is not None and "sent" in frames and _only_retries(queue.waiting_retry, since_sent, given)
    clean_up = retention.judge_clean_up(frames, given)
    activity = say(
        "scope.notification_late" if late else "scope.notification_retries" if fails else "scope.notification_well",
        processed=_format_age(since_processed) if "processed" in frames else say("scope.not_read"),
        sent=_format_age(since_sent) if "sent" in frames else say("scope.not_read"),
        due=due,
        oldest=oldest,
        waiting=queue.waiting_retry if queue else None,
    )
    return judged(
        say("scope.service", schema=schema.headline, activity=activity),
        [*values, *clean_up.values],
        at_least=worst([schema.status, Status.WARNING if fails else Status.OK]),
        notes=(*schema.notes, *clean_up.notes),
        signals=(
            *schema.signals,
            *(given.evidence("scope.delivery_late") if late else ()),
            *clean_up.signals,
        ),
        hops=(
            Hop("subscriber", rate_out=processed.processed_1m),
            Hop(
                "delivery_worker",
                rate_in=sent.arrived_1m if len(frames.get("sent", ())) else None,
                rate_out=sent.sent_1m if len(frames.get("sent", ())) else None,
                waiting=due,
                oldest_s=oldest,
                alive=worker_names(frames) or None,
                late=waits.status in (Status.WARNING, Status.CRITICAL),
            ),
        ),
        next_sections=("4.1",) if late else (),
        show=("migrations", "holders"),
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
    info = rb.jetstream.server()
    server = {
        "version": info.get("version"),
        "server": info.get("server_name"),
        "jetstream": bool(info.get("jetstream")),
        "user": rb.jetstream.user,
        "clients": None,
        "slow_consumers": None,
        "started_at": None,
    }
    parts, members = FrameCollector(), list[quorum.Member]()
    with parts.part("monitor") as answers:
        varz, cluster = rb.nats_monitor.servers(), rb.nats_monitor.cluster()
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
        found = _none_if_missing(partial(rb.jetstream.stream, stream)) or {}
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
        consumer = _none_if_missing(partial(rb.jetstream.consumer, stream, durable)) if found else None
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


def _none_if_missing(query: Callable[[], T]) -> T | None:
    """Return the broker's reply, or None if it reports that the stream or consumer does not exist."""
    try:
        return query()
    except SourceError as e:
        if e.code in ("stream_not_found", "consumer_not_found"):
            return None
        raise


# The database -----------------------------------------------------------------------------------------------


def collect_database(rb: Context) -> Frames:
    """2.5: query the server, the runbook's role and its rights, from the catalog only.

    Frames: server, rights, connections, sessions, those of `locks.collect_server_info`; window (asked: flag;
    behind_s: s) if the target declares a replica for queries about the window.
    """
    with rb.snapshot() as db:
        window = {}
        if rb.target.replica_url is not None:
            at = db.of_the_window
            window["window"] = row(asked=at is not None, behind_s=at and at.behind_s)
        return (
            window
            | {
                "server": db.ask("scope/server"),
                "rights": db.ask("scope/rights"),
                "connections": db.ask("database/connections"),
                "sessions": db.ask("database/sessions"),
            }
            | collect_server_info(rb, db)
        )


class DatabaseServer(rows.Row, query="scope/server"):
    """The server, and the runbook's role in it."""

    role: str | None = None
    database: str | None = None
    version: str | None = None
    superuser: bool = False
    monitor: bool = False
    may_use_reserved: bool = False
    read_only: str | None = None
    track_commit_timestamp: str | None = None


class ReplicaWindow(rows.Row):
    """Whether the declared replica answers the queries about the window, and how far it is behind."""

    asked: bool = False
    behind_s: float | None = None


class TablePrivilege(rows.Row, query="scope/rights"):
    """The role's rights on a table."""

    table_name: str = ""
    may_read: bool = False
    may_write: bool = False


def judge_database(frames: Frames, given: JudgeInput) -> Finding:
    """2.5: judge whether the role can read all tables; report its rights, the version and reserved connections."""
    server = rows.one(frames["server"], DatabaseServer)
    rights = rows.each(frames.get("rights"), TablePrivilege)
    unreadable, writable = ([r.table_name for r in rights if not r.may_read], [r for r in rights if r.may_write])
    connections = rows.one(frames["connections"], Connections)
    used = 100 * connections.used / connections.usable if connections.usable > 0 else None
    if server.superuser:
        reserved = say("scope.reserved_superuser", n=connections.superuser_reserved)
    elif server.may_use_reserved and connections.reserved:
        reserved = say("scope.reserved", n=connections.reserved)
    else:
        reserved = say("scope.not_reserved")
    can = say("scope.may_write" if writable else "scope.may_read")
    place = rows.one(frames.get("place"), ServerInfo)
    window = rows.first(frames.get("window"), ReplicaWindow)
    return judged(
        say("scope.database_unreadable", role=server.role, n=len(unreadable))
        if unreadable
        else say("scope.database", version=server.version, role=server.role, can=can, used=used),
        [
            given.limits.value("connections.used", used),
            Value("postgres.version", server.version),
            Value("postgres.role", server.role),
            Value("postgres.read_only", server.read_only),
            Value("postgres.may_write", len(writable), "tables"),
            Value("postgres.unreadable", len(unreadable), "tables"),
            *((given.limits.value("replica.behind", place.behind_s),) if place.behind_s is not None else ()),
        ],
        at_least=Status.WARNING if unreadable or (window and not window.asked) else Status.OK,
        notes=(
            *((say("scope.unreadable", names=", ".join(unreadable)),) if unreadable else ()),
            *((say("scope.grants", database=server.database),) if writable else ()),
            *(() if server.monitor else (say("scope.no_pg_monitor", role=server.role),)),
            reserved,
            *(() if server.track_commit_timestamp == "on" else (say("scope.no_commit_timestamps"),)),
            *_note_server_place(place, rows.each(frames.get("pools"), Pool), window),
        ),
        show=("server", "rights", "pools", "sessions"),
    )


def _note_server_place(place: ServerInfo, pools: list[Pool], window: ReplicaWindow | None) -> Iterator[Text]:
    """Note a pooler between the runbook and the server, and a server that is a replica."""
    if pools:
        modes = ", ".join(sorted({p.mode for p in pools}))
        yield say("scope.pooler", pooler=pools[0].pooler, modes=modes, waiting=sum(p.waiting for p in pools))
    elif place.pooled:
        yield say("database.pool_closed")
    if place.behind_s is not None:
        yield say("scope.replica", behind=place.behind_s)
    if window:
        yield say("scope.window_asked", behind=window.behind_s) if window.asked else say("scope.window_away")


def judge_database_error(e: SourceError, given: JudgeInput) -> Finding:
    """2.5: judge an error of the database; without a free connection the status is CRITICAL, not UNKNOWN."""
    if e.code == "too_many_clients":
        return judged(say("scope.database_full", detail=e.detail), at_least=Status.CRITICAL, next_sections=("4.1",))
    return judge_source_error(e, given)


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
        info = rb.redis.info()
        answers["redis"] = row(
            version=info.get("redis_version"),
            role=info.get("role"),
            uptime_s=info.get("uptime_in_seconds"),
            clients=info.get("connected_clients"),
        )
    with parts.part("prometheus") as answers:
        up = rb.prometheus.instant("up", rb.as_of)
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


# Clocks -----------------------------------------------------------------------------------------------------


class ClockPair(rows.Row):
    """The offset of one clock against another, and the bound of its error."""

    clock: str = ""
    against: str = ""
    ahead_s: float = 0.0
    error_s: float = 0.0

    @property
    def proven_s(self) -> float:
        """Return the seconds of the offset that the measurement error cannot explain."""
        return max(abs(self.ahead_s) - self.error_s, 0.0)


def collect_clocks(rb: Context) -> Frames:
    """2.7: compare the clocks as measured when the section was opened. Frame: clocks (fields of `ClockPair`)."""
    if "postgres" not in rb.clocks:
        with rb.snapshot():  # raises the error that kept the clock from being measured
            pass
    clocks = {name: (c.offset_s, c.error_s) for name, c in rb.clocks.items()} | {"here": (0.0, 0.0)}
    pairs = [("postgres", "here"), ("nats", "here"), ("nats", "postgres")]
    found = [
        ClockPair(a, b, clocks[a][0] - clocks[b][0], clocks[a][1] + clocks[b][1])
        for a, b in pairs
        if a in clocks and b in clocks
    ]
    return {"clocks": rows.frame(found, ClockPair)}


def judge_clocks(frames: Frames, given: JudgeInput) -> Finding:
    """2.7: judge the clock offsets between this machine, the database and the broker."""
    pairs = rows.each(frames.get("clocks"), ClockPair)
    if not pairs:
        return unknown("", Reason.NO_DATA, say("scope.no_clock"))
    furthest = max(pairs, key=lambda p: p.proven_s)
    values = [given.limits.value("clock.offset", furthest.proven_s)]
    # Without the broker's clock the offset between servers, as a share of a lease, is unknown; 2.3 reports the failure.
    servers = [p.proven_s for p in pairs if p.against != "here"]
    if servers:
        values.append(given.limits.value("clock.lease_share", max(servers) / facts_of(given).lease_s))
    apart = worst([v.status for v in values if v.status]) is not Status.OK
    return judged(
        say(
            "scope.clocks_apart" if apart else "scope.clocks_well",
            a=say(f"scope.clock_{furthest.clock}"),
            b=say(f"scope.clock_{furthest.against}"),
            ahead=furthest.ahead_s,
            error=furthest.error_s,
        ),
        values,
        notes=(say("scope.clock_workers"), *(() if servers else (say("scope.clock_one"),))),
        signals=given.evidence("scope.clocks_apart") if servers and values[-1].status is not Status.OK else (),
        show=("clocks",),
    )


SCHEMA = ("tables", "indexes")
BROKER = Check(
    "2.3", collect_broker, judge_broker, on_error=judge_source_error, needs=("server", "streams", "consumers")
)
CHECKS: tuple[Check, ...] = (
    Check(
        "2.1",
        collect_entitlement,
        judge_entitlement,
        on_error=judge_source_error,
        needs=SCHEMA,
        optional=("migrations", "partitions"),
    ),
    Check("2.2", collect_relay, judge_relay, on_error=judge_source_error, needs=("outbox",)),
    BROKER,
    Check(
        "2.4",
        collect_notification,
        judge_notification,
        on_error=judge_source_error,
        needs=SCHEMA,
        optional=("migrations", "partitions"),
    ),
    Check(
        "2.5",
        collect_database,
        judge_database,
        on_error=judge_database_error,
        needs=("server", "rights", "connections"),
    ),
    Check("2.6", collect_optional, judge_optional),
    Check("2.7", collect_clocks, judge_clocks, on_error=judge_source_error),
)
