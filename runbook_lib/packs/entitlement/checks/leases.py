"""4.3: rows in PROCESSING: their leases, their holders, rows that change holders, the lease length and the clocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.book import messages
from runbook_lib.checks.cases import Case, Cases
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
from runbook_lib.checks.sample import FIRST
from runbook_lib.diagnosis.stats import percentile
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    Signal,
    Status,
    Text,
    Threshold,
    Value,
    hop_text,
    judged,
    replace,
    say,
)
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import delivery, program
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import HeldRow, Holder
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


@dataclass(frozen=True)
class Processing:
    """The rows in PROCESSING by worker, the worker with most rows first."""

    holders: list[Holder]

    @property
    def n(self) -> float:
        """The number of rows in PROCESSING."""
        return sum(h.n for h in self.holders)

    @property
    def expired(self) -> float:
        """The number of rows whose lease has expired."""
        return sum(h.expired for h in self.holders)

    @property
    def without_lease(self) -> float:
        """The number of rows without a lease."""
        return sum(h.without_lease for h in self.holders)

    @property
    def over_s(self) -> float:
        """Seconds since the oldest expired lease ended."""
        return _max_or_zero(h.expired_for_s for h in self.holders)

    @property
    def newest_claim_s(self) -> float | None:
        """Seconds since the newest claim of any worker; None if unknown."""
        return min((h.since_claim_s for h in self.holders if h.since_claim_s is not None), default=None)

    @property
    def shortest_lease_s(self) -> float | None:
        """The shortest lease in the rows, in seconds; None without a lease."""
        return min((h.shortest_lease_s for h in self.holders if h.shortest_lease_s is not None), default=None)

    def who(self, *, expired: bool = False) -> str:
        """Return the names of at most three workers that hold rows, or `expired` rows."""
        named = [h.locked_by for h in self.holders if h.locked_by and (h.expired if expired else h.n) > 0]
        return ", ".join(named[:3])


def _read_processing(frames: Frames) -> Processing:
    return Processing(rows.each(frames.get("holders"), Holder))


def _max_or_zero(values: Iterable[float]) -> float:
    return max(values, default=0.0)


def _take_samples(rb: Context, step: str, *names: str) -> Frames:
    """Return the named frames of the present, and those of the first moment."""
    first = delivery.collect_first(rb, step)
    frames = first | rb.shared(step, _read_present)
    return {name: frame for name, frame in frames.items() if name.removeprefix(FIRST) in names}


def _read_present(rb: Context) -> Frames:
    with rb.snapshot() as db:
        frames = {name: db.ask(f"notifications/{name}") for name in ("leases", "holders")} | delivery.collect(rb, db)
        oldest = db.try_ask("notifications/processing_oldest")
    return frames if oldest is None else frames | {"processing_oldest": oldest}


_WORKER_FRAMES = ("backlog", "activity", "attempts", "held", "worker_samples")


# 4.3.1 Which rows are in PROCESSING, and how long do their leases last?


def collect_leases(rb: Context) -> Frames:
    """4.3.1: read the leases around now and their holders.

    Frames: leases, holders; processing_oldest where cheap; those of `delivery.collect` and `delivery.collect_first`.
    """
    return _take_samples(rb, "4.3.1", "leases", "holders", "processing_oldest", *_WORKER_FRAMES)


@dataclass(frozen=True)
class Leases:
    """What 4.3.1 decides by: the rows in PROCESSING, and whether the worker still finishes rows (`moves`).

    `late`: a lease expired longer ago than the warning limit. `for_long`: longer ago than the critical limit.
    """

    held: Processing
    late: bool
    for_long: bool
    moves: bool


LEASES = Cases[Leases](
    # While the worker still finishes rows, its batch takes longer than the lease.
    Case("leases.outlasted", lambda seen: seen.late and seen.moves, evidence="leases.outlasted"),
    Case(
        "leases.left_behind",
        lambda seen: seen.late,
        evidence=lambda seen: ("leases.left_for_long" if seen.for_long else "leases.left_behind",),
        propose=lambda given, seen: (proposals.restart(given, "notification"),),
        read="5.1",
    ),
    Case("leases.taken_back", lambda seen: seen.held.expired),
    Case("leases.without", lambda seen: seen.held.without_lease),
    Case("leases.held", lambda seen: seen.held.n),
    Case("leases.none"),
)


def judge_leases(frames: Frames, given: JudgeInput) -> Finding:
    """4.3.1: a lease that expired and was not claimed again shows that no worker polls, or not in time."""
    held, limits = _read_processing(frames), given.limits
    over, bare = limits.value("processing.expired_for", held.over_s), held.without_lease
    late = bool(held.expired) and over.status is not Status.OK
    moves = bool(delivery.read_delivery(frames).moved)
    found = LEASES.of(Leases(held, late, over.status is Status.CRITICAL, moves))
    return judged(
        found.headline(n=held.n, expired=held.expired, over=held.over_s, bare=bare, who=held.who(expired=True)),
        [
            Value("processing.rows", held.n, "rows"),
            limits.value("processing.expired", held.expired),
            over,
            Value("processing.without_lease", bare, "rows"),
        ],
        at_least=Status.WARNING if bare else Status.OK,
        signals=found.signals(given),
        hops=(Hop("delivery_worker", oldest_s=held.over_s, late=True),) if late and not moves else (),
        proposals=found.proposals(given),
        next_sections=found.sections,
        show=tuple(n for n in ("holders", "processing_oldest") if len(table(frames, n))),
        decision=found.decision,
    )


def chart_leases(frames: Frames, given: JudgeInput) -> charts.Chart | None:
    """Return the chart of the rows in PROCESSING by the time to the end of their lease."""
    leases = table(frames, "leases", "from_s", "n")
    if leases.empty:
        return None
    timed = leases[leases["from_s"].notna()].astype({"from_s": float, "n": float})
    left, over = timed[timed["from_s"] >= 0], timed[timed["from_s"] < 0]
    bare, lease_s = float(leases["n"].sum() - timed["n"].sum()), facts_of(given).lease_s
    return charts.Chart(
        "PROCESSING by time to the end of the lease",
        "rows",
        [
            charts.Series("time left", charts.Role.LEVEL, left["from_s"], left["n"], "bars", width=5),
            charts.Series("over", charts.Role.CRITICAL, over["from_s"], over["n"], "bars", width=5),
        ],
        limits_of_x=[charts.Line(lease_s, f"configured lease {messages.quantity(lease_s, 's', 'en')}", dash="--")],
        moments=[charts.Line(0)],
        alt=say("leases.alt", left=float(left["n"].sum()), over=float(over["n"].sum()), bare=bare),
        caption=(say("leases.caption", bare=bare),),
        xlabel="s to the end of the lease (left of 0: over)",
        shown=(min(-35.0, timed["from_s"].min() - 5), max(lease_s + 10, timed["from_s"].max() + 10)),
    )


# 4.3.2 Is each worker that holds rows alive?


def collect_workers(rb: Context) -> Frames:
    """4.3.2: read the holders, and in two samples whether rows are finished.

    Frames: holders, those of `delivery.collect` and `delivery.collect_first`.
    """
    return _take_samples(rb, "4.3.2", "holders", *_WORKER_FRAMES)


def judge_workers(frames: Frames, given: JudgeInput) -> Finding:
    """4.3.2: a worker is alive if it finishes rows, or if nothing is due."""
    seen, held, limits = delivery.read_delivery(frames), _read_processing(frames), given.limits
    stopping, sent, queue = seen.stopping(given), seen.activity.sent_1m, seen.queue
    dead = stopping in delivery.STOPPED_OBSERVATIONS or bool(stopping and not seen.refusing(given))
    at_work = not stopping and bool(sent or seen.moved)
    if dead:
        key = "leases.dead" if held.who() else "leases.nobody"
    elif stopping:
        key = "leases.stuck"
    else:
        key = "leases.alive" if at_work else "leases.unproven" if seen.total else "leases.idle"
    spends = "" if stopping or seen.refusing(given) else seen.spends(given)
    # A worker with due rows that finished none between two samples may hang since its last sign of life.
    may_hang = [seen.may_hang(given)] if seen.total and not (seen.moved or stopping) else []
    return judged(
        say(
            key,
            silence=seen.silence_s,
            due=queue.ready,
            oldest=queue.oldest_s,
            n=held.n,
            who=held.who(),
            sent=sent,
        ),
        [
            limits.value("delivery.silence", seen.silence_s),
            Value("delivery.progress", {None: None, True: "yes", False: "no"}[seen.moved]),
            *(again for again, _ in may_hang),
        ],
        notes=(*seen.notes(given), *(note for _, note in may_hang)),
        signals=given.evidence_of(filter(None, (stopping, "leases.at_work" if at_work else "", spends))),
        hops=(
            Hop(
                "delivery_worker",
                rate_out=sent,
                waiting=queue.ready,
                oldest_s=queue.oldest_s,
                alive=say("alive.silent", s=seen.silence_s) if stopping else held.who() or None,
                late=limits["backlog.oldest_due"].reached(queue.oldest_s),
            ),
        ),
        proposals=(proposals.restart(given, "notification"), proposals.logs(given, "notification")) if dead else (),
        next_sections=("5.1",) if dead else (),
        show=("holders",) if held.holders else (),
    )


# 4.3.3 Does a worker lose rows to another worker?


def collect_locks(rb: Context) -> Frames:
    """4.3.3: read the held rows twice, since a lost lock leaves no trace in a table. Frames: first, second (held)."""
    held = _take_samples(rb, "4.3.3", "held")
    return {name: held[of] for name, of in (("first", f"{FIRST}held"), ("second", "held")) if of in held}


@dataclass(frozen=True)
class HolderChanges:
    """The rows that both samples hold, and how their holders changed between the samples.

    - `rows`: rows in both samples. `taken`: with another holder. `stolen`: taken before their lease expired.
    - `again`: claimed again by the same holder.
    - `alive`: a worker that lost rows claims others. `side_by_side`: more than one worker claims.
    """

    rows: int
    taken: int
    again: int
    stolen: int
    alive: bool
    side_by_side: bool


HOLDER_CHANGES = Cases[HolderChanges](
    Case(
        "leases.race",
        lambda seen: seen.stolen or (seen.taken and seen.alive),
        Status.CRITICAL,
        "leases.race",
        read="4.2",
    ),
    Case("leases.takeover", lambda seen: seen.taken, Status.WARNING, "leases.takeover"),
    Case("leases.two_workers", lambda seen: seen.side_by_side, Status.WARNING, "leases.two_workers"),
    Case("leases.circling", lambda seen: seen.again, Status.WARNING, "leases.circling"),
    Case("leases.no_race"),
)


def judge_locks(frames: Frames, given: JudgeInput) -> Finding:
    """4.3.3: a row that changes its holder before its lease expired is a race; afterwards it is a takeover."""
    first, second = (rows.each(frames[name], HeldRow) for name in ("first", "second"))
    apart_s = seconds_between(first[0].now, second[0].now) if first and second else None
    seconds = round(apart_s or given.number("looks.apart"), 1)
    before = {row.notification_id: row for row in first}
    both = [(before[row.notification_id], row) for row in second if row.notification_id in before]
    # A row that failed was given back, and anybody may claim it again.
    both = [(a, b) for a, b in both if a.attempt_count == b.attempt_count]
    taken = [(a, b) for a, b in both if a.locked_by != b.locked_by]
    again = sum(a.locked_by == b.locked_by and a.locked_at != b.locked_at for a, b in both)
    claimers = set(_find_claimers(first, second))
    seen = HolderChanges(
        rows=len(both),
        taken=len(taken),
        again=again,
        # Taken before its lease expired: the other worker's clock is ahead, or the row was changed by hand.
        stolen=sum(bool(a.lease_until and b.locked_at and a.lease_until > b.locked_at) for a, b in taken),
        # A worker that lost rows and still claims others is alive: it may send rows that another worker sends too.
        alive=bool({a.locked_by for a, _ in taken} & claimers),
        side_by_side=len(claimers) > 1,
    )
    found = HOLDER_CHANGES.of(seen)
    return judged(
        found.headline(
            seconds=seconds, rows=seen.rows, taken=seen.taken, stolen=seen.stolen, again=seen.again,
            who=", ".join(sorted(claimers)),
        ),
        [
            Value("processing.in_both_looks", seen.rows, "rows"),
            Value("processing.other_holder", seen.taken, "rows"),
            Value("processing.taken_before_lease_end", seen.stolen, "rows"),
            Value("processing.claimed_again", seen.again, "rows"),
        ],
        at_least=found.status,
        notes=(
            say("leases.no_trace", seconds=seconds),
            *((say("leases.capped", n=len(first)),) if frames["first"].attrs.get("capped") else ()),
        ),
        signals=found.signals(given),
        proposals=(proposals.logs(given, "notification"),) if found.name != "leases.no_race" else (),
        next_sections=found.sections,
        show=("second",) if taken else (),
        decision=found.decision,
    )  # fmt: skip


def _find_claimers(first: list[HeldRow], second: list[HeldRow]) -> Iterator[str]:
    """Yield the workers that made a claim after the first sample."""
    seen, start = _newest_claims(first), first[0].now if first else None
    for worker, claimed in _newest_claims(second).items():
        since = seen.get(worker, start)
        if since is not None and claimed > since:
            yield worker


def _newest_claims(held: list[HeldRow]) -> dict[str, pd.Timestamp]:
    claims = sorted((row.locked_at, row.locked_by) for row in held if row.locked_at and row.locked_by)
    return {worker: claimed for claimed, worker in claims}


# 4.3.4 Is the lease too short or too long for the work?


class Batch(rows.Row, query="notifications/batches"):
    """One batch of the worker, times in seconds; `exact_s` only if commit times are tracked."""

    started: pd.Timestamp | None = None
    exact_s: float | None = None
    cycle_s: float | None = None
    next_waited_s: float = 0.0


def collect_length(rb: Context) -> Frames:
    """4.3.4: read the leases of the rows, and how long batches took.

    Frames: holders, batches; program if a batch is too long for its lease.
    """
    with rb.snapshot() as db:
        frames = {name: db.ask(f"notifications/{name}") for name in ("holders", "batches")}
    if judge_length(frames, rb.given("4.3.4")).proposals:
        frames |= program.collect_settings(rb, "delivery")
    return frames


def judge_length(frames: Frames, given: JudgeInput) -> Finding:
    """4.3.4: a lease must be longer than the longest batch; one that is much longer delays recovery after a crash."""
    held, batches, limits = _read_processing(frames), rows.each(frames.get("batches"), Batch), given.limits
    configured = facts_of(given).lease_s
    written = _max_or_zero(h.longest_lease_s for h in held.holders) if held.holders else None
    shortest = held.shortest_lease_s
    ahead = _max_or_zero(h.furthest_s - configured for h in held.holders if h.furthest_s is not None)
    longest, before, exact = _longest_batch(batches, given)
    if any(f.step == "4.3.2" and f.value("delivery.progress") == "yes" for f in given.earlier):
        # The current batch has taken at least as long as the time since its claim; older ones may be a dead worker's.
        # Its clock is the worker's, and may be ahead of the database's.
        longest = max((s for s in (longest, held.newest_claim_s) if s is not None and s > 0), default=None)
    lease = configured if shortest is None else min(configured, shortest)
    headroom = lease / longest if longest else None
    tolerance = given.number("lease.tolerance")
    differs = any(s is not None and abs(s - configured) > tolerance for s in (written, shortest))
    too_long = limits.value("lease.too_long", max(ahead, 0.0))
    values = [
        Value("lease.configured", configured, "s"),
        Value("lease.written", written, "s"),
        too_long,
        Value("batch.longest" if exact else "batch.longest_estimated", longest, "s"),
    ]
    if headroom is not None:
        values.append(limits.value("lease.headroom", headroom))
    short = headroom is not None and limits["lease.headroom"].status(headroom) is not Status.OK
    long = too_long.status is not Status.OK
    notes = [] if exact else [say("leases.batches_estimated", n=len(batches))]
    if before is not None:
        notes.append(say("leases.longer_before", s=before))
    if differs:
        other = next(s for s in (shortest, written) if s is not None and abs(s - configured) > tolerance)
        notes.append(say("leases.differs", written=other, configured=configured))
    key = "leases.too_short" if short else "leases.too_long" if long else "leases.fits"
    return judged(
        say(key if longest or long else "leases.no_batches", lease=lease, configured=configured, longest=longest,
            headroom=headroom, ahead=too_long.value),
        values,
        at_least=Status.WARNING if differs else Status.OK,
        notes=tuple(notes),
        signals=tuple(
            s
            for name, seen in (("leases.too_short", short), ("leases.too_long", long)) if seen
            for s in given.evidence(name)
        ),
        proposals=(remedies.throttle(given, "delivery"),) if short and not program.is_throttled(frames, given) else (),
        next_sections=("5.2",) if short else (),
    )  # fmt: skip


def _longest_batch(batches: list[Batch], given: JudgeInput) -> tuple[float | None, float | None, bool]:
    """Return the longest batch in seconds, a longer one that was an exception (or None), and whether they are exact.

    Without commit times a batch is measured only if rows had to wait for it: it lasted until one poll before the next
    batch. The time in which a worker was down looks the same, so the longest few are left out.
    """
    lasted = [(b.started, max(b.exact_s, 0.0)) for b in batches if b.exact_s is not None]
    if lasted:
        longest = max(s for _, s in lasted)
        near = given.number("batch.near_longest") * longest
        since = given.as_of - pd.Timedelta(seconds=given.number("batch.recent"))
        recent = [s for started, s in lasted if started is not None and started > since]
        # A lock or a slow receiver delayed one or two batches, and it is over: the lease is still long enough.
        rule = sum(s > near for _, s in lasted) >= given.number("batch.rule")
        if not recent or rule or max(recent) > near:
            return longest, None, True
        return max(recent), longest, True
    poll_s = facts_of(given).poll_interval_s
    waited_s = given.number("batch.polls_waited") * poll_s
    cycles = [b.cycle_s - poll_s for b in batches if b.next_waited_s > waited_s and b.cycle_s is not None]
    usual = percentile(cycles, given.number("batch.percentile"))
    return (usual, None, False) if usual > 0 else (None, None, False)


# 4.3.5 Do the clocks agree?


class WorkerClock(rows.Row, query="notifications/clock"):
    """The delivery worker's times compared with the database's, in seconds; None without a row to compare."""

    tracked: bool = False
    held: float = 0.0
    claim_ahead_s: float | None = None
    lease_ahead_s: float = 0.0
    born_expired: float = 0.0
    sent: float = 0.0
    sent_ahead_s: float | None = None
    shortest_delay_s: float | None = None
    shortest_to_mark_s: float | None = None


class SubscriberClock(rows.Row, query="processed/clock"):
    """The subscriber's times compared with the database's, in seconds."""

    n: float = 0.0
    ahead_s: float = 0.0
    to_commit_s: float | None = None


class RowsAhead(rows.Row, query="scope/ahead"):
    """The rows whose time in a column is later than the database's: the furthest, since when, and who writes it."""

    column_name: str = ""
    writer: str = ""
    n: float = 0.0
    ahead_s: float = 0.0
    since: pd.Timestamp | None = None

    @property
    def text(self) -> Text:
        """The sentence on these rows."""
        since = None if self.since is None else f"{self.since:%Y-%m-%d %H:%M:%S}"
        return say("leases.rows_ahead", n=self.n, column=self.column_name, s=self.ahead_s, since=since,
                   writer=hop_text(self.writer))  # fmt: skip


