"""User input: the paths of runbook.toml and of the sandbox, the texts of usage errors, and what a text may show."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What a sandbox that is up leaves in its folder: its target, as JSON.
SANDBOX_TARGET = "target.json"


class UsageError(Exception):
    """Something the caller gave is wrong; the text says what, and what was meant."""

    exit_code = 64

    def _render_traceback_(self) -> list[str]:
        """Return the message alone, without the traceback, for a notebook."""
        return [f"runbook: {self}"]


def error_line(e: OSError | UsageError) -> str:
    """Return an error of a file in one line: which file, and what is wrong."""
    if isinstance(e, OSError):
        return f"{f'{e.filename}: ' if e.filename else ''}{e.strerror or e}"
    return str(e)


#: Characters that may not be seen.
_NOT_ASCII = re.compile(r"[^ -~]")
#: Spaces that are seen, though Python calls them not printable.
_SPACES = frozenset("\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000")


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def visible(text: str, kept: str = "\n\t", escape: Callable[[str], str] = _escape) -> str:
    r"""Return a text whose characters are all seen: others, but those that are `kept`, become escapes such as \x1b."""
    text = text.replace("\r\n", "\n") if "\n" in kept else text
    seen = {*_SPACES, *kept}
    return _NOT_ASCII.sub(lambda m: m[0] if m[0].isprintable() or m[0] in seen else escape(m[0]), text)


def first_problem(e: Any) -> tuple[str, str]:
    """Return the path (with dots) and the text of the first problem of a pydantic ValidationError."""
    first = e.errors(include_url=False, include_input=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")


def install_command(extra: str) -> str:
    """Return the command that installs an optional part; no package index has this package."""
    return f"pip install '.[{extra}]' in the checkout, or 'FILE.whl[{extra}]'"


def did_you_mean(word: str, known: list[str]) -> str:
    """Return the closest known word as a question, or the list of known words, cut after 50."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(known[:50]) or 'none'}{', ...' if len(known) > 50 else ''}"


def config_file() -> Path | None:
    """Return the active runbook.toml: RUNBOOK_CONFIG, else the one in the working folder, else None."""
    named = os.environ.get("RUNBOOK_CONFIG")
    path = Path(named or "runbook.toml")
    if path.is_file():
        return path
    if named:
        raise UsageError(f"RUNBOOK_CONFIG names {named}, which is not a file")
    return None


def config_folder() -> Path:
    """Return the folder that relative paths in runbook.toml start from: its own."""
    file = config_file()
    return file.parent if file else Path()


def sandbox_folder() -> Path:
    """Return the sandbox's folder: RUNBOOK_SANDBOX_DIR, else `.sandbox` in the working folder."""
    return Path(os.environ.get("RUNBOOK_SANDBOX_DIR") or ".sandbox")
