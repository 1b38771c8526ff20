"""Section 4.4: dead letters: permanent or transient failures, their causes, and whether they still increase."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.book import patterns
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, collect_each, judge_each, seconds_between
from runbook_lib.diagnosis import stats
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    OutageEnd,
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
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import consistency, delivery, errors, given_up, outage, program, publish
from runbook_lib.packs.entitlement.checks.delivery import RELIEVED_BY_THROTTLE
from runbook_lib.packs.entitlement.rows import Outbox, Tries
from runbook_lib.packs.logs.logs import fingerprint

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

_EVENT_ERROR = patterns.source(PACK, "event error")
#: Observations of a receiver that refuses now, as opposed to before the worker stopped.
REFUSES = ("delivery.refused", "delivery.times_out", "delivery.refused_in_part", "delivery.refused_some")
_KINDS = ["store", "kind", "event_type", "source", "fields", "n", "first", "last", "example"]
#: Kinds whose cause is not known.
_UNCERTAIN_KINDS = ("unknown", "decodes", "gone", "not_fetched")
#: The observation of permanent failures by store: recent ones, older ones, and ones of uncertain kind.
_PERMANENT_OBSERVATIONS = {
    "outbox": ("dead_letters.bad_event_now", "dead_letters.bad_event", "dead_letters.bad_event_perhaps"),
    "broker": ("dead_letters.bad_message_now", "dead_letters.bad_message", "dead_letters.bad_message_perhaps"),
    "delivery": ("dead_letters.bad_letter_now", "dead_letters.bad_letter", "dead_letters.unclear"),
}

# 4.4.1 ------------------------------------------------------------------------------------------------------


def collect_permanent(rb: Context) -> Frames:
    """4.4.1: collect events that the relay gave up, terminated messages, and the payload fields of dead letters.

    Frames: outbox_failed, letters, sent_per_minute, given_up, older, errors, and those of
    `given_up.collect_advisories`, `fetch_messages` and `query_follow_up`.
    """
    parts = FrameCollector()
    given_up.collect_advisories(rb, parts)
    given_up.fetch_messages(rb, parts, "terminated")
    with rb.snapshot() as db:
        outbox = {"outbox_failed": given_up.FailedEvent.QUERY, "errors": publish.OutboxError.QUERY}
        parts.ask(db, outbox, fields=list(given_up.FIELDS))
        given_up.query_follow_up(db, parts)
        given_up.query_letters_and_sends(rb, db, parts)
        parts.ask(db, {"given_up": "dead_letters/given_up", "older": "dead_letters/older"})
    return parts.frames()


def judge_permanent(frames: Frames, given: JudgeInput) -> Finding:
    """4.4.1: judge permanent failures by kind and producer."""
    kinds = permanent_kinds(frames, given)
    certain = kinds[~kinds["kind"].isin(_UNCERTAIN_KINDS)]
    n, unsure = float(kinds["n"].sum()), float(kinds["n"].sum() - certain["n"].sum())
    ago = given_up.age_s(kinds["last"].max(), given) if len(kinds) else None
    counted = kinds.groupby(["store", "kind"], sort=False)["n"].sum()
    headline = say("letters.no_permanent", minutes=given.window_minutes)
    if n:
        (store, kind), most = counted.index[0], counted.iloc[0]
        what = {"what": say(f"letters.kinds.{kind}"), "store": say(f"letters.stores.{store}"), "most": most}
        others = len(counted) - 1 or None
        headline = say("letters.permanent", n=n, minutes=given.window_minutes, ago=ago, others=others, **what)
    return judged(
        headline,
        [
            Value("dlq.permanent", n, "rows"),
            Value("dlq.kind_unknown", unsure, "rows"),
            *((given.limits.value("dlq.quiet", ago),) if n else ()),
        ],
        at_least=Status.WARNING if n else Status.OK,
        notes=(
            *((say("letters.unsure"),) if unsure else ()),
            *((say("letters.masked"),) if n else ()),
            *given_up.reading_notes(frames, given),
        ),
        signals=tuple(_permanent_signals(kinds, frames, given)),
        hops=(Hop("producer", alive=_format_producers(certain)),) if len(certain) else (),
        proposals=tuple(
            remedies.fix_producer(given, str(store), _format_producers(found), float(found["n"].sum()))
            for store, found in certain.groupby("store", sort=False)
        ),
        frames={"kinds": kinds},
        show=("kinds",),
    )


def permanent_kinds(frames: Frames, given: JudgeInput) -> pd.DataFrame:
    """Return the permanent failures of the window by kind and origin, most frequent first."""
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
    """Return why an event failed permanently; None for a failed dependency, "unknown" if the text does not tell.

    >>> outbox_kind("outbox payload parse failure", ""), outbox_kind("text", "occurred_at absent")
    ('parse_failure', 'missing_field')
    >>> outbox_kind("Connection is Closed", "") is None
    True
    """
    words = str(error or "").strip().lower()
    kind = publish.kind_of(words)
    if kind == "payload":
        return "parse_failure" if _EVENT_ERROR.says("parse_failure", words) else "unknown_type"
    if kind != "other":
        return None
    if fields:
        return "missing_field" if re.search(r" (?:absent|empty|null)\b", fields) else "malformed_field"
    return "missing_field" if _EVENT_ERROR.says("missing_field", words) else "unknown"


def _outbox_kinds(frames: Frames) -> Iterable[tuple[Any, ...]]:
    weight = errors.weight_of(table(frames, "outbox_failed", "total"))
    for r in rows.each(frames.get("outbox_failed"), given_up.FailedEvent):
        fields = given_up.list_field_problems(r.shape)
        kind = outbox_kind(r.last_error, fields)
        if kind is not None:
            yield "outbox", kind, r.event_type, r.source, fields, weight, r.failed_at, r.event_id
    # Events that are still being retried and cannot succeed; while an event is claimed, its error is empty.
    for e in rows.each(frames.get("errors"), publish.OutboxError):
        kind = outbox_kind(e.last_error, "")
        if e.last_error and e.status == "PENDING" and kind not in (None, "unknown"):
            yield "outbox", kind, None, None, "", e.n, e.newest, "still being tried"


def _message_kinds(frames: Frames, given: JudgeInput) -> Iterable[tuple[Any, ...]]:
    """Yield the messages that the broker no longer delivers, by the error in the message."""
    fetched = rows.each(frames.get("messages"), given_up.FetchedMessage)
    messages = {m.stream_seq: m for m in fetched if m.stream_seq is not None and m.problem}
    processed = set(given_up.column(frames, "processed", "event_id"))
    oldest_fetched = min(messages, default=None)
    for advisory in rows.each(given_up.advisories_in_window(frames, "terminated", given), given_up.Advisory):
        seq = advisory.stream_seq
        message = None if seq is None else messages.get(seq)
        origin: tuple[str, str | None, str | None, str]
        if message is None:
            searched = "messages" in frames and seq is not None and (oldest_fetched is None or seq >= oldest_fetched)
            origin = "gone" if searched else "not_fetched", None, None, ""
        elif message.event_id and "processed" not in frames:  # it may have been processed since
            origin = "unknown", None, None, ""
        elif message.event_id in processed:
            continue
        else:
            source = message.source if message.by_relay else "not the relay"
            origin = message.problem, message.event_type, source, message.fields
        yield "broker", *origin, 1.0, advisory.time, f"stream_seq {seq}"
    # Rows of the table that neither kind of advisory explains; for older rows not all advisories were read.
    known = {int(s) for name in given_up.ADVISORIES for s in given_up.column(frames, name, "stream_seq")}
    read_since = given_up.advisories_read_since(frames, given)
    for r in rows.each(frames.get("given_up"), given_up.RecordedMessage):
        told = read_since is None or (r.created_at is not None and r.created_at >= read_since)
        if r.stream_seq is not None and r.stream_seq not in known and told:
            yield "broker", "unknown", None, None, "", 1.0, r.created_at, f"stream_seq {r.stream_seq}"


def _letter_kinds(frames: Frames, given: JudgeInput) -> Iterable[tuple[Any, ...]]:
    """Yield the dead letters that would fail again, by the kind of their error or by missing payload fields."""
    letters = given_up.read_letters(frames)
    kinds = {c.error: c.kind for c in given_up.cluster_letters(frames, given)}
    weight = errors.weight_of(letters)
    for r in rows.each(letters, given_up.DeliveryLetter):
        fields, kind = given_up.list_field_problems(r.shape), kinds.get(fingerprint(r.error_message))
        if kind == "data" or (fields and kind != "dependency"):
            name = "missing_field" if fields else "refused"
            yield "delivery", name, r.event_type, r.source, fields, weight, r.created_at, r.event_id


def _format_producers(kinds: pd.DataFrame) -> str:
    """Return event type, source and fields of the three most frequent kinds as one line."""
    named = []
    for event_type, source, fields in kinds.head(3)[["event_type", "source", "fields"]].itertuples(index=False):
        known = (event_type, f"({source})" if isinstance(source, str) and source else None, fields)
        named.append(" ".join(x for x in known if isinstance(x, str) and x))
    return "; ".join(dict.fromkeys(n for n in named if n))


def _permanent_signals(kinds: pd.DataFrame, frames: Frames, given: JudgeInput) -> Iterable[Signal]:
    # A few permanent failures do not explain many recent ones that an outage has caused.
    recent_s = given.number("dead_letters.recent")
    since = given.as_of - pd.Timedelta(seconds=recent_s)
    unpublished = _find_unpublished_events(frames)
    weight = errors.weight_of(table(frames, "outbox_failed", "total"))
    others = {
        "outbox": weight * (unpublished["failed_at"] > since).sum(),
        "broker": (given_up.advisories_in_window(frames, "exhausted", given)["time"] > since).sum(),
        "delivery": sum(c.n for c in given_up.cluster_letters(frames, given) if c.kind != "data" and c.last > since),
    }
    for store, found in kinds.groupby("store", sort=False):
        certain = found[~found["kind"].isin(_UNCERTAIN_KINDS)]
        counted = certain if len(certain) else found
        now, earlier, perhaps = _PERMANENT_OBSERVATIONS[str(store)]
        is_recent = given_up.age_or_inf(counted["last"].max(), given) < recent_s
        few = counted["n"].sum() < others[str(store)]
        yield from given.evidence(perhaps if not len(certain) or few else now if is_recent else earlier)


# 4.4.2 ------------------------------------------------------------------------------------------------------


def collect_transient(rb: Context) -> Frames:
    """4.4.2: collect errors of given-up rows, current retries, and messages that ran out of deliveries.

    Frames: outbox_failed, letters, sent_per_minute, older, retrying, tries, errors, outbox, those of
    `given_up.collect_advisories`, `fetch_messages` and `query_follow_up`, `delivery.collect` and `collect_first`, and
    of `outage.ask`; program while the receiver refuses.
    """
    parts = FrameCollector(delivery.collect_first(rb, "4.4.2"))
    answers = parts.answers
    given_up.collect_advisories(rb, parts)
    given_up.fetch_messages(rb, parts, "exhausted")
    tried = rb.as_of - pd.Timedelta(seconds=rb.number("recovery.recent"))
    with rb.snapshot() as db:
        outbox = {
            "outbox_failed": given_up.FailedEvent.QUERY,
            "errors": publish.OutboxError.QUERY,
            "outbox": Outbox.QUERY,
            "publish_tries": "outbox/failed_tries",
        }
        parts.ask(db, outbox, fields=list(given_up.FIELDS), tried_since=tried)
        given_up.query_follow_up(db, parts)
        given_up.query_letters_and_sends(rb, db, parts)
        parts.ask(db, {"older": "dead_letters/older"})
        outage.ask(rb, db, parts, "sent")
        with parts.part("notifications"):  # last: a failed query makes the snapshot unusable
            answers["retrying"] = db.ask(Retrying.QUERY)
            answers |= delivery.collect(rb, db)
    if Transient.of(parts.frames(), rb.given("4.4.2")).relieved:
        answers |= program.collect_settings(rb, "delivery")
    return parts.frames()


@dataclass(frozen=True)
class StoreFailures:
    """The failures of one store that a dependency caused.

    `fails`: tries fail now. `recent`: the newest failure is so recent that another may follow. `succeeded`: a row of
    the store succeeded after it; without one, nothing shows the end of the failures.
    """

    n: float
    age_s: float
    fails: bool
    recent: bool
    succeeded: bool

    @property
    def recovered(self) -> bool:
        """Return whether there were failures, and rows succeed since without new ones."""
        return bool(self.n) and self.succeeded and not self.fails and not self.recent


@dataclass(frozen=True)
class Transient:
    """Failures, past and present, that a dependency caused.

    `users` have dead letters of `clusters`; `data` counts those whose own data is the cause. `refused` is the
    observation of a receiver that refuses now, "" for none; `unpublished_now` tells whether publishing fails now.
    `ended` is set if sends succeed again, including those of rows that had failed before.
    """

    clusters: list[errors.ErrorCluster]
    users: int
    data: float
    unpublished: pd.DataFrame
    worker: delivery.Delivery
    outbox: Outbox | None
    refused: str
    unpublished_now: bool
    unread: bool
    stores: dict[str, StoreFailures]
    ended: OutageEnd | None

    @classmethod
    def of(cls, frames: Frames, given: JudgeInput) -> Transient:
        """Read the frames of `collect_transient`."""
        every = given_up.cluster_letters(frames, given)
        clusters = [c for c in every if c.kind != "data"]
        letters, texts = given_up.read_letters(frames), {c.error for c in clusters}
        lost, unpublished = _find_exhausted_messages(frames, given), _find_unpublished_events(frames)
        worker, outbox = delivery.read_delivery(frames), rows.first(frames.get("outbox"), Outbox)
        refused = worker.refusing(given) if "backlog" in frames else ""
        published = seconds_between(outbox.last_published, outbox.now) if outbox else None
        unpublished_now = (
            outbox is not None
            and "publish_tries" in frames
            and Tries.of("publish", frames).failed >= given.number("tries.pattern")
            and (published is None or published >= given.number("success.lately"))
        )
        ended = None if refused or worker.tried or worker.failed else outage.find_end(frames, given, "sent")
        last_sent = worker.activity.last_sent
        unread, refused = given_up.unread_tables(frames), refused if refused in REFUSES else ""

        def failures(n: float, last: Any, succeeded: Any, *, fails: bool = False, over: bool = False) -> StoreFailures:
            age_s, known = given_up.age_or_inf(last, given), last is not None and not pd.isna(last)
            recent = age_s < given_up.quiet_s(given) and not over
            return StoreFailures(
                n, age_s, fails, recent, not known or (succeeded is not None and bool(succeeded > last))
            )

        gave_up, published_at = unpublished["failed_at"].max(), outbox.last_published if outbox else None
        newest = max((c.last for c in clusters), default=None)
        weight = errors.weight_of(table(frames, "outbox_failed", "total"))
        broker = failures(float(len(lost)), lost["time"].max(), given.as_of)
        return cls(
            clusters=clusters,
            users=letters[letters["error_message"].map(fingerprint).isin(texts)]["user_id"].nunique(),
            data=sum(c.n for c in every if c.kind == "data"),
            unpublished=unpublished,
            worker=worker,
            outbox=outbox,
            refused=refused,
            unpublished_now=unpublished_now,
            unread=unread,
            stores={
                "delivery": failures(
                    sum(c.n for c in clusters), newest, last_sent, fails=bool(refused), over=bool(ended)
                ),
                "broker": replace(broker, succeeded=True),  # `lost` has none that was processed since
                "outbox": failures(len(unpublished) * weight, gave_up, published_at, fails=unpublished_now),
            },
            ended=ended,
        )

    @property
    def live(self) -> tuple[str, ...]:
        """Return what fails now: "delivery", "publish", both or neither."""
        return tuple(what for what, fails in (("delivery", self.refused), ("publish", self.unpublished_now)) if fails)

    @property
    def total(self) -> float:
        """Return the number of failures in all stores."""
        return sum(store.n for store in self.stores.values())

    @property
    def last_s(self) -> float | None:
        """Return the seconds since the newest failure; None if there is none."""
        return min(store.age_s for store in self.stores.values()) if self.total else None

    @property
    def relieved(self) -> bool:
        """Whether fewer sends would relieve the receiver."""
        return self.refused in RELIEVED_BY_THROTTLE

    @property
    def recent(self) -> bool:
        """Return whether another failure may follow the newest one of a store."""
        return any(store.recent for store in self.stores.values())

    @property
    def course(self) -> str:
        """Return whether the failure is "going_on", "over", or "untried": no success since was seen."""
        if self.live or self.recent:
            return "going_on"
        return "over" if all(store.succeeded for store in self.stores.values() if store.n) else "untried"

    @property
    def recovered(self) -> list[str]:
        """Return the stores that have recovered; none if a table was not read."""
        return [] if self.unread else [name for name, s in self.stores.items() if s.recovered]


def judge_transient(frames: Frames, given: JudgeInput) -> Finding:
    """4.4.2: judge which dependency failed, since when, and whether it still fails."""
    seen, limits = Transient.of(frames, given), given.limits
    now = [
        limits.value("backlog.waiting_retry", seen.worker.queue.waiting_retry),
        Value("outbox.waiting_retry", seen.outbox.waiting_retry if seen.outbox else None, "rows"),
    ]
    portion, counts = given.number("redrive.portion"), {name: store.n for name, store in seen.stores.items()}
    relieves = seen.relieved and not program.is_throttled(frames, given)
    quiet = limits.value("dlq.quiet", seen.last_s)
    if not seen.recent and quiet.status is not Status.OK:
        quiet = replace(quiet, threshold=None)  # successful sends prove the end before the quiet time is over
    return judged(
        _transient_headline(seen, given),
        [
            Value("dlq.transient", seen.total, "rows"),
            *(Value(f"dlq.{store}", n, "rows") for store, n in counts.items()),
            *((quiet,) if seen.total else ()),
            *now,
        ],
        at_least=Status.WARNING if seen.total or seen.live else Status.OK,
        notes=(*_transient_notes(seen, frames, given), *given_up.reading_notes(frames, given)),
        signals=tuple(_transient_signals(seen, frames, given)),
        hops=_transient_hops(seen),
        proposals=(
            *((remedies.throttle(given, "delivery"),) if relieves else ()),
            *((proposals.logs(given, "entitlement"),) if seen.unpublished_now else ()),
            *((proposals.logs(given, "notification"),) if counts["broker"] and not seen.recovered else ()),
            *(remedies.redrive(s, given, int(min(counts[s], portion)), counts[s]) for s in seen.recovered),
        ),
        next_sections=(*(("5.2",) if seen.relieved else ()), *(("4.1",) if seen.unpublished_now else ())),
        frames={
            "clusters": rows.frame(given_up.cluster_letters(frames, given)[:50], errors.ErrorCluster),
            "unpublished": _group_by_error(seen.unpublished),
        },
        show=("clusters", "unpublished"),
        ended=seen.ended if seen.total and not (seen.live or seen.recent) else None,
    )


def _find_exhausted_messages(frames: Frames, given: JudgeInput) -> pd.DataFrame:
    """Return the window's advisories of messages that ran out of deliveries and were not processed afterwards."""
    fetched = table(frames, "messages", "stream_seq", "event_id")
    processed = set(given_up.column(frames, "processed", "event_id"))
    done = set(fetched[fetched["event_id"].isin(processed)]["stream_seq"])
    found = given_up.advisories_in_window(frames, "exhausted", given)
    return found[~found["stream_seq"].isin(done)]


