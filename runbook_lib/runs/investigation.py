"""An investigation: sections of the runbook over one target, for one incident, and what they conclude together.

What the command, an alert and another machine do alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from runbook_lib import catalog, mandatory, parameters
from runbook_lib.archive import dossier, news, postmortem, seal
from runbook_lib.archive.artifact import Result
from runbook_lib.model.finding import Verdict
from runbook_lib.model.order import Order
from runbook_lib.runs import batch
from runbook_lib.runs.batch import Request, Steps
from runbook_lib.store import Archive
from runbook_lib.view import render


@dataclass(frozen=True)
class Conclusion:
    """What came of an order."""

    document: dict[str, Any]
    """As --json prints it (docs/architecture.md, "The command")."""
    verdict: Verdict
    results: tuple[Result, ...]
    index: str | None
    """The dossier's page; None where it could not be written."""
    problem: str = ""
    """Why what was found is not in the archive, one line; "" when it is."""
    seal: str = ""
    """The dossier's head (`seal.told`), to be kept outside of it."""
    draft: str | None = None
    """The postmortem's draft, where the section of it was run."""


def carry_out(order: Order, progress: Steps = lambda section, state: None) -> Conclusion:
    """Run the sections, keep artifacts, verdict and dossier.

    Raises UsageError before anything has started when the order, or the target, is not in order.
    """
    until = time.time() + order.deadline_s
    values = order.parameters | {"target": order.target, "incident_id": order.incident, "lang": order.lang}
    requests = [_request(n, values, order, until) for n in order.sections]
    archive = Archive(order.output, order.incident)
    archive.prepare()
    results = _run(archive, order, requests, progress)
    if order.follow:
        requests = [
            _request(n, {k: v for k, v in values.items() if k in declared}, order, until)
            for n, declared in _pointed_to(results, order.sections).items()
        ]
        results += _run(archive, order, requests, progress)
    ran = {r.run.section for r in results}
    verdict = batch.combined(results)
    verdict = replace(verdict, next_sections=tuple(n for n in verdict.next_sections if n not in ran))
    said = dossier.document(order.incident, order.target, results, verdict, order.lang)
    place = f"{archive.place}/"
    draft = None
    lost = next((r.problem for r in results if not (r.html or "").startswith(place)), "")
    if lost and order.again:
        return Conclusion(said, verdict, tuple(results), None, lost)
    try:
        kept = dossier.keep(archive, results, said, order.job)
        looked_back = next((r for r in results if r.run.section == mandatory.SECTION), None)
        if looked_back:
            draft = postmortem.write_of(archive, looked_back, order.lang, order.target).markdown
        dossier.write_index(archive, order.lang)
    except OSError as e:
        problem = f"the dossier could not be written to {archive.place}: {e.strerror or e}"
        return Conclusion(said, verdict, tuple(results), None, problem, seal.told(archive))
    news.tell(archive, results, said, kept, order.lang)
    return Conclusion(said, verdict, tuple(results), f"{place}{dossier.INDEX}", lost, seal.told(archive), draft)


def summary(order: Order, progress: Steps = lambda section, state: None) -> dict[str, Any]:
    """Carry an order out, on whatever machine this is; without frames, small enough to travel.

    `document` (with its `seal`), `index` and `problem` as in `Conclusion`; `lines`, the verdict as text; `details`,
    what was found section by section, pairs of a status (or "") and a line; `problems`, what went wrong with a section.
    """
    came = carry_out(order, progress)
    details: list[tuple[str, str]] = []
    for result in came.results:
        section = result.run.section
        details.append(("", f"\n{section} {render.section_title(section, order.lang)}"))
        details += [(f.status.name, f"  {render.finding_line(f, order.lang)}") for f in result.run.findings]
        details += [("", f"  {result.html}")] if result.html else []
    details += [("", f"  {came.draft}")] if came.draft else []
    details += [("", line) for line in render.explained(came.document["verdict"], order.lang)]
    return {
        # Plain JSON: a notebook's own types would bring their imports to whoever reads it.
        "document": json.loads(json.dumps(came.document)) | {"seal": came.seal},
        "index": came.index,
        "problem": came.problem,
        "lines": render.verdict_lines(came.verdict, order.lang),
        "details": details,
        "problems": [f"section {r.run.section}: {r.problem}" for r in came.results if r.problem],
    }


def _request(section: str, values: dict[str, Any], order: Order, until: float) -> Request:
    return batch.request(section, values, order.output, until, job=order.job, unattended=order.unattended)


def _run(archive: Archive, order: Order, requests: Sequence[Request], progress: Steps) -> list[Result]:
    """Run what is not there yet: an order that was interrupted goes on where it was."""
    there = archive.of_job(order.job) if order.job else {}
    new = batch.run_sections([r for r in requests if r.section not in there], progress)
    results = {r.run.section: r for r in new}
    return [results.get(r.section) or batch.kept(archive, there[r.section]) for r in requests]


def _pointed_to(results: Sequence[Result], had: Sequence[str]) -> dict[str, list[str]]:
    """The sections that these point to and their parameters; without those that can act: a person opens them."""
    runnable = catalog.load().runnable()
    found: dict[str, list[str]] = {}
    for section in batch.combined(results).next_sections:
        notebook = runnable[section].notebook if section in runnable else None
        if notebook and section not in had and "execute" not in (names := parameters.declared(notebook)):
            found[section] = names
    return found
