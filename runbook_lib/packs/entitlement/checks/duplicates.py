"""4.2: the unique key of processed events, duplicates, and redeliveries."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.book import patterns
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, collector, seconds_between
from runbook_lib.checks.sample import FIRST
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Hop, Status, Text, Value, judged, say, worst
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement import PACK, missing, retention
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import leases
from runbook_lib.packs.entitlement.checks.series import ask_per_minute
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources.logs import Log

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: The constraint whose violation the subscriber treats as a duplicate; any other violation is an error to it.
KEY = "processed_events_pkey"
_SERVICE_LOG, _LOG_FIELD = patterns.source(PACK, "service log"), patterns.source(PACK, "log field")


# 4.2.1 Whether the key refuses a second registration.


class KeyIndex(rows.Row, query="duplicates/key"):
    """An index of processed_events; one empty row if the table has no index."""

    index_name: str | None = None
    constraint_name: str | None = None
    columns: str | None = None
    is_unique: bool = False
    valid: bool = False
    ready: bool = False
    immediate: bool = False
    partial: bool = False

    @property
    def keeps_unique(self) -> bool:
        """Return whether it is meant to refuse a second registration of an event."""
        return self.is_unique and self.columns == "event_id"

    @property
    def refuses(self) -> bool:
        """Return whether it refuses a second registration of an event."""
        return self.keeps_unique and self.valid and self.ready and not self.partial


def judge_key(frames: Frames, given: JudgeInput) -> Finding:
    """4.2.1: judge whether an index refuses a second registration of an event.

    It does if it is unique on event_id alone, valid, not partial, and checked immediately.
    """
    found = rows.each(frames["key"], KeyIndex)
    if not found:
        return judged(
            say("duplicates.no_table"),
            at_least=Status.CRITICAL,
            signals=given.evidence("duplicates.no_table"),
            next_sections=("2",),
        )
    unique = [i for i in found if i.keeps_unique]
    refusing = [i for i in found if i.refuses]
    usual = [i for i in refusing if i.immediate and i.constraint_name == KEY]
    if usual:
        key, status = "duplicates.key_valid", Status.OK
    elif refusing:
        key, status = "duplicates.key_differs", Status.WARNING
    else:
        key, status = "duplicates.key_broken", Status.CRITICAL
    return judged(
        say(key, names=", ".join(str(i.index_name) for i in usual or refusing or unique) or None),
        [
            Value(KEY, key.removeprefix("duplicates.key_")),
            Value("processed_events.unique_indexes", len(unique), "indexes"),
            Value("processed_events.refusing_indexes", len(refusing), "indexes"),
        ],
        at_least=status,
        notes=() if refusing else (say("duplicates.key_repair"),),
        signals=given.evidence(key),
        next_sections=() if refusing else ("5.3",),
        show=("key",),
    )


# 4.2.2 Whether each event is registered before its work, in one transaction.


#: The name of each problem that `judge_order` counts in its headline and its note, worst first.
_ORDER_PROBLEMS = {"events": "doubled", "queued": "unregistered", "registered": "registered_only"}


class DoubledEvent(rows.Row, query="consistency/duplicates"):
    """An event with more than one notification; `sent` and `waiting` of them were or will be sent."""

    n: int = 0
    last: pd.Timestamp | None = None
    sent: int | None = None
    waiting: int | None = None

    @property
    def unsent(self) -> int | None:
        """Return how many will be sent although another one was or will be; None if that was not read."""
        if self.sent is None or self.waiting is None:
            return None
        return self.waiting if self.sent else max(self.waiting - 1, 0)


#: The queries of 4.2.2 by frame.
ORDER = {
    "duplicates": DoubledEvent.QUERY,
    "halves": "consistency/half_processed",
    "oldest": retention.Oldest.QUERY,
}


def collect_order(rb: Context) -> Frames:
    """4.2.2: collect differences between the window's notifications and their registrations, and any duplicates.

    Frames: those of `ORDER`, surplus, arrivals.
    """
    parts = FrameCollector()
    with rb.snapshot() as db:
        parts.ask(db, ORDER | {"surplus": missing.Surplus.QUERY})
        ask_per_minute(rb, db, parts, "notifications", arrivals="arrived")
    return parts.frames()


def judge_order(frames: Frames, given: JudgeInput) -> Finding:
    """4.2.2: judge whether each event has one registration and one notification."""
    doubled = rows.each(frames.get("duplicates"), DoubledEvent)
    halves = table(frames, "halves", "kind")["kind"]
    found = {
        "events": len(doubled),
        "queued": int((halves == "queued_only").sum()),
        "registered": int((halves == "registered_only").sum()),
    }
    extra = sum(event.n - 1 for event in doubled)
    each_unsent = [event.unsent for event in doubled]
    unsent = None if None in each_unsent else sum(filter(None, each_unsent))
    made = [event.last for event in doubled if event.last is not None]
    ago = seconds_between(max(made, default=None), given.as_of)
    still = bool(doubled) and (bool(unsent) or (ago is not None and ago < given.number("duplicates.still")))
    queued = float(table(frames, "arrivals", "n")["n"].sum()) if "arrivals" in frames else None
    before = next((f for f in given.earlier if f.step == "4.2.1"), None)
    facts: dict[str, Any] = {
        **found,
        "extra": extra,
        "ago": ago,
        "unsent": unsent,
        "seen": queued,
        "minutes": given.window_minutes,
        "key_state": before.value(KEY) if before else None,
    }
    problem = next((name for name, n in found.items() if n), None)
    emptied = problem == "registered" and missing.is_emptied(frames.get("halves"))
    headline = _ORDER_PROBLEMS[problem] if problem is not None else "none" if queued == 0 else "in_order"
    observation = {
        # Older duplicates prove a past problem only.
        "events": "duplicates.doubled_now" if still else "duplicates.doubled",
        "queued": "duplicates.not_in_order",
        "registered": "consistency.event_deleted" if emptied else "consistency.registered_only",
        None: "duplicates.in_order" if {*ORDER, "arrivals"} <= frames.keys() else "",
    }[problem]
    clean_up, surplus = retention.judge_clean_up(frames, given), missing.judge_surplus(frames, given)
    own = (say(f"duplicates.{headline}", **facts),) if problem or not surplus.notes else ()
    if emptied:
        own = (say("consistency.emptied", n=found["registered"], minutes=given.window_minutes),)
    told = (*own, *surplus.notes)
    # Holding delays every user: it is proposed only for duplicates that are not sent yet.
    hold = unsent or _is_still_duplicating(made, given)
    return judged(
        told[0],
        [
            given.limits.value("integrity.rows", sum(found.values())),
            Value("duplicates", found["events"], "events"),
            Value("duplicates.extra", extra, "rows"),
            Value("duplicates.extra_not_sent", unsent, "rows"),
            Value("queued_only", found["queued"], "rows"),
            Value("registered_only", found["registered"], "rows"),
            Value("notifications.created", queued, "rows"),
            *clean_up.values,
            *surplus.values,
        ],
        at_least=Status.CRITICAL if surplus.notes else Status.OK,
        notes=(*_order_notes(frames, found, facts), *clean_up.notes, *told[1:]),
        signals=(*given.evidence_of(filter(None, [observation])), *clean_up.signals, *surplus.signals),
        proposals=(remedies.hold_delivery(given), remedies.resume_delivery(given)) if hold else (),
        next_sections=("5.3",) if problem or surplus.notes else (),
        show=tuple(name for name in ("duplicates", "halves", "surplus") if len(frames.get(name, ()))),
    )


def _is_still_duplicating(made: list[pd.Timestamp], given: JudgeInput) -> bool:
    """Return whether a duplicate was created recently, and longer after the first one than a burst lasts."""
    if not made:
        return False
    recent = seconds_between(max(made), given.as_of) or 0.0
    lasts = seconds_between(min(made), max(made)) or 0.0
    return recent < given.number("duplicates.look_back") and lasts >= given.number("duplicates.burst")


def _order_notes(frames: Frames, found: dict[str, int], facts: dict[str, Any]) -> list[Text]:
    capped = any(frame.attrs.get("capped") for frame in frames.values())
    notes = [say("duplicates.capped")] if capped else []
    if found["events"]:
        others = [_ORDER_PROBLEMS[name] for name, n in found.items() if n and name != "events"]
        notes = [*(say(f"duplicates.also_{name}", **facts) for name in others), *notes, say("duplicates.keep_rows")]
    return [*notes, say("duplicates.bounded", minutes=facts["minutes"])]


# 4.2.3 Whether redeliveries are absorbed.


def collect_absorbed(rb: Context) -> Frames:
    """4.2.3: collect two samples of the consumer and the tables, and the log.

    Frames, those of the first sample named "first.NAME": held, consumer (ts, created: time; delivered,
    num_ack_pending, num_pending, num_redelivered: messages; delivered_stream_seq: id; bound: flag). Once: those of
    `log_frames`.
    """
    parts = FrameCollector()

    def sample(name: str) -> None:
        with rb.snapshot() as db:
            parts.answers[f"{name}held"] = db.ask("notifications/held")
        with parts.part("consumer") as answers:
            answers[f"{name}consumer"] = _read_consumer(rb)

    sample(FIRST)
    time.sleep(rb.number("looks.apart"))
    sample("")
    with parts.part("log") as answers:
        minutes = min(rb.parameters.window_minutes, int(rb.number("log.longest")))
        read = rb.log(facts_of(rb).workloads.notification, minutes)
        answers |= log_frames(read, minutes, rb.number("log.just_now"))
    return parts.frames()


def _read_consumer(rb: Context) -> pd.DataFrame:
    names = facts_of(rb).streams
    found = rb.source("jetstream").consumer(names.events, names.consumer)
    return row(
        ts=found.info.get("ts"),
        created=found.info.get("created"),
        delivered=found.deliveries,
        delivered_stream_seq=found.delivered_seq,
        num_pending=found.num_pending,
        num_ack_pending=found.num_ack_pending,
        num_redelivered=found.num_redelivered,
        bound=found.bound,
    )


def log_frames(log: Log, minutes: float, just_s: float) -> Frames:
    """Count lost locks, skipped events and notifications sent twice in the log of the notification service.

    Frames: log (entries, lost, lost_now, skipped, sent: entries; sent_twice: rows; since, last_lost, last_twice, now:
    time), sent_twice (notification_id: id; n: entries; first, last: time).
    """
    now = pd.Timestamp(log.at)
    begin = now - pd.Timedelta(minutes=minutes)
    entries = [(pd.Timestamp(r.time), r.message) for r in log.entries if r.time and pd.Timestamp(r.time) >= begin]
    lost = [at for at, message in entries if _SERVICE_LOG.says("lost", message)]
    sends = [(_LOG_FIELD.find(m).detail, at) for at, m in entries if _SERVICE_LOG.says("sent", m)]
    sends = [(id_, at) for id_, at in sends if id_]
    sent = pd.DataFrame(sends, columns=["notification_id", "at"])
    twice = sent.groupby("notification_id")["at"].agg(n="size", first="min", last="max").reset_index()
    twice = twice[twice["n"] > 1].sort_values("last", ascending=False)
    found = row(
        entries=len(entries),
        since=min((at for at, _ in entries), default=pd.NaT),
        lost=len(lost),
        lost_now=sum(at > now - pd.Timedelta(seconds=just_s) for at in lost),
        last_lost=max(lost, default=pd.NaT),
        skipped=sum(_SERVICE_LOG.says("skipped", message) for _, message in entries),
        sent=len(sent),
        sent_twice=len(twice),
        last_twice=max(twice["last"], default=pd.NaT),
        now=now,
    )
    return {"log": found, "sent_twice": twice.head(500).reset_index(drop=True)}


class ConsumerCounters(rows.Row):
    """One sample of the subscriber's consumer."""

    ts: pd.Timestamp | None = None
    created: str | None = None
    delivered: float = 0.0
    delivered_stream_seq: float = 0.0
    num_pending: float = 0.0
    num_ack_pending: float = 0.0
    num_redelivered: float | None = None
    bound: bool = False

    @property
    def ever(self) -> float | None:
        """Return the redeliveries since it was created; None if its stream is older, so that they are not known."""
        ever = self.delivered - self.delivered_stream_seq
        return ever if ever >= 0 else None


