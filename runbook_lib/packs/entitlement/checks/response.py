"""Section 3, the first response: impact, location, smallest safe action, recovery criteria, record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks import triage
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import (
    FrameCollector,
    seconds_between,
)
from runbook_lib.checks.triage import format_utc
from runbook_lib.diagnosis import history, stats
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Finding,
    Frames,
    Hop,
    HopHistory,
    Reason,
    Signal,
    Status,
    Text,
    Value,
    Verdict,
    judged,
    replace,
    say,
    worst,
)
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.checks import (
    backlog,
    consistency,
    database,
    duplicates,
    leases,
    outage,
    publish,
    recovery,
    subscriber,
)
from runbook_lib.packs.entitlement.checks.consistency import ConsumerLag
from runbook_lib.packs.entitlement.checks.series import ask_given_up, ask_per_minute, ask_since, longest_start
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.retention import Oldest
from runbook_lib.packs.entitlement.rows import Delay, Delivered, Letters, Notifications, Outbox, OutboxAges
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The two pairs of the burn rate, long and short window.
BURN_FAST, BURN_SLOW = ("burn.fast_long", "burn.fast_short"), ("burn.slow_long", "burn.slow_short")
#: The parts of 3.1 without which nobody knows whether anybody is affected.
_TABLES = ("affected", "outbox", "notifications")
#: The parts of 3.1 that tell since when, and whether it is over, of what the others show.
_COURSE = (
    *("publish_delay_lately", "published_before", "deletions", "consumer"),
    *("sent", "dead", "published", "processed", "created", "published_steps", "sent_steps"),
)
#: The hop at which an event of a place (sli/affected) waits.
HOP_OF = {"outbox": "relay", "broker": "subscriber", "notification": "delivery_worker"}
#: The hops whose rate the rows show: hop, frame of 3.1, and whether these came or left.
_HISTORIES = (("jetstream", "published", "came"), ("subscriber", "processed", "gone"), ("receiver", "sent", "gone"))
#: The thresholds of SLIs, applied if the SLI has a value.
SLO_OF = {"outbox.publish_delay_p95": "ENT-C", "delivery.e2e_p95": "NOTI-B", "delivery.success": "NOTI-A"}


class Affected(rows.Row, query="sli/affected"):
    """The events and users that wait too long in one `place`, or in "all" places."""

    place: str = ""
    events: int = 0
    users: int = 0
    oldest_s: float | None = None


class GivenUp(rows.Row, query="sli/given_up_users"):
    """The number of given-up notifications, and of their users."""

    events: float = 0.0
    users: float = 0.0


class Requests(rows.Row):
    """Requests by Prometheus: the share that succeeded (%), and the p95 of their duration (s)."""

    success: float | None = None
    p95: float | None = None


#: The queries of 3.1 about the last minutes, by frame.
_LATELY = {
    "outbox": Outbox.QUERY,
    "last_event": OutboxAges.QUERY,
    "notifications": Notifications.QUERY,
    "given_up": GivenUp.QUERY,
}


# 3.1 Impact -------------------------------------------------------------------------------------------------


def collect_impact(rb: Context) -> Frames:
    """3.1: read every SLI that timestamps give, who is affected, and the flows that show the onset.

    Frames: affected, those of `_ask_for_deletions`, outbox, outbox_age, publish_delay, publish_delay_lately,
    notifications, last_event; where cheap delivered, given_up, given_up_messages, sent, dead, published, processed,
    created, those of `outage.ask`, and published_before (of the window before the newest event, if that is not
    recent); requests (success: %, p95: s); slis (slo: text, sli: text, now: number, objective: text, met: flag,
    why: text).
    """
    parts = FrameCollector()
    now = rb.as_of - pd.Timedelta(minutes=rb.number("sli.now"))
    with rb.snapshot() as db:
        late_s = rb.catalog.limits["backlog.oldest_due"].warning
        parts.ask(db, {"affected": Affected.QUERY}, late_s=late_s)
        _ask_for_deletions(rb, db, parts)
        parts.ask(db, _LATELY, since=now)
        ask_since(rb, db, parts, Delay.QUERY, publish_delay="now", publish_delay_lately="lately")
        ask_since(rb, db, parts, Delivered.QUERY, delivered="now")
        ask_since(rb, db, parts, Letters.QUERY, given_up_messages="now")
        _query_per_minute(rb, db, parts)
        outage.ask(rb, db, parts, *outage.FLOWS)
        newest = rows.one(parts.answers.get("last_event"), OutboxAges)
        if newest.last_event is not None and _seconds_without_event(parts.answers, rb.given()):
            before = newest.last_event - pd.Timedelta(minutes=rb.given().window_minutes)
            ask_per_minute(rb, db, parts, "outbox", since=before, published_before="n")
    with parts.part("prometheus") as answers:
        answers["requests"] = _query_requests(rb)
    if parts.answers:
        parts.answers["slis"] = sli_rows(parts.frames(), rb.given())
    return parts.frames()


def _ask_for_deletions(rb: Context, db: Snapshot, parts: FrameCollector) -> None:
    """Ask what was deleted if events seem to wait at the broker, and if that explains them, how many it holds."""
    missing = [at.events for at in rows.each(parts.answers.get("affected"), Affected) if at.place == "broker"]
    if not sum(missing):
        return
    parts.ask(db, {"deletions": Oldest.QUERY})
    oldest = rows.first(parts.answers.get("deletions"), Oldest)
    if oldest is not None and oldest.may_lack(1, rb.number("retention.notifications")):
        with parts.part("consumer") as answers:
            names = facts_of(rb).streams
            consumer = rb.source("jetstream").consumer(names.events, names.consumer)
            answers["consumer"] = row(pending=consumer.num_pending, unacknowledged=consumer.num_ack_pending)


def _query_per_minute(rb: Context, db: Snapshot, parts: FrameCollector) -> None:
    long_ago = longest_start(rb)
    ask_per_minute(rb, db, parts, "notifications", since=long_ago, sent="n", created="arrived")
    ask_per_minute(rb, db, parts, "outbox", published="n")
    ask_given_up(rb, db, parts, "dead", since=long_ago)
    parts.ask(db, {"processed": "processed/per_minute"})


def _query_requests(rb: Context) -> pd.DataFrame:
    """Query Prometheus for the requests of the two POST routes: the share that succeeded, the p95 of their duration."""
    route = 'uri=~"/v1/entitlements/(grants|revokes)",method="POST"'
    window = f"[{rb.number('sli.now'):g}m]"
    total = f"sum(rate(http_server_requests_seconds_count{{{route}}}{window}))"
    bad = f'sum(rate(http_server_requests_seconds_count{{{route},status=~"5.."}}{window}))'
    buckets = f"sum by (le) (rate(http_server_requests_seconds_bucket{{{route}}}{window}))"

    def value(promql: str) -> float | None:
        return rows.value(rb.source("prometheus").instant(promql, rb.as_of), "value", float)

    asked, failed = value(total), value(bad)
    return row(
        # Without a failed request Prometheus has no series of failures.
        success=None if not asked else 100 * (1 - (0.0 if failed is None else failed) / asked),
        p95=value(f"histogram_quantile({rb.number('p95.in_time'):g}, {buckets})"),
    )


def sli_rows(frames: Frames, given: JudgeInput) -> pd.DataFrame:
    """Return each SLI now with its objective; `met` is None if the SLI has no value, and `why` is the reason."""
    outbox = rows.first(frames.get("outbox"), Outbox)
    notifications = rows.first(frames.get("notifications"), Notifications)
    outbox_age = rows.first(frames.get("outbox_age", frames.get("last_event")), OutboxAges)
    requests = rows.one(frames.get("requests"), Requests)
    given_up = rows.first(frames.get("given_up"), GivenUp)
    delivered = rows.first(frames.get("delivered"), Delivered)
    messages = rows.first(frames.get("given_up_messages"), Letters)
    letters = given_up.events + messages.n if given_up and messages else None
    ended = delivered.n + given_up.events if delivered and given_up else None
    e2e = delivered.p95 if delivered else None
    waits = _oldest_at_p95(frames, delivered.n, given) if delivered else None
    if waits is not None and (e2e is None or waits >= e2e):
        e2e = waits
    e = failures(frames).get("prometheus")
    unasked = e.reason.value if e and "requests" not in frames else Reason.NO_DATA.value
    observed: dict[str, float | None] = {
        "ENT-A": requests.success,
        "ENT-B": requests.p95,
        "ENT-C": rows.one(frames.get("publish_delay"), Delay).p95,
        "ENT-D": None if outbox_age is None else outbox_age.p95,
        "ENT-E": None if outbox is None else outbox.failed,
        "NOTI-A": 100 * delivered.n / ended if delivered and ended else None,
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


def _oldest_at_p95(frames: Frames, sent: float, given: JudgeInput) -> float | None:
    """Return the age of the oldest waiting event, if so many wait that the p95 of all events is among them."""
    waiting = _read_waiting(frames, given)
    events, ages = sum(at.events for at in waiting), [at.oldest_s for at in waiting if at.oldest_s is not None]
    if not ages or events <= (1 - given.number("p95.in_time")) * (events + sent):
        return None
    return round(max(ages), 3)


def _has_onset(frames: Frames, given: JudgeInput, missed: Iterable[str]) -> bool:
    """Return whether the traffic of today may tell since when: not of rows that were given up, which miss for ever."""
    return bool(_read_waiting(frames, given) or {*missed} - {"ENT-E"})


def _read_waiting(frames: Frames, given: JudgeInput) -> list[Affected]:
    """Return the events that wait at a hop, without the relay's FAILED events, which were given up."""
    return [at for at in _read_affected(frames, given) if at.place in HOP_OF and at.events]


