"""The command `runbook archive backtest`: judge stored runs again."""

from __future__ import annotations

from pathlib import Path

import click

from runbook_lib.cli import common


@click.command()
@click.argument("incidents", nargs=-1, metavar="[INCIDENT]...")
@click.option(
    "--policy",
    "given",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE|DIR",
    help="other documents: slo.md, observations.md, runbook.toml for targets' own thresholds, or their folder",
)
@common.output_option()
@click.option("--page", type=common.FILE, help="write the differences as an HTML page")
@common.AS_JSON
@common.lang_option()
def backtest(incidents: tuple[str, ...], given: Path | None, output: str, page: Path | None, as_json: bool) -> int:
    """Judge stored runs by today's documents.

    Or by others (--policy). All incidents if none is named.

    Exit code 0: no result changes; 1: a result changes, or a run cannot be read.
    """
    from runbook_lib.dossier import backtest as past
    from runbook_lib.store.archive import Archive
    from runbook_lib.view import differences

    every = Archive(output, "").names()
    named = [common.existing_archive(i, output).incident for i in incidents]
    asked = named or [i for i in every if Archive(output, i).may_be_dossier()]
    report, unread = past.run(output, asked, given)
    if page:
        common.write_file(page, differences.backtest_page(report, given))
    if as_json:
        common.say_json(report)
    else:
        click.echo("\n".join(differences.backtest_lines(report)))
    common.echo_text(*unread, err=True)
    return int(bool(report["flips"] or unread))
