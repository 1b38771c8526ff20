"""Whether a database answers, as whom and with which rights, whether a schema is as expected, and whether clocks agree.

These are steps of the section about reachability; they read catalogs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Text, Value, judged, say, unknown
from runbook_lib.model.frames import row
from runbook_lib.packs.postgres import locks
from runbook_lib.packs.postgres.locks import Connections, Pool, ServerInfo, collect_server_info

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: The queries of `collect_database`, by frame.
DATABASE = {
    "server": "scope/server",
    "rights": "scope/rights",
    "connections": "database/connections",
    "sessions": "database/sessions",
}


# A schema ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schema:
    """What a system relies on in a schema: its tables, each with its columns, and its indexes.

    `unique` indexes protect the data, with the observation of one that is missing ("" for none); the other `indexes`
    only keep queries fast. `migrations` is the query of the migrations that have run, the newest first.
    """

    name: str
    tables: Mapping[str, str]
    unique: Mapping[str, str]
    indexes: str
    migrations: str


class TableColumns(rows.Row, query="scope/columns"):
    """A table and the names of its columns."""

    table_name: str = ""
    column_names: str = ""


class Index(rows.Row, query="scope/indexes"):
    """An index, and whether it is valid."""

    index_name: str = ""
    usable: bool = False


class Migration(rows.Row):
    """A migration that has run."""

    version: str | None = None
    success: bool = False


class Partitioned(rows.Row, query="scope/partitions"):
    """A table that is partitioned by time, and the days until its last partition ends."""

    table_name: str = ""
    partitions: int = 0
    ahead_d: float | None = None
    takes_the_rest: bool = False


def collect_schema(rb: Context, schema: Schema, activity: Mapping[str, str]) -> Frames:
    """Query tables, columns, indexes and migrations of a schema, and its activity, in one snapshot.

    `activity` has its queries by the names of their frames.
    Frames: tables, indexes, migrations, partitions, and those of the queries.
    """
    of_the_schema = {
        "tables": TableColumns.QUERY,
        "indexes": Index.QUERY,
        "migrations": schema.migrations,
        "partitions": Partitioned.QUERY,
    }
    parts = FrameCollector()
    with rb.snapshot() as db:
        parts.ask(db, of_the_schema | dict(activity), schema=schema.name)
    return parts.frames()


def judge_schema(frames: Frames, given: JudgeInput, schema: Schema) -> Finding:
    """Judge whether a schema is as its system expects it; the observations `scope.*` are rows of the system's pack."""
    present = {t.table_name: t.column_names.split() for t in rows.each(frames.get("tables"), TableColumns)}
    missing = [
        f"{table}.{column}" if table in present else table
        for table, columns in schema.tables.items()
        for column in (columns.split() if table in present else [""])
        if column not in present.get(table, [])
    ]
    indexes = rows.each(frames.get("indexes"), Index)
    usable = {i.index_name for i in indexes if i.usable}
    unprotected = [i for i in schema.unique if i not in usable]
    slow = [i for i in schema.indexes.split() if i not in usable]
    migrations = rows.each(frames.get("migrations"), Migration)
    failed = not all(m.success for m in migrations)
    partitioned = rows.each(frames.get("partitions"), Partitioned)
    bounded = [(p.ahead_d, p) for p in partitioned if p.ahead_d is not None and not p.takes_the_rest]
    ahead_d, shortest = min(bounded, key=lambda p: p[0], default=(None, Partitioned()))
    ahead = given.limits.value("partitions.ahead", ahead_d)
    ended = ahead_d is not None and ahead_d <= 0
    if missing:
        problem = say("scope.lacking", schema=schema.name, names=", ".join(missing[:5]), n=len(missing))
    elif unprotected:
        problem = say("scope.unprotected", schema=schema.name, names=", ".join(unprotected))
    elif failed:
        problem = say("scope.migration_failed", schema=schema.name)
    elif ahead_d is not None and ahead.status is not Status.OK:
        key = "scope.partition_ended" if ended else "scope.partition_missing"
        problem = say(key, schema=schema.name, table=shortest.table_name, days=abs(ahead_d))
    else:
        problem = say("scope.schema_as_expected", schema=schema.name, tables=len(schema.tables), indexes=len(indexes))
    return judged(
        problem,
        [
            Value(f"{schema.name}.tables", len(schema.tables.keys() & present.keys())),
            Value(f"{schema.name}.indexes_usable", len(usable)),
            Value(f"{schema.name}.migration", migrations[0].version if migrations else None),
            *((ahead,) if bounded else ()),
        ],
        at_least=Status.CRITICAL if missing or unprotected or failed else Status.WARNING if slow else Status.OK,
        notes=(
            *((say("scope.slow_indexes", names=", ".join(slow)),) if slow and not missing else ()),
            *(say("scope.partitioned", table=p.table_name, n=p.partitions) for p in partitioned),
        ),
        signals=given.evidence_of(
            (
                *(("scope.schema_differs",) if missing or failed else ()),
                *(observation for i in unprotected if (observation := schema.unique[i])),
                *(("scope.index_unusable",) if slow else ()),
                *(("scope.partition_missing",) if ended else ()),
            )
        ),
        show=("migrations",),
    )


