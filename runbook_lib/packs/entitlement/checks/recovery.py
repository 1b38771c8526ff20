"""Section 6: is it over? Judged by what happens now; what an incident left in the window keeps nothing red."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from runbook_lib import rows
from runbook_lib.analysis import stats
from runbook_lib.checks.check import Check
from runbook_lib.checks.parts import collect_each, judge_each, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Finding,
    Frames,
    Hop,
    Reason,
    Status,
    Text,
    Value,
    judged,
    replace,
    say,
    unknown,
    worst,
)
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement import rows as kinds
from runbook_lib.packs.entitlement.checks import consistency, scope
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: What is tried, the queue that it is tried from, and the flows of that queue.
TRIED = {"delivery": ("notifications", "notification_flows"), "publish": ("outbox", "outbox_flows")}
#: Where the span of seconds ago begins and ends whose events should be through.
SPANS = {
    "publish": ("publish.cohort_from", "publish.cohort_to"),
    "delivery": ("delivery.cohort_from", "delivery.cohort_to"),
}


@dataclass(frozen=True)
class OutboxFailed:
    """Events that the relay gave up; `last_failed` only where commit times are kept."""

    QUESTION: ClassVar[str] = "recovery/outbox_failed"

    n: int = 0
    newest: pd.Timestamp | None = None
    last_failed: pd.Timestamp | None = None


@dataclass(frozen=True)
class Cohort:
    """Events of a span of seconds ago: how many, how many are through, and how long those took."""

    n: float = 0.0
    done: float = 0.0
    p95: float | None = None


@dataclass(frozen=True)
class Queue:
    """One queue's answer to "is it falling?"."""

    status: Status
    text: Text
    values: tuple[Value, ...]


def _begin(rb: Context) -> pd.Timestamp:
    return max(rb.since, rb.as_of - pd.Timedelta(minutes=rb.number("recovery.lookback")))


def _flows(rb: Context, db: Snapshot) -> Frames:
    """Both queues now, and what came and went, in buckets: those sent were created within hours, or within one."""
    since = _begin(rb)
    longer, shorter = (since - pd.Timedelta(hours=h) for h in (rb.number("recovery.created_before"), 1))
    sent = db.try_ask("recovery/notification_flows", since=since, created_since=longer)
    if sent is None:
        sent = db.ask("recovery/notification_flows", since=since, created_since=shorter)
    return {
        "notifications": db.ask("notifications/backlog"),
        "outbox": db.ask("outbox/backlog"),
        "notification_flows": sent,
        "outbox_flows": db.ask("recovery/outbox_flows", since=since),
    }


def counts(frame: pd.DataFrame | None, column: str, given: Given, seconds: float, skip_s: float = 0.0) -> float:
    """What was counted in the last seconds, in whole steps, leaving out the newest `skip_s` of them."""
    if frame is None or not {"tens_ago", column} <= set(frame.columns):
        return 0.0
    ago_s = frame["tens_ago"] * given.number("recovery.step")
    near = (ago_s >= skip_s) & (ago_s < skip_s + seconds)
    return float(pd.to_numeric(frame.loc[near, column]).sum())


def _now(flows: pd.DataFrame | None, column: str, given: Given) -> float:
    """What is counted apart of the newest step: the last seconds."""
    return counts(flows, f"{column}_now", given, given.number("recovery.step"))


def _again(seconds: float, given: Given) -> float:
    """When a look is worth while: not at once, and not never."""
    return float(min(max(round(seconds), given.number("look_again.least")), given.number("look_again.most")))


# 6.1 --------------------------------------------------------------------------------------------------------


def collect_backlog(rb: Context) -> Frames:
    """6.1: both backlogs and their flows. Frames: notifications, outbox, notification_flows, outbox_flows."""
    with rb.snapshot() as db:
        return _flows(rb, db)


