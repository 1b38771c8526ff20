"""4.2: can an event be registered twice, is it registered before work is done, and what becomes of redeliveries?"""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
from matplotlib.dates import date2num

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.analysis.diagnosis import signals_of_silence
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, needs_the_present, no_data, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    Reason,
    Signal,
    Status,
    Text,
    Value,
    judged,
    say,
    worst,
)
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import leases
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources import logs
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: The constraint whose violation the subscriber takes for "already done"; any other violation is an error to it.
KEY = "processed_events_pkey"
#: What notification writes: a mark that met no row, an event that was known, a send that succeeded.
LOST = (
    "notification sent but lock was lost",
    "notification retry skipped because lock was lost",
    "notification dlq skipped because lock was lost",
)
SKIPPED, SENT = "duplicate notification event skipped", "notification simulated send"
_ID = re.compile(r"\bid=(\S+)")


# 4.2.1 Does the key refuse a second registration?


@dataclass(frozen=True)
class Index:
    """An index of processed_events; without one the table is a row of nothing."""

    QUESTION: ClassVar[str] = "duplicates/key"
    index_name: str | None = None
    constraint_name: str | None = None
    columns: str | None = None
    is_unique: bool = False
    valid: bool = False
    ready: bool = False
    immediate: bool = False
    partial: bool = False


def collect_key(rb: Context) -> Frames:
    """The indexes of processed_events, from the catalog alone: it answers behind every lock. Frame: key."""
    with rb.snapshot() as db:
        return {"key": db.ask("duplicates/key")}


def judge_key(frames: Frames, given: Given) -> Finding:
    """Only a unique index on event_id alone that is valid, complete and immediate refuses a second registration."""
    if "key" not in frames:
        return no_data("duplicates/key")
    found = rows.each(frames["key"], Index)
    if not found:
        return judged(
            say("duplicates.no_table"),
            at_least=Status.CRITICAL,
            signals=given.speaks("duplicates.no_table"),
            next_sections=("2",),
        )
    unique = [i for i in found if i.is_unique and i.columns == "event_id"]
    refusing = [i for i in unique if i.valid and i.ready and not i.partial]
    at_once = [i for i in refusing if i.immediate]
    kinds = {
        "key_valid": [i for i in at_once if i.constraint_name == KEY],
        "key_renamed": at_once,
        "key_deferred": refusing,
        "key_invalid": [i for i in unique if not (i.valid and i.ready)],
        "key_partial": [i for i in unique if i.partial],
    }
    key = next((kind for kind, there in kinds.items() if there), "key_missing")
    chosen = kinds.get(key, [])
    left = [i.index_name for i in found if i.is_unique and not i.valid and i not in chosen and i.index_name]
    broken = not refusing
    seen = "duplicates.key_valid" if key == "key_valid" else "duplicates.key_differs"
    return judged(
        say(f"duplicates.{key}", names=", ".join(str(i.index_name) for i in chosen)),
        [
            Value(KEY, key.removeprefix("key_")),
            Value("processed_events.unique_indexes", len(unique), "indexes"),
            Value("processed_events.refusing_indexes", len(refusing), "indexes"),
        ],
        at_least=Status.CRITICAL if broken else Status.OK if key == "key_valid" else Status.WARNING,
        notes=(
            *((say("duplicates.key_repair"),) if broken else ()),
            *((say("duplicates.key_left", names=", ".join(left)),) if left and not broken else ()),
        ),
        signals=given.speaks("duplicates.key_broken" if broken else seen),
        next_sections=("5.3",) if broken else (),
        show=("key",),
    )


# 4.2.2 Is the event registered before work is done, in one transaction?


#: What may be amiss, worst first: how it is counted in a text, and the text's name.
AMISS = {
    "events": "doubled",
    "queued": "unregistered",
    "registered": "registered_only",
    "twice": "registered_twice",
    "elsewhere": "elsewhere",
    "replays": "replayed",
    "close": "close",
}


