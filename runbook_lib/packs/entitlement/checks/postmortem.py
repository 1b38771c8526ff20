"""Section 7: what an incident cost, where it came from and how long it took, out of its dossier and the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from runbook_lib import mandatory
from runbook_lib.analysis import stats
from runbook_lib.catalog import Slo
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts
from runbook_lib.context import Given
from runbook_lib.messages import VERBATIM
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Text, Value, judged, say, unknown
from runbook_lib.model.frames import amount, one, row, table
from runbook_lib.parameters import moment
from runbook_lib.sources import SourceError
from runbook_lib.store import ACTIONS, NOTES, Archive
from runbook_lib.view import charts, record

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

OWN = mandatory.SECTION
#: An incident is looked at in at most so many buckets of whole minutes; a question reads six hours at once.
MOST_BUCKETS, PIECE = 470, pd.Timedelta(hours=6)
LONGEST = pd.Timedelta(days=7)
#: What came into being so long before the span, or ended so long after it, still belongs to it.
MARGIN = pd.Timedelta(hours=1)
#: How long rows are kept (docs/slo.md, "Retention bounds the look-back").
KEPT = {"outbox": pd.Timedelta(hours=24), "notifications": pd.Timedelta(days=30)}
MONTH_DAYS = 28
#: Ten tries of the relay take 365 s at most.
LONGEST_TRIES_S = 420.0
#: A failure mode is the origin when it stands out: by its score, and before the next one.
ORIGIN_SCORE, ORIGIN_LEAD = 0.5, 0.1

RUN = ["name", "section", "started", "ended", "looked_at", "status", "stuck_at", "confidence", "detail",
       "detected_by", "detected_at", "onset"]  # fmt: skip
VERDICT = ["name", "started", "status", "stuck_at", "confidence"]
STEP = ["name", "section", "step", "id", "weight", "status", "headline_en", "headline_ja"]
IMPACT = ["slo", "objective", "minutes", "bad", "total", "percent", "budget", "counted", "peak", "why", "since", "name"]
ENTRY = ["time", "kind", "what", "status", "who", "detail_en", "detail_ja", "name"]


# The dossier ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=128)
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
    """The runs of the incident, this section's own left out."""
    rows = []
    for entry in _journal(rb.archive):
        if entry.get("section", OWN) == OWN:
            continue
        given, seen = entry.get("parameters") or {}, said(rb.archive, entry["name"])
        onset = seen.get("findings", {}).get("3.1", {}).get("values", {}).get("impact.onset", {}).get("value")
        at = given.get("detected_at")
        rows.append(
            {c: entry.get(c) for c in RUN}
            | {
                "looked_at": seen.get("as_of") or entry.get("started"),
                "detail": entry.get("problem"),
                "detected_by": given.get("detected_by"),
                "detected_at": moment(at).isoformat() if at else None,
                "onset": onset,
            }
        )
    return {"runs": _timed(pd.DataFrame(rows, columns=RUN), "started", "ended", "looked_at", "detected_at", "onset")}


def _journal(archive: Archive, name: str = "") -> list[dict[str, Any]]:
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


def detection(runs: pd.DataFrame, given: Given) -> Moment:
    """When it was noticed: as it was told to this run, else to an earlier one, else when somebody first looked."""
    if given.detected_at is not None:
        return Moment(given.detected_at, given.detected_by or "told")
    runs = runs.sort_values("started")
    for told in (runs[runs["detected_at"].notna()], runs[runs["detected_by"].notna()], runs):
        if len(told):
            first = told.iloc[0]
            at = first["detected_at"] if pd.notna(first["detected_at"]) else first["started"]
            by = first["detected_by"] if pd.notna(first["detected_by"]) and first["detected_by"] else ""
            how = by or ("told" if pd.notna(first["detected_at"]) else "first_run")
            return Moment(at, how, str(first["name"]))
    return Moment()


