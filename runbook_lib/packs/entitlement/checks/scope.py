"""Section 2: is everything in scope reachable, as whom, and as expected?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd

from runbook_lib.analysis.diagnosis import signals_of_silence
from runbook_lib.checks.check import Check, could_not_ask, failures
from runbook_lib.checks.parts import Parts, needs_the_present, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    Reason,
    Signal,
    Status,
    Text,
    Value,
    judged,
    replace,
    say,
    unknown,
    worst,
)
from runbook_lib.model.frames import one, row
from runbook_lib.packs.entitlement.facts import facts_of
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

#: A publish so recent means that the relay's broker is well.
FLOWS_S = 2.0
DUPLICATE_WINDOW_S = 120.0
ACK_WAIT_S = 10.0
MAX_DELIVER = 10
NANOSECONDS = 1e9


# The two services -------------------------------------------------------------------------------------------


def collect_schema(rb: Context, schema: str, **questions: str) -> Frames:
    """Tables, columns, indexes and migrations of a schema, then what else is asked of the same moment."""
    with rb.snapshot() as db:
        frames = {
            "tables": db.ask("scope/columns", schema=schema),
            "indexes": db.ask("scope/indexes", schema=schema),
        }
        migrations = db.try_ask(f"scope/migrations_{schema}")
        if migrations is not None:
            frames["migrations"] = migrations
        parts = Parts(frames)
        with parts.part("activity") as answers:
            answers |= {name: db.ask(question) for name, question in questions.items()}
        return parts.frames()


def schema_state(frames: Frames, schema: str) -> Finding:
    """Whether a schema is as the services expect it; the part that 2.1 and 2.4 share."""
    tables, indexes = frames.get("tables", pd.DataFrame()), frames.get("indexes", pd.DataFrame())
    seen = {str(r["table_name"]): str(r["column_names"]).split() for r in tables.to_dict("records")}
    lacking = [
        f"{table}.{column}" if table in seen else table
        for table, columns in TABLES[schema].items()
        for column in (columns.split() if table in seen else [""])
        if column not in seen.get(table, [])
    ]
    usable = {str(r["index_name"]): bool(r["usable"]) for r in indexes.to_dict("records")}
    unprotected = [i for i in UNIQUE_INDEXES[schema].split() if not usable.get(i)]
    slow = [i for i in INDEXES[schema].split() if not usable.get(i)]
    migrations = frames.get("migrations")
    failed = migrations is not None and not migrations.empty and not migrations["success"].astype(bool).all()

    signals: list[Signal] = []
    if lacking or failed:
        signals += [Signal("database", 0.7), Signal("FM-DB-03", 0.9)]
    if "processed_events_pkey" in unprotected:
        signals.append(Signal("FM-NOTI-01", 0.8))
    if slow:
        signals.append(Signal("FM-DB-01", 0.3))
    notes: list[Text] = []
    if migrations is None:
        notes.append(say("scope.no_flyway", schema=schema))
    if slow and not lacking:
        notes.append(say("scope.slow_indexes", names=", ".join(slow)))
    problem = (
        say("scope.lacking", schema=schema, names=", ".join(lacking[:5]), n=len(lacking))
        if lacking
        else say("scope.unprotected", schema=schema, names=", ".join(unprotected))
        if unprotected
        else say("scope.migration_failed", schema=schema)
        if failed
        else say("scope.schema_as_expected", schema=schema, tables=len(TABLES[schema]), indexes=len(usable))
    )
    last = None if migrations is None or migrations.empty else migrations.iloc[0]["version"]
    return judged(
        problem,
        [
            Value(f"{schema}.tables", len(TABLES[schema]) - sum(t not in seen for t in TABLES[schema])),
            Value(f"{schema}.indexes_usable", sum(usable.values())),
            Value(f"{schema}.migration", None if last is None else str(last)),
        ],
        at_least=Status.CRITICAL if lacking or unprotected or failed else Status.WARNING if slow else Status.OK,
        notes=tuple(notes),
        signals=tuple(signals),
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


def collect_entitlement(rb: Context) -> Frames:
    """2.1: the entitlement schema and its newest event."""
    return collect_schema(rb, "entitlement", last="scope/last_event")


def judge_entitlement(frames: Frames, given: Given) -> Finding:
    """2.1: is the schema as expected, and when was the last write?"""
    schema = schema_state(frames, "entitlement")
    if silent := without_activity(frames, given, schema):
        return silent
    seen = one(frames.get("last"))
    age = seconds_between(seen.get("last_event"), seen.get("now"))
    last = say("scope.no_event") if age is None else say("scope.last_event", seconds=age)
    return replace(
        schema,
        headline=say("scope.service", schema=schema.headline, activity=last),
        values=(*schema.values, Value("entitlement.last_event", age, "s")),
    )


def collect_relay(rb: Context) -> Frames:
    """2.2: what waits in the outbox, what was published last, and who holds rows."""
    with rb.snapshot() as db:
        return {
            "sessions": db.ask("database/sessions"),
            "outbox": db.ask("outbox/backlog"),
            "holders": db.ask("outbox/holders"),
        }


def judge_relay(frames: Frames, given: Given) -> Finding:
    """2.2: does the relay claim and publish, and under which name?"""
    outbox = one(frames.get("outbox"))
    if not outbox:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="outbox/backlog"))
    due = int(outbox.get("due") or 0)
    oldest = float(outbox.get("oldest_due_s") or 0) if due else 0.0
    since = seconds_between(outbox.get("last_published"), outbox.get("now"))
    waits = given.limits.value("outbox.oldest_due", oldest)
    names = workers(frames)
    published = say("scope.never") if since is None else say("scope.ago", seconds=since)
    late = waits.status is not Status.OK
    return judged(
        say("scope.relay_late" if late else "scope.relay_well", published=published, due=due, oldest=oldest),
        [Value("outbox.due", due, "rows"), waits, Value("relay.last_publish", since, "s")],
        notes=(say("scope.held_by", names=names) if names else say("scope.held_by_nobody"),),
        signals=(Signal("relay", 0.4), Signal("FM-OB-01", 0.4)) if late else (),
        hops=(Hop("relay", waiting=due, oldest_s=oldest, alive=names or None, late=late),),
        next_sections=("4.1",) if late else (),
        show=("holders", "sessions"),
    )


def workers(frames: Frames) -> str:
    """The names under which rows are held at this moment; empty between two batches."""
    holders = frames.get("holders")
    return "" if holders is None else ", ".join(str(w) for w in holders["locked_by"] if isinstance(w, str))


def collect_notification(rb: Context) -> Frames:
    """2.4: the notification schema, what was registered, queued and sent, and who holds rows."""
    return collect_schema(
        rb,
        "notification",
        processed="processed/activity",
        sent="notifications/activity",
        backlog="notifications/backlog",
        holders="notifications/holders",
    )


def judge_notification(frames: Frames, given: Given) -> Finding:
    """2.4: are events registered, queued and delivered?"""
    schema = schema_state(frames, "notification")
    if silent := without_activity(frames, given, schema):
        return silent
    processed, sent = one(frames.get("processed")), one(frames.get("sent"))
    backlog = one(frames.get("backlog"))
    due = int(backlog.get("due") or 0) + int(backlog.get("expired") or 0)
    oldest = max(float(backlog.get("oldest_due_s") or 0), float(backlog.get("oldest_expired_s") or 0))
    since_processed = seconds_between(processed.get("last_processed"), processed.get("now"))
    since_sent = seconds_between(sent.get("last_sent"), sent.get("now"))
    waits = given.limits.value("backlog.oldest_due", oldest if backlog else None)
    values = [
        *schema.values,
        Value("notification.last_processed", since_processed, "s"),
        Value("notification.last_sent", since_sent, "s"),
        Value("backlog.due", due, "rows"),
        waits,
    ]
    holders = frames.get("holders")
    if holders is not None and holders["since_claim_s"].notna().any():
        values.append(given.limits.value("worker.heartbeat", float(holders["since_claim_s"].max())))
    late = any(v.status not in (None, Status.OK) for v in values)
    activity = say(
        "scope.notification_late" if late else "scope.notification_well",
        processed=say("scope.never") if since_processed is None else say("scope.ago", seconds=since_processed),
        sent=say("scope.never") if since_sent is None else say("scope.ago", seconds=since_sent),
        due=due,
        oldest=oldest,
    )
    return judged(
        say("scope.service", schema=schema.headline, activity=activity),
        values,
        at_least=schema.status,
        notes=schema.notes,
        signals=(*schema.signals, *((Signal("delivery_worker", 0.4),) if late else ())),
        hops=(
            Hop("subscriber", rate_out=processed.get("processed_1m")),
            Hop(
                "delivery_worker",
                rate_in=sent.get("arrived_1m"),
                rate_out=sent.get("sent_1m"),
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
    """2.3: the broker, its streams and durables; each may be missing for itself."""
    needs_the_present(rb, "jetstream")
    names = facts_of(rb).streams
    info = rb.jetstream.server()
    server = {
        "version": info.get("version"),
        "server": info.get("server_name"),
        "jetstream": bool(info.get("jetstream")),
        "user": _user(rb.target.url("nats_url") or ""),
        "clients": None,
        "slow_consumers": None,
        "started_at": None,
    }
    parts = Parts()
    with parts.part("monitor"):
        varz = rb.nats_monitor.server()
        server |= {
            "clients": varz.get("connections"),
            "slow_consumers": varz.get("slow_consumers"),
            "started_at": pd.Timestamp(varz["start"]) if varz.get("start") else None,
        }
    wanted = (
        (names.events, names.consumer),
        (names.advisory, names.advisory_consumer),
        (names.terminated, names.terminated_consumer),
    )
    streams, consumers = [], []
    for stream, durable in wanted:
        found = _or_missing(lambda s=stream: rb.jetstream.stream(s))
        config, state = found.get("config", {}), found.get("state", {})
        streams.append(
            {
                "stream": stream,
                "exists": bool(found),
                "subjects": " ".join(config.get("subjects") or []),
                "duplicate_window_s": config.get("duplicate_window", 0) / NANOSECONDS,
                "messages": state.get("messages"),
                "first_seq": state.get("first_seq"),
                "last_seq": state.get("last_seq"),
                "created": found.get("created"),
            }
        )
        found = _or_missing(lambda s=stream, d=durable: rb.jetstream.consumer(s, d)) if found else {}
        config = found.get("config", {})
        consumers.append(
            {
                "stream": stream,
                "durable": durable,
                "exists": bool(found),
                "bound": bool(found.get("push_bound")),
                "push": bool(config.get("deliver_subject")),
                "subject": config.get("filter_subject") or "",
                "ack_wait_s": config.get("ack_wait", 0) / NANOSECONDS,
                "max_deliver": config.get("max_deliver", 0),
                "deliver_policy": config.get("deliver_policy", ""),
                "pending": found.get("num_pending"),
                "unacknowledged": found.get("num_ack_pending"),
            }
        )
    return parts.frames() | {
        "server": row(**server),
        "streams": pd.DataFrame(streams),
        "consumers": pd.DataFrame(consumers),
    }


def judge_broker(frames: Frames, given: Given) -> Finding:
    """2.3: reachable, which server and version, streams and consumers as expected?"""
    server = one(frames.get("server"))
    streams, consumers = frames.get("streams"), frames.get("consumers")
    if not server or streams is None or streams.empty or consumers is None or consumers.empty:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="JetStream"))
    missing = [str(r["stream"]) for r in streams.to_dict("records") if not r["exists"]]
    missing += [str(r["durable"]) for r in consumers.to_dict("records") if not r["exists"]]
    present = [r for r in consumers.to_dict("records") if r["exists"]]
    unbound = [str(r["durable"]) for r in present if r["push"] and not r["bound"]]
    subjects = {r["stream"]: str(r["subjects"]).split() for r in streams.to_dict("records")}
    other = [
        f"{r['stream']}: duplicate_window {r['duplicate_window_s']} s"
        for r in streams.to_dict("records")
        if r["exists"] and r["duplicate_window_s"] != DUPLICATE_WINDOW_S
    ]
    for r in present:
        differs = {
            "ack_wait": (f"{r['ack_wait_s']} s", r["ack_wait_s"] == ACK_WAIT_S),
            "max_deliver": (r["max_deliver"], r["max_deliver"] == MAX_DELIVER),
            "deliver_policy": (r["deliver_policy"], r["deliver_policy"] == "all"),
            "filter": (r["subject"], not r["subject"] or r["subject"] in subjects.get(r["stream"], [])),
        }
        other += [f"{r['durable']}: {k} {v}" for k, (v, as_expected) in differs.items() if not as_expected]

    published = next((f.value("relay.last_publish") for f in given.earlier if f.step == "2.2"), None)
    if str(streams.iloc[0]["stream"]) in missing and isinstance(published, float) and published < FLOWS_S:
        detail = ", ".join(missing)
        return unknown(
            "", Reason.ERROR, say("scope.another_broker", names=detail, ago=published), next_sections=("4.1",)
        )

    notes = [say("scope.broker_as", user=server.get("user"), version=server.get("version"))]
    if other:
        notes.append(say("scope.broker_differs", names="; ".join(other)))
    monitor = failures(frames).get("monitor")
    if monitor:
        notes.append(say("scope.no_monitor", why=monitor.reason.value))
    signals: list[Signal] = []
    if missing:
        signals += [Signal("jetstream", 0.9), Signal("FM-NATS-04", 0.9)]
    if unbound:
        signals += [Signal("subscriber", 0.6), Signal("FM-NATS-01", 0.5)]
    if not missing and not unbound:
        signals.append(Signal("jetstream", -0.5))
    headline = (
        say("scope.broker_missing", names=", ".join(missing))
        if missing
        else say("scope.broker_unbound", names=", ".join(unbound))
        if unbound
        else say("scope.broker_well", version=server.get("version"), streams=len(streams), n=len(present))
    )
    away = monitor is not None and monitor.reason is not Reason.NOT_CONFIGURED
    if monitor:
        headline = say(
            "scope.without_monitor",
            broker=headline,
            why=say(f"unknown.{monitor.reason}", source=monitor.source, detail=monitor.detail),
        )
    return judged(
        headline,
        [
            Value("broker.version", server.get("version")),
            Value("broker.clients", server.get("clients")),
            Value("broker.slow_consumers", server.get("slow_consumers")),
        ],
        # Without the monitoring port the other sections see neither who listens nor who is refused.
        at_least=Status.CRITICAL
        if missing
        else Status.UNKNOWN
        if away
        else Status.WARNING
        if unbound or other or monitor
        else Status.OK,
        reason=monitor.reason if away and monitor else None,
        notes=tuple(notes),
        signals=tuple(signals),
        next_sections=("4.1",) if missing or unbound else (),
        show=("streams", "consumers"),
    )


def _or_missing(ask: Any) -> dict[str, Any]:
    """The broker's answer, or {} where it says that there is no such thing."""
    try:
        return dict(ask())
    except SourceError as e:
        if e.code in ("stream_not_found", "consumer_not_found"):
            return {}
        raise


