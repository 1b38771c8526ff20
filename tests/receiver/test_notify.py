"""Messages reach their places, against real ones on this machine; a place that is slow or gone harms no other."""

from __future__ import annotations

import email
import email.policy
import json
import logging
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from apprise.plugins.slack import NotifySlack

from runbook_lib.book import messages
from runbook_lib.model.usage import UsageError
from runbook_lib.receiver import loop, notify, slack
from runbook_lib.receiver.alert import Alert
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.receiver.notify import Notifier
from runbook_lib.receiver.work import Job, Notice
from runbook_lib.runs import forks
from runbook_lib.sources.settings import Settings
from tests.kit import web
from tests.kit.journal import incident_of, messages_of
from tests.kit.schemas import valid
from tests.kit.waiting import until
from tests.kit.web import SECRET, Http

CONFIG = Settings(targets={"main": {"database_url": "postgresql://u@127.0.0.1:1/x"}})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(loop, "POLL_S", 0.02)


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What reaches the root logger, whose handlers write it somewhere."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener()
    logging.getLogger().addHandler(listener)
    yield said
    logging.getLogger().removeHandler(listener)


class _Smtp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            if line.strip().upper() == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.taken.append(  # type: ignore[attr-defined]
                    email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                )
            self.wfile.write(b"250 ok\r\n")


@contextmanager
def notified(
    folder: Path, *urls: str, statuses: Sequence[str] = ("CRITICAL",), addressed_to: Sequence[str] = ()
) -> Iterator[tuple[Journal, Metrics]]:
    """A notifier at work on a message of each status, of incidents of their own, to each place or to `addressed_to`."""
    journal, metrics = Journal(folder / "journal.db"), Metrics()
    places = {f"place-{n}": url for n, url in enumerate(urls)}
    for n, status in enumerate(statuses):
        labels = {"alertname": "A", "incident": f"I{n}"}
        journal.accept([Alert("A", True, "1", labels, "", pd.Timestamp(0, tz="UTC"), "g")], CONFIG, time.time())
        known = incident_of(journal, f"I{n}")
        job = journal.next_job(time.time(), []) or (known.jobs[-1] if known else None)
        assert job is not None
        verdict: dict[str, Any] = {"status": status, "stuck_at": None, "failure_modes": []}
        message = (f"{status} here", "what was found")
        journal.conclude(job, verdict, time.time(), places=addressed_to or [*places], message=message)
    told = Notifier(journal, places, metrics)
    told.start()
    try:
        yield journal, metrics
    finally:
        assert told.alive
        told.stop()
        assert not told.alive
        journal.close()


def test_each_status_has_its_kind_and_is_sent_once(tmp_path: Path, http: Callable[..., Http]) -> None:
    place = http(200)
    statuses = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
    with notified(tmp_path, place.url, statuses=statuses) as (journal, metrics):
        until(lambda: journal.counts()["messages_sent"] == 4)
        time.sleep(0.1)
    assert [m["title"] for m in place.taken] == [f"{status} here" for status in statuses]
    assert [m["type"] for m in place.taken] == ["success", "warning", "failure", "info"]
    assert valid(place.taken[0], "message")["message"] == "what was found"
    assert metrics.registry.get_sample_value("runbook_messages_total", {"state": "sent"}) == 4


def test_slack_gets_one_thread_an_incident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: list[str]) -> None:
    """A server answers as Slack does: also after a restart, and after the first message was deleted."""
    token, posts, deleted = "xoxb-1234-5678-abcdefgh", list[dict[str, Any]](), set[str]()

    def answer(request: BaseHTTPRequestHandler) -> None:
        assert (request.path, request.headers["Authorization"]) == ("/api/chat.postMessage", f"Bearer {token}")
        posts.append(web.told(request))
        said: dict[str, Any] = {"ok": True, "ts": f"17.{len(posts)}"}
        if posts[-1]["channel"] != "C0123ABC":
            said = {"ok": False, "error": "not_in_channel"}
        elif posts[-1].get("thread_ts") in deleted:
            said = {"ok": False, "error": "thread_not_found"}
        web.reply(request, body=json.dumps(said).encode())

    def send(url: str, *statuses: str) -> list[tuple[Any, Any]]:
        before = len(posts)
        with notified(tmp_path, url, statuses=statuses) as (journal, _):
            until(lambda: not journal.counts()["messages_waiting"] or messages_of(journal, "problem > ''"))
        return [(p["text"].split("*")[1], p.get("thread_ts")) for p in posts[before:]]

    with web.web(answer) as address:
        monkeypatch.setattr(NotifySlack, "api_url", f"{address}/api/{{}}")
        url = f"slack://{token}/+C0123ABC"
        assert send(url, "CRITICAL", "WARNING") == [("CRITICAL here", None), ("WARNING here", None)]
        assert send(url, "OK", "OK") == [("OK here", "17.1"), ("OK here", "17.2")]
        deleted.add("17.1")
        assert send(url, "WARNING") == [("WARNING here", "17.1"), ("WARNING here", None)]
        assert send(url, "OK") == [("OK here", "17.6")] and posts[-1]["reply_broadcast"]
        assert not any(token in told or address in told for told in heard)
        send(f"slack://{token}/incidents", "CRITICAL")
    assert "Slack answered not_in_channel" in heard[-1] and token not in heard[-1]
    assert posts[-1]["channel"] == "#incidents"


