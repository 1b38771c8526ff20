"""Frames that several steps share."""

from __future__ import annotations

import pandas as pd

from runbook_lib.checks.context import Context
from runbook_lib.model.finding import Frames
from tests.kit.steps import open_target

TARGET = {"nats_url": "nats://127.0.0.1:9"}


def ask(rb: Context) -> Frames:
    return {"shared": pd.DataFrame({"n": [1]})}


def test_frames_are_collected_once_until_a_step_runs_again() -> None:
    rb = open_target("4.3", TARGET)
    first = rb.shared("4.3.1", ask)
    assert rb.shared("4.3.2", ask) is first
    assert rb.shared("4.3.2", ask) is first
    rb.begin("4.3.1")
    assert rb.shared("4.3.1", ask) is not first