def _user(url: str) -> str:
    """The user of a URL that also has a password; alone it would be a token."""
    parts = urlsplit(url)
    return parts.username or "" if parts.password else ""


# The database -----------------------------------------------------------------------------------------------


def collect_database(rb: Context) -> Frames:
    """2.5: which server, who we are and what we may; the catalog alone is asked."""
    with rb.snapshot() as db:
        return {
            "server": db.ask("scope/server"),
            "rights": db.ask("scope/rights"),
            "connections": db.ask("database/connections"),
            "sessions": db.ask("database/sessions"),
        }


def judge_database(frames: Frames, given: Given) -> Finding:
    """2.5: reachable, as whom, with which rights, which version, are connections reserved for us?"""
    server = one(frames.get("server"))
    if not server:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="scope/server"))
    rights = frames.get("rights", pd.DataFrame(columns=["table_name", "may_read", "may_write"]))
    unreadable = [str(r["table_name"]) for r in rights.to_dict("records") if not r["may_read"]]
    writable = [str(r["table_name"]) for r in rights.to_dict("records") if r["may_write"]]
    connections = one(frames.get("connections"))
    ordinary = (
        (connections.get("max_connections") or 0)
        - (connections.get("superuser_reserved") or 0)
        - (connections.get("reserved") or 0)
    )
    used = 100 * float(connections.get("used") or 0) / ordinary if ordinary > 0 else None
    role = server.get("role")
    can = say("scope.may_write" if writable else "scope.may_read")
    notes = []
    if unreadable:
        notes.append(say("scope.unreadable", names=", ".join(unreadable)))
    if writable:
        notes.append(say("scope.grants", database=server.get("database")))
    if not server.get("monitor"):
        notes.append(say("scope.no_pg_monitor", role=role))
    if server.get("superuser"):
        reserved = say("scope.reserved_superuser", n=connections.get("superuser_reserved"))
    elif server.get("may_use_reserved") and connections.get("reserved"):
        reserved = say("scope.reserved", n=connections.get("reserved"))
    else:
        reserved = say("scope.not_reserved")
    notes.append(reserved)
    if server.get("track_commit_timestamp") != "on":
        notes.append(say("scope.no_commit_timestamps"))
    if server.get("is_replica"):
        notes.append(say("scope.replica"))
    values = [
        given.limits.value("connections.used", used),
        Value("postgres.version", server.get("version")),
        Value("postgres.role", role),
        Value("postgres.read_only", server.get("read_only")),
        Value("postgres.may_write", len(writable), "tables"),
        Value("postgres.unreadable", len(unreadable), "tables"),
    ]
    return judged(
        say("scope.database_unreadable", role=role, n=len(unreadable))
        if unreadable
        else say("scope.database", version=server.get("version"), role=role, can=can, used=used),
        values,
        at_least=Status.WARNING if unreadable else Status.OK,
        notes=tuple(notes),
        show=("server", "rights", "sessions"),
    )


