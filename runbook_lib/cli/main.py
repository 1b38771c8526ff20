"""The `runbook` command. Its exit code is the worst status (0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN); 64 is
wrong usage, 70 an error of the runbook itself.
"""

from __future__ import annotations

import os
import signal
import sys
from copy import copy
from typing import Any

import click

from runbook_lib.book import pack
from runbook_lib.cli import gone, interrupts
from runbook_lib.cli.common import CommandGroup
from runbook_lib.cli.terminal import TerminalStream
from runbook_lib.model.usage import UsageError, error_line, install_command

EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70


class _Commands(CommandGroup):
    """Commands are imported when they are called: each needs packages that the others do not."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an interrupt prints one line and exits with 128 plus the signal's number."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as e:
            gone.refuse(e.option_name)
            raise
        except KeyboardInterrupt as e:
            click.echo("runbook: interrupted", err=True)
            raise click.exceptions.Exit(128 + (e.args[0] if e.args else signal.SIGINT)) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(dict.fromkeys(word for c in _available_commands() for word in c.name.split()))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if any(c.name.startswith(f"{name} ") for c in _available_commands()):
            return _SubcommandGroup(name)
        known = next((c for c in pack.active_runbook().commands if c.name.split()[-1] == name), None)
        if known is None:
            gone.refuse(name)
            return None
        command = _load_command(known)
        if not known.of_engine:
            interrupts.raise_on_signal()  # what was started is stopped, and what has been done is written down
        if known.name != name:  # without its group it is an alias
            command = copy(command)
            command.hidden = True
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them by what one wants to do."""
        firsts = {c.name.partition(" ")[0]: c for c in _available_commands()}
        width = formatter.width - 6 - max(map(len, firsts))
        for group in pack.GROUPS:
            of_group = {
                n: c.load() if c.name == n else _SubcommandGroup(n) for n, c in firsts.items() if c.group == group
            }
            if lines := {n: command.get_short_help_str(width) for n, command in of_group.items()}:
                with formatter.section(group.capitalize()):
                    formatter.write_dl(sorted(lines.items()))


class _SubcommandGroup(CommandGroup):
    """The commands whose names begin with this group's, such as `archive verify`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.help = f"Also: {', '.join(self._find_subcommands())}."

    def _find_subcommands(self) -> dict[str, pack.Command]:
        return {
            c.name.removeprefix(f"{self.name} "): c for c in _available_commands() if c.name.startswith(f"{self.name} ")
        }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._find_subcommands())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        known = self._find_subcommands().get(name)
        if known is None:
            gone.refuse(name)
        return _load_command(known) if known else None


def _available_commands() -> list[pack.Command]:
    return [c for c in pack.active_runbook().commands if not c.lacks()]


def _load_command(known: pack.Command) -> click.Command:
    """Import a command. Raises UsageError, with what to install, where a package is missing."""
    try:
        if lacks := known.lacks():
            raise ModuleNotFoundError(name=lacks[0])
        command: click.Command = known.load()
    except ModuleNotFoundError as e:
        extra = known.extra or known.name
        raise UsageError(f"{known.name} needs the package {e.name}: {install_command(extra)}") from None
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="runbook-notebooks")
def cli() -> None:
    """Run an incident runbook: its notebooks find where the flow is stuck and store the evidence."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; every error is one line, never a traceback."""
    sys.stdout, sys.stderr = TerminalStream.of(sys.stdout), TerminalStream.of(sys.stderr)
    sys.exit(_run_command(arguments))


def _run_command(arguments: list[str] | None) -> int:
    try:
        # color: click would take escape sequences out of a text, unseen.
        code = cli.main(args=arguments, prog_name="runbook", standalone_mode=False, color=True)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)
        return EX_USAGE
    except UsageError as e:
        code, problem = e.exit_code, str(e)
    except click.UsageError as e:
        command = e.ctx.command_path if e.ctx else "runbook"
        code, problem = EX_USAGE, f"{e.format_message()} (see `{command} --help`)"
    except click.ClickException as e:
        code, problem = EX_UNAVAILABLE, e.format_message()
    except OSError as e:  # of the archive: `Archive` raises nothing else
        code, problem = EX_UNAVAILABLE, error_line(e)
    except Exception as e:
        if os.environ.get("RUNBOOK_DEBUG"):
            raise
        code, problem = _explain_bug(e)
    click.echo(f"runbook: {problem}", err=True, color=True)
    return code


def _explain_bug(e: Exception) -> tuple[int, str]:
    """Return the exit code and the line of an exception that nobody expected: never the code of a status."""
    from runbook_lib.privacy.masking import Masker

    cause = e.__cause__ if isinstance(e, click.Abort) else e  # what click makes of the end of an input
    if cause is None:
        return EX_USAGE, "a question got no answer"
    detail = " ".join(f"{type(cause).__name__}: {cause}".split())
    return EX_SOFTWARE, f"internal error: {Masker().scrub(detail)} (RUNBOOK_DEBUG=1 shows where)"
