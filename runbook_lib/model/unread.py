"""A stand-in for a number or a flag that was not read, on which every operation fails: unknown is not zero.

A row that was never read has one in each field that is a number or a flag (`runbook_lib.model.rows`). Shown, it is a
dash; a comparison with a threshold is UNKNOWN; to calculate with it, or to decide by it, raises `UnreadError`, which
makes the step undecided.
"""

from __future__ import annotations

from typing import Any, NoReturn


class UnreadError(Exception):
    """A judge needs what no source has given; the text names it."""


class Unread:
    """A number or flag that was not read."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        """Describe what is unread: `name` tells what it would be, such as `Queue.due`."""
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name} was not read>"

    def _raise_unread(self, *_: Any) -> NoReturn:
        raise UnreadError(self.name)

    __bool__ = __int__ = __float__ = __index__ = __complex__ = __round__ = __len__ = __iter__ = _raise_unread
    __str__ = __format__ = __hash__ = _raise_unread
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _raise_unread
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _raise_unread
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = __pow__ = __rpow__ = _raise_unread
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __neg__ = __pos__ = __abs__ = __invert__ = (
        _raise_unread
    )


def known(value: Any) -> Any:
    """Return the value, or None if it was not read: for values that are only shown."""
    return None if isinstance(value, Unread) else value
