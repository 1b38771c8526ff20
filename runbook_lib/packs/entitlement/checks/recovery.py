"""Section 6: is it over? Judged by what happens now; what an incident left in the window keeps nothing red."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

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
from runbook_lib.model.frames import amount, one, table
from runbook_lib.packs.entitlement.checks import consistency, scope
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: Flows are counted in buckets of ten seconds, back from the moment of the run, for at most this long.
BUCKET_S = 10
LOOKBACK = pd.Timedelta(minutes=15)
#: A recovery shows first in what left in the last 4 s (a poll, a batch and a poll), and that nothing failed for 2 s.
NOW_S, NOW_FAILED_S = 4, 2
#: How unlikely it must be that tries which failed as often as before had all succeeded.
CHANCE = 0.01
#: "Now" for a flow test, and for whether tries succeed.
MINUTE, RECENT = 6, 2
#: A dead-letter series is over when nothing came for three of its usual gaps, within these bounds.
GAPS, QUIET_S, LONGEST_QUIET_S = 3, 15.0, 300.0
#: Ten tries take 365 s at most, so what was created before this failed before a while ago.
LONGEST_TRIES_S = 420.0
#: Events of these seconds ago should have gone through by now.
PUBLISH_SPAN_S, DELIVERY_SPAN_S = (15, 4), (30, 10)
#: What is tried, the queue that it is tried from, and the flows of that queue.
TRIED = {"delivery": ("notifications", "notification_flows"), "publish": ("outbox", "outbox_flows")}
#: A p95 allows one event of twenty to be late.
IN_TIME = 0.95


def _begin(rb: Context) -> pd.Timestamp:
    return max(rb.since, rb.as_of - LOOKBACK)


def _flows(rb: Context, db: Snapshot) -> Frames:
    """Both queues now, and what came and went, in buckets."""
    since = _begin(rb)
    sent = db.try_ask("recovery/notification_flows", since=since, created_since=since - pd.Timedelta(hours=6))
    if sent is None:
        sent = db.ask("recovery/notification_flows", since=since, created_since=since - pd.Timedelta(hours=1))
    return {
        "notifications": db.ask("notifications/backlog"),
        "outbox": db.ask("outbox/backlog"),
        "notification_flows": sent,
        "outbox_flows": db.ask("recovery/outbox_flows", since=since),
    }


def counts(frame: pd.DataFrame | None, column: str, buckets: int, skip: int = 0) -> float:
    """What was counted in the newest buckets, leaving out the newest `skip`."""
    if frame is None or not {"tens_ago", column} <= set(frame.columns):
        return 0.0
    near = frame["tens_ago"].between(skip, skip + buckets - 1)
    return float(pd.to_numeric(frame.loc[near, column]).sum())


def _again(seconds: float) -> float:
    """When a look is worth while: not at once, and not never."""
    return float(min(max(round(seconds), 5), 60))


# 6.1 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Queue:
    """One queue's answer to "is it falling?"."""

    status: Status
    text: Text
    values: tuple[Value, ...]


def collect_backlog(rb: Context) -> Frames:
    """6.1: both backlogs and their flows."""
    with rb.snapshot() as db:
        return _flows(rb, db)


def judge_backlog(frames: Frames, given: Given) -> Finding:
    """6.1: is the backlog falling, and when will it be empty?"""
    queues = {
        "notifications": _queue(frames, given, "notifications", "notification_flows", "backlog.oldest_due"),
        "outbox": _queue(frames, given, "outbox", "outbox_flows", "outbox.oldest_due"),
    }
    status = worst(q.status for q in queues.values())
    return judged(
        say("recovery.both", a=queues["notifications"].text, b=queues["outbox"].text),
        [v for q in queues.values() for v in q.values],
        at_least=status,
        reason=Reason.NO_DATA,
        notes=(say("recovery.flows_note"),),
        hops=(
            _hop("relay", frames, "outbox", "outbox_flows", queues["outbox"]),
            _hop("delivery_worker", frames, "notifications", "notification_flows", queues["notifications"]),
        ),
    )


