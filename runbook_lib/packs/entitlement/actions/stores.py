"""Read the three stores of dead letters, send their dead letters again, and query the results.

The code runs with the action's credentials, on the statements of `sql/redrive`. One statement changes a row, its dead
letter and its line in the ledger together.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from runbook_lib.book.queries import query, statement
from runbook_lib.model.finding import Reason
from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import DatabaseIdentity
from runbook_lib.packs.jetstream.search import FETCH_SIZE, advised_sequence, read_messages
from runbook_lib.sources.jetstream import JetStream, Message
from runbook_lib.sources.postgres import cut_when_hung, libpq_url, source_error
from runbook_lib.sources.settings import Budget
from runbook_lib.sources.source import ReadCost, SourceError

if TYPE_CHECKING:
    from runbook_lib.book.catalog import RedrivePolicy
    from runbook_lib.checks.context import Context

#: Required fields of a notification; an event with an empty one fails again.
EVENT_FIELDS = ["event_id", "event_type", "occurred_at", "user_id", "stock_keeping_unit"]
MATCH_FIELDS = ["match_id"]
#: The advisory lock class of redrives, one lock per store: "RUND".
_LOCK = 0x52554E44
#: Messages that are fetched over one connection, and rows that one statement reads.
PAGE = 1000
DAY_S = 86400.0
#: The rights to read what shows that an event was processed.
_TRACES = tuple(
    (f"notification.{table}", "SELECT") for table in ("processed_events", "notifications", "notification_dlq")
)
#: What `DeadLetter.verdict` may be.
VERDICTS = ("eligible", "permanent", "old", "over_limit", "held", "doubled", "gone")


class Writer:
    """The action's database connection. Each statement is a transaction of its own."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]], budget: Budget, read_cost: ReadCost) -> None:
        self._connection, self._budget, self._read_cost = connection, budget, read_cost

    def ask(self, name: str, **params: Any) -> list[dict[str, Any]]:
        """Run a statement of `sql/redrive` and return its rows. Raises SourceError."""
        return self._execute(f"redrive/{name}", statement(f"redrive/{name}"), params)

    def identity(self) -> str:
        """Return the database and its cluster's identifier; "" if this role may not read it."""
        asked = query(DatabaseIdentity.QUERY)
        with suppress(SourceError):
            return DatabaseIdentity(**self._execute(asked.name, asked.sql, {})[0]).identity
        return ""

    def lock(self, store: str) -> bool:
        """Take the lock on redrives of this store until the connection ends; return False if another redrive has it."""
        sql = "SELECT pg_try_advisory_lock(%(class)s, hashtext(%(store)s)) AS taken"
        return bool(self._execute("lock", sql, {"class": _LOCK, "store": store})[0]["taken"])

    def _execute(self, name: str, sql: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        with (
            self._read_cost.query("postgres", name, sql, {}) as asked,
            cut_when_hung(self._connection, self._budget) as cut,
        ):
            try:
                cursor = self._connection.execute(sql.encode(), params or None)
                rows = cursor.fetchall() if cursor.description else []
            except psycopg.Error as e:
                if cut.is_set():
                    raise SourceError("postgres", Reason.TIMEOUT, "the server never answered", "hung") from None
                raise source_error(e) from None
            asked.rows = len(rows)
        return rows


@contextmanager
def connect(rb: Context) -> Iterator[Writer]:
    """Connect to the database with the credentials for actions. Raises SourceError."""
    budget = rb.budget
    settings = {
        "statement_timeout": budget.statement_timeout_ms,
        "lock_timeout": budget.lock_timeout_ms,
        "idle_in_transaction_session_timeout": budget.idle_timeout_ms,
        "timezone": "UTC",
    }
    url = libpq_url(rb.target.url("action_database_url") or "", "action_database_url")
    with rb.read_cost.query("postgres", "connect", "CONNECT, to act"):
        try:
            connection = psycopg.connect(
                url,
                autocommit=True,
                row_factory=dict_row,
                connect_timeout=budget.connect_timeout_s,
                application_name=f"runbook/act/{rb.parameters.incident_id}"[:63],
                options=" ".join(f"-c {k}={v}" for k, v in settings.items()),
            )
        except psycopg.Error as e:
            raise source_error(e) from None
    try:
        if connection.execute("SELECT pg_backend_pid() AS pid").fetchone() != {"pid": connection.info.backend_pid}:
            # The lock on redrives belongs to a session, and a pooler shares sessions among its clients.
            detail = "the connection goes through a pooler: action_database_url needs the server's own address"
            raise SourceError("postgres", Reason.DENIED, detail, "pooled")
        yield Writer(connection, budget, rb.read_cost)
    finally:
        with suppress(psycopg.Error):
            connection.close()


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter, and whether it may be sent again.

    The verdict is "eligible", "permanent" (it would fail again), "old" (its event may have been processed, and the
    traces removed), "over_limit" (sent again as often as the policy allows), "held" (leased by a worker), "doubled"
    (its event was processed, or has another notification) or "gone" (no body).
    """

    event_id: uuid.UUID | None
    verdict: str
    failed_at: datetime
    error: str | None = None
    is_match: bool = False
    notification_id: uuid.UUID | None = None
    stream_seq: int | None = None
    archived: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """Return what tells it from the others of its store."""
        return self.event_id, self.notification_id, self.stream_seq

    @property
    def name(self) -> str:
        """Return the event's id, or the sequence of a message without a readable id."""
        return str(self.event_id) if self.event_id else f"seq {self.stream_seq}"

    def row(self) -> dict[str, Any]:
        """Return the dead letter in the form that `enter.sql` takes."""
        archived = dict(self.archived) | {"verdict": self.verdict}
        ids = {k: str(v) if v else None for k, v in vars(self).items() if k in ("event_id", "notification_id")}
        return {**ids, "stream_seq": self.stream_seq, "archived": archived}


class Table:
    """Dead letters that are rows of a worker's table: a row becomes PENDING again."""

    #: The settings with the credentials that it needs.
    urls: tuple[str, ...] = ("action_database_url",)
    #: The largest number of rows that is read; discarded ones are not counted.
    most = 20 * PAGE

    def __init__(self, rb: Context, name: str, rights: tuple[tuple[str, str], ...]) -> None:
        #: `rights` are the privileges that it needs: (table, privilege).
        self.name, self.rights = name, rights
        self._numbers = _read_numbers(rb)

    def pages(
        self, db: Writer, policy: RedrivePolicy, named: Sequence[uuid.UUID], since: datetime | None
    ) -> Iterator[list[DeadLetter]]:
        """Yield the FAILED rows that are not discarded, oldest first.

        With `named` only those of these events, with `since` only those that failed then or later.
        """
        for skip in range(0, self.most, PAGE):
            rows = db.ask(
                f"{self.name}_waiting",
                named=list(named) or None,
                since=since,
                per_event=policy.per_event,
                of_event=EVENT_FIELDS,
                of_match=MATCH_FIELDS,
                page=PAGE,
                skip=skip,
                **self._numbers,
            )
            yield [DeadLetter(**row) for row in rows]
            if len(rows) < PAGE:
                return

    def flow(self, db: Writer, lease_s: float) -> dict[str, Any]:
        """Return `failed_s` (since the last failure), `retrying` (rows that wait for a retry), `works` (flag).

        The worker works if no row has been due for longer than a lease.
        """
        (row,) = db.ask(f"{self.name}_flow", lease_s=lease_s, **self._numbers)
        return row | {"works": not row["overdue"]}

    def outcomes(self, db: Writer, ids: Sequence[int] | None) -> list[dict[str, Any]]:
        """Return the outcomes of ledger rows (`id`, `event_id`, `user_id`, `outcome`); None: of all open rows."""
        return db.ask(f"{self.name}_outcomes", ids=None if ids is None else list(ids))

    def take(self, db: Writer, letters: Sequence[DeadLetter], entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Update row, dead letter and ledger together; return ledger `id` and `event_id` of those that were sent."""
        return db.ask(
            f"{self.name}_take", keys=[letter.notification_id or letter.event_id for letter in letters], **entry
        )


class BrokerLetters:
    """Messages that the broker gave up: their stored bodies are published again."""

    name = "broker"
    urls: tuple[str, ...] = ("action_database_url", "action_nats_url")
    rights: tuple[tuple[str, str], ...] = (("notification.notification_nats_dlq", "SELECT"), *_TRACES)
    #: The newest sequences of both records: neither shrinks, and most of their entries are settled.
    most = 2000

    def __init__(self, rb: Context) -> None:
        self._streams, self._now, self._numbers = facts_of(rb).streams, rb.now, _read_numbers(rb)
        self._apart = pd.Timedelta(seconds=self._numbers["apart_s"])
        name = f"runbook/act/{rb.parameters.incident_id}"
        self._jetstream = JetStream(rb.target.url("action_nats_url") or "", name, rb.read_cost, rb.target.action_nats)

    def pages(
        self, db: Writer, policy: RedrivePolicy, named: Sequence[uuid.UUID], since: datetime | None
    ) -> Iterator[list[DeadLetter]]:
        """Yield the newest messages of both records whose event has not been processed since; see `Table.pages`."""
        given_up = self._read_advisories(since)
        for row in db.ask("broker_letters", most=self.most):
            seq, at = row["stream_seq"], pd.Timestamp(row["created_at"])
            given_up[seq] = max(at, given_up.get(seq, at))
        if since is not None:
            given_up = {seq: at for seq, at in given_up.items() if at >= since}
        # A message stored after the failure is another one: the stream was made anew.
        bodies = {
            m.seq: m
            for m in self._fetch_messages(self._streams.events, sorted(given_up))
            if pd.Timestamp(m.time) - given_up[m.seq] <= self._apart
        }
        events = {seq: read_event(message) for seq, message in bodies.items()}
        found = [events.get(seq) or (None, None) for seq in given_up]
        ids, users = [event[0] for event in found], [event[1] for event in found]
        asked = db.ask("broker_known", seqs=list(given_up), events=ids, users=users)
        known = {row["stream_seq"]: row for row in asked}
        by_name = (self._now() - pd.Timedelta(seconds=self._numbers["by_name_s"])).to_pydatetime(warn=False)
        letters: dict[object, DeadLetter] = {}
        for seq, at in sorted(given_up.items(), key=lambda item: item[::-1]):
            message, event, row = bodies.get(seq), events.get(seq), known[seq]
            if row["processed"] or row["discarded"]:
                continue
            if message is None or event is None:
                verdict = "gone" if message is None else "permanent"
                letter = DeadLetter(None, verdict, at, stream_seq=seq)
            else:
                event_id, user, occurred_at = event
                young = min(message.time, occurred_at) >= by_name
                verdict = "over_limit" if row["times"] >= policy.per_event else "eligible" if young else "old"
                archived = {"subject": message.subject, "stored_at": message.time.isoformat(), "user_id": user}
                letter = DeadLetter(event_id, verdict, at, stream_seq=seq, archived=archived)
            # An event that was given up several times is sent once.
            letters.setdefault(letter.event_id or seq, letter)
        yield [letter for letter in letters.values() if not named or letter.event_id in named]

    def flow(self, db: Writer, lease_s: float) -> dict[str, Any]:
        """Return the flow; the subscriber works if it is bound."""
        (row,) = db.ask("broker_flow")
        state = self._jetstream.stream(self._streams.advisory)["state"]
        # The broker's advisory exists even if the subscriber could not record the failure.
        times = [row["failed_at"], pd.Timestamp(state["last_ts"]) if state["messages"] else None]
        newest = max((at for at in times if at is not None), default=None)
        consumer = self._jetstream.consumer(self._streams.events, self._streams.consumer)
        failed_s = None if newest is None else (row["now"] - newest).total_seconds()
        return {"failed_s": failed_s, "retrying": row["retrying"], "works": consumer.bound}

    def outcomes(self, db: Writer, ids: Sequence[int] | None) -> list[dict[str, Any]]:
        """Return the outcomes: processed, given up again, lost with the stream, or waiting."""
        rows = db.ask("broker_outcomes", ids=None if ids is None else list(ids), **self._numbers)
        waiting = [row for row in rows if row["outcome"] == "waiting"]
        if waiting:
            given_up = self._read_advisories(min(row["at"] for row in waiting))
            seqs = [row["published_seq"] for row in waiting]
            message_ids = {
                m.seq: m.headers.get("Nats-Msg-Id") for m in self._fetch_messages(self._streams.events, seqs)
            }
            for row in waiting:
                seq, advised_at = row["published_seq"], given_up.get(row["published_seq"])
                if message_ids.get(seq) != message_id(row["id"]):
                    row["outcome"] = "missing"
                elif row["recorded"] or (advised_at is not None and advised_at >= row["at"] - self._apart):
                    row["outcome"] = "failed"
        return rows

    def take(self, db: Writer, letters: Sequence[DeadLetter], entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Enter the dead letters as to be published; `publish` publishes them."""
        return enter_decisions(db, self.name, "redrive", "publishing", letters, entry)

    def publish(self, db: Writer, row: Mapping[str, Any]) -> bool:
        """Publish a row's stored body with the row's own message id, so that the stream stores it only once.

        Returns False, and settles the row, if the body is gone.
        """
        (found,) = self._fetch_messages(self._streams.events, [row["stream_seq"]]) or (None,)
        event = read_event(found) if found else None
        if found is None or event is None or event[0] != row["event_id"]:
            settle(db, [{**row, "outcome": "missing"}])
            return False
        # The stored Nats-Msg-Id would make it a duplicate, and the Nats-Expected-... headers no longer hold.
        headers = {k: v for k, v in found.headers.items() if not k.startswith("Nats-")}
        seq = self._jetstream.publish(found.subject, found.body, headers | {"Nats-Msg-Id": message_id(row["id"])})
        db.ask("published", id=row["id"], seq=seq)
        return True

    def _read_advisories(self, since: datetime | None) -> dict[int, pd.Timestamp]:
        """Return the sequences of the newest MAX_DELIVERIES advisories, with the time of the newest one of each.

        They are read backwards, with `since` until they are older.
        """
        state = self._jetstream.stream(self._streams.advisory)["state"]
        last = int(state["last_seq"])
        first = max(int(state["first_seq"]), last - self.most + 1, 1)
        found: dict[int, pd.Timestamp] = {}
        for end in range(last, first - 1, -FETCH_SIZE):
            part = self._fetch_messages(self._streams.advisory, range(max(end - FETCH_SIZE + 1, first), end + 1))
            for message in reversed(part):
                if (seq := advised_sequence(message)) is not None:
                    found.setdefault(seq, pd.Timestamp(message.time))
            if since is not None and part and pd.Timestamp(part[0].time) < since - self._apart:
                break
        return found

    def _fetch_messages(self, stream: str, seqs: Sequence[int]) -> list[Message]:
        return list(read_messages(self._jetstream, stream, seqs))


Store: TypeAlias = Table | BrokerLetters


def store(name: str, rb: Context) -> Store:
    """Return the store of this name (docs/operations.md)."""
    if name == "delivery":
        return Table(rb, name, (("notification.notifications", "UPDATE"), ("notification.notification_dlq", "DELETE")))
    if name == "outbox":
        return Table(rb, name, (("entitlement.outbox_events", "UPDATE"), *_TRACES))
    return BrokerLetters(rb)


def _read_numbers(rb: Context) -> dict[str, float]:
    """Return the numbers that the statements take."""
    return {
        "apart_s": rb.number("dead_letters.clocks_apart"),
        "by_name_s": rb.number("redrive.by_name") * DAY_S,
        "near_s": rb.number("redrive.matches"),
        "tries_s": rb.number("publish.tries_longest"),
    }


def enter_decisions(
    db: Writer, store: str, decision: str, state: str, letters: Sequence[DeadLetter], entry: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Enter a decision on each dead letter into the ledger."""
    rows = Jsonb([letter.row() for letter in letters])
    return db.ask("enter", store=store, decision=decision, state=state, letters=rows, **entry)


def settle(db: Writer, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Enter the final outcomes into the ledger."""
    ended = [row for row in outcomes if row["outcome"] in ("succeeded", "failed", "missing")]
    db.ask("settle", ids=[row["id"] for row in ended], states=[row["outcome"] for row in ended])


def count_duplicates(db: Writer, outcomes: Sequence[Mapping[str, Any]], near_s: float) -> int:
    """Count the events that have more than one notification; of a match, those created within `near_s` count."""
    known = [row for row in outcomes if row["user_id"] is not None]
    rows = db.ask(
        "doubled",
        events=[r["event_id"] for r in known],
        users=[r["user_id"] for r in known],
        matches=[r.get("match_at") for r in known],
        near_s=near_s,
    )
    return len({row["event_id"] for row in rows})


def message_id(row: int) -> str:
    """Return the message id for a row of the ledger; it is the same for every publish."""
    return f"redrive-{row}"


def read_event(message: Message) -> tuple[uuid.UUID, str, datetime] | None:
    """Return the event's id, user and time; None for a message that the subscriber cannot process."""
    try:
        event: wire.EntitlementEvent = wire.decode(message.body)
        at = datetime.fromisoformat(event.occurred_at)
        # PostgreSQL stores no NUL, so that the subscriber cannot process it either.
        return (uuid.UUID(event.event_id), event.user_id, at) if at.tzinfo and "\0" not in event.user_id else None
    except (wire.WireError, ValueError):
        return None
