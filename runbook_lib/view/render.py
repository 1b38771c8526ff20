"""Findings and verdicts for people: HTML in a notebook, plain text in a terminal, and JSON beside both.

Shapes and words carry every status; colour only repeats it.
"""

from __future__ import annotations

import json
import re
import shlex
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from runbook_lib.book import catalog, messages, pack
from runbook_lib.book.parameters import ACTING, parameters_class
from runbook_lib.diagnosis.verdict import BROKEN, CHANGED
from runbook_lib.model.finding import (
    PROPOSAL_PARTS,
    Finding,
    Hop,
    HopHistory,
    Proposal,
    RankedMode,
    ScoreReason,
    SentQuery,
    Status,
    Text,
    Verdict,
    action_title,
    hop_text,
    proposal_text,
    read_cost,
    say,
)
from runbook_lib.model.usage import visible
from runbook_lib.store import record
from runbook_lib.view import links

if TYPE_CHECKING:
    from runbook_lib.model.outcome import Outcome
    from runbook_lib.store.lines import RunLine

_PRECONDITION_MARKS = {True: "✔", False: "✖", None: "?"}
_STRIP_KEYS = ("ui.hop", "ui.in", "ui.out", "ui.waiting", "ui.oldest", "ui.alive")
ACTION_MARKS = {"dry": "○", "approved": "✔", "begun": "▲", "refused": "✖", "done": "✔", "failed": "✖"}
MARKS = {"OK": "✔", "WARNING": "▲", "CRITICAL": "✖", "UNKNOWN": "?"}
#: The parameters that have an option of their own.
_OPTIONS = {"target": "--target", "incident_id": "--incident"}
_TEMPLATES = Path(__file__).parent / "templates"
#: The script of the dossier's page, and the Content-Security-Policy of every page: no other script runs, nothing is
#: loaded from elsewhere. Styles may be a notebook's.
SCRIPT = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
POLICY = (
    f"default-src 'none'; script-src 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}';"
    " style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)
#: A number in a sentence; parts of names, versions and times are none.
_NUMBER = re.compile(r"(?<![\w.:/-])\d[\d,]*(?:\.\d+)?(?![\w:/-]|\.\d)", re.ASCII)
_CODE = re.compile(r"`[^`]+`")
#: How many intervals a sparkline shows: an hour of minutes.
_SPARK = 60


@dataclass(frozen=True)
class Header:
    """The target, moment and parameters of a run: shown above the verdict and stored with it."""

    section: str
    title: str
    incident: str
    target: str
    as_of: pd.Timestamp
    window_minutes: int
    clocks: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: How far a replica that was asked is behind, in seconds.
    behind_s: float = 0.0
    by: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    opened: str = ""
    #: A link to the target's dashboard over the window, for `at_hop`; "" where there is none.
    dashboard: str = ""


@dataclass(frozen=True, kw_only=True)
class NotebookOutput(ABC):
    """Base of everything that a run shows in a notebook, marked with the time at which the run was opened."""

    run: str = ""
    #: The language of the session that made it; a notebook shows it later.
    lang: str = field(default_factory=messages.language)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        with messages.using(self.lang):
            return self._make_bundle() | run_mark(self.run)

    @abstractmethod
    def _make_bundle(self) -> dict[str, Any]: ...


def link_to_hop(dashboard: str, hop: str | None) -> str:
    """Return a dashboard's link with the hop filled in for `{hop}`."""
    return dashboard.replace("{hop}", quote(hop or "", safe=""))


def run_mark(run: str) -> dict[str, Any]:
    """Return the part of a mime bundle that names its run."""
    return {record.RUN_MIME: {"opened": run}}


@dataclass(frozen=True)
class Shown(NotebookOutput):
    """An output in its forms, by MIME type."""

    forms: Mapping[str, Any]

    def _make_bundle(self) -> dict[str, Any]:
        return dict(self.forms)

    def __repr__(self) -> str:
        return str(self.forms["text/plain"])


@dataclass(frozen=True)
class Card(NotebookOutput):
    """One finding, shown."""

    finding: Finding
    title: str
    dashboard: str = ""
    """Where more of it is seen, if anywhere."""

    def _make_bundle(self) -> dict[str, Any]:
        f = self.finding
        tables = [
            (name, _table_html(f.frames[name]), min(len(f.frames[name]), 50), len(f.frames[name]))
            for name in f.show
            if name in f.frames and not f.frames[name].empty
        ]
        return {
            "text/html": html("finding", f=f, tables=tables, dashboard=self.dashboard),
            "text/plain": finding_line(f),
            record.FINDING_MIME: record.finding(f),
        }


def banner(header: Header, verdict: Verdict | None, run: str = "") -> Shown:
    """Return the first screen: the header of the run and, once it has concluded, the verdict."""
    page = html(
        "banner",
        header=header,
        verdict=verdict,
        proposals=proposal_texts(verdict.proposals if verdict else ()),
        dashboard=link_to_hop(header.dashboard, verdict.stuck_at if verdict else None),
    )
    lines = verdict_lines(verdict) if verdict else [messages.text(say("ui.no_verdict"))]
    return Shown({"text/html": page, record.BANNER_MIME: {}, "text/plain": "\n".join(lines)}, run=run)


def conclusion(
    header: Header,
    verdict: Verdict,
    findings: Sequence[Finding],
    titles: Mapping[str, str],
    queries: Sequence[SentQuery],
    run: str = "",
) -> Shown:
    """Return a section's verdict with every step, the ranking and the read cost."""
    cost = read_cost(queries)
    shown = {"header": header, "verdict": verdict, "findings": findings, "titles": titles, "cost": cost}
    lines = [*verdict_lines(verdict), *(line for _, line in finding_lines(findings))]
    forms = {
        "text/html": html("conclusion", **shown),
        "text/plain": "\n".join(lines),
        record.VERDICT_MIME: {
            "header": {**asdict(header), "as_of": header.as_of.isoformat()},
            "verdict": record.verdict(verdict),
            "steps": {f.step: f.status.name for f in findings},
            "read_cost": cost,
        },
    }
    return Shown(forms, run=run)


def proposal_list(proposals: Iterable[Proposal], run: str = "") -> Shown:
    """Return the first response that the findings justify."""
    shown = proposal_texts(proposals)
    plain = "\n".join(f"{p['title']}\n    {p['command']}" for p in shown)
    plain = plain or messages.text(say("ui.no_action"))
    return Shown({"text/html": html("proposals", proposals=shown), "text/plain": plain}, run=run)


def text_block(lines: Sequence[str], run: str = "") -> Shown:
    """Return lines of text as a terminal shows them."""
    text = "\n".join(lines)
    return Shown({"text/html": Markup("<pre class='rb'>{}</pre>").format(text), "text/plain": text}, run=run)


def sentence(text: Text, run: str = "") -> Shown:
    """Return one sentence."""
    return Shown({"text/plain": messages.text(text)}, run=run)


def settlement(verdict: Verdict, asked: int, run: str = "") -> Shown:
    """Return what was asked to decide a verdict, and the verdict."""
    lines = question_lines(verdict)
    lines += [] if asked else [messages.text(say("ui.not_settled"))]
    return Shown({"text/plain": "\n".join([*lines, location(verdict)])}, run=run)


def progress_bar(share: float | None, text: Text, run: str = "") -> Shown:
    """Return a progress bar; it is empty once the work is over (`share` None)."""
    if share is None:
        return Shown({"text/html": "", "text/plain": ""}, run=run)
    words = messages.text(text)
    bar = html("bar", share=min(max(share, 0.0), 1.0), words=words)
    return Shown({"text/html": bar, "text/plain": f"{share:4.0%} {words}"}, run=run)


@dataclass(frozen=True)
class ActionCard(NotebookOutput):
    """An action and what became of it."""

    outcome: Outcome

    def _make_bundle(self) -> dict[str, Any]:
        o = self.outcome
        return {
            "text/html": html("action", o=o),
            "text/plain": "\n".join(action_lines(o)),
        }


def action_lines(o: Outcome) -> list[str]:
    """Return an action as text: the command, its result, its preconditions, its effect."""
    t = messages.text
    lines = [f"{ACTION_MARKS[o.result]} {t(say(f'action.result.{o.result}'))}: {t(o.why)}", f"    {o.command}"]
    lines += [f"  {_PRECONDITION_MARKS[p.ok]} {t(p.text)} {p.identity}".rstrip() for p in o.preconditions]
    if o.effect:
        lines.append(f"{'✔' if o.verified else '▲'} {t(o.effect)}")
    return lines


def request_lines(incident: str, line: Mapping[str, Any]) -> list[str]:
    """Return the request in a line of the action log as text: who, where, what, and the state of its preconditions."""
    lang = messages.language()
    about = {name: line[name] for name in ("who", "action", "target", "section")}
    what = json.dumps(line["what"], ensure_ascii=False)
    asked = say("action.approval.asked", what=what, incident=incident, time=when(line["time"]), **about)
    stood = [p for p in line["preconditions"] if not p["key"].startswith("action.approval.")]
    lines = [
        messages.text(asked),
        f"    {line['command']}",
        *(f"  {_PRECONDITION_MARKS[p['ok']]} {p['text'][lang]} {p.get('identity', '')}".rstrip() for p in stood),
    ]
    # Whoever asks may have written the line by hand, and made one line of it look like several.
    return [visible(shown, kept="") for shown in lines]


def proposal_texts(proposals: Iterable[Proposal]) -> list[dict[str, str]]:
    """Return proposals in words: title, command (and the raw one, by_hand), section, and `PROPOSAL_PARTS`."""
    return [
        {"command": p.offered, "by_hand": p.command if p.guarded else "", "section": p.section}
        | {name: messages.text(proposal_text(p, name)) for name in PROPOSAL_PARTS}
        for p in proposals
    ]


def location(verdict: Verdict) -> str:
    """Return the place of the problem as a sentence: the stuck hop, or the candidates, and the sources that failed."""

    def t(key: str, **params: Any) -> str:
        return messages.text(say(key, **params))

    if verdict.stuck_at:
        return t("ui.stuck_at", hop=hop_text(verdict.stuck_at))
    if over := verdict.ended:
        since = f"{over.since.tz_convert('UTC'):%H:%M:%S}"
        return t("ui.over", since=since, by=over.by, after=over.after)
    modes = [m for m in verdict.failure_modes if m.score >= BROKEN]
    if modes and verdict.status is not Status.OK:
        return t("ui.harmed_by", id=modes[0].id, title=mode_title(modes[0].id))
    unseen = {u.source: u.reason for u in verdict.unseen if u.source in pack.active_runbook().required}
    again = verdict.look_again_s
    if undecided := verdict.undecided:
        places = " / ".join(messages.text(hop_text(hop)) for hop in undecided)
        where = t("ui.undecided" if len(undecided) > 1 else "ui.waits_at", places=places)
    elif verdict.status not in (Status.OK, Status.WARNING):
        where = t("ui.not_located")
    elif verdict.status is Status.WARNING:
        where = t("ui.not_all_in_order") if again is None else t("ui.recovering", again=again)
    elif again is not None:
        where = t("ui.nothing_stuck_yet", again=again)
    elif known := sum(hop.is_seen for hop in verdict.hops):
        where = t("ui.nothing_seen_stuck" if unseen or 2 * known < len(verdict.hops) else "ui.nothing_stuck")
    else:
        where = t("ui.not_asked")
    names = ", ".join(f"{source} ({t(f'reason.{reason}')})" for source, reason in unseen.items())
    return t("ui.without", where=where, names=names) if names else where


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return the verdict as text: status and hop, the strip, the cause, the next section, the one safe command."""
    sure = messages.text(say("ui.confidence", level=say(f"confidence.{verdict.confidence}")))
    lines = [f"{MARKS[verdict.status.name]} {verdict.status.name}  {location(verdict)}  ({sure})", ""]
    lines += [*strip_lines(verdict), ""]
    lines += [f"{m.score:.2f} {m.id} {mode_title(m.id)}" for m in verdict.failure_modes[:2] if m.score >= BROKEN]
    lines += question_lines(verdict)
    if verdict.next_sections:
        lines.append(f"{messages.text(say('ui.next_sections'))}: {named_sections(verdict.next_sections)}")
    if verdict.proposals:
        first = proposal_texts(verdict.proposals[:1])[0]
        lines += [
            f"{messages.text(say('ui.safe_action'))}: {first['title']}",
            f"    {first['command']}",
            f"{messages.text(say('ui.risk'))}: {first['risk']}",
            *caution_lines(verdict),
        ]
    return lines


def caution_lines(verdict: Verdict) -> list[str]:
    """Return what is to be read before the proposal, and was not read: by a step, or where none can, by a person."""
    lines = (
        say("ui.read_first", step=s, section=s.rpartition(".")[0])
        if s in verdict.settled_by
        else say("ui.read_yourself", step=s)
        for s in verdict.read_first
    )
    return [messages.text(line) for line in lines]


def question_lines(verdict: Verdict) -> list[str]:
    """Return what was asked to decide a verdict, between what it is undecided, and the next question.

    Before that, what has changed and speaks for a cause, and the observations that others contradict.
    """

    def names(abouts: Iterable[str]) -> str | None:
        places = catalog.load().places
        return ", ".join(messages.text(hop_text(a)) if a in places else a for a in abouts) or None

    lines = [
        say(
            "ui.asked_step",
            step=a.step,
            question=_step_title(a.step),
            supports=names(a.supports),
            excludes=names(a.excludes),
            nothing=None if a.supports or a.excludes else say("ui.asked_nothing"),
        )
        for a in verdict.asked
    ]
    if verdict.between:
        lines.append(say("ui.between", modes=" / ".join(f"{id_} {mode_title(id_)}" for id_ in verdict.between)))
    lines += [
        say("ui.settled_by", step=s, section=s.rpartition(".")[0], question=_step_title(s))
        for s in verdict.settled_by[:1]
        if s not in verdict.read_first
    ]
    because = (reason for mode in verdict.failure_modes for reason in mode.because)
    changed = {r.steps: r for r in because if r.weight > 0 and r.observation.startswith(CHANGED)}
    return [
        *(messages.text(say("ui.changed", steps=", ".join(s), headline=r.headline)) for s, r in changed.items()),
        *(_reason_line(reason) for reason in verdict.contradicted),
        *(messages.text(line) for line in lines),
    ]


def why_lines(mode: RankedMode) -> list[str]:
    """Return the reasons for the score of a failure mode or place, one line per observation."""
    return [_reason_line(reason) for reason in mode.because]


def _reason_line(reason: ScoreReason) -> str:
    return messages.text(
        say(
            f"ui.because_{reason.kind}",
            weight=reason.weight,
            observation=reason.observation,
            steps=", ".join(reason.steps),
            at=f"{reason.at:%H:%M:%SZ}" if reason.at is not None else None,
            headline=reason.headline,
            witness=hop_text(reason.witness) if reason.witness else None,
        ),
    )


def failure_mode_lines(verdict: Verdict) -> list[str]:
    """Return each place and failure mode of a verdict, and why it has its score, as text."""
    lines = []
    for m in (*verdict.places, *verdict.failure_modes):
        id_ = f"{m.id} " if m in verdict.failure_modes else ""
        lines.append(f"  {m.score:.2f}  {id_}{mode_title(m.id)}")
        lines += [f"    {why}" for why in why_lines(m)]
    return [f"\n{messages.text(say('ui.why_and_why_not'))}", *lines] if lines else []


def strip_lines(verdict: Verdict) -> list[str]:
    """Return the pipeline strip as a text table, with the broken hop marked."""
    stuck = next((i + 1 for i, h in enumerate(verdict.hops) if h.name == verdict.stuck_at), None)
    lines = [f"  {'✖ ' if i == stuck else '  '}{line}" for i, line in enumerate(_strip_table(verdict.hops))]
    if verdict.stuck_at and stuck is None:  # what lies under all of them
        lines.append(f"  ✖ {messages.text(hop_text(verdict.stuck_at))}")
    return lines


def provisional_lines(title: Text, hops: Iterable[Hop]) -> list[str]:
    """Return the strip while steps are missing: numbers alone, under a title that says so, and no hop is marked."""
    shown = [replace(h, alive=h.alive if h != Hop(h.name) else say("ui.not_known_yet")) for h in hops]
    return [messages.text(title), *(f"  ┆ {line}" for line in _strip_table(shown))]


def _strip_table(hops: Iterable[Hop]) -> list[str]:
    rows = [[messages.text(say(key)) for key in _STRIP_KEYS]]
    for hop in hops:
        rows.append(
            [
                messages.text(hop_text(hop.name)),
                *("·" if n is None else messages.quantity(n) for n in (hop.rate_in, hop.rate_out, hop.waiting)),
                "·" if hop.oldest_s is None else messages.quantity(hop.oldest_s, "s"),
                _format_alive(hop.alive) or "·",
            ]
        )
    return columns(rows, right=(1, 2, 3, 4))


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return a table as text, a line per row; the columns in `right` are aligned to the right."""
    widths = [max(map(_display_width, column)) for column in zip(*rows, strict=True)]
    padded = (
        [_pad_cell(c, w, left=n not in right) for n, (c, w) in enumerate(zip(r, widths, strict=True))] for r in rows
    )
    return ["  ".join(cells).rstrip() for cells in padded]


def status_tag(status: str) -> Markup:
    """Return a status with its mark, as HTML."""
    return Markup('<span class="rb-tag rb-{0}">{1} {0}</span>').format(status, MARKS[status])


def _format_alive(seen: Text | str | None) -> str | None:
    """Return the processes that are alive at a hop as text."""
    return messages.text(seen) if isinstance(seen, Text) else seen


def finding_line(f: Finding, *others: Finding) -> str:
    """Return one step as one line, with the names of the other steps that say the same."""
    reason = f" ({messages.text(say(f'reason.{f.reason}'))})" if f.reason else ""
    steps = ", ".join(each.step for each in (f, *others))
    return f"{MARKS[f.status.name]} {steps:<6} {f.status.name}{reason}: {messages.text(f.headline)}"


def finding_lines(findings: Iterable[Finding]) -> list[tuple[Status, str]]:
    """Return the steps as lines, each with its status; those that are unknown for one reason share one."""
    alike: dict[str, list[Finding]] = {}
    for f in findings:
        alike.setdefault(messages.text(f.headline) if f.status is Status.UNKNOWN else f.step, []).append(f)
    return [(same[0].status, finding_line(*same)) for same in alike.values()]


def html(template: str, **values: Any) -> str:
    """Render a template of `templates/`; characters that are not seen become escapes."""
    page = _template_environment().get_template(f"{template}.html.j2")
    return visible(page.render(lang=messages.language(), **values))


@cache
def _template_environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    env.globals.update(
        t=lambda key, **params: messages.text(say(key, **params)),
        say=lambda text: mark_code(messages.text(text)),
        text=messages.text,
        verdict_of=lambda stored: record.from_json(Verdict, stored),
        # The dossier may be of another runbook.
        hop_name=lambda name: messages.catalogue().get(hop_text(name).key, name),
        action_title=lambda name: messages.text(action_title(name)),
        alive=_format_alive,
        location=location,
        mode=mode_title,
        why=why_lines,
        questions=question_lines,
        cautions=caution_lines,
        section_title=section_title,
        named_sections=named_sections,
        marks=MARKS,
        action_marks=ACTION_MARKS,
        script=Markup(SCRIPT),  # noqa: S704 - our own file
        sources=sources,
        mark_code=mark_code,
        mark_numbers=mark_numbers,
        policy=POLICY,
        sparkline=_build_sparkline,
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        quantity=messages.quantity,
        run_again=run_again,
        when=when,
    )
    env.filters.update(web=links.web_link, file=links.file_link)
    return env


def sources(f: Finding) -> list[dict[str, Any]]:
    """Return what the headline of a finding rests on: its queries, else frames of earlier steps."""
    asked = [{name: getattr(q, name) for name in ("source", "name", "rows", "ms", "error")} for q in f.queries]
    return asked or [
        {"source": "", "name": name, "rows": len(frame), "ms": None, "error": ""} for name, frame in f.frames.items()
    ]


def run_again(run: RunLine) -> str:
    """Return the command that asks what a run has asked, with its parameters."""
    defaults = {name: field_.default for name, field_ in parameters_class().model_fields.items()}
    given = {name: run.parameters.get(name, default) for name, default in defaults.items()}
    words = ["runbook", "run", run.section]
    words += [word for name, option in _OPTIONS.items() for word in (option, str(given.pop(name)))]
    for name, value in given.items():
        if value not in (None, defaults[name]) and name not in ACTING:
            words += ["--lang", value] if name == "lang" else ["-p", f"{name}={value}"]
    return shlex.join(words)


def mark_numbers(text: str) -> Markup:
    """Return a headline with its numbers marked, and what stands in backticks as code."""
    return mark_code(text, lambda prose: _mark(_NUMBER, Markup("<b>{}</b>"), prose, escape))


def mark_code(text: str, prose: Callable[[str], Markup] = escape) -> Markup:
    """Return a text with what stands in backticks as code, and `prose` of all else."""
    return _mark(_CODE, Markup("<code>{}</code>"), text, prose)


def _mark(pattern: re.Pattern[str], form: Markup, text: str, others: Callable[[str], Markup]) -> Markup:
    """Return a text with what the pattern finds in a form, and what `others` makes of the parts between."""
    marked = (form.format(found.strip("`")) for found in pattern.findall(text))
    between = map(others, pattern.split(text))
    return Markup("").join(part for pair in zip_longest(between, marked, fillvalue="") for part in pair)


def _build_sparkline(past: HopHistory) -> dict[str, Any] | None:
    """Return the lines of a sparkline in a box of 100 x 24; None where nothing is known."""
    kind, series = next(((k, s) for k in ("waiting", "gone", "came") if (s := getattr(past, k))), ("", ()))
    values = series[-_SPARK:]
    peak = max((v for v in values if v is not None), default=None)
    if peak is None:
        return None
    limit = past.limit if kind == "waiting" else None
    near = limit is not None and peak >= 0.3 * limit
    top = max(peak, limit if near and limit else 0.0) or 1.0
    lines, step = [""], 100 / max(len(values) - 1, 1)
    for n, v in enumerate(values):
        if v is None:
            lines.append("")
        else:
            lines[-1] += f"{n * step:.1f},{22 - 20 * v / top:.1f} "
    return {
        "kind": kind,
        "lines": [line for line in lines if line],
        "peak": peak,
        "limit": limit,
        "limit_y": round(22 - 20 * limit / top, 1) if near and limit else None,
        "minutes": round(len(values) * past.step_s / 60),
    }


def when(time: pd.Timestamp | str) -> str:
    """Format a moment to the second, in UTC."""
    return f"{pd.Timestamp(time):%Y-%m-%d %H:%M:%SZ}"


def mode_title(id_: str) -> str:
    """Return the title of a failure mode or place; "" if the documents do not have it."""
    book = catalog.load()
    if id_ in book.places:
        return messages.text(hop_text(id_))
    return book.failure_modes[id_].words() if id_ in book.failure_modes else ""


def _step_title(step: str) -> str:
    """Return the question of a step of the runbook."""
    steps = (s for section in catalog.load().sections.values() for s in section.steps)
    return next((s.words() for s in steps if s.id == step), "")


def section_title(number: str) -> str:
    """Return a section's title."""
    section = catalog.load().sections.get(number)
    return "" if section is None else section.words()


def named_sections(numbers: Iterable[str]) -> str:
    """Return sections by number and title."""
    return ", ".join(f"{number} {section_title(number)}".strip() for number in numbers)


#: What a table shows of values that are no words.
_CELLS = {True: "✔", False: "✖", None: ""}


def _table_html(frame: pd.DataFrame) -> str:
    shown = frame.head(50).copy()
    for column in shown.columns:
        if pd.api.types.is_datetime64_any_dtype(shown[column]):
            shown[column] = [None if v is pd.NaT else when(v) for v in shown[column]]
        elif shown[column].dtype in (bool, object):
            shown[column] = [_CELLS.get(v, v) if v is None or isinstance(v, bool) else v for v in shown[column]]
    table = str(shown.to_html(index=bool(frame.index.name), border=0, na_rep="", float_format=messages.quantity))
    return table.replace("<table ", '<table tabindex="0" ', 1)  # a wide one scrolls, by the keys as well


def _display_width(text: str) -> int:
    # East Asian characters take two columns of a terminal.
    return sum(2 if ord(c) > 0x1100 and ord(c) not in range(0x2000, 0x2E80) else 1 for c in text)


def _pad_cell(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _display_width(text))
    return text + space if left else space + text
