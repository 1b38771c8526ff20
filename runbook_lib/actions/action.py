"""An action: a proposal that is carried out, and written down whatever becomes of it.

`perform` is the only way: it looks at the preconditions again, refuses what lacks a word or a condition, writes a
line into the incident's action log before the first change and another after the last, and looks at the effect.
The rules are those of docs/operations.md.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from runbook_lib import pack
from runbook_lib.actions import approval, guard
from runbook_lib.context import Context, Progress
from runbook_lib.model.finding import Text, say
from runbook_lib.notes import whoami
from runbook_lib.outcome import Became, Outcome, Precondition
from runbook_lib.sources import SourceError
from runbook_lib.store import ACTION_LOG
from runbook_lib.usage import UsageError
from runbook_lib.view import record


@dataclass(frozen=True)
class Word:
    """On whose word an action is carried out, and its id in the action log."""

    action: str
    approved_by: str
    reason: str


class ActionError(Exception):
    """The action was begun and did not succeed; one line."""


class Action(Protocol):
    """One thing that can be done to the system. Reading methods may raise SourceError."""

    #: "restart", "set" or "redrive"; `action.<name>` is its title among the messages.
    name: str

    def what(self) -> dict[str, Any]:
        """What exactly, as it stands in the action log."""

    def command(self) -> str:
        """The same as a person would type it."""

    def preconditions(self, rb: Context) -> list[Precondition]:
        """What must hold, looked at now."""

    def state(self, rb: Context) -> dict[str, Any]:
        """What the action changes, as it is now: the action log's before and after."""

    def run(self, rb: Context, word: Word, progress: Progress) -> dict[str, Any]:
        """Do it, on that word. Raises ActionError or SourceError."""

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Whether the effect is there, within the session's `wait_s`, and a sentence about it."""


def actions() -> dict[str, Callable[..., Action]]:
    """What can be done, by name: each makes an action for a context. Raises UsageError where two have one name."""
    return pack.joined("action", (a for brought in pack.in_force().every("actions") for a in brought.items()))


def perform(
    action: Action,
    rb: Context,
    *,
    execute: bool = False,
    approved_by: str | None = None,
    reason: str | None = None,
    break_glass: bool = False,
    approved: str | None = None,
    progress: Progress = lambda share, text: None,
) -> Outcome:
    """Carry an action out, or show what it would do; never raises for a source that fails.

    `break_glass` waives what `guard.rules` and `approval.rule` ask for, nothing else, and only on a target that allows
    it. `approved` is a second person's word, or a file with one.
    """
    id_, word = uuid.uuid4().hex[:12], approval.read(approved)
    common: dict[str, Any] = {
        "id": id_,
        "action": action.name,
        "what": action.what(),
        "command": action.command(),
        "approved_by": approved_by or "",
        "reason": rb.masker.scrub(reason or ""),
        "approval": str(word or ""),
    }
    # What stands beside an action as a proposal, nobody asked for: it is shown, also in a run that acts.
    only_shown = getattr(action, "only_shown", False)
    waive = break_glass and rb.target.break_glass
    rules, job = guard.rules(rb, break_glass=waive), ""
    refusal = _unattended() or _ruled_out(rules, break_glass)
    try:
        conditions, before = (*rules, *action.preconditions(rb)), action.state(rb)
        refusal = refusal or _does_not_hold(conditions)
        if (rb.target.approval or approved) and not only_shown:
            stood = {"preconditions": [record.precondition(c) for c in conditions]}
            asked = _placed(rb) | common | {"what": record.plain(common["what"])} | stood
            rule = approval.rule(rb, id_, asked, approved, word, break_glass=waive)
            refusal = refusal or _ruled_out((rule,), break_glass)
            conditions = (*conditions, rule)
            if word and rule.ok:
                common["approved_by"], job = word.by, word.job
    except SourceError as e:
        conditions, before = (), {}
        refusal = refusal or say("action.refused.unseen", detail=rb.masker.scrub(f"{e.source}: {e.detail}"))
    common |= {"preconditions": conditions, "before": before}
    waived = tuple(c.text for c in conditions if c.waived)

    def became(result: Became, why: Text, **more: Any) -> Outcome:
        for text in waived:
            why = say("action.glass_broken", text=text, why=why)
        return Outcome(result=result, why=why, **common, **more)

    if not execute or only_shown:
        why = say("action.dry", refusal=refusal) if refusal else say("action.dry_ready")
        return _kept(rb, became("dry", why))
    refusal = refusal or _lacks_a_word(common["approved_by"], reason)
    if refusal:
        return _kept(rb, became("refused", refusal))
    try:
        # Before anything is changed: what can not be written down is not done.
        if not _write(rb, became("done", say("action.begun")), "begun", job):
            return _kept(rb, became("refused", approval.used(word)))
    except (OSError, UsageError) as e:
        return became("refused", say("action.refused.log", detail=str(e)))
    try:
        did = action.run(rb, Word(id_, common["approved_by"], common["reason"]), progress)
    except (ActionError, SourceError) as e:
        detail = e.detail if isinstance(e, SourceError) else str(e)
        why = say("action.failed", detail=rb.masker.scrub(detail))
        return _kept(rb, became("failed", why, after=_after(action, rb)))
    except KeyboardInterrupt:
        _kept(rb, became("failed", say("action.failed", detail="interrupted"), after=_after(action, rb)))
        raise
    try:
        verified, effect = action.verify(rb, did, progress)
    except SourceError as e:
        verified, effect = False, say("action.not_seen", detail=rb.masker.scrub(e.detail))
    seen: dict[str, Any] = {"after": _after(action, rb), "did": did, "verified": verified, "effect": effect}
    return _kept(rb, became("done", say("action.done"), **seen))


