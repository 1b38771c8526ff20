"""Steps that ask several things: each part may fail alone, and its failure is a frame like its answer.

So a judge sees what could not be seen, and a verdict can be derived again from the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib import rows
from runbook_lib.checks.check import FAILED, FAILED_COLUMNS, Check, failures
from runbook_lib.context import Given
from runbook_lib.messages import VERBATIM
from runbook_lib.model.finding import Finding, Frames, Reason, Text, replace, say, unknown
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.context import Context

_ASKED = "asked"


@dataclass
class Parts:
    """Collects frames part by part."""

    answers: Frames = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[Frames]:
        """Put frames into what this yields; a SourceError ends this part only."""
        try:
            yield self.answers
        except SourceError as e:
            self.failures.append(
                {"part": name, "source": e.source, "why": e.reason.value, "detail": e.detail, "code": e.code}
            )

    def failure(self, name: str) -> SourceError | None:
        """What went wrong with that part, if anything did."""
        return failures(self.frames()).get(name)

    def frames(self) -> Frames:
        """What was answered, and beside it what was not."""
        return {**self.answers, FAILED: pd.DataFrame(self.failures, columns=FAILED_COLUMNS)}


def needs_the_present(rb: Context, source: str) -> None:
    """For what only the present can answer; raises SourceError where the run looks at a past moment."""
    if rb.past:
        raise SourceError(source, Reason.NO_DATA, "only the present can answer this", "past")


def no_data(question: str) -> Finding:
    """The UNKNOWN of a step whose question has no answer among its frames."""
    return unknown("", Reason.NO_DATA, say("unknown.no_data", detail=question))


def seconds_between(earlier: Any, later: Any) -> float | None:
    """Seconds from one moment to another, not below 0; None where one of them is missing."""
    if earlier is None or later is None or earlier is pd.NaT or later is pd.NaT:
        return None
    return max(float((pd.Timestamp(later) - pd.Timestamp(earlier)).total_seconds()), 0.0)


@dataclass(frozen=True)
class Became:
    """What an action's outcome, or one of its preconditions, says in its frame."""

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
        """What was seen of its effect."""
        return say(VERBATIM, en=self.effect_en, ja=self.effect_ja)


@dataclass(frozen=True)
class _Condition:
    holds: bool | None = None


def hold(frames: Frames) -> bool | None:
    """Whether an action's preconditions hold; None where one of them, or all, could not be seen."""
    seen = [c.holds for c in rows.each(frames.get("preconditions"), _Condition)]
    return None if not seen or None in seen else all(seen)


def collect_each(rb: Context, checks: Mapping[str, Check]) -> Frames:
    """The frames of several checks in one step, named "part.frame"; each may fail for itself."""
    parts = Parts()
    for name, check in checks.items():
        with parts.part(name) as answers:
            answers |= {f"{name}.{frame}": found for frame, found in check.collect(rb).items()}
            answers[f"{name}.{_ASKED}"] = pd.DataFrame({"step": [check.step]})
    return parts.frames()


def judge_each(frames: Frames, given: Given, checks: Mapping[str, Check]) -> dict[str, Finding]:
    """The finding of each part: judged, or what its source's failure means."""
    failed = failures(frames)
    found: dict[str, Finding] = {}
    for name, check in checks.items():
        prefix = f"{name}."
        if name in failed:
            finding = check.silence(failed[name], given)
        elif prefix + _ASKED in frames:
            own = {k.removeprefix(prefix): f for k, f in frames.items() if k.startswith(prefix)}
            # A later part may look at what an earlier one found, as in a section of its own.
            finding = check.finding(own, replace(given, earlier=(*given.earlier, *found.values())))
        else:
            finding = unknown(check.step, Reason.NOT_RUN, say("unknown.not_run", step=check.step))
        found[name] = finding
    return found
