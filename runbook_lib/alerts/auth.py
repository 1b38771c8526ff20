"""Who may send alerts, and who may read what became of them: those who know a token, or the key that signs bodies.

RUNBOOK_RECEIVER_TOKEN and RUNBOOK_RECEIVER_HMAC hold them, or with _FILE appended name the file that does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runbook_lib.usage import UsageError

TOKEN, KEY = "RUNBOOK_RECEIVER_TOKEN", "RUNBOOK_RECEIVER_HMAC"
SIGNATURE = "x-runbook-signature"


@dataclass(frozen=True)
class Auth:
    """The secrets of one receiver; "" for one that is not used."""

    token: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    @property
    def needed(self) -> bool:
        """Whether there is a secret at all; without one only this machine is listened to."""
        return bool(self.token or self.key)

    @property
    def name(self) -> str:
        """What is asked for, as a key of the messages `receiver.auth`."""
        return {(True, True): "both", (True, False): "token", (False, True): "hmac", (False, False): "none"}[
            bool(self.token), bool(self.key)
        ]

    @property
    def challenge(self) -> str:
        """WWW-Authenticate of a refused alert."""
        schemes = [("Bearer", self.token), ("HMAC-SHA256", self.key)]
        return ", ".join(f'{scheme} realm="runbook"' for scheme, secret in schemes if secret)

    def may_send(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether an alert is taken: the token as Bearer, or the body signed. `headers` in lower case."""
        if not self.needed:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if self.token and scheme.lower() == "bearer" and _same(given.strip(), self.token):
            return True
        signed = hmac.new(self.key.encode(), body, hashlib.sha256).hexdigest()
        return bool(self.key) and _same(headers.get(SIGNATURE, "").lower(), f"sha256={signed}")

    def may_read(self, headers: Mapping[str, str]) -> bool:
        """Whether a page is shown: the token as Bearer, or as the password of any user; the key where it is alone."""
        if not self.needed:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            return _same(_password(given.strip()), self.token or self.key)
        return bool(self.token) and scheme.lower() == "bearer" and _same(given.strip(), self.token)


def load() -> Auth:
    """The secrets of the environment. Raises UsageError, one line, where a file that is named holds none."""
    return Auth(token=_secret(TOKEN), key=_secret(KEY))


def _secret(name: str) -> str:
    file = os.environ.get(f"{name}_FILE")
    if not file:
        return os.environ.get(name, "").strip()
    try:
        secret = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not text"
        raise UsageError(f"{name}_FILE: cannot read {file} ({reason})") from None
    if not secret:
        raise UsageError(f"{name}_FILE: {file} is empty")
    return secret


def _password(given: str) -> str:
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _same(given: str, secret: str) -> bool:
    """Compared in a time that tells nothing of the secret."""
    return hmac.compare_digest(given.encode(errors="replace"), secret.encode())
