"""The timeline of an incident, with its time to detect (TTD) and its time to recover (TTR)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book import messages
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import seconds_between
from runbook_lib.checks.triage import find_earlier
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Value, judged, say, unknown
from runbook_lib.model.frames import row, table
from runbook_lib.packs.postmortem.incident import (
    IncidentRun,
    Moment,
    collect_runs,
    confirmation,
    detection,
    logs_of,
    onset_kept,
    span_of,
    timed,
)
from runbook_lib.packs.postmortem.origin import VerdictRow, collect_verdicts
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


class Note(rows.Row):
    """A responder's note."""

    time: pd.Timestamp | None = None
    who: str = ""
    text: str = ""


class KnownOnset(rows.Row):
    """The onset, its kind of evidence, the artifact it is from, and when all queues were back to normal.

    `since` is the start of the window.
    """

    onset: pd.Timestamp | None = None
    onset_how: str = ""
    onset_from: str = ""
    recovered: pd.Timestamp | None = None
    since: pd.Timestamp | None = None


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


def collect_timeline(rb: Context, impact: str) -> Frames:
    """Read runs, verdicts, actions, notes and unfinished runs; take the onset from the step `impact`.

    Frames: runs, verdicts, actions (fields of `LoggedAction`), notes (of `Note`), partials (name: text),
    began (of `KnownOnset`).
    """
    frames, logs, found = collect_runs(rb), logs_of(rb.archive), find_earlier(rb.given(), impact)
    # User ids in a note are masked already; this target's secrets are not.
    notes = [Note(n.time, n.who, rb.masker.without_secrets(n.text)) for n in logs.notes]
    began: dict[str, Any] = {f.name: found.value(f.name) if found else None for f in fields(KnownOnset)}
    span = span_of(found.frames) if found else None
    began["since"] = span.since if span else None
    stored = onset_kept(frames)
    if not began["onset"] and stored.at is not None:
        began |= {"onset": stored.at.isoformat(), "onset_how": stored.how, "onset_from": stored.name}
    own = f"-{rb.catalog.section_with('postmortem')}."
    return frames | {
        "verdicts": collect_verdicts(rb)["verdicts"],
        "actions": rows.frame(map(_read_action, logs.actions), LoggedAction),
        "notes": timed(rows.frame(notes, Note), "time"),
        "partials": pd.DataFrame({"name": [p for p in rb.archive.partials() if own not in p]}, dtype=object),
        "began": row(**began),
    }


def _read_action(a: ActionLine) -> LoggedAction:
    told = {"why": a.why, "effect": a.effect}
    texts: dict[str, Any] = {
        f"{c}_{lang}": messages.text(t, lang) if t else "" for c, t in told.items() for lang in messages.LANGUAGES
    }
    plain: dict[str, Any] = {c: getattr(a, c) for c in ("time", "action", "result", "who", "approved_by")}
    return LoggedAction(what=a.about, because=a.reason, **plain, **texts)


def judge_timeline(frames: Frames, given: JudgeInput) -> Finding:
    """Order all events of the incident by time; compute TTD and TTR with the evidence of each time.

    The recovery is the time at which all queues were back to normal, by the rows' timestamps; if those do not show it,
    the first run after it that found so. The timeline also has the runs, notes and actions.
    """
    began = rows.one(frames.get("began"), KnownOnset)
    start = Moment(began.onset, began.onset_how, began.onset_from)
    detected = detection(frames, given)
    if detected.at is None and start.at is None:
        return unknown("", Reason.NO_DATA, say("postmortem.no_runs"))
    confirmed = confirmation(frames, given, detected.at)
    recovered = Moment(began.recovered, "returned") if began.recovered else confirmed
    undetected = (
        detected.at is None
        or (recovered.at is not None and detected.at > recovered.at)
        or (began.since is not None and detected.at < began.since)
    )
    ttd, ttr = (None, None) if undetected else (duration_s(start, detected), duration_s(detected, recovered))
    lasted, complete = duration_s(start, recovered), ttd is not None and ttr is not None
    moments = {"onset": start, "detection": detected, "recovery": recovered}
    if confirmed.at is not None and recovered != confirmed:
        moments["confirmed"] = confirmed
    entries, died = timeline(frames, moments), len(table(frames, "partials", "name"))
    if undetected:
        key = "postmortem.times_unseen"
    elif complete:
        key = "postmortem.times"
    else:
        key = "postmortem.times_open" if recovered.at is None else "postmortem.times_in_part"
    notes = {
        "postmortem.formula": True,
        "postmortem.died": died,
        "postmortem.no_onset": start.at is None,
        "postmortem.not_recovered": recovered.at is None,
    }
    times = [(what, m.at, m.how, m.name) for what, m in moments.items()]
    return judged(
        say(key, ttd=ttd, ttr=ttr, lasted=lasted, entries=len(entries)),
        [
            Value("ttd", ttd, "s"),
            Value("ttr", ttr, "s"),
            Value("lasted", lasted, "s"),
            Value("timeline.entries", len(entries)),
        ],
        at_least=Status.OK if complete else Status.WARNING,
        notes=tuple(say(note, n=died) for note, holds in notes.items() if holds),
        frames={
            "times": timed(pd.DataFrame(times, columns=["what", "time", "how", "name"]), "time"),
            "timeline": entries,
        },
        show=("times", "timeline"),
    )


def duration_s(begin: Moment, end: Moment) -> float | None:
    """Return the seconds between two times, never below 0; None if one is unknown."""
    took = seconds_between(begin.at, end.at)
    return None if took is None else round(took, 1)


def timeline(frames: Frames, moments: Mapping[str, Moment]) -> pd.DataFrame:
    """Return all entries sorted by time, in UTC. Columns: the fields of `TimelineRow`."""
    frame = rows.frame(_list_entries(frames, moments), TimelineRow)
    frame["time"] = pd.to_datetime(frame["time"], utc=True)
    return frame.sort_values("time", kind="stable", na_position="last").reset_index(drop=True)


def _list_entries(frames: Frames, moments: Mapping[str, Moment]) -> Iterator[TimelineRow]:
    for kind, m in moments.items():
        if m.at is not None:
            yield TimelineRow(m.at, kind, m.how, name=m.name)
    for run in rows.each(frames.get("runs"), IncidentRun):
        detail = run.detail or ""
        yield TimelineRow(run.started, "run", run.section, run.status, "", detail, detail, run.name)
    for v in rows.each(frames.get("verdicts"), VerdictRow):
        if v.name.endswith(".json"):
            yield TimelineRow(v.started, "verdict", v.stuck_at or "", v.status, name=v.name)
    for a in rows.each(frames.get("actions"), LoggedAction):
        texts = ((a.why_en, a.effect_en, a.because), (a.why_ja, a.effect_ja, a.because))
        en, ja = (" ".join(filter(None, told)) for told in texts)
        who = " / ".join(filter(None, (a.who, a.approved_by)))
        kind = "dry" if a.result == "dry" else "action"
        yield TimelineRow(a.time, kind, f"{a.action} {a.what}", a.result, who, en, ja)
    for n in rows.each(frames.get("notes"), Note):
        yield TimelineRow(n.time, "note", who=n.who, detail_en=n.text, detail_ja=n.text)
    for name in table(frames, "partials", "name")["name"].astype(str):
        stamp, _, section = name.removesuffix(".partial.ipynb").partition("-")
        at = pd.to_datetime(stamp, utc=True, errors="coerce")
        yield TimelineRow(at if isinstance(at, pd.Timestamp) else None, "died", section, name=name)
