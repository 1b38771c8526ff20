"""Section 4.4: what was given up: for good or for a while, by whose fault, and does it still grow?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.dates
import numpy as np
import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.analysis import stats
from runbook_lib.checks.check import FAILED, Check
from runbook_lib.checks.parts import Parts, collect_each, judge_each, seconds_between
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
from runbook_lib.model.frames import amount, one, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import consistency, delivery, errors, given_up, publish
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: An advisory that is not recorded by then is not recorded; the subscriber needs milliseconds.
GRACE_S = 10.0
#: Rows that a proposal sends again at once.
PORTION = 50
#: Tries of the last seconds are those of now.
TRIES_S = 20
#: The scale of the chart of tries: three times the default number of them.
MOST_TRIES = 30
#: Growth is that of the last minutes.
GROWTH_S = 300.0
#: So large a share in three stretches is a burst.
BURST_SHARE = 0.6
#: Stretches of the window in the trend.
BUCKETS, SHORTEST_BUCKET_S = 120, 60.0
#: What failed within this time tells where the flow breaks now.
RECENT_S = 600.0
_KINDS = ["store", "kind", "event_type", "source", "fields", "n", "first", "last", "example"]
#: Kinds that only tell that more must be looked at.
_UNSURE = ("unknown", "decodes", "gone", "not_fetched")


# 4.4.1 ------------------------------------------------------------------------------------------------------


def collect_permanent(rb: Context) -> Frames:
    """What can never succeed: events that the relay gave up, terminated messages, payloads of dead letters."""
    parts = Parts()
    answers = parts.answers
    given_up.advisories(rb, parts)
    given_up.fetch(rb, parts, "terminated")
    with rb.snapshot() as db:
        answers["outbox_failed"] = db.ask("dead_letters/outbox_failed", fields=list(given_up.FIELDS))
        given_up.follow_up(db, answers)
        given_up.letters_and_sends(db, answers)
        given_up.optional(db, answers, {"dead_letters/given_up": {}, "dead_letters/older": {}})
        if not rb.past:
            answers["errors"] = db.ask("outbox/errors")
    return parts.frames()


def judge_permanent(frames: Frames, given: Given) -> Finding:
    """4.4.1: which kinds of permanent failure, from which producer?"""
    if "outbox_failed" not in frames:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="dead_letters/outbox_failed"))
    kinds = permanent_kinds(frames, given)
    certain = kinds[~kinds["kind"].isin(_UNSURE)]
    n, unsure = float(kinds["n"].sum()), float(kinds["n"].sum() - certain["n"].sum())
    ago = given_up.age(kinds["last"].max(), given) if len(kinds) else None
    missing = given_up.unanswered(frames, "terminated", "messages")
    blind = bool(missing) or not {"letters", "given_up"} <= frames.keys()
    return judged(
        say(
            "letters.permanent" if n else "letters.no_permanent",
            n=n,
            minutes=given.window_minutes,
            ago=ago,
            kinds=_listed(kinds),
        ),
        [
            Value("dlq.permanent", n, "rows"),
            Value("dlq.kind_unknown", unsure, "rows"),
            *((given.limits.value("dlq.quiet", ago),) if n else ()),
        ],
        at_least=worst([Status.WARNING if n else Status.OK, Status.UNKNOWN if blind else Status.OK]),
        reason=missing[0].reason if missing else Reason.DENIED,
        notes=(
            *((say("letters.unsure"),) if unsure else ()),
            *((say("letters.masked"),) if n else ()),
            *given_up.reading_notes(frames, "letters", "given_up"),
        ),
        signals=tuple(_permanent_signals(kinds, frames, given)),
        hops=(Hop("producer", alive=_producers(certain)),) if len(certain) else (),
        proposals=tuple(
            remedies.fix_producer(given, str(store), _producers(rows), float(rows["n"].sum()))
            for store, rows in certain.groupby("store", sort=False)
        ),
        frames={"kinds": kinds},
        show=("kinds",),
    )


def permanent_kinds(frames: Frames, given: Given) -> pd.DataFrame:
    """The permanent failures of the window by kind and origin, most frequent first."""
    rows = [*_outbox_kinds(frames), *_message_kinds(frames, given), *_letter_kinds(frames)]
    if not rows:
        return pd.DataFrame(columns=_KINDS)
    by = _KINDS[:5]
    return (
        pd.DataFrame(rows, columns=[*by, "n", "at", "example"])
        .groupby(by, dropna=False, sort=False)
        .agg(n=("n", "sum"), first=("at", "min"), last=("at", "max"), example=("example", "last"))
        .reset_index()
        .sort_values(["n", "last"], ascending=False, ignore_index=True)
    )


def outbox_kind(error: object, fields: str) -> str | None:
    """Why an event was given up for good; None where something else was down, "unknown" where nothing tells.

    >>> outbox_kind("outbox payload parse failure", ""), outbox_kind("text", "occurred_at absent")
    ('parse_failure', 'missing_field')
    >>> outbox_kind("Connection is Closed", "") is None
    True
    """
    words = str(error or "").strip().lower()
    kind = publish.kind_of(words)
    if kind == "payload":
        return "parse_failure" if "parse failure" in words else "unknown_type"
    if kind != "other":
        return None
    if fields:
        return "missing_field" if re.search(r" (?:absent|empty|null)\b", fields) else "malformed_field"
    # What the publisher says to a null, and what an exception without a message becomes.
    return "missing_field" if words in ("text", "unknown error") else "unknown"


def _outbox_kinds(frames: Frames) -> Iterable[tuple[Any, ...]]:
    failed = table(frames, "outbox_failed", "last_error", "event_type", "source", "shape", "failed_at", "event_id")
    weight = errors.weight_of(failed)
    for r in given_up.rows(failed):
        fields = given_up.lacks(r["shape"])
        kind = outbox_kind(r["last_error"], fields)
        if kind is not None:
            yield "outbox", kind, r["event_type"], r["source"], fields, weight, r["failed_at"], r["event_id"]
    # What is still tried and can not pass either; a claim wipes the error for as long as it lasts.
    for r in given_up.whole(frames, "errors", "status", "last_error", "n", "newest"):
        kind = outbox_kind(r["last_error"], "")
        if r["status"] == "PENDING" and kind not in (None, "unknown"):
            yield "outbox", kind, None, None, "still being tried", float(r["n"]), r["newest"], None


def _message_kinds(frames: Frames, given: Given) -> Iterable[tuple[Any, ...]]:
    """What the broker no longer delivers, by what is wrong with the message itself."""
    messages = {int(r["stream_seq"]): r for r in given_up.whole(frames, "messages", "stream_seq", "problem")}
    processed = set(given_up.column(frames, "processed", "event_id"))
    terminated = given_up.window(frames, "terminated", given)
    oldest_fetched = min(messages, default=None)
    for r in given_up.rows(terminated):
        seq = int(r["stream_seq"])
        message = messages.get(seq)
        example = f"stream_seq {seq}"
        if message is None:
            looked = "messages" in frames and (oldest_fetched is None or seq >= oldest_fetched)
            yield "broker", "gone" if looked else "not_fetched", None, None, "", 1.0, r["time"], example
        elif message["event_id"] not in processed:
            source = message["source"] if message["by_relay"] else "not the relay"
            kind, event_type, fields = message["problem"], message["event_type"], message["fields"]
            yield "broker", kind, event_type, source, fields, 1.0, r["time"], example
    # Rows of the table that neither kind of advisory explains.
    known = {int(s) for name in ("terminated", "exhausted") for s in given_up.column(frames, name, "stream_seq")}
    for r in given_up.whole(frames, "given_up", "stream_seq", "created_at"):
        if int(r["stream_seq"]) not in known:
            seq = int(r["stream_seq"])
            yield "broker", "unknown", None, None, "", 1.0, r["created_at"], f"stream_seq {seq}"


def _letter_kinds(frames: Frames) -> Iterable[tuple[Any, ...]]:
    """Dead letters that would fail again, by their error's kind or by what their payload lacks."""
    letters = given_up.letters(frames)
    kinds = {c.error: c.kind for c in given_up.clusters(frames)}
    weight = errors.weight_of(letters)
    for r in given_up.rows(letters):
        fields, kind = given_up.lacks(r["shape"]), kinds.get(errors.fingerprint(r["error_message"]))
        if kind == "data" or (fields and kind != "dependency"):
            name = "missing_field" if fields else "refused"
            yield "delivery", name, r["event_type"], r["source"], fields, weight, r["created_at"], r["event_id"]


