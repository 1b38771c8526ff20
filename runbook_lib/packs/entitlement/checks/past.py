"""Reconstruct what waited in the three queues from the rows' timestamps, and find when it left its ordinary range."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import history
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, HopHistory, Text, say
from runbook_lib.model.frames import table
from runbook_lib.packs.postmortem.incident import Span, span_of

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: Upstream first: between the event's creation, its publishing, its processing, and the end of its notification.
QUEUES = ("outbox", "broker", "notifications")


def queue_name(queue: str) -> Text:
    """Return the name of one of `QUEUES` as a text."""
    return say(f"postmortem.queue.{queue}")


def fine_span(span: Span, given: JudgeInput) -> Span:
    """Return the span in the steps in which its queues are measured: short ones, or as few whole minutes as fit."""
    length_s, step_s = (span.until - span.since).total_seconds(), given.number("past.step")
    if length_s > step_s * given.number("postmortem.buckets"):
        step_s = 60 * math.ceil(length_s / 60 / given.number("past.minutes"))
    return Span(span.since, span.until, int(step_s))


def window(given: JudgeInput) -> Span:
    """Return the window of a run in buckets of one minute, or of as many minutes as keep it in one query result."""
    since = (given.as_of - pd.Timedelta(minutes=given.window_minutes)).floor("min")
    return Span(since, given.as_of, 60 * max(math.ceil(given.window_minutes / given.number("postmortem.buckets")), 1))


def ask(rb: Context, db: Snapshot, span: Span, queues: Iterable[str] = QUEUES) -> Frames:
    """Query what came, left and waited in each queue. Frames: waiting.QUEUE (`QueueFlow`, piece), where readable."""
    margin = pd.Timedelta(hours=rb.number("postmortem.margin"))
    given = vars(span) | {"slow_s": rb.catalog.limits["backlog.oldest_due"].warning}
    given["few"] = _usual_maximum(rb.number("past.usual"), rb.number("past.spread"))
    found = {}
    for queue in queues:
        low, high = (span.since, span.until + margin)
        if queue == "notifications":  # these are selected by their creation, not by their end
            low, high = (span.since - margin, span.until)
        parts = query_in_pieces(rb, db, f"past/{queue}", low, high, "past.piece", **given)
        if parts is not None:
            found[f"waiting.{queue}"] = pd.concat(p.assign(piece=i) for i, p in enumerate(parts))
    return found


def _usual_maximum(usual: float, spread: float) -> float:
    """Return how many rows may wait by chance in a queue that is usually empty."""
    return history.ordinary([0.0], usual, spread)[1]


def query_in_pieces(
    rb: Context, db: Snapshot, name: str, low: pd.Timestamp, high: pd.Timestamp, piece: str, **params: Any
) -> list[pd.DataFrame] | None:
    """Run one query in pieces of as many hours as the number `piece` of slo.md; None if a piece has no full result.

    If the cost gate refuses a piece, the query is run again with half the length, at most `past.halved` times.
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
        if not rb.read_cost.queries[-1].refused:
            return None
    return None


class OldestRows(rows.Row, query="postmortem/reach"):
    """The oldest rows that were sent or published, and the time of the query."""

    now: pd.Timestamp | None = None
    ended_since: pd.Timestamp | None = None
    published_since: pd.Timestamp | None = None


class QueueFlow(rows.Row, query="past/notifications"):
    """The rows that came into a queue and left it in one bucket, and the fewest and most that waited meanwhile."""

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
    """Return the rows that waited in a queue for each bucket (`history.levels`); None if the query has no result."""
    wanted = ("piece", "bucket", "came", "gone", "least", "most")
    if not set(wanted) <= set(frames.get(f"waiting.{queue}", pd.DataFrame()).columns):
        return None
    return history.levels(table(frames, f"waiting.{queue}", *wanted), span.buckets)


