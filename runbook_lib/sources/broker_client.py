"""nats-py without its transport for websockets: half of the time of its import, and loaded when an address needs it."""

# ruff: noqa: E402, I001
from __future__ import annotations

import sys

_missing: dict[str, None] = {"aiohttp": None} if "aiohttp" not in sys.modules else {}
sys.modules.update(_missing)  # type: ignore[arg-type]  # an import of it fails, which the transport allows

import nats.aio.transport
from nats import errors as errors
from nats.aio.client import Client as Client, RawCredentials as RawCredentials

for name in _missing:
    del sys.modules[name]


def load_transport(url: str) -> None:
    """Load the transport for websockets if an address needs it."""
    if url.startswith("ws"):
        import aiohttp

        nats.aio.transport.aiohttp = aiohttp  # type: ignore[attr-defined]
