"""The facts of such a system in a target's settings: where its workers run, and how long a row may be in work."""

from __future__ import annotations

from pydantic import Field

from runbook_lib.checks.context import Context, JudgeInput
from runbook_lib.sources import settings
from runbook_lib.sources.settings import DAY_S


class Workloads(settings.WorkloadSettings):
    """The name of the one workload."""

    worker: str = "worker"


class Facts(settings.TargetFacts):
    """The workers' settings."""

    workloads: Workloads = Workloads()
    longest_s: float = Field(300.0, gt=0, le=DAY_S, description="no row that is well is in work for longer")


def facts(of: Context | JudgeInput) -> Facts:
    """Return the facts of the target."""
    assert isinstance(of.facts, Facts)  # noqa: S101 - this room's, or a subclass of a pack that uses it
    return of.facts
