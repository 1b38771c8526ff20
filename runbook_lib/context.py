"""What a check or an action may use: the sources, the moment that is looked at, and what this run already knows.

Opening a context measures the clocks once; making one asks nobody. To look at another moment is another context
(`at`), never a change of this one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pandas as pd

from runbook_lib import messages
from runbook_lib.catalog import Catalog, Limits, Section, Slo
from runbook_lib.masking import Masker
from runbook_lib.model.finding import PRESENT_S, Finding, Frames, Reason, Signal, Text, Window, say
from runbook_lib.parameters import Parameters, moment
from runbook_lib.settings import Budget, Facts, Settings, Target, facts_of
from runbook_lib.sources import ReadCost, SourceError
from runbook_lib.sources.exposition import Exposition
from runbook_lib.sources.jetstream import JetStream
from runbook_lib.sources.nats_monitor import NatsMonitor
from runbook_lib.sources.postgres import Postgres, Snapshot
from runbook_lib.sources.prometheus import Prometheus
from runbook_lib.sources.redis import Redis
from runbook_lib.sources.workloads import Runner, runner_of
from runbook_lib.store import Archive

#: For so long, what one step has asked also serves the steps after it.
SHARED_S = 15.0

S = TypeVar("S")
Progress = Callable[[float, Text], None]
"""Called with the share that is done (0 to 1) and what is being waited for."""


@dataclass(frozen=True)
class Clock:
    """How far a server's clock is ahead of this machine's, in seconds, and the bound of the error.

    `behind_s` is how far what it shows is behind its own clock: a replica's lag.
    """

    offset_s: float
    error_s: float
    behind_s: float = 0.0

    def now(self) -> pd.Timestamp:
        """The moment that the server shows."""
        return pd.Timestamp.now("UTC") + pd.Timedelta(seconds=self.offset_s - self.behind_s)


class Sources:
    """The sources of a target. Asking one that the target does not declare is an answer too: not_configured."""

    def __init__(self, target: Target, name: str, budget: Budget, read_cost: ReadCost) -> None:
        url = target.url
        replica = Postgres(db, name, budget, read_cost) if (db := url("replica_url")) else None
        db, command = url("database_url"), target.database_url_command
        self._postgres = (
            Postgres(db or "", name, budget, read_cost, command=command, replica=replica) if db or command else None
        )
        self._jetstream = JetStream(nats, name, read_cost, target.nats) if (nats := url("nats_url")) else None
        self._monitor = NatsMonitor(http, read_cost, target.nats) if (http := url("nats_monitor_url")) else None
        self._redis = Redis(redis, read_cost) if (redis := url("redis_url")) else None
        self._prometheus = Prometheus(prom, read_cost) if (prom := url("prometheus_url")) else None
        self._services = {s: Exposition(s, target.service(s) or "", read_cost) for s in target.services}
        #: The workloads, through the tool that runs them; a tool that is not there shows when it is asked.
        self.workloads: Runner = runner_of(target.facts.workloads, read_cost)

    @property
    def postgres(self) -> Postgres:
        """The system's database."""
        return _declared(self._postgres, "postgres")

    @property
    def jetstream(self) -> JetStream:
        """The broker's own API."""
        return _declared(self._jetstream, "jetstream")

    @property
    def nats_monitor(self) -> NatsMonitor:
        """The broker's monitoring port."""
        return _declared(self._monitor, "nats_monitor")

    @property
    def redis(self) -> Redis:
        """Redis, where used."""
        return _declared(self._redis, "redis")

    @property
    def prometheus(self) -> Prometheus:
        """Prometheus, where used."""
        return _declared(self._prometheus, "prometheus")

    def service(self, name: str) -> Exposition:
        """A service of the system, asked for what it says of itself."""
        return _declared(self._services.get(name), name)


