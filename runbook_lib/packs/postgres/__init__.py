"""A room for what is alike in every system on PostgreSQL: locks, commits, connections, logins, schemas and clocks."""

from __future__ import annotations

from pathlib import Path

from runbook_lib.book.pack import Pack

PACK = Pack("postgres", Path(__file__).parent, room=True, checks="", hooks={"lock_holders": "locks:name_holder"})
