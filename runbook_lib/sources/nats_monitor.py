"""The broker's monitoring port: who is connected, who was, and why they went."""

from __future__ import annotations

from typing import Any

import pandas as pd

from runbook_lib.sources import ReadCost
from runbook_lib.sources.http import get_json

_COLUMNS = [
    "cid",
    "name",
    "ip",
    "port",
    "start",
    "stop",
    "reason",
    "user",
    "lang",
    "pending_bytes",
    "subjects",
]


class NatsMonitor:
    """GETs to /varz and /connz."""

    def __init__(self, url: str, read_cost: ReadCost) -> None:
        self._url, self._read_cost = url, read_cost

    def server(self) -> dict[str, Any]:
        """/varz: version, now, uptime, connections, slow_consumers, config_load_time."""
        return dict(get_json("nats_monitor", self._read_cost, self._url, "varz"))

    def connections(self, limit: int = 256) -> pd.DataFrame:
        """Open connections with what they subscribe to; one row each."""
        return self._connz({"subs": "1", "auth": "1", "limit": str(limit)})

    def closed(self, limit: int = 256) -> pd.DataFrame:
        """Closed connections, newest first, with the server's reason; one row each."""
        return self._connz({"state": "closed", "sort": "stop", "auth": "1", "limit": str(limit)})

    def _connz(self, params: dict[str, str]) -> pd.DataFrame:
        reply = get_json("nats_monitor", self._read_cost, self._url, "connz", params)
        rows = [
            {
                **{c: row.get(c) for c in _COLUMNS},
                "user": row.get("authorized_user"),
                "subjects": " ".join(row.get("subscriptions_list") or []),
            }
            for row in reply.get("connections", [])
        ]
        frame = pd.DataFrame(rows, columns=_COLUMNS)
        for column in ("start", "stop"):
            frame[column] = pd.to_datetime(frame[column], utc=True, format="ISO8601")
        return frame
