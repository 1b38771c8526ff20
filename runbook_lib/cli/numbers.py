"""Numbers as the command takes them."""

from __future__ import annotations

from typing import Any

import click


class NumberRange(click.FloatRange):
    """A number within limits, which `nan` is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        number: float = super().convert(value, param, ctx)
        return number if number == number else self.fail(f"{value!r} is not a number.", param, ctx)