def _queue(frames: Frames, given: Given, name: str, flows_name: str, age_limit: str) -> Queue:
    now, flows = one(frames.get(name)), frames.get(flows_name)
    if not now or flows is None:
        return Queue(Status.UNKNOWN, say("recovery.queue_unknown", queue=say(f"recovery.{name}")), ())
    due = amount(now, "due") + amount(now, "expired")
    oldest = max(amount(now, "oldest_due_s"), amount(now, "oldest_expired_s")) if due else 0.0
    limits = given.limits
    small = limits["backlog.due"].status(due) is Status.OK and limits[age_limit].status(oldest) is Status.OK
    seen: dict[str, Any] = {"queue": say(f"recovery.{name}"), "due": due, "oldest": oldest}
    values = [Value(f"{name}.due", due, "rows"), Value(f"{name}.oldest_due", oldest, "s")]
    values += [Value(f"{name}.{c}", counts(flows, c, 1), "rows") for c in ("arrived_now", "gone_now")]
    if small:
        return Queue(Status.OK, say("recovery.queue_empty", **seen), tuple(values))

    tests = {
        minutes: stats.flow_test(
            counts(flows, "arrived", minutes * MINUTE), counts(flows, "gone", minutes * MINUTE), minutes, due
        )
        for minutes in (1, 5)
    }
    # The last minute decides; five of them where one is too short to tell.
    minutes = 1 if tests[1].verdict in ("draining", "filling") else 5
    test = tests[minutes]
    if test.verdict == "filling" and minutes == 5:
        test = tests[minutes := 1]  # five minutes that filled say nothing of the last one
    gone = counts(flows, "gone", minutes * MINUTE)
    seen |= {
        "minutes": minutes,
        "came": counts(flows, "arrived", minutes * MINUTE),
        "gone": gone,
        "net": test.net_per_min,
        "eta": test.eta_min,
    }
    turned = stats.flow_test(counts(flows, "arrived_now", 1), counts(flows, "gone_now", 1), NOW_S / 60, due)
    if test.verdict == "draining":
        status, text = Status.OK, say("recovery.queue_draining", **seen)
    elif turned.eta_min is not None:
        eta = 60 * turned.eta_min
        values.append(Value(f"{name}.{LOOK_AGAIN}", _again(eta), "s"))
        seen |= {"net": turned.net_per_min, "eta": eta, "again": _again(eta), "now": NOW_S}
        status, text = Status.WARNING, say("recovery.queue_recovering", **seen)
    elif test.verdict == "filling":
        status, text = Status.CRITICAL, say("recovery.queue_filling", **seen)
    elif not gone:
        stuck = limits[age_limit].status(oldest)
        status, text = worst([Status.WARNING, stuck]), say("recovery.queue_still", **seen)
    else:
        status, text = Status.WARNING, say("recovery.queue_unclear", **seen)
    values.append(
        Value(f"{name}.drain_z", round(test.z, 2), "ratio", None if status is Status.OK else limits["drain.z"])
    )
    return Queue(status, text, tuple(values))


def _hop(hop: str, frames: Frames, name: str, flows_name: str, queue: Queue) -> Hop:
    now, flows = one(frames.get(name)), frames.get(flows_name)
    if not now or flows is None:
        return Hop(hop)
    return Hop(
        hop,
        rate_in=counts(flows, "arrived", MINUTE),
        rate_out=counts(flows, "gone", MINUTE),
        waiting=amount(now, "due") + amount(now, "expired"),
        oldest_s=max(amount(now, "oldest_due_s"), amount(now, "oldest_expired_s")),
        late=queue.status is not Status.OK and not any(v.name.endswith(LOOK_AGAIN) for v in queue.values),
    )