def database_refused(e: SourceError, given: Given) -> Finding:
    """2.5: no connection left is the answer, not the lack of one."""
    if e.code == "too_many_clients":
        return judged(say("scope.database_full", detail=e.detail), at_least=Status.CRITICAL, next_sections=("4.1",))
    return not_in_reach(e, given)


def not_in_reach(e: SourceError, given: Given) -> Finding:
    """Section 2 asks what is in reach: a source that the sections need and the target does not declare is not."""
    if e.reason is Reason.NOT_CONFIGURED:
        return judged(say("scope.undeclared", source=e.source), at_least=Status.WARNING)
    return could_not_ask(e)


# What a target may or may not have --------------------------------------------------------------------------


def collect_optional(rb: Context) -> Frames:
    """2.6: Redis and Prometheus, where the target declares them."""
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
    redis, targets = one(frames.get("redis")), frames.get("prometheus")
    down = 0 if targets is None or targets.empty else int((targets["value"] == 0).sum())
    scraped = 0 if targets is None else len(targets)
    answers = []
    if redis:
        answers.append(Value("redis.version", redis.get("version")))
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


def collect_clocks(rb: Context) -> Frames:
    """2.7: the offsets that were measured when the section was opened, as pairs."""
    if "postgres" not in rb.clocks:
        with rb.snapshot():  # says why it could not be measured
            pass
    seen = {name: (c.offset_s, c.error_s) for name, c in rb.clocks.items()} | {"here": (0.0, 0.0)}
    pairs = [("postgres", "here"), ("nats", "here"), ("nats", "postgres")]
    return {
        "clocks": pd.DataFrame(
            [
                {
                    "clock": a,
                    "against": b,
                    "ahead_s": seen[a][0] - seen[b][0],
                    "error_s": seen[a][1] + seen[b][1],
                }
                for a, b in pairs
                if a in seen and b in seen
            ],
            columns=["clock", "against", "ahead_s", "error_s"],
        )
    }


