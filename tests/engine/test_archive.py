"""Artifacts: never overwritten, sealed in a chain, in a folder or under a URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import get_native_id
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest

from runbook_lib.book import catalog
from runbook_lib.checks.context import Context
from runbook_lib.cli import main
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError
from runbook_lib.packs.postmortem.incident import read_runs
from runbook_lib.store import files
from runbook_lib.store.archive import LOG, NOTE, Archive
from runbook_lib.store.run import Run, run_to_json


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
    assert [e["name"] for e in archive.artifacts()] == ["a0", "a1", "a2"]


def test_an_altered_line_is_found(archive: Archive) -> None:
    fill(archive)
    lines = archive.read(LOG).splitlines()
    entry = json.loads(lines[0]) | {"status": "OK"}
    archive.write(LOG, b"\n".join([json.dumps(entry).encode(), *lines[1:]]) + b"\n")
    assert say("seal.apart", n=2, before=1) in archive.problems()


def test_a_run_that_could_not_be_read_once_is_read_when_it_can_be(archive: Archive) -> None:
    name, evidence = "a-3-OK", json.dumps(run_to_json(Run("3", {}, []))).encode()
    entry = {"name": name, "section": "3", "status": "OK", "started": "2026-01-01T00:00:00Z"}
    archive.append(entry, {f"evidence/{name}.json": evidence})
    rb = cast(Context, SimpleNamespace(archive=archive, catalog=catalog.load()))
    read = []
    for content in (b"lost", evidence):
        archive.write(f"evidence/{name}.json", content)
        read += [run for _, run in read_runs(rb)]
    assert read[0] is None and read[1] is not None


def test_writers_side_by_side_keep_the_chain(tmp_path: Path) -> None:
    Archive(str(tmp_path), "INC-1").prepare()

    def write(n: int) -> None:
        Archive(str(tmp_path), "INC-1").append({"name": f"a{n}"}, {f"a{n}": b"x"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    archive = Archive(str(tmp_path), "INC-1")
    assert len(archive.artifacts()) == 40
    assert archive.problems() == []


def test_a_lock_that_is_not_released_is_one_line(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "LOCK_S", 0.01)
    with archive.locked():  # by another process, as far as a second lock can tell
        assert main._run_command(["note", "INC-1", "x", "--new", "--output", archive.output]) == 69
        with pytest.raises(TimeoutError, match=r"^\[.*\] (/\S+) has been locked by another process .*`fuser -v \1`"):
            archive.add_line(NOTE, {"text": "x"})
    said = capsys.readouterr().err
    assert "has been locked by another process" in said and said.count("\n") == 1
    archive.add_line(NOTE, {"text": "x"})


def test_who_is_overtaken_waits_as_long_as_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, clock = Archive(str(tmp_path), "INC-1"), [0.0]
    archive.prepare()
    with ExitStack() as held:
        held.enter_context(archive.locked())

        def sleep(_: float) -> None:
            """Each time the deadline passes; four times another file was written, then the lock is released."""
            clock[0] += 2 * files.LOCK_S
            os.utime(tmp_path / "INC-1", (clock[0], clock[0]))
            if clock[0] > 8 * files.LOCK_S:
                held.close()

        monkeypatch.setattr(files, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
        archive.add_line(NOTE, {"text": "x"})
    assert len(archive.lines(NOTE)) == 1


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


# Full disks, kills and power cuts ---------------------------------------------------------------------------


@pytest.mark.parametrize("left", [b"", b"\n"], ids=["zero-bytes", "a-newline"])
def test_a_log_without_entries_takes_entries(archive: Archive, left: bytes) -> None:
    archive.write(LOG, left)
    for text in ("one", "two"):
        archive.add_line(NOTE, {"text": text})
    assert [json.loads(line)["text"] for line in archive.raw() if line] == ["one", "two"]
    assert (archive.problems() == []) is (left == b""), "a line of nothing is no line of ours"


def test_an_entry_stands_on_a_line_of_its_own_behind_half_a_line(archive: Archive) -> None:
    archive.add_line(NOTE, {"text": "one"})
    archive.write(LOG, archive.read(LOG) + b'{"text": "tw')
    archive.add_line(NOTE, {"text": "three", "job": "j"})
    lines = archive.raw()
    assert json.loads(lines[-1])["text"] == "three" and len(lines) == 3
    assert archive.problems() == [say("seal.not_json", n=2)]
    with pytest.raises(OSError, match=rf"line 2 is not a valid log entry.*{LOG}") as e:
        archive.lines(NOTE)
    assert "\n" not in str(e.value)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is made durable and what gets its name, in this order."""
    seen: list[tuple[str, str]] = []
    sync, replace, link = os.fsync, Path.replace, Path.hardlink_to

    def recorded_sync(descriptor: int) -> None:
        seen.append(("sync", Path(f"/proc/self/fd/{descriptor}").resolve().name))
        sync(descriptor)

    def recorded_replace(self: Path, path: Path) -> Path:
        seen.append((f"replace {path.name}", self.name))
        return replace(self, path)

    def recorded_link(self: Path, path: Path) -> None:
        seen.append((f"create {self.name}", path.name))
        link(self, path)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    monkeypatch.setattr(Path, "hardlink_to", recorded_link)
    return seen


