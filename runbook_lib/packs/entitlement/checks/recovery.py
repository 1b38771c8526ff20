"""Section 6: decide whether the system has recovered, by what happens now and not by what the incident left behind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, collect_each, collector, judge_each, seconds_between
from runbook_lib.diagnosis import stats
from runbook_lib.model import rows
from runbook_lib.model.finding import LOOK_AGAIN, Finding, Frames, Hop, Status, Text, Value, judged, replace, say, worst
from runbook_lib.model.frames import table
from runbook_lib.model.unread import UnreadError
from runbook_lib.packs.entitlement import missing
from runbook_lib.packs.entitlement import rows as kinds
from runbook_lib.packs.entitlement.checks import consistency, scope
from runbook_lib.packs.entitlement.checks.series import FlowCounts, ask_flows, ask_since, ask_spans
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The two parts, each with the queue that its tries come from, and the frame of that queue's flows.
TRIED = {"delivery": ("notifications", "notification_flows"), "publish": ("outbox", "outbox_flows")}
#: The thresholds (seconds ago) between which the events of a part should be finished by now.
SPANS = {
    "publish": ("publish.cohort_from", "publish.cohort_to"),
    "delivery": ("delivery.cohort_from", "delivery.cohort_to"),
}


class Cohort(rows.Row):
    """The newest events that should be finished: their number, how many are, and the p95 of their delay in seconds."""

    n: float = 0.0
    done: float = 0.0
    p95: float | None = None


@dataclass(frozen=True)
class QueueState:
    """The result for one queue or part: status, text and values; `unresolved`: no try of due rows has a result."""

    status: Status
    text: Text
    values: tuple[Value, ...]
    unresolved: bool = False


def _ask_flows(rb: Context, db: Snapshot, parts: FrameCollector, tried: Iterable[str] = TRIED) -> None:
    """Read each part's queue now, and its flows in steps of ten seconds."""
    for queue, flows in (TRIED[part] for part in tried):
        with parts.part(queue) as answers:
            answers[queue] = db.ask_apart(f"{queue}/backlog")
            answers[flows] = ask_flows(rb, db, queue)


def _next_sample_s(seconds: float, given: JudgeInput) -> float:
    """Return the seconds until the next sample, between the limits of `look_again`."""
    return float(min(max(round(seconds), given.number("look_again.least")), given.number("look_again.most")))


# 6.1 --------------------------------------------------------------------------------------------------------


def collect_backlog(rb: Context) -> Frames:
    """6.1: read both backlogs and their flows. Frames: notifications, outbox, notification_flows, outbox_flows."""
    parts = FrameCollector()
    with rb.snapshot() as db:
        _ask_flows(rb, db, parts)
    return parts.frames()


def judge_backlog(frames: Frames, given: JudgeInput) -> Finding:
    """6.1: decide whether each backlog falls, and estimate when it is empty."""
    waiting = {
        "notifications": rows.first(frames.get("notifications"), kinds.Notifications),
        "outbox": rows.first(frames.get("outbox"), kinds.Outbox),
    }
    flows = {queue: FlowCounts.of(frames.get(name), given) for queue, name in TRIED.values()}
    limits = {"notifications": "backlog.oldest_due", "outbox": "outbox.oldest_due"}
    queues = {name: _judge_queue(name, waiting[name], flows[name], given, limits[name]) for name in waiting}
    return judged(
        say("recovery.both", a=queues["notifications"].text, b=queues["outbox"].text),
        [v for q in queues.values() for v in q.values],
        at_least=worst(q.status for q in queues.values()),
        notes=(say("recovery.flows_note"),),
        hops=tuple(
            _queue_hop(hop, waiting[name], flows[name], queues[name])
            for hop, name in (("relay", "outbox"), ("delivery_worker", "notifications"))
        ),
    )


