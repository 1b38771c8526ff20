"""The checks of the entitlement pack: one module per topic, exactly one check per step of the runbook."""

from __future__ import annotations

from runbook_lib.checks.check import Check
from runbook_lib.packs.entitlement.checks import (
    backlog,
    changed,
    consistency,
    database,
    dead_letters,
    duplicates,
    exceptions,
    impact,
    leases,
    origin,
    publish,
    recovery,
    response,
    restart,
    scope,
    subscriber,
    throttle,
)

_TOPICS = (
    scope,
    response,
    changed,
    backlog,
    subscriber,
    publish,
    database,
    duplicates,
    leases,
    dead_letters,
    consistency,
    exceptions,
    restart,
    throttle,
    recovery,
    impact,
    origin,
)

CHECKS: tuple[Check, ...] = tuple(check for topic in _TOPICS for check in topic.CHECKS)