def recovery(runs: pd.DataFrame, since: pd.Timestamp | None) -> Moment:
    """The first run of section 6 that was OK after the last bad run: CRITICAL in 3 or 4, anything but OK in 6."""
    six, section = runs["section"] == "6", runs["section"].astype(str)
    bad = runs[(six & (runs["status"] != "OK")) | (section.str.match(r"[34]") & (runs["status"] == "CRITICAL"))]
    green = runs[six & (runs["status"] == "OK")].sort_values("started")
    if len(bad):
        green = green[green["started"] > bad["started"].max()]
    if since is not None:
        green = green[green["looked_at"] >= since]
    return Moment(green.iloc[0]["looked_at"], "green", str(green.iloc[0]["name"])) if len(green) else Moment()


def onset_kept(runs: pd.DataFrame) -> Moment:
    """When it began by what section 3 saw: the oldest event that waited, or a change in a flow."""
    told = runs[runs["onset"].notna()].sort_values("started")
    return Moment(told.iloc[0]["onset"], "run", str(told.iloc[0]["name"])) if len(told) else Moment()


# 7.1 Impact -------------------------------------------------------------------------------------------------


def collect_impact(rb: Context) -> Frames:
    """7.1: the runs, and what the tables say of the incident, bucket by bucket."""
    parts, given = Parts(), rb.given()
    with parts.part("archive") as answers:
        answers |= collect_runs(rb) | _earlier_impact(rb)
        answers |= _missed(rb.archive, answers["runs"])
    runs = table(parts.answers, "runs", *RUN)
    detected = detection(runs, given)
    recovered = recovery(runs, detected.at)
    until = recovered.at or rb.as_of
    begins = [t for t in (detected.at, runs["started"].min() if len(runs) else None) if t is not None]
    first = min([*begins, until])
    since = max(first - pd.Timedelta(minutes=given.window_minutes), until - LONGEST).floor("min")
    bucket_s = 60 * max(math.ceil((until - since).total_seconds() / 60 / MOST_BUCKETS), 1)
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
    return {
        "reach": db.ask("postmortem/reach"),
        "size": db.try_ask("postmortem/size"),
        "month": db.try_ask("postmortem/month"),
        "day": db.try_ask("postmortem/day"),
        "outbox_failed": db.try_ask(
            "postmortem/outbox_failed", since=since, until=until, tries_s=LONGEST_TRIES_S
        ),
        "letters": db.try_ask("postmortem/dead_letters", **span),
        "unprocessed": db.try_ask("postmortem/unprocessed", **span, limit_s=e2e),
        "outbox": _in_pieces(db, "postmortem/outbox", since, until + MARGIN, **outbox),
        "notifications": _in_pieces(
            db, "postmortem/notifications", since - MARGIN, until + MARGIN, **sent
        ),
    }  # fmt: skip


def _in_pieces(db: Snapshot, name: str, low: pd.Timestamp, high: pd.Timestamp, **params: Any) -> pd.DataFrame | None:
    """One question in pieces of six hours, so that each stays within the read budget; added up by bucket."""
    answers: list[pd.DataFrame] = []
    while low < high:
        end = min(low + PIECE, high)
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
    rows: dict[str, Any] = {}
    for entry in _journal(rb.archive):
        if entry.get("section") == OWN:
            found = said(rb.archive, entry["name"]).get("findings", {}).get("7.1", {}).get("frames", {}).get("impact")
            if found:
                for r in record.frame_from_json(found).to_dict("records"):
                    if r.get("why") == "":
                        rows[str(r["slo"])] = r | {"name": entry["name"]}
    return {"earlier": pd.DataFrame(list(rows.values()), columns=IMPACT)}


def _missed(archive: Archive, runs: pd.DataFrame) -> Frames:
    """The objectives that section 3 saw missed at its moment, and the run that did."""
    rows: list[dict[str, Any]] = []
    for run in runs.to_dict("records"):
        kept = said(archive, str(run["name"])).get("findings", {}).get("3.1", {}).get("frames", {}).get("slis")
        for r in record.frame_from_json(kept).to_dict("records") if kept else ():
            if r.get("met") is False:
                rows.append({"slo": r["slo"], "looked_at": run["looked_at"], "name": run["name"]})
    return {"missed": _timed(pd.DataFrame(rows, columns=["slo", "looked_at", "name"]), "looked_at")}


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


