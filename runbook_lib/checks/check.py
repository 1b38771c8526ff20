"""A check: `collect` asks the sources, `judge` decides from the frames alone.

`judge` is pure and total: it knows neither a database nor a clock, so a verdict can be derived again from the
frames that an artifact keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.catalog import Limits, Slo
from runbook_lib.diagnosis import signals_of_silence
from runbook_lib.finding import Finding, Frames, Reason, say, unknown
from runbook_lib.settings import Workloads
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.charts import Chart
    from runbook_lib.session import Session


@dataclass(frozen=True)
class Given:
    """What a judge is given beside the frames: limits from the documents, facts of the target and of the run."""

    limits: Limits
    slos: dict[str, Slo]
    as_of: pd.Timestamp
    window_minutes: int
    lease_s: float = 30.0
    batch_size: int = 50
    poll_interval_s: float = 1.0
    workloads: Workloads = field(default_factory=Workloads)
    detected_by: str = ""
    detected_at: pd.Timestamp | None = None
    earlier: tuple[Finding, ...] = ()
    target: str = "default"
    incident: str = "adhoc"


Collect = Callable[["Session"], Frames]
Judge = Callable[[Frames, Given], Finding]
Draw = Callable[[Frames, Given], "Chart | None"]
OnError = Callable[[SourceError, Given], Finding]


@dataclass(frozen=True)
class Check:
    """How one step of the runbook is answered.

    What a judge derives for people to read it may add as frames of its own; they are kept beside those collected.

    `on_error` turns a source's failure into an answer where the failure is itself one ("too many clients" is
    CRITICAL for the step about connections); it may return an UNKNOWN.
    """

    step: str
    collect: Collect
    judge: Judge
    charts: tuple[Draw, ...] = ()
    on_error: OnError | None = None

    def run(self, rb: Session) -> Finding:
        """Ask and judge. Never raises: what goes wrong becomes the finding."""
        first = len(rb.ledger.questions)
        given = rb.given(self.step)
        frames: Frames = {}
        try:
            frames = rb.masker.frames(self.collect(rb))
            finding = self.judge(frames, given)
        except SourceError as e:
            finding = self.on_error(e, given) if self.on_error else could_not_ask(e)
            finding = replace(finding, signals=finding.signals + signals_of_silence(e))
        except Exception as e:
            finding = unknown(
                self.step,
                Reason.ERROR,
                say("unknown.error", detail=rb.masker.scrub(f"{type(e).__name__}: {e}")),
            )
            if rb.debug:
                raise
        return replace(
            finding, step=self.step, frames=frames | finding.frames, questions=tuple(rb.ledger.questions[first:])
        )

    def judge_again(self, found: Finding, given: Given) -> Finding:
        """The same evidence, judged beside other findings."""
        finding = self.judge(found.frames, given)
        return replace(finding, step=self.step, frames=found.frames | finding.frames, questions=found.questions)


def could_not_ask(e: SourceError) -> Finding:
    """The UNKNOWN that a source's failure is. What our own settings have wrong is looked at in section 2."""
    found = unknown("", e.reason, say(f"unknown.{e.reason}", source=e.source, detail=e.detail))
    ours = e.code in ("no_such_database", "wrong_password", "not_authorised")
    return replace(found, next_sections=("2",)) if ours else found
