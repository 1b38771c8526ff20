"""The command group `runbook drill`: game days."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runbook_lib.book import catalog, messages
from runbook_lib.cli.common import Duration, write_file
from runbook_lib.gameday.cli import tell, use_language
from runbook_lib.model.finding import Text, say

if TYPE_CHECKING:
    from runbook_lib.gameday.drills.play import DrillClock
    from runbook_lib.gameday.drills.scenario import Scenario

    Play = Callable[[Scenario, DrillClock], dict[str, Any]]


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


def _say_result(answer: str | None) -> Text:
    """Return the word for a drill's result, or for the effect of its proposal."""
    return say(f"drill.word.{answer or 'none'}")


@click.group(invoke_without_command=True, context_settings={"show_default": True})
@click.option("--seeds", callback=_parse_seeds, default="1:27", metavar="N|N:M", help="which drills")
@click.option(
    "--results",
    type=FILE,
    default="drills.jsonl",
    help="a line per drill, compressed in a file named .gz; seeds that have one are not played again",
)
@click.option("--at-once", type=click.IntRange(1, 16), default=1, help="sandboxes side by side")
@click.option("--longest", type=Duration(2, 600), default=180, help="time from the onset to the latest first look")
@click.option(
    "--after",
    "after_s",
    type=Duration(1, 600),
    default=40,
    help="time that the flow is given after a proposal",
)
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="a folder for the drills' artifacts")
@click.option("--family", type=click.Choice(["people", "witnesses"]), help="half of the incidents: this family")
@click.option("--play", "person", type=click.IntRange(min=0), metavar="SEED", help="play this one yourself")
@click.pass_context
def drill(
    context: click.Context,
    seeds: range,
    results: Path,
    at_once: int,
    longest: float,
    after_s: float,
    keep: Path | None,
    family: str | None,
    person: int | None,
) -> int:
    """Play random incidents, and judge what the runbook says."""
    use_language(context)
    if context.invoked_subcommand:
        return 0
    from runbook_lib.gameday.drills import play
    from runbook_lib.gameday.drills.scenario import draw
    from runbook_lib.gameday.sandbox.faults import CATALOGUE

    kinds = [fault.name for fault in CATALOGUE if fault.family == "failures"]
    own = [fault.name for fault in CATALOGUE if fault.family == family]
    if person is not None:
        return _play_with_person(draw(person, kinds, longest, own))
    book, kept = catalog.load(), keep.absolute() if keep else None
    _play_all(
        [draw(seed, kinds, longest, own) for seed in seeds],
        results,
        at_once,
        lambda scenario, clock: play.drill(scenario, book, clock, after_s, kept),
        _print_drill,
    )
    return 0


