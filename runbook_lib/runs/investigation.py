"""An investigation: sections of the runbook over one target, for one incident, and what they conclude together.

The command, the alert receiver and Dask workers all use it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runbook_lib.book import messages, pack
from runbook_lib.book.catalog import Catalog
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.evidence import strip
from runbook_lib.diagnosis.questions import ask_until_decided, read_answers, sections_to_follow
from runbook_lib.dossier import overview, postmortem, seal
from runbook_lib.model.finding import Finding, Status, Verdict, judged, say
from runbook_lib.model.order import Order, RunProgress
from runbook_lib.runs import batch
from runbook_lib.runs.batch import Request, Steps
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import run_line
from runbook_lib.store.run import Run, read_run
from runbook_lib.view import render

if TYPE_CHECKING:
    from runbook_lib.checks.sample import Sample
    from runbook_lib.runs import sampler

#: Suffix of an order's job for its second triage. A job that the receiver runs once more has another suffix.
SECOND_TRIAGE = "/triage-2"

Tell = Callable[[RunProgress], None]
"""Called with what is known so far."""


def summary(order: Order, config: Settings, book: Catalog, progress: Steps, tell: Tell) -> dict[str, Any]:
    """Run the sections, keep artifacts, verdict and dossier; what came of it as plain data, small enough to travel.

    `tell` is called with the verdict's line when it is known; the archive is written after that.

    `document`, as --json prints it (docs/architecture.md, "The command"), with its `seal`: the dossier's head, to be
    kept outside of it. `index`, the dossier's page; None where it could not be written. `problem`, one line: why what
    was found is not in the archive; "" when it is. `lines`, the verdict as text; `details`, what was found section by
    section, pairs of a status (or "") and a line; `why`, the reasons for each failure mode's score; `draft`, the
    postmortem that was written, if any; `problems`, what went wrong with a section.

    Raises UsageError before anything has started when the order, or the target, is not in order.
    """
    archive = Archive(order.output, order.incident)
    results, verdict = _look(archive, order, config, book, progress, tell)
    ran = {r.section for r in results}
    verdict = replace(verdict, next_sections=tuple(n for n in verdict.next_sections if n not in ran))
    lines = render.verdict_lines(verdict)
    stores = messages.text(say("ui.waits_for_pages"))
    tell(RunProgress(line=lines[0], status=verdict.status.name, waits=stores))
    said = overview.document(order.incident, order.target, results, verdict)
    index = draft = None
    problem = next((r.problem for r in results if not (r.html or "").startswith(f"{archive.place}/")), "")
    lost = bool(problem) and order.again
    if not lost:
        try:
            overview.keep(archive, results, said, order.job)
            if looked_back := next((r for r in results if r.section == book.section_with("postmortem")), None):
                draft = postmortem.write_from_run(archive, looked_back, order.target).markdown
            overview.write_index(archive)
        except OSError as e:
            problem, draft = f"the dossier could not be written to {archive.place}: {e.strerror or e}", None
        else:
            index = f"{archive.place}/{overview.INDEX}"
    details = [line for r in results for line in _detail_lines(r)]
    return {
        # Plain JSON: a notebook's own types would bring their imports to whoever reads it.
        "document": json.loads(json.dumps(said)) | {"seal": "" if lost else seal.seal_text(archive)},
        "index": index,
        "problem": problem,
        "lines": lines,
        "details": details,
        "why": render.failure_mode_lines(verdict),
        "draft": draft,
        "problems": [f"section {r.section}: {r.problem}" for r in results if r.problem],
    }


def _detail_lines(run: Run) -> Iterator[tuple[str, str]]:
    section = run.section
    yield "", f"\n{section} {render.section_title(section)}"
    yield from ((status.name, f"  {line}") for status, line in render.finding_lines(run.findings))
    if run.html:
        yield "", f"  {run.html}"


def _look(
    archive: Archive, order: Order, config: Settings, book: Catalog, progress: Steps, tell: Tell
) -> tuple[list[Run], Verdict]:
    """Run an order, and once more if it decides nothing: an incident of a few seconds, or one that ends, shows later.

    Both looks are archived; the second one counts if it sees anything. Not late in the deadline.
    """
    began = time.monotonic()
    results, verdict = _run_order(archive, order, config, book, progress, tell)
    left = order.deadline_s - (time.monotonic() - began)
    if not (order.follow and is_sampled(order) and may_tell_later(verdict) and left > order.deadline_s / 2):
        return results, verdict
    tell(RunProgress(line=messages.text(say("ui.looks_again")), status=verdict.status.name))
    again = replace(order, deadline_s=left, job=order.job and f"{order.job}{SECOND_TRIAGE}")
    later, second = _run_order(archive, again, config, book, progress, tell)
    return (results, verdict) if second.status is Status.UNKNOWN else (later, second)


def is_sampled(order: Order) -> bool:
    """Return whether a section of the order compares two moments."""
    return bool(pack.active_runbook().sampled & {*order.sections})


def may_tell_later(verdict: Verdict) -> bool:
    """Return whether nothing is decided, and steps say that it is too early to tell."""
    named = any(m.score >= diagnosis.BROKEN for m in verdict.failure_modes)
    open_ = verdict.undecided or verdict.between or not named
    return bool(open_ and verdict.look_again_s is not None and verdict.status is not Status.OK and not verdict.ended)


def _take_sample(order: Order, config: Settings, book: Catalog, tell: Tell) -> Sample | None:
    """Return what is read once for all sections of an order; None where none of them compares two moments."""
    if config.replay or not is_sampled(order):
        return None
    from runbook_lib.runs import sampler

    def show(numbers: sampler.Numbers) -> None:
        at, hops = numbers
        if not hops:
            return  # the sections say what is wrong
        title = say("ui.provisional_first", at=at)
        shown = strip([judged(title, hops=hops)], book.hops)
        tell(RunProgress(first=tuple(render.provisional_lines(title, shown))))

    return sampler.take(order, config, book, show)


def _run_order(
    archive: Archive, order: Order, config: Settings, book: Catalog, progress: Steps, tell: Tell
) -> tuple[list[Run], Verdict]:
    """Run the sections, and with `follow` those that they point to, each as soon as a finding of theirs names it.

    What is there already is not run: an order that was interrupted goes on where it was.
    """
    until = time.monotonic() + order.deadline_s
    values = order.parameters | {"target": order.target, "incident_id": order.incident, "lang": order.lang}

    def request(section: str, given: dict[str, Any]) -> Request:
        marks = {"job": order.job, "unattended": order.unattended, "sample": sample}
        return batch.request(section, given, config, book, order.output, until, **marks)

    sample: Sample | None = None
    for n in order.sections:
        request(n, values)  # it may be refused: before anything is read
    archive.prepare()
    there = archive.of_job(order.job) if order.job else {}
    if {*order.sections} - there.keys():
        sample = _take_sample(order, config, book, tell)
    begun, ended = {*order.sections, *there}, dict[str, Run]()

    def follow(opened: dict[str, list[str]]) -> list[Request]:
        new = {n: names for n, names in opened.items() if n not in begun}
        begun.update(new)
        return [request(n, {k: v for k, v in values.items() if k in names}) for n, names in new.items()]

    def follow_finding(section: str, found: Finding) -> list[Request]:
        if not order.follow or section not in order.sections:
            return []
        return follow(sections_to_follow(found.next_sections, begun, book))

    def run(requests: Iterable[Request]) -> None:
        ended.update({r.section: r for r in batch.run_sections(requests, progress, follow_finding)})

    def result(section: str) -> Run:
        return ended.get(section) or read_run(archive, run_line(archive, there[section]))

    def run_opened(opened: dict[str, list[str]]) -> list[Run]:
        run(follow(opened))
        had = {r.section for r in results}
        return [result(n) for n in dict.fromkeys([*opened, *ended]) if n not in had]

    early = sections_to_follow(sample.sections, begun, book) if sample and order.follow else {}
    run([*(request(n, values) for n in order.sections if n not in there), *follow(early)])
    results = [result(n) for n in order.sections]
    verdict = batch.combine_verdict(results, book)
    if order.follow:
        verdict = _follow_verdict(results, verdict, run_opened, book, early=early)
    return results, verdict


def _follow_verdict(
    results: list[Run],
    verdict: Verdict,
    run: Callable[[dict[str, list[str]]], list[Run]],
    book: Catalog,
    *,
    early: dict[str, list[str]] | None = None,
) -> Verdict:
    """Run the sections to which the first verdict points; then, while it is undecided, the next one that may decide.

    Extend `results`. `early` are sections that were begun before the first verdict, with their parameters. The time and
    the number of questions are limited (numbers.md).
    """

    def look() -> list[Finding]:
        return [f for r in results for f in r.findings]

    def open_sections(opened: dict[str, list[str]]) -> list[Finding]:
        new = run(opened)
        results.extend(new)
        return [f for r in new for f in r.findings]

    def follow(sections: Iterable[str]) -> dict[str, list[str]]:
        return sections_to_follow(sections, [r.section for r in results], book)

    opened = (early or {}) | follow(verdict.next_sections)
    if not opened:
        return verdict
    before = look()
    answers = read_answers(verdict, before, open_sections(opened), book)
    return ask_until_decided(
        look,
        lambda verdict: follow(diagnosis.sections_of(verdict.settled_by)),
        lambda section: open_sections(follow([section])),
        book,
        time.monotonic,
        answers,
    )


def tell_progress(tell: Tell, book: Catalog) -> Steps:
    """Return a callback for a run's steps that tells what is known so far in words. It is never a verdict."""
    found: list[Finding] = []
    steps: dict[str, list[str]] = {}

    def progress(section: str, finding: Finding | None) -> None:
        own = steps.setdefault(section, [s.id for s in book.sections[section].steps])
        if finding is not None:
            found.append(finding)
            own[:] = (step for step in own if step != finding.step)
        left = [step for own in steps.values() for step in own[:1]]
        done, of = len(found), len(found) + sum(map(len, steps.values()))
        waits = say("ui.waits_for", steps=", ".join(left)) if left else say("ui.waits_for_pages")
        hops, title = strip(found, book.hops), say("ui.provisional_of", done=done, of=of)
        # The first numbers stay until the steps know most of the hops.
        knows_most = 2 * len({h.name for f in found for h in f.hops}) > len(hops)
        tell(
            RunProgress(
                line="" if finding is None else render.finding_line(finding),
                status="" if finding is None else finding.status.name,
                strip=tuple(render.provisional_lines(title, hops)) if knows_most else (),
                waits=messages.text(waits),
            )
        )

    return progress
