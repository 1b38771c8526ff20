"""An order to run sections: plain values and no secret, so that it can be sent to any process or machine.

The target's addresses are read where the order is carried out. This module imports nothing heavy, so that a sender
does not need the packages of the runner.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Order:
    """The sections to run, the target, and the incident."""

    sections: tuple[str, ...]
    output: str
    target: str = "default"
    incident: str = "adhoc"
    lang: str = "en"
    deadline_s: float = 180.0
    follow: bool = False
    """Run also the sections that these point to."""
    parameters: dict[str, Any] = field(default_factory=dict)
    job: str = ""
    """A mark that makes the order idempotent: each artifact is stored once per mark; "" for none."""
    again: bool = False
    """The order will be repeated if an artifact is lost, so no verdict is stored then."""
    unattended: bool = False
    """No person watches: no action is executed, even if `parameters` ask for it."""


@dataclass(frozen=True)
class RunProgress:
    """What a run has found so far, as text: one more line, the provisional strip, and what is waited for.

    `first` is the strip of the first numbers, before any step has one.
    """

    line: str = ""
    status: str = ""
    """The status of that line."""
    strip: tuple[str, ...] = ()
    waits: str = ""
    first: tuple[str, ...] = ()
