"""2.2: whether the table is as the pack describes it."""

from __future__ import annotations

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Text, Value, judged, say, unknown

from .. import remedies
from ..queue import COLUMNS, STATES, TIMES, Queue

_TIMESTAMP = "timestamp without time zone"
_TIME_TYPES = (_TIMESTAMP, "timestamp with time zone")


class ColumnThere(rows.Row, query="queues/table"):
    """A column that the pack names, as the table has it; `labels` are those of an enum, one in a line."""

    name: str = ""
    has_table: bool = False
    is_there: bool = False
    is_readable: bool = False
    may_write: bool = False
    type: str = ""
    labels: str = ""
    common: str = ""


def judge_table(queue: Queue, frames: Frames, given: JudgeInput) -> Finding:
    """Judge 2.2: what the table lacks, or what has another type, no step can tell."""
    columns = {c.name: c for c in rows.each(frames["table"], ColumnThere)}
    first = next(iter(columns.values()), ColumnThere())
    times = {c: columns[c] for name, c in queue.columns.items() if name in TIMES and c in columns}
    missing = [name for name, c in columns.items() if not c.is_there] if first.has_table else [queue.table]
    odd = [f"{name} ({c.type})" for name, c in times.items() if c.type not in _TIME_TYPES]
    state, named = columns.get(queue.state or "", ColumnThere()), queue.states
    labels = state.labels.split("\n")
    odd += [f"{queue.state} '{s}'" for s in named if labels[0] and s not in labels]
    unnamed = sorted({*labels, *state.common.split("\n")} - {"", *named})
    problems = {"missing": missing, "denied": [n for n, c in columns.items() if not c.is_readable], "odd": odd}
    for problem, names in problems.items():
        if names:
            reason = Reason.DENIED if problem == "denied" else Reason.NO_DATA
            said = say(f"reach.{problem}", names=", ".join(names), table=queue.table)
            return unknown("", reason, said, proposals=(remedies.see(given, queue, "see_table"),), show=("table",))
    local = [name for name, c in times.items() if c.type == _TIMESTAMP]
    return judged(
        say("reach.unnamed", states=", ".join(unnamed), table=queue.table)
        if unnamed
        else say("reach.table", table=queue.table, n=len(columns)),
        [Value("table.columns", len(columns), "columns")],
        at_least=Status.WARNING if unnamed else Status.OK,
        notes=_notes(queue, local, may_write=first.may_write),
    )


def _notes(queue: Queue, local: list[str], *, may_write: bool) -> tuple[Text, ...]:
    absent = [n for n in COLUMNS if n not in queue.columns and n != "group"]
    absent += [group for group in STATES if not getattr(queue, group) and group != "aside"]
    absent = [n for n in absent if not (queue.deleted_when_done and n == "done")]
    return (
        *([say("reach.may_write")] if may_write else []),
        *([say("reach.local_times", names=", ".join(local))] if local else []),
        *([say("reach.deleted")] if queue.deleted_when_done else []),
        *([say("reach.absent", names=", ".join(absent))] if absent else []),
    )
