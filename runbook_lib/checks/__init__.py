"""How a step of a runbook is answered: `check` has its form, `parts` those that ask several things."""

from __future__ import annotations

from runbook_lib import pack
from runbook_lib.checks.check import Check


def checks() -> dict[str, Check]:
    """Every check of the runbook in force by its step's id. Raises UsageError where two answer one step."""
    return pack.joined("step", ((c.step, c) for brought in pack.in_force().every("checks") for c in brought))
