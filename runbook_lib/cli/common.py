"""Options and helpers that the commands of the engine and of packs share."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runbook_lib.book import pack
from runbook_lib.cli import interrupts
from runbook_lib.model.finding import Text, say
from runbook_lib.model.incident import ADHOC, LATEST
from runbook_lib.model.times import duration
from runbook_lib.model.usage import UsageError, did_you_mean, visible
from runbook_lib.privacy.urls import show_url
from runbook_lib.sources import settings

if TYPE_CHECKING:
    from runbook_lib.dossier.seal import Report

F = TypeVar("F", bound=Callable[..., Any])


def words(value: str) -> str:
    """Decode text for people and files: bytes outside the terminal's encoding become \\xNN."""
    return os.fsencode(value).decode(errors="backslashreplace")


#: The exit code of a list that lacks what could not be read: UNKNOWN.
EX_UNREAD = 3
COLOURS = {"OK": "green", "WARNING": "yellow", "CRITICAL": "red", "UNKNOWN": "magenta"}
FILE = click.Path(dir_okay=False, path_type=Path)


class RecordingFile(click.Path):
    """A recording's file; where there is no file `example`, that is the recording that comes with the runbook."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the file."""
        if str(value) == "example" and not Path(value).exists():
            value = next((p.example for p in pack.active_runbook().packs if p.example), value)
        return super().convert(value, param, ctx)


class NumberRange(click.FloatRange):
    """A number within limits, which `nan` is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        return number if number == number else self.fail(f"{value!r} is not a number.", param, ctx)


class Duration(NumberRange):
    """A time in seconds, written as 180, 180s, 3m or 1h."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return how the help names it."""
        return "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        seconds = duration(str(value), bare="s")
        if seconds is None:
            self.fail(f"{value!r} is not a time: write it as 180, 180s, 3m or 1h", param, ctx)
        return super().convert(seconds, param, ctx)


RECORDING = RecordingFile(dir_okay=False, path_type=Path)
_DEADLINE = Duration(min=0, min_open=True, max=settings.DAY_S)

#: Options of several commands.
AS_JSON = click.option("--json", "as_json", is_flag=True, help="print one JSON document and nothing else")
TARGET = click.option(
    "--target", default="default", envvar="RUNBOOK_TARGET", show_default=True, show_envvar=True,
    help="the system, a target of runbook.toml",
)  # fmt: skip
#: How many folders are searched for the newest incident: some are of no incident, or cannot be read.
_SEARCHED = 1000
PAIRS = click.option(
    "-p",
    "pairs",
    type=words,
    multiple=True,
    metavar="NAME=VALUE",
    help="a parameter of the section; `runbook sections --parameters` lists them",
)
DEADLINE = click.option(
    "--deadline", "deadline_s", type=_DEADLINE, default=lambda: settings.load().deadline_s,
    help="deadline of the whole run  [default: 180]",
)  # fmt: skip
EXECUTOR = click.option("--executor", type=click.Choice(["local", "dask"]), default="local", show_default=True)
SCHEDULER = click.option("--scheduler", metavar="URL", help="the Dask scheduler, such as tcp://scheduler:8786")


def output_option(what: str = "folder or URL of the artifacts") -> Callable[[F], F]:
    """Return the option --output; its default is the setting `output`."""
    help_text = f"{what}  [default: outputs]"
    return click.option("--output", metavar="DIR|URL", default=lambda: settings.load().output, help=help_text)


def incident_option(what: str) -> Callable[[F], F]:
    """Return the option --incident; `latest` is the incident with the newest files."""
    return click.option(
        "--incident", default=ADHOC, envvar="RUNBOOK_INCIDENT", show_default=True, show_envvar=True,
        help=f"{what}; {LATEST}: the newest incident",
    )  # fmt: skip


