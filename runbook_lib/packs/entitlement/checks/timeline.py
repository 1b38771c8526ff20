"""7.3: the timeline of an incident, with its time to detect (TTD) and its time to recover (TTR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book import messages
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Value, judged, say, unknown
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.checks.incident import (
    OWN,
    IncidentRun,
    Moment,
    collect_runs,
    detection,
    green,
    logs_of,
    onset_kept,
    timed,
)
from runbook_lib.packs.entitlement.checks.origin import VerdictRow, collect_origin
from runbook_lib.store.lines import ActionLine

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


class LoggedAction(rows.Row):
    """An entry of the action log."""

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


class TimelineRow(rows.Row):
    """An entry of the timeline."""

    time: pd.Timestamp | None = None
    kind: str = ""
    what: str = ""
    status: str = ""
    who: str = ""
    detail_en: str = ""
    detail_ja: str = ""
    name: str = ""


ENTRY = [f.name for f in fields(TimelineRow)]


def collect_timeline(rb: Context) -> Frames:
    """7.3: read runs, verdicts, actions, notes and unfinished runs; take the onset from 7.1.

    Frames: runs, verdicts, actions (fields of `LoggedAction`), notes (time; who, text: text), partials (name: text),
    began (fields of `KnownOnset`).
    """
    frames = collect_runs(rb)
    logs = logs_of(rb.archive)
    # User ids in a note are masked already; this target's secrets are not.
    notes = [{"time": n.time, "who": n.who, "text": rb.masker.without_secrets(n.text)} for n in logs.notes]
    earlier = next((f for f in rb.given().earlier if f.step == "7.1"), None)
    began = {c: earlier.value(c) if earlier else None for c in ("onset", "onset_how", "onset_from", "recovered")}
    stored = onset_kept(frames)
    if not began["onset"] and stored.at is not None:
        began |= {"onset": stored.at.isoformat(), "onset_how": stored.how, "onset_from": stored.name}
    partial = [p for p in rb.archive.partials() if f"-{OWN}." not in p]
    return frames | {
        "verdicts": collect_origin(rb)["verdicts"],
        "actions": rows.frame(map(_read_action, logs.actions), LoggedAction),
        "notes": timed(pd.DataFrame(notes, columns=["time", "who", "text"]), "time"),
        "partials": pd.DataFrame({"name": partial}, dtype=object),
        "began": row(**began),
    }


def _read_action(a: ActionLine) -> LoggedAction:
    told = {"why": a.why, "effect": a.effect}
    texts: dict[str, Any] = {
        f"{c}_{lang}": messages.text(t, lang) if t else "" for c, t in told.items() for lang in messages.LANGUAGES
    }
    plain: dict[str, Any] = {c: getattr(a, c) for c in ("time", "action", "result", "who", "approved_by", "verified")}
    return LoggedAction(what=a.about, because=a.reason, **plain, **texts)


def _parse_time(text: Any) -> pd.Timestamp | None:
    found = pd.to_datetime(str(text), utc=True, errors="coerce")
    return found if isinstance(found, pd.Timestamp) else None


class KnownOnset(rows.Row):
    """The onset, its kind of evidence, the artifact it is from, and when all queues were back to normal."""

    onset: str = ""
    onset_how: str = ""
    onset_from: str = ""
    recovered: str = ""


def judge_timeline(frames: Frames, given: JudgeInput) -> Finding:
    """7.3: order all events of the incident by time; compute TTD and TTR with the evidence of each time.

    The recovery is the time at which all queues were back to normal, by the rows' timestamps; if those do not show it,
    the first run after it that found so. The timeline also has the runs, notes and actions.
    """
    began = rows.one(frames.get("began"), KnownOnset)
    start = Moment(_parse_time(began.onset) if began.onset else None, began.onset_how, began.onset_from)
    detected = detection(frames, given)
    if detected.at is None and start.at is None:
        return unknown("", Reason.NO_DATA, say("postmortem.no_runs"))
    confirmed = green(frames, detected.at)
    recovered = Moment(_parse_time(began.recovered), "returned") if began.recovered else confirmed
    undetected = detected.at is None or (recovered.at is not None and detected.at > recovered.at)
    ttd = None if undetected else duration_s(start.at, detected.at)
    ttr = None if undetected else duration_s(detected.at, recovered.at)
    moments = {"onset": start, "detection": detected, "recovery": recovered}
    if confirmed.at is not None and recovered != confirmed:
        moments["confirmed"] = confirmed
    entries = timeline(frames, moments)
    died = len(table(frames, "partials", "name"))
    notes = {
        "postmortem.formula": True,
        "postmortem.died": died,
        "postmortem.no_onset": start.at is None,
        "postmortem.not_recovered": recovered.at is None,
    }
    complete = ttd is not None and ttr is not None
    if undetected:
        key = "postmortem.times_unseen"
    elif complete:
        key = "postmortem.times"
    else:
        key = "postmortem.times_open" if recovered.at is None else "postmortem.times_in_part"
    times = pd.DataFrame(
        [(what, m.at, m.how, m.name) for what, m in moments.items()], columns=["what", "time", "how", "name"]
    )
    took = duration_s(start.at, recovered.at)
    return judged(
        say(key, ttd=ttd, ttr=ttr, lasted=took, entries=len(entries)),
        [
            Value("ttd", ttd, "s"),
            Value("ttr", ttr, "s"),
            Value("lasted", took, "s"),
            Value("timeline.entries", len(entries)),
        ],
        at_least=Status.OK if complete else Status.WARNING,
        notes=tuple(say(note, n=died) for note, holds in notes.items() if holds),
        frames={"times": timed(times, "time"), "timeline": entries},
        show=("times", "timeline"),
    )


def duration_s(begin: pd.Timestamp | None, end: pd.Timestamp | None) -> float | None:
    """Return the seconds between two times, never below 0; None if one is unknown."""
    if begin is None or end is None:
        return None
    return round(max((end - begin).total_seconds(), 0.0), 1)


class Note(rows.Row):
    """A responder's note."""

    time: pd.Timestamp | None = None
    who: str = ""
    text: str = ""


