"""Recordings: made from a dossier, read back, judged again, and opened in the place of a target's servers."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from runbook_lib.__main__ import main
from runbook_lib.book import catalog, messages, queries
from runbook_lib.cli.main import _run_command, cli
from runbook_lib.dossier import backtest, rejudge, seal
from runbook_lib.model.finding import Reason, Status, say
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import quiet_session
from runbook_lib.privacy import masking
from runbook_lib.runs import replay
from runbook_lib.sources import settings
from runbook_lib.store import capsule, record
from runbook_lib.store.archive import LOG, NOTE, VERDICT, Archive
from runbook_lib.store.run import Run
from runbook_lib.view import render
from tests.kit import RECORDINGS, ROOT, effort
from tests.kit.dossiers import rewritten
from tests.tools import make_recordings

SAMPLE = ROOT / "outputs"


def pack(archive: Archive, file: Path) -> str:
    """Write a capsule of a dossier; return its seal."""
    with TemporaryDirectory() as folder:
        packed = replay.pack(archive, settings.load(), catalog.load(), folder)
        capsule.write(file, packed)
        return seal.seal_text(packed)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """The recording of git's sample dossier: a dead delivery worker."""
    file = tmp_path / f"sample{capsule.SUFFIX}"
    pack(Archive(str(SAMPLE), "sample"), file)
    return file


@pytest.fixture
def told(sample: Path, tmp_path: Path) -> str:
    """The seal of the sample's capsule."""
    return seal.seal_text(unpacked(sample, tmp_path / "unpacked"))


def unpacked(file: Path, folder: Path) -> Archive:
    folder.mkdir()
    return capsule.unpack(file, folder)


def test_a_recording_comes_to_the_verdict_of_its_dossier(sample: Path) -> None:
    (verdict,) = [json.loads(p.read_text()) for p in (SAMPLE / "sample").glob("*-verdict-*.json")]
    found = replay.evaluate(capsule.read(sample), catalog.load())
    assert (found["status"], found["exit_code"]) == (verdict["status"], verdict["exit_code"])
    assert found["stuck_at"] == verdict["verdict"]["stuck_at"]
    assert found["failure_mode"] == verdict["verdict"]["failure_modes"][0]["id"]
    assert found["triage"] == "3 then 4.1 then 4.3"
    steps = {run["section"]: {f["step"] for f in run["findings"]} for run in verdict["runs"]}
    assert {number: {*section["steps"]} for number, section in found["sections"].items()} == steps


