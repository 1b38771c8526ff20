"""The first numbers, the samples that sections share, and what is shown until the verdict."""

from __future__ import annotations

import re
import stat
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book import catalog
from runbook_lib.checks import samples
from runbook_lib.cli.progress import ProgressDisplay
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.model.finding import Finding, Frames, Hop, Reason, Status, say
from runbook_lib.model.order import Order, RunProgress
from runbook_lib.packs.entitlement import first_look
from runbook_lib.packs.entitlement.checks import delivery
from runbook_lib.privacy.masking import Masker
from runbook_lib.runs import batch, investigation
from runbook_lib.runs.batch import Request
from runbook_lib.sources.logs import Log, LogEntry
from runbook_lib.sources.settings import Settings
from runbook_lib.sources.source import ReadCost, SourceError
from runbook_lib.store import record
from runbook_lib.store.archive import Archive
from runbook_lib.store.run import Run

NOW = pd.Timestamp("2026-01-31T03:00:00Z")


def ago(seconds: float) -> pd.Timestamp:
    return NOW - pd.Timedelta(seconds=seconds)


@given(ages=st.sets(st.integers(1, 80), max_size=5))
def test_the_newest_sample_that_is_old_enough_is_taken_and_none_too_old(
    tmp_path_factory: pytest.TempPathFactory, ages: set[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(samples.FOLDER, str(tmp_path_factory.mktemp("samples")))
        for tenths in ages:
            samples.keep("delivery", ago(tenths / 10), {"held": pd.DataFrame({"n": [tenths]})})
        at, frames = samples.earlier("delivery", NOW, 2.5, 5.0)
        usable = [n for n in ages if n <= 50]
        expected = min((n for n in usable if n >= 25), default=max(usable, default=None))
        assert (at and list(frames["held"]["n"])) == (expected and [expected])
        assert samples.earlier("processes", NOW, 2.5, 5.0) == (None, {})


@pytest.mark.parametrize(
    ("hops", "sections"),
    [
        ((Hop("relay", oldest_s=600), Hop("delivery_worker", oldest_s=1)), ("4.1",)),
        ((Hop("relay"), Hop("delivery_worker", oldest_s=600)), ("4.1", "4.3")),
        ((Hop("relay", oldest_s=0), Hop("subscriber", oldest_s=600), Hop("delivery_worker")), ()),
    ],
)
def test_rows_that_are_late_by_the_first_numbers_open_their_sections(
    hops: tuple[Hop, ...], sections: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_look.sections_of_late_hops(hops, catalog.load()) == sections
    monkeypatch.setenv(samples.FOLDER, str(tmp_path))
    assert samples.sections_before(str(tmp_path)) == samples.sections_before("") == []
    samples.keep_sections(sections)
    assert samples.sections_before(str(tmp_path)) == [*sections]


def test_samples_that_a_full_disk_does_not_take_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(samples.FOLDER, str(tmp_path))
    monkeypatch.setattr(samples, "write_whole", Mock(side_effect=OSError(28, "No space left on device")))
    samples.keep_sections(["4.1"])
    samples.keep("delivery", ago(1), {"held": pd.DataFrame({"n": [1]})})
    assert samples.sections_before(str(tmp_path)) == []
    assert samples.earlier("delivery", NOW, 2.5, 5.0) == (None, {})


ENTRY = LogEntry(NOW.to_pydatetime(), "ERROR", "failed", "a.BException: user_id=user-12345678", ("c.DException",))


@pytest.fixture
def cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReadCost:
    """The read cost of a section whose run shares its samples."""
    monkeypatch.setenv(samples.FOLDER, str(tmp_path))
    return ReadCost(Masker.of([], "INC-1"))


def test_the_sections_of_a_run_read_a_log_once(cost: ReadCost, tmp_path: Path) -> None:
    begun, reads, log = Event(), list[str](), Log((ENTRY, replace(ENTRY, time=None, above=())), 7, NOW.to_pydatetime())

    def read() -> Log:
        reads.append("read")
        begun.set()
        time.sleep(0.2)  # the other section asks meanwhile
        return log

    with ThreadPoolExecutor() as sections:
        first = sections.submit(samples.log, "notification", 60, read, cost)
        begun.wait(5)
        second = sections.submit(samples.log, "notification", 60.0, read, cost)
        assert first.result() == second.result() == log and reads == ["read"]
    assert [(q.name, q.rows) for q in cost.queries] == [("logs", 7)] and "another section" in cost.queries[0].text
    # Masked again, with the frame that it becomes a part of, a person keeps the token.
    assert cost.masker.scrub(ENTRY.error) == ENTRY.error
    assert {stat.S_IMODE(f.stat().st_mode) for f in tmp_path.glob("*.log")} == {0o600}
    assert samples.log("notification", 15, read, cost) == log and len(reads) == 2, "of other minutes"


def test_a_log_that_cannot_be_read_is_not_read_again(cost: ReadCost, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = list[SourceError]()

    def read() -> Log:
        tries.append(SourceError("workloads", Reason.TIMEOUT, "it did not end", "hung"))
        raise tries[-1]

    for _ in range(2):
        with pytest.raises(SourceError) as e:
            samples.log("notification", 60, read, cost)
        assert vars(e.value) == vars(tries[0])
    assert len(tries) == 1
    monkeypatch.delenv(samples.FOLDER)
    with pytest.raises(SourceError):
        samples.log("notification", 60, read, cost)
    assert len(tries) == 2, "without a folder nothing is shared"


def sample(at: float, sent: float, claimed: float, held: list[str], tries: dict[int, int]) -> Frames:
    """A sample of the delivery worker; its times are seconds ago."""
    return {
        "activity": pd.DataFrame([{"now": ago(at), "last_sent": ago(sent), "last_claim": ago(claimed)}]),
        "held": pd.DataFrame(
            [{"now": ago(at), "notification_id": n, "locked_by": "w", "locked_at": ago(60)} for n in held],
            columns=["now", "notification_id", "locked_by", "locked_at"],
        ),
        "attempts": pd.DataFrame(
            [{"attempt_count": a, "n": n} for a, n in tries.items()], columns=["attempt_count", "n"]
        ),
    }


states = st.builds(
    sample,
    at=st.just(0.0),
    sent=st.sampled_from([30.0, 40.0]),
    claimed=st.sampled_from([30.0, 40.0]),
    held=st.lists(st.sampled_from("ab"), unique=True),
    tries=st.dictionaries(st.integers(1, 2), st.integers(1, 2)),
)


@given(first=states, second=states)
def test_a_sample_of_an_earlier_step_shows_the_same_progress_as_one_of_its_own(first: Frames, second: Frames) -> None:
    first["activity"] = first["activity"].assign(now=ago(2.5))
    backlog = {"backlog": pd.DataFrame([{"due": 3.0, "oldest_due_s": 60.0}])}
    own = delivery.read_delivery(backlog | first | {f"{n}_later": f for n, f in second.items()})
    shared = delivery.read_delivery(backlog | second | {f"{n}_earlier": f for n, f in first.items()})
    assert (own.moved, own.accepted, own.apart_s) == (shared.moved, shared.accepted, shared.apart_s)
    assert own.moved is not None and delivery.read_delivery(backlog | second).moved is None


def found(step: str, *next_sections: str, status: Status = Status.CRITICAL, hops: int = 0) -> Finding:
    named = tuple(Hop(name, waiting=1.0) for name in catalog.load().hops[:hops])
    return Finding(step, status, say("response.needs_place"), next_sections=next_sections, hops=named)


def test_a_section_starts_with_the_finding_that_names_it_and_only_section_3_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    results, _ = investigation._run_order(Archive(order.output, "I"), order, config, catalog.load(), lambda *_: None)
    assert events[:4] == ["3.1", "3.2", "starts 4.3", "starts 4.1"] and events.count("starts 4.3") == 1
    assert [r.section for r in results] == ["3", "4.3", "4.1", "2"]


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
    display.first_numbers(STRIP)
    display.hear(RunProgress("3.1 late", "CRITICAL", STRIP, "Waiting for 3.2"))
    display.first_numbers(STRIP)  # a step has said more
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
    display.first_numbers(STRIP)
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
