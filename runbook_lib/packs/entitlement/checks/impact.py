"""7.1: measure the impact of an incident, its onset and its end, from its dossier and the tables."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runbook_lib.book.catalog import Slo
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Text, Value, judged, replace, say, unknown
from runbook_lib.model.frames import row
from runbook_lib.model.quantity import readable
from runbook_lib.model.unread import UnreadError
from runbook_lib.packs.entitlement.checks import past
from runbook_lib.packs.entitlement.checks.course import IncidentTimes, count_never_notified, course
from runbook_lib.packs.entitlement.retention import Oldest
from runbook_lib.packs.entitlement.rows import Count
from runbook_lib.packs.postmortem.incident import Span, collect_runs, detection, read_runs, span_of, timed, window_of
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: Objectives of requests to the API: a failed request leaves no row.
NOT_IN_TABLES = ("ENT-A", "ENT-B")


class Impact(rows.Row):
    """The impact on one objective.

    The objective was in breach for `minutes`; `bad` of `total` events were bad (`percent`) and used `budget` percent of
    the error budget. `counted` tells whether the events of the budget are "counted" or "projected"; `peak` is the
    highest level. If a number is missing or incomplete, `why` names a message (`postmortem.why.*`), `since` the time
    from which on the numbers are complete, and `name` the artifact of an earlier run that measured them.
    """

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
        """Whether the objective was in breach, by the tables or by a run of section 3."""
        lasted = self.minutes is not None and self.minutes > 0
        untimed = self.why == "no_time" and self.bad is not None and self.bad > 0
        return lasted or untimed or self.why == "seen"

    @property
    def summary(self) -> str:
        """The time and the bad events in one line."""
        words = [self.slo] + ([" ".join(readable(self.minutes, "min"))] if self.minutes is not None else [])
        if self.bad is not None:
            words.append(f"({self.bad:,.0f}" + (f"/{self.total:,.0f})" if self.total is not None else ")"))
        return " ".join(words)


IMPACT = [f.name for f in fields(Impact)]


class EarlierImpact(Impact):
    """What an earlier run of this section measured, and the onset of which it spoke."""

    onset: pd.Timestamp | None = None

    def replaces(self, now: Impact, began: pd.Timestamp | None, margin: pd.Timedelta) -> bool:
        """Return whether this has what retention took from `now`: of about the same onset, and not shorter."""
        same = began is None or self.onset is None or abs(self.onset - began) <= margin
        return same and (now.minutes is None or (self.minutes is not None and self.minutes >= now.minutes))


#: The queries that count what was there in all; they may be over the cost limit.
_SIZES = ("size", "month", "day")


class UsersHit(rows.Row, query="postmortem/users"):
    """The users whose notifications of a bucket, or of the whole window, were late or given up."""

    bucket: float | None = None
    users: int = 0


def collect_impact(rb: Context) -> Frames:
    """7.1: read the runs of the incident, and the tables bucket by bucket.

    Frames: those of `collect_runs`; earlier (fields of `Impact`), missed (slo: id; looked_at: time; name: text), span
    and steps (since, until: time; bucket_s: s); those of `past.ask`; and of the topic's queries reach, size, month,
    day, users, outbox_failed, letters, unprocessed, outbox, notifications; deletions (`Oldest`) if a published one is
    missing.
    """
    parts = FrameCollector()
    with parts.part("archive") as answers:
        answers |= collect_runs(rb) | _read_earlier_impact(rb)
        answers |= _read_missed(rb, answers["runs"])
    span = window_of(rb, parts.answers)
    steps = past.fine_span(span, rb.given())
    parts.answers |= {name: row(**vars(of)) for name, of in (("span", span), ("steps", steps))}
    with parts.part("tables") as answers, rb.snapshot() as db:
        _query_tables(rb, db, parts, span)
        answers |= past.ask(rb, db, steps)
    return parts.frames()


def _query_tables(rb: Context, db: Snapshot, parts: FrameCollector, span: Span) -> None:
    slos, since, until, stretch = rb.catalog.slos, span.since, span.until, vars(span)
    e2e = slos["NOTI-B"].number
    late = {"limit_s": slos["ENT-C"].number, "old_s": slos["ENT-D"].number, "share": allowed_share(slos["ENT-D"])}
    tries_s, margin = rb.number("publish.tries_longest"), pd.Timedelta(hours=rb.number("postmortem.margin"))
    outbox = past.query_in_pieces(
        rb, db, "postmortem/outbox", since, until + margin, "postmortem.piece", **stretch, **late
    )
    sent = past.query_in_pieces(
        rb, db, "postmortem/notifications", since - margin, until + margin, "postmortem.piece", **stretch, limit_s=e2e
    )
    parts.answers |= {name: _sum_buckets(p) for name, p in (("outbox", outbox), ("notifications", sent)) if p}
    parts.ask(db, {name: f"postmortem/{name}" for name in ("reach", *_SIZES)})
    parts.ask(db, {"outbox_failed": "postmortem/outbox_failed"}, since=since, until=until, tries_s=tries_s)
    parts.ask(
        db, {"users": UsersHit.QUERY}, low=since - margin, high=until + margin, limit_s=e2e, **stretch,
    )  # fmt: skip
    parts.ask(
        db, {"letters": "postmortem/dead_letters", "unprocessed": "postmortem/unprocessed"}, **stretch, limit_s=e2e
    )
    if "unprocessed" in parts.answers and parts.answers["unprocessed"]["published"].sum():
        parts.ask(db, {"deletions": Oldest.QUERY})


def _sum_buckets(pieces: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the sums of a query's pieces by bucket."""
    every, how = pd.concat(pieces), {"most_old": "max", "aged": "max"}
    whole = every.groupby("bucket").agg({c: how.get(c, "sum") for c in every.columns if c != "bucket"})
    return pd.DataFrame(whole).reset_index()


