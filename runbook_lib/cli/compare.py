"""The commands `runbook diff`, `runbook baseline` and `runbook watch`."""

from __future__ import annotations

from pathlib import Path

import click

from runbook_lib import interrupts, settings
from runbook_lib.cli.common import existing, say_json
from runbook_lib.cli.numbers import Number

_TARGET = click.option("--target", default="default", show_default=True, help="which system, from runbook.toml")
_OUTPUT = click.option("--output", metavar="DIR|URL", help="where artifacts are  [default: outputs]")
_LANG = click.option("--lang", type=click.Choice(["ja", "en"]), help="of what is said  [default: en]")


@click.command()
@click.argument("incident")
@click.argument("before", required=False)
@click.argument("after", required=False)
@_OUTPUT
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="what differs, as a page")
@click.option("--json", "as_json", is_flag=True, help="one JSON document and nothing else")
@_LANG
def diff(
    incident: str,
    before: str | None,
    after: str | None,
    output: str | None,
    page: Path | None,
    as_json: bool,
    lang: str | None,
) -> int:
    """Say what differs between two runs of an incident: by their names, or of each section the first and the last.

    A name may be shortened, and have another incident before it: OTHER/20261126T0312.
    """
    from runbook_lib.archive import compare
    from runbook_lib.store import OutputError, write_whole
    from runbook_lib.usage import UsageError
    from runbook_lib.view import render

    if before and not after:
        raise UsageError("two runs are compared: name both, or none for the first and the last of each section")
    archive, lang = existing(incident, output), lang or settings.load().lang
    pairs = [(before, after)] if before and after else compare.first_and_last(archive)
    told = [compare.between(compare.run(archive, a), compare.run(archive, b), lang) for a, b in pairs]
    if page:
        content = render.html("compared", lang, incident=incident, told=told).encode()
        try:
            write_whole(page.absolute(), content)
        except OSError as e:
            raise OutputError(f"the page could not be written to {page}: {e.strerror}") from None
    if as_json:
        say_json([c.record() for c in told])
    else:
        click.echo("\n\n".join("\n".join(c.lines()) for c in told))
    return 0


@click.command()
@click.argument("sections", nargs=-1, metavar="[SECTION]...")
@_TARGET
@_OUTPUT
@_LANG
def baseline(sections: tuple[str, ...], target: str, output: str | None, lang: str | None) -> int:
    """Keep what is usual for a target: the numbers of these sections (3 and 4.1), if they are OK. For a scheduler.

    `rb.compare("healthy")` holds a run against what was kept at the same hour of the week. Exit code: that of a run.
    """
    from runbook_lib import messages
    from runbook_lib.archive import compare
    from runbook_lib.model.finding import Status, say, worst
    from runbook_lib.store import OutputError

    config = settings.load()
    output, lang = output or config.output, lang or config.lang
    found = []
    for section in sections or ("3", "4.1"):
        rb = compare.answered(section, target=target, incident_id=f"baseline-{target}")
        status = rb.verdict().status
        found.append(status)
        if status is Status.OK:
            try:
                compare.keep(rb, output)
            except OSError as e:
                raise OutputError(f"what is usual could not be kept in {output}: {e.strerror or e}") from None
        key = "compare.kept" if status is Status.OK else "compare.not_kept"
        click.echo(messages.text(say(key, section=section, target=target, status=status.name), lang))
    return int(worst(found).value)


@click.command()
@click.argument("section", default="4.1")
@_TARGET
@click.option("--every", "every_s", type=Number(min=2, max=3600), default=10, show_default=True, metavar="SECONDS")
@_LANG
def watch(section: str, target: str, every_s: float, lang: str | None) -> int:
    """Look again and again until Ctrl-C: the strip, and what has changed since the last look. Nothing is kept.

    Exit code: that of the last look.
    """
    from runbook_lib.archive import compare

    interrupts.unwind()
    lang = lang or settings.load().lang
    code: int | None = None
    try:
        for status, lines in compare.watching(section, every_s, target=target, lang=lang):
            code = int(status.value)
            click.clear()
            click.echo("\n".join([*lines, ""]))
    except KeyboardInterrupt:
        if code is None:
            raise
    return code or 0