def collect_clocks(rb: Context) -> Frames:
    """4.3.5: compare the workers' times with the database's.

    Frames: worker, subscriber, ahead (as in notifications/clock, processed/clock, scope/ahead).
    """
    parts = FrameCollector()
    with rb.snapshot() as db:
        parts.ask(db, {"worker": WorkerClock.QUERY, "subscriber": SubscriberClock.QUERY, "ahead": RowsAhead.QUERY})
    return parts.frames()


def judge_clocks(frames: Frames, given: JudgeInput) -> Finding:
    """4.3.5: a time in the database's future proves a clock that is ahead; commit times show one that is behind too."""
    worker = rows.first(frames.get("worker"), WorkerClock) or WorkerClock()
    subscriber = rows.first(frames.get("subscriber"), SubscriberClock) or SubscriberClock()
    lease_s, limits = facts_of(given).lease_s, given.limits
    skews = _clock_skews(worker, subscriber, lease_s)
    name, skew = max(skews.items(), key=lambda item: abs(item[1]), default=("", 0.0))
    offset = limits.value("clock.offset", abs(skew))
    share = limits.value("clock.lease_share", abs(skew) / lease_s)
    column = abs(skew) > given.number("clock.differs_most") and _is_column_alone(name, skew, worker, subscriber)
    if column:  # no lease is set by it
        offset, share = (replace(v, threshold=None) for v in (offset, share))
    too_long = limits.value("lease.too_long", max(worker.lease_ahead_s - lease_s, 0.0))
    born = worker.born_expired > 0
    apart = born or (not column and any(v.status is not Status.OK for v in (offset, share)))
    evidence = bool(worker.held or worker.sent or subscriber.n)
    # What no writer's clock explains was written by something else; no query computes an age from it.
    explained_s = 0.0 if column else _max_or_zero(skews.values())
    unexplained = [
        r
        for r in rows.each(frames.get("ahead"), RowsAhead)
        if limits["clock.offset"].status(r.ahead_s - explained_s) is not Status.OK
    ]
    odd = [r.text for r in unexplained]
    if column and (skew < 0 or not odd):
        odd.append(say("leases.column_apart", who=name, skew=skew))
    behind_unseen = _may_be_behind(worker, subscriber, limits["clock.offset"])
    signals: list[Signal] = []
    if apart:
        signals += given.evidence(
            "leases.clock_far_apart" if offset.status is Status.CRITICAL else "leases.clock_apart"
        )
        if share.status is Status.CRITICAL:
            signals += given.evidence("leases.clock_outlives_leases")
    if odd:
        signals += given.evidence("leases.rows_ahead")
    notes = [*odd[0 if apart else 1 :], *([] if worker.tracked else [say("leases.clock_untracked")])]
    if apart:
        key = "leases.clock_apart"
    elif too_long.status is not Status.OK:
        key = "leases.clock_lease_long"
    elif not evidence:
        key = "leases.clock_no_rows"
    else:
        key = "leases.clock_not_ahead" if behind_unseen else "leases.clock_agrees"
    headline = say(key, who=name, skew=skew, lease=lease_s, share=100 * abs(skew) / lease_s, too_long=too_long.value)
    return judged(
        odd[0] if odd and not apart else headline,
        [
            offset,
            share,
            too_long,
            Value("processing.born_expired", worker.born_expired, "rows"),
            *(Value(f"{r.column_name}.ahead", r.ahead_s, "s") for r in unexplained),
            *(Value(f"clock.{who}", s, "s") for who, s in skews.items()),
        ],
        at_least=Status.WARNING if born or odd else Status.OK,
        notes=tuple(notes),
        signals=tuple(signals),
        proposals=(remedies.check_clocks(given),) if apart else (),
    )


