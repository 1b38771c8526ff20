"""Tables of cases: the first case that holds gives a finding's headline, status, evidence, proposals and section.

A judge reads the frames into a dataclass of observed values; the table's conditions are predicates of these:

    CASES = Cases[Seen](
        Case("subscriber.paused", lambda seen: seen.paused, CRITICAL, evidence="subscriber.paused", read="5.1"),
        Case("subscriber.deaf", lambda seen: not seen.bound and seen.waits, CRITICAL, propose=restart_subscriber),
        Case("subscriber.bound"),
    )

Everything in a finding that depends on its case comes from one row, so it cannot contradict itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Decision, Proposal, Signal, Status, Text, say

T = TypeVar("T")


@dataclass(frozen=True)
class Case(Generic[T]):
    """One row of a table: its name, when it holds, and the parts of its finding; the last row always holds.

    `says` is the headline: by default the message with the case's name. `status` is the least status of the finding. A
    function of the observed values is used for whatever depends on more than the case.
    """

    name: str
    when: Callable[[T], object] | None = None
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
        if cases[-1].when is not None or any(case.when is None for case in cases[:-1]):
            raise ValueError("the last case of a table, and no other, must always hold")

    def __iter__(self) -> Iterator[Case[T]]:
        return iter(self._cases)

    def of(self, seen: T) -> Decided[T]:
        """Return the first case that holds."""
        return Decided(next(case for case in self._cases if case.when is None or case.when(seen)), seen)
