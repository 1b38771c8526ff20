"""One run of one section: its sources, its moment, its findings, its conclusion.

A notebook calls `open_section`, then `step` and `chart` for each step of the runbook, then `conclude`.
The same cells give the same verdict in JupyterLab, under papermill and in a drill.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from getpass import getpass
from types import MethodType
from typing import TYPE_CHECKING, Any

import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from runbook_lib import catalog as catalogs
from runbook_lib import messages, pack, questions, settings
from runbook_lib.actions import action
from runbook_lib.analysis import diagnosis
from runbook_lib.checks import checks
from runbook_lib.checks.check import Check
from runbook_lib.context import Context, Progress, open_context
from runbook_lib.masking import TOKEN
from runbook_lib.model.finding import Finding, Reason, Status, Text, Verdict, complete, say
from runbook_lib.notes import keep_note, whoami
from runbook_lib.outcome import Outcome
from runbook_lib.parameters import validate
from runbook_lib.sources import SourceError, grafana
from runbook_lib.usage import UsageError, did_you_mean
from runbook_lib.view import record, render
from runbook_lib.view.answer import Answer

if TYPE_CHECKING:
    from runbook_lib.view.charts import Chart

#: After so long a step that is run again is told that its run looks at an earlier moment.
OLD_S = 120.0
#: A parameter of a question; `::` is a cast.
_VARIABLE = re.compile(r"(?<![:\w]):([A-Za-z_]\w*)")


class Session:
    """What the cells of one notebook share: it conducts steps, charts, actions and the verdict over a context.

    Make it with `open_section`.
    """

    def __init__(self, context: Context) -> None:
        self.context = replace(context, progress=self.progress)
        self.opened = pd.Timestamp.now("UTC").isoformat(timespec="milliseconds")
        self._top: DisplayHandle | None = None
        self._cards: dict[str, DisplayHandle | None] = {}
        self._bottom: DisplayHandle | None = None
        self.shows = False

    def __getattr__(self, name: str) -> Any:
        """What a notebook may ask beyond the steps, such as `rb.compare`; others are the packs'.

        A function that takes a session is a method of this one, a class that takes one is an attribute.
        """
        if name not in pack.in_force().asks:
            raise AttributeError(f"a session has no '{name}': {did_you_mean(name, dir(self))}")
        ask = pack.in_force().ask(name)
        return ask(self) if isinstance(ask, type) else MethodType(ask, self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *pack.in_force().asks]

    @property
    def findings(self) -> dict[str, Finding]:
        """What was found so far, by step."""
        return self.context.findings

    @property
    def lang(self) -> str:
        """The language of what is shown."""
        return self.context.lang

    # What the cells of a notebook call.

    def step(self, step: str) -> Answer:
        """Answer one step of the runbook and show it; what it has found is returned, to go on with.

        Never raises for a source that fails.
        """
        self._answer(step)
        self._warn_of_age()
        self._cards[step] = display(self._card(step), display_id=True)
        self._follow(step)
        return Answer(lambda: self._card(step), inspect.getdoc(self._check(step).collect) or "")

    def chart(
        self,
        what: str | pd.DataFrame,
        *,
        x: str = "",
        y: str | Sequence[str] = (),
        kind: str = "line",
        title: str = "",
    ) -> None:
        """Draw what a step collected, which is answered first if it was not yet, or columns of a frame of one's own.

        Of a frame `y` over `x` as "line", "bar" or "scatter", or how often each value of `x` occurs as "hist". Raises
        UsageError, one line, for a step, column or kind that does not exist or cannot be drawn.
        """
        if isinstance(what, pd.DataFrame):
            from runbook_lib.view import charts  # half a second for whoever only asks

            own = charts.of_frame(what, x, [y] if isinstance(y, str) else list(y), kind, title)
            # Without the mark of the run: it stays in the copy, like all that a person's own cells show.
            self._draw(own, say("chart.no_rows"), {})
            return
        if not isinstance(what, str):
            raise UsageError("rb.chart draws a step of this section, or a frame")
        if what not in self.findings:
            self._answer(what)
        finding = self.findings[what]
        for draw in self._check(what).charts:
            try:
                figure = draw(finding.frames, self.context.given(what))
            except Exception as e:
                if os.environ.get("RUNBOOK_DEBUG"):
                    raise
                detail = self.context.masker.scrub(f"{type(e).__name__}: {e}")
                display(render.Line(say("chart.not_drawn", detail=detail), self.lang, run=self.opened))
                continue
            self._draw(figure, say("chart.no_data"), render.mark(self.opened))

    def _draw(self, figure: Chart | None, nothing: Text, mark: dict[str, Any]) -> None:
        if figure is None:
            display(mark | {"text/plain": messages.text(nothing, self.lang)}, raw=True)
        else:
            shown = [bundle | mark for bundle in figure.display(self.lang)]
            display(*shown, raw=True, metadata=figure.metadata(self.lang))

    def ask(self, question: str, **params: Any) -> pd.DataFrame:
        """Ask the database: a question of the packs (`"queue/backlog"`), or a SELECT of one's own with `:name` in it.

        Read-only, with the limits, the cost gate and the cap on rows that the steps have; it stands in the run's read
        cost. People are tokens in what comes back, and so is text that the question computes from columns. A token as
        a parameter means its person; `person` makes one. Raises UsageError, one line, for whatever goes wrong.
        """
        masker = self.context.masker
        params = {name: masker.named(value) for name, value in params.items()}
        own = bool(re.search(r"\s", question.strip()))
        if not own and question not in questions.names():
            raise UsageError(f"unknown question '{question}': {did_you_mean(question, questions.names())}")
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
        """Ask for a user id, which no file keeps, and give the token that stands for it in this incident.

        Raises UsageError outside `runbook lab`, where nobody may be remembered.
        """
        if self.context.masker.people is None:
            raise UsageError("only `runbook lab` remembers who stands behind a token")
        return str(self.context.masker.person(getpass("user id: ").strip()))

    def first_response(self) -> render.Proposals:
        """The proposals that the findings so far justify, with the exact commands. Nothing is run."""
        found = diagnosis.conclude(self.findings.values(), self.context.catalog)
        return render.Proposals(found.proposals, self.lang, run=self.opened)

    def act(
        self,
        name: str,
        *,
        execute: bool = False,
        approved_by: str | None = None,
        reason: str | None = None,
        break_glass: bool = False,
        approval: str | None = None,
        **what: Any,
    ) -> render.Acted:
        """Carry out an action (`restart`, `set`, `redrive`), or show what it would do.

        Without `execute` nothing is changed. Whatever becomes of it is a line in the incident's actions.jsonl.
        `approval` is what a second person's `runbook approve` has printed, or a file with it, where the target asks
        for one. `break_glass` passes that, a freeze or the limit of an hour, where the target allows it.
        Raises UsageError for an action, or an argument, that does not exist.
        """
        known = action.actions()
        if name not in known:
            raise UsageError(f"unknown action '{name}': {did_you_mean(name, list(known))}")
        begun = pd.Timestamp.now("UTC")
        with self.progress() as progress:
            outcome = action.perform(
                known[name](self.context, **what),
                self.context,
                execute=execute,
                approved_by=approved_by,
                reason=reason,
                break_glass=break_glass,
                approved=approval,
                progress=progress,
            )
        self.context.outcomes[name] = outcome
        self._annotate(outcome, begun)
        return render.Acted(outcome, self.lang, run=self.opened)

    def note(self, text: str) -> render.Line:
        """Put a line into the incident's timeline. Raises UsageError when it can not be written."""
        kept = keep_note(self.context.archive, self.context.masker.scrub(text), whoami(), self.context.section.number)
        return render.Line(kept, self.lang, run=self.opened)

    def reveal(self, *texts: str) -> render.Revealed:
        """Show who stands behind the tokens in `texts`, on this screen alone: it is in nothing that is saved.

        Raises UsageError outside `runbook lab`, whose server keeps it out of the file.
        """
        if self.context.masker.people is None:
            raise UsageError("only `runbook lab` can reveal: elsewhere the page is saved as it is shown")
        tokens = dict.fromkeys(token for text in texts for token in TOKEN.findall(text))
        if not tokens:
            raise UsageError("nothing to reveal: name a token such as rb.reveal('user-1a2b3c4d')")
        return render.Revealed({t: self.context.masker.people.get(t) for t in tokens}, self.lang)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
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

    def look(self) -> Verdict:
        """Answer every step of the section and show nothing; the verdict."""
        for step in self.context.section.steps:
            self._answer(step.id)
        return self.verdict()

    def verdict(self) -> Verdict:
        """The verdict so far."""
        return diagnosis.conclude(self._complete(), self.context.catalog)

    def show_header(self) -> None:
        """Show what this run looks at; `conclude` puts the verdict in its place."""
        self.shows = True
        self._top = display(self._banner(None), display_id=True)

    def _conclusion(self) -> render.Concluded:
        return render.Concluded(
            self._header(),
            self.verdict(),
            self._complete(),
            self._titles(),
            self.context.read_cost.questions,
            self.lang,
            run=self.opened,
        )

    def _banner(self, verdict: Verdict | None) -> render.Banner:
        return render.Banner(self._header(), verdict, self.lang, run=self.opened)

    def _card(self, step: str) -> render.Card:
        found = self.findings[step]
        hop = _hop(found, self.context.catalog.hops)
        dashboard = "" if found.status is Status.OK else render.at_hop(self._dashboard, hop)
        return render.Card(found, self._titles()[step], self.lang, dashboard, run=self.opened)

    def _answer(self, step: str) -> None:
        self.findings[step] = self._check(step).run(self.context)

    def _follow(self, step: str) -> None:
        """Bring up to date what is shown already and rests on this step: later steps, and the verdict."""
        order = [s.id for s in self.context.section.steps]
        for later in order[order.index(step) + 1 :]:
            before = self.findings.get(later)
            if before is None or not before.frames or before.reason is Reason.ERROR:
                continue
            self.findings[later] = self._check(later).judge_again(before, self.context.given(later))
            if (card := self._cards.get(later)) is not None:
                card.update(self._card(later))
        if self._bottom is not None:
            self._bottom.update(self._conclusion())
            if self._top is not None:
                self._top.update(self._banner(self.verdict()))

    def _warn_of_age(self) -> None:
        """One run is of one moment; a step that is asked much later can not be of the same."""
        age_s = (self.context.now() - self.context.as_of).total_seconds()
        if self.shows and not self.context.past and age_s > OLD_S:
            text = say("lab.old", as_of=render.when(self.context.as_of), minutes=age_s / 60)
            display(render.Line(text, self.lang, run=self.opened))

    def _check(self, step: str) -> Check:
        if step not in {s.id for s in self.context.section.steps}:
            known = [s.id for s in self.context.section.steps]
            raise UsageError(
                f"step '{step}' is not of section {self.context.section.number}: {did_you_mean(step, known)}"
            )
        return checks()[step]

    def _complete(self) -> list[Finding]:
        return complete([s.id for s in self.context.section.steps], self.findings)

    def _titles(self) -> dict[str, str]:
        return {s.id: s.ja if self.lang == "ja" else s.en for s in self.context.section.steps}

    def _header(self) -> render.Header:
        return render.Header(
            section=self.context.section.number,
            title=self.context.section.ja if self.lang == "ja" else self.context.section.en,
            incident=self.context.parameters.incident_id,
            target=self.context.parameters.target,
            as_of=self.context.as_of,
            window_minutes=self.context.parameters.window_minutes,
            clocks={name: (c.offset_s, c.error_s) for name, c in self.context.clocks.items()},
            behind_s=max((c.behind_s for c in self.context.clocks.values()), default=0.0),
            by=whoami(),
            given=self.context.given().record(),
            parameters=self.context.parameters.model_dump(exclude_unset=True),
            opened=self.opened,
            dashboard=self._dashboard,
        )

    @property
    def _dashboard(self) -> str:
        return grafana.link(self.context.target, *self._named, self.context.window)

    @property
    def _named(self) -> tuple[str, str]:
        return self.context.parameters.target, self.context.parameters.incident_id

    def _annotate(self, outcome: Outcome, begun: pd.Timestamp) -> None:
        if outcome.result in ("done", "failed"):
            title, became = (
                messages.text(say(key), self.lang)
                for key in (f"action.title.{outcome.action}", f"action.result.{outcome.result}")
            )
            text = self.context.masker.scrub(f"{title} {record.what(outcome.what)}: {became}")
            done = grafana.Annotation("action", text, begun, pd.Timestamp.now("UTC"), (outcome.action, outcome.result))
            grafana.annotate(self.context.target, *self._named, [done], self.lang)


