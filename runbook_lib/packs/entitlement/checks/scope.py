"""Section 2: is everything in scope reachable, as whom, and as expected?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.analysis.diagnosis import signals_of_silence
from runbook_lib.checks.check import Check, could_not_ask, failures
from runbook_lib.checks.parts import Parts, needs_the_present, no_data, seconds_between
from runbook_lib.context import Given
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
from runbook_lib.packs.entitlement.checks import quorum
from runbook_lib.packs.entitlement.checks.database import Connections, Place, Pool, surroundings
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Activity, LastEvent, Notifications, Outbox
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.context import Context

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
#: Unique indexes protect the data; the others only keep questions and claims fast.
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


def _ago(seconds: float | None) -> Text:
    return say("scope.never") if seconds is None else say("scope.ago", seconds=seconds)


# The two services -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table with the names of its columns."""

    QUESTION: ClassVar[str] = "scope/columns"
    table_name: str = ""
    column_names: str = ""


@dataclass(frozen=True)
class Index:
    """An index, and whether it is valid."""

    QUESTION: ClassVar[str] = "scope/indexes"
    index_name: str = ""
    usable: bool = False


@dataclass(frozen=True)
class Migration:
    """A migration that Flyway has run."""

    version: str | None = None
    success: bool = False


@dataclass(frozen=True)
class Partitioned:
    """A table with a partition for each stretch of time, and in how many days the last of them ends."""

    QUESTION: ClassVar[str] = "scope/partitions"
    table_name: str = ""
    partitions: int = 0
    ahead_d: float | None = None
    takes_the_rest: bool = False


def collect_schema(rb: Context, schema: str, **questions: str) -> Frames:
    """Tables, columns, indexes and migrations of a schema, then what else is asked of the same moment.

    Frames: tables, indexes, migrations, partitions, and those of the questions by their names.
    """
    with rb.snapshot() as db:
        frames = {
            "tables": db.ask("scope/columns", schema=schema),
            "indexes": db.ask("scope/indexes", schema=schema),
        }
        for name, question in (("migrations", f"scope/migrations_{schema}"), ("partitions", Partitioned.QUESTION)):
            answer = db.try_ask(question, schema=schema)
            if answer is not None:
                frames[name] = answer
        parts = Parts(frames)
        with parts.part("activity") as answers:
            answers |= {name: db.ask(question) for name, question in questions.items()}
        return parts.frames()


def schema_state(frames: Frames, given: Given, schema: str) -> Finding:
    """Whether a schema is as the services expect it; the part that 2.1 and 2.4 share."""
    seen = {t.table_name: t.column_names.split() for t in rows.each(frames.get("tables"), Table)}
    lacking = [
        f"{table}.{column}" if table in seen else table
        for table, columns in TABLES[schema].items()
        for column in (columns.split() if table in seen else [""])
        if column not in seen.get(table, [])
    ]
    indexes = rows.each(frames.get("indexes"), Index)
    usable = {i.index_name for i in indexes if i.usable}
    unprotected = [i for i in UNIQUE_INDEXES[schema].split() if i not in usable]
    slow = [i for i in INDEXES[schema].split() if i not in usable]
    migrations = rows.each(frames.get("migrations"), Migration)
    failed = not all(m.success for m in migrations)
    partitioned = rows.each(frames.get("partitions"), Partitioned)
    bounded = [p for p in partitioned if p.ahead_d is not None and not p.takes_the_rest]
    shortest = min(bounded, key=lambda p: p.ahead_d or 0.0, default=Partitioned())
    ahead = given.limits.value("partitions.ahead", shortest.ahead_d)
    ended = bool(bounded) and (shortest.ahead_d or 0.0) <= 0
    if lacking:
        problem = say("scope.lacking", schema=schema, names=", ".join(lacking[:5]), n=len(lacking))
    elif unprotected:
        problem = say("scope.unprotected", schema=schema, names=", ".join(unprotected))
    elif failed:
        problem = say("scope.migration_failed", schema=schema)
    elif bounded and ahead.status is not Status.OK:
        problem = say("scope.partition_missing", schema=schema, table=shortest.table_name, days=shortest.ahead_d)
    else:
        problem = say("scope.schema_as_expected", schema=schema, tables=len(TABLES[schema]), indexes=len(indexes))
    return judged(
        problem,
        [
            Value(f"{schema}.tables", len(TABLES[schema]) - sum(t not in seen for t in TABLES[schema])),
            Value(f"{schema}.indexes_usable", len(usable)),
            Value(f"{schema}.migration", migrations[0].version if migrations else None),
            *((ahead,) if bounded else ()),
        ],
        at_least=Status.CRITICAL if lacking or unprotected or failed else Status.WARNING if slow else Status.OK,
        notes=(
            *(() if "migrations" in frames else (say("scope.no_flyway", schema=schema),)),
            *((say("scope.slow_indexes", names=", ".join(slow)),) if slow and not lacking else ()),
            *(say("scope.partitioned", table=p.table_name, n=p.partitions) for p in partitioned),
        ),
        signals=(
            *(given.speaks("scope.schema_differs") if lacking or failed else ()),
            *(given.speaks("scope.key_unusable") if "processed_events_pkey" in unprotected else ()),
            *(given.speaks("scope.index_unusable") if slow else ()),
            *(given.speaks("scope.partition_missing") if ended else ()),
        ),
        show=("migrations",),
    )