@dataclass(frozen=True)
class ConsumerProgress:
    """Deliveries and redeliveries of the consumer between two samples."""

    delivered: float
    again: float

    @classmethod
    def between(cls, first: ConsumerCounters | None, second: ConsumerCounters | None) -> ConsumerProgress | None:
        """Return the difference of two samples; None if one is missing or the consumer was created in between."""
        if first is None or second is None or first.created != second.created:
            return None
        delivered = second.delivered - first.delivered
        # Each new message moves both sequences by one, each redelivery only the consumer's.
        again = delivered - (second.delivered_stream_seq - first.delivered_stream_seq)
        return cls(max(delivered, 0.0), max(again, 0.0))


class DuplicatesLog(rows.Row):
    """The counts of `log_frames`, and when the log was read."""

    entries: float = 0.0
    lost: float = 0.0
    lost_now: float = 0.0
    skipped: float = 0.0
    sent_twice: float = 0.0
    since: pd.Timestamp | None = None
    last_lost: pd.Timestamp | None = None
    last_twice: pd.Timestamp | None = None
    now: pd.Timestamp | None = None

    @property
    def ago(self) -> float | None:
        """Return the seconds since the newest lost lock or double send; None if there is none."""
        signs = [at for at in (self.last_lost, self.last_twice) if at is not None]
        return seconds_between(max(signs, default=None), self.now)

    def strength(self, given: JudgeInput) -> str:
        """Return how strong the evidence of a double send is: "sure", "now", "recent", "ever" or "" for none."""
        if self.ago is not None and self.ago < given.number("log.just_now"):
            # One lost lock may come from a restart; several in a minute prove a second worker on the same rows.
            twice_ago = seconds_between(self.last_twice, self.now)
            twice = twice_ago is not None and twice_ago < given.number("log.just_now")
            return "sure" if twice or self.lost_now >= given.number("tries.pattern") else "now"
        if self.ago is not None and self.ago < given.number("duplicates.still"):
            return "recent"
        return "ever" if self.lost or self.sent_twice else ""


