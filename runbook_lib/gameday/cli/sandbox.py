"""The command group `runbook sandbox`."""

from __future__ import annotations

import random
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runbook_lib.book import messages
from runbook_lib.cli.common import NumberRange
from runbook_lib.gameday.sandbox.state import DATABASE, SERVICES, command, load, owners
from runbook_lib.model.finding import Text, say
from runbook_lib.model.usage import UsageError, sandbox_folder
from runbook_lib.sources import settings as configuration

if TYPE_CHECKING:
    from runbook_lib.gameday.sandbox.sandbox import Sandbox

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=sandbox_folder,
    show_default="$RUNBOOK_SANDBOX_DIR or ./.sandbox",
    help="The sandbox's folder.",
)


def _open_sandbox(directory: Path) -> Sandbox:
    from runbook_lib.gameday.sandbox.sandbox import Sandbox  # late: it starts servers, and the help needs none

    return Sandbox(directory)


def _parse_settings(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, equals, _value in pairs:
        if not (name.isidentifier() and equals):
            raise click.BadParameter(f"{name!r} is not NAME=VALUE")
    return {name: value for name, _equals, value in pairs}


@click.group(context_settings={"show_default": True})
@click.pass_context
def sandbox(context: click.Context) -> None:
    """Real servers and a small faithful system, to practise on."""
    with suppress(UsageError):  # the sandbox needs nothing else of the settings
        context.with_resource(messages.using(configuration.load().lang))


def tell(key: str, **params: Any) -> None:
    """Print one message."""
    click.echo(messages.text(say(key, **params)))


@sandbox.command()
@_directory
@click.option("--rate", type=NumberRange(min=0, max=50), default=5, help="Events per second.")
@click.option("--history", "hours", type=NumberRange(min=0, max=720), default=6, help="Hours of past traffic.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parse_settings,
    help="An environment variable of the pods, such as NOTIFICATION_DELIVERY_BATCH_SIZE=10.",
)
def up(directory: Path, rate: float, hours: float, settings: dict[str, str]) -> None:
    """Start everything and wait until events flow."""
    _open_sandbox(directory).up(rate, hours, settings)
    tell("sandbox.up", directory=directory, env=command("env", directory))


@sandbox.command()
@_directory
def status(directory: Path) -> None:
    """Show what runs, under which pod names, and the active fault."""
    opened, state = _open_sandbox(directory), load(directory)
    programs, pods, addresses = opened.programs(), opened.pods(), state.addresses
    for program, word in programs.items():
        click.echo(f"{program:16} {word:10} {pods.get(program, '')}".rstrip())
    shown = {
        "postgres": f"127.0.0.1:{addresses.postgres_port}/{DATABASE}",
        "nats": f"127.0.0.1:{addresses.nats_port}",
        "nats monitoring": addresses.nats_monitor_url,
        "receiver": addresses.receiver_url,
        **{app: addresses.service_url(app) for app in SERVICES},
        "fault": "unknown" if state.unknown else state.fault or "none",
    }
    for name, value in shown.items():
        click.echo(f"{name:16} {value}")


@sandbox.command()
def faults() -> None:
    """List the faults, each with the section of the runbook for it."""
    from runbook_lib.gameday.sandbox.faults import CATALOGUE

    for fault in CATALOGUE:
        click.echo(f"{fault.name:22} {fault.section:4} {fault.description['en']}")
        click.echo(f"{'':22} {'':4} {fault.description['ja']}")


@sandbox.command()
@click.argument("name", required=False)
@click.option("--unknown", "seed", type=click.IntRange(min=0), metavar="SEED", help="A random one; its name is hidden.")
@_directory
def fault(name: str | None, seed: int | None, directory: Path) -> None:
    """Break one thing."""
    from runbook_lib.gameday.sandbox.faults import CATALOGUE, inject

    if (name is None) == (seed is None):
        raise click.UsageError("name a fault, or give --unknown SEED; `runbook sandbox faults` lists the faults")
    opened = _open_sandbox(directory)
    if name is None:
        inject(opened, random.Random(f"fault {seed}").choice(CATALOGUE).name, unknown=True)
        tell("sandbox.unknown", reveal=command("reveal", directory))
    else:
        broken = inject(opened, name)
        tell("sandbox.broken", name=broken.name, what=Text(messages.VERBATIM, broken.description))


@sandbox.command()
@_directory
def reveal(directory: Path) -> None:
    """Say what the fault is, and what should be found."""
    from runbook_lib.gameday.sandbox.faults import find

    state = load(directory)
    if not state.fault:
        return tell("sandbox.no_fault")
    state.unknown = False
    state.save()
    fault = find(state.fault)
    tell("sandbox.broken", name=fault.name, what=Text(messages.VERBATIM, fault.description))
    tell("sandbox.answer", place=fault.stuck_at or "none", mode=fault.failure_mode or "none", section=fault.section)
    tell("sandbox.would", helps=", ".join(fault.helps) or None, harms=", ".join(fault.harms) or None)


@sandbox.command()
@_directory
def heal(directory: Path) -> None:
    """Undo the fault and wait until events flow again.

    Settings, signals, stops and starts can be undone; what a fault changes beside them, only a new sandbox heals.
    """
    from runbook_lib.gameday.sandbox.faults import heal as undo

    healed = undo(_open_sandbox(directory))
    tell("sandbox.healed" if healed else "sandbox.no_fault", name=healed)


@sandbox.command()
@_directory
def down(directory: Path) -> None:
    """Stop and delete everything."""
    there = _open_sandbox(directory).down()
    tell("sandbox.gone" if there else "sandbox.not_there", directory=directory)


@sandbox.command()
@_directory
def env(directory: Path) -> None:
    """Print the sandbox's addresses, for `eval` in a shell."""
    variables = load(directory).env | {"RUNBOOK_SANDBOX_DIR": str(directory.absolute())}
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@sandbox.command(name="set")
@click.argument("settings", nargs=-1, required=True, metavar="NAME=VALUE...", callback=_parse_settings)
@_directory
def set_(settings: dict[str, str], directory: Path) -> None:
    """Set environment variables, as `kubectl set env` would.

    The pods that they belong to are restarted.

    A name without the prefix of a pod belongs to both services; SANDBOX_RATE needs no restart.
    """
    opened = _open_sandbox(directory)
    opened.configure(settings)
    restarted = owners(settings)
    opened.restart(*restarted)
    tell("sandbox.set", names=", ".join(restarted))


@sandbox.command()
@_directory
@click.option("--output", type=click.Path(path_type=Path), default=Path("outputs"), help="Where artifacts go.")
@click.option("--fault", "name", default="worker_stopped", help="What to break.")
def demo(directory: Path, output: Path, name: str) -> None:
    """Watch a real incident, from its alert to its postmortem.

    Alert, triage, restart on a word, recovery, draft of the postmortem.
    """
    from runbook_lib.gameday.cli.demo import demo as play

    index = play(directory, output, name, click.echo)
    click.echo(f"\nThe dossier, to open in a browser: {index}")
