"""The result of a check: statuses, findings, verdicts and their parts.

Status and exit codes are those of Nagios and Icinga. A `Finding` is plain data: it knows no database,
no clock and no language; `messages` turns its texts into words and `render` shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace
from datetime import timedelta
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from runbook_lib.model.unread import known

if TYPE_CHECKING:
    import pandas as pd

Frames: TypeAlias = "dict[str, pd.DataFrame]"
"""What a check collected, by name. One-row frames hold single values."""

#: The name, or its end, of a value in seconds after which another sample is worth while.
LOOK_AGAIN = "look_again"


class Status(Enum):
    """The four Nagios states; the value is the exit code."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3

    @property
    def rank(self) -> int:
        """The order of badness: UNKNOWN is between WARNING and CRITICAL."""
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
    """The moment of a run, and the start of the window before it."""

    as_of: pd.Timestamp
    since: pd.Timestamp

    @classmethod
    def before(cls, as_of: pd.Timestamp, minutes: float) -> Window:
        """Return the window of so many minutes before a moment."""
        return cls(as_of, as_of - timedelta(minutes=minutes))


@dataclass(frozen=True)
class Text:
    """A message key with its parameters; words only when a language is chosen."""

    key: str
    params: Mapping[str, Any] = field(default_factory=dict)


def say(key: str, **params: Any) -> Text:
    """Name a message of `messages/*.toml`, with its parameters; those that were not read are None."""
    return Text(key, {name: known(value) for name, value in params.items()})


# Documents and packs name hops, actions and proposals; tests/lint/test_messages.py lists the keys of each.


def hop_text(name: str) -> Text:
    """Return the message `hop.<name>`, which names a hop of docs/failure-modes.md."""
    return say(f"hop.{name}")


def action_title(name: str) -> Text:
    """Return the message `action.title.<name>`, which names an action of a pack."""
    return say(f"action.title.{name}")


#: The messages that each proposal has, `proposal.<name>.<part>`.
PROPOSAL_PARTS = ("title", "preconditions", "effect", "risk", "undo", "verify")


def proposal_text(proposal: Proposal, part: str) -> Text:
    """Return one of `PROPOSAL_PARTS` of a proposal as a message."""
    return say(f"proposal.{proposal.name}.{part}", **proposal.params)


#: The origin of a target's own threshold begins so.
OWN = "runbook.toml"


@dataclass(frozen=True)
class Threshold:
    """A limit from docs/slo.md, or a target's own. With `below`, small values are the bad ones."""

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
        """Compare a value with the limits; a missing value is UNKNOWN, never OK."""
        if (value := known(value)) is None or value != value:
            return Status.UNKNOWN
        for limit, status in ((self.critical, Status.CRITICAL), (self.warning, Status.WARNING)):
            if limit is not None and (value < limit if self.below else value >= limit):
                return status
        return Status.OK

    def reached(self, value: float | None, level: Status = Status.WARNING) -> bool:
        """Return whether a value is known and at least as bad as `level` (WARNING, CRITICAL); False without that limit.

        >>> Threshold("age", "s", warning=5, critical=15).reached(7), Threshold("age", "s").reached(7)
        (True, False)
        """
        return self.status(value) in (Status.CRITICAL, level)


@dataclass(frozen=True)
class Value:
    """An observed value (None if it was not read) and the threshold that it was compared with, if any."""

    name: str
    value: float | int | str | None
    unit: str = ""
    threshold: Threshold | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", known(self.value))

    @property
    def status(self) -> Status | None:
        """The comparison's result; None where nothing was to be compared."""
        if self.threshold is None:
            return None
        return self.threshold.status(None if isinstance(self.value, str) else self.value)


@dataclass(frozen=True)
class Signal:
    """Evidence of a finding for (weight > 0) or against (weight < 0) a hop or a failure mode.

    `observation` is its name in observations.md. Several steps may report the same observation.
    """

    about: str
    weight: float
    observation: str = ""


