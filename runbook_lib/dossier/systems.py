"""The page of many systems: their verdicts, the worst first, with links to their dossiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from runbook_lib.model.finding import Status
from runbook_lib.store.archive import Archive
from runbook_lib.view import render

PAGE = "systems.html"


def write(output: str, incident: str, came: Collection[Mapping[str, Any]], of: int) -> str:
    """Write the page from what `investigation.summary` returned for the systems that have ended, of so many.

    Return where it is. Raises OSError and UsageError.
    """
    archive = Archive(output, incident, people=False)
    archive.prepare()
    ended = sorted(came, key=lambda c: (-Status[c["document"]["status"]].rank, c["document"]["target"]))
    counts = Counter(c["document"]["status"] for c in ended)
    archive.write(PAGE, render.html("systems", incident=incident, ended=ended, counts=counts, of=of).encode())
    return f"{archive.place}/{PAGE}"
