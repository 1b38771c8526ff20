"""Authenticate senders of alerts and readers of the receiver's pages: by a token, or by an HMAC key that signs bodies.

RUNBOOK_RECEIVER_TOKEN and RUNBOOK_RECEIVER_HMAC hold the secrets; which may name where they are. A reader
can also be authenticated by a reverse proxy, which names the user in a header. The header is accepted only from the
proxy's own addresses.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.datastructures import Headers

from runbook_lib.model.usage import UsageError
from runbook_lib.sources import secret
from runbook_lib.sources.settings import ReceiverSettings

TOKEN, KEY = "RUNBOOK_RECEIVER_TOKEN", "RUNBOOK_RECEIVER_HMAC"
SIGNATURE = "x-runbook-signature"


@dataclass(frozen=True)
class Auth:
    """The secrets of one receiver; a secret that is not used is ""."""

    token: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    user_header: str = ""
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()

    @property
    def needed(self) -> bool:
        """Return whether a secret is configured; without one the receiver listens on this machine only."""
        return bool(self.token or self.key)

    @property
    def challenge(self) -> str:
        """Return the WWW-Authenticate header for a refused alert."""
        schemes = [("Bearer", self.token), ("HMAC-SHA256", self.key)]
        return ", ".join(f'{scheme} realm="runbook"' for scheme, key in schemes if key)

    def may_send(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Return whether a request has the token as Bearer or a signed body. `headers` are in lower case."""
        if not self.needed:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if self.token and scheme.lower() == "bearer" and _equals_secret(given.strip(), self.token):
            return True
        signed = hmac.new(self.key.encode(), body, hashlib.sha256).hexdigest()
        return bool(self.key) and _equals_secret(headers.get(SIGNATURE, "").lower(), f"sha256={signed}")

    def may_read(self, headers: Headers, address: str) -> bool:
        """Return whether a request has a user named by a trusted proxy at `address`, or a secret.

        The token is accepted as Bearer or as the password of any user; the HMAC key as the password, if there is no
        token.
        """
        if not self.needed or self._proxy_names_user(headers, address):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            return _equals_secret(_decode_password(given.strip()), self.token or self.key)
        return bool(self.token) and scheme.lower() == "bearer" and _equals_secret(given.strip(), self.token)

    def _proxy_names_user(self, headers: Headers, address: str) -> bool:
        """Return whether a trusted proxy names a user; not for two names: a client may have added one."""
        named = headers.getlist(self.user_header) if self.user_header else []
        if len(named) != 1 or not named[0].strip():
            return False
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        ip = (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip
        return any(ip in network for network in self.proxies)


def load(receiver: ReceiverSettings | None = None) -> Auth:
    """Load the secrets from the environment and the trusted proxies from the settings.

    Raises UsageError, one line, if a secret's file cannot be read or is empty, or a proxy is set without a secret.
    """
    receiver = receiver or ReceiverSettings()
    auth = Auth(_read_secret(TOKEN), _read_secret(KEY), receiver.user_header, tuple(receiver.trusted_proxies))
    if auth.user_header and not auth.needed:
        raise UsageError(f"receiver.user_header is for readers only: set {TOKEN} or {KEY} for alerts too")
    return auth


def _read_secret(name: str) -> str:
    try:
        return secret.read(os.environ.get(name, "")).strip()
    except ValueError as e:
        raise UsageError(f"{name}: {e}") from None


def _decode_password(given: str) -> str:
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _equals_secret(given: str, secret: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="replace"), secret.encode())
