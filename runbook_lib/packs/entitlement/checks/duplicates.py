"""4.2: can an event be registered twice, is it registered before work is done, and what becomes of redeliveries?"""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.dates import date2num

from runbook_lib.actions import proposals
from runbook_lib.analysis.diagnosis import signals_of_silence
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, needs_the_present, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    Proposal,
    Reason,
    Signal,
    Status,
    Text,
    Value,
    judged,
    say,
    unknown,
    worst,
)
from runbook_lib.model.frames import amount, one, row, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import delivery, leases
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources import logs
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: The constraint whose violation the subscriber takes for "already done"; any other violation is an error to it.
KEY = "processed_events_pkey"
#: A copy so young says that copies are still being made.
STILL_S = 15 * 60.0
#: Two readings of one clock in one transaction are no further apart than this.
SAME_WORK_S = 1.0
#: So far back the newest notifications are compared with each other at each look.
BACK = pd.Timedelta(minutes=1)
#: The newest messages of the stream that are counted against the outbox, which keeps what it published for 24 h.
NEWEST, KEPT = 8192, pd.Timedelta(hours=20)
#: The log is read no further back, and what it says of so many seconds ago is still going on.
LOG_MIN, NOW_S = 60, 60.0
#: What notification writes: a mark that met no row, an event that was known, a send that succeeded.
LOST = (
    "notification sent but lock was lost",
    "notification retry skipped because lock was lost",
    "notification dlq skipped because lock was lost",
)
SKIPPED, SENT = "duplicate notification event skipped", "notification simulated send"
_ID = re.compile(r"\bid=(\S+)")


# 4.2.1 Does the key refuse a second registration?


def collect_key(rb: Context) -> Frames:
    """The indexes of processed_events, from the catalog alone: it answers behind every lock."""
    with rb.snapshot() as db:
        return {"key": db.ask("duplicates/key")}


def judge_key(frames: Frames, given: Given) -> Finding:
    """Only a unique index on event_id alone that is valid, complete and immediate refuses a second registration."""
    if "key" not in frames:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="duplicates/key"))
    names = ("index_name", "constraint_name", "columns")
    flags = ("is_primary", "is_unique", "valid", "ready", "immediate", "partial")
    found = table(frames, "key", *names, *flags)
    if found.empty:
        return judged(
            say("duplicates.no_table"),
            at_least=Status.CRITICAL,
            signals=(Signal("database", 0.8), Signal("FM-DB-03", 0.9)),
            next_sections=("2",),
        )
    yes = found[list(flags)].fillna(False).astype(bool)
    unique = yes["is_unique"] & (found["columns"] == "event_id")
    refuses = unique & yes["valid"] & yes["ready"] & ~yes["partial"]
    named = found["constraint_name"] == KEY
    at_once = refuses & yes["immediate"]
    if (at_once & named).any():
        key, chosen = "key_valid", at_once & named
    elif at_once.any():
        key, chosen = "key_renamed", at_once
    elif refuses.any():
        key, chosen = "key_deferred", refuses
    elif (unique & ~(yes["valid"] & yes["ready"])).any():
        key, chosen = "key_invalid", unique & ~(yes["valid"] & yes["ready"])
    elif (unique & yes["partial"]).any():
        key, chosen = "key_partial", unique & yes["partial"]
    else:
        key, chosen = "key_missing", unique & False
    left = found[yes["is_unique"] & ~yes["valid"] & ~chosen]["index_name"].dropna()
    broken = not refuses.any()
    signals: tuple[Signal, ...] = (Signal("FM-NOTI-01", -0.5),)
    if broken:
        signals = (Signal("FM-NOTI-01", 0.9),)
    elif key != "key_valid":
        signals = (Signal("FM-DB-03", 0.4),)
    return judged(
        say(f"duplicates.{key}", names=", ".join(str(n) for n in found[chosen]["index_name"])),
        [
            Value(KEY, key.removeprefix("key_")),
            Value("processed_events.unique_indexes", int(unique.sum()), "indexes"),
            Value("processed_events.refusing_indexes", int(refuses.sum()), "indexes"),
        ],
        at_least=Status.CRITICAL if broken else Status.OK if key == "key_valid" else Status.WARNING,
        notes=(
            *((say("duplicates.key_repair"),) if broken else ()),
            *((say("duplicates.key_left", names=", ".join(map(str, left))),) if len(left) and not broken else ()),
        ),
        signals=signals,
        proposals=_hold(given) if broken else (),
        next_sections=("5.3",) if broken else (),
        show=("key",),
    )


