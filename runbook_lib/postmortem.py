"""The draft of a postmortem: made from a run of section 7, completed by a person, checked before it is closed.

The draft is Markdown. What a person writes stands between `<!-- person:NAME -->` and `<!-- /person -->` and is kept
when the draft is made again, in whatever language; all else is generated, and an edited generated part is set aside
as `postmortem.md.bak-<time>`. The page beside it is the same text as HTML that loads nothing.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markupsafe import Markup

from runbook_lib import catalog, messages, render
from runbook_lib.archive import PARTIAL, Archive, digest
from runbook_lib.finding import Finding, Text, say

if TYPE_CHECKING:
    from runbook_lib.batch import Result

SECTION = "7"
MARKDOWN, PAGE = "postmortem.md", "postmortem.html"
MEASURE = ("kind", "measure", "owner", "due", "whole")
#: The four mandatory items, in the order of section 7.
ITEMS = ("impact", "origin", "timeline", "measures")

_BLOCK = re.compile(
    r"<!--[ \t]*person:(?P<name>[\w-]+)(?:[ \t]+default=(?P<default>\w+))?[ \t]*-->"
    r"(?P<text>.*?)<!--[ \t]*/person[ \t]*-->",
    re.DOTALL,
)
_HEAD = re.compile(r"<!-- runbook postmortem, generated=(\w+) -->")
_CHART = "<!-- chart -->"
_OPEN = r"to be filled in|要記入|(?-i:\bTODO\b|\bTBD\b)|未記入|未定"  # Todo is a name, too


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
    if before is not None and (edited(old) or old.encode() != before):
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

    origin = steps["7.2"].value("origin") if "7.2" in steps else None
    values: dict[str, Any] = {
        "t": t,
        "person": person,
        "headline": lambda step: md(messages.text(steps[step].headline, lang)) if step in steps else t("not_run"),
        "notes": lambda step: [md(messages.text(n, lang)) for n in steps[step].notes] if step in steps else [],
        "rows": lambda step, frame: _rows(steps.get(step), frame),
        "value": lambda step, name: steps[step].value(name) if step in steps else None,
        "link": lambda name, words=None: _link(name, words),
        "duration": duration,
        "when": lambda at: md(render.when(at)) if at is not None and at == at else Md("–"),
        "number": lambda v: Md("–" if v is None or v != v else f"{v:,.4g}" if v < 1000 else f"{v:,.0f}"),
        "mode": lambda id_: md(f"{id_} {render._mode(str(id_), lang)}"),
        "section": lambda number: md(f"{number} {render.section_title(str(number), lang)}"),
        "hop": lambda name: md(messages.text(say(f"hop.{name}"), lang)) if name else Md(""),
        "lang": lang,
        "incident": incident,
        "target": target,
        "artifact": artifact,
        "made": made,
        "chart": Md(_CHART),
        "origin": origin,
        "suggestions": _suggestions(steps.get("7.4"), t),
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


def _suggestions(finding: Finding | None, t: Any) -> list[dict[str, Any]]:
    return [
        {
            "kind": t(f"kind.{r['kind']}"),
            "text": t("suggested", id=r["id"], text=Md(str(r["text"]).replace("|", "\\|"))),
        }
        for r in _rows(finding, "suggested")
    ] + [{"kind": t("kind.design"), "text": t("suggested_design")}]


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


# Is it complete? --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Missing:
    """A mandatory item that is not there, and what is wrong with it."""

    number: int
    item: str
    problem: Text


def missing(text: str) -> list[Missing]:
    """The mandatory items that a postmortem lacks; [] is complete. Either language, edited by hand or not."""
    sections = _sections(text)
    checks = (_no_impact, _no_origin, _no_timeline, _no_measures)
    found = [
        (n, item, check(sections.get(n, []))) for n, (item, check) in enumerate(zip(ITEMS, checks, strict=True), 1)
    ]
    return [Missing(n, item, problem) for n, item, problem in found if problem is not None]


def measures_of(text: str) -> list[dict[str, Any]]:
    """The measures that a draft holds; those are `whole` that have kind, owner and a due date."""
    return [m for m in _measures(_sections(text).get(4, [])) if m["whole"] or not _is_open(m["owner"] + m["due"])]


def _sections(text: str) -> dict[int, list[str]]:
    """The lines below the headings 1 to 4, whatever the language; comments and full-width forms are gone."""
    plain = re.sub(r"(?<!\\)<!--.*?-->", "", unicodedata.normalize("NFKC", text), flags=re.DOTALL)
    found: dict[int, list[str]] = {}
    current, level = None, 0
    for line in plain.splitlines():
        if m := re.match(r" {0,3}(#{1,6})\s*(.*)", line):
            number = re.match(r"(?:7\.)?([1-4])(?![\d])", m[2])
            if number:
                current, level = int(number[1]), len(m[1])
                continue
            if len(m[1]) <= level:
                current = None
        if current is not None and line.strip():
            found.setdefault(current, []).append(line.strip())
    return found


def _cells(line: str) -> list[str]:
    """The cells of a line of a table, without emphasis; [] for another line."""
    if not line.startswith("|") and line.count("|") < 2:
        return []
    cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return [c.strip().strip("*_` ").strip() for c in cells]


def _is_open(text: str) -> bool:
    return bool(re.search(_OPEN, text, re.IGNORECASE))


_UNMEASURABLE = r"(?:not measurable|測定不可|計測不可)\s*[:\-]\s*[^\s|]"
_UNMEASURED = r"not measured|未測定|not recovered|未復旧"
_DURATION = r"\d\s*(?:s|sec|m|min|h|d|hours?|minutes?|seconds?|days?)\b|\d\s*(?:秒|分|時間|日)|\d:\d\d"


def _no_impact(lines: list[str]) -> Text | None:
    slos = catalog.load().slos
    for line in lines:
        if not any(slo in line for slo in slos) or _is_open(line):
            continue
        if re.search(_UNMEASURABLE, line, re.IGNORECASE):
            return None
        if re.search(_UNMEASURED, line, re.IGNORECASE):
            continue
        cells = _cells(line) or [line]
        # The objective itself is a number and says nothing of what happened.
        said = " ".join(c for c in cells if not re.match(r"\\?[<>=]", c))
        for slo in slos:
            said = said.replace(slo, "")
        if re.search(r"\d|no breach|逸脱なし", said, re.IGNORECASE):
            return None
    return say("postmortem.missing.impact")


def _labelled(lines: list[str], *labels: str) -> Iterator[str]:
    """What stands behind a label, in a line of its own or in the next cell of a table."""
    for line in lines:
        cells = _cells(line)
        head = re.sub(r"^[\s>*_+\-]+", "", cells[0] if cells else line)
        for label in labels:
            if re.match(re.escape(label) + r"(?![A-Za-z])", head, re.IGNORECASE):
                yield cells[1] if len(cells) > 1 else re.sub(r"^[\s*_:=]+", "", head[len(label) :])


def _no_origin(lines: list[str]) -> Text | None:
    problem = say("postmortem.missing.origin")
    for said in _labelled(lines, "Origin", "起点の障害モード", "起点"):
        ids = re.findall(r"FM-[A-Z]+-\d+", said.upper())
        if _is_open(said) or not ids or re.search(r"inconclusive|判定不能", said, re.IGNORECASE):
            continue
        if ids[0] in catalog.load().failure_modes:
            return None
        problem = say("postmortem.missing.unknown_origin", id=ids[0])
    return problem


def _no_timeline(lines: list[str]) -> Text | None:
    lacking = [name for name in ("TTD", "TTR") if not any(map(_is_time, _labelled(lines, name)))]
    if lacking:
        return say("postmortem.missing.times", names=", ".join(lacking))
    entries = [line for line in lines if re.search(r"\d\d:\d\d", line) and not re.match(r"[|\s*_]*TT[DR]\b", line)]
    return None if entries else say("postmortem.missing.entries")


def _is_time(said: str) -> bool:
    if re.search(_UNMEASURABLE, said, re.IGNORECASE):
        return True
    if _is_open(said) or re.search(_UNMEASURED, said, re.IGNORECASE):
        return False
    return bool(
        re.search(r"\d\s*(?:s|sec|m|min|h|d|hours?|minutes?|seconds?|days?)\b|\d\s*(?:秒|分|時間|日)|\d:\d\d", said)
    )


_COLUMNS = {"kind": ("kind", "種別", "種類"), "measure": ("measure", "対策", "what", "内容"),
            "owner": ("owner", "担当", "責任者"), "due": ("due", "期限", "by when", "期日")}  # fmt: skip
_KINDS = {"measure": r"measur|計測", "control": r"control|制御", "design": r"design|設計"}


def _measures(lines: list[str]) -> list[dict[str, Any]]:
    """The rows of the section's tables, read by the names of their columns."""
    order = {name: i for i, name in enumerate(_COLUMNS)}
    found: list[dict[str, Any]] = []
    for line in lines:
        cells = _cells(line)
        if len(cells) < 2 or all(re.fullmatch(r":?-+:?", c) for c in cells):
            continue
        named = {
            name: next((i for i, c in enumerate(cells) if c.lower().startswith(words)), None)
            for name, words in _COLUMNS.items()
        }
        if named["owner"] is not None and named["due"] is not None:
            order = {name: i for name, i in named.items() if i is not None}
            continue
        cell = {name: cells[i] if (i := order.get(name)) is not None and i < len(cells) else "" for name in _COLUMNS}
        cell["kind"] = next((k for k, p in _KINDS.items() if re.match(p, cell["kind"], re.IGNORECASE)), "")
        found.append(cell | {"whole": not _lacking(cell)})
    return found


def _lacking(cell: Mapping[str, str]) -> list[str]:
    empty = [n for n in ("measure", "owner") if not re.search(r"\w", cell[n]) or _is_open(cell[n])]
    return ([] if cell["kind"] else ["kind"]) + empty + ([] if _is_date(cell["due"]) else ["due"])


def _is_date(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", text)) and date.fromisoformat(text) is not None
    except ValueError:
        return False


def _no_measures(lines: list[str]) -> Text | None:
    found = _measures(lines)
    if any(m["whole"] for m in found):
        return None
    best = min((_lacking(m) for m in found), key=len, default=["kind", "measure", "owner", "due"])
    return say("postmortem.missing.measures", names=", ".join(best))
