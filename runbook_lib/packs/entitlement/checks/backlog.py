"""4.1.1: the delivery backlog, its age, and the state of the delivery worker."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.checks.cases import Case, Cases
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.checks.sample import FIRST
from runbook_lib.diagnosis import history
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    HopHistory,
    Proposal,
    Signal,
    Status,
    Text,
    Value,
    judged,
    say,
    worst,
)
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.actions.restart import find_competing_workers
from runbook_lib.packs.entitlement.checks import delivery, past, program
from runbook_lib.packs.entitlement.checks.series import ask_given_up
from runbook_lib.packs.entitlement.evidence import receiver
from runbook_lib.packs.entitlement.rows import Activity, Attempts, HeldRow, Notifications
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


class OlderCount(rows.Row, query="notifications/older_than_10min"):
    """The seed runbook's count of rows created more than ten minutes ago."""

    count: float = 0.0


@dataclass(frozen=True)
class BacklogReading:
    """The state that the cases of 4.1.1 decide on.

    `given_up` is the number of rows given up recently; `send_succeeded` tells whether a send succeeded after the newest
    of them. `stopping`, `refusing`, `spends` (what a late worker spends its time on) and `receiver` (the runbook's
    own request to it, unless its moment is another) are observation names, "" for none. `workers` are two workers
    that claim rows at the same time. `loop_ran` tells whether the delivery loop ran; `late`, whether a due row has
    waited too long. `postponed` are the rows that wait for a retry time untried. `throttled`: its settings already
    let through no more than the throttle.
    `accepts_again`: the receiver answered the runbook, and a send has succeeded since the samples without one.
    """

    worker: delivery.Delivery
    given_up: float
    send_succeeded: bool
    stopping: str
    refusing: str
    loop: program.LoopState
    workers: tuple[str, ...]
    loop_ran: bool
    late: bool
    spends: str = ""
    postponed: int = 0
    receiver: str = ""
    throttled: bool = False
    accepts_again: bool = False


def collect(rb: Context) -> Frames:
    """Collect the backlog by status, the seed runbook's count of older rows, and the history of the window.

    Evidence of the process comes from `program.ask`. While tries fail, the receiver itself is asked.

    Frames: those of `delivery.collect`, `delivery.collect_first` and `receiver.probe`; activity_after (as activity,
    after the receiver has answered); ages; older_than_10min, letters and that of `past.ask` where cheap; by_status
    (status: text, count: text, an estimate begins with ≈).
    """
    first, parts = delivery.collect_first(rb, "4.1.1"), ask_tables(rb)
    frames = parts.answers
    frames |= first
    late = rb.catalog.limits["delivery.silence"].reached(rows.one(frames["backlog"], Notifications).oldest_s)
    # A second `locked_by` is an instance that has ended or a second worker: `program.ask` tells which.
    late = late or len({h.locked_by for h in rows.each(frames["held"], HeldRow)}) > 1
    worker = delivery.read_delivery(frames)
    program.ask(rb, "4.1.1", parts, "delivery", late, at_work=worker.finishes(rb.given()))
    if worker.tried:
        frames |= receiver.probe(rb)
        if receiver.observation(frames) == "receiver.answers":
            # Both may speak of different moments: it may accept again what failed just now.
            time.sleep(program.cycle_s(rb))
            with parts.part("activity_after") as answers, rb.of("").snapshot() as db:
                answers["activity_after"] = db.ask(Activity.QUERY)
    return parts.frames()


def ask_tables(rb: Context) -> FrameCollector:
    """Ask the tables for what 4.1.1 reads of the second moment. Raises SourceError."""
    parts = FrameCollector()
    frames = parts.answers
    with rb.snapshot() as db:
        frames |= delivery.collect(rb, db)
        ask_given_up(rb, db, parts, "letters", since=rb.since)
        if not rb.brief:
            frames |= {name: db.ask(f"notifications/{name}") for name in ("by_status", "ages")}
            parts.ask(db, {"older_than_10min": OlderCount.QUERY})
            frames["by_status"] = _format_counts_by_status(frames["by_status"])
            frames |= past.ask(rb, db, past.window(rb.given()), ["notifications"])
    return parts


def _format_counts_by_status(counted: pd.DataFrame) -> pd.DataFrame:
    """Return `status, count`: an estimate, as that of SENT, begins with ≈."""
    shown = [f"{n:,}" if exact else f"≈ {n:,}" for n, exact in zip(counted["n"], counted["exact"], strict=True)]
    return pd.DataFrame({"status": counted["status"], "count": shown})


