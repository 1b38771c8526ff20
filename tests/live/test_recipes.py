"""docs/notebook.md: each recipe runs as it stands, in the cells of a notebook, and names nobody."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import nbformat
import psycopg
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbclient import NotebookClient

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.lab import copies
from runbook_lib.lab import server as lab_server
from runbook_lib.notebook import session
from runbook_lib.notebook.session import Session, quiet_session
from runbook_lib.packs.entitlement import wire
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import read_logs
from runbook_lib.view.queries import psql, queries_of
from tests.kit import ROOT
from tests.kit.servers import Servers
from tests.kit.steps import UNPROCESSED, events

PAGE = ROOT / "docs" / "notebook.md"
RECIPES = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

EVENT = wire.EntitlementEvent(str(UUID(int=1)), wire.GRANTED, "2025-01-31T03:00:00Z", "user-3", "sku", "", "", 1, "")
HEADERS = {"Nats-Msg-Id": EVENT.event_id, "aggregate_key": "user-3:sku"}


@pytest.fixture
def rb(db: psycopg.Connection, broker: str, default_target: None, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A run in `runbook lab`, on rows of each state and a message that nobody has taken."""
    monkeypatch.setenv("RUNBOOK_LAB", "4711")
    monkeypatch.setenv("JPY_PARENT_PID", "4711")
    monkeypatch.setattr(session, "getpass", lambda prompt: "user-3")
    events(db, 20, 300)
    events(db, 10, 900, status="PENDING")
    events(db, 5, 120, status="PROCESSING", by="notification-1", locked=20, over=-10)
    events(db, 5, 60, outbox="PENDING", publish_tries=3, publish_again=30, error="Connection is Closed", **UNPROCESSED)
    applications.visit(broker, lambda js: js.publish(applications.SUBJECT, wire.encode(EVENT), headers=HEADERS))
    return quiet_session("4.1")


@pytest.fixture
def shell(rb: Session) -> Iterator[InteractiveShell]:
    shell = InteractiveShell.instance()
    shell.user_ns["rb"] = rb
    session.sql_cells(rb)
    yield shell
    InteractiveShell.clear_instance()


@pytest.mark.slow
def test_every_recipe_runs_and_names_nobody(shell: InteractiveShell) -> None:
    assert len(RECIPES) == 4
    for title, recipe in RECIPES:
        with capture_output() as shown:
            done = shell.run_cell(recipe, store_history=True)
        done.raise_error()
        assert done.result is not None and len(done.result), title
        said = repr(done.result) + shown.stdout + repr([o.data for o in shown.outputs])
        assert not re.search(r"\buser-\d{1,2}\b", said), title


def test_an_sql_cell_is_asked_like_any_question(shell: InteractiveShell) -> None:
    shell.user_ns["wanted"] = "SENT"
    shell.run_cell("%%sql found\nSELECT user_id, 1::int AS one FROM notification.notifications WHERE status = :wanted")
    found = shell.user_ns["found"]
    assert len(found) == 20 and found["user_id"].str.match(r"user-[0-9a-f]{8}$").all()
    with capture_output() as shown:
        wrong = shell.run_cell("%%sql\nSELECT pg_sleep(9)")
    assert "statement timeout" in str(wrong.error_in_exec) and not shown.outputs


def test_the_window_of_an_sql_cell_is_that_of_the_run(shell: InteractiveShell, rb: Session) -> None:
    shell.user_ns |= {"as_of": None, "since": "2001-01-01", "max_rows": 1}
    cell = (
        "SELECT CAST(:as_of AS timestamptz) AS until, CAST(:since AS timestamptz) AS since, CAST(:max_rows AS int) AS n"
    )
    shell.run_cell(f"%%sql found\n{cell}").raise_error()
    found = shell.user_ns["found"].iloc[0]
    assert (found["until"], found["since"]) == (rb.context.as_of.floor("us"), rb.context.since.floor("us"))
    assert found["n"] == rb.context.budget.max_rows + 1