def _find_unpublished_events(frames: Frames) -> pd.DataFrame:
    """Return the FAILED events whose content is not the cause."""
    failed = table(frames, "outbox_failed", "last_error", "shape", "failed_at")
    kinds = [
        outbox_kind(e, given_up.list_field_problems(s))
        for e, s in zip(failed["last_error"], failed["shape"], strict=True)
    ]
    return failed[np.array([kind is None for kind in kinds], dtype=bool)]


def _group_by_error(unpublished: pd.DataFrame) -> pd.DataFrame:
    """Return the number, first and last time of FAILED events by error text and kind, most frequent first."""
    columns = ["error", "kind", "n", "first", "last"]
    if unpublished.empty:
        return pd.DataFrame(columns=columns)
    weight = errors.weight_of(unpublished)
    texts = unpublished["last_error"]  # the kind depends on numbers that the fingerprint removes
    grouped = unpublished.groupby([texts.map(fingerprint), texts.map(publish.kind_of)], sort=False)["failed_at"]
    found = [(error, kind, len(at) * weight, at.min(), at.max()) for (error, kind), at in grouped]
    return pd.DataFrame(found, columns=columns).sort_values("n", ascending=False, ignore_index=True)


def _transient_headline(seen: Transient, given: JudgeInput) -> Text:
    top = seen.clusters[0] if seen.clusters else None
    facts: dict[str, Any] = {
        "ago": seen.last_s,
        "minutes": given.window_minutes,
        "error": top.error if top else None,
        "users": seen.users,
        "since": f"{min(c.first for c in seen.clusters):%H:%M:%S}" if top else None,
        "waiting": seen.worker.queue.waiting_retry,
        **{name: store.n for name, store in seen.stores.items()},
    }
    if seen.total:
        own = seen.stores["delivery"]
        kind, ago = (top.kind, own.age_s) if top and own.n >= seen.total / 2 else ("stores", seen.last_s)
        return say(f"letters.failure.{kind}_{seen.course}", **facts | {"ago": ago})
    if seen.live:
        what = say(f"letters.live_{'_'.join(seen.live)}")
        events = seen.outbox.waiting_retry if seen.outbox else None
        return say("letters.failing_yet", what=what, events=events, **facts)
    if given.limits["backlog.waiting_retry"].reached(seen.worker.queue.waiting_retry):
        return say("letters.draining", **facts)
    return say("letters.only_data" if seen.data else "letters.no_transient", **facts)


