"""What the command writes on a terminal.

Its texts hold what logs, capsules and other people wrote, and a terminal obeys what it does not show: escape sequences,
and characters that turn the direction of writing. The standard streams show these; only `paint` and `draw` write the
command's own.
"""

from __future__ import annotations

import io
import sys

import click

from runbook_lib.model.usage import visible


class TerminalStream(io.TextIOWrapper):
    """A standard stream on which every character is seen; `write_own` writes the command's own sequences."""

    def write(self, text: str) -> int:
        """Write a text, what is not printable of it as an escape."""
        super().write(visible(text))
        return len(text)

    def write_own(self, text: str) -> None:
        """Write a text as it is."""
        super().write(text)


def paint(text: str, **style: object) -> str:
    """Return a text in a colour (`click.style`), for `draw`."""
    return click.style(visible(text), **style)  # type: ignore[arg-type]


def draw(text: str, *, err: bool = False) -> None:
    """Write a text with the command's own sequences; without them if no terminal reads."""
    stream = sys.stderr if err else sys.stdout
    shown = text if stream.isatty() else click.unstyle(text)
    if isinstance(stream, TerminalStream):
        stream.write_own(shown)
    else:
        stream.write(shown)
    stream.flush()
