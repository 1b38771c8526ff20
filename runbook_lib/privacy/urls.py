"""URLs: the secrets in them, and how they are shown to people. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_plus, urlsplit

from runbook_lib.privacy import redaction

#: A user alone is a token in the URLs of NATS.
_TOKEN_SCHEMES = ("nats", "tls", "ws", "wss")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*+://[^\s\"'<>]*", re.IGNORECASE)


def secrets_in(url: str) -> set[str]:
    """Return the passwords and tokens of a URL, as written and decoded. Raises ValueError.

    PostgreSQL decodes only percent signs, other programs read + as a blank.
    """
    parts = urlsplit(url)
    password = parts.password or (parts.username if parts.scheme in _TOKEN_SCHEMES else None) or ""
    found = {password, unquote(password)}
    for parameter in url.partition("?")[2].split("&"):
        name, _, value = parameter.partition("=")
        if redaction.names_secret(unquote(name)):
            # PostgreSQL knows no fragment: a # belongs to the value.
            found |= {way(v) for v in (value, value.partition("#")[0]) for way in (str, unquote, unquote_plus)}
    return found - {""}


def show_url(url: str) -> str:
    """Return a URL without user information, query and fragment; a text that is no URL as it is."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    authority, path = re.split(r"(?=[/?#])", f"{rest}/", maxsplit=1)
    if "@" in path:  # perhaps of a password with a "/": then nothing tells where the host begins
        return f"{scheme}://..."
    return f"{scheme}://{authority.rpartition('@')[2]}{re.split('[?#]', path)[0]}".removesuffix("/")


def show_urls(text: str) -> str:
    """Return a text with its URLs as `show_url` returns them."""
    return _URL.sub(lambda found: show_url(found[0]), text)