def judge(frames: Frames, given: JudgeInput) -> Finding:
    """4.1.1: judge the age of due rows, and whether the worker or the receiver causes it."""
    seen = _read_backlog(frames, given)
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
    if (older := rows.first(frames.get("older_than_10min"), OlderCount)) is not None:
        values.append(Value("runbook.older_than_10min", older.count, "rows"))
    notes = [*_build_notes(frames), *worker.notes(given)]
    if not (seen.loop_ran or seen.late or seen.stopping or seen.refusing or seen.workers or seen.loop.wrong):
        again, note = worker.may_hang(given)
        values, notes = [*values, again], [*notes, note]
    found, stopped = CASES.of(seen), seen.stopping or seen.loop.wrong or seen.workers
    return judged(
        found.headline(
            due=queue.ready,
            oldest=queue.oldest_s,
            silence=worker.silence_s,
            waiting=queue.waiting_retry,
            tried=worker.tried,
            given_up=seen.given_up,
            leased=queue.leased,
            sent=worker.activity.sent_1m,
            **vars(worker.use) | {"waits_for": worker.use.waits_for or None, "outside": worker.use.outside},
            finished=worker.finished,
            seconds=worker.apart_s or given.number("looks.apart"),
            who=", ".join(seen.workers),
            postponed=seen.postponed,
            strays=queue.strays or None,
            states=queue.stray_states,
            others=seen.loop.others,
            failed=worker.tried or None,
            receiver=receiver.describe(frames),
        ),
        values,
        at_least=worst([found.status, seen.loop.status, Status.WARNING if seen.workers else Status.OK]),
        notes=tuple(notes),
        signals=tuple(_weigh_reading(seen, given)),
        hops=_build_hops(seen, _read_history(frames, given)),
        proposals=found.proposals(given),
        next_sections=("4.3", "5.1") if stopped else ("4.4", "5.2") if seen.refusing else (),
        show=("by_status", "attempts") if worker.tried else ("by_status",),
        decision=found.decision,
    )


def _read_backlog(frames: Frames, given: JudgeInput) -> BacklogReading:
    worker = delivery.read_delivery(frames)
    stopping, refusing = worker.stopping(given), worker.refusing(given)
    given_up, send_succeeded = _count_given_up(frames, given, worker)
    if given_up >= given.number("tries.pattern") and not stopping and not send_succeeded:
        refusing = refusing or "delivery.gave_up"
    known = rows.one(frames.get("program"), program.Program)
    accepts_again = not (worker.accepted or worker.finishes(given)) and _accepts_again(frames)
    if accepts_again:
        stopping = refusing = ""
    spends = "" if stopping or refusing else worker.spends(given)
    return BacklogReading(
        worker,
        given_up,
        send_succeeded,
        stopping,
        refusing,
        program.with_due_rows(program.loop_state(frames, given, "delivery"), stopping == "delivery.stopped"),
        find_competing_workers(known.started, frames.get("held"), frames.get(f"{FIRST}held")),
        bool(worker.moved) or program.seen_running(frames, given, "delivery"),
        bool(given.limits["backlog.oldest_due"].reached(worker.queue.oldest_s)),
        spends,
        sum(row.postponed for row in rows.each(frames.get("attempts"), Attempts)),
        "" if accepts_again or "activity_after" in failures(frames) else receiver.observation(frames),
        program.is_throttled(frames, given),
        accepts_again,
    )


def _accepts_again(frames: Frames) -> bool:
    """Return whether a send has succeeded since the samples."""
    after = rows.one(frames.get("activity_after"), Activity).last_sent
    before = [rows.one(frames.get(name), Activity).last_sent for name in (f"{FIRST}activity", "activity")]
    return after is not None and after > max(filter(None, before), default=pd.Timestamp.min.tz_localize("UTC"))


def _count_given_up(frames: Frames, given: JudgeInput, worker: delivery.Delivery) -> tuple[float, bool]:
    """Return how many rows were given up recently, and whether a send succeeded after the newest of them."""
    since = (given.as_of - pd.Timedelta(minutes=given.number("dlq.recent"))).floor("min")
    letters = history.counts(frames.get("letters"))
    letters = letters[(letters.index >= since) & (letters > 0)]
    sent = worker.activity.last_sent
    after = sent is not None and (letters.empty or sent >= letters.index.max() + history.MINUTE)
    return float(letters.sum()), after or worker.finishes(given)


