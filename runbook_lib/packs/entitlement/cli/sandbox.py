"""The command group `runbook sandbox`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runbook_lib import messages, settings
from runbook_lib.cli.numbers import Number
from runbook_lib.model.finding import Text, say
from runbook_lib.packs.entitlement.sandbox.state import SandboxError, command, default_directory, load
from runbook_lib.usage import UsageError

if TYPE_CHECKING:
    from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_directory,
    show_default="$RUNBOOK_SANDBOX_DIR or ./.sandbox",
    help="The sandbox's folder.",
)


@contextmanager
def _one_line() -> Iterator[None]:
    """What a person can act on comes as one line, without a traceback."""
    try:
        yield
    except SandboxError as error:
        raise click.ClickException(str(error)) from None


def _open(directory: Path) -> Sandbox:
    # Imported late: the servers and the supervisor come with an extra that a headless run does without.
    try:
        from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox
    except ImportError as error:
        raise SandboxError(f"{error.name} is missing: pip install 'runbook-notebooks[sandbox]'") from None
    return Sandbox(directory)


def _say(key: str, **params: Any) -> None:
    """One line in the language of the settings, where they can be read: the sandbox needs nothing else of them."""
    lang = "en"
    with suppress(UsageError):
        lang = settings.load().lang
    click.echo(messages.text(say(f"sandbox.{key}", **params), lang))


def _settings(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, equals, _value in pairs:
        if not (name.isidentifier() and equals):
            raise click.BadParameter(f"{name!r} is not NAME=VALUE")
    return {name: value for name, _equals, value in pairs}


@click.group()
def sandbox() -> None:
    """Real servers and a small faithful system, to practise on."""


@sandbox.command()
@_directory
@click.option("--rate", type=Number(min=0, max=50), default=5, show_default=True, help="Events per second.")
@click.option(
    "--history",
    "hours",
    type=Number(min=0, max=720),
    default=6,
    show_default=True,
    help="Hours of past traffic.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_settings,
    help="An environment variable of the pods, such as NOTIFICATION_DELIVERY_BATCH_SIZE=10.",
)
def up(directory: Path, rate: float, hours: float, settings: dict[str, str]) -> None:
    """Start everything and wait until events flow."""
    with _one_line():
        _open(directory).up(rate, hours, settings)
    _say("up", directory=directory, env=command("env", directory))


@sandbox.command()
@_directory
def status(directory: Path) -> None:
    """What runs, under which pod names, and which fault is on."""
    with _one_line():
        now = _open(directory).status()
    for program, word in now.programs.items():
        click.echo(f"{program:16} {word:10} {now.pods.get(program, '')}".rstrip())
    for name, address in now.addresses.items():
        click.echo(f"{name:16} {address}")
    click.echo(f"{'fault':16} {now.fault or 'none'}")


@sandbox.command()
def faults() -> None:
    """What can be broken, and the runbook's section for it."""
    with _one_line():
        _open(Path())  # says what is missing
    from runbook_lib.packs.entitlement.sandbox.faults import CATALOGUE

    for fault in CATALOGUE:
        click.echo(f"{fault.name:22} {fault.section:4} {fault.description['en']}")
        click.echo(f"{'':22} {'':4} {fault.description['ja']}")


@sandbox.command()
@click.argument("name")
@_directory
def fault(name: str, directory: Path) -> None:
    """Break one thing."""
    with _one_line():
        broken = _open(directory).fault(name)
    _say("broken", name=broken.name, what=Text(messages.VERBATIM, broken.description))


@sandbox.command()
@_directory
def heal(directory: Path) -> None:
    """Undo the fault and wait until events flow again."""
    with _one_line():
        healed = _open(directory).heal()
    _say("healed" if healed else "no_fault", name=healed)


@sandbox.command()
@_directory
def down(directory: Path) -> None:
    """Stop and delete everything."""
    with _one_line():
        there = _open(directory).down()
    _say("gone" if there else "not_there", directory=directory)


@sandbox.command()
@_directory
def env(directory: Path) -> None:
    """Print the environment with which the runbook reaches the sandbox, for the shell to read."""
    with _one_line():
        variables = load(directory).env | {"RUNBOOK_SANDBOX_DIR": str(directory.absolute())}
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@sandbox.command(name="set")
@click.argument("settings", nargs=-1, required=True, metavar="NAME=VALUE...", callback=_settings)
@_directory
def set_(settings: dict[str, str], directory: Path) -> None:
    """Set environment variables of the pods and restart those they belong to, as `kubectl set env` would."""
    with _one_line():
        opened = _open(directory)
        opened.configure(settings)
        others = ("entitlement", "receiver")
        owners = (name.split("_")[0].lower() for name in settings)
        restarted = sorted({owner if owner in others else "notification" for owner in owners})
        for pod in restarted:
            opened.restart(pod)
    _say("set", names=", ".join(restarted))


@sandbox.command()
@_directory
@click.option("--output", type=click.Path(path_type=Path), default=Path("outputs"), help="Where artifacts go.")
@click.option("--fault", "name", default="worker_stopped", show_default=True, help="What to break.")
def demo(directory: Path, output: Path, name: str) -> None:
    """Watch a real incident: alert, triage, restart on a word, recovery, draft of the postmortem."""
    with _one_line():
        _open(directory)  # says what is missing
        from runbook_lib.packs.entitlement.cli.demo import demo as play

        index = play(directory, output, name, click.echo)
    click.echo(f"\nThe dossier, to open in a browser: {index}")
