"""Make the files of an artifact from an executed notebook and its run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import nbformat
import pandas as pd
from markupsafe import Markup, escape

from runbook_lib.book import messages
from runbook_lib.privacy.masking import Masker
from runbook_lib.store import record
from runbook_lib.store.files import digest
from runbook_lib.store.run import Run, run_to_json
from runbook_lib.view import links, render

Notebook = nbformat.NotebookNode

#: What colours a terminal's text.
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MARKDOWN = links.markdown_parser(html=True)
#: Forms of an output that hold no text.
_PICTURE = re.compile(r"(?:image|audio|video)/(?!svg)|application/pdf")


def scrub(nb: Notebook, masker: Masker) -> None:
    """Remove secrets from a notebook; the library's own outputs contain no secret."""
    clean_texts(nb, masker.scrub_once)


def clean_texts(nb: dict[str, Any], clean: Callable[[str], str]) -> None:
    """Apply `clean` to printed texts, errors, and outputs of other code than the library's."""

    def cleaned(text: Any) -> Any:
        if isinstance(text, list):
            return [cleaned(line) for line in text]
        plain = _COLOURS.sub("", str(text))  # a colour may stand within a key
        return text if (shown := clean(plain)) == plain else shown

    for cell in nb["cells"]:
        for output in cell.get("outputs", []):
            for field in {"text", "ename", "evalue", "traceback"} & output.keys():
                output[field] = cleaned(output[field])
            data = output.get("data", {})
            for kind in () if record.RUN_MIME in data else [*data]:
                if kind.endswith("json"):
                    try:
                        data[kind] = json.loads(clean(json.dumps(data[kind], ensure_ascii=False)))
                    except ValueError:
                        del data[kind]
                elif not _PICTURE.match(kind):
                    data[kind] = cleaned(data[kind])


def html(nb: Notebook, title: str, evidence: str = "") -> str:
    """Return the notebook as one self-contained HTML page, the verdict first, the digest of its evidence last."""
    parts = [
        _remove_external(part)
        for cell in nb.cells
        for part in (
            _render_source(cell),
            *(_render_output(o) for o in cell.get("outputs", ()) if record.BANNER_MIME not in o.get("data", {})),
        )
    ]
    return render.html(
        "artifact",
        title=title,
        banner=_mark_safe(_read_banner(nb)),
        body=_mark_safe("\n".join(parts)),
        evidence=evidence,
    )


def _read_banner(nb: Notebook) -> str:
    shown = (output.get("data", {}) for cell in nb.cells for output in cell.get("outputs", ()))
    found = next((str(data["text/html"]) for data in shown if record.BANNER_MIME in data), "")
    return re.sub(r"<style>.*?</style>", "", found, count=1, flags=re.DOTALL)  # the page has it


def _render_source(cell: Any) -> str:
    if cell.cell_type == "markdown":
        return str(_MARKDOWN.render(cell.source))
    return _wrap_preformatted(cell.source, "source") if cell.source.strip() else ""


def _render_output(output: dict[str, Any]) -> str:
    """Return the HTML of one output, of its most telling form."""
    if "data" not in output:  # printed text, or an error
        text = output.get("text", "") or "\n".join(output.get("traceback", []))
        return _wrap_preformatted(_COLOURS.sub("", text), "printed")
    data = output["data"]
    if html := data.get("text/html") or data.get("image/svg+xml"):
        return str(html)
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            alt = escape(output.get("metadata", {}).get(kind, {}).get("alt") or data.get("text/plain", ""))
            return f'<p><img src="data:{kind};base64,{data[kind].strip()}" alt="{alt}"></p>'
    if "text/markdown" in data:
        return str(_MARKDOWN.render(data["text/markdown"]))
    return _wrap_preformatted(data["text/plain"], "printed") if "text/plain" in data else ""


def _wrap_preformatted(text: str, kind: str) -> str:
    return f'<pre class="{kind}">{escape(text)}</pre>'


def _remove_external(body: str) -> str:
    """Return HTML without scripts, frames, and links but those to pages of the web and within the page."""
    # The page may be moved anywhere: links to files of the checkout become plain text.
    body = re.sub(r'<a\b[^>]*\bhref="(?:\.\./docs/|\d\d_)[^"]*"[^>]*>(.*?)</a>', r"\1", body, flags=re.DOTALL)
    body = re.sub(r"<(script|link|iframe)\b[^>]*>(?:.*?</\1>)?", "", body, flags=re.DOTALL | re.IGNORECASE)
    return links.without_other_links(body)


def _mark_safe(markup: str) -> Markup:
    return Markup(markup)  # noqa: S704 - our own rendering


def notebook(content: bytes) -> Notebook:
    """Parse an executed notebook. Raises ValueError."""
    nb: Notebook = nbformat.reads(content.decode(), as_version=4)
    return nb


@dataclass(frozen=True)
class Artifact:
    """An artifact: its files by name, and its line of the log."""

    name: str
    files: dict[str, bytes]
    entry: dict[str, Any]


def make(nb: Notebook, run: Run, parameters: dict[str, Any], stem: str, **more: Any) -> Artifact:
    """Make the artifact of a run: notebook, page and evidence; `more` goes into its line of the log."""
    made = make_evidence(run, parameters, stem, **more)
    title = f"{run.section} {run.status.name} {parameters['incident_id']}"
    (evidence,) = made.files.values()
    with messages.using(parameters.get("lang", "en")):
        page = html(nb, title, f"{made.name}.json {digest(evidence)}")
    shown = {f"{made.name}.ipynb": nbformat.writes(nb).encode(), f"{made.name}.html": page.encode()}
    return replace(made, files=shown | made.files)


def make_evidence(run: Run, parameters: dict[str, Any], stem: str, **more: Any) -> Artifact:
    """Make the artifact of a run without a notebook: its evidence; `more` goes into its line of the log."""
    name = f"{stem}-{run.status.name}"
    entry = {
        "name": name,
        "section": run.section,
        "status": run.status.name,
        "stuck_at": run.verdict.stuck_at,
        "confidence": run.verdict.confidence,
        "parameters": parameters,
        "started": run.started,
        "ended": run.ended,
        "problem": run.problem,
        "versions": {p: version(p) for p in ("runbook-notebooks", "papermill", "pandas", "sqlalchemy", "nats-py")},
        **more,
    }
    evidence = json.dumps(run_to_json(run), ensure_ascii=False).encode()
    return Artifact(name, {f"evidence/{name}.json": evidence}, entry)


def stamp(time: str) -> str:
    """Return a time in the form of file names."""
    return f"{pd.Timestamp(time):%Y%m%dT%H%M%SZ}"
