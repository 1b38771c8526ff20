"""Section 4.2: jobs stay in `doing`: their worker is gone, they run too long, or they hold a lock that others need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runbook_lib.actions import proposals
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import LOOK_AGAIN, Finding, Frames, Hop, Proposal, Signal, Status, Value, judged, say

from ..facts import facts
from . import remedies, sample, waiting
from .sample import Job, Sample, Whereabouts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: Jobs whose worker has no heartbeat, by what is known of it.
ORPHANED = {
    Whereabouts.GONE: "jobs.abandoned",
    Whereabouts.LIKELY_GONE: "jobs.likely_abandoned",
    Whereabouts.CONNECTED: "jobs.of_connected",
    Whereabouts.ENDING: "jobs.of_ending",
    Whereabouts.UNSEEN: "jobs.of_unseen",
}


# 4.2.1 Whose are they? --------------------------------------------------------------------------------------


def judge_orphans(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 4.2.1: jobs of dead workers, which no worker takes over; jobs of workers that may live are left alone."""
    seen = sample.read_sample(frames, given)
    doing = sum(q.doing for q in seen.queues)
    orphans = doing - sum(q.served for q in seen.queues)
    gone = seen.whereabouts in (Whereabouts.GONE, Whereabouts.LIKELY_GONE)
    observation = ORPHANED[seen.whereabouts] if orphans else "jobs.in_good_hands" if doing else "jobs.none"
    values = [
        given.limits.value("jobs.abandoned", orphans if gone else 0),
        Value("jobs.doing", doing, "rows"),
        Value("jobs.without_a_sign", orphans, "rows"),
    ]
    if orphans:
        values.append(Value("jobs.silent_for", seen.absent_s, "s"))
        if seen.look_again_s:
            values.append(Value(f"jobs.{LOOK_AGAIN}", seen.look_again_s, "s"))
    return judged(
        say(
            observation,
            n=orphans,
            doing=doing,
            silence=seen.absent_s,
            again=seen.look_again_s,
            jobs=", ".join(str(j.job) for j in seen.orphans[:5]),
            grace=facts(given).grace_s,
        ),
        values,
        at_least=Status.WARNING if orphans else Status.OK,
        signals=given.evidence(observation) if observation != "jobs.none" else (),
        hops=(Hop("worker", waiting=doing),),
        proposals=_propose_for_orphans(seen, orphans, given),
        show=("doing",) if doing else (),
    )


def _propose_for_orphans(seen: Sample, orphans: int, given: JudgeInput) -> tuple[Proposal, ...]:
    if not orphans:
        return ()
    match seen.whereabouts:
        case Whereabouts.GONE | Whereabouts.LIKELY_GONE:
            start = () if seen.alive else waiting.start(seen, given)
            look_first = () if seen.whereabouts is Whereabouts.GONE else (remedies.process(given),)
            return (*look_first, *start, remedies.retry(given, seen.orphans))
        case Whereabouts.CONNECTED:
            return (proposals.logs(given, "worker"), remedies.process(given))
        case Whereabouts.UNSEEN:
            return (remedies.process(given),)
        case _:
            return ()  # they may yet end by themselves


# 4.2.2 For how long? ----------------------------------------------------------------------------------------


