"""Read given-up events for section 4.4: advisories, messages, dead-letter rows and error texts.

Of messages and payloads, only the names and types of fields are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book import patterns
from runbook_lib.checks.check import failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.checks import errors
from runbook_lib.packs.entitlement.checks.series import ask_per_minute
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Count, parse_uuid
from runbook_lib.packs.entitlement.wire import EntitlementEvent, WireError, decode
from runbook_lib.packs.jetstream.search import advised_sequence

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.jetstream import Message
    from runbook_lib.sources.postgres import Snapshot

#: The frames of the broker's advisories: messages not delivered again, and those whose deliveries are used up.
ADVISORIES = ("terminated", "exhausted")
FIELDS = tuple(EntitlementEvent.__dataclass_fields__)
#: The type that each field must have.
_FIELD_TYPES = {name: "number" if name == "version" else "string" for name in FIELDS}
_EVENT_FIELD = patterns.source(PACK, "event field")


class FailedEvent(rows.Row, query="dead_letters/outbox_failed"):
    """An outbox event in status FAILED."""

    event_id: str | None = None
    failed_at: pd.Timestamp | None = None
    exact: bool = False
    last_error: str | None = None
    event_type: str | None = None
    source: str | None = None
    shape: str | None = None


class StoreBucket(rows.Row, query="dead_letters/per_bucket"):
    """The new rows of a store in one bucket of the window; `ago` is the bucket's number, counted back from the end."""

    store: str = ""
    ago: int = -1
    n: float = 0.0
    last: pd.Timestamp | None = None
    exact: bool = False


class DeliveryLetter(rows.Row, query="dead_letters/letters"):
    """A dead letter of a notification."""

    event_id: str | None = None
    created_at: pd.Timestamp | None = None
    error_message: str | None = None
    event_type: str | None = None
    source: str | None = None
    shape: str | None = None


class Advisory(rows.Row):
    """The broker's advisory on a message that it no longer delivers."""

    stream_seq: int | None = None
    time: pd.Timestamp | None = None


class FetchedMessage(rows.Row):
    """The result of `classify` for a message."""

    stream_seq: int | None = None
    problem: str = ""
    by_relay: bool = False
    event_type: str | None = None
    source: str | None = None
    event_id: str | None = None
    fields: str = ""


class RecordedMessage(rows.Row):
    """A stream sequence that the subscriber has recorded as a dead letter."""

    stream_seq: int | None = None
    created_at: pd.Timestamp | None = None


def classify(message: Message) -> dict[str, Any]:
    """Return the error in a terminated message, with the names and types of its fields only.

    `problem`: undecodable, empty_field, bad_event_id, bad_occurred_at, or decodes if there is no error.
    """
    found: dict[str, Any] = {
        "stream_seq": message.seq,
        "stored_at": pd.Timestamp(message.time),
        "bytes": len(message.body),
        # The relay always sets both headers; another publisher may not.
        "by_relay": {"Nats-Msg-Id", "event_type"} <= message.headers.keys(),
        "event_type": _safe_name(message.headers.get("event_type")),
        "source": None,
        "event_id": None,
        "fields": "",
    }
    try:
        event: EntitlementEvent = decode(message.body)
    except WireError:
        return found | {"problem": "undecodable"}
    found |= {"event_type": found["event_type"] or _safe_name(event.event_type), "source": _safe_name(event.source)}
    empty = [name for name in FIELDS if getattr(event, name) == ""]
    found["event_id"] = parse_uuid(event.event_id)
    if event.event_id and not found["event_id"]:
        return found | {"problem": "bad_event_id", "fields": "event_id malformed"}
    if event.occurred_at and not _is_instant(event.occurred_at):
        return found | {"problem": "bad_occurred_at", "fields": "occurred_at malformed"}
    fields = ", ".join(f"{name} empty" for name in empty)
    return found | {"problem": "empty_field" if empty else "decodes", "fields": fields}


