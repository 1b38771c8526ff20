"""What is shown until the verdict, and which sections start before it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from runbook_lib.book import catalog
from runbook_lib.checks.sample import Sample
from runbook_lib.cli.progress import ProgressDisplay
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.model.finding import Finding, Hop, Status, say
from runbook_lib.model.order import Order, RunProgress
from runbook_lib.runs import batch, investigation
from runbook_lib.runs.batch import Request
from runbook_lib.sources.settings import Settings
from runbook_lib.store import record
from runbook_lib.store.archive import Archive
from runbook_lib.store.run import Run


def found(step: str, *next_sections: str, status: Status = Status.CRITICAL, hops: int = 0) -> Finding:
    named = tuple(Hop(name, waiting=1.0) for name in catalog.load().hops[:hops])
    return Finding(step, status, say("response.needs_place"), next_sections=next_sections, hops=named)


@pytest.mark.parametrize("early", [False, True])
def test_a_section_starts_with_the_finding_that_names_it_and_only_section_3_names(
    early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {
        "3": [found("3.1"), found("3.2", "4.3", "4.1"), found("3.4", "4.3", "2")],
        "4.1": [found("4.1.1", "4.4", "5.1")],
        "4.3": [found("4.3.1")],
        "2": [found("2.1")],
    }
    events: list[str] = []

    def run_sections(requests: Iterable[Request], progress: Any, follow: Any) -> list[Run]:
        requests, results = list(requests), []
        for r in requests:
            own = sections[r.section]
            for finding in own:
                events.append(finding.step)
                requests += (more := follow(r.section, finding))
                events.extend(f"starts {m.section}" for m in more)
            results.append(Run(r.section, {}, [record.finding(f) for f in own], conclude(own, catalog.load())))
        return results

    monkeypatch.setattr(batch, "run_sections", run_sections)
    order = Order(("3",), str(tmp_path), target="t", incident="I", follow=True)
    config = Settings(targets={"t": {"database_url": "postgresql://u@127.0.0.1:1/d"}})
    # What the first numbers open begins before any finding.
    sample = Sample("3", pd.Timestamp("2026-01-31T03:00:00Z"), {}, sections=("4.3",))
    monkeypatch.setattr(investigation, "_take_sample", lambda *_: sample if early else None)
    archive, book = Archive(order.output, "I"), catalog.load()
    results, _ = investigation._run_order(archive, order, config, book, lambda *_: None, lambda *_: None)
    assert events[:4] == ["3.1", "3.2", *([] if early else ["starts 4.3"]), "starts 4.1", *(["3.4"] if early else [])]
    assert sorted(r.section for r in results) == ["2", "3", "4.1", "4.3"]


def test_progress_says_what_is_known_and_what_is_waited_for() -> None:
    told: list[RunProgress] = []
    progress = investigation.tell_progress(told.append, catalog.load())
    for finding in (None, found("3.1", hops=1), found("3.6"), found("3.2", hops=5)):
        progress("3", finding)
    assert [t.waits for t in told] == [f"Waiting for {step}" for step in ("3.1", "3.6", "3.2", "3.3")]
    assert [bool(t.strip) for t in told] == [False, False, False, True]  # the first numbers know more than one step
    assert "3 of 6 steps" in told[-1].strip[0] and told[-1].line.startswith("✖ 3.2")
    for step in catalog.load().sections["3"].steps[3:]:
        progress("3", found(step.id))
    assert told[-1].waits == "Waiting for the pages and the dossier"


STRIP = ("Provisional", "  hop", "  worker")


def test_a_pipe_gets_the_first_numbers_and_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(in_pipe=True)
    display.waits("Waiting")
    display.hear(RunProgress(first=STRIP))
    display.hear(RunProgress("3.1 late", "CRITICAL", STRIP, "Waiting for 3.2"))
    display.hear(RunProgress(first=STRIP))  # a step has said more
    display.end()
    silent = ProgressDisplay()
    silent.hear(RunProgress("3.1 late", "CRITICAL", STRIP, "Waiting for 3.2"))
    silent.end()
    assert capsys.readouterr().err.splitlines() == [*STRIP, "3.1 late"]


def test_a_terminal_shows_the_strip_once_below_the_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    display = ProgressDisplay()
    display.waits("Waiting")
    display.hear(RunProgress(first=STRIP))
    display.hear(RunProgress("3.1 late", "CRITICAL", STRIP, "Waiting for 3.2"))
    display.hear(RunProgress("3.2 stuck", "CRITICAL", STRIP, "Waiting for 3.3"))
    shown = capsys.readouterr().err
    assert _screen(shown) == ["3.1 late", "3.2 stuck", *STRIP, "Waiting for 3.3"]
    display.end()
    assert _screen(shown + capsys.readouterr().err) == ["3.1 late", "3.2 stuck"]


def _screen(written: str) -> list[str]:
    """Return the lines that a terminal shows: each write goes up some lines, and erases what is below."""
    lines: list[str] = []
    for up, text in re.findall(r"(?:\x1b\[(\d+)A)?\x1b\[J([^\x1b]*)", re.sub(r"\x1b\[(\?7[lh]|\d*m)", "", written)):
        lines = [*lines[: len(lines) - int(up or 0)], *text.splitlines()]
    return lines