def _judge_queue(
    name: str, now: kinds.QueueCounts | None, flows: FlowCounts, given: JudgeInput, age_limit: str
) -> QueueState:
    if now is None or not flows.has("arrived", "gone"):
        return QueueState(Status.UNKNOWN, say("recovery.queue_unknown", queue=say(f"recovery.{name}")), ())
    due, limits = now.ready, given.limits
    oldest = now.oldest_s if due else 0.0
    seen: dict[str, Any] = {"queue": say(f"recovery.{name}"), "due": due, "oldest": oldest}
    values = [Value(f"{name}.due", due, "rows"), Value(f"{name}.oldest_due", oldest, "s")]
    came_now, gone_now = flows.now("arrived"), flows.now("gone")
    values += [Value(f"{name}.arrived_now", came_now, "rows"), Value(f"{name}.gone_now", gone_now, "rows")]
    if (events := flows.now("events_gone")) is not None:
        values.append(Value(f"{name}.events_gone_now", events, "rows"))
    if limits["backlog.due"].status(due) is Status.OK and limits[age_limit].status(oldest) is Status.OK:
        return QueueState(Status.OK, say("recovery.queue_empty", **seen), tuple(values))

    minutes, came, gone = _deciding_counts(flows, due, given)
    test = stats.flow_test(came, gone, minutes, due)
    now_s = given.number("recovery.now")
    turned = test
    if came_now is not None and gone_now is not None:
        turned = stats.flow_test(came_now, gone_now, now_s / 60, due)
    # A recovery shows in the last seconds earlier than in the last minute.
    drains, over_s = (turned, now_s) if test.eta_min is None else (test, 60 * minutes)
    seen |= {"minutes": minutes, "came": came, "gone": gone}
    if drains.eta_min is not None:
        empty_in = Value(f"{name}.empty_in", drains.eta_min, "min", limits["drain.empty_in"])
        soon = drains is test and empty_in.status is Status.OK
        again = _next_sample_s(60 * drains.eta_min, given)
        seen |= {"net": drains.net_per_min, "eta": drains.eta_min, "over": over_s, "again": again}
        values += [empty_in, *(() if soon else (Value(f"{name}.{LOOK_AGAIN}", again, "s"),))]
        status, key = (Status.OK, "recovery.queue_draining") if soon else (Status.WARNING, "recovery.queue_recovering")
    elif test.verdict == "filling":
        status, key = Status.CRITICAL, "recovery.queue_filling"
    elif not gone:
        status, key = worst([Status.WARNING, limits[age_limit].status(oldest)]), "recovery.queue_still"
    else:
        status, key = Status.WARNING, "recovery.queue_unclear"
    values.append(
        Value(f"{name}.drain_z", round(test.z, 2), "ratio", None if status is Status.OK else limits["drain.z"])
    )
    return QueueState(status, say(key, **seen), tuple(values))


def _deciding_counts(flows: FlowCounts, due: float, given: JudgeInput) -> tuple[float, float, float]:
    """Return minutes, arrivals and departures: of the last minute, or of a longer time if one minute is too short."""

    def count(minutes: float) -> tuple[float, float, float]:
        return minutes, flows.count("arrived", 60 * minutes), flows.count("gone", 60 * minutes)

    def verdict(minutes: float, came: float, gone: float) -> str:
        return stats.flow_test(came, gone, minutes, due).verdict

    # A longer time in which the queue grew shows nothing about the last minute.
    last, longer = count(1), count(min(given.number("flow.longer"), given.window_minutes))
    return last if verdict(*last) in ("draining", "filling") or verdict(*longer) == "filling" else longer


def _queue_hop(hop: str, now: kinds.QueueCounts | None, flows: FlowCounts, queue: QueueState) -> Hop:
    if now is None or not flows.has("arrived", "gone"):
        return Hop(hop)
    return Hop(
        hop,
        rate_in=flows.count("arrived", 60),
        rate_out=flows.count("gone", 60),
        waiting=now.ready,
        oldest_s=now.oldest_s,
        late=queue.status is not Status.OK and not any(v.name.endswith(LOOK_AGAIN) for v in queue.values),
    )


