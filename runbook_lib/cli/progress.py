"""What a run shows on standard error until its verdict is there: first numbers, a line per step, what is waited for."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
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
    from runbook_lib.runs import forks
    from runbook_lib.runs.executors import carry_out

    display = ProgressDisplay(in_pipe=in_pipe)
    with tempfile.TemporaryDirectory(prefix="runbook-", ignore_cleanup_errors=True) as samples:
        os.environ["RUNBOOK_SAMPLES"] = samples
        order = replace(order, samples=samples)
        # A forked process forks again, and so must have one thread.
        sampled = pack.active_runbook().sampled & {*order.sections}
        if sampled and not forks.is_fork():
            display.waits(messages.text(say("ui.waits_for_numbers")))
            threading.Thread(target=show_first_numbers, args=(order, display), daemon=True).start()
        try:
            return carry_out(order, display.hear)
        finally:
            display.end()


def show_first_numbers(order: Order, display: ProgressDisplay) -> None:
    """Ask the cheapest queries while the sections start, and show their numbers; nothing where that fails.

    It reads as the section does that is about to run: same role, limits and name of the application. The section counts
    its queries, and compares with the samples that are taken here.
    """
    from runbook_lib.book import catalog
    from runbook_lib.checks import samples
    from runbook_lib.diagnosis import verdict as diagnosis
    from runbook_lib.model.finding import judged
    from runbook_lib.privacy.masking import Masker
    from runbook_lib.sources import settings
    from runbook_lib.sources.postgres import Postgres
    from runbook_lib.sources.source import Opening, ReadCost
    from runbook_lib.view import render

    with suppress(Exception), messages.using(order.lang):  # the sections say what is wrong
        config, section = settings.load(), order.sections[0]
        take_numbers, take_samples = pack.hook("first_numbers"), pack.hook("first_samples")
        first_sections = pack.hook("first_sections")
        target, book = config.target(order.target), catalog.load()
        cost = ReadCost(Masker.of(target.urls(), order.incident))
        source = Postgres.declared(Opening(target, f"runbook/{section}/{order.incident}", config.budget, cost))
        if source is None or config.replay:
            return
        with source.snapshot() as db:
            at, hops = take_numbers(db)
        title = say("ui.provisional_first", at=at)
        strip = diagnosis.strip([judged(title, hops=hops)], book.hops)
        display.first_numbers(render.provisional_lines(title, strip))
        source.close()
        samples.keep_sections(first_sections(hops, book))
        samples.keep_queries(section, cost.queries)

        from runbook_lib.book.parameters import validate
        from runbook_lib.checks.context import open_context

        named = validate({"target": order.target, "incident_id": order.incident})
        rb = open_context(book.sections[section], named, config, book)
        take_samples(rb)
        samples.keep_queries(section, [*cost.queries, *rb.read_cost.queries])
