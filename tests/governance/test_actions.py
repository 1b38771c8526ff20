"""How an action is carried out: refused without a word or a condition, written down whatever becomes of it."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from runbook_lib.actions import action
from runbook_lib.actions.action import Action, ActionError, frames_of, perform
from runbook_lib.checks.context import Context
from runbook_lib.dossier import overview, report
from runbook_lib.governance import freeze, ledger
from runbook_lib.model.finding import Status
from runbook_lib.model.outcome import Outcome, Precondition
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session, quiet_session
from runbook_lib.packs.entitlement.actions.canary import Canary
from runbook_lib.packs.postmortem.timeline import _read_action
from runbook_lib.sources import settings
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION_LOG, Archive
from runbook_lib.store.lines import read_logs
from runbook_lib.view import render
from tests.kit.actions import WORD, Counter, around, was_done
from tests.kit.command import runbook
from tests.kit.schemas import valid


@pytest.fixture
def rb(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A target whose servers no test here asks."""
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", "postgresql://runbook@127.0.0.1:1/d")
    monkeypatch.setenv("RUNBOOK_NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path))
    return quiet_session("5.1", incident_id="A-1", wait_s=5).context


def lines(rb: Context) -> list[dict[str, Any]]:
    return [valid(line, "action") for line in rb.archive.lines(ACTION_LOG)]


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


@pytest.mark.parametrize(
    ("rules", "says"), [({}, "action log"), ({"actions_per_hour": 1}, "last hour could not be read")]
)
def test_what_cannot_be_written_down_is_not_done_and_not_counted(rb: Context, rules: dict[str, int], says: str) -> None:
    rb.archive.prepare()
    assert rb.archive.local
    (rb.archive.local / ACTION_LOG).mkdir()
    limited, counter = ruled(rb, **rules), Counter()
    outcome = perform(counter, limited, execute=True, **WORD)
    assert (outcome.result, counter.n) == ("refused", 0) and says in record.text(outcome.why)["en"]
    (rb.archive.local / ACTION_LOG).rmdir()
    assert perform(counter, limited, execute=True, **WORD).result == "done" and counter.n == 1


# The rules of the target -------------------------------------------------------------------------------------

CHRISTMAS = "2026-12-24T00:00+09:00/2026-12-27T00:00+09:00"
WEEKEND = "Fri 18:00/Mon 08:00 Asia/Tokyo"
EARLY = "Sun 02:30/Sun 06:00 Europe/Berlin"
LATE = "Sat 22:00/Sun 02:30 Europe/Berlin"


@pytest.mark.parametrize(
    ("windows", "begin", "end"),
    [
        ([CHRISTMAS], "2026-12-23T15:00Z", "2026-12-26T15:00Z"),
        ([WEEKEND], "2026-11-27T09:00Z", "2026-11-29T23:00Z"),
        (["Mon 09:00/Mon 10:00 UTC"], "2026-11-30T09:00Z", "2026-11-30T10:00Z"),
        (["Sat 22:00/Sun 06:00 Europe/Berlin"], "2026-03-28T21:00Z", "2026-03-29T04:00Z"),  # summer time begins in it
        ([WEEKEND, CHRISTMAS], "2026-12-23T15:00Z", "2026-12-27T23:00Z"),  # one leads into the other
        # The clocks go back at 01:00Z: 02:30 comes twice, and the window goes on from the first to its end.
        ([EARLY], "2026-10-25T00:30Z", "2026-10-25T05:00Z"),
        ([LATE], "2026-10-24T20:00Z", "2026-10-25T01:30Z"),
        (["Sun 02:10/Sun 02:40 Europe/Berlin"], "2026-10-25T00:10Z", "2026-10-25T01:40Z"),
        # They go forward at 01:00Z: nothing is between 02:00 and 03:00, and what begins or ends there does so then.
        ([EARLY], "2026-03-29T01:00Z", "2026-03-29T04:00Z"),
        ([LATE], "2026-03-28T21:00Z", "2026-03-29T01:00Z"),
        # A week that is an hour longer, in a window that is almost all of it.
        (["Sun 03:00/Sun 02:00 Europe/Berlin"], "2026-10-18T01:00Z", "2026-10-25T01:00Z"),
        (["Fri 18:00/Mon 08:00 Europe/Berlin"], "2026-10-23T16:00Z", "2026-10-26T07:00Z"),
    ],
)
def test_a_window_holds_its_beginning_and_not_its_end(windows: list[str], begin: str, end: str) -> None:
    at, until = datetime.fromisoformat(begin), datetime.fromisoformat(end)
    assert freeze.frozen_until(windows, at - timedelta(microseconds=1)) is None
    while at < until:
        assert freeze.frozen_until(windows, at) == until, at
        at += timedelta(minutes=5)
    assert freeze.frozen_until(windows, until - timedelta(microseconds=1)) == until
    assert freeze.frozen_until(windows, until) is None


@pytest.mark.parametrize(
    ("windows", "at", "until"),
    [
        (["Mon 00:00/Fri 00:00 UTC", "Fri 00:00/Mon 00:00 UTC"], "2026-11-30T00:00Z", "2026-12-07T00:00Z"),
        ([], "2026-12-25T00:00Z", None),
        (["Sun 02:10/Sun 02:40 Europe/Berlin"], "2026-03-29T01:00Z", None),  # the clocks skip all of it
        (["Sun 03:00/Sun 02:00 Europe/Berlin"], "2026-10-25T01:30Z", None),
    ],
)
def test_windows_that_follow_each_other_that_are_none_and_that_are_skipped(
    windows: list[str], at: str, until: str | None
) -> None:
    assert freeze.frozen_until(windows, datetime.fromisoformat(at)) == (until and datetime.fromisoformat(until))


def ruled(rb: Context, **rules: Any) -> Context:
    return replace(rb, target=rb.target.model_copy(update=rules))


def test_a_frozen_target_refuses_and_says_until_when(rb: Context) -> None:
    window, counter = around(datetime.now(UTC)), Counter()
    frozen = ruled(rb, freeze=[window])
    outcome = perform(counter, frozen, execute=True, **WORD)
    assert (outcome.result, outcome.status, counter.n) == ("refused", Status.CRITICAL, 0)
    (line,) = lines(rb)
    end = datetime.fromisoformat(window.split("/")[1])
    assert line["result"] == "refused" and line["break_glass"] is False
    assert line["why"]["en"] == f"a precondition does not hold: target default is frozen until {render.when(end)}"  # type: ignore[arg-type]
    dry = perform(counter, frozen)
    assert (dry.result, dry.status) == ("dry", Status.WARNING)
    assert [p.holds for p in dry.preconditions] == [False, True]
    unseen = perform(Counter(fails="state"), frozen, execute=True, **WORD)
    assert "is frozen until" in record.text(unseen.why)["en"], "also where the system does not answer"
    free = perform(counter, ruled(rb, freeze=["2020-01-01T00:00Z/2020-01-02T00:00Z"]), execute=True, **WORD)
    assert (free.result, counter.n) == ("done", 1)


@pytest.mark.parametrize("rules", [{}, {"actions_per_hour": 9}, {"approval": True}])
def test_a_clock_behind_the_newest_line_is_refused_in_words(rb: Context, rules: dict[str, Any]) -> None:
    """A clock that was set back would end a freeze and forget an action; a line may also be wrong."""
    was_done(rb, -365 * 24 * 60, "refused")
    outcome = perform(Counter(), ruled(rb, **rules), execute=True, **WORD)
    assert outcome.result == "refused"
    assert "this machine's clock is behind a line of " in record.text(outcome.why)["en"]
    open_ = ruled(rb, **rules, break_glass=True)
    assert perform(Counter(), open_, execute=True, break_glass=True, **WORD).result == "done"


@pytest.mark.parametrize(
    ("minutes_ago", "result", "outcome"),
    [
        *((5, result, "refused") for result in ("begun", "done", "failed")),
        (5, "approved", "done"),
        (59.5, "done", "refused"),
        (60.1, "done", "done"),
        # Clocks of two machines may differ a little.
        (-0.5, "refused", "done"),
        (-1.5, "refused", "refused"),
    ],
)
def test_a_line_of_the_past_hour_counts_and_one_of_the_future_stops(
    rb: Context, minutes_ago: float, result: str, outcome: str
) -> None:
    was_done(rb, minutes_ago, result)
    assert perform(Counter(), ruled(rb, actions_per_hour=1), execute=True, **WORD).result == outcome


def test_the_limit_counts_what_was_begun_on_the_target_anywhere(rb: Context, tmp_path: Path) -> None:
    limited = ruled(rb, actions_per_hour=3)
    (tmp_path / "a-file.txt").write_text("beside the incidents")
    was_done(rb, 60.1)  # over an hour ago
    was_done(rb, 59, "begun")  # two lines, one action
    was_done(rb, 59, "failed")
    was_done(rb, 30, "begun", incident="B-2")  # died
    for result in ("dry", "refused"):
        was_done(rb, 20, result)
    was_done(rb, 10, target="staging")
    third = perform(Counter(), limited, execute=True, **WORD)
    assert third.result == "done"
    counter = Counter()
    fourth = perform(counter, limited, execute=True, **WORD)
    assert (fourth.result, counter.n) == ("refused", 0)
    said = record.text(fourth.why)["en"]
    assert "3 of 3 actions on target default within an hour; the next is possible from " in said
    possible = datetime.fromisoformat(said.rpartition("from ")[2])
    assert timedelta(0) < possible - datetime.now(UTC) <= timedelta(minutes=1, seconds=1)
    assert "次は" in record.text(fourth.why)["ja"]
    (dry,) = [p for p in perform(Counter(), limited).preconditions if "limit" in p.text.key]
    assert not dry.holds


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


def test_the_limit_is_that_of_the_target_and_not_of_an_output(rb: Context, tmp_path: Path) -> None:
    """The same action under another output, and by another context that shares nothing but the settings."""
    limited, counter = ruled(rb, actions_per_hour=1), Counter()
    assert perform(counter, limited, execute=True, **WORD).result == "done"
    for output in ("b", "c"):
        other = replace(limited, archive=Archive(str(tmp_path / output), "A-1"))
        outcome = perform(counter, other, execute=True, **WORD)
        assert outcome.result == "refused" and "1 of 1 action on target default" in record.text(outcome.why)["en"]
    assert counter.n == 1
    begun, done = ledger.ledger_of(rb).lines(ACTION_LOG)
    assert (begun["result"], done["result"], begun["place"]) == ("begun", "done", rb.archive.place)
    assert begun["id"] == done["id"] == lines(rb)[0]["id"] and ledger.ledger_of(rb).problems() == []
    assert not ledger.ledger_of(rb).place.startswith(str(tmp_path)), "beside no output"


def test_two_at_once_do_not_both_find_the_last_place(rb: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    limited, seen = ruled(rb, actions_per_hour=1), ledger.read_actions(rb)
    monkeypatch.setattr(ledger, "read_actions", lambda rb: seen)  # what both have read
    outcomes = [perform(Counter(), limited, execute=True, **WORD) for _ in range(2)]
    assert [o.result for o in outcomes] == ["done", "refused"]
    assert "1 of 1 action on target default" in record.text(outcomes[1].why)["en"]


def test_a_ledger_that_cannot_be_read_is_no_empty_ledger(rb: Context) -> None:
    place = ledger.ledger_of(rb)
    place.prepare()
    assert place.local
    (place.local / ACTION_LOG).mkdir()
    limited = ruled(rb, actions_per_hour=9, break_glass=True)
    outcome = perform(Counter(), limited, execute=True, **WORD)
    assert outcome.result == "refused" and "the last hour could not be read: " in record.text(outcome.why)["en"]
    broken = perform(Counter(), limited, execute=True, break_glass=True, **WORD)
    assert broken.result == "done" and "the target's ledger could not be written" in record.text(broken.why)["en"]
    (place.local / ACTION_LOG).rmdir()
    place.write(ACTION_LOG, b'not JSON\n[]\n{"target": "default"}\n{"target": "default", "time": 7, "id": []}\n')
    assert perform(Counter(), limited, execute=True, **WORD).result == "done", "what is no action is none"


@pytest.mark.parametrize("error", [OSError("disk is full"), UsageError("disk is full"), None])
@pytest.mark.parametrize("rules", [{}, {"actions_per_hour": 9}, {"freeze": ["2020-01-01T00:00Z/2020-01-02T00:00Z"]}])
def test_a_ledger_that_cannot_be_written_stops_what_rests_on_it(
    rb: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rules: dict[str, Any], error: Exception | None
) -> None:
    """Where it cannot even be made, and where it can be read."""
    says, result, counter = "disk is full", "refused" if rules else "done", Counter()
    if error:
        monkeypatch.setattr(ledger, "end", Mock(side_effect=error))
        assert says in record.text(perform(Counter(), rb, execute=True, **WORD).why)["en"]
        monkeypatch.setattr(ledger, "begin", Mock(side_effect=error))
    else:
        (tmp_path / "file").write_text("")
        rules, says = rules | {"ledger": str(tmp_path / "file" / "ledger")}, "Not a directory"
    outcome = perform(counter, ruled(rb, **rules), execute=True, **WORD)
    said = record.text(outcome.why)["en"]
    assert (outcome.result, counter.n, lines(rb)[-1]["result"]) == (result, int(result == "done"), result)
    assert says in said and "ledger" in said and "--output" not in said, said
    allowed = ruled(rb, **rules, break_glass=True)
    assert perform(Counter(), allowed, execute=True, break_glass=True, **WORD).result == "done"


def test_an_interrupt_before_the_first_line_begins_nothing(rb: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    limited, counter = ruled(rb, actions_per_hour=1), Counter()
    with monkeypatch.context() as slow:
        slow.setattr(action, "_write_line", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            perform(counter, limited, execute=True, **WORD)
    assert counter.n == 0
    assert perform(counter, limited, execute=True, **WORD).result == "done" and counter.n == 1


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


def test_break_glass_is_loud_everywhere(rb: Context) -> None:
    frozen = ruled(rb, freeze=[around(datetime.now(UTC))], actions_per_hour=1, break_glass=True)
    outcome = perform(Counter(), frozen, execute=True, break_glass=True, **WORD)
    assert (outcome.result, outcome.status) == ("done", Status.OK)
    assert [(line["result"], line["break_glass"]) for line in lines(rb)] == [("begun", True), ("done", True)]
    for line in read_logs(rb.archive).actions:
        in_the_postmortem = _read_action(line)
        assert in_the_postmortem.why_en.startswith("BREAK-GLASS although target default is frozen until ")
        assert "緊急解除" in in_the_postmortem.why_ja
    assert render.action_lines(outcome)[0] == "▲ BREAK-GLASS"
    assert "BREAK-GLASS</span>" in render.ActionCard(outcome, run="")._make_bundle()["text/html"]
    overview.write_index(rb.archive)
    assert b'<span class="rb-tag rb-CRITICAL">BREAK-GLASS</span>' in rb.archive.read("index.html")
    both = perform(Counter(), frozen, execute=True, break_glass=True, **WORD)
    assert record.text(both.why)["en"].count("BREAK-GLASS although") == 2, "the freeze and the limit"


def test_break_glass_waives_only_the_rules_and_only_where_the_target_allows_it(
    rb: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = ruled(rb, freeze=[around(datetime.now(UTC))])
    allowed = ruled(frozen, break_glass=True)
    refused: list[tuple[Context, Counter, Any, str]] = [
        (frozen, Counter(), WORD, "does not allow --break-glass"),
        (allowed, Counter(), {"approved_by": "Aoki"}, "reason"),
        (allowed, Counter(holds=False), WORD, "answers"),
        (allowed, Counter(fails="state"), WORD, "no route"),
    ]
    for context, counter, word, says in refused:
        outcome = perform(counter, context, execute=True, break_glass=True, **word)
        assert (outcome.result, counter.n) == ("refused", 0) and says in record.text(outcome.why)["en"]
    assert perform(Counter(), allowed, execute=True, **WORD).result == "refused", "nobody has asked for it"
    for may in (True, False):
        needless = perform(Counter(), ruled(rb, break_glass=may), execute=True, break_glass=True, **WORD)
        assert (needless.result, needless.break_glass) == ("done", False)
    assert perform(Counter(), allowed, break_glass=True).status is Status.OK, "dry: it could be done"
    monkeypatch.setenv("RUNBOOK_UNATTENDED", "1")
    assert perform(Counter(), allowed, execute=True, break_glass=True, **WORD).result == "refused"


@pytest.mark.slow
def test_the_command_is_refused_and_says_when(rb: Context, tmp_path: Path) -> None:
    (tmp_path / "runbook.toml").write_text(
        f'[targets.x]\ndatabase_url_env = "RUNBOOK_DATABASE_URL"\nfreeze = ["{around(datetime.now(UTC))}"]\n'
    )
    word = ["--execute", "--approved-by", "Aoki", "--reason", "the worker hangs", "--incident", "I"]
    for more, says in (([], "target x is frozen until"), (["--break-glass"], "does not allow --break-glass")):
        env = os.environ | {"RUNBOOK_CONFIG": str(tmp_path / "runbook.toml")}
        done = runbook("act", "restart", "notification", "--target", "x", *word, *more, env=env)
        assert done.returncode == 2 and says in done.stdout.splitlines()[0], done.stderr


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
