"""A room for what changed around a system: starts, migrations, streams, actions, and the configuration."""

from __future__ import annotations

from pathlib import Path

from runbook_lib.book.pack import Pack

PACK = Pack("changes", Path(__file__).parent, room=True, checks="")
