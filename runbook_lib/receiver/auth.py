"""Authenticate senders of alerts and readers of the receiver's pages by one token.

RUNBOOK_RECEIVER_TOKEN holds it, or names where it is (`secret.read`).
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from runbook_lib.model.usage import UsageError
from runbook_lib.sources import secret

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

    Raises UsageError, one line, if it cannot be read where the variable says that it is.
    """
    try:
        return Auth(secret.read(os.environ.get(VARIABLE, "")).strip())
    except ValueError as e:
        raise UsageError(f"{VARIABLE}: {e}") from None


def _decode_password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""