def span_of(frames: Frames) -> Span | None:
    """The span that the frames are of."""
    found = one(frames.get("span"))
    if not {"since", "until", "bucket_s"} <= {k for k, v in found.items() if v}:
        return None
    return Span(pd.Timestamp(found["since"]), pd.Timestamp(found["until"]), max(int(found["bucket_s"]), 60))


def allowed(slo: Slo) -> float | None:
    """The share of events that may be bad; None where the objective is a level, or zero."""
    if slo.unit == "%":
        return 1 - slo.number / 100
    return 0.05 if slo.sli.startswith("p95") else None


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
        # More than one in twenty of those unpublished is older than the limit: so is their p95.
        unpublished = (outbox["opened"] - outbox["published"]).cumsum()
        old = (outbox["old_in"] - outbox["old_out"]).cumsum()
        within = span.most(frames, "outbox", "most_old", "aged")
        breach = (old > 0.05 * unpublished) & (unpublished > 0) | (within["aged"] > 0)
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
    kept, span = onset_kept(table(frames, "runs", *RUN)), span_of(frames)
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


def impact(frames: Frames, given: Given, begin: pd.Timestamp | None) -> pd.DataFrame:
    """What each objective suffered from the beginning to the end of the span; `why` says what has no number."""
    span, found = span_of(frames), levels(frames, given)
    silent = next((e.reason.value for e in failures(frames).values() if e.source == "postgres"), "not_asked")
    earlier = {str(r["slo"]): r for r in table(frames, "earlier", *IMPACT).to_dict("records")}
    missed = table(frames, "missed", "slo", "looked_at", "name").to_dict("records")
    seen = {str(r["slo"]): str(r["name"]) for r in missed if span is None or r["looked_at"] <= span.until}
    rows: list[dict[str, Any]] = []
    for name, slo in given.slos.items():
        r: dict[str, Any] = dict.fromkeys(IMPACT) | {"slo": name, "objective": slo.objective, "why": silent, "name": ""}
        if name in ("ENT-A", "ENT-B"):
            r["why"] = "not_in_tables"
        elif span is not None and name == "ENT-E":
            r |= _given_up(frames, span, begin)
        elif span is not None and name in found:
            first = max(span.of(begin), 0) if begin is not None else 0
            r |= _suffered(found[name].loc[first:], slo, span)
            events, counted = _month_events(frames, given, name)
            r |= {"budget": budget_share(r["bad"] or 0.0, allowed(slo), events), "counted": counted}
            r |= _hidden(frames, given, name, begin or span.since, span.until)
        if r["why"] not in ("", "no_events") and name in earlier:
            r = {str(k): v for k, v in earlier[name].items()} | {"why": "earlier"}
        if name in seen and not _hit(r):
            r |= {"why": "seen", "minutes": None, "name": seen[name]}
        rows.append(r)
    numbers = ["minutes", "bad", "total", "percent", "budget", "peak"]
    shown = pd.DataFrame(rows, columns=IMPACT)
    return _timed(shown, "since").astype(dict.fromkeys(numbers, "float64"))


def _suffered(part: pd.DataFrame, slo: Slo, span: Span) -> dict[str, Any]:
    bad, total = part["bad"].sum(min_count=1), part["total"].sum(min_count=1)
    counted = allowed(slo) is not None
    return {
        "minutes": float(part["breach"].sum()) * span.bucket_s / 60,
        "bad": None if bad != bad else float(bad),
        "total": float(total) if counted else None,
        "percent": round(100 * bad / total, 2) if counted and total else None,
        "peak": float(part["level"].max()) if len(part) else 0.0,
        "why": "no_events" if counted and not total else "",
    }


def _given_up(frames: Frames, span: Span, begin: pd.Timestamp | None) -> dict[str, Any]:
    """ENT-E: rows in FAILED, from the first of the incident on, since nothing takes them out."""
    if "outbox_failed" not in frames:
        return {}
    found = one(frames["outbox_failed"])
    n, first = amount(found, "n"), found.get("first_failed")
    if n and first is None:
        return {"bad": n, "peak": amount(found, "total"), "why": "no_time"}
    minutes = 0.0 if first is None else math.ceil((span.until - pd.Timestamp(first)).total_seconds() / 60)
    return {"bad": n, "minutes": minutes, "peak": amount(found, "total"), "why": ""}


