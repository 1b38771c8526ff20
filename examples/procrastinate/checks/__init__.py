"""The checks, a module per topic; `look` is what most of them look at."""

from __future__ import annotations

from . import database, held, recovery, response, scope, waiting

CHECKS = (
    *scope.CHECKS,
    *response.CHECKS,
    *waiting.CHECKS,
    *database.CHECKS,
    *held.CHECKS,
    *recovery.CHECKS,
)
"""Every check; each step of docs/runbook.md is answered by exactly one."""
