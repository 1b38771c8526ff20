"""An executed notebook as the record of its run: read back, judged again, turned into what is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import nbformat
import pandas as pd

from runbook_lib import catalog
from runbook_lib.analysis import diagnosis
from runbook_lib.archive import policy
from runbook_lib.masking import Masker
from runbook_lib.messages import LANGUAGES
from runbook_lib.model.finding import Finding, Status, Verdict, complete
from runbook_lib.view import record, render

Notebook = nbformat.NotebookNode


@dataclass(frozen=True)
class Run:
    """What one executed notebook says: every planned step exactly once, and the verdict over them."""

    section: str
    findings: tuple[Finding, ...]
    verdict: Verdict
    header: dict[str, Any]
    read_cost: dict[str, Any]
    concluded: bool

    @property
    def status(self) -> Status:
        """The run's overall status."""
        return self.verdict.status


def read(nb: Notebook, section: catalog.Section, book: catalog.Catalog | None = None) -> Run:
    """Read a run out of its notebook; steps that a run did not reach are not_run.

    It is concluded by `book`, the documents in force if None.
    """
    found = {f["step"]: record.finding_from_json(f) for _, data in _outputs(nb) if (f := data.get(record.FINDING_MIME))}
    end = _end(nb)
    findings = complete([s.id for s in section.steps], found)
    cost = end.get("read_cost") or render.read_cost(q for f in findings for q in f.questions)
    return Run(
        section.number,
        tuple(findings),
        diagnosis.conclude(findings, book or catalog.load()),
        end.get("header", {}),
        cost,
        bool(end),
    )


def scrub(nb: Notebook, masker: Masker) -> None:
    """Take out secrets and what was revealed: the library's own outputs hold no secret already."""
    drop_revealed(nb)
    clean_texts(nb, masker.scrub)


def clean_texts(nb: dict[str, Any], clean: Callable[[str], str]) -> None:
    """Pass what cells printed or raised, and what other code than the library's has shown, through `clean`."""

    def cleaned(text: Any) -> Any:
        return [cleaned(line) for line in text] if isinstance(text, list) else clean(str(text))

    for cell in nb["cells"]:
        for output in cell.get("outputs", []):
            for field in {"text", "ename", "evalue", "traceback"} & output.keys():
                output[field] = cleaned(output[field])
            data = output.get("data", {})
            for kind in () if record.RUN_MIME in data else data:
                if kind.startswith("text/"):
                    data[kind] = cleaned(data[kind])


def drop_revealed(nb: dict[str, Any]) -> None:
    """Take out what was unmasked for the eye."""
    for cell in nb["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [o for o in cell["outputs"] if record.REVEALED_MIME not in o.get("data", {})]


def of_last_run(nb: Notebook) -> Notebook | None:
    """A copy that holds what the run opened last has shown, and nothing else; None unless it is concluded.

    A notebook in a browser also holds outputs of earlier runs, and whatever a responder's own cells printed.
    """
    opened = [data[record.RUN_MIME]["opened"] for _, data in _outputs(nb) if record.RUN_MIME in data]
    last = {"opened": max(opened, default="")}
    nb = nbformat.from_dict(nb)
    for cell in nb.cells:
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("data", {}).get(record.RUN_MIME) == last]
    found = {f["step"]: f["status"] for _, data in _outputs(nb) if (f := data.get(record.FINDING_MIME))}
    return nb if found.items() <= _end(nb).get("steps", {}).items() and found else None


def header(nb: Notebook) -> dict[str, Any]:
    """What a concluded run looked at."""
    return dict(_end(nb)["header"])


def html(nb: Notebook, title: str, lang: str) -> str:
    """The notebook as one HTML page that loads nothing from anywhere; the verdict stands first."""
    body, _ = _exporter().from_notebook_node(_without_banner(nb))
    return render.html(
        "artifact",
        lang if lang in LANGUAGES else "en",
        title=title,
        banner=_safe(_banner(nb)),
        body=_safe(_offline(body)),
        highlight=_safe(_highlight_css()),
    )