def judge_backlog(frames: Frames, given: Given) -> Finding:
    """6.1: is the backlog falling, and when will it be empty?"""
    waiting = {
        "notifications": rows.first(frames.get("notifications"), kinds.Notifications),
        "outbox": rows.first(frames.get("outbox"), kinds.Outbox),
    }
    flows = {queue: frames.get(name) for queue, name in TRIED.values()}
    limits = {"notifications": "backlog.oldest_due", "outbox": "outbox.oldest_due"}
    queues = {name: _queue(name, waiting[name], flows[name], given, limits[name]) for name in waiting}
    return judged(
        say("recovery.both", a=queues["notifications"].text, b=queues["outbox"].text),
        [v for q in queues.values() for v in q.values],
        at_least=worst(q.status for q in queues.values()),
        reason=Reason.NO_DATA,
        notes=(say("recovery.flows_note"),),
        hops=tuple(
            _hop(hop, waiting[name], flows[name], queues[name], given)
            for hop, name in (("relay", "outbox"), ("delivery_worker", "notifications"))
        ),
    )


def _queue(name: str, now: kinds.Queue | None, flows: pd.DataFrame | None, given: Given, age_limit: str) -> Queue:
    if now is None or flows is None:
        return Queue(Status.UNKNOWN, say("recovery.queue_unknown", queue=say(f"recovery.{name}")), ())
    due, limits = now.ready, given.limits
    oldest = now.oldest_s if due else 0.0
    seen: dict[str, Any] = {"queue": say(f"recovery.{name}"), "due": due, "oldest": oldest}
    values = [Value(f"{name}.due", due, "rows"), Value(f"{name}.oldest_due", oldest, "s")]
    came_now, gone_now = (_now(flows, column, given) for column in ("arrived", "gone"))
    values += [Value(f"{name}.arrived_now", came_now, "rows"), Value(f"{name}.gone_now", gone_now, "rows")]
    if limits["backlog.due"].status(due) is Status.OK and limits[age_limit].status(oldest) is Status.OK:
        return Queue(Status.OK, say("recovery.queue_empty", **seen), tuple(values))

    minutes, came, gone = _decisive(flows, due, given)
    test = stats.flow_test(came, gone, minutes, due)
    now_s = given.number("recovery.now")
    turned = stats.flow_test(came_now, gone_now, now_s / 60, due)
    seen |= {"minutes": minutes, "came": came, "gone": gone, "net": test.net_per_min, "eta": test.eta_min}
    if test.verdict == "draining":
        status, key = Status.OK, "draining"
    elif turned.eta_min is not None:
        eta = 60 * turned.eta_min
        again = _again(eta, given)
        values.append(Value(f"{name}.{LOOK_AGAIN}", again, "s"))
        seen |= {"net": turned.net_per_min, "eta": eta, "again": again, "now": now_s}
        status, key = Status.WARNING, "recovering"
    elif test.verdict == "filling":
        status, key = Status.CRITICAL, "filling"
    elif not gone:
        status, key = worst([Status.WARNING, limits[age_limit].status(oldest)]), "still"
    else:
        status, key = Status.WARNING, "unclear"
    values.append(
        Value(f"{name}.drain_z", round(test.z, 2), "ratio", None if status is Status.OK else limits["drain.z"])
    )
    return Queue(status, say(f"recovery.queue_{key}", **seen), tuple(values))


def _decisive(flows: pd.DataFrame, due: float, given: Given) -> tuple[float, float, float]:
    """Minutes, and what came and went: the last minute decides, the longer stretch where one is too short to tell."""

    def stretch(minutes: float) -> tuple[float, float, float]:
        came, gone = (counts(flows, column, given, 60 * minutes) for column in ("arrived", "gone"))
        return minutes, came, gone

    def verdict(minutes: float, came: float, gone: float) -> str:
        return stats.flow_test(came, gone, minutes, due).verdict

    # A longer stretch that filled says nothing of the last minute.
    last, longer = stretch(1), stretch(given.number("flow.longer"))
    return last if verdict(*last) in ("draining", "filling") or verdict(*longer) == "filling" else longer


def _hop(hop: str, now: kinds.Queue | None, flows: pd.DataFrame | None, queue: Queue, given: Given) -> Hop:
    if now is None or flows is None:
        return Hop(hop)
    return Hop(
        hop,
        rate_in=counts(flows, "arrived", given, 60),
        rate_out=counts(flows, "gone", given, 60),
        waiting=now.ready,
        oldest_s=now.oldest_s,
        late=queue.status is not Status.OK and not any(v.name.endswith(LOOK_AGAIN) for v in queue.values),
    )


