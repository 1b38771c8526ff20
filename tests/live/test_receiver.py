"""The receiver of alerts over real HTTP: what it takes, what it refuses, and that nothing it took is lost."""

from __future__ import annotations

import base64
import gzip
import html
import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from requests.auth import HTTPBasicAuth

from runbook_lib.cli import main as cli
from runbook_lib.dossier import seal
from runbook_lib.model.order import Order, RunProgress
from runbook_lib.model.usage import UsageError, install_command
from runbook_lib.receiver import alert, auth, database, receiver, server
from runbook_lib.receiver.auth import Auth
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.server import Tls
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import Archive
from tests.kit import ROOT
from tests.kit.brokers import Authority
from tests.kit.limits import files_up_to
from tests.kit.schemas import valid
from tests.kit.serving import JSON, NOWHERE, TOKEN, Running, bearer, cards_of, one, running, serving, webhook
from tests.kit.waiting import until


@pytest.fixture(autouse=True)
def _apart(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Running]:
    """A receiver without authentication; nothing may fail in it unseen."""
    caplog.set_level(logging.INFO)
    with running(tmp_path) as found:
        yield found
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all that leaves nothing behind."""
    with running(tmp_path_factory.mktemp("shared")) as found:
        yield found


# What is taken.


def test_an_alert_is_on_disk_before_it_is_answered(here: Running) -> None:
    first = here.post(webhook(one(), one("Other")))
    assert (first.status_code, valid(first.json(), "receiver")) == (202, {"accepted": 2, "jobs": [1], "counted": 0})
    with sqlite3.connect(f"file:{here.journal.file}?mode=ro", uri=True) as db:
        assert db.execute("SELECT count(*) FROM work").fetchone() == (1,)
    again = here.post(webhook(one(), one("Other")))
    assert (again.status_code, again.json()) == (202, {"accepted": 2, "jobs": [], "counted": 2})


def test_an_alert_that_is_refused_is_counted_and_holds_up_no_other(here: Running, caplog: Any) -> None:
    bad = one("Bad", "pending")
    came = here.post(webhook(bad, one("API/latency", **{"service.name": "api"}), one("通知遅延", pod="x" * 2000)))
    assert (came.status_code, came.json()) == (202, {"accepted": 2, "jobs": [1], "counted": 0})
    assert "runbook_alerts_refused_total 1.0" in here.get("metrics").text
    assert [r.getMessage() for r in caplog.records if "an alert is refused: alerts.0.status" in r.getMessage()]
    assert here.post(webhook(bad, bad)).status_code == 400
    page = here.get().text
    assert "API/latency" in page


def test_a_connection_is_used_again(here: Running) -> None:
    with requests.Session() as session:
        codes = [session.post(f"{here.url}alertmanager", webhook(), headers=JSON).status_code for _ in range(3)]
        codes.append(session.post(f"{here.url}alertmanager", b"{", headers=JSON).status_code)
        codes.append(session.get(f"{here.url}healthz").status_code)
        assert codes == [202, 202, 202, 400, 200]
        (pool,) = list(session.get_adapter(here.url).poolmanager.pools._container.values())  # type: ignore[attr-defined]
        assert pool.num_connections == 1


# What is refused.

_DEEP, _DIGITS = b"[" * 100_000, b"9" * 900_000
_REFUSED: dict[str, tuple[str, Mapping[str, str], bytes, int, str]] = {
    "not json": ("alertmanager", JSON, b"{", 400, "body"),
    "old version": ("alertmanager", JSON, webhook(version="3"), 400, "version"),
    "deep": ("alertmanager", JSON, _DEEP, 400, "body"),
    "a deep alert": ("alertmanager", JSON, webhook().replace(b'"too old"', _DEEP), 400, "body"),
    "digits": ("alertmanager", JSON, b'{"version": %s}' % _DIGITS, 400, "body"),
    "no UTF-8": ("alertmanager", JSON, webhook().replace(b"too old", b"\xff"), 400, "body"),
    "half a character": ("alertmanager", JSON, webhook(group="\ud800"), 400, "body"),
    "gzip": ("alertmanager", JSON | {"content-encoding": "gzip"}, gzip.compress(bytes(50_000_000)), 400, "body"),
    "a form": ("alertmanager", {"content-type": "application/x-www-form-urlencoded"}, webhook(), 415, "content type"),
    "text": ("alertmanager", {"content-type": "text/plain"}, webhook(), 415, "content type"),
    "no type": ("alertmanager", {}, webhook(), 415, "content type"),
    "time": ("alertmanager", JSON, webhook(one() | {"startsAt": "9999-12-31T23:59:59-14:00"}), 400, "startsAt"),
    "nowhere": ("alerts", JSON, webhook(), 404, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", _REFUSED)
def test_what_is_refused_is_one_line_of_json(shared: Running, tmp_path: Path, case: str) -> None:
    path, headers, body, status, word = _REFUSED[case]
    came = shared.post(body, path, headers)
    assert came.status_code == status, came.text
    assert word in came.json()["error"] and "\n" not in came.text and len(came.text) < 500
    assert "Traceback" not in came.text
    assert shared.journal.incidents() == []
    folder = shared.journal.file.parent
    assert {p.name.partition("-")[0] for p in folder.rglob("*")} == {"receiver.db", "receiver.db.lock"}
    assert list(tmp_path.iterdir()) == []


def test_other_methods(here: Running) -> None:
    assert here.get("alertmanager").status_code == 405
    assert requests.post(here.url, timeout=5).status_code == 405
    assert requests.put(f"{here.url}alertmanager", timeout=5).status_code == 405


def test_hostile_words_are_words(here: Running, tmp_path: Path) -> None:
    words = "<script>alert(1)</script> $(touch hacked) {{ 7*7 }} `id` '; DROP TABLE jobs; --"
    came = here.post(webhook(one(pod=words) | {"annotations": {"summary": words + "\x1b[2J\r\n"}}, group=words))
    assert came.status_code == 202
    job = here.journal.next_job(time.time(), ())
    assert job is not None and "\x1b" not in job.alert and "\n" not in job.alert
    here.journal.conclude(job, None, time.time(), problem=words)
    page = here.get().text
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "{{ 7*7 }}" in page
    assert not list(tmp_path.rglob("hacked"))


def test_sizes_have_limits(here: Running) -> None:
    big = b" " * (alert.MAX_BODY + 1)
    declared = here.post(big)
    assert (declared.status_code, declared.headers["connection"]) == (413, "close")
    assert "1000000" in declared.json()["error"]
    assert here.post(iter([big[:600_000]] * 4)).status_code == 413  # in chunks, its length not said
    assert here.post(webhook() + b" " * 900_000).status_code == 202
    head = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + b"x: %s\r\n" % (b"x" * 1000) * 34
    long = here.raw(head + b"\r\n")
    assert long.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), long[:200]
    assert here.raw(head + b"x" * 1_000_000).startswith((b"HTTP/1.1 400", b""))
    endless = b"POST /alertmanager HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n"
    assert here.raw(endless + b" " * 8_100_000).startswith((b"HTTP/1.1 413", b""))
    assert len(here.journal.incidents()) == 1


@pytest.mark.parametrize("path", ["healthz", "readyz", "metrics", "", "seals/I", "nowhere"])
def test_no_request_has_an_endless_body(here: Running, path: str) -> None:
    assert here.get(path, data=b" " * 1000).status_code in (200, 404, 503)
    big = here.get(path, data=b" " * (alert.MAX_BODY + 1))
    assert (big.status_code, big.headers["connection"]) == (413, "close")
    assert here.get(path, data=iter([b" " * 600_000] * 4)).status_code == 413
    endless = b"GET /%s HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n" % path.encode()
    with socket.create_connection(("127.0.0.1", here.port), timeout=10) as s:
        s.sendall(endless)
        with pytest.raises(ConnectionError):
            s.sendall(b" " * 100_000_000)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /alertmanager HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /alertmanager HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nhost: [\r\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n",
        b"GET /incidents/%00/%ff HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET /?lang=%00&page=-1%27 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    ],
)
def test_bytes_that_are_hardly_http(here: Running, sent: bytes) -> None:
    came = here.raw(sent + b"\r\n")
    assert came.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200")), came[:200]
    assert b"Traceback" not in came
    assert here.get("healthz").status_code == 200


def test_a_sender_that_goes_away(here: Running) -> None:
    head = b"POST /alertmanager HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf"
    with socket.create_connection(("127.0.0.1", here.port)) as s:
        s.sendall(head)
    time.sleep(0.1)
    assert here.get("healthz").status_code == 200


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"], ids=["first", "next"])
def test_headers_that_come_slowly_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    """A byte at a time, on a new connection and on one that has asked before."""
    monkeypatch.setattr(server, "HEADERS_S", 0.7)
    with running(tmp_path) as here, socket.create_connection(("127.0.0.1", here.port), timeout=0.1) as s:
        s.sendall(before)

        def is_closed() -> bool:
            with suppress(TimeoutError):
                s.sendall(b"G")
                return s.recv(65536) == b""
            return False

        with suppress(ConnectionError):
            until(is_closed)


def test_a_body_that_comes_slowly_is_cut_off_and_holds_up_nobody(
    here: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "BODY_S", 0.7)
    post = b"POST /alertmanager HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nhalf"
    with ThreadPoolExecutor(3) as pool:
        stalled = [pool.submit(here.raw, post) for _ in range(3)]
        assert here.post(webhook()).status_code == 202
        for answer in stalled:
            assert answer.result().startswith(b"HTTP/1.1 503"), "after a 4xx Alertmanager sends it no more"


def test_a_body_that_is_on_its_way_when_the_receiver_stops_is_to_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "STOP_S", 1)
    with socket.socket() as s:
        with running(tmp_path) as here:
            s.connect(("127.0.0.1", here.port))
            s.sendall(b"POST /alertmanager HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf")
            assert here.get("healthz").status_code == 200
        assert s.recv(65536).startswith(b"HTTP/1.1 503")
    assert [r.getMessage() for r in caplog.records if r.exc_info] == []


def test_connections_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 4)
    with running(tmp_path) as here:
        held = list[socket.socket]()

        def no_more_are_answered() -> bool:
            held.append(socket.create_connection(("127.0.0.1", here.port)))
            held[-1].sendall(b"POST /alertmanager HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nhalf")
            return here.get("healthz").status_code == 503

        until(no_more_are_answered)
        for s in held:
            s.close()
        until(lambda: here.get("healthz").status_code == 200, "there is room again")


def test_connections_that_send_no_request_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 4)
    with running(tmp_path) as here, ExitStack() as held, requests.Session() as session:
        for _ in range(3):
            for _ in range(8):
                held.enter_context(socket.create_connection(("127.0.0.1", here.port)))
            assert session.get(f"{here.url}healthz", timeout=5).status_code == 200
            assert here.post(webhook()).status_code == 202


def test_an_alert_does_not_wait_for_pages(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, released = threading.Semaphore(0), threading.Event()

    def authorize(*_: object) -> bool:
        asked.release()
        return released.wait(30)

    monkeypatch.setattr(Auth, "may_read", authorize)
    with ThreadPoolExecutor(41) as pool:
        try:
            pages = [pool.submit(here.get) for _ in range(41)]
            assert all(asked.acquire(timeout=20) for _ in range(40)), "all threads for pages are busy"
            assert here.post(webhook()).status_code == 202
            assert ready(here) == (503, {"dispatcher": "does not run"})
        finally:
            released.set()
        assert {page.result().status_code for page in pages} == {200}


# Who may.


def basic(password: str, user: str = "oncall") -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_who_may_send_and_who_may_read(tmp_path: Path) -> None:
    wrong: list[dict[str, str]] = [
        {}, bearer("wrong"), bearer(""), bearer(TOKEN + "x"), basic("wrong"), {"authorization": "Bearer"},
        {"authorization": "Basic !!"}, {"authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()},
    ]  # fmt: skip
    with running(tmp_path, Auth(TOKEN)) as here:
        for headers in wrong:
            refused = here.post(webhook(), headers=JSON | headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="runbook"'), (
                headers
            )
            for path in ("", "metrics", "incidents/x", "incidents/x/index.html"):
                read = here.get(path, headers=headers)
                assert (read.status_code, read.headers["www-authenticate"]) == (401, 'Basic realm="runbook"'), headers
        assert here.post(webhook(), headers=JSON | basic(TOKEN)).status_code == 401, "a browser adds it by itself"
        assert here.journal.incidents() == []
        assert here.post(webhook(), headers=JSON | bearer()).status_code == 202
        for headers in (bearer(), basic(TOKEN), basic(TOKEN, "")):
            assert {here.get(path, headers=headers).status_code for path in ("", "metrics")} == {200}
        assert {here.get(path).status_code for path in ("healthz", "readyz")} == {200, 503}
        assert here.get("healthz", headers={"host": "runbook.example"}).status_code == 200


def test_without_a_secret_only_names_of_this_machine_are_answered(here: Running) -> None:
    for host in ("localhost", "localhost:9095", f"127.0.0.1:{here.port}", "[::1]:9095", "LOCALHOST"):
        assert here.get("healthz", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1", "@localhost@x"):
        for path in ("", "healthz", "readyz", "metrics"):
            assert here.get(path, headers={"host": host}).status_code == 421, host
        assert here.post(webhook(), headers=JSON | {"host": host}).status_code == 421
    assert here.journal.incidents() == []


def test_the_token_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not auth.load().needed
    monkeypatch.setenv("RUNBOOK_RECEIVER_TOKEN", f" {TOKEN}\n")
    assert auth.load() == Auth(TOKEN) and TOKEN not in repr(auth.load())
    (tmp_path / "token").write_text("of a file\n")
    monkeypatch.setenv("RUNBOOK_RECEIVER_TOKEN", f"file:{tmp_path / 'token'}")
    assert auth.load() == Auth("of a file")
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text"):
        auth.load()


def test_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    tls = Tls(*authority.sign("server"))
    tls.check()
    with running(tmp_path, Auth(token=TOKEN), tls=tls) as here:
        assert here.url.startswith("https://")
        options: dict[str, Any] = {"headers": JSON | bearer(), "timeout": 10, "verify": str(authority.file)}
        assert requests.post(f"{here.url}alertmanager", webhook(), **options).status_code == 202
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{here.url}healthz", timeout=5)
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.get(f"http://127.0.0.1:{here.port}/healthz", timeout=5)
    with pytest.raises(UsageError, match="cannot be used together"):
        Tls(tls.certificate, tls.certificate).check()


# How it is.


def test_metrics_are_those_of_prometheus(here: Running) -> None:
    here.post(webhook(one(), one("Other")))
    here.post(webhook())
    here.post(b"{")
    families = {f.name: f for f in text_string_to_metric_families(here.get("metrics").text)}
    values = {s.name: s.value for f in families.values() for s in f.samples}
    assert values["runbook_alerts_accepted_total"] == 3
    assert values["runbook_alerts_deduplicated_total"] == 1
    assert values["runbook_investigations_waiting"] == 1 and values["runbook_investigations_running"] == 0
    (refused,) = [s for s in families["runbook_requests_refused"].samples if s.name.endswith("_total")]
    assert (refused.labels, refused.value) == ({"status": "400"}, 1)


def ready(here: Running) -> tuple[int, dict[str, Any]]:
    came = here.get("readyz")
    return came.status_code, valid(came.json(), "receiver").get("problems", {})


def test_ready_names_what_is_not(here: Running) -> None:
    assert ready(here) == (503, {"dispatcher": "does not run"})
    here.dispatcher.start()
    assert ready(here) == (200, {})
    assert Archive(here.output, "").names() == [], "the probe is not shown as an incident"
    shutil.rmtree(here.output)
    Path(here.output).touch()  # no folder can be there; holds for root as well
    time.sleep(0.1)
    assert ready(here) == (503, {"output": "cannot be written"})
    Path(here.output).unlink()
    time.sleep(0.1)
    assert ready(here) == (200, {})
    here.dispatcher.stop()
    assert ready(here) == (503, {"dispatcher": "does not run"})
    assert here.get("healthz").status_code == 200


def test_a_disk_that_takes_no_more_is_not_ready(here: Running) -> None:
    here.dispatcher.start()
    assert ready(here) == (200, {})
    with files_up_to(0):
        time.sleep(0.1)
        assert ready(here) == (503, {"journal": "cannot be written", "output": "cannot be written"})
    time.sleep(0.1)
    assert ready(here) == (200, {})


def test_a_locked_journal_refuses_for_now_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.2)
    hold = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN EXCLUSIVE'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with running(tmp_path) as here:
        bodies = [webhook(one(f"A{n}"), group=f"g{n}") for n in range(4)]
        assert here.post(bodies[0]).status_code == 202
        holder = subprocess.Popen(
            [sys.executable, "-c", hold, str(here.journal.file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            for body in bodies[1:]:
                refused = here.post(body)
                assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
                assert "journal" in refused.json()["error"] and str(tmp_path) not in refused.text
            assert ready(here)[1]["journal"] == "cannot be written"
            assert here.get("healthz").status_code == 200
            assert here.get().status_code == 200  # reading goes on
        finally:
            holder.communicate("")
        assert [i.alert for i in here.journal.incidents()] == ["A0"]
        assert {here.post(body).status_code for body in bodies} == {202}
        assert sorted(i.alert for i in here.journal.incidents()) == ["A0", "A1", "A2", "A3"]
        time.sleep(0.1)
        assert "journal" not in ready(here)[1]


def test_many_at_once_behind_a_locked_journal_are_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first waits for the lock; the others are told before it is over."""
    monkeypatch.setattr(database, "BUSY_S", 60.0)
    monkeypatch.setattr(receiver, "TURN_S", 0.7)
    with (
        running(tmp_path) as here,
        sqlite3.connect(here.journal.file, isolation_level=None) as db,
        ThreadPoolExecutor(20) as pool,
    ):
        db.execute("BEGIN EXCLUSIVE")
        asked = [pool.submit(here.post, webhook(group=f"g{n}")) for n in range(20)]
        until(lambda: sum(f.done() for f in asked) == 19, "the answers to the others")
        db.execute("ROLLBACK")
        assert sorted(f.result().status_code for f in asked) == [202] + [503] * 19
        assert here.post(webhook()).status_code == 202