def resolve_incident(incident: str, output: str) -> str:
    """Return the incident's name; for `latest` that of the newest named one that can be read.

    Raises UsageError if there is none, and for the name of a new incident that is reserved; TimeoutError if a store
    does not answer.
    """
    from dataclasses import replace

    from runbook_lib.model.finding import say
    from runbook_lib.store.archive import Archive, refuse_reserved

    if incident != LATEST:
        refuse_reserved(output, incident)
        return incident
    every = Archive(output, "").patient()
    for name in reversed(every.newest(_SEARCHED)):
        try:
            if name != ADHOC and replace(every, incident=name).artifacts():
                return name
        except NotADirectoryError:
            continue
        except TimeoutError:  # it may well be the newest
            raise
        except OSError as e:
            echo_text(say("report.unread", incident=name, detail=e.strerror or str(e)), err=True)
    raise UsageError(f"there is no incident under {show_url(output)} yet: name a new one")


def lang_option(what: str = "language of the output") -> Callable[[F], F]:
    """Return the option --lang: the language of the command. Its default is the setting `lang`."""
    return click.option(
        "--lang", type=click.Choice(["ja", "en"]), default=lambda: settings.load().lang, expose_value=False,
        callback=_use_language, help=f"{what}  [default: as the locale]",
    )  # fmt: skip


def _use_language(ctx: click.Context, _: click.Parameter, lang: str) -> None:
    from runbook_lib.book import messages

    ctx.with_resource(messages.using(lang))


class CommandGroup(click.Group):
    """A hint for a misspelt command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command. Raises UsageError with the closest name for an unknown one."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UsageError(f"unknown command '{args[0]}': {did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def parse_pairs(pairs: tuple[str, ...], option: str = "-p") -> dict[str, Any]:
    """Parse options written as NAME=VALUE into a dict. Raises UsageError."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, sep, value = pair.partition("=")
        if not sep:
            raise UsageError(f"{option} {pair}: write it as NAME=VALUE")
        values[name.strip()] = value
    return values


