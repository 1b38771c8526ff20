"""The commands `runbook event` and `runbook account`: where one event is, and whether each is in one place."""

from __future__ import annotations

from getpass import getpass
from pathlib import Path
from typing import Any

import click

from runbook_lib.cli.common import say_json, words

_OPTIONS = (
    click.option("--target", default="default", show_default=True, help="which system, from runbook.toml"),
    click.option("--incident", default="adhoc", show_default=True, help="whose tokens stand for people"),
    click.option("--lang", type=click.Choice(["ja", "en"]), help="of what is said  [default: en]"),
    click.option("--json", "as_json", is_flag=True, help="one JSON document and nothing else"),
)


def _options(f: Any) -> Any:
    for option in _OPTIONS:
        f = option(f)
    return f


@click.command()
@click.argument("id", required=False, type=words)
@click.option("--user", type=words, help="a person's id, a token of the incident, or - to be asked for it")
@click.option("--window", type=click.IntRange(1, 7 * 24 * 60), default=24 * 60, show_default=True, metavar="MINUTES",
              help="of a user's events, and of notifications by their trace")  # fmt: skip
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="write the timeline as a PNG")
@_options
def event(id: str | None, user: str | None, window: int, picture: Path | None, as_json: bool, **options: Any) -> int:
    """Follow one event, by the id of it, its notification, its trace or its audit row; or a user's."""
    from runbook_lib.packs.entitlement import follow

    rb = _session(window, **options)
    if user == "-":
        user = getpass("user id: ")
    found = follow.event(rb, id, user=user)
    if picture and (image := found.picture()):
        picture.write_bytes(image)
    if as_json:
        say_json(found.record())
    else:
        click.echo("\n".join(found.lines()).rstrip())
    return int(found.status.value)


@click.command()
@click.option("--window", type=click.IntRange(1, 24 * 60), default=60, show_default=True, metavar="MINUTES",
              help="the events that were made in it")  # fmt: skip
@click.option("--as-of", metavar="TIME", help="where the window ends  [default: now]; where they are is told of now")
@_options
def account(window: int, as_of: str | None, as_json: bool, **options: Any) -> int:
    """The balance: each event of a window in exactly one place, and what is in none, by its id."""
    from runbook_lib.packs.entitlement import account as accounts

    found = accounts.account(_session(window, as_of=as_of, **options))
    if as_json:
        say_json(found.record())
    else:
        click.echo("\n".join(found.lines()))
    return int(found.status.value)


def _session(window: int, *, target: str, incident: str, lang: str | None, **more: Any) -> Any:
    from runbook_lib import settings
    from runbook_lib.session import quiet_session

    lang = lang or settings.load().lang
    return quiet_session("3", target=target, incident_id=incident, lang=lang, window_minutes=window, **more)
