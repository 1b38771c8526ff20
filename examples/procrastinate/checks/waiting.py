"""Steps 3.1, 4.1.1 to 4.1.3 and 6.1: who is affected and why jobs wait: a queue, the workers, or a failing task."""

from __future__ import annotations

import math

from runbook_lib.actions import proposals
from runbook_lib.checks.cases import Case, Cases
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Finding,
    Frames,
    Hop,
    Proposal,
    Status,
    Value,
    judged,
    replace,
    say,
)
from runbook_lib.packs.queues.checks import triage, work
from runbook_lib.view import charts

from ..facts import facts
from . import remedies, sample
from .sample import Queue, Sample, Whereabouts

# 4.1.1 What waits? ------------------------------------------------------------------------------------------


def _end_holder(given: JudgeInput, seen: Sample) -> tuple[Proposal, ...]:
    first = seen.row_holders[0]
    idle = (first.state or "").startswith("idle")
    return (proposals.end_blocker(given, first.pid or 0, first.application or "-", idle=idle),)


#: Nobody takes anything without a worker, and 4.1.2 says who is missing.
QUEUES = Cases[Sample](
    Case(
        "waits.held",
        lambda seen: seen.passed_over and seen.alive and seen.row_holders and not seen.unheard and seen.spare,
        evidence="queue.held",
        propose=_end_holder,
    ),
    Case(
        "waits.unserved_or_held",
        lambda seen: seen.passed_over and seen.alive and seen.row_holders,
        evidence="queue.unserved_or_held",
    ),
    Case(
        "waits.heard_and_left",
        lambda seen: seen.passed_over and seen.alive and not seen.unheard and seen.spare,
        evidence="queue.heard_and_left",
    ),
    Case(
        "waits.unserved",
        lambda seen: seen.passed_over and seen.alive and seen.spare,
        evidence="queue.unserved",
        propose=remedies.listens_to,
    ),
    Case(
        "waits.unserved_or_busy",
        lambda seen: seen.passed_over and seen.alive and seen.unheard,
        evidence="queue.unserved_or_busy",
        propose=remedies.listens_to,
    ),
    Case("waits.late", lambda seen: seen.late),
    Case(
        "waits.moves", lambda seen: seen.due, evidence=lambda seen: ("queue.moves",) if seen.per_minute("begun") else ()
    ),
    Case("waits.empty"),
)


def judge_queues(seen: Sample, frames: Frames) -> Finding:
    """Judge 4.1.1: old due jobs; a queue is skipped if jobs of other queues are taken meanwhile."""
    given, decided, most = seen.given, QUEUES.of(seen), seen.given.number("looked_at")
    first = seen.passed_over or max(seen.queues, key=lambda q: q.oldest_due_s or -math.inf, default=Queue())
    capped = seen.due + seen.count("behind") + seen.count("later") >= most
    other = 0 < len(seen.alive) * seen.settings.concurrency < seen.count("served")
    deferred, begun = seen.per_minute("deferred"), seen.per_minute("begun")
    return judged(
        decided.headline(due=seen.due, oldest=seen.oldest_due_s, queue=first.queue, behind=seen.count("behind")),
        [
            given.limits.value("queue.oldest", seen.oldest_due_s),
            given.limits.value("queue.tried", seen.count("tried")),
            Value("queue.due", seen.due, "rows"),
            Value("queue.behind_lock", seen.count("behind"), "rows"),
            Value("queue.later", seen.count("later"), "rows"),
        ],
        notes=(
            *([say("waits.capped", most=most)] if capped else []),
            *([say("waits.concurrency", n=seen.settings.concurrency)] if other else []),
        ),
        signals=decided.signals(given),
        hops=(
            Hop("app", rate_out=deferred),
            Hop("queue", deferred, begun, waiting=seen.due, oldest_s=seen.oldest_due_s, late=seen.late),
        ),
        proposals=decided.proposals(given),
        next_sections=("4.2",) if seen.late and seen.orphans else (),
        show=("queues",),
        decision=decided.decision,
    )


# 4.1.2 Who is at work? --------------------------------------------------------------------------------------


def start(given: JudgeInput, seen: Sample) -> tuple[Proposal, ...]:
    """Propose what starts a worker if none runs, and there is something to do."""
    if seen.connections_full or not (seen.due or seen.left):
        return ()  # it would find no connection; 4.1.4 says who has them
    # A running process without a heartbeat is starting, or fails to start: its log says which.
    return (proposals.logs(given, "worker") if seen.instances else proposals.restart(given, "worker"),)


