"""Find an event, or the events of a user, and show their traces: `rb.event`, `runbook event`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from runbook_lib.book import messages
from runbook_lib.checks.check import source_error_text
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model.finding import Frames, Status, Text, hop_text, say, worst
from runbook_lib.model.usage import UsageError
from runbook_lib.packs.entitlement import event_trace, missing, stream
from runbook_lib.packs.entitlement.actions.stores import EVENT_FIELDS
from runbook_lib.packs.entitlement.event_trace import EventTrace
from runbook_lib.packs.entitlement.rows import parse_uuid
from runbook_lib.packs.jetstream.consumer import ConsumerPosition
from runbook_lib.packs.jetstream.search import Span
from runbook_lib.privacy.masking import TOKEN
from runbook_lib.sources.source import SourceError
from runbook_lib.view import render

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.notebook.session import Session
    from runbook_lib.sources.postgres import Snapshot

#: Of a user's events, only the newest are traced.
MAX_EVENTS = 20


@dataclass(frozen=True)
class FoundTraces(render.NotebookOutput):
    """The traces that were found, shown as text."""

    traces: Sequence[EventTrace]
    #: Why there is no trace, or not every trace.
    notes: Sequence[Text]
    #: The target's `trace_link`.
    trace_link: str = ""

    def __len__(self) -> int:
        return len(self.traces)

    @property
    def status(self) -> Status:
        """Return the worst status of the traces; UNKNOWN without a trace."""
        return worst(t.status for t in self.traces)

    def lines(self) -> list[str]:
        """Return the text: each event with its stages, its place, and what happens next."""
        lines = []
        for t in self.traces:
            lines += [
                f"{render.MARKS[t.status.name]} {t.status.name}  {messages.text(t.headline)}",
                f"  {messages.text(t.title)}",
            ]
            lines += [f"    {line}" for line in render.columns([self._format_cells(s) for s in t.stages], right=(1,))]
            links = [f"  {link}"] if (link := self._build_link(t)) else []
            lines += [f"  → {messages.text(t.next)}", *(f"  {messages.text(n)}" for n in t.notes), *links, ""]
        return [*lines, *(messages.text(n) for n in self.notes)]

    def record(self) -> dict[str, Any]:
        """Return the JSON object: `events` with their stages and status, and `notes` on sources that did not answer."""
        return {
            "status": self.status.name,
            "exit_code": self.status.value,
            "events": [
                {
                    **{name: getattr(t, name) for name in ("event_id", "type", "user", "trace_id", "place")},
                    **({"trace_link": link} if (link := self._build_link(t)) else {}),
                    "status": t.status.name,
                    "headline": messages.text(t.headline),
                    "next": messages.text(t.next),
                    "notes": [messages.text(n) for n in t.notes],
                    "stages": [
                        vars(s) | {"at": s.at and s.at.isoformat(), "text": messages.text(s.text)} for s in t.stages
                    ],
                }
                for t in self.traces
            ],
            "notes": [messages.text(n) for n in self.notes],
        }

    def _make_bundle(self) -> dict[str, Any]:
        shown = [(t, [self._format_cells(s) for s in t.stages], self._build_link(t)) for t in self.traces]
        return {
            "text/html": render.html("journey", shown=shown, notes=self.notes),
            "text/plain": "\n".join(self.lines()),
        }

    def _format_cells(self, s: event_trace.TraceStage) -> list[str]:
        at = f"{s.at:%m-%d %H:%M:%S.%f}"[:-3] if s.at is not None else "·"
        mark = {"passed": "✔", "here": "▶", "failed": "✖", "unseen": "?"}[s.mark]
        return [
            at,
            "" if s.wait_s is None else f"+{messages.quantity(s.wait_s, 's')}",
            f"{mark} {messages.text(hop_text(s.hop))}",
            messages.text(s.text),
        ]

    def _build_link(self, trace: EventTrace) -> str:
        """Return the URL of an event's trace in the tracing tool; "" without a trace id or a setting."""
        return self.trace_link.replace("{trace_id}", quote(trace.trace_id, safe="")) if trace.trace_id else ""


def event(rb: Session, id: str | None = None, *, user: str | None = None) -> FoundTraces:
    """Return the traces of an event, or of the events of a `user` in the window.

    `id` is the id of the event, of its notification, of its trace or of its audit row. `user` is a user id, which is
    neither shown nor saved, or its token. A source that does not answer becomes a note. Raises UsageError without
    either argument.
    """
    if not id and not user:
        raise UsageError("name an event, a notification, a trace or an audit row by its id, or a user")
    try:
        traces, notes = _find_traces(rb.context, (id or "").strip(), (user or "").strip())
    except SourceError as e:
        masked = SourceError(e.source, e.reason, rb.context.masker.scrub(e.detail), e.code)
        traces, notes = [], [source_error_text(masked)]
    return FoundTraces(traces, notes, rb.context.target.trace_link, run=rb.opened)