def _read_affected(frames: Frames, given: JudgeInput) -> list[Affected]:
    """Return the events that wait too long, place by place, without those that may have been processed."""
    places = [at for at in rows.each(frames.get("affected"), Affected) if at.place != "all"]
    waiting = {at.place: _count_waiting_at_broker(at.events, frames, given) for at in places if at.place == "broker"}
    return [replace(at, events=waiting.get(at.place, at.events)) for at in places]


def _count_waiting_at_broker(events: int, frames: Frames, given: JudgeInput) -> int:
    """Return how many published events wait: those that the consumer holds, if the others may have been processed."""
    held, oldest = rows.one(frames.get("consumer"), ConsumerLag).lag, rows.first(frames.get("deletions"), Oldest)
    if "consumer" not in frames or held is None or oldest is None or events <= held:
        return events
    keep_d = given.number("retention.notifications")
    return int(held) if oldest.may_lack(events - int(held), keep_d) else events


def _sum_affected(frames: Frames, given: JudgeInput) -> Affected:
    """Return the events and users that wait too long in all places; without some events, at most so many users."""
    every = {at.place: at for at in rows.each(frames.get("affected"), Affected)}
    counted, whole = [at for at in _read_affected(frames, given) if at.events], every.get("all", Affected())
    events = sum(at.events for at in counted)
    if events == whole.events:
        return whole
    ages = [at.oldest_s for at in counted if at.oldest_s is not None]
    users = min(sum(min(at.users, at.events) for at in counted), whole.users)
    return Affected("all", events, users, max(ages, default=None))