def without_activity(frames: Frames, given: Given, schema: Finding) -> Finding | None:
    """What is left to say where the schema could be read and its rows could not."""
    e = failures(frames).get("activity")
    if e is None:
        return None
    if schema.status is not Status.OK:
        return schema  # what is lacking there is why
    return replace(could_not_ask(e), values=schema.values, signals=signals_of_silence(e, given.catalog))


@dataclass(frozen=True)
class Registered:
    """When the subscriber was last at work."""

    QUESTION: ClassVar[str] = "processed/activity"
    now: pd.Timestamp | None = None
    last_processed: pd.Timestamp | None = None
    processed_1m: float | None = None


@dataclass(frozen=True)
class Oldest:
    """How old the oldest registration is: those that are older than what is kept are removed every hour."""

    QUESTION: ClassVar[str] = "processed/oldest"
    age_d: float | None = None


@dataclass(frozen=True)
class Holder:
    """Who holds rows, and since when."""

    locked_by: str | None = None
    since_claim_s: float | None = None


def collect_entitlement(rb: Context) -> Frames:
    """2.1: the entitlement schema and its newest event. Frames: those of `collect_schema`, last."""
    return collect_schema(rb, "entitlement", last="scope/last_event")


def judge_entitlement(frames: Frames, given: Given) -> Finding:
    """2.1: is the schema as expected, and when was the last write?"""
    schema = schema_state(frames, given, "entitlement")
    if silent := without_activity(frames, given, schema):
        return silent
    seen = rows.one(frames.get("last"), LastEvent)
    age = seconds_between(seen.last_event, seen.now)
    last = say("scope.no_event") if age is None else say("scope.last_event", seconds=age)
    return replace(
        schema,
        headline=say("scope.service", schema=schema.headline, activity=last),
        values=(*schema.values, Value("entitlement.last_event", age, "s")),
    )


def collect_relay(rb: Context) -> Frames:
    """2.2: what waits in the outbox, what was published last, and who holds rows. Frames: sessions, outbox, holders."""
    with rb.snapshot() as db:
        return {
            "sessions": db.ask("database/sessions"),
            "outbox": db.ask("outbox/backlog"),
            "holders": db.ask("outbox/holders"),
        }


def judge_relay(frames: Frames, given: Given) -> Finding:
    """2.2: does the relay claim and publish, and under which name?"""
    outbox = rows.first(frames.get("outbox"), Outbox)
    if outbox is None:
        return no_data("outbox/backlog")
    oldest = outbox.oldest_due_s if outbox.due else 0.0
    since = seconds_between(outbox.last_published, outbox.now)
    waits = given.limits.value("outbox.oldest_due", oldest)
    names = workers(frames)
    late = waits.status is not Status.OK
    return judged(
        say("scope.relay_late" if late else "scope.relay_well", published=_ago(since), due=outbox.due, oldest=oldest),
        [Value("outbox.due", outbox.due, "rows"), waits, Value("relay.last_publish", since, "s")],
        notes=(say("scope.held_by", names=names) if names else say("scope.held_by_nobody"),),
        signals=given.speaks("scope.relay_late") if late else (),
        hops=(Hop("relay", waiting=outbox.due, oldest_s=oldest, alive=names or None, late=late),),
        next_sections=("4.1",) if late else (),
        show=("holders", "sessions"),
    )


