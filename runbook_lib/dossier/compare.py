"""Compare a run with an earlier one or with another run: `rb.compare`, `runbook diff`, `watch`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pandas as pd
from IPython.display import display

from runbook_lib.book import catalog
from runbook_lib.book.parameters import Parameters
from runbook_lib.diagnosis import snapshots
from runbook_lib.diagnosis.snapshots import RunSnapshot
from runbook_lib.dossier import rejudge
from runbook_lib.model.finding import Status
from runbook_lib.model.usage import UsageError, did_you_mean
from runbook_lib.notebook.session import Session, quiet_session
from runbook_lib.store.archive import Archive, LogError
from runbook_lib.store.lines import RunLine, run_line
from runbook_lib.store.run import read_run
from runbook_lib.view import render
from runbook_lib.view.differences import Comparison


def compare(rb: Session, other: str = "10m ago") -> Comparison:
    """Compare this run, as far as its steps have run, with "10m ago" or a run of a dossier by its name.

    "10m ago" is an archived run of that time in this incident's dossier, else a new run that looks back by the rows'
    timestamps. A name may be shortened, and begins with its incident if that is another one (`INC-7/20261126T0312`).
    Raises UsageError, one line, if there is no such run.
    """
    ago_s = catalog.duration(other.removesuffix("ago")) if other.endswith("ago") else None
    if ago_s is not None:
        before = _find_or_run_earlier(rb, pd.Timedelta(seconds=ago_s))
    else:
        before = archived(rb.context.archive, other)
    return Comparison(before, live(rb), run=rb.opened)


# Samples ----------------------------------------------------------------------------------------------------


def live(rb: Session) -> RunSnapshot:
    """Return a run's findings so far as a sample."""
    found = [rb.findings[step.id] for step in rb.context.section.steps if step.id in rb.findings]
    return snapshots.take_snapshot(
        render.when(rb.context.as_of), found, rb.verdict(), rb.context.parameters.window_minutes
    )


def run_section(section: str, **parameters: Any) -> Session:
    """Run every step of a section without output, and return the session. Raises UsageError."""
    rb = quiet_session(section, **parameters)
    rb.run_steps()
    return rb


def archived(archive: Archive, name: str) -> RunSnapshot:
    """Return a run of a dossier by its name or an unambiguous prefix of it. Raises UsageError."""
    incident, _, short = name.rpartition("/")
    archive = Archive(archive.output, incident or archive.incident)
    named = {run.name: run for run in _list_runs(archive)}
    found = [n for n in named if n.startswith(short)]
    if len(found) != 1:
        problem = "no run" if not found else f"{len(found)} runs"
        raise UsageError(f"{archive.incident} has {problem} '{short}': {did_you_mean(short, [*named])}")
    return _read_run(archive, named[found[0]])


def first_and_last(archive: Archive) -> list[tuple[RunSnapshot, RunSnapshot]]:
    """Return the runs of the first and the last moment of each section that ran more than once.

    Both are of one target and one window, and ended without a problem. Raises UsageError if there is no such section.
    """
    ran: dict[tuple[Any, ...], list[RunLine]] = {}
    for run in sorted(_list_runs(archive), key=lambda run: run.looked_at):
        if not run.problem:
            ran.setdefault(_key_of(run), []).append(run)
    pairs = [(_read_run(archive, runs[0]), _read_run(archive, runs[-1])) for runs in ran.values() if len(runs) > 1]
    if not pairs:
        raise UsageError(f"{archive.incident} has no section with two runs: there is nothing to compare")
    return pairs


def _list_runs(archive: Archive) -> list[RunLine]:
    """Return the valid manifest lines of the runs."""
    found = list[RunLine]()
    for entry in archive.manifest():
        with suppress(LogError):
            found += [run_line(archive, entry)] if entry.get("section") else []
    return found


def _key_of(run: RunLine) -> tuple[Any, ...]:
    """Return what two runs that are compared must share: target, section, window."""
    given, default = run.parameters, Parameters.model_fields["window_minutes"].default
    return given.get("target") or "default", run.section, given.get("window_minutes") or default


def _read_run(archive: Archive, line: RunLine) -> RunSnapshot:
    try:
        return rejudge.look(read_run(archive, line), name=line.name)
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise UsageError(f"{archive.incident}: {line.name} cannot be read: {e}") from None


def _refuse_replay(rb: Session) -> None:
    if rb.context.recorded is not None:
        raise UsageError("this is a replay: it has one moment only, and nothing to compare it with")


def _find_or_run_earlier(rb: Session, ago: pd.Timedelta) -> RunSnapshot:
    """Return an archived run of this section from about that time, else make a run that looks back."""
    _refuse_replay(rb)
    archive, parameters, section = rb.context.archive, rb.context.parameters, rb.context.section.number
    then, own = rb.context.as_of - ago, (parameters.target, section, parameters.window_minutes)

    def apart(run: RunLine) -> pd.Timedelta:
        return abs(run.looked_at - then)

    made = (run for run in _list_runs(archive) if not run.problem and _key_of(run) == own)
    nearest = min(made, key=apart, default=None)
    if nearest and apart(nearest) <= ago / 4:
        return _read_run(archive, nearest)
    return live(run_section(section, **parameters.model_dump(exclude_unset=True) | {"as_of": then.isoformat()}))


# Watching ---------------------------------------------------------------------------------------------------


def watching(section: str, every_s: float, **parameters: Any) -> Iterator[tuple[Status, list[str]]]:
    """Run the section again every `every_s` seconds, for ever; yield each run's status and its lines of text."""
    before: RunSnapshot | None = None
    while True:
        begun = time.monotonic()
        rb = run_section(section, **parameters)
        look = live(rb)
        lines = [f"{look.name}  {rb.context.parameters.target} {section}", *render.verdict_lines(rb.verdict())]
        if before:
            lines += ["", *Comparison(before, look).lines()]
        yield look.status, lines
        before = look
        time.sleep(max(every_s - (time.monotonic() - begun), 0.0))


def watch(rb: Session, every_s: float = 10.0) -> None:
    """Run the section again and again in one cell, until the kernel is interrupted; the last result stays.

    Nothing is archived.
    """
    _refuse_replay(rb)
    handle = display(render.text_block((), run=rb.opened), display_id=True)
    parameters = rb.context.parameters.model_dump(exclude_unset=True)
    with suppress(KeyboardInterrupt):
        for _, lines in watching(rb.context.section.number, every_s, **parameters):
            handle.update(render.text_block(lines, run=rb.opened))