def _hold(given: Given) -> tuple[Proposal, ...]:
    """Suppression is broken: nothing more is sent until it is whole again and the tables agree."""
    return (remedies.hold_delivery(given), remedies.resume_delivery(given))


# 4.2.2 Is the event registered before work is done, in one transaction?


def collect_order(rb: Context) -> Frames:
    """The window's notifications against their registrations; copies side by side where there are any."""
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
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="consistency/duplicates"))
    duplicates = table(frames, "duplicates", "event_id", "n", "last")
    again = table(frames, "again", "event_id", "earlier_id", "created_at")
    repeats, replays = again[again["earlier_id"].notna()], again[again["earlier_id"].isna()]
    events = set(duplicates["event_id"]) | set(repeats["event_id"])
    extra = int((pd.to_numeric(duplicates["n"], errors="coerce") - 1).sum())
    extra += int((~repeats["event_id"].isin(set(duplicates["event_id"]))).sum())
    halves = table(frames, "halves", "kind")["kind"]
    queued, registered = int((halves == "queued_only").sum()), int((halves == "registered_only").sum())
    apart = table(frames, "apart", "event_id", "later_s")
    later = pd.to_numeric(apart[~apart["event_id"].isin(events)]["later_s"], errors="coerce").dropna()
    elsewhere, close = int((later.abs() >= SAME_WORK_S).sum()), int((later.abs() < SAME_WORK_S).sum())
    twice = len(set(table(frames, "twice", "event_id")["event_id"]) - events)
    unsent = _unsent(frames)
    newest = pd.concat([duplicates["last"], repeats["created_at"]]).max() if events else None
    ago = seconds_between(newest, given.as_of)
    still = bool(events) and (bool(unsent) or (ago is not None and ago < STILL_S))
    unasked = [name for name in ("halves", "apart", "again", "twice") if name not in frames]
    seen = float(table(frames, "arrivals", "n")["n"].sum()) if "arrivals" in frames else None
    facts: dict[str, Any] = {
        "events": len(events), "extra": extra, "ago": ago, "unsent": unsent, "queued": queued,
        "registered": registered, "twice": twice, "elsewhere": elsewhere, "close": close, "replays": len(replays),
        "seen": seen, "minutes": given.window_minutes,
    }  # fmt: skip
    found = {
        "doubled": len(events), "unregistered": queued, "registered_only": registered, "registered_twice": twice,
        "elsewhere": elsewhere, "replayed": len(replays), "close": close,
    }  # fmt: skip
    key = next((name for name, n in found.items() if n), "none" if seen == 0 else "in_order")
    # What copies explain is not shown twice.
    shows = {"copies": 1, "again": 1, "halves": 1, "apart": elsewhere + close, "twice": twice}
    broken = len(events) + queued + registered + twice + elsewhere
    return judged(
        say(f"duplicates.{'half_seen' if unasked and not any(found.values()) else key}", **facts),
        [
            given.limits.value("integrity.rows", broken),
            Value("duplicates", len(events), "events"),
            Value("duplicates.extra", extra, "rows"),
            Value("duplicates.extra_not_sent", unsent, "rows"),
            Value("queued_only", queued, "rows"),
            Value("registered_only", registered, "rows"),
            Value("registered_twice", twice, "events"),
            Value("registered_at_another_instant", elsewhere + close, "rows"),
            Value("queued_after_30_days", len(replays), "rows"),
            Value("notifications.created", seen, "rows"),
        ],
        at_least=Status.UNKNOWN if unasked else Status.WARNING if len(replays) or close else Status.OK,
        notes=tuple(_notes(frames, unasked, found, facts)),
        signals=tuple(_order_signals(found, still, bool(unasked))),
        proposals=_hold(given) if still else (),
        next_sections=("5.3",) if any(found.values()) else (),
        show=tuple(name for name, shown in shows.items() if shown and len(frames.get(name, ()))),
    )


def _copies(frames: Frames) -> pd.DataFrame:
    """Every notification of an event but its first, as far as rows were fetched."""
    columns = ["notification_id", "event_id", "status", "created_at"]
    rows = table(frames, "copies", *columns).sort_values("created_at")
    again = table(frames, "again", *columns, "earlier_id")
    both = [rows[rows.duplicated("event_id")][columns], again[again["earlier_id"].notna()][columns]]
    return pd.concat([f for f in both if len(f)] or [rows[columns]]).drop_duplicates("notification_id")