def bot() -> slack.Bot:
    found = slack.Bot.of(notify._open_url("slack://xoxb-1234-5678-abcdefgh/c"))
    assert found and "abcdefgh" not in repr(found)
    return found


@pytest.mark.slow
def test_a_message_that_slack_takes_slowly_is_posted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    posts: list[dict[str, Any]] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        posts.append(web.told(request))
        time.sleep(4)
        web.reply(request, body=b'{"ok": true, "ts": "17.1"}')

    with web.web(answer) as address:
        monkeypatch.setattr(NotifySlack, "api_url", f"{address}/{{}}")
        message = Notice(1, "I", "p", "t", "b", "OK", 0, 0.0, "")
        assert slack.post(bot(), message) == ("", "17.1")
    assert len(posts) == 1


@pytest.mark.parametrize(("url", "mode"), [("pover://u@t", "split"), ("pover://u@t?overflow=truncate", "truncate")])
def test_a_message_that_is_too_long_for_a_service_is_split(url: str, mode: str) -> None:
    user, token = "u" * 30, "a" * 30
    plugin = notify._open_url(url.replace("u@t", f"{user}@{token}"))
    assert plugin.overflow_mode == mode


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"down"])
def test_an_answer_that_is_not_slacks_is_a_problem(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    posts: list[dict[str, Any]] = []

    def refuse(request: BaseHTTPRequestHandler) -> None:
        posts.append(web.told(request))
        web.reply(request, 503, answer)

    with web.web(refuse) as address:
        monkeypatch.setattr(NotifySlack, "api_url", f"{address}/{{}}")
        message = Notice(1, "I", "p", "<!channel> & more", "a ``` b\n\nlink", "OK", 0, 0.0, "17.1")
        assert slack.post(bot(), message) == ("Slack answered HTTP 503", "17.1")
    assert [p["text"] for p in posts] == ["*&lt;!channel&gt; &amp; more*\n```\na ''' b\n```\nlink"]


def test_by_mail(tmp_path: Path) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp) as server:
        taken: list[Any] = []
        server.taken = taken  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"mailto://127.0.0.1:{server.server_address[1]}?from=runbook@example.org&to=oncall@example.org&mode=insecure"
        with notified(tmp_path, url) as (journal, _):
            until(lambda: journal.counts()["messages_sent"] == 1)
        server.shutdown()
    (mail,) = taken
    assert mail["subject"] == "CRITICAL here" and "oncall@example.org" in mail["to"]
    assert "what was found" in mail.get_body().get_content()


def test_a_place_that_refuses_is_asked_again(tmp_path: Path, http: Callable[..., Http], heard: list[str]) -> None:
    place = http(500, 401, 200)
    with notified(tmp_path, place.url) as (journal, metrics):
        until(lambda: journal.counts()["messages_sent"] == 1)
        (row,) = messages_of(journal)
    assert (row["attempts"], row["problem"]) == (3, "the service answered HTTP 401")
    assert len(place.taken) == 1
    assert metrics.registry.get_sample_value("runbook_messages_total", {"state": "retried"}) == 2
    assert SECRET not in "".join(heard) and "sent again: the service answered HTTP 500" in heard[0]


