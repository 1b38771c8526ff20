"""The seal: eight attacks at every line are found up to the last witness; honest histories raise no alarm."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from runbook_lib import catalog
from runbook_lib.alerts.journal import Journal
from runbook_lib.archive import rejudge, seal
from runbook_lib.archive.seal import Head, Report, check, head
from runbook_lib.catalog import Limits
from runbook_lib.checks import checks
from runbook_lib.checks.check import Judge
from runbook_lib.cli import main
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Status
from runbook_lib.store import ACTION_LOG, MANIFEST, NOTES, SEALED, Archive, digest
from runbook_lib.usage import UsageError

#: Artifacts, actions and notes of the dossier that is attacked.
COUNT = 4


def fill(archive: Archive, count: int = COUNT, mark: str = "") -> list[Head]:
    """A dossier with lines in each journal; its head after each artifact, action and note."""
    archive.prepare()
    seen = []
    for n in range(count):
        name = f"2026010{n + 1}T000000Z-4.1-OK{mark}"
        archive.append(
            {"name": name, "started": f"2026-01-0{n + 1}T00:00:00Z"},
            {f"{name}.ipynb": f"notebook {n}{mark}".encode(), f"evidence/{name}.json": b"{}"},
        )
        archive.add_line(ACTION_LOG, {"action": f"a{n}{mark}"})
        archive.add_line(NOTES, {"text": f"n{n}{mark}"})
        seen.append(head(archive))
    return seen


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(str(tmp_path / "out"), "INC-1")


def rewritten(archive: Archive, log: str, lines: list[dict[str, Any]]) -> None:
    """Write a journal anew, with a chain and digests that are right: whoever may write there can."""
    content, last = b"", None
    for line in lines:
        sha256 = {name: digest(archive.read(name)) for name in line.get("sha256", {})}
        entry = line | {"previous": last} | ({"sha256": sha256} if sha256 else {})
        sealed = json.dumps(entry, ensure_ascii=False, sort_keys=True).encode()
        content, last = content + sealed + b"\n", digest(sealed)
    archive.write(log, content)


# The attacks: each on one line (from 0) of one journal, leaving chain and digests in order wherever that can be done.


def cut_off(archive: Archive, log: str, line: int) -> None:
    rewritten(archive, log, archive.lines(log)[:line])


def rewrite(archive: Archive, log: str, line: int) -> None:
    lines = archive.lines(log)
    lines[line] |= {"text": "all was well"}
    rewritten(archive, log, lines)


def swap(archive: Archive, log: str, line: int) -> None:
    lines = archive.lines(log)
    for name in lines[line].get("sha256", {}):
        archive.write(name, b"another content")
    lines[line] |= {"swapped": True} if log != MANIFEST else {}
    rewritten(archive, log, lines)


def swap_alone(archive: Archive, log: str, line: int) -> None:
    archive.write(next(iter(archive.lines(MANIFEST)[line]["sha256"])), b"another content")


def delete(archive: Archive, log: str, line: int) -> None:
    archive._remove(log)


def add(archive: Archive, log: str, line: int) -> None:
    """A file with a line of its own, at a place of the attacker's choice."""
    archive.write("added.ipynb", b"x")
    lines = archive.lines(log)
    lines.insert(line, {"name": "added", "sha256": {"added.ipynb": ""}})
    rewritten(archive, log, lines)


def backdate(archive: Archive, log: str, line: int) -> None:
    lines = archive.lines(log)
    lines[line] |= {"started": "2025-01-01T00:00:00Z"}
    rewritten(archive, log, lines)


def fork(archive: Archive, log: str, line: int) -> None:
    """Up to the line as it was, from there another history of the same length."""
    lines = archive.lines(log)
    rewritten(archive, log, [*lines[:line], *(entry | {"branch": 2} for entry in lines[line:])])


def replay(archive: Archive, log: str, line: int) -> None:
    """The journal and files of another incident, as long and as whole, in the place of this one's."""
    other = Archive(archive.output, "INC-2")
    fill(other, mark=".b")
    own, theirs = archive.lines(log), other.lines(log)
    for entry in theirs[line:]:
        for name in entry.get("sha256", {}):
            archive.write(name, other.read(name))
    rewritten(archive, log, [*own[:line], *theirs[line:]])


ATTACKS: list[Callable[[Archive, str, int], None]] = [
    cut_off, rewrite, swap, delete, add, backdate, fork, replay,
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Head]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, fill(Archive(str(folder), "INC-1"))


@pytest.fixture
def victim(whole: tuple[Path, list[Head]], tmp_path: Path) -> tuple[Archive, list[Head]]:
    shutil.copytree(whole[0], tmp_path / "out")
    return Archive(str(tmp_path / "out"), "INC-1"), whole[1]