def collect_order(rb: Context) -> Frames:
    """The window's notifications against their registrations; copies side by side where there are any.

    Frames: duplicates, copies, again, halves, apart, twice, arrivals.
    """
    with rb.snapshot() as db:
        duplicates = db.ask("consistency/duplicates")
        others = {
            "again": db.try_ask("duplicates/again"),
            "halves": db.try_ask("consistency/half_processed"),
            "apart": db.try_ask("duplicates/other_instant"),
            "twice": db.try_ask("duplicates/registered_twice"),
            "arrivals": db.try_ask("notifications/arrivals_per_minute"),
            "copies": db.try_ask("duplicates/copies") if len(duplicates) else None,
        }
    return {"duplicates": duplicates} | {name: frame for name, frame in others.items() if frame is not None}


def judge_order(frames: Frames, given: Given) -> Finding:
    """One event, one registration, one notification, one instant; anything else the code can not have written."""
    if "duplicates" not in frames:
        return no_data("consistency/duplicates")
    duplicates = table(frames, "duplicates", "event_id", "n", "last")
    again = table(frames, "again", "event_id", "earlier_id", "created_at")
    repeats, replays = again[again["earlier_id"].notna()], again[again["earlier_id"].isna()]
    events = set(duplicates["event_id"]) | set(repeats["event_id"])
    extra = int((pd.to_numeric(duplicates["n"], errors="coerce") - 1).sum())
    extra += int((~repeats["event_id"].isin(set(duplicates["event_id"]))).sum())
    halves = table(frames, "halves", "kind")["kind"]
    apart = table(frames, "apart", "event_id", "later_s")
    later = pd.to_numeric(apart[~apart["event_id"].isin(events)]["later_s"], errors="coerce").dropna().abs()
    elsewhere = later >= given.number("duplicates.same_work")
    found = {
        "events": len(events),
        "queued": int((halves == "queued_only").sum()),
        "registered": int((halves == "registered_only").sum()),
        "twice": len(set(table(frames, "twice", "event_id")["event_id"]) - events),
        "elsewhere": int(elsewhere.sum()),
        "replays": len(replays),
        "close": int((~elsewhere).sum()),
    }
    unsent = _unsent(frames)
    newest = pd.concat([duplicates["last"], repeats["created_at"]]).max() if events else None
    ago = seconds_between(newest, given.as_of)
    still = bool(events) and (bool(unsent) or (ago is not None and ago < given.number("duplicates.still")))
    unasked = [name for name in ("halves", "apart", "again", "twice") if name not in frames]
    queued = float(table(frames, "arrivals", "n")["n"].sum()) if "arrivals" in frames else None
    facts = found | {"extra": extra, "ago": ago, "unsent": unsent, "seen": queued, "minutes": given.window_minutes}
    key = next((AMISS[name] for name, n in found.items() if n), None)
    well = "half_seen" if unasked else "none" if queued == 0 else "in_order"
    # What copies explain is not shown twice.
    shown = {"copies": 1, "again": 1, "halves": 1, "apart": len(later), "twice": found["twice"]}
    return judged(
        say(f"duplicates.{key or well}", **facts),
        [
            given.limits.value("integrity.rows", sum(found.values()) - found["replays"] - found["close"]),
            Value("duplicates", found["events"], "events"),
            Value("duplicates.extra", extra, "rows"),
            Value("duplicates.extra_not_sent", unsent, "rows"),
            Value("queued_only", found["queued"], "rows"),
            Value("registered_only", found["registered"], "rows"),
            Value("registered_twice", found["twice"], "events"),
            Value("registered_at_another_instant", len(later), "rows"),
            Value("queued_after_30_days", found["replays"], "rows"),
            Value("notifications.created", queued, "rows"),
        ],
        at_least=Status.UNKNOWN if unasked else Status.WARNING if found["replays"] or found["close"] else Status.OK,
        notes=tuple(_notes(frames, unasked, found, facts)),
        signals=_order_signals(given, key, still, bool(unasked)),
        # Holding makes everybody wait: for copies that it still keeps from somebody, and not for those that are out.
        proposals=(remedies.hold_delivery(given), remedies.resume_delivery(given))
        if unsent or _keep_coming(frames, given)
        else (),
        next_sections=("5.3",) if key else (),
        show=tuple(name for name, n in shown.items() if n and len(frames.get(name, ()))),
    )