def chart_flows(frames: Frames, given: JudgeInput) -> charts.Chart | None:
    """Return the chart of the events that were written, published and sent, in steps of ten seconds."""
    outbox, sent = (FlowCounts.of(frames.get(name), given) for name in ("outbox_flows", "notification_flows"))
    if not outbox.has("arrived", "gone") or not sent.has("gone") or (outbox.steps.empty and sent.steps.empty):
        return None
    longest, step = min(given.number("recovery.lookback"), given.window_minutes), given.number("recovery.step")
    ago_s = np.arange(0.0, 60 * longest + step, step)[::-1]
    counted = {"written to the outbox": (outbox, "arrived"), "published": (outbox, "gone"), "sent": (sent, "gone")}
    per_min = {
        name: [flow.count(column, step, skip_s) * 60 / step for skip_s in ago_s[1:]]
        for name, (flow, column) in counted.items()
    }
    written, published, gone = (flow.count(column, 60) for flow, column in counted.values())
    return charts.Chart(
        "Written, published, sent",
        "events / min",
        charts.flows(-ago_s / 60, per_min),
        alt=say("recovery.alt_flows", written=written, published=published, sent=gone, minutes=longest),
        caption=(say("recovery.flows_note"),),
        xlabel="minutes before the run",
    )


# 6.2 --------------------------------------------------------------------------------------------------------


def collect_errors(rb: Context) -> Frames:
    """6.2: collect the tries of both parts. Frames: those of `ask_errors`."""
    parts = FrameCollector()
    ask_errors(rb, parts)
    return parts.frames()


def ask_errors(rb: Context, parts: FrameCollector, tried: Iterable[str] = TRIED) -> None:
    """Count the failed and successful tries of the last seconds, for each part. Raises SourceError.

    Frames: those of 6.1; tries, publish_tries; letters where cheap.
    """
    tried = tuple(tried)
    since = rb.as_of - pd.Timedelta(seconds=rb.number("recovery.recent"))
    with rb.snapshot() as db:
        _ask_flows(rb, db, parts, tried)
        for part in tried:
            queue, name = TRIED[part][0], kinds.TRY_FRAMES[part]
            if queue in parts.answers:
                parts.ask(db, {name: f"{queue}/failed_tries"}, tried_since=since)
        parts.ask(db, {"letters": "recovery/dead_letters"})


def judge_errors(frames: Frames, given: JudgeInput) -> Finding:
    """6.2: decide whether the error rate is below its limit, by the tries of the last seconds."""
    parts = [error_rate(frames, given, part) for part in TRIED]
    return judged(
        say("recovery.both", a=parts[0].text, b=parts[1].text),
        [v for part in parts for v in part.values],
        at_least=worst(part.status for part in parts),
        notes=(say("recovery.errors_note"),),
    )


