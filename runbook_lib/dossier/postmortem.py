"""The draft of a postmortem: generated from a run of its section, completed by a person.

The draft is Markdown, written once and never overwritten: another one stands beside it (`postmortem-2.md`). The
mandatory items are its front matter, in YAML: they are the `IncidentRecord`, and only they are checked. The HTML page
beside the draft has the same text and is self-contained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
import yaml
from markdown_it.common.utils import escapeHtml
from markupsafe import Markup

from runbook_lib.book import catalog, messages
from runbook_lib.dossier.mandatory import MARKDOWN, IncidentRecord, ObjectiveImpact, split_draft
from runbook_lib.model.finding import Finding, Text, hop_text, say
from runbook_lib.store.archive import PARTIAL, Archive
from runbook_lib.store.lines import read_logs
from runbook_lib.view import links, render

if TYPE_CHECKING:
    from runbook_lib.store.run import Run

PAGE = "postmortem.html"


# The draft --------------------------------------------------------------------------------------------------


class Md(str):
    """Text that is Markdown already."""

    __slots__ = ()


def md(value: Any) -> Md:
    """Escape a value as one line of Markdown text."""
    if isinstance(value, Md):
        return value
    text = " ".join(str("" if value is None or value != value else value).split())
    text = re.sub(r"[\\`*\[\]|~<>&]", lambda m: "\\" + m[0], text)
    return Md(re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text))


@dataclass(frozen=True)
class WrittenDraft:
    """The written draft and its page."""

    markdown: str
    page: str


def write(
    archive: Archive, findings: Iterable[Finding], *, target: str, artifact: str | None, made: str
) -> WrittenDraft:
    """Write the draft from a run of its section, beside earlier ones. Raises OSError.

    `artifact` is that run's name.
    """
    text = draft(findings, incident=archive.incident, target=target, artifact=artifact, made=made)
    markdown = archive.write_new(MARKDOWN, text.encode())
    shown = f"{markdown.removesuffix('.md')}.html"
    archive.write(shown, page(text, archive.incident).encode())
    return WrittenDraft(f"{archive.place}/{markdown}", f"{archive.place}/{shown}")


def refresh_page(archive: Archive, draft: str) -> None:
    """Write the page of a draft that a person has edited. Raises OSError."""
    archive.write(PAGE, page(draft, archive.incident).encode())


def read_draft(archive: Archive) -> str | None:
    """Return the incident's draft; None if there is none. Raises OSError."""
    draft = archive.read_or_none(MARKDOWN)
    return None if draft is None else draft.decode(errors="replace")


def target_of(archive: Archive) -> str:
    """Return the target of the incident's first run."""
    targets = (run.parameters.get("target") for run in read_logs(archive).runs)
    return str(next((t for t in targets if t), "default"))


def write_from_run(archive: Archive, run: Run, target: str) -> WrittenDraft:
    """Write the draft from a headless run of its section. Raises OSError."""
    artifact = None
    if run.ipynb and run.ipynb.startswith(archive.place) and not run.ipynb.endswith(PARTIAL):
        artifact = run.ipynb.rpartition("/")[2].removesuffix(".ipynb")
    return write(archive, run.findings, target=target, artifact=artifact, made=run.ended)


def draft(findings: Iterable[Finding], *, incident: str, target: str, artifact: str | None, made: str) -> str:
    """Return the generated draft; the section's first steps are the items of its record."""
    steps = dict(zip(IncidentRecord.model_fields, findings, strict=False))

    def t(key: str, **params: Any) -> Md:
        shown = {k: v if v is None or isinstance(v, int | float | Text) else md(v) for k, v in params.items()}
        return Md(messages.text(say(key, **shown)))

    values: dict[str, Any] = {
        "t": t,
        "record": [Md(_dump_item(item, data)) for item, data in _prefill_record(steps).items()],
        "headline": lambda item: md(messages.text(steps[item].headline)) if item in steps else t("postmortem.not_run"),
        "notes": lambda item: [md(messages.text(n)) for n in steps[item].notes] if item in steps else [],
        "rows": lambda item, frame: _frame_rows(steps.get(item), frame),
        "value": lambda item, name: steps[item].value(name) if item in steps else None,
        "step": lambda item: steps[item].step,
        "link": lambda name, words=None: _artifact_link(name, words),
        "duration": lambda seconds: Md("" if seconds is None else messages.quantity(seconds, "s")),
        "when": lambda at: md(render.when(at)) if at is not None and at == at else Md("–"),
        "quantity": lambda value, unit: Md(messages.quantity(value, unit)),
        "mode": lambda id_: md(f"{id_} {render.mode_title(str(id_))}"),
        "section": lambda number: md(f"{number} {render.section_title(str(number))}"),
        "hop": lambda name: md(messages.text(hop_text(name))) if name else Md(""),
        # The pack's step names the reasons, and the ways in which a time is known; test_messages.py lists both.
        "why": lambda name: t(f"postmortem.why.{name}"),
        "how": lambda name: t(f"postmortem.how.{name}"),
        "lang": messages.language(),
        "incident": incident,
        "target": target,
        "artifact": artifact,
        "made": made,
    }
    return _template_environment().get_template("postmortem.md.j2").render(**values)


