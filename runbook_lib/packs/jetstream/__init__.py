"""A room for what is alike in every system on JetStream: a stream's messages, its consumer, clients and quorum."""

from __future__ import annotations

from pathlib import Path

from runbook_lib.book.pack import Pack

PACK = Pack("jetstream", Path(__file__).parent, room=True, checks="")
