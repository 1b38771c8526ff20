"""Backtest documents on archived dossiers: judge the evidence by today's documents, or by others.

Each result is compared with the one that was recorded.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from runbook_lib.book import catalog, pack
from runbook_lib.book.catalog import DOCUMENTS, Catalog
from runbook_lib.diagnosis.snapshots import difference
from runbook_lib.dossier import rejudge
from runbook_lib.model.finding import OWN, Status, Text, say
from runbook_lib.model.usage import UsageError
from runbook_lib.sources.settings import available_cores
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import RunLine
from runbook_lib.store.run import Run
from runbook_lib.view import differences


@dataclass(frozen=True)
class Policy:
    """Documents, and thresholds by target; None if each run keeps the thresholds that its target had."""

    book: Catalog
    thresholds: Mapping[str, Mapping[str, str]] | None = None

    def of(self, header: Mapping[str, Any]) -> Catalog:
        """Return the catalog for the run with this header."""
        if self.thresholds is not None:
            return self.book.tuned(self.thresholds.get(header["target"], {}))
        book = self.book
        for name, text in header.get("given", {}).get("thresholds", {}).items():
            with suppress(ValueError):  # these documents do not have the threshold, or it has another unit
                book = book.tuned({name: text})
        return book


def load_policy(given: Path | None) -> Policy:
    """Load the active documents, with replacements from `given`, a document or a folder of documents.

    A runbook.toml in the folder gives the targets' own thresholds. Raises UsageError if there is no document or one
    cannot be read, CatalogError for a malformed one.
    """
    if given is None:
        return Policy(catalog.load())
    names = [*(f"{name}.md" for name in DOCUMENTS), OWN]
    files = [given] if given.is_file() else [given / name for name in names]
    try:
        found = {f.name: f.read_text(encoding="utf-8") for f in files if f.is_file() and f.name in names}
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{given} cannot be read: {getattr(e, 'strerror', None) or 'it is not UTF-8'}") from None
    if not found:
        raise UsageError(f"{given} is neither one of {', '.join(names)} nor a folder with one of them")
    toml = found.pop(OWN, None)
    texts = catalog.read_texts(packs := pack.active_runbook().packs)
    texts[packs[0].name] |= {name.removesuffix(".md"): text for name, text in found.items()}
    book = catalog.read(packs, texts)
    return Policy(book, None if toml is None else _parse_thresholds(toml, book))


def _parse_thresholds(toml: str, book: Catalog) -> dict[str, dict[str, str]]:
    try:
        targets = tomllib.loads(toml).get("targets", {})
        return {name: book.tuned(target.get("thresholds", {})).own for name, target in targets.items()}
    except (ValueError, AttributeError) as e:
        wrong = e if isinstance(e, ValueError) else "targets and their thresholds must be tables"
        raise UsageError(f"{OWN}: {wrong}") from None


@dataclass(frozen=True)
class BacktestedRun:
    """A run as it was recorded and as it is judged now: start (Unix time), statuses, differences."""

    incident: str
    started: float
    statuses: tuple[Status, Status]
    judged: int
    flips: list[dict[str, Any]]


def run(output: str, incidents: Iterable[str], given: Path | None) -> tuple[dict[str, Any], list[Text]]:
    """Judge the incidents by today's documents or those in `given`, on all cores; return report and unreadable runs.

    Raises UsageError, CatalogError.
    """
    load_policy(given)  # raises here, once, if it is invalid
    incidents = list(incidents)
    judge = partial(_backtest_incident, output, given)
    if len(incidents) < 2:
        found = [*map(judge, incidents)]
    else:
        with ProcessPoolExecutor(available_cores(), mp_context=get_context("spawn")) as pool:
            found = [*pool.map(judge, incidents, chunksize=max(1, len(incidents) // 16))]
    tested = [[t for t in own if isinstance(t, BacktestedRun)] for own in found]
    return _build_report(tested), [t for own in found for t in own if isinstance(t, Text)]


def _backtest_incident(output: str, given: Path | None, incident: str) -> list[BacktestedRun | Text]:
    judge = partial(_backtest_run, incident, load_policy(given))
    try:
        return [*rejudge.judge_runs(Archive(output, incident), catalog.load(), judge)]
    except OSError as e:
        return [say("report.unread", incident=incident, detail=e.strerror or str(e))]


def _backtest_run(incident: str, policy: Policy, line: RunLine, run: Run) -> BacktestedRun:
    before, after = rejudge.look(run), rejudge.look(run, policy.of(run.header))
    changes = sorted(difference(before, after, same_evidence=True), key=lambda c: c.kind)  # the steps, then the verdict
    where = {"incident": incident, "run": line.name}
    return BacktestedRun(
        incident,
        line.started.timestamp(),
        (before.status, after.status),
        sum(1 for f in run.findings if f.frames),
        [where | differences.changed_judgement(c) for c in changes if c.kind in ("step", "verdict")],
    )


def _build_report(incidents: Sequence[Sequence[BacktestedRun]]) -> dict[str, Any]:
    """Return the report as plain data: sums, and each incident that differs."""
    tested = [t for own in incidents for t in own]
    detected = [
        {"incident": own[0].incident, "was_s": _detected_s(own, 0), "now_s": _detected_s(own, 1)}
        for own in incidents
        if own
    ]
    alarms = [sum(t.statuses[n] is Status.CRITICAL for t in tested) for n in (0, 1)]
    return {
        "incidents": len(incidents),
        "runs": len(tested),
        "steps": sum(t.judged for t in tested),
        "alarms": {"was": alarms[0], "now": alarms[1]},
        "flips": [flip for t in tested for flip in t.flips],
        "detected": [d for d in detected if d["was_s"] != d["now_s"]],
    }


def _detected_s(tested: Sequence[BacktestedRun], n: int) -> float | None:
    """Return seconds from an incident's first run to its first run that is not OK; None if all are OK."""
    bad = [t.started for t in tested if t.statuses[n] is not Status.OK]
    return min(bad) - min(t.started for t in tested) if bad else None