def test_a_place_that_nobody_is_at(tmp_path: Path, heard: list[str]) -> None:
    with notified(tmp_path, f"json://u:{SECRET}@127.0.0.1:1/") as (journal, _):
        until(lambda: messages_of(journal)[0]["attempts"] > 1)
        (row,) = messages_of(journal)
    assert (row["state"], row["problem"]) == ("waiting", "the service is unreachable, or refused")
    assert SECRET not in "".join(heard)


def test_a_place_that_hangs_is_asked_again_and_holds_up_no_other(
    tmp_path: Path, http: Callable[..., Http], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SEND_S", 2.0)  # the place that takes them has as long, on a busy machine
    hangs, takes = http(0), http(200)
    with notified(tmp_path, hangs.url, takes.url, statuses=("CRITICAL", "OK")) as (journal, _):
        until(lambda: journal.counts()["messages_sent"] == 2)
        until(lambda: messages_of(journal, "place = 'place-0'")[0]["problem"] == "no answer within 2 s")
        until(lambda: hangs.asked > 1)


def test_an_exchange_has_one_limit_however_slowly_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of a header every moment: no limit of a single read ends this."""
    monkeypatch.setattr(notify, "SEND_S", 2.0)
    asked, over = list[str](), threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(web.told(request)["title"])
        request.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        with suppress(OSError):
            while len(asked) == 1 and not over.wait(0.1):
                request.wfile.write(b"x")
            request.wfile.write(b"\r\n\r\n")

    with web.web(answer) as address, notified(tmp_path, address.replace("http:", "json:")) as (journal, _):
        try:
            until(lambda: journal.counts()["messages_sent"] == 1)
        finally:
            over.set()
    assert len(asked) > 1


def test_a_message_that_is_sent_while_the_journal_is_read_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, released = list[str](), threading.Event()

    def call(*given: Any, within_s: float) -> tuple[str, str]:
        asked.append(given[-1].title)
        released.wait(20)
        return "", ""

    monkeypatch.setattr(forks, "call", call)
    journal = Journal(tmp_path / "journal.db")
    told = Notifier(journal, {"p": "json://127.0.0.1:1"}, Metrics())
    for n in range(2):
        labels = {"alertname": "A", "incident": f"I{n}"}
        alert = Alert("A", True, "1", labels, "", pd.Timestamp(0, tz="UTC"), "g")
        journal.accept([alert], CONFIG, time.time())
        job = journal.next_job(time.time(), [])
        assert job is not None
        verdict: dict[str, Any] = {"status": "OK", "stuck_at": None, "failure_modes": []}
        journal.conclude(job, verdict, time.time(), places=["p"], message=(f"message {n}", "b"))
    told.poll()
    assert told.busy == ["p"], "one message of a URL at a time"
    real = journal.due_messages

    def read(now: float) -> list[Notice]:
        found = real(now)
        released.set()
        until(lambda: not told.busy)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(journal, "due_messages", read)
        told.poll()
    until(lambda: not told.busy)
    told.poll()
    until(lambda: journal.counts()["messages_sent"] == 2)
    assert asked == ["message 0", "message 1"]
    journal.close()


@pytest.mark.parametrize(("urls", "said"), [(1, "not sent within"), (0, "no notify URL is configured")])
def test_what_cannot_be_sent_for_a_day_is_given_up(
    tmp_path: Path, urls: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with notified(tmp_path, addressed_to=["before"]) as (journal, _):
        time.sleep(0.1)
        assert journal.counts()["messages_waiting"] == 1, "the next start may name a URL"
    monkeypatch.setattr(notify, "GIVE_UP_S", -1)
    with notified(tmp_path, *["json://127.0.0.1:1"] * urls, statuses=()) as (journal, metrics):
        until(lambda: journal.counts()["messages_failed"] == 1)
        (row,) = messages_of(journal)
    assert said in row["problem"]
    assert metrics.registry.get_sample_value("runbook_messages_total", {"state": "failed"}) == 1


def test_what_waits_for_a_url_that_was_corrected_goes_to_the_new_one(
    tmp_path: Path, http: Callable[..., Http], heard: list[str]
) -> None:
    place = http(200)
    with notified(tmp_path, place.url, statuses=("CRITICAL", "OK"), addressed_to=["misspelt"]) as (journal, _):
        until(lambda: journal.counts()["messages_sent"] == 2)
    assert [m["title"] for m in place.taken] == ["CRITICAL here", "OK here"]
    assert [line for line in heard if "2 waiting messages go to" in line]


def test_places_are_known_by_digests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    urls = f"json://u:{SECRET}@127.0.0.1/\n# a comment\n\nmailto://u:{SECRET}@example.org"
    monkeypatch.setenv("RUNBOOK_NOTIFY_URLS", urls)
    found = notify.urls_by_digest(Settings())
    assert len(found) == 2 and SECRET not in "".join(found)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"slak://{SECRET}/x", "number 2 (slak://…)"),
        (f"{SECRET}@nowhere", "number 2 (without a scheme)"),
        (f"slack://{SECRET}", "number 2 (slack://…)"),
        (f"json://:{SECRET}@", "number 2 (json://…)"),
    ],
)
def test_a_bad_url_is_one_line_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, heard: list[str], url: str, said: str
) -> None:
    monkeypatch.setenv("RUNBOOK_NOTIFY_URLS", f"json://127.0.0.1\n{url}")
    with pytest.raises(UsageError) as e:
        notify.urls_by_digest(Settings())
    assert said in str(e.value) and SECRET not in str(e.value) and "\n" not in str(e.value)
    assert SECRET not in "".join(heard)


def test_a_file_of_urls_that_is_not_text_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNBOOK_CONFIG", raising=False)
    (tmp_path / "urls").write_bytes(b"json://\xff\xfe")
    for name, why in (("urls", "not text"), ("nowhere", "No such file or directory")):
        with pytest.raises(UsageError) as e:
            notify.urls_by_digest(Settings(receiver={"notify_urls": f"file:{name}"}))
        assert str(e.value) == f"receiver.notify_urls: cannot read {name} ({why})"


def job(rerun: bool = False, recurred: bool = False) -> Job:
    return Job(
        1, "k", "INC-1", "firing", ("3",), "main", {}, "Late firing: slow", rerun, recurred, "running", 1, 0.0, None,
        None, "",
    )  # fmt: skip


@pytest.mark.parametrize(("lang", "looked"), [("en", "Target main, section 3, 4.1"), ("ja", "対象 main、3, 4.1 節")])
def test_a_message_says_what_where_how_sure_and_what_next(lang: str, looked: str) -> None:
    came = {
        "lines": ["✖ CRITICAL  Stuck at relay  (confidence high)", "", "Next section: 4.1"],
        "document": {"as_of": "2026-01-31T03:00:00.5+00:00", "runs": [{"section": "3"}, {"section": "4.1"}]},
    }
    with messages.using(lang):
        title, body = notify.compose(job(), came, "disk full", "http://127.0.0.1/incidents/INC-1/index.html", "seal:x")
    assert title == "✖ CRITICAL Stuck at relay (confidence high) · INC-1"
    lines = body.splitlines()
    assert lines[0] == "Late firing: slow"
    assert lines[1].startswith(looked) and "2026-01-31 03:00:00Z" in lines[1]
    assert "Next section: 4.1" in lines and "disk full" in body
    assert lines[-2:] == ["seal:x", "http://127.0.0.1/incidents/INC-1/index.html"]


@pytest.mark.parametrize(
    ("lang", "again", "line"),
    [
        ("en", "Again: ", "firing again after the recovery was checked: "),
        ("ja", "再発: ", "回復の確認後に再び発生しました: "),
    ],
)
def test_a_further_outage_is_told_as_one(lang: str, again: str, line: str) -> None:
    came = {"lines": ["✖ CRITICAL"], "document": {"as_of": "2026-01-31T03:00:00Z", "runs": []}}
    with messages.using(lang):
        told = notify.compose(job(recurred=True), came, "", "link")
        given_up = notify.compose(job(recurred=True), None, "lost", "link")
    assert told[0] == f"{again}✖ CRITICAL · INC-1" and given_up[0].startswith(f"{again}? UNKNOWN")
    for _, body in (told, given_up):
        assert body.startswith(f"{line}Late firing: slow\n")
    with messages.using(lang):
        assert again not in "".join(notify.compose(job(rerun=True), came, "", "link"))


def test_a_message_is_not_too_long_and_keeps_its_link() -> None:
    document = {"as_of": "2026-01-31T03:00:00Z", "runs": []}
    title, body = notify.compose(job(), {"lines": ["x" * 500, "y" * 9000], "document": document}, "", "link", "seal:x")
    assert len(title) <= notify.TITLE and title.endswith(" · INC-1")
    assert len(body) <= notify.BODY + 2 and body.endswith("\n\nseal:x\nlink")
