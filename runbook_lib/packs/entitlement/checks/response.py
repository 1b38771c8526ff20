"""Section 3: the first response. Impact, where it is stuck, the smallest safe step, what counts as over, the record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.analysis import diagnosis, history, stats
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, collect_each, judge_each, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Finding,
    Frames,
    Hop,
    Proposal,
    Reason,
    Status,
    Text,
    Value,
    Verdict,
    judged,
    replace,
    say,
    unknown,
    worst,
)
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.checks import (
    backlog,
    consistency,
    database,
    duplicates,
    leases,
    publish,
    recovery,
    subscriber,
)
from runbook_lib.packs.entitlement.rows import Delay, Delivered, LastEvent, Letters, Notifications, Outbox
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The two pairs of the burn rate, long and short window.
BURN_FAST, BURN_SLOW = ("burn.fast_long", "burn.fast_short"), ("burn.slow_long", "burn.slow_short")
#: The hop at which an event of a place (sli/affected) waits.
HOP_OF = {"outbox": "relay", "broker": "subscriber", "notification": "delivery_worker"}
#: The thresholds of SLIs, where these have a value.
SLO_OF = {"outbox.publish_delay_p95": "ENT-C", "delivery.e2e_p95": "NOTI-B", "delivery.success": "NOTI-A"}


@dataclass(frozen=True)
class Affected:
    """Events and users that wait for too long in one place, or in "all" of them."""

    QUESTION: ClassVar[str] = "sli/affected"

    place: str = ""
    events: int = 0
    users: int = 0
    oldest_s: float | None = None


@dataclass(frozen=True)
class OutboxAge:
    """How old the events are that are not published yet; 0 where none waits."""

    QUESTION: ClassVar[str] = "sli/outbox_age"

    p95: float = 0.0


@dataclass(frozen=True)
class GivenUp:
    """Notifications that were given up, and whose."""

    QUESTION: ClassVar[str] = "sli/given_up_users"

    events: float = 0.0
    users: float = 0.0


@dataclass(frozen=True)
class Requests:
    """Requests by Prometheus: how many succeeded (%), and the p95 of their duration (s)."""

    success: float | None = None
    p95: float | None = None


# 3.1 Impact -------------------------------------------------------------------------------------------------


def collect_impact(rb: Context) -> Frames:
    """3.1: every SLI that timestamps can give, who is affected, and the flows that show since when.

    Frames: affected, outbox, outbox_age, publish_delay, publish_delay_lately, notifications, last_event; where cheap
    delivered, given_up, given_up_messages, sent, dead, published, processed; requests (success: %, p95: s); slis
    (slo: text, sli: text, now: number, objective: text, met: flag, why: text).
    """
    parts = Parts()
    now = rb.as_of - pd.Timedelta(minutes=rb.number("sli.now"))
    lately = pd.Timedelta(seconds=rb.number(recovery.SPANS["publish"][0]))
    with rb.snapshot() as db:
        parts.answers |= {
            "affected": db.ask("sli/affected", late_s=rb.catalog.limits["backlog.oldest_due"].warning),
            "outbox": db.ask("outbox/backlog"),
            "outbox_age": db.ask("sli/outbox_age"),
            "publish_delay": db.ask("outbox/delay", since=now),
            "publish_delay_lately": db.ask("outbox/delay", since=rb.as_of - lately),
            "notifications": db.ask("notifications/backlog"),
            "last_event": db.ask("scope/last_event"),
        }
        asked = {
            "delivered": db.try_ask("sli/delivered", since=now),
            "given_up": db.try_ask("sli/given_up_users", since=now),
            "given_up_messages": db.try_ask("processed/nats_dlq", since=now),
            **_per_minute(rb, db),
        }
    parts.answers |= {name: frame for name, frame in asked.items() if frame is not None}
    with parts.part("prometheus") as answers:
        answers["requests"] = _requests(rb)
    frames = parts.frames()
    return frames | {"slis": sli_rows(frames, rb.given())}


def _per_minute(rb: Context, db: Snapshot) -> dict[str, pd.DataFrame | None]:
    long_ago = min(rb.since, rb.as_of - pd.Timedelta(minutes=rb.number(BURN_SLOW[0])))
    late = {"limit_s": rb.catalog.slos["NOTI-B"].number, "slow_s": rb.catalog.limits["backlog.oldest_due"].warning}
    return {
        "sent": db.try_ask("sli/delivered_per_minute", since=long_ago, **late),
        "dead": db.try_ask("notifications/failed_per_minute", since=long_ago),
        "published": db.try_ask("outbox/published_per_minute"),
        "processed": db.try_ask("processed/per_minute"),
    }


def _requests(rb: Context) -> pd.DataFrame:
    """Requests of the two POST routes by Prometheus: how many succeeded, and the p95 of their duration."""
    route = 'uri=~"/v1/entitlements/(grants|revokes)",method="POST"'
    window = f"[{rb.number('sli.now'):g}m]"
    total = f"sum(rate(http_server_requests_seconds_count{{{route}}}{window}))"
    bad = f'sum(rate(http_server_requests_seconds_count{{{route},status=~"5.."}}{window}))'
    buckets = f"sum by (le) (rate(http_server_requests_seconds_bucket{{{route}}}{window}))"

    def value(promql: str) -> float | None:
        found = rb.prometheus.instant(promql, rb.as_of)
        number = float(found["value"].iloc[0]) if len(found) else None
        return number if number == number else None

    asked = value(total)
    failed = value(bad)
    return row(
        success=None if not asked else 100 * (1 - (failed or 0.0) / asked),
        p95=value(f"histogram_quantile({rb.number('p95.in_time'):g}, {buckets})"),
    )


def sli_rows(frames: Frames, given: Given) -> pd.DataFrame:
    """Each SLI now beside its objective; `met` is None where it has no value, and `why` says why."""
    outbox = rows.first(frames.get("outbox"), Outbox)
    notifications = rows.first(frames.get("notifications"), Notifications)
    outbox_age = rows.first(frames.get("outbox_age"), OutboxAge)
    requests = rows.one(frames.get("requests"), Requests)
    given_up = rows.first(frames.get("given_up"), GivenUp)
    delivered = rows.one(frames.get("delivered"), Delivered)
    dead, e2e = given_up.events if given_up else 0.0, delivered.p95
    letters = None
    if given_up is not None and "given_up_messages" in frames:
        letters = dead + rows.one(frames.get("given_up_messages"), Letters).n
    waits = _oldest_of_many(frames, delivered.n, given)
    if waits is not None and waits >= (e2e or 0.0):
        e2e = waits
    ended = delivered.n + dead
    e = failures(frames).get("prometheus")
    unasked = e.reason.value if e and "requests" not in frames else Reason.NO_DATA.value
    observed: dict[str, float | None] = {
        "ENT-A": requests.success,
        "ENT-B": requests.p95,
        "ENT-C": rows.one(frames.get("publish_delay"), Delay).p95,
        "ENT-D": None if outbox_age is None else outbox_age.p95,
        "ENT-E": None if outbox is None else outbox.failed,
        "NOTI-A": 100 * delivered.n / ended if given_up is not None and ended else None,
        "NOTI-B": e2e,
        "NOTI-C": None if notifications is None else notifications.ready,
        "NOTI-D": letters,
    }
    found = []
    for name, slo in given.slos.items():
        value = observed.get(name)
        why = ""
        if value is None:
            why = unasked if name in ("ENT-A", "ENT-B") else Reason.NO_DATA.value
        elif name == "NOTI-B" and value == waits:
            why = "oldest_waiting"  # a word like those of `Reason`
        now, met = (None, None) if value is None else (round(value, 3), slo.met(value))
        found.append({"slo": name, "sli": slo.sli, "now": now, "objective": slo.objective, "met": met, "why": why})
    return pd.DataFrame(found, columns=["slo", "sli", "now", "objective", "met", "why"])


def _oldest_of_many(frames: Frames, sent: float, given: Given) -> float | None:
    """The age of the oldest event that waits, if so many wait that the p95 of all lies among them."""
    waiting = _waiting(frames)
    events, ages = sum(at.events for at in waiting), [at.oldest_s for at in waiting if at.oldest_s is not None]
    if not ages or events <= (1 - given.number("p95.in_time")) * (events + sent):
        return None
    return round(max(ages), 3)


def _waiting(frames: Frames) -> list[Affected]:
    """What waits on its way; the relay's FAILED does not wait, it is given up."""
    return [at for at in rows.each(frames.get("affected"), Affected) if at.place in HOP_OF]


