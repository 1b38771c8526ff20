"""What would have been concluded of dossiers by another policy: the same evidence, other documents.

Each run is judged twice by the code of today, by the policy that was kept with it and by the other one, so that what
differs is the policy's doing alone. A run that has none kept is compared with what was said then.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from runbook_lib.archive import policy, rejudge
from runbook_lib.catalog import Catalog
from runbook_lib.model.finding import Finding, Status, Text, Verdict
from runbook_lib.settings import cores
from runbook_lib.store import Archive


@dataclass(frozen=True)
class Flip:
    """What one run says otherwise: `step` is "" for the verdict of its section."""

    incident: str
    run: str
    step: str
    was: str
    now: str


@dataclass(frozen=True)
class NotReplayable:
    """A step whose questions were shaped by numbers that differ: with the others, other rows might have come back."""

    incident: str
    run: str
    step: str
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class Tested:
    """An incident: how many runs and steps were judged, what differs, and from when on something was amiss.

    `detected` are the seconds from the first run to the first that is not OK, by each policy; None where none is.
    """

    incident: str
    runs: int = 0
    judged: int = 0
    flips: tuple[Flip, ...] = ()
    not_replayable: tuple[NotReplayable, ...] = ()
    unread: tuple[Text, ...] = ()
    detected: tuple[float | None, float | None] = (None, None)
    alarms: tuple[int, int] = (0, 0)
    """Runs that call for somebody (CRITICAL), by each policy."""
    without_policy: int = 0


def run(output: str, incidents: Iterable[str], given: Path) -> list[Tested]:
    """The incidents by the documents in `given`, in their order, on all cores. Raises UsageError, CatalogError."""
    policy.changed(given)  # refused once, here
    incidents = list(incidents)
    if len(incidents) < 2:
        return [_tested(output, given, incident) for incident in incidents]
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(partial(_tested, output, given), incidents, chunksize=max(1, len(incidents) // 16)))


def _tested(output: str, given: Path, incident: str) -> Tested:
    changed = policy.changed(given)
    runs = judged = bare = 0
    flips, unsure, unread = list[Flip](), list[NotReplayable](), list[Text]()
    bad: tuple[list[float], list[float]] = [], []
    alarms, began = [0, 0], None
    for kept in rejudge.runs(Archive(output, incident)):
        if isinstance(kept, Text):
            unread.append(kept)
            continue
        name, other = kept.entry["name"], changed.of(kept.run.header["target"], kept.policy)
        first = rejudge.judge(kept.run, kept.policy) if kept.policy else (kept.run.findings, kept.run.verdict)
        second = rejudge.judge(kept.run, other)
        runs += 1
        bare += kept.policy is None
        at = pd.Timestamp(kept.entry["started"]).timestamp()
        began = at if began is None else min(began, at)
        for n, (_, verdict) in enumerate((first, second)):
            alarms[n] += verdict.status is Status.CRITICAL
            bad[n].extend([at] if verdict.status is not Status.OK else [])
        for was, now in zip(first[0], second[0], strict=True):
            judged += bool(was.frames)
            if shaped := _shaped(was, kept.policy, other):
                unsure.append(NotReplayable(incident, name, was.step, shaped))
            elif was.status is not now.status:
                flips.append(Flip(incident, name, was.step, was.status.name, now.status.name))
        was_said, said = _said(first[1]), _said(second[1])
        if was_said != said:
            flips.append(Flip(incident, name, "", was_said, said))
    detected = [min(times) - began if times and began is not None else None for times in bad]
    return Tested(
        incident,
        runs,
        judged,
        tuple(flips),
        tuple(unsure),
        tuple(unread),
        (detected[0], detected[1]),
        (alarms[0], alarms[1]),
        bare,
    )


def _shaped(finding: Finding, own: Catalog | None, other: Catalog) -> tuple[str, ...]:
    """The names that shaped its questions and are different now; whatever they were where no policy was kept."""
    return tuple(name for name in finding.shaped_by if own is None or own.decides(name) != other.decides(name))


def _said(verdict: Verdict) -> str:
    """A verdict in a line: status, place, first mode, confidence."""
    mode = next((m.id for m in verdict.failure_modes if m.score > 0), "")
    place = verdict.stuck_at or " / ".join(verdict.undecided)
    return ", ".join(filter(None, (verdict.status.name, place, mode, verdict.confidence)))


def report(tested: Iterable[Tested]) -> dict[str, Any]:
    """The whole as plain data: sums, and each incident that differs."""
    tested = list(tested)
    return {
        "incidents": len(tested),
        "runs": sum(t.runs for t in tested),
        "steps": sum(t.judged for t in tested),
        "alarms": {"was": sum(t.alarms[0] for t in tested), "now": sum(t.alarms[1] for t in tested)},
        "without_policy": sum(t.without_policy for t in tested),
        "flips": [vars(f) for t in tested for f in t.flips],
        "not_replayable": [vars(n) for t in tested for n in t.not_replayable],
        "detected": [
            {"incident": t.incident, "was_s": t.detected[0], "now_s": t.detected[1]}
            for t in tested
            if t.detected[0] != t.detected[1]
        ],
    }