class Retrying(rows.Row, query="dead_letters/retrying"):
    """The notifications that are being retried, their users, and those of the most frequent user."""

    n: float = 0.0
    users: float = 0.0
    top_user_n: float = 0.0


def _transient_notes(seen: Transient, frames: Frames, given: JudgeInput) -> Iterable[Text]:
    if seen.refused:
        yield say("letters.backoff")
    retrying = rows.first(frames.get("retrying"), Retrying)
    if retrying and retrying.n >= given.number("tries.pattern"):
        share = 100 * retrying.top_user_n / retrying.n
        yield say("letters.retrying", n=retrying.n, users=retrying.users, share=share)
    if any(c.kind == "unclear" for c in seen.clusters):
        yield say("letters.unclear")
    quiet_s = given_up.quiet_s(given)
    waits = any(store.n and name not in seen.recovered for name, store in seen.stores.items())
    if waits or (seen.last_s or quiet_s) < quiet_s:
        yield say("letters.redrive_waits", quiet=quiet_s)
    if seen.recovered:
        yield say("letters.redrive_rules")


def _transient_signals(seen: Transient, frames: Frames, given: JudgeInput) -> Iterable[Signal]:
    recent_s, quiet = given.number("dead_letters.recent"), given_up.quiet_s(given)
    observed = []
    if seen.refused == "delivery.refused_some":
        observed.append("dead_letters.refuses_some")
    elif seen.refused:
        observed += [seen.refused, "dead_letters.refuses"]
    elif seen.worker.finishes(given) and not seen.clusters and "letters" in frames:
        observed.append("dead_letters.accepts")
    for kind in dict.fromkeys(c.kind for c in seen.clusters):
        dependency = kind == "dependency"
        ago = min(given_up.age_or_inf(c.last, given) for c in seen.clusters if c.kind == kind)
        lately = "dead_letters.dependency_lately" if ago < recent_s else "dead_letters.dependency"
        observed.append(lately if dependency else "dead_letters.unclear")
        if ago < quiet and not seen.ended:
            observed.append("dead_letters.dependency_goes_on" if dependency else "dead_letters.unclear_goes_on")
            observed.append(errors.classify_send(max((c.last, c.error) for c in seen.clusters if c.kind == kind)[1]))
    if seen.stores["broker"].n and "processed" in frames:
        ran_out_lately = seen.stores["broker"].age_s < quiet
        observed.append(
            "dead_letters.deliveries_ran_out_lately" if ran_out_lately else "dead_letters.deliveries_ran_out"
        )
    cause = publish.count_live_errors(frames)[1] if seen.unpublished_now else ""
    if cause == "no_stream":
        observed.append("dead_letters.no_stream")
    elif cause in ("timeout", "closed"):
        observed.append("dead_letters.relay_cut_off")
    if seen.unpublished_now:
        observed.append("dead_letters.unpublished")
    elif seen.stores["outbox"].n:
        observed.append("publish.gave_up")
    return given.evidence_of(dict.fromkeys(filter(None, observed)))