def _is_column_alone(name: str, skew: float, worker: WorkerClock, subscriber: SubscriberClock) -> bool:
    """Return whether a skew is that of one column: subscriber and worker share a clock, and the other's is right.

    What a claim shows is the worker's own clock, which sets its leases.
    """
    claimed = name == "delivery_worker" and abs(worker.claim_ahead_s or 0.0) > abs(skew) / 2
    other_s = worker.sent_ahead_s if name == "subscriber" else subscriber.ahead_s if subscriber.n else None
    return not claimed and other_s is not None and abs(other_s) < abs(skew) / 2


def _clock_skews(worker: WorkerClock, subscriber: SubscriberClock, lease_s: float) -> dict[str, float]:
    """Return the seconds by which each writer's clock is ahead of the database's, as far as the rows show it."""
    found: dict[str, float] = {}
    ahead = _max_or_zero(s for s in (worker.claim_ahead_s, worker.sent_ahead_s) if s is not None)
    mark = worker.shortest_to_mark_s
    if ahead > 0:
        found["delivery_worker"] = ahead
    if mark is not None and mark < 0:
        # A row is marked SENT after its batch began, so a mark before the begin is skew.
        found["delivery_worker"] = max(ahead, -mark)
    elif mark is not None:
        found.setdefault("delivery_worker", -mark if mark > lease_s else 0.0)  # no batch lasts longer than its lease
    if subscriber.to_commit_s is not None:
        # Rows may have been written anew since: a clock that is behind has not written a newer time either.
        found["subscriber"] = max(-subscriber.to_commit_s, min(subscriber.ahead_s, 0.0))
    elif subscriber.ahead_s > 0:
        found["subscriber"] = subscriber.ahead_s
    if worker.shortest_delay_s is not None and worker.shortest_delay_s < 0:
        # Sent before it was created: the worker's clock is behind the subscriber's.
        found.setdefault("delivery_worker", worker.shortest_delay_s)
    return found


def _may_be_behind(worker: WorkerClock, subscriber: SubscriberClock, limit: Threshold) -> bool:
    """Return whether a writer's clock may be behind by more than the limit: none of its times is close to a later one.

    A later time is the one of the commit, or the present.
    """
    later_s: list[tuple[float | None, ...]] = []
    if worker.held or worker.sent:
        ahead = (s for s in (worker.claim_ahead_s, worker.sent_ahead_s) if s is not None)
        later_s.append((worker.shortest_to_mark_s, *(-s for s in ahead)))
    if subscriber.n:
        later_s.append((subscriber.to_commit_s, -subscriber.ahead_s))
    return not all(any(s is not None and limit.status(s) is Status.OK for s in of) for of in later_s)


CHECKS: tuple[Check, ...] = (
    Check("4.3.1", collect_leases, judge_leases, (chart_leases,), needs=("holders",)),
    Check("4.3.2", collect_workers, judge_workers, needs=("backlog", "activity", "holders")),
    Check("4.3.3", collect_locks, judge_locks, needs=("first", "second")),
    Check("4.3.4", collect_length, judge_length, needs=("holders", "batches")),
    Check("4.3.5", collect_clocks, judge_clocks),
)
