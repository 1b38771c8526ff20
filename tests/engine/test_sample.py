"""What a run reads once for all of its sections (`checks.sample`, `sources.answers`)."""

from __future__ import annotations

import pickle
import time

import pandas as pd
import pytest

from runbook_lib.book import catalog
from runbook_lib.checks.context import AskedOnce
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Hop, Reason
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import sample
from runbook_lib.packs.entitlement.rows import HeldRow
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import answers
from runbook_lib.sources.answers import Answers
from runbook_lib.sources.source import ReadCost, SourceError
from tests.kit.steps import open_target

NOW = pd.Timestamp("2026-01-31T03:00Z")


class Monitor:
    """A source that counts what it is asked, and fails when it is told to."""

    version = "2.12"

    def __init__(self, cost: ReadCost) -> None:
        self.cost, self.fails = cost, False

    def servers(self, n: int = 1) -> list[int]:
        with self.cost.query("nats_monitor", "varz", "GET /varz"):
            if self.fails:
                raise SourceError("nats_monitor", Reason.TIMEOUT, "no answer", "hung")
            return [len(self.cost.queries)] * n


@pytest.fixture
def monitor() -> Monitor:
    return Monitor(ReadCost(Masker()))


def of(monitor: Monitor, kept: Answers, step: str) -> AskedOnce:
    return AskedOnce("nats_monitor", monitor, Answers(kept.kept, step), monitor.cost)


def test_steps_share_an_answer_and_a_step_that_asks_again_gets_a_new_one(monitor: Monitor) -> None:
    kept, cost = Answers(), monitor.cost
    first = of(monitor, kept, "3.1").servers(2)
    assert of(monitor, kept, "3.6").servers(2) is first and [q.name for q in cost.queries] == ["varz", "varz"]
    assert cost.queries[0] is cost.queries[1], "each counts it as its own"
    assert of(monitor, kept, "3.6").servers(1) != first, "another question"
    assert of(monitor, kept, "3.6").servers(2) is not first, "a person runs the step again"
    assert of(monitor, kept, "3.6").version == "2.12"


def test_what_is_unread_for_one_step_is_unread_for_all(monitor: Monitor) -> None:
    kept, monitor.fails = Answers(), True
    failed = []
    for step in ("3.1", "3.6"):
        with pytest.raises(SourceError) as e:
            of(monitor, kept, step).servers()
        failed.append(e.value)
    assert failed[0] is failed[1]
    monitor.fails = False
    assert of(monitor, kept, "3.1").servers() == [2]


def test_an_answer_without_a_sample_serves_for_some_seconds(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Answers()
    first = of(monitor, kept, "3.1").servers()
    later = time.monotonic() + answers.SHARED_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert of(monitor, kept, "3.6").servers() != first


def test_a_failure_reaches_another_process_whole() -> None:
    e = SourceError("postgres", Reason.TIMEOUT, "canceling statement", "lock_not_available")
    e.holders = pd.DataFrame({"pid": [7]})
    other = pickle.loads(pickle.dumps(e))
    assert (other.source, other.reason, other.detail, other.code) == (e.source, e.reason, e.detail, e.code)
    assert other.holders.equals(e.holders)


@pytest.mark.parametrize(
    ("hops", "sections"),
    [
        ((Hop("relay", oldest_s=600), Hop("delivery_worker", oldest_s=1)), ("4.1",)),
        ((Hop("relay"), Hop("delivery_worker", oldest_s=600)), ("4.1", "4.3")),
        ((Hop("relay", oldest_s=0), Hop("subscriber", oldest_s=600), Hop("delivery_worker")), ()),
    ],
)
def test_rows_that_are_late_by_the_first_numbers_open_their_sections(
    hops: tuple[Hop, ...], sections: tuple[str, ...]
) -> None:
    assert sample.sections_of_late_hops(hops, catalog.load()) == sections


FLOWING = {
    "backlog": row(now=NOW, due=2, oldest_due_s=0.1),
    "outbox": row(now=NOW),
    "activity": row(now=NOW),
    "held": rows.frame([], HeldRow),
}


@pytest.mark.parametrize(
    ("first", "seconds"),
    [
        (FLOWING, 1.5),
        (FLOWING | {"backlog": row(now=NOW, due=9, oldest_due_s=600.0)}, 2.5),
        ({"held": FLOWING["held"]}, 2.5),
    ],
    ids=["flowing", "late", "unread"],
)
def test_the_moments_are_further_apart_where_rows_are_late(first: Frames, seconds: float) -> None:
    rb = open_target("4.1", {"nats_url": "nats://127.0.0.1:9"})
    assert sample.seconds_apart(rb, first) == seconds
