"""Who vouches for a text, a seal or an approval: an Ed25519 signature over it, by a key that runbook.toml knows."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Mapping
from types import ModuleType

from runbook_lib.settings import Signing, raw_key
from runbook_lib.usage import UsageError

#: Seconds that a command may take to print the key.
_TIMEOUT_S = 10.0


def sign(text: str, signing: Signing, where: str = "[sign]", listed: str = "[sign.keys]") -> tuple[str, str]:
    """The name of the key in `signing.keys`, and its signature in base64url. Raises UsageError, without the key.

    `where` and `listed` say in that error where the key, and where its public half ought to be.
    """
    crypto = _ed25519()
    pem = _printed(signing.key_command) if signing.key_command else _read(signing)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except Exception:  # of whatever kind: what is said of it must not hold the key
        key = None
    if not isinstance(key, crypto.Ed25519PrivateKey):
        raise UsageError(f"{where} has no unencrypted Ed25519 key in PEM: openssl genpkey -algorithm ed25519")
    own = key.public_key().public_bytes_raw()
    by = next((name for name, public in signing.keys.items() if raw_key(public) == own), None)
    if by is None:
        raise UsageError(f"the public half of the key of {where} is under no name in {listed}")
    return by, base64.urlsafe_b64encode(key.sign(text.encode())).decode().rstrip("=")


def holds(text: str, by: str, signature: str, keys: Mapping[str, str]) -> bool:
    """Whether the key of that name has signed the text. Raises UsageError without the package, KeyError."""
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
        raise UsageError("signatures need the package cryptography: pip install 'runbook-notebooks[sign]'") from None
    return ed25519


def _read(signing: Signing) -> bytes:
    try:
        return signing.key_file.read_bytes() if signing.key_file else b""
    except OSError as e:
        raise UsageError(f"sign.key_file: cannot read {signing.key_file} ({e.strerror})") from None


def _printed(command: list[str]) -> bytes:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        raise UsageError(f"sign.key_command: no answer within {_TIMEOUT_S:.0f} s") from None
    except subprocess.CalledProcessError as e:
        raise UsageError(f"sign.key_command: it ended with exit code {e.returncode}") from None
    except (OSError, ValueError) as e:
        raise UsageError(f"sign.key_command: it cannot be started ({getattr(e, 'strerror', None) or e})") from None
    return done.stdout
