"""Read the services' own metrics: their age, and whether each loop runs, fails, hangs or is switched off.

The series are those of Spring Boot and Micrometer (/actuator/prometheus). Two samples some seconds apart show what
happens; one sample shows only a loop that is switched off, or that has been inside one run for long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby

import pandas as pd

from runbook_lib.checks.context import Context, JudgeInput
from runbook_lib.model.finding import Frames
from runbook_lib.model.rows import Row, each
from runbook_lib.packs.entitlement.facts import EntitlementFacts, facts_of
from runbook_lib.sources.source import SourceError

PATH = "actuator/prometheus"


@dataclass(frozen=True)
class Task:
    """A scheduled loop that polls: its service, and the end of its class's name."""

    service: str
    worker: str


TASKS = {
    "relay": Task("entitlement", "EntitlementOutboxWorker"),
    "delivery": Task("notification", "NotificationDeliveryWorker"),
}
#: The ends of the class names of all loops; a clean-up shares its thread with the others.
_KNOWN = (*(task.worker for task in TASKS.values()), "EntitlementRetentionWorker", "NotificationRetentionWorker")

_RUNS = "tasks_scheduled_execution_seconds_count"
_ACTIVE, _ACTIVE_MAX = "tasks_scheduled_execution_active_seconds_count", "tasks_scheduled_execution_active_seconds_max"
_SERIES = (
    *(_RUNS, _ACTIVE, _ACTIVE_MAX, "process_start_time_seconds", "process_uptime_seconds"),
    *("hikaricp_connections", "hikaricp_connections_pending", "hikaricp_connections_timeout_total"),
    "logback_events_total",
)
_QUERY = f'{{__name__=~"{"|".join(_SERIES)}"}}'
#: Prometheus scrapes every 15 s, so two times this far apart have different scrapes.
_SCRAPE_GAP = pd.Timedelta(seconds=60)

SAMPLE_COLUMNS = ["service", "at", "by", "name", "code_namespace", "exception", "outcome", "level", "value"]
REQUEST_COLUMNS = ["service", "at", "by", "reason", "code", "detail"]


class LoopActivity(StrEnum):
    """The activity of a loop."""

    RUNS = "runs"
    FAILS = "fails"  # all or some of its runs end in an exception
    LONG = "long_run"  # inside one run for long: it hangs, or each row takes long
    BEHIND = "behind"  # another loop of the process occupies the thread that they share
    STILL = "still"  # the process answers, but its loop neither runs nor is inside a run
    OFF = "off"  # switched off by its setting: other loops of the process have run, this one never has
    NOT_SEEN = "not_seen"


class RequestResult(StrEnum):
    """The result of a request to a service."""

    YES = "yes"
    HUNG = "hung"  # connected but no reply: a frozen process, or a tunnel without a process
    CLOSED = "closed"  # nothing listens at that address, as far as the runbook can see
    NOT_SEEN = "not_seen"  # no address, no route to it, or another reply: refused, or no such page


class Sample(Row):
    """A row of the frame `service_samples`."""

    service: str = ""
    at: pd.Timestamp | None = None
    by: str = ""
    name: str = ""
    code_namespace: str = ""
    exception: str = ""
    outcome: str = ""
    level: str = ""
    value: float = 0.0


class ServiceRequest(Row):
    """A row of the frame `service_asked`: one request, and the reason if it failed."""

    service: str = ""
    at: pd.Timestamp | None = None
    by: str = ""
    reason: str = ""
    code: str = ""
    detail: str = ""


@dataclass(frozen=True)
class LoopSeen:
    """The activity of one loop: the `share` of its runs that failed between the samples.

    `has_run`: the process has counted a run since it started.
    """

    doing: LoopActivity = LoopActivity.NOT_SEEN
    exception: str = ""
    share: float | None = None
    has_run: bool = False


@dataclass(frozen=True)
class ServiceSeen:
    """One process; None means unknown. `by` is "service" or "prometheus"."""

    answers: RequestResult = RequestResult.NOT_SEEN
    by: str = ""
    age_s: float | None = None
    connections: float | None = None
    waiting: float | None = None
    loops: dict[str, LoopSeen] = field(default_factory=dict)

    @property
    def locked_out(self) -> bool:
        """Return whether the pool has no connection while a thread waits for one."""
        return self.connections == 0 and bool(self.waiting)


# Asking -----------------------------------------------------------------------------------------------------