@cache
def _template_environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(render._TEMPLATES), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False, finalize=md, keep_trailing_newline=True,  # noqa: S701
    )  # fmt: skip


def _frame_rows(finding: Finding | None, frame: str) -> list[dict[str, Any]]:
    found = None if finding is None else finding.frames.get(frame)
    if found is None:
        return []
    return [{str(k): None if v is None or v != v else v for k, v in r.items()} for r in found.to_dict("records")]


def _prefill_record(steps: Mapping[str, Finding]) -> dict[str, Any]:
    """Return the record as far as a run can fill it in; open values are '' or {}."""

    def value(item: str, name: str) -> Any:
        return steps[item].value(name) if item in steps else None

    def words(key: str, **params: Any) -> str:
        return messages.text(say(key, **params))

    def short(number: Any) -> float | str:
        return "" if number is None else int(number) if number == int(number) else round(float(number), 1)

    impact: dict[str, dict[str, float | str]] = {slo: {} for slo in catalog.load().slos}
    for r in _frame_rows(steps.get("impact"), "impact"):
        if r["minutes"] is not None or r["bad"] is not None:
            impact[r["slo"]] = {name: short(r[name]) for name in ObjectiveImpact.model_fields if r[name] is not None}
    times = {f"{name}_seconds": short(value("timeline", name)) for name in ("ttd", "ttr")}
    entries = [
        {"time": render.when(r["time"]), "what": words(f"postmortem.kind.{r['what']}")}
        for r in _frame_rows(steps.get("timeline"), "times")
        if r["time"] is not None
    ]
    measures = [
        (r["kind"], words("postmortem.suggested", id=r["id"], text=r["text"]))
        for r in _frame_rows(steps.get("measures"), "suggested")
    ]
    return {
        "impact": impact,
        "origin": value("origin", "origin") or "",
        "timeline": times | {"entries": entries},
        "measures": [
            {"kind": kind, "measure": measure, "owner": "", "due": ""}
            for kind, measure in [*measures, ("design", words("postmortem.suggested_design"))]
        ],
    }


def _dump_item(item: str, data: Any) -> str:
    """Return one item of the record as YAML, below a comment that says what belongs there."""
    flow = None if item in ("impact", "timeline") else False  # a long text is easier to read on its own line
    text = yaml.safe_dump({item: data}, allow_unicode=True, sort_keys=False, width=110, default_flow_style=flow)
    return f"# {messages.text(say(f'postmortem.hint.{item}'))}\n{text}"


def _artifact_link(name: Any, words: Any = None) -> Md:
    """Return a relative link to an artifact of this dossier."""
    if not name:
        return Md("")
    file = str(name) if str(name).endswith((".json", ".ipynb")) else f"{name}.html"
    return Md(f"[{md(words or name)}]({quote(file)})")


# The page ---------------------------------------------------------------------------------------------------


#: HTML in the text is escaped; a picture would be loaded from elsewhere, so only its alternative text is shown.
_MARKDOWN = links.markdown_parser()
_MARKDOWN.add_render_rule("image", lambda self, tokens, i, options, env: escapeHtml(tokens[i].content))


def page(text: str, incident: str) -> str:
    """Return the draft as one self-contained HTML page, with its record at the end."""
    front, body = split_draft(text)
    shown = Markup(_MARKDOWN.render(body))  # noqa: S704 - what it holds is escaped
    return render.html("postmortem", incident=incident, page=shown, record=front.strip())
