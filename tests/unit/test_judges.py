"""Whatever the frames of a step are, its judge and its charts answer, in words of both languages."""

from __future__ import annotations

from collections import defaultdict

import pytest
import test_checks_changed as changed
import test_checks_consistency as consistency
import test_checks_duplicates as duplicates
import test_checks_exceptions as exceptions
import test_checks_recovery as recovery
import test_checks_scope as scope
import test_postmortem as postmortem
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steps import make_given, odd_frames, words
from test_unread import evidence

from runbook_lib import messages
from runbook_lib.checks import checks
from runbook_lib.model.finding import Frames, Status

CHECKS = checks()
GIVEN = make_given()
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
    found = CHECKS[step].judge(data.draw(odd(step)), GIVEN)
    words(found)
    assert all(-1 <= s.weight <= 1 for s in found.signals)


@pytest.mark.parametrize("step", [step for step in FRAMES if CHECKS[step].charts])
@settings(max_examples=examples(6), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_chart_is_drawn_or_not(step: str, data: st.DataObject) -> None:
    frames = data.draw(odd(step))
    for draw in CHECKS[step].charts:
        chart = draw(frames, GIVEN)
        assert chart is None or all(messages.text(chart.alt, lang) for lang in messages.LANGUAGES)


@pytest.mark.parametrize("step", HEALTHY)
def test_what_is_healthy_is_ok(step: str) -> None:
    found = CHECKS[step].judge(HEALTHY[step], GIVEN)
    assert found.status is Status.OK, words(found)
    words(found)


@pytest.mark.parametrize("step", [step for step in FRAMES if step not in ("2.6", "7.4")])
def test_where_nothing_was_read_it_is_unknown(step: str) -> None:
    assert CHECKS[step].judge({}, GIVEN).status is Status.UNKNOWN
