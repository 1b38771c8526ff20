"""PostgreSQL, read within a budget: short read-only snapshots on one connection, bounded on both sides.

The budget is enforced by the server (limits at the start of each transaction, read-only) and by this client (a watchdog
for a server that no longer answers, the cost gate, the row cap). The measurements behind each: docs/architecture.md,
"The read budget". Poolers and replicas: docs/surroundings.md.
"""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pandas as pd
import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from runbook_lib.book.queries import Query, query
from runbook_lib.model.finding import Reason, Window
from runbook_lib.model.quantity import readable
from runbook_lib.model.usage import UsageError
from runbook_lib.sources import secret
from runbook_lib.sources.answers import Answers
from runbook_lib.sources.settings import Budget, TargetFacts, url_problem
from runbook_lib.sources.source import ClockOffset, Opening, ReadCost, SourceError

_error = partial(SourceError, "postgres")
_READERS_LOCK = 0x52554E42  # "RUNB": the advisory lock class of runbook readers
#: Seconds after which an idle connection is closed.
_IDLE_S = 5.0
#: Seconds of lag above which a replica is not used for the window: its last minutes would be incomplete.
_REPLICA_S = 1.0
#: A replica that is further behind than this, in seconds, says nothing of the present.
PRESENT_S = 30.0

# The server's pid, its lag, and whether a reader's slot is free. Where all that was received is applied, a replica is
# not behind, though its last transaction may be old. One that has applied none knows its last checkpoint.
_TURN = """
SELECT pg_backend_pid(),
    CASE
        WHEN NOT pg_is_in_recovery() THEN NULL
        WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
        ELSE greatest(0, extract(epoch FROM clock_timestamp() - coalesce(
            pg_last_xact_replay_timestamp(), (SELECT checkpoint_time FROM pg_control_checkpoint()))))
    END,
    EXISTS (SELECT FROM (SELECT generate_series(1, :readers) AS seat OFFSET 0) seats
            WHERE pg_try_advisory_xact_lock(:class, seat) LIMIT 1)
"""
#: The name of a person's own query.
OWN = "own"
#: The query for the sessions that a query has waited for, and the errors after which it is sent.
_HOLDERS, _WAITED = "database/lock_holders", ("lock_not_available", "statement_timeout")
#: Prefix of parameters that a person has filled in: they may be user ids and are never recorded.
TYPED = "typed_"
# Of tables alone: a view may call a person's column anything, and the catalog's statistics hold values of every column.
_COLUMNS = """
SELECT attrelid, attnum, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE attrelid = ANY (:tables) AND attnum > 0 AND relkind IN ('r', 'p')
  AND relnamespace <> CAST('pg_catalog' AS regnamespace)
"""


#: The columns of a frame of pools, by what PgBouncer calls them.
_POOL_COLUMNS = {"role": "user", "mode": "pool_mode", "clients": "cl_active", "waiting": "cl_waiting"}
_POOL_COLUMNS |= {"servers_active": "sv_active", "servers_idle": "sv_idle"}


@dataclass(frozen=True)
class ServerIdentity:
    """The server that answers at the address.

    `pooled`: a pooler is in between, since the server's process is not the one that the connection was told of.
    `behind_s`: on a replica, its lag behind its own clock, in seconds; None on a primary.
    """

    pooled: bool = False
    behind_s: float | None = None

    @property
    def replica(self) -> bool:
        """Whether it is a replica."""
        return self.behind_s is not None


