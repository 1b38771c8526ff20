"""A step's answer in the hands of whoever investigates: in a cell of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from runbook_lib.book import catalog
from runbook_lib.book.parameters import validate
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import Context, JudgeInput, open_context
from runbook_lib.model.finding import Finding, Frames, Status, Threshold, Value, judged, say
from runbook_lib.notebook.session import Session
from runbook_lib.sources.settings import Settings
from runbook_lib.store import record

STEP, WHO = "4.3.1", "alice"
LIMIT = Threshold("stuck", "rows", 1, 5)


def collect(rb: Context) -> Frames:
    """Frames: stuck (user_id: text; n: rows)."""
    return {"stuck": pd.DataFrame({"user_id": [WHO], "n": [len(rb.findings) + 3]})}


def judge(frames: Frames, given: JudgeInput) -> Finding:
    n = int(frames["stuck"]["n"].sum())
    signals = given.evidence("leases.left_behind")
    return judged(say("unknown.not_run"), [Value("stuck", n, "rows", LIMIT), Value("who", "x")], signals=signals)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A notebook's cells, with a session in `rb`."""
    monkeypatch.setattr("runbook_lib.notebook.session.checks", lambda: {STEP: Check(STEP, collect, judge)})
    section, config = catalog.load().sections["4.3"], Settings(targets={"here": {"nats_url": "nats://127.0.0.1:9"}})
    context = open_context(section, validate({"target": "here"}), config, catalog.load())
    shell = InteractiveShell.instance()
    shell.user_ns["rb"] = Session(context)
    yield shell
    InteractiveShell.clear_instance()


def cards(shell: InteractiveShell, source: str) -> int:
    """How many a cell shows."""
    with capture_output() as shown:
        shell.run_cell(source, store_history=True).raise_error()
    return sum(record.FINDING_MIME in output.data for output in shown.outputs)


def test_it_shows_itself_once_in_its_cell_and_again_where_it_is_asked_for(shell: InteractiveShell) -> None:
    assert cards(shell, f"rb.step('{STEP}')") == 1
    assert cards(shell, f"answer = rb.step('{STEP}')") == 1
    assert cards(shell, "answer") == 1
    assert cards(shell, "answer.status") == 0


def test_what_it_holds_is_plain_and_without_people(shell: InteractiveShell) -> None:
    cards(shell, f"answer = rb.step('{STEP}')")
    answer = shell.user_ns["answer"]
    assert answer.status is Status.WARNING
    assert answer.values.loc["stuck"].to_dict() == {
        "value": 3, "unit": "rows", "warning": 1, "critical": 5, "status": "WARNING"
    }  # fmt: skip
    assert answer.frames["stuck"]["user_id"].str.fullmatch("user-[0-9a-f]{8}").all()
    assert "stuck (user_id: text; n: rows)" in answer.about
    explained = answer.explain().set_index("about")["weight"]
    assert explained["delivery_worker"] > 0
    assert set(answer.explain()["observation"]) == {"leases.left_behind"}
    assert STEP in repr(answer)
    assert WHO not in repr(answer) + str(answer.frames) + answer.headline


def test_a_cell_that_changes_its_frames_does_not_change_the_evidence(shell: InteractiveShell) -> None:
    cards(shell, f"answer = rb.step('{STEP}')")
    cards(shell, "mine = answer.frames['stuck']; mine.loc[0, 'n'] = 99; mine.attrs['capped'] = True; mine['x'] = 1")
    (kept,) = shell.user_ns["rb"].findings[STEP].frames.values()
    assert [*kept["n"]] == [3] and "x" not in kept and not kept.attrs
    assert [*shell.user_ns["mine"]["n"]] == [99]


def test_it_follows_the_step(shell: InteractiveShell) -> None:
    cards(shell, f"answer = rb.step('{STEP}')")
    cards(shell, f"rb.step('{STEP}')")
    assert shell.user_ns["answer"].values.loc["stuck", "value"] == 4