def _transient_hops(seen: Transient) -> tuple[Hop, ...]:
    return (
        Hop(
            "relay",
            rate_out=seen.outbox.published_1m if seen.outbox else None,
            waiting=seen.outbox.ready if seen.outbox else None,
            alive=say("alive.publish_fails") if seen.unpublished_now else None,
        ),
        Hop(
            "receiver",
            rate_out=seen.worker.activity.sent_1m,
            waiting=seen.worker.queue.waiting_retry,
            alive=say("alive.sends_fail") if seen.refused else None,
        ),
    )


# 4.4.3 ------------------------------------------------------------------------------------------------------

#: The checks of section 5.3 that must agree with the dead letters.
AGREEMENT_CHECKS = {
    "letters": consistency.DEAD_LETTERS,
    "lost": replace(consistency.LOST, collect=lambda rb: consistency.collect_lost(rb, day=False)),
}
Counts = np.ndarray[Any, np.dtype[np.float64]]
STORES = ("outbox", "delivery", "broker", "advisories")


def _bucket_s(of: Context | JudgeInput, window_minutes: int) -> float:
    """Return the length of a bucket of the window in seconds."""
    return max(of.number("dead_letters.shortest_stretch"), window_minutes * 60 / of.number("dead_letters.stretches"))


def collect_trend(rb: Context) -> Frames:
    """4.4.3: collect the new rows of all four stores over the window, and the mismatches between them.

    Frames: per_bucket, older, those of `given_up.collect_advisories` and `query_follow_up`, and those of
    `AGREEMENT_CHECKS` as "part.frame".
    """
    parts = FrameCollector()
    given_up.collect_advisories(rb, parts)
    with rb.snapshot() as db:
        given_up.query_follow_up(db, parts)
        bucket_s = _bucket_s(rb, rb.parameters.window_minutes)
        parts.ask(db, {"per_bucket": given_up.StoreBucket.QUERY, "older": "dead_letters/older"}, bucket_s=bucket_s)
    return parts.frames() | collect_each(rb, AGREEMENT_CHECKS)


