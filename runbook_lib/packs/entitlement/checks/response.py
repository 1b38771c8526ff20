"""Section 3, the first response: impact, location, smallest safe action, recovery criteria, record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks import triage
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
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
from runbook_lib.packs.entitlement import missing
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

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The two pairs of the burn rate, long and short window.
BURN_FAST, BURN_SLOW = ("burn.fast_long", "burn.fast_short"), ("burn.slow_long", "burn.slow_short")
#: The parts of 3.1 without which nobody knows whether anybody is affected.
_TABLES = ("affected", "outbox", "notifications")
#: The parts of 3.1 that tell since when, and whether it is over, of what the others show.
_COURSE = (
    *("publish_delay_lately", "published_before", "deletions", "consumer", "halves"),
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

    Frames: affected, those of `_ask_for_deletions`, surplus, outbox, outbox_age, publish_delay, publish_delay_lately,
    notifications, last_event; where cheap delivered, given_up, given_up_messages, sent, dead, published, processed,
    created, those of `outage.ask`, published_before (of the window before the newest event, if that is not recent),
    and halves (of events, if the counts of both sides differ); requests (success: %, p95: s); slis (slo: text, sli:
    text, now: number, objective: text, met: flag, why: text).
    """
    parts = ask_tables(rb)
    with parts.part("prometheus") as answers:
        answers["requests"] = query_requests(rb)
    if parts.answers:
        parts.answers["slis"] = ImpactSample(parts.frames(), rb.given()).slis
    return parts.frames()


def ask_tables(rb: Context) -> FrameCollector:
    """Ask the tables for what 3.1 reads. Raises SourceError."""
    parts, given = FrameCollector(), rb.given()
    now = rb.as_of - pd.Timedelta(minutes=rb.number("sli.now"))
    with rb.snapshot() as db:
        parts.ask(db, {"affected": Affected.QUERY}, late_s=rb.catalog.limits["backlog.oldest_due"].warning)
        _ask_for_deletions(rb, db, parts)
        parts.ask(db, {"surplus": missing.Surplus.QUERY})
        parts.ask(db, _LATELY, since=now)
        ask_since(rb, db, parts, Delay.QUERY, publish_delay="now", publish_delay_lately="lately")
        ask_since(rb, db, parts, Delivered.QUERY, delivered="now")
        ask_since(rb, db, parts, Letters.QUERY, given_up_messages="now")
        long_ago = longest_start(rb)
        ask_per_minute(rb, db, parts, "notifications", since=long_ago, sent="n", created="arrived")
        ask_per_minute(rb, db, parts, "outbox", published="n")
        ask_given_up(rb, db, parts, "dead", since=long_ago)
        parts.ask(db, {"processed": "processed/per_minute"})
        outage.ask(rb, db, parts, *outage.FLOWS)
        seen = ImpactSample(parts.answers, given)
        if seen.unpaired:  # by their times; whether one is missing is known by its id
            parts.ask(db, {"halves": "consistency/half_processed"})
        if seen.newest is not None and seen.without_event_s is not None:
            before = seen.newest - pd.Timedelta(minutes=given.window_minutes)
            ask_per_minute(rb, db, parts, "outbox", since=before, published_before="n")
    return parts


def _ask_for_deletions(rb: Context, db: Snapshot, parts: FrameCollector) -> None:
    """Ask what was deleted if events seem to wait at the broker, and if that explains them, how many it holds."""
    if not any(at.events for at in rows.each(parts.answers.get("affected"), Affected) if at.place == "broker"):
        return
    parts.ask(db, {"deletions": Oldest.QUERY})
    oldest = rows.first(parts.answers.get("deletions"), Oldest)
    if oldest is not None and oldest.may_lack(1, rb.number("retention.notifications")):
        with parts.part("consumer") as answers:
            names = facts_of(rb).streams
            consumer = rb.source("jetstream").consumer(names.events, names.consumer)
            answers["consumer"] = row(pending=consumer.num_pending, unacknowledged=consumer.num_ack_pending)


def query_requests(rb: Context) -> pd.DataFrame:
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
        success=None if not asked else 100 * (1 - (failed or 0.0) / asked),
        p95=value(f"histogram_quantile({rb.number('p95.in_time'):g}, {buckets})"),
    )