def test_a_full_journal_refuses_for_now(here: Running) -> None:
    def pages(n: int) -> None:
        here.journal._db.execute(f"PRAGMA max_page_count = {n}").fetchall()

    here.post(webhook())
    pages(1)
    codes = {here.post(webhook(one(f"A{n}", pod="x" * 1000), group=f"{n:0>4000}")).status_code for n in range(30)}
    assert 503 in codes
    before = len(here.journal.incidents(100))
    pages(1_000_000)
    assert here.post(webhook(one("Late"), group="late")).status_code == 202
    assert len(here.journal.incidents(100)) == before + 1


# For people.


def concluded(here: Running, body: bytes, *, sample: bool = False, ok: bool = False) -> str:
    """An incident whose first job has come to the verdict of the sample dossier; its id."""
    here.post(body)
    job = here.journal.next_job(time.time(), ())
    assert job is not None
    said = json.loads(next((ROOT / "outputs" / "sample").glob("*-verdict-*.json")).read_text())
    verdict = said["verdict"] | ({"status": "OK", "stuck_at": None} if ok else {})
    here.journal.conclude(job, verdict, time.time())
    if sample:
        shutil.copytree(ROOT / "outputs" / "sample", Path(here.output) / job.incident)
    return job.incident


def test_the_page_says_how_to_send_a_first_alert(here: Running, tmp_path: Path) -> None:
    page = here.get()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "No alert has arrived yet" in page.text and "<script" not in page.text
    assert in_a_shell(typed(page.text), tmp_path) == [1]
    assert here.get().text.count("<article") == 1