def _read_earlier_impact(rb: Context) -> Frames:
    """Return what earlier runs of this section measured: since then retention may have deleted the rows."""
    measured: list[EarlierImpact] = []
    for line, run in read_runs(rb, own=True):
        if run and (found := run.by_step.get("7.1")):
            since = pd.Timestamp(str(told)) if (told := found.value("onset")) else None
            for r in rows.each(found.frames.get("impact"), Impact):
                if r.why == "":
                    measured.append(EarlierImpact(**vars(replace(r, name=line.name)), onset=since))
    return {"earlier": timed(rows.frame(measured, EarlierImpact), "since", "onset")}


def _read_missed(rb: Context, runs: pd.DataFrame) -> Frames:
    """Return the objectives that runs of section 3 found missed, each with its run."""
    looked_at, found = dict(zip(runs["name"], runs["looked_at"], strict=True)), list[dict[str, Any]]()
    for line, run in read_runs(rb):
        slis = run.by_step["3.1"].frames.get("slis") if run and "3.1" in run.by_step else None
        for r in slis.to_dict("records") if slis is not None else ():
            if r.get("met") is False:
                found.append({"slo": r["slo"], "looked_at": looked_at[line.name], "name": line.name})
    return {"missed": timed(pd.DataFrame(found, columns=["slo", "looked_at", "name"]), "looked_at")}


def allowed_share(slo: Slo) -> float | None:
    """Return the share of events that may be bad; None if the objective is a level, or allows none."""
    if slo.unit == "%":
        return 1 - slo.number / 100
    percentile = re.match(r"p(\d+)", slo.sli)
    return (100 - int(percentile[1])) / 100 if percentile else None


def budget_share(bad: float, share: float | None, events: float | None) -> float | None:
    """Return the percentage of the error budget that `bad` events use, if `share` of all `events` may be bad.

    >>> budget_share(30, 0.001, 1_000_000)
    3.0
    >>> [budget_share(1, *unknown) for unknown in ((None, 100), (0.05, None), (0.05, 0))]
    [None, None, None]
    """
    if share is None or not events or events != events:
        return None
    return round(100 * bad / (share * events), 2)