#: How events are unpaired, by whether the registrations are more: the message and the observation.
_UNPAIRED = {
    True: ("response.not_queued", "consistency.registered_only"),
    False: ("response.not_registered", "consistency.queued_only"),
}


def judge_impact(frames: Frames, given: JudgeInput) -> Finding:
    """3.1: report which objectives are missed, since when, how many events and users are affected, and who noticed."""
    outbox = rows.first(frames.get("outbox"), Outbox)
    unread = not frames.keys() >= {*_TABLES}
    slis = sli_rows(frames, given).to_dict("records")
    missed = [str(r["slo"]) for r in slis if r["met"] is False]
    seen = {str(r["slo"]): float(r["now"]) for r in slis if not pd.isna(r["now"])}
    late = _sum_affected(frames, given)
    doubtful = sum(at.events for at in rows.each(frames.get("affected"), Affected) if at.place == "all") - late.events
    given_up = rows.first(frames.get("given_up"), GivenUp)
    lost = given_up.events if given_up else None
    begin, how = onset(frames, given) if _has_onset(frames, given, missed) else (None, "")
    # What was detected before its onset has another onset.
    ttd = seconds_between(begin, given.detected_at) if begin and (given.detected_at or begin) >= begin else None
    since = None if begin is None else format_utc(begin)
    detected_at = None if given.detected_at is None else format_utc(given.detected_at)

    limits = given.limits
    values = [
        Value("impact.events", late.events if "affected" in frames else None, "events"),
        Value("impact.users", late.users if "affected" in frames else None, "users"),
        Value("impact.given_up", lost, "events"),
        Value("impact.given_up_users", given_up.users if given_up else None, "users"),
        Value("impact.missed", ", ".join(missed) or None),
        Value("impact.onset", since),
        Value("detected_by", given.detected_by or None),
        Value("detected_at", detected_at),
        Value("ttd", ttd, "s"),
        limits.value("outbox.oldest_due", outbox.oldest_s if outbox else None),
        limits.value("outbox.failed", outbox.failed if outbox else None),
        limits.value("backlog.due", seen.get("NOTI-C")),
    ]
    values += [limits.value(name, seen[slo]) for name, slo in SLO_OF.items() if slo in seen]
    if (burns := burn_rates(frames, given)) is not None:
        values += [limits.value("burn.fast", burns[0]), limits.value("burn.slow", burns[1])]
    ago = seconds_between(_last_late_sent(frames), given.as_of)
    if given_up is not None:
        values.append(limits.value("dlq.growth", given_up.events / given.number("sli.now")))
    ended = outage.find_end(frames, given, *outage.FLOWS)
    in_past = (
        bool(missed) and not (unread or late.events) and _in_order_again(frames, given, bool(ended)).issuperset(missed)
    )
    if in_past:
        # Past delays are reported, but they are no alarm any more.
        past = {"burn.fast", "burn.slow", "dlq.growth", *SLO_OF}
        values = [replace(v, threshold=None) if v.name in past else v for v in values]
        again = outage.look_again_s(frames, given, *outage.FLOWS)
        if again is not None:
            values.append(Value(f"impact.{LOOK_AGAIN}", again, "s"))
    well = worst(v.status for v in values if v.status) is Status.OK
    (silent_s, known), unpaired = measure_silence(frames, given), _count_unpaired(frames, given)
    if missed:
        if in_past:
            key = "response.impact_over" if ended else "response.impact_passed"
        else:
            key = "response.impact" if "affected" in frames else "response.impact_uncounted"
    elif late.events or lost:
        key = "response.impact_begins"
    elif silent_s:
        key = "response.nothing_comes"
    elif unpaired:
        key = _UNPAIRED[unpaired > 0][0]
    else:
        key = "response.no_impact" if well else "response.no_impact_now"
    notes = [say("response.sli_note", minutes=given.number("sli.now"))]
    if silent_s and key != "response.nothing_comes":
        notes.append(say("response.nothing_comes", silent=silent_s))
    signals: tuple[Signal, ...] = ()
    if unpaired:
        unpaired_key, observation = _UNPAIRED[unpaired > 0]
        signals += given.evidence(observation)
        if key != unpaired_key:
            notes.append(say(unpaired_key, unpaired=abs(unpaired), window=given.window_minutes))
    since_detection_s = None if given.detected_at is None else seconds_between(given.detected_at, given.as_of)
    early_s = given.number("alert.early")
    # No effect is only what was seen to be none: every place was read, and something got through just now.
    nothing_waits = "affected" in frames and not (doubtful or missed or late.events or lost or silent_s or unpaired)
    if nothing_waits and outage.all_in_time(frames, given, *outage.FLOWS):
        signals += given.evidence("flow.passes")
    if since_detection_s is not None and since_detection_s < early_s and not (missed or late.events or lost):
        notes.append(say("response.early", told=since_detection_s, again=early_s - since_detection_s))
        values.append(Value(f"impact.{LOOK_AGAIN}", early_s - since_detection_s, "s"))
    if burns is None:
        notes.append(say("response.no_burn"))
    unclear = [say("response.doubtful", n=doubtful)] if doubtful > 0 else []
    if not known:
        unclear.append(say("response.silence_unclear", silent=_seconds_without_event(frames, given)))
    if unseen := [str(r["slo"]) for r in slis if r["why"] == Reason.NOT_CONFIGURED.value]:
        notes.append(say("response.not_from_sql", names=", ".join(unseen)))
    if how:
        notes.append(say(f"response.onset_{how}", at=since, ago=seconds_between(begin, given.as_of)))
    elif begin_before := _began_before(frames, given):
        notes.append(say("response.onset_before", at=format_utc(begin_before)))
    # What is not clear is more than "no impact".
    instead = unclear
    if key not in ("response.no_impact", "response.no_impact_now"):
        notes += unclear
        instead = []
    return judged(
        instead[0]
        if instead
        else say(
            key,
            missed=", ".join(missed) or "-",
            n=len(missed),
            events=late.events,
            users=late.users,
            given_up=lost,
            oldest=late.oldest_s,
            since=since,
            minutes=given.number("sli.now"),
            ago=ago,
            silent=silent_s,
            unpaired=unpaired and abs(unpaired),
            window=given.window_minutes,
        ),
        values,
        at_least=worst(
            [
                Status.CRITICAL if missed and not in_past else Status.OK,
                Status.WARNING if missed or late.events or silent_s or unpaired else Status.OK,
                Status.UNKNOWN if instead else Status.OK,
            ]
        ),
        notes=tuple(notes),
        signals=signals,
        hops=(
            *((Hop("producer", rate_out=0.0, late=True),) if silent_s else ()),
            *(
                Hop(HOP_OF[at.place], waiting=float(at.events), oldest_s=at.oldest_s, late=True)
                for at in _read_waiting(frames, given)
            ),
            *_flow_histories(frames, given),
        ),
        next_sections=(
            *(("4.4",) if any(seen.get(slo) for slo in ("ENT-E", "NOTI-D")) else ()),
            *(("5.3",) if unpaired or unclear else ()),
        ),
        show=("slis", "affected"),
        ended=ended if in_past else None,
    )