def typed(page: str) -> str:
    """The command on the page, as it is pasted into a shell."""
    (text,) = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    return html.unescape(text)


def in_a_shell(text: str, folder: Path, **env: str) -> list[int]:
    """The jobs of the answer to a command."""
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    own = os.environ | env
    done = subprocess.run(["bash", "-ec", text], cwd=folder, env=own, capture_output=True, text=True, timeout=60)
    jobs: list[int] = json.loads(done.stdout)["jobs"]
    return jobs


def test_the_page_shows_what_became_of_each_alert(here: Running) -> None:
    located = concluded(here, webhook(one(incident="INC-1"), group="a"), sample=True)
    well = concluded(here, webhook(one("Well"), group="b"), ok=True)
    here.post(webhook(one("Well", "resolved"), group="b"))
    resolved = here.journal.next_job(time.time(), ())
    assert resolved and resolved.kind == "resolved"
    here.journal.conclude(resolved, None, time.time(), problem="the worker <b>died</b>")
    here.post(webhook(one("Waits", runbook_target="elsewhere"), group="c"))
    here.post(webhook(one("Waits", runbook_target="elsewhere"), group="c"))
    text = here.get().text
    cards = cards_of(text)
    assert list(cards)[-1] == located and len(cards) == 3
    assert "CRITICAL" in cards[located] and "rb-strip" in cards[located] and "STUCK HERE" in cards[located]
    assert f'href="incidents/{located}/index.html"' in cards[located]
    assert "closed 2" in cards[well] and "the worker &lt;b&gt;died" in cards[well] and "✖ given up" in cards[well]
    assert "rb-strip" not in cards[well]
    (waits,) = set(cards) - {located, well}
    assert "○ waiting" in cards[waits] and "repeats: 1" in cards[waits] and "No dossier" in cards[waits]
    assert 'class="dossier"' not in cards[waits] + cards[well]
    assert "<b>2 open</b>" in text and 'http-equiv="refresh"' in text
    for lang, word in (("ja", "ここで詰まり"), ("en", "STUCK HERE"), ("xx", "STUCK HERE")):
        assert word in here.get(f"?lang={lang}").text
    for link in re.findall(r'<a [^>]*href="([^"]+)"', text):
        assert here.get(link.replace("&amp;", "&")).status_code == 200, link