def _copies(frames: Frames) -> pd.DataFrame:
    """Every notification of an event but its first, as far as rows were fetched."""
    columns = ["notification_id", "event_id", "status", "created_at"]
    copies = table(frames, "copies", *columns).sort_values("created_at")
    again = table(frames, "again", *columns, "earlier_id")
    both = [copies[copies.duplicated("event_id")][columns], again[again["earlier_id"].notna()][columns]]
    return pd.concat([f for f in both if len(f)] or [copies[columns]]).drop_duplicates("notification_id")


def _keep_coming(frames: Frames, given: Given) -> bool:
    """Whether copies were made lately, and over longer than one burst of redeliveries that may be over."""
    made = pd.to_datetime(_copies(frames)["created_at"].dropna(), utc=True)
    lately = made[made > given.as_of - pd.Timedelta(seconds=given.number("duplicates.look_back"))]
    return len(lately) > 0 and (lately.max() - made.min()).total_seconds() >= given.number("duplicates.burst")


def _unsent(frames: Frames) -> int:
    """Rows that will be sent although another of their event was, or will be."""
    copies = table(frames, "copies", "event_id", "status")
    again = table(frames, "again", "event_id", "status", "earlier_id")
    again = again[again["earlier_id"].notna() & ~again["event_id"].isin(set(copies["event_id"]))]
    waits = copies["status"].isin(["PENDING", "PROCESSING"])
    # One of them may go out where none has been sent.
    sent = set(copies[copies["status"] == "SENT"]["event_id"])
    first = copies[waits & ~copies["event_id"].isin(sent)]["event_id"].nunique()
    return int(waits.sum() - first + again["status"].isin(["PENDING", "PROCESSING"]).sum())


def _notes(frames: Frames, unasked: list[str], found: dict[str, int], facts: dict[str, Any]) -> list[Text]:
    notes = []
    if found["events"]:
        notes += [say(f"duplicates.also_{AMISS[name]}", **facts) for name, n in found.items() if n and name != "events"]
    if unasked:
        notes.append(say("duplicates.not_asked", names=", ".join(unasked)))
    if any(frame.attrs.get("capped") for frame in frames.values()):
        notes.append(say("duplicates.capped"))
    if found["events"]:
        notes.append(say("duplicates.keep_rows"))
    notes.append(say("duplicates.bounded", minutes=facts["minutes"]))
    return notes


def _order_signals(given: Given, key: str | None, still: bool, unasked: bool) -> tuple[Signal, ...]:
    """Events flow all the same, so that no hop is spoken for."""
    if key == "doubled":
        # Copies of a while ago tell what was wrong, not what is.
        return given.speaks("duplicates.doubled_now" if still else "duplicates.doubled")
    if key == "registered_only":
        return given.speaks("consistency.registered_only")
    if key is not None and key != "close":
        return given.speaks("duplicates.not_in_order")
    return () if unasked or key else given.speaks("duplicates.in_order")


