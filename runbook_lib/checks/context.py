"""The input of checks and actions: the sources, the moment of the run, and the findings so far.

Opening a context measures the clocks once; constructing one reads nothing. Another moment needs another context; a
context never changes its moment.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import pandas as pd

from runbook_lib.book import messages, pack
from runbook_lib.book.catalog import Catalog, Limits, Section, Slo
from runbook_lib.book.parameters import Parameters
from runbook_lib.checks.sample import Sample, read_first
from runbook_lib.model.finding import Finding, Frames, Reason, Signal, Text, Window, say
from runbook_lib.model.times import moment
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.answers import SHARED_S, Answers
from runbook_lib.sources.jetstream import JetStream
from runbook_lib.sources.logs import Log
from runbook_lib.sources.nats_monitor import NatsMonitor
from runbook_lib.sources.postgres import Postgres, Snapshot
from runbook_lib.sources.prometheus import Exposition, Prometheus
from runbook_lib.sources.settings import Budget, Settings, Target, TargetFacts, facts_of
from runbook_lib.sources.source import ClockOffset, HasClock, Opening, ReadCost, SourceError
from runbook_lib.sources.workloads import Runner
from runbook_lib.store import capsule
from runbook_lib.store.archive import Archive

S = TypeVar("S")
Progress = Callable[[float, Text], None]
"""Called with the share of the work that is done (0 to 1) and a text."""


class Sources:
    """The sources of a target by name, each opened on first use.

    A source that the target does not declare raises SourceError (not_configured), and in a replay every source raises
    it (no_data): there is no `opening` then. `down` are those that did not answer a moment ago, and when: each is not
    asked again for some seconds.
    """

    def __init__(self, opening: Opening | None, down: Mapping[str, tuple[float, SourceError]] | None = None) -> None:
        self._opening, self._opened, self._down = opening, dict[str, Any](), dict(down or {})

    def get(self, name: str) -> Any:
        """Return a source (`Pack.sources`). Raises SourceError, and KeyError for an unknown name."""
        opening = self._require_opening(name)
        if name not in self._opened:
            self._opened[name] = found = pack.active_runbook().source(name).declared(opening)
            if found is not None and name in self._down:
                found.down = self._down[name]
        return _require_declared(self._opened[name], name)

    def service(self, name: str) -> Exposition:
        """Return a service of the system, asked for what it says of itself. Raises SourceError."""
        opening = self._require_opening(name)
        url = opening.target.service(name)
        return _require_declared(Exposition(name, url, opening.read_cost) if url else None, name)

    def _require_opening(self, name: str) -> Opening:
        if self._opening is None:
            raise SourceError(name, Reason.NO_DATA, messages.text(say("unknown.replayed"), "en"), "replayed")
        return self._opening

    def anew(self, cost: ReadCost) -> Sources:
        """Return the same sources, opened anew, whose queries another cost counts."""
        return Sources(self._opening and replace(self._opening, read_cost=cost), self.down())

    def down(self) -> dict[str, tuple[float, SourceError]]:
        """Return those that did not answer a moment ago, and when (`time.monotonic`)."""
        seen = {name: getattr(source, "down", None) for name, source in [*self._opened.items()]}
        return self._down | {name: down for name, down in seen.items() if down is not None}

    def clocks(self, *names: str) -> dict[str, ClockOffset]:
        """Measure the clocks of the servers that have one and answer, or of these."""
        clocks: dict[str, ClockOffset] = {}
        for name in names or pack.active_runbook().sources:
            with suppress(SourceError):
                if isinstance(source := self.get(name), HasClock):
                    clocks |= source.clock(self._require_opening(name).target.facts)
        return clocks


class AskedOnce:
    """A source, each of whose calls is asked once for the steps of a run (`Answers.once`)."""

    def __init__(self, name: str, source: Any, answers: Answers, cost: ReadCost) -> None:
        self._of = name, source, answers, cost

    def __getattr__(self, name: str) -> Any:
        """Return the source's method of that name; its property as it is."""
        of, source, answers, cost = self._of
        found = getattr(source, name)
        if not callable(found):
            return found

        def ask(*args: Any, **named: Any) -> Any:
            return answers.once((of, name, repr(args), repr(named)), cost, partial(found, *args, **named))

        return ask