def _listed(kinds: pd.DataFrame) -> Text:
    """The two most frequent kinds as words, and how many more there are."""
    counted = kinds.groupby(["store", "kind"], sort=False)["n"].sum().reset_index()
    words = [
        say("letters.kind", n=r["n"], what=say(f"letters.kinds.{r['kind']}"), store=say(f"letters.stores.{r['store']}"))
        for r in given_up.rows(counted)
    ]
    match words:
        case []:
            return say("letters.nothing")
        case [only]:
            return only
        case [first, second]:
            return say("letters.two", a=first, b=second)
        case _:
            return say("letters.more", a=words[0], b=words[1], n=len(words) - 2)


def _producers(kinds: pd.DataFrame) -> str:
    """Where the failures come from: event type, source and fields of the most frequent kinds."""
    named = []
    for r in given_up.rows(kinds.head(3)):
        source = f"({r['source']})" if r["source"] else None
        named.append(" ".join(str(x) for x in (r["event_type"], source, r["fields"]) if x))
    return "; ".join(dict.fromkeys(n for n in named if n))


def _permanent_signals(kinds: pd.DataFrame, frames: Frames, given: Given) -> Iterable[Signal]:
    # A few among many that an outage has left lately do not explain those.
    since = given.as_of - pd.Timedelta(seconds=RECENT_S)
    unpublished = _exhausted_outbox(frames)
    weight = errors.weight_of(table(frames, "outbox_failed", "total"))
    others = {
        "outbox": weight * (unpublished["failed_at"] > since).sum(),
        "broker": (given_up.window(frames, "exhausted", given)["time"] > since).sum(),
        "delivery": sum(c.n for c in given_up.clusters(frames) if c.kind != "data" and c.last > since),
    }
    for store, rows in kinds.groupby("store", sort=False):
        certain = rows[~rows["kind"].isin(_UNSURE)]
        sure = len(certain) > 0
        seen = certain if sure else rows
        share = 1.0 if seen["n"].sum() >= others[str(store)] else 0.4
        near = given_up.since_last(seen["last"].max(), given) < RECENT_S
        place = share * (0.7 if sure and near else 0.4)
        if store == "outbox":
            yield from (Signal("FM-OB-02", share * (0.85 if sure else 0.5)), Signal("producer", place))
        elif store == "broker":
            yield from (
                Signal("FM-NATS-02", share * (0.85 if sure else 0.3)),
                Signal("producer" if sure else "subscriber", place),
            )
        else:
            # What the receiver takes from everybody else fails for what is in it.
            yield from (Signal("FM-NOTI-04", share * 0.8), Signal("producer", place))