def judge_running(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 4.2.2: jobs that run too long on a healthy worker, whose cause is in the task."""
    seen = sample.read_sample(frames, given)
    longest = _longest(seen)
    running = sum(q.served for q in seen.queues)
    share = None if longest.running_s is None else longest.running_s / facts(given).longest_job_s
    value = given.limits.value("jobs.running", share if running else 0.0)
    long = running > 0 and value.status in (Status.WARNING, Status.CRITICAL)
    return judged(
        say(
            "running.long" if long else "running.well" if running else "running.none",
            job=longest.job,
            task=longest.task,
            running=longest.running_s,
            longest=facts(given).longest_job_s,
            n=running,
            asked=say("running.asked") if longest.abort_requested else None,
        ),
        [value, Value("jobs.longest", longest.running_s, "s"), Value("jobs.running_now", running, "rows")],
        signals=_evidence_of_long_job(seen, given) if long else (),
        hops=(Hop("task", alive=say("alive.long", s=longest.running_s)),) if long else (),
        proposals=(proposals.logs(given, "worker"), remedies.abort(given, longest)) if long else (),
        show=("doing",) if long else (),
    )


def _longest(seen: Sample) -> Job:
    return max(seen.running, key=lambda j: (j.running_s is not None, j.running_s), default=Job())


def is_long(job: Job, given: JudgeInput) -> bool:
    """Return whether a job runs longer than a healthy one."""
    if job.running_s is None:
        return False
    share = job.running_s / facts(given).longest_job_s
    return given.limits["jobs.running"].status(share) is not Status.OK


def _evidence_of_long_job(seen: Sample, given: JudgeInput) -> tuple[Signal, ...]:
    """Return the evidence of a long job: other jobs wait for its worker, or only this job is affected."""
    return given.evidence("task.long_and_busy" if seen.due and seen.spare <= 0 else "task.long")


# 4.2.3 Who waits for their lock? ----------------------------------------------------------------------------


class Head(rows.Row, query="jobs/heads"):
    """The first job of a lock, for which others wait: it runs, is due, or is scheduled for later."""

    job: int = 0
    queue: str = ""
    task: str = ""
    state: str = ""
    attempts: int = 0
    behind: int = 0
    oldest_behind_s: float | None = None
    begins_in_s: float | None = None


def collect_locks(rb: Context) -> Frames:
    """Collect 4.2.3: the first job of each lock."""
    with rb.snapshot() as db:
        return {"heads": db.ask("jobs/heads", most=sample.row_limit(rb))}


def judge_locks(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 4.2.3: jobs with the same lock run one after the other, so the first one blocks the rest."""
    seen = sample.read_sample(frames, given)
    heads = rows.each(frames["heads"], Head)
    behind = sum(h.behind for h in heads)
    oldest = max((h.oldest_behind_s for h in heads if h.oldest_behind_s is not None), default=None)
    waits = given.limits.value("lock.waits", oldest if heads else 0.0)
    late = [h for h in heads if given.limits["lock.waits"].reached(h.oldest_behind_s)]
    first = max(late or heads, key=lambda h: (h.oldest_behind_s is not None, h.oldest_behind_s), default=Head())
    observation = _find_cause(first, seen, given) if late else None
    return judged(
        say(
            observation or ("lock.moves" if heads else "lock.none"),
            behind=first.behind,
            all=behind,
            oldest=first.oldest_behind_s,
            job=first.job,
            task=first.task,
            attempts=first.attempts,
            begins=first.begins_in_s,
        ),
        [waits, Value("lock.jobs_behind", behind, "rows"), Value("lock.heads", len(heads), "jobs")],
        signals=given.evidence(observation) if observation else (),
        hops=(Hop("queue", late=bool(late)),),
        proposals=(remedies.see_job(given, first.job),) if observation == "lock.behind_later" else (),
        next_sections=("4.1",) if observation in ("lock.behind_due", "lock.behind_retry") else (),
        show=("heads",) if heads else (),
    )


def _find_cause(head: Head, seen: Sample, given: JudgeInput) -> str:
    """Return why the first job blocks the others: no worker, runs long, waits for a retry, or only many behind it."""
    if head.state == "doing":
        if head.job in {j.job for j in seen.orphans}:
            gone = seen.whereabouts is Whereabouts.GONE
            return "lock.behind_abandoned" if gone else "lock.behind_silent"
        long = any(is_long(j, given) for j in seen.running if j.job == head.job)
        return "lock.behind_long" if long else "lock.behind"
    if head.state == "later":
        return "lock.behind_retry" if head.attempts else "lock.behind_later"
    return "lock.behind_due"


ORPHANS = sample.check("4.2.1", judge_orphans)
CHECKS = (
    ORPHANS,
    sample.check("4.2.2", judge_running),
    sample.check("4.2.3", judge_locks, collect_locks, needs=("heads",)),
)