def workers(frames: Frames) -> str:
    """The names under which rows are held at this moment; empty between two batches."""
    return ", ".join(h.locked_by for h in rows.each(frames.get("holders"), Holder) if h.locked_by)


def collect_notification(rb: Context) -> Frames:
    """2.4: the notification schema, what was registered, queued and sent, and who holds rows.

    Frames: those of `collect_schema`, processed, oldest, sent, backlog, holders.
    """
    return collect_schema(
        rb,
        "notification",
        processed="processed/activity",
        oldest="processed/oldest",
        sent="notifications/activity",
        backlog="notifications/backlog",
        holders="notifications/holders",
    )


def judge_notification(frames: Frames, given: Given) -> Finding:
    """2.4: are events registered, queued and delivered?"""
    schema = schema_state(frames, given, "notification")
    if silent := without_activity(frames, given, schema):
        return silent
    processed, sent = rows.one(frames.get("processed"), Registered), rows.one(frames.get("sent"), Activity)
    queue = rows.first(frames.get("backlog"), Notifications)
    due, oldest = (queue.ready, queue.oldest_s) if queue else (0.0, 0.0)
    since_processed = seconds_between(processed.last_processed, processed.now)
    since_sent = seconds_between(sent.last_sent, sent.now)
    waits = given.limits.value("backlog.oldest_due", oldest if queue else None)
    claims = [h.since_claim_s for h in rows.each(frames.get("holders"), Holder) if h.since_claim_s is not None]
    values = [
        *schema.values,
        Value("notification.last_processed", since_processed, "s"),
        Value("notification.last_sent", since_sent, "s"),
        Value("backlog.due", due, "rows"),
        waits,
        *((given.limits.value("worker.heartbeat", max(claims)),) if claims else ()),
    ]
    late = any(v.status not in (None, Status.OK) for v in values)
    if (age := rows.one(frames.get("oldest"), Oldest).age_d) is not None:
        values.append(given.limits.value("processed.oldest", age))
    hoards = age is not None and values[-1].status is not Status.OK
    activity = say(
        "scope.notification_late" if late else "scope.notification_well",
        processed=_ago(since_processed),
        sent=_ago(since_sent),
        due=due,
        oldest=oldest,
    )
    return judged(
        say("scope.service", schema=schema.headline, activity=activity),
        values,
        at_least=schema.status,
        notes=(*schema.notes, *((say("scope.not_cleaned_up"),) if hoards else ())),
        signals=(
            *schema.signals,
            *(given.speaks("scope.delivery_late") if late else ()),
            *(given.speaks("scope.not_cleaned_up") if hoards else ()),
        ),
        hops=(
            Hop("subscriber", rate_out=processed.processed_1m),
            Hop(
                "delivery_worker",
                rate_in=sent.arrived_1m if len(frames.get("sent", ())) else None,
                rate_out=sent.sent_1m if len(frames.get("sent", ())) else None,
                waiting=due,
                oldest_s=oldest,
                alive=workers(frames) or None,
                late=waits.status is not Status.OK,
            ),
        ),
        next_sections=("4.1",) if late else (),
        show=("migrations", "holders"),
    )


# The broker -------------------------------------------------------------------------------------------------


