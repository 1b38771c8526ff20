"""The draft of a postmortem: made from a run of section 7, completed by a person, checked before it is closed.

The draft is Markdown. What a person writes stands between `<!-- person:NAME -->` and `<!-- /person -->` and is kept
when the draft is made again, in whatever language; all else is generated, and an edited generated part is set aside
as `postmortem.md.bak-<time>`. What a person answers for stands in fenced YAML, one block for each mandatory item: that
is the `Record`, and only that is checked. The page beside it is the same text as HTML that loads nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
import pandas as pd
import yaml
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markupsafe import Markup

from runbook_lib import catalog, messages
from runbook_lib.mandatory import MARKDOWN, Hit, old_form
from runbook_lib.model.finding import Finding, Text, say
from runbook_lib.store import PARTIAL, Archive, digest
from runbook_lib.view import render

if TYPE_CHECKING:
    from runbook_lib.archive.artifact import Result

PAGE = "postmortem.html"

_BLOCK = re.compile(
    r"<!--[ \t]*person:(?P<name>[\w-]+)(?:[ \t]+default=(?P<default>\w+))?[ \t]*-->"
    r"(?P<text>.*?)<!--[ \t]*/person[ \t]*-->",
    re.DOTALL,
)
_HEAD = re.compile(r"<!-- runbook postmortem, generated=(\w+) -->")
_CHART = "<!-- chart -->"


# What a person wrote ----------------------------------------------------------------------------------------


def _lines(text: str) -> str:
    """A text without what an editor changes by itself: line ends, trailing blanks, empty lines."""
    lines = (line.rstrip() for line in text.replace("\r\n", "\n").split("\n"))
    return "\n".join(line for line in lines if line)


def _mark(text: str) -> str:
    return digest(_lines(text).encode())[:12]


def block(name: str, text: str, default: str) -> str:
    """A person's block; `default` is what stands there as long as nobody has written."""
    return f"<!-- person:{name} default={_mark(default)} -->\n{text}\n<!-- /person -->"


def written(draft: str) -> dict[str, str]:
    """What a person wrote, by block; blocks that still hold their default are left out."""
    found: dict[str, str] = {}
    for m in _BLOCK.finditer(draft.replace("\r\n", "\n")):
        text = m["text"].strip("\n")
        if _mark(text) != m["default"]:
            found[m["name"]] = f"{found[m['name']]}\n\n{text}" if m["name"] in found else text
    return found


def _generated(draft: str) -> str:
    """The draft without what stands in a person's blocks, and without its own seal."""
    without = _BLOCK.sub(lambda m: f"<!-- person:{m['name']} -->", draft)
    return _lines(_HEAD.sub("", without, count=1))


def edited(draft: str) -> bool:
    """Whether somebody changed a generated part: it would be lost when the draft is made again."""
    head = _HEAD.search(draft)
    return head is None or head[1] != _mark(_generated(draft))


def compose(draft: str, kept: Mapping[str, str]) -> str:
    """A new draft with what a person wrote into an earlier one, sealed over its generated parts."""
    names = {m["name"] for m in _BLOCK.finditer(draft)}

    def filled(m: re.Match[str]) -> str:
        text = kept.get(m["name"], m["text"].strip("\n"))
        return f"<!-- person:{m['name']} default={m['default']} -->\n{text}\n<!-- /person -->"

    body = _BLOCK.sub(filled, draft).rstrip("\n")
    for name, text in kept.items():
        if name not in names:
            body += f"\n\n{block(name, text, '')}"
    return f"<!-- runbook postmortem, generated={_mark(_generated(body))} -->\n{body}\n"


# The draft --------------------------------------------------------------------------------------------------


class Md(str):
    """Text that is Markdown already."""

    __slots__ = ()


def md(value: Any) -> Md:
    """Any text as Markdown that shows it and does nothing else, on one line."""
    if isinstance(value, Md):
        return value
    text = " ".join(str("" if value is None or value != value else value).split())
    text = re.sub(r"[\\`*\[\]|~<>&]", lambda m: "\\" + m[0], text)
    return Md(re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text))


@dataclass(frozen=True)
class Written:
    """What became of a draft: its files, what was kept of a person's, and where edited parts were set aside."""

    markdown: str
    page: str
    kept: tuple[str, ...]
    backup: str | None


