"""Checks, which answer the steps of a runbook: `check` has their form, `parts` those that read several things."""

from __future__ import annotations

from runbook_lib import pack
from runbook_lib.checks.check import Check


def checks() -> dict[str, Check]:
    """Return every check of the active runbook by its step's id. Raises UsageError if two answer one step."""
    return pack.merge_unique(
        "step", ((c.step, c) for brought in pack.active_runbook().every("checks") for c in brought)
    )