@pytest.mark.parametrize("default", [False, True])
def test_an_alert_for_an_unknown_target_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: bool
) -> None:
    config = Settings(targets=NOWHERE | ({"default": NOWHERE["production"]} if default else {}), lang="en")
    orders: list[Order] = []

    def carry_out(order: Order, hear: Any) -> dict[str, Any]:
        config.target(order.target)
        orders.append(order)
        raise UsageError("over")

    monkeypatch.setattr("runbook_lib.receiver.dispatcher.carry_out", carry_out)
    with running(tmp_path, config=config, places=("p",)) as here:
        assert here.post(webhook(one(runbook_target="eu"))).status_code == 202
        here.dispatcher.start()
        (message,) = until(lambda: here.journal.due_messages(time.time() + 1), "the message")
        (card,) = cards_of(here.get().text).values()
    note = "target eu is not configured, default is investigated instead" if default else "unknown target &#39;eu&#39;"
    assert note in card and html.unescape(note) in message.body
    assert [order.target for order in orders] == ["default"] * default


def test_the_page_shows_what_a_running_investigation_has_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, goes_on = threading.Semaphore(0), threading.Event()

    def carry_out(order: Order, hear: Callable[[RunProgress], None]) -> dict[str, Any]:
        if order.target == "elsewhere":
            hear(RunProgress("✔ 3.1  OK: elsewhere", "OK", (), ""))
            told.release()
            goes_on.wait(20)
            raise UsageError("over")
        strip = ("Provisional: 3 of 7 steps.", "outbox relay 245")
        hear(RunProgress("✔ 3.1  OK: <no objective> is missed", "OK", strip, ""))
        hear(RunProgress("", "", (), "Waiting for 3.2"))
        told.release()
        goes_on.wait(20)
        raise UsageError("over")

    monkeypatch.setattr("runbook_lib.receiver.dispatcher.carry_out", carry_out)
    config = Settings(targets={"production": NOWHERE["production"], "elsewhere": NOWHERE["production"]})
    with running(tmp_path, config=config) as here:
        here.post(webhook(one(incident="INC-1", runbook_target="production")))
        here.post(webhook(one("Other", incident="INC-1", runbook_target="elsewhere"), group="b"))
        assert 'content="20"' in here.get().text
        here.dispatcher.start()
        assert told.acquire(timeout=20) and told.acquire(timeout=20)
        text = here.get().text
        assert "<b>elsewhere</b> &middot; ✔ 3.1  OK: elsewhere" in text, "one target does not overwrite the other"
        assert 'content="10"' in text and "Waiting for 3.2" in text
        kept = "<pre>Provisional: 3 of 7 steps.\noutbox relay 245</pre>"
        assert kept in text, "the strip stays until there is a newer one"
        goes_on.set()
        until(lambda: not here.dispatcher.progress, "the end")
        assert "Provisional" not in here.get().text


