"""Findings with given observations."""

from __future__ import annotations

from runbook_lib.book import catalog
from runbook_lib.model.finding import Finding, Proposal, Signal, Status, say

BOOK = catalog.load()


def seen(step: str, *signals: Signal, proposals: tuple[str, ...] = ()) -> Finding:
    offered = tuple(Proposal(name, name, "5.1", {"name": name}) for name in proposals)
    return Finding(step, Status.CRITICAL, say("ui.no_action"), signals=signals, proposals=offered)
