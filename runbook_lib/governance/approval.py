"""Approvals: an action on a target with `approval = true` needs an approval by a person with another login.

A dry run prints a request, `runbook approve` turns it into an approval, and `--approval` takes the approval:

    request:<incident>:<id of the dry run>:<digest of what it asks for>
    approval:<incident>:<that id>:<that digest>:<until, UTC>:<name>:<signature>

An approval is valid only in the archive that has the dry run, and only once: the target's ledger lists the used ones
(`ledger`).

The digest covers the fields `_BOUND` and the state of each precondition: its key, whether it holds, whether it was
waived, the identity of the system that it checked. The preconditions' numbers change between two samples and are left
out. The signature is over the text before
`:<name>`.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from runbook_lib.book.parameters import UNKNOWN, now, whoami
from runbook_lib.checks.context import Context
from runbook_lib.governance import ledger, sign
from runbook_lib.model.finding import Text, say
from runbook_lib.model.outcome import Precondition
from runbook_lib.model.usage import UsageError
from runbook_lib.sources.settings import Settings, Signing, raw_key
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION_LOG, Archive
from runbook_lib.store.files import digest
from runbook_lib.view.render import when

#: The fields of an action log line that an approval is bound to, together with its preconditions and the incident.
_BOUND = ("target", "section", "who", "action", "what", "command")
_REQUEST_PARTS = r"([^\s:/]+):([0-9a-f]{12}):([0-9a-f]{64})"
_REQUEST = re.compile(rf"request:{_REQUEST_PARTS}")
_APPROVAL = re.compile(
    rf"approval:{_REQUEST_PARTS}:([0-9]{{8}}T[0-9]{{6}}Z):([A-Za-z0-9_-]+):([A-Za-z0-9_-]{{86}})(?![\w-])"
)
_UNTIL_FORMAT = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Approval:
    """An approval as it was given, not verified yet (see `check_approval`)."""

    incident: str
    id: str
    digest: str
    until: datetime
    by: str
    signature: str

    @property
    def signed(self) -> str:
        """Return the text that the signature is over."""
        return f"approval:{self.incident}:{self.id}:{self.digest}:{self.until:{_UNTIL_FORMAT}}"

    @property
    def job(self) -> str:
        """Return the job key of the action that uses this approval: one dry run is executed once."""
        return f"request:{self.incident}:{self.id}"

    def __str__(self) -> str:
        return f"{self.signed}:{self.by}:{self.signature}"


def parse_approval(given: str | None) -> Approval | None:
    """Return the approval in a text, or the last one in the file of that name; None if there is none."""
    found = _APPROVAL.findall(given or "")
    if given and not found:
        with suppress(OSError, ValueError):
            found = _APPROVAL.findall(Path(given).read_text(encoding="utf-8", errors="replace"))
    with suppress(ValueError, IndexError):
        incident, id_, asked, until, by, signature = found[-1]
        return Approval(
            incident, id_, asked, datetime.strptime(until, _UNTIL_FORMAT).replace(tzinfo=UTC), by, signature
        )
    return None


def check_approval(
    rb: Context,
    id_: str,
    asked: Mapping[str, Any],
    given: str | None,
    word: Approval | None,
    *,
    break_glass: bool = False,
) -> Precondition:
    """Check whether `word`, parsed from `given`, approves the action `asked`, a future line of the action log.

    Without an approval the text says how to request one. `break_glass` waives the rule if it does not hold.
    """
    target = rb.parameters.target
    try:
        if asked["who"] == UNKNOWN:
            text, ok = say("action.approval.nobody"), False
        elif word:
            rejection = _find_rejection(rb, asked, word)
            text = rejection or say("action.approval.given", by=word.by, until=when(pd.Timestamp(word.until)))
            ok = not rejection
        elif given:
            text, ok = say("action.approval.none"), False
        else:
            ready = all(
                p["ok"] is True or p["waived"] or (p["ok"] is None and p["warns"]) for p in asked["preconditions"]
            )
            request = f"request:{rb.archive.incident}:{id_}:{_request_digest(asked)}" if ready else None
            text, ok = say("action.approval.needed", target=target, request=request), False
        return Precondition(text, ok, waived=break_glass and not ok)
    except (OSError, UsageError) as e:
        return Precondition(say("action.approval.unseen", detail=str(e)), None, waived=break_glass)


def used_already(word: Approval | None) -> Text:
    """Return the refusal for an approval that was used before."""
    return say("action.approval.used", by=word.by if word else "")


def find_request(request: str, archive_of: Callable[[str], Archive]) -> tuple[Archive, dict[str, Any]]:
    """Return a request's archive and the action log line of its dry run. Raises OSError, UsageError."""
    found = _REQUEST.fullmatch(request.strip())
    if not found:
        raise UsageError("the request is not complete: copy all of request:... from the output of the dry run")
    incident, id_, asked = found.groups()
    archive = archive_of(incident)
    line = _find_dry_run(archive, id_, asked)
    if line is None:
        raise UsageError(f"{archive.place} has no such request, or its line was changed: make the dry run again")
    return archive, line


def _find_dry_run(archive: Archive, id_: str, asked: str) -> dict[str, Any] | None:
    """Return the action log line of a dry run with that id and digest; None if there is none. Raises OSError."""
    open_ = [e for e in ledger.read_entries(archive) if e.get("id") == id_ and e.get("result") in ("dry", "refused")]
    return next((e for e in open_ if _request_digest(e) == asked), None)