def test_the_page_shows_the_line_of_an_incident_whose_runs_were_trimmed(here: Running) -> None:
    for name in ("Old", "New"):
        for status in ("firing", "resolved"):
            concluded(here, webhook(one(name, status), group=name), ok=True)
    old = here.journal.incidents()[-1].id
    here.journal.trim(2)
    text = here.get().text
    cards = cards_of(text)
    assert "The journal no longer has its runs" in cards[old] and "closed 2" in cards[old]
    assert "waiting" not in cards[old] and "repeats" not in cards[old] and "concluded" not in cards[old]
    assert [word for word in cards if "The journal no longer has its runs" in cards[word]] == [old]


def test_pages(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "PAGE", 2)
    for n in range(5):
        here.post(webhook(one(f"A{n}"), group=str(n)))
    assert [re.findall(r"<b>(A\d)</b>", here.get(f"?page={n}").text) for n in (1, 2, 3, 4)] == [
        ["A4", "A3"], ["A2", "A1"], ["A0"], [],
    ]  # fmt: skip
    assert "?page=2&amp;lang=en" in here.get().text and "?page=4" not in here.get("?page=3").text
    assert {here.get(f"?page={n}").status_code for n in ("0", "-1", "x", "9" * 30, "%00", "²")} == {200}


@pytest.fixture(scope="module", params=["folder", "memory"])
def dossier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A receiver over an archive that holds the sample as INC-1, and things that are none of the dossier's."""
    tmp_path = tmp_path_factory.mktemp("dossier")
    output = str(tmp_path / "outputs") if request.param == "folder" else f"memory://{tmp_path.name}"
    fs, path = fsspec.core.url_to_fs(output)
    fs.put(str(ROOT / "outputs" / "sample"), f"{path}/INC-1", recursive=True)
    for other in ("secret", "INC-1/lab/copy.ipynb", "INC-1/.hidden", "INC-2/x.html"):
        fs.makedirs(f"{path}/{other}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{path}/{other}", b"not for you")
    if request.param == "folder":
        (tmp_path / "outputs" / "INC-1" / "link").symlink_to(tmp_path / "receiver.db")
        os.mkfifo(tmp_path / "outputs" / "INC-1" / "fifo")
    with running(tmp_path, output=output) as here:
        yield here


