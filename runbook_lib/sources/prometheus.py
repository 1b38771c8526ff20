"""Prometheus, where a target has it."""

from __future__ import annotations

import pandas as pd

from runbook_lib.sources import Opening, ReadCost
from runbook_lib.sources.http import get_json


class Prometheus:
    """Instant queries."""

    def __init__(self, url: str, read_cost: ReadCost) -> None:
        self._url, self._read_cost = url, read_cost

    @classmethod
    def declared(cls, opening: Opening) -> Prometheus | None:
        """Return the target's Prometheus; None where it declares none."""
        url = opening.target.url("prometheus_url")
        return cls(url, opening.read_cost) if url else None

    def instant(self, promql: str, at: pd.Timestamp) -> pd.DataFrame:
        """Return the vector at a moment: one row per series, its labels as columns and `value`; empty if absent."""
        reply = get_json(
            "prometheus", self._read_cost, self._url, "api/v1/query", {"query": promql, "time": at.isoformat()}
        )
        rows = [{**s["metric"], "value": float(s["value"][1])} for s in reply["data"]["result"]]
        return pd.DataFrame(rows)
