"""Authenticate senders of alerts and readers of the receiver's pages by one token.

RUNBOOK_RECEIVER_TOKEN holds it; RUNBOOK_RECEIVER_TOKEN_FILE names a file that does.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runbook_lib.model.usage import UsageError

VARIABLE = "RUNBOOK_RECEIVER_TOKEN"


@dataclass(frozen=True)
class Auth:
    """The token of one receiver, "" for none."""

    token: str = field(default="", repr=False)

    @property
    def needed(self) -> bool:
        """Return whether a token is configured; without one the receiver listens on this machine only."""
        return bool(self.token)

    def may_send(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request has the token as Bearer. The names of `headers` are in lower case."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        return not self.needed or (scheme.lower() == "bearer" and self._is_token(value.strip()))

    def may_read(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request has the token, as Bearer or as the password of any user."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        basic = scheme.lower() == "basic" and self._is_token(_decode_password(value.strip()))
        return basic or self.may_send(headers)

    def _is_token(self, value: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(value.encode(errors="replace"), self.token.encode())


def load() -> Auth:
    """Load the token from the environment.

    Raises UsageError, one line, if its file cannot be read or is empty.
    """
    file = os.environ.get(f"{VARIABLE}_FILE")
    if not file:
        return Auth(os.environ.get(VARIABLE, "").strip())
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not text"
        raise UsageError(f"{VARIABLE}_FILE: cannot read {file} ({reason})") from None
    if not token:
        raise UsageError(f"{VARIABLE}_FILE: {file} is empty")
    return Auth(token)


def _decode_password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""
