"""The sample of a run (`runs.sampler`), of real servers."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import pandas as pd
import psycopg
import pytest

from runbook_lib.book import catalog
from runbook_lib.book.parameters import validate
from runbook_lib.checks import context
from runbook_lib.checks.check import checks
from runbook_lib.model.finding import Status
from runbook_lib.model.order import Order
from runbook_lib.runs import sampler
from runbook_lib.sources.settings import Settings
from runbook_lib.sources.source import SourceError
from tests.kit import steps
from tests.kit.servers import Servers


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    yield
    context.inherit(None)


def test_the_sections_of_a_run_read_nothing_that_its_sample_has(
    servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    steps.events(db, 7, 120, audit=False, outbox=None, processed=False, status="PENDING")
    # Not by the environment: the process that others are forked from has that of an earlier test.
    target = {name.removeprefix("RUNBOOK_").lower(): value for name, value in servers.env.items()}
    book, config, heard = catalog.load(), Settings(targets={"t": target}), list[sampler.Numbers]()
    # On a machine that is busy, what is asked at the first moment may take longer than the moments are apart.
    book = replace(book, numbers=book.numbers | {"looks.apart": 5.0})
    sample = sampler.take(Order(("3",), "", target="t"), config, book, heard.append)
    assert sample is not None and sample.sections == ("4.1", "4.3")
    ((_, hops),) = heard
    assert any(h.name == "delivery_worker" and h.waiting == 7 and (h.oldest_s or 0) > 100 for h in hops)
    assert len(sample.first["first.held"]) == 0 and len(sample.first["worker_samples"]) >= 2
    asked, anew = {q.name for q in sample.queries}, Counter[str]()
    for section in ("3", "4.1"):
        context.inherit(deepcopy(sample))  # as a fork has it
        rb = context.open_context(book.sections[section], validate({"target": "t"}), config, book)
        assert rb.as_of == sample.as_of
        for step in book.sections[section].steps:
            rb.findings[step.id] = found = checks()[step.id].run(rb)
            assert found.status is not Status.UNKNOWN or step.id not in ("3.1", "4.1.1"), found
            if step.id == "4.1.1":
                before, now = (found.frames[name]["now"].iloc[0] for name in ("first.activity", "activity"))
                assert (now - before).total_seconds() >= rb.number("looks.apart") - 0.1
        sent = {(q.name, q.started) for q in sample.queries}
        anew += Counter(q.name for q in rb.read_cost.queries if (q.name, q.started) not in sent)
    # Each section has a connection of its own, and what has just started is watched.
    assert not anew.keys() & asked - {"connect", "get deploy"}, anew


@pytest.mark.parametrize(("due_s", "read"), [(1, False), (120, True)])
def test_the_history_of_the_queues_is_read_where_rows_are_late(
    servers: Servers, db: psycopg.Connection, broker: str, due_s: int, read: bool
) -> None:
    steps.events(db, 7, due_s, audit=False, outbox=None, processed=False, status="PENDING")
    target = {name.removeprefix("RUNBOOK_").lower(): value for name, value in servers.env.items()}
    config = Settings(targets={"t": target})
    sample = sampler.take(Order(("3",), "", target="t"), config, catalog.load(), lambda numbers: None)
    assert sample is not None
    asked, details = {q.name for q in sample.queries}, {"past/notifications", "past/outbox", "notifications/by_status"}
    assert asked >= {"notifications/backlog", "outbox/delay"}
    assert asked & details == (details if read else set())


def test_a_server_that_does_not_answer_is_waited_for_once(servers: Servers, db: psycopg.Connection) -> None:
    """And the sections take the moment from the sample, each with its own window."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and never says a word
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        target = {"database_url": servers.database_url, "nats_url": url}
        book, config, heard = catalog.load(), Settings(targets={"t": target}), list[sampler.Numbers]()
        sample = sampler.take(Order(("3",), "", target="t"), config, book, heard.append)
        assert sample is not None and sample.down.keys() == {"jetstream"} and len(heard) == 1
        context.inherit(deepcopy(sample))
        for section, minutes in (("3", 60), ("6", 15)):
            rb = context.open_context(
                book.sections[section], validate({"target": "t", "window_minutes": minutes}), config, book
            )
            assert (rb.as_of, rb.as_of - rb.since) == (sample.as_of, pd.Timedelta(minutes=minutes))
            with pytest.raises(SourceError) as e:
                rb.source("jetstream").stream("any")
            assert e.value is rb.sources.down()["jetstream"][1], "it was not asked again"
            assert [q.name for q in rb.read_cost.queries] == ["STREAM.INFO.any"]