def _look_and_start(given: JudgeInput, seen: Sample) -> tuple[Proposal, ...]:
    return (*(remedies.look(given, seen) if seen.orphans else ()), *start(given, seen))


def _nobody(seen: Sample) -> Status:
    return Status.CRITICAL if seen.late else Status.WARNING


def _well(seen: Sample) -> Status:
    """Return OK: the row that a dead worker left says nothing. One that still listens is missed."""
    return Status.WARNING if seen.silent and seen.whereabouts is Whereabouts.CONNECTED else Status.OK


WORKERS = Cases[Sample](
    Case(
        "workers.unregistered",
        lambda seen: not seen.workers and seen.instances,
        Status.WARNING,
        "workers.unregistered",
        remedies.read_log,
    ),
    Case("workers.none", lambda seen: not seen.workers and seen.due, _nobody, "workers.none", start),
    Case("workers.none_idle", lambda seen: not seen.workers, Status.WARNING, "workers.none_idle"),
    Case(
        "workers.gone",
        lambda seen: not seen.alive and seen.whereabouts == Whereabouts.GONE,
        _nobody,
        "workers.gone",
        start,
    ),
    Case(
        "workers.likely_gone",
        lambda seen: not seen.alive and seen.whereabouts == Whereabouts.LIKELY_GONE,
        _nobody,
        "workers.likely_gone",
        _look_and_start,
    ),
    Case(
        "workers.connected",
        lambda seen: not seen.alive and seen.whereabouts == Whereabouts.CONNECTED,
        Status.WARNING,
        "workers.connected",
        remedies.read_and_look,
    ),
    Case(
        "workers.ending",
        lambda seen: not seen.alive and seen.whereabouts == Whereabouts.ENDING,
        Status.WARNING,
        "workers.ending",
    ),
    Case("workers.unseen", lambda seen: not seen.alive, Status.WARNING, "workers.unseen", remedies.look),
    # Whether they are busy, or would not take it anyway, can not be told: 4.1.1 says so.
    Case(
        "workers.busy_elsewhere",
        lambda seen: seen.late and not seen.spare and seen.unheard,
        Status.WARNING,
        "workers.busy_elsewhere",
    ),
    Case("workers.busy", lambda seen: seen.late and not seen.spare, Status.WARNING, "workers.busy"),
    Case("workers.at_work", lambda seen: seen.works, _well, "workers.at_work"),
    Case("workers.idle", status=_well, evidence="workers.idle"),
)


def judge_workers(seen: Sample, frames: Frames) -> Finding:
    """Judge 4.1.2: a worker that shut down has no row, a killed one leaves its row, a silent one may do either."""
    given, decided, served = seen.given, WORKERS.of(seen), seen.count("served")
    silence = min((w.silent_s for w in seen.workers if w.silent_s is not None), default=None)
    values = [
        given.limits.value("workers.alive", len(seen.alive)),
        Value("workers.silent", len(seen.silent), "workers"),
        Value("workers.slots", len(seen.alive) * seen.settings.concurrency, "jobs"),
        Value("workers.running", served, "jobs"),
    ]
    if silence is not None:
        share = given.limits.value("workers.silence", silence / seen.settings.stalled_after_s)
        values.append(share if seen.alive else replace(share, threshold=None))
    if not seen.alive and seen.look_again_s:
        values.append(Value(f"workers.{LOOK_AGAIN}", seen.look_again_s, "s"))
    beside = "workers.some_connected" if seen.whereabouts is Whereabouts.CONNECTED else "workers.some_silent"
    alive = say("alive.workers", n=len(seen.alive)) if seen.alive else say("alive.nobody")
    ended = sum(map(seen.per_minute, ("succeeded", "retried", "failed")))
    return judged(
        decided.headline(
            alive=len(seen.alive),
            silent=len(seen.silent),
            silence=silence,
            due=seen.due,
            running=served,
            orphans=len(seen.orphans),
            again=seen.look_again_s,
        ),
        values,
        at_least=decided.status,
        notes=(say(beside, n=len(seen.silent)),) if seen.alive and seen.silent else (),
        signals=decided.signals(given),
        hops=(Hop("worker", seen.per_minute("begun"), ended, waiting=seen.count("doing"), alive=alive),),
        proposals=decided.proposals(given),
        next_sections=("4.2",) if seen.orphans else (),
        show=("workers",) if seen.workers else (),
        decision=decided.decision,
    )


