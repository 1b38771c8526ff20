"""The commands of game days."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from runbook_lib.book import messages
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError
from runbook_lib.sources import settings


def lang() -> str:
    """Return the language of the settings, where they can be read: game days need nothing else of them."""
    with suppress(UsageError):
        return settings.load().lang
    return "en"


def tell(key: str, **params: Any) -> None:
    """Print one message."""
    click.echo(messages.text(say(key, **params), lang()))
