"""Findings and verdicts for people: HTML in a notebook, plain text in a terminal, and JSON beside both.

Shapes and words carry every status; colour only repeats it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup

from runbook_lib import catalog, messages
from runbook_lib.analysis.diagnosis import BROKEN, REQUIRED
from runbook_lib.model.finding import Finding, Proposal, Question, Text, Verdict, say
from runbook_lib.view import record

if TYPE_CHECKING:
    from runbook_lib.outcome import Outcome

_STOOD = {True: "✔", False: "✖", None: "?"}
ACTION_MARKS = {"dry": "○", "approved": "✔", "begun": "▲", "refused": "✖", "done": "✔", "failed": "✖"}
MARKS = {"OK": "✔", "WARNING": "▲", "CRITICAL": "✖", "UNKNOWN": "?"}
_TEMPLATES = Path(__file__).parent / "templates"
_PROPOSAL_TEXTS = ("title", "preconditions", "effect", "risk", "undo", "verify")


@dataclass(frozen=True)
class Header:
    """What a run looked at: shown above the verdict and kept with it."""

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
class Shown(ABC):
    """What a run shows in a notebook, marked with the moment at which the run was opened."""

    run: str = ""

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return self._bundle() | mark(self.run)

    @abstractmethod
    def _bundle(self) -> dict[str, Any]: ...


def at_hop(dashboard: str, hop: str | None) -> str:
    """A link to a dashboard with the place of the pipeline put in for `{hop}`."""
    return dashboard.replace("{hop}", quote(hop or "", safe=""))


def mark(run: str) -> dict[str, Any]:
    """The part of a mime bundle that says of which run it is."""
    return {record.RUN_MIME: {"opened": run}}


@dataclass(frozen=True)
class Card(Shown):
    """One finding, shown."""

    finding: Finding
    title: str
    lang: str
    dashboard: str = ""
    """Where more of it is seen, if anywhere."""

    def _bundle(self) -> dict[str, Any]:
        f = self.finding
        tables = [
            (name, _table(f.frames[name]), min(len(f.frames[name]), 50), len(f.frames[name]))
            for name in f.show
            if name in f.frames and not f.frames[name].empty
        ]
        return {
            "text/html": html("finding", self.lang, f=f, tables=tables, dashboard=self.dashboard),
            "text/plain": finding_line(f, self.lang),
            record.FINDING_MIME: record.finding(f),
        }


@dataclass(frozen=True)
class Banner(Shown):
    """What the run looked at and, once it has concluded, the verdict: the first screen."""

    header: Header
    verdict: Verdict | None
    lang: str

    def _bundle(self) -> dict[str, Any]:
        shown = self.verdict
        return {
            "text/html": html(
                "banner",
                self.lang,
                header=self.header,
                verdict=shown and record.verdict(shown),
                proposals=worded(shown.proposals if shown else (), self.lang),
                dashboard=at_hop(self.header.dashboard, shown.stuck_at if shown else None),
            ),
            record.BANNER_MIME: {},
            "text/plain": "\n".join(verdict_lines(shown, self.lang))
            if shown
            else messages.text(say("ui.no_verdict"), self.lang),
        }


@dataclass(frozen=True)
class Concluded(Shown):
    """A section's verdict with every step, the ranking and the read cost."""

    header: Header
    verdict: Verdict
    findings: Sequence[Finding]
    titles: Mapping[str, str]
    questions: Sequence[Question]
    lang: str

    def _bundle(self) -> dict[str, Any]:
        lines = [
            *verdict_lines(self.verdict, self.lang),
            *(finding_line(f, self.lang) for f in self.findings),
        ]
        return {
            "text/html": html(
                "conclusion",
                self.lang,
                header=self.header,
                verdict=record.verdict(self.verdict),
                findings=self.findings,
                titles=self.titles,
                cost=_cost_shown(self.questions),
            ),
            "text/plain": "\n".join(lines),
            record.VERDICT_MIME: {
                "header": {**asdict(self.header), "as_of": self.header.as_of.isoformat()},
                "verdict": record.verdict(self.verdict),
                "steps": {f.step: f.status.name for f in self.findings},
                "read_cost": read_cost(self.questions),
            },
        }


@dataclass(frozen=True)
class Proposals(Shown):
    """The first response that the findings justify."""

    proposals: Sequence[Proposal]
    lang: str

    def _bundle(self) -> dict[str, Any]:
        shown = worded(self.proposals, self.lang)
        plain = "\n".join(f"{p['title']}\n    {p['command']}" for p in shown)
        return {
            "text/html": html("proposals", self.lang, proposals=shown),
            "text/plain": plain or messages.text(say("ui.no_action"), self.lang),
        }


