"""An action that Ctrl-C interrupts, in a whole sandbox without traffic."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.store.archive import ACTION, Archive
from tests.kit import sandboxes
from tests.kit.command import start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandboxes.running(tmp_path_factory.mktemp("quiet"), rate=0, hours=0) as sandbox:
        yield sandbox


def test_an_action_that_is_interrupted_writes_down_what_has_become_of_it(quiet: Sandbox, tmp_path: Path) -> None:
    time.sleep(catalog.load().numbers["program.young"])  # a program that has just started is not restarted
    words = ["workload=notification", "execute=true", "approved_by=drill", "reason=to be interrupted"]
    env = {**os.environ, "RUNBOOK_SANDBOX_DIR": str(quiet.directory), "RUNBOOK_OUTPUT": str(tmp_path)}
    asked = ("run", "5.1", "--target", "sandbox", *(x for w in words for x in ("-p", w)))
    run = start(
        *asked, env=env, stdout=None, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    archive = Archive(str(tmp_path), "adhoc")
    while not archive.lines(ACTION):
        assert run.poll() is None
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert (run.returncode, said) == (130, "runbook: interrupted\n")
    begun, ended = archive.lines(ACTION)
    assert (begun["result"], ended["result"]) == ("begun", "failed") and "interrupted" in ended["why"]["en"]
    entered = Archive(str(quiet.directory / "runbook-ledger"), "sandbox").lines(ACTION)[-2:]
    assert [(e["id"], e["result"]) for e in entered] == [(begun["id"], "begun"), (begun["id"], "failed")]
    (kept,) = archive.artifacts()
    assert (kept["section"], kept["problem"]) == ("5.1", "it was interrupted")
    assert archive.partials() == [] and archive.problems() == []
