"""What was given up, read for the steps of section 4.4: advisories, messages, records and error texts.

Of messages and payloads only names and types of fields are kept.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.checks.check import failures
from runbook_lib.checks.parts import Parts, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Reason, Text, say
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.checks import errors
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Count
from runbook_lib.packs.entitlement.wire import EntitlementEvent, WireError, decode
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.jetstream import Message
    from runbook_lib.sources.postgres import Snapshot

FIELDS = tuple(EntitlementEvent.__dataclass_fields__)
#: What a field should be; everything else is named.
_WANTED = {name: "number" if name == "version" else "string" for name in FIELDS}
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d.*(?:Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class Failed:
    """An event that the relay gave up."""

    QUESTION: ClassVar[str] = "dead_letters/outbox_failed"
    event_id: str | None = None
    failed_at: pd.Timestamp | None = None
    exact: bool = False
    last_error: str | None = None
    event_type: str | None = None
    source: str | None = None
    shape: str | None = None


@dataclass(frozen=True)
class Letter:
    """A dead letter of a delivery."""

    QUESTION: ClassVar[str] = "dead_letters/letters"
    event_id: str | None = None
    created_at: pd.Timestamp | None = None
    error_message: str | None = None
    event_type: str | None = None
    source: str | None = None
    shape: str | None = None


@dataclass(frozen=True)
class Advisory:
    """What the broker says of a message that it gave up."""

    stream_seq: int | None = None
    time: pd.Timestamp | None = None


@dataclass(frozen=True)
class Fetched:
    """What `classify` says of a message."""

    stream_seq: int | None = None
    problem: str = ""
    by_relay: bool = False
    event_type: str | None = None
    source: str | None = None
    event_id: str | None = None
    fields: str = ""


@dataclass(frozen=True)
class Recorded:
    """A stream sequence that the subscriber has recorded as given up."""

    stream_seq: int | None = None
    created_at: pd.Timestamp | None = None


def classify(message: Message) -> dict[str, Any]:
    """What is wrong with a message that was terminated; of its content only types and names of fields.

    `problem`: undecodable, empty_field, bad_event_id, bad_occurred_at, or decodes where nothing is wrong.
    """
    found: dict[str, Any] = {
        "stream_seq": message.seq,
        "stored_at": pd.Timestamp(message.time),
        "bytes": len(message.body),
        # The relay always sets both; what lacks them was published by something else.
        "by_relay": {"Nats-Msg-Id", "event_type"} <= message.headers.keys(),
        "event_type": _word(message.headers.get("event_type")),
        "source": None,
        "event_id": None,
        "fields": "",
    }
    try:
        event: EntitlementEvent = decode(message.body)
    except WireError:
        return found | {"problem": "undecodable"}
    found |= {"event_type": found["event_type"] or _word(event.event_type), "source": _word(event.source)}
    empty = [name for name in FIELDS if getattr(event, name) == ""]
    if _is_uuid(event.event_id):
        found["event_id"] = str(uuid.UUID(event.event_id))
    elif event.event_id:
        return found | {"problem": "bad_event_id", "fields": "event_id malformed"}
    if event.occurred_at and not _is_instant(event.occurred_at):
        return found | {"problem": "bad_occurred_at", "fields": "occurred_at malformed"}
    fields = ", ".join(f"{name} empty" for name in empty)
    return found | {"problem": "empty_field" if empty else "decodes", "fields": fields}


def _word(text: str | None) -> str | None:
    """A name that may be shown: a type or a source, and nothing that could be a person's."""
    return text if text and _WORD.fullmatch(text) else None


def _is_uuid(text: str) -> bool:
    try:
        return bool(uuid.UUID(text))
    except ValueError:
        return False


def _is_instant(text: str) -> bool:
    try:
        return bool(_INSTANT.fullmatch(text) and datetime.fromisoformat(text))
    except ValueError:
        return False


def advisories(rb: Context, parts: Parts) -> None:
    """The newest advisories of both kinds: `terminated` (never again) and `exhausted` (ten deliveries).

    Frames of these names (advisory_seq, stream_seq: id; time).
    """
    names, most = facts_of(rb).streams, int(rb.number("dead_letters.advisories"))
    for name, stream in (("terminated", names.terminated), ("exhausted", names.advisory)):
        with parts.part(name) as answers:
            state = rb.jetstream.stream(stream)["state"]
            first = max(state["first_seq"], state["last_seq"] - most + 1, 1)
            newest = range(first, state["last_seq"] + 1)
            found = rb.jetstream.messages(stream, newest)
            frame = pd.DataFrame(
                [(m.seq, pd.Timestamp(m.time), _sequence(m.body)) for m in found],
                columns=["advisory_seq", "time", "stream_seq"],
            )
            frame.attrs["capped"] = state["messages"] > len(found)
            answers[name] = frame


def _sequence(body: bytes) -> int | None:
    try:
        seq = json.loads(body)["stream_seq"]
    except (ValueError, KeyError, TypeError):
        return None
    return seq if isinstance(seq, int) and seq > 0 else None


