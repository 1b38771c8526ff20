"""What waited in the three queues, exactly by the rows' own timestamps, and where that left its ordinary range."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.analysis import history
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Text, Threshold, say
from runbook_lib.model.frames import table
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: Upstream first: between the event's creation, its publishing, its processing, and the end of its notification.
QUEUES = ("outbox", "broker", "notifications")


@dataclass(frozen=True)
class Span:
    """A stretch of time in buckets; bucket -1 is all before it."""

    since: pd.Timestamp
    until: pd.Timestamp
    bucket_s: int

    @property
    def buckets(self) -> int:
        """How many."""
        return max(math.ceil((self.until - self.since).total_seconds() / self.bucket_s), 1)

    @property
    def full(self) -> int:
        """How many are over; the last one may be filling still."""
        return int((self.until - self.since).total_seconds() // self.bucket_s)

    def at(self, bucket: int) -> pd.Timestamp:
        """Where a bucket begins."""
        return self.since + pd.Timedelta(seconds=bucket * self.bucket_s)

    def of(self, time: pd.Timestamp) -> int:
        """The bucket that a time is in."""
        return int((time - self.since).total_seconds() // self.bucket_s)

    def counts(self, frames: Frames, name: str, *columns: str) -> pd.DataFrame | None:
        """The counts of every bucket from -1 on; None where the question was not answered."""
        if name not in frames:
            return None
        found = table(frames, name, "bucket", *columns).set_index("bucket")[list(columns)]
        numbers = found.apply(pd.to_numeric, errors="coerce").fillna(0.0).groupby(level=0).sum()
        return pd.DataFrame(numbers.reindex(range(-1, self.buckets), fill_value=0.0).astype(float))

    def fine(self, step_s: float, buckets: float, minutes: float) -> Span:
        """The same in steps of `step_s` if `buckets` of these do, else of so many minutes that `minutes` steps do."""
        length_s = (self.until - self.since).total_seconds()
        step = step_s if length_s <= step_s * buckets else 60 * math.ceil(length_s / 60 / minutes)
        return Span(self.since, self.until, int(step))


@dataclass(frozen=True)
class _Stretch:
    since: pd.Timestamp | None = None
    until: pd.Timestamp | None = None
    bucket_s: float = 0.0


def span_of(frames: Frames, name: str = "span") -> Span | None:
    """The span that the frames are of."""
    found = rows.one(frames.get(name), _Stretch)
    if found.since is None or found.until is None or not found.bucket_s:
        return None
    return Span(found.since, found.until, max(int(found.bucket_s), 1))


def fine_span(span: Span, given: Given) -> Span:
    """The steps in which the queues of a span are looked at."""
    return span.fine(given.number("past.step"), given.number("postmortem.buckets"), given.number("past.minutes"))


def window(given: Given) -> Span:
    """The window of a run, minute by minute, or in so many minutes at once that one answer holds it."""
    since = (given.as_of - pd.Timedelta(minutes=given.window_minutes)).floor("min")
    return Span(since, given.as_of, 60 * max(math.ceil(given.window_minutes / given.number("postmortem.buckets")), 1))


def ask(rb: Context, db: Snapshot, span: Span, queues: Iterable[str] = QUEUES) -> Frames:
    """What came, left and waited in each queue. Frames waiting.QUEUE (`Flow`, piece), where it could be read."""
    margin = pd.Timedelta(hours=rb.number("postmortem.margin"))
    given = vars(span) | {"slow_s": rb.catalog.limits["backlog.oldest_due"].warning}
    given["few"] = _chance(rb.number("past.usual"), rb.number("past.spread"))
    found = {}
    for queue in queues:
        low, high = (span.since, span.until + margin)
        if queue == "notifications":  # found by when they came, not by when they left
            low, high = (span.since - margin, span.until)
        parts = in_pieces(rb, db, f"past/{queue}", low, high, "past.piece", **given)
        if parts is not None:
            found[f"waiting.{queue}"] = pd.concat(p.assign(piece=i) for i, p in enumerate(parts))
    return found


def _chance(usual: float, spread: float) -> float:
    """How much may wait by chance where usually nothing does."""
    return history.ordinary([0.0], usual, spread)[1]


def in_pieces(
    rb: Context, db: Snapshot, name: str, low: pd.Timestamp, high: pd.Timestamp, piece: str, **params: Any
) -> list[pd.DataFrame] | None:
    """One question in pieces, so many hours each (a number of slo.md); None where one was not answered whole.

    Of a busy system the cost gate refuses such a piece: then its halves are asked, or theirs.
    """
    whole = min(pd.Timedelta(hours=rb.number(piece)), high - low)
    for halved in range(int(rb.number("past.halved")) + 1):
        length = whole / 2**halved
        answers: list[pd.DataFrame] = []
        begin = low
        while begin < high:
            end = min(begin + length, high)
            found = db.try_ask(name, low=begin, high=end, with_open=not answers, **params)
            if found is None or found.attrs.get("capped"):
                break
            answers.append(found)
            begin = end
        else:
            return answers
        if not rb.read_cost.questions[-1].refused:
            return None
    return None


@dataclass(frozen=True)
class Flow:
    """What came into a queue and left it in a bucket, and what waited in it between."""

    QUESTION: ClassVar[str] = "past/notifications"
    bucket: int = -1
    came: float = 0.0
    gone: float = 0.0
    least: float | None = None
    most: float | None = None
    low_first: pd.Timestamp | None = None
    low_last: pd.Timestamp | None = None
    slow: float = 0.0
    tried: float = 0.0
    untimed: float = 0.0


def levels(frames: Frames, queue: str, span: Span) -> pd.DataFrame | None:
    """What waited in a queue bucket by bucket (`history.levels`); None where that was not answered."""
    wanted = ("piece", "bucket", "came", "gone", "least", "most")
    if not set(wanted) <= set(frames.get(f"waiting.{queue}", pd.DataFrame()).columns):
        return None
    return history.levels(table(frames, f"waiting.{queue}", *wanted), span.buckets)


@dataclass(frozen=True)
class Spell:
    """A stretch in which a queue was never down to what usually waits in it.

    `until` is None where it had not come back by the end; `from_before` tells that it had left before the beginning.
    `slow` rows waited too long, and `tried` of these were tried in vain.
    """

    queue: str = ""
    since: pd.Timestamp | None = None
    until: pd.Timestamp | None = None
    from_before: bool = False
    usual: float = 0.0
    peak: float = 0.0
    waited: float = 0.0
    slow: float = 0.0
    tried: float = 0.0


def spells(frames: Frames, given: Given) -> list[Spell]:
    """Every spell of every queue, the earliest first."""
    span = span_of(frames, "steps")
    found = [] if span is None else [s for queue in QUEUES for s in _spells(frames, given, span, queue)]
    return sorted(found, key=lambda s: (s.since, QUEUES.index(s.queue)))


def _spells(frames: Frames, given: Given, span: Span, queue: str) -> Iterable[Spell]:
    level = levels(frames, queue, span)
    if level is None:
        return
    flows = rows.each(frames[f"waiting.{queue}"], Flow)
    low = {f.bucket: f for f in flows if f.low_last is not None}
    least = level["least"].iloc[: span.full]
    usual, most = _ordinary(level, given, span)
    for first, end in history.spells(least, most, int(given.number("past.gap") // span.bucket_s)):
        part = [f for f in flows if first - 1 <= f.bucket < end]
        since = low[first - 1].low_last if first and first - 1 in low else span.at(first)
        back = low[end].low_first if end in low else span.at(end)
        yield Spell(
            queue,
            since,
            back if end < span.full else None,
            from_before=first == 0,
            usual=usual,
            peak=float(level["most"].iloc[max(first - 1, 0) : end].max()),
            waited=float(level["waiting"].iloc[first:end].sum()) * span.bucket_s,
            slow=sum(f.slow for f in part),
            tried=sum(f.tried for f in part),
        )


def _ordinary(level: pd.DataFrame, given: Given, span: Span) -> tuple[float, float]:
    return history.ordinary(level["least"].iloc[: span.full], given.number("past.usual"), given.number("past.spread"))


def limit(level: pd.DataFrame, given: Given, span: Span) -> float:
    """How much may wait all through a bucket without being out of the ordinary."""
    return _ordinary(level, given, span)[1]


def always_waits(frames: Frames, given: Given) -> list[str]:
    """The queues in which so much waits nearly all the time that an incident as long as the span would not show."""
    span = span_of(frames, "steps")
    known = {} if span is None else {q: level for q in QUEUES if (level := levels(frames, q, span)) is not None}
    nothing = _chance(given.number("past.usual"), given.number("past.spread"))
    return [queue for queue, level in known.items() if span and _ordinary(level, given, span)[0] > nothing]


@dataclass(frozen=True)
class Incident:
    """Spells that overlap, or follow each other closely."""

    spells: tuple[Spell, ...]

    @property
    def since(self) -> pd.Timestamp:
        """When the first queue left its ordinary range."""
        return min(s.since for s in self.spells if s.since is not None)

    @property
    def until(self) -> pd.Timestamp | None:
        """When the last one was back in it; None where that has not come."""
        ends = [s.until for s in self.spells]
        return None if None in ends else max(e for e in ends if e is not None)

    @property
    def waited(self) -> float:
        """Rows times seconds."""
        return sum(s.waited for s in self.spells)


def incidents(found: Iterable[Spell], gap: pd.Timedelta) -> list[Incident]:
    """The spells, the earliest first, as incidents."""
    joined: list[Incident] = []
    for spell in found:
        before = joined[-1] if joined else None
        if before and spell.since is not None and (before.until is None or spell.since - before.until <= gap):
            joined[-1] = Incident((*before.spells, spell))
        else:
            joined.append(Incident((spell,)))
    return joined


def blind_spots(given: Given, retention: pd.Timedelta, without: str = "") -> tuple[Text, ...]:
    """What the series of the window does not show."""
    gone = window(given).since < given.as_of - retention
    spots = (*(("retention",) if gone else ()), "redrive", "lookback", "one_status")
    return tuple(say(f"blind_spot.{spot}") for spot in spots if spot != without)


def draw(
    series: pd.DataFrame | None, span: Span, title: str, lines: tuple[str, str, str], alt: str, spots: tuple[Text, ...],
    limit: Threshold | None = None,
) -> charts.Chart | None:  # fmt: skip
    """The queue with what came and what left, and the limit once the backlog is near it."""
    if series is None or series.empty:
        return None
    figure, ax = charts.axes(title, "rows", "UTC")
    ends = [min(span.at(i + 1), span.until) for i in series.index]
    charts.flows(ax, ends, series["waiting"], series[["came", "gone"]].iloc[: span.full] * 60 / span.bucket_s, lines)
    if limit and series["waiting"].max() > 0.3 * (limit.warning or 0):
        charts.thresholds(ax, limit)
    charts.legend(figure)
    peak = int(series["most"].to_numpy().argmax())
    shown = {"now": float(series["waiting"].iloc[-1]), "peak": float(series["most"].max())}
    minutes = len(series) * span.bucket_s // 60
    return charts.Chart(figure, say(alt, at=f"{span.at(peak):%H:%M}", minutes=minutes, **shown), spots)
