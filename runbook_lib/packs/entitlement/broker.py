"""The broker, asked by hand: `rb.nats`. States and messages, and of their content only what names nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.actions.stores import advised
from runbook_lib.packs.entitlement.checks.given_up import classify
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources import SourceError
from runbook_lib.usage import UsageError, did_you_mean

if TYPE_CHECKING:
    from runbook_lib.session import Session
    from runbook_lib.sources.jetstream import Message

#: What is told of the broker's answers, by its own names; those of `_TIMES` and `_SPANS` (in ns) are made readable.
_STREAM = (
    "config.subjects state.messages state.bytes state.first_seq state.first_ts state.last_seq state.last_ts"
    " state.num_deleted state.consumer_count config.retention config.max_msgs config.max_bytes config.max_age"
    " config.duplicate_window created ts"
)
_CONSUMER = (
    "stream_name num_pending num_ack_pending num_redelivered delivered.stream_seq delivered.last_active"
    " ack_floor.stream_seq ack_floor.last_active push_bound paused config.deliver_subject config.filter_subject"
    " config.ack_wait config.max_deliver config.max_ack_pending created ts"
)
_TIMES = ("first_ts", "last_ts", "last_active", "created", "ts")
_SPANS = ("max_age", "duplicate_window", "ack_wait")
#: What may stand in a subject of the broker's API; anything else would ask something else.
_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")
#: Headers that are told where they look like this. The masker knows `_MASKED`, and any other may be anybody.
_HEADERS = {
    "Nats-Msg-Id": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|redrive-\d+",
    "event_type": f"{wire.GRANTED}|{wire.REVOKED}|{wire.MATCH_FOUND}",
    "occurred_at": r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)",
    "trace_id": r"[0-9a-f]{32}",
}
_MASKED = ("aggregate_key", "user_id")


class Nats:
    """The broker of a session's target, read-only and in the run's read cost; people are tokens.

    It tells of now, whatever moment the run looks at. UsageError, one line, is raised for whatever goes wrong.
    """

    def __init__(self, rb: Session) -> None:
        self._rb, self._masker, self._names = rb.context, rb.context.masker, facts_of(rb.context).streams

    def stream(self, name: str | None = None) -> pd.Series:
        """What a stream holds and how it is configured, by default that of the events: counts, bytes, UTC, s (`_s`)."""
        name = _valid(name or self._names.events)
        with self._plainly(name):
            return self._series(name, _told(self._rb.jetstream.stream(name), _STREAM))

    def consumer(self, name: str | None = None, stream: str | None = None) -> pd.Series:
        """What waits at a durable and who is bound to it, by default the subscriber: counts, sequences, UTC, s (`_s`).

        Of the streams that the target's settings know, the stream alone means its durable, and the durable its stream.
        """
        known = self._names.durables
        stream = _valid(stream or next((s for s, durable in known.items() if durable == name), self._names.events))
        if not (name or stream in known):
            raise UsageError(f"name a consumer of {stream}: the target's settings know none")
        name = _valid(name or known[stream])
        with self._plainly(stream, name):
            info = self._rb.jetstream.consumer(stream, name)
            # The broker leaves out what is not so.
            return self._series(name, _told({"push_bound": False, "paused": False} | info, _CONSUMER))

    def message(self, seq: int, stream: str | None = None) -> pd.Series:
        """A stored message: its sequence, time (UTC), subject, bytes and headers.

        Of an event's body the id, the user's token and what is wrong with it (`problem`, `fields`); of an advisory the
        sequence that it is about. No more of a body is told.
        """
        name, number = _valid(stream or self._names.events), _sequence(seq)
        with self._plainly(name):
            info = self._rb.jetstream.stream(name)
            found = self._rb.jetstream.message(name, number)
        if found is None:
            held = info["state"]
            which = f"it holds {held['messages']:,}, of sequence {held['first_seq']} to {held['last_seq']}"
            raise UsageError(f"{name} has no message {number}: {which}")
        # Where a stream takes many subjects, one may name anybody.
        known = found.subject in (info["config"].get("subjects") or ())
        told: dict[str, Any] = {"seq": found.seq, "time": pd.Timestamp(found.time), "bytes": len(found.body)}
        told["subject"] = found.subject if known else self._masker.person(found.subject)
        return self._series(str(number), told | self._headers(found.headers) | self._body(found, name))

    def _headers(self, headers: Mapping[str, str]) -> dict[str, Any]:
        def clear(name: str, value: str) -> bool:
            return name in _MASKED or bool(re.fullmatch(_HEADERS.get(name, ""), value))

        told = {name: v if clear(name, v) else self._masker.person(v) for name, v in headers.items()}
        masked = self._masker.frame(pd.DataFrame([told]))
        return {f"headers.{name}": masked[name].iloc[0] for name in told}

    def _body(self, message: Message, stream: str) -> dict[str, Any]:
        if stream in (self._names.advisory, self._names.terminated):
            return {"about_seq": advised(message)}
        if stream != self._names.events:
            return {}
        told = {name: value for name, value in classify(message).items() if name in ("event_id", "problem", "fields")}
        with suppress(wire.WireError):
            event: wire.EntitlementEvent = wire.decode(message.body)
            told["user_id"] = self._masker.person(event.user_id)
        return told

    def _series(self, name: str, told: Mapping[str, Any]) -> pd.Series:
        scrubbed = {key: self._masker.scrub(v) if isinstance(v, str) else v for key, v in told.items()}
        return pd.Series(scrubbed, name=name, dtype=object)

    @contextmanager
    def _plainly(self, stream: str, consumer: str = "") -> Iterator[None]:
        """What a source refuses is one line, with what may have been meant where a name is not there."""
        try:
            yield
        except SourceError as e:
            line = f"{e.source}: {e.detail}"
            with suppress(SourceError):
                if e.code == "stream_not_found":
                    line += f": {did_you_mean(stream, self._rb.jetstream.names())}"
                elif e.code == "consumer_not_found":
                    line += f": {did_you_mean(consumer, self._rb.jetstream.names(stream))}"
            raise UsageError(self._masker.scrub(line)) from None


def _told(info: Mapping[str, Any], fields: str) -> dict[str, Any]:
    """These fields of an answer; None for what the server does not say, and for what never was (the year 1)."""
    told: dict[str, Any] = {}
    for field in fields.split():
        value: Any = info
        for name in field.split("."):
            value = (value or {}).get(name)
        if name in _TIMES:
            told[field] = pd.Timestamp(value) if value and not value.startswith("0001-") else None
        elif name in _SPANS:
            told[f"{field}_s"] = None if value is None else value / 1e9
        else:
            told[field] = " ".join(value) if isinstance(value, list) else value
    return told


def _valid(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError("the name of a stream or consumer is a text without spaces, dots, slashes and wildcards")
    return name


def _sequence(seq: Any) -> int:
    with suppress(TypeError, ValueError, OverflowError):
        if (number := int(seq)) == seq and number > 0:  # a frame's 7.0 is 7
            return number
    raise UsageError("seq is the sequence of a message in its stream: a whole number from 1 on")
