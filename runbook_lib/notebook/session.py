"""Sessions: one run of one section in a notebook, from the sources to the verdict.

A notebook calls `open_section`, then `step` and `chart` for each step of the runbook, then `conclude`.
The same cells give the same verdict in JupyterLab, under papermill and in a drill.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from getpass import getpass
from types import MethodType
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from runbook_lib.actions import action
from runbook_lib.book import catalog as catalogs
from runbook_lib.book import messages, pack, queries
from runbook_lib.book.parameters import mask_free_texts, parameters_class, validate, whoami
from runbook_lib.checks.check import Check, checks
from runbook_lib.checks.context import Context, Progress, in_lab, open_context
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.questions import ask_until_decided, sections_to_follow
from runbook_lib.model.finding import Answer, Finding, Reason, SentQuery, Status, Verdict, Window, complete, say
from runbook_lib.model.times import now
from runbook_lib.model.usage import UsageError, did_you_mean
from runbook_lib.notebook.notes import keep_note
from runbook_lib.sources import settings
from runbook_lib.sources.settings import Target
from runbook_lib.sources.source import SourceError
from runbook_lib.store.archive import refuse_reserved
from runbook_lib.view import render
from runbook_lib.view.answer import StepResult
from runbook_lib.view.queries import PARAMETER, StepQueries, queries_of

P = ParamSpec("P")
R = TypeVar("R")
#: Seconds after which a step that is run again warns that the run shows an earlier moment.
OLD_S = 120.0
#: Parameters that a cell passes on by itself (`rb.act`, `rb.event`), and never to the whole section.
_OF_CELLS = frozenset({"execute", "approved_by", "reason", "event"})
#: What every query is given by the run (`Snapshot.ask`), and no cell by a variable.
_OF_RUN = frozenset({"as_of", "since", "max_rows"})


def _in_its_language(method: Callable[Concatenate[Session, P], R]) -> Callable[Concatenate[Session, P], R]:
    """Return a method that runs in the language of its session: one kernel may have several."""

    @wraps(method)
    def run(self: Session, /, *arguments: P.args, **named: P.kwargs) -> R:
        with messages.using(self.lang):
            return method(self, *arguments, **named)

    return run


class Session:
    """The state shared by the cells of one notebook: it runs steps, charts, actions and the verdict over a context.

    Make it with `open_section`.
    """

    def __init__(self, context: Context) -> None:
        self.context = replace(context, progress=self.progress)
        self.opened = now()
        self._top: DisplayHandle | None = None
        self._cards: dict[str, DisplayHandle | None] = {}
        self._charts: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
        self._bottom: DisplayHandle | None = None
        self.shows = False
        self.answers: tuple[Answer, ...] = ()

    def __getattr__(self, name: str) -> Any:
        """Return a function or class that a pack adds to sessions (`Pack.asks`), such as `rb.watch`.

        A function that takes a session is a method of this one, a class that takes one is an attribute.
        """
        if name not in pack.active_runbook().asks:
            raise AttributeError(f"a session has no '{name}': {did_you_mean(name, dir(self))}")
        ask = pack.active_runbook().ask(name)
        return ask(self) if isinstance(ask, type) else MethodType(_in_its_language(ask), self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *pack.active_runbook().asks]

    @property
    def findings(self) -> dict[str, Finding]:
        """The findings so far, by step."""
        return self.context.findings

    @property
    def lang(self) -> str:
        """The language of what is shown."""
        return self.context.parameters.lang

    # What the cells of a notebook call.

    @_in_its_language
    def step(self, step: str) -> StepResult:
        """Run one step of the runbook, show its card, and return its result for your own cells.

        Never raises for a source that fails.
        """
        self._run_step(step)
        self._warn_of_age()
        self._cards[step] = display(self._card(step), display_id=True)
        self._update_dependents(step)
        return StepResult(lambda: self._card(step), self._find_check(step).reads)

    @_in_its_language
    def chart(self, step: str) -> None:
        """Draw the charts of a step of this section; run it first if it has not run yet. Raises UsageError."""
        if not isinstance(step, str):
            raise UsageError("rb.chart takes a step of this section; draw a frame with its own .plot()")
        if step not in self.findings:
            self._run_step(step)
        finding = self.findings[step]
        self._charts.pop(step, None)
        for describe in self._find_check(step).described_charts(finding.frames, self.context.given(step)):
            mark = render.run_mark(self.opened)
            try:
                chart = describe()
                shown = [bundle | mark for bundle in chart.display()] if chart else []
            except Exception as e:
                if os.environ.get("RUNBOOK_DEBUG"):
                    raise
                detail = self.context.masker.scrub(f"{type(e).__name__}: {e}")
                display(render.sentence(say("chart.not_drawn", detail=detail), run=self.opened))
                continue
            if chart is None:
                display(mark | {"text/plain": messages.text(say("chart.no_data"))}, raw=True)
            else:
                display(*shown, raw=True, metadata=chart.metadata())
                self._charts.setdefault(step, []).extend((bundle, chart.metadata()) for bundle in shown)

    @_in_its_language
    def queries(self, step: str) -> StepQueries:
        """Return what a step of any section asks: SQL or call, index, cost class and columns. No source is asked."""
        if step not in checks():
            raise UsageError(f"unknown step '{step}': {did_you_mean(step, list(checks()))}")
        return queries_of(step)

    def ask(self, question: str, **params: Any) -> pd.DataFrame:
        """Run a query of the packs (`"queue/backlog"`), or a SELECT of your own with `:name` parameters.

        Read-only, with the limits, the cost gate and the row cap of the steps; the query is part of the run's read
        cost. User ids are masked in the result, and so is text that the query computes from columns. A token as a
        parameter stands for its user id; `person` makes one. Raises UsageError, one line, for every failure.
        """
        masker = self.context.masker
        params = {name: masker.named(value) for name, value in params.items()}
        own = bool(re.search(r"\s", question.strip()))
        if not own and question not in queries.names():
            raise UsageError(f"unknown query '{question}': {did_you_mean(question, queries.names())}")
        try:
            with self.context.snapshot() as db:
                if not own:
                    return masker.frame(db.ask(question, **params))
                frame = db.ask_own(question, **params)
        except SourceError as e:
            detail = e.detail
            for value in params.values():
                detail = detail.replace(str(value), "...") if isinstance(value, str) and value else detail
            raise UsageError(masker.scrub(f"{e.source}: {detail}")) from None
        return masker.own(frame, frame.attrs["columns"], question)

    def person(self) -> str:
        """Prompt for a user id, which is stored in no file, and return its token in this incident.

        Raises UsageError outside `runbook lab`, where no user id is stored.
        """
        if self.context.masker.people is None:
            raise UsageError("only `runbook lab` stores the user id of a token")
        return str(self.context.masker.person(getpass("user id: ").strip()))

    @_in_its_language
    def first_response(self) -> render.Shown:
        """Return the proposals that the findings so far justify, with the exact commands. Nothing is run."""
        found = diagnosis.conclude(self.findings.values(), self.context.catalog)
        return render.proposal_list(found.proposals, run=self.opened)

    @_in_its_language
    def act(
        self,
        /,
        name: str,
        *,
        execute: bool = False,
        approved_by: str | None = None,
        reason: str | None = None,
        **what: Any,
    ) -> render.ActionCard:
        """Run an action (`restart`, `set`, `redrive`); a dry run unless `execute` is set.

        Without `execute` nothing is changed. Each call is a line in the incident's log. If the target
        requires a second person's approval, that of `runbook approve` takes the place of `approved_by`.
        Raises UsageError for an action, or an argument, that does not exist.
        """
        known = action.actions()
        if name not in known:
            raise UsageError(f"unknown action '{name}': {did_you_mean(name, list(known))}")
        rb = self.context.in_one_cluster()
        for argument in what:
            pack.hook("gone")(f"--{argument.replace('_', '-')}")
        try:
            asked = known[name](rb, **what)
        except TypeError as e:  # an argument that it does not have
            raise UsageError(f"{name}: {e}") from None
        if rb.recorded is None:
            rb.archive.prepare()  # before the first token is made
        with self.progress() as progress:
            outcome = action.perform(
                asked, rb, execute=execute, approved_by=approved_by, reason=reason, progress=progress
            )
        self.context.outcomes[name] = outcome
        return render.ActionCard(outcome, run=self.opened)

    @_in_its_language
    def settle(self) -> render.Shown:
        """Ask the steps, of any section, that may decide an undecided verdict; return what each showed.

        It ends when the verdict is decided, no question is left, or the budget of numbers.md is used up. A step of a
        section that can act is not asked.
        """
        book, asked = self.context.catalog, list[str]()

        def options(verdict: Verdict) -> list[str]:
            left = [s for s in verdict.settled_by if s not in self.findings]
            return [s for s in left if sections_to_follow(diagnosis.sections_of([s]), (), book)]

        def ask(step: str) -> list[Finding]:
            self.findings[step] = found = checks()[step].run(self.context)
            self._cards[step] = display(self._card(step), display_id=True)
            asked.append(step)
            return [found]

        self.answers = ask_until_decided(self._planned_findings, options, ask, book, time.monotonic, self.answers).asked
        self._update_verdict()
        return render.settlement(self.verdict(), len(asked), run=self.opened)

    @_in_its_language
    def why(self) -> render.Shown:
        """Return the evidence for and against each place and failure mode of the verdict, and who reports it."""
        lines = render.failure_mode_lines(self.verdict())
        return render.text_block(lines, run=self.opened)

    @_in_its_language
    def note(self, text: str) -> render.Shown:
        """Put a line into the incident's timeline. Raises UsageError when it can not be written."""
        masker = self.context.masker
        if self.context.recorded is not None:
            raise UsageError("this is a replay: its notes would stand in no incident")
        kept = keep_note(self.context.archive, masker.scrub_once(text), whoami(), self.context.section.number)
        return render.sentence(kept, run=self.opened)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show a progress bar in the notebook; it disappears at the end."""
        if not self.shows:
            yield lambda share, text: None
            return
        handle = display(render.progress_bar(0.0, say("ui.looking"), run=self.opened), display_id=True)
        try:
            yield lambda share, text: handle.update(render.progress_bar(share, text, run=self.opened))
        finally:
            handle.update(render.progress_bar(None, say("ui.looking"), run=self.opened))

    @_in_its_language
    def conclude(self) -> None:
        """Show the verdict of the section, every planned step exactly once, and the cost of the queries.

        It is updated when a step is run again. In `runbook lab` the run is archived with it.
        """
        self._bottom = display(self._conclusion(), display_id=True)
        if self._top is not None:
            self._top.update(self._banner(self.verdict()))
        self._archive()

    def _archive(self) -> None:
        """Archive the run as it stands, in `runbook lab`; a failure is a line below the verdict, and no more."""
        if not in_lab() or self.context.recorded is not None:
            return
        cells: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
        cells["rb = open_section(...)"] = [(self._banner(self.verdict())._repr_mimebundle_(), {})]
        for step in self.findings:
            cells[f'rb.step("{step}")'] = [(self._card(step)._repr_mimebundle_(), {})]
            cells[f'rb.chart("{step}")'] = self._charts.get(step, [])
        cells["rb.conclude()"] = [(self._conclusion()._repr_mimebundle_(), {})]
        try:
            pack.hook("archive_run")(self.context, cells)
        except Exception as e:
            detail = self.context.masker.scrub(str(e) if isinstance(e, UsageError) else f"{type(e).__name__}: {e}")
            display(render.sentence(say("lab.not_archived", detail=detail), run=self.opened))

    @_in_its_language
    def run_steps(self) -> Verdict:
        """Run every step of the section without showing it; return the verdict."""
        for step in self.context.section.steps:
            self._run_step(step.id)
        return self.verdict()

    def verdict(self) -> Verdict:
        """Return the verdict so far."""
        return replace(diagnosis.conclude(self._planned_findings(), self.context.catalog), asked=self.answers)

    @_in_its_language
    def show_header(self) -> None:
        """Show the target, the moment and the window of this run; `conclude` replaces it with the verdict."""
        self.shows = True
        if self.context.recorded is not None:
            said = say("lab.replayed", as_of=render.when(self.context.as_of))
            display(render.sentence(said, run=self.opened))
        self._top = display(self._banner(None), display_id=True)

    def _conclusion(self) -> render.Shown:
        return render.conclusion(
            self._header(),
            self.verdict(),
            self._planned_findings(),
            self._step_titles(),
            [*self._sampled_queries(), *self.context.read_cost.queries],
            run=self.opened,
        )

    def _sampled_queries(self) -> list[SentQuery]:
        """Return the queries that were sent for the run before its sections: the first one counts them as its own."""
        sample = self.context.sample
        return sample.queries if sample and sample.section == self.context.section.number else []

    def _banner(self, verdict: Verdict | None) -> render.Shown:
        return render.banner(self._header(), verdict, run=self.opened)

    @_in_its_language
    def _card(self, step: str) -> render.Card:
        found = self.findings[step]
        hop = _find_hop(found, self.context.catalog.hops)
        dashboard = "" if found.status is Status.OK else render.link_to_hop(self._dashboard, hop)
        return render.Card(found, self._step_titles()[step], dashboard, run=self.opened)

    def _run_step(self, step: str) -> None:
        self.findings[step] = self._find_check(step).run(self.context)

    def _update_dependents(self, step: str) -> None:
        """Update what is already shown and depends on this step: later steps and the verdict."""
        order = [s.id for s in self.context.section.steps]
        for later in order[order.index(step) + 1 :]:
            before = self.findings.get(later)
            if before is None or not before.frames or before.reason is Reason.ERROR:
                continue
            self.findings[later] = self._find_check(later).judge_again(before, self.context.given(later))
            if (card := self._cards.get(later)) is not None:
                card.update(self._card(later))
        self._update_verdict()

    def _update_verdict(self) -> None:
        if self._bottom is not None:
            self._bottom.update(self._conclusion())
            if self._top is not None:
                self._top.update(self._banner(self.verdict()))
            self._archive()

    def _warn_of_age(self) -> None:
        """Warn if the run is older than `OLD_S`: a step that is run now reads a later state than the others."""
        age_s = (self.context.now() - self.context.as_of).total_seconds()
        if self.shows and self.context.recorded is None and age_s > OLD_S:
            text = say("lab.old", as_of=render.when(self.context.as_of), minutes=age_s / 60)
            display(render.sentence(text, run=self.opened))

    def _find_check(self, step: str) -> Check:
        if step not in {s.id for s in self.context.section.steps}:
            known = [s.id for s in self.context.section.steps]
            raise UsageError(f"section {self.context.section.number} has no step '{step}': {did_you_mean(step, known)}")
        return checks()[step]

    def _planned_findings(self) -> list[Finding]:
        """Return the findings of the section's steps, and of those that `settle` asked."""
        own = [s.id for s in self.context.section.steps]
        return complete(dict.fromkeys([*own, *self.findings]), self.findings)

    def _step_titles(self) -> dict[str, str]:
        return {s.id: s.words() for section in self.context.catalog.sections.values() for s in section.steps}

    def _header(self) -> render.Header:
        return render.Header(
            section=self.context.section.number,
            title=self.context.section.words(),
            incident=self.context.parameters.incident_id,
            target=self.context.parameters.target,
            as_of=self.context.as_of,
            window_minutes=self.context.parameters.window_minutes,
            clocks={name: (c.offset_s, c.error_s) for name, c in self.context.clocks.items()},
            behind_s=max((c.behind_s for c in self.context.clocks.values()), default=0.0),
            by=whoami(),
            given=self.context.given().record(),
            parameters=mask_free_texts(self.context.parameters.model_dump(exclude_unset=True), self.context.masker),
            opened=self.opened,
            dashboard=self._dashboard,
        )

    @property
    def _dashboard(self) -> str:
        named = self.context.parameters
        return dashboard_link(self.context.target, named.target, named.incident_id, self.context.window)