def _find_traces(rb: Context, id: str, user: str) -> tuple[list[EventTrace], list[Text]]:
    unresolved = False
    with rb.snapshot() as db:
        if user:
            person = str(rb.masker.named(user))
            person = _resolve_token(rb, db, person) if TOKEN.fullmatch(person) else person
            unresolved = bool(TOKEN.fullmatch(person))
            events = list(db.ask("journey/by_user", typed_user=person)["event_id"])
            if id:
                own = _find_event_ids(db, id)
                events = [e for e in events if e in own]
        else:
            events = _find_event_ids(db, id)
            change = {} if events else {"change": db.ask("journey/audit_row", id=parse_uuid(id))}
    notes = [say("journey.more", most=MAX_EVENTS, n=len(events))] if len(events) > MAX_EVENTS else []
    if events:
        traces, unread = collect_traces(rb, events[:MAX_EVENTS], id)
        return traces, [*notes, *unread]
    alone = None if user else event_trace.build_trace_without_event(rb.masker.frames(change), rb.given(), rb.now())
    days = {"day": int(rb.number("retention.outbox")), "days": int(rb.number("retention.notifications"))}
    key = "journey.nothing" if not user else "journey.not_resolved" if unresolved else "journey.nobody"
    return ([alone], []) if alone else ([], [say(key, minutes=rb.parameters.window_minutes, **days)])


def collect_traces(rb: Context, events: Sequence[str], id: str = "") -> tuple[list[EventTrace], list[Text]]:
    """Return the traces of these events, and notes on what could not be read. Raises SourceError.

    The queries limit how many events are read. `id` is the id that led to them.
    """
    parts = FrameCollector()
    before = None
    # Read the consumer before the tables: an event that neither holds is lost then, not in between.
    with parts.part("consumer"):
        before = stream.read_consumer_position(rb)
    with rb.snapshot() as db:
        found = _read_rows(db, list(events), id)
    now, given = rb.now(), rb.given()
    with parts.part("stream"):
        found["stored"] = _read_messages(rb, found, before)
    failed = parts.failures.get("consumer") or parts.failures.get("stream")
    notes = []
    if failed:
        notes.append(say("journey.broker_unseen", why=source_error_text(failed)))
    masked = rb.masker.frames(found)
    return [t for e in events if (t := event_trace.build_trace(e, masked, given, now))], notes


def _find_event_ids(db: Snapshot, id: str) -> list[str]:
    """Return the ids of the events that an id stands for: an id in the tables, or else a trace id."""
    known = list(db.ask("journey/by_id", id=own)["event_id"]) if (own := parse_uuid(id)) else []
    return known or list(db.ask("journey/by_trace", typed_id=id)["event_id"])


def _resolve_token(rb: Context, db: Snapshot, token: str) -> str:
    """Return the user id behind a token, among the users of the window; the token itself if none matches."""
    users = str(db.ask("journey/users")["users"].iloc[0] or "").split("\n")
    return next((user for user in users if rb.masker.person(user) == token), token)


def _read_rows(db: Snapshot, events: list[str], id: str) -> Frames:
    """Read all rows of these events; `id`, which led to them, may be that of a notification."""
    found = {
        "outbox": db.ask("journey/outbox", ids=events, fields=EVENT_FIELDS),
        "processed": db.ask("journey/processed", ids=events),
        "notifications": db.ask("journey/notifications", ids=events, id=parse_uuid(id), fields=EVENT_FIELDS),
        "letters": db.ask("journey/letters", ids=events),
    }
    instants = [*found["outbox"]["created_at"], *found["notifications"]["occurred_at"]]
    others = {"audit": db.try_ask("journey/audit", instants=[t.to_pydatetime() for t in set(instants)])}
    others["redriven"] = db.try_ask("journey/redriven", ids=events)
    return found | {name: frame for name, frame in others.items() if frame is not None}


def _read_messages(rb: Context, found: Frames, before: ConsumerPosition | None) -> pd.DataFrame:
    """Read the events' messages, and locate those that are not processed at the broker. Raises SourceError."""
    processed = {str(r["event_id"]): r["processed_at"] for r in found["processed"].to_dict("records")}
    spans: dict[str, list[Span]] = {}
    for r in found["outbox"].to_dict("records"):
        if r["status"] == "PUBLISHED":
            spans[str(r["event_id"])] = stream.search_spans(rb, r["created_at"], r["published_at"])
    for event, at in processed.items():
        spans.setdefault(event, [(at - stream.SOON[1], at + stream.SOON[0])])
    for r in found.get("redriven", pd.DataFrame()).to_dict("records"):
        if r["store"] == "broker" and r["event_id"] in spans:
            spans[str(r["event_id"])].insert(0, (r["at"] - stream.SOON[0], r["at"] + stream.SOON[1]))
    most = int(rb.number("ledger.messages"))
    seen = stream.find_messages(rb, spans, most)
    there = set(found["notifications"]["event_id"]) | processed.keys()
    places = stream.locate_messages(rb, seen, before, spans.keys() - there, most) if before else {}
    published = {str(r["event_id"]): r["published_at"] for r in found["outbox"].to_dict("records")}
    places = missing.leave_open(rb, places, published)
    columns = ["event_id", "stream_seq", "stored_at", "broker"]
    return pd.DataFrame(
        [
            (e, *seen.messages.get(e, (None, None))[:2], places.get(e, ""))
            for e in spans
            if e in seen.messages or e in places
        ],
        columns=columns,
    )
