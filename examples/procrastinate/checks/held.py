"""Section 4.2: jobs stay in `doing`: their worker is gone, they run too long, or they hold a lock that others need."""

from __future__ import annotations

from runbook_lib.actions import proposals
from runbook_lib.checks.cases import Case, Cases
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import LOOK_AGAIN, Finding, Frames, Hop, Proposal, Status, Value, judged, say

from . import remedies, sample
from .sample import Job, Sample, Whereabouts
from .waiting import start

# 4.2.1 Whose are they? --------------------------------------------------------------------------------------


def _put_back(given: JudgeInput, seen: Sample) -> tuple[Proposal, ...]:
    look_first = () if seen.whereabouts is Whereabouts.GONE else remedies.look(given, seen)
    return (*look_first, *(() if seen.alive else start(given, seen)), remedies.retry(given, seen.orphans))


#: Jobs whose worker has no heartbeat, by what is known of it.
ORPHANS = Cases[Sample](
    Case("jobs.none", lambda seen: not seen.doing),
    Case("jobs.in_good_hands", lambda seen: not seen.left, evidence="jobs.in_good_hands"),
    Case(
        "jobs.abandoned", lambda seen: seen.whereabouts == Whereabouts.GONE, Status.WARNING, "jobs.abandoned", _put_back
    ),
    Case(
        "jobs.likely_abandoned",
        lambda seen: seen.whereabouts == Whereabouts.LIKELY_GONE,
        Status.WARNING,
        "jobs.likely_abandoned",
        _put_back,
    ),
    Case(
        "jobs.of_connected",
        lambda seen: seen.whereabouts == Whereabouts.CONNECTED,
        Status.WARNING,
        "jobs.of_connected",
        remedies.read_and_look,
    ),
    # They may yet end by themselves.
    Case("jobs.of_ending", lambda seen: seen.whereabouts == Whereabouts.ENDING, Status.WARNING, "jobs.of_ending"),
    Case("jobs.of_unseen", status=Status.WARNING, evidence="jobs.of_unseen", propose=remedies.look),
)


def judge_orphans(seen: Sample, frames: Frames) -> Finding:
    """Judge 4.2.1: jobs of dead workers, which no worker takes over; jobs of workers that may live are left alone."""
    given, decided, doing = seen.given, ORPHANS.of(seen), seen.count("doing")
    gone = seen.whereabouts in (Whereabouts.GONE, Whereabouts.LIKELY_GONE)
    values = [
        given.limits.value("jobs.abandoned", seen.left if gone else 0),
        Value("jobs.doing", doing, "rows"),
        Value("jobs.without_a_sign", seen.left, "rows"),
        *([Value("jobs.silent_for", seen.absent_s, "s")] if seen.left else []),
        *([Value(f"jobs.{LOOK_AGAIN}", seen.look_again_s, "s")] if seen.left and seen.look_again_s else []),
    ]
    return judged(
        decided.headline(
            n=seen.left,
            doing=doing,
            silence=seen.absent_s,
            again=seen.look_again_s,
            jobs=", ".join(str(j.job) for j in seen.orphans[:5]),
            grace=seen.settings.grace_s,
        ),
        values,
        at_least=decided.status,
        signals=decided.signals(given),
        hops=(Hop("worker", waiting=doing),),
        proposals=decided.proposals(given),
        show=("doing",) if doing else (),
        decision=decided.decision,
    )


# 4.2.2 For how long? ----------------------------------------------------------------------------------------


def judge_running(seen: Sample, frames: Frames) -> Finding:
    """Judge 4.2.2: jobs that run too long on a healthy worker, whose cause is in the task."""
    given, running, well_s = seen.given, seen.count("served"), seen.settings.longest_job_s
    longest = max(seen.running, key=lambda j: (j.running_s is not None, j.running_s), default=Job())
    share = None if longest.running_s is None else longest.running_s / well_s
    value = given.limits.value("jobs.running", share if running else 0.0)
    long = running > 0 and value.status in (Status.WARNING, Status.CRITICAL)
    others_wait = seen.due and not seen.spare
    return judged(
        say(
            "running.long" if long else "running.well" if running else "running.none",
            job=longest.job,
            task=longest.task,
            running=longest.running_s,
            longest=well_s,
            n=running,
            asked=say("running.asked") if longest.abort_requested else None,
        ),
        [value, Value("jobs.longest", longest.running_s, "s"), Value("jobs.running_now", running, "rows")],
        signals=given.evidence("task.long_and_busy" if others_wait else "task.long") if long else (),
        hops=(Hop("task", alive=say("alive.long", s=longest.running_s)),) if long else (),
        proposals=(proposals.logs(given, "worker"), remedies.abort(given, longest)) if long else (),
        show=("doing",) if long else (),
    )


# 4.2.3 Who waits for their lock? ----------------------------------------------------------------------------


class Head(rows.Row, query="jobs/heads"):
    """The first job of a lock, for which others wait: it runs, is due, or is scheduled for later."""

    job: int = 0
    task: str = ""
    state: str = ""
    attempts: int = 0
    behind: int = 0
    oldest_behind_s: float | None = None
    begins_in_s: float | None = None


def judge_locks(seen: Sample, frames: Frames) -> Finding:
    """Judge 4.2.3: jobs with the same lock run one after the other, so the first one blocks the rest."""
    given, heads = seen.given, rows.each(frames["heads"], Head)
    behind, limit = sum(h.behind for h in heads), given.limits["lock.waits"]
    oldest = max((h.oldest_behind_s for h in heads if h.oldest_behind_s is not None), default=None)
    late = [h for h in heads if limit.reached(h.oldest_behind_s)]
    first = max(late or heads, key=lambda h: (h.oldest_behind_s is not None, h.oldest_behind_s), default=Head())
    observation = _find_cause(first, seen) if late else ""
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
        [
            given.limits.value("lock.waits", oldest if heads else 0.0),
            Value("lock.jobs_behind", behind, "rows"),
            Value("lock.heads", len(heads), "jobs"),
        ],
        signals=given.evidence(observation) if observation else (),
        hops=(Hop("queue", late=bool(late)),),
        proposals=(remedies.see_job(given, first.job),) if observation == "lock.behind_later" else (),
        next_sections=("4.1",) if observation in ("lock.behind_due", "lock.behind_retry") else (),
        show=("heads",) if heads else (),
    )


def _find_cause(head: Head, seen: Sample) -> str:
    """Return why the first job blocks the others: no worker, runs long, waits for a retry, or only many behind it."""
    if head.state == "later":
        return "lock.behind_retry" if head.attempts else "lock.behind_later"
    if head.state != "doing":
        return "lock.behind_due"
    if head.job in {j.job for j in seen.orphans}:
        return "lock.behind_abandoned" if seen.whereabouts is Whereabouts.GONE else "lock.behind_silent"
    limit, well_s = seen.given.limits["jobs.running"], seen.settings.longest_job_s
    runs_s = next((j.running_s for j in seen.running if j.job == head.job), None)
    return "lock.behind_long" if limit.reached(runs_s and runs_s / well_s) else "lock.behind"


CHECKS = (
    *(sample.check(step, judge_orphans) for step in ("4.2.1", "6.3")),
    sample.check("4.2.2", judge_running),
    sample.check("4.2.3", judge_locks, "jobs/heads"),
)
