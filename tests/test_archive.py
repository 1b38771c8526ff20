"""Artifacts: never overwritten, sealed in a chain, in a folder or under a URL."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runbook_lib.archive import MANIFEST, Archive
from runbook_lib.settings import UsageError


@pytest.fixture(params=["folder", "memory"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    output = str(tmp_path / "out") if request.param == "folder" else f"memory://{tmp_path.name}"
    archive = Archive(output, "INC-1")
    archive.prepare()
    return archive


def fill(archive: Archive, count: int = 3) -> None:
    for n in range(count):
        archive.append({"name": f"a{n}"}, {f"a{n}.ipynb": f"notebook {n}".encode()})


def test_whole(archive: Archive) -> None:
    fill(archive)
    assert archive.problems() == []
    assert [e["name"] for e in archive.manifest()] == ["a0", "a1", "a2"]


def test_a_changed_file_is_found(archive: Archive) -> None:
    fill(archive)
    archive.write("a1.ipynb", b"altered")
    assert archive.problems() == ["a1.ipynb was changed after it was sealed"]


@pytest.mark.parametrize("line", [0, 1])
def test_a_line_taken_out_is_found(archive: Archive, line: int) -> None:
    fill(archive)
    lines = archive.read(MANIFEST).splitlines(keepends=True)
    archive.write(MANIFEST, b"".join(lines[:line] + lines[line + 1 :]))
    assert any("does not follow" in p for p in archive.problems())


def test_an_altered_line_is_found(archive: Archive) -> None:
    fill(archive)
    lines = archive.read(MANIFEST).splitlines()
    entry = json.loads(lines[0]) | {"status": "OK"}
    archive.write(MANIFEST, b"\n".join([json.dumps(entry).encode(), *lines[1:]]) + b"\n")
    assert any("line 2 does not follow" in p for p in archive.problems())


def test_writers_side_by_side_keep_the_chain(tmp_path: Path) -> None:
    Archive(str(tmp_path), "INC-1").prepare()

    def write(n: int) -> None:
        Archive(str(tmp_path), "INC-1").append({"name": f"a{n}"}, {f"a{n}": b"x"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    archive = Archive(str(tmp_path), "INC-1")
    assert len(archive.manifest()) == 40
    assert archive.problems() == []


def test_two_runs_in_one_second_have_two_names(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    first = archive.reserve("20260101T000000Z-4.1")
    assert archive.reserve("20260101T000000Z-4.1") == f"{first}.2"
    archive.write(f"{first}-OK.ipynb", b"")
    (tmp_path / "INC-1" / f"{first}.partial.ipynb").unlink()
    assert archive.reserve("20260101T000000Z-4.1") == f"{first}.3"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written") as e:
        Archive(str(tmp_path / "file"), "INC-1").prepare()
    assert "\n" not in str(e.value)
