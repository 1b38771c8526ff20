"""The command group `runbook act`: the actions that a person can run on this system."""

from __future__ import annotations

from typing import Any

import click

from runbook_lib.book import catalog
from runbook_lib.cli import common
from runbook_lib.cli.common import action_options


@click.group(cls=common.CommandGroup)
def act() -> None:
    """Run an action; a dry run without --execute.

    Rules: docs/operations.md. Exit code 0: done and effective, or dry and possible; 1: dry, and it would be refused or
    a precondition only warns; 2: refused, failed or without effect.
    """


@act.command()
@click.argument("workload")
@action_options
def restart(workload: str, **options: Any) -> int:
    """Restart notification or entitlement (runbook 5.1)."""
    return common.act("5.1", "restart", {"workload": workload}, **options)


@act.command()
@click.argument("workload")
@click.argument("replicas", type=int)
@action_options
def scale(workload: str, replicas: int, **options: Any) -> int:
    """Stop or start a workload (runbook 4.2).

    Notification can be stopped (0) and started (1), entitlement only started.
    """
    return common.act("4.2", "scale", {"workload": workload, "replicas": replicas}, **options)


@act.command(name="set")
@click.argument("settings", nargs=-1, required=True, metavar="NAME=VALUE...")
@action_options
def set_(settings: tuple[str, ...], **options: Any) -> int:
    """Change settings of a workload (runbook 5.2).

    Write them as delivery.batch_size=10; =default restores the default.
    """
    known = catalog.load().settings
    given = {k: known[k].read(v) if k in known else v for k, v in common.parse_pairs(settings, "set").items()}
    return common.act("5.2", "set", {"settings": given}, **options)


@act.command()
@action_options
def canary(**options: Any) -> int:
    """Grant and revoke a test right, and trace both events.

    A test account gets the right through the API; the events are traced to the receiver (runbook 6).
    """
    return common.act("6", "canary", {}, **options)


@act.command()
@click.argument("store")
@click.option("--limit", type=int, default=50, show_default=True, help="number of dead letters to send")
@click.option(
    "--event",
    "events",
    multiple=True,
    metavar="ID",
    help="only these events, also permanent failures",
)
@click.option("--since", metavar="TIME", help="only what failed then or later, such as 2026-01-31T03:00:00Z")
@click.option("--discard", is_flag=True, help="record that they are not sent again")
@action_options
def redrive(store: str, limit: int, events: tuple[str, ...], since: str | None, discard: bool, **options: Any) -> int:
    """Send dead letters again (runbook 4.4).

    The stores are delivery, outbox and broker.
    """
    what = {"store": store, "limit": limit, "events": events, "since": since, "discard": discard}
    return common.act("4.4", "redrive", what, **options)
