"""Approvals: an action on a target with `approval = true` needs an approval by a person with another login.

A dry run prints a request, `request:<incident>:<id of the dry run>:<digest of what it asks for>`. `runbook approve`
adds a line to the incident's action log: who approved what, and until when. The execution finds that line. Each dry run
is executed once: the target's ledger lists those that were (`ledger`).

The digest covers the fields `_BOUND` and the state of each precondition: its key, whether it holds, the identity of the
system that it checked. The preconditions' numbers change between two samples and are left out.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from runbook_lib.book.parameters import UNKNOWN, whoami
from runbook_lib.checks.context import Context
from runbook_lib.governance.ledger import Ledger
from runbook_lib.model.finding import Text, say
from runbook_lib.model.outcome import Precondition
from runbook_lib.model.times import moment, now
from runbook_lib.model.usage import UsageError, error_line
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION, LOG, Archive
from runbook_lib.store.files import digest
from runbook_lib.view.render import when

#: The fields of an action log line that an approval is bound to, together with its preconditions and the incident.
_BOUND = ("target", "section", "who", "action", "what", "command")
_REQUEST = re.compile(r"request:([^\s:/]+):([0-9a-f]{12}):([0-9a-f]{64})")


def check_approval(rb: Context, id_: str, asked: Mapping[str, Any]) -> tuple[Precondition, str, str]:
    """Check whether another person has approved the action `asked`, a future line of the action log.

    Returns the precondition, who approved, and the job key of the action that uses the approval; "" for both unless it
    holds. Without an approval the precondition's text says how to request one.
    """
    target = rb.parameters.target
    if asked["who"] == UNKNOWN:
        return Precondition(say("action.approval.nobody"), ok=False), "", ""
    try:
        used = {line.job for line in Ledger(rb).read()}
        given = [line for line in rb.archive.lines(ACTION) if line["result"] == "approved"]
        rejections = list[Text | None]()
        for line in reversed(given):
            job, by, until = _job(line["approval"]), str(line["approved_by"]), moment(line["until"])
            rejections.append(_find_rejection(rb, asked, line, used=job in used, until=until))
            if rejections[-1] is None:
                return Precondition(say("action.approval.given", by=by, until=when(until)), ok=True), by, job
    except (OSError, UsageError) as e:
        return Precondition(say("action.approval.unseen", detail=error_line(e)), ok=None), "", ""
    except (LookupError, TypeError, ValueError, AttributeError) as e:
        wrong = f"{rb.archive.place}/{LOG}: an approval in it is not valid ({e}): run `runbook verify`"
        return Precondition(say("action.approval.unseen", detail=wrong), ok=None), "", ""
    ready = all(p["ok"] is True or (p["ok"] is None and p["warns"]) for p in asked["preconditions"])
    request = f"request:{rb.archive.incident}:{id_}:{_request_digest(asked)}" if ready else None
    why = next(iter(rejections), None)
    return Precondition(say("action.approval.needed", target=target, request=request, why=why), ok=False), "", ""


def find_request(request: str, archive_of: Callable[[str], Archive]) -> tuple[Archive, dict[str, Any]]:
    """Return a request's archive and the action log line of its dry run. Raises OSError, UsageError."""
    found = _REQUEST.fullmatch(request.strip())
    if not found:
        raise UsageError("the request is not complete: copy all of request:... from the output of the dry run")
    incident, id_, asked = found.groups()
    archive = archive_of(incident)
    open_ = [e for e in archive.lines(ACTION) if e.get("id") == id_ and e.get("result") in ("dry", "refused")]
    line = next((e for e in open_ if _request_digest(e) == asked), None)
    if line is None:
        raise UsageError(f"{archive.place} has no such request, or its line was changed: make the dry run again")
    return archive, line


def approve_request(archive: Archive, line: Mapping[str, Any], minutes: int, *, agreed: bool) -> tuple[Text, bool]:
    """Approve the request of a line for so many minutes; return a text about it, and whether it is approved.

    Both cases are written to the action log before this returns. Raises OSError.
    """
    by, until = whoami(), pd.Timestamp.now("UTC").floor("s") + pd.Timedelta(minutes=minutes)
    why = say("action.approval.given", by=by, until=when(until))
    if not agreed:
        why = say("action.approval.declined", by=by)
    elif by == UNKNOWN:
        why, agreed = say("action.approval.nobody"), False
    elif str(line["who"]).casefold() in _own_logins():
        why, agreed = say("action.approval.own", by=by), False
    new = {
        "id": uuid.uuid4().hex[:12],
        "time": now(),
        "who": by,
        "asked_by": line["who"],
        "result": "approved" if agreed else "refused",
        "why": record.text(why),
        "approved_by": by,
        "approval": f"request:{archive.incident}:{line['id']}:{_request_digest(line)}",
        "until": until.isoformat(),
    }
    archive.add_line(ACTION, {k: v for k, v in line.items() if k != "previous"} | new)
    return why, agreed


def _job(request: str) -> str:
    """Return the job key of an action that uses the approval of a request: one dry run is executed once."""
    return request.rpartition(":")[0]


def _find_rejection(
    rb: Context, asked: Mapping[str, Any], line: Mapping[str, Any], *, used: bool, until: pd.Timestamp
) -> Text | None:
    """Return why the approval in a line is not one of the action `asked`; None if it is."""
    by = str(line["approved_by"])
    if by != line["who"] or by.casefold() in {str(asked["who"]).casefold(), *_own_logins()}:
        return say("action.approval.own", by=by)
    if differs := _find_difference(rb, asked, line):
        return say("action.approval.other", by=by, what=differs)
    if used:
        return say("action.approval.used", by=by)
    if until <= pd.Timestamp.now("UTC"):
        return say("action.approval.expired", by=by, until=when(until))
    return None


def _find_difference(rb: Context, asked: Mapping[str, Any], line: Mapping[str, Any]) -> Text | None:
    """Return the first field in which the approved action differs from the one asked for; None if none does."""
    if line["approval"].split(":")[1] != rb.archive.incident:
        return say("action.approval.differs.incident")
    today, then = _bound_values(asked), _bound_values({**line, "who": line["asked_by"]})
    name = next((name for name in today if today[name] != then[name]), None)
    known, new = list(then["preconditions"]), None
    for precondition in _preconditions(asked):
        if (state := _bound_state(precondition)) in known:
            known.remove(state)
        else:
            new = new or record.text_from_json(precondition["text"])
    return say(f"action.approval.differs.{name}", now=new) if name else None


def _bound_values(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an action log line that an approval is bound to."""
    states = sorted(map(_bound_state, _preconditions(line)), key=str)
    return {name: line.get(name) for name in _BOUND} | {"preconditions": states}


def _preconditions(line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the preconditions of an action log line, without that of the approval itself."""
    return [p for p in line.get("preconditions") or () if not str(p.get("key")).startswith("action.approval.")]


def _bound_state(precondition: Mapping[str, Any]) -> list[Any]:
    return [str(precondition.get("key")), *(precondition.get(name) for name in ("ok", "identity"))]


def _request_digest(line: Mapping[str, Any]) -> str:
    return digest(json.dumps(_bound_values(line), ensure_ascii=False, sort_keys=True).encode(errors="backslashreplace"))


def _own_logins() -> set[str]:
    """Return the present user's logins: from the system, and from before sudo."""
    return {name.casefold() for name in (whoami(), os.environ.get("SUDO_USER")) if name}
