"""The broker asked by hand: within the runbook's limits, and nobody is named."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pandas as pd
import pytest
from nats.js import JetStreamContext

from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.gameday.sandbox.servers import Servers
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session
from runbook_lib.packs.entitlement import wire
from tests.kit.frames.delivery import SHAPES
from tests.kit.steps import open_target, publish

WHO, EVENT = "alice@example.org", "2f3797bf-263d-c7d6-54cf-859f0b1c5d2e"
BODY = wire.encode(
    wire.EntitlementEvent(EVENT, wire.GRANTED, "2025-01-31T03:00:00Z", WHO, "alice-sku", "shop", "alice-9", 1, "a" * 32)
)
HEADERS = {
    "Nats-Msg-Id": EVENT,
    "event_type": wire.GRANTED,
    "aggregate_key": f"{WHO}:sku",
    "occurred_at": "2025-01-31T03:00:00Z",
    "trace_id": "a" * 32,
    "X-User": WHO,
}


def opened(url: str, **parameters: Any) -> Session:
    target = {"nats_url": url} if url else {"database_url": "postgresql://127.0.0.1:9/x"}
    return Session(open_target("4.1", target, incident_id="A", **parameters))


@pytest.fixture
def rb(servers: Servers, broker: str) -> Session:
    """A session whose user may only ask, on empty streams."""
    return opened(servers.env["RUNBOOK_NATS_URL"])


def test_a_stream_and_its_durable_as_the_broker_has_them(rb: Session, broker: str) -> None:
    for _ in range(3):
        publish(broker, BODY)
    stream, consumer = rb.nats.stream(), rb.nats.consumer()
    assert (stream.name, consumer.name) == (applications.STREAM, applications.CONSUMER)
    assert [stream[f"state.{n}"] for n in ("messages", "first_seq", "last_seq")] == [3, 1, 3]
    assert stream["config.subjects"] == applications.SUBJECT and stream["config.duplicate_window_s"] == 120
    assert stream["ts"] >= stream["state.last_ts"] > stream["created"]
    assert (consumer["num_pending"], consumer["ack_floor.stream_seq"], consumer["push_bound"]) == (3, 0, False)
    assert (consumer["config.ack_wait_s"], consumer["config.max_deliver"]) == (10, 10)
    assert consumer["delivered.last_active"] is None
    asked = [(q.source, q.name, q.rows) for q in rb.context.read_cost.queries[-2:]]
    path = f"{applications.STREAM}.{applications.CONSUMER}"
    assert asked == [("jetstream", f"STREAM.INFO.{applications.STREAM}", 1), ("jetstream", f"CONSUMER.INFO.{path}", 1)]


def test_a_stream_means_its_durable_and_a_durable_its_stream(rb: Session) -> None:
    assert rb.nats.consumer(applications.ADVISORY_CONSUMER)["stream_name"] == applications.ADVISORY_STREAM
    assert rb.nats.consumer(stream=applications.TERMINATED_STREAM).name == applications.TERMINATED_CONSUMER
    matches = rb.nats.consumer(applications.MATCH_CONSUMER, stream=applications.MATCH_STREAM)
    assert matches["config.filter_subject"] == applications.MATCH_SUBJECT
    assert rb.nats.stream(applications.ADVISORY_STREAM)["state.first_ts"] is None


def test_a_message_tells_what_names_nobody(rb: Session, broker: str) -> None:
    (seq,) = publish(broker, BODY, headers=HEADERS)
    message, token = rb.nats.message(np.float64(seq)), rb.context.masker.person(WHO)
    assert (message["seq"], message["subject"], message["bytes"]) == (seq, applications.SUBJECT, len(BODY))
    assert abs(message["time"] - pd.Timestamp.now("UTC")) < pd.Timedelta("1min")
    assert {k: message[f"headers.{k}"] for k in HEADERS} == HEADERS | {"aggregate_key": f"{token}:sku", "X-User": token}
    assert (message["event_id"], message["user_id"], message["problem"]) == (EVENT, token, "decodes")


ADVISORY = f'{{"stream_seq": 7, "reason": "{WHO}"}}'.encode()
POISON = [
    (b"\xff" + WHO.encode(), {}, "undecodable"),
    (WHO.encode(), {}, "undecodable"),
    (wire.encode(wire.EntitlementEvent(WHO, wire.GRANTED, WHO, WHO, WHO, WHO, WHO, 1, WHO)), {}, "bad_event_id"),
    (b"", dict.fromkeys(HEADERS, WHO), "empty_field"),
]


@pytest.mark.parametrize(("body", "headers", "problem"), [(BODY, HEADERS, "decodes"), *POISON])
def test_nobody_is_named_whatever_is_in_it(
    rb: Session, broker: str, body: bytes, headers: dict[str, str], problem: str
) -> None:
    message = rb.nats.message(*publish(broker, body, headers=headers or None))
    assert message["problem"] == problem
    shown = message.to_string() + repr(message.to_dict()) + repr(rb.context.read_cost.queries)
    assert "alice" not in shown and "shop" not in shown and "example" not in shown


def test_nor_in_other_streams_or_in_a_subject(rb: Session, broker: str) -> None:
    async def scene(js: JetStreamContext) -> None:
        for stream, subject in ((applications.MATCH_STREAM, "people.>"), (applications.ADVISORY_STREAM, "advised")):
            config = (await js.stream_info(stream)).config
            await js.update_stream(config.evolve(subjects=[*(config.subjects or ()), subject]))

    applications.visit(broker, scene)
    seen = [
        rb.nats.message(
            *publish(broker, BODY, headers=HEADERS, subject="people.alice"), stream=applications.MATCH_STREAM
        ),
        rb.nats.message(*publish(broker, ADVISORY, subject="advised"), stream=applications.ADVISORY_STREAM),
    ]
    assert [m.get("about_seq") for m in seen] == [None, 7] and "event_id" not in seen[0]
    assert seen[1]["subject"] == "advised"
    assert "alice" not in repr([m.to_dict() for m in seen]) + repr(rb.context.read_cost.queries)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda n: n.stream("entitlement-event"), "did you mean 'entitlement-events'?"),
        (lambda n: n.consumer("notification-entitlement"), "did you mean 'notification-entitlement-consumer'?"),
        (lambda n: n.consumer(stream="another"), "name a consumer of another"),
        (lambda n: n.stream("x.y"), "without spaces, dots"),
        (lambda n: n.stream("x\r\nPUB entitlement.events 0\r\n"), "without spaces, dots"),
        (lambda n: n.consumer("*"), "without spaces, dots"),
        (lambda n: n.message(3, stream=WHO), "without spaces, dots"),
        (lambda n: n.message(9), "entitlement-events has no message 9: it holds 1, of sequence 1 to 1"),
        (lambda n: n.message(10**30), "jetstream: "),
        *((lambda n, s=s: n.message(s), "whole number from 1 on") for s in (0, 1.5, float("nan"), WHO, None, pd.NA)),
    ],
)
def test_what_goes_wrong_is_a_line(rb: Session, broker: str, asked: Any, said: str) -> None:
    publish(broker, BODY)
    with pytest.raises(UsageError) as error:
        asked(rb.nats)
    assert said in str(error.value) and "\n" not in str(error.value) and "alice" not in str(error.value)
    assert rb.nats.stream()["state.messages"] == 1


def test_a_broker_that_is_silent_or_not_declared_is_a_line() -> None:
    with pytest.raises(UsageError, match="jetstream: connection refused"):
        opened("nats://127.0.0.1:9").nats.stream()
    with pytest.raises(UsageError, match="jetstream: "):
        opened("").nats.message(1)


def test_a_frame_draws_itself() -> None:
    with pytest.raises(UsageError, match=r"draw a frame with its own \.plot\(\)"):
        opened("").chart(pd.DataFrame())  # type: ignore[arg-type]


def test_a_chart_that_cannot_be_drawn_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    rb = opened("")
    rb.findings["4.1.1"] = Mock(frames=SHAPES["4.1.1"]())
    with patch("runbook_lib.view.charts.draw", side_effect=ValueError("odd")):
        rb.chart("4.1.1")
    assert capsys.readouterr().out.count("The chart could not be drawn: ValueError: odd") == 2


def test_it_is_named_where_a_notebook_completes(rb: Session) -> None:
    assert "nats" in dir(rb)
    with pytest.raises(AttributeError, match="did you mean 'nats'"):
        rb.nat  # noqa: B018