#: What a person tries: in answers, in what goes wrong, in what is made of an answer.
TRIED = [
    *(recipe for _, recipe in RECIPES),
    'rb.ask("SELECT CAST(user_id AS int) AS n FROM notification.notifications")',
    "%%sql\nSELECT 1 / (length(user_id) - length(user_id)) AS n, user_id FROM notification.notifications",
    "rb.ask(\"SELECT user_id::date AS n FROM notification.notifications WHERE user_id = 'user-3'\")",
    'frame = rb.ask("SELECT user_id, payload_json FROM notification.notifications")\nraise ValueError(repr(frame))',
    "rb.event(user=rb.person())",
    'print(rb.ask("SELECT jsonb_agg(user_id) AS everybody FROM notification.notifications"))',
]


@pytest.mark.slow
def test_a_saved_notebook_full_of_questions_names_nobody(shell: InteractiveShell) -> None:
    nb = nbformat.v4.new_notebook()
    for tried in TRIED:
        with capture_output() as shown:
            shell.run_cell(tried, store_history=True)
        outputs = [nbformat.v4.new_output("display_data", data=o.data) for o in shown.outputs]
        outputs.append(nbformat.v4.new_output("stream", text=shown.stdout + shown.stderr))
        nb.cells.append(nbformat.v4.new_code_cell("...", outputs=outputs))
    said = json.dumps(nb)
    assert "Traceback" in said and said.count("postgres: ") >= 3 and len(re.findall(r"\buser-[0-9a-f]{8}\b", said)) > 30
    model = {"type": "notebook", "content": json.loads(said)}
    lab_server.before_save(model=model, path="x.ipynb")
    assert re.findall(r".{0,90}\buser-\d{1,2}\b", json.dumps(model["content"])) == []


def test_the_example_of_each_notebook_runs(shell: InteractiveShell) -> None:
    for section in catalog.load().runnable().values():
        nb = nbformat.read(section.notebook, as_version=4)
        (example,) = [c.source for c in nb.cells if "skip-execution" in c.metadata.get("tags", ())]
        with capture_output():
            done = shell.run_cell(example, store_history=True)
        done.raise_error()
        assert list(done.result.columns), section.number


@pytest.mark.slow
def test_queries_run_in_psql_as_they_are_shown(db: psycopg.Connection) -> None:
    """`\\set name 'text'` puts the text in the place of `:name`; those without a default are left to the person."""
    ran = 0
    for section in catalog.load().runnable().values():
        for query in (q for step in section.steps for q in queries_of(step.id).sql):
            shown = psql(query)
            if "-- set first" in shown:
                continue
            for name, value in re.findall(r"^\\set (\w+) '(.*)'$", shown, re.MULTILINE):
                shown = re.sub(rf"(?<![:\w]):{name}\b", value.replace("''", "'"), shown)
            db.execute(re.sub(r"^\\set .*\n", "", shown, flags=re.MULTILINE).encode())
            ran += 1
    assert ran > 60


def test_a_run_in_the_lab_is_in_the_dossier_without_a_save(
    servers: Servers, db: psycopg.Connection, broker: str, tmp_path: Path
) -> None:
    book, archive = catalog.load(), Archive(str(tmp_path), "INC-1")
    archive.prepare()
    section = book.sections["3"]
    assert section.notebook
    folder = copies.prepare_copies(archive, "default", book, ["3"])
    nb = nbformat.read(Path(folder) / section.notebook.name, as_version=4)
    lab = {"RUNBOOK_LAB": str(os.getpid()), "RUNBOOK_OUTPUT": archive.output, "PYTHONPATH": str(ROOT)}
    NotebookClient(nb, timeout=120).execute(env={**os.environ, **servers.env, **lab})
    (run,) = read_logs(archive).runs
    assert run.section == "3" and [v.status for v in read_logs(archive).verdicts] == [run.status]
    page = archive.read("index.html").decode()
    assert f"{run.name}.html" in page and f"rb-{run.status.name}" in page
    assert archive.problems() == []
