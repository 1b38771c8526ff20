"""7.3: what happened when, how long it took to notice it, and how long to recover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib import rows
from runbook_lib.checks.check import Check
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Value, judged, say, unknown
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.checks.incident import (
    OWN,
    Moment,
    Run,
    collect_runs,
    detection,
    green,
    lines,
    onset_kept,
    timed,
)
from runbook_lib.packs.entitlement.checks.origin import Verdict, collect_origin
from runbook_lib.store import ACTION_LOG, NOTES
from runbook_lib.view import record

if TYPE_CHECKING:
    from runbook_lib.context import Context


@dataclass(frozen=True)
class Action:
    """A line of the action log."""

    time: pd.Timestamp | None = None
    action: str = ""
    result: str = ""
    what: str = ""
    who: str = ""
    approved_by: str | None = None
    because: str | None = None
    why_en: str = ""
    why_ja: str = ""
    effect_en: str = ""
    effect_ja: str = ""
    verified: bool | None = None


@dataclass(frozen=True)
class Entry:
    """A line of the timeline."""

    time: pd.Timestamp | None = None
    kind: str = ""
    what: str = ""
    status: str = ""
    who: str = ""
    detail_en: str = ""
    detail_ja: str = ""
    name: str = ""


ENTRY = [f.name for f in fields(Entry)]


def collect_timeline(rb: Context) -> Frames:
    """7.3: runs, verdicts, actions, notes and what did not end; the onset is that of 7.1.

    Frames: runs, verdicts, actions (fields of `Action`), notes (time; who, text: text), partials (name: text), began
    (fields of `Began`).
    """
    frames = collect_runs(rb)
    notes = [
        # People in it are tokens already; whoever wrote it did not know this target's secrets.
        {"time": n.get("time"), "who": n.get("who"), "text": rb.masker.without_secrets(str(n.get("text")))}
        for n in lines(rb.archive, NOTES)
    ]
    earlier = next((f for f in rb.given().earlier if f.step == "7.1"), None)
    began = {c: earlier.value(c) if earlier else None for c in ("onset", "onset_how", "onset_from", "recovered")}
    kept = onset_kept(frames)
    if not began["onset"] and kept.at is not None:
        began |= {"onset": kept.at.isoformat(), "onset_how": kept.how, "onset_from": kept.name}
    partial = [p for p in rb.archive.partials() if f"-{OWN}." not in p]
    return frames | {
        "verdicts": collect_origin(rb)["verdicts"],
        "actions": rows.frame((_acted(a) for a in lines(rb.archive, ACTION_LOG)), Action),
        "notes": timed(pd.DataFrame(notes, columns=["time", "who", "text"]), "time"),
        "partials": pd.DataFrame({"name": partial}, dtype=object),
        "began": row(**began),
    }


def _acted(a: dict[str, Any]) -> Action:
    what = a.get("what") or {}
    words = {f"{c}_{lang}": (a.get(c) or {}).get(lang, "") for c in ("why", "effect") for lang in ("en", "ja")}
    plain: dict[str, Any] = {c: a.get(c) for c in ("action", "result", "who", "approved_by", "verified")}
    spelt = record.what(what) if isinstance(what, dict) else str(what)
    return Action(time=_time(a.get("time")), what=spelt, because=a.get("reason"), **plain, **words)


def _time(text: Any) -> pd.Timestamp | None:
    found = pd.to_datetime(str(text), utc=True, errors="coerce")
    return found if isinstance(found, pd.Timestamp) else None


@dataclass(frozen=True)
class Began:
    """The onset, how it is known, the artifact that says so, and when all queues were as usual again."""

    onset: str = ""
    onset_how: str = ""
    onset_from: str = ""
    recovered: str = ""


def judge_timeline(frames: Frames, given: Given) -> Finding:
    """7.3: onset, detection, recovery and all between them; TTD and TTR with what each time rests on.

    It is over when the queues are as usual again, by the rows' own timestamps; where these do not tell, when a run saw
    it so. What people and runs saw and did are marks on the same line.
    """
    began = rows.one(frames.get("began"), Began)
    start = Moment(_time(began.onset) if began.onset else None, began.onset_how, began.onset_from)
    detected = detection(frames, given)
    if detected.at is None and start.at is None:
        return unknown("", Reason.NO_DATA, say("postmortem.no_runs"))
    seen = green(frames, detected.at)
    recovered = Moment(_time(began.recovered), "returned") if began.recovered else seen
    unseen = detected.at is None or (recovered.at is not None and detected.at > recovered.at)
    ttd, ttr = (None, None) if unseen else (lasted(start.at, detected.at), lasted(detected.at, recovered.at))
    moments = {"onset": start, "detection": detected, "recovery": recovered}
    if seen.at is not None and recovered != seen:
        moments["confirmed"] = seen
    entries = timeline(frames, moments)
    died = len(table(frames, "partials", "name"))
    notes = {
        "formula": True,
        "died": died,
        "no_onset": start.at is None,
        "not_recovered": recovered.at is None,
    }
    whole = ttd is not None and ttr is not None
    key = "unseen" if unseen else "" if whole else "open" if recovered.at is None else "in_part"
    times = pd.DataFrame(
        [(what, m.at, m.how, m.name) for what, m in moments.items()], columns=["what", "time", "how", "name"]
    )
    took = lasted(start.at, recovered.at)
    return judged(
        say(f"postmortem.times{key and '_'}{key}", ttd=ttd, ttr=ttr, lasted=took, entries=len(entries)),
        [
            Value("ttd", ttd, "s"),
            Value("ttr", ttr, "s"),
            Value("lasted", took, "s"),
            Value("timeline.entries", len(entries)),
        ],
        at_least=Status.OK if whole else Status.WARNING,
        notes=tuple(say(f"postmortem.{note}", n=died) for note, true in notes.items() if true),
        frames={"times": timed(times, "time"), "timeline": entries},
        show=("times", "timeline"),
    )


def lasted(begin: pd.Timestamp | None, end: pd.Timestamp | None) -> float | None:
    """Seconds between two moments, never below 0; None where one is not known."""
    if begin is None or end is None:
        return None
    return round(max((end - begin).total_seconds(), 0.0), 1)


@dataclass(frozen=True)
class Note:
    """A responder's note."""

    time: pd.Timestamp | None = None
    who: str = ""
    text: str = ""


