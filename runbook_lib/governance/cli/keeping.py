"""The commands `runbook erase`, `hold` and `retain`."""

from __future__ import annotations

from typing import Any

import click

from runbook_lib.cli.common import echo_text, existing_archive, lang_option, output_option, words
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError
from runbook_lib.sources import settings


@click.command()
@click.argument("user", type=words)
@click.option("--incident", metavar="ID", help="only in this dossier  [default: in all dossiers]")
@output_option()
@lang_option()
def erase(user: str, incident: str | None, output: str) -> int:
    """Erase a person: no token can be derived any more.

    No sealed file is changed.

    USER is a user id, or - for a prompt. Exit code 0: done; 1: done, but some files still identify the person: they are
    listed.
    """
    from getpass import getpass

    from runbook_lib.governance import keeping
    from runbook_lib.privacy.masking import TOKEN

    config = settings.load()
    user = (getpass("user id: ") if user == "-" else user).strip()
    if not user or TOKEN.fullmatch(user):
        raise UsageError("USER must be a user id, not a token: the user of a token is stored nowhere; - prompts for it")
    archives = [existing_archive(incident, output)] if incident else keeping.dossiers(output)
    traces = [keeping.find_trace(archive, user, config) for archive in archives]
    keeping.erase(output, user, traces)
    for trace in traces:
        if trace.tokens and trace.salted:
            echo_text(say("keeping.erased", incident=trace.archive.incident, tokens=", ".join(trace.tokens)))
    stays = [text for trace in traces if (text := trace.stays)]
    echo_text(*stays, err=True)
    echo_text(say("keeping.erased_in", n=sum(t.salted for t in traces)))
    _print_seal(output)
    return int(bool(stays))


@click.command()
@click.argument("incident")
@click.option("--reason", type=words, required=True, metavar="TEXT", help="the reason, such as a case number")
@click.option("--release", is_flag=True, help="release the hold: retain may remove the dossier again")
@output_option()
@lang_option()
def hold(incident: str, reason: str, release: bool, output: str) -> int:
    """Keep a dossier from retain.

    Or release the hold.
    """
    from runbook_lib.governance import keeping

    archive = existing_archive(incident, output)
    keeping.hold(archive, reason, release=release)
    echo_text(say("keeping.released" if release else "keeping.held", incident=incident, reason=reason.strip()))
    _print_seal(archive.output)
    return 0


@click.command()
@click.option("--execute", is_flag=True, help="remove the dossiers; without it they are only listed")
@click.option("--clock-is-right", is_flag=True, help="remove also if the newest line is older than 40 days")
@output_option()
@lang_option()
def retain(execute: bool, clock_is_right: bool, output: str) -> int:
    """Remove dossiers older than keep_days.

    Those on hold stay. A dry run without --execute.

    Exit code 0: done; 1: the age or the target of some old dossiers is not known: they are listed and kept.
    """
    import pandas as pd

    from runbook_lib.governance import keeping
    from runbook_lib.view import render

    config, now, unread, removed = settings.load(), pd.Timestamp.now("UTC"), 0, 0
    holds = keeping.read_holds(output)
    if execute and not clock_is_right:
        keeping.check_clock(output, now)
    for archive in keeping.dossiers(output):
        found = keeping.find_expired(archive, config, now)
        if not isinstance(found, keeping.ExpiredDossier):
            if found:
                echo_text(found, err=True)
                unread += 1
            continue
        facts: dict[str, Any] = {"incident": archive.incident, "target": found.target, "days": found.keep_days}
        facts["last"] = render.when(found.last)
        if archive.incident in holds:
            echo_text(say("keeping.on_hold", incident=archive.incident, reason=holds[archive.incident]))
        elif not execute:
            echo_text(say("keeping.old", **facts))
        elif keeping.remove(found, config, now):
            echo_text(say("keeping.removed", **facts))
            removed += 1
    if not execute:
        echo_text(say("keeping.dry"))
    else:
        keeping.write_line(output, "retain", removed=removed)
        _print_seal(output)
    return int(bool(unread))


def _print_seal(output: str) -> None:
    from runbook_lib.dossier import seal
    from runbook_lib.governance import keeping

    click.echo(seal.seal_text(keeping.journal(output)))