def _hop(finding: Finding, hops: Sequence[str]) -> str | None:
    """The place that a finding tells of: what it speaks for most, else where something is late, else any."""
    spoken = [s for s in finding.signals if s.about in hops and s.weight > 0]
    if spoken:
        return max(spoken, key=lambda s: s.weight).about
    return next((h.name for h in sorted(finding.hops, key=lambda h: not h.late)), None)


def open_section(section: str, **parameters: Any) -> Session:
    """Open a section of the runbook on a target.

    `parameters` are those of the notebook's parameters cell (see `parameters.Parameters`). Raises UsageError,
    one line, for a section, parameter or target that does not exist; nothing for a source that is silent.
    """
    rb = quiet_session(section, **parameters)
    sql_cells(rb)
    rb.show_header()
    return rb


def sql_cells(rb: Session) -> None:
    """Ask a cell that begins with `%%sql` by `rb.ask`: `:name` in it is the notebook's variable of that name.

    What comes back is the cell's result; `%%sql frame` keeps it under a name instead.
    """
    shell = get_ipython()
    if shell is None:
        return

    def sql(name: str, question: str) -> pd.DataFrame | None:
        own = shell.user_ns
        frame = rb.ask(question, **{n: own[n] for n in set(_VARIABLE.findall(question)) & own.keys()})
        if not name.strip():
            return frame
        own[name.strip()] = frame
        return None

    shell.register_magic_function(sql, "cell", "sql")  # type: ignore[arg-type]


def quiet_session(section: str, **parameters: Any) -> Session:
    """The same without a notebook to show anything in: for the command. Raises UsageError."""
    book = catalogs.load()
    if section not in book.sections:
        raise UsageError(f"unknown section '{section}': {did_you_mean(section, list(book.sections))}")
    return Session(open_context(book.sections[section], validate(parameters), settings.load(), book))
