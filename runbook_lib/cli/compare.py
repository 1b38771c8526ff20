"""The commands `runbook diff`, `runbook baseline`, `runbook watch` and `runbook backtest`."""

from __future__ import annotations

from pathlib import Path

import click

from runbook_lib.cli import common, interrupts
from runbook_lib.cli.terminal import draw

_PAGE = click.option("--page", type=common.FILE, help="write the differences as an HTML page")


@click.command()
@click.argument("incident")
@click.argument("before", required=False)
@click.argument("after", required=False)
@common.output_option()
@_PAGE
@common.AS_JSON
@common.lang_option()
def diff(incident: str, before: str | None, after: str | None, output: str, page: Path | None, as_json: bool) -> int:
    """Show how two runs of an incident differ.

    The runs are named; by default the first and the last run of each section.

    A name may be shortened, and have another incident before it: OTHER/20261126T0312.
    """
    from runbook_lib.dossier import compare
    from runbook_lib.model.usage import UsageError
    from runbook_lib.view import render
    from runbook_lib.view.differences import Comparison

    if before and not after:
        raise UsageError("name two runs to compare, or none to compare the first and the last run of each section")
    archive = common.existing_archive(incident, output)
    if before and after:
        pairs = [(compare.archived(archive, before), compare.archived(archive, after))]
    else:
        pairs = compare.first_and_last(archive)
    told = [Comparison(*pair) for pair in pairs]
    if page:
        common.write_file(page, render.html("compared", incident=incident, told=told))
    if as_json:
        common.say_json([c.record() for c in told])
    else:
        click.echo("\n\n".join("\n".join(c.lines()) for c in told))
    return 0


@click.command()
@common.TARGET
@common.output_option()
@common.lang_option()
def baseline(target: str, output: str) -> int:
    """Store a target's healthy configuration.

    Only if the triage section is OK: later runs name what differs from it.

    Run it from a scheduler. Exit code: that of the section.
    """
    from runbook_lib.book import catalog
    from runbook_lib.dossier import baseline, compare
    from runbook_lib.model.finding import Status, say
    from runbook_lib.model.usage import UsageError
    from runbook_lib.store.archive import OutputError

    section = catalog.load().required_section("triage")
    rb = compare.run_section(section, target=target, incident_id=f"baseline-{target}")
    run = compare.live(rb)
    if run.status is Status.OK:
        if run.configuration is None or run.configuration.empty:
            raise UsageError(f"section {section} of {target} read no configuration: nothing was stored")
        try:
            baseline.keep(output, target, run.configuration, rb.context.as_of)
        except OSError as e:
            raise OutputError.of(f"the configuration could not be stored in {output}: {e.strerror or e}", e) from None
    key = "compare.kept" if run.status is Status.OK else "compare.not_kept"
    common.echo_text(say(key, section=section, target=target, status=run.status.name))
    return int(run.status.value)


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
    from runbook_lib.dossier import compare

    section = section or catalog.load().required_section("flow")
    interrupts.raise_on_signal()
    code: int | None = None
    try:
        for status, lines in compare.watching(section, every_s, target=target, lang=messages.language()):
            code = int(status.value)
            draw("\x1b[2J\x1b[1;1H")
            click.echo("\n".join([*lines, ""]))
    except KeyboardInterrupt:
        if code is None:
            raise
    return code or 0


@click.command()
@click.argument("incidents", nargs=-1, metavar="[INCIDENT]...")
@click.option(
    "--policy",
    "given",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    metavar="FILE|DIR",
    help="the other documents: slo.md, observations.md, runbook.toml for targets' own thresholds, or their folder",
)
@common.output_option()
@_PAGE
@common.AS_JSON
@common.lang_option()
def backtest(incidents: tuple[str, ...], given: Path, output: str, page: Path | None, as_json: bool) -> int:
    """Judge stored runs by other documents.

    All incidents if none is named.

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
        common.write_file(page, differences.backtest_page(report, str(given)))
    if as_json:
        common.say_json(report)
    else:
        click.echo("\n".join(differences.backtest_lines(report)))
    common.echo_text(*unread, err=True)
    return int(bool(report["flips"] or unread))
