"""Section 2: whether everything that the other sections read can be read from here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Value, judged, say, unknown

from . import sample
from .waiting import judge_workers

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


class Server(rows.Row, query="scope/server"):
    """Our login on the server, and the server's version."""

    version: str = ""
    role: str = ""
    database: str = ""
    sees_others: bool = False
    standby: bool = False


class Part(rows.Row, query="scope/schema"):
    """A table, column or function of procrastinate's schema, and whether it is there."""

    name: str = ""
    kind: str = ""
    there: bool = False
    readable: bool | None = None


class Clock(rows.Row):
    """A server's clock against this machine's."""

    server: str = ""
    offset_s: float | None = None
    error_s: float | None = None


def collect_server(rb: Context) -> Frames:
    """Collect 2.1: our login and its rights."""
    with rb.snapshot() as db:
        return {"server": db.ask("scope/server")}


def judge_server(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 2.1: without the right to see other sessions, a dead worker looks like one that listens."""
    server = rows.one(frames["server"], Server)
    blind = not server.sees_others
    return judged(
        say("reach.blind" if blind else "reach.server", version=server.version, role=server.role, db=server.database),
        [Value("server.version", server.version), Value("server.role", server.role)],
        at_least=Status.WARNING if blind or server.standby else Status.OK,
        notes=(say("reach.standby"),) if server.standby else (),
    )


def collect_schema(rb: Context) -> Frames:
    """Collect 2.2: the parts of the schema that exist."""
    with rb.snapshot() as db:
        return {"schema": db.ask("scope/schema")}


def judge_schema(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 2.2: the tables, and the functions that proposals call."""
    parts = rows.each(frames["schema"], Part)
    missing = [p.name for p in parts if not p.there]
    denied = [p.name for p in parts if p.readable is False]
    if denied and not missing:
        return unknown("", Reason.DENIED, say("reach.denied", names=", ".join(denied)), show=("schema",))
    return judged(
        say("reach.missing" if missing else "reach.schema", names=", ".join(missing), n=len(parts)),
        [Value("schema.missing", len(missing), "parts")],
        at_least=Status.CRITICAL if missing else Status.OK,
        signals=given.evidence("schema.missing") if missing else (),
        show=("schema",) if missing else (),
    )


def collect_clocks(rb: Context) -> Frames:
    """Collect 2.4: the clock offsets measured when the section was opened."""
    clocks = [(name, c.offset_s, c.error_s) for name, c in rb.clocks.items()]
    return {"clocks": pd.DataFrame(clocks, columns=["server", "offset_s", "error_s"])}


def judge_clocks(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 2.4: heartbeats have the database's time; the worker's clock decides when a retry begins."""
    clocks = rows.each(frames.get("clocks"), Clock)
    offset = max((abs(c.offset_s) for c in clocks if c.offset_s is not None), default=None)
    if offset is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="clock"))
    value = given.limits.value("clock.offset", offset)
    apart = value.status is not Status.OK
    return judged(say("reach.clock_apart" if apart else "reach.clock", s=offset), [value], show=("clocks",))


CHECKS = (
    Check("2.1", collect_server, judge_server, needs=("server",)),
    Check("2.2", collect_schema, judge_schema, needs=("schema",)),
    sample.check("2.3", judge_workers),
    Check("2.4", collect_clocks, judge_clocks),
)
