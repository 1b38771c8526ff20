"""Parameters are checked before a kernel starts; what is wrong is one line."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib import catalog
from runbook_lib.parameters import Parameters, declared, moment, validate
from runbook_lib.settings import UsageError


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


@pytest.mark.parametrize("section", catalog.load().runnable().values(), ids=lambda s: s.number)
def test_a_notebook_declares_only_what_is_validated(section: catalog.Section) -> None:
    assert section.notebook
    names = declared(section.notebook)
    assert {"incident_id", "target", "window_minutes", "as_of", "lang"} <= set(names) <= set(Parameters.model_fields)


def test_declared_reads_what_inspection_by_regex_drops(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("a: str | None = None\nb = c = 1\n# d = 2\ne: int = 3")
    cell.metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    assert declared(tmp_path / "n.ipynb") == ["a", "b", "c", "e"]