@dataclass(frozen=True)
class JudgeInput:
    """The input of a judge beside the frames: the documents, the facts of the target and of the run."""

    catalog: Catalog
    as_of: pd.Timestamp
    window_minutes: int
    facts: TargetFacts = field(default_factory=TargetFacts)
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
        """Return a number that decides and is no threshold (numbers.md). Raises KeyError."""
        return self.catalog.numbers[name]

    def evidence(self, observation: str) -> tuple[Signal, ...]:
        """Return the evidence of an observation, with the classes of observations.md."""
        return self.catalog.evidence(observation)

    def evidence_of(self, observations: Iterable[str]) -> tuple[Signal, ...]:
        """Return the evidence of several observations."""
        return tuple(signal for name in observations for signal in self.evidence(name))

    def record(self) -> dict[str, Any]:
        """Return the facts of the target and of the run as JSON; `recorded` reads them back."""
        return self.facts.model_dump() | {
            "detected_by": self.detected_by,
            "detected_at": None if self.detected_at is None else self.detected_at.isoformat(),
            "thresholds": self.catalog.own,
        }

    @classmethod
    def recorded(cls, book: Catalog, header: dict[str, Any], earlier: tuple[Finding, ...]) -> JudgeInput:
        """Return the input of a stored run's judges, from its header; the target's thresholds are already in `book`."""
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
class SharedFrames:
    """Frames that several steps use, and the steps that have received them."""

    frames: Frames
    until: float
    served: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Context:
    """One run of one section, as its checks and actions see it. Make it with `open_context`.

    `findings` are those of this run so far by step, `outcomes` those of its actions by name; the session fills them.
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
    clocks: dict[str, ClockOffset] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    outcomes: dict[str, Any] = field(default_factory=dict)
    progress: Callable[[], AbstractContextManager[Progress]] = lambda: nullcontext(lambda share, text: None)
    asked: dict[Callable[[Context], Frames], SharedFrames] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)
    sample: Sample | None = None
    """What was read for all sections of the run; None where this one runs alone."""
    brief: bool = False
    """Whether a step of another section collects: only what is judged, not what its own section shows beside it."""
    recorded: Mapping[str, Finding] | None = None
    """The findings of a recording by step, where one is replayed: no server is asked then."""

    @property
    def as_of(self) -> pd.Timestamp:
        """The moment of the run."""
        return self.window.as_of

    @property
    def since(self) -> pd.Timestamp:
        """The start of the window before that moment."""
        return self.window.since

    @property
    def facts(self) -> TargetFacts:
        """The facts of the system in the target's settings."""
        return self.target.facts

    @overload
    def source(self, name: Literal["jetstream"]) -> JetStream: ...
    @overload
    def source(self, name: Literal["nats_monitor"]) -> NatsMonitor: ...
    @overload
    def source(self, name: Literal["prometheus"]) -> Prometheus: ...
    @overload
    def source(self, name: str) -> Any: ...
    def source(self, name: str) -> Any:
        """Return a source by its name, of the engine or of a pack's own. Raises SourceError, KeyError."""
        found = self.sources.get(name)
        return AskedOnce(name, found, self.answers, self.read_cost) if self.answers.step else found

    @property
    def postgres(self) -> Postgres:
        """The system's database; queries go through `snapshot`."""
        return cast(Postgres, self.sources.get("postgres"))

    def service(self, name: str) -> Exposition:
        """Return a service of the system, to read its metrics."""
        return self.sources.service(name)

    @property
    def workloads(self) -> Runner:
        """The workloads, through the tool that runs them."""
        return cast(Runner, self.source("workloads"))

    def log(self, name: str, minutes: float) -> Log:
        """Return the log of a workload's last minutes, read at a moment of the database's clock. Raises SourceError."""
        found = self.workloads.logs(name, float(minutes))
        ahead = self.now() - pd.Timestamp.now("UTC")
        return replace(found, at=(pd.Timestamp(found.at) + ahead).floor("us").to_pydatetime())

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Open one short read-only transaction for queries about this window. Raises SourceError."""
        return self.postgres.snapshot(self.window, self.answers)

    def of(self, step: str) -> Context:
        """Return a copy that collects for a step: it takes over what other steps have asked a moment ago.

        Without a step ("") it takes over nothing, for a second sample of the same.
        """
        return replace(self, answers=replace(self.answers, step=step))

    def begin(self, step: str) -> Context:
        """Return a copy that collects for a step from its beginning: a step that is run again shares nothing old."""
        for ask, shared in [*self.asked.items()]:
            if step in shared.served:
                del self.asked[ask]
        return self.of(step)

    def number(self, name: str) -> float:
        """Return a number that decides and is no threshold (numbers.md). Raises KeyError."""
        return self.catalog.numbers[name]

    def now(self) -> pd.Timestamp:
        """Return the database's present time, from the clock offset measured at the start."""
        return _present(self.clocks)

    def in_one_cluster(self) -> Context:
        """Return a copy whose settings name the cluster that the workloads' tool would choose by itself.

        So an action's command names it, and the action ends in the cluster that was checked.
        """
        try:
            context, _ = self.workloads.cluster()
        except SourceError:
            return self
        workloads = self.facts.workloads.model_copy(update={"context": context})
        facts = self.facts.model_copy(update={"workloads": workloads})
        return replace(self, target=self.target.model_copy(update={"facts": facts}))

    def present(self) -> Context:
        """Return a copy whose window ends now, to measure an action's effect."""
        return replace(self, window=Window.before(self.now(), self.parameters.window_minutes))

    def given(self, step: str | None = None) -> JudgeInput:
        """Return the input of a step's judge beside its frames, with the findings of the steps before it.

        Not those that were answered before it: cells may be run in any order, and the verdict must not depend on it.
        """
        detected_at = self.parameters.detected_at
        order = [s.id for s in self.section.steps]
        before = order[: order.index(step)] if step in order else order
        return JudgeInput(
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

    def first(self, step: str) -> Frames:
        """Return the frames of the first moment, named "first.NAME", and of the time since (`sample.Part.watch`).

        The present is the second moment: what the step asks after this, or what the run's sample has of it.
        """
        return self.sample.first if self.sample else self.shared(step, read_first)

    def shared(self, step: str, ask: Callable[[Context], Frames]) -> Frames:
        """Return frames that several steps use, collected once per run; the caller may add frames to them.

        A step that is run again (`begin`), or comes more than `SHARED_S` seconds later, has it asked anew.
        """
        shared = self.asked.get(ask)
        if shared is None or time.monotonic() > shared.until:
            shared = self.asked[ask] = SharedFrames(ask(self), time.monotonic() + SHARED_S)
        shared.served.add(step)
        return shared.frames


#: The sample of the run whose sections this process executes (`inherit`).
_inherited: Sample | None = None


def inherit(sample: Sample | None) -> None:
    """Take over what was read for a run: the contexts that this process opens from now on are of its sections."""
    global _inherited
    _inherited = sample


def open_context(section: Section, parameters: Parameters, config: Settings, book: Catalog, *clocks_of: str) -> Context:
    """Open a context: measure the clocks, or these; its moment is the present by the database's clock.

    Raises UsageError for a target that does not exist; nothing for a source that is silent: the steps say so.
    """
    if config.replay:
        return _open_replayed(section, parameters, config, book)
    target, sample = config.target(parameters.target), _inherited
    archive = Archive(config.output, parameters.incident_id)
    masker = Masker.of(target.urls(), parameters.incident_id, archive.salt, remembers=in_lab())
    read_cost = ReadCost(masker)
    name = f"runbook/{section.number}/{parameters.incident_id}"
    sources = Sources(Opening(target, name, config.budget, read_cost), sample.down if sample else {})
    clocks = sample.clocks if sample else sources.clocks(*clocks_of)
    if sample:
        masker.keep_tokens(sample.tokens)
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
        window=Window.before(sample.as_of if sample else _present(clocks), parameters.window_minutes),
        clocks=clocks,
        asked={ask: SharedFrames(frames, math.inf) for ask, frames in sample.shared.items()} if sample else {},
        answers=Answers(sample.answers if sample else {}),
        sample=sample,
    )


