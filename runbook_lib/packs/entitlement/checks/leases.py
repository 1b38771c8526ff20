"""4.3: rows in PROCESSING: their leases, who holds them, whether holders lose them, lease length and clocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.analysis.stats import percentile
from runbook_lib.checks.check import Check
from runbook_lib.checks.parts import seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Hop, Signal, Status, Value, judged, say
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import delivery
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Held
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context


@dataclass(frozen=True)
class Holder:
    """What one worker holds, and since when."""

    QUESTION: ClassVar[str] = "notifications/holders"

    locked_by: str | None = None
    n: float = 0.0
    expired: float = 0.0
    without_lease: float = 0.0
    expired_for_s: float = 0.0
    since_claim_s: float = 0.0
    shortest_lease_s: float | None = None
    longest_lease_s: float = 0.0
    furthest_s: float | None = None


@dataclass(frozen=True)
class Processing:
    """What is in PROCESSING, by worker, those that hold most first; ages are those of the oldest, in seconds."""

    holders: list[Holder]

    @property
    def n(self) -> float:
        """Rows in hand."""
        return sum(h.n for h in self.holders)

    @property
    def expired(self) -> float:
        """Rows whose lease is over."""
        return sum(h.expired for h in self.holders)

    @property
    def without_lease(self) -> float:
        """Rows that nobody will take back."""
        return sum(h.without_lease for h in self.holders)

    @property
    def over_s(self) -> float:
        """Since the first lease ended that is over."""
        return _most(h.expired_for_s for h in self.holders)

    @property
    def since_claim_s(self) -> float:
        """Since the last claim of the worker that claimed longest ago."""
        return _most(h.since_claim_s for h in self.holders)

    @property
    def shortest_lease_s(self) -> float | None:
        """The shortest lease as written, None without one."""
        return min((h.shortest_lease_s for h in self.holders if h.shortest_lease_s is not None), default=None)

    def who(self, *, expired: bool = False) -> str:
        """The workers that hold rows, or rows whose lease is over; three at most."""
        named = [h.locked_by for h in self.holders if h.locked_by and (h.expired if expired else h.n) > 0]
        return ", ".join(named[:3])


def _processing(frames: Frames) -> Processing:
    return Processing(rows.each(frames.get("holders"), Holder))


def _most(values: Iterable[float]) -> float:
    return max(values, default=0.0)


def _first_look(rb: Context) -> Frames:
    with rb.snapshot() as db:
        frames = {name: db.ask(f"notifications/{name}") for name in ("leases", "holders")} | delivery.look(rb, db)
        oldest = db.try_ask("notifications/processing_oldest")
    return frames if oldest is None else frames | {"processing_oldest": oldest}


def _looks(rb: Context, step: str, *names: str, twice: bool = False) -> Frames:
    """What the steps of this section look at together, once, or twice a little apart; of that, what a step needs."""
    frames = rb.shared(step, _first_look)
    if "held_later" not in frames:
        frames |= delivery.second_look(rb, frames, always=twice)
    return {name: frame for name, frame in frames.items() if name.removesuffix("_later") in names}


_WORKER = ("backlog", "activity", "attempts", "held")


# 4.3.1 What is PROCESSING, and how far from its lease's end?


def collect_leases(rb: Context) -> Frames:
    """The leases around now, by holder, and the runbook's own list; a second look where something is over.

    Frames: leases, holders; processing_oldest where cheap; those of `delivery.look` and `delivery.second_look`.
    """
    return _looks(rb, "4.3.1", "leases", "holders", "processing_oldest", *_WORKER)


def judge_leases(frames: Frames, given: Given) -> Finding:
    """Time left is work. A lease that is over and not taken back says that nobody polls, or polls in time."""
    held, limits = _processing(frames), given.limits
    over_value = limits.value("processing.expired_for", held.over_s)
    over = bool(held.expired) and over_value.status is not Status.OK
    # Rows that still leave the worker's hands belong to a batch that outlasts its lease.
    outlasted = over and bool(delivery.delivery(frames).progress)
    left_behind = over and not outlasted
    if over:
        key = "leases.outlasted" if outlasted else "leases.left_behind"
    elif held.expired:
        key = "leases.taken_back"
    elif held.without_lease:
        key = "leases.without"
    else:
        key = "leases.held" if held.n else "leases.none"
    long = over_value.status is Status.CRITICAL
    seen = "leases.outlasted" if outlasted else "leases.left_for_long" if long else "leases.left_behind"
    bare = held.without_lease
    return judged(
        say(key, n=held.n, expired=held.expired, over=held.over_s, bare=bare, who=held.who(expired=True)),
        [
            Value("processing.rows", held.n, "rows"),
            limits.value("processing.expired", held.expired),
            over_value,
            Value("processing.without_lease", bare, "rows"),
        ],
        at_least=Status.WARNING if bare else Status.OK,
        notes=(say("leases.by_hand", bare=bare),) if bare else (),
        signals=given.speaks(seen) if over else (),
        hops=(Hop("delivery_worker", oldest_s=held.over_s, late=True),) if left_behind else (),
        proposals=(proposals.restart(given, "notification"),) if left_behind else (),
        next_sections=("5.1",) if left_behind else (),
        show=tuple(n for n in ("holders", "processing_oldest") if len(table(frames, n))),
    )


def draw_leases(frames: Frames, given: Given) -> charts.Chart | None:
    """Rows in PROCESSING by the time to the end of their lease."""
    leases = table(frames, "leases", "from_s", "n")
    if leases.empty:
        return None
    timed = leases[leases["from_s"].notna()].astype({"from_s": float, "n": float})
    bare = float(leases["n"].sum() - timed["n"].sum())
    figure, ax = charts.axes(
        "PROCESSING by time to the end of the lease", "rows", "s to the end of the lease (left of 0: over)"
    )
    over, lease_s = timed["from_s"] < 0, facts_of(given).lease_s
    for some, colour, hatch, name in (
        (timed[~over], charts.BLUE, "", "time left"),
        (timed[over], charts.RED, "xx", "over"),
    ):
        if len(some):
            ax.bar(
                some["from_s"], some["n"], width=5, align="edge", color=colour, hatch=hatch,
                edgecolor="white", label=name,
            )  # fmt: skip
    ax.axvline(0, color="black", linewidth=1)
    ax.axvline(lease_s, color=charts.GREY, linestyle="--", label=f"configured lease {lease_s:g} s")
    ax.set_xlim(min(-35.0, timed["from_s"].min() - 5), max(lease_s + 10, timed["from_s"].max() + 10))
    charts.legend(figure)
    return charts.Chart(
        figure,
        say("leases.alt", left=float(timed[~over]["n"].sum()), over=float(timed[over]["n"].sum()), bare=bare),
        (say("leases.caption", bare=bare),),
    )


# 4.3.2 Is each worker that holds rows alive?


def collect_workers(rb: Context) -> Frames:
    """Who holds what, and whether anything moves while something is due.

    Frames: holders, those of `delivery.look` and `delivery.second_look`.
    """
    return _looks(rb, "4.3.2", "holders", *_WORKER)


def judge_workers(frames: Frames, given: Given) -> Finding:
    """A worker lives when rows leave its hands, or when nothing is due."""
    if "backlog" not in frames:
        return judged(say("leases.unseen"), at_least=Status.UNKNOWN)
    seen, held, limits = delivery.delivery(frames), _processing(frames), given.limits
    stopping, sent = seen.stopping(given), seen.activity.sent_1m
    dead = stopping in delivery.GONE or bool(stopping and not seen.refusing(given))
    if dead:
        key = "leases.dead" if held.who() else "leases.nobody"
    elif stopping:
        key = "leases.stuck"
    else:
        key = "leases.alive" if seen.total or sent else "leases.idle"
    at_work = not stopping and (bool(sent) or seen.progress)
    facts: dict[str, Any] = {
        "silence": seen.silence_s,
        "due": seen.queue.ready,
        "oldest": seen.queue.oldest_s,
        "n": held.n,
        "who": held.who(),
        "since": held.since_claim_s,
        "sent": sent,
    }
    return judged(
        say(key, **facts),
        [
            limits.value("delivery.silence", seen.silence_s),
            # What is still moving belongs to a batch that is late (4.3.1, 4.3.4), not to a worker that is gone; and a
            # long time since the claim is only bad while nothing is finished either.
            limits.value("processing.expired_for", 0.0 if seen.progress else held.over_s),
            limits.value("worker.heartbeat", 0.0 if seen.progress else held.since_claim_s),
            Value("processing.holders", len(held.holders), "workers"),
            Value("processing.rows", held.n, "rows"),
            Value("delivery.progress", {None: None, True: "yes", False: "no"}[seen.progress]),
            Value("notifications.sent_last_minute", sent, "1/min"),
        ],
        notes=(say("leases.name_survives", lease=facts_of(given).lease_s), *seen.notes(given)),
        signals=given.speaks(stopping) if stopping else given.speaks("leases.at_work") if at_work else (),
        hops=(
            Hop(
                "delivery_worker",
                rate_out=sent,
                waiting=seen.queue.ready,
                oldest_s=seen.queue.oldest_s,
                alive=say("alive.silent", s=seen.silence_s) if stopping else held.who() or None,
                late=limits["backlog.oldest_due"].status(seen.queue.oldest_s) is not Status.OK,
            ),
        ),
        proposals=(proposals.restart(given, "notification"), proposals.logs(given, "notification")) if dead else (),
        next_sections=("5.1",) if dead else (),
        show=("holders",) if held.holders else (),
    )


# 4.3.3 Does somebody lose rows to somebody else?


def collect_locks(rb: Context) -> Frames:
    """The same question twice: the database keeps no trace of a lock that was lost. Frames: first, second (held)."""
    frames = _looks(rb, "4.3.3", "held", twice=True)
    return {"first": frames["held"], "second": frames["held_later"]}


def judge_locks(frames: Frames, given: Given) -> Finding:
    """The same row in other hands before its lease was over is a race; after it, a takeover."""
    if "first" not in frames or "second" not in frames:
        return judged(say("leases.unseen"), at_least=Status.UNKNOWN)
    first, second = (rows.each(frames[name], Held) for name in ("first", "second"))
    apart_s = seconds_between(first[0].now, second[0].now) if first and second else None
    seconds = round(apart_s or given.number("looks.apart"), 1)
    before = {row.notification_id: row for row in first}
    both = [(before[row.notification_id], row) for row in second if row.notification_id in before]
    taken = [(a, b) for a, b in both if a.locked_by != b.locked_by]
    again = sum(a.locked_by == b.locked_by and a.locked_at != b.locked_at for a, b in both)
    # Taken by another worker although the first one still had time: its clock, or a hand.
    stolen = sum(bool(a.lease_until and b.locked_at and a.lease_until > b.locked_at) for a, b in taken)
    claimers = set(_claimed_between(first, second))
    # Who lost rows and still claims others has not died: it may be sending what somebody else sends too.
    alive = bool({a.locked_by for a, _ in taken} & claimers)
    race = bool(stolen or (taken and alive))
    if race:
        key = "leases.race"
    elif taken:
        key = "leases.takeover"
    elif len(claimers) > 1:
        key = "leases.two_workers"
    else:
        key = "leases.circling" if again else "leases.no_race"
    wrong = key != "leases.no_race"
    return judged(
        say(key, seconds=seconds, rows=len(both), taken=len(taken), stolen=stolen, again=again,
            who=", ".join(sorted(claimers))),
        [
            Value("processing.in_both_looks", len(both), "rows"),
            Value("processing.other_holder", len(taken), "rows"),
            Value("processing.taken_before_lease_end", stolen, "rows"),
            Value("processing.claimed_again", again, "rows"),
        ],
        at_least=Status.CRITICAL if race else Status.WARNING if wrong else Status.OK,
        notes=(
            say("leases.no_trace", seconds=seconds),
            *((say("leases.capped", n=len(first)),) if frames["first"].attrs.get("capped") else ()),
        ),
        signals=given.speaks(key) if wrong else (),
        proposals=(proposals.logs(given, "notification"),) if race or len(claimers) > 1 or again else (),
        next_sections=("4.2",) if race else (),
        show=("second",) if taken else (),
    )  # fmt: skip


def _claimed_between(first: list[Held], second: list[Held]) -> Iterator[str]:
    """Workers that made a claim after the first look."""
    seen, start = _newest_claims(first), first[0].now if first else None
    for worker, claimed in _newest_claims(second).items():
        since = seen.get(worker, start)
        if since is not None and claimed > since:
            yield worker


def _newest_claims(held: list[Held]) -> dict[str, pd.Timestamp]:
    claims = sorted((row.locked_at, row.locked_by) for row in held if row.locked_at and row.locked_by)
    return {worker: claimed for claimed, worker in claims}


# 4.3.4 Is the lease too short or too long for the work?


@dataclass(frozen=True)
class Batch:
    """One batch of the worker, in seconds; `exact_s` only where commit times are tracked."""

    QUESTION: ClassVar[str] = "notifications/batches"

    started: pd.Timestamp | None = None
    exact_s: float | None = None
    cycle_s: float | None = None
    next_waited_s: float = 0.0


def collect_length(rb: Context) -> Frames:
    """The leases as written, and how long batches really took. Frames: holders, batches."""
    with rb.snapshot() as db:
        return {name: db.ask(f"notifications/{name}") for name in ("holders", "batches")}


def judge_length(frames: Frames, given: Given) -> Finding:
    """A lease must outlast the longest batch; one that is much longer delays the recovery after a crash."""
    held, batches, limits = _processing(frames), rows.each(frames.get("batches"), Batch), given.limits
    configured = facts_of(given).lease_s
    written = _most(h.longest_lease_s for h in held.holders) if held.holders else None
    shortest = held.shortest_lease_s
    ahead = _most(h.furthest_s - configured for h in held.holders if h.furthest_s is not None)
    longest, before, exact = _longest_batch(batches, given)
    if any(f.step == "4.3.2" and f.value("delivery.progress") == "yes" for f in given.earlier):
        # The batch of now is still going on, and has taken at least so long.
        longest = max(longest or 0.0, held.since_claim_s)
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
    notes = [say("leases.batches_exact" if exact else "leases.batches_estimated", n=len(batches))]
    if before is not None:
        notes.append(say("leases.longer_before", s=before))
    if differs:
        notes.append(say("leases.differs", written=written, configured=configured))
    if written is None:
        notes.append(say("leases.nothing_held"))
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
            for s in given.speaks(name)
        ),
        proposals=(remedies.throttle(given, "delivery"),) if short else (),
        next_sections=("5.2",) if short else (),
    )  # fmt: skip


def _longest_batch(batches: list[Batch], given: Given) -> tuple[float | None, float | None, bool]:
    """The longest batch in seconds, a longer one that is over and not the rule, and whether they are exact.

    Where commit times are not tracked, only a batch that others had to wait for is known to have lasted: until a
    poll before the next one. A worker that was down in between looks the same, so the longest few are left out.
    """
    lasted = [(b.started, max(b.exact_s, 0.0)) for b in batches if b.exact_s is not None]
    if lasted:
        longest = max(s for _, s in lasted)
        near = given.number("batch.near_longest") * longest
        since = given.as_of - pd.Timedelta(seconds=given.number("batch.recent"))
        recent = [s for started, s in lasted if started is not None and started > since]
        # A lock or a slow receiver held up one or two, and it is over: that says nothing about the lease.
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


@dataclass(frozen=True)
class WorkerClock:
    """The delivery worker's times against the database's, in seconds; None where no row tells."""

    QUESTION: ClassVar[str] = "notifications/clock"

    tracked: bool = False
    held: float = 0.0
    claim_ahead_s: float | None = None
    lease_ahead_s: float = 0.0
    born_expired: float = 0.0
    sent: float = 0.0
    sent_ahead_s: float | None = None
    shortest_delay_s: float | None = None
    shortest_to_mark_s: float | None = None


@dataclass(frozen=True)
class SubscriberClock:
    """The subscriber's."""

    QUESTION: ClassVar[str] = "processed/clock"

    n: float = 0.0
    ahead_s: float = 0.0
    to_commit_s: float | None = None


