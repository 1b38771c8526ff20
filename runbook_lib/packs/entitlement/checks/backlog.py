"""4.1.1: what waits to be delivered, how old it is, and whether somebody is at work on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.analysis import history
from runbook_lib.checks.check import Check
from runbook_lib.context import Given
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    Proposal,
    Reason,
    Signal,
    Status,
    Text,
    Value,
    judged,
    say,
    unknown,
)
from runbook_lib.model.frames import amount, one, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import delivery
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: SENT and FAILED notifications are deleted after this time.
RETENTION = pd.Timedelta(days=30)
#: Dead letters younger than this belong to what is going on now.
RECENT_MIN = 3


def collect(rb: Context) -> Frames:
    """The backlog in its parts, the runbook's own two questions, and what the past can be rebuilt from."""
    with rb.snapshot() as db:
        if rb.past:
            return {"open": db.ask("notifications/open")} | _flows(db)
        frames = delivery.look(db)
        frames["by_status"] = _as_in_the_runbook(
            db.ask("notifications/by_status"), db.try_ask("notifications/count_by_status")
        )
        frames["ages"] = db.ask("notifications/ages")
        frames["open"] = db.ask("notifications/open")
        older = db.try_ask("notifications/older_than_10min")
        if older is not None:
            frames["older_than_10min"] = older
        frames |= _flows(db)
    return frames | delivery.second_look(rb, frames)


def _flows(db: Snapshot) -> Frames:
    # Up to the present, also when the run looks at a past moment: the series is anchored at what is open now.
    until = pd.Timestamp.now("UTC") + pd.Timedelta(hours=1)
    asked = {
        "arrivals": db.try_ask("notifications/arrivals_per_minute", as_of=until),
        "sent": db.try_ask("notifications/sent_per_minute", as_of=until),
        "failed": db.try_ask("notifications/failed_per_minute", as_of=until),
    }
    return {name: frame for name, frame in asked.items() if frame is not None}


def _as_in_the_runbook(active: pd.DataFrame, counted: pd.DataFrame | None) -> pd.DataFrame:
    """`status, count`: as counted, or where that was refused, the active ones exactly and SENT as an estimate."""
    if counted is not None:
        return counted.assign(count=[f"{n:,}" for n in counted["count"]])
    shown = [f"{n:,}" if exact else f"≈ {n:,}" for n, exact in zip(active["n"], active["exact"], strict=True)]
    return pd.DataFrame({"status": active["status"], "count": shown})


def judge(frames: Frames, given: Given) -> Finding:
    """Due and old is bad; whether the worker or the receiver is to blame is read from who was last at work."""
    now = one(frames.get("backlog"))
    if not now:
        return _rebuilt(frames, given)
    seen = delivery.delivery(frames)
    stopped, refused = seen.stopped(given), seen.refused(given)
    given_up = _recently_given_up(frames, given)
    if given_up >= delivery.TRIED and not stopped:
        refused = max(refused, 0.75)
    activity = one(frames.get("activity"))
    limits = given.limits
    values = [
        limits.value("backlog.due", seen.due),
        limits.value("backlog.oldest_due", seen.oldest_s),
        limits.value("delivery.silence", seen.silence_s),
        limits.value("backlog.overdue_10min", amount(now, "overdue_10min")),
        limits.value("backlog.waiting_retry", seen.waiting),
        Value("backlog.leased", seen.leased, "rows"),
        Value("backlog.expired", amount(now, "expired"), "rows"),
        Value("backlog.tried_before", seen.tried, "rows"),
        Value("dlq.last_3min", given_up, "rows"),
    ]
    older = one(frames.get("older_than_10min"))
    if older:
        values.append(Value("runbook.older_than_10min", amount(older, "count"), "rows"))
    return judged(
        _headline(seen, stopped, refused, given_up),
        values,
        notes=tuple(_notes(frames, seen)),
        signals=tuple(_signals(seen, stopped, refused, given_up, activity)),
        hops=_hops(seen, activity, stopped, refused, values[1].status is not Status.OK),
        proposals=_proposals(given, stopped, refused),
        next_sections=("4.3", "5.1") if stopped else ("4.4", "5.2") if refused else (),
        show=("by_status", "attempts") if seen.tried else ("by_status",),
    )