def approve_request(
    archive: Archive, line: Mapping[str, Any], key: Path, minutes: int, config: Settings, *, agreed: bool
) -> tuple[Text, str]:
    """Approve the request of a line for so many minutes; return a text about it and the approval, "" if refused.

    Both cases are written to the action log before this returns. Raises OSError.
    """
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=minutes)
    who = str(line["who"])
    word = Approval(archive.incident, str(line["id"]), _request_digest(line), until, "", "")
    by, why = "", say("action.approval.declined", by=whoami())
    try:
        if agreed:
            signing = Signing(key_file=key.absolute(), keys=config.approvers)
            by, signature = sign.sign(word.signed, signing, "--key-file", "[approvers]")
            word = Approval(**word.__dict__ | {"by": by, "signature": signature})
            own = who.casefold() in _own_logins() or _is_key_of(
                by, {who.casefold()}, config.approvers, config.sign.keys
            )
            given = say("action.approval.given", by=by, until=when(pd.Timestamp(until)))
            why, agreed = say("action.approval.own", by=by, until=when(pd.Timestamp(until))) if own else given, not own
    except UsageError as e:
        why, agreed = say("action.approval.not_given", detail=str(e)), False
    approval = str(word) if agreed else ""
    new = {
        "id": uuid.uuid4().hex[:12],
        "time": now(),
        "who": whoami(),
        "result": "approved" if agreed else "refused",
        "why": record.text(why),
        "approved_by": by,
        "approval": approval,
    }
    archive.add_line(ACTION_LOG, {k: v for k, v in line.items() if k != "previous"} | new)
    return why, approval


def _find_rejection(rb: Context, asked: Mapping[str, Any], word: Approval) -> Text | None:
    """Return why an approval is not valid for the action `asked`; None if it is. Raises OSError, UsageError."""
    keys, log = rb.approvers, ledger.read_actions(rb)
    if word.by not in keys:
        return say("action.approval.unknown", by=word.by)
    if not sign.is_valid(word.signed, word.by, word.signature, keys):
        return say("action.approval.forged", by=word.by)
    if _is_key_of(word.by, _own_logins(), keys, rb.signers):
        return say("action.approval.own", by=word.by)
    if word.incident != rb.archive.incident or word.digest != _request_digest(asked):
        return say("action.approval.other", by=word.by, what=_find_difference(rb, asked, word))
    if _find_dry_run(rb.archive, word.id, word.digest) is None:
        return say("action.approval.elsewhere", by=word.by, place=rb.archive.place)
    # The incident's own log counts, too: the target's ledger may have moved.
    if word.job in {*log["job"], *(str(e.get("job")) for e in ledger.read_entries(rb.archive))}:
        return used_already(word)
    if word.until <= datetime.now(UTC):
        return say("action.approval.expired", by=word.by, until=when(pd.Timestamp(word.until)))
    return None


def _find_difference(rb: Context, asked: Mapping[str, Any], word: Approval) -> Text:
    """Return the first field in which the approved action differs from the one asked for."""
    if word.incident != rb.archive.incident:
        return say("action.approval.differs.incident")
    lines = ledger.read_entries(rb.archive)
    approved = next((e for e in lines if e.get("id") == word.id and _request_digest(e) == word.digest), {})
    today, then = _bound_values(asked), _bound_values(approved)
    differs = [name for name in today if today[name] != then[name]] if approved else ["unknown"]
    known, new = list(then["preconditions"]), None
    for precondition in _preconditions(asked):
        if (state := _bound_state(precondition)) in known:
            known.remove(state)
        else:
            new = new or record.text_from_json(precondition["text"])
    return say(f"action.approval.differs.{differs[0]}", now=new)


def _bound_values(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an action log line that an approval is bound to."""
    states = sorted(map(_bound_state, _preconditions(line)), key=str)
    return {name: line.get(name) for name in _BOUND} | {"preconditions": states}


def _preconditions(line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the preconditions of an action log line, without that of the approval itself."""
    return [p for p in line.get("preconditions") or () if not str(p.get("key")).startswith("action.approval.")]


def _bound_state(precondition: Mapping[str, Any]) -> list[Any]:
    return [str(precondition.get("key")), *(precondition.get(name) for name in ("ok", "waived", "identity"))]


def _request_digest(line: Mapping[str, Any]) -> str:
    return digest(json.dumps(_bound_values(line), ensure_ascii=False, sort_keys=True).encode(errors="backslashreplace"))


def _is_key_of(by: str, logins: set[str], approvers: Mapping[str, str], signers: Mapping[str, str]) -> bool:
    """Return whether a name of [approvers], or its key, belongs to one of these logins."""
    named = (pair for keys in (approvers, signers) for pair in keys.items())
    theirs = {raw_key(public) for name, public in named if name.casefold() in logins}
    return by.casefold() in logins or raw_key(approvers[by]) in theirs


def _own_logins() -> set[str]:
    """Return the present user's logins: from the environment, from the system, and from before sudo."""
    names = [whoami(), os.environ.get("SUDO_USER", "")]
    with suppress(KeyError):
        names.append(pwd.getpwuid(os.getuid()).pw_name)
    return {name.casefold() for name in names if name}
