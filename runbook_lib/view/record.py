"""Findings and verdicts as JSON: what an executed notebook carries in its outputs.

The notebook itself is the record; batch, dossier and `runbook verify` read it back from here. Frames are
kept with their types, so that a judge can be run again on what it was given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runbook_lib import messages
from runbook_lib.model.finding import (
    Because,
    Finding,
    Frames,
    Hop,
    Proposal,
    Question,
    Reason,
    Signal,
    Status,
    Text,
    Threshold,
    Unseen,
    Value,
    Verdict,
)

if TYPE_CHECKING:
    from runbook_lib.outcome import Outcome, Precondition

FINDING_MIME = "application/vnd.runbook.finding+json"
VERDICT_MIME = "application/vnd.runbook.verdict+json"
#: Marks the output that heads a notebook, so that an artifact can put it first.
BANNER_MIME = "application/vnd.runbook.banner+json"
#: Marks whatever the library shows with the moment its run was opened: a notebook may hold the outputs of several.
RUN_MIME = "application/vnd.runbook.run+json"
#: Marks what a responder unmasked on the screen; never part of anything that is saved.
REVEALED_MIME = "application/vnd.runbook.revealed+json"


def finding(f: Finding) -> dict[str, Any]:
    """A finding as JSON, its texts in both languages, its frames masked as it holds them."""
    return {
        "step": f.step,
        "status": f.status.name,
        "reason": f.reason.value if f.reason else None,
        "headline": text(f.headline),
        "values": values(f),
        "notes": [text(t) for t in f.notes],
        "signals": [asdict(s) for s in f.signals],
        "hops": [_hop(h) for h in f.hops],
        "proposals": [proposal(p) for p in f.proposals],
        "next_sections": list(f.next_sections),
        "questions": [plain(asdict(q)) for q in f.questions],
        "frames": {name: frame_to_json(frame) for name, frame in f.frames.items()},
        "show": list(f.show),
        "unseen": [asdict(u) for u in f.unseen],
        "shaped_by": list(f.shaped_by),
        "at": plain(f.at),
    }


def finding_from_json(stored: dict[str, Any]) -> Finding:
    """The inverse of `finding`: texts come back as the words they were."""
    return Finding(
        step=stored["step"],
        status=Status[stored["status"]],
        headline=_text_from_json(stored["headline"]),
        reason=Reason(stored["reason"]) if stored["reason"] else None,
        values=tuple(_value_from_json(name, v) for name, v in stored["values"].items()),
        notes=tuple(_text_from_json(t) for t in stored["notes"]),
        signals=tuple(Signal(**s) for s in stored["signals"]),
        hops=tuple(Hop(**h | {"alive": _alive_from_json(h["alive"])}) for h in stored["hops"]),
        proposals=tuple(Proposal(**p) for p in stored["proposals"]),
        next_sections=tuple(stored["next_sections"]),
        frames=frames_from_json(stored["frames"]),
        show=tuple(stored["show"]),
        questions=tuple(Question(**q) for q in stored["questions"]),
        unseen=tuple(Unseen(u["source"], Reason(u["reason"])) for u in stored.get("unseen", ())),
        shaped_by=tuple(stored.get("shaped_by", ())),
        at=pd.Timestamp(stored["at"]) if stored.get("at") else None,
    )


def outcome(o: Outcome) -> dict[str, Any]:
    """An action and what became of it, as JSON."""
    return {
        "id": o.id,
        "result": o.result,
        "action": o.action,
        "what": plain(o.what),
        "command": o.command,
        "approved_by": o.approved_by,
        "reason": o.reason,
        "break_glass": o.break_glass,
        "why": text(o.why),
        "approval": o.approval,
        "preconditions": [precondition(p) for p in o.preconditions],
        "before": plain(o.before),
        "after": plain(o.after),
        "did": plain(o.did),
        "verified": o.verified,
        "effect": text(o.effect) if o.effect else None,
    }


def precondition(p: Precondition) -> dict[str, Any]:
    """A precondition as JSON: what it is and how it stands, and with its numbers in every language."""
    return {"key": p.text.key, "ok": p.ok, "waived": p.waived, "text": text(p.text)}


def what(asked: dict[str, Any]) -> str:
    """What an action was about, in a few words: of its log line's `what`."""
    words = [str(asked.get("name") or asked.get("store") or "")]
    words += [f"{k}={'default' if v is None else v}" for k, v in (asked.get("settings") or {}).items()]
    named = ((k, asked.get(k)) for k in ("limit", "events", "discard", "replicas"))
    words += [f"{k}={v}" for k, v in named if v is not None and v is not False]
    return " ".join(w for w in words if w)


def values(f: Finding) -> dict[str, Any]:
    """The observed values by name: unit and, where compared, the limits and their origin."""
    return {v.name: _value(v) for v in f.values}