def _hidden(frames: Frames, given: Given, name: str, begin: pd.Timestamp, until: pd.Timestamp) -> dict[str, Any]:
    """What retention has taken of the incident: all, a part, or nothing."""
    if name == "NOTI-D":
        return {}  # dead letters are never cleaned
    outbox = name.startswith("ENT")
    horizon = given.as_of - KEPT["outbox" if outbox else "notifications"]
    reach = one(frames.get("reach")).get("published_since" if outbox else "ended_since")
    if begin >= horizon or (reach is not None and pd.Timestamp(reach) <= begin):
        return {}
    visible = horizon if reach is None else pd.Timestamp(reach)
    if visible >= until:
        nothing = dict.fromkeys(("minutes", "bad", "total", "percent", "budget", "peak"))
        return nothing | {"why": "retention"}
    return {"why": "partly", "since": visible}


def _month_events(frames: Frames, given: Given, name: str) -> tuple[float | None, str]:
    """The events of 28 days that a budget is a share of: counted, or projected from what is known."""
    outbox = name.startswith("ENT")
    since = one(frames.get("reach")).get("published_since" if outbox else "ended_since")
    if since is None:
        return None, ""
    days = (given.as_of - pd.Timestamp(since)).total_seconds() / 86400
    exact = one(frames.get("day" if outbox else "month")).get("n")
    if exact is None:
        exact = one(frames.get("size")).get("published" if outbox else "ended")
    else:
        days = min(days, 1.0 if outbox else MONTH_DAYS)
    if exact is None or exact < 0 or days < 1 / 24:
        return None, ""
    return float(exact) * MONTH_DAYS / days, "counted" if days == MONTH_DAYS else "projected"


def judge_impact(frames: Frames, given: Given) -> Finding:
    """7.1: which objectives were hit, for how long, how many events, and what that is of the budget."""
    span, runs = span_of(frames), table(frames, "runs", *RUN)
    if span is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="span"))
    detected = detection(runs, given)
    began = onset(frames, given, detected) if len(runs) or detected.at is not None else Moment()
    rows = impact(frames, given, began.at)
    records = rows.to_dict("records")
    hit = [r for r in records if _hit(r)]
    unseen = [r for r in records if r["why"] not in ("", "no_events", "earlier", "not_in_tables")]
    seen = [r for r in records if r["why"] in ("", "no_events", "earlier", "partly", "no_time")]
    notes = [say("postmortem.counted", minutes=span.bucket_s / 60)] if seen else []
    for why in dict.fromkeys(str(r["why"]) for r in unseen):
        names = ", ".join(str(r["slo"]) for r in unseen if r["why"] == why)
        notes.append(say("postmortem.unmeasured", slo=names, why=say(f"postmortem.why.{why}")))
    notes.append(say("postmortem.not_in_tables", names="ENT-A, ENT-B"))
    if "unprocessed" not in frames and "notifications" in frames:
        notes.append(say("postmortem.lost_unseen"))
    values = [
        Value("onset", None if began.at is None else began.at.isoformat()),
        Value("onset_how", began.how or None),
        Value("onset_from", began.name or None),
        *(Value(f"{r['slo']}.breach", _number(r["minutes"]), "min") for r in records if r["why"] != "not_in_tables"),
        *(Value(f"{r['slo']}.budget", _number(r["budget"]), "%") for r in records if _number(r["budget"])),
    ]  # fmt: skip
    facts = {
        "n": len(hit),
        "since": f"{began.at or span.since:%Y-%m-%d %H:%M:%SZ}",
        "until": f"{span.until:%Y-%m-%d %H:%M:%SZ}",
        "list": "; ".join(_words(r) for r in hit),
        "unseen": ", ".join(str(r["slo"]) for r in unseen),
    }
    if not seen:
        e = next((e for e in failures(frames).values() if e.source == "postgres"), None)
        reason = e.reason if e else Reason.NO_DATA
        return unknown(
            "", reason, say("postmortem.impact_unknown"), values=tuple(values), notes=tuple(notes),
            frames={"impact": rows}, show=("impact",),
        )  # fmt: skip
    return judged(
        say("postmortem.hit" if hit else "postmortem.not_hit", **facts)
        if not unseen
        else say("postmortem.hit_in_part" if hit else "postmortem.not_hit_in_part", **facts),
        values,
        at_least=Status.WARNING if unseen else Status.OK,
        notes=tuple(notes),
        frames={"impact": rows},
        show=("impact",),
    )


