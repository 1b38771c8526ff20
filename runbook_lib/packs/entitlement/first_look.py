"""The first numbers of a triage: what the cheapest queries say of each hop while the sections start.

They are no evidence. Their samples are: 3.2 compares them with its own, instead of waiting for a second one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks import samples
from runbook_lib.model import rows
from runbook_lib.model.finding import Hop
from runbook_lib.packs.entitlement.rows import Activity, Attempts, HeldRow, Notifications, Outbox, Registered

if TYPE_CHECKING:
    from runbook_lib.book.catalog import Catalog
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The frames of a sample of the delivery worker, and their queries.
DELIVERY = {"activity": Activity.QUERY, "attempts": Attempts.QUERY, "held": HeldRow.QUERY}

#: The limit of the oldest row that is due, by hop.
LATE = {"relay": "outbox.oldest_due", "delivery_worker": "backlog.oldest_due"}


def keep_delivery(frames: dict[str, pd.DataFrame]) -> None:
    """Keep a sample of the delivery worker for the steps that follow."""
    samples.keep("delivery", rows.one(frames["activity"], Activity).now, {name: frames[name] for name in DELIVERY})


def take_numbers(db: Snapshot) -> tuple[pd.Timestamp | None, tuple[Hop, ...]]:
    """Return the database's time, and the hops as far as index queries know them; one that fails is not known."""
    asked = DELIVERY | {"queue": Notifications.QUERY, "outbox": Outbox.QUERY, "registered": Registered.QUERY}
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


def sections_of_late_hops(hops: Iterable[Hop], book: Catalog) -> tuple[str, ...]:
    """Return the sections to which 3.2 will point where rows are due for too long: they need not wait for it."""
    late = {hop.name for hop in hops if hop.name in LATE and book.limits[LATE[hop.name]].reached(hop.oldest_s)}
    return ("4.1", "4.3") if "delivery_worker" in late else ("4.1",) if late else ()


def take_samples(rb: Context) -> None:
    """Sample the processes and, for a moment, what their sessions do; it is kept."""
    from runbook_lib.packs.entitlement.evidence import sessions

    frames = sample_processes(rb)
    pause_s = (rb.number("samples.least") + 2) * rb.number("samples.apart")
    samples.keep("worker", rb.now(), sessions.watch_worker(rb, pause_s, frames, "samples.close"))


def sample_processes(rb: Context) -> dict[str, pd.DataFrame]:
    """Return a sample of what each process of the services does, by itself and by its sessions; it is kept.

    Frames: those of `services.collect` and `sessions.collect`, and the failure of the latter.
    """
    from runbook_lib.checks.parts import FrameCollector
    from runbook_lib.packs.entitlement.evidence import services, sessions
    from runbook_lib.packs.entitlement.facts import facts_of

    at, parts = rb.now(), FrameCollector(services.collect(rb))
    with parts.part("sessions") as answers, rb.snapshot() as db:
        answers |= sessions.collect(db, facts_of(rb).database_role)
    frames = parts.frames() if parts.failures else parts.answers
    samples.keep("processes", at, frames)
    return frames