def collect_broker(rb: Context) -> Frames:
    """2.3: the broker, its streams and durables; each may be missing for itself.

    Frames: server (version, server, user: text; jetstream: flag; clients, slow_consumers: number; started_at: time),
    streams (stream, subjects: text; exists: flag; duplicate_window_s: s; messages; first_seq, last_seq: id; created:
    text), consumers (stream, durable, subject, deliver_policy: text; exists, bound, push: flag; ack_wait_s: s;
    max_deliver: number; pending, unacknowledged: messages); in a cluster replicas (fields of `quorum.Member`), nodes.
    """
    needs_the_present(rb, "jetstream")
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
    parts, members = Parts(), list[quorum.Member]()
    with parts.part("monitor") as answers:
        varz, cluster = rb.nats_monitor.servers(), rb.nats_monitor.cluster()
        server |= {
            "clients": _sum(varz, "connections"),
            "slow_consumers": _sum(varz, "slow_consumers"),
            "started_at": max((pd.Timestamp(v["start"]) for v in varz if v.get("start")), default=None),
        }
        answers["nodes"] = quorum.nodes(cluster)
        members += quorum.meta(cluster)
    streams, consumers = [], []
    for stream, durable in names.durables.items():
        found = _or_missing(partial(rb.jetstream.stream, stream))
        config, state = found.get("config", {}), found.get("state", {})
        members += quorum.members(stream, found)
        streams.append(
            {
                "stream": stream,
                "exists": bool(found),
                "subjects": " ".join(config.get("subjects") or []),
                "duplicate_window_s": _seconds(config.get("duplicate_window")),
                "messages": state.get("messages"),
                "first_seq": state.get("first_seq"),
                "last_seq": state.get("last_seq"),
                "created": found.get("created"),
            }
        )
        found = _or_missing(partial(rb.jetstream.consumer, stream, durable)) if found else {}
        config = found.get("config", {})
        members += quorum.members(durable, found)
        consumers.append(
            {
                "stream": stream,
                "durable": durable,
                "exists": bool(found),
                "bound": bool(found.get("push_bound")),
                "push": bool(config.get("deliver_subject")),
                "subject": config.get("filter_subject") or "",
                "ack_wait_s": _seconds(config.get("ack_wait")),
                "max_deliver": config.get("max_deliver"),
                "deliver_policy": config.get("deliver_policy"),
                "pending": found.get("num_pending"),
                "unacknowledged": found.get("num_ack_pending"),
            }
        )
    return parts.frames() | {
        "server": row(**server),
        "streams": pd.DataFrame(streams),
        "consumers": pd.DataFrame(consumers),
        "replicas": rows.frame(members, quorum.Member),
    }


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / NANOSECONDS


def _sum(answers: list[dict[str, Any]], name: str) -> int | None:
    """Of all nodes; None where one of them does not say."""
    counts = [a.get(name) for a in answers]
    return None if None in counts else sum(c for c in counts if c is not None)


@dataclass(frozen=True)
class Server:
    """The broker, and what its monitoring port adds."""

    version: str | None = None
    user: str = ""
    clients: int | None = None
    slow_consumers: int | None = None


@dataclass(frozen=True)
class Stream:
    """A stream that should be there."""

    stream: str = ""
    exists: bool = False
    subjects: str = ""
    duplicate_window_s: float | None = None


@dataclass(frozen=True)
class Consumer:
    """A durable that should be there."""

    stream: str = ""
    durable: str = ""
    exists: bool = False
    bound: bool = False
    push: bool = False
    subject: str = ""
    ack_wait_s: float | None = None
    max_deliver: int | None = None
    deliver_policy: str | None = None


def _differs(streams: list[Stream], consumers: list[Consumer], given: Given) -> list[str]:
    """What is set otherwise than the services set it; what a server does not say is not held against it."""
    subjects = {s.stream: s.subjects.split() for s in streams}
    window, ack_wait = given.number("broker.duplicate_window"), given.number("broker.ack_wait")
    found = [
        f"{s.stream}: duplicate_window {s.duplicate_window_s} s"
        for s in streams
        if s.exists and s.duplicate_window_s not in (None, window)
    ]
    for c in consumers:
        as_expected = {
            f"ack_wait {c.ack_wait_s} s": c.ack_wait_s in (None, ack_wait),
            f"max_deliver {c.max_deliver}": c.max_deliver in (None, given.number("broker.max_deliver")),
            f"deliver_policy {c.deliver_policy}": c.deliver_policy in (None, "all"),
            f"filter {c.subject}": not c.subject or c.subject in subjects.get(c.stream, []),
        }
        found += [f"{c.durable}: {setting}" for setting, well in as_expected.items() if c.exists and not well]
    return found