def _count_unpaired(frames: Frames, given: JudgeInput) -> float | None:
    """Return how many events of the window were registered without a notification; negative: the reverse.

    The subscriber writes both in one transaction, with one time, and both are read in one. None if they agree, or if
    one of them was not read whole.
    """
    registered, created = (frames.get(name) for name in ("processed", "created"))
    if registered is None or created is None or registered.attrs.get("capped") or created.attrs.get("capped"):
        return None
    apart = float(registered["n"].sum()) - float(created["n"].sum())
    return apart if abs(apart) > given.number("conserved.slack") else None


def _flow_histories(frames: Frames, given: JudgeInput) -> Iterator[Hop]:
    """Yield the hops whose rate per minute the rows show, with that rate over the window."""
    for hop, name, side in _HISTORIES:
        if name in frames:
            rates = counts_by_minute(frames[name], given).tail(HopHistory.MOST)
            series: dict[str, tuple[float, ...]] = {"came": (), "gone": (), side: tuple(map(float, rates))}
            yield Hop(hop, past=HopHistory(rates.index[0], 60.0, came=series["came"], gone=series["gone"]))


def onset(frames: Frames, given: JudgeInput) -> tuple[pd.Timestamp | None, str]:
    """Return the onset and how it is known: by the "oldest" waiting event, else by a "change" in a flow's rate.

    While rows are given up, by whichever is earlier.
    A change is known to the minute only; the first "slow" event after it gives a more exact time. None and
    "" if neither tells, or if events may wait for longer than they were read.
    """
    ages = [at.oldest_s for at in _read_waiting(frames, given) if at.oldest_s is not None]
    if _began_before(frames, given) is not None:
        return None, ""
    oldest = given.as_of - pd.Timedelta(seconds=max(ages)) if ages else None
    failed = counts_by_minute(frames.get("dead"), given)
    # Rows that were given up meanwhile waited before the oldest one that still waits.
    if oldest is not None and not failed[failed.index >= oldest.floor("min")].any():
        return oldest, "oldest"
    at, how = _find_change(frames, given, failed)
    return (oldest, "oldest") if oldest is not None and (at is None or oldest <= at) else (at, how)


