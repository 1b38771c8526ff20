"""A room for what texts of errors and lines of logs mean."""

from __future__ import annotations

from pathlib import Path

from runbook_lib.book.pack import Pack

PACK = Pack("logs", Path(__file__).parent, room=True, checks="")