def collect(rb: Context) -> Frames:
    """Sample every service: `service_samples`, `service_asked`; via Prometheus if a service does not answer itself."""
    samples, asked = [], []
    for service in EntitlementFacts.services:
        began = pd.Timestamp.now("UTC")
        try:
            found = rb.service(service).samples(PATH, _SERIES.__contains__)
            samples.append(_label_samples(found, service, began, "service"))
            asked.append(ServiceRequest(service, began, "service"))
        except SourceError as error:
            asked.append(ServiceRequest(service, began, "service", error.reason, error.code, error.detail))
    if missing := [a.service for a in asked if a.reason]:
        now = rb.now()
        for at in (now - _SCRAPE_GAP, now):
            try:
                found = rb.source("prometheus").instant(_QUERY, at)
            except SourceError as error:
                asked += [ServiceRequest(s, at, "prometheus", error.reason, error.code, error.detail) for s in missing]
                break
            samples += [
                _label_samples(own, s, at, "prometheus")
                for s in missing
                if not (own := _select_service(found, s)).empty
            ]
    return {
        "service_samples": pd.concat(samples, ignore_index=True) if samples else pd.DataFrame(columns=SAMPLE_COLUMNS),
        "service_asked": pd.DataFrame([vars(a) for a in asked], columns=REQUEST_COLUMNS),
    }


def concat_samples(*samples: Frames) -> Frames:
    """Return several samples as one set of frames."""
    names = dict.fromkeys(name for frames in samples for name in frames)
    return {
        name: pd.concat([frames[name] for frames in samples if name in frames], ignore_index=True) for name in names
    }


def _label_samples(found: pd.DataFrame, service: str, at: pd.Timestamp, by: str) -> pd.DataFrame:
    named = found.rename(columns={"__name__": "name"}).assign(service=service, at=at, by=by)
    return named.reindex(columns=SAMPLE_COLUMNS)


def _select_service(found: pd.DataFrame, service: str) -> pd.DataFrame:
    """Select a service's series from Prometheus, by the label `application` or an instance SERVICE:PORT."""
    if found.empty:
        return found
    nothing = pd.Series("", found.index)
    application = found.get("application", nothing).fillna("").astype(str)
    instance = found.get("instance", nothing).fillna("").astype(str)
    return found[(application == service) | instance.str.match(rf"{service}[.:]")]


# What it means ----------------------------------------------------------------------------------------------


def read(frames: Frames, given: JudgeInput) -> dict[str, ServiceSeen]:
    """Read each service from one or several samples. Pure; values that the frames lack are None."""
    asked = each(frames.get("service_asked"), ServiceRequest)
    samples = each(frames.get("service_samples"), Sample)
    return {
        service: _read_service(
            service, [a for a in asked if a.service == service], [s for s in samples if s.service == service], given
        )
        for service in EntitlementFacts.services
    }


@dataclass(frozen=True)
class _SeriesSample:
    """The series of one process at one time."""

    at: pd.Timestamp
    by: str
    samples: Sequence[Sample]

    def values(self, name: str) -> list[float]:
        """Return the values of the series of this name."""
        return [s.value for s in self.samples if s.name == name and s.value == s.value]

    def total(self, name: str) -> float | None:
        """Return the sum of the series of this name; None without any."""
        found = self.values(name)
        return sum(found) if found else None

    def most(self, name: str, worker: str) -> float:
        """Return the largest value of a worker's series, or 0 without any."""
        return max((s.value for s in self._of_worker(name, worker)), default=0.0)

    def runs(self, worker: str) -> dict[str, float]:
        """Count the worker's runs by the exception in which they ended ("none" for success)."""
        found: dict[str, float] = {}
        for s in self._of_worker(_RUNS, worker):
            named = s.exception not in ("", "none")
            how = s.exception if named else "unknown" if s.outcome == "ERROR" else "none"
            found[how] = found.get(how, 0.0) + s.value
        return found

    def has(self, worker: str) -> bool:
        """Return whether the worker has any series."""
        return any(True for name in (_RUNS, _ACTIVE) for _ in self._of_worker(name, worker))

    def workers(self) -> set[str]:
        """Return the classes that run or have run."""
        return {s.code_namespace for s in self.samples if s.name in (_RUNS, _ACTIVE) and s.code_namespace}

    def _of_worker(self, name: str, worker: str) -> Iterable[Sample]:
        return (s for s in self.samples if s.name == name and s.code_namespace.endswith(worker) and s.value == s.value)

    @property
    def started(self) -> float | None:
        """Return the start of the process, or of the youngest one if Prometheus has several."""
        return max(self.values("process_start_time_seconds"), default=None)


