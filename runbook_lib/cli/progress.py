"""What a run shows on standard error until its verdict is there: first numbers, a line per step, what is waited for."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from runbook_lib.book import messages, pack
from runbook_lib.cli.common import COLOURS
from runbook_lib.cli.terminal import draw, paint
from runbook_lib.model.finding import say
from runbook_lib.model.usage import visible

if TYPE_CHECKING:
    from runbook_lib.model.order import Order, RunProgress


class ProgressDisplay:
    """Shows a run's progress: on a terminal the strip is drawn again in place.

    A pipe gets nothing, or with `in_pipe` plain lines, and the first numbers once.
    """

    def __init__(self, *, in_pipe: bool = False) -> None:
        self._redraws = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._is_silent = not (in_pipe or sys.stderr.isatty())
        self._drawn = 0
        self._strip: Sequence[str] = ()
        self._waits = ""
        self._lock = threading.Lock()
        self._over = self._has_steps = False

    def hear(self, said: RunProgress) -> None:
        """Show a line, the strip and what is waited for."""
        if said.first:
            return self.first_numbers(said.first)
        with self._lock:
            self._has_steps = self._has_steps or bool(said.strip)
            self._strip, self._waits = said.strip or self._strip, said.waits
            self._show_line(said.line, said.status)

    def waits(self, text: str) -> None:
        """Show what is waited for."""
        with self._lock:
            self._waits = text
            self._show_line()

    def first_numbers(self, strip: Sequence[str]) -> None:
        """Show what the cheapest queries say, unless a step has said more by now."""
        with self._lock:
            if not (self._over or self._has_steps):
                self._strip = strip
                self._show_line("" if self._redraws else "\n".join(strip))

    def end(self) -> None:
        """Remove what is drawn: the verdict comes."""
        with self._lock:
            self._strip, self._waits, self._over = (), "", True
            self._show_line()

    def _show_line(self, line: str = "", status: str = "") -> None:
        if not self._redraws:
            if line and not self._is_silent:
                click.echo(line, err=True)
            return
        block = [*self._strip, *filter(None, [self._waits])]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        above = f"{paint(line, fg=COLOURS.get(status))}\n" if line else ""
        below = "".join(f"{visible(part)}\n" for part in block)
        # No line of the block wraps (?7), or it could not be drawn over.
        draw(f"{up}\x1b[J{above}\x1b[?7l{below}\x1b[?7h", err=True)
        self._drawn = len(block)


def carry_out_shown(order: Order, *, in_pipe: bool) -> dict[str, Any]:
    """Carry an order out as `executors.carry_out`, and show its progress until the verdict is there."""
    from runbook_lib.runs.executors import carry_out

    display = ProgressDisplay(in_pipe=in_pipe)
    if pack.active_runbook().sampled & {*order.sections}:
        display.waits(messages.text(say("ui.waits_for_numbers")))
    try:
        return carry_out(order, display.hear)
    finally:
        display.end()