def objective_levels(frames: Frames, given: JudgeInput) -> dict[str, pd.DataFrame]:
    """Return each objective bucket by bucket: `bad` of `total` events, its `level`, and whether it was in `breach`."""
    span = span_of(frames)
    if span is None:
        return {}
    outbox = span.counts(frames, "outbox", "opened", "published", "old_in", "old_out", "n", "late", "old")
    within = span.counts(frames, "outbox", "most_old", "aged")  # 0 in an artifact without these columns
    sent = span.counts(frames, "notifications", "sent", "failed", "n", "late")
    letters = span.counts(frames, "letters", "delivery", "subscriber")
    never = count_never_notified(frames, given, span)
    found: dict[str, pd.DataFrame] = {}
    if outbox is not None and within is not None:
        found["ENT-C"] = _bad_shares(outbox["late"], outbox["n"], given.slos["ENT-C"])
        # If more unpublished events than allowed are older than the limit, their p95 is above it too.
        unpublished = (outbox["opened"] - outbox["published"]).cumsum()
        old = (outbox["old_in"] - outbox["old_out"]).cumsum()
        breach = (old > (allowed_share(given.slos["ENT-D"]) or 0.0) * unpublished) & (unpublished > 0) | (
            within["aged"] > 0
        )
        level = np.maximum(old.clip(lower=0), within["most_old"].clip(lower=0))
        found["ENT-D"] = pd.DataFrame({"bad": outbox["old"], "total": outbox["n"], "level": level, "breach": breach})
    if sent is not None:
        found["NOTI-A"] = _bad_shares(sent["failed"], sent["sent"] + sent["failed"], given.slos["NOTI-A"])
        lost = 0.0 if never is None else never["surely"]  # without this count it is a lower bound, as a note says
        found["NOTI-B"] = _bad_shares(sent["late"] + lost, sent["n"] + lost, given.slos["NOTI-B"])
    if (waiting := _max_unfinished(frames, span)) is not None:
        breach = pd.Series([not given.slos["NOTI-C"].met(v) for v in waiting], waiting.index)
        found["NOTI-C"] = pd.DataFrame({"bad": math.nan, "total": math.nan, "level": waiting, "breach": breach})
    if letters is not None:
        new = letters["delivery"] + letters["subscriber"]
        found["NOTI-D"] = pd.DataFrame({"bad": new, "total": math.nan, "level": new, "breach": new > 0})
    return {name: frame.loc[0:] for name, frame in found.items()}


def _max_unfinished(frames: Frames, span: Span) -> pd.Series[float] | None:
    """Return the largest number of unfinished notifications within each bucket; None if not known."""
    steps = span_of(frames, "steps")
    level = None if steps is None else past.levels(frames, "notifications", steps)
    if steps is None or level is None:
        return None
    most = level["most"].groupby([span.of(steps.at(i)) for i in level.index]).max()
    return most.reindex(range(-1, span.buckets), fill_value=0.0)


def _bad_shares(bad: pd.Series[float], total: pd.Series[float], slo: Slo) -> pd.DataFrame:
    share = (100 * bad / total.where(total > 0)).fillna(0.0)
    return pd.DataFrame(
        {"bad": bad, "total": total, "level": share, "breach": bad > (allowed_share(slo) or 0.0) * total}
    )  # fmt: skip


class MissedObjective(rows.Row):
    """An objective that a run of section 3 found missed."""

    slo: str = ""
    looked_at: pd.Timestamp | None = None
    name: str = ""


class OutboxFailures(rows.Row, query="postmortem/outbox_failed"):
    """The events that the relay gave up: in the incident, in total, and the time of the first in the incident."""

    n: float = 0.0
    total: float = 0.0
    first_failed: pd.Timestamp | None = None


