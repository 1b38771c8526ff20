"""Saving in JupyterLab: what may not leave is taken out, what was concluded is archived, once."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
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
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.dossier import artifact, overview
from runbook_lib.lab import server as lab_server
from runbook_lib.model.finding import Finding, Frames, Status, complete, say
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session
from runbook_lib.privacy.masking import TOKEN, Masker
from runbook_lib.sources.settings import Settings
from runbook_lib.store import record
from runbook_lib.store.archive import MANIFEST, Archive
from runbook_lib.store.lines import run_line
from runbook_lib.store.run import read_run
from runbook_lib.view import render

SECRET, WHO = "hunter2-secret", "alice@example.org"
URL = f"postgresql://runbook:{SECRET}@127.0.0.1:1/app"
SECTION = catalog.load().sections["4.3"]
STEPS = [s.id for s in SECTION.steps]


@pytest.fixture(autouse=True)
def here(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one target, and its archive."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", URL)
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path / "out"))
    return tmp_path


def output(shown: Any) -> Any:
    return nbformat.v4.new_output("display_data", shown._repr_mimebundle_())


def stream(text: str) -> Any:
    return nbformat.v4.new_output("stream", text=text)


def found(step: str, status: Status = Status.OK) -> Finding:
    return Finding(step, status, say("unknown.not_run"), frames={"now": pd.DataFrame({"n": [1]})})


def executed(*findings: Finding, opened: str = "2026-01-31T03:00:00.000+00:00", concluded: bool = True) -> Any:
    """A notebook as JupyterLab has it after a run."""
    header = render.Header(
        "4.3", "t", "INC-1", "default", pd.Timestamp(opened), 60,
        given={}, parameters={"incident_id": "INC-1", "lang": "en"}, opened=opened,
    )  # fmt: skip
    whole = complete(STEPS, {f.step: f for f in findings})
    verdict = diagnosis.conclude(whole, catalog.load())
    shown: list[Any] = [
        render.banner(header, verdict, run=opened),
        *(render.Card(f, f.step, run=opened) for f in findings),
    ]
    if concluded:
        shown.append(render.conclusion(header, verdict, whole, dict.fromkeys(STEPS, "t"), (), run=opened))
    cells = [nbformat.v4.new_code_cell("rb.x()", outputs=[output(s)]) for s in shown]
    return nbformat.v4.new_notebook(cells=cells)


def add(nb: Any, *outputs: Any, source: str = "mine") -> Any:
    nb.cells.append(nbformat.v4.new_code_cell(source, outputs=list(outputs)))
    return nb


def save(nb: Any, caplog: pytest.LogCaptureFixture | None = None) -> Path:
    """As the Jupyter server does: hook, write, hook."""
    model = {"type": "notebook", "content": json.loads(nbformat.writes(nb))}
    lab_server.before_save(model=model, path="x.ipynb")
    path = Path("x.ipynb").resolve()
    path.write_text(json.dumps(model["content"]))
    lab_server.after_save(
        model={"type": "notebook"}, os_path=str(path), contents_manager=SimpleNamespace(log=logging.getLogger("lab"))
    )
    return path


def archive() -> Archive:
    return Archive("out", "INC-1")


def archived() -> list[dict[str, Any]]:
    return [e for e in archive().manifest() if e.get("interactive")]


def everything() -> str:
    return "\n".join(p.read_text() for p in Path("out").rglob("*") if p.is_file())


def test_secrets_are_not_written_and_what_is_masked_stays() -> None:
    shown = nbformat.v4.new_output("execute_result", {"text/plain": [f"'{URL}'"], "application/json": {}})
    error = nbformat.v4.new_output("error", ename="E", evalue=URL, traceback=[URL, "line"])
    text = save(add(executed(found(STEPS[0])), shown, error, stream(URL))).read_text()
    assert SECRET not in text and "***" in text
    assert SECRET not in everything()


def test_a_save_that_cannot_be_cleaned_is_refused() -> None:
    with pytest.raises(HTTPError, match="not saved"):
        lab_server.before_save(model={"type": "notebook", "content": {"cells": 3}})
    lab_server.before_save(model={"type": "directory"})
    lab_server.before_save(model={"type": "file", "content": "text"})


def test_a_target_in_disorder_does_not_keep_a_notebook_from_being_saved(here: Path) -> None:
    (here / "runbook.toml").write_text("[targets.a]\ndatabase_url_env = 'NOT_SET'\n")
    save(executed(found(STEPS[0])))
    (here / "runbook.toml").write_text("not toml")
    save(executed(found(STEPS[0])))


def test_a_concluded_run_is_archived_like_a_headless_one(here: Path) -> None:
    save(executed(*(found(s) for s in STEPS)))
    (entry,) = archived()
    assert entry["name"] == "20260131T030000Z-4.3-OK" and entry["section"] == "4.3"
    assert entry["parameters"] == {"incident_id": "INC-1", "target": "default", "lang": "en"}
    names = archive().names()
    assert {f"{entry['name']}.ipynb", f"{entry['name']}.html", "index.html"} <= set(names)
    assert archive().partials() == [] and archive().problems() == []
    assert [f.step for f in read_run(archive(), run_line(archive(), entry)).findings] == STEPS
    assert f"{entry['name']}.html" in archive().read("index.html").decode()
    assert [e["verdict"]["status"] for e in archive().manifest() if "verdict" in e] == ["OK"]


def test_what_a_parameter_says_of_a_person_is_not_in_the_manifest() -> None:
    nb = executed(found(STEPS[0]))
    for cell in nb.cells:
        header = cell.outputs[0]["data"].get(record.VERDICT_MIME, {}).get("header", {})
        header.get("parameters", {})["reason"] = f"user_id={WHO} waits"  # of a run that did not mask them
    save(nb)
    (entry,) = archived()
    assert TOKEN.search(entry["parameters"]["reason"]) and WHO not in archive().read(MANIFEST).decode()


def test_a_run_is_archived_once_and_again_when_it_changed() -> None:
    whole = [found(s) for s in STEPS]
    for _ in range(3):
        save(executed(*whole))
    save(add(executed(*whole), stream("a cell of my own")))
    assert len(archived()) == 1
    save(executed(found(STEPS[0], Status.CRITICAL), *whole[1:]))
    assert [e["status"] for e in archived()] == ["OK", "CRITICAL"]
    save(executed(*whole))  # undone
    assert len(archived()) == 2


@pytest.mark.parametrize("fails", ["keep", "write_index"])
def test_what_an_interrupted_save_left_out_is_added_by_the_next(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(overview, fails, Mock(side_effect=OSError(28, "No space left on device")))
        save(executed(found(STEPS[0])))
    assert len(archived()) == 1 and "index.html" not in archive().names()
    for _ in range(2):
        save(executed(found(STEPS[0])))
        (entry,) = archived()
        assert [e.get("section", "") for e in archive().manifest()] == ["4.3", ""]
        assert f"{entry['name']}.html" in archive().read("index.html").decode()
        assert archive().problems() == [] and archive().partials() == []
    (verdict,) = [e for e in archive().manifest() if "verdict" in e]
    assert (verdict["started"], verdict["ended"]) == (entry["started"], entry["ended"])


def test_a_run_that_an_older_version_archived_is_not_archived_again() -> None:
    save(executed(found(STEPS[0])))
    older = [{k: v for k, v in e.items() if k not in ("job", "previous")} for e in archive().manifest()]
    archive().write(MANIFEST, b"".join(json.dumps(e, sort_keys=True).encode() + b"\n" for e in older))
    save(executed(found(STEPS[0])))
    assert archive().manifest() == older


def test_nothing_is_archived_before_the_conclusion() -> None:
    save(executed(found(STEPS[0]), concluded=False))
    save(nbformat.v4.new_notebook())
    stale = executed(found(STEPS[0]))
    stale.cells[1].outputs = [output(render.Card(found(STEPS[0], Status.CRITICAL), "t", run=opened(stale)))]
    save(stale)
    assert not Path("out").exists()


def opened(nb: Any) -> str:
    return str(nb.cells[0].outputs[0].data[record.RUN_MIME]["opened"])


def test_outputs_of_an_earlier_run_and_of_own_cells_are_no_evidence() -> None:
    earlier = executed(*(found(s, Status.CRITICAL) for s in STEPS))
    now = executed(found(STEPS[0]), opened="2026-01-31T04:00:00.000+00:00")
    nb = add(now, stream(f"{WHO} is angry"), source=f"note = 'user_id={WHO}'")
    nb.cells += earlier.cells[1:-1]
    save(nb)
    (entry,) = archived()
    run = read_run(archive(), run_line(archive(), entry))
    assert [f.status for f in run.findings] == [Status.OK] + [Status.UNKNOWN] * (len(STEPS) - 1)
    assert WHO not in everything()


@pytest.mark.parametrize("wrong", [{"target": "elsewhere"}, {"incident": "../../INC-1"}, {}])
def test_a_failure_to_archive_is_a_line_in_the_log_and_no_more(
    wrong: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Archive, "append", Mock(side_effect=OSError(28, "No space left on device")))
    nb = executed(found(STEPS[0]))
    nb.cells[-1].outputs[0].data[record.VERDICT_MIME]["header"] |= wrong | {"parameters": {}}
    save(nb)
    (line,) = [r.getMessage() for r in caplog.records]
    assert "could not be archived" in line and "\n" not in line and ("No space left" in line) is not bool(wrong)
    assert archive().partials() == [] and (not wrong or not Path("out").exists())


# What the session knows -----------------------------------------------------------------------------------------


def session() -> Session:
    config = Settings(targets={"here": {"database_url": URL}})
    return Session(open_context(SECTION, validate({"incident_id": "INC-1", "target": "here"}), config, catalog.load()))


@pytest.fixture
def in_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_LAB", "4711")
    monkeypatch.setenv("JPY_PARENT_PID", "4711")


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
    nb = add(executed(found(STEPS[0])), nbformat.v4.new_output("stream", text=f"userId={token}, userId={WHO}"))
    artifact.scrub(nb, Masker.of([URL], "INC-1"))
    assert f"userId={token}, userId={token}" in nbformat.writes(nb)


@pytest.mark.usefixtures("in_lab")
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