def test_a_log_is_durable_before_it_has_its_name_and_its_name_is_durable_after(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    assert ("sync", tmp_path.name) in calls, "the incident's folder in its own"
    for how in ("create", "replace"):
        calls.clear()
        archive.add_line(NOTE, {"text": "one"})
        draft = calls[0][1]
        assert calls == [("sync", draft), (f"{how} {LOG}", draft), ("sync", "INC-1")]
    calls.clear()
    archive.append({"name": "a"}, {"a.ipynb": b"x", "evidence/a.json": b"{}"})
    named = [what for what, _ in calls if what != "sync"]
    assert named == ["replace a.ipynb", "replace a.json", f"replace {LOG}"]
    assert [what for what, _ in calls].count("sync") == 2 * len(named), "file and folder of each"
    left = {f.name for f in (tmp_path / "INC-1").iterdir()}
    assert left == {".salt", "evidence", "a.ipynb", LOG}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "killed"])
def test_what_ends_before_the_first_write_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", Mock(side_effect=error))
        with pytest.raises(type(error)):
            archive.add_line(NOTE, {"text": "one"})
    assert {f.name for f in (tmp_path / "INC-1").iterdir()} == {".salt", "evidence"}
    archive.add_line(NOTE, {"text": "one"})
    assert archive.problems() == []


def test_an_artifact_that_found_no_room_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    kept = {"a.ipynb": b"1"}
    archive.append({"name": "a"}, kept)

    with monkeypatch.context() as disk:
        disk.setattr(Archive, "_add_line", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            archive.append({"name": "b"}, {"b.ipynb": b"2", "b.html": b"3", **kept})
    assert archive.problems() == [] and not {"b.ipynb", "b.html"} & {*archive.names()}
    assert archive.read("a.ipynb") == b"1"


def test_a_planted_draft_leads_nowhere(tmp_path: Path) -> None:
    draft = tmp_path / f".a.{os.getpid()}.{get_native_id()}.new"
    for plant in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "elsewhere")):
        plant(draft)
        files.write_whole(tmp_path / "a", b"x")
        assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {"a": b"x"}