def test_a_dossier_is_served_whole(dossier: Running) -> None:
    assert dossier.get("incidents/INC-1").headers["location"] == "INC-1/index.html"
    assert dossier.get("incidents/INC-1/").headers["location"] == "index.html"
    archive = Archive(dossier.output, "INC-1")
    names = [n for n in archive.names() if Path(n).suffix and not n.startswith(".")]
    names += [f"evidence/{n}" for n in Archive(dossier.output, "INC-1/evidence").names()]
    assert len(names) > 10
    types = {"html": "text/html; charset=utf-8", "json": "application/json", "ipynb": "application/x-ipynb+json"}
    for name in names:
        came = dossier.get(f"incidents/INC-1/{name}")
        assert (came.status_code, came.content) == (200, archive.read(name)), name
        assert came.headers["content-type"] == types.get(Path(name).suffix[1:], "text/plain; charset=utf-8")
        assert ("attachment" in came.headers.get("content-disposition", "")) == name.endswith(".ipynb")
        assert came.headers["x-content-type-options"] == "nosniff" and came.headers["cache-control"] == "no-store"
        assert came.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in came.headers["content-security-policy"]
        assert re.search(r"script-src 'sha256-[\w+/]+=';", came.headers["content-security-policy"]), "ours alone"
    index = dossier.get("incidents/INC-1/index.html").text
    for link in re.findall(r'href="([^"#]+)"', index):
        assert dossier.get(f"incidents/INC-1/{link}").status_code == 200, link