def error_rate(frames: Frames, given: JudgeInput, part: str) -> QueueState:
    """Return the error rate of one part ("delivery" or "publish"), from the frames of `collect_errors`."""
    queue, flows = TRIED[part]
    waiting, flow = rows.first(frames.get(queue), kinds.QueueCounts), FlowCounts.of(frames.get(flows), given)
    if kinds.TRY_FRAMES[part] not in frames or waiting is None or not flow.has("gone"):
        return QueueState(Status.UNKNOWN, say("recovery.errors_unread", part=say(f"recovery.{part}")), ())
    tries = kinds.Tries.of(part, frames)
    recent_s, limit = given.number("recovery.recent"), given.limits["errors.rate"]
    # Of the dead letters only the delivery worker's had tries; the time at which the relay gave up is not stored.
    uncounted = part == "delivery" and "letters" not in frames
    letters = table(frames, "letters", "kind", "tens_ago", "n")
    failed = tries.failed + FlowCounts.of(letters[letters["kind"] == part], given).count("n", recent_s)
    of = failed + flow.count("gone", recent_s)
    rate = 100 * failed / of if of else None
    succeeded_now = flow.now("gone")
    facts: dict[str, Any] = {
        "part": say(f"recovery.{part}"),
        "rate": rate,
        "failed": failed,
        "of": of,
        "since": given.number("recovery.now_failed"),
        "now": given.number("recovery.now"),
        "succeeded": succeeded_now,
        "waiting": tries.waiting,
        "again": recent_s,
    }
    # At the earlier failure rate, this many successes without a failure are very unlikely.
    recovering = (
        rate is not None
        and limit.status(rate) is not Status.OK
        and not tries.failed_now
        and succeeded_now is not None
        and (1 - rate / 100) ** succeeded_now < given.number("recovery.chance")
    )
    if recovering:
        status, key = Status.WARNING, "recovery.errors_recovering"
    elif uncounted and (rate is None or limit.status(rate) is Status.OK):
        # The last tries of given-up rows are not counted.
        status, key = Status.UNKNOWN, "recovery.errors_uncounted"
    elif rate is not None:
        status, key = limit.status(rate), "recovery.errors_some" if failed else "recovery.errors_none"
    elif tries.due_again or waiting.ready > 0:
        # Rows were due and no try has a result.
        status, key = Status.WARNING, "recovery.errors_unknown"
    elif tries.waiting:
        # Their next try shows whether they fail again.
        status, key = Status.WARNING, "recovery.errors_waiting"
    else:
        status, key = Status.OK, "recovery.errors_idle"
    early = recovering or key == "recovery.errors_waiting"
    values = [
        Value(f"errors.{part}", rate, "%", None if rate is None or recovering else limit),
        Value(f"{part}.waiting_retry", tries.waiting, "rows"),
        Value(f"{part}.failed_now", tries.failed_now, "rows"),
        *([Value(f"{part}.{LOOK_AGAIN}", recent_s, "s")] if early else []),
    ]
    return QueueState(status, say(key, **facts), tuple(values), unresolved=key == "recovery.errors_unknown")


# 6.3 --------------------------------------------------------------------------------------------------------


def collect_dead_letters(rb: Context) -> Frames:
    """6.3: read when dead letters came, and when the relay last gave an event up. Frames: letters, outbox_failed."""
    parts = FrameCollector()
    with rb.snapshot() as db:
        parts.ask(db, {"letters": "recovery/dead_letters", "outbox_failed": kinds.OutboxAges.QUERY})
    return parts.frames()


def judge_dead_letters(frames: Frames, given: JudgeInput) -> Finding:
    """6.3: decide whether dead letters and FAILED events have stopped growing."""
    letters = frames["letters"]
    if not {"kind", "tens_ago", "n"} <= set(letters.columns):
        raise UnreadError("tens_ago")
    read = rows.first(frames.get("outbox_failed"), kinds.OutboxAges)
    outbox = read or kinds.OutboxAges()
    failed_total = outbox.n if read else None
    found, silence, gap = _dead_letter_gaps(letters, given)
    least = given.number("letters.quiet_least")
    needed = min(max(gap, least), given.number("letters.quiet_most")) if found else 0.0
    failed_s = seconds_between(outbox.last_failed, given.as_of)
    if outbox.n and failed_s is None:
        # Without commit times only a bound is known: the newest event was given up after ten tries at the latest.
        created_s = seconds_between(outbox.newest, given.as_of)
        outbox_quiet = created_s is not None and created_s > given.number("publish.tries_longest") + least
    else:
        outbox_quiet = not outbox.n or (failed_s is not None and failed_s >= least)
    series = FlowCounts.of(letters, given)
    minute, before = series.count("n", 60), series.count("n", skip_s=60)
    growing = minute >= 2 and minute >= before / max(given.window_minutes - 1, 1)
    quiet = not found or silence >= needed
    # No dead letter for longer than chance explains, but not yet for long enough to be over.
    recovering = not quiet and silence >= max(gap, given.number("recovery.now")) and outbox_quiet
    again = _next_sample_s(needed - silence, given)
    if quiet and outbox_quiet:
        status, key = Status.OK, "recovery.letters_over" if found else "recovery.letters_none"
    elif recovering:
        status, key = Status.WARNING, "recovery.letters_recovering"
    elif not quiet:
        status, key = Status.WARNING, "recovery.letters_recent"
        if growing:
            status, key = Status.CRITICAL, "recovery.letters_growing"
    else:
        status, key = Status.WARNING, "recovery.outbox_growing"
    headline = say(
        key, n=found, minute=minute, silence=silence, minutes=given.window_minutes, failed=failed_total, again=again
    )
    return judged(
        headline,
        [
            Value("dlq.new", found, "rows"),
            Value("dlq.new_last_minute", minute, "rows"),
            Value("dlq.since_last", silence if found else None, "s"),
            Value("dlq.quiet_needed", needed if found else None, "s"),
            Value("outbox.failed_total", failed_total, "rows"),
            Value("outbox.since_last_failed", failed_s, "s"),
            *([Value(LOOK_AGAIN, again, "s")] if recovering else []),
        ],
        at_least=status,
        notes=(
            *((say("recovery.outbox_stays", n=outbox.n),) if outbox.n else ()),
            *((say("recovery.letters_stay", n=found),) if found else ()),
        ),
    )  # fmt: skip


