"""Read a consumer and its stream: what it holds, how far it is, and which limit of the stream deletes or refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from runbook_lib.model import rows
from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row
from runbook_lib.packs.jetstream import quorum
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.jetstream import Consumer, Message

T = TypeVar("T")


@dataclass(frozen=True)
class ConsumerPosition:
    """The position of a consumer at one moment, such as before tables are read.

    Every message up to the sequence `delivered` was delivered at least once; every message up to `answered` was
    acknowledged or given up. `unanswered` counts the delivered messages without acknowledgement. `there` is False if
    the broker has no such consumer. `subjects` are the subjects of its filter; without any it takes all subjects.
    `held_s` is the age of the oldest message that it holds in seconds, 0 if it holds none; None if it was not read.
    """

    delivered: int = 0
    answered: int = 0
    unanswered: int = 0
    there: bool = True
    subjects: tuple[str, ...] = ()
    held_s: float | None = None

    @classmethod
    def of(cls, consumer: Consumer, held_s: float | None = None) -> ConsumerPosition:
        """Return the position of a consumer as the broker reports it now."""
        delivered, answered, unanswered = consumer.delivered_seq, consumer.ack_floor_seq, consumer.num_ack_pending
        return cls(delivered, answered, unanswered, subjects=consumer.subjects, held_s=held_s)

    def takes(self, subject: str) -> bool:
        """Return whether the consumer's filter includes this subject; it never delivers the others."""
        return not self.subjects or any(matches(subject, wanted) for wanted in self.subjects)


def matches(subject: str, wanted: str) -> bool:
    """Return whether a subject matches a pattern: `*` stands for one token, `>` for one or more tokens at the end.

    >>> matches("a.b", "a.*"), matches("a.b.c", "a.>"), matches("a", "a.>"), matches("a.b", "a")
    (True, True, False, False)
    """
    tokens, patterns = subject.split("."), wanted.split(".")
    if patterns[-1] == ">":
        patterns, tokens = [*patterns[:-1], "*"], tokens[: len(patterns)]
    return len(tokens) == len(patterns) and all(p in ("*", t) for t, p in zip(tokens, patterns, strict=True))


def count_held(pending: float | None, unacknowledged: float | None) -> float | None:
    """Return the number of messages that the consumer holds, delivered or not; None if one of the counts is missing."""
    return None if pending is None or unacknowledged is None else pending + unacknowledged


class ConsumerRow(rows.Row):
    """The consumer's state at the broker: numbers of messages, and whether a client is bound; None if unknown."""

    bound: bool | None = None
    num_pending: float | None = None
    num_ack_pending: float | None = None
    max_ack_pending: float | None = None
    num_redelivered: float | None = None
    ack_floor_seq: float | None = None
    deliver_subject: str = ""
    paused: bool = False
    full: bool = False
    limit: str = ""
    kept_s: float | None = None
    first_message: pd.Timestamp | None = None

    @property
    def lag(self) -> float | None:
        """Return its unacknowledged messages, delivered or not; None if the server does not report them."""
        return count_held(self.num_pending, self.num_ack_pending)

    @property
    def stalled(self) -> bool:
        """Return whether it delivers nothing more until a message is acknowledged."""
        if not self.max_ack_pending or self.num_ack_pending is None:
            return False
        return 0 < self.max_ack_pending <= self.num_ack_pending and bool(self.num_pending)


def read_oldest_held(rb: Context, stream: str, consumer: Consumer) -> tuple[Message | None, float | None]:
    """Return the oldest message that the consumer holds and its age in seconds; (None, 0) if it holds none.

    Both are None if the stream no longer has the message. Raises SourceError.
    """
    if not (consumer.num_pending or consumer.num_ack_pending):
        return None, 0.0
    first = consumer.ack_floor_seq + 1
    found = [rb.source("jetstream").message(stream, first, subject) for subject in consumer.subjects or (">",)]
    message = min((m for m in found if m), key=lambda m: m.seq, default=None)
    if message is None:
        return None, None
    now = pd.Timestamp(ts) if (ts := consumer.info.get("ts")) else rb.now()
    return message, max((now - pd.Timestamp(message.time)).total_seconds(), 0.0)


def none_if_missing(ask: Callable[[], T]) -> T | None:
    """Return the broker's reply, or None if it reports that the stream or consumer does not exist."""
    try:
        return ask()
    except SourceError as e:
        if e.code in ("stream_not_found", "consumer_not_found"):
            return None
        raise


