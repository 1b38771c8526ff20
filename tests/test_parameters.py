"""Parameters are checked before a kernel starts; what is wrong is one line."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib import catalog
from runbook_lib.parameters import accepted, declared, moment, validate
from runbook_lib.usage import UsageError


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
        ({"as_of": "yesterday-ish"}, "not a time like"),
        ({"as_of": "0001-01-01T00:00:00Z"}, "not a time like"),
        ({"as_of": "9999-12-31T23:59:59Z"}, "not a time like"),
        ({"as_of": "2200-01-31T03:00:00Z"}, "that is in the future: it is 20"),
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


@given(st.text(max_size=80))
def test_an_incident_never_leaves_its_folder(incident: str) -> None:
    try:
        accepted = validate({"incident_id": incident}).incident_id
    except UsageError:
        return
    assert (Path("/archive") / accepted).resolve().parent == Path("/archive")


def test_text_from_a_command_line_becomes_a_number() -> None:
    assert validate({"window_minutes": "15"}).window_minutes == 15


def test_times_are_utc() -> None:
    assert moment("2026-01-31T12:00:00+09:00") == moment("2026-01-31T03:00:00") == moment("2026-01-31T03:00Z")


@pytest.mark.parametrize("name", ["as_of", "detected_at"])
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
    assert validate({"as_of": ahead, "detected_at": ahead}).as_of == ahead


@pytest.mark.parametrize("section", catalog.load().runnable().values(), ids=lambda s: s.number)
def test_a_notebook_declares_only_what_is_validated(section: catalog.Section) -> None:
    assert section.notebook
    names = declared(section.notebook)
    assert {"incident_id", "target", "window_minutes", "as_of", "lang"} <= set(names) <= set(accepted().model_fields)


def test_declared_reads_what_inspection_by_regex_drops(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("a: str | None = None\nb = c = 1\n# d = 2\ne: int = 3")
    cell.metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    assert declared(tmp_path / "n.ipynb") == ["a", "b", "c", "e"]
