"""The broker's API: what a failure on our side, a slow answer and a hung broker are called. No broker is needed."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from runbook_lib.book import catalog
from runbook_lib.diagnosis.evidence import evidence_from_error
from runbook_lib.model.finding import Reason
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import broker_client, jetstream
from runbook_lib.sources.jetstream import JetStream
from runbook_lib.sources.source import ReadCost, SourceError


class FakeClient:
    """A connection whose requests are answered one after another, each after `pause_s`."""

    def __init__(self, answer: Any = None, *, pause_s: float = 0.0, flushes: bool = True, cluster: str = "") -> None:
        self._answer, self._pause_s, self._flushes = answer, pause_s, flushes
        self._server_info = {"cluster": cluster} if cluster else {}
        self._turn = asyncio.Lock()
        self.asked = 0

    async def request(self, subject: str, payload: bytes, timeout: float) -> Any:
        self.asked += 1

        async def wait() -> None:
            async with self._turn:
                await asyncio.sleep(self._pause_s)

        try:
            await asyncio.wait_for(wait(), timeout)
        except TimeoutError:
            raise broker_client.errors.TimeoutError from None
        return SimpleNamespace(data=json.dumps(self._answer).encode())

    async def flush(self, timeout: float) -> None:
        if not self._flushes:
            raise broker_client.errors.TimeoutError

    async def close(self) -> None:
        pass


def reading(monkeypatch: pytest.MonkeyPatch, client: FakeClient) -> JetStream:
    async def connect(self: JetStream, errors: list[Exception]) -> FakeClient:
        return client

    monkeypatch.setattr(JetStream, "_connect_to_node", connect)
    monkeypatch.setattr(jetstream, "REQUEST_TIMEOUT_S", 0.1)
    return JetStream("nats://broker:4222", "test", ReadCost(Masker()))


@contextmanager
def fails_with(reason: Reason, detail: str) -> Any:
    with pytest.raises(SourceError) as failed:
        yield failed
    assert (failed.value.reason, failed.value.detail) == (reason, detail)


def test_a_failure_of_our_own_is_no_evidence_about_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    source = reading(monkeypatch, FakeClient({"no": "message"}))
    with fails_with(Reason.ERROR, "KeyError: 'message'") as failed:
        source.message("events", 1)
    assert evidence_from_error(failed.value, catalog.load()) == ()


def test_a_websocket_without_its_package_is_a_problem_on_our_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with fails_with(Reason.DENIED, "ws:// needs the package aiohttp") as failed:
        JetStream("ws://127.0.0.1:9", "test", ReadCost(Masker())).server()
    assert evidence_from_error(failed.value, catalog.load()) == ()


STORED = {"message": {"seq": 1, "time": "2026-01-01T00:00:00+00:00", "subject": "events"}}


def test_a_slow_batch_has_time_for_all_its_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    source = reading(monkeypatch, FakeClient(STORED, pause_s=0.002))
    assert len(source.messages("events", range(100))) == 100
    assert source.positions("events", []) == []


def test_a_slow_answer_is_no_hung_broker_and_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source = reading(monkeypatch, client := FakeClient(STORED, pause_s=1.0))
    for asked in (1, 2):
        with fails_with(Reason.TIMEOUT, "the broker answers, and its JetStream did not in time") as failed:
            source.message("events", 1)
        assert client.asked == asked and evidence_from_error(failed.value, catalog.load()) == ()


@pytest.mark.parametrize(
    ("client", "code"),
    [
        ({"flushes": False}, "hung"),
        ({"cluster": "c"}, "unanswered"),
    ],
)
def test_a_hung_broker_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, client: dict[str, Any], code: str) -> None:
    source = reading(monkeypatch, one := FakeClient(STORED, pause_s=1.0, **client))
    for _ in range(2):
        with pytest.raises(SourceError) as failed:
            source.message("events", 1)
        assert (failed.value.code, one.asked) == (code, 1)
    assert evidence_from_error(failed.value, catalog.load())


def test_a_batch_that_is_slow_in_a_cluster_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "MESSAGES_PER_S", 1000)
    source = reading(monkeypatch, FakeClient(STORED, pause_s=1.0, cluster="c"))
    with pytest.raises(SourceError) as failed:
        source.messages("events", range(20))
    assert failed.value.code == "slow" and evidence_from_error(failed.value, catalog.load()) == ()
