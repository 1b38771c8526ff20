"""The runbook of the entitlement and notification services: outbox, relay, JetStream, subscriber, leased workers."""

from __future__ import annotations

from pathlib import Path

import runbook_lib
from runbook_lib.book.pack import Pack

_PACKAGE = Path(runbook_lib.__file__).parent
#: In a wheel its documents and notebooks travel inside the package; in a checkout they are the top level's own.
ROOT = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent

PACK = Pack(
    "entitlement",
    Path(__file__).parent,
    docs=ROOT / "docs",
    notebooks=ROOT / "notebooks",
    example=ROOT / "tests" / "recordings" / "worker_hung.runbook",
    actions="actions:ACTIONS",
    facts="facts:EntitlementFacts",
    parameters="facts:EntitlementParameters",
    commands={"investigate": {"event": "cli.event:event"}, "act": {"act": "cli.act:act"}},
    sources={"receiver": "evidence.receiver:ReceiverProbe"},
    sampled=frozenset({"3", "4.1", "4.3"}),
    required=("postgres", "jetstream", "nats_monitor"),
    hooks={"sampling": "sample:SAMPLING"},
    uses=(
        "runbook_lib.packs.postgres",
        "runbook_lib.packs.changes",
        "runbook_lib.packs.jetstream",
        "runbook_lib.packs.logs",
        "runbook_lib.packs.postmortem",
    ),
    asks={"event": "event_lookup:event"},
)
