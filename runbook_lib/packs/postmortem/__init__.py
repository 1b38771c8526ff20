"""A room for what a postmortem reads from an incident's dossier: origin, timeline and measures."""

from __future__ import annotations

from pathlib import Path

from runbook_lib.book.pack import Pack

PACK = Pack("postmortem", Path(__file__).parent, room=True, checks="")