@dataclass(frozen=True)
class Given:
    """What a judge is given beside the frames: what the documents say, facts of the target and of the run."""

    catalog: Catalog
    as_of: pd.Timestamp
    window_minutes: int
    facts: Facts = field(default_factory=Facts)
    detected_by: str = ""
    detected_at: pd.Timestamp | None = None
    earlier: tuple[Finding, ...] = ()
    target: str = "default"
    incident: str = "adhoc"

    @property
    def limits(self) -> Limits:
        """The thresholds of docs/slo.md."""
        return self.catalog.limits

    @property
    def slos(self) -> dict[str, Slo]:
        """The objectives of docs/slo.md."""
        return self.catalog.slos

    def number(self, name: str) -> float:
        """A number of docs/slo.md that decides and is no threshold. Raises KeyError."""
        return self.catalog.numbers[name]

    def speaks(self, observation: str) -> tuple[Signal, ...]:
        """What an observation speaks for and against; docs/failure-modes.md has the weights."""
        return self.catalog.speaks(observation)

    def record(self) -> dict[str, Any]:
        """The facts of the target and of the run as JSON, for the record that it is judged again from (`recorded`)."""
        return self.facts.model_dump() | {
            "detected_by": self.detected_by,
            "detected_at": None if self.detected_at is None else self.detected_at.isoformat(),
            "thresholds": self.catalog.own,
        }

    @classmethod
    def recorded(cls, book: Catalog, header: dict[str, Any], earlier: tuple[Finding, ...]) -> Given:
        """What the judges of a stored run were given, from its header; its own thresholds are in the book."""
        given = dict(header.get("given", {}))
        given.pop("thresholds", None)
        detected_at = given.pop("detected_at", None)
        return cls(
            catalog=book,
            as_of=pd.Timestamp(header["as_of"]),
            window_minutes=header["window_minutes"],
            earlier=earlier,
            target=header["target"],
            incident=header["incident"],
            detected_by=given.pop("detected_by", ""),
            detected_at=pd.Timestamp(detected_at) if detected_at else None,
            facts=facts_of(given),
        )


@dataclass
class Shared:
    """What several steps look at, and which of them have had it."""

    frames: Frames
    until: float
    served: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Context:
    """One run of one section, as its checks and actions see it. Make it with `open_context`.

    `findings` are those of this run so far by step, `outcomes` those of its actions by name: whoever conducts the
    run fills them.
    """

    section: Section
    parameters: Parameters
    target: Target
    catalog: Catalog
    budget: Budget
    archive: Archive
    masker: Masker
    read_cost: ReadCost
    sources: Sources
    window: Window
    clocks: dict[str, Clock] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    outcomes: dict[str, Any] = field(default_factory=dict)
    progress: Callable[[], AbstractContextManager[Progress]] = lambda: nullcontext(lambda share, text: None)
    asked: dict[Callable[[Context], Frames], Shared] = field(default_factory=dict)

    @property
    def as_of(self) -> pd.Timestamp:
        """The moment that is looked at."""
        return self.window.as_of

    @property
    def since(self) -> pd.Timestamp:
        """Where the window before it begins."""
        return self.window.since

    @property
    def past(self) -> bool:
        """Whether the moment is not the present, so that only timestamps can answer."""
        return self.window.past

    @property
    def lang(self) -> str:
        """The language of what is shown."""
        return self.parameters.lang

    @property
    def facts(self) -> Facts:
        """What the target's settings say of the system."""
        return self.target.facts

    @property
    def postgres(self) -> Postgres:
        """The system's database; its questions go through `snapshot`."""
        return self.sources.postgres

    @property
    def jetstream(self) -> JetStream:
        """The broker's own API."""
        return self.sources.jetstream

    @property
    def nats_monitor(self) -> NatsMonitor:
        """The broker's monitoring port."""
        return self.sources.nats_monitor

    @property
    def redis(self) -> Redis:
        """Redis, where used."""
        return self.sources.redis

    @property
    def prometheus(self) -> Prometheus:
        """Prometheus, where used."""
        return self.sources.prometheus

    def service(self, name: str) -> Exposition:
        """A service of the system, asked for what it says of itself."""
        return self.sources.service(name)

    @property
    def workloads(self) -> Runner:
        """The workloads, through the tool that runs them."""
        return self.sources.workloads

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """One short read-only transaction whose questions are about this window. Raises SourceError."""
        with self.postgres.snapshot(self.window) as db:
            yield db

    def number(self, name: str) -> float:
        """A number of docs/slo.md that decides and is no threshold. Raises KeyError."""
        return self.catalog.numbers[name]

    def now(self) -> pd.Timestamp:
        """The moment that the database shows by now, by what was measured at the start."""
        return self.clocks.get("postgres", Clock(0.0, 0.0)).now()

    def present(self) -> Context:
        """The same with a window that ends now, to look at an action's effect."""
        return replace(self, window=Window.before(self.now(), self.parameters.window_minutes, past=self.past))

    def given(self, step: str | None = None) -> Given:
        """What the judge of a step is given beside its frames: of the findings, those of the steps before it.

        Not those that were answered before it: cells may be run in any order, and the verdict must not depend on it.
        """
        detected_at = self.parameters.detected_at
        order = [s.id for s in self.section.steps]
        before = order[: order.index(step)] if step in order else order
        return Given(
            catalog=self.catalog,
            as_of=self.as_of,
            window_minutes=self.parameters.window_minutes,
            facts=self.facts,
            detected_by=self.parameters.detected_by or "",
            detected_at=moment(detected_at) if detected_at else None,
            earlier=tuple(self.findings[s] for s in before if s in self.findings),
            target=self.parameters.target,
            incident=self.parameters.incident_id,
        )

    def shared(self, step: str, ask: Callable[[Context], Frames]) -> Frames:
        """What several steps of a run look at together, asked once: frames that whoever gets them may add to.

        A step that is run again has it asked anew, and so has one that comes more than `SHARED_S` seconds later.
        """
        shared = self.asked.get(ask)
        if shared is None or step in shared.served or time.monotonic() > shared.until:
            shared = self.asked[ask] = Shared(ask(self), time.monotonic() + SHARED_S)
        shared.served.add(step)
        return shared.frames


