"""An order to look at something: plain values and no secret, so that it can be sent to any process or machine.

The target's addresses are read where it is carried out. Nothing heavy is imported here: whoever sends an order does not
need what carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Order:
    """What to look at, where, and for whom."""

    sections: tuple[str, ...]
    output: str
    target: str = "default"
    incident: str = "adhoc"
    lang: str = "en"
    deadline_s: float = 180.0
    follow: bool = False
    """Then also the sections that these point to."""
    parameters: dict[str, Any] = field(default_factory=dict)
    job: str = ""
    """A mark under which each artifact is left once, however often the order is carried out; "" for none."""
    again: bool = False
    """Somebody will carry it out again if an artifact is lost: no verdict is kept then."""
    unattended: bool = False
    """Nobody watches: nothing is executed, also where `parameters` ask for it."""