def draw_flows(frames: Frames, given: Given) -> charts.Chart | None:
    """What was written, published and sent, in steps of ten seconds."""
    outbox, sent = frames.get("outbox_flows"), frames.get("notification_flows")
    if outbox is None or sent is None or (outbox.empty and sent.empty):
        return None
    longest, step = min(given.number("recovery.lookback"), given.window_minutes), given.number("recovery.step")
    ago_s, highest = np.arange(0.0, 60 * longest, step), 0.0
    figure, ax = charts.axes("Written, published, sent", "events / min", "minutes before the run")
    for frame, column, colour, line, label in (
        (outbox, "arrived", charts.GREY, "-", "written to the outbox"),
        (outbox, "gone", charts.BLUE, ":", "published"),
        (sent, "gone", charts.GREEN, "--", "sent"),
    ):
        rate = [counts(frame, column, given, step, skip_s) * 60 / step for skip_s in ago_s]
        ax.step(-(ago_s + step / 2) / 60, rate, where="mid", color=colour, linestyle=line, label=label)
        highest = max(highest, *rate)
    ax.set_xlim(-longest, 0)
    ax.set_ylim(0, 1.3 * max(highest, 1.0))
    ax.legend(loc="upper left", fontsize=8, frameon=False, ncols=3)
    return charts.Chart(
        figure,
        say(
            "recovery.alt_flows",
            written=counts(outbox, "arrived", given, 60),
            published=counts(outbox, "gone", given, 60),
            sent=counts(sent, "gone", given, 60),
            minutes=longest,
        ),
        (say("recovery.flows_note"),),
    )


# 6.2 --------------------------------------------------------------------------------------------------------


def collect_errors(rb: Context) -> Frames:
    """6.2: tries that failed, and that succeeded, in the last seconds. Frames: 6.1's, tries; letters where cheap."""
    with rb.snapshot() as db:
        since = rb.as_of - pd.Timedelta(seconds=rb.number("recovery.recent"))
        frames = _flows(rb, db) | {"tries": db.ask("recovery/failed_tries", tried_since=since)}
        letters = db.try_ask("recovery/dead_letters", since=_begin(rb))
        return frames if letters is None else frames | {"letters": letters}


def judge_errors(frames: Frames, given: Given) -> Finding:
    """6.2: is the error rate back under its norm, by the tries of the last seconds?"""
    if "tries" not in frames or rows.first(frames.get("notifications"), kinds.Notifications) is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="recovery/failed_tries"))
    parts = [error_rate(frames, given, part) for part in TRIED]
    return judged(
        say("recovery.both", a=parts[0].text, b=parts[1].text),
        [v for part in parts for v in part.values],
        at_least=worst(part.status for part in parts),
        notes=(say("recovery.errors_note"),),
    )


def error_rate(frames: Frames, given: Given, part: str) -> Queue:
    """How many tries of one part ("delivery" or "publish") failed, from the frames of `collect_errors`."""
    tries = kinds.Tries.of(part, frames)
    queue, flows = TRIED[part]
    recent_s, limit = given.number("recovery.recent"), given.limits["errors.rate"]
    letters = table(frames, "letters", "kind", "tens_ago", "n")
    # Only the delivery worker's dead letters were tried; what the relay gave up has no time.
    failed = tries.failed + counts(letters[letters["kind"] == part], "n", given, recent_s)
    of = failed + counts(frames.get(flows), "gone", given, recent_s)
    rate = 100 * failed / of if of else None
    succeeded_now = _now(frames.get(flows), "gone", given)
    facts: dict[str, Any] = {
        "part": say(f"recovery.{part}"),
        "rate": rate,
        "failed": failed,
        "of": of,
        "since": given.number("recovery.now_failed"),
        "now": given.number("recovery.now"),
        "succeeded": succeeded_now,
        "again": recent_s,
    }
    # Had tries failed as often as before, so many would hardly all have succeeded.
    recovering = (
        rate is not None
        and limit.status(rate) is not Status.OK
        and not tries.failed_now
        and (1 - rate / 100) ** succeeded_now < given.number("recovery.chance")
    )
    if recovering:
        status, key = Status.WARNING, "recovering"
    elif rate is not None:
        status, key = limit.status(rate), "some" if failed else "none"
    elif tries.due_again or rows.one(frames.get(queue), kinds.Queue).ready > 0:
        status, key = Status.WARNING, "unknown"  # something should have been tried, and nothing came of it
    else:
        status, key = Status.OK, "idle"
    values = [
        Value(f"errors.{part}", rate, "%", None if rate is None or recovering else limit),
        Value(f"{part}.waiting_retry", tries.waiting, "rows"),
        Value(f"{part}.failed_now", tries.failed_now, "rows"),
        *([Value(f"{part}.{LOOK_AGAIN}", recent_s, "s")] if recovering else []),
    ]
    return Queue(status, say(f"recovery.errors_{key}", **facts), tuple(values))


