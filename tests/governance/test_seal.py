"""The seal: eight attacks at every line are found up to the last checkpoint; honest histories raise no alarm."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from runbook_lib.book import catalog
from runbook_lib.cli import main
from runbook_lib.dossier import overview, rejudge, seal
from runbook_lib.dossier.seal import ChainHead, Report, chain_head, check
from runbook_lib.model.usage import UsageError
from runbook_lib.receiver.journal import Journal
from runbook_lib.store.archive import ACTION, LOG, NOTE, VERDICT, Archive, entry_of
from runbook_lib.store.files import digest
from tests.kit import ROOT, effort
from tests.kit.command import runbook
from tests.kit.dossiers import COUNT, LINES, Verify, cut_off, every_line, fill, rewritten
from tests.kit.web import reply, web
from tests.tools import sample


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(str(tmp_path / "out"), "INC-1")


# The attacks: each on one line (from 0), leaving chain and digests in order wherever that can be done.


def rewrite(archive: Archive, line: int) -> None:
    lines = every_line(archive)
    lines[line] |= {"text": "all was well"}
    rewritten(archive, lines)


def swap(archive: Archive, line: int) -> None:
    lines = every_line(archive)
    for name in lines[line].get("sha256", {}):
        archive.write(name, b"another content")
    lines[line] |= {"swapped": True} if "sha256" not in lines[line] else {}
    rewritten(archive, lines)


def add(archive: Archive, line: int) -> None:
    """A file with a line of its own, at a place of the attacker's choice."""
    archive.write("added.ipynb", b"x")
    lines = every_line(archive)
    lines.insert(line, lines[0] | {"name": "added", "sha256": {"added.ipynb": ""}})
    rewritten(archive, lines)


def backdate(archive: Archive, line: int) -> None:
    lines = every_line(archive)
    lines[line] |= {"started": "2025-01-01T00:00:00Z"}
    rewritten(archive, lines)


def fork(archive: Archive, line: int) -> None:
    """Up to the line as it was, from there another history of the same length."""
    lines = every_line(archive)
    rewritten(archive, [*lines[:line], *(entry | {"branch": 2} for entry in lines[line:])])


def replay(archive: Archive, line: int) -> None:
    """The log and files of another incident, as long and as whole, in the place of this one's."""
    other = Archive(archive.output, "INC-2")
    fill(other, mark=".b")
    own, theirs = every_line(archive), every_line(other)
    for entry in theirs[line:]:
        for name in entry.get("sha256", {}):
            archive.write(name, other.read(name))
    rewritten(archive, [*own[:line], *theirs[line:]])


ATTACKS: list[Callable[[Archive, int], None]] = [
    cut_off, rewrite, swap, add, backdate, fork, replay,
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ChainHead]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, fill(Archive(str(folder), "INC-1"))


@pytest.fixture
def victim(whole: tuple[Path, list[ChainHead]], tmp_path: Path) -> tuple[Archive, list[ChainHead]]:
    shutil.copytree(whole[0], tmp_path / "out")
    return Archive(str(tmp_path / "out"), "INC-1"), whole[1]


@pytest.mark.parametrize("kind", range(len(LINES)))
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.__name__)
@pytest.mark.parametrize("line", range(COUNT))
def test_an_attack_is_found_up_to_the_last_checkpoint(
    victim: tuple[Archive, list[ChainHead]], attack: Callable[[Archive, int], None], kind: int, line: int
) -> None:
    archive, seen = victim
    attack(archive, len(LINES) * line + kind)
    assert {t.key for t in archive.problems()} <= {"seal.none"}, "the chain alone is meant to show nothing"
    at = line
    for last in range(COUNT):
        report = check(archive, seen[: last + 1])
        if last >= at:
            assert report.changed, f"checkpoint {last + 1} does not find it"
            assert all(str(s) in {t.params.get("seal") for t in report.changed} for s in seen[at : last + 1])
        else:
            assert not report.changed
            assert report.uncovered or attack is cut_off, "lines without a checkpoint are reported"
        # What came before the attack stays attested, and nothing beyond it does.
        assert report.covered == min(at, last + 1) * len(LINES)