@dataclass(frozen=True)
class NewRows:
    """The new rows of the window in buckets, oldest first: of each store, and of all.

    In `total` an advisory counts only if it is one of `unrecorded`, those whose row in the table is missing. `edges`
    are the start of each bucket and the time of the run.
    """

    bucket_s: float
    edges: pd.DatetimeIndex
    stores: dict[str, Counts]
    total: Counts
    newest: pd.Timestamp | None
    unrecorded: pd.DataFrame

    @classmethod
    def of(cls, frames: Frames, given: JudgeInput) -> NewRows:
        """Read the frames of `collect_trend`."""
        bucket_s, unrecorded = _bucket_s(given, given.window_minutes), _find_unrecorded(frames, given)
        n = max(int(given.window_minutes * 60 / bucket_s), 1)
        buckets = rows.each(frames.get("per_bucket"), given_up.StoreBucket)
        advised = pd.concat([given_up.advisories_in_window(frames, k, given)["time"] for k in given_up.ADVISORIES])

        def count(times: Iterable[pd.Timestamp]) -> Counts:
            ages = (given_up.age_s(time, given) for time in times)
            counted = Counter(min(int(age // bucket_s), n - 1) for age in ages if age is not None)
            return np.array([float(counted[n - 1 - at]) for at in range(n)])

        stores = {store: np.zeros(n) for store in STORES} | {"advisories": count(advised)}
        for r in buckets:
            if r.store in stores and 0 <= r.ago < n:
                stores[r.store][n - 1 - r.ago] += r.n
        times = [at for at in (*(r.last for r in buckets), *advised) if at is not None and not pd.isna(at)]
        return cls(
            bucket_s=bucket_s,
            edges=pd.date_range(end=given.as_of, periods=n + 1, freq=pd.Timedelta(seconds=bucket_s)),
            stores=stores,
            total=sum((stores[store] for store in STORES[:-1]), count(unrecorded["time"])),
            newest=max(times, default=None),
            unrecorded=unrecorded,
        )


def judge_trend(frames: Frames, given: JudgeInput) -> Finding:
    """4.4.3: judge whether the dead letters were a burst that is over or still increase."""
    seen = NewRows.of(frames, given)
    new, unrecorded, bucket_s = seen.total, seen.unrecorded, seen.bucket_s
    total, trend = float(new.sum()), stats.trend_kind(new)
    newest = min(max(round(given.number("dead_letters.growth") / bucket_s), 1), len(new))
    ago = given_up.age_s(seen.newest, given)
    # A bucket of a long window is longer than growth is measured for.
    grows = ago is None or ago < given.number("dead_letters.growth")
    growth = float(new[-newest:].sum()) / (newest * bucket_s / 60) if grows else 0.0
    found = judge_each(frames, given, AGREEMENT_CHECKS)
    bad = {name: f for name, f in found.items() if f.status is not Status.OK and f.counts}
    apart, lost = found["letters"].value("integrity.rows"), found["lost"].value("integrity.lost")
    ended = next((f.ended for f in given.earlier if f.step == "4.4.2"), None)
    all_read = {"terminated", "exhausted", "recorded"} <= frames.keys()
    ended = ended if total and all_read and not (len(unrecorded) or bad) else None
    # The last dead letters of an outage that has ended are not growth.
    key = _classify_trend(trend, new, 0.0 if ended else growth, total, given.number("dead_letters.burst_share"))
    began = trend.onset if trend.onset is not None else int(np.argmax(new > 0))
    facts = {
        "n": total,
        "minutes": given.window_minutes,
        "growth": growth,
        "span": newest * bucket_s / 60,
        "ago": ago,
        "onset": f"{seen.edges[began]:%H:%M}",
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
            given.limits.value("dlq.growth", growth) if not ended else Value("dlq.growth", growth, "1/min"),
            Value("dlq.new", total, "rows"),
            *(Value(f"dlq.{store}", float(n.sum()), "rows") for store, n in seen.stores.items()),
            Value("dlq.trend", key),
            Value("dlq.since_last", ago, "s"),
            Value("advisories.unrecorded", len(unrecorded), "rows"),
            Value("dead_letters_apart", apart, "rows"),
            Value("published_and_lost", lost, "events"),
        ],
        at_least=worst(
            [
                *(f.status for f in found.values() if f.counts),
                Status.WARNING if ended else Status.OK,
                Status.CRITICAL if len(unrecorded) else Status.OK,
            ]
        ),
        reason=next((f.reason for f in bad.values() if f.reason), None),
        notes=(
            *(f.headline for f in bad.values()),
            *given_up.reading_notes(frames, given),
        ),
        signals=(
            *(given.evidence("dead_letters.unrecorded") if len(unrecorded) else ()),
            *(s for f in bad.values() for s in f.signals),
        ),
        hops=(Hop("subscriber", waiting=float(lag)),) if isinstance(lag, int | float) else (),
        next_sections=("5.3",) if len(unrecorded) or bad else (),
        frames={"unrecorded": unrecorded},
        ended=ended,
        show=("unrecorded", *(f"{name}.{frame}" for name, f in bad.items() for frame in f.show)),
    )


def _classify_trend(trend: stats.Trend, new: Counts, growth: float, total: float, burst: float) -> str:
    """Return none, few, burst (over), burst_on (continues), step, steady or stopped."""
    if not total:
        return "none"
    if total < stats.MIN_BUCKETS:
        return "few" if growth else "stopped"
    if not growth:
        return "burst" if trend.kind != "steady" or stats.top_share(new) >= burst else "stopped"
    if trend.kind == "step":
        # A step up continues; a step down is a steady increase that has almost ended.
        return "step" if float(new[trend.onset :].mean()) > float(new[: trend.onset].mean()) else "steady"
    return "burst_on" if trend.kind == "spike" else "steady"


def _find_unrecorded(frames: Frames, given: JudgeInput) -> pd.DataFrame:
    """Return the window's advisories without a row in the table: their messages are lost without a record."""
    written = {r.stream_seq: r.created_at for r in rows.each(frames.get("recorded"), given_up.RecordedMessage)}
    clocks = pd.Timedelta(seconds=given.number("dead_letters.clocks_apart"))
    old = given.as_of - pd.Timedelta(seconds=given.number("dead_letters.grace"))
    found = []
    for name in given_up.ADVISORIES if "recorded" in frames else ():
        for a in rows.each(given_up.advisories_in_window(frames, name, given), given_up.Advisory):
            at = written.get(a.stream_seq)
            if a.time is not None and a.time < old and (at is None or at < a.time - clocks):
                found.append((a.stream_seq, name, a.time))
    columns = ["stream_seq", "advisory", "time"]
    return pd.DataFrame(found, columns=columns).drop_duplicates("stream_seq").reset_index(drop=True)


#: What says more of the letters, or of older ones.
_BESIDE = ("older", "sent_per_minute")
CHECKS: tuple[Check, ...] = (
    Check("4.4.1", collect_permanent, judge_permanent, optional=("exhausted", *_BESIDE)),
    Check("4.4.2", collect_transient, judge_transient, optional=("terminated", "sent_steps", *_BESIDE)),
    Check(
        "4.4.3", collect_trend, judge_trend,
        needs=("per_bucket", "recorded"), optional=("processed", *_BESIDE),
    ),
)  # fmt: skip
