"""The first numbers of a triage: what the cheapest queries say of each hop while the sections start.

They are no evidence. Their samples are: 3.2 compares them with its own, instead of waiting for a second one.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib import rows, samples
from runbook_lib.model.finding import Hop
from runbook_lib.packs.entitlement.rows import Activity, Attempts, HeldRow, Notifications, Outbox, Registered
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The frames of a sample of the delivery worker, and their queries.
DELIVERY = {"activity": Activity.QUESTION, "attempts": Attempts.QUESTION, "held": HeldRow.QUESTION}


def keep_delivery(frames: dict[str, pd.DataFrame]) -> None:
    """Keep a sample of the delivery worker for the steps that follow."""
    samples.keep("delivery", rows.one(frames["activity"], Activity).now, {name: frames[name] for name in DELIVERY})


def take_numbers(db: Snapshot) -> tuple[pd.Timestamp | None, tuple[Hop, ...]]:
    """Return the database's time, and the hops as far as index queries know them; one that fails is not known."""
    asked = DELIVERY | {"queue": Notifications.QUESTION, "outbox": Outbox.QUESTION, "registered": Registered.QUESTION}
    found = {name: frame for name, query in asked.items() if (frame := db.try_ask(query)) is not None}
    if found.keys() >= DELIVERY.keys():
        keep_delivery(found)
    queue, outbox = rows.first(found.get("queue"), Notifications), rows.first(found.get("outbox"), Outbox)
    activity, registered = rows.first(found.get("activity"), Activity), rows.first(found.get("registered"), Registered)
    hops: list[Hop] = []
    if outbox:
        hops.append(Hop("producer", rate_out=outbox.arrived_1m))
        hops.append(Hop("relay", outbox.arrived_1m, outbox.published_1m, outbox.ready, outbox.oldest_s))
    if registered:
        hops.append(Hop("subscriber", rate_out=registered.processed_1m))
    if queue:
        hops.append(Hop("delivery_worker", waiting=queue.ready, oldest_s=queue.oldest_s))
    if activity:
        hops.append(Hop("delivery_worker", activity.arrived_1m, activity.sent_1m))
    return next((row.now for row in (activity, queue, outbox) if row), None), tuple(hops)


def sample_processes(rb: Context) -> dict[str, pd.DataFrame]:
    """Return a sample of what each process of the services does, by itself and by its sessions; it is kept."""
    from runbook_lib.packs.entitlement.evidence import services, sessions
    from runbook_lib.packs.entitlement.facts import facts_of

    at, frames = rb.now(), services.collect(rb)
    with suppress(SourceError), rb.snapshot() as db:  # without the database there are no sessions to show
        frames |= sessions.collect(db, facts_of(rb).database_role)
    samples.keep("processes", at, frames)
    return frames
