"""The logs of an incident, made of a few fields for each line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runbook_lib.store.lines import ActionLine, Logs, NoteLine, RunLine, VerdictLine

Line = dict[str, Any]


def logs_of(*artifacts: Line, actions: Iterable[Line] = (), notes: Iterable[Line] = ()) -> Logs:
    """Logs of lines that lack what the test does not ask for."""
    told: dict[str, Any] = {"stuck_at": None, "confidence": "none"}
    lines = [
        VerdictLine.model_validate({"name": "v", **e, "verdict": told | e["verdict"]})
        if "verdict" in e
        else RunLine.model_validate({"name": "r", "section": "3", "status": "OK", **e})
        for e in artifacts
    ]
    done: dict[str, Any] = {"id": "a", "why": {"en": "-", "ja": "-"}}
    return Logs(
        lines, [ActionLine.model_validate(done | a) for a in actions], [NoteLine.model_validate(n) for n in notes]
    )
