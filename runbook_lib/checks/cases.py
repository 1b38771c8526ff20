"""Tables of cases: the first case that holds gives a finding's headline, status, evidence, proposals and section.

A judge reads the frames into a dataclass of observed values; the table's conditions read these:

    S = Conditions(Seen)
    CASES = Cases(
        Case("subscriber.paused", S.paused, CRITICAL, evidence="subscriber.paused", read="5.1"),
        Case("subscriber.deaf", ~S.bound & S.waits, CRITICAL, propose=restart_subscriber),
        Case("subscriber.bound"),
    )

Everything in a finding that depends on its case comes from one row, so it cannot contradict itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Generic, TypeVar

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Decision, Proposal, Signal, Status, Text, say

T = TypeVar("T")


@dataclass(frozen=True)
class Condition:
    """A named condition on a row of observed values, with the names of the values that it reads."""

    name: str
    reads: tuple[str, ...]
    holds: Callable[[Any], bool]
    together: tuple[Condition, ...] = ()
    among: tuple[object, ...] = (True,)
    """The values that it compares with, for a field that is not a flag."""

    @property
    def parts(self) -> tuple[Condition, ...]:
        """The conditions that must all hold."""
        return self.together or (self,)

    def __and__(self, other: Condition) -> Condition:
        parts = self.parts + other.parts
        name = " & ".join(part.name for part in parts)
        return Condition(name, self.reads + other.reads, lambda seen: all(p.holds(seen) for p in parts), parts)

    def __or__(self, other: Condition) -> Condition:
        name = f"({self.name} | {other.name})"
        return Condition(name, self.reads + other.reads, lambda seen: self.holds(seen) or other.holds(seen))

    def __invert__(self) -> Condition:
        return Condition(f"~{self.name}", self.reads, lambda seen: not self.holds(seen))


class Conditions:
    """The conditions on a class of observed values, one for each field or property: whether it is true."""

    def __init__(self, seen: type) -> None:
        self._names = {field.name for field in fields(seen)}
        self._names |= {name for name in dir(seen) if isinstance(getattr(seen, name), property)}

    def of(self, path: str) -> Condition:
        """Return whether a value within a field is true: `queue.failed`."""
        getattr(self, path.partition(".")[0])
        return Condition(path, (path,), lambda seen: bool(attrgetter(path)(seen)))

    def one_of(self, path: str, *values: object) -> Condition:
        """Return whether that field, or value within a field, is one of these."""
        true = self.of(path)
        said = f"{path} in {{{', '.join(map(str, values))}}}"
        return Condition(said, true.reads, lambda seen: attrgetter(path)(seen) in values, among=values)

    def __getattr__(self, name: str) -> Condition:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"there is no observed value {name!r}: {', '.join(sorted(self._names))}")
        return Condition(name, (name,), lambda seen: bool(getattr(seen, name)))


#: Holds always: the last row of each table.
OTHERWISE = Condition("otherwise", (), lambda seen: True)


@dataclass(frozen=True)
class Case(Generic[T]):
    """One row of a table: its name, its condition, and the parts of its finding.

    `says` is the headline: by default the message with the case's name. `status` is the least status of the finding. A
    function of the observed values is used for whatever depends on more than the case.
    """

    name: str
    when: Condition = OTHERWISE
    status: Status | Callable[[T], Status] = Status.OK
    evidence: str | Callable[[T], tuple[str, ...]] = ""
    propose: Callable[[JudgeInput, T], tuple[Proposal, ...]] | None = None
    read: str | Callable[[T], tuple[str, ...]] = ""
    says: str | Callable[[T, dict[str, Any]], Text] = ""


@dataclass(frozen=True)
class Decided(Generic[T]):
    """The case that holds for the observed values; its parts are those of a finding."""

    case: Case[T]
    seen: T

    @property
    def name(self) -> str:
        """The name of the case."""
        return self.case.name

    @property
    def decision(self) -> Decision:
        """The case, as a finding stores it."""
        return Decision(self.case.name)

    @property
    def status(self) -> Status:
        """The least status of the finding."""
        return self.case.status(self.seen) if callable(self.case.status) else self.case.status

    @property
    def observations(self) -> tuple[str, ...]:
        """The observations of the case, by their names in observations.md."""
        found = self.case.evidence
        return found(self.seen) if callable(found) else (found,) if found else ()

    @property
    def sections(self) -> tuple[str, ...]:
        """The sections to read next."""
        read = self.case.read
        return read(self.seen) if callable(read) else (read,) if read else ()

    def headline(self, **facts: Any) -> Text:
        """Return the headline with its parameters."""
        says = self.case.says
        return says(self.seen, facts) if callable(says) else say(says or self.case.name, **facts)

    def signals(self, given: JudgeInput) -> tuple[Signal, ...]:
        """Return the evidence of the observations."""
        return given.evidence_of(self.observations)

    def proposals(self, given: JudgeInput) -> tuple[Proposal, ...]:
        """Return the proposals of the case."""
        return self.case.propose(given, self.seen) if self.case.propose else ()


class Cases(Generic[T]):
    """A table of cases; the last one always holds."""

    def __init__(self, *cases: Case[T]) -> None:
        self._cases = cases
        if cases[-1].when is not OTHERWISE or any(case.when is OTHERWISE for case in cases[:-1]):
            raise ValueError("the last case of a table, and no other, must always hold")

    def __iter__(self) -> Iterator[Case[T]]:
        return iter(self._cases)

    def of(self, seen: T) -> Decided[T]:
        """Return the first case that holds."""
        return Decided(next(case for case in self._cases if case.when.holds(seen)), seen)


__all__ = ["OTHERWISE", "Case", "Cases", "Condition", "Conditions", "Decided"]
