"""The remedies of this system as commands, beside those that every system has."""

from __future__ import annotations

from collections.abc import Iterable

from runbook_lib.actions import proposals
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Proposal

from ..facts import facts
from .sample import Job, Sample

#: So many jobs one command names.
AT_ONCE = 50


def listens_to(given: JudgeInput, seen: Sample) -> tuple[Proposal, ...]:
    """See in the worker's log which queues it was started for (4.1)."""
    told = {"queue": seen.passed_over and seen.passed_over.queue, "worker": seen.settings.workloads.worker}
    return (Proposal("listens_to", proposals.logs(given, "worker").command, "4.1", told),)


def read_log(given: JudgeInput, seen: Sample) -> tuple[Proposal, ...]:
    """Read the worker's log."""
    return (proposals.logs(given, "worker"),)


def look(given: JudgeInput, seen: Sample) -> tuple[Proposal, ...]:
    """See whether the worker's process is there: what settles it where the database can not (4.2)."""
    command = proposals.pods(given, "worker").command
    return (Proposal("worker_process", command, "4.2", {"worker": seen.settings.workloads.worker}),)


def read_and_look(given: JudgeInput, seen: Sample) -> tuple[Proposal, ...]:
    """Read the worker's log, and see whether its process is there."""
    return (*read_log(given, seen), *look(given, seen))


def retry(given: JudgeInput, orphans: Iterable[Job]) -> Proposal:
    """Put jobs of dead workers back (4.2); the statement leaves out each whose worker has a heartbeat by then."""
    ids = [j.job for j in orphans][:AT_ONCE]
    # v1 is there since 3.0 and takes what is in `doing` only; v2 would put a failed job back as well.
    sql = (
        "SELECT j.id, procrastinate_retry_job_v1(j.id, now(), NULL, NULL, NULL) FROM procrastinate_jobs j "  # noqa: S608
        f"LEFT JOIN procrastinate_workers w ON w.id = j.worker_id WHERE j.id IN ({', '.join(map(str, ids))}) "
        "AND j.status = $$doing$$ AND (w.id IS NULL OR w.last_heartbeat < now() - "  # a shell has the other quotes
        f"make_interval(secs => {facts(given).stalled_after_s:g}))"
    )
    return Proposal(
        "retry_orphans", proposals.psql(given, sql), "4.2", {"n": len(ids), "jobs": ", ".join(map(str, ids))}
    )


def abort(given: JudgeInput, job: Job) -> Proposal:
    """Ask one job to end, by procrastinate's own function; with its owner's consent only (4.2)."""
    sql = f"SELECT procrastinate_cancel_job_v1({job.job}, true, false)"
    return Proposal("abort_job", proposals.psql(given, sql), "4.2", {"job": job.job, "task": job.task})


def see_job(given: JudgeInput, job: int) -> Proposal:
    """See the job that stands in front of others (4.2)."""
    columns = "id, queue_name, task_name, status, attempts, scheduled_at, worker_id"
    sql = f"SELECT {columns} FROM procrastinate_jobs WHERE id = {job}"  # noqa: S608 - shown, not run; a number
    return Proposal("see_job", proposals.psql(given, sql), "4.2", {"job": job})