class Postgres:
    """A database, read in short snapshots over one connection that is reused for a few seconds.

    Connecting is the most expensive part of a small query: the server forks a process, which loads the catalog anew. A
    connection that is idle for `_IDLE_S` is closed. URL and password may be commands that print them. `replica` is used
    for queries about the window while it keeps up. `console`: `pools` may read that of PgBouncer.
    """

    def __init__(
        self,
        url: str,
        application_name: str,
        budget: Budget,
        read_cost: ReadCost,
        *,
        password: str = "",
        replica: Postgres | None = None,
        console: bool = False,
    ) -> None:
        self.budget, self.read_cost, self.replica, self._console = budget, read_cost, replica, console
        self._url = url if secret.is_command(url) else libpq_url(url, "database_url")
        self._password = password
        self.down: tuple[float, SourceError] | None = None
        self._idle: list[psycopg.Connection[Any]] = []
        self._closing: threading.Timer | None = None
        self._last_lag: tuple[float, float] | None = None
        self._name = application_name[:63]
        limits = {
            "statement_timeout": budget.statement_timeout_ms,
            "lock_timeout": budget.lock_timeout_ms,
            "idle_in_transaction_session_timeout": budget.idle_timeout_ms,
            "max_parallel_workers_per_gather": 0,
            "jit": "off",
            "row_security": "off",  # a query that a policy would filter fails: rows unseen are no absence
            "timezone": "UTC",
            "application_name": self._name,
        }
        # In each transaction and not at connect: a pooler takes no such parameters, and gives each another session.
        self.begin = sql.SQL("; ").join(
            [
                sql.SQL("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
                *(sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(k), v) for k, v in limits.items()),
            ]
        )

    @classmethod
    def declared(cls, opening: Opening) -> Postgres | None:
        """Return the target's database, with its replica; None where it declares none."""
        target, limits = opening.target, (opening.run, opening.budget, opening.read_cost)
        url, password = target.url("database_url"), target.database_password
        replica = cls(beside, *limits) if (beside := target.url("replica_url")) else None
        if not url:
            return None
        shown = password.get_secret_value() if password else ""
        return cls(url, *limits, password=shown, replica=replica, console=target.pgbouncer_console)

    def clock(self, facts: TargetFacts) -> dict[str, ClockOffset]:
        """Measure the database's clock, and how far behind it what it shows is."""
        with self.snapshot() as db:
            return {"postgres": ClockOffset(*db.clock_offset(), db.place.behind_s or 0.0)}

    @contextmanager
    def snapshot(self, window: Window | None = None, answers: Answers | None = None) -> Iterator[Snapshot]:
        """Open one short REPEATABLE READ READ ONLY transaction; its answers are of one moment, about that window.

        Of `answers`, those that another step has received a moment ago are not asked for again.

        Raises SourceError; a database that did not answer is not asked again for 15 seconds.
        """
        if self.down and time.monotonic() - self.down[0] < 15:
            raise self.down[1]
        with ExitStack() as open_ones:
            try:
                snapshot = Snapshot(self, window, open_ones, answers)
                open_ones.callback(snapshot.end)
                snapshot.start()
            except SourceError as e:
                if e.code != "readers":
                    self.down = (time.monotonic(), e)
                raise
            yield snapshot

    def pools(self) -> pd.DataFrame:
        """Return the pools of this database from PgBouncer's console, the longest wait first.

        Frame: pooler, role, mode (text); clients, waiting, servers_active, servers_idle (number); longest_wait_s (s).
        Raises SourceError: not configured unless the target allows it, denied where this role may not ask it.
        """
        if not self._console:
            raise SourceError("postgres", Reason.NOT_CONFIGURED, "pgbouncer_console is not set")
        text = "SHOW POOLS"
        with self.read_cost.query("postgres", "pools", text, optional=True) as asked, ExitStack() as ends:
            console = self._open_connection(dbname="pgbouncer")
            ends.callback(console.close)
            with cut_when_hung(console, self.budget):
                version = console.execute("SHOW VERSION").fetchone()
                found = console.execute(text)
                names = [c.name for c in found.description or ()]
                pools = [dict(zip(names, r, strict=True)) for r in found]
            asked.rows = len(pools)
        database = conninfo_to_dict(self._address()[0]).get("dbname")
        rows = [
            {"pooler": str(version[0]) if version else "PgBouncer"}
            | {ours: p[theirs] for ours, theirs in _POOL_COLUMNS.items()}
            | {"longest_wait_s": p["maxwait"] + p["maxwait_us"] / 1e6}
            for p in pools
            if p["database"] == database or (not database and p["database"] != "pgbouncer")
        ]
        frame = pd.DataFrame(rows, columns=["pooler", *_POOL_COLUMNS, "longest_wait_s"])
        return frame.sort_values(["longest_wait_s", "waiting"], ascending=False, ignore_index=True)

    def take(self) -> psycopg.Connection[Any] | None:
        """Return the connection that was given back last, which may have died since; None if there is none."""
        if self._closing:
            self._closing.cancel()
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def give_back(self, connection: psycopg.Connection[Any]) -> None:
        """End the transaction and keep the connection for the next snapshot; close it if it was cut."""
        with suppress(Exception), cut_when_hung(connection, self.budget):
            _end_transaction(connection)
        if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE or self._idle:
            with suppress(Exception):
                connection.close()
            return
        self._idle.append(connection)
        self._closing = threading.Timer(_IDLE_S, self.close)
        self._closing.daemon = True
        self._closing.start()

    def close(self) -> None:
        """Close the kept connection."""
        if (connection := self.take()) is not None:
            with suppress(Exception):
                connection.close()

    def connect(self) -> psycopg.Connection[Any]:
        """Open a connection without limits; the caller begins each transaction with `begin`. Raises SourceError."""
        with self.read_cost.query("postgres", "connect", "CONNECT"):
            return self._open_connection()

    def _open_connection(self, **other: str) -> psycopg.Connection[Any]:
        url, password = self._address()
        if password:
            other["password"] = password
        try:
            return psycopg.connect(
                url,
                autocommit=True,
                prepare_threshold=None,  # a pooler gives the next transaction to another session
                connect_timeout=self.budget.connect_timeout_s,
                application_name=self._name,
                **other,  # type: ignore[arg-type]
            )
        except psycopg.Error as e:
            for written in (self._url, self._password):  # what is refused is not tried again
                secret.renew(written)
            if isinstance(e, psycopg.errors.ConnectionTimeout) and _accepts(url):
                detail = "the server accepts the connection and does not answer"
                raise _error(Reason.TIMEOUT, detail, "unanswered") from None
            raise source_error(e) from None

    def stalls(self, behind_s: float) -> bool:
        """Return whether a replica has hardly advanced since an earlier snapshot: two samples would show no work."""
        now = time.monotonic()
        at, shown = self._last_lag or (now, now - behind_s)
        apart = now - at
        if self._last_lag is None or apart >= 1:
            self._last_lag = (now, now - behind_s)
        return apart >= 1 and now - behind_s - shown < apart / 2

    def _address(self) -> tuple[str, str]:
        """Return the URL, and the password if it stands beside it. Raises SourceError."""
        url = self._read("database_url", self._url)
        if url != self._url:
            if wrong := url_problem(url, "database_url"):
                raise _no_password(f"database_url: the command prints no URL of a database: {wrong}")
            try:
                url = libpq_url(url, "database_url")
            except UsageError:
                raise _no_password("database_url: the command prints a URL that libpq cannot read") from None
        return url, self._read("database_password", self._password)

    def _read(self, name: str, written: str) -> str:
        """Return the value of a setting, from its command if it has one. Raises SourceError."""
        try:
            return secret.read(written) if secret.is_command(written) else written
        except ValueError as e:
            raise _no_password(f"{name}: {e}") from None


