"""The commands `runbook erase`, `hold` and `retain`."""

from __future__ import annotations

from typing import Any

import click

from runbook_lib import settings
from runbook_lib.cli.common import existing, words
from runbook_lib.model.finding import say
from runbook_lib.usage import UsageError

_OUTPUT = click.option("--output", metavar="DIR|URL", help="where artifacts are  [default: outputs]")
_LANG = click.option("--lang", type=click.Choice(["ja", "en"]), help="of what is said  [default: en]")


@click.command()
@click.argument("user", type=words)
@click.option("--incident", metavar="ID", help="in this dossier alone  [default: in all of them]")
@_OUTPUT
@_LANG
def erase(user: str, incident: str | None, output: str | None, lang: str | None) -> int:
    """Make a person's tokens lead to nobody any more; no sealed file is touched. USER is an id, or - to be asked.

    Exit code 0: done; 1: done, and something is left that leads to the person: it says where.
    """
    from getpass import getpass

    from runbook_lib.archive import keeping
    from runbook_lib.masking import TOKEN

    config = settings.load()
    output = output or config.output
    user = (getpass("user id: ") if user == "-" else user).strip()
    if not user or TOKEN.fullmatch(user):
        raise UsageError("whom a token stands for is kept nowhere: name the person by the id, or - to be asked for it")
    archives = [existing(incident, output)] if incident else keeping.dossiers(output)
    traces = [keeping.trace(archive, user, config) for archive in archives]
    keeping.erase(output, user, traces)
    for trace in traces:
        if trace.tokens and trace.salted:
            _tell(lang, "erased", incident=trace.archive.incident, tokens=", ".join(trace.tokens))
    stays = [text for trace in traces if (text := trace.stays)]
    for text in stays:
        _tell(lang, text, err=True)
    _tell(lang, "erased_in", n=sum(t.salted for t in traces))
    _tell_seal(output)
    return int(bool(stays))


@click.command()
@click.argument("incident")
@click.option("--reason", type=words, required=True, metavar="TEXT", help="why, such as a case's number")
@click.option("--release", is_flag=True, help="it may be removed again when its time is over")
@_OUTPUT
@_LANG
def hold(incident: str, reason: str, release: bool, output: str | None, lang: str | None) -> int:
    """Keep a dossier whatever its age (a legal hold), or release it."""
    from runbook_lib.archive import keeping

    archive = existing(incident, output)
    keeping.hold(archive, reason, release=release)
    _tell(lang, "released" if release else "held", incident=incident, reason=reason.strip())
    _tell_seal(archive.output)
    return 0


@click.command()
@click.option("--execute", is_flag=True, help="remove them; without this it only says which")
@_OUTPUT
@_LANG
def retain(execute: bool, output: str | None, lang: str | None) -> int:
    """Remove the dossiers that are older than their targets' keep_days, but none on hold. A dry run without --execute.

    Exit code 0; 1: of some dossiers it can not be told.
    """
    import pandas as pd

    from runbook_lib.archive import keeping
    from runbook_lib.view import render

    config, now, unread, removed = settings.load(), pd.Timestamp.now("UTC"), 0, 0
    output = output or config.output
    holds = keeping.held(output)
    for archive in keeping.dossiers(output):
        found = keeping.old(archive, config, now)
        if not isinstance(found, keeping.Old):
            if found:
                _tell(lang, found, err=True)
                unread += 1
            continue
        told: dict[str, Any] = {"incident": archive.incident, "target": found.target, "days": found.keep_days}
        told["last"] = render.when(found.last)
        if archive.incident in holds:
            _tell(lang, "on_hold", incident=archive.incident, reason=holds[archive.incident])
        elif not execute:
            _tell(lang, "old", **told)
        elif keeping.remove(found, config, now):
            _tell(lang, "removed", **told)
            removed += 1
    if not execute:
        _tell(lang, "dry")
    elif removed:
        _tell_seal(output)
    return int(bool(unread))


def _tell(lang: str | None, what: Any, *, err: bool = False, **params: Any) -> None:
    from runbook_lib import messages

    text = say(f"keeping.{what}", **params) if isinstance(what, str) else what
    click.echo(messages.text(text, lang or settings.load().lang), err=err)


def _tell_seal(output: str) -> None:
    from runbook_lib.archive import keeping, seal

    click.echo(seal.told(keeping.journal(output)))
