"""Run actions: proposals that change the system, with an audit trail.

`perform` is the only entry point. It checks the preconditions again, refuses an action without an authorization or a
precondition, writes a line into the target's ledger and the incident's action log before the first change and another
one after the last, and verifies the effect. docs/operations.md describes the rules.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pandas as pd

from runbook_lib.actions.deadline import Deadline, DeadlineError
from runbook_lib.book import messages, pack
from runbook_lib.book.parameters import whoami
from runbook_lib.checks.context import Context, Progress
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.model.outcome import Outcome, Precondition
from runbook_lib.model.times import now
from runbook_lib.model.usage import UsageError, error_line
from runbook_lib.sources.source import SourceError
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION

#: Seconds in which the preconditions and the state before an action must have been read. Each read has a limit of its
#: own; this one is for all of them, and for what is done with their answers.
READ_S = 120.0
#: The fields of an outcome that its frame shows.
_SHOWN = ("action", "result", "verified", "approved_by", "reason", "command")


@dataclass(frozen=True)
class Authorization:
    """Who approved an action and why, and the action's id in the action log."""

    action: str
    approved_by: str
    reason: str


class ActionError(Exception):
    """The action began and failed; the message is one line."""


class Action(Protocol):
    """One change of the system. Methods that read may raise SourceError."""

    #: "restart", "set" or "redrive"; `action.<name>` is its title among the messages.
    name: str

    def what(self) -> dict[str, Any]:
        """Return the action's arguments as in the action log."""

    def command(self) -> str:
        """Return the equivalent shell command for a person."""

    def preconditions(self, rb: Context) -> list[Precondition]:
        """Check the preconditions now."""

    def state(self, rb: Context) -> dict[str, Any]:
        """Return the present state of what the action changes: `before` and `after` of the action log."""

    def run(self, rb: Context, word: Authorization, progress: Progress) -> dict[str, Any]:
        """Run the action and return what it did. Raises ActionError or SourceError.

        An action of several steps notes in an attribute `did` what it has done so far, for the log line of a failure.
        """

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Return whether the effect appeared within the session's `wait_s`, and a text about it."""


def actions() -> dict[str, Callable[..., Action]]:
    """Return the actions by name: each is called to make one. Raises UsageError if two packs use one name."""
    return pack.merge_unique(
        "action", (a for brought in pack.active_runbook().every("actions") for a in brought.items())
    )


def perform(
    action: Action,
    rb: Context,
    *,
    execute: bool = False,
    approved_by: str | None = None,
    reason: str | None = None,
    progress: Progress = lambda share, text: None,
) -> Outcome:
    """Run an action, or only show what it would do (default); never raises for a source that fails."""
    id_, ledger, job = uuid.uuid4().hex[:12], pack.hook("ledger")(rb), ""
    common: dict[str, Any] = {
        "id": id_,
        "action": action.name,
        "what": action.what(),
        "command": action.command(),
        "approved_by": rb.masker.scrub_once(approved_by or ""),
        "reason": rb.masker.scrub_once(reason or ""),
    }
    # An action shown beside another one as a proposal is never executed.
    only_shown = getattr(action, "only_shown", False)
    refusal = _refuse_run(rb)
    try:
        with Deadline(READ_S):
            conditions, before = (*_check_past(ledger), *action.preconditions(rb)), action.state(rb)
        if rb.target.approval and not only_shown:
            stood = {"preconditions": [record.precondition(c) for c in conditions]}
            asked = _context_fields(rb) | common | {"what": record.plain(common["what"])} | stood
            rule, common["approved_by"], job = pack.hook("approval")(rb, id_, asked)
            conditions = (*conditions, rule)
        refusal = refusal or _refuse_by_condition(conditions)
    except DeadlineError:
        conditions, before = (), {}
        refusal = refusal or say("action.refused.late", seconds=READ_S)
    except Exception as e:
        if _must_reraise(e):
            raise
        conditions, before = (), {}
        refusal = refusal or say("action.refused.unseen", detail=_describe_error(rb, e))
    common |= {"preconditions": conditions, "before": before}
    if not execute or only_shown:
        warned = next((c.text for c in conditions if c.warned), None)
        ready = say("action.dry_warned", text=warned) if warned else say("action.dry_ready")
        why = say("action.dry", refusal=refusal) if refusal else ready
        return _write_outcome(rb, Outcome(result="dry", why=why, **common))
    refusal = refusal or _refuse_without_authorization(common["approved_by"], reason)
    if refusal:
        return _write_outcome(rb, Outcome(result="refused", why=refusal, **common))
    entry = _ledger_entry(rb, common, job)
    try:
        refusal = _write_begin(rb, ledger, entry, Outcome(result="done", why=say("action.begun"), **common))
    except (OSError, UsageError) as e:
        return Outcome(result="refused", why=say("action.refused.log", detail=error_line(e)), **common)
    if refusal:
        return _write_outcome(rb, Outcome(result="refused", why=refusal, **common))
    came, problem = _run_and_verify(action, rb, Authorization(id_, common["approved_by"], common["reason"]), progress)
    outcome = _write_outcome(rb, Outcome(**common, **came))
    unentered = _end(ledger, entry, outcome.result, outcome.why)
    if problem and _must_reraise(problem):
        raise problem
    if unentered:
        return replace(outcome, why=say("action.unentered", why=outcome.why, detail=unentered))
    return outcome


