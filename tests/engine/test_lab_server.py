"""JupyterLab: what may not leave is taken out of a save, what was concluded is archived, once."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import nbformat
import pandas as pd
import pytest
from tornado.web import HTTPError

from runbook_lib.book import catalog
from runbook_lib.book.parameters import validate
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput, open_context
from runbook_lib.dossier import artifact, overview
from runbook_lib.lab import server as lab_server
from runbook_lib.model.finding import Finding, Frames, Status, say
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session
from runbook_lib.privacy.masking import TOKEN, Masker
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import run_line
from runbook_lib.store.run import read_run

SECRET, WHO = "hunter2-secret", "alice@example.org"
URL = f"postgresql://runbook:{SECRET}@127.0.0.1:1/app"
SECTION = catalog.load().sections["4.3"]
STEPS = [s.id for s in SECTION.steps]


@pytest.fixture(autouse=True)
def here(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one target, and its archive, in a kernel of the lab."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", URL)
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path / "out"))
    for name in ("RUNBOOK_LAB", "JPY_PARENT_PID"):
        monkeypatch.setenv(name, "4711")
    return tmp_path


def stream(text: str) -> Any:
    return nbformat.v4.new_output("stream", text=text)


def found(step: str, status: Status = Status.OK) -> Finding:
    return Finding(step, status, say("unknown.not_run"), frames={"now": pd.DataFrame({"n": [1]})})


def saved(*outputs: Any) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("mine", outputs=list(outputs))])


def save(nb: Any) -> str:
    """Return what the Jupyter server writes."""
    model = {"type": "notebook", "content": json.loads(nbformat.writes(nb))}
    lab_server.before_save(model=model, path="x.ipynb")
    return json.dumps(model["content"])


def session(**parameters: Any) -> Session:
    config = Settings(targets={"here": {"database_url": URL}}, output=str(Path("out").resolve()))
    named = {"incident_id": "INC-1", "target": "here"} | parameters
    return Session(open_context(SECTION, validate(named), config, catalog.load()))


def concluded(*findings: Finding, **parameters: Any) -> Session:
    rb = session(**parameters)
    rb.findings.update({f.step: f for f in findings})
    rb.conclude()
    return rb


def archive() -> Archive:
    return Archive("out", "INC-1")


def archived() -> list[dict[str, Any]]:
    return [e for e in archive().artifacts() if e.get("interactive")]


def everything() -> str:
    return "\n".join(p.read_text() for p in Path("out").rglob("*") if p.is_file())


def test_secrets_are_not_written_and_what_is_masked_stays() -> None:
    shown = nbformat.v4.new_output("execute_result", {"text/plain": [f"'{URL}'"], "application/json": {}})
    error = nbformat.v4.new_output("error", ename="E", evalue=URL, traceback=[URL, "line"])
    text = save(saved(shown, error, stream(URL)))
    assert SECRET not in text and "***" in text


def test_a_save_that_cannot_be_cleaned_is_refused() -> None:
    with pytest.raises(HTTPError, match="not saved"):
        lab_server.before_save(model={"type": "notebook", "content": {"cells": 3}})
    lab_server.before_save(model={"type": "directory"})
    lab_server.before_save(model={"type": "file", "content": "text"})


def test_a_target_in_disorder_does_not_keep_a_notebook_from_being_saved(here: Path) -> None:
    (here / "runbook.toml").write_text("[targets.a]\ndatabase_url = 'env:NOT_SET'\n")
    save(saved(stream("x")))
    (here / "runbook.toml").write_text("not toml")
    save(saved(stream("x")))


def test_the_start_page_of_a_new_incident_proposes_the_triage() -> None:
    archive().prepare()
    page = overview.page(archive(), {number: f"{number}.ipynb" for number in catalog.load().runnable()})
    (proposed,) = [row for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL) if "run this" in row]
    assert 'href="3.ipynb"' in proposed


def test_a_concluded_run_is_archived_like_a_headless_one(here: Path) -> None:
    concluded(*map(found, STEPS))
    (entry,) = archived()
    assert entry["name"].endswith("-4.3-OK") and entry["section"] == "4.3"
    assert entry["parameters"] == {"incident_id": "INC-1", "target": "here"}
    names = archive().names()
    assert {f"{entry['name']}.ipynb", f"{entry['name']}.html", "index.html"} <= set(names)
    assert archive().partials() == [] and archive().problems() == []
    assert [f.step for f in read_run(archive(), run_line(archive(), entry)).findings] == STEPS
    assert f"{entry['name']}.html" in archive().read("index.html").decode()
    assert [e["verdict"]["status"] for e in archive().artifacts() if "verdict" in e] == ["OK"]


def test_what_a_parameter_says_of_a_person_is_not_in_the_log() -> None:
    concluded(found(STEPS[0]), reason=f"user_id={WHO} waits")
    (entry,) = archived()
    assert TOKEN.search(entry["parameters"]["reason"]) and WHO not in everything()


def test_a_run_is_archived_once_and_again_when_it_changed() -> None:
    rb = concluded(*map(found, STEPS))
    rb.conclude()
    assert len(archived()) == 1
    rb.findings[STEPS[0]] = found(STEPS[0], Status.CRITICAL)
    rb.conclude()
    assert [e["status"] for e in archived()] == ["OK", "CRITICAL"]
    rb.findings[STEPS[0]] = found(STEPS[0])  # undone
    rb.conclude()
    assert len(archived()) == 2


@pytest.mark.parametrize("fails", ["keep", "write_index"])
def test_what_failed_is_a_line_and_added_by_the_next(
    fails: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(overview, fails, Mock(side_effect=OSError(28, "No space left on device")))
        rb = concluded(found(STEPS[0]))
    assert "could not be archived: OSError: [Errno 28] No space left" in capsys.readouterr().out
    assert len(archived()) == 1 and "index.html" not in archive().names()
    for _ in range(2):
        rb.conclude()
        (entry,) = archived()
        assert [e.get("section", "") for e in archive().artifacts()] == ["4.3", ""]
        assert f"{entry['name']}.html" in archive().read("index.html").decode()
        assert archive().problems() == [] and archive().partials() == []
    (verdict,) = [e for e in archive().artifacts() if "verdict" in e]
    assert (verdict["started"], verdict["ended"]) == (entry["started"], entry["ended"])


def test_only_the_lab_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    concluded(found(STEPS[0]))
    assert not Path("out").exists()


# What the session knows -----------------------------------------------------------------------------------------


def test_only_the_lab_keeps_user_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that papermill starts in a terminal of JupyterLab has the variable, but another parent."""
    for server, parent in ((None, None), (None, "1"), ("4711", "1"), ("4711", None)):
        for name, value in (("RUNBOOK_LAB", server), ("JPY_PARENT_PID", parent)):
            monkeypatch.delenv(name, raising=False)
            if value:
                monkeypatch.setenv(name, value)
        rb = session()
        rb.context.masker.person(WHO)
        assert rb.context.masker.people is None
        with pytest.raises(UsageError, match="only `runbook lab`"):
            rb.person()


