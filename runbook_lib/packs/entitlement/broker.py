"""Query the broker from a notebook: `rb.nats`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.checks.given_up import classify
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.jetstream.search import advised_sequence
from runbook_lib.packs.jetstream.view import Nats

if TYPE_CHECKING:
    from runbook_lib.notebook.session import Session
    from runbook_lib.sources.jetstream import Message

#: Headers that are shown, by the form of their values; the masker handles the two that name a user.
_HEADERS = {
    "Nats-Msg-Id": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|redrive-\d+",
    "event_type": f"{wire.GRANTED}|{wire.REVOKED}|{wire.MATCH_FOUND}",
    "occurred_at": r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)",
    "trace_id": r"[0-9a-f]{32}",
    "aggregate_key": r"(?s).*",
    "user_id": r"(?s).*",
}


class EntitlementNats(Nats):
    """The broker; of an event's body it shows the id, the user's token and what is wrong with it.

    Of an advisory it shows the sequence that the advisory names.
    """

    def __init__(self, rb: Session) -> None:
        self._names = facts_of(rb.context).streams
        super().__init__(rb, self._names.durables, _HEADERS)

    def describe(self, message: Message, stream: str) -> Mapping[str, Any]:
        """Return what is shown of the body of a message."""
        if stream in (self._names.advisory, self._names.terminated):
            return {"about_seq": advised_sequence(message)}
        if stream != self._names.events:
            return {}
        shown = {key: value for key, value in classify(message).items() if key in ("event_id", "problem", "fields")}
        with suppress(wire.WireError):
            event: wire.EntitlementEvent = wire.decode(message.body)
            shown["user_id"] = self._masker.person(event.user_id)
        return shown