def write(
    archive: Archive, findings: Iterable[Finding], lang: str, *, target: str, artifact: str | None, chart: str | None,
    made: str,
) -> Written:  # fmt: skip
    """Make the draft from a run of section 7, keeping what a person wrote. Raises OSError.

    `artifact` is that run's name, `chart` its picture (PNG in base64).
    """
    try:
        before: bytes | None = archive.read(MARKDOWN)
    except FileNotFoundError:
        before = None
    old = (before or b"").decode(errors="replace")
    kept = written(old)
    text = compose(draft(findings, lang, incident=archive.incident, target=target, artifact=artifact, made=made), kept)
    backup = None
    if before is not None and (edited(old) or old.encode() != before or old_form(old)):
        taken = set(archive.names())
        stem = f"{MARKDOWN}.bak-{pd.Timestamp(made):%Y%m%dT%H%M%SZ}"
        backup = next(n for i in range(1, 10_000) if (n := stem if i == 1 else f"{stem}.{i}") not in taken)
        archive.write(backup, before)
    archive.write(MARKDOWN, text.encode())
    archive.write(PAGE, page(text, archive.incident, lang, chart).encode())
    return Written(f"{archive.place}/{MARKDOWN}", f"{archive.place}/{PAGE}", tuple(sorted(kept)), backup)


def target_of(archive: Archive) -> str:
    """The system that the incident's first run looked at."""
    told = (e["parameters"].get("target") for e in archive.manifest() if e.get("parameters"))
    return str(next((t for t in told if t), "default"))


def write_of(archive: Archive, result: Result, lang: str, target: str) -> Written:
    """Make the draft from what a headless run of section 7 left. Raises OSError."""
    artifact = chart = None
    if result.ipynb and result.ipynb.startswith(archive.place) and not result.ipynb.endswith(PARTIAL):
        artifact = result.ipynb.rpartition("/")[2].removesuffix(".ipynb")
        chart = _chart(archive.read(f"{artifact}.ipynb"))
    return write(archive, result.run.findings, lang, target=target, artifact=artifact, chart=chart, made=result.ended)


def _chart(notebook: bytes) -> str | None:
    outputs = (o for c in json.loads(notebook)["cells"] for o in c.get("outputs", ()))
    return next((str(p).replace("\n", "") for o in outputs if (p := o.get("data", {}).get("image/png"))), None)


def draft(
    findings: Iterable[Finding], lang: str, *, incident: str, target: str, artifact: str | None, made: str
) -> str:
    """The draft as nobody has touched it yet."""
    steps = {f.step: f for f in findings}

    def t(key: str, **params: Any) -> Md:
        shown = {k: v if v is None or isinstance(v, int | float | Text) else md(v) for k, v in params.items()}
        return Md(messages.text(say(f"postmortem.{key}", **shown), lang))

    def person(name: str, default: str) -> Md:
        return Md(block(name, default, default))

    answers = _answers(steps, lang)
    values: dict[str, Any] = {
        "t": t,
        "person": person,
        "data": lambda item: person(f"data-{item}", _fence(item, answers[item], t(f"hint.{item}"))),
        "headline": lambda step: md(messages.text(steps[step].headline, lang)) if step in steps else t("not_run"),
        "notes": lambda step: [md(messages.text(n, lang)) for n in steps[step].notes] if step in steps else [],
        "rows": lambda step, frame: _rows(steps.get(step), frame),
        "value": lambda step, name: steps[step].value(name) if step in steps else None,
        "link": lambda name, words=None: _link(name, words),
        "duration": duration,
        "when": lambda at: md(render.when(at)) if at is not None and at == at else Md("–"),
        "number": lambda v: Md("–" if v is None or v != v else f"{v:,.4g}" if v < 1000 else f"{v:,.0f}"),
        "mode": lambda id_: md(f"{id_} {render.mode_title(str(id_), lang)}"),
        "section": lambda number: md(f"{number} {render.section_title(str(number), lang)}"),
        "hop": lambda name: md(messages.text(say(f"hop.{name}"), lang)) if name else Md(""),
        "lang": lang,
        "incident": incident,
        "target": target,
        "artifact": artifact,
        "made": made,
        "chart": Md(_CHART),
    }
    return _templates().get_template("postmortem.md.j2").render(**values)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(render._TEMPLATES), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False, finalize=md, keep_trailing_newline=True,  # noqa: S701
    )  # fmt: skip