def _write_begin(rb: Context, ledger: Any, entry: dict[str, Any], begun: Outcome) -> Text | None:
    """Log that an action begins, before anything is changed: without a log line nothing is done.

    Returns the refusal, if any. Raises OSError and UsageError if the action log cannot be written.
    """
    rb.archive.prepare()
    try:
        refused: Text | None = ledger.begin(entry)
        if refused or _write_line(rb, begun, "begun", entry.get("job", "")):
            return refused
    except BaseException as e:  # an interrupt, too: nothing has begun
        _end(ledger, entry, "refused", say("action.refused.log", detail=_describe_error(rb, e)))
        raise
    used = say("action.approval.used", by=begun.approved_by)
    _end(ledger, entry, "refused", used)
    return used


def _end(ledger: Any, entry: dict[str, Any], result: str, why: Text) -> str:
    """Add the end of an action to the ledger; return the error or ""."""
    error: str = ledger.end(entry | {"result": result, "why": record.text(why), "time": now()})
    return error


def _ledger_entry(rb: Context, common: Mapping[str, Any], job: str) -> dict[str, Any]:
    """Return the ledger's line for an action that begins, with the dossier's place and who approved it."""
    named = {name: common[name] for name in ("id", "action", "approved_by")}
    placed = _context_fields(rb) | {"incident": rb.archive.incident, "place": rb.archive.place}
    begun = {"result": "begun", "why": record.text(say("action.begun"))}
    about = {"time": now(), "what": record.plain(common["what"]), **begun}
    return named | placed | about | ({"job": job} if job else {})


def _run_and_verify(
    action: Action, rb: Context, word: Authorization, progress: Progress
) -> tuple[dict[str, Any], BaseException | None]:
    """Run the action and verify its effect; return fields of the Outcome, and the exception or interrupt if any."""
    did: dict[str, Any] | None = None
    problem: BaseException | None = None
    came: dict[str, Any] = {"result": "done", "why": say("action.done")}
    try:
        did = action.run(rb, word, progress)
        came["verified"], came["effect"] = action.verify(rb, did, progress)
    except BaseException as e:
        problem = e
        if did is None:
            came = {"result": "failed", "why": say("action.failed", detail=_describe_error(rb, e))}
        elif isinstance(e, Exception):
            came |= {"verified": False, "effect": say("action.not_seen", detail=_describe_error(rb, e))}
        else:
            came |= {"verified": None, "effect": say("action.not_waited_for")}
    after, interrupt = _read_state_after(action, rb)
    done = did if did is not None else {**getattr(action, "did", {})}
    return came | {"did": done, "after": after}, problem or interrupt


