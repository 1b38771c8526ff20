"""What the services say of themselves: since when they live, and whether each loop runs, fails, hangs, is switched off.

The series are those of Spring Boot and Micrometer (/actuator/prometheus). Two looks some seconds apart tell what
happens; one tells only what is switched off and what has been inside one run for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby

import pandas as pd

from runbook_lib.context import Context, Given
from runbook_lib.model.finding import Frames, Reason
from runbook_lib.packs.entitlement.facts import Facts, facts_of
from runbook_lib.rows import each
from runbook_lib.sources import SourceError

PATH = "actuator/prometheus"


@dataclass(frozen=True)
class Task:
    """A scheduled loop: the service it is in, the end of its class's name, and whether it comes every second."""

    service: str
    worker: str
    polls: bool = True


TASKS = {
    "relay": Task("entitlement", "EntitlementOutboxWorker"),
    "delivery": Task("notification", "NotificationDeliveryWorker"),
    "outbox_retention": Task("entitlement", "EntitlementRetentionWorker", polls=False),
    "notification_retention": Task("notification", "NotificationRetentionWorker", polls=False),
}
#: Any clean-up, whatever its class is called in full.
_RETENTION = "RetentionWorker"

_RUNS = "tasks_scheduled_execution_seconds_count"
_ACTIVE, _ACTIVE_MAX = "tasks_scheduled_execution_active_seconds_count", "tasks_scheduled_execution_active_seconds_max"
_SERIES = (
    *(_RUNS, _ACTIVE, _ACTIVE_MAX, "process_start_time_seconds", "process_uptime_seconds"),
    *("hikaricp_connections", "hikaricp_connections_pending", "hikaricp_connections_timeout_total"),
    "logback_events_total",
)
_QUERY = f'{{__name__=~"{"|".join(_SERIES)}"}}'
#: A Prometheus server scrapes every 15 s: so far apart, two of its moments hold different scrapes.
_APART = pd.Timedelta(seconds=60)

SAMPLES = ["service", "at", "by", "name", "code_namespace", "exception", "outcome", "level", "value"]
ASKED = ["service", "at", "by", "reason", "code", "detail"]


class Doing(StrEnum):
    """What a loop was seen to do."""

    RUNS = "runs"
    FAILS = "fails"  # its runs end in an exception, all of them or some
    LONG = "long_run"  # inside one run for `for_s`: it hangs, or each row takes long
    BEHIND = "behind"  # another loop of the same process holds the one thread they share
    STILL = "still"  # the process answers, and its loop neither runs nor is inside a run
    OFF = "off"  # switched off by its setting: another loop of the process is there, this one never was
    NOT_SEEN = "not_seen"


class Answers(StrEnum):
    """What came of asking a service."""

    YES = "yes"
    HUNG = "hung"  # the connection was taken and nothing came: a frozen process, or a tunnel to none
    CLOSED = "closed"  # nothing listens at that address, seen from here
    OTHER = "other"  # something else answers: refused, no such page
    NOT_SEEN = "not_seen"  # no address, or no way to it


@dataclass(frozen=True)
class Sample:
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


@dataclass(frozen=True)
class Asked:
    """A row of the frame `service_asked`: one request, and why it was not answered."""

    service: str = ""
    at: pd.Timestamp | None = None
    by: str = ""
    reason: str = ""
    code: str = ""
    detail: str = ""


@dataclass(frozen=True)
class LoopSeen:
    """What one loop does: `share` of its runs failed between the looks, `for_s` seconds inside the present run."""

    loop: str
    doing: Doing = Doing.NOT_SEEN
    exception: str = ""
    share: float | None = None
    for_s: float | None = None
    runs: float = 0.0
    failures: float = 0.0


@dataclass(frozen=True)
class ServiceSeen:
    """One process. What is None was not seen; `by` is "service" or "prometheus", `gap_s` what lies between the looks.

    `timeouts` of the pool and `errors` logged are those between the looks, or since the start where there is one look.
    """

    service: str
    answers: Answers = Answers.NOT_SEEN
    why: str = ""
    by: str = ""
    gap_s: float | None = None
    started: pd.Timestamp | None = None
    age_s: float | None = None
    restarted: bool | None = None
    connections: float | None = None
    waiting: float | None = None
    timeouts: float | None = None
    errors: float | None = None
    loops: dict[str, LoopSeen] = field(default_factory=dict)

    @property
    def locked_out(self) -> bool:
        """Its pool has no connection, and somebody waits for one."""
        return self.connections == 0 and bool(self.waiting)


@dataclass(frozen=True)
class Numbers:
    """What decides, from docs/slo.md: seconds."""

    poll_s: float  # what lies between two runs
    young_s: float  # a process younger than this may not have begun its loops
    long_s: float  # a run longer than this is long

    @classmethod
    def of(cls, given: Given) -> Numbers:
        """Those of a run."""
        return cls(facts_of(given).poll_interval_s, given.number("service.young"), given.number("service.long_run"))


# Asking -----------------------------------------------------------------------------------------------------


