"""4.3: rows in PROCESSING: their leases, who holds them, whether holders lose them, lease length and clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.analysis.stats import percentile
from runbook_lib.checks.check import Check
from runbook_lib.checks.parts import seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Hop, Proposal, Signal, Status, Value, judged, say
from runbook_lib.model.frames import amount, one, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import delivery
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: A lease may differ from the configured one by rounding and nothing else.
LEASE_TOLERANCE_S = 1.0
#: A long batch is held against the lease for so long, and afterwards if there were at least so many like it.
RECENT_S, RULE = 60.0, 5


def _first_look(rb: Context) -> Frames:
    with rb.snapshot() as db:
        frames = {name: db.ask(f"notifications/{name}") for name in ("leases", "holders")} | delivery.look(db)
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
    """The leases around now, by holder, and the runbook's own list; a second look where something is over."""
    return _looks(rb, "4.3.1", "leases", "holders", "processing_oldest", *_WORKER)


def judge_leases(frames: Frames, given: Given) -> Finding:
    """Time left is work. A lease that is over and not taken back says that nobody polls, or polls in time."""
    holders = table(frames, "holders")
    total, expired, bare = (_sum(holders, name) for name in ("n", "expired", "without_lease"))
    over_s = _max(holders, "expired_for_s")
    limits = given.limits
    expired_value = limits.value("processing.expired", expired)
    over_value = limits.value("processing.expired_for", over_s)
    over = bool(expired) and over_value.status is not Status.OK
    # Rows that still leave the worker's hands belong to a batch that outlasts its lease.
    outlasted = over and bool(delivery.delivery(frames).progress)
    left_behind = over and not outlasted
    facts = {"n": total, "expired": expired, "over": over_s, "bare": bare, "who": _who(holders, "expired")}
    if left_behind:
        key = "leases.left_behind"
    elif outlasted:
        key = "leases.outlasted"
    elif expired:
        key = "leases.taken_back"
    elif bare:
        key = "leases.without"
    else:
        key = "leases.held" if total else "leases.none"
    signals = []
    if left_behind:
        weight = 0.8 if over_value.status is Status.CRITICAL else 0.55
        signals = [Signal("delivery_worker", weight), Signal("FM-NOTI-06", weight)]
    elif outlasted:
        signals = [Signal("FM-NOTI-02", 0.4)]
    return judged(
        say(key, **facts),
        [
            Value("processing.rows", total, "rows"),
            expired_value,
            over_value,
            Value("processing.without_lease", bare, "rows"),
        ],
        at_least=Status.WARNING if bare else Status.OK,
        notes=(say("leases.by_hand", bare=bare),) if bare else (),
        signals=tuple(signals),
        hops=(Hop("delivery_worker", oldest_s=over_s, late=True),) if left_behind else (),
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
    over = timed["from_s"] < 0
    for rows, colour, hatch, name in (
        (timed[~over], charts.BLUE, "", "time left"),
        (timed[over], charts.RED, "xx", "over"),
    ):
        if len(rows):
            ax.bar(
                rows["from_s"], rows["n"], width=5, align="edge", color=colour, hatch=hatch,
                edgecolor="white", label=name,
            )  # fmt: skip
    ax.axvline(0, color="black", linewidth=1)
    ax.axvline(
        facts_of(given).lease_s,
        color=charts.GREY,
        linestyle="--",
        label=f"configured lease {facts_of(given).lease_s:g} s",
    )
    ax.set_xlim(min(-35.0, timed["from_s"].min() - 5), max(facts_of(given).lease_s + 10, timed["from_s"].max() + 10))
    charts.legend(figure)
    return charts.Chart(
        figure,
        say("leases.alt", left=float(timed[~over]["n"].sum()), over=float(timed[over]["n"].sum()), bare=bare),
        (say("leases.caption", bare=bare),),
    )


# 4.3.2 Is each worker that holds rows alive?


def collect_workers(rb: Context) -> Frames:
    """Who holds what, and whether anything moves while something is due."""
    return _looks(rb, "4.3.2", "holders", *_WORKER)


def judge_workers(frames: Frames, given: Given) -> Finding:
    """A worker lives when rows leave its hands, or when nothing is due."""
    if "backlog" not in frames:
        return judged(say("leases.unseen"), at_least=Status.UNKNOWN)
    seen, holders, activity = delivery.delivery(frames), table(frames, "holders"), one(frames.get("activity"))
    stopped, refused = seen.stopped(given), seen.refused(given)
    since = _max(holders, "since_claim_s")
    # A long time since the claim is only bad while nothing is finished either.
    idle = 0.0 if seen.progress else since
    limits = given.limits
    facts: dict[str, Any] = {
        "silence": seen.silence_s,
        "due": seen.due,
        "oldest": seen.oldest_s,
        "n": _sum(holders, "n"),
        "who": _who(holders, "n"),
        "since": since,
        "sent": amount(activity, "sent_1m"),
    }
    dead = stopped >= 0.6 or bool(stopped and not refused)
    if dead:
        key = "leases.dead" if facts["who"] else "leases.nobody"
    elif stopped:
        key = "leases.stuck"
    else:
        key = "leases.alive" if seen.total or facts["sent"] else "leases.idle"
    signals = []
    if stopped:
        signals += [Signal("delivery_worker", stopped), Signal("FM-NOTI-06", stopped)]
    elif facts["sent"] or seen.progress:
        signals += [Signal("delivery_worker", -0.4), Signal("FM-NOTI-06", -0.5)]
    return judged(
        say(key, **facts),
        [
            limits.value("delivery.silence", seen.silence_s),
            # What is still moving belongs to a batch that is late (4.3.1, 4.3.4), not to a worker that is gone.
            limits.value("processing.expired_for", 0.0 if seen.progress else _max(holders, "expired_for_s")),
            limits.value("worker.heartbeat", idle),
            Value("processing.holders", len(holders), "workers"),
            Value("processing.rows", _sum(holders, "n"), "rows"),
            Value("delivery.progress", {None: None, True: "yes", False: "no"}[seen.progress]),
            Value("notifications.sent_last_minute", facts["sent"], "1/min"),
        ],
        notes=(
            say("leases.name_survives", lease=facts_of(given).lease_s),
            *(
                (say("backlog.progress" if seen.progress else "backlog.no_progress", s=delivery.LOOKS_APART_S),)
                if seen.progress is not None
                else ()
            ),
        ),
        signals=tuple(signals),
        hops=(
            Hop(
                "delivery_worker",
                rate_out=facts["sent"],
                waiting=seen.due,
                oldest_s=seen.oldest_s,
                alive=say("alive.silent", s=seen.silence_s) if stopped else _who(holders, "n") or None,
                late=given.limits["backlog.oldest_due"].status(seen.oldest_s) is not Status.OK,
            ),
        ),
        proposals=_restart(given) if dead else (),
        next_sections=("5.1",) if dead else (),
        show=("holders",) if len(holders) else (),
    )


def _restart(given: Given) -> tuple[Proposal, ...]:
    return (
        proposals.restart(given, "notification"),
        proposals.logs(given, "notification"),
    )


# 4.3.3 Does somebody lose rows to somebody else?


def collect_locks(rb: Context) -> Frames:
    """The same question twice: the database keeps no trace of a lock that was lost."""
    frames = _looks(rb, "4.3.3", "held", twice=True)
    return {"first": frames["held"], "second": frames["held_later"]}


def judge_locks(frames: Frames, given: Given) -> Finding:
    """The same row in other hands before its lease was over is a race; after it, a takeover."""
    columns = ("notification_id", "locked_by", "locked_at", "lease_until", "now")
    first, second = table(frames, "first", *columns), table(frames, "second", *columns)
    seconds = round(seconds_between(one(first).get("now"), one(second).get("now")) or delivery.LOOKS_APART_S, 1)
    if "first" not in frames or "second" not in frames:
        return judged(say("leases.unseen"), at_least=Status.UNKNOWN)
    if first.empty or second.empty:
        both = pd.DataFrame(columns=[f"{c}_{x}" for c in columns[1:] for x in ("x", "y")])
    else:
        both = first.merge(second, on="notification_id")
    other = both[both["locked_by_x"].fillna("") != both["locked_by_y"].fillna("")]
    # Taken by another worker although the first one still had time: its clock, or a hand.
    stolen = other[other["lease_until_x"].fillna(pd.Timestamp(0, tz="UTC")) > other["locked_at_y"]]
    same = both[both["locked_by_x"].fillna("") == both["locked_by_y"].fillna("")]
    again = same[same["locked_at_x"] != same["locked_at_y"]]
    claimers = _claimed_between(first, second)
    # Who lost rows and still claims others has not died: it may be sending what somebody else sends too.
    alive = bool(set(other["locked_by_x"]) & claimers)
    two = len(claimers) > 1
    facts = {
        "seconds": seconds,
        "rows": len(both),
        "taken": len(other),
        "stolen": len(stolen),
        "again": len(again),
        "who": ", ".join(sorted(str(c) for c in claimers)),
    }
    race = bool(len(stolen)) or (bool(len(other)) and alive)
    if race:
        key = "leases.race"
    elif len(other):
        key = "leases.takeover"
    elif two:
        key = "leases.two_workers"
    else:
        key = "leases.circling" if len(again) else "leases.no_race"
    signals = []
    if race:
        signals = [Signal("delivery_worker", 0.8), Signal("FM-NOTI-02", 0.85)]
    elif len(other):
        signals = [Signal("delivery_worker", 0.3), Signal("FM-NOTI-02", 0.4)]
    elif two:
        signals = [Signal("FM-NOTI-02", 0.6)]
    elif len(again):
        signals = [Signal("delivery_worker", 0.5), Signal("FM-NOTI-06", 0.3)]
    return judged(
        say(key, **facts),
        [
            Value("processing.in_both_looks", len(both), "rows"),
            Value("processing.other_holder", len(other), "rows"),
            Value("processing.taken_before_lease_end", len(stolen), "rows"),
            Value("processing.claimed_again", len(again), "rows"),
        ],
        at_least=Status.CRITICAL if race else Status.WARNING if len(other) or two or len(again) else Status.OK,
        notes=(
            say("leases.no_trace", seconds=seconds),
            *((say("leases.capped", n=len(first)),) if first.attrs.get("capped") else ()),
        ),
        signals=tuple(signals),
        proposals=(proposals.logs(given, "notification"),) if race or two or len(again) else (),
        next_sections=("4.2",) if race else (),
        show=("second",) if race or len(other) else (),
    )


def _claimed_between(first: pd.DataFrame, second: pd.DataFrame) -> set[str]:
    """Workers that made a claim after the first look."""
    seen = first.groupby("locked_by")["locked_at"].max().to_dict() if len(first) else {}
    newest = second.groupby("locked_by")["locked_at"].max().to_dict()
    start = first["now"].iloc[0] if len(first) else None
    return {
        str(worker)
        for worker, claimed in newest.items()
        if (claimed > seen[worker] if worker in seen else start is not None and claimed > start)
    }


# 4.3.4 Is the lease too short or too long for the work?


def collect_length(rb: Context) -> Frames:
    """The leases as written, and how long batches really took."""
    with rb.snapshot() as db:
        return {name: db.ask(f"notifications/{name}") for name in ("holders", "batches")}


def judge_length(frames: Frames, given: Given) -> Finding:
    """A lease must outlast the longest batch; one that is much longer delays the recovery after a crash."""
    holders = table(frames, "holders")
    batches = table(frames, "batches", "started", "exact_s", "cycle_s", "next_waited_s")
    written = _max(holders, "longest_lease_s") if len(holders) else None
    shortest = float(holders["shortest_lease_s"].min()) if len(holders) and "shortest_lease_s" in holders else None
    ahead = max(_max(holders, "furthest_s") - facts_of(given).lease_s, 0.0)
    longest, before, exact = _longest_batch(batches, given)
    if any(f.step == "4.3.2" and f.value("delivery.progress") == "yes" for f in given.earlier):
        # The batch of now is still going on, and has taken at least so long.
        longest = max(longest or 0.0, _max(holders, "since_claim_s"))
    lease = min(x for x in (facts_of(given).lease_s, shortest) if x is not None and x == x)
    headroom = lease / longest if longest else None
    differs = any(
        x is not None and x == x and abs(x - facts_of(given).lease_s) > LEASE_TOLERANCE_S for x in (written, shortest)
    )
    limits = given.limits
    values = [
        Value("lease.configured", facts_of(given).lease_s, "s"),
        Value("lease.written", written, "s"),
        limits.value("lease.too_long", ahead),
        Value("batch.longest" if exact else "batch.longest_estimated", longest, "s"),
    ]
    if headroom is not None:
        values.append(limits.value("lease.headroom", headroom))
    short = headroom is not None and limits["lease.headroom"].status(headroom) is not Status.OK
    facts = {
        "lease": lease,
        "configured": facts_of(given).lease_s,
        "longest": longest,
        "headroom": headroom,
        "ahead": ahead,
    }
    notes = [say("leases.batches_exact" if exact else "leases.batches_estimated", n=len(batches))]
    if before is not None:
        notes.append(say("leases.longer_before", s=before))
    if differs:
        notes.append(say("leases.differs", written=written, configured=facts_of(given).lease_s))
    if written is None:
        notes.append(say("leases.nothing_held"))
    signals = []
    if short:
        signals = [Signal("FM-NOTI-02", 0.4)]
    long = limits["lease.too_long"].status(ahead) is not Status.OK
    if long:
        signals.append(Signal("FM-CLK-01", 0.3))
    key = "leases.too_short" if short else "leases.too_long" if long else "leases.fits"
    return judged(
        say(key if longest or long else "leases.no_batches", **facts),
        values,
        at_least=Status.WARNING if differs else Status.OK,
        notes=tuple(notes),
        signals=tuple(signals),
        proposals=((remedies.throttle(given, "delivery"),) if short else ()),
        next_sections=("5.2",) if short else (),
    )


def _longest_batch(batches: pd.DataFrame, given: Given) -> tuple[float | None, float | None, bool]:
    """The longest batch in seconds, a longer one that is over and not the rule, and whether they are exact.

    Where commit times are not tracked, only a batch that others had to wait for is known to have lasted: until a
    poll before the next one. A worker that was down in between looks the same, so the longest 5% are left out.
    """
    numbers = batches[["exact_s", "cycle_s", "next_waited_s"]].apply(pd.to_numeric, errors="coerce")
    exact = numbers["exact_s"].dropna().clip(lower=0)
    if len(exact):
        longest = float(exact.max())
        recent = exact[batches.loc[exact.index, "started"] > given.as_of - pd.Timedelta(seconds=RECENT_S)]
        # A lock or a slow receiver held up one or two, and it is over: that says nothing about the lease.
        rule = (exact > 0.5 * longest).sum() >= RULE
        if recent.empty or rule or recent.max() > 0.5 * longest:
            return longest, None, True
        return float(recent.max()), longest, True
    waited = numbers[numbers["next_waited_s"] > 1.5 * facts_of(given).poll_interval_s]["cycle_s"].dropna()
    if waited.empty:
        return None, None, False
    lasted = percentile(waited - facts_of(given).poll_interval_s, 95)
    return (lasted, None, False) if lasted > 0 else (None, None, False)


# 4.3.5 Do the clocks agree?


def collect_clocks(rb: Context) -> Frames:
    """The workers' times against the database's, and the servers' clocks as this run measured them."""
    clocks = [(name, c.offset_s, c.error_s) for name, c in rb.clocks.items()]
    frames = {"clocks": pd.DataFrame(clocks, columns=["server", "offset_s", "error_s"])}
    with rb.snapshot() as db:
        frames["worker"] = db.ask("notifications/clock")
        frames["subscriber"] = db.ask("processed/clock")
    return frames


def judge_clocks(frames: Frames, given: Given) -> Finding:
    """What is written in the database's future proves a clock that is ahead; commit times show both directions."""
    worker, subscriber = one(frames.get("worker")), one(frames.get("subscriber"))
    skews = _skews(worker, subscriber, given)
    name, skew = max(skews.items(), key=lambda item: abs(item[1]), default=("", 0.0))
    servers = _between_servers(table(frames, "clocks", "server", "offset_s"))
    lease_s = facts_of(given).lease_s
    share = abs(skew) / lease_s
    limits = given.limits
    offset = limits.value("clock.offset", abs(skew))
    too_long = limits.value("lease.too_long", max(amount(worker, "lease_ahead_s") - facts_of(given).lease_s, 0.0))
    values = [
        offset,
        limits.value("clock.lease_share", share),
        too_long,
        Value("clock.database_to_broker", servers, "s"),
        Value("processing.born_expired", amount(worker, "born_expired"), "rows"),
        *(Value(f"clock.{who}", s, "s") for who, s in skews.items()),
    ]
    born = amount(worker, "born_expired") > 0
    apart = any(v.status is not Status.OK for v in values[:2]) or born
    evidence = bool(amount(worker, "held") or amount(worker, "sent") or amount(subscriber, "n"))
    signals = []
    if apart:
        weight = 0.9 if offset.status is Status.CRITICAL else 0.6
        signals = [Signal("FM-CLK-01", weight)]
        if limits["clock.lease_share"].status(share) is Status.CRITICAL:
            signals.append(Signal("delivery_worker", 0.6))
    elif evidence:
        signals = [Signal("FM-CLK-01", -0.6)]
    notes = [say("leases.clock_tracked" if worker.get("tracked") else "leases.clock_untracked")]
    if servers is not None and abs(servers) >= (limits["clock.offset"].warning or 0):
        notes.append(say("leases.servers_apart", s=servers))
    facts = {
        "who": name,
        "skew": skew,
        "lease": facts_of(given).lease_s,
        "share": 100 * share,
        "too_long": too_long.value,
    }
    return judged(
        say(
            "leases.clock_apart"
            if apart
            else "leases.clock_lease_long"
            if too_long.status is not Status.OK
            else "leases.clock_agrees"
            if evidence
            else "leases.clock_no_rows",
            **facts,
        ),
        values,
        at_least=Status.WARNING if born else Status.OK,
        notes=tuple(notes),
        signals=tuple(signals),
        proposals=(remedies.check_clocks(given),) if apart else (),
        show=("clocks",) if len(table(frames, "clocks")) else (),
    )


def _skews(worker: dict[str, Any], subscriber: dict[str, Any], given: Given) -> dict[str, float]:
    """Seconds that each writer's clock is ahead of the database's, as far as the rows tell it."""
    found: dict[str, float] = {}
    ahead = max((float(worker[k]) for k in ("claim_ahead_s", "sent_ahead_s") if worker.get(k) is not None), default=0.0)
    to_mark = worker.get("shortest_to_mark_s")
    if ahead > 0:
        found["delivery_worker"] = ahead
    if to_mark is not None:
        # A row is marked some time after its batch began; what is left when that is taken away is skew.
        mark = float(to_mark)
        if mark < 0:
            found["delivery_worker"] = max(ahead, -mark)
        else:
            late = mark - facts_of(given).lease_s  # no honest batch lasts so long
            found.setdefault("delivery_worker", -mark if late > 0 else 0.0)
    if subscriber.get("to_commit_s") is not None:
        found["subscriber"] = -float(subscriber["to_commit_s"])
    elif amount(subscriber, "ahead_s") > 0:
        found["subscriber"] = float(subscriber["ahead_s"])
    if worker.get("shortest_delay_s") is not None and float(worker["shortest_delay_s"]) < 0:
        # Sent before it was created: the worker's clock is behind the subscriber's.
        found.setdefault("delivery_worker", float(worker["shortest_delay_s"]))
    return found


def _between_servers(clocks: pd.DataFrame) -> float | None:
    offsets = dict(zip(clocks["server"], pd.to_numeric(clocks["offset_s"], errors="coerce"), strict=True))
    if not {"postgres", "nats"} <= set(offsets):
        return None
    return float(offsets["nats"] - offsets["postgres"])


# What the steps share.


def _sum(frame: pd.DataFrame, name: str) -> float:
    return float(pd.to_numeric(frame[name], errors="coerce").fillna(0).sum()) if name in frame else 0.0


def _max(frame: pd.DataFrame, name: str) -> float:
    if name not in frame or frame.empty:
        return 0.0
    largest = pd.to_numeric(frame[name], errors="coerce").max()
    return float(largest) if largest == largest else 0.0


def _who(holders: pd.DataFrame, counted: str) -> str:
    """The workers that hold rows of that kind, most first, three at most."""
    if holders.empty or not {"locked_by", counted} <= set(holders.columns):
        return ""
    named = holders[holders[counted] > 0]
    return ", ".join(str(w) for w in named["locked_by"].dropna().head(3))


CHECKS: tuple[Check, ...] = (
    Check("4.3.1", collect_leases, judge_leases, (draw_leases,)),
    Check("4.3.2", collect_workers, judge_workers),
    Check("4.3.3", collect_locks, judge_locks),
    Check("4.3.4", collect_length, judge_length),
    Check("4.3.5", collect_clocks, judge_clocks),
)
