"""The command `runbook approve`: approve another person's action."""

from __future__ import annotations

from pathlib import Path

import click

from runbook_lib.cli.common import existing_archive, lang_option, output_option

#: Maximum and default validity of an approval in minutes.
_MAX_MINUTES, _DEFAULT_MINUTES = 24 * 60, 30


@click.command()
@click.argument("request")
@click.option(
    "--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
    help="your private key; its public key must be in [approvers]",
)  # fmt: skip
@click.option(
    "--minutes", type=click.IntRange(1, _MAX_MINUTES), default=_DEFAULT_MINUTES, show_default=True,
    help="validity of the approval",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="approve without a confirmation prompt")
@output_option("where the incident's folder is")
@lang_option()
def approve(request: str, key_file: Path, minutes: int, yes: bool, output: str) -> int:
    """Approve the REQUEST of another person's dry run.

    Prints the approval, for --approval, and the dossier's seal, to be kept elsewhere.
    Exit code 0: approved; 2: refused.
    """
    from runbook_lib.book import messages
    from runbook_lib.dossier import seal
    from runbook_lib.governance import approval
    from runbook_lib.model.finding import say
    from runbook_lib.sources import settings
    from runbook_lib.view import render

    archive, line = approval.find_request(request, lambda incident: existing_archive(incident, output))
    for shown in render.request_lines(archive.incident, line):
        click.echo(shown)
    try:
        agreed = yes or click.confirm(messages.text(say("action.approval.ask", minutes=minutes)))
    except click.Abort:  # no terminal
        agreed = False
    why, word = approval.approve_request(archive, line, key_file, minutes, settings.load(), agreed=agreed)
    click.echo(messages.text(why))
    for line_ in filter(None, (word, seal.seal_text(archive))):
        click.echo(line_)
    return 0 if word else 2
