"""What the tests of whole steps share: running them on real servers, rows that agree with each other, odd frames."""

from __future__ import annotations

import asyncio
import operator
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from itertools import product
from typing import Any

import nats
import pandas as pd
import psycopg
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.js import JetStreamContext
from psycopg import sql

from runbook_lib.book import catalog, messages
from runbook_lib.book.parameters import validate
from runbook_lib.checks.check import NOT_READ_COLUMNS, checks
from runbook_lib.checks.context import Context, JudgeInput, open_context
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Verdict, say
from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.facts import EntitlementFacts
from runbook_lib.packs.entitlement.wire import EntitlementEvent
from runbook_lib.sources import logs
from runbook_lib.sources.settings import Budget, Settings
from runbook_lib.view import charts
from tests.kit.servers import Servers
from tests.kit.waiting import until

CHECKS = checks()

NOW = pd.Timestamp("2025-01-31 03:00:10", tz="UTC")


def read_log(*lines: str, at: pd.Timestamp = NOW, mask: Callable[[str], str] = str) -> logs.Log:
    """A log of these lines, as it is read at a moment."""
    return replace(logs.read("\n".join(lines), mask), at=at.to_pydatetime())


def make_given(**changes: Any) -> JudgeInput:
    book = catalog.load()
    usual: dict[str, Any] = {"catalog": book, "as_of": NOW, "window_minutes": 15, "facts": EntitlementFacts()}
    return JudgeInput(**(usual | changes))


def charts_of(step: str, frames: Frames, given: JudgeInput) -> list[charts.Chart]:
    """Return the charts of a step that has data for them; each can be drawn, and has words in every language."""
    described = [chart for describe in checks()[step].described_charts(frames, given) if (chart := describe())]
    for chart, lang in product(described, messages.LANGUAGES):
        assert charts.draw(chart) and messages.text(chart.alt, lang)
    return described


def ago(seconds: float) -> pd.Timestamp:
    return NOW - pd.Timedelta(seconds=seconds)


def weight(finding: Finding, about: str) -> float:
    """Return the strongest evidence for a hop or mode; without any, what is against it; 0 if nothing speaks of it."""
    weights = [s.weight for s in finding.signals if s.about == about]
    return max([*filter(lambda w: w > 0, weights)] or weights, default=0.0)


def words(finding: Finding, lang: str = "en") -> str:
    """The headline, after making sure that every text exists in both languages and takes its parameters."""
    for each in messages.LANGUAGES:
        for text in (finding.headline, *finding.notes):
            assert messages.text(text, each)
        for p in finding.proposals:
            for part in ("title", "preconditions", "effect", "risk", "undo", "verify"):
                assert messages.text(say(f"proposal.{p.name}.{part}", **p.params), each)
    return messages.text(finding.headline, lang)


COMPARED = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq}


def expect(
    finding: Finding,
    status: Status | None = None,
    key: str | None = None,
    *,
    reason: Reason | None = None,
    proposals: list[str] | None = None,
    sections: tuple[str, ...] | None = None,
    values: Mapping[str, Any] | None = None,
    weights: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
    observations: set[str] | None = None,
    says: str | tuple[str, ...] = (),
) -> None:
    """Hold a finding against what is said of it, and see that its texts exist.

    A weight is compared, as in "> 0.5"; `notes` are among its notes, and what it `says` among its headline's words.
    """
    said = words(finding)
    assert status in (None, finding.status), (finding.status, said)
    assert key in (None, finding.headline.key), (finding.headline.key, said)
    assert reason in (None, finding.reason), (finding.reason, said)
    assert proposals in (None, [p.name for p in finding.proposals]), [p.name for p in finding.proposals]
    assert sections in (None, finding.next_sections), finding.next_sections
    for name, value in (values or {}).items():
        assert finding.value(name) == value, name
    for about, limits in (weights or {}).items():
        for sign, limit in zip(limits.split()[::2], limits.split()[1::2], strict=True):
            assert COMPARED[sign](weight(finding, about), float(limit)), (about, weight(finding, about))
    assert {*notes} <= {n.key for n in finding.notes}
    assert observations in (None, {s.observation for s in finding.signals}), finding.signals
    for part in (says,) if isinstance(says, str) else says:
        assert part in said, said