def fetch(rb: Context, parts: Parts, *kinds: str) -> None:
    """The messages that the newest advisories of the window are about. Frame: messages (columns of `classify`)."""
    most = int(rb.number("dead_letters.messages"))
    with parts.part("messages") as answers:
        seqs: set[int] = set()
        for kind in kinds:
            advisories = between(answers.get(kind), "time", rb.since, rb.as_of)
            newest = advisories.sort_values("time")["stream_seq"].dropna().tail(most)
            seqs |= {int(s) for s in newest}
        found = rb.jetstream.messages(facts_of(rb).streams.events, sorted(seqs)) if seqs else []
        columns = ["stream_seq", "stored_at", "bytes", "by_relay", "event_type", "source", "event_id", "fields"]
        answers["messages"] = pd.DataFrame([classify(m) for m in found], columns=[*columns, "problem"])


def follow_up(db: Snapshot, answers: Frames) -> None:
    """Which sequences the subscriber has recorded, and which of the fetched events were processed after all.

    Frames: recorded, processed.
    """
    seqs = {int(s) for name in ("terminated", "exhausted") for s in column(answers, name, "stream_seq")}
    ids = [str(i) for i in column(answers, "messages", "event_id")]
    answers["recorded"] = db.ask("dead_letters/recorded", seqs=sorted(seqs))
    answers["processed"] = db.ask("dead_letters/processed", event_ids=ids)


def column(frames: Frames, name: str, values: str) -> Iterable[Any]:
    """The values of one column of a frame, those missing left out."""
    return table(frames, name, values)[values].dropna()


def between(frame: pd.DataFrame | None, time: str, since: pd.Timestamp, until: pd.Timestamp) -> pd.DataFrame:
    """The rows whose time lies in the window; an empty frame where there is none."""
    if frame is None or frame.empty or time not in frame:
        return pd.DataFrame(columns=["advisory_seq", "time", "stream_seq"] if frame is None else frame.columns)
    at = pd.to_datetime(frame[time], utc=True)
    return frame[(at > since) & (at <= until)]


def window(frames: Frames, name: str, given: Given) -> pd.DataFrame:
    """The advisories of the window; a broker's clock may be a little ahead of the database's."""
    since = given.as_of - pd.Timedelta(minutes=given.window_minutes)
    clocks = pd.Timedelta(seconds=given.number("dead_letters.clocks_apart"))
    found = between(frames.get(name), "time", since, given.as_of + clocks)
    return found.dropna(subset=["stream_seq"]).drop_duplicates("stream_seq")


def optional(db: Snapshot, answers: Frames, questions: Mapping[str, dict[str, Any]]) -> None:
    """Questions that may read too much: those refused leave no frame, and the judge says so."""
    for name, params in questions.items():
        found = db.try_ask(name, **params)
        if found is not None:
            answers[name.rpartition("/")[2]] = found


def letters_and_sends(db: Snapshot, answers: Frames) -> None:
    """The dead letters of deliveries, and when other notifications got through. Frames: letters, sent_per_minute."""
    optional(db, answers, {"dead_letters/letters": {"fields": list(FIELDS)}, "notifications/sent_per_minute": {}})


def lacks(shape: object) -> str:
    """What a payload's fields lack, from "name:type name:type": absent, empty, or of another type.

    >>> lacks("event_id:string version:string user_id:absent")
    'version string, user_id absent'
    """
    pairs = [field.partition(":")[::2] for field in str(shape).split()] if isinstance(shape, str) else []
    return ", ".join(f"{name} {kind}" for name, kind in pairs if kind != _WANTED.get(name))


def letters(frames: Frames) -> pd.DataFrame:
    """The dead letters of deliveries, or a sample of them."""
    columns = ("event_id", "created_at", "error_message", "user_id", "event_type", "source", "shape", "total")
    return table(frames, "letters", *columns)


def clusters(frames: Frames, given: Given) -> list[errors.Cluster]:
    """The dead letters of deliveries by error text."""
    return errors.clusters(letters(frames), given, frames.get("sent_per_minute"))


def age(last: Any, given: Given) -> float | None:
    """Seconds from a moment to that of the run."""
    return seconds_between(last, given.as_of)


def since_last(last: Any, given: Given) -> float:
    """The same, where nothing is for ever ago."""
    seconds = age(last, given)
    return math.inf if seconds is None else seconds


def quiet_s(given: Given) -> float:
    """How long nothing may have failed before a cause is taken as over."""
    return given.limits["dlq.quiet"].critical or 0.0


# What the steps say of their own reading -----------------------------------------------------------------------


def unanswered(frames: Frames, *parts: str) -> list[SourceError]:
    """Parts that failed although their source is declared: what they would have said is missing, not zero."""
    failed = failures(frames)
    return [failed[p] for p in parts if p in failed and failed[p].reason is not Reason.NOT_CONFIGURED]


def reading_notes(frames: Frames, *questions: str) -> tuple[Text, ...]:
    """What was read in part, was refused, did not answer, or is older than the window."""
    notes = []
    for name in ("outbox_failed", "letters"):
        frame = table(frames, name, "total")
        if errors.weight_of(frame) > 1:
            notes.append(say("letters.sampled", shown=len(frame), of=float(frame["total"].max())))
    if not all(f.exact for f in rows.each(frames.get("outbox_failed"), Failed)):
        notes.append(say("letters.no_failed_at"))
    notes += [say("letters.refused", question=name) for name in questions if name not in frames]
    sources = {e.source: e for e in failures(frames).values()}
    notes += [say("letters.without", source=e.source, why=e.detail) for e in sources.values()]
    older = sum(store.n or 0 for store in rows.each(frames.get("older"), Count))
    if older:
        notes.append(say("letters.older", n=older))
    return tuple(notes)