def test_what_is_written_later_is_found(dossier: Running) -> None:
    assert dossier.get("incidents/INC-1/late.html").status_code == 404
    Archive(dossier.output, "INC-1").write("late.html", b"late")
    assert dossier.get("incidents/INC-1/late.html").text == "late"


@pytest.mark.parametrize(
    "path",
    [
        "incidents/../secret", "incidents/INC-1/../../secret", "incidents/INC-1/../secret",
        "incidents/INC-1/%2e%2e/secret", "incidents/INC-1/..%2fsecret", "incidents/INC-1/%2e%2e%2fsecret",
        "incidents/INC-1/%252e%252e%252fsecret", "incidents/INC-1/..%5csecret", "incidents/%2e%2e/secret",
        "incidents/../INC-1/index.html", "incidents/INC-1%2f..%2fINC-1/index.html", "incidents//etc/passwd",
        "incidents/INC-1//etc/passwd", "incidents/INC-1/%2fetc%2fpasswd", "incidents/INC-1/evidence/../../secret",
        "incidents/INC-1/evidence/..%2f..%2fsecret", "incidents/INC-1/evidence/../index.html",
        "incidents/INC-1/lab/copy.ipynb", "incidents/INC-1/lab", "incidents/INC-1/evidence", "incidents/INC-2/",
        "incidents/INC-1/evidence/", "incidents/INC-1/.hidden", "incidents/INC-1/index.html%00",
        "incidents/INC-1/index.html/", "incidents/secret", "incidents/secret/secret", "incidents/secret/",
        "incidents/INC-9/index.html", "incidents/INC-2", "incidents/.", "incidents/..", "incidents/%00/x",
        "incidents/INC-1/link", "incidents/INC-1/fifo", "incidents/" + "x" * 5000,
    ],
)  # fmt: skip
def test_nothing_else_is_served(dossier: Running, path: str) -> None:
    sent = f"GET /{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()  # nothing made tidy
    came = dossier.raw(sent)
    assert came.startswith(b"HTTP/1.1 404"), came[:200]
    assert b"SQLite" not in came and b"not for you" not in came and b"root:" not in came


