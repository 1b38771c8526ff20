"""What a person gave: which runbook.toml and which sandbox are meant, and how a mistake is told."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

#: What a sandbox that is up leaves in its folder: its target, as JSON.
SANDBOX_TARGET = "target.json"


class UsageError(Exception):
    """Something the caller gave is wrong; the text says what, and what was meant (exit code 64)."""

    def _render_traceback_(self) -> list[str]:
        """In a notebook: the line, not where it was raised."""
        return [f"runbook: {self}"]


def did_you_mean(word: str, known: list[str]) -> str:
    """The closest known word as a question, or the list of all; a long one only begins."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(known[:50]) or 'none'}{', ...' if len(known) > 50 else ''}"


def config_file() -> Path | None:
    """The runbook.toml in force: RUNBOOK_CONFIG, else the one in the working folder, else none."""
    named = os.environ.get("RUNBOOK_CONFIG")
    path = Path(named or "runbook.toml")
    if path.is_file():
        return path
    if named:
        raise UsageError(f"RUNBOOK_CONFIG names {named}, which is not a file")
    return None


def config_folder() -> Path:
    """What a relative path in runbook.toml starts from: its own folder."""
    file = config_file()
    return file.parent if file else Path()


def sandbox_folder() -> Path:
    """Where a sandbox is, or would be: RUNBOOK_SANDBOX_DIR, else `.sandbox` here."""
    return Path(os.environ.get("RUNBOOK_SANDBOX_DIR") or ".sandbox")