def draw_flows(frames: Frames, given: Given) -> charts.Chart | None:
    """What was written, published and sent, in steps of ten seconds."""
    outbox, sent = frames.get("outbox_flows"), frames.get("notification_flows")
    if outbox is None or sent is None or (outbox.empty and sent.empty):
        return None
    longest = int(min(LOOKBACK, pd.Timedelta(minutes=given.window_minutes)).total_seconds() // BUCKET_S)
    ago, highest = np.arange(longest), 0.0
    figure, ax = charts.axes("Written, published, sent", "events / min", "minutes before the run")
    for frame, column, colour, line, label in (
        (outbox, "arrived", charts.GREY, "-", "written to the outbox"),
        (outbox, "gone", charts.BLUE, ":", "published"),
        (sent, "gone", charts.GREEN, "--", "sent"),
    ):
        rate = [counts(frame, column, 1, int(i)) * 60 / BUCKET_S for i in ago]
        ax.step(-(ago + 0.5) * BUCKET_S / 60, rate, where="mid", color=colour, linestyle=line, label=label)
        highest = max(highest, *rate)
    ax.set_xlim(-longest * BUCKET_S / 60, 0)
    ax.set_ylim(0, 1.3 * max(highest, 1.0))
    ax.legend(loc="upper left", fontsize=8, frameon=False, ncols=3)
    return charts.Chart(
        figure,
        say(
            "recovery.alt_flows",
            written=counts(outbox, "arrived", MINUTE),
            published=counts(outbox, "gone", MINUTE),
            sent=counts(sent, "gone", MINUTE),
            minutes=longest * BUCKET_S / 60,
        ),
        (say("recovery.flows_note"),),
    )


# 6.2 --------------------------------------------------------------------------------------------------------


def collect_errors(rb: Context) -> Frames:
    """6.2: tries that failed and tries that succeeded in the last seconds."""
    with rb.snapshot() as db:
        frames = _flows(rb, db) | {
            "tries": db.ask("recovery/failed_tries", tried_since=rb.as_of - pd.Timedelta(seconds=RECENT * BUCKET_S))
        }
        letters = db.try_ask("recovery/dead_letters", since=_begin(rb))
        if letters is not None:
            frames["letters"] = letters
        return frames


def judge_errors(frames: Frames, given: Given) -> Finding:
    """6.2: is the error rate back under its norm, by the tries of the last twenty seconds?"""
    tries = frames.get("tries")
    if tries is None or not one(frames.get("notifications")):
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
    tries = table(frames, "tries", "part").set_index("part")
    seen = {str(k): v for k, v in tries.loc[part].items()} if part in tries.index else {}
    queue, flows = TRIED[part]
    now = one(frames.get(queue))
    letters = table(frames, "letters", "kind", "tens_ago", "n")
    # Only the delivery worker's dead letters were tried; what the relay gave up has no time.
    given_up = counts(letters[letters["kind"] == part], "n", RECENT)
    failed, succeeded = amount(seen, "failed") + given_up, counts(frames.get(flows), "gone", RECENT)
    waiting, again = amount(seen, "waiting"), amount(seen, "due_again")
    rate = 100 * failed / (failed + succeeded) if failed + succeeded else None
    now_failed, now_succeeded = amount(seen, "failed_now"), counts(frames.get(flows), "gone_now", 1)
    facts = {"part": say(f"recovery.{part}"), "rate": rate, "failed": failed, "of": failed + succeeded,
             "since": NOW_FAILED_S, "now": NOW_S, "succeeded": now_succeeded, "again": RECENT * BUCKET_S}  # fmt: skip
    recovering = (
        rate is not None
        and given.limits["errors.rate"].status(rate) is not Status.OK
        and not now_failed
        and (1 - rate / 100) ** now_succeeded < CHANCE
    )
    if recovering:
        status, text = Status.WARNING, say("recovery.errors_recovering", **facts)
    elif rate is not None:
        status = given.limits["errors.rate"].status(rate)
        text = say("recovery.errors_some" if failed else "recovery.errors_none", **facts)
    elif again or amount(now, "due") + amount(now, "expired") > 0:
        # Something should have been tried, and nothing came of it.
        status, text = Status.WARNING, say("recovery.errors_unknown", **facts)
    else:
        status, text = Status.OK, say("recovery.errors_idle", **facts)
    shown = Value(f"errors.{part}", None, "%")
    if rate is not None:
        limit = given.limits.value("errors.rate", rate)
        shown = replace(limit, name=f"errors.{part}", threshold=None if recovering else limit.threshold)
    values = [shown, Value(f"{part}.waiting_retry", waiting, "rows"), Value(f"{part}.failed_now", now_failed, "rows")]
    values += [Value(f"{part}.{LOOK_AGAIN}", float(RECENT * BUCKET_S), "s")] if recovering else []
    return Queue(status, text, tuple(values))


# 6.3 --------------------------------------------------------------------------------------------------------


def collect_dead_letters(rb: Context) -> Frames:
    """6.3: when dead letters came, and when the relay last gave an event up."""
    with rb.snapshot() as db:
        return {
            "letters": db.ask("recovery/dead_letters"),
            "outbox_failed": db.ask("recovery/outbox_failed"),
        }


def judge_dead_letters(frames: Frames, given: Given) -> Finding:
    """6.3: have dead letters and FAILED stopped growing?"""
    letters, outbox = frames.get("letters"), one(frames.get("outbox_failed"))
    if letters is None or not {"kind", "tens_ago", "n"} <= set(letters.columns):
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="recovery/dead_letters"))
    found, silence, gap = _series(letters, given)
    needed = min(max(gap, QUIET_S), LONGEST_QUIET_S) if found else 0.0
    failed = int(amount(outbox, "n"))
    failed_s = seconds_between(outbox.get("last_failed"), given.as_of)
    if failed and failed_s is None:
        # Without commit times only a bound is known: it was created, tried ten times, and given up.
        created_s = seconds_between(outbox.get("newest"), given.as_of) or 0.0
        outbox_quiet = created_s > LONGEST_TRIES_S + QUIET_S
    else:
        outbox_quiet = not failed or (failed_s or 0.0) >= QUIET_S
    minute = counts(letters, "n", MINUTE)
    before = counts(letters, "n", 10_000, MINUTE)
    span = max(given.window_minutes - 1, 1)
    growing = minute >= 2 and minute >= before / span
    quiet = not found or silence >= needed
    # Silent for longer than chance would have it, but not yet for as long as it takes to call it over.
    recovering = not quiet and silence >= max(gap, NOW_S) and outbox_quiet
    again = _again(needed - silence)
    facts = {"n": found, "minute": minute, "silence": silence, "minutes": given.window_minutes, "failed": failed,
             "again": again}  # fmt: skip
    if quiet and outbox_quiet:
        status = Status.OK
        headline = say("recovery.letters_over" if found else "recovery.letters_none", **facts)
    elif recovering:
        status, headline = Status.WARNING, say("recovery.letters_recovering", **facts)
    elif not quiet:
        status = Status.CRITICAL if growing else Status.WARNING
        headline = say("recovery.letters_growing" if growing else "recovery.letters_recent", **facts)
    else:
        status = Status.WARNING
        headline = say("recovery.outbox_growing", **facts)
    notes = []
    if failed:
        notes.append(say("recovery.outbox_stays", n=failed))
    if found:
        notes.append(say("recovery.letters_stay", n=found))
    return judged(
        headline,
        [
            Value("dlq.new", found, "rows"),
            Value("dlq.new_last_minute", minute, "rows"),
            Value("dlq.since_last", silence if found else None, "s"),
            Value("dlq.quiet_needed", needed if found else None, "s"),
            Value("outbox.failed_total", failed, "rows"),
            Value("outbox.since_last_failed", failed_s, "s"),
            *([Value(LOOK_AGAIN, again, "s")] if recovering else []),
        ],
        at_least=status,
        notes=tuple(notes),
    )


