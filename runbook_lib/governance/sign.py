"""Sign and verify seals and approvals: Ed25519 signatures by keys that runbook.toml lists."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from runbook_lib.model.usage import UsageError, install_command, printed
from runbook_lib.sources.settings import Settings, Signing, raw_key

#: Seconds in which `key_command` must print the key.
_TIMEOUT_S = 10.0


def sign(text: str, signing: Signing, where: str = "[sign]", listed: str = "[sign.keys]") -> tuple[str, str]:
    """Sign a text; return the key's name in `signing.keys` and the signature in base64url.

    Raises UsageError without any part of the key; `where` and `listed` name the settings of the private and the public
    key in that error.
    """
    crypto = _ed25519()
    pem = _read_key(signing)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except Exception:  # of any kind: its message may contain the key
        key = None
    if not isinstance(key, crypto.Ed25519PrivateKey):
        raise UsageError(f"{where} has no unencrypted Ed25519 key in PEM; make one: openssl genpkey -algorithm ed25519")
    own = key.public_key().public_bytes_raw()
    by = next((name for name, public in signing.keys.items() if raw_key(public) == own), None)
    if by is None:
        raise UsageError(f"the public key of {where} is not listed in {listed}")
    return by, base64.urlsafe_b64encode(key.sign(text.encode())).decode().rstrip("=")


def key_holder(key: Path, config: Settings) -> str:
    """Return the name of a private key in [approvers] or [sign.keys]. Raises UsageError, also for an unknown key."""
    known = Signing(key_file=key.absolute(), keys={**config.sign.keys, **config.approvers})
    return sign("", known, "--key-file", "[approvers] or [sign.keys]")[0]


def is_valid(text: str, by: str, signature: str, keys: Mapping[str, str]) -> bool:
    """Return whether the key `by` has signed the text. Raises UsageError without the package cryptography, KeyError."""
    crypto, public = _ed25519(), raw_key(keys[by])
    from cryptography.exceptions import InvalidSignature

    try:
        crypto.Ed25519PublicKey.from_public_bytes(public).verify(
            base64.b64decode(signature + "==", altchars=b"-_", validate=True), text.encode()
        )
    except (InvalidSignature, ValueError):
        return False
    return True


def _ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise UsageError(f"signatures need the package cryptography: {install_command('sign')}") from None
    return ed25519


def _read_key(signing: Signing) -> bytes:
    try:
        if signing.key_command:
            return printed(signing.key_command, _TIMEOUT_S).encode()
        return signing.key_file.read_bytes() if signing.key_file else b""
    except OSError as e:
        raise UsageError(f"sign.key_file: cannot read {signing.key_file} ({e.strerror})") from None
    except ValueError as e:
        raise UsageError(f"sign.key_command: {e}") from None