def _describe_error(rb: Context, e: BaseException) -> str:
    """Return an error in one line without user ids and secrets."""
    if isinstance(e, SourceError):
        text = f"{e.source}: {e.detail}"
    elif isinstance(e, ActionError):
        text = str(e)
    elif isinstance(e, Exception):
        text = f"{type(e).__name__}: {e}"
    else:
        text = "interrupted"
    return " ".join(rb.masker.scrub(text).split())


def _must_reraise(e: BaseException) -> bool:
    """Return whether to raise an exception again after logging: an interrupt, or with RUNBOOK_DEBUG a bug."""
    if isinstance(e, SourceError | ActionError):
        return False
    return not isinstance(e, Exception) or bool(os.environ.get("RUNBOOK_DEBUG"))


def _refuse_run(rb: Context) -> Text | None:
    """Return why this run must not change anything; None if it may."""
    if rb.recorded is not None:
        return say("action.refused.replayed")
    return say("action.refused.unattended") if os.environ.get("RUNBOOK_UNATTENDED") == "1" else None


def _check_past(ledger: Any) -> tuple[Precondition, ...]:
    """Return a precondition that could not be checked if the past actions on the target cannot be read."""
    try:
        ledger.read()
    except UsageError as e:
        return (Precondition(say("action.past_unseen", detail=str(e)), ok=None),)
    return ()


def _refuse_by_condition(conditions: tuple[Precondition, ...]) -> Text | None:
    for condition in conditions:
        if not condition.holds:
            if condition.ok is False:
                return say("action.refused.precondition", text=condition.text)
            return say("action.refused.unseen_precondition", text=condition.text)
    return None


def _refuse_without_authorization(approved_by: str | None, reason: str | None) -> Text | None:
    if not approved_by:
        return say("action.refused.approval")
    if not reason:
        return say("action.refused.reason")
    return None


def _read_state_after(action: Action, rb: Context) -> tuple[dict[str, Any], BaseException | None]:
    """Return the state after the action, and an interrupt if one came; neither it nor an error loses the log line."""
    try:
        return action.state(rb), None
    except BaseException as e:
        return {"unseen": _describe_error(rb, e)}, None if isinstance(e, Exception) else e


def _write_outcome(rb: Context, outcome: Outcome) -> Outcome:
    """Log the outcome and return it; if the line cannot be written, add that to the outcome's text."""
    if rb.recorded is not None:
        return outcome
    try:
        _write_line(rb, outcome, outcome.result)
    except (OSError, UsageError) as e:
        unwritten = say("action.unwritten", why=outcome.why, detail=error_line(e))
        return replace(outcome, why=unwritten)
    return outcome


def _write_line(rb: Context, o: Outcome, result: str, job: str = "") -> bool:
    """Add a line; return False, and add nothing, if one with the same `job` exists."""
    rb.archive.prepare()
    line = record.outcome(o) | {"time": now()} | _context_fields(rb) | {"result": result}
    line |= {"job": job} if job else {}
    return rb.archive.add_line(ACTION, line) is None


def _context_fields(rb: Context) -> dict[str, Any]:
    """Return the target, section and user of an action, as fields of the action log."""
    return {"target": rb.parameters.target, "section": rb.section.number, "who": whoami()}


def frames_of(done: Outcome) -> Frames:
    """Return an outcome as evidence frames: `outcome` (one row), `preconditions`, `changes`."""
    outcome = {name: getattr(done, name) for name in _SHOWN}
    for name, text in (("why", done.why), ("effect", done.effect)):
        outcome |= {f"{name}_{each}": text and messages.text(text, each) for each in messages.LANGUAGES}
    conditions = [[messages.text(p.text), p.ok, p.warns] for p in done.preconditions]
    names = dict.fromkeys((*done.before, *done.after))
    changes = [[name, done.before.get(name), done.after.get(name)] for name in names]
    return {
        "outcome": pd.DataFrame([outcome]),
        "preconditions": pd.DataFrame(conditions, columns=["precondition", "holds", "warns"]),
        "changes": pd.DataFrame(changes, columns=["name", "before", "after"]).astype(object),
    }
