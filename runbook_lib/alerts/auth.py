"""Who may send alerts, and who may read what became of them: those who know a token, or the key that signs bodies.

RUNBOOK_RECEIVER_TOKEN and RUNBOOK_RECEIVER_HMAC hold them, or with _FILE appended name the file that does. To read it
is also enough that a reverse proxy says who it is, in a header that is believed from the proxy's own addresses alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

from starlette.datastructures import Headers

from runbook_lib.settings import ReceiverSettings
from runbook_lib.usage import UsageError

TOKEN, KEY = "RUNBOOK_RECEIVER_TOKEN", "RUNBOOK_RECEIVER_HMAC"
SIGNATURE = "x-runbook-signature"
#: Characters of a user's name.
LONGEST = 100


@dataclass(frozen=True)
class Auth:
    """The secrets of one receiver; "" for one that is not used."""

    token: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    user_header: str = ""
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()

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

    def reader(self, headers: Headers, address: str) -> str | None:
        """Who a page is shown to, as the access log names them; None for nobody.

        Shown it is to whom a proxy at that `address` names; and for the token as Bearer, or as the password of any
        user; for the key where it is alone.
        """
        if user := self._named(headers, address):
            return f"user {user}"
        if not self.needed:
            return "anybody"
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            known = _same(_password(given.strip()), self.token or self.key)
        else:
            known = bool(self.token) and scheme.lower() == "bearer" and _same(given.strip(), self.token)
        return "token" if known else None

    def _named(self, headers: Headers, address: str) -> str:
        """The user that the proxy names; "" where it names none, or two, one of whom somebody else has."""
        named = headers.getlist(self.user_header) if self.user_header else []
        if len(named) != 1:
            return ""
        try:
            ip = ip_address(address)
        except ValueError:
            return ""
        ip = (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip
        user = named[0].encode("latin-1").decode(errors="replace").strip()[:LONGEST]
        return user if any(ip in network for network in self.proxies) else ""


def load(receiver: ReceiverSettings | None = None) -> Auth:
    """The secrets of the environment, and the proxy of the settings.

    Raises UsageError, one line, where a file that is named holds none, or there is a proxy and no secret.
    """
    receiver = receiver or ReceiverSettings()
    auth = Auth(_secret(TOKEN), _secret(KEY), receiver.user_header, tuple(receiver.trusted_proxies))
    if auth.user_header and not auth.needed:
        raise UsageError(f"receiver.user_header is for readers: alerts need {TOKEN} or {KEY} beside it")
    return auth


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
