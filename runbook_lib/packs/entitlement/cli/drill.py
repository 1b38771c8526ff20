"""The command group `runbook drill`: game days."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runbook_lib import catalog, messages, settings
from runbook_lib.cli.numbers import Number
from runbook_lib.model.finding import Text, say
from runbook_lib.usage import UsageError

if TYPE_CHECKING:
    from runbook_lib.packs.entitlement.drills.scenario import Scenario


def _span(_context: click.Context, _option: click.Parameter, value: str) -> range:
    """Seeds written as 17 or 1000:1200, the last not among them."""
    first, colon, last = value.partition(":")
    try:
        found = range(int(first), int(last) if colon else int(first) + 1)
    except ValueError:
        found = range(0)
    if not found or found.start < 0:
        raise click.BadParameter(f"{value!r} names no seeds: write them as 17 or 1000:1200")
    return found


def _needed() -> None:
    # Imported late: the servers and the supervisor come with an extra that a headless run does without.
    try:
        from runbook_lib.packs.entitlement.drills import play  # noqa: F401
    except ImportError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'runbook-notebooks[sandbox]'") from None


def _lang() -> str:
    with suppress(UsageError):
        return settings.load().lang
    return "en"


def _say(key: str, **params: Any) -> None:
    click.echo(messages.text(say(f"drill.{key}", **params), _lang()))


def _word(answer: str | None) -> Text:
    return say(f"drill.word.{answer or 'none'}")


@click.group(invoke_without_command=True)
@click.option("--seeds", callback=_span, default="1:27", show_default=True, metavar="N|N:M", help="which drills")
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("drills.jsonl"),
    show_default=True,
    help="a line per drill; seeds that have one are not played again",
)
@click.option("--at-once", type=click.IntRange(1, 16), default=1, show_default=True, help="sandboxes side by side")
@click.option(
    "--longest",
    type=Number(min=2, max=600),
    default=180,
    show_default=True,
    help="seconds from the onset to the latest first look",
)
@click.option(
    "--after",
    "after_s",
    type=Number(min=1, max=600),
    default=40,
    show_default=True,
    help="seconds that the flow is given after a proposal",
)
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="a folder for the drills' artifacts")
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
    person: int | None,
) -> int:
    """Make incidents at random, and judge what the runbook says and proposes."""
    if context.invoked_subcommand:
        return 0
    _needed()
    from runbook_lib.packs.entitlement.drills.scenario import draw
    from runbook_lib.packs.entitlement.sandbox.faults import CATALOGUE

    kinds = [fault.name for fault in CATALOGUE]
    if person is not None:
        return _person(draw(person, kinds, longest))
    done = {line["seed"] for line in _read(results) if "error" not in line}
    scenarios = [draw(seed, kinds, longest) for seed in seeds if seed not in done]
    _say("begins", n=len(scenarios), done=len(seeds) - len(scenarios), results=results)
    kept = keep.absolute() if keep else None
    with results.open("a", encoding="utf-8") as file, closing(_played(scenarios, at_once, after_s, kept)) as played:
        for line in played:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            _tell(line)
    return 0


def _read(results: Path) -> list[dict[str, Any]]:
    """The lines that are whole: the last may have been cut by a power failure."""
    lines: list[dict[str, Any]] = []
    with suppress(FileNotFoundError):
        for text in results.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(text))
    return lines


def _played(
    scenarios: Iterable[Scenario], at_once: int, after_s: float, keep: Path | None
) -> Generator[dict[str, Any], None, None]:
    """The lines as the drills end; whatever ends this ends the drills, which take down what they have started."""
    from runbook_lib.packs.entitlement.drills.play import Clock, drill

    clock = Clock()
    with ThreadPoolExecutor(at_once) as lanes:
        try:
            for future in as_completed([lanes.submit(drill, s, clock, after_s, keep) for s in scenarios]):
                yield future.result()
        finally:
            clock.stop.set()
            lanes.shutdown(cancel_futures=True)


def _tell(line: dict[str, Any]) -> None:
    from runbook_lib.packs.entitlement.drills.report import judged

    what = line["scenario"]
    kind = " + ".join(what["faults"]) or messages.text(_word("no_fault"), _lang())
    if "error" in line:
        return _say("failed", seed=line["seed"], kind=kind, why=line["error"])
    found = judged(line)
    _say(
        "line" if found.counts else "no_effect",
        seed=line["seed"],
        kind=kind,
        load=what["load"],
        noise=what["noise"],
        look=what["look_after_s"],
        answer=_word(found.judged.answer),
        confidence=found.confidence,
        help=_word(found.help),
        s=line["seconds"],
    )


def _person(scenario: Scenario) -> int:
    """The fault is hidden and the clock runs, until a person names place and failure mode."""
    import tempfile

    from runbook_lib.packs.entitlement.drills import play
    from runbook_lib.packs.entitlement.drills.judge import judge
    from runbook_lib.packs.entitlement.sandbox.faults import find
    from runbook_lib.packs.entitlement.sandbox.state import SandboxError, command

    book = catalog.load()
    nothing = "none"
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        directory = Path(folder) / "sandbox"
        try:
            _say("starts")
            with play.incident(scenario, directory, play.Clock()) as it:
                began = time.monotonic()
                _say("play", env=command("env", it.sandbox.directory))
                place = _asked("place", [*book.places, nothing])
                mode = _asked("mode", [*book.failure_modes, nothing])
                took = time.monotonic() - began
        except SandboxError as error:
            raise click.ClickException(str(error)) from None
    right = play.truth(scenario)
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
    _say("score", points=points[answer.place] + points[answer.mode], s=took)
    _say("judged", place=_word(answer.place), mode=_word(answer.mode))
    for name in scenario.faults:
        fault = find(name)
        what = Text(messages.VERBATIM, fault.description)
        _say(
            "was", what=what, place=fault.stuck_at or nothing, mode=fault.failure_mode or nothing, section=fault.section
        )
        _say("would", helps=", ".join(fault.helps) or None, harms=", ".join(fault.harms) or None)
    if not scenario.faults:
        _say("was_nothing")
    _say("around", load=scenario.load, noise=scenario.noise)
    return 0


def _asked(what: str, known: list[str]) -> str:
    question = messages.text(say(f"drill.ask_{what}"), _lang())
    return str(click.prompt(question, type=click.Choice(known, case_sensitive=False)))


@drill.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), help="the page goes there")
def report(results: Path, write: Path | None) -> int:
    """What the drills of a file of results show, as Markdown."""
    _needed()
    from runbook_lib.packs.entitlement.drills.report import report as page

    text = page(_read(results))
    if write:
        write.write_text(text, encoding="utf-8")
        _say("written", file=write)
    else:
        click.echo(text, nl=False)
    return 0