# 6.3 --------------------------------------------------------------------------------------------------------


def collect_dead_letters(rb: Context) -> Frames:
    """6.3: when dead letters came, and when the relay last gave an event up. Frames: letters, outbox_failed."""
    with rb.snapshot() as db:
        return {
            "letters": db.ask("recovery/dead_letters"),
            "outbox_failed": db.ask("recovery/outbox_failed"),
        }


def judge_dead_letters(frames: Frames, given: Given) -> Finding:
    """6.3: have dead letters and FAILED stopped growing?"""
    letters, outbox = frames.get("letters"), rows.one(frames.get("outbox_failed"), OutboxFailed)
    if letters is None or not {"kind", "tens_ago", "n"} <= set(letters.columns):
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="recovery/dead_letters"))
    found, silence, gap = _series(letters, given)
    least = given.number("letters.quiet_least")
    needed = min(max(gap, least), given.number("letters.quiet_most")) if found else 0.0
    failed_s = seconds_between(outbox.last_failed, given.as_of)
    if outbox.n and failed_s is None:
        # Without commit times only a bound is known: it was created, tried ten times, and given up.
        created_s = seconds_between(outbox.newest, given.as_of) or 0.0
        outbox_quiet = created_s > given.number("publish.tries_longest") + least
    else:
        outbox_quiet = not outbox.n or (failed_s or 0.0) >= least
    minute = counts(letters, "n", given, 60)
    before = counts(letters, "n", given, np.inf, 60)
    growing = minute >= 2 and minute >= before / max(given.window_minutes - 1, 1)
    quiet = not found or silence >= needed
    # Silent for longer than chance would have it, but not yet for as long as it takes to call it over.
    recovering = not quiet and silence >= max(gap, given.number("recovery.now")) and outbox_quiet
    again = _again(needed - silence, given)
    if quiet and outbox_quiet:
        status, key = Status.OK, "letters_over" if found else "letters_none"
    elif recovering:
        status, key = Status.WARNING, "letters_recovering"
    elif not quiet:
        status, key = (Status.CRITICAL, "letters_growing") if growing else (Status.WARNING, "letters_recent")
    else:
        status, key = Status.WARNING, "outbox_growing"
    stays = (("outbox_stays", outbox.n), ("letters_stay", found))
    return judged(
        say(f"recovery.{key}", n=found, minute=minute, silence=silence, minutes=given.window_minutes, failed=outbox.n,
            again=again),
        [
            Value("dlq.new", found, "rows"),
            Value("dlq.new_last_minute", minute, "rows"),
            Value("dlq.since_last", silence if found else None, "s"),
            Value("dlq.quiet_needed", needed if found else None, "s"),
            Value("outbox.failed_total", outbox.n, "rows"),
            Value("outbox.since_last_failed", failed_s, "s"),
            *([Value(LOOK_AGAIN, again, "s")] if recovering else []),
        ],
        at_least=status,
        notes=tuple(say(f"recovery.{note}", n=n) for note, n in stays if n),
    )  # fmt: skip


def _series(letters: pd.DataFrame, given: Given) -> tuple[int, float, float]:
    """How many dead letters, seconds since the last, and the silence that is no chance: some of their usual gaps."""
    if letters.empty:
        return 0, 0.0, 0.0
    found = int(pd.to_numeric(letters["n"]).sum())
    last = pd.to_datetime(letters["last"], utc=True).max() if "last" in letters else None
    known = seconds_between(last, given.as_of)
    ago_s = letters["tens_ago"] * given.number("recovery.step")
    silence = float(ago_s.min()) if known is None else known
    extent = float(ago_s.max() - ago_s.min())
    return found, silence, given.number("letters.gaps") * extent / max(found - 1, 1)


# 6.4 --------------------------------------------------------------------------------------------------------


