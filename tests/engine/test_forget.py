"""The salt of an incident's tokens, and `runbook forget`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import Mock

import pytest

from runbook_lib.dossier import seal
from runbook_lib.privacy.masking import Masker
from runbook_lib.store import archive as store
from runbook_lib.store.archive import NOTE, SALT, Archive
from tests.kit.command import runbook

URL = "postgresql://runbook:first-word@127.0.0.1:1/x"
ALICE, BOB = "alice-0001", "bob-000002"
Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    (tmp_path / "runbook.toml").write_text('[targets.prod]\ndatabase_url = "env:PROD"\n')
    home = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return lambda *arguments: runbook(*arguments, env=home | {"PROD": URL}, cwd=tmp_path)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """A dossier in which Alice stands."""
    archive = Archive(str(tmp_path / "outputs"), "INC-1")
    archive.prepare()
    entry = {"name": "a", "section": "8", "status": "OK", "started": "2026-01-01T00:00:00Z"}
    alice = str(token(archive, ALICE)).encode()
    archive.append(entry | {"parameters": {"target": "prod"}}, {"a.txt": alice, "evidence/a.json": b"{}"})
    return archive


def token(archive: Archive, user: str) -> object:
    return Masker.of([URL], archive.incident, archive.salt).person(user)


@pytest.mark.parametrize("salts", [[SALT], [SALT, ".salts"], [".salts"]], ids=" ".join)
def test_who_is_forgotten_has_another_token_and_the_dossier_is_unchanged(
    archive: Archive, command: Command, salts: list[str]
) -> None:
    assert archive.local
    alice, before = token(archive, ALICE), seal.chain_head(archive)
    (archive.local / SALT).rename(archive.local / salts[0])
    for name in salts:
        (archive.local / name).touch()
    done = command("forget", "INC-1")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("INC-1: the salt is deleted")
    assert not [f for f in archive.local.iterdir() if f.name.startswith(".")]
    assert archive.lines(NOTE)[-1]["text"] == done.stdout.splitlines()[0]
    own_seal = str(seal.chain_head(archive))
    assert done.stdout.splitlines()[1:] == [own_seal] and seal.check(archive, [before]).changed == ()
    assert command("verify", "INC-1", "--checkpoint", own_seal).returncode == 0

    again = command("forget", "INC-1")
    assert again.returncode == 0 and again.stdout.startswith("INC-1: the salt was deleted earlier")
    archive.prepare()
    assert token(archive, ALICE) == token(archive, ALICE) != alice


def test_an_unknown_incident_is_not_forgotten(archive: Archive, command: Command) -> None:
    refused = command("forget", "INC-2")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (64, "", 1)
    assert archive.read(SALT)


def test_a_token_copied_into_a_note_stays_the_token(archive: Archive, command: Command) -> None:
    alice, bob = token(archive, ALICE), token(archive, BOB)
    assert command("note", "INC-1", f"userId={alice} and userId={BOB} wait").returncode == 0
    assert archive.lines(NOTE)[-1]["text"] == f"userId={alice} and userId={bob} wait"


@pytest.mark.parametrize("left", [None, b""], ids=["lost", "empty"])
def test_an_incident_that_has_lines_keeps_its_tokens_unless_its_salt_is_lost(
    archive: Archive, left: bytes | None
) -> None:
    salt = archive.salt()
    archive.prepare()
    assert archive.salt() == salt and len(salt) == 32
    assert SALT not in archive.names() and archive.local
    (archive.local / SALT).unlink()  # as in a copy without hidden files
    if left is not None:
        archive.write(SALT, left)
    assert len(new := archive.salt()) == len(salt) and new != salt and archive.salt() == new


def test_a_salt_is_never_guessable_where_the_store_is_silent(archive: Archive) -> None:
    assert archive.local
    (archive.local / SALT).unlink()
    (archive.local / SALT).mkdir()
    assert token(archive, ALICE) != Masker.of([URL], "INC-1").person(ALICE)


@pytest.mark.parametrize("name", ["INC-1", "NEW"])
def test_the_first_write_on_a_full_disk_leaves_no_guessable_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    archive = Archive(str(tmp_path / "outputs"), name)
    if name != "NEW":
        archive.make()

    with monkeypatch.context() as disk:
        disk.setattr(store, "write_whole", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        alice = token(archive, ALICE)  # before anything is prepared
        archive.prepare()
        assert alice == token(archive, ALICE) != Masker.of([URL], name).person(ALICE)
        with pytest.raises(OSError, match="No space left"):
            archive.add_line(NOTE, {"text": alice})
    assert archive.names() == ["evidence"], "without a salt there is no line"
    archive.add_line(NOTE, {"text": alice})
    assert Archive(archive.output, name).salt() and token(archive, ALICE) == alice
    monkeypatch.setattr(store, "_unstored", {})
    assert token(archive, ALICE) == alice, "another process has the same"
