"""`runbook note`, `forget`, `dossier`, `incidents` and `verify`: an incident's folder."""

from __future__ import annotations

from contextlib import suppress

import click

from runbook_lib.cli import common
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError
from runbook_lib.sources import settings


@click.command()
@click.argument("incident")
@click.argument("text", type=common.words)
@click.option("--new", is_flag=True, help="create the incident's folder if it does not exist")
@common.output_option("folder or URL of the incidents")
def note(incident: str, text: str, new: bool, output: str) -> int:
    """Add a line to an incident's timeline."""
    from runbook_lib.book import messages
    from runbook_lib.book.parameters import validate, whoami
    from runbook_lib.dossier import seal
    from runbook_lib.notebook.notes import keep_note
    from runbook_lib.privacy.masking import Masker
    from runbook_lib.store.archive import Archive, OutputError

    incident = common.resolve_incident(incident, output)
    validate({"incident_id": incident})
    config = settings.load()
    archive = Archive(output, incident)
    try:
        if not new and not archive.names():
            raise UsageError(f"{common.unknown_incident_text(archive)} (--new creates one)")
    except OSError as e:
        raise OutputError(f"the note could not be written to {archive.place}: {e.strerror or e}") from None
    if text.strip():
        archive.prepare()  # before the first token is made
    # People under the tokens of the incident's runs, which are of one target as a rule.
    urls: list[str] = []
    with suppress(UsageError, ValueError):
        if len(about := archive.targets()) == 1:
            urls = config.target(about.pop()).urls()
    kept = keep_note(archive, Masker.of(urls, incident, archive.salt).scrub_once(text), whoami())
    with messages.using(config.lang):
        common.echo_text(kept)
    click.echo(seal.seal_text(archive))
    return 0


@click.command()
@click.argument("incident")
@common.output_option("folder or URL of the incidents")
@common.lang_option()
def forget(incident: str, output: str) -> int:
    """Delete an incident's salt: its tokens lead to no user any more.

    No sealed file is changed; the timeline gets a line. A later run in the incident makes other tokens.
    """
    from runbook_lib.book import messages
    from runbook_lib.book.parameters import whoami
    from runbook_lib.dossier import seal
    from runbook_lib.notebook.notes import keep_note
    from runbook_lib.store.archive import Archive

    archive = common.existing_archive(incident, output)
    result = say("forget.done" if archive.forget() else "forget.already", incident=archive.incident)
    common.echo_text(result)
    if not archive.is_earlier():
        # The line itself needs no salt.
        keep_note(Archive(output, archive.incident, people=False), messages.text(result), whoami())
        click.echo(seal.seal_text(archive))
    return 0


@click.command(name="dossier")
@click.argument("incident")
@common.output_option()
@common.lang_option("language of the page")
def dossier_(incident: str, output: str) -> int:
    """Rebuild an incident's index page and print its path."""
    from runbook_lib.dossier import overview

    archive = common.existing_archive(incident, output)
    overview.write_index(archive)
    click.echo(f"{archive.place}/{overview.INDEX}")
    return 0


@click.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="how many, the newest ones")
@common.output_option("folder or URL of the incidents")
@common.lang_option()
@common.AS_JSON
def incidents(limit: int, output: str, as_json: bool) -> int:
    """List the newest incidents.

    Each with its begin, its system, its last verdict and place. Exit code 0; 3: some could not be read.
    """
    from runbook_lib.dossier import report
    from runbook_lib.store.archive import Archive
    from runbook_lib.view import render

    found, unread = report.read(output, None, None, only=Archive(output, "").newest(limit))
    if as_json:
        named = [{"incident": text.params["incident"], "unread": text.params["detail"]} for text in unread]
        common.say_json([*(i.row() | {"begun": i.begun.isoformat()} for i in found), *named])
    else:
        listed = [[i.incident, render.when(i.begun), i.target, i.last or "-", " / ".join(i.place)] for i in found]
        for line in render.columns(listed) if listed else ():
            click.echo(line)
    common.echo_text(*unread, err=True)
    return common.EX_UNREAD if unread else 0


@click.command()
@click.argument("incident")
@click.option("--checkpoint", "checkpoints", multiple=True, metavar="SEAL|FILE|URL", help="a seal kept elsewhere")
@common.output_option()
@common.lang_option()
def verify(incident: str, checkpoints: tuple[str, ...], output: str) -> int:
    """Verify a dossier's hash chain.

    And the seals that were kept elsewhere (--checkpoint).

    Exit code 0: unchanged; 2: changed; 3: no change found, but some lines or files are not covered by a checkpoint, or
    could not be read.
    """
    from runbook_lib.book.parameters import validate
    from runbook_lib.dossier import seal
    from runbook_lib.store.archive import Archive

    validate({"incident_id": incident})
    kept = [head for source in checkpoints for head in seal.read_checkpoints(incident, source)]
    # If the dossier is gone, a checkpoint still shows that it existed.
    archive = Archive(output, incident) if kept else common.existing_archive(incident, output)
    if archive.is_earlier():
        common.echo_text(say("seal.earlier", place=archive.place), err=True)
        return 3
    return common.say_verified(seal.check(archive, kept), archive.place)