def _unsent(frames: Frames) -> int:
    """Rows that will be sent although another of their event was, or will be."""
    rows = table(frames, "copies", "event_id", "status")
    again = table(frames, "again", "event_id", "status", "earlier_id")
    again = again[again["earlier_id"].notna() & ~again["event_id"].isin(set(rows["event_id"]))]
    waits = rows["status"].isin(["PENDING", "PROCESSING"])
    # One of them may go out where none has been sent.
    first = rows[waits & ~rows["event_id"].isin(set(rows[rows["status"] == "SENT"]["event_id"]))]["event_id"].nunique()
    return int(waits.sum() - first + again["status"].isin(["PENDING", "PROCESSING"]).sum())


def _notes(frames: Frames, unasked: list[str], found: dict[str, int], facts: dict[str, Any]) -> list[Text]:
    notes = [say(f"duplicates.also_{name}", **facts) for name, n in list(found.items())[1:] if n and found["doubled"]]
    if unasked:
        notes.append(say("duplicates.not_asked", names=", ".join(unasked)))
    if any(frame.attrs.get("capped") for frame in frames.values()):
        notes.append(say("duplicates.capped"))
    if found["doubled"]:
        notes.append(say("duplicates.keep_rows"))
    notes.append(say("duplicates.bounded", minutes=facts["minutes"]))
    return notes


def _order_signals(found: dict[str, int], still: bool, unasked: bool) -> list[Signal]:
    """Events flow all the same, so that no hop is spoken for."""
    if found["doubled"]:
        # Copies of a while ago tell what was wrong, not what is.
        return [Signal("FM-NOTI-01", 0.9 if still else 0.7)]
    if found["unregistered"] or found["registered_twice"] or found["elsewhere"] or found["replayed"]:
        return [Signal("FM-NOTI-01", 0.6)]
    if found["registered_only"]:
        return [Signal("subscriber", 0.3)]
    return [] if unasked or found["close"] else [Signal("FM-NOTI-01", -0.4)]


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
    """The consumer and the tables twice over a short pause, the stream against the outbox, and the log."""
    needs_the_present(rb, "postgres")
    parts = Parts()
    since = rb.as_of - BACK

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
    time.sleep(delivery.LOOKS_APART_S)
    consumer("_later")
    look("_later")
    with parts.part("stream") as answers:
        answers |= _stream(rb)
    with parts.part("log") as answers:
        minutes = min(rb.parameters.window_minutes, LOG_MIN)
        lines = rb.workloads.logs(facts_of(rb).workloads.notification, minutes)
        answers |= log_frames(lines, rb.now(), minutes)
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
    oldest = max(rb.since, rb.as_of - KEPT)
    back = [min(NEWEST, state["messages"]) >> halved for halved in range(NEWEST.bit_length())]
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


def _event_id(headers: str) -> str | None:
    """The event that the relay named as the message's id; None for what somebody else published."""
    for line in headers.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "nats-msg-id":
            try:
                return str(uuid.UUID(value.strip()))
            except ValueError:
                return None
    return None


def log_frames(lines: list[str], now: pd.Timestamp, minutes: float) -> Frames:
    """What the log of notification says of copies: locks lost, events skipped, notifications sent twice."""
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
        lost_now=sum(at > now - pd.Timedelta(seconds=NOW_S) for at in lost),
        last_lost=max(lost, default=pd.NaT),
        skipped=sum(SKIPPED in message for _, message in said),
        sent=len(sent),
        sent_twice=len(twice),
        last_twice=max(twice["last"], default=pd.NaT),
        now=now,
    )
    return {"log": found, "sent_twice": twice.head(500).reset_index(drop=True)}


