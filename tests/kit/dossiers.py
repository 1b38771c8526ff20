"""Dossiers to verify, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from runbook_lib.dossier.seal import ChainHead, chain_head
from runbook_lib.store.archive import ACTION, LOG, NOTE, VERDICT, Archive
from runbook_lib.store.files import digest

Verify = Callable[..., tuple[int, str, str]]
#: A line of each kind.
LINES: dict[str, dict[str, Any]] = {
    VERDICT: {"started": "2026-01-31", "verdict": {"status": "OK", "stuck_at": None, "confidence": "high"}},
    ACTION: {
        "id": "a",
        "time": "2026-01-31",
        "action": "restart",
        "result": "done",
        "what": {},
        "why": {"en": "-", "ja": "-"},
    },
    NOTE: {"time": "2026-01-31"},
}
#: Artifacts, actions and notes of the dossier that is attacked.
COUNT = 4


def fill(archive: Archive, count: int = COUNT, mark: str = "") -> list[ChainHead]:
    """A dossier with lines of each kind; its head after each artifact, action and note."""
    archive.prepare()
    seen = []
    for n in range(count):
        name = f"2026010{n + 1}T000000Z-4.1-OK{mark}"
        archive.append(
            LINES[VERDICT] | {"name": name, "started": f"2026-01-0{n + 1}T00:00:00Z"},
            {f"{name}.ipynb": f"notebook {n}{mark}".encode(), f"evidence/{name}.json": b"{}"},
        )
        archive.add_line(ACTION, LINES[ACTION] | {"action": f"a{n}{mark}"})
        archive.add_line(NOTE, LINES[NOTE] | {"text": f"n{n}{mark}"})
        seen.append(chain_head(archive))
    return seen


def rewritten(archive: Archive, lines: list[dict[str, Any]]) -> None:
    """Write the log anew, with a chain and digests that are right: whoever may write there can."""
    content, last = b"", None
    for line in lines:
        sha256 = {name: digest(archive.read(name)) for name in line.get("sha256", {})}
        entry = line | {"previous": last} | ({"sha256": sha256} if sha256 else {})
        sealed = json.dumps(entry, ensure_ascii=False, sort_keys=True).encode()
        content, last = content + sealed + b"\n", digest(sealed)
    archive.write(LOG, content)


def every_line(archive: Archive) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.raw()]


def cut_off(archive: Archive, line: int) -> None:
    rewritten(archive, every_line(archive)[:line])
