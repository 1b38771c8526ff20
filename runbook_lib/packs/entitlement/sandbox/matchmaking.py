"""All that is left of matchmaking here: its event. It publishes without an outbox."""

from __future__ import annotations

import uuid

from nats.js import JetStreamContext

from runbook_lib.packs.entitlement import wire

from . import broker, database
from .entitlement import instant


def announce(nats_url: str, match_id: str, mode: str = "casual") -> wire.MatchmakingEvent:
    """Publish that a match was found; the event."""
    event = wire.MatchmakingEvent(
        event_id=str(uuid.uuid4()),
        event_type=wire.MATCH_FOUND,
        occurred_at=instant(database.now()),
        match_id=match_id,
        mode=mode,
        trace_id=uuid.uuid4().hex,
    )

    async def publish(js: JetStreamContext) -> None:
        await js.publish(broker.MATCH_SUBJECT, wire.encode(event), headers={"Nats-Msg-Id": event.event_id})

    broker.visit(nats_url, publish)
    return event
