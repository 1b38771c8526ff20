"""The facts of this system in a target's settings: the workers' settings, and where they run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runbook_lib.checks.context import Context, JudgeInput
from runbook_lib.packs.queues.facts import Workloads
from runbook_lib.sources import settings
from runbook_lib.sources.settings import DAY_S


class Facts(settings.TargetFacts):
    """The workers' settings; the defaults are procrastinate's own."""

    workloads: Workloads = Workloads()
    concurrency: int = Field(1, ge=1, le=10_000, description="jobs that one worker runs at once")
    poll_interval_s: float = Field(5.0, gt=0, le=DAY_S, description="a worker's look for jobs that nobody told it of")
    stalled_after_s: float = Field(30.0, gt=0, le=DAY_S, description="without a heartbeat a worker counts as stalled")
    grace_s: float = Field(30.0, ge=0, le=DAY_S, description="what a worker gets to end its jobs before it is killed")
    longest_job_s: float = Field(300.0, gt=0, le=DAY_S, description="no job that is well runs longer")
    listens: bool = Field(True, description="workers are told of new jobs (listen_notify), so each has such a session")
    application: str = Field("", description="application_name of the workers' sessions, where it is theirs alone")
    delete_jobs: Literal["never", "successful", "always"] = Field("never", description="which jobs leave no trace")


def facts(of: Context | JudgeInput) -> Facts:
    """Return the facts of the target."""
    assert isinstance(of.facts, Facts)  # noqa: S101 - this pack's runbook is in force
    return of.facts