def draw_order(frames: Frames, given: Given) -> charts.Chart | None:
    """Notifications queued per minute, and how many of them repeat an earlier one."""
    arrivals = table(frames, "arrivals", "minute", "n").dropna()
    copies = _copies(frames)["created_at"].dropna()
    if arrivals.empty:
        return None
    extra = pd.to_datetime(copies, utc=True).dt.floor("min").value_counts().sort_index()
    figure, ax = charts.axes("Notifications queued per minute, and second copies among them", "1/min", "UTC")
    width = 50 / 86400  # of a day: a minute, and a gap
    ax.bar(arrivals["minute"], arrivals["n"], width=width, align="edge", color=charts.GREY, alpha=0.55, label="queued")
    if len(extra):
        ax.bar(
            extra.index, extra.to_numpy(), width=width, align="edge", color=charts.RED, hatch="xx",
            edgecolor="white", label="second copy of an event",
        )  # fmt: skip
    ax.set_xlim(*date2num([given.as_of - pd.Timedelta(minutes=given.window_minutes), given.as_of]))
    charts.clock_ticks(ax)
    charts.legend(figure)
    facts = {"n": float(arrivals["n"].sum()), "extra": len(copies), "minutes": given.window_minutes}
    return charts.Chart(figure, say("duplicates.alt", **facts), (say("duplicates.caption"),))


# 4.2.3 Are second deliveries absorbed?


def collect_absorbed(rb: Context) -> Frames:
    """The consumer and the tables twice over a short pause, the stream against the outbox, and the log.

    Frames, those of the second look with `_later` behind: held, accepted, consumer (ts, created: time; delivered,
    num_ack_pending, num_pending, num_redelivered: messages; delivered_stream_seq: id; bound: flag). Once: stream
    (from_seq: id; since: time; messages), published, and those of `log_frames`.
    """
    needs_the_present(rb, "postgres")
    parts = Parts()
    since = rb.as_of - pd.Timedelta(seconds=rb.number("duplicates.look_back"))

    def look(name: str) -> None:
        with rb.snapshot() as db:
            parts.answers["held" + name] = db.ask("notifications/held")
            parts.answers["accepted" + name] = db.ask("duplicates/accepted", **{"from": since})

    def consumer(name: str) -> None:
        with parts.part("consumer") as answers:
            answers["consumer" + name] = _consumer(rb)

    # The tables first and last: what the consumer delivers between its looks, they show between theirs.
    look("")
    consumer("")
    time.sleep(rb.number("looks.apart"))
    consumer("_later")
    look("_later")
    with parts.part("stream") as answers:
        answers |= _stream(rb)
    with parts.part("log") as answers:
        minutes = min(rb.parameters.window_minutes, int(rb.number("log.longest")))
        lines = rb.workloads.logs(facts_of(rb).workloads.notification, minutes)
        answers |= log_frames(lines, rb.now(), minutes, rb.number("log.just_now"))
    return parts.frames()


def _consumer(rb: Context) -> pd.DataFrame:
    names = facts_of(rb).streams
    info = rb.jetstream.consumer(names.events, names.consumer)
    return row(
        ts=info.get("ts"),
        created=info.get("created"),
        delivered=info["delivered"]["consumer_seq"],
        delivered_stream_seq=info["delivered"]["stream_seq"],
        num_pending=info["num_pending"],
        num_ack_pending=info["num_ack_pending"],
        num_redelivered=info["num_redelivered"],
        bound=bool(info.get("push_bound")),
    )


def _stream(rb: Context) -> Frames:
    """The newest messages, as many as the window reaches, and what the outbox says of the same time."""
    name = facts_of(rb).streams.events
    state = rb.jetstream.stream(name)["state"]
    # Of what is older the outbox has removed a part, or is about to.
    oldest = max(rb.since, rb.as_of - pd.Timedelta(hours=rb.number("duplicates.outbox_reach")))
    newest = int(rb.number("duplicates.newest_messages"))
    back = [min(newest, state["messages"]) >> halved for halved in range(newest.bit_length())]
    messages = rb.jetstream.messages(name, [state["last_seq"] - n + 1 for n in dict.fromkeys(back) if n])
    # The furthest one back that belongs to the window and names its event: from its batch on, the outbox is counted.
    known = [(m, event) for m in messages if (event := _event_id(m.headers)) and m.time >= oldest]
    if not known:
        return {}
    first, event = min(known, key=lambda found: found[0].seq)
    stored = max(state["last_seq"] - first.seq + 1 - state.get("num_deleted", 0), 0)
    frames = {"stream": row(from_seq=first.seq, since=first.time, messages=stored)}
    with rb.snapshot() as db:
        published = db.try_ask("duplicates/published", event=event)
    return frames if published is None else frames | {"published": published}


