"""Compare what a stream holds with what its subscriber has registered, for each stream of a system.

The newest messages are compared by their ids: a consumer that is bound and idle may still have passed messages by, and
one that does not exist reports no lag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import seconds_between
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.packs.jetstream.consumer import count_held, read_oldest_held, read_pairs
from runbook_lib.packs.jetstream.search import read_messages

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.jetstream import Consumer, Message


@dataclass(frozen=True)
class Ledger:
    """How the messages of a stream are found in the database.

    `id_of` returns the id of a message, None if the message cannot be decoded. `find` returns which of these ids the
    subscriber has registered, as text. `records` is whether the stream only records what happened to other streams'
    messages.
    """

    durable: str
    id_of: Callable[[Message], object | None]
    find: Callable[[Context, list[Any]], set[str]]
    records: bool = False


class StreamBalance(rows.Row):
    """A stream, its durable consumer, and its newest messages: how many were compared, how many are not registered.

    `since` is when the oldest message that is not registered was stored. None is unknown.
    """

    stream: str = ""
    durable: str = ""
    records: bool = False
    there: bool = False
    consumer_there: bool = False
    bound: bool | None = None
    paused: bool = False
    lag: float | None = None
    oldest_s: float | None = None
    compared: int = 0
    unregistered: int = 0
    since: pd.Timestamp | None = None

    def state(self, given: JudgeInput) -> str:
        """Return the name of the observation of what is wrong with it, which is its text's, too; "" if nothing is."""
        if not self.there:
            return "balance.stream_missing"
        if not self.consumer_there:
            return "balance.consumer_missing"
        if self.paused:
            return "balance.paused"
        if self.bound is False:
            return "balance.unbound"
        if self.lag and (self.oldest_s is None or self.oldest_s >= given.number("balance.settled")):
            return "balance.behind"
        return "balance.lost" if self.unregistered and not self.lag else ""


@dataclass(frozen=True)
class StreamProblem:
    """What is wrong with a stream: the name of its observation, and its text.

    `late` is the number of messages that are not registered, `records` whether the stream only records.
    """

    observation: str
    text: Text
    late: int
    records: bool


def find_problems(frames: Frames, given: JudgeInput, name: str) -> tuple[StreamProblem, ...]:
    """Return what is wrong with the streams of the frame of this name."""

    def problem(of: StreamBalance, state: str) -> StreamProblem:
        facts = {"n": of.unregistered or None, "ago": seconds_between(of.since, given.as_of)}
        text = say(state, stream=of.stream, durable=of.durable, **facts)
        return StreamProblem(state, text, of.unregistered, of.records)

    streams = rows.each(frames.get(name), StreamBalance)
    return tuple(problem(of, state) for of in streams if (state := of.state(given)))


def read(rb: Context, ledgers: dict[str, Ledger]) -> pd.DataFrame:
    """Return the balance of each stream (fields of `StreamBalance`). Raises SourceError."""
    found = []
    for stream, info, durable, consumer in read_pairs(rb, {name: ledger.durable for name, ledger in ledgers.items()}):
        state = info.get("state", {})
        found.append(
            StreamBalance(
                stream=stream,
                durable=durable,
                records=ledgers[stream].records,
                there=bool(info),
                **(_read_consumer(rb, stream, consumer) if consumer else {}),
                **(_compare(rb, stream, state, ledgers[stream]) if state.get("messages") else {}),
            )
        )
    return rows.frame(found, StreamBalance)


def _read_consumer(rb: Context, stream: str, consumer: Consumer) -> dict[str, Any]:
    pushes = bool(consumer.config.get("deliver_subject"))
    return {
        "consumer_there": True,
        "bound": consumer.bound if pushes else None,
        "paused": bool(consumer.info.get("paused")),
        "lag": count_held(consumer.num_pending, consumer.num_ack_pending),
        "oldest_s": read_oldest_held(rb, stream, consumer)[1],
    }


def _compare(rb: Context, stream: str, state: dict[str, Any], ledger: Ledger) -> dict[str, Any]:
    """Compare the newest messages of a stream with the ledger; many more of them if one is not registered."""
    for most in ("balance.newest", "balance.most"):
        newest = range(max(state["first_seq"], state["last_seq"] + 1 - int(rb.number(most))), state["last_seq"] + 1)
        compared, missing = _find_unregistered(rb, stream, newest, ledger)
        if not missing:
            break
    since = min((pd.Timestamp(message.time) for message in missing), default=None)
    return {"compared": compared, "unregistered": len(missing), "since": since}


def _find_unregistered(rb: Context, stream: str, seqs: Sequence[int], ledger: Ledger) -> tuple[int, list[Message]]:
    """Return how many of these messages were compared, and those that are not registered.

    A younger one may still be on its way, and of an older one the registration may be deleted.
    """
    until = rb.as_of - pd.Timedelta(seconds=rb.number("balance.settled"))
    since = rb.as_of - pd.Timedelta(hours=rb.number("balance.hours"))
    settled = [m for m in read_messages(rb.source("jetstream"), stream, seqs) if since < pd.Timestamp(m.time) < until]
    ids = {message.seq: found for message in settled if (found := ledger.id_of(message)) is not None}
    registered = ledger.find(rb, [*dict.fromkeys(ids.values())]) if ids else set[str]()
    return len(ids), [m for m in settled if m.seq in ids and str(ids[m.seq]) not in registered]
