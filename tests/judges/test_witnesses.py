"""Who reports what about whom: one part's word about another decides nothing, a second witness or its own word does."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book import catalog, messages
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.evidence import REPORT, drop_contradicted, score
from runbook_lib.model.finding import Finding, Proposal, Status, Verdict, replace, say
from runbook_lib.packs.entitlement.checks.errors import classify_send
from runbook_lib.packs.entitlement.evidence.receiver import ProbeResult, ReceiverProbe
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.source import ReadCost
from runbook_lib.view import render
from tests.kit.web import reply, web

BOOK = catalog.load()
ANSWERS = "receiver.answers"


def reports(part: str) -> list[str]:
    """Return what a part reports of another one."""
    return [o.name for o in BOOK.observations.values() if o.reporter == part and o.kind.weight <= REPORT]


def seen(step: str, *observations: str, proposals: tuple[str, ...] = ()) -> Finding:
    signals = tuple(s for name in observations for s in BOOK.evidence(name))
    proposed = tuple(Proposal(name, f"run {name}", "5.2") for name in proposals)
    return Finding(step, Status.CRITICAL, say("ui.no_action"), signals=signals, proposals=proposed)


def conclude(*findings: Finding) -> Verdict:
    return diagnosis.conclude(findings, BOOK)


def test_the_word_of_one_part_leaves_reporter_and_accused_open() -> None:
    """Failed sends may be of receiver, worker, or the way between: nothing that helps one only is proposed."""
    told = seen("4.1.1", "delivery.refused", proposals=("restart_notification", "hold_delivery", "logs"))
    verdict = conclude(told, seen("4.5.2", "exceptions.sends_fail"))
    assert (verdict.stuck_at, verdict.confidence) == (None, "low")
    assert verdict.undecided == ("delivery_worker", "receiver")
    assert {p.name for p in verdict.proposals} == {"hold_delivery", "logs"}
    assert conclude(told).settled_by[0] == "4.5.2", "the log has the error's text"


@pytest.mark.parametrize(
    ("second", "place", "mode"),
    [
        (("receiver.refuses",), "receiver", "FM-NOTI-03"),
        (("receiver.silent",), "receiver", "FM-NOTI-03"),
        (("receiver.unwell",), "receiver", "FM-NOTI-03"),
        (("sends.answered",), "receiver", "FM-NOTI-03"),
        (("sends.answered", ANSWERS), "receiver", "FM-NOTI-03"),
        (("sends.no_host",), "delivery_worker", "FM-NOTI-10"),
        (("sends.no_host", ANSWERS), "delivery_worker", "FM-NOTI-10"),
        (("sends.denied", ANSWERS), "delivery_worker", "FM-NOTI-10"),
        (("sends.exhausted", ANSWERS), "delivery_worker", "FM-NOTI-11"),
    ],
)
def test_a_second_witness_or_the_own_word_decides(second: tuple[str, ...], place: str, mode: str) -> None:
    verdict = conclude(seen("4.1.1", "delivery.refused"), seen("4.5.2", "exceptions.sends_fail", *second))
    assert (verdict.stuck_at, verdict.confidence, verdict.failure_modes[0].id) == (place, "high", mode)


def test_a_receiver_that_answers_is_not_accused_by_the_worker_alone() -> None:
    """The worker runs, is refused, and the receiver answers: address or way, and not surely which."""
    verdict = conclude(seen("4.1.1", "delivery.refused", "delivery.runs", ANSWERS), seen("4.5.2", "sends.refused"))
    assert (verdict.stuck_at, verdict.confidence) == ("delivery_worker", "low")
    assert verdict.failure_modes[0].id == "FM-NOTI-10"


def test_a_service_alone_that_cannot_reach_the_database_leaves_both_open() -> None:
    verdict = conclude(seen("4.1.1", "delivery.blocked", "database.keeps_out"))
    assert (verdict.stuck_at, verdict.undecided) == (None, ("delivery_worker", "database"))
    both = conclude(*(seen(side, f"{side}.blocked", "database.keeps_out") for side in ("delivery", "relay")))
    assert both.stuck_at == "database", "two processes are two witnesses"


def test_a_connection_that_nobody_accepts_may_be_of_the_runbooks_own_way() -> None:
    verdict = conclude(seen("4.1.1", "delivery.refused", "receiver.unreached"))
    assert (verdict.stuck_at, verdict.confidence) == ("receiver", "medium")


@given(st.sets(st.sampled_from(reports("delivery_worker"))))
def test_the_reports_of_one_part_never_make_another_part_stuck(names: set[str]) -> None:
    findings = [seen("4.1.1", *names)]
    for about in ("receiver", "FM-NOTI-03", "FM-NOTI-04"):
        assert score(findings, about, BOOK).score <= REPORT < diagnosis.BROKEN
    assert conclude(*findings).stuck_at is None


@given(st.sets(st.sampled_from(reports("runbook"))))
def test_what_the_runbook_alone_does_not_reach_is_no_place(names: set[str]) -> None:
    verdict = conclude(seen("4.1.1", *names))
    assert (verdict.stuck_at, verdict.undecided) == (None, ())


def test_what_the_relay_does_not_reach_either_is_a_place() -> None:
    assert conclude(seen("4.1.2", "jetstream.hung"), seen("4.1.3", "publish.gone_for_good")).stuck_at == "jetstream"


def test_a_part_is_its_own_witness() -> None:
    assert BOOK.reporter("sends.refused", "receiver") == "delivery_worker"
    assert BOOK.reporter("sends.refused", "FM-NOTI-03") == "delivery_worker"
    assert BOOK.reporter("sends.refused", "delivery_worker") == ""
    assert BOOK.reporter("sends.refused", "FM-NOTI-10") == ""
    assert BOOK.reporter("receiver.refuses", "receiver") == ""


def test_why_names_the_candidate_places_and_the_witness() -> None:
    explained = conclude(seen("4.1.1", "delivery.refused"))
    assert [place.id for place in explained.places] == ["delivery_worker", "receiver"]
    lines = "\n".join(render.failure_mode_lines(explained))
    assert "+0.45 delivery.refused (4.1.1, reported by delivery worker)" in lines
    with messages.using("ja"):
        assert "worker の報告" in "\n".join(render.failure_mode_lines(explained))


# The request to the receiver ------------------------------------------------------------------------------------


def probe(url: str) -> ProbeResult:
    return ReceiverProbe(url, ReadCost(Masker())).request()


def test_what_a_proxy_answers_shows_nothing_of_the_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    with web(lambda request: reply(request, 503)) as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "elsewhere.example")
        assert probe("http://receiver.example/health") == ProbeResult("proxied")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert probe(url).result == "unwell"


@pytest.mark.parametrize(
    ("status", "result"),
    [(204, "answers"), (302, "answers"), (401, "answers"), (404, "answers"), (405, "answers"), (429, "unwell"),
     (500, "unwell"), (503, "unwell")],
)  # fmt: skip
def test_a_status_is_the_receivers_own_word(status: int, result: str) -> None:
    paths = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        paths.append((request.command, request.path))
        reply(request, status)

    with web(answer) as url:
        found = probe(f"{url}/health?deep=1")
    assert (found.result, found.status, paths) == (result, status, [("GET", "/health?deep=1")])
    assert found.ms is not None


def test_nothing_that_listens_silence_and_an_unknown_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runbook_lib.sources.http.TIMEOUT_S", (0.3, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/health"
        assert probe(url).result == "silent"
    assert probe(url).result == "refuses"
    with ExitStack() as opened:
        full = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for client in [opened.enter_context(socket.socket()) for _ in range(3)]:  # the first fills the queue
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        assert probe(f"http://127.0.0.1:{full.getsockname()[1]}").result == "unreached"
    assert probe("http://receiver.invalid/").result == "", "that our name service does not know it says nothing of it"
    with socket.create_server(("127.0.0.1", 0)) as closing:
        threading.Thread(target=lambda: closing.accept()[0].close(), daemon=True).start()
        cut_off = probe(f"http://127.0.0.1:{closing.getsockname()[1]}/")
        assert cut_off.result == "", "it was neither refused nor kept waiting"


@pytest.mark.parametrize(
    ("text", "observation"),
    [
        ("receiver answered 503", "sends.answered"),
        ("HTTP 429 Too Many Requests", "sends.answered"),
        ("receiver answered 401", "sends.denied"),
        ("status 403", "sends.denied"),
        ("receiver answered 400", "sends.rejected"),
        ("java.net.ConnectException: Connection refused", "sends.refused"),
        ("receiver unreachable: No route to host", "sends.refused"),
        ("java.net.UnknownHostException: receiver.example", "sends.no_host"),
        ("receiver unreachable: Name or service not known", "sends.no_host"),
        ("PKIX path building failed: unable to find valid certification path", "sends.no_trust"),
        ("SSLHandshakeException: Received fatal alert: handshake_failure", "sends.no_trust"),
        ("java.net.SocketException: Too many open files", "sends.exhausted"),
        ("java.lang.OutOfMemoryError: unable to create native thread", "sends.exhausted"),
        ("java.net.BindException: Cannot assign requested address", "sends.exhausted"),
        ("receiver did not answer within 2 s", "sends.unanswered"),
        ("Connection reset by peer", "sends.unanswered"),
        ("field userId is missing", ""),
        (None, ""),
    ],
)
def test_the_text_of_a_failed_send_names_its_class(text: str | None, observation: str) -> None:
    assert classify_send(text) == observation
    assert not observation or observation in BOOK.observations


# Contradictions -----------------------------------------------------------------------------------------------


def test_a_contradicted_observation_is_no_evidence() -> None:
    """The receiver answers the runbook and each send with 429: then the worker is not what is broken."""
    findings = [seen("4.1.1", "delivery.refused", "delivery.runs", ANSWERS), seen("4.5.2", "sends.answered")]
    verdict = conclude(*findings)
    assert (verdict.stuck_at, verdict.confidence) == ("receiver", "high")
    assert [(b.kind, b.steps, b.observation) for b in verdict.contradicted] == [
        ("contradicted", ("4.1.1",), "delivery.refused")
    ]
    lines = render.verdict_lines(verdict)
    assert any("delivery.refused does not count" in line for line in lines)
    assert [place.id for place in verdict.places] == ["receiver"]
    assert conclude(findings[0]).stuck_at == "delivery_worker"


def clears(other: str, name: str) -> bool:
    about = [s.about for s in BOOK.evidence(name) if s.weight > 0]
    places = [each for each in about if each in BOOK.places]
    return other != name and all(BOOK.observations[other].clears(each) for each in places or about)


CLEARED = [o.name for o in BOOK.observations.values() if o.kind.cleared]


@pytest.mark.parametrize("name", CLEARED)
def test_what_is_cleared_is_evidence_in_no_finding(name: str) -> None:
    """Of a part that works, or waits for another, no silence, no lack and no report counts."""
    others = [other for other in BOOK.observations if clears(other, name)]
    for other in others:
        findings, dropped = drop_contradicted([seen("4.1.1", name), seen("4.5.2", other)], BOOK)
        assert {s.observation for f in findings for s in f.signals if s.weight > 0} <= {other}
        assert name in dropped


@given(st.sets(st.sampled_from(sorted(set(BOOK.observations) - set(CLEARED)))))
def test_own_words_and_signs_stay_whatever_works(names: set[str]) -> None:
    stays = [n for n in names if not BOOK.observations[n].kind.while_late]
    _, dropped = drop_contradicted([seen("4.1.1", *names)], BOOK)
    assert dropped.keys().isdisjoint(stays)


def test_a_start_that_is_over_hides_no_hang() -> None:
    """The first step saw a process that had just started; the step after it saw that its loop hangs."""
    now = pd.Timestamp("2026-01-01T00:01Z")
    starting, hangs = (replace(seen("4.1.1", f"delivery.{name}"), at=now) for name in ("starting", "hangs"))
    later = conclude(replace(starting, at=now - pd.Timedelta("20s")), hangs)
    assert (later.stuck_at, later.failure_modes[0].id) == ("delivery_worker", "FM-NOTI-06")
    again = conclude(starting, replace(hangs, at=now - pd.Timedelta("20s")))
    assert again.stuck_at is None, "it was restarted since"


def test_what_was_seen_earlier_contradicts_nothing() -> None:
    """A worker that ran and hangs now hangs; one that hung and runs now runs."""
    now = pd.Timestamp("2026-01-01T00:01Z")
    runs, hangs = (replace(seen("4.1.1", f"delivery.{name}"), at=now) for name in ("runs", "hangs"))
    earlier = now - pd.Timedelta("1min")
    assert conclude(replace(runs, at=earlier), hangs).contradicted == ()
    later = conclude(runs, replace(hangs, at=earlier))
    assert [b.observation for b in later.contradicted] == ["delivery.hangs"] and later.stuck_at is None


def test_a_worker_whose_log_tells_of_failed_tries_has_not_stopped() -> None:
    """Its statements are slow, so that no try is in the tables yet and the leases of its batch have expired."""
    restart = ("restart_notification",)
    stopped = seen("4.1.1", "delivery.stopped", "receiver.unreached", proposals=restart)
    silent = [stopped, seen("4.3.1", "leases.left_for_long")]
    unheard = conclude(*silent, seen("4.5.2", "exceptions.log_read"))
    assert (unheard.stuck_at, unheard.confidence) == ("delivery_worker", "high")
    told = ("exceptions.log_read", "exceptions.sends_fail", "sends.unanswered", "exceptions.worker_tries")
    verdict = conclude(*silent, seen("4.5.2", *told))
    assert verdict.stuck_at == "receiver" and "delivery_worker" not in {p.id for p in verdict.places}
    assert verdict.proposals == ()


def test_what_is_contradicted_proposes_nothing() -> None:
    """A stop of the relay that a later step refutes leaves no restart behind, unless something else speaks for it."""
    restart = ("restart_entitlement",)
    stopped = seen("4.1.3", "publish.stopped", proposals=restart)
    assert [p.name for p in conclude(stopped).proposals] == [*restart]
    refuted = conclude(stopped, seen("4.5.1", "relay.runs"))
    assert (refuted.proposals, [b.observation for b in refuted.contradicted]) == ((), ["publish.stopped"])
    more = seen("4.1.3", "publish.stopped", "relay.off", proposals=restart)
    kept, _ = drop_contradicted([more, seen("4.5.1", "publish.flows")], BOOK)
    assert [p.name for p in kept[0].proposals] == [*restart]
