"""A runbook for procrastinate, a job queue in PostgreSQL: a pack for a third-party system."""

from __future__ import annotations

from pathlib import Path

from runbook_lib.book.pack import Pack

PACK = Pack(
    "procrastinate",
    Path(__file__).parent,
    uses=("runbook_lib.packs.queues",),
    languages=("en",),
    facts="facts:Facts",
)
