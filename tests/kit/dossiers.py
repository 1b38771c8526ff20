"""Dossiers to verify, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from runbook_lib.dossier.seal import ChainHead, chain_head
from runbook_lib.store.archive import ACTION_LOG, MANIFEST, NOTES, Archive
from runbook_lib.store.files import digest

Verify = Callable[..., tuple[int, str, str]]
#: A line of each journal.
LINES: dict[str, dict[str, Any]] = {
    MANIFEST: {"started": "2026-01-31", "verdict": {"status": "OK", "stuck_at": None, "confidence": "high"}},
    ACTION_LOG: {"id": "a", "time": "2026-01-31", "result": "done", "why": {"en": "-", "ja": "-"}},
    NOTES: {"time": "2026-01-31"},
}
#: Artifacts, actions and notes of the dossier that is attacked.
COUNT = 4


def fill(archive: Archive, count: int = COUNT, mark: str = "") -> list[ChainHead]:
    """A dossier with lines in each journal; its head after each artifact, action and note."""
    archive.prepare()
    seen = []
    for n in range(count):
        name = f"2026010{n + 1}T000000Z-4.1-OK{mark}"
        archive.append(
            LINES[MANIFEST] | {"name": name, "started": f"2026-01-0{n + 1}T00:00:00Z"},
            {f"{name}.ipynb": f"notebook {n}{mark}".encode(), f"evidence/{name}.json": b"{}"},
        )
        archive.add_line(ACTION_LOG, LINES[ACTION_LOG] | {"action": f"a{n}{mark}"})
        archive.add_line(NOTES, LINES[NOTES] | {"text": f"n{n}{mark}"})
        seen.append(chain_head(archive))
    return seen


def rewritten(archive: Archive, log: str, lines: list[dict[str, Any]]) -> None:
    """Write a journal anew, with a chain and digests that are right: whoever may write there can."""
    content, last = b"", None
    for line in lines:
        sha256 = {name: digest(archive.read(name)) for name in line.get("sha256", {})}
        entry = line | {"previous": last} | ({"sha256": sha256} if sha256 else {})
        sealed = json.dumps(entry, ensure_ascii=False, sort_keys=True).encode()
        content, last = content + sealed + b"\n", digest(sealed)
    archive.write(log, content)


def cut_off(archive: Archive, log: str, line: int) -> None:
    rewritten(archive, log, archive.lines(log)[:line])