def collect_slis(rb: Context) -> Frames:
    """6.4: what became of the newest events that should be through, and how it was before.

    Frames: publish, accepted (sli/outbox_cohort), delivery (sli/delivery_cohort), outbox_before (outbox/delay);
    delivery_before (sli/delivered) where cheap.
    """

    def span(part: str) -> dict[str, pd.Timestamp]:
        since, until = (rb.as_of - pd.Timedelta(seconds=rb.number(name)) for name in SPANS[part])
        return {"since": since, "until": until}

    with rb.snapshot() as db:
        frames = {
            "publish": db.ask("sli/outbox_cohort", **span("publish")),
            "accepted": db.ask("sli/outbox_cohort", **span("delivery")),
            "delivery": db.ask("sli/delivery_cohort", **span("delivery")),
            "outbox_before": db.ask("outbox/delay"),
        }
        before = db.try_ask("sli/delivered")
        return frames if before is None else frames | {"delivery_before": before}


@dataclass(frozen=True)
class Sli:
    """One part of 6.4: the newest events, of `n` expected, and the p95 of the window before.

    `turned` tells that what comes in goes out again by now, untroubled.
    """

    part: str
    limit: str
    n: float
    seen: Cohort
    before: float | None
    turned: bool


def _turned(given: Given, queue: str, part: str) -> bool:
    """Whether what comes in goes out again by now, untroubled: so 6.1 and 6.2 of this run have seen."""
    seen = {f.step: f for f in given.earlier}
    flows, errors = seen.get("6.1"), seen.get("6.2")
    if flows is None or errors is None or Status.CRITICAL in (flows.status, errors.status):
        return False
    # End to end: what waits in the broker, before its queue, has not gone out.
    came, gone = (float(flows.value(n) or 0) for n in ("outbox.arrived_now", f"{queue}.gone_now"))
    return gone > 0 and gone >= came and not errors.value(f"{part}.failed_now")


def judge_slis(frames: Frames, given: Given) -> Finding:
    """6.4: do the newest events go through in time, and better than before?"""
    publish, accepted, delivery = (rows.first(frames.get(n), Cohort) for n in ("publish", "accepted", "delivery"))
    if publish is None or accepted is None or delivery is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="sli/outbox_cohort"))
    outbox_before = rows.one(frames.get("outbox_before"), kinds.Delay).p95
    sent_before = rows.one(frames.get("delivery_before"), kinds.Delivered).p95
    # An event that never reached the notifications counts as one that was not delivered.
    expected = max(accepted.n, delivery.n)
    sent, published = (
        _sli(Sli("delivery", "delivery.e2e_p95", expected, delivery, sent_before,
                 _turned(given, "notifications", "delivery")), given),
        _sli(Sli("publish", "outbox.publish_delay_p95", publish.n, publish, outbox_before,
                 _turned(given, "outbox", "publish")), given),
    )  # fmt: skip
    return judged(
        say("recovery.both", a=sent.text, b=published.text),
        [*published.values, *sent.values],
        at_least=worst([published.status, sent.status]),
        notes=(say("recovery.sli_note"),),
    )


def _sli(sli: Sli, given: Given) -> Queue:
    part, seen, limit = sli.part, sli.seen, given.limits[sli.limit]
    again_s = given.number(SPANS[part][0])
    values = [Value(f"{part}.events", sli.n, "events"), Value(f"{part}.done", seen.done, "events")]
    if sli.before is not None:
        values.append(Value(f"{part}.p95_window", round(sli.before, 2), "s"))
    value = given.limits.value(sli.limit, seen.p95)
    troubled, status = False, Status.OK
    if not sli.n:
        key = "idle"
    elif seen.done < given.number("p95.in_time") * sli.n:
        # More than a p95 allows are still on their way: their p95 is worse than any that can be measured.
        troubled, key = True, "recovering" if sli.turned else "missing"
        status = Status.CRITICAL if seen.done < sli.n / 2 and not sli.turned else Status.WARNING
    else:
        # Late events leave the percentile only by and by: over the limit, but better than before, is a recovery.
        better = sli.before is not None and (seen.p95 or 0) < sli.before
        recovering = value.status is Status.CRITICAL and (better or sli.turned)
        troubled, key = value.status is not Status.OK, "well" if value.status is Status.OK else "slow"
        status = Status.WARNING if recovering else value.status or Status.OK
        values.append(replace(value, threshold=None) if recovering else value)
    if troubled and sli.turned:
        values.append(Value(f"{part}.{LOOK_AGAIN}", again_s, "s"))
    facts = {
        "part": say(f"recovery.{part}"),
        "n": sli.n,
        "done": seen.done,
        "p95": seen.p95,
        "before": sli.before,
        "limit": limit.critical,
        "again": again_s,
    }
    return Queue(status, say(f"recovery.sli_{key}", **facts), tuple(values))