class TableSizes(rows.Row, query="postmortem/size"):
    """The number of rows by the planner's statistics."""

    ended: float | None = None
    published: float | None = None


@dataclass(frozen=True)
class Coverage:
    """How far back the rows of a side reach: the oldest row, and the retention limit now."""

    oldest: pd.Timestamp | None
    horizon: pd.Timestamp

    @classmethod
    def of(cls, slo: str, frames: Frames, given: JudgeInput) -> Coverage:
        """Return how far back the rows of an objective's side reach."""
        found = rows.one(frames.get("reach"), past.OldestRows)
        now = found.now or given.as_of
        if slo.startswith("ENT"):
            return cls(found.published_since, now - pd.Timedelta(hours=given.number("retention.outbox")))
        return cls(found.ended_since, now - pd.Timedelta(days=given.number("retention.notifications")))

    def deleted_before(self, since: pd.Timestamp) -> pd.Timestamp | None:
        """Return the time before which retention has deleted the rows; None if that is before `since`."""
        kept = since >= self.horizon or (self.oldest is not None and self.oldest <= since)
        return None if kept else self.oldest or self.horizon


def measure_impacts(frames: Frames, given: JudgeInput, span: Span, went: IncidentTimes) -> list[Impact]:
    """Return the impact on each objective from the onset to the end of the span, or to the next incident in it."""
    found, begin = objective_levels(frames, given), went.began.at
    next_one = min((i.since for i in went.others if begin is not None and i.since > begin), default=None)
    first = max(span.of(begin), 0) if begin is not None else 0
    last = span.buckets if next_one is None else max(span.of(next_one), first + 1)
    failure = next((e.reason.value for e in failures(frames).values() if e.source == "postgres"), "not_asked")
    margin = pd.Timedelta(hours=given.number("postmortem.margin"))
    missed = rows.each(frames.get("missed"), MissedObjective)
    seen = {m.slo: m.name for m in missed if m.looked_at and m.looked_at <= span.until}
    impacts = []
    for name, slo in given.slos.items():
        r = Impact(name, slo.objective, why=failure)
        if name in NOT_IN_TABLES:
            r = replace(r, why="not_in_tables")
        elif name == "ENT-E" and "outbox_failed" in frames:
            r = _measure_given_up(r, rows.one(frames["outbox_failed"], OutboxFailures), span)
        elif name in found:
            r = _measure_objective(r, found[name].loc[first : last - 1], slo, span)
            events, counted = _count_month_events(frames, given, name)
            spent = None if r.bad is None else budget_share(r.bad, allowed_share(slo), events)
            r = replace(r, budget=spent, counted=counted)
            # Dead letters are never cleaned; the events that were lost are known by their rows in the outbox.
            for side in {"NOTI-B": (name, "ENT-C"), "NOTI-D": ()}.get(name, (name,)):
                gone = Coverage.of(side, frames, given).deleted_before(begin or span.since)
                if gone is not None and gone >= span.until and side == name:
                    r = Impact(name, slo.objective, counted=counted, why="retention")
                elif gone is not None and (side == name or not r.why):
                    r = replace(r, why="partly", since=gone)
        if r.why not in ("", "no_events", "no_time"):
            kept = [e for e in rows.each(frames.get("earlier"), EarlierImpact) if e.slo == name]
            if kept := [e for e in kept if e.replaces(r, begin, margin)]:
                longest = vars(max(kept, key=lambda e: (e.minutes is not None, e.minutes)))
                r = Impact(**{name: longest[name] for name in IMPACT} | {"why": "earlier"})
        if name in seen and not r.hit:
            r = replace(r, why="seen", minutes=None, name=seen[name])
        impacts.append(r)
    return impacts


