"""An object store as archive: all that works in a folder, more machines than one, and a store that fails."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import psutil
import pytest
import requests

from runbook_lib.cli import main
from runbook_lib.receiver import receiver
from runbook_lib.store import archive as store_archive
from runbook_lib.store.archive import ACTION, NOTE, PARTIAL, Archive, OutputError
from tests.kit import command
from tests.kit.command import start
from tests.kit.dossiers import Verify, fill
from tests.kit.serving import cards_of, one, running, webhook
from tests.kit.store import BUCKET, Store
from tests.kit.waiting import until

pytestmark = pytest.mark.slow

TARGETS = """
[targets.shut]
database_url = "postgresql://runbook@127.0.0.1:9/miniserversystem"
nats_url = "nats://127.0.0.1:9"
[targets.silent]
database_url = "postgresql://runbook@127.0.0.1:{port}/miniserversystem"
"""


@pytest.fixture
def place(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own in the bucket, and a working folder with two targets that have no server."""
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture(autouse=True)
def targets(tmp_path: Path) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:  # takes connections and says nothing
        (tmp_path / "runbook.toml").write_text(TARGETS.format(port=silent.getsockname()[1]))
        yield


def runbook(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return command.runbook(*arguments, env=os.environ | env)


def python(code: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """Another machine, as far as the archive can tell: its locks are in a folder of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=os.environ | env, stdout=subprocess.PIPE, text=True
    )


def machines(count: int, code: str, tmp_path: Path, *arguments: str) -> list[str]:
    folders = [tmp_path / f"machine-{n}" for n in range(count)]
    for folder in folders:
        folder.mkdir()
    started = [python(code, *arguments, TMPDIR=str(f)) for f in folders]
    said = [p.communicate(timeout=60)[0].strip() for p in started]
    assert [p.returncode for p in started] == [0] * count
    return said


# What works in a folder -------------------------------------------------------------------------------------


def test_everything_works_as_in_a_folder(place: str) -> None:
    where = ("--output", place)
    said = json.loads(runbook("triage", "--target", "shut", "--incident", "I", "--json", *where).stdout)
    assert [r["section"] for r in said["runs"]] == ["3", "2", "4.5"]
    assert all(r["artifact"]["html"].startswith(f"{place}/I/") and not r["problem"] for r in said["runs"])
    assert runbook("note", "I", "called them", *where).returncode == 0
    assert "DRY RUN" in runbook("act", "restart", "notification", "--target", "shut", "--incident", "I", *where).stdout
    drafted = runbook("postmortem", "I", "--deadline", "90", *where).stdout
    assert f"{place}/I/postmortem.md" in drafted
    assert "measures" in runbook("postmortem", "I", "--check", *where).stderr
    assert runbook("dossier", "I", *where).stdout.strip() == f"{place}/I/index.html"
    verified = runbook("verify", "I", "--checkpoint", drafted.splitlines()[-1], *where)
    assert verified.returncode == 0 and "7 sealed entries" in verified.stdout, verified.stderr
    page = Archive(place, "I").read("index.html").decode()
    assert "called them" in page and all(r["artifact"]["html"].rpartition("/")[2] in page for r in said["runs"])
    assert Archive(place, "I").partials() == []


def test_an_incident_s_salt_is_kept_until_it_is_forgotten(place: str) -> None:
    archive = Archive(place, "I")
    archive.prepare()
    archive.append({"name": "a"}, {"a.txt": b"a", "evidence/a.json": b"{}"})
    salt = archive.salt()
    archive.prepare()
    archive.write(".salts", b"of 0.6")
    assert archive.salt() == salt
    assert [archive.forget(), archive.forget()] == [True, False]
    assert archive.read_or_none(".salts") is None and archive.salt() != salt


def test_nothing_is_read_from_an_old_listing(place: str, store: Store) -> None:
    archive = Archive(place, "I")
    archive.prepare()
    assert archive.names() == ["evidence"]
    # By another way than this process's own filesystem.
    requests.put(f"{store.url}/{place.removeprefix('s3://')}/I/a.partial.ipynb", data=b"x", timeout=5)
    assert archive.partials() == ["a.partial.ipynb"]


def test_a_run_that_died_is_listed_with_what_it_saw(place: str) -> None:
    archive = Archive(place, "K")
    with start("run", "4.1", "--target", "silent", "--incident", "K", "--output", place, "--json") as process:
        try:
            wait_for(lambda: archive.partials(), process)
            runner = wait_for(lambda: _runner(process.pid), process)
            time.sleep(0.3)  # into its first questions
            runner.kill()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "the runner was killed" in err
    assert archive.partials() == []  # another process has stored what it left
    name = json.loads(out)["runs"][0]["artifact"]["ipynb"].removeprefix(f"{archive.place}/")
    assert "open_section" in archive.read(name).decode()
    assert name.removesuffix(".ipynb") in archive.read("index.html").decode()


def wait_for(look: Any, process: subprocess.Popen[str]) -> Any:
    """What is seen at last, while the process runs."""

    def seen() -> Any:
        assert process.poll() is None
        return look()

    return until(seen)


def _runner(pid: int) -> psutil.Process | None:
    """The process of a section: the command's server forks who carries the order out, who forks it."""
    try:
        return next((p for p in psutil.Process(pid).children(recursive=True) if p.parents()[2].pid == pid), None)
    except psutil.Error:
        return None


# More machines than one -------------------------------------------------------------------------------------


MACHINE = """
import os, sys
from runbook_lib.store.archive import NOTE, Archive
archive = Archive(sys.argv[1], "I")
for n in range(5):
    archive.add_line(NOTE, {"text": f"{os.getpid()}: {n}"})
own = f"{os.getpid()}-OK"
before = archive.append({"job": "j", "section": "3", "name": own}, {f"{own}.ipynb": b"x"})
stem = archive.reserve("20260101T000000Z-3")
archive.write(f"{stem}-OK.html", stem.encode())
archive.release(stem)
print(before["name"] if before else own, stem)
"""


def test_machines_that_write_at_once(place: str, tmp_path: Path) -> None:
    """No line is lost, a job leaves one artifact whoever is first, and runs of one second have each a name."""
    count = 3
    said = [line.split() for line in machines(count, MACHINE, tmp_path, place)]
    archive = Archive(place, "I")
    assert len(archive.lines(NOTE)) == 5 * count
    (name,) = {name for name, _ in said}
    assert [e["name"] for e in archive.artifacts()] == [name]
    assert [n for n in archive.names() if n.endswith(".ipynb")] == [f"{name}.ipynb"]
    assert archive.problems() == []
    stems = [stem for _, stem in said]
    assert all(archive.read(f"{stem}-OK.html").decode() == stem for stem in stems)


ACTS = """
import os, sys
from dataclasses import replace
from runbook_lib.governance.ledger import Ledger
from runbook_lib.notebook.session import quiet_session
rb = quiet_session("5.1", target="shut", incident_id="I").context
rb = replace(rb, target=rb.target.model_copy(update={"ledger": sys.argv[1]}))
for n in range(3):
    entry = {"id": f"{os.getpid()}-{n}", "time": "2026-01-01T00:00:00Z", "result": "begun", "job": f"request:I:{n}"}
    entry |= {"action": "restart", "what": {}, "why": {"en": "-", "ja": "-"}, "approved_by": "sato"}
    began = Ledger(rb).begin(entry) is None
    print(int(began))
    if began:
        Ledger(rb).end(entry | {"result": "done"})
"""


def test_of_machines_that_act_at_once_one_uses_an_approval(place: str, tmp_path: Path) -> None:
    """By a ledger in the store, whose conditional writes show the second what the first has entered."""
    begun = [[int(n) for n in said.split()] for said in machines(4, ACTS, tmp_path, place)]
    assert [sum(by) for by in zip(*begun, strict=True)] == [1, 1, 1]
    kept = Archive(place, "shut")
    jobs = [e["job"] for e in kept.lines(ACTION) if e["result"] == "begun"]
    assert sorted(jobs) == ["request:I:0", "request:I:1", "request:I:2"] and kept.problems() == []


# A store that fails -----------------------------------------------------------------------------------------


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("runbook: "), done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("run", "3", "--target", "shut", "--incident", "I"), 69), (("note", "I", "x"), 69), (("verify", "I"), 69)],
)
def test_a_store_that_is_down_is_one_line(place: str, arguments: tuple[str, ...], code: int) -> None:
    done = runbook(*arguments, "--output", place, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert "Could not connect" in _one_line(done) and place in done.stderr
    assert done.returncode == code


def test_a_bucket_that_is_not_there_is_not_made(place: str, store: Store) -> None:
    done = runbook("run", "3", "--target", "shut", "--output", "s3://incidnets")
    assert "bucket does not exist" in _one_line(done) and done.returncode == 69
    assert requests.get(f"{store.url}/incidnets", timeout=5).status_code == 404


@pytest.mark.parametrize(
    ("which", "what", "words"),
    [
        ("GET .*/I/log", "AccessDenied", "credentials"),
        ("GET .*/I/log", "cut", "not completed"),
        ("PUT .*/I/", "AccessDenied", "credentials"),
        ("list-type", "AccessDenied", "credentials"),
        (".", "ExpiredToken", "credentials"),
    ],
)
def test_what_a_store_refuses_is_one_line_and_nothing_is_lost(
    place: str, store: Store, which: str, what: str, words: str
) -> None:
    for incident in ("I", "J"):
        assert runbook("note", incident, "kept", "--new", "--output", place).returncode == 0
        Archive(place, incident).append({"name": "a"}, {"a.txt": b"a"})
    with store.failing(which, what):
        noted = runbook("note", "I", "x", "--output", place)
        listed = runbook("incidents", "--output", place)
        verified = runbook("verify", "I", "--output", place)
    note, reads = _one_line(noted), not which.startswith("PUT")
    assert words in note and "[Errno" not in note and noted.returncode == 69
    assert verified.returncode == 69 or not reads
    if "log" in which:
        assert listed.returncode == 3 and "I could not be read" in listed.stderr and words in listed.stderr
    elif reads:
        assert words in _one_line(listed) and "//:" not in listed.stderr
    assert Archive(place, "I").problems() == []
    assert [e["text"] for e in Archive(place, "I").lines(NOTE)][:1] == ["kept"]


@contextmanager
def hanging(store: Store, which: str) -> Iterator[None]:
    """The store gives no answer to these requests, and reads wait for 6 s, in place of a minute."""
    with store.failing(which, "hang"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_archive, "READ_S", 6.0)
        yield


@pytest.fixture
def patient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's own client waits for longer."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 600}})


@pytest.mark.parametrize("arguments", [("incidents", "--limit", "50"), ("report",)])
def test_what_a_store_does_not_give_in_time_is_listed_as_unread(
    place: str, store: Store, patient_client: None, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"I-{n:02}" for n in range(25)]  # more than are read at once
    for name in ("A", *names):
        Archive(place, name, people=False).add_line(NOTE, {"time": "2026-01-01", "text": "kept", "who": "sato"})
    with hanging(store, "GET .*/I-.*/log"):
        assert main._run_command([*arguments, "--output", place]) == 3
    out, err = capsys.readouterr()
    assert re.findall("(.*) could not be read: no answer within [16] s", err) == names and "A " in out


def test_the_newest_incident_is_none_that_was_read_in_place_of_it(
    place: str, store: Store, patient_client: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("I", "J"):
        Archive(place, name).append({"name": "a"}, {"a.txt": b"a"})
    with hanging(store, "GET .*/J/log"):
        assert main._run_command(["note", "latest", "x", "--output", place]) == 69
    assert re.fullmatch("runbook: .*/J/.*no answer within 6 s.*\n", capsys.readouterr().err)


def test_verify_lists_what_it_could_not_read(place: str, store: Store, patient_client: None, verify: Verify) -> None:
    archive = Archive(place, "I")
    heads = fill(archive)
    last = f"/I/evidence/{archive.artifacts()[-1]['name']}.json"
    denied = store.failing(f"GET .*{last}", "AccessDenied")
    for fault, words in ((hanging(store, f"GET .*{last}"), "no answer within"), (denied, "credentials")):
        with fault:
            code, said, unread = verify(archive, "--checkpoint", str(heads[-1]))
        assert (code, unread.count("\n")) == (3, 1) and words in unread and last[3:] in unread, unread
        assert "not everything could be read" in said and str(heads[-1]) in said
    archive.write(f"{archive.artifacts()[0]['name']}.ipynb", b"another")
    with hanging(store, f"GET .*{last}"):
        code, _, changed = verify(archive)
    assert code == 2 and "could not be read" in changed and "was changed" in changed


@pytest.mark.parametrize("fault", ["hang", "AccessDenied", "cut"])
def test_the_receiver_s_list_names_the_dossier_that_could_not_be_read(
    place: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(receiver, "STORE_S", 6.0)
    for incident in ("I", "J"):
        Archive(place, incident).write("index.html", b"the page")
    with running(tmp_path, output=place) as here:
        for incident in ("I", "J"):
            here.post(webhook(one(incident=incident), group=incident))
        with store.failing(f"{tmp_path.name}(/|%2F)I", fault):
            cards = cards_of(here.get(timeout=60).text)
            assert [i for i in cards if "The dossier could not be read" in cards[i]] == ["I"]
            for path in ("incidents/I", "incidents/I/", "incidents/I/index.html"):
                came = here.get(path, timeout=60)
                assert (came.status_code, came.json()) == (503, {"error": "the archive cannot be read now"}), path
        assert here.get("incidents/I/index.html").text == "the page"


def test_the_receiver_s_health_does_not_wait_for_a_silent_store(
    place: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "STORE_S", 60.0)
    count = 60  # more than there are threads for pages
    with running(tmp_path, output=place) as here, ThreadPoolExecutor(count) as readers:
        here.post(webhook(one(incident="I")))
        with store.silent():
            pages = [readers.submit(here.get, timeout=90) for _ in range(count)]
            until(lambda: len(psutil.Process().net_connections()) > count, "the requests")
            assert [here.get(path).status_code for path in ("healthz", "metrics")] == [200, 200]
            assert here.post(webhook(one("B"), group="b")).status_code == 202
            assert not any(page.done() for page in pages)
        assert {page.result().status_code for page in pages} == {200}


def test_an_incident_of_more_objects_than_a_listing_has(place: str, store: Store) -> None:
    archive = Archive(f"{place} 障害 +%25", "I")
    archive.prepare()
    archive.append({"name": "a"}, {"z.txt": b"z"})
    path = quote(f"{archive.output}/I/".removeprefix("s3:/"))
    with requests.Session() as session:
        for n in range(1001):
            session.put(f"{store.url}{path}{n:04}.txt", data=b"x", timeout=5).raise_for_status()
    assert len(archive.names()) == 1004 and archive.problems() == []
    assert Archive(archive.output, "").newest(5) == ["I"]


def test_two_commands_at_once_lose_nothing_and_are_no_false_alarm(place: str, tmp_path: Path) -> None:
    with ExitStack() as running:
        both = []
        for n in range(2):
            (tmp_path / f"{n}").mkdir()  # two machines: each has its own locks
            env = os.environ | {"TMPDIR": str(tmp_path / f"{n}")}
            run = ("run", "3", "--target", "shut", "--incident", "I", "--output", place)
            both.append(running.enter_context(start(*run, env=env)))
        assert [p.communicate(timeout=120)[1] for p in both] == ["", ""]
    archive = Archive(place, "I")
    assert len({e["name"] for e in archive.artifacts()}) == 4 and archive.problems() == []
    assert runbook("verify", "I", "--output", place).returncode == 3


def test_a_missing_package_or_a_scheme_that_is_none_is_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "s3fs.py").write_text("raise ImportError('no s3fs')")
    done = command.alone("verify", "I", "--output", place, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert "pip install '.[s3]' in the checkout, or 'FILE.whl[s3]'" in _one_line(done) and done.returncode == 64
    assert "nonsense" in _one_line(runbook("verify", "I", "--output", "nonsense://x"))


def test_no_credentials_is_one_line(place: str, tmp_path: Path) -> None:
    env = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(tmp_path)}
    assert "credentials" in _one_line(runbook("verify", "I", "--output", place, **env))


def test_a_store_of_its_own_kind_of_errors_raises_oserror() -> None:
    class Odd(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
        protocol = "odd"

        def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
            raise RuntimeError("two\nlines")

    fsspec.register_implementation("odd", Odd, clobber=True)
    with pytest.raises(OSError, match="two lines"):
        Archive("odd://x", "I").write("a", b"")
    with pytest.raises(OutputError, match="two lines"):
        Archive("odd://x", "I").prepare()
    # It still has a name for a run, which then keeps its artifact elsewhere.
    assert Archive("odd://x", "I").reserve("stem").startswith("stem.")


def test_a_store_that_creates_nothing_exclusively_has_names_nobody_else_thinks_of() -> None:
    class Plain(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
        protocol = "plain"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
            if mode == "create":
                raise NotImplementedError
            super().pipe_file(path, value)

    fsspec.register_implementation("plain", Plain, clobber=True)
    archive = Archive("plain://x", "I")
    assert archive.reserve("stem") != archive.reserve("stem")
    archive.append({"name": "a"}, {"a.ipynb": b"x"})
    archive.append({"name": "b"}, {"b.ipynb": b"x"})
    assert archive.problems() == []


#: A store that is silent is given up after a second.
SOON = {"FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": 1, "retries": {"total_max_attempts": 2}}})}


AGAIN = """
import json, sys
from runbook_lib.runs import forks
if __name__ == "__main__":
    forks.context()
    from runbook_lib.book import catalog
    from runbook_lib.model.order import Order
    from runbook_lib.runs import investigation
    from runbook_lib.sources import settings
    order = Order(("4.1",), sys.argv[1], target="silent", incident="A", job="j", again=True)
    came = investigation.summary(order, settings.load(), catalog.load(), lambda *_: None, lambda said: None)
    print(json.dumps([came["problem"], came["index"]]))
"""


def test_what_a_silent_store_did_not_take_is_taken_once_when_it_answers(
    place: str, store: Store, tmp_path: Path
) -> None:
    """The store stops to answer while a section runs: it keeps its artifact elsewhere and says where."""
    (tmp_path / "again.py").write_text(AGAIN)
    archive = Archive(place, "A")
    again = [sys.executable, str(tmp_path / "again.py"), place]
    with subprocess.Popen(again, env=os.environ | SOON, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: archive.partials(), process)
            with store.silent():
                problem, index = json.loads(process.communicate(timeout=90)[0])
        finally:
            process.kill()
    assert "could not be written to s3://" in problem and index is None
    assert archive.artifacts() == []
    for _ in range(2):
        done = subprocess.run(again, env=os.environ, capture_output=True, text=True, timeout=90, check=True)
        assert json.loads(done.stdout) == ["", f"{place}/A/index.html"]
        assert sorted(e.get("section", "verdict") for e in archive.artifacts()) == ["4.1", "verdict"]
    assert archive.problems() == []
    assert len([n for n in archive.names() if n.endswith(".ipynb") and not n.endswith(PARTIAL)]) == 1


def test_a_command_whose_store_falls_silent_says_where_the_artifact_is(place: str, store: Store) -> None:
    archive = Archive(place, "B")
    run = ("run", "4.1", "--target", "silent", "--incident", "B", "--output", place, "--json")
    with start(*run, env=os.environ | SOON) as process:
        try:
            wait_for(lambda: archive.partials(), process)
            with store.silent():
                out, err = process.communicate(timeout=90)
        finally:
            process.kill()
    said = json.loads(out)
    assert process.returncode == said["exit_code"] == 3
    kept = Path(said["runs"][0]["artifact"]["html"])
    assert kept.is_file() and "runbook-rescued-" in str(kept)
    assert "could not be written to s3://" in err and "Traceback" not in err
