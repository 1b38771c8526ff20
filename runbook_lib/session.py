"""One run of one section: its sources, its moment, its findings, its conclusion.

A notebook calls `open_section`, then `step` and `chart` for each step of the runbook, then `conclude`.
The same cells give the same verdict in JupyterLab, under papermill and in a drill.
"""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
from IPython.display import DisplayHandle, display

from runbook_lib import catalog as catalogs
from runbook_lib import checks, diagnosis, messages, render, settings
from runbook_lib.checks.check import Check, Given
from runbook_lib.finding import Finding, Reason, Verdict, complete, say
from runbook_lib.masking import Masker
from runbook_lib.parameters import Parameters, moment, validate
from runbook_lib.settings import UsageError
from runbook_lib.sources import Ledger, SourceError
from runbook_lib.sources.jetstream import JetStream
from runbook_lib.sources.nats_monitor import NatsMonitor
from runbook_lib.sources.postgres import Postgres
from runbook_lib.sources.prometheus import Prometheus
from runbook_lib.sources.redis import Redis

#: An `as_of` nearer to the database's clock than this is the present.
PRESENT_S = 30.0

S = TypeVar("S")


@dataclass(frozen=True)
class Clock:
    """How far a server's clock is ahead of this machine's, in seconds, and the bound of the error."""

    offset_s: float
    error_s: float