def _series(letters: pd.DataFrame, given: Given) -> tuple[int, float, float]:
    """How many dead letters, seconds since the last, and the silence that is no chance: three of their usual gaps."""
    if letters.empty:
        return 0, 0.0, 0.0
    found = int(pd.to_numeric(letters["n"]).sum())
    last = pd.to_datetime(letters["last"], utc=True).max() if "last" in letters else None
    known = seconds_between(last, given.as_of)
    silence = float(letters["tens_ago"].min()) * BUCKET_S if known is None else known
    extent = float(letters["tens_ago"].max() - letters["tens_ago"].min()) * BUCKET_S
    return found, silence, GAPS * extent / max(found - 1, 1)


# 6.4 --------------------------------------------------------------------------------------------------------


def collect_slis(rb: Context) -> Frames:
    """6.4: what became of the newest events that should be through, and how it was before."""

    def ago(seconds: int) -> pd.Timestamp:
        return rb.as_of - pd.Timedelta(seconds=seconds)

    with rb.snapshot() as db:
        frames = {
            "publish": db.ask("sli/outbox_cohort", since=ago(PUBLISH_SPAN_S[0]), until=ago(PUBLISH_SPAN_S[1])),
            "accepted": db.ask("sli/outbox_cohort", since=ago(DELIVERY_SPAN_S[0]), until=ago(DELIVERY_SPAN_S[1])),
            "delivery": db.ask("sli/delivery_cohort", since=ago(DELIVERY_SPAN_S[0]), until=ago(DELIVERY_SPAN_S[1])),
            "outbox_before": db.ask("outbox/delay"),
        }
        before = db.try_ask("sli/delivered")
        if before is not None:
            frames["delivery_before"] = before
        return frames


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
    publish, accepted, delivery = (one(frames.get(n)) for n in ("publish", "accepted", "delivery"))
    if not publish or not accepted or not delivery:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="sli/outbox_cohort"))
    # An event that never reached the notifications counts as one that was not delivered.
    expected = max(amount(accepted, "n"), amount(delivery, "n"))
    rows = [
        ("publish", "outbox.publish_delay_p95", amount(publish, "n"), publish, "outbox_before", PUBLISH_SPAN_S[0]),
        ("delivery", "delivery.e2e_p95", expected, delivery, "delivery_before", DELIVERY_SPAN_S[0]),
    ]
    turned = {"publish": _turned(given, "outbox", "publish"), "delivery": _turned(given, "notifications", "delivery")}
    values, texts, statuses = [], [], []
    for part, limit, n, seen, past, span_s in rows:
        done, p95 = amount(seen, "done"), seen.get("p95")
        before = one(frames.get(past)).get("p95")
        facts = {
            "part": say(f"recovery.{part}"),
            "n": n,
            "done": done,
            "p95": p95,
            "before": before,
            "limit": given.limits[limit].critical,
            "again": span_s,
        }
        again = [Value(f"{part}.{LOOK_AGAIN}", float(span_s), "s")]
        values.append(Value(f"{part}.events", n, "events"))
        values.append(Value(f"{part}.done", done, "events"))
        if before is not None:
            values.append(Value(f"{part}.p95_window", round(float(before), 2), "s"))
        if not n:
            statuses.append(Status.OK)
            texts.append(say("recovery.sli_idle", **facts))
            continue
        if done < IN_TIME * n:
            # More than one in twenty is still on its way: their p95 is worse than any that can be measured.
            critical = done < n / 2 and not turned[part]
            statuses.append(Status.CRITICAL if critical else Status.WARNING)
            texts.append(say("recovery.sli_recovering" if turned[part] else "recovery.sli_missing", **facts))
            values += again if turned[part] else []
            continue
        value = given.limits.value(limit, None if p95 is None else float(p95))
        # Late events leave the percentile only by and by: over the limit, but better than before, is a recovery.
        better = before is not None and float(p95 or 0) < float(before)
        recovering = value.status is Status.CRITICAL and (better or turned[part])
        statuses.append(Status.WARNING if recovering else value.status or Status.OK)
        texts.append(say("recovery.sli_well" if value.status is Status.OK else "recovery.sli_slow", **facts))
        values.append(replace(value, threshold=None) if recovering else value)
        values += again if value.status is not Status.OK and turned[part] else []
    return judged(
        say("recovery.both", a=texts[1], b=texts[0]),
        values,
        at_least=worst(statuses),
        notes=(say("recovery.sli_note"),),
    )