def _build_notes(frames: Frames) -> list[Text]:
    estimated = any("≈" in str(count) for count in table(frames, "by_status", "count")["count"])
    return [
        *([say("backlog.sent_is_estimated")] if estimated else []),
        *([say("backlog.older_mixes")] if "older_than_10min" in frames else []),
    ]


def _weigh_reading(seen: BacklogReading, given: JudgeInput) -> list[Signal]:
    others = (
        "leases.two_workers" if seen.workers else "",
        "backlog.postponed" if seen.postponed or seen.worker.queue.strays else "",
    )
    observed = (*seen.loop.observations, seen.stopping, seen.refusing, seen.receiver, seen.spends, *others)
    found = [*given.evidence_of(filter(None, observed))]
    if seen.stopping in delivery.STOPPED_OBSERVATIONS:
        found += given.evidence("backlog.nothing_is_tried")
    elif seen.refusing and not seen.stopping:
        # While some sends succeed, those that fail may all be the other worker's.
        some = seen.refusing == "delivery.refused_some" or seen.worker.finishes(given)
        found += given.evidence("backlog.refused_elsewhere" if seen.loop.others and some else "backlog.only_refused")
    if seen.given_up:
        # After a later send succeeded, they are the rest of a failure that is over.
        many = seen.given_up >= given.number("tries.pattern") and not seen.send_succeeded
        found += given.evidence("backlog.given_up" if many else "backlog.few_given_up")
    if not seen.stopping and not seen.refusing and not seen.loop.wrong and seen.worker.finishes(given):
        found += given.evidence("backlog.sends")
    if seen.accepts_again:
        found += given.evidence("backlog.accepts_again")
    return found


def _read_history(frames: Frames, given: JudgeInput) -> HopHistory | None:
    return past.hop_history(frames, given, "notifications", given.limits["backlog.due"].warning)


def _build_hops(seen: BacklogReading, history: HopHistory | None) -> tuple[Hop, ...]:
    queue, activity = seen.worker.queue, seen.worker.activity
    return (
        Hop(
            "delivery_worker",
            rate_in=activity.arrived_1m,
            rate_out=activity.sent_1m,
            waiting=queue.ready,
            oldest_s=queue.oldest_s,
            alive=say("alive.silent", s=seen.worker.silence_s) if seen.stopping else activity.workers or None,
            late=seen.late,
            past=history,
        ),
        Hop(
            "receiver",
            rate_out=activity.sent_1m,
            waiting=queue.waiting_retry,
            alive=say("alive.sends_fail") if seen.refusing else None,
        ),
    )


def _propose_logs(given: JudgeInput, seen: BacklogReading) -> tuple[Proposal, ...]:
    return (proposals.logs(given, "notification"),)


def _propose_hold(given: JudgeInput, seen: BacklogReading) -> tuple[Proposal, ...]:
    """Propose to hold delivery if no send succeeds and rows are about to use up their tries."""
    runs_out = seen.given_up or max(seen.worker.tries, default=0) >= given.number("tries.last")
    accepts = seen.worker.finishes(given) or seen.worker.accepted
    return (remedies.hold_delivery(given),) if runs_out and not accepts else ()


CASES = Cases[BacklogReading](
    Case(
        "backlog.not_at_work",
        lambda seen: seen.loop.wrong,
        propose=lambda given, seen: program.proposals(given, seen.loop),
        says=lambda seen, facts: seen.loop.headline(**facts),
    ),
    # The worker itself has stopped, as opposed to waiting for the receiver.
    Case(
        "backlog.stopped",
        lambda seen: seen.stopping in delivery.STOPPED_OBSERVATIONS or (seen.stopping and not seen.refusing),
        propose=lambda given, seen: (proposals.restart(given, "notification"),),
    ),
    # The tries that fail may be its own.
    Case(
        "backlog.elsewhere",
        lambda seen: seen.loop.others,
        Status.WARNING,
        propose=lambda given, seen: program.proposals(given, seen.loop),
    ),
    # Throttling would not help the few that the receiver refuses.
    Case("backlog.refused_some", lambda seen: seen.refusing == "delivery.refused_some", propose=_propose_logs),
    Case(
        "backlog.refused",
        lambda seen: seen.refusing,
        propose=lambda given, seen: (
            *_propose_hold(given, seen),
            *(() if seen.throttled else (remedies.throttle(given, "delivery"),)),
            *_propose_logs(given, seen),
        ),
    ),
    Case("backlog.accepts_again", lambda seen: seen.accepts_again, Status.WARNING),
    Case("backlog.two_workers", lambda seen: seen.workers, Status.WARNING, says="leases.two_workers"),
    Case("backlog.stray", lambda seen: seen.worker.queue.strays and not seen.late, Status.WARNING),
    Case("backlog.empty", lambda seen: not seen.worker.total),
    Case("backlog.postponed", lambda seen: seen.postponed, Status.WARNING),
    Case("backlog.slow_outside", lambda seen: seen.spends == "delivery.slow_outside"),
    Case("backlog.slow_statements", lambda seen: seen.spends == "delivery.slow_statements", propose=_propose_logs),
    Case("backlog.waits_for_lock", lambda seen: seen.spends == "delivery.waits_for_lock"),
    Case("backlog.behind", lambda seen: seen.late),
    Case("backlog.flowing"),
)