@dataclass(frozen=True)
class ServerClock:
    """How far a server is ahead of this machine."""

    server: str = ""
    offset_s: float | None = None


def collect_clocks(rb: Context) -> Frames:
    """The workers' times against the database's, and the servers' clocks as this run measured them.

    Frames: worker, subscriber (as in notifications/clock, processed/clock); clocks (server: text, offset_s: s,
    error_s: s).
    """
    clocks = [(name, c.offset_s, c.error_s) for name, c in rb.clocks.items()]
    frames = {"clocks": pd.DataFrame(clocks, columns=["server", "offset_s", "error_s"])}
    with rb.snapshot() as db:
        return frames | {"worker": db.ask("notifications/clock"), "subscriber": db.ask("processed/clock")}


def judge_clocks(frames: Frames, given: Given) -> Finding:
    """What is written in the database's future proves a clock that is ahead; commit times show both directions."""
    worker = rows.one(frames.get("worker"), WorkerClock)
    subscriber = rows.one(frames.get("subscriber"), SubscriberClock)
    lease_s, limits = facts_of(given).lease_s, given.limits
    skews = _skews(worker, subscriber, lease_s)
    name, skew = max(skews.items(), key=lambda item: abs(item[1]), default=("", 0.0))
    servers = _between_servers(rows.each(frames.get("clocks"), ServerClock))
    offset = limits.value("clock.offset", abs(skew))
    share = limits.value("clock.lease_share", abs(skew) / lease_s)
    too_long = limits.value("lease.too_long", max(worker.lease_ahead_s - lease_s, 0.0))
    born = worker.born_expired > 0
    apart = born or offset.status is not Status.OK or share.status is not Status.OK
    evidence = bool(worker.held or worker.sent or subscriber.n)
    signals: list[Signal] = []
    if apart:
        signals += given.speaks("leases.clock_far_apart" if offset.status is Status.CRITICAL else "leases.clock_apart")
        if share.status is Status.CRITICAL:
            signals += given.speaks("leases.clock_outlives_leases")
    elif evidence:
        signals += given.speaks("leases.clock_agrees")
    notes = [say("leases.clock_tracked" if worker.tracked else "leases.clock_untracked")]
    if servers is not None and limits["clock.offset"].status(abs(servers)) is not Status.OK:
        notes.append(say("leases.servers_apart", s=servers))
    if apart:
        key = "leases.clock_apart"
    elif too_long.status is not Status.OK:
        key = "leases.clock_lease_long"
    else:
        key = "leases.clock_agrees" if evidence else "leases.clock_no_rows"
    return judged(
        say(key, who=name, skew=skew, lease=lease_s, share=100 * abs(skew) / lease_s, too_long=too_long.value),
        [
            offset,
            share,
            too_long,
            Value("clock.database_to_broker", servers, "s"),
            Value("processing.born_expired", worker.born_expired, "rows"),
            *(Value(f"clock.{who}", s, "s") for who, s in skews.items()),
        ],
        at_least=Status.WARNING if born else Status.OK,
        notes=tuple(notes),
        signals=tuple(signals),
        proposals=(remedies.check_clocks(given),) if apart else (),
        show=("clocks",) if len(table(frames, "clocks")) else (),
    )