# 4.4.2 ------------------------------------------------------------------------------------------------------


def collect_transient(rb: Context) -> Frames:
    """Errors of what was given up, what is being retried now, and deliveries of the broker that ran out."""
    parts = Parts()
    answers = parts.answers
    given_up.advisories(rb, parts)
    given_up.fetch(rb, parts, "exhausted")
    with rb.snapshot() as db:
        answers["outbox_failed"] = db.ask("dead_letters/outbox_failed", fields=list(given_up.FIELDS))
        given_up.follow_up(db, answers)
        given_up.letters_and_sends(db, answers)
        given_up.optional(db, answers, {"dead_letters/older": {}})
        if rb.past:
            return parts.frames()
        answers |= delivery.look(db)
        answers |= {name: db.ask(f"dead_letters/{name}") for name in ("attempts_ended", "retry_load", "retrying")}
        answers["tries"] = db.ask("recovery/failed_tries", tried_since=rb.as_of - pd.Timedelta(seconds=TRIES_S))
        answers["errors"] = db.ask("outbox/errors")
        answers["outbox"] = db.ask("outbox/backlog")
    answers |= delivery.second_look(rb, answers)
    return parts.frames()


@dataclass(frozen=True)
class Transient:
    """What was given up, or fails now, because something else was down.

    `counts` and `ages` (seconds since the last, infinite for none) are by store; `live` is what fails at this
    moment, "delivery" or "publish", with how sure that is.
    """

    clusters: list[errors.Cluster]
    lost: pd.DataFrame
    unpublished: pd.DataFrame
    live: dict[str, float]
    counts: dict[str, float]
    ages: dict[str, float]
    past: bool

    @classmethod
    def of(cls, frames: Frames, given: Given) -> Transient:
        """Read the frames of `collect_transient`."""
        clusters = [c for c in given_up.clusters(frames) if c.kind != "data"]
        lost, unpublished = _exhausted(frames, given), _exhausted_outbox(frames)
        weight = errors.weight_of(table(frames, "outbox_failed", "total"))
        return cls(
            clusters=clusters,
            lost=lost,
            unpublished=unpublished,
            live=_live(frames, given),
            counts={
                "delivery": sum(c.n for c in clusters),
                "broker": float(len(lost)),
                "outbox": len(unpublished) * weight,
            },
            ages={
                "delivery": given_up.since_last(max((c.last for c in clusters), default=None), given),
                "broker": given_up.since_last(lost["time"].max() if len(lost) else None, given),
                "outbox": given_up.since_last(unpublished["failed_at"].max() if len(unpublished) else None, given),
            },
            past="backlog" not in frames,
        )

    @property
    def total(self) -> float:
        """All that was given up."""
        return sum(self.counts.values())

    @property
    def last_s(self) -> float | None:
        """Seconds since the last of them."""
        return min(self.ages.values()) if self.total else None

    def goes_on(self, given: Given) -> bool:
        """Whether it is not over yet."""
        return bool(self.live) or (self.last_s is not None and self.last_s < given_up.quiet_s(given))

    def over(self, given: Given) -> list[str]:
        """The stores in which something lies, and nothing fails any more."""
        failing = {"delivery": "delivery" in self.live, "outbox": "publish" in self.live}
        quiet = given_up.quiet_s(given)
        return [s for s, n in self.counts.items() if n and not failing.get(s) and self.ages[s] >= quiet]