def open_context(section: Section, parameters: Parameters, config: Settings, book: Catalog) -> Context:
    """A context whose clocks are measured: its moment is the database's clock, or a past one that was asked for.

    Raises UsageError for a target that does not exist; nothing for a source that is silent: the steps say so.
    """
    target = config.target(parameters.target)
    archive = Archive(config.output, parameters.incident_id)
    masker = Masker.of(target.urls(), parameters.incident_id, archive.salts, remembers=in_lab())
    read_cost = ReadCost(masker)
    name = f"runbook/{section.number}/{parameters.incident_id}"
    sources = Sources(target, name, config.budget, read_cost)
    clocks = _clocks(sources, target.facts.clock_stream)
    now = clocks.get("postgres", Clock(0.0, 0.0)).now()
    as_of = min(moment(parameters.as_of), now) if parameters.as_of else now
    past = (now - as_of).total_seconds() > PRESENT_S
    return Context(
        section=section,
        parameters=parameters,
        target=target,
        catalog=book.tuned(target.thresholds),
        budget=config.budget,
        archive=archive,
        masker=masker,
        read_cost=read_cost,
        sources=sources,
        window=Window.before(as_of, parameters.window_minutes, past=past),
        clocks=clocks,
    )


def _clocks(sources: Sources, stream: str | None) -> dict[str, Clock]:
    """How far the servers' clocks are ahead of this machine's, of those that answer."""
    clocks: dict[str, Clock] = {}
    with suppress(SourceError), sources.postgres.snapshot() as db:
        clocks["postgres"] = Clock(*db.clock_offset(), db.place.behind_s or 0.0)
    with suppress(SourceError, KeyError):
        if stream is None:
            return clocks
        sent = pd.Timestamp.now("UTC")
        server = pd.Timestamp(sources.jetstream.stream(stream)["ts"])
        rtt = (pd.Timestamp.now("UTC") - sent).total_seconds()
        clocks["nats"] = Clock((server - sent).total_seconds() - rtt / 2, rtt / 2)
    return clocks


def in_lab() -> bool:
    """Is this a kernel of `runbook lab`? Its server names itself; one that anything else started has another parent."""
    server = os.environ.get("RUNBOOK_LAB")
    return bool(server) and server == os.environ.get("JPY_PARENT_PID")


def _declared(source: S | None, name: str) -> S:
    if source is None:
        raise SourceError(name, Reason.NOT_CONFIGURED, messages.text(say("unknown.undeclared", source=name), "en"))
    return source
