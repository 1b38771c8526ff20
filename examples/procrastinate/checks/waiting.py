"""Steps 4.1.1 to 4.1.3: why jobs wait: an unserved queue, the workers, or a failing task."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from runbook_lib.actions import proposals
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Finding,
    Frames,
    Hop,
    Proposal,
    Signal,
    Status,
    Text,
    Value,
    judged,
    replace,
    say,
)
from runbook_lib.packs.queues.checks.database import HoldingSession
from runbook_lib.packs.queues.checks.work import describe_flow
from runbook_lib.view import charts

from ..facts import facts
from . import remedies, sample
from .sample import Queue, Sample, Whereabouts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

# 4.1.1 What waits? ------------------------------------------------------------------------------------------


def judge_queues(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 4.1.1: old due jobs; a queue is skipped if jobs of other queues are taken meanwhile."""
    seen = sample.read_sample(frames, given)
    oldest = given.limits.value("queue.oldest_due", seen.oldest_due_s)
    late = oldest.status is not Status.OK
    passed = passed_over(seen, given)
    observation = _why_passed_over(seen, passed[0], given) if passed else None
    if not observation and seen.due and seen.per_minute("begun") and not late:
        observation = "queue.moves"
    if observation:
        headline = observation.removeprefix("queue.")
    else:
        headline = "late" if late else "moves" if seen.due else "empty"
    facts_ = {
        "due": seen.due,
        "oldest": seen.oldest_due_s,
        "queue": passed[0].queue if passed else _oldest_queue(seen).queue,
        "behind": sum(q.behind for q in seen.queues),
    }
    return judged(
        say(f"waits.{headline}", **facts_),
        [
            oldest,
            given.limits.value("queue.tried", sum(q.tried for q in seen.queues)),
            Value("queue.due", seen.due, "rows"),
            Value("queue.behind_lock", facts_["behind"], "rows"),
            Value("queue.later", sum(q.later for q in seen.queues), "rows"),
        ],
        notes=_notes(seen, given),
        signals=given.evidence(observation) if observation else (),
        hops=(
            Hop("app", rate_out=seen.per_minute("deferred")),
            Hop(
                "queue",
                rate_in=seen.per_minute("deferred"),
                rate_out=seen.per_minute("begun"),
                waiting=seen.due,
                oldest_s=seen.oldest_due_s,
                late=late,
            ),
        ),
        proposals=_propose_for_passed_over(observation, passed, seen, given),
        next_sections=("4.2",) if late and seen.orphans else (),
        show=("queues",),
    )


def passed_over(seen: Sample, given: JudgeInput) -> list[Queue]:
    """Return the queues with a late job, none running and none begun since it became due; the oldest first."""
    limit = given.limits["queue.oldest_due"]
    late = [
        q
        for q in seen.queues
        if q.due
        and q.oldest_due_s is not None
        and limit.reached(q.oldest_due_s)
        and not q.served
        and (q.begun_s is None or q.begun_s >= q.oldest_due_s)
    ]
    return sorted(late, key=_oldest_age, reverse=True)


def _why_passed_over(seen: Sample, queue: Queue, given: JudgeInput) -> str | None:
    """Return why a queue is skipped: no listener, all workers busy, or locked rows; None if that is not known."""
    if not seen.alive:
        return None  # nobody takes anything; 4.1.2 says who is missing
    heard = queue.taken_by_living
    if row_holders(seen, given):
        return "queue.held" if heard and seen.spare > 0 else "queue.unserved_or_held"
    if seen.spare > 0:
        return "queue.heard_and_left" if heard else "queue.unserved"
    return None if heard else "queue.unserved_or_busy"


def _propose_for_passed_over(
    observation: str | None, passed: list[Queue], seen: Sample, given: JudgeInput
) -> tuple[Proposal, ...]:
    match observation:
        case "queue.unserved" | "queue.unserved_or_busy":
            return (remedies.listens_to(given, passed[0].queue),)
        case "queue.held":
            first = row_holders(seen, given)[0]
            idle = first.state.startswith("idle")
            return (proposals.end_blocker(given, first.pid, first.application, idle=idle),)
        case _:
            return ()


def row_holders(seen: Sample, given: JudgeInput) -> list[HoldingSession]:
    """Return the sessions that have locked rows of the jobs' table for too long."""
    limit = given.limits["transactions.held"]
    return [h for h in seen.holders if limit.reached(h.transaction_s)]


def _oldest_queue(seen: Sample) -> Queue:
    return max(seen.queues, key=_oldest_age, default=Queue())


def _oldest_age(queue: Queue) -> float:
    """Return how long the oldest job waits, to sort by; a queue without a job comes last."""
    return -math.inf if queue.oldest_due_s is None else queue.oldest_due_s


def _notes(seen: Sample, given: JudgeInput) -> tuple[Text, ...]:
    notes = []
    if sum(q.due + q.behind + q.later for q in seen.queues) >= given.number("looked_at"):
        notes.append(say("waits.capped", most=given.number("looked_at")))
    if seen.alive and seen.spare < 0:
        notes.append(say("waits.concurrency", n=seen.settings.concurrency))
    return tuple(notes)