def judge_absorbed(frames: Frames, given: Given) -> Finding:
    """Redeliveries are normal; wrong is what they leave behind, and a row in two workers' hands."""
    if not {"accepted", "accepted_later"} <= set(frames):
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="duplicates/accepted"))
    first, second = one(frames.get("consumer")), one(frames.get("consumer_later"))
    tables, later = one(frames["accepted"]), one(frames["accepted_later"])
    before = next((f for f in given.earlier if f.step == "4.2.2"), None)
    doubled = amount(later, "doubled")
    reached = doubled or float((before.value("duplicates") if before else 0) or 0)
    new = max(amount(later, "events") - amount(tables, "events"), 0.0)
    seconds = seconds_between(first.get("ts"), second.get("ts")) or delivery.LOOKS_APART_S
    moved = _moved(first, second)
    rate = moved["again"] / seconds * 60 if moved else None
    # A delivery that is neither a new notification nor still waiting for its answer was absorbed, or refused.
    absorbed = max(moved["answered"] - new, moved["again"], 0.0) if moved else None
    surplus, hidden = _surplus(frames)
    locks = leases.judge_locks(
        {name: frames[kept] for name, kept in (("first", "held"), ("second", "held_later")) if kept in frames}, given
    )
    race = locks.status is not Status.OK and any(s.about == "FM-NOTI-02" for s in locks.signals)
    failed = failures(frames)
    log = _log(frames)
    limit = given.limits.value("redelivery.rate", rate)
    storm = limit.status is Status.WARNING
    lag = amount(second, "num_pending") + amount(second, "num_ack_pending") if second else None
    facts: dict[str, Any] = {
        "doubled": doubled, "reached": reached, "again": moved["again"] if moved else None, "rate": rate,
        "absorbed": absorbed, "new": new, "seconds": seconds, "surplus": surplus, "hidden": hidden,
        "ever": _ever(second), "what": locks.headline, **log,
    }  # fmt: skip
    if doubled:
        key = "reaching"
    elif race:
        key = "two_hands"
    elif log["log_recent"]:
        key = "sent_twice" if log["twice"] else "lock_lost"
    elif reached:
        key = "reached"
    elif storm:
        key = "storm"
    elif moved is None:
        key = "unseen"
    else:
        key = "absorbed" if moved["again"] else "no_redelivery"
    silent = failed.get("consumer") or failed.get("stream")
    at_least = [locks.status, log["log_status"]]
    if doubled:
        at_least.append(Status.CRITICAL)
    elif reached and before is not None:
        at_least.append(before.status)
    if silent is not None and silent.reason is not Reason.NOT_CONFIGURED:
        at_least.append(Status.UNKNOWN)
    return judged(
        say(f"duplicates.{key}", **facts),
        [
            *((limit,) if moved else ()),
            Value("redelivered", facts["again"], "deliveries"),
            Value("delivered_without_new_notification", absorbed, "deliveries"),
            Value("notifications.new", new, "events"),
            Value("doubled_last_minute", doubled, "rows"),
            Value("consumer.redelivered_ever", facts["ever"], "deliveries"),
            Value("consumer.num_redelivered", second.get("num_redelivered"), "messages"),
            Value("stream.more_than_published", surplus, "messages"),
            *(Value(f"log.{name}", log[name], unit) for name, unit in LOGGED if "log" in frames),
            *(v for v in locks.values if v.name in ("processing.other_holder", "processing.taken_before_lease_end")),
        ],
        at_least=worst(at_least),
        reason=silent.reason if silent else None,
        notes=tuple(_absorbed_notes(frames, key, facts, locks, race)),
        signals=(
            *_absorbed_signals(doubled, reached, storm, surplus, moved is not None),
            *((Signal("FM-NOTI-02", log["log_weight"]),) if log["log_weight"] else ()),
            *locks.signals,
            *(s for e in failed.values() for s in signals_of_silence(e, given.catalog)),
        ),
        hops=(
            Hop(
                "subscriber",
                rate_in=moved["delivered"] / seconds * 60 if moved else None,
                rate_out=new / seconds * 60,
                waiting=lag,
                alive=None if not second else say("alive.bound" if second.get("bound") else "alive.not_bound"),
            ),
        ),
        proposals=(
            *(_hold(given) if doubled else ()),
            *((proposals.pods(given, "notification"),) if race or log["log_recent"] else ()),
        ),
        next_sections=(*(("5.3",) if doubled else ()), *(("4.3",) if race or log["log_recent"] else ())),
        show=(
            *(("sent_twice",) if len(frames.get("sent_twice", ())) else ()),
            *(("held_later",) if locks.show else ()),
        ),
    )


#: What `_log` counts, and in what.
LOGGED = (("lost", "entries"), ("twice", "rows"), ("skipped", "events"))


