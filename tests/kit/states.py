"""States that no recording has, made from recorded frames: what is changed in them, and what comes out.

`recordings/states/4.1.1.toml` holds those of step 4.1.1. It says for each state which recorded section it is `from`,
and by step and frame what is different: columns that every row gets (a row is made where there is none), other rows,
the recorded section that the frame is taken from, or "unread". Other rows may also make a frame that the recording does
not have; "+name" is a column that the recorded frame does not have. With `where = {...}` only the rows with these
values get the columns, and `where_not = {...}` takes such rows out; a list of such changes makes one after the other.
`like = "name"` takes another frame of the step instead, and `capped = true` says that more rows exist. "-30 s" is a
time, so long before the recorded moment; "unknown", and what a row does not name, was not read. `4.1.1.json` beside it
has the result of the section, and of its steps those that differ from the recording's.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from datetime import timedelta
from functools import cache
from typing import Any

import pandas as pd

from runbook_lib.book import catalog
from runbook_lib.runs import replay
from runbook_lib.store import capsule
from runbook_lib.store.run import Run
from tests.kit import RECORDINGS

#: A time of a state, in seconds before the recorded moment; after it, if negative.
_AGO = re.compile(r"-(-?[\d.]+) s")
_KINDS = {bool: "bool", int: "int", float: "float", str: "text"}
STATES = RECORDINGS / "states"


def states() -> dict[str, dict[str, Any]]:
    """Return the states, by step and name."""
    read = {file.stem: tomllib.loads(file.read_text(encoding="utf-8")) for file in sorted(STATES.glob("*.toml"))}
    return {f"{step} {name}": state for step, named in read.items() for name, state in named.items()}


def expected() -> dict[str, dict[str, Any]]:
    """Return what is expected of the states, by step and name."""
    read = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(STATES.glob("*.json"))}
    return {f"{step} {name}": found for step, named in read.items() for name, found in named.items()}


def write_expected(found: Mapping[str, Any]) -> None:
    """Expect this of the states, by step and name."""
    for step in {name.partition(" ")[0] for name in found}:
        own = {name.partition(" ")[2]: said for name, said in found.items() if name.startswith(f"{step} ")}
        text = json.dumps(own, ensure_ascii=False, indent=1, sort_keys=True)
        (STATES / f"{step}.json").write_text(text + "\n", encoding="utf-8")


def evaluate(state: Mapping[str, Any]) -> dict[str, Any]:
    """Judge a state; return the verdict of the section, and the steps that differ from the recording's."""
    name, section = state["from"].split()
    run = _read(name)[section]
    changed = Run(section, run.header | state.get("header", {}), deepcopy(run.stored))
    for step, frames in state.items():
        if step not in ("from", "header"):
            (stored,) = (f["frames"] for f in changed.stored if f["step"] == step)
            for frame, new in frames.items():
                old = stored.pop(frame, None)
                if isinstance(new, dict) and (like := new.get("like")):
                    old = stored[like]
                if new != "unread":
                    stored[frame] = _change(step, frame, old, new, pd.Timestamp(run.header["as_of"]))
    before = _judge(name, section)
    now = replay.section_as_expected(section, *replay.judge(changed, catalog.load()))
    parts = ("steps", "cases", "evidence")
    return now | {part: {step: v for step, v in now[part].items() if v != before[part].get(step)} for part in parts}


@cache
def _read(name: str) -> dict[str, Run]:
    return capsule.read(RECORDINGS / f"{name}{capsule.SUFFIX}")


@cache
def _judge(name: str, section: str) -> dict[str, Any]:
    return replay.section_as_expected(section, *replay.judge(_read(name)[section], catalog.load()))


def _change(step: str, frame: str, stored: dict[str, Any] | None, new: Any, as_of: pd.Timestamp) -> dict[str, Any]:
    if isinstance(new, str):
        name, section = new.split()
        (other,) = (f["frames"][frame] for f in _read(name)[section].stored if f["step"] == step)
        return dict(other)
    listed: list[dict[str, Any]] = new if isinstance(new, list) else [new]
    changes = [{name: value for name, value in change.items() if name not in ("capped", "like")} for change in listed]
    if stored is None:
        columns = [{"name": name, "type": "text"} for name in dict.fromkeys(name for row in changes for name in row)]
        stored = {"columns": columns, "rows": [], "index": None, "attrs": {}}
    attrs = dict(stored["attrs"])
    if "capped" in attrs:
        attrs["capped"] = isinstance(new, dict) and new.get("capped", attrs["capped"])
    kinds = {column["name"]: column["type"] for column in stored["columns"]}
    rows = [dict(zip(kinds, row, strict=True)) for row in stored["rows"]] or [dict.fromkeys(kinds)]
    if isinstance(new, dict) or any("where" in row or "where_not" in row for row in changes):
        for change in changes:
            rows = _change_rows(rows, **change)
    else:
        rows = changes
    kinds |= {name[1:]: "text" for row in rows for name in row if name.startswith("+")}
    rows = [{name.removeprefix("+"): value for name, value in row.items()} for row in rows]
    if unknown := {name for row in rows for name in row} - kinds.keys():
        raise KeyError(f"{step} {frame} has no column {', '.join(sorted(unknown))}: {', '.join(kinds)}")
    for name in kinds:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, str) and _AGO.fullmatch(value) for value in values):
            kinds[name] = "time"
        elif kinds[name] != "time" and (types := {type(v) for v in values if v is not None and v != "unknown"}):
            kinds[name] = _KINDS[types.pop()] if len(types) == 1 else "float" if types == {int, float} else "text"

    def cell(value: Any) -> Any:
        ago = _AGO.fullmatch(value) if isinstance(value, str) else None
        return (as_of - timedelta(seconds=float(ago[1]))).isoformat() if ago else None if value == "unknown" else value

    columns = [{"name": name, "type": kind} for name, kind in kinds.items()]
    cells = [[cell(row.get(name)) for name in kinds] for row in rows]
    return stored | {"attrs": attrs, "columns": columns, "rows": cells}


def _change_rows(
    rows: list[dict[str, Any]], where: Mapping[str, Any] | None = None, where_not: Mapping[str, Any] | None = None,
    **columns: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Give the columns to the rows with the values `where`; take out those with the values `where_not`."""
    kept = [row for row in rows if where_not is None or not where_not.items() <= row.items()]
    changed = [row | columns if where is None or where.items() <= row.items() else row for row in kept]
    assert changed != rows or not (where or where_not), f"no row has {where or where_not}, or it is as before"
    return changed
