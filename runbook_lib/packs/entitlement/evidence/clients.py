"""Which services are connected to the broker: their clients have no names, so their subscriptions tell them apart.

Notification is subscribed to the subjects that its durables deliver to; the relay to nothing but the inbox of its
receipts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pandas as pd

from runbook_lib.rows import each

_INBOX = "_INBOX."


@dataclass(frozen=True)
class Client:
    """A row of NatsMonitor.connections()."""

    name: str = ""
    subjects: str = ""


@dataclass(frozen=True)
class ClientsSeen:
    """How many connections are of each service; None is not seen."""

    relay: int | None = None
    notification: int | None = None


def deliver_subjects(consumers: Collection[dict[str, Any]]) -> set[str]:
    """Where the durables deliver to, of the replies to CONSUMER.INFO."""
    return {subject for c in consumers if (subject := str(c.get("config", {}).get("deliver_subject") or ""))}


def read(connections: pd.DataFrame | None, delivered: Collection[str], limit: int = 256) -> ClientsSeen:
    """The services among the broker's open connections. Pure.

    `delivered` are the durables' deliver subjects: without one, notification is not told from others. A list that
    reaches `limit` may have been cut.
    """
    if connections is None or len(connections) >= limit:
        return ClientsSeen()
    relay = notification = 0
    for client in each(connections, Client):
        subjects = client.subjects.split()
        if set(subjects) & set(delivered):
            notification += 1
        elif not client.name and len(subjects) == 1 and subjects[0].startswith(_INBOX):
            relay += 1
    return ClientsSeen(relay, notification if delivered else None)
