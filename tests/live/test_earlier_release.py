"""A receiver's journal that release 0.5.0 wrote, read by today's code.

0.5.0.tar.xz was made by the code of that release: `runbook serve` on a sandbox's servers with a stopped worker got an
alert twice, investigated it with section 4.3 and could not send its message; a responder wrote a note; the receiver was
killed while it investigated a second alert.
"""

from __future__ import annotations

import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
import requests

from runbook_lib.receiver.journal import Journal
from tests.kit.serving import TOKEN, serving
from tests.kit.waiting import until

DATA = Path(__file__).parents[1] / "data" / "0.5.0.tar.xz"
INCIDENT = "NotDelivered-20261130T225806-3d71abbe"
MESSAGES_TO = "json://127.0.0.1:9/"  # nobody is there


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder that 0.5.0 has left."""
    with tarfile.open(DATA) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "runbook.toml").write_text(
        '[targets.production]\ndatabase_url = "postgresql://u@127.0.0.1:1/x"\nnats_url = "nats://127.0.0.1:1"\n'
    )
    return tmp_path


def test_its_receiver_goes_on(written: Path) -> None:
    (written / "outputs").rename(written / "kept")

    def state_of(job: int) -> str:
        with closing(sqlite3.connect(f"file:{written}/receiver.db?mode=ro", uri=True)) as db:
            return str(db.execute("SELECT state FROM work WHERE id = ?", [job]).fetchone()[0])

    with serving(written, env={"RUNBOOK_NOTIFY_URLS": MESSAGES_TO}) as served:
        until(lambda: state_of(2) == "done", "the end of the interrupted investigation", 120)
        page = requests.get(served.url, auth=("oncall", TOKEN), timeout=10).text
        assert f"{INCIDENT}/index.html" in page and "delivery worker" in page
    with closing(Journal(written / "receiver.db")) as journal:
        found = {i.alert: i for i in journal.incidents()}
    (first, second) = found["NotDelivered"], found["Backlog"]
    assert (first.id, first.repeats, [j.state for j in first.jobs]) == (INCIDENT, 1, ["done"])
    assert first.verdict and (first.verdict["status"], first.verdict["stuck_at"]) == ("CRITICAL", "delivery_worker")
    assert [(j.state, j.attempts) for j in second.jobs] == [("done", 2)]