def test_a_token_that_a_cell_prints_stays_in_the_artifact() -> None:
    token = Masker.of([URL], "INC-1").person(WHO)
    nb = saved(stream(f"userId={token}, userId={WHO}"))
    artifact.scrub(nb, Masker.of([URL], "INC-1"))
    assert f"userId={token}, userId={token}" in nbformat.writes(nb)


def test_what_the_session_remembers_is_in_no_header() -> None:
    rb = session()
    rb.context.masker.person(WHO)
    assert WHO not in json.dumps(asdict(rb._header()), default=str)


# Any order ------------------------------------------------------------------------------------------------------


def test_the_verdict_does_not_depend_on_the_order_of_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step rests on those before it in the runbook, and follows them when they are run after it."""

    def judge(frames: Frames, given: JudgeInput) -> Finding:
        return found("", Status.CRITICAL if given.earlier else Status.OK)

    own = {step: Check(step, lambda rb: {"now": pd.DataFrame({"n": [1]})}, judge) for step in STEPS}
    monkeypatch.setattr("runbook_lib.notebook.session.checks", lambda: own)
    rb = session()
    for step in (STEPS[2], STEPS[0], STEPS[1], STEPS[1]):
        rb.step(step)
    statuses = {step: f.status for step, f in rb.findings.items()}
    assert statuses == {STEPS[0]: Status.OK, STEPS[1]: Status.CRITICAL, STEPS[2]: Status.CRITICAL}
    assert [f.step for f in rb.context.given().earlier] == STEPS[:3]
