"""Run a section again and again, and say what changed: `rb.watch`, `runbook watch`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from IPython.display import display

from runbook_lib.diagnosis import snapshots
from runbook_lib.diagnosis.snapshots import RunSnapshot
from runbook_lib.model.finding import Status
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session, quiet_session
from runbook_lib.view import render
from runbook_lib.view.differences import Comparison


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
    if rb.context.recorded is not None:
        raise UsageError("this is a replay: it has one moment only, and nothing to compare it with")
    handle = display(render.text_block((), run=rb.opened), display_id=True)
    parameters = rb.context.parameters.model_dump(exclude_unset=True)
    with suppress(KeyboardInterrupt):
        for _, lines in watching(rb.context.section.number, every_s, **parameters):
            handle.update(render.text_block(lines, run=rb.opened))