def judge_clocks(frames: Frames, given: Given) -> Finding:
    """2.7: how far apart are this machine, the database and the broker?"""
    pairs = frames.get("clocks")
    if pairs is None or pairs.empty:
        return unknown("", Reason.NO_DATA, say("scope.no_clock"))
    # Only what the error of the measurement cannot explain is an offset.
    proven = (pairs["ahead_s"].abs() - pairs["error_s"]).clip(lower=0)
    worst_row = pairs.iloc[int(proven.to_numpy().argmax())]
    servers = proven[pairs["against"] != "here"]
    offset = given.limits.value("clock.offset", float(proven.max()))
    share = given.limits.value(
        "clock.lease_share", float(servers.max()) / facts_of(given).lease_s if len(servers) else None
    )
    # The broker's clock is one of two; without it the share of a lease is not known, which 2.3 already says.
    values = [offset, share] if len(servers) else [offset]
    apart = worst([v.status for v in values if v.status]) is not Status.OK
    notes = [say("scope.clock_workers")]
    if not len(servers):
        notes.append(say("scope.clock_one"))
    return judged(
        say(
            "scope.clocks_apart" if apart else "scope.clocks_well",
            a=say(f"scope.clock_{worst_row['clock']}"),
            b=say(f"scope.clock_{worst_row['against']}"),
            ahead=float(worst_row["ahead_s"]),
            error=float(worst_row["error_s"]),
        ),
        values,
        notes=tuple(notes),
        signals=(Signal("FM-CLK-01", 0.6),) if len(servers) and share.status is not Status.OK else (),
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
