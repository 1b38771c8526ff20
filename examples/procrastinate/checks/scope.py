"""Section 2: can everything that the other sections ask be seen from here?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.checks.check import Check
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Value, judged, say, unknown

from . import look
from .waiting import judge_workers

if TYPE_CHECKING:
    from runbook_lib.context import Context


@dataclass(frozen=True)
class Server:
    """Who we are on the server, and what it is."""

    QUESTION: ClassVar = "scope/server"
    version: str = ""
    role: str = ""
    database: str = ""
    read_only: bool = False
    sees_others: bool = False
    standby: bool = False


@dataclass(frozen=True)
class Part:
    """A table, column or function of procrastinate's schema, and whether it is there."""

    QUESTION: ClassVar = "scope/schema"
    name: str = ""
    kind: str = ""
    there: bool = False
    readable: bool | None = None


@dataclass(frozen=True)
class Clock:
    """A server's clock against this machine's."""

    server: str = ""
    offset_s: float | None = None
    error_s: float | None = None


def collect_server(rb: Context) -> Frames:
    """2.1: who we are, what we see."""
    with rb.snapshot() as db:
        return {"server": db.ask("scope/server")}


def judge_server(frames: Frames, given: Given) -> Finding:
    """2.1: without the right to see other sessions, a worker that is gone looks like one that listens."""
    server = rows.one(frames.get("server"), Server)
    if not server.version:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="server"))
    blind = not server.sees_others
    return judged(
        say("reach.blind" if blind else "reach.server", version=server.version, role=server.role, db=server.database),
        [Value("server.version", server.version), Value("server.role", server.role)],
        at_least=Status.WARNING if blind or server.standby else Status.OK,
        notes=(say("reach.standby"),) if server.standby else (),
    )


def collect_schema(rb: Context) -> Frames:
    """2.2: what of the schema is there."""
    with rb.snapshot() as db:
        return {"schema": db.ask("scope/schema")}


def judge_schema(frames: Frames, given: Given) -> Finding:
    """2.2: the tables, and the functions that proposals call."""
    parts = rows.each(frames.get("schema"), Part)
    if not parts:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="schema"))
    missing = [p.name for p in parts if not p.there]
    denied = [p.name for p in parts if p.readable is False]
    if denied and not missing:
        return unknown("", Reason.DENIED, say("reach.denied", names=", ".join(denied)), show=("schema",))
    return judged(
        say("reach.missing" if missing else "reach.schema", names=", ".join(missing), n=len(parts)),
        [Value("schema.missing", len(missing), "parts")],
        at_least=Status.CRITICAL if missing else Status.OK,
        signals=given.speaks("schema.missing") if missing else (),
        show=("schema",) if missing else (),
    )


def collect_workers(rb: Context) -> Frames:
    """2.3: the look of 4.1."""
    return look.shared(rb, "2.3")


def collect_clocks(rb: Context) -> Frames:
    """2.4: the offsets that were measured when the section was opened."""
    clocks = [(name, c.offset_s, c.error_s) for name, c in rb.clocks.items()]
    return {"clocks": pd.DataFrame(clocks, columns=["server", "offset_s", "error_s"])}


def judge_clocks(frames: Frames, given: Given) -> Finding:
    """2.4: heartbeats are the database's own time; when a retry begins, the worker's clock has said."""
    clocks = rows.each(frames.get("clocks"), Clock)
    offset = max((abs(c.offset_s) for c in clocks if c.offset_s is not None), default=None)
    if offset is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="clock"))
    value = given.limits.value("clock.offset", offset)
    apart = value.status is not Status.OK
    return judged(say("reach.clock_apart" if apart else "reach.clock", s=offset), [value], show=("clocks",))


CHECKS: tuple[Check, ...] = (
    Check("2.1", collect_server, judge_server),
    Check("2.2", collect_schema, judge_schema),
    Check("2.3", collect_workers, judge_workers),
    Check("2.4", collect_clocks, judge_clocks),
)