def _measure_objective(r: Impact, part: pd.DataFrame, slo: Slo, span: Span) -> Impact:
    bad, total = part["bad"].sum(min_count=1), part["total"].sum(min_count=1)
    counted = allowed_share(slo) is not None
    return replace(
        r,
        minutes=float(part["breach"].sum()) * span.bucket_s / 60,
        bad=None if bad != bad else float(bad),
        total=float(total) if counted else None,
        percent=round(100 * bad / total, 2) if counted and total else None,
        peak=float(part["level"].max()) if len(part) else 0.0,
        why="no_events" if counted and not total else "",
    )


def _measure_given_up(r: Impact, failed: OutboxFailures, span: Span) -> Impact:
    """Measure ENT-E: FAILED rows, from the first of the incident on, since FAILED is final."""
    r = replace(r, bad=failed.n, peak=failed.total)
    if failed.n and failed.first_failed is None:
        return replace(r, why="no_time")
    began = failed.first_failed
    minutes = 0.0 if began is None else math.ceil((span.until - began).total_seconds() / 60)
    return replace(r, minutes=minutes, why="")


def _count_month_events(frames: Frames, given: JudgeInput, name: str) -> tuple[float | None, str]:
    """Return the events of an objective's window, which its budget is a share of, and "counted" or "projected"."""
    outbox, month = name.startswith("ENT"), given.number("slo.window")
    exact, size = rows.one(frames.get("day" if outbox else "month"), Count).n, rows.one(frames.get("size"), TableSizes)
    events = exact if exact is not None else size.published if outbox else size.ended
    oldest = Coverage.of(name, frames, given).oldest
    if oldest is None or events is None or events < 0:
        return None, ""
    days = (given.as_of - oldest) / pd.Timedelta(days=1)
    if exact is not None:
        days = min(days, 1.0 if outbox else month)
    if days < 1 / 24:
        return None, ""
    return float(events) * month / days, "counted" if days == month else "projected"


def judge_impact(frames: Frames, given: JudgeInput) -> Finding:
    """7.1: report which objectives were in breach, for how long, with how many events and which share of the budget."""
    span = span_of(frames)
    if span is None:
        raise UnreadError("span")
    detected = detection(frames, given)
    went = course(frames, given, detected)
    began = went.began
    impacts = measure_impacts(frames, given, span, went)
    shown = timed(rows.frame(impacts, Impact), "since")
    shown = shown.astype(dict.fromkeys(("minutes", "bad", "total", "percent", "budget", "peak"), "float64"))
    episodes = timed(rows.frame(went.incident.episodes if went.incident else (), past.Episode), "since", "until")
    hit = [r for r in impacts if r.hit]
    unseen = [r for r in impacts if r.why not in ("", "no_events", "earlier", "not_in_tables")]
    seen = [r for r in impacts if r.why in ("", "no_events", "earlier", "partly", "no_time")]
    notes = [say("postmortem.counted", minutes=span.bucket_s / 60)] if seen else []
    for why in dict.fromkeys(r.why for r in unseen):
        names = ", ".join(r.slo for r in unseen if r.why == why)
        notes.append(say("postmortem.unmeasured", slo=names, why=say(f"postmortem.why.{why}")))
    notes.append(say("postmortem.not_in_tables", names=", ".join(NOT_IN_TABLES)))
    never = count_never_notified(frames, given, span)
    if never is None and "notifications" in frames:
        notes.append(say("postmortem.lost_unseen"))
    elif never is not None and (doubtful := never["doubtful"].sum()):
        notes.append(say("postmortem.lost_or_deleted", n=doubtful))
    notes += _queue_notes(frames, given, went)
    users = next((u.users for u in rows.each(frames.get("users"), UsersHit) if u.bucket is None), None)
    values = [
        Value("users", users, "users"),
        Value("onset", None if began.at is None else began.at.isoformat()),
        Value("onset_how", began.how or None),
        Value("onset_from", began.name or None),
        Value("recovered", None if went.recovered.at is None else went.recovered.at.isoformat()),
        *(Value(f"{r.slo}.breach", r.minutes, "min") for r in impacts if r.why != "not_in_tables"),
        *(Value(f"{r.slo}.budget", r.budget, "%") for r in impacts if r.budget),
    ]
    if not seen:
        e = next((e for e in failures(frames).values() if e.source == "postgres"), None)
        reason = e.reason if e else Reason.NO_DATA
        return unknown(
            "", reason, say("postmortem.impact_unknown"), values=tuple(values), notes=tuple(notes),
            frames={"impact": shown, "spells": episodes}, show=("impact",),
        )  # fmt: skip
    if unseen:
        key = "postmortem.hit_in_part" if hit else "postmortem.not_hit_in_part"
    else:
        key = "postmortem.hit" if hit else "postmortem.not_hit"
    return judged(
        say(
            key,
            n=len(hit),
            since=_format_time(began.at or span.since),
            until=_format_time(went.recovered.at or span.until),
            list="; ".join(r.summary for r in hit),
            users=users,
            unseen=", ".join(r.slo for r in unseen),
        ),
        values,
        at_least=Status.WARNING if unseen else Status.OK,
        notes=tuple(notes),
        frames={"impact": shown, "spells": episodes},
        show=("impact", "spells") if len(episodes) else ("impact",),
    )