@dataclass(frozen=True)
class HopHistory:
    """What waited at a hop at the end of each interval of `step_s` seconds, and what came and left per minute in it.

    The first interval begins at `since`. An empty series was not read; None in one is not known. `limit` is the
    number of waiting rows that docs/slo.md allows.
    """

    #: How many intervals are kept: three hours of minutes.
    MOST: ClassVar[int] = 180

    since: pd.Timestamp
    step_s: float
    waiting: tuple[float | None, ...] = ()
    came: tuple[float | None, ...] = ()
    gone: tuple[float | None, ...] = ()
    limit: float | None = None


#: The fields of a hop that tell something of it.
HOP_NUMBERS = ("rate_in", "rate_out", "waiting", "oldest_s", "alive")


@dataclass(frozen=True)
class Hop:
    """One hop of the pipeline strip: rates per minute, rows waiting, seconds of age, who is alive.

    `alive` is a message, or the name of the running worker. `late` means that a row has waited here for longer than
    docs/slo.md allows. `past` is the time before.
    """

    name: str
    rate_in: float | None = None
    rate_out: float | None = None
    waiting: float | None = None
    oldest_s: float | None = None
    alive: Text | str | None = None
    late: bool = False
    past: HopHistory | None = None

    def __post_init__(self) -> None:
        for name in HOP_NUMBERS:
            object.__setattr__(self, name, known(getattr(self, name)))

    @property
    def is_seen(self) -> bool:
        """Whether it has any number, or a sign of life."""
        return any(getattr(self, name) is not None for name in HOP_NUMBERS)


@dataclass(frozen=True)
class Unseen:
    """A source that did not answer, and the reason. It is no evidence about what the source would have answered."""

    source: str
    reason: Reason


@dataclass(frozen=True)
class Proposal:
    """A safe next action, never run by a notebook. `name` is the message key of its texts.

    `command` changes the system as it stands. `guarded` is the `runbook act` command for the same, which checks its
    preconditions, is logged, and is a dry run as it stands; "" if the system has no such action.
    """

    name: str
    command: str
    section: str
    params: Mapping[str, Any] = field(default_factory=dict)
    guarded: str = ""

    @property
    def offered(self) -> str:
        """The command to show first."""
        return self.guarded or self.command


@dataclass(frozen=True)
class OutageEnd:
    """The end of an outage: the time of the last row that it harmed, what shows it, and the change just before it."""

    since: pd.Timestamp
    by: Text
    after: Text | None = None


@dataclass(frozen=True)
class Decision:
    """The case of a step's table that holds."""

    case: str


@dataclass(frozen=True)
class SentQuery:
    """One query as it was sent, and its cost."""

    source: str
    name: str
    text: str
    ms: float = 0.0
    rows: int = 0
    plan_cost: float | None = None
    error: str = ""
    refused: bool = False  # by our own cost gate, or optional: no evidence about the source, and nothing is missing
    started: str = ""  # by this machine's clock