def look(rb: Context) -> Frames:
    """One look at every service: `service_samples`, `service_asked`; from Prometheus what does not answer itself."""
    samples, asked = [], []
    for service in Facts.services:
        began = pd.Timestamp.now("UTC")
        try:
            found = rb.service(service).samples(PATH, _SERIES.__contains__)
            samples.append(_frame(found, service, began, "service"))
            asked.append(Asked(service, began, "service"))
        except SourceError as error:
            asked.append(Asked(service, began, "service", error.reason, error.code, error.detail))
    if missing := [a.service for a in asked if a.reason]:
        now = rb.now()
        for at in (now - _APART, now):
            try:
                found = rb.prometheus.instant(_QUERY, at)
            except SourceError as error:
                asked += [Asked(s, at, "prometheus", error.reason, error.code, error.detail) for s in missing]
                break
            samples += [_frame(own, s, at, "prometheus") for s in missing if not (own := _of(found, s)).empty]
    return {
        "service_samples": pd.concat(samples, ignore_index=True) if samples else pd.DataFrame(columns=SAMPLES),
        "service_asked": pd.DataFrame([vars(a) for a in asked], columns=ASKED),
    }


def together(*looks: Frames) -> Frames:
    """Several looks as one set of frames."""
    names = dict.fromkeys(name for frames in looks for name in frames)
    return {name: pd.concat([frames[name] for frames in looks if name in frames], ignore_index=True) for name in names}


def _frame(found: pd.DataFrame, service: str, at: pd.Timestamp, by: str) -> pd.DataFrame:
    named = found.rename(columns={"__name__": "name"}).assign(service=service, at=at, by=by)
    return named.reindex(columns=SAMPLES)


def _of(found: pd.DataFrame, service: str) -> pd.DataFrame:
    """The series of one service among all of a Prometheus: by the label `application`, else by SERVICE:PORT."""
    if found.empty:
        return found
    nothing = pd.Series("", found.index)
    application = found.get("application", nothing).fillna("").astype(str)
    instance = found.get("instance", nothing).fillna("").astype(str)
    return found[(application == service) | instance.str.match(rf"{service}[.:]")]


# What it means ----------------------------------------------------------------------------------------------


def read(frames: Frames, numbers: Numbers) -> dict[str, ServiceSeen]:
    """Each service, by what was seen at one look or at several. Pure; what the frames lack is not seen."""
    asked = each(frames.get("service_asked"), Asked)
    samples = each(frames.get("service_samples"), Sample)
    return {
        service: _service(
            service, [a for a in asked if a.service == service], [s for s in samples if s.service == service], numbers
        )
        for service in Facts.services
    }


@dataclass(frozen=True)
class _Look:
    """The series of one process at one moment."""

    at: pd.Timestamp
    by: str
    samples: Sequence[Sample]

    def values(self, name: str, fits: Callable[[Sample], bool] = lambda s: True) -> list[float]:
        """The fitting series."""
        return [s.value for s in self.samples if s.name == name and s.value == s.value and fits(s)]

    def total(self, name: str, fits: Callable[[Sample], bool] = lambda s: True) -> float | None:
        """Their sum; None if there is none."""
        found = self.values(name, fits)
        return sum(found) if found else None

    def most(self, name: str, worker: str) -> float:
        """The largest of a worker's series, 0 if there is none."""
        return max((s.value for s in self._of(name, worker)), default=0.0)

    def runs(self, worker: str) -> dict[str, float]:
        """How often the worker's runs ended so, by exception ("none")."""
        found: dict[str, float] = {}
        for s in self._of(_RUNS, worker):
            named = s.exception not in ("", "none")
            how = s.exception if named else "unknown" if s.outcome == "ERROR" else "none"
            found[how] = found.get(how, 0.0) + s.value
        return found

    def has(self, worker: str) -> bool:
        """Whether there is any series of the worker."""
        return any(True for name in (_RUNS, _ACTIVE) for _ in self._of(name, worker))

    def workers(self) -> set[str]:
        """The classes that have run or do."""
        return {s.code_namespace for s in self.samples if s.name in (_RUNS, _ACTIVE) and s.code_namespace}

    def _of(self, name: str, worker: str) -> Iterable[Sample]:
        return (s for s in self.samples if s.name == name and s.code_namespace.endswith(worker) and s.value == s.value)

    @property
    def started(self) -> float | None:
        """When the process began, the youngest where a Prometheus knows several."""
        return max(self.values("process_start_time_seconds"), default=None)


def _looks(samples: list[Sample]) -> list[_Look]:
    """The looks in their order, all by the better of the two ways."""
    dated = sorted((s for s in samples if s.at is not None), key=lambda s: (str(s.at), s.by))
    looks = [_Look(pd.Timestamp(at), by, list(those)) for (at, by), those in groupby(dated, key=lambda s: (s.at, s.by))]
    return [look for look in looks if look.by == "service"] or looks


