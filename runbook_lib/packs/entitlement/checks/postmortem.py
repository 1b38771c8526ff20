"""Section 7: what an incident cost, where it came from and how long it took, out of its dossier and the tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from runbook_lib import mandatory, rows
from runbook_lib.analysis import stats
from runbook_lib.catalog import Slo
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, no_data
from runbook_lib.context import Given
from runbook_lib.messages import VERBATIM
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Text, Value, judged, replace, say, unknown
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.rows import Count
from runbook_lib.parameters import moment
from runbook_lib.sources import SourceError
from runbook_lib.store import ACTION_LOG, NOTES, Archive
from runbook_lib.view import charts, record

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

OWN = mandatory.SECTION
#: Objectives of requests to the API, which leave no row where they fail.
NOT_IN_TABLES = ("ENT-A", "ENT-B")
#: How sure a verdict is, the least sure first.
SURE = ("none", "low", "medium", "high")


@dataclass(frozen=True)
class Run:
    """A run of the incident, as its manifest and its findings tell it."""

    name: str = ""
    section: str = ""
    started: pd.Timestamp | None = None
    ended: pd.Timestamp | None = None
    looked_at: pd.Timestamp | None = None
    status: str = ""
    stuck_at: str | None = None
    confidence: str | None = None
    detail: str | None = None
    detected_by: str | None = None
    detected_at: pd.Timestamp | None = None
    onset: pd.Timestamp | None = None


@dataclass(frozen=True)
class Verdict:
    """What a command concluded."""

    name: str = ""
    started: pd.Timestamp | None = None
    status: str = ""
    stuck_at: str | None = None
    confidence: str = "none"


@dataclass(frozen=True)
class Mode:
    """A failure mode that a verdict ranked."""

    name: str = ""
    id: str = ""
    score: float = 0.0


@dataclass(frozen=True)
class Impact:
    """What an objective suffered; `why` says what has no number, and `name` which artifact tells it."""

    slo: str = ""
    objective: str = ""
    minutes: float | None = None
    bad: float | None = None
    total: float | None = None
    percent: float | None = None
    budget: float | None = None
    counted: str | None = None
    peak: float | None = None
    why: str = ""
    since: pd.Timestamp | None = None
    name: str = ""

    @property
    def hit(self) -> bool:
        """Whether the objective was in breach: by the tables, or as section 3 saw it at its moment."""
        return (self.minutes or 0) > 0 or ((self.bad or 0) > 0 and self.why == "no_time") or self.why == "seen"

    @property
    def words(self) -> str:
        """Its numbers in short."""
        words = [self.slo + (f" {self.minutes:g} min" if self.minutes is not None else "")]
        if self.bad is not None:
            words.append(f"{self.bad:,.0f}" + (f"/{self.total:,.0f}" if self.total is not None else ""))
        words += [f"≈{self.budget:g} %"] if self.budget is not None else []
        return " ".join(words)


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


RUN, VERDICT, IMPACT, ENTRY = ([f.name for f in fields(kind)] for kind in (Run, Verdict, Impact, Entry))
STEP = ["name", "section", "step", "id", "weight", "status", "headline_en", "headline_ja"]


# The dossier ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=100)
def said(archive: Archive, name: str) -> dict[str, Any]:
    """What an artifact says: its findings as they are stored, its moment, its verdict; {} where it can not be read."""
    try:
        nb = json.loads(archive.read(f"{name}.ipynb"))
        shown = [out["data"] for c in nb["cells"] for out in c.get("outputs", []) if "data" in out]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    found = {f["step"]: f for data in shown if (f := data.get(record.FINDING_MIME))}
    ends = [data[record.VERDICT_MIME] for data in shown if record.VERDICT_MIME in data]
    end = ends[-1] if ends else {}
    return {"findings": found, "as_of": end.get("header", {}).get("as_of"), "verdict": end.get("verdict")}


def collect_runs(rb: Context) -> Frames:
    """The runs of the incident, this section's own left out. Frame: runs (fields of `Run`)."""
    found = []
    for entry in _lines(rb.archive):
        if entry.get("section", OWN) == OWN:
            continue
        given, seen = entry.get("parameters") or {}, said(rb.archive, entry["name"])
        onset = seen.get("findings", {}).get("3.1", {}).get("values", {}).get("impact.onset", {}).get("value")
        at = given.get("detected_at")
        found.append(
            {c: entry.get(c) for c in RUN}
            | {
                "looked_at": seen.get("as_of") or entry.get("started"),
                "detail": entry.get("problem"),
                "detected_by": given.get("detected_by"),
                "detected_at": moment(at).isoformat() if at else None,
                "onset": onset,
            }
        )
    return {"runs": _timed(pd.DataFrame(found, columns=RUN), "started", "ended", "looked_at", "detected_at", "onset")}


def _lines(archive: Archive, name: str = "") -> list[dict[str, Any]]:
    try:
        return archive.lines(name) if name else archive.manifest()
    except (OSError, ValueError) as e:
        raise SourceError("archive", Reason.ERROR, f"{name or 'manifest'}: {e}") from None