def _format_time(at: pd.Timestamp) -> str:
    return f"{at:%Y-%m-%d %H:%M:%SZ}"


def _queue_notes(frames: Frames, given: JudgeInput, went: IncidentTimes) -> list[Text]:
    """Return the notes on how onset and end were measured, and on what they do not show."""
    steps, notes = span_of(frames, "steps"), []
    if steps is not None and went.incident:
        notes.append(say("postmortem.steps", s=steps.bucket_s))
    always = past.always_waits(frames, given)
    for queue in past.QUEUES:
        name = past.queue_name(queue)
        if steps and (gone := _deleted_before(frames, given, queue, steps.since)) is not None:
            notes.append(say("postmortem.queue_gone", queue=name, at=_format_time(gone)))
        if queue in always:
            notes.append(say("postmortem.always", queue=name))
        if untimed := sum(f.untimed for f in rows.each(frames.get(f"waiting.{queue}"), past.QueueFlow)):
            notes.append(say("postmortem.untimed", n=untimed, queue=name))
        if "reach" in frames and f"waiting.{queue}" not in frames:
            notes.append(say("postmortem.queue_unread", queue=name))
    for other in went.others:
        until = other.until and _format_time(other.until)
        notes.append(say("postmortem.other_incident", since=_format_time(other.since), until=until))
    return notes


def _deleted_before(frames: Frames, given: JudgeInput, queue: str, since: pd.Timestamp) -> pd.Timestamp | None:
    """Return the time before which retention has deleted a queue's rows; None if that is before `since`."""
    return Coverage.of("NOTI" if queue == "notifications" else "ENT", frames, given).deleted_before(since)


def chart_users(frames: Frames, given: JudgeInput) -> charts.Chart | None:
    """Return the chart of the users hit in each bucket of the window."""
    span, hit = span_of(frames), rows.each(frames.get("users"), UsersHit)
    by_bucket = {int(u.bucket): u.users for u in hit if u.bucket is not None}
    if span is None or not by_bucket:
        return None
    counts, edges = [by_bucket.get(n, 0) for n in range(span.buckets)], [span.at(n) for n in range(span.buckets + 1)]
    return charts.Chart(
        "Users whose notifications were late or given up, by the time of the event",
        f"users / {span.bucket_s // 60} min",
        [charts.Series("users hit", charts.Role.CRITICAL, edges, counts, "steps")],
        alt=say("postmortem.alt_users", since=_format_time(span.at(min(by_bucket))),
                until=_format_time(span.at(max(by_bucket) + 1)), most=max(counts)),
    )  # fmt: skip


CHECKS: tuple[Check, ...] = (
    Check(
        "7.1", collect_impact, judge_impact, (chart_users,), needs=("span",), optional=(*_SIZES, "users", "deletions")
    ),
)