def dashboard_link(target: Target, name: str, incident: str, window: Window) -> str:
    """Return the URL of the target's dashboard over a window, with `{hop}` not replaced; "" if it has none."""
    since, until = (str(round(at.timestamp() * 1000)) for at in (window.since, window.as_of))
    values = {"target": name, "incident": incident, "from_ms": since, "to_ms": until}
    return re.sub(r"\{(\w+)\}", lambda m: quote(values[m[1]], safe="") if m[1] in values else m[0], target.grafana_link)


def _find_hop(finding: Finding, hops: Sequence[str]) -> str | None:
    """Return the hop of a finding: the one with most evidence, else one that is late, else any; None if it has none."""
    spoken = [s for s in finding.signals if s.about in hops and s.weight > 0]
    if spoken:
        return max(spoken, key=lambda s: s.weight).about
    return next((h.name for h in sorted(finding.hops, key=lambda h: not h.late)), None)


def open_section(section: str, variables: Mapping[str, Any] | None = None, /, **parameters: Any) -> Session:
    """Open a section of the runbook on a target.

    A notebook passes its `globals()`: those that are parameters (see `parameters.Parameters`) count, but for those
    that a cell passes on by itself. `parameters` name them one by one. Raises UsageError, one line, for a section,
    parameter or target that does not exist; nothing for a source that is silent.
    """
    names = parameters_class().model_fields.keys() - _OF_CELLS
    values = {k: v for k, v in (variables or {}).items() if k in names} | parameters
    config = settings.load()
    if not config.replay and isinstance(incident := values.get("incident_id"), str):
        refuse_reserved(config.output, incident)
    rb = quiet_session(section, **values)
    messages.use(rb.lang)  # of what a cell makes without the session
    sql_cells(rb)
    rb.show_header()
    return rb


def sql_cells(rb: Session) -> None:
    """Ask a cell that begins with `%%sql` by `rb.ask`: `:name` in it is the notebook's variable of that name.

    `:as_of`, `:since` and `:max_rows` are always those of the run.
    The result is the cell's result; `%%sql frame` assigns it to the variable `frame` instead.
    """
    shell = get_ipython()
    if shell is None:
        return

    def sql(name: str, question: str) -> pd.DataFrame | None:
        own = shell.user_ns
        frame = rb.ask(question, **{n: own[n] for n in {*PARAMETER.findall(question)} & own.keys() - _OF_RUN})
        if not name.strip():
            return frame
        own[name.strip()] = frame
        return None

    shell.register_magic_function(sql, "cell", "sql")  # type: ignore[arg-type]


def quiet_session(section: str, **parameters: Any) -> Session:
    """Open a section without a notebook to show anything in, for the command. Raises UsageError."""
    book = catalogs.load()
    if section not in book.sections:
        raise UsageError(f"unknown section '{section}': {did_you_mean(section, list(book.sections))}")
    return Session(open_context(book.sections[section], validate(parameters), settings.load(), book))