def _skews(worker: WorkerClock, subscriber: SubscriberClock, lease_s: float) -> dict[str, float]:
    """Seconds that each writer's clock is ahead of the database's, as far as the rows tell it."""
    found: dict[str, float] = {}
    ahead = _most(s for s in (worker.claim_ahead_s, worker.sent_ahead_s) if s is not None)
    mark = worker.shortest_to_mark_s
    if ahead > 0:
        found["delivery_worker"] = ahead
    if mark is not None and mark < 0:
        # A row is marked some time after its batch began; what is left when that is taken away is skew.
        found["delivery_worker"] = max(ahead, -mark)
    elif mark is not None:
        found.setdefault("delivery_worker", -mark if mark > lease_s else 0.0)  # no honest batch lasts so long
    if subscriber.to_commit_s is not None:
        found["subscriber"] = -subscriber.to_commit_s
    elif subscriber.ahead_s > 0:
        found["subscriber"] = subscriber.ahead_s
    if worker.shortest_delay_s is not None and worker.shortest_delay_s < 0:
        # Sent before it was created: the worker's clock is behind the subscriber's.
        found.setdefault("delivery_worker", worker.shortest_delay_s)
    return found


def _between_servers(clocks: list[ServerClock]) -> float | None:
    offsets = {clock.server: clock.offset_s for clock in clocks}
    nats, postgres = offsets.get("nats"), offsets.get("postgres")
    return None if nats is None or postgres is None else nats - postgres


CHECKS: tuple[Check, ...] = (
    Check("4.3.1", collect_leases, judge_leases, (draw_leases,)),
    Check("4.3.2", collect_workers, judge_workers),
    Check("4.3.3", collect_locks, judge_locks),
    Check("4.3.4", collect_length, judge_length),
    Check("4.3.5", collect_clocks, judge_clocks),
)