def judge_transient(frames: Frames, given: Given) -> Finding:
    """4.4.2: which dependency, since when, still going on?"""
    if "outbox_failed" not in frames:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="dead_letters/outbox_failed"))
    seen, limits = Transient.of(frames, given), given.limits
    load = _load(frames, given)
    now = [
        limits.value("backlog.waiting_retry", amount(one(frames.get("backlog")), "waiting_retry")),
        Value("outbox.waiting_retry", amount(one(frames.get("outbox")), "waiting_retry"), "rows"),
        Value("retries.next_minute", load["next_minute"], "rows"),
        Value("retries.peak", load["peak"], "1/min"),
    ]
    missing = given_up.unanswered(frames, "exhausted")
    blind = bool(missing) or seen.past or "letters" not in frames
    throttle = "delivery" in seen.live
    over = [] if seen.past else seen.over(given)
    return judged(
        _transient_headline(seen, frames, given),
        [
            Value("dlq.transient", seen.total, "rows"),
            *(Value(f"dlq.{store}", n, "rows") for store, n in seen.counts.items()),
            *((limits.value("dlq.quiet", seen.last_s),) if seen.total else ()),
            *(() if seen.past else now),
        ],
        at_least=worst(
            [Status.WARNING if seen.total or seen.live else Status.OK, Status.UNKNOWN if blind else Status.OK]
        ),
        reason=missing[0].reason if missing else Reason.NO_DATA if seen.past else Reason.DENIED,
        notes=(*_transient_notes(seen, frames, given, load), *given_up.reading_notes(frames, "letters")),
        signals=tuple(_transient_signals(seen, frames, given)),
        hops=() if seen.past else _transient_hops(seen, frames),
        proposals=(
            *((_throttle(given),) if throttle else ()),
            *((proposals.logs(given, "entitlement"),) if "publish" in seen.live else ()),
            *((proposals.logs(given, "notification"),) if seen.counts["broker"] and not over else ()),
            *(
                remedies.redrive(s, given.target, given.incident, int(min(seen.counts[s], PORTION)), seen.counts[s])
                for s in over
            ),
        ),
        next_sections=(*(("5.2",) if throttle else ()), *(("4.1",) if "publish" in seen.live else ())),
        frames={"clusters": _cluster_frame(given_up.clusters(frames)), "unpublished": _by_error(seen.unpublished)},
        show=("clusters", "unpublished"),
    )


def _throttle(given: Given) -> Proposal:
    return remedies.throttle(given, "delivery")


def _exhausted(frames: Frames, given: Given) -> pd.DataFrame:
    """Advisories of the window about messages that ran out of deliveries and were not processed since."""
    fetched = table(frames, "messages", "stream_seq", "event_id")
    processed = set(given_up.column(frames, "processed", "event_id"))
    done = set(fetched[fetched["event_id"].isin(processed)]["stream_seq"])
    found = given_up.window(frames, "exhausted", given)
    return found[~found["stream_seq"].isin(done)]


def _exhausted_outbox(frames: Frames) -> pd.DataFrame:
    """FAILED events that something else than their content held up."""
    failed = table(frames, "outbox_failed", "last_error", "shape", "failed_at")
    held_up = [outbox_kind(r["last_error"], given_up.lacks(r["shape"])) is None for r in given_up.rows(failed)]
    return failed[np.array(held_up, dtype=bool)]


def _by_error(unpublished: pd.DataFrame) -> pd.DataFrame:
    columns = ["error", "kind", "n", "first", "last"]
    if unpublished.empty:
        return pd.DataFrame(columns=columns)
    weight = errors.weight_of(unpublished)
    grouped = unpublished.groupby(unpublished["last_error"].map(errors.fingerprint), sort=False)["failed_at"]
    rows = [(error, publish.kind_of(error), len(at) * weight, at.min(), at.max()) for error, at in grouped]
    return pd.DataFrame(rows, columns=columns).sort_values("n", ascending=False, ignore_index=True)


def _cluster_frame(found: list[errors.Cluster]) -> pd.DataFrame:
    columns = ["error", "kind", "shape", "n", "first", "last", "users", "top_user", "types", "top_type"]
    return pd.DataFrame([[getattr(c, name) for name in columns] for c in found], columns=columns).head(50)


def _live(frames: Frames, given: Given) -> dict[str, float]:
    live: dict[str, float] = {}
    if "backlog" not in frames:
        return live
    refused = delivery.delivery(frames).refused(given)
    if refused >= 0.6:
        live["delivery"] = refused
    backlog = one(frames.get("outbox"))
    published = seconds_between(backlog.get("last_published"), backlog.get("now"))
    if _tries(frames, "publish") >= delivery.TRIED and (published is None or published >= publish.PUBLISHES_S):
        live["publish"] = 0.7
    return live


def _tries(frames: Frames, part: str) -> float:
    """Tries of "delivery" or "publish" that certainly failed in the last seconds."""
    tries = table(frames, "tries", "part", "failed")
    return float(pd.to_numeric(tries[tries["part"] == part]["failed"], errors="coerce").fillna(0).sum())


def _sends(frames: Frames) -> bool:
    """Whether a send has succeeded so lately that the receiver accepts."""
    activity = one(frames.get("activity"))
    since = seconds_between(activity.get("last_sent"), activity.get("now"))
    return since is not None and since < delivery.SENDS_S


