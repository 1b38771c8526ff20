"""Steps 2.2 and 2.3: whether the schema is there and readable, and which workers are registered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Value, judged, say, unknown

from . import sample
from .waiting import judge_workers

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


class Part(rows.Row, query="scope/schema"):
    """A table, column or function of procrastinate's schema, and whether it is there."""

    name: str = ""
    kind: str = ""
    there: bool = False
    readable: bool | None = None


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


CHECKS = (
    Check("2.2", collect_schema, judge_schema, needs=("schema",)),
    sample.check("2.3", judge_workers),
)
