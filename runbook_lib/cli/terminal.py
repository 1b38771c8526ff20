"""What the command writes on a terminal.

Its texts hold what logs, capsules and other people wrote, and a terminal obeys what it does not show: escape sequences,
and characters that turn the direction of writing. The standard streams show these; only `paint` and `draw` write the
command's own.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

import click

from runbook_lib.model.usage import visible


class TerminalStream(io.TextIOWrapper):
    """A standard stream on which every character is seen; `write_own` writes the command's own sequences."""

    @classmethod
    def of(cls, stream: TextIO | None) -> TextIO | None:
        """Return the stream that takes the place of a standard stream; line by line, whatever its encoding."""
        if not isinstance(stream, io.TextIOWrapper) or stream not in (sys.__stdout__, sys.__stderr__):
            return stream  # not the process's own, such as a text in memory
        # On a stream in ASCII click would write UTF-8, past this one.
        encoding = "utf-8" if codecs.lookup(stream.encoding).name == "ascii" else stream.encoding
        return cls(stream.detach(), encoding, "backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """Write a text, what is not printable of it as an escape."""
        self.write_own(visible(text))
        return len(text)

    def write_own(self, text: str) -> None:
        """Write a text as it is; nothing once its reader has gone: what is under way goes on."""
        try:
            super().write(text)
        except OSError as e:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self is sys.stdout and not isinstance(e, BrokenPipeError):
                raise


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
