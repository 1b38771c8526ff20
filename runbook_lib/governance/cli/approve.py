"""The command `runbook approve`: approve another person's action."""

from __future__ import annotations

import click

from runbook_lib.cli.common import echo_text, existing_archive, lang_option, output_option

#: Maximum and default validity of an approval in minutes.
_MAX_MINUTES, _DEFAULT_MINUTES = 24 * 60, 30


@click.command()
@click.argument("request")
@click.option(
    "--minutes", type=click.IntRange(1, _MAX_MINUTES), default=_DEFAULT_MINUTES, show_default=True,
    help="validity of the approval",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="approve without a confirmation prompt")
@output_option("where the incident's folder is")
@lang_option()
def approve(request: str, minutes: int, yes: bool, output: str) -> int:
    """Approve another person's REQUEST, under your own login.

    The approval is a line of the incident's action log. Prints the dossier's seal, to be kept elsewhere.
    Exit code 0: approved; 2: refused.
    """
    from runbook_lib.book import messages
    from runbook_lib.dossier import seal
    from runbook_lib.governance import approval
    from runbook_lib.model.finding import say
    from runbook_lib.view import render

    archive, line = approval.find_request(request, lambda incident: existing_archive(incident, output))
    for shown in render.request_lines(archive.incident, line):
        click.echo(shown)
    try:
        agreed = yes or click.confirm(messages.text(say("action.approval.ask", minutes=minutes)))
    except click.Abort:  # no terminal
        agreed = False
    why, agreed = approval.approve_request(archive, line, minutes, agreed=agreed)
    echo_text(why)
    click.echo(seal.seal_text(archive))
    return 0 if agreed else 2