def through(
    *late_ago: float, flowing: bool = True, of: str = "sent", tried: int = 0, single: tuple[float, ...] = ()
) -> pd.DataFrame:
    """Five minutes in steps of ten seconds, 50 rows each: ten late at each of these moments, one at `single` ones."""
    rows = []
    for n in range(0 if flowing else 1, 30):
        late = [at for at in (*(late_ago * 10), *single) if at // 10 == n]
        rows.append((of, n, 50.0, float(len(late)), float(tried * len(late)), ago(min(late)) if late else None))
    frame = pd.DataFrame(rows, columns=["what", "tens_ago", "n", "late", "tried", "last_late"])
    return frame.assign(last_late=pd.to_datetime(frame["last_late"], utc=True))


def got_through(*late_ago: float, published: tuple[float, ...] = (), **how: Any) -> Frames:
    """Both flows; what was sent was late at these moments."""
    return {"sent_steps": through(*late_ago, **how), "published_steps": through(*published, of="published")}


def documented(finding: Finding) -> bool:
    """Whether each piece of evidence has the name of an observation, or of a log phrase, of the documents."""
    book = catalog.load()
    return {s.observation for s in finding.signals} <= {*book.observations, *book.phrases}


def verdict_of(*findings: Finding) -> Verdict:
    """What they come to together."""
    return conclude(findings, catalog.load())


def open_target(section: str, target: dict[str, Any], *, budget: Budget | None = None, **parameters: Any) -> Context:
    """A section on a target that these settings describe; the budget is the environment's where none is given."""
    book, config = catalog.load(), Settings(targets={"here": target})
    if budget:
        config = config.model_copy(update={"budget": budget})
    given = validate({"incident_id": "test", "target": "here", **parameters})
    return open_context(book.sections[section], given, config, book)


def run(servers: Servers, *steps: str, without: tuple[str, ...] = (), **parameters: Any) -> dict[str, Finding]:
    """The steps of one section, as its notebook would ask them."""
    urls = {k.removeprefix("RUNBOOK_").lower(): v for k, v in servers.env.items()}
    more = ("database_password", "pgbouncer_console")
    changed = {k: parameters.pop(k) for k in [*parameters] if k.endswith("_url") or k in more}
    target = {k: v for k, v in (urls | changed).items() if k not in without}
    rb = open_target(steps[0].rpartition(".")[0], target, **parameters)
    for step in steps:
        rb.findings[step] = CHECKS[step].run(rb)
        words(rb.findings[step])
        assert documented(rb.findings[step]), rb.findings[step].signals
        assert rb.findings[step].reason is not Reason.ERROR, rb.findings[step].headline
        charts_of(step, rb.findings[step].frames, rb.given())
    return rb.findings


def failures(*rows: tuple[str, str, str, str, str]) -> pd.DataFrame:
    """What could not be read: part, source, reason, detail, code."""
    return pd.DataFrame(rows, columns=NOT_READ_COLUMNS)


def statuses(found: dict[str, Finding]) -> dict[str, Status]:
    return {step: f.status for step, f in found.items()}


_EVENT = """
WITH event AS (
    SELECT gen_random_uuid() AS id, gen_random_uuid() AS notification_id, 'user-' || g AS who, g,
        now() - %(age)s * interval '1 s' - g * interval '10 ms' AS t
    FROM generate_series(1, %(n)s) g
), audit AS (
    INSERT INTO entitlement.entitlement_audit (audit_id, occurred_at, user_id, stock_keeping_unit, action)
    SELECT gen_random_uuid(), t, who, 'sku', 'GRANT' FROM event WHERE %(audit)s
), held AS (
    INSERT INTO entitlement.entitlements (user_id, stock_keeping_unit, status, updated_at)
    SELECT who, 'sku', 'ACTIVE', t FROM event WHERE %(audit)s
    ON CONFLICT (user_id, stock_keeping_unit) DO UPDATE
        SET updated_at = greatest(entitlements.updated_at, excluded.updated_at)
), outbox AS (
    INSERT INTO entitlement.outbox_events (event_id, event_type, aggregate_key, payload, status, created_at,
        published_at, attempt_count, last_error, next_retry_at)
    SELECT id, 'EntitlementGranted', who || ':sku', '{}', %(outbox)s, t,
        CASE WHEN %(outbox)s = 'PUBLISHED' THEN t + interval '0.5 s' END, %(publish_tries)s, %(error)s,
        now() + %(publish_again)s * interval '1 s'
    FROM event WHERE %(outbox)s IS NOT NULL
), processed AS (
    INSERT INTO notification.processed_events (event_id, processed_at)
    SELECT id, t + interval '0.6 s' FROM event WHERE %(processed)s
), notified AS (
    INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at, payload_json,
        status, created_at, sent_at, attempt_count, next_retry_at, locked_by, locked_at, lease_until)
    SELECT notification_id, id, who, 'EntitlementGranted', t, '{"stock_keeping_unit": "sku"}', %(status)s,
        t + interval '0.6 s',
        CASE WHEN %(status)s = 'SENT' THEN t + %(sent_after)s * interval '1 s' END, %(tries)s,
        CASE WHEN %(status)s IN ('SENT', 'FAILED') THEN NULL
             ELSE coalesce(now() + %(again)s * interval '1 s', t + interval '0.6 s') END,
        %(by)s, now() - %(locked)s * interval '1 s', now() - %(over)s * interval '1 s'
    FROM event WHERE %(status)s IS NOT NULL
)
INSERT INTO notification.notification_dlq (dlq_id, notification_id, event_id, payload_json, error_message, created_at)
SELECT gen_random_uuid(), notification_id, id, '{}', 'HTTP 503', now() - coalesce(%(dead)s, 0) * interval '1 s'
FROM event WHERE %(dead)s IS NOT NULL
"""


#: Of events that have not come further than the broker.
UNPROCESSED: dict[str, Any] = {"processed": False, "status": None}


def events(db: psycopg.Connection, n: int, age: float, **values: Any) -> None:
    """`n` events about `age` seconds old, sent in time unless `values` say otherwise; times are in seconds."""
    usual: dict[str, Any] = {
        "audit": True, "outbox": "PUBLISHED", "publish_tries": 0, "error": None, "publish_again": None,
        "processed": True, "status": "SENT", "sent_after": 1.2, "tries": 0, "again": None, "by": None, "locked": None,
        "over": None, "dead": None,
    }  # fmt: skip
    assert values.keys() <= usual.keys()
    db.execute(_EVENT, usual | {"n": n, "age": age} | values)


def an_event(**changes: Any) -> EntitlementEvent:
    """A whole event as the applications publish it."""
    usual: dict[str, Any] = {
        "event_id": str(uuid.uuid4()), "event_type": wire.GRANTED, "occurred_at": "2026-03-01T12:00:00.000001Z",
        "user_id": "user-0001", "stock_keeping_unit": "sku-starter", "source": "purchase", "source_id": "purchase-1",
        "version": 0, "trace_id": "abc",
    }  # fmt: skip
    return EntitlementEvent(**usual | changes)


def insert(db: psycopg.Connection, table: str, **row: Any) -> None:
    """One row, by the names of its columns."""
    names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
    db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})".encode(), list(row.values()))