@dataclass(frozen=True)
class ImpactSample:
    """The frames of 3.1, and what follows from them. What was not read is None."""

    frames: Frames
    given: JudgeInput

    @cached_property
    def every(self) -> Affected:
        """The events and users that wait too long in all places, as they were read."""
        return next((at for at in rows.each(self.frames.get("affected"), Affected) if at.place == "all"), Affected())

    @cached_property
    def places(self) -> list[Affected]:
        """The events that wait too long, place by place, without those that may have been processed."""
        found = [at for at in rows.each(self.frames.get("affected"), Affected) if at.place != "all"]
        consumer = rows.first(self.frames.get("consumer"), ConsumerLag)
        oldest = rows.first(self.frames.get("deletions"), Oldest)
        if consumer is None or consumer.lag is None or oldest is None:
            return found
        held, keep_d = int(consumer.lag), self.given.number("retention.notifications")
        return [
            replace(at, events=held)
            if at.place == "broker" and at.events > held and oldest.may_lack(at.events - held, keep_d)
            else at
            for at in found
        ]

    @cached_property
    def waiting(self) -> list[Affected]:
        """The events that wait at a hop, without the relay's FAILED events, which were given up."""
        return [at for at in self.places if at.place in HOP_OF and at.events]

    @cached_property
    def oldest_s(self) -> float | None:
        """The age of the oldest event that waits at a hop."""
        return _oldest(self.waiting)

    @cached_property
    def late(self) -> Affected:
        """The events and users that wait too long in all places; without some events, at most so many users."""
        counted = [at for at in self.places if at.events]
        if (events := sum(at.events for at in counted)) == self.every.events:
            return self.every
        users = min(sum(min(at.users, at.events) for at in counted), self.every.users)
        return Affected("all", events, users, _oldest(counted))

    @cached_property
    def slis(self) -> pd.DataFrame:
        """Each SLI now with its objective; `met` is None if the SLI has no value, and `why` is the reason."""
        frames, given = self.frames, self.given
        outbox = rows.first(frames.get("outbox"), Outbox)
        notifications = rows.first(frames.get("notifications"), Notifications)
        outbox_age = rows.first(frames.get("outbox_age", frames.get("last_event")), OutboxAges)
        requests = rows.one(frames.get("requests"), Requests)
        given_up = rows.first(frames.get("given_up"), GivenUp)
        messages = rows.first(frames.get("given_up_messages"), Letters)
        delivered = rows.first(frames.get("delivered"), Delivered)
        ended = delivered.n + given_up.events if delivered and given_up else None
        waits = self._oldest_at_p95(delivered.n) if delivered else None
        e2e = delivered.p95 if delivered else None
        lately = rows.one(frames.get("publish_delay_lately"), Delay)
        dated_back = outbox is not None and lately.is_dated_back(outbox.total, given)
        observed: dict[str, float | None] = {
            "ENT-A": requests.success,
            "ENT-B": requests.p95,
            "ENT-C": None if dated_back else rows.one(frames.get("publish_delay"), Delay).p95,
            "ENT-D": outbox_age.p95 if outbox_age else None,
            "ENT-E": outbox.failed if outbox else None,
            "NOTI-A": 100 * delivered.n / ended if delivered and ended else None,
            "NOTI-B": e2e if waits is None or (e2e is not None and e2e > waits) else waits,
            "NOTI-C": notifications.ready if notifications else None,
            "NOTI-D": given_up.events + messages.n if given_up and messages else None,
        }
        e = failures(frames).get("prometheus")
        unasked = e.reason if e and "requests" not in frames else Reason.NO_DATA
        found = []
        for name, slo in given.slos.items():
            value = observed.get(name)
            why = ""
            if value is None:
                why = (unasked if name in ("ENT-A", "ENT-B") else Reason.NO_DATA).value
            elif name == "NOTI-B" and value == waits:
                why = "oldest_waiting"  # a word like those of `Reason`
            now, met = (None, None) if value is None else (round(value, 3), slo.met(value))
            found.append((name, slo.sli, now, slo.objective, met, why))
        return pd.DataFrame(found, columns=["slo", "sli", "now", "objective", "met", "why"])

    def _oldest_at_p95(self, sent: float) -> float | None:
        """Return the age of the oldest waiting event, if so many wait that the p95 of all events is among them."""
        events = sum(at.events for at in self.waiting)
        among = events > (1 - self.given.number("p95.in_time")) * (events + sent)
        return round(self.oldest_s, 3) if among and self.oldest_s is not None else None

    @cached_property
    def missed(self) -> list[str]:
        """The objectives that are missed now."""
        return [str(r["slo"]) for r in self.slis.to_dict("records") if r["met"] is False]

    def counts(self, name: str, until: pd.Timestamp | None = None) -> pd.Series[float]:
        """Return a flow per full minute of the window, or of one that ends at `until`, without its last minute."""
        last = (self.given.as_of if until is None else until).floor("min") - history.MINUTE
        index = pd.date_range(end=last, periods=max(self.given.window_minutes - 1, 1), freq="min", name="minute")
        found = table(self.frames, name, "minute", "n")
        minutes = pd.to_datetime(found["minute"], utc=True)
        counted = pd.Series(pd.to_numeric(found["n"]).to_numpy(dtype=float), index=minutes)
        return counted.groupby(level=0).sum().reindex(index, fill_value=0.0)

    @cached_property
    def began_before(self) -> pd.Timestamp | None:
        """The time of the oldest waiting event that was read, if older ones may wait; None if they do not."""
        edge_s, most = 60 * (self.given.window_minutes - 1), self.given.number("affected.most")
        timed = [(at, at.oldest_s) for at in self.waiting if at.oldest_s is not None]
        cut = any(at.events >= most or (at.place == "broker" and age_s >= edge_s) for at, age_s in timed)
        return self._ago(self.oldest_s) if cut else None

    def _ago(self, seconds: float | None) -> pd.Timestamp | None:
        return None if seconds is None else self.given.as_of - pd.Timedelta(seconds=seconds)

    @cached_property
    def onset(self) -> tuple[pd.Timestamp | None, str]:
        """The onset and how it is known: by the "oldest" waiting event, else by a "change" in a flow's rate.

        While rows are given up, by whichever is earlier. A change is known to the minute only; the first "slow" event
        after it gives a more exact time. None and "" if neither tells, or if events may wait for longer than they were
        read. Rows that were given up miss for ever: the traffic of today does not tell since when.
        """
        if self.began_before is not None or not (self.waiting or {*self.missed} - {"ENT-E"}):
            return None, ""
        oldest, failed = self._ago(self.oldest_s), self.counts("dead")
        # Rows that were given up meanwhile waited before the oldest one that still waits.
        if oldest is not None and not failed[failed.index >= oldest.floor("min")].any():
            return oldest, "oldest"
        at, how = self._find_change(failed)
        return (oldest, "oldest") if oldest is not None and (at is None or oldest <= at) else (at, how)

    def _find_change(self, failed: pd.Series[float]) -> tuple[pd.Timestamp | None, str]:
        flows = [self.counts(name) for name in ("sent", "processed", "published")]
        changes = [(flow, stats.change_point(flow).index) for flow in flows] + [
            (failed, stats.trend_kind(failed).onset)
        ]
        found = min((flow.index[at] for flow, at in changes if at is not None), default=None)
        if found is None:
            return None, ""
        slow = table(self.frames, "sent", "minute", "first_slow")
        after = pd.to_datetime(slow["minute"], utc=True) >= found
        first = pd.to_datetime(slow.loc[after, "first_slow"], utc=True).min()
        return (found, "change") if pd.isna(first) else (first, "slow")

    @cached_property
    def newest(self) -> pd.Timestamp | None:
        """When the newest event was written."""
        return rows.one(self.frames.get("last_event"), OutboxAges).last_event

    @property
    def comes_in(self) -> bool:
        """Whether about as many events came in the last minute as before; not if that was not read."""
        if not {"published", "outbox"} <= {*self.frames}:
            return False
        published, outbox = history.counts(self.frames.get("published")), rows.one(self.frames.get("outbox"), Outbox)
        before = published[published.index < (self.given.as_of - history.MINUTE).floor("min")]
        return before.empty or outbox.arrived_1m >= self.given.number("flow.fallen") * float(before.mean())

    @cached_property
    def without_event_s(self) -> float | None:
        """The seconds since the newest event; None if there is none, or it is recent."""
        silent_s = seconds_between(self.newest, rows.one(self.frames.get("last_event"), OutboxAges).now)
        return None if silent_s is None or silent_s < self.given.number("silence.least") else silent_s

    @cached_property
    def silence(self) -> tuple[float | None, bool]:
        """The seconds since the newest event if the rate before makes chance unlikely, and whether that is known."""
        silent_s = self.without_event_s
        if silent_s is None:
            return None, True
        if "published_before" not in self.frames:
            return None, False
        usual = self.counts("published_before", until=self.newest)
        # Traffic that pauses at times may pause again: the quietest minutes count, not the mean of all.
        expected = float(usual.quantile(self.given.number("silence.quiet"))) * silent_s / 60
        return (silent_s if expected >= self.given.number("silence.expected") else None), True

    @cached_property
    def unpaired(self) -> float | None:
        """How many events of the window were registered without a notification; negative: the reverse.

        The subscriber writes both in one transaction, with one time, and both are read in one. None if they agree, or
        if one of them was not read whole.
        """
        if (halves := self.frames.get("halves")) is not None and not halves.attrs.get("capped"):
            kinds = halves["kind"].value_counts()
            return float(kinds.get("registered_only", 0)) or -float(kinds.get("queued_only", 0)) or None
        registered, created = (self.frames.get(name) for name in ("processed", "created"))
        if registered is None or created is None or registered.attrs.get("capped") or created.attrs.get("capped"):
            return None
        apart = float(registered["n"].sum()) - float(created["n"].sum())
        return apart if abs(apart) > self.given.number("conserved.slack") else None

    @cached_property
    def last_late_sent(self) -> pd.Timestamp | None:
        """When the last notification was sent that took longer than NOTI-B allows; None if there is none."""
        found = pd.to_datetime(table(self.frames, "sent", "minute", "last_slow")["last_slow"], utc=True).max()
        return None if pd.isna(found) else found

    def in_order_again(self, ended: bool) -> bool:
        """Return whether only earlier events miss objectives, and none waits.

        Objectives on delays count if the newest events are in time, those on dead letters if the outage has `ended`.
        """
        lately = rows.first(self.frames.get("publish_delay_lately"), Delay)
        in_time = lately is not None and (lately.p95 is None or self.given.slos["ENT-C"].met(lately.p95))
        letters = ended and not rows.one(self.frames.get("given_up_messages"), Letters).n
        passed = {"ENT-C": in_time, "NOTI-B": self.last_late_sent is not None, "NOTI-A": letters, "NOTI-D": letters}
        return bool(self.missed) and not self.late.events and all(passed.get(slo) for slo in self.missed)

    @cached_property
    def burn_rates(self) -> tuple[float, float] | None:
        """The fast and the slow burn rate, each the higher one of NOTI-A and NOTI-B; None if not known.

        The rate of a pair of windows is the lower one of the two.
        """
        sent, failed = self.frames.get("sent"), self.frames.get("dead")
        if sent is None or failed is None or "slow" not in sent:
            return None

        def rates(window: str) -> tuple[float, float]:
            since = self.given.as_of - pd.Timedelta(minutes=self.given.number(window))
            done, slow, dead = (_sum_since(*of, since) for of in ((sent, "n"), (sent, "slow"), (failed, "n")))
            late = stats.burn_rate(slow, done, self.given.number("p95.in_time"))
            lost = stats.burn_rate(dead, done + dead, self.given.slos["NOTI-A"].number / 100)
            return tuple(0.0 if rate != rate else rate for rate in (late, lost))  # type: ignore[return-value]

        fast, slow = (max(map(min, *map(rates, pair))) for pair in (BURN_FAST, BURN_SLOW))
        return round(fast, 2), round(slow, 2)

    def hops(self) -> Iterator[Hop]:
        """Yield what is late at each hop, and the hops whose rate per minute the rows show, over the window."""
        if self.silence[0]:
            yield Hop("producer", rate_out=0.0, late=True)
        for at in self.waiting:
            yield Hop(HOP_OF[at.place], waiting=float(at.events), oldest_s=at.oldest_s, late=True)
        for hop, name, side in _HISTORIES:
            if name in self.frames:
                rates = self.counts(name).tail(HopHistory.MOST)
                series: dict[str, tuple[float, ...]] = {"came": (), "gone": (), side: tuple(map(float, rates))}
                yield Hop(hop, past=HopHistory(rates.index[0], 60.0, came=series["came"], gone=series["gone"]))


