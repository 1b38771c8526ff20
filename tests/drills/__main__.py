"""Measure the runbook on random incidents in the sandbox.

python -m tests.drills play       random faults: `make drills`
python -m tests.drills knobs      random changes: `make knobs`
python -m tests.drills report     the page of their results
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain, compress
from operator import not_
from pathlib import Path
from typing import Any

import click

from runbook_lib.book import catalog
from runbook_lib.cli.common import Duration
from runbook_lib.gameday.sandbox.faults import CATALOGUE
from runbook_lib.store.files import write_whole
from tests.bench import supervise

from . import knobs as changes
from . import play as plays
from . import report as pages
from .play import DrillClock
from .results import read, write
from .scenario import Scenario, draw

FILE = click.Path(dir_okay=False, path_type=Path)


def _parse_seeds(_context: click.Context, _option: click.Parameter, value: str) -> range:
    """Parse seeds written as 17 or 1000:1200, the last not among them."""
    first, colon, last = value.partition(":")
    try:
        found = range(int(first), int(last) if colon else int(first) + 1)
    except ValueError:
        found = range(0)
    if not found or found.start < 0:
        raise click.BadParameter(f"{value!r} names no seeds: write them as 17 or 1000:1200")
    return found


_at_once = click.option("--at-once", type=click.IntRange(1, 16), default=1, help="sandboxes side by side")


@click.group(context_settings={"show_default": True})
def drills() -> None:
    """Play random incidents, and judge what the runbook says."""


@drills.command()
@click.option("--seeds", callback=_parse_seeds, default="1:27", metavar="N|N:M", help="which drills")
@click.option(
    "--results",
    type=FILE,
    default="build/drills.jsonl",
    help="a line per drill, compressed in a file named .gz; seeds that have one are not played again",
)
@_at_once
@click.option("--longest", type=Duration(2, 600), default=180, help="time from the onset to the latest first look")
@click.option(
    "--after", "after_s", type=Duration(1, 600), default=40, help="time that the flow is given after a proposal"
)
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="a folder for the drills' artifacts")
def play(seeds: range, results: Path, at_once: int, longest: float, after_s: float, keep: Path | None) -> None:
    """Play random faults, each with a triage and a twin."""
    kinds, undone = [fault.name for fault in CATALOGUE], {fault.name for fault in CATALOGUE if fault.undoable}
    book, kept = catalog.load(), keep.absolute() if keep else None
    play_all(
        [draw(seed, kinds, longest, undone) for seed in seeds],
        results,
        at_once,
        lambda scenario, clock: plays.drill(scenario, book, clock, after_s, kept),
    )


@drills.command()
@click.option("--plays", type=click.IntRange(1), default=40, help="at most so many: the first of the seeds")
@click.option("--seeds", callback=_parse_seeds, default="1:1000", metavar="N|N:M", help="which plays")
@click.option("--results", type=FILE, default="build/knobs.jsonl", help="a line per play")
@_at_once
def knobs(plays: int, seeds: range, results: Path, at_once: int) -> None:
    """Change random settings, rights and objects, and judge.

    What can be changed is read from the servers: there is no list of faults.
    """
    play_all([changes.scenario(seed) for seed in seeds[:plays]], results, at_once, changes.drill)


@drills.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--write", "page", type=FILE, help="the page goes there")
def report(results: tuple[Path, ...], page: Path | None) -> None:
    """Print the page on files of results, in Markdown."""
    files = [read(file) for file in results]
    of_knobs = [any("knobs" in line for line in lines) for lines in files]
    text = pages.report(*(chain(*compress(files, kind)) for kind in (map(not_, of_knobs), of_knobs)))
    if page:
        write_whole(page.absolute(), text.encode())
    else:
        click.echo(text, nl=False)


def play_all(
    scenarios: Sequence[Scenario],
    results: Path,
    at_once: int,
    play_one: Callable[[Scenario, DrillClock], dict[str, Any]],
) -> None:
    """Play those of which the file has no line, and add theirs as they end.

    If this is interrupted, the drills end and remove what they have started.
    """
    lines, clock = read(results), DrillClock()
    done = {line["seed"] for line in lines if "error" not in line}
    left = [scenario for scenario in scenarios if scenario.seed not in done]
    click.echo(f"{len(left)} to play, {len(scenarios) - len(left)} already played; one result line each in {results}")
    results.absolute().parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(at_once) as lanes:
        try:
            for future in as_completed([lanes.submit(play_one, scenario, clock) for scenario in left]):
                line = json.loads(without_paths(json.dumps(future.result(), ensure_ascii=False)))
                lines.append(line)
                write(results, lines)
                click.echo(pages.describe_result(line))
        finally:
            clock.stop.set()
            lanes.shutdown(cancel_futures=True)


def without_paths(line: str) -> str:
    """Return a result line without this machine's paths, which the commands of its proposals hold."""
    return line.replace(sys.executable, "python").replace(f"{tempfile.gettempdir()}/", "")


if __name__ == "__main__":
    tempfile.tempdir = str(supervise.fork())  # a signal ends all that was started, and removes the folder
    drills(prog_name="python -m tests.drills")