def _find_change(frames: Frames, given: JudgeInput, failed: pd.Series[float]) -> tuple[pd.Timestamp | None, str]:
    found = []
    for name in ("sent", "processed", "published"):
        series = counts_by_minute(frames.get(name), given)
        at = stats.change_point(series).index
        if at is not None:
            found.append(series.index[at])
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


def _began_before(frames: Frames, given: JudgeInput) -> pd.Timestamp | None:
    """Return the time of the oldest waiting event that was read, if older ones may wait; None if they do not."""
    waiting = [(at, at.oldest_s) for at in _read_waiting(frames, given) if at.oldest_s is not None]
    edge_s, most = 60 * (given.window_minutes - 1), given.number("affected.most")
    cut = any(at.events >= most or (at.place == "broker" and oldest_s >= edge_s) for at, oldest_s in waiting)
    return given.as_of - pd.Timedelta(seconds=max(oldest_s for _, oldest_s in waiting)) if cut else None


def _seconds_without_event(frames: Frames, given: JudgeInput) -> float | None:
    """Return the seconds since the newest event; None if there is none, or it is recent."""
    newest = rows.one(frames.get("last_event"), OutboxAges)
    silent_s = seconds_between(newest.last_event, newest.now)
    return None if silent_s is None or silent_s < given.number("silence.least") else silent_s


