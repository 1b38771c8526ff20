"""A room of standard steps for a system with a queue of rows in PostgreSQL and workers that take them.

A pack names its table and columns once (`queue.Queue`), and says `uses=("runbook_lib.packs.queues",)`.
"""

from __future__ import annotations

from pathlib import Path

from runbook_lib.book.pack import Pack

PACK = Pack(
    "queues",
    Path(__file__).parent,
    room=True,
    uses=(
        "runbook_lib.packs.postgres",
        "runbook_lib.packs.changes",
        "runbook_lib.packs.logs",
        "runbook_lib.packs.postmortem",
    ),
    checks="",
    facts="facts:Facts",
    hooks={"queue_tables": "proposing:read_tables", "queue_of": "proposing:propose"},
    required=("postgres",),
)