def _group_samples(samples: list[Sample]) -> list[_SeriesSample]:
    """Group the samples by time: those of the service itself if there are any, else those of Prometheus."""
    dated = sorted((s for s in samples if s.at is not None), key=lambda s: (str(s.at), s.by))
    series = [
        _SeriesSample(pd.Timestamp(at), by, list(those))
        for (at, by), those in groupby(dated, key=lambda s: (s.at, s.by))
    ]
    return [s for s in series if s.by == "service"] or series


def _read_service(service: str, asked: list[ServiceRequest], samples: list[Sample], given: JudgeInput) -> ServiceSeen:
    series = _group_samples(samples)
    direct = [a for a in asked if a.by == "service"]
    answers = _read_answer(direct[-1] if direct else None)
    if not series or (answers in (RequestResult.HUNG, RequestResult.CLOSED) and series[-1].by == "service"):
        # The earlier sample is out of date: the service does not answer now.
        return ServiceSeen(answers, loops={n: LoopSeen() for n, t in TASKS.items() if t.service == service})
    last = series[-1]
    same = [s for s in series if s.started == last.started]
    first = same[0] if len(same) > 1 else None
    age = min(last.values("process_uptime_seconds"), default=None)
    if age is None and last.started is not None:
        age = max(last.at.timestamp() - last.started, 0.0)
    return ServiceSeen(
        answers,
        by=last.by,
        age_s=age,
        connections=last.total("hikaricp_connections"),
        waiting=last.total("hikaricp_connections_pending"),
        loops={
            name: replace(_read_loop(task, first, last, age, given), has_run=_has_run(task, last))
            for name, task in TASKS.items()
            if task.service == service
        },
    )


def _read_answer(asked: ServiceRequest | None) -> RequestResult:
    if asked is None:
        return RequestResult.NOT_SEEN
    if not asked.reason:
        return RequestResult.YES
    known = {"hung": RequestResult.HUNG, "no_connection": RequestResult.CLOSED}
    return known.get(asked.code, RequestResult.NOT_SEEN)


def _read_loop(
    task: Task, first: _SeriesSample | None, last: _SeriesSample, age: float | None, given: JudgeInput
) -> LoopSeen:
    long_s = given.number("service.long_run")
    worker = task.worker
    inside = last.most(_ACTIVE_MAX, worker) if last.most(_ACTIVE, worker) > 0 else 0.0
    others = {w for w in last.workers() if not w.endswith(worker)}
    held = max((last.most(_ACTIVE_MAX, w) for w in others if last.most(_ACTIVE, w) > 0), default=0.0)
    ran = last.runs(worker)

    if not last.has(worker):
        if held >= long_s:
            return LoopSeen(LoopActivity.BEHIND)
        begun = age is not None and age >= given.number("service.young")
        finished = any(sum(last.runs(w).values()) > 0 for w in others)
        known = all(w.endswith(_KNOWN) for w in others)  # no other version's names
        return LoopSeen(LoopActivity.OFF if begun and finished and known and not held else LoopActivity.NOT_SEEN)
    if first is None:
        return LoopSeen(LoopActivity.LONG if inside >= long_s else LoopActivity.NOT_SEEN)
    before = first.runs(worker)
    grown = {how: n - before.get(how, 0.0) for how, n in ran.items() if n > before.get(how, 0.0)}
    if runs := sum(grown.values()):
        failed = runs - grown.get("none", 0.0)
        doing = LoopActivity.FAILS if failed else LoopActivity.RUNS
        return LoopSeen(doing, _most_frequent_exception(grown), failed / runs)
    gap = (last.at - first.at).total_seconds()
    if inside >= min(gap, long_s):
        return LoopSeen(LoopActivity.LONG)
    if held >= min(gap, long_s):
        return LoopSeen(LoopActivity.BEHIND)
    if inside or held or gap < 2 * _estimate_interval(sum(ran.values()), age, given):
        return LoopSeen()
    return LoopSeen(LoopActivity.STILL)


def _has_run(task: Task, last: _SeriesSample) -> bool:
    # Prometheus keeps the counts of an ended process for minutes.
    return last.by == "service" and sum(last.runs(task.worker).values()) > 0


def _estimate_interval(total: float, age: float | None, given: JudgeInput) -> float:
    """Return the interval between two runs: as configured, or the mean since the start if that is much longer."""
    mean = age / total if age and total else 0.0
    return mean if mean > 2 * facts_of(given).poll_interval_s else facts_of(given).poll_interval_s


def _most_frequent_exception(runs: dict[str, float]) -> str:
    """Return the most frequent exception of the failed runs; "" if no run failed."""
    failed = {how: n for how, n in runs.items() if how != "none"}
    return max(failed, key=lambda how: failed[how]) if failed else ""