def judge_impact(frames: Frames, given: Given) -> Finding:
    """3.1: who noticed, which objectives are missed, since when, how many events and users?"""
    outbox = rows.first(frames.get("outbox"), Outbox)
    if outbox is None or rows.first(frames.get("notifications"), Notifications) is None:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="sli"))
    slis = sli_rows(frames, given).to_dict("records")
    missed = [str(r["slo"]) for r in slis if r["met"] is False]
    seen = {str(r["slo"]): float(r["now"]) for r in slis if not pd.isna(r["now"])}
    late = next((at for at in rows.each(frames.get("affected"), Affected) if at.place == "all"), Affected())
    given_up = rows.first(frames.get("given_up"), GivenUp)
    lost = given_up or GivenUp()
    begin, how = onset(frames, given) if missed or late.events else (None, "")
    ttd = seconds_between(begin, given.detected_at) if begin is not None else None
    since = None if begin is None else _utc(begin)
    detected_at = None if given.detected_at is None else _utc(given.detected_at)

    limits = given.limits
    values = [
        Value("impact.events", late.events, "events"),
        Value("impact.users", late.users, "users"),
        Value("impact.given_up", lost.events, "events"),
        Value("impact.given_up_users", lost.users, "users"),
        Value("impact.onset", since),
        Value("detected_by", given.detected_by or None),
        Value("detected_at", detected_at),
        Value("ttd", ttd, "s"),
        limits.value("outbox.oldest_due", outbox.oldest_due_s),
        limits.value("outbox.failed", outbox.failed),
        limits.value("backlog.due", seen["NOTI-C"]),
    ]
    values += [limits.value(name, seen[slo]) for name, slo in SLO_OF.items() if slo in seen]
    if (burns := burn_rates(frames, given)) is not None:
        values += [limits.value("burn.fast", burns[0]), limits.value("burn.slow", burns[1])]
    ago = seconds_between(_last_late(frames), given.as_of)
    over = bool(missed) and not (late.events or lost.events) and _in_the_past(frames, given).issuperset(missed)
    if over:
        # What has been late is told; that it was is no alarm any more.
        past = {"burn.fast", "burn.slow", *SLO_OF}
        values = [replace(v, threshold=None) if v.name in past else v for v in values]
        quiet = given.number(recovery.SPANS["delivery"][0])
        if ago is not None and ago < quiet:
            values.append(Value(f"impact.{LOOK_AGAIN}", quiet - ago, "s"))
    if given_up is not None:
        values.append(limits.value("dlq.growth", lost.events / given.number("sli.now")))
    well = worst(v.status for v in values if v.status) is Status.OK
    silent_s = silence(frames, given)
    if missed:
        key = "impact_over" if over else "impact"
    elif late.events or lost.events:
        key = "impact_begins"
    else:
        key = "nothing_comes" if silent_s else "no_impact" if well else "no_impact_now"
    notes = [say("response.sli_note", minutes=given.number("sli.now"))]
    if silent_s and key != "nothing_comes":
        notes.append(say("response.nothing_comes", silent=silent_s))
    told_s = None if given.detected_at is None else seconds_between(given.detected_at, given.as_of)
    early_s = given.number("alert.early")
    if told_s is not None and told_s < early_s and not (missed or late.events or lost.events):
        notes.append(say("response.early", told=told_s, again=early_s - told_s))
        values.append(Value(f"impact.{LOOK_AGAIN}", early_s - told_s, "s"))
    if burns is None:
        notes.append(say("response.no_burn"))
    if unseen := [str(r["slo"]) for r in slis if r["why"] == Reason.NOT_CONFIGURED.value]:
        notes.append(say("response.not_from_sql", names=", ".join(unseen)))
    if given.detected_by or detected_at:
        by = say(f"response.by_{given.detected_by}") if given.detected_by else None
        notes.append(say("response.detected", by=by, at=detected_at))
    if how:
        notes.append(say(f"response.onset_{how}", at=since, ago=seconds_between(begin, given.as_of)))
    return judged(
        say(
            f"response.{key}",
            missed=", ".join(missed) or "-",
            n=len(missed),
            events=late.events,
            users=late.users,
            given_up=lost.events,
            oldest=late.oldest_s,
            since=since,
            minutes=given.number("sli.now"),
            ago=ago,
            silent=silent_s,
        ),
        values,
        at_least=worst(
            [
                Status.CRITICAL if missed and not over else Status.OK,
                Status.WARNING if missed or late.events or silent_s else Status.OK,
            ]
        ),
        notes=tuple(notes),
        hops=(
            *((Hop("producer", rate_out=0.0, late=True),) if silent_s else ()),
            *(
                Hop(HOP_OF[at.place], waiting=float(at.events), oldest_s=at.oldest_s, late=True)
                for at in _waiting(frames)
                if at.events
            ),
        ),
        next_sections=("4.4",) if any(seen.get(slo) for slo in ("ENT-E", "NOTI-D")) else (),
        show=("slis", "affected"),
    )