# The command.


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`runbook serve` that does not come to serve: its last line, which has these words; it ends with 64 or `code`."""

    def call(words: str, *arguments: str, code: int = 64) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main(["serve", "--port", "0", *arguments])
        lines = capsys.readouterr().err.splitlines()
        assert not [line for line in lines if "Traceback" in line]
        assert (end.value.code, words in lines[-1]) == (code, True), lines[-1]
        return lines[-1]

    return call


def test_what_is_wrong_at_the_start_is_one_line(
    said: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said("alerts that match no route: target 'default' has no address")
    monkeypatch.setenv("RUNBOOK_NATS_URL", "nats://127.0.0.1:1")

    empty, none, token = str(tmp_path / "empty"), str(tmp_path / "none"), "RUNBOOK_RECEIVER_TOKEN"
    Path(empty).touch()
    monkeypatch.setenv(token, f"file:{none}")
    assert "No such file" in said(token)
    monkeypatch.setenv(token, f"file:{empty}")
    said("gives no value")
    monkeypatch.delenv(token)

    with monkeypatch.context() as patch:
        patch.setenv("RUNBOOK_RECEIVER_HMAC", "x")
        said("receiver_hmac has gone: unset it")

    said("nosuch://x", "--output", "nosuch://x")
    said("--tls-cert", "--tls-cert", none, "--tls-key", none)
    said("cannot be used together", "--tls-cert", empty, "--tls-key", empty)
    said("belong together", "--tls-cert", "x")
    said("belong together", "--executor", "dask")
    said("belong together", "--scheduler", "tcp://127.0.0.1:1")
    said("cannot be written: File exists", "--journal", f"{empty}/x.db")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        said("Address already in use", "--port", str(taken.getsockname()[1]), code=69)
    with closing(Journal(tmp_path / "held.db")):
        said("another receiver", "--journal", str(tmp_path / "held.db"))

    toml = tmp_path / "runbook.toml"
    toml.write_text('[[routes]]\nalertname = "A"\nsections = ["9.9"]\n')
    said("routes, number 1 (A)")
    toml.write_text("[receiver]\nworkers = 0\n")
    said("receiver.workers: Input should be greater than or equal to 1")

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said(f"runbook: serve needs the package uvicorn: {install_command('serve')}")


@pytest.mark.slow
def test_from_an_alert_to_its_artifact(tmp_path: Path) -> None:
    """The whole way, with a target where nobody answers: the verdict says so, and the page leads to the evidence."""
    (tmp_path / "runbook.toml").write_text(
        '[targets.production]\ndatabase_url = "env:DB"\nnats_url = "env:NATS"\n'
        '[[routes]]\nalertname = "NotDelivered"\nsections = ["4.1"]\n'
    )
    env = {"DB": "postgresql://u:pw-17@127.0.0.1:1/x", "NATS": "nats://127.0.0.1:1"}
    with serving(tmp_path, env=env) as served:
        url, known = served.url, HTTPBasicAuth("oncall", TOKEN)
        assert re.search(rf"listening on {url} \(bearer token\).*/kept, .*routes: 1", served.line), served.line
        assert requests.post(f"{url}alertmanager?token={TOKEN}", webhook(), headers=JSON, timeout=10).status_code == 401
        taken = requests.post(f"{url}alertmanager", webhook(), headers=JSON | bearer(), timeout=10)
        assert taken.json() == {"accepted": 1, "jobs": [1], "counted": 0}

        def page() -> str:
            return requests.get(url, auth=known, timeout=10).text

        until(lambda: 'class="dossier"' in page(), "a dossier on the page", 60)
        (link,) = re.findall(r'class="dossier" href="([^"]+)"', page())
        index = requests.get(url + link, auth=known, timeout=10)
        assert index.status_code == 200
        (artifact,) = re.findall(r'href="([^"]+-4\.1-\w+\.html)"', index.text)
        shown = requests.get(url + link.replace("index.html", artifact), auth=known, timeout=10)
        assert shown.status_code == 200 and "4.1.1" in shown.text
        assert requests.get(f"{url}readyz", timeout=10).json() == {"ready": True}
        assert "NotDelivered firing" in index.text  # the timeline names the alert
        until(lambda: "<code>seal:" in page(), "the seal on the page", 60)
        incident = link.split("/")[1]
        kept = seal.read_checkpoints(incident, f"{url.replace('://', f'://x:{TOKEN}@')}seals/{incident}")
        assert f"<code>{kept[-1]}</code>" in page()
        report = seal.check(Archive(str(tmp_path / "kept"), incident), kept)
        assert (report.changed, report.uncovered) == ((), ())
    text = (tmp_path / "log").read_text()
    assert "POST /alertmanager 202" in text and "Traceback" not in text
    assert TOKEN not in text and "pw-17" not in text
    assert "pw-17" not in "".join(p.read_text(errors="replace") for p in (tmp_path / "kept").rglob("*") if p.is_file())


def test_an_end_in_the_middle_is_no_loss(tmp_path: Path) -> None:
    """SIGTERM while an investigation is at work: exit code 0, in time, and its job is still to be done."""
    with socket.create_server(("127.0.0.1", 0)) as hang:  # takes connections and never says a word
        database_url = f"postgresql://u@127.0.0.1:{hang.getsockname()[1]}/x"
        (tmp_path / "runbook.toml").write_text(
            f'[targets.production]\ndatabase_url = "{database_url}"\n[budget]\nconnect_timeout_s = 60\n'
        )
        with serving(tmp_path, "--host", "0.0.0.0", env={"RUNBOOK_RECEIVER_TOKEN": ""}) as served:
            assert "no authentication" in served.line
            taken = requests.post(f"{served.url}alertmanager", webhook(), headers=JSON, timeout=10)
            assert taken.status_code == 202
            until(lambda: served.metric("runbook_investigations_running") == 1, "work")
    said = (tmp_path / "log").read_text()
    assert "will run again at the next start" in said and "127.0.0.1 only" in said
    with closing(Journal(tmp_path / "receiver.db")) as kept:
        assert kept.recover(time.time()) == 1