@pytest.mark.parametrize("log", SEALED)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.__name__)
@pytest.mark.parametrize("line", range(COUNT))
def test_an_attack_is_found_up_to_the_last_witness(
    victim: tuple[Archive, list[Head]], attack: Callable[[Archive, str, int], None], log: str, line: int
) -> None:
    archive, seen = victim
    attack(archive, log, line)
    assert archive.problems() == [], "the chain alone is meant to show nothing"
    at = 0 if attack is delete else line
    for last in range(COUNT):
        report = check(archive, seen[: last + 1])
        if last >= at:
            assert report.changed, f"witness {last + 1} does not find it"
            assert all(str(s) in {t.params["seal"] for t in report.changed} for s in seen[at : last + 1])
        else:
            assert not report.changed
            assert report.loose or attack in (cut_off, delete), "what no witness has seen is told apart"
        # What came before the attack stays attested, and nothing beyond it does.
        assert report.anchored == (min(at, last + 1),) * len(SEALED)


def test_without_a_witness_nothing_is_called_whole(victim: tuple[Archive, list[Head]]) -> None:
    archive, seen = victim
    report = check(archive)
    assert not report.changed and report.anchored == (0, 0, 0)
    assert [(t.params["log"], t.params["first"], t.params["last"]) for t in report.loose] == [
        (log, 1, COUNT) for log in SEALED
    ]
    assert check(archive, seen[-1:]) == Report(seen[-1], (COUNT,) * 3, (), ())


@pytest.mark.parametrize("line", range(COUNT))
def test_a_file_changed_alone_is_found_by_the_chain(victim: tuple[Archive, list[Head]], line: int) -> None:
    swap_alone(victim[0], MANIFEST, line)
    assert [t.key for t in check(victim[0], victim[1][-1:]).changed] == ["seal.changed"]


def test_a_file_that_no_line_names_is_named(victim: tuple[Archive, list[Head]]) -> None:
    archive, seen = victim
    for name in ("20260101T000000Z-3-OK.ipynb", "evidence/more.json"):
        archive.write(name, b"x")
    for made in ("index.html", "postmortem.md", "postmortem.md.bak-20260101T000000Z", "postmortem.html"):
        archive.write(made, b"made anew, or by people")
    archive.reserve("20260105T000000Z-4.1")
    found = check(archive, seen[-1:])
    assert found.changed == ()
    assert [(t.key, t.params["name"]) for t in found.loose] == [
        ("seal.unnamed", "20260101T000000Z-3-OK.ipynb"),
        ("seal.unnamed", "evidence/more.json"),
    ]


def test_a_dossier_that_is_gone_is_found(victim: tuple[Archive, list[Head]]) -> None:
    archive, seen = victim
    assert archive.local
    shutil.rmtree(archive.local)
    assert {t.key for t in check(archive, seen[-1:]).changed} == {"seal.none", "seal.cut"}


@pytest.mark.parametrize("line", [b"[]", b"{}", b"null", b"\xff", b'{"sha256": 7}', b'{"sha256": null}', b""])
def test_a_line_that_is_none_of_ours_is_a_finding(victim: tuple[Archive, list[Head]], line: bytes) -> None:
    archive, seen = victim
    archive.write(MANIFEST, archive.read(MANIFEST) + line + b"\n")
    report = check(archive, seen[-1:])
    assert report.changed and report.anchored == (COUNT,) * 3


# Heads in words --------------------------------------------------------------------------------------------


def test_a_head_is_one_word_and_is_found_in_any_text() -> None:
    told = Head("INC-1.a_b", (57, 2, 0), "0123456789abcdef" * 2)
    text = str(told)
    assert not set(text) & set(" '\"$&;|<>*?#~`\\"), "a shell takes it as it stands"
    assert seal.heads(f"**{text}**, <code>{text}</code> {text}. {text[:-1]} {text}0") == [told] * 3


def test_witnesses_are_heads_files_and_receivers(tmp_path: Path) -> None:
    ours = Head("INC-1", (1, 0, 0), "a" * 32)
    later, other = replace(ours, lines=(2, 0, 0)), replace(ours, incident="INC-2")
    (tmp_path / "mail.txt").write_text(f"Subject: late\n\n{ours}\n{later}\n{other}\nhttp://127.0.0.1/\n")
    assert seal.witnessed("INC-1", str(ours)) == [ours]
    assert seal.witnessed("INC-1", str(tmp_path / "mail.txt")) == [ours, later]
    with pytest.raises(UsageError, match=r"no seal of INC-3 stands there; it has those of INC-1, INC-2"):
        seal.witnessed("INC-3", str(tmp_path / "mail.txt"))
    with pytest.raises(UsageError, match="no whole seal"):
        seal.witnessed("INC-1", str(ours)[:-1])
    with pytest.raises(UsageError, match=r"nothing-here cannot be read: No such file"):
        seal.witnessed("INC-1", "nothing-here")
    with pytest.raises(UsageError, match="cannot be read") as e:
        seal.witnessed("INC-1", "http://x:s3cret@127.0.0.1:9/seals/INC-1")
    assert "s3cret" not in str(e.value) and "\n" not in str(e.value)
    journal = Journal(tmp_path / "receiver.db")
    with journal._transaction() as db:
        db.execute("INSERT INTO incidents (id, alert, group_key, target, opened) VALUES ('INC-1', '', '', '', 0)")
        for at, told in enumerate((later, ours, later)):
            journal._witness(db, "INC-1", str(told), at)
    assert journal.seals("INC-1") == [(0, str(later)), (1, str(ours))]
    assert seal.witnessed("INC-1", str(tmp_path / "receiver.db")) == [later, ours], "also while it is in use"
    journal.close()