def judge_broker(frames: Frames, given: Given) -> Finding:
    """2.3: reachable, which server and version, streams and consumers as expected?"""
    server = rows.first(frames.get("server"), Server)
    streams, consumers = rows.each(frames.get("streams"), Stream), rows.each(frames.get("consumers"), Consumer)
    if server is None or not streams or not consumers:
        return no_data("JetStream")
    missing = [s.stream for s in streams if not s.exists] + [c.durable for c in consumers if not c.exists]
    unbound = [c.durable for c in consumers if c.exists and c.push and not c.bound]
    other, names = _differs(streams, consumers, given), ", ".join(missing)
    published = next((f.value("relay.last_publish") for f in given.earlier if f.step == "2.2"), None)
    if streams[0].stream in missing and isinstance(published, float) and published < given.number("processed.lately"):
        another = say("scope.another_broker", names=names, ago=published)
        return unknown("", Reason.ERROR, another, next_sections=("4.1",))

    monitor = failures(frames).get("monitor")
    away = monitor is not None and monitor.reason is not Reason.NOT_CONFIGURED
    present, nodes = sum(c.exists for c in consumers), rows.one(frames.get("nodes"), quorum.Nodes)
    broken, thin = _cluster(frames, given, nodes)
    lost = any(g.writes is False and g.name != quorum.META for g in broken)
    status = Status.WARNING if other or monitor or thin or nodes.partly else Status.OK
    headline = say("scope.broker_well", version=server.version, streams=len(streams), n=present)
    if missing:
        headline, status = say("scope.broker_missing", names=names), Status.CRITICAL
    elif broken:
        headline = say("scope.cluster", group=broken[0].text, n=len(broken) - 1)
        status = Status.CRITICAL if broken[0].writes is False else Status.UNKNOWN
    elif unbound:
        headline, status = say("scope.broker_unbound", names=", ".join(unbound)), Status.WARNING
    if monitor:
        why = say(f"unknown.{monitor.reason}", source=monitor.source, detail=monitor.detail)
        headline = say("scope.without_monitor", broker=headline, why=why)
    return judged(
        headline,
        [
            Value("broker.version", server.version),
            Value("broker.clients", server.clients),
            Value("broker.slow_consumers", server.slow_consumers),
        ],
        # Without the monitoring port the other sections see neither who listens nor who is refused.
        at_least=Status.UNKNOWN if away and not missing else status,
        reason=monitor.reason if away and monitor else None,
        notes=(
            say("scope.broker_as", user=server.user, version=server.version),
            *((say("scope.broker_differs", names="; ".join(other)),) if other else ()),
            *((say("scope.no_monitor", why=monitor.reason.value),) if monitor else ()),
            *((say("subscriber.nodes_unseen", seen=nodes.seen, of=nodes.of),) if nodes.partly else ()),
            *(group.text for group in (*broken[1:], *thin)),
            *((say("scope.no_start"),) if any(g.name == quorum.META and not g.writes for g in broken) else ()),
        ),
        signals=(
            *(given.speaks("scope.no_quorum") if lost else ()),
            *(given.speaks("scope.no_meta_leader") if broken and not lost and broken[0].writes is False else ()),
            *(given.speaks("scope.quorum_unclear") if broken and broken[0].writes is None else ()),
            *(given.speaks("scope.stream_missing") if missing else ()),
            *(given.speaks("scope.unbound") if unbound else ()),
            *(given.speaks("scope.broker_well") if not missing and not unbound and not broken else ()),
        ),
        proposals=(proposals.pods(given, "nats"), proposals.logs(given, "nats")) if broken else (),
        next_sections=("4.1",) if missing or unbound or broken else (),
        show=("streams", "consumers", *(("replicas",) if len(frames.get("replicas", ())) else ())),
    )


def _cluster(frames: Frames, given: Given, nodes: quorum.Nodes) -> tuple[list[quorum.Group], list[quorum.Group]]:
    """The groups that cannot be written, what is sure before what is not, and those that lack a node."""
    groups = quorum.groups(frames, given)
    if nodes.partly and nodes.of and nodes.seen * 2 <= nodes.of:
        # The others may have elected a leader that these few do not see.
        groups = [replace(g, writes=g.writes or None) if g.name == quorum.META else g for g in groups]
    broken = sorted((g for g in groups if not g.writes), key=lambda g: (g.writes is None, g.name == quorum.META))
    return broken, [g for g in groups if g.writes and g.away]


