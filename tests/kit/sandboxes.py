"""A sandbox for the tests of a module or of one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox


def heal(sandbox: Sandbox, **options: Any) -> None:
    """Undo the sandbox's fault, or start it anew with these options if only that heals it."""
    name = sandbox.state.fault
    if name and not faults.find(name).undoable:
        sandbox.down()
        sandbox.up(**options)
    faults.heal(sandbox, 90)


@contextmanager
def running(folder: Path, **options: Any) -> Iterator[Sandbox]:
    """A sandbox that is up, with these options of its start."""
    sandbox = Sandbox(folder)
    sandbox.up(**options)
    try:
        yield sandbox
    finally:
        sandbox.down()
