"""The command `runbook event`: the trace of an event, or of a user's newest events."""

from __future__ import annotations

from getpass import getpass
from typing import Any

import click

from runbook_lib.cli.common import (
    AS_JSON,
    TARGET,
    incident_option,
    lang_option,
    resolve_incident,
    say_json,
    words,
)

_OPTIONS = (
    TARGET,
    incident_option("incident whose tokens mask the user ids"),
    lang_option(),
    AS_JSON,
)


def _add_options(f: Any) -> Any:
    for option in reversed(_OPTIONS):
        f = option(f)
    return f


@click.command()
@click.argument("id", required=False, type=words)
@click.option("--user", type=words, help="user id, token of the incident, or - to be asked for it")
@click.option("--window", type=click.IntRange(1, 7 * 24 * 60), default=24 * 60, show_default=True, metavar="MINUTES",
              help="window for a user's events, and for notifications found by trace id")  # fmt: skip
@_add_options
def event(id: str | None, user: str | None, window: int, as_json: bool, **options: Any) -> int:
    """Trace one event, or a user's newest events.

    The id is of an event, its notification, trace or audit row.
    """
    from runbook_lib.packs.entitlement import event_lookup

    rb = _open_session(window, **options)
    if user == "-":
        user = getpass("user id: ")
    found = event_lookup.event(rb, id, user=user)
    if as_json:
        say_json(found.record())
    else:
        click.echo("\n".join(found.lines()).rstrip())
    return int(found.status.value)


def _open_session(window: int, *, target: str, incident: str, **more: Any) -> Any:
    from runbook_lib.book import messages
    from runbook_lib.notebook.session import quiet_session
    from runbook_lib.sources import settings

    incident = resolve_incident(incident, settings.load().output)
    named = {"target": target, "incident_id": incident, "lang": messages.language()}
    return quiet_session("3", window_minutes=window, **named, **more)