def onset(frames: Frames, given: Given) -> tuple[pd.Timestamp | None, str]:
    """When it began and how that is known: the oldest event that waits, else a change in a flow's rate.

    A change is known to the minute: the first event that went through it too slowly has a better time.
    """
    ages = [at.oldest_s for at in _waiting(frames) if at.oldest_s is not None]
    if ages:
        return given.as_of - pd.Timedelta(seconds=max(ages)), "oldest"
    found = []
    for name in ("sent", "processed", "published"):
        series = minutes_of(frames.get(name), given)
        at = stats.change_point(series).index
        if at is not None:
            found.append(series.index[at])
    failed = minutes_of(frames.get("dead"), given)
    rise = stats.trend_kind(failed).onset
    if rise is not None:
        found.append(failed.index[rise])
    if not found:
        return None, ""
    slow = table(frames, "sent", "minute", "first_slow")
    first = pd.to_datetime(
        slow.loc[pd.to_datetime(slow["minute"], utc=True) >= min(found), "first_slow"], utc=True
    ).min()
    return (min(found), "change") if pd.isna(first) else (first, "slow")


def silence(frames: Frames, given: Given) -> float | None:
    """Seconds since the newest event, where the rate of the window makes so long a silence no chance; else None."""
    newest = rows.first(frames.get("last_event"), LastEvent)
    silent_s = None if newest is None else seconds_between(newest.last_event, newest.now)
    if silent_s is None or silent_s < given.number("silence.least"):
        return None
    before = minutes_of(frames.get("published"), given)
    usual = before[: len(before) - int(silent_s // 60)]
    # Traffic that pauses at times may pause once more: the quietest minutes count, not the mean of all.
    expected = 0.0 if usual.empty else float(usual.quantile(given.number("silence.quiet"))) * silent_s / 60
    return silent_s if expected >= given.number("silence.expected") else None


def _in_the_past(frames: Frames, given: Given) -> set[str]:
    """The objectives on delays that only earlier events can miss where nobody waits: those of lately are in time."""
    lately = rows.first(frames.get("publish_delay_lately"), Delay)
    in_time = lately is not None and (lately.p95 is None or given.slos["ENT-C"].met(lately.p95))
    sent = _last_late(frames) is not None
    return {slo for slo, past in {"ENT-C": in_time, "NOTI-B": sent}.items() if past}


def _last_late(frames: Frames) -> pd.Timestamp | None:
    """When the last one was sent that took longer than NOTI-B allows."""
    found = pd.to_datetime(table(frames, "sent", "minute", "last_slow")["last_slow"], utc=True).max()
    return None if pd.isna(found) else found


def minutes_of(frame: pd.DataFrame | None, given: Given, column: str = "n") -> pd.Series[float]:
    """Counts per full minute of the window; the minute that is still filling is left out."""
    last = given.as_of.floor("min") - history.MINUTE
    index = pd.date_range(end=last, periods=max(given.window_minutes - 1, 1), freq="min", name="minute")
    if frame is None or not {"minute", column} <= set(frame.columns):
        return pd.Series(0.0, index=index)
    minutes = pd.to_datetime(frame["minute"], utc=True)
    counted = pd.Series(pd.to_numeric(frame[column]).to_numpy(dtype=float), index=minutes)
    return counted.groupby(level=0).sum().reindex(index, fill_value=0.0)


def burn_rates(frames: Frames, given: Given) -> tuple[float, float] | None:
    """The worse burn rate of NOTI-A and NOTI-B over both pairs; a pair counts by the lower of its two windows."""
    sent, failed = frames.get("sent"), frames.get("dead")
    if sent is None or failed is None or "slow" not in sent:
        return None
    allowed = {"NOTI-A": given.slos["NOTI-A"].number / 100, "NOTI-B": given.number("p95.in_time")}

    def rate(slo: str, window: str) -> float:
        since = given.as_of - pd.Timedelta(minutes=given.number(window))
        done, slow = _since(sent, "n", since), _since(sent, "slow", since)
        dead = _since(failed, "n", since)
        bad, total = (dead, done + dead) if slo == "NOTI-A" else (slow, done)
        burn = stats.burn_rate(bad, total, allowed[slo])
        return 0.0 if burn != burn else burn

    fast = max(min(rate(slo, window) for window in BURN_FAST) for slo in allowed)
    slow = max(min(rate(slo, window) for window in BURN_SLOW) for slo in allowed)
    return round(fast, 2), round(slow, 2)


def _since(frame: pd.DataFrame, column: str, since: pd.Timestamp) -> float:
    if frame.empty or "minute" not in frame:
        return 0.0
    return float(pd.to_numeric(frame.loc[pd.to_datetime(frame["minute"], utc=True) >= since, column]).sum())


def draw_flows(frames: Frames, given: Given) -> charts.Chart | None:
    """The three flows behind the impact, minute by minute, and when it began."""
    series = {name: minutes_of(frames.get(name), given) for name in ("published", "processed", "sent")}
    if not any(s.any() for s in series.values()):
        return None
    figure, ax = charts.axes("Published, processed, sent", "events / min", "UTC")
    given_up = minutes_of(frames.get("dead"), given)
    lines = [
        ("published", series["published"], charts.BLUE, ":"),
        ("processed", series["processed"], charts.GREY, "-"),
        ("sent", series["sent"], charts.GREEN, "--"),
        *([("dead letters", given_up, charts.RED, "-")] if given_up.any() else []),
    ]
    for label, counts, colour, line in lines:
        # A step per minute, and one more point where the last minute ends.
        ends = pd.date_range(counts.index[0], periods=len(counts) + 1, freq="min")
        rates = [*counts.to_numpy(), counts.iloc[-1]]
        ax.step(ends, rates, where="post", color=colour, linestyle=line, linewidth=1.8, label=label)
    missed = any(r["met"] is False for r in sli_rows(frames, given).to_dict("records"))
    begin = onset(frames, given)[0] if missed else None
    if begin is not None and begin >= given.as_of - pd.Timedelta(minutes=given.window_minutes):
        ax.axvline(begin.floor("s").to_pydatetime(), color=charts.RED, linewidth=1.2, linestyle="-.", label="began")  # type: ignore[arg-type]
    ax.set_ylim(0, 1.3 * max(float(counts.max()) for _, counts, _, _ in lines))
    charts.clock_ticks(ax)
    ax.legend(loc="upper left", fontsize=8, frameon=False, ncols=5)
    last = {name: float(counts.iloc[-1]) for name, counts in series.items()}
    return charts.Chart(
        figure,
        say("response.alt_flows", minutes=given.window_minutes, began=None if begin is None else _utc(begin), **last),
        (say("response.flows_caption"),),
    )


# 3.2 Where it is stuck --------------------------------------------------------------------------------------

#: The four checks of 4.1, in the order of that section.
PLACES = {
    check.step: check
    for topic in (backlog, subscriber, publish, database)
    for check in topic.CHECKS
    if check.step.startswith("4.1.")
}
#: What each of them asks.
ASKED = {"4.1.3": "outbox", "4.1.2": "NATS", "4.1.1": "notification", "4.1.4": "database"}
#: What may be broken while all flows, each by a cheap question; the step's section has more of it.
INVARIANTS = {
    check.step: check
    for topic in (duplicates, leases, consistency)
    for check in topic.CHECKS
    if check.step in ("4.2.1", "4.3.5", "5.3.4")
} | {"4.2.2": Check("4.2.2", recovery.collect_duplicates, recovery.judge_duplicates)}
PARTS = PLACES | INVARIANTS


def collect_place(rb: Context) -> Frames:
    """3.2: all that 4.1 asks, and of the invariants; each part may fail alone. Frames: as "step.frame"."""
    return collect_each(rb, PARTS)


def judge_place(frames: Frames, given: Given) -> Finding:
    """3.2: which of outbox, NATS, notification and database holds it up?"""
    found = judge_each(frames, given, PARTS)
    # Who waits by 3.1 waits somewhere, also where no part of this step alone is late.
    waits = [replace(f, status=Status.OK, values=()) for f in given.earlier if f.step == "3.1"]
    verdict = diagnosis.conclude([*waits, *found.values()], given.catalog)
    first = _loudest(found, verdict.stuck_at)
    unseen = dict.fromkeys(u.source for f in found.values() for u in f.unseen)
    facts = {
        "place": _places(*([verdict.stuck_at] if verdict.stuck_at else verdict.undecided)),
        "names": ", ".join(what for step, what in ASKED.items() if found[step].status is Status.OK),
        "unseen": ", ".join(unseen),
        "why": first.headline,
    }
    if verdict.stuck_at:
        headline = say("response.stuck", **facts)
    elif verdict.undecided:
        loud = first.status is not Status.OK or not waits
        key = "response.undecided" if len(verdict.undecided) > 1 else "response.perhaps"
        headline = say(key, **facts | {"why": first.headline if loud else waits[0].headline})
    elif first.status is Status.OK:
        headline = say("response.not_stuck_of_seen" if unseen else "response.not_stuck", **facts)
    elif first.status is Status.UNKNOWN:
        headline = say("response.not_seen", **facts)
    else:
        headline = say("response.unclear" if _wrong(found, PLACES) else "response.flows_but", **facts)
    return judged(
        headline,
        [
            Value("stuck_at", verdict.stuck_at),
            *(Value(f"status.{step}", f.status.name) for step, f in found.items()),
            *{v.name: v for f in found.values() for v in f.values if v.threshold}.values(),
        ],
        at_least=verdict.status,
        reason=next((f.reason for f in found.values() if f.counts and f.reason), None),
        notes=tuple(say("response.part", step=step, answer=f.headline) for step, f in found.items()),
        signals=tuple(s for f in found.values() for s in f.signals),
        hops=tuple(h for f in found.values() for h in f.hops),
        proposals=verdict.proposals,
        next_sections=_next(verdict, found),
        unseen=tuple(dict.fromkeys(u for f in found.values() for u in f.unseen)),
    )


def _wrong(found: dict[str, Finding], parts: Iterable[str]) -> list[Finding]:
    return [found[part] for part in parts if found[part].status in (Status.WARNING, Status.CRITICAL)]


def _loudest(found: dict[str, Finding], stuck_at: str | None) -> Finding:
    """The finding that speaks most for the place, else the worst one."""

    def weight(f: Finding) -> tuple[float, int]:
        return max((s.weight for s in f.signals if s.about == stuck_at), default=0.0), f.status.rank

    counting = [f for f in found.values() if f.counts] or list(found.values())
    return max(counting, key=weight)


def _places(*hops: str) -> Text | None:
    """One hop, or several that it may be, in words."""
    words: list[Text] = [say(f"hop.{hop}") for hop in hops]
    return reduce(lambda a, b: say("response.either", a=a, b=b), words) if words else None


def _next(verdict: Verdict, found: dict[str, Finding]) -> tuple[str, ...]:
    """The sections with a notebook that fit what is seen."""
    sections: list[str] = []
    silent = [f for f in found.values() if "2" in f.next_sections]
    held_up, broken = _wrong(found, PLACES), _wrong(found, INVARIANTS)
    wrong = held_up or broken
    if silent and not wrong and not verdict.undecided and not verdict.stuck_at:
        return ("2",)
    if held_up or (verdict.status is not Status.OK and not broken):
        sections.append("4.1")
    notifications = found["4.1.1"]
    held = sum(float(notifications.value(f"backlog.{name}") or 0) for name in ("leased", "expired"))
    holders = float(notifications.value("processing.holders") or 0)
    if verdict.stuck_at == "delivery_worker" or (verdict.stuck_at and held) or holders > 1:
        sections.append("4.3")
    lost = found["4.1.2"].value("outbox.unprocessed")
    if isinstance(lost, float | int) and lost > 0:
        sections.append("5.3")
    sections += [f.step.rpartition(".")[0] for f in broken]
    if silent or verdict.stuck_at == "jetstream":
        sections.append("2")
    return tuple(dict.fromkeys(sections))


# 3.3 The smallest safe recovery -----------------------------------------------------------------------------

#: Where the responder reads on when no command is justified.
READ_ON = {
    "producer": "4.4",
    "relay": "4.1",
    "jetstream": "2",
    "subscriber": "4.1",
    "delivery_worker": "4.3",
    "receiver": "4.4",
    "database": "4.1",
}


def place_of(given: Given) -> Finding | None:
    """The answer of 3.2 in this run."""
    return next((f for f in given.earlier if f.step == "3.2"), None)


def collect_recovery(rb: Context) -> Frames:
    """3.3 asks nothing: it weighs what 3.2 found. Frame proposed (command: text, section: text)."""
    place = place_of(rb.given())
    rows = [{"command": p.command, "section": p.section} for p in place.proposals] if place else []
    return {"proposed": pd.DataFrame(rows, columns=["command", "section"])}


def judge_recovery(frames: Frames, given: Given) -> Finding:
    """3.3: restart, throttle, or wait? The first proposal that 3.2 justifies; nothing is run."""
    place = place_of(given)
    if place is None:
        return unknown("", Reason.SKIPPED, say("response.needs_place"))
    if place.proposals:
        first = place.proposals[0]
        return judged(
            say("response.do", title=_title(first), command=first.command, section=first.section),
            [Value("proposals", len(place.proposals))],
            at_least=Status.WARNING,
            notes=(say("response.nothing_run"), *(_other(p) for p in place.proposals[1:])),
            proposals=place.proposals[:1],
            show=("proposed",) if len(place.proposals) > 1 else (),
        )
    if place.status is Status.OK:
        return judged(say("response.do_nothing"), [Value("proposals", 0)])
    stuck_at = place.value("stuck_at")
    section = READ_ON.get(str(stuck_at), next(iter(place.next_sections), "4.1"))
    place_named = _places(str(stuck_at)) if stuck_at else None
    return judged(
        say("response.do_look", place=place_named, section=section),
        [Value("proposals", 0)],
        at_least=Status.WARNING,
        notes=(say("response.nothing_run"),),
    )


def _title(proposal: Proposal) -> Text:
    return say(f"proposal.{proposal.name}.title", **proposal.params)


def _other(proposal: Proposal) -> Text:
    return say("response.also", title=_title(proposal), command=proposal.command)


# 3.4 What would count as recovered --------------------------------------------------------------------------

#: The four criteria of section 6.
CRITERIA = {check.step: check for check in recovery.CHECKS if check.step in ("6.1", "6.2", "6.3", "6.4")}


def collect_criteria(rb: Context) -> Frames:
    """3.4: what section 6 asks for its four criteria. Frames: those of section 6, as "step.frame"."""
    return collect_each(rb, CRITERIA)


def judge_criteria(frames: Frames, given: Given) -> Finding:
    """3.4: which of the four criteria hold at this moment, and what would meet the others?"""
    found = judge_each(frames, given, CRITERIA)
    unmet = [step for step, f in found.items() if f.status is not Status.OK]
    notes = [say("response.criterion_unmet", step=s, answer=found[s].headline, target=say(f"response.target_{s[-1]}",
             **_targets(given))) for s in unmet]  # fmt: skip
    notes += [
        say("response.criterion_met", step=step, answer=f.headline) for step, f in found.items() if step not in unmet
    ]
    return judged(
        say("response.criteria_unmet", n=len(unmet), steps=", ".join(unmet)) if unmet else say("response.criteria_met"),
        [Value(step, f.status.name) for step, f in found.items()],
        at_least=worst(f.status for f in found.values()),
        reason=next((f.reason for f in found.values() if f.reason), None),
        notes=tuple(notes),
    )


def _targets(given: Given) -> dict[str, Any]:
    limits = given.limits
    return {
        "due": limits["backlog.due"].warning,
        "oldest": limits["backlog.oldest_due"].warning,
        "outbox": limits["outbox.oldest_due"].warning,
        "rate": limits["errors.rate"].warning,
        "quiet": given.number("letters.quiet_least"),
        "e2e": limits["delivery.e2e_p95"].warning,
        "publish": limits["outbox.publish_delay_p95"].warning,
    }


# 3.5 Record -------------------------------------------------------------------------------------------------


def collect_record(rb: Context) -> Frames:
    """3.5 asks nothing: it tells what this run has seen. Frame record (what: text, value: text)."""
    return {"record": record(rb.given())}


def record(given: Given) -> pd.DataFrame:
    """What to keep of this moment, one line each."""
    impact = next((f for f in given.earlier if f.step == "3.1"), None)
    place = place_of(given)
    verdict = diagnosis.conclude(given.earlier, given.catalog) if given.earlier else None
    kept: list[tuple[str, Any]] = [("looked_at", _utc(given.as_of))]
    if impact is not None:
        kept += [
            ("detected_by", impact.value("detected_by")),
            ("detected_at", impact.value("detected_at")),
            ("onset", impact.value("impact.onset")),
            ("ttd_s", impact.value("ttd")),
            ("events_waiting", impact.value("impact.events")),
            ("users_waiting", impact.value("impact.users")),
            ("events_given_up", impact.value("impact.given_up")),
        ]
        missed = impact.headline.params.get("missed")
        kept.append(("objectives_missed", missed or "-"))
    if place is not None:
        modes: dict[str, float] = {}
        for s in place.signals:
            if s.about.startswith("FM-"):
                modes[s.about] = diagnosis.score([place], s.about).score
        ranked = sorted((m for m, score in modes.items() if score > 0), key=lambda m: -modes[m])
        kept += [
            ("stuck_at", place.value("stuck_at")),
            ("failure_modes", ", ".join(ranked[:3])),
            ("proposed", place.proposals[0].command if place.proposals else "-"),
        ]
    if verdict is not None:
        kept.append(("status", verdict.status.name))
    shown = [(what, "-" if value in (None, "") else _word(value)) for what, value in kept]
    return pd.DataFrame(shown, columns=["what", "value"])


def _word(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def judge_record(frames: Frames, given: Given) -> Finding:
    """3.5: what was seen, when, and what was decided, as a table and as one line to paste."""
    kept = frames.get("record")
    if kept is None or not {"what", "value"} <= set(kept.columns):
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="record"))
    line = dict(zip(kept["what"].astype(str), kept["value"].astype(str), strict=True))
    if "stuck_at" not in line or "onset" not in line:
        return unknown("", Reason.SKIPPED, say("response.needs_place"))
    return judged(
        say("response.recorded", n=len(kept)),
        [Value("record.lines", len(kept))],
        notes=(
            say("response.paste", **{k: None if line.get(k) == "-" else line.get(k) for k in _PASTED}),
            say("response.decide"),
        ),
        show=("record",),
    )


_PASTED = (
    "looked_at", "status", "stuck_at", "failure_modes", "onset", "detected_by", "detected_at",
    "objectives_missed", "events_waiting", "users_waiting", "events_given_up", "proposed",
)  # fmt: skip


def _utc(moment: pd.Timestamp) -> str:
    return f"{moment.tz_convert('UTC'):%Y-%m-%dT%H:%M:%SZ}"


CHECKS: tuple[Check, ...] = (
    Check("3.1", collect_impact, judge_impact, (draw_flows,)),
    Check("3.2", collect_place, judge_place),
    Check("3.3", collect_recovery, judge_recovery),
    Check("3.4", collect_criteria, judge_criteria),
    Check("3.5", collect_record, judge_record),
)