def _event_id(headers: dict[str, str]) -> str | None:
    """The event that the relay named as the message's id; None for what somebody else published."""
    try:
        return str(uuid.UUID(headers.get("Nats-Msg-Id", "")))
    except ValueError:
        return None


def log_frames(lines: list[str], now: pd.Timestamp, minutes: float, just_s: float) -> Frames:
    """What the log of notification says of copies: locks lost, events skipped, notifications sent twice.

    Frames: log (entries, lost, lost_now, skipped, sent: entries; sent_twice: rows; since, last_lost, last_twice, now:
    time), sent_twice (notification_id: id; n: entries; first, last: time).
    """
    begin = now - pd.Timedelta(minutes=minutes)
    said = [(pd.Timestamp(r.time), r.message) for r in logs.read(lines) if r.time and pd.Timestamp(r.time) >= begin]
    lost = [at for at, message in said if any(phrase in message for phrase in LOST)]
    sends = [(m[1], at) for at, message in said if SENT in message and (m := _ID.search(message))]
    sent = pd.DataFrame(sends, columns=["notification_id", "at"])
    twice = sent.groupby("notification_id")["at"].agg(n="size", first="min", last="max").reset_index()
    twice = twice[twice["n"] > 1].sort_values("last", ascending=False)
    found = row(
        entries=len(said),
        since=min((at for at, _ in said), default=pd.NaT),
        lost=len(lost),
        lost_now=sum(at > now - pd.Timedelta(seconds=just_s) for at in lost),
        last_lost=max(lost, default=pd.NaT),
        skipped=sum(SKIPPED in message for _, message in said),
        sent=len(sent),
        sent_twice=len(twice),
        last_twice=max(twice["last"], default=pd.NaT),
        now=now,
    )
    return {"log": found, "sent_twice": twice.head(500).reset_index(drop=True)}


@dataclass(frozen=True)
class Accepted:
    """What was queued in the last moments."""

    QUESTION: ClassVar[str] = "duplicates/accepted"
    events: float = 0.0
    doubled: float = 0.0


@dataclass(frozen=True)
class Consumer:
    """One look at the subscriber's consumer."""

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
        """Redeliveries in its life; None where its stream began before it, so that this can not be told."""
        ever = self.delivered - self.delivered_stream_seq
        return ever if ever >= 0 else None


@dataclass(frozen=True)
class Moved:
    """What the consumer did between two looks: deliveries, those of them that were second ones, and answers."""

    delivered: float
    again: float
    answered: float

    @classmethod
    def between(cls, first: Consumer | None, second: Consumer | None) -> Moved | None:
        """None where it was not seen twice, or was made anew in between."""
        if first is None or second is None or first.created != second.created:
            return None
        delivered = second.delivered - first.delivered
        # Each new message moves both sequences by one, each redelivery only the consumer's.
        again = delivered - (second.delivered_stream_seq - first.delivered_stream_seq)
        answered = delivered - (second.num_ack_pending - first.num_ack_pending)
        return cls(max(delivered, 0.0), max(again, 0.0), max(answered, 0.0))


@dataclass(frozen=True)
class Stream:
    """The messages that the stream holds from a batch of the outbox on."""

    since: pd.Timestamp | None = None
    messages: float = 0.0


@dataclass(frozen=True)
class Published:
    """What the outbox published from the same batch on, for certain and perhaps."""

    QUESTION: ClassVar[str] = "duplicates/published"
    since: pd.Timestamp | None = None
    published: float = 0.0
    perhaps: float = 0.0


