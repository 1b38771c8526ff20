"""How an action is carried out: refused without a word or a condition, written down whatever becomes of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command import runbook

from runbook_lib.actions.action import Action, ActionError, Word, perform
from runbook_lib.context import Context, Progress
from runbook_lib.model.finding import Reason, Status, Text, say
from runbook_lib.notes import keep_note
from runbook_lib.outcome import Outcome, Precondition
from runbook_lib.session import Session, quiet_session
from runbook_lib.sources import SourceError
from runbook_lib.store import ACTION_LOG, NOTES
from runbook_lib.usage import UsageError
from runbook_lib.view import record

WORD: Any = {"approved_by": "Aoki", "reason": "the worker hangs"}


class Counter:
    """An action on a number, which fails where it is told to."""

    name = "restart"

    def __init__(self, fails: str = "", holds: bool | None = True, works: bool = True) -> None:
        self.n, self.fails, self.holds, self.works = 0, fails, holds, works

    def what(self) -> dict[str, Any]:
        return {"workload": "counter"}

    def command(self) -> str:
        return "count"

    def preconditions(self, rb: Context) -> list[Precondition]:
        self._fail("preconditions")
        return [Precondition(say("action.restart.answers", source="postgres"), self.holds)]

    def state(self, rb: Context) -> dict[str, Any]:
        self._fail("state")
        return {"n": self.n}

    def run(self, rb: Context, word: Word, progress: Progress) -> dict[str, Any]:
        self._fail("run")
        if self.fails == "halfway":
            self.n += 1
            raise ActionError("stopped at user_id=alice")
        if self.fails == "interrupted":
            raise KeyboardInterrupt
        self.n += 1
        return {"counted": 1}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        self._fail("verify")
        assert did == {"counted": 1}
        return self.works, say("action.restart.idle", name="counter")

    def _fail(self, where: str) -> None:
        if self.fails == where:
            raise SourceError("workloads", Reason.UNREACHABLE, "no route to password=hunter2")


@pytest.fixture
def rb(embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:  # type: ignore[no-untyped-def]
    for name in list(os.environ):
        if name.startswith("RUNBOOK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", embedded.database_url)
    monkeypatch.setenv("RUNBOOK_NATS_URL", embedded.nats_url)
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path))
    return quiet_session("5.1", incident_id="A-1", wait_s=5).context


def lines(rb: Context) -> list[dict[str, Any]]:
    return rb.archive.lines(ACTION_LOG)


def test_done_has_two_lines_and_was_seen_to_work(rb: Context) -> None:
    counter: Action = Counter()
    outcome = perform(counter, rb, execute=True, **WORD)
    assert (outcome.result, outcome.verified, outcome.status) == ("done", True, Status.OK)
    begun, done = lines(rb)
    assert (begun["result"], done["result"]) == ("begun", "done")
    assert begun["id"] == done["id"] == outcome.id
    assert (done["before"], done["after"], done["did"]) == ({"n": 0}, {"n": 1}, {"counted": 1})
    assert done["who"] and done["approved_by"] == "Aoki" and done["reason"] == "the worker hangs"
    assert done["effect"]["en"] and done["effect"]["ja"]


def test_without_execute_nothing_is_done(rb: Context) -> None:
    counter = Counter()
    assert perform(counter, rb, **WORD).result == "dry"
    assert counter.n == 0
    assert [line["result"] for line in lines(rb)] == ["dry"]


@pytest.mark.parametrize(
    ("counter", "word", "says"),
    [
        (Counter(), {"reason": "because of it"}, "approved_by"),
        (Counter(), {"approved_by": "Aoki"}, "reason"),
        (Counter(holds=False), WORD, "does not hold"),
        (Counter(holds=None), WORD, "could not be seen"),
        (Counter(fails="preconditions"), WORD, "no route"),
        (Counter(fails="state"), WORD, "no route"),
    ],
    ids=["no-approval", "no-reason", "does-not-hold", "not-seen", "nobody-answers", "no-state"],
)
def test_a_refusal_changes_nothing_and_is_a_line(rb: Context, counter: Counter, word: Any, says: str) -> None:
    outcome = perform(counter, rb, execute=True, **word)
    assert (outcome.result, outcome.status, counter.n) == ("refused", Status.CRITICAL, 0)
    (line,) = lines(rb)
    assert line["result"] == "refused" and says in line["why"]["en"]
    assert "hunter2" not in json.dumps(line)


def test_a_run_that_nobody_attends_is_refused(rb: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_UNATTENDED", "1")
    counter = Counter()
    assert perform(counter, rb, execute=True, **WORD).result == "refused"
    assert counter.n == 0 and "nobody attends" in lines(rb)[0]["why"]["en"]


@pytest.mark.parametrize("fails", ["run", "halfway"])
def test_a_failure_keeps_what_was_seen(rb: Context, fails: str) -> None:
    outcome = perform(Counter(fails=fails), rb, execute=True, **WORD)
    assert (outcome.result, outcome.status) == ("failed", Status.CRITICAL)
    begun, failed = lines(rb)
    assert (begun["result"], failed["result"]) == ("begun", "failed")
    assert failed["after"] == {"n": 1 if fails == "halfway" else 0}
    assert "alice" not in json.dumps(failed) and "hunter2" not in json.dumps(failed)


def test_an_interrupt_is_a_line_and_goes_on(rb: Context) -> None:
    with pytest.raises(KeyboardInterrupt):
        perform(Counter(fails="interrupted"), rb, execute=True, **WORD)
    assert [line["result"] for line in lines(rb)] == ["begun", "failed"]


@pytest.mark.parametrize("counter", [Counter(works=False), Counter(fails="verify")], ids=["absent", "unseen"])
def test_an_effect_that_is_not_there_is_critical(rb: Context, counter: Counter) -> None:
    outcome = perform(counter, rb, execute=True, **WORD)
    assert (outcome.result, outcome.verified, outcome.status) == ("done", False, Status.CRITICAL)


def test_what_cannot_be_written_down_is_not_done(rb: Context) -> None:
    rb.archive.prepare()
    assert rb.archive.local
    (rb.archive.local / ACTION_LOG).mkdir()
    counter = Counter()
    outcome = perform(counter, rb, execute=True, **WORD)
    assert (outcome.result, counter.n) == ("refused", 0)
    assert "action log" in record.text(outcome.why)["en"]


def test_the_outcome_is_evidence(rb: Context) -> None:
    outcome = perform(Counter(), rb, execute=True, **WORD)
    assert isinstance(outcome, Outcome)
    frames = outcome.frames("ja")
    assert list(frames["preconditions"]["holds"]) == [True]
    assert frames["changes"].to_dict("records") == [{"name": "n", "before": 0, "after": 1}]
    assert frames["outcome"].loc[0, "why_ja"]


def test_a_changed_journal_is_found(rb: Context) -> None:
    perform(Counter(), rb, execute=True, **WORD)
    keep_note(rb.archive, "called the operator", "aoki")
    assert rb.archive.problems() == []
    assert rb.archive.local
    for name in (ACTION_LOG, NOTES):
        path = rb.archive.local / name
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b'"previous": null', b'"previous": "0"'))
        assert any(name in p.params.values() for p in rb.archive.problems())
        path.write_bytes(whole)


def test_an_unknown_action_and_an_empty_note_are_one_line(rb: Context) -> None:
    with pytest.raises(UsageError, match="did you mean 'restart'"):
        Session(rb).act("restrt")
    with pytest.raises(UsageError, match="nats"):
        Session(rb).act("restart", workload="nats")
    with pytest.raises(UsageError, match="empty"):
        Session(rb).note("  ")


def test_the_command_writes_notes_and_shows_them(rb: Context, tmp_path: Path) -> None:
    for arguments in (["note", "A-1", "password=hunter2 <b>did not help</b>", "--new"], ["dossier", "A-1"]):
        done = runbook(*arguments, "--output", str(tmp_path), env=os.environ)
        assert done.returncode == 0, done.stderr
    page = (tmp_path / "A-1" / "index.html").read_text(encoding="utf-8")
    assert "hunter2" not in page and "<b>did" not in page and "did not help" in page
