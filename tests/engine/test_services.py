"""The services themselves: their addresses, one bounded request, and whatever may answer it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.checks.context import Sources
from runbook_lib.model.finding import Reason
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import http, prometheus, settings
from runbook_lib.sources.prometheus import Exposition
from runbook_lib.sources.settings import Budget, Target
from runbook_lib.sources.source import Opening, ReadCost, SourceError
from tests.kit.sources import fails_with
from tests.kit.web import reply, web

#: As a service on a JVM writes it: comments, labels, a number without and with a point, one that is none.
TEXT = """\
# HELP process_start_time_seconds Start time of the process since unix epoch.
# TYPE process_start_time_seconds gauge
process_start_time_seconds{application="notification"} 1.780000000123E9
# HELP hikaricp_connections_timeout_total Connection timeout total count
# TYPE hikaricp_connections_timeout_total counter
hikaricp_connections_timeout_total{application="notification",pool="HikariPool-1"} 0.0
# TYPE tasks_scheduled_execution_seconds summary
tasks_scheduled_execution_seconds_count{code_function="run",exception="none",outcome="SUCCESS"} 118
tasks_scheduled_execution_seconds_sum{code_function="run",exception="none",outcome="SUCCESS"} 1.21
# TYPE jvm_gc_pause_seconds gauge
jvm_gc_pause_seconds_max{cause="a \\"quoted\\" one"} NaN
"""


def a_cost() -> ReadCost:
    return ReadCost(Masker())


@contextmanager
def answering(status: int, body: bytes, headers: dict[str, str] | None = None, pause_s: float = 0.0) -> Iterator[str]:
    """A server on loopback that answers everything so, its body a byte after the other where it pauses."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):  # whoever asked may have left
            reply(request, status, b"" if pause_s else body, headers)
            for n in range(len(body) if pause_s else 0):
                request.wfile.write(body[n : n + 1])
                time.sleep(pause_s)

    with web(answer) as url:
        yield url


def asked(url: str, cost: ReadCost | None = None) -> Any:
    return Exposition("notification", url, cost or a_cost()).samples(
        "actuator/prometheus", lambda name: not name.startswith("jvm_")
    )


# One request ------------------------------------------------------------------------------------------------


def test_one_request_gives_the_wanted_series_with_their_labels() -> None:
    cost = a_cost()
    with answering(200, TEXT.encode()) as url:
        frame = asked(url, cost)
    assert frame["__name__"].tolist() == [
        "process_start_time_seconds",
        "hikaricp_connections_timeout_total",
        "tasks_scheduled_execution_seconds_count",
        "tasks_scheduled_execution_seconds_sum",
    ]
    assert frame["value"].tolist() == [1780000000.123, 0.0, 118.0, 1.21]
    assert frame.loc[2, "outcome"] == "SUCCESS" and frame.loc[1, "pool"] == "HikariPool-1"
    (question,) = cost.queries
    assert (question.source, question.text, question.error) == ("notification", "GET /actuator/prometheus", "")


@pytest.mark.parametrize(
    ("status", "body", "reason", "code"),
    [
        (404, b"", Reason.ERROR, "not_found"),
        (401, b"", Reason.DENIED, "401"),
        (403, b"", Reason.DENIED, "403"),
        (503, b"upstream connect error", Reason.ERROR, "503"),
        (302, b"", Reason.ERROR, "redirect"),
        (200, b"<html><title>log in</title></html>", Reason.ERROR, "unfit"),
        (200, b"\xff\xfe", Reason.ERROR, "unfit"),
    ],
)
def test_another_answer_is_told_apart(status: int, body: bytes, reason: Reason, code: str) -> None:
    cost = a_cost()
    with answering(status, body, {"Location": "/login"}) as url, pytest.raises(SourceError) as failed:
        asked(url, cost)
    assert (failed.value.source, failed.value.reason, failed.value.code) == ("notification", reason, code)
    assert len(cost.queries) == 1


def test_nobody_there_and_nobody_who_answers_are_two_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT_S", (0.5, 0.5))
    with socket.create_server(("127.0.0.1", 0)) as listening:  # takes the connection, as a frozen process does
        port = listening.getsockname()[1]
        with fails_with(Reason.TIMEOUT, "hung"):
            asked(f"http://127.0.0.1:{port}")
    with fails_with(Reason.UNREACHABLE, "no_connection"):
        asked(f"http://127.0.0.1:{port}")


def test_an_answer_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WHOLE_S", 0.5)
    with answering(200, b"# drip " * 100, pause_s=0.05) as url, pytest.raises(SourceError, match="did not end"):
        asked(url)
    monkeypatch.setattr(http, "MOST_BYTES", 1000)
    with answering(200, b"#" * 5000) as url, pytest.raises(SourceError, match="longer than"):
        asked(url)


@given(st.one_of(st.binary(), st.text().map(str.encode), st.lists(st.sampled_from(TEXT.splitlines())).map(
    lambda lines: "\n".join(line[: len(line) - i % 3] for i, line in enumerate(lines)).encode()
)))  # fmt: skip
def test_whatever_answers_is_read_or_refused(body: bytes) -> None:
    try:
        frame = prometheus.rows("notification", body, lambda name: True)
    except SourceError:
        """It is refused."""
    else:
        assert frame.empty or {"__name__", "value"} <= set(frame.columns)


# Addresses --------------------------------------------------------------------------------------------------


def test_an_address_may_stand_in_the_environment_a_file_or_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("http://u:s3cret-x@notification:8080/base\n")
    (tmp_path / "runbook.toml").write_text(
        '[targets.prod]\nnats_url = "nats://h"\nentitlement_url = "env:ENT"\nnotification_url = "file:secret"\n'
        '[targets.plain]\nnats_url = "nats://h"\nentitlement_url = "http://entitlement"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENT", "https://entitlement:8443")
    target = settings.load().target("prod")
    assert target.service("entitlement") == "https://entitlement:8443"
    assert target.service("notification") == "http://u:s3cret-x@notification:8080/base"
    assert Masker.of(target.urls(), "x").scrub("it said s3cret-x") == "it said ***"
    plain = settings.load().target("plain")
    assert (plain.service("entitlement"), plain.service("notification")) == ("http://entitlement", None)


def test_the_environment_names_those_of_the_one_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_NATS_URL", "nats://h")
    monkeypatch.setenv("RUNBOOK_NOTIFICATION_URL", "http://127.0.0.1:18080")
    assert settings.load().target("default").service("notification") == "http://127.0.0.1:18080"
    assert settings.load().target("default").service("entitlement") is None


def test_a_service_that_is_not_declared_is_not_configured() -> None:
    target = Target(nats_url="nats://h", entitlement_url="http://e")  # type: ignore[call-arg]
    sources = Sources(Opening(target, "test", Budget(), a_cost()))
    assert isinstance(sources.service("entitlement"), Exposition)
    with fails_with(Reason.NOT_CONFIGURED):
        sources.service("notification")