def _headline(seen: delivery.Delivery, stopped: float, refused: float, given_up: float) -> Text:
    facts = {
        "due": seen.due,
        "oldest": seen.oldest_s,
        "silence": seen.silence_s,
        "waiting": seen.waiting,
        "tried": seen.tried,
        "given_up": given_up,
        "leased": seen.leased,
    }
    if stopped >= 0.6 or (stopped and not refused):
        return say("backlog.stopped", **facts)
    if refused:
        return say("backlog.refused", **facts)
    if stopped:
        return say("backlog.stuck", **facts)
    if not seen.total:
        return say("backlog.empty")
    return say("backlog.behind" if seen.oldest_s >= 10 else "backlog.flowing", **facts)


def _notes(frames: Frames, seen: delivery.Delivery) -> list[Text]:
    notes = []
    by_status = table(frames, "by_status", "count")
    if by_status is not None and "count" in by_status and by_status["count"].astype(str).str.contains("≈").any():
        notes.append(say("backlog.sent_is_estimated"))
    if "older_than_10min" in frames:
        notes.append(say("backlog.older_mixes"))
    else:
        notes.append(say("backlog.older_refused"))
    if seen.progress is not None:
        notes.append(say("backlog.progress" if seen.progress else "backlog.no_progress", s=delivery.LOOKS_APART_S))
    return notes


def _signals(
    seen: delivery.Delivery, stopped: float, refused: float, given_up: float, activity: dict[str, object]
) -> list[Signal]:
    signals = []
    if stopped:
        signals += [Signal("delivery_worker", stopped), Signal("FM-NOTI-06", stopped)]
        if stopped >= 0.6:
            signals.append(Signal("receiver", -0.5))
    if refused:
        signals += [Signal("receiver", refused), Signal("FM-NOTI-03", refused)]
        if not stopped:
            signals += [Signal("delivery_worker", -0.7), Signal("FM-NOTI-06", -0.7)]
    if given_up:
        signals.append(Signal("FM-NOTI-04", 0.7 if given_up >= delivery.TRIED else 0.4))
    if not stopped and not refused and amount(dict(activity), "sent_1m"):
        signals += [Signal("delivery_worker", -0.4), Signal("FM-NOTI-06", -0.4)]
    return signals


def _hops(
    seen: delivery.Delivery, activity: dict[str, object], stopped: float, refused: float, late: bool
) -> tuple[Hop, ...]:
    workers = activity.get("workers")
    return (
        Hop(
            "delivery_worker",
            rate_in=amount(activity, "arrived_1m"),
            rate_out=amount(activity, "sent_1m"),
            waiting=seen.due,
            oldest_s=seen.oldest_s,
            alive=say("alive.silent", s=seen.silence_s) if stopped else str(workers) if workers else None,
            late=late,
        ),
        Hop(
            "receiver",
            rate_out=amount(activity, "sent_1m"),
            waiting=seen.waiting,
            alive=say("alive.refuses") if refused else None,
        ),
    )


def _proposals(given: Given, stopped: float, refused: float) -> tuple[Proposal, ...]:
    if stopped >= 0.6 or (stopped and not refused):
        return (proposals.restart(given, "notification"),)
    if refused:
        return (
            remedies.throttle(given, "delivery"),
            proposals.logs(given, "notification"),
        )
    return ()


def _recently_given_up(frames: Frames, given: Given) -> float:
    since = (given.as_of - pd.Timedelta(minutes=RECENT_MIN)).floor("min")
    failed = history.counts(frames.get("failed"))
    return float(failed[failed.index >= since].sum())


# The past: only what timestamps keep.


