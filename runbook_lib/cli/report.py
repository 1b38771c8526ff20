"""The command `runbook report`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runbook_lib.cli.common import AS_JSON, EX_UNREAD, FILE, echo_text, lang_option, output_option, say_json, write_file
from runbook_lib.model.times import duration, moment
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.urls import show_url

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@click.option(
    "--since", metavar="DATE|30d", help="incidents that began since a day (UTC), a time with its offset, or 30d ago"
)
@click.option("--until", metavar="DATE|30d", help="incidents that began before a time; a day is included")
@output_option()
@click.option("--page", type=FILE, help="write the report as an HTML page")
@click.option("--csv", "table", type=FILE, help="write a CSV file, one row per incident")
@AS_JSON
@lang_option()
def report(
    since: str | None, until: str | None, output: str, page: Path | None, table: Path | None, as_json: bool
) -> int:
    """Summarise the incidents of a period.

    It reads only the dossiers, no system. Exit code 0; 3: some could not be read.
    """
    import pandas as pd

    from runbook_lib.dossier import report as period
    from runbook_lib.model.finding import say
    from runbook_lib.view import render

    now = pd.Timestamp.now("UTC")
    begin, end = _parse_limit("--since", since, now), _parse_limit("--until", until, now)
    if begin is not None and end is not None and begin >= end:
        raise UsageError(f"--since {since} is not before --until {until}")
    incidents, unread = period.read(output, begin, end)
    said, rows = period.report(incidents), period.table(incidents)
    sums = period.summary_lines(said)
    shown = [t if t is None else render.when(t) for t in (begin, end)]
    title = say("report.title", output=show_url(output), since=shown[0], until=shown[1])
    if page:
        write_file(page, render.html("report", title=title, unread=unread, sums=sums, table=period.as_html(rows)))
    if table:
        write_file(table, period.as_csv(rows))
    if as_json:
        period_of = {"since": begin and begin.isoformat(), "until": end and end.isoformat()}
        say_json(period_of | said | {"unread": [text.params["incident"] for text in unread]})
    else:
        echo_text(title, *sums)
        if incidents:
            click.echo(f"\n{period.as_text(rows)}")
    echo_text(*unread, err=True)
    return EX_UNREAD if unread else 0


def _parse_limit(option: str, text: str | None, now: pd.Timestamp) -> pd.Timestamp | None:
    """Parse a limit of the period: a day (for --until its end), a time with its offset, or an age such as 30d.

    Raises UsageError.
    """
    import pandas as pd

    if text is None:
        return None
    ago, day = duration(text, bare=""), re.fullmatch(r"\d{4}-\d\d-\d\d", text)
    try:
        if ago is not None:
            return now - pd.Timedelta(seconds=ago)
        return moment(text, zoned=not day) + pd.Timedelta(days=int(bool(day) and option == "--until"))
    except (ValueError, OverflowError) as e:
        like = f"a day as {now:%Y-%m-%d}, a time as {now:%Y-%m-%dT%H:%M}Z, or how long ago as 12h or 30d"
        raise UsageError(f"{option} {text}: {e}; write {like}") from None
