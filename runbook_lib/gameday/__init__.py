"""Game days: the system of the pack `entitlement` in miniature, and its faults."""

from __future__ import annotations

from pathlib import Path

from runbook_lib.book.pack import Pack

PACK = Pack(
    "gameday",
    Path(__file__).parent,
    extends="entitlement",
    checks="",
    commands={"practise": {"sandbox": "cli.sandbox:sandbox [sandbox]"}},
)
