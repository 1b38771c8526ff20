"""Events under tags, and the sandbox's own record of where each is: the services' logs, each table for itself, the
broker asked as its applications would. It shares no line with what is tested by it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from nats.js import JetStreamContext

from runbook_lib.gameday.sandbox import broker, database, entitlement
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from tests.kit.waiting import is_listening

_DESTROY = {
    "no_event": "DELETE FROM entitlement.outbox_events WHERE event_id = ANY (%(ids)s) AND status = 'PENDING'"
    " RETURNING event_id",
    "registered": "DELETE FROM notification.notifications WHERE event_id = ANY (%(ids)s) RETURNING event_id",
    "lost": "WITH n AS (DELETE FROM notification.notifications WHERE event_id = ANY (%(ids)s))"
    " DELETE FROM notification.processed_events WHERE event_id = ANY (%(ids)s) RETURNING event_id",
}
#: What may be destroyed of an event by where it is, and where it is then.
_THEN = {"outbox": "no_event", "broker": "message", "queue": "registered", "sent": "lost", "failed": "registered"}


async def _given_up(js: JetStreamContext, stream: str) -> list[int]:
    """Return the sequences in the stream of events that the advisories of a stream name."""
    held = (await js.stream_info(stream)).state
    stored = range(held.first_seq, held.last_seq + 1) if held.messages else ()
    return [json.loads((await js.get_msg(stream, seq)).data or b"")["stream_seq"] for seq in stored]


@dataclass
class Tagged:
    """The tagged events of one sandbox: audit ids by event id, and what was destroyed and how."""

    sandbox: Sandbox
    audits: dict[str, str] = field(default_factory=dict)
    destroyed: dict[str, str] = field(default_factory=dict)

    def grant(self, n: int) -> list[str]:
        """So many rights are granted, as the API would; their events. Raises psycopg.Error where it could not."""
        made = [f"tag-{uuid.uuid4().hex[:12]}" for _ in range(n)]
        with database.connect(self.sandbox.state.addresses.app_url) as connection:
            for tag in made:
                sku = entitlement.STOCK_KEEPING_UNITS[0]
                command = entitlement.GrantRequest("GRANT", tag, sku, "purchase", f"purchase-{tag}")
                assert entitlement.execute(connection, command, database.now())[0] == 200
        self._refresh()
        keys = dict(
            self._ask("SELECT split_part(aggregate_key, ':', 1), CAST(event_id AS text) FROM entitlement.outbox_events")
        )
        return [keys[tag] for tag in made]

    def last_try(self, events: Iterable[str]) -> None:
        """These have one try left, wherever they wait."""
        for table in ("entitlement.outbox_events", "notification.notifications"):
            self._ask(f"UPDATE {table} SET attempt_count = 9 WHERE event_id = ANY (%(ids)s)", ids=list(events))

    def destroy(self, event: str, place: str) -> None:
        """Take from an event what it has in that place; what can not be taken stays as it is."""
        how = _THEN.get(place)
        if how is None:
            return
        if how == "message":
            if not is_listening(self.sandbox.state.addresses.nats_port):
                return
            seq = self._messages()[event]
            self.sandbox.visit(lambda js: js.delete_msg(broker.STREAM, seq))
            how = "lost"
        elif not self._ask(_DESTROY[how], ids=[event]):
            return  # it has moved on meanwhile
        self.destroyed[event] = how

    def record(self) -> dict[str, str]:
        """Where each is: outbox, outbox_failed, broker, refused, queue, failed, sent; or what was destroyed of it."""
        received = self.sandbox.log("receiver")
        sent = {
            json.loads(line)["message"].rpartition("eventId=")[2]
            for line in received.splitlines()
            if "eventId=" in line
        }
        box = dict(self._ask("SELECT CAST(event_id AS text), status FROM entitlement.outbox_events"))
        notified = dict(self._ask("SELECT CAST(event_id AS text), status FROM notification.notifications"))
        refused = self._refused()
        places = {}
        for event in self.audits:
            if event in self.destroyed:
                places[event] = self.destroyed[event]
            elif event in sent and notified.get(event) == "SENT":
                places[event] = "sent"
            elif event in notified:
                places[event] = "failed" if notified[event] == "FAILED" else "queue"
            elif box[event] == "PUBLISHED":
                places[event] = "refused" if event in refused else "broker"
            else:
                places[event] = "outbox_failed" if box[event] == "FAILED" else "outbox"
        return places

    def settled(self, s: float) -> dict[str, str]:
        """The record once it has been the same for two seconds; the last one after `s`."""
        until, seen, since = time.monotonic() + s, self.record(), time.monotonic()
        while time.monotonic() < until and time.monotonic() - since < 2:
            time.sleep(0.3)
            if (now := self.record()) != seen:
                seen, since = now, time.monotonic()
        return seen

    def flow(self) -> None:
        """Return when one that is granted now has arrived: a pod that was restarted may be coming up."""
        (event,) = self.grant(1)
        self.sandbox.wait_for("an event to arrive", lambda: self.record()[event] == "sent", 90)

    def _refresh(self) -> None:
        """All that were granted, here or by the sandbox, and not forgotten by the end of a fault."""
        granted = self._ask(
            "SELECT CAST(o.event_id AS text), CAST(a.audit_id AS text) FROM entitlement.entitlement_audit a"
            " LEFT JOIN entitlement.outbox_events o ON a.occurred_at = o.created_at"
            " AND o.aggregate_key = a.user_id || ':' || a.stock_keeping_unit"
        )
        audits = {audit for _, audit in granted}
        self.audits = {e: a for e, a in self.audits.items() if a in audits} | {e: a for e, a in granted if e}
        self.destroyed = {e: how for e, how in self.destroyed.items() if e in self.audits}

    def _refused(self) -> set[str]:
        async def seqs(js: JetStreamContext) -> list[int]:
            streams = (broker.ADVISORY_STREAM, broker.TERMINATED_STREAM)
            return [seq for stream in streams for seq in await _given_up(js, stream)]

        if not is_listening(self.sandbox.state.addresses.nats_port):
            return set()  # a broker that is away says nothing of what it has given up
        dead = set(self.sandbox.visit(seqs))
        return {event for event, seq in self._messages().items() if seq in dead} if dead else set()

    def _messages(self) -> dict[str, int]:
        async def read(js: JetStreamContext) -> dict[str, int]:
            state, found = (await js.stream_info(broker.STREAM)).state, {}
            for seq in range(state.first_seq, state.last_seq + 1):
                with suppress(Exception):  # deleted
                    found[((await js.get_msg(broker.STREAM, seq)).headers or {})["Nats-Msg-Id"]] = seq
            return found

        return self.sandbox.visit(read)

    def _ask(self, question: str, **values: Any) -> list[Any]:
        with psycopg.connect(self.sandbox.state.addresses.admin_url, autocommit=True, connect_timeout=3) as admin:
            admin.execute("SET default_transaction_read_only = off")
            asked = admin.execute(question, values)
            return asked.fetchall() if asked.description else []