def _oldest(places: Iterable[Affected]) -> float | None:
    return max((at.oldest_s for at in places if at.oldest_s is not None), default=None)


def _sum_since(frame: pd.DataFrame, column: str, since: pd.Timestamp) -> float:
    if frame.empty or "minute" not in frame:
        return 0.0
    return float(pd.to_numeric(frame.loc[pd.to_datetime(frame["minute"], utc=True) >= since, column]).sum())


#: How events are unpaired: the message and the observation.
_UNPAIRED = {
    "emptied": ("response.emptied", "consistency.event_deleted"),
    "more": ("response.not_queued", "consistency.registered_only"),
    "fewer": ("response.not_registered", "consistency.queued_only"),
}


def judge_impact(frames: Frames, given: JudgeInput) -> Finding:
    """3.1: report which objectives are missed, since when, how many events and users are affected, and who noticed."""
    seen, limits = ImpactSample(frames, given), given.limits
    outbox, given_up = rows.first(frames.get("outbox"), Outbox), rows.first(frames.get("given_up"), GivenUp)
    counted, late, missed, unpaired = "affected" in frames, seen.late, seen.missed, seen.unpaired
    lost, doubtful = given_up.events if given_up else None, seen.every.events - late.events
    now = {str(r["slo"]): float(r["now"]) for r in seen.slis.to_dict("records") if not pd.isna(r["now"])}
    (begin, how), (silent_s, known) = seen.onset, seen.silence
    since = None if begin is None else format_utc(begin)
    # What was detected before its onset has another onset.
    ttd = seconds_between(begin, given.detected_at) if begin and (given.detected_at or begin) >= begin else None
    ended = outage.find_end(frames, given, *outage.FLOWS)
    in_past = frames.keys() >= {*_TABLES} and seen.in_order_again(bool(ended))
    values = [
        Value("impact.events", late.events if counted else None, "events"),
        Value("impact.users", late.users if counted else None, "users"),
        Value("impact.given_up", lost, "events"),
        Value("impact.given_up_users", given_up.users if given_up else None, "users"),
        Value("impact.missed", ", ".join(missed) or None),
        Value("impact.onset", since),
        Value("detected_by", given.detected_by or None),
        Value("detected_at", None if given.detected_at is None else format_utc(given.detected_at)),
        Value("ttd", ttd, "s"),
        limits.value("outbox.oldest_due", outbox.oldest_s if outbox else None),
        limits.value("outbox.failed", outbox.failed if outbox else None),
        limits.value("backlog.due", now.get("NOTI-C")),
    ]
    alarms = [limits.value(name, now[slo]) for name, slo in SLO_OF.items() if slo in now]
    if seen.burn_rates is not None:
        alarms += [limits.value("burn.fast", seen.burn_rates[0]), limits.value("burn.slow", seen.burn_rates[1])]
    if given_up is not None:
        alarms.append(limits.value("dlq.growth", given_up.events / given.number("sli.now")))
    # Past delays are reported, but they are no alarm any more.
    values += [replace(v, threshold=None) for v in alarms] if in_past else alarms
    if in_past and (again := outage.look_again_s(frames, given, *outage.FLOWS)) is not None:
        values.append(Value(f"impact.{LOOK_AGAIN}", again, "s"))
    unpaired_key, observation = _UNPAIRED[
        "emptied" if missing.is_emptied(frames.get("halves")) else "more" if (unpaired or 0.0) > 0 else "fewer"
    ]
    surplus = missing.judge_surplus(frames, given)
    if not surplus.goes_on(given):
        surplus = missing.SurplusPart()
    values += surplus.values
    duplicates_now = [say("response.duplicates_now", what=note) for note in surplus.notes]
    cases = {
        # What nobody waits for does not come late: copies of older events take long by their times.
        "response.duplicates_now": duplicates_now and not (late.events or lost),
        "response.impact_over": in_past and ended,
        "response.impact_passed": in_past,
        "response.impact": missed and counted,
        "response.impact_uncounted": missed,
        "response.impact_begins": late.events or lost,
        "response.nothing_comes": silent_s,
        unpaired_key: unpaired,
        "response.no_impact": worst(v.status for v in values if v.status) is Status.OK,
        "response.no_impact_now": True,
    }
    key = next(name for name, holds in cases.items() if holds)
    notes = [say("response.sli_note", minutes=given.number("sli.now"))]
    if silent_s and key != "response.nothing_comes":
        notes.append(say("response.nothing_comes", silent=silent_s))
    notes += duplicates_now[1 if key == "response.duplicates_now" else 0 :]
    if unpaired and key != unpaired_key:
        notes.append(say(unpaired_key, unpaired=abs(unpaired), window=given.window_minutes))
    told_s, early_s = seconds_between(given.detected_at, given.as_of), given.number("alert.early")
    if told_s is not None and told_s < early_s and not (missed or late.events or lost):
        notes.append(say("response.early", told=told_s, again=early_s - told_s))
        values.append(Value(f"impact.{LOOK_AGAIN}", early_s - told_s, "s"))
    if seen.burn_rates is None:
        notes.append(say("response.no_burn"))
    if unseen := [str(r["slo"]) for r in seen.slis.to_dict("records") if r["why"] == Reason.NOT_CONFIGURED.value]:
        notes.append(say("response.not_from_sql", names=", ".join(unseen)))
    if how:
        notes.append(say(f"response.onset_{how}", at=since, ago=seconds_between(begin, given.as_of)))
    elif seen.began_before:
        notes.append(say("response.onset_before", at=format_utc(seen.began_before)))
    unclear = [say("response.doubtful", n=doubtful)] if doubtful > 0 else []
    if not known:
        unclear.append(say("response.silence_unclear", silent=seen.without_event_s))
    # What is not clear is more than "no impact".
    instead = unclear if key in ("response.no_impact", "response.no_impact_now") else []
    notes += [] if instead else unclear
    # No effect is only what was seen to be none: every place was read, and something got through just now.
    nothing_waits = counted and not (doubtful or missed or late.events or lost or silent_s or unpaired)
    passes = nothing_waits and outage.all_in_time(frames, given, *outage.FLOWS)
    warns = missed or late.events or silent_s or unpaired
    facts = {
        "missed": ", ".join(missed) or "-", "n": len(missed), "events": late.events, "users": late.users,
        "given_up": lost, "oldest": late.oldest_s, "since": since, "minutes": given.number("sli.now"),
        "ago": seconds_between(seen.last_late_sent, given.as_of), "silent": silent_s,
        "unpaired": unpaired and abs(unpaired), "window": given.window_minutes, "what": next(iter(surplus.notes), None),
    }  # fmt: skip
    return judged(
        instead[0] if instead else say(key, **facts),
        values,
        at_least=worst(
            [
                Status.CRITICAL if missed and not in_past else Status.WARNING if warns else Status.OK,
                Status.CRITICAL if surplus.notes else Status.OK,
                Status.UNKNOWN if instead else Status.OK,
            ]
        ),
        notes=tuple(notes),
        signals=(
            *given.evidence_of(
                [
                    *([observation] if unpaired else []),
                    *(["flow.passes"] if passes else []),
                    *(["flow.steady"] if passes and seen.comes_in else []),
                ]
            ),
            *surplus.signals,
        ),
        hops=tuple(seen.hops()),
        next_sections=(
            *(("4.2",) if surplus.notes else ()),
            *(("4.4",) if any(now.get(slo) for slo in ("ENT-E", "NOTI-D")) else ()),
            *(("5.3",) if unpaired or unclear else ()),
        ),
        show=("slis", "affected", *(("surplus",) if surplus.notes else ())),
        ended=ended if in_past and not surplus.notes else None,
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
    Check("3.1", collect_impact, judge_impact, optional=_COURSE),
    triage.compound_check(
        "3.2", HOP_CHECKS | INVARIANTS, triage.judge_place, names=PART_NAMES, further=_further_sections
    ),
    triage.action_check("3.3", "3.2", READ_ON),
    triage.compound_check(
        "3.4", CRITERIA, triage.judge_criteria, targets=_criteria_targets, next_sections=_sections_of_criteria
    ),
    triage.record_check("3.5", "3.1", "3.2", RECORDED),
)