def parse_parameters(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parse the parameters of a notebook (`-p`). Raises UsageError, also for one that has an option of its own."""
    values = parse_pairs(pairs)
    for name, option in (("target", "--target"), ("incident_id", "--incident"), ("lang", "--lang")):
        if name in values:
            raise UsageError(f"-p {name}: use {option}")
    return values


def echo_text(*texts: Text, err: bool = False) -> None:
    """Print messages, one a line."""
    from runbook_lib.book import messages

    for text in texts:
        click.echo(messages.text(text), err=err)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file of a command as a whole. Raises OutputError."""
    from runbook_lib.store.archive import OutputError
    from runbook_lib.store.files import replace_file

    try:
        replace_file(path, content if isinstance(content, bytes) else content.encode())
    except OSError as e:
        raise OutputError(f"{path} could not be written: {e.strerror or e}") from None


def say_json(said: object) -> None:
    """Print one document; if the terminal's encoding lacks some characters, in ASCII."""
    utf8 = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    shown = json.dumps(said, ensure_ascii=not utf8, indent=1)
    click.echo(visible(shown, escape=lambda char: json.dumps(char)[1:-1]))  # as JSON writes it


def existing_archive(incident: str, output: str) -> Any:
    """Return the archive of an incident. Raises UsageError if there is none."""
    from runbook_lib.book.parameters import validate
    from runbook_lib.store.archive import Archive

    incident = resolve_incident(incident, output)
    validate({"incident_id": incident})
    archive = Archive(output, incident)
    if not archive.may_be_dossier():
        raise UsageError(unknown_incident_text(archive))
    return archive


def say_verified(report: Report, place: str) -> int:
    """Print the result of a verification; return its exit code: 0 unchanged, 2 changed, 3 not covered or not read."""
    echo_text(*report.changed, *report.uncovered, *report.unread, err=True)
    if report.covered:
        echo_text(say("seal.anchored", upto=report.covered))
    states: tuple[tuple[object, str, int], ...] = (
        (report.changed, "seal.state.changed", 2),
        (report.unread, "seal.state.unread", 3),
        (report.uncovered, "seal.state.not_witnessed", 3),
        (True, "seal.state.whole", 0),
    )
    state, code = next((state, code) for found, state, code in states if found)
    echo_text(say("seal.said", state=say(state), place=place, sealed=report.chain_head.lines))
    if not report.changed:
        click.echo(report.chain_head)
    return code


def unknown_incident_text(archive: Any) -> str:
    """Return the error line for an unknown incident, with the closest known name."""
    known = type(archive)(archive.output, "").names()
    return f"no incident '{archive.incident}' under {show_url(archive.output)}: {did_you_mean(archive.incident, known)}"


def action_options(f: Any) -> Any:
    """Add the options that every action has."""
    options = (
        TARGET,
        incident_option("the incident whose dossier records the action"),
        click.option("--execute", is_flag=True, help="run the action; without this it is a dry run"),
        click.option("--approved-by", type=words, metavar="NAME", help="the person who approved the action"),
        click.option("--reason", type=words, metavar="TEXT", help="the reason, for the postmortem"),
        click.option("--wait", "wait_s", type=Duration(min=0), help="time to wait for the effect  [default: 60]"),
        output_option("folder or URL of the incidents"),
        lang_option(),
        AS_JSON,
    )
    for option in reversed(options):
        f = option(f)
    return f


def missing_options(approved_by: str | None, reason: str | None) -> list[str]:
    """Return the options that the execution of a dry run still needs.

    >>> missing_options("Sato", None)
    ['--reason', 'TEXT']
    """
    return [*([] if approved_by else ["--approved-by", "NAME"]), *([] if reason else ["--reason", "TEXT"])]


def act(
    section: str,
    name: str,
    what: dict[str, Any],
    *,
    target: str,
    incident: str,
    execute: bool,
    approved_by: str | None,
    reason: str | None,
    wait_s: float | None,
    output: str,
    as_json: bool,
) -> int:
    """Run an action of the active runbook from within a section, print its outcome, and return the exit code."""
    from runbook_lib.book import messages
    from runbook_lib.dossier import overview, seal
    from runbook_lib.notebook.session import quiet_session
    from runbook_lib.store import record
    from runbook_lib.view import render

    if execute and incident == ADHOC:
        raise UsageError("--execute needs --incident: its dossier records the action (runbook incidents lists them)")
    incident = resolve_incident(incident, output)
    interrupts.raise_on_signal()  # what has been done is written down
    if output != settings.load().output:
        os.environ["RUNBOOK_OUTPUT"] = output
    words = {"approved_by": approved_by, "reason": reason, "wait_s": wait_s}
    rb = quiet_session(section, target=target, incident_id=incident, lang=messages.language(), execute=execute, **words)
    outcome = rb.act(name, execute=execute, approved_by=approved_by, reason=reason, **what).outcome
    sealed = seal.seal_text(rb.context.archive)
    if as_json:
        say_json(record.outcome(outcome) | {"seal": sealed})
    else:
        for line in [*render.action_lines(outcome), sealed]:
            click.echo(line)
        if outcome.result == "dry" and outcome.why.key in ("action.dry_ready", "action.dry_warned"):
            named = "INCIDENT" if incident == ADHOC else incident  # `latest` may be another one by then
            given = [*without_option("--incident", sys.argv[1:]), "--incident", named]
            click.echo(shlex.join(["runbook", *given, "--execute", *missing_options(outcome.approved_by, reason)]))
    try:
        overview.write_index(rb.context.archive)
    except OSError as e:
        click.echo(
            f"runbook: the dossier could not be written to {rb.context.archive.place}: {e.strerror or e}", err=True
        )
    return outcome.status.value


def without_option(option: str, words: list[str]) -> list[str]:
    """Return the words of a command without an option and its value."""
    before = ["", *words]
    return [w for w, last in zip(words, before, strict=False) if option not in (w, last, w.partition("=")[0])]