def read_pairs(rb: Context, durables: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any], str, Consumer | None]]:
    """Yield each stream with its STREAM.INFO ({} if missing), and its durable consumer (None if missing)."""
    broker = rb.source("jetstream")
    for stream, durable in durables.items():
        info = none_if_missing(partial(broker.stream, stream))
        yield stream, info or {}, durable, none_if_missing(partial(broker.consumer, stream, durable)) if info else None


def read_consumer(rb: Context, stream: str, durable: str) -> tuple[Frames, ConsumerPosition]:
    """Return the frames of a consumer and its stream, and its position. Raises SourceError.

    Frames: consumer (ts: time, bound: flag, push: flag, num_waiting: number, num_pending, num_ack_pending,
    max_ack_pending, num_redelivered: messages, delivered_seq, ack_floor_seq, last_seq: number, last_message: time,
    stream_created: time, deliver_subject: text, paused, full: flag; limit: text, kept_s: s if the stream has a limit;
    first_message: time if it has deleted earlier ones); replicas (fields of `quorum.Member`) in a cluster; oldest (seq:
    number, stored: time, age_s: s) if messages wait.
    """
    broker = rb.source("jetstream")
    info, consumer = broker.stream(stream), broker.consumer(stream, durable)
    config, state = consumer.config, info["state"]
    seen = {
        "ts": consumer.info.get("ts"),
        "bound": consumer.bound,
        "push": bool(config.get("deliver_subject")),
        "num_waiting": consumer.info.get("num_waiting"),
        "num_pending": consumer.num_pending,
        "num_ack_pending": consumer.num_ack_pending,
        "max_ack_pending": config.get("max_ack_pending"),
        "num_redelivered": consumer.num_redelivered,
        "delivered_seq": consumer.delivered_seq,
        "ack_floor_seq": consumer.ack_floor_seq,
        "last_seq": state.get("last_seq"),
        "last_message": state.get("last_ts"),
        "stream_created": info.get("created"),
        "deliver_subject": config.get("deliver_subject"),
        "paused": bool(consumer.info.get("paused")),
    }
    now = pd.Timestamp(seen["ts"]) if seen["ts"] else rb.now()
    if state["first_seq"] > 1:
        seen["first_message"] = state["first_ts"] if state["messages"] else now
    seen |= {"full": False, **_read_limit(info["config"], state, now)}
    members = [*quorum.members(stream, info), *quorum.members(durable, consumer.info)]
    frames = {"consumer": row(**seen), "replicas": rows.frame(members, quorum.Member)}
    message, held_s = read_oldest_held(rb, stream, consumer)
    if message is not None:
        frames["oldest"] = row(seq=message.seq, stored=message.time, age_s=held_s)
    return frames, ConsumerPosition.of(consumer, held_s)


def _read_limit(config: dict[str, Any], state: dict[str, Any], now: pd.Timestamp) -> dict[str, Any]:
    """Return the limit that a stream has, as "name value": it is full, or it keeps a message for `kept_s` seconds."""
    n = state["messages"]
    # One more message, of mean size, would exceed it.
    used = {"max_msgs": n, "max_bytes": state["bytes"]}
    reached = [f"{name} {config[name]}" for name, of in used.items() if n and 0 < config.get(name, -1) < of + of / n]
    if reached and config.get("discard") == "new":
        return {"limit": reached[0], "full": True}
    if age_ns := config.get("max_age"):
        return {"limit": f"max_age {age_ns / 1e9:g} s", "kept_s": age_ns / 1e9}
    if not reached:
        return {}
    return {"limit": reached[0], "kept_s": (now - pd.Timestamp(state["first_ts"])).total_seconds()}


def handled_between(first: ConsumerRow, later: ConsumerRow | None) -> bool:
    """Return whether a message was acknowledged between two samples, or the lag became 0."""
    if later is None:
        return False
    before, after = first.ack_floor_seq, later.ack_floor_seq
    return later.lag == 0 or (before is not None and after is not None and after > before)


def option_without_limit(limit: str) -> str:
    """Return the option of `nats stream edit` that takes the stream's limit away."""
    name = limit.partition(" ")[0] or "max_msgs"
    return f"--{name.replace('_', '-')}={0 if name == 'max_age' else -1}"
