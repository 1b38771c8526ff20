"""`runbook postmortem`: the draft of a postmortem, and what it lacks."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import click

from runbook_lib.cli import common
from runbook_lib.model.finding import say
from runbook_lib.sources import settings


@click.command(name="postmortem")
@click.argument("incident")
@click.option("--target", help="the system, a target of runbook.toml  [default: that of the incident]")
@click.option("-p", "pairs", type=common.words, multiple=True, metavar="NAME=VALUE", help="a parameter of its notebook")
@common.output_option()
@common.DEADLINE
@common.lang_option("language of the draft")
@click.option("--check", is_flag=True, help="run nothing: name the mandatory items that are missing (exit code 2)")
@common.AS_JSON
def postmortem_(incident: str, check: bool, output: str, as_json: bool, **options: Any) -> int:
    """Draft a postmortem, or check it.

    A draft replaces no other: the second is postmortem-2.md. postmortem.md is checked.
    """
    archive = common.existing_archive(incident, output)
    if check:
        return _check_postmortem(archive, as_json)
    return _draft_postmortem(archive, as_json, **options)


def _check_postmortem(archive: Any, as_json: bool) -> int:
    from runbook_lib.book import catalog, messages
    from runbook_lib.dossier import mandatory, postmortem

    draft, file = postmortem.read_draft(archive), f"{archive.place}/{mandatory.MARKDOWN}"
    if draft is None:
        common.echo_text(say("postmortem.no_draft", incident=archive.incident), err=True)
    else:
        with suppress(OSError):
            postmortem.refresh_page(archive, draft)
    missing = mandatory.missing(draft or "", catalog.load())
    if as_json:
        lacks = [{"number": m.number, "item": m.item, "problem": messages.text(m.problem)} for m in missing]
        common.say_json({"incident": archive.incident, "complete": not missing, "missing": lacks})
    elif missing:
        for m in missing:
            item = say(f"postmortem.item.{m.item}")
            common.echo_text(say("postmortem.lacks", number=m.number, item=item, problem=m.problem), err=True)
    else:
        common.echo_text(say("postmortem.complete", file=file))
    return 2 if missing else 0


def _draft_postmortem(
    archive: Any, as_json: bool, *, target: str | None, pairs: tuple[str, ...], deadline_s: float
) -> int:
    from runbook_lib.runs import forks

    forks.context()
    from runbook_lib.book import catalog, messages
    from runbook_lib.cli.progress import ProgressDisplay
    from runbook_lib.dossier import overview, postmortem, seal
    from runbook_lib.runs import batch, investigation
    from runbook_lib.view import render

    config, book = settings.load(), catalog.load()
    target = target or postmortem.target_of(archive)
    until = time.monotonic() + deadline_s
    values = common.parse_parameters(pairs) | {"target": target, "incident_id": archive.incident}
    values["lang"] = messages.language()
    display = ProgressDisplay()
    request = batch.request(book.required_section("postmortem"), values, config, book, archive.output, until)
    results = batch.run_sections([request], investigation.tell_progress(display.hear, book))
    display.end()
    result, verdict = results[0], batch.combine_verdict(results, book)
    try:
        written = postmortem.write_from_run(archive, result, target)
        overview.write_index(archive)
    except OSError as e:
        raise click.ClickException(
            f"the postmortem could not be written to {archive.place}: {e.strerror or e}"
        ) from None
    if as_json:
        said = overview.document(archive.incident, target, results, verdict)
        common.say_json(said | {"postmortem": vars(written), "seal": seal.seal_text(archive)})
    else:
        for finding in result.findings:
            click.echo(render.finding_line(finding))
        click.echo(f"\n{written.markdown}\n{written.page}\n{seal.seal_text(archive)}")
    if result.problem:
        click.echo(f"runbook: section {result.section}: {result.problem}", err=True)
    return int(verdict.status.value)