@dataclass(frozen=True)
class Log:
    """What the log counts, and when it was read."""

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
        """Seconds since the newest sign of a row in two hands."""
        signs = [at for at in (self.last_lost, self.last_twice) if at is not None]
        return seconds_between(max(signs, default=None), self.now)

    def worth(self, given: Given) -> str:
        """How much its signs are worth: "sure", "now", "recent", "ever" or ""."""
        if self.ago is not None and self.ago < given.number("log.just_now"):
            # One lost lock may be a restart; several within a minute are somebody who sends the same rows.
            return "sure" if self.sent_twice or self.lost_now >= given.number("tries.pattern") else "now"
        if self.ago is not None and self.ago < given.number("duplicates.still"):
            return "recent"
        return "ever" if self.lost or self.sent_twice else ""


#: What the log's signs speak for, and how bad they are.
LOG_SPEAKS = {
    "sure": ("duplicates.log_sure", Status.CRITICAL),
    "now": ("duplicates.log_now", Status.WARNING),
    "recent": ("duplicates.log_recent", Status.WARNING),
    "ever": ("duplicates.log_ever", Status.OK),
}


def judge_absorbed(frames: Frames, given: Given) -> Finding:
    """Redeliveries are normal; wrong is what they leave behind, and a row in two workers' hands."""
    if not {"accepted", "accepted_later"} <= set(frames):
        return no_data("duplicates/accepted")
    first, second = (next(iter(rows.each(frames.get(name), Consumer)), None) for name in ("consumer", "consumer_later"))
    tables, later = (rows.one(frames[name], Accepted) for name in ("accepted", "accepted_later"))
    before = next((f for f in given.earlier if f.step == "4.2.2"), None)
    reached = later.doubled or float((before.value("duplicates") if before else 0) or 0)
    new = max(later.events - tables.events, 0.0)
    seconds = (first and second and seconds_between(first.ts, second.ts)) or given.number("looks.apart")
    moved = Moved.between(first, second)
    rate = moved.again / seconds * 60 if moved else None
    surplus, hidden = _surplus(frames)
    locks = leases.judge_locks(
        {name: frames[kept] for name, kept in (("first", "held"), ("second", "held_later")) if kept in frames}, given
    )
    race = locks.status is not Status.OK and any(s.about == "FM-NOTI-02" for s in locks.signals)
    failed = failures(frames)
    log = rows.one(frames.get("log"), Log)
    spoken, log_status = LOG_SPEAKS.get(worth := log.worth(given), ("", Status.OK))
    recent = worth in ("sure", "now", "recent")
    limit = given.limits.value("redelivery.rate", rate)
    storm = limit.status is Status.WARNING
    facts: dict[str, Any] = {
        "doubled": later.doubled,
        "reached": reached,
        "again": moved.again if moved else None,
        "rate": rate,
        # A delivery that is neither a new notification nor still waiting for its answer was absorbed, or refused.
        "absorbed": max(moved.answered - new, moved.again, 0.0) if moved else None,
        "seconds": seconds,
        "surplus": surplus,
        "hidden": hidden,
        "ever": second.ever if second else None,
        "what": locks.headline,
        "lost": log.lost,
        "twice": log.sent_twice,
        "skipped": log.skipped,
        "entries": log.entries,
        "log_ago": log.ago,
        "log_since": f"{log.since:%H:%M:%S}" if log.since is not None else None,
    }
    if later.doubled:
        key = "reaching"
    elif race:
        key = "two_hands"
    elif recent:
        key = "sent_twice" if log.sent_twice else "lock_lost"
    elif reached:
        key = "reached"
    elif storm:
        key = "storm"
    elif moved is None:
        key = "unseen"
    else:
        key = "absorbed" if moved.again else "no_redelivery"
    silent = failed.get("consumer") or failed.get("stream")
    at_least = [locks.status, log_status]
    if later.doubled:
        at_least.append(Status.CRITICAL)
    elif reached and before is not None:
        at_least.append(before.status)
    if silent is not None and silent.reason is not Reason.NOT_CONFIGURED:
        at_least.append(Status.UNKNOWN)
    logged = (("lost", "entries"), ("twice", "rows"), ("skipped", "events"))
    spoke = {
        "duplicates.doubled_now": later.doubled,
        "duplicates.absorbed": not later.doubled and moved is not None and not reached,
        "duplicates.storm": storm,
        "duplicates.surplus": surplus,
        spoken: spoken,
    }
    return judged(
        say(f"duplicates.{key}", **facts),
        [
            *((limit,) if moved else ()),
            Value("redelivered", facts["again"], "deliveries"),
            Value("delivered_without_new_notification", facts["absorbed"], "deliveries"),
            Value("notifications.new", new, "events"),
            Value("doubled_last_minute", later.doubled, "rows"),
            Value("consumer.redelivered_ever", facts["ever"], "deliveries"),
            Value("consumer.num_redelivered", second.num_redelivered if second else None, "messages"),
            Value("stream.more_than_published", surplus, "messages"),
            *(Value(f"log.{name}", facts[name], unit) for name, unit in logged if "log" in frames),
            *(v for v in locks.values if v.name in ("processing.other_holder", "processing.taken_before_lease_end")),
        ],
        at_least=worst(at_least),
        reason=silent.reason if silent else None,
        notes=tuple(_absorbed_notes(frames, given, facts, locks if race and key != "two_hands" else None)),
        signals=(
            *(s for observation, seen in spoke.items() if seen for s in given.speaks(observation)),
            *locks.signals,
            *(s for e in failed.values() for s in signals_of_silence(e, given.catalog)),
        ),
        hops=(
            Hop(
                "subscriber",
                rate_in=moved.delivered / seconds * 60 if moved else None,
                rate_out=new / seconds * 60,
                waiting=second.num_pending + second.num_ack_pending if second else None,
                alive=None if second is None else say("alive.bound" if second.bound else "alive.not_bound"),
            ),
        ),
        proposals=(proposals.pods(given, "notification"),) if race or recent else (),
        next_sections=(*(("5.3",) if later.doubled else ()), *(("4.3",) if race or recent else ())),
        show=(
            *(("sent_twice",) if len(frames.get("sent_twice", ())) else ()),
            *(("held_later",) if locks.show else ()),
        ),
    )