def test_without_a_checkpoint_nothing_is_called_unchanged(victim: tuple[Archive, list[ChainHead]]) -> None:
    archive, seen = victim
    report = check(archive)
    assert not report.changed and report.covered == 0
    lines = COUNT * len(LINES)
    assert [(t.params["first"], t.params["last"]) for t in report.uncovered] == [(1, lines)]
    assert check(archive, seen[-1:]) == Report(seen[-1], lines, (), ())
    archive.add_line(NOTE, LINES[NOTE] | {"text": "later"})
    (one,) = check(archive, seen[-1:]).uncovered
    assert (one.params["first"], one.params["last"], one.params["n"]) == (lines + 1, None, 1)
    assert not seal.check(Archive(archive.output, "INC-2")).uncovered


def test_the_lines_between_two_checkpoints_are_named(victim: tuple[Archive, list[ChainHead]]) -> None:
    archive, seen = victim
    rewrite(archive, 5)
    found = check(archive, [seen[3], seen[0], seen[1]]).changed
    assert [(t.params["first"], t.params["last"]) for t in found] == [(4, 6), (4, 12)]


def test_a_file_that_no_line_names_is_named(victim: tuple[Archive, list[ChainHead]]) -> None:
    archive, seen = victim
    for name in ("20260101T000000Z-3-OK.ipynb", "evidence/more.json", "zz\x1b[2K.html"):
        archive.write(name, b"x")
    drafts = ("postmortem.md", "postmortem-2.md", "postmortem.html")
    for made in ("index.html", *drafts):
        archive.write(made, b"made anew, or by people")
    archive.reserve("20260105T000000Z-4.1")
    assert archive.local
    (archive.local / "lab").mkdir()
    found = check(archive, seen[-1:])
    assert found.changed == ()
    assert [(t.key, t.params["name"]) for t in found.uncovered] == [
        ("seal.unnamed", "20260101T000000Z-3-OK.ipynb"),
        ("seal.unnamed", r"zz\x1b[2K.html"),  # no orders for a terminal
        ("seal.unnamed", "evidence/more.json"),
    ]


@pytest.mark.parametrize("line", [b"[]", b"{}", b"null", b"\xff", b'{"sha256": 7}', b'{"sha256": null}', b""])
def test_a_line_that_is_none_of_ours_is_a_finding(victim: tuple[Archive, list[ChainHead]], line: bytes) -> None:
    archive, seen = victim
    archive.write(LOG, archive.read(LOG) + line + b"\n")
    report = check(archive, seen[-1:])
    assert report.changed and report.covered == COUNT * len(LINES)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda path: path.symlink_to(path.name), os.mkfifo], ids=["folder", "loop", "fifo"]
)
def test_what_is_no_file_any_more_is_missing(
    victim: tuple[Archive, list[ChainHead]], make: Callable[[Path], None], log: bool
) -> None:
    archive, seen = victim
    assert archive.local
    name = LOG if log else next(iter(archive.artifacts()[0]["sha256"]))
    (archive.local / name).unlink()
    make(archive.local / name)
    assert ("seal.cut" if log else "seal.missing") in {t.key for t in check(archive, seen[-1:]).changed}