def timeline(frames: Frames, moments: Mapping[str, Moment]) -> pd.DataFrame:
    """Return all entries sorted by time, in UTC. Columns: the fields of `TimelineRow`."""
    found = [TimelineRow(m.at, kind, m.how, name=m.name) for kind, m in moments.items() if m.at is not None]
    for run in rows.each(frames.get("runs"), IncidentRun):
        detail = run.detail or ""
        found.append(TimelineRow(run.started, "run", run.section, run.status, "", detail, detail, run.name))
    for v in rows.each(frames.get("verdicts"), VerdictRow):
        if v.name.endswith(".json"):
            found.append(TimelineRow(v.started, "verdict", v.stuck_at or "", v.status, name=v.name))
    for a in rows.each(frames.get("actions"), LoggedAction):
        en, ja = (" ".join(t for t in (*words, a.because) if t) for words in
                  ((a.why_en, a.effect_en), (a.why_ja, a.effect_ja)))  # fmt: skip
        who = " / ".join(w for w in (a.who, a.approved_by) if w)
        kind = "dry" if a.result == "dry" else "action"
        found.append(TimelineRow(a.time, kind, f"{a.action} {a.what}", a.result, who, en, ja))
    for n in rows.each(frames.get("notes"), Note):
        found.append(TimelineRow(n.time, "note", who=n.who, detail_en=n.text, detail_ja=n.text))
    for name in table(frames, "partials", "name")["name"].astype(str):
        stamp, _, section = name.removesuffix(".partial.ipynb").partition("-")
        found.append(TimelineRow(_parse_time(stamp), "died", section, name=name))
    frame = rows.frame(found, TimelineRow)
    frame["time"] = pd.to_datetime(frame["time"], utc=True)
    return frame.sort_values("time", kind="stable", na_position="last").reset_index(drop=True)


CHECKS: tuple[Check, ...] = (Check("7.3", collect_timeline, judge_timeline),)