def test_a_capsule_is_the_same_bytes_each_time_and_an_ordinary_dossier(sample: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.runbook"
    pack(Archive(str(SAMPLE), "sample"), again)
    assert again.read_bytes() == sample.read_bytes()
    archive = unpacked(sample, tmp_path / "unpacked")
    assert seal.check(archive, [seal.chain_head(archive)]).uncovered == ()
    assert {run.section for run in rejudge.runs(archive, catalog.load()) if isinstance(run, Run)} == {"3", "4.1", "4.3"}


def test_the_command_makes_a_regression_test_of_a_dossier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(SAMPLE, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["record", "sample", "--expect", "stuck_at=none", "--expect", "4.1.1=OK"])
    assert done.exit_code == 0, done.output
    assert "stuck_at: expected None, now delivery_worker" in done.output
    assert "4.1.1: expected OK, now CRITICAL: " in done.output
    index = replay.read_index(tmp_path / "recordings")
    assert index["sample"]["expected"] == {"stuck_at": None, "sections": {"4.1": {"steps": {"4.1.1": "OK"}}}}
    done = CliRunner().invoke(cli, ["record", "sample", "--expect", "4.1.1=CRITICAL", "--to", "right"])
    assert done.output.splitlines()[1:] == []
    CliRunner().invoke(cli, ["record", "sample", "--to", "whole"])
    expected = replay.read_index(tmp_path / "whole")["sample"]["expected"]
    assert list(replay.differences(expected, expected | {"confidence": "low"})) == [
        "confidence: expected medium, now low"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["record", "nothing-here"], "no incident 'nothing-here'"),
        (["record", "sample", "--expect", "stuckat=relay"], "did you mean"),
        (["record", "sample", "--expect", "stuck_at"], "write it as NAME=VALUE"),
        (["open", "absent.runbook"], "the recording absent.runbook cannot be read"),
        (["open", "outputs/sample/log.jsonl"], "is not a recording"),
        (["open", "fifo.runbook"], "it is not a regular file"),
        (["record", "sample", "--to", "fifo"], "fifo/index.json cannot be read: it is not a regular file"),
        (["lab", "--replay", "absent.runbook"], "the recording absent.runbook cannot be read"),
        (["lab", "--replay", "outputs/sample/log.jsonl"], "is not a recording"),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(SAMPLE, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    Path("fifo").mkdir()
    for fifo in ("fifo.runbook", f"fifo/{replay.INDEX}"):
        os.mkfifo(fifo)
    monkeypatch.setattr("sys.argv", ["runbook", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (64, 1)
    assert said in error


def test_any_changed_byte_is_one_line(sample: Path, tmp_path: Path) -> None:
    whole, changed = sample.read_bytes(), tmp_path / "changed.runbook"
    for at in [*range(0, len(whole), 397), *range(len(whole) - 60, len(whole))]:
        for content in (
            whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :],
            whole[:at],
            whole + whole[at:],
        ):
            changed.write_bytes(content)
            with pytest.raises(UsageError, match=r"^.* is not a recording, or is damaged.*$"):
                capsule.read(changed)
    changed.write_bytes(whole)
    assert capsule.read(changed).keys() == {"3", "4.1", "4.3"}


def written(file: Path, members: Sequence[tuple[str | zipfile.ZipInfo, bytes]], kind: int = zipfile.ZIP_STORED) -> Path:
    """A file of these members, as written by anybody."""
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", kind) as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, member in members:
            archive.writestr(name, member, kind)
    file.write_bytes(lzma.compress(content.getvalue(), preset=0))
    return file


def members(file: Path) -> dict[str, bytes]:
    return capsule._read_members(file, file.read_bytes())


def test_a_bomb_is_refused_before_it_is_unpacked_or_parsed(tmp_path: Path) -> None:
    large = written(tmp_path / "large.runbook", [("x/log.jsonl", b" " * 99_999_999)])
    many = written(tmp_path / "many.runbook", [(f"x/{n}.json", b"") for n in range(1000)])
    packed = written(tmp_path / "packed.runbook", [("x/log.jsonl", b" " * 9_999_999)], zipfile.ZIP_DEFLATED)
    lying = written(tmp_path / "lying.runbook", [("x/log.jsonl", b" " * 9)])
    content = bytearray(lzma.decompress(lying.read_bytes()))
    entry = content.index(b"PK\1\2")
    content[entry + 20 : entry + 28] = (1000).to_bytes(4, "little") * 2
    lying.write_bytes(lzma.compress(content))
    for file, said in ((large, "bytes unpacked"), (many, "files"), (packed, "is damaged"), (lying, "is damaged")):
        tracemalloc.start()
        with pytest.raises(UsageError, match=rf"^{file} .*{said}.*$"):
            capsule.read(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 160_000_000, file


LINK = zipfile.ZipInfo("x/evidence/link.json")
LINK.external_attr = 0o120777 << 16


@pytest.mark.parametrize(
    "name",
    [
        "../x.json", "/x.json", "x/../x.json", "x/evidence/../../x.json", "x/a/b.json", "x/.salt", "x/.x.json", "x/",
        "x/evidence/..", "x.json", "y/x.json", "x/index.html", "x/postmortem.html", "x/log.jsonl", LINK,
    ],
    ids=str,
)  # fmt: skip
def test_what_no_dossier_has_is_not_unpacked(name: str | zipfile.ZipInfo, tmp_path: Path) -> None:
    file = written(tmp_path / "x.runbook", [("x/log.jsonl", b""), (name, b"{}")])
    (folder := tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"^.* is not a recording, or is damaged.*$"):
        capsule.unpack(file, folder)
    assert not [*folder.iterdir()]


def test_a_capsule_of_version_0_6_is_refused_with_the_version_that_opens_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.runbook", "w") as archive:
        archive.writestr("recording.json", "{}")
    with pytest.raises(UsageError, match=r"^.* was written by version 0\.6, which .*==0\.6\.0\)$"):
        capsule.read(tmp_path / "x.runbook")


def places(value: Any, at: tuple[Any, ...] = (), depth: int = 6) -> Iterator[tuple[Any, ...]]:
    """The ways to the values within JSON; of a list to the first one."""
    if at:
        yield at
    inside = value.items() if isinstance(value, dict) else [*enumerate(value)][:1] if isinstance(value, list) else ()
    for key, each in inside if depth else ():
        yield from places(each, (*at, key), depth - 1)


def test_a_value_of_another_type_is_one_line(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the header and the first finding of each run, in the verdict, and in the log."""
    files = {name.partition("/")[2]: content for name, content in members(sample).items()}
    lines = [json.loads(line) for line in files.pop(LOG).splitlines()]
    whole = {name: json.loads(content) for name, content in files.items()} | {LOG: lines}
    known = [(name, *at) for name in whole for at in places(whole[name])]
    known += [(LOG, n, *at) for n, line in enumerate(lines) for at in places(line) if at[0] != "sha256"]

    @hypothesis_settings(max_examples=effort.examples(75), deadline=None, derandomize=True)
    @given(st.sampled_from(known), st.sampled_from([None, True, 7, -1.5, "x", "", [], [7], {}, {"x": 7}]))
    def check_one(at: tuple[Any, ...], value: Any) -> None:
        name, *way, last = at
        changed = deepcopy(whole)
        inside = changed[name]
        for key in way:
            inside = inside[key]
        assume(type(inside[last]) is not type(value))
        inside[last] = value
        with TemporaryDirectory() as folder:
            archive = Archive(folder, "sample.runbook", people=False)
            archive.make()
            for file in files:
                archive.write(file, json.dumps(changed[file]).encode())
            rewritten(archive, [line for line in changed[LOG] if isinstance(line, dict)])
            capsule.write(tmp_path / "x.runbook", archive)
        code = _run_command(["open", str(tmp_path / "x.runbook"), "--no-browser"])
        said = capsys.readouterr()
        assert code in (2, 3) or (code == 64 and said.err.count("\n") == 1), (at, value, said.err)

    check_one()


LIMITS = ("MAX_BYTES", "MAX_UNPACKED", "MAX_MEMBERS", "MAX_LINES", "MAX_VALUES")


@pytest.mark.parametrize("limit", LIMITS)
def test_each_limit_refuses_a_recording_in_one_line(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    archive = unpacked(sample, tmp_path / "unpacked")
    monkeypatch.setattr(capsule, limit, 1)
    with pytest.raises(UsageError, match=r"^.*(too large for a recording|more than 1 bytes).*$"):
        capsule.read(sample)
    with pytest.raises(UsageError, match="too large for a recording"):
        capsule.write(tmp_path / "again.runbook", archive)


def test_the_largest_recordings_are_far_from_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in LIMITS:
        monkeypatch.setattr(capsule, limit, getattr(capsule, limit) // 5)
    for file in sorted(RECORDINGS.glob("*.runbook"), key=lambda file: file.stat().st_size)[-8:]:
        assert capsule.read(file)


@pytest.mark.parametrize("name", ["connections_exhausted", "slow_statements"])
def test_hidden_names_change_no_verdict(name: str) -> None:
    runs, book = capsule.read(RECORDINGS / f"{name}.runbook"), catalog.load()
    keep = set(replay._find_words([r.header["given"] for r in runs.values()]))
    stored, hidden = masking.hide_names([[r.section, r.header, r.stored] for r in runs.values()], {}, keep)
    assert "127.0.0.1" not in json.dumps(stored) and hidden["host"]
    masked = {section: Run(section, header, findings) for section, header, findings in stored}
    before, after = (rejudged(r, book) for r in (runs, masked))
    assert before == after


def rejudged(runs: dict[str, Run], book: catalog.Catalog) -> list[Any]:
    found = replay.replay(runs, book)
    verdicts = [found.verdict, *found.verdicts.values()]
    return [
        *((v.status, v.stuck_at, v.confidence, [(m.id, m.score) for m in v.failure_modes]) for v in verdicts),
        *((f.step, f.status) for findings in found.findings.values() for f in findings),
    ]


#: What a dossier may name, and how its texts write it.
HOSTS = (
    *("db-7.corp.example", "10.20.30.40", "fe80::7:beef", "nats-3", "ip-10-9-8-7", "mailgate.quill.net", "primary"),
    *("db.kürbis.example", "quillprod", "pg-quill", "arn:aws:eks:eu-west-1:914773350118:cluster/quill"),
)
PODS = ("notification-7f9c8d5b4-x2x4q", "entitlement-6b5d7f8c94-zzt9w", "quillpod")
PEOPLE = ("Zoe Quillfeather", "山田珊瑚", "quilla", "zoe@quill.example", "zoë@kürbis.example", "珊瑚@例え.テスト")
LINES = (
    'connection to server at "db-7.corp.example" (10.20.30.40), port 5432 failed; dial [fe80::7:beef]:4222',
    "nats-3:4222 closed; UnknownHostException: primary; postgresql://app:hunter2-Kx9@primary/db on ip-10-9-8-7",
    "notification-7f9c8d5b4-x2x4qが停止し、entitlement-6b5d7f8c94-zzt9w restarted by 山田珊瑚 (zoe@quill.example)",
    "read /home/quilla/.kube/config of mailgate.quill.net, said Zoe Quillfeather",
    "zoë@kürbis.example and 珊瑚@例え.テスト of db.kürbis.example",
    "kubectl --context quillprod get pods, then kubectl --context arn:aws:eks:eu-west-1:914773350118:cluster/quill get",
)


@pytest.fixture
def planted(tmp_path: Path) -> Archive:
    """The sample with names in its texts, a frame, a header and its logs."""
    source, archive = Archive(str(SAMPLE), "sample"), Archive(str(tmp_path / "outputs"), "INC-9")
    archive.prepare()
    for entry in (e for e in source.artifacts() if "section" in e):
        files = {name: source.read(name) for name in entry["sha256"]}
        file = f"evidence/{entry['name']}.json"
        run = json.loads(files[file])
        for found in run["findings"]:
            found["notes"] += [{"en": line, "ja": line} for line in LINES]
            found["questions"] += [found["questions"][0] | {"error": LINES[0]}] if found["questions"] else []
            held = pd.DataFrame({"locked_by": PODS, "usename": ["quilla", "miniserversystem", None]})
            found["frames"]["planted"] = record.frame_to_json(held)
        run["header"] |= {"by": "quilla", "dashboard": "https://mailgate.quill.net/d/1"}
        run["header"]["parameters"]["reason"] = "for Zoe Quillfeather"
        psql = "kubectl --context quillprod exec deploy/bouncer -- psql -h pg-quill -d shop"
        run["header"]["given"]["workloads"] |= {"context": "quillprod", "psql": psql}
        files[file] = json.dumps(run).encode()
        archive.append({k: v for k, v in entry.items() if k not in ("previous", "sha256")}, files)
    archive.add_line("note", {"time": "2026-11-28T00:00:00Z", "who": "山田珊瑚", "text": "called Zoe Quillfeather"})
    archive.add_line("action", {"who": "quilla", "approved_by": "Zoe Quillfeather", "target": "default"})
    return archive


def test_no_person_address_host_pod_or_secret_leaves(planted: Archive, tmp_path: Path) -> None:
    file = tmp_path / "INC-9.runbook"
    told = pack(planted, file)
    # Escapes hide no name.
    files = {name: content.decode() for name, content in members(file).items()}
    parsed = [json.loads(line) for text in files.values() for line in (text.splitlines() if "\n{" in text else [text])]
    inside = "".join(files.values()) + json.dumps(parsed, ensure_ascii=False)
    names = {*HOSTS, *PODS, *PEOPLE, "hunter2-Kx9"} - {"primary"}  # a word that other texts may hold
    assert {name for name in names if name in inside} == set()
    assert "@primary" not in inside and "UnknownHostException: primary" not in inside
    # What is equal stays equal, and the workload of a pod stays readable.
    pods = re.findall(r"(?:notification|entitlement)-pod-\d+", inside)
    assert len(set(pods)) == 2 and "notification." in inside
    archive = unpacked(file, tmp_path / "unpacked")
    left = " ".join(note["text"] for note in archive.lines(NOTE))
    assert "action, 1 line" in left and "note, 1 line" in left and "3 pods" in left
    assert seal.seal_text(planted) in left and told == seal.seal_text(archive)
    assert {*archive.names()} == {LOG, "evidence", *(v["name"] for v in archive.lines(VERDICT))}, "no page, no salt"
    assert backtest.run(archive.output, [archive.incident], None)[0]["flips"] == []


def test_a_capsule_opens_without_network_home_and_server(sample: Path, told: str, tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    (away := tmp_path / "away").mkdir()
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(SAMPLE.parent), "LANG": "C.UTF-8"}
    alone = ["unshare", "-rn"] if subprocess.run(["unshare", "-rn", "true"], check=False).returncode == 0 else []
    command = [*alone, sys.executable, "-m", "runbook_lib", "open", str(sample), "--no-browser", "--checkpoint", told]
    done = subprocess.run(command, env=env, cwd=away, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "CRITICAL  Stuck at delivery worker" in done.stdout and told in done.stdout
    assert list(away.iterdir()) == []


def opened(file: Path, *options: str) -> Result:
    """Open a capsule; the result has the exit code as its `return_value`."""
    return CliRunner().invoke(cli, ["open", str(file), "--lang", "en", *options], standalone_mode=False)


def test_the_example_opens_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = opened(Path("example"), "--no-browser")
    assert done.return_value == 3 and "Stuck at delivery worker" in done.output, "no checkpoint of it is kept"
    shutil.copy(RECORDINGS / "healthy.runbook", "example")
    assert "Stuck" not in opened(Path("example"), "--no-browser").output, "a file of that name is meant"


def test_a_capsule_opens_in_the_browser(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda uri: shown.append(uri))
    assert opened(sample).return_value == 3
    file = Path(shown[0].removeprefix("file://"))
    page = file.read_text(encoding="utf-8")
    assert "CRITICAL" in page and "4.1.4" in page and "src=" not in page
    assert 'class="rb-time"' in page and "delivery worker: waiting" in page and "Left out: " in page
    assert "Why, and why not" in page and "Delivery worker stopped or hangs" in page
    links = {link for link in re.findall(r'href="([^"#][^"]*)"', page) if not link.startswith("http")}
    assert links and all((file.parent / link).is_file() for link in links)
    shutil.rmtree(file.parent.parent)


def test_another_verdict_and_another_seal_are_said(sample: Path, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = told[:-1] + ("0" if told[-1] != "0" else "1")
    done = opened(sample, "--no-browser", "--checkpoint", other)
    assert done.return_value == 2 and other in done.stderr and "CRITICAL" not in done.output, done.output
    # An earlier capsule of the incident had another seal, and the log has both.
    done = opened(sample, "--no-browser", "--checkpoint", other, "--checkpoint", told)
    assert done.return_value == 0 and "No verdict would have been different" in done.output, done.output
    again = rejudge.judge
    monkeypatch.setattr(rejudge, "judge", lambda findings, *rest: again([*findings][:1], *rest))
    done = opened(sample, "--no-browser", "--checkpoint", told)
    assert done.return_value == 0 and "4.3-CRITICAL verdict: CRITICAL, " in done.output, done.output


@pytest.mark.parametrize("name", ["evidence/", LOG])
def test_a_member_that_was_changed_and_packed_again_is_not_opened(sample: Path, name: str) -> None:
    inside = {
        n: content.replace(b"CRITICAL", b"OK", 9) if name in n else content for n, content in members(sample).items()
    }
    written(sample, [*inside.items()])
    for option in ("--no-browser", "--lab"):
        done = opened(sample, option)
        assert done.return_value == 2 and "Stuck" not in done.output, done.output


def test_the_lab_opens_only_what_its_checkpoint_covers(
    sample: Path, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def open_lab(*arguments: Any) -> NoReturn:
        started.append("lab")
        raise SystemExit

    monkeypatch.setattr("runbook_lib.lab.copies.open_lab", open_lab)
    other = told[:-1] + ("0" if told[-1] != "0" else "1")
    done = opened(sample, "--lab", "--checkpoint", other)
    assert done.return_value == 2 and other in done.stderr and not started
    for checkpoints in ((), ("--checkpoint", told), ("--checkpoint", other, "--checkpoint", told)):
        opened(sample, "--lab", *checkpoints)
    assert len(started) == 3


def test_a_session_on_a_recording_asks_no_server_and_changes_nothing(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNBOOK_REPLAY", str(sample))
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path / "out"))
    rb = quiet_session("4.1", incident_id="replay-sample")
    verdict = rb.run_steps()
    assert (verdict.status, verdict.stuck_at) == (Status.CRITICAL, "delivery_worker")
    assert rb.context.as_of == pd.Timestamp(capsule.read(sample)["4.1"].header["as_of"])
    with pytest.raises(UsageError, match="replaying a recording"):
        rb.ask("notifications/backlog")
    outcome = rb.act(
        "restart", workload="notification", execute=True, approved_by="Aoki", reason="the worker is dead"
    ).outcome
    assert outcome.result == "refused"
    for refused in (lambda: rb.note("it is over"), lambda: rb.watch()):
        with pytest.raises(UsageError, match=r"^this is a replay: "):
            refused()
    assert not [*(tmp_path / "out").rglob("*")], "a replay leaves nothing"
    with pytest.raises(UsageError, match=r"holds no run of section 6; it holds 3, 4\.1, 4\.3"):
        quiet_session("6", incident_id="replay-sample")


def test_a_session_on_a_recording_says_how_far_its_replica_was_behind(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = capsule.read(sample).values()
    for run in runs:
        run.header.update(behind_s=20.0, clocks={"postgres": [0.0, 0.01]})
    archive = replay.build(str(tmp_path / "made"), "lagging", runs, catalog.load())
    capsule.write(lagging := tmp_path / f"lagging{capsule.SUFFIX}", archive)
    monkeypatch.setenv("RUNBOOK_REPLAY", str(lagging))
    assert quiet_session("4.1", incident_id="replay-lagging")._header().behind_s == 20.0


def test_each_session_of_a_kernel_shows_its_own_language(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_REPLAY", str(sample))
    sessions = {lang: quiet_session("4.1", incident_id="replay-sample", lang=lang) for lang in messages.LANGUAGES}
    results = {lang: rb.step("4.1.1") for lang, rb in sessions.items()}
    for lang, rb in sessions.items():
        headline = messages.text(rb.findings["4.1.1"].headline, lang)
        assert headline in repr(results[lang]) and results[lang].headline == headline
        assert messages.text(say("ui.why_and_why_not"), lang) in repr(rb.why())
        assert rb.seen_before.__doc__ and rb.queries("4.1.1").lang == lang


def test_why_shows_the_evidence_and_who_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path / "out"))
    monkeypatch.setenv("RUNBOOK_REPLAY", str(RECORDINGS / f"receiver_hangs{capsule.SUFFIX}"))
    rb = quiet_session("4.1", incident_id="replay-receiver_hangs")
    rb.run_steps()
    text = rb.why()._repr_mimebundle_()["text/plain"]
    assert "delivery worker" in text and "+0.60 receiver.unreached (4.1.1" in text
    assert "+0.45 delivery.times_out (4.1.1" in text and "reported by delivery worker" in text
    assert "FM-NOTI-03" in text


def test_settle_asks_recorded_steps_of_other_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path / "out"))
    monkeypatch.setenv("RUNBOOK_REPLAY", str(RECORDINGS / f"delivery_disabled{capsule.SUFFIX}"))
    decided = quiet_session("4.1", incident_id="replay-delivery_disabled")
    decided.run_steps()
    assert "Nothing was asked" in repr(decided.settle()) and decided.verdict().asked == ()
    monkeypatch.setenv("RUNBOOK_REPLAY", str(RECORDINGS / f"delivery_batch{capsule.SUFFIX}"))
    rb = quiet_session("4.1", incident_id="replay-delivery_batch")
    undecided = rb.run_steps()
    assert undecided.undecided and undecided.settled_by
    text = repr(rb.settle())
    asked = [step for step in rb.findings if not step.startswith("4.1.")]
    assert asked[0] == undecided.settled_by[0] and len(asked) <= rb.context.catalog.numbers["settle.questions"]
    assert [line.split()[1] for line in text.splitlines() if line.startswith("Asked ")] == [f"{s}:" for s in asked]
    assert {s: f.reason for s, f in rb.findings.items() if s in asked}["4.4.2"] is None, "as it was recorded"
    assert "Asked 4.4.2: " in "\n".join(render.verdict_lines(rb.verdict()))


def test_a_step_that_is_not_recorded_is_unknown(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_REPLAY", str(sample))
    rb = quiet_session("4.1", incident_id="replay-sample")
    del rb.context.recorded["4.1.2"]  # type: ignore[union-attr]
    rb.run_steps()
    assert (rb.findings["4.1.2"].status, rb.findings["4.1.2"].reason) == (Status.UNKNOWN, Reason.NO_DATA)


def test_a_query_that_changed_since_makes_a_recording_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = capsule.read(RECORDINGS / "worker_hung.runbook"), queries.query
    before = make_recordings.changed_queries(made)
    sent = {q.name for run in made.values() for found in run.findings for q in found.queries}
    same = min((sent & {*queries.names()}) - {*before})
    monkeypatch.setattr(queries, "query", lambda name: asked("notifications/ages" if name == same else name))
    assert make_recordings.changed_queries(made) == sorted([*before, same])


def test_what_a_person_expects_is_not_overwritten_by_today_s_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_recordings, "RECORDINGS", tmp_path)
    shutil.copy(RECORDINGS / "worker_hung.runbook", tmp_path / "mine.runbook")
    now = replay.evaluate(capsule.read(tmp_path / "mine.runbook"), catalog.load())
    for expected, after in (({"stuck_at": "relay"}, {"stuck_at": "relay"}), (now | {"stuck_at": "relay"}, now)):
        make_recordings.accept(index := {"mine": {"about": {}, "expected": expected}}, ["mine"])
        assert index["mine"]["expected"] == after
        assert "mine: stuck_at: expected relay, now delivery_worker" in capsys.readouterr().out
