"""The page of many systems: their verdicts, the worst first, with links to their dossiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from runbook_lib.archive import dossier
from runbook_lib.model.finding import Status
from runbook_lib.store import Archive
from runbook_lib.view import render

PAGE = "systems.html"


def write(output: str, incident: str, came: Collection[Mapping[str, Any]], of: int, lang: str) -> str:
    """Write the page from what `investigation.summary` returned for the systems that have ended, of so many.

    Return where it is. Raises OSError and UsageError.
    """
    archive = Archive(output, incident)
    archive.prepare(people=False)
    page = f"{archive.place}/{PAGE}"
    rows = [
        {
            "status": c["document"]["status"],
            "target": c["document"]["target"],
            "problem": c["problem"],
            "verdict": c["document"].get("verdict"),
            "link": f"../{c['document']['incident']}/{dossier.INDEX}" if c["index"] else "",
        }
        for c in came
    ]
    rows.sort(key=lambda row: (-Status[row["status"]].rank, row["target"]))
    counts = Counter(row["status"] for row in rows)
    shown = sorted(counts.items(), key=lambda n: -Status[n[0]].rank)
    archive.write(PAGE, render.html("systems", lang, incident=incident, rows=rows, counts=shown, of=of).encode())
    return page