def _service(service: str, asked: list[Asked], samples: list[Sample], numbers: Numbers) -> ServiceSeen:
    looks = _looks(samples)
    direct = [a for a in asked if a.by == "service"]
    answers, why = _answers(direct[-1] if direct else None)
    if not looks or (answers in (Answers.HUNG, Answers.CLOSED) and looks[-1].by == "service"):
        # What it said at an earlier look is no longer so.
        return ServiceSeen(
            service, answers, why, loops={n: LoopSeen(n) for n, t in TASKS.items() if t.service == service}
        )
    last = looks[-1]
    same = [look for look in looks if look.started == last.started]
    first = same[0] if len(same) > 1 else None
    age = min(last.values("process_uptime_seconds"), default=None)
    if age is None and last.started is not None:
        age = max(last.at.timestamp() - last.started, 0.0)
    gap = None if first is None else (last.at - first.at).total_seconds()

    def grown(name: str, fits: Callable[[Sample], bool] = lambda s: True) -> float | None:
        now = last.total(name, fits)
        return now if first is None or now is None else max(now - (first.total(name, fits) or 0.0), 0.0)

    return ServiceSeen(
        service,
        answers,
        why,
        by=last.by,
        gap_s=gap,
        started=_moment(last.started),
        age_s=age,
        restarted=None if len(looks) < 2 else any(look.started != last.started for look in looks),
        connections=last.total("hikaricp_connections"),
        waiting=last.total("hikaricp_connections_pending"),
        timeouts=grown("hikaricp_connections_timeout_total"),
        errors=grown("logback_events_total", lambda s: s.level.lower() == "error"),
        loops={
            name: _loop(name, task, first, last, age, numbers)
            for name, task in TASKS.items()
            if task.service == service
        },
    )


def _moment(epoch_s: float | None) -> pd.Timestamp | None:
    """None also for a number that is no moment: what the service says is not ours to trust."""
    try:
        return None if epoch_s is None else pd.Timestamp(epoch_s, unit="s", tz="UTC")
    except (ValueError, OverflowError):
        return None


def _answers(asked: Asked | None) -> tuple[Answers, str]:
    if asked is None or asked.reason == Reason.NOT_CONFIGURED:
        return Answers.NOT_SEEN, ""
    if not asked.reason:
        return Answers.YES, ""
    known = {"hung": Answers.HUNG, "no_connection": Answers.CLOSED, "no_answer": Answers.NOT_SEEN}
    return known.get(asked.code, Answers.OTHER), asked.detail


def _loop(name: str, task: Task, first: _Look | None, last: _Look, age: float | None, numbers: Numbers) -> LoopSeen:
    worker = task.worker if task.polls else _RETENTION
    inside = last.most(_ACTIVE_MAX, worker) if last.most(_ACTIVE, worker) > 0 else 0.0
    others = {w for w in last.workers() if not w.endswith(worker)}
    held = max((last.most(_ACTIVE_MAX, w) for w in others if last.most(_ACTIVE, w) > 0), default=0.0)
    ran = last.runs(worker)
    total = sum(ran.values())

    if not last.has(worker):
        if held >= numbers.long_s:
            return LoopSeen(name, Doing.BEHIND, for_s=held)
        begun = age is not None and age >= numbers.young_s
        finished = any(sum(last.runs(w).values()) > 0 for w in others)
        known = all(w.endswith(tuple(t.worker for t in TASKS.values())) for w in others)  # no other version's names
        return LoopSeen(name, Doing.OFF if begun and finished and known and not held else Doing.NOT_SEEN)
    if not task.polls:
        failed = total - ran.get("none", 0.0)
        if inside >= numbers.long_s:
            return LoopSeen(name, Doing.LONG, for_s=inside)
        if not total:
            return LoopSeen(name)
        doing = Doing.FAILS if failed and not ran.get("none") else Doing.RUNS
        return LoopSeen(name, doing, _frequent(ran), failed / total, runs=total, failures=failed)
    if first is None:
        return LoopSeen(name, Doing.LONG, for_s=inside) if inside >= numbers.long_s else LoopSeen(name, runs=total)
    before = first.runs(worker)
    grown = {how: n - before.get(how, 0.0) for how, n in ran.items() if n > before.get(how, 0.0)}
    runs = sum(grown.values())
    failed = runs - grown.get("none", 0.0)
    if runs:
        doing = Doing.FAILS if failed else Doing.RUNS
        return LoopSeen(name, doing, _frequent(grown), failed / runs, inside or None, runs, failed)
    gap = (last.at - first.at).total_seconds()
    if inside >= gap or inside >= numbers.long_s:
        return LoopSeen(name, Doing.LONG, for_s=inside)
    if held >= gap or held >= numbers.long_s:
        return LoopSeen(name, Doing.BEHIND, for_s=held)
    if inside or held or gap < 2 * _interval(total, age, numbers):
        return LoopSeen(name)
    return LoopSeen(name, Doing.STILL)


def _interval(total: float, age: float | None, numbers: Numbers) -> float:
    """What lies between two runs: as configured, unless what it did since its start says that it is much longer."""
    mean = age / total if age and total else 0.0
    return mean if mean > 2 * numbers.poll_s else numbers.poll_s


def _frequent(runs: dict[str, float]) -> str:
    """The exception that most of the failed runs ended in; "" if none did."""
    failed = {how: n for how, n in runs.items() if how != "none"}
    return max(failed, key=lambda how: failed[how]) if failed else ""
