"""Section 4.4: what was given up: for good or for a while, by whose fault, and does it still grow?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import matplotlib.dates
import numpy as np
import pandas as pd

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.analysis import stats
from runbook_lib.checks.check import FAILED, Check
from runbook_lib.checks.parts import Parts, collect_each, judge_each, no_data, seconds_between
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
    replace,
    say,
    worst,
)
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import consistency, delivery, errors, given_up, publish
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Attempts, Outbox, Tries
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: Observations of a receiver that refuses at this moment, and not only before the worker stopped.
REFUSES = ("delivery.refused", "delivery.times_out", "delivery.refused_in_part", "delivery.refused_some")
_KINDS = ["store", "kind", "event_type", "source", "fields", "n", "first", "last", "example"]
#: Kinds that only tell that more must be looked at.
_UNSURE = ("unknown", "decodes", "gone", "not_fetched")
#: What a store's permanent failures speak for: those of now, earlier ones, and those that nothing is sure about.
_PERMANENT = {
    "outbox": ("dead_letters.bad_event_now", "dead_letters.bad_event", "dead_letters.bad_event_perhaps"),
    "broker": ("dead_letters.bad_message_now", "dead_letters.bad_message", "dead_letters.bad_message_perhaps"),
    "delivery": ("dead_letters.bad_letter_now", "dead_letters.bad_letter", "dead_letters.bad_letter"),
}


@dataclass(frozen=True)
class OutboxError:
    """Events that were not published, by the relay's error."""

    QUESTION: ClassVar[str] = "outbox/errors"
    status: str = ""
    last_error: str | None = None
    n: float = 0.0
    newest: pd.Timestamp | None = None


# 4.4.1 ------------------------------------------------------------------------------------------------------


def collect_permanent(rb: Context) -> Frames:
    """What can never succeed: events that the relay gave up, terminated messages, payloads of dead letters.

    Frames: outbox_failed, letters, sent_per_minute, given_up, older, errors, and those of `given_up.advisories`,
    `fetch` and `follow_up`.
    """
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
        return no_data("dead_letters/outbox_failed")
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
            remedies.fix_producer(given, str(store), _producers(found), float(found["n"].sum()))
            for store, found in certain.groupby("store", sort=False)
        ),
        frames={"kinds": kinds},
        show=("kinds",),
    )