@pytest.mark.parametrize(
    "words",
    [
        ["dossier", "INC-1"], ["note", "INC-1", "x"], ["capsule", "INC-1"],
    ],
)  # fmt: skip
def test_a_fifo_in_a_dossier_is_one_line_of_every_command(
    victim: tuple[Archive, list[ChainHead]], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    archive, _ = victim
    assert archive.local
    (archive.local / LOG).unlink()
    os.mkfifo(archive.local / LOG)
    assert main._run_command([*words, "--output", archive.output]) in (64, 69)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "it is not a regular file: remove it" in said


# Heads in words --------------------------------------------------------------------------------------------


def test_a_head_is_one_word_and_is_found_in_any_text() -> None:
    told = ChainHead("INC-1.a_b", 57, "0123456789abcdef" * 2)
    text = str(told)
    assert not set(text) & set(" '\"$&;|<>*?#~`\\"), "a shell takes it as it stands"
    assert seal.find_seals(f"**{text}**, <code>{text}</code> {text}. {text[:-1]} {text}0") == [told] * 3


@pytest.mark.parametrize("error", [OSError(), UsageError("x")])
def test_a_dossier_that_cannot_be_read_has_no_seal(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(seal, "_compute_head", Mock(side_effect=error))
    assert seal.seal_text(archive) == ""


def test_a_file_of_the_largest_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ChainHead("INC-1", 1, "a" * 32)
    (tmp_path / "log").write_text(str(ours))
    monkeypatch.setattr(seal, "MOST_BYTES", len(str(ours)))
    assert seal.read_checkpoints("INC-1", str(tmp_path / "log")) == [ours]
    monkeypatch.setattr(seal, "MOST_BYTES", len(str(ours)) - 1)
    with pytest.raises(UsageError, match="more than"):
        seal.read_checkpoints("INC-1", str(tmp_path / "log"))


def test_checkpoints_are_seals_files_and_receivers(tmp_path: Path) -> None:
    ours = ChainHead("INC-1", 1, "a" * 32)
    later, other = replace(ours, lines=2), replace(ours, incident="INC-2")
    (tmp_path / "mail.txt").write_text(f"Subject: late\n\n{ours}\n{later}\n{other}\nhttp://127.0.0.1/\n")
    assert seal.read_checkpoints("INC-1", str(ours)) == [ours]
    assert seal.read_checkpoints("INC-1", str(tmp_path / "mail.txt")) == [ours, later]
    with pytest.raises(UsageError, match=r"contains no seal of INC-3; it contains seals of INC-1, INC-2"):
        seal.read_checkpoints("INC-3", str(tmp_path / "mail.txt"))
    with (tmp_path / "log").open("wb") as log:
        log.truncate(2**40)
    with pytest.raises(UsageError, match=r"log has more than 16,000,000 bytes"):
        seal.read_checkpoints("INC-1", str(tmp_path / "log"))
    with pytest.raises(UsageError, match="the seal is not complete"):
        seal.read_checkpoints("INC-1", str(ours)[:-1])
    with pytest.raises(UsageError, match=r"nothing-here cannot be read: No such file"):
        seal.read_checkpoints("INC-1", "nothing-here")
    for scheme, user in product(("http", "https", "ftp"), ("x:s3cret", "x:to/s3cret", "x:to@s3cret")):
        with pytest.raises(UsageError, match="cannot be read") as e:
            seal.read_checkpoints("INC-1", f"{scheme}://{user}@127.0.0.1:9/seals/INC-1?token=s3cret")
        assert "s3cret" not in str(e.value) and "\n" not in str(e.value)
    with web(lambda request: reply(request, 200, f"{request.path} {later}".encode())) as url:
        assert seal.read_checkpoints("INC-1", f"{url}/seals/INC-1") == [later]
    six = "\n".join(str(replace(ours, incident=f"INC-{n}")) for n in range(4, 10))
    with pytest.raises(UsageError, match=r"of INC-4, INC-5, INC-6, INC-7, INC-8$"):
        seal.read_checkpoints("INC-1", six)
    journal = Journal(tmp_path / "receiver.db")
    with journal._transaction():
        journal._execute("INSERT INTO incidents (id, alert, group_key, target, opened) VALUES ('INC-1', '', '', '', 0)")
        for at, told in enumerate((later, ours, later)):
            journal._execute("INSERT OR IGNORE INTO seals VALUES ('INC-1', ?, ?)", str(told), at)
    assert journal.seals("INC-1") == [(0, str(later)), (1, str(ours))]
    assert seal.read_checkpoints("INC-1", str(tmp_path / "receiver.db")) == [later, ours], "also while it is in use"
    journal.close()


# The command -----------------------------------------------------------------------------------------------


def test_the_command_tells_unchanged_changed_and_uncovered_apart(
    victim: tuple[Archive, list[ChainHead]], tmp_path: Path, verify: Verify
) -> None:
    archive, seen = victim
    code, out, err = verify(archive)
    assert code == 3 and "not everything is covered by a checkpoint" in out
    assert "lines 1 to 12 of the log: no checkpoint covers" in err
    assert out.splitlines()[-1] == str(seen[-1])
    code, out, err = verify(archive, "--checkpoint", str(seen[-1]))
    assert (code, err) == (0, "") and "up to line 12" in out and "unchanged" in out
    assert verify(archive, "--checkpoint", str(seen[1]), "--checkpoint", str(seen[-1])) == (0, out, "")
    code, out, err = verify(archive, "--checkpoint", str(seen[1]))
    assert code == 3 and "up to line 6" in out and "lines 7 to 12 of the log" in err
    cut_off(archive, 11)
    (tmp_path / "kept.txt").write_text("\n".join(map(str, seen)))
    code, out, err = verify(archive, "--checkpoint", str(tmp_path / "kept.txt"), "--lang", "ja")
    assert code == 2 and "変更されています" in out
    assert "ログはこのチェックポイントの時点で 12 行でしたが、現在は 11 行です" in err
    assert "seal:" not in out, "no seal is printed for a changed dossier"
    assert archive.local
    shutil.rmtree(archive.local)
    assert {t.key for t in check(archive, seen[-1:]).changed} == {"seal.none", "seal.cut"}
    assert verify(archive, "--checkpoint", str(seen[0]))[0] == 2
    assert verify(archive)[0] == verify(archive, "--checkpoint", "nothing-here")[0] == 64


# Any change at all -----------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def _bytes_edited(draw: st.DrawFn, content: bytes) -> bytes:
    at = draw(st.integers(0, len(content)))
    most = len(content) if draw(st.booleans()) else 3
    upto = min(at + draw(st.integers(0, most)), len(content))
    more = draw(st.sampled_from([b"", b"\n", b"\r", b" ", b"\xff", b"[" * 5000, b"{}\n"]) | st.binary(max_size=4))
    return content[:at] + more + content[upto:]


@st.composite
def _entry_edited(draw: st.DrawFn, line: bytes) -> bytes:
    """A key taken out, added or named otherwise, a value of another type, or the same in another form."""
    entry = json.loads(line)
    inside = entry
    if "sha256" in entry and draw(st.booleans()):
        inside = entry["sha256"]
    key = draw(st.sampled_from(sorted(inside)))
    how = draw(st.sampled_from(["delete", "rename", "add", "type", "status", "order", "form"]))
    if how == "delete":
        del inside[key]
    elif how == "rename":
        inside[draw(st.text(max_size=5) | st.sampled_from(["..", "evidence", "", "a" * 300]))] = inside.pop(key)
    elif how == "add":
        inside[draw(st.text(max_size=5))] = draw(_json)
    elif how == "type":
        inside[key] = draw(_json)
    elif how == "status":  # as whoever would like it to be
        entry |= {"status": "OK"}
        entry.pop("sha256", None)
    elif how == "order":
        entry = dict(draw(st.permutations(list(entry.items()))))
    spaced = (",", ":") if how == "form" else None
    return json.dumps(entry, ensure_ascii=draw(st.booleans()), separators=spaced).encode(errors="surrogatepass")


@st.composite
def _lines_edited(draw: st.DrawFn, content: bytes) -> bytes:
    lines = content.splitlines()
    n = draw(st.integers(0, len(lines) - 1))
    how = draw(st.sampled_from(["entry", "entry", "entry", "drop", "twice", "order"]))
    if how == "entry":
        lines[n] = draw(_entry_edited(lines[n]))
    elif how == "drop":
        del lines[n]
    elif how == "twice":
        lines.insert(draw(st.integers(0, len(lines))), lines[n])
    else:
        lines = draw(st.permutations(lines))
    if draw(st.booleans()):  # with the chain made right again, as far as it can be
        for m in range(1, len(lines)):
            with suppress(ValueError):
                entry = json.loads(lines[m])
                entry["previous"] = digest(lines[m - 1])
                lines[m] = json.dumps(entry, ensure_ascii=False, sort_keys=True).encode()
    return b"".join(line + b"\n" for line in lines)


def _goes_on(before: bytes, content: bytes) -> bool:
    """Whether a journal is as it was, with further lines that are chained to it as a writer would chain them."""
    lines = content.splitlines()
    if not content.startswith(before) or not content.endswith(b"\n"):
        return False
    for n in range(len(before.splitlines()), len(lines)):
        entry = entry_of(lines[n]) or {}
        whole = json.dumps(entry, ensure_ascii=False, sort_keys=True).encode(errors="surrogatepass") == lines[n]
        names_files = entry.get("kind") not in ("run", "verdict") or bool(entry.get("sha256"))
        if not whole or not names_files or entry.get("previous") != digest(lines[n - 1]):
            return False
    return True


def _sealed_files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".salt", "index.html")
    )