class Episode(rows.Row):
    """An interval in which more rows than usual waited in a queue all the time.

    `until` is None if the queue had not returned to normal by the end of the span; `from_before` is True if the episode
    began before the span. `slow` rows waited too long; `tried` of them had failed tries. `waited` is in rows × seconds.
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


def episodes(frames: Frames, given: JudgeInput) -> list[Episode]:
    """Return every episode of every queue, the earliest first."""
    span = span_of(frames, "steps")
    found = [] if span is None else [s for queue in QUEUES for s in _find_episodes(frames, given, span, queue)]
    return sorted(found, key=lambda s: (s.since, QUEUES.index(s.queue)))


def _find_episodes(frames: Frames, given: JudgeInput, span: Span, queue: str) -> Iterable[Episode]:
    level = levels(frames, queue, span)
    if level is None:
        return
    flows = rows.each(frames[f"waiting.{queue}"], QueueFlow)
    low = {f.bucket: f for f in flows if f.low_last is not None}
    least = level["least"].iloc[: span.full]
    usual, most = _ordinary_range(level, given, span)
    for first, end in history.episodes(least, most, int(given.number("past.gap") // span.bucket_s)):
        part = [f for f in flows if first - 1 <= f.bucket < end]
        since = low[first - 1].low_last if first and first - 1 in low else span.at(first)
        back = low[end].low_first if end in low else span.at(end)
        yield Episode(
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


def _ordinary_range(level: pd.DataFrame, given: JudgeInput, span: Span) -> tuple[float, float]:
    return history.ordinary(level["least"].iloc[: span.full], given.number("past.usual"), given.number("past.spread"))


def hop_history(frames: Frames, given: JudgeInput, queue: str, allowed: float | None = None) -> HopHistory | None:
    """Return what waited in a queue over the window, at most `HopHistory.MOST` intervals; None if it was not read."""
    span = window(given)
    level = levels(frames, queue, span)
    if level is None:
        return None
    rates = level[["came", "gone"]].iloc[: span.full] * 60 / span.bucket_s
    shown = pd.concat([level["waiting"], rates], axis=1).tail(HopHistory.MOST).round(1)
    waiting, came, gone = (tuple(None if v != v else float(v) for v in shown[c]) for c in ("waiting", "came", "gone"))
    return HopHistory(span.at(int(shown.index[0])), span.bucket_s, waiting, came, gone, allowed)


def limit(level: pd.DataFrame, given: JudgeInput, span: Span) -> float:
    """Return the largest number of rows that may wait all through a bucket in ordinary operation."""
    return _ordinary_range(level, given, span)[1]


def always_waits(frames: Frames, given: JudgeInput) -> list[str]:
    """Return the queues in which rows wait nearly all the time: an incident as long as the span does not show there."""
    span = span_of(frames, "steps")
    known = {} if span is None else {q: level for q in QUEUES if (level := levels(frames, q, span)) is not None}
    nothing = _usual_maximum(given.number("past.usual"), given.number("past.spread"))
    return [queue for queue, level in known.items() if span and _ordinary_range(level, given, span)[0] > nothing]


@dataclass(frozen=True)
class PastIncident:
    """Episodes that overlap or follow each other within `past.gap`."""

    episodes: tuple[Episode, ...]

    @property
    def since(self) -> pd.Timestamp:
        """When the first queue left its ordinary range."""
        return min(s.since for s in self.episodes if s.since is not None)

    @property
    def until(self) -> pd.Timestamp | None:
        """When the last queue was back in its ordinary range; None if one is not yet."""
        ends = [s.until for s in self.episodes]
        return None if None in ends else max(e for e in ends if e is not None)

    @property
    def waited(self) -> float:
        """The time that rows waited, in rows × seconds."""
        return sum(s.waited for s in self.episodes)


def incidents(found: Iterable[Episode], gap: pd.Timedelta) -> list[PastIncident]:
    """Join the episodes (the earliest first) to incidents; episodes at most `gap` apart belong together."""
    joined: list[PastIncident] = []
    for episode in found:
        before = joined[-1] if joined else None
        if before and episode.since is not None and (before.until is None or episode.since - before.until <= gap):
            joined[-1] = PastIncident((*before.episodes, episode))
        else:
            joined.append(PastIncident((episode,)))
    return joined


def blind_spots(given: JudgeInput, retention: pd.Timedelta, statuses: bool = True) -> tuple[Text, ...]:
    """Return what the chart of a queue over the window does not show.

    Finished rows are deleted after `retention`. `statuses`: the chart counts rows of more than one status together.
    """
    gone = window(given).since < given.as_of - retention
    return (
        *((say("blind_spot.retention"),) if gone else ()),
        say("blind_spot.redrive"),
        say("blind_spot.lookback"),
        *((say("blind_spot.one_status"),) if statuses else ()),
    )