def _blind_spots(given: JudgeInput) -> tuple[Text, ...]:
    return past.blind_spots(given, pd.Timedelta(days=given.number("retention.notifications")))


def chart_history(frames: Frames, given: JudgeInput) -> charts.Chart | None:
    """Return the chart of the window's backlog, with the rates of creation and completion."""
    span = past.window(given)
    level, limit = past.levels(frames, "notifications", span), given.limits["backlog.due"]
    if level is None or level.empty:
        return None
    ends = [min(span.at(i + 1), span.until) for i in level.index]
    rates = level.iloc[: span.full] * 60 / span.bucket_s
    near = limit.warning is not None and level["waiting"].max() > 0.3 * limit.warning
    peak = int(level["most"].to_numpy().argmax())
    return charts.Chart(
        "Unfinished notifications, by the rows' own timestamps",
        "rows",
        [
            charts.Series("unfinished at the minute's end", charts.Role.LEVEL, ends, level["waiting"]),
            charts.Series("created per min", charts.Role.IN, ends[: len(rates)], rates["came"]),
            charts.Series("sent or given up per min", charts.Role.OUT, ends[: len(rates)], rates["gone"]),
        ],
        charts.thresholds(limit) if near else (),
        alt=say(
            "backlog.alt_history", at=f"{span.at(peak):%H:%M}", minutes=len(level) * span.bucket_s // 60,
            now=float(level["waiting"].iloc[-1]), peak=float(level["most"].max()),
        ),
        caption=_blind_spots(given),
    )  # fmt: skip


#: The bars of `chart_ages`: the query's buckets, with their lower edges.
_AGES = {
    **{"<1 s": "0 s", "1-5 s": "1 s", "5-10 s": "5 s", "10-30 s": "10 s", "30-60 s": "30 s", "1-2 min": "1 min"},
    **{"2-5 min": "2 min", "5-10 min": "5 min", "10-30 min": "10 min", "30-60 min": "30 min", ">1 h": "1 h"},
}


def chart_ages(frames: Frames, given: JudgeInput) -> charts.Chart | None:
    """Return the chart of the ages of the unfinished notifications."""
    ages = table(frames, "ages", "bucket", "n")
    if ages.empty:
        return None
    counts = np.zeros(len(_AGES))
    for bucket, n in ages[["bucket", "n"]].dropna().itertuples(index=False):
        counts[min(max(int(bucket), 0), len(_AGES) - 1)] += n
    limit = given.limits["backlog.oldest_due"]
    edges = [pd.Timedelta(edge).total_seconds() for edge in _AGES.values()]
    statuses = [limit.status(edge) for edge in edges]  # all rows of a bar are at least as old as its left edge
    roles = {Status.WARNING: charts.Role.WARNING, Status.CRITICAL: charts.Role.CRITICAL}
    old = [(edge, n) for edge, n, status in zip(edges, counts, statuses, strict=True) if status is Status.CRITICAL]
    since = old[0][0] if old else None
    return charts.Chart(
        "Age of the unfinished notifications",
        "rows",
        [
            charts.Series("", roles.get(status, charts.Role.LEVEL), [i - 0.4], [n], "bars", numbered=True)
            for i, (n, status) in enumerate(zip(counts, statuses, strict=True))
        ],
        limits_of_x=charts.thresholds(limit, lambda s: float(np.interp(s, edges, np.arange(len(edges)) - 0.5))),
        alt=say("backlog.alt_ages", total=float(counts.sum()), old=sum(n for _, n in old), s=since),
        caption=(say("backlog.ages_caption", warning=limit.warning, critical=limit.critical),),
        xlabel="since creation",
        names=[*_AGES],
    )


CHECKS: tuple[Check, ...] = (
    Check(
        "4.1.1",
        collect,
        judge,
        (chart_history, chart_ages),
        needs=("backlog", "activity"),
        optional=("letters", "older_than_10min", "program", "activity_after"),
    ),
)