@pytest.fixture(scope="module")
def dossiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """One with lines in every journal, and a real one, whose evidence is judged again; each with its seal."""
    made = tmp_path_factory.mktemp("made")
    filled = fill(Archive(str(made), "INC-1"))
    real = seal.read_checkpoints(sample.INCIDENT, str(ROOT / sample.CHECKPOINT))
    return {
        "made": (made / "INC-1", str(filled[-1])),
        "real": (ROOT / sample.OUTPUT / sample.INCIDENT, str(real[-1])),
    }


@pytest.mark.parametrize(("which", "examples"), [("made", 500), ("real", 30)])
def test_no_change_is_called_anything_else(
    dossiers: dict[str, tuple[Path, str]], which: str, examples: int, verify: Verify
) -> None:
    """With the last head at hand every change of a sealed file is exit code 2, and the line that is concerned is said.

    A line that goes on where the log ended is no change of it: no checkpoint covers it, exit code 3. Without a head
    nothing is called unchanged.
    """
    whole, checkpoint = dossiers[which]
    names = _sealed_files(whole)

    @hypothesis_settings(max_examples=effort.examples(examples), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check_one(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*names, *[n for n in names if n == LOG] * 5]))
        before = (whole / name).read_bytes()
        edited = _bytes_edited(before) | _lines_edited(before) if name == LOG else _bytes_edited(before)
        content = data.draw(edited)
        assume(content != before)
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(whole, Path(folder) / whole.name, copy_function=os.link)
            (copy / name).unlink()
            (copy / name).write_bytes(content)
            archive = Archive(folder, whole.name)
            code, *said = verify(archive, "--checkpoint", checkpoint)
            assert code == (3 if name == LOG and _goes_on(before, content) else 2), said
            assert re.search(r"[Ll]ines? \d" if name == LOG else name, said[1]), said
            code, *said = verify(archive)
            assert code in ((2, 3) if name == LOG else (2,)), said

    check_one()


