"""Who may read a dossier: whatever the umask, its owner, and in a group's folder the group."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from runbook_lib.receiver.journal import Journal
from runbook_lib.store.archive import NOTE, SALT, Archive
from tests.kit import command

UMASKS = pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)


@contextmanager
def masked(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, set[str]]:
    """Return the modes of a folder with all that lies in it, of folders and of files."""
    found: dict[str, set[str]] = {"folders": set(), "files": set()}
    for path in (folder, *folder.rglob("*")):
        found["folders" if path.is_dir() else "files"].add(oct(stat.S_IMODE(path.stat().st_mode)))
    return found


@pytest.mark.parametrize("umask", [0o000, 0o022], ids=oct)
def test_a_run_s_dossier_is_its_owner_s(tmp_path: Path, umask: int) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    env |= {"RUNBOOK_DATABASE_URL": "postgresql://u@127.0.0.1:1/x", "RUNBOOK_NATS_URL": "nats://127.0.0.1:1"}
    output = tmp_path / "made" / "outputs"
    asked = ("run", "5.3", "--incident", "I", "--output", str(output))
    assert command.alone(*asked, env=env, cwd=tmp_path, umask=umask).returncode == 3
    with masked(umask):
        Archive(str(output), "I").add_line(NOTE, {"text": "seen"})
    assert (output / "I" / SALT).is_file()
    assert modes(tmp_path / "made") == {"folders": {"0o700"}, "files": {"0o600"}}


@UMASKS
def test_a_group_s_dossier_is_the_group_s(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o2775)
    with masked(umask):
        archive = Archive(str(tmp_path), "I")
        archive.prepare()
        archive.append({"name": "a"}, {"a.ipynb": b"x", "evidence/a.json": b"x"})
    assert modes(tmp_path / "I") == {"folders": {"0o2770"}, "files": {"0o640"}}


@UMASKS
def test_the_receiver_s_files_are_its_own(tmp_path: Path, umask: int) -> None:
    with masked(umask), closing(Journal(tmp_path / "receiver.db")):
        assert modes(tmp_path)["files"] == {"0o600"}