def _safe_name(text: str | None) -> str | None:
    """Return the text if it is a plain identifier, such as a type or source; None if it may be personal data."""
    return text if text and _EVENT_FIELD.says("name", text) else None


def _is_instant(text: str) -> bool:
    try:
        return bool(_EVENT_FIELD.says("instant", text) and datetime.fromisoformat(text))
    except ValueError:
        return False


def collect_advisories(rb: Context, parts: FrameCollector) -> None:
    """Collect the newest advisories: `terminated` (not delivered again) and `exhausted` (ten deliveries used up).

    Frames of these names (advisory_seq, stream_seq: id; time).
    """
    names, most = facts_of(rb).streams, int(rb.number("dead_letters.advisories"))
    for name, stream in (("terminated", names.terminated), ("exhausted", names.advisory)):
        with parts.part(name) as answers:
            state = rb.source("jetstream").stream(stream)["state"]
            first = max(state["first_seq"], state["last_seq"] - most + 1, 1)
            newest = range(first, state["last_seq"] + 1)
            found = rb.source("jetstream").messages(stream, newest)
            frame = pd.DataFrame(
                [(m.seq, pd.Timestamp(m.time), advised_sequence(m)) for m in found],
                columns=["advisory_seq", "time", "stream_seq"],
            )
            frame.attrs["capped"] = state["messages"] > len(found)
            answers[name] = frame


def fetch_messages(rb: Context, parts: FrameCollector, *kinds: str) -> None:
    """Collect the messages of the newest advisories of the window. Frame: messages (columns of `classify`)."""
    most = int(rb.number("dead_letters.messages"))
    with parts.part("messages") as answers:
        seqs: set[int] = set()
        until = rb.as_of + pd.Timedelta(seconds=rb.number("dead_letters.clocks_apart"))  # as `advisories_in_window`
        for kind in kinds:
            recent = rows_between(answers.get(kind), rb.since, until)
            newest = recent.sort_values("time")["stream_seq"].dropna().tail(most)
            seqs |= {int(s) for s in newest}
        found = rb.source("jetstream").messages(facts_of(rb).streams.events, sorted(seqs)) if seqs else []
        columns = ["stream_seq", "stored_at", "bytes", "by_relay", "event_type", "source", "event_id", "fields"]
        answers["messages"] = pd.DataFrame([classify(m) for m in found], columns=[*columns, "problem"])


def query_follow_up(db: Snapshot, parts: FrameCollector) -> None:
    """Collect the recorded sequences, and the fetched events that were processed afterwards.

    Frames: recorded, processed.
    """
    seqs = {int(s) for name in ADVISORIES for s in column(parts.answers, name, "stream_seq")}
    ids = [str(i) for i in column(parts.answers, "messages", "event_id")]
    parts.ask(
        db,
        {"recorded": "dead_letters/recorded", "processed": "dead_letters/processed"},
        seqs=sorted(seqs),
        event_ids=ids,
    )


def column(frames: Frames, name: str, values: str) -> Iterable[Any]:
    """Return the values of one column of a frame, without missing ones."""
    return table(frames, name, values)[values].dropna()


def rows_between(frame: pd.DataFrame | None, since: pd.Timestamp, until: pd.Timestamp) -> pd.DataFrame:
    """Return the rows with `since` < time <= `until`; an empty frame if there is no such row or no frame."""
    if frame is None or frame.empty or "time" not in frame:
        return pd.DataFrame(columns=["advisory_seq", "time", "stream_seq"] if frame is None else frame.columns)
    at = pd.to_datetime(frame["time"], utc=True)
    return frame[(at > since) & (at <= until)]


def advisories_in_window(frames: Frames, name: str, given: JudgeInput) -> pd.DataFrame:
    """Return the advisories of the window, with a margin for the difference between the clocks."""
    since = given.as_of - pd.Timedelta(minutes=given.window_minutes)
    clocks = pd.Timedelta(seconds=given.number("dead_letters.clocks_apart"))
    found = rows_between(frames.get(name), since, given.as_of + clocks)
    return found.dropna(subset=["stream_seq"]).drop_duplicates("stream_seq")


