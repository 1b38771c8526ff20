"""Follow one event, or one user's, through tables and stream, and show the way: `rb.event`, `runbook event`."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib import messages
from runbook_lib.checks.parts import Parts
from runbook_lib.masking import TOKEN
from runbook_lib.model.finding import Frames, Status, Text, say, worst
from runbook_lib.packs.entitlement import journey, stream
from runbook_lib.packs.entitlement.actions.stores import OF_EVENT
from runbook_lib.packs.entitlement.journey import Journey
from runbook_lib.sources import SourceError
from runbook_lib.usage import UsageError
from runbook_lib.view import render

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.session import Session
    from runbook_lib.sources.postgres import Snapshot
    from runbook_lib.view.charts import Chart

#: So many of a user's events are followed, the newest.
MOST = 20


@dataclass(frozen=True)
class Followed(render.Shown):
    """What was found, shown as text, and as a picture where it is one event."""

    journeys: Sequence[Journey]
    #: Why there is nothing, or not all.
    notes: Sequence[Text]
    lang: str

    def __len__(self) -> int:
        return len(self.journeys)

    @property
    def status(self) -> Status:
        """The worst of the journeys; UNKNOWN where there is none."""
        return worst(j.status for j in self.journeys)

    def lines(self) -> list[str]:
        """As text: each event with its stages, where it is and what comes next."""
        lines = []
        for j in self.journeys:
            lines += [f"{render.MARKS[j.status.name]} {j.status.name}  {self._t(j.headline)}", f"  {self._t(j.title)}"]
            lines += [f"    {line}" for line in render.columns([self._cells(s) for s in j.stops], right=(1,))]
            lines += [f"  → {self._t(j.next)}", *(f"  {self._t(n)}" for n in j.notes), ""]
        return [*lines, *(self._t(n) for n in self.notes)]

    def record(self) -> dict[str, Any]:
        """As JSON: `events` with their stages, status, and what could not be seen."""
        return {
            "status": self.status.name,
            "exit_code": self.status.value,
            "events": [
                {
                    "event_id": j.event_id,
                    "type": j.type,
                    "user": j.user,
                    "trace_id": j.trace_id,
                    "place": j.place,
                    "status": j.status.name,
                    "headline": self._t(j.headline),
                    "next": self._t(j.next),
                    "notes": [self._t(n) for n in j.notes],
                    "stages": [
                        {
                            "hop": s.hop,
                            "at": s.at.isoformat() if s.at is not None else None,
                            "wait_s": s.wait_s,
                            "mark": s.mark,
                            "text": self._t(s.text),
                        }
                        for s in j.stops
                    ],
                }
                for j in self.journeys
            ],
            "notes": [self._t(n) for n in self.notes],
        }

    def picture(self) -> bytes | None:
        """The timeline of the first as a PNG; None where no time is known."""
        chart = self._drawn() if self.journeys else None
        return chart.png() if chart else None

    def _drawn(self) -> Chart | None:
        from runbook_lib.packs.entitlement.journey_chart import draw

        return draw(self.journeys[0])

    def _bundle(self) -> dict[str, Any]:
        chart = self._drawn() if len(self.journeys) == 1 else None
        shown = [(j, [self._cells(s) for s in j.stops]) for j in self.journeys]
        image = chart and (base64.b64encode(chart.png()).decode(), self._t(chart.alt))
        return {
            "text/html": render.html("journey", self.lang, shown=shown, notes=self.notes, image=image),
            "text/plain": "\n".join(self.lines()),
        }

    def _cells(self, s: journey.Stop) -> list[str]:
        at = f"{s.at:%m-%d %H:%M:%S.%f}"[:-3] if s.at is not None else "·"
        mark = {"passed": "✔", "here": "▶", "failed": "✖", "unseen": "?"}[s.mark]
        return [
            at,
            "" if s.wait_s is None else f"+{s.wait_s:,.1f} s",
            f"{mark} {self._t(say(f'hop.{s.hop}'))}",
            self._t(s.text),
        ]

    def _t(self, text: Text) -> str:
        return messages.text(text, self.lang)


def event(rb: Session, id: str | None = None, *, user: str | None = None) -> Followed:
    """Follow an event by its own id or its notification's, its trace's or audit row's; or a `user`'s of the window.

    A user is a person's id, which is told and saved nowhere, or the token that stands for one. What could not be seen
    is a note. Raises UsageError where neither is given.
    """
    if not id and not user:
        raise UsageError("name an event, a notification, a trace or an audit row by its id, or a user")
    try:
        journeys, notes = _follow(rb.context, (id or "").strip(), (user or "").strip())
    except SourceError as e:
        detail = rb.context.masker.scrub(e.detail)
        journeys, notes = [], [say(f"unknown.{e.reason}", source=e.source, detail=detail)]
    return Followed(journeys, notes, rb.lang, run=rb.opened)


def _follow(rb: Context, id: str, user: str) -> tuple[list[Journey], list[Text]]:
    with rb.snapshot() as db:
        if user:
            person = str(rb.masker.named(user))
            person = _person(rb, db, person) if TOKEN.fullmatch(person) else person
            events = list(db.ask("journey/by_user", typed_user=person)["event_id"])
            if id:
                own = _events(db, id)
                events = [e for e in events if e in own]
        else:
            events = _events(db, id)
            change = {} if events else {"change": db.ask("journey/audit_row", id=_uuid(id))}
    notes = [say("journey.more", most=MOST, n=len(events))] if len(events) > MOST else []
    if events:
        journeys, unseen = journeys_of(rb, events[:MOST], id)
        return journeys, [*notes, *unseen]
    alone = None if user else journey.of_change(rb.masker.frames(change), rb.given(), rb.now())
    days = {"day": int(rb.number("retention.outbox")), "days": int(rb.number("retention.notifications"))}
    key = "journey.nobody" if user else "journey.nothing"
    return ([alone], []) if alone else ([], [say(key, minutes=rb.parameters.window_minutes, **days)])


def journeys_of(rb: Context, events: Sequence[str], id: str = "") -> tuple[list[Journey], list[Text]]:
    """The journeys of these events, as many as a question may answer, and what was not seen. Raises SourceError."""
    parts = Parts()
    before = None
    # The consumer first: what it does not hold now, and is not processed a moment later, is nobody's.
    with parts.part("consumer"):
        before = stream.held(rb)
    with rb.snapshot() as db:
        found = _rows(db, list(events), id)
    now, given = rb.now(), rb.given()
    with parts.part("stream"):
        found["stored"] = _stored(rb, found, before)
    failed = parts.failure("consumer") or parts.failure("stream")
    notes = []
    if failed:
        why = say(f"unknown.{failed.reason}", source=failed.source, detail=failed.detail)
        notes.append(say("journey.broker_unseen", why=why))
    masked = rb.masker.frames(found)
    return [j for e in events if (j := journey.of(e, masked, given, now))], notes


def _events(db: Snapshot, id: str) -> list[str]:
    """The events that an id means: an id of the tables, or else a trace's."""
    known = list(db.ask("journey/by_id", id=own)["event_id"]) if (own := _uuid(id)) else []
    return known or list(db.ask("journey/by_trace", typed_id=id)["event_id"])


