"""4.1.1: what waits to be delivered, how old it is, and whether somebody is at work on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.analysis import history
from runbook_lib.checks.check import Check
from runbook_lib.checks.parts import Parts
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
    worst,
)
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.actions.restart import two_claim
from runbook_lib.packs.entitlement.checks import delivery, past, program
from runbook_lib.packs.entitlement.rows import Held, Notifications
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context


@dataclass(frozen=True)
class Counted:
    """The runbook's own count of rows that were created over ten minutes ago."""

    QUESTION: ClassVar[str] = "notifications/older_than_10min"

    count: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What 4.1.1 reads: the worker, the rows given up lately, the observations that this is, "" for none, and `workers`
    that claim side by side."""

    worker: delivery.Delivery
    given_up: float
    stopping: str
    refusing: str
    stands: program.Stands
    workers: tuple[str, ...]

    @property
    def observations(self) -> tuple[str, ...]:
        """How the loop stands, and the worker; one that claims beside another is 4.3.3's."""
        beside = "leases.two_workers" if self.workers else ""
        return tuple(filter(None, (*self.stands.observations, self.stopping, self.refusing, beside)))

    @property
    def read_on(self) -> tuple[str, ...]:
        """The sections that tell more."""
        if self.stopping or self.stands.wrong or self.workers:
            return ("4.3", "5.1")
        return ("4.4", "5.2") if self.refusing else ()

    @property
    def gone(self) -> bool:
        """Whether it is the worker, and not the receiver that it waits for."""
        return self.stopping in delivery.GONE or bool(self.stopping and not self.refusing)


def collect(rb: Context) -> Frames:
    """The backlog in its parts, the runbook's own two questions, and what the past can be rebuilt from.

    Unless a row was sent a moment ago, the process is asked about (see `program.ask`).

    Frames: those of `delivery.look` and `delivery.second_look`; ages; older_than_10min, failed and that of `past.ask`
    where cheap; by_status (status: text, count: text, one that begins with ≈ is an estimate).
    """
    parts = Parts()
    with rb.snapshot() as db:
        if rb.past:
            return past.ask(rb, db, past.window(rb.given()), ["notifications"])
        frames = delivery.look(rb, db)
        frames["by_status"] = _as_in_the_runbook(
            db.ask("notifications/by_status"), db.try_ask("notifications/count_by_status")
        )
        frames["ages"] = db.ask("notifications/ages")
        for name, question in (("older_than_10min", "older_than_10min"), ("failed", "failed_per_minute")):
            if (answer := db.try_ask(f"notifications/{question}")) is not None:
                frames[name] = answer
        frames |= past.ask(rb, db, past.window(rb.given()), ["notifications"])
    late = rows.one(frames["backlog"], Notifications).oldest_s >= (rb.catalog.limits["delivery.silence"].warning or 0)
    # A second name is that of an instance that has gone, or of a second worker: the runner knows.
    late = late or len({h.locked_by for h in rows.each(frames["held"], Held)}) > 1
    if late or not delivery.delivery(frames).sends(rb.given()):
        program.ask(rb, "4.1.1", parts, "delivery", late)
    return frames | delivery.second_look(rb, frames) | parts.frames()


def _as_in_the_runbook(active: pd.DataFrame, counted: pd.DataFrame | None) -> pd.DataFrame:
    """`status, count`: as counted, or where that was refused, the active ones exactly and SENT as an estimate."""
    if counted is not None:
        return counted.assign(count=[f"{n:,}" for n in counted["count"]])
    shown = [f"{n:,}" if exact else f"≈ {n:,}" for n, exact in zip(active["n"], active["exact"], strict=True)]
    return pd.DataFrame({"status": active["status"], "count": shown})


