"""`runbook lab` and `runbook sections`: what a person opens, and what there is."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from runbook_lib.book import catalog, parameters
from runbook_lib.cli.common import RECORDING, TARGET, incident_option, lang_option, resolve_incident
from runbook_lib.sources import settings


@click.command()
@TARGET
@incident_option("names the folder of the copies")
@click.option("--output", metavar="DIR", help="where artifacts go  [default: outputs]")
@click.option(
    "--replay", type=RECORDING, metavar="FILE|example", help="answer from a recording instead of a target's servers"
)
@lang_option("of the copies")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- JUPYTER-OPTION...]")
@click.pass_context
def lab(
    ctx: click.Context, target: str, incident: str, output: str | None, replay: Path | None, arguments: tuple[str, ...]
) -> None:
    """Open JupyterLab on copies of the notebooks.

    The target and the incident are filled in.

    With --replay the notebooks run on a recording: no server is read and nothing can be changed.

    Options after -- are passed to JupyterLab, for example: runbook lab -- --no-browser --port 8899
    """
    from runbook_lib.lab import copies as interactive

    config = settings.load()
    incident = resolve_incident(incident, output or config.output)
    if replay:
        if ctx.get_parameter_source("incident") is ParameterSource.DEFAULT:
            incident = interactive.replay_incident(replay)
    else:
        config.target(target)
    interactive.open_lab(config, output or config.output, incident, target, catalog.load(), arguments, replay)


@click.command()
@click.option("--parameters", "with_parameters", is_flag=True, help="list instead what -p NAME=VALUE sets in a section")
def sections(with_parameters: bool) -> None:
    """List every section: number, notebook, title, steps."""
    if with_parameters:
        _list_parameters()
        return
    for section in catalog.load().sections.values():
        notebook = section.notebook.name if section.notebook else "(by hand)"
        click.echo(f"{section.number:<4} {notebook:<28} {' · '.join(dict.fromkeys((section.en, section.ja)))}")
        for step in section.steps:
            click.echo(f"       {step.id:<6} {step.en}")


def _list_parameters() -> None:
    """Print the parameters that every section has, then those that a section has beside them."""
    declared = {s: parameters.declared_names(s.notebook) for s in catalog.load().runnable().values() if s.notebook}
    shared = [name for name in next(iter(declared.values()), []) if all(name in own for own in declared.values())]
    listed = {"every section": shared}
    listed |= {f"{s.number} {s.en}": [name for name in own if name not in shared] for s, own in declared.items()}
    fields = parameters.parameters_class().model_fields
    for title, names in listed.items():
        click.echo("\n".join([title, *(f"       {n:<25} {fields[n].description or ''}".rstrip() for n in names)]))