def _or_missing(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The broker's answer, or {} where it says that there is no such thing."""
    try:
        return ask()
    except SourceError as e:
        if e.code in ("stream_not_found", "consumer_not_found"):
            return {}
        raise


# The database -----------------------------------------------------------------------------------------------


def collect_database(rb: Context) -> Frames:
    """2.5: which server, who we are and what we may; the catalog alone is asked.

    Frames: server, rights, connections, sessions, those of `database.surroundings`; window (asked: flag; behind_s: s)
    where a replica is declared for the window's questions.
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
            | surroundings(rb, db)
        )


@dataclass(frozen=True)
class Database:
    """The server, and the runbook's own role in it."""

    QUESTION: ClassVar[str] = "scope/server"
    role: str | None = None
    database: str | None = None
    version: str | None = None
    is_replica: bool = False
    superuser: bool = False
    monitor: bool = False
    may_use_reserved: bool = False
    read_only: str | None = None
    track_commit_timestamp: str | None = None


@dataclass(frozen=True)
class Window:
    """Whether the declared replica is asked about the window, and how far behind it is."""

    asked: bool = False
    behind_s: float | None = None


@dataclass(frozen=True)
class Right:
    """What the role may do with a table."""

    QUESTION: ClassVar[str] = "scope/rights"
    table_name: str = ""
    may_read: bool = False
    may_write: bool = False


def judge_database(frames: Frames, given: Given) -> Finding:
    """2.5: reachable, as whom, with which rights, which version, are connections reserved for us?"""
    server = rows.first(frames.get("server"), Database)
    if server is None:
        return no_data("scope/server")
    rights = rows.each(frames.get("rights"), Right)
    unreadable, writable = ([r.table_name for r in rights if not r.may_read], [r for r in rights if r.may_write])
    connections = rows.one(frames.get("connections"), Connections)
    used = 100 * connections.used / connections.usable if connections.usable > 0 else None
    if server.superuser:
        reserved = say("scope.reserved_superuser", n=connections.superuser_reserved)
    elif server.may_use_reserved and connections.reserved:
        reserved = say("scope.reserved", n=connections.reserved)
    else:
        reserved = say("scope.not_reserved")
    can = say("scope.may_write" if writable else "scope.may_read")
    place = rows.one(frames.get("place"), Place)
    window = rows.first(frames.get("window"), Window)
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
            *_between(place, rows.each(frames.get("pools"), Pool), window),
        ),
        show=("server", "rights", "pools", "sessions"),
    )


def _between(place: Place, pools: list[Pool], window: Window | None) -> Iterator[Text]:
    """What stands between, and which server it is, where that is not simply the primary."""
    if pools:
        modes = ", ".join(sorted({p.mode for p in pools}))
        yield say("scope.pooler", pooler=pools[0].pooler, modes=modes, waiting=sum(p.waiting for p in pools))
    elif place.pooled:
        yield say("database.pool_closed")
    if place.behind_s is not None:
        yield say("scope.replica", behind=place.behind_s)
    if window:
        yield say("scope.window_asked", behind=window.behind_s) if window.asked else say("scope.window_away")


def database_refused(e: SourceError, given: Given) -> Finding:
    """2.5: no connection left is the answer, not the lack of one."""
    if e.code == "too_many_clients":
        return judged(say("scope.database_full", detail=e.detail), at_least=Status.CRITICAL, next_sections=("4.1",))
    return not_in_reach(e, given)


def not_in_reach(e: SourceError, given: Given) -> Finding:
    """Section 2 asks what is in reach: a source that the sections need and the target does not declare is not."""
    if e.reason is Reason.NOT_CONFIGURED:
        return judged(say("scope.undeclared", source=e.source), at_least=Status.WARNING)
    if e.code == "no_leader":
        looks = (proposals.pods(given, "nats"), proposals.logs(given, "nats"))
        return judged(
            say("subscriber.no_leader", detail=e.detail),
            at_least=Status.CRITICAL,
            proposals=looks,
            next_sections=("4.1",),
        )
    return could_not_ask(e)


