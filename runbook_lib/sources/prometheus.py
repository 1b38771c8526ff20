"""Prometheus, where a target has it."""

from __future__ import annotations

import pandas as pd

from runbook_lib.sources import Opening
from runbook_lib.sources.http import HttpServer


class Prometheus(HttpServer):
    """Instant queries."""

    @classmethod
    def declared(cls, opening: Opening) -> Prometheus | None:
        """Return the target's Prometheus; None where it declares none."""
        url = opening.target.url("prometheus_url")
        return cls("prometheus", url, opening.read_cost) if url else None

    def instant(self, promql: str, at: pd.Timestamp) -> pd.DataFrame:
        """Return the vector at a moment: one row per series, its labels as columns and `value`; empty if absent."""
        reply = self.get_json("api/v1/query", {"query": promql, "time": at.isoformat()})
        return pd.DataFrame([{**s["metric"], "value": float(s["value"][1])} for s in reply["data"]["result"]])
