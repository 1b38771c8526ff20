"""What a check found: the vocabulary that everything else speaks.

Status and exit codes are those of Nagios and Icinga. A `Finding` is plain data: it knows no database,
no clock and no language; `messages` turns its texts into words and `render` shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import pandas as pd

Frames: TypeAlias = "dict[str, pd.DataFrame]"
"""What a check collected, by name. One-row frames hold single values."""

#: A moment nearer to the database's clock than this, in seconds, is the present.
PRESENT_S = 30.0
#: The name, or its end, of a value that says in how many seconds a look is worth while.
LOOK_AGAIN = "look_again"


class Status(Enum):
    """The four Nagios states; the value is the exit code."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3

    @property
    def rank(self) -> int:
        """Order of badness: UNKNOWN stands between WARNING and CRITICAL."""
        return (Status.OK, Status.WARNING, Status.UNKNOWN, Status.CRITICAL).index(self)


class Reason(StrEnum):
    """Why a finding is UNKNOWN."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    DENIED = "denied"
    NO_DATA = "no_data"
    SKIPPED = "skipped"
    NOT_RUN = "not_run"
    ERROR = "error"
    NOT_CONFIGURED = "not_configured"


@dataclass(frozen=True)
class Window:
    """The moment that is looked at, and where the stretch before it begins; `past` if it is not the present."""

    as_of: pd.Timestamp
    since: pd.Timestamp
    past: bool = False

    @classmethod
    def before(cls, as_of: pd.Timestamp, minutes: float, *, past: bool = False) -> Window:
        """So many minutes before a moment."""
        return cls(as_of, as_of - timedelta(minutes=minutes), past)


@dataclass(frozen=True)
class Text:
    """A message key with its parameters; words only when a language is chosen."""

    key: str
    params: Mapping[str, Any] = field(default_factory=dict)


def say(key: str, **params: Any) -> Text:
    """Name a message of `messages/*.toml`, with its parameters."""
    return Text(key, params)


#: The origin of a target's own threshold begins so.
OWN = "runbook.toml"


@dataclass(frozen=True)
class Threshold:
    """A limit from docs/slo.md, or a target's own. `below` tells that small values are the bad ones."""

    name: str
    unit: str
    warning: float | None = None
    critical: float | None = None
    below: bool = False
    origin: str = field(default="", compare=False)

    @property
    def own(self) -> bool:
        """Whether the target has it for itself."""
        return self.origin.startswith(OWN)

    def status(self, value: float | None) -> Status:
        """Compare a value with the limits; a missing value is UNKNOWN, never green."""
        if value is None or value != value:
            return Status.UNKNOWN
        for limit, status in ((self.critical, Status.CRITICAL), (self.warning, Status.WARNING)):
            if limit is not None and (value < limit if self.below else value >= limit):
                return status
        return Status.OK


@dataclass(frozen=True)
class Value:
    """An observed value beside the threshold it was compared with, if any."""

    name: str
    value: float | int | str | None
    unit: str = ""
    threshold: Threshold | None = None

    @property
    def status(self) -> Status | None:
        """The comparison's result; None where nothing was to be compared."""
        if self.threshold is None:
            return None
        return self.threshold.status(None if isinstance(self.value, str) else self.value)


@dataclass(frozen=True)
class Signal:
    """How strongly a finding speaks for (weight > 0) or against (< 0) a hop or a failure mode.

    `observation` is what it was read from, by its name in docs/failure-modes.md. Several steps may tell of one.
    """

    about: str
    weight: float
    observation: str = ""


@dataclass(frozen=True)
class Hop:
    """One hop of the pipeline strip: rates per minute, rows waiting, seconds of age, who is alive.

    `alive` is a message, or the name of whoever is at work. `late` tells that something has waited here for
    longer than docs/slo.md allows.
    """

    name: str
    rate_in: float | None = None
    rate_out: float | None = None
    waiting: float | None = None
    oldest_s: float | None = None
    alive: Text | str | None = None
    late: bool = False


@dataclass(frozen=True)
class Unseen:
    """A source that did not answer, and why. It says nothing of what the source would have told."""

    source: str
    reason: Reason


@dataclass(frozen=True)
class Proposal:
    """A safe next action, never run by a notebook. `name` is the message key of its texts."""

    name: str
    command: str
    section: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """One question as it was sent, and what it cost."""

    source: str
    name: str
    text: str
    ms: float = 0.0
    rows: int = 0
    plan_cost: float | None = None
    error: str = ""
    refused: bool = False  # by our own cost gate, which says nothing of the source


