"""What was not read is no zero: no judge takes it for one.

Whatever the frames of a step are, its judge and its charts answer, in words of both languages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbook_lib.book import messages
from runbook_lib.checks.check import NOT_READ, checks, failure_frame
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Unseen
from runbook_lib.packs.entitlement.checks.throttle import RELAY
from runbook_lib.sources.source import SourceError
from tests.kit.effort import examples
from tests.kit.frames import (
    changed,
    consistency,
    dead_letters,
    delivery,
    duplicates,
    exceptions,
    postmortem,
    recovery,
    response,
    scope,
    throttle,
)
from tests.kit.steps import ago, charts_of, documented, make_given, odd_frames, words

# In judges ---------------------------------------------------------------------------------------------------

CHECKS = checks()
GIVEN = make_given()


def subscribers() -> Iterator[Frames]:
    more = {
        "oldest": pd.DataFrame([{"seq": 1, "age_s": 40.0}]), "nats_dlq": pd.DataFrame([{"n": 0}])
    } | delivery.pool("notification", 0.4)  # fmt: skip
    facts: list[dict[str, Any]] = [
        {}, {"bound": False, "num_pending": 60}, {"num_pending": 60}, {"num_ack_pending": 60}, {"full": True},
        {"paused": True, "num_pending": 60},
    ]  # fmt: skip
    for changes, missed in product(facts, (delivery.events(), delivery.events(61, 90))):
        yield delivery.consumer(**changes) | more | {"unprocessed": missed}


def evidence() -> Iterator[tuple[str, Frames]]:
    """Steps with frames of a healthy system and of systems in trouble, none of them missing."""
    for step, made in delivery.SHAPES.items():
        yield step, made()
    for module in (recovery, duplicates, dead_letters, consistency, scope):
        yield from module.FRAMES.items()
    for step, busy in dead_letters.BUSY.items():
        yield step, dead_letters.FRAMES[step] | busy
    for changes in ({"due": 75, "oldest_due_s": 25.0}, {"due": 75, "oldest_due_s": 2.0, "waiting_retry": 80}):
        yield "4.1.1", delivery.later(delivery.look(**changes))
    for frames in subscribers():
        yield "4.1.2", frames
    stopped: dict[str, Any] = {"due": 40, "oldest_due_s": 20, "last_published": ago(60)}
    yield "4.1.3", delivery.outbox(**stopped)
    yield "4.1.3", delivery.outbox([("PENDING", delivery.TIMEOUT, 5)], tried=5, **stopped)
    yield "3.1", response.impact()
    yield "5.2.1", throttle.frames()
    yield "5.2.2", throttle.frames(RELAY)


def weights(found: Finding, sign: int) -> dict[str, float]:
    """The strongest evidence for (1) or against (-1) each place and failure mode."""
    strongest: dict[str, float] = {}
    for s in found.signals:
        strongest[s.about] = max(strongest.get(s.about, 0.0), sign * s.weight)
    return strongest


def more(less: dict[str, float], whole: dict[str, float]) -> Iterable[str]:
    return [about for about, weight in less.items() if weight > whole.get(about, 0.0)]


CASES = [
    pytest.param(step, frames, name, id=f"{step}-{n}-{name}")
    for n, (step, frames) in enumerate(evidence())
    for name in frames
    if name.rpartition(".")[2] != NOT_READ
]
#: The source's failure in place of a frame.
TIMEOUT = SourceError("postgres", Reason.TIMEOUT, "canceling statement due to lock timeout")


@pytest.mark.parametrize(("step", "frames", "unread"), CASES)
def test_a_frame_that_was_not_read_accuses_clears_and_proposes_nothing(step: str, frames: Frames, unread: str) -> None:
    whole = CHECKS[step].finding(frames, GIVEN)
    found = CHECKS[step].finding({name: frame for name, frame in frames.items() if name != unread}, GIVEN)
    assert found.status is not Status.CRITICAL or whole.status is Status.CRITICAL
    assert found.status is not Status.OK or whole.status is Status.OK
    assert not more(weights(found, 1), weights(whole, 1)), "it speaks for what nobody saw"
    assert not more(weights(found, -1), weights(whole, -1)), "it clears what nobody looked at"
    new = {p.name for p in found.proposals} - {p.name for p in whole.proposals}
    assert documented(found) and documented(whole)
    assert not new or whole.proposals, "what calls for nothing calls for nothing where less is known"
    assert not [name for name in new if name.startswith(("restart", "start", "end", "cancel", "redrive", "hold"))]


@pytest.mark.parametrize(("step", "frames", "unread"), CASES)
def test_what_failed_to_be_read_is_said_and_is_not_ok(step: str, frames: Frames, unread: str) -> None:
    read = {name: frame for name, frame in frames.items() if name != unread}
    found = CHECKS[step].finding(read | {NOT_READ: failure_frame({unread: TIMEOUT})}, GIVEN)
    assert found.status is not Status.OK or unread in CHECKS[step].optional
    assert found.unseen == (Unseen("postgres", Reason.TIMEOUT),)
    assert TIMEOUT.detail in " ".join(messages.text(t, "en") for t in (found.headline, *found.notes))
    assert found.ended is None or unread in CHECKS[step].optional


@pytest.mark.parametrize(("step", "frames", "unread"), CASES)
def test_only_an_optional_part_that_is_too_expensive_is_no_gap(step: str, frames: Frames, unread: str) -> None:
    read = {name: frame for name, frame in frames.items() if name != unread}
    refused = SourceError("postgres", Reason.DENIED, "plan cost", "cost_gate")
    found = CHECKS[step].finding(read | {NOT_READ: failure_frame({unread: refused})}, GIVEN)
    assert bool(found.unseen) is (unread not in CHECKS[step].optional)


# Odd frames ------------------------------------------------------------------------------------------------

HEALTHY = {
    step: frames for module in (consistency, duplicates, recovery, scope) for step, frames in module.FRAMES.items()
}


def frames_by_step() -> dict[str, list[Frames]]:
    """What steps read of healthy systems and of systems in trouble."""
    found: dict[str, list[Frames]] = defaultdict(list)
    for step, frames in evidence():
        found[step].append(frames)
    found["3.6"].append(changed.frames((60, "a"), (90000, "b")))
    for log in (exceptions.HEALTHY, exceptions.FAILING):
        found["5.1.1"].append(exceptions.about() | log | exceptions.tables())
    for step in ("7.1", "7.2", "7.3", "7.4"):
        found[step].append(postmortem.outage())
    return found


FRAMES = frames_by_step()


def odd(step: str) -> st.SearchStrategy[Frames]:
    columns = step.startswith(("4.1", "4.2", "4.3", "6"))
    return st.sampled_from(FRAMES[step]).flatmap(lambda frames: odd_frames(frames, columns))


@pytest.mark.parametrize("step", FRAMES)
@settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_judge_answers(step: str, data: st.DataObject) -> None:
    found = CHECKS[step].finding(data.draw(odd(step)), GIVEN)
    words(found)
    assert all(-1 <= s.weight <= 1 for s in found.signals)


@pytest.mark.parametrize("step", [step for step in FRAMES if CHECKS[step].charts])
@settings(max_examples=examples(6), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_chart_is_drawn_or_not(step: str, data: st.DataObject) -> None:
    charts_of(step, data.draw(odd(step)), GIVEN)


@pytest.mark.parametrize("step", HEALTHY)
def test_what_is_healthy_is_ok(step: str) -> None:
    found = CHECKS[step].judge(HEALTHY[step], GIVEN)
    assert found.status is Status.OK, words(found)
    words(found)


@pytest.mark.parametrize("step", sorted(CHECKS))
def test_where_nothing_was_read_it_is_unknown_and_never_green(step: str) -> None:
    assert CHECKS[step].finding({}, GIVEN).status is Status.UNKNOWN
