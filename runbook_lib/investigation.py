"""An investigation: sections of the runbook over one target, for one incident, and what they conclude together.

What the command, an alert and another machine do alike. `Order` holds plain values and no secret, so that it can be
sent anywhere; the target's addresses are read where it is carried out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from runbook_lib import batch, catalog, dossier, parameters, render
from runbook_lib.archive import Archive
from runbook_lib.batch import Progress, Request, Result
from runbook_lib.finding import Verdict


@dataclass(frozen=True)
class Order:
    """What to look at, where, and for whom."""

    sections: tuple[str, ...]
    output: str
    target: str = "default"
    incident: str = "adhoc"
    lang: str = "en"
    deadline_s: float = 180.0
    follow: bool = False
    """Then also the sections that these point to."""
    parameters: dict[str, Any] = field(default_factory=dict)
    job: str = ""
    """A mark under which each artifact is left once, however often the order is carried out; "" for none."""
    again: bool = False
    """Somebody will carry it out again if an artifact is lost: no verdict is kept then."""
    unattended: bool = False
    """Nobody watches: nothing is executed, also where `parameters` ask for it."""


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


def carry_out(order: Order, progress: Progress = lambda section, state: None) -> Conclusion:
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
    verdict = batch.combined(results)
    said = dossier.document(order.incident, order.target, results, verdict, order.lang)
    place = f"{archive.place}/"
    lost = next((r.problem for r in results if not (r.html or "").startswith(place)), "")
    if lost and order.again:
        return Conclusion(said, verdict, tuple(results), None, lost)
    try:
        dossier.keep(archive, results, said, order.job)
        dossier.write_index(archive, order.lang)
    except OSError as e:
        problem = f"the dossier could not be written to {archive.place}: {e.strerror or e}"
        return Conclusion(said, verdict, tuple(results), None, problem)
    return Conclusion(said, verdict, tuple(results), f"{place}{dossier.INDEX}", lost)


def summary(order: Order) -> dict[str, Any]:
    """Carry an order out, on whatever machine this is; without frames, small enough to travel.

    `document`, `index` and `problem` as in `Conclusion`; `lines`, the verdict as text.
    """
    came = carry_out(order)
    lines = render.verdict_lines(came.verdict, order.lang)
    return {"document": came.document, "index": came.index, "problem": came.problem, "lines": lines}


def _request(section: str, values: dict[str, Any], order: Order, until: float) -> Request:
    return batch.request(section, values, order.output, until, job=order.job, unattended=order.unattended)


def _run(archive: Archive, order: Order, requests: Sequence[Request], progress: Progress) -> list[Result]:
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