# The server and the login -----------------------------------------------------------------------------------


class DatabaseServer(rows.Row, query="scope/server"):
    """The server, and the runbook's role in it; `monitor` tells whether it sees other sessions."""

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


def collect_database(rb: Context, schemas: list[str] | None, tables: list[str] | None = None) -> Frames:
    """Query the server, the runbook's role and its rights on tables of these schemas (None: of the search path).

    `tables` are their names without the schema; None for all.

    Frames: those of `DATABASE` and of `locks.collect_server_info`; window (asked: flag; behind_s: s) if the target
    declares a replica for queries about the window.
    """
    with rb.snapshot() as db:
        frames = {name: db.ask(query, schemas=schemas, tables=tables) for name, query in DATABASE.items()}
        if rb.target.replica_url is not None:
            at = db.of_the_window
            frames["window"] = row(asked=at is not None, behind_s=at and at.behind_s)
        return frames | collect_server_info(rb, db)


def judge_database(frames: Frames, given: JudgeInput, schemas: list[str] | None = None) -> Finding:
    """Judge whether the role can read all tables; report its rights, the version and reserved connections."""
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
    blind = not (server.monitor or server.superuser)
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
        at_least=Status.WARNING if unreadable or blind or (window and not window.asked) else Status.OK,
        notes=(
            *((say("scope.unreadable", names=", ".join(unreadable)),) if unreadable else ()),
            *(
                (say("scope.grants", database=server.database, schemas=", ".join(schemas or ["public"])),)
                if writable
                else ()
            ),
            *((say("scope.no_pg_monitor", role=server.role),) if blind else ()),
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


def database_check(step: str, schemas: list[str] | None, tables: list[str] | None = None) -> Check:
    """Return the check of the server and the login, for a system with these tables (see `collect_database`)."""
    return Check(
        step,
        partial(collect_database, schemas=schemas, tables=tables),
        partial(judge_database, schemas=schemas),
        on_error=locks.on_error,
        needs=("server", "rights", "connections"),
        queries=locks.list_queries(tuple(DATABASE.values())),
    )


# The clocks -------------------------------------------------------------------------------------------------


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
    """Compare the clocks as measured when the section was opened. Frame: clocks (fields of `ClockPair`)."""
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


def judge_clocks(frames: Frames, given: JudgeInput, lease_s: float | None = None, apart: str = "") -> Finding:
    """Judge the clock offsets between this machine and the servers, between servers also as a share of a lease.

    `apart` is the observation of servers whose clocks differ by too much of a lease.
    """
    pairs = [pair for pair in rows.each(frames.get("clocks"), ClockPair) if pair.clock]
    if not pairs:
        return unknown("", Reason.NO_DATA, say("scope.no_clock"))
    furthest = max(pairs, key=lambda p: p.proven_s)
    values = [given.limits.value("clock.offset", furthest.proven_s)]
    # Without the broker's clock the offset between servers, as a share of a lease, is unknown; another step tells why.
    servers = [p.proven_s for p in pairs if p.against != "here"] if lease_s else []
    if servers and lease_s:
        values.append(given.limits.value("clock.lease_share", max(servers) / lease_s))
    well = all(v.status is Status.OK for v in values)
    return judged(
        say(
            "scope.clocks_well" if well else "scope.clocks_apart",
            a=say(f"scope.clock_{furthest.clock}"),
            b=say(f"scope.clock_{furthest.against}"),
            ahead=furthest.ahead_s,
            error=furthest.error_s,
        ),
        values,
        notes=(say("scope.clock_one"),) if lease_s and not servers else (),
        signals=given.evidence(apart) if servers and values[-1].status is not Status.OK else (),
        show=("clocks",),
    )


def clocks_check(
    step: str, lease_s: Callable[[JudgeInput], float | None] = lambda given: None, apart: str = ""
) -> Check:
    """Return the check of the clocks, for a system whose workers lease rows for so many seconds (None: they do not)."""

    def judge(frames: Frames, given: JudgeInput) -> Finding:
        return judge_clocks(frames, given, lease_s(given), apart)

    return Check(step, collect_clocks, judge, needs=("clocks",))