# 4.1.3 Does a task fail? ------------------------------------------------------------------------------------


class Task(rows.Row, query="events/tasks"):
    """The recent tries of one task, by their end."""

    task: str = ""
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


def judge_errors(seen: Sample, frames: Frames) -> Finding:
    """Judge 4.1.3: a task that fails at every try is stuck at the task, even if the workers are healthy."""
    given, limits, tasks = seen.given, seen.given.limits, rows.each(frames["tasks"], Task)
    failures, ended = sum(t.failures for t in tasks), sum(t.failures + t.succeeded for t in tasks)
    # Jobs that are deleted when they succeed take their events with them: what is left would be failures alone.
    counts_all = facts(given).delete_jobs == "never"
    tried, put_back = seen.count("tried"), sum(t.put_back for t in tasks)
    often = [t for t in tasks if limits["errors.tries"].status(t.failures) is not Status.OK]
    worst = max(often or tasks, key=lambda t: (t.share is not None, t.share, t.failures), default=Task())
    last = min((t.last_failed_s for t in tasks if t.last_failed_s is not None), default=None)
    over = bool(failures) and not tried and limits["errors.quiet"].status(last) is Status.OK
    now = bool(failures) and not over
    every = limits["errors.task"].status(worst.share) is Status.CRITICAL
    cases = {
        "task.succeeds": not failures,
        "task.failed_before": over,
        "task.fails_at_times": not often,
        "task.fails_often": not counts_all,
        "task.fails": every,
    }
    observation = next((name for name, holds in cases.items() if holds), "task.fails_at_times")
    values = [
        Value("errors.failed_tries", failures, "rows"),
        Value("errors.last", last, "s"),
        Value("errors.wait_for_retry", tried, "rows"),
    ]
    if counts_all and now and often:
        values += [limits.value("errors.rate", 100 * failures / ended), limits.value("errors.task", worst.share)]
    return judged(
        say(
            observation if failures else "task.well",
            task=worst.task,
            n=worst.failures,
            ended=worst.failures + worst.succeeded if failures else ended,
            failures=failures,
            minutes=given.number("lately") / 60,
            last=last,
            tried=tried,
        ),
        values,
        at_least=Status.WARNING if now else Status.OK,
        notes=(
            *([say("task.put_back", n=put_back)] if put_back else []),
            *([] if counts_all else [say("task.deleted", which=facts(given).delete_jobs)]),
        ),
        signals=given.evidence(observation) if ended else (),
        hops=(
            Hop(
                "task",
                rate_out=seen.per_minute("succeeded") if counts_all else None,
                waiting=tried,
                alive=say("alive.fails") if observation in ("task.fails", "task.fails_often") else None,
            ),
        ),
        proposals=(proposals.logs(given, "worker"),) if now else (),
        show=("tasks",) if tasks else (),
    )


# 3.1 and 6.1 Who is affected, and is it over? ------------------------------------------------------------------


def judge_impact(seen: Sample, frames: Frames) -> Finding:
    """Judge 3.1: the objectives missed now, and how many jobs wait since when."""
    return replace(triage.judge_impact(seen.as_rows()), show=("queues",))


def judge_backlog(seen: Sample, frames: Frames) -> Finding:
    """Judge 6.1: the oldest waiting job is young, or more jobs end than arrive."""
    return replace(work.judge_recovery(seen.as_rows()), show=("queues",))


def chart_flow(frames: Frames, given: JudgeInput) -> charts.Chart | None:
    """Return the chart of the jobs deferred and ended in the last minutes, in steps of ten seconds."""
    return work.chart_flow(sample.read_sample(frames, given).as_rows())


CHECKS = (
    sample.check("3.1", judge_impact, charts=(chart_flow,)),
    sample.check("4.1.1", judge_queues, charts=(chart_flow,)),
    *(sample.check(step, judge_workers) for step in ("2.3", "4.1.2", "6.4")),
    *(sample.check(step, judge_errors, "events/tasks") for step in ("4.1.3", "6.2")),
    sample.check("6.1", judge_backlog, charts=(chart_flow,)),
)