def _uuid(id: str) -> str | None:
    try:
        return str(uuid.UUID(id))
    except ValueError:
        return None


def _person(rb: Context, db: Snapshot, token: str) -> str:
    """Who stands behind a token, of those who had to do with the window; the token itself if it is nobody's of them."""
    users = str(db.ask("journey/users")["users"].iloc[0] or "").split("\n")
    return next((user for user in users if rb.masker.person(user) == token), token)


def _rows(db: Snapshot, events: list[str], id: str) -> Frames:
    """All that the tables have of these events; the id that led to them may be a notification's."""
    found = {
        "outbox": db.ask("journey/outbox", ids=events, fields=OF_EVENT),
        "processed": db.ask("journey/processed", ids=events),
        "notifications": db.ask("journey/notifications", ids=events, id=_uuid(id), fields=OF_EVENT),
        "letters": db.ask("journey/letters", ids=events),
    }
    instants = [*found["outbox"]["created_at"], *found["notifications"]["occurred_at"]]
    others = {"audit": db.try_ask("journey/audit", instants=[t.to_pydatetime() for t in set(instants)])}
    others["redriven"] = db.try_ask("journey/redriven", ids=events)
    return found | {name: frame for name, frame in others.items() if frame is not None}


def _stored(rb: Context, found: Frames, before: stream.Held | None) -> pd.DataFrame:
    """The events' messages, and of those not processed where the broker has them. Raises SourceError."""
    processed = {str(r["event_id"]): r["processed_at"] for r in found["processed"].to_dict("records")}
    spans: dict[str, list[stream.Span]] = {}
    for r in found["outbox"].to_dict("records"):
        if r["status"] == "PUBLISHED":
            spans[str(r["event_id"])] = stream.spans_of(rb, r["created_at"], r["published_at"])
    for event, at in processed.items():
        spans.setdefault(event, [(at - stream.SOON[1], at + stream.SOON[0])])
    for r in found.get("redriven", pd.DataFrame()).to_dict("records"):
        if r["store"] == "broker" and r["event_id"] in spans:
            spans[str(r["event_id"])].insert(0, (r["at"] - stream.SOON[0], r["at"] + stream.SOON[1]))
    most = int(rb.number("ledger.messages"))
    seen = stream.find(rb, spans, most)
    there = set(found["notifications"]["event_id"]) | processed.keys()
    places = stream.whereabouts(rb, seen, before, spans.keys() - there, most) if before else {}
    columns = ["event_id", "stream_seq", "stored_at", "broker"]
    return pd.DataFrame(
        [
            (e, *seen.messages.get(e, (None, None)), places.get(e, ""))
            for e in spans
            if e in seen.messages or e in places
        ],
        columns=columns,
    )
