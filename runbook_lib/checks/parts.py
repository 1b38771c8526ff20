"""Steps that read several things: each part may fail alone, and its failure is stored as a frame.

So a judge knows which parts failed, and a verdict can be derived again from the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book.messages import VERBATIM
from runbook_lib.book.queries import Query
from runbook_lib.checks.check import Check, Collect, failure_frames
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Text, replace, say, unknown
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

_ASKED = "asked"


@dataclass
class FrameCollector:
    """Collects frames part by part."""

    answers: Frames = field(default_factory=dict)
    failures: dict[str, SourceError] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[Frames]:
        """Put frames into what this yields; a SourceError ends this part only."""
        try:
            yield self.answers
        except SourceError as e:
            self.failures[name] = e

    def ask(self, db: Snapshot, queries: Mapping[str, str | Query], **params: Any) -> None:
        """Run queries in a snapshot, each as a part of its own; the snapshot stays usable if one fails.

        `queries` maps the name of each frame, which is its part's, to its query or the name of it.
        """
        for name, query in queries.items():
            with self.part(name) as answers:
                answers[name] = db.ask_apart(query, **params)

    def frames(self) -> Frames:
        """Return the frames of the parts that were read, and the frame of the failures."""
        return self.answers | failure_frames(self.failures)


def collector(**queries: str) -> Collect:
    """Return what collects the frame of each of these queries, all of one moment."""

    def collect(rb: Context) -> Frames:
        with rb.snapshot() as db:
            return {name: db.ask(query) for name, query in queries.items()}

    return collect


def seconds_between(earlier: Any, later: Any) -> float | None:
    """Return the seconds from one moment to another, not below 0; None where one of them is missing."""
    if earlier is None or later is None or earlier is pd.NaT or later is pd.NaT:
        return None
    return max(float((pd.Timestamp(later) - pd.Timestamp(earlier)).total_seconds()), 0.0)


class OutcomeRow(rows.Row):
    """The row of an action's outcome, or of one of its preconditions, in its frame."""

    result: str = ""
    verified: bool = False
    ok: bool = True
    why_en: str = "-"
    why_ja: str = "-"
    effect_en: str = "-"
    effect_ja: str = "-"

    @property
    def why(self) -> Text:
        """Why it became so."""
        return say(VERBATIM, en=self.why_en, ja=self.why_ja)

    @property
    def effect(self) -> Text:
        """The observed effect."""
        return say(VERBATIM, en=self.effect_en, ja=self.effect_ja)


class _PreconditionRow(rows.Row):
    precondition: str = ""
    holds: bool | None = None
    warns: bool = False


def preconditions_hold(frames: Frames) -> bool | None:
    """Return whether an action's preconditions hold; None where one that stops it, or all, could not be seen."""
    seen = [
        c.holds for c in rows.each(frames.get("preconditions"), _PreconditionRow) if not (c.holds is None and c.warns)
    ]
    return None if not seen or None in seen else all(seen)


def warnings(frames: Frames) -> list[str]:
    """Return the preconditions that could not be checked and do not stop the action, in the words of the run."""
    conditions = rows.each(frames.get("preconditions"), _PreconditionRow)
    return [c.precondition for c in conditions if c.holds is None and c.warns]


def collect_each(rb: Context, checks: Mapping[str, Check]) -> Frames:
    """Collect the frames of several checks in one step, named "part.frame"; each check may fail alone.

    They collect only what their judges need (`Context.brief`).
    """
    found: Frames = {}
    rb = replace(rb, brief=True)
    for name, check in checks.items():
        own = check.collected(rb) | {_ASKED: pd.DataFrame({"step": [check.step]})}
        found |= {f"{name}.{frame}": answer for frame, answer in own.items()}
    return found


def judge_each(frames: Frames, given: JudgeInput, checks: Mapping[str, Check]) -> dict[str, Finding]:
    """Return the finding of each part: the judgement of its frames, or the finding of its source's failure."""
    found: dict[str, Finding] = {}
    for name, check in checks.items():
        prefix = f"{name}."
        if prefix + _ASKED in frames:
            own = {k.removeprefix(prefix): f for k, f in frames.items() if k.startswith(prefix)}
            del own[_ASKED]
            # A later part may use the findings of earlier parts, as in a section.
            finding = check.finding(own, replace(given, earlier=(*given.earlier, *found.values())))
        else:
            finding = unknown(check.step, Reason.NOT_RUN, say("unknown.not_run", step=check.step))
        found[name] = finding
    return found