def permanent_kinds(frames: Frames, given: Given) -> pd.DataFrame:
    """The permanent failures of the window by kind and origin, most frequent first."""
    found = [*_outbox_kinds(frames), *_message_kinds(frames, given), *_letter_kinds(frames, given)]
    if not found:
        return pd.DataFrame(columns=_KINDS)
    by = _KINDS[: _KINDS.index("n")]
    return (
        pd.DataFrame(found, columns=[*by, "n", "at", "example"])
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
    weight = errors.weight_of(table(frames, "outbox_failed", "total"))
    for r in rows.each(frames.get("outbox_failed"), given_up.Failed):
        fields = given_up.lacks(r.shape)
        kind = outbox_kind(r.last_error, fields)
        if kind is not None:
            yield "outbox", kind, r.event_type, r.source, fields, weight, r.failed_at, r.event_id
    # What is still tried and can not pass either; a claim wipes the error for as long as it lasts.
    for e in rows.each(frames.get("errors"), OutboxError):
        kind = outbox_kind(e.last_error, "")
        if e.last_error and e.status == "PENDING" and kind not in (None, "unknown"):
            yield "outbox", kind, None, None, "still being tried", e.n, e.newest, None


def _message_kinds(frames: Frames, given: Given) -> Iterable[tuple[Any, ...]]:
    """What the broker no longer delivers, by what is wrong with the message itself."""
    fetched = rows.each(frames.get("messages"), given_up.Fetched)
    messages = {m.stream_seq: m for m in fetched if m.stream_seq is not None and m.problem}
    processed = set(given_up.column(frames, "processed", "event_id"))
    oldest_fetched = min(messages, default=None)
    for advisory in rows.each(given_up.window(frames, "terminated", given), given_up.Advisory):
        seq = advisory.stream_seq or 0
        message = messages.get(seq)
        if message is None:
            looked = "messages" in frames and (oldest_fetched is None or seq >= oldest_fetched)
            kind = "gone" if looked else "not_fetched"
            yield "broker", kind, None, None, "", 1.0, advisory.time, f"stream_seq {seq}"
        elif message.event_id not in processed:
            source = message.source if message.by_relay else "not the relay"
            origin = (message.problem, message.event_type, source, message.fields)
            yield "broker", *origin, 1.0, advisory.time, f"stream_seq {seq}"
    # Rows of the table that neither kind of advisory explains.
    known = {int(s) for name in ("terminated", "exhausted") for s in given_up.column(frames, name, "stream_seq")}
    for r in rows.each(frames.get("given_up"), given_up.Recorded):
        if r.stream_seq is not None and r.stream_seq not in known:
            yield "broker", "unknown", None, None, "", 1.0, r.created_at, f"stream_seq {r.stream_seq}"


def _letter_kinds(frames: Frames, given: Given) -> Iterable[tuple[Any, ...]]:
    """Dead letters that would fail again, by their error's kind or by what their payload lacks."""
    letters = given_up.letters(frames)
    kinds = {c.error: c.kind for c in given_up.clusters(frames, given)}
    weight = errors.weight_of(letters)
    for r in rows.each(letters, given_up.Letter):
        fields, kind = given_up.lacks(r.shape), kinds.get(errors.fingerprint(r.error_message))
        if kind == "data" or (fields and kind != "dependency"):
            name = "missing_field" if fields else "refused"
            yield "delivery", name, r.event_type, r.source, fields, weight, r.created_at, r.event_id


def _listed(kinds: pd.DataFrame) -> Text:
    """The two most frequent kinds as words, and how many more there are."""
    counted = kinds.groupby(["store", "kind"], sort=False)["n"].sum().reset_index()
    words = [
        say("letters.kind", n=n, what=say(f"letters.kinds.{kind}"), store=say(f"letters.stores.{store}"))
        for store, kind, n in counted.itertuples(index=False)
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
    for event_type, source, fields in kinds.head(3)[["event_type", "source", "fields"]].itertuples(index=False):
        known = (event_type, f"({source})" if isinstance(source, str) and source else None, fields)
        named.append(" ".join(x for x in known if isinstance(x, str) and x))
    return "; ".join(dict.fromkeys(n for n in named if n))


def _permanent_signals(kinds: pd.DataFrame, frames: Frames, given: Given) -> Iterable[Signal]:
    # A few among many that an outage has left lately do not explain those.
    recent_s = given.number("dead_letters.recent")
    since = given.as_of - pd.Timedelta(seconds=recent_s)
    unpublished = _exhausted_outbox(frames)
    weight = errors.weight_of(table(frames, "outbox_failed", "total"))
    others = {
        "outbox": weight * (unpublished["failed_at"] > since).sum(),
        "broker": (given_up.window(frames, "exhausted", given)["time"] > since).sum(),
        "delivery": sum(c.n for c in given_up.clusters(frames, given) if c.kind != "data" and c.last > since),
    }
    for store, found in kinds.groupby("store", sort=False):
        certain = found[~found["kind"].isin(_UNSURE)]
        seen = certain if len(certain) else found
        now, earlier, perhaps = _PERMANENT[str(store)]
        near = given_up.since_last(seen["last"].max(), given) < recent_s
        share = 1.0 if seen["n"].sum() >= others[str(store)] else given.number("dead_letters.few_among_many")
        for signal in given.speaks(perhaps if not len(certain) else now if near else earlier):
            yield replace(signal, weight=share * signal.weight)


# 4.4.2 ------------------------------------------------------------------------------------------------------


def collect_transient(rb: Context) -> Frames:
    """Errors of what was given up, what is being retried now, and deliveries of the broker that ran out.

    Frames: outbox_failed, letters, sent_per_minute, older, attempts_ended, retry_load, retrying, tries, errors, outbox,
    those of `given_up.advisories`, `fetch` and `follow_up`, and those of `delivery.look` and `second_look`.
    """
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
        answers |= delivery.look(rb, db)
        answers |= {name: db.ask(f"dead_letters/{name}") for name in ("attempts_ended", "retry_load", "retrying")}
        answers["errors"] = db.ask("outbox/errors")
        answers["outbox"] = db.ask("outbox/backlog")
    answers |= delivery.second_look(rb, answers)
    return parts.frames()


@dataclass(frozen=True)
class Transient:
    """What was given up, or fails now, because something else was down.

    `counts` and `ages` (seconds since the last, infinite for none) are by store; `refused` is the observation of a
    receiver that refuses at this moment, `unpublished_now` whether publishing fails at it.
    """

    clusters: list[errors.Cluster]
    data: float
    lost: pd.DataFrame
    unpublished: pd.DataFrame
    worker: delivery.Delivery
    outbox: Outbox
    refused: str
    unpublished_now: bool
    counts: dict[str, float]
    ages: dict[str, float]
    past: bool

    @classmethod
    def of(cls, frames: Frames, given: Given) -> Transient:
        """Read the frames of `collect_transient`."""
        every = given_up.clusters(frames, given)
        clusters = [c for c in every if c.kind != "data"]
        lost, unpublished = _exhausted(frames, given), _exhausted_outbox(frames)
        worker, outbox = delivery.delivery(frames), rows.one(frames.get("outbox"), Outbox)
        refused = worker.refusing(given) if "backlog" in frames else ""
        published = seconds_between(outbox.last_published, outbox.now)
        pattern, lately = given.number("tries.pattern"), given.number("success.lately")
        return cls(
            clusters=clusters,
            data=sum(c.n for c in every if c.kind == "data"),
            lost=lost,
            unpublished=unpublished,
            worker=worker,
            outbox=outbox,
            refused=refused if refused in REFUSES else "",
            unpublished_now="backlog" in frames
            and Tries.of("publish", frames).failed >= pattern
            and (published is None or published >= lately),
            counts={
                "delivery": sum(c.n for c in clusters),
                "broker": float(len(lost)),
                "outbox": len(unpublished) * errors.weight_of(table(frames, "outbox_failed", "total")),
            },
            ages={
                "delivery": given_up.since_last(max((c.last for c in clusters), default=None), given),
                "broker": given_up.since_last(lost["time"].max() if len(lost) else None, given),
                "outbox": given_up.since_last(unpublished["failed_at"].max() if len(unpublished) else None, given),
            },
            past="backlog" not in frames,
        )

    @property
    def live(self) -> list[str]:
        """What fails at this moment."""
        return [what for what, fails in (("delivery", self.refused), ("publish", self.unpublished_now)) if fails]

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
        failing, quiet = {"delivery": self.refused, "outbox": self.unpublished_now}, given_up.quiet_s(given)
        return [s for s, n in self.counts.items() if n and not failing.get(s) and self.ages[s] >= quiet]

    def sends(self, given: Given) -> bool:
        """Whether a send has succeeded so lately that the receiver accepts."""
        since = seconds_between(self.worker.activity.last_sent, self.worker.activity.now)
        return since is not None and since < given.number("success.lately")


def judge_transient(frames: Frames, given: Given) -> Finding:
    """4.4.2: which dependency, since when, still going on?"""
    if "outbox_failed" not in frames:
        return no_data("dead_letters/outbox_failed")
    seen, limits = Transient.of(frames, given), given.limits
    load = _load(frames, given)
    now = [
        limits.value("backlog.waiting_retry", seen.worker.queue.waiting_retry),
        Value("outbox.waiting_retry", seen.outbox.waiting_retry, "rows"),
        Value("retries.next_minute", load["next_minute"], "rows"),
        Value("retries.peak", load["peak"], "1/min"),
    ]
    missing = given_up.unanswered(frames, "exhausted")
    blind = bool(missing) or seen.past or "letters" not in frames
    over = [] if seen.past else seen.over(given)
    portion = given.number("redrive.portion")
    return judged(
        _transient_headline(seen, given),
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
        hops=() if seen.past else _transient_hops(seen),
        proposals=(
            *((remedies.throttle(given, "delivery"),) if seen.refused else ()),
            *((proposals.logs(given, "entitlement"),) if seen.unpublished_now else ()),
            *((proposals.logs(given, "notification"),) if seen.counts["broker"] and not over else ()),
            *(
                remedies.redrive(s, given.target, given.incident, int(min(seen.counts[s], portion)), seen.counts[s])
                for s in over
            ),
        ),
        next_sections=(*(("5.2",) if seen.refused else ()), *(("4.1",) if seen.unpublished_now else ())),
        frames={
            "clusters": rows.frame(given_up.clusters(frames, given)[:50], errors.Cluster),
            "unpublished": _by_error(seen.unpublished),
        },
        show=("clusters", "unpublished"),
    )


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
    kinds = [outbox_kind(e, given_up.lacks(s)) for e, s in zip(failed["last_error"], failed["shape"], strict=True)]
    return failed[np.array([kind is None for kind in kinds], dtype=bool)]


def _by_error(unpublished: pd.DataFrame) -> pd.DataFrame:
    columns = ["error", "kind", "n", "first", "last"]
    if unpublished.empty:
        return pd.DataFrame(columns=columns)
    weight = errors.weight_of(unpublished)
    grouped = unpublished.groupby(unpublished["last_error"].map(errors.fingerprint), sort=False)["failed_at"]
    found = [(error, publish.kind_of(error), len(at) * weight, at.min(), at.max()) for error, at in grouped]
    return pd.DataFrame(found, columns=columns).sort_values("n", ascending=False, ignore_index=True)


def _publish_kind(frames: Frames) -> str:
    """What most errors of events that wait for another try mean."""
    kinds: dict[str, float] = {}
    for e in rows.each(frames.get("errors"), OutboxError):
        if e.status == "PENDING" and e.last_error is not None:
            kind = publish.kind_of(e.last_error)
            kinds[kind] = kinds.get(kind, 0.0) + e.n
    return max(sorted(kinds), key=kinds.__getitem__, default="other")


@dataclass(frozen=True)
class Retries:
    """Rows that are due for another try in some tens of seconds."""

    QUESTION: ClassVar[str] = "dead_letters/retry_load"
    what: str = ""
    tens_ahead: float = 0.0
    n: float = 0.0


def _load(frames: Frames, given: Given) -> dict[str, float | None]:
    """Retries that are due within a minute, the busiest ten seconds of them, and what the worker can take."""
    retries = [r for r in rows.each(frames.get("retry_load"), Retries) if r.what == "delivery"]
    known, minute = "retry_load" in frames, 60 / given.number("retries.stretch")
    batch, pause_s = facts_of(given).batch_size, facts_of(given).poll_interval_s
    return {
        "next_minute": sum(r.n for r in retries if r.tens_ahead < minute) if known else None,
        "peak": max((r.n for r in retries), default=0.0) * minute if known else None,
        "most": 60 * batch / pause_s,
        # The proposal halves the batch and doubles the pause.
        "throttled": 60 * max(batch // 2, 1) / (2 * pause_s),
    }


def _transient_headline(seen: Transient, given: Given) -> Text:
    top = seen.clusters[0] if seen.clusters else None
    facts: dict[str, Any] = {
        "ago": seen.last_s,
        "minutes": given.window_minutes,
        "error": top.error if top else None,
        "users": top.users if top else None,
        "since": f"{top.first:%H:%M:%S}" if top else None,
        "waiting": seen.worker.queue.waiting_retry,
        **seen.counts,
    }
    if seen.total:
        end = "going_on" if seen.goes_on(given) else "over"
        kind = top.kind if top and seen.counts["delivery"] >= seen.total / 2 else "stores"
        return say(f"letters.{kind}_{end}", **facts)
    if seen.live:
        what = say("letters.live_" + "_".join(seen.live))
        return say("letters.failing_yet", what=what, events=seen.outbox.waiting_retry, **facts)
    if given.limits["backlog.waiting_retry"].status(seen.worker.queue.waiting_retry) is not Status.OK:
        return say("letters.draining", **facts)
    return say("letters.only_data" if seen.data else "letters.no_transient", **facts)


@dataclass(frozen=True)
class Retrying:
    """Whose notifications are being retried."""

    QUESTION: ClassVar[str] = "dead_letters/retrying"
    n: float = 0.0
    users: float = 0.0
    top_user_n: float = 0.0


def _transient_notes(seen: Transient, frames: Frames, given: Given, load: dict[str, float | None]) -> Iterable[Text]:
    if seen.past:
        yield say("letters.present_only")
    elif load["next_minute"]:
        yield say("letters.load", **load)
    if seen.refused:
        yield say("letters.backoff")
    retrying = rows.one(frames.get("retrying"), Retrying)
    if retrying.n >= given.number("tries.pattern"):
        share = 100 * retrying.top_user_n / retrying.n
        yield say("letters.retrying", n=retrying.n, users=retrying.users, share=share)
    if seen.data:
        yield say("letters.data_elsewhere", n=seen.data)
    if any(c.kind == "unclear" for c in seen.clusters):
        yield say("letters.unclear")
    if not seen.past:
        over = seen.over(given)
        if set(over) < {s for s, n in seen.counts.items() if n}:
            yield say("letters.redrive_waits", quiet=given_up.quiet_s(given))
        if over:
            yield say("letters.redrive_rules")


def _transient_signals(seen: Transient, frames: Frames, given: Given) -> Iterable[Signal]:
    recent_s, quiet = given.number("dead_letters.recent"), given_up.quiet_s(given)
    spoke = []
    if seen.refused == "delivery.refused_some":
        spoke.append("dead_letters.refuses_some")
    elif seen.refused:
        spoke += [seen.refused, "dead_letters.refuses"]
    elif seen.sends(given) and not seen.clusters:
        spoke.append("dead_letters.accepts")
    for kind in dict.fromkeys(c.kind for c in seen.clusters):
        dependency = kind == "dependency"
        ago = min(given_up.since_last(c.last, given) for c in seen.clusters if c.kind == kind)
        lately = "dead_letters.dependency_lately" if ago < recent_s else "dead_letters.dependency"
        spoke.append(lately if dependency else "dead_letters.unclear")
        if ago < quiet:  # over, it no longer holds anything up
            spoke.append("dead_letters.dependency_goes_on" if dependency else "dead_letters.unclear_goes_on")
    if seen.counts["broker"]:
        ran_out_lately = seen.ages["broker"] < recent_s
        spoke.append("dead_letters.deliveries_ran_out_lately" if ran_out_lately else "dead_letters.deliveries_ran_out")
    cause = _publish_kind(frames) if seen.unpublished_now else ""
    if cause == "no_stream":
        spoke.append("dead_letters.no_stream")
    elif cause in ("timeout", "closed"):
        spoke.append("dead_letters.relay_cut_off")
    if seen.unpublished_now:
        spoke.append("dead_letters.unpublished")
    elif seen.counts["outbox"]:
        spoke.append("publish.gave_up")
    return [signal for observation in spoke for signal in given.speaks(observation)]


def _transient_hops(seen: Transient) -> tuple[Hop, ...]:
    return (
        Hop(
            "relay",
            rate_out=seen.outbox.published_1m,
            waiting=seen.outbox.ready,
            alive=say("alive.publish_fails") if seen.unpublished_now else None,
        ),
        Hop(
            "receiver",
            rate_out=seen.worker.activity.sent_1m,
            waiting=seen.worker.queue.waiting_retry,
            alive=say("alive.refuses") if seen.refused else None,
        ),
    )


def draw_attempts(frames: Frames, given: Given) -> charts.Chart | None:
    """How often what is open, and what was given up, has been tried."""
    active = table(frames, "attempts", "attempt_count", "n")
    ended = table(frames, "attempts_ended", "what", "attempt_count", "n")
    kinds = ("notifications, FAILED", "outbox, unpublished", "outbox, FAILED")
    series = {"notifications, open": active} | {kind: ended[ended["what"] == kind] for kind in kinds}
    tried: dict[str, dict[int, float]] = {name: {} for name in series}
    scale = 30  # three times the default number of tries
    for name, frame in series.items():
        for r in rows.each(frame, Attempts):
            # Whatever is beyond the scale stands in its last column.
            tries = min(r.attempt_count, scale)
            if tries > 0:
                tried[name][tries] = tried[name].get(tries, 0.0) + r.n
    if not any(tried.values()):
        return None
    most = max(10, *(a for counted in tried.values() for a in counted))
    figure, ax = charts.axes("Tries so far", "rows", "failed tries (a tenth is the last by default)")
    width, at = 0.2, np.arange(1, most + 1)
    looks = zip(series, (charts.BLUE, charts.RED, charts.GREY, charts.ORANGE), ("", "xx", "..", "//"), strict=True)
    for i, (name, colour, hatch) in enumerate(looks):
        heights = [tried.get(name, {}).get(int(a), 0.0) for a in at]
        ax.bar(at + (i - 1.5) * width, heights, width, color=colour, hatch=hatch, edgecolor="white", label=name)
    ax.set_xticks(at, [f"{a}+" if a == scale else str(a) for a in at])
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


@dataclass(frozen=True)
class PerStretch:
    """New rows of a store in a stretch of the window, counted back from its end."""

    QUESTION: ClassVar[str] = "dead_letters/per_bucket"
    store: str = ""
    ago: int = -1
    n: float = 0.0
    last: pd.Timestamp | None = None
    exact: bool = False


def _bucket_s(of: Context | Given, window_minutes: int) -> float:
    """Seconds of a stretch of the window."""
    return max(of.number("dead_letters.shortest_stretch"), window_minutes * 60 / of.number("dead_letters.stretches"))


def collect_trend(rb: Context) -> Frames:
    """New rows of all four stores over the window, and what they disagree about.

    Frames: per_bucket, older, those of `given_up.advisories` and `follow_up`, and those of `AGREE` as "part.frame".
    """
    parts = Parts()
    given_up.advisories(rb, parts)
    with rb.snapshot() as db:
        given_up.follow_up(db, parts.answers)
        bucket_s = _bucket_s(rb, rb.parameters.window_minutes)
        given_up.optional(
            db, parts.answers, {"dead_letters/per_bucket": {"bucket_s": bucket_s}, "dead_letters/older": {}}
        )
    agree, own = collect_each(rb, AGREE), parts.frames()
    return own | agree | {FAILED: pd.concat([own[FAILED], agree[FAILED]], ignore_index=True)}


def judge_trend(frames: Frames, given: Given) -> Finding:
    """4.4.3: a burst that is over, or a steady increase?"""
    if "per_bucket" not in frames:
        return no_data("dead_letters/per_bucket")
    unrecorded = _unrecorded(frames, given)
    counted = series(frames, given)
    new = _events(counted, unrecorded, given)
    total, trend = float(new.sum()), stats.trend_kind(new)
    bucket_s = _bucket_s(given, given.window_minutes)
    newest = min(max(round(given.number("dead_letters.growth") / bucket_s), 1), len(new))
    growth = float(new[-newest:].sum()) / (newest * bucket_s / 60)
    ago = given_up.age(_last(frames, given), given)
    found = judge_each(frames, given, AGREE)
    bad = {name: f for name, f in found.items() if f.status is not Status.OK and f.counts}
    apart, lost = found["letters"].value("integrity.rows"), found["lost"].value("integrity.lost")
    missing = given_up.unanswered(frames, "terminated", "exhausted")
    key = _shape_of(trend, new, growth, total, given.number("dead_letters.burst_share"))
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
            *(given.speaks("dead_letters.unrecorded") if len(unrecorded) else ()),
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
    for r in rows.each(frames.get("per_bucket"), PerStretch):
        if r.store in counted and 0 <= r.ago < n:
            counted[r.store][n - 1 - r.ago] += r.n
    for name in ("terminated", "exhausted"):
        counted["advisories"] += _bucketed(given_up.window(frames, name, given)["time"], given)
    return counted


def _bucketed(times: Iterable[pd.Timestamp], given: Given) -> Counts:
    """How many of these moments lie in each stretch of the window."""
    bucket_s = _bucket_s(given, given.window_minutes)
    counted = np.zeros(max(int(given.window_minutes * 60 / bucket_s), 1))
    for time in times:
        ago = int((given_up.age(time, given) or 0) // bucket_s)
        counted[len(counted) - 1 - min(ago, len(counted) - 1)] += 1
    return counted


def _events(counted: dict[str, Counts], unrecorded: pd.DataFrame, given: Given) -> Counts:
    """All stores together: a row of the broker's table and its advisory are one."""
    total: Counts = counted["outbox"] + counted["delivery"] + counted["broker"] + _bucketed(unrecorded["time"], given)
    return total


def _shape_of(trend: stats.Trend, new: Counts, growth: float, total: float, burst: float) -> str:
    """none, few, burst (over), burst_on, step, steady or stopped."""
    if not total:
        return "none"
    if total < stats.MIN_BUCKETS:
        return "few" if growth else "stopped"
    if not growth:
        return "burst" if trend.kind != "steady" or stats.top_share(new) >= burst else "stopped"
    if trend.kind == "step":
        # Up and still there; or down, which is a steady one that has almost ended.
        return "step" if float(new[trend.onset :].mean()) > float(new[: trend.onset].mean()) else "steady"
    return "burst_on" if trend.kind == "spike" else "steady"


def _edges(given: Given) -> pd.DatetimeIndex:
    """Where the stretches of the window begin, and at last the moment of the run."""
    n = len(_bucketed((), given))
    return pd.date_range(
        end=given.as_of, periods=n + 1, freq=pd.Timedelta(seconds=_bucket_s(given, given.window_minutes))
    )


def _trend_notes(frames: Frames, given: Given) -> Iterable[Text]:
    if not all(r.exact for r in rows.each(frames.get("per_bucket"), PerStretch) if r.store == "outbox"):
        yield say("letters.estimated_times")
    read = {n: table(frames, n, "time") for n in ("terminated", "exhausted")}
    if any(f.attrs.get("capped") and len(given_up.window(frames, n, given)) == len(f) for n, f in read.items()):
        yield say("letters.advisories_capped", n=given.number("dead_letters.advisories"))


def _last(frames: Frames, given: Given) -> pd.Timestamp | None:
    seen = [r.last for r in rows.each(frames.get("per_bucket"), PerStretch)]
    for name in ("terminated", "exhausted"):
        seen += [a.time for a in rows.each(given_up.window(frames, name, given), given_up.Advisory)]
    return max((at for at in seen if at is not None), default=None)


def _unrecorded(frames: Frames, given: Given) -> pd.DataFrame:
    """Advisories of the window that never reached the table: what they are about is lost without a trace."""
    written = {r.stream_seq: r.created_at for r in rows.each(frames.get("recorded"), given_up.Recorded)}
    clocks = pd.Timedelta(seconds=given.number("dead_letters.clocks_apart"))
    old = given.as_of - pd.Timedelta(seconds=given.number("dead_letters.grace"))
    found = []
    for name in ("terminated", "exhausted") if "recorded" in frames else ():
        for a in rows.each(given_up.window(frames, name, given), given_up.Advisory):
            at = written.get(a.stream_seq)
            if a.time is not None and a.time < old and (at is None or at < a.time - clocks):
                found.append((a.stream_seq, name, a.time))
    columns = ["stream_seq", "advisory", "time"]
    return pd.DataFrame(found, columns=columns).drop_duplicates("stream_seq").reset_index(drop=True)


def draw_trend(frames: Frames, given: Given) -> charts.Chart | None:
    """New dead letters of each store over the window, and where the rate changed."""
    if "per_bucket" not in frames:
        return None
    counted = series(frames, given)
    new = _events(counted, _unrecorded(frames, given), given)
    if not new.any():
        return None
    edges, per_min = _edges(given), _bucket_s(given, given.window_minutes) / 60
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