class Snapshot:
    """Queries of one moment, in one transaction."""

    def __init__(
        self, source: Postgres, window: Window | None, open_ones: ExitStack, answers: Answers | None = None
    ) -> None:
        self._source, self._window, self._open_ones = source, window, open_ones
        self._answers = Answers() if answers is None else answers
        self._budget, self._read_cost = source.budget, source.read_cost
        kept = source.take()
        self._was_kept = kept is not None
        self._connection = kept or source.connect()
        self._failure: SourceError | None = None
        self._replica: Snapshot | None = None
        self._stalls = self._repeated = False
        self.place = ServerIdentity()

    def start(self) -> None:
        """Begin, and wait for a turn: only `readers` runs read one database at once, since a burst of alerts must not
        add to its load. Raises SourceError.
        """
        until = time.monotonic() + 5
        while True:
            with suppress(SourceError), self._cut_when_hung():
                _end_transaction(self._connection)
            if self._failure and not self._was_kept:
                raise self._failure
            try:
                self._execute_sql(self._source.begin)
            except SourceError as e:
                if self._was_kept:  # whether one can connect is told by a new one
                    self._connect_anew()
                    continue
                if e.code != "hung":
                    raise
                # The server forks a process that answers, or none. This waits in the queue of what stands between.
                detail = "connected, and no answer to the first statement: a pooler may have no connection to give"
                raise _error(Reason.TIMEOUT, detail, "queued") from None
            pid, behind_s, turn = self._fetch_row(_TURN, {"readers": self._budget.readers, "class": _READERS_LOCK})
            if turn:
                break
            if time.monotonic() > until:
                raise _error(Reason.TIMEOUT, "other runs of the runbook are reading; try again", "readers")
            time.sleep(random.uniform(0.05, 0.2))  # noqa: S311 - spreads the readers out
        self.place = ServerIdentity(
            pid != self._connection.info.backend_pid, None if behind_s is None else float(behind_s)
        )
        self._stalls = self.place.replica and self._source.stalls(self.place.behind_s or 0.0)

    def end(self) -> None:
        """Give the connection back."""
        self._source.give_back(self._connection)

    def _connect_anew(self) -> None:
        with suppress(Exception):
            self._connection.close()
        self._was_kept, self._failure = False, None
        self._connection = self._source.connect()

    def ask(self, name: str | Query, **params: Any) -> pd.DataFrame:
        """Run a query, or that of a name in the packs' sql folders; return its result, at most `max_rows` rows.

        `:as_of`, `:since` and `:max_rows` are bound for every query. `frame.attrs["capped"]` is true if there were more
        rows. On a replica the present is the moment that it shows. Raises SourceError: timeout, denied, error, or
        no_data for a query about the present if the replica shows a past moment.
        """
        q, params = _bind_query(name, params)
        return self._ask_once(q, params, lambda: self._pick_server(q)._query_with_retry(q, params))

    def _ask_once(self, q: Query, params: dict[str, Any], ask: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        key = (q.name, q.sql, repr(sorted(params.items())), self._window)
        return self._answers.once(key, self._read_cost, ask).copy()

    def ask_own(self, text: str, **params: Any) -> pd.DataFrame:
        """Run a person's own SELECT within the same limits and through the cost gate. Raises SourceError.

        `frame.attrs["columns"]` has the table's column behind each of the frame's, None where it is computed.
        """
        inner = text.strip().rstrip(";")
        # As a part of ours it is one statement whatever it holds, and the rows beyond the cap are never made.
        wrapped = f"SELECT * FROM (\n{inner}\n) AS own LIMIT :max_rows"  # noqa: S608 - the person may run any SELECT
        own = Query(OWN, wrapped, question=OWN, index="scan", cost="scan", answers="window")
        one = self._pick_server(own)
        frame = one._query_with_retry(own, params)
        origins = frame.attrs["origins"]
        known = {
            (r[0], r[1]): r[2]
            for r in one._execute_sql(_COLUMNS, {"tables": [oid for oid, _ in origins if oid]}).fetchall()
        }
        frame.attrs["columns"] = [known.get(o) for o in origins]
        return frame

    def try_ask(self, name: str | Query, **params: Any) -> pd.DataFrame | None:
        """Run a query as `ask`; return None if it is not allowed or fails. The snapshot stays usable."""
        try:
            return self.ask_apart(name, **params)
        except SourceError:
            if self._pick_server(_find_query(name))._failure:
                raise
            return None

    def ask_apart(self, name: str | Query, **params: Any) -> pd.DataFrame:
        """Run a query as `ask`; the snapshot stays usable if it fails. Raises SourceError."""
        q, params = _bind_query(name, params)
        return self._ask_once(q, params, lambda: self._pick_server(q)._query_apart(q, params))

    def _query_apart(self, q: Query, params: dict[str, Any]) -> pd.DataFrame:
        try:
            frame = self._query_with_retry(q, params, apart=True)
        except SourceError:
            if not self._failure:
                self._execute_sql("ROLLBACK TO SAVEPOINT question")
            raise
        self._execute_sql("RELEASE SAVEPOINT question")
        return frame

    @property
    def of_the_window(self) -> ServerIdentity | None:
        """The replica that answers about the window; None where this server does."""
        one = self._replica_snapshot()
        return None if one is None else one.place

    def clock_offset(self, rounds: int = 9) -> tuple[float, float]:
        """Return the seconds that the database's clock is ahead of this machine's, and the error bound.

        Of nine round trips the shortest counts; its midpoint is taken as the moment of the server's answer.
        """
        samples = []
        with self._read_cost.query("postgres", "clock_offset", "SELECT clock_timestamp()") as asked:
            for _ in range(rounds):
                sent = time.time()
                (server,) = self._fetch_row("SELECT extract(epoch FROM clock_timestamp())", {})
                received = time.time()
                samples.append((received - sent, float(server) - (sent + received) / 2))
            asked.rows = rounds
        rtt, offset = min(samples)
        return offset, rtt / 2

    def _query_with_retry(self, q: Query, params: dict[str, Any], *, apart: bool = False) -> pd.DataFrame:
        """Run a query on this server; repeat it once if a replica cancels it for its own recovery.

        That is another moment than of the answers before: the one that they were of is no longer there.
        """
        while True:
            try:
                if apart:
                    self._execute_sql("SAVEPOINT question")
                return self._run_query(q, params)
            except SourceError as e:
                if e.code in _WAITED:
                    e.holders = self._ask_for_holders(q, apart=apart)
                if e.code != "recovery_conflict":
                    raise
                if self._repeated:
                    detail = "the replica has cancelled this twice for its own recovery: try again, or ask the primary"
                    raise _error(Reason.TIMEOUT, detail, e.code) from None
            self._repeated = True
            if self._failure:
                self._connect_anew()
            self.start()

    def _ask_for_holders(self, q: Query, *, apart: bool) -> pd.DataFrame | None:
        """Return the sessions that keep a query out of its tables; None if no pack in use has the query for them."""
        with suppress(SourceError, KeyError):
            holders = query(_HOLDERS)
            if apart:
                self._execute_sql("ROLLBACK TO SAVEPOINT question")
            else:
                self._execute_sql("ROLLBACK")
                self._execute_sql(self._source.begin)
            self._execute_sql("SELECT pg_stat_clear_snapshot()")  # a transaction sees the sessions of its first query
            return self._run_query(holders, {"names": sorted({*re.findall(r"\w+", q.sql)})})
        return None

    def _run_query(self, q: Query, params: dict[str, Any]) -> pd.DataFrame:
        bound = {
            "as_of": self._window and self._window.as_of,
            "since": self._window and self._window.since,
            "max_rows": self._budget.max_rows + 1,
        } | params
        text = q.sql
        if self.place.behind_s and q.cost != "catalog":  # the catalog's views are of this very moment on a replica too
            text = _NOW.sub(r"(\g<0> - make_interval(secs => :behind_s))", text)
            bound["behind_s"] = self.place.behind_s
        used = {k: bound[k] for k in _compile_query(text)[1] if k in bound}
        own = q.name == OWN  # what a responder has written or filled in may be a user
        sent = self._read_cost.masker.statement(text) if own else text
        shown = {k: "..." if own or k.startswith(TYPED) else v for k, v in used.items()}
        with self._read_cost.query("postgres", q.name, sent, shown) as asked:
            if q.answers == "present" and q.cost != "catalog":
                self._require_present_data()
            if q.cost == "scan":
                asked.plan_cost = self._plan_cost(text, used)
                if asked.plan_cost > self._budget.max_plan_cost:
                    limit = f"{self._budget.max_plan_cost:,.0f}"
                    detail = f"plan cost {asked.plan_cost:,.0f} is over the limit of {limit}"
                    raise _error(Reason.DENIED, detail, "cost_gate")
            with self._execute_sql(text, used) as result:
                try:
                    rows = result.fetchmany(self._budget.max_rows + 1)
                except psycopg.Error as e:  # a value that Python has no form for, such as the timestamp infinity
                    raise source_error(e) from None
                columns = [c.name for c in result.description or ()]
                answer = result.pgresult
            asked.rows = len(rows)
            frame = pd.DataFrame(rows[: self._budget.max_rows], columns=columns)
            frame.attrs["capped"] = len(rows) > self._budget.max_rows
            if q.name == OWN and answer:
                frame.attrs["origins"] = [(answer.ftable(n), answer.ftablecol(n)) for n in range(answer.nfields)]
        return _convert_types(frame)

    def _require_present_data(self) -> None:
        behind_s = self.place.behind_s or 0.0
        if self._stalls or behind_s > PRESENT_S:
            how = "stands still at a moment" if self._stalls else "shows a moment"
            age = " ".join(readable(behind_s, "s"))
            detail = f"this replica {how} {age} ago, which says nothing of the present: ask the primary"
            raise _error(Reason.NO_DATA, detail, "replica_behind")

    def _pick_server(self, q: Query) -> Snapshot:
        return (self._replica_snapshot() if q.answers == "window" else None) or self

    def _replica_snapshot(self) -> Snapshot | None:
        """Return a snapshot of the replica for this window; None if there is no replica, or it lags."""
        if self._replica is None and self._source.replica is not None:
            self._replica = self
            with suppress(SourceError):
                one = self._open_ones.enter_context(self._source.replica.snapshot(self._window, self._answers))
                if one.place.behind_s is None or one.place.behind_s <= _REPLICA_S:
                    self._replica = one
        return None if self._replica is self else self._replica

    def _plan_cost(self, text: str, params: dict[str, Any]) -> float:
        (plan,) = self._fetch_row(f"EXPLAIN (FORMAT JSON) {text}", params)
        return float(plan[0]["Plan"]["Total Cost"])

    def _fetch_row(self, text: str, params: dict[str, Any]) -> tuple[Any, ...]:
        with self._execute_sql(text, params) as result:
            row: tuple[Any, ...] = result.fetchone() or ()
        return row

    def _execute_sql(self, text: str | sql.Composed, params: dict[str, Any] | None = None) -> psycopg.Cursor[Any]:
        if self._failure:
            raise self._failure
        asked = text if isinstance(text, sql.Composed) else _compile_query(text)[0] if params else text.encode()
        with self._cut_when_hung():
            return self._connection.execute(asked, params or None)

    @contextmanager
    def _cut_when_hung(self) -> Iterator[None]:
        """Convert the driver's errors; remember one that has ended the connection. Raises SourceError."""
        try:
            with cut_when_hung(self._connection, self._budget):
                yield
        except SourceError as e:
            if self._connection.closed:
                self._failure = e
            raise


def _find_query(name: str | Query) -> Query:
    return name if isinstance(name, Query) else query(name)


def _bind_query(name: str | Query, params: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    """Return the query and those of the parameters that it has: the others do not make it another query."""
    q = _find_query(name)
    return q, {k: v for k, v in params.items() if k in _compile_query(q.sql)[1]}


def _end_transaction(connection: psycopg.Connection[Any]) -> None:
    """End a transaction that only read. The server counts a rollback, which is evidence of a database that refuses."""
    clean = connection.pgconn.transaction_status == TransactionStatus.INTRANS
    (connection.commit if clean else connection.rollback)()


@contextmanager
def cut_when_hung(connection: Any, budget: Budget) -> Iterator[threading.Event]:
    """Cut the line of a psycopg connection when the server does not even enforce its own statement_timeout.

    Raises SourceError for the driver's errors.
    """
    cut = threading.Event()

    def shut() -> None:
        cut.set()
        with suppress(OSError):
            # Only a shutdown wakes a thread that waits in libpq; the descriptor stays libpq's own.
            line = socket.socket(fileno=connection.fileno())
            try:
                line.shutdown(socket.SHUT_RDWR)
            finally:
                line.detach()

    timer = threading.Timer(budget.statement_timeout_ms / 1000 + 1, shut)
    timer.daemon = True
    timer.start()
    try:
        yield cut
    except psycopg.Error as e:
        if cut.is_set():
            raise _error(Reason.TIMEOUT, "the server accepted the query and never answered", "hung") from None
        raise source_error(e) from None
    finally:
        timer.cancel()


_NOW = re.compile(r"\b(?:now|clock_timestamp)\(\)")
_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]


@cache
def _compile_query(text: str) -> tuple[bytes, frozenset[str]]:
    """Compile a query for the driver; return it with the names of its parameters."""
    compiled = sa.text(text).compile(dialect=_DIALECT)
    return str(compiled).encode(), frozenset(compiled.params)


def _accepts(url: str) -> bool:
    """Return whether a connection to the port of the address can be made; False if that is no single host and port."""
    known = conninfo_to_dict(url)
    with suppress(OSError, ValueError):
        socket.create_connection((str(known["host"]), int(known.get("port") or 5432)), timeout=1).close()
        return True
    return False


def libpq_url(url: str, setting: str) -> str:
    """Convert a URL to libpq's form: without the name of a driver.

    Raises UsageError where it can not read it, without a word of it: it may hold a password.
    """
    url = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url)
    try:
        conninfo_to_dict(url)
    except psycopg.Error:
        raise UsageError(f"{setting} is not a URL like postgresql://user@host:5432/database") from None
    return url