def traffic(db: psycopg.Connection, seconds: int = 300, until: int = 0, per_second: int = 5) -> None:
    """A healthy flow that ends `until` seconds ago."""
    for second in range(until + 2, until + seconds):
        events(db, per_second, second)


@contextmanager
def undone(db: psycopg.Connection, statement: str, undo: str) -> Iterator[None]:
    """A statement whose effect is taken back, whatever happens."""
    db.execute(statement.encode())
    try:
        yield
    finally:
        db.execute(undo.encode())


@contextmanager
def locked(servers: Servers, table: str, mode: str = "ACCESS EXCLUSIVE", held_s: float = 0.0) -> Iterator[int]:
    """A migration's lock on a table; its pid."""
    with psycopg.connect(servers.admin_url, application_name="migration") as holder:
        name = sql.Identifier(*table.split("."))
        holder.execute(sql.SQL("LOCK TABLE {} IN {} MODE").format(name, sql.SQL(mode)))
        holder.execute("SELECT pg_sleep(%s)", [held_s])
        yield holder.info.backend_pid
        holder.rollback()


@contextmanager
def lock_wait(url: str, statement: str) -> Iterator[psycopg.Connection]:
    """A session whose statement waits for a lock; it is cancelled at the end."""
    with psycopg.connect(url, autocommit=True) as db, closing(psycopg.connect(url, autocommit=True)) as waiting:
        waiting.pgconn.send_query(statement.encode())
        granted = "SELECT bool_and(granted) FROM pg_locks WHERE pid = %s"
        until(lambda: db.execute(granted, [waiting.info.backend_pid]).fetchone() == (False,), "a wait for a lock")
        try:
            yield waiting
        finally:
            waiting.cancel_safe()


#: The slots of connections that the services' role may not take.
RESERVED = ("superuser_reserved_connections", "reserved_connections")


