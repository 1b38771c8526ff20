"""The outcome of an action and its preconditions: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from runbook_lib.model.finding import Status, Text

ActionStatus = Literal["dry", "refused", "done", "failed"]


@dataclass(frozen=True)
class Precondition:
    """A condition for an action; `ok` is None if it could not be checked.

    `warns`: if it cannot be checked, it only warns; every other precondition then stops the action. `identity` names
    the system that was checked, such as a cluster or a database: an approval holds for that one alone.
    """

    text: Text
    ok: bool | None
    warns: bool = False
    identity: str = ""

    @property
    def warned(self) -> bool:
        """Return whether it could not be checked and only warns."""
        return self.ok is None and self.warns

    @property
    def holds(self) -> bool:
        """Return whether the action may go on."""
        return self.ok is True or self.warned


@dataclass(frozen=True)
class Outcome:
    """The outcome of an action."""

    id: str
    action: str
    what: dict[str, Any]
    command: str
    result: ActionStatus
    why: Text
    preconditions: tuple[Precondition, ...] = ()
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    did: dict[str, Any] = field(default_factory=dict)
    verified: bool | None = None
    effect: Text | None = None
    approved_by: str = ""
    reason: str = ""

    @property
    def status(self) -> Status:
        """Return OK if it was done and verified, or is ready (dry run); WARNING for a dry run that is not ready.

        Otherwise CRITICAL.
        """
        if self.result == "dry":
            ready = self.preconditions and all(p.holds and not p.warned for p in self.preconditions)
            return Status.OK if ready else Status.WARNING
        return Status.OK if self.result == "done" and self.verified else Status.CRITICAL