def _unattended() -> Text | None:
    return say("action.refused.unattended") if os.environ.get("RUNBOOK_UNATTENDED") == "1" else None


def _ruled_out(rules: tuple[Precondition, ...], break_glass: bool) -> Text | None:
    refusal = _does_not_hold(rules)  # what was asked for and is not waived, the target does not allow
    return say("action.refused.break_glass", refusal=refusal) if refusal and break_glass else refusal


def _does_not_hold(conditions: tuple[Precondition, ...]) -> Text | None:
    for condition in conditions:
        if not condition.holds:
            word = "precondition" if condition.ok is False else "unseen_precondition"
            return say(f"action.refused.{word}", text=condition.text)
    return None


def _lacks_a_word(approved_by: str | None, reason: str | None) -> Text | None:
    if not approved_by:
        return say("action.refused.approval")
    if not reason:
        return say("action.refused.reason")
    return None


def _after(action: Action, rb: Context) -> dict[str, Any]:
    try:
        return action.state(rb)
    except SourceError as e:
        return {"unseen": rb.masker.scrub(e.detail)}


def _kept(rb: Context, outcome: Outcome) -> Outcome:
    """Write the outcome's line; one that can not be written is said, and loses nothing of what was done."""
    try:
        _write(rb, outcome, outcome.result)
    except (OSError, UsageError) as e:
        unwritten = say("action.unwritten", why=outcome.why, detail=str(e))
        return Outcome(**{**outcome.__dict__, "why": unwritten})
    return outcome


def _write(rb: Context, o: Outcome, result: str, job: str = "") -> bool:
    """Whether the line is there: of two with the same `job` the second is not written."""
    rb.archive.prepare()
    time = {"time": pd.Timestamp.now("UTC").isoformat(timespec="milliseconds")}
    line = record.outcome(o) | time | _placed(rb) | {"result": result} | ({"job": job} if job else {})
    return rb.archive.add_line(ACTION_LOG, line) is None


def _placed(rb: Context) -> dict[str, Any]:
    """Where an action belongs, and whose it is, as it stands in the action log."""
    return {"target": rb.parameters.target, "section": rb.section.number, "who": whoami()}