@contextmanager
def slots_taken(
    db: psycopg.Connection, url: str, *, left: Iterable[str] = RESERVED, application_name: str = "test"
) -> Iterator[None]:
    """Sessions in all slots but `db`'s own and those that these settings reserve; every other session is ended."""
    others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"

    def end_others() -> None:
        db.execute(f"SELECT pg_terminate_backend(pid) {others}".encode())
        until(lambda: not db.execute(f"SELECT 1 {others}".encode()).fetchone(), "the end of the other sessions")

    def session() -> closing[psycopg.Connection] | None:
        """None while a session that was refused, or has ended, still has the slot."""
        with suppress(psycopg.OperationalError):
            return closing(psycopg.connect(url, application_name=application_name))
        return None

    def setting(name: str) -> int:
        row = db.execute("SELECT coalesce(current_setting(%s, true)::integer, 0)", [name]).fetchone()
        assert row is not None
        return int(row[0])

    end_others()
    with ExitStack() as held:
        for _ in range(setting("max_connections") - sum(setting(name) for name in left) - 1):
            held.enter_context(until(session, "a free slot"))
        yield
        end_others()


def publish(
    url: str, *bodies: bytes, headers: dict[str, str] | None = None, subject: str = applications.SUBJECT
) -> list[int]:
    """Publish messages; their sequences."""

    async def scene(js: JetStreamContext) -> list[int]:
        return [(await js.publish(subject, body, headers=headers)).seq for body in bodies]

    return applications.visit(url, scene)


def publish_ids(url: str, ids: Iterable[str | None], subject: str = applications.SUBJECT) -> list[int]:
    """Publish an empty message for each id, and return their sequences; None goes without an id."""

    async def scene(js: JetStreamContext) -> list[int]:
        headers = [{"Nats-Msg-Id": id_} if id_ else None for id_ in ids]
        return [(await js.publish(subject, b"", headers=each)).seq for each in headers]

    return applications.visit(url, scene)


def acknowledge(url: str, seqs: Iterable[int]) -> None:
    """Acknowledge what the subscriber's consumer delivers, until messages of these sequences were among it."""

    async def scene(js: JetStreamContext) -> None:
        config = (await js.consumer_info(applications.STREAM, applications.CONSUMER)).config
        inbox = await js.subscribe_bind(applications.STREAM, config, applications.CONSUMER, manual_ack=True)
        left = {*seqs}
        while left:
            message = await inbox.next_msg(timeout=10)
            await message.ack_sync()
            left.discard(message.metadata.sequence.stream)

    applications.visit(url, scene)


@contextmanager
def bound(url: str, *without: str, acknowledges: bool = False) -> Iterator[None]:
    """Somebody is bound to all consumers but these, and acknowledges nothing, or each message."""
    loop = asyncio.new_event_loop()

    async def bind() -> Client:
        client = await nats.connect(url)
        js = client.jetstream()
        for durable, (stream, _) in applications.CONSUMERS.items():
            if durable not in without:
                consumer = await js.consumer_info(stream, durable)
                inbox = await js.subscribe_bind(stream, consumer.config, durable, manual_ack=True)
                for _ in range(consumer.num_pending or 0 if acknowledges else 0):
                    await (await inbox.next_msg(timeout=10)).ack_sync()
        return client

    client = loop.run_until_complete(bind())
    try:
        yield
    finally:
        loop.run_until_complete(client.close())
        loop.close()


# Frames of every shape ---------------------------------------------------------------------------------------


MODEST = st.none() | st.floats(-5, 1e6)
NUMBERS = st.one_of(st.none(), st.just(float("nan")), st.floats(-1e9, 1e9), st.integers(-(10**9), 10**12))


def odd_frames(frames: Frames, columns: bool = False) -> st.SearchStrategy[Frames]:
    """The given frames with some missing, emptied, or with other numbers, and some without columns if wanted."""

    def strange(frame: pd.DataFrame) -> st.SearchStrategy[pd.DataFrame | None]:
        shapes: list[st.SearchStrategy[pd.DataFrame | None]] = [st.sampled_from([frame, None, frame.head(0)])]
        if columns and len(frame.columns):
            shapes.append(st.just(pd.DataFrame()))
            shapes.append(st.sampled_from(list(frame.columns)).map(lambda name: frame.drop(columns=name)))
        numbers = [c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c]) and frame[c].dtype != bool]
        if (columns or len(frame) == 1) and (numbers := [c for c in numbers if c != "bucket"]):
            cells = st.fixed_dictionaries({str(c): NUMBERS if columns else MODEST for c in numbers})
            shapes.append(cells.map(lambda cells: frame.assign(**cells)))
        return st.one_of(shapes)

    return st.fixed_dictionaries({name: strange(frame) for name, frame in frames.items()}).map(
        lambda found: {name: f for name, f in found.items() if f is not None}
    )
