"""The command `runbook approve`: a second person's word for an action of somebody else."""

from __future__ import annotations

from pathlib import Path

import click

from runbook_lib import settings
from runbook_lib.cli.common import existing

#: Minutes: what was approved before lunch is not carried out the day after tomorrow.
_MOST, _USUAL = 24 * 60, 30


@click.command()
@click.argument("request")
@click.option(
    "--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
    help="your private key, whose public half stands in [approvers]",
)  # fmt: skip
@click.option("--minutes", type=click.IntRange(1, _MOST), default=_USUAL, show_default=True, help="until it expires")
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--output", metavar="DIR|URL", help="where the incident's folder is  [default: outputs]")
@click.option("--lang", type=click.Choice(["ja", "en"]), help="of what is said  [default: en]")
def approve(request: str, key_file: Path, minutes: int, yes: bool, output: str | None, lang: str | None) -> int:
    """Approve what a dry run of somebody else asks for; its last lines are for --approval, and the seal to keep.

    Exit code 0: approved; 2: refused.
    """
    from runbook_lib import messages
    from runbook_lib.actions import approval
    from runbook_lib.archive import seal
    from runbook_lib.model.finding import say
    from runbook_lib.view import render

    lang = lang or settings.load().lang
    archive, line = approval.requested(request, lambda incident: existing(incident, output))
    for shown in render.asked_lines(archive.incident, line, lang):
        click.echo(shown)
    try:
        agreed = yes or click.confirm(messages.text(say("action.approval.ask", minutes=minutes), lang))
    except click.Abort:  # nobody is there to be asked
        agreed = False
    why, word = approval.give(archive, line, key_file, minutes, agreed=agreed)
    click.echo(messages.text(why, lang))
    for told in filter(None, (word, seal.told(archive))):
        click.echo(told)
    return 0 if word else 2
