"""Settings and options of version 0.6 that have gone; each is refused with what to do instead."""

from __future__ import annotations

from runbook_lib.model.usage import UsageError

_BY_HAND = "remove it; whoever approves an action decides when and how often to act"
_LOGIN = "remove it; a person is known by the login"
_UNSIGNED = "remove it; keep the printed seal elsewhere, and give it to `runbook verify --checkpoint`"
_OVERRIDE = "no rule can be passed: run the command that the dry run shows by hand, and record it by `runbook note`"

#: What to do instead, by the name of the setting or option.
_INSTEAD = {
    "freeze": _BY_HAND,
    "actions_per_hour": _BY_HAND,
    "break_glass": _OVERRIDE,
    "approvers": f"{_LOGIN}, and anyone who can write to the output may approve another person's action",
    "sign": _UNSIGNED,
    "--break-glass": _OVERRIDE,
    "--key-file": _LOGIN,
    "--signed": _UNSIGNED,
    "--approval": "leave it out; the approval is found in the incident's action log",
}


def refuse(name: str, where: str = "") -> None:
    """Raise UsageError, one line that says what to do instead, if the setting or option of that name has gone."""
    if name in _INSTEAD:
        raise UsageError(f"{where}{name} has gone: {_INSTEAD[name]}")