def verdict(v: Verdict) -> dict[str, Any]:
    """A verdict as JSON."""
    return {
        "status": v.status.name,
        "stuck_at": v.stuck_at,
        "confidence": v.confidence,
        "failure_modes": [
            {"id": m.id, "score": m.score, "because": [_because(b) for b in m.because], "excluded_by": m.excluded_by}
            for m in v.failure_modes
        ],
        "hops": [_hop(h) for h in v.hops],
        "next_sections": list(v.next_sections),
        "proposals": [proposal(p) for p in v.proposals],
        "undecided": list(v.undecided),
        "unseen": [asdict(u) for u in v.unseen],
        "look_again_s": v.look_again_s,
        "between": list(v.between),
        "settled_by": list(v.settled_by),
    }


def signature(verdict: Mapping[str, Any]) -> str:
    """What of a verdict makes it another one: the status, the place, the first failure mode."""
    modes = verdict.get("failure_modes") or [{}]
    return f"{verdict['status']} {verdict['stuck_at']} {modes[0].get('id')}"


def _because(b: Because) -> dict[str, Any]:
    value = {"name": b.value.name, **_value(b.value)} if b.value else None
    return vars(b) | {"headline": text(b.headline), "at": plain(b.at), "value": value}


def proposal(p: Proposal) -> dict[str, Any]:
    """A proposal as JSON."""
    return {"name": p.name, "command": p.command, "section": p.section, "params": plain(dict(p.params))}


def frames_from_json(frames: dict[str, Any]) -> Frames:
    """The frames that a finding's JSON carries, typed as they were."""
    return {name: frame_from_json(frame) for name, frame in frames.items()}


def frame_to_json(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns with their kinds, and rows of JSON values; times in ISO 8601 with their offset."""
    kept = frame.reset_index() if frame.index.name else frame
    return {
        "columns": [{"name": str(c), "type": _kind(kept[c])} for c in kept.columns],
        "rows": [[plain(v) for v in row] for row in kept.itertuples(index=False, name=None)],
        "index": frame.index.name,
        "attrs": plain(dict(frame.attrs)),
    }


def frame_from_json(stored: dict[str, Any]) -> pd.DataFrame:
    """The inverse of `frame_to_json`."""
    columns, rows = stored["columns"], stored["rows"]
    cells = zip(*rows, strict=True) if rows else ([] for _ in columns)
    typed = {c["name"]: _column(c["type"], list(values)) for c, values in zip(columns, cells, strict=True)}
    frame = pd.DataFrame(typed, columns=[c["name"] for c in columns])
    frame.attrs = dict(stored.get("attrs", {}))
    return frame.set_index(stored["index"]) if stored.get("index") else frame


def _column(kind: str, values: list[Any]) -> pd.Series[Any] | np.ndarray[Any, Any]:
    if kind == "time":
        return pd.Series(pd.to_datetime(pd.Series(values, dtype=object), utc=True, format="ISO8601"))
    if kind == "text":
        return pd.Series(values, dtype=object)
    if kind == "float":
        return np.array(values, dtype="float64")
    if kind in ("int", "bool") and None not in values:
        return np.array(values, dtype={"int": "int64", "bool": "bool"}[kind])
    return pd.Series(values, dtype=None if values else object)


def _kind(column: pd.Series[Any]) -> str:
    if pd.api.types.is_bool_dtype(column):
        return "bool"
    if pd.api.types.is_integer_dtype(column):
        return "int"
    if pd.api.types.is_float_dtype(column):
        return "float"
    if pd.api.types.is_datetime64_any_dtype(column):
        return "time"
    return "text"


def _value(v: Value) -> dict[str, Any]:
    limits = {}
    if v.threshold:
        t = v.threshold
        limits = {"warning": t.warning, "critical": t.critical, "below": t.below, "origin": t.origin}
    return {"value": plain(v.value), "unit": v.unit, **limits}


def _value_from_json(name: str, stored: dict[str, Any]) -> Value:
    threshold = None
    if "origin" in stored:
        limits = {k: stored[k] for k in ("warning", "critical", "below", "origin")}
        threshold = Threshold(name, stored["unit"], **limits)
    return Value(name, stored["value"], stored["unit"], threshold)


def _hop(h: Hop) -> dict[str, Any]:
    return {k: text(v) if isinstance(v, Text) else plain(v) for k, v in vars(h).items()}


def _alive_from_json(stored: dict[str, str] | str | None) -> Text | str | None:
    return _text_from_json(stored) if isinstance(stored, dict) else stored


def _text_from_json(stored: dict[str, str]) -> Text:
    return Text(messages.VERBATIM, stored)


def text(message: Text) -> dict[str, str]:
    """A message in every language."""
    return {lang: messages.text(message, lang) for lang in messages.LANGUAGES}


def plain(value: Any) -> Any:
    """A value as JSON knows it; what is missing becomes null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, Text):
        return messages.text(value, "en")
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, pd.Timedelta):
        return value.total_seconds()
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) else str(value)
