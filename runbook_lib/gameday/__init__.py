"""Game days: the system of the pack `entitlement` in miniature, faults, and incidents made at random."""

from __future__ import annotations

from pathlib import Path

from runbook_lib.book.pack import Pack

PACK = Pack(
    "gameday",
    Path(__file__).parent,
    extends="entitlement",
    checks="",
    commands={"practise": {"drill": "cli.drill:drill [sandbox]", "sandbox": "cli.sandbox:sandbox [sandbox]"}},
)
