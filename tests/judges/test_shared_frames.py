"""Frames that several steps share: each step names the numbers that shaped them, and so backtest knows."""

from __future__ import annotations

import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import Context, JudgeInput
from runbook_lib.model.finding import Finding, Frames, Reason, Value, judged, say
from runbook_lib.sources.source import SourceError
from tests.kit.steps import open_target

TARGET = {"nats_url": "nats://127.0.0.1:9"}


def ask(rb: Context) -> Frames:
    rb.number("looks.apart")
    rb.catalog.limits["delivery.silence"]
    return {"shared": pd.DataFrame({"n": [1]})}


def judge(frames: Frames, given: JudgeInput) -> Finding:
    value = Value("stuck", len(frames), "rows", given.limits["delivery.silence"])
    return judged(say("unknown.not_run"), [value], signals=given.evidence("leases.left_behind"))


def test_each_step_that_is_served_names_what_shaped_the_frames() -> None:
    rb = open_target("4.3", TARGET)
    found = {
        "4.3.1": Check("4.3.1", lambda rb: rb.shared("4.3.1", ask), judge).run(rb),
        "4.3.2": Check("4.3.2", lambda rb: rb.shared("4.3.2", ask), judge).run(rb),
    }
    assert {f.shaped_by for f in found.values()} == {("delivery.silence", "looks.apart")}


def test_a_step_that_fails_names_them_too() -> None:
    def fail(rb: Context) -> Frames:
        rb.number("looks.apart")
        raise SourceError("redis", Reason.TIMEOUT, "no answer")

    found = Check("4.3.1", lambda rb: rb.shared("4.3.1", fail), judge).run(open_target("4.3", TARGET))
    assert found.shaped_by == ("looks.apart",)
