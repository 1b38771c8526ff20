"""The room's checks for one queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.triage import action_check, compound_check, judge_criteria, judge_place, record_check
from runbook_lib.model.finding import Finding, Frames
from runbook_lib.packs.changes import changes
from runbook_lib.packs.postgres import locks
from runbook_lib.packs.postgres.reach import clocks_check, database_check
from runbook_lib.packs.postmortem.measures import collect_measures, judge_measures
from runbook_lib.packs.postmortem.origin import collect_origin, judge_origin
from runbook_lib.packs.postmortem.timeline import collect_timeline, judge_timeline
from runbook_lib.sources.settings import TargetFacts
from runbook_lib.view.charts import Chart

from ..facts import Workloads
from ..queue import Queue
from . import database, lookback, reach, sample, triage, work
from .sample import TOO_COSTLY, Collector, QueueSample, read_sample

#: The steps that this room has, with their usual ids; a pack that wants one without an id gives it one.
STEPS = {
    "server": "2.1",
    "table": "2.2",
    "clocks": "2.3",
    "impact": "3.1",
    "place": "3.2",
    "smallest": "3.3",
    "criteria": "3.4",
    "record": "3.5",
    "changes": "",
    "backlog": "4.1.1",
    "takers": "4.1.2",
    "errors": "4.1.3",
    "database": "4.1.4",
    "over": "6.1",
    "errors_now": "6.2",
    "takers_now": "6.3",
    "history": "7.1",
    "origin": "",
    "timeline": "",
    "measures": "",
}
#: The steps that tell where it is stuck.
PLACES = ("backlog", "takers", "errors", "database")
#: The criteria of recovery.
CRITERIA = ("over", "errors_now", "takers_now")

T = TypeVar("T")
QueueJudge = Callable[[Queue, Frames, JudgeInput], Finding]
QueueChart = Callable[[Queue, Frames, JudgeInput], "Chart | None"]


def checks_of(
    queue: Queue,
    steps: Mapping[str, str | None] | None = None,
    own: tuple[Check, ...] = (),
    places: tuple[Check, ...] = (),
) -> tuple[Check, ...]:
    """Return the checks of a queue.

    `steps` gives a step of `STEPS` another id, or None to leave it out. A check of `own` replaces the room's with the
    same id. `places` are further checks that tell where it is stuck.
    """
    ids = STEPS | dict(steps or {})
    made = _make(queue, {name: step or "" for name, step in ids.items()})
    replaced = {check.step: check for check in own}
    found = {name: replaced.get(check.step, check) for name, check in made.items() if ids[name]}
    place, criteria = ids["place"], ids["criteria"]
    if place and place not in replaced:
        found["place"] = compound_check(place, _parts(found, PLACES, *places), judge_place)
    if criteria and criteria not in replaced:
        targets = partial(triage.targets_of, ids)
        found["criteria"] = compound_check(criteria, _parts(found, CRITERIA), judge_criteria, targets=targets)
    left = tuple(check for check in own if check not in found.values())
    return (*found.values(), *left)


def _parts(found: Mapping[str, Check], names: tuple[str, ...], *more: Check) -> dict[str, Check]:
    return {check.step: check for check in (*(found[name] for name in names if name in found), *more)}


def _sampled(judge: Callable[[QueueSample], T]) -> Callable[[Queue, Frames, JudgeInput], T]:
    return lambda queue, frames, given: judge(read_sample(frames, given, queue))


def _make(queue: Queue, ids: Mapping[str, str]) -> dict[str, Check]:
    takers = "flow owners groups" if queue.group else "flow owners"
    costly = tuple(f"{TOO_COSTLY}{part}" for part in ("flow", "owners", "groups", "errors", "history"))

    def step(name: str, judge: QueueJudge, needs: str, uses: str = "", chart: QueueChart | None = None) -> Check:
        asked = (*needs.split(), *uses.split())
        return Check(
            ids[name],
            Collector(queue, asked),
            partial(judge, queue),
            (partial(chart, queue),) if chart else (),
            partial(sample.on_error, queue),
            needs=tuple(needs.split()),
            optional=costly,
            queries=tuple(map(queue.query, asked)),
        )

    return {
        "server": database_check(ids["server"], queue.schemas, [queue.table.split(".")[-1]]),
        "table": step("table", reach.judge_table, "table"),
        "clocks": clocks_check(ids["clocks"]),
        "impact": step("impact", _sampled(triage.judge_impact), "backlog", "flow", chart=_sampled(work.chart_flow)),
        "smallest": action_check(ids["smallest"], ids["place"]),
        "record": record_check(ids["record"], ids["impact"], ids["place"], triage.RECORDED),
        "changes": replace(
            changes.check_of(ids["changes"], partial(_find_surroundings, queue, ids["impact"])),
            queries=changes.list_queries(),
        ),
        "backlog": step("backlog", _sampled(work.judge_backlog), "backlog", "flow", chart=_sampled(work.chart_flow)),
        "takers": step("takers", _sampled(work.judge_takers), "backlog", takers),
        "errors": step("errors", _sampled(work.judge_errors), "backlog errors", "flow"),
        "database": replace(
            step("database", database.judge, "holders"),
            collect=partial(database.collect, queue),
            needs=("connections", "blocked", "table_locks", "holders"),
            on_error=locks.on_error,
            queries=(*locks.list_queries(), queue.query("holders")),
        ),
        "over": step("over", _sampled(work.judge_recovery), "backlog", "flow", chart=_sampled(work.chart_flow)),
        "errors_now": step("errors_now", _sampled(work.judge_errors), "backlog errors", "flow"),
        "takers_now": step("takers_now", _sampled(work.judge_takers), "backlog", takers),
        "history": step("history", lookback.judge_history, "history", chart=lookback.chart_history),
        "origin": Check(ids["origin"], collect_origin, judge_origin),
        "timeline": Check(ids["timeline"], partial(collect_timeline, impact=ids["history"]), judge_timeline),
        "measures": Check(ids["measures"], partial(collect_measures, origin=ids["origin"]), judge_measures),
    }


def _find_surroundings(queue: Queue, impact: str, facts: TargetFacts) -> changes.Surroundings:
    workloads = (facts.workloads.worker,) if isinstance(facts.workloads, Workloads) else ()
    return changes.Surroundings(schemas=tuple(queue.schemas or ("public",)), workloads=workloads, impact=impact)


__all__ = ["PLACES", "STEPS", "checks_of"]