def timeline(frames: Frames, moments: Mapping[str, Moment]) -> pd.DataFrame:
    """Everything that has a time, sorted, in UTC. Columns: the fields of `Entry`."""
    found = [Entry(m.at, kind, m.how, name=m.name) for kind, m in moments.items() if m.at is not None]
    for run in rows.each(frames.get("runs"), Run):
        detail = run.detail or ""
        found.append(Entry(run.started, "run", run.section, run.status, "", detail, detail, run.name))
    for v in rows.each(frames.get("verdicts"), Verdict):
        if v.name.endswith(".json"):
            found.append(Entry(v.started, "verdict", v.stuck_at or "", v.status, name=v.name))
    for a in rows.each(frames.get("actions"), Action):
        en, ja = (" ".join(t for t in (*words, a.because) if t) for words in
                  ((a.why_en, a.effect_en), (a.why_ja, a.effect_ja)))  # fmt: skip
        who = " / ".join(w for w in (a.who, a.approved_by) if w)
        kind = "dry" if a.result == "dry" else "action"
        found.append(Entry(a.time, kind, f"{a.action} {a.what}", a.result, who, en, ja))
    for n in rows.each(frames.get("notes"), Note):
        found.append(Entry(n.time, "note", who=n.who, detail_en=n.text, detail_ja=n.text))
    for name in table(frames, "partials", "name")["name"].astype(str):
        stamp, _, section = name.removesuffix(".partial.ipynb").partition("-")
        found.append(Entry(_time(stamp), "died", section, name=name))
    frame = rows.frame(found, Entry)
    frame["time"] = pd.to_datetime(frame["time"], utc=True)
    return frame.sort_values("time", kind="stable", na_position="last").reset_index(drop=True)


CHECKS: tuple[Check, ...] = (Check("7.3", collect_timeline, judge_timeline),)