def _no_password(why: str) -> SourceError:
    return _error(Reason.DENIED, why, "no_password")


def _convert_types(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert decimals to floats and timestamps to UTC, which pandas would otherwise leave as objects."""
    for column in frame.columns:
        kinds = {type(v).__name__ for v in frame[column] if v is not None}
        if kinds == {"datetime"}:
            frame[column] = pd.to_datetime(frame[column], utc=True)
        elif kinds and kinds <= {"Decimal", "float", "int"} and "Decimal" in kinds:
            frame[column] = pd.to_numeric(frame[column].astype(float))
        elif kinds == {"UUID"}:
            frame[column] = [None if v is None else str(v) for v in frame[column]]
    return frame


#: Reason and code by the server's SQLSTATE.
_SQLSTATE = {
    "57014": (Reason.TIMEOUT, "statement_timeout"),
    "55P03": (Reason.TIMEOUT, "lock_not_available"),
    "25P03": (Reason.TIMEOUT, "idle_timeout"),
    # A read-only snapshot conflicts only with a replica's recovery.
    "40001": (Reason.TIMEOUT, "recovery_conflict"),
    "40P01": (Reason.TIMEOUT, "recovery_conflict"),
    "42501": (Reason.DENIED, "permission_denied"),
    "28P01": (Reason.DENIED, "wrong_password"),
    "28000": (Reason.DENIED, "not_authorised"),
    "3D000": (Reason.UNREACHABLE, "no_such_database"),
    "53300": (Reason.UNREACHABLE, "too_many_clients"),
    # Somebody ended this session, or the server shuts down: the next connection tells which.
    "57P01": (Reason.UNREACHABLE, "ended"),
    "57P03": (Reason.UNREACHABLE, "starting_up"),
    "3F000": (Reason.ERROR, "schema_missing"),
    "42P01": (Reason.ERROR, "table_missing"),
    "42703": (Reason.ERROR, "column_missing"),
}
#: At connect psycopg gives no SQLSTATE; the message is all there is.
_AT_CONNECT = (
    ("too many clients", "53300"),
    ("remaining connection slots are reserved", "53300"),
    ("too many connections", "53300"),
    ("no more connections allowed", "53300"),
    ("cannot connect to server", "08006"),
    ("password authentication failed", "28P01"),
    ("sasl authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("permission denied for database", "28000"),
    ("database does not exist", "3D000"),
    ("role does not exist", "28000"),
    ("conflict with recovery", "40001"),
    ("starting up", "57P03"),
    ("shutting down", "57P03"),
)


def source_error(e: psycopg.Error) -> SourceError:
    """Return the SourceError of a driver's error, with the server's reason and without addresses."""
    message = str(e).strip()
    state = e.sqlstate
    if state is None:
        lowered = re.sub(' "[^"]*"', "", message).lower()  # a name is anybody's choice
        if "timeout expired" in lowered or "timed out" in lowered:
            return _error(Reason.TIMEOUT, "no answer to the connection", "no_connection")
        if "too many connections for role" in lowered:  # the runbook's own: the services log in as another
            return _error(Reason.DENIED, "the connection limit of the runbook's own role is reached", "own_limit")
        state = next((code for phrase, code in _AT_CONNECT if phrase in lowered), None)
    # The last FATAL or ERROR sentence is the server's reason; what stands before it is the address list.
    sentences = re.findall(r"(?:FATAL|ERROR):\s+(.+)", message)
    detail = sentences[-1] if sentences else message.splitlines()[0] if message else type(e).__name__
    if (state or "").startswith("22"):  # the message quotes the invalid value, which may be a user id
        detail = re.sub('".*"', '"..."', detail)
    if state == "57014" and "user request" in message:  # somebody cancelled it
        return _error(Reason.ERROR, detail, "cancelled")
    if "affected by row-level security policy" in detail:
        return _error(Reason.DENIED, f"{detail}: only a role with BYPASSRLS sees all of its rows", "row_security")
    if state in _SQLSTATE:
        reason, code = _SQLSTATE[state]
        return _error(reason, detail, code)
    if isinstance(e, psycopg.OperationalError):
        if sentences and state is None:  # the peer, a pooler for example, refuses this connection
            return _error(Reason.DENIED, detail, "not_admitted")
        return _error(Reason.UNREACHABLE, detail, state or "no_connection")
    return _error(Reason.ERROR, detail, state or "")
