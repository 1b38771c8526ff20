"""The brokers' monitoring ports: who is connected, who was, and why they went; and what nodes say of their cluster."""

from __future__ import annotations

from typing import Any

import pandas as pd

from runbook_lib.model.finding import Reason
from runbook_lib.sources.http import HttpServer
from runbook_lib.sources.settings import NatsAccess, split_urls
from runbook_lib.sources.source import Opening, ReadCost, SourceError

_COLUMNS = ["cid", "name", "ip", "port", "start", "stop", "reason", "user", "lang", "pending_bytes", "subjects", "now"]


class NatsMonitor:
    """GETs to /varz, /connz and /jsz of one or several nodes; a node knows its own clients alone."""

    def __init__(self, urls: str, read_cost: ReadCost, access: NatsAccess | None = None) -> None:
        access = access or NatsAccess()
        own = (access.cert_file, access.key_file) if access.cert_file and access.key_file else None
        self._nodes = [
            HttpServer("nats_monitor", url, read_cost, ca_file=access.ca_file, certificate=own)
            for url in split_urls(urls)
        ]

    @classmethod
    def declared(cls, opening: Opening) -> NatsMonitor | None:
        """Return the monitoring port of the target's broker; None where it declares none."""
        url = opening.target.url("nats_monitor_url")
        return cls(url, opening.read_cost, opening.target.nats) if url else None

    def servers(self) -> list[dict[str, Any]]:
        """Return /varz of each node that answers: version, now, start, connections, slow_consumers."""
        return self._ask_each_node("varz")

    def cluster(self) -> list[dict[str, Any]]:
        """Return /jsz of each node that answers: in a cluster meta_cluster{leader, replicas, cluster_size}."""
        return self._ask_each_node("jsz")

    def connections(self, limit: int = 256) -> pd.DataFrame:
        """Return open connections with what they subscribe to; one row each, `now` is its node's clock."""
        return self._read_connections({"subs": "1", "auth": "1", "limit": str(limit)})

    def closed(self, limit: int = 256) -> pd.DataFrame:
        """Return closed connections, newest first, with the server's reason.

        One row each, `now` is its node's clock.
        """
        return self._read_connections({"state": "closed", "sort": "stop", "auth": "1", "limit": str(limit)})

    def _ask_each_node(self, path: str, params: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """Return the answer of every node, each node once. Raises the SourceError of one node if none answers."""
        answers: dict[str, dict[str, Any]] = {}
        silent: list[SourceError] = []
        for node in self._nodes:
            try:
                answer = dict(node.get_json(path, params))
                answers[answer.get("server_id") or node.url] = answer
            except SourceError as e:
                silent.append(e)
        if not answers:
            raise min(silent, key=lambda e: e.reason is Reason.UNREACHABLE)
        return list(answers.values())

    def _read_connections(self, params: dict[str, str]) -> pd.DataFrame:
        rows = [
            {
                **{c: row.get(c) for c in _COLUMNS},
                "user": row.get("authorized_user"),
                "subjects": " ".join(row.get("subscriptions_list") or []),
                "now": reply.get("now"),
            }
            for reply in self._ask_each_node("connz", params)
            for row in reply.get("connections") or []
        ]
        frame = pd.DataFrame(rows, columns=_COLUMNS)
        for column in ("start", "stop", "now"):
            frame[column] = pd.to_datetime(frame[column], utc=True, format="ISO8601")
        return frame
