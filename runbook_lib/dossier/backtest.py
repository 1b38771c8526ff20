"""Backtest another policy on archived dossiers: judge the same evidence by other documents.

Each run is judged twice by the present code, by its archived policy and by the other one: a difference can only come
from the policy. A run without an archived policy is compared with its original verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from runbook_lib.book import catalog
from runbook_lib.diagnosis.snapshots import difference
from runbook_lib.dossier import policy, rejudge
from runbook_lib.model.finding import Status, Text, say
from runbook_lib.sources.settings import available_cores
from runbook_lib.store.archive import Archive
from runbook_lib.view import differences


@dataclass(frozen=True)
class BacktestedRun:
    """A run judged by two policies: its start (Unix time), its status by each, and the differences."""

    incident: str
    started: float
    statuses: tuple[Status, Status]
    judged: int
    flips: list[dict[str, Any]]
    without_policy: bool


def run(output: str, incidents: Iterable[str], given: Path) -> tuple[dict[str, Any], list[Text]]:
    """Judge the incidents by the documents in `given`, on all cores; return the report and the unreadable runs.

    Raises UsageError, CatalogError.
    """
    policy.load_other(given)  # raises here, once, if it is invalid
    incidents = list(incidents)
    judge = partial(_backtest_incident, output, given)
    if len(incidents) < 2:
        found = [*map(judge, incidents)]
    else:
        with ProcessPoolExecutor(available_cores(), mp_context=get_context("spawn")) as pool:
            found = [*pool.map(judge, incidents, chunksize=max(1, len(incidents) // 16))]
    tested = [[t for t in own if isinstance(t, BacktestedRun)] for own in found]
    return _build_report(tested), [t for own in found for t in own if isinstance(t, Text)]


def _backtest_incident(output: str, given: Path, incident: str) -> list[BacktestedRun | Text]:
    judge = partial(_backtest_run, incident, policy.load_other(given))
    try:
        return [*rejudge.judge_runs(Archive(output, incident), catalog.load(), judge)]
    except OSError as e:
        return [say("report.unread", incident=incident, detail=e.strerror or str(e))]


def _backtest_run(incident: str, changed: policy.OtherPolicy, kept: rejudge.SealedRun) -> BacktestedRun:
    other = changed.of(kept.run.header["target"], kept.policy)
    before, after = rejudge.look(kept.run, kept.policy), rejudge.look(kept.run, other)
    changes = sorted(difference(before, after, same_evidence=True), key=lambda c: c.kind)  # the steps, then the verdict
    where = {"incident": incident, "run": kept.line.name}
    return BacktestedRun(
        incident,
        kept.line.started.timestamp(),
        (before.status, after.status),
        kept.judged,
        [where | differences.changed_judgement(c) for c in changes if c.kind in ("step", "verdict")],
        kept.policy is None,
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
        "without_policy": sum(t.without_policy for t in tested),
        "flips": [flip for t in tested for flip in t.flips],
        "detected": [d for d in detected if d["was_s"] != d["now_s"]],
    }


def _detected_s(tested: Sequence[BacktestedRun], n: int) -> float | None:
    """Return seconds from an incident's first run to its first run that is not OK by policy `n`; None if all are OK."""
    bad = [t.started for t in tested if t.statuses[n] is not Status.OK]
    return min(bad) - min(t.started for t in tested) if bad else None