def _log(frames: Frames) -> dict[str, Any]:
    """What the log comes to: counts, how long ago the last of it was, and what that is worth."""
    found = one(frames.get("log"))
    lost, twice = amount(found, "lost"), amount(found, "sent_twice")
    last = max((at for name in ("last_lost", "last_twice") if (at := found.get(name)) is not None), default=None)
    ago = seconds_between(last, found.get("now"))
    recent = ago is not None and ago < STILL_S
    now = ago is not None and ago < NOW_S
    since = found.get("since")
    # One lost lock may be a restart; several within a minute are somebody who sends the same rows.
    sure = now and (twice > 0 or amount(found, "lost_now") >= delivery.TRIED)
    return {
        "lost": lost, "twice": twice, "skipped": amount(found, "skipped"), "entries": amount(found, "entries"),
        "log_ago": ago, "log_since": f"{pd.Timestamp(since):%H:%M:%S}" if since is not None else None,
        "log_recent": recent,
        "log_status": Status.CRITICAL if sure else Status.WARNING if recent else Status.OK,
        "log_weight": 0.85 if sure else 0.6 if now else 0.4 if recent else 0.2 if lost or twice else 0.0,
    }  # fmt: skip


def _moved(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float] | None:
    """What the consumer did between the looks; None where it was not seen twice, or was made anew in between."""
    if not first or not second or first.get("created") != second.get("created"):
        return None
    grown = {
        name: amount(second, name) - amount(first, name)
        for name in ("delivered", "delivered_stream_seq", "num_ack_pending")
    }
    # Each new message moves both sequences by one, each redelivery only the consumer's.
    again = max(grown["delivered"] - grown["delivered_stream_seq"], 0.0)
    answered = max(grown["delivered"] - grown["num_ack_pending"], 0.0)
    return {"delivered": max(grown["delivered"], 0.0), "again": again, "answered": answered}


def _ever(consumer: dict[str, Any]) -> float | None:
    """Redeliveries in the consumer's life; None where its stream began before it, so that this can not be told."""
    if not consumer:
        return None
    ever = amount(consumer, "delivered") - amount(consumer, "delivered_stream_seq")
    return ever if ever >= 0 else None


def _surplus(frames: Frames) -> tuple[float | None, float | None]:
    """Messages that the stream holds beyond what the outbox published: at least so many, and what may hide."""
    stream, published = one(frames.get("stream")), one(frames.get("published"))
    if not stream or published.get("since") is None:
        return None, None
    surplus = amount(stream, "messages") - amount(published, "published") - amount(published, "perhaps")
    return max(surplus, 0.0), max(-surplus, 0.0)


def _absorbed_notes(frames: Frames, key: str, facts: dict[str, Any], locks: Finding, race: bool) -> list[Text]:
    notes = []
    if race and key != "two_hands":
        notes.append(locks.headline)
    for e in failures(frames).values():
        why = say(f"unknown.{e.reason}", source=e.source, detail=e.detail)
        notes.append(say("duplicates.without", source=e.source, why=why))
    if facts["surplus"] is None:
        notes.append(say("duplicates.stream_untold"))
    else:
        key = "duplicates.stream_more" if facts["surplus"] else "duplicates.stream_agrees"
        notes.append(say(key, **facts | {"since": f"{pd.Timestamp(one(frames['stream'])['since']):%H:%M:%S}"}))
    if facts["absorbed"]:
        notes.append(say("duplicates.estimate", **facts))
    if "log" in frames:
        read = "log_quiet" if not facts["lost"] + facts["twice"] else "log_lost"
        notes.append(say(f"duplicates.{read if facts['entries'] else 'log_empty'}", **facts))
    notes.append(say("duplicates.double_send", seconds=delivery.LOOKS_APART_S))
    return notes


def _absorbed_signals(
    doubled: float, reached: float, storm: bool, surplus: float | None, seen: bool
) -> tuple[Signal, ...]:
    signals = []
    if doubled:
        signals.append(Signal("FM-NOTI-01", 0.9))
    elif seen and not reached:
        signals.append(Signal("FM-NOTI-01", -0.3))
    if storm:
        signals += [Signal("subscriber", 0.4), Signal("FM-NATS-01", 0.4)]
    if surplus:
        signals.append(Signal("FM-OB-03", 0.2))
    return tuple(signals)


CHECKS: tuple[Check, ...] = (
    Check("4.2.1", collect_key, judge_key),
    Check("4.2.2", collect_order, judge_order, (draw_order,)),
    Check("4.2.3", collect_absorbed, judge_absorbed),
)
