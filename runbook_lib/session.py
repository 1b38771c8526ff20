"""One run of one section: its sources, its moment, its findings, its conclusion.

A notebook calls `open_section`, then `step` and `chart` for each step of the runbook, then `conclude`.
The same cells give the same verdict in JupyterLab, under papermill and in a drill.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd
from IPython.display import DisplayHandle, display

from runbook_lib import catalog as catalogs
from runbook_lib import checks, diagnosis, messages, render, settings
from runbook_lib.actions import ACTIONS, action
from runbook_lib.archive import NOTES, Archive, OutputError
from runbook_lib.checks.check import Check, Given
from runbook_lib.finding import Finding, Frames, Reason, Text, Verdict, complete, say
from runbook_lib.masking import TOKEN, Masker
from runbook_lib.parameters import Parameters, moment, validate
from runbook_lib.settings import UsageError
from runbook_lib.sources import Ledger, SourceError
from runbook_lib.sources.jetstream import JetStream
from runbook_lib.sources.nats_monitor import NatsMonitor
from runbook_lib.sources.postgres import Postgres
from runbook_lib.sources.prometheus import Prometheus
from runbook_lib.sources.redis import Redis
from runbook_lib.sources.workloads import Runner, runner_of

#: An `as_of` nearer to the database's clock than this is the present.
PRESENT_S = 30.0
#: After so long a step that is run again is told that its run looks at an earlier moment.
OLD_S = 120.0
#: For so long, what one step has asked also serves the steps after it.
SHARED_S = 15.0

S = TypeVar("S")


@dataclass(frozen=True)
class Clock:
    """How far a server's clock is ahead of this machine's, in seconds, and the bound of the error."""

    offset_s: float
    error_s: float


@dataclass
class _Shared:
    """What several steps look at, and which of them have had it."""

    frames: Frames
    until: float
    served: set[str] = field(default_factory=set)


class Session:
    """What the cells of one notebook share. Make it with `open_section`."""

    def __init__(self, section: catalogs.Section, parameters: Parameters, config: settings.Settings) -> None:
        self.catalog = catalogs.load()
        self.section, self.parameters = section, parameters
        self.target = config.target(parameters.target)
        self.budget = config.budget
        self.archive = Archive(config.output, parameters.incident_id)
        self.opened = pd.Timestamp.now("UTC").isoformat(timespec="milliseconds")
        self.who = whoami()
        self.lang = parameters.lang
        self.debug = bool(os.environ.get("RUNBOOK_DEBUG"))
        self.findings: dict[str, Finding] = {}
        self.outcomes: dict[str, action.Outcome] = {}
        self.word: action.Word | None = None
        self.clocks: dict[str, Clock] = {}
        self.masker = Masker.of(self.target.urls(), parameters.incident_id, remembers=in_lab())
        self.ledger = Ledger(self.masker)
        self._top: DisplayHandle | None = None
        self._cards: dict[str, DisplayHandle | None] = {}
        self._bottom: DisplayHandle | None = None
        self.shows = False
        name = f"runbook/{section.number}/{parameters.incident_id}"
        url = self.target.url
        self._postgres = Postgres(db, name, config.budget, self.ledger) if (db := url("database_url")) else None
        self._jetstream = JetStream(nats, name, self.ledger) if (nats := url("nats_url")) else None
        self._monitor = NatsMonitor(http, self.ledger) if (http := url("nats_monitor_url")) else None
        self._redis = Redis(redis, self.ledger) if (redis := url("redis_url")) else None
        self._prometheus = Prometheus(prom, self.ledger) if (prom := url("prometheus_url")) else None
        self._workloads = runner_of(self.target.workloads, self.ledger)
        self._shared: _Shared | None = None
        self._look_at(self._fix_moment())

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

    @property
    def workloads(self) -> Runner:
        """The workloads, through the tool that runs them; a tool that is not there shows when it is asked."""
        return self._workloads

    def given(self, step: str | None = None) -> Given:
        """What the judge of a step is given beside its frames: of the findings, those of the steps before it.

        Not those that were answered before it: cells may be run in any order, and the verdict must not depend on it.
        """
        detected_at = self.parameters.detected_at
        order = [s.id for s in self.section.steps]
        before = order[: order.index(step)] if step in order else order
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
            earlier=tuple(self.findings[s] for s in before if s in self.findings),
            target=self.parameters.target,
            incident=self.parameters.incident_id,
        )

    def shared(self, step: str, ask: Callable[[Session], Frames]) -> Frames:
        """What the steps of a section look at together, asked once: frames that whoever gets them may add to.

        A step that is run again has it asked anew, and so has one that comes more than `SHARED_S` seconds later.
        """
        shared = self._shared
        if shared is None or step in shared.served or time.monotonic() > shared.until:
            shared = self._shared = _Shared(ask(self), time.monotonic() + SHARED_S)
        shared.served.add(step)
        return shared.frames

    # What the cells of a notebook call.

    def step(self, step: str) -> None:
        """Answer one step of the runbook and show it. Never raises for a source that fails."""
        self._answer(step)
        self._warn_of_age()
        self._cards[step] = display(self._card(step), display_id=True)
        self._follow(step)

    def chart(self, step: str) -> None:
        """Draw what the step collected; a step that was not answered yet is answered first."""
        if step not in self.findings:
            self._answer(step)
        finding = self.findings[step]
        for draw in self._check(step).charts:
            try:
                figure = draw(finding.frames, self.given(step))
            except Exception as e:
                if self.debug:
                    raise
                detail = self.masker.scrub(f"{type(e).__name__}: {e}")
                display(render.Line(say("chart.not_drawn", detail=detail), self.lang, run=self.opened))
                continue
            if figure is None:
                display(render.Line(say("chart.no_data"), self.lang, run=self.opened))
            else:
                shown = [bundle | render.mark(self.opened) for bundle in figure.display(self.lang)]
                display(*shown, raw=True, metadata=figure.metadata(self.lang))

    def first_response(self) -> render.Proposals:
        """The proposals that the findings so far justify, with the exact commands. Nothing is run."""
        found = diagnosis.conclude(self.findings.values(), self.catalog.failure_modes)
        return render.Proposals(found.proposals, self.lang, run=self.opened)

    def act(
        self,
        name: str,
        *,
        execute: bool = False,
        approved_by: str | None = None,
        reason: str | None = None,
        **what: Any,
    ) -> render.Acted:
        """Carry out an action (`restart`, `set`, `redrive`), or show what it would do.

        Without `execute` nothing is changed. Whatever becomes of it is a line in the incident's actions.jsonl.
        Raises UsageError for an action, or an argument, that does not exist.
        """
        if name not in ACTIONS:
            raise UsageError(f"unknown action '{name}': {settings.did_you_mean(name, list(ACTIONS))}")
        with self.progress() as progress:
            outcome = action.perform(
                ACTIONS[name](self, **what),
                self,
                execute=execute,
                approved_by=approved_by,
                reason=reason,
                progress=progress,
            )
        self.outcomes[name] = outcome
        return render.Acted(outcome, self.lang, run=self.opened)

    def note(self, text: str) -> render.Line:
        """Put a line into the incident's timeline. Raises UsageError when it can not be written."""
        kept = keep_note(self.archive, self.masker.scrub(text), self.who, self.section.number)
        return render.Line(kept, self.lang, run=self.opened)

    def reveal(self, *texts: str) -> render.Revealed:
        """Show who stands behind the tokens in `texts`, on this screen alone: it is in nothing that is saved.

        Raises UsageError outside `runbook lab`, whose server keeps it out of the file.
        """
        if self.masker.people is None:
            raise UsageError("only `runbook lab` can reveal: elsewhere the page is saved as it is shown")
        tokens = dict.fromkeys(token for text in texts for token in TOKEN.findall(text))
        if not tokens:
            raise UsageError("nothing to reveal: name a token such as rb.reveal('user-1a2b3c4d')")
        return render.Revealed({t: self.masker.people.get(t) for t in tokens}, self.lang)

    @contextmanager
    def progress(self) -> Iterator[action.Progress]:
        """A bar in the notebook for what takes its time; it is gone when it is over."""
        if not self.shows:
            yield lambda share, text: None
            return
        handle = display(render.Bar(0.0, say("ui.looking"), self.lang, run=self.opened), display_id=True)
        try:
            yield lambda share, text: handle.update(render.Bar(share, text, self.lang, run=self.opened))
        finally:
            handle.update(render.Bar(None, say("ui.looking"), self.lang, run=self.opened))

    def conclude(self) -> None:
        """Show the verdict of the section, every planned step exactly once, and what the questions cost.

        A step that is run again afterwards brings it up to date.
        """
        self._bottom = display(self._conclusion(), display_id=True)
        if self._top is not None:
            self._top.update(self._banner(self.verdict()))

    def verdict(self) -> Verdict:
        """The verdict so far."""
        return diagnosis.conclude(self._complete(), self.catalog.failure_modes)

    def show_header(self) -> None:
        """Show what this run looks at; `conclude` puts the verdict in its place."""
        self.shows = True
        self._top = display(self._banner(None), display_id=True)

    def now(self) -> pd.Timestamp:
        """The database's clock at this moment, by the offset measured at the start."""
        clock = self.clocks.get("postgres")
        return pd.Timestamp.now("UTC") + pd.Timedelta(seconds=clock.offset_s if clock else 0.0)

    @contextmanager
    def present(self) -> Iterator[pd.Timestamp]:
        """Windows end now instead of at the run's own moment: to look at an action's effect."""
        before = self.as_of
        self._look_at(self.now())
        try:
            yield self.as_of
        finally:
            self._look_at(before)

    def _look_at(self, moment: pd.Timestamp) -> None:
        self.as_of, self.since = moment, moment - pd.Timedelta(minutes=self.parameters.window_minutes)
        if self._postgres is not None:
            self._postgres.as_of, self._postgres.since = self.as_of, self.since

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
        as_of = min(moment(self.parameters.as_of), now) if self.parameters.as_of else now
        past = (now - as_of).total_seconds() > PRESENT_S
        if self._postgres is not None:
            self._postgres.past = past
        self.past = past
        return as_of

    def _conclusion(self) -> render.Conclusion:
        return render.Conclusion(
            self._header(),
            self.verdict(),
            self._complete(),
            self._titles(),
            self.ledger.questions,
            self.lang,
            run=self.opened,
        )

    def _banner(self, verdict: Verdict | None) -> render.Banner:
        return render.Banner(self._header(), verdict, self.lang, run=self.opened)

    def _card(self, step: str) -> render.Card:
        return render.Card(self.findings[step], self._titles()[step], self.lang, run=self.opened)

    def _answer(self, step: str) -> None:
        self.findings[step] = self._check(step).run(self)

    def _follow(self, step: str) -> None:
        """Bring up to date what is shown already and rests on this step: later steps, and the verdict."""
        order = [s.id for s in self.section.steps]
        for later in order[order.index(step) + 1 :]:
            before = self.findings.get(later)
            if before is None or not before.frames or before.reason is Reason.ERROR:
                continue
            self.findings[later] = self._check(later).judge_again(before, self.given(later))
            if (card := self._cards.get(later)) is not None:
                card.update(self._card(later))
        if self._bottom is not None:
            self._bottom.update(self._conclusion())
            if self._top is not None:
                self._top.update(self._banner(self.verdict()))

    def _warn_of_age(self) -> None:
        """One run is of one moment; a step that is asked much later can not be of the same."""
        age_s = (self.now() - self.as_of).total_seconds()
        if self.shows and not self.past and age_s > OLD_S:
            text = say("lab.old", as_of=render.when(self.as_of), minutes=age_s / 60)
            display(render.Line(text, self.lang, run=self.opened))

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

    def _header(self) -> render.Header:
        return render.Header(
            section=self.section.number,
            title=self.section.ja if self.lang == "ja" else self.section.en,
            incident=self.parameters.incident_id,
            target=self.parameters.target,
            as_of=self.as_of,
            window_minutes=self.parameters.window_minutes,
            clocks={name: (c.offset_s, c.error_s) for name, c in self.clocks.items()},
            by=self.who,
            given={
                "lease_s": self.target.lease_s,
                "batch_size": self.target.batch_size,
                "poll_interval_s": self.target.poll_interval_s,
                "workloads": self.target.workloads.model_dump(),
                "detected_by": self.parameters.detected_by or "",
                "detected_at": self.parameters.detected_at,
            },
            parameters=self.parameters.model_dump(exclude_unset=True),
            opened=self.opened,
        )