def _dead_letter_gaps(letters: pd.DataFrame, given: JudgeInput) -> tuple[int, float, float]:
    """Return the number of dead letters, the seconds since the last, and a gap (seconds) too long to be chance."""
    if letters.empty:
        return 0, 0.0, 0.0
    found = int(pd.to_numeric(letters["n"]).sum())
    last = pd.to_datetime(letters["last"], utc=True).max() if "last" in letters else None
    known = seconds_between(last, given.as_of)
    step_s = given.number("recovery.step")
    ago_s = letters["tens_ago"] * step_s
    silence = float(ago_s.min()) if known is None else known
    extent = float(ago_s.max() - ago_s.min())
    # All letters of a batch have its time, and those of the next one come a batch later.
    pauses = ago_s.sort_values().diff()
    batch_s = pauses[(pauses > step_s) & (pauses <= given.number("past.gap"))].max()
    gap = given.number("letters.gaps") * extent / max(found - 1, 1)
    return found, silence, max(gap, 0.0 if pd.isna(batch_s) else float(batch_s))


# 6.4 --------------------------------------------------------------------------------------------------------


def collect_slis(rb: Context) -> Frames:
    """6.4: read how many of the newest events are finished, and the delays of the window before.

    Frames: publish, accepted (sli/outbox_cohort), delivery (sli/delivery_cohort), outbox_before (outbox/delay);
    delivery_before (sli/delivered) where cheap.
    """

    parts = FrameCollector()
    moments = {part: [rb.as_of - pd.Timedelta(seconds=rb.number(n)) for n in names] for part, names in SPANS.items()}
    spans = {part: (begin, end) for part, (begin, end) in moments.items()}
    with rb.snapshot() as db:
        ask_spans(db, parts, "sli/outbox_cohort", {"publish": "publish", "accepted": "delivery"}, spans)
        since, until = spans["delivery"]
        parts.ask(db, {"delivery": "sli/delivery_cohort"}, since=since, until=until)
        ask_since(rb, db, parts, kinds.Delay.QUERY, outbox_before="window")
        ask_since(rb, db, parts, kinds.Delivered.QUERY, delivery_before="window")
    return parts.frames()


