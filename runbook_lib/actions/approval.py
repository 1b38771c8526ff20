"""A second person's word: what an action on a target with `approval = true` needs from another login.

A dry run asks for it in one word, `runbook approve` answers with another, and `--approval` takes that:

    request:<incident>:<id of the dry run>:<digest of what it asks for>
    approval:<incident>:<that id>:<that digest>:<until, UTC>:<name>:<signature>

The digest covers `_BOUND` and how each precondition stood: its key, whether it holds, whether it was waived. Its
numbers move between looks, and are left out. Signed is what stands before `:<name>`.
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

from runbook_lib import settings, sign
from runbook_lib.actions import guard
from runbook_lib.context import Context
from runbook_lib.model.finding import Text, say
from runbook_lib.notes import whoami
from runbook_lib.outcome import Precondition
from runbook_lib.settings import Signing, raw_key
from runbook_lib.store import ACTION_LOG, Archive, digest, entry_of
from runbook_lib.usage import UsageError
from runbook_lib.view import record
from runbook_lib.view.render import when

#: Of a line in the action log, what an approval is for; beside these its preconditions and the incident.
_BOUND = ("target", "section", "who", "action", "what", "command")
_ASKED = r"([^\s:/]+):([0-9a-f]{12}):([0-9a-f]{64})"
_REQUEST = re.compile(rf"request:{_ASKED}")
_WORD = re.compile(rf"approval:{_ASKED}:([0-9]{{8}}T[0-9]{{6}}Z):([A-Za-z0-9_-]+):([A-Za-z0-9_-]{{86}})(?![\w-])")
_UNTIL = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Approval:
    """An approval as it was given; nothing in it is believed before `rule` has looked."""

    incident: str
    id: str
    digest: str
    until: datetime
    by: str
    signature: str

    @property
    def signed(self) -> str:
        """What the signature is over."""
        return f"approval:{self.incident}:{self.id}:{self.digest}:{self.until:{_UNTIL}}"

    @property
    def job(self) -> str:
        """Stands in the line of the action that it was used for: one dry run is carried out once."""
        return f"request:{self.incident}:{self.id}"

    def __str__(self) -> str:
        return f"{self.signed}:{self.by}:{self.signature}"


def read(given: str | None) -> Approval | None:
    """The approval in a word, or the last in the file of that name; None where there is none."""
    found = _WORD.findall(given or "")
    if given and not found:
        with suppress(OSError, ValueError):
            found = _WORD.findall(Path(given).read_text(encoding="utf-8", errors="replace"))
    with suppress(ValueError, IndexError):
        incident, id_, asked, until, by, signature = found[-1]
        return Approval(incident, id_, asked, datetime.strptime(until, _UNTIL).replace(tzinfo=UTC), by, signature)
    return None


def rule(
    rb: Context,
    id_: str,
    asked: Mapping[str, Any],
    given: str | None,
    word: Approval | None,
    *,
    break_glass: bool = False,
) -> Precondition:
    """Whether a second person has approved what is asked for, a line of the action log to be; `word` is what was given.

    Without one it says how to ask for it. `break_glass` waives it where it does not hold.
    """
    target = rb.parameters.target
    try:
        if word:
            wrong = _wrong(rb, asked, word)
            said, ok = (
                wrong or say("action.approval.given", by=word.by, until=when(pd.Timestamp(word.until))),
                not wrong,
            )
        elif given:
            said, ok = say("action.approval.none"), False
        else:
            ready = all(p["ok"] is True or p["waived"] for p in asked["preconditions"])
            request = f"request:{rb.archive.incident}:{id_}:{_digest(asked)}" if ready else None
            said, ok = say("action.approval.needed", target=target, request=request), False
        return Precondition(said, ok, waived=break_glass and not ok)
    except (OSError, UsageError) as e:
        return Precondition(say("action.approval.unseen", detail=str(e)), None, waived=break_glass)


def used(word: Approval | None) -> Text:
    """Says that an approval has been used."""
    return say("action.approval.used", by=word.by if word else "")


def requested(request: str, archive_of: Callable[[str], Archive]) -> tuple[Archive, dict[str, Any]]:
    """The archive, and the line of the action log in which something was asked for. Raises OSError, UsageError."""
    found = _REQUEST.fullmatch(request.strip())
    if not found:
        raise UsageError("this is no whole request: copy all of request:... that the dry run has printed")
    incident, id_, asked = found.groups()
    archive = archive_of(incident)
    lines = (entry_of(line) for line in archive.raw(ACTION_LOG))
    open_ = (e for e in lines if e and e.get("id") == id_ and e.get("result") in ("dry", "refused"))
    line = next((e for e in open_ if _digest(e) == asked), None)
    if line is None:
        raise UsageError(f"{archive.place} has no such request, or not as it was asked: make the dry run again")
    return archive, line


def give(archive: Archive, line: Mapping[str, Any], key: Path, minutes: int, *, agreed: bool) -> tuple[Text, str]:
    """Approve what a line asks for, for so many minutes; what is said of it, and the approval, "" where it is refused.

    Either is a line of the action log before anybody hears of it. Raises OSError.
    """
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=minutes)
    config, who = settings.load(), str(line["who"])
    word = Approval(archive.incident, str(line["id"]), _digest(line), until, "", "")
    by, why = "", say("action.approval.declined", by=whoami())
    try:
        if agreed:
            signing = Signing(key_file=key.absolute(), keys=config.approvers)
            by, signature = sign.sign(word.signed, signing, "--key-file", "[approvers]")
            word = Approval(**word.__dict__ | {"by": by, "signature": signature})
            own = who.casefold() in _logins() or _is_of(by, {who.casefold()})
            key_ = "own" if own else "given"
            why, agreed = say(f"action.approval.{key_}", by=by, until=when(pd.Timestamp(until))), not own
    except UsageError as e:
        why, agreed = say("action.approval.not_given", detail=str(e)), False
    told = str(word) if agreed else ""
    new = {
        "id": uuid.uuid4().hex[:12],
        "time": pd.Timestamp.now("UTC").isoformat(timespec="milliseconds"),
        "who": whoami(),
        "result": "approved" if agreed else "refused",
        "why": record.text(why),
        "approved_by": by,
        "approval": told,
    }
    archive.add_line(ACTION_LOG, {k: v for k, v in line.items() if k != "previous"} | new)
    return why, told


def _wrong(rb: Context, asked: Mapping[str, Any], word: Approval) -> Text | None:
    """Why an approval is none for what is asked. Raises OSError, UsageError."""
    keys, log = settings.load().approvers, guard.logged(rb)
    if word.by not in keys:
        return say("action.approval.unknown", by=word.by)
    if not sign.holds(word.signed, word.by, word.signature, keys):
        return say("action.approval.forged", by=word.by)
    if _is_of(word.by, _logins()):
        return say("action.approval.own", by=word.by)
    if word.incident != rb.archive.incident or word.digest != _digest(asked):
        return say("action.approval.other", by=word.by, what=_differs(rb, asked, word))
    if word.job in set(log["job"]):
        return used(word)
    if word.until <= guard.latest(log):
        return say("action.approval.expired", by=word.by, until=when(pd.Timestamp(word.until)))
    return None


def _differs(rb: Context, asked: Mapping[str, Any], word: Approval) -> Text:
    """What an approval for something else was given for, as the log has it."""
    if word.incident != rb.archive.incident:
        return say("action.approval.differs.incident")
    lines = (entry_of(line) for line in rb.archive.raw(ACTION_LOG))
    approved = next((e for e in lines if e and e.get("id") == word.id and _digest(e) == word.digest), {})
    now, then = _bound(asked), _bound(approved)
    differs = [name for name in now if now[name] != then[name]] if approved else ["unknown"]
    return say(f"action.approval.differs.{differs[0]}")


def _bound(line: Mapping[str, Any]) -> dict[str, Any]:
    """Of a line in the action log, or one to be, what an approval is for."""
    stood = [[str(p.get("key")), p.get("ok"), p.get("waived")] for p in line.get("preconditions") or ()]
    others = sorted((s for s in stood if not s[0].startswith("action.approval.")), key=str)
    return {name: line.get(name) for name in _BOUND} | {"preconditions": others}


def _digest(line: Mapping[str, Any]) -> str:
    return digest(json.dumps(_bound(line), ensure_ascii=False, sort_keys=True).encode(errors="backslashreplace"))


def _is_of(by: str, logins: set[str]) -> bool:
    """Whether a name of [approvers], or its key, is of somebody with these logins."""
    config = settings.load()
    named = (pair for keys in (config.approvers, config.sign.keys) for pair in keys.items())
    theirs = {raw_key(public) for name, public in named if name.casefold() in logins}
    return by.casefold() in logins or raw_key(config.approvers[by]) in theirs


def _logins() -> set[str]:
    """Whoever runs this: by the environment, by the system, and before sudo."""
    names = [whoami(), os.environ.get("SUDO_USER", "")]
    with suppress(KeyError):
        names.append(pwd.getpwuid(os.getuid()).pw_name)
    return {name.casefold() for name in names if name}
