"""Secrets as the settings name them: `env:NAME`, `file:PATH` (beside runbook.toml) or `cmd:PROGRAM ARGUMENT ...`.

Any other text is the value itself, which runbook.toml must not hold.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import time

from runbook_lib.model.usage import config_folder
from runbook_lib.privacy import redaction

_NAMED = re.compile(r"(env|file|cmd):(.*)", re.DOTALL)
#: What names or fetches a secret among the words of a command: a variable, another command, the name in a vault.
_PLACE_OF_SECRET = re.compile(
    r"(?<=--secret[ =])\S+|(?<=--secret-id[ =])\S+|(?:\b(?:Bearer|Basic) )?\$(?:\w+|\{[^}]*\}|\([^)]*\))"
)
_TIMEOUT_S = 10.0
#: What a command printed is kept so long, or until it is refused (`renew`).
_KEPT_S = 60.0
_printed: dict[str, tuple[str, float]] = {}


def is_named(written: str) -> bool:
    """Return whether a setting names where its secret is."""
    return _NAMED.fullmatch(written) is not None


def is_command(written: str) -> bool:
    """Return whether a setting names a command that prints its secret."""
    return written.startswith("cmd:")


def shows_secret(written: str) -> bool:
    """Return whether a secret is among the words of a command. Raises ValueError if these cannot be told apart."""
    if not is_command(written):
        return False
    words = _PLACE_OF_SECRET.sub(redaction.SECRET, " ".join(shlex.split(written)))
    return redaction.redact_secrets(words) != words


def read(written: str) -> str:
    """Return the value of a setting that may name where it is. Raises ValueError, without any of the value."""
    found = _NAMED.fullmatch(written)
    if found is None:
        return written
    value = {"env": _read_variable, "file": _read_file, "cmd": _print}[found[1]](found[2].strip())
    if not value:
        raise ValueError(f"{'the command' if found[1] == 'cmd' else found[2].strip()} gives no value")
    return value


def _read_variable(name: str) -> str:
    if name not in os.environ:
        raise ValueError(f"the variable {name} is not set")
    return os.environ[name].strip()


def _read_file(name: str) -> str:
    try:
        return (config_folder() / name).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else "not text"
        raise ValueError(f"cannot read {name} ({why})") from None


def renew(written: str) -> None:
    """Let a command be run again: what it printed has been refused."""
    _printed.pop(written.removeprefix("cmd:").strip(), None)


def _print(command: str) -> str:
    """Return what a command prints, or printed a moment ago: each reader of the settings asks."""
    printed, at = _printed.get(command, ("", -math.inf))
    if not printed or time.monotonic() - at > _KEPT_S:
        printed = _run(command)
        _printed[command] = printed, time.monotonic()
    return printed


def _run(command: str) -> str:
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the command gives no answer within {_TIMEOUT_S:.0f} s") from None
    except (OSError, ValueError, IndexError) as e:
        why = getattr(e, "strerror", None) or "not a command"
        raise ValueError(f"the command cannot be started ({why})") from None
    if done.returncode:
        raise ValueError(
            f"the command ended with exit code {done.returncode} and printed {len(done.stdout.split())} words"
        )
    return done.stdout.strip()
