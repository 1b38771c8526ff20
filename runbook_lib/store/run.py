"""A run of one section: what is kept of it, and all that anybody reads of it later.

Its evidence file holds the run as JSON. The executed notebook carries the findings in its outputs: they are read out
of it once, when it has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from runbook_lib.book.catalog import Catalog
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.model.finding import Finding, Reason, Status, Verdict, complete, read_cost, replace, say, unknown
from runbook_lib.store import record
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import RunLine, read_logs

_NOT_JUDGED = Verdict(Status.UNKNOWN, None, "none")
#: The form of an evidence file.
FORMAT = 2
#: Fields that say where the artifact is, and are no part of the record.
_PLACES = ("ipynb", "html")


@dataclass(frozen=True)
class Run:
    """The run of one section: a finding for every planned step, as JSON, and the verdict."""

    section: str
    header: dict[str, Any]
    stored: list[dict[str, Any]]
    verdict: Verdict = _NOT_JUDGED
    read_cost: dict[str, Any] = field(default_factory=dict)
    concluded: bool = True
    started: str = ""
    ended: str = ""
    problem: str = ""
    """Why the run did not end as it should, one line; "" if it did."""
    ipynb: str | None = None
    html: str | None = None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """The findings, in the order of the runbook."""
        return tuple(map(record.finding_from_json, self.stored))

    @cached_property
    def by_step(self) -> dict[str, Finding]:
        """The findings by step."""
        return {f.step: f for f in self.findings}

    @property
    def status(self) -> Status:
        """The run's overall status."""
        return self.verdict.status

    def unfinished(self, problem: str, book: Catalog) -> Run:
        """Return the run with the problem in place of each step that was not reached."""
        text = say("unknown.unfinished", problem=problem)
        found = [unknown(f.step, Reason.NOT_RUN, text) if f.reason is Reason.NOT_RUN else f for f in self.findings]
        stored = [record.finding(f) for f in found]
        return replace(self, stored=stored, verdict=diagnosis.conclude(found, book), problem=problem)


def run_to_json(run: Run) -> dict[str, Any]:
    """Return a run as its evidence file has it."""
    named = {f.name: getattr(run, f.name) for f in fields(run) if f.name not in _PLACES}
    return {"format": FORMAT, "findings": named.pop("stored"), **named, "verdict": record.verdict(run.verdict)}


def run_from_json(stored: Mapping[str, Any], **more: Any) -> Run:
    """Restore a run from `run_to_json`; `more` are further fields. Raises LookupError."""
    own = {f.name: stored[f.name] for f in fields(Run) if f.name in stored and f.name not in _PLACES}
    verdict = {"verdict": record.from_json(Verdict, stored["verdict"])} if "verdict" in stored else {}
    return Run(**own | {"stored": stored["findings"]} | verdict | more)


def run_of_cells(cells: Sequence[Mapping[str, Any]], section: str, book: Catalog) -> Run:
    """Return the run that an executed notebook shows, with steps of other sections that it asked.

    A step of the section that was not reached is not_run. `book` decides the verdict.
    """
    steps = [s.id for s in book.sections[section].steps] if section in book.sections else []
    found = {f["step"]: record.finding_from_json(f) for f in record.read_outputs(cells, record.FINDING_MIME)}
    end = conclusion(cells)
    findings = complete(dict.fromkeys([*steps, *found]), found)
    return Run(
        section,
        end.get("header", {}),
        [record.finding(f) for f in findings],
        diagnosis.conclude(findings, book),
        end.get("read_cost") or read_cost(q for f in findings for q in f.queries),
        bool(end),
    )


def conclusion(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the last output of `conclude` in an executed notebook; {} if there is none."""
    found = [*record.read_outputs(cells, record.VERDICT_MIME)]
    return found[-1] if found else {}


def read_run(archive: Archive, line: RunLine) -> Run:
    """Return the run of a line, from its evidence file as it was sealed.

    Raises OSError; NotSealedError for a file that was changed, and LookupError and TypeError for what no version wrote.
    """
    place = {kind: f"{archive.place}/{line.name}.{kind}" for kind in _PLACES}
    stored = json.loads(archive.read_sealed(line.sha256, f"evidence/{line.name}.json"))
    return run_from_json(stored, **place)


def read_runs(archive: Archive) -> list[Run]:
    """Return the runs of a dossier, oldest first. Raises what `read_logs` and `read_run` raise."""
    return [read_run(archive, line) for line in read_logs(archive).runs]
