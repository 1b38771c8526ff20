"""How long dossiers are kept, and whom they lead to."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.dossier import seal
from runbook_lib.governance import keeping
from runbook_lib.privacy import masking
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.settings import Settings
from runbook_lib.store import archive as store
from runbook_lib.store.archive import ACTION_LOG, MANIFEST, NOTES, PARTIAL, SALTS, Archive
from tests.kit.command import runbook

URL = "postgresql://runbook:first-word@127.0.0.1:1/x"
ALICE, BOB = "alice-0001", "bob-000002"
Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    (tmp_path / "runbook.toml").write_text(
        '[targets.prod]\ndatabase_url_env = "PROD"\nkeep_days = 30\n[targets.other]\ndatabase_url_env = "PROD"\n'
    )
    home = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}

    def run(*arguments: str, **env: str) -> CompletedProcess[str]:
        return runbook(*arguments, env=home | {"PROD": URL} | env, cwd=tmp_path)

    return run


def masker(archive: Archive) -> Masker:
    return Masker.of([URL], archive.incident, archive.salts)


def dossier(tmp_path: Path, incident: str, *, target: str = "prod", days_ago: float = 0) -> Archive:
    """A dossier in which Alice and Bob stand, whose last line is so many days old."""
    archive = Archive(str(tmp_path / "outputs"), incident)
    archive.prepare()
    own = masker(archive)
    ended = (pd.Timestamp.now("UTC") - pd.Timedelta(days=days_ago)).isoformat()
    text = f"{own.person(ALICE)} waits, and {own.person(BOB)}"
    entry = {"name": "a", "section": "8", "status": "OK", "started": ended, "parameters": {"target": target}}
    archive.append(entry, {"a.txt": text.encode(), "evidence/a.json": b"{}"})
    return archive


def journal(archive: Archive) -> list[dict[str, Any]]:
    return keeping.journal(archive.output).lines(ACTION_LOG)


@given(st.text(min_size=1), st.text(min_size=1))
def test_only_who_shares_the_salt_is_forgotten_too(one: str, other: str) -> None:
    salts = masking.new_salts()
    after = masking.replace_salt(salts, one)
    before, now = (Masker.of([URL], "INC-1", lambda salts=s: salts) for s in (salts, after))  # type: ignore[misc]
    assert len(after) == len(salts)
    assert before.person(one) != now.person(one)
    if masking._salt_position(one) != masking._salt_position(other):
        assert before.person(other) == now.person(other)


def test_who_is_erased_is_made_from_nothing_and_the_seal_is_whole(tmp_path: Path, command: Command) -> None:
    archive, aside = dossier(tmp_path, "INC-1"), dossier(tmp_path, "INC-2", target="other")
    alice, bob = (str(masker(archive).person(user)) for user in (ALICE, BOB))
    before = seal.chain_head(archive)
    done = command("erase", ALICE)
    assert (done.returncode, done.stderr) == (0, "")
    assert alice in done.stdout and ALICE not in done.stdout
    assert masker(archive).person(ALICE) != alice and masker(archive).person(BOB) == bob
    assert alice.encode() in archive.read("a.txt")
    whole = seal.check(archive, [before])
    assert (whole.changed, whole.uncovered, whole.chain_head) == ((), (), before)

    lines = journal(archive)
    assert [(e["what"], e["result"]) for e in lines] == [("erase", "begun"), ("erase", "done")]
    assert all(e["tokens"]["INC-1"] == [alice] and len(e["tokens"]) == 2 and e["who"] for e in lines)
    assert ALICE not in str(lines) and aside.incident in lines[0]["tokens"]
    told = next(iter(seal.find_seals(done.stdout)))
    verified = command("verify", keeping.JOURNAL, "--output", f"outputs/{keeping.FOLDER}", "--checkpoint", str(told))
    assert verified.returncode == 0, verified.stderr


def test_a_token_copied_into_a_note_stays_the_token(tmp_path: Path, command: Command) -> None:
    archive = dossier(tmp_path, "INC-1")
    alice, bob = (masker(archive).person(user) for user in (ALICE, BOB))
    assert command("note", "INC-1", f"userId={alice} and userId={BOB} wait").returncode == 0
    assert archive.lines(NOTES)[-1]["text"] == f"userId={alice} and userId={bob} wait"


def test_a_changed_password_does_not_save_a_token_from_erasure(tmp_path: Path, command: Command) -> None:
    archive = dossier(tmp_path, "INC-1")
    alice = masker(archive).person(ALICE)
    assert command("erase", ALICE, PROD=URL.replace("first", "second")).returncode == 0
    assert masker(archive).person(ALICE) != alice


def test_what_can_not_be_erased_is_said(tmp_path: Path, command: Command) -> None:
    plain = dossier(tmp_path, "INC-1")
    plain.add_line(NOTES, {"time": "2026-01-01T00:00:00Z", "who": "x", "text": f"called {BOB}"})
    left = command("erase", BOB)
    assert left.returncode == 1 and "INC-1: notes.jsonl contains the user id itself" in left.stderr
    assert command("erase", "user-1a2b3c4d").returncode == 64


def test_an_incident_that_has_lines_keeps_its_tokens_unless_its_salts_are_lost(tmp_path: Path) -> None:
    archive = dossier(tmp_path, "INC-1")
    salts = archive.salts()
    archive.prepare()
    assert archive.salts() == salts and len(salts) == 32_768
    assert SALTS not in archive.names()
    (tmp_path / "outputs" / "INC-1" / SALTS).unlink()  # as in a copy without hidden files
    assert len(new := archive.salts()) == len(salts) and new != salts


def test_salts_are_never_guessable_where_the_store_is_silent(tmp_path: Path) -> None:
    archive = dossier(tmp_path, "INC-1")
    (tmp_path / "outputs" / "INC-1" / SALTS).unlink()
    (tmp_path / "outputs" / "INC-1" / SALTS).mkdir()
    assert masker(archive).person(ALICE) != Masker.of([URL], "INC-1").person(ALICE)


@pytest.mark.parametrize("name", ["INC-1", "NEW"])
def test_the_first_write_on_a_full_disk_leaves_no_guessable_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: Command
) -> None:
    archive = Archive(str(tmp_path / "outputs"), name)
    if name != "NEW":
        archive.make()

    with monkeypatch.context() as disk:
        disk.setattr(store, "write_whole", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        alice = masker(archive).person(ALICE)  # before anything is prepared
        archive.prepare()
        assert alice == masker(archive).person(ALICE) != Masker.of([URL], name).person(ALICE)
        with pytest.raises(OSError, match="No space left"):
            archive.add_line(NOTES, {"text": alice})
    assert archive.names() == ["evidence"], "without salts there is no line"
    archive.add_line(NOTES, {"text": alice})
    assert Archive(archive.output, name).salts() and masker(archive).person(ALICE) == alice
    monkeypatch.setattr(store, "_unstored", {})
    assert masker(archive).person(ALICE) == alice, "another process has the same"
    assert command("erase", ALICE).returncode == 0 and masker(archive).person(ALICE) != alice


def test_what_is_old_is_removed_but_nothing_on_hold(tmp_path: Path, command: Command) -> None:
    old = dossier(tmp_path, "OLD", days_ago=31)
    kept = [
        dossier(tmp_path, "YOUNG", days_ago=29),
        dossier(tmp_path, "HELD", days_ago=400),
        dossier(tmp_path, "EVER", target="other", days_ago=400),
        dossier(tmp_path, "GONE", target="gone", days_ago=400),
    ]
    was = seal.chain_head(old)
    held = command("hold", "HELD", "--reason", "case 7")
    assert held.returncode == 0 and command("hold", "HELD", "--reason", "again").returncode == 64
    dry = command("retain")
    assert "OLD (prod)" in dry.stdout and "HELD" in dry.stdout and "YOUNG" not in dry.stdout
    assert dry.returncode == 1 and "GONE" in dry.stderr and old.names()

    assert command("retain", "--execute").returncode == 1
    assert not (tmp_path / "outputs" / "OLD").exists() and all(archive.names() for archive in kept)
    hold, *removed, retained = journal(old)
    assert (retained["what"], retained["removed"]) == ("retain", 1)
    assert (hold["what"], hold["incident"], hold["reason"]) == ("hold", "HELD", "case 7")
    assert [(e["incident"], e["seal"], e["result"]) for e in removed] == [
        ("OLD", str(was), r) for r in ("begun", "done")
    ]

    assert command("hold", "HELD", "--release", "--reason", "case 7 is closed").returncode == 0
    assert "HELD (prod)" in command("retain", "--execute").stdout
    assert not (tmp_path / "outputs" / "HELD").exists()


@pytest.mark.parametrize("days_ago", [400, -1])
def test_a_clock_that_contradicts_the_newest_line_removes_nothing(
    tmp_path: Path, command: Command, days_ago: float
) -> None:
    """The newest line is of 400 days ago for a clock that is ahead, and of the future for one that is behind."""
    old = dossier(tmp_path, "OLD", days_ago=401)
    dossier(tmp_path, "NEWEST", days_ago=days_ago)
    refused = command("retain", "--execute")
    assert refused.returncode == 64 and "the clock shows" in refused.stderr and "Traceback" not in refused.stderr
    assert old.names()
    assert command("retain", "--execute", "--clock-is-right").returncode == 0
    assert not old.names()
    assert command("retain", "--execute").returncode == (0 if days_ago > 0 else 64), "its own line is the newest now"


def died(tmp_path: Path, incident: str, *, days_ago: float, target: str | None = "prod") -> Archive:
    """A dossier of one run, which died; without a target it had not begun to write."""
    archive = Archive(str(tmp_path / "outputs"), incident)
    archive.prepare()
    stem = archive.reserve(f"{pd.Timestamp.now('UTC') - pd.Timedelta(days=days_ago):%Y%m%dT%H%M%SZ}-4.1")
    if target:
        shown = {"cells": [f"{masker(archive).person(ALICE)} waits"]}
        run = {"metadata": {"papermill": {"parameters": {"target": target}}}}
        archive.write(f"{stem}{PARTIAL}", json.dumps(shown | run).encode())
    return archive


def test_a_run_that_died_is_erased_and_removed_like_others(tmp_path: Path, command: Command) -> None:
    archive, young = died(tmp_path, "DIED", days_ago=31), died(tmp_path, "YOUNG", days_ago=1)
    alice = str(masker(archive).person(ALICE))
    done = command("erase", ALICE)
    assert done.returncode == 0 and alice in done.stdout and masker(archive).person(ALICE) != alice
    removed = command("retain", "--execute")
    assert removed.returncode == 0 and "DIED (prod)" in removed.stdout
    assert not archive.names() and young.names()


def test_an_old_dossier_without_a_target_is_told(tmp_path: Path, command: Command) -> None:
    outputs = tmp_path / "outputs"
    for name, days_ago in (("NOTES", 31), ("NEW", 1)):
        noted = Archive(str(outputs), name)
        noted.prepare()
        at = (pd.Timestamp.now("UTC") - pd.Timedelta(days=days_ago)).isoformat()
        noted.add_line(NOTES, {"time": at, "who": "x", "text": "called", "section": ""})
    died(tmp_path, "EMPTY", days_ago=31, target=None)
    told = command("retain", "--execute")
    assert told.returncode == 1 and {"NOTES", "EMPTY"} == {line.split(":")[0] for line in told.stderr.splitlines()}
    assert (outputs / "NOTES" / NOTES).exists() and (outputs / "NEW").exists()


def test_a_hold_that_was_taken_out_of_the_journal_lets_nothing_go(tmp_path: Path, command: Command) -> None:
    for incident in ("HELD", "OLD"):
        keeping.hold(dossier(tmp_path, incident, days_ago=31), "case 7")
    kept = keeping.journal(str(tmp_path / "outputs"))
    kept.write(ACTION_LOG, kept.raw(ACTION_LOG)[1] + b"\n")
    refused = command("retain", "--execute")
    assert refused.returncode == 64 and "was changed after it was sealed" in refused.stderr
    assert (tmp_path / "outputs" / "HELD" / MANIFEST).exists()


def test_what_goes_on_meanwhile_is_not_removed(tmp_path: Path) -> None:
    archive, now = dossier(tmp_path, "OLD", days_ago=31), pd.Timestamp.now("UTC")
    config = Settings(targets={"prod": {"database_url": URL, "keep_days": 30}})
    found = keeping.find_expired(archive, config, now)
    assert isinstance(found, keeping.ExpiredDossier) and found.last < now
    archive.reserve(f"{now:%Y%m%dT%H%M%SZ}-4.1")
    assert not keeping.remove(found, config, now) and archive.read(MANIFEST)


def test_a_removal_leaves_alone_what_a_link_leads_to(tmp_path: Path) -> None:
    archive, outside = dossier(tmp_path, "OLD"), tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (tmp_path / "outputs" / "OLD" / "link").symlink_to(outside)
    (tmp_path / "outputs" / "LINK").symlink_to(outside)
    archive.remove()
    with pytest.raises(OSError, match="it is a symbolic link"):
        Archive(archive.output, "LINK").remove()
    assert (outside / "file").exists() and not (tmp_path / "outputs" / "OLD").exists()
