"""The lines of an incident's log by kind, validated when they are read."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import pandas as pd
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, InstanceOf, ValidationError

from runbook_lib.book.messages import LANGUAGES
from runbook_lib.model.finding import Confidence, Status, Text, Verdict
from runbook_lib.model.times import moment
from runbook_lib.model.usage import first_problem
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION, LOG, NOTE, RUN, VERDICT, Archive, Entries, LogError


def _read_verdict(stored: Any) -> Verdict:
    try:
        return record.from_json(Verdict, stored)
    except (LookupError, TypeError, AttributeError) as e:
        raise ValueError(f"is no verdict: {e}") from None


def _read_status(name: Any) -> Status:
    if name not in [status.name for status in Status]:
        raise ValueError(f"'{name}' is no status")
    return Status[name]


def _read_text(stored: Any) -> Text:
    if not isinstance(stored, dict) or not {*LANGUAGES} <= stored.keys():
        raise ValueError("is no text in each language")
    return record.text_from_json(stored)


def _check_times(parameters: dict[str, Any]) -> dict[str, Any]:
    if parameters.get("detected_at"):
        moment(parameters["detected_at"])
    return parameters


_Moment: TypeAlias = Annotated[InstanceOf[pd.Timestamp], BeforeValidator(moment)]
_Text: TypeAlias = Annotated[InstanceOf[Text], BeforeValidator(_read_text)]


class LogLine(BaseModel):
    """A line of the log; fields that this version does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Artifact(LogLine):
    """A line with what was made, by name, and the digests of its files."""

    name: str
    started: _Moment
    ended: _Moment | None = None
    sha256: dict[str, str] = {}
    job: str = ""

    def __hash__(self) -> int:
        return hash(self.name)


class RunLine(_Artifact):
    """A run of one section."""

    section: str
    status: Annotated[Status, BeforeValidator(_read_status)]
    stuck_at: str | None = None
    confidence: Confidence = "none"
    parameters: Annotated[dict[str, Any], AfterValidator(_check_times)] = {}
    problem: str = ""
    outputs: str = ""
    """The digest of what a browser's notebook showed."""

    @property
    def sections(self) -> tuple[str, ...]:
        """The section alone, as a verdict has its sections."""
        return (self.section,)

    @property
    def verdict(self) -> Verdict:
        """The verdict as far as the line tells it."""
        return Verdict(self.status, self.stuck_at, self.confidence)


class VerdictLine(_Artifact):
    """What a command concluded from its runs."""

    verdict: Annotated[InstanceOf[Verdict], BeforeValidator(_read_verdict)]
    sections: tuple[str, ...] = ()
    as_of: _Moment | None = None
    onset: _Moment | None = None
    dashboard: str = ""

    @property
    def status(self) -> Status:
        """The status of the verdict."""
        return self.verdict.status

    @property
    def looked_at(self) -> pd.Timestamp:
        """The moment of which it speaks."""
        return self.as_of or self.started


class ActionLine(LogLine):
    """An action: that it began, or what became of it."""

    id: str
    time: _Moment
    action: str
    result: Literal["dry", "approved", "refused", "begun", "done", "failed"]
    why: _Text
    effect: _Text | None = None
    what: dict[str, Any]
    job: str = ""
    """The dry run that was approved for it; each is executed once."""
    command: str = ""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    verified: bool | None = None
    who: str = ""
    approved_by: str = ""
    reason: str = ""
    target: str = ""

    @property
    def about(self) -> str:
        """What the action was about, in a few words."""
        return record.describe_action(self.what)

    @property
    def name(self) -> str:
        """The workload that it changed; "" if it changed none."""
        return str(self.what.get("name") or "")


class NoteLine(LogLine):
    """A line of the timeline, by a person or an alert."""

    time: _Moment
    text: str
    who: str = ""


L = TypeVar("L", bound=LogLine)


@dataclass(frozen=True)
class Logs:
    """The lines of an incident's log, oldest first."""

    artifacts: list[RunLine | VerdictLine]
    actions: list[ActionLine]
    notes: list[NoteLine]

    @cached_property
    def runs(self) -> list[RunLine]:
        """The runs of sections."""
        return [line for line in self.artifacts if isinstance(line, RunLine)]

    @cached_property
    def verdicts(self) -> list[VerdictLine]:
        """What commands concluded."""
        return [line for line in self.artifacts if isinstance(line, VerdictLine)]

    def parameters_of(self, line: RunLine | VerdictLine) -> dict[str, Any]:
        """Return the parameters of a run, or of the first run of a command's verdict; {} if they are not known."""
        if isinstance(line, RunLine):
            return line.parameters
        first = (line.sections[:1], line.started)
        return next((r.parameters for r in self.runs if (r.sections, r.started) == first), {})

    def target_of(self, line: RunLine | VerdictLine) -> str:
        """Return the target of a run or a command's verdict; the first one of the log if it is not known."""
        known = (p.get("target") for p in (self.parameters_of(line), *(r.parameters for r in self.runs)))
        return str(next(filter(None, known), "default"))


def read_logs(archive: Archive) -> Logs:
    """Return the lines of an incident's log. Raises OSError; LogError for a line that is not valid."""
    lines = [_read_line(archive, _KINDS[entry["kind"]], entry) for entry in archive.lines()]
    return Logs(
        [line for line in lines if isinstance(line, RunLine | VerdictLine)],
        [line for line in lines if isinstance(line, ActionLine)],
        [line for line in lines if isinstance(line, NoteLine)],
    )


def read_actions(archive: Archive, entries: Entries | None = None) -> list[ActionLine]:
    """Return the actions of the log, or of these `entries` of it; lines of other kinds must be valid, too.

    Raises OSError and LogError, so that an action's line whose kind was changed is not overlooked.
    """
    lines = [
        _read_line(archive, _KINDS[entry["kind"]], entry) for entry in (archive.lines() if entries is None else entries)
    ]
    return [line for line in lines if isinstance(line, ActionLine)]


def is_line(entry: dict[str, Any]) -> bool:
    """Return whether an entry has the fields of its kind."""
    try:
        return bool(_KINDS[entry["kind"]].model_validate(entry))
    except ValidationError:
        return False


def run_line(archive: Archive, entry: dict[str, Any]) -> RunLine:
    """Return the line of a run. Raises LogError."""
    return _read_line(archive, RunLine, entry)


_KINDS: dict[str, type[LogLine]] = {RUN: RunLine, VERDICT: VerdictLine, ACTION: ActionLine, NOTE: NoteLine}


def _read_line(archive: Archive, kind: type[L], entry: dict[str, Any]) -> L:
    try:
        return kind.model_validate(entry)
    except ValidationError as e:
        wrong = f"a line of kind {entry['kind']} is not valid ({': '.join(first_problem(e))}): run `runbook verify`"
        raise LogError(errno.EBADMSG, wrong, f"{archive.place}/{LOG}") from None
