"""A check: `collect` asks the sources, `judge` decides from the frames alone.

`judge` is pure and total: it knows neither a database nor a clock, so a verdict can be derived again from the
frames that an artifact keeps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib import messages
from runbook_lib.analysis.diagnosis import signals_of_silence
from runbook_lib.catalog import REACHABILITY
from runbook_lib.context import Context, Given
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Text, Unseen, say, unknown
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.view.charts import Chart


#: The frame of what could not be asked, a row a part.
FAILED = "failed"
FAILED_COLUMNS = ["part", "source", "why", "detail", "code"]


Collect = Callable[[Context], Frames]
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

    def run(self, rb: Context) -> Finding:
        """Ask and judge. Never raises: what goes wrong becomes the finding."""
        first = len(rb.read_cost.questions)
        given = rb.given(self.step)
        at = rb.as_of if rb.past else rb.now()
        frames: Frames = {}
        shaped_by = set[str]()
        try:
            frames = rb.masker.frames(self.collect(replace(rb, catalog=rb.catalog.watched(shaped_by))))
            finding = self.finding(frames, given)
        except SourceError as e:
            finding = self.silence(e, given)
        except Exception as e:
            finding = unknown(
                self.step,
                Reason.ERROR,
                say("unknown.error", detail=rb.masker.scrub(f"{type(e).__name__}: {e}")),
            )
            if os.environ.get("RUNBOOK_DEBUG"):
                raise
        return replace(
            finding,
            frames=frames | finding.frames,
            questions=tuple(rb.read_cost.questions[first:]),
            shaped_by=tuple(sorted(shaped_by)),
            at=at,
        )

    def judge_again(self, found: Finding, given: Given) -> Finding:
        """The same evidence, judged beside other findings, or by another policy."""
        finding = self.finding(found.frames, given)
        return replace(
            finding, frames=found.frames | finding.frames, questions=found.questions, shaped_by=found.shaped_by,
            at=found.at,
        )  # fmt: skip

    def finding(self, frames: Frames, given: Given) -> Finding:
        """What the judge says, with the sources that were not seen, and a headline that names what decided."""
        judged = self.judge(frames, given)
        unseen = judged.unseen or tuple(Unseen(e.source, e.reason) for e in failures(frames).values())
        return replace(judged, step=self.step, unseen=unseen, headline=naming(judged))

    def silence(self, e: SourceError, given: Given) -> Finding:
        """What it means for this step that a source did not answer it."""
        finding = self.on_error(e, given) if self.on_error else could_not_ask(e)
        return replace(
            finding,
            step=self.step,
            signals=finding.signals + signals_of_silence(e, given.catalog),
            unseen=(*finding.unseen, Unseen(e.source, e.reason)),
        )


def failures(frames: Frames) -> dict[str, SourceError]:
    """The failures that `parts.Parts` kept, by part."""
    kept = frames.get(FAILED, pd.DataFrame())
    if not {*FAILED_COLUMNS} <= {*kept.columns}:
        return {}  # a frame of that name, of a check whose parts do not fail alone
    return {
        str(r["part"]): SourceError(r["source"], Reason(r["why"]), str(r["detail"]), str(r["code"]))
        for r in kept.to_dict("records")
    }


def could_not_ask(e: SourceError) -> Finding:
    """The UNKNOWN that a source's failure is; what cannot be reached, or turns the runbook away, is for section 2."""
    away = e.reason in (Reason.UNREACHABLE, Reason.DENIED) or e.code == "no_connection"
    return unknown(
        "",
        e.reason,
        say(f"unknown.{e.reason}", source=e.source, detail=e.detail),
        next_sections=(REACHABILITY,) if away and e.code != "cost_gate" else (),
    )


def naming(f: Finding) -> Text:
    """The headline; where it leaves out the value that decided the status, with that value behind it."""
    deciding = f.deciding
    if f.status is Status.UNKNOWN or not deciding:
        return f.headline
    named = [n for n in messages.shown(f.headline) if isinstance(n, int | float)]
    if any(
        isinstance(v.value, int | float) and any(math.isclose(v.value, n, rel_tol=0.01) for n in named)
        for v in deciding
    ):
        return f.headline
    v = deciding[0]
    limit = v.threshold and (v.threshold.critical if f.status is Status.CRITICAL else v.threshold.warning)
    side = "below" if v.threshold and v.threshold.below else "above"
    return say(f"ui.decided_{side}", headline=f.headline, name=v.name, value=v.value, unit=v.unit, limit=limit)