# The command -----------------------------------------------------------------------------------------------


def test_the_command_tells_whole_changed_and_not_witnessed_apart(
    victim: tuple[Archive, list[Head]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, seen = victim

    def verify(archive: Archive, *more: str) -> tuple[int, str, str]:
        code = main._main(["verify", archive.incident, "--output", archive.output, *more])
        return code, *capsys.readouterr()

    code, out, err = verify(archive)
    assert code == 3 and "not all of it witnessed" in out and "manifest.jsonl lines 1 to 4: no witness" in err
    assert out.splitlines()[-1] == str(seen[-1])
    code, out, err = verify(archive, "--witness", str(seen[-1]))
    assert (code, err) == (0, "") and "manifest.jsonl 4, actions.jsonl 4, notes.jsonl 4" in out and "whole" in out
    code, out, err = verify(archive, "--witness", str(seen[1]))
    assert code == 3 and "up to line manifest.jsonl 2" in out and "manifest.jsonl lines 3 to 4" in err
    cut_off(archive, NOTES, 3)
    (tmp_path / "kept.txt").write_text("\n".join(map(str, seen)))
    code, out, err = verify(archive, "--witness", str(tmp_path / "kept.txt"), "--lang", "ja")
    assert code == 2 and "notes.jsonl は当時 4 行でしたが、今は 3 行です" in err and "変更されています" in out
    assert "seal:" not in out, "what was changed is not told as a head to keep"
    assert archive.local
    shutil.rmtree(archive.local)
    assert verify(archive, "--witness", str(seen[0]))[0] == 2
    assert verify(archive)[0] == verify(archive, "--witness", "nothing-here")[0] == 64


def test_other_code_is_no_change_of_the_evidence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", sample.INCIDENT, "--output", str(sample.ROOT / sample.OUTPUT)]
    witness = ["--witness", str(sample.ROOT / sample.WITNESS)]
    known = checks()

    def judged_by(judge: Judge) -> None:
        others = known | {"4.3.2": replace(known["4.3.2"], judge=judge)}
        monkeypatch.setattr(rejudge, "checks", lambda: others)

    def no_more(frames: Frames, given: Given) -> Finding:
        raise KeyError("of another time")

    judged_by(lambda frames, given: replace(known["4.3.2"].judge(frames, given), status=Status.OK))
    assert main._main([*arguments, *witness]) == 1
    said = capsys.readouterr()
    assert "step 4.3.2: was CRITICAL, is judged OK" in said.err and "judged otherwise today" in said.out
    assert main._main(arguments) == 3, "what nobody has witnessed is worse"
    judged_by(no_more)
    assert main._main([*arguments, *witness]) == 1
    assert "can not be judged by the code of today: KeyError" in capsys.readouterr().err
    monkeypatch.setattr(rejudge, "checks", lambda: known)
    # Each run is judged by the documents that were kept with it, whatever those of today say.
    book = catalog.load()
    monkeypatch.setattr(catalog, "load", lambda: replace(book, limits=Limits(), sections={}))
    assert main._main([*arguments, *witness]) == 0


# Histories without an attack -------------------------------------------------------------------------------

_text = st.text(st.characters(codec="utf-8"), max_size=8)
_step = st.one_of(
    st.tuples(st.just("artifact"), _text),
    st.tuples(st.just("job"), st.sampled_from(["j1", "j2"])),
    st.tuples(st.sampled_from([ACTION_LOG, NOTES]), _text),
    st.tuples(st.sampled_from(["head", "check", "page"]), st.just("")),
)
_writers = st.lists(st.lists(_step, min_size=1, max_size=3), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


@hypothesis_settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(writers=_writers)
def test_no_false_alarm(pool: ThreadPoolExecutor, writers: list[list[tuple[str, str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(folder, "INC-1")
        archive.prepare()
        archive.add_line(NOTES, {"text": "it began"})

        def write(who: int) -> list[Head]:
            own, told = Archive(folder, "INC-1"), list[Head]()
            for n, (what, text) in enumerate(writers[who]):
                name = f"{who}-{n}"
                if what in ("artifact", "job"):
                    job = {"job": text} if what == "job" else {}
                    own.append({"name": name, "section": "3", "text": text} | job, {f"{name}.ipynb": text.encode()})
                elif what in SEALED:
                    own.add_line(what, {"text": text})
                elif what == "page":
                    own.write("index.html", b"made anew")
                elif what == "head":
                    told.append(head(own))
                else:  # somebody looks while others are at work
                    seen = check(own, told)
                    assert seen.changed == () and not [t for t in seen.loose if t.key != "seal.loose"], seen
                    told.append(seen.head)
            return told

        heads = [h for told in pool.map(write, range(len(writers))) for h in told]
        report = check(archive, heads)
        assert report.changed == (), report
        last = head(archive)
        assert check(archive, [*heads, last]) == Report(last, last.lines, (), ())