def _has_turned(given: JudgeInput, queue: str, part: str) -> bool:
    """Return whether at least as many events leave as come now, without failures, by 6.1 and 6.2 of this run."""
    seen = {f.step: f for f in given.earlier}
    flows, errors = seen.get("6.1"), seen.get("6.2")
    if flows is None or errors is None or Status.CRITICAL in (flows.status, errors.status):
        return False
    # End to end: the arrivals in the outbox count, since events may wait in the broker before this queue.
    came, gone = flows.value("outbox.arrived_now"), flows.value(f"{queue}.events_gone_now")
    gone = flows.value(f"{queue}.gone_now") if gone is None else gone  # the outbox holds nothing but events
    failed = errors.value(f"{part}.failed_now")
    if not (isinstance(came, float) and isinstance(gone, float)) or failed is None:
        return False
    return gone > 0 and gone >= came and not failed


def judge_slis(frames: Frames, given: JudgeInput) -> Finding:
    """6.4: decide whether the newest events are finished in time, and faster than before."""
    publish, accepted, delivery = (rows.first(frames.get(n), Cohort) for n in ("publish", "accepted", "delivery"))
    outbox_before = rows.one(frames.get("outbox_before"), kinds.Delay).p95
    sent_before = rows.one(frames.get("delivery_before"), kinds.Delivered).p95
    # An event that never reached the notifications counts as one that was not delivered.
    expected = None if accepted is None or delivery is None else max(accepted.n, delivery.n)
    due = publish.n if publish else None
    sent, published = (
        _judge_sli("delivery", "delivery.e2e_p95", expected, delivery or Cohort(), sent_before, given),
        _judge_sli("publish", "outbox.publish_delay_p95", due, publish or Cohort(), outbox_before, given),
    )
    return judged(
        say("recovery.both", a=sent.text, b=published.text),
        [*published.values, *sent.values],
        at_least=worst([published.status, sent.status]),
        notes=(say("recovery.sli_note"),),
    )


def _judge_sli(
    part: str, name: str, n: float | None, seen: Cohort, before: float | None, given: JudgeInput
) -> QueueState:
    """Judge one part of 6.4: its newest events, `n` expected (None: not known) and `seen`, and the p95 `before`."""
    limit = given.limits[name]
    turned = _has_turned(given, "notifications" if part == "delivery" else "outbox", part)
    if n is None:
        return QueueState(Status.UNKNOWN, say("recovery.queue_unknown", queue=say(f"recovery.{part}")), ())
    again_s = given.number(SPANS[part][0])
    values = [Value(f"{part}.events", n, "events"), Value(f"{part}.done", seen.done, "events")]
    if before is not None:
        values.append(Value(f"{part}.p95_window", round(before, 2), "s"))
    value = given.limits.value(name, seen.p95)
    troubled, status = False, Status.OK
    if not n:
        key = "recovery.sli_idle"
    elif seen.done < given.number("p95.in_time") * n:
        # More than 5 % of the events are not finished, so their p95 is above any measured delay.
        troubled, key = True, "recovery.sli_recovering" if turned else "recovery.sli_missing"
        status = Status.CRITICAL if seen.done < n / 2 and not turned else Status.WARNING
    else:
        # Late events leave the percentile gradually: above the limit, but better than before, is a recovery.
        better = before is not None and seen.p95 is not None and seen.p95 < before
        recovering = value.status is Status.CRITICAL and (better or turned)
        troubled = value.status is not Status.OK
        key = "recovery.sli_slow" if troubled else "recovery.sli_well"
        status = Status.WARNING if recovering else value.status or Status.OK
        values.append(replace(value, threshold=None) if recovering else value)
    if troubled and turned:
        values.append(Value(f"{part}.{LOOK_AGAIN}", again_s, "s"))
    facts = {
        "part": say(f"recovery.{part}"),
        "n": n,
        "done": seen.done,
        "p95": seen.p95,
        "before": before,
        "limit": limit.critical,
        "again": again_s,
    }
    return QueueState(status, say(key, **facts), tuple(values))


# 6.5 --------------------------------------------------------------------------------------------------------


def collect_duplicates(rb: Context) -> Frames:
    """Read the events with several notifications, and the notifications beyond the changes.

    Frames: duplicates, surplus.
    """
    parts = FrameCollector()
    with rb.snapshot() as db:
        parts.ask(db, {"duplicates": "consistency/duplicates", "surplus": missing.Surplus.QUERY})
    return parts.frames()


