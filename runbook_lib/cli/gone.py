"""Settings, options and commands of version 0.6 that have gone; each is refused with what to do instead."""

from __future__ import annotations

import re

from runbook_lib.model.usage import UsageError

#: The settings that named where a secret is.
_WHERE = re.compile(r"(\w+_(?:url|urls|password|token))_(env|file|command)")
_HOW = {"env": "env:VARIABLE", "file": "file:PATH", "command": "cmd:PROGRAM ARGUMENT ..."}

_BY_HAND = "remove it; whoever approves an action decides when and how often to act"
_LOGIN = "remove it; a person is known by the login"
_UNSIGNED = "remove it; keep the printed seal elsewhere, and give it to `runbook verify --checkpoint`"
_OVERRIDE = "no rule can be passed: run the command that the dry run shows by hand, and record it by `runbook note`"
_PROXY = "remove it; a proxy in front adds the token of RUNBOOK_RECEIVER_TOKEN (`Authorization: Bearer`)"
_HMAC = "unset it; senders and readers need the token of RUNBOOK_RECEIVER_TOKEN (`Authorization: Bearer`)"
_ANNOTATIONS = (
    "remove it; the incident's page has the course of its verdicts, and `grafana_link` still leads to a dashboard"
)
_RETENTION = "delete old dossiers by `find` or a lifecycle rule of the bucket (docs/operations.md)"

_OF_PAST = "leave it out; a run is of the present, and section 7 takes a window: -p from_time=TIME -p to_time=TIME"

#: What to do instead, by the name of the setting, option or command.
_INSTEAD = {
    "freeze": _BY_HAND,
    "actions_per_hour": _BY_HAND,
    "break_glass": _OVERRIDE,
    "approvers": f"{_LOGIN}, and anyone who can write to the output may approve another person's action",
    "sign": _UNSIGNED,
    "--break-glass": _OVERRIDE,
    "--key-file": _LOGIN,
    "--signed": _UNSIGNED,
    **dict.fromkeys(("grafana_url", "grafana_token", "grafana_token_env", "grafana_token_file"), _ANNOTATIONS),
    "--format": "use --json; `runbook serve` has Prometheus metrics",
    "receiver_url": "write its address as destination_url",
    "account": "`runbook event ID` traces one event; 5.3 counts the lost ones: `runbook run 5.3`",
    "drill": "`runbook sandbox fault --unknown SEED` breaks something, and `runbook sandbox reveal` says what it was",
    "diff": "`runbook watch` says what changed since the last sample; the page of an incident has its course",
    **dict.fromkeys(("receiver_hmac", "receiver_hmac_file"), _HMAC),
    **dict.fromkeys(("user_header", "trusted_proxies"), _PROXY),
    "keep_days": f"remove it; {_RETENTION}",
    "erase": "`runbook forget INCIDENT` deletes the salt of an incident: its tokens lead to nobody any more",
    "hold": "hold a dossier by the bucket's own object lock, or move it out of the folder that `find` cleans",
    "retain": _RETENTION,
    "--picture": "leave it out; `runbook event ID` prints the times of the stages, and `--json` has them for programs",
    "--as-of": _OF_PAST,
    "as_of": _OF_PAST,
    "--approval": "leave it out; the approval is found in the incident's action log",
}


def refuse(name: str, where: str = "") -> None:
    """Raise UsageError, one line that says what to do instead, if what has that name has gone."""
    if name in _INSTEAD:
        raise UsageError(f"{where}{name} has gone: {_INSTEAD[name]}")
    if found := _WHERE.fullmatch(name):
        raise UsageError(f'{where}{name} has gone: write {found[1]} as "{_HOW[found[2]]}"')