def _outputs(nb: Notebook) -> Iterator[tuple[Any, dict[str, Any]]]:
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if "data" in output:
                yield output, output["data"]


def _end(nb: Notebook) -> dict[str, Any]:
    """What `conclude` has said last; {} when it has not."""
    said = [data[record.VERDICT_MIME] for _, data in _outputs(nb) if record.VERDICT_MIME in data]
    return said[-1] if said else {}


def _banner(nb: Notebook) -> str:
    return next((str(d["text/html"]) for _, d in _outputs(nb) if record.BANNER_MIME in d), "")


def _without_banner(nb: Notebook) -> Notebook:
    nb = nbformat.from_dict(nb)
    for cell in nb.cells:
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if record.BANNER_MIME not in o.get("data", {})]
    return nb


@cache
def _exporter() -> Any:
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="basic", mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")


@cache
def _highlight_css() -> str:
    from pygments.formatters import HtmlFormatter

    return str(HtmlFormatter().get_style_defs(".highlight"))


def _offline(body: str) -> str:
    # A page may lie anywhere: what leads to the checkout's own files is words there.
    body = re.sub(r'<a\b[^>]*\bhref="(?:\.\./docs/|\d\d_)[^"]*"[^>]*>(.*?)</a>', r"\1", body, flags=re.DOTALL)
    # The basic template links its permalink anchors only; anything that would load is taken out all the same.
    return re.sub(r"<(script|link|iframe)\b[^>]*>(?:.*?</\1>)?", "", body, flags=re.DOTALL | re.IGNORECASE)


def _safe(markup: str) -> Any:
    from markupsafe import Markup

    return Markup(markup)  # noqa: S704 - our own rendering


def evidence(run: Run) -> dict[str, Any]:
    """The masked frames of a run by step, apart from the notebook's prose."""
    return {
        f.step: {"status": f.status.name, "frames": {n: record.frame_to_json(x) for n, x in f.frames.items()}}
        for f in run.findings
    }


def notebook(content: bytes) -> Notebook:
    """An executed notebook from its bytes. Raises ValueError."""
    nb: Notebook = nbformat.reads(content.decode(), as_version=4)
    return nb


@dataclass(frozen=True)
class Result:
    """One section that was run: what it found, and where its artifact lies."""

    run: Run
    started: str
    ended: str
    ipynb: str | None
    html: str | None
    problem: str = ""


@dataclass(frozen=True)
class Artifact:
    """What a run leaves behind: its files by name, and its line of the manifest."""

    name: str
    files: dict[str, bytes]
    entry: dict[str, Any]


def make(
    nb: Notebook,
    run: Run,
    parameters: dict[str, Any],
    *,
    stem: str,
    started: str,
    ended: str,
    problem: str = "",
    **more: Any,
) -> Artifact:
    """Notebook, page and evidence of a run; `more` goes into its line of the manifest."""
    name = f"{stem}-{run.status.name}"
    title = f"{run.section} {run.status.name} {parameters['incident_id']}"
    files = {
        f"{name}.ipynb": nbformat.writes(nb).encode(),
        f"{name}.html": html(nb, title, parameters.get("lang", "en")).encode(),
        f"evidence/{name}.json": json.dumps(evidence(run), ensure_ascii=False).encode(),
        **policy.in_force(run.header.get("given", {}).get("thresholds", {})),
    }
    entry = {
        "name": name,
        "section": run.section,
        "status": run.status.name,
        "stuck_at": run.verdict.stuck_at,
        "confidence": run.verdict.confidence,
        "parameters": parameters,
        "started": started,
        "ended": ended,
        "problem": problem,
        "versions": {p: version(p) for p in ("runbook-notebooks", "papermill", "pandas", "sqlalchemy", "nats-py")},
        **more,
    }
    return Artifact(name, files, entry)


def stamp(time: str) -> str:
    """A moment as it stands in file names."""
    return f"{pd.Timestamp(time):%Y%m%dT%H%M%SZ}"