# 6.5 --------------------------------------------------------------------------------------------------------


def collect_duplicates(rb: Context) -> Frames:
    """Events of the window with more than one notification."""
    with rb.snapshot() as db:
        return {"duplicates": db.ask("consistency/duplicates")}


def judge_duplicates(frames: Frames, given: Given) -> Finding:
    """One event, two notifications: still being made, or left by what is over?"""
    found = frames.get("duplicates")
    if found is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="consistency/duplicates"))
    newest = seconds_between(found["last"].max() if len(found) else None, given.as_of)
    still = newest is not None and newest < MINUTE * BUCKET_S
    return judged(
        say("recovery.duplicates" if len(found) else "recovery.no_duplicates", n=len(found), ago=newest),
        [Value("duplicates", len(found), "events")],
        at_least=Status.CRITICAL if still else Status.WARNING if len(found) else Status.OK,
        show=("duplicates",),
    )


def collect_lost(rb: Context) -> Frames:
    """Events of the window without a trace behind the broker; older ones are 5.3.2's."""
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
    """6.5: all of `SIDE_EFFECTS`."""
    return collect_each(rb, SIDE_EFFECTS)


def judge_side_effects(frames: Frames, given: Given) -> Finding:
    """6.5: has the recovery caused anything new, and did the connections really come back?"""
    found = judge_each(frames, given, SIDE_EFFECTS)
    bad = {name: f for name, f in found.items() if f.status is not Status.OK and f.counts}
    first = max(bad.values(), key=lambda f: f.status.rank, default=None)
    values = [
        Value("duplicates", found["duplicates"].value("duplicates"), "events"),
        Value("lost", found["lost"].value("integrity.lost"), "events"),
        Value("sent_dirty", found["sent"].value("integrity.rows"), "rows"),
        Value("half_processed", found["halves"].value("integrity.rows"), "rows"),
        Value("dead_letters_apart", found["letters"].value("integrity.rows"), "rows"),
        Value("locks_left", found["locks"].value("integrity.rows"), "rows"),
        Value("clients_connected", found["broker"].value("broker.clients")),
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
