"""Steps 4.1.1 to 4.1.3 and 6.1: what waits, who takes it, and whether it fails."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from runbook_lib.actions import proposals
from runbook_lib.checks.cases import Case, Cases
from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import stats
from runbook_lib.model.finding import LOOK_AGAIN, Finding, Hop, Proposal, Status, Value, judged, replace, say
from runbook_lib.packs.logs.logs import fingerprint
from runbook_lib.view import charts

from .. import remedies
from ..facts import facts
from ..queue import COUNTED
from .sample import FlowStep, QueueSample

# 4.1.1 and 6.1 What waits? ----------------------------------------------------------------------------------


def judge_backlog(seen: QueueSample) -> Finding:
    """Judge 4.1.1: a row that may be taken and waits for too long."""
    given, due, oldest_s, late = seen.given, seen.open.due, seen.oldest_s, seen.late
    case = "undated" if oldest_s is None else "late" if late else "moves" if due else "empty"
    waiting = Hop("queue", seen.arrived, seen.ended, waiting=due, oldest_s=oldest_s, late=late)
    return judged(
        say(f"backlog.{case}", **seen.shown),
        [
            given.limits.value("queue.oldest", oldest_s),
            given.limits.value("queue.tried", seen.open.tried),
            Value("queue.due", due, "rows"),
            Value("queue.later", seen.open.later, "rows"),
            Value("queue.working", seen.open.working, "rows"),
        ],
        signals=given.evidence("backlog.moves") if case == "moves" and seen.ended else (),
        hops=(Hop("app", rate_out=seen.arrived), waiting),
        show=("backlog",),
    )


def judge_recovery(seen: QueueSample) -> Finding:
    """Judge 6.1: the rows that wait are young, or more rows end than arrive."""
    due, oldest_s, arrived, ended = seen.open.due, seen.oldest_s, seen.arrived, seen.ended
    flow = _flow_test(arrived, ended, due)
    value, falls = seen.given.limits.value("queue.oldest", oldest_s), flow.verdict == "draining"
    small = value.status is Status.OK
    values = [
        replace(value, threshold=None) if falls else value,  # what falls is on its way, however old its oldest is
        Value("queue.due", due, "rows"),
        Value("flow.arrived", arrived, "per_min"),
        Value("flow.ended", ended, "per_min"),
    ]
    if not small:
        values.append(Value(f"queue.{LOOK_AGAIN}", max(min(60 * (flow.eta_min or 1.0), 60.0), 5.0), "s"))
    case = "undated" if oldest_s is None else "young" if small else "falls" if falls else "waits"
    return judged(
        say(f"over.{case}", due=due, oldest=oldest_s if due else None, eta=flow.eta_min),
        values,
        at_least=Status.OK if small else Status.WARNING,
        hops=(Hop("queue", arrived, ended, waiting=due, oldest_s=oldest_s, late=seen.late and not falls),),
        show=("backlog",),
    )


def _flow_test(arrived: float | None, ended: float | None, due: int) -> stats.FlowTest:
    known = [math.nan if n is None else n for n in (arrived, ended)]
    return stats.flow_test(known[0], known[1], 1.0, due)


def chart_flow(seen: QueueSample) -> charts.Chart | None:
    """Return the chart of the rows that arrived, succeeded and failed lately, in steps of ten seconds."""
    by_age, lately_s = {ten.tens_ago: ten for ten in seen.flow or []}, seen.given.number("lately")
    tens = [by_age.get(n, FlowStep()) for n in reversed(range(int(lately_s // 10)))]
    counted = {what: [getattr(ten, what) for ten in tens] for what in COUNTED if seen.queue.tells(what)}
    return describe_flow(counted, 10, "s", "the moment of the run")


def describe_flow(counted: Mapping[str, list[int]], wide: int, unit: str, end: str) -> charts.Chart | None:
    """Return the chart of counts in buckets that are `wide` seconds or minutes, up to `end`; None without any."""
    if not any(map(any, counted.values())):
        return None
    edges = range(-wide * max(map(len, counted.values())), 1, wide)
    totals: dict[str, int | None] = dict.fromkeys(COUNTED) | {what: sum(n) for what, n in counted.items()}
    return charts.Chart(
        f"Rows: {', '.join(counted)}",
        f"rows / {wide} {unit}",
        charts.flows(edges, counted),
        alt=say("flow.alt", minutes=-edges[0] / (60 if unit == "s" else 1), **totals),
        caption=(say("flow.caption"),),
        xlabel=f"{unit} before {end}",
    )


# 4.1.2 Who takes rows? --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Takers:
    """What tells whether rows are taken and end.

    If they `stopped`, nothing has been taken or has ended for a while; if `silent`, the table does not tell.
    """

    seen: QueueSample
    late: bool
    working: bool
    held: bool
    stopped: bool
    silent: bool
    likely_held: bool
    passed_over: bool
    undated: bool
    drains: bool
    fails: bool
    ends: bool


def _restart(given: JudgeInput, takers: Takers) -> tuple[Proposal, ...]:
    return (proposals.restart(given, "worker"),)


def _look_and_restart(given: JudgeInput, takers: Takers) -> tuple[Proposal, ...]:
    return (proposals.logs(given, "worker"), proposals.restart(given, "worker"))


def _look(given: JudgeInput, takers: Takers) -> tuple[Proposal, ...]:
    return (proposals.logs(given, "worker"),)


def _see_held(given: JudgeInput, takers: Takers) -> tuple[Proposal, ...]:
    return (remedies.see(given, takers.seen.queue, "see_held"), proposals.logs(given, "worker"))


def _level(takers: Takers) -> Status:
    """Return how bad it is that rows are late."""
    return takers.seen.given.limits["queue.oldest"].status(takers.seen.oldest_s)


TAKERS = Cases[Takers](
    Case("takers.none", lambda seen: seen.late and not seen.working and seen.stopped, _level, "takers.none", _restart),
    Case(
        "takers.none_seen",
        lambda seen: seen.late and not seen.working and seen.silent,
        Status.WARNING,
        "takers.none_seen",
        _look_and_restart,
    ),
    Case(
        "takers.hang", lambda seen: seen.late and seen.held and seen.stopped, _level, "takers.hang", _look_and_restart
    ),
    Case(
        "takers.passed_over",
        lambda seen: seen.passed_over,
        lambda takers: _level(takers) if takers.seen.queue.finished or takers.seen.queue.started else Status.WARNING,
        "takers.passed_over",
        _look,
    ),
    Case("takers.left", lambda seen: seen.held, Status.WARNING, "takers.left", _see_held),
    Case(
        "takers.stopped",
        lambda seen: seen.late and seen.working and seen.stopped,
        Status.WARNING,
        "takers.stopped",
        _see_held,
    ),
    Case("takers.likely_left", lambda seen: seen.likely_held, Status.WARNING, "takers.likely_left", _see_held),
    Case("takers.undated", lambda seen: seen.undated, Status.UNKNOWN),
    Case("takers.catch_up", lambda seen: seen.late and seen.drains),
    Case("takers.fail", lambda seen: seen.late and seen.fails, Status.WARNING),
    Case("takers.slow", lambda seen: seen.late and seen.ends, Status.WARNING, "takers.slow"),
    Case("takers.late", lambda seen: seen.late, Status.WARNING),
    Case("takers.at_work", lambda seen: seen.working or seen.ends, evidence="takers.at_work"),
    Case("takers.idle"),
)


def judge_takers(seen: QueueSample) -> Finding:
    """Judge 4.1.2: rows that nobody takes, and rows that are held for longer than they may be."""
    queue, given, quiet, overdue = seen.queue, seen.given, seen.quiet_s, seen.overdue_s
    limit, owners = given.limits["queue.overdue"], seen.owners or []
    takers = Takers(
        seen=seen,
        late=seen.late,
        working=seen.open.working > 0,
        held=limit.reached(overdue),
        stopped=quiet is not None and quiet >= given.number("quiet"),
        silent=quiet is None,
        likely_held=overdue is None and limit.reached(seen.likely_overdue_s),
        passed_over=seen.passed_over is not None,
        undated=overdue is None,
        drains=_flow_test(seen.arrived, seen.ended, seen.open.due).verdict == "draining",
        fails=seen.lately("succeeded") == 0 and bool(seen.lately("failed")),
        ends=bool(seen.ended),
    )
    decided = TAKERS.of(takers)
    return judged(
        decided.headline(
            overdue=seen.likely_overdue_s if overdue is None else overdue,
            longest=facts(given).longest_s,
            quiet=None if quiet == math.inf else quiet,
            group=seen.passed_over and seen.passed_over.name,
            group_due=seen.passed_over and seen.passed_over.due,
            group_oldest=seen.passed_over and seen.passed_over.oldest_s,
            owners=", ".join(o.worker for o in owners[:3] if o.worker) or None,
            **seen.shown,
        ),
        [
            *([] if overdue is None else [given.limits.value("queue.overdue", overdue)]),
            Value("queue.held", seen.open.held, "rows"),
            Value("queue.working", seen.open.working, "rows"),
            Value("queue.owners", None if seen.owners is None or not queue.owner else len(owners), "workers"),
            Value("queue.expired", sum(o.expired for o in owners) if queue.lease else None, "rows"),
        ],
        at_least=decided.status,
        notes=() if queue.owner else (say("takers.no_owner"),),
        signals=decided.signals(given),
        hops=(Hop("worker", rate_out=seen.ended, waiting=seen.open.working, late=takers.held),),
        proposals=decided.proposals(given),
        show=("owners",) if owners and queue.owner else (),
        decision=decided.decision,
    )


# 4.1.3 Does it fail? ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failures:
    """What tells whether rows fail now; a `poison` row was tried many times and waits for another try."""

    tells: bool
    named: bool
    some: bool
    dated: bool
    over: bool
    every: bool
    often: bool
    one_error: bool
    poison: bool


FAILURES = Cases[Failures](
    Case("errors.silent", lambda seen: not seen.tells, Status.UNKNOWN),
    Case("errors.none_tried", lambda seen: not seen.some and not seen.named),
    Case("errors.none", lambda seen: not seen.some),
    Case("errors.undated", lambda seen: not seen.dated, Status.UNKNOWN),
    Case("errors.before", lambda seen: seen.over),
    Case("errors.every", lambda seen: seen.every, Status.CRITICAL, "errors.every"),
    Case("errors.one", lambda seen: seen.often and seen.one_error, Status.WARNING, "errors.one"),
    Case("errors.poison", lambda seen: seen.poison, Status.WARNING, "errors.poison"),
    Case("errors.often", lambda seen: seen.often, Status.WARNING, "errors.often"),
    Case("errors.few", evidence="errors.few"),
)


def judge_errors(seen: QueueSample) -> Finding:
    """Judge 4.1.3: how many tries fail of those that end, and with how many errors."""
    queue, given, limits = seen.queue, seen.given, seen.given.limits
    failed, undated, tried = (sum(getattr(f, n) for f in seen.failing) for n in ("failed", "undated", "tried"))
    failures, succeeded = failed + tried, seen.lately("succeeded")
    last = min((f.last_s for f in seen.failing if f.last_s is not None), default=None)
    tries = max((f.tries for f in seen.failing if f.tried and f.tries is not None), default=0)
    share = None if succeeded is None else 100 * failures / max(failures + succeeded, 1)
    many = limits["errors.failed"].reached(failures)
    quiet = limits["errors.quiet"].status(last) is Status.OK or not (failed or undated)
    kinds = count_kinds(seen)
    text, most = kinds.most_common(1)[0] if kinds else (None, 0)
    decided = FAILURES.of(
        Failures(
            tells=bool(queue.failed or queue.attempts),
            named=bool(queue.failed),
            some=bool(failures + undated),
            dated=bool(failures or not undated),
            over=quiet and not tried and not seen.late,
            every=many and limits["errors.share"].reached(share, Status.CRITICAL),
            often=many and (share is None or limits["errors.share"].reached(share)),
            one_error=100 * most >= given.number("one_error") * max(failures, 1),
            poison=tries >= given.number("poison_tries"),
        )
    )
    now = bool(failures) and decided.status is not Status.OK
    ended = None if succeeded is None else failures + succeeded
    counts = {"n": failures, "failed": failed, "tried": tried, "undated": undated, "ended": ended, "tries": tries}
    return judged(
        decided.headline(minutes=given.number("lately") / 60, last=last, text=text, of=most, **counts),
        [
            Value("errors.failed_now", failed, "rows"),
            Value("errors.tried", tried, "rows"),
            Value("errors.last", last, "s"),
            Value("errors.kinds", len(kinds) if queue.error else None, "errors"),
            *([limits.value("errors.share", share)] if now and share is not None else []),
        ],
        at_least=decided.status,
        signals=decided.signals(given),
        hops=(Hop("worker", alive=say("alive.fails")),) if decided.name == "errors.every" else (),
        proposals=(proposals.logs(given, "worker"), remedies.see(given, queue, "see_failing")) if now else (),
        show=("errors",) if seen.failing else (),
        decision=decided.decision,
    )


_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def count_kinds(seen: QueueSample) -> Counter[str]:
    """Return how many rows fail with each kind of error: its text without ids, numbers and quoted words."""
    found: Counter[str] = Counter()
    for each in seen.failing:
        kind = fingerprint(_QUOTED.sub("#", each.text))
        found[kind[:120]] += each.failed + each.tried if kind else 0
    return +found