@dataclass(frozen=True)
class Finding:
    """The answer of one step of the runbook.

    `step` is the runbook's number ("4.1.3"); `reason` is set only when the status is UNKNOWN.
    """

    step: str
    status: Status
    headline: Text
    reason: Reason | None = None
    values: tuple[Value, ...] = ()
    notes: tuple[Text, ...] = ()
    signals: tuple[Signal, ...] = ()
    hops: tuple[Hop, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    next_sections: tuple[str, ...] = ()
    frames: Frames = field(default_factory=dict)
    show: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    shaped_by: tuple[str, ...] = ()
    """Names of docs/slo.md whose numbers went into the questions: with others, other rows might have come back."""
    at: pd.Timestamp | None = None
    """The moment that it tells of, by the database's clock."""

    @property
    def counts(self) -> bool:
        """Whether it takes part in the worst-of: a source the target never declared does not."""
        return self.reason is not Reason.NOT_CONFIGURED

    @property
    def deciding(self) -> tuple[Value, ...]:
        """The values that have its status, where that is not OK."""
        return tuple(v for v in self.values if v.threshold and v.status is self.status is not Status.OK)

    def value(self, name: str) -> float | int | str | None:
        """The observed value of that name, or None."""
        return next((v.value for v in self.values if v.name == name), None)


def judged(
    headline: Text,
    values: Iterable[Value] = (),
    *,
    at_least: Status = Status.OK,
    **rest: Any,
) -> Finding:
    """Build a judge's answer: its status is the worst of its values' and of `at_least`.

    The step is filled in by the check that the judge belongs to. A value that could not be seen makes
    the finding UNKNOWN (no_data) unless something else in it is CRITICAL.
    """
    values = tuple(values)
    status = worst([at_least, *(v.status for v in values if v.status is not None)])
    reason = rest.pop("reason", None) or (Reason.NO_DATA if status is Status.UNKNOWN else None)
    if status is not Status.UNKNOWN:
        reason = None
    return Finding("", status, headline, reason=reason, values=values, **rest)


def unknown(step: str, reason: Reason, headline: Text, **rest: Any) -> Finding:
    """Build a finding that could not be answered, with the reason."""
    return Finding(step, Status.UNKNOWN, headline, reason=reason, **rest)


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of the statuses; UNKNOWN for none at all, because nothing looked is not green."""
    return max(statuses, key=lambda s: s.rank, default=Status.UNKNOWN)


def overall(findings: Iterable[Finding]) -> Status:
    """The worst status of the findings that count."""
    return worst(f.status for f in findings if f.counts)


def complete(planned: Iterable[str], findings: Mapping[str, Finding]) -> list[Finding]:
    """Every planned step exactly once, in the runbook's order; those missing are not_run."""
    return [findings.get(step) or unknown(step, Reason.NOT_RUN, say("unknown.not_run", step=step)) for step in planned]


Confidence = Literal["high", "medium", "low", "none"]


@dataclass(frozen=True)
class Because:
    """One line of why a failure mode has its score: what was observed, by which steps, in the words of the last, at
    what moment, and the `value` that decided there, if one did.

    `weight` is how strongly that speaks, negative where it speaks against. What "excludes" has none, nor has what was
    "unseen": a step that would tell and could not be answered, or in part, with the sources. A mode that belongs
    "elsewhere" than where it is stuck counts for `weight` of its score.
    """

    kind: Literal["observed", "excludes", "unseen", "elsewhere"]
    steps: tuple[str, ...]
    observation: str
    weight: float
    headline: Text
    at: pd.Timestamp | None = None
    value: Value | None = None


@dataclass(frozen=True)
class RankedMode:
    """A failure mode with its score (0 to 1), why it has that, and the observation that excludes it if any."""

    id: str
    score: float
    because: tuple[Because, ...] = ()
    excluded_by: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a section, or a triage, concludes from its findings.

    Where something waits or is wrong and no hop stands out, `undecided` has those that it may be, upstream first.
    What is recovering has `look_again_s`: seconds until another look can tell more. Where failure modes stand whose
    remedies differ, `between` has them, and `settled_by` the steps that would tell which it is.
    """

    status: Status
    stuck_at: str | None
    confidence: Confidence
    failure_modes: tuple[RankedMode, ...] = ()
    hops: tuple[Hop, ...] = ()
    next_sections: tuple[str, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    undecided: tuple[str, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    look_again_s: float | None = None
    between: tuple[str, ...] = ()
    settled_by: tuple[str, ...] = ()


__all__ = [
    "LOOK_AGAIN",
    "Because",
    "Confidence",
    "Finding",
    "Frames",
    "Hop",
    "Proposal",
    "Question",
    "RankedMode",
    "Reason",
    "Signal",
    "Status",
    "Text",
    "Threshold",
    "Unseen",
    "Value",
    "Verdict",
    "Window",
    "complete",
    "judged",
    "overall",
    "replace",
    "say",
    "unknown",
    "worst",
]
