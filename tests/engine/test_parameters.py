"""Parameters are checked before anything starts; what is wrong is one line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book.parameters import declared_names, free_texts, validate
from runbook_lib.cli.common import parse_parameters
from runbook_lib.dossier import watch
from runbook_lib.model.times import moment
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import quiet_session
from runbook_lib.privacy.masking import TOKEN
from runbook_lib.store.archive import ACTION, Archive
from tests.kit.command import runbook


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"window_minute": 5}, "unknown parameter 'window_minute': did you mean 'window_minutes'?"),
        ({"window_minutes": "soon"}, "parameter window_minutes='soon'"),
        ({"window_minutes": 0}, "parameter window_minutes=0"),
        ({"incident_id": "a/b"}, "use letters, digits"),
        ({"incident_id": ".."}, "use letters, digits"),
        ({"incident_id": "a..b"}, "no '..'"),
        ({"incident_id": ""}, "use letters, digits"),
        ({"from_time": "yesterday-ish"}, "not a time like"),
        ({"from_time": "0001-01-01T00:00:00Z"}, "not a time like"),
        ({"to_time": "9999-12-31T23:59:59Z"}, "not a time like"),
        ({"to_time": "2200-01-31T03:00:00Z"}, "that is in the future: it is 20"),
        ({"from_time": "2026-01-31T03:00:00Z", "to_time": "2026-01-31T03:00:00Z"}, "it must be after from_time="),
        ({"from_time": "2026-01-31T03:00:00Z", "to_time": "2026-01-31T04:00:00+09:00"}, "it must be after from_time="),
        ({"from_time": "2026-01-24T03:00:00Z", "to_time": "2026-01-31T03:00:01Z"}, "by 7 d at most"),
        ({"as_of": "2026-01-31T03:00:00Z"}, "as_of has gone: leave it out"),
        ({"detected_at": "2200-01-31T03:00:00+09:00"}, "that is in the future: it is 20"),
        ({"wait_s": "nan"}, "parameter wait_s='nan'"),
        ({"wait_s": float("inf")}, "parameter wait_s=inf"),
        ({"delivery_poll_interval_s": "nan"}, "parameter delivery_poll_interval_s='nan'"),
        ({"window_minutes": "inf"}, "parameter window_minutes='inf'"),
        ({"lang": "fr"}, "parameter lang='fr'"),
        ({"detected_by": "gut"}, "parameter detected_by='gut'"),
        ({"x=1\nimport os": 1}, "unknown parameter"),
    ],
)
def test_bad_values_are_one_line(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as e:
        validate(dict(values))
    assert said in str(e.value)
    assert "\n" not in str(e.value).replace("\\n", "").replace("x=1\nimport os", "")


@pytest.mark.parametrize(
    ("name", "option"), [("target", "--target"), ("incident_id", "--incident"), ("lang", "--lang")]
)
def test_what_has_an_option_of_its_own_is_no_parameter(name: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"^-p {name}: use {option}$"):
        parse_parameters(("window_minutes=5", f"{name} = here"))


@given(st.text(max_size=80))
def test_an_incident_never_leaves_its_folder(incident: str) -> None:
    try:
        name = validate({"incident_id": incident}).incident_id
    except UsageError:
        return
    assert (Path("/archive") / name).resolve().parent == Path("/archive")


def test_text_from_a_command_line_becomes_a_number() -> None:
    assert validate({"window_minutes": "15"}).window_minutes == 15


def test_times_are_utc() -> None:
    assert moment("2026-01-31T12:00:00+09:00") == moment("2026-01-31T03:00:00") == moment("2026-01-31T03:00Z")


@pytest.mark.parametrize("name", ["from_time", "detected_at"])
def test_a_time_without_an_offset_is_shown_in_both_zones(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with pytest.raises(UsageError) as e:
            validate({name: "2026-01-31 12:00"})
    finally:
        monkeypatch.undo()
        time.tzset()
    said = "write 2026-01-31T12:00:00+09:00 (this machine's zone) or 2026-01-31T12:00:00Z"
    assert str(e.value) == f"parameter {name}='2026-01-31 12:00': it has no offset: {said}"


def test_a_clock_that_is_a_little_ahead_is_no_future() -> None:
    ahead = (pd.Timestamp.now("UTC") + pd.Timedelta(seconds=90)).isoformat()
    assert validate({"to_time": ahead, "detected_at": ahead}).to_time == ahead


def test_declared_reads_what_inspection_by_regex_drops(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("a: str | None = None\nb = c = 1\n# d = 2\ne: int = 3")
    cell.metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    assert declared_names(tmp_path / "n.ipynb") == ["a", "b", "c", "e"]


# Who and what may stand in them -----------------------------------------------------------------------------


def test_free_texts_are_those_in_which_anybody_may_be_named() -> None:
    assert set(free_texts()) == {"approved_by", "reason"}


def test_no_file_of_a_dossier_holds_what_a_parameter_says_of_a_person(no_settings: None, tmp_path: Path) -> None:
    """A headless run of a section that can act: parameters cell, metadata, header, log, page."""
    # A password that is also a word of the parameters which are no free text: these stay as they are.
    env = os.environ | {"RUNBOOK_DATABASE_URL": "postgresql://runbook:default@127.0.0.1:9/app"}
    reason = "reason=user_id=alice.smith waits, password=hunter2"
    given = ["-p", reason, "-p", "approved_by=user_id=bob.jones", "-p", "execute=true", "-p", "wait_s=5"]
    done = runbook("run", "5.1", "--incident", "default-1", *given, env=env, cwd=tmp_path)
    assert done.returncode in (2, 3), done.stderr
    archive = Archive(str(tmp_path / "outputs"), "default-1")
    for file in filter(Path.is_file, Path(archive.place).rglob("*")):
        for secret in (b"alice", b"bob.jones", b"hunter2"):
            assert secret not in file.read_bytes(), f"{secret!r} in {file}"
    (entry,) = [e for e in archive.artifacts() if e.get("section")]
    assert (entry["parameters"]["target"], entry["parameters"]["incident_id"]) == ("default", "default-1")
    masked = entry["parameters"]["reason"]
    assert masked.endswith(" waits, password=***") and len(TOKEN.findall(masked)) == 1
    nb = nbformat.reads(archive.read(f"{entry['name']}.ipynb").decode(), as_version=4)
    (cell,) = [c for c in nb.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert json.dumps(masked) in cell.source and nb.metadata.papermill.parameters.reason == masked
    assert {line["reason"] for line in archive.lines(ACTION)} == {masked}, "one token wherever the person is met"
    assert {line["approved_by"] for line in archive.lines(ACTION)} == {entry["parameters"]["approved_by"]}


def test_a_run_shows_its_parameters_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a browser nothing has masked them before."""
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path))
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", "postgresql://runbook:default@127.0.0.1:9/app")
    rb = quiet_session("5.1", incident_id="default-1", reason="user_id=alice.smith waits")
    rb.context.archive.prepare()
    assert "alice" not in repr(rb._header())
    assert rb._header().parameters["reason"].startswith("user_id=user-")
    assert rb._header().parameters.keys() == {"incident_id", "reason"}, "what was not given is not said"


def test_a_section_opened_without_a_target_can_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", "postgresql://runbook:default@127.0.0.1:9/app")
    monkeypatch.setattr(watch, "run_section", quiet_session)
    _, lines = next(watch.watching("4.1", 10.0))
    assert lines[0].endswith("  default 4.1")