def _count_before_silence(frames: Frames, given: JudgeInput, silent_s: float) -> pd.Series[float] | None:
    """Return the events per minute before the newest one; None if they were not read."""
    newest = rows.one(frames.get("last_event"), OutboxAges).last_event
    if "published_before" in frames:
        return counts_by_minute(frames["published_before"], given, until=newest)
    # 0.5.0 stored the window of the run only.
    counts = counts_by_minute(frames.get("published"), given)
    usual = counts[: len(counts) - int(silent_s // 60)]
    return usual if "published" in frames and len(usual) else None


def measure_silence(frames: Frames, given: JudgeInput) -> tuple[float | None, bool]:
    """Return the seconds since the newest event if the rate before makes chance unlikely, and whether that is known."""
    silent_s = _seconds_without_event(frames, given)
    if silent_s is None:
        return None, True
    usual = _count_before_silence(frames, given, silent_s)
    if usual is None:
        return None, False
    # Traffic that pauses at times may pause again: the quietest minutes count, not the mean of all.
    expected = float(usual.quantile(given.number("silence.quiet"))) * silent_s / 60
    return (silent_s if expected >= given.number("silence.expected") else None), True


def _in_order_again(frames: Frames, given: JudgeInput, ended: bool) -> set[str]:
    """Return the objectives that only earlier events miss, provided that no event waits.

    Objectives on delays count if the newest events are in time, those on dead letters if the outage has `ended`.
    """
    lately = rows.first(frames.get("publish_delay_lately"), Delay)
    in_time = lately is not None and (lately.p95 is None or given.slos["ENT-C"].met(lately.p95))
    sent = _last_late_sent(frames) is not None
    letters = ended and not rows.one(frames.get("given_up_messages"), Letters).n
    past = {"ENT-C": in_time, "NOTI-B": sent, "NOTI-A": letters, "NOTI-D": letters}
    return {slo for slo, passed in past.items() if passed}


def _last_late_sent(frames: Frames) -> pd.Timestamp | None:
    """Return when the last notification was sent that took longer than NOTI-B allows; None if there is none."""
    found = pd.to_datetime(table(frames, "sent", "minute", "last_slow")["last_slow"], utc=True).max()
    return None if pd.isna(found) else found


def counts_by_minute(
    frame: pd.DataFrame | None, given: JudgeInput, until: pd.Timestamp | None = None
) -> pd.Series[float]:
    """Return the counts per full minute of the window, or of one that ends at `until`, without its last minute."""
    last = (given.as_of if until is None else until).floor("min") - history.MINUTE
    index = pd.date_range(end=last, periods=max(given.window_minutes - 1, 1), freq="min", name="minute")
    if frame is None or not {"minute", "n"} <= set(frame.columns):
        return pd.Series(0.0, index=index)
    minutes = pd.to_datetime(frame["minute"], utc=True)
    counted = pd.Series(pd.to_numeric(frame["n"]).to_numpy(dtype=float), index=minutes)
    return counted.groupby(level=0).sum().reindex(index, fill_value=0.0)


def burn_rates(frames: Frames, given: JudgeInput) -> tuple[float, float] | None:
    """Return the fast and the slow burn rate, each the higher one of NOTI-A and NOTI-B; None if not known.

    The rate of a pair of windows is the lower one of the two.
    """
    sent, failed = frames.get("sent"), frames.get("dead")
    if sent is None or failed is None or "slow" not in sent:
        return None
    allowed = {"NOTI-A": given.slos["NOTI-A"].number / 100, "NOTI-B": given.number("p95.in_time")}

    def rate(slo: str, window: str) -> float:
        since = given.as_of - pd.Timedelta(minutes=given.number(window))
        done, slow = _sum_since(sent, "n", since), _sum_since(sent, "slow", since)
        dead = _sum_since(failed, "n", since)
        bad, total = (dead, done + dead) if slo == "NOTI-A" else (slow, done)
        burn = stats.burn_rate(bad, total, allowed[slo])
        return 0.0 if burn != burn else burn

    fast = max(min(rate(slo, window) for window in BURN_FAST) for slo in allowed)
    slow = max(min(rate(slo, window) for window in BURN_SLOW) for slo in allowed)
    return round(fast, 2), round(slow, 2)


def _sum_since(frame: pd.DataFrame, column: str, since: pd.Timestamp) -> float:
    if frame.empty or "minute" not in frame:
        return 0.0
    return float(pd.to_numeric(frame.loc[pd.to_datetime(frame["minute"], utc=True) >= since, column]).sum())


def chart_flows(frames: Frames, given: JudgeInput) -> charts.Chart | None:
    """Return the chart of the three flows minute by minute, and of the onset."""
    series = {name: counts_by_minute(frames.get(name), given) for name in ("published", "processed", "sent")}
    if not any(s.any() for s in series.values()):
        return None
    last = {name: float(counts.iloc[-1]) for name, counts in series.items()}
    starts = series["sent"].index
    if (given_up := counts_by_minute(frames.get("dead"), given)).any():
        series["dead letters"] = given_up
    missed = [str(r["slo"]) for r in sli_rows(frames, given).to_dict("records") if r["met"] is False]
    begin = onset(frames, given)[0] if missed and _has_onset(frames, given, missed) else None
    in_window = begin is not None and begin >= given.as_of - pd.Timedelta(minutes=given.window_minutes)
    began = None if begin is None else format_utc(begin)
    return charts.Chart(
        "Published, processed, sent",
        "events / min",
        charts.flows(pd.date_range(starts[0], periods=len(starts) + 1, freq="min"), series),
        moments=[charts.Line(begin, "began", dash="-.")] if in_window else (),
        alt=say("response.alt_flows", minutes=given.window_minutes, began=began, **last),
        caption=(say("response.flows_caption"),),
    )


# 3.2 Where it is stuck --------------------------------------------------------------------------------------

#: The four checks of 4.1, in the order of that section.
HOP_CHECKS = {
    check.step: check
    for topic in (backlog, subscriber, publish, database)
    for check in topic.CHECKS
    if check.step.startswith("4.1.")
}
#: The part that each of them checks.
PART_NAMES = {"4.1.3": "outbox", "4.1.2": "NATS", "4.1.1": "notification", "4.1.4": "database"}
#: What may be broken while everything flows, each by a cheap query; the step's section shows more.
INVARIANTS = {
    check.step: check
    for topic in (duplicates, leases, consistency)
    for check in topic.CHECKS
    if check.step in ("4.2.1", "4.3.5", "5.3.4")
} | {"4.2.2": replace(recovery.SIDE_EFFECTS["duplicates"], step="4.2.2")}


def _is_above(found: Finding, name: str, than: float) -> bool:
    """Return whether a value is known and above `than`."""
    value = found.value(name)
    return isinstance(value, float | int) and value > than


def _further_sections(verdict: Verdict, found: Mapping[str, Finding]) -> tuple[str, ...]:
    """Return the sections to read next beside those of the parts that are not OK."""
    notifications, stuck_at = found["4.1.1"], verdict.stuck_at
    held = any(_is_above(notifications, f"backlog.{name}", 0) for name in ("leased", "expired"))
    beside = _is_above(notifications, "processing.holders", 1)
    missing = ("unprocessed", "not_registered", "lost_or_deleted")
    told = {
        "4.3": stuck_at == "delivery_worker" or (stuck_at and held) or beside,
        "5.3": any(_is_above(found["4.1.2"], f"outbox.{name}", 0) for name in missing),
        "4.5": any(p.section == "4.5" for p in verdict.proposals[:1]),  # the run reads the log itself
        "2": stuck_at == "jetstream",
    }
    return tuple(section for section, holds in told.items() if holds)


# 3.3 to 3.5 The smallest safe action, the criteria, the record --------------------------------------------------

#: The section to read next if no command is justified, by hop.
READ_ON = {
    "producer": "4.4",
    "relay": "4.1",
    "jetstream": "2",
    "subscriber": "4.1",
    "delivery_worker": "4.3",
    "receiver": "4.4",
    "database": "4.1",
}
#: The four criteria of section 6.
CRITERIA = {check.step: check for check in recovery.CHECKS if check.step in ("6.1", "6.2", "6.3", "6.4")}
#: The facts of 3.1 in the record, and its values.
RECORDED = {
    "detected_by": "detected_by",
    "detected_at": "detected_at",
    "onset": "impact.onset",
    "ttd_s": "ttd",
    "events_waiting": "impact.events",
    "users_waiting": "impact.users",
    "events_given_up": "impact.given_up",
    "objectives_missed": "impact.missed",
}


def _sections_of_criteria(found: Mapping[str, Finding], given: JudgeInput) -> tuple[str, ...]:
    """Return 4.5 if tries fail although nothing waits yet: the log says why."""
    place = triage.find_earlier(given, "3.2")
    reads_log = place is not None and place.status is Status.OK and not place.ended
    return ("4.5",) if reads_log and found["6.2"].status in (Status.WARNING, Status.CRITICAL) else ()


def _criteria_targets(given: JudgeInput) -> dict[str, Text]:
    limits = given.limits
    told = {
        "due": limits["backlog.due"].warning,
        "oldest": limits["backlog.oldest_due"].warning,
        "outbox": limits["outbox.oldest_due"].warning,
        "empty": limits["drain.empty_in"].warning,
        "rate": limits["errors.rate"].warning,
        "quiet": given.number("letters.quiet_least"),
        "e2e": limits["delivery.e2e_p95"].warning,
        "publish": limits["outbox.publish_delay_p95"].warning,
    }
    return {step: say(f"response.target_{step.removeprefix('6.')}", **told) for step in CRITERIA}


CHECKS: tuple[Check, ...] = (
    Check("3.1", collect_impact, judge_impact, (chart_flows,), optional=_COURSE),
    triage.compound_check(
        "3.2", HOP_CHECKS | INVARIANTS, triage.judge_place, names=PART_NAMES, further=_further_sections
    ),
    triage.action_check("3.3", "3.2", READ_ON),
    triage.compound_check(
        "3.4", CRITERIA, triage.judge_criteria, targets=_criteria_targets, next_sections=_sections_of_criteria
    ),
    triage.record_check("3.5", "3.1", "3.2", RECORDED),
)
