"""Find a stream's messages by an id that they carry; the broker itself indexes only sequences and times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from runbook_lib.sources.jetstream import JetStream, Message

#: The number of messages that are read over one connection.
FETCH_SIZE = 250
#: The largest number of spans that are searched; the broker is asked for the sequences at both ends of each.
SPANS = 16
Span = tuple[pd.Timestamp, pd.Timestamp]


class MessagePosition(NamedTuple):
    """The position of a message: its sequence, its time of storage, and its subject."""

    seq: int
    time: pd.Timestamp
    subject: str


@dataclass
class FoundMessages:
    """The newest message of each id; `complete` has the ids whose spans were read completely."""

    messages: dict[str, MessagePosition] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)


def find_messages(
    jetstream: JetStream,
    stream: str,
    spans: Mapping[str, Sequence[Span]],
    most: int,
    ids_of: Callable[[Message], set[str]],
) -> FoundMessages:
    """Find the messages with these ids within their spans of time, beginning with the first span of each.

    `ids_of` returns the ids that a message carries. Reads at most `most` messages. Raises SourceError.
    """
    found, left = FoundMessages(), most
    for nth in range(max((len(s) for s in spans.values()), default=0)):
        missing = {e: s[nth] for e, s in spans.items() if e not in found.messages and nth < len(s)}
        merged = merge_spans(missing.values())
        bounds = jetstream.positions(stream, [t.floor("us").to_pydatetime() for s in merged for t in s])
        for (since, until), first, end in zip(merged, bounds[::2], bounds[1::2], strict=True):
            for message in read_messages(jetstream, stream, range(first, min(end, first + left))):
                for each in ids_of(message):
                    found.messages[each] = MessagePosition(message.seq, pd.Timestamp(message.time), message.subject)
            if end - first <= left:
                inside = {e for e, (a, b) in missing.items() if since <= a and b <= until}
                found.complete |= {e for e in inside if nth == len(spans[e]) - 1}
            left -= min(end - first, left)
    return found


def read_messages(jetstream: JetStream, stream: str, seqs: Sequence[int]) -> Iterator[Message]:
    """Yield the stored messages at these sequences; those that are gone are left out. Raises SourceError."""
    for first in range(0, len(seqs), FETCH_SIZE):
        yield from jetstream.messages(stream, seqs[first : first + FETCH_SIZE])


def advised_sequence(message: Message) -> int | None:
    """Return the sequence that an advisory of the broker names; None if it names none."""
    try:
        seq = json.loads(message.body)["stream_seq"]
    except (ValueError, KeyError, TypeError):
        return None
    return seq if isinstance(seq, int) and seq > 0 else None


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Merge overlapping spans, then the nearest ones until there are at most `SPANS`."""
    merged: list[Span] = []
    for since, until in sorted(spans):
        if merged and since <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], until))
        else:
            merged.append((since, until))
    while len(merged) > SPANS:
        nearest = min(range(1, len(merged)), key=lambda n: merged[n][0] - merged[n - 1][1])
        merged[nearest - 1 : nearest + 1] = [(merged[nearest - 1][0], merged[nearest][1])]
    return merged