def judge(frames: Frames, given: Given) -> Finding:
    """Due and old is bad; whether the worker or the receiver is to blame is read from who was last at work."""
    if rows.first(frames.get("backlog"), Notifications) is None:
        return _rebuilt(frames, given)
    seen = _seen(frames, given)
    worker, queue, limits = seen.worker, seen.worker.queue, given.limits
    values = [
        limits.value("backlog.due", queue.ready),
        limits.value("backlog.oldest_due", queue.oldest_s),
        limits.value("delivery.silence", worker.silence_s),
        limits.value("backlog.overdue_10min", queue.overdue_10min),
        limits.value("backlog.waiting_retry", queue.waiting_retry),
        Value("backlog.leased", queue.leased, "rows"),
        Value("backlog.expired", queue.expired, "rows"),
        Value("backlog.tried_before", worker.tried, "rows"),
        Value("processing.holders", len((worker.activity.workers or "").split()), "workers"),
        Value("dlq.last_3min", seen.given_up, "rows"),
    ]
    if (older := rows.first(frames.get("older_than_10min"), Counted)) is not None:
        values.append(Value("runbook.older_than_10min", older.count, "rows"))
    late = values[1].status is not Status.OK
    return judged(
        _headline(seen, late),
        values,
        at_least=worst([seen.stands.status, Status.WARNING if seen.workers else Status.OK]),
        notes=(*_notes(frames), *worker.notes(given)),
        signals=tuple(_signals(seen, given)),
        hops=_hops(seen, late),
        proposals=_proposals(given, seen),
        next_sections=seen.read_on,
        show=("by_status", "attempts") if worker.tried else ("by_status",),
    )


def _seen(frames: Frames, given: Given) -> Seen:
    worker = delivery.delivery(frames)
    stopping, refusing = worker.stopping(given), worker.refusing(given)
    since = (given.as_of - pd.Timedelta(minutes=given.number("dlq.recent"))).floor("min")
    failed = history.counts(frames.get("failed"))
    given_up = float(failed[failed.index >= since].sum())
    if given_up >= given.number("tries.pattern") and not stopping:
        refusing = max(refusing, "delivery.gave_up", key=lambda name: given.speaks(name)[0].weight if name else 0)
    started = rows.one(frames.get("program"), program.Program).started
    return Seen(
        worker,
        given_up,
        stopping,
        refusing,
        program.beside(program.stands(frames, given, "delivery"), stopping == "delivery.stopped", "delivery"),
        two_claim(started, frames.get("held"), frames.get("held_later")),
    )


def _headline(seen: Seen, late: bool) -> Text:
    worker, queue = seen.worker, seen.worker.queue
    facts: dict[str, Any] = {
        "due": queue.ready,
        "oldest": queue.oldest_s,
        "silence": worker.silence_s,
        "waiting": queue.waiting_retry,
        "tried": worker.tried,
        "given_up": seen.given_up,
        "leased": queue.leased,
        "sent": worker.activity.sent_1m,
    }
    if seen.stands.wrong:
        return seen.stands.headline(**facts)
    if seen.stopping or seen.refusing:
        refused = "backlog.refused_some" if seen.refusing == "delivery.refused_some" else "backlog.refused"
        return say("backlog.stopped" if seen.gone else refused, **facts)
    if seen.workers:
        return say("leases.two_workers", who=", ".join(seen.workers))
    if not worker.total:
        return say("backlog.empty")
    return say("backlog.behind" if late else "backlog.flowing", **facts)


def _notes(frames: Frames) -> list[Text]:
    estimated = any("≈" in str(count) for count in table(frames, "by_status", "count")["count"])
    return [
        *([say("backlog.sent_is_estimated")] if estimated else []),
        say("backlog.older_mixes" if "older_than_10min" in frames else "backlog.older_refused"),
    ]