def _open_replayed(section: Section, parameters: Parameters, config: Settings, book: Catalog) -> Context:
    """Return a context over a recording's run of the section, at the recording's moment. Raises UsageError."""
    runs = capsule.read(Path(config.replay))
    run = runs.get(section.number)
    if run is None:
        raise UsageError(f"{config.replay} holds no run of section {section.number}; it holds {', '.join(runs)}")
    header = run.header
    try:
        given = JudgeInput.recorded(book, header, ())
        tuned = book.tuned(header.get("given", {}).get("thresholds", {}))
        window = Window.before(given.as_of, given.window_minutes)
        clocks = {
            name: ClockOffset(offset_s, error_s, header.get("behind_s", 0.0) if name == "postgres" else 0.0)
            for name, (offset_s, error_s) in header.get("clocks", {}).items()
        }
        recorded = {step: f for r in (*runs.values(), run) for step, f in r.by_step.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as e:  # pydantic's too
        raise UsageError(f"{config.replay} was written by another version of runbook or of its pack: {e}") from None
    masker = Masker()
    return Context(
        section=section,
        parameters=parameters.model_copy(
            update={
                "window_minutes": given.window_minutes,
                "target": given.target,
                "detected_by": given.detected_by or None,
                "detected_at": given.detected_at.isoformat() if given.detected_at is not None else None,
            }
        ),
        target=Target.model_construct(facts=given.facts),
        catalog=tuned,
        budget=config.budget,
        archive=Archive(config.output, parameters.incident_id),
        masker=masker,
        read_cost=ReadCost(masker),
        sources=Sources(None),
        window=window,
        clocks=clocks,
        recorded=recorded,
    )


def _present(clocks: Mapping[str, ClockOffset]) -> pd.Timestamp:
    return clocks.get("postgres", ClockOffset(0.0, 0.0)).now()


def in_lab() -> bool:
    """Return whether this is a kernel of `runbook lab`: a kernel that anything else started has another parent."""
    server = os.environ.get("RUNBOOK_LAB")
    return bool(server) and server == os.environ.get("JPY_PARENT_PID")


def _require_declared(source: S | None, name: str) -> S:
    if source is None:
        raise SourceError(name, Reason.NOT_CONFIGURED, messages.text(say("unknown.undeclared", source=name), "en"))
    return source