def _surplus(frames: Frames) -> tuple[float | None, float | None]:
    """Messages that the stream holds beyond what the outbox published: at least so many, and what may hide."""
    published = rows.one(frames.get("published"), Published)
    if not len(frames.get("stream", ())) or published.since is None:
        return None, None
    surplus = rows.one(frames["stream"], Stream).messages - published.published - published.perhaps
    return max(surplus, 0.0), max(-surplus, 0.0)


def _absorbed_notes(frames: Frames, given: Given, facts: dict[str, Any], race: Finding | None) -> list[Text]:
    notes = [race.headline] if race else []
    for e in failures(frames).values():
        why = say(f"unknown.{e.reason}", source=e.source, detail=e.detail)
        notes.append(say("duplicates.without", source=e.source, why=why))
    if facts["surplus"] is None:
        notes.append(say("duplicates.stream_untold"))
    else:
        since = rows.one(frames["stream"], Stream).since
        told = facts | {"since": since and f"{since:%H:%M:%S}"}
        notes.append(say("duplicates.stream_more" if facts["surplus"] else "duplicates.stream_agrees", **told))
    if facts["absorbed"]:
        notes.append(say("duplicates.estimate", **facts))
    if "log" in frames:
        read = "log_quiet" if not facts["lost"] + facts["twice"] else "log_lost"
        notes.append(say(f"duplicates.{read if facts['entries'] else 'log_empty'}", **facts))
    notes.append(say("duplicates.double_send", seconds=given.number("looks.apart")))
    return notes


CHECKS: tuple[Check, ...] = (
    Check("4.2.1", collect_key, judge_key),
    Check("4.2.2", collect_order, judge_order, (draw_order,)),
    Check("4.2.3", collect_absorbed, judge_absorbed),
)