def _signals(seen: Seen, given: Given) -> list[Signal]:
    found = [signal for name in seen.observations for signal in given.speaks(name)]
    if seen.stopping in delivery.GONE:
        found += given.speaks("backlog.nothing_is_tried")
    elif seen.refusing and not seen.stopping:
        found += given.speaks("backlog.only_refused")
    if seen.given_up:
        many = seen.given_up >= given.number("tries.pattern")
        found += given.speaks("backlog.given_up" if many else "backlog.few_given_up")
    if not seen.stopping and not seen.refusing and not seen.stands.wrong and seen.worker.sends(given):
        found += given.speaks("backlog.sends")
    return found


def _hops(seen: Seen, late: bool) -> tuple[Hop, ...]:
    queue, activity = seen.worker.queue, seen.worker.activity
    return (
        Hop(
            "delivery_worker",
            rate_in=activity.arrived_1m,
            rate_out=activity.sent_1m,
            waiting=queue.ready,
            oldest_s=queue.oldest_s,
            alive=say("alive.silent", s=seen.worker.silence_s) if seen.stopping else activity.workers or None,
            late=late,
        ),
        Hop(
            "receiver",
            rate_out=activity.sent_1m,
            waiting=queue.waiting_retry,
            alive=say("alive.refuses") if seen.refusing else None,
        ),
    )


def _proposals(given: Given, seen: Seen) -> tuple[Proposal, ...]:
    if seen.stands.wrong:
        return program.proposals(given, seen.stands, "delivery")
    if seen.gone:
        return (proposals.restart(given, "notification"),)
    logs = proposals.logs(given, "notification")
    if seen.refusing == "delivery.refused_some":
        return (logs,)  # most pass: fewer at a time would change nothing for those that do not
    if not seen.refusing:
        return ()
    return (*_hold(given, seen), remedies.throttle(given, "delivery"), logs)


def _hold(given: Given, seen: Seen) -> tuple[Proposal, ...]:
    """While nothing gets through, what waits keeps the tries that it has left; earlier than that it gains nothing."""
    runs_out = seen.given_up or max(seen.worker.tries, default=0) >= given.number("tries.last")
    passes = seen.worker.sends(given) or seen.worker.accepted
    return (remedies.hold_delivery(given),) if runs_out and not passes else ()


# The past: only what timestamps keep.


def _rebuilt(frames: Frames, given: Given) -> Finding:
    level = past.levels(frames, "notifications", past.window(given))
    if level is None:
        return unknown("", Reason.NO_DATA, say("backlog.nothing_rebuilt"))
    waiting = float(level["waiting"].iloc[-1])
    status = given.limits["backlog.due"].status(waiting)
    return judged(
        say("backlog.rebuilt", n=waiting, peak=float(level["most"].max()), minutes=given.window_minutes),
        [Value("backlog.open", waiting, "rows")],
        # What was due, leased or waiting then is not kept: without a large number it is not known to be well.
        at_least=Status.UNKNOWN if status is Status.OK else status,
        notes=_blind_spots(given),
    )


def _blind_spots(given: Given) -> tuple[Text, ...]:
    return past.blind_spots(given, pd.Timedelta(days=given.number("retention.notifications")))


def draw_history(frames: Frames, given: Given) -> charts.Chart | None:
    """The backlog of the window, with what came and what left."""
    return past.draw(
        past.levels(frames, "notifications", past.window(given)),
        past.window(given),
        "Unfinished notifications, by the rows' own timestamps",
        ("unfinished at the minute's end", "created per min", "sent or given up per min"),
        "backlog.alt_history",
        _blind_spots(given),
        given.limits["backlog.due"],
    )


def draw_ages(frames: Frames, given: Given) -> charts.Chart | None:
    """How old the unfinished notifications are."""
    ages = table(frames, "ages", "bucket", "n")
    if ages.empty:
        return None
    labels = [
        *("<1 s", "1-5 s", "5-10 s", "10-30 s", "30-60 s"),
        *("1-2 min", "2-5 min", "5-10 min", "10-30 min", "30-60 min", ">1 h"),
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
