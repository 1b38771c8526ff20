"""What commands share: of the engine, and of packs that bring their own."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from runbook_lib import interrupts, settings
from runbook_lib.usage import UsageError, did_you_mean


def words(value: str) -> str:
    """Text for people and files: bytes that are not in the terminal's encoding are kept as \\xNN."""
    return os.fsencode(value).decode(errors="backslashreplace")


class Group(click.Group):
    """A hint for a misspelt command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does. Raises UsageError."""
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            raise UsageError(f"unknown command '{args[0]}': {did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)


def pairs_of(pairs: tuple[str, ...], option: str = "-p") -> dict[str, Any]:
    """What was given as NAME=VALUE, by name. Raises UsageError."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, sep, value = pair.partition("=")
        if not sep:
            raise UsageError(f"{option} {pair}: write it as NAME=VALUE")
        values[name.strip()] = value
    return values


def say_json(said: object) -> None:
    """One document; where the terminal's encoding does not hold every character, in ASCII."""
    utf8 = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    click.echo(json.dumps(said, ensure_ascii=not utf8, indent=1))


def existing(incident: str, output: str | None) -> Any:
    """The archive of an incident. Raises UsageError where there is none."""
    from runbook_lib.parameters import validate
    from runbook_lib.store import SEALED, Archive

    validate({"incident_id": incident})
    archive = Archive(output or settings.load().output, incident)
    if not set(SEALED) & set(archive.names()) and not archive.partials():
        raise UsageError(no_incident(archive))
    return archive


def no_incident(archive: Any) -> str:
    """The line that says so, with what was perhaps meant."""
    known = type(archive)(archive.output, "").names()
    return f"no incident '{archive.incident}' under {archive.output}: {did_you_mean(archive.incident, known)}"


def action_options(f: Any) -> Any:
    """The options of every action."""
    for option in (
        click.option("--target", default="default", show_default=True, help="which system, from runbook.toml"),
        click.option("--incident", default="adhoc", show_default=True, help="whose dossier the action belongs to"),
        click.option("--execute", is_flag=True, help="do it; without this it is a dry run"),
        click.option("--approved-by", type=words, metavar="NAME", help="who gave the word"),
        click.option("--reason", type=words, metavar="TEXT", help="why, for the postmortem"),
        click.option("--break-glass", is_flag=True, help="although frozen, over the limit, or not approved"),
        click.option("--approval", metavar="WORD|FILE", help="what `runbook approve` has printed for the dry run"),
        click.option("--wait", "wait_s", type=float, metavar="SECONDS", help="for the effect  [default: 60]"),
        click.option("--output", metavar="DIR|URL", help="where the incident's folder is  [default: outputs]"),
        click.option("--lang", type=click.Choice(["ja", "en"]), help="of what is said  [default: en]"),
        click.option("--json", "as_json", is_flag=True, help="one JSON document and nothing else"),
    ):
        f = option(f)
    return f


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
    break_glass: bool,
    approval: str | None,
    wait_s: float | None,
    output: str | None,
    lang: str | None,
    as_json: bool,
) -> int:
    """Carry out an action of the runbook in force from within a section, and say what came of it; its exit code."""
    from runbook_lib.archive import dossier, seal
    from runbook_lib.session import quiet_session
    from runbook_lib.view import record, render

    interrupts.unwind()  # what has been done is written down
    if output:
        os.environ["RUNBOOK_OUTPUT"] = output
    lang = lang or settings.load().lang
    words = {"approved_by": approved_by, "reason": reason, "wait_s": wait_s}
    rb = quiet_session(section, target=target, incident_id=incident, lang=lang, execute=execute, **words)
    rb.context.archive.prepare()
    what |= {"break_glass": break_glass, "approval": approval}
    outcome = rb.act(name, execute=execute, approved_by=approved_by, reason=reason, **what).outcome
    sealed = seal.told(rb.context.archive)
    if as_json:
        say_json(record.outcome(outcome) | {"seal": sealed})
    else:
        for line in [*render.action_lines(outcome, lang), sealed]:
            click.echo(line)
    try:
        dossier.write_index(rb.context.archive, lang)
    except OSError as e:
        click.echo(
            f"runbook: the dossier could not be written to {rb.context.archive.place}: {e.strerror or e}", err=True
        )
    return outcome.status.value