@dataclass(frozen=True)
class Plain(Shown):
    """Lines of text as a terminal shows them."""

    lines: Sequence[str]

    def _bundle(self) -> dict[str, Any]:
        text = "\n".join(self.lines)
        return {"text/html": Markup("<pre class='rb'>{}</pre>").format(text), "text/plain": text}


@dataclass(frozen=True)
class Line(Shown):
    """One sentence in a notebook."""

    text: Text
    lang: str

    def _bundle(self) -> dict[str, Any]:
        return {"text/plain": messages.text(self.text, self.lang)}


@dataclass(frozen=True)
class Revealed:
    """Who stands behind tokens, for the eye only: marked so that no saved file has it, and of no run."""

    people: Mapping[str, str | None]
    lang: str

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        lines = [
            say("lab.person", token=token, user=user) if user is not None else say("lab.nobody", token=token)
            for token, user in self.people.items()
        ]
        return {
            "text/plain": "\n".join(messages.text(line, self.lang) for line in lines),
            record.REVEALED_MIME: {},
        }

    def __repr__(self) -> str:
        return f"Revealed({', '.join(self.people)})"


@dataclass(frozen=True)
class Bar(Shown):
    """How far something is; nothing once it is over (`share` None)."""

    share: float | None
    text: Text
    lang: str

    def _bundle(self) -> dict[str, Any]:
        if self.share is None:
            return {"text/html": "", "text/plain": ""}
        words = messages.text(self.text, self.lang)
        return {
            "text/html": html("bar", self.lang, share=min(max(self.share, 0.0), 1.0), words=words),
            "text/plain": f"{self.share:4.0%} {words}",
        }


@dataclass(frozen=True)
class Acted(Shown):
    """An action and what became of it."""

    outcome: Outcome
    lang: str

    def _bundle(self) -> dict[str, Any]:
        o = self.outcome
        return {
            "text/html": html("action", self.lang, o=o, changes=_table(o.frames(self.lang)["changes"])),
            "text/plain": "\n".join(action_lines(o, self.lang)),
        }


def action_lines(o: Outcome, lang: str) -> list[str]:
    """An action as text: what, what became of it, its preconditions, its effect."""

    def t(text: Text) -> str:
        return messages.text(text, lang)

    loud = [f"▲ {t(say('action.break_glass'))}"] if o.break_glass else []
    lines = [*loud, f"{ACTION_MARKS[o.result]} {t(say(f'action.result.{o.result}'))}: {t(o.why)}", f"    {o.command}"]
    lines += [f"  {_STOOD[p.ok]} {t(p.text)}" for p in o.preconditions]
    if o.effect:
        lines.append(f"{'✔' if o.verified else '▲'} {t(o.effect)}")
    return lines


def asked_lines(incident: str, line: Mapping[str, Any], lang: str) -> list[str]:
    """What a line of the action log asks for, as text: for whom, where, what, and how its preconditions stood."""
    about = {name: line[name] for name in ("who", "action", "target", "section")}
    what = json.dumps(line["what"], ensure_ascii=False)
    asked = say("action.approval.asked", what=what, incident=incident, time=when(line["time"]), **about)
    stood = [p for p in line["preconditions"] if not p["key"].startswith("action.approval.")]
    lines = [
        messages.text(asked, lang),
        f"    {line['command']}",
        *(f"  {_STOOD[p['ok']]} {p['text'][lang]}" for p in stood),
    ]
    # Whoever asks may have written the line by hand, and a terminal obeys what it does not show.
    return ["".join(c if c.isprintable() else "\ufffd" for c in shown) for shown in lines]


def read_cost(questions: Iterable[Question]) -> dict[str, Any]:
    """What the questions cost together: queries, ms, rows, the largest plan cost that the gate saw."""
    questions = list(questions)
    costs = [q.plan_cost for q in questions if q.plan_cost is not None]
    return {
        "queries": len(questions),
        "ms": round(sum(q.ms for q in questions), 1),
        "rows": sum(q.rows for q in questions),
        "max_plan_cost": max(costs, default=None),
    }


def _cost_shown(questions: Iterable[Question]) -> dict[str, Any]:
    cost = read_cost(questions)
    largest = cost.pop("max_plan_cost")
    return {**cost, "cost": None if largest is None else f"{largest:,.0f}"}


def worded(proposals: Iterable[Proposal], lang: str) -> list[dict[str, str]]:
    """Proposals in words: title, command, section, preconditions, effect, risk, undo, verify."""
    return [
        {"command": p.command, "section": p.section}
        | {name: messages.text(say(f"proposal.{p.name}.{name}", **p.params), lang) for name in _PROPOSAL_TEXTS}
        for p in proposals
    ]