#: Observations of two workers on the same rows, from two samples.
TWO_WORKERS = {"leases.race", "leases.takeover", "leases.two_workers"}
#: The observation and the least status by `DuplicatesLog.strength`.
LOG_EVIDENCE = {
    "sure": ("duplicates.log_sure", Status.CRITICAL),
    "now": ("duplicates.log_now", Status.WARNING),
    "recent": ("duplicates.log_recent", Status.WARNING),
    "ever": ("duplicates.log_ever", Status.OK),
}


def judge_absorbed(frames: Frames, given: JudgeInput) -> Finding:
    """4.2.3: judge duplicates that redeliveries left, and rows that two workers process; redeliveries are normal."""
    first, second = (rows.first(frames.get(name), ConsumerCounters) for name in (f"{FIRST}consumer", "consumer"))
    before = next((f for f in given.earlier if f.step == "4.2.2"), None)
    reached = before.value("duplicates") if before else None
    seconds = (first and second and seconds_between(first.ts, second.ts)) or given.number("looks.apart")
    moved = ConsumerProgress.between(first, second)
    rate = moved.again / seconds * 60 if moved else None
    locks = leases.judge_locks(
        {name: frames[kept] for name, kept in (("first", f"{FIRST}held"), ("second", "held")) if kept in frames}, given
    )
    race = bool({s.observation for s in locks.signals} & TWO_WORKERS)
    log = rows.first(frames.get("log"), DuplicatesLog)
    strength = log.strength(given) if log else ""
    log_observation, log_status = LOG_EVIDENCE.get(strength, ("", Status.OK))
    recent = strength in ("sure", "now", "recent")
    limit = given.limits.value("redelivery.rate", rate)
    storm = limit.status is Status.WARNING
    facts: dict[str, Any] = {
        "reached": reached,
        "again": moved.again if moved else None,
        "rate": rate,
        "seconds": seconds,
        "ever": second.ever if second else None,
        "what": locks.headline,
        "lost": log.lost if log else None,
        "twice": log.sent_twice if log else None,
        "skipped": log.skipped if log else None,
        "entries": log.entries if log else None,
        "log_ago": log.ago if log else None,
        "log_since": f"{log.since:%H:%M:%S}" if log and log.since is not None else None,
    }
    cases = {
        "duplicates.two_hands": race,
        "duplicates.sent_twice": recent and log and log.sent_twice,
        "duplicates.lock_lost": recent,
        "duplicates.reached": reached,
        "duplicates.storm": storm,
        "duplicates.unseen": moved is None,
        "duplicates.absorbed": moved and moved.again,
    }
    case = next((name for name, holds in cases.items() if holds), "duplicates.no_redelivery")
    at_least = [locks.status, log_status]
    if reached and before is not None:
        at_least.append(before.status)
    logged = (("lost", "entries"), ("twice", "rows"), ("skipped", "events"))
    observed = {
        "duplicates.absorbed": bool(moved and moved.again) and (before is None or reached == 0),
        "duplicates.storm": storm,
        log_observation: log_observation,
    }
    return judged(
        say(case, **facts),
        [
            *((limit,) if moved else ()),
            Value("redelivered", facts["again"], "deliveries"),
            Value("consumer.redelivered_ever", facts["ever"], "deliveries"),
            Value("consumer.num_redelivered", second.num_redelivered if second else None, "messages"),
            *(Value(f"log.{name}", facts[name], unit) for name, unit in logged if log),
            *(v for v in locks.values if v.name in ("processing.other_holder", "processing.taken_before_lease_end")),
        ],
        at_least=worst(at_least),
        notes=tuple(_absorbed_notes(given, facts, locks if race and case != "duplicates.two_hands" else None)),
        signals=(
            *(s for observation, holds in observed.items() if holds for s in given.evidence(observation)),
            *locks.signals,
        ),
        hops=(
            Hop(
                "subscriber",
                rate_in=moved.delivered / seconds * 60 if moved else None,
                waiting=second.num_pending + second.num_ack_pending if second else None,
                alive=None if second is None else say("alive.bound" if second.bound else "alive.not_bound"),
            ),
        ),
        proposals=(proposals.pods(given, "notification"),) if race or recent else (),
        next_sections=("4.3",) if race or recent else (),
        show=(
            *(("sent_twice",) if len(frames.get("sent_twice", ())) else ()),
            *(("held",) if locks.show else ()),
        ),
    )


def _absorbed_notes(given: JudgeInput, facts: dict[str, Any], race: Finding | None) -> list[Text]:
    notes = [race.headline] if race else []
    if facts["entries"] == 0:
        notes.append(say("duplicates.log_empty", **facts))
    elif facts["entries"] is not None:
        notes.append(say("duplicates.log_lost" if facts["lost"] + facts["twice"] else "duplicates.log_quiet", **facts))
    notes.append(say("duplicates.double_send", seconds=given.number("looks.apart")))
    return notes


CHECKS: tuple[Check, ...] = (
    Check("4.2.1", collector(key=KeyIndex.QUERY), judge_key, needs=("key",)),
    Check("4.2.2", collect_order, judge_order, needs=("duplicates",), optional=("arrivals", "oldest")),
    Check("4.2.3", collect_absorbed, judge_absorbed, needs=("held", f"{FIRST}held"), optional=("log",)),
)