class Session:
    """What the cells of one notebook share. Make it with `open_section`."""

    def __init__(self, section: catalogs.Section, parameters: Parameters, config: settings.Settings) -> None:
        self.catalog = catalogs.load()
        self.section, self.parameters = section, parameters
        self.target = config.target(parameters.target)
        self.lang = parameters.lang
        self.debug = bool(os.environ.get("RUNBOOK_DEBUG"))
        self.findings: dict[str, Finding] = {}
        self.clocks: dict[str, Clock] = {}
        self.masker = Masker.of(self.target.urls(), parameters.incident_id)
        self.ledger = Ledger(self.masker)
        self._top: DisplayHandle | None = None
        name = f"runbook/{section.number}/{parameters.incident_id}"
        url = self.target.url
        self._postgres = Postgres(db, name, config.budget, self.ledger) if (db := url("database_url")) else None
        self._jetstream = JetStream(nats, name, self.ledger) if (nats := url("nats_url")) else None
        self._monitor = NatsMonitor(http, self.ledger) if (http := url("nats_monitor_url")) else None
        self._redis = Redis(redis, self.ledger) if (redis := url("redis_url")) else None
        self._prometheus = Prometheus(prom, self.ledger) if (prom := url("prometheus_url")) else None
        self.as_of = self._fix_moment()
        self.since = self.as_of - pd.Timedelta(minutes=parameters.window_minutes)

    # The sources; asking one that the target does not declare is an answer too: not_configured.

    @property
    def postgres(self) -> Postgres:
        """The database of both services."""
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

    def given(self) -> Given:
        """What judges are given beside their frames."""
        detected_at = self.parameters.detected_at
        return Given(
            limits=self.catalog.limits,
            slos=self.catalog.slos,
            as_of=self.as_of,
            window_minutes=self.parameters.window_minutes,
            lease_s=self.target.lease_s,
            batch_size=self.target.batch_size,
            poll_interval_s=self.target.poll_interval_s,
            workloads=self.target.workloads,
            detected_by=self.parameters.detected_by or "",
            detected_at=moment(detected_at) if detected_at else None,
            earlier=tuple(self.findings.values()),
        )

    # What the cells of a notebook call.

    def step(self, step: str) -> render.Card:
        """Answer one step of the runbook and show it. Never raises for a source that fails."""
        check = self._check(step)
        self.findings[step] = check.run(self)
        return render.Card(self.findings[step], self._step_title(step), self.lang)

    def chart(self, step: str) -> None:
        """Draw what the step collected; it must have been answered before."""
        finding = self.findings.get(step) or self.step(step).finding
        for draw in self._check(step).charts:
            try:
                figure = draw(finding.frames, self.given())
            except Exception as e:
                if self.debug:
                    raise
                detail = self.masker.scrub(f"{type(e).__name__}: {e}")
                display(render.Line(say("chart.not_drawn", detail=detail), self.lang))
                continue
            if figure is None:
                display(render.Line(say("chart.no_data"), self.lang))
            else:
                display(*figure.display(self.lang), raw=True, metadata=figure.metadata(self.lang))

    def first_response(self) -> render.Proposals:
        """The proposals that the findings so far justify, with the exact commands. Nothing is run."""
        return render.Proposals(
            diagnosis.conclude(self.findings.values(), self.catalog.failure_modes).proposals, self.lang
        )

    def conclude(self) -> render.Conclusion:
        """The verdict of the section, every planned step exactly once, and what the questions cost."""
        conclusion = render.Conclusion(
            self._header(), self.verdict(), self._complete(), self._titles(), self.ledger.questions, self.lang
        )
        if self._top is not None:
            self._top.update(render.Banner(self._header(), conclusion.verdict, self.lang))
        return conclusion

    def verdict(self) -> Verdict:
        """The verdict so far."""
        return diagnosis.conclude(self._complete(), self.catalog.failure_modes)

    def show_header(self) -> None:
        """Show what this run looks at; `conclude` puts the verdict in its place."""
        self._top = display(render.Banner(self._header(), None, self.lang), display_id=True)

    def _fix_moment(self) -> pd.Timestamp:
        """Measure the clocks once; the moment is the database's clock, or a past one that was asked for."""
        here = pd.Timestamp.now("UTC")
        now = here
        if self._postgres is not None:
            try:
                with self._postgres.snapshot() as db:
                    offset, error = db.clock_offset()
                self.clocks["postgres"] = Clock(offset, error)
                now = here + pd.Timedelta(seconds=offset)
            except SourceError:
                pass  # the steps say so, each for itself
        if self._jetstream is not None:
            try:
                sent = pd.Timestamp.now("UTC")
                stream = self._jetstream.stream(self.target.streams.events)
                rtt = (pd.Timestamp.now("UTC") - sent).total_seconds()
                server = pd.Timestamp(stream["ts"])
                middle = sent + pd.Timedelta(seconds=rtt / 2)
                self.clocks["nats"] = Clock((server - middle).total_seconds(), rtt / 2)
            except (SourceError, KeyError):
                pass
        as_of = moment(self.parameters.as_of) if self.parameters.as_of else now
        past = (now - as_of).total_seconds() > PRESENT_S
        if self._postgres is not None:
            self._postgres.past = past
            self._postgres.as_of = as_of
            self._postgres.since = as_of - pd.Timedelta(minutes=self.parameters.window_minutes)
        self.past = past
        return as_of

    def _check(self, step: str) -> Check:
        if step not in {s.id for s in self.section.steps}:
            known = [s.id for s in self.section.steps]
            raise UsageError(
                f"step '{step}' is not of section {self.section.number}: {settings.did_you_mean(step, known)}"
            )
        return checks.CHECKS[step]

    def _complete(self) -> list[Finding]:
        return complete([s.id for s in self.section.steps], self.findings)

    def _titles(self) -> dict[str, str]:
        return {s.id: s.ja if self.lang == "ja" else s.en for s in self.section.steps}

    def _step_title(self, step: str) -> str:
        return self._titles()[step]

    def _header(self) -> render.Header:
        return render.Header(
            section=self.section.number,
            title=self.section.ja if self.lang == "ja" else self.section.en,
            incident=self.parameters.incident_id,
            target=self.parameters.target,
            as_of=self.as_of,
            window_minutes=self.parameters.window_minutes,
            clocks={name: (c.offset_s, c.error_s) for name, c in self.clocks.items()},
            by=_whoami(),
            given={
                "lease_s": self.target.lease_s,
                "batch_size": self.target.batch_size,
                "poll_interval_s": self.target.poll_interval_s,
                "workloads": self.target.workloads.model_dump(),
                "detected_by": self.parameters.detected_by or "",
                "detected_at": self.parameters.detected_at,
            },
        )


def open_section(section: str, **parameters: Any) -> Session:
    """Open a section of the runbook on a target.

    `parameters` are those of the notebook's parameters cell (see `parameters.Parameters`). Raises UsageError,
    one line, for a section, parameter or target that does not exist; nothing for a source that is silent.
    """
    book = catalogs.load()
    if section not in book.sections:
        raise UsageError(f"unknown section '{section}': {settings.did_you_mean(section, list(book.sections))}")
    rb = Session(book.sections[section], validate(parameters), settings.load())
    rb.show_header()
    return rb


def _declared(source: S | None, name: str) -> S:
    if source is None:
        raise SourceError(name, Reason.NOT_CONFIGURED, messages.text(say("unknown.undeclared", source=name), "en"))
    return source


def _whoami() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