def _timed(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    for column in columns:
        frame[column] = pd.to_datetime(frame[column], utc=True, format="ISO8601", errors="coerce")
    return frame


@dataclass(frozen=True)
class Moment:
    """A time of the incident, how it is known, and the artifact that says so."""

    at: pd.Timestamp | None = None
    how: str = ""
    name: str = ""


def _runs(frames: Frames) -> list[Run]:
    """The runs in the order in which they were begun."""
    begun = [(r.started, r) for r in rows.each(frames.get("runs"), Run) if r.started is not None]
    return [run for _, run in sorted(begun, key=lambda b: b[0])]


def detection(frames: Frames, given: Given) -> Moment:
    """When it was noticed: as it was told to this run, else to an earlier one, else when somebody first looked."""
    if given.detected_at is not None:
        return Moment(given.detected_at, given.detected_by or "told")
    runs = _runs(frames)
    first = next((r for r in runs if r.detected_at is not None), None) or next(
        (r for r in runs if r.detected_by), runs[0] if runs else None
    )
    if first is None:
        return Moment()
    how = first.detected_by or ("first_run" if first.detected_at is None else "told")
    return Moment(first.started if first.detected_at is None else first.detected_at, how, first.name)


def recovery(frames: Frames, since: pd.Timestamp | None) -> Moment:
    """The first run of section 6 that was OK after the last bad run: CRITICAL in 3 or 4, anything but OK in 6."""
    green = None
    for run in _runs(frames):
        if run.section == "6" and run.status == "OK":
            late_enough = since is None or (run.looked_at is not None and run.looked_at >= since)
            green = run if green is None and late_enough else green
        elif run.section == "6" or (run.section.startswith(("3", "4")) and run.status == "CRITICAL"):
            green = None
    return Moment(green.looked_at, "green", green.name) if green else Moment()


def onset_kept(frames: Frames) -> Moment:
    """When it began by what section 3 saw: the oldest event that waited, or a change in a flow."""
    told = next((r for r in _runs(frames) if r.onset is not None), None)
    return Moment(told.onset, "run", told.name) if told else Moment()


# 7.1 Impact -------------------------------------------------------------------------------------------------


def collect_impact(rb: Context) -> Frames:
    """7.1: the runs, and what the tables say of the incident, bucket by bucket.

    Frames: those of `collect_runs`; earlier (fields of `Impact`), missed (slo: id; looked_at: time; name: text), span
    (since, until: time; bucket_s: s); and of the topic's questions reach, size, month, day, outbox_failed, letters,
    unprocessed, outbox, notifications.
    """
    parts, given = Parts(), rb.given()
    with parts.part("archive") as answers:
        answers |= collect_runs(rb) | _earlier_impact(rb)
        answers |= _missed(rb.archive, answers["runs"])
    detected = detection(parts.answers, given)
    until = recovery(parts.answers, detected.at).at or rb.as_of
    begins = [detected.at, *(r.started for r in _runs(parts.answers)[:1])]
    first = min([*(t for t in begins if t is not None), until])
    longest = pd.Timedelta(days=rb.number("window.longest"))
    since = max(first - pd.Timedelta(minutes=given.window_minutes), until - longest).floor("min")
    bucket_s = 60 * max(math.ceil((until - since).total_seconds() / 60 / rb.number("postmortem.buckets")), 1)
    parts.answers["span"] = row(since=since, until=until, bucket_s=bucket_s)
    with parts.part("tables") as answers, rb.snapshot() as db:
        asked = _ask(rb, db, since, until, bucket_s)
        answers |= {name: frame for name, frame in asked.items() if frame is not None}
    return parts.frames()


def _ask(
    rb: Context, db: Snapshot, since: pd.Timestamp, until: pd.Timestamp, bucket_s: int
) -> dict[str, pd.DataFrame | None]:
    slos = rb.catalog.slos
    span = {"since": since, "until": until, "bucket_s": bucket_s}
    e2e = slos["NOTI-B"].number
    outbox = {**span, "limit_s": slos["ENT-C"].number, "old_s": slos["ENT-D"].number, "share": allowed(slos["ENT-D"])}
    sent = {**span, "limit_s": e2e, "slow_s": rb.catalog.limits["backlog.oldest_due"].warning}
    tries_s, margin = rb.number("publish.tries_longest"), pd.Timedelta(hours=rb.number("postmortem.margin"))
    piece = pd.Timedelta(hours=rb.number("postmortem.piece"))
    return {
        "reach": db.ask("postmortem/reach"),
        "size": db.try_ask("postmortem/size"),
        "month": db.try_ask("postmortem/month"),
        "day": db.try_ask("postmortem/day"),
        "outbox_failed": db.try_ask("postmortem/outbox_failed", since=since, until=until, tries_s=tries_s),
        "letters": db.try_ask("postmortem/dead_letters", **span),
        "unprocessed": db.try_ask("postmortem/unprocessed", **span, limit_s=e2e),
        "outbox": _in_pieces(db, "postmortem/outbox", since, until + margin, piece, **outbox),
        "notifications": _in_pieces(db, "postmortem/notifications", since - margin, until + margin, piece, **sent),
    }


def _in_pieces(
    db: Snapshot, name: str, low: pd.Timestamp, high: pd.Timestamp, piece: pd.Timedelta, **params: Any
) -> pd.DataFrame | None:
    """One question in pieces, so that each stays within the read budget; added up by bucket."""
    answers: list[pd.DataFrame] = []
    while low < high:
        end = min(low + piece, high)
        found = db.try_ask(name, low=low, high=end, with_open=not answers, **params)
        if found is None or found.attrs.get("capped"):
            return None
        answers.append(found)
        low = end
    every = pd.concat(answers)
    if every.empty:
        return answers[0]
    how = {"first_late": "min", "first_slow": "min", "rise": "max", "most_old": "max", "aged": "max"}
    whole = every.groupby("bucket").agg({c: how.get(c, "sum") for c in every.columns if c != "bucket"})
    return pd.DataFrame(whole).reset_index()


def _earlier_impact(rb: Context) -> Frames:
    """What earlier runs of this section measured: rows are deleted, so it may be all that is left."""
    measured: dict[str, Impact] = {}
    for entry in _lines(rb.archive):
        if entry.get("section") == OWN:
            found = said(rb.archive, entry["name"]).get("findings", {}).get("7.1", {}).get("frames", {}).get("impact")
            for r in rows.each(record.frame_from_json(found), Impact) if found else ():
                if r.why == "":
                    measured[r.slo] = replace(r, name=entry["name"])
    return {"earlier": rows.frame(measured.values(), Impact)}


def _missed(archive: Archive, runs: pd.DataFrame) -> Frames:
    """The objectives that section 3 saw missed at its moment, and the run that did."""
    found: list[dict[str, Any]] = []
    for run in runs.to_dict("records"):
        kept = said(archive, str(run["name"])).get("findings", {}).get("3.1", {}).get("frames", {}).get("slis")
        for r in record.frame_from_json(kept).to_dict("records") if kept else ():
            if r.get("met") is False:
                found.append({"slo": r["slo"], "looked_at": run["looked_at"], "name": run["name"]})
    return {"missed": _timed(pd.DataFrame(found, columns=["slo", "looked_at", "name"]), "looked_at")}


@dataclass(frozen=True)
class Span:
    """The stretch of time that was looked at, in buckets; bucket -1 is all before it."""

    since: pd.Timestamp
    until: pd.Timestamp
    bucket_s: int

    @property
    def buckets(self) -> int:
        """How many."""
        return max(math.ceil((self.until - self.since).total_seconds() / self.bucket_s), 1)

    def at(self, bucket: int) -> pd.Timestamp:
        """Where a bucket begins."""
        return self.since + pd.Timedelta(seconds=bucket * self.bucket_s)

    def of(self, time: pd.Timestamp) -> int:
        """The bucket that a time is in."""
        return int((time - self.since).total_seconds() // self.bucket_s)

    def counts(self, frames: Frames, name: str, *columns: str) -> pd.DataFrame | None:
        """The counts of every bucket from -1 on; None where the question was not answered."""
        if name not in frames:
            return None
        found = table(frames, name, "bucket", *columns).set_index("bucket")[list(columns)]
        numbers = found.apply(pd.to_numeric, errors="coerce").fillna(0.0).groupby(level=0).sum()
        return pd.DataFrame(numbers.reindex(range(-1, self.buckets), fill_value=0.0).astype(float))

    def most(self, frames: Frames, name: str, *columns: str) -> pd.DataFrame:
        """The highest that was reached within every bucket; 0 where it was not asked."""
        found = self.counts(frames, name, *columns)
        none = pd.DataFrame(0.0, index=range(-1, self.buckets), columns=list(columns))
        return none if found is None else found.clip(lower=0)


@dataclass(frozen=True)
class _Stretch:
    since: pd.Timestamp | None = None
    until: pd.Timestamp | None = None
    bucket_s: float = 0.0


def span_of(frames: Frames) -> Span | None:
    """The span that the frames are of."""
    found = rows.one(frames.get("span"), _Stretch)
    if found.since is None or found.until is None or not found.bucket_s:
        return None
    return Span(found.since, found.until, max(int(found.bucket_s), 60))


def allowed(slo: Slo) -> float | None:
    """The share of events that may be bad; None where the objective is a level, or zero."""
    if slo.unit == "%":
        return 1 - slo.number / 100
    percentile = re.match(r"p(\d+)", slo.sli)
    return (100 - int(percentile[1])) / 100 if percentile else None


def budget_share(bad: float, share: float | None, events: float | None) -> float | None:
    """How much of a budget `bad` events have used, in percent, where `share` of all `events` may be bad.

    >>> budget_share(30, 0.001, 1_000_000)
    3.0
    """
    if share is None or not events or events != events:
        return None
    return round(100 * bad / (share * events), 2)


def levels(frames: Frames, given: Given) -> dict[str, pd.DataFrame]:
    """Each objective bucket by bucket: `bad` of `total` events, its `level`, and whether it was in `breach`."""
    span = span_of(frames)
    if span is None:
        return {}
    outbox = span.counts(frames, "outbox", "opened", "published", "old_in", "old_out", "n", "late", "old")
    sent = span.counts(frames, "notifications", "came", "ended", "sent", "failed", "n", "late")
    letters = span.counts(frames, "letters", "delivery", "subscriber")
    never = span.counts(frames, "unprocessed", "n")
    found: dict[str, pd.DataFrame] = {}
    if outbox is not None:
        found["ENT-C"] = _shares(outbox["late"], outbox["n"], given.slos["ENT-C"])
        # More of those unpublished than may be are older than the limit: so is their p95.
        unpublished = (outbox["opened"] - outbox["published"]).cumsum()
        old = (outbox["old_in"] - outbox["old_out"]).cumsum()
        within = span.most(frames, "outbox", "most_old", "aged")
        breach = (old > (allowed(given.slos["ENT-D"]) or 0.0) * unpublished) & (unpublished > 0) | (within["aged"] > 0)
        level = np.maximum(old.clip(lower=0), within["most_old"])
        found["ENT-D"] = pd.DataFrame({"bad": outbox["old"], "total": outbox["n"], "level": level, "breach": breach})
    if sent is not None:
        found["NOTI-A"] = _shares(sent["failed"], sent["sent"] + sent["failed"], given.slos["NOTI-A"])
        lost = never["n"] if never is not None else 0.0
        found["NOTI-B"] = _shares(sent["late"] + lost, sent["n"] + lost, given.slos["NOTI-B"])
        waiting = (sent["came"] - sent["ended"]).cumsum().clip(lower=0)
        # What piled up and was gone again within a bucket is not seen at its end.
        rise = span.most(frames, "notifications", "rise")["rise"]
        waiting = waiting.combine((waiting.shift(fill_value=0.0) + rise).where(rise > 0, 0.0), max)
        breach = pd.Series([not given.slos["NOTI-C"].met(v) for v in waiting], waiting.index)
        found["NOTI-C"] = pd.DataFrame({"bad": math.nan, "total": math.nan, "level": waiting, "breach": breach})
    if letters is not None:
        new = letters["delivery"] + letters["subscriber"]
        found["NOTI-D"] = pd.DataFrame({"bad": new, "total": math.nan, "level": new, "breach": new > 0})
    return {name: frame.loc[0:] for name, frame in found.items()}


def _shares(bad: pd.Series[float], total: pd.Series[float], slo: Slo) -> pd.DataFrame:
    share = (100 * bad / total.where(total > 0)).fillna(0.0)
    return pd.DataFrame(
        {"bad": bad, "total": total, "level": share, "breach": bad > (allowed(slo) or 0.0) * total}
    )  # fmt: skip


def onset(frames: Frames, given: Given, detected: Moment) -> Moment:
    """When it began: with the first event that was harmed, else as section 3 saw it, else where a flow dries up.

    At the latest when it was noticed. An event has its own time; a flow none better than its bucket.
    """
    kept, span = onset_kept(frames), span_of(frames)
    if span is None:
        return kept
    last = min(span.of(detected.at) + 2, span.buckets) if detected.at is not None else span.buckets
    harmed = _harmed(frames, span, last)
    if harmed or kept.at is not None:
        return harmed or kept
    return _dried_up(frames, span, last) or kept


def _harmed(frames: Frames, span: Span, last: int) -> Moment | None:
    """The first event of the first rise of those that waited, came late, were lost or given up."""
    found: list[tuple[int, pd.Timestamp, str]] = []
    for name, column, first, how in (
        ("outbox", "late", "first_late", "publish_late"),
        ("notifications", "late", "first_late", "late"),
        ("notifications", "slow", "first_slow", "slow"),
        ("unprocessed", "n", "first_late", "lost"),
        ("letters", "delivery", "first_letter", "letters"),
        ("letters", "subscriber", "first_letter", "letters"),
    ):
        counts = span.counts(frames, name, column)
        at = None if counts is None else rise(counts[column].loc[0 : last - 1].to_numpy())
        if at is not None:
            found.append((at, _first(frames, name, at, first) or span.at(at), how))
    if not found:
        return None
    # What begins side by side is one beginning.
    side_by_side = min(bucket for bucket, _, _ in found) + 1
    _, at_, how = min((f for f in found if f[0] <= side_by_side), key=lambda f: f[1])
    return Moment(at_, how)


def _dried_up(frames: Frames, span: Span, last: int) -> Moment | None:
    """The bucket in which the first flow falls; one that falls because less comes in is no fault of it."""
    full = min(last, int((span.until - span.since).total_seconds() // span.bucket_s))

    def fall(name: str, column: str) -> int | None:
        counts = span.counts(frames, name, column)
        return None if counts is None else strongest(counts[column].loc[0 : full - 1].to_numpy(), up=False)

    fewer = fall("outbox", "came")
    found = [
        (at, how)
        for name, column, how in (
            ("outbox", "published", "published"),
            ("notifications", "came", "processed"),
            ("notifications", "sent", "sent"),
        )
        if (at := fall(name, column)) is not None and (fewer is None or abs(at - fewer) > 1)
    ]
    return Moment(span.at(min(found)[0]), min(found)[1]) if found else None


def strongest(counts: Any, *, up: bool) -> int | None:
    """The bucket of the strongest change in that direction; what came after a change in the other one is left out."""
    change = stats.change_point(counts)
    if change.index is None:
        return None
    return change.index if (change.after > change.before) == up else strongest(counts[: change.index], up=up)


def rise(counts: Any) -> int | None:
    """The bucket in which a rise begins: the strongest one, and what leads up to it."""
    at = strongest(counts, up=True)
    usual = float(np.median(counts[:at])) if at else 0.0
    while at and counts[at - 1] > 2 * usual:
        at -= 1
    return at


def _first(frames: Frames, name: str, bucket: int, column: str) -> pd.Timestamp | None:
    found = table(frames, name, "bucket", column)
    times = pd.to_datetime(found.loc[found["bucket"] == bucket, column], utc=True).dropna()
    return pd.Timestamp(times.min()) if len(times) else None


@dataclass(frozen=True)
class Missed:
    """An objective that section 3 saw missed."""

    slo: str = ""
    looked_at: pd.Timestamp | None = None
    name: str = ""


@dataclass(frozen=True)
class Failed:
    """Events that the relay gave up: in the incident, in all, and when the first of them."""

    QUESTION: ClassVar[str] = "postmortem/outbox_failed"
    n: float = 0.0
    total: float = 0.0
    first_failed: pd.Timestamp | None = None


@dataclass(frozen=True)
class Reach:
    """How far back the rows of a side reach, and how long they are kept."""

    oldest: pd.Timestamp | None
    kept: pd.Timedelta
    known: float | None


@dataclass(frozen=True)
class Oldest:
    """The oldest rows that were sent, or published."""

    QUESTION: ClassVar[str] = "postmortem/reach"
    ended_since: pd.Timestamp | None = None
    published_since: pd.Timestamp | None = None


@dataclass(frozen=True)
class Size:
    """How many rows the planner knows of."""

    QUESTION: ClassVar[str] = "postmortem/size"
    ended: float | None = None
    published: float | None = None


def _reach(frames: Frames, given: Given, slo: str) -> Reach:
    """Of the side that an objective is about."""
    oldest, size = rows.one(frames.get("reach"), Oldest), rows.one(frames.get("size"), Size)
    if slo.startswith("ENT"):
        return Reach(oldest.published_since, pd.Timedelta(hours=given.number("retention.outbox")), size.published)
    return Reach(oldest.ended_since, pd.Timedelta(days=given.number("retention.notifications")), size.ended)


def impact(frames: Frames, given: Given, begin: pd.Timestamp | None) -> list[Impact]:
    """What each objective suffered from the beginning to the end of the span."""
    span, found = span_of(frames), levels(frames, given)
    silent = next((e.reason.value for e in failures(frames).values() if e.source == "postgres"), "not_asked")
    earlier = {r.slo: r for r in rows.each(frames.get("earlier"), Impact)}
    missed = rows.each(frames.get("missed"), Missed)
    seen = {m.slo: m.name for m in missed if span is None or (m.looked_at and m.looked_at <= span.until)}
    impacts = []
    for name, slo in given.slos.items():
        r = Impact(name, slo.objective, why=silent)
        if name in NOT_IN_TABLES:
            r = replace(r, why="not_in_tables")
        elif span is not None and name == "ENT-E" and "outbox_failed" in frames:
            r = _given_up(r, rows.one(frames["outbox_failed"], Failed), span)
        elif span is not None and name in found:
            first = max(span.of(begin), 0) if begin is not None else 0
            r = _suffered(r, found[name].loc[first:], slo, span)
            events, counted = _month_events(frames, given, name)
            r = replace(r, budget=budget_share(r.bad or 0.0, allowed(slo), events), counted=counted)
            if name != "NOTI-D":  # dead letters are never cleaned
                r = _hidden(r, given.as_of, _reach(frames, given, name), begin or span.since, span.until)
        if r.why not in ("", "no_events") and name in earlier:
            r = replace(earlier[name], why="earlier")
        if name in seen and not r.hit:
            r = replace(r, why="seen", minutes=None, name=seen[name])
        impacts.append(r)
    return impacts


def _suffered(r: Impact, part: pd.DataFrame, slo: Slo, span: Span) -> Impact:
    bad, total = part["bad"].sum(min_count=1), part["total"].sum(min_count=1)
    counted = allowed(slo) is not None
    return replace(
        r,
        minutes=float(part["breach"].sum()) * span.bucket_s / 60,
        bad=None if bad != bad else float(bad),
        total=float(total) if counted else None,
        percent=round(100 * bad / total, 2) if counted and total else None,
        peak=float(part["level"].max()) if len(part) else 0.0,
        why="no_events" if counted and not total else "",
    )


def _given_up(r: Impact, failed: Failed, span: Span) -> Impact:
    """ENT-E: rows in FAILED, from the first of the incident on, since nothing takes them out."""
    r = replace(r, bad=failed.n, peak=failed.total)
    if failed.n and failed.first_failed is None:
        return replace(r, why="no_time")
    began = failed.first_failed
    minutes = 0.0 if began is None else math.ceil((span.until - began).total_seconds() / 60)
    return replace(r, minutes=minutes, why="")


def _hidden(r: Impact, as_of: pd.Timestamp, reach: Reach, begin: pd.Timestamp, until: pd.Timestamp) -> Impact:
    """What retention has taken of the incident: all, a part, or nothing."""
    horizon = as_of - reach.kept
    if begin >= horizon or (reach.oldest is not None and reach.oldest <= begin):
        return r
    visible = reach.oldest or horizon
    if visible >= until:
        return Impact(r.slo, r.objective, counted=r.counted, why="retention")
    return replace(r, why="partly", since=visible)


def _month_events(frames: Frames, given: Given, name: str) -> tuple[float | None, str]:
    """The events of an objective's window that a budget is a share of: counted, or projected from what is known."""
    outbox, month = name.startswith("ENT"), given.number("slo.window")
    reach, exact = _reach(frames, given, name), rows.one(frames.get("day" if outbox else "month"), Count).n
    if reach.oldest is None:
        return None, ""
    days = (given.as_of - reach.oldest) / pd.Timedelta(days=1)
    if exact is not None:
        days = min(days, 1.0 if outbox else month)
    events = reach.known if exact is None else exact
    if events is None or events < 0 or days < 1 / 24:
        return None, ""
    return float(events) * month / days, "counted" if days == month else "projected"


def judge_impact(frames: Frames, given: Given) -> Finding:
    """7.1: which objectives were hit, for how long, how many events, and what that is of the budget."""
    span = span_of(frames)
    if span is None:
        return no_data("span")
    detected = detection(frames, given)
    began = onset(frames, given, detected) if _runs(frames) or detected.at is not None else Moment()
    impacts = impact(frames, given, began.at)
    shown = _timed(rows.frame(impacts, Impact), "since")
    shown = shown.astype(dict.fromkeys(("minutes", "bad", "total", "percent", "budget", "peak"), "float64"))
    hit = [r for r in impacts if r.hit]
    unseen = [r for r in impacts if r.why not in ("", "no_events", "earlier", "not_in_tables")]
    seen = [r for r in impacts if r.why in ("", "no_events", "earlier", "partly", "no_time")]
    notes = [say("postmortem.counted", minutes=span.bucket_s / 60)] if seen else []
    for why in dict.fromkeys(r.why for r in unseen):
        names = ", ".join(r.slo for r in unseen if r.why == why)
        notes.append(say("postmortem.unmeasured", slo=names, why=say(f"postmortem.why.{why}")))
    notes.append(say("postmortem.not_in_tables", names=", ".join(NOT_IN_TABLES)))
    if "unprocessed" not in frames and "notifications" in frames:
        notes.append(say("postmortem.lost_unseen"))
    values = [
        Value("onset", None if began.at is None else began.at.isoformat()),
        Value("onset_how", began.how or None),
        Value("onset_from", began.name or None),
        *(Value(f"{r.slo}.breach", r.minutes, "min") for r in impacts if r.why != "not_in_tables"),
        *(Value(f"{r.slo}.budget", r.budget, "%") for r in impacts if r.budget),
    ]
    if not seen:
        e = next((e for e in failures(frames).values() if e.source == "postgres"), None)
        reason = e.reason if e else Reason.NO_DATA
        return unknown(
            "", reason, say("postmortem.impact_unknown"), values=tuple(values), notes=tuple(notes),
            frames={"impact": shown}, show=("impact",),
        )  # fmt: skip
    return judged(
        say(
            f"postmortem.{'hit' if hit else 'not_hit'}{'_in_part' if unseen else ''}",
            n=len(hit),
            since=f"{began.at or span.since:%Y-%m-%d %H:%M:%SZ}",
            until=f"{span.until:%Y-%m-%d %H:%M:%SZ}",
            list="; ".join(r.words for r in hit),
            unseen=", ".join(r.slo for r in unseen),
        ),
        values,
        at_least=Status.WARNING if unseen else Status.OK,
        notes=tuple(notes),
        frames={"impact": shown},
        show=("impact",),
    )


def draw_impact(frames: Frames, given: Given) -> charts.Chart | None:
    """Three SLIs bucket by bucket, each with its limit; what was in breach is shaded."""
    span, found = span_of(frames), levels(frames, given)
    panels = [
        ("NOTI-B", "late deliveries", "% of events", 5.0, charts.BLUE),
        ("ENT-C", "late publishing", "% of events", 5.0, charts.GREEN),
        ("NOTI-C", "unfinished notifications", "rows", given.slos["NOTI-C"].number, charts.GREY),
        ("NOTI-D", "new dead letters", "rows", 1.0, charts.RED),
    ]
    drawn = [p for p in panels if p[0] in found and (p[0] != "NOTI-D" or found[p[0]]["level"].any())]
    if span is None or not drawn:
        return None
    detected = detection(frames, given)
    marks = (
        ("began", onset(frames, given, detected).at if _runs(frames) else None, "-."),
        ("detected", detected.at, "--"),
        ("recovered", recovery(frames, detected.at).at, "-"),
    )
    figure = Figure(figsize=(8.0, 1.3 + 1.35 * len(drawn)), dpi=100, layout="constrained")
    every: Any = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)
    edges = [span.at(i).to_pydatetime() for i in range(span.buckets + 1)]
    began = marks[0][1] or span.since
    # As much before the incident as it lasted, ten minutes at least.
    begin = max(began - max(span.until - began, pd.Timedelta(minutes=10)), span.since)
    shaded = False
    for ax, (slo, title, unit, limit, colour) in zip(every[:, 0], drawn, strict=True):
        level, breach = found[slo]["level"], found[slo]["breach"].astype(bool)
        ax.stairs(level.to_numpy(), edges, color=colour, linewidth=1.8, fill=slo == "NOTI-D", baseline=0)
        ax.axhline(limit, color=charts.ORANGE, linestyle=":", linewidth=1.4)
        for i in breach.index[breach]:
            ax.axvspan(edges[i], edges[i + 1], facecolor=charts.RED, alpha=0.18, hatch="//", edgecolor=charts.RED,
                       linewidth=0, label=None if shaded else "in breach")  # fmt: skip
            shaded = True
        for label, at, dash in marks:
            if at is not None and span.since <= at <= span.until:
                ax.axvline(at.to_pydatetime(), color="black", linestyle=dash, linewidth=1.2,
                           label=label if ax is every[0, 0] else None)  # fmt: skip
        ax.set_title(f"{slo}: {title}", loc="left", fontweight="bold", fontsize=9)
        ax.set_ylabel(unit)
        ax.set_ylim(0, max(1.15 * float(level.loc[max(span.of(begin), 0) :].max()), 1.6 * limit))
        ax.spines[["top", "right"]].set_visible(False)
        charts.clock_ticks(ax)
    every[-1, 0].set_xlabel(f"UTC, {begin:%Y-%m-%d}")
    every[-1, 0].set_xlim(begin.to_pydatetime(), edges[-1] + (edges[-1] - begin.to_pydatetime()) / 40)
    every[0, 0].plot([], [], color=charts.ORANGE, linestyle=":", label="limit")
    figure.legend(loc="outside lower left", ncols=5, fontsize=8, frameon=False)
    breached = ", ".join(f"{slo} {float(found[slo]['breach'].sum()) * span.bucket_s / 60:g} min" for slo, *_ in drawn)
    times = {"since": f"{span.since:%Y-%m-%d %H:%M}", "until": f"{span.until:%Y-%m-%d %H:%M}"}
    return charts.Chart(
        figure, say("postmortem.alt_impact", breached=breached, **times), (say("postmortem.impact_caption"),)
    )


# 7.2 Origin -------------------------------------------------------------------------------------------------


def collect_origin(rb: Context) -> Frames:
    """7.2: what every command concluded, and every finding that speaks for or against a failure mode.

    Frames: verdicts (fields of `Verdict`), modes (of `Mode`), steps (`STEP`), unread (name: text), known (id; en, ja:
    text).
    """
    manifest = _lines(rb.archive)
    runs = [e for e in manifest if e.get("section", OWN) != OWN]
    told = [
        (e["name"], e.get("started"), e["verdict"]) for e in manifest if "verdict" in e and e.get("sections") != [OWN]
    ]
    if not told:
        read = ((e, said(rb.archive, e["name"]).get("verdict")) for e in runs)
        told = [(e["name"], e.get("started"), v) for e, v in read if v]
    verdicts = [{"name": n, "started": t} | {c: v.get(c) for c in VERDICT[2:]} for n, t, v in told]
    modes = [
        {"name": n, "id": m["id"], "score": m["score"]} for n, _, v in told for m in v.get("failure_modes", ())
    ]  # fmt: skip
    frames = {
        "verdicts": _timed(pd.DataFrame(verdicts, columns=VERDICT), "started"),
        "modes": pd.DataFrame(modes, columns=["name", "id", "score"]),
        "steps": pd.DataFrame(list(_spoken(rb.archive, runs)), columns=STEP),
        "unread": pd.DataFrame({"name": [e["name"] for e in runs if not said(rb.archive, e["name"])]}, dtype=object),
    }
    return frames | {"known": pd.DataFrame([(m.id, m.en, m.ja) for m in rb.catalog.failure_modes.values()],
                                           columns=["id", "en", "ja"])}  # fmt: skip


def _spoken(archive: Archive, runs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in runs:
        for step, f in said(archive, entry["name"]).get("findings", {}).items():
            for signal in f.get("signals", ()):
                if signal["about"].startswith("FM-"):
                    words = {f"headline_{lang}": f["headline"].get(lang, "") for lang in ("en", "ja")}
                    yield {"name": entry["name"], "section": entry["section"], "step": step, "id": signal["about"],
                           "weight": float(signal["weight"]), "status": f["status"], **words}  # fmt: skip


def located(verdicts: list[Verdict]) -> Verdict | None:
    """The verdict that names the incident: the worst, of these the surest, of these the first."""
    bad = [v for v in verdicts if v.status in Status.__members__ and v.status != "OK"]
    bad.sort(key=lambda v: v.started or pd.Timestamp.max.tz_localize("UTC"))
    return max(bad, key=lambda v: (Status[v.status].rank, SURE.index(v.confidence)), default=None)


def judge_origin(frames: Frames, given: Given) -> Finding:
    """7.2: the failure mode that stands out in the worst and surest verdict, with the evidence on both sides."""
    verdicts = rows.each(frames.get("verdicts"), Verdict)
    if not verdicts:
        return unknown("", Reason.NO_DATA, say("postmortem.no_runs"))
    first = located(verdicts) or Verdict()
    modes = sorted(rows.each(frames.get("modes"), Mode), key=lambda m: -m.score)
    top = [m for m in modes if m.name == first.name]
    lead = top[0].score - (top[1].score if len(top) > 1 else 0.0) if top else 0.0
    stands_out = (
        bool(top)
        and top[0].score >= given.number("origin.score")
        and lead >= given.number("origin.lead")
        and first.confidence in ("medium", "high")
    )
    top = top[: int(given.number("origin.candidates"))]
    candidates = [m.id for m in top]
    named = {m.name: m.id for m in reversed(modes)}  # the first of each verdict
    others = [m.id for m in modes if named[m.name] == m.id and m.id not in candidates]
    elsewhere = [(id_, "named_elsewhere", next(m.score for m in modes if m.id == id_)) for id_ in dict.fromkeys(others)]
    shown = pd.DataFrame(
        [(m.id, "origin" if stands_out and m is top[0] else "candidate", m.score) for m in top] + elsewhere,
        columns=["id", "role", "score"],
    )
    steps = table(frames, "steps", *STEP)
    evidence = steps[steps["id"].isin([*candidates, *others])].drop_duplicates(["name", "step", "id"])
    unread = table(frames, "unread", "name")
    key = "origin" if stands_out else "inconclusive" if top else "no_mode"
    return judged(
        say(
            f"postmortem.{key}",
            mode=_mode(frames, candidates[0]) if top else "-",
            confidence=say(f"confidence.{first.confidence}"),
            candidates=", ".join(f"{m.id} {m.score:.2f}" for m in top) or "-",
            score=top[0].score if top else 0.0,
        ),
        [
            Value("origin", candidates[0] if stands_out else None),
            Value("candidates", ", ".join(candidates) or None),
            Value("confidence", first.confidence),
            Value("stuck_at", first.stuck_at or None),
            Value("located", first.name or None),
        ],
        at_least=Status.OK if stands_out else Status.WARNING,
        notes=(
            say("postmortem.origin_note"),
            *((say("postmortem.unread", names=", ".join(unread["name"].astype(str))),) if len(unread) else ()),
        ),
        frames={"candidates": shown, "evidence": evidence.reset_index(drop=True)},
        show=("candidates", "evidence"),
    )


@dataclass(frozen=True)
class Known:
    """A failure mode's title."""

    id: str = ""
    en: str = ""
    ja: str = ""


def _mode(frames: Frames, id_: str) -> Text:
    title = next((k for k in rows.each(frames.get("known"), Known) if k.id == id_), Known())
    return say(VERBATIM, en=f"{id_} {title.en}".strip(), ja=f"{id_} {title.ja}".strip())


# 7.3 Timeline -----------------------------------------------------------------------------------------------


def collect_timeline(rb: Context) -> Frames:
    """7.3: runs, verdicts, actions, notes and what did not end; the onset is that of 7.1.

    Frames: runs, verdicts, actions (fields of `Action`), notes (time; who, text: text), partials (name: text), began
    (fields of `Began`).
    """
    frames = collect_runs(rb)
    notes = [
        # People in it are tokens already; whoever wrote it did not know this target's secrets.
        {"time": n.get("time"), "who": n.get("who"), "text": rb.masker.without_secrets(str(n.get("text")))}
        for n in _lines(rb.archive, NOTES)
    ]
    earlier = next((f for f in rb.given().earlier if f.step == "7.1"), None)
    began = {c: earlier.value(c) if earlier else None for c in ("onset", "onset_how", "onset_from")}
    kept = onset_kept(frames)
    if not began["onset"] and kept.at is not None:
        began = {"onset": kept.at.isoformat(), "onset_how": kept.how, "onset_from": kept.name}
    partial = [p for p in rb.archive.partials() if f"-{OWN}." not in p]
    return frames | {
        "verdicts": collect_origin(rb)["verdicts"],
        "actions": rows.frame((_acted(a) for a in _lines(rb.archive, ACTION_LOG)), Action),
        "notes": _timed(pd.DataFrame(notes, columns=["time", "who", "text"]), "time"),
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
    """The onset, how it is known, and the artifact that says so."""

    onset: str = ""
    onset_how: str = ""
    onset_from: str = ""


def judge_timeline(frames: Frames, given: Given) -> Finding:
    """7.3: onset, detection, recovery and all between them; TTD and TTR with what each time rests on."""
    if not _runs(frames) and given.detected_at is None:
        return unknown("", Reason.NO_DATA, say("postmortem.no_runs"))
    began = rows.one(frames.get("began"), Began)
    start = Moment(_time(began.onset) if began.onset else None, began.onset_how, began.onset_from)
    detected = detection(frames, given)
    recovered = recovery(frames, detected.at)
    ttd, ttr = lasted(start.at, detected.at), lasted(detected.at, recovered.at)
    whole = ttd is not None and ttr is not None
    entries = timeline(frames, start, detected, recovered)
    died = len(table(frames, "partials", "name"))
    notes = {
        "formula": True,
        "died": died,
        "no_onset": start.at is None,
        "not_recovered": recovered.at is None,
    }
    key = "times" if whole else "times_open" if recovered.at is None else "times_in_part"
    moments = {"onset": start, "detection": detected, "recovery": recovered}
    times = pd.DataFrame(
        [(what, m.at, m.how, m.name) for what, m in moments.items()], columns=["what", "time", "how", "name"]
    )
    return judged(
        say(f"postmortem.{key}", ttd=ttd, ttr=ttr, entries=len(entries)),
        [Value("ttd", ttd, "s"), Value("ttr", ttr, "s"), Value("timeline.entries", len(entries))],
        at_least=Status.OK if whole else Status.WARNING,
        notes=tuple(say(f"postmortem.{note}", n=died) for note, true in notes.items() if true),
        frames={"times": _timed(times, "time"), "timeline": entries},
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


def timeline(frames: Frames, start: Moment, detected: Moment, recovered: Moment) -> pd.DataFrame:
    """Everything that has a time, sorted, in UTC. Columns: the fields of `Entry`."""
    found = [
        Entry(m.at, kind, m.how, name=m.name)
        for kind, m in (("onset", start), ("detection", detected), ("recovery", recovered))
        if m.at is not None
    ]
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


# 7.4 Measures -----------------------------------------------------------------------------------------------


def collect_measures(rb: Context) -> Frames:
    """7.4: what the failure mode's entry suggests, and what a person has entered into the draft.

    Frames: suggested (id; kind, text: text), entered (kind, measure, owner, due: text; whole: flag).
    """
    origin = next((f for f in rb.given().earlier if f.step == "7.2"), None)
    ids = str((origin and (origin.value("origin") or origin.value("candidates"))) or "").split(", ")
    suggested = [
        {"id": m.id, "kind": kind, "text": text}
        for m in (rb.catalog.failure_modes[i] for i in ids[:2] if i in rb.catalog.failure_modes)
        for kind, text in (("measure", m.detection), ("control", m.mitigation))
    ]
    return {
        "suggested": pd.DataFrame(suggested, columns=["id", "kind", "text"]),
        "entered": pd.DataFrame(mandatory.measures_of(_draft(rb.archive)), columns=list(mandatory.MEASURE)),
    }


def _draft(archive: Archive) -> str:
    try:
        return archive.read(mandatory.MARKDOWN).decode(errors="replace")
    except OSError:
        return ""


def judge_measures(frames: Frames, given: Given) -> Finding:
    """7.4: what will be changed, by whom and by when; only a person can say so."""
    entered = table(frames, "entered", *mandatory.MEASURE)
    whole = entered[entered["whole"].astype(bool)] if len(entered) else entered
    suggested = table(frames, "suggested", "id", "kind", "text")
    return judged(
        say("postmortem.measures" if len(whole) else "postmortem.no_measures", n=len(whole), suggested=len(suggested)),
        [Value("measures.whole", len(whole)), Value("measures.suggested", len(suggested))],
        at_least=Status.OK if len(whole) else Status.WARNING,
        notes=(say("postmortem.measures_note"),),
        show=("entered", "suggested"),
    )


CHECKS: tuple[Check, ...] = (
    Check("7.1", collect_impact, judge_impact, (draw_impact,)),
    Check("7.2", collect_origin, judge_origin),
    Check("7.3", collect_timeline, judge_timeline),
    Check("7.4", collect_measures, judge_measures),
)