def advisories_read_since(frames: Frames, given: JudgeInput) -> pd.Timestamp | None:
    """Return since when the advisories of both kinds were read; None if all of the window were."""
    begin = given.as_of - pd.Timedelta(minutes=given.window_minutes)
    read = [table(frames, name, "time") for name in ADVISORIES]
    oldest = [pd.Timestamp(frame["time"].min()) for frame in read if frame.attrs.get("capped") and len(frame)]
    return max((at for at in oldest if at > begin), default=None)


def query_letters_and_sends(rb: Context, db: Snapshot, parts: FrameCollector) -> None:
    """Collect the notifications' dead letters, and the sends per minute. Frames: letters, sent_per_minute."""
    parts.ask(db, {"letters": DeliveryLetter.QUERY}, fields=list(FIELDS))
    ask_per_minute(rb, db, parts, "notifications", sent_per_minute="n")


def list_field_problems(shape: object) -> str:
    """Return the fields that are absent, empty or of a wrong type, from "name:type name:type".

    >>> list_field_problems("event_id:string version:string user_id:absent")
    'version string, user_id absent'
    """
    pairs = [field.partition(":")[::2] for field in str(shape).split()] if isinstance(shape, str) else []
    return ", ".join(f"{name} {kind}" for name, kind in pairs if kind != _FIELD_TYPES.get(name))


def read_letters(frames: Frames) -> pd.DataFrame:
    """Return the dead letters of notifications, or a sample of them."""
    columns = ("event_id", "created_at", "error_message", "user_id", "event_type", "source", "shape", "total")
    return table(frames, "letters", *columns)


def cluster_letters(frames: Frames, given: JudgeInput) -> list[errors.ErrorCluster]:
    """Return the dead letters of notifications grouped by error text."""
    return errors.cluster_errors(read_letters(frames), given, frames.get("sent_per_minute"))


def age_s(last: Any, given: JudgeInput) -> float | None:
    """Return the seconds from `last` to the time of the run; None if `last` is missing."""
    return seconds_between(last, given.as_of)


def age_or_inf(last: Any, given: JudgeInput) -> float:
    """Return the seconds from `last` to the time of the run; infinite if `last` is missing."""
    seconds = age_s(last, given)
    return math.inf if seconds is None else seconds


def quiet_s(given: JudgeInput) -> float:
    """Return the seconds without a failure after which a cause is over; infinite if there is no limit."""
    quiet = given.limits["dlq.quiet"].critical
    return math.inf if quiet is None else quiet


# Notes on what was not read -----------------------------------------------------------------------


def unread_tables(frames: Frames) -> bool:
    """Return whether the database did not answer one of the questions."""
    return any(e.source == "postgres" for e in failures(frames).values())


def reading_notes(frames: Frames, given: JudgeInput) -> tuple[Text, ...]:
    """Return notes on samples, on times that are not exact, and on rows older than the window."""
    notes = []
    for name in ("outbox_failed", "letters"):
        frame = table(frames, name, "total")
        if errors.weight_of(frame) > 1:
            notes.append(say("letters.sampled", shown=len(frame), of=float(frame["total"].max())))
    known = [f.exact for f in rows.each(frames.get("outbox_failed"), FailedEvent)]
    known += [b.exact for b in rows.each(frames.get("per_bucket"), StoreBucket) if b.store == "outbox"]
    if not all(known):
        notes.append(say("letters.no_failed_at"))
    if advisories_read_since(frames, given) is not None:
        notes.append(say("letters.advisories_capped", n=given.number("dead_letters.advisories")))
    older = sum(store.n for store in rows.each(frames.get("older"), Count) if store.n is not None)
    if older:
        notes.append(say("letters.older", n=older))
    return tuple(notes)