# 6.5 --------------------------------------------------------------------------------------------------------


def collect_duplicates(rb: Context) -> Frames:
    """Events of the window with more than one notification. Frames: duplicates."""
    with rb.snapshot() as db:
        return {"duplicates": db.ask("consistency/duplicates")}


def judge_duplicates(frames: Frames, given: Given) -> Finding:
    """One event, two notifications: still being made, or left by what is over?"""
    found = frames.get("duplicates")
    if found is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="consistency/duplicates"))
    newest = seconds_between(found["last"].max() if len(found) else None, given.as_of)
    still = newest is not None and newest < 60
    return judged(
        say("recovery.duplicates" if len(found) else "recovery.no_duplicates", n=len(found), ago=newest),
        [Value("duplicates", len(found), "events")],
        at_least=Status.CRITICAL if still else Status.WARNING if len(found) else Status.OK,
        signals=given.speaks("duplicates.doubled_now" if still else "duplicates.doubled") if len(found) else (),
        show=("duplicates",),
    )


def collect_lost(rb: Context) -> Frames:
    """Events of the window without a trace behind the broker; older ones are 5.3.2's. Frames: those of 5.3.2."""
    return consistency.collect_lost(rb, day=False)


#: What a recovery may have broken on its way, part by part.
SIDE_EFFECTS = {
    "duplicates": Check("6.5", collect_duplicates, judge_duplicates),
    "lost": Check("6.5", collect_lost, consistency.judge_lost),
    "sent": Check("6.5", consistency.collect_sent_rows, consistency.judge_sent),
    "halves": Check("6.5", consistency.collect_halves, consistency.judge_halves),
    "letters": Check("6.5", consistency.collect_dead_letters, consistency.judge_dead_letters),
    "locks": Check("6.5", consistency.collect_locks, consistency.judge_locks),
    "broker": Check("6.5", scope.collect_broker, scope.judge_broker),
}


def collect_side_effects(rb: Context) -> Frames:
    """6.5: all of `SIDE_EFFECTS`. Frames: those of its parts, as "part.frame"."""
    return collect_each(rb, SIDE_EFFECTS)


def judge_side_effects(frames: Frames, given: Given) -> Finding:
    """6.5: has the recovery caused anything new, and did the connections really come back?"""
    found = judge_each(frames, given, SIDE_EFFECTS)
    bad = {name: f for name, f in found.items() if f.status is not Status.OK and f.counts}
    first = max(bad.values(), key=lambda f: f.status.rank, default=None)
    values = [
        Value(name, found[part].value(value), unit)
        for name, part, value, unit in (
            ("duplicates", "duplicates", "duplicates", "events"),
            ("lost", "lost", "integrity.lost", "events"),
            ("sent_dirty", "sent", "integrity.rows", "rows"),
            ("half_processed", "halves", "integrity.rows", "rows"),
            ("dead_letters_apart", "letters", "integrity.rows", "rows"),
            ("locks_left", "locks", "integrity.rows", "rows"),
            ("clients_connected", "broker", "broker.clients", ""),
        )
    ]
    return judged(
        first.headline if first else say("recovery.nothing_new", minutes=given.window_minutes),
        values,
        at_least=worst(f.status for f in found.values() if f.counts),
        reason=first.reason if first else None,
        notes=tuple(f.headline for f in bad.values() if f is not first)
        + tuple(say("recovery.not_seen", what=f.headline) for f in found.values() if not f.counts),
        signals=tuple(s for f in bad.values() for s in f.signals),
        next_sections=("5.3",) if set(bad) - {"broker"} else (),
        show=tuple(f"{name}.{frame}" for name, f in bad.items() for frame in f.show),
    )


CHECKS: tuple[Check, ...] = (
    Check("6.1", collect_backlog, judge_backlog, (draw_flows,)),
    Check("6.2", collect_errors, judge_errors),
    Check("6.3", collect_dead_letters, judge_dead_letters),
    Check("6.4", collect_slis, judge_slis),
    Check("6.5", collect_side_effects, judge_side_effects),
)