def open_section(section: str, **parameters: Any) -> Session:
    """Open a section of the runbook on a target.

    `parameters` are those of the notebook's parameters cell (see `parameters.Parameters`). Raises UsageError,
    one line, for a section, parameter or target that does not exist; nothing for a source that is silent.
    """
    rb = quiet_session(section, **parameters)
    rb.show_header()
    return rb


def quiet_session(section: str, **parameters: Any) -> Session:
    """The same without a notebook to show anything in: for the command. Raises UsageError."""
    book = catalogs.load()
    if section not in book.sections:
        raise UsageError(f"unknown section '{section}': {settings.did_you_mean(section, list(book.sections))}")
    return Session(book.sections[section], validate(parameters), settings.load())


def keep_note(archive: Archive, text: str, who: str, section: str = "", job: str = "") -> Text:
    """Put a line into an incident's timeline; what was kept, as a sentence.

    A `job` leaves one: where that is there already, it is what comes back. Raises UsageError for an empty note, and
    OutputError when it can not be written.
    """
    if not text.strip():
        raise UsageError("an empty note says nothing")
    archive.prepare()
    entry = {"time": pd.Timestamp.now("UTC").isoformat(timespec="milliseconds"), "who": who, "text": text.strip()}
    try:
        before = next((e for e in archive.lines(NOTES) if job and e.get("job") == job), None)
        if before:
            entry = before
        else:
            archive.add_line(NOTES, entry | {"section": section} | ({"job": job} if job else {}))
    except OSError as e:
        raise OutputError(f"the note could not be written to {archive.place}: {e.strerror or e}") from None
    return say("ui.noted", time=render.when(entry["time"]), who=who, text=entry["text"])


def in_lab() -> bool:
    """Is this a kernel of `runbook lab`? Its server names itself; one that anything else started has another parent."""
    server = os.environ.get("RUNBOOK_LAB")
    return bool(server) and server == os.environ.get("JPY_PARENT_PID")


def _declared(source: S | None, name: str) -> S:
    if source is None:
        raise SourceError(name, Reason.NOT_CONFIGURED, messages.text(say("unknown.undeclared", source=name), "en"))
    return source


def whoami() -> str:
    """The login name of whoever runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