def _rows(finding: Finding | None, frame: str) -> list[dict[str, Any]]:
    found = None if finding is None else finding.frames.get(frame)
    if found is None:
        return []
    return [{str(k): None if v is None or v != v else v for k, v in r.items()} for r in found.to_dict("records")]


def _answers(steps: Mapping[str, Finding], lang: str) -> dict[str, Any]:
    """The record as far as a run can tell it; what is open is '' or {}."""

    def value(step: str, name: str) -> Any:
        return steps[step].value(name) if step in steps else None

    def words(key: str, **params: Any) -> str:
        return messages.text(say(f"postmortem.{key}", **params), lang)

    def short(number: Any) -> float | str:
        return "" if number is None else int(number) if number == int(number) else round(float(number), 1)

    impact: dict[str, dict[str, float | str]] = {slo: {} for slo in catalog.load().slos}
    for r in _rows(steps.get("7.1"), "impact"):
        if r["minutes"] is not None or r["bad"] is not None:
            impact[r["slo"]] = {name: short(r[name]) for name in Hit.model_fields if r[name] is not None}
    times = {f"{name}_seconds": short(value("7.3", name)) for name in ("ttd", "ttr")}
    entries = [
        {"time": render.when(r["time"]), "what": words(f"kind.{r['what']}")}
        for r in _rows(steps.get("7.3"), "times")
        if r["time"] is not None
    ]
    measures = [
        (r["kind"], words("suggested", id=r["id"], text=r["text"])) for r in _rows(steps.get("7.4"), "suggested")
    ]
    return {
        "impact": impact,
        "origin": value("7.2", "origin") or "",
        "timeline": times | {"entries": entries},
        "measures": [
            {"kind": kind, "measure": measure, "owner": "", "due": ""}
            for kind, measure in [*measures, ("design", words("suggested_design"))]
        ],
    }


def _fence(item: str, data: Any, hint: str) -> str:
    """One item of the record as a person meets it."""
    flow = None if item in ("impact", "timeline") else False  # a text stands better on a line of its own
    text = yaml.safe_dump({item: data}, allow_unicode=True, sort_keys=False, width=110, default_flow_style=flow)
    return f"```yaml\n# {hint}\n{text}```"


def _link(name: Any, words: Any = None) -> Md:
    """A link to an artifact of this dossier, relative so that the folder may be moved."""
    if not name:
        return Md("")
    file = str(name) if str(name).endswith((".json", ".ipynb")) else f"{name}.html"
    return Md(f"[{md(words or name)}]({quote(file)})")


def duration(seconds: float | None) -> Md:
    """A length of time as seconds, and in larger units where it has them."""
    if seconds is None:
        return Md("")
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    parts = [
        f"{hours} h" if hours else "",
        f"{minutes} min" if minutes else "",
        f"{whole % 60} s" if whole % 60 else "",
    ]
    longer = " ".join(p for p in parts if p)
    return Md(f"{whole} s" + (f" ({longer})" if whole >= 60 else ""))


# The page ---------------------------------------------------------------------------------------------------


#: HTML in the text is shown as text; a picture would be loaded from somewhere, so only its words stand.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_MARKDOWN.add_render_rule("image", lambda self, tokens, i, options, env: escapeHtml(tokens[i].content))


def page(text: str, incident: str, lang: str, chart: str | None) -> str:
    """The draft as one HTML page that opens offline; what a person still has to fill in is marked."""

    def html(part: str) -> Any:
        return Markup(_MARKDOWN.render(part))  # noqa: S704 - what the text holds is escaped

    parts: list[tuple[str, list[Any]]] = []
    end = 0
    text = _HEAD.sub("", text, count=1)
    for m in _BLOCK.finditer(text):
        parts.append(("", [html(part) for part in text[end : m.start()].split(_CHART)]))
        parts.append(("todo" if _mark(m["text"].strip("\n")) == m["default"] else "done", [html(m["text"])]))
        end = m.end()
    parts.append(("", [html(part) for part in text[end:].split(_CHART)]))
    return render.html("postmortem", lang, incident=incident, parts=parts, chart=chart)
