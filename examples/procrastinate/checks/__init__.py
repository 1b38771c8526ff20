"""The checks, a module per topic; `sample` has the sample that most of them share."""

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
