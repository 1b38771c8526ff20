"""What became of an action, and what had to hold before it: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from runbook_lib import messages
from runbook_lib.model.finding import Frames, Status, Text

Became = Literal["dry", "refused", "done", "failed"]


@dataclass(frozen=True)
class Precondition:
    """One thing that must hold before an action; `ok` is None where it could not be seen.

    `waived`: it does not hold, and somebody broke the glass.
    """

    text: Text
    ok: bool | None
    waived: bool = False

    @property
    def holds(self) -> bool:
        """Whether it stops nothing: what could not be seen does."""
        return self.ok is True or self.waived


@dataclass(frozen=True)
class Outcome:
    """What became of an action."""

    id: str
    action: str
    what: dict[str, Any]
    command: str
    result: Became
    why: Text
    preconditions: tuple[Precondition, ...] = ()
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    did: dict[str, Any] = field(default_factory=dict)
    verified: bool | None = None
    effect: Text | None = None
    approved_by: str = ""
    reason: str = ""
    approval: str = ""
    """The approval that was given with it, whatever it was worth; "" for none."""

    @property
    def break_glass(self) -> bool:
        """Whether a rule of the target was waived for it."""
        return any(p.waived for p in self.preconditions)

    @property
    def status(self) -> Status:
        """OK for what was done and seen to work, or could be done; CRITICAL for what was asked for and is not there."""
        if self.result == "dry":
            return Status.OK if self.preconditions and all(p.holds for p in self.preconditions) else Status.WARNING
        return Status.OK if self.result == "done" and self.verified else Status.CRITICAL

    def frames(self, lang: str) -> Frames:
        """The same as evidence: `outcome` (one row), `preconditions`, `changes`."""
        return {
            "outcome": pd.DataFrame(
                [
                    {
                        "action": self.action,
                        "result": self.result,
                        "verified": self.verified,
                        "approved_by": self.approved_by,
                        "reason": self.reason,
                        "command": self.command,
                    }
                    | {f"why_{lang_}": messages.text(self.why, lang_) for lang_ in messages.LANGUAGES}
                    | {
                        f"effect_{lang_}": messages.text(self.effect, lang_) if self.effect else None
                        for lang_ in messages.LANGUAGES
                    }
                ]
            ),
            "preconditions": pd.DataFrame(
                [{"precondition": messages.text(p.text, lang), "holds": p.ok} for p in self.preconditions],
                columns=["precondition", "holds"],
            ),
            "changes": pd.DataFrame(
                [
                    {"name": name, "before": self.before.get(name), "after": self.after.get(name)}
                    for name in dict.fromkeys((*self.before, *self.after))
                ],
                columns=["name", "before", "after"],
            ).astype(object),
        }