def test_a_file_system_without_hard_links_creates_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", Mock(side_effect=PermissionError(1, "Operation not permitted")))
    files.create_whole(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        files.create_whole(tmp_path / "a", b"two")
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {"a": b"one"}


# Two people on one machine ----------------------------------------------------------------------------------

PERSON = """
import os, sys, tempfile
from runbook_lib.store.archive import Archive
person, output, incident = int(sys.argv[1]), *sys.argv[2:]
with tempfile.TemporaryDirectory() as own:  # has its imports before it may no longer read where they lie
    first = Archive(own, "first")
    first.prepare()
    first.append({"name": "a"}, {"a.ipynb": b"x"})
os.setgroups([])
os.setgid(64000)
os.setuid(person)
os.umask(0o022)
archive = Archive(output, incident)
try:
    archive.prepare()
    for n in range(20):
        archive.append({"name": f"{person}-{n}"}, {f"{person}-{n}.ipynb": b"x"})
except Exception as e:
    print(type(e).__name__, e)
"""
ONE, OTHER = "64001", "64002"


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may enter, with a temporary folder that everybody may use."""
    if os.geteuid():
        pytest.skip("only root can be two people")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (temporary := Path(folder) / "tmp").mkdir()
        temporary.chmod(0o1777)
        monkeypatch.setenv("TMPDIR", str(temporary))
        yield Path(folder)
        assert list(temporary.iterdir()) == []


def shared(folder: Path, mode: int) -> Path:
    folder.mkdir()
    os.chown(folder, int(ONE), 64000)
    folder.chmod(mode)
    return folder


def assert_whole(output: Path, *incidents: str, artifacts: int) -> None:
    for archive in (Archive(str(output), incident) for incident in incidents):
        assert len(archive.artifacts()) == artifacts and archive.problems() == []


def persons(output: Path, *who: tuple[str, str]) -> list[str]:
    """What each of them (a uid, an incident) has to complain about, at work at the same time."""
    started = [
        subprocess.Popen([sys.executable, "-c", PERSON, uid, output, incident], stdout=subprocess.PIPE, text=True)
        for uid, incident in who
    ]
    said = [p.communicate(timeout=60)[0].strip() for p in started]
    assert [p.returncode for p in started] == [0] * len(who)
    return said


def test_two_people_write_to_one_incident_of_their_groups_folder(common: Path) -> None:
    output = shared(common / "out", 0o2775)
    assert persons(output, (ONE, "INC-1"), (OTHER, "INC-1")) == ["", ""]
    assert persons(output, (OTHER, "INC-2")) == persons(output, (ONE, "INC-2")) == [""]
    assert_whole(output, "INC-1", "INC-2", artifacts=40)
    for incident in ("INC-1", "INC-2"):
        names = Archive(str(output), incident).names()
        assert {n for n in names if not n.startswith("6400")} == {"evidence", LOG}


def test_two_people_write_to_one_incident_that_everybody_may_write_to(common: Path) -> None:
    shared(common / "out", 0o777)
    shared(common / "out" / "INC-1", 0o777)
    assert persons(common / "out", (ONE, "INC-1")) == persons(common / "out", (OTHER, "INC-1")) == [""]
    assert_whole(common / "out", "INC-1", artifacts=40)


def test_a_folder_that_one_may_write_to_and_not_read_takes_incidents(common: Path) -> None:
    output = shared(common / "out", 0o733)
    shared(output / "INC-1", 0o777)
    assert persons(output, (OTHER, "INC-1"), (OTHER, "INC-2")) == ["", ""]
    assert Archive(str(output), "INC-2").problems() == []


@pytest.mark.parametrize(("mode", "others"), [(0o1777, [(OTHER, "INC-2")]), (0o700, [])], ids=["sticky", "own"])
def test_an_incident_that_another_may_not_write_to_is_refused(
    common: Path, mode: int, others: list[tuple[str, str]]
) -> None:
    output = shared(common / "out", mode)
    assert persons(output, (ONE, "INC-1"), *others) == ["", *("" for _ in others)]
    (refused,) = persons(output, (OTHER, "INC-1"))
    assert refused.startswith("OutputError") and "Permission denied" in refused and "\n" not in refused
    assert_whole(output, "INC-1", *(incident for _, incident in others), artifacts=20)


def test_no_lock_of_a_store_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after a write nor after somebody who was killed while they wrote."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    archive = Archive(f"memory://{tmp_path.name}", "INC-1")
    seen: list[Path] = []

    def write(*_: object) -> None:
        seen.extend(tmp_path.iterdir())
        raise GeneratorExit  # no Exception, as when the process dies

    with monkeypatch.context() as dies:
        dies.setattr(Archive, "write", write)
        dies.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(GeneratorExit):
            archive.append({"name": "a"}, {"a.ipynb": b"x"})
    assert len(seen) == 1 and list(tmp_path.iterdir()) == seen
    archive.append({"name": "a"}, {"a.ipynb": b"x"})
    assert list(tmp_path.iterdir()) == []
    assert archive.problems() == []