def _play_all(
    scenarios: Sequence[Scenario],
    results: Path,
    at_once: int,
    play: Play,
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Play those of which the file has no line, and add theirs as they end.

    If this is interrupted, the drills end and remove what they have started.
    """
    from runbook_lib.gameday.drills.play import DrillClock
    from runbook_lib.gameday.drills.results import read, write

    lines, clock = read(results), DrillClock()
    done = {line["seed"] for line in lines if "error" not in line}
    left = [scenario for scenario in scenarios if scenario.seed not in done]
    tell("drill.begins", n=len(left), done=len(scenarios) - len(left), results=results)
    with ThreadPoolExecutor(at_once) as lanes:
        try:
            for future in as_completed([lanes.submit(play, scenario, clock) for scenario in left]):
                line = json.loads(without_paths(json.dumps(future.result(), ensure_ascii=False)))
                lines.append(line)
                write(results, lines)
                show(line)
        finally:
            clock.stop.set()
            lanes.shutdown(cancel_futures=True)


def without_paths(line: str) -> str:
    """Return a result line without this machine's paths, which the commands of its proposals hold."""
    return line.replace(sys.executable, "python").replace(f"{tempfile.gettempdir()}/", "")


def _print_drill(line: dict[str, Any]) -> None:
    from runbook_lib.gameday.drills.report import describe, judged

    what = line["scenario"]
    kind = describe(line) or messages.text(_say_result("no_fault"))
    if "error" in line:
        return tell("drill.failed", seed=line["seed"], kind=kind, why=line["error"])
    found = judged(line)
    told = "drill.knobs" if "knobs" in line else "drill.line" if found.counts else "drill.no_effect"
    tell(
        told,
        seed=line["seed"],
        kind=kind,
        effect=", ".join(found.effect) or None,
        load=what["load"],
        noise=what["noise"],
        look=what["look_after_s"],
        ended=what["ended_s"] or None,
        answer=_say_result(found.answer),
        confidence=found.confidence,
        help=_say_result(found.help),
        s=line["seconds"],
    )


def _play_with_person(scenario: Scenario) -> int:
    """Hide the fault and start the clock, until a person names the hop and the failure mode."""
    from runbook_lib.gameday.drills import play
    from runbook_lib.gameday.drills.judge import judge
    from runbook_lib.gameday.sandbox.faults import find
    from runbook_lib.gameday.sandbox.state import command

    book = catalog.load()
    nothing = "none"
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        directory = Path(folder) / "sandbox"
        tell("drill.starts")
        with play.incident(scenario, directory, play.DrillClock()) as it:
            began = time.monotonic()
            tell("drill.play", env=command("env", it.sandbox.directory))
            place = _ask_choice("drill.ask_place", [*book.places, nothing])
            mode = _ask_choice("drill.ask_mode", [*book.failure_modes, nothing])
            took = time.monotonic() - began
    right = play.truth(scenario, book)
    calm = "UNKNOWN" if right and not right.modes else "OK"  # who can not see in has nothing to name
    said = {
        "status": calm if place == mode == nothing else "CRITICAL",
        "stuck_at": None if place == nothing else place,
        "undecided": [],
        "failure_modes": [] if mode == nothing else [{"id": mode, "score": 1.0}],
        "proposals": [],
    }
    answer = judge(said, right)
    points = {"right": 2, "undecided": 1, "wrong": 0}
    tell("drill.score", points=points[answer.place] + points[answer.mode], s=took)
    tell("drill.judged", place=_say_result(answer.place), mode=_say_result(answer.mode))
    for name in scenario.faults:
        fault = find(name)
        what, where, why = Text(messages.VERBATIM, fault.description), fault.stuck_at, fault.failure_mode
        tell("drill.was", what=what, place=where or nothing, mode=why or nothing, section=fault.section)
        tell("drill.would", helps=", ".join(fault.helps) or None, harms=", ".join(fault.harms) or None)
    if not scenario.faults:
        tell("drill.was_nothing")
    tell("drill.around", load=scenario.load, noise=scenario.noise)
    return 0


def _ask_choice(key: str, known: list[str]) -> str:
    question = messages.text(say(key))
    return str(click.prompt(question, type=click.Choice(known, case_sensitive=False)))


@drill.command()
@click.option("--plays", type=click.IntRange(1), default=40, help="at most so many: the first of the seeds")
@click.option("--seeds", callback=_parse_seeds, default="1:1000", metavar="N|N:M", help="which plays")
@click.option("--results", type=FILE, default="knobs.jsonl", help="a line per play")
@click.option("--at-once", type=click.IntRange(1, 16), default=1, help="sandboxes side by side")
def knobs(plays: int, seeds: range, results: Path, at_once: int) -> int:
    """Change random settings, rights and objects, and judge.

    What can be changed is read from the servers: there is no list of faults.
    """
    from runbook_lib.gameday.drills import knobs

    _play_all([knobs.scenario(seed) for seed in seeds[:plays]], results, at_once, knobs.drill, _print_drill)
    return 0


@drill.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--write", type=FILE, help="the page goes there")
@click.option("--short", is_flag=True, help="the figures alone")
def report(results: tuple[Path, ...], write: Path | None, *, short: bool) -> int:
    """Print the report on files of drill results, as one page of Markdown."""
    from runbook_lib.gameday.drills import report as pages
    from runbook_lib.gameday.drills.results import read

    text = pages.join([pages.report_file(read(file), short=short) for file in results])
    if write:
        write_file(write, text)
        tell("drill.written", file=write)
    else:
        click.echo(text, nl=False)
    return 0