def _hit(r: dict[Any, Any]) -> bool:
    """Whether an objective was in breach: by the tables, or as section 3 saw it at its moment."""
    minutes, bad = _number(r["minutes"]) or 0.0, _number(r["bad"]) or 0.0
    return minutes > 0 or (bad > 0 and r["why"] == "no_time") or r["why"] == "seen"


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def _words(r: dict[Any, Any]) -> str:
    minutes, bad, total, budget = (_number(r[c]) for c in ("minutes", "bad", "total", "budget"))
    words = [f"{r['slo']}" + (f" {minutes:g} min" if minutes is not None else "")]
    words += [f"{bad:,.0f}/{total:,.0f}"] if bad is not None and total is not None else []
    words += [f"{bad:,.0f}"] if bad is not None and total is None else []
    words += [f"≈{budget:g} %"] if budget is not None else []
    return " ".join(words)


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
    runs = table(frames, "runs", *RUN)
    detected = detection(runs, given)
    marks = (
        ("began", onset(frames, given, detected).at if len(runs) else None, "-."),
        ("detected", detected.at, "--"),
        ("recovered", recovery(runs, detected.at).at, "-"),
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
    """7.2: what every command concluded, and every finding that speaks for or against a failure mode."""
    manifest = _journal(rb.archive)
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


def located(verdicts: pd.DataFrame) -> dict[str, Any]:
    """The verdict that names the incident: the worst, of these the surest, of these the first; {} without one."""
    sure = ("none", "low", "medium", "high")
    bad = [v for v in verdicts.sort_values("started").to_dict("records") if v["status"] != "OK"]
    best = max(bad, key=lambda v: (Status[str(v["status"])].rank, sure.index(str(v["confidence"]))), default={})
    return {str(k): v for k, v in best.items()}


def judge_origin(frames: Frames, given: Given) -> Finding:
    """7.2: the failure mode that stands out in the worst and surest verdict, with the evidence on both sides."""
    verdicts, modes = table(frames, "verdicts", *VERDICT), table(frames, "modes", "name", "id", "score")
    steps = table(frames, "steps", *STEP)
    if verdicts.empty:
        return unknown("", Reason.NO_DATA, say("postmortem.no_runs"))
    first = located(verdicts)
    ranked = modes[modes["name"] == first.get("name")].sort_values("score", ascending=False, kind="stable")
    top = [(str(r["id"]), float(r["score"])) for r in ranked.to_dict("records")]
    sure = str(first.get("confidence", "none"))
    lead = top[0][1] - (top[1][1] if len(top) > 1 else 0.0) if top else 0.0
    stands_out = bool(top) and top[0][1] >= ORIGIN_SCORE and lead >= ORIGIN_LEAD and sure in ("medium", "high")
    candidates = [id_ for id_, _ in top[:3]]
    named = modes.sort_values("score", ascending=False, kind="stable").groupby("name", sort=False).head(1)["id"]
    others = [str(i) for i in dict.fromkeys(named) if str(i) not in candidates]
    roles = ["origin" if stands_out and i == 0 else "candidate" for i in range(len(candidates))]
    shown = pd.DataFrame(
        [(id_, role, dict(top)[id_]) for id_, role in zip(candidates, roles, strict=True)]
        + [(id_, "named_elsewhere", float(modes.loc[modes["id"] == id_, "score"].max())) for id_ in others],
        columns=["id", "role", "score"],
    )
    evidence = steps[steps["id"].isin([*candidates, *others])].drop_duplicates(["name", "step", "id"])
    facts = {"mode": _mode(frames, candidates[0]) if top else "-", "confidence": say(f"confidence.{sure}"),
             "candidates": ", ".join(f"{id_} {score:.2f}" for id_, score in top[:3]) or "-",
             "score": top[0][1] if top else 0.0}  # fmt: skip
    if stands_out:
        headline = say("postmortem.origin", **facts)
    else:
        headline = say("postmortem.inconclusive" if top else "postmortem.no_mode", **facts)
    unread = table(frames, "unread", "name")
    return judged(
        headline,
        [
            Value("origin", candidates[0] if stands_out else None),
            Value("candidates", ", ".join(candidates) or None),
            Value("confidence", sure),
            Value("stuck_at", first.get("stuck_at") or None),
            Value("located", first.get("name")),
        ],
        at_least=Status.OK if stands_out else Status.WARNING,
        notes=(
            say("postmortem.origin_note"),
            *((say("postmortem.unread", names=", ".join(unread["name"].astype(str))),) if len(unread) else ()),
        ),
        frames={"candidates": shown, "evidence": evidence.reset_index(drop=True)},
        show=("candidates", "evidence"),
    )


def _mode(frames: Frames, id_: str) -> Text:
    known = table(frames, "known", "id", "en", "ja")
    titles = one(known[known["id"] == id_])
    return say(VERBATIM, **{lang: f"{id_} {titles.get(lang, '')}".strip() for lang in ("en", "ja")})


# 7.3 Timeline -----------------------------------------------------------------------------------------------


def collect_timeline(rb: Context) -> Frames:
    """7.3: runs, verdicts, actions, notes and what did not end; the onset is that of 7.1."""
    frames = collect_runs(rb)
    origin = collect_origin(rb)
    notes = [
        # People in it are tokens already; whoever wrote it did not know this target's secrets.
        {"time": n.get("time"), "who": n.get("who"), "text": rb.masker.without_secrets(str(n.get("text")))}
        for n in _journal(rb.archive, NOTES)
    ]  # fmt: skip
    earlier = next((f for f in rb.given().earlier if f.step == "7.1"), None)
    began = {c: earlier.value(c) if earlier else None for c in ("onset", "onset_how", "onset_from")}
    kept = onset_kept(frames["runs"])
    if not began["onset"] and kept.at is not None:
        began = {"onset": kept.at.isoformat(), "onset_how": kept.how, "onset_from": kept.name}
    partial = [p for p in rb.archive.partials() if f"-{OWN}." not in p]
    return frames | {
        "verdicts": origin["verdicts"],
        "actions": pd.DataFrame([_acted(a) for a in _journal(rb.archive, ACTIONS)], columns=_ACTION),
        "notes": _timed(pd.DataFrame(notes, columns=["time", "who", "text"]), "time"),
        "partials": pd.DataFrame({"name": partial}, dtype=object),
        "began": row(**began),
    }


_ACTION = ["time", "action", "result", "what", "who", "approved_by", "because", "why_en", "why_ja", "effect_en",
           "effect_ja", "verified"]  # fmt: skip


def _acted(a: dict[str, Any]) -> dict[str, Any]:
    words = {f"{c}_{lang}": (a.get(c) or {}).get(lang, "") for c in ("why", "effect") for lang in ("en", "ja")}
    what = a.get("what") or {}
    spelt = record.what(what) if isinstance(what, dict) else str(what)
    plain = {c: a.get(c) for c in ("action", "result", "who", "approved_by", "verified")}
    return {"time": _time(a.get("time")), "what": spelt, "because": a.get("reason")} | plain | words


def _time(text: Any) -> pd.Timestamp | None:
    found = pd.to_datetime(str(text), utc=True, errors="coerce")
    return found if isinstance(found, pd.Timestamp) else None


def judge_timeline(frames: Frames, given: Given) -> Finding:
    """7.3: onset, detection, recovery and all between them; TTD and TTR with what each time rests on."""
    runs = table(frames, "runs", *RUN)
    if runs.empty and given.detected_at is None:
        return unknown("", Reason.NO_DATA, say("postmortem.no_runs"))
    began = one(frames.get("began"))
    start = Moment(_time(began.get("onset")) if began.get("onset") else None, str(began.get("onset_how") or ""),
                   str(began.get("onset_from") or ""))  # fmt: skip
    detected = detection(runs, given)
    recovered = recovery(runs, detected.at)
    ttd, ttr = lasted(start.at, detected.at), lasted(detected.at, recovered.at)
    entries = timeline(frames, start, detected, recovered)
    notes = [say("postmortem.formula")]
    if len(table(frames, "partials", "name")):
        notes.append(say("postmortem.died", n=len(frames["partials"])))
    for missing, key in ((start.at is None, "no_onset"), (recovered.at is None, "not_recovered")):
        if missing:
            notes.append(say(f"postmortem.{key}"))
    facts = {"ttd": ttd, "ttr": ttr, "entries": len(entries)}
    if ttd is not None and ttr is not None:
        headline = say("postmortem.times", **facts)
    else:
        headline = say("postmortem.times_in_part" if recovered.at is not None else "postmortem.times_open", **facts)
    times = pd.DataFrame(
        [("onset", start.at, start.how, start.name), ("detection", detected.at, detected.how, detected.name),
         ("recovery", recovered.at, recovered.how, recovered.name)],
        columns=["what", "time", "how", "name"],
    )  # fmt: skip
    return judged(
        headline,
        [Value("ttd", ttd, "s"), Value("ttr", ttr, "s"), Value("timeline.entries", len(entries))],
        at_least=Status.OK if ttd is not None and ttr is not None else Status.WARNING,
        notes=tuple(notes),
        frames={"times": _timed(times, "time"), "timeline": entries},
        show=("times", "timeline"),
    )


def lasted(begin: pd.Timestamp | None, end: pd.Timestamp | None) -> float | None:
    """Seconds between two moments, never below 0; None where one is not known."""
    if begin is None or end is None:
        return None
    return round(max((end - begin).total_seconds(), 0.0), 1)


def timeline(frames: Frames, start: Moment, detected: Moment, recovered: Moment) -> pd.DataFrame:
    """Everything that has a time, sorted, in UTC."""
    rows: list[dict[str, Any]] = [
        {"time": m.at, "kind": kind, "what": m.how, "name": m.name}
        for kind, m in (("onset", start), ("detection", detected), ("recovery", recovered))
        if m.at is not None
    ]
    for r in table(frames, "runs", *RUN).to_dict("records"):
        rows.append({"time": r["started"], "kind": "run", "what": r["section"], "status": r["status"],
                     "name": r["name"], "detail_en": r["detail"], "detail_ja": r["detail"]})  # fmt: skip
    for r in table(frames, "verdicts", *VERDICT).to_dict("records"):
        if str(r["name"]).endswith(".json"):
            rows.append({"time": r["started"], "kind": "verdict", "what": r["stuck_at"] or "", "status": r["status"],
                         "name": r["name"]})  # fmt: skip
    for r in table(frames, "actions", *_ACTION).to_dict("records"):
        words = {
            f"detail_{lang}": " ".join(str(t) for t in (r[f"why_{lang}"], r[f"effect_{lang}"], r["because"]) if t)
            for lang in ("en", "ja")
        }
        who = " / ".join(str(w) for w in (r["who"], r["approved_by"]) if w)
        rows.append({"time": r["time"], "kind": "dry" if r["result"] == "dry" else "action",
                     "what": f"{r['action']} {r['what']}", "status": r["result"], "who": who, **words})  # fmt: skip
    for r in table(frames, "notes", "time", "who", "text").to_dict("records"):
        rows.append({"time": r["time"], "kind": "note", "who": r["who"], "detail_en": r["text"],
                     "detail_ja": r["text"]})  # fmt: skip
    for r in table(frames, "partials", "name").to_dict("records"):
        stamp, _, section = str(r["name"]).removesuffix(".partial.ipynb").partition("-")
        rows.append({"time": _time(stamp), "kind": "died", "what": section, "name": r["name"]})
    frame = pd.DataFrame(rows, columns=ENTRY)
    texts = [c for c in ENTRY if c != "time"]
    frame[texts] = frame[texts].astype(object).where(frame[texts].notna(), "")
    frame["time"] = pd.to_datetime(frame["time"], utc=True)
    return frame.sort_values("time", kind="stable", na_position="last").reset_index(drop=True)


# 7.4 Measures -----------------------------------------------------------------------------------------------


def collect_measures(rb: Context) -> Frames:
    """7.4: what the failure mode's entry suggests, and what a person has entered into the draft."""
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