def judge_duplicates(frames: Frames, given: JudgeInput) -> Finding:
    """Decide whether events or changes have more than one notification, and whether new duplicates still occur."""
    found, surplus = frames["duplicates"], missing.judge_surplus(frames, given)
    newest = seconds_between(found["last"].max() if len(found) else None, given.as_of)
    still = newest is not None and newest < 60
    own = say("recovery.duplicates" if len(found) else "recovery.no_duplicates", n=len(found), ago=newest)
    told = (own, *surplus.notes) if len(found) or not surplus.notes else surplus.notes
    return judged(
        told[0],
        [Value("duplicates", len(found), "events"), *surplus.values],
        at_least=worst(
            [
                Status.CRITICAL if still or surplus.goes_on(given) else Status.OK,
                Status.WARNING if len(found) or surplus.notes else Status.OK,
            ]
        ),
        notes=told[1:],
        signals=(
            *(given.evidence("duplicates.doubled_now" if still else "duplicates.doubled") if len(found) else ()),
            *surplus.signals,
        ),
        show=("duplicates", *(("surplus",) if surplus.notes else ())),
    )


def collect_lost(rb: Context) -> Frames:
    """Read the events of the window that were lost after the broker; 5.3.2 has older ones. Frames: those of 5.3.2."""
    return consistency.collect_lost(rb, day=False)


#: The possible side effects of a recovery, part by part.
SIDE_EFFECTS = {
    "duplicates": Check("6.5", collect_duplicates, judge_duplicates, needs=("duplicates",)),
    "lost": replace(consistency.LOST, step="6.5", collect=collect_lost),
    "sent": replace(consistency.SENT, step="6.5", collect=collector(dirty="consistency/sent_dirty_rows")),
    "halves": replace(consistency.HALVES, step="6.5"),
    "letters": replace(consistency.DEAD_LETTERS, step="6.5"),
    "locks": replace(consistency.LOCKS, step="6.5"),
    "broker": replace(scope.BROKER, step="6.5", on_error=None),
}


def collect_side_effects(rb: Context) -> Frames:
    """6.5: read all parts of `SIDE_EFFECTS`. Frames: those of the parts, as "part.frame"."""
    return collect_each(rb, SIDE_EFFECTS)


def judge_side_effects(frames: Frames, given: JudgeInput) -> Finding:
    """6.5: decide whether the recovery had side effects, and whether all clients are connected again."""
    found = judge_each(frames, given, SIDE_EFFECTS)
    bad = {name: f for name, f in found.items() if f.status is not Status.OK and f.counts}
    first = max(bad.values(), key=lambda f: f.status.rank, default=None)
    consumers = len(frames.get("broker.consumers", ())) if found["broker"].counts else None
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
        first.headline if first else say("recovery.nothing_new", minutes=given.window_minutes, consumers=consumers),
        values,
        at_least=worst(f.status for f in found.values() if f.counts),
        reason=first.reason if first else None,
        notes=tuple(f.headline for f in bad.values() if f is not first)
        + tuple(say("recovery.not_seen", what=f.headline) for f in found.values() if not f.counts),
        signals=tuple(s for f in bad.values() for s in f.signals),
        next_sections=("5.3",) if set(bad) - {"broker"} else (),
        show=tuple(f"{name}.{frame}" for name, f in bad.items() for frame in f.show),
    )


BACKLOG = Check("6.1", collect_backlog, judge_backlog, (chart_flows,))
ERRORS = Check("6.2", collect_errors, judge_errors)
CHECKS: tuple[Check, ...] = (
    BACKLOG,
    ERRORS,
    Check("6.3", collect_dead_letters, judge_dead_letters, needs=("letters",)),
    Check("6.4", collect_slis, judge_slis, optional=("outbox_before", "delivery_before")),
    Check("6.5", collect_side_effects, judge_side_effects),
)
