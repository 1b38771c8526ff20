"""The checks, a module per topic; `sample` has the sample that most of them share.

The room for queues has the server, the table, the clocks, the impact, the database, and where it is stuck. What else
it has, this pack answers better: procrastinate stores events and heartbeats.
"""

from __future__ import annotations

from runbook_lib.packs.queues.checks import checks_of

from . import held, waiting
from .sample import JOBS

CHECKS = checks_of(
    JOBS,
    steps={"clocks": "2.4", "criteria": None, "record": None, "history": None, "changes": "3.4"},
    own=(*waiting.CHECKS, *held.CHECKS),
    places=tuple(check for check in held.CHECKS if check.step.startswith("4.2")),
)
"""Every check; each step of docs/runbook.md is answered by exactly one."""