def location(verdict: Verdict | Mapping[str, Any], lang: str) -> str:
    """Where it is stuck, or between which places that is undecided, as a sentence; and what was not seen."""

    def t(key: str, **params: Any) -> str:
        return messages.text(say(key, **params), lang)

    seen = verdict if isinstance(verdict, Mapping) else record.verdict(verdict)
    if seen["stuck_at"]:
        return t("ui.stuck_at", hop=t(f"hop.{seen['stuck_at']}"))
    modes = [m for m in seen["failure_modes"] if m["score"] >= BROKEN]
    if modes and seen["status"] != "OK":
        return t("ui.harmed_by", id=modes[0]["id"], title=mode_title(modes[0]["id"], lang))
    unseen = {u["source"]: u["reason"] for u in seen.get("unseen", ()) if u["source"] in REQUIRED}
    again = seen.get("look_again_s")
    if undecided := seen.get("undecided"):
        places = " / ".join(t(f"hop.{hop}") for hop in undecided)
        where = t("ui.undecided" if len(undecided) > 1 else "ui.waits_at", places=places)
    elif seen["status"] not in ("OK", "WARNING"):
        where = t("ui.not_located")
    elif seen["status"] == "WARNING":
        where = t("ui.not_all_in_order") if again is None else t("ui.recovering", again=again)
    elif any(v is not None for hop in seen["hops"] for name, v in hop.items() if name not in ("name", "late")):
        where = t("ui.nothing_seen_stuck" if unseen else "ui.nothing_stuck")
    else:
        where = t("ui.not_asked")
    names = ", ".join(f"{source} ({t(f'reason.{reason}')})" for source, reason in unseen.items())
    return t("ui.without", where=where, names=names) if names else where


def verdict_lines(verdict: Verdict, lang: str) -> list[str]:
    """The verdict as text: status and place, the strip, next section, the one safe command."""
    sure = messages.text(say("ui.confidence", level=say(f"confidence.{verdict.confidence}")), lang)
    lines = [f"{MARKS[verdict.status.name]} {verdict.status.name}  {location(verdict, lang)}  ({sure})", ""]
    lines += [*strip_lines(verdict, lang), ""]
    if any(m.score for m in verdict.failure_modes):
        top = ", ".join(f"{m.id} {m.score:.2f}" for m in verdict.failure_modes[:3] if m.score)
        lines.append(f"{messages.text(say('ui.failure_modes'), lang)}: {top}")
    if verdict.between:
        lines += undecided_lines(verdict.between, verdict.settled_by, lang)
    if verdict.next_sections:
        lines.append(f"{messages.text(say('ui.next_sections'), lang)}: {', '.join(verdict.next_sections)}")
    if verdict.proposals:
        first = worded(verdict.proposals[:1], lang)[0]
        lines += [
            f"{messages.text(say('ui.safe_action'), lang)}: {first['title']}",
            f"    {first['command']}",
        ]
    return lines


def undecided_lines(between: Sequence[str], settled_by: Iterable[str], lang: str) -> list[str]:
    """Between which failure modes it is undecided, and what would settle it, in words."""
    modes = " / ".join(f"{id_} {mode_title(id_, lang)}" for id_ in between)
    lines = [messages.text(say("ui.between", modes=modes), lang)]
    steps = ((s, _question(s, lang)) for s in settled_by)
    return lines + [messages.text(say("ui.settled_by", step=s, question=asked), lang) for s, asked in steps]


def why_lines(mode: Mapping[str, Any], lang: str) -> list[str]:
    """Why a failure mode of a verdict's JSON has its score: an observation a line, in the words of a step that told."""
    return [
        messages.text(
            say(
                f"ui.because_{b['kind']}",
                weight=b["weight"],
                observation=b["observation"],
                steps=", ".join(b["steps"]),
                at=f"{pd.Timestamp(b['at']):%H:%M:%SZ}" if b.get("at") else None,
                headline=b["headline"][lang],
            ),
            lang,
        )
        for b in mode.get("because", ())
    ]


def explained(verdict: Mapping[str, Any], lang: str) -> list[str]:
    """Each failure mode of a verdict's JSON, and why it has its score, as text."""
    lines = []
    for m in verdict["failure_modes"]:
        lines.append(f"  {m['score']:.2f}  {m['id']} {mode_title(m['id'], lang)}")
        lines += [f"    {why}" for why in why_lines(m, lang)]
    return [f"\n{messages.text(say('ui.failure_modes'), lang)}", *lines] if lines else []


