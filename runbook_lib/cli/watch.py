"""The command `runbook watch`: run a section repeatedly and show what changed."""

from __future__ import annotations

import click

from runbook_lib.cli import common, interrupts
from runbook_lib.cli.terminal import draw


@click.command()
@click.argument("section", default="")
@common.TARGET
@click.option(
    "--every",
    "every_s",
    type=common.Duration(min=2, max=3600),
    default=10,
    show_default=True,
    help="time between two samples",
)
@common.lang_option()
def watch(section: str, target: str, every_s: float) -> int:
    """Run a section repeatedly until Ctrl-C; show what changed.

    It shows the strip and what changed since the last sample. Nothing is saved.

    Exit code: that of the last sample.
    """
    from runbook_lib.book import catalog, messages
    from runbook_lib.dossier import watch as samples

    section = section or catalog.load().required_section("flow")
    interrupts.raise_on_signal()
    code: int | None = None
    try:
        for status, lines in samples.watching(section, every_s, target=target, lang=messages.language()):
            code = int(status.value)
            draw("\x1b[2J\x1b[1;1H")
            click.echo("\n".join([*lines, ""]))
    except KeyboardInterrupt:
        if code is None:
            raise
    return code or 0
