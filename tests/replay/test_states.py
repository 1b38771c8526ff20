"""Every state that is made from recorded frames, judged by today's code and documents."""

from __future__ import annotations

import pytest

from runbook_lib.runs import replay
from tests.kit import states

STATES, EXPECTED = states.states(), states.expected()


@pytest.mark.parametrize("name", STATES)
def test_state(name: str) -> None:
    found = states.evaluate(STATES[name])
    assert found["steps"] or found["evidence"], "it differs in nothing from the recording that it is from"
    differ = list(replay.differences(EXPECTED[name], found)) + list(replay.differences(found, EXPECTED[name]))
    assert not differ, "\n".join([f"{name} is judged otherwise than expected:", *differ])


def test_each_expectation_has_its_state() -> None:
    assert EXPECTED.keys() == STATES.keys()