def strip_lines(verdict: Verdict, lang: str) -> list[str]:
    """The pipeline strip as a table of text, the broken hop marked."""
    names = ("hop", "in", "out", "waiting", "oldest", "alive")
    rows = [[messages.text(say(f"ui.{n}"), lang) for n in names]]
    hops = [*verdict.hops]
    for hop in hops:
        rows.append(
            [
                messages.text(say(f"hop.{hop.name}"), lang),
                _rate(hop.rate_in),
                _rate(hop.rate_out),
                "·" if hop.waiting is None else f"{hop.waiting:,.0f}",
                "·" if hop.oldest_s is None else _age(hop.oldest_s),
                _alive(hop.alive, lang) or "·",
            ]
        )
    stuck = next((i + 1 for i, h in enumerate(hops) if h.name == verdict.stuck_at), None)
    lines = [f"  {'✖ ' if i == stuck else '  '}{line}" for i, line in enumerate(columns(rows, right=(1, 2, 3, 4)))]
    if verdict.stuck_at and stuck is None:  # what lies under all of them
        lines.append(f"  ✖ {messages.text(say(f'hop.{verdict.stuck_at}'), lang)}")
    return lines


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """A table as text, a line a row; the columns whose numbers are `right` end together."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    padded = ([_pad(c, w, left=n not in right) for n, (c, w) in enumerate(zip(r, widths, strict=True))] for r in rows)
    return ["  ".join(cells).rstrip() for cells in padded]


def _alive(seen: Text | Mapping[str, str] | str | None, lang: str) -> str | None:
    """Who or what is alive at a hop, of a finding's or of its JSON."""
    if isinstance(seen, Text):
        return messages.text(seen, lang)
    return seen[lang] if isinstance(seen, Mapping) else seen


def finding_line(f: Finding, lang: str) -> str:
    """One step as one line."""
    reason = f" ({messages.text(say(f'reason.{f.reason.value}'), lang)})" if f.reason else ""
    return f"{MARKS[f.status.name]} {f.step:<6} {f.status.name}{reason}: {messages.text(f.headline, lang)}"


def html(template: str, lang: str, **values: Any) -> str:
    """A template of `templates/` in a language."""

    def t(key: str, **params: Any) -> str:
        return messages.text(say(key, **params), lang)

    return (
        _environment()
        .get_template(f"{template}.html.j2")
        .render(
            t=t,
            say=lambda text: messages.text(text, lang),
            alive=lambda seen: _alive(seen, lang),
            location=lambda v: location(v, lang),
            mode=lambda id_: mode_title(id_, lang),
            why=lambda mode: why_lines(mode, lang),
            undecided=lambda between, settled_by: undecided_lines(between, settled_by, lang),
            section_title=lambda number: section_title(number, lang),
            lang=lang,
            **values,
        )
    )


@cache
def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    env.globals.update(
        marks=MARKS,
        action_marks=ACTION_MARKS,
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        number=_number,
        rate=_rate,
        age=_age,
        when=when,
    )
    return env


def when(time: pd.Timestamp | str) -> str:
    """A moment to the second, in UTC."""
    return f"{pd.Timestamp(time):%Y-%m-%d %H:%M:%SZ}"


def mode_title(id_: str, lang: str) -> str:
    """A failure mode's title; "" for one that the documents do not have."""
    mode = catalog.load().failure_modes.get(id_)
    return "" if mode is None else mode.ja if lang == "ja" else mode.en


def _question(step: str, lang: str) -> str:
    """What a step of the runbook asks, in a language."""
    steps = (s for section in catalog.load().sections.values() for s in section.steps)
    return next((s.ja if lang == "ja" else s.en for s in steps if s.id == step), "")


def section_title(number: str, lang: str) -> str:
    """A section's title in a language."""
    section = catalog.load().sections.get(number)
    return "" if section is None else section.ja if lang == "ja" else section.en


def _table(frame: pd.DataFrame) -> str:
    shown = frame.head(50).copy()
    for column in shown.columns:
        if pd.api.types.is_datetime64_any_dtype(shown[column]):
            shown[column] = [None if v is pd.NaT else when(v) for v in shown[column]]
    return str(shown.to_html(index=bool(frame.index.name), border=0, na_rep="", float_format=lambda v: f"{v:,.4g}"))


def _number(value: float | int | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"


def _rate(value: float | None) -> str:
    return "·" if value is None else f"{value:,.0f}"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _width(text: str) -> int:
    # East Asian characters take two columns of a terminal.
    return sum(2 if ord(c) > 0x1100 and ord(c) not in range(0x2000, 0x2E80) else 1 for c in text)


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text
