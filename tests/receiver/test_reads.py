"""The log of who read what: each read is appended, nothing of a day is read again, and old days go."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from runbook_lib.dossier import seal
from runbook_lib.receiver import reads
from runbook_lib.receiver.reads import AccessLog
from runbook_lib.store.archive import NOTES, Archive
from tests.kit.limits import files_up_to


def log_of(folder: Path) -> Path:
    """The log of the one day that is there."""
    (day,) = (folder / "receiver.reads").iterdir()
    return day / NOTES


def archive_of(folder: Path) -> Archive:
    return Archive(str(folder / "receiver.reads"), log_of(folder).parent.name)


@pytest.fixture
def log(tmp_path: Path) -> AccessLog:
    return AccessLog(tmp_path / "receiver.db", keep_days=400)


def test_a_read_is_appended_and_nothing_is_read_again(
    log: AccessLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.record("user aoki", "/", "127.0.0.1")
    file = log_of(tmp_path)
    before, inode = file.read_bytes(), file.stat().st_ino

    def refused(*_: Any) -> Any:
        raise AssertionError("the whole log is read or written")

    with monkeypatch.context() as patched:
        for name in ("read", "write", "raw", "lines", "manifest"):
            patched.setattr(Archive, name, refused)
        for n in range(10):
            log.record("user 青木", f"/incidents/{n}", "127.0.0.1")
    assert file.stat().st_ino == inode and file.read_bytes().startswith(before)
    lines = archive_of(tmp_path).lines(NOTES)
    assert [e["what"] for e in lines] == ["/", *(f"/incidents/{n}" for n in range(10))]
    assert lines[-1]["who"] == "user 青木" and lines[0]["previous"] is None
    assert archive_of(tmp_path).problems() == []
    (told,) = log.seals()
    assert seal.check(archive_of(tmp_path), seal.find_seals(told)).changed == ()


def test_several_readers_at_once_leave_one_chain(log: AccessLog, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: log.record("token", f"/{n}", ""), range(100)))
    assert len(archive_of(tmp_path).lines(NOTES)) == 100
    assert archive_of(tmp_path).problems() == []


@pytest.mark.parametrize("left", [b"", b'{"half', b'{"time": "2026-01-31"}'], ids=["empty", "half", "no newline"])
@pytest.mark.parametrize("restarted", [True, False])
def test_what_a_killed_receiver_left_is_no_end(log: AccessLog, tmp_path: Path, left: bytes, restarted: bool) -> None:
    log.record("token", "/first", "")
    file = log_of(tmp_path)
    file.write_bytes((file.read_bytes() if left else b"") + left)
    log = AccessLog(tmp_path / "receiver.db", keep_days=400) if restarted else log
    if restarted and left:
        assert archive_of(tmp_path).problems() == [], "a half line looks like a change to `runbook verify`"
    log.record("token", "/second", "")
    assert [e["what"] for e in archive_of(tmp_path).lines(NOTES)] == (["/first"] if left else []) + ["/second"]
    assert archive_of(tmp_path).problems() == []


def test_a_lock_that_another_process_holds_is_waited_for_within_a_limit(
    log: AccessLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "LOCK_S", 0.1)
    log.record("token", "/first", "")
    held = os.open(log_of(tmp_path).parent, os.O_RDONLY)  # anybody who can read the folder can lock it
    fcntl.flock(held, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        try:
            for asked in (pool.submit(log.record, "token", "/second", ""), pool.submit(log.seals)):
                with pytest.raises(TimeoutError, match="lock"):
                    asked.result(10)
            AccessLog(tmp_path / "receiver.db", keep_days=2)
        finally:
            os.close(held)
    log.record("token", "/third", "")
    assert [e["what"] for e in archive_of(tmp_path).lines(NOTES)] == ["/first", "/third"]


def test_a_full_disk_leaves_no_half_line(log: AccessLog, tmp_path: Path) -> None:
    log.record("token", "/first", "")
    file = log_of(tmp_path)
    whole = file.read_bytes()
    with files_up_to(len(whole) + 20), pytest.raises(OSError, match=r"large|space") as e:
        log.record("token", "/second", "")
    assert e.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert file.read_bytes() == whole
    log.record("token", "/third", "")
    assert [e["what"] for e in archive_of(tmp_path).lines(NOTES)] == ["/first", "/third"]


def test_the_newest_days_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = today = pd.Timestamp("2026-01-01", tz="UTC")
    monkeypatch.setattr(reads, "pd", SimpleNamespace(Timestamp=SimpleNamespace(now=lambda _: today)))
    log = AccessLog(tmp_path / "receiver.db", keep_days=3)
    folder = tmp_path / "receiver.reads"

    def days() -> list[str]:
        return sorted(p.name for p in folder.iterdir())

    for n in range(5):
        today = first + pd.Timedelta(days=n)
        log.record("token", "/", "")
    (folder / "notes of an auditor").mkdir()
    assert days() == ["2026-01-03", "2026-01-04", "2026-01-05", "notes of an auditor"]
    today = pd.Timestamp("2036-01-01", tz="UTC")  # a clock that is set wrong takes one day's log away, not all
    log.record("token", "/", "")
    assert days() == ["2026-01-04", "2026-01-05", "2036-01-01", "notes of an auditor"]
    today = pd.Timestamp("2026-01-06", tz="UTC")
    log.record("token", "/", "")
    assert days() == ["2026-01-05", "2026-01-06", "2036-01-01", "notes of an auditor"]
    today = pd.Timestamp("2020-01-01", tz="UTC")
    log.record("token", "/", "")
    assert days() == ["2020-01-01", "2026-01-06", "2036-01-01", "notes of an auditor"], "never the log of today"
    AccessLog(tmp_path / "receiver.db", keep_days=2)
    assert days() == ["2026-01-06", "2036-01-01", "notes of an auditor"]
    assert [told.split(":")[1] for told in log.seals()] == ["2026-01-06", "2036-01-01"]


def test_days_that_cannot_be_removed_hold_up_no_reader(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in (1, 2):
        (tmp_path / "receiver.reads" / f"2020-01-0{n}").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "receiver.reads" / "2019-01-01").symlink_to(tmp_path / "elsewhere")
    log = AccessLog(tmp_path / "receiver.db", keep_days=2)
    log.record("token", "/", "")
    assert (tmp_path / "elsewhere").is_dir()
    assert "2019-01-01" in caplog.text
    day = max(p for p in (tmp_path / "receiver.reads").iterdir())
    assert json.loads((day / NOTES).read_text())["what"] == "/"
