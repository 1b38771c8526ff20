"""How an action is carried out: refused without a word or a condition, written down whatever becomes of it."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from runbook_lib.actions import action
from runbook_lib.actions.action import Action, ActionError, frames_of, perform
from runbook_lib.checks.context import Context
from runbook_lib.dossier import overview, report
from runbook_lib.governance.ledger import Ledger
from runbook_lib.model.finding import Status
from runbook_lib.model.outcome import Outcome, Precondition
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session, quiet_session
from runbook_lib.packs.entitlement.actions.canary import Canary
from runbook_lib.packs.entitlement.actions.restart import check_cooldown
from runbook_lib.sources import settings
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION, LOG, Archive, Kind, OutputError
from runbook_lib.store.lines import read_logs
from tests.kit.actions import WORD, Counter, was_done
from tests.kit.command import runbook
from tests.kit.dossiers import LINES
from tests.kit.schemas import valid


@pytest.fixture
def rb(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A target whose servers no test here asks."""
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", "postgresql://runbook@127.0.0.1:1/d")
    monkeypatch.setenv("RUNBOOK_NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path))
    return quiet_session("5.1", incident_id="A-1", wait_s=5).context


def lines(rb: Context) -> list[dict[str, Any]]:
    return [valid(line, "action") for line in rb.archive.lines(ACTION)]


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
        (Counter(holds=None), WORD, "could not be checked"),
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


def test_an_action_is_refused_if_the_state_before_it_is_not_read_in_time(
    rb: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(rb: Context) -> list[Precondition]:
        while True:
            with suppress(Exception):  # as a library may
                re.fullmatch(r"(?:a|a)*b", "a" * 40)

    counter, before = Counter(), (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0] > 0)
    monkeypatch.setattr(counter, "preconditions", read)
    monkeypatch.setattr(action, "READ_S", 0.2)
    outcome = perform(counter, rb, execute=True, **WORD)
    assert (outcome.result, counter.n) == ("refused", 0) and "not read within" in lines(rb)[0]["why"]["en"]
    assert before == (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0] > 0)


def test_what_only_warns_is_carried_out_unseen_and_refused_where_it_does_not_hold(rb: Context) -> None:
    counter = Counter(holds=None, warns=True)
    dry = perform(counter, rb, **WORD)
    assert (dry.result, dry.status, counter.n) == ("dry", Status.WARNING, 0)
    assert "which does not stop the action: postgres answers" in lines(rb)[0]["why"]["en"]
    assert list(frames_of(dry)["preconditions"]["warns"]) == [True]
    done = perform(counter, rb, execute=True, **WORD)
    assert (done.result, done.status, counter.n) == ("done", Status.OK, 1)
    assert [p["ok"] for line in lines(rb) for p in line["preconditions"]] == [None] * 3
    counter = Counter(holds=False, warns=True)
    assert perform(counter, rb, execute=True, **WORD).result == "refused" and counter.n == 0