def read_cost(queries: Iterable[SentQuery]) -> dict[str, Any]:
    """Return the sum of the queries' cost: queries, ms, rows, and the largest plan cost that the gate saw.

    A query whose answer several steps use counts once.
    """
    once: dict[object, SentQuery] = {(q.name, q.started) if q.started else id(q): q for q in queries}
    queries = list(once.values())
    costs = [q.plan_cost for q in queries if q.plan_cost is not None]
    return {
        "queries": len(queries),
        "ms": round(sum(q.ms for q in queries), 1),
        "rows": sum(q.rows for q in queries),
        "max_plan_cost": max(costs, default=None),
    }


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
    queries: tuple[SentQuery, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    at: pd.Timestamp | None = None
    """The moment of the finding, by the database's clock."""
    ended: OutageEnd | None = None
    """Set if the status is only the aftermath of an outage that is over."""
    decision: Decision | None = None
    """Set if the step decides by a table of cases."""

    @property
    def counts(self) -> bool:
        """Whether it takes part in the worst-of: a source the target never declared does not."""
        return self.reason is not Reason.NOT_CONFIGURED

    @property
    def deciding(self) -> tuple[Value, ...]:
        """The values that have its status, where that is not OK."""
        return tuple(v for v in self.values if v.threshold and v.status is self.status is not Status.OK)

    def value(self, name: str) -> float | int | str | None:
        """Return the observed value of that name; None if there is none."""
        return next((v.value for v in self.values if v.name == name), None)


def judged(
    headline: Text,
    values: Iterable[Value] = (),
    *,
    at_least: Status = Status.OK,
    **rest: Any,
) -> Finding:
    """Build a judge's answer: its status is the worst of its values' and of `at_least`.

    The step is filled in by the check that the judge belongs to. A value that was not read
    makes the finding UNKNOWN (no_data) unless another value is CRITICAL.
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
    """Return the worst of the statuses; UNKNOWN if there is none, because an unchecked system is not OK."""
    return max(statuses, key=lambda s: s.rank, default=Status.UNKNOWN)


def overall(findings: Iterable[Finding]) -> Status:
    """Return the worst status of the findings that count."""
    return worst(f.status for f in findings if f.counts)


def complete(planned: Iterable[str], findings: Mapping[str, Finding]) -> list[Finding]:
    """Return every planned step exactly once, in the runbook's order; those missing are not_run."""
    return [findings.get(step) or unknown(step, Reason.NOT_RUN, say("unknown.not_run", step=step)) for step in planned]


Confidence = Literal["high", "medium", "low", "none"]


@dataclass(frozen=True)
class ScoreReason:
    """One line of why a failure mode has its score: what was observed, by which steps, in the words of the last, at
    what moment, and the `value` that decided there, if one did.

    `weight` is the strength of the evidence, negative if it is against the mode; "excludes", "contradicted" and
    "unseen" have none. "contradicted" is an observation that does not count, with the headline of what contradicts it.
    "unseen" is a step that could decide and was not, or only partly, answered, with its sources. For a mode that
    belongs "elsewhere" than the stuck hop, the score is multiplied by `weight`. `witness` is the part that reports this
    about another part, "" for an observation of the runbook or a part's own report.
    """

    kind: Literal["observed", "excludes", "contradicted", "unseen", "elsewhere"]
    steps: tuple[str, ...]
    observation: str
    weight: float
    headline: Text
    at: pd.Timestamp | None = None
    value: Value | None = None
    witness: str = ""


@dataclass(frozen=True)
class RankedMode:
    """A failure mode or place with its score (0 to 1), the reasons for it, and the observation that excludes it."""

    id: str
    score: float
    because: tuple[ScoreReason, ...] = ()
    excluded_by: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer of a step that was asked after the first verdict: the hops and failure modes that it newly supports,
    and the candidates that it speaks against.
    """

    step: str
    supports: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The conclusion of a section, or of a triage, from its findings.

    `undecided` has the candidate hops, upstream first, if rows wait or a check fails and no hop stands out.
    `look_again_s` is the number of seconds until another sample can show more, during a recovery. `between` has the
    failure modes that remain and need different remedies, and `settled_by` the steps that would decide, the next
    question first. `asked` has the answers to the questions so far, in their order. `ended` is set if all findings are
    the aftermath of an outage that is over. `places` has the stuck hop, or the candidates. `contradicted` has the
    observations that do not count, each with the headline of what contradicts it. `read_first` has the steps that read
    what a proposal depends on, and have not read it.
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
    asked: tuple[Answer, ...] = ()
    ended: OutageEnd | None = None
    places: tuple[RankedMode, ...] = ()
    contradicted: tuple[ScoreReason, ...] = ()
    read_first: tuple[str, ...] = ()
