"""The broker asked by hand, and charts of frames of one's own: within the runbook's limits, and nobody is named."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nats.js import JetStreamContext

from runbook_lib.book import messages
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.gameday.sandbox.servers import Servers
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session
from runbook_lib.packs.entitlement import wire
from runbook_lib.store import record
from runbook_lib.view import charts
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


# The broker ---------------------------------------------------------------------------------------------------


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
        (lambda n: n.consumer(stream=applications.MATCH_STREAM), "name a consumer of matchmaking-events"),
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


def test_it_is_named_where_a_notebook_completes(rb: Session) -> None:
    assert "nats" in dir(rb)
    with pytest.raises(AttributeError, match="did you mean 'nats'"):
        rb.nat  # noqa: B018


# Charts -------------------------------------------------------------------------------------------------------

TOKYO = timezone(timedelta(hours=9))
FRAME = pd.DataFrame(
    {
        "minute": [datetime(2025, 1, 31, 12, m, tzinfo=TOKYO) for m in (2, 0, 1)],
        "n": [3, None, 1],
        "rate": [Decimal("1.5"), Decimal(2), None],
        "wait": pd.to_timedelta([1, 2, 90], unit="s"),
        "status": ["SENT", "PENDING", None],
        "day": [date(2025, 1, 31)] * 3,
        "late": [True, False, True],
        "$odd_{": [1.0, 2.0, np.inf],
        "never": [None] * 3,
    }
)


def words(chart: charts.Chart | None) -> str:
    assert chart is not None and chart.png().startswith(b"\x89PNG")
    for lang in messages.LANGUAGES:
        assert chart.metadata(lang)["image/png"]["alt"]
    return messages.text(chart.alt, "en")


def test_times_are_in_utc_and_rows_in_their_order() -> None:
    chart = charts.chart_frame(FRAME, "minute", ["n", "rate"], title="Came and went")
    said = words(chart)
    assert chart is not None
    (ax,) = chart.figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("minute (UTC)", "value")
    assert said == (
        "Came and went: 3 rows, minute 2025-01-31 03:00:00 UTC - 2025-01-31 03:02:00 UTC, n 1 - 3, rate 1.5 - 2"
    )
    assert [t.get_text() for t in chart.figure.legends[0].get_texts()] == ["n", "rate"]
    assert list(np.asarray(ax.lines[1].get_ydata(), float)[::2]) == [2.0, 1.5]
    assert any("03:0" in t.get_text() for t in ax.get_xticklabels()) or ax.xaxis.get_offset_text()


def ticks(chart: charts.Chart) -> list[str]:
    """The labels of the times, as far as there is one, and the date beside them."""
    assert chart.png()
    axis = chart.figure.axes[0].xaxis
    return [t for t in (*(label.get_text() for label in axis.get_ticklabels()), axis.get_offset_text().get_text()) if t]


@pytest.mark.parametrize("seconds", [0, 1e-5, 0.05, 0.4, 0.9, 5, 45, 90, 900, 86400, 5e5])
@pytest.mark.parametrize("own", [True, False], ids=["a frame", "a judge's chart"])
def test_no_two_ticks_say_the_same_time(seconds: float, own: bool) -> None:
    at = pd.Timestamp("2025-01-31 03:00:00.1", tz="UTC") + pd.to_timedelta(np.linspace(0, seconds, 5), unit="s")
    if own:
        chart = charts.chart_frame(pd.DataFrame({"at": at, "n": range(5)}), "at", ["n"])
        assert chart is not None
    else:
        figure, ax = charts.axes("A chart", "rows", "UTC")
        ax.plot(at, range(5))
        charts.clock_ticks(ax)
        chart = charts.Chart(figure, say("chart.own"))
    said = ticks(chart)
    assert all(one != next_ for one, next_ in itertools.pairwise(said)), said
    assert any("2025" in t for t in said), "which day it was"
    if seconds < 1:
        assert len({t for t in said if "00." in t}) > 2, said


def test_the_words_of_a_chart_are_as_fine_as_its_ticks() -> None:
    at = pd.Timestamp("2025-01-31 03:00:00.1", tz="UTC") + pd.to_timedelta([0, 0.25], unit="s")
    said = words(charts.chart_frame(pd.DataFrame({"at": at, "n": [1, 2]}), "at", ["n"]))
    assert "at 2025-01-31 03:00:00.100 UTC - 2025-01-31 03:00:00.350 UTC" in said


@pytest.mark.parametrize("kind", ["line", "bar", "scatter"])
@pytest.mark.parametrize("x", [c for c in FRAME.columns if c != "never"])
def test_whatever_has_numbers_is_drawn(kind: str, x: str) -> None:
    y = ["n", "wait", "late", "$odd_{"]
    assert f"{', '.join(y)} by {x}: " in words(charts.chart_frame(FRAME, x, y, kind))


@pytest.mark.parametrize("x", ["minute", "n", "rate", "wait", "day", "late", "$odd_{"])
def test_how_often_values_occur(x: str) -> None:
    assert x in words(charts.chart_frame(FRAME, x, (), "hist"))


def test_spans_are_in_seconds_and_many_names_are_not_all_written() -> None:
    chart = charts.chart_frame(FRAME, "wait", ["wait"], "scatter")
    assert "wait 1 - 90" in words(chart) and chart is not None and chart.figure.axes[0].get_xlabel() == "wait (s)"
    many = pd.DataFrame({"pod": [f"notification-{uuid.uuid4()}" for _ in range(200)], "n": range(200)})
    chart = charts.chart_frame(many, "pod", ["n"], "bar")
    assert words(chart) and chart is not None and len(chart.figure.axes[0].get_xticks()) <= 30


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"x": "minutes", "y": "n"}, "no one column 'minutes': did you mean 'minute'?"),
        ({"x": "minute", "y": ["n", "rates"]}, "did you mean 'rate'?"),
        ({"x": "minute", "y": "n", "kind": "lines"}, "unknown kind 'lines': did you mean 'line'?"),
        ({"x": "minute"}, "takes x, and one to 4 columns as y"),
        ({"x": "minute", "y": list(FRAME.columns)}, "takes x, and one to 4 columns as y"),
        ({"x": "minute", "y": "n", "kind": "hist"}, "takes x alone"),
        ({"x": "minute", "y": "status"}, "column 'status' cannot be drawn as 'line': it has no numbers"),
        ({"x": "n", "y": "minute"}, "it has no numbers"),
        ({"x": "status", "kind": "hist"}, "it has no numbers"),
        ({"y": "n"}, "no one column ''"),
    ],
)
def test_a_slip_is_a_line(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        opened("").chart(FRAME, **asked)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_two_columns_of_a_name_and_what_is_no_frame() -> None:
    with pytest.raises(UsageError, match="no one column 'n': 2 columns have that name"):
        charts.chart_frame(pd.DataFrame([[1, 2]], columns=["n", "n"]), "n", ["n"])
    with pytest.raises(UsageError, match="needs a step of this section, or a frame"):
        opened("").chart([1, 2])  # type: ignore[arg-type]


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """Where outputs can be captured."""
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("lang", messages.LANGUAGES)
def test_in_a_cell_it_has_its_words_and_is_no_part_of_the_evidence(lang: str, shell: InteractiveShell) -> None:
    rb = opened("", lang=lang)
    with capture_output() as shown:
        rb.chart(FRAME, x="minute", y="n", kind="bar")
        rb.chart(FRAME.iloc[:0], x="minute", y="n")
        rb.chart(FRAME, x="minute", y="never")
    assert [record.RUN_MIME in o.data for o in shown.outputs] == [False] * 3
    assert "image/png" in shown.outputs[0].data and "n by minute" in shown.outputs[0].metadata["image/png"]["alt"]
    nothing = messages.text(say("chart.no_rows"), lang)
    assert [o.data["text/plain"] for o in shown.outputs[1:]] == [nothing, nothing]