def _rebuilt(frames: Frames, given: Given) -> Finding:
    series = rebuild(frames, given)
    if series is None:
        return unknown("", Reason.NO_DATA, say("backlog.nothing_rebuilt"))
    waiting = float(series["backlog"].iloc[-1])
    status = given.limits["backlog.due"].status(waiting)
    return judged(
        say("backlog.rebuilt", n=waiting, peak=float(series["backlog"].max()), minutes=len(series)),
        [Value("backlog.open", waiting, "rows")],
        # What was due, leased or waiting then is not kept: without a large number it is not known to be well.
        at_least=Status.UNKNOWN if status is Status.OK else status,
        notes=tuple(say(f"blind_spot.{spot}") for spot in _blind_spots(frames, given)),
    )


def rebuild(frames: Frames, given: Given) -> pd.DataFrame | None:
    """Unfinished notifications per minute of the window, anchored at those of now."""
    anchor = one(frames.get("open"))
    if not anchor or "arrivals" not in frames or "sent" not in frames:
        return None
    arrivals = history.counts(frames.get("arrivals"))
    left = history.counts(frames.get("sent")).add(history.counts(frames.get("failed")), fill_value=0.0)
    now = max(pd.Timestamp(anchor.get("now") or given.as_of), given.as_of)
    ahead = int((now.ceil("min") - given.as_of.ceil("min")) / history.MINUTE)
    series = history.backlog_series(amount(anchor, "n"), arrivals, left, now, given.window_minutes + ahead)
    return series.iloc[: given.window_minutes] if given.window_minutes else None


def _blind_spots(frames: Frames, given: Given) -> list[history.BlindSpot]:
    oldest = one(frames.get("open")).get("oldest")
    return history.blind_spots(given.window_minutes, RETENTION, None, oldest, given.as_of)


def draw_history(frames: Frames, given: Given) -> charts.Chart | None:
    """The backlog of the window, with what came and what left."""
    series = rebuild(frames, given)
    if series is None or series.empty:
        return None
    figure, ax = charts.axes("Unfinished notifications, rebuilt from timestamps", "rows", "UTC")
    charts.flows(ax, series, ("unfinished at the minute's end", "created per min", "sent or given up per min"))
    if series["backlog"].max() > 0.3 * (given.limits["backlog.due"].warning or 0):
        charts.thresholds(ax, given.limits["backlog.due"])
    charts.legend(figure)
    peak = series["backlog"].idxmax()
    return charts.Chart(
        figure,
        say(
            "backlog.alt_history",
            now=float(series["backlog"].iloc[-1]),
            peak=float(series["backlog"].max()),
            at=f"{peak:%H:%M}",
            minutes=len(series),
        ),
        tuple(say(f"blind_spot.{spot}") for spot in _blind_spots(frames, given)),
    )


def draw_ages(frames: Frames, given: Given) -> charts.Chart | None:
    """How old the unfinished notifications are."""
    ages = table(frames, "ages", "bucket", "n")
    if ages.empty:
        return None
    labels = [
        "<1 s",
        "1-5 s",
        "5-10 s",
        "10-30 s",
        "30-60 s",
        "1-2 min",
        "2-5 min",
        "5-10 min",
        "10-30 min",
        "30-60 min",
        ">1 h",
    ]
    counts = np.zeros(len(labels))
    for bucket, n in ages[["bucket", "n"]].dropna().itertuples(index=False):
        counts[min(max(int(bucket), 0), len(labels) - 1)] += n
    figure, ax = charts.axes("Age of the unfinished notifications", "rows", "since creation")
    limit = given.limits["backlog.oldest_due"]
    colours = [charts.BLUE if i < 3 else charts.ORANGE if i < 4 else charts.RED for i in range(len(labels))]
    hatches = ["" if i < 3 else "//" if i < 4 else "xx" for i in range(len(labels))]
    bars = ax.bar(labels, counts, color=colours, hatch=hatches, edgecolor="white")
    ax.bar_label(bars, labels=[f"{n:,.0f}" if n else "" for n in counts], fontsize=8)
    ax.tick_params(axis="x", labelsize=8)
    old = float(counts[4:].sum())
    return charts.Chart(
        figure,
        say("backlog.alt_ages", total=float(counts.sum()), old=old),
        (say("backlog.ages_caption", warning=limit.warning, critical=limit.critical),),
    )


CHECKS: tuple[Check, ...] = (Check("4.1.1", collect, judge, (draw_history, draw_ages)),)