# 4.1.2 Who is at work? --------------------------------------------------------------------------------------


def judge_workers(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 4.1.2: a worker that shut down has no row, a killed one leaves its row, a silent one may do either."""
    seen = sample.read_sample(frames, given)
    limits = given.limits
    late = limits["queue.oldest_due"].status(seen.oldest_due_s) is not Status.OK
    observation = _worker_observation(seen, late, given)
    silence = min((w.silent_s for w in seen.workers if w.silent_s is not None), default=None)
    values = [
        limits.value("workers.alive", len(seen.alive)),
        Value("workers.silent", len(seen.silent), "workers"),
        Value("workers.slots", len(seen.alive) * seen.settings.concurrency, "jobs"),
        Value("workers.running", sum(q.served for q in seen.queues), "jobs"),
    ]
    if silence is not None:
        share = limits.value("workers.silence", silence / seen.settings.stalled_after_s)
        values.append(share if seen.alive else replace(share, threshold=None))
    if not seen.alive and seen.look_again_s:
        values.append(Value(f"workers.{LOOK_AGAIN}", seen.look_again_s, "s"))
    return judged(
        say(
            observation,
            alive=len(seen.alive),
            silent=len(seen.silent),
            silence=silence,
            due=seen.due,
            running=sum(q.served for q in seen.queues),
            orphans=len(seen.orphans),
            again=seen.look_again_s,
        ),
        values,
        at_least=_status(observation, late, seen),
        notes=_silent_notes(seen),
        signals=given.evidence(observation),
        hops=(
            Hop(
                "worker",
                rate_in=seen.per_minute("begun"),
                rate_out=seen.per_minute("succeeded") + seen.per_minute("retried") + seen.per_minute("failed"),
                waiting=sum(q.doing for q in seen.queues),
                alive=say("alive.workers", n=len(seen.alive)) if seen.alive else say("alive.nobody"),
            ),
        ),
        proposals=_remedies(observation, seen, given),
        next_sections=("4.2",) if seen.orphans else (),
        show=("workers",) if seen.workers else (),
    )


def _worker_observation(seen: Sample, late: bool, given: JudgeInput) -> str:
    if not seen.alive:
        if not seen.silent:
            return "workers.unregistered" if seen.instances else "workers.none" if seen.due else "workers.none_idle"
        return f"workers.{seen.whereabouts}"
    if late and seen.spare == 0:
        if passed := passed_over(seen, given):
            # Whether they are busy, or would not take it anyway, can not be told: 4.1.1 says so.
            return "workers.busy" if passed[0].taken_by_living else "workers.busy_elsewhere"
        return "workers.busy"
    return "workers.at_work" if seen.running or seen.per_minute("begun") else "workers.idle"


def _silent_notes(seen: Sample) -> tuple[Text, ...]:
    if not seen.alive or not seen.silent:
        return ()
    hangs = seen.whereabouts is Whereabouts.CONNECTED
    return (say("workers.some_connected" if hangs else "workers.some_silent", n=len(seen.silent)),)


def _status(observation: str, late: bool, seen: Sample) -> Status:
    if observation in ("workers.at_work", "workers.idle"):
        # The row that a dead one left says nothing; one that still listens is missed.
        return Status.WARNING if seen.silent and seen.whereabouts is Whereabouts.CONNECTED else Status.OK
    nobody = observation in ("workers.none", "workers.gone", "workers.likely_gone")
    return Status.CRITICAL if nobody and late else Status.WARNING


def _remedies(observation: str, seen: Sample, given: JudgeInput) -> tuple[Proposal, ...]:
    match observation:
        case "workers.none" | "workers.gone" | "workers.likely_gone" if seen.due or seen.orphans:
            look_first = observation == "workers.likely_gone" and seen.orphans
            return (*([remedies.process(given)] if look_first else []), *start(seen, given))
        case "workers.unregistered":
            return (proposals.logs(given, "worker"),)
        case "workers.connected":
            return (proposals.logs(given, "worker"), remedies.process(given))
        case "workers.unseen":
            return (remedies.process(given),)
        case _:
            return ()


def start(seen: Sample, given: JudgeInput) -> tuple[Proposal, ...]:
    """Return the proposals that start a worker if none runs."""
    if sample.connections_full(seen, given):
        return ()  # it would find no connection; 4.1.4 says who has them
    # A running process without a heartbeat is starting, or fails to start: its log says which.
    return (proposals.logs(given, "worker") if seen.instances else proposals.restart(given, "worker"),)


# 4.1.3 Does a task fail? ------------------------------------------------------------------------------------


class Task(rows.Row, query="events/tasks"):
    """The recent tries of one task, by their end."""

    task: str = ""
    begun: int = 0
    succeeded: int = 0
    retried: int = 0
    put_back: int = 0
    failed: int = 0
    last_failed_s: float | None = None

    @property
    def failures(self) -> int:
        """Tries that ended in an error, whether another follows or not."""
        return self.retried + self.failed

    @property
    def share(self) -> float | None:
        """The share of tries that ended in an error, in per cent."""
        ended = self.succeeded + self.failures
        return 100 * self.failures / ended if ended else None


def collect_errors(rb: Context) -> Frames:
    """Collect 4.1.3: the tries of the last five minutes by task."""
    with rb.snapshot() as db:
        return {"tasks": db.ask("events/tasks", most=sample.row_limit(rb), within_s=rb.number("lately"))}


def judge_errors(frames: Frames, given: JudgeInput) -> Finding:
    """Judge 4.1.3: a task that fails at every try is stuck at the task, even if the workers are healthy."""
    seen = sample.read_sample(frames, given)
    tasks = rows.each(frames["tasks"], Task)
    limits = given.limits
    failures, ended = sum(t.failures for t in tasks), sum(t.failures + t.succeeded for t in tasks)
    # Jobs that are deleted when they succeed take their events with them: what is left would be failures alone.
    counts_all = facts(given).delete_jobs == "never"
    tried = sum(q.tried for q in seen.queues)
    often = [t for t in tasks if limits["errors.tries"].status(t.failures) is not Status.OK]
    worst = max(often or tasks, key=lambda t: (t.share is not None, t.share, t.failures), default=Task())
    last = min((t.last_failed_s for t in tasks if t.last_failed_s is not None), default=None)
    over = bool(failures) and not tried and limits["errors.quiet"].status(last) is Status.OK
    values = [
        Value("errors.failed_tries", failures, "rows"),
        Value("errors.last", last, "s"),
        Value("errors.wait_for_retry", tried, "rows"),
    ]
    if counts_all and ended and not over and often:
        values += [limits.value("errors.rate", 100 * failures / ended), limits.value("errors.task", worst.share)]
    observation = _find_failing(failures, bool(often), over, counts_all, worst, given)
    return judged(
        say(
            observation or "task.well",
            task=worst.task,
            n=worst.failures,
            ended=worst.failures + worst.succeeded,
            failures=failures,
            minutes=given.number("lately") / 60,
            last=last,
            tried=tried,
        ),
        values,
        at_least=Status.WARNING if failures and not over else Status.OK,
        notes=_task_notes(tasks, counts_all, given),
        signals=given.evidence(observation) if observation else _is_well(ended, given),
        hops=(
            Hop(
                "task",
                rate_out=seen.per_minute("succeeded") if counts_all else None,
                waiting=tried,
                alive=say("alive.fails") if observation in ("task.fails", "task.fails_often") else None,
            ),
        ),
        proposals=(proposals.logs(given, "worker"),) if failures and not over else (),
        show=("tasks",) if tasks else (),
    )


def _task_notes(tasks: list[Task], counts_all: bool, given: JudgeInput) -> tuple[Text, ...]:
    put_back = sum(t.put_back for t in tasks)
    return (
        *([say("task.put_back", n=put_back)] if put_back else []),
        *([] if counts_all else [say("task.deleted", which=facts(given).delete_jobs)]),
    )


def _find_failing(
    failures: int, often: bool, over: bool, counts_all: bool, worst: Task, given: JudgeInput
) -> str | None:
    if not failures:
        return None
    if over:
        return "task.failed_before"
    if not often:
        return "task.fails_at_times"
    if not counts_all:
        return "task.fails_often"
    return "task.fails" if given.limits["errors.task"].status(worst.share) is Status.CRITICAL else "task.fails_at_times"


def _is_well(ended: int, given: JudgeInput) -> tuple[Signal, ...]:
    return given.evidence("task.succeeds") if ended else ()


def chart_flow(frames: Frames, given: JudgeInput) -> charts.Chart | None:
    """Return the chart of the jobs deferred, begun and ended in the last minutes, in steps of ten seconds."""
    by_age = {t.tens_ago: t for t in sample.read_sample(frames, given).flow}
    tens = [by_age.get(n, sample.TenSeconds()) for n in reversed(range(int(given.number("lately") // 10)))]
    counted = {what: [getattr(t, what) for t in tens] for what in ("deferred", "begun", "succeeded")}
    counted["failed"] = [t.retried + t.failed for t in tens]
    found = describe_flow(counted, "10 s", given.number("lately") / 60)
    totals = {what: sum(counts) for what, counts in counted.items()}
    alt = say("waits.alt_flow", minutes=given.number("lately") / 60, **totals)
    return found and replace(found, alt=alt, caption=(say("waits.flow_caption"),))


QUEUES = sample.check("4.1.1", judge_queues, charts=(chart_flow,))
WORKERS = sample.check("4.1.2", judge_workers)
ERRORS = sample.check("4.1.3", judge_errors, collect_errors, needs=("tasks",))
CHECKS = (QUEUES, WORKERS, ERRORS)