def _in_part(frames: Frames) -> bool:
    """Whether most sends succeed while some fail: what fails is then special, and not the receiver."""
    sent = amount(one(frames.get("activity")), "sent_1m") * TRIES_S / 60
    return _sends(frames) and sent > _tries(frames, "delivery")


def _publish_kind(frames: Frames) -> str:
    waiting = table(frames, "errors", "status", "last_error", "n")
    waiting = waiting[(waiting["status"] == "PENDING") & waiting["last_error"].notna()]
    if waiting.empty:
        return "other"
    kinds = waiting["n"].astype(float).groupby([publish.kind_of(e) for e in waiting["last_error"]]).sum()
    return str(kinds.idxmax())


def _load(frames: Frames, given: Given) -> dict[str, float | None]:
    """Retries that are due within a minute, the busiest ten seconds of them, and what the worker can take."""
    load = table(frames, "retry_load", "what", "tens_ahead", "n")
    load = load[load["what"] == "delivery"]
    n = pd.to_numeric(load["n"], errors="coerce").fillna(0)
    soon = pd.to_numeric(load["tens_ahead"], errors="coerce") < 6
    most = 60 * facts_of(given).batch_size / facts_of(given).poll_interval_s
    return {
        "next_minute": float(n[soon].sum()) if "retry_load" in frames else None,
        "peak": float(n.max() * 6) if len(n) else 0.0 if "retry_load" in frames else None,
        "most": most,
        # The proposal halves the batch and doubles the pause.
        "throttled": 60 * max(facts_of(given).batch_size // 2, 1) / (2 * facts_of(given).poll_interval_s),
    }


def _transient_headline(seen: Transient, frames: Frames, given: Given) -> Text:
    top = seen.clusters[0] if seen.clusters else None
    facts: dict[str, Any] = {
        "ago": seen.last_s,
        "minutes": given.window_minutes,
        "error": top.error if top else None,
        "users": top.users if top else None,
        "since": f"{top.first:%H:%M:%S}" if top else None,
        **seen.counts,
    }
    if seen.total:
        end = "going_on" if seen.goes_on(given) else "over"
        kind = top.kind if top and seen.counts["delivery"] >= seen.total / 2 else "stores"
        return say(f"letters.{kind}_{end}", **facts)
    facts["waiting"] = amount(one(frames.get("backlog")), "waiting_retry")
    if seen.live:
        events = amount(one(frames.get("outbox")), "waiting_retry")
        return say(
            "letters.failing_yet", what=say("letters.live_" + "_".join(sorted(seen.live))), events=events, **facts
        )
    if given.limits["backlog.waiting_retry"].status(facts["waiting"]) is not Status.OK:
        return say("letters.draining", **facts)
    return say("letters.only_data" if given_up.clusters(frames) else "letters.no_transient", **facts)


def _transient_notes(seen: Transient, frames: Frames, given: Given, load: dict[str, float | None]) -> Iterable[Text]:
    if seen.past:
        yield say("letters.present_only")
    elif load["next_minute"]:
        yield say("letters.load", **load)
    if "delivery" in seen.live:
        yield say("letters.backoff")
    retrying = one(frames.get("retrying"))
    if (n := amount(retrying, "n")) >= delivery.TRIED:
        share = 100 * amount(retrying, "top_user_n") / n
        yield say("letters.retrying", n=n, users=amount(retrying, "users"), share=share)
    if data := sum(c.n for c in given_up.clusters(frames) if c.kind == "data"):
        yield say("letters.data_elsewhere", n=data)
    if any(c.kind == "unclear" for c in seen.clusters):
        yield say("letters.unclear")
    if not seen.past:
        over = seen.over(given)
        if set(over) < {s for s, n in seen.counts.items() if n}:
            yield say("letters.redrive_waits", quiet=given_up.quiet_s(given))
        if over:
            yield say("letters.redrive_rules")


def _transient_signals(seen: Transient, frames: Frames, given: Given) -> Iterable[Signal]:
    quiet, refused = given_up.quiet_s(given), seen.live.get("delivery", 0.0)
    if refused and _in_part(frames):
        yield from (Signal("receiver", 0.5), Signal("FM-NOTI-04", 0.7), Signal("FM-NOTI-03", 0.3))
    elif refused:
        yield from (Signal("receiver", refused), Signal("FM-NOTI-03", refused), Signal("FM-NOTI-04", 0.3))
    elif _sends(frames) and not seen.clusters:
        yield from (Signal("receiver", -0.4), Signal("FM-NOTI-03", -0.5))
    for kind in dict.fromkeys(c.kind for c in seen.clusters):
        ago = min(given_up.since_last(c.last, given) for c in seen.clusters if c.kind == kind)
        if kind == "dependency":
            yield from (Signal("FM-NOTI-03", 0.8 if ago < RECENT_S else 0.6), Signal("FM-NOTI-04", 0.4))
        else:
            yield Signal("FM-NOTI-04", 0.6)
        if ago < quiet:  # over, it no longer holds anything up
            yield Signal("receiver", 0.7 if kind == "dependency" else 0.5)
    if seen.counts["broker"]:
        yield from (Signal("subscriber", 0.6 if seen.ages["broker"] < RECENT_S else 0.3), Signal("FM-NATS-03", 0.3))
    if "publish" in seen.live:
        cause = _publish_kind(frames)
        if cause == "no_stream":
            yield from (Signal("jetstream", 0.7), Signal("FM-NATS-04", 0.7))
        elif cause in ("timeout", "closed"):
            yield from (Signal("relay", 0.7), Signal("FM-NATS-05", 0.7))
    if "publish" in seen.live or seen.counts["outbox"]:
        yield Signal("FM-OB-01", 0.5)


def _transient_hops(seen: Transient, frames: Frames) -> tuple[Hop, ...]:
    backlog, activity, outbox = (one(frames.get(n)) for n in ("backlog", "activity", "outbox"))
    return (
        Hop(
            "relay",
            rate_out=amount(outbox, "published_1m"),
            waiting=amount(outbox, "due") + amount(outbox, "expired"),
            alive=say("alive.publish_fails") if "publish" in seen.live else None,
        ),
        Hop(
            "receiver",
            rate_out=amount(activity, "sent_1m"),
            waiting=amount(backlog, "waiting_retry"),
            alive=say("alive.refuses") if "delivery" in seen.live else None,
        ),
    )


def draw_attempts(frames: Frames, given: Given) -> charts.Chart | None:
    """How often what is open, and what was given up, has been tried."""
    active = table(frames, "attempts", "attempt_count", "n")
    ended = table(frames, "attempts_ended", "what", "attempt_count", "n")
    kinds = ("notifications, FAILED", "outbox, unpublished", "outbox, FAILED")
    series = {"notifications, open": active} | {kind: ended[ended["what"] == kind] for kind in kinds}
    tried: dict[str, dict[int, float]] = {name: {} for name in series}
    for name, frame in series.items():
        for r in given_up.rows(frame[["attempt_count", "n"]].dropna()):
            # Whatever is beyond the scale stands in its last column.
            tries = min(int(r["attempt_count"]), MOST_TRIES)
            if tries > 0:
                tried[name][tries] = tried[name].get(tries, 0.0) + float(r["n"])
    if not any(tried.values()):
        return None
    most = max(10, *(a for counted in tried.values() for a in counted))
    figure, ax = charts.axes("Tries so far", "rows", "failed tries (a tenth is the last by default)")
    width, at = 0.2, np.arange(1, most + 1)
    looks = zip(series, (charts.BLUE, charts.RED, charts.GREY, charts.ORANGE), ("", "xx", "..", "//"), strict=True)
    for i, (name, colour, hatch) in enumerate(looks):
        heights = [tried.get(name, {}).get(int(a), 0.0) for a in at]
        ax.bar(at + (i - 1.5) * width, heights, width, color=colour, hatch=hatch, edgecolor="white", label=name)
    ax.set_xticks(at, [f"{a}+" if a == MOST_TRIES else str(a) for a in at])
    charts.legend(figure)
    return charts.Chart(
        figure,
        say(
            "letters.alt_attempts",
            open=sum(n for a, n in tried.get("notifications, open", {}).items()),
            failed=sum(tried.get("notifications, FAILED", {}).values()),
            outbox=sum(tried.get("outbox, FAILED", {}).values()),
        ),
        (say("letters.caption_attempts"),),
    )


# 4.4.3 ------------------------------------------------------------------------------------------------------

#: What must agree with the dead letters: the notifications' state, and the events that were published.
AGREE = {
    "letters": Check("5.3.4", consistency.collect_dead_letters, consistency.judge_dead_letters),
    "lost": Check("5.3.2", lambda rb: consistency.collect_lost(rb, day=False), consistency.judge_lost),
}
Counts = np.ndarray[Any, np.dtype[np.float64]]
STORES = ("outbox", "delivery", "broker", "advisories")


def _bucket_s(window_minutes: int) -> float:
    return max(SHORTEST_BUCKET_S, window_minutes * 60 / BUCKETS)


def collect_trend(rb: Context) -> Frames:
    """New rows of all four stores over the window, and what they disagree about."""
    parts = Parts()
    given_up.advisories(rb, parts)
    with rb.snapshot() as db:
        given_up.follow_up(db, parts.answers)
        bucket_s = _bucket_s(rb.parameters.window_minutes)
        given_up.optional(
            db, parts.answers, {"dead_letters/per_bucket": {"bucket_s": bucket_s}, "dead_letters/older": {}}
        )
    agree, own = collect_each(rb, AGREE), parts.frames()
    return own | agree | {FAILED: pd.concat([own[FAILED], agree[FAILED]], ignore_index=True)}


def judge_trend(frames: Frames, given: Given) -> Finding:
    """4.4.3: a burst that is over, or a steady increase?"""
    if "per_bucket" not in frames:
        return unknown("", Reason.NO_DATA, say("unknown.no_data", detail="dead_letters/per_bucket"))
    unrecorded = _unrecorded(frames, given)
    counted = series(frames, given)
    new = _events(counted, unrecorded, given)
    total, trend = float(new.sum()), stats.trend_kind(new)
    bucket_s = _bucket_s(given.window_minutes)
    newest = min(max(round(GROWTH_S / bucket_s), 1), len(new))
    growth = float(new[-newest:].sum()) / (newest * bucket_s / 60)
    ago = given_up.age(_last(frames, given), given)
    found = judge_each(frames, given, AGREE)
    bad = {name: f for name, f in found.items() if f.status is not Status.OK and f.counts}
    apart, lost = found["letters"].value("integrity.rows"), found["lost"].value("integrity.lost")
    missing = given_up.unanswered(frames, "terminated", "exhausted")
    key = _shape_of(trend, new, growth, total)
    began = trend.onset if trend.onset is not None else int(np.argmax(new > 0))
    facts = {
        "n": total,
        "minutes": given.window_minutes,
        "growth": growth,
        "ago": ago,
        "onset": f"{_edges(given)[began]:%H:%M}",
    }
    headline = say(f"letters.trend_{key}", **facts)
    if len(unrecorded):
        headline = say("letters.unrecorded", n=len(unrecorded), trend=headline)
    elif lost:
        headline = say("letters.lost", n=lost, trend=headline)
    elif apart:
        headline = say("letters.apart", n=apart, trend=headline)
    lag = found["lost"].value("subscriber.lag")
    return judged(
        headline,
        [
            given.limits.value("dlq.growth", growth),
            Value("dlq.new", total, "rows"),
            *(Value(f"dlq.{store}", float(n.sum()), "rows") for store, n in counted.items()),
            Value("dlq.trend", key),
            Value("dlq.since_last", ago, "s"),
            Value("advisories.unrecorded", len(unrecorded), "rows"),
            Value("dead_letters_apart", apart, "rows"),
            Value("published_and_lost", lost, "events"),
        ],
        at_least=worst(
            [
                *(f.status for f in found.values() if f.counts),
                Status.CRITICAL if len(unrecorded) else Status.OK,
                Status.UNKNOWN if missing else Status.OK,
            ]
        ),
        reason=missing[0].reason if missing else next((f.reason for f in bad.values() if f.reason), None),
        notes=(
            *(f.headline for f in bad.values()),
            *_trend_notes(frames, given),
            *given_up.reading_notes(frames),
        ),
        signals=(
            *((Signal("subscriber", 0.7), Signal("FM-NATS-03", 0.85)) if len(unrecorded) else ()),
            *(s for f in bad.values() for s in f.signals),
        ),
        hops=(Hop("subscriber", waiting=float(lag)),) if isinstance(lag, int | float) else (),
        next_sections=("5.3",) if len(unrecorded) or bad else (),
        frames={"unrecorded": unrecorded},
        show=("unrecorded", *(f"{name}.{frame}" for name, f in bad.items() for frame in f.show)),
    )


def series(frames: Frames, given: Given) -> dict[str, Counts]:
    """New rows per stretch of the window in each store, oldest first."""
    counted = {store: _bucketed((), given) for store in STORES}
    n = len(counted["outbox"])
    for r in given_up.whole(frames, "per_bucket", "store", "ago", "n"):
        if r["store"] in counted and 0 <= r["ago"] < n:
            counted[r["store"]][n - 1 - int(r["ago"])] += float(r["n"])
    for name in ("terminated", "exhausted"):
        counted["advisories"] += _bucketed(given_up.window(frames, name, given)["time"], given)
    return counted


def _bucketed(times: Iterable[pd.Timestamp], given: Given) -> Counts:
    """How many of these moments lie in each stretch of the window."""
    bucket_s = _bucket_s(given.window_minutes)
    counted = np.zeros(max(int(given.window_minutes * 60 / bucket_s), 1))
    for time in times:
        ago = int((given_up.age(time, given) or 0) // bucket_s)
        counted[len(counted) - 1 - min(ago, len(counted) - 1)] += 1
    return counted


def _events(counted: dict[str, Counts], unrecorded: pd.DataFrame, given: Given) -> Counts:
    """All stores together: a row of the broker's table and its advisory are one."""
    total: Counts = counted["outbox"] + counted["delivery"] + counted["broker"] + _bucketed(unrecorded["time"], given)
    return total


def _shape_of(trend: stats.Trend, new: Counts, growth: float, total: float) -> str:
    """none, few, burst (over), burst_on, step, steady or stopped."""
    if not total:
        return "none"
    if total < stats.MIN_BUCKETS:
        return "few" if growth else "stopped"
    if not growth:
        return "burst" if trend.kind != "steady" or stats.top_share(new) >= BURST_SHARE else "stopped"
    if trend.kind == "step":
        # Up and still there; or down, which is a steady one that has almost ended.
        return "step" if float(new[trend.onset :].mean()) > float(new[: trend.onset].mean()) else "steady"
    return "burst_on" if trend.kind == "spike" else "steady"


def _edges(given: Given) -> pd.DatetimeIndex:
    """Where the stretches of the window begin, and at last the moment of the run."""
    n = len(_bucketed((), given))
    return pd.date_range(end=given.as_of, periods=n + 1, freq=pd.Timedelta(seconds=_bucket_s(given.window_minutes)))


def _trend_notes(frames: Frames, given: Given) -> Iterable[Text]:
    dated = table(frames, "per_bucket", "store", "exact")
    if not dated[dated["store"] == "outbox"]["exact"].astype(bool).all():
        yield say("letters.estimated_times")
    read = {n: table(frames, n, "time") for n in ("terminated", "exhausted")}
    if any(f.attrs.get("capped") and len(given_up.window(frames, n, given)) == len(f) for n, f in read.items()):
        yield say("letters.advisories_capped", n=given_up.ADVISORIES)


def _last(frames: Frames, given: Given) -> pd.Timestamp | None:
    seen = [pd.to_datetime(table(frames, "per_bucket", "last")["last"], utc=True).max()]
    seen += [
        pd.to_datetime(given_up.window(frames, n, given)["time"], utc=True).max() for n in ("terminated", "exhausted")
    ]
    known = [s for s in seen if s == s]  # NaT equals nothing
    return max(known) if known else None


def _unrecorded(frames: Frames, given: Given) -> pd.DataFrame:
    """Advisories of the window that never reached the table: what they are about is lost without a trace."""
    columns = ["stream_seq", "advisory", "time"]
    if "recorded" not in frames:
        return pd.DataFrame(columns=columns)
    since = {
        int(r["stream_seq"]): r["created_at"] for r in given_up.whole(frames, "recorded", "stream_seq", "created_at")
    }
    rows = []
    for name in ("terminated", "exhausted"):
        for r in given_up.rows(given_up.window(frames, name, given)):
            at, written = pd.Timestamp(r["time"]), since.get(int(r["stream_seq"]))
            fresh = written is not None and written >= at - pd.Timedelta(seconds=given_up.CLOCKS_S)
            if not fresh and (given.as_of - at).total_seconds() > GRACE_S:
                rows.append((int(r["stream_seq"]), name, at))
    return pd.DataFrame(rows, columns=columns).drop_duplicates("stream_seq").reset_index(drop=True)


def draw_trend(frames: Frames, given: Given) -> charts.Chart | None:
    """New dead letters of each store over the window, and where the rate changed."""
    if "per_bucket" not in frames:
        return None
    counted = series(frames, given)
    new = _events(counted, _unrecorded(frames, given), given)
    if not new.any():
        return None
    edges, per_min = _edges(given), _bucket_s(given.window_minutes) / 60
    at = [float(x) for x in matplotlib.dates.date2num(edges)]
    trend = stats.trend_kind(new)
    looks = {
        "outbox": (charts.ORANGE, "outbox FAILED"),
        "delivery": (charts.RED, "notification_dlq"),
        "broker": (charts.BLUE, "notification_nats_dlq"),
        "advisories": (charts.GREY, "advisories of the broker"),
    }
    figure, stacked = charts.panels("New dead letters", [name for _, name in looks.values()], "1 / min", "time (UTC)")
    for ax, (store, (colour, _)) in zip(stacked, looks.items(), strict=True):
        # Each its own scale: a single event must not vanish beside a burst of another store.
        ax.stairs(counted[store] / per_min, at, color=colour, fill=True)
        ax.set_ylim(0, 1.2 * max(float(counted[store].max()) / per_min, 1.0))
        if trend.onset is not None:
            ax.axvline(at[trend.onset], color="black", linewidth=1, linestyle="-.", label="onset")
    stacked[0].set_xlim(at[0], at[-1])
    stacked[-1].xaxis_date()
    charts.clock_ticks(stacked[-1])
    if trend.onset is not None:
        figure.legend(*stacked[0].get_legend_handles_labels(), loc="outside lower left", fontsize=8, frameon=False)
    peak = int(new.argmax())
    return charts.Chart(
        figure,
        say(
            "letters.alt_trend",
            minutes=given.window_minutes,
            n=float(new.sum()),
            peak=float(new[peak]) / per_min,
            at=f"{edges[peak]:%H:%M}",
            onset=f"{edges[trend.onset]:%H:%M}" if trend.onset is not None else None,
        ),
        (say("letters.caption_trend"), *_trend_notes(frames, given)),
    )


CHECKS: tuple[Check, ...] = (
    Check("4.4.1", collect_permanent, judge_permanent),
    Check("4.4.2", collect_transient, judge_transient, (draw_attempts,)),
    Check("4.4.3", collect_trend, judge_trend, (draw_trend,)),
)
