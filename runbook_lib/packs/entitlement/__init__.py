"""The runbook of the entitlement and notification services: outbox, relay, JetStream, subscriber, leased workers."""

from __future__ import annotations

from pathlib import Path

import runbook_lib
from runbook_lib.pack import Pack

_PACKAGE = Path(runbook_lib.__file__).parent
#: In a wheel its documents and notebooks travel inside the package; in a checkout they are the top level's own.
ROOT = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent

PACK = Pack(
    "entitlement",
    Path(__file__).parent,
    docs=ROOT / "docs",
    notebooks=ROOT / "notebooks",
    actions="actions:ACTIONS",
    facts="facts:Facts",
    parameters="facts:Parameters",
    commands={
        "account": "cli.event:account",
        "act": "cli.act:act",
        "drill": "cli.drill:drill",
        "event": "cli.event:event",
        "sandbox": "cli.sandbox:sandbox",
    },
    asks={"account": "account:account", "event": "follow:event", "nats": "broker:Nats"},
)
