"""Query the broker from a notebook. User ids are masked, and bodies are not shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.model.usage import UsageError, did_you_mean
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.notebook.session import Session
    from runbook_lib.sources.jetstream import Message

#: The fields that are shown, by the broker's names. Those of `_TIMES` become UTC times, those of `_SPANS` (ns) seconds.
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
#: Names that may stand in a subject of the broker's API; another name could address another request.
_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")


class Nats:
    """The broker of a session's target, read-only and counted in the run's read cost. User ids are masked.

    It shows the present, even in a run of a past time. Every failure raises UsageError with one line.
    """

    def __init__(self, rb: Session, durables: Mapping[str, str], headers: Mapping[str, str]) -> None:
        """Take the durable of each stream, the default first, and the headers that are shown.

        A header is shown if its value matches the pattern in `headers`; other values are replaced by a token.
        """
        self._rb, self._masker, self._durables = rb.context, rb.context.masker, durables
        self._default, self._headers = next(iter(durables)), headers

    def describe(self, message: Message, stream: str) -> Mapping[str, Any]:
        """Return what is shown of the body of a message of a stream: nothing, unless a system knows it."""
        return {}

    def stream(self, name: str | None = None) -> pd.Series:
        """Return the state and configuration of a stream, by default the first: counts, bytes, UTC, s (`_s`)."""
        name = _check_name(name or self._default)
        with self._as_usage_error(name):
            return self._build_series(name, _select_fields(self._rb.source("jetstream").stream(name), _STREAM))

    def consumer(self, name: str | None = None, stream: str | None = None) -> pd.Series:
        """Return the state of a durable consumer, by default of the first stream: counts, sequences, UTC, s (`_s`).

        For a stream of the target's settings, either the stream or its durable is enough.
        """
        known = self._durables
        stream = _check_name(stream or next((s for s, durable in known.items() if durable == name), self._default))
        if not (name or stream in known):
            raise UsageError(f"name a consumer of {stream}: the target's settings know none")
        name = _check_name(name or known[stream])
        with self._as_usage_error(stream, name):
            info = self._rb.source("jetstream").consumer(stream, name).info
            # The broker leaves out fields that are false.
            return self._build_series(name, _select_fields({"push_bound": False, "paused": False} | info, _CONSUMER))

    def message(self, seq: int, stream: str | None = None) -> pd.Series:
        """Return a stored message: its sequence, time (UTC), subject, bytes, headers, and what the system tells of it.

        The rest of a body is not shown.
        """
        name, number = _check_name(stream or self._default), _check_sequence(seq)
        with self._as_usage_error(name):
            info = self._rb.source("jetstream").stream(name)
            found = self._rb.source("jetstream").message(name, number)
        if found is None:
            held = info["state"]
            which = f"it holds {held['messages']:,}, of sequence {held['first_seq']} to {held['last_seq']}"
            raise UsageError(f"{name} has no message {number}: {which}")
        # The subject of a stream with a wildcard may contain a user id.
        known = found.subject in (info["config"].get("subjects") or ())
        shown: dict[str, Any] = {"seq": found.seq, "time": pd.Timestamp(found.time), "bytes": len(found.body)}
        shown["subject"] = found.subject if known else self._masker.person(found.subject)
        return self._build_series(
            str(number), shown | self._mask_headers(found.headers) | {**self.describe(found, name)}
        )

    def _mask_headers(self, headers: Mapping[str, str]) -> dict[str, Any]:
        def clear(name: str, value: str) -> bool:
            return bool(re.fullmatch(self._headers.get(name, ""), value))

        shown = {name: v if clear(name, v) else self._masker.person(v) for name, v in headers.items()}
        masked = self._masker.frame(pd.DataFrame([shown]))
        return {f"headers.{name}": masked[name].iloc[0] for name in shown}

    def _build_series(self, name: str, shown: Mapping[str, Any]) -> pd.Series:
        scrubbed = {key: self._masker.scrub(v) if isinstance(v, str) else v for key, v in shown.items()}
        return pd.Series(scrubbed, name=name, dtype=object)

    @contextmanager
    def _as_usage_error(self, stream: str, consumer: str = "") -> Iterator[None]:
        """Turn a SourceError into a UsageError of one line, with similar names for a name that does not exist."""
        try:
            yield
        except SourceError as e:
            line = f"{e.source}: {e.detail}"
            with suppress(SourceError):
                if e.code == "stream_not_found":
                    line += f": {did_you_mean(stream, self._rb.source('jetstream').names())}"
                elif e.code == "consumer_not_found":
                    line += f": {did_you_mean(consumer, self._rb.source('jetstream').names(stream))}"
            raise UsageError(self._masker.scrub(line)) from None


def _select_fields(info: Mapping[str, Any], fields: str) -> dict[str, Any]:
    """Return these fields of a reply; None for a missing field and for a time that never was (the year 1)."""
    selected: dict[str, Any] = {}
    for field in fields.split():
        value: Any = info
        for name in field.split("."):
            value = (value or {}).get(name)
        if name in _TIMES:
            selected[field] = pd.Timestamp(value) if value and not value.startswith("0001-") else None
        elif name in _SPANS:
            selected[f"{field}_s"] = None if value is None else value / 1e9
        else:
            selected[field] = " ".join(value) if isinstance(value, list) else value
    return selected


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError("the name of a stream or consumer is a text without spaces, dots, slashes and wildcards")
    return name


def _check_sequence(seq: Any) -> int:
    with suppress(TypeError, ValueError, OverflowError):
        if (number := int(seq)) == seq and number > 0:  # a frame's 7.0 is 7
            return number
    raise UsageError("seq is the sequence of a message in its stream: a whole number from 1 on")