@pytest.mark.parametrize("command", [["dossier"], ["note", "x"], ["diff"], ["verify"], ["backtest", "--policy"]])
@pytest.mark.parametrize("key", ["name", "section", "status", "stuck_at", "started", "sha256", "verdict", "parameters"])
def test_a_line_that_was_changed_is_one_line_of_every_command(
    key: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sample with a key taken out of each line that has it, or with a value that is none."""
    shutil.copytree(ROOT / sample.OUTPUT / sample.INCIDENT, tmp_path / "I")
    whole = Archive(str(tmp_path), "I")
    before = whole.artifacts()
    verb, *rest = command
    policies = [str(ROOT / "docs" / "slo.md")] if verb == "backtest" else []
    for value in (None, {"a": 1}, "x"):
        changed = [e | {key: value} if key in e else e for e in before]
        if value is None:
            changed = [{k: v for k, v in e.items() if k != key} for e in before]
        lines = (json.dumps(e, ensure_ascii=False, sort_keys=True).encode() for e in changed)
        whole.write(LOG, b"".join(line + b"\n" for line in lines))
        incident = ["I"] if verb != "backtest" else []
        code = main._run_command([verb, *incident, *rest, *policies, "--output", str(tmp_path)])
        said = capsys.readouterr()
        assert isinstance(code, int) and "Traceback" not in said.err
        if verb in ("dossier", "diff") and code:
            assert said.err.count("\n") == 1 and said.err.startswith("runbook: ")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["verify", "I"], 3),
        (["verify", "I", "--checkpoint", "seal:I:2.0.1:" + "0" * 32], 64),
        (["incidents"], 3),
        (["report", "--since", "2020-01-01"], 3),
        (["backtest", "--policy", str(ROOT / "docs" / "slo.md")], 1),
        (["dossier", "I"], 69),
        (["note", "I", "x"], 69),
        (["run", "4.1", "--incident", "I"], 69),
        (["approve", "request:I:000000000000:" + "0" * 64], 69),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_a_dossier_of_version_0_6_stays_as_it_is_and_is_named(arguments: list[str], code: int, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("RUNBOOK_")}
    env |= {"RUNBOOK_DATABASE_URL": "postgresql://u@127.0.0.1:1/d", "RUNBOOK_NATS_URL": "nats://127.0.0.1:1"}
    there = {"manifest.jsonl": b"{}\n", "notes.jsonl": b"{}\n", "index.html": b"<p>", ".salts": b"[]"}
    (tmp_path / "I").mkdir()
    for name, content in there.items():
        (tmp_path / "I" / name).write_bytes(content)
    done = runbook(*arguments, "--output", str(tmp_path), env=env, cwd=tmp_path)
    assert done.returncode == code and done.stderr.count("\n") == 1 and "version 0.6" in done.stderr, done
    assert {path.name: path.read_bytes() for path in (tmp_path / "I").iterdir()} == there


def test_the_salt_of_a_dossier_of_version_0_6_is_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "I").mkdir()
    for name in ("manifest.jsonl", ".salts"):
        (tmp_path / "I" / name).write_text("{}\n")
    assert main._run_command(["forget", "I", "--output", str(tmp_path)]) == 0
    assert [path.name for path in (tmp_path / "I").iterdir()] == ["manifest.jsonl"] and not capsys.readouterr().err


NOT_NAMES = [
    "../secret", "/etc/passwd", "evidence/../../secret", "evidence", "", "a\0b", "a\x1b[2K", "\ud800", "a" * 300,
]  # fmt: skip


@pytest.mark.parametrize("read", [check, overview.page, lambda archive: [*rejudge.runs(archive, catalog.load())]])
def test_the_files_of_a_store_are_read_several_at_once(
    read: Callable[[Archive], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, changed = fsspec.get_filesystem_class("memory"), threading.Condition()
    read_file, readers, most = memory.cat_file, 0, 0

    def cat_file(*given: Any, **more: Any) -> bytes:
        """Read a file; wait until there is a second reader, for a second at most."""
        nonlocal readers, most
        with changed:
            readers, most = readers + 1, max(most, readers + 1)
            changed.notify_all()
            changed.wait_for(lambda: most > 1, 1)
        try:
            return bytes(read_file(*given, **more))
        finally:
            readers -= 1

    memory().put(str(ROOT / "outputs" / "sample"), "/at-once/", recursive=True)
    monkeypatch.setattr(memory, "cat_file", cat_file)
    read(Archive("memory://at-once", "sample"))
    assert most > 1


def test_names_of_files_lead_nowhere_else(victim: tuple[Archive, list[ChainHead]]) -> None:
    archive, _ = victim
    (Path(archive.output) / "secret").write_text("x")
    for name in NOT_NAMES:
        entry = {
            "kind": "run",
            "name": "x",
            "section": "3",
            "status": "OK",
            "started": "2026-01-31",
            "sha256": {name: digest(b"x")},
        }
        archive.write(LOG, json.dumps(entry | {"previous": None}, sort_keys=True).encode() + b"\n")
        assert {"seal.not_json", "seal.missing"} & {t.key for t in check(archive).changed}
        assert list(rejudge.runs(archive, catalog.load())) == []


# Histories without an attack -------------------------------------------------------------------------------

_text = st.text(st.characters(codec="utf-8"), max_size=8)
_step = st.one_of(
    st.tuples(st.just("artifact"), _text),
    st.tuples(st.just("job"), st.sampled_from(["j1", "j2"])),
    st.tuples(st.sampled_from([ACTION, NOTE]), _text),
    st.tuples(st.sampled_from(["head", "check", "page"]), st.just("")),
)
_writers = st.lists(st.lists(_step, min_size=1, max_size=3), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


@hypothesis_settings(max_examples=effort.examples(1000), deadline=None, suppress_health_check=list(HealthCheck))
@given(writers=_writers)
def test_no_false_alarm(pool: ThreadPoolExecutor, writers: list[list[tuple[str, str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(folder, "INC-1")
        archive.prepare()
        archive.add_line(NOTE, LINES[NOTE] | {"text": "it began"})

        def write(who: int) -> list[ChainHead]:
            own, told = Archive(folder, "INC-1"), list[ChainHead]()
            for n, (what, text) in enumerate(writers[who]):
                name = f"{who}-{n}"
                if what in ("artifact", "job"):
                    job = {"job": text} if what == "job" else {}
                    line = LINES[VERDICT] | {"name": name, "text": text} | job
                    own.append(line, {f"{name}.ipynb": text.encode()})
                elif what in (ACTION, NOTE):
                    own.add_line(what, LINES[what] | {"action": text, "text": text})
                elif what == "page":
                    own.write("index.html", b"made anew")
                elif what == "head":
                    told.append(chain_head(own))
                else:  # somebody looks while others are at work
                    seen = check(own, told)
                    assert seen.changed == () and not [t for t in seen.uncovered if t.key != "seal.loose"], seen
                    told.append(seen.chain_head)
            return told

        heads = [h for told in pool.map(write, range(len(writers))) for h in told]
        report = check(archive, heads)
        assert report.changed == (), report
        last = chain_head(archive)
        assert check(archive, [*heads, last]) == Report(last, last.lines, (), ())