def test_a_run_that_nobody_attends_is_refused(rb: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_UNATTENDED", "1")
    counter = Counter()
    assert perform(counter, rb, execute=True, **WORD).result == "refused"
    assert counter.n == 0 and "unattended" in lines(rb)[0]["why"]["en"]


@pytest.mark.parametrize("fails", ["run", "halfway"])
def test_a_failure_keeps_what_was_seen(rb: Context, fails: str) -> None:
    outcome = perform(Counter(fails=fails), rb, execute=True, **WORD)
    assert (outcome.result, outcome.status) == ("failed", Status.CRITICAL)
    begun, failed = lines(rb)
    assert (begun["result"], failed["result"]) == ("begun", "failed")
    assert failed["after"] == {"n": 1 if fails == "halfway" else 0}
    assert "alice" not in json.dumps(failed) and "hunter2" not in json.dumps(failed)


def test_a_failure_keeps_what_was_done_before_it(rb: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    class Steps(Counter):
        did: Mapping[str, Any] = {"first": "accepted"}

    for fails in ("run", "halfway", "run-broken"):
        assert perform(Steps(fails=fails), rb, execute=True, **WORD).did == {"first": "accepted"}
    assert lines(rb)[-1]["did"] == {"first": "accepted"}

    def send(self: Canary, rb: Context, step: str, *rest: Any) -> str:
        if step == "revoke":
            raise ActionError("the API answered the revoke with HTTP 500")
        return "accepted"

    monkeypatch.setattr(Canary, "preconditions", lambda self, rb: [])
    monkeypatch.setattr(Canary, "_read_events", lambda self, rb: ["7"])
    monkeypatch.setattr(Canary, "_send_request", send)
    facts = rb.facts.model_copy(update={"canary_user": "test-account"})
    canary = Canary(replace(rb, target=rb.target.model_copy(update={"facts": facts})))
    outcome = perform(canary, rb, execute=True, **WORD)
    assert (outcome.result, outcome.did) == ("failed", {"before": ["7"], "grant": "accepted"})


def test_an_interrupt_while_the_effect_is_waited_for_is_a_line_and_goes_on(rb: Context) -> None:
    with pytest.raises(KeyboardInterrupt):
        perform(Counter(fails="verify-interrupted"), rb, execute=True, **WORD)
    begun, done = lines(rb)
    assert (begun["result"], done["result"], done["verified"]) == ("begun", "done", None)
    assert done["effect"]["en"] == "interrupted before the check: the effect is not known" and done["effect"]["ja"]
    assert (done["did"], done["after"]) == ({"counted": 1}, {"n": 1})
    (told,) = (a for a in read_logs(rb.archive).actions if a.result == "done")
    assert report._summarise_action(told).helped is None, "neither helped nor did not"
    overview.write_index(rb.archive)
    page = rb.archive.read("index.html").decode()
    assert "the effect is not known" in page
    assert re.search(r'<td>n</td><td class="n">0</td><td class="n">1</td>', page), "before and after, side by side"


def test_an_interrupt_is_a_line_and_goes_on_also_where_the_state_can_not_be_seen(rb: Context) -> None:
    class Stubborn(Counter):
        def state(self, rb: Context) -> dict[str, Any]:
            if self.n:
                raise KeyboardInterrupt
            return super().state(rb)

    for fails, result, after in (
        ("interrupted", "failed", {"n": 0}),
        ("halfway-interrupted", "failed", {"unseen": "interrupted"}),
        ("verify-interrupted", "done", {"unseen": "interrupted"}),
        ("", "done", {"unseen": "interrupted"}),
    ):
        with pytest.raises(KeyboardInterrupt):
            perform(Stubborn(fails=fails), rb, execute=True, **WORD)
        begun, ended = lines(rb)[-2:]
        assert (begun["result"], ended["result"], ended["after"]) == ("begun", result, after)


@pytest.mark.parametrize(
    ("fails", "results", "n"),
    [
        ("run-broken", ["begun", "failed"], 0),
        ("verify-broken", ["begun", "done"], 1),
        ("preconditions-broken", ["refused"], 0),
        ("state-broken", ["refused"], 0),
    ],
)
def test_an_unexpected_error_is_a_line_and_no_traceback(
    rb: Context, monkeypatch: pytest.MonkeyPatch, fails: str, results: list[str], n: int
) -> None:
    counter = Counter(fails=fails)
    outcome = perform(counter, rb, execute=True, **WORD)
    assert (outcome.result, outcome.status, counter.n) == (results[-1], Status.CRITICAL, n)
    assert [line["result"] for line in lines(rb)] == results
    last = json.dumps(lines(rb)[-1])
    assert "TypeError: unexpected for user_id=user-" in last and "alice" not in last
    monkeypatch.setenv("RUNBOOK_DEBUG", "1")
    with pytest.raises(TypeError):
        perform(Counter(fails=fails), rb, execute=True, **WORD)
    again = results if n or fails == "run-broken" else []
    assert [line["result"] for line in lines(rb)] == results + again, "what was begun is written down all the same"


@pytest.mark.parametrize("counter", [Counter(works=False), Counter(fails="verify")], ids=["absent", "unseen"])
def test_an_effect_that_is_not_there_is_critical(rb: Context, counter: Counter) -> None:
    outcome = perform(counter, rb, execute=True, **WORD)
    assert (outcome.result, outcome.verified, outcome.status) == ("done", False, Status.CRITICAL)


def ruled(rb: Context, **rules: Any) -> Context:
    return replace(rb, target=rb.target.model_copy(update=rules))


def begun(n: int = 0, **changes: Any) -> bytes:
    about = {"id": f"{n:012x}", "time": f"2026-01-31T03:00:0{n}+00:00", "result": "begun", "what": {"name": "x"}}
    return json.dumps(LINES[ACTION] | {"kind": ACTION} | about | changes).encode() + b"\n"


#: Second lines of a log that are no lines of an action; the last one of a log may be cut off.
UNREADABLE = {
    "not-json": b"not JSON\n",
    "no-table": b"[]\n",
    "half-written": begun(1)[:-20],
    "no-id": begun(1, id=None),
    "no-time": begun(1, time=7),
    "nan-time": begun(1, time="NaT"),
    "no-result": begun(1, result=["done"]),
    "unknown-result": begun(1, result="begum"),
    "no-what": begun(1, what="restart"),
    "no-job": begun(1, job=3),
    "no-why": begun(1, why="-"),
    "no-kind": begun(1, kind=None),
    "unknown-kind": begun(1, kind="removed"),
    "list-as-kind": begun(1, kind=[ACTION]),
    "another-kind": begun(1, kind="note"),
    "future": begun(1, time="2999-01-01T00:00:00+00:00"),
}


@pytest.mark.parametrize("rules", [{}, {"approval": True}], ids=["alone", "approval"])
@pytest.mark.parametrize("log", ["ledger", "incident"])
@pytest.mark.parametrize("line", UNREADABLE.values(), ids=UNREADABLE)
def test_a_line_that_cannot_be_read_stops_what_rests_on_past_actions(
    rb: Context, line: bytes, log: str, rules: dict[str, Any]
) -> None:
    archive = Ledger(rb).archive if log == "ledger" else rb.archive
    archive.prepare()
    archive.write(LOG, begun() + line)
    counter = Counter()
    for execute in (False, True):
        outcome = perform(counter, ruled(rb, **rules), execute=execute, **WORD)
        assert (outcome.result, counter.n) == ("refused" if execute else "dry", 0)
        said = record.text(outcome.why)["en"]
        where = f"{archive.place}/{LOG}: " if line != UNREADABLE["future"] else "clock is behind a line"
        assert where in said and "\n" not in said and (None in [p.ok for p in outcome.preconditions])
    archive.write(LOG, begun())
    assert perform(counter, rb, execute=True, **WORD).result == "done"


def test_a_ledger_of_an_earlier_version_stops_every_action_until_it_is_moved_away(rb: Context) -> None:
    archive, counter = Ledger(rb).archive, Counter()
    archive.make()
    archive.write("actions.jsonl", begun())
    refused = perform(counter, rb, execute=True, **WORD)
    assert refused.result == "refused" and "written by version 0.6" in record.text(refused.why)["en"]
    assert (archive.read_or_none(LOG), archive.read("actions.jsonl"), counter.n) == (None, begun(), 0)
    archive._remove_file("actions.jsonl")
    assert perform(counter, rb, execute=True, **WORD).result == "done"


@pytest.mark.parametrize("log", ["ledger", "incident"])
@pytest.mark.parametrize("breaks", ["folder", "file"])
def test_a_log_that_cannot_be_read_or_written_stops_every_action(rb: Context, log: str, breaks: str) -> None:
    archive = Ledger(rb).archive if log == "ledger" else rb.archive
    archive.prepare()
    folder = archive.local
    assert folder
    if breaks == "folder":
        (folder / LOG).mkdir()
    else:
        shutil.rmtree(folder)
        folder.write_text("")
    counter = Counter()
    with suppress(OutputError):  # without the incident's folder not even a refusal can be written
        outcome = perform(counter, rb, execute=True, **WORD)
        assert outcome.result == "refused" and str(folder) in record.text(outcome.why)["en"]
    assert counter.n == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk is full"), UsageError("disk is full")])
def test_a_ledger_that_cannot_be_written_stops_the_action(
    rb: Context, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    counter, add = Counter(), Archive.add_line

    def fails(self: Archive, kind: Kind, entry: dict[str, Any], *more: Any) -> Any:
        if self.output == rb.target.ledger and entry["result"] == failing:
            raise error
        return add(self, kind, entry, *more)

    monkeypatch.setattr(Archive, "add_line", fails)
    for failing, result in (("begun", "refused"), ("done", "done")):  # noqa: B007
        outcome = perform(counter, rb, execute=True, **WORD)
        said = record.text(outcome.why)["en"]
        assert (outcome.result, counter.n, lines(rb)[-1]["result"]) == (result, int(result == "done"), result)
        assert "disk is full" in said and "ledger" in said and "--output" not in said, said


def test_an_interrupt_before_the_first_line_begins_nothing(rb: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    with monkeypatch.context() as slow:
        slow.setattr(action, "_write_line", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            perform(counter, rb, execute=True, **WORD)
    assert counter.n == 0 and Ledger(rb).read() == []
    assert perform(counter, rb, execute=True, **WORD).result == "done" and counter.n == 1


@pytest.mark.parametrize(
    ("minutes_ago", "result", "holds"),
    [
        *((0.5, result, False) for result in ("begun", "done", "failed")),
        (1.1, "done", True),
        (0.5, "approved", True),
        (0.5, "refused", True),
    ],
)
def test_the_same_action_was_not_done_minutes_ago(rb: Context, minutes_ago: float, result: str, holds: bool) -> None:
    was_done(rb, minutes_ago, result, incident="B-2", what={"name": "notification"})
    assert [p.ok for p in check_cooldown(rb, "notification")] == [holds]
    assert [p.ok for p in check_cooldown(rb, "entitlement")] == [True]


def test_the_ledger_is_that_of_the_target_and_not_of_an_output(rb: Context) -> None:
    assert perform(Counter(), rb, execute=True, **WORD).result == "done"
    kept = Ledger(rb).archive
    begun, done = kept.lines(ACTION)
    assert (begun["result"], done["result"], begun["place"]) == ("begun", "done", rb.archive.place)
    assert begun["id"] == done["id"] == lines(rb)[0]["id"] and kept.problems() == []
    assert not kept.place.startswith(rb.archive.output), "beside no output"


def test_nothing_is_carried_out_past_the_ledger() -> None:
    """An action is run in one place, which command, notebook, JupyterLab and receiver reach by `perform` alone."""
    root = Path(action.__file__).parents[1]
    trees = {path.relative_to(root).as_posix(): ast.parse(path.read_text("utf-8")) for path in root.rglob("*.py")}
    calls = [(name, node) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    run = [name for name, call in calls if re.fullmatch(r"action\.run\(rb, .*", ast.unparse(call))]
    may_execute = [
        name
        for name, call in calls
        if ast.unparse(call.func).endswith("perform") and "execute" in {word.arg for word in call.keywords}
    ]
    assert (run, may_execute) == (["actions/action.py"], ["notebook/session.py"])


def test_where_a_ledger_is(
    no_settings: None, tmp_path: Path, state_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("RUNBOOK_NATS_URL", "nats://127.0.0.1")
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path / "elsewhere"))
    assert settings.load().target("default").ledger == str(state_home / "runbook" / "ledger")
    monkeypatch.setenv("RUNBOOK_LEDGER", "s3://ledgers/runbook")
    assert settings.load().target("default").ledger == "s3://ledgers/runbook"
    written = {"x": "", "y": 'ledger = "of-y"', "z": 'ledger = "s3://ledgers/z"', "w": 'ledger = "/var/lib/w"'}
    tables = "".join(f'[targets.{n}]\nnats_url = "nats://127.0.0.1"\n{more}\n' for n, more in written.items())
    (work / "runbook.toml").write_text(tables)
    where = {"x": str(work / "runbook-ledger"), "y": str(work / "of-y"), "z": "s3://ledgers/z", "w": "/var/lib/w"}
    assert {n: settings.load().target(n).ledger for n in written} == where
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNBOOK_CONFIG", str(work / "runbook.toml"))
    assert {n: settings.load().target(n).ledger for n in written} == where, "also from another folder"


def test_the_outcome_is_evidence(rb: Context) -> None:
    outcome = perform(Counter(), rb, execute=True, **WORD)
    assert isinstance(outcome, Outcome)
    frames = frames_of(outcome)
    assert list(frames["preconditions"]["holds"]) == [True]
    assert frames["changes"].to_dict("records") == [{"name": "n", "before": 0, "after": 1}]
    assert frames["outcome"].loc[0, "why_ja"]


def test_an_unknown_action_and_an_empty_note_are_one_line(rb: Context) -> None:
    with pytest.raises(UsageError, match="did you mean 'restart'"):
        Session(rb).act("restrt")
    with pytest.raises(UsageError, match="nats"):
        Session(rb).act("restart", workload="nats")
    with pytest.raises(UsageError, match=r"restart: .*'worklod'"):
        Session(rb).act("restart", worklod="relay")
    with pytest.raises(UsageError, match="empty"):
        Session(rb).note("  ")


def test_the_command_writes_notes_and_shows_them(rb: Context, tmp_path: Path) -> None:
    for arguments in (["note", "A-1", "password=hunter2 <b>did not help</b>", "--new"], ["dossier", "A-1"]):
        done = runbook(*arguments, "--output", str(tmp_path), env=os.environ)
        assert done.returncode == 0, done.stderr
    page = (tmp_path / "A-1" / "index.html").read_text(encoding="utf-8")
    assert "hunter2" not in page and "<b>did" not in page and "did not help" in page


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--break-glass", ["act", "restart", "notification", "--break-glass"]),
        ("--key-file", ["act", "restart", "notification", "--key-file", "key.pem"]),
        ("--approval", ["act", "restart", "notification", "--approval", "approval:A-1:x"]),
        ("--key-file", ["approve", "request:A-1:x", "--key-file", "key.pem"]),
        ("--signed", ["archive", "verify", "A-1", "--signed"]),
        ("--format", ["run", "2", "--format", "nagios"]),
        ("account", ["account", "--json"]),
        ("diff", ["archive", "diff", "A-1"]),
        ("retain", ["archive", "retain", "--execute"]),
        ("erase", ["erase", "anna"]),
    ],
)
def test_an_option_that_has_gone_says_what_to_do_instead(rb: Context, option: str, arguments: list[str]) -> None:
    done = runbook(*arguments, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (64, "", 1)
    assert done.stderr.startswith(f"runbook: {option} has gone: ")
    with pytest.raises(UsageError, match="--break-glass has gone: "):
        Session(rb).act("restart", break_glass=True)
