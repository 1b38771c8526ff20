"""The commands of game days."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from runbook_lib.book import messages
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError
from runbook_lib.sources import settings


def use_language(context: click.Context) -> None:
    """Use the language of the settings in a command, if they can be read: game days need nothing else of them."""
    with suppress(UsageError):
        context.with_resource(messages.using(settings.load().lang))


def tell(key: str, **params: Any) -> None:
    """Print one message."""
    click.echo(messages.text(say(key, **params)))