# What a target may or may not have --------------------------------------------------------------------------


def collect_optional(rb: Context) -> Frames:
    """2.6: Redis and Prometheus, where the target declares them.

    Frames: redis (version, role: text; uptime_s: s; clients: number), prometheus (job, instance: text; value: number).
    """
    parts = Parts()
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


@dataclass(frozen=True)
class Redis:
    """What Redis says of itself."""

    version: str | None = None


def judge_optional(frames: Frames, given: Given) -> Finding:
    """2.6: reachable, where the target uses them?"""
    failed = failures(frames)
    undeclared = [n for n, e in failed.items() if e.reason is Reason.NOT_CONFIGURED]
    silent = {n: e for n, e in failed.items() if n not in undeclared}
    if silent:
        return replace(could_not_ask(next(iter(silent.values()))), frames=frames)
    declared = [n for n in ("redis", "prometheus") if n in frames]
    if not declared:
        return unknown("", Reason.NOT_CONFIGURED, say("scope.optional_none"))
    redis, targets = rows.first(frames.get("redis"), Redis), frames.get("prometheus")
    scraped = 0 if targets is None else len(targets)
    down = int((targets["value"] == 0).sum()) if targets is not None and scraped else 0
    answers = [Value("redis.version", redis.version)] if redis else []
    if targets is not None:
        answers += [Value("prometheus.targets", scraped), Value("prometheus.targets_down", down)]
    return judged(
        say("scope.optional_down", n=down, of=scraped) if down else say("scope.optional", names=", ".join(declared)),
        answers,
        at_least=Status.WARNING if down else Status.OK,
        notes=tuple(say("unknown.not_configured", source=n) for n in undeclared),
        show=("redis", "prometheus"),
    )


# Clocks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """How far one clock is ahead of another, and the bound of the error."""

    clock: str = ""
    against: str = ""
    ahead_s: float = 0.0
    error_s: float = 0.0

    @property
    def proven_s(self) -> float:
        """Only what the error of the measurement cannot explain is an offset."""
        return max(abs(self.ahead_s) - self.error_s, 0.0)


def collect_clocks(rb: Context) -> Frames:
    """2.7: the offsets that were measured when the section was opened. Frame: clocks (fields of `Pair`)."""
    if "postgres" not in rb.clocks:
        with rb.snapshot():  # says why it could not be measured
            pass
    seen = {name: (c.offset_s, c.error_s) for name, c in rb.clocks.items()} | {"here": (0.0, 0.0)}
    pairs = [("postgres", "here"), ("nats", "here"), ("nats", "postgres")]
    found = [Pair(a, b, seen[a][0] - seen[b][0], seen[a][1] + seen[b][1]) for a, b in pairs if a in seen and b in seen]
    return {"clocks": rows.frame(found, Pair)}


def judge_clocks(frames: Frames, given: Given) -> Finding:
    """2.7: how far apart are this machine, the database and the broker?"""
    pairs = rows.each(frames.get("clocks"), Pair)
    if not pairs:
        return unknown("", Reason.NO_DATA, say("scope.no_clock"))
    furthest = max(pairs, key=lambda p: p.proven_s)
    values = [given.limits.value("clock.offset", furthest.proven_s)]
    # The broker's clock is one of two; without it the share of a lease is not known, which 2.3 already says.
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
        signals=given.speaks("scope.clocks_apart") if servers and values[-1].status is not Status.OK else (),
        show=("clocks",),
    )


CHECKS: tuple[Check, ...] = (
    Check("2.1", collect_entitlement, judge_entitlement, on_error=not_in_reach),
    Check("2.2", collect_relay, judge_relay, on_error=not_in_reach),
    Check("2.3", collect_broker, judge_broker, on_error=not_in_reach),
    Check("2.4", collect_notification, judge_notification, on_error=not_in_reach),
    Check("2.5", collect_database, judge_database, on_error=database_refused),
    Check("2.6", collect_optional, judge_optional),
    Check("2.7", collect_clocks, judge_clocks, on_error=not_in_reach),
)
